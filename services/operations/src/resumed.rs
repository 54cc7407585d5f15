//! What is begun again after a crash: journals as a crash leaves them, picked up beside fakes.

use crate::store::{Begin, Store, described, journaled};
use bus::Ctx;
use bus::testing::{Fake, LocalBus, LocalNode};
use contracts::containers::{self as c, Container, Containers, Runtime};
use contracts::content::Content;
use contracts::diff::Diff;
use contracts::events::{Append, Events};
use contracts::gc::Gc;
use contracts::images::Images;
use contracts::integrity::{Check, Checked};
use contracts::leases::{self as l, Lease, Leases};
use contracts::namespaces::Namespaces;
use contracts::operations::{
    Cancel, CreateContainer, Get, Operation, Outcome, Pull, Remove, Start, State, Watch, Work,
};
use contracts::snapshots::{self as s, Info, SnapshotKind, Snapshots};
use contracts::tasks::{self as t, Status, Task, Tasks};
use contracts::transfer::{Access, Auth, Resolve, Transfer};
use contracts::{
    Code, ContainerId, Error, Labels, LeaseId, Namespace, OperationId, Page, SnapshotKey, Timestamp,
};
use futures_util::StreamExt;
use std::{cell::RefCell, rc::Rc};

/// What is there, and what was asked in order.
#[derive(Clone, Default)]
struct World(Rc<RefCell<Things>>);

#[derive(Default)]
struct Things {
    asked: Vec<String>,
    container: Option<Container>,
    snapshot: Option<Info>,
    /// Whether the operation has its lease already.
    leased: bool,
    /// Operation ids of the calls that made or started a task.
    tasks: Vec<(String, OperationId)>,
}

fn container(labels: Labels) -> Container {
    Container {
        id: ContainerId::new("web").unwrap(),
        image: None,
        labels,
        runtime: Runtime::default(),
        snapshotter: "overlayfs".into(),
        snapshot_key: Some(SnapshotKey::new("web").unwrap()),
        spec: "{}".into(),
        created_at: Timestamp(7),
        updated_at: Timestamp(7),
        version: 1,
    }
}

fn snapshot(labels: Labels) -> Info {
    Info {
        key: SnapshotKey::new("web").unwrap(),
        parent: None,
        kind: SnapshotKind::Active,
        labels,
        created_at: Timestamp(7),
        updated_at: Timestamp(7),
    }
}

fn owned(id: &str) -> Labels {
    [("gantry.io/operation".to_owned(), id.to_owned())].into()
}

fn missing<T>() -> contracts::Result<T> {
    Err(Error::not_found("not there"))
}

impl World {
    fn say(&self, what: impl Into<String>) {
        self.0.borrow_mut().asked.push(what.into());
    }

    fn asked(&self) -> Vec<String> {
        self.0.borrow().asked.clone()
    }

    fn containers(&self) -> Fake<Containers> {
        let (get, create, delete) = (self.clone(), self.clone(), self.clone());
        Fake::new("local")
            .on(move |_, _: c::Get| get.0.borrow().container.clone().map_or_else(missing, Ok))
            .on(move |_, asked: c::Create| {
                create.say("make container");
                let made = container(asked.labels);
                create.0.borrow_mut().container = Some(made.clone());
                Ok(made)
            })
            .on(move |_, _: c::Delete| {
                delete.say("delete container");
                delete.0.borrow_mut().container = None;
                Ok(())
            })
    }

    fn snapshots(&self) -> Fake<Snapshots> {
        let (stat, list, remove) = (self.clone(), self.clone(), self.clone());
        Fake::new("overlayfs")
            .on(move |_, _: s::Stat| stat.0.borrow().snapshot.clone().map_or_else(missing, Ok))
            .on(move |_, _: s::List| {
                list.say("look for extractions");
                Ok(Page {
                    items: Vec::new(),
                    next: String::new(),
                    version: 1,
                })
            })
            .on(move |_, asked: s::Remove| {
                remove.say(format!("remove snapshot {}", asked.key));
                Ok(())
            })
    }

    fn tasks(&self) -> Fake<Tasks> {
        let (create, start, delete) = (self.clone(), self.clone(), self.clone());
        let task = |status| Task {
            id: ContainerId::new("web").unwrap(),
            container: ContainerId::new("web").unwrap(),
            pid: 3,
            status,
            exit_code: None,
            exited_at: None,
            reason: String::new(),
            created_at: Timestamp(8),
            tty: false,
        };
        let called = |world: &World, what: &str, ctx: Ctx| {
            let call = (what.to_owned(), ctx.operation);
            world.0.borrow_mut().tasks.push(call);
        };
        Fake::new("local")
            .on(move |ctx, _: t::Create| {
                called(&create, "create", ctx);
                Ok(task(Status::Created))
            })
            .on(move |ctx, _: t::Start| {
                called(&start, "start", ctx);
                Ok(task(Status::Running))
            })
            .on(move |_, asked: t::Delete| {
                delete.say(format!("delete task, force {}", asked.force));
                missing()
            })
    }

