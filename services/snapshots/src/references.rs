//! Labels that keep things from collection.
//!
//! ```text
//! containerd.io/gc.root                                 any value: stays by itself
//! containerd.io/gc.ref.content[.name|/name]             digest
//! containerd.io/gc.ref.snapshot.<driver>[/name]         key or name
//! containerd.io/gc.ref.image[.name|/name]               image name
//! containerd.io/gc.bref.<the same, and container>       stays as long as that does
//! ```
//!
//! Source: containerd, docs/garbage-collection.md. A value that names nothing possible keeps nothing.

use contracts::collect::Resource;
use contracts::{ContainerId, Digest, ImageName, Labels, SnapshotKey};

/// Label of what stays by itself.
pub(crate) const ROOT: &str = "containerd.io/gc.root";
const FORWARD: &str = "containerd.io/gc.ref.";
const BACK: &str = "containerd.io/gc.bref.";

/// What the labels keep, with the label that says so.
pub(crate) fn forward(labels: &Labels) -> impl Iterator<Item = (&str, Resource)> {
    labels.iter().filter_map(|(label, value)| {
        let resource = resource(label.strip_prefix(FORWARD)?, value)?;
        Some((label.as_str(), resource))
    })
}

/// What keeps the snapshot that has these labels.
pub(crate) fn back(labels: &Labels) -> impl Iterator<Item = Resource> {
    labels
        .iter()
        .filter_map(|(label, value)| resource(label.strip_prefix(BACK)?, value))
}

fn resource(kind: &str, value: &str) -> Option<Resource> {
    let (kind, rest) = kind.split_at(kind.find(['.', '/']).unwrap_or(kind.len()));
    match kind {
        "content" => Digest::new(value).ok().map(Resource::Content),
        "image" => ImageName::new(value).ok().map(Resource::Image),
        "container" => ContainerId::new(value).ok().map(Resource::Container),
        "snapshot" => {
            let driver = rest.strip_prefix('.')?.split('/').next()?.to_owned();
            let key = SnapshotKey::new(value).ok()?;
            Some(Resource::Snapshot { driver, key })
        }
        _ => None,
    }
}

/// A resource as one text without control characters: the same for the same resource only.
pub(crate) fn text(resource: &Resource) -> String {
    match resource {
        Resource::Content(digest) => format!("content/{digest}"),
        Resource::Snapshot { driver, key } => format!("snapshot/{driver}/{key}"),
        Resource::Ingest(ingest) => format!("ingest/{ingest}"),
        Resource::Image(name) => format!("image/{name}"),
        Resource::Container(id) => format!("container/{id}"),
        Resource::Lease(id) => format!("lease/{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_containerd_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let labels: Labels = [
            ("containerd.io/gc.ref.content", digest.as_str()),
            ("containerd.io/gc.ref.content.config", digest.as_str()),
            ("containerd.io/gc.ref.content/l.0", "not a digest"),
            ("containerd.io/gc.ref.contents", digest.as_str()),
            ("containerd.io/gc.ref.snapshot.native/x", "base"),
            ("containerd.io/gc.ref.snapshot", "no driver"),
            ("containerd.io/gc.bref.container", "c1"),
            ("other", "x"),
        ]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into();
        let found: Vec<String> = forward(&labels).map(|(_, r)| text(&r)).collect();
        let content = format!("content/{digest}");
        assert_eq!(found, [content.as_str(), &content, "snapshot/native/base"]);
        let found: Vec<String> = back(&labels).map(|r| text(&r)).collect();
        assert_eq!(found, ["container/c1"]);
    }
}
