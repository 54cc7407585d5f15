//! One blob from the hosts of a registry into a sink: resumed where it was cut, on the next host where one fails.
//!
//! The position counts what the sink has taken, so a transfer goes on after a cut connection, after a restart of
//! this process, and on another host alike. Whether the bytes are right is for the content store to say; when they
//! were not, [`Download::distrust`] drops the host that sent them. Source: OCI distribution-spec, "Pulling blobs"; RFC 9110 section 14.

use crate::{
    hosts::{Capabilities, Host, Scheme},
    manifest,
    registry::{Again, Ask, Failure, Repository, combine},
    transport,
};
use bytes::Bytes;
use contracts::{Descriptor, Error};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, RANGE},
};
use std::{future::Future, io, time::Duration};

/// Takes the bytes of a blob, in order.
pub trait Sink {
    /// Takes all of `bytes`. An error ends the transfer; the position then counts what was taken before.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>>;
}

/// Why a download ended early.
#[derive(Debug)]
pub enum Stop {
    /// No host could serve the rest.
    Source(Error),
    /// The sink took no more.
    Sink(io::Error),
}

/// Where a blob may come from: a host of the registry, or an address that its manifest names.
struct Source {
    host: Host,
    address: Option<Url>,
}

/// A blob on its way.
pub struct Download<'a> {
    repository: &'a Repository,
    blob: &'a Descriptor,
    at: u64,
    sources: Vec<Source>,
    current: usize,
    errors: Vec<Error>,
}

impl<'a> Download<'a> {
    /// Begins at byte `at`.
    pub fn new(repository: &'a Repository, blob: &'a Descriptor, at: u64) -> Self {
        let hosts = repository
            .hosts
            .iter()
            .filter(|host| host.capabilities.pull);
        let mut sources: Vec<Source> = hosts
            .map(|host| Source {
                host: host.clone(),
                address: None,
            })
            .collect();
        if manifest::is_foreign(&blob.media_type) {
            sources.extend(blob.urls.iter().filter_map(|url| foreign(url)));
        }
        Self {
            repository,
            blob,
            at,
            sources,
            current: 0,
            errors: Vec::new(),
        }
    }

    /// Shows how many bytes the sink has taken.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Goes on at another byte, because the sink says how much it really has.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// Drops the host that served last, because what it sent was wrong, and starts over; false when none is left.
    pub fn distrust(&mut self, error: Error) -> bool {
        self.at = 0;
        let error = match self.sources.get(self.current) {
            Some(source) => error.context(format!("registry {}", source.host.name())),
            None => error,
        };
        self.errors.push(error);
        self.current += 1;
        self.current < self.sources.len()
    }

    /// Says what all hosts said.
    pub fn failure(&mut self) -> Error {
        let blob = self.blob;
        combine(std::mem::take(&mut self.errors), || {
            Error::precondition(format!(
                "content {}: no host may be pulled from; see hosts.toml",
                blob.digest
            ))
        })
    }

