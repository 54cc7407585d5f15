//! Logs: the files that shims and pumps append to, and how they are read.
//!
//! ```text
//! <root>/logs/<namespace>/<container>/
//!   container      when the container's record was made: another one of the same name begins anew
//!   init.log       all lives of its task, one after the other
//!   exec-<id>.log  the last life of an added process
//!   ….log.1        the older half of a log that has reached half of its bound
//! ```
//! For what a line is, and how what is not kept is said, see crate `logfile`.

pub(crate) mod folder;
pub(crate) mod follow;
pub(crate) mod lines;
pub(crate) mod owners;
