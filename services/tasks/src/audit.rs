//! The auditor: compares what is on the host with what is known, and cleans what is ours and belongs to no task.
//!
//! Nothing of that should ever be: whatever is done to the host is journaled before. It is the net below, for kernels that
//! refuse to let go, for people with `rm -rf` and `kill -9`, and for our own mistakes, which it counts.
//!
//! | looked at | ours, because | belongs to a task that |
//! |---|---|---|
//! | processes of shims | see `host.rs` | has one: made and not retired, or on its way out |
//! | bundles, also those on their way out | below our state folder | as above |
//! | sockets of shims | below our state folder | as above |
//! | mounts | at or below a bundle | its bundle does |
//! | cgroups | noted with their inodes when a bundle went and they did not | – |
//!
//! What was made just now could be seen before it is known, and what ends just now after it was forgotten: only what is
//! found in two looks with [`SETTLED`] between them is cleaned. A task without a shim is none of this module's business:
//! its open `Wait` tells (`watch.rs`).

use crate::engine::{Engine, blocking};
use crate::host::Shim;
use crate::layout::{Layout, names_in};
use crate::record::Name;
use crate::{bundle, cgroup};
use contracts::integrity::{Cure, Damage, Finding};
use contracts::tasks::{Audit, Audited, Leak, LeakKind};
use contracts::{Error, Result, Timestamp};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a leak must have been there when it is cleaned.
const SETTLED: Duration = Duration::from_secs(2);
/// Most leaks that are reported in full.
const ROWS: usize = 200;

/// What is remembered from look to look.
#[derive(Default)]
pub(crate) struct Auditor {
    /// What the last look found, and when it was first found.
    suspects: RefCell<BTreeMap<Suspect, Instant>>,
    cleaned: RefCell<BTreeMap<LeakKind, u64>>,
    last: RefCell<Audited>,
    /// Held by who looks.
    looking: tokio::sync::Mutex<()>,
}

/// What was found on the host.
#[derive(Debug, Default)]
struct Seen {
    shims: Vec<Shim>,
    bundles: Vec<Name>,
    graves: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
}

/// What may be there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Tasks that have a shim, or whose shim is on its way out.
    pub(crate) names: BTreeSet<Name>,
    /// Where their shims listen, if they are gantry's own.
    pub(crate) sockets: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suspect {
    Shim(Shim),
    Bundle(Name),
    /// A bundle that is out of the way.
    Grave(PathBuf),
    Socket(PathBuf),
    Mount(PathBuf),
}

impl Suspect {
    fn leak(&self) -> Leak {
        let path = |path: &Path| path.display().to_string();
        let (kind, what) = match self {
            Self::Shim(shim) => {
                let Name { namespace, id } = &shim.name;
                let what = format!("process {} of {namespace}/{id}", shim.pid);
                (LeakKind::Shim, what)
            }
            Self::Bundle(name) => (LeakKind::Bundle, format!("{}/{}", name.namespace, name.id)),
            Self::Grave(grave) if bundle::standing(grave).1.is_empty() => {
                (LeakKind::Bundle, path(grave))
            }
            Self::Grave(grave) => (LeakKind::Cgroup, path(grave)),
            Self::Socket(socket) => (LeakKind::Socket, path(socket)),
            Self::Mount(mount) => (LeakKind::Mount, path(mount)),
        };
        Leak {
            kind,
            what,
            cleaned: false,
        }
    }
}

