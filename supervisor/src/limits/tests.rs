//! Units, sums, where cgroups are, and folders that look like them.

use super::*;
use serde_json::json;

const V1: &str = "31 24 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                  32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
const OWN: &str = "4:memory:/box/one\n2:cpu,cpuacct:/\n0::/\n";

fn place_of(folder: &str) -> Option<Place> {
    Some(Place {
        folder: folder.into(),
        unified: false,
    })
}

#[test]
fn memory_is_read_with_its_unit_and_mistakes_say_the_way_out() {
    for (value, expected) in [
        (json!(null), 0),
        (json!(0), 0),
        (json!(67_108_864), 64 << 20),
        (json!("64MiB"), 64 << 20),
        (json!("2 GiB"), 2 << 30),
        (json!("2048KiB"), 2 << 20),
        (json!("1048576"), 1 << 20),
    ] {
        assert_eq!(memory(&value), Ok(expected), "{value}");
    }
    for wrong in [
        json!("64MB"),
        json!(-1),
        json!("MiB"),
        json!("99999999999GiB"),
        json!([]),
    ] {
        let why = memory(&wrong).unwrap_err();
        assert!(why.contains("\"64MiB\""), "{why}");
    }
    assert!(memory(&json!(64)).unwrap_err().contains("less than 1 MiB"));
    assert_eq!((cpu(0), cpu(10), cpu(2500)), (Ok(0), Ok(10), Ok(2500)));
    assert!(cpu(1).unwrap_err().contains("thousandths"));
}

#[test]
fn plugins_of_one_process_share_the_sum_of_their_limits() {
    let of = |memory, cpu| Limits { memory, cpu };
    assert_eq!(
        together(&[of(5, 100), of(7, 200)]),
        (of(12, 300), String::new())
    );
    assert_eq!(together(&[of(0, 0), of(0, 0)]), (of(0, 0), String::new()));
    let (limits, why) = together(&[of(5, 0), of(7, 200)]);
    assert_eq!(limits, of(12, 0));
    assert!(why.starts_with("cpu is not limited: it shares"), "{why}");
}

#[test]
fn a_cgroup_is_below_that_of_the_supervisor_in_each_hierarchy() {
    let found = Cgroups::of(V1, OWN, Path::new("/run/gantry"));
    assert_eq!(found.memory, place_of("/sys/fs/cgroup/memory/box/one"));
    assert_eq!(found.cpu, place_of("/sys/fs/cgroup/cpu"));
    assert_eq!(found.name, "gantry-plugins-run-gantry");
    let boxed = V1.replace("0:28 / ", "0:28 /box ");
    let found = Cgroups::of(&boxed, OWN, Path::new("/run/gantry"));
    assert_eq!(found.memory, place_of("/sys/fs/cgroup/memory/one"));
    assert_eq!(Cgroups::of("", "", Path::new("/x")).memory, None);
    assert!(name(&Path::new("/").join("x".repeat(4000))).len() < 200);
}

/// A folder that looks like a cgroup of version 2, `controllers` of which may be handed on.
fn unified(controllers: &str) -> (tempfile::TempDir, Cgroups) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cgroup.controllers"), controllers).unwrap();
    let shown = folder.path().display();
    let mounts = format!("33 24 0:29 / {shown} rw - cgroup2 cgroup2 rw\n");
    let found = Cgroups::of(&mounts, "0::/\n", Path::new("/s"));
    (folder, found)
}

#[test]
fn version_2_gets_its_own_files_and_controllers_are_handed_on() {
    let (folder, found) = unified("cpu memory pids\n");
    let id = crate::samples::id("content/local");
    let limits = Limits {
        memory: 64 << 20,
        cpu: 500,
    };
    let cage = found.cage(&id, limits);
    let held = cage.hold(77);
    assert_eq!((held.limits, held.why.as_str()), (limits, ""));
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let own = |name: &str| read(&format!("gantry-plugins-s/content-local/{name}"));
    assert_eq!(own("memory.max"), "67108864");
    assert_eq!(own("memory.swap.max"), "0");
    assert_eq!(own("cpu.max"), "50000 100000");
    assert_eq!(own("cgroup.procs"), "77");
    assert!(read("cgroup.subtree_control").starts_with('+'));
    assert!(read("gantry-plugins-s/cgroup.subtree_control").starts_with('+'));
    let events = folder
        .path()
        .join("gantry-plugins-s/content-local/memory.events");
    fs::write(events, "low 0\noom 4\noom_kill 3\n").unwrap();
    assert_eq!(cage.kills(), 3);
}

#[test]
fn what_cannot_be_limited_is_said_and_the_rest_is_limited() {
    let (_folder, found) = unified("cpu\n");
    let limits = Limits {
        memory: 64 << 20,
        cpu: 500,
    };
    let held = found.cage(&crate::samples::id("a/x"), limits).hold(1);
    assert_eq!((held.limits.memory, held.limits.cpu), (0, 500));
    assert_eq!(
        held.why,
        "memory is not limited: this machine has no such cgroup controller"
    );
}

/// A cgroup that looks as if these were in it, of a machine where 10 is a shell, 12 its daemon and 15 a plugin's child.
fn crowd(pids: &str) -> (tempfile::TempDir, impl Fn(u32) -> Option<u32>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cgroup.procs"), pids).unwrap();
    let parent = |pid| match pid {
        10 => Some(1),
        11 | 12 => Some(10),
        13 | 14 => Some(12),
        15 => Some(13),
        1 => Some(0),
        _ => None,
    };
    (folder, parent)
}

#[test]
fn the_supervisor_and_its_own_step_aside_into_a_leaf() {
    for (pids, last) in [("12\n", "12"), ("12\n13\n15\n", "15"), ("12\n99\n", "12")] {
        let (folder, parent) = crowd(pids);
        step_aside(folder.path(), 12, parent).unwrap();
        let moved = folder.path().join(LEAF).join("cgroup.procs");
        assert_eq!(fs::read_to_string(moved).unwrap(), last, "99 has ended");
    }
}

#[test]
fn a_session_that_shares_the_cgroup_stays_where_it_is_and_the_way_out_is_said() {
    for (pids, strangers) in [("10\n12\n11\n13\n", "10, 11"), ("0\n12\n", "0")] {
        let (folder, parent) = crowd(pids);
        let why = step_aside(folder.path(), 12, parent).unwrap_err();
        assert!(
            why.contains(&format!("not the node's own ({strangers})")),
            "{why}"
        );
        assert!(why.contains("Delegate=yes"), "{why}");
        assert!(why.contains(&folder.path().display().to_string()), "{why}");
        assert!(!folder.path().join(LEAF).exists(), "nothing was moved");
    }
}

#[test]
fn a_parent_is_found_whatever_a_process_calls_itself() {
    assert_eq!(parent_in("7 (a b) S 3) R 12 7 7 0"), Some(12));
    assert_eq!(parent_in("7 (a"), None);
    assert_eq!(
        parent_of(std::process::id()),
        Some(std::os::unix::process::parent_id())
    );
}

#[test]
fn a_supervisor_that_starts_in_the_leaf_does_not_nest_deeper() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cgroup.controllers"), "memory\n").unwrap();
    let shown = folder.path().display();
    let mounts = format!("33 24 0:29 / {shown} rw - cgroup2 cgroup2 rw\n");
    for own in [
        "0::/\n",
        "0::/gantry-others\n",
        "0::/gantry-others/gantry-others\n",
    ] {
        let found = Cgroups::of(&mounts, own, Path::new("/s"));
        let memory = found.memory.unwrap();
        assert_eq!(memory.folder, folder.path(), "{own}");
    }
}
