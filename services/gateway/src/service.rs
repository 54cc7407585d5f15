//! The actor: keeps the listeners. It answers nothing on the bus.

use crate::config::Config;
use crate::edge::Edge;
use crate::metrics::Metrics;
use crate::news::News;
use crate::router::Table;
use crate::token::Token;
use crate::waits::Waits;
use crate::{routes, serve};
use actix::{Actor, Context};
use bus::{Boot, Routes};
use contracts::{Error, Result};
use std::{net::SocketAddr, rc::Rc, time::Duration, time::Instant};
use tokio::task::JoinHandle;

/// How long a predecessor may hold an address still.
const LETTING_GO: Duration = Duration::from_secs(1);
/// Between two attempts to take it over.
const BREATH: Duration = Duration::from_millis(5);

/// Keeps the listeners; they close when it ends.
pub(crate) struct GatewayService {
    listeners: Vec<JoinHandle<()>>,
}

impl Actor for GatewayService {
    type Context = Context<Self>;
}

impl Drop for GatewayService {
    fn drop(&mut self) {
        self.listeners.iter().for_each(JoinHandle::abort);
    }
}

/// It answers no message.
pub(crate) fn routes() -> Routes<GatewayService> {
    Routes::default()
}

impl GatewayService {
    /// Opens what the settings ask for and begins to answer.
    ///
    /// Errors: `InvalidArgument` or `FailedPrecondition` naming the setting.
    pub(crate) fn start(boot: Boot<Config>) -> Result<Self> {
        let (addresses, tls) = (boot.config.addresses()?, boot.config.tls()?);
        let token_file = boot.config.token_file(boot.root());
        let edge = Rc::new(Edge {
            bus: boot.bus,
            busy: boot.busy,
            table: Table::new(routes::all()),
            metrics: Metrics::default(),
            waits: Waits::default(),
            news: News::default(),
            heartbeat: Duration::from_secs(boot.config.heartbeat_seconds.max(1)),
        });
        let mut service = Self {
            listeners: Vec::new(),
        };
        for socket in boot.sockets {
            service.unix(&edge, socket)?;
        }
        if !addresses.is_empty() {
            let token = Rc::new(Token::of(&token_file)?);
            for address in addresses {
                let listener = listen(address)?;
                let served = serve::tcp(edge.clone(), listener, token.clone(), tls.clone());
                service.listeners.push(actix::spawn(served));
            }
        }
        Ok(service)
    }

    fn unix(&mut self, edge: &Rc<Edge>, socket: contracts::Fd) -> Result<()> {
        let adopt = || {
            let listener = std::os::unix::net::UnixListener::from(socket.into_owned()?);
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        let listener = adopt().map_err(|e| Error::internal(format!("listening socket: {e}")))?;
        self.listeners
            .push(actix::spawn(serve::unix(edge.clone(), listener)));
        Ok(())
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// Opens a TCP listener. A predecessor that retires lets go of the address as soon as it hears of it.
fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener> {
    let open = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    let patience = Instant::now() + LETTING_GO;
    let mut listener = open();
    while listener.as_ref().is_err_and(is_taken) && Instant::now() < patience {
        std::thread::sleep(BREATH);
        listener = open();
    }
    listener.map_err(|e| Error::precondition(format!("listen {address}: {e}")))
}
