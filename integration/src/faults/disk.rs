//! A disk in memory that remembers every write and every flush, and a file system on it.
//!
//! ```text
//! <folder>/disk     a regular file by FUSE (direct I/O), its bytes in this process: Disk
//!    └─ /dev/loopN  attached by mount(8), released when it is unmounted
//!         └─ <folder>/point   ext4, journaled; REQ_FLUSH arrives here as fsync
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use super::fuse::{self, Content};
use super::image::{Act, Image};
use crate::Outcome;
use crate::process::run;

#[derive(Debug)]
struct State {
    image: Image,
    log: Vec<Act>,
    recording: bool,
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content for Shared {
    fn size(&self) -> u64 {
        self.lock().image.size()
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        self.lock().image.read(offset, length)
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        state.image.write(offset, bytes);
        if state.recording {
            let bytes = bytes.into();
            state.log.push(Act::Write { offset, bytes });
        }
    }

    fn flush(&self) {
        let mut state = self.lock();
        if state.recording {
            state.log.push(Act::Flush);
        }
    }
}

/// Tells how much has happened to a disk; may be given to whoever notes when something was answered.
#[derive(Clone, Debug)]
pub struct Clock(Shared);

impl Clock {
    /// Returns how many acts have been recorded. Whatever was answered before this was asked, happened before it.
    pub fn now(&self) -> usize {
        self.0.lock().log.len()
    }
}

/// A disk whose bytes live in this process. Dropping it unmounts everything.
#[derive(Debug)]
pub struct Disk {
    shared: Shared,
    folder: TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes a disk that holds `image`, and shows it as a file. Errors: not root, no FUSE.
    pub fn new(image: Image) -> Outcome<Self> {
        let folder = tempfile::Builder::new()
            .prefix("d-")
            .rand_bytes(8)
            .tempdir_in(crate::node::base())?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        fs::create_dir(folder.path().join("point"))?;
        File::create(folder.path().join("disk"))?;
        let shared = Shared(Arc::new(Mutex::new(State {
            image,
            log: Vec::new(),
            recording: false,
        })));
        fuse::serve(&folder.path().join("disk"), shared.clone())?;
        Ok(Self {
            shared,
            folder,
            mounted: false,
        })
    }

    /// Makes an empty ext4 file system on it, with more arguments of `mkfs.ext4`. Errors: it is missing or fails.
    pub fn format(&self, arguments: &[&str]) -> Outcome {
        let options = "nodiscard,assume_storage_prezeroed=1";
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-E", options]).args(arguments);
        command.arg(self.file());
        run(&mut command)?;
        Ok(())
    }

    /// Mounts the file system, with more options if there are any, and returns where.
    ///
    /// Errors: it cannot be mounted; what the kernel says is in the message.
    pub fn mount(&mut self, options: &str) -> Outcome<PathBuf> {
        let mut command = Command::new("mount");
        let options = format!("loop,noinit_itable,errors=remount-ro,{options}");
        command.args(["-t", "ext4", "-o", options.trim_end_matches(',')]);
        run(command.arg(self.file()).arg(self.point()))?;
        self.mounted = true;
        Ok(self.point())
    }

    /// Unmounts the file system. Errors: somebody still uses it.
    pub fn unmount(&mut self) -> Outcome {
        umount2(&self.point(), MntFlags::empty())
            .map_err(|error| format!("{}: {error}", self.point().display()))?;
        self.mounted = false;
        Ok(())
    }

    /// Records from now on, and returns what the disk holds at this moment.
    pub fn record(&self) -> Image {
        let mut state = self.shared.lock();
        state.recording = true;
        state.log.clear();
        state.image.clone()
    }

    /// Ends the recording and returns what was recorded.
    pub fn recorded(&self) -> Vec<Act> {
        let mut state = self.shared.lock();
        state.recording = false;
        std::mem::take(&mut state.log)
    }

    /// Returns what tells how much has been recorded.
    pub fn clock(&self) -> Clock {
        Clock(self.shared.clone())
    }

    /// Returns the file that the disk is.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Returns where the file system is mounted, if it is.
    pub fn point(&self) -> PathBuf {
        self.folder.path().join("point")
    }

    /// Returns a private folder beside it, not on the disk.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(&self.point(), MntFlags::MNT_DETACH);
        }
        // The serving thread ends when the last user of the file, the loop device, has let go.
        let _ = umount2(&self.file(), MntFlags::MNT_DETACH);
    }
}
