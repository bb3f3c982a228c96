//! Node ports and balancers: where requests from outside of the cluster arrive.
//!
//! Each `NodePort` of the worker's namespace is a listener on the node's own address, each port of a
//! `LoadBalancer` one on its addresses. Requests are balanced one by one, not by connection, over
//! the ready Pods of the Service, wherever they are. Where these listen with sockets of their own,
//! whole connections are passed on. UDP ports are sockets too (`datagrams.rs`). At a Service's
//! `healthCheckNodePort` it is said whether this node has Pods of it.
//! What cannot be answered by a guest is answered here with a page of plain text that names the
//! Service and the reason.
//!
//! A connection costs a task; a request two steps of ours, [`answer`] and `Switch::send`.

use std::{
    collections::BTreeMap, convert::Infallible, io, net::IpAddr, net::SocketAddr, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{self, Entry},
    request::Parts,
    uri::Authority,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use serde_json::json;
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wherry_resources::gateway::API_PORT;

use super::{
    listen::{self, Closing},
    network::{At, Destination, Entrance},
    opening::Opening,
    policy::Caller,
    reply::{Replay, Reply},
    streams::{Opened, join},
    switch::{Refusal, Switch},
    taken::{Pieces, TAKEN_WITHIN},
    unread::Unread,
};
use crate::protocol::{NodePort, Protocol, ServiceKey};

/// A client must have sent the whole head by then; an idle connection is closed after as long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of an answer for so long is gone.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// All headers of a request together, and with HTTP/1 the buffer they are read into.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// So long, and up to twice as long, a client hears nothing of a Service whose Pods are full. Clients that
/// ask again at once would otherwise take from everybody's requests the time that it takes to refuse theirs;
/// and those that were refused together would come back together.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 clients that are gone without a word are noticed.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// How many of a Service's Pods a node has.
const ENDPOINT_WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// Headers between two neighbours, which mean nothing to a guest.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Statuses of requests that were not read to their end.
const UNREAD: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE];

/// All node ports of a worker.
pub struct Fronts {
    switch: Arc<Switch>,
    address: IpAddr,
    /// Connections of all node ports together.
    places: Arc<Semaphore>,
    listeners: BTreeMap<At, Listener>,
    tasks: TaskTracker,
}

/// One wanted node port.
struct Listener {
    service: String,
    /// How to stop it, or why it does not listen; without a reason where the address is another
    /// machine's.
    outcome: Result<CancellationToken, Option<String>>,
}