impl Engine {
    /// Looks again and again, from now on.
    pub(crate) fn audit_every(self: &Rc<Self>, pause: Duration) {
        let engine = Rc::downgrade(self);
        self.keep(tokio::task::spawn_local(async move {
            while let Some(strong) = engine.upgrade() {
                if let Err(error) = strong.look().await {
                    tracing::warn!(%error, "the host was not compared with the records");
                }
                drop(strong);
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// Looks now, or tells what the last look saw.
    pub(crate) async fn audit(self: &Rc<Self>, request: Audit) -> Result<Audited> {
        match request.last {
            true => Ok(self.auditor.last.borrow().clone()),
            false => self.look().await,
        }
    }

    /// What the last look found and did not clean, as findings of the disk's owner.
    pub(crate) fn leftovers(&self) -> Vec<Finding> {
        let last = self.auditor.last.borrow();
        let left = last.leaks.iter().filter(|leak| !leak.cleaned);
        left.map(|leak| Finding {
            damage: Damage::Leftover,
            namespace: None,
            subject: leak.what.clone(),
            what: "is on the host and belongs to no task".into(),
            cure: Cure::Remove,
        })
        .collect()
    }

    async fn look(self: &Rc<Self>) -> Result<Audited> {
        let _looking = self.auditor.looking.lock().await;
        let began = Instant::now();
        let (host, layout) = (self.host.clone(), self.layout.clone());
        let seen = blocking(move || Ok::<_, Error>(see(&host, &layout))).await?;
        // After the host: what was made meanwhile is known by now.
        let found = suspects(&seen, &self.known(), &self.layout);
        let due = self.auditor.note(found.clone());
        let mut leaks = Vec::new();
        for suspect in &found {
            let mut leak = suspect.leak();
            // Cleaning the one before takes its time, in which a task may have come that this belongs to.
            let stays = || suspects(&seen, &self.known(), &self.layout).contains(suspect);
            if due.contains(suspect) && stays() {
                leak.cleaned = self.clean(suspect).await;
                self.count(&leak).await;
            }
            leaks.push(leak);
        }
        leaks.truncate(ROWS);
        let audited = self.audited(&seen, leaks, began);
        self.auditor.last.replace(audited.clone());
        Ok(audited)
    }

    fn audited(&self, seen: &Seen, leaks: Vec<Leak>, began: Instant) -> Audited {
        let count = |number: usize| number as u64;
        let (tasks, unknown) = self.tally();
        Audited {
            time: Timestamp::now(),
            micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            looks: self.auditor.last.borrow().looks + 1,
            tasks: count(tasks),
            unknown: count(unknown),
            shims: count(seen.shims.len()),
            bundles: count(seen.bundles.len() + seen.graves.len()),
            sockets: count(seen.sockets.len()),
            leaks,
            cleaned: self.auditor.cleaned.borrow().clone().into_iter().collect(),
        }
    }

    async fn count(&self, leak: &Leak) {
        if !leak.cleaned {
            return tracing::warn!(kind = ?leak.kind, what = leak.what, "a leak stays");
        }
        tracing::warn!(kind = ?leak.kind, what = leak.what, "a leak was cleaned");
        *self
            .auditor
            .cleaned
            .borrow_mut()
            .entry(leak.kind)
            .or_default() += 1;
        if let Err(error) = self.store.leaked(leak).await {
            tracing::warn!(%error, "a leak was not told of");
        }
    }

    /// Cleans one leak; says whether it is gone.
    async fn clean(self: &Rc<Self>, suspect: &Suspect) -> bool {
        // It may have come to belong to somebody since.
        let host = self.host.clone();
        let done = match suspect.clone() {
            Suspect::Bundle(name) => {
                if self.find(&name).is_none() {
                    self.clear_orphan(name.clone()).await;
                }
                let bundle = self.layout.bundle(&name);
                blocking(move || Ok::<_, Error>(!bundle.exists())).await
            }
            Suspect::Shim(shim) => {
                blocking(move || {
                    let cgroups = host.end_where(|other| *other == shim);
                    let left = cgroups.iter().filter(|path| !cgroup::end(path)).count();
                    Ok::<_, Error>(left == 0 && !host.shims().contains(&shim))
                })
                .await
            }
            Suspect::Grave(grave) => {
                let (socket, used) = (self.layout.socket_of(&grave), self.cgroups_in_use());
                blocking(move || {
                    host.end_where(|shim| shim.socket.as_ref() == Some(&socket));
                    bundle::finish(&grave, &used)?;
                    Ok::<_, Error>(!grave.exists())
                })
                .await
            }
            Suspect::Socket(path) => {
                blocking(move || {
                    host.end_where(|shim| shim.socket.as_ref() == Some(&path));
                    let _ = std::fs::remove_file(&path);
                    Ok::<_, Error>(!path.exists())
                })
                .await
            }
            Suspect::Mount(path) => {
                blocking(move || bundle::unmount_all(&path).map(|()| !bundle::is_mount(&path)))
                    .await
            }
        };
        done.unwrap_or_else(|error| {
            tracing::warn!(%error, "cleaning a leak");
            false
        })
    }
}

impl Auditor {
    /// Remembers what was found; answers what was there before, too, and long enough.
    fn note(&self, found: BTreeSet<Suspect>) -> BTreeSet<Suspect> {
        let now = Instant::now();
        let mut suspects = self.suspects.borrow_mut();
        suspects.retain(|suspect, _| found.contains(suspect));
        let settled = |since: &Instant| now.duration_since(*since) >= SETTLED;
        let due = suspects.iter().filter(|(_, since)| settled(since));
        let due = due.map(|(suspect, _)| suspect.clone()).collect();
        for suspect in found {
            suspects.entry(suspect).or_insert(now);
        }
        due
    }
}

/// Looks at the host. Blocks.
fn see(host: &crate::host::Host, layout: &Layout) -> Seen {
    let entries = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    Seen {
        shims: host.shims(),
        bundles: names_in(&layout.bundles()),
        graves: entries(layout.gone()),
        sockets: entries(layout.sockets()),
        mounts: bundle::mounts_below(&[layout.bundles(), layout.gone()]),
    }
}

/// What belongs to no task. Pure.
fn suspects(seen: &Seen, known: &Known, layout: &Layout) -> BTreeSet<Suspect> {
    let stray = |shim: &&Shim| match &shim.socket {
        Some(socket) => !known.sockets.contains(socket),
        None => !known.names.contains(&shim.name),
    };
    let buried = |grave: &&PathBuf| !known.sockets.contains(&layout.socket_of(grave));
    let unmarked = |mount: &&PathBuf| {
        let kept = known
            .names
            .iter()
            .any(|name| mount.starts_with(layout.bundle(name)));
        let going = known
            .sockets
            .iter()
            .any(|socket| mount.starts_with(layout.grave(socket)));
        !kept && !going
    };
    let shims = seen.shims.iter().filter(stray).cloned().map(Suspect::Shim);
    let bundles = seen
        .bundles
        .iter()
        .filter(|name| !known.names.contains(name));
    let graves = seen.graves.iter().filter(buried).cloned();
    let sockets = seen
        .sockets
        .iter()
        .filter(|path| !known.sockets.contains(*path));
    let mounts = seen.mounts.iter().filter(unmarked).cloned();
    shims
        .chain(bundles.cloned().map(Suspect::Bundle))
        .chain(graves.map(Suspect::Grave))
        .chain(sockets.cloned().map(Suspect::Socket))
        .chain(mounts.map(Suspect::Mount))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ContainerId, Namespace};

    fn name(id: &str) -> Name {
        Name {
            namespace: Namespace::new("ns").unwrap(),
            id: ContainerId::new(id).unwrap(),
        }
    }

    fn shim(id: &str, socket: Option<&str>) -> Shim {
        Shim {
            pid: 7,
            started: 9,
            name: name(id),
            socket: socket.map(PathBuf::from),
        }
    }

    fn layout() -> Layout {
        Layout::new(Path::new("/r"), Path::new("/s"))
    }

    #[test]
    fn what_a_task_has_is_no_leak_and_everything_else_is() {
        let seen = Seen {
            shims: vec![
                shim("a", Some("/s/sockets/1")),
                shim("b", None),
                shim("a", Some("/s/sockets/2")),
                shim("c", None),
            ],
            bundles: vec![name("a"), name("c")],
            graves: vec!["/s/gone/1".into(), "/s/gone/2".into()],
            sockets: vec!["/s/sockets/1".into(), "/s/sockets/3".into()],
            mounts: vec![
                "/s/bundles/ns/a/rootfs".into(),
                "/s/bundles/ns/ab/rootfs".into(),
                "/s/gone/1/rootfs".into(),
            ],
        };
        let known = Known {
            names: [name("a"), name("b")].into(),
            sockets: ["/s/sockets/1".into()].into(),
        };
        let found = suspects(&seen, &known, &layout());
        let wanted = [
            Suspect::Shim(shim("a", Some("/s/sockets/2"))),
            Suspect::Shim(shim("c", None)),
            Suspect::Bundle(name("c")),
            Suspect::Grave("/s/gone/2".into()),
            Suspect::Socket("/s/sockets/3".into()),
            Suspect::Mount("/s/bundles/ns/ab/rootfs".into()),
        ];
        assert_eq!(found, wanted.into());
    }

    #[test]
    fn one_look_proves_nothing_and_neither_do_two_in_a_hurry() {
        let auditor = Auditor::default();
        let found: BTreeSet<_> = [Suspect::Socket("/s/1".into())].into();
        assert!(auditor.note(found.clone()).is_empty());
        assert!(auditor.note(found.clone()).is_empty());
        let long_ago = Instant::now().checked_sub(SETTLED).unwrap();
        auditor
            .suspects
            .borrow_mut()
            .values_mut()
            .for_each(|since| *since = long_ago);
        assert_eq!(auditor.note(found.clone()), found);
        assert!(auditor.note(BTreeSet::new()).is_empty());
        assert!(auditor.note(found).is_empty(), "it is another one");
    }
}
