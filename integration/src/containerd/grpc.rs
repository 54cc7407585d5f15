//! A gRPC client of containerd on one lasting connection, so that a bench measures containerd and not `ctr` starting.
//!
//! Speaks just the calls that run a container, with messages written field by field.
//! Source: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`), Protocol Buffers "Encoding", containerd 1.6 `api/services/*/v1`.

use bytes::{BufMut, Bytes};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use super::Containerd;
use crate::Outcome;

const OVERLAYFS: &str = "overlayfs";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// An open connection to containerd, in the namespace `bench`.
pub struct Grpc {
    sender: SendRequest<Full<Bytes>>,
}

/// An answer that is not OK: method, status and message.
#[derive(Debug)]
pub struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// What to run: made once, run often.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Image name, for the record.
    pub image: String,
    /// Chain id of the image's topmost snapshot.
    pub parent: String,
    /// OCI spec as JSON text.
    pub spec: String,
    /// File that stdout and stderr are appended to.
    pub log: String,
}

impl Containerd {
    /// Opens a lasting connection. Errors: containerd does not listen.
    pub async fn grpc(&self) -> Outcome<Grpc> {
        let stream = UnixStream::connect(self.socket()).await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Grpc { sender })
    }
}

impl Grpc {
    /// Asks for the version, which answers as soon as containerd serves. Errors: it does not serve.
    pub async fn version(&mut self) -> Outcome {
        self.call("version.v1.Version/Version", Message::default())
            .await?;
        Ok(())
    }

    /// Makes, starts, awaits and removes a container, as `ctr run --rm` would; returns its exit code.
    ///
    /// Errors: any step is refused; what was made before it stays.
    pub async fn run(&mut self, id: &str, recipe: &Recipe) -> Outcome<u64> {
        self.create(id, recipe).await?;
        let by_id = || Message::default().text(1, id);
        let mut waiting = self.clone();
        let wait = waiting.call("tasks.v1.Tasks/Wait", by_id());
        let (exit, started) = tokio::join!(wait, self.call("tasks.v1.Tasks/Start", by_id()));
        started?;
        let code = fields(&exit?)
            .find_map(|field| field.number(1))
            .unwrap_or_default();
        self.call("tasks.v1.Tasks/Delete", by_id()).await?;
        let snapshot = Message::default().text(1, OVERLAYFS).text(2, id);
        self.call("snapshots.v1.Snapshots/Remove", snapshot).await?;
        self.call("containers.v1.Containers/Delete", by_id())
            .await?;
        Ok(code)
    }

    /// Makes the name of an image. Errors: [`Refused`], or the connection ended.
    pub async fn make_image(&mut self, name: &str, digest: &str) -> Outcome {
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let target = Message::default()
            .text(1, manifest)
            .text(2, digest)
            .number(3, 1);
        let image = Message::default().text(1, name).message(3, &target);
        let request = Message::default().message(1, &image);
        self.call("images.v1.Images/Create", request).await?;
        Ok(())
    }

    /// Deletes the name of an image. Errors: as [`Grpc::make_image`].
    pub async fn delete_image(&mut self, name: &str) -> Outcome {
        let request = Message::default().text(1, name);
        self.call("images.v1.Images/Delete", request).await?;
        Ok(())
    }

    async fn create(&mut self, id: &str, recipe: &Recipe) -> Outcome {
        let snapshot = Message::default()
            .text(1, OVERLAYFS)
            .text(2, id)
            .text(3, &recipe.parent);
        let prepared = self
            .call("snapshots.v1.Snapshots/Prepare", snapshot)
            .await?;
        let runtime = Message::default().text(1, "io.containerd.runc.v2");
        let spec = Message::default().text(1, SPEC).text(2, &recipe.spec);
        let container = Message::default().text(1, id).text(3, &recipe.image);
        let container = container
            .message(4, &runtime)
            .message(5, &spec)
            .text(6, OVERLAYFS)
            .text(7, id);
        self.call(
            "containers.v1.Containers/Create",
            Message::default().message(1, &container),
        )
        .await?;
        let mut task = Message::default().text(1, id);
        for mount in fields(&prepared).filter_map(|field| field.bytes(1)) {
            task = task.bytes(3, mount);
        }
        let log = format!("file://{}", recipe.log);
        self.call("tasks.v1.Tasks/Create", task.text(5, &log).text(6, &log))
            .await?;
        Ok(())
    }

    /// Sends one call and returns the bytes of its answer. Errors: the connection ended, or a status that is not OK.
    async fn call(&mut self, method: &str, message: Message) -> Outcome<Bytes> {
        let mut frame = Vec::with_capacity(message.0.len() + 5);
        frame.put_u8(0); // not compressed
        frame.put_u32(u32::try_from(message.0.len())?);
        frame.extend_from_slice(&message.0);
        let request = Request::post(format!("http://containerd/containerd.services.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", "bench")
            .body(Full::new(Bytes::from(frame)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let headers = answer.headers().clone();
        let answer = answer.into_body().collect().await?;
        let trailers = answer.trailers().unwrap_or(&headers);
        let text = |name| {
            trailers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        if text("grpc-status") != "0" {
            let (status, message) = (text("grpc-status"), text("grpc-message"));
            let refused = format!("{method}: status {status} {message}");
            return Err(Box::new(Refused(refused)));
        }
        let bytes = answer.to_bytes();
        Ok(bytes.slice(bytes.len().min(5)..))
    }
}

impl Clone for Grpc {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
        }
    }
}

/// A protobuf message that is being written.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn text(self, number: u64, value: &str) -> Self {
        self.bytes(number, value.as_bytes())
    }

    fn number(mut self, number: u64, value: u64) -> Self {
        self.varint(number << 3);
        self.varint(value);
        self
    }

    fn message(self, number: u64, value: &Self) -> Self {
        self.bytes(number, &value.0)
    }

    fn bytes(mut self, number: u64, value: &[u8]) -> Self {
        self.varint(number << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// One field of a message that is being read.
#[derive(Clone, Copy, Debug)]
struct Field<'a> {
    tag: u64,
    number: u64,
    bytes: &'a [u8],
}

impl<'a> Field<'a> {
    fn number(self, tag: u64) -> Option<u64> {
        (self.tag == tag << 3).then_some(self.number)
    }

    fn bytes(self, tag: u64) -> Option<&'a [u8]> {
        (self.tag == (tag << 3 | 2)).then_some(self.bytes)
    }
}

/// Reads numbers and length-delimited fields; ends at the first of another kind.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Field<'_>> {
    std::iter::from_fn(move || {
        let tag = varint(&mut rest)?;
        let number = varint(&mut rest)?;
        let length = match tag & 7 {
            0 => 0,
            2 => usize::try_from(number).ok()?,
            _ => return None,
        };
        let (bytes, behind) = rest.split_at_checked(length)?;
        rest = behind;
        Some(Field { tag, number, bytes })
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
