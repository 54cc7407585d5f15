//! Faults that no process can defend itself against, made on purpose and reproducibly.

pub mod catalog;
pub mod disk;
pub mod flips;
pub mod full;
mod fuse;
pub mod history;
pub mod image;
mod kept;
pub mod points;
pub mod power;
pub mod record;
mod soundness;
pub mod tree;
