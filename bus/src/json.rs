//! JSON ↔ wire for every contract, by visiting it: what `gantry call`, `POST /v1/call/{method}` and plugins that are
//! foreign programs stand on.
//!
//! A service that no contract declares is one that only a foreign program answers: its messages are JSON text on the
//! wire too.

use crate::client::RawItems;
use crate::{Bus, Ctx};
use contracts::{Error, Kind, PluginId, Request, Result, Service, Visitor};
use std::collections::BTreeMap;

type ToWire = fn(&str) -> Result<Vec<u8>>;
type ToJson = fn(&[u8]) -> Result<String>;

/// The way of one method's messages: as a caller has them, and as the plugin has them that answers.
struct Bridge {
    kind: Kind,
    request: ToWire,
    reply: ToJson,
    asked: ToJson,
    answered: ToWire,
}

/// Every method of every contract, by wire name.
pub struct Methods {
    bridges: BTreeMap<&'static str, Bridge>,
}

impl Default for Methods {
    fn default() -> Self {
        let mut all = Self {
            bridges: BTreeMap::new(),
        };
        macro_rules! visit {
            ($service:path) => {
                <$service>::visit(&mut all)
            };
        }
        contracts::each_service!(visit);
        all
    }
}

impl Visitor for Methods {
    fn method<R: Request>(&mut self) {
        let bridge = Bridge {
            kind: R::KIND,
            request: request::<R>,
            reply: reply::<R>,
            asked: asked::<R>,
            answered: answered::<R>,
        };
        self.bridges.insert(R::NAME, bridge);
    }
}

fn request<R: Request>(json: &str) -> Result<Vec<u8>> {
    let request: R =
        serde_json::from_str(json).map_err(|e| Error::invalid(format!("{}: {e}", R::NAME)))?;
    codec::encode(&request).map_err(|e| Error::invalid(format!("{}: {e}", R::NAME)))
}

fn reply<R: Request>(body: &[u8]) -> Result<String> {
    let reply: R::Reply = codec::decode(body).map_err(|e| {
        Error::unimplemented(format!("{}: its answer has no JSON form: {e}", R::NAME))
    })?;
    serde_json::to_string(&reply)
        .map_err(|e| Error::unimplemented(format!("{}: its answer has no JSON form: {e}", R::NAME)))
}

fn asked<R: Request>(body: &[u8]) -> Result<String> {
    let no_form = |e: &dyn std::fmt::Display| {
        Error::unimplemented(format!("{}: the request has no JSON form: {e}", R::NAME))
    };
    let request: R = codec::decode(body).map_err(|e| no_form(&e))?;
    serde_json::to_string(&request).map_err(|e| no_form(&e))
}

fn answered<R: Request>(json: &str) -> Result<Vec<u8>> {
    let reply: R::Reply = serde_json::from_str(json).map_err(|e| {
        Error::internal(format!(
            "{}: the answer is not the contract's: {e}",
            R::NAME
        ))
    })?;
    codec::encode(&reply).map_err(|e| Error::exhausted(format!("{}: reply: {e}", R::NAME)))
}

/// Puts the JSON text of a service without a contract on the wire.
fn text(method: &str, json: &str) -> Result<Vec<u8>> {
    codec::encode(&json).map_err(|e| Error::invalid(format!("{method}: {e}")))
}

/// Takes the JSON text of a service without a contract off the wire.
fn untext(method: &str, body: &[u8]) -> Result<String> {
    codec::decode(body).map_err(|e| Error::internal(format!("{method}: not JSON text: {e}")))
}

