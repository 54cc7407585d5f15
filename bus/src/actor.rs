//! Messages ↔ an actix actor: what a handler is given, what it answers, and which messages are routed to it.

use crate::client::Ctx;
use actix::dev::{MessageResponse, OneshotSender};
use actix::{Actor, Addr, Context, Handler, Message};
use contracts::{Error, Fd, Kind, Method, Request, Result, Service, fd};
use futures_util::{StreamExt, future::LocalBoxFuture, stream::BoxStream};
use std::{collections::HashMap, marker::PhantomData, pin::Pin};

/// A read or write in flight: the request and on whose behalf it is made.
#[derive(Debug)]
pub struct Call<R> {
    /// Namespace, lease, deadline, operation id.
    pub ctx: Ctx,
    /// The request.
    pub body: R,
}

/// A request for a stream of items.
#[derive(Debug)]
pub struct Open<R> {
    /// Namespace, lease, deadline, operation id.
    pub ctx: Ctx,
    /// The request.
    pub body: R,
}

/// What a stream yields. It is dropped when the caller has gone.
pub type Items<R> = BoxStream<'static, Result<<R as Request>::Reply>>;
/// What a handler of [`Call`] answers.
pub type Reply<R> = Answered<<R as Request>::Reply>;
/// What a handler of [`Open`] answers.
pub type Streaming<R> = Answered<Items<R>>;
/// An answer in the making: any future, boxed with `Box::pin`.
pub type Answered<T> = Pin<Box<dyn Answering<Output = Result<T>>>>;

/// A future that a handler answers with.
///
/// actix would run its own to their end even when nobody waits: a `wait` of a caller that has gone would stay for as
/// long as the container runs. These are dropped with their caller, unless they write.
pub trait Answering: Future {}

impl<F: Future> Answering for F {}

impl<A: Actor, R: Request> MessageResponse<A, Call<R>> for Reply<R> {
    fn handle(self, _: &mut A::Context, caller: Option<OneshotSender<Result<R::Reply>>>) {
        answer(R::KIND, self, caller);
    }
}

impl<A: Actor, R: Request> MessageResponse<A, Open<R>> for Streaming<R> {
    fn handle(self, _: &mut A::Context, caller: Option<OneshotSender<Result<Items<R>>>>) {
        answer(R::KIND, self, caller);
    }
}

fn answer<T: 'static>(
    kind: Kind,
    mut answer: Answered<T>,
    caller: Option<OneshotSender<Result<T>>>,
) {
    actix::spawn(async move {
        let Some(mut caller) = caller else {
            return drop(answer.await);
        };
        let result = tokio::select! {
            result = &mut answer => result,
            () = caller.closed(), if kind != Kind::Write => return,
        };
        // A write whose caller has gone is answered when it is repeated.
        drop(caller.send(result));
    });
}

impl<R: Request> Message for Call<R> {
    type Result = Result<R::Reply>;
}

impl<R: Request> Message for Open<R> {
    type Result = Result<Items<R>>;
}

/// Runs `work` where blocking is allowed and answers with its result.
pub fn on_disk<T, E, F>(work: F) -> Answered<T>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
    F: FnOnce() -> Result<T, E> + Send + 'static,
{
    Box::pin(async move {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(Into::into),
            Err(e) => Err(Error::internal(format!("disk work: {e}"))),
        }
    })
}

/// Boxes a stream of items, whatever its error type.
pub fn items<T, E: Into<Error>>(
    stream: impl futures_util::Stream<Item = Result<T, E>> + Send + 'static,
) -> BoxStream<'static, Result<T>> {
    stream.map(|item| item.map_err(Into::into)).boxed()
}

/// An encoded answer and its descriptors.
pub(crate) type Encoded = (Vec<u8>, Vec<Fd>);

