//! Container records, and the OCI specs that are made for them.

pub mod host;
pub mod spec;
