//! The switch: takes a request to a guest, wherever that guest is.
//!
//! Everything a request needs is in two snapshots, the [`Table`] of Services and the
//! [`LocalPods`]; both are replaced as a whole by the worker's main task and read without locks.
//! A request takes two steps of ours: who received it (`front`, or the [`Outgoing`] of a guest)
//! resolves where it goes, and [`Switch::send`] calls the guest, or the peer that holds it.
//!
//! A request is tried at another endpoint when the first refused it without having begun: the Pod
//! is gone or busy, or its node cannot be reached. Once a guest could have seen any of it, only a
//! request without effects (GET and the like, without a body) is tried again.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use wherry_wasi_shim::{Body, BodyError, HandleError, Handler, Steps};

use super::{
    network::{Destination, Here, Place, ResolveError, Table, pick},
    peers::{PeerError, StreamGuard},
    ports::Ports,
    record::{Begun, Outcome, Record},
};

/// Names the Pod that a request between workers is for: `ip:port`.
pub const POD_HEADER: HeaderName = HeaderName::from_static("wherry-pod");
/// On a response between workers: not the guest answered, but its worker, for the reason named
/// here (see [`Refusal::word`]).
pub const REFUSED_HEADER: HeaderName = HeaderName::from_static("wherry-refused");

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Endpoints that one request is tried at: enough to step over a node that just died and a busy
/// Pod, few enough not to multiply an overload.
const ATTEMPTS_MAX: usize = 3;

/// A running handler container.
pub struct Served {
    handler: Handler,
    record: Arc<Record>,
    requests: AtomicU64,
    /// From arrival to the end of the response's body.
    in_flight: AtomicUsize,
    /// When the container began to serve: times below are counted from here.
    since: Instant,
    /// Time that ended requests took, in nanoseconds.
    ended_ns: AtomicU64,
    /// The sum of when those in flight arrived, in nanoseconds; it wraps.
    arrived_ns: AtomicU64,
    /// Set when the last request in flight should be told to `idle`.
    leaving: AtomicBool,
    idle: Notify,
    /// Set when what is still in flight is cut off.
    cut: AtomicBool,
}

/// One request in flight; it keeps the container from being idle until dropped.
pub struct InFlight {
    served: Arc<Served>,
    arrived_ns: u64,
    /// What goes into the record when it has ended.
    watched: Option<Watched>,
}

/// A request that is recorded.
struct Watched {
    begun: Begun,
    steps: Arc<Steps>,
    outcome: Outcome,
    /// The most that were in flight with it, as far as it saw.
    peak: usize,
}

/// The Pods of this worker that serve, by address.
#[derive(Default, Clone)]
pub struct LocalPods(HashMap<IpAddr, Vec<Listener>>);

/// One port of a Pod.
#[derive(Clone)]
struct Listener {
    /// None: every port that no other container has declared.
    port: Option<u16>,
    served: Arc<Served>,
}

/// Reads snapshots, sends requests. One for each worker, shared by all its tasks.
pub struct Switch {
    /// Who this worker is.
    pub here: Here,
    table: ArcSwap<Table>,
    pods: ArcSwap<LocalPods>,
    /// Where guests listen with sockets.
    pub ports: Ports,
    /// Tasks of connections in memory. They end with one of their ends.
    pub streams: TaskTracker,
}

/// Why there is no response of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The Service has nobody who could answer.
    #[error("{service} has no ready Pod{}", elsewhere(.unreachable))]
    NoEndpoint {
        /// Ready ones that no worker is known for.
        unreachable: usize,
        /// `Service namespace/name`
        service: String,
    },
    /// The Pod is not, or no longer, where the table says.
    #[error("the Pod at {0} is gone")]
    Gone(SocketAddr),
    /// It has as many requests as it may, and as many are waiting.
    #[error("the Pod is busy")]
    Busy,
    /// It did not answer in time.
    #[error("the Pod did not answer within its deadline")]
    Deadline,
    /// Its memory limit was reached.
    #[error("the Pod ran out of memory")]
    OutOfMemory,
    /// It trapped, or ended without an answer. Its log says more.
    #[error("the Pod failed to answer; its log says why")]
    Failed,
    /// The request cannot be given to any guest.
    #[error("the request is not understood")]
    BadRequest,
    /// The way to it is broken.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

fn elsewhere(count: &usize) -> String {
    match count {
        0 => String::new(),
        count => format!(" that can be reached from here ({count} elsewhere)"),
    }
}

