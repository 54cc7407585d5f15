//! From a reference to a descriptor, and from a descriptor to a checked document.
//!
//! One HEAD answers for the digest; the document is fetched by that digest and checked against it. A registry that
//! does not answer HEAD fully is asked with GET, and its bytes are hashed. Source: OCI distribution-spec, "Pulling manifests".

use crate::{
    hosts::Host,
    manifest::{
        self, DOCKER_LIST, DOCKER_MANIFEST, Document, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST,
    },
    registry::{Ask, Failure, Repository, combine},
    transport,
};
use bytes::Bytes;
use contracts::{Descriptor, Digest, Error, Labels, Result};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName},
};

/// Names the digest of what a registry sends. Source: OCI distribution-spec.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a reference stands for, and who said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Manifest or index.
    pub target: Descriptor,
    /// The host that answered.
    pub host: String,
}

impl Repository {
    /// Asks for what the reference stands for.
    ///
    /// Errors: `NotFound`, `Unauthenticated`, `PermissionDenied`, `Unavailable`, `ResourceExhausted`, `DataLoss`;
    /// with several hosts the registry's own answer decides.
    pub async fn resolve(&self) -> Result<Found> {
        let by_digest = self.reference.digest().is_some();
        let mut errors = Vec::new();
        for host in &self.hosts {
            let able = host.capabilities.pull && (by_digest || host.capabilities.resolve);
            if !able {
                continue;
            }
            match self.persist(|| self.resolve_at(host)).await {
                Ok(target) => {
                    return Ok(Found {
                        target,
                        host: host.name().to_owned(),
                    });
                }
                Err(error) => errors.push(error),
            }
        }
        Err(combine(errors, || {
            Error::precondition(format!(
                "reference {}: no host may resolve it; see hosts.toml",
                self.reference
            ))
        }))
    }

    async fn resolve_at(&self, host: &Host) -> Result<Descriptor, Failure> {
        let response = self
            .ask(host, &self.document(Method::HEAD, self.reference.target()))
            .await?;
        let unhelpful = |status: u16| matches!(status, 400 | 405 | 406 | 501);
        if response.status().is_success() {
            if let Some(target) = announced(&response) {
                self.as_asked(host, &target.digest)?;
                return Ok(target);
            }
        } else if !unhelpful(response.status().as_u16()) {
            self.judge(host, &self.what(), response).await?;
        }
        let (media_type, bytes) = self.document_at(host, self.reference.target()).await?;
        let target = self.described(host, media_type, &bytes)?;
        Ok(target)
    }

    /// Asks for the document itself; type and size as sent, not yet checked.
    async fn document_at(&self, host: &Host, target: &str) -> Result<(String, Bytes), Failure> {
        let response = self.ask(host, &self.document(Method::GET, target)).await?;
        let mut response = self.judge(host, &self.what(), response).await?;
        let media_type = header(&response, &CONTENT_TYPE).unwrap_or_default();
        let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let bytes = transport::body(&mut response, limit)
            .await
            .map_err(|error| match error.code {
                contracts::Code::DataLoss => error.into(),
                _ => Failure::later(error),
            })?;
        Ok((media_type, bytes.freeze()))
    }

    fn described(&self, host: &Host, media_type: String, bytes: &Bytes) -> Result<Descriptor> {
        let media_type = Document::parse(&media_type, bytes)?.media_type().to_owned();
        let digest = match self.reference.digest() {
            Some(digest) => {
                manifest::verify(bytes, digest)?;
                digest.clone()
            }
            None => manifest::digest_of(bytes),
        };
        self.as_asked(host, &digest)?;
        Ok(descriptor(
            media_type,
            digest,
            u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        ))
    }

    fn as_asked(&self, host: &Host, digest: &Digest) -> Result<()> {
        match self.reference.digest() {
            Some(asked) if asked != digest => Err(Error::data_loss(format!(
                "registry {}: was asked for {asked} and has {digest}",
                host.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Fetches the manifest or index that `target` names, checked against digest, size and media type.
    ///
    /// Errors: as [`Repository::resolve`].
    pub async fn fetch_document(&self, target: &Descriptor) -> Result<(Document, Bytes)> {
        let mut errors = Vec::new();
        for host in self.hosts.iter().filter(|host| host.capabilities.pull) {
            let attempt = || async {
                let (_, bytes) = self.document_at(host, target.digest.as_str()).await?;
                self.checked(host, target, bytes).map_err(Failure::from)
            };
            match self.persist(attempt).await {
                Ok(found) => return Ok(found),
                Err(error) => errors.push(error),
            }
        }
        Err(combine(errors, || {
            Error::precondition(format!(
                "reference {}: no host may be pulled from; see hosts.toml",
                self.reference
            ))
        }))
    }

    fn checked(&self, host: &Host, target: &Descriptor, bytes: Bytes) -> Result<(Document, Bytes)> {
        let named = |error: Error| error.context(format!("registry {}", host.name()));
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if target.size != 0 && size != target.size {
            let what = format!(
                "content {}: size {size}, expected {}",
                target.digest, target.size
            );
            return Err(named(Error::data_loss(what)));
        }
        manifest::verify(&bytes, &target.digest).map_err(named)?;
        let document = Document::parse(&target.media_type, &bytes).map_err(named)?;
        Ok((document, bytes))
    }

    fn document(&self, method: Method, target: &str) -> Ask<'static> {
        let accept = [
            OCI_INDEX,
            OCI_MANIFEST,
            DOCKER_LIST,
            DOCKER_MANIFEST,
            "*/*;q=0.1",
        ]
        .join(", ");
        Ask::new(method, format!("/manifests/{target}"), self.pull_scopes()).header(ACCEPT, &accept)
    }

    /// Names in messages what is asked for.
    pub(crate) fn what(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => format!("manifest {digest}"),
            (None, Some(tag)) => format!("tag {tag:?}"),
            (None, None) => "manifest".into(),
        }
    }
}

/// Reads the descriptor from the head of an answer, if it is all there.
fn announced(response: &Response) -> Option<Descriptor> {
    if response.status() != StatusCode::OK {
        return None;
    }
    let digest = Digest::new(header(response, &CONTENT_DIGEST)?).ok()?;
    let size = header(response, &CONTENT_LENGTH)?
        .parse()
        .ok()
        .filter(|&size| size > 0 && size <= MAX_DOCUMENT)?;
    let media_type = header(response, &CONTENT_TYPE)?;
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    manifest::is_document(media_type).then(|| descriptor(media_type.to_owned(), digest, size))
}

fn header(response: &Response, name: &HeaderName) -> Option<String> {
    response
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// A descriptor without any of the optional parts.
pub(crate) fn descriptor(media_type: String, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type,
        digest,
        size,
        annotations: Labels::new(),
        platform: None,
        urls: Vec::new(),
    }
}
