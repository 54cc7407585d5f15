//! Paths inside a container.

use super::error::{Result, SpecError};

/// Checks that `path` is absolute and climbs nowhere, and writes it without doubled slashes and dots.
pub(super) fn absolute(option: &str, path: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(SpecError::new(
            option,
            path,
            "must be absolute, begin it with '/'",
        ));
    }
    below(option, path).map(|clean| format!("/{clean}"))
}

/// Checks that `path` climbs nowhere, and writes it without slashes at its ends.
pub(super) fn below(option: &str, path: &str) -> Result<String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(SpecError::new(option, path, "must not contain '..'"));
    }
    Ok(parts.join("/"))
}