impl Refusal {
    /// The status for a client outside.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Peer(PeerError::Full(..)) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Refusal::BadRequest => StatusCode::BAD_REQUEST,
            Refusal::OutOfMemory | Refusal::Failed | Refusal::Peer(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// Its name between workers.
    pub fn word(&self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Peer(_) => "gone",
            Refusal::Busy => "busy",
            Refusal::Deadline => "deadline",
            Refusal::OutOfMemory => "memory",
            Refusal::Failed => "failed",
            Refusal::BadRequest => "invalid",
        })
    }

    pub fn from_word(word: &HeaderValue, address: SocketAddr) -> Refusal {
        match word.as_bytes() {
            b"gone" => Refusal::Gone(address),
            b"busy" => Refusal::Busy,
            b"deadline" => Refusal::Deadline,
            b"memory" => Refusal::OutOfMemory,
            b"invalid" => Refusal::BadRequest,
            // A word of a newer worker: it did not answer, whatever the reason.
            _ => Refusal::Failed,
        }
    }

    /// Whether the guest cannot have seen the request.
    fn is_unsent(&self) -> bool {
        match self {
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => true,
            Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Full(..)) => true,
            Refusal::Peer(PeerError::Lost { .. }) => false,
            Refusal::Deadline | Refusal::OutOfMemory | Refusal::Failed => false,
            Refusal::BadRequest => false,
        }
    }

    /// Whether another try may end differently: what a guest itself did wrong it would do again.
    fn is_of_the_way(&self) -> bool {
        self.is_unsent() || matches!(self, Refusal::Peer(_))
    }
}

impl Served {
    /// A container that was just started.
    pub fn new(handler: Handler, record: Arc<Record>) -> Served {
        Served {
            handler,
            record,
            requests: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            since: Instant::now(),
            ended_ns: AtomicU64::new(0),
            arrived_ns: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            idle: Notify::new(),
            cut: AtomicBool::new(false),
        }
    }

