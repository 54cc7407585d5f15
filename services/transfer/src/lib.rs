//! transfer

pub mod auth;
pub mod fetch;
pub mod hosts;
pub mod manifest;
pub mod platform;
pub mod push;
pub mod reference;
pub mod registry;
pub mod resolve;
mod transport;
