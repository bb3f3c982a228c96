//! Ways between workers of two nodes that do not reach each other, through a member of the control
//! plane, to which every node keeps a tunnel.
//!
//! ```text
//!   worker ── ToAgent::Relay ──▶ agent ── GET /wherry/v1/relay/{node}/{namespace} ──▶ member
//!   worker ◀── Open::Relayed ── agent          POST /relay/{namespace} through the tunnel │
//!                               agent of the other node ◀──────────────────────────────┘
//!                                 └── TCP ──▶ its worker's listener for peers
//! ```
//!
//! Only bytes pass, and no more of them than fit in buffers: TLS is between the workers, so what is
//! relayed is as safe as what is not. The members are asked in turn, since a node may have lost its
//! tunnel to one of them.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use http::{HeaderValue, Request, Uri, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_util::task::TaskTracker;

use super::{client::Connection, streams};
use crate::protocol::{Answer, Open, Relay};

/// The protocol's name in `Upgrade`.
const UPGRADE: &str = "wherry-relay";
/// Relays that this node's workers have at the same time: one or two for each worker elsewhere that
/// they speak to and do not reach.
const RELAYS_MAX: usize = 256;
/// Relays from others' workers to this node's at the same time: a part of what one tunnel carries, so
/// that logs and commands find room.
const TAKEN_MAX: usize = 128;
/// For one member to say 101, which it does when the other node has connected its worker.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// To connect to a worker of this machine.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// The relays of this node.
pub struct Relays {
    /// Where its workers listen for the agent.
    sockets: PathBuf,
    /// Set once the node has joined.
    connection: OnceLock<Arc<Connection>>,
    /// Where its workers listen for peers, by namespace. Locked for an entry.
    listening: Mutex<HashMap<String, SocketAddr>>,
    places: Arc<Semaphore>,
    /// Places for those that come in.
    taken: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relays {{ open: {} }}", self.tasks.len())
    }
}

impl Relays {
    /// With none open.
    pub fn new(sockets: PathBuf) -> Arc<Relays> {
        Arc::new(Relays {
            sockets,
            connection: OnceLock::new(),
            listening: Mutex::default(),
            places: Arc::new(Semaphore::new(RELAYS_MAX)),
            taken: Arc::new(Semaphore::new(TAKEN_MAX)),
            tasks: TaskTracker::new(),
        })
    }

    /// The node has joined.
    pub fn joined(&self, connection: Arc<Connection>) {
        // Joined once; a second call would name the same.
        let _ = self.connection.set(connection);
    }

    fn listening(&self) -> MutexGuard<'_, HashMap<String, SocketAddr>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a worker of this node takes peers now.
    pub fn listens(&self, namespace: &str, address: Option<SocketAddr>) {
        let mut listening = self.listening();
        match address {
            Some(address) => _ = listening.insert(namespace.to_owned(), address),
            None => _ = listening.remove(namespace),
        }
    }

    /// A worker of this node wants a way; it is told how that went.
    pub fn open(self: &Arc<Relays>, namespace: &str, wanted: Relay) {
        let (relays, socket) = (self.clone(), self.sockets.join(format!("{namespace}.sock")));
        self.tasks.spawn(async move {
            let place = relays.places.clone().try_acquire_owned();
            let far = match &place {
                Ok(_) => relays.dial(&wanted).await,
                Err(_) => Err(format!("{RELAYS_MAX} relays are open")),
            };
            let failed = far.as_ref().err().cloned();
            let told = streams::connect(&socket, Open::Relayed { id: wanted.id, failed }).await;
            match (told, far) {
                (Ok((mut near, Answer::Open)), Ok(mut far)) => {
                    tracing::info!(node = wanted.node, namespace = wanted.namespace, "relay open");
                    // Either side may break it off; there is nobody to tell.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
                (Ok(_), Err(why)) => tracing::debug!(node = wanted.node, why, "no relay"),
                (Ok(_), Ok(_)) => {}
                (Err(why), _) => tracing::debug!(why, "a worker did not wait for its relay"),
            }
        });
    }

    /// A connection to another node's worker through the first member that has one.
    async fn dial(&self, wanted: &Relay) -> Result<TokioIo<Upgraded>, String> {
        let connection = self.connection.get().ok_or("this node has not joined yet")?;
        let members = connection.members.each().borrow().clone();
        let mut last = "no member of the control plane is known".to_owned();
        for url in members {
            let asked = tokio::time::timeout(OPEN_MAX, ask(connection, &url, wanted)).await;
            match asked.unwrap_or_else(|_| Err(format!("no answer within {OPEN_MAX:?}"))) {
                Ok(stream) => return Ok(stream),
                Err(why) => last = format!("{url}: {why}"),
            }
        }
        Err(last)
    }
}

async fn ask(
    connection: &Connection,
    url: &Uri,
    wanted: &Relay,
) -> Result<TokioIo<Upgraded>, String> {
    let client = connection.members.only(url).ok_or("it is no member any more")?;
    let Relay { node, namespace, .. } = wanted;
    let request = Request::get(format!("/wherry/v1/relay/{node}/{namespace}"))
        .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static(UPGRADE))
        .body(kube::client::Body::empty())
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("it answered {}", response.status()));
    }
    let stream = hyper::upgrade::on(response).await.map_err(|error| error.to_string())?;
    Ok(TokioIo::new(stream))
}

/// `POST /relay/{namespace}`: a worker of another node wants one of this node.
pub async fn accept(
    State(relays): State<Arc<Relays>>,
    Path(namespace): Path<String>,
    body: Body,
) -> Response {
    let Some(address) = relays.listening().get(&namespace).copied() else {
        let why = format!("this node has no worker for namespace {namespace}");
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    let Ok(place) = relays.taken.clone().try_acquire_owned() else {
        let why = format!("{TAKEN_MAX} relays lead to this node");
        return (StatusCode::TOO_MANY_REQUESTS, why).into_response();
    };
    match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // A socket that cannot do it is broken and will say so on the first read.
            let _ = stream.set_nodelay(true);
            let pieces = streams::pass(stream, body, None).into_body().into_data_stream();
            // The place is left with the stream.
            Body::from_stream(pieces.inspect(move |_| _ = &place)).into_response()
        }
        Ok(Err(error)) => {
            let why = format!("connect to the worker of namespace {namespace}: {error}");
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
        Err(_) => {
            let why = format!("the worker of namespace {namespace} does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn bytes_pass_to_the_worker_of_the_namespace_and_to_no_other() {
        let relays = Relays::new(PathBuf::new());
        let ask = |namespace: &str, body: &'static str| {
            accept(State(relays.clone()), Path(namespace.to_owned()), Body::from(body))
        };
        assert_eq!(ask("shop", "").await.status(), 404);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        relays.listens("shop", Some(listener.local_addr().expect("its address")));
        let worker = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut said = String::new();
            stream.read_to_string(&mut said).await.expect("to its end");
            stream.write_all(format!("{said}!").as_bytes()).await.expect("written");
        });
        let answer = ask("shop", "hello").await;
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("the whole body").to_bytes();
        assert_eq!(body, "hello!");
        worker.await.expect("it has answered");
        assert_eq!(ask("bank", "").await.status(), 404);
        relays.listens("shop", None);
        assert_eq!(ask("shop", "").await.status(), 404);
        assert_eq!(
            relays.dial(&wanted()).await.err().as_deref(),
            Some("this node has not joined yet")
        );
    }

    fn wanted() -> Relay {
        Relay { id: 1, node: "node-2".to_owned(), namespace: "shop".to_owned() }
    }
}
