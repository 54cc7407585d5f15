//! What every content store promises: [`suite`] runs all of it, each promise in a namespace of its own.

use bus::{Bus, Ctx};
use contracts::content::{
    Abort, Blob, Commit, Delete, Follow, Growth, Ingests, List, Open, Stat, Status, Update, Write,
    Writer,
};
use contracts::{Code, Digest, Error, LabelPatch, Labels, Namespace, Page, Paging, Ref, Result};
use futures_util::{Stream, StreamExt};
use sha2::{Digest as _, Sha256, Sha512};
use std::{
    fs::File,
    io::{Read, Write as _},
    pin::Pin,
    time::Duration,
};

/// How long any single step may take before the promise counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs every promise.
pub async fn suite(bus: &Bus) {
    a_blob_is_visible_only_after_its_commit(&Desk::new(bus, "visible")).await;
    a_write_goes_on_at_its_offset(&Desk::new(bus, "offset")).await;
    a_ref_has_one_writer(&Desk::new(bus, "one-writer")).await;
    a_ref_keeps_what_it_was_opened_for(&Desk::new(bus, "agreed")).await;
    starting_over_begins_at_zero(&Desk::new(bus, "restart")).await;
    commit_refuses_a_wrong_size(&Desk::new(bus, "size")).await;
    commit_refuses_a_wrong_digest_and_drops_the_bytes(&Desk::new(bus, "digest")).await;
    commit_waits_for_the_pipe_to_be_closed(&Desk::new(bus, "pipe")).await;
    more_than_was_announced_breaks_the_pipe(&Desk::new(bus, "too-long")).await;
    abort_breaks_the_pipe(&Desk::new(bus, "abort")).await;
    a_repeated_commit_gets_the_first_answer(&Desk::new(bus, "repeat")).await;
    committing_what_is_there_merges_labels(&Desk::new(bus, "merge")).await;
    other_algorithms_are_known(&Desk::new(bus, "sha512")).await;
    labels_change_and_filter(&Desk::new(bus, "labels")).await;
    lists_come_in_pages(&Desk::new(bus, "pages")).await;
    ingests_are_listed_by_ref(&Desk::new(bus, "ingests")).await;
    a_deleted_blob_is_gone(&Desk::new(bus, "delete")).await;
    readers_do_not_share_an_offset(&Desk::new(bus, "readers")).await;
    a_follower_reads_along(&Desk::new(bus, "follow")).await;
    a_follower_gets_the_new_file_when_the_writer_starts_over(&Desk::new(bus, "refollow")).await;
    a_follower_learns_that_the_ingest_was_dropped(&Desk::new(bus, "unfollow")).await;
    a_committed_blob_is_followed_at_once(&Desk::new(bus, "followed")).await;
}

/// A caller of the store in a namespace of its own.
pub struct Desk {
    bus: Bus,
    namespace: Namespace,
}

/// A stream of growth.
pub type Growths = Pin<Box<dyn Stream<Item = Result<Growth>>>>;

impl Desk {
    /// A caller in namespace `name`.
    pub fn new(bus: &Bus, name: &str) -> Self {
        let namespace = Namespace::new(name).expect("a namespace");
        let bus = bus.clone();
        Self { bus, namespace }
    }

    /// A context of a new request.
    pub fn ctx(&self) -> Ctx {
        Ctx::new(Some(self.namespace.clone())).with_deadline(PATIENCE)
    }

    /// Makes one call.
    pub async fn call<R: contracts::Request>(&self, request: R) -> Result<R::Reply> {
        self.bus.call(&self.ctx(), request).await
    }

    /// Opens or resumes a write.
    pub async fn write(&self, name: &str, expected: Option<&Digest>, total: u64) -> Result<Writer> {
        let write = Write {
            r#ref: named(name),
            expected: expected.cloned(),
            total,
            restart: false,
        };
        self.call(write).await
    }

