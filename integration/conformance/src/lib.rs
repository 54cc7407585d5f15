//! Promises of the contracts, as suites: each speaks only a contract, so every driver and a whole node run the same ones.
//!
//! A suite is given a handle of the bus and, where several plugins answer a contract, the name of one. It panics at the
//! promise that is broken. It must not know how a plugin is built, nor look into its folders.

pub mod content;
pub mod snapshots;
