//! The gate: HTTP and HTTPS from outside, for Ingresses and for Gateways.
//!
//! Served by the worker of one namespace ([`crate::protocol::INGRESS_NAMESPACE`]) on every node: the
//! keys of certificates lie in no process that tenants' guests run in. It answers what is not the
//! backends' to answer with pages that say why, keeps to limits that the client cannot change, and
//! writes one line a request to its access log.
//!
//! ```text
//!   client ─ TLS by SNI ─ HTTP/1.1 or 2 ─▶ rules ─▶ shares ─▶ filters ─▶ switch ─▶ Pod
//!                                                                 │        └──────▶ mirrors
//!                                     upgrade (WebSocket) ◀───────┘
//! ```

mod body;
mod certificates;
pub mod filters;
pub mod rules;
mod shares;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wherry_wasi_shim::Body;

use self::{
    body::{Bounded, Copied, Fate, SILENCE_MAX, Tee, Until},
    certificates::Certificates,
    rules::{Asked, Entry, Missing, Rules, host_of},
};
use super::{
    front::{forward_headers, in_time, page, server, settle},
    listen::{self, Closing},
    logs::{Log, Logs},
    network::{Destination, Route},
    policy::Caller,
    reply::{Replay, Reply},
    switch::Switch,
    taken::{Pieces, TAKEN_WITHIN},
    traffic::INGRESS,
    unread::Unread,
};
use crate::protocol::{Backend, GateTable, Owner, ServiceKey, Target};

/// From accept to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the head of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest body of a request, unless the Ingress says another.
const BODY_BYTES_MAX: u64 = 1 << 30;
/// Mirrored requests under way: more are left out, so that a mirror that hangs costs no memory.
const MIRRORED_MAX: usize = 256;
/// Longest text of the client's in the access log: a line stays a line.
const LOGGED_MAX: usize = 512;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The listeners of a node.
pub struct Gate {
    address: IpAddr,
    places: Arc<Semaphore>,
    door: Arc<Door>,
    wanted: GateTable,
    /// By port.
    listeners: BTreeMap<u16, Listener>,
    /// Ports that could not be bound, with the reasons.
    refused: BTreeMap<u16, String>,
    tasks: TaskTracker,
}

/// One wanted port.
struct Listener {
    /// With what certificates, where there is TLS.
    certificates: Option<Arc<Certificates>>,
    /// Stops it, if it could be bound.
    stop: Option<CancellationToken>,
}

/// What all connections share.
struct Door {
    switch: Arc<Switch>,
    rules: ArcSwap<Rules>,
    /// Those of connections, for the ones that go on after their request as something else.
    places: Arc<Semaphore>,
    mirrored: Arc<Semaphore>,
    log: Log,
}

