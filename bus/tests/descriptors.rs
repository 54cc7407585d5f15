//! No descriptor is left behind, whatever becomes of the call that carried it. Alone in its process, because it counts
//! what the process has open.

use bus::testing::{Fake, LocalBus};
use bus::{Bus, Ctx};
use contracts::content::{Blob, Content, Open, Opened};
use contracts::operations::{Import, Operations, Start, Work};
use contracts::tasks::{Stdin, Tasks};
use contracts::transfer::{Export, Progress, Transfer};
use contracts::{Digest, Error, Fd, Result, Timestamp};
use futures_util::StreamExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::OwnedFd;

fn open() -> usize {
    numbers().len()
}

fn numbers() -> Vec<u64> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.map(|fd| fd.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect()
}

fn null() -> Result<Fd> {
    let null = std::fs::File::open("/dev/null").map_err(|e| Error::internal(e.to_string()))?;
    Ok(Fd::from(OwnedFd::from(null)))
}

fn content() -> Fake<Content> {
    Fake::new("local").on(|_, open: Open| {
        let now = Timestamp::default();
        let blob = Blob {
            digest: open.digest,
            size: 0,
            labels: Default::default(),
            created_at: now,
            updated_at: now,
        };
        Ok(Opened { blob, fd: null()? })
    })
}

async fn call(bus: Bus, kind: usize) {
    let ctx = Ctx::new(None);
    let import = Import {
        archive: null().unwrap(),
        prefix: String::new(),
        snapshotter: String::new(),
        no_unpack: true,
    };
    let export = Export {
        images: Vec::new(),
        platform: String::new(),
        archive: null().unwrap(),
    };
    let digest = Digest::sha256(&[7; 32]);
    match kind % 3 {
        0 => drop(bus.call(&ctx, Open { digest }).await.unwrap()),
        1 => {
            let work = Work::Import(import);
            let refused = bus.call(&ctx, Start { work }).await.unwrap_err();
            assert!(refused.message.contains("no room"), "{refused}");
        }
        _ => {
            let mut items = bus.open(&ctx, export).await.unwrap();
            assert!(items.next().await.unwrap().is_ok());
        }
    }
}

#[actix::test]
async fn descriptors_are_neither_left_behind_nor_mixed_up() {
    a_thousand_calls_leave_no_descriptor_open().await;
    a_process_without_room_for_a_descriptor_fails_that_call_alone().await;
}

async fn a_process_without_room_for_a_descriptor_fails_that_call_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::<Tasks>::new("local");
    let pipe = null().unwrap();
    let fake = fake.on(move |_, _: Stdin| Ok(pipe.clone()));
    let node = LocalBus::new().fake(fake).start(dir.path()).unwrap();
    let stdin = || Stdin {
        id: "c".parse().unwrap(),
        exec: None,
    };
    let (bus, ctx) = (node.bus(), Ctx::new(None));
    assert!(bus.call(&ctx, stdin()).await.is_ok());
    let before = getrlimit(Resource::Nofile);
    let highest = numbers().into_iter().max();
    let full = Rlimit {
        current: highest.map(|number| number + 1),
        maximum: before.maximum,
    };
    setrlimit(Resource::Nofile, full).unwrap();
    let mut fill = Vec::new();
    while let Ok(fd) = null() {
        fill.push(fd);
    }
    let error = bus.call(&ctx, stdin()).await.unwrap_err();
    assert!(error.message.contains("no file descriptor"), "{error}");
    setrlimit(Resource::Nofile, before).unwrap();
    drop(fill);
    assert!(bus.call(&ctx, stdin()).await.is_ok());
}

async fn a_thousand_calls_leave_no_descriptor_open() {
    let dir = tempfile::tempdir().unwrap();
    let operations =
        Fake::<Operations>::new("local").on(|_, _: Start| Err(Error::exhausted("no room")));
    let transfer = Fake::<Transfer>::new("local").stream(|_, _: Export| {
        let item = || Progress {
            name: String::new(),
            offset: 0,
            total: 0,
            done: false,
        };
        Ok((0..40).map(|_| item()).collect())
    });
    let node = LocalBus::new().fake(content());
    let node = node.fake(operations).fake(transfer).start(dir.path());
    let bus = node.unwrap().bus();
    for kind in 0..3 {
        call(bus.clone(), kind).await;
    }
    let before = open();
    for round in 0..10 {
        let calls: Vec<_> = (0..150)
            .map(|i| actix::spawn(call(bus.clone(), i)))
            .collect();
        for (i, task) in calls.into_iter().enumerate() {
            if (i + round) % 2 == 0 {
                task.abort();
            } else {
                task.await.unwrap();
            }
            if i % 7 == round % 7 {
                tokio::task::yield_now().await;
            }
        }
    }
    let settled = async {
        while open() > before {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(std::time::Duration::from_secs(10), settled).await;
    assert!(settled.is_ok(), "{} open, {before} before", open());
}
