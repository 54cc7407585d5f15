//! One repository of one registry as one caller sees it: which hosts to ask, how to ask, what an answer means.
//!
//! Every request goes through `Repository::ask`: it adds what a rule says, answers a 401 once, and follows redirects so that
//! credentials and added headers stay with the host they are for. What may help after a failure (the same host
//! again, after how long, or only another host) travels with the error as [`Failure`].
//! Source: OCI distribution-spec.

use crate::{
    auth::{self, Authorizer, Scopes, challenge},
    hosts::{self, Host},
    transport::{self, Transport},
};
use bytes::Bytes;
use contracts::{
    Code, Error, Result,
    transfer::{Access, Auth},
};
use reference::Reference;
use reqwest::{
    Method, Request, Response, StatusCode, Url,
    header::{
        AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
    },
};
use std::{future::Future, path::PathBuf, rc::Rc, time::Duration};

/// Most redirects that one request follows; browsers allow twice as many.
const MAX_REDIRECTS: usize = 10;
/// How much of a registry's error text is read, in bytes.
const MAX_ERROR: usize = 64 << 10;

/// How long and how often to try.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Tries of one host without any progress.
    pub tries: u32,
    /// First pause; every next is twice as long, and all are spread by chance.
    pub pause: Duration,
    /// Longest pause that a registry may ask for with `Retry-After`.
    pub longest: Duration,
    /// Longest silence within a transfer.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 3,
            pause: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            idle: Duration::from_secs(60),
        }
    }
}

/// What all requests of this process share: connections, tokens, the folder with the rules.
pub struct Registries {
    folder: PathBuf,
    patience: Patience,
    transport: Transport,
    authorizer: Authorizer,
}

impl Registries {
    /// Makes a set whose rules are read from `folder` at each use.
    pub fn new(folder: PathBuf, patience: Patience) -> Rc<Self> {
        // TLS needs one provider of cryptography per process; a second plugin in this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Rc::new(Self {
            folder,
            patience,
            transport: Transport::default(),
            authorizer: Authorizer::default(),
        })
    }

    /// Opens the repository that `reference` names. Errors: as [`hosts::plan`].
    pub fn open(self: &Rc<Self>, reference: Reference, access: &Access) -> Result<Repository> {
        let hosts = hosts::plan(&self.folder, &reference, access.plain_http)?;
        let auth = access.auth.clone().filter(|auth| *auth != Auth::default());
        Ok(Repository {
            shared: Rc::clone(self),
            reference,
            auth,
            hosts,
        })
    }

    /// Tells which hosts a reference is fetched from.
    pub fn explain(&self, reference: &Reference) -> hosts::Explanation {
        hosts::explain(&self.folder, reference, false)
    }
}

/// One repository as one caller sees it.
pub struct Repository {
    shared: Rc<Registries>,
    pub(crate) reference: Reference,
    auth: Option<Auth>,
    pub(crate) hosts: Vec<Host>,
}

/// A failed request, and what may help.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) again: Again,
}

/// What may help after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Only another host.
    Elsewhere,
    /// The same host, after a pause of ours or of its choice.
    Later(Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            again: Again::Elsewhere,
        }
    }
}

impl Failure {
    pub(crate) fn later(error: Error) -> Self {
        Self {
            error,
            again: Again::Later(None),
        }
    }
}

/// Makes a body anew for each time that the request must be sent.
pub(crate) type MakeBody<'a> = &'a dyn Fn() -> reqwest::Body;

/// One request, before a host is chosen.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// What stands behind `/v2/<repository>`.
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Option<MakeBody<'a>>,
    pub(crate) scopes: Scopes,
    /// Where the registry said to send it, instead of `path`.
    pub(crate) location: Option<Url>,
    /// Longest wait for the head of the answer.
    pub(crate) patience: Duration,
}

impl Ask<'_> {
    pub(crate) fn new(method: Method, path: String, scopes: Scopes) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self {
            method,
            path,
            query,
            headers,
            body: None,
            scopes,
            location: None,
            patience: transport::ANSWER,
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers
            .extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }
}

impl Repository {
    /// How long and how often to try.
    pub(crate) fn patience(&self) -> &Patience {
        &self.shared.patience
    }

    /// What reading this repository needs.
    pub(crate) fn pull_scopes(&self) -> Scopes {
        Scopes::pull(self.reference.repository())
    }

