//! Layers made from differences, and the promise that applying one gives the newer tree.

mod layer;

use contracts::Mount;
use diff::{Compression, Watch, Whiteouts, compare, lookup, view};
use layer::{Layer, OVERLAY, Place, apply_to};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

fn bind(path: &Path) -> Vec<Mount> {
    let options = vec!["rbind".into(), "rw".into()];
    vec![Mount {
        fs_type: "bind".into(),
        source: path.display().to_string(),
        target: String::new(),
        options,
    }]
}

fn overlay(upper: &Path, lowers: &[&Path]) -> Vec<Mount> {
    let lowers: Vec<_> = lowers
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let options = vec![
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lowers.join(":")),
    ];
    vec![Mount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    }]
}

fn layer_of(lower: &[Mount], upper: &[Mount], compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    compare(
        lower,
        upper,
        &mut bytes,
        compression,
        &Watch::default().into(),
    )
    .unwrap();
    bytes
}

fn names(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

/// Everything a layer can say about a tree; hard links as the first name of their file.
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(dir) = ahead.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                ahead.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let stat = path.symlink_metadata().unwrap();
        let short = path.strip_prefix(root).unwrap().to_owned();
        let first = if stat.is_dir() {
            short.clone()
        } else {
            firsts.entry(stat.ino()).or_insert(short.clone()).clone()
        };
        let bytes = match () {
            () if stat.is_file() => std::fs::read(&path).unwrap(),
            () if stat.is_symlink() => std::fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec(),
            () => Vec::new(),
        };
        let xattrs: Vec<_> = xattr::list(&path)
            .unwrap()
            .map(|name| (name.clone(), xattr::get(&path, name).unwrap()))
            .collect();
        let look = (
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.rdev(),
        );
        seen.insert(short, format!("{first:?} {look:?} {xattrs:?} {bytes:?}"));
    }
    seen
}

#[test]
fn deletions_links_and_attributes_stand_in_the_layer() {
    let (old, new) = (Place::new(), Place::new());
    let base = Layer::default()
        .dir("etc/")
        .file("etc/gone", "")
        .file("etc/same", "same")
        .file("etc/linked", "l");
    old.apply(Whiteouts::Remove, base.clone()).unwrap();
    let more = Layer::default()
        .hardlink("etc/linked-too", "etc/linked")
        .symlink("etc/s", "same")
        .file("a.b", "")
        .dir("a/");
    new.apply(Whiteouts::Remove, base).unwrap();
    new.apply(Whiteouts::Remove, more).unwrap();
    std::fs::remove_file(new.path("etc/gone")).unwrap();
    xattr::set(new.path("a.b"), "user.x", b"\n").unwrap();
    let layer = layer_of(&bind(&old.root()), &bind(&new.root()), Compression::None);
    assert_eq!(
        names(&layer),
        [
            "a/",
            "a.b",
            "etc/",
            "etc/.wh.gone",
            "etc/linked",
            "etc/linked-too",
            "etc/s"
        ]
    );
    apply_to(&old.root(), Whiteouts::Remove, &layer).unwrap();
    assert_eq!(picture(&old.root()), picture(&new.root()));
}

#[test]
fn an_upper_directory_is_the_difference() {
    let (lower, upper, both) = (Place::new(), Place::new(), Place::new());
    lower
        .apply(
            OVERLAY,
            Layer::default()
                .dir("d/")
                .file("d/old", "")
                .file("gone", "")
                .dir("o/")
                .file("o/x", ""),
        )
        .unwrap();
    let change = Layer::default()
        .dir("d/")
        .file("d/new", "n")
        .file(".wh.gone", "")
        .dir("o/")
        .file("o/.wh..wh..opq", "")
        .file("o/y", "");
    let change = change.end();
    apply_to(&upper.root(), OVERLAY, &change).unwrap();
    let mounts = overlay(&upper.root(), &[&lower.root()]);
    let fast = layer_of(&bind(&lower.root()), &mounts, Compression::None);
    assert_eq!(
        names(&fast),
        ["d/", "d/new", ".wh.gone", "o/", "o/.wh..wh..opq", "o/y"]
    );
    // another view of the same tree, so that both are read
    let slow = layer_of(
        &bind(&lower.root()),
        &overlay(&upper.root(), &[&lower.root(), &both.root()]),
        Compression::None,
    );
    assert_eq!(
        names(&slow),
        ["d/", "d/new", ".wh.gone", "o/", "o/.wh.x", "o/y"]
    );
    for layer in [fast, slow] {
        let (want, got) = (Place::new(), Place::new());
        for place in [&want, &got] {
            let base = Layer::default()
                .dir("d/")
                .file("d/old", "")
                .file("gone", "")
                .dir("o/")
                .file("o/x", "");
            place.apply(Whiteouts::Remove, base).unwrap();
        }
        apply_to(&want.root(), Whiteouts::Remove, &change).unwrap();
        apply_to(&got.root(), Whiteouts::Remove, &layer).unwrap();
        assert_eq!(picture(&got.root()), picture(&want.root()));
    }
}

