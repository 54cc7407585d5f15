//! Namespaces over the in-process bus.

use bus::Ctx;
use bus::testing::{Fake, LocalBus, LocalNode};
use contracts::collect::{Count, Tally};
use contracts::containers::Containers;
use contracts::content::Content;
use contracts::events::{Append, Events};
use contracts::images::Images;
use contracts::leases::Leases;
use contracts::namespaces::{Delete, Get, List, Put};
use contracts::snapshots::Snapshots;
use contracts::{Code, Labels, Namespace, Result};

fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// A node whose images plugin holds one image in `busy`.
fn node(dir: &tempfile::TempDir) -> Result<LocalNode> {
    let nothing = |_: Ctx, _: Tally| Ok(Vec::new());
    let one = |_: Ctx, tally: Tally| {
        let count = Count {
            namespace: ns("busy"),
            what: "images".into(),
            count: 1,
        };
        Ok(if tally.namespace.is_none_or(|only| only == ns("busy")) {
            vec![count]
        } else {
            Vec::new()
        })
    };
    LocalBus::new()
        .fake(Fake::<Events>::new("log").on(|_, append: Append| Ok(append.first)))
        .fake(Fake::<Leases>::new("local").on(nothing))
        .fake(Fake::<Content>::new("local").on(nothing))
        .fake(Fake::<Snapshots>::new("overlayfs").on(nothing))
        .fake(Fake::<Images>::new("local").on(one))
        .fake(Fake::<Containers>::new("local").on(nothing))
        .plugin(namespaces::plugin())
        .start(dir.path())
}

#[actix_rt::test]
async fn a_namespace_is_listed_when_it_has_a_record_or_holds_anything() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    let put = Put {
        name: ns("empty"),
        labels: Labels::new(),
        create_only: true,
    };
    bus.call(&Ctx::new(None), put.clone()).await.unwrap();
    assert_eq!(
        bus.call(&Ctx::new(None), put).await.unwrap_err().code,
        Code::AlreadyExists
    );
    let page = bus.call(&Ctx::new(None), List::default()).await.unwrap();
    assert_eq!(
        page.items
            .iter()
            .map(|info| info.name.as_str())
            .collect::<Vec<_>>(),
        ["busy", "empty"]
    );
    assert!(
        bus.call(&Ctx::new(None), Get { name: ns("busy") })
            .await
            .unwrap()
            .created_at
            .is_none()
    );
    assert_eq!(
        bus.call(&Ctx::new(None), Get { name: ns("nope") })
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
}

#[actix_rt::test]
async fn only_an_empty_namespace_is_deleted_and_the_refusal_counts() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    let refused = bus
        .call(&Ctx::new(None), Delete { name: ns("busy") })
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("1 images"), "{refused}");
    bus.call(
        &Ctx::new(None),
        Put {
            name: ns("empty"),
            labels: Labels::new(),
            create_only: false,
        },
    )
    .await
    .unwrap();
    bus.call(&Ctx::new(None), Delete { name: ns("empty") })
        .await
        .unwrap();
    assert_eq!(
        bus.call(&Ctx::new(None), Delete { name: ns("empty") })
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
}
