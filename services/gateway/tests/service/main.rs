//! The HTTP surface over fakes, through real connections.

mod blobs;
mod habits;
mod long_work;
mod streams;
mod support;
mod tasks;
