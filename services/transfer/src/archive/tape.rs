//! Tar entries one after another, as little as images need, with nothing a stranger's archive can use.
//!
//! Headers are interpreted here and not by the tar crate's own iterator, which reads long names into memory without a
//! bound. Source: POSIX pax interchange format; GNU tar manual, "Basic Tar Format".

use contracts::{Code, Error, Result};
use std::io::{self, Read};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Longest extended header, in bytes; a path has at most 4096.
const MAX_EXTENSION: u64 = 64 << 10;
/// Longest path, in bytes.
const MAX_PATH: usize = 4096;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of all entries together.
    pub(crate) bytes: u64,
    /// Number of entries.
    pub(crate) entries: u64,
}

/// One file or link of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, without `.` and `..`.
    pub(crate) path: String,
    /// Bytes that follow.
    pub(crate) size: u64,
    /// For a link: the path it leads to, relative to the archive's root.
    pub(crate) link: Option<String>,
}

/// Reads entries; reading from it gives the bytes of the current one.
pub(crate) struct Tape<R> {
    source: R,
    limits: Limits,
    left: u64,
    padding: u64,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Tape<R> {
    pub(crate) fn new(source: R, limits: Limits) -> Self {
        Self {
            source,
            limits,
            left: 0,
            padding: 0,
        }
    }

    /// Goes to the next file or link; directories and devices are passed over.
    ///
    /// Errors: `InvalidArgument` naming the entry; `ResourceExhausted` past a limit.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = match extended.size {
                Some(size) => size,
                None => header.entry_size().map_err(|error| malformed(&error))?,
            };
            self.count(&header, size)?;
            match header.entry_type() {
                EntryType::XHeader => self.pax(&mut extended)?,
                EntryType::GNULongName => extended.path = Some(self.text()?),
                EntryType::GNULongLink => extended.link = Some(self.text()?),
                EntryType::XGlobalHeader => drop(self.text()?),
                EntryType::GNUSparse => {
                    return Err(self.refused(
                        &header,
                        &extended,
                        "is sparse; write the archive without holes",
                    ));
                }
                kind => match self.entry(&header, &extended, kind, size)? {
                    Some(entry) => return Ok(Some(entry)),
                    None => extended = Extended::default(),
                },
            }
        }
    }

    fn entry(
        &self,
        header: &Header,
        extended: &Extended,
        kind: EntryType,
        size: u64,
    ) -> Result<Option<Entry>> {
        let file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        if !file && !kind.is_symlink() && !kind.is_hard_link() {
            return Ok(None);
        }
        let raw = extended
            .path
            .clone()
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let path = inside("", &raw)?;
        let target = || {
            extended
                .link
                .clone()
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
        };
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let link = match (kind.is_symlink(), kind.is_hard_link()) {
            (true, _) => Some(inside(folder, &target().unwrap_or_default())?),
            (_, true) => Some(inside("", &target().unwrap_or_default())?),
            _ => None,
        };
        Ok(Some(Entry { path, size, link }))
    }

    /// Counts an entry against the limits before a byte of it is read.
    fn count(&mut self, header: &Header, size: u64) -> Result<()> {
        let special = header.entry_type().is_pax_local_extensions()
            || header.entry_type().is_pax_global_extensions()
            || header.entry_type().is_gnu_longname()
            || header.entry_type().is_gnu_longlink();
        if special && size > MAX_EXTENSION {
            return Err(Error::invalid(format!(
                "archive: extended header of {size} bytes is too long"
            )));
        }
        let entries = self.limits.entries.checked_sub(1);
        let bytes = self.limits.bytes.checked_sub(size);
        let (Some(entries), Some(bytes)) = (entries, bytes) else {
            let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            return Err(Error::exhausted(format!(
                "archive: entry {name:?} of {size} bytes is past the limit of an import; raise max_import_bytes of transfer if that is right"
            )));
        };
        self.limits = Limits { bytes, entries };
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Ok(())
    }

    /// Reads the next header; `None` at the end, which two empty blocks or the end of input mark.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(Error::invalid(
                        "archive: ends within a header; it was cut off",
                    ));
                }
                Ok(count) => filled += count,
                Err(error) => return Err(unreadable(&error)),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            // What stands behind the end is padding; a pipe's writer wants to get rid of it.
            io::copy(&mut (&mut self.source).take(1 << 20), &mut io::sink())
                .map_err(|error| unreadable(&error))?;
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(Error::invalid(
                "archive: is not a tar archive, plain, gzip or zstd, or it is damaged",
            ));
        }
        Ok(Some(header))
    }

    fn skip(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())
            .map_err(|error| unreadable(&error))?;
        if skipped < rest {
            return Err(Error::invalid(
                "archive: ends within an entry; it was cut off",
            ));
        }
        Ok(())
    }

    /// Reads the current entry, a short one, whole.
    fn text(&mut self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        io::Read::read_to_end(self, &mut text).map_err(|error| unreadable(&error))?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn pax(&mut self, extended: &mut Extended) -> Result<()> {
        let text = self.text()?;
        for record in tar::PaxExtensions::new(&text) {
            let record = record.map_err(|error| malformed(&error))?;
            let value = record.value_bytes().to_vec();
            match record.key_bytes() {
                b"path" => extended.path = Some(value),
                b"linkpath" => extended.link = Some(value),
                b"size" => {
                    let size = std::str::from_utf8(&value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    extended.size = Some(
                        size.ok_or_else(|| Error::invalid("archive: pax size is not a number"))?,
                    );
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(Error::invalid(
                        "archive: has a sparse entry; write it without holes",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn refused(&self, header: &Header, extended: &Extended, why: &str) -> Error {
        let raw = extended
            .path
            .clone()
            .unwrap_or_else(|| header.path_bytes().into_owned());
        Error::invalid(format!(
            "archive: entry {:?} {why}",
            String::from_utf8_lossy(&raw)
        ))
    }
}

impl<R: Read> Read for Tape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "ends within an entry; it was cut off",
            ));
        }
        self.left -= u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

/// Says why the archive cannot be read on.
pub(crate) fn unreadable(error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    };
    Error::new(code, format!("archive: {error}"))
}

fn malformed(error: &io::Error) -> Error {
    Error::invalid(format!("archive: header: {error}"))
}

/// Joins `path` to `folder` by its text alone. Errors: `InvalidArgument` when it leads out of the archive.
fn inside(folder: &str, path: &[u8]) -> Result<String> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    let fault = |why: &str| Error::invalid(format!("archive: entry {:?} {why}", shown()));
    let text = std::str::from_utf8(path).map_err(|_| fault("is not UTF-8"))?;
    if text.len() > MAX_PATH || text.contains('\0') {
        return Err(fault("is not a path"));
    }
    if text.starts_with('/') {
        return Err(fault("is absolute; entries must stay within the archive"));
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(
                parts
                    .pop()
                    .ok_or_else(|| fault("leads out of the archive"))?,
            ),
            part => parts.push(part),
        }
    }
    if folder.is_empty() && text.split('/').any(|part| part == "..") {
        return Err(fault("leads out of the archive"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        bytes: 1 << 20,
        entries: 100,
    };

    fn walk(bytes: &[u8], limits: Limits) -> Result<Vec<(String, String)>> {
        let mut tape = Tape::new(bytes, limits);
        let mut seen = Vec::new();
        while let Some(entry) = tape.next()? {
            let mut text = entry
                .link
                .map(|link| format!("-> {link}"))
                .unwrap_or_default();
            tape.read_to_string(&mut text)
                .map_err(|error| unreadable(&error))?;
            seen.push((entry.path, text));
        }
        Ok(seen)
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header
    }

    /// A header with any name, which the tar crate refuses to write.
    fn raw(name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
        let mut header = header(kind, u64::try_from(data.len()).unwrap_or(0));
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    #[test]
    fn files_links_and_long_names_are_read_in_order()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/layer.tar", "d".repeat(150));
        builder.append_data(
            &mut header(EntryType::Regular, 3),
            "./a/layer.tar",
            &b"abc"[..],
        )?;
        builder.append_data(&mut header(EntryType::Directory, 0), "b/", &b""[..])?;
        builder.append_link(
            &mut header(EntryType::Symlink, 0),
            "b/layer.tar",
            "../a/layer.tar",
        )?;
        builder.append_data(&mut header(EntryType::Regular, 1), &long, &b"x"[..])?;
        builder.append_pax_extensions([("path", b"pax/name".as_slice()), ("size", b"2")])?;
        let mut bytes = builder.into_inner()?;
        bytes.truncate(bytes.len() - 1024);
        // The size of the header itself is wrong on purpose: Go writes 0 there for what is too large for octal.
        let mut odd = header(EntryType::Regular, 0);
        odd.set_cksum();
        bytes.extend(odd.as_bytes());
        bytes.extend(b"yz");
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let seen = walk(&bytes, LIMITS)?;
        let expected = [
            ("a/layer.tar", "abc"),
            ("b/layer.tar", "-> a/layer.tar"),
            (&long, "x"),
            ("pax/name", "yz"),
        ];
        assert_eq!(
            seen,
            expected.map(|(path, text)| (path.to_owned(), text.to_owned()))
        );
        Ok(())
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../etc/passwd", "/etc/passwd", "a/../../b", "a/../b"] {
            let message = walk(&raw(name, EntryType::Regular, b""), LIMITS)
                .map_or_else(|e| e.message, |_| String::new());
            assert!(
                message.contains(&format!("entry {name:?}")),
                "{name}: {message}"
            );
        }
        let mut link = header(EntryType::Symlink, 0);
        assert!(link.set_path("a").is_ok() && link.set_link_name("../b").is_ok());
        link.set_cksum();
        assert!(walk(link.as_bytes(), LIMITS).is_err());
    }

    #[test]
    fn limits_hold_before_anything_is_read() {
        let mut huge = header(EntryType::Regular, 100 << 30);
        assert!(huge.set_path("huge").is_ok());
        huge.set_cksum();
        let code = |result: Result<Vec<(String, String)>>| {
            result.map_or_else(|error| error.code, |_| Code::Unknown)
        };
        assert_eq!(code(walk(huge.as_bytes(), LIMITS)), Code::ResourceExhausted);
        let many: Vec<u8> = (0..101)
            .flat_map(|n| raw(&format!("{n}"), EntryType::Regular, b""))
            .collect();
        assert_eq!(code(walk(&many, LIMITS)), Code::ResourceExhausted);
        assert_eq!(
            code(walk(
                &raw("long", EntryType::GNULongName, &vec![b'a'; 70 << 10]),
                LIMITS
            )),
            Code::InvalidArgument
        );
        assert_eq!(
            code(walk(&raw("s", EntryType::GNUSparse, b""), LIMITS)),
            Code::InvalidArgument
        );
    }

    #[test]
    fn what_is_cut_or_no_archive_is_refused_and_an_empty_one_is_empty() {
        let whole = raw("a", EntryType::Regular, b"abc");
        for cut in [100, 513, 600] {
            assert!(walk(&whole[..cut], LIMITS).is_err(), "{cut}");
        }
        assert!(walk(&[b'x'; 1024], LIMITS).is_err());
        assert_eq!(walk(&[0; 1024], LIMITS), Ok(Vec::new()));
        assert_eq!(walk(&[], LIMITS), Ok(Vec::new()));
    }
}
