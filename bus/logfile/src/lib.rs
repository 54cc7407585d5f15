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
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a place is marked with.
pub const PLACE: &str = "G";
/// A time, a stream and a number have less.
const LONGEST_PLACE: usize = 128;

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
    /// Reads what is kept, to know the place. A last line that was torn, by a power cut or a killed writer, is ended and
    /// followed by its gap: of a byte at least, for nobody knows how long it was. Errors: those of the file.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let before = Reached::default().behind(&older(path));
        let mut here = before.behind(path);
        // What was put aside torn is not ended here: only its gap is told.
        here.torn |= size == 0 && before.torn;
        let begun = size == 0 && here.place > 0;
        Ok(Self {
            path: path.into(),
            place: here.place + u64::from(here.torn),
            file,
            bound,
            size,
            unsaid: (here.torn || begun).then_some(Cut(size > 0)),
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

/// How far a reader of the lines comes.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    place: u64,
    /// The last line has no end; it is counted as if it had.
    torn: bool,
}

impl Reached {
    /// Goes on through a file. One that cannot be read to its end is torn there, one that is not there is empty.
    fn behind(self, path: &Path) -> Self {
        let mut here = Self {
            torn: false,
            ..self
        };
        let Ok(file) = File::open(path) else {
            return here;
        };
        let (mut file, mut head, mut length) = (BufReader::new(file), Vec::new(), 0);
        loop {
            let chunk = match file.fill_buf() {
                Ok([]) => break,
                Ok(chunk) => chunk,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    here.torn = true;
                    break;
                }
            };
            let newline = chunk.iter().position(|&byte| byte == b'\n');
            let part = &chunk[..newline.unwrap_or(chunk.len())];
            head.extend_from_slice(&part[..part.len().min(LONGEST_PLACE - head.len())]);
            length += part.len() as u64;
            let used = part.len() + usize::from(newline.is_some());
            file.consume(used);
            if newline.is_some() {
                here.pass(&head, length);
                head.clear();
                length = 0;
            }
        }
        if length > 0 {
            here.pass(&head, length);
            here.torn = true;
        }
        here
    }

    /// Passes a line of `length` bytes without its newline, of which `head` is the beginning.
    fn pass(&mut self, head: &[u8], length: u64) {
        match place(head) {
            Some(place) => self.place = self.place.max(place),
            None => self.place += length + 1,
        }
    }
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

    #[test]
    fn who_opens_a_log_again_goes_on_at_the_last_place_that_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let length = line(0).len() as u64;
        let said = format!("1970-01-01T00:00:01Z stdout G {}\n", 5 * length);
        fs::write(&path, [line(0), said, line(5)].concat()).unwrap();
        let mut log = LogFile::open(&path, 4 * length).unwrap();
        // Begins a new file, and with it says the place.
        log.append(line(6).as_bytes());
        let (lines, missing) = read(&path, 7 * length);
        assert_eq!(lines, [line(0), line(5), line(6)]);
        assert_eq!(missing, 4 * length);
        assert_eq!(log.place, 7 * length);
    }

    #[test]
    fn a_torn_last_line_is_ended_and_what_is_missing_of_it_is_said() {
        for torn in [
            "1970-01-01T00:00:01Z stdout F to",
            "1970-01-01T00:00:01Z stdout G 7",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            fs::write(&path, line(0) + torn).unwrap();
            let mut log = LogFile::open(&path, 0).unwrap();
            log.append(line(1).as_bytes());
            let (lines, missing) = read(&path, log.place);
            assert_eq!(lines.last(), Some(&line(1)), "{torn}");
            assert_eq!(missing, 1, "at least its end: {torn}");
            drop(log);
            let again = LogFile::open(&path, 0).unwrap();
            assert!(again.unsaid.is_none());
            assert_eq!(read(&path, again.place).1, missing, "told once: {torn}");
        }
    }

    #[test]
    fn a_file_that_was_begun_and_never_written_to_goes_on_behind_the_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(older(&path), line(0) + "torn").unwrap();
        fs::write(&path, "").unwrap();
        let mut log = LogFile::open(&path, 0).unwrap();
        log.append(line(1).as_bytes());
        fs::remove_file(older(&path)).unwrap();
        let aside = line(0) + "torn\n";
        assert_eq!(read(&path, log.place).1, aside.len() as u64 + 1);
    }
}
