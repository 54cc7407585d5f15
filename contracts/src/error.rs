//! The one error that crosses the bus, and its closed set of codes.

use crate::PluginId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What every fallible call of the house returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error classes of containerd (errdefs package), a closed set that every edge maps exhaustively.
///
/// In JSON they are SCREAMING_SNAKE_CASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The request itself is wrong; sending it again cannot help.
    InvalidArgument,
    /// Who asks is unknown, or a registry refused the credentials.
    Unauthenticated,
    /// Who asks is known and may not.
    PermissionDenied,
    /// The named object is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The object is in a state that forbids this.
    FailedPrecondition,
    /// Somebody else was in between; the caller may try again.
    Aborted,
    /// A range lies outside the object.
    OutOfRange,
    /// Disk, memory, descriptors or a quota ran out.
    ResourceExhausted,
    /// The caller cancelled.
    Cancelled,
    /// A fault of ours.
    Internal,
    /// Stored or received bytes are damaged.
    DataLoss,
    /// Not offered by this plugin, driver or kernel.
    Unimplemented,
    /// A plugin or host this call needs is not there; see [`Error::plugin`] and [`Error::chain`].
    Unavailable,
    /// The deadline passed first; the outcome is unknown.
    DeadlineExceeded,
    /// Nobody could say.
    Unknown,
}

/// A failure as a user meets it: a class and one helpful lowercase sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The class.
    pub code: Code,
    /// `object: what was observed, what would help`.
    pub message: String,
    /// The plugin that is the cause, when one is.
    pub plugin: Option<PluginId>,
    /// From the called plugin down to the cause, when a plugin is the cause.
    pub chain: Vec<PluginId>,
}

impl Error {
    /// Makes an error of `code`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            plugin: None,
            chain: Vec::new(),
        }
    }

    /// Names the plugin that caused it and the chain that leads there.
    pub fn caused_by(mut self, plugin: PluginId, chain: Vec<PluginId>) -> Self {
        self.plugin = Some(plugin);
        self.chain = chain;
        self
    }

    /// Puts `what` in front of the message: `what: message`.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Says whether the class is `code`.
    pub fn is(&self, code: Code) -> bool {
        self.code == code
    }
}

macro_rules! constructors {
    ($( $(#[$doc:meta])* $name:ident => $code:ident; )*) => {
        impl Error { $( $(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(Code::$code, message) } )* }
    };
}
constructors! {
    /// The request is wrong.
    invalid => InvalidArgument;
    /// The object is not there.
    not_found => NotFound;
    /// The name is taken.
    exists => AlreadyExists;
    /// The state forbids it.
    precondition => FailedPrecondition;
    /// Somebody was in between.
    aborted => Aborted;
    /// Outside of the object.
    out_of_range => OutOfRange;
    /// Something ran out.
    exhausted => ResourceExhausted;
    /// A fault of ours.
    internal => Internal;
    /// Bytes are damaged.
    data_loss => DataLoss;
    /// Not offered here.
    unimplemented => Unimplemented;
    /// A needed plugin or host is not there.
    unavailable => Unavailable;
    /// Too late.
    deadline => DeadlineExceeded;
    /// The caller cancelled.
    cancelled => Cancelled;
    /// May not.
    denied => PermissionDenied;
    /// Wrong or missing credentials.
    unauthenticated => Unauthenticated;
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
