//! Operations over the in-process bus, with fakes for everybody who does the steps.

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::containers::Containers;
use contracts::content::Content;
use contracts::diff::Diff;
use contracts::events::{Append, Events};
use contracts::gc::{Collected, Gc};
use contracts::images::Images;
use contracts::integrity::{Check, Checked, Cure, Damage, Finding, Mend, Mended};
use contracts::leases::{Create, Delete, Lease, Leases};
use contracts::namespaces::{List as List_, Namespaces};
use contracts::operations::{
    Cancel, Collect, Get, List, Operation, Outcome, Pull, Scrub, Scrubbed, Start, State, Watch,
    Work,
};
use contracts::snapshots::{List as Snapshots_, Snapshots};
use contracts::tasks::Tasks;
use contracts::transfer::{Resolve, Transfer};
use contracts::{Code, Error, Labels, Namespace, OperationId, Page, Paging, Result, Timestamp};
use futures_util::StreamExt;
use std::{cell::RefCell, rc::Rc};

/// What the fakes were asked, in order.
type Asked = Rc<RefCell<Vec<String>>>;

fn node(dir: &tempfile::TempDir, asked: &Asked) -> Result<LocalNode> {
    around(dir, asked, sound())
}

fn around(dir: &tempfile::TempDir, asked: &Asked, content: Fake<Content>) -> Result<LocalNode> {
    let said = |word: &'static str| {
        let asked = asked.clone();
        move || asked.borrow_mut().push(word.to_owned())
    };
    let (collect, create, delete, resolve) = (
        said("collect"),
        said("hold"),
        said("release"),
        said("resolve"),
    );
    let told = asked.clone();
    let leases = Fake::<Leases>::new("local")
        .on(move |_, wanted: Create| {
            create();
            let id = wanted
                .id
                .ok_or_else(|| Error::internal("an operation names its lease"))?;
            Ok(Lease {
                id,
                labels: Labels::new(),
                created_at: Timestamp(1),
                expires_at: None,
            })
        })
        .on(move |_, _: Delete| {
            delete();
            Ok(())
        });
    let transfer = Fake::<Transfer>::new("local").on(move |_, _: Resolve| {
        resolve();
        Err(Error::unauthenticated(
            "registry r:5000: user u: wrong password",
        ))
    });
    let gc = Fake::<Gc>::new("local").on(move |_, _: contracts::gc::Collect| {
        collect();
        Ok(Collected {
            total: 3,
            ..Collected::default()
        })
    });
    LocalBus::new()
        .fake(Fake::<Events>::new("log").on(move |_, append: Append| {
            let last = append.first + append.entries.len() as u64 - 1;
            let topics = append.entries.into_iter().map(|entry| entry.topic);
            let wanted = topics.filter(|topic| topic.starts_with("/integrity/"));
            told.borrow_mut().extend(wanted);
            Ok(last)
        }))
        .fake(leases)
        .fake(Fake::<Namespaces>::new("local").on(|_, _: List_| {
            Ok(Page {
                items: Vec::new(),
                next: String::new(),
                version: 1,
            })
        }))
        .fake(content)
        .fake(Fake::<Snapshots>::new("overlayfs").on(|_, _: Snapshots_| {
            Ok(Page {
                items: Vec::new(),
                next: String::new(),
                version: 1,
            })
        }))
        .fake(Fake::<Diff>::new("local"))
        .fake(Fake::<Images>::new("local"))
        .fake(transfer)
        .fake(Fake::<Containers>::new("local"))
        .fake(Fake::<Tasks>::new("local"))
        .fake(gc)
        .plugin(operations::plugin())
        .start(dir.path())
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("test").unwrap()))
}

async fn ended(bus: &Bus, id: &OperationId) -> Operation {
    let shown = bus.open(&ctx(), Watch { id: id.clone() }).await.unwrap();
    shown
        .map(|item| item.unwrap())
        .collect::<Vec<_>>()
        .await
        .pop()
        .unwrap()
}

