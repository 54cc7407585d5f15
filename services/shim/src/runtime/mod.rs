//! The OCI runtime behind the shim: one trait, the embedded one and a binary such as runc.
//!
//! Its calls block and may change the calling process: they belong into a helper, but for those
//! [`Runtime::is_light`] names.

mod binary;
mod cgroup_v1;
mod console;
mod embedded;
mod executor;
mod facts;
mod oom_score;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

pub(crate) use console::ConsoleSocket;
pub(crate) use facts::Facts;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::options::Options;
use binary::Binary;
use embedded::Embedded;

/// The container's ends of its stdio; with a terminal only the way its master comes back.
#[derive(Default)]
pub(crate) struct ChildIo {
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) console: Option<PathBuf>,
}

impl ChildIo {
    /// The descriptors a helper must keep open for it.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        self.stdio
            .iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect()
    }
}

/// A running container, as the calls after create see it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) pid: i32,
    pub(crate) cgroup: Cgroup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Start,
    Kill,
    Delete,
}

/// What a shim needs of an OCI runtime.
pub(crate) trait Runtime: Send + Sync {
    /// Makes the container, its init waiting for start; returns init's pid.
    fn create(&self, io: ChildIo) -> Result<i32>;
    /// Lets init go on.
    fn start(&self) -> Result<()>;
    /// Runs one more process, given as the JSON of an OCI `Process`; returns its pid.
    fn exec(&self, process: &[u8], io: ChildIo) -> Result<i32>;
    /// Sends a signal to init, or to everything in the container.
    fn kill(&self, target: &Target, signal: i32, all: bool) -> Result<()>;
    /// Freezes the container.
    fn pause(&self, target: &Target) -> Result<()>;
    /// Thaws the container.
    fn resume(&self, target: &Target) -> Result<()>;
    /// Applies the JSON of an OCI `LinuxResources`.
    fn update(&self, resources: &[u8]) -> Result<()>;
    /// Forgets a container whose processes have ended; a second time changes nothing.
    fn delete(&self) -> Result<()>;
    /// Whether a call neither blocks nor changes the process, so that it needs no helper.
    fn is_light(&self, call: Call) -> bool;
}

/// Where everything of one container is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// Folder of the runtime's state.
    pub(crate) root: PathBuf,
}

/// The runtime the options name.
pub(crate) fn choose(place: Place, options: Options, facts: &Facts) -> Box<dyn Runtime> {
    if options.embedded() {
        Box::new(Embedded::new(place, options, facts))
    } else {
        Box::new(Binary::new(place, options))
    }
}
