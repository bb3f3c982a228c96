//! Connections to other workers, of this node and of others: HTTP/2 over mutual TLS.
//!
//! A [`Peer`] is made for each worker that holds an endpoint (see `network`), costs nothing until
//! it is used, and goes, with its connections, when the last table that names it is dropped.
//! Requests share few connections. A broken one is replaced by the next request that needs it;
//! while a peer does not answer, requests fail at once between two attempts, so that a caller can
//! try another endpoint. Where no direct connection comes about, or somebody else is at its end, one is
//! made through a member of the control plane (`relays.rs`); the direct way is tried again later.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use wherry_wasi_shim::{Body, Stream};

use super::relays::Relays;
use super::tls::{Credentials, PeerIdentity, SubjectError, peer_identity};

/// From the first packet to the end of the HTTP/2 handshake. Peers are in one data centre or on one
/// machine; a caller still has time to try others.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the direct way is tried alone.
const HEAD_START: Duration = Duration::from_millis(300);
/// After this time the direct way is tried again, while the relayed connection ends by itself.
const RELAYED_FOR: Duration = Duration::from_secs(60);
/// After a failed attempt nobody tries again for this long.
const DIAL_PAUSE: Duration = Duration::from_millis(500);
/// Requests at once on one connection; what a listener of ours grants (see `peer`).
pub const STREAMS_MAX: usize = 512;
/// Connections to one peer; the product bounds the requests in flight to it.
const CONNECTIONS_MAX: usize = 4;
/// A dead machine sends no end of connection: it is noticed by two missing answers.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// What one stream may hold of what nobody has taken yet, enough for a gigabit over two milliseconds,
/// and all of them together: streams whose readers are stuck leave room for the others.
pub const STREAM_WINDOW: u32 = 256 << 10;
pub const CONNECTION_WINDOW: u32 = STREAMS_MAX as u32 * STREAM_WINDOW;

/// Which worker, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerKey {
    /// Its peer listener.
    pub address: SocketAddr,
    /// Namespace that its certificate must name.
    pub namespace: String,
    /// Node that its certificate must name.
    pub node: String,
}

/// All peers that any table names.
#[derive(Clone, Default)]
pub struct Peers {
    /// Locked only while a table is built.
    known: Arc<Mutex<HashMap<PeerKey, Weak<Peer>>>>,
    shared: Arc<Shared>,
}

/// What all peers have in common.
#[derive(Default)]
struct Shared {
    /// The newest identity; connections keep the one they began with.
    traffic: ArcSwapOption<Credentials>,
    /// One task for each connection.
    tasks: TaskTracker,
    /// Ways for those that cannot be reached.
    relays: Relays,
}

/// One other worker.
pub struct Peer {
    key: PeerKey,
    shared: Arc<Shared>,
    connections: ArcSwap<Vec<Arc<Connection>>>,
    /// Held while connecting: at most one attempt at a time, the others wait for its outcome.
    dialing: tokio::sync::Mutex<Option<Failure>>,
}

/// The last failed attempt.
struct Failure {
    at: Instant,
    why: String,
}

struct Connection {
    sender: http2::SendRequest<Body>,
    streams: AtomicUsize,
    /// Of a relayed one: from when on it takes no more requests.
    until: Option<Instant>,
}

impl Connection {
    /// Whether it takes requests.
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Counts a request on its connection from sending to the end of the response's body.
pub struct StreamGuard(Arc<Connection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a peer gave no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection; the request was not sent.
    #[error("{peer} at {address} cannot be reached: {why}")]
    Unreachable {
        /// Whom.
        peer: String,
        /// Where.
        address: SocketAddr,
        /// For people.
        why: String,
    },
    /// All connections are full; the request was not sent.
    #[error("there are already {0} requests under way to {1}")]
    Full(usize, String),
    /// The connection broke after the request was (or may have been) sent.
    #[error("the connection to {peer} broke: {why}")]
    Lost {
        /// Whom.
        peer: String,
        /// For people.
        why: String,
    },
}

impl Peers {
    /// The one peer of this key.
    pub fn get(&self, key: PeerKey) -> Arc<Peer> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get(&key).and_then(Weak::upgrade) {
            return peer;
        }
        let peer = Arc::new(Peer {
            key: key.clone(),
            shared: self.shared.clone(),
            connections: ArcSwap::default(),
            dialing: tokio::sync::Mutex::new(None),
        });
        known.insert(key, Arc::downgrade(&peer));
        peer
    }