#[actix_rt::test]
async fn the_same_request_begins_once_and_its_end_is_kept() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Asked::default());
    let mut node = node(&dir, &asked).unwrap();
    let (bus, once) = (node.bus(), ctx());
    let start = || Start {
        work: Work::Collect(Collect {}),
    };
    let first = bus.call(&once, start()).await.unwrap();
    let again = bus.call(&once, start()).await.unwrap();
    assert_eq!((&first.id, first.kind.as_str()), (&again.id, "collect"));
    let end = ended(&bus, &first.id).await;
    assert_eq!(end.state, State::Done);
    assert!(matches!(
        end.result,
        Some(Outcome::Collected(Collected { total: 3, .. }))
    ));
    node.restart("operations/local").await.unwrap();
    assert_eq!(
        bus.call(&once, start()).await.unwrap().state,
        State::Done,
        "also after a restart"
    );
    assert_eq!(
        bus.call(
            &ctx(),
            Get {
                id: first.id.clone()
            }
        )
        .await
        .unwrap()
        .result,
        end.result
    );
    assert_eq!(*asked.borrow(), ["collect"]);
}

#[actix_rt::test]
async fn a_failed_step_ends_the_work_with_its_error_and_lets_go_of_the_lease() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Asked::default());
    let bus = node(&dir, &asked).unwrap().bus();
    let pull = Pull {
        reference: "r:5000/a/b:1".into(),
        ..Pull::default()
    };
    let begun = bus
        .call(
            &ctx(),
            Start {
                work: Work::Pull(pull),
            },
        )
        .await
        .unwrap();
    let end = ended(&bus, &begun.id).await;
    assert_eq!(
        (end.state, end.error.unwrap().code),
        (State::Failed, Code::Unauthenticated)
    );
    assert_eq!(*asked.borrow(), ["hold", "resolve", "release"]);
    let cancelled = bus.call(&ctx(), Cancel { id: begun.id }).await.unwrap();
    assert_eq!(
        cancelled.state,
        State::Failed,
        "an ended operation stays as it is"
    );
}

#[actix_rt::test]
async fn operations_are_listed_newest_first_by_state_and_namespace() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Asked::default());
    let bus = node(&dir, &asked).unwrap().bus();
    let good = bus
        .call(
            &ctx(),
            Start {
                work: Work::Collect(Collect {}),
            },
        )
        .await
        .unwrap();
    ended(&bus, &good.id).await;
    let bad = bus
        .call(
            &ctx(),
            Start {
                work: Work::Pull(Pull {
                    reference: "x".into(),
                    ..Pull::default()
                }),
            },
        )
        .await
        .unwrap();
    ended(&bus, &bad.id).await;
    let ids = |page: Page<Operation>| {
        page.items
            .into_iter()
            .map(|operation| operation.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(bus.call(&ctx(), List::default()).await.unwrap()),
        [bad.id.clone(), good.id.clone()]
    );
    let failed = Paging {
        filters: vec!["state==failed".into()],
        ..Paging::default()
    };
    assert_eq!(
        ids(bus.call(&ctx(), List { paging: failed }).await.unwrap()),
        std::slice::from_ref(&bad.id)
    );
    let one = Paging {
        limit: 1,
        ..Paging::default()
    };
    let first = bus
        .call(
            &ctx(),
            List {
                paging: one.clone(),
            },
        )
        .await
        .unwrap();
    let second = bus
        .call(
            &ctx(),
            List {
                paging: Paging {
                    token: first.next.clone(),
                    ..one
                },
            },
        )
        .await
        .unwrap();
    assert_eq!(ids(second), [good.id]);
    let elsewhere = Ctx::new(Some(Namespace::new("other").unwrap()));
    assert!(ids(bus.call(&elsewhere, List::default()).await.unwrap()).is_empty());
    assert_eq!(
        bus.call(
            &ctx(),
            Get {
                id: OperationId::new("none").unwrap()
            }
        )
        .await
        .unwrap_err()
        .code,
        Code::NotFound
    );
}