    /// Brings the rest of the blob into `sink`; `progress` is told the position after every piece.
    pub async fn run(
        &mut self,
        sink: &mut impl Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Stop> {
        while self.current < self.sources.len() {
            match self.try_current(sink, progress).await {
                Ok(()) => return Ok(()),
                Err(Stop::Source(error)) => self.errors.push(error),
                Err(stop) => return Err(stop),
            }
            self.current += 1;
        }
        Err(Stop::Source(self.failure()))
    }

    /// Tries one host as long as it makes progress, then as often as patience allows.
    async fn try_current(
        &mut self,
        sink: &mut impl Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Stop> {
        let mut tries = 0;
        let mut served = false;
        while self.at < self.blob.size {
            let before = self.at;
            let ended = self.stream(sink, progress).await;
            if self.at > before {
                (tries, served) = (0, true);
            }
            let failure = match ended {
                Ok(()) => continue,
                Err(Ended::Sink(error)) => return Err(Stop::Sink(error)),
                Err(Ended::Source(failure)) => failure,
            };
            tries += 1;
            // A host that was just serving and now refuses connections is most likely restarting.
            let after = match failure.again {
                Again::Later(after) => after,
                Again::Elsewhere if served && failure.error.is(contracts::Code::Unavailable) => {
                    None
                }
                Again::Elsewhere => return Err(Stop::Source(failure.error)),
            };
            let enough = tries >= self.repository.patience().tries;
            if enough || !self.repository.rest(tries, after).await {
                return Err(Stop::Source(failure.error));
            }
        }
        Ok(())
    }

    /// Asks once, from the position on, and passes on what comes.
    async fn stream(
        &mut self,
        sink: &mut impl Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Ended> {
        let source = &self.sources[self.current];
        let response = self.repository.ask(&source.host, &self.ask(source)).await?;
        let what = format!("blob {}", self.blob.digest);
        let mut response = self.repository.judge(&source.host, &what, response).await?;
        let mut skip = self.check(&source.host, &response)?;
        let host = source.host.name().to_owned();
        while let Some(chunk) = next(&mut response, self.repository.patience().idle, &host).await? {
            let chunk = cut(chunk, &mut skip);
            if chunk.is_empty() {
                continue;
            }
            let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if length > self.blob.size - self.at {
                return Err(self
                    .damaged(&host, "has more bytes than its manifest says")
                    .into());
            }
            sink.write(&chunk).await.map_err(Ended::Sink)?;
            self.at += length;
            progress(self.at);
        }
        if self.at < self.blob.size {
            let what = format!(
                "{what}: ended after {} of {} bytes",
                self.at, self.blob.size
            );
            let error = Error::data_loss(format!("registry {host}: {what}"));
            return Err(Failure::later(error).into());
        }
        Ok(())
    }

    fn ask(&self, source: &Source) -> Ask<'static> {
        let path = format!("/blobs/{}", self.blob.digest);
        let mut ask = Ask::new(Method::GET, path, self.repository.pull_scopes())
            .header(ACCEPT, "application/octet-stream, */*")
            .header(ACCEPT_ENCODING, "identity");
        if self.at > 0 {
            ask = ask.header(RANGE, &format!("bytes={}-", self.at));
        }
        ask.patience = self.repository.patience().idle;
        ask.location = source.address.clone();
        ask
    }

    /// Checks that the answer is the part that was asked for; gives how many bytes to skip when it is the whole.
    fn check(&self, host: &Host, response: &Response) -> Result<u64, Error> {
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let (start, total) = match partial {
            true => content_range(response).unwrap_or((self.at, None)),
            false => (0, response.content_length()),
        };
        if total.is_some_and(|total| total != self.blob.size) {
            let total = total.unwrap_or_default();
            return Err(self.damaged(
                host.name(),
                &format!("has {total} bytes, expected {}", self.blob.size),
            ));
        }
        self.at.checked_sub(start).ok_or_else(|| {
            self.damaged(
                host.name(),
                &format!("was asked for byte {} and sent from {start}", self.at),
            )
        })
    }

    fn damaged(&self, host: &str, what: &str) -> Error {
        Error::data_loss(format!(
            "registry {host}: blob {}: {what}",
            self.blob.digest
        ))
    }
}

enum Ended {
    Source(Failure),
    Sink(io::Error),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Source(failure)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Source(error.into())
    }
}

async fn next(
    response: &mut Response,
    idle: Duration,
    host: &str,
) -> Result<Option<Bytes>, Failure> {
    match tokio::time::timeout(idle, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => {
            let what = format!(
                "registry {host}: connection was cut: {}",
                transport::cause(&error)
            );
            Err(Failure::later(Error::unavailable(what)))
        }
        Err(_) => {
            let what = format!("registry {host}: sent nothing for {} s", idle.as_secs());
            Err(Failure::later(Error::unavailable(what)))
        }
    }
}

/// Drops what the sink has already.
fn cut(mut chunk: Bytes, skip: &mut u64) -> Bytes {
    let drop = usize::try_from(*skip)
        .unwrap_or(usize::MAX)
        .min(chunk.len());
    *skip -= u64::try_from(drop).unwrap_or(0);
    chunk.split_off(drop)
}

/// Reads `bytes 5-9/10` as 5 and 10.
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text
        .trim()
        .strip_prefix("bytes")?
        .trim_start()
        .split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Makes a source of an address that a manifest names for a foreign layer. Source: OCI image-spec, descriptor.md "urls".
fn foreign(address: &str) -> Option<Source> {
    let url = Url::parse(address).ok()?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return None,
    };
    let origin = transport::origin(&url);
    let (_, authority) = origin.split_once("://")?;
    let host = Host {
        scheme,
        authority: authority.to_owned(),
        path: String::new(),
        capabilities: Capabilities {
            pull: true,
            resolve: false,
            push: false,
        },
        tls: Default::default(),
        headers: Vec::new(),
        dial_timeout: Duration::from_secs(30),
        upstream: false,
        rule: crate::hosts::Rule::BUILT_IN,
    };
    Some(Source {
        host,
        address: Some(url),
    })
}
