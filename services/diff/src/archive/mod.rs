//! The tar format, read and written as a stream of bytes; knows no file system.
//!
//! Why not the `tar` crate's entries: it splits PAX records at newlines, so an xattr value that holds one (file
//! capabilities do) hides or forges the records behind it, and it knows no PAX sparse maps. Here records are cut by
//! their stated length, and file data is handed out as slices of the decompressed chunk, without a copy.

pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod reader;
pub(crate) mod sparse;
pub(crate) mod writer;

/// Bytes of one tar block; headers are one block, data is padded to whole blocks.
pub(crate) const BLOCK: usize = 512;

/// Largest PAX header, long name or sparse map: what Go's archive/tar accepts, so the same layers are accepted.
pub(crate) const MAX_SPECIAL: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Regular file, its bytes follow.
    File,
    /// Another name of a file earlier in the same archive.
    Hardlink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Directory.
    Dir,
    /// Named pipe.
    Fifo,
}

/// A point in time: whole seconds since the epoch, and nanoseconds (0 to 999,999,999) past them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    /// Seconds, negative before 1970.
    pub(crate) seconds: i64,
    /// Nanoseconds.
    pub(crate) nanos: u32,
}

/// One member of an archive with every extension already applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) name: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification.
    pub(crate) mtime: Time,
    /// Last access, when the archive says.
    pub(crate) atime: Option<Time>,
    /// Bytes of data that follow in the archive.
    pub(crate) size: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes in archive order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes when the file has holes.
    pub(crate) sparse: Option<sparse::Map>,
}
