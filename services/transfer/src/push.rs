//! Blobs and manifests into a registry: what is there is not sent, what is next door is mounted.
//!
//! Source: OCI distribution-spec, "Pushing a blob in chunks", "Mounting a blob from another repository", "Pushing manifests".

use crate::{
    auth::Scopes,
    hosts::Host,
    registry::{Again, Ask, Failure, Repository, bytes_body},
    transport,
};
use bytes::Bytes;
use contracts::{Code, Descriptor, Error, Result};
use futures_util::stream;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How much of a blob is read at once, in bytes: few system calls, and little memory for many uploads.
const PIECE: u64 = 256 << 10;
/// How often an upload is looked at for progress and stalls.
const GLANCE: Duration = Duration::from_millis(100);

/// How a blob came to be in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    /// The registry took it from another repository of its own.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

impl Repository {
    /// Sends one blob, unless it is there or in one of the repositories `elsewhere` of the same registry.
    ///
    /// `progress` is told how many bytes were sent, at most every 100 ms. Errors: as [`Repository::resolve`];
    /// `DataLoss` when the registry finds other bytes than the digest names.
    pub async fn push_blob(
        &self,
        blob: &Descriptor,
        file: &Arc<File>,
        elsewhere: &[String],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Pushed> {
        let host = self.push_host()?;
        if self.persist(|| self.has(host, "blobs", blob)).await? {
            return Ok(Pushed::Present);
        }
        for repository in elsewhere
            .iter()
            .filter(|name| *name != self.reference.repository())
        {
            // Whatever stands against a mount, sending the bytes will tell it better.
            if matches!(self.begin(host, blob, Some(repository)).await, Ok(None)) {
                return Ok(Pushed::Mounted);
            }
        }
        let mut tries = 0;
        loop {
            let failure = match self.upload(host, blob, file, progress).await {
                Ok(()) => return Ok(Pushed::Sent),
                Err(failure) => failure,
            };
            tries += 1;
            let Again::Later(after) = failure.again else {
                return Err(failure.error);
            };
            if tries >= self.patience().tries || !self.rest(tries, after).await {
                return Err(failure.error);
            }
        }
    }

    /// Sends a manifest or index under its digest, or under `tag`. Everything it refers to must be there.
    ///
    /// Errors: as [`Repository::push_blob`].
    pub async fn push_document(
        &self,
        document: &Descriptor,
        bytes: &Bytes,
        tag: Option<&str>,
    ) -> Result<()> {
        let host = self.push_host()?;
        if tag.is_none()
            && self
                .persist(|| self.has(host, "manifests", document))
                .await?
        {
            return Ok(());
        }
        let target = tag.unwrap_or(document.digest.as_str());
        let body = bytes_body(bytes);
        let mut ask = Ask::new(
            Method::PUT,
            format!("/manifests/{target}"),
            self.push_scopes(),
        )
        .header(CONTENT_TYPE, &document.media_type);
        ask.body = Some(&body);
        self.persist(|| async {
            let response = self.ask(host, &ask).await?;
            self.judge(host, &format!("manifest {target}"), response)
                .await
                .map(drop)
        })
        .await
    }

    fn push_host(&self) -> Result<&Host> {
        self.hosts
            .iter()
            .find(|host| host.capabilities.push)
            .ok_or_else(|| {
                Error::precondition(format!(
                    "reference {}: no host may be pushed to; see hosts.toml",
                    self.reference
                ))
            })
    }

    fn push_scopes(&self) -> Scopes {
        Scopes::push(self.reference.repository())
    }

    async fn has(&self, host: &Host, kind: &str, blob: &Descriptor) -> Result<bool, Failure> {
        let path = format!("/{kind}/{}", blob.digest);
        let ask = Ask::new(Method::HEAD, path, self.push_scopes())
            .header(ACCEPT, &format!("{}, */*", blob.media_type));
        let response = self.ask(host, &ask).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        self.judge(host, &format!("{kind} {}", blob.digest), response)
            .await
            .map(|_| true)
    }

    /// Opens an upload and gives its address; `None` when the registry mounted the blob instead.
    async fn begin(
        &self,
        host: &Host,
        blob: &Descriptor,
        from: Option<&str>,
    ) -> Result<Option<Url>, Failure> {
        let mut scopes = self.push_scopes();
        let mut query = Vec::new();
        if let Some(from) = from {
            scopes = scopes.and_pull(from);
            query = vec![
                ("mount", blob.digest.to_string()),
                ("from", from.to_owned()),
            ];
        }
        let empty = bytes_body(&Bytes::new());
        let mut ask =
            Ask::new(Method::POST, "/blobs/uploads/".into(), scopes).header(CONTENT_LENGTH, "0");
        ask.query = query;
        ask.body = Some(&empty);
        let response = self.ask(host, &ask).await?;
        let response = self
            .judge(host, &format!("upload of blob {}", blob.digest), response)
            .await?;
        match (response.status(), from) {
            (StatusCode::CREATED, Some(_)) => Ok(None),
            _ => Ok(Some(location(host, &response)?)),
        }
    }

    async fn upload(
        &self,
        host: &Host,
        blob: &Descriptor,
        file: &Arc<File>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let address = self
            .begin(host, blob, None)
            .await?
            .ok_or_else(|| no_location(host))?;
        let sent = Arc::new(AtomicU64::new(0));
        let body = || body(file, blob.size, &sent);
        let mut ask = Ask::new(Method::PUT, String::new(), self.push_scopes())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, &blob.size.to_string());
        ask.query = vec![("digest", blob.digest.to_string())];
        ask.location = Some(address);
        ask.body = Some(&body);
        // The answer comes after the last byte, so silence is measured by what is being sent.
        ask.patience = Duration::from_secs(24 * 3600);
        let response = self.watched(host, &ask, &sent, progress).await?;
        let what = format!("blob {}", blob.digest);
        self.judge(host, &what, response)
            .await
            .map_err(|failure| damaged(failure, blob))?;
        progress(blob.size);
        Ok(())
    }

