//! Leases and what they hold.

use contracts::collect::Resource;
use contracts::leases::Lease;
use contracts::{Digest, Error, ImageName, LeaseId, Ref, Result, SnapshotKey, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One lease.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Lease)]
pub(crate) struct LeaseView {
    /// Its id.
    #[schema(value_type = String)]
    pub(crate) id: LeaseId,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it ends by itself; null for never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl From<Lease> for LeaseView {
    fn from(lease: Lease) -> Self {
        Self {
            id: lease.id,
            labels: lease.labels,
            created_at: lease.created_at,
            expires_at: lease.expires_at,
        }
    }
}

/// What a lease holds, or the collector speaks of: a kind and a name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Resource)]
pub(crate) struct ResourceView {
    /// `content`, `snapshots/<driver>`, `ingests`, `images`, `containers` or `leases`.
    pub(crate) r#type: String,
    /// Digest, key, ref, name or id.
    pub(crate) id: String,
}

impl From<Resource> for ResourceView {
    fn from(resource: Resource) -> Self {
        let (kind, id) = match resource {
            Resource::Content(digest) => ("content".into(), digest.to_string()),
            Resource::Snapshot { driver, key } => (format!("snapshots/{driver}"), key.to_string()),
            Resource::Ingest(name) => ("ingests".into(), name.to_string()),
            Resource::Image(name) => ("images".into(), name.to_string()),
            Resource::Container(id) => ("containers".into(), id.to_string()),
            Resource::Lease(id) => ("leases".into(), id.to_string()),
        };
        Self { r#type: kind, id }
    }
}

impl TryFrom<ResourceView> for Resource {
    type Error = Error;

    /// Errors: `InvalidArgument` naming the kind or the id.
    fn try_from(view: ResourceView) -> Result<Self> {
        Ok(match view.r#type.as_str() {
            "content" => Self::Content(Digest::new(view.id)?),
            "ingests" => Self::Ingest(Ref::new(view.id)?),
            "images" => Self::Image(ImageName::new(view.id)?),
            "containers" => Self::Container(contracts::ContainerId::new(view.id)?),
            "leases" => Self::Lease(LeaseId::new(view.id)?),
            other => match other.strip_prefix("snapshots/") {
                Some(driver) if !driver.is_empty() => Self::Snapshot {
                    driver: driver.into(),
                    key: SnapshotKey::new(view.id)?,
                },
                _ => {
                    return Err(Error::invalid(format!(
                        "resource type {other:?}: must be content, snapshots/<driver>, ingests, images, containers or leases"
                    )));
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_read_as_it_is_shown() {
        for (kind, id) in [
            ("snapshots/overlayfs", "a/b"),
            ("images", "docker.io/library/a:1"),
            ("ingests", "x"),
        ] {
            let view = ResourceView {
                r#type: kind.into(),
                id: id.into(),
            };
            let shown = ResourceView::from(Resource::try_from(view).unwrap());
            assert_eq!((shown.r#type.as_str(), shown.id.as_str()), (kind, id));
        }
        let wrong = ResourceView {
            r#type: "layers".into(),
            id: "a".into(),
        };
        assert!(
            Resource::try_from(wrong)
                .unwrap_err()
                .message
                .contains("snapshots/<driver>")
        );
    }
}
