//! A spec that the caller made and that is kept byte for byte.

use super::error::{Result, SpecError};
use oci_spec::runtime::Spec;

/// Largest spec that a record takes, bytes: far above any that is meant, and one message with its record.
pub const MAX_SPEC: usize = 1 << 20;

/// Checks what every runtime needs of a spec; all else is the runtime's business.
///
/// Errors: one that names the field. Source: OCI runtime-spec, config.md.
pub fn check(text: &str) -> Result<()> {
    let refuse =
        |field: &str, value: &str, problem: &str| Err(SpecError::new(field, value, problem));
    if text.trim().is_empty() {
        return refuse(
            "spec",
            "",
            "is empty, make one with containers.generate or send a runtime spec",
        );
    }
    fits(text)?;
    if !text.trim_start().starts_with('{') {
        return refuse("spec", "", "not an OCI runtime spec: must be a JSON object");
    }
    let spec: Spec = serde_json::from_str(text)
        .map_err(|error| SpecError::new("spec", "", format!("not an OCI runtime spec: {error}")))?;
    if !spec.version().starts_with("1.") {
        return refuse(
            "spec.ociVersion",
            spec.version(),
            "must be a version 1, as in 1.0.2",
        );
    }
    if spec
        .root()
        .as_ref()
        .is_none_or(|root| root.path().as_os_str().is_empty())
    {
        return refuse(
            "spec.root.path",
            "",
            "is missing, it is rootfs in most cases",
        );
    }
    let Some(process) = spec.process() else {
        return refuse("spec.process", "", "is missing, it says what to run");
    };
    let program = process.args().iter().flatten().next();
    if program.is_none_or(String::is_empty) {
        return refuse(
            "spec.process.args",
            "",
            "must name the program to run first",
        );
    }
    if !process.cwd().is_absolute() {
        return refuse(
            "spec.process.cwd",
            &process.cwd().to_string_lossy(),
            "must be absolute, begin it with '/'",
        );
    }
    Ok(())
}

/// Refuses a spec that is too large for a record.
pub(super) fn fits(text: &str) -> Result<()> {
    if text.len() <= MAX_SPEC {
        return Ok(());
    }
    let problem = format!(
        "has {} bytes and a record takes {MAX_SPEC}, use fewer devices, mounts or variables",
        text.len()
    );
    Err(SpecError::new("spec", "", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"{"ociVersion":"1.2.0","process":{"user":{},"args":["sh"],"cwd":"/"},"root":{"path":"rootfs"},"linux":{},"future":{"x":1}}"#;

    #[test]
    fn a_small_spec_with_fields_of_the_future_passes() {
        check(LEAST).unwrap();
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        for (text, field) in [
            (String::new(), "spec"),
            ("[]".into(), "spec"),
            (LEAST.replace("1.2.0", "2.0.0"), "spec.ociVersion"),
            (LEAST.replace("rootfs", ""), "spec.root.path"),
            (LEAST.replace("\"sh\"", ""), "spec.process.args"),
            (
                LEAST.replace("\"cwd\":\"/\"", "\"cwd\":\"tmp\""),
                "spec.process.cwd",
            ),
            (LEAST.replace("process", "procces"), "spec.process"),
            (
                LEAST.replace("\"x\":1", &format!("\"x\":\"{}\"", "y".repeat(MAX_SPEC))),
                "spec",
            ),
        ] {
            let error = check(&text).unwrap_err();
            assert_eq!(error.option, field, "{error}");
        }
    }
}
