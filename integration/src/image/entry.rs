//! One member of a layer, written header by header so that hostile ones can be written too.
//!
//! Source: POSIX pax (`ustar` and extended headers), GNU tar manual "Basic Tar Format", OCI image-spec `layer.md`.

use tar::{EntryType, Header};

/// Length of the name and link fields of a header, in bytes.
const NAME: usize = 100;

/// One member of a layer. Owner 0:0, time 2024-01-01 and a usual mode unless said otherwise.
#[derive(Clone, Debug)]
pub struct Entry {
    path: String,
    link: String,
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u32, u32),
    content: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
    holes: Option<Sparse>,
}

/// Where the bytes of a sparse file belong, and how long it is.
#[derive(Clone, Debug)]
struct Sparse {
    chunks: Vec<(u64, u64)>,
    size: u64,
}

impl Entry {
    fn new(kind: EntryType, path: &str, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            link: String::new(),
            kind,
            mode,
            owner: (0, 0),
            mtime: 1_704_067_200,
            device: (0, 0),
            content: Vec::new(),
            pax: Vec::new(),
            holes: None,
        }
    }

    /// A folder, 0755.
    pub fn dir(path: &str) -> Self {
        Self::new(EntryType::Directory, path, 0o755)
    }

    /// A file, 0644.
    pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        Self {
            content,
            ..Self::new(EntryType::Regular, path, 0o644)
        }
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        let link = target.to_owned();
        Self {
            link,
            ..Self::new(EntryType::Symlink, path, 0o777)
        }
    }

    /// A hard link to an earlier member.
    pub fn hard_link(path: &str, target: &str) -> Self {
        let link = target.to_owned();
        Self {
            link,
            ..Self::new(EntryType::Link, path, 0o644)
        }
    }

    /// A named pipe, 0644.
    pub fn fifo(path: &str) -> Self {
        Self::new(EntryType::Fifo, path, 0o644)
    }

    /// A character device, 0666.
    pub fn char_device(path: &str, major: u32, minor: u32) -> Self {
        let device = (major, minor);
        Self {
            device,
            ..Self::new(EntryType::Char, path, 0o666)
        }
    }

    /// A block device, 0660.
    pub fn block_device(path: &str, major: u32, minor: u32) -> Self {
        let device = (major, minor);
        Self {
            device,
            ..Self::new(EntryType::Block, path, 0o660)
        }
    }

    /// A mark that removes what lower layers have at `path`.
    pub fn whiteout(path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if folder.is_empty() { "" } else { "/" };
        Self::file(&format!("{folder}{slash}.wh.{name}"), "")
    }

    /// A mark that hides everything lower layers have inside the folder.
    pub fn opaque(folder: &str) -> Self {
        Self::file(&format!("{folder}/.wh..wh..opq"), "")
    }

    /// A file with holes, in GNU's old format: at most three runs of bytes, each at its offset.
    pub fn sparse(path: &str, size: u64, runs: &[(u64, &[u8])]) -> Self {
        let mut chunks: Vec<(u64, u64)> = Vec::new();
        chunks.extend(
            runs.iter()
                .map(|(offset, bytes)| (*offset, bytes.len() as u64)),
        );
        chunks.push((size, 0)); // how the format says that the file ends with a hole
        let content: Vec<u8> = runs
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect();
        let holes = Some(Sparse { chunks, size });
        Self {
            content,
            holes,
            ..Self::new(EntryType::GNUSparse, path, 0o644)
        }
    }

    /// Sets permission bits, setuid and the like included.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets user and group by number.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Sets the modification time, in seconds since the epoch.
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// Adds an extended attribute, as the PAX record `SCHILY.xattr.<name>`.
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Grants the file capabilities (a bit set, `1 << CAP_…`) that take effect when it is executed.
    ///
    /// Source: `linux/capability.h`, `struct vfs_cap_data` revision 2.
    pub fn capabilities(self, set: u64) -> Self {
        let effective_revision_2 = 0x0200_0001_u32;
        let words = [effective_revision_2, set as u32, 0, (set >> 32) as u32, 0];
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.xattr("security.capability", &value)
    }

    /// Adds a PAX record of any kind, such as `path`, `linkpath`, `mtime` or `uid`.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Appends headers and content to an archive.
    pub(super) fn write(&self, archive: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            extension(archive, EntryType::XHeader, &self.pax_records());
        }
        if self.path.len() > NAME {
            extension(archive, EntryType::GNULongName, &terminated(&self.path));
        }
        if self.link.len() > NAME {
            extension(archive, EntryType::GNULongLink, &terminated(&self.link));
        }
        member(archive, self.header(), &self.content);
    }

    fn header(&self) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        let old = header.as_old_mut();
        copy(&mut old.name, &self.path);
        copy(&mut old.linkname, &self.link);
        if let Some(gnu) = header.as_gnu_mut() {
            octal(&mut gnu.dev_major, self.device.0.into());
            octal(&mut gnu.dev_minor, self.device.1.into());
            if let Some(holes) = &self.holes {
                for (place, (offset, length)) in gnu.sparse.iter_mut().zip(&holes.chunks) {
                    octal(&mut place.offset, *offset);
                    octal(&mut place.numbytes, *length);
                }
                octal(&mut gnu.realsize, holes.size);
            }
        }
        header
    }

    /// Each record begins with its own length in decimal, which counts its own digits.
    fn pax_records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in &self.pax {
            let rest = key.len() + value.len() + 3; // space, equals sign, newline
            let length = (1..)
                .map(|digits| rest + digits)
                .find(|sum| sum.to_string().len() + rest == *sum);
            records.extend_from_slice(format!("{} {key}=", length.unwrap_or(rest)).as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        }
        records
    }
}

fn extension(archive: &mut Vec<u8>, kind: EntryType, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    copy(&mut header.as_old_mut().name, "././@LongLink");
    member(archive, header, content);
}

fn member(archive: &mut Vec<u8>, mut header: Header, content: &[u8]) {
    header.set_size(content.len() as u64);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Copies as much of a name as the field holds, without a look at what it says.
fn copy(field: &mut [u8; NAME], name: &str) {
    field
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(place, byte)| *place = byte);
}

fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(digits.as_bytes());
}
