//! Both drivers keep the contract's promises, and their folders are as the module page says.

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx, Registration};
use contracts::collect::Resource;
use contracts::events::{Append, Events};
use contracts::integrity::{Check, Cure, Damage, Finding, Mend};
use contracts::leases::{Add, Leases};
use contracts::snapshots::{Commit, Mounts, Prepare, Remove, Stat, Update};
use contracts::{Code, Error, LabelPatch, LeaseId, Namespace, Result, SnapshotKey};
use std::cell::RefCell;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the fakes were told.
#[derive(Clone, Default)]
struct Told {
    events: Rc<RefCell<Vec<(String, String)>>>,
    held: Rc<RefCell<Vec<Resource>>>,
}

fn start(dir: &Path, driver: Registration) -> (LocalNode, Told) {
    let told = Told::default();
    let (events, held) = (told.events.clone(), told.held.clone());
    let log = Fake::<Events>::new("log").on(move |_, append: Append| {
        let last = append.first + append.entries.len() as u64 - 1;
        let entries = append.entries.into_iter();
        events
            .borrow_mut()
            .extend(entries.map(|entry| (entry.topic, entry.event)));
        Ok(last)
    });
    let leases = Fake::<Leases>::new("local").on(move |_, add: Add| {
        if add.id.as_str() == "over" {
            return Err(Error::not_found("lease over: not there"));
        }
        held.borrow_mut().extend(add.resources);
        Ok(())
    });
    let node = LocalBus::new().fake(log).fake(leases).plugin(driver);
    (node.start(dir).unwrap(), told)
}

fn folder(dir: &Path, driver: &str, path: &str) -> PathBuf {
    dir.join("root/snapshots").join(driver).join(path)
}

fn key(name: &str) -> SnapshotKey {
    SnapshotKey::new(name).unwrap()
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

async fn prepare(
    bus: &Bus,
    ctx: &Ctx,
    name: &str,
    parent: Option<&str>,
) -> Result<Vec<contracts::Mount>> {
    let (key, parent) = (key(name), parent.map(key));
    let labels = Default::default();
    bus.call(
        ctx,
        Prepare {
            key,
            parent,
            labels,
        },
    )
    .await
}

/// Waits for a state, ten seconds at most.
async fn until(what: &str, state: impl Fn() -> bool) {
    let waiting = async {
        while !state() {
            tokio::task::yield_now().await;
        }
    };
    let bound = std::time::Duration::from_secs(10);
    let came = tokio::time::timeout(bound, waiting).await;
    assert!(came.is_ok(), "{what}: did not happen");
}

#[actix_rt::test]
async fn overlayfs_keeps_every_promise_about_records() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::overlayfs());
    conformance::snapshots::records(&node.bus(), "overlayfs").await;
    conformance::snapshots::collection(&node.bus(), "overlayfs").await;
}

#[actix_rt::test]
async fn native_keeps_every_promise_about_records() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::native());
    conformance::snapshots::records(&node.bus(), "native").await;
    conformance::snapshots::collection(&node.bus(), "native").await;
}

#[actix_rt::test]
async fn overlayfs_keeps_every_promise_about_files() {
    if conformance::snapshots::can_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (node, _) = start(dir.path(), snapshots::overlayfs());
        conformance::snapshots::files(&node.bus(), "overlayfs").await;
    }
}

#[actix_rt::test]
async fn native_keeps_every_promise_about_files() {
    if conformance::snapshots::can_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (node, _) = start(dir.path(), snapshots::native());
        conformance::snapshots::files(&node.bus(), "native").await;
    }
}

#[actix_rt::test]
async fn overlayfs_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _) = start(dir.path(), snapshots::overlayfs());
    let kept = conformance::snapshots::before_a_restart(&node.bus(), "overlayfs").await;
    node.restart("snapshots/overlayfs").await.unwrap();
    conformance::snapshots::after_a_restart(&node.bus(), "overlayfs", kept).await;
}

#[actix_rt::test]
async fn native_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _) = start(dir.path(), snapshots::native());
    let kept = conformance::snapshots::before_a_restart(&node.bus(), "native").await;
    node.restart("snapshots/native").await.unwrap();
    conformance::snapshots::after_a_restart(&node.bus(), "native", kept).await;
}

