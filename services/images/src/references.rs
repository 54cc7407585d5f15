//! Labels of an image that keep more than its target. Source: containerd, docs/garbage-collection.md.

use contracts::collect::Resource;
use contracts::{Digest, ImageName, Labels, SnapshotKey};

const PREFIX: &str = "containerd.io/gc.ref.";

/// What the labels keep, with the label that says so. A value that names nothing possible keeps nothing.
pub(crate) fn forward(labels: &Labels) -> impl Iterator<Item = (&str, Resource)> {
    labels.iter().filter_map(|(label, value)| {
        let resource = resource(label.strip_prefix(PREFIX)?, value)?;
        Some((label.as_str(), resource))
    })
}

/// Reads `content`, `image` or `snapshot.<driver>`, each with anything behind a dot or slash.
fn resource(kind: &str, value: &str) -> Option<Resource> {
    let (kind, rest) = kind.split_at(kind.find(['.', '/']).unwrap_or(kind.len()));
    match kind {
        "content" => Digest::new(value).ok().map(Resource::Content),
        "image" => ImageName::new(value).ok().map(Resource::Image),
        "snapshot" => {
            let driver = rest.strip_prefix('.')?.split('/').next()?.to_owned();
            let key = SnapshotKey::new(value).ok()?;
            (!driver.is_empty()).then_some(Resource::Snapshot { driver, key })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_blobs_images_and_snapshots() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let labels: Labels = [
            ("containerd.io/gc.ref.content.sbom", digest.as_str()),
            ("containerd.io/gc.ref.content", "no digest"),
            ("containerd.io/gc.ref.contents", &digest),
            ("containerd.io/gc.ref.image/base", "docker.io/library/a:1"),
            ("containerd.io/gc.ref.snapshot.native/2", "layer"),
            ("containerd.io/gc.ref.snapshot.", "layer"),
            ("other", "x"),
        ]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into();
        let found: Vec<Resource> = forward(&labels).map(|(_, resource)| resource).collect();
        let snapshot = Resource::Snapshot {
            driver: "native".into(),
            key: "layer".parse().unwrap(),
        };
        let wanted = [
            Resource::Content(digest.parse().unwrap()),
            Resource::Image("docker.io/library/a:1".parse().unwrap()),
            snapshot,
        ];
        assert_eq!(found, wanted);
    }
}