    /// Sends, reports progress, and gives up when nothing moves any more.
    async fn watched(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        sent: &AtomicU64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Response, Failure> {
        let mut asking = std::pin::pin!(self.ask(host, ask));
        let (mut seen, mut quiet) = (0, Duration::ZERO);
        loop {
            if let Ok(ended) = tokio::time::timeout(GLANCE, &mut asking).await {
                return ended;
            }
            let now = sent.load(Ordering::Relaxed);
            quiet = if now == seen {
                quiet + GLANCE
            } else {
                Duration::ZERO
            };
            if now != seen {
                seen = now;
                progress(now);
            }
            if quiet >= self.patience().idle {
                let what = format!(
                    "registry {}: took nothing for {} s",
                    host.name(),
                    quiet.as_secs()
                );
                return Err(Failure::later(Error::unavailable(what)));
            }
        }
    }
}

/// A refused digest is a matter of bytes, whatever status the registry chose for it.
fn damaged(mut failure: Failure, blob: &Descriptor) -> Failure {
    let text = failure.error.message.to_lowercase();
    if failure.error.is(Code::FailedPrecondition)
        && text.contains("digest")
        && text.contains("did not match")
    {
        failure.error = Error::data_loss(format!(
            "content {}: {}",
            blob.digest, failure.error.message
        ));
    }
    failure
}

fn location(host: &Host, response: &Response) -> Result<Url> {
    let text = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let url = text.and_then(|text| response.url().join(text).ok());
    let from = transport::origin_of(host);
    // Bytes of an image may be private too: what went by TLS does not go on in the clear.
    url.filter(|url| url.scheme() == "https" || from.starts_with("http:"))
        .ok_or_else(|| no_location(host))
}

fn no_location(host: &Host) -> Error {
    Error::unavailable(format!(
        "registry {}: opened an upload without saying where",
        host.name()
    ))
}

/// Reads the file from its beginning, piece by piece, counting what is handed over.
fn body(file: &Arc<File>, size: u64, sent: &Arc<AtomicU64>) -> reqwest::Body {
    sent.store(0, Ordering::Relaxed);
    let state = (Arc::clone(file), Arc::clone(sent), 0u64);
    let pieces = stream::try_unfold(state, move |(file, sent, at)| async move {
        if at >= size {
            return Ok::<_, io::Error>(None);
        }
        let length = PIECE.min(size - at);
        let source = Arc::clone(&file);
        let piece = tokio::task::spawn_blocking(move || read(&source, at, length)).await??;
        sent.store(at + length, Ordering::Relaxed);
        Ok(Some((piece, (file, sent, at + length))))
    });
    reqwest::Body::wrap_stream(pieces)
}

fn read(file: &File, at: u64, length: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut piece, at)?;
    Ok(piece.into())
}
