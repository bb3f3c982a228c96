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
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use wherry_wasi_shim::Body;

use super::{
    balance::{Open, choose, may_leave_out, turn_of},
    datagrams::Conversations,
    denials::Denials,
    hold::{Holds, WAIT_MAX},
    kept::Kept,
    network::{Destination, Endpoint, Here, Place, ResolveError, STRAY_ATTEMPTS_MAX, Table},
    peers::StreamGuard,
    policy::{self, Caller, Subject, Verdict},
    ports::Ports,
    reply::{Replay, Reply},
    served::Served,
    streams::INNER_HEADERS,
    trace::{Kind, Source, Tracer},
    traffic::{Counted, Pair, Traffic},
};
use crate::protocol::{Direction, Protocol};

pub use super::refusal::Refusal;

/// Names the Pod that a request between workers is for: `ip:port`.
pub const POD_HEADER: HeaderName = HeaderName::from_static("wherry-pod");
/// On a response between workers: not the guest answered, but its worker, for the reason named
/// here (see [`Refusal::word`]).
pub const REFUSED_HEADER: HeaderName = HeaderName::from_static("wherry-refused");
/// On a request between workers: who calls (see [`Caller::word`]).
pub const FROM_HEADER: HeaderName = HeaderName::from_static("wherry-from");

/// How long a request whose Pod has just left waits for the newer table: it is made by the time the
/// Pod is told to go, and a few writes away.
const SECOND_LOOK: Duration = Duration::from_secs(1);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The Pods of this worker, by address.
#[derive(Default, Clone)]
pub struct LocalPods {
    listeners: imbl::HashMap<IpAddr, Vec<Listener>>,
    /// All of them, also those that serve nothing, as callers.
    callers: imbl::HashMap<IpAddr, Arc<Caller>>,
}

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
    policies: ArcSwap<policy::Table>,
    /// What policies refused, until it is reported.
    pub denials: Denials,
    /// Requests that wait for a Pod.
    pub holds: Holds,
    /// Datagrams under way.
    pub conversations: Conversations,
    /// When the times of endpoints that are left out began.
    since: Instant,
    /// Where guests listen with sockets.
    pub ports: Ports,
    /// Connections to addresses outside of the cluster that nobody uses at the moment.
    pub kept: Kept,
    /// Tasks of connections in memory. They end with one of their ends.
    pub streams: TaskTracker,
    /// Who has sent what, as far as it is not counted with a Service.
    pub traffic: Traffic,
    /// What requests did, for a collector.
    pub tracer: Tracer,
}

impl LocalPods {
    /// Adds a Pod, or says how it looks from now on.
    pub fn know(&mut self, pod: Subject) {
        self.callers.insert(pod.ip, Arc::new(Caller::pod(Arc::new(pod))));
    }

    /// What a Pod is counted under.
    pub fn source(&self, ip: IpAddr) -> Option<&str> {
        self.callers.get(&ip).map(|caller| &*caller.source)
    }

    /// Forgets a Pod.
    pub fn forget(&mut self, ip: IpAddr) {
        self.callers.remove(&ip);
    }

    /// Adds a container. `ports` empty: it answers on every port that no other one declared.
    pub fn insert(&mut self, ip: IpAddr, ports: &[u16], served: &Arc<Served>) {
        let mut listeners = self.listeners.remove(&ip).unwrap_or_default();
        if ports.is_empty() {
            listeners.push(Listener { port: None, served: served.clone() });
        }
        for port in ports {
            listeners.push(Listener { port: Some(*port), served: served.clone() });
        }
        self.listeners.insert(ip, listeners);
    }

    /// Takes a container out.
    pub fn remove(&mut self, ip: IpAddr, served: &Arc<Served>) {
        let Some(mut listeners) = self.listeners.remove(&ip) else { return };
        listeners.retain(|listener| !Arc::ptr_eq(&listener.served, served));
        if !listeners.is_empty() {
            self.listeners.insert(ip, listeners);
        }
    }

    /// Who answers at an address.
    pub fn get(&self, address: SocketAddr) -> Option<&Arc<Served>> {
        let listeners = self.listeners.get(&address.ip())?;
        let exact = listeners.iter().find(|it| it.port == Some(address.port()));
        let listener = exact.or_else(|| listeners.iter().find(|it| it.port.is_none()))?;
        Some(&listener.served)
    }
}

impl Switch {
    /// With empty tables.
    pub fn new(here: Here) -> Switch {
        Switch {
            here,
            table: ArcSwap::default(),
            pods: ArcSwap::default(),
            policies: ArcSwap::default(),
            denials: Denials::default(),
            holds: Holds::default(),
            conversations: Conversations::default(),
            since: Instant::now(),
            ports: Ports::default(),
            kept: Kept::default(),
            streams: TaskTracker::new(),
            traffic: Traffic::default(),
            tracer: Tracer::default(),
        }
    }

