//! A snapshot's directory is compared with what its layers say, and put right from them. Runs as root.

mod layer;

use contracts::Mount;
use diff::{Bounds, Compression, Error, Proof, Subject, Verified, settle, verify};
use layer::{Layer, OVERLAY, Place};
use std::fs::{self, File, Permissions};
use std::io::{Cursor, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Small numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

fn proof(bytes: &[u8]) -> Proof {
    let hash: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(bytes).into();
    let diff_id: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = bytes.to_vec();
    Proof {
        open: Box::new(move || Ok(Box::new(Cursor::new(bytes.clone())) as Box<dyn Read + Send>)),
        stated: Compression::None,
        diff_id: format!("sha256:{diff_id}"),
    }
}

fn view(dirs: &[PathBuf]) -> Vec<Mount> {
    let text = |dir: &PathBuf| dir.to_string_lossy().into_owned();
    let (fs_type, source, options) = match dirs {
        [only] => ("bind", text(only), vec!["ro".to_owned()]),
        dirs => {
            let lower: Vec<String> = dirs.iter().map(text).collect();
            let options = vec!["index=off".into(), format!("lowerdir={}", lower.join(":"))];
            ("overlay", "overlay".to_owned(), options)
        }
    };
    vec![Mount {
        fs_type: fs_type.into(),
        source,
        target: String::new(),
        options,
    }]
}

fn bounds() -> Bounds {
    Bounds {
        limits: Default::default(),
        watch: Default::default(),
    }
}

fn compare(dirs: &[PathBuf], layers: &[&[u8]], mend: bool) -> Result<Verified, Error> {
    let proofs: Vec<Proof> = layers.iter().map(|bytes| proof(bytes)).collect();
    verify(&Subject::of(&view(dirs)).unwrap(), &proofs, &bounds(), mend)
}

fn wrong(verified: &Verified) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = verified
        .wrong
        .iter()
        .map(|(path, what)| (String::from_utf8_lossy(path).into_owned(), what.clone()))
        .collect();
    all.sort();
    all
}

/// A bottom layer and one on top of it, extracted and settled as a pull does.
struct Image {
    bottom: Place,
    top: Place,
    layers: [Vec<u8>; 2],
}

impl Image {
    fn new(bottom: Layer, top: Layer) -> Self {
        let image = Self {
            bottom: Place::new(),
            top: Place::new(),
            layers: [bottom.clone().end(), top.clone().end()],
        };
        image.bottom.apply(diff::Whiteouts::Remove, bottom).unwrap();
        let applied = image.top.apply(OVERLAY, top).unwrap();
        let (upper, below) = (
            File::open(image.top.root()).unwrap(),
            File::open(image.bottom.root()).unwrap(),
        );
        settle(upper.as_fd(), below.as_fd(), &applied.implied).unwrap();
        image
    }

    fn both(&self) -> Vec<PathBuf> {
        vec![self.top.root(), self.bottom.root()]
    }

    fn top(&self, mend: bool) -> Verified {
        compare(&self.both(), &[&self.layers[1]], mend).unwrap()
    }

    fn bottom(&self, mend: bool) -> Verified {
        compare(&[self.bottom.root()], &[&self.layers[0]], mend).unwrap()
    }

    fn is_right(&self) {
        assert_eq!(wrong(&self.bottom(false)), []);
        assert_eq!(wrong(&self.top(false)), []);
    }
}

fn image() -> Image {
    let bottom = Layer::default()
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0\n")
        .file("etc/shadow", "secret")
        .dir("var/")
        .dir("var/log/")
        .file("var/log/old", "gone")
        .symlink("bin", "usr/bin")
        .file("bin/sh", "#!")
        .hardlink("usr/bin/bash", "bin/sh")
        .device("null", b'3', 1, 3)
        .device("pipe", b'6', 0, 0)
        .pax(&[("SCHILY.xattr.user.colour", b"blue")])
        .file("painted", "x");
    let top = Layer::default()
        .file("etc/hosts", "127.0.0.1 localhost\n")
        .file("etc/.wh.shadow", "")
        .dir("var/log/")
        .file("var/log/.wh..wh..opq", "")
        .file("var/log/new", "here")
        .file("var/lib/.wh.nothing", "")
        .file("deep/er/file", "1")
        .hardlink("deep/link", "deep/er/file")
        .symlink("lib", "/usr/lib");
    Image::new(bottom, top)
}

#[test]
fn what_was_extracted_is_what_the_layers_say() {
    let image = image();
    image.is_right();
    let seen = image.bottom(false);
    assert!(seen.entries >= 12 && seen.bytes == image.layers[0].len() as u64);
}

