//! Snapshots: layered file systems, one plugin per driver: `snapshots/overlayfs` and `snapshots/native`.
//!
//! Owns the directories of every layer and the records that say what each is. Never mounts anything and never looks
//! into a layer except to measure, copy or remove it: mounts are answered as data, and privileged processes use the
//! directories by path. Must not know images, layers' archives, or who asks.
//!
//! ```text
//! <root>
//!   snapshots.redb            namespace NUL key → record; children and back references beside them
//!   snapshots/<number>/fs     the files of one snapshot; 0755 root:root or as its parent's, it is a container's `/`
//!   snapshots/<number>/work   overlayfs: the kernel's working directory
//!   removing/<number>         on its way out, finished at the next start
//!   empty                     overlayfs: what lies below a layer that does not know its parent yet
//! ```
//!
//! Order makes it safe without more than one fsync: a directory is made before its record and goes after it. A directory
//! without a record is nobody's and is removed at the next start, in the background. A committed snapshot's files are on
//! disk before its record: whoever wrote them flushed the file system (`diff.sync`), this driver flushes the directory;
//! `sync = false` leaves that out. `check.rs` answers the contract `integrity`: records and directories of one mind.
//!
//! **Layers in any order.** A snapshot prepared without a parent and with the label `gantry.io/rebase=true` (contracts,
//! `REBASE`) will get its parent at commit (drivers with `rebase`). Its mounts are an overlay above an empty directory, so
//! that whoever extracts a layer into it writes deletions in overlay's format into `upperdir`, as it would above a real
//! parent. The bottom layer of an image is better prepared without the label: deletions there have nothing to hide.

mod check;
mod collection;
mod config;
mod driver;
mod error;
mod folders;
mod native;
mod overlayfs;
mod record;
mod references;
mod service;
mod stamps;
mod store;
mod tree;

use bus::{Boot, Registration};
use config::Config;
use contracts::plugin::Privileges;
use contracts::{
    collect::Collect, events::Events, integrity::Integrity, leases::Leases, snapshots::Snapshots,
};
use service::SnapshotsService;

/// Registers `snapshots/overlayfs`: layers are stacked by the kernel, nothing is copied.
///
/// Does not start on a kernel without overlay, or on a folder that overlay cannot write to.
pub fn overlayfs() -> Registration {
    let privileges = Privileges::capabilities(
        &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"],
        "makes root-owned directories (chown, fsetid), and measures and removes trees that belong to anybody (dac_override, fowner)",
    );
    registration("overlayfs")
        .privileges(privileges)
        .start(service::routes, |boot: Boot<Config>| {
            let driver = overlayfs::Overlayfs::probe(boot.root())?;
            SnapshotsService::start(Box::new(driver), boot)
        })
}

/// Registers `snapshots/native`: every snapshot is a full copy, on any file system.
pub fn native() -> Registration {
    let privileges = Privileges::capabilities(
        &[
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_MKNOD",
            "CAP_SETFCAP",
            "CAP_SYS_ADMIN",
        ],
        "copies and removes trees that belong to anybody (chown, dac_override, fowner, fsetid), with devices (mknod), file capabilities (setfcap) and trusted attributes (sys_admin)",
    );
    registration("native")
        .privileges(privileges)
        .start(service::routes, |boot: Boot<Config>| {
            SnapshotsService::start(Box::new(native::Native), boot)
        })
}

fn registration(driver: &str) -> Registration {
    Registration::new::<Snapshots>(driver)
        .also::<Collect>()
        .also::<Integrity>()
        .requires::<Events>()
        .requires::<Leases>()
        .fsck(check::fsck)
}
