//! The server's half of the node tunnel.
//!
//! An agent opens `GET /wherry/v1/tunnel` with an upgrade; after the 101 the roles turn round and
//! the server sends HTTP/2 requests down the same stream. So a node needs no reachable address, and
//! the server cannot be talked into dialling one: a node is who its certificate says, and nobody
//! else. A connection that breaks, or on which pings stay unanswered, is dropped at once and never
//! used again. The agent opens the next one. A request that fails or comes back late says nothing
//! of its connection: the agent would not open another one while this one lives.
//!
//! ```text
//! agent --- GET /wherry/v1/tunnel, Upgrade: wherry-tunnel --> server
//! agent <-- 101 Switching Protocols ------------------------- server
//! agent <== HTTP/2: GET /logs/{namespace}/{pod}/{container} = server
//! ```
//!
//! One task a tunnel drives its connection; it ends with the connection or with the shutdown.
//!
//! What goes on for as long as a client likes (logs, commands, forwarded ports, proxies) is counted
//! for each node, by user and in all, below what an agent takes at a time: nobody keeps others from
//! their streams, and short questions and relays, which are not counted, always find room.

use super::{
    ApiServer,
    auth::{self, User},
    errors::ApiError,
    rbac,
};
use axum::{body::Body, extract::State, response::Response};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Protocol name in the upgrade.
const PROTOCOL: &str = "wherry-tunnel";
/// An agent that does not begin to answer in this time counts as gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A tunnel whose other end has vanished is noticed after this and [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent that opens a stream may have to wait for its worker, and that for code to be loaded.
const OPEN_TIMEOUT: Duration = Duration::from_secs(45);
/// A tunnel that broke, as when its node was paused, is opened again within this time: agents wait at
/// most five seconds before they try.
const REOPEN_MAX: Duration = Duration::from_secs(6);
/// Streams of one user to one node: 64 MiB, if all of them are stuck. The agent takes eight times as
/// many.
const STREAMS_PER_USER_MAX: u32 = 256;
/// Streams of all users to one node. The rest of what an agent takes is for its 128 relays, and for
/// questions that are answered at once.
const STREAMS_PER_NODE_MAX: u32 = 1_792;
/// What one stream, and all of them together, may hold of what nobody has taken yet: streams that
/// are stuck leave room for the others. The agent allows 2,048 of them.
const STREAM_WINDOW: u32 = 256 << 10;
const TUNNEL_WINDOW: u32 = 2_048 * STREAM_WINDOW;
/// What a client is told to wait whose stream is one too many.
const RETRY_AFTER_SECONDS: u32 = 1;

type Sender = http2::SendRequest<Body>;

/// Why a request did not reach an agent.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// There is no connection from that node to this member.
    #[error("node {0:?} is not connected to this member of the control plane")]
    NotConnected(String),
    /// The connection broke on the way.
    #[error("the connection to node {node:?} failed")]
    Failed { node: String, source: hyper::Error },
    /// The agent did not answer.
    #[error("node {0:?} did not answer in time")]
    NoAnswer(String),
}

#[derive(Clone)]
struct Tunnel {
    /// Tells two connections of the same node apart.
    id: u64,
    sender: Sender,
}

/// Open tunnels by node name.
#[derive(Clone, Default)]
pub struct Tunnels {
    // A plain mutex: sections are a map operation long and never await.
    open: Arc<Mutex<HashMap<String, Tunnel>>>,
    /// Wakes whoever waits for a tunnel.
    opened: Arc<Notify>,
    /// Streams that are counted, by node. A plain mutex for the same reason.
    counts: Arc<Mutex<HashMap<String, Counts>>>,
}

/// Streams to one node.
#[derive(Default)]
struct Counts {
    all: u32,
    /// By [`whose`].
    users: HashMap<String, u32>,
}

/// One stream of a user to a node; counts until it is dropped.
pub struct StreamCount {
    tunnels: Tunnels,
    node: String,
    whose: String,
}

impl StreamCount {
    /// A body that counts until it has been read or dropped.
    pub fn body(self, body: Incoming) -> Body {
        Body::new(body.map_frame(move |frame| {
            _ = &self;
            frame
        }))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        let mut counts = self.tunnels.counts();
        let Some(of_node) = counts.get_mut(&self.node) else { return };
        of_node.all -= 1;
        if let Some(count) = of_node.users.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                of_node.users.remove(&self.whose);
            }
        }
        if of_node.all == 0 {
            counts.remove(&self.node);
        }
    }
}

/// Who counts as one user. A namespace makes as many service accounts as it likes.
fn whose(user: &User) -> String {
    match rbac::service_account_of(&user.name) {
        Some((namespace, _)) => format!("the service accounts of namespace {namespace:?}"),
        None => format!("user {:?}", user.name),
    }
}

