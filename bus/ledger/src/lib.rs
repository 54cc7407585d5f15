//! The owner's half of exactly-once: a redb file whose every change is committed together with its event and with the
//! operation id and reply of the call that asked for it.
//!
//! ```text
//! <name>.redb
//!   _meta      format, schema, version (grows with every change), outbox (next number), epoch, seed
//!   _done      operation id → (when, reply)      a repeated call gets the first answer; forgotten after 24 h
//!   _outbox    number → event                    removed after the log has it (see `deliver`)
//!   …          the store's own tables: text key → encoded record
//! <name>.redb.born               that the file was made, and how far it had come (see `mark`)
//! <name>.redb.damaged-<time>     what a repair has replaced, for people
//! ```
//!
//! One thread writes. It takes everything that waits into one transaction, commits with an fsync, and then answers
//! all: writes that wait during one fsync share the next. A write that fails leaves no trace; the others of its
//! batch are done again without it.
//!
//! **Nothing is read that was not written.** Three things hold: redb's tree of checksums, which is walked whenever a file
//! is opened; a checksum of each block in memory, against which every later read is held (`device`); and an envelope
//! around each record, which proves its table, key and commit without any tree (`seal`). What fails is `Damaged`,
//! `DATA_LOSS` outside, and names the file. The file is left as it was found.
//!
//! **Nothing is lost unnoticed.** A file that is missing, empty, or has fewer commits than its mark knows is damaged
//! too. The mark is written behind each fsync and never synced but once: after a power cut it knows less, and never more
//! than is on disk.
//!
//! **What the disk proves comes back** ([`integrity::fsck`]): `salvage` walks the trees of both commits that the header
//! knows, and looks for records in every page where these are broken. `repair` makes a new file of what it finds.
//!
//! **A full disk** refuses what adds with `RESOURCE_EXHAUSTED`; removals use a reserve of blocks behind the end of the
//! file. When there is room again the next write goes through.
//!
//! A store uses [`Ledger`], [`Table`], [`Tx`] and [`Snapshot`] and knows no bus; [`deliver`] is for the service beside it.

mod deliver;
mod device;
mod fault;
mod file;
mod format;
mod generation;
pub mod integrity;
mod mark;
mod repair;
mod salvage;
mod seal;
mod table;
mod writer;

pub use deliver::deliver;
pub use fault::Fault;
pub use generation::{Generation, Late};
pub use table::{Snapshot, Table, Tx, page};
pub use writer::{Ledger, LedgerConfig};
