//! Contracts ↔ the JSON that users see. One file per resource; each view says what it adds or leaves out.

pub(crate) mod audit;
pub(crate) mod change;
pub(crate) mod container;
pub(crate) mod content;
pub(crate) mod event;
pub(crate) mod image;
pub(crate) mod lease;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod operation;
pub(crate) mod snapshot;
pub(crate) mod task;

use contracts::{Error, LabelPatch, Page, Platform};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One part of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Page)]
pub(crate) struct PageView<T> {
    /// In key order; may be empty even when there is a next page.
    pub(crate) items: Vec<T>,
    /// `page_token` of the next page; empty when this was the last.
    pub(crate) next_page_token: String,
    /// What happens after this has a larger event number: `GET /v1/events?since=` goes on from here. Of several pages the
    /// first one's counts; 0 when the log could not be asked, or has nothing to tell about these items.
    pub(crate) version: u64,
}

impl<T> PageView<T> {
    /// Shows a page.
    pub(crate) fn of<F: Into<T>>(page: Page<F>) -> Self {
        Self {
            items: page.items.into_iter().map(Into::into).collect(),
            next_page_token: page.next,
            version: page.version,
        }
    }
}

/// A change of labels.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = LabelPatch)]
pub(crate) struct LabelBody {
    /// Label by label: its new value, or null to remove it.
    pub(crate) labels: BTreeMap<String, Option<String>>,
    /// Whether labels that are not named go away.
    pub(crate) replace: bool,
}

impl From<LabelBody> for LabelPatch {
    fn from(body: LabelBody) -> Self {
        Self {
            replace: body.replace,
            set: body.labels,
        }
    }
}

/// An operating system and processor.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Platform)]
pub(crate) struct PlatformView {
    /// `linux`.
    os: String,
    /// `amd64`, `arm64`, …
    architecture: String,
    /// `v7`, `v8`, or empty.
    variant: String,
}

impl From<Platform> for PlatformView {
    fn from(platform: Platform) -> Self {
        Self {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
        }
    }
}

impl From<PlatformView> for Platform {
    fn from(view: PlatformView) -> Self {
        Self {
            os: view.os,
            architecture: view.architecture,
            variant: view.variant,
            ..Self::default()
        }
    }
}

/// What a dry run found.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DryRun)]
pub(crate) struct DryView {
    /// Always true: nothing was changed.
    pub(crate) dry_run: bool,
    /// What would be done.
    pub(crate) would: String,
    /// What is there now; null when nothing is.
    pub(crate) current: Value,
}

impl DryView {
    /// Says what would be done to what is there.
    pub(crate) fn would(what: impl Into<String>, current: impl Serialize) -> Self {
        Self {
            dry_run: true,
            would: what.into(),
            current: serde_json::to_value(current).unwrap_or_default(),
        }
    }
}

/// Reads JSON text that a plugin keeps; text that is no JSON is shown as a string.
pub(crate) fn json(text: &str) -> Value {
    match text {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

/// Writes a JSON object as the text that a contract carries; null is empty. Errors: `InvalidArgument` naming `field`.
pub(crate) fn text(field: &str, value: &Value) -> contracts::Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::Object(_) => Ok(value.to_string()),
        _ => Err(Error::invalid(format!("{field}: must be a JSON object"))),
    }
}
