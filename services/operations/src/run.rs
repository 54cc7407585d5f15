//! One operation under way: whom it may call, what keeps its results, and how it ends.

use crate::board::Board;
use crate::config::Config;
use crate::store::Store;
use bus::{Bus, Ctx};
use contracts::collect::Resource;
use contracts::leases::{Add, Create, Delete, Resources, Update};
use contracts::{
    Code, Error, LabelPatch, Labels, LeaseId, Namespace, OperationId, Paging, Ref, Request, Result,
    SnapshotKey, Timestamp,
};
use std::collections::{BTreeSet, HashMap};
use std::{cell::Cell, cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::{Mutex, OwnedMutexGuard, RwLock};

/// How long one step may take before the operation gives up on it: a step waits for a restarting plugin, not for ever.
const STEP: Duration = Duration::from_secs(120);
/// How long a stream may stay open: longer than any image takes.
const STREAM: Duration = Duration::from_secs(24 * 3600);
/// How long a lease outlives an operation that nobody finishes. Source: containerd, default lease expiry.
const LEASE: u64 = 24 * 3600;
/// Moment at which a lease ends by itself, RFC 3339. Source: containerd, docs/garbage-collection.md.
const EXPIRE: &str = "containerd.io/gc.expire";
/// Label of what an operation makes under a name that users choose: the operation's id. What lacks it is somebody else's.
const OWNER: &str = "gantry.io/operation";

/// What all operations share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Work on the same thing waits here for its turn: the second one then finds it done.
    turns: RefCell<HashMap<String, Arc<Mutex<()>>>>,
    /// Ingests that operations wait for, and how many.
    fetching: RefCell<HashMap<String, usize>>,
    /// Layers that were extracted or compared with their blobs in this life of the plugin.
    proven: RefCell<BTreeSet<String>>,
}

/// What the steps of one operation share. Clones are the same operation.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) bus: Bus,
    pub(crate) board: Board,
    pub(crate) config: Rc<Config>,
    pub(crate) journal: Store,
    /// How often it was begun again.
    pub(crate) attempt: u32,
    /// The same in every attempt.
    base: Ctx,
    /// Of this attempt: what an earlier one did may have been undone, so nothing of it is taken for done.
    ctx: Ctx,
    shared: Rc<Shared>,
    streams: Rc<Cell<u32>>,
    /// Read by calls that end even when the work is dropped.
    busy: Arc<RwLock<()>>,
    left: Rc<Left>,
}

/// What is to be cleaned up when the work ends here.
#[derive(Default)]
pub(crate) struct Left {
    /// Snapshots by driver that were prepared and not committed.
    pub(crate) prepared: RefCell<BTreeSet<(String, SnapshotKey)>>,
    /// Ingests that were not finished.
    pub(crate) ingests: RefCell<BTreeSet<Ref>>,
}

/// One ingest that an operation waits for. Dropping it leaves it unfinished.
pub(crate) struct Fetching<'a> {
    run: &'a Run,
    name: Ref,
}

impl Fetching<'_> {
    /// The blob is here.
    pub(crate) fn finished(self) {
        self.run.left.ingests.borrow_mut().remove(&self.name);
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut fetching = self.run.shared.fetching.borrow_mut();
        let key = self.run.local(self.name.as_str());
        if let Some(count) = fetching.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                fetching.remove(&key);
            }
        }
    }
}

impl Run {
    pub(crate) fn new(
        bus: Bus,
        board: Board,
        config: Rc<Config>,
        journal: Store,
        base: Ctx,
        shared: Rc<Shared>,
        attempt: u32,
    ) -> Self {
        Self {
            bus,
            board,
            config,
            journal,
            attempt,
            ctx: base.step(&format!("attempt {attempt}")),
            base,
            shared,
            streams: Rc::default(),
            busy: Arc::default(),
            left: Rc::default(),
        }
    }

    /// The same operation in another namespace.
    pub(crate) fn inside(&self, namespace: &Namespace) -> Self {
        let mut inside = self.clone();
        inside.base = inside.base.in_namespace(namespace.clone());
        inside.ctx = inside.ctx.in_namespace(namespace.clone());
        inside
    }