    /// Sends `ask` to `host`, with credentials once it turns out that they are wanted.
    pub(crate) async fn ask(&self, host: &Host, ask: &Ask<'_>) -> Result<Response, Failure> {
        let auth = self.auth.as_ref().filter(|_| host.upstream);
        let url = self.url(host, ask)?;
        let mut shown = self.shared.authorizer.ready(host, &ask.scopes, auth);
        // Twice: an old token may be refused, then a fresh one; a third refusal is the answer.
        for _ in 0..2 {
            let response = self.follow(host, ask, url.clone(), shown.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || !self.is_at(host, response.url()) {
                return Ok(response);
            }
            let challenges = challenges(response.headers());
            let authorizer = &self.shared.authorizer;
            shown = Some(
                authorizer
                    .answer(
                        &self.shared.transport,
                        host,
                        challenges,
                        &ask.scopes,
                        auth,
                        shown.as_ref(),
                    )
                    .await?,
            );
        }
        let response = self.follow(host, ask, url, shown.as_ref()).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Err(auth::refused(host, auth).into()),
            _ => Ok(response),
        }
    }

    /// Writes the URL. A mirror is told with `ns` which registry is meant. Source: containerd, docs/hosts.md.
    fn url(&self, host: &Host, ask: &Ask<'_>) -> Result<Url> {
        let own = format!("{}/{}{}", host.url(), self.reference.repository(), ask.path);
        let mut url = match &ask.location {
            Some(url) => url.clone(),
            None => Url::parse(&own)
                .map_err(|error| Error::invalid(format!("registry {}: {error}", host.name())))?,
        };
        if host.authority != self.reference.registry_host() && ask.location.is_none() {
            url.query_pairs_mut()
                .append_pair("ns", self.reference.registry());
        }
        for (name, value) in &ask.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        Ok(url)
    }

    fn is_at(&self, host: &Host, url: &Url) -> bool {
        transport::origin(url) == transport::origin_of(host)
    }

    /// Sends one request and follows redirects. What is only for `host` never goes elsewhere, not even on a way back.
    async fn follow(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        mut url: Url,
        shown: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut trusted = true;
        for _ in 0..=MAX_REDIRECTS {
            trusted = trusted && self.is_at(host, &url);
            let request = request(ask, url.clone(), trusted.then_some((host, shown)));
            let response = self.execute(host, request, ask.patience).await?;
            match redirected(host, ask, &response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(Error::unavailable(format!(
            "registry {}: more than {MAX_REDIRECTS} redirects",
            host.name()
        ))
        .into())
    }

    async fn execute(
        &self,
        host: &Host,
        request: Request,
        patience: Duration,
    ) -> Result<Response, Failure> {
        let client = self.shared.transport.client_for(request.url(), host)?;
        let whom = transport::origin(request.url());
        let registry =
            |error: Error| error.context(format!("registry {}", self.reference.registry()));
        match tokio::time::timeout(patience, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(registry(transport::unreachable(&whom, &error)).into())
            }
            Ok(Err(error)) => Err(Failure::later(registry(transport::unreachable(
                &whom, &error,
            )))),
            Err(_) => {
                let what = format!("{whom}: no answer within {} s", patience.as_secs());
                Err(Failure::later(registry(Error::unavailable(what))))
            }
        }
    }

    /// Passes a success on, and says of everything else what it means. `what` is what was asked for: `tag "1"`.
    pub(crate) async fn judge(
        &self,
        host: &Host,
        what: &str,
        mut response: Response,
    ) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = retry_after(response.headers());
        let said = said(&mut response).await;
        let object = format!(
            "registry {}: repository {}",
            host.name(),
            self.reference.repository()
        );
        let code = match status.as_u16() {
            401 => {
                return Err(
                    auth::refused(host, self.auth.as_ref().filter(|_| host.upstream)).into(),
                );
            }
            403 => Code::PermissionDenied,
            404 | 410 => Code::NotFound,
            408 | 500..=599 => Code::Unavailable,
            416 => Code::OutOfRange,
            429 => Code::ResourceExhausted,
            400 | 405..=499 => Code::FailedPrecondition,
            _ => Code::Unknown,
        };
        let means = match code {
            Code::NotFound => "is not there".to_owned(),
            Code::PermissionDenied => format!("access denied{}", self.as_whom(host)),
            Code::ResourceExhausted => "too many requests; try again later".to_owned(),
            _ => format!("answered {status}"),
        };
        let again = match status.as_u16() {
            408 | 429 | 500..=599 => Again::Later(after),
            _ => Again::Elsewhere,
        };
        Err(Failure {
            error: Error::new(code, format!("{object}: {what}: {means}{said}")),
            again,
        })
    }