#[test]
fn every_compression_holds_the_same_tar() {
    let place = Place::new();
    place
        .apply(
            OVERLAY,
            Layer::default().file("f", &"text ".repeat(100_000)),
        )
        .unwrap();
    let plain = layer_of(&[], &bind(&place.root()), Compression::None);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = layer_of(&[], &bind(&place.root()), compression);
        assert!(packed.len() < plain.len() / 10);
        assert_eq!(
            packed,
            layer_of(&[], &bind(&place.root()), compression),
            "not the same bytes twice"
        );
        let again = Place::new();
        apply_to(&again.root(), OVERLAY, &packed).unwrap();
        assert_eq!(picture(&again.root()), picture(&place.root()));
    }
}

#[test]
fn a_lookup_sees_what_a_container_would() {
    let (lower, upper) = (Place::new(), Place::new());
    let secret = upper.canary().join("secret");
    lower
        .apply(
            OVERLAY,
            Layer::default()
                .file("etc/passwd", "old")
                .file("etc/group", "group")
                .file("gone", ""),
        )
        .unwrap();
    let layer = Layer::default()
        .file("etc/passwd", "new")
        .symlink("abs", "/etc/group")
        .symlink("out", secret.to_str().unwrap())
        .device("pipe", b'6', 0, 0)
        .file(".wh.gone", "");
    upper.apply(OVERLAY, layer).unwrap();
    let mounts = overlay(&upper.root(), &[&lower.root()]);
    let find = |path: &str| lookup(&mounts, path, 100);
    assert_eq!(find("/etc/passwd").unwrap(), b"new");
    assert_eq!(find("/abs").unwrap(), b"group");
    for path in ["/gone", "/out", "/etc/passwd/x", "/../etc/none"] {
        assert!(
            matches!(find(path), Err(diff::Error::Missing(_))),
            "{path}: {:?}",
            find(path)
        );
    }
    for path in ["/pipe", "/etc"] {
        assert!(matches!(find(path), Err(diff::Error::Refused(_))), "{path}");
    }
    assert!(matches!(
        lookup(&mounts, "/etc/passwd", 2),
        Err(diff::Error::Limit { .. })
    ));
    let listed = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let _view = view(&mounts).unwrap();
    assert_eq!(
        std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        listed
    );
}

#[test]
fn a_hundred_layers_make_one_view() {
    let home = tempfile::tempdir().unwrap();
    let deep = home
        .path()
        .join("a-name-long-enough-to-fill-a-page-when-there-are-many-of-them".repeat(3));
    let dirs: Vec<_> = (0..120)
        .map(|number| deep.join(number.to_string()))
        .collect();
    for (number, dir) in dirs.iter().enumerate() {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(format!("f{number}")), "x").unwrap();
    }
    let lowers: Vec<_> = dirs[1..].iter().map(PathBuf::as_path).collect();
    let mounts = overlay(&dirs[0], &lowers);
    assert_eq!(lookup(&mounts, "/f119", 9).unwrap(), b"x");
}

#[test]
fn a_layer_goes_into_the_upper_directory_of_its_mounts() {
    let (place, empty) = (Place::new(), Place::new());
    let target = diff::target(&overlay(&place.root(), &[&empty.root()])).unwrap();
    let bytes = Layer::default().file(".wh.x", "").end();
    let root = target.open().unwrap();
    let options = diff::Options::new(target.whiteouts);
    diff::apply(&bytes[..], Compression::None, root.as_fd(), &options).unwrap();
    assert!(place.exists("x"));
    diff::sync(&root).unwrap();
}

