//! Who runs: the supervisor of a node.

pub mod graph;
pub mod lifecycle;
pub mod manifest;
pub mod registry;
pub mod restart;
#[cfg(test)]
mod samples;
pub mod standing;
mod suggest;