    /// Commits, accepting any size.
    pub async fn commit(&self, name: &str, expected: Option<&Digest>) -> Result<Blob> {
        let commit = Commit {
            r#ref: named(name),
            size: None,
            expected: expected.cloned(),
            labels: Labels::new(),
        };
        self.call(commit).await
    }

    /// Stores bytes as a blob, the whole way.
    pub async fn push(&self, bytes: &[u8]) -> Blob {
        let digest = sha256(bytes);
        let name = digest.to_string();
        let writer = self.write(&name, Some(&digest), 0).await.expect("write");
        send(writer, bytes.to_vec()).await.expect("all sent");
        self.commit(&name, Some(&digest)).await.expect("commit")
    }

    /// Looks a blob up.
    pub async fn stat(&self, digest: &Digest) -> Result<Blob> {
        let digest = digest.clone();
        self.call(Stat { digest }).await
    }

    /// Reads a blob whole.
    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let digest = digest.clone();
        let opened = self.call(Open { digest }).await?;
        Ok(whole(opened.fd))
    }

    /// How many bytes an ingest has, when it has at least `least`.
    pub async fn arrived(&self, name: &str, least: u64) -> u64 {
        let r#ref = named(name);
        for _ in 0..PATIENCE.as_millis() {
            let status = Status {
                r#ref: r#ref.clone(),
            };
            let offset = self.call(status).await.expect("status").offset;
            if offset >= least {
                return offset;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("ingest {name}: {least} bytes did not arrive");
    }

    /// Follows a blob.
    pub async fn follow(&self, name: &str, digest: &Digest) -> Growths {
        let follow = Follow {
            r#ref: named(name),
            digest: digest.clone(),
        };
        let followed = self.bus.open(&self.ctx(), follow).await;
        followed.expect("a stream")
    }

    async fn list(&self, filters: &[&str], limit: u32, token: &str) -> Result<Page<Blob>> {
        let paging = Paging {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            limit,
            token: token.to_owned(),
        };
        self.call(List { paging }).await
    }
}

/// Makes a ref.
pub fn named(name: &str) -> Ref {
    Ref::new(name).expect("a ref")
}

/// Names bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    Digest::sha256(&hash)
}

/// Sends bytes through a writer's pipe and closes it.
pub async fn send(writer: Writer, bytes: Vec<u8>) -> std::io::Result<()> {
    let pipe = pipe(writer)?;
    pour(pipe, bytes).await.map(drop)
}

/// Takes the pipe out of a writer.
pub fn pipe(writer: Writer) -> std::io::Result<File> {
    Ok(File::from(writer.pipe.into_owned()?))
}

/// Sends bytes through an open pipe, and gives it back.
pub async fn pour(mut pipe: File, bytes: Vec<u8>) -> std::io::Result<File> {
    let sent = tokio::task::spawn_blocking(move || pipe.write_all(&bytes).map(|()| pipe));
    sent.await.expect("the thread that writes")
}

/// Reads a descriptor to its end.
pub fn whole(fd: contracts::Fd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let fd = fd.into_owned().expect("a descriptor");
    File::from(fd).read_to_end(&mut bytes).expect("readable");
    bytes
}

/// The next item of a stream, soon.
pub async fn next(growths: &mut Growths) -> Result<Growth> {
    let next = tokio::time::timeout(PATIENCE, growths.next()).await;
    next.expect("an item in time").expect("the stream goes on")
}

fn refused<T: std::fmt::Debug>(result: Result<T>, code: Code) -> Error {
    let error = result.expect_err("refused");
    assert_eq!(error.code, code, "{error}");
    error
}

/// Waits until a pipe is broken.
async fn broken(mut pipe: File) {
    let wait = tokio::task::spawn_blocking(move || {
        let zeros = [0; 4096];
        loop {
            if let Err(error) = pipe.write_all(&zeros) {
                return error.kind();
            }
        }
    });
    let broken = tokio::time::timeout(PATIENCE, wait).await;
    let kind = broken.expect("the pipe breaks").expect("the thread ends");
    assert_eq!(kind, std::io::ErrorKind::BrokenPipe);
}