impl Gate {
    /// Listens nowhere yet. `connections_max` bounds the connections of all ports together.
    pub fn new(
        switch: Arc<Switch>,
        logs: &Logs,
        log: std::path::PathBuf,
        address: IpAddr,
        connections_max: usize,
    ) -> Gate {
        let places = Arc::new(Semaphore::new(connections_max));
        let door = Door {
            switch,
            rules: ArcSwap::default(),
            places: places.clone(),
            mirrored: Arc::new(Semaphore::new(MIRRORED_MAX)),
            log: logs.open(log),
        };
        Gate {
            address,
            places,
            door: Arc::new(door),
            wanted: GateTable::default(),
            listeners: BTreeMap::new(),
            refused: BTreeMap::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Serves these rules from now on, where it listens: see [`Gate::update`].
    pub fn publish(&mut self, table: GateTable) {
        let rules = Rules::new(&table, &self.door.rules.load());
        self.door.rules.store(Arc::new(rules));
        self.wanted = table;
        let wanted = &self.wanted.ports;
        self.listeners.retain(|port, listener| {
            let same = wanted.iter().find(|it| it.port == *port);
            let kept = same.is_some_and(|it| it.tls == listener.certificates.is_some());
            if let Some(stop) = listener.stop.as_ref().filter(|_| !kept) {
                stop.cancel();
            }
            kept
        });
        for port in wanted {
            let listener = self.listeners.entry(port.port).or_insert_with(|| Listener {
                certificates: port.tls.then(Certificates::new),
                stop: None,
            });
            if let Some(certificates) = &listener.certificates {
                certificates.publish(&port.certificates);
            }
        }
    }

    /// Ports that it wants and cannot have, with the reasons.
    pub fn refused(&self) -> &BTreeMap<u16, String> {
        &self.refused
    }

    /// Listens where it shall. Called again from time to time, it tries what could not be bound. Says
    /// whether other ports are refused than before, or for other reasons.
    pub fn update(&mut self) -> bool {
        let mut refused = BTreeMap::new();
        let unbound = self.listeners.iter().filter(|(_, listener)| listener.stop.is_none());
        let unbound: Vec<(u16, Option<Arc<Certificates>>)> =
            unbound.map(|(port, listener)| (*port, listener.certificates.clone())).collect();
        for (port, certificates) in unbound {
            let address = SocketAddr::new(self.address, port);
            let tls = certificates.is_some();
            match self.listen(address, certificates) {
                Ok(stop) => {
                    tracing::info!(%address, tls, "the gate listens");
                    if let Some(listener) = self.listeners.get_mut(&port) {
                        listener.stop = Some(stop);
                    }
                }
                Err(error) => {
                    let why = format!("listen on {address}: {error}");
                    if self.refused.get(&port) != Some(&why) {
                        tracing::warn!(%address, %error, "the gate cannot listen");
                    }
                    refused.insert(port, why);
                }
            }
        }
        let changed = self.refused != refused;
        self.refused = refused;
        changed
    }

    fn listen(
        &self,
        address: SocketAddr,
        certificates: Option<Arc<Certificates>>,
    ) -> Result<CancellationToken, std::io::Error> {
        let acceptor = match certificates {
            Some(certificates) => {
                let config = certificates.config().map_err(std::io::Error::other)?;
                Some(TlsAcceptor::from(config))
            }
            None => None,
        };
        let listener = listen::bind(address)?;
        let stop = CancellationToken::new();
        let door = self.door.clone();
        let serve = move |stream, remote, closing| {
            let way = (address.port(), acceptor.clone());
            accept(door.clone(), way, stream, remote, closing)
        };
        let accepting = listen::accept(listener, stop.clone(), self.places.clone(), serve);
        self.tasks.spawn(accepting);
        Ok(stop)
    }

    /// Stops accepting and asks connections to close after the requests they have.
    pub fn stop(&mut self) {
        for stop in self.listeners.values().filter_map(|listener| listener.stop.as_ref()) {
            stop.cancel();
        }
        self.tasks.close();
    }

    /// After [`Gate::stop`]: ends when all connections have.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }
}

async fn accept(
    door: Arc<Door>,
    (port, acceptor): (u16, Option<TlsAcceptor>),
    stream: TcpStream,
    remote: SocketAddr,
    closing: Closing,
) {
    match acceptor {
        None => serve(door, stream, remote, closing, (port, false)).await,
        Some(acceptor) => {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve(door, stream, remote, closing, (port, true)).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake"),
                Err(_) => tracing::debug!(%remote, "the TLS handshake took too long"),
            }
        }
    }
}

async fn serve<S>(
    door: Arc<Door>,
    stream: S,
    remote: SocketAddr,
    closing: Closing,
    (port, tls): (u16, bool),
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = Arc::new(Client {
        caller: Caller::outside_by(remote.ip(), INGRESS),
        word: HeaderValue::try_from(remote.ip().to_canonical().to_string())
            .expect("an address is visible ASCII"),
        remote,
        port,
        tls,
    });
    let pieces = Pieces::default();
    let given = pieces.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (given, version) = (given.clone(), request.version());
        let answering = answer(door.clone(), client.clone(), request);
        async move { answering.await.map(|answer| given.follow(version, answer)) }
    });
    let builder = server();
    let connection =
        std::pin::pin!(builder.serve_connection_with_upgrades(in_time(stream), service));
    tokio::select! {
        biased;
        outcome = listen::until_closed(connection, closing) => if let Err(error) = outcome {
            tracing::debug!(%remote, %error, "connection ended early");
        },
        () = pieces.stuck(TAKEN_WITHIN) => {
            tracing::debug!(%remote, "a client does not take its answers");
        }
    }
}

