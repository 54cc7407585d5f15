//! Images over the in-process bus.

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::collect::{Begin, References, Resource, Roots};
use contracts::events::{Append, Events};
use contracts::images::{Create, Delete, Get, Image, List, Put, Tag, Update};
use contracts::{
    Code, Descriptor, Digest, ImageName, LabelPatch, Labels, Namespace, Paging, PluginId, Result,
};
use std::collections::BTreeMap;

fn node(dir: &tempfile::TempDir) -> Result<LocalNode> {
    let events = Fake::<Events>::new("log").on(|_, append: Append| Ok(append.first));
    LocalBus::new()
        .fake(events)
        .plugin(images::plugin())
        .start(dir.path())
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

fn target(byte: u8) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: Digest::sha256(&[byte; 32]),
        size: 5,
        annotations: Labels::new(),
        platform: None,
        urls: Vec::new(),
    }
}

async fn create(bus: &Bus, image: &str) -> Result<Image> {
    bus.call(
        &ctx(),
        Create {
            name: name(image),
            target: target(1),
            labels: Labels::new(),
        },
    )
    .await
}

#[actix_rt::test]
async fn a_name_is_made_found_moved_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    let made = create(&bus, "docker.io/library/busybox:1.36")
        .await
        .unwrap();
    assert_eq!(
        create(&bus, "docker.io/library/busybox:1.36")
            .await
            .unwrap_err()
            .code,
        Code::AlreadyExists
    );
    let tag = Tag {
        source: made.name.clone(),
        name: name("x:2"),
        force: false,
    };
    bus.call(&ctx(), tag.clone()).await.unwrap();
    assert_eq!(
        bus.call(
            &ctx(),
            Tag {
                force: false,
                ..tag.clone()
            }
        )
        .await
        .unwrap_err()
        .code,
        Code::AlreadyExists
    );
    let put = Put {
        name: name("x:2"),
        target: target(2),
        labels: Labels::new(),
        version: Some(1),
    };
    let moved = bus.call(&ctx(), put.clone()).await.unwrap();
    assert_eq!((moved.version, moved.target.digest), (2, target(2).digest));
    let stale = bus
        .call(
            &ctx(),
            Put {
                labels: Labels::from([("a".into(), "b".into())]),
                ..put
            },
        )
        .await
        .unwrap_err();
    assert_eq!(stale.code, Code::Aborted);
    bus.call(
        &ctx(),
        Delete {
            name: name("x:2"),
            version: None,
        },
    )
    .await
    .unwrap();
    assert_eq!(
        bus.call(&ctx(), Get { name: name("x:2") })
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
}

#[actix_rt::test]
async fn a_repeated_create_with_one_operation_id_answers_the_first_reply() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(&dir).unwrap();
    let bus = node.bus();
    let once = ctx();
    let make = Create {
        name: name("a:1"),
        target: target(1),
        labels: Labels::new(),
    };
    let first = bus.call(&once, make.clone()).await.unwrap();
    node.restart("images/local").await.unwrap();
    assert_eq!(bus.call(&once, make).await.unwrap(), first);
}

#[actix_rt::test]
async fn filters_and_namespaces_separate_names() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    create(&bus, "a:1").await.unwrap();
    create(&bus, "b:1").await.unwrap();
    let set = BTreeMap::from([("team".to_owned(), Some("x".to_owned()))]);
    let labels = LabelPatch {
        replace: false,
        set,
    };
    let update = Update {
        name: name("b:1"),
        target: None,
        labels,
        version: None,
    };
    bus.call(&ctx(), update).await.unwrap();
    let list = |filter: &str| List {
        paging: Paging {
            filters: vec![filter.into()],
            ..Paging::default()
        },
    };
    let names = |page: contracts::Page<Image>| {
        page.items
            .into_iter()
            .map(|i| i.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(bus.call(&ctx(), list("labels.team==x")).await.unwrap()),
        ["b:1"]
    );
    assert_eq!(
        names(bus.call(&ctx(), list("name~=^a")).await.unwrap()),
        ["a:1"]
    );
    let elsewhere = Ctx::new(Some(Namespace::new("other").unwrap()));
    assert!(names(bus.call(&elsewhere, List::default()).await.unwrap()).is_empty());
}

#[actix_rt::test]
async fn every_name_is_a_root_of_its_target() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).unwrap().bus();
    create(&bus, "a:1").await.unwrap();
    let images = PluginId::new("images/local").unwrap();
    bus.call_at(&images, &ctx(), Begin { generation: 3 })
        .await
        .unwrap();
    let roots = Roots {
        generation: 3,
        token: String::new(),
    };
    let roots = bus.call_at(&images, &ctx(), roots).await.unwrap().items;
    assert_eq!(roots[0].to.resource, Resource::Image(name("a:1")));
    let references = References {
        generation: 3,
        nodes: vec![roots[0].to.clone()],
    };
    let kept = bus.call_at(&images, &ctx(), references).await.unwrap();
    assert_eq!(kept[0].to.resource, Resource::Content(target(1).digest));
}
