//! One request to the node's HTTP API over its Unix socket.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;

/// Runs a client's future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    runtime.block_on(future)
}

/// Sends a request and answers the body of a success.
///
/// Errors: a sentence for people: where nobody listens, or the `detail` of the problem with its `code`.
pub(crate) async fn request(
    socket: &Path,
    method: Method,
    path: &str,
    body: String,
) -> Result<Bytes, String> {
    let stream = UnixStream::connect(socket).await.map_err(|e| {
        format!("{}: {e}; is the daemon running? start it with `gantry daemon`, or name its socket with --host", socket.display())
    })?;
    let broken = |e: hyper::Error| format!("{}: {e}", socket.display());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "gantry")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| format!("{path}: {e}"))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    if status.is_success() {
        Ok(body)
    } else {
        Err(problem(status.as_u16(), &body))
    }
}

fn problem(status: u16, body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| {
        parsed
            .as_ref()
            .and_then(|problem| problem.get(name))
            .and_then(serde_json::Value::as_str)
    };
    match (field("code"), field("detail")) {
        (Some(code), Some(detail)) => format!("{detail} ({code})"),
        _ => format!("status {status}: {}", String::from_utf8_lossy(body)),
    }
}

/// Calls one method of one plugin and prints its answer.
pub(crate) async fn call(
    socket: &Path,
    method: &str,
    body: String,
    namespace: &str,
    plugin: Option<&str>,
) -> Result<(), String> {
    let plugin = plugin
        .map(|plugin| format!("&plugin={plugin}"))
        .unwrap_or_default();
    let path = format!("/v1/call/{method}?namespace={namespace}{plugin}");
    let answer = request(socket, Method::POST, &path, body).await?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}