/// Who is at the other end.
struct Client {
    caller: Caller,
    word: HeaderValue,
    remote: SocketAddr,
    /// Where it came in.
    port: u16,
    tls: bool,
}

/// Answers one request, and writes it down.
async fn answer(
    door: Arc<Door>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let begun = Instant::now();
    let mut line = Line::of(&client, &request);
    let response = match route(&door, &client, request, &mut line).await {
        Ok(response) => response,
        Err((status, why)) => {
            line.why.clone_from(&why);
            page(status, &why)
        }
    };
    if !line.rule.is_empty() {
        let counters = door.switch.traffic.rules.of(&line.rule);
        counters.ended(Some(response.status()), begun.elapsed());
    }
    door.log.note(&line.text(response.status(), begun.elapsed()));
    Ok(response)
}

type Refused = (StatusCode, String);

/// Where a request goes, and what comes back.
async fn route(
    door: &Door,
    client: &Arc<Client>,
    request: Request<Incoming>,
    line: &mut Line,
) -> Result<Response<Reply>, Refused> {
    let host = line.host.clone();
    if request.method() == Method::CONNECT {
        let why = "This is not a proxy: CONNECT goes nowhere.".to_owned();
        return Err((StatusCode::METHOD_NOT_ALLOWED, why));
    }
    let (mut parts, body) = request.into_parts();
    settle(&mut parts).map_err(|why| (StatusCode::BAD_REQUEST, why.to_owned()))?;
    let body = Unread::new(&parts, body, &door.switch.streams);
    let request = Request::from_parts(parts, body);
    if host.is_empty() && request.version() > Version::HTTP_10 {
        return Err((StatusCode::BAD_REQUEST, "The request has no Host header.".to_owned()));
    }
    let rules = door.rules.load_full();
    let entry = find(&rules, client.port, &host, &request)?;
    let rule = &entry.rule.rule;
    let owner = &rule.owner;
    let chosen = entry.rule.shares.next().map(|index| &rule.backends[index]);
    line.rule = label(owner, chosen);
    if let Some(why) = &rule.broken {
        return Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{owner}: {why}.")));
    }
    let redirect = rule.filters.redirect.as_ref();
    if let Some(redirect) = redirect.filter(|it| !it.plain_only || !client.tls) {
        let asked = (client.tls, host.as_str());
        let location = filters::location(redirect, entry.prefix(), asked, request.uri());
        let mut response = redirected(redirect.status, location);
        filters::change(response.headers_mut(), &rule.filters.response);
        return Ok(response);
    }
    let absent = StatusCode::from_u16(rule.absent).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let nobody = || (absent, format!("{owner} has no backend for this request."));
    let backend = chosen.ok_or_else(nobody)?;
    let target = backend.to.as_ref().map_err(|why| (absent, format!("{owner}: {why}.")))?;
    let route = backend_of(door, owner, target, absent)?;
    forward(door, client, request, (entry, backend, target), (route, &host)).await
}

