//! Layers in and out of snapshots: the only plugin that touches the files of a root file system.
//!
//! Owns no state and no folder: what it writes belongs to the snapshot that the caller's mounts describe. Knows neither
//! images nor registries nor where snapshots are kept, and attaches nothing to the mount tree.
//!
//! * [`apply`]: compressed bytes → `stream` (inflate | hash) → `archive` (entries) → `extract` (files, beneath `root`)
//! * [`settle`]: gives directories that a layer only implies their look, once the layers below are known
//! * [`compare`]: two snapshots → `changes` → `archive` → hash, compress
//! * [`lookup`]: one file as a container would see it, through a detached overlay mount (`mounts`)
//!
//! What it may do follows from that: `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH` (files of any owner), `CAP_CHOWN`,
//! `CAP_FOWNER`, `CAP_FSETID` (owners, modes, times, setuid bits), `CAP_MKNOD`, `CAP_SETFCAP` (file capabilities),
//! `CAP_SYS_ADMIN` (`trusted.*` xattrs, detached mounts). The bytes come from registries, so nothing in the archive
//! decides about a path: see `root`.

mod apply;
mod archive;
mod attributes;
mod changes;
mod compare;
mod error;
mod extract;
mod growing;
mod mounts;
mod name;
mod root;
mod settle;
mod stream;
mod tree;
mod whiteout;

pub use apply::{Applied, Limits, Options, Watch, apply};
pub use compare::{Compared, compare};
pub use error::{Error, Result};
pub use growing::{Growing, Growth};
pub use mounts::{OVERLAY_WHITEOUTS, Target, lookup, target, view};
pub use root::sync;
pub use settle::settle;
pub use stream::Compression;
pub use tree::Whiteouts;
