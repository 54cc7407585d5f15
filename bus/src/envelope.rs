//! What a frame says. The envelope carries everything a call needs besides its body: namespace, lease, deadline and
//! operation id.

use contracts::{Error, LeaseId, Namespace, OperationId};
use serde::{Deserialize, Serialize};

/// Version of the frames and of the control link. Both ends must agree; the supervisor checks it at boot.
pub const PROTOCOL: u32 = 1;

/// One message between two peers. Bodies are encoded values of the contract that `method` names.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// Caller → owner.
    Call(CallFrame),
    /// Owner → caller: the answer of a read or write.
    Reply {
        id: u64,
        result: Result<Body, Error>,
    },
    /// Owner → caller: one item of a stream.
    Item { id: u64, body: Body },
    /// Owner → caller: the stream is over.
    End { id: u64, result: Result<(), Error> },
    /// Caller → owner: nobody waits any more.
    Cancel { id: u64 },
    /// Caller → owner: room for so many more items.
    Credit { id: u64, items: u32 },
}

/// A request in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CallFrame {
    /// Unique among the calls of this link.
    pub(crate) id: u64,
    /// `service.method`.
    pub(crate) method: String,
    /// On whose behalf.
    pub(crate) namespace: Option<Namespace>,
    /// What keeps new resources.
    pub(crate) lease: Option<LeaseId>,
    /// Microseconds left.
    pub(crate) left: u64,
    /// Same through all retries.
    pub(crate) operation: OperationId,
    /// The request.
    pub(crate) body: Body,
}

/// Encoded value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body(#[serde(with = "serde_bytes")] pub(crate) Vec<u8>);
