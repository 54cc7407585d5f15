//! Faults that no process can defend itself against, made on purpose and reproducibly.

pub mod chance;
pub mod disk;
mod fuse;
pub mod image;
