//! A container's log on disk: lines are appended, it stays within a bound, and what is not kept is said.
//!
//! ```text
//! <path>      what is appended to
//! <path>.1    what was before it; goes when <path> takes its place, at half of the bound
//!
//! <RFC 3339 time> stdout|stderr F|P <bytes>    a line of output: F ended with a newline, P goes on in the next of its stream
//! <RFC 3339 time> stdout|stderr G <number>     the place in the log, in bytes of lines, that the next line has
//! ```
//!
//! A place (`G`) begins every file but the first, and follows whatever a full disk did not take. A reader that counts the
//! bytes of the lines it has read finds a larger number there exactly when something is missing in between: dropped with
//! an old file, or never written. A line that was cut in the middle belongs to what is missing.
//!
//! Who writes must not fail when the disk does: a container is not stopped for its log.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a place is marked with.
pub const PLACE: &str = "G";

/// Where the older half of a log is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// A log that is written to.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes of both files; 0 for no bound.
    bound: u64,
    /// Bytes of the file.
    size: u64,
    /// Place of the next line.
    place: u64,
    /// The place must be said before the next line, and whether a cut line stands before it.
    unsaid: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
struct Cut(bool);

impl LogFile {
    /// Opens a log to go on with, or begins it; its folder must be there. `bound` is in bytes, 0 for none.
    ///
    /// Errors: those of the file.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.into(),
            place: begins(path).map_or(size, |(place, head)| place + size.saturating_sub(head)),
            file,
            bound,
            size,
            unsaid: None,
        })
    }

    /// Appends whole lines. What the disk does not take is dropped, and said as soon as there is room again.
    pub fn append(&mut self, lines: &[u8]) {
        let mut rest = lines;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.portion(rest));
            self.write(now);
            rest = later;
        }
    }

    /// How much of some lines goes into one file: whole lines, at most half of the bound, and one at least.
    fn portion(&self, lines: &[u8]) -> usize {
        let half = usize::try_from(self.bound / 2).unwrap_or(usize::MAX);
        if self.bound == 0 || lines.len() <= half {
            return lines.len();
        }
        let end = |part: &[u8]| part.iter().rposition(|&byte| byte == b'\n');
        let first = lines.iter().position(|&byte| byte == b'\n');
        let last = end(&lines[..half]).or(first);
        last.map_or(lines.len(), |newline| newline + 1)
    }

    fn write(&mut self, lines: &[u8]) {
        let length = lines.len() as u64;
        if self.bound > 0 && self.size > 0 && self.size + length > self.bound / 2 {
            self.turn();
        }
        let mut text = self.said(lines);
        text.extend_from_slice(lines);
        self.place += length;
        match self.file.write_all(&text) {
            Ok(()) => {
                self.size += text.len() as u64;
                self.unsaid = None;
            }
            Err(_) => {
                let size = self.file.metadata().map_or(self.size, |file| file.len());
                let cut = size > self.size || matches!(self.unsaid, Some(Cut(true)));
                self.size = size;
                self.unsaid = Some(Cut(cut));
            }
        }
    }

    /// The place, when that must be said: by the time and stream of the line that has it.
    fn said(&self, lines: &[u8]) -> Vec<u8> {
        let Some(Cut(cut)) = self.unsaid else {
            return Vec::new();
        };
        let mut words = lines.splitn(3, |&byte| byte == b' ');
        let (time, stream) = (words.next(), words.next());
        let mut text = Vec::with_capacity(lines.len() + 64);
        text.extend_from_slice(if cut { b"\n" } else { b"" });
        text.extend_from_slice(time.unwrap_or_default());
        text.push(b' ');
        text.extend_from_slice(stream.unwrap_or_default());
        text.extend_from_slice(format!(" {PLACE} {}\n", self.place).as_bytes());
        text
    }

    /// Begins a new file; the one before takes the place of the older half.
    fn turn(&mut self) {
        let older = older(&self.path);
        if fs::rename(&self.path, &older).is_err() {
            return;
        }
        match append(&self.path) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
                self.unsaid = Some(Cut(false));
            }
            // Rather too long than lost.
            Err(_) => drop(fs::rename(&older, &self.path)),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).open(path)
}

/// The place that a file begins with, and the length of the line that says it.
fn begins(path: &Path) -> Option<(u64, u64)> {
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?)
        .read_until(b'\n', &mut line)
        .ok()?;
    Some((place(line.strip_suffix(b"\n")?)?, line.len() as u64))
}

/// The place that a line says, when it is one that does.
pub fn place(line: &[u8]) -> Option<u64> {
    let mut words = line.splitn(4, |&byte| byte == b' ').skip(2);
    if words.next()? != PLACE.as_bytes() {
        return None;
    }
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> String {
        format!("1970-01-01T00:00:01Z stdout F line {number:04}\n")
    }

    /// Reads both files as a reader does: the lines, and the bytes that are missing before, between and after.
    fn read(path: &Path, written: u64) -> (Vec<String>, u64) {
        let (mut at, mut missing, mut lines) = (0, 0, Vec::new());
        for path in [older(path), path.to_owned()] {
            let text = fs::read_to_string(path).unwrap_or_default();
            for line in text.split_inclusive('\n') {
                match place(line.trim_end().as_bytes()) {
                    Some(place) => {
                        missing += place.saturating_sub(at);
                        at = at.max(place);
                    }
                    None => {
                        at += line.len() as u64;
                        lines.push(line.to_owned());
                    }
                }
            }
        }
        (lines, missing + written.saturating_sub(at))
    }

    #[test]
    fn a_log_keeps_its_bound_and_says_what_it_does_not_keep() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, 2000).unwrap();
        let (mut written, count) = (0, 500);
        for number in 0..count {
            // Who opens it again goes on.
            if number % 100 == 50 {
                log = LogFile::open(&path, 2000).unwrap();
            }
            log.append(line(number).as_bytes());
            written += line(number).len() as u64;
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&older(&path)) <= 2000);
        let (lines, missing) = read(&path, written);
        let kept: u64 = lines.iter().map(|line| line.len() as u64).sum();
        assert_eq!(lines.last(), Some(&line(count - 1)));
        assert_eq!(missing, written - kept);
    }

    #[test]
    fn much_at_once_keeps_the_bound_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, 2000).unwrap();
        let text: String = (0..500).map(line).collect();
        log.append(text.as_bytes());
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&older(&path)) <= 2100);
        let (lines, missing) = read(&path, text.len() as u64);
        let kept: u64 = lines.iter().map(|line| line.len() as u64).sum();
        assert_eq!(lines.last(), Some(&line(499)));
        assert_eq!(missing, text.len() as u64 - kept);
    }

    #[test]
    fn without_a_bound_everything_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, 0).unwrap();
        (0..500).for_each(|number| log.append(line(number).as_bytes()));
        let (lines, missing) = read(&path, 500 * line(0).len() as u64);
        assert_eq!((lines.len(), missing), (500, 0));
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_said_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, 0).unwrap();
        log.append(line(0).as_bytes());
        let good = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        log.append(line(1).as_bytes());
        log.append(line(2).as_bytes());
        log.file = good;
        log.append(line(3).as_bytes());
        let length = line(0).len() as u64;
        let (lines, missing) = read(&path, 4 * length);
        assert_eq!(lines, [line(0), line(3)]);
        assert_eq!(missing, 2 * length);
    }
}
