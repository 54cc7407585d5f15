//! A line to a server that can be cut or held: what a bad network does to a download.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::Outcome;

/// What passes together, in bytes: the grain of [`Relay::let_pass`].
const PIECE: usize = 16 * 1024;

/// Passes connections on to a server, and cuts one after a number of bytes, as often as told.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cuts: Arc<Mutex<Cuts>>,
    gate: Arc<Semaphore>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Cuts {
    every: usize,
    passed: usize,
    left: usize,
    done: usize,
}

impl Relay {
    /// Starts to pass connections on to `server`. After each `every` bytes from the server, counted over all
    /// connections, the connection that carries them is cut; `times` in all. Errors: no free port.
    pub async fn start(server: SocketAddr, every: usize, times: usize) -> Outcome<Self> {
        let relay = Self::held(server, every, times).await?;
        relay.open();
        Ok(relay)
    }

    /// The same, but nothing comes back from the server until [`Relay::let_pass`] or [`Relay::open`]. Errors: no free port.
    pub async fn held(server: SocketAddr, every: usize, times: usize) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cuts = Arc::new(Mutex::new(Cuts {
            every,
            passed: 0,
            left: times,
            done: 0,
        }));
        let gate = Arc::new(Semaphore::new(0));
        let passing = (Arc::clone(&cuts), Arc::clone(&gate));
        let accepting = tokio::spawn(accept(listener, server, passing));
        Ok(Self {
            address,
            cuts,
            gate,
            accepting,
        })
    }

    /// Lets about so many more bytes come back, over all connections.
    pub fn let_pass(&self, bytes: usize) {
        self.gate.add_permits(bytes.div_ceil(PIECE));
    }

    /// Holds nothing back any more.
    pub fn open(&self) {
        self.gate.close();
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many connections were cut so far.
    pub fn cuts(&self) -> usize {
        self.cuts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .done
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    passing: (Arc<Mutex<Cuts>>, Arc<Semaphore>),
) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(upstream) = TcpStream::connect(server).await else {
            continue;
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = upstream.into_split();
        let (cuts, gate) = passing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = upward(from_client, to_server) => {}
                () = downward(from_server, to_client, &cuts, &gate) => {}
            }
        });
    }
}

/// A client that has said all still listens, so this ends only when the server is gone.
async fn upward(mut client: OwnedReadHalf, mut server: OwnedWriteHalf) {
    if tokio::io::copy(&mut client, &mut server).await.is_ok() {
        std::future::pending().await
    }
}

async fn downward(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    cuts: &Mutex<Cuts>,
    gate: &Semaphore,
) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = server.read(&mut buffer).await {
        // A closed gate is an open line.
        if let Ok(piece) = gate.acquire().await {
            piece.forget();
        }
        let allowed = cuts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allow(length);
        if client.write_all(&buffer[..allowed]).await.is_err() || allowed < length {
            return;
        }
    }
}

impl Cuts {
    /// Says how many of the next bytes may pass; fewer than asked for is a cut.
    fn allow(&mut self, length: usize) -> usize {
        let room = self.every - self.passed;
        if self.left == 0 || length <= room {
            self.passed = if self.left == 0 {
                0
            } else {
                self.passed + length
            };
            return length;
        }
        self.left -= 1;
        self.done += 1;
        self.passed = 0;
        room
    }
}
