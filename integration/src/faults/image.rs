//! What a disk holds, and what is left of it after a power cut. No device, no clock.
//!
//! A disk with a write cache promises one thing: when a flush is answered, every write that was answered before it is
//! on the medium. Between two flushes it may do as it likes. A [`Cut`] takes that freedom to any extreme, reproducibly.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::chaos::Random;

/// Granularity of memory, in bytes; also the usual block of a file system.
const PAGE: usize = 4096;
/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// The bytes of a disk. Copies share pages until one of them is written to.
#[derive(Clone, Debug)]
pub struct Image {
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Image {
    /// Makes a disk of zeros; the size is rounded up to whole pages.
    pub fn new(size: u64) -> Self {
        let pages = usize::try_from(size).unwrap_or_default().div_ceil(PAGE);
        Self {
            pages: vec![None; pages],
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Returns bytes from an offset on; fewer at the end of the disk.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for (page, from, to) in spans(offset, length) {
            match self.pages.get(page) {
                Some(Some(page)) => bytes.extend_from_slice(&page[from..to]),
                Some(None) => bytes.resize(bytes.len() + to - from, 0),
                None => break,
            }
        }
        bytes
    }

    /// Reads it from a file. Errors: the file cannot be read.
    pub fn load(path: &Path) -> Outcome<Self> {
        let bytes = std::fs::read(path)?;
        let mut image = Self::new(bytes.len() as u64);
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                image.write((number * PAGE) as u64, page);
            }
        }
        Ok(image)
    }

    /// Writes it to a file, with holes where nothing was ever written. Errors: the file cannot be written.
    pub fn save(&self, path: &Path) -> Outcome {
        let file = File::create(path)?;
        file.set_len(self.size())?;
        for (number, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                file.write_all_at(page.as_slice(), (number * PAGE) as u64)?;
            }
        }
        Ok(())
    }

    /// Replaces bytes from an offset on; what lies behind the end of the disk is dropped.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        for (page, from, to) in spans(offset, bytes.len()) {
            let (now, rest) = bytes.split_at(to - from);
            if let Some(page) = self.pages.get_mut(page) {
                let page = page.get_or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[from..to].copy_from_slice(now);
            }
            bytes = rest;
        }
    }
}

/// Splits a range of bytes at the borders of pages: page, first byte in it, end in it.
fn spans(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(length);
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at % PAGE;
        let to = PAGE.min(from + (end - at));
        let span = (at / PAGE, from, to);
        let more = at < end;
        at += to - from;
        more.then_some(span)
    })
}

/// One thing that happened to a disk.
#[derive(Clone, Debug)]
pub enum Act {
    /// Bytes were written and answered.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A flush was answered: everything before it is on the medium.
    Flush,
}

/// What becomes of the writes that no flush followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// All of them arrived, up to the cut.
    Nothing,
    /// None arrived.
    Everything,
    /// Each block of 4 KiB arrived or did not: late writes may have overtaken early ones.
    Blocks,
    /// Each sector of 512 bytes arrived or did not: blocks are torn as well.
    Sectors,
}

/// One power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// How many acts of the log had happened.
    pub at: usize,
    /// What became of those that were not flushed.
    pub loss: Loss,
    /// Decides about each block or sector.
    pub seed: u64,
}

/// Makes the images after cuts of one recording, cheapest when they come in the order of time.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    start: Image,
    log: &'a [Act],
    synced: Image,
    applied: usize,
}

impl<'a> Replay<'a> {
    /// Begins with what the disk held before the first act.
    pub fn new(start: Image, log: &'a [Act]) -> Self {
        Self {
            synced: start.clone(),
            start,
            log,
            applied: 0,
        }
    }

    /// Returns what the disk holds after a cut.
    pub fn after(&mut self, cut: Cut) -> Image {
        let past = &self.log[..cut.at.min(self.log.len())];
        let flushed = past
            .iter()
            .rposition(|act| matches!(act, Act::Flush))
            .map_or(0, |flush| flush + 1);
        if flushed < self.applied {
            self.synced = self.start.clone();
            self.applied = 0;
        }
        for act in &past[self.applied..flushed] {
            apply(&mut self.synced, act, Loss::Nothing, &mut Random::new(0, 0));
        }
        self.applied = flushed;
        let mut image = self.synced.clone();
        let mut chance = Random::new(cut.seed, 0);
        for act in &past[flushed..] {
            apply(&mut image, act, cut.loss, &mut chance);
        }
        image
    }
}