async fn a_blob_is_visible_only_after_its_commit(desk: &Desk) {
    let digest = sha256(b"layer");
    let writer = desk.write("a", None, 0).await.expect("write");
    assert_eq!(writer.offset, 0);
    send(writer, b"layer".to_vec()).await.expect("sent");
    desk.arrived("a", 5).await;
    refused(desk.stat(&digest).await, Code::NotFound);
    let blob = desk.commit("a", None).await.expect("commit");
    assert_eq!((&blob.digest, blob.size), (&digest, 5));
    assert_eq!(desk.stat(&digest).await.expect("stat"), blob);
    assert_eq!(desk.read(&digest).await.expect("open"), b"layer");
    let gone = Status { r#ref: named("a") };
    refused(desk.call(gone).await, Code::NotFound);
    let elsewhere = Desk::new(&desk.bus, "elsewhere");
    refused(elsewhere.stat(&digest).await, Code::NotFound);
}

async fn a_write_goes_on_at_its_offset(desk: &Desk) {
    let digest = sha256(b"one two");
    let writer = desk.write("a", Some(&digest), 7).await.expect("write");
    send(writer, b"one ".to_vec()).await.expect("sent");
    desk.arrived("a", 4).await;
    let writer = desk.write("a", Some(&digest), 7).await.expect("again");
    assert_eq!(writer.offset, 4);
    send(writer, b"two".to_vec()).await.expect("sent");
    let blob = desk.commit("a", Some(&digest)).await.expect("commit");
    assert_eq!(blob.size, 7);
    let again = desk.write("b", Some(&digest), 0).await;
    refused(again, Code::AlreadyExists);
}

async fn a_ref_has_one_writer(desk: &Desk) {
    let first = desk.write("a", None, 0).await.expect("write");
    refused(desk.write("a", None, 0).await, Code::Aborted);
    desk.write("b", None, 0).await.expect("another ref");
    drop(first);
    desk.write("a", None, 0).await.expect("after it is closed");
}

async fn a_ref_keeps_what_it_was_opened_for(desk: &Desk) {
    let (one, two) = (sha256(b"one"), sha256(b"two"));
    drop(desk.write("a", Some(&one), 3).await.expect("write"));
    refused(desk.write("a", Some(&two), 3).await, Code::InvalidArgument);
    refused(desk.write("a", Some(&one), 4).await, Code::InvalidArgument);
    let writer = desk.write("a", None, 0).await.expect("unsaid is agreed");
    send(writer, b"two".to_vec()).await.expect("sent");
    refused(desk.commit("a", Some(&two)).await, Code::InvalidArgument);
    let status = Status { r#ref: named("a") };
    let status = desk.call(status).await.expect("status");
    assert_eq!((status.total, status.expected), (3, Some(one)));
}

async fn starting_over_begins_at_zero(desk: &Desk) {
    let writer = desk.write("a", None, 0).await.expect("write");
    send(writer, b"old bytes".to_vec()).await.expect("sent");
    desk.arrived("a", 9).await;
    let over = Write {
        r#ref: named("a"),
        expected: None,
        total: 0,
        restart: true,
    };
    let writer = desk.call(over).await.expect("over");
    assert_eq!(writer.offset, 0);
    send(writer, b"new".to_vec()).await.expect("sent");
    let blob = desk.commit("a", None).await.expect("commit");
    assert_eq!(blob.digest, sha256(b"new"));
}

async fn commit_refuses_a_wrong_size(desk: &Desk) {
    let commit = |size| Commit {
        r#ref: named("a"),
        size: Some(size),
        expected: None,
        labels: Labels::new(),
    };
    let writer = desk.write("a", None, 0).await.expect("write");
    send(writer, b"12345".to_vec()).await.expect("sent");
    let error = refused(desk.call(commit(9)).await, Code::FailedPrecondition);
    assert!(
        error.message.contains('5') && error.message.contains('9'),
        "{error}"
    );
    let writer = desk.write("a", None, 0).await.expect("goes on");
    assert_eq!(writer.offset, 5, "too few bytes may still become enough");
    drop(writer);
    refused(desk.call(commit(4)).await, Code::FailedPrecondition);
    let gone = Status { r#ref: named("a") };
    refused(desk.call(gone).await, Code::NotFound);
}

async fn commit_refuses_a_wrong_digest_and_drops_the_bytes(desk: &Desk) {
    let digest = sha256(b"right");
    let writer = desk.write("a", Some(&digest), 5).await.expect("write");
    send(writer, b"wrong".to_vec()).await.expect("sent");
    let error = refused(desk.commit("a", Some(&digest)).await, Code::DataLoss);
    for named in [&digest, &sha256(b"wrong")] {
        assert!(error.message.contains(named.as_str()), "{error}");
    }
    let writer = desk.write("a", Some(&digest), 5).await.expect("again");
    assert_eq!(writer.offset, 0);
    send(writer, b"right".to_vec()).await.expect("sent");
    desk.commit("a", Some(&digest)).await.expect("commit");
}

async fn commit_waits_for_the_pipe_to_be_closed(desk: &Desk) {
    let open = pipe(desk.write("a", None, 0).await.expect("write")).expect("a pipe");
    let soon = desk.ctx().with_deadline(Duration::from_millis(900));
    let commit = Commit {
        r#ref: named("a"),
        size: None,
        expected: None,
        labels: Labels::new(),
    };
    let early = desk.bus.call(&soon, commit.clone()).await;
    refused(early, Code::FailedPrecondition);
    let ctx = desk.ctx();
    let committing = desk.bus.call(&ctx, commit);
    let (blob, sent) = futures_util::join!(committing, async {
        drop(pour(open, b"late".to_vec()).await.expect("sent"));
    });
    let () = sent;
    assert_eq!(blob.expect("commit").digest, sha256(b"late"));
    refused(desk.commit("none", None).await, Code::NotFound);
}

async fn more_than_was_announced_breaks_the_pipe(desk: &Desk) {
    let open = pipe(desk.write("a", None, 3).await.expect("write")).expect("a pipe");
    broken(open).await;
    refused(desk.commit("a", None).await, Code::FailedPrecondition);
    let gone = Status { r#ref: named("a") };
    refused(desk.call(gone).await, Code::NotFound);
}

async fn abort_breaks_the_pipe(desk: &Desk) {
    let open = pipe(desk.write("a", None, 0).await.expect("write")).expect("a pipe");
    let open = pour(open, b"some".to_vec()).await.expect("sent");
    let (ctx, abort) = (desk.ctx(), Abort { r#ref: named("a") });
    desk.bus.call(&ctx, abort.clone()).await.expect("abort");
    broken(open).await;
    desk.bus.call(&ctx, abort.clone()).await.expect("repeated");
    refused(desk.call(abort).await, Code::NotFound);
}

async fn a_repeated_commit_gets_the_first_answer(desk: &Desk) {
    let writer = desk.write("a", None, 0).await.expect("write");
    send(writer, b"once".to_vec()).await.expect("sent");
    let commit = Commit {
        r#ref: named("a"),
        size: Some(4),
        expected: None,
        labels: Labels::new(),
    };
    let ctx = desk.ctx();
    let first = desk.bus.call(&ctx, commit.clone()).await.expect("commit");
    let again = desk.bus.call(&ctx, commit).await.expect("repeated");
    assert_eq!(first, again);
}

async fn committing_what_is_there_merges_labels(desk: &Desk) {
    let mut last = None;
    for (name, label) in [("a", "one"), ("b", "two")] {
        let writer = desk.write(name, None, 0).await.expect("write");
        send(writer, b"same".to_vec()).await.expect("sent");
        let commit = Commit {
            r#ref: named(name),
            size: None,
            expected: Some(sha256(b"same")),
            labels: Labels::from([(label.to_owned(), "x".to_owned())]),
        };
        last = Some(desk.call(commit).await.expect("commit"));
    }
    let labels = last.expect("a blob").labels;
    assert_eq!(labels.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(desk.read(&sha256(b"same")).await.expect("open"), b"same");
}

async fn other_algorithms_are_known(desk: &Desk) {
    let hash = Sha512::digest(b"long");
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Digest::new(format!("sha512:{hex}")).expect("a digest");
    let writer = desk.write("a", None, 0).await.expect("write");
    send(writer, b"long".to_vec()).await.expect("sent");
    let blob = desk.commit("a", Some(&digest)).await.expect("commit");
    assert_eq!(blob.digest, digest);
    assert_eq!(desk.read(&digest).await.expect("open"), b"long");
}

async fn labels_change_and_filter(desk: &Desk) {
    let (one, two) = (desk.push(b"1").await, desk.push(b"22").await);
    let update = |digest: &Digest, key: &str| Update {
        digest: digest.clone(),
        labels: LabelPatch {
            replace: false,
            set: [(key.to_owned(), Some("v".to_owned()))].into(),
        },
    };
    let updated = desk
        .call(update(&one.digest, "a.b/c"))
        .await
        .expect("update");
    assert_eq!(updated.labels.get("a.b/c").map(String::as_str), Some("v"));
    assert!(updated.updated_at > one.updated_at && updated.created_at == one.created_at);
    refused(
        desk.call(update(&sha256(b"none"), "a")).await,
        Code::NotFound,
    );
    refused(
        desk.call(update(&one.digest, &"k".repeat(5000))).await,
        Code::InvalidArgument,
    );
    for (filter, found) in [
        (r#"labels."a.b/c"==v"#.to_owned(), &one),
        ("size==2".to_owned(), &two),
        (format!("digest=={}", two.digest), &two),
    ] {
        let page = desk.list(&[&filter], 0, "").await.expect("list");
        let digests: Vec<_> = page.items.iter().map(|blob| &blob.digest).collect();
        assert_eq!(digests, [&found.digest], "{filter}");
    }
    refused(desk.list(&["size=="], 0, "").await, Code::InvalidArgument);
}

async fn lists_come_in_pages(desk: &Desk) {
    let mut pushed = Vec::new();
    for number in 0..7u8 {
        pushed.push(desk.push(&[number]).await.digest);
    }
    pushed.sort();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = desk.list(&[], 3, &token).await.expect("list");
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|blob| blob.digest));
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, pushed, "everything once, by digest");
}

async fn ingests_are_listed_by_ref(desk: &Desk) {
    for name in ["b/x", "a", "c"] {
        desk.write(name, None, 9).await.expect("write");
    }
    let list = |filters: &[&str], limit, token: &str| {
        let paging = Paging {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            limit,
            token: token.to_owned(),
        };
        desk.call(Ingests { paging })
    };
    let page = list(&[], 2, "").await.expect("list");
    let names = |page: &Page<contracts::content::Ingest>| {
        let names = page.items.iter().map(|ingest| ingest.r#ref.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&page), ["a", "b/x"]);
    assert_eq!(page.items[0].total, 9);
    let rest = list(&[], 2, &page.next).await.expect("list");
    assert_eq!((names(&rest), rest.next.as_str()), (vec!["c".into()], ""));
    let some = list(&["ref~=/^b/"], 0, "").await.expect("list");
    assert_eq!(names(&some), ["b/x"]);
}

async fn a_deleted_blob_is_gone(desk: &Desk) {
    let blob = desk.push(b"doomed").await;
    let delete = Delete {
        digest: blob.digest.clone(),
    };
    let ctx = desk.ctx();
    desk.bus.call(&ctx, delete.clone()).await.expect("delete");
    desk.bus.call(&ctx, delete.clone()).await.expect("repeated");
    refused(desk.call(delete).await, Code::NotFound);
    refused(desk.stat(&blob.digest).await, Code::NotFound);
    refused(desk.read(&blob.digest).await, Code::NotFound);
    desk.push(b"doomed").await;
    assert_eq!(desk.read(&blob.digest).await.expect("back"), b"doomed");
}

async fn readers_do_not_share_an_offset(desk: &Desk) {
    let digest = desk.push(b"read me").await.digest;
    let open = || {
        desk.call(Open {
            digest: digest.clone(),
        })
    };
    let (one, two) = (open().await.expect("open"), open().await.expect("open"));
    assert_eq!(whole(one.fd), b"read me");
    let mut two = File::from(two.fd.into_owned().expect("a descriptor"));
    assert!(two.write_all(b"x").is_err(), "read-only");
    let mut text = String::new();
    two.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "read me");
}

async fn a_follower_reads_along(desk: &Desk) {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let digest = sha256(&bytes);
    let mut growths = desk.follow("a", &digest).await;
    let writer = desk.write("a", Some(&digest), 0).await.expect("write");
    let (early, rest) = bytes.split_at(100);
    let open = pour(pipe(writer).expect("a pipe"), early.to_vec()).await;
    let mut first = next(&mut growths).await.expect("the file");
    let file = File::from(
        first
            .fd
            .take()
            .expect("a descriptor")
            .into_owned()
            .expect("one"),
    );
    while first.offset < 100 {
        first = next(&mut growths).await.expect("growth");
        assert!(!first.complete && first.fd.is_none());
    }
    drop(
        pour(open.expect("sent"), rest.to_vec())
            .await
            .expect("sent"),
    );
    let commit = desk.commit("a", Some(&digest));
    let (committed, last) = futures_util::join!(commit, async {
        loop {
            let growth = next(&mut growths).await.expect("growth");
            assert!(growth.fd.is_none(), "the file that became the blob");
            if growth.complete {
                return growth;
            }
        }
    });
    committed.expect("commit");
    assert_eq!(last.offset, bytes.len() as u64);
    assert!(growths.next().await.is_none(), "the end");
    let mut read = Vec::new();
    (&file).read_to_end(&mut read).expect("readable");
    assert_eq!(read, bytes);
}

async fn a_follower_gets_the_new_file_when_the_writer_starts_over(desk: &Desk) {
    let digest = sha256(b"second");
    let writer = desk.write("a", None, 0).await.expect("write");
    send(writer, b"first".to_vec()).await.expect("sent");
    desk.arrived("a", 5).await;
    let mut growths = desk.follow("a", &digest).await;
    let first = next(&mut growths).await.expect("the file");
    assert_eq!((first.fd.is_some(), first.offset), (true, 5));
    let over = Write {
        r#ref: named("a"),
        expected: None,
        total: 0,
        restart: true,
    };
    let writer = desk.call(over).await.expect("over");
    let second = next(&mut growths).await.expect("the new file");
    send(writer, b"second".to_vec()).await.expect("sent");
    desk.commit("a", None).await.expect("commit");
    while !next(&mut growths).await.expect("growth").complete {}
    assert_eq!(whole(second.fd.expect("a descriptor")), b"second");
}

async fn a_follower_learns_that_the_ingest_was_dropped(desk: &Desk) {
    let writer = desk.write("a", None, 0).await.expect("write");
    let mut growths = desk.follow("a", &sha256(b"never")).await;
    next(&mut growths).await.expect("the file");
    let abort = Abort { r#ref: named("a") };
    desk.call(abort).await.expect("abort");
    refused(next(&mut growths).await, Code::Aborted);
    drop(writer);
}

async fn a_committed_blob_is_followed_at_once(desk: &Desk) {
    let digest = desk.push(b"done").await.digest;
    let mut growths = desk.follow("whatever", &digest).await;
    let only = next(&mut growths).await.expect("the blob");
    assert_eq!((only.complete, only.offset), (true, 4));
    assert_eq!(whole(only.fd.expect("a descriptor")), b"done");
    assert!(growths.next().await.is_none(), "the end");
}
