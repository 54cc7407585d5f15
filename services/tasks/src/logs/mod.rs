//! Logs: the files that shims and pumps append to, and how they are read.
//!
//! ```text
//! <root>/logs/<namespace>/<container>/
//!   container      when the container's record was made: another one of the same name begins anew
//!   init.log       all lives of its task, one after the other
//!   exec-<id>.log  the last life of an added process
//! ```
//! A line is `<RFC 3339 time> stdout|stderr F|P <bytes>`: `F` ended with a newline, `P` goes on in the next of its stream.

pub(crate) mod folder;
pub(crate) mod follow;
pub(crate) mod lines;
pub(crate) mod owners;
