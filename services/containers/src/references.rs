//! What a record keeps from collection: its image, its snapshot, and what its labels name.
//!
//! `containerd.io/gc.ref.content[.<any>]` names a blob, `containerd.io/gc.ref.snapshot.<driver>[/<any>]` a snapshot,
//! `containerd.io/gc.ref.image[.<any>]` an image. Back references would keep a record, which is a root already.
//! Source: containerd, docs/garbage-collection.md.

use contracts::collect::{Edge, Node, Resource};
use contracts::containers::Container;
use contracts::{Digest, ImageName, Namespace, SnapshotKey};

const PREFIX: &str = "containerd.io/gc.ref.";

/// The record as a node.
pub(crate) fn node(namespace: &Namespace, container: &Container) -> Node {
    Node {
        namespace: namespace.clone(),
        resource: Resource::Container(container.id.clone()),
    }
}

/// The edge that makes a record a root.
pub(crate) fn root(namespace: &Namespace, container: &Container) -> Edge {
    let node = node(namespace, container);
    Edge {
        from: node.clone(),
        to: node,
        reason: "container".to_owned(),
        flat: false,
    }
}

/// Lists what a record refers to.
pub(crate) fn of(namespace: &Namespace, container: &Container) -> Vec<Edge> {
    let edge = |resource: Resource, reason: String| Edge {
        from: node(namespace, container),
        to: Node {
            namespace: namespace.clone(),
            resource,
        },
        reason,
        flat: false,
    };
    let image = container.image.clone().map(Resource::Image);
    let snapshot = container
        .snapshot_key
        .clone()
        .map(|key| Resource::Snapshot {
            driver: container.snapshotter.clone(),
            key,
        });
    let own = [(image, "image"), (snapshot, "snapshot")];
    let own = own
        .into_iter()
        .filter_map(|(resource, reason)| Some(edge(resource?, reason.to_owned())));
    let labelled = container
        .labels
        .iter()
        .filter_map(|(key, value)| Some(edge(named(key, value)?, format!("label {key}"))));
    own.chain(labelled).collect()
}

/// A label that names nothing valid keeps nothing, as in containerd.
fn named(key: &str, value: &str) -> Option<Resource> {
    let kind = key.strip_prefix(PREFIX)?;
    let is = |name: &str| {
        let rest = kind.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
    };
    if is("content") {
        return Digest::new(value).ok().map(Resource::Content);
    }
    if is("image") {
        return ImageName::new(value).ok().map(Resource::Image);
    }
    let driver = kind.strip_prefix("snapshot.")?;
    let driver = driver.split_once('/').map_or(driver, |(driver, _)| driver);
    let key = SnapshotKey::new(value).ok()?;
    Some(Resource::Snapshot {
        driver: driver.to_owned(),
        key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_blobs_snapshots_and_images() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (key, value, wanted) in [
            ("containerd.io/gc.ref.content", digest.as_str(), true),
            ("containerd.io/gc.ref.content.l.0", &digest, true),
            ("containerd.io/gc.ref.contents", &digest, false),
            ("containerd.io/gc.ref.content", "sha256:short", false),
            (
                "containerd.io/gc.ref.image.base",
                "docker.io/library/a:1",
                true,
            ),
            ("containerd.io/gc.ref.snapshot.native/2", "layer", true),
            ("containerd.io/gc.ref.snapshot.native", "", false),
            ("containerd.io/gc.root", "now", false),
        ] {
            assert_eq!(named(key, value).is_some(), wanted, "{key}={value}");
        }
        let snapshot = named("containerd.io/gc.ref.snapshot.native/2", "layer");
        assert!(matches!(snapshot, Some(Resource::Snapshot { driver, .. }) if driver == "native"));
    }
}
