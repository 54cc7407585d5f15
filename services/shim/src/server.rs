//! The long-running part: one thread, one socket, until told to stop.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::transport::Listener;

use crate::args::ShimArgs;
use crate::events::Publisher;
use crate::shim::Shim;
use crate::{sys, task};

/// How long waiting events may hold up the end.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// How long answers that are being written may.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// Serves until `Shutdown`.
pub(crate) fn serve(args: &ShimArgs, listener: UnixListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(until_stopped(args, listener));
    // Pumps of processes that outlive us end here; nothing else is left to do.
    runtime.shutdown_background();
    served
}

async fn until_stopped(args: &ShimArgs, listener: UnixListener) -> io::Result<()> {
    let address = std::env::var("TTRPC_ADDRESS").ok();
    let events = Publisher::new(&args.namespace, address.as_deref());
    let shim = Arc::new(Shim::new(
        &args.namespace,
        &args.id,
        args.bundle.clone(),
        events.clone(),
    ));
    let mut children = signal(SignalKind::child())?;
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(task::services(&shim));
    server.start().await.map_err(io::Error::other)?;
    tokio::spawn(events.clone().deliver());
    sys::trim_heap();
    loop {
        tokio::select! {
            _ = children.recv() => shim.reap(),
            () = shim.stop.notified() => break,
        }
    }
    faults::point("shim.shutdown.told");
    events.flush(LAST_EVENTS).await;
    let _ = tokio::time::timeout(LAST_ANSWERS, server.shutdown()).await;
    Ok(())
}

/// Removes what a server leaves beside its bundle.
pub(crate) fn sweep(bundle: &Path, socket: &Path) {
    for path in [
        socket.to_path_buf(),
        bundle.join("address"),
        bundle.join("shim.pid"),
    ] {
        let _ = std::fs::remove_file(path);
    }
}
