//! Labels that refer: which other resources a blob keeps, and which keep it.
//!
//! Source: containerd, package `metadata`, gc labels.

use contracts::{
    Digest, ImageName, Labels, Namespace, SnapshotKey,
    collect::{Node, Resource},
};

/// A blob with this label is a root.
pub(crate) const ROOT: &str = "containerd.io/gc.root";

/// What the labels refer to, with the label's key as the reason. A value that is no name of its kind refers to nothing.
pub(crate) fn forward<'a>(
    namespace: &'a Namespace,
    labels: &'a Labels,
) -> impl Iterator<Item = (Node, String)> + 'a {
    under("containerd.io/gc.ref.", namespace, labels)
}

/// What keeps the resource that carries the labels.
pub(crate) fn back<'a>(
    namespace: &'a Namespace,
    labels: &'a Labels,
) -> impl Iterator<Item = (Node, String)> + 'a {
    under("containerd.io/gc.bref.", namespace, labels)
}

fn under<'a>(
    prefix: &'static str,
    namespace: &'a Namespace,
    labels: &'a Labels,
) -> impl Iterator<Item = (Node, String)> + 'a {
    let near = labels.range(prefix.to_owned()..);
    let near = near.take_while(move |(key, _)| key.starts_with(prefix));
    near.filter_map(move |(key, value)| {
        let resource = resource(&key[prefix.len()..], value)?;
        let namespace = namespace.clone();
        let node = Node {
            namespace,
            resource,
        };
        Some((node, format!("label {key}")))
    })
}

/// Reads `content`, `content.anything`, `image…`, `container…`, `snapshot.<driver>` or `snapshot.<driver>/anything`.
fn resource(kind: &str, value: &str) -> Option<Resource> {
    let is = |name: &str| {
        kind.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
    };
    if is("content") {
        return Digest::new(value).ok().map(Resource::Content);
    }
    if is("image") {
        return ImageName::new(value).ok().map(Resource::Image);
    }
    if is("container") {
        return value.parse().ok().map(Resource::Container);
    }
    let driver = kind.strip_prefix("snapshot.")?;
    let driver = driver.split_once('/').map_or(driver, |(driver, _)| driver);
    let key = SnapshotKey::new(value).ok()?;
    (!driver.is_empty()).then(|| Resource::Snapshot {
        driver: driver.to_owned(),
        key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_labels_are_understood() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let labels = Labels::from(
            [
                ("containerd.io/gc.ref.content", digest.as_str()),
                ("containerd.io/gc.ref.content.l.0", &digest),
                ("containerd.io/gc.ref.content.m.1", "no digest"),
                ("containerd.io/gc.ref.contents", &digest),
                (
                    "containerd.io/gc.ref.image.base",
                    "docker.io/library/busybox:1",
                ),
                ("containerd.io/gc.ref.snapshot.overlayfs", "sha256:chain"),
                ("containerd.io/gc.ref.snapshot.native/x", "key"),
                ("containerd.io/gc.ref.snapshot.", "key"),
                ("containerd.io/gc.bref.container", "web"),
                ("containerd.io/gc.root", "1"),
                ("zzz", ""),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let namespace = Namespace::new("default").unwrap();
        let found: Vec<_> = forward(&namespace, &labels)
            .map(|(node, _)| node.resource)
            .collect();
        let content = Resource::Content(Digest::new(digest.clone()).unwrap());
        let snapshot = |driver: &str, key: &str| Resource::Snapshot {
            driver: driver.into(),
            key: SnapshotKey::new(key).unwrap(),
        };
        let image = Resource::Image("docker.io/library/busybox:1".parse().unwrap());
        assert_eq!(
            found,
            [
                content.clone(),
                content,
                image,
                snapshot("native", "key"),
                snapshot("overlayfs", "sha256:chain"),
            ]
        );
        let found: Vec<_> = back(&namespace, &labels).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].0.resource,
            Resource::Container("web".parse().unwrap())
        );
        assert_eq!(found[0].1, "label containerd.io/gc.bref.container");
    }
}
