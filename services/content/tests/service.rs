//! What the content store promises beyond its contract: crashes, disks, and the collector.

use bus::{Bus, Ctx};
use conformance::content::{Desk, named, next, pipe, pour, send, sha256};
use contracts::collect::{
    Begin, Edge, Mark, Node, References, Resource, Roots, Sweep, Swept, Tally,
};
use contracts::content::{Commit, Delete, Open, Update, Write};
use contracts::{Code, Digest, LabelPatch, Labels, LeaseId, Namespace, Result};
use std::path::PathBuf;

use house::House;

mod house;

#[actix_rt::test]
async fn the_contract_is_kept() {
    let house = House::new();
    conformance::content::suite(&house.bus()).await;
    house.told("/content/create").await;
    house.told("/content/delete").await;
}

#[actix_rt::test]
async fn a_write_survives_a_restart_and_goes_on_at_its_offset() {
    let mut house = House::new();
    let desk = house.desk("default");
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let digest = sha256(&bytes);
    let writer = desk.write("a", Some(&digest), 2_000_000).await.unwrap();
    let open = pour(pipe(writer).unwrap(), bytes[..1_500_000].to_vec()).await;
    desk.arrived("a", 1_500_000).await;
    let mut growths = desk.follow("a", &digest).await;
    next(&mut growths).await.unwrap();
    house.restart().await;
    let cut = pour(open.unwrap(), vec![0; 10]).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::BrokenPipe);
    let writer = desk.write("a", Some(&digest), 2_000_000).await.unwrap();
    assert_eq!(writer.offset, 1_500_000);
    send(writer, bytes[1_500_000..].to_vec()).await.unwrap();
    desk.commit("a", Some(&digest)).await.unwrap();
    house.restart().await;
    assert_eq!(desk.read(&digest).await.unwrap(), bytes);
}

#[actix_rt::test]
async fn an_interrupted_write_is_not_committed_unchecked() {
    let mut house = House::new();
    let desk = house.desk("default");
    send(desk.write("a", None, 0).await.unwrap(), b"part".to_vec())
        .await
        .unwrap();
    desk.arrived("a", 4).await;
    house.restart().await;
    let error = desk.commit("a", None).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    let digest = sha256(b"part");
    desk.commit("a", Some(&digest)).await.unwrap();
}