impl Methods {
    /// Wire names and kinds, by name.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, Kind)> {
        self.bridges
            .iter()
            .map(|(name, bridge)| (*name, bridge.kind))
    }

    /// Calls `method` with a JSON body and answers JSON.
    ///
    /// `json` is the request as JSON text. Errors: `NotFound` for the method; `InvalidArgument` for the body;
    /// `Unimplemented` for streams and for messages that carry file descriptors; those of the call.
    pub async fn call(
        &self,
        bus: &Bus,
        peer: Option<&PluginId>,
        ctx: &Ctx,
        method: &str,
        json: &str,
    ) -> Result<String> {
        let Some(bridge) = self.bridges.get(method) else {
            if !self.is_foreign(bus, method) {
                return Err(self.unknown(bus, method));
            }
            let reply = bus.call_raw(peer, ctx, method, text(method, json)?).await?;
            return untext(method, &reply);
        };
        if bridge.kind == Kind::Stream {
            return Err(Error::unimplemented(format!(
                "{method}: is a stream; use the resource that shows it"
            )));
        }
        let body = (bridge.request)(json)?;
        (bridge.reply)(&bus.call_raw(peer, ctx, method, body).await?)
    }

    /// Opens the stream `method`. Errors: as [`Methods::call`]; those of its owner come as items.
    pub(crate) async fn open(
        &self,
        bus: &Bus,
        ctx: &Ctx,
        method: &str,
        json: &str,
    ) -> Result<JsonItems> {
        let bridge = self
            .bridges
            .get(method)
            .ok_or_else(|| self.unknown(bus, method))?;
        let items = bus.open_raw(ctx, method, (bridge.request)(json)?).await?;
        Ok(JsonItems {
            items,
            reply: bridge.reply,
        })
    }

    /// What kind `method` is of; `None` when no contract has it.
    pub(crate) fn kind(&self, method: &str) -> Option<Kind> {
        self.bridges.get(method).map(|bridge| bridge.kind)
    }

    /// Says a request that came by the wire as JSON text. Errors: `Unimplemented` when it has no JSON form, or when
    /// its service has a contract without this method.
    pub(crate) fn asked(&self, method: &str, body: &[u8]) -> Result<String> {
        match self.bridges.get(method) {
            Some(bridge) => (bridge.asked)(body),
            None if self.has_contract(service(method)) => Err(Error::unimplemented(format!(
                "{method}: this plugin has no such method"
            ))),
            None => untext(method, body),
        }
    }

    /// Puts the JSON answer to a request that came by the wire onto it. Errors: `Internal` when it is not what the
    /// contract says; `ResourceExhausted` when it is too large.
    pub(crate) fn answered(&self, method: &str, json: &str) -> Result<Vec<u8>> {
        match self.bridges.get(method) {
            Some(bridge) => (bridge.answered)(json),
            None => text(method, json),
        }
    }

    fn has_contract(&self, service_name: &str) -> bool {
        self.bridges
            .keys()
            .any(|name| service(name) == service_name)
    }

    /// Whether `method` is of a service without a contract that somebody here answers.
    fn is_foreign(&self, bus: &Bus, method: &str) -> bool {
        let service = service(method);
        !self.has_contract(service) && bus.services().any(|known| known == service)
    }

    /// Says what there is instead: the methods of the service, or the services.
    fn unknown(&self, bus: &Bus, method: &str) -> Error {
        let parts = |name: &'static str| name.split_once('.').unwrap_or((name, ""));
        let service = service(method);
        let names = self.bridges.keys().copied();
        let methods: Vec<&str> = names
            .clone()
            .filter(|name| parts(name).0 == service)
            .collect();
        if methods.is_empty() {
            let services: std::collections::BTreeSet<&str> = names
                .map(|name| parts(name).0)
                .chain(bus.services())
                .collect();
            let services: Vec<&str> = services.into_iter().collect();
            return Error::not_found(format!(
                "method {method:?}: no such service; there are {}",
                services.join(", ")
            ));
        }
        Error::not_found(format!(
            "method {method:?}: there is none; {service} has {}",
            methods.join(", ")
        ))
    }
}

fn service(method: &str) -> &str {
    method
        .split_once('.')
        .map_or(method, |(service, _)| service)
}

/// An open stream as JSON text.
pub(crate) struct JsonItems {
    items: RawItems,
    reply: ToJson,
}

impl JsonItems {
    /// Waits for the next item; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<String>> {
        let item = self.items.next().await?;
        Some(item.and_then(|(body, _)| (self.reply)(&body)))
    }
}