fn apply(image: &mut Image, act: &Act, loss: Loss, chance: &mut Random) {
    let Act::Write { offset, bytes } = act else {
        return;
    };
    let unit = match loss {
        Loss::Nothing => return image.write(*offset, bytes),
        Loss::Everything => return,
        Loss::Blocks => PAGE,
        Loss::Sectors => SECTOR,
    };
    let mut at = *offset;
    for part in bytes.chunks(unit) {
        if chance.below(2) == 0 {
            image.write(at, part);
        }
        at += part.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, bytes: &[u8]) -> Act {
        Act::Write {
            offset,
            bytes: bytes.into(),
        }
    }

    fn after(log: &[Act], at: usize, loss: Loss, seed: u64) -> Vec<u8> {
        let cut = Cut { at, loss, seed };
        let image = Replay::new(Image::new(8192), log).after(cut);
        image.read(0, 8192)
    }

    #[test]
    fn bytes_are_read_back_across_the_borders_of_pages() {
        let mut image = Image::new(10_000);
        assert_eq!(image.size(), 12_288);
        image.write(4090, b"twelve bytes");
        assert_eq!(image.read(4088, 16), b"\0\0twelve bytes\0\0");
        let copy = image.clone();
        image.write(4090, b"T");
        assert_eq!(copy.read(4090, 1), b"t");
        assert_eq!(image.read(12_280, 100).len(), 8, "the end of the disk");
    }

    #[test]
    fn an_image_that_was_saved_is_loaded_again() -> Outcome {
        let file = tempfile::NamedTempFile::new()?;
        let mut image = Image::new(1 << 20);
        image.write(70_000, b"text");
        image.save(file.path())?;
        let again = Image::load(file.path())?;
        assert_eq!(again.size(), image.size());
        assert_eq!(again.read(69_999, 6), b"\0text\0");
        Ok(())
    }

    #[test]
    fn what_was_flushed_is_there_after_every_cut_and_what_came_later_may_be() {
        let log = [write(0, b"kept"), Act::Flush, write(4, b"maybe")];
        for loss in [Loss::Nothing, Loss::Everything, Loss::Blocks, Loss::Sectors] {
            for seed in 0..20 {
                assert!(after(&log, 3, loss, seed).starts_with(b"kept"));
            }
        }
        assert!(after(&log, 3, Loss::Nothing, 0).starts_with(b"keptmaybe"));
        assert!(after(&log, 2, Loss::Nothing, 0).starts_with(b"kept\0"));
        assert!(after(&log, 3, Loss::Everything, 0).starts_with(b"kept\0"));
        let mut seen: Vec<_> = (0..20)
            .map(|seed| after(&log, 3, Loss::Blocks, seed))
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 2, "sometimes there and sometimes not");
    }

    #[test]
    fn a_block_is_torn_only_where_that_was_asked_for() {
        let log = [write(0, &[7; PAGE])];
        let torn = |loss| {
            (0..20).any(|seed| {
                let bytes = after(&log, 1, loss, seed);
                bytes[..PAGE].contains(&0) && bytes[..PAGE].contains(&7)
            })
        };
        assert!(!torn(Loss::Blocks) && torn(Loss::Sectors));
    }

    #[test]
    fn the_same_cut_gives_the_same_image_in_any_order() {
        let log = [
            write(0, &[1; 600]),
            Act::Flush,
            write(600, &[2; 6000]),
            Act::Flush,
            write(0, &[3; 8192]),
        ];
        let cuts = [5, 1, 4, 2, 3].map(|at| Cut {
            at,
            loss: Loss::Sectors,
            seed: 11,
        });
        let mut one = Replay::new(Image::new(8192), &log);
        for cut in cuts {
            let mut other = Replay::new(Image::new(8192), &log);
            let (this, that) = (one.after(cut), other.after(cut));
            assert_eq!(this.read(0, 8192), that.read(0, 8192), "{cut:?}");
        }
    }
}
