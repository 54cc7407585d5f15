//! The plugin over an in-process bus.

use bus::Ctx;
use bus::testing::{Fake, LocalBus, LocalNode};
use contracts::collect::{self, Node, Resource};
use contracts::containers::{
    Container, Create, Delete, Generate, Get, List, Options, Runtime, Update,
};
use contracts::events::{Append, Entry, Events};
use contracts::{
    Code, ContainerId, ImageName, LabelPatch, Labels, Namespace, Paging, Result, SnapshotKey,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;

const SPEC: &str = r#"{ "ociVersion":"1.0.2", "root":{"path":"rootfs"}, "process":{"user":{"uid":0,"gid":0},"args":["sh"],"cwd":"/"}, "x-kept":1 }"#;

struct Home {
    node: LocalNode,
    log: Rc<RefCell<Vec<Entry>>>,
    _folder: TempDir,
}

impl Home {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Rc::new(RefCell::new(Vec::new()));
        let kept = log.clone();
        let events = Fake::<Events>::new("log").on(move |_, append: Append| {
            kept.borrow_mut().extend(append.entries);
            Ok(0)
        });
        let bus = LocalBus::new().fake(events).plugin(containers::plugin());
        let node = bus.start(folder.path()).unwrap();
        Self {
            node,
            log,
            _folder: folder,
        }
    }

    async fn call<R: contracts::Request>(&self, request: R) -> Result<R::Reply> {
        self.call_in("test", request).await
    }

    async fn call_in<R: contracts::Request>(
        &self,
        namespace: &str,
        request: R,
    ) -> Result<R::Reply> {
        let ctx = Ctx::new(Some(Namespace::new(namespace)?));
        self.node.bus().call(&ctx, request).await
    }

    async fn create(&self, name: &str) -> Container {
        self.call(create(name)).await.unwrap()
    }

    async fn events(&self, count: usize) -> Vec<Entry> {
        let enough = async {
            while self.log.borrow().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), enough)
            .await
            .unwrap();
        self.log.borrow().clone()
    }
}

fn id(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}
fn image() -> ImageName {
    ImageName::new("docker.io/library/busybox:1.36").unwrap()
}
fn create(name: &str) -> Create {
    Create {
        id: id(name),
        image: Some(image()),
        labels: Labels::from([("tier".into(), "web".into())]),
        runtime: Runtime::default(),
        snapshotter: "overlayfs".into(),
        snapshot_key: Some(SnapshotKey::new(name).unwrap()),
        spec: SPEC.into(),
    }
}
fn update(name: &str) -> Update {
    Update {
        id: id(name),
        labels: LabelPatch::default(),
        spec: None,
        image: None,
        version: None,
    }
}

#[actix_rt::test]
async fn a_record_keeps_its_spec_byte_for_byte() {
    let home = Home::start();
    let made = home.create("box").await;
    assert_eq!(made.version, 1);
    let got = home.call(Get { id: id("box") }).await.unwrap();
    assert_eq!(got, made);
    assert_eq!(got.spec, SPEC);
}

#[actix_rt::test]
async fn an_id_is_taken_once_in_a_namespace() {
    let home = Home::start();
    home.create("box").await;
    let again = home.call(create("box")).await.unwrap_err();
    assert!(again.is(Code::AlreadyExists));
    assert!(home.call_in("other", create("box")).await.is_ok());
    let gone = home.call(Get { id: id("none") }).await.unwrap_err();
    assert_eq!(gone.message, "container none: not found in namespace test");
}

#[actix_rt::test]
async fn a_repeated_request_takes_effect_once() {
    let home = Home::start();
    let ctx = Ctx::new(Some(Namespace::new("test").unwrap()));
    let first = home.node.bus().call(&ctx, create("box")).await.unwrap();
    let second = home.node.bus().call(&ctx, create("box")).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(home.events(1).await.len(), 1);
}

