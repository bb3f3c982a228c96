//! The one port: accepts connections, shakes hands, and serves each with the router that is for it.
//!
//! ```text
//!             ┌─ name of a peer: peer authority, certificate needed ─► PeerMember ─► peer router
//!  TLS hello ─┤
//!             └─ any other name: cluster authority, optional ─► PeerCertificate ─► API router
//! ```
//!
//! The handshake's server name decides which certificate is shown and whose clients are trusted, so
//! a member's key opens nothing at the API, and a client's key nothing between members.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::patience::{Limits, Patient};
use crate::apiserver::{PeerAddress, PeerCertificate};
use crate::peer::PeerMember;
use crate::pki;

/// A client that does not finish its TLS handshake in this time is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for who has shaken hands and says nothing; who takes nothing of what it is sent is given
/// up when the kernel would give up one that is gone.
const PATIENCE: Limits = Limits { first: HANDSHAKE_TIMEOUT, stalled: Duration::from_secs(15 * 60) };
/// The header of a request over HTTP/1.1 must be whole so long after the answer before it: as long as
/// a stock server takes for one. This also ends connections that nobody uses, and a client that waits
/// some seconds between two requests is to find its own open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// Open connections at most, so that a flood of them cannot use up the process's file descriptors.
const CONNECTIONS_MAX: usize = 12_000;
/// Streams on one HTTP/2 connection: a client's watches share one connection, and each holds a
/// stream.
const STREAMS_MAX: u32 = 1_000;
/// A request's header block; kubectl sends well below 8 KiB.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// How long open connections may go on after a shutdown was asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What a member may send before it has to wait: a piece of a snapshot on each of a few streams.
const PEER_STREAM_WINDOW: u32 = 4 << 20;
const PEER_CONNECTION_WINDOW: u32 = 16 << 20;
/// Large frames: fewer wake-ups for large bodies.
const PEER_FRAME_BYTES: u32 = 256 << 10;

/// What one side of the port needs.
#[derive(Clone)]
pub struct Side {
    pub tls: Arc<rustls::ServerConfig>,
    pub router: Router,
}

/// Both sides of the port.
#[derive(Clone)]
pub struct Sides {
    pub clients: Side,
    pub peers: Side,
}

/// Accepts connections until the shutdown, then gives the open ones [`DRAIN_TIMEOUT`] to end.
pub async fn serve(listener: TcpListener, sides: Sides, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: let connections end before the next try.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (sides, graceful) = (sides.clone(), graceful.watcher());
        connections.spawn(async move {
            if let Err(error) = connection(stream, sides, graceful).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    // Refused at once, a client goes to another member; in the backlog it would wait.
    drop(listener);
    connections.close();
    let drained = async {
        graceful.shutdown().await;
        connections.wait().await;
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::info!(open = connections.len(), "closing connections that did not end");
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    sides: Sides,
    graceful: Watcher,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let address = PeerAddress(stream.peer_addr()?);
    let handshake = async {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let is_peer = hello.client_hello().server_name().is_some_and(pki::is_peer_name);
        let side = if is_peer { sides.peers } else { sides.clients };
        let stream = hello.into_stream(side.tls).await?;
        Ok::<_, std::io::Error>((stream, side.router, is_peer))
    };
    let (stream, router, is_peer) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let member = certificate.filter(|_| is_peer).and_then(|leaf| pki::peer_member(leaf));
    if is_peer && member.is_none() {
        return Err("a peer's certificate names no member".into());
    }
    let client = certificate.filter(|_| !is_peer).map(|leaf| PeerCertificate::of(leaf));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(address);
        if let Some(certificate) = &client {
            request.extensions_mut().insert(certificate.clone());
        }
        if let Some(member) = member {
            request.extensions_mut().insert(PeerMember(member));
        }
        router.clone().call(request)
    });
    let builder = builder(is_peer);
    let stream = TokioIo::new(Patient::new(stream, PATIENCE));
    let served = builder.serve_connection_with_upgrades(stream, service);
    graceful.watch(served.into_owned()).await
}

fn builder(is_peer: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    if is_peer {
        builder
            .http2()
            .initial_stream_window_size(PEER_STREAM_WINDOW)
            .initial_connection_window_size(PEER_CONNECTION_WINDOW)
            .max_frame_size(PEER_FRAME_BYTES);
    }
    builder
}