#[actix_rt::test]
async fn every_change_is_told_to_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (node, told) = start(dir.path(), snapshots::native());
    let bus = node.bus();
    prepare(&bus, &ctx(), "x", None).await.unwrap();
    let commit = Commit {
        name: key("done"),
        key: key("x"),
        parent: None,
        labels: [("a".into(), "b".into())].into(),
    };
    bus.call(&ctx(), commit).await.unwrap();
    let labels = LabelPatch {
        replace: true,
        set: Default::default(),
    };
    let update = Update {
        key: key("done"),
        labels,
    };
    bus.call(&ctx(), update).await.unwrap();
    bus.call(&ctx(), Remove { key: key("done") }).await.unwrap();
    until("four events", || told.events.borrow().len() == 4).await;
    let expected = [
        (
            "/snapshot/prepare",
            r#"{"key":"x","parent":null,"snapshotter":"native","kind":"active","labels":{}}"#,
        ),
        (
            "/snapshot/commit",
            r#"{"key":"x","name":"done","snapshotter":"native","parent":null,"labels":{"a":"b"}}"#,
        ),
        (
            "/snapshot/update",
            r#"{"key":"done","snapshotter":"native","labels":{}}"#,
        ),
        (
            "/snapshot/remove",
            r#"{"key":"done","snapshotter":"native"}"#,
        ),
    ]
    .map(|(topic, event)| (topic.to_owned(), event.to_owned()));
    assert_eq!(*told.events.borrow(), expected);
}

#[actix_rt::test]
async fn a_lease_holds_a_snapshot_before_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    let (node, told) = start(dir.path(), snapshots::native());
    let (bus, lease) = (node.bus(), |id: &str| Some(LeaseId::new(id).unwrap()));
    let held = ctx().with_lease(lease("l"));
    prepare(&bus, &held, "x", None).await.unwrap();
    let commit = Commit {
        name: key("done"),
        key: key("x"),
        parent: None,
        labels: Default::default(),
    };
    bus.call(&held, commit).await.unwrap();
    let driver = || "native".to_owned();
    let expected = ["x", "done"].map(|name| Resource::Snapshot {
        driver: driver(),
        key: key(name),
    });
    assert_eq!(*told.held.borrow(), expected);
    let over = ctx().with_lease(lease("over"));
    let error = prepare(&bus, &over, "y", None).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    let none = bus.call(&ctx(), Stat { key: key("y") }).await;
    assert_eq!(none.unwrap_err().code, Code::NotFound, "nothing was made");
}

#[actix_rt::test]
async fn the_files_of_a_removed_snapshot_go() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::overlayfs());
    let bus = node.bus();
    prepare(&bus, &ctx(), "x", None).await.unwrap();
    let fs = folder(dir.path(), "overlayfs", "snapshots/1/fs");
    let root = std::fs::metadata(&fs).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o755);
    std::fs::create_dir_all(fs.join("sticky/closed/deep")).unwrap();
    std::fs::write(fs.join("sticky/file"), "x").unwrap();
    // Whoever may not give files away has only own ones to remove.
    for (uid, foreign) in [(7, "sticky/closed"), (8, "sticky/file"), (9, "sticky")] {
        let _ = std::os::unix::fs::chown(fs.join(foreign), Some(uid), Some(uid));
    }
    for (mode, path) in [(0o000, "sticky/closed"), (0o1755, "sticky")] {
        std::fs::set_permissions(fs.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    bus.call(&ctx(), Remove { key: key("x") }).await.unwrap();
    assert!(!fs.exists(), "at once from where snapshots are");
    let removing = folder(dir.path(), "overlayfs", "removing");
    until("the files go", || {
        std::fs::read_dir(&removing).unwrap().count() == 0
    })
    .await;
}

#[actix_rt::test]
async fn what_a_crash_left_is_removed_at_the_next_start_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _) = start(dir.path(), snapshots::overlayfs());
    let bus = node.bus();
    prepare(&bus, &ctx(), "kept", None).await.unwrap();
    let at = |path: &str| folder(dir.path(), "overlayfs", path);
    for left in ["snapshots/2/fs", "snapshots/77/fs", "removing/5/fs/deep"] {
        std::fs::create_dir_all(at(left)).unwrap();
    }
    node.restart("snapshots/overlayfs").await.unwrap();
    prepare(&bus, &ctx(), "young", None).await.unwrap();
    let left = ["snapshots/77", "removing/5", "removing/77", "removing/2"];
    until("leftovers go", || {
        left.iter().all(|left| !at(left).exists())
    })
    .await;
    assert!(at("snapshots/1/fs").exists());
    let mounts = bus.call(&ctx(), Mounts { key: key("young") }).await;
    assert!(Path::new(&mounts.unwrap()[0].source).exists());
}

