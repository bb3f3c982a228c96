//! Streams of bytes to Pods, for whatever does not speak in HTTP requests: sockets of guests, node
//! ports of Pods that listen with a socket, and port-forwards.
//!
//! A stream leads to a guest that listens (a pair of ends in memory), to a handler (which sees
//! requests: HTTP/1.1 or 2 is spoken to it here), or to another worker, as one HTTP/2 stream whose
//! bodies are the two directions. The other way round, a request for a Pod whose guest listens is
//! spoken to it over such a stream, see [`Switch::exchange`].

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::net::TcpStream;
use wherry_wasi_shim::{Body, BodyError, NetworkError};

use super::{
    balance::{Open, Speaks},
    datagrams::DATAGRAM_HEADER,
    network::{Destination, Endpoint, Place, forbidden},
    opening::Opening,
    outside::is_own,
    pipe::{self, Breaker, End, body_of, pump},
    policy::Caller,
    reply::Reply,
    served::Served,
    switch::{FROM_HEADER, POD_HEADER, REFUSED_HEADER, Refusal, Switch},
    traffic::Connected,
};
use crate::protocol::Protocol;

/// A connection that somebody has opened.
pub type Opened = Connected<End>;

/// On a request between workers: its bodies are the bytes of a connection, and this is who connects.
pub const STREAM_HEADER: HeaderName = HeaderName::from_static("wherry-stream");
/// On such a request: only if the Pod takes connections as they are.
const BYTES_HEADER: HeaderName = HeaderName::from_static("wherry-bytes");
/// What a guest's own request must not carry to another worker.
pub const INNER_HEADERS: [HeaderName; 3] = [STREAM_HEADER, BYTES_HEADER, DATAGRAM_HEADER];
/// To connect to an address outside of the cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From a request to the head of the answer of whoever listens. The last resort: who asks has times
/// of their own, and a large body may take long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// From a connection's begin to the end of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

impl Switch {
    /// Connects to a destination; `from` is told to whoever listens.
    pub async fn open(
        self: &Arc<Switch>,
        caller: &Caller,
        destination: &Destination,
        from: SocketAddr,
    ) -> Result<Opened, Refusal> {
        let destination = &self.awake(destination).await?;
        let turn = Switch::turn(destination, caller);
        let mut tried = Vec::new();
        let mut refusal = super::switch::no_endpoint(destination);
        while tried.len() < destination.attempts_max()
            && let Some(index) = self.pick(destination, caller, turn, &tried)
        {
            tried.push(index);
            let opened = self.open_at(caller, &destination.endpoints()[index], from, false).await;
            self.learn(destination, caller, index, opened.as_ref().err());
            match opened {
                Ok(stream) => return Ok(self.pair(caller, destination).opened(stream)),
                Err(other) => refusal = other,
            }
        }
        self.pair(caller, destination).refused();
        Err(refusal)
    }

    /// Connects somebody of whom nothing has been read yet. None: the Pods take requests, or none
    /// can be asked.
    pub async fn open_bytes(
        self: &Arc<Switch>,
        caller: &Caller,
        destination: &Destination,
        from: SocketAddr,
    ) -> Option<Result<Opened, Refusal>> {
        let endpoints = destination.endpoints();
        let speaks = |it: &Endpoint| match &it.place {
            Place::Local if self.ports.is_listening(it.address) => Speaks::Bytes,
            Place::Local if self.served(it.address).is_some() => Speaks::Requests,
            Place::Local => Speaks::Unknown,
            Place::Outside => Speaks::Bytes,
            Place::Peer(_) => it.load.speaks(),
        };
        let known = endpoints.iter().map(speaks);
        match known.clone().find(|speaks| *speaks != Speaks::Unknown) {
            Some(Speaks::Bytes) => return Some(self.open(caller, destination, from).await),
            Some(_) => return None,
            None => {}
        }
        // The connection is tried as one of bytes: for those that take them nothing is lost.
        let turn = Switch::turn(destination, caller);
        let endpoint = &endpoints[self.pick(destination, caller, turn, &[])?];
        match self.open_at(caller, endpoint, from, true).await {
            Ok(stream) => {
                endpoint.load.found(Speaks::Bytes);
                Some(Ok(self.pair(caller, destination).opened(stream)))
            }
            Err(Refusal::Handler) => {
                endpoint.load.found(Speaks::Requests);
                None
            }
            Err(refusal @ Refusal::Denied { .. }) => Some(Err(refusal)),
            // Whoever speaks HTTP is told why.
            Err(_) => None,
        }
    }