    /// Replaces the table of Services.
    pub fn publish_table(&self, table: Table) {
        self.table.store(Arc::new(table));
        self.holds.look_again();
    }

    /// Replaces the policies.
    pub fn publish_policies(&self, policies: policy::Table) {
        self.policies.store(Arc::new(policies));
    }

    /// The newest policies.
    pub fn policies(&self) -> arc_swap::Guard<Arc<policy::Table>> {
        self.policies.load()
    }

    /// A Pod of this worker as a caller.
    pub fn caller(&self, ip: IpAddr) -> Arc<Caller> {
        let pods = self.pods.load();
        pods.callers.get(&ip).cloned().unwrap_or_else(|| Arc::new(Caller::outside(ip)))
    }

    /// Whether policies let a caller reach a Pod of this worker.
    pub fn permit(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), Refusal> {
        let policies = self.policies.load();
        if policies.is_empty() {
            return Ok(());
        }
        let pods = self.pods.load();
        let pod = pods.callers.get(&to.ip()).and_then(|known| known.pod.as_ref());
        // Without a Pod nobody answers either.
        let Some(pod) = pod else { return Ok(()) };
        let verdict = policies.judge(caller, pod, to.port(), protocol);
        self.heed(verdict, caller.pod.as_deref(), Some(pod))
    }

