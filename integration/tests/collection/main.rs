//! The collector over the real owners: what nobody needs goes, what somebody needs stays, whatever happens meanwhile.

mod house;
mod storm;

use std::collections::BTreeSet;

use contracts::collect::{self, Node, Resource};
use contracts::{
    Code, ContainerId, ImageName, LabelPatch, Labels, LeaseId, PluginId, Request, SnapshotKey,
};
use contracts::{containers as c, images as i, leases as l, snapshots as s};
use house::{Image, Tenant, digest, house, labels};

const NONE: BTreeSet<String> = BTreeSet::new();

fn snapshot(driver: &str, key: SnapshotKey) -> Resource {
    let driver = driver.to_owned();
    Resource::Snapshot { driver, key }
}

#[actix_rt::test]
async fn an_image_keeps_its_content_and_snapshots_until_its_name_goes() {
    for driver in ["overlayfs", "native"] {
        let house = house();
        let tenant = house.tenant.clone();
        let (image, other) = (Image::of(&[1, 2, 3]), Image::of(&[1, 4]));
        tenant.pull("one", driver, "r/a:1", &image).await.unwrap();
        tenant.pull("two", driver, "r/b:1", &other).await.unwrap();
        assert_eq!(tenant.collect().await.unwrap().total, 0);
        let both = &tenant.parts(driver, &image) | &tenant.parts(driver, &other);
        assert_eq!(tenant.there().await.unwrap(), both);

        tenant.forget("r/a:1").await.unwrap();
        let collected = tenant.collect().await.unwrap();
        assert_eq!(tenant.there().await.unwrap(), tenant.parts(driver, &other));
        // Manifest, config and two blobs; two snapshots: the lowest layer is shared.
        assert_eq!(collected.total, 6, "{:?}", collected.removed);
        assert!(
            collected
                .removed
                .iter()
                .all(|row| row.reason == "unreferenced")
        );

        tenant.forget("r/b:1").await.unwrap();
        tenant.collect().await.unwrap();
        assert_eq!(tenant.there().await.unwrap(), NONE);
    }
}

#[actix_rt::test]
async fn the_plan_is_what_then_happens() {
    let house = house();
    let tenant = house.tenant.clone();
    let (image, other) = (Image::of(&[1, 2]), Image::of(&[3]));
    tenant.pull("one", "native", "r/a:1", &image).await.unwrap();
    tenant
        .pull("two", "overlayfs", "r/b:1", &other)
        .await
        .unwrap();
    tenant.forget("r/a:1").await.unwrap();
    tenant.forget("r/b:1").await.unwrap();
    let before = tenant.there().await.unwrap();
    let plan = tenant.plan().await.unwrap();
    assert_eq!(
        tenant.there().await.unwrap(),
        before,
        "a plan removes nothing"
    );
    let done = tenant.collect().await.unwrap();
    let rows = |mut rows: Vec<contracts::collect::Removal>| {
        rows.sort_by(|a, b| a.node.cmp(&b.node));
        rows
    };
    assert_eq!((plan.total, plan.bytes), (done.total, done.bytes));
    assert_eq!(rows(plan.removed), rows(done.removed));
    assert_eq!(tenant.there().await.unwrap(), NONE);
    assert_eq!(tenant.plan().await.unwrap().total, 0);
}

#[actix_rt::test]
async fn why_tells_the_way_from_a_root() {
    let house = house();
    let tenant = house.tenant.clone();
    let image = Image::of(&[1, 2]);
    tenant.pull("one", "native", "r/a:1", &image).await.unwrap();
    let bottom = snapshot("native", image.chain().remove(0));
    assert_eq!(
        tenant.why(bottom.clone()).await.unwrap(),
        [
            "image",
            "image",
            "label containerd.io/gc.ref.content.0",
            "label containerd.io/gc.ref.snapshot.native",
            "parent"
        ]
    );
    let name = Resource::Image(ImageName::new("r/a:1").unwrap());
    assert_eq!(tenant.why(name).await.unwrap(), ["image"]);
    tenant.forget("r/a:1").await.unwrap();
    let error = tenant.why(bottom).await.unwrap_err();
    assert!(error.is(Code::NotFound), "{error}");
}