    async fn open_at(
        self: &Arc<Switch>,
        caller: &Caller,
        endpoint: &Endpoint,
        from: SocketAddr,
        bytes_only: bool,
    ) -> Result<End, Refusal> {
        let address = endpoint.address;
        let open = endpoint.load.enter();
        match &endpoint.place {
            Place::Local => {
                self.permit(caller, address, Protocol::Tcp)?;
                Ok(self.dial(address, from)?.counted(open))
            }
            Place::Peer(peer) => {
                let (ours, theirs) = pipe::pair();
                let breaker = theirs.breaker();
                let (reading, writing) = tokio::io::split(theirs);
                let request = stream_request(caller, address, from, bytes_only, reading);
                let (mut response, guard) = peer.send(request).await.map_err(Refusal::Peer)?;
                if let Some(word) = response.headers_mut().remove(REFUSED_HEADER) {
                    return Err(Refusal::from_word(&word, address));
                }
                self.streams.spawn(async move {
                    pump(response.into_body(), writing, breaker).await;
                    drop((guard, open));
                });
                Ok(ours)
            }
            Place::Outside => {
                self.may_dial(caller, address)?;
                let mut stream = self.dial_endpoint(address).await?;
                let (ours, mut theirs) = pipe::pair();
                self.streams.spawn(async move {
                    // Either end may break it off, and the other one is told.
                    let breaker = theirs.breaker();
                    if join(&mut stream, &mut theirs, &breaker).await.is_err() {
                        tracing::debug!(%address, "a connection to the outside ended early");
                    }
                    drop(open);
                });
                Ok(ours)
            }
        }
    }

    /// Whether somebody may connect to an address outside of the cluster that stands in an
    /// EndpointSlice. Clients from outside may have been sent to this machine on purpose; a Pod would
    /// get behind what stands before it.
    fn may_dial(&self, caller: &Caller, to: SocketAddr) -> Result<(), Refusal> {
        let policies = self.policies().clone();
        let is_machine =
            || policies.is_machine(to.ip()) || (caller.pod.is_some() && is_own(to.ip()));
        if forbidden(to.ip()).is_some() || is_machine() {
            let why = "it is an address of a node or of the control plane".to_owned();
            return Err(Refusal::Unconnected { to, why, late: false });
        }
        match &caller.pod {
            Some(pod) => self.heed(policies.judge_endpoint(pod, to), Some(pod), None),
            None => Ok(()),
        }
    }

    /// Connects to an address outside of the cluster.
    async fn dial_endpoint(&self, to: SocketAddr) -> Result<TcpStream, Refusal> {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => {
                // A socket that cannot do it is broken and will say so on the first read.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(Refusal::Unconnected { to, why: error.to_string(), late: false }),
            Err(_) => {
                let why = format!("nobody answered within {CONNECT_TIMEOUT:?}");
                Err(Refusal::Unconnected { to, why, late: true })
            }
        }
    }