    fn leases(&self) -> Fake<Leases> {
        let (create, update, delete) = (self.clone(), self.clone(), self.clone());
        let lease = |id| Lease {
            id,
            labels: Labels::new(),
            created_at: Timestamp(1),
            expires_at: None,
        };
        Fake::new("local")
            .on(move |_, asked: l::Create| {
                create.say("hold");
                if create.0.borrow().leased {
                    return Err(Error::exists("lease: is there already"));
                }
                Ok(lease(asked.id.ok_or_else(|| Error::invalid("no id"))?))
            })
            .on(move |_, asked: l::Update| {
                let end = asked.labels.set.values().flatten().next();
                let later =
                    end.and_then(|end| end.parse::<Timestamp>().ok()) > Some(Timestamp::now());
                update.say(format!("prolong {later}"));
                Ok(lease(asked.id))
            })
            .on(move |_, asked: l::Delete| {
                delete.say(format!("release {}", asked.id));
                Ok(())
            })
    }

    fn start(&self, dir: &tempfile::TempDir) -> LocalNode {
        let resolve = self.clone();
        let transfer = Fake::<Transfer>::new("local").on(move |ctx, _: Resolve| {
            let lease = ctx.lease.map(|lease| lease.to_string());
            resolve.say(format!("resolve under {}", lease.unwrap_or_default()));
            Err(Error::unavailable("registry r:5000: nobody there"))
        });
        LocalBus::new()
            .fake(Fake::<Events>::new("log").on(|_, append: Append| Ok(append.first)))
            .fake(self.leases())
            .fake(Fake::<Namespaces>::new("local"))
            .fake(Fake::<Content>::new("local").on(|_, _: Check| Ok(Checked::default())))
            .fake(self.snapshots())
            .fake(Fake::<Diff>::new("local"))
            .fake(Fake::<Images>::new("local"))
            .fake(transfer)
            .fake(self.containers())
            .fake(self.tasks())
            .fake(Fake::<Gc>::new("local"))
            .plugin(crate::plugin())
            .start(dir.path())
            .unwrap()
    }
}

/// A journal in which this work was begun and then its process died.
async fn interrupted(id: &str, work: &Work) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root/operations/local");
    std::fs::create_dir_all(&root).unwrap();
    let (kind, subject) = described(work);
    let begin = Begin {
        id: OperationId::new(id).unwrap(),
        namespace: Some(Namespace::new("test").unwrap()),
        lease: None,
        work: journaled(work),
        kind,
        subject,
    };
    let store = Store::open(&root).unwrap();
    store.begin(begin).await.unwrap();
    dir
}

