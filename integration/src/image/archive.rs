//! Writes an image as one tar file, as an OCI layout or as `docker save` does.
//!
//! Source: OCI image-spec 1.1, `image-layout.md`; moby, `image/spec/v1.2.md` "Combined Image JSON + Filesystem".

use serde_json::{Value, json};

use super::{Entry, Packed};
use crate::Outcome;

impl Packed {
    /// Returns a tar with an OCI layout whose index names the root `name`.
    pub fn oci_layout(&self, name: &str) -> Vec<u8> {
        let mut root = self.root.json();
        root["annotations"] = json!({
            "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(':').next(),
        });
        let index = json!({"schemaVersion": 2, "manifests": [root]});
        let documents = self
            .manifests
            .iter()
            .map(|(descriptor, bytes)| (&descriptor.digest, bytes));
        let blobs = self.blobs.iter().chain(documents);
        let mut entries = vec![Entry::file(
            "oci-layout",
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )];
        entries.extend(["blobs", "blobs/sha256"].map(Entry::dir));
        entries.extend(blobs.map(|(digest, bytes)| {
            Entry::file(
                &format!("blobs/{}", digest.replace(':', "/")),
                bytes.to_vec(),
            )
        }));
        entries.push(Entry::file("index.json", index.to_string()));
        archive(&entries)
    }

    /// Returns a tar as `docker save` writes it, with one image and one name.
    ///
    /// Errors: this is an index; the format knows only single images.
    pub fn docker_archive(&self, name: &str) -> Outcome<Vec<u8>> {
        let (_, manifest) = self
            .manifests
            .first()
            .filter(|_| self.manifests.len() == 1)
            .ok_or("not a single image")?;
        let manifest: Value = serde_json::from_slice(manifest)?;
        let config = hex(&manifest["config"]);
        let layers: Vec<&str> = manifest["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(hex)
            .collect();
        let layer_files: Vec<String> = layers
            .iter()
            .map(|layer| format!("{layer}/layer.tar"))
            .collect();
        let list = json!([{"Config": format!("{config}.json"), "RepoTags": [name], "Layers": layer_files}]);
        let blob = |hex: &str| {
            self.blobs
                .get(&format!("sha256:{hex}"))
                .map(|bytes| bytes.to_vec())
                .unwrap_or_default()
        };
        let mut entries = vec![Entry::file(&format!("{config}.json"), blob(config))];
        entries.extend(
            layers
                .iter()
                .map(|layer| Entry::file(&format!("{layer}/layer.tar"), blob(layer))),
        );
        entries.push(Entry::file("manifest.json", list.to_string()));
        Ok(archive(&entries))
    }
}

fn hex(descriptor: &Value) -> &str {
    descriptor["digest"]
        .as_str()
        .and_then(|digest| digest.strip_prefix("sha256:"))
        .unwrap_or_default()
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}