    /// Speaks one request to an address outside of the cluster, over a connection that was kept if
    /// there is one and the request can be sent twice.
    pub async fn exchange_outside(
        &self,
        caller: &Caller,
        to: SocketAddr,
        request: Request<Body>,
        open: Option<Open>,
    ) -> Result<Response<Reply>, Refusal> {
        self.may_dial(caller, to)?;
        let mut request = origin_form(request, to);
        request.headers_mut().remove(header::CONNECTION);
        let is_empty = request.body().is_end_stream();
        if is_empty && request.headers().contains_key(header::CONTENT_LENGTH) {
            // A length that is not kept would be taken from the next request on the connection.
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let reply = |response: Response<Incoming>, open| {
            response.map(|body| Reply::Socket { body, _open: open })
        };
        if is_empty
            && request.method().is_safe()
            && let Some(sender) = self.kept.take(to)
        {
            let (head, body) = request.into_parts();
            match self.ask(to, sender, Request::from_parts(head.clone(), body)).await {
                // It was closed while nobody looked.
                Err(Refusal::Broken(_)) => {}
                answered => return answered.map(|response| reply(response, open)),
            }
            let nothing = Body::new(Empty::new().map_err(|never| match never {}));
            request = Request::from_parts(head, nothing);
        }
        let stream = self.dial_endpoint(to).await?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|_| Refusal::Broken(to))?;
        self.streams.spawn(async move {
            // What went wrong shows in the answer, or in its absence.
            let _ = connection.await;
        });
        self.ask(to, sender, request).await.map(|response| reply(response, open))
    }

    /// Sends a request over a connection, and keeps that for the next one.
    pub async fn ask(
        &self,
        to: SocketAddr,
        mut sender: http1::SendRequest<Body>,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Refusal> {
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(broken(&error, to)),
            Err(_) => return Err(Refusal::Deadline),
        };
        let (kept, tasks) = (self.kept.clone(), self.streams.clone());
        self.streams.spawn(async move {
            // As soon as the answer has come; one that is given up takes its connection with it.
            if sender.ready().await.is_ok() {
                kept.put(to, sender, &tasks);
            }
        });
        Ok(response)
    }

    /// Connects to a Pod of this worker.
    pub fn dial(self: &Arc<Switch>, address: SocketAddr, from: SocketAddr) -> Result<End, Refusal> {
        match self.ports.connect(address, from) {
            Ok(stream) => return Ok(stream),
            Err(NetworkError::TimedOut) => return Err(Refusal::Busy),
            Err(_) => {}
        }
        let served = self.served(address).ok_or(Refusal::Gone(address))?;
        let (ours, theirs) = pipe::pair();
        self.streams.spawn(speak_http(served, theirs));
        Ok(ours)
    }

    /// Speaks one request to a guest that listens: in HTTP/1.1, or in HTTP/2 if it is one of gRPC.
    pub async fn exchange(
        &self,
        address: SocketAddr,
        request: Request<Body>,
        open: Option<Open>,
    ) -> Result<Response<Reply>, Refusal> {
        let from = SocketAddr::new(address.ip(), self.ports.ephemeral());
        let stream = self.ports.connect(address, from).map_err(|error| match error {
            NetworkError::TimedOut => Refusal::Busy,
            _ => Refusal::Gone(address),
        })?;
        if is_grpc(request.headers()) {
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = shaken.map_err(|_| Refusal::Failed)?;
            self.streams.spawn(async move {
                let _ = connection.await;
            });
            let request = absolute_form(request, address);
            return answered(sender.send_request(request), address, open).await;
        }
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|_| Refusal::Failed)?;
        self.streams.spawn(async move {
            // What went wrong shows in the answer, or in its absence.
            let _ = connection.await;
        });
        let request = origin_form(request, address);
        answered(sender.send_request(request), address, open).await
    }

    /// Answers a peer that wants a stream to a Pod of this worker.
    pub fn accept_stream(
        self: &Arc<Switch>,
        caller: &Caller,
        address: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Refusal> {
        self.permit(caller, address, Protocol::Tcp)?;
        if request.headers().contains_key(BYTES_HEADER) && !self.ports.is_listening(address) {
            self.served(address).ok_or(Refusal::Gone(address))?;
            return Err(Refusal::Handler);
        }
        let from = request.headers().get(STREAM_HEADER);
        let from = from.and_then(|from| from.to_str().ok()?.parse().ok());
        let stream = self.dial(address, from.ok_or(Refusal::BadRequest)?)?;
        let breaker = stream.breaker();
        let (reading, writing) = tokio::io::split(stream);
        self.streams.spawn(pump(request.into_body(), writing, breaker));
        Ok(Response::new(Reply::Stream(body_of(reading))))
    }
}