#[actix_rt::test]
async fn a_lease_keeps_what_was_made_under_it_and_a_flat_one_no_more_than_that() {
    let house = house();
    let tenant = house.tenant.clone();
    let image = Image::of(&[1]);
    let deep = tenant.lease("deep", Labels::new()).await.unwrap();
    tenant.bring(&deep, "overlayfs", &image).await.unwrap();
    // Only the manifest is under the flat one.
    let flat = labels([("containerd.io/gc.flat", "1")]);
    let flat = tenant.lease("flat", flat).await.unwrap();
    tenant
        .blob(&flat, &image.manifest, Labels::new())
        .await
        .unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.missing("overlayfs", &image).await.unwrap(), NONE);
    tenant.release(&deep).await.unwrap();
    tenant.collect().await.unwrap();
    let manifest = digest(&image.manifest).to_string();
    assert_eq!(tenant.there().await.unwrap(), [manifest].into());
    tenant.release(&flat).await.unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.there().await.unwrap(), NONE);
}

#[actix_rt::test]
async fn an_expired_lease_goes_with_what_it_held() {
    let house = house();
    let tenant = house.tenant.clone();
    let id = LeaseId::new("short").unwrap();
    let create = l::Create {
        id: Some(id.clone()),
        labels: Labels::new(),
        expires_in: Some(1),
    };
    tenant.call(create).await.unwrap();
    let ctx = tenant.ctx().with_lease(Some(id.clone()));
    tenant.blob(&ctx, b"held", Labels::new()).await.unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.there().await.unwrap().len(), 1);
    let over = async { while tenant.call(l::Get { id: id.clone() }).await.is_ok() {} };
    let bound = std::time::Duration::from_secs(10);
    tokio::time::timeout(bound, over).await.unwrap();
    let plan = tenant.plan().await.unwrap();
    let collected = tenant.collect().await.unwrap();
    assert_eq!((plan.total, collected.total), (2, 2), "{collected:?}");
    let reasons: BTreeSet<_> = collected
        .removed
        .into_iter()
        .map(|row| row.reason)
        .collect();
    assert_eq!(reasons, ["expired".into(), "unreferenced".into()].into());
    assert_eq!(tenant.there().await.unwrap(), NONE);
}

#[actix_rt::test]
async fn a_container_keeps_its_snapshot_and_all_below_though_the_image_is_gone() {
    let house = house();
    let tenant = house.tenant.clone();
    for driver in ["overlayfs", "native"] {
        let image = Image::of(&[1, 2]);
        let ctx = tenant.lease("run", Labels::new()).await.unwrap();
        tenant.bring(&ctx, driver, &image).await.unwrap();
        tenant.container(&ctx, "web", driver, &image).await.unwrap();
        tenant.release(&ctx).await.unwrap();
        tenant.collect().await.unwrap();
        let mut wanted: BTreeSet<String> = image
            .chain()
            .into_iter()
            .map(|key| format!("{driver} {key}"))
            .collect();
        wanted.insert(format!("{driver} web"));
        assert_eq!(tenant.there().await.unwrap(), wanted);
        let id = ContainerId::new("web").unwrap();
        tenant.call(c::Delete { id }).await.unwrap();
        tenant.collect().await.unwrap();
        assert_eq!(tenant.there().await.unwrap(), NONE);
    }
}

#[actix_rt::test]
async fn what_points_back_stays_as_long_as_what_it_points_to() {
    let house = house();
    let tenant = house.tenant.clone();
    let image = Image::of(&[1]);
    tenant.pull("one", "native", "r/a:1", &image).await.unwrap();
    let ctx = tenant.ctx();
    let back =
        |what: &str, value: &str| labels([(&format!("containerd.io/gc.bref.{what}"), value)]);
    // To an image, to a blob, to a snapshot, and over one another.
    let by_name = tenant
        .blob(&ctx, b"signature", back("image", "r/a:1"))
        .await
        .unwrap();
    let config = digest(&image.config);
    tenant
        .blob(&ctx, b"sbom", back("content", config.as_str()))
        .await
        .unwrap();
    tenant
        .blob(&ctx, b"scan", back("snapshot.native", image.top().as_str()))
        .await
        .unwrap();
    tenant
        .blob(
            &ctx,
            b"signature of the signature",
            back("content", by_name.as_str()),
        )
        .await
        .unwrap();
    let prepare = s::Prepare {
        key: SnapshotKey::new("cache").unwrap(),
        parent: None,
        labels: back("image", "r/a:1"),
    };
    tenant
        .bus
        .call_named("overlayfs", &ctx, prepare)
        .await
        .unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.collect().await.unwrap().total, 0);
    assert_eq!(
        tenant.there().await.unwrap().len(),
        tenant.parts("native", &image).len() + 5
    );
    tenant.forget("r/a:1").await.unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.there().await.unwrap(), NONE);
}

