//! The images of a power cut run: small, with all that can be half there, and with trees known beforehand.

use std::collections::BTreeMap;

use super::tree::Tree;
use crate::Outcome;
use crate::chaos::Random;
use crate::image::sample::{Random as Noise, busybox_layer};
use crate::image::{Compression, Entry, Image, Layer, Packed, PackedLayer};

/// How many files each layer has.
const FILES: usize = 48;
/// Largest small file, in bytes.
const SMALL: u64 = 12 * 1024;

/// An image and what each of its layers looks like unpacked.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `a`, `b`…: the repository it is pushed to.
    pub repository: String,
    /// What is pushed.
    pub packed: Packed,
    /// What it looks like unpacked.
    pub tree: Tree,
}

/// All images of a run.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// One that can run programs, and is only pulled once.
    pub base: Sample,
    /// Two versions of each of the others; the lower layers of neighbours are the same.
    pub samples: Vec<[Sample; 2]>,
    /// What every chain of layers looks like, by the name of its snapshot.
    pub chains: BTreeMap<String, Tree>,
}

impl Catalog {
    /// Makes `count` images by chance. Errors: the machine has no static busybox.
    pub fn new(seed: u64, count: usize) -> Outcome<Self> {
        let mut chance = Random::new(seed, 0);
        let mut chains = BTreeMap::new();
        let busybox = busybox_layer()?.pack(Compression::Gzip)?;
        let base = sample("base", std::slice::from_ref(&busybox), &mut chains)?;
        let mut shared = vec![layer("shared", &mut chance, None)?];
        let mut samples = Vec::new();
        for number in 0..count {
            let repository = format!("{}", (b'a' + number as u8) as char);
            let own = layer(&format!("own-{repository}"), &mut chance, None)?;
            let mut layers = vec![shared[0].clone(), own];
            let versions = [1, 2].map(|version| {
                let name = format!("top-{repository}-{version}");
                let top = layer(&name, &mut chance, Some(&format!("own-{repository}")))?;
                layers.truncate(2);
                layers.push(top);
                sample(&repository, &layers, &mut chains)
            });
            let [one, two] = versions;
            samples.push([one?, two?]);
            if number % 2 == 1 {
                shared = vec![layer(&format!("shared-{number}"), &mut chance, None)?];
            }
        }
        Ok(Self {
            base,
            samples,
            chains,
        })
    }

    /// Finds what an image looks like by the digest of its manifest.
    pub fn by_digest(&self, digest: &str) -> Option<&Sample> {
        let all = self.samples.iter().flatten().chain([&self.base]);
        let mut all = all.filter(|sample| sample.packed.root.digest == digest);
        all.next()
    }
}

fn sample(
    repository: &str,
    layers: &[PackedLayer],
    chains: &mut BTreeMap<String, Tree>,
) -> Outcome<Sample> {
    let mut tree = Tree::default();
    let mut image = Image::new();
    let mut name = String::new();
    for layer in layers {
        tree.apply(layer)?;
        image = image.layer(layer.clone());
        name = image.clone().pack().chain_id();
        chains.insert(name.clone(), tree.clone());
    }
    let packed = image.set("Env", vec!["PATH=/bin"]).pack();
    debug_assert_eq!(packed.chain_id(), name);
    Ok(Sample {
        repository: repository.to_owned(),
        packed,
        tree,
    })
}

/// A layer of folders, small files, one larger file, links, and a whiteout of a name of another layer.
fn layer(top: &str, chance: &mut Random, hides: Option<&str>) -> Outcome<PackedLayer> {
    let mut noise = Noise(chance.number() | 1);
    let mut layer = Layer::new().with(&Entry::dir(top));
    for file in 0..FILES {
        let folder = format!("{top}/{}", file / 8);
        if file % 8 == 0 {
            layer = layer.with(&Entry::dir(&folder).mode(0o750));
        }
        let content = noise.content(chance.below(SMALL) as usize);
        layer = layer.with(&Entry::file(&format!("{folder}/{file}"), content).owner(7, 8));
    }
    let large = noise.content(200_000 + chance.below(200_000) as usize);
    layer = layer
        .with(&Entry::file(&format!("{top}/large"), large).mode(0o755))
        .with(&Entry::symlink(&format!("{top}/link"), "large"))
        .with(&Entry::hard_link(
            &format!("{top}/twin"),
            &format!("{top}/0/0"),
        ));
    if let Some(hidden) = hides {
        layer = layer
            .with(&Entry::whiteout(&format!("{hidden}/large")))
            .with(&Entry::whiteout(&format!("{hidden}/0")));
    }
    let how = [Compression::Gzip, Compression::Zstd, Compression::Plain];
    layer.pack(*chance.one(&how).unwrap_or(&Compression::Gzip))
}
