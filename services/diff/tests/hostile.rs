//! Layers made by an enemy. Whatever they answer, nothing outside the root changes.

mod layer;

use diff::{Compression, Error, Limits, Options, Whiteouts, apply};
use layer::{Layer, OVERLAY, Place};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Applies a layer in both ways; what it answers does not matter, what it does outside the root does.
fn contained(make: impl Fn(&Place) -> Layer) {
    for whiteouts in [OVERLAY, Whiteouts::Remove] {
        let place = Place::new();
        let answer = place.apply(whiteouts, make(&place));
        place.canary_is_untouched();
        if let Err(error) = answer {
            assert!(error.to_string().starts_with("layer"), "{error}");
        }
    }
}

#[test]
fn dots_lead_nowhere() {
    for name in [
        "../canary/new",
        "../../../../canary/secret",
        "a/../../canary/secret",
        "/../canary/secret",
        "..",
    ] {
        contained(|_| Layer::default().file(name, "evil").dir(name));
    }
    let place = Place::new();
    place
        .apply(OVERLAY, Layer::default().file("../../inside", "x"))
        .unwrap();
    assert_eq!(place.read("inside"), "x");
}

#[test]
fn links_out_of_the_root_lead_back_into_it() {
    contained(|place| {
        let canary = place.canary();
        Layer::default()
            .symlink("abs", canary.to_str().unwrap())
            .file("abs/secret", "evil")
            .symlink("rel", "../canary")
            .file("rel/secret", "evil")
            .file("rel/.wh.secret", "")
            .file("rel/.wh..wh..opq", "")
            .symlink("one", "..")
            .symlink("one/two", "..")
            .file("one/two/canary/secret", "evil")
    });
    contained(|place| {
        Layer::default()
            .symlink("x", place.canary().join("secret").to_str().unwrap())
            .file("x", "evil")
    });
    contained(|_| {
        Layer::default()
            .symlink("proc", "/proc/self/root")
            .file("proc/tmp/evil", "x")
    });
}

#[test]
fn hard_links_name_nothing_outside() {
    for target in [
        "../canary/secret",
        "/etc/passwd",
        "../../../../../etc/passwd",
        "",
    ] {
        contained(|_| Layer::default().hardlink("stolen", target));
    }
    contained(|place| {
        Layer::default()
            .symlink("s", place.canary().to_str().unwrap())
            .hardlink("stolen", "s/secret")
            .symlink("file", place.canary().join("secret").to_str().unwrap())
            .hardlink("again", "file")
            .file("again", "evil")
    });
}

#[test]
fn a_directory_that_becomes_a_link_takes_no_file_along() {
    contained(|place| {
        Layer::default()
            .dir("d/")
            .file("d/one", "")
            .symlink("d", place.canary().to_str().unwrap())
            .file("d/secret", "evil")
            .dir("d/")
            .file("d/secret", "ours")
    });
    let place = Place::new();
    let layer = Layer::default()
        .dir("a/")
        .file("a/1", "")
        .dir("b/")
        .symlink("a", "b")
        .file("a/2", "x");
    place.apply(OVERLAY, layer).unwrap();
    assert_eq!(place.read("b/2"), "x");
}

#[test]
fn whiteouts_of_dots_are_refused() {
    for name in [
        ".wh...",
        "a/.wh...",
        ".wh..",
        ".wh.",
        ".wh.x/y",
        "a/../.wh...",
    ] {
        contained(|_| Layer::default().dir("a/").file(name, ""));
        let error = Place::new()
            .apply(Whiteouts::Remove, Layer::default().file(name, ""))
            .unwrap_err();
        assert!(error.to_string().contains("whiteout"), "{error}");
    }
}

#[test]
fn names_too_long_or_with_nul_are_refused() {
    let deep = "d/".repeat(5000) + "f";
    let wide = "w".repeat(300);
    for name in [deep.as_str(), wide.as_str(), "a\0b"] {
        let layer = Layer::default()
            .pax(&[("path", name.as_bytes())])
            .file("x", "");
        let error = Place::new().apply(OVERLAY, layer).unwrap_err();
        assert!(error.to_string().len() < 600, "{error}");
    }
}

