//! Signals by number or name. Source: signal(7), the numbers of x86 and ARM.

use contracts::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// In order of their numbers, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal that programs may use.
const RTMIN: u32 = 34;
/// The last signal.
const LAST: u32 = 64;

/// A signal in a request body: `15`, `"15"`, `"TERM"`, `"SIGTERM"`, `"RTMIN+1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Signal(pub(crate) u32);

impl Default for Signal {
    /// What `kill` sends when nobody says otherwise.
    fn default() -> Self {
        Self(15)
    }
}

impl Signal {
    /// Reads a name or number. Errors: `InvalidArgument`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        number(text).map(Self).ok_or_else(|| {
            Error::invalid(format!(
                "signal {text:?}: must be a name as in SIGTERM, or a number from 1 to {LAST}"
            ))
        })
    }
}

fn number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(above) = name.strip_prefix("RTMIN") {
        let above: u32 = match above.strip_prefix('+') {
            Some(above) => above.parse().ok()?,
            None => above.is_empty().then_some(0)?,
        };
        return RTMIN.checked_add(above).filter(|number| *number <= LAST);
    }
    let at = NAMES.iter().position(|known| *known == name)?;
    u32::try_from(at + 1).ok()
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("KILL", 9),
            ("SIGSYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+2", 36),
        ] {
            assert_eq!(Signal::parse(text).unwrap(), Signal(number), "{text}");
        }
        for bad in ["", "0", "65", "NOPE", "-9", "RTMIN+31", "RTMIN2"] {
            assert!(Signal::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str::<Signal>("2").unwrap(), Signal(2));
        assert_eq!(
            serde_json::from_str::<Signal>("\"SIGINT\"").unwrap(),
            Signal(2)
        );
    }
}