/// Passes a request on to a backend that is there.
async fn forward(
    door: &Door,
    client: &Arc<Client>,
    request: Request<Unread<Incoming>>,
    (entry, backend, target): (&Entry, &Backend, &Target),
    (route, host): (Arc<Route>, &str),
) -> Result<Response<Reply>, Refused> {
    let begun = Instant::now();
    let rule = &entry.rule.rule;
    let owner = &rule.owner;
    let (mut parts, body) = request.into_parts();
    let max = rule.body_bytes_max.unwrap_or(BODY_BYTES_MAX);
    if length(&parts.headers).is_some_and(|length| length > max) {
        let why = format!("The body is larger than {owner} takes: {max} bytes.");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let refused = |why: String, status| {
        let Target { namespace, service, port } = target;
        let why =
            format!("{owner}: Service {namespace}/{service} (port {port}) cannot answer: {why}.");
        (status, why)
    };
    let destination = Destination::Route(route);
    let protocol = wants_upgrade(&parts);
    prepare(&mut parts.headers, client, host);
    change(&mut parts, entry, backend);
    if let Some(protocol) = protocol {
        let Ok(place) = door.places.clone().try_acquire_owned() else {
            let why = "This node has too many connections; try later.".to_owned();
            return Err((StatusCode::SERVICE_UNAVAILABLE, why));
        };
        let body = Bounded::new(body, max, SILENCE_MAX);
        let wanted = (protocol, place);
        let upgraded = upgrade(door, client, &destination, parts, body, wanted).await;
        let response = upgraded.map_err(|(status, why)| refused(why, status))?;
        return Ok(changed(response, entry, backend));
    }
    let mut body = Tee::new(body);
    for (mirror, shares) in rule.filters.mirrors.iter().zip(entry.rule.mirrored.iter()) {
        if shares.next() == Some(0) {
            send_mirrored(door, client, &mirror.to, parts.clone(), body.copy());
        }
    }
    let limits = Limits::new(rule.request_ms, rule.backend_ms);
    let body = Bounded::new(body, max, SILENCE_MAX);
    let fate = body.fate();
    let sent = Box::pin(door.switch.send(&client.caller, &destination, parts, Replay::new(body)));
    let outcome = limits.wait(sent, &fate).await;
    // Whatever the backend made of that: it was not its fault.
    if let Some(why) = fate.refused() {
        return Err((why.status(), format!("{owner}: {why}.")));
    }
    let response = match outcome {
        Ok(Ok(response)) => changed(response, entry, backend),
        Ok(Err(refusal)) => return Err(refused(refusal.to_string(), refusal.status())),
        Err(limit) => {
            let why = format!("there was no answer within {limit:?}");
            return Err(refused(why, StatusCode::GATEWAY_TIMEOUT));
        }
    };
    Ok(match limits.whole {
        Some(limit) => {
            let left = limit.saturating_sub(begun.elapsed());
            response.map(|body| until(body, left, limit))
        }
        None => response,
    })
}

/// The rule that a request meets.
fn find<'r>(
    rules: &'r Rules,
    port: u16,
    host: &str,
    request: &Request<Unread<Incoming>>,
) -> Result<&'r Entry, Refused> {
    let path = request.uri().path();
    let asked = Asked {
        host,
        path,
        query: request.uri().query(),
        method: request.method(),
        headers: request.headers(),
    };
    rules.find(port, &asked).map_err(|missing| {
        let kinds = rules.kinds(port);
        let why = match missing {
            Missing::Host => format!("No {kinds} is for the host {host:?}."),
            Missing::Rule => format!("No {kinds} for {host} has a rule for {path:?}."),
        };
        (StatusCode::NOT_FOUND, why)
    })
}

/// A rule as it is counted and logged.
fn label(owner: &Owner, backend: Option<&Backend>) -> String {
    let Owner { kind, namespace, name } = owner;
    let kind = if kind == "Ingress" { String::new() } else { format!("{kind} ") };
    match backend.and_then(|backend| backend.to.as_ref().ok()) {
        Some(Target { service, port, .. }) => format!("{kind}{namespace}/{name} {service}:{port}"),
        None => format!("{kind}{namespace}/{name}"),
    }
}

/// How long an answer may take.
struct Limits {
    /// To its end.
    whole: Option<Duration>,
    /// To its head.
    head: Option<Duration>,
    /// Nobody has said how long: then it is not the client's upload that is measured.
    is_usual: bool,
}

impl Limits {
    fn new(request_ms: Option<u64>, backend_ms: Option<u64>) -> Limits {
        let limit = |ms: Option<u64>| ms.filter(|ms| *ms > 0).map(Duration::from_millis);
        let whole = limit(request_ms);
        let usual = (request_ms, backend_ms) == (None, None);
        let head = [whole, limit(backend_ms), usual.then_some(ANSWER_TIMEOUT)];
        Limits { whole, head: head.into_iter().flatten().min(), is_usual: usual }
    }

    /// Waits for the head of an answer, or says how long that was done in vain.
    async fn wait<F: Future>(&self, sent: F, fate: &Fate) -> Result<F::Output, Duration> {
        let Some(limit) = self.head else { return Ok(sent.await) };
        let mut sent = std::pin::pin!(sent);
        loop {
            let before = fate.pieces();
            match tokio::time::timeout(limit, sent.as_mut()).await {
                Ok(outcome) => return Ok(outcome),
                Err(_) if self.is_usual && fate.pieces() != before => {}
                Err(_) => return Err(limit),
            }
        }
    }
}

