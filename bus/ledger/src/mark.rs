//! What is known of a store's file beside the file: that it was made, and how far it had come.
//!
//! ```text
//! <name>.redb.born
//!   0..512      the life of the file: epoch, seed, schema; on disk before the first write is answered
//!   512..1024   the last commit that was on disk, and how far the log had its events; not synced
//! ```
//!
//! Each half is one line of text with a checksum, and lies in a sector of its own. The second half is written after the
//! commit that it names is on disk: it may be old after a power cut, and never says too much. A file that has less than
//! its mark says was damaged or replaced, whatever it looks like.

use crate::Fault;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of each half.
const HALF: usize = 512;
const LIFE: &str = "gantry store 1";
const PROGRESS: &str = "gantry progress 1";

/// What never changes while a file lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Names this life of the file: a rebuilt one gets another.
    pub(crate) epoch: u64,
    /// Seed of its checksums.
    pub(crate) seed: u64,
    /// Version of the store's tables.
    pub(crate) schema: u64,
}

/// How far the file had come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last commit that was on disk.
    pub(crate) commit: u64,
    /// The last number of its outbox that the log has.
    pub(crate) delivered: u64,
}

/// What the mark of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) life: Life,
    pub(crate) progress: Progress,
}

/// The open mark of a file.
#[derive(Debug)]
pub(crate) struct Marker {
    file: File,
    epoch: u64,
}

/// The mark's path, for a store's file.
pub(crate) fn path_of(store: &Path) -> PathBuf {
    with_suffix(store, ".born")
}

