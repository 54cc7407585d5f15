//! The owner's half of exactly-once: a redb file whose every change is committed together with its event and with the
//! operation id and reply of the call that asked for it.
//!
//! ```text
//! <name>.redb
//!   _meta      schema, version (grows with every change), outbox (next number), epoch
//!   _done      operation id → (when, reply)      a repeated call gets the first answer; forgotten after 24 h
//!   _outbox    number → event                    removed after the log has it (see `deliver`)
//!   …          the store's own tables: text key → encoded record
//! ```
//!
//! One thread writes. It takes everything that waits into one transaction, commits with an fsync, and then answers
//! all: writes that wait during one fsync share the next. A write that fails leaves no trace; the others of its
//! batch are done again without it.
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
