//! Who asks: anonymous, basic, or a bearer token that is fetched and kept until shortly before it expires.
//!
//! Credentials stay in the memory of this process: they are never logged, never shown by `Debug`, sent only to the
//! registry they are for (not to mirrors, not along redirects) and to the token server that it names, and never from
//! TLS down to plain HTTP. Tokens are kept apart by who asked, so that one caller cannot use another's.
//! Source: RFC 9110 section 11; distribution-spec, "Token Authentication"; RFC 6749 section 6.

pub mod challenge;

use crate::{
    hosts::{Host, Scheme},
    transport::{self, Transport},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use challenge::Challenge;
use contracts::{Error, Result, transfer::Auth};
use reqwest::{Method, StatusCode, Url, header::HeaderValue};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Most tokens kept at once; past this all are forgotten, which only costs asking again.
const MAX_KEPT: usize = 1024;
/// Largest answer of a token server, in bytes; real ones have a few KiB.
const MAX_ANSWER: usize = 1 << 20;
/// How long a token lasts whose server does not say. Source: distribution-spec, "Token Authentication".
const DEFAULT_LIFE: u64 = 60;

/// What a request wants to do, as scopes of a token: `repository:a/b:pull`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(BTreeSet<String>);

impl Scopes {
    /// Reading one repository.
    pub(crate) fn pull(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull")]))
    }
    /// Writing one repository.
    pub(crate) fn push(repository: &str) -> Self {
        Self(BTreeSet::from([format!(
            "repository:{repository}:pull,push"
        )]))
    }
    /// Also reading another one.
    pub(crate) fn and_pull(mut self, repository: &str) -> Self {
        self.0.insert(format!("repository:{repository}:pull"));
        self
    }
}

/// Remembers which host wants what, and the tokens that are still good.
#[derive(Default)]
pub(crate) struct Authorizer(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    challenges: HashMap<String, Challenge>,
    tokens: HashMap<TokenKey, Token>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: String,
    scopes: Scopes,
    who: [u8; 32],
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    until: Instant,
}

impl Authorizer {
    /// Gives what is known to be wanted, so that most requests succeed at once.
    pub(crate) fn ready(
        &self,
        host: &Host,
        scopes: &Scopes,
        auth: Option<&Auth>,
    ) -> Option<HeaderValue> {
        if let Some(token) = auth.filter(|auth| !auth.registry_token.is_empty()) {
            return bearer(&token.registry_token).ok();
        }
        let challenge = self.kept().challenges.get(&host.url()).cloned()?;
        if challenge.scheme == "basic" {
            return auth
                .filter(|auth| has_password(auth))
                .and_then(|auth| basic(auth).ok());
        }
        let key = key(&challenge, scopes, auth);
        self.kept()
            .tokens
            .get(&key)
            .filter(|token| token.until > Instant::now())
            .map(|token| token.value.clone())
    }

    /// Answers the 401 of `host`; `sent` is what it has just refused.
    ///
    /// Errors: `Unauthenticated` naming user and host; `Unavailable` when the token server cannot be asked.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        host: &Host,
        challenges: Vec<Challenge>,
        scopes: &Scopes,
        auth: Option<&Auth>,
        sent: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        if auth.is_some_and(|auth| !auth.registry_token.is_empty()) {
            return Err(refused(host, auth));
        }
        let wanted = |scheme: &str| {
            challenges
                .iter()
                .find(|challenge| challenge.scheme == scheme)
        };
        if let Some(challenge) = wanted("bearer") {
            let key = key(challenge, scopes, auth);
            let fresh = sent.is_some_and(|sent| {
                self.kept()
                    .tokens
                    .get(&key)
                    .is_some_and(|token| token.value == sent)
            });
            if fresh && challenge.get("error") != Some("invalid_token") {
                return Err(refused(host, auth));
            }
            let token = fetch(transport, host, challenge, scopes, auth).await?;
            let value = token.value.clone();
            self.keep(host, challenge.clone(), Some((key, token)));
            return Ok(value);
        }
        let Some(challenge) = wanted("basic") else {
            return Err(refused(host, auth));
        };
        let value = match auth.filter(|auth| has_password(auth)) {
            Some(auth) => basic(auth)?,
            None => return Err(refused(host, auth)),
        };
        if sent == Some(&value) {
            return Err(refused(host, auth));
        }
        self.keep(host, challenge.clone(), None);
        Ok(value)
    }

    fn keep(&self, host: &Host, challenge: Challenge, token: Option<(TokenKey, Token)>) {
        let mut kept = self.kept();
        if kept.tokens.len() + kept.challenges.len() >= MAX_KEPT {
            *kept = Kept::default();
        }
        kept.challenges.insert(host.url(), challenge);
        kept.tokens.extend(token);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says who was refused by whom, never with which secret.
pub(crate) fn refused(host: &Host, auth: Option<&Auth>) -> Error {
    let name = host.name();
    Error::unauthenticated(match auth {
        None if host.upstream => {
            format!("registry {name}: wants a user name and password; none were given")
        }
        None => format!("mirror {name}: wants credentials; give them as a header in its rule"),
        Some(auth) if has_password(auth) => {
            format!(
                "registry {name}: refused user {:?}; check user name and password",
                auth.username
            )
        }
        Some(_) => format!("registry {name}: refused the token; get a new one"),
    })
}

fn has_password(auth: &Auth) -> bool {
    !auth.username.is_empty()
}

fn key(challenge: &Challenge, scopes: &Scopes, auth: Option<&Auth>) -> TokenKey {
    let text = |name| challenge.get(name).unwrap_or_default().to_owned();
    TokenKey {
        realm: text("realm"),
        service: text("service"),
        scopes: merged(challenge, scopes),
        who: who(auth),
    }
}

/// Tells callers apart without keeping their secrets.
fn who(auth: Option<&Auth>) -> [u8; 32] {
    let mut hash = Sha256::new();
    if let Some(auth) = auth {
        for part in [&auth.username, &auth.password, &auth.identity_token] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().into()
}

/// What we want and what the registry says we need; the longer list of actions on a repository stands for both.
fn merged(challenge: &Challenge, scopes: &Scopes) -> Scopes {
    let asked = challenge
        .get("scope")
        .unwrap_or_default()
        .split(' ')
        .filter(|scope| !scope.is_empty());
    let mut all = scopes.clone();
    for scope in asked {
        let covered = all
            .0
            .iter()
            .any(|held| held == scope || held.starts_with(&format!("{scope},")));
        if !covered {
            all.0.insert(scope.to_owned());
        }
    }
    all
}

fn basic(auth: &Auth) -> Result<HeaderValue> {
    secret(format!(
        "Basic {}",
        STANDARD.encode(format!("{}:{}", auth.username, auth.password))
    ))
}

fn bearer(token: &str) -> Result<HeaderValue> {
    secret(format!("Bearer {token}"))
}

/// Marks the value so that no `Debug` shows it.
fn secret(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        Error::unauthenticated("credentials: the token holds characters that no header may have")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token server's answer. Source: distribution-spec, "Token Authentication"; RFC 6749 section 5.1.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

async fn fetch(
    transport: &Transport,
    host: &Host,
    challenge: &Challenge,
    scopes: &Scopes,
    auth: Option<&Auth>,
) -> Result<Token> {
    let realm = realm(host, challenge, auth)?;
    let server = transport::origin(&realm);
    let request = match auth.filter(|auth| !auth.identity_token.is_empty()) {
        Some(auth) => by_identity(realm, challenge, scopes, auth),
        None => by_password(realm, challenge, scopes, auth)?,
    };
    let client = transport.client_for(request.url(), host)?;
    let asked = Instant::now();
    let mut response = transport::execute(&client, request, transport::ANSWER)
        .await
        .map_err(|error| error.context(format!("token server of registry {}", host.name())))?;
    let status = response.status();
    if matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    ) {
        return Err(refused(host, auth));
    }
    if !status.is_success() {
        return Err(Error::unavailable(format!(
            "token server {server} of registry {}: answered {status}",
            host.name()
        )));
    }
    let body = transport::body(&mut response, MAX_ANSWER).await?;
    let malformed =
        || Error::unavailable(format!("token server {server}: its answer holds no token"));
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| malformed())?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token)
        .ok_or_else(malformed)?;
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 86_400);
    // A tenth early, so that a token does not expire on its way.
    Ok(Token {
        value: bearer(&token)?,
        until: asked + Duration::from_millis(life * 900),
    })
}

