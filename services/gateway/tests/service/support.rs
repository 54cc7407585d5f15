//! A gateway over fakes, and a client that reaches it by its socket.

use bus::testing::{Fake, LocalBus, LocalNode};
use bytes::Bytes;
use contracts::containers::Containers;
use contracts::content::Content;
use contracts::diff::Diff;
use contracts::events::Events;
use contracts::gc::Gc;
use contracts::images::Images;
use contracts::leases::Leases;
use contracts::namespaces::Namespaces;
use contracts::operations::{Operation, Operations, State};
use contracts::plugin::Supervisor;
use contracts::snapshots::Snapshots;
use contracts::tasks::Tasks;
use contracts::transfer::Transfer;
use contracts::{OperationId, Timestamp};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Nothing in these tests takes longer.
const BOUND: Duration = Duration::from_secs(20);

/// The plugins around the gateway; each refuses what a test does not teach it.
pub(crate) struct World {
    pub(crate) supervisor: Fake<Supervisor>,
    pub(crate) events: Fake<Events>,
    pub(crate) leases: Fake<Leases>,
    pub(crate) content: Fake<Content>,
    pub(crate) snapshots: Fake<Snapshots>,
    pub(crate) images: Fake<Images>,
    pub(crate) transfer: Fake<Transfer>,
    pub(crate) diff: Fake<Diff>,
    pub(crate) containers: Fake<Containers>,
    /// `None` leaves room for a real one.
    pub(crate) tasks: Option<Fake<Tasks>>,
    pub(crate) gc: Fake<Gc>,
    pub(crate) namespaces: Fake<Namespaces>,
    pub(crate) operations: Fake<Operations>,
    /// Settings of the gateway as JSON text.
    pub(crate) config: String,
}

impl Default for World {
    fn default() -> Self {
        Self {
            supervisor: Fake::new("core"),
            events: Fake::new("log"),
            leases: Fake::new("local"),
            content: Fake::new("local"),
            snapshots: Fake::new("overlayfs"),
            images: Fake::new("local"),
            transfer: Fake::new("local"),
            diff: Fake::new("local"),
            containers: Fake::new("local"),
            tasks: Some(Fake::new("local")),
            gc: Fake::new("local"),
            namespaces: Fake::new("local"),
            operations: Fake::new("local"),
            config: "{}".into(),
        }
    }
}

/// A running gateway.
pub(crate) struct Edge {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: LocalNode,
}

impl World {
    pub(crate) fn start(self) -> Edge {
        self.start_with(LocalBus::new())
    }

    pub(crate) fn start_with(self, bus: LocalBus) -> Edge {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        let mut bus = bus
            .fake(self.supervisor)
            .fake(self.events)
            .fake(self.leases)
            .fake(self.content)
            .fake(self.snapshots)
            .fake(self.images)
            .fake(self.transfer)
            .fake(self.diff)
            .fake(self.containers)
            .fake(self.gc)
            .fake(self.namespaces)
            .fake(self.operations);
        if let Some(tasks) = self.tasks {
            bus = bus.fake(tasks);
        }
        let node = bus
            .plugin_with(gateway::plugin(), &self.config)
            .start(dir.path())
            .unwrap();
        Edge { dir, node }
    }
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts a problem with this status and code, and returns its sentence.
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["code"], code);
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// A request being made.
pub(crate) struct Asking {
    socket: PathBuf,
    request: hyper::http::request::Builder,
    body: Bytes,
}

impl Edge {
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Asking {
        Asking {
            socket: self.socket(),
            request: Request::builder()
                .method(method)
                .uri(path)
                .header("host", "gantry"),
            body: Bytes::new(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path).body(body).send().await
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("state").join("gantry.sock")
}

impl Asking {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Bytes::from(body.into());
        self
    }

    /// Sends it and reads the whole answer.
    pub(crate) async fn send(self) -> Answer {
        let read = async {
            let (head, body) = self.open().await.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer {
                status: head.status,
                headers: head.headers,
                body,
            }
        };
        tokio::time::timeout(BOUND, read).await.unwrap()
    }

    /// Sends it and leaves the body to be read.
    pub(crate) async fn open(self) -> Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        over(stream, self.request, self.body).await
    }
}

/// Sends a request over a connection of its own.
pub(crate) async fn over(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Response<Incoming> {
    let connect = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = connect.await.unwrap();
    actix_rt::spawn(async move { drop(connection.await) });
    let response = sender.send_request(request.body(Full::new(body)).unwrap());
    let response = tokio::time::timeout(BOUND, response).await.unwrap();
    // The connection lives as long as the body is read.
    response.unwrap()
}

/// Reads a body until `wanted` bytes are in it that make `fits` true.
pub(crate) async fn read_until(
    response: &mut Response<Incoming>,
    fits: impl Fn(&str) -> bool,
) -> String {
    let mut text = String::new();
    let read = async {
        while !fits(&text) {
            let Some(frame) = response.frame().await else {
                panic!("the stream ended after {text:?}");
            };
            let frame = frame.unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(BOUND, read).await.unwrap();
    text
}

/// An operation as the operations plugin would show it.
pub(crate) fn operation(id: &OperationId, kind: &str, state: State) -> Operation {
    Operation {
        id: id.clone(),
        kind: kind.into(),
        subject: "it".into(),
        state,
        progress: Vec::new(),
        result: None,
        error: None,
        started_at: Timestamp(1),
        updated_at: Timestamp(2),
        resumed: 0,
    }
}

pub(crate) fn digest(of: char) -> contracts::Digest {
    contracts::Digest::new(format!("sha256:{}", of.to_string().repeat(64))).unwrap()
}

pub(crate) fn descriptor() -> contracts::Descriptor {
    contracts::Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: digest('a'),
        size: 10,
        annotations: Default::default(),
        platform: None,
        urls: Vec::new(),
    }
}
