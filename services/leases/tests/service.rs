//! Leases over the in-process bus.

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::collect::{Begin, Roots, Sweep, Tally};
use contracts::events::{Append, Events};
use contracts::leases::{Add, Create, Delete, Get, Lease, List, Resource, Resources};
use contracts::{Code, Digest, LabelPatch, Labels, LeaseId, Namespace, Paging, PluginId, Result};

fn node(dir: &tempfile::TempDir) -> Result<LocalNode> {
    let events = Fake::<Events>::new("log").on(|_, append: Append| Ok(append.first));
    LocalBus::new()
        .fake(events)
        .plugin(leases::plugin())
        .start(dir.path())
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

fn id(name: &str) -> LeaseId {
    LeaseId::new(name).unwrap()
}

async fn create(bus: &Bus, name: &str, labels: Labels) -> Result<Lease> {
    bus.call(
        &ctx(),
        Create {
            id: Some(id(name)),
            labels,
            expires_in: None,
        },
    )
    .await
}

fn blob(byte: u8) -> Resource {
    Resource::Content(Digest::sha256(&[byte; 32]))
}

#[actix_rt::test]
async fn a_lease_holds_what_was_added_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    create(&bus, "a", Labels::new()).await.unwrap();
    assert_eq!(
        create(&bus, "a", Labels::new()).await.unwrap_err().code,
        Code::AlreadyExists
    );
    let add = Add {
        id: id("a"),
        resources: vec![blob(1), blob(2), blob(1)],
    };
    bus.call(&ctx(), add.clone()).await.unwrap();
    let paging = Paging {
        limit: 1,
        ..Paging::default()
    };
    let first = bus
        .call(
            &ctx(),
            Resources {
                id: id("a"),
                paging: paging.clone(),
            },
        )
        .await
        .unwrap();
    let second = bus
        .call(
            &ctx(),
            Resources {
                id: id("a"),
                paging: Paging {
                    token: first.next.clone(),
                    ..paging
                },
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (first.items, second.items, second.next),
        (vec![blob(1)], vec![blob(2)], String::new())
    );
    bus.call(&ctx(), Delete { id: id("a") }).await.unwrap();
    assert_eq!(
        bus.call(&ctx(), add).await.unwrap_err().code,
        Code::NotFound
    );
    create(&bus, "a", Labels::new()).await.unwrap();
    assert!(
        bus.call(
            &ctx(),
            Resources {
                id: id("a"),
                paging: Paging::default()
            }
        )
        .await
        .unwrap()
        .items
        .is_empty()
    );
}

#[actix_rt::test]
async fn an_expired_lease_is_gone_for_everybody_and_swept() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let bus = node.bus();
    let past = Labels::from([(
        "containerd.io/gc.expire".into(),
        "2001-01-01T00:00:00Z".into(),
    )]);
    assert_eq!(
        create(&bus, "past", past).await.unwrap_err().code,
        Code::InvalidArgument
    );
    bus.call(
        &ctx(),
        Create {
            id: Some(id("short")),
            expires_in: Some(0),
            ..Create::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(
        bus.call(&ctx(), Get { id: id("short") })
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
    assert!(
        bus.call(&ctx(), List::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let leases = PluginId::new("leases/local").unwrap();
    let sweep = Sweep {
        generation: 7,
        dry_run: false,
        token: String::new(),
    };
    let closed = bus
        .call_at(&leases, &ctx(), sweep.clone())
        .await
        .unwrap_err();
    assert_eq!(closed.code, Code::FailedPrecondition);
    bus.call_at(&leases, &ctx(), Begin { generation: 7 })
        .await
        .unwrap();
    let swept = bus.call_at(&leases, &ctx(), sweep).await.unwrap();
    assert_eq!((swept.removed.len(), swept.done), (1, true));
}

#[actix_rt::test]
async fn leases_are_roots_of_what_they_hold_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(&dir).unwrap();
    let bus = node.bus();
    let flat = Labels::from([("containerd.io/gc.flat".into(), String::new())]);
    create(&bus, "flat", flat).await.unwrap();
    bus.call(
        &ctx(),
        Add {
            id: id("flat"),
            resources: vec![blob(1)],
        },
    )
    .await
    .unwrap();
    node.restart("leases/local").await.unwrap();
    let leases = PluginId::new("leases/local").unwrap();
    bus.call_at(&leases, &ctx(), Begin { generation: 1 })
        .await
        .unwrap();
    let edges = bus
        .call_at(
            &leases,
            &ctx(),
            Roots {
                generation: 1,
                token: String::new(),
            },
        )
        .await
        .unwrap();
    assert_eq!(edges.items.len(), 1);
    assert!(edges.items[0].flat && edges.items[0].to.resource == blob(1));
    let counts = bus
        .call_at(&leases, &ctx(), Tally::default())
        .await
        .unwrap();
    assert_eq!((counts[0].count, counts[0].what.as_str()), (1, "leases"));
}

#[actix_rt::test]
async fn lists_are_filtered_by_label() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    create(&bus, "a", Labels::from([("k".into(), "v".into())]))
        .await
        .unwrap();
    create(&bus, "b", Labels::new()).await.unwrap();
    let paging = Paging {
        filters: vec!["labels.k==v".into()],
        ..Paging::default()
    };
    let found = bus.call(&ctx(), List { paging }).await.unwrap().items;
    assert_eq!(
        found
            .iter()
            .map(|lease| lease.id.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    let wrong = Paging {
        filters: vec!["labels.k=".into()],
        ..Paging::default()
    };
    assert_eq!(
        bus.call(&ctx(), List { paging: wrong })
            .await
            .unwrap_err()
            .code,
        Code::InvalidArgument
    );
    let patch = LabelPatch {
        replace: true,
        ..LabelPatch::default()
    };
    let updated = bus
        .call(
            &ctx(),
            contracts::leases::Update {
                id: id("a"),
                labels: patch,
            },
        )
        .await
        .unwrap();
    assert!(updated.labels.is_empty());
}
