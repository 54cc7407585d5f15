//! A plugin's registration, and the process that hosts plugins.
//!
//! The process has the control link as its stdin. It reads who it is, gives up what it was not granted while still
//! single-threaded, says hello, and then does what the supervisor says: takes sockets to peers, starts its plugins
//! when what they require had its chance, and stops. When the link ends the supervisor has died, and so does it.

use crate::actor::{Dispatch, Routes};
use crate::client::Bus;
use crate::foreign::Foreign;
use crate::framing::Reader;
use crate::server::{Busy, serve};
use crate::{control, envelope::PROTOCOL, privileges};
use actix::{Actor, Context};
use contracts::integrity::{Finding, Mended};
use contracts::plugin::{FromPlugin, PluginBoot, PluginSpec, Privileges, Socket, ToPlugin};
use contracts::{Error, Fd, PluginId, Result, Service};
use rustix::net::SendFlags;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::HashMap, path::PathBuf, process::ExitCode, rc::Rc, time::Duration};
use tokio::{net::UnixStream, sync::mpsc};

/// How long a stopping process waits for what is in flight.
const DRAIN: Duration = Duration::from_secs(3);
/// Most characters that a panic is told with.
const LAST_WORDS: usize = 500;

/// What a plugin is given when it starts.
pub struct Boot<C> {
    /// Its settings.
    pub config: C,
    /// What it calls others with.
    pub bus: Bus,
    /// Its listening sockets, in the order of registration.
    pub sockets: Vec<Fd>,
    /// What is in flight in its process, and whether it is to end.
    pub busy: Rc<Busy>,
    root: PathBuf,
    state: PathBuf,
}

impl<C> Boot<C> {
    /// Its folder of durable state: exists, and is its own.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Its folder of run-time state: exists, is its own, and is empty after a reboot.
    pub fn state(&self) -> &std::path::Path {
        &self.state
    }
}

type Start = Box<dyn Fn(PluginBoot, Bus, Rc<Busy>) -> Result<Rc<dyn Dispatch>>>;

/// What looks at a plugin's folder while the plugin does not run, and mends it when told so: every finding, and how it
/// was mended.
pub type Fsck = fn(&std::path::Path, bool) -> Result<Vec<(Finding, Option<Mended>)>>;

/// The facts the supervisor needs before any process exists, and the one function that starts the plugin.
pub struct Registration {
    spec: PluginSpec,
    start: Start,
    fsck: Option<Fsck>,
}

impl Registration {
    /// Begins the registration of plugin `S/id`. `id` is lowercase letters, digits and dashes.
    pub fn new<S: Service>(id: &str) -> Self {
        let name = PluginId::new(format!("{}/{id}", S::NAME))
            .unwrap_or_else(|e| unreachable!("a plugin id in the source: {e}"));
        let spec = PluginSpec {
            id: name,
            serves: vec![S::NAME.into()],
            requires: Vec::new(),
            privileges: Privileges::NONE,
            sockets: Vec::new(),
            defaults: "{}".into(),
            exec: None,
        };
        Self {
            spec,
            start: Box::new(|boot, _, _| {
                Err(Error::unimplemented(format!(
                    "plugin {}: has no start",
                    boot.id
                )))
            }),
            fsck: None,
        }
    }

    /// Says that it answers another contract too.
    pub fn also<S: Service>(mut self) -> Self {
        self.spec.serves.push(S::NAME.into());
        self
    }

    /// Says that it calls contract `S`: who answers it starts before, and a private link is made.
    pub fn requires<S: Service>(mut self) -> Self {
        self.spec.requires.push(S::NAME.into());
        self
    }

    /// Asks for privileges.
    pub fn privileges(mut self, privileges: Privileges) -> Self {
        self.spec.privileges = privileges;
        self
    }

    /// Asks for a listening Unix socket `name` below the state folder.
    pub fn socket(mut self, name: &str, mode: u32) -> Self {
        self.spec.sockets.push(Socket {
            name: name.into(),
            mode,
        });
        self
    }

