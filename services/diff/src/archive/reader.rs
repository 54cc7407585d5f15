//! Reads an archive entry by entry. Accepts what Go's archive/tar accepts, for that is what made most layers.

use super::header::{Dialect, Header, text};
use super::{BLOCK, Entry, Kind, MAX_SPECIAL, Time, pax, sparse};
use crate::error::{Error, Result, shown};
use std::io::BufRead;

/// An archive being read. Data that the caller leaves unread is skipped.
pub(crate) struct Reader<R> {
    from: R,
    offset: u64,
    /// Data of the current entry not yet read.
    data: u64,
    /// Zero bytes behind that data up to the next block.
    padding: u64,
}

/// Headers that describe the entry behind them.
#[derive(Default)]
struct Pending {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<pax::Records>,
}

impl Pending {
    fn any(&self) -> bool {
        self.name.is_some() || self.link.is_some() || self.pax.is_some()
    }
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            offset: 0,
            data: 0,
            padding: 0,
        }
    }

    /// Gives the stream back, to read what follows the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.from
    }

    /// Moves to the next entry; none at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut pending = Pending::default();
        loop {
            self.skip_rest()?;
            let at = self.offset;
            let malformed = |what: String| Error::Malformed { offset: at, what };
            let Some(block) = self.block()? else {
                return if pending.any() {
                    Err(Error::Truncated("archive"))
                } else {
                    Ok(None)
                };
            };
            if block.iter().all(|byte| *byte == 0) {
                return self.end(pending.any());
            }
            let header = Header::checked(&block).map_err(malformed)?;
            let size = header
                .size()
                .and_then(|n| u64::try_from(n).map_err(|_| "negative size".to_owned()));
            match header.typeflag() {
                b'x' => {
                    let records = self.special(size.map_err(malformed)?)?;
                    pending.pax = Some(pax::Records::parse(&records).map_err(malformed)?);
                }
                b'g' => self.follow(size.map_err(malformed)?),
                b'L' => {
                    pending.name = Some(text(&self.special(size.map_err(malformed)?)?).to_vec())
                }
                b'K' => {
                    pending.link = Some(text(&self.special(size.map_err(malformed)?)?).to_vec())
                }
                _ => return self.entry(&header, pending).map(Some),
            }
        }
    }

    /// Hands the next `length` bytes of data to `sink` in slices, without copying them.
    pub(crate) fn copy(
        &mut self,
        mut length: u64,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if length > self.data {
            return Err(Error::Truncated("archive"));
        }
        while length > 0 {
            let bytes = self.from.fill_buf()?;
            if bytes.is_empty() {
                return Err(Error::Truncated("archive"));
            }
            let some = bytes
                .len()
                .min(usize::try_from(length).unwrap_or(usize::MAX));
            sink(&bytes[..some])?;
            self.from.consume(some);
            self.offset += some as u64;
            self.data -= some as u64;
            length -= some as u64;
        }
        Ok(())
    }

    /// A lone zero block ends an archive only when nothing follows it.
    fn end(&mut self, pending: bool) -> Result<Option<Entry>> {
        let at = self.offset;
        match self.block()? {
            _ if pending => Err(Error::Truncated("archive")),
            Some(block) if block.iter().any(|byte| *byte != 0) => Err(Error::Malformed {
                offset: at,
                what: "a header follows a lone zero block".to_owned(),
            }),
            _ => Ok(None),
        }
    }

    /// The next block, or none when the stream ends just before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let bytes = self.from.fill_buf()?;
            match bytes.len().min(BLOCK - have) {
                0 if have == 0 => return Ok(None),
                0 => return Err(Error::Truncated("archive")),
                some => {
                    block[have..have + some].copy_from_slice(&bytes[..some]);
                    self.from.consume(some);
                    have += some;
                }
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    fn follow(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<()> {
        self.copy(self.data, |_| Ok(()))?;
        self.data = std::mem::take(&mut self.padding);
        self.copy(self.data, |_| Ok(()))
    }

    /// The whole data of an extension header.
    fn special(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_SPECIAL {
            return Err(Error::Limit {
                what: "bytes in one extended header",
                most: MAX_SPECIAL,
            });
        }
        self.follow(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.copy(size, |some| {
            bytes.extend_from_slice(some);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn entry(&mut self, header: &Header<'_>, pending: Pending) -> Result<Entry> {
        let name = name(header, &pending);
        self.described(header, pending)
            .map_err(|error| error.entry(&name))
    }

    fn described(&mut self, header: &Header<'_>, pending: Pending) -> Result<Entry> {
        let mut entry = entry(header, &pending).map_err(Error::Refused)?;
        let pax = pending.pax.unwrap_or_default();
        self.follow(entry.size);
        entry.sparse = match header.typeflag() {
            b'S' => Some(self.gnu_map(header)?),
            _ if entry.kind == Kind::File => pax.sparse.map().map_err(Error::Refused)?,
            _ => None,
        };
        if let Some(map) = entry
            .sparse
            .as_mut()
            .filter(|_| header.typeflag() != b'S' && pax.sparse.map_in_data())
        {
            map.runs = self.leading_map()?;
        }
        entry.size = self.data;
        entry.sparse = entry
            .sparse
            .map(|map| map.checked(self.data))
            .transpose()
            .map_err(Error::Refused)?;
        entry.xattrs = pax.xattrs;
        Ok(entry)
    }

    /// Slots in the header, then in as many blocks as say that another follows.
    fn gnu_map(&mut self, header: &Header<'_>) -> Result<sparse::Map> {
        if header.dialect() != Dialect::Gnu {
            return Err(Error::Refused(
                "sparse entry without a GNU header".to_owned(),
            ));
        }
        let (slots, real_size, mut more) = header.gnu_sparse().map_err(Error::Refused)?;
        let mut runs = Vec::new();
        sparse::slots(slots, &mut runs).map_err(Error::Refused)?;
        while more {
            let block = self.block()?.ok_or(Error::Truncated("archive"))?;
            sparse::slots(&block[..504], &mut runs).map_err(Error::Refused)?;
            more = block[504] != 0;
        }
        Ok(sparse::Map { real_size, runs })
    }

    fn leading_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut lines = sparse::Lines::default();
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            self.copy(self.data.min(BLOCK as u64), |some| {
                block.extend_from_slice(some);
                Ok(())
            })?;
            if block.is_empty() {
                return Err(Error::Refused("sparse map is cut short".to_owned()));
            }
            if let Some(runs) = lines.block(&block).map_err(Error::Refused)? {
                return Ok(runs);
            }
        }
    }
}

fn name(header: &Header<'_>, pending: &Pending) -> Vec<u8> {
    let pax = pending.pax.as_ref();
    let sparse = pax.and_then(|pax| pax.sparse.name.clone());
    let long = pending
        .name
        .clone()
        .or(sparse)
        .or_else(|| pax.and_then(|pax| pax.path.clone()));
    long.unwrap_or_else(|| header.name())
}

fn entry(header: &Header<'_>, pending: &Pending) -> Result<Entry, String> {
    let pax = pending.pax.as_ref();
    let name = name(header, pending);
    let kind = kind(header, &name)?;
    let (major, minor) = header.device()?;
    let size = match kind {
        Kind::File => pax
            .and_then(|pax| pax.size)
            .map_or_else(|| unsigned("size", header.size()), Ok)?,
        // a size here is that of the file linked to; no data follows
        _ => 0,
    };
    let seconds = header.mtime()?;
    Ok(Entry {
        kind,
        link: pending
            .link
            .clone()
            .or_else(|| pax.and_then(|pax| pax.linkpath.clone()))
            .unwrap_or_else(|| header.link()),
        mode: (header.mode()? & 0o7777) as u32,
        uid: id(
            "uid",
            pax.and_then(|pax| pax.uid)
                .map_or_else(|| header.uid(), Ok)?,
        )?,
        gid: id(
            "gid",
            pax.and_then(|pax| pax.gid)
                .map_or_else(|| header.gid(), Ok)?,
        )?,
        mtime: pax
            .and_then(|pax| pax.mtime)
            .unwrap_or(Time { seconds, nanos: 0 }),
        atime: pax.and_then(|pax| pax.atime),
        size,
        device: (id("device major", major)?, id("device minor", minor)?),
        xattrs: Vec::new(),
        sparse: None,
        name,
    })
}

fn kind(header: &Header<'_>, name: &[u8]) -> Result<Kind, String> {
    Ok(match header.typeflag() {
        0 if name.ends_with(b"/") => Kind::Dir,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        other => return Err(format!("type {:?} is not known in layers", shown(&[other]))),
    })
}

fn unsigned(what: &str, value: Result<i64, String>) -> Result<u64, String> {
    let value = value?;
    u64::try_from(value).map_err(|_| format!("{what} {value} is negative"))
}

/// Ids and device numbers are 32 bits wide; the highest means "leave as it is" to the kernel, so it names nobody.
fn id(what: &str, value: i64) -> Result<u32, String> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("{what} {value} is out of range")),
    }
}
