//! Listeners and connections, all on the plugin's one thread.
//!
//! The bus handle belongs to that thread, so actix-web's own server, which makes a thread per worker, is of no use here:
//! each accepted connection is a local task that drives the HTTP/1 service directly.

use crate::edge::Edge;
use crate::tls::{self, Acceptor};
use crate::token::Token;
use crate::visit::{Line, Visit};
use actix_http::HttpService;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, map_config};
use actix_web::dev::AppConfig;
use actix_web::{App, HttpRequest, web};
use std::{net::SocketAddr, rc::Rc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// How long a client may take to send its request head.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection stays open between two requests.
const IDLE: Duration = Duration::from_secs(75);
/// How long to wait when no descriptor is left for another connection.
const BREATH: Duration = Duration::from_millis(50);

/// Answers connections of a Unix socket, where the file's mode decides who may ask.
pub(crate) async fn unix(edge: Rc<Edge>, listener: UnixListener) {
    let busy = edge.busy.clone();
    let serve = connections(edge, None).await;
    loop {
        let accepted = tokio::select! {
            biased;
            // The socket stays open elsewhere: who connects now is answered by the successor.
            () = busy.ending() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => serve(Box::new(stream), None),
            Err(error) => rest(&error).await,
        }
    }
}

/// Answers connections of a TCP listener, where requests show the token unless the connection shows a client certificate.
pub(crate) async fn tcp(
    edge: Rc<Edge>,
    listener: TcpListener,
    token: Rc<Token>,
    tls: Option<Acceptor>,
) {
    let busy = edge.busy.clone();
    let known = Rc::new(connections(edge.clone(), None).await);
    let serve = Rc::new(connections(edge, Some(token)).await);
    loop {
        let accepted = tokio::select! {
            biased;
            () = busy.ending() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                rest(&error).await;
                continue;
            }
        };
        // Only the latency of small answers is lost when it does not work.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            serve(Box::new(stream), Some(peer));
            continue;
        };
        let (serve, known) = (serve.clone(), known.clone());
        actix::spawn(async move {
            match tokio::time::timeout(HEAD, tls.accept(stream)).await {
                Ok(Ok(stream)) if tls::known(&stream) => known(Box::new(stream), Some(peer)),
                Ok(Ok(stream)) => serve(Box::new(stream), Some(peer)),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "tls handshake"),
                Err(_) => tracing::debug!(%peer, "tls handshake takes too long"),
            }
        });
    }
}

async fn rest(error: &std::io::Error) {
    tracing::warn!(%error, "accept");
    tokio::time::sleep(BREATH).await;
}

/// A connection of any kind.
trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}
type Stream = Box<dyn Wire>;

/// Makes the function that takes connections over.
async fn connections(
    edge: Rc<Edge>,
    token: Option<Rc<Token>>,
) -> impl Fn(Stream, Option<SocketAddr>) {
    let busy = edge.busy.clone();
    let app = move || {
        let (edge, token) = (edge.clone(), token.clone());
        App::new().default_service(web::to(move |http: HttpRequest, body: web::Payload| {
            let (edge, token) = (edge.clone(), token.clone());
            async move {
                let asking = http.conn_data::<Rc<Visit>>().map(Visit::ask);
                let busy = edge.busy.clone();
                let response = edge.handle(http, body, token.as_deref()).await;
                match asking {
                    Some(asking) => asking.answer(response, &busy),
                    None => response,
                }
            }
        }))
    };
    let app = map_config(app().into_factory(), |()| AppConfig::default());
    let service = HttpService::build()
        .keep_alive(IDLE)
        .client_request_timeout(HEAD)
        // A client that stopped listening is gone: what was done for it is dropped.
        .h1_allow_half_closed(false)
        .on_connect_ext(|line: &Line<Stream>, data: &mut actix_http::Extensions| {
            data.insert(line.visit.clone());
        })
        .h1(app)
        .new_service(())
        .await
        .map(Rc::new);
    move |stream, peer| {
        let Ok(service) = service.clone() else {
            return tracing::error!("the HTTP service could not be made");
        };
        let busy = busy.clone();
        actix::spawn(async move {
            let _open = busy.enter();
            let visit = Rc::<Visit>::default();
            let line = Line {
                io: stream,
                visit: visit.clone(),
            };
            tokio::select! {
                served = service.call((line, peer)) => if let Err(error) = served {
                    tracing::debug!(%error, "connection");
                },
                () = visit.over(&busy) => {}
            }
        });
    }
}
