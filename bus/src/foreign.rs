//! Plugins in any language: the page for their authors.
//!
//! A manifest names the program (`supervisor/src/manifest.rs` has every key), and from then on it is a plugin like any
//! other: with a process, a user and folders of its own, a place in the graph, settings, limits, health probes, restarts.
//! `integration/samples/greeter.py` is a whole one in 119 lines.
//!
//! ```toml
//! [[exec]]
//! id = "greeter/python"                      # service/id
//! command = ["/usr/lib/gantry/greeter.py"]
//! requires = ["images", "events"]            # what it may call, and nothing else
//! [exec.settings]                            # every setting with its default; [plugins."greeter/python"] overrides
//! greeting = "hello"
//! ```
//!
//! # What the program is given
//!
//! An unprivileged user of its own without any capability, `no_new_privs`, the environment `GANTRY_PLUGIN`,
//! `GANTRY_ROOT` and `GANTRY_STATE` besides `PATH` and a few variables for proxies, certificates and the time zone. Its
//! working folder is `GANTRY_ROOT`: durable, and nobody else's. `GANTRY_STATE` is empty after a reboot. Its stderr is
//! the log, line by line, and the last line is shown beside the reason when the program ends.
//!
//! # What is said
//!
//! stdin and stdout carry JSON, one object per line, UTF-8, at most 4 MiB a line on the way out. Do not forget to flush.
//!
//! | host → program | means |
//! |---|---|
//! | `{"start": {"id", "settings", "root", "state"}}` | always first |
//! | `{"id": 7, "call": "greeter.hello", "request": …, "namespace": "default", "lease": null, "operation": "…", "deadline_ms": 29000}` | answer this; `namespace` and `lease` may be null |
//! | `{"id": 3, "answer": …}` or `{"id": 3, "error": {"code", "message", "plugin", "chain"}}` | the answer to your call 3 |
//! | `{"id": 3, "item": …}` … `{"id": 3, "end": true}` | the items of your call 3 to a stream, and its end; an error may end it too |
//! | `{"ping": 4}` | say pong, soon |
//! | `{"cancel": 7}` | a hint: nobody waits for 7 any more; answer it all the same, sooner or later |
//! | `{"stop": true}` | finish and exit; within a second, or be killed |
//!
//! | program → host | means |
//! |---|---|
//! | `{"ready": true}` | once, within 30 s: calls come from now on |
//! | `{"wait": 120}` | before that, any number of times: be patient for so many seconds from now on; `start_seconds` of the configuration bounds it all |
//! | `{"id": 7, "answer": …}` or `{"id": 7, "error": {"code": "NOT_FOUND", "message": "…"}}` | in any order; codes are those of `contracts::Code` |
//! | `{"id": 3, "call": "images.list", "request": {}, "namespace": "default"}` | a call of yours: any id that you are not waiting for; optional are `request`, `namespace`, `lease`, `operation`, `deadline_ms` (30 s) |
//! | `{"cancel": 3}` | you do not want the answer any more; it may come nevertheless |
//! | `{"pong": 4}` | you live |
//!
//! Calls of others go by their full name, because a program may answer several contracts (`also` in the manifest). Your
//! own calls may begin before you are ready. At most 256 calls wait for your answer at a time; of your own at most 64 are
//! under way, and nothing else that you say is read while there are more.
//!
//! # Services
//!
//! A service that nobody else has is described by nobody: requests and answers are the JSON that you say. It is reached
//! by `POST /v1/call/greeter.hello`, by `gantry call greeter.hello '{…}'`, and by other programs that require `greeter`.
//! `expose = false` keeps it from the API. For a service of ours (a snapshot driver, say) requests and answers are those
//! of its contract, in the JSON that `POST /v1/call` speaks; an answer that is something else is an `INTERNAL` error for
//! the caller. What carries file descriptors cannot be said in JSON: such a request is refused with `UNIMPLEMENTED`
//! before it reaches you, and so is a call of a stream.
//!
//! Who answers `collect` too (`also = ["collect"]`) takes part in garbage collection: what its `collect.roots` name is
//! kept. A driver or another owner of our resources must, or no collection could tell what is needed.
//!
//! # Exactly once
//!
//! A call comes again, with the same `operation`, when its answer may have been lost: because you died, or your host, or
//! who called. Either a repetition does no harm, or you record operation and answer in the same transaction as the
//! change, and answer a repetition from the record, which may be forgotten after a day. Pass `operation` on with the
//! calls that you make on behalf of one, and they take effect once, too; two calls of one operation that say the same
//! need different ones: append something.
//!
//! # What goes wrong
//!
//! A program ends, with a cause that says what was wrong, when it exits, closes stdout, says something that is not in
//! the table or not JSON at all, answers what was not asked, gives two calls one id, is not ready in time, or does
//! not say pong (`[probe]` in the configuration says when it is shown as stuck, and when it is killed). It is started
//! again after a pause; calls that wait for it are sent to its successor; nobody else notices. A program that exits
//! before it is ready counts as one that refuses to start and is tried ever more rarely. The program dies with its host,
//! as does what it has started within its process group.
//!
//! # Here
//!
//! | file | what it knows |
//! |---|---|
//! | `foreign/line.rs` | what the lines say |
//! | `foreign/talk.rs` | the conversation: what waits for which answer |
//! | `foreign/program.rs` | the process: how it starts, what it logs, how it ends |
//!
//! The host is the same build as every plugin, and drops the same privileges. Its pong to the supervisor stands for the
//! program's. JSON lines over pipes instead of the frames of the bus: a library for these in every language would be
//! ours to write, and a shell script can say JSON.