impl Tunnels {
    fn open_tunnels(&self) -> MutexGuard<'_, HashMap<String, Tunnel>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, Counts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more stream of a user to a node, or refuses it. Administrators have as many as all
    /// together may have.
    pub fn count(&self, node: &str, user: &User) -> Result<StreamCount, ApiError> {
        let whose = whose(user);
        let full = |many: u32, whose: &str| ApiError::TooManyRequests {
            message: format!(
                "{many} streams to node {node:?} are open for {whose}, the most allowed (logs, \
                 commands, forwarded ports, proxied requests); end some of them"
            ),
            causes: Vec::new(),
            retry_after_seconds: RETRY_AFTER_SECONDS,
        };
        let mut counts = self.counts();
        let (all, own) = counts.get(node).map_or((0, 0), |of_node| {
            (of_node.all, of_node.users.get(&whose).copied().unwrap_or(0))
        });
        if own >= STREAMS_PER_USER_MAX && !user.is_in(auth::MASTERS) {
            return Err(full(own, &whose));
        }
        if all >= STREAMS_PER_NODE_MAX {
            return Err(full(all, "all users together"));
        }
        let of_node = counts.entry(node.to_owned()).or_default();
        of_node.all += 1;
        *of_node.users.entry(whose.clone()).or_default() += 1;
        Ok(StreamCount { tunnels: self.clone(), node: node.to_owned(), whose })
    }

    /// Names of the connected nodes, for tests and metrics.
    pub fn nodes(&self) -> Vec<String> {
        self.open_tunnels().keys().cloned().collect()
    }

    /// Sends a GET to a node's agent. The answer's body may go on for as long as the agent likes.
    pub async fn get(
        &self,
        node: &str,
        target: &str,
    ) -> Result<http::Response<Incoming>, TunnelError> {
        let request = Request::get(format!("http://agent{target}")).body(Body::empty());
        self.send(node, request, ANSWER_TIMEOUT).await
    }

    /// Opens a stream at a node's agent: `body` flows there and the answer's body back, each for
    /// as long as it likes. A slow answer says nothing of the tunnel.
    pub async fn open(
        &self,
        node: &str,
        target: &str,
        body: Body,
    ) -> Result<http::Response<Incoming>, TunnelError> {
        let request = Request::post(format!("http://agent{target}")).body(body);
        self.send(node, request, OPEN_TIMEOUT).await
    }

    async fn send(
        &self,
        node: &str,
        request: http::Result<Request<Body>>,
        longest: Duration,
    ) -> Result<http::Response<Incoming>, TunnelError> {
        let not_connected = || TunnelError::NotConnected(node.to_owned());
        let mut tunnel = self.open_tunnels().get(node).cloned().ok_or_else(not_connected)?;
        let request = request.map_err(|_| not_connected())?;
        match tokio::time::timeout(longest, tunnel.sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(TunnelError::Failed { node: node.to_owned(), source }),
            Err(_) => Err(TunnelError::NoAnswer(node.to_owned())),
        }
    }

    /// Waits for a node's tunnel, if it has none: for a person, who would only have to ask again.
    /// Returns as well when none was opened in the time that this takes.
    pub async fn until_open(&self, node: &str) {
        let open = async {
            loop {
                // Hears of all that are opened from here on.
                let opened = self.opened.notified();
                if self.open_tunnels().contains_key(node) {
                    return;
                }
                opened.await;
            }
        };
        let _ = tokio::time::timeout(REOPEN_MAX, open).await;
    }

    fn close(&self, node: &str, id: u64) {
        let mut open = self.open_tunnels();
        if open.get(node).is_some_and(|tunnel| tunnel.id == id) {
            open.remove(node);
            tracing::info!(node, "tunnel closed");
        }
    }

    /// Makes a byte stream the tunnel of a node, in place of the one it had. Returns when the
    /// connection has ended.
    pub(super) async fn serve<T>(&self, node: &str, stream: T, shutdown: CancellationToken)
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(TUNNEL_WINDOW)
            .handshake(stream);
        let (sender, connection) = match handshake.await {
            Ok(made) => made,
            Err(error) => return tracing::warn!(node, %error, "tunnel refused"),
        };
        let id = rand::random();
        self.open_tunnels().insert(node.to_owned(), Tunnel { id, sender });
        self.opened.notify_waiters();
        tracing::info!(node, "tunnel open");
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(node, %error, "tunnel broke");
            },
            () = shutdown.cancelled() => {}
        }
        self.close(node, id);
    }
}