    /// Says how it starts: its routes, and the function that makes its actor from settings, folders and bus.
    ///
    /// `C` is its settings: `Default` gives every key its default, and keys that it does not have are refused.
    pub fn start<A, C>(mut self, routes: fn() -> Routes<A>, make: fn(Boot<C>) -> Result<A>) -> Self
    where
        A: Actor<Context = Context<A>>,
        C: Default + Serialize + DeserializeOwned + 'static,
    {
        self.spec.defaults = serde_json::to_string(&C::default()).unwrap_or_else(|_| "{}".into());
        self.start = Box::new(move |boot, bus, busy| {
            let config = serde_json::from_str(&boot.config)
                .map_err(|e| Error::invalid(format!("plugin {}: settings: {e}", boot.id)))?;
            let boot = Boot {
                config,
                bus,
                sockets: boot.sockets,
                busy,
                root: boot.root.into(),
                state: boot.state.into(),
            };
            Ok(Rc::new(routes().to(make(boot)?.start())) as Rc<dyn Dispatch>)
        });
        self
    }

    /// Says how its folder of durable state is checked while it does not run.
    pub fn fsck(mut self, fsck: Fsck) -> Self {
        self.fsck = Some(fsck);
        self
    }

    /// How its folder is checked while it does not run; `None` when it keeps nothing there.
    pub fn offline(&self) -> Option<Fsck> {
        self.fsck
    }

    /// The facts.
    pub fn spec(&self) -> &PluginSpec {
        &self.spec
    }

    pub(crate) fn launch(
        &self,
        boot: PluginBoot,
        bus: Bus,
        busy: Rc<Busy>,
    ) -> Result<Rc<dyn Dispatch>> {
        (self.start)(boot, bus, busy)
    }
}

/// Runs the process that hosts plugins: its stdin is the control link. Returns when it must exit.
///
/// Must be called before any other thread exists, because privileges belong to threads.
pub fn host(registrations: Vec<Registration>) -> ExitCode {
    let told = std::panic::take_hook();
    // A panic is the end of the process in every build, so that its successor starts from what is on disk.
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        last_words(panic);
        std::process::abort();
    }));
    let mut reader = Reader::default();
    let boot = match control::receive_blocking(&mut reader, std::io::stdin()) {
        Ok(ToPlugin::Boot(boot)) => *boot,
        Ok(_) => return refuse(&Error::internal("control link: boot must come first")),
        Err(error) => return refuse(&error),
    };
    if boot.protocol != PROTOCOL {
        return refuse(&Error::precondition(format!(
            "supervisor speaks protocol {}, this build {PROTOCOL}",
            boot.protocol
        )));
    }
    // Its own process group: Ctrl-C in a terminal reaches the supervisor alone, which then stops all in order.
    let _ = rustix::process::setpgid(None, None);
    // It was started through a descriptor, whose number would be its name.
    let _ = rustix::thread::set_name(c"gantry");
    if let Err(error) = privileges::drop_to(&boot) {
        return refuse(&error);
    }
    // An error of the last plugin to stop has been told over the control link.
    actix::System::new().block_on(run(registrations, boot.plugins, reader))
}

/// Tells the supervisor where and why this process panicked. Other threads may be anywhere, so that it is said in one
/// system call, whole or not at all.
fn last_words(panic: &std::panic::PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map(ToString::to_string);
    let what = format!(
        "{}: {}",
        place.unwrap_or_default(),
        text.unwrap_or("no message")
    );
    let what: String = what.chars().take(LAST_WORDS).collect();
    let what = what.replace('\n', " ");
    if let Ok(packet) = control::pack(&FromPlugin::Panicked { what }) {
        let mut bytes = Vec::new();
        packet.fragments(&mut bytes);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // A supervisor that has gone does not miss it.
        let _ = rustix::net::send(std::io::stdin(), &bytes, flags);
    }
}

fn refuse(error: &Error) -> ExitCode {
    eprintln!("plugin host: {error}");
    ExitCode::FAILURE
}