/// What the rule and the backend want a request to be.
fn change(parts: &mut Parts, entry: &Entry, backend: &Backend) {
    let filters = &entry.rule.rule.filters;
    filters::change(&mut parts.headers, &filters.request);
    filters::change(&mut parts.headers, &backend.request);
    if let Some(rewrite) = &filters.rewrite {
        filters::rewrite(parts, rewrite, entry.prefix());
    }
}

/// What the rule and the backend want an answer to be.
fn changed(mut response: Response<Reply>, entry: &Entry, backend: &Backend) -> Response<Reply> {
    filters::change(response.headers_mut(), &backend.response);
    filters::change(response.headers_mut(), &entry.rule.rule.filters.response);
    response
}

fn until(body: Reply, left: Duration, limit: Duration) -> Reply {
    if http_body::Body::is_end_stream(&body) {
        return body;
    }
    Reply::Stream(Body::new(Until::new(body, left, limit)))
}

/// Asks somebody else the same. Nobody sees the answer.
fn send_mirrored(door: &Door, client: &Arc<Client>, to: &Target, parts: Parts, body: Copied) {
    let Ok(place) = door.mirrored.clone().try_acquire_owned() else { return };
    let service = ServiceKey { namespace: to.namespace.clone(), name: to.service.clone() };
    let Some(route) = door.switch.table().service_port(&service, &to.port).cloned() else {
        return;
    };
    let (switch, client) = (door.switch.clone(), client.clone());
    door.switch.streams.spawn(async move {
        let asked = async {
            let destination = Destination::Route(route);
            let body = Replay::new(body);
            let response = switch.send(&client.caller, &destination, parts, body).await.ok()?;
            let mut answer = response.into_body();
            while let Some(Ok(_)) = answer.frame().await {}
            Some(())
        };
        // Whatever became of it concerns nobody.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        drop(place);
    });
}

/// The Service's port behind a rule.
fn backend_of(
    door: &Door,
    owner: &Owner,
    target: &Target,
    absent: StatusCode,
) -> Result<Arc<Route>, Refused> {
    let Target { namespace, service, port } = target;
    let key = ServiceKey { namespace: namespace.clone(), name: service.clone() };
    let table = door.switch.table();
    if let Some(route) = table.service_port(&key, port) {
        return Ok(route.clone());
    }
    let why = table.why_no_port(&key, port);
    Err((absent, format!("{owner}: Service {namespace}/{service} {why}.")))
}

fn redirected(status: u16, location: String) -> Response<Reply> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND);
    let mut response = page(status, "This is served elsewhere.");
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The client's word is not taken for who it is: what it says of itself stays visible before it.
fn prepare(headers: &mut HeaderMap, client: &Client, host: &str) {
    let scheme = HeaderValue::from_static(if client.tls { "https" } else { "http" });
    headers.remove("x-forwarded-proto");
    forward_headers(headers, client.word.clone(), scheme);
    headers.insert(X_REAL_IP, client.word.clone());
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// The protocol that an HTTP/1.1 client wants to go over to. HTTP/2 is none: on a connection of it
/// further requests would go past the rules.
fn wants_upgrade(parts: &Parts) -> Option<HeaderValue> {
    let has =
        |text: &str, word: &str| text.split(',').any(|own| own.trim().eq_ignore_ascii_case(word));
    let mut connection = parts.headers.get_all(header::CONNECTION).iter();
    let asked = connection.any(|it| it.to_str().is_ok_and(|it| has(it, "upgrade")));
    let protocol = parts.headers.get(header::UPGRADE)?;
    let other = protocol.to_str().is_ok_and(|it| !has(it, "h2c"));
    (asked && other && parts.version == Version::HTTP_11).then(|| protocol.clone())
}

/// Passes an upgrade on: the request over a connection of its own, then bytes both ways. The client's
/// connection gives its place back as it stops being one of HTTP; `place` is for what it becomes.
async fn upgrade(
    door: &Door,
    client: &Client,
    destination: &Destination,
    mut parts: Parts,
    body: Bounded<Unread<Incoming>>,
    (protocol, place): (HeaderValue, OwnedSemaphorePermit),
) -> Result<Response<Reply>, Refused> {
    let bad = |why: &str| (StatusCode::BAD_GATEWAY, why.to_owned());
    let opened = door.switch.open(&client.caller, destination, client.remote).await;
    let stream = opened.map_err(|refusal| (refusal.status(), refusal.to_string()))?;
    let breaker = stream.get_ref().breaker();
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|_| bad("it does not speak HTTP"))?;
    door.switch.streams.spawn(async move {
        // What went wrong shows in the answer, or in its absence.
        let _ = connection.with_upgrades().await;
    });
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, protocol);
    let theirs = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let request = Request::from_parts(parts, body);
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Err(bad("the answer is not understood")),
        Err(_) => return Err((StatusCode::GATEWAY_TIMEOUT, "there was no answer".to_owned())),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(theirs) = theirs
    {
        let ours = hyper::upgrade::on(&mut response);
        door.switch.streams.spawn(async move {
            let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) else { return };
            let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
            if tokio::io::copy_bidirectional(&mut theirs, &mut ours).await.is_err() {
                breaker.break_off();
            }
            drop(place);
        });
        let (head, _) = response.into_parts();
        return Ok(Response::from_parts(head, Reply::Text(bytes::Bytes::new())));
    }
    Ok(response.map(|body| Reply::Socket { body, _open: None }))
}

