//! Log bytes → lines. Pure but for `tail`, which looks for its place in a file from the end.

use contracts::Timestamp;
use contracts::tasks::LogLine;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// How much of a file is looked at once, going backwards.
const STEP: u64 = 64 * 1024;

/// Which lines a reader wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

/// Splits what comes into lines; the beginning of an unfinished one waits for its end.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    /// Bytes of lines before what comes next, from the beginning of the log, when that is known.
    place: Option<u64>,
    /// A line at or after `until` was seen: nothing that follows is wanted.
    pub(crate) past: bool,
}

impl Lines {
    /// Takes bytes; answers the wanted lines that are complete.
    pub(crate) fn take(&mut self, bytes: &[u8], span: Span) -> Vec<LogLine> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if !piece.ends_with(b"\n") || self.past {
                continue;
            }
            let parsed = self.parsed();
            self.begun.clear();
            // What is no line of ours was torn by a full disk.
            let Some(line) = parsed else { continue };
            self.past = span.until.is_some_and(|until| line.time >= until);
            if !self.past && span.since.is_none_or(|since| line.time >= since) {
                lines.push(line);
            }
        }
        lines
    }

    /// What comes next is the oldest that is kept: whatever was before is missing.
    pub(crate) fn begin_at_the_oldest(&mut self) {
        self.place = Some(0);
    }

    /// What comes next is another file: a line that was begun will not end.
    pub(crate) fn next_file(&mut self) {
        self.begun.clear();
    }

    fn parsed(&mut self) -> Option<LogLine> {
        let record = &self.begun[..self.begun.len() - 1];
        let Some(place) = logfile::place(record) else {
            let length = self.begun.len() as u64;
            self.place = self.place.map(|place| place + length);
            return parse(record);
        };
        let lost = self.place.map_or(0, |here| place.saturating_sub(here));
        self.place = Some(place.max(self.place.unwrap_or(0)));
        let gap = parse(record).map(|line| LogLine {
            newline: false,
            bytes: Vec::new(),
            lost,
            ..line
        });
        gap.filter(|gap| gap.lost > 0)
    }
}

fn parse(record: &[u8]) -> Option<LogLine> {
    let mut parts = record.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let newline = parts.next()? == b"F";
    Some(LogLine {
        time,
        stderr,
        newline,
        bytes: parts.next()?.to_vec(),
        lost: 0,
    })
}

/// Counts the lines of a file.
pub(crate) fn count(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut count = 0;
    for record in BufReader::new(file).split(b'\n') {
        count += u64::from(ends_line(&record?));
    }
    Ok(count)
}

/// Finds where the last `count` lines begin. The parts of a long line are one line.
pub(crate) fn tail(file: &mut File, count: u64) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    if count == 0 {
        return Ok(length);
    }
    let (mut at, mut later, mut seen, mut begins) = (length, Vec::new(), 0, length);
    while at > 0 {
        let step = STEP.min(at);
        at -= step;
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = vec![0; usize::try_from(step).unwrap_or(0)];
        file.read_exact(&mut bytes)?;
        bytes.append(&mut later);
        // Only records that begin in what was read are known whole; the first may be cut.
        let first = match (at, bytes.iter().position(|&byte| byte == b'\n')) {
            (0, _) => 0,
            (_, Some(newline)) => newline + 1,
            (_, None) => bytes.len(),
        };
        let mut end = bytes.len();
        while end > first {
            let start = bytes[first..end - 1]
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(first, |newline| first + newline + 1);
            // Going backwards, a record that ends a line begins another one of those that are counted.
            if ends_line(&bytes[start..end]) || seen == 0 {
                seen += 1;
                if seen > count {
                    return Ok(begins);
                }
            }
            begins = at + start as u64;
            end = start;
        }
        bytes.truncate(first);
        later = bytes;
    }
    Ok(0)
}

fn ends_line(record: &[u8]) -> bool {
    record.splitn(4, |&byte| byte == b' ').nth(2) == Some(b"F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LOG: &[u8] = b"1970-01-01T00:00:01Z stdout F one\n\
        1970-01-01T00:00:02Z stderr P tw\n\
        1970-01-01T00:00:02Z stderr F o\n\
        garbage\n\
        1970-01-01T00:00:03Z stdout F \n\
        1970-01-01T00:00:04Z stdout P a b  c";

    fn texts(lines: &[LogLine]) -> Vec<String> {
        let text = |line: &LogLine| String::from_utf8_lossy(&line.bytes).into_owned();
        lines.iter().map(text).collect()
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        for size in [1, 7, 1000] {
            let mut lines = Lines::default();
            let mut all = Vec::new();
            for chunk in LOG.chunks(size) {
                all.extend(lines.take(chunk, Span::default()));
            }
            assert_eq!(texts(&all), ["one", "tw", "o", ""]);
            all.extend(lines.take(b"\n", Span::default()));
            assert_eq!(texts(&all[4..]), ["a b  c"]);
            assert!(all[1].stderr && !all[1].newline && all[2].newline);
        }
    }

    #[test]
    fn what_is_not_kept_is_told_once_and_where_it_was() {
        let line = "1970-01-01T00:00:01Z stdout F a\n";
        let log = format!(
            "1970-01-01T00:00:00Z stdout G 100\n{line}1970-01-01T00:00:02Z stdout G 150\n{line}"
        );
        let told = |lines: Vec<LogLine>| -> Vec<u64> { lines.iter().map(|l| l.lost).collect() };
        let mut whole = Lines::default();
        whole.begin_at_the_oldest();
        assert_eq!(
            told(whole.take(log.as_bytes(), Span::default())),
            [100, 0, 18, 0]
        );
        // Who begins in the middle misses what it did not ask for, and no more.
        let mut tail = Lines::default();
        assert_eq!(told(tail.take(log.as_bytes(), Span::default())), [0, 18, 0]);
    }

    #[test]
    fn a_span_has_its_beginning_and_not_its_end() {
        let second = |n: i64| Some(Timestamp(n * 1_000_000_000));
        let span = Span {
            since: second(2),
            until: second(3),
        };
        let mut lines = Lines::default();
        assert_eq!(texts(&lines.take(LOG, span)), ["tw", "o"]);
        assert!(lines.past);
    }

    #[test]
    fn the_last_lines_are_found_in_files_of_any_size() {
        let long = "x".repeat(10_000);
        for fill in [String::new(), long] {
            let mut file = tempfile::tempfile().unwrap();
            for number in 0..40 {
                let line = format!(
                    "1970-01-01T00:00:01Z stdout P {fill}\n1970-01-01T00:00:01Z stdout F {number}\n"
                );
                file.write_all(line.as_bytes()).unwrap();
            }
            for count in [0, 1, 3, 39, 40, 100] {
                let at = tail(&mut file, count).unwrap();
                file.seek(SeekFrom::Start(at)).unwrap();
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                let lines = Lines::default().take(&bytes, Span::default());
                let whole = lines.iter().filter(|line| line.newline).count() as u64;
                assert_eq!(whole, count.min(40));
                assert_eq!(lines.len() as u64, 2 * whole);
            }
        }
    }
}