#[test]
fn every_kind_of_difference_is_named_and_put_right() {
    type Fault = (&'static str, fn(&Path));
    let bottom: [Fault; 18] = [
        ("etc/passwd", |path| flip(path)),
        ("etc/passwd", |path| fs::write(path, b"").unwrap()),
        ("etc/passwd", |path| fs::remove_file(path).unwrap()),
        ("etc/passwd", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap()
        }),
        ("etc/shadow", |path| {
            std::os::unix::fs::chown(path, Some(7), Some(8)).unwrap()
        }),
        ("etc/shadow", |path| {
            let file = File::open(path).unwrap();
            file.set_modified(std::time::SystemTime::now()).unwrap();
        }),
        ("etc/shadow", |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
        ("etc/shadow", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
            fs::write(path.join("inside"), "x").unwrap();
        }),
        ("etc/extra", |path| fs::write(path, "x").unwrap()),
        ("var/log/extra", |path| {
            fs::create_dir_all(path.join("deep")).unwrap()
        }),
        ("bin", |path| {
            fs::remove_file(path).unwrap();
            symlink("/usr/sbin", path).unwrap();
        }),
        ("usr/bin/sh", |path| {
            // Two names of one file become two files.
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }),
        ("null", |path| fs::remove_file(path).unwrap()),
        ("pipe", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "").unwrap();
        }),
        ("painted", |path| {
            xattr::set(path, "user.colour", b"red").unwrap()
        }),
        ("painted", |path| {
            xattr::remove(path, "user.colour").unwrap()
        }),
        ("painted", |path| {
            xattr::set(path, "user.more", b"1").unwrap()
        }),
        ("var", |path| fs::remove_dir_all(path).unwrap()),
    ];
    for (number, (name, fault)) in bottom.iter().enumerate() {
        let image = image();
        fault(&image.bottom.path(name));
        let found = wrong(&image.bottom(false));
        let near = |(path, _): &(String, String)| path.starts_with(name) || path.contains("bash");
        assert!(
            !found.is_empty() && found.iter().any(near),
            "{number} {name}: {found:?}"
        );
        // A directory's own times change with its names, so that it may be named, too.
        let mended = image.bottom(true);
        assert_eq!(mended.mended, mended.wrong.len() as u64, "{number} {name}");
        image.is_right();
        image.bottom.canary_is_untouched();
    }
}

#[test]
fn deletions_and_what_hides_are_part_of_a_layer() {
    type Fault = fn(&Path);
    let faults: [(&str, Fault); 6] = [
        ("etc/shadow", |path| fs::remove_file(path).unwrap()),
        ("etc/shadow", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "back").unwrap();
        }),
        ("var/log", |path| {
            xattr::remove(path, "trusted.overlay.opaque").unwrap()
        }),
        ("etc", |path| {
            xattr::set(path, "trusted.overlay.opaque", b"y").unwrap()
        }),
        ("deep/er", |path| fs::remove_dir_all(path).unwrap()),
        ("etc", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap()
        }),
    ];
    for (name, fault) in faults {
        let image = image();
        fault(&image.top.path(name));
        let found = wrong(&image.top(false));
        assert!(
            found.iter().any(|(path, _)| path == name),
            "{name}: {found:?}"
        );
        let mended = image.top(true);
        assert_eq!(
            mended.mended,
            mended.wrong.len() as u64,
            "{name}: {found:?}"
        );
        image.is_right();
    }
}

#[test]
fn a_layer_that_is_damaged_itself_proves_nothing_and_changes_nothing() {
    let image = image();
    flip(&image.top.path("etc/hosts"));
    let mut damaged = image.layers[1].clone();
    damaged[600] ^= 1;
    let mut proof = proof(&image.layers[1]);
    let bytes = damaged.clone();
    proof.open = Box::new(move || Ok(Box::new(Cursor::new(bytes.clone())) as Box<dyn Read + Send>));
    let subject = Subject::of(&view(&image.both())).unwrap();
    let before = fs::read(image.top.path("etc/hosts")).unwrap();
    let error = verify(&subject, &[proof], &bounds(), true).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error}");
    assert_eq!(fs::read(image.top.path("etc/hosts")).unwrap(), before);
}

#[test]
fn links_in_a_snapshot_lead_nowhere_else() {
    let image = image();
    let secret = image.bottom.canary();
    // A file and a directory are replaced by links out of the snapshot.
    fs::remove_file(image.bottom.path("etc/passwd")).unwrap();
    symlink(secret.join("secret"), image.bottom.path("etc/passwd")).unwrap();
    fs::remove_dir_all(image.bottom.path("var/log")).unwrap();
    symlink(&secret, image.bottom.path("var/log")).unwrap();
    let mended = image.bottom(true);
    assert_eq!(mended.mended, mended.wrong.len() as u64);
    image.is_right();
    image.bottom.canary_is_untouched();
}

