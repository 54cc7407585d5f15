//! What an image should look like unpacked, worked out from its layers and not by the product; and what a folder looks like.
//!
//! Source: OCI image-spec `layer.md`, "Whiteouts".

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use crate::Outcome;
use crate::image::{Compression, PackedLayer};

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
}

/// All names of a root file system, its own folder left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Node>);

impl Tree {
    /// Puts a layer on top. Errors: it is not a layer, or uses what the samples of this harness do not.
    pub fn apply(&mut self, layer: &PackedLayer) -> Outcome {
        let bytes: &[u8] = &layer.bytes;
        let mut archive = match layer.compression {
            Compression::Plain => Archive::new(Box::new(bytes) as Box<dyn Read>),
            Compression::Gzip => Archive::new(Box::new(GzDecoder::new(bytes)) as Box<dyn Read>),
            Compression::Zstd => {
                Archive::new(Box::new(zstd::Decoder::new(bytes)?) as Box<dyn Read>)
            }
        };
        let mut fresh = BTreeMap::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            match hidden(&path) {
                Some(hidden) => self.0.retain(|path, _| !path.starts_with(&hidden)),
                None => {
                    let node = self.node(&fresh, &mut entry)?;
                    fresh.insert(path, node);
                }
            }
        }
        self.0.extend(fresh);
        Ok(())
    }

    fn node(
        &self,
        fresh: &BTreeMap<PathBuf, Node>,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Outcome<Node> {
        let header = entry.header();
        let (mode, owner) = (header.mode()?, (header.uid()?, header.gid()?));
        let target = entry.link_name()?.unwrap_or_default().into_owned();
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Link(target),
            EntryType::Link => {
                let first = fresh.get(&target).or_else(|| self.0.get(&target));
                let first = first.ok_or_else(|| format!("{}: no such file", target.display()))?;
                return Ok(first.clone());
            }
            EntryType::Regular => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Kind::File(bytes)
            }
            _ => Kind::Other,
        };
        Ok(Node { kind, mode, owner })
    }

    /// Looks at a folder. Errors: something in it cannot be read.
    pub fn of(folder: &Path) -> Outcome<Self> {
        let mut tree = Self::default();
        let mut open = vec![folder.to_owned()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next)? {
                let path = entry?.path();
                let node = look(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                if node.kind == Kind::Folder {
                    open.push(path.clone());
                }
                tree.0.insert(path.strip_prefix(folder)?.to_owned(), node);
            }
        }
        Ok(tree)
    }

    /// Describes the first few names at which `found` is not like this.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let names = self
            .0
            .keys()
            .chain(found.0.keys().filter(|path| !self.0.contains_key(*path)));
        let wrong = names.filter_map(|path| {
            let (expected, found) = (self.0.get(path), found.0.get(path));
            (expected != found).then(|| {
                format!(
                    "{}: {}, expected {}",
                    path.display(),
                    text(found),
                    text(expected)
                )
            })
        });
        wrong.take(5).collect()
    }

    /// Returns how many names there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is no name at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a whiteout removes from the layers below. An opaque folder is not among the samples.
fn hidden(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_prefix(".wh.")?;
    Some(path.with_file_name(name))
}

fn look(path: &Path) -> Outcome<Node> {
    let about = fs::symlink_metadata(path)?;
    let kind = if about.is_dir() {
        Kind::Folder
    } else if about.is_file() {
        Kind::File(fs::read(path)?)
    } else if about.is_symlink() {
        Kind::Link(fs::read_link(path)?)
    } else {
        Kind::Other
    };
    let owner = (about.uid().into(), about.gid().into());
    let mode = about.mode() & 0o7777;
    Ok(Node { kind, mode, owner })
}

fn text(node: Option<&Node>) -> String {
    let Some(node) = node else {
        return "absent".into();
    };
    let kind = match &node.kind {
        Kind::Folder => "folder".into(),
        Kind::File(bytes) => format!("file of {} bytes {}", bytes.len(), sum(bytes)),
        Kind::Link(target) => format!("link to {}", target.display()),
        Kind::Other => "neither file, folder nor link".into(),
    };
    format!("{kind} {:o} {}:{}", node.mode, node.owner.0, node.owner.1)
}

fn sum(bytes: &[u8]) -> String {
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    let digest = crate::image::sha256(bytes);
    format!("({}…, {zeros} zeros)", &digest[..19])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Entry, Layer};

    #[test]
    fn layers_are_stacked_and_whiteouts_remove() -> Outcome {
        let lower = Layer::new()
            .with(&Entry::dir("a"))
            .with(&Entry::file("a/gone", "x"))
            .with(&Entry::file("kept", "x"))
            .with(&Entry::hard_link("twin", "kept"));
        let upper = Layer::new()
            .with(&Entry::whiteout("a"))
            .with(&Entry::file("kept", "y").mode(0o600));
        let mut tree = Tree::default();
        tree.apply(&lower.pack(Compression::Gzip)?)?;
        assert_eq!(tree.len(), 4);
        tree.apply(&upper.pack(Compression::Zstd)?)?;

        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("kept"), "y")?;
        fs::write(folder.path().join("more"), "")?;
        let wrong = tree.differences(&Tree::of(folder.path())?);
        let names: Vec<&str> = wrong
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(
            names,
            ["kept", "twin", "more"],
            "mode, missing, too much: {wrong:?}"
        );
        Ok(())
    }
}
