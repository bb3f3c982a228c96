//! Ingress: HTTP and HTTPS from outside, by host and path.
//!
//! Served by the worker of one namespace ([`crate::protocol::INGRESS_NAMESPACE`]) on every node: the
//! keys of certificates lie in no process that tenants' guests run in. It answers what is not the
//! backends' to answer with pages that say why, keeps to limits that the client cannot change, and
//! writes one line a request to its access log.
//!
//! ```text
//!   client ─ TLS by SNI ─ HTTP/1.1 or 2 ─▶ rules ─▶ switch ─▶ Pod
//!                             └ upgrade (WebSocket) ─▶ a connection of bytes to a Pod that listens
//! ```

mod body;
mod certificates;
mod rules;

use std::{
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
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::{Bounded, SILENCE_MAX},
    certificates::Certificates,
    rules::{Missing, Rules, host_of},
};
use super::{
    front::{forward_headers, page},
    listen::{self, Closing},
    logs::{Log, Logs},
    network::{Destination, Route},
    policy::Caller,
    reply::{Replay, Reply},
    switch::Switch,
    traffic::INGRESS,
};
use crate::protocol::{IngressRule, IngressTable, ServiceKey};

/// From accept to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client must have sent the whole head by then; an idle connection is closed after as long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// All headers of a request together.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// HTTP/2 clients that are gone without a word are noticed.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the head of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest body of a request, unless the Ingress says another.
const BODY_BYTES_MAX: u64 = 1 << 30;
/// Path and agent in the access log: a line stays a line.
const LOGGED_MAX: usize = 512;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The listeners of a node.
pub struct Ingresses {
    address: IpAddr,
    places: Arc<Semaphore>,
    door: Arc<Door>,
    wanted: IngressTable,
    http: Option<(u16, CancellationToken)>,
    https: Option<(u16, CancellationToken)>,
    tasks: TaskTracker,
}

/// What all connections share.
struct Door {
    switch: Arc<Switch>,
    rules: ArcSwap<Rules>,
    certificates: Arc<Certificates>,
    log: Log,
}

impl Ingresses {
    /// Listens nowhere yet. `connections_max` bounds the connections of both ports together.
    pub fn new(
        switch: Arc<Switch>,
        logs: &Logs,
        log: std::path::PathBuf,
        address: IpAddr,
        connections_max: usize,
    ) -> Ingresses {
        let door = Door {
            switch,
            rules: ArcSwap::default(),
            certificates: Certificates::new(),
            log: logs.open(log),
        };
        Ingresses {
            address,
            places: Arc::new(Semaphore::new(connections_max)),
            door: Arc::new(door),
            wanted: IngressTable::default(),
            http: None,
            https: None,
            tasks: TaskTracker::new(),
        }
    }

    /// Serves these rules from now on.
    pub fn publish(&mut self, table: IngressTable) {
        self.door.rules.store(Arc::new(Rules::new(&table)));
        self.door.certificates.publish(&table.certificates);
        self.wanted = table;
        self.update();
    }

    /// Listens where it shall. Called again from time to time, it tries what could not be bound.
    pub fn update(&mut self) {
        let (http, https) = (self.wanted.http_port, self.wanted.https_port);
        self.http = self.adjust(self.http.clone(), http, false);
        self.https = self.adjust(self.https.clone(), https, true);
    }

    fn adjust(
        &self,
        held: Option<(u16, CancellationToken)>,
        wanted: Option<u16>,
        tls: bool,
    ) -> Option<(u16, CancellationToken)> {
        if let Some((port, stop)) = held {
            if Some(port) == wanted {
                return Some((port, stop));
            }
            stop.cancel();
        }
        let address = SocketAddr::new(self.address, wanted?);
        match self.listen(address, tls) {
            Ok(stop) => {
                tracing::info!(%address, tls, "Ingress listens");
                Some((address.port(), stop))
            }
            Err(error) => {
                tracing::warn!(%address, %error, "Ingress cannot listen");
                None
            }
        }
    }

    fn listen(&self, address: SocketAddr, tls: bool) -> Result<CancellationToken, std::io::Error> {
        let acceptor = match tls {
            true => {
                let config = self.door.certificates.config().map_err(std::io::Error::other)?;
                Some(TlsAcceptor::from(config))
            }
            false => None,
        };
        let listener = listen::bind(address)?;
        let stop = CancellationToken::new();
        let door = self.door.clone();
        let serve = move |stream, remote, closing| {
            accept(door.clone(), acceptor.clone(), stream, remote, closing)
        };
        let accepting = listen::accept(listener, stop.clone(), self.places.clone(), serve);
        self.tasks.spawn(accepting);
        Ok(stop)
    }

    /// Stops accepting and asks connections to close after the requests they have.
    pub fn stop(&mut self) {
        for (_, stop) in [self.http.take(), self.https.take()].into_iter().flatten() {
            stop.cancel();
        }
        self.tasks.close();
    }

    /// After [`Ingresses::stop`]: ends when all connections have.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }
}

async fn accept(
    door: Arc<Door>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    remote: SocketAddr,
    closing: Closing,
) {
    match acceptor {
        None => serve(door, stream, remote, closing, false).await,
        Some(acceptor) => {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve(door, stream, remote, closing, true).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake"),
                Err(_) => tracing::debug!(%remote, "the TLS handshake took too long"),
            }
        }
    }
}

async fn serve<S>(door: Arc<Door>, stream: S, remote: SocketAddr, closing: Closing, tls: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = Arc::new(Client {
        caller: Caller::outside_by(remote.ip(), INGRESS),
        word: HeaderValue::try_from(remote.ip().to_canonical().to_string())
            .expect("an address is visible ASCII"),
        remote,
        tls,
    });
    let service = service_fn(move |request| answer(door.clone(), client.clone(), request));
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
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome,
        () = closing.asked() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%remote, %error, "connection ended early");
    }
}

