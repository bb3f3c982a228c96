//! Members talking to each other: HTTP/2 under mutual TLS, on the same port as everything else.
//!
//! ```text
//!  Store ─ Transport ─► Peers ─ lane ─► TLS "member-3.peer…" ─► router ─► Store::handle_peer
//!  apiserver ─ forward ─► Peers ─ lane ─────────────────────► router ─► the API, as the same user
//! ```
//!
//! Who is who: the called member's certificate must carry the name of the id that is called, which
//! the handshake checks; the caller's certificate says who calls, and the store compares it with
//! what the request claims.
//!
//! There are two lanes to each member, so that a heartbeat never waits behind a snapshot. A lane is
//! one connection, made when it is first needed and again when it broke. Connecting is a task of
//! its own: a caller that gives up does not undo it for the next.
//!
//! An error's kind tells the store whether a request was surely not delivered: connecting failed
//! (`NotConnected`, `ConnectionRefused`), or the other is not who it should be (`PermissionDenied`).
//! Any other kind means that it may have been.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use wherry_store::{Leadership, MemberId, MemberStatus, PEER_BYTES_MAX, Peer, Store, Transport};

use crate::apiserver::{ApiServer, User};
use crate::pki;

/// Where a member takes what another member's store says.
const PATH: &str = "/wherry/v1/peer";
/// Where a member is told that it is one no more.
const REMOVED: &str = "/wherry/v1/peer/removed";
/// A member that is away hears it from nobody; it finds no leader when it comes back.
const REMOVED_TIMEOUT: Duration = Duration::from_secs(2);
/// The user for whom another member passes a request on, as JSON in base64.
const USER: HeaderName = HeaderName::from_static("x-wherry-user");
/// Requests larger than this go by the lane for bulk.
const BULK_BYTES: usize = 128 << 10;
/// A member that is not reached in this time is away for now; longer than a handshake takes on a
/// busy machine. One that comes back is found by the next attempt, so a longer time would only
/// prolong a partition that has ended.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection on which nothing comes back for the sum of these is given up: after a partition
/// TCP's own attempts are seconds apart, a new connection is there at once.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// As `serve` has them for the other side.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME_BYTES: u32 = 256 << 10;
/// A request that one member passes on for a client; the API's own limit is below it.
const FORWARD_BYTES_MAX: usize = 8 << 20;

/// Request extension of the listener: the member whose certificate was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerMember(pub MemberId);

/// Request extension: another member has passed this request on, so it goes no further.
#[derive(Clone, Copy, Debug)]
pub struct PassedOn;

/// The other members, for whoever passes requests on to them.
#[derive(Clone)]
pub struct Others {
    pub peers: Peers,
    /// All members, as they were a moment ago.
    pub members: watch::Receiver<Vec<MemberStatus>>,
}

impl Others {
    /// Where the leader is, if it is known and not this member.
    pub fn leader(&self, store: &Store) -> Option<Peer> {
        match *store.leadership().borrow() {
            Leadership::Follower { leader: Some(leader) } => self.peer(leader),
            Leadership::Follower { leader: None } | Leadership::Leader { .. } => None,
        }
    }

    /// All members but this one.
    pub fn all(&self, store: &Store) -> Vec<Peer> {
        let members = self.members.borrow();
        let others = members.iter().filter(|member| member.id != store.member_id());
        others.map(peer).collect()
    }

    fn peer(&self, id: MemberId) -> Option<Peer> {
        self.members.borrow().iter().find(|member| member.id == id).map(peer)
    }
}

fn peer(member: &MemberStatus) -> Peer {
    Peer { id: member.id, address: member.address.clone() }
}

type Sender = http2::SendRequest<Full<Bytes>>;

/// An [`io::Error`] that several callers may have.
#[derive(Clone, Debug)]
struct Failure(ErrorKind, String);

impl From<Failure> for io::Error {
    fn from(Failure(kind, text): Failure) -> io::Error {
        io::Error::new(kind, text)
    }
}

struct Lane {
    /// Tells a lane from the one that follows it.
    id: u64,
    address: String,
    connected: Shared<BoxFuture<'static, Result<Sender, Failure>>>,
}

