//! Writes an archive: ustar headers, with a PAX header in front of what ustar cannot say. The same entries always give the same bytes.

use super::{BLOCK, Entry, Kind, Time, pax};
use std::io::{self, Write};

/// An archive being written. Data must be written in full, then padded with [`Writer::pad`].
pub(crate) struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to }
    }

    /// Writes the header; `entry.size` bytes of data must follow.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let name = [b"PaxHeaders.0/", base(&entry.name)].concat();
            let header = Entry {
                size: records.len() as u64,
                mode: 0o644,
                ..plain(name)
            };
            self.to.write_all(&block(&header, b'x'))?;
            self.data(&records)?;
            self.pad(header.size)?;
        }
        self.to.write_all(&block(entry, typeflag(entry.kind)))
    }

    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    /// Fills the last block of an entry of `size` bytes.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let zeros = size.wrapping_neg() % BLOCK as u64;
        self.to.write_all(&[0; BLOCK][..zeros as usize])
    }

    /// Ends the archive with two zero blocks and gives the stream back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(self.to)
    }
}

/// An entry with a name and nothing else.
pub(crate) fn plain(name: Vec<u8>) -> Entry {
    Entry {
        name,
        link: Vec::new(),
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        size: 0,
        device: (0, 0),
        xattrs: Vec::new(),
        sparse: None,
    }
}

fn typeflag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Hardlink => b'1',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    }
}

fn base(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    name.rsplit(|byte| *byte == b'/').next().unwrap_or(name)
}

/// The PAX records for everything that does not fit the header, in a fixed order.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| pax::append(&mut records, key, value);
    if split(&entry.name).is_none() {
        add(b"path", &entry.name);
    }
    if entry.link.len() > 100 || !entry.link.is_ascii() {
        add(b"linkpath", &entry.link);
    }
    if entry.size >= 1 << 33 {
        add(b"size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id > 0o7_777_777 {
            add(key, id.to_string().as_bytes());
        }
    }
    if entry.mtime.nanos != 0 || !(0..1 << 33).contains(&entry.mtime.seconds) {
        add(b"mtime", moment(entry.mtime).as_bytes());
    }
    let mut xattrs: Vec<_> = entry.xattrs.iter().collect();
    xattrs.sort();
    for (name, value) in xattrs {
        add(&[pax::XATTR, name.as_slice()].concat(), value);
    }
    records
}

fn moment(time: Time) -> String {
    let text = match time.seconds < 0 && time.nanos > 0 {
        true => format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - time.nanos),
        false => format!("{}.{:09}", time.seconds, time.nanos),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prefix and name of a path that ustar can hold.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some((b"", name));
    }
    let slashes = (1..name.len() - 1).filter(|at| name[*at] == b'/');
    let mut fits = slashes.filter(|at| *at <= 155 && name.len() - at - 1 <= 100);
    fits.next_back().map(|at| (&name[..at], &name[at + 1..]))
}

fn block(entry: &Entry, typeflag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let (prefix, name) = split(&entry.name).unwrap_or((b"", &entry.name));
    put(&mut block[..100], name);
    put(&mut block[345..500], prefix);
    put(&mut block[157..257], &entry.link);
    octal(&mut block[100..108], u64::from(entry.mode));
    octal(&mut block[108..116], u64::from(entry.uid));
    octal(&mut block[116..124], u64::from(entry.gid));
    octal(&mut block[124..136], entry.size);
    octal(
        &mut block[136..148],
        u64::try_from(entry.mtime.seconds).unwrap_or(0),
    );
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block[154] = 0;
    block
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let fits = bytes.len().min(field.len());
    field[..fits].copy_from_slice(&bytes[..fits]);
}

/// Writes digits and a NUL; a number too large becomes zero, for a PAX record says it.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    match digits.len() == width {
        true => put(field, digits.as_bytes()),
        false => put(field, "0".repeat(width).as_bytes()),
    }
}
