//! Who runs: the supervisor of a node.

pub mod config;
pub mod graph;
pub mod lifecycle;
pub mod manifest;
pub mod printed;
pub mod registry;
pub mod restart;
#[cfg(test)]
mod samples;
mod settings;
pub mod standing;
mod suggest;