fn making(auth: Option<Auth>) -> CreateContainer {
    CreateContainer {
        id: ContainerId::new("web").unwrap(),
        image: String::new(),
        options: c::Options::default(),
        spec: "{}".into(),
        labels: Labels::new(),
        runtime: Runtime::default(),
        snapshotter: String::new(),
        platform: String::new(),
        access: Access {
            plain_http: false,
            auth,
        },
        pull: String::new(),
    }
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

async fn end(node: &LocalNode, id: &str) -> Operation {
    let id = OperationId::new(id).unwrap();
    let watched = node.bus().open(&ctx(), Watch { id }).await.unwrap();
    let shown: Vec<_> = watched.map(Result::unwrap).collect().await;
    shown.into_iter().last().unwrap()
}

#[actix_rt::test]
async fn a_container_that_somebody_else_made_meanwhile_is_left_alone() {
    let work = Work::Run(making(None));
    let dir = interrupted("mine", &work).await;
    let world = World::default();
    {
        let mut state = world.0.borrow_mut();
        state.container = Some(container(owned("another")));
        state.snapshot = Some(snapshot(owned("another")));
    }
    let node = world.start(&dir);
    let end = end(&node, "mine").await;
    assert_eq!(end.error.unwrap().code, Code::AlreadyExists);
    let harmless = ["hold", "look for extractions", "release operation-mine"];
    let asked = world.asked();
    assert!(
        asked.iter().all(|call| harmless.contains(&call.as_str())),
        "{asked:?}"
    );
    assert!(world.0.borrow().tasks.is_empty());
}

#[actix_rt::test]
async fn a_run_goes_on_with_its_own_container_and_task() {
    let work = Work::Run(making(None));
    let dir = interrupted("mine", &work).await;
    let world = World::default();
    world.0.borrow_mut().container = Some(container(owned("mine")));
    let node = world.start(&dir);
    let first = end(&node, "mine").await;
    assert_eq!((first.state, first.resumed), (State::Done, 1), "{first:?}");
    assert!(matches!(first.result, Some(Outcome::Task(_))));
    let made = world.asked().iter().any(|call| call.starts_with("make"));
    assert!(!made, "{:?}", world.asked());

    // Whoever carries it out, the calls about this very container are the same calls: they take effect once.
    let dir = interrupted("mine", &work).await;
    let again = World::default();
    again.0.borrow_mut().container = Some(container(owned("mine")));
    let other = again.start(&dir);
    assert_eq!(end(&other, "mine").await.state, State::Done);
    assert_eq!(world.0.borrow().tasks, again.0.borrow().tasks);
    assert_eq!(world.0.borrow().tasks.len(), 2);
}

#[actix_rt::test]
async fn work_that_cannot_go_on_is_undone_and_only_what_it_made() {
    let auth = Auth {
        username: "u".into(),
        password: "secret".into(),
        ..Auth::default()
    };
    let work = Work::Run(making(Some(auth)));
    let dir = interrupted("mine", &work).await;
    let world = World::default();
    {
        let mut state = world.0.borrow_mut();
        state.container = Some(container(owned("mine")));
        state.snapshot = Some(snapshot(owned("mine")));
    }
    let node = world.start(&dir);
    let end = end(&node, "mine").await;
    assert_eq!((end.state, end.resumed), (State::Failed, 0));
    assert_eq!(end.error.unwrap().code, Code::Aborted);
    assert_eq!(
        world.asked(),
        [
            "delete task, force true",
            "delete container",
            "remove snapshot web",
            "look for extractions",
            "release operation-mine"
        ]
    );
}

#[actix_rt::test]
async fn interrupted_work_can_be_watched_and_cancelled_at_once() {
    let work = Work::Remove(Remove {
        id: ContainerId::new("web").unwrap(),
        force: false,
        keep_snapshot: false,
    });
    let dir = interrupted("mine", &work).await;
    let node = World::default().start(&dir);
    let id = OperationId::new("mine").unwrap();
    // It waits for a restarted plugin, or has ended: it is never unknown, and never runs with nobody in charge.
    let end = node.bus().call(&ctx(), Cancel { id: id.clone() }).await;
    assert_ne!(end.unwrap().state, State::Running);
    let kept = node.bus().call(&ctx(), Get { id }).await.unwrap();
    assert_ne!(kept.state, State::Running);
}

#[actix_rt::test]
async fn a_lease_of_an_earlier_attempt_is_prolonged() {
    let work = Work::Pull(Pull {
        reference: "r:5000/a:1".into(),
        ..Pull::default()
    });
    let dir = interrupted("mine", &work).await;
    let world = World::default();
    world.0.borrow_mut().leased = true;
    let node = world.start(&dir);
    assert_eq!(end(&node, "mine").await.state, State::Failed);
    let wanted = [
        "hold",
        "prolong true",
        "resolve under operation-mine",
        "look for extractions",
        "release operation-mine",
    ];
    assert_eq!(world.asked(), wanted);
}

#[actix_rt::test]
async fn a_lease_of_the_caller_is_used_and_not_released() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let node = world.start(&dir);
    let work = Work::Pull(Pull {
        reference: "r:5000/a:1".into(),
        ..Pull::default()
    });
    let lease = LeaseId::new("mine").unwrap();
    let ctx = ctx().with_lease(Some(lease));
    let begun = node.bus().call(&ctx, Start { work }).await.unwrap();
    assert_eq!(end(&node, begun.id.as_str()).await.state, State::Failed);
    assert_eq!(world.asked(), ["resolve under mine"]);
}

#[actix_rt::test]
async fn an_id_that_no_name_could_hold_is_an_id_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let node = world.start(&dir);
    let id = OperationId::new(format!("\"{}", ".*".repeat(500))).unwrap();
    let work = Work::Pull(Pull::default());
    let ctx = ctx().with_operation(id);
    let begun = node.bus().call(&ctx, Start { work }).await.unwrap();
    let end = end(&node, begun.id.as_str()).await;
    assert_eq!(end.error.unwrap().code, Code::Unavailable);
    let asked = world.asked();
    assert!(
        asked
            .iter()
            .any(|call| call.starts_with("release operation-")),
        "{asked:?}"
    );
}
