//! Foreign programs as plugins: any executable, in any language that has a JSON library.
//!
//! The page comes with the hook.

mod line;
mod program;
mod talk;

use crate::{Bus, Dispatch};
use contracts::plugin::{FromPlugin, PluginBoot};
use contracts::{Error, PluginId, Result};
use program::Program;
use serde_json::Value;
use std::{cell::Cell, rc::Rc, time::Duration};
use talk::{Answers, News, Talk};
use tokio::{
    io::BufReader,
    process::ChildStdout,
    sync::{mpsc, watch},
    time::timeout,
};

/// From the start of a program to its readiness: an interpreter on a busy machine, and a store that is opened.
const READY: Duration = Duration::from_secs(30);
/// How long what a dead program said last may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a program that closed its stdout may take to end by itself, and one that was told to stop: with what the
/// process waits for calls in flight, less than the supervisor waits for it.
const CLOSING: Duration = Duration::from_secs(1);

/// A program that answers for a plugin. It dies with this value.
pub(crate) struct Foreign {
    plugin: PluginId,
    talk: Rc<Talk>,
    is_ready: Rc<Cell<bool>>,
    is_stopping: Rc<Cell<bool>>,
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
            is_ready: Rc::default(),
            is_stopping: Rc::default(),
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
        match self.is_ready.get() {
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
        let (is_ready, is_stopping) = (self.is_ready.clone(), self.is_stopping.clone());
        let news = move |news| {
            // Who is told lives as long as the process.
            let _ = match news {
                News::Ready => {
                    is_ready.set(true);
                    tell.send(FromPlugin::Ready {
                        plugin: plugin.clone(),
                    })
                }
                News::Pong(number) => tell.send(FromPlugin::Pong { number }),
            };
        };
        let (tell, plugin, is_ready) = (
            self.tell.clone(),
            self.plugin.clone(),
            self.is_ready.clone(),
        );
        async move {
            let heard = talk.hear(BufReader::new(output), news);
            let why = end_of(&mut program, heard, late(is_ready, READY)).await;
            program.kill();
            if !is_stopping.get() {
                let error = Error::internal(why);
                let _ = tell.send(FromPlugin::Failed { plugin, error });
            }
            let _ = end.send(true);
        }
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

/// Speaks up when a program is not ready within `bound`.
async fn late(is_ready: Rc<Cell<bool>>, bound: Duration) -> String {
    tokio::time::sleep(bound).await;
    match is_ready.get() {
        true => std::future::pending().await,
        false => format!("its program did not say {{\"ready\": true}} within {bound:?}"),
    }
}
