//! The handle that a plugin calls others with.

use crate::link::{self, Link};
use contracts::{
    Error, Fd, LeaseId, Namespace, OperationId, PluginId, Request, Result, Service, fd,
};
use futures_util::{Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, pin::Pin, rc::Rc, time::Duration};
use tokio::time::Instant;

pub(crate) use crate::link::Items as RawItems;

/// How long a call may take when nobody said otherwise: longer than any restart, shorter than a user's patience.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// More than anybody waits, and little enough to be added to any moment.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// On whose behalf something is done. Made at an edge, and passed on by every handler.
#[derive(Clone, Debug)]
pub struct Ctx {
    /// The tenant; `None` for calls about the node itself.
    pub namespace: Option<Namespace>,
    /// What keeps new resources from collection.
    pub lease: Option<LeaseId>,
    /// When nobody waits any more.
    pub deadline: Instant,
    /// Identifies the request through all retries; calls made on its behalf derive theirs from it.
    pub operation: OperationId,
}

impl Ctx {
    /// A fresh context with a random operation id and the default deadline.
    pub fn new(namespace: Option<Namespace>) -> Self {
        Self {
            namespace,
            lease: None,
            deadline: Instant::now() + DEFAULT_DEADLINE,
            operation: random_operation(),
        }
    }

    /// The same with another operation id, for instance a client's `Idempotency-Key`.
    pub fn with_operation(mut self, operation: OperationId) -> Self {
        self.operation = operation;
        self
    }

    /// The same with what keeps new resources.
    pub fn with_lease(mut self, lease: Option<LeaseId>) -> Self {
        self.lease = lease;
        self
    }

    /// The same with `left` from now on as its deadline, at most a hundred years.
    pub fn with_deadline(mut self, left: Duration) -> Self {
        self.deadline = Instant::now() + left.min(CENTURY);
        self
    }

    /// The same in another namespace.
    pub fn in_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// A context for step `name` of this one: what is done in it is told apart from the same call in another step.
    pub fn step(&self, name: &str) -> Self {
        let operation = derive(&self.operation, name, &[]);
        Self {
            operation,
            ..self.clone()
        }
    }

    /// The tenant. Errors: `InvalidArgument` when the caller named none.
    pub fn namespace(&self) -> Result<&Namespace> {
        self.namespace
            .as_ref()
            .ok_or_else(|| Error::invalid("namespace: this call needs one"))
    }
}

/// Makes a new random operation id: 32 hex digits.
pub(crate) fn random_operation() -> OperationId {
    named(rand::random::<[u8; 16]>())
}

/// Makes the id of a call that is made on behalf of `operation`: the same call gets the same id in every retry.
pub(crate) fn derive(operation: &OperationId, method: &str, body: &[u8]) -> OperationId {
    let mut hash = Sha256::new();
    for part in [operation.as_str().as_bytes(), method.as_bytes(), body] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    named(id)
}

fn named(bytes: [u8; 16]) -> OperationId {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match OperationId::new(text) {
        Ok(id) => id,
        Err(_) => unreachable!("32 hex digits are an operation id"),
    }
}

/// Calls the plugins that a registration requires, and no others.
#[derive(Clone)]
pub struct Bus {
    inner: Rc<Inner>,
}

struct Inner {
    plugin: PluginId,
    links: BTreeMap<PluginId, Rc<Link>>,
    /// Contract name → plugins that answer it, by id.
    services: BTreeMap<String, Vec<PluginId>>,
}

impl Bus {
    pub(crate) fn new(plugin: PluginId, peers: &[(String, PluginId)]) -> Self {
        let mut services: BTreeMap<String, Vec<PluginId>> = BTreeMap::new();
        for (service, peer) in peers {
            services
                .entry(service.clone())
                .or_default()
                .push(peer.clone());
        }
        let links = peers
            .iter()
            .map(|(_, peer)| (peer.clone(), Link::new(peer.clone())))
            .collect();
        Self {
            inner: Rc::new(Inner {
                plugin,
                links,
                services,
            }),
        }
    }

    pub(crate) fn link(&self, peer: &PluginId) -> Option<&Rc<Link>> {
        self.inner.links.get(peer)
    }

    /// The plugin that this handle belongs to.
    pub fn plugin(&self) -> &PluginId {
        &self.inner.plugin
    }

    /// The plugins that may be called and answer contract `S`, by id.
    pub fn peers<S: Service>(&self) -> &[PluginId] {
        self.inner.services.get(S::NAME).map_or(&[], Vec::as_slice)
    }

    /// Whether the one plugin that answers contract `S` is ready, as far as the supervisor has told: for what a caller can
    /// do without and would rather not wait for.
    pub fn is_ready<S: Service>(&self) -> bool {
        self.only::<S>().is_ok_and(|link| link.is_ready())
    }

    /// Adds to an error why the one plugin that answers contract `S` does not stand well, if it does not: its cause, the
    /// plugin that is it, and the chain.
    pub fn explain<S: Service>(&self, error: Error) -> Error {
        match self.only::<S>() {
            Ok(link) => link.explain(error),
            Err(_) => error,
        }
    }

    /// Every plugin that may be called, by id.
    pub fn all_peers(&self) -> impl Iterator<Item = &PluginId> {
        self.inner.links.keys()
    }

    /// Every service that some plugin answers which may be called.
    pub(crate) fn services(&self) -> impl Iterator<Item = &str> {
        self.inner.services.keys().map(String::as_str)
    }

