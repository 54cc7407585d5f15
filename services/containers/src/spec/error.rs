//! Why no spec could be made.

use std::fmt;

/// The option that cannot be honoured: its name, what it said, what is wrong and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// Name of the option as it stands in `Options`, or of another part of the request.
    pub option: String,
    /// What it said; may be empty.
    pub value: String,
    /// What is wrong with it and what would help.
    pub problem: String,
}

/// What the parts of the generator return.
pub type Result<T, E = SpecError> = std::result::Result<T, E>;

/// A value is shown up to here, so that a pasted profile does not fill a terminal.
const SHOWN: usize = 80;

impl SpecError {
    /// Makes the error `option "value": problem`.
    pub(crate) fn new(
        option: impl Into<String>,
        value: impl fmt::Display,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            option: option.into(),
            value: value.to_string(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.option)?;
        if !self.value.is_empty() {
            let shown: String = self.value.chars().take(SHOWN).collect();
            let more = if shown.len() < self.value.len() {
                "…"
            } else {
                ""
            };
            write!(f, " {shown:?}{more}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for SpecError {}

impl From<SpecError> for contracts::Error {
    fn from(error: SpecError) -> Self {
        contracts::Error::invalid(error.to_string())
    }
}

/// The library's builders fail only for what none of our calls does.
impl From<oci_spec::OciSpecError> for SpecError {
    fn from(error: oci_spec::OciSpecError) -> Self {
        Self::new("spec", "", error.to_string())
    }
}
