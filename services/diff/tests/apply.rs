//! What a layer's entries become. Runs as root: owners, devices and capabilities are part of the promise.

mod layer;

use diff::{Error, Whiteouts, settle};
use layer::{Layer, OVERLAY, Place};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

#[test]
fn files_keep_owner_mode_and_times() {
    let place = Place::new();
    let mut header = Layer::header("bin/tool", b'0', 3);
    header.set_mode(0o6751);
    header.set_uid(1234);
    header.set_gid(5678);
    let layer = Layer::default()
        .dir("bin/")
        .pax(&[("mtime", b"1700000000.123456789")])
        .push(header, b"abc");
    let applied = place.apply(OVERLAY, layer).unwrap();
    let metadata = place.path("bin/tool").metadata().unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o6751);
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_700_000_000, 123_456_789)
    );
    assert_eq!(place.path("bin").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!((applied.entries, applied.implied), (2, Vec::new()));
}

#[test]
fn the_diff_id_covers_every_byte_even_behind_the_end_of_the_archive() {
    let place = Place::new();
    let mut bytes = Layer::default().file("a", "1").end();
    bytes.extend_from_slice(b"and some more");
    let applied = layer::apply_to(&place.root(), OVERLAY, &bytes).unwrap();
    let hash: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        &bytes,
    ))
    .into();
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(applied.diff_id, format!("sha256:{hex}"));
    assert_eq!(applied.size, bytes.len() as u64);
}

#[test]
fn devices_pipes_and_links_are_made() {
    let place = Place::new();
    let layer = Layer::default()
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 259, 65_537)
        .device("pipe", b'6', 0, 0)
        .file("file", "x")
        .hardlink("again", "./file")
        .symlink("link", "/etc/passwd");
    place.apply(OVERLAY, layer).unwrap();
    let type_of = |name: &str| place.path(name).symlink_metadata().unwrap();
    assert!(type_of("null").file_type().is_char_device());
    assert_eq!(type_of("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(type_of("disk").rdev(), rustix::fs::makedev(259, 65_537));
    assert!(type_of("pipe").file_type().is_fifo());
    assert_eq!(type_of("file").ino(), type_of("again").ino());
    assert_eq!(
        std::fs::read_link(place.path("link")).unwrap().to_str(),
        Some("/etc/passwd")
    );
    assert_eq!(type_of("link").mtime(), 1_000_000_000);
}

#[test]
fn capabilities_and_values_with_newlines_survive() {
    let place = Place::new();
    // version 2, effective, cap_net_raw; the inheritable half happens to be a newline
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let layer = Layer::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"1\n12 path=evil\n"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("path", b"ping"),
        ])
        .file("short", "");
    place.apply(OVERLAY, layer).unwrap();
    let get = |name: &str| xattr::get(place.path("ping"), name).unwrap();
    assert_eq!(get("security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(get("user.note").as_deref(), Some(&b"1\n12 path=evil\n"[..]));
    assert_eq!(get("trusted.overlay.opaque"), None);
    assert!(!place.exists("evil") && !place.exists("short"));
}

#[test]
fn long_names_come_from_gnu_and_from_pax_headers() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let other = format!("{}/{}", "e".repeat(150), "g".repeat(200));
    let target = "t".repeat(300);
    let layer = Layer::default()
        .push(
            Layer::header("././@LongLink", b'L', long.len() as u64 + 1),
            format!("{long}\0").as_bytes(),
        )
        .file("cut", "gnu")
        .pax(&[("path", other.as_bytes()), ("linkpath", target.as_bytes())])
        .symlink("cut", "cut");
    let gnu = layer.0[..512].to_vec();
    assert_eq!(&gnu[257..263], b"ustar\0");
    place.apply(OVERLAY, layer).unwrap();
    assert_eq!(place.read(&long), "gnu");
    assert_eq!(
        std::fs::read_link(place.path(&other)).unwrap().to_str(),
        Some(target.as_str())
    );
}