/// `GET /wherry/v1/tunnel`: authorisation has let only node agents through.
pub async fn accept(
    State(api): State<ApiServer>,
    mut request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let user = request.extensions().get::<User>().cloned().unwrap_or_default();
    let Some(node) = user.node().map(str::to_owned) else {
        return Err(ApiError::BadRequest("only a node's own certificate opens a tunnel".into()));
    };
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL)) {
        return Err(ApiError::BadRequest(format!("this path needs Upgrade: {PROTOCOL}")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let shutdown = api.shutdown().clone();
    let served = api.clone();
    api.tasks().spawn(async move {
        match upgrade.await {
            Ok(stream) => served.tunnels().serve(&node, stream, shutdown).await,
            Err(error) => tracing::debug!(node, %error, "tunnel upgrade failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;

    /// An agent at the other end of a pipe that answers every request with its path, but one.
    async fn agent(stream: DuplexStream) {
        let answer = service_fn(|request: Request<Incoming>| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            let path = Bytes::from(request.uri().to_string());
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(path)))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // The pipe breaks when the test ends.
        let _ = server.serve_connection(TokioIo::new(stream), answer).await;
    }

    #[tokio::test]
    async fn requests_go_down_the_tunnel_until_it_breaks() {
        let tunnels = Tunnels::default();
        let (ours, theirs) = tokio::io::duplex(4096);
        let agent = tokio::spawn(agent(theirs));
        let waiting = tunnels.clone();
        let waiter = tokio::spawn(async move {
            waiting.until_open("n").await;
            waiting.nodes()
        });
        // It waits before there is a tunnel.
        tokio::task::yield_now().await;
        let serving = tunnels.clone();
        let server = tokio::spawn(async move {
            serving.serve("n", TokioIo::new(ours), CancellationToken::new()).await;
        });
        assert_eq!(waiter.await.expect("it ends"), ["n"]);
        let answer = tunnels.get("n", "/logs/a/b/c?follow=true").await.expect("the agent answers");
        let body = answer.into_body().collect().await.expect("a whole body").to_bytes();
        assert_eq!(body, "http://agent/logs/a/b/c?follow=true");
        assert!(matches!(tunnels.get("m", "/").await, Err(TunnelError::NotConnected(_))));
        // Who gets no answer leaves the connection to the others: the agent would not open another.
        let never = Request::get("http://agent/never").body(Body::empty());
        let late = tunnels.send("n", never, Duration::from_millis(10)).await;
        assert!(matches!(late, Err(TunnelError::NoAnswer(_))));
        let answer = tunnels.get("n", "/healthz").await.expect("the agent answers");
        let ada = User::new("ada", &[]);
        let count = tunnels.count("n", &ada).unwrap_or_else(|why| panic!("{why}"));
        let body = count.body(answer.into_body());
        assert_eq!(tunnels.counts()["n"].all, 1, "it is still being read");
        let body = body.collect().await.expect("a whole body").to_bytes();
        assert_eq!(body, "http://agent/healthz");
        assert!(tunnels.counts().is_empty());
        agent.abort();
        server.await.expect("the tunnel ends with its connection");
        assert!(matches!(tunnels.get("n", "/").await, Err(TunnelError::NotConnected(_))));
    }

    #[test]
    fn nobody_takes_all_streams_of_a_node() {
        let tunnels = Tunnels::default();
        // As many as there may be; then why not one more.
        let take = |node: &str, user: &User| {
            let mut taken = Vec::new();
            loop {
                match tunnels.count(node, user) {
                    Ok(count) => taken.push(count),
                    Err(why) => return (taken, why.to_string()),
                }
            }
        };
        let user = |name: &str| User::new(name, &[]);
        let (mut ada, why) = take("n", &user("ada"));
        assert_eq!(ada.len(), 256);
        assert_eq!(
            why,
            "256 streams to node \"n\" are open for user \"ada\", the most allowed (logs, commands, \
             forwarded ports, proxied requests); end some of them"
        );
        assert!(tunnels.count("m", &user("ada")).is_ok(), "another node");
        ada.pop();
        assert!(tunnels.count("n", &user("ada")).is_ok(), "one has ended");
        let (shop, why) = take("n", &user("system:serviceaccount:shop:a"));
        assert!(why.contains("the service accounts of namespace \"shop\""), "{why}");
        assert!(tunnels.count("n", &user("system:serviceaccount:shop:b")).is_err());
        assert!(tunnels.count("n", &user("system:serviceaccount:bank:a")).is_ok());
        let (admin, why) = take("n", &User::new("root", &[auth::MASTERS]));
        assert!(why.starts_with("1792 streams to node \"n\" are open for all users"), "{why}");
        assert_eq!(admin.len(), 1_792 - ada.len() - shop.len());
        assert!(tunnels.count("n", &user("eve")).is_err());
        drop((ada, shop, admin));
        assert!(tunnels.counts().is_empty(), "nothing is kept of who has none");
    }
}
