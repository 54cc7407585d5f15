//! What the mounts show. Needs root.

use super::{Mounted, Subject, labels};
use bus::Bus;
use contracts::Mount;
use contracts::snapshots::REBASE;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

/// Runs every promise about files against one driver. Needs root, see [`super::can_mount`].
pub async fn files(bus: &Bus, driver: &str) {
    let tenant = |name: &str| Subject::new(bus, driver, name);
    a_new_snapshot_is_an_empty_root(&tenant("files-empty")).await;
    a_child_begins_as_its_parent(&tenant("files-child")).await;
    a_child_changes_only_itself(&tenant("files-apart")).await;
    a_view_cannot_be_written_to(&tenant("files-view")).await;
    deletions_hide_what_is_below(&tenant("files-delete")).await;
    a_renamed_file_is_renamed_above_only(&tenant("files-rename")).await;
    attributes_pass_from_layer_to_layer(&tenant("files-attributes")).await;
    the_root_takes_after_its_parent(&tenant("files-root")).await;
    usage_is_what_a_snapshot_holds(&tenant("files-usage")).await;
    layers_are_committed_in_any_order(&tenant("files-rebase")).await;
    a_removed_snapshot_takes_nothing_with_it(&tenant("files-remove")).await;
}

fn open(mounts: &[Mount]) -> Mounted {
    Mounted::new(mounts).unwrap_or_else(|e| panic!("{mounts:?}: {e}"))
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Commits a snapshot after `change` had its files.
async fn layer(t: &Subject, name: &str, parent: Option<&str>, change: impl FnOnce(&Mounted)) {
    let active = format!("making {name}");
    let mounts = t.prepare(&active, parent).await.unwrap();
    change(&open(&mounts));
    t.commit(name, &active).await.unwrap();
}

async fn view(t: &Subject, of: &str) -> Mounted {
    open(&t.view(&format!("view of {of}"), Some(of)).await.unwrap())
}

async fn a_new_snapshot_is_an_empty_root(t: &Subject) {
    let files = open(&t.prepare("x", None).await.unwrap());
    assert!(names(&files.at(".")).is_empty());
    let root = fs::metadata(files.at(".")).unwrap();
    assert_eq!(
        (root.uid(), root.gid(), root.mode() & 0o7777),
        (0, 0, 0o755)
    );
    fs::write(files.at("file"), "x").unwrap();
    drop(files);
    let again = open(&t.mounts("x").await.unwrap());
    assert_eq!(fs::read_to_string(again.at("file")).unwrap(), "x");
    let empty = open(&t.view("v", None).await.unwrap());
    assert!(names(&empty.at(".")).is_empty());
}

async fn a_child_begins_as_its_parent(t: &Subject) {
    layer(t, "1", None, |files| {
        fs::create_dir(files.at("dir")).unwrap();
        fs::write(files.at("dir/one"), "1").unwrap();
        fs::write(files.at("all"), "1").unwrap();
    })
    .await;
    layer(t, "2", Some("1"), |files| {
        fs::write(files.at("dir/two"), "2").unwrap();
        fs::write(files.at("all"), "2").unwrap();
    })
    .await;
    layer(t, "3", Some("2"), |files| {
        fs::write(files.at("dir/three"), "3").unwrap();
        assert_eq!(fs::read_to_string(files.at("all")).unwrap(), "2");
    })
    .await;
    let files = view(t, "3").await;
    assert_eq!(names(&files.at("dir")), ["one", "three", "two"]);
    assert_eq!(fs::read_to_string(files.at("all")).unwrap(), "2");
    let files = view(t, "1").await;
    assert_eq!(names(&files.at("dir")), ["one"]);
    assert_eq!(fs::read_to_string(files.at("all")).unwrap(), "1");
}

async fn a_child_changes_only_itself(t: &Subject) {
    layer(t, "base", None, |files| {
        fs::write(files.at("file"), "base").unwrap()
    })
    .await;
    let a = open(&t.prepare("a", Some("base")).await.unwrap());
    let b = open(&t.prepare("b", Some("base")).await.unwrap());
    fs::write(a.at("file"), "a").unwrap();
    fs::write(a.at("more"), "a").unwrap();
    assert_eq!(fs::read_to_string(b.at("file")).unwrap(), "base");
    assert_eq!(names(&b.at(".")), ["file"]);
    fs::remove_file(b.at("file")).unwrap();
    assert_eq!(fs::read_to_string(a.at("file")).unwrap(), "a");
    let base = view(t, "base").await;
    assert_eq!(fs::read_to_string(base.at("file")).unwrap(), "base");
}

async fn a_view_cannot_be_written_to(t: &Subject) {
    layer(t, "1", None, |files| {
        fs::write(files.at("file"), "1").unwrap()
    })
    .await;
    layer(t, "2", Some("1"), |files| {
        fs::write(files.at("other"), "2").unwrap()
    })
    .await;
    for of in ["1", "2"] {
        let files = view(t, of).await;
        let errors = [
            fs::write(files.at("file"), "x").unwrap_err(),
            fs::write(files.at("new"), "x").unwrap_err(),
            fs::remove_file(files.at("file")).unwrap_err(),
        ];
        assert!(
            errors
                .iter()
                .all(|e| e.kind() == ErrorKind::ReadOnlyFilesystem),
            "{errors:?}"
        );
        assert_eq!(fs::read_to_string(files.at("file")).unwrap(), "1");
    }
}

async fn deletions_hide_what_is_below(t: &Subject) {
    layer(t, "1", None, |files| {
        fs::create_dir_all(files.at("dir/sub")).unwrap();
        fs::create_dir(files.at("opaque")).unwrap();
        for name in ["gone", "replaced", "dir/gone", "dir/sub/deep", "opaque/old"] {
            fs::write(files.at(name), "1").unwrap();
        }
    })
    .await;
    layer(t, "2", Some("1"), |files| {
        fs::remove_file(files.at("gone")).unwrap();
        fs::remove_file(files.at("dir/gone")).unwrap();
        fs::remove_dir_all(files.at("dir/sub")).unwrap();
        fs::remove_file(files.at("replaced")).unwrap();
        fs::create_dir(files.at("replaced")).unwrap();
        fs::remove_dir_all(files.at("opaque")).unwrap();
        fs::create_dir(files.at("opaque")).unwrap();
        fs::write(files.at("opaque/new"), "2").unwrap();
    })
    .await;
    layer(t, "3", Some("2"), |files| {
        fs::write(files.at("gone"), "3").unwrap()
    })
    .await;
    let files = view(t, "2").await;
    assert_eq!(names(&files.at(".")), ["dir", "opaque", "replaced"]);
    assert!(names(&files.at("dir")).is_empty() && names(&files.at("replaced")).is_empty());
    assert_eq!(names(&files.at("opaque")), ["new"]);
    let files = view(t, "3").await;
    assert_eq!(fs::read_to_string(files.at("gone")).unwrap(), "3");
    assert_eq!(names(&files.at("opaque")), ["new"]);
    let files = view(t, "1").await;
    assert_eq!(names(&files.at(".")), ["dir", "gone", "opaque", "replaced"]);
    assert_eq!(names(&files.at("opaque")), ["old"]);
}

async fn a_renamed_file_is_renamed_above_only(t: &Subject) {
    layer(t, "1", None, |files| {
        fs::write(files.at("old"), "1").unwrap();
        fs::write(files.at("target"), "overwritten").unwrap();
    })
    .await;
    layer(t, "2", Some("1"), |files| {
        fs::rename(files.at("old"), files.at("target")).unwrap();
    })
    .await;
    let files = view(t, "2").await;
    assert_eq!(names(&files.at(".")), ["target"]);
    assert_eq!(fs::read_to_string(files.at("target")).unwrap(), "1");
    assert_eq!(names(&view(t, "1").await.at(".")), ["old", "target"]);
}

async fn attributes_pass_from_layer_to_layer(t: &Subject) {
    layer(t, "1", None, |files| {
        fs::write(files.at("su"), "x").unwrap();
        chown(files.at("su"), Some(1000), Some(2000)).unwrap();
        fs::set_permissions(files.at("su"), fs::Permissions::from_mode(0o6751)).unwrap();
        fs::hard_link(files.at("su"), files.at("again")).unwrap();
        symlink("/etc/nowhere", files.at("link")).unwrap();
        fs::create_dir(files.at("tmp")).unwrap();
        fs::set_permissions(files.at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
        let (fifo, device) = (
            nix::sys::stat::SFlag::S_IFIFO,
            nix::sys::stat::SFlag::S_IFCHR,
        );
        nix::sys::stat::mknod(&files.at("pipe"), fifo, mode, 0).unwrap();
        let null = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&files.at("null"), device, mode, null).unwrap();
    })
    .await;
    let files = open(&t.prepare("x", Some("1")).await.unwrap());
    let stat = |name: &str| fs::symlink_metadata(files.at(name)).unwrap();
    let su = stat("su");
    assert_eq!(
        (su.uid(), su.gid(), su.mode() & 0o7777),
        (1000, 2000, 0o6751)
    );
    assert_eq!(
        (su.nlink(), su.ino()),
        (2, stat("again").ino()),
        "hard links stay linked"
    );
    assert_eq!(
        fs::read_link(files.at("link")).unwrap(),
        Path::new("/etc/nowhere")
    );
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert!(stat("pipe").file_type().is_fifo());
    assert!(stat("null").file_type().is_char_device());
    assert_eq!(stat("null").rdev(), nix::sys::stat::makedev(1, 3));
    let below = view(t, "1").await;
    let modified = |files: &Mounted, name: &str| {
        fs::symlink_metadata(files.at(name))
            .unwrap()
            .modified()
            .unwrap()
    };
    for name in ["su", "link", "tmp", "pipe"] {
        assert_eq!(modified(&files, name), modified(&below, name), "{name}");
    }
}

async fn the_root_takes_after_its_parent(t: &Subject) {
    layer(t, "1", None, |files| {
        chown(files.at("."), Some(5), Some(6)).unwrap();
        fs::set_permissions(files.at("."), fs::Permissions::from_mode(0o711)).unwrap();
    })
    .await;
    layer(t, "2", Some("1"), |_| {}).await;
    let files = open(&t.prepare("x", Some("2")).await.unwrap());
    let root = fs::metadata(files.at(".")).unwrap();
    assert_eq!(
        (root.uid(), root.gid(), root.mode() & 0o7777),
        (5, 6, 0o711)
    );
}

async fn usage_is_what_a_snapshot_holds(t: &Subject) {
    let files = open(&t.prepare("x", None).await.unwrap());
    let empty = t.usage("x").await.unwrap();
    assert_eq!(empty.inodes, 1);
    fs::write(files.at("file"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(files.at("file"), files.at("again")).unwrap();
    // Blocks are counted when they are given, which may be as late as here.
    fs::File::open(files.at("file"))
        .unwrap()
        .sync_all()
        .unwrap();
    let full = t.usage("x").await.unwrap();
    assert_eq!(full.inodes, 2, "a hard-linked file counts once");
    assert!(
        (1 << 20..2 << 20).contains(&(full.size - empty.size)),
        "{full:?}"
    );
    drop(files);
    t.commit("done", "x").await.unwrap();
    assert_eq!(t.usage("done").await.unwrap(), full);
    assert_eq!(t.usage("done").await.unwrap(), full);
    assert!(t.usage("none").await.is_err());
}

/// The layer's own directory, where an extractor writes deletions.
fn upper(mounts: &[Mount]) -> Option<&str> {
    let [mount] = mounts else { return None };
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="))
}

async fn layers_are_committed_in_any_order(t: &Subject) {
    if !t.rebases().await {
        return;
    }
    let rebase = || labels(&[(REBASE, "true")]);
    let top = t.prepare_with("top", None, rebase()).await.unwrap();
    let middle = t.prepare_with("middle", None, rebase()).await.unwrap();
    let bottom = t.prepare("bottom", None).await.unwrap();
    fs::write(open(&top).at("three"), "3").unwrap();
    fs::create_dir(open(&middle).at("dir")).unwrap();
    fs::write(open(&middle).at("dir/two"), "2").unwrap();
    let deleted = Path::new(upper(&middle).unwrap()).join("gone");
    let whiteout = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&deleted, whiteout, nix::sys::stat::Mode::empty(), 0).unwrap();
    let files = open(&bottom);
    fs::write(files.at("gone"), "1").unwrap();
    fs::create_dir(files.at("dir")).unwrap();
    fs::write(files.at("dir/one"), "1").unwrap();
    drop(files);
    assert!(
        t.commit_on("C", "top", Some("B")).await.is_err(),
        "its parent is not there yet"
    );
    t.commit("A", "bottom").await.unwrap();
    t.commit_on("B", "middle", Some("A")).await.unwrap();
    t.commit_on("C", "top", Some("B")).await.unwrap();
    let files = view(t, "C").await;
    assert_eq!(names(&files.at(".")), ["dir", "three"]);
    assert_eq!(names(&files.at("dir")), ["one", "two"]);
    let running = open(&t.prepare("running", Some("C")).await.unwrap());
    fs::write(running.at("dir/one"), "changed").unwrap();
    assert_eq!(fs::read_to_string(files.at("dir/one")).unwrap(), "1");
}

async fn a_removed_snapshot_takes_nothing_with_it(t: &Subject) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "x").unwrap();
    layer(t, "base", None, |files| {
        fs::write(files.at("file"), "base").unwrap();
        symlink(outside.path(), files.at("link")).unwrap();
        fs::create_dir_all(files.at("closed/deep")).unwrap();
        fs::set_permissions(files.at("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    })
    .await;
    t.prepare("x", Some("base")).await.unwrap();
    t.remove("x").await.unwrap();
    assert_eq!(
        fs::read_to_string(view(t, "base").await.at("file")).unwrap(),
        "base"
    );
    t.remove("view of base").await.unwrap();
    t.remove("base").await.unwrap();
    layer(t, "base", None, |files| {
        assert!(names(&files.at(".")).is_empty())
    })
    .await;
    assert_eq!(
        fs::read_to_string(outside.path().join("kept")).unwrap(),
        "x"
    );
}
