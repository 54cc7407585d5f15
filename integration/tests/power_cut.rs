//! Power cuts: what was answered is there afterwards, and what is listed is sound.

use std::fs;
use std::path::Path;

use integration::Outcome;
use integration::chaos::seed;
use integration::faults::disk::Disk;
use integration::faults::image::{Cut, Image, Loss, Replay};
use integration::faults::power::{Moments, Plan, run};
use integration::node::Setup;

const SIZE: u64 = 64 << 20;

/// Writes a file, says at which moment that was answered, goes on with other things, and tells what a cut leaves of it.
fn file_after_a_cut(loss: Loss, write: impl Fn(&Path) -> Outcome) -> Outcome<Option<Vec<u8>>> {
    let mut disk = Disk::new(Image::new(SIZE))?;
    disk.format(&[])?;
    let point = disk.mount("")?;
    let start = disk.record();
    write(&point.join("file"))?;
    let at = disk.clock().now();
    disk.unmount()?;
    let log = disk.recorded();
    let mut cut = Disk::new(Replay::new(start, &log).after(Cut { at, loss, seed: 1 }))?;
    let found = fs::read(cut.mount("")?.join("file")).ok();
    cut.unmount()?;
    Ok(found)
}

const TEXT: &[u8] = b"what was answered";

#[test]
fn a_file_that_was_answered_without_fsync_is_missed_after_a_cut() -> Outcome {
    let lie = |path: &Path| Ok(fs::write(path, TEXT)?);
    for loss in [Loss::Nothing, Loss::Everything, Loss::Sectors] {
        assert_ne!(
            file_after_a_cut(loss, lie)?.as_deref(),
            Some(TEXT),
            "{loss:?}"
        );
    }
    Ok(())
}

#[test]
fn a_file_that_was_synced_is_there_after_every_cut() -> Outcome {
    let honest = |path: &Path| {
        fs::write(path, TEXT)?;
        Ok(fs::File::open(path)?.sync_all()?)
    };
    for loss in [Loss::Nothing, Loss::Everything, Loss::Sectors] {
        assert_eq!(
            file_after_a_cut(loss, honest)?.as_deref(),
            Some(TEXT),
            "{loss:?}"
        );
    }
    Ok(())
}

/// Few here; `integration/faults power --cuts 200` makes as many as the promise speaks of.
const CUTS: usize = 12;

fn plan(moments: Moments, setup: Setup) -> Plan {
    Plan {
        cuts: CUTS,
        seed: seed(),
        setup,
        keep: None,
        moments,
    }
}

#[actix_rt::test]
async fn what_was_answered_survives_a_power_cut_and_what_is_listed_is_sound() -> Outcome {
    let plan = plan(Moments::All, Setup::default());
    println!("GANTRY_SEED={} makes the same choices", plan.seed);
    let verdict = run(&plan, |line| println!("{line}")).await?;
    assert_eq!(verdict.wrong, Vec::<String>::new());
    Ok(())
}

/// Whether cuts at answers about some objects are noticed when a plugin's bytes are not synced.
async fn found_out(plugin: &str, objects: &'static str) -> Outcome {
    let setup = Setup::default().config(&format!("[plugins.{plugin:?}]\nsync = false"));
    let plan = plan(Moments::Answers(objects), setup);
    let verdict = run(&plan, |line| println!("{line}")).await?;
    assert_ne!(
        verdict.wrong,
        Vec::<String>::new(),
        "{plugin} lied and nobody noticed"
    );
    Ok(())
}

#[actix_rt::test]
async fn blobs_that_are_not_synced_are_found_out() -> Outcome {
    found_out("content/local", "blob ").await
}

#[actix_rt::test]
async fn layers_that_are_not_synced_are_found_out() -> Outcome {
    found_out("diff/local", "image ").await
}