    /// Calls the one plugin that answers the request's contract.
    ///
    /// Errors: those of the method; `Unavailable` naming plugin, cause and chain when it is not there;
    /// `DeadlineExceeded` when it is but does not answer.
    pub async fn call<R: Request>(&self, ctx: &Ctx, request: R) -> Result<R::Reply> {
        self.call_on(self.only::<R::Service>()?, ctx, request).await
    }

    /// Calls a certain plugin, for contracts that several answer. Errors: as [`Bus::call`]; `NotFound` for an unknown plugin.
    pub async fn call_at<R: Request>(
        &self,
        peer: &PluginId,
        ctx: &Ctx,
        request: R,
    ) -> Result<R::Reply> {
        self.call_on(self.known(peer)?, ctx, request).await
    }

    /// Calls the plugin `id` among those that answer the contract: a snapshot driver by its name.
    pub async fn call_named<R: Request>(
        &self,
        id: &str,
        ctx: &Ctx,
        request: R,
    ) -> Result<R::Reply> {
        self.call_on(self.named::<R::Service>(id)?, ctx, request)
            .await
    }

    /// Opens a stream. Errors come as items; a stream whose owner dies ends with `Unavailable`.
    pub async fn open<R: Request>(
        &self,
        ctx: &Ctx,
        request: R,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<R::Reply>>>>> {
        let link = self.only::<R::Service>()?;
        let (body, fds) = encode(&request)?;
        let operation = derive(&ctx.operation, R::NAME, &body);
        let items = link
            .open(
                link::frame(R::NAME, ctx, operation, body),
                fds,
                ctx.deadline,
            )
            .await?;
        let stream = futures_util::stream::unfold(items, |mut items| async move {
            let item = items.next().await?;
            Some((item.and_then(|(body, fds)| decode::<R>(&body, fds)), items))
        });
        Ok(stream.boxed_local())
    }

    /// Calls by name with an encoded body: the JSON bridge's way. Errors: as [`Bus::call`].
    pub(crate) async fn call_raw(
        &self,
        peer: Option<&PluginId>,
        ctx: &Ctx,
        method: &str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let service = method
            .split_once('.')
            .map_or(method, |(service, _)| service);
        let link = match peer {
            Some(peer) => self.known(peer)?,
            None => self.only_named(service)?,
        };
        let operation = derive(&ctx.operation, method, &body);
        let (body, _) = link
            .call(
                link::frame(method, ctx, operation, body),
                Vec::new(),
                ctx.deadline,
            )
            .await?;
        Ok(body)
    }

    /// Opens a stream by name with an encoded body: the JSON bridge's way. Errors: as [`Bus::open`].
    pub(crate) async fn open_raw(
        &self,
        ctx: &Ctx,
        method: &str,
        body: Vec<u8>,
    ) -> Result<RawItems> {
        let service = method
            .split_once('.')
            .map_or(method, |(service, _)| service);
        let operation = derive(&ctx.operation, method, &body);
        let frame = link::frame(method, ctx, operation, body);
        self.only_named(service)?
            .open(frame, Vec::new(), ctx.deadline)
            .await
    }

    async fn call_on<R: Request>(
        &self,
        link: &Rc<Link>,
        ctx: &Ctx,
        request: R,
    ) -> Result<R::Reply> {
        let (body, fds) = encode(&request)?;
        let operation = derive(&ctx.operation, R::NAME, &body);
        let (body, fds) = link
            .call(
                link::frame(R::NAME, ctx, operation, body),
                fds,
                ctx.deadline,
            )
            .await?;
        decode::<R>(&body, fds)
    }

    fn only<S: Service>(&self) -> Result<&Rc<Link>> {
        self.only_named(S::NAME)
    }

    fn only_named(&self, service: &str) -> Result<&Rc<Link>> {
        match self.inner.services.get(service).map(Vec::as_slice) {
            Some([one]) => self.known(one),
            Some([_, ..]) => Err(Error::invalid(format!(
                "{service}: several plugins answer it, name one"
            ))),
            _ => Err(Error::unimplemented(format!(
                "{service}: {} requires no plugin that answers it",
                self.inner.plugin
            ))),
        }
    }

    fn named<S: Service>(&self, id: &str) -> Result<&Rc<Link>> {
        let peers = self.peers::<S>();
        match peers.iter().find(|peer| peer.id() == id) {
            Some(peer) => self.known(peer),
            None => {
                let there: Vec<&str> = peers.iter().map(PluginId::id).collect();
                Err(Error::not_found(format!(
                    "{} {id:?}: not on this node, which has {}",
                    S::NAME,
                    there.join(", ")
                )))
            }
        }
    }

    fn known(&self, peer: &PluginId) -> Result<&Rc<Link>> {
        self.inner.links.get(peer).ok_or_else(|| {
            let there: Vec<&str> = self.inner.links.keys().map(PluginId::as_str).collect();
            Error::not_found(format!(
                "plugin {peer}: {} may call only {}",
                self.inner.plugin,
                there.join(", ")
            ))
        })
    }
}

fn encode<R: Request>(request: &R) -> Result<(Vec<u8>, Vec<Fd>)> {
    let (bytes, fds) = fd::sending(|| codec::encode(request));
    Ok((
        bytes.map_err(|e| Error::invalid(format!("{}: {e}", R::NAME)))?,
        fds,
    ))
}

fn decode<R: Request>(body: &[u8], fds: Vec<Fd>) -> Result<R::Reply> {
    fd::receiving(fds, || codec::decode(body))
        .map_err(|e| Error::internal(format!("{}: reply: {e}", R::NAME)))
}
