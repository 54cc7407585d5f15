//! Namespaces.

use contracts::namespaces::Info;
use contracts::{Namespace, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One namespace.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Namespace)]
pub(crate) struct NamespaceView {
    /// Its name.
    #[schema(value_type = String)]
    name: Namespace,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// When its record was made; null for one that only holds things.
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
}

impl From<Info> for NamespaceView {
    fn from(info: Info) -> Self {
        Self {
            name: info.name,
            labels: info.labels,
            created_at: info.created_at,
        }
    }
}