    fn as_whom(&self, host: &Host) -> String {
        match self.auth.as_ref().filter(|_| host.upstream) {
            Some(auth) if !auth.username.is_empty() => format!(" for user {:?}", auth.username),
            Some(_) => " for this token".into(),
            None => " without credentials".into(),
        }
    }

    /// Tries one host until `attempt` succeeds, cannot be helped by trying again, or was tried often enough.
    pub(crate) async fn persist<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut tries = 0;
        loop {
            let failure = match attempt().await {
                Ok(value) => return Ok(value),
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

    /// Pauses before try number `tries + 1`; false when the registry asks for more patience than there is.
    pub(crate) async fn rest(&self, tries: u32, after: Option<Duration>) -> bool {
        let patience = self.patience();
        if after.is_some_and(|after| after > patience.longest) {
            return false;
        }
        let doubled = patience
            .pause
            .saturating_mul(1 << tries.saturating_sub(1).min(10))
            .min(patience.longest);
        // Spread over half to one and a half, so that many clients do not come back at the same moment.
        let pause = doubled
            .mul_f64(rand::random_range(0.5..1.5))
            .max(after.unwrap_or_default());
        tokio::time::sleep(pause).await;
        true
    }
}

/// Puts what several hosts said into one error: the last one's, which is the registry itself, decides the class.
pub(crate) fn combine(mut errors: Vec<Error>, none: impl FnOnce() -> Error) -> Error {
    let Some(mut last) = errors.pop() else {
        return none();
    };
    for error in errors {
        last.message = format!("{}; before that {}", last.message, error.message);
    }
    last
}

fn request(ask: &Ask<'_>, url: Url, trusted: Option<(&Host, Option<&HeaderValue>)>) -> Request {
    let mut request = Request::new(ask.method.clone(), url);
    let headers = request.headers_mut();
    for (name, value) in &ask.headers {
        headers.append(name, value.clone());
    }
    if let Some((host, shown)) = trusted {
        for header in &host.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&header.value)) {
                headers.append(name, value);
            }
        }
        if let Some(shown) = shown {
            headers.insert(AUTHORIZATION, shown.clone());
        }
    }
    *request.body_mut() = ask.body.map(|make| make());
    request
}

/// Finds out where an answer sends us, if it does. From TLS down to plain HTTP nothing is followed.
fn redirected(host: &Host, ask: &Ask<'_>, response: &Response) -> Result<Option<Url>> {
    let reading = matches!(ask.method, Method::GET | Method::HEAD);
    let follow = match response.status().as_u16() {
        301..=303 => reading,
        307 | 308 => true,
        _ => false,
    };
    let Some(location) = response.headers().get(LOCATION).filter(|_| follow) else {
        return Ok(None);
    };
    let from = response.url();
    let next = location.to_str().ok().and_then(|text| from.join(text).ok());
    let allowed = |next: &Url| match next.scheme() {
        "https" => true,
        "http" => from.scheme() == "http",
        _ => false,
    };
    match next.filter(allowed) {
        Some(next) => Ok(Some(next)),
        None => Err(Error::unavailable(format!(
            "registry {}: redirects to where nothing is followed",
            host.name()
        ))),
    }
}

fn challenges(headers: &HeaderMap) -> Vec<challenge::Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect()
}

/// Reads seconds or a date. Source: RFC 9110, section 10.2.3.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(
        until
            .duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    )
}

/// Fetches the registry's own words, made harmless: they are shown to users and written to logs.
async fn said(response: &mut Response) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        message: String,
    }
    let Ok(bytes) = transport::body(response, MAX_ERROR).await else {
        return String::new();
    };
    let Ok(body) = serde_json::from_slice::<Body>(&bytes) else {
        // What Go's servers answer to a request in the clear.
        let tls = bytes.windows(12).any(|words| words == b"HTTPS server");
        let hint = "; it speaks https: write server = \"https://…\" into its hosts.toml";
        return if tls { hint.into() } else { String::new() };
    };
    let words = body
        .errors
        .into_iter()
        .map(|error| error.message)
        .find(|message| !message.is_empty());
    let clean = |text: String| {
        text.chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect::<String>()
    };
    words
        .map(|text| format!(" (it says: {})", clean(text)))
        .unwrap_or_default()
}

/// Makes a body of bytes that are here.
pub(crate) fn bytes_body(bytes: &Bytes) -> impl Fn() -> reqwest::Body + use<> {
    let bytes = bytes.clone();
    move || bytes.clone().into()
}
