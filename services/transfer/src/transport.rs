//! Connections: one HTTP client per kind of TLS set-up, kept so that requests share connections.
//!
//! HTTP/1.1 on purpose: layers that are fetched side by side then have a connection, and a receive window, each.
//! Redirects are followed by hand in [`crate::registry`], because who may see a credential is decided there.

use crate::hosts::{Host, Tls, is_loopback};
use bytes::BytesMut;
use contracts::{Error, Result};
use reqwest::{Client, Request, Response, Url, redirect, tls::Certificate};
use std::{
    collections::HashMap,
    error::Error as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Most clients kept; past this all are dropped, which only costs new connections.
const MAX_KEPT: usize = 64;
/// Longest wait for the head of an answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// The clients of this process.
#[derive(Default)]
pub(crate) struct Transport(Mutex<HashMap<Key, Client>>);

/// Everything that makes two clients different. Files count by their bytes, so that a renewed one is used.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    ca: Vec<Vec<u8>>,
    identity: Option<Vec<u8>>,
    skip_verify: bool,
    /// Without TLS there is no need to load the system's authorities.
    plain: bool,
    /// This machine is never asked through a proxy, as in Go's clients.
    direct: bool,
    dial_timeout: Duration,
}

impl Transport {
    /// Gives the client for where `host` sends us, or for itself: same authorities, but our certificate is not shown
    /// to others.
    pub(crate) fn client_for(&self, url: &Url, host: &Host) -> Result<Client> {
        let own = origin(url) == origin_of(host);
        let client = if own {
            host.tls.client.clone()
        } else {
            Vec::new()
        };
        let tls = Tls {
            client,
            ..host.tls.clone()
        };
        self.get(key(&tls, url, host.dial_timeout)?)
    }

    fn get(&self, key: Key) -> Result<Client> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept.get(&key) {
            return Ok(client.clone());
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let client = build(&key)?;
        kept.insert(key, client.clone());
        Ok(client)
    }
}

fn key(tls: &Tls, url: &Url, dial_timeout: Duration) -> Result<Key> {
    let plain = url.scheme() == "http";
    let direct = is_loopback(url.host_str().unwrap_or_default());
    if plain {
        let (ca, identity) = (Vec::new(), None);
        return Ok(Key {
            ca,
            identity,
            skip_verify: false,
            plain,
            direct,
            dial_timeout,
        });
    }
    let ca = tls.ca.iter().map(|path| pem(path)).collect::<Result<_>>()?;
    let identity = tls.client.first().map(identity).transpose()?;
    let skip_verify = tls.skip_verify;
    Ok(Key {
        ca,
        identity,
        skip_verify,
        plain,
        direct,
        dial_timeout,
    })
}

fn pem(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::precondition(format!("{}: {error}", path.display())))
}

/// Certificate and key in one, as the TLS library takes them.
fn identity((certificate, key): &(PathBuf, Option<PathBuf>)) -> Result<Vec<u8>> {
    let mut both = pem(certificate)?;
    if let Some(key) = key {
        both.push(b'\n');
        both.extend(pem(key)?);
    }
    Ok(both)
}

fn build(key: &Key) -> Result<Client> {
    let faulty =
        |error: reqwest::Error| Error::precondition(format!("tls set-up: {}", cause(&error)));
    let mut builder = Client::builder()
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(key.dial_timeout);
    if key.direct {
        builder = builder.no_proxy();
    }
    if key.plain {
        builder = builder.tls_certs_only([]);
    } else {
        let mut authorities = Vec::new();
        for pem in &key.ca {
            authorities.extend(Certificate::from_pem_bundle(pem).map_err(faulty)?);
        }
        builder = builder
            .tls_certs_merge(authorities)
            .tls_danger_accept_invalid_certs(key.skip_verify);
    }
    if let Some(identity) = &key.identity {
        builder = builder.identity(reqwest::Identity::from_pem(identity).map_err(faulty)?);
    }
    builder.build().map_err(faulty)
}

/// Shows `https://host:port`; the port only when it is not the scheme's own.
pub(crate) fn origin(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}

/// Shows the origin of a host as [`origin`] writes it, so that both may be compared.
pub(crate) fn origin_of(host: &Host) -> String {
    Url::parse(&host.url())
        .map(|url| origin(&url))
        .unwrap_or_default()
}

/// Sends one request and waits for the head of the answer.
///
/// Errors: `Unavailable` naming host and cause.
pub(crate) async fn execute(
    client: &Client,
    request: Request,
    patience: Duration,
) -> Result<Response> {
    let whom = origin(request.url());
    match tokio::time::timeout(patience, client.execute(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(unreachable(&whom, &error)),
        Err(_) => Err(Error::unavailable(format!(
            "{whom}: no answer within {} s",
            patience.as_secs()
        ))),
    }
}

/// Says that `whom` could not be asked, why, and what might help.
pub(crate) fn unreachable(whom: &str, error: &reqwest::Error) -> Error {
    let cause = cause(error);
    if out_of_descriptors(error) {
        let what = "raise the limit of open files, or pull less at a time";
        return Error::exhausted(format!("{whom}: cannot be asked: {cause}: {what}"));
    }
    let hint = if cause.contains("InvalidContentType") || cause.contains("corrupt message") {
        "; if it speaks plain http, ask with plain_http"
    } else if cause.contains("UnknownIssuer") {
        "; add its authority as ca in hosts.toml"
    } else {
        ""
    };
    Error::unavailable(format!("{whom}: cannot be reached: {cause}{hint}"))
}

/// Whether no descriptor was left, in the machine (`ENFILE`) or in this process (`EMFILE`).
fn out_of_descriptors(error: &dyn std::error::Error) -> bool {
    let mut source = error.source();
    while let Some(inner) = source {
        let io = inner.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| matches!(io.raw_os_error(), Some(23 | 24))) {
            return true;
        }
        source = inner.source();
    }
    false
}

/// Writes the innermost reason. The URL is left out: a signed one is a credential.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut reasons: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(inner) = source {
        reasons.push(inner.to_string());
        source = inner.source();
    }
    let text = if error.is_timeout() && error.is_connect() {
        "connecting timed out".to_owned()
    } else {
        reasons.pop().unwrap_or_else(|| "request failed".into())
    };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Reads a whole answer of at most `limit` bytes. Errors: `Unavailable` when it is cut, `DataLoss` when it is longer.
pub(crate) async fn body(response: &mut Response, limit: usize) -> Result<BytesMut> {
    let whom = origin(response.url());
    let mut bytes = BytesMut::new();
    loop {
        let chunk = tokio::time::timeout(ANSWER, response.chunk()).await;
        match chunk {
            Ok(Ok(Some(chunk))) if bytes.len() + chunk.len() > limit => {
                return Err(Error::data_loss(format!(
                    "{whom}: answer has more than {limit} bytes"
                )));
            }
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
            Ok(Ok(None)) => return Ok(bytes),
            Ok(Err(error)) => {
                return Err(Error::unavailable(format!(
                    "{whom}: answer was cut: {}",
                    cause(&error)
                )));
            }
            Err(_) => return Err(Error::unavailable(format!("{whom}: answer stalled"))),
        }
    }
}
