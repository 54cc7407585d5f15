//! What shims forward: the ttrpc service that containerd's shims publish their events to.
//!
//! Only what cannot be learned otherwise is used: a kill for lack of memory. An exit is a hint; the open `Wait` of its
//! process brings the same and comes when the output is complete. Everything else tasks knows first, because it asked.
//! The socket has the same path after every restart, so shims that outlive tasks find it again.

use crate::engine::Engine;
use crate::record::Name;
use crate::watch::moment;
use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use contracts::tasks::Exit;
use contracts::{ContainerId, Error, ExecId, Namespace, Result, Timestamp};
use protobuf::Message;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

/// Events that may wait; then shims are held up, which keep what they could not send.
const QUEUE: usize = 1024;
/// How long a `Wait` may come after the event of the same end: it waits for the output.
const HINT: Duration = Duration::from_secs(5);

/// A forwarded event of use.
struct News {
    namespace: String,
    topic: String,
    time: Timestamp,
    event: Vec<u8>,
}

struct Forwarded(mpsc::Sender<News>);

#[async_trait]
impl Events for Forwarded {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.into_option().unwrap_or_default();
        if matches!(envelope.topic.as_str(), "/tasks/exit" | "/tasks/oom") {
            let news = News {
                namespace: envelope.namespace,
                topic: envelope.topic,
                time: moment(envelope.timestamp.as_ref()),
                event: envelope.event.into_option().unwrap_or_default().value,
            };
            // The receiver goes when the plugin stops: its successor gets what is sent again.
            self.0
                .send(news)
                .await
                .map_err(|_| ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "tasks is stopping"))
                .map_err(ttrpc::Error::RpcStatus)?;
        }
        Ok(Empty::default())
    }
}

/// The socket's file, which goes with this unless a successor's is there.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path) == Some(self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|file| file.ino())
}

/// Opens the socket. It must stand before any shim starts. Errors: `Internal` naming the path.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let about = |e: std::io::Error| Error::internal(format!("{}: {e}", path.display()));
    // A predecessor's file would be in the way.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(about)?;
    listener.set_nonblocking(true).map_err(about)?;
    let file = SocketFile {
        path: path.into(),
        inode: inode(path).unwrap_or_default(),
    };
    Ok((listener, file))
}

/// Takes events as long as the engine lives.
pub(crate) fn serve((listener, file): (UnixListener, SocketFile), engine: &Rc<Engine>) {
    engine.socket.replace(Some(file));
    let (sender, mut queue) = mpsc::channel(QUEUE);
    let weak = Rc::downgrade(engine);
    engine.keep(tokio::task::spawn_local(async move {
        let _server = match start(listener, sender).await {
            Ok(server) => server,
            Err(error) => return tracing::error!(%error, "events of shims are not heard"),
        };
        while let Some(news) = queue.recv().await {
            let Some(engine) = weak.upgrade() else { return };
            if let Err(error) = take(&engine, &news).await {
                tracing::warn!(topic = news.topic, %error, "a shim's event was not taken");
            }
        }
    }));
}

async fn start(listener: UnixListener, sender: mpsc::Sender<News>) -> Result<Server> {
    let about = |e: String| Error::internal(format!("events of shims: {e}"));
    let listener = Listener::try_from(listener).map_err(|e| about(e.to_string()))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_events(Arc::new(Forwarded(sender))));
    server.start().await.map_err(|e| about(e.to_string()))?;
    Ok(server)
}

async fn take(engine: &Rc<Engine>, news: &News) -> Result<()> {
    let namespace = Namespace::new(news.namespace.clone())?;
    let broken = |e| Error::invalid(format!("event {}: {e}", news.topic));
    if news.topic == "/tasks/oom" {
        let event = TaskOOM::parse_from_bytes(&news.event).map_err(broken)?;
        let id = ContainerId::new(event.container_id)?;
        return Ok(engine.store.oom(&Name { namespace, id }, news.time).await?);
    }
    let event = TaskExit::parse_from_bytes(&news.event).map_err(broken)?;
    let id = ContainerId::new(event.container_id.clone())?;
    let exec = match event.id == event.container_id {
        true => None,
        false => Some(ExecId::new(event.id)?),
    };
    let exit = Exit {
        exit_code: event.exit_status,
        exited_at: moment(event.exited_at.as_ref()),
    };
    hint(engine, Name { namespace, id }, exec, exit);
    Ok(())
}

/// Takes an end by its event when no `Wait` brings it.
fn hint(engine: &Rc<Engine>, name: Name, exec: Option<ExecId>, exit: Exit) {
    let weak: Weak<Engine> = Rc::downgrade(engine);
    let Ok((live, tracked)) = engine.tracked(&name, exec.as_ref()) else {
        return;
    };
    if tracked.exit().borrow().is_some() {
        return;
    }
    let waiting = Rc::downgrade(&live);
    let errand = tokio::task::spawn_local(async move {
        let mut seen = tracked.exit();
        if tokio::time::timeout(HINT, seen.wait_for(Option::is_some))
            .await
            .is_ok()
        {
            return;
        }
        if let (Some(engine), Some(live)) = (weak.upgrade(), waiting.upgrade()) {
            engine.ended(&live, exec.as_ref(), &tracked, exit).await;
        }
    });
    live.keep(errand.abort_handle());
}
