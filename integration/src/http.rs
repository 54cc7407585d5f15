//! The smallest HTTP client that reaches a unix socket and reads event streams.
//!
//! [`Client`] opens a connection per request, so that a server may die and come back between two;
//! [`Connection`] keeps one, for benches that must not measure connecting.

mod stream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

pub use stream::{Record, Records};

use crate::Outcome;

/// No answer in a story takes longer; a pull of a large image waits as an operation instead.
const ANSWER: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Sends requests to one server, each on a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    headers: HeaderMap,
}

impl Client {
    /// Reaches a server by its unix socket.
    pub fn unix(socket: &Path) -> Self {
        Self::at(Address::Unix(socket.to_owned()))
    }

    /// Reaches a server by its address, in plain HTTP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::at(Address::Tcp(address))
    }

    fn at(address: Address) -> Self {
        Self {
            address,
            headers: HeaderMap::new(),
        }
    }

    /// Adds a header to every request that follows. Errors: a name or value HTTP does not allow.
    pub fn with_header(mut self, name: &str, value: &str) -> Outcome<Self> {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        self.headers.insert(name, HeaderValue::from_str(value)?);
        Ok(self)
    }

    /// Sends a request and collects its answer. Errors: no connection, or no full answer in a minute.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Outcome<Response> {
        self.connect().await?.send(method, path, body).await
    }

    /// Opens a stream of records: `text/event-stream` or `application/x-ndjson` by `accept`.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: impl Into<Body>,
    ) -> Outcome<Records> {
        let client = self.clone().with_header(ACCEPT.as_str(), accept)?;
        let mut connection = client.connect().await?;
        let answer = connection.begin(method, path, body.into()).await?;
        if !answer.status().is_success() {
            return Err(collect(answer).await?.problem().into());
        }
        Ok(Records::new(answer.into_body(), connection))
    }

    /// Opens a connection that serves many requests, one after the other.
    pub async fn connect(&self) -> Outcome<Connection> {
        let sender = match &self.address {
            Address::Unix(path) => open(UnixStream::connect(path).await?).await?,
            Address::Tcp(address) => open(TcpStream::connect(address).await?).await?,
        };
        let host = match &self.address {
            Address::Unix(_) => "gantry".to_owned(),
            Address::Tcp(address) => address.to_string(),
        };
        Ok(Connection {
            sender,
            host,
            headers: self.headers.clone(),
        })
    }
}

async fn open<S>(stream: S) -> Outcome<SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One open connection to a server.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    headers: HeaderMap,
}

impl Connection {
    /// Sends a request and collects its answer. Errors: the connection ended, or no full answer in a minute.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Outcome<Response> {
        let body = body.into();
        let whole = async { collect(self.begin(method.clone(), path, body).await?).await };
        match tokio::time::timeout(ANSWER, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{method} {path}: no answer in {ANSWER:?}").into()),
        }
    }

    async fn begin(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Outcome<hyper::Response<Incoming>> {
        self.sender.ready().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host);
        if let Some(kind) = body.kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let mut request = request.body(Full::new(body.bytes))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        Ok(self.sender.send_request(request).await?)
    }
}

async fn collect(answer: hyper::Response<Incoming>) -> Outcome<Response> {
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response {
        status: head.status,
        headers: head.headers,
        body,
    })
}

/// What a request carries: nothing (`()`), JSON, or bytes.
#[derive(Clone, Debug, Default)]
pub struct Body {
    bytes: Bytes,
    kind: Option<&'static str>,
}

impl Body {
    /// Carries bytes that call themselves `kind`.
    pub fn of(kind: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            kind: Some(kind),
        }
    }

    /// Carries bytes whose type a header of the client says.
    pub fn plain(bytes: Bytes) -> Self {
        Self { bytes, kind: None }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self::of("application/json", value.to_string())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::of("application/octet-stream", bytes)
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line's number.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, collected.
    pub body: Bytes,
}

impl Response {
    /// Reads the body as JSON. Errors: it is not JSON; the text of the body is in the message.
    pub fn json(&self) -> Outcome<Value> {
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("{error} in: {}", self.text()).into())
    }

    /// Shows the body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns a header, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Returns the JSON of a success. Errors: the status is not 2xx; the whole problem is in the message.
    pub fn ok(&self) -> Outcome<Value> {
        if !self.status.is_success() {
            return Err(self.problem().into());
        }
        if self.body.is_empty() {
            Ok(Value::Null)
        } else {
            self.json()
        }
    }

    /// Returns the `code` of a problem, after checking that its status is the expected one.
    ///
    /// Errors: another status, or a body that is not `application/problem+json` with a detail.
    pub fn refusal(&self, status: u16) -> Outcome<String> {
        let problem = if self.status == status {
            self.json()?
        } else {
            Value::Null
        };
        match (problem["code"].as_str(), problem["detail"].as_str()) {
            (Some(code), Some(detail)) if !detail.is_empty() && self.is_problem() => {
                Ok(code.to_owned())
            }
            _ => Err(format!(
                "expected a problem with status {status}, got {}",
                self.problem()
            )
            .into()),
        }
    }

    fn is_problem(&self) -> bool {
        self.header("content-type")
            .starts_with("application/problem+json")
    }

    fn problem(&self) -> String {
        format!(
            "{} {}: {}",
            self.status,
            self.header("content-type"),
            self.text()
        )
    }
}