    /// Whether a layer was extracted or compared in this life of the plugin, and no scrub has found it damaged since.
    pub(crate) fn is_proven(&self, driver: &str, name: &SnapshotKey) -> bool {
        let key = self.local(&format!("{driver} {name}"));
        self.shared.proven.borrow().contains(&key)
    }

    /// Says that a layer is what its blob says.
    pub(crate) fn proven(&self, driver: &str, name: &SnapshotKey) {
        let key = self.local(&format!("{driver} {name}"));
        self.shared.proven.borrow_mut().insert(key);
    }

    /// Says that nobody knows whether a layer is what its blob says.
    pub(crate) fn unproven(&self, driver: &str, name: &SnapshotKey) {
        let key = self.local(&format!("{driver} {name}"));
        self.shared.proven.borrow_mut().remove(&key);
    }

    /// A number that no other step of this attempt has.
    pub(crate) fn number(&self) -> u32 {
        let number = self.streams.get();
        self.streams.set(number + 1);
        number
    }

    /// The context of a step.
    pub(crate) fn ctx(&self) -> Ctx {
        self.ctx.clone().with_deadline(STEP)
    }

    /// The context of a step whose results something else keeps already.
    pub(crate) fn kept(&self) -> Ctx {
        self.ctx().with_lease(None)
    }

    /// The context of a step that is the same in every attempt: done before, it answers what it answered then.
    pub(crate) fn once(&self, what: &str) -> Ctx {
        self.base.step(what).with_deadline(STEP)
    }

    /// The context of a stream. No two share their calls: what one found done may be gone when the next looks.
    pub(crate) fn stream(&self) -> Ctx {
        let name = format!("stream {}", self.number());
        self.ctx.step(&name).with_deadline(STREAM)
    }