impl Fronts {
    /// With no listeners.
    pub fn new(switch: Arc<Switch>, address: IpAddr, connections_max: usize) -> Fronts {
        Fronts {
            switch,
            address,
            places: Arc::new(Semaphore::new(connections_max)),
            listeners: BTreeMap::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Listens on exactly the ports that the newest table wants, and returns what changed. Called
    /// again from time to time, it tries the ports that could not be bound before.
    pub fn update(&mut self) -> Vec<NodePort> {
        let wanted = self.switch.table().entrances();
        let mut changes = Vec::new();
        self.listeners.retain(|at, listener| {
            if wanted.contains_key(at) {
                return true;
            }
            if let Ok(stop) = &listener.outcome {
                stop.cancel();
            }
            let service = listener.service.clone();
            changes.push(NodePort { service, port: at.1, bound: false, error: None });
            false
        });
        for (at, service) in wanted {
            if let Some(listener) = self.listeners.get_mut(&at)
                && listener.outcome.is_ok()
            {
                listener.service = service;
                continue;
            }
            let outcome = self.listen(at);
            let before = self.listeners.insert(at, Listener { service, outcome });
            let listener = &self.listeners[&at];
            let error_before = before.and_then(|listener| listener.outcome.err());
            if listener.outcome.is_ok() || error_before.as_ref() != listener.outcome.as_ref().err()
            {
                let error = listener.outcome.as_ref().err();
                tracing::info!(?at, service = listener.service, ?error, "port of the node");
                changes.push(listener.report(at.1));
            }
        }
        changes
    }

    fn listen(&self, at: At) -> Result<CancellationToken, Option<String>> {
        let (ip, port, protocol) = at;
        let address = SocketAddr::new(ip.unwrap_or(self.address), port);
        let failed = |error: io::Error| {
            let is_elsewhere = ip.is_some() && error.kind() == io::ErrorKind::AddrNotAvailable;
            let is_said = !is_elsewhere || self.switch.table().is_alone();
            is_said.then(|| format!("listen on {address}: {error}"))
        };
        if is_api(&at, self.address) {
            return Err(Some(format!("listen on {address}: the port is the API server's")));
        }
        let stop = CancellationToken::new();
        if protocol == Protocol::Udp {
            let socket = listen::bind_datagrams(address).map_err(failed)?;
            let taking = self.switch.clone().take_datagrams(Arc::new(socket), at);
            let stopped = stop.clone();
            self.tasks.spawn(async move {
                stopped.run_until_cancelled(taking).await;
            });
            return Ok(stop);
        }
        let listener = listen::bind(address).map_err(failed)?;
        let front = Arc::new(Front { switch: self.switch.clone(), at });
        let serve = move |stream, remote, closing| serve(front.clone(), stream, remote, closing);
        let accepting = listen::accept(listener, stop.clone(), self.places.clone(), serve);
        self.tasks.spawn(accepting);
        Ok(stop)
    }

    /// Every wanted node port.
    pub fn state(&self) -> Vec<NodePort> {
        self.listeners.iter().map(|(at, listener)| listener.report(at.1)).collect()
    }

    /// Stops accepting and asks connections to close after the requests they have.
    pub fn stop(&mut self) {
        for listener in self.listeners.values() {
            if let Ok(stop) = &listener.outcome {
                stop.cancel();
            }
        }
        self.tasks.close();
    }

    /// After [`Fronts::stop`]: ends when all connections have.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }
}

/// Whether a balancer at this node's own address wants the port of the API server, which, where it has
/// the same machine, would not find it free when it starts again.
fn is_api((ip, port, protocol): &At, own: IpAddr) -> bool {
    *ip == Some(own) && i64::from(*port) == API_PORT && *protocol == Protocol::Tcp
}

impl Listener {
    fn report(&self, port: u16) -> NodePort {
        NodePort {
            service: self.service.clone(),
            port,
            bound: self.outcome.is_ok(),
            error: self.outcome.as_ref().err().cloned().flatten(),
        }
    }
}

/// What the connections of one node port share.
struct Front {
    switch: Arc<Switch>,
    at: At,
}

async fn serve(front: Arc<Front>, stream: TcpStream, remote: SocketAddr, closing: Closing) {
    let caller = Arc::new(Caller::outside(remote.ip()));
    let entrance = front.switch.table().entrance(&front.at).cloned();
    if let Some(entrance) = entrance {
        if entrance.balancer && !entrance.route.admits(caller.ip) {
            tracing::debug!(%remote, "a client outside of the Service's source ranges");
            return;
        }
        let destination = Destination::External(entrance.route);
        if let Some(opened) = front.switch.open_bytes(&caller, &destination, remote).await {
            return pass(opened, stream, remote, closing).await;
        }
    }
    let client = HeaderValue::try_from(remote.ip().to_canonical().to_string())
        .expect("an address is visible ASCII");
    let pieces = Pieces::default();
    let given = pieces.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (given, version) = (given.clone(), request.version());
        let answering = answer(front.clone(), caller.clone(), client.clone(), request);
        async move { answering.await.map(|answer| given.follow(version, answer)) }
    });
    let builder = server();
    let connection = std::pin::pin!(builder.serve_connection(in_time(stream), service));
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

/// HTTP/1.1 and 2 as clients from outside are served it, here and at the gate.
pub fn server() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// The connection of a client that must ask, and take its answers, in time.
pub fn in_time<S>(stream: S) -> TokioIo<Opening<S>> {
    TokioIo::new(Opening::new(stream, HEAD_TIMEOUT).read_within(UNREAD_TIMEOUT))
}

/// Passes the bytes of a connection on, whatever they are: its Pods listen with sockets.
async fn pass(
    opened: Result<Opened, Refusal>,
    mut stream: TcpStream,
    remote: SocketAddr,
    closing: Closing,
) {
    let mut inner = match opened {
        Ok(inner) => inner,
        // To a client of bytes there is nothing to be said; it sees the connection end.
        Err(refusal) => {
            tracing::debug!(%remote, %refusal, "connection refused");
            return;
        }
    };
    let breaker = inner.get_ref().breaker();
    tokio::select! {
        passed = join(&mut stream, &mut inner, &breaker) => {
            if let Err(error) = passed {
                tracing::debug!(%remote, %error, "connection ended early");
            }
        }
        () = closing.asked() => {}
    }
}

/// Answers one request.
async fn answer(
    front: Arc<Front>,
    caller: Arc<Caller>,
    client: HeaderValue,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let entrance = front.switch.table().entrance(&front.at).cloned();
    let Some(Entrance { route, balancer }) = entrance else {
        if let Some((service, endpoints)) = front.switch.table().health(&front.at) {
            return Ok(health(service, *endpoints));
        }
        let why = format!("No Service has node port {} any more.", front.at.1);
        return Ok(page(StatusCode::SERVICE_UNAVAILABLE, &why));
    };
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        let why = "A node port is not a proxy: CONNECT goes nowhere.";
        return Ok(page(StatusCode::METHOD_NOT_ALLOWED, why));
    }
    if let Err(why) = settle(&mut parts) {
        return Ok(page(StatusCode::BAD_REQUEST, why));
    }
    let named = parts.uri.authority().is_some() || parts.headers.contains_key(header::HOST);
    if !named && parts.version > Version::HTTP_10 {
        return Ok(page(StatusCode::BAD_REQUEST, "The request has no Host header."));
    }
    let body = Unread::new(&parts, body, &front.switch.streams);
    let scheme = HeaderValue::from_static("http");
    forward_headers(&mut parts.headers, client, scheme);
    let destination = Destination::External(route.clone());
    match front.switch.send(&caller, &destination, parts, Replay::new(body)).await {
        Ok(response) => Ok(response),
        Err(refusal) => {
            if matches!(refusal, Refusal::Busy) {
                tokio::time::sleep(BUSY_PAUSE.mul_f64(1.0 + rand::random::<f64>())).await;
            }
            let service = &route.service;
            let kind = if balancer { "port" } else { "node port" };
            let why = format!(
                "Service {}/{} ({kind} {}) cannot answer: {refusal}.",
                service.namespace, service.name, front.at.1
            );
            Ok(page(refusal.status(), &why))
        }
    }
}