#[actix_rt::test]
async fn a_stale_version_changes_nothing() {
    let home = Home::start();
    home.create("box").await;
    let labels = LabelPatch {
        replace: false,
        set: [
            ("tier".to_owned(), None),
            ("new".to_owned(), Some("1".to_owned())),
        ]
        .into(),
    };
    let spec = SPEC.replace("sh", "ash");
    let changed = home
        .call(Update {
            labels,
            spec: Some(spec.clone()),
            version: Some(1),
            ..update("box")
        })
        .await
        .unwrap();
    assert_eq!((changed.version, changed.spec.as_str()), (2, spec.as_str()));
    assert_eq!(changed.labels.keys().collect::<Vec<_>>(), ["new"]);
    let stale = home
        .call(Update {
            version: Some(1),
            ..update("box")
        })
        .await
        .unwrap_err();
    assert!(stale.is(Code::Aborted), "{stale}");
    assert_eq!(home.call(Get { id: id("box") }).await.unwrap(), changed);
}

#[actix_rt::test]
async fn lists_are_paged_filtered_and_light() {
    let home = Home::start();
    for name in ["a", "b", "c"] {
        home.create(name).await;
    }
    home.call_in("other", create("d")).await.unwrap();
    let page = |filters: &[&str], limit, token: &str| List {
        paging: Paging {
            filters: filters.iter().map(|&one| one.to_owned()).collect(),
            limit,
            token: token.into(),
        },
    };
    let first = home.call(page(&[], 2, "")).await.unwrap();
    assert_eq!(first.items.len(), 2);
    assert!(first.items.iter().all(|one| one.spec.is_empty()));
    let rest = home.call(page(&[], 2, &first.next)).await.unwrap();
    assert_eq!((rest.items.len(), rest.next.as_str()), (1, ""));
    for (filter, count) in [
        ("id==b", 1),
        ("labels.tier==web", 3),
        ("snapshot_key~=/[ab]/", 2),
        ("runtime.name", 0),
        ("image~=busybox", 3),
        ("snapshotter==native", 0),
    ] {
        let found = home.call(page(&[filter], 0, "")).await.unwrap();
        assert_eq!(found.items.len(), count, "{filter}");
    }
    let bad = home.call(page(&["id=="], 0, "")).await.unwrap_err();
    assert!(bad.is(Code::InvalidArgument));
}

#[actix_rt::test]
async fn wrong_records_are_refused_by_field() {
    let home = Home::start();
    let mut key = create("box");
    key.snapshotter.clear();
    let mut runtime = create("box");
    runtime.runtime.name = "../shim".into();
    let mut options = create("box");
    options.runtime.options = "{".into();
    let mut spec = create("box");
    spec.spec = "{}".into();
    let mut label = create("box");
    label.labels.insert(String::new(), "x".into());
    for (request, word) in [
        (key, "snapshotter"),
        (runtime, "runtime.name"),
        (options, "runtime.options"),
        (spec, "spec.ociVersion"),
        (label, "label"),
    ] {
        let error = home.call(request).await.unwrap_err();
        assert!(
            error.is(Code::InvalidArgument) && error.message.starts_with(word),
            "{error}"
        );
    }
}

#[actix_rt::test]
async fn every_change_is_an_event() {
    let home = Home::start();
    home.create("box").await;
    home.call(update("box")).await.unwrap();
    home.call(Delete { id: id("box") }).await.unwrap();
    let gone = home.call(Delete { id: id("box") }).await.unwrap_err();
    assert!(gone.is(Code::NotFound));
    let events = home.events(3).await;
    let topics: Vec<_> = events.iter().map(|one| one.topic.as_str()).collect();
    assert_eq!(
        topics,
        [
            "/containers/create",
            "/containers/update",
            "/containers/delete"
        ]
    );
    assert!(events[0].event.contains("busybox"), "{}", events[0].event);
    assert!(events.iter().all(|one| {
        one.namespace
            .as_ref()
            .is_some_and(|ns| ns.as_str() == "test")
    }));
}

