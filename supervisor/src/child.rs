//! One running process, seen by the supervisor: a queue towards it, and news from it.

use crate::{
    limits::{Cage, Held},
    process,
};
use bus::control;
use contracts::plugin::{FromPlugin, ToPlugin};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::{io, os::fd::OwnedFd, time::Duration};
use tokio::{net::UnixStream, process::Child, sync::mpsc};

/// Most messages that may wait for a process that does not read. Boot and wiring of a large graph fit many times.
const QUEUE: usize = 1024;
/// How long what a dead process said last may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a process that hung up its control link may take to end by itself.
const HANGING_UP: Duration = Duration::from_secs(1);

/// Something a process did. `incarnation` tells it from its predecessors.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) process: usize,
    pub(crate) incarnation: u64,
    pub(crate) what: What,
}

/// What it did.
#[derive(Debug)]
pub(crate) enum What {
    Said(FromPlugin),
    Held(Held),
    HungUp(String),
    Exited(String),
}

/// The handle of one running process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) incarnation: u64,
    handle: Option<OwnedFd>,
    queue: mpsc::Sender<ToPlugin>,
}

/// Begins to write to and hear from `child`, and to watch for its end. It is put into its cage before it hears anything.
pub(crate) fn watch(
    process: usize,
    incarnation: u64,
    child: Child,
    control: std::os::unix::net::UnixStream,
    cage: Option<Cage>,
    news: mpsc::UnboundedSender<News>,
) -> io::Result<Running> {
    let pid = child.id().unwrap_or_default();
    let (sender, receiver) = control::split(UnixStream::from_std(control)?);
    let (queue, waiting) = mpsc::channel(QUEUE);
    let tell = move |what| {
        // The receiver lives as long as the supervisor.
        let _ = news.send(News {
            process,
            incarnation,
            what,
        });
    };
    let held = tell.clone();
    actix::spawn(async move {
        hold(cage, pid, held).await;
        write(sender, waiting).await;
    });
    actix::spawn(hear(child, receiver, tell));
    Ok(Running {
        pid,
        incarnation,
        handle: handle(pid),
        queue,
    })
}

/// A pidfd: a signal through it can never hit a stranger that got the same pid.
fn handle(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

impl Running {
    /// Queues a message. A process that leaves a full queue unread is stuck, and is killed.
    pub(crate) fn send(&self, message: ToPlugin) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(message) {
            tracing::error!(pid = self.pid, "does not read its control link: killed");
            self.kill();
        }
    }

    /// Kills the process. Its end comes as [`What::Exited`].
    pub(crate) fn kill(&self) {
        if let Some(handle) = &self.handle {
            // It may have ended already.
            let _ = rustix::process::pidfd_send_signal(handle, Signal::KILL);
        }
    }
}

/// Putting a process into a cgroup may take tens of milliseconds: meanwhile others go on.
async fn hold(cage: Option<Cage>, pid: u32, tell: impl Fn(What)) {
    let Some(cage) = cage else {
        return;
    };
    match tokio::task::spawn_blocking(move || cage.hold(pid)).await {
        Ok(held) => tell(What::Held(held)),
        Err(e) => tracing::error!(pid, error = %e, "limits"),
    }
}

async fn write(sender: control::Sender<ToPlugin>, mut queue: mpsc::Receiver<ToPlugin>) {
    while let Some(message) = queue.recv().await {
        if sender.send(&message).await.is_err() {
            // Its end is noticed by who hears.
            return;
        }
    }
}

/// Passes on all that the process says, and then how it ended: in that order, so that a reason comes before the exit.
async fn hear(mut child: Child, mut receiver: control::Receiver<FromPlugin>, tell: impl Fn(What)) {
    let status = loop {
        tokio::select! {
            status = child.wait() => {
                let rest = async {
                    while let Ok(Some(said)) = receiver.next().await {
                        tell(What::Said(said));
                    }
                };
                // Bounded, for the link may have been passed on to somebody who lives.
                let _ = tokio::time::timeout(LAST_WORDS, rest).await;
                break status;
            }
            said = receiver.next() => match said {
                Ok(Some(said)) => tell(What::Said(said)),
                Ok(None) => break hung_up(&mut child, "it hung up its control link".into(), &tell).await,
                Err(e) => break hung_up(&mut child, e.to_string(), &tell).await,
            },
        }
    };
    tell(What::Exited(match status {
        Ok(status) => process::ending(status),
        Err(e) => format!("an unknown status: {e}"),
    }));
}

/// Waits for the end, which as a rule is what closed the link.
async fn hung_up(
    child: &mut Child,
    why: String,
    tell: &impl Fn(What),
) -> io::Result<std::process::ExitStatus> {
    if let Ok(status) = tokio::time::timeout(HANGING_UP, child.wait()).await {
        return status;
    }
    tell(What::HungUp(why));
    child.wait().await
}