#[test]
fn ids_that_name_nobody_are_refused() {
    for (key, value) in [
        ("uid", "-1"),
        ("gid", "4294967295"),
        ("uid", "99999999999999999999"),
        ("uid", "x"),
    ] {
        let layer = Layer::default()
            .pax(&[(key, value.as_bytes())])
            .file("x", "");
        assert!(Place::new().apply(OVERLAY, layer).is_err(), "{key}={value}");
    }
    let mut header = Layer::header("x", b'0', 0);
    header.as_mut_bytes()[108..116].fill(0xff);
    assert!(
        Place::new()
            .apply(OVERLAY, Layer::default().push(header, b""))
            .is_err()
    );
}

#[test]
fn sizes_and_maps_that_lie_are_refused() {
    let mut header = Layer::header("x", b'0', 0);
    header.as_mut_bytes()[124..136].fill(0xff);
    assert!(
        Place::new()
            .apply(OVERLAY, Layer::default().push(header, b""))
            .is_err()
    );
    for map in [
        "0,4,2,4",
        "9223372036854775807,9223372036854775807",
        "0",
        "0,100000",
    ] {
        let records: [(&str, &[u8]); 2] = [
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let answer = Place::new().apply(
            OVERLAY,
            Layer::default().pax(&records).file("x", "12345678"),
        );
        assert!(matches!(answer, Err(Error::Entry { .. })), "{map}");
    }
    let huge = Layer::header("x", b'x', 1 << 40);
    assert!(matches!(
        Place::new().apply(OVERLAY, Layer::default().push(huge, b"")),
        Err(Error::Limit { .. })
    ));
}

#[test]
fn limits_hold() {
    let mut layer = Layer::default();
    for number in 0..100 {
        layer = layer.file(&format!("f{number}"), "x");
    }
    let bytes = layer.end();
    for limits in [
        Limits {
            entries: 99,
            ..Limits::default()
        },
        Limits {
            bytes: 10_000,
            ..Limits::default()
        },
    ] {
        let place = Place::new();
        let root = File::open(place.root()).unwrap();
        let options = Options {
            limits,
            ..Options::new(OVERLAY)
        };
        let answer = apply(&bytes[..], Compression::None, root.as_fd(), &options);
        assert!(matches!(answer, Err(Error::Limit { .. })));
    }
}

#[test]
fn a_root_that_is_no_directory_stays_one() {
    for layer in [
        Layer::default().file("./", "x"),
        Layer::default().symlink("/", "/etc"),
        Layer::default().hardlink(".", "x"),
    ] {
        let place = Place::new();
        assert!(place.apply(OVERLAY, layer).is_err());
        assert!(place.root().is_dir());
    }
}

#[test]
fn nothing_escapes_while_another_process_swaps_directories() {
    let place = Place::new();
    let (real, link, spare) = (place.path("d"), place.path("l"), place.path("s"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(place.canary(), &link).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [
                    (&real, &spare),
                    (&link, &real),
                    (&real, &link),
                    (&spare, &real),
                ] {
                    // the layer may have taken any of them away
                    let _ = std::fs::rename(from, to);
                }
            }
        });
        for _ in 0..200 {
            let mut layer = Layer::default();
            for _ in 0..20 {
                layer = layer
                    .file("d/secret", "evil")
                    .file("d/.wh.secret", "")
                    .dir("x/")
                    .symlink("x", "d")
                    .file("x/secret", "evil");
            }
            let _ = place.apply(Whiteouts::Remove, layer);
        }
        done.store(true, Ordering::Relaxed);
    });
    place.canary_is_untouched();
}

#[test]
fn no_prefix_or_damage_of_an_archive_panics() {
    let whole = Layer::default()
        .dir("d/")
        .pax(&[
            ("path", b"d/p"),
            ("GNU.sparse.size", b"9"),
            ("GNU.sparse.map", b"0,1,8,1"),
        ])
        .file("d/f", "ab")
        .symlink("d/l", "f")
        .hardlink("d/h", "d/p")
        .end();
    for at in (0..whole.len()).step_by(5) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x81;
        let place = Place::new();
        let _ = layer::apply_to(&place.root(), OVERLAY, &damaged);
        if at % 32 == 0 {
            let _ = layer::apply_to(&place.root(), OVERLAY, &whole[..at]);
        }
    }
}
