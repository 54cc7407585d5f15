//! One request that is repeated with its key until it has an answer.

use std::time::{Duration, Instant};

use hyper::Method;

use crate::Outcome;
use crate::http::{Body, Client, Response};

/// How long a client repeats before it gives up: longer than any restart of the whole node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends requests that take effect once, whatever breaks on the way.
#[derive(Clone, Debug)]
pub struct Keyed {
    client: Client,
    prefix: String,
    next: u64,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The answer.
    pub response: Response,
    /// From the first attempt to the answer.
    pub took: Duration,
    /// How often the connection broke before.
    pub broken: u32,
}

impl Keyed {
    /// Keys are `prefix` and a number.
    pub fn new(client: &Client, prefix: &str) -> Self {
        Self {
            client: client.clone(),
            prefix: prefix.to_owned(),
            next: 0,
        }
    }

    /// Sends a request with a fresh key until it is answered. Errors: no answer within a minute.
    pub async fn send(
        &mut self,
        method: &Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Outcome<Answered> {
        self.next += 1;
        let key = format!("{}-{}", self.prefix, self.next);
        self.repeat(&key, method, path, body).await
    }

    /// The same with a key of the caller's.
    pub async fn repeat(
        &self,
        key: &str,
        method: &Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Outcome<Answered> {
        let client = self.client.clone().with_header("idempotency-key", key)?;
        let (body, begun) = (body.into(), Instant::now());
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        let mut broken = 0;
        loop {
            pause.tick().await;
            match client.send(method.clone(), path, body.clone()).await {
                Ok(response) => {
                    return Ok(Answered {
                        response,
                        took: begun.elapsed(),
                        broken,
                    });
                }
                Err(error) if begun.elapsed() > PATIENCE => {
                    return Err(format!("{method} {path}: {error}, after {broken} breaks").into());
                }
                Err(_) => broken += 1,
            }
        }
    }
}