    /// Counts a request as in flight until the result is dropped.
    pub fn enter(self: Arc<Served>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let arrived_ns = self.now_ns();
        self.arrived_ns.fetch_add(arrived_ns, Ordering::Relaxed);
        InFlight { served: self, arrived_ns, watched: None }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long requests took together, those in flight as far as they are. The parts are read one
    /// after the other, so it may be off by the requests that come and go meanwhile.
    pub fn busy_ns(&self) -> u64 {
        let ended = self.ended_ns.load(Ordering::Relaxed);
        let in_flight = u64::try_from(self.in_flight()).unwrap_or(0);
        let arrived = self.arrived_ns.load(Ordering::Relaxed);
        let running = in_flight.wrapping_mul(self.now_ns()).wrapping_sub(arrived);
        // A difference that wrapped is one of those that came meanwhile: they have taken no time.
        let running = if running > u64::MAX / 2 { 0 } else { running };
        ended.saturating_add(running)
    }

    /// Ends when no request is in flight. The container must have left the table before.
    pub async fn idle(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        loop {
            let mut woken = std::pin::pin!(self.idle.notified());
            // Registered before the look at the counter, so that no end is missed.
            woken.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            woken.await;
        }
    }

    /// Ends the responses that are still being sent, as broken. A request without a response yet
    /// ends by its deadline.
    pub fn cut_off(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Requests since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl InFlight {
    /// The guest that the request is for: for requests of the worker's own, which nobody records.
    pub fn handler(&self) -> &Handler {
        &self.served.handler
    }

    /// Gives the guest a request of somebody; what becomes of it is recorded.
    pub async fn handle(&mut self, request: Request<Body>) -> Result<Response<Body>, HandleError> {
        let (steps, peak) = (Arc::<Steps>::default(), self.served.in_flight());
        let begun = self.served.record.begin(&request, peak == 1);
        let watched = Watched { begun, steps: steps.clone(), outcome: Outcome::Left, peak };
        let watched = self.watched.insert(watched);
        let result = self.served.handler.handle_watched(request, steps).await;
        watched.outcome = Outcome::of(&result, &watched.steps);
        result
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let served = &self.served;
        if let Some(Watched { begun, steps, outcome, peak }) = self.watched.take() {
            served.record.end(begun, &steps, outcome, peak);
        }
        let took_ns = served.now_ns().saturating_sub(self.arrived_ns);
        served.ended_ns.fetch_add(took_ns, Ordering::Relaxed);
        served.arrived_ns.fetch_sub(self.arrived_ns, Ordering::Relaxed);
        let before = served.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && served.leaving.load(Ordering::SeqCst) {
            served.idle.notify_waiters();
        }
    }
}

impl From<HandleError> for Refusal {
    /// The shim has said in the container's log what the guest did wrong.
    fn from(error: HandleError) -> Refusal {
        match error {
            HandleError::Busy | HandleError::InstanceLimit => Refusal::Busy,
            HandleError::Deadline => Refusal::Deadline,
            HandleError::OutOfMemory => Refusal::OutOfMemory,
            HandleError::Trap(_) | HandleError::NoResponse | HandleError::GuestError(_) => {
                Refusal::Failed
            }
            HandleError::BadRequest(_) => Refusal::BadRequest,
        }
    }
}

impl LocalPods {
    /// Adds a container. `ports` empty: it answers on every port that no other one declared.
    pub fn insert(&mut self, ip: IpAddr, ports: &[u16], served: &Arc<Served>) {
        let listeners = self.0.entry(ip).or_default();
        if ports.is_empty() {
            listeners.push(Listener { port: None, served: served.clone() });
        }
        for port in ports {
            listeners.push(Listener { port: Some(*port), served: served.clone() });
        }
    }

    /// Takes a container out.
    pub fn remove(&mut self, ip: IpAddr, served: &Arc<Served>) {
        if let Some(listeners) = self.0.get_mut(&ip) {
            listeners.retain(|listener| !Arc::ptr_eq(&listener.served, served));
            if listeners.is_empty() {
                self.0.remove(&ip);
            }
        }
    }

    /// Who answers at an address.
    pub fn get(&self, address: SocketAddr) -> Option<&Arc<Served>> {
        let listeners = self.0.get(&address.ip())?;
        let exact = listeners.iter().find(|it| it.port == Some(address.port()));
        let listener = exact.or_else(|| listeners.iter().find(|it| it.port.is_none()))?;
        Some(&listener.served)
    }
}

impl Switch {
    /// With empty tables.
    pub fn new(here: Here) -> Switch {
        let (table, pods) = (ArcSwap::default(), ArcSwap::default());
        Switch { here, table, pods, ports: Ports::default(), streams: TaskTracker::new() }
    }

    /// Replaces the table of Services.
    pub fn publish_table(&self, table: Table) {
        self.table.store(Arc::new(table));
    }

    /// Replaces the table of Pods.
    pub fn publish_pods(&self, pods: LocalPods) {
        self.pods.store(Arc::new(pods));
    }

    /// The newest table of Services. Not to be held across a wait.
    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The container of this worker that answers at `address`.
    pub fn served(&self, address: SocketAddr) -> Option<Arc<Served>> {
        self.pods.load().get(address).cloned()
    }

    /// Where an authority leads for the guests of this worker.
    pub fn resolve(&self, host: &str, port: u16) -> Result<Destination, ResolveError> {
        let pods = self.pods.load();
        let is_local = |ip| pods.0.contains_key(&ip) || self.ports.knows(ip);
        self.table.load().resolve(&self.here, host, port, is_local)
    }

    /// The addresses of a name.
    pub fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        self.table.load().lookup(&self.here, name)
    }

    /// Where an address leads for a datagram.
    pub fn resolve_datagram(&self, to: SocketAddr) -> Result<Destination, ResolveError> {
        self.table.load().resolve_datagram(to)
    }

    /// Sends a request and waits for the head of the response. Dropping the future cancels it.
    pub async fn send<B>(
        &self,
        destination: &Destination,
        parts: Parts,
        mut body: Replay<B>,
    ) -> Result<Response<Reply>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (endpoints, turn) = match destination {
            Destination::Route(route) => (route.endpoints.as_slice(), route.next_turn()),
            Destination::Pod(endpoint) => (std::slice::from_ref(endpoint), 0),
        };
        let attempts = endpoints.len().min(ATTEMPTS_MAX);
        let harmless = parts.method.is_safe() && body.is_empty();
        let mut parts = Some(parts);
        let mut tried = [usize::MAX; ATTEMPTS_MAX];
        let mut refusal = no_endpoint(destination);
        for attempt in 0..attempts {
            let Some(index) = pick(turn, endpoints.len(), &tried[..attempt]) else {
                break;
            };
            tried[attempt] = index;
            let endpoint = &endpoints[index];
            let last = attempt + 1 == attempts;
            let head = if last { parts.take() } else { parts.clone() };
            let (Some(head), Some(lent)) = (head, body.lend(last)) else {
                break;
            };
            let outcome = match &endpoint.place {
                Place::Local => match self.served(endpoint.address) {
                    Some(served) => {
                        let mut flight = served.enter();
                        match flight.handle(Request::from_parts(head, lent)).await {
                            Ok(response) => Ok(response.map(|body| Reply::Guest { body, flight })),
                            Err(error) => Err(Refusal::from(error)),
                        }
                    }
                    None => self.exchange(endpoint.address, Request::from_parts(head, lent)).await,
                },
                Place::Peer(peer) => match peer.send(remote(head, lent, endpoint.address)).await {
                    Ok((response, stream)) => reply_of_peer(response, stream, endpoint.address),
                    Err(error) => Err(Refusal::Peer(error)),
                },
            };
            refusal = match outcome {
                Ok(response) => return Ok(response),
                Err(refusal) => refusal,
            };
            let again = refusal.is_unsent() || (harmless && refusal.is_of_the_way());
            if !again {
                break;
            }
        }
        Err(refusal)
    }
}

pub fn no_endpoint(destination: &Destination) -> Refusal {
    match destination {
        Destination::Route(route) => Refusal::NoEndpoint {
            unreachable: route.unreachable,
            service: format!("Service {}/{}", route.service.namespace, route.service.name),
        },
        Destination::Pod(endpoint) => Refusal::Gone(endpoint.address),
    }
}

/// Makes a request what HTTP/2 between workers wants: an absolute URI, the destination as header.
fn remote(mut head: Parts, body: Body, destination: SocketAddr) -> Request<Body> {
    head.version = Version::HTTP_2;
    let host = head.headers.remove(header::HOST);
    let mut uri = head.uri.into_parts();
    if uri.authority.is_none() {
        let named = host.and_then(|host| Authority::from_maybe_shared(host).ok());
        let unnamed = || {
            let text = destination.to_string();
            text.parse().expect("an address and port are an authority")
        };
        uri.authority = Some(named.unwrap_or_else(unnamed));
    }
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(uri).expect("scheme, authority and path are all there");
    let pod = HeaderValue::try_from(destination.to_string());
    head.headers.insert(POD_HEADER, pod.expect("an address is visible ASCII"));
    Request::from_parts(head, body)
}

fn reply_of_peer(
    mut response: Response<Incoming>,
    stream: StreamGuard,
    address: SocketAddr,
) -> Result<Response<Reply>, Refusal> {
    if let Some(word) = response.headers_mut().remove(REFUSED_HEADER) {
        return Err(Refusal::from_word(&word, address));
    }
    Ok(response.map(|body| Reply::Peer { body, _stream: stream }))
}

/// A request body that can be sent again as long as nobody has read of it.
pub enum Replay<B> {
    /// Nothing to send: can be sent any number of times.
    Empty,
    /// Not lent yet.
    Whole(B),
    /// Lent; comes back if it was dropped untouched.
    Lent(Arc<Mutex<Option<B>>>),
}

impl<B> Replay<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Takes a body that nobody has read of.
    pub fn new(body: B) -> Replay<B> {
        if body.is_end_stream() { Replay::Empty } else { Replay::Whole(body) }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Replay::Empty)
    }

    /// The body for one attempt; None if an earlier attempt has read of it. For the last one it
    /// is given away for good, which is cheaper.
    fn lend(&mut self, last: bool) -> Option<Body> {
        let body = match std::mem::replace(self, Replay::Empty) {
            Replay::Empty => return Some(Body::new(Empty::new().map_err(|never| match never {}))),
            Replay::Whole(body) => body,
            Replay::Lent(slot) => {
                let body = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                // What is gone stays gone: not an empty body.
                *self = Replay::Lent(slot);
                body?
            }
        };
        if last {
            return Some(Body::new(body.map_err(BodyError::new)));
        }
        let slot = Arc::new(Mutex::new(None));
        *self = Replay::Lent(slot.clone());
        Some(Body::new(Loan { body: Some(body), slot: Some(slot) }))
    }
}

