//! Makes a layer from the difference of two snapshots.

use crate::apply::Watch;
use crate::archive::{Entry, Kind, Time, writer::Writer, writer::plain};
use crate::changes::{self, Change, Changes};
use crate::error::{Doing, Error, Result};
use crate::mounts::{self, Layers};
use crate::stream::Compression;
use crate::{attributes, name, root, view, whiteout};
use contracts::Mount;
use rustix::fs::{FileType, Stat};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes moved at once.
const BUFFER: usize = 128 << 10;
/// Level of gzip: what Go's default is, from which most layers come.
const GZIP: u32 = 6;
/// Level of zstd: its own default.
const ZSTD: i32 = 3;

/// What a comparison gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// SHA-256 of the uncompressed tar, `sha256:…`.
    pub diff_id: String,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Entries in it.
    pub entries: u64,
}

/// Writes the layer that makes `lower` (nothing, when empty) into `upper`.
///
/// The same trees always give the same bytes. When `upper` is an overlay on just the directories of `lower`, only its
/// upper directory is read; otherwise both trees are. Left out: sockets, and files named like whiteouts. Extended
/// attributes travel, but those of overlayfs and SELinux, which belong to this machine.
/// Errors: `Unsupported` mounts; `Entry` names the file that could not be read; `Source` when `to` fails; `Cancelled`.
/// Source: OCI image-spec, layer.md, "Change Types".
pub fn compare(
    lower: &[Mount],
    upper: &[Mount],
    to: impl Write,
    compression: Compression,
    watch: &Arc<Watch>,
) -> Result<Compared> {
    let (changes, source) = difference(lower, upper)?;
    let writer = Writer::new(BufWriter::with_capacity(
        BUFFER,
        Hashing::new(Encoder::new(to, compression)?),
    ));
    let mut layer = Layer {
        writer,
        source,
        firsts: HashMap::new(),
        entries: 0,
        watch,
    };
    layer.root(lower)?;
    for (path, change) in changes.iter() {
        layer
            .change(&path, change)
            .map_err(|error| error.entry(&path))?;
    }
    layer.finish()
}

fn difference(lower: &[Mount], upper: &[Mount]) -> Result<(Changes, OwnedFd)> {
    if let Some(found) = upper_alone(lower, upper)? {
        return Ok(found);
    }
    let below = if lower.is_empty() {
        None
    } else {
        Some(view::view(lower)?)
    };
    let above = view::view(upper)?;
    Ok((changes::between(below.as_ref(), &above)?, above))
}

/// The upper directory is the difference, when what is below it is what it is compared with.
fn upper_alone(lower: &[Mount], upper: &[Mount]) -> Result<Option<(Changes, OwnedFd)>> {
    let above = Layers::of(upper)?;
    let Some(dir) = above.upper.as_ref().filter(|_| !lower.is_empty()) else {
        return Ok(None);
    };
    let below = Layers::of(lower)?;
    if below.upper.is_some() || below.lowers != above.lowers {
        return Ok(None);
    }
    let dir = mounts::directory(dir)?;
    Ok(changes::of_upper(&dir)?.map(|changes| (changes, dir)))
}

struct Layer<'a, W: Write> {
    writer: Writer<BufWriter<Hashing<Encoder<W>>>>,
    source: OwnedFd,
    /// The first name of each file that has several.
    firsts: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    watch: &'a Watch,
}

