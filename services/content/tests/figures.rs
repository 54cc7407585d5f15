//! How fast bytes become blobs, beside the plain work of the same disk. Run with `--ignored --nocapture`.

use bus::testing::{Fake, LocalBus};
use conformance::content::{Desk, next, pipe, pour, sha256};
use contracts::events::{Append, Events};
use contracts::leases::{Add, Leases};
use std::time::Instant;

/// Bytes of the large blob.
const LARGE: usize = 300 << 20;

#[actix_rt::test]
#[ignore = "measures, and proves nothing"]
async fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let node = LocalBus::new()
        .fake(Fake::<Events>::new("log").on(|_, _: Append| Ok(0)))
        .fake(Fake::<Leases>::new("local").on(|_, _: Add| Ok(())))
        .plugin(content::plugin())
        .start(dir.path())
        .unwrap();
    let desk = Desk::new(&node.bus(), "default");
    for round in 0..4u8 {
        let bytes: Vec<u8> = (0..LARGE).map(|n| (n >> 12) as u8 ^ round).collect();
        let began = Instant::now();
        let digest = sha256(&bytes);
        let hash = began.elapsed();
        let path = dir.path().join("plain");
        let began = Instant::now();
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let written = began.elapsed();
        file.sync_data().unwrap();
        let plain = began.elapsed();
        std::fs::remove_file(&path).unwrap();

        let began = Instant::now();
        let writer = desk.write("a", Some(&digest), LARGE as u64).await.unwrap();
        let mut growths = desk.follow("a", &digest).await;
        let follow = actix_rt::spawn(async move {
            let mut items = 0;
            while !next(&mut growths).await.unwrap().complete {
                items += 1;
            }
            items
        });
        drop(pour(pipe(writer).unwrap(), bytes).await.unwrap());
        let sent = began.elapsed();
        desk.commit("a", Some(&digest)).await.unwrap();
        let whole = began.elapsed();
        let items = follow.await.unwrap();
        println!(
            "hash {hash:?} · plain write {written:?}, synced {plain:?} · sent {sent:?}, committed {whole:?}, {items} growths"
        );
    }
    let began = Instant::now();
    for number in 0..100u32 {
        desk.push(&number.to_le_bytes()).await;
    }
    println!(
        "100 small blobs, one after the other: {:?}",
        began.elapsed()
    );
    let bytes: Vec<_> = (1000..1100u32).map(u32::to_le_bytes).collect();
    let began = Instant::now();
    futures_util::future::join_all(bytes.iter().map(|bytes| desk.push(bytes))).await;
    println!("100 small blobs, together: {:?}", began.elapsed());
    let began = Instant::now();
    let digest = sha256(&bytes[0]);
    for _ in 0..2000 {
        desk.stat(&digest).await.unwrap();
    }
    println!("stat: {:?} each", began.elapsed() / 2000);
}
