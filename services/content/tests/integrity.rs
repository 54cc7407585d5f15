//! What the content store does about damage: it is found, named, never handed out, and written over.

use bus::Ctx;
use conformance::content::{named, next, send, sha256};
use contracts::content::{Open, Verify, Write};
use contracts::integrity::{Check, Checked, Cure, Damage, Finding, Mend};
use contracts::{Code, Digest, Error, Namespace};
use house::House;
use std::{fs, os::unix::fs::FileExt, path::PathBuf};

mod house;

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("default").unwrap()))
}

impl House {
    async fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let desk = self.desk("default");
        let digest = sha256(bytes);
        let writer = desk.write(name, Some(&digest), bytes.len() as u64).await;
        send(writer.unwrap(), bytes.to_vec()).await.unwrap();
        desk.commit(name, Some(&digest)).await.unwrap();
        digest
    }

    fn flip(&self, digest: &Digest, at: u64) {
        let path = self.file(digest);
        let file = fs::OpenOptions::new().read(true).write(true).open(path);
        let file = file.unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    async fn open(&self, digest: &Digest) -> Result<(), Error> {
        let digest = digest.clone();
        self.bus().call(&ctx(), Open { digest }).await.map(drop)
    }

    async fn check(&self, deep: bool) -> (Vec<Finding>, Checked) {
        let (mut found, mut all, mut token) = (Vec::new(), Checked::default(), String::new());
        for _ in 0..1000 {
            let step = self
                .bus()
                .call(&ctx(), Check { deep, token })
                .await
                .unwrap();
            assert!(step.bytes <= 64 << 20, "{}", step.bytes);
            found.extend(step.findings);
            all.bytes += step.bytes;
            all.things += step.things;
            token = step.next;
            if token.is_empty() {
                return (found, all);
            }
        }
        panic!("the check does not end");
    }

    async fn mend(&self, finding: Finding) -> Result<String, Error> {
        let mended = self.bus().call(&ctx(), Mend { finding }).await;
        mended.map(|mended| mended.how)
    }
}

#[actix_rt::test]
async fn a_blob_with_a_flipped_bit_is_refused_by_name_until_it_is_written_again() {
    let mut house = House::new();
    let digest = house.blob("a", b"the bytes of a layer").await;
    house.open(&digest).await.unwrap();
    house.flip(&digest, 5);
    for _ in 0..2 {
        let error = house.open(&digest).await.unwrap_err();
        assert_eq!(error.code, Code::DataLoss, "{error}");
        assert!(error.message.contains(digest.as_str()), "{error}");
        assert!(
            error.message.contains("pull an image that has it"),
            "{error}"
        );
        // The mark outlives the process.
        house.restart().await;
    }
    // A mark is not taken away by bytes that nobody wrote through the store.
    house.flip(&digest, 5);
    house.open(&digest).await.unwrap_err();
    assert_eq!(house.blob("b", b"the bytes of a layer").await, digest);
    house.open(&digest).await.unwrap();
    assert_eq!(house.check(true).await.0, []);
}

#[actix_rt::test]
async fn a_blob_that_is_cut_or_gone_is_written_again() {
    let house = House::new();
    let digest = house.blob("a", b"short").await;
    fs::OpenOptions::new()
        .write(true)
        .open(house.file(&digest))
        .unwrap()
        .set_len(2)
        .unwrap();
    assert_eq!(house.open(&digest).await.unwrap_err().code, Code::DataLoss);
    house.blob("b", b"short").await;
    house.open(&digest).await.unwrap();
    fs::remove_file(house.file(&digest)).unwrap();
    assert_eq!(house.open(&digest).await.unwrap_err().code, Code::DataLoss);
    house.blob("c", b"short").await;
    house.open(&digest).await.unwrap();
}

#[actix_rt::test]
async fn a_namespace_is_not_given_the_damaged_bytes_of_another() {
    let house = House::new();
    let digest = house.blob("a", b"shared").await;
    house.flip(&digest, 0);
    let other = house.desk("other");
    let writer = other.write("a", Some(&digest), 6).await.unwrap();
    send(writer, b"shared".to_vec()).await.unwrap();
    other.commit("a", Some(&digest)).await.unwrap();
    // Both have it again.
    house.open(&digest).await.unwrap();
    assert_eq!(other.read(&digest).await.unwrap(), b"shared");
}

