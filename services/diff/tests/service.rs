//! The plugin over the bus, with a content store that is a fake.

mod layer;

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::content::{self, Blob, Content, Opened, Writer};
use contracts::diff::{Applied, Apply, Compare, Lookup, Settle, Sync};
use contracts::{Code, Descriptor, Digest, Error, Fd, Mount, Namespace, Ref, Result, Timestamp};
use futures_util::StreamExt;
use layer::{Layer, Place};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    contracts::Digest::sha256(&sha2::Sha256::digest(bytes).into())
}

fn blob(digest: Digest, size: u64, labels: contracts::Labels) -> Blob {
    let now = Timestamp::now();
    Blob {
        digest,
        size,
        labels,
        created_at: now,
        updated_at: now,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn fd(path: &Path) -> Fd {
    OwnedFd::from(File::open(path).unwrap()).into()
}

/// One file stands for every blob; what is written through a pipe comes back at commit.
fn content(path: PathBuf) -> Fake<Content> {
    let written: Rc<RefCell<Option<JoinHandle<Vec<u8>>>>> = Rc::default();
    let reading = written.clone();
    let opened = path.clone();
    Fake::<Content>::new("local")
        .on(move |_, open: content::Open| {
            let size = opened.metadata().unwrap().len();
            let blob = blob(open.digest, size, Default::default());
            let fd = fd(&opened);
            Ok(Opened { blob, fd })
        })
        .stream(move |_, follow: content::Follow| {
            let grown = |fd, offset, complete| content::Growth {
                fd,
                offset,
                complete,
            };
            let size = path.metadata().unwrap().len();
            match follow.r#ref.as_str() {
                "slow" => Ok(vec![
                    grown(Some(fd(&path)), 0, false),
                    grown(None, size / 3, false),
                    grown(None, size / 2, false),
                    grown(None, size, true),
                ]),
                "restarted" => Ok(vec![
                    grown(Some(fd(&path)), size / 2, false),
                    grown(Some(fd(Path::new("/dev/null"))), 0, false),
                ]),
                other => Err(Error::aborted(format!("ingest {other}: dropped"))),
            }
        })
        .on(move |_, _: content::Write| {
            let (reader, writer) = std::io::pipe().unwrap();
            let read = std::thread::spawn(move || {
                let mut all = Vec::new();
                let mut reader = reader;
                reader.read_to_end(&mut all).unwrap();
                all
            });
            reading.replace(Some(read));
            Ok(Writer {
                offset: 0,
                pipe: OwnedFd::from(writer).into(),
            })
        })
        .on(move |_, commit: content::Commit| {
            let bytes = written.take().unwrap().join().unwrap();
            assert!(commit.r#ref.as_str().starts_with("diff-"));
            Ok(blob(digest(&bytes), bytes.len() as u64, commit.labels))
        })
}

struct Home {
    folder: tempfile::TempDir,
    node: LocalNode,
}

fn home(bytes: &[u8]) -> Home {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::write(&path, bytes).unwrap();
    let local = LocalBus::new().fake(content(path)).plugin(diff::plugin());
    let node = local.start(folder.path()).unwrap();
    Home { folder, node }
}

fn bus(home: &Home) -> Bus {
    home.node.bus()
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

fn mounts(place: &Place, options: &[&str]) -> Vec<Mount> {
    vec![Mount {
        fs_type: "bind".into(),
        source: place.root().display().to_string(),
        target: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    }]
}

fn apply(place: &Place, bytes: &[u8], media_type: &str, r#ref: Option<&str>) -> Apply {
    Apply {
        layer: Descriptor {
            media_type: media_type.into(),
            digest: digest(bytes),
            size: bytes.len() as u64,
            annotations: Default::default(),
            platform: None,
            urls: Vec::new(),
        },
        r#ref: r#ref.map(|name| Ref::new(name).unwrap()),
        mounts: mounts(place, &["rw"]),
        diff_id: None,
    }
}

async fn applied(home: &Home, request: Apply) -> Result<Applied> {
    let mut items = bus(home).open(&ctx(), request).await?;
    while let Some(item) = items.next().await {
        if let Some(applied) = item?.applied {
            return Ok(applied);
        }
    }
    Err(Error::internal("ended without a result"))
}

#[actix::test]
async fn a_committed_layer_is_applied_and_its_diff_id_told() {
    let tar = Layer::default().file("etc/hostname", "here").end();
    let layer = gzip(&tar);
    let (home, place) = (home(&layer), Place::new());
    let done = applied(&home, apply(&place, &layer, GZIP, None))
        .await
        .unwrap();
    assert_eq!(done.diff_id, digest(&tar));
    assert_eq!(done.size, tar.len() as u64);
    assert_eq!(place.read("etc/hostname"), "here");
    let sync = Sync {
        mounts: mounts(&place, &[]),
    };
    bus(&home).call(&ctx(), sync).await.unwrap();
}

#[actix::test]
async fn a_layer_is_applied_while_it_arrives() {
    let noise: String = (0..300_000_u32)
        .map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)))
        .collect();
    let tar = Layer::default().file("big", &noise).end();
    let layer = gzip(&tar);
    let (home, place) = (home(&layer), Place::new());
    let done = applied(&home, apply(&place, &layer, GZIP, Some("slow")))
        .await
        .unwrap();
    assert_eq!(done.diff_id, digest(&tar));
    assert_eq!(place.read("big"), noise);
}