#[actix_rt::test]
async fn records_outlive_their_plugin() {
    let mut home = Home::start();
    let made = home.create("box").await;
    home.node.restart("containers/local").await.unwrap();
    assert_eq!(home.call(Get { id: id("box") }).await.unwrap(), made);
}

#[actix_rt::test]
async fn a_generated_spec_makes_a_record() {
    let home = Home::start();
    let request = |options| Generate {
        id: id("box"),
        config: r#"{"config":{"Cmd":["sh"]}}"#.into(),
        passwd: String::new(),
        group: String::new(),
        options,
    };
    let spec = home.call(request(Options::default())).await.unwrap();
    assert!(spec.contains("/gantry/test/box"));
    let made = home
        .call(Create {
            spec: spec.clone(),
            ..create("box")
        })
        .await
        .unwrap();
    assert_eq!(made.spec, spec);
    let wrong = Options {
        network: "bridge".into(),
        ..Options::default()
    };
    let error = home.call(request(wrong)).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument));
}

#[actix_rt::test]
async fn records_are_roots_and_keep_what_they_name() {
    let home = Home::start();
    home.call(collect::Begin { generation: 7 }).await.unwrap();
    let mut labelled = create("box");
    let digest = format!("sha256:{}", "a".repeat(64));
    labelled
        .labels
        .insert("containerd.io/gc.ref.content.extra".into(), digest);
    home.call(labelled).await.unwrap();
    let roots = collect::Roots {
        generation: 7,
        token: String::new(),
    };
    let roots = home.call(roots).await.unwrap();
    let node = Node {
        namespace: Namespace::new("test").unwrap(),
        resource: Resource::Container(id("box")),
    };
    assert_eq!((&roots.items[0].to, roots.next.as_str()), (&node, ""));
    let references = collect::References {
        generation: 7,
        nodes: vec![node],
    };
    let kept = home.call(references).await.unwrap();
    let reasons: Vec<_> = kept.iter().map(|edge| edge.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "image",
            "snapshot",
            "label containerd.io/gc.ref.content.extra"
        ]
    );

    let sweep = collect::Sweep {
        generation: 7,
        dry_run: false,
        token: String::new(),
    };
    let swept = home.call(sweep).await.unwrap();
    assert_eq!(
        (swept.late, swept.removed.len(), swept.done),
        (kept, 0, true)
    );
    let counts = home.call(collect::Tally::default()).await.unwrap();
    assert_eq!(
        (counts[0].what.as_str(), counts[0].count),
        ("containers", 1)
    );
}

#[actix_rt::test]
async fn a_generation_does_not_outlive_the_plugin() {
    let mut home = Home::start();
    home.call(collect::Begin { generation: 7 }).await.unwrap();
    home.node.restart("containers/local").await.unwrap();
    let roots = collect::Roots {
        generation: 7,
        token: String::new(),
    };
    let error = home.call(roots).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

#[actix_rt::test]
async fn roots_come_in_pages() {
    let home = Home::start();
    let ctx = Ctx::new(Some(Namespace::new("test").unwrap()));
    let bus = home.node.bus();
    let many = (0..501).map(|n| {
        let (bus, ctx) = (bus.clone(), ctx.clone());
        async move { bus.call(&ctx, create(&format!("box{n}"))).await }
    });
    futures_util::future::try_join_all(many).await.unwrap();
    home.call(collect::Begin { generation: 1 }).await.unwrap();
    let roots = |token: &str| collect::Roots {
        generation: 1,
        token: token.into(),
    };
    let first = home.call(roots("")).await.unwrap();
    assert_eq!(
        (first.items.len(), first.next.starts_with("test/box")),
        (500, true)
    );
    let rest = home.call(roots(&first.next)).await.unwrap();
    assert_eq!((rest.items.len(), rest.next.as_str()), (1, ""));
    let bad = home.call(roots("none")).await.unwrap_err();
    assert!(bad.is(Code::InvalidArgument));
}