mod line;
mod program;
mod talk;
#[cfg(test)]
mod tests;

use crate::{Bus, Dispatch};
use contracts::plugin::{FromPlugin, PluginBoot};
use contracts::{Error, PluginId, Result};
use program::{Group, Program};
use serde_json::Value;
use std::{cell::Cell, rc::Rc, time::Duration};
use talk::{Answers, News, Talk};
use tokio::{
    io::BufReader,
    process::ChildStdout,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

/// From the start of a program to its readiness: an interpreter on a busy machine, and a store that is opened.
const READY: Duration = Duration::from_secs(30);
/// How long what a dead program said last may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a program that closed its stdout may take to end by itself, and one that was told to stop: with what the
/// process waits for calls in flight, less than the supervisor waits for it.
const CLOSING: Duration = Duration::from_secs(1);

/// How a program's start goes.
struct Start {
    is_ready: Cell<bool>,
    /// When it must be ready, and how long it was given.
    due: Cell<(Instant, Duration)>,
}

impl Start {
    fn new(given: Duration) -> Self {
        Self {
            is_ready: Cell::default(),
            due: Cell::new((Instant::now() + given, given)),
        }
    }

    /// Gives it `longer` from now on.
    fn wait(&self, longer: Duration) {
        self.due.set((Instant::now() + longer, longer));
    }

    /// Speaks up when it is not ready in time.
    async fn late(&self) -> String {
        loop {
            let (due, given) = self.due.get();
            tokio::time::sleep_until(due).await;
            if self.is_ready.get() {
                return std::future::pending().await;
            }
            if self.due.get().0 <= Instant::now() {
                return format!(
                    "its program did not say {{\"ready\": true}} within {given:?}; it may ask for more with {{\"wait\": seconds}}"
                );
            }
        }
    }
}

/// A program that answers for a plugin. It dies with this value.
pub(crate) struct Foreign {
    plugin: PluginId,
    talk: Rc<Talk>,
    start: Rc<Start>,
    is_stopping: Rc<Cell<bool>>,
    group: Option<Group>,
    ended: watch::Receiver<bool>,
    tell: mpsc::UnboundedSender<FromPlugin>,
}

impl Foreign {
    /// Starts `command` for `boot`. By `tell` come its readiness, its pongs, and, once, why it is of no more use.
    ///
    /// Must be called in the main thread. Errors: `FailedPrecondition` when the program cannot be started;
    /// `InvalidArgument` for settings that are no JSON.
    pub(crate) fn start(
        boot: &PluginBoot,
        command: &[String],
        bus: Bus,
        tell: mpsc::UnboundedSender<FromPlugin>,
    ) -> Result<Self> {
        let settings: Value = serde_json::from_str(&boot.config)
            .map_err(|e| Error::invalid(format!("plugin {}: settings: {e}", boot.id)))?;
        let (program, input, output) = program::start(boot, command)?;
        let (talk, lines) = Talk::new(bus);
        talk.say(line::start(boot, &settings));
        actix::spawn(lines.speak(input));
        let (end, ended) = watch::channel(false);
        let foreign = Self {
            plugin: boot.id.clone(),
            talk,
            start: Rc::new(Start::new(READY)),
            is_stopping: Rc::default(),
            group: program.group(),
            ended,
            tell,
        };
        actix::spawn(foreign.supervision(program, output, end));
        Ok(foreign)
    }

    /// Who answers its calls, from its readiness on.
    pub(crate) fn dispatch(&self) -> Rc<dyn Dispatch> {
        Rc::new(Answers(self.talk.clone()))
    }

    /// Asks whether it lives. While it starts, its bound is that of its start, for it may be busy with loading.
    pub(crate) fn ping(&self, number: u64) {
        match self.start.is_ready.get() {
            true => self.talk.ping(number),
            false => drop(self.tell.send(FromPlugin::Pong { number })),
        }
    }

    /// Tells it to stop and waits for its end, with a bound.
    pub(crate) async fn stop(&self) {
        self.is_stopping.set(true);
        self.talk.say(line::stop());
        let mut ended = self.ended.clone();
        if timeout(CLOSING, ended.wait_for(|ended| *ended))
            .await
            .is_err()
        {
            tracing::warn!(plugin = %self.plugin, "the program does not stop when told: killed");
            self.kill();
        }
    }

    fn kill(&self) {
        if let Some(group) = self.group.filter(|_| !*self.ended.borrow()) {
            group.kill();
        }
    }

    /// Hears the program out, and tells why it is of no more use.
    fn supervision(
        &self,
        mut program: Program,
        output: ChildStdout,
        end: watch::Sender<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let (talk, tell, plugin) = (self.talk.clone(), self.tell.clone(), self.plugin.clone());
        let (start, is_stopping) = (self.start.clone(), self.is_stopping.clone());
        let news = move |news| {
            // Who is told lives as long as the process.
            let _ = match news {
                News::Ready => {
                    start.is_ready.set(true);
                    tell.send(FromPlugin::Ready {
                        plugin: plugin.clone(),
                    })
                }
                News::Wait(longer) => return start.wait(longer),
                News::Pong(number) => tell.send(FromPlugin::Pong { number }),
            };
        };
        let (tell, plugin, start) = (self.tell.clone(), self.plugin.clone(), self.start.clone());
        async move {
            let heard = talk.hear(BufReader::new(output), news);
            let why = end_of(&mut program, heard, start.late()).await;
            drop(program);
            if !is_stopping.get() {
                let error = Error::internal(why);
                let _ = tell.send(FromPlugin::Failed { plugin, error });
            }
            let _ = end.send(true);
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a program is of no more use, and says why.
async fn end_of(
    program: &mut Program,
    heard: impl Future<Output = Result<(), String>>,
    late: impl Future<Output = String>,
) -> String {
    tokio::pin!(heard);
    tokio::select! {
        how = program.ended() => match timeout(LAST_WORDS, heard).await {
            Ok(Err(wrong)) => format!("{wrong}; {how}"),
            _ => how,
        },
        said = &mut heard => match said {
            Err(wrong) => wrong,
            Ok(()) => match timeout(CLOSING, program.ended()).await {
                Ok(how) => how,
                Err(_) => "its program closed its stdout".into(),
            },
        },
        why = late => why,
    }
}