    /// Reports what a policy said of Pods of this worker, and obeys it.
    pub fn heed(
        &self,
        verdict: Verdict,
        caller: Option<&Subject>,
        pod: Option<&Subject>,
    ) -> Result<(), Refusal> {
        let (direction, why, audit) = match verdict {
            Verdict::Allowed => return Ok(()),
            Verdict::Noted(direction, why) => (direction, why, true),
            Verdict::Denied(direction, why) => (direction, why, false),
        };
        let whose = match direction {
            Direction::Ingress => pod,
            Direction::Egress => caller,
        };
        // A Pod of another worker is reported there.
        if let Some(whose) = whose.filter(|whose| !whose.uid.is_empty()) {
            self.denials.note(&whose.uid, direction, &why, audit);
        }
        if audit { Ok(()) } else { Err(Refusal::Denied { direction, why }) }
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
        let is_local = |ip| pods.callers.contains_key(&ip);
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

    /// Which endpoint is tried next.
    pub fn pick(
        &self,
        destination: &Destination,
        caller: &Caller,
        turn: usize,
        tried: &[usize],
    ) -> Option<usize> {
        let endpoints = destination.endpoints();
        if endpoints.len() < 2 {
            return (tried.is_empty() && !endpoints.is_empty()).then_some(0);
        }
        let out = |index: usize| {
            let load = &endpoints[index].load;
            load.was_out() && load.is_out(self.now_ms())
        };
        let route = destination.route();
        if let Some((route, keep)) = route.and_then(|route| Some((route, route.affinity?)))
            && let Some(held) = route.shared.affinity.held(caller.ip, keep, Instant::now())
            && let Some(index) = endpoints.iter().position(|it| it.address == held)
            && !tried.contains(&index)
            && !out(index)
        {
            return Some(index);
        }
        choose(turn, endpoints.len(), tried, out, |index| endpoints[index].load.open())
    }

    /// The turn of a caller: one that shall stay with its endpoint begins at the same one each time,
    /// but not when its time there is over.
    pub fn turn(destination: &Destination, caller: &Caller) -> usize {
        let Some(route) = destination.route() else { return 0 };
        match route.affinity {
            Some(keep) if !route.shared.affinity.is_over(caller.ip, keep, Instant::now()) => {
                turn_of(caller.ip)
            }
            _ => route.next_turn(),
        }
    }

    /// Remembers how an endpoint did.
    pub fn learn(
        &self,
        destination: &Destination,
        caller: &Caller,
        index: usize,
        refusal: Option<&Refusal>,
    ) {
        let endpoints = destination.endpoints();
        if endpoints.len() < 2 {
            return;
        }
        let load = &endpoints[index].load;
        match refusal {
            None => {
                load.succeeded();
                let route = destination.route();
                if let Some((route, keep)) = route.and_then(|it| Some((it, it.affinity?))) {
                    let (address, now) = (endpoints[index].address, Instant::now());
                    route.shared.affinity.hold(caller.ip, address, keep, now);
                }
            }
            Some(refusal) if refusal.is_failure() && load.failed() => {
                let now_ms = self.now_ms();
                let out = endpoints.iter().filter(|it| it.load.is_out(now_ms)).count();
                // What was under way when it was left out says nothing new.
                if !load.is_out(now_ms) && may_leave_out(out, endpoints.len()) {
                    let address = endpoints[index].address;
                    tracing::info!(%address, %refusal, "an endpoint is left out for a while");
                    load.leave_out(now_ms);
                }
            }
            Some(_) => {}
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where a request goes whose Service has nobody at the moment: it waits, if it may.
    pub async fn awake(&self, destination: &Destination) -> Result<Destination, Refusal> {
        match destination.route().filter(|it| it.hold && destination.endpoints().is_empty()) {
            None => Ok(destination.clone()),
            Some(route) => {
                let external = matches!(destination, Destination::External(_));
                self.holds.wait(route, WAIT_MAX, external, || self.table.load_full()).await
            }
        }
    }

    /// The counters of what a caller sends to a destination.
    pub fn pair(&self, caller: &Caller, destination: &Destination) -> Arc<Pair> {
        match destination.route() {
            Some(route) => route.shared.pairs.of(&caller.source),
            None => self.traffic.direct.of(&caller.source),
        }
    }

    /// Sends a request and waits for the head of the response. Dropping the future cancels it.
    pub async fn send<B>(
        &self,
        caller: &Caller,
        destination: &Destination,
        mut parts: Parts,
        body: Replay<B>,
    ) -> Result<Response<Reply>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut begun = self.pair(caller, destination).begin();
        let mut span = match self.tracer.is_on() {
            true => self.tracer.request(caller, &name_of(destination), &mut parts),
            false => None,
        };
        let outcome = self.send_waiting(caller, destination, parts, body, begun.pair()).await;
        if let Some(span) = &mut span {
            match &outcome {
                Ok(response) => span.answered(response.status()),
                Err(refusal) => span.refused(refusal.status(), &refusal.to_string()),
            }
        }
        begun.answered(match &outcome {
            Ok(response) => response.status(),
            Err(refusal) => refusal.status(),
        });
        Ok(outcome?.map(|reply| reply.counted(begun.pair())))
    }

    /// The same; waits for who is not there at the moment.
    async fn send_waiting<B>(
        &self,
        caller: &Caller,
        destination: &Destination,
        parts: Parts,
        mut body: Replay<B>,
        pair: &Arc<Pair>,
    ) -> Result<Response<Reply>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut newer;
        let mut destination = destination;
        if destination.endpoints().is_empty() {
            newer = self.awake(destination).await?;
            destination = &newer;
        }
        let mut parts = Some(parts);
        let to = (destination, pair);
        let mut outcome = self.send_to_any(caller, to, &mut parts, &mut body).await;
        // The Pod has just left, and the table that says who came is on its way.
        if matches!(outcome, Err(Refusal::Gone(_)))
            && parts.is_some()
            // Without its body it would only wait.
            && body.is_left()
            && let Some(route) = destination.route()
        {
            let external = matches!(destination, Destination::External(_));
            let table = || self.table.load_full();
            if let Some(found) = self.holds.newer(route, SECOND_LOOK, external, table).await {
                newer = found;
                outcome = self.send_to_any(caller, (&newer, pair), &mut parts, &mut body).await;
            }
        }
        if let (Err(Refusal::Denied { direction: Direction::Egress, why }), Some(own)) =
            (&outcome, &caller.pod)
        {
            self.denials.note(&own.uid, Direction::Egress, why, false);
        }
        outcome
    }

    /// Tries the endpoints of a destination. Parts that are left were given to nobody of this worker.
    async fn send_to_any<B>(
        &self,
        caller: &Caller,
        (destination, pair): (&Destination, &Arc<Pair>),
        parts: &mut Option<Parts>,
        body: &mut Replay<B>,
    ) -> Result<Response<Reply>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let endpoints = destination.endpoints();
        let turn = Switch::turn(destination, caller);
        let attempts = endpoints.len().min(destination.attempts_max());
        let safe = parts.as_ref().is_some_and(|parts| parts.method.is_safe());
        let harmless = safe && body.is_empty();
        let mut tried = [usize::MAX; STRAY_ATTEMPTS_MAX];
        let mut refusal = no_endpoint(destination);
        for attempt in 0..attempts {
            let Some(index) = self.pick(destination, caller, turn, &tried[..attempt]) else {
                break;
            };
            tried[attempt] = index;
            let Endpoint { address, place, load } = &endpoints[index];
            if matches!(place, Place::Local) && !self.is_here(*address) {
                refusal = Refusal::Gone(*address);
                self.learn(destination, caller, index, Some(&refusal));
                continue;
            }
            // Only its own worker knows that a Pod has gone, and then there is a second look.
            let last = attempt + 1 == attempts && !matches!(place, Place::Peer(_));
            let head = if last { parts.take() } else { parts.clone() };
            let (Some(mut head), Some(lent)) = (head, body.lend(last)) else {
                break;
            };
            let source = || Arc::new(Source::of(caller));
            let mut route = self.tracer.step(source, Kind::Internal, "route", &mut head.headers);
            if let Some(route) = &mut route {
                route.say("network.peer.address", &address.to_string());
            }
            // Alone it gets everything, however busy it is.
            let open = (endpoints.len() > 1).then(|| load.enter());
            let (lent, broke) = watched(lent, pair);
            let request = Request::from_parts(head, lent);
            let outcome = self.send_to(caller, &endpoints[index], request, open).await;
            let outcome = outcome.map_err(|refusal| justly(refusal, broke));
            self.learn(destination, caller, index, outcome.as_ref().err());
            refusal = match outcome {
                Ok(response) => return Ok(response),
                Err(refusal) => refusal,
            };
            if let Some(route) = &mut route {
                route.failed(&refusal.to_string());
            }
            let again = refusal.is_unsent() || (harmless && refusal.is_of_the_way());
            if !again {
                break;
            }
        }
        Err(refusal)
    }

