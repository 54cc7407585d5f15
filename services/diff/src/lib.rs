//! Layers in and out of snapshots: the only plugin that touches the files of a root file system.
//!
//! Owns no state and no folder: what it writes belongs to the snapshot that the caller's mounts describe. Knows neither
//! images nor registries nor where snapshots are kept, and attaches nothing to the mount tree.
//!
//! * [`apply`]: compressed bytes → `stream` (inflate | hash) → `archive` (entries) → `extract` (files, beneath `root`)
//! * [`settle`]: gives directories that a layer only implies their look, once the layers below are known
//! * [`compare`]: two snapshots → `changes` → `archive` → hash, compress
//! * [`verify`]: layers → the tree they give, as data (`expected`) ↔ a snapshot's directory; what differs is told, and on
//!   request put right (`mend`)
//! * [`lookup`]: one file as a container would see it, through a detached overlay mount (`view`)
//!
//! The bytes come from registries, so nothing in an archive decides about a path of the host: see `root`. What the
//! plugin may do is [`CAPABILITIES`], under a uid that is nobody's.

mod apply;
mod applying;
mod archive;
mod attributes;
mod changes;
mod compare;
mod comparing;
mod config;
mod error;
mod expected;
mod extract;
mod following;
mod growing;
mod mend;
mod mounts;
mod name;
mod room;
mod root;
mod service;
mod settle;
mod stream;
mod telling;
mod tree;
mod verify;
mod verifying;
mod view;
mod whiteout;

pub use apply::{Applied, Limits, Options, Watch, apply};
pub use compare::{Compared, compare};
pub use config::Config;
pub use error::{Error, Result};
pub use growing::{Growing, Growth};
pub use mend::{Verified, verify};
pub use mounts::{Target, target};
pub use root::sync;
pub use service::DiffService;
pub use settle::settle;
pub use stream::Compression;
pub use tree::Whiteouts;
pub use verify::{Bounds, Proof, Subject};
pub use view::{lookup, view};

use bus::{Boot, Registration};
use contracts::content::Content;
use contracts::diff::Diff;
use contracts::plugin::Privileges;

/// What extracting the files of strangers takes, and no more.
///
/// `DAC_OVERRIDE` and `DAC_READ_SEARCH`: files of any owner; `CHOWN`, `FOWNER`, `FSETID`: their owners, modes, times and
/// setuid bits; `MKNOD`: devices; `SETFCAP`: file capabilities; `SYS_ADMIN`: `trusted.*` xattrs, detached mounts.
pub const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYS_ADMIN",
];

/// The facts the supervisor needs before any process exists, then the one function that starts it.
pub fn plugin() -> Registration {
    let reason =
        "writes files of any owner, devices, capabilities and overlay xattrs into snapshots";
    Registration::new::<Diff>("local")
        .requires::<Content>()
        .privileges(Privileges::capabilities(&CAPABILITIES, reason))
        .start(service::routes, |boot: Boot<Config>| {
            Ok(DiffService::new(&boot.config, boot.bus))
        })
}
