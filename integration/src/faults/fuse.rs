//! As much of the FUSE protocol as one regular file needs, spoken with the kernel directly.
//!
//! The root of the file system is the file itself, so nothing is ever looked up. The file is opened with direct I/O: a
//! write reaches the server before it is answered to the writer, and no page cache stands between.
//! Source: Linux `include/uapi/linux/fuse.h`, protocol 7.31; `Documentation/filesystems/fuse.rst`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::Outcome;

/// Largest write of the kernel, in bytes.
const LARGEST: u32 = 1 << 20;
/// Length of the header of a request.
const HEADER: usize = 40;
/// Length of what stands before the bytes of a write, and of a read's arguments.
const ARGUMENTS: usize = 40;

/// What the file consists of.
pub(super) trait Content: Send + 'static {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Bytes from an offset on.
    fn read(&self, offset: u64, length: usize) -> Vec<u8>;
    /// Replaces bytes from an offset on.
    fn write(&self, offset: u64, bytes: &[u8]);
    /// Everything written so far is to be on the medium when this returns.
    fn flush(&self);
}

/// Makes a file look as if it were `content`, served by a thread until it is unmounted.
///
/// Errors: not root, no `/dev/fuse`, no such file.
pub(super) fn serve(path: &Path, content: impl Content) -> Outcome {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("/dev/fuse: {error}"))?;
    let options = format!(
        "fd={},rootmode=100600,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    mount(
        Some("simulated-disk"),
        path,
        Some("fuse"),
        MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        Some(options.as_str()),
    )?;
    std::thread::Builder::new()
        .name("disk".into())
        .spawn(move || answer_all(device, &content))?;
    Ok(())
}

/// Answers until the kernel says that the file system is gone.
fn answer_all(mut device: File, content: &impl Content) {
    let mut buffer = vec![0; LARGEST as usize + 2 * 4096];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            // A request that was taken back before it was read, or a signal.
            Err(error) if matches!(error.raw_os_error(), Some(2 | 4 | 11)) => continue,
            Err(_) => return,
        };
        let Some(request) = Request::parse(&buffer[..length]) else {
            return;
        };
        if let Some(answer) = request.answer(content) {
            // An answer to a request that was interrupted is refused; nobody waits for it.
            let _ = device.write(&request.framed(answer));
        }
    }
}

struct Request<'a> {
    opcode: u32,
    unique: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            opcode: word(bytes, 4)?,
            unique: long(bytes, 8)?,
            body: bytes.get(HEADER..)?,
        })
    }

    /// Puts the header of an answer before its body.
    fn framed(&self, answer: Result<Vec<u8>, Errno>) -> Vec<u8> {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-(error as i32), Vec::new()),
        };
        let mut frame = Vec::with_capacity(16 + body.len());
        frame.extend((16 + body.len() as u32).to_le_bytes());
        frame.extend(error.to_le_bytes());
        frame.extend(self.unique.to_le_bytes());
        frame.extend(body);
        frame
    }

    /// Does what is asked. `None` where the protocol knows no answer.
    fn answer(&self, content: &impl Content) -> Option<Result<Vec<u8>, Errno>> {
        Some(match self.opcode {
            2 | 36 | 42 => return None, // FORGET, INTERRUPT, BATCH_FORGET
            3 | 4 => Ok(attributes(content.size())), // GETATTR, SETATTR
            14 => Ok(opened()),
            15 => self.read(content).ok_or(Errno::EINVAL),
            16 => self.write(content).ok_or(Errno::EINVAL),
            17 => Ok(vec![0; 80]), // STATFS
            20 => {
                content.flush(); // FSYNC
                Ok(Vec::new())
            }
            18 | 25 | 38 => Ok(Vec::new()), // RELEASE, FLUSH (a close), DESTROY
            26 => self.agree().ok_or(Errno::EPROTO),
            _ => Err(Errno::ENOSYS),
        })
    }

    /// INIT: which protocol, and how much at once.
    fn agree(&self) -> Option<Vec<u8>> {
        const MAX_PAGES: u32 = 1 << 22;
        const BIG_WRITES: u32 = 1 << 5;
        let readahead = word(self.body, 8)?;
        let pages = (LARGEST / 4096).to_le_bytes();
        let mut answer = Vec::with_capacity(64);
        answer.extend(7u32.to_le_bytes());
        answer.extend(31u32.to_le_bytes());
        answer.extend(readahead.to_le_bytes());
        answer.extend((MAX_PAGES | BIG_WRITES).to_le_bytes());
        answer.extend([64, 0, 48, 0]); // requests in the background, and when that is much
        answer.extend(LARGEST.to_le_bytes());
        answer.extend(1u32.to_le_bytes()); // granularity of times, in nanoseconds
        answer.extend(&pages[..2]);
        answer.resize(64, 0);
        Some(answer)
    }

    fn read(&self, content: &impl Content) -> Option<Vec<u8>> {
        let (offset, length) = (long(self.body, 8)?, word(self.body, 16)?);
        Some(content.read(offset, length.min(LARGEST) as usize))
    }

    fn write(&self, content: &impl Content) -> Option<Vec<u8>> {
        let (offset, length) = (long(self.body, 8)?, word(self.body, 16)?);
        let bytes = self.body.get(ARGUMENTS..)?.get(..length as usize)?;
        content.write(offset, bytes);
        Some([length.to_le_bytes(), [0; 4]].concat())
    }
}

/// `fuse_attr_out`, valid for an hour: the file never changes its size.
fn attributes(size: u64) -> Vec<u8> {
    const REGULAR_0600: u32 = 0o100_600;
    let mut answer = Vec::with_capacity(104);
    for long in [3600, 0, 1, size, size / 512, 0, 0, 0] {
        answer.extend(u64::to_le_bytes(long)); // valid, -, inode, size, blocks, three times
    }
    answer.extend([0; 12]);
    for word in [REGULAR_0600, 1, 0, 0, 0, 4096, 0] {
        answer.extend(u32::to_le_bytes(word)); // mode, links, user, group, device, block, flags
    }
    answer
}

/// `fuse_open_out` with `FOPEN_DIRECT_IO`.
fn opened() -> Vec<u8> {
    let mut answer = vec![0; 16];
    answer[8] = 1;
    answer
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