#[actix_rt::test]
async fn a_reader_in_doubt_is_told_the_truth() {
    let house = House::new();
    let digest = house.blob("a", b"bytes").await;
    let verify = |doubt| Verify {
        digest: digest.clone(),
        doubt,
    };
    house.bus().call(&ctx(), verify(true)).await.unwrap();
    house.flip(&digest, 0);
    let error = house.bus().call(&ctx(), verify(false)).await.unwrap_err();
    assert_eq!(error.code, Code::DataLoss, "{error}");
    let missing = Verify {
        digest: sha256(b"other"),
        doubt: true,
    };
    let error = house.bus().call(&ctx(), missing).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
}

#[actix_rt::test]
async fn a_follower_waits_for_the_new_bytes_of_a_damaged_blob() {
    let house = House::new();
    let desk = house.desk("default");
    let digest = house.blob("a", b"followed").await;
    house.flip(&digest, 3);
    let mut growths = desk.follow("b", &digest).await;
    let writer = desk.write("b", Some(&digest), 8).await.unwrap();
    send(writer, b"followed".to_vec()).await.unwrap();
    desk.commit("b", Some(&digest)).await.unwrap();
    loop {
        let growth = next(&mut growths).await.unwrap();
        if growth.complete {
            break;
        }
    }
}

#[actix_rt::test]
async fn a_check_finds_every_sort_of_damage_by_name_and_says_what_cures_it() {
    let house = House::new();
    let (mut whole, mut flipped, mut cut, mut gone) = (vec![], vec![], vec![], vec![]);
    for n in 0..10u8 {
        whole.push(house.blob("w", &[n; 100]).await);
        flipped.push(house.blob("f", &[n; 101]).await);
        cut.push(house.blob("c", &[n; 102]).await);
        gone.push(house.blob("g", &[n; 103]).await);
    }
    flipped.iter().for_each(|digest| house.flip(digest, 99));
    for digest in &cut {
        fs::write(house.file(digest), b"x").unwrap_or_else(|_| {
            fs::remove_file(house.file(digest)).unwrap();
            fs::write(house.file(digest), b"x").unwrap();
        });
    }
    gone.iter()
        .for_each(|digest| fs::remove_file(house.file(digest)).unwrap());
    let stray = house.file(&sha256(b"nobody's"));
    fs::write(&stray, b"nobody's").unwrap();
    fs::write(house.root().join("blobs/sha256/junk"), b"").unwrap();
    fs::create_dir(house.root().join("ingests/junk")).unwrap();

    let (found, all) = house.check(true).await;
    let names = |damage: Damage, cure: Cure| {
        let mut names: Vec<String> = found
            .iter()
            .filter(|found| (found.damage, found.cure) == (damage, cure))
            .map(|found| found.subject.clone())
            .collect();
        names.sort();
        names
    };
    let sorted = |digests: &[&Vec<Digest>]| {
        let mut names: Vec<String> = digests
            .iter()
            .flat_map(|digests| digests.iter())
            .map(ToString::to_string)
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(Damage::Blob, Cure::Fetch), sorted(&[&flipped, &cut]));
    assert_eq!(names(Damage::Missing, Cure::Fetch), sorted(&[&gone]));
    assert_eq!(names(Damage::Leftover, Cure::Remove).len(), 3);
    assert_eq!(found.len(), 33, "nothing else: {found:?}");
    assert!(all.bytes >= 2010 && all.things >= 40, "{all:?}");

    for finding in found {
        let mended = house.mend(finding.clone()).await;
        match finding.cure {
            Cure::Fetch => assert_eq!(mended.unwrap_err().code, Code::FailedPrecondition),
            _ => drop(mended.unwrap()),
        }
    }
    assert!(!stray.exists() && whole.iter().all(|digest| house.file(digest).exists()));
    let (left, _) = house.check(true).await;
    assert_eq!(left.len(), 30, "what must be fetched: {left:?}");
}

#[actix_rt::test]
async fn a_large_blob_is_checked_over_several_steps() {
    let house = House::new();
    let bytes: Vec<u8> = (0..(150u32 << 20) / 4).flat_map(u32::to_le_bytes).collect();
    let digest = house.blob("a", &bytes).await;
    let (found, all) = house.check(true).await;
    // And some bytes of records.
    assert_eq!((found, all.bytes >> 20), (vec![], 150));
    house.flip(&digest, 149 << 20);
    let (found, _) = house.check(true).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].subject, digest.to_string());
}

