//! The command line, as containerd writes it: flags with one dash or two, then one action.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `gantry shim` was asked, parsed; see the crate page for each flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimArgs {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Delete,
}

impl ShimArgs {
    /// Parses what stands after `gantry shim`.
    ///
    /// Errors: a sentence for the user that names the flag or action at fault.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut words = Vec::new();
        for arg in args {
            words.push(
                arg.into_string()
                    .map_err(|arg| format!("argument {arg:?} is not UTF-8"))?,
            );
        }
        let mut draft = Draft::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            draft.take(&word, &mut words)?;
        }
        draft.finish()
    }
}

#[derive(Default)]
struct Draft {
    namespace: Option<String>,
    id: Option<String>,
    bundle: Option<PathBuf>,
    socket: Option<PathBuf>,
    action: Option<Action>,
}

impl Draft {
    fn take(&mut self, word: &str, rest: &mut impl Iterator<Item = String>) -> Result<(), String> {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            return self.action(word);
        };
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name == "debug" {
            return Ok(());
        }
        let mut value = || {
            given
                .clone()
                .or_else(|| rest.next())
                .ok_or(format!("flag -{name} needs a value"))
        };
        match name {
            "namespace" => self.namespace = Some(value()?),
            "id" => self.id = Some(value()?),
            "bundle" => self.bundle = Some(value()?.into()),
            "socket" => self.socket = Some(value()?.into()),
            "address" | "publish-binary" => drop(value()?),
            _ => return Err(format!("unknown flag -{name}")),
        }
        Ok(())
    }

    fn action(&mut self, word: &str) -> Result<(), String> {
        self.action = Some(match word {
            "start" => Action::Start,
            "delete" => Action::Delete,
            _ => return Err(format!("unknown action {word}: use start or delete")),
        });
        Ok(())
    }

    fn finish(self) -> Result<ShimArgs, String> {
        let bundle = match self.bundle {
            Some(path) => path,
            None => PathBuf::from("."),
        };
        Ok(ShimArgs {
            namespace: name("-namespace", self.namespace)?,
            id: name("-id", self.id)?,
            bundle: std::path::absolute(&bundle)
                .map_err(|error| format!("bundle {}: {error}", bundle.display()))?,
            socket: self.socket,
            action: self.action.ok_or("no action given: use start or delete")?,
        })
    }
}

/// Both names become folder names, so they must not be able to leave their folder.
fn name(flag: &str, value: Option<String>) -> Result<String, String> {
    let value = value.unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match value.as_str() {
        "" => Err(format!("flag {flag} is required")),
        "." | ".." => Err(format!("{flag} {value} is not a name")),
        _ if value.len() > 128 || !value.chars().all(fits) => Err(format!(
            "{flag} {value:?} is not a name of at most 128 letters, digits, _ . and -"
        )),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<ShimArgs, String> {
        ShimArgs::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn go_style_flags_are_understood_in_every_spelling() {
        let line = "-namespace default --id=a -address /run/x.sock -publish-binary b -bundle /b -debug start";
        let args = parse(line).expect("parses");
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str()),
            ("default", "a")
        );
        assert_eq!(args.bundle, PathBuf::from("/b"));
        assert_eq!(args.action, Action::Start);
    }

    #[test]
    fn an_id_that_leaves_its_folder_is_refused() {
        for id in ["..", "a/b", ""] {
            assert!(
                parse(&format!("-namespace n -id={id} start")).is_err(),
                "{id:?}"
            );
        }
    }

    #[test]
    fn unknown_words_are_named() {
        assert!(
            parse("-namespace n -id i stop")
                .unwrap_err()
                .contains("stop")
        );
        assert!(parse("-nope x start").unwrap_err().contains("-nope"));
    }
}