/// One step in making a tree. Names come from so few that steps meet.
#[derive(Clone, Debug)]
enum Step {
    File(String, u8, u16),
    Dir(String, u16),
    Symlink(String, String),
    Hardlink(String, String),
    Fifo(String),
    Xattr(String, u8),
    Remove(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d.e", "é"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), any::<u8>(), 0..0o7777_u16).prop_map(|(path, data, mode)| Step::File(path, data, mode)),
        3 => (path(), 0..0o7777_u16).prop_map(|(path, mode)| Step::Dir(path, mode)),
        2 => (path(), path()).prop_map(|(path, target)| Step::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Step::Hardlink(path, target)),
        1 => path().prop_map(Step::Fifo),
        1 => (path(), any::<u8>()).prop_map(|(path, value)| Step::Xattr(path, value)),
        2 => path().prop_map(Step::Remove),
    ]
}

/// Steps that cannot be taken are not: only the trees count.
fn take(root: &Path, step: &Step) {
    let at = |path: &String| root.join(path);
    let plain = |path: &String| {
        at(path)
            .ancestors()
            .skip(1)
            .take_while(|dir| *dir != root)
            .all(|dir| dir.symlink_metadata().is_ok_and(|stat| stat.is_dir()))
    };
    let mode = |path: &Path, mode: u16| {
        drop(std::fs::set_permissions(
            path,
            std::os::unix::fs::PermissionsExt::from_mode(mode.into()),
        ))
    };
    match step {
        Step::File(path, data, bits)
            if plain(path)
                && !at(path).is_symlink()
                && (!at(path).exists() || at(path).is_file()) =>
        {
            std::fs::write(at(path), vec![*data; usize::from(*data)]).unwrap();
            mode(&at(path), *bits);
        }
        Step::Dir(path, bits) if plain(path) && std::fs::create_dir(at(path)).is_ok() => {
            mode(&at(path), *bits)
        }
        Step::Symlink(path, target) if plain(path) => {
            drop(std::os::unix::fs::symlink(target, at(path)))
        }
        Step::Hardlink(path, target) if plain(path) && plain(target) => {
            drop(std::fs::hard_link(at(target), at(path)))
        }
        Step::Fifo(path) if plain(path) => {
            let _ = rustix::fs::mknodat(
                rustix::fs::CWD,
                at(path),
                rustix::fs::FileType::Fifo,
                0o640.into(),
                0,
            );
        }
        Step::Xattr(path, value) if plain(path) && !at(path).is_symlink() => {
            drop(xattr::set(at(path), "user.x", &[*value, b'\n']))
        }
        Step::Remove(path) if plain(path) => match at(path).symlink_metadata() {
            Ok(stat) if stat.is_dir() => std::fs::remove_dir_all(at(path)).unwrap(),
            Ok(_) => std::fs::remove_file(at(path)).unwrap(),
            Err(_) => {}
        },
        _ => {}
    }
}

/// Two file systems' worth of the same tree, in the way a layer carries it.
fn copy(from: &Path, to: &Path) {
    apply_to(
        to,
        Whiteouts::Remove,
        &layer_of(&[], &bind(from), Compression::None),
    )
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_a_difference_gives_the_newer_tree(
        old in prop::collection::vec(step(), 0..40),
        new in prop::collection::vec(step(), 0..25),
    ) {
        let (a, b, merged, upper) = (Place::new(), Place::new(), Place::new(), Place::new());
        old.iter().for_each(|step| take(&a.root(), step));
        copy(&a.root(), &b.root());
        copy(&a.root(), &merged.root());
        prop_assert_eq!(picture(&a.root()), picture(&b.root()));
        new.iter().for_each(|step| take(&b.root(), step));

        let layer = layer_of(&bind(&a.root()), &bind(&b.root()), Compression::None);
        prop_assert_eq!(&layer, &layer_of(&bind(&a.root()), &bind(&b.root()), Compression::None));
        apply_to(&merged.root(), Whiteouts::Remove, &layer).unwrap();
        prop_assert_eq!(picture(&merged.root()), picture(&b.root()));

        // the same through an overlay: as a layer on top of the old tree, it shows the new one
        let applied = apply_to(&upper.root(), OVERLAY, &layer).unwrap();
        prop_assert!(applied.implied.is_empty(), "a parent without an entry: {:?}", applied.implied);
        let mounts = overlay(&upper.root(), &[&a.root()]);
        let again = layer_of(&bind(&b.root()), &mounts, Compression::None);
        prop_assert_eq!(names(&again), Vec::<String>::new());
        let fast = layer_of(&bind(&a.root()), &mounts, Compression::None);
        let copy_of_a = Place::new();
        copy(&a.root(), &copy_of_a.root());
        apply_to(&copy_of_a.root(), Whiteouts::Remove, &fast).unwrap();
        prop_assert_eq!(picture(&copy_of_a.root()), picture(&b.root()));
    }
}