/// The calling side. Clones are the same one.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    tls: TlsConnector,
    /// By member and whether it is the lane for bulk. A plain mutex: sections are a map operation
    /// long and never await.
    lanes: Mutex<HashMap<(MemberId, bool), Lane>>,
    next: AtomicU64,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Peers {
    /// Nothing is connected yet. Connections end with the shutdown.
    pub fn new(tls: rustls::ClientConfig, shutdown: CancellationToken) -> Peers {
        Peers(Arc::new(Inner {
            tls: TlsConnector::from(Arc::new(tls)),
            lanes: Mutex::default(),
            next: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            shutdown,
        }))
    }

    /// What the store calls other members with.
    pub fn transport(&self) -> Transport {
        let peers = self.clone();
        Arc::new(move |peer, request| {
            let peers = peers.clone();
            async move { peers.call(peer, request).await }.boxed()
        })
    }

    /// Waits until all connections have ended, which they do after the shutdown.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn call(&self, peer: Peer, request: Bytes) -> io::Result<Bytes> {
        let bulk = request.len() > BULK_BYTES;
        let uri = format!("https://{}{PATH}", pki::peer_name(peer.id));
        let request = http::Request::post(uri).body(Full::new(request));
        let response = self.send(&peer, bulk, request.map_err(io::Error::other)?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), PEER_BYTES_MAX).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes();
        match status {
            StatusCode::OK => Ok(body),
            _ => {
                let why = String::from_utf8_lossy(&body);
                Err(io::Error::other(format!("member {} answered {status}: {why}", peer.id)))
            }
        }
    }

    /// Tells a member that it was removed, if it is there to hear it.
    pub async fn tell_removed(&self, peer: &Peer) {
        let uri = format!("https://{}{REMOVED}", pki::peer_name(peer.id));
        let request = http::Request::post(uri).body(Full::new(Bytes::new()));
        let request = request.expect("a number and constants make a URI");
        match tokio::time::timeout(REMOVED_TIMEOUT, self.send(peer, false, request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(member = peer.id, %error, "not told of its removal"),
            Err(_) => tracing::info!(member = peer.id, "not told of its removal: no answer"),
        }
    }

    /// Passes a client's request on to another member, which answers it as for this user.
    pub async fn forward(
        &self,
        peer: &Peer,
        user: &User,
        request: http::Request<Bytes>,
    ) -> io::Result<http::Response<Incoming>> {
        let (mut parts, body) = request.into_parts();
        let user = serde_json::to_vec(user).map_err(io::Error::other)?;
        let user = HeaderValue::try_from(BASE64.encode(user)).map_err(io::Error::other)?;
        parts.headers.insert(USER, user);
        for hop in [http::header::HOST, http::header::CONNECTION, http::header::AUTHORIZATION] {
            parts.headers.remove(hop);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("https://{}{path}", pki::peer_name(peer.id));
        parts.uri = uri.parse().map_err(io::Error::other)?;
        parts.version = http::Version::HTTP_2;
        parts.extensions = http::Extensions::new();
        let bulk = body.len() > BULK_BYTES;
        self.send(peer, bulk, http::Request::from_parts(parts, Full::new(body))).await
    }

    async fn send(
        &self,
        peer: &Peer,
        bulk: bool,
        request: http::Request<Full<Bytes>>,
    ) -> io::Result<http::Response<Incoming>> {
        let mut sender = self.sender(peer, bulk).await?;
        let delivered = |error: hyper::Error| {
            let kind = if error.is_canceled() { ErrorKind::NotConnected } else { ErrorKind::Other };
            io::Error::new(kind, error)
        };
        sender.send_request(request).await.map_err(delivered)
    }

    /// A connection to the member, made anew if the last one has ended.
    async fn sender(&self, peer: &Peer, bulk: bool) -> io::Result<Sender> {
        let key = (peer.id, bulk);
        for _ in 0..2 {
            let (id, connected) = self.lane(peer, bulk);
            let result = connected.await;
            match result {
                Ok(mut sender) if !sender.is_closed() => {
                    if sender.ready().await.is_ok() {
                        return Ok(sender);
                    }
                    self.forget(key, id);
                }
                Ok(_) => self.forget(key, id),
                Err(failure) => {
                    self.forget(key, id);
                    return Err(failure.into());
                }
            }
        }
        let text = format!("the connection to member {} breaks at once", peer.id);
        Err(io::Error::new(ErrorKind::NotConnected, text))
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<(MemberId, bool), Lane>> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: (MemberId, bool), id: u64) {
        let mut lanes = self.lanes();
        if lanes.get(&key).is_some_and(|lane| lane.id == id) {
            lanes.remove(&key);
        }
    }

    fn lane(
        &self,
        peer: &Peer,
        bulk: bool,
    ) -> (u64, Shared<BoxFuture<'static, Result<Sender, Failure>>>) {
        let mut lanes = self.lanes();
        let held = lanes.get(&(peer.id, bulk)).filter(|lane| lane.address == peer.address);
        if let Some(lane) = held {
            return (lane.id, lane.connected.clone());
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let connecting = self.0.tasks.spawn(self.clone().connect(peer.clone()));
        let connected = async move {
            connecting.await.unwrap_or_else(|_| {
                Err(Failure(ErrorKind::NotConnected, "the member is being stopped".to_owned()))
            })
        };
        let connected = connected.boxed().shared();
        let lane = Lane { id, address: peer.address.clone(), connected: connected.clone() };
        lanes.insert((peer.id, bulk), lane);
        (id, connected)
    }

    /// Connects and leaves a task behind that drives the connection.
    async fn connect(self, peer: Peer) -> Result<Sender, Failure> {
        let dial = self.clone().dial(peer.clone());
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(CONNECT_TIMEOUT, dial) => outcome,
            () = self.0.shutdown.cancelled() => {
                return Err(Failure(ErrorKind::NotConnected, "shutting down".to_owned()));
            }
        };
        let late = || format!("member {} does not take a connection in time", peer.id);
        let outcome = outcome.unwrap_or_else(|_| Err(Failure(ErrorKind::NotConnected, late())));
        if let Err(Failure(_, why)) = &outcome {
            tracing::debug!(member = peer.id, address = peer.address, why, "no peer connection");
        }
        outcome
    }

    async fn dial(self, peer: Peer) -> Result<Sender, Failure> {
        let failure = |error: io::Error| {
            let stranger = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let kind = match stranger {
                Some(rustls::Error::InvalidCertificate(_)) => ErrorKind::PermissionDenied,
                _ if error.kind() == ErrorKind::ConnectionRefused => ErrorKind::ConnectionRefused,
                _ => ErrorKind::NotConnected,
            };
            Failure(kind, format!("member {} at {}: {error}", peer.id, peer.address))
        };
        let stream = TcpStream::connect(&peer.address).await.map_err(failure)?;
        stream.set_nodelay(true).map_err(failure)?;
        let name = ServerName::try_from(pki::peer_name(peer.id));
        let name = name.expect("a number between letters and dots is a name");
        let stream = self.0.tls.connect(name, stream).await.map_err(failure)?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(io::Error::other).map_err(failure)?;
        tracing::debug!(member = peer.id, address = peer.address, "peer connection open");
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(member = peer.id, %error, "peer connection broke");
                },
                () = shutdown.cancelled() => {}
            }
        });
        Ok(sender)
    }
}

