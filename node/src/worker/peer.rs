//! The peer listener: requests from other workers for Pods of this one.
//!
//! A connection begins with mutual TLS; the certificate must be of the traffic authority and name a
//! worker (see `tls`). A request names its Pod in the header `wherry-pod`; only Pods of this worker
//! are called, nothing is passed on. What is not answered by a guest carries `wherry-refused`, so
//! that the sender can try another endpoint; a guest cannot set that header.

use std::{convert::Infallible, io, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wherry_wasi_shim::{Body, BodyError};

use super::{
    datagrams::DATAGRAM_HEADER,
    listen::{self, Closing},
    opening::Opening,
    peers::{CONNECTION_WINDOW, STREAM_WINDOW, STREAMS_MAX},
    policy::Caller,
    record::Sender,
    reply::Reply,
    streams::STREAM_HEADER,
    switch::{FROM_HEADER, POD_HEADER, REFUSED_HEADER, Refusal, Switch},
    tls::{Credentials, PeerIdentity, peer_identity},
};
use crate::protocol::Protocol;

/// From accept to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From there to the end of HTTP/2's preface.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Connections at once: every worker of a large cluster twice over would be too many to hold, and
/// who calls this namespace is few of them.
const CONNECTIONS_MAX: usize = 2048;
/// Headers between workers: those of a client and ours.
const HEAD_BYTES_MAX: u32 = 48 << 10;
/// A dead machine sends no end of connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The listener and its connections.
pub struct PeerListener {
    /// Where it accepts.
    pub address: SocketAddr,
    credentials: Arc<ArcSwap<Credentials>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl PeerListener {
    /// Listens on a port of the system's choice.
    pub fn start(
        switch: Arc<Switch>,
        address: IpAddr,
        credentials: Arc<Credentials>,
    ) -> io::Result<PeerListener> {
        let listener = listen::bind(SocketAddr::new(address, 0))?;
        let address = listener.local_addr()?;
        let credentials = Arc::new(ArcSwap::new(credentials));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let current = credentials.clone();
        let serve = move |stream, remote, closing| {
            serve(switch.clone(), current.load_full(), stream, remote, closing)
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tasks.spawn(listen::accept(listener, stop.clone(), places, serve));
        Ok(PeerListener { address, credentials, stop, tasks })
    }

    /// Uses this identity for connections from now on.
    pub fn identify(&self, credentials: Arc<Credentials>) {
        self.credentials.store(credentials);
    }

    /// When the current identity ends.
    pub fn identity_until(&self) -> jiff::Timestamp {
        self.credentials.load().until
    }

    /// Stops accepting and asks connections to close after the requests they have.
    pub fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// After [`PeerListener::stop`]: ends when all connections have.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }
}

async fn serve(
    switch: Arc<Switch>,
    credentials: Arc<Credentials>,
    stream: TcpStream,
    remote: SocketAddr,
    closing: Closing,
) {
    let acceptor = TlsAcceptor::from(credentials.server.clone());
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%remote, %error, "refused a peer connection");
            return;
        }
        Err(_) => return,
    };
    let peer: PeerIdentity = match peer_identity(stream.get_ref().1.peer_certificates()) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::info!(%remote, %error, "refused a peer connection");
            return;
        }
    };
    tracing::debug!(%remote, node = peer.node, namespace = peer.namespace, "peer connected");
    let namespace: Arc<str> = peer.namespace.into();
    let service = service_fn(move |request| {
        dispatch(switch.clone(), namespace.clone(), remote.ip(), request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX as u32)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let stream = TokioIo::new(Opening::new(stream, SILENCE_MAX));
    let connection = std::pin::pin!(builder.serve_connection(stream, service));
    if let Err(error) = listen::until_closed(connection, closing).await {
        tracing::debug!(%remote, %error, "peer connection ended early");
    }
}

/// Answers one request of a peer.
async fn dispatch(
    switch: Arc<Switch>,
    namespace: Arc<str>,
    remote: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let pod = request.headers_mut().remove(POD_HEADER);
    let address = pod.as_ref().and_then(|pod| pod.to_str().ok()?.parse::<SocketAddr>().ok());
    let Some(address) = address else {
        return Ok(refused(&Refusal::BadRequest));
    };
    let said = request.headers_mut().remove(FROM_HEADER);
    // Without policies nobody asks who it is.
    let caller = match switch.policies().is_empty() {
        true => Caller::outside(remote),
        false => Caller::of_peer(said.as_ref(), &namespace, remote),
    };
    if request.headers().contains_key(STREAM_HEADER) {
        let accepted = switch.accept_stream(&caller, address, request);
        return Ok(accepted.unwrap_or_else(|refusal| refused(&refusal)));
    }
    if request.headers().contains_key(DATAGRAM_HEADER) {
        let accepted = switch.accept_datagrams(&caller, address, request);
        return Ok(accepted.unwrap_or_else(|refusal| refused(&refusal)));
    }
    if let Err(refusal) = switch.permit(&caller, address, Protocol::Tcp) {
        return Ok(refused(&refusal));
    }
    let Some(served) = switch.served(address) else {
        let request = request.map(|body| Body::new(body.map_err(BodyError::new)));
        return Ok(match switch.exchange(address, request, None).await {
            Ok(mut response) => {
                response.headers_mut().remove(REFUSED_HEADER);
                response
            }
            Err(refusal) => refused(&refusal),
        });
    };
    let mut flight = served.enter();
    request.extensions_mut().insert(Sender::Peer);
    let request = request.map(|body| Body::new(body.map_err(BodyError::new)));
    match flight.handle(request).await {
        Ok(mut response) => {
            response.headers_mut().remove(REFUSED_HEADER);
            Ok(response.map(|body| Reply::Guest { body, flight }))
        }
        Err(error) => Ok(refused(&Refusal::from(error))),
    }
}

fn refused(refusal: &Refusal) -> Response<Reply> {
    let mut response = Response::new(Reply::Text(Bytes::new()));
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(REFUSED_HEADER, refusal.word());
    response
}