#[actix_rt::test]
async fn two_checks_at_a_time_both_come_to_an_end() {
    let house = House::new();
    for byte in 0..2 {
        house.blob("a", &vec![byte; 70 << 20]).await;
    }
    let mut tokens = [Some(String::new()), Some(String::new())];
    let mut steps = 0;
    while tokens.iter().any(Option::is_some) {
        for (number, place) in tokens.iter_mut().enumerate() {
            // The second is one step behind, so that they are in the middle of different blobs.
            let Some(token) = place.take_if(|_| steps >= number) else {
                continue;
            };
            let ask = Check { deep: true, token };
            let next = house.bus().call(&ctx(), ask).await.unwrap().next;
            *place = Some(next).filter(|next| !next.is_empty());
        }
        steps += 1;
        assert!(steps < 40, "they keep each other from ending");
    }
}

#[actix_rt::test]
async fn blobs_under_way_are_no_leftovers() {
    let house = House::new();
    let desk = house.desk("default");
    let writing = desk.write("a", None, 0).await.unwrap();
    house.blob("b", b"one").await;
    assert_eq!(house.check(true).await.0, []);
    send(writing, b"two".to_vec()).await.unwrap();
    desk.commit("a", None).await.unwrap();
    assert_eq!(house.check(true).await.0, []);
}

#[actix_rt::test]
async fn only_what_is_nobodys_is_removed_whatever_a_finding_says() {
    let house = House::new();
    let digest = house.blob("a", b"kept").await;
    for subject in [
        format!("blobs/sha256/{}", digest.hex()),
        "blobs/../content.redb".to_owned(),
        "blobs/sha256/../../content.redb".to_owned(),
        "blobs/sha256/".to_owned(),
        "blobs/sha256/.".to_owned(),
        "blobs/sha256".to_owned(),
        "../leases".to_owned(),
        "ingests/..".to_owned(),
    ] {
        let finding = Finding {
            damage: Damage::Leftover,
            namespace: None,
            subject,
            what: String::new(),
            cure: Cure::Remove,
        };
        let _ = house.mend(finding).await;
    }
    assert!(house.root().join("content.redb").exists());
    house.open(&digest).await.unwrap();
}

#[actix_rt::test]
async fn a_store_without_sync_keeps_its_contract_but_for_power() {
    let house = House::with(r#"{"sync": false}"#);
    let digest = house.blob("a", b"fast").await;
    house.open(&digest).await.unwrap();
    let again = Write {
        r#ref: named("b"),
        expected: Some(digest),
        total: 4,
        restart: false,
    };
    let error = house.bus().call(&ctx(), again).await.unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists, "{error}");
}

/// Runs a store to its end; answers its folder, a blob that rotted, one that did not, and a file of nobody.
fn stopped() -> (tempfile::TempDir, PathBuf, Digest, [PathBuf; 2]) {
    actix_rt::System::new().block_on(async {
        let house = House::new();
        let digest = house.blob("a", b"rots while nobody runs").await;
        let kept = house.blob("b", b"stays").await;
        house.flip(&digest, 3);
        let stray = house.file(&sha256(b"nobody's"));
        fs::write(&stray, b"nobody's").unwrap();
        let (root, files) = (house.root(), [house.file(&kept), stray]);
        let House { dir, .. } = house;
        (dir, root, digest, files)
    })
}

#[test]
fn a_stopped_store_is_checked_and_mended_from_outside() {
    let ran = std::thread::spawn(stopped).join();
    let (_dir, root, digest, [kept, stray]) = ran.unwrap();
    let fsck = content::plugin().offline().unwrap();
    let seen = fsck(&root, false).unwrap();
    let said: Vec<_> = seen
        .into_iter()
        .map(|(finding, mended)| (finding.subject, mended.is_some()))
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.contains(&(digest.to_string(), false)), "{said:?}");
    let mended = fsck(&root, true).unwrap();
    let removed = mended.iter().filter(|(_, mended)| mended.is_some());
    assert_eq!((mended.len(), removed.count()), (2, 1), "{mended:?}");
    assert!(!stray.exists() && kept.exists());
}
