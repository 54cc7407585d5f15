//! The part of an image's config that says how to run it.
//!
//! Source: OCI image-spec, config.md "Properties"; Docker images write `null` for what they leave out. Labels are not
//! read at all: an image decides what runs, never with which privileges.

use super::error::{Result, SpecError};
use serde::Deserialize;

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ImageConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<ImageConfig>,
}

impl ImageConfig {
    /// Reads a config blob; empty text is an image that says nothing.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let refuse =
            |why: String| SpecError::new("config", "", format!("not an image config: {why}"));
        if !text.trim_start().starts_with('{') {
            return Err(refuse("must be a JSON object".to_owned()));
        }
        let document: Document =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        Ok(document.config.unwrap_or_default())
    }
    pub(super) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or_default()
    }
    pub(super) fn env(&self) -> &[String] {
        self.env.as_deref().unwrap_or_default()
    }
    pub(super) fn entrypoint(&self) -> &[String] {
        self.entrypoint.as_deref().unwrap_or_default()
    }
    pub(super) fn cmd(&self) -> &[String] {
        self.cmd.as_deref().unwrap_or_default()
    }
    pub(super) fn working_dir(&self) -> &str {
        self.working_dir.as_deref().unwrap_or_default()
    }
    /// The signal that asks it to end, when that is written as one.
    pub(super) fn stop_signal(&self) -> Option<&str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
        self.stop_signal
            .as_deref()
            .filter(|name| (1..=16).contains(&name.len()) && name.chars().all(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_config_with_nulls_is_read() {
        let config = ImageConfig::parse(
            r#"{"config":{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null,"Labels":{"a":"b"}},"os":"linux"}"#,
        )
        .unwrap();
        assert_eq!(config.cmd(), ["sh"]);
        assert!(config.entrypoint().is_empty() && config.user().is_empty());
        assert_eq!(
            ImageConfig::parse(r#"{"config":null}"#).unwrap(),
            ImageConfig::default()
        );
        assert_eq!(ImageConfig::parse("").unwrap(), ImageConfig::default());
    }

    #[test]
    fn what_is_no_config_is_refused_by_name() {
        let error = ImageConfig::parse("[]").unwrap_err();
        assert_eq!(error.option, "config");
    }

    #[test]
    fn a_stop_signal_that_is_none_is_dropped() {
        let config = |signal: &str| {
            ImageConfig::parse(&format!(r#"{{"config":{{"StopSignal":{signal:?}}}}}"#)).unwrap()
        };
        assert_eq!(config("SIGRTMIN+3").stop_signal(), Some("SIGRTMIN+3"));
        assert_eq!(config("a b").stop_signal(), None);
        assert_eq!(config("").stop_signal(), None);
    }
}