/// Who is at the other end.
struct Client {
    caller: Caller,
    word: HeaderValue,
    remote: SocketAddr,
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
    client: &Client,
    request: Request<Incoming>,
    line: &mut Line,
) -> Result<Response<Reply>, Refused> {
    let host = line.host.clone();
    if request.method() == Method::CONNECT {
        let why = "An Ingress is not a proxy: CONNECT goes nowhere.".to_owned();
        return Err((StatusCode::METHOD_NOT_ALLOWED, why));
    }
    if host.is_empty() && request.version() > Version::HTTP_10 {
        return Err((StatusCode::BAD_REQUEST, "The request has no Host header.".to_owned()));
    }
    let rules = door.rules.load_full();
    let path = request.uri().path();
    let rule = rules.find(&host, path).map_err(|missing| match missing {
        Missing::Host => (StatusCode::NOT_FOUND, format!("No Ingress is for the host {host:?}.")),
        Missing::Path => {
            (StatusCode::NOT_FOUND, format!("No Ingress for {host} has a rule for {path:?}."))
        }
    })?;
    let ServiceKey { namespace, name } = &rule.ingress;
    line.rule = format!("{namespace}/{name} {}:{}", rule.service, rule.port);
    if rule.redirect && !client.tls {
        return Ok(to_https(&host, request.uri().path_and_query().map_or("/", |it| it.as_str())));
    }
    let route = backend(door, rule)?;
    let (mut parts, body) = request.into_parts();
    let max = rule.body_bytes_max.unwrap_or(BODY_BYTES_MAX);
    if length(&parts.headers).is_some_and(|length| length > max) {
        let why = format!("The body is larger than Ingress {namespace}/{name} takes: {max} bytes.");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let refused = |why: String, status| {
        let why = format!(
            "Ingress {namespace}/{name}: Service {namespace}/{} (port {}) cannot answer: {why}.",
            rule.service, rule.port
        );
        (status, why)
    };
    let destination = Destination::Route(route);
    if let Some(protocol) = wants_upgrade(&parts) {
        let upgraded = upgrade(door, client, &destination, parts, body, protocol).await;
        return upgraded.map_err(|(status, why)| refused(why, status));
    }
    prepare(&mut parts.headers, client, &host);
    let body = Replay::new(Bounded::new(body, max, SILENCE_MAX));
    let sent = door.switch.send(&client.caller, &destination, parts, body);
    match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(refusal)) => Err(refused(refusal.to_string(), refusal.status())),
        Err(_) => {
            let why = format!("there was no answer within {ANSWER_TIMEOUT:?}");
            Err(refused(why, StatusCode::GATEWAY_TIMEOUT))
        }
    }
}

/// The Service's port behind a rule.
fn backend(door: &Door, rule: &IngressRule) -> Result<Arc<Route>, Refused> {
    let ServiceKey { namespace, name } = &rule.ingress;
    let service = ServiceKey { namespace: namespace.clone(), name: rule.service.clone() };
    let table = door.switch.table();
    if let Some(route) = table.service_port(&service, &rule.port) {
        return Ok(route.clone());
    }
    let why = match table.has_service(&service) {
        true => format!("has no port {}", rule.port),
        false => "does not exist".to_owned(),
    };
    let why = format!("Ingress {namespace}/{name}: Service {namespace}/{} {why}.", rule.service);
    Err((StatusCode::SERVICE_UNAVAILABLE, why))
}

fn to_https(host: &str, path: &str) -> Response<Reply> {
    let mut response = page(StatusCode::PERMANENT_REDIRECT, "This host is served over HTTPS.");
    if let Ok(location) = HeaderValue::try_from(format!("https://{host}{path}")) {
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

/// The protocol that an HTTP/1.1 client wants to go over to.
fn wants_upgrade(parts: &Parts) -> Option<HeaderValue> {
    let connection = parts.headers.get(header::CONNECTION)?.to_str().ok()?;
    let asked = connection.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = parts.headers.get(header::UPGRADE)?;
    (asked && parts.version == Version::HTTP_11).then(|| protocol.clone())
}

/// Passes an upgrade on: the request over a connection of its own, then bytes both ways.
async fn upgrade(
    door: &Door,
    client: &Client,
    destination: &Destination,
    mut parts: Parts,
    body: Incoming,
    protocol: HeaderValue,
) -> Result<Response<Reply>, Refused> {
    let bad = |why: &str| (StatusCode::BAD_GATEWAY, why.to_owned());
    let opened = door.switch.open(&client.caller, destination, client.remote).await;
    let stream = opened.map_err(|refusal| (refusal.status(), refusal.to_string()))?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|_| bad("it does not speak HTTP"))?;
    door.switch.streams.spawn(async move {
        // What went wrong shows in the answer, or in its absence.
        let _ = connection.with_upgrades().await;
    });
    let host = parts.headers.get(header::HOST).cloned();
    let named = host.as_ref().and_then(|host| host.to_str().ok()).map(host_of).unwrap_or("");
    prepare(&mut parts.headers, client, &named.to_owned());
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
            // Either side may break it off; there is nobody to tell.
            let _ = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
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
        serde_json::json!({
            "client": self.client.to_string(),
            "tls": self.tls,
            "method": self.method.as_str(),
            "protocol": format!("{:?}", self.version),
            "host": self.host,
            "path": self.path,
            "agent": self.agent,
            "ingress": self.rule,
            "status": status.as_u16(),
            "why": self.why,
            "took_ms": took.as_micros() as f64 / 1000.0,
        })
        .to_string()
    }
}
