//! Uploads an image to a registry, in plain HTTP.
//!
//! Source: OCI distribution-spec 1.1, "Pushing blobs" (POST then PUT) and "Pushing manifests".

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::AUTHORIZATION;

use super::Packed;
use crate::Outcome;
use crate::http::{Body, Client};

/// A user of a registry with its password.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// Name of the user.
    pub user: &'a str,
    /// Password in clear.
    pub password: &'a str,
}

impl Login<'_> {
    fn header(self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

impl Packed {
    /// Uploads everything to a registry and points `repository:tag` to the root.
    ///
    /// Errors: the registry cannot be reached or refuses; its answer is in the message.
    pub async fn push(
        &self,
        registry: SocketAddr,
        repository: &str,
        tag: &str,
        login: Option<Login<'_>>,
    ) -> Outcome {
        let mut client = Client::tcp(registry);
        if let Some(login) = login {
            client = client.with_header(AUTHORIZATION.as_str(), &login.header())?;
        }
        for (digest, bytes) in &self.blobs {
            push_blob(&client, repository, digest, bytes).await?;
        }
        for (descriptor, bytes) in &self.manifests {
            let name = if *descriptor == self.root {
                tag
            } else {
                &descriptor.digest
            };
            let client = client
                .clone()
                .with_header("content-type", &descriptor.media_type)?;
            let path = format!("/v2/{repository}/manifests/{name}");
            client
                .send(Method::PUT, &path, Body::plain(bytes.clone()))
                .await?
                .ok()?;
        }
        Ok(())
    }
}

async fn push_blob(client: &Client, repository: &str, digest: &str, bytes: &Bytes) -> Outcome {
    let start = client
        .send(
            Method::POST,
            &format!("/v2/{repository}/blobs/uploads/"),
            (),
        )
        .await?;
    start.ok()?;
    let place = start.header("location");
    let path = place
        .find("/v2/")
        .map(|at| &place[at..])
        .ok_or("a registry without upload locations")?;
    let joint = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{joint}digest={digest}");
    client.send(Method::PUT, &path, bytes.clone()).await?.ok()?;
    Ok(())
}