#[test]
fn sparse_files_of_all_forms_have_their_holes() {
    let place = Place::new();
    let real = "1048580";
    let map = b"2\n0\n3\n1048576\n4\n";
    let mut data = map.to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abcwxyz");
    let old = {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..3].copy_from_slice(b"old");
        header.set_entry_type(tar::EntryType::GNUSparse);
        for (field, value) in [
            (100, "0000644"),
            (108, "0000000"),
            (116, "0000000"),
            (136, "00000000000"),
        ] {
            header.as_mut_bytes()[field..field + value.len()].copy_from_slice(value.as_bytes());
        }
        for (field, value) in [
            (386, 0),
            (398, 3),
            (410, 1_048_576),
            (422, 4),
            (483, 1_048_580),
        ] {
            header.as_mut_bytes()[field..field + 11]
                .copy_from_slice(format!("{value:011o}").as_bytes());
        }
        header.set_size(7);
        header
    };
    let layer = Layer::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ])
        .push(
            Layer::header("GNUSparseFile.0/new", b'0', data.len() as u64),
            &data,
        )
        .pax(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.map", b"0,3,1048576,4"),
        ])
        .file("middle", "abcwxyz")
        .pax(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"1048576"),
            ("GNU.sparse.numbytes", b"4"),
        ])
        .file("first", "abcwxyz")
        .push(old, b"abcwxyz")
        .file("after", "still in step");
    place.apply(OVERLAY, layer).unwrap();
    for name in ["new", "middle", "first", "old"] {
        let bytes = std::fs::read(place.path(name)).unwrap();
        assert_eq!(bytes.len(), 1_048_580, "{name}");
        assert!(
            bytes.starts_with(b"abc\0") && bytes.ends_with(b"\0wxyz"),
            "{name}"
        );
        assert!(
            place.path(name).metadata().unwrap().blocks() < 100,
            "{name} has no hole"
        );
    }
    assert_eq!(place.read("after"), "still in step");
}

#[test]
fn sparse_files_written_by_gnu_tar_are_read() {
    let home = tempfile::tempdir().unwrap();
    let file = File::create(home.path().join("holes")).unwrap();
    for at in 0..200_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", at * 65_536).unwrap();
    }
    let want = std::fs::read(home.path().join("holes")).unwrap();
    for format in [
        "--format=gnu",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
        "--sparse-version=1.0",
    ] {
        let format = [
            if format.starts_with("--f") {
                format
            } else {
                "--format=pax"
            },
            format,
        ];
        let tar = std::process::Command::new("tar")
            .args(format)
            .args(["-S", "-c", "-C"])
            .arg(home.path())
            .arg("holes")
            .output()
            .unwrap();
        assert!(tar.status.success());
        let place = Place::new();
        layer::apply_to(&place.root(), OVERLAY, &tar.stdout).unwrap();
        assert_eq!(
            std::fs::read(place.path("holes")).unwrap(),
            want,
            "{format:?}"
        );
    }
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    for whiteouts in [OVERLAY, Whiteouts::Remove] {
        let place = Place::new();
        let layer = Layer::default()
            .dir("a/")
            .file("a/inside", "x")
            .file("a", "file over directory")
            .file("b", "x")
            .dir("b")
            .symlink("c", "b")
            .dir("c/")
            .file("c/real", "in c")
            .file("d", "1")
            .file("d", "2")
            .dir("keep/")
            .file("keep/me", "1")
            .dir("keep/");
        place.apply(whiteouts, layer).unwrap();
        assert_eq!(place.read("a"), "file over directory");
        assert!(place.path("b").is_dir());
        assert!(place.path("c").symlink_metadata().unwrap().is_dir());
        assert_eq!(
            (place.read("c/real"), place.exists("b/real")),
            ("in c".into(), false)
        );
        assert_eq!(place.read("d"), "2");
        assert_eq!(place.read("keep/me"), "1");
    }
}

#[test]
fn a_parent_that_is_a_link_is_followed_within_the_root() {
    let place = Place::new();
    let layer = Layer::default()
        .symlink("lib", "/usr/lib")
        .file("lib/one", "through a dangling link")
        .symlink("up", "../../../../usr")
        .file("up/lib/two", "through dots")
        .symlink("round", "round")
        .dir("usr/");
    place.apply(OVERLAY, layer.clone()).unwrap();
    assert_eq!(place.read("usr/lib/one"), "through a dangling link");
    assert_eq!(place.read("usr/lib/two"), "through dots");
    let error = place.apply(OVERLAY, layer.file("round/x", "")).unwrap_err();
    assert!(
        error.to_string().starts_with("layer entry round/x: "),
        "{error}"
    );
}