/// Copies both ways between a socket of the machine and an end in memory until both have ended. Who
/// breaks one off breaks the other off: a client of bytes sees a reset, not an end.
pub async fn join<S>(socket: &mut TcpStream, inner: &mut S, breaker: &Breaker) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Err(error) = tokio::io::copy_bidirectional(socket, inner).await else { return Ok(()) };
    breaker.break_off();
    // A guest that has closed its end (a broken pipe) may have said all before.
    if error.kind() == io::ErrorKind::ConnectionReset {
        // A socket that cannot do it is closed all the same.
        let _ = socket.set_zero_linger();
    }
    Err(error)
}

/// Why a request to whoever listens has no answer.
fn broken(error: &hyper::Error, to: SocketAddr) -> Refusal {
    // The body could not be read on: that is not theirs.
    if error.is_user() { Refusal::Incomplete } else { Refusal::Broken(to) }
}

/// What asks another worker for a stream.
fn stream_request(
    caller: &Caller,
    address: SocketAddr,
    from: SocketAddr,
    bytes_only: bool,
    reading: ReadHalf<End>,
) -> Request<Body> {
    let mut request = Request::new(body_of(reading));
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://{address}/").parse().expect("an address makes a URI");
    let visible = "an address is visible ASCII";
    let headers = request.headers_mut();
    headers.insert(POD_HEADER, HeaderValue::try_from(address.to_string()).expect(visible));
    headers.insert(FROM_HEADER, caller.word());
    headers.insert(STREAM_HEADER, HeaderValue::try_from(from.to_string()).expect(visible));
    if bytes_only {
        headers.insert(BYTES_HEADER, HeaderValue::from_static("only"));
    }
    request
}

/// The answer of a guest that listens.
async fn answered(
    asked: impl Future<Output = hyper::Result<Response<Incoming>>>,
    address: SocketAddr,
    open: Option<Open>,
) -> Result<Response<Reply>, Refusal> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(response)) => Ok(response.map(|body| Reply::Socket { body, _open: open })),
        Ok(Err(error)) => Err(broken(&error, address)),
        Err(_) => Err(Refusal::Deadline),
    }
}

/// gRPC is spoken in HTTP/2 alone; its form for browsers, `grpc-web`, is not.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// HTTP/2 between two ends: the host in the address, as HTTP/1.1 has it in a header.
fn absolute_form(mut request: Request<Body>, address: SocketAddr) -> Request<Body> {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    let host = host.and_then(|host| Some(host.to_str().ok()?.to_owned()));
    let named = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let authority = host.or(named).unwrap_or_else(|| address.to_string());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
    request
}

/// HTTP/1.1 between two ends: a path, and the host in its header.
pub fn origin_form(mut request: Request<Body>, address: SocketAddr) -> Request<Body> {
    *request.version_mut() = Version::HTTP_11;
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().unwrap_or_else(|_| Uri::from_static("/"));
    let headers = request.headers_mut();
    if !headers.contains_key(header::HOST) {
        let host = authority.unwrap_or_else(|| address.to_string());
        if let Ok(host) = HeaderValue::try_from(host) {
            headers.insert(header::HOST, host);
        }
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Serves a handler to somebody who writes bytes.
async fn speak_http(served: Arc<Served>, stream: End) {
    let service = service_fn(move |request: Request<Incoming>| {
        let served = served.clone();
        async move {
            let mut flight = served.enter();
            let request = request.map(|body| Body::new(body.map_err(BodyError::new)));
            let answer = flight.handle(request).await.map_err(Refusal::from);
            Ok::<_, Infallible>(match answer {
                Ok(response) => response.map(|body| Reply::Guest { body, flight }),
                Err(refusal) => {
                    let mut response = Response::new(Reply::Text(format!("{refusal}\n").into()));
                    *response.status_mut() = refusal.status();
                    response
                }
            })
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // Who has said all may still wait for the answer.
        .half_close(true);
    builder.http2().timer(TokioTimer::new());
    let stream = TokioIo::new(Opening::new(stream, HEAD_TIMEOUT));
    if let Err(error) = builder.serve_connection(stream, service).await {
        tracing::debug!(%error, "a stream to a handler ended early");
    }
}
