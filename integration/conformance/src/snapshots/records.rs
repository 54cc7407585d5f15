//! What can be seen without looking at files.

use super::{Subject, key, labels, refused};
use bus::{Bus, Ctx};
use contracts::snapshots::{Driver, Info, List, Prepare, Remove, SnapshotKind, Update};
use contracts::{Code, LabelPatch, Paging};

/// Runs every promise about records against one driver.
pub async fn records(bus: &Bus, driver: &str) {
    let tenant = |name: &str| Subject::new(bus, driver, name);
    a_driver_says_what_it_is(&tenant("driver")).await;
    a_prepared_snapshot_is_active(&tenant("prepare")).await;
    a_view_is_a_view(&tenant("view")).await;
    taken_keys_and_unfit_parents_are_refused(&tenant("refuse")).await;
    mounts_are_the_same_every_time(&tenant("mounts")).await;
    a_commit_frees_its_key(&tenant("commit")).await;
    a_commit_that_cannot_be_is_refused(&tenant("no-commit")).await;
    a_parent_is_set_at_commit_or_refused(&tenant("rebase")).await;
    a_parent_stays_while_it_has_children(&tenant("remove")).await;
    labels_change_by_patches(&tenant("labels")).await;
    a_list_is_by_key_in_pages_and_filtered(&tenant("list")).await;
    tenants_do_not_see_each_other(&tenant("one"), &tenant("other")).await;
    a_repeated_call_takes_effect_once(&tenant("repeat")).await;
    any_key_will_do(&tenant("keys")).await;
    a_chain_of_a_hundred_has_mounts(&tenant("chain")).await;
}

async fn a_driver_says_what_it_is(t: &Subject) {
    assert_eq!(t.call(Driver {}).await.unwrap().name, t.driver);
}

async fn a_prepared_snapshot_is_active(t: &Subject) {
    let wanted = labels(&[("a", "1"), ("b", "")]);
    let mounts = t.prepare_with("x", None, wanted.clone()).await.unwrap();
    assert!(!mounts.is_empty());
    let info = t.stat("x").await.unwrap();
    assert_eq!((info.kind, info.parent), (SnapshotKind::Active, None));
    assert_eq!(info.labels, wanted);
    assert_eq!(info.created_at, info.updated_at);
    refused(t.stat("y").await, Code::NotFound, "y");
    let bad = t.prepare_with("z", None, labels(&[("", "x")])).await;
    refused(bad, Code::InvalidArgument, "label");
    refused(t.stat("z").await, Code::NotFound, "z");
}

async fn a_view_is_a_view(t: &Subject) {
    t.committed("base", None).await;
    t.view("v", Some("base")).await.unwrap();
    let info = t.stat("v").await.unwrap();
    assert_eq!(
        (info.kind, info.parent),
        (SnapshotKind::View, Some(key("base")))
    );
    t.view("of nothing", None).await.unwrap();
    t.remove("v").await.unwrap();
    refused(t.stat("v").await, Code::NotFound, "v");
}

async fn taken_keys_and_unfit_parents_are_refused(t: &Subject) {
    t.committed("base", None).await;
    t.prepare("x", Some("base")).await.unwrap();
    refused(t.prepare("x", None).await, Code::AlreadyExists, "x");
    refused(t.view("x", Some("base")).await, Code::AlreadyExists, "x");
    refused(t.prepare("base", None).await, Code::AlreadyExists, "base");
    refused(t.prepare("y", Some("none")).await, Code::NotFound, "none");
    refused(t.view("y", Some("none")).await, Code::NotFound, "none");
    let active = t.prepare("y", Some("x")).await;
    refused(active, Code::FailedPrecondition, "x");
    t.view("v", Some("base")).await.unwrap();
    refused(t.view("y", Some("v")).await, Code::FailedPrecondition, "v");
    refused(t.stat("y").await, Code::NotFound, "y");
}

async fn mounts_are_the_same_every_time(t: &Subject) {
    t.committed("base", None).await;
    t.committed("upper", Some("base")).await;
    let active = t.prepare("a", Some("upper")).await.unwrap();
    assert_eq!(t.mounts("a").await.unwrap(), active);
    let view = t.view("v", Some("upper")).await.unwrap();
    assert_eq!(t.mounts("v").await.unwrap(), view);
    assert_ne!(active, view);
    let committed = t.mounts("upper").await;
    refused(committed, Code::FailedPrecondition, "upper");
    refused(t.mounts("none").await, Code::NotFound, "none");
}

