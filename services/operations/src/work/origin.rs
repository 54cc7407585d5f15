//! Where a committed snapshot comes from: a label of it names its layer, so that it can be compared when no image names it
//! any more. What the label says is believed only when the snapshot's name follows from it.

use crate::run::{Run, maybe};
use contracts::content;
use contracts::diff::Proof;
use contracts::snapshots::{Info, List, SnapshotKind};
use contracts::transfer::Layer;
use contracts::{Descriptor, Digest, Labels, Paging, Result, SnapshotKey, check_labels};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Label of a committed snapshot: its layer's blob and diff id, as JSON of [`Proof`].
const LAYER: &str = "gantry.io/layer";

/// Labels of the snapshot that is made of a layer. Snapshots of earlier builds have none.
pub(super) fn labels(blob: &Descriptor, diff_id: &Digest) -> Labels {
    let proof = Proof {
        layer: Descriptor {
            annotations: Labels::new(),
            urls: Vec::new(),
            platform: None,
            ..blob.clone()
        },
        diff_id: diff_id.clone(),
    };
    let text = serde_json::to_string(&proof).ok();
    let labels: Labels = text
        .map(|text| (LAYER.to_owned(), text))
        .into_iter()
        .collect();
    match check_labels(&labels) {
        Ok(()) => labels,
        Err(_) => Labels::new(),
    }
}

/// The committed snapshots of a driver, by name.
pub(super) async fn known(run: &Run, driver: &str) -> Result<BTreeMap<SnapshotKey, Info>> {
    let (mut known, mut paging) = (BTreeMap::new(), Paging::default());
    loop {
        let list = List {
            paging: paging.clone(),
        };
        let page = run.call_at_driver(driver, list).await?;
        let committed = page.items.into_iter();
        let committed = committed.filter(|info| info.kind == SnapshotKind::Committed);
        known.extend(committed.map(|info| (info.key.clone(), info)));
        if page.next.is_empty() {
            return Ok(known);
        }
        paging.token = page.next;
    }
}

/// The layers that a snapshot is made of, lowest first; `None` when it or one below has no label, or a wrong one.
pub(super) fn layers(
    known: &BTreeMap<SnapshotKey, Info>,
    name: &SnapshotKey,
) -> Option<Vec<Layer>> {
    let (mut stack, mut next) = (Vec::new(), Some(name));
    while let Some(name) = next {
        let info = known.get(name)?;
        stack.push((name, proof(&info.labels)?));
        next = info.parent.as_ref();
    }
    let mut chain: Option<Digest> = None;
    let layer = |(name, proof): (&SnapshotKey, Proof)| {
        let id = above(chain.take(), &proof.diff_id);
        chain = Some(id.clone());
        (id.as_str() == name.as_str()).then_some(Layer {
            blob: proof.layer,
            diff_id: Some(proof.diff_id),
            chain_id: Some(id),
        })
    };
    stack.into_iter().rev().map(layer).collect()
}

fn proof(labels: &Labels) -> Option<Proof> {
    serde_json::from_str(labels.get(LAYER)?).ok()
}

/// Chain id of a layer on top of another. Source: OCI image-spec, config.md "Layer ChainID".
fn above(below: Option<Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::sha256(&Sha256::digest(format!("{below} {diff_id}")).into()),
    }
}

/// Whether the blobs of layers are here.
pub(super) async fn are_here(run: &Run, layers: &[Layer]) -> Result<bool> {
    for layer in layers {
        let digest = layer.blob.digest.clone();
        if maybe(run.call(content::Stat { digest }).await)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::Timestamp;

    fn digest(letter: &str) -> Digest {
        Digest::new(format!("sha256:{}", letter.repeat(64))).unwrap()
    }

    fn snapshot(name: &Digest, parent: Option<&Digest>, labels: Labels) -> (SnapshotKey, Info) {
        let key = |id: &Digest| SnapshotKey::new(id.as_str()).unwrap();
        let info = Info {
            key: key(name),
            parent: parent.map(key),
            kind: SnapshotKind::Committed,
            labels,
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
        };
        (key(name), info)
    }

    fn blob(letter: &str) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: digest(letter),
            size: 1,
            annotations: [("a".to_owned(), "b".repeat(5000))].into(),
            platform: None,
            urls: Vec::new(),
        }
    }

    #[test]
    fn a_snapshot_tells_its_layers_unless_its_name_does_not_follow_from_them() {
        let top = above(Some(digest("a")), &digest("b"));
        let lower = snapshot(&digest("a"), None, labels(&blob("1"), &digest("a")));
        let upper = |diff: &str| {
            let labels = labels(&blob("2"), &digest(diff));
            snapshot(&top, Some(&digest("a")), labels)
        };
        let name = SnapshotKey::new(top.as_str()).unwrap();
        let known = BTreeMap::from([lower.clone(), upper("b")]);
        let found = layers(&known, &name).unwrap();
        let blobs: Vec<_> = found.iter().map(|layer| &layer.blob.digest).collect();
        assert_eq!(blobs, [&digest("1"), &digest("2")]);
        assert_eq!(found[1].chain_id, Some(top.clone()));

        let lying = BTreeMap::from([lower, upper("c")]);
        assert!(layers(&lying, &name).is_none());
        let bare = BTreeMap::from([snapshot(&top, None, Labels::new())]);
        assert!(layers(&bare, &name).is_none());
    }
}
