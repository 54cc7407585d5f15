//! How far something is, told often enough to be lively and seldom enough to cost nothing.

use contracts::transfer::Progress;
use std::time::{Duration, Instant};

/// Shortest time between two reports.
const EVERY: Duration = Duration::from_millis(100);

/// Receives reports. Those that cannot be taken at once are dropped, except the last, which is the result.
pub(crate) type Report<'a> = &'a dyn Fn(Progress);

/// Reports one moving thing.
pub(crate) struct Meter<'a> {
    name: String,
    total: u64,
    next: Instant,
    report: Report<'a>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(name: impl Into<String>, total: u64, report: Report<'a>) -> Self {
        Self {
            name: name.into(),
            total,
            next: Instant::now(),
            report,
        }
    }

    /// Reports, if it is time.
    pub(crate) fn at(&mut self, offset: u64) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + EVERY;
            self.tell(offset, false);
        }
    }

    /// Reports the end.
    pub(crate) fn done(&self) {
        self.tell(self.total, true);
    }

    fn tell(&self, offset: u64, done: bool) {
        (self.report)(Progress {
            name: self.name.clone(),
            offset,
            total: self.total,
            done,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_burst_is_one_report_and_the_end_is_always_told() {
        let seen = RefCell::new(Vec::new());
        let report = |progress: Progress| seen.borrow_mut().push((progress.offset, progress.done));
        let mut meter = Meter::new("blob", 1000, &report);
        (1..=1000).for_each(|offset| meter.at(offset));
        meter.done();
        let seen = seen.into_inner();
        assert_eq!(
            (seen.first(), seen.last()),
            (Some(&(1, false)), Some(&(1000, true)))
        );
        assert!(seen.len() < 10, "{seen:?}");
    }
}