#[test]
fn a_copy_of_the_whole_chain_is_compared_with_all_layers() {
    let place = Place::new();
    let first = Layer::default()
        .dir("a/")
        .file("a/kept", "1")
        .file("a/gone", "2")
        .dir("b/")
        .file("b/hidden", "3")
        .file("replaced", "old")
        .hardlink("other", "replaced");
    let second = Layer::default()
        .file("a/.wh.gone", "")
        .dir("b/")
        .file("b/.wh..wh..opq", "")
        .file("b/shown", "4")
        .file("replaced", "new")
        .file("c/d/implied", "5");
    let layers = [first.clone().end(), second.clone().end()];
    place.apply(diff::Whiteouts::Remove, first).unwrap();
    place.apply(diff::Whiteouts::Remove, second).unwrap();
    let all = [layers[0].as_slice(), layers[1].as_slice()];
    assert_eq!(wrong(&compare(&[place.root()], &all, false).unwrap()), []);
    flip(&place.path("other"));
    fs::write(place.path("b/hidden"), "3").unwrap();
    let mended = compare(&[place.root()], &all, true).unwrap();
    assert!(mended.wrong.len() >= 2, "{:?}", wrong(&mended));
    assert_eq!(mended.mended, mended.wrong.len() as u64);
    assert_eq!(place.read("other"), "old");
}

#[test]
fn random_layers_are_right_after_extraction_and_after_random_faults_were_mended() {
    for seed in 1..=40 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let image = Image::new(
            random_layer(&mut random, false),
            random_layer(&mut random, true),
        );
        assert_eq!(wrong(&image.bottom(false)), [], "seed {seed}");
        assert_eq!(wrong(&image.top(false)), [], "seed {seed}");
        for place in [&image.bottom, &image.top] {
            for _ in 0..3 {
                spoil(&mut random, &place.root());
            }
        }
        for mended in [image.bottom(true), image.top(true)] {
            assert_eq!(mended.mended, mended.wrong.len() as u64, "seed {seed}");
        }
        assert_eq!(wrong(&image.bottom(false)), [], "seed {seed}");
        assert_eq!(wrong(&image.top(false)), [], "seed {seed}");
    }
}

const NAMES: [&str; 9] = ["a", "b", "a/c", "a/d", "b/e", "a/c/f", "l/g", "b/h/i", "x"];

fn random_layer(random: &mut Random, deletes: bool) -> Layer {
    let mut layer = Layer::default();
    let mut files: Vec<&str> = Vec::new();
    for _ in 0..12 {
        let name = random.one(&NAMES);
        // A file never stands where a directory is needed: an extraction would refuse that.
        let leaf = ["a/d", "b/e", "a/c/f", "l/g", "b/h/i", "x"].contains(&name);
        layer = match random.below(if deletes { 8 } else { 5 }) {
            0 if !leaf => layer.dir(&format!("{name}/")),
            1 if leaf && files.iter().any(|file| *file != name) => {
                let target = *files.iter().find(|file| **file != name).unwrap();
                files.retain(|file| *file != name);
                layer.hardlink(name, target)
            }
            2 if leaf => {
                files.retain(|file| *file != name);
                layer.symlink(name, "some/where")
            }
            5 | 6 if leaf && !files.contains(&name) => {
                let (parent, last) = name.rsplit_once('/').unwrap_or((".", name));
                layer.file(&format!("{parent}/.wh.{last}"), "")
            }
            7 if !leaf => layer.file(&format!("{name}/.wh..wh..opq"), ""),
            _ if leaf => {
                files.retain(|file| *file != name);
                files.push(name);
                let length = usize::try_from(random.below(5000)).unwrap();
                layer.file(name, &"z".repeat(length))
            }
            _ => layer,
        };
    }
    layer
}

fn spoil(random: &mut Random, root: &Path) {
    let mut all = Vec::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                ahead.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all.sort();
    if all.is_empty() {
        return;
    }
    let victim = &all[usize::try_from(random.below(all.len() as u64)).unwrap()];
    let Ok(metadata) = victim.symlink_metadata() else {
        return;
    };
    match random.below(4) {
        0 if metadata.is_file() && metadata.size() > 0 => flip(victim),
        1 if metadata.is_dir() => fs::remove_dir_all(victim).unwrap(),
        1 => fs::remove_file(victim).unwrap(),
        2 => std::os::unix::fs::lchown(victim, Some(33), Some(34)).unwrap(),
        _ => fs::write(victim.with_file_name("extra"), "x").unwrap(),
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let metadata = path.metadata().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    // As rot does: nothing but the byte changes.
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(metadata.modified().unwrap()).unwrap();
}
