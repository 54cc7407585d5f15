//! One shim seen by its caller: a ttrpc connection that is shared by all calls, each with a bound of its own.
//!
//! Versions 2 and 3 of the task API have the same messages and differ in the service's name, so calls are made by name.

use containerd_shim_protos::shim_async::Client;
use contracts::{Code, Error};
use protobuf::Message;
use std::time::Duration;

/// How long a connection may take: the socket is local, only a stopped shim with a full backlog needs longer.
const CONNECT: Duration = Duration::from_secs(2);

/// A connected shim. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Shim {
    client: Client,
    service: &'static str,
    namespace: String,
}

/// Why a shim gave no answer of use.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// It is there and says nothing.
    #[error("shim does not answer: nothing within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It is there and cannot say anything.
    #[error(
        "shim does not answer: its process {0} is stopped: continue it with SIGCONT, or delete the task with force"
    )]
    Stopped(i32),
    /// It is not there.
    #[error("shim is gone: {0}")]
    Gone(String),
    /// It answered with an error.
    #[error("{message}")]
    Refused { code: ttrpc::Code, message: String },
}

impl ShimError {
    /// The error of the house; what the runtime failed with becomes `otherwise`.
    pub(crate) fn otherwise(self, otherwise: Code) -> Error {
        let text = self.to_string();
        match self {
            Self::Silent(_) | Self::Stopped(_) => Error::deadline(text),
            Self::Gone(_) => Error::unavailable(text),
            Self::Refused { code, message } => Error::new(class(code, otherwise), message),
        }
    }

    /// Whether it is there and does not answer.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Stopped(_))
    }

    pub(crate) fn is(&self, wanted: ttrpc::Code) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

impl From<ShimError> for Error {
    fn from(error: ShimError) -> Self {
        error.otherwise(Code::FailedPrecondition)
    }
}

fn class(code: ttrpc::Code, otherwise: Code) -> Code {
    match code {
        ttrpc::Code::NOT_FOUND => Code::NotFound,
        ttrpc::Code::ALREADY_EXISTS => Code::AlreadyExists,
        ttrpc::Code::INVALID_ARGUMENT => Code::InvalidArgument,
        ttrpc::Code::FAILED_PRECONDITION => Code::FailedPrecondition,
        ttrpc::Code::UNIMPLEMENTED => Code::Unimplemented,
        ttrpc::Code::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
        ttrpc::Code::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
        ttrpc::Code::PERMISSION_DENIED => Code::PermissionDenied,
        _ => otherwise,
    }
}

impl Shim {
    /// Connects to `address`, which speaks version `api` of the task service. Errors: `Silent`, `Gone`.
    pub(crate) async fn connect(
        address: &str,
        api: u32,
        namespace: &str,
    ) -> Result<Self, ShimError> {
        let client = tokio::time::timeout(CONNECT, Client::connect(address))
            .await
            .map_err(|_| ShimError::Silent(CONNECT))?
            .map_err(|e| ShimError::Gone(e.to_string()))?;
        let service = if api >= 3 {
            "containerd.task.v3.Task"
        } else {
            "containerd.task.v2.Task"
        };
        Ok(Self {
            client,
            service,
            namespace: namespace.to_owned(),
        })
    }

    /// Calls `method`. `bound` is how long the answer may take; none waits as long as the shim lives.
    pub(crate) async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        bound: Option<Duration>,
    ) -> Result<A, ShimError> {
        let payload = request
            .write_to_bytes()
            .map_err(|e| broken(method, &e.to_string()))?;
        let mut context = ttrpc::context::Context::default();
        context.add("containerd-namespace-ttrpc".into(), self.namespace.clone());
        let request = ttrpc::Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            payload,
            metadata: ttrpc::context::to_pb(context.metadata),
            ..ttrpc::Request::default()
        };
        let answer = match bound {
            Some(bound) => tokio::time::timeout(bound, self.client.request(request))
                .await
                .map_err(|_| ShimError::Silent(bound))?,
            None => self.client.request(request).await,
        };
        let payload = answer.map_err(from_ttrpc)?.payload;
        A::parse_from_bytes(&payload).map_err(|e| broken(method, &e.to_string()))
    }
}

fn from_ttrpc(error: ttrpc::Error) -> ShimError {
    match error {
        ttrpc::Error::RpcStatus(status) => ShimError::Refused {
            code: status.code(),
            message: status.message,
        },
        other => ShimError::Gone(other.to_string()),
    }
}

fn broken(method: &str, why: &str) -> ShimError {
    ShimError::Refused {
        code: ttrpc::Code::INTERNAL,
        message: format!("shim: {method}: {why}"),
    }
}