#[test]
fn an_upper_directory_gets_whiteouts_that_overlayfs_reads() {
    let place = Place::new();
    let layer = Layer::default()
        .file("etc/.wh.gone", "")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk/1.2", "")
        .file(".wh.back", "")
        .dir("back/")
        .dir("first/")
        .file(".wh.first", "")
        .file("own", "kept")
        .file(".wh.own", "")
        .file(".wh.deep", "")
        .file("deep/new", "");
    place.apply(OVERLAY, layer).unwrap();
    let gone = place.path("etc/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for name in ["opaque", "back", "first", "deep"] {
        let opaque = xattr::get(place.path(name), "trusted.overlay.opaque").unwrap();
        assert_eq!(opaque.as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert_eq!(place.read("own"), "kept");
    assert!(!place.exists(".wh..wh.plnk") && !place.exists("opaque/.wh..wh..opq"));
}

#[test]
fn a_whole_tree_loses_what_the_layer_deletes_and_nothing_else() {
    let place = Place::new();
    let below = Layer::default()
        .file("etc/gone", "")
        .file("etc/stays", "")
        .file("tree/a/b/c", "")
        .file("opaque/old", "")
        .file("opaque/sub/old", "")
        .file("both/old", "")
        .symlink("link", "etc");
    place.apply(Whiteouts::Remove, below).unwrap();
    let layer = Layer::default()
        .file("etc/.wh.gone", "")
        .file(".wh.tree", "")
        .file(".wh.link", "")
        .file("nowhere/.wh.at-all", "")
        .file("opaque/sub/new", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/late", "")
        .dir("both/")
        .file("both/new", "")
        .file(".wh.both", "");
    place.apply(Whiteouts::Remove, layer).unwrap();
    for name in [
        "etc/gone",
        "tree",
        "link",
        "nowhere",
        "opaque/old",
        "opaque/sub/old",
        "both/old",
    ] {
        assert!(!place.exists(name), "{name} is still there");
    }
    for name in ["etc/stays", "opaque/sub/new", "opaque/late", "both/new"] {
        assert!(place.exists(name), "{name} is gone");
    }
}

#[test]
fn implied_directories_get_the_look_of_the_parent() {
    let (parent, place) = (Place::new(), Place::new());
    let mut header = Layer::header("srv/data", b'5', 0);
    header.set_mode(0o2750);
    header.set_uid(33);
    parent
        .apply(
            OVERLAY,
            Layer::default()
                .dir("srv/")
                .push(header, b"")
                .symlink("lnk", "srv"),
        )
        .unwrap();
    xattr::set(parent.path("srv/data"), "user.note", b"hello").unwrap();
    let layer = Layer::default()
        .file("srv/data/new/file", "x")
        .file("lnk/f", "")
        .file("late/f", "")
        .dir("late/");
    let applied = place.apply(OVERLAY, layer).unwrap();
    assert_eq!(applied.implied, ["lnk", "srv", "srv/data", "srv/data/new"]);
    let (upper, below) = (
        File::open(place.root()).unwrap(),
        File::open(parent.root()).unwrap(),
    );
    for _ in 0..2 {
        settle(upper.as_fd(), below.as_fd(), &applied.implied).unwrap();
    }
    let metadata = place.path("srv/data").metadata().unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.mtime()),
        (0o2750, 33, 1_000_000_000)
    );
    assert_eq!(
        xattr::get(place.path("srv/data"), "user.note")
            .unwrap()
            .as_deref(),
        Some(&b"hello"[..])
    );
    assert_eq!(
        place.path("srv/data/new").metadata().unwrap().mode() & 0o7777,
        0o755
    );
}

#[test]
fn more_implied_directories_than_fit_a_message_are_settled_too() {
    let (parent, place) = (Place::new(), Place::new());
    let (mut below, mut layer) = (Layer::default(), Layer::default());
    for number in 0..1500 {
        let mut header = Layer::header(&format!("directory-number-{number:08}-of-many"), b'5', 0);
        header.set_mode(0o700);
        below = below.push(header, b"");
        layer = layer.file(&format!("directory-number-{number:08}-of-many/x"), "");
    }
    parent.apply(OVERLAY, below).unwrap();
    let applied = place.apply(OVERLAY, layer).unwrap();
    assert!(applied.implied.iter().map(String::len).sum::<usize>() < 60 << 10);
    let (upper, below) = (
        File::open(place.root()).unwrap(),
        File::open(parent.root()).unwrap(),
    );
    settle(upper.as_fd(), below.as_fd(), &applied.implied).unwrap();
    for entry in std::fs::read_dir(place.root()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o700
        );
        assert_eq!(xattr::list(&path).unwrap().count(), 0);
    }
}

#[test]
fn modes_do_not_depend_on_the_umask_of_the_process() {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let place = Place::new();
    let mut header = Layer::header("pipe", b'6', 0);
    header.set_mode(0o666);
    let applied = place.apply(
        OVERLAY,
        Layer::default().push(header, b"").file("implied/f", ""),
    );
    rustix::process::umask(before);
    applied.unwrap();
    assert_eq!(
        place.path("pipe").metadata().unwrap().mode() & 0o7777,
        0o666
    );
    assert_eq!(
        place.path("implied").metadata().unwrap().mode() & 0o7777,
        0o755
    );
}

#[test]
fn truncated_and_garbled_archives_name_what_is_wrong() {
    let whole = Layer::default()
        .file("a", &"x".repeat(5000))
        .file("b", "y")
        .end();
    for cut in [100, 700, 5000] {
        let place = Place::new();
        let error = layer::apply_to(&place.root(), OVERLAY, &whole[..cut]).unwrap_err();
        assert!(matches!(error, Error::Truncated(_)), "{cut}: {error}");
    }
    let mut garbled = whole.clone();
    garbled[5632 + 3] ^= 1;
    let error = layer::apply_to(&Place::new().root(), OVERLAY, &garbled).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer: byte 5632 of its tar: no tar header here: its checksum is wrong"
    );
}
