//! The bus inside one process, for tests: real plugins and fakes wired over real socket pairs.
//!
//! ```ignore
//! let local = LocalBus::new()
//!     .fake(Fake::<Events>::new("log").on(|_, _: events::Append| Ok(1)))
//!     .plugin(content::plugin())
//!     .start(dir.path())?;
//! local.bus().call(&ctx, Stat { digest }).await?;
//! local.restart("content/local")?;   // pending calls wait for the successor
//! ```

use crate::actor::{Answer, Dispatch, Encoded, Incoming, Response, encode};
use crate::client::{Bus, Ctx};
use crate::plugin::Registration;
use crate::server::{Busy, serve};
use contracts::plugin::{PluginBoot, Socket, State};
use contracts::{Error, Fd, PluginId, Request, Result, Service};
use futures_util::{StreamExt, future::LocalBoxFuture, stream};
use std::{
    collections::BTreeMap, collections::HashMap, marker::PhantomData, path::Path, path::PathBuf,
    rc::Rc,
};
use tokio::net::UnixStream;

type Handler = Box<dyn Fn(Incoming) -> Response>;

/// A stand-in for a plugin: answers the methods it was taught and refuses the others.
pub struct Fake<S> {
    id: PluginId,
    serves: Vec<String>,
    handlers: HashMap<&'static str, Handler>,
    service: PhantomData<S>,
}

impl<S: Service> Fake<S> {
    /// A fake of plugin `S/id`.
    pub fn new(id: &str) -> Self {
        let id = PluginId::new(format!("{}/{id}", S::NAME)).unwrap_or_else(|e| panic!("fake: {e}"));
        Self {
            id,
            serves: vec![S::NAME.into()],
            handlers: HashMap::new(),
            service: PhantomData,
        }
    }

    /// Answers a read or write with what `answer` says.
    pub fn on<R: Request>(mut self, answer: impl Fn(Ctx, R) -> Result<R::Reply> + 'static) -> Self {
        let answer = Rc::new(answer);
        self.handlers.insert(
            R::NAME,
            Box::new(move |call| {
                let answer = answer.clone();
                let encoded: LocalBoxFuture<'static, Result<Encoded>> = Box::pin(async move {
                    let (ctx, request) = call.decode::<R>()?;
                    encode(R::NAME, &answer(ctx, request)?)
                });
                Response::One(R::KIND, encoded)
            }),
        );
        self.serves.push(R::Service::NAME.into());
        self
    }

    /// Answers a stream with the items that `answer` makes.
    pub fn stream<R: Request>(
        mut self,
        answer: impl Fn(Ctx, R) -> Result<Vec<R::Reply>> + 'static,
    ) -> Self {
        let answer = Rc::new(answer);
        self.handlers.insert(
            R::NAME,
            Box::new(move |call| {
                let answer = answer.clone();
                Response::Many(Box::pin(async move {
                    let (ctx, request) = call.decode::<R>()?;
                    let items: Vec<_> = answer(ctx, request)?
                        .iter()
                        .map(|item| encode(R::NAME, item))
                        .collect();
                    Ok(stream::iter(items).boxed())
                }))
            }),
        );
        self.serves.push(R::Service::NAME.into());
        self
    }
}

struct Taught(HashMap<&'static str, Handler>);

impl Dispatch for Taught {
    fn dispatch(&self, call: Incoming) -> Answer {
        Answer(match self.0.get(call.method.as_str()) {
            Some(handler) => handler(call),
            None => {
                let error =
                    Error::unimplemented(format!("{}: the fake was not taught this", call.method));
                Response::One(contracts::Kind::Read, Box::pin(async move { Err(error) }))
            }
        })
    }
}

/// Collects plugins and fakes before they start.
#[derive(Default)]
pub struct LocalBus {
    plugins: Vec<(Registration, String)>,
    fakes: Vec<(PluginId, Vec<String>, Rc<dyn Dispatch>)>,
}

impl LocalBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a real plugin with default settings. Add what it requires first.
    pub fn plugin(self, registration: Registration) -> Self {
        let defaults = registration.spec().defaults.clone();
        self.plugin_with(registration, &defaults)
    }

    /// Adds a real plugin with settings as JSON text.
    pub fn plugin_with(mut self, registration: Registration, config: &str) -> Self {
        self.plugins.push((registration, config.into()));
        self
    }

    /// Adds a fake.
    pub fn fake<S: Service>(mut self, fake: Fake<S>) -> Self {
        self.fakes
            .push((fake.id, fake.serves, Rc::new(Taught(fake.handlers))));
        self
    }

    /// Starts everything in the order it was added, with folders below `root`. Must run inside an actix system.
    ///
    /// Errors: a plugin's own when it does not start; `FailedPrecondition` when a requirement was not added.
    pub fn start(self, root: &Path) -> Result<LocalNode> {
        let mut node = LocalNode {
            root: root.into(),
            plugins: BTreeMap::new(),
            answers: Vec::new(),
            outside: None,
            busy: Rc::default(),
        };
        for (id, serves, dispatch) in self.fakes {
            node.answers.push((id, serves, dispatch));
        }
        for (registration, config) in self.plugins {
            node.add(registration, config)?;
        }
        let all: Vec<(String, PluginId)> = node
            .answers
            .iter()
            .flat_map(|(id, serves, _)| serves.iter().map(|service| (service.clone(), id.clone())))
            .collect();
        let id = PluginId::new("test/outside")?;
        let mut unique = all;
        unique.sort();
        unique.dedup();
        let outside = Bus::new(id, &unique);
        node.wire_all(&outside)?;
        node.outside = Some(outside);
        Ok(node)
    }
}

struct Running {
    registration: Registration,
    config: String,
    bus: Bus,
}