#[actix_rt::test]
async fn labels_of_roots_keep_what_they_name() {
    let house = house();
    let tenant = house.tenant.clone();
    let ctx = tenant.ctx();
    let rooted = labels([("containerd.io/gc.root", "now")]);
    let root = tenant.blob(&ctx, b"root", rooted.clone()).await.unwrap();
    let image = Image::of(&[1]);
    tenant.pull("one", "native", "r/a:1", &image).await.unwrap();
    let extra = tenant.blob(&ctx, b"extra", Labels::new()).await.unwrap();
    let base = s::Prepare {
        key: SnapshotKey::new("base").unwrap(),
        parent: None,
        labels: rooted,
    };
    tenant.bus.call_named("native", &ctx, base).await.unwrap();
    let named = LabelPatch {
        replace: false,
        set: [(
            "containerd.io/gc.ref.content.extra".to_owned(),
            Some(extra.to_string()),
        )]
        .into(),
    };
    let update = i::Update {
        name: ImageName::new("r/a:1").unwrap(),
        target: None,
        labels: named,
        version: None,
    };
    tenant.call(update).await.unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(tenant.collect().await.unwrap().total, 0);
    let mut wanted = tenant.parts("native", &image);
    wanted.extend([root.to_string(), extra.to_string(), "native base".into()]);
    assert_eq!(tenant.there().await.unwrap(), wanted);
}

#[actix_rt::test]
async fn namespaces_do_not_keep_each_others_things() {
    let house = house();
    let tenant = house.tenant.clone();
    let mut other = tenant.clone();
    other.namespace = "other".parse().unwrap();
    let image = Image::of(&[1]);
    tenant.pull("one", "native", "r/a:1", &image).await.unwrap();
    let ctx = other.lease("two", Labels::new()).await.unwrap();
    other.bring(&ctx, "native", &image).await.unwrap();
    other.release(&ctx).await.unwrap();
    tenant.collect().await.unwrap();
    assert_eq!(other.there().await.unwrap(), NONE);
    assert_eq!(tenant.missing("native", &image).await.unwrap(), NONE);
}

#[actix_rt::test]
async fn a_lease_that_holds_a_thousand_keys_with_slashes_is_walked_to_its_end() {
    let house = house();
    let tenant = house.tenant.clone();
    let ctx = tenant.lease("big", Labels::new()).await.unwrap();
    let key = |number: u32| snapshot("native", format!("a/{number:04}").parse().unwrap());
    let add = l::Add {
        id: LeaseId::new("big").unwrap(),
        resources: (0..1200).map(key).collect(),
    };
    tenant.bus.call(&ctx, add).await.unwrap();
    assert_eq!(tenant.collect().await.unwrap().kept, 1200);
}

#[actix_rt::test]
async fn a_collector_that_collects_by_the_clock_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let log = bus::testing::Fake::<contracts::events::Events>::new("log")
        .on(|_, append: contracts::events::Append| Ok(append.first));
    let mut node = bus::testing::LocalBus::new()
        .fake(log)
        .plugin(leases::plugin())
        .plugin(content::plugin())
        .plugin(snapshots::native())
        .plugin(images::plugin())
        .plugin(containers::plugin())
        .plugin(gc::plugin())
        .start(folder.path())
        .unwrap();
    node.restart("gc/local").await.unwrap();
    let last = contracts::gc::Last {};
    let last = node.bus().call(&bus::Ctx::new(None), last).await.unwrap();
    assert_eq!(last, None);
}