#[actix_rt::test]
async fn a_refused_prepare_leaves_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::native());
    let bus = node.bus();
    prepare(&bus, &ctx(), "x", None).await.unwrap();
    for _ in 0..3 {
        prepare(&bus, &ctx(), "x", None).await.unwrap_err();
    }
    let snapshots = folder(dir.path(), "native", "snapshots");
    assert_eq!(std::fs::read_dir(snapshots).unwrap().count(), 1);
}

#[actix_rt::test]
async fn a_directory_that_a_power_cut_took_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::overlayfs());
    let bus = node.bus();
    let mounts = prepare(&bus, &ctx(), "x", None).await.unwrap();
    std::fs::remove_dir_all(folder(dir.path(), "overlayfs", "snapshots/1")).unwrap();
    let again = bus.call(&ctx(), Mounts { key: key("x") }).await.unwrap();
    assert_eq!(again, mounts);
    assert!(Path::new(&mounts[0].source).exists());
}

#[actix_rt::test]
async fn commits_take_effect_in_the_order_in_which_they_were_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::overlayfs());
    let bus = node.bus();
    let layer = |i: u32| format!("layer{i}");
    for i in 0..40 {
        prepare(&bus, &ctx(), &format!("extract{i}"), None)
            .await
            .unwrap();
    }
    let commits = (0..40).map(|i| {
        let commit = Commit {
            name: key(&layer(i)),
            key: key(&format!("extract{i}")),
            parent: i.checked_sub(1).map(|below| key(&layer(below))),
            labels: contracts::Labels::new(),
        };
        let bus = bus.clone();
        async move { bus.call(&ctx(), commit).await }
    });
    futures_util::future::try_join_all(commits).await.unwrap();
    let top = Stat {
        key: key(&layer(39)),
    };
    let top = bus.call(&ctx(), top).await.unwrap();
    assert_eq!(top.parent, Some(key(&layer(38))));
}

#[actix_rt::test]
async fn many_prepares_at_once_get_directories_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::overlayfs());
    let bus = node.bus();
    let calls = (0..100).map(|i| {
        let bus = bus.clone();
        async move { prepare(&bus, &ctx(), &format!("x{i}"), None).await }
    });
    let mut sources: Vec<String> = futures_util::future::try_join_all(calls)
        .await
        .unwrap()
        .into_iter()
        .map(|mounts| mounts[0].source.clone())
        .collect();
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), 100);
}

async fn check(bus: &Bus) -> Vec<Finding> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let step = bus.call(&ctx(), Check { deep: true, token }).await.unwrap();
        found.extend(step.findings);
        token = step.next;
        if token.is_empty() {
            return found;
        }
    }
}

#[actix_rt::test]
async fn a_check_finds_lost_directories_and_those_of_nobody_and_mends_them() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path(), snapshots::native());
    let bus = node.bus();
    prepare(&bus, &ctx(), "layer", None).await.unwrap();
    let commit = Commit {
        name: key("committed"),
        key: key("layer"),
        parent: None,
        labels: Default::default(),
    };
    bus.call(&ctx(), commit).await.unwrap();
    prepare(&bus, &ctx(), "active", None).await.unwrap();
    assert_eq!(check(&bus).await, []);

    let at = |path: &str| folder(dir.path(), "native", path);
    std::fs::remove_dir_all(at("snapshots/1")).unwrap();
    std::fs::remove_dir_all(at("snapshots/2")).unwrap();
    std::fs::create_dir_all(at("snapshots/77/fs")).unwrap();
    std::fs::create_dir(at("snapshots/junk")).unwrap();
    let found = check(&bus).await;
    let mut said: Vec<_> = found
        .iter()
        .map(|found| (found.subject.as_str(), found.damage, found.cure))
        .collect();
    said.sort_by_key(|(subject, ..)| *subject);
    let expected = [
        ("active", Damage::Missing, Cure::Rebuild),
        ("committed", Damage::Missing, Cure::Fetch),
        ("snapshots/77", Damage::Leftover, Cure::Remove),
        ("snapshots/junk", Damage::Leftover, Cure::Remove),
    ];
    assert_eq!(said, expected);
    for finding in found {
        bus.call(&ctx(), Mend { finding }).await.unwrap();
    }
    assert_eq!(check(&bus).await, []);
    let foreign = Finding {
        damage: Damage::Leftover,
        namespace: None,
        subject: "snapshots/../snapshots.redb".into(),
        what: String::new(),
        cure: Cure::Remove,
    };
    let _ = bus.call(&ctx(), Mend { finding: foreign }).await;
    assert!(at("snapshots.redb").exists());
}