async fn run(
    registrations: Vec<Registration>,
    plugins: Vec<PluginBoot>,
    reader: Reader,
) -> ExitCode {
    let stream = match control_stream() {
        Ok(stream) => stream,
        Err(e) => return refuse(&Error::internal(format!("control link: {e}"))),
    };
    let (sender, mut receiver) = control::resume::<FromPlugin, ToPlugin>(stream, reader);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut process = Process::new(registrations, plugins, tell);
    if sender
        .send(&FromPlugin::Hello { protocol: PROTOCOL })
        .await
        .is_err()
    {
        return ExitCode::FAILURE;
    }
    loop {
        let message = tokio::select! {
            // An edge that retires counts what its clients wait for.
            () = process.busy.idle(), if process.busy.is_ending() => {
                process.stop_programs().await;
                return ExitCode::SUCCESS;
            }
            Some(said) = told.recv() => match process.pass_on(said, &sender).await {
                true => continue,
                false => return ExitCode::FAILURE,
            },
            message = receiver.next() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return ExitCode::FAILURE,
            Err(error) => return refuse(&error),
        };
        match message {
            ToPlugin::Boot(_) => return refuse(&Error::internal("control link: a second boot")),
            ToPlugin::Wire {
                plugin,
                peer,
                client,
                socket,
            } => process.wire(&plugin, peer, client, socket),
            ToPlugin::Peer {
                plugin,
                peer,
                state,
                cause,
                chain,
            } => {
                if let Some(link) = process.bus(&plugin).and_then(|bus| bus.link(&peer)) {
                    link.stands(state, cause, chain);
                }
            }
            ToPlugin::Start { plugin } => {
                let told = match process.start(&plugin) {
                    Ok(true) => sender.send(&FromPlugin::Ready { plugin }).await,
                    Ok(false) => Ok(()),
                    Err(error) => {
                        tracing::error!(%plugin, %error, "plugin does not start");
                        // The supervisor reads the reason before it sees the exit.
                        let _ = sender.send(&FromPlugin::Failed { plugin, error }).await;
                        return ExitCode::FAILURE;
                    }
                };
                if told.is_err() {
                    return ExitCode::FAILURE;
                }
            }
            ToPlugin::Ping { number } => {
                if let Some(foreign) = process.programs().next() {
                    foreign.ping(number);
                } else if sender.send(&FromPlugin::Pong { number }).await.is_err() {
                    return ExitCode::FAILURE;
                }
            }
            ToPlugin::Retire => process.busy.end(),
            ToPlugin::Stop => {
                process.busy.end();
                // Past the bound, callers are told by their broken links.
                let _ = tokio::time::timeout(DRAIN, process.busy.idle()).await;
                process.stop_programs().await;
                return ExitCode::SUCCESS;
            }
        }
    }
}