/// `x.redb` and `.born` make `x.redb.born`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads the mark of `store`; `None` when there is none, or none that can be read as one.
pub(crate) fn read(store: &Path) -> Result<Option<Mark>, Fault> {
    let path = path_of(store);
    let mut bytes = Vec::new();
    let opened = options().read(true).open(&path);
    let read = opened.and_then(|file| file.take(2 * HALF as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(parse(&bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Fault::io(&path, &e)),
    }
}

fn parse(bytes: &[u8]) -> Option<Mark> {
    let [epoch, seed, schema] = numbers(bytes.get(..HALF)?, LIFE)?;
    let progress = bytes.get(HALF..).and_then(|half| numbers(half, PROGRESS));
    let progress = match progress {
        Some([of, commit, delivered]) if of == epoch => Progress { commit, delivered },
        _ => Progress::default(),
    };
    let life = Life {
        epoch,
        seed,
        schema,
    };
    Some(Mark { life, progress })
}

/// A line: what it is, three numbers, a checksum of all before.
fn line(what: &str, [a, b, c]: [u64; 3]) -> Vec<u8> {
    let text = format!("{what} {a} {b} {c} ");
    let mut line = format!("{text}{:016x}\n", xxh3_64(text.as_bytes())).into_bytes();
    line.resize(HALF, 0);
    line
}

fn numbers(half: &[u8], what: &str) -> Option<[u64; 3]> {
    let end = half.iter().position(|&byte| byte == b'\n')?;
    let text = std::str::from_utf8(&half[..end]).ok()?;
    let rest = text.strip_prefix(what)?.strip_prefix(' ')?;
    let mut words = rest.split(' ').map(|word| word.parse().ok());
    let three = [words.next()??, words.next()??, words.next()??];
    (line(what, three).get(..=end)? == &half[..=end]).then_some(three)
}

impl Marker {
    /// Makes the mark of `store`, or makes it anew, and sees to it that it and the store's name are on disk.
    pub(crate) fn create(store: &Path, mark: &Mark) -> Result<Self, Fault> {
        let path = path_of(store);
        let made = || -> std::io::Result<File> {
            let folder = store.parent().unwrap_or(Path::new("/"));
            let new = with_suffix(&path, ".new");
            let _ = std::fs::remove_file(&new);
            let mut options = options();
            let file = options.read(true).write(true).create_new(true).open(&new)?;
            own(&file, folder)?;
            file.write_all_at(&line(LIFE, mark.life.numbers()), 0)?;
            file.write_all_at(&progress(mark.life.epoch, mark.progress), HALF as u64)?;
            file.sync_all()?;
            // The name of the store before the name of its mark: a mark without its store is damage.
            File::open(folder)?.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()?;
            Ok(file)
        };
        let file = made().map_err(|e| Fault::io(&path, &e))?;
        Ok(Self {
            file,
            epoch: mark.life.epoch,
        })
    }

    /// Opens the mark that there is.
    pub(crate) fn open(store: &Path, mark: &Mark) -> Result<Self, Fault> {
        let path = path_of(store);
        let file = options().write(true).open(&path);
        Ok(Self {
            file: file.map_err(|e| Fault::io(&path, &e))?,
            epoch: mark.life.epoch,
        })
    }

    /// Notes what is on disk now. A note that is not made only makes the mark older.
    pub(crate) fn note(&self, now: Progress) {
        let line = progress(self.epoch, now);
        if let Err(error) = self.file.write_all_at(&line, HALF as u64) {
            tracing::debug!(%error, "the mark of a store is not written");
        }
    }
}

impl Life {
    fn numbers(self) -> [u64; 3] {
        [self.epoch, self.seed, self.schema]
    }
}

fn progress(epoch: u64, progress: Progress) -> Vec<u8> {
    line(PROGRESS, [epoch, progress.commit, progress.delivered])
}

/// How the files of a store are opened: root looks at folders whose owner may have put anything into them, so that no
/// link leads away from there, and a pipe keeps nobody waiting.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Gives a file that root makes to the owner of its folder.
pub(crate) fn own(file: &File, folder: &Path) -> std::io::Result<()> {
    let (wanted, is) = (std::fs::metadata(folder)?, file.metadata()?);
    if rustix::process::geteuid().is_root() && (wanted.uid(), wanted.gid()) != (is.uid(), is.gid())
    {
        fchown(file, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark {
        life: Life {
            epoch: 3,
            seed: u64::MAX,
            schema: 1,
        },
        progress: Progress {
            commit: 8,
            delivered: 5,
        },
    };

    #[test]
    fn a_mark_says_what_was_noted_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("x.redb");
        assert_eq!(read(&store).unwrap(), None);
        let marker = Marker::create(&store, &MARK).unwrap();
        assert_eq!(read(&store).unwrap(), Some(MARK));
        let now = Progress {
            commit: 9,
            delivered: 9,
        };
        marker.note(now);
        let noted = read(&store).unwrap().unwrap();
        assert_eq!((noted.life, noted.progress), (MARK.life, now));
    }

    #[test]
    fn a_mark_is_made_in_its_own_folder_whatever_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (store, other) = (dir.path().join("x.redb"), dir.path().join("precious"));
        std::fs::write(&other, "precious").unwrap();
        let new = with_suffix(&path_of(&store), ".new");
        std::os::unix::fs::symlink(&other, &new).unwrap();
        Marker::create(&store, &MARK).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"precious");
        assert_eq!(read(&store).unwrap(), Some(MARK));
        std::fs::remove_file(path_of(&store)).unwrap();
        std::os::unix::fs::symlink(&other, path_of(&store)).unwrap();
        assert!(Marker::open(&store, &MARK).is_err() && read(&store).is_err());
    }

    #[test]
    fn a_torn_note_is_no_note_and_a_torn_life_is_no_mark() {
        let mut bytes = line(LIFE, MARK.life.numbers());
        bytes.extend(progress(3, MARK.progress));
        assert_eq!(parse(&bytes), Some(MARK));
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            match parse(&torn) {
                Some(mark) => assert_eq!(mark.life, MARK.life, "byte {at}"),
                None => assert!(at < HALF, "byte {at}"),
            }
        }
        let other = line(PROGRESS, [4, 8, 5]);
        bytes[HALF..].copy_from_slice(&other);
        let progress = parse(&bytes).unwrap().progress;
        assert_eq!(progress, Progress::default(), "of another life");
    }
}
