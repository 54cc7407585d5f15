//! The plugin's working parts, shared by all handlers: who is alive, where things are, whom to ask.

use crate::audit::{Auditor, Known};
use crate::config::Config;
use crate::events::SocketFile;
use crate::host::Host;
use crate::launch::Launch;
use crate::layout::Layout;
use crate::live::{Live, Tracked};
use crate::record::{self, Name, Program};
use crate::shim::ShimError;
use crate::store::{self, Store};
use bus::{Bus, Ctx};
use contracts::tasks::{Exit, List, Status, Task};
use contracts::{ContainerId, Error, ExecId, Namespace, Page, Result, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a shim may take to say how it stands. Source: containerd, `io.containerd.timeout.task.state`.
pub(crate) const STATE: Duration = Duration::from_secs(2);
/// How long a shim may take for what needs no work: a signal, a size, a number.
pub(crate) const QUICK: Duration = Duration::from_secs(5);

/// How long a look-up waits for a shim that did not answer before.
const AGAIN: Duration = Duration::from_millis(100);

/// What all handlers share.
pub(crate) struct Engine {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) layout: Layout,
    /// gantry's own shim.
    pub(crate) own: Program,
    pub(crate) host: Host,
    /// When this process, or this life of the plugin in it, began.
    pub(crate) began: Timestamp,
    /// The records are from before the machine was started: nothing on the host is what they name.
    pub(crate) rebooted: Cell<bool>,
    live: RefCell<BTreeMap<Name, Rc<Live>>>,
    /// Removals of bundles that are under way: a new task of that name waits for them.
    pub(crate) burials: RefCell<HashMap<Name, JoinHandle<()>>>,
    /// Shims that were told to end and have not yet, by their sockets.
    pub(crate) ending: RefCell<HashMap<PathBuf, Launch>>,
    /// Held while a shim makes cgroups, so that an empty parent is not removed under its feet.
    pub(crate) cgroups: Rc<tokio::sync::RwLock<()>>,
    /// Namespaces whose parent cgroup is about to be looked at.
    pub(crate) unswept: RefCell<BTreeSet<Namespace>>,
    /// Where shims forward their events to; goes with this.
    pub(crate) socket: RefCell<Option<SocketFile>>,
    errands: RefCell<Vec<AbortHandle>>,
    pub(crate) auditor: Auditor,
}

impl Drop for Engine {
    /// Leaves nothing on the host but what belongs to tasks. A shim that lives on finds the socket again later.
    fn drop(&mut self) {
        self.errands.get_mut().iter().for_each(AbortHandle::abort);
        let live = self.live.get_mut().values();
        let ended: Vec<_> = live.filter(|live| live.ended()).cloned().collect();
        self.retire_last(&ended);
        for namespace in self.unswept.take() {
            if !self.is_used(&namespace) {
                crate::cgroup::remove_empty(&format!("/gantry/{namespace}"));
            }
        }
    }
}

impl Engine {
    pub(crate) fn new(store: Store, bus: Bus, layout: Layout, config: &Config) -> Rc<Self> {
        let own = own_shim(config);
        Rc::new(Self {
            store,
            bus,
            host: Host::new(&layout, &own),
            began: Timestamp::now(),
            rebooted: Cell::new(crate::boot::is_another(&layout.boot())),
            layout,
            own,
            live: RefCell::default(),
            burials: RefCell::default(),
            ending: RefCell::default(),
            cgroups: Rc::default(),
            unswept: RefCell::default(),
            socket: RefCell::default(),
            errands: RefCell::default(),
            auditor: Auditor::default(),
        })
    }

    /// Has `errand` stop with the engine.
    pub(crate) fn keep(&self, errand: JoinHandle<()>) {
        let mut errands = self.errands.borrow_mut();
        errands.retain(|errand| !errand.is_finished());
        errands.push(errand.abort_handle());
    }