fn control_stream() -> std::io::Result<UnixStream> {
    // Nobody whom this process starts may speak for it.
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The plugins of this process.
struct Process {
    hosted: HashMap<PluginId, Hosted>,
    busy: Rc<Busy>,
    /// Where foreign programs say how they are.
    tell: mpsc::UnboundedSender<FromPlugin>,
}

struct Hosted {
    registration: Option<Registration>,
    boot: Option<PluginBoot>,
    bus: Bus,
    /// What answers, once started; sockets that came before wait here.
    dispatch: Option<Rc<dyn Dispatch>>,
    early: Vec<(PluginId, UnixStream)>,
    /// The program that answers for it, once started.
    foreign: Option<Foreign>,
}

impl Process {
    fn new(
        registrations: Vec<Registration>,
        plugins: Vec<PluginBoot>,
        tell: mpsc::UnboundedSender<FromPlugin>,
    ) -> Self {
        let mut registrations: HashMap<PluginId, Registration> = registrations
            .into_iter()
            .map(|registration| (registration.spec.id.clone(), registration))
            .collect();
        let hosted = plugins.into_iter().map(|boot| {
            let bus = Bus::new(boot.id.clone(), &boot.peers);
            report_broken(&bus, &tell);
            let registration = registrations.remove(&boot.id);
            (
                boot.id.clone(),
                Hosted {
                    registration,
                    boot: Some(boot),
                    bus,
                    dispatch: None,
                    early: Vec::new(),
                    foreign: None,
                },
            )
        });
        Self {
            hosted: hosted.collect(),
            busy: Rc::default(),
            tell,
        }
    }

    fn bus(&self, plugin: &PluginId) -> Option<&Bus> {
        self.hosted.get(plugin).map(|hosted| &hosted.bus)
    }

    fn wire(&mut self, plugin: &PluginId, peer: PluginId, client: bool, socket: Fd) {
        let Some(hosted) = self.hosted.get_mut(plugin) else {
            return;
        };
        let stream = match adopt(socket) {
            Ok(stream) => stream,
            Err(e) => return tracing::error!(%plugin, %peer, error = %e, "socket to a peer"),
        };
        match (&hosted.dispatch, client) {
            (_, true) => {
                if let Some(link) = hosted.bus.link(&peer) {
                    link.attach(stream);
                }
            }
            (Some(dispatch), false) => {
                let dispatch = dispatch.clone();
                self.answer((plugin.clone(), peer), stream, dispatch);
            }
            (None, false) => hosted.early.push((peer, stream)),
        }
    }

    /// Starts a plugin. Answers whether it is ready; otherwise its program says when.
    fn start(&mut self, plugin: &PluginId) -> Result<bool> {
        let Some(hosted) = self.hosted.get_mut(plugin) else {
            return Err(Error::not_found(format!(
                "plugin {plugin}: not in this process"
            )));
        };
        let boot = hosted.boot.take();
        if let Some(boot) = boot.as_ref()
            && let Some(command) = &boot.exec
        {
            let (bus, tell) = (hosted.bus.clone(), self.tell.clone());
            hosted.foreign = Some(Foreign::start(boot, command, bus, tell)?);
            return Ok(false);
        }
        let (Some(registration), Some(boot)) = (&hosted.registration, boot) else {
            return Err(Error::precondition(format!(
                "plugin {plugin}: unknown to this build, or started before"
            )));
        };
        let dispatch = registration.launch(boot, hosted.bus.clone(), self.busy.clone())?;
        self.serve(plugin, dispatch);
        Ok(true)
    }

    /// Lets `dispatch` answer for a plugin from now on.
    fn serve(&mut self, plugin: &PluginId, dispatch: Rc<dyn Dispatch>) {
        let Some(hosted) = self.hosted.get_mut(plugin) else {
            return;
        };
        hosted.dispatch = Some(dispatch.clone());
        for (peer, stream) in std::mem::take(&mut hosted.early) {
            self.answer((plugin.clone(), peer), stream, dispatch.clone());
        }
    }

    /// Answers a caller until it has gone, and tells when its link is of no more use.
    fn answer(
        &self,
        (plugin, peer): (PluginId, PluginId),
        stream: UnixStream,
        dispatch: Rc<dyn Dispatch>,
    ) {
        let (tell, served) = (
            self.tell.clone(),
            serve(stream, dispatch, self.busy.clone()),
        );
        actix::spawn(async move {
            if let Err(why) = served.await {
                tracing::error!(%plugin, %peer, why, "link broke");
                // The receiver lives as long as the process.
                let _ = tell.send(FromPlugin::Broken { plugin, peer, why });
            }
        });
    }

    /// The foreign programs that have been started.
    fn programs(&self) -> impl Iterator<Item = &Foreign> {
        self.hosted
            .values()
            .filter_map(|hosted| hosted.foreign.as_ref())
    }

    async fn stop_programs(&self) {
        for foreign in self.programs() {
            foreign.stop().await;
        }
    }

    /// Tells the supervisor what a foreign program said. Answers whether the process goes on.
    async fn pass_on(&mut self, said: FromPlugin, sender: &control::Sender<FromPlugin>) -> bool {
        match &said {
            FromPlugin::Ready { plugin } => {
                let answers = self.programs().next().map(Foreign::dispatch);
                if let Some(answers) = answers {
                    self.serve(plugin, answers);
                }
            }
            FromPlugin::Failed { plugin, error } => {
                tracing::error!(%plugin, %error, "the program is of no more use");
                let _ = sender.send(&said).await;
                return false;
            }
            _ => {}
        }
        sender.send(&said).await.is_ok()
    }
}

/// Lets every link of `bus` tell when it is of no more use.
fn report_broken(bus: &Bus, tell: &mpsc::UnboundedSender<FromPlugin>) {
    for link in bus.all_peers().filter_map(|peer| bus.link(peer)) {
        let (plugin, peer, tell) = (bus.plugin().clone(), link.peer().clone(), tell.clone());
        link.report_to(move |why| {
            let (plugin, peer) = (plugin.clone(), peer.clone());
            // The receiver lives as long as the process.
            let _ = tell.send(FromPlugin::Broken { plugin, peer, why });
        });
    }
}

/// Makes a tokio stream of a received socket.
pub(crate) fn adopt(socket: Fd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(socket.into_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
