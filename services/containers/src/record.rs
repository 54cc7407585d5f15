//! What a record must look like, and how filters see it.

use crate::store::StoreError;
use contracts::check_labels;
use contracts::containers::{Container, Create, Runtime};
use filter::Fields;
use std::borrow::Cow;

/// Checks everything of a request that does not depend on other records.
pub(crate) fn check(request: &Create) -> Result<(), StoreError> {
    check_labels(&request.labels)?;
    check_runtime(&request.runtime)?;
    check_snapshot(request)?;
    Ok(crate::spec::check(&request.spec)?)
}

fn check_runtime(runtime: &Runtime) -> Result<(), StoreError> {
    let name = runtime.name.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let path = name.starts_with('/') && name.split('/').all(|part| part != "..");
    if !path && !name.chars().all(plain) {
        return Err(StoreError::Field {
            field: "runtime.name",
            value: name.to_owned(),
            problem: "must be a name such as io.containerd.runc.v2, or the absolute path of a shim",
        });
    }
    let options = runtime.options.as_str();
    if !options.is_empty() && serde_json::from_str::<serde_json::Value>(options).is_err() {
        return Err(StoreError::Field {
            field: "runtime.options",
            value: options.to_owned(),
            problem: "must be JSON text, or empty",
        });
    }
    Ok(())
}

fn check_snapshot(request: &Create) -> Result<(), StoreError> {
    let driver = request.snapshotter.as_str();
    let problem = if request.snapshot_key.is_some() && driver.is_empty() {
        "must name the driver of snapshot_key"
    } else if driver.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c)) {
        "must be the name of a driver, as in overlayfs"
    } else {
        return Ok(());
    };
    Err(StoreError::Field {
        field: "snapshotter",
        value: driver.to_owned(),
        problem,
    })
}

/// A record as a filter sees it.
pub(crate) struct Row<'a>(pub(crate) &'a Container);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let container = self.0;
        let text = match path {
            ["id"] => container.id.as_str(),
            ["image"] => container.image.as_ref()?.as_str(),
            ["runtime", "name"] => &container.runtime.name,
            ["snapshotter"] => &container.snapshotter,
            ["snapshot_key"] => container.snapshot_key.as_ref()?.as_str(),
            ["labels", key @ ..] => return filter::label(&container.labels, key),
            _ => return None,
        };
        (!text.is_empty()).then_some(Cow::Borrowed(text))
    }
}