    /// Lets go of all errands, which would keep the engine alive until they are done.
    pub(crate) fn let_go(&self) {
        self.errands.take().iter().for_each(AbortHandle::abort);
    }

    pub(crate) fn find(&self, name: &Name) -> Option<Rc<Live>> {
        self.live.borrow().get(name).cloned()
    }

    /// The task. Errors: `NotFound`.
    pub(crate) fn live(&self, name: &Name) -> Result<Rc<Live>> {
        self.find(name)
            .ok_or_else(|| store::StoreError::Missing(name.clone()).into())
    }

    /// A process of a task. Errors: `NotFound`.
    pub(crate) fn tracked(
        &self,
        name: &Name,
        exec: Option<&ExecId>,
    ) -> Result<(Rc<Live>, Rc<Tracked>)> {
        let live = self.live(name)?;
        let missing = |exec: &ExecId| store::StoreError::MissingExec(name.clone(), exec.clone());
        match (live.process(exec), exec) {
            (Some(tracked), _) => Ok((live, tracked)),
            (None, Some(exec)) => Err(missing(exec).into()),
            (None, None) => Err(store::StoreError::Missing(name.clone()).into()),
        }
    }

    pub(crate) fn insert(&self, live: Rc<Live>) {
        self.live.borrow_mut().insert(live.name.clone(), live);
    }

    pub(crate) fn remove(&self, name: &Name) {
        self.live.borrow_mut().remove(name);
    }

    /// Whether any task of the namespace has a shim, or is being made.
    pub(crate) fn is_used(&self, namespace: &Namespace) -> bool {
        self.live
            .borrow()
            .values()
            .any(|live| live.name.namespace == *namespace && !live.retired.get())
    }

    /// Answers from the record; a living task whose shim was not known to be stuck is asked first.
    pub(crate) async fn get(self: &Rc<Self>, name: &Name) -> Result<Task> {
        if let Some(live) = self
            .find(name)
            .filter(|live| live.init.exit().borrow().is_none())
        {
            let patience = match live.doubt().is_empty() {
                true => STATE,
                false => AGAIN,
            };
            if !self.is_stopped(&live).await {
                let _ = tokio::time::timeout(patience, self.ask(&live)).await;
            }
        }
        let (store, wanted) = (self.store.clone(), name.clone());
        let mut task = blocking(move || store.get(&wanted)).await?.task();
        if let Some(doubt) = self.doubt(name) {
            record::doubt(&mut task, &doubt);
        }
        Ok(task)
    }

    /// Lists from the records; shims are asked aside, for the next time.
    pub(crate) async fn list(
        self: &Rc<Self>,
        namespace: Namespace,
        request: List,
    ) -> Result<Page<Task>> {
        let mut doubts = HashMap::<ContainerId, String>::new();
        for live in self.of(&namespace) {
            let doubt = live.doubt();
            if !doubt.is_empty() {
                doubts.insert(live.name.id.clone(), doubt);
            }
        }
        let store = self.store.clone();
        let space = namespace.clone();
        let page = blocking(move || store.list(&namespace, &request, &doubts)).await?;
        self.doubt_stopped(&space, page).await
    }

    /// Says which tasks of a page have a shim that is stopped; the others' shims are asked aside.
    async fn doubt_stopped(
        self: &Rc<Self>,
        namespace: &Namespace,
        mut page: Page<Task>,
    ) -> Result<Page<Task>> {
        let living = page
            .items
            .iter()
            .filter(|task| task.status != Status::Stopped);
        let living = living.filter_map(|task| {
            let (namespace, id) = (namespace.clone(), task.id.clone());
            self.find(&Name { namespace, id })
        });
        let living: Vec<Rc<Live>> = living.collect();
        let bundles: Vec<_> = living
            .iter()
            .map(|live| live.launch.bundle.clone())
            .collect();
        let looks = move || {
            let stopped = bundles
                .iter()
                .map(|bundle| crate::host::stopped_shim(bundle));
            Ok::<_, Error>(stopped.collect::<Vec<_>>())
        };
        for (live, stopped) in living.iter().zip(blocking(looks).await?) {
            let Some(pid) = stopped else {
                self.ask_aside(live);
                continue;
            };
            self.suspect(live, &ShimError::Stopped(pid));
            let row = page.items.iter_mut().find(|task| task.id == live.name.id);
            row.into_iter()
                .for_each(|row| record::doubt(row, &live.doubt()));
        }
        Ok(page)
    }

