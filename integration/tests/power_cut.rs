//! Power cuts: what was answered is there afterwards, and what is listed is sound.

use std::fs;
use std::path::Path;

use integration::Outcome;
use integration::faults::disk::Disk;
use integration::faults::image::{Cut, Image, Loss, Replay};

const SIZE: u64 = 64 << 20;

/// Writes a file, says at which moment that was answered, goes on with other things, and tells what a cut leaves of it.
fn file_after_a_cut(loss: Loss, write: impl Fn(&Path) -> Outcome) -> Outcome<Option<Vec<u8>>> {
    let mut disk = Disk::new(Image::new(SIZE))?;
    disk.format()?;
    let point = disk.mount()?;
    let start = disk.record();
    write(&point.join("file"))?;
    let at = disk.clock().now();
    disk.unmount()?;
    let log = disk.recorded();
    let mut cut = Disk::new(Replay::new(start, &log).after(Cut { at, loss, seed: 1 }))?;
    let found = fs::read(cut.mount()?.join("file")).ok();
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