async fn scrubbed(bus: &Bus, repair: bool) -> Scrubbed {
    let scrub = Scrub {
        repair,
        deep: true,
        namespace: None,
    };
    let start = Start {
        work: Work::Scrub(scrub),
    };
    let begun = bus.call(&Ctx::new(None), start).await.unwrap();
    assert_eq!(begun.kind, "scrub");
    match ended(bus, &begun.id).await.result {
        Some(Outcome::Scrubbed(scrubbed)) => scrubbed,
        other => panic!("{other:?}"),
    }
}

#[actix_rt::test]
async fn a_scrub_goes_through_every_step_of_every_owner_and_mends_what_it_may() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Asked::default());
    let node = node(&dir, &asked).unwrap();
    let seen = scrubbed(&node.bus(), false).await;
    let subjects: Vec<_> = seen.findings.iter().map(|found| &found.subject).collect();
    assert_eq!(subjects, ["sha256:ab", "blobs/x"]);
    assert_eq!(
        (seen.found, seen.mended, seen.bytes, seen.things),
        (2, 0, 14, 4)
    );
    let seen = scrubbed(&node.bus(), true).await;
    assert_eq!(
        (seen.found, seen.mended),
        (2, 1),
        "one is for a pull to mend"
    );
    let told = |topic: &str| asked.borrow().iter().filter(|told| *told == topic).count();
    for _ in 0..10_000 {
        if told("/integrity/mended") == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(
        (told("/integrity/found"), told("/integrity/mended")),
        (4, 1)
    );
}

/// A content store that finds one blob damaged and one file too much, in two steps.
fn sound() -> Fake<Content> {
    let finding = |damage, subject: &str, cure| Finding {
        damage,
        namespace: None,
        subject: subject.into(),
        what: "is wrong".into(),
        cure,
    };
    Fake::<Content>::new("local")
        .on(move |_, check: Check| {
            let (findings, next) = match check.token.as_str() {
                "" => (vec![finding(Damage::Blob, "sha256:ab", Cure::Fetch)], "on"),
                _ => (vec![finding(Damage::Leftover, "blobs/x", Cure::Remove)], ""),
            };
            Ok(Checked {
                findings,
                bytes: if check.deep { 7 } else { 0 },
                things: 2,
                next: next.into(),
            })
        })
        .on(|_, mend: Mend| match mend.finding.cure {
            Cure::Remove => Ok(Mended {
                how: "removed".into(),
            }),
            _ => Err(contracts::Error::precondition("the next pull")),
        })
}

/// A content store with `findings` in each of its steps, and no end of them.
fn endless(findings: usize) -> Fake<Content> {
    Fake::<Content>::new("local").on(move |_, _: Check| {
        let missing = |number| Finding {
            damage: Damage::Missing,
            namespace: None,
            subject: format!("blob {number}"),
            what: "is missing".into(),
            cure: Cure::Fetch,
        };
        Ok(Checked {
            findings: (0..findings).map(missing).collect(),
            bytes: 0,
            things: 1,
            next: "again".into(),
        })
    })
}

#[actix_rt::test]
async fn an_owner_that_never_ends_is_left_and_the_log_is_not_flooded() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Asked::default());
    let node = around(&dir, &asked, endless(700)).unwrap();
    let seen = scrubbed(&node.bus(), false).await;
    assert_eq!(seen.found, 1400, "two steps, the second goes in a circle");
    let reasons = &seen.unchecked;
    let said = |what: &str| reasons.iter().any(|reason| reason.contains(what));
    assert!(said("content/local: ") && said("circle"), "{reasons:?}");
    assert!(said("/integrity/found: 400 more"), "{reasons:?}");
    let found = || {
        let asked = asked.borrow();
        asked
            .iter()
            .filter(|told| *told == "/integrity/found")
            .count()
    };
    for _ in 0..10_000 {
        if found() >= 1000 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(found(), 1000);
}
