//! Applies one layer: inflates, hashes and extracts it in one pass over its bytes.

use crate::archive::reader::Reader;
use crate::error::{Doing, Error, Result};
use crate::extract::Extractor;
use crate::growing::Growth;
use crate::name;
use crate::settle;
use crate::stream::{self, Compression, Tap};
use crate::tree::Whiteouts;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What bounds a hostile layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Entries in it.
    pub entries: u64,
}

impl Default for Limits {
    /// 1 TiB and 16 million entries: above every honest layer seen, below what exhausts memory here.
    fn default() -> Self {
        Self {
            bytes: 1 << 40,
            entries: 16 << 20,
        }
    }
}

/// Lets others see how far a running [`apply`] is, and stop it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Uncompressed bytes so far.
    pub bytes: AtomicU64,
    /// Entries so far.
    pub entries: AtomicU64,
    /// Set it to make the work end with `Cancelled`, at the latest when its source yields the next bytes.
    pub cancelled: AtomicBool,
}

/// How a layer is applied.
#[derive(Clone, Debug)]
pub struct Options {
    /// How deletions are put into effect.
    pub whiteouts: Whiteouts,
    /// What bounds it.
    pub limits: Limits,
    /// Who may look.
    pub watch: Arc<Watch>,
    /// The growth of the source, when it has one: is told when extraction fails, so that nobody waits for more bytes.
    pub source: Option<Arc<Growth>>,
}

impl Options {
    /// The usual limits, nobody watching.
    pub fn new(whiteouts: Whiteouts) -> Self {
        Self {
            whiteouts,
            limits: Limits::default(),
            watch: Arc::default(),
            source: None,
        }
    }
}

/// What a layer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// SHA-256 of the whole uncompressed stream, `sha256:…`.
    pub diff_id: String,
    /// Bytes of the uncompressed stream.
    pub size: u64,
    /// Entries in the archive.
    pub entries: u64,
    /// What [`crate::settle`] needs: directories without an entry of their own, parents first. `%XX` stands for bytes
    /// that are not UTF-8 and for `%`; a lone `%` says that more directories are marked where they are.
    pub implied: Vec<String>,
    /// Extended attributes that the file system cannot hold, and that were left out as containerd does.
    pub skipped_xattrs: usize,
}

/// Extracts a layer beneath `root`, which may be an `O_PATH` descriptor; `stated` is what its media type says.
///
/// Inflates in the calling thread, hashes and extracts in another one, which has a umask of its own. Nothing is flushed:
/// call [`crate::sync`]. After an error the snapshot holds part of the layer and must be thrown away.
/// Errors: `Entry` names the entry that failed; `Truncated`, `Damaged`, `Malformed`, `Source` for the stream; `Limit`.
/// Source: OCI image-spec, layer.md, "Applying Changesets".
pub fn apply(
    source: impl Read,
    stated: Compression,
    root: BorrowedFd<'_>,
    options: &Options,
) -> Result<Applied> {
    let watch = options.watch.clone();
    let seen = move |size| {
        watch.bytes.store(size, Ordering::Relaxed);
        !watch.cancelled.load(Ordering::Relaxed)
    };
    let (pump, tap) = stream::channel(options.limits.bytes, Box::new(seen));
    std::thread::scope(|scope| {
        let work = std::thread::Builder::new().name("extract".to_owned());
        let extracted = work
            .spawn_scoped(scope, || {
                let done = extract(tap, root, options);
                if let (Err(_), Some(source)) = (&done, &options.source) {
                    source.fail("the extraction has failed");
                }
                done
            })
            .doing("start a thread")?;
        match stream::decoder(source, stated) {
            Ok(decoder) => pump.run(decoder),
            Err(error) => pump.fail(error),
        }
        extracted
            .join()
            .unwrap_or_else(|_| Err(Error::Refused("the extracting thread panicked".to_owned())))
    })
}

fn extract(tap: Tap, root: BorrowedFd<'_>, options: &Options) -> Result<Applied> {
    // modes must come out as the archive says, and the umask of the process is not ours to change
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
        .doing("give the thread a umask of its own")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut extractor = Extractor::new(root, options.whiteouts)?;
    let mut reader = Reader::new(tap);
    let mut entries = 0;
    while let Some(entry) = reader.next()? {
        entries += 1;
        if entries > options.limits.entries {
            return Err(Error::Limit {
                what: "entries",
                most: options.limits.entries,
            });
        }
        options.watch.entries.store(entries, Ordering::Relaxed);
        extractor
            .entry(&entry, &mut reader)
            .map_err(|error| error.entry(&entry.name))?;
    }
    // what follows the end of the archive belongs to the diff id
    let (hash, size) = reader.into_inner().finish()?;
    let done = extractor.finish()?;
    let more = done.marked.then(|| settle::MORE.to_owned());
    let implied = done
        .implied
        .iter()
        .map(|path| name::escape(path))
        .chain(more)
        .collect();
    Ok(Applied {
        diff_id: name::digest(&hash),
        size,
        entries,
        implied,
        skipped_xattrs: done.skipped_xattrs,
    })
}
