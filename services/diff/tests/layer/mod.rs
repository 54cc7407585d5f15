//! Archives made by hand, honest and hostile ones, and a place to extract them in.
#![allow(dead_code, unreachable_pub)]

use diff::{Applied, Compression, Error, Options, Whiteouts, apply};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

pub const OVERLAY: Whiteouts = Whiteouts::Overlay { user_xattr: false };

/// An archive that grows entry by entry; names go in as they are, however wrong.
#[derive(Clone, Default)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    pub fn header(name: &str, kind: u8, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len().min(100)]
            .copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        header.as_mut_bytes()[156] = kind;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header
    }

    pub fn push(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.push(Self::header(name, b'0', data.len() as u64), data.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        let mut header = Self::header(name, b'5', 0);
        header.set_mode(0o755);
        self.push(header, b"")
    }

    pub fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut header = Self::header(name, kind, 0);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.push(header, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub fn device(self, name: &str, kind: u8, major: u32, minor: u32) -> Self {
        let mut header = Self::header(name, kind, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.push(header, b"")
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        let header = Self::header("PaxHeaders/x", b'x', data.len() as u64);
        self.push(header, &data)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A snapshot in a folder of its own, next to a canary that no layer may touch.
pub struct Place {
    home: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("root")).unwrap();
        std::fs::create_dir(home.path().join("canary")).unwrap();
        std::fs::write(home.path().join("canary/secret"), "untouched").unwrap();
        Self { home }
    }

    pub fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    pub fn canary(&self) -> PathBuf {
        self.home.path().join("canary")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub fn apply(&self, whiteouts: Whiteouts, layer: Layer) -> Result<Applied, Error> {
        apply_to(&self.root(), whiteouts, &layer.end())
    }

    /// Fails when anything next to the root is not as it was.
    pub fn canary_is_untouched(&self) {
        let secret = self.canary().join("secret");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(self.canary()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(self.home.path()).unwrap().count(), 2);
        let metadata = std::fs::metadata(&secret).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&metadata), 1);
    }
}

pub fn apply_to(root: &Path, whiteouts: Whiteouts, bytes: &[u8]) -> Result<Applied, Error> {
    let root = File::open(root).unwrap();
    apply(
        bytes,
        Compression::None,
        root.as_fd(),
        &Options::new(whiteouts),
    )
}