/// A started in-process bus.
pub struct LocalNode {
    root: PathBuf,
    plugins: BTreeMap<PluginId, Running>,
    answers: Vec<(PluginId, Vec<String>, Rc<dyn Dispatch>)>,
    outside: Option<Bus>,
    busy: Rc<Busy>,
}

impl LocalNode {
    /// A handle that may call everything on this bus.
    pub fn bus(&self) -> Bus {
        match &self.outside {
            Some(bus) => bus.clone(),
            None => unreachable!("the node has started"),
        }
    }

    /// Makes a successor of a plugin from its folder, as after a crash: pending calls are sent again to the successor.
    ///
    /// Errors: `DeadlineExceeded` when the predecessor does not let go; the plugin's own when it does not start again.
    pub async fn restart(&mut self, plugin: &str) -> Result<()> {
        let id = PluginId::new(plugin)?;
        let callers: Vec<Bus> = self
            .plugins
            .values()
            .map(|running| running.bus.clone())
            .chain(self.outside.clone())
            .collect();
        callers
            .iter()
            .filter_map(|bus| bus.link(&id))
            .for_each(|link| link.detach());
        let Some(running) = self.plugins.remove(&id) else {
            return Err(Error::not_found(format!("plugin {id}: not on this bus")));
        };
        // What it still asks of others dies with it, and so do its sockets.
        for link in running
            .bus
            .all_peers()
            .filter_map(|peer| running.bus.link(peer))
        {
            link.detach();
            link.stands(State::Stopped, "was replaced".into(), Vec::new());
        }
        self.let_go(&id).await?;
        self.add(running.registration, running.config)?;
        callers
            .iter()
            .try_for_each(|caller| self.wire_one(caller, &id))
    }

    /// Waits until nothing holds the plugin's actor any more, so that its files are closed.
    async fn let_go(&mut self, id: &PluginId) -> Result<()> {
        let Some(at) = self
            .answers
            .iter()
            .position(|(answering, _, _)| answering == id)
        else {
            return Ok(());
        };
        let gone = Rc::downgrade(&self.answers.remove(at).2);
        for _ in 0..100_000 {
            tokio::task::yield_now().await;
            if gone.strong_count() == 0 {
                // The actor itself ends a few turns after its last address.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                return Ok(());
            }
        }
        Err(Error::deadline(format!(
            "plugin {id}: a call keeps it alive"
        )))
    }

    fn add(&mut self, registration: Registration, config: String) -> Result<()> {
        let spec = registration.spec().clone();
        let folder = |kind: &str| {
            let path = self.root.join(kind).join(spec.id.as_str());
            std::fs::create_dir_all(&path)
                .map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
            Ok::<_, Error>(path.to_string_lossy().into_owned())
        };
        let mut peers = Vec::new();
        for service in &spec.requires {
            let found = self
                .answers
                .iter()
                .filter(|(_, serves, _)| serves.contains(service));
            let before = peers.len();
            peers.extend(found.map(|(id, _, _)| (service.clone(), id.clone())));
            if peers.len() == before {
                return Err(Error::precondition(format!(
                    "{} requires {service}: add it, or a fake, first",
                    spec.id
                )));
            }
        }
        let bus = Bus::new(spec.id.clone(), &peers);
        self.wire_all(&bus)?;
        let boot = PluginBoot {
            exec: None,
            id: spec.id.clone(),
            root: folder("root")?,
            state: folder("state")?,
            config: config.clone(),
            sockets: self.listen(&spec.sockets)?,
            peers,
        };
        let dispatch = registration.launch(boot, bus.clone(), self.busy.clone())?;
        self.answers
            .push((spec.id.clone(), spec.serves.clone(), dispatch));
        self.plugins.insert(
            spec.id.clone(),
            Running {
                registration,
                config,
                bus,
            },
        );
        Ok(())
    }

    /// Opens a plugin's listening sockets below the state folder, as the supervisor would.
    fn listen(&self, sockets: &[Socket]) -> Result<Vec<Fd>> {
        let open = |socket: &Socket| {
            let path = self.root.join("state").join(&socket.name);
            // A predecessor's file would be in the way.
            let _ = std::fs::remove_file(&path);
            let listener = std::os::unix::net::UnixListener::bind(&path)
                .map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
            Ok(Fd::from(std::os::fd::OwnedFd::from(listener)))
        };
        sockets.iter().map(open).collect()
    }

    fn wire_all(&self, bus: &Bus) -> Result<()> {
        let peers: Vec<PluginId> = bus.all_peers().cloned().collect();
        peers.iter().try_for_each(|peer| self.wire_one(bus, peer))
    }

    fn wire_one(&self, bus: &Bus, peer: &PluginId) -> Result<()> {
        let Some(link) = bus.link(peer) else {
            return Ok(());
        };
        let Some((_, _, dispatch)) = self.answers.iter().find(|(id, _, _)| id == peer) else {
            return Ok(());
        };
        let (near, far) =
            UnixStream::pair().map_err(|e| Error::exhausted(format!("socket pair: {e}")))?;
        actix::spawn(serve(far, dispatch.clone(), self.busy.clone()));
        link.attach(near);
        link.stands(State::Ready, String::new(), Vec::new());
        Ok(())
    }

    /// Makes a plugin's callers believe that it has failed for good, as the supervisor would tell them.
    pub fn declare_failed(&self, plugin: &str, cause: &str) -> Result<()> {
        let id = PluginId::new(plugin)?;
        let callers = self
            .plugins
            .values()
            .map(|running| &running.bus)
            .chain(&self.outside);
        for link in callers.filter_map(|bus| bus.link(&id)) {
            link.stands(State::Failed, cause.into(), vec![id.clone()]);
        }
        Ok(())
    }
}
