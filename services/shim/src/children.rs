//! Who is reaped: helpers and runtimes that somebody waits for, and the container's processes.
//!
//! The shim is a child subreaper, so all of them end up here. A process may end before anybody knows
//! its pid (`true` is faster than the answer of the helper that started it): while such a call is
//! under way, unknown exits are kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::process::{WaitOptions, wait};
use tokio::sync::oneshot;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 + the signal that ended it.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

#[derive(Default)]
pub(crate) struct Children(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    awaited: HashMap<i32, oneshot::Sender<Exit>>,
    births: usize,
    early: HashMap<i32, Exit>,
}

impl Children {
    /// Asks for the exit of a child that was just forked; call it before any await.
    pub(crate) fn expect(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.inner().awaited.insert(pid, sender);
        receiver
    }

    /// Keeps the exits of unknown processes until the returned guard is dropped.
    pub(crate) fn birth(&self) -> Birth<'_> {
        self.inner().births += 1;
        Birth(self)
    }

    /// Reaps whatever has ended; returns those nobody inside the shim waits for.
    pub(crate) fn reap(&self) -> Vec<(i32, Exit)> {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let code = status.exit_status().or(signal).unwrap_or(255);
            let exit = Exit {
                status: code.unsigned_abs(),
                at: SystemTime::now(),
            };
            match self.inner().awaited.remove(&pid) {
                Some(waiter) => drop(waiter.send(exit)),
                None => ended.push((pid, exit)),
            }
        }
        ended
    }

    /// Remembers an exit of an unknown process while one is being born.
    pub(crate) fn keep_early(&self, pid: i32, exit: Exit) {
        let mut inner = self.inner();
        if inner.births > 0 {
            inner.early.insert(pid, exit);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process is being made whose pid is not known yet.
pub(crate) struct Birth<'a>(&'a Children);

impl Birth<'_> {
    /// The exit of the newborn, if it was faster than we.
    pub(crate) fn early_exit(&self, pid: i32) -> Option<Exit> {
        self.0.inner().early.remove(&pid)
    }
}

impl Drop for Birth<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.births -= 1;
        if inner.births == 0 {
            inner.early = HashMap::new();
        }
    }
}