async fn a_commit_frees_its_key(t: &Subject) {
    t.committed("base", None).await;
    let own = labels(&[("own", "1")]);
    t.prepare_with("x", Some("base"), own).await.unwrap();
    let before = t.stat("x").await.unwrap();
    t.commit("layer", "x").await.unwrap();
    refused(t.stat("x").await, Code::NotFound, "x");
    let after = t.stat("layer").await.unwrap();
    assert_eq!(after.kind, SnapshotKind::Committed);
    assert_eq!(after.parent, Some(key("base")));
    assert_eq!(after.labels, labels(&[]), "labels are not inherited");
    assert_eq!(after.created_at, before.created_at);
    assert!(after.updated_at > before.updated_at);
    t.prepare("x", Some("layer")).await.unwrap();
}

async fn a_commit_that_cannot_be_is_refused(t: &Subject) {
    t.committed("base", None).await;
    t.view("v", Some("base")).await.unwrap();
    t.prepare("x", Some("base")).await.unwrap();
    refused(t.commit("new", "none").await, Code::NotFound, "none");
    refused(t.commit("new", "v").await, Code::FailedPrecondition, "v");
    refused(
        t.commit("new", "base").await,
        Code::FailedPrecondition,
        "base",
    );
    refused(t.commit("base", "x").await, Code::AlreadyExists, "base");
    refused(t.commit("x", "x").await, Code::AlreadyExists, "x");
    assert_eq!(t.stat("x").await.unwrap().kind, SnapshotKind::Active);
}

async fn a_parent_is_set_at_commit_or_refused(t: &Subject) {
    t.committed("base", None).await;
    t.committed("other", None).await;
    t.prepare("on base", Some("base")).await.unwrap();
    let moved = t.commit_on("x", "on base", Some("other")).await;
    refused(moved, Code::InvalidArgument, "base");
    t.prepare("free", None).await.unwrap();
    if !t.rebases().await {
        let set = t.commit_on("x", "free", Some("base")).await;
        return refused(set, Code::InvalidArgument, "free");
    }
    let none = t.commit_on("x", "free", Some("none")).await;
    refused(none, Code::NotFound, "none");
    let open = t.commit_on("x", "free", Some("on base")).await;
    refused(open, Code::FailedPrecondition, "on base");
    t.commit_on("x", "free", Some("base")).await.unwrap();
    assert_eq!(t.stat("x").await.unwrap().parent, Some(key("base")));
    refused(t.remove("base").await, Code::FailedPrecondition, "base");
}

async fn a_parent_stays_while_it_has_children(t: &Subject) {
    t.committed("base", None).await;
    t.committed("middle", Some("base")).await;
    t.prepare("x", Some("middle")).await.unwrap();
    refused(t.remove("base").await, Code::FailedPrecondition, "middle");
    refused(t.remove("middle").await, Code::FailedPrecondition, "x");
    for name in ["x", "middle", "base"] {
        t.remove(name).await.unwrap();
        refused(t.remove(name).await, Code::NotFound, name);
    }
}

async fn labels_change_by_patches(t: &Subject) {
    t.prepare_with("x", None, labels(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap();
    let before = t.stat("x").await.unwrap();
    let patch = |replace, set: &[(&str, Option<&str>)]| LabelPatch {
        replace,
        set: set
            .iter()
            .map(|(l, v)| ((*l).to_owned(), v.map(str::to_owned)))
            .collect(),
    };
    let update = |name: &str, labels| Update {
        key: key(name),
        labels,
    };
    let set = patch(false, &[("a", None), ("c", Some("3"))]);
    let info = t.call(update("x", set)).await.unwrap();
    assert_eq!(info.labels, labels(&[("b", "2"), ("c", "3")]));
    assert!(info.updated_at > before.updated_at);
    assert_eq!(t.stat("x").await.unwrap(), info);
    let info = t
        .call(update("x", patch(true, &[("d", Some("4"))])))
        .await
        .unwrap();
    assert_eq!(info.labels, labels(&[("d", "4")]));
    let long = "x".repeat(5000);
    let bad = t
        .call(update("x", patch(false, &[("e", Some(&long))])))
        .await;
    refused(bad, Code::InvalidArgument, "e");
    let none = t.call(update("none", LabelPatch::default())).await;
    refused(none, Code::NotFound, "none");
    t.commit("done", "x").await.unwrap();
    let info = t
        .call(update("done", patch(false, &[("f", Some("5"))])))
        .await
        .unwrap();
    assert_eq!(
        info.labels,
        labels(&[("f", "5")]),
        "committed ones change too"
    );
}

async fn listed(t: &Subject, filters: &[&str], limit: u32) -> Vec<Info> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let paging = Paging {
            filters,
            limit,
            token,
        };
        let page = t.call(List { paging }).await.unwrap();
        assert!(limit == 0 || page.items.len() <= limit as usize);
        found.extend(page.items);
        token = page.next;
        if token.is_empty() {
            return found;
        }
    }
}

