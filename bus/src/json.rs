//! JSON ↔ wire for every contract, by visiting it: what `gantry call` and `POST /v1/call/{method}` stand on.

use crate::{Bus, Ctx};
use contracts::{Error, Kind, PluginId, Request, Result, Service, Visitor};
use std::collections::BTreeMap;

type ToWire = fn(&str) -> Result<Vec<u8>>;
type ToJson = fn(&[u8]) -> Result<String>;

struct Bridge {
    kind: Kind,
    request: ToWire,
    reply: ToJson,
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

impl Methods {
    /// Wire names and kinds, by name.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, Kind)> {
        self.bridges
            .iter()
            .map(|(name, bridge)| (*name, bridge.kind))
    }

    /// Calls `method` with a JSON body and answers JSON.
    ///
    /// Errors: `NotFound` for the method; `InvalidArgument` for the body; `Unimplemented` for streams and for messages
    /// that carry file descriptors; those of the call.
    pub async fn call(
        &self,
        bus: &Bus,
        peer: Option<&PluginId>,
        ctx: &Ctx,
        method: &str,
        json: &str,
    ) -> Result<String> {
        let bridge = self
            .bridges
            .get(method)
            .ok_or_else(|| self.unknown(method))?;
        if bridge.kind == Kind::Stream {
            return Err(Error::unimplemented(format!(
                "{method}: is a stream; use the resource that shows it"
            )));
        }
        let body = (bridge.request)(json)?;
        (bridge.reply)(&bus.call_raw(peer, ctx, method, body).await?)
    }

    /// Says what there is instead: the methods of the service, or the services.
    fn unknown(&self, method: &str) -> Error {
        let parts = |name: &'static str| name.split_once('.').unwrap_or((name, ""));
        let service = method
            .split_once('.')
            .map_or(method, |(service, _)| service);
        let names = self.bridges.keys().copied();
        let methods: Vec<&str> = names
            .clone()
            .filter(|name| parts(name).0 == service)
            .collect();
        if methods.is_empty() {
            let services: std::collections::BTreeSet<&str> =
                names.map(|name| parts(name).0).collect();
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