/// Goes back to its slot when dropped untouched. The lock is never waited for: the sender looks
/// after the attempt has ended.
struct Loan<B> {
    body: Option<B>,
    slot: Option<Arc<Mutex<Option<B>>>>,
}

impl<B> HttpBody for Loan<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.slot = None;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::new),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, HttpBody::size_hint)
    }
}

impl<B> Drop for Loan<B> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}

/// The body of a response, wherever it comes from. Holds the request's place until it is dropped.
pub enum Reply {
    /// A guest of this worker.
    Guest {
        /// What it writes.
        body: Body,
        /// Its place among the requests in flight.
        flight: InFlight,
    },
    /// A guest of another worker.
    Peer {
        /// What arrives.
        body: Incoming,
        /// Its place on the connection.
        _stream: StreamGuard,
    },
    /// A guest of this worker that listens with a socket.
    Socket(Incoming),
    /// One direction of a connection.
    Stream(Body),
    /// The worker itself; empty after it was sent.
    Text(Bytes),
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Reply::Guest { flight, .. } if flight.served.cut.load(Ordering::Relaxed) => {
                Poll::Ready(Some(Err("the Pod was stopped".into())))
            }
            Reply::Guest { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Peer { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Socket(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Stream(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Text(text) if text.is_empty() => Poll::Ready(None),
            Reply::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Guest { body, .. } => body.is_end_stream(),
            Reply::Peer { body, .. } | Reply::Socket(body) => body.is_end_stream(),
            Reply::Stream(body) => body.is_end_stream(),
            Reply::Text(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Guest { body, .. } => body.size_hint(),
            Reply::Peer { body, .. } | Reply::Socket(body) => body.size_hint(),
            Reply::Stream(body) => body.size_hint(),
            Reply::Text(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