fn realm(host: &Host, challenge: &Challenge, auth: Option<&Auth>) -> Result<Url> {
    let text = challenge.get("realm").unwrap_or_default();
    let realm = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(realm) = realm else {
        return Err(Error::unavailable(format!(
            "registry {}: names no usable token server ({text:?})",
            host.name()
        )));
    };
    if auth.is_some() && host.scheme == Scheme::Https && realm.scheme() == "http" {
        return Err(Error::unauthenticated(format!(
            "registry {}: wants credentials sent to {} in the clear; refused",
            host.name(),
            transport::origin(&realm)
        )));
    }
    Ok(realm)
}

fn by_password(
    mut url: Url,
    challenge: &Challenge,
    scopes: &Scopes,
    auth: Option<&Auth>,
) -> Result<reqwest::Request> {
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = challenge.get("service") {
            query.append_pair("service", service);
        }
        for scope in &merged(challenge, scopes).0 {
            query.append_pair("scope", scope);
        }
    }
    let mut request = reqwest::Request::new(Method::GET, url);
    if let Some(auth) = auth.filter(|auth| has_password(auth)) {
        request
            .headers_mut()
            .insert(reqwest::header::AUTHORIZATION, basic(auth)?);
    }
    Ok(request)
}

/// An identity token is a refresh token of OAuth 2: exchanged by POST, never seen in a URL.
fn by_identity(url: Url, challenge: &Challenge, scopes: &Scopes, auth: &Auth) -> reqwest::Request {
    let scope: Vec<String> = merged(challenge, scopes).0.into_iter().collect();
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("refresh_token", &auth.identity_token)
        .append_pair("service", challenge.get("service").unwrap_or_default())
        .append_pair("scope", &scope.join(" "))
        .append_pair("client_id", "gantry")
        .finish();
    let mut request = reqwest::Request::new(Method::POST, url);
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    request
        .headers_mut()
        .insert(reqwest::header::CONTENT_TYPE, kind);
    *request.body_mut() = Some(form.into());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_the_challenge_are_added_unless_covered() {
        let challenge = |scope: &str| Challenge {
            scheme: "bearer".into(),
            parameters: vec![("scope".into(), scope.into())],
        };
        let push = Scopes::push("a/b");
        assert_eq!(merged(&challenge("repository:a/b:pull"), &push), push);
        let more = merged(
            &challenge("repository:a/b:pull,push registry:catalog:*"),
            &push,
        );
        assert_eq!(more.0.len(), 2);
        assert_eq!(Scopes::push("a/b").and_pull("c").0.len(), 2);
    }

    #[test]
    fn callers_with_other_credentials_never_share_a_token() {
        let auth = |username: &str, password: &str| Auth {
            username: username.into(),
            password: password.into(),
            ..Auth::default()
        };
        assert_ne!(who(None), who(Some(&auth("a", "b"))));
        assert_ne!(who(Some(&auth("a", "bc"))), who(Some(&auth("ab", "c"))));
        assert_eq!(who(Some(&auth("a", "b"))), who(Some(&auth("a", "b"))));
    }

    #[test]
    fn a_secret_is_not_shown_when_printed() -> Result<()> {
        let auth = Auth {
            username: "bob".into(),
            password: "hunter2".into(),
            ..Auth::default()
        };
        let shown = format!("{:?} {:?}", auth, basic(&auth)?);
        assert!(
            !shown.contains("hunter2") && !shown.contains("Basic "),
            "{shown}"
        );
        assert!(bearer("with\nnewline").is_err());
        Ok(())
    }
}
