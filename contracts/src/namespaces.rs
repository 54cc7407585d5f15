//! Namespaces: the tenants of a node. They separate names; they are no security boundary.

use crate::{LabelPatch, Labels, Namespace, Page, Paging, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Namespace records. Using a namespace does not need a record: one appears in lists as soon as it holds anything.
    Namespaces = "namespaces" {
        read get(Get) -> Info;
        read list(List) -> Page<Info>;
        write put(Put) -> Info;
        write update(Update) -> Info;
        write delete(Delete) -> ();
    } emits {
        "/namespaces/create" => Created;
        "/namespaces/update" => Updated;
        "/namespaces/delete" => Deleted;
    }
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: Namespace,
    /// Its labels; `containerd.io/defaults/snapshotter` and `…/runtime` mean something.
    pub labels: Labels,
    /// When its record was made; `None` for one that only holds things.
    pub created_at: Option<Timestamp>,
}

/// Looks up one namespace. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Its name.
    pub name: Namespace,
}

/// Lists namespaces, by name. Filter fields: `name`, `labels`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Makes a namespace, or replaces the labels of an existing one unless `create_only`.
///
/// Errors: `AlreadyExists` with `create_only`; `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Put {
    /// Its name.
    pub name: Namespace,
    /// Its labels from now on.
    #[serde(default)]
    pub labels: Labels,
    /// Whether an existing one is an error.
    #[serde(default)]
    pub create_only: bool,
}

/// Changes labels. Errors: `NotFound`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Its name.
    pub name: Namespace,
    /// The change.
    pub labels: LabelPatch,
}

/// Deletes an empty namespace.
///
/// Errors: `NotFound`; `FailedPrecondition` naming what it still holds, with counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Its name.
    pub name: Namespace,
}

/// A namespace was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Its name.
    pub name: Namespace,
    /// Its labels.
    pub labels: Labels,
}

/// Labels changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Updated {
    /// Its name.
    pub name: Namespace,
    /// Its labels.
    pub labels: Labels,
}

/// A namespace went away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Its name.
    pub name: Namespace,
}
