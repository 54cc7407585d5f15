//! After a restart: every task is taken up where its shim left it, whatever happened to this process in between.
//!
//! | found | done |
//! |---|---|
//! | half-made task | undone, as if it had not been asked for; the call comes again |
//! | shim answers | what was missed is recorded and told, then watched on |
//! | shim does not answer | `unknown`, and asked again until it does |
//! | task has ended, bundle is there | its shim is retired |
//! | shim is gone | what it left is cleared, the end is recorded |
//! | bundle without a record | cleared |

use crate::bundle;
use crate::engine::{Engine, STATE, blocking};
use crate::launch::{Launch, Listening};
use crate::layout::names_in;
use crate::lifecycle::{Input, Phase};
use crate::live::Live;
use crate::lost::Loss;
use crate::record::{ExecRecord, Name, Program, Record};
use crate::shim::ShimError;
use crate::stdio::Streams;
use containerd_shim_protos::api::{self, Status};
use contracts::{Error, Result};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Shims that are asked at a time.
const AT_ONCE: usize = 16;
/// Pause before a shim that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Takes up everything that was there when this process started. Blocks for the reading of the records only.
    pub(crate) fn take_up(self: &Rc<Self>) -> Result<()> {
        let all = self.store.all().map_err(Error::from)?;
        let known: HashSet<Name> = all.iter().map(|(name, _)| name.clone()).collect();
        let room = Rc::new(Semaphore::new(AT_ONCE));
        let mut sockets = BTreeSet::new();
        for (name, record) in all {
            if record.process.alive() || Path::new(&record.bundle).exists() {
                sockets.insert(self.layout.socket(&name, record.created_at));
            }
            let live = Rc::new(self.as_recorded(&name, &record));
            live.inherited.set(true);
            let execs = self.store.execs(&name).map_err(Error::from)?;
            for exec in &execs {
                live.add_exec(exec.id.clone(), exec.process.exit.clone());
            }
            self.insert(live.clone());
            let (engine, room) = (Rc::downgrade(self), room.clone());
            self.keep(tokio::task::spawn_local(async move {
                // Taken first of all: whoever asks for a change waits until it is known what there is to change.
                let turn = live.turn.lock().await;
                let _room = room.acquire().await;
                if let Some(engine) = engine.upgrade() {
                    let again = engine.reattach(&live, &record, &execs).await;
                    drop(turn);
                    if again {
                        engine.insist(&live);
                    }
                }
            }));
        }
        self.clear_orphans(known, sockets);
        self.note_boot(room);
        // A predecessor that was killed may have owed a namespace the removal of its empty parent cgroup.
        let logged = names_in(&self.layout.all_logs());
        logged
            .iter()
            .for_each(|name| self.sweep_cgroups_of(&name.namespace));
        self.follow_owners();
        Ok(())
    }

    fn as_recorded(&self, name: &Name, record: &Record) -> Live {
        let mut launch = Launch::new(
            self.today(record.shim.clone()),
            name,
            record.created_at,
            &self.layout,
        );
        launch.bundle = record.bundle.clone().into();
        launch.cgroup.clone_from(&record.cgroup);
        let listening = (!record.address.is_empty()).then(|| Listening {
            address: record.address.clone(),
            api: record.api,
        });
        if let Some(socket) = record.address.strip_prefix("unix://") {
            launch.socket = socket.into();
        }
        Live::new(launch, listening, record.process.exit.clone())
    }

    /// Our own shim's program may be elsewhere since an upgrade.
    fn today(&self, program: Program) -> Program {
        if program.own {
            self.own.clone()
        } else {
            program
        }
    }

    /// Finds out how one task stands; says whether its shim must be asked again.
    async fn reattach(
        self: &Rc<Self>,
        live: &Rc<Live>,
        record: &Record,
        execs: &[ExecRecord],
    ) -> bool {
        match record.process.phase {
            Phase::Creating => {
                self.undo(live).await;
                return false;
            }
            Phase::Stopped => {
                for exec in live.all().iter().skip(1) {
                    exec.tell(crate::end::unseen());
                }
                self.finish(live).await;
                return false;
            }
            Phase::Created | Phase::Running | Phase::Paused => {}
        }
        let request = api::StateRequest {
            id: live.name.id.to_string(),
            ..Default::default()
        };
        let state = live
            .call::<_, api::StateResponse>("State", &request, STATE)
            .await;
        match state {
            Ok(state) => {
                self.found(live, &state).await;
                self.found_execs(live, execs).await;
                self.attend(live, record, execs, state.status == Status::STOPPED.into());
                false
            }
            Err(ShimError::Gone(_)) if self.rebooted.get() => {
                self.lost(live, &Loss::Rebooted).await;
                false
            }
            Err(error @ ShimError::Gone(_)) => {
                self.lost(live, &Loss::Died(error.to_string())).await;
                false
            }
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => {
                let why = "it knows no such container".to_owned();
                self.lost(live, &Loss::Died(why)).await;
                false
            }
            Err(error) => {
                live.suspect(&error.to_string());
                self.attend(live, record, execs, false);
                true
            }
        }
    }

    /// Retires the shim of a task that had ended before, unless that was done.
    async fn finish(self: &Rc<Self>, live: &Rc<Live>) {
        let bundle = live.launch.bundle.clone();
        if blocking(move || Ok::<_, Error>(bundle.exists())).await == Ok(false) {
            live.leaving.set(true);
            live.retired.set(true);
            return;
        }
        self.retire_now(live).await;
    }

    /// Watches all processes on, and pumps their streams where the shim does not.
    fn attend(self: &Rc<Self>, live: &Rc<Live>, record: &Record, execs: &[ExecRecord], over: bool) {
        let first = (None, &record.process, record.stdio);
        let added = execs
            .iter()
            .map(|exec| (Some(&exec.id), &exec.process, exec.stdio));
        for (exec, process, stdio) in std::iter::once(first).chain(added) {
            let (Some(tracked), true) = (live.process(exec), process.alive()) else {
                continue;
            };
            let log = self.layout.log(&live.name, exec);
            let streams = Streams::of(&live.launch, &log, exec, stdio);
            // Nobody writes to the streams of what has ended: they would never end.
            let attended = if over {
                Ok(())
            } else {
                streams.attend(&tracked)
            };
            let drained = streams
                .shim_log()
                .map(|drain| drain.map(|drain| live.keep(drain)));
            if let Err(error) = attended.and(drained) {
                tracing::warn!(task = %live.name.id, %error, "output of a process is not read");
            }
            self.watch(live, exec.cloned());
        }
    }

    /// Records starts of added processes that nobody was answered for.
    async fn found_execs(&self, live: &Live, execs: &[ExecRecord]) {
        for exec in execs
            .iter()
            .filter(|exec| exec.process.phase == Phase::Created)
        {
            let request = api::StateRequest {
                id: live.name.id.to_string(),
                exec_id: exec.id.to_string(),
                ..Default::default()
            };
            let state = live
                .call::<_, api::StateResponse>("State", &request, STATE)
                .await;
            let Ok(state) = state else { continue };
            if state.pid != 0 && state.status != Status::CREATED.into() {
                let found = Input::Found(Box::new(Input::Started { pid: state.pid }));
                let name = &live.name;
                let _ = self
                    .store
                    .change_exec(name, &exec.id, None, vec![found])
                    .await;
            }
        }
    }

    /// Asks a stuck shim until it answers.
    pub(crate) fn insist(self: &Rc<Self>, live: &Rc<Live>) {
        if live.insisted.replace(true) {
            return;
        }
        let (engine, asked) = (Rc::downgrade(self), Rc::downgrade(live));
        let errand = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                let (Some(engine), Some(live)) = (engine.upgrade(), asked.upgrade()) else {
                    return;
                };
                if live.doubt().is_empty() {
                    live.insisted.set(false);
                    return;
                }
                engine.ask(&live).await;
            }
        });
        live.keep(errand.abort_handle());
    }

    /// Notes which start of the machine the records are about, when all of them are.
    fn note_boot(self: &Rc<Self>, room: Rc<Semaphore>) {
        let (engine, place) = (Rc::downgrade(self), self.layout.boot());
        self.keep(tokio::task::spawn_local(async move {
            let all = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
            let _all = room.acquire_many(all).await;
            let noted = blocking(move || crate::boot::note(&place)).await;
            match (noted, engine.upgrade()) {
                (Ok(()), Some(engine)) => engine.rebooted.set(false),
                (Err(error), _) => tracing::warn!(%error, "the start of the machine is not noted"),
                _ => {}
            }
        }));
    }

    /// Ends what a predecessor was about to end, and whatever else no record knows.
    fn clear_orphans(self: &Rc<Self>, known: HashSet<Name>, sockets: BTreeSet<PathBuf>) {
        let engine = Rc::downgrade(self);
        let (bundles, gone) = (self.layout.bundles(), self.layout.gone());
        let (host, now) = (self.host.clone(), crate::host::ticks());
        let used = self.cgroups_in_use();
        self.keep(tokio::task::spawn_local(async move {
            let found = blocking(move || {
                // What is younger than this process may be what it makes by now.
                host.end_where(|shim| {
                    let socket = shim.socket.as_ref().filter(|_| shim.started < now);
                    socket.is_some_and(|socket| !sockets.contains(socket))
                });
                faults::point("tasks.recover.orphans-ended");
                for grave in std::fs::read_dir(gone).into_iter().flatten().flatten() {
                    if let Err(error) = bundle::finish(&grave.path(), &used) {
                        tracing::warn!(%error, "a bundle stays for the auditor");
                    }
                }
                Ok::<_, Error>(names_in(&bundles))
            })
            .await;
            for name in found.unwrap_or_default() {
                let Some(engine) = engine.upgrade() else {
                    return;
                };
                // A task of that name may have been made by now.
                if known.contains(&name) || engine.find(&name).is_some() {
                    continue;
                }
                engine.clear_orphan(name).await;
            }
        }));
    }

    /// Clears a bundle that no record knows, with the shim that it is for and all that this made.
    pub(crate) async fn clear_orphan(self: &Rc<Self>, name: Name) {
        let folder = self.layout.bundle(&name);
        let (program, socket) = bundle::made_by(&folder).unwrap_or_else(|| {
            let socket = self.layout.socket(&name, contracts::Timestamp(0));
            (self.own.clone(), socket)
        });
        let launch = Launch {
            program: self.today(program),
            socket,
            bundle: folder.clone(),
            events: self.layout.events(),
            cgroup: String::new(),
            log_bytes: 0,
            name,
        };
        tracing::warn!(task = %launch.name.id, "a bundle without a record is cleared");
        let live = Rc::new(Live::new(launch, None, None));
        let _turn = live.turn.lock().await;
        self.insert(live.clone());
        let _ = self.clear(&live).await;
        if let Err(error) = blocking(move || bundle::remove(&folder)).await {
            tracing::warn!(%error, "a bundle without a record stays");
        }
        self.remove(&live.name);
        self.sweep_cgroups_of(&live.name.namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Spec;
    use crate::layout::Layout;
    use crate::lifecycle::Process;
    use crate::record::Io;
    use crate::store::Store;
    use crate::support::{self, Home};
    use bus::Ctx;
    use contracts::tasks::List;
    use contracts::{Namespace, Timestamp};

    /// Does what `create` does up to the journal and the shim, and no more: then this process "dies".
    async fn half_made(root: &Path, state: &Path, namespace: &Namespace) {
        let layout = Layout::new(root, state);
        let name = Name {
            namespace: namespace.clone(),
            id: support::container_id("half"),
        };
        let program = Program {
            path: support::shim_program().to_string_lossy().into_owned(),
            first: None,
            own: true,
        };
        let launch = Launch::new(program.clone(), &name, Timestamp(5), &layout);
        let spec = Spec::read(&support::spec(&["true"]).to_string(), true).unwrap();
        bundle::make(&launch, &spec).unwrap();
        let record = Record {
            id: name.id.clone(),
            process: Process::creating(),
            created_at: Timestamp(5),
            reason: String::new(),
            stdio: Io::default(),
            bundle: launch.bundle.to_string_lossy().into_owned(),
            shim: program,
            address: String::new(),
            api: 0,
            cgroup: String::new(),
            oom_at: Timestamp(0),
        };
        let store = Store::open(root, 1 << 20).unwrap();
        store.intend(&name, record).await.unwrap();
        launch.start(None).await.unwrap();
    }

    /// The same with an end on record: then this process "dies" before the shim is retired.
    async fn half_retired(root: &Path, state: &Path, namespace: &Namespace) {
        half_made(root, state, namespace).await;
        let id = support::container_id("half");
        let name = Name {
            namespace: namespace.clone(),
            id,
        };
        let socket = Layout::new(root, state).socket(&name, Timestamp(5));
        let store = Store::open(root, 1 << 20).unwrap();
        let stands = (7, format!("unix://{}", socket.display()), 3);
        let operation = Ctx::new(None).operation;
        store.created(&name, &operation, stands).await.unwrap();
        let exit = contracts::tasks::Exit {
            exit_code: 3,
            exited_at: Timestamp(6),
        };
        let ended = vec![Input::Started { pid: 7 }, Input::Exited(exit)];
        store.change(&name, None, ended).await.unwrap();
    }

    #[actix_rt::test]
    async fn a_half_retired_shim_is_retired_and_the_task_keeps_its_end() {
        let home = Home::start_after(half_retired).await;
        home.gone().await;
        assert_eq!(home.get("half").await.unwrap().exit_code, Some(3));
        assert_eq!(home.delete("half", false).await.unwrap().exit_code, 3);
        home.until_told("half", &["create", "start", "exit", "delete"])
            .await;
    }

    #[actix_rt::test]
    async fn a_half_made_task_is_undone_and_can_be_made_anew() {
        let home = Home::start_after(async |root, state, namespace| {
            half_made(root, state, namespace).await;
        })
        .await;
        let shim = home.shim_pid("half");
        assert!(support::alive(shim));
        home.container("half", &["true"]);
        home.create("half").await.unwrap();
        assert!(!support::alive(shim));
        home.go("half").await.unwrap();
        home.wait("half").await.unwrap();
        home.delete("half", false).await.unwrap();
        assert!(home.call(List::default()).await.unwrap().items.is_empty());
        home.until_told("half", &["create", "start", "exit", "delete"])
            .await;
        home.gone().await;
    }
}