/// The called side. Its requests carry [`PeerMember`], or nothing came through the listener.
///
/// `removed` is cancelled when another member says that this one is a member no more.
pub fn router(api: ApiServer, store: Store, removed: CancellationToken) -> Router {
    let passed_on = api.router();
    Router::new()
        .route(PATH, post(handle))
        .with_state(store)
        .route(REMOVED, post(move |request| hear_removed(removed, request)))
        .fallback(move |request| answer(passed_on.clone(), request))
}

async fn handle(State(store): State<Store>, request: Request) -> Response {
    let Some(PeerMember(from)) = request.extensions().get::<PeerMember>().copied() else {
        return StatusCode::FORBIDDEN.into_response();
    };
    match Limited::new(request.into_body(), PEER_BYTES_MAX).collect().await {
        Ok(body) => store.handle_peer(from, body.to_bytes()).await.into_response(),
        Err(error) => (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()).into_response(),
    }
}

async fn hear_removed(removed: CancellationToken, request: Request) -> StatusCode {
    let Some(PeerMember(from)) = request.extensions().get::<PeerMember>().copied() else {
        return StatusCode::FORBIDDEN;
    };
    tracing::warn!(from, "this member was removed");
    removed.cancel();
    StatusCode::OK
}

/// Answers a request that another member has passed on, as for its user. The caller is a member, so
/// its word for who the user is counts.
async fn answer(api: Router, mut request: Request) -> Response {
    let is_peer = request.extensions().get::<PeerMember>().is_some();
    let user = request.headers_mut().remove(USER);
    let user = user.and_then(|user| BASE64.decode(user.as_bytes()).ok());
    let user = user.and_then(|user| serde_json::from_slice::<User>(&user).ok());
    let Some(user) = user.filter(|_| is_peer) else {
        return StatusCode::FORBIDDEN.into_response();
    };
    request.extensions_mut().insert(user);
    request.extensions_mut().insert(PassedOn);
    let request = request.map(|body| Body::new(Limited::new(body, FORWARD_BYTES_MAX)));
    match api.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