/// What balancers in front of the nodes are told: whether this one has Pods of a Service. In the words
/// of a stock node, for those that read more than the status.
fn health(service: &ServiceKey, endpoints: usize) -> Response<Reply> {
    let ServiceKey { namespace, name } = service;
    let told = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Reply::Text(Bytes::from(told.to_string())));
    if endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ENDPOINT_WEIGHT, HeaderValue::from(endpoints));
    response
}

/// Settles what a request can say in two ways, so that nobody behind this hop reads it differently: it
/// is for one host, and its body has one end. The error is for the client. What hyper refuses by
/// itself (two lengths, folded lines, bytes that no header has) does not come here.
pub fn settle(parts: &mut Parts) -> Result<(), &'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err("The request has several Host headers.");
    }
    if host.is_some_and(|host| !host.is_empty() && !is_authority(host.as_bytes())) {
        return Err("The Host header names no host.");
    }
    if let Some(authority) = parts.uri.authority() {
        if parts.uri.scheme().is_none() || !is_authority(authority.as_str().as_bytes()) {
            return Err("The request asks for neither a path nor a URL.");
        }
        // The line of the request counts, not the header.
        if host.is_some_and(|host| host.as_bytes() != authority.as_str().as_bytes())
            && let Ok(host) = HeaderValue::try_from(authority.as_str())
        {
            parts.headers.insert(header::HOST, host);
        }
    }
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let only_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|one| !only_chunked(one)) || codings.next().is_some() {
        return Err("The body has another transfer coding than chunked.");
    }
    Ok(())
}