/// What a call leads to.
pub(crate) enum Response {
    /// One answer; a read is dropped when its caller goes, a write is not.
    One(Kind, LocalBoxFuture<'static, Result<Encoded>>),
    /// Any number of items.
    Many(LocalBoxFuture<'static, Result<BoxStream<'static, Result<Encoded>>>>),
}

/// Anything that answers calls: an actor behind its routes, or a fake.
pub trait Dispatch {
    #[doc(hidden)]
    fn dispatch(&self, call: Incoming) -> Answer;
}

/// A call as it came from the wire. Opaque outside of this crate.
pub struct Incoming {
    pub(crate) method: String,
    pub(crate) ctx: Ctx,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<Fd>,
}

/// What a dispatcher gives back. Opaque outside of this crate.
pub struct Answer(pub(crate) Response);

impl Incoming {
    pub(crate) fn decode<R: Request>(self) -> Result<(Ctx, R)> {
        let Self {
            method,
            ctx,
            body,
            fds,
        } = self;
        let request = fd::receiving(fds, || codec::decode(&body))
            .map_err(|e| Error::invalid(format!("{method}: {e}")))?;
        Ok((ctx, request))
    }
}

pub(crate) fn encode<T: serde::Serialize>(method: &str, value: &T) -> Result<Encoded> {
    let (bytes, fds) = fd::sending(|| codec::encode(value));
    Ok((
        bytes.map_err(|e| Error::exhausted(format!("{method}: reply: {e}")))?,
        fds,
    ))
}

type Route<A> = Box<dyn Fn(&Addr<A>, Incoming) -> Response>;

/// Which messages an actor answers. `on` for reads and writes, `stream` for streams.
pub struct Routes<A: Actor> {
    routes: HashMap<&'static str, Route<A>>,
    actor: PhantomData<A>,
}

impl<A: Actor> Default for Routes<A> {
    fn default() -> Self {
        Self {
            routes: HashMap::new(),
            actor: PhantomData,
        }
    }
}

impl<A: Actor<Context = Context<A>>> Routes<A> {
    /// Routes a read or write to the actor.
    pub fn on<R: Request>(mut self) -> Self
    where
        A: Handler<Call<R>>,
    {
        self.routes.insert(
            R::NAME,
            Box::new(|actor, call| {
                Response::One(R::KIND, Box::pin(one::<A, R>(actor.clone(), call)))
            }),
        );
        self
    }

    /// Routes a stream to the actor.
    pub fn stream<R: Request>(mut self) -> Self
    where
        A: Handler<Open<R>>,
    {
        self.routes.insert(
            R::NAME,
            Box::new(|actor, call| Response::Many(Box::pin(many::<A, R>(actor.clone(), call)))),
        );
        self
    }

    /// Methods of `S` that have no route, or the wrong kind of name: for a test that compares routes with the contract.
    pub fn missing<S: Service>(&self) -> Vec<&'static str> {
        S::METHODS
            .iter()
            .map(|method: &Method| method.name)
            .filter(|name| !self.routes.contains_key(name))
            .collect()
    }

    /// Puts the running actor behind its routes.
    pub fn to(self, actor: Addr<A>) -> impl Dispatch + 'static {
        Routed {
            routes: self.routes,
            actor,
        }
    }
}

async fn one<A, R>(actor: Addr<A>, call: Incoming) -> Result<Encoded>
where
    A: Actor<Context = Context<A>> + Handler<Call<R>>,
    R: Request,
{
    debug_assert!(R::KIND != Kind::Stream);
    let (ctx, body) = call.decode::<R>()?;
    let reply = actor
        .send(Call { ctx, body })
        .await
        .map_err(|_| stopping(R::NAME))??;
    encode(R::NAME, &reply)
}

async fn many<A, R>(actor: Addr<A>, call: Incoming) -> Result<BoxStream<'static, Result<Encoded>>>
where
    A: Actor<Context = Context<A>> + Handler<Open<R>>,
    R: Request,
{
    let (ctx, body) = call.decode::<R>()?;
    let stream = actor
        .send(Open { ctx, body })
        .await
        .map_err(|_| stopping(R::NAME))??;
    Ok(stream
        .map(|item| item.and_then(|item| encode(R::NAME, &item)))
        .boxed())
}

fn stopping(method: &str) -> Error {
    Error::unavailable(format!("{method}: plugin is stopping"))
}

struct Routed<A: Actor> {
    routes: HashMap<&'static str, Route<A>>,
    actor: Addr<A>,
}

impl<A: Actor> Dispatch for Routed<A> {
    fn dispatch(&self, call: Incoming) -> Answer {
        Answer(match self.routes.get(call.method.as_str()) {
            Some(route) => route(&self.actor, call),
            None => {
                let error = Error::unimplemented(format!(
                    "{}: this plugin has no such method",
                    call.method
                ));
                Response::One(Kind::Read, Box::pin(async move { Err(error) }))
            }
        })
    }
}
