//! The capabilities that the registration asks for are enough, under a uid that owns nothing.

mod layer;

use contracts::Mount;
use diff::{CAPABILITIES, Compression, Watch, compare, lookup};
use layer::{Layer, OVERLAY, Place, apply_to};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Runs `work` in a thread that has become an unprivileged user with just the plugin's capabilities.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let become_nobody = || {
        let keep = CAPABILITIES
            .iter()
            .fold(CapabilitySet::empty(), |set, name| {
                set | CapabilitySet::from_name(name.trim_start_matches("CAP_")).unwrap()
            });
        let (uid, gid) = (
            rustix::process::Uid::from_raw(54_321),
            rustix::process::Gid::from_raw(54_321),
        );
        rustix::thread::set_keep_capabilities(true).unwrap();
        rustix::thread::set_thread_groups(&[gid]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let sets = CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(become_nobody).join().unwrap())
}

fn overlay(upper: &Path, lower: &Path) -> Vec<Mount> {
    let options = vec![
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lower.display()),
    ];
    vec![Mount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    }]
}

#[test]
fn an_unprivileged_uid_with_these_capabilities_can_do_all_of_it() {
    let (lower, upper) = (Place::new(), Place::new());
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut tool = Layer::header("usr/tool", b'0', 0);
    tool.set_mode(0o6755);
    tool.set_uid(77);
    tool.set_gid(88);
    let mut closed = Layer::header("closed", b'5', 0);
    closed.set_mode(0);
    let below = Layer::default()
        .file("etc/gone", "")
        .file("etc/stays", "s")
        .end();
    let layer = Layer::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.x", b"y"),
        ])
        .push(tool, b"")
        .hardlink("usr/again", "usr/tool")
        .push(closed, b"")
        .file("closed/inside", "deep")
        .device("dev/null", b'3', 1, 3)
        .file("etc/.wh.gone", "")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .end();
    unprivileged(|| {
        apply_to(&lower.root(), OVERLAY, &below).unwrap();
        apply_to(&upper.root(), OVERLAY, &layer).unwrap();
        let mounts = overlay(&upper.root(), &lower.root());
        assert_eq!(lookup(&mounts, "/etc/stays", 9).unwrap(), b"s");
        assert_eq!(lookup(&mounts, "/closed/inside", 9).unwrap(), b"deep");
        assert!(lookup(&mounts, "/etc/gone", 9).is_err());
        let mut bytes = Vec::new();
        let watch = Watch::default().into();
        let compared = compare(&[], &mounts, &mut bytes, Compression::None, &watch).unwrap();
        assert_eq!(compared.size, bytes.len() as u64);
    });
    let stat = upper.path("usr/tool").metadata().unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.nlink()),
        (0o6755, 77, 88, 2)
    );
    assert_eq!(
        xattr::get(upper.path("usr/tool"), "security.capability")
            .unwrap()
            .as_deref(),
        Some(&capability[..])
    );
    assert_eq!(
        upper.path("dev/null").metadata().unwrap().rdev(),
        rustix::fs::makedev(1, 3)
    );
}