#[actix::test]
async fn what_goes_wrong_has_its_class_and_names_the_layer() {
    let tar = Layer::default().file("f", "x").end();
    let layer = gzip(&tar);
    let (home, place) = (home(&layer), Place::new());
    let wrong = Apply {
        diff_id: Some(digest(b"something else")),
        ..apply(&place, &layer, GZIP, None)
    };
    let cases = [
        (wrong, Code::DataLoss, "diff id"),
        (
            apply(&place, &layer, "text/html", None),
            Code::InvalidArgument,
            "text/html",
        ),
        (
            apply(&place, &layer, GZIP, Some("restarted")),
            Code::Aborted,
            "started over",
        ),
        (
            apply(&place, &layer, GZIP, Some("dropped")),
            Code::Aborted,
            "dropped",
        ),
        (
            Apply {
                mounts: Vec::new(),
                ..apply(&place, &layer, TAR, None)
            },
            Code::InvalidArgument,
            "mounts",
        ),
        (
            Apply {
                mounts: mounts(&place, &["ro"]),
                ..apply(&place, &layer, TAR, None)
            },
            Code::InvalidArgument,
            "read-only",
        ),
    ];
    for (request, code, part) in cases {
        let error = applied(&home, request).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(part), "{error}");
    }
}

#[actix::test]
async fn a_cut_layer_is_lost_data() {
    let layer = gzip(&Layer::default().file("f", &"x".repeat(9000)).end());
    let (home, place) = (home(&layer[..layer.len() - 9]), Place::new());
    let error = applied(&home, apply(&place, &layer, GZIP, None))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::DataLoss);
    assert!(
        error.message.contains("truncated") && error.message.starts_with("layer sha256:"),
        "{error}"
    );
}

#[actix::test]
async fn a_layer_is_made_from_a_difference() {
    let (home, old, new) = (home(b""), Place::new(), Place::new());
    old.apply(diff::Whiteouts::Remove, Layer::default().file("gone", ""))
        .unwrap();
    new.apply(diff::Whiteouts::Remove, Layer::default().file("new", "n"))
        .unwrap();
    let compare = Compare {
        lower: mounts(&old, &[]),
        upper: mounts(&new, &[]),
        media_type: GZIP.into(),
        r#ref: None,
        labels: Default::default(),
    };
    let items = bus(&home).open(&ctx(), compare).await.unwrap();
    let last = items.collect::<Vec<_>>().await.pop().unwrap().unwrap();
    let layer = last.layer.unwrap();
    assert_eq!(layer.media_type, GZIP);
    assert_eq!(last.diff_id.unwrap().algorithm(), "sha256");
    assert!(layer.size > 50 && last.offset >= 2048);
}

#[actix::test]
async fn a_file_is_found_and_cannot_be_changed() {
    let (home, place) = (home(b""), Place::new());
    place
        .apply(
            diff::Whiteouts::Remove,
            Layer::default().file("etc/passwd", "root:x:0:0"),
        )
        .unwrap();
    let lookup = |path: &str, limit| Lookup {
        mounts: mounts(&place, &[]),
        path: path.into(),
        limit,
    };
    let found = bus(&home)
        .call(&ctx(), lookup("/etc/passwd", 100))
        .await
        .unwrap();
    let mut file = File::from(found.fd.into_owned().unwrap());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), found.size), ("root:x:0:0", 10));
    assert!(file.write_all(b"evil").is_err());
    for (path, limit, code) in [
        ("/none", 9, Code::NotFound),
        ("/etc", 9, Code::InvalidArgument),
        ("/etc/passwd", 5, Code::ResourceExhausted),
    ] {
        let error = bus(&home)
            .call(&ctx(), lookup(path, limit))
            .await
            .unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
    assert!(home.folder.path().exists());
}

#[actix::test]
async fn implied_directories_are_settled() {
    let (home, below, place) = (home(b""), Place::new(), Place::new());
    let mut header = Layer::header("srv", b'5', 0);
    header.set_mode(0o711);
    below
        .apply(layer::OVERLAY, Layer::default().push(header, b""))
        .unwrap();
    let done = place
        .apply(layer::OVERLAY, Layer::default().file("srv/f", ""))
        .unwrap();
    let settle = Settle {
        mounts: mounts(&place, &[]),
        parent: mounts(&below, &["ro"]),
        implied: done.implied,
    };
    bus(&home).call(&ctx(), settle).await.unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&place.path("srv").metadata().unwrap());
    assert_eq!(mode & 0o7777, 0o711);
}

#[actix::test]
async fn a_caller_that_goes_stops_the_work() {
    let layer = gzip(&Layer::default().file("f", "x").end());
    let (home, place) = (home(&layer), Place::new());
    // more of them than may run at a time: a leaked one would keep the last from starting
    for _ in 0..40 {
        let mut items = bus(&home)
            .open(&ctx(), apply(&place, &layer, GZIP, Some("slow")))
            .await
            .unwrap();
        let first = items.next().await;
        assert!(first.is_some());
        drop(items);
    }
    applied(&home, apply(&place, &layer, GZIP, None))
        .await
        .unwrap();
}