async fn a_list_is_by_key_in_pages_and_filtered(t: &Subject) {
    assert!(listed(t, &[], 0).await.is_empty());
    t.committed("base", None).await;
    for name in ["c", "a", "b"] {
        let own = labels(&[("name", name)]);
        t.prepare_with(name, Some("base"), own).await.unwrap();
    }
    t.view("v", Some("base")).await.unwrap();
    let names = |infos: Vec<Info>| -> Vec<String> {
        infos.into_iter().map(|info| info.key.into()).collect()
    };
    for limit in [0, 1, 2, 100] {
        assert_eq!(
            names(listed(t, &[], limit).await),
            ["a", "b", "base", "c", "v"]
        );
    }
    assert_eq!(
        names(listed(t, &["kind==active"], 2).await),
        ["a", "b", "c"]
    );
    assert_eq!(names(listed(t, &["kind==view"], 0).await), ["v"]);
    assert_eq!(names(listed(t, &["kind==committed"], 0).await), ["base"]);
    assert_eq!(
        names(listed(t, &["parent==base,kind!=view"], 0).await),
        ["a", "b", "c"]
    );
    assert_eq!(
        names(listed(t, &["name==a", "labels.name==c"], 0).await),
        ["a", "c"]
    );
    let filters = vec!["name=".to_owned()];
    let paging = Paging {
        filters,
        ..Paging::default()
    };
    refused(
        t.call(List { paging }).await,
        Code::InvalidArgument,
        "filter",
    );
}

async fn tenants_do_not_see_each_other(one: &Subject, other: &Subject) {
    one.committed("base", None).await;
    refused(other.stat("base").await, Code::NotFound, "base");
    refused(
        other.prepare("x", Some("base")).await,
        Code::NotFound,
        "base",
    );
    other.committed("base", None).await;
    one.remove("base").await.unwrap();
    other.stat("base").await.unwrap();
    assert!(listed(one, &[], 0).await.is_empty());
    let nobody = one
        .bus
        .call_named(&one.driver, &Ctx::new(None), List::default())
        .await;
    refused(nobody, Code::InvalidArgument, "namespace");
}

async fn a_repeated_call_takes_effect_once(t: &Subject) {
    let prepare = || Prepare {
        key: key("x"),
        parent: None,
        labels: labels(&[]),
    };
    let first = t
        .bus
        .call_named(&t.driver, &t.ctx, prepare())
        .await
        .unwrap();
    let again = t
        .bus
        .call_named(&t.driver, &t.ctx, prepare())
        .await
        .unwrap();
    assert_eq!(first, again);
    assert_eq!(t.mounts("x").await.unwrap(), first);
    for _ in 0..2 {
        let remove = Remove { key: key("x") };
        t.bus.call_named(&t.driver, &t.ctx, remove).await.unwrap();
    }
    let late = t
        .bus
        .call_named(&t.driver, &t.ctx, prepare())
        .await
        .unwrap();
    assert_eq!(late, first, "the first answer, though it is gone by now");
    refused(t.stat("x").await, Code::NotFound, "x");
}

async fn any_key_will_do(t: &Subject) {
    let long = "k".repeat(1024);
    let odd = [
        "..",
        "/",
        "a/../../b",
        "name with spaces",
        "ä:,=\\\"",
        "sha256:00 1",
        &long,
    ];
    for name in odd {
        t.committed(&format!("{:.900}-base", name), None).await;
        t.prepare(name, Some(&format!("{:.900}-base", name)))
            .await
            .unwrap();
        assert_eq!(t.stat(name).await.unwrap().key, key(name));
    }
    assert_eq!(listed(t, &[], 0).await.len(), 2 * odd.len());
}

async fn a_chain_of_a_hundred_has_mounts(t: &Subject) {
    let name = |i: u32| format!("layer {i}");
    t.committed(&name(0), None).await;
    for i in 1..100 {
        t.committed(&name(i), Some(&name(i - 1))).await;
    }
    t.prepare("top", Some(&name(99))).await.unwrap();
    refused(
        t.remove(&name(98)).await,
        Code::FailedPrecondition,
        "layer 99",
    );
}