#[actix_rt::test]
async fn an_owner_that_restarts_at_any_point_makes_the_collection_begin_again() {
    let mut house = house();
    let tenant = house.tenant.clone();
    let (kept, shared) = (Image::of(&[1, 2]), Image::of(&[1, 3]));
    tenant.pull("one", "native", "r/a:1", &kept).await.unwrap();
    let owners = [
        "content/local",
        "leases/local",
        "snapshots/native",
        "images/local",
        "containers/local",
        "snapshots/overlayfs",
    ];
    for (round, owner) in owners.into_iter().cycle().take(36).enumerate() {
        let lease = format!("again-{round}");
        tenant
            .pull(&lease, "native", "r/b:1", &shared)
            .await
            .unwrap();
        tenant.forget("r/b:1").await.unwrap();
        let collecting = tenant.clone();
        let collected = tokio::task::spawn_local(async move { collecting.collect().await });
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        house.node.restart(owner).await.unwrap();
        let collected = collected.await.unwrap();
        assert!(collected.is_ok(), "{owner}: {collected:?}");
        assert_eq!(
            tenant.missing("native", &kept).await.unwrap(),
            NONE,
            "{owner}"
        );
    }
    tenant.collect().await.unwrap();
    assert_eq!(tenant.there().await.unwrap(), tenant.parts("native", &kept));
}

/// What one owner tells of a write that a generation overtakes: before it was answered, and after.
async fn overtaken<R: Request>(
    tenant: &Tenant,
    owner: &str,
    generation: u64,
    write: R,
    asked: Option<&Resource>,
) -> Vec<Resource> {
    let (owner, ctx) = (PluginId::new(owner).unwrap(), tenant.ctx());
    let ask = async {
        // Each time a little later.
        for _ in 0..generation % 20 {
            tokio::task::yield_now().await;
        }
        let begin = collect::Begin { generation };
        tenant.bus.call_at(&owner, &ctx, begin).await.unwrap();
        let Some(resource) = asked.cloned() else {
            let token = String::new();
            let roots = collect::Roots { generation, token };
            return tenant.bus.call_at(&owner, &ctx, roots).await.unwrap().items;
        };
        let namespace = tenant.namespace.clone();
        let nodes = vec![Node {
            namespace,
            resource,
        }];
        let references = collect::References { generation, nodes };
        tenant.bus.call_at(&owner, &ctx, references).await.unwrap()
    };
    let (written, mut edges) = tokio::join!(tenant.call(write), ask);
    assert!(written.is_ok());
    let sweep = collect::Sweep {
        generation,
        dry_run: true,
        token: String::new(),
    };
    edges.extend(tenant.bus.call_at(&owner, &ctx, sweep).await.unwrap().late);
    edges.into_iter().map(|edge| edge.to.resource).collect()
}

#[actix_rt::test]
async fn what_is_written_while_a_generation_begins_is_told_before_anything_goes() {
    let house = house();
    let tenant = &house.tenant;
    let lease = tenant.lease("mine", Labels::new()).await.unwrap();
    for turn in 1..20 {
        let image = Image::of(&[turn]);
        let name = ImageName::new(format!("r/a:{turn}")).unwrap();
        let tag = i::Tag {
            source: name.clone(),
            name: ImageName::new(format!("r/b:{turn}")).unwrap(),
            force: false,
        };
        let told = overtaken(
            tenant,
            "images/local",
            turn,
            tenant.put(&name, &image),
            None,
        )
        .await;
        assert!(told.contains(&Resource::Image(name)), "{turn}");
        let told = overtaken(tenant, "images/local", turn + 100, tag.clone(), None).await;
        assert!(told.contains(&Resource::Image(tag.name)), "{turn}");

        let blob = Resource::Content(digest(&image.config));
        let add = l::Add {
            id: lease.lease.clone().unwrap(),
            resources: vec![blob.clone()],
        };
        let told = overtaken(tenant, "leases/local", turn, add, None).await;
        assert!(told.contains(&blob), "{turn}");

        let key = SnapshotKey::new(format!("box{turn}")).unwrap();
        let create = tenant.record("native", &key).unwrap();
        let id = Resource::Container(create.id.clone());
        let told = overtaken(tenant, "containers/local", turn, create, None).await;
        let kept = [id, snapshot("native", key)];
        assert!(kept.iter().any(|kept| told.contains(kept)), "{turn}");

        tenant
            .blob(&lease, &image.config, Labels::new())
            .await
            .unwrap();
        let label = ("containerd.io/gc.ref.snapshot.native", image.top());
        let update = tenant.labelled(&image.config, label.0, label.1.as_str());
        let told = overtaken(tenant, "content/local", turn, update, Some(&blob)).await;
        assert!(told.contains(&snapshot("native", label.1)), "{turn}");
    }
}