/// What the access log says of a request.
struct Line {
    client: SocketAddr,
    tls: bool,
    method: Method,
    version: Version,
    host: String,
    path: String,
    agent: String,
    rule: String,
    why: String,
}

impl Line {
    fn of(client: &Client, request: &Request<Incoming>) -> Line {
        let text = |name: HeaderName| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let authority = request.uri().authority().map_or(text(header::HOST), |it| it.as_str());
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        Line {
            client: client.remote,
            tls: client.tls,
            method: request.method().clone(),
            version: request.version(),
            host: host_of(authority).to_owned(),
            path: path.chars().take(LOGGED_MAX).collect(),
            agent: text(header::USER_AGENT).chars().take(LOGGED_MAX).collect(),
            rule: String::new(),
            why: String::new(),
        }
    }

    fn text(&self, status: StatusCode, took: Duration) -> String {
        let short = |text: &str| text[..text.floor_char_boundary(LOGGED_MAX)].to_owned();
        serde_json::json!({
            "client": self.client.to_string(),
            "tls": self.tls,
            "method": short(self.method.as_str()),
            "protocol": format!("{:?}", self.version),
            "host": short(&self.host),
            "path": self.path,
            "agent": self.agent,
            "rule": self.rule,
            "status": status.as_u16(),
            "why": short(&self.why),
            "took_ms": took.as_micros() as f64 / 1000.0,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_over_to_what_is_not_http() {
        let check = |headers: &[(&'static str, &'static str)], expected: Option<&str>| {
            let mut request = Request::get("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let wanted = wants_upgrade(&parts);
            let wanted = wanted.as_ref().map(|it| it.to_str().expect("text"));
            assert_eq!(wanted, expected, "{headers:?}");
        };
        let upgrade = ("connection", "Upgrade");
        check(&[upgrade, ("upgrade", "websocket")], Some("websocket"));
        check(&[("connection", "keep-alive"), upgrade, ("upgrade", "x")], Some("x"));
        check(&[("connection", "close"), ("upgrade", "websocket")], None);
        check(&[upgrade], None);
        for protocol in ["h2c", "H2C", "websocket, h2c"] {
            check(&[upgrade, ("upgrade", protocol)], None);
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_unless_the_rule_says_so() {
        let fate = Fate::default();
        let limits = Limits::new(Some(1), None);
        let never = std::future::pending::<()>();
        assert_eq!(limits.wait(never, &fate).await, Err(Duration::from_millis(1)));
        let none = Limits::new(Some(0), Some(0));
        assert_eq!((none.head, none.is_usual), (None, false));
        assert_eq!(none.wait(std::future::ready(7), &fate).await, Ok(7));
        assert!(Limits::new(None, None).is_usual);
    }
}