    /// Whether anybody of this worker answers at an address.
    fn is_here(&self, address: SocketAddr) -> bool {
        self.pods.load().get(address).is_some() || self.ports.is_listening(address)
    }

    async fn send_to(
        &self,
        caller: &Caller,
        endpoint: &Endpoint,
        request: Request<Body>,
        open: Option<Open>,
    ) -> Result<Response<Reply>, Refusal> {
        let address = endpoint.address;
        match &endpoint.place {
            Place::Local => {
                self.permit(caller, address, Protocol::Tcp)?;
                match self.served(address) {
                    Some(served) => {
                        let mut flight = served.enter().counted(open);
                        let response = flight.handle(request).await?;
                        Ok(response.map(|body| Reply::Guest { body, flight }))
                    }
                    None => self.exchange(address, request, open).await,
                }
            }
            Place::Peer(peer) => {
                let (head, body) = request.into_parts();
                let request = remote(head, body, address, caller.word());
                let (response, stream) = peer.send(request).await.map_err(Refusal::Peer)?;
                reply_of_peer(response, stream, address, open)
            }
            Place::Outside => self.exchange_outside(caller, address, request, open).await,
        }
    }
}

/// The body of a request, counted; if it has one, the flag says later whether it broke off.
fn watched(body: Body, pair: &Arc<Pair>) -> (Body, Option<Arc<AtomicBool>>) {
    if body.is_end_stream() {
        return (body, None);
    }
    let broke = Arc::<AtomicBool>::default();
    let note = broke.clone();
    let counted = Counted::sent(body, pair).map_err(move |error| {
        note.store(true, Ordering::Relaxed);
        error
    });
    (Body::new(counted), Some(broke))
}

/// Whatever an endpoint makes of a body that broke off: it is not its fault.
fn justly(refusal: Refusal, broke: Option<Arc<AtomicBool>>) -> Refusal {
    let broke = broke.is_some_and(|broke| broke.load(Ordering::Relaxed));
    if broke && refusal.is_failure() { Refusal::Incomplete } else { refusal }
}

/// For whom a request is, in a trace.
fn name_of(destination: &Destination) -> String {
    match destination.route() {
        Some(route) => {
            let (service, port) = (&route.service, route.port);
            format!("{}.{}.svc:{port}", service.name, service.namespace)
        }
        None => {
            let first = destination.endpoints().first();
            first.map_or_else(String::new, |endpoint| endpoint.address.to_string())
        }
    }
}

pub fn no_endpoint(destination: &Destination) -> Refusal {
    match destination {
        Destination::Route(route) | Destination::External(route) => Refusal::NoEndpoint {
            unreachable: route.unreachable,
            service: format!("Service {}/{}", route.service.namespace, route.service.name),
        },
        Destination::Pod(endpoint) => Refusal::Gone(endpoint.address),
        Destination::Stray(endpoints) => {
            Refusal::Gone(endpoints.first().expect("a stray has a worker").address)
        }
    }
}

/// Makes a request what HTTP/2 between workers wants: an absolute URI, the destination as header.
fn remote(
    mut head: Parts,
    body: Body,
    destination: SocketAddr,
    from: HeaderValue,
) -> Request<Body> {
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
    head.headers.insert(FROM_HEADER, from);
    // What it means between workers is not for guests to say.
    for name in INNER_HEADERS {
        head.headers.remove(name);
    }
    Request::from_parts(head, body)
}

fn reply_of_peer(
    mut response: Response<Incoming>,
    stream: StreamGuard,
    address: SocketAddr,
    open: Option<Open>,
) -> Result<Response<Reply>, Refusal> {
    if let Some(word) = response.headers_mut().remove(REFUSED_HEADER) {
        return Err(Refusal::from_word(&word, address));
    }
    Ok(response.map(|body| Reply::Peer { body, _stream: stream, _open: open }))
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
