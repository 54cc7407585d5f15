//! Images made on the spot.

use super::{blob, content::Shelf, digest};
use contracts::{Descriptor, Platform};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use transfer::manifest::{OCI_CONFIG, OCI_MANIFEST, write_index, write_manifest};

pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image whose parts are at hand.
#[derive(Clone, Debug)]
pub struct Image {
    pub target: Descriptor,
    pub parts: Vec<(Descriptor, Vec<u8>)>,
}

/// A tar with one file.
pub fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len()).unwrap_or(0));
    header.set_mode(0o644);
    let written = builder
        .append_data(&mut header, name, bytes)
        .and_then(|()| builder.into_inner());
    written.unwrap_or_default()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.unwrap_or_default()
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

impl Image {
    /// An image with one layer of about `size` bytes for each seed.
    pub fn new(architecture: &str, seeds: &[u64], size: usize) -> Self {
        let mut parts = Vec::new();
        let mut diff_ids = Vec::new();
        for seed in seeds {
            let layer = tar(&format!("file-{seed}"), &noise(*seed, size));
            diff_ids.push(format!("\"{}\"", digest(&layer)));
            let packed = gzip(&layer);
            parts.push((blob(&packed, LAYER), packed));
        }
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":["true"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let layers: Vec<Descriptor> = parts.iter().map(|(blob, _)| blob.clone()).collect();
        let config_blob = blob(config.as_bytes(), OCI_CONFIG);
        let manifest = write_manifest(OCI_MANIFEST, &config_blob, &layers);
        parts.push((config_blob, config.into_bytes()));
        let mut target = blob(&manifest, OCI_MANIFEST);
        target.platform = Some(Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            ..Platform::default()
        });
        parts.push((target.clone(), manifest));
        Self { target, parts }
    }

    /// An index over images.
    pub fn index(images: &[Self]) -> Self {
        let entries: Vec<Descriptor> = images.iter().map(|image| image.target.clone()).collect();
        let bytes = write_index(&entries);
        let target = blob(&bytes, transfer::manifest::OCI_INDEX);
        let mut parts: Vec<_> = images
            .iter()
            .flat_map(|image| image.parts.clone())
            .collect();
        parts.push((target.clone(), bytes));
        Self { target, parts }
    }

    /// Puts all parts into a store.
    pub fn store(&self, shelf: &Shelf) {
        for (_, bytes) in &self.parts {
            shelf.put(bytes);
        }
    }

    pub fn layers(&self) -> Vec<(Descriptor, Vec<u8>)> {
        self.parts
            .iter()
            .filter(|(part, _)| part.media_type == LAYER)
            .cloned()
            .collect()
    }
}