    /// Calls the one plugin that answers.
    pub(crate) async fn call<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.bus.call(&self.ctx(), request).await
    }

    /// Calls a snapshot driver by name.
    pub(crate) async fn call_at_driver<R: Request>(
        &self,
        driver: &str,
        request: R,
    ) -> Result<R::Reply> {
        self.bus.call_named(driver, &self.ctx(), request).await
    }

    /// Makes what a user must not find later: a call that ends even when the work is dropped, so that it can be undone.
    pub(crate) async fn surely<R: Request>(
        &self,
        driver: Option<&str>,
        ctx: Ctx,
        request: R,
    ) -> Result<R::Reply> {
        let (bus, driver) = (self.bus.clone(), driver.map(str::to_owned));
        let busy = self.busy.clone().read_owned().await;
        let call = actix::spawn(async move {
            let _busy = busy;
            match driver {
                Some(driver) => bus.call_named(&driver, &ctx, request).await,
                None => bus.call(&ctx, request).await,
            }
        });
        call.await
            .unwrap_or_else(|e| Err(Error::internal(format!("{}: {e}", R::NAME))))
    }

    /// Waits for the ends of all calls that [`Run::surely`] began.
    pub(crate) async fn settled(&self) {
        drop(self.busy.write().await);
    }

    /// The operation's id.
    pub(crate) fn id(&self) -> &OperationId {
        &self.base.operation
    }

    /// The operation's id in names of things: short, and without anything special. Most ids are so already.
    pub(crate) fn tag(&self) -> OperationId {
        let id = self.id();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if id.as_str().len() <= 64 && id.as_str().chars().all(plain) {
            id.clone()
        } else {
            self.base.step("tag").operation
        }
    }

    /// The label of what this operation makes.
    pub(crate) fn owned(&self) -> Labels {
        [(OWNER.to_owned(), self.tag().to_string())].into()
    }

    /// Whether this operation, in any attempt, made what has these labels.
    pub(crate) fn owns(&self, labels: &Labels) -> bool {
        labels.get(OWNER).map(String::as_str) == Some(self.tag().as_str())
    }

    /// What is to be cleaned up.
    pub(crate) fn left(&self) -> &Left {
        &self.left
    }

    fn lease(&self) -> Result<LeaseId> {
        LeaseId::new(format!("operation-{}", self.tag()))
    }

    /// The same operation with whatever it makes held: by the caller's lease when it named one, else by one of its own,
    /// until [`Run::release`] or a day later.
    pub(crate) async fn hold(&self) -> Result<Self> {
        if self.base.lease.is_some() {
            return Ok(self.clone());
        }
        let id = self.lease()?;
        let create = Create {
            id: Some(id.clone()),
            expires_in: Some(LEASE),
            ..Create::default()
        };
        match self.call(create).await {
            // An earlier attempt made it, maybe long ago.
            Err(error) if error.is(Code::AlreadyExists) => self.prolong(&id).await?,
            made => drop(made?),
        }
        let mut held = self.clone();
        held.ctx = held.ctx.with_lease(Some(id));
        Ok(held)
    }

    async fn prolong(&self, id: &LeaseId) -> Result<()> {
        let end = Timestamp::now().plus_seconds(i64::try_from(LEASE).unwrap_or(i64::MAX));
        let labels = LabelPatch {
            replace: false,
            set: [(EXPIRE.to_owned(), Some(end.to_string()))].into(),
        };
        let id = id.clone();
        self.call(Update { id, labels }).await.map(drop)
    }

    /// Holds what is here, or will be, before it is looked at: then it cannot go in between.
    pub(crate) async fn keep(&self, resources: Vec<Resource>) -> Result<()> {
        match self.ctx.lease.clone() {
            Some(id) => self.call(Add { id, resources }).await,
            None => Ok(()),
        }
    }

    /// Lets go of the operation's own lease. What nothing refers to is collected; what cannot be released ends by itself.
    pub(crate) async fn release(&self) {
        let Some(id) = self.lease().ok().filter(|_| self.base.lease.is_none()) else {
            return;
        };
        let released = self
            .bus
            .call(&self.ctx().step("release"), Delete { id })
            .await;
        undone("lease", released);
    }

    /// Waits until nobody else of this namespace works on `what`.
    pub(crate) async fn turn(&self, what: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.shared.turns.borrow_mut();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(self.local(what)).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Says that this operation waits for an ingest.
    pub(crate) fn fetching(&self, name: &Ref) -> Fetching<'_> {
        self.left.ingests.borrow_mut().insert(name.clone());
        let mut fetching = self.shared.fetching.borrow_mut();
        *fetching.entry(self.local(name.as_str())).or_default() += 1;
        Fetching {
            run: self,
            name: name.clone(),
        }
    }

    /// Ingests that this operation left unfinished and that no other one waits for: those that it knows of, and those
    /// that its own lease holds.
    pub(crate) async fn unfinished(&self) -> Vec<Ref> {
        let mut left = std::mem::take(&mut *self.left.ingests.borrow_mut());
        match self.leased().await {
            Ok(leased) => left.extend(leased),
            Err(error) if error.is(Code::NotFound) => {}
            Err(error) => tracing::warn!(%error, "unfinished writes stay for the collector"),
        }
        let fetching = self.shared.fetching.borrow();
        left.retain(|name| !fetching.contains_key(&self.local(name.as_str())));
        left.into_iter().collect()
    }

    async fn leased(&self) -> Result<Vec<Ref>> {
        let (mut ingests, mut paging) = (Vec::new(), Paging::default());
        loop {
            let resources = Resources {
                id: self.lease()?,
                paging: paging.clone(),
            };
            let page = self.call(resources).await?;
            ingests.extend(page.items.into_iter().filter_map(|held| match held {
                Resource::Ingest(name) => Some(name),
                _ => None,
            }));
            if page.next.is_empty() {
                return Ok(ingests);
            }
            paging.token = page.next;
        }
    }

    fn local(&self, what: &str) -> String {
        let namespace = self.base.namespace.as_ref();
        format!("{}\0{what}", namespace.map_or("", |name| name.as_str()))
    }
}

/// Takes "it is not there" for an answer.
pub(crate) fn maybe<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Undoes as much as can be undone, and says what could not.
pub(crate) fn undone(what: &str, result: Result<(), Error>) {
    match result {
        Err(error) if !error.is(Code::NotFound) => {
            tracing::warn!(what, %error, "could not be undone; the collector will find it")
        }
        _ => {}
    }
}