impl<W: Write> Layer<'_, W> {
    /// The root has an entry only when its looks changed; its times always do.
    fn root(&mut self, lower: &[Mount]) -> Result<()> {
        let look = |dir: &OwnedFd| -> Result<_> {
            let stat = rustix::fs::fstat(dir).doing("look at the root")?;
            Ok((stat.st_mode, stat.st_uid, stat.st_gid, xattrs(dir)?))
        };
        if lower.is_empty() || look(&view::view(lower)?)? == look(&self.source)? {
            return Ok(());
        }
        self.present(b"")
    }

    fn change(&mut self, path: &[u8], change: Change) -> Result<()> {
        if self.watch.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match change {
            Change::Deleted => self.header(&plain(whiteout::of(path))),
            Change::Present => self.present(path),
            Change::Opaque => {
                self.present(path)?;
                self.header(&plain(whiteout::opaque(path)))
            }
        }
    }

    fn header(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        self.watch.entries.store(self.entries, Ordering::Relaxed);
        self.writer.entry(entry).map_err(Error::Source)
    }

    fn present(&mut self, path: &[u8]) -> Result<()> {
        let there = root::open(&self.source, path, root::LOOK).doing("open")?;
        let stat = rustix::fs::fstat(&there).doing("look")?;
        let mut entry = describe(path, &stat, xattrs(&there)?)?;
        if stat.st_nlink > 1 && entry.kind != Kind::Dir {
            match self.firsts.get(&(stat.st_dev, stat.st_ino)) {
                Some(first) => {
                    let link = Entry {
                        kind: Kind::Hardlink,
                        link: first.clone(),
                        size: 0,
                        xattrs: Vec::new(),
                        ..entry
                    };
                    return self.header(&link);
                }
                None => self
                    .firsts
                    .insert((stat.st_dev, stat.st_ino), path.to_vec()),
            };
        }
        if entry.kind == Kind::Symlink {
            entry.link = rustix::fs::readlinkat(&there, c"", Vec::new())
                .doing("read the link")?
                .into_bytes();
        }
        self.header(&entry)?;
        match entry.kind {
            Kind::File if entry.size > 0 => self.data(&there, entry.size),
            _ => Ok(()),
        }
    }

    /// Writes exactly the bytes that the header announced.
    fn data(&mut self, there: &OwnedFd, size: u64) -> Result<()> {
        let changed =
            || Error::Refused("changed while it was read, pause the container first".to_owned());
        let mut file = view::regular(there)
            .doing("open")?
            .ok_or_else(changed)?
            .take(size);
        let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
        let mut left = size;
        while left > 0 {
            let length = file.read(&mut buffer).doing("read")?;
            if length == 0 {
                return Err(changed());
            }
            self.writer.data(&buffer[..length]).map_err(Error::Source)?;
            left -= length as u64;
            self.watch.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        self.writer.pad(size).map_err(Error::Source)
    }

    fn finish(self) -> Result<Compared> {
        let buffered = self.writer.finish().map_err(Error::Source)?;
        let hashing = buffered
            .into_inner()
            .map_err(|error| Error::Source(error.into_error()))?;
        let diff_id = name::digest(&hashing.hash.finalize().into());
        hashing.to.finish().map_err(Error::Source)?;
        Ok(Compared {
            diff_id,
            size: hashing.size,
            entries: self.entries,
        })
    }
}

fn describe(path: &[u8], stat: &Stat, xattrs: attributes::Xattrs) -> Result<Entry> {
    let kind = match root::file_type(stat) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        other => return Err(Error::Refused(format!("{other:?} has no place in a layer"))),
    };
    let name = match (kind, path.is_empty()) {
        (_, true) => b"./".to_vec(),
        (Kind::Dir, _) => [path, b"/"].concat(),
        _ => path.to_vec(),
    };
    let device = match kind {
        Kind::Char | Kind::Block => (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ),
        _ => (0, 0),
    };
    Ok(Entry {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time {
            seconds: stat.st_mtime,
            nanos: stat.st_mtime_nsec as u32,
        },
        size: if kind == Kind::File {
            stat.st_size as u64
        } else {
            0
        },
        device,
        xattrs,
        ..plain(name)
    })
}

fn xattrs(there: &OwnedFd) -> Result<attributes::Xattrs> {
    let mut xattrs = attributes::xattrs(there).doing("read xattrs")?;
    xattrs.retain(|(name, _)| !attributes::of_overlay(name) && name != b"security.selinux");
    Ok(xattrs)
}

/// Hashes what passes through.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            size: 0,
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

enum Encoder<W: Write> {
    None(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    fn new(to: W, compression: Compression) -> Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(to),
            Compression::Gzip => Self::Gzip(Box::new(flate2::write::GzEncoder::new(
                to,
                flate2::Compression::new(GZIP),
            ))),
            Compression::Zstd => {
                Self::Zstd(zstd::stream::write::Encoder::new(to, ZSTD).map_err(Error::Source)?)
            }
        })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::None(mut to) => to.flush(),
            Self::Gzip(encoder) => encoder.finish()?.flush(),
            Self::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(to) => to.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(to) => to.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