    /// Drops the keys of peers that no table names any more.
    pub fn forget_unused(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, peer| peer.strong_count() > 0);
    }

    /// Uses this identity for connections from now on.
    pub fn identify(&self, traffic: Arc<Credentials>) {
        self.shared.traffic.store(Some(traffic));
    }

    /// The ways through a member.
    pub fn relays(&self) -> &Relays {
        &self.shared.relays
    }

    /// Ends when all connections have; call it after the last table is dropped.
    pub async fn closed(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Peer {
    /// Sends one request and waits for the head of the response. Dropping the future, or the
    /// response's body, cancels the request at the peer.
    pub async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, StreamGuard), PeerError> {
        let stream = match self.free() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        match stream.0.sender.clone().try_send_request(request).await {
            Ok(response) => Ok((response, stream)),
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let why = error.error().to_string();
                Err(if unsent { self.unreachable(why) } else { self.lost(why) })
            }
        }
    }

    /// A place on the emptiest living connection.
    fn free(&self) -> Option<StreamGuard> {
        let connections = self.connections.load();
        let emptiest = connections
            .iter()
            .filter(|connection| connection.is_usable())
            .min_by_key(|connection| connection.streams.load(Ordering::Relaxed))?;
        let before = emptiest.streams.fetch_add(1, Ordering::Relaxed);
        let guard = StreamGuard(emptiest.clone());
        (before < STREAMS_MAX).then_some(guard)
    }

    /// Adds a connection, unless somebody else just did.
    async fn connect(&self) -> Result<StreamGuard, PeerError> {
        let mut failure = self.dialing.lock().await;
        if let Some(stream) = self.free() {
            return Ok(stream);
        }
        let mut living: Vec<Arc<Connection>> = self.connections.load().to_vec();
        living.retain(|connection| connection.is_usable());
        if living.len() >= CONNECTIONS_MAX {
            return Err(PeerError::Full(CONNECTIONS_MAX * STREAMS_MAX, self.name()));
        }
        if let Some(last) = failure.as_ref().filter(|last| last.at.elapsed() < DIAL_PAUSE) {
            return Err(self.unreachable(last.why.clone()));
        }
        let outcome = match tokio::time::timeout(DIAL_TIMEOUT, self.dial()).await {
            Ok(outcome) => outcome.map_err(|error| explain(&error)),
            Err(_) => Err(format!("no answer within {DIAL_TIMEOUT:?}")),
        };
        match outcome {
            Ok((sender, relayed)) => {
                *failure = None;
                let until = relayed.then(|| Instant::now() + RELAYED_FOR);
                let streams = AtomicUsize::new(1);
                let connection = Arc::new(Connection { sender, streams, until });
                living.push(connection.clone());
                self.connections.store(Arc::new(living));
                Ok(StreamGuard(connection))
            }
            Err(why) => {
                tracing::info!(peer = %self.key.address, why, "peer unreachable");
                *failure = Some(Failure { at: Instant::now(), why: why.clone() });
                Err(self.unreachable(why))
            }
        }
    }

    /// A connection, and whether it goes through a member.
    async fn dial(&self) -> Result<(http2::SendRequest<Body>, bool), DialError> {
        let traffic = self.shared.traffic.load_full().ok_or(DialError::NoIdentity)?;
        let is_here = traffic.holder.node == self.key.node;
        let (stream, relayed) = self.reach(is_here).await?;
        match self.shake(&traffic, stream).await {
            Ok(sender) => Ok((sender, relayed)),
            Err(error) if relayed || is_here => Err(error),
            // Somebody else has that address where this node is.
            Err(error) => {
                let Ok(stream) = self.relay().await else { return Err(error) };
                Ok((self.shake(&traffic, stream).await?, true))
            }
        }
    }

    /// The bytes of a connection: by its address, or, if that leads nowhere, by a member.
    async fn reach(&self, is_here: bool) -> Result<(Box<dyn Stream>, bool), DialError> {
        let direct = async {
            let stream = TcpStream::connect(self.key.address).await.map_err(DialError::Connect)?;
            stream.set_nodelay(true).map_err(DialError::Connect)?;
            Ok::<_, DialError>((Box::new(stream) as Box<dyn Stream>, false))
        };
        let mut direct = std::pin::pin!(direct);
        match tokio::time::timeout(HEAD_START, direct.as_mut()).await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(error)) if is_here => return Err(error),
            Ok(Err(error)) => return self.relay().await.map(|it| (it, true)).map_err(|_| error),
            Err(_) if is_here => return direct.await,
            Err(_) => {}
        }
        let mut relayed = std::pin::pin!(self.relay());
        tokio::select! {
            reached = direct.as_mut() => match reached {
                Ok(reached) => Ok(reached),
                Err(error) => relayed.await.map(|it| (it, true)).map_err(|_| error),
            },
            found = relayed.as_mut() => match found {
                Ok(stream) => Ok((stream, true)),
                Err(_) => direct.await,
            },
        }
    }

    async fn relay(&self) -> Result<Box<dyn Stream>, String> {
        let PeerKey { node, namespace, .. } = &self.key;
        let opened = self.shared.relays.open(node, namespace).await;
        match opened {
            Ok(stream) => {
                tracing::info!(peer = %self.name(), "reached through a member");
                Ok(Box::new(stream))
            }
            Err(why) => {
                tracing::debug!(peer = %self.name(), why, "no relay");
                Err(why)
            }
        }
    }

    /// TLS and HTTP/2 over the bytes of a connection.
    async fn shake(
        &self,
        traffic: &Credentials,
        stream: Box<dyn Stream>,
    ) -> Result<http2::SendRequest<Body>, DialError> {
        let name = ServerName::from(self.key.address.ip());
        let connector = TlsConnector::from(traffic.client.clone());
        let stream = connector.connect(name, stream).await.map_err(DialError::Tls)?;
        let found = peer_identity(stream.get_ref().1.peer_certificates())?;
        if found.namespace != self.key.namespace || found.node != self.key.node {
            return Err(DialError::Stranger(found));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(DialError::Http)?;
        let address = self.key.address;
        // Ends by itself when the last sender and stream are gone.
        self.shared.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::info!(peer = %address, error = %explain(&error), "peer connection broke");
            }
        });
        Ok(sender)
    }

    fn name(&self) -> String {
        PeerIdentity { node: self.key.node.clone(), namespace: self.key.namespace.clone() }
            .to_string()
    }

    fn unreachable(&self, why: String) -> PeerError {
        PeerError::Unreachable { peer: self.name(), address: self.key.address, why }
    }

    fn lost(&self, why: String) -> PeerError {
        PeerError::Lost { peer: self.name(), why }
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("this worker has no traffic certificate yet")]
    NoIdentity,
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("TLS handshake")]
    Tls(#[source] std::io::Error),
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("it is {0}")]
    Stranger(PeerIdentity),
    #[error("HTTP/2 handshake")]
    Http(#[source] hyper::Error),
}

/// An error and its causes in one line.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