    /// Looks whether a shim is stopped by a signal, and remembers.
    async fn is_stopped(self: &Rc<Self>, live: &Rc<Live>) -> bool {
        let stopped = live.stopped().await;
        if let Some(pid) = stopped {
            self.suspect(live, &ShimError::Stopped(pid));
        }
        stopped.is_some()
    }

    fn suspect(self: &Rc<Self>, live: &Rc<Live>, why: &ShimError) {
        live.suspect(&why.to_string());
        self.insist(live);
    }

    /// Waits for the end of a process, with nothing of the engine in hand. Errors: `NotFound`.
    pub(crate) fn wait(
        &self,
        name: &Name,
        exec: Option<&ExecId>,
    ) -> Result<impl Future<Output = Result<Exit>> + use<>> {
        let (_, tracked) = self.tracked(name, exec)?;
        let (mut exit, id) = (tracked.exit(), name.id.clone());
        Ok(async move {
            let ended = exit.wait_for(Option::is_some).await;
            let ended = ended.ok().and_then(|exit| exit.clone());
            ended.ok_or_else(|| Error::not_found(format!("task {id}: was deleted meanwhile")))
        })
    }

    /// What may be there on the host: what tasks have, and what is on its way out.
    pub(crate) fn known(&self) -> Known {
        let (live, ending) = (self.live.borrow(), self.ending.borrow());
        let attended = live.values().filter(|live| !live.retired.get());
        let all = attended.map(|live| &live.launch).chain(ending.values());
        let all = all.map(|launch| (launch.name.clone(), launch.socket.clone()));
        let (names, sockets) = all.unzip();
        Known { names, sockets }
    }

    /// Cgroups of tasks that have a shim.
    pub(crate) fn cgroups_in_use(&self) -> BTreeSet<String> {
        let live = self.live.borrow();
        let attended = live.values().filter(|live| !live.retired.get());
        attended.map(|live| live.launch.cgroup.clone()).collect()
    }

    /// How many tasks there are, and of how many nobody knows how they stand.
    pub(crate) fn tally(&self) -> (usize, usize) {
        let live = self.live.borrow();
        let unknown = live.values().filter(|live| !live.doubt().is_empty());
        (live.len(), unknown.count())
    }

    fn of(&self, namespace: &Namespace) -> Vec<Rc<Live>> {
        let live = self.live.borrow();
        live.values()
            .filter(|live| live.name.namespace == *namespace)
            .cloned()
            .collect()
    }

    fn doubt(&self, name: &Name) -> Option<String> {
        let doubt = self.find(name)?.doubt();
        (!doubt.is_empty()).then_some(doubt)
    }
}

/// The time a caller still waits, at most `most`.
pub(crate) fn left(ctx: &Ctx, most: Duration) -> Duration {
    ctx.deadline
        .saturating_duration_since(tokio::time::Instant::now())
        .min(most)
        .max(Duration::from_millis(1))
}

/// Runs what blocks where that is allowed.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(e) => Err(Error::internal(format!("disk work: {e}"))),
    }
}

fn own_shim(config: &Config) -> Program {
    let (path, first) = if config.shim.is_empty() {
        (crate::launch::THIS.to_owned(), Some("shim".to_owned()))
    } else {
        (config.shim.clone(), None)
    };
    Program {
        path,
        first,
        own: true,
    }
}
