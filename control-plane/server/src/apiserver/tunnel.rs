//! The server's half of the node tunnel.
//!
//! An agent opens `GET /wherry/v1/tunnel` with an upgrade; after the 101 the roles turn round and
//! the server sends HTTP/2 requests down the same stream. So a node needs no reachable address, and
//! the server cannot be talked into dialling one: a node is who its certificate says, and nobody
//! else. A connection on which anything failed is dropped at once and never used again. The
//! agent opens the next one.
//!
//! ```text
//! agent --- GET /wherry/v1/tunnel, Upgrade: wherry-tunnel --> server
//! agent <-- 101 Switching Protocols ------------------------- server
//! agent <== HTTP/2: GET /logs/{namespace}/{pod}/{container} = server
//! ```
//!
//! One task a tunnel drives its connection; it ends with the connection or with the shutdown.

use super::{ApiServer, auth::User, errors::ApiError};
use axum::{body::Body, extract::State, response::Response};
use http::{HeaderValue, Request, StatusCode, header};
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
/// What one stream, and all of them together, may hold of what nobody has taken yet: streams that
/// are stuck leave room for the others. The agent allows 256 of them.
const STREAM_WINDOW: u32 = 256 << 10;
const TUNNEL_WINDOW: u32 = 256 * STREAM_WINDOW;

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
}

impl Tunnels {
    fn open_tunnels(&self) -> MutexGuard<'_, HashMap<String, Tunnel>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
        let not_connected = || TunnelError::NotConnected(node.to_owned());
        let mut tunnel = self.open_tunnels().get(node).cloned().ok_or_else(not_connected)?;
        let request = Request::get(format!("http://agent{target}"))
            .body(Body::empty())
            .map_err(|_| not_connected())?;
        let failed =
            match tokio::time::timeout(ANSWER_TIMEOUT, tunnel.sender.send_request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(source)) => TunnelError::Failed { node: node.to_owned(), source },
                Err(_) => TunnelError::NoAnswer(node.to_owned()),
            };
        self.close(node, tunnel.id);
        Err(failed)
    }

    /// Opens a stream at a node's agent: `body` flows there and the answer's body back, each for
    /// as long as it likes. A slow answer says nothing of the tunnel.
    pub async fn open(
        &self,
        node: &str,
        target: &str,
        body: Body,
    ) -> Result<http::Response<Incoming>, TunnelError> {
        let not_connected = || TunnelError::NotConnected(node.to_owned());
        let mut tunnel = self.open_tunnels().get(node).cloned().ok_or_else(not_connected)?;
        let request = Request::post(format!("http://agent{target}")).body(body);
        let request = request.map_err(|_| not_connected())?;
        match tokio::time::timeout(OPEN_TIMEOUT, tunnel.sender.send_request(request)).await {
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
    use http_body_util::{BodyExt, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;

    /// An agent at the other end of a pipe that answers every request with its path.
    async fn agent(stream: DuplexStream) {
        let answer = service_fn(|request: Request<Incoming>| async move {
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
        agent.abort();
        server.await.expect("the tunnel ends with its connection");
        assert!(matches!(tunnels.get("n", "/").await, Err(TunnelError::NotConnected(_))));
    }
}