#[actix_rt::test]
async fn a_commit_is_finished_after_a_crash_between_bytes_and_record() {
    let mut house = House::new();
    let desk = house.desk("default");
    send(desk.write("a", None, 0).await.unwrap(), b"bytes".to_vec())
        .await
        .unwrap();
    desk.arrived("a", 5).await;
    let digest = sha256(b"bytes");
    let folder = std::fs::read_dir(house.root().join("ingests")).unwrap();
    let folder = folder.flatten().next().unwrap().path();
    // What is on disk when the process dies after the rename.
    let about = folder.join("about.json");
    let text = std::fs::read_to_string(&about).unwrap();
    let becoming = format!(r#""becoming":"{digest}""#);
    std::fs::write(&about, text.replace(r#""becoming":null"#, &becoming)).unwrap();
    std::fs::rename(folder.join("data"), house.file(&digest)).unwrap();
    house.restart().await;
    let error = desk.stat(&digest).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    let blob = desk.commit("a", None).await.unwrap();
    assert_eq!((blob.digest, blob.size), (digest.clone(), 5));
    assert_eq!(desk.read(&digest).await.unwrap(), b"bytes");
}

#[actix_rt::test]
async fn a_power_cut_behind_a_commit_leaves_no_unfinished_write() {
    let mut house = House::new();
    let desk = house.desk("default");
    send(desk.write("a", None, 0).await.unwrap(), b"bytes".to_vec())
        .await
        .unwrap();
    desk.arrived("a", 5).await;
    let digest = sha256(b"bytes");
    let folder = std::fs::read_dir(house.root().join("ingests")).unwrap();
    let about = folder.flatten().next().unwrap().path().join("about.json");
    let text = std::fs::read_to_string(&about).unwrap();
    desk.commit("a", Some(&digest)).await.unwrap();
    // The record was synced, the removal of the folder was not.
    let becoming = format!(r#""becoming":"{digest}""#);
    std::fs::create_dir(about.parent().unwrap()).unwrap();
    std::fs::write(&about, text.replace(r#""becoming":null"#, &becoming)).unwrap();
    house.restart().await;
    assert_eq!(desk.read(&digest).await.unwrap(), b"bytes");
    assert!(!about.exists());
}

#[actix_rt::test]
async fn bytes_without_a_record_go_at_the_next_start() {
    let mut house = House::new();
    let desk = house.desk("default");
    let kept = desk.push(b"kept").await.digest;
    let orphan = sha256(b"orphan");
    std::fs::write(house.file(&orphan), b"orphan").unwrap();
    house.restart().await;
    for _ in 0..10_000 {
        if !house.file(&orphan).exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(!house.file(&orphan).exists());
    assert_eq!(desk.read(&kept).await.unwrap(), b"kept");
}

#[actix_rt::test]
async fn a_damaged_blob_is_named_and_healed_by_another_commit() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::new();
    let desk = house.desk("default");
    let digest = desk.push(b"precious").await.digest;
    let file = house.file(&digest);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    std::fs::remove_file(&file).unwrap();
    let open = || Open {
        digest: digest.clone(),
    };
    let error = desk.call(open()).await.unwrap_err();
    assert_eq!(error.code, Code::DataLoss, "{error}");
    std::fs::write(&file, b"prec").unwrap();
    let error = desk.call(open()).await.unwrap_err();
    assert_eq!(error.code, Code::DataLoss, "{error}");
    assert!(error.message.contains(digest.as_str()), "{error}");
    send(
        desk.write("a", None, 0).await.unwrap(),
        b"precious".to_vec(),
    )
    .await
    .unwrap();
    desk.commit("a", Some(&digest)).await.unwrap();
    assert_eq!(desk.read(&digest).await.unwrap(), b"precious");
}

#[actix_rt::test]
async fn namespaces_share_bytes_and_the_last_one_takes_them_along() {
    let house = House::new();
    let (one, two) = (house.desk("one"), house.desk("two"));
    let digest = one.push(b"shared").await.digest;
    let known = two.write("a", Some(&digest), 0).await.unwrap_err();
    assert_eq!(known.code, Code::AlreadyExists, "{known}");
    assert_eq!(two.read(&digest).await.unwrap(), b"shared");
    let delete = Delete {
        digest: digest.clone(),
    };
    one.call(delete.clone()).await.unwrap();
    assert_eq!(two.read(&digest).await.unwrap(), b"shared");
    two.call(delete).await.unwrap();
    assert!(!house.file(&digest).exists());
}

#[actix_rt::test]
async fn isolated_namespaces_prove_that_they_have_the_bytes() {
    let house = House::with(r#"{"policy":"isolated"}"#);
    let (one, two) = (house.desk("one"), house.desk("two"));
    let digest = one.push(b"private").await.digest;
    let writer = two.write("a", Some(&digest), 0).await.unwrap();
    assert_eq!(two.stat(&digest).await.unwrap_err().code, Code::NotFound);
    send(writer, b"private".to_vec()).await.unwrap();
    two.commit("a", Some(&digest)).await.unwrap();
    assert_eq!(two.read(&digest).await.unwrap(), b"private");
}

#[actix_rt::test]
async fn a_lease_holds_what_is_written_before_it_exists() {
    let house = House::new();
    let desk = house.desk("default");
    let lease = Some(LeaseId::new("l").unwrap());
    let ctx = desk.ctx().with_lease(lease);
    let write = Write {
        r#ref: named("a"),
        expected: None,
        total: 0,
        restart: false,
    };
    let writer = house.bus().call(&ctx, write).await.unwrap();
    send(writer, b"held".to_vec()).await.unwrap();
    let commit = Commit {
        r#ref: named("a"),
        size: None,
        expected: None,
        labels: Labels::new(),
    };
    house.bus().call(&ctx, commit).await.unwrap();
    let expected = [
        Resource::Ingest(named("a")),
        Resource::Content(sha256(b"held")),
    ];
    assert_eq!(*house.held.borrow(), expected);
}

#[actix_rt::test]
async fn only_so_many_pipes_are_open_at_a_time() {
    let house = House::with(r#"{"writers":2}"#);
    let desk = house.desk("default");
    let one = desk.write("a", None, 0).await.unwrap();
    let _two = desk.write("b", None, 0).await.unwrap();
    let error = desk.write("c", None, 0).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    send(one, b"x".to_vec()).await.unwrap();
    desk.commit("a", None).await.unwrap();
    desk.write("c", None, 0).await.unwrap();
}

/// A small file system of its own, gone with the guard. `None` where the user may not mount.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).ok()?;
        let flags = rustix::mount::MountFlags::empty();
        let size = Some(c"size=24m");
        rustix::mount::mount("tmpfs", &at, "tmpfs", flags, size).ok()?;
        Some(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[actix_rt::test]
async fn a_full_disk_is_told_and_the_write_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_small) = Small::mount(dir.path().join("root")) else {
        return eprintln!("skipped: may not mount");
    };
    let house = House::at(dir, "{}");
    let desk = house.desk("default");
    let filler = house.root().join("filler");
    let disk = rustix::fs::statvfs(house.root()).unwrap();
    // The store itself leaves 8 MiB for the records of all plugins.
    let leave = usize::try_from(disk.f_bavail * disk.f_frsize).unwrap() - (9 << 20);
    std::fs::write(&filler, vec![0; leave]).unwrap();
    let bytes = vec![7; 2_500_000];
    let announced = desk.write("b", None, 100_000_000).await.unwrap_err();
    assert_eq!(announced.code, Code::ResourceExhausted, "{announced}");
    let writer = desk.write("a", None, 0).await.unwrap();
    // The pipe may take the last bytes before it breaks.
    let _ = send(writer, bytes.clone()).await;
    let error = desk.commit("a", None).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.message.contains("ingest a"), "{error}");
    std::fs::remove_file(&filler).unwrap();
    let writer = desk.write("a", None, 0).await.unwrap();
    assert!(writer.offset > 0, "what was stored stays");
    let rest = bytes[usize::try_from(writer.offset).unwrap()..].to_vec();
    send(writer, rest).await.unwrap();
    let blob = desk.commit("a", None).await.unwrap();
    assert_eq!(blob.digest, sha256(&bytes));
}

/// The collector, as far as this store sees it.
struct Collector {
    bus: Bus,
    generation: u64,
}

impl Collector {
    async fn begin(house: &House, generation: u64) -> Self {
        let bus = house.bus();
        bus.call(&Ctx::new(None), Begin { generation })
            .await
            .unwrap();
        Self { bus, generation }
    }

    async fn roots(&self) -> Vec<Edge> {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let generation = self.generation;
            let page = Roots { generation, token };
            let page = self.bus.call(&Ctx::new(None), page).await.unwrap();
            found.extend(page.items);
            token = page.next;
            if token.is_empty() {
                return found;
            }
        }
    }

    async fn references(&self, nodes: Vec<Node>) -> Vec<Edge> {
        let generation = self.generation;
        let ask = References { generation, nodes };
        self.bus.call(&Ctx::new(None), ask).await.unwrap()
    }

    async fn mark(&self, nodes: Vec<Node>) {
        let generation = self.generation;
        let mark = Mark { generation, nodes };
        self.bus.call(&Ctx::new(None), mark).await.unwrap();
    }

    async fn step(&self, dry_run: bool, token: &str) -> Result<Swept> {
        let sweep = Sweep {
            generation: self.generation,
            dry_run,
            token: token.into(),
        };
        self.bus.call(&Ctx::new(None), sweep).await
    }

    async fn sweep(&self) -> (Vec<Resource>, Vec<Edge>) {
        let (mut removed, mut late) = (Vec::new(), Vec::new());
        loop {
            let swept = self.step(false, "").await.unwrap();
            removed.extend(swept.removed.into_iter().map(|one| one.node.resource));
            late.extend(swept.late);
            if swept.done {
                return (removed, late);
            }
        }
    }
}

fn node(digest: &Digest) -> Node {
    Node {
        namespace: Namespace::new("default").unwrap(),
        resource: Resource::Content(digest.clone()),
    }
}

async fn label(desk: &Desk, digest: &Digest, key: &str, value: &str) {
    let update = Update {
        digest: digest.clone(),
        labels: LabelPatch {
            replace: false,
            set: [(key.to_owned(), Some(value.to_owned()))].into(),
        },
    };
    desk.call(update).await.unwrap();
}

#[actix_rt::test]
async fn a_sweep_takes_what_has_neither_mark_nor_stamp() {
    let house = House::new();
    let desk = house.desk("default");
    let mut blobs = Vec::new();
    for many in 0..6u32 {
        let bytes: Vec<_> = (0..100)
            .map(|one| (many * 100 + one).to_le_bytes())
            .collect();
        let pushed = futures_util::future::join_all(bytes.iter().map(|bytes| desk.push(bytes)));
        blobs.extend(pushed.await.into_iter().map(|blob| blob.digest));
    }
    let (marked, used, rest) = (&blobs[0], &blobs[1], &blobs[2..]);
    let collector = Collector::begin(&house, 1).await;
    collector.mark(vec![node(marked)]).await;
    desk.stat(used).await.unwrap();
    let fresh = desk.push(b"fresh").await.digest;

    let (mut listed, mut token) = (0, String::new());
    loop {
        let page = collector.step(true, &token).await.unwrap();
        listed += page.removed.len();
        token = page.next;
        if page.done {
            break;
        }
    }
    assert_eq!(listed, rest.len(), "a dry run lists");
    let (mut removed, _) = collector.sweep().await;
    let mut expected: Vec<_> = rest.iter().cloned().map(Resource::Content).collect();
    removed.sort();
    expected.sort();
    assert!(removed == expected, "{} removed", removed.len());
    assert!(rest.iter().all(|digest| !house.file(digest).exists()));
    for kept in [marked, used, &fresh] {
        desk.read(kept).await.unwrap();
    }
}

#[actix_rt::test]
async fn what_a_stamped_blob_refers_to_stays_and_other_owners_are_told() {
    let house = House::new();
    let desk = house.desk("default");
    let layer = desk.push(b"layer").await.digest;
    let config = desk.push(b"config").await.digest;
    let manifest = desk.push(b"manifest").await.digest;
    let back = desk.push(b"signature").await.digest;
    label(
        &desk,
        &config,
        "containerd.io/gc.ref.content.0",
        layer.as_str(),
    )
    .await;
    label(
        &desk,
        &back,
        "containerd.io/gc.bref.content",
        layer.as_str(),
    )
    .await;
    let loose = desk.push(b"loose").await.digest;
    let collector = Collector::begin(&house, 7).await;
    label(
        &desk,
        &manifest,
        "containerd.io/gc.ref.content.config",
        config.as_str(),
    )
    .await;
    label(
        &desk,
        &manifest,
        "containerd.io/gc.ref.snapshot.overlayfs",
        "chain",
    )
    .await;
    let (removed, late) = collector.sweep().await;
    assert_eq!(removed, [Resource::Content(loose)]);
    assert_eq!(late.len(), 1, "{late:?}");
    assert!(
        matches!(&late[0].to.resource, Resource::Snapshot { driver, .. } if driver == "overlayfs")
    );
    for kept in [&layer, &config, &manifest, &back] {
        desk.read(kept).await.unwrap();
    }
}

#[actix_rt::test]
async fn roots_and_references_are_told() {
    let house = House::new();
    let desk = house.desk("default");
    let child = desk.push(b"child").await.digest;
    let parent = desk.push(b"parent").await.digest;
    let signature = desk.push(b"signature").await.digest;
    label(&desk, &parent, "containerd.io/gc.root", "now").await;
    label(
        &desk,
        &parent,
        "containerd.io/gc.ref.content",
        child.as_str(),
    )
    .await;
    label(&desk, &signature, "containerd.io/gc.bref.image", "busybox").await;
    let awaited = sha256(b"awaited");
    let _writer = desk.write("a", Some(&awaited), 0).await.unwrap();
    let collector = Collector::begin(&house, 2).await;

    let roots: Vec<_> = collector
        .roots()
        .await
        .into_iter()
        .map(|edge| edge.to)
        .collect();
    let ingest = Node {
        namespace: Namespace::new("default").unwrap(),
        resource: Resource::Ingest(named("a")),
    };
    assert_eq!(roots, [ingest.clone(), node(&parent)]);
    let image = Node {
        namespace: Namespace::new("default").unwrap(),
        resource: Resource::Image("busybox".parse().unwrap()),
    };
    let nodes = vec![node(&parent), image, ingest, node(&sha256(b"none"))];
    let kept: Vec<_> = collector
        .references(nodes)
        .await
        .into_iter()
        .map(|edge| edge.to)
        .collect();
    assert_eq!(kept, [node(&child), node(&signature), node(&awaited)]);
}

#[actix_rt::test]
async fn a_closed_generation_is_refused_and_old_ingests_go() {
    let mut house = House::with(r#"{"ingest_hours":0}"#);
    let desk = house.desk("default");
    send(desk.write("old", None, 0).await.unwrap(), b"x".to_vec())
        .await
        .unwrap();
    send(desk.write("held", None, 0).await.unwrap(), b"x".to_vec())
        .await
        .unwrap();
    desk.arrived("old", 1).await;
    desk.arrived("held", 1).await;
    let open = desk.write("open", None, 0).await.unwrap();
    let collector = Collector::begin(&house, 1).await;
    let held = Node {
        namespace: Namespace::new("default").unwrap(),
        resource: Resource::Ingest(named("held")),
    };
    collector.mark(vec![held]).await;
    for _ in 0..10_000 {
        if collector.roots().await.len() == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let (removed, _) = collector.sweep().await;
    assert_eq!(removed, [Resource::Ingest(named("old"))]);
    let tally = house.bus().call(&Ctx::new(None), Tally::default()).await;
    let tally = tally.unwrap();
    assert_eq!(
        (tally.len(), tally[0].what.as_str(), tally[0].count),
        (1, "ingests", 2)
    );
    drop(open);
    house.restart().await;
    let error = collector.step(false, "").await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
}