/// A host with or without a port, and nobody's name before it.
fn is_authority(text: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(text) else { return false };
    match authority.as_str().strip_prefix(authority.host()) {
        _ if authority.host().is_empty() => false,
        Some("" | ":") => true,
        Some(port) => port.strip_prefix(':').is_some_and(is_port),
        None => false,
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|digit| digit.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Removes what was meant for this hop.
pub fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for name in named.iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')) {
        headers.remove(name.trim());
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes what was meant for this hop, and says who the client is. A list that a proxy in front
/// began is continued.
pub fn forward_headers(headers: &mut HeaderMap, client: HeaderValue, scheme: HeaderValue) {
    strip_hop(headers);
    match headers.entry(X_FORWARDED_FOR) {
        Entry::Vacant(entry) => {
            entry.insert(client);
        }
        Entry::Occupied(mut entry) => {
            let earlier: Vec<&[u8]> = entry.iter().map(HeaderValue::as_bytes).collect();
            let list = [earlier.join(&b", "[..]).as_slice(), b", ", client.as_bytes()].concat();
            entry.insert(HeaderValue::from_bytes(&list).unwrap_or(client));
        }
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
}

/// A page of plain text: the status in words, and why.
pub fn page(status: StatusCode, why: &str) -> Response<Reply> {
    let mut response = Response::new(Reply::Text(Bytes::from(format!("{status}\n\n{why}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    if UNREAD.contains(&status) {
        // What follows on the connection may be a part of the same request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_forwarded(before: &[(&str, &str)], expected: &[&str]) {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let client = HeaderValue::from_static("192.0.2.7");
        forward_headers(&mut headers, client, HeaderValue::from_static("http"));
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_client_is_named_and_hop_headers_go() {
        check_forwarded(&[], &["x-forwarded-for: 192.0.2.7", "x-forwarded-proto: http"]);
        check_forwarded(
            &[("connection", "close, X-Private"), ("x-private", "1"), ("te", "x"), ("a", "b")],
            &["a: b", "x-forwarded-for: 192.0.2.7", "x-forwarded-proto: http"],
        );
        check_forwarded(
            &[("connection", "x-one"), ("connection", "x-two"), ("x-one", "1"), ("x-two", "2")],
            &["x-forwarded-for: 192.0.2.7", "x-forwarded-proto: http"],
        );
    }

    /// What is wrong with a request, or the host that it is for.
    fn settled(
        uri: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<String, &'static str> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        settle(&mut parts)?;
        let host = parts.headers.get(header::HOST);
        Ok(host.map_or("-", |host| host.to_str().expect("text")).to_owned())
    }

    #[test]
    fn no_balancer_takes_the_port_of_the_api_server() {
        let (own, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 80]));
        assert!(is_api(&(Some(own), 6443, Protocol::Tcp), own));
        assert!(!is_api(&(Some(other), 6443, Protocol::Tcp), own), "an address of its own");
        assert!(!is_api(&(Some(own), 8443, Protocol::Tcp), own));
        assert!(!is_api(&(Some(own), 6443, Protocol::Udp), own));
    }

    #[test]
    fn a_request_is_for_one_host_and_has_one_end() {
        let fine = |uri, headers: &[_], host: &str| {
            assert_eq!(settled(uri, headers).as_deref(), Ok(host), "{uri} {headers:?}");
        };
        fine("/", &[("host", "a.example:80")], "a.example:80");
        fine(
            "/",
            &[("host", "[2001:db8::1]:80"), ("transfer-encoding", "Chunked")],
            "[2001:db8::1]:80",
        );
        fine("/", &[("host", "")], "");
        fine("/", &[("host", "a.example:")], "a.example:");
        fine("http://a.example/", &[("host", "b.example")], "a.example");
        // HTTP/2 has no header for it.
        fine("http://a.example/", &[], "-");
        let refused = |uri: &str, headers: &[_], word: &str| {
            let why = settled(uri, headers).expect_err("it is refused");
            assert!(why.contains(word), "{uri} {headers:?}: {why}");
        };
        refused("/", &[("host", "a"), ("host", "a")], "several");
        refused("/", &[("host", "a b")], "no host");
        refused("/", &[("host", "me@a")], "no host");
        refused("/", &[("host", "a/b")], "no host");
        refused("/", &[("host", "a:b")], "no host");
        refused("/", &[("host", ":80")], "no host");
        refused("/", &[("host", "a:+80")], "no host");
        refused("/", &[("host", "a:99999")], "no host");
        refused("/", &[("host", "[::1]:b")], "no host");
        refused("a.example", &[("host", "a.example")], "neither");
        refused("http://me@a.example/", &[], "neither");
        for codings in ["gzip", "gzip, chunked", "chunked, chunked", "xchunked"] {
            let headers = [("host", "a"), ("transfer-encoding", codings)];
            refused("/", &headers, "chunked");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        refused("/", &twice, "chunked");
    }

    #[test]
    fn a_proxy_in_front_keeps_its_word() {
        check_forwarded(
            &[
                ("x-forwarded-for", "203.0.113.1"),
                ("x-forwarded-for", "198.51.100.2"),
                ("x-forwarded-proto", "https"),
            ],
            &["x-forwarded-for: 203.0.113.1, 198.51.100.2, 192.0.2.7", "x-forwarded-proto: https"],
        );
    }
}
