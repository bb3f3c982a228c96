//! The way from the control plane to this node.
//!
//! The node opens it: `GET /wherry/v1/tunnel` with an upgrade, over the node's client certificate.
//! After the server's 101 the roles change on that connection: the node serves HTTP/2, the server
//! asks. So nobody has to reach the node, and nobody can point the control plane at an address. One
//! tunnel is kept to each member, so that logs come through any of them; a broken one is opened
//! again with growing delays.
//!
//! Served: `GET /logs/{namespace}/{pod}/{container}?…` (see `logs.rs`), `GET /usage` and `GET /disk`
//! (see `accounts.rs`), `GET /metrics` (see `starts.rs` and `metrics.rs`), `GET /metrics/resource`
//! (again `accounts.rs`), `GET /healthz`, and the streams of `streams.rs`.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderValue, Request, Uri};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    service::TowerToHyperService,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{metrics, protocol};

use super::{
    accounts::{Accounts, Row},
    client::Connection,
    logs,
    pods::Input,
    pressure, relay, streams,
};

/// Where the server takes tunnels.
const PATH: &str = "/wherry/v1/tunnel";
/// The protocol's name in `Upgrade`.
const UPGRADE: &str = "wherry-tunnel";
/// First and longest wait before a tunnel is opened again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A tunnel that lasted this long did not fail at once.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// How long a server may take to say 101.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// A tunnel on which nothing comes back for the sum of these is dead.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// Requests at the same time over one tunnel. The member lets clients have fewer that last (see its
/// `tunnel.rs`): one more would wait, unanswered, until another ends.
const STREAMS_MAX: u32 = 2_048;
/// What one stream and all of them together may hold of what nobody has taken yet: streams that are
/// stuck, even if all are, leave room for the others. A window is a promise; it costs no memory until
/// somebody is stuck.
const STREAM_WINDOW: u32 = 256 << 10;
const TUNNEL_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Pieces of a log that wait for a slow reader.
const PIECES: usize = 8;

/// A question to the agent's loop: which file has this container's log?
#[derive(Debug)]
pub struct LogQuery {
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The start before the current one.
    pub previous: bool,
    /// Takes the answer.
    pub answer: oneshot::Sender<Result<LogSource, LogRefusal>>,
}

/// The log of one container start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSource {
    /// Uid of the Pod.
    pub uid: String,
    /// Which start.
    pub restart: u32,
    /// Whether it may still write.
    pub running: bool,
}

/// Why there is no log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRefusal {
    /// The Pod or container is not here.
    NotFound(String),
    /// It is, and has no such log.
    Bad(String),
}

/// What the handlers need.
#[derive(Clone)]
struct Context {
    logs: Arc<PathBuf>,
    accounts: Arc<Accounts>,
    inputs: mpsc::Sender<Input>,
}

/// Keeps a tunnel to each member open until `shutdown`, also to those that come later; one that is
/// no member any more is left.
pub async fn run(
    connection: Arc<Connection>,
    logs: PathBuf,
    accounts: Arc<Accounts>,
    streams: streams::Context,
    shutdown: CancellationToken,
) {
    let inputs = streams.inputs.clone();
    let app = router(Context { logs: Arc::new(logs), accounts, inputs }, streams);
    let mut each = connection.members.each();
    let mut open: HashMap<String, CancellationToken> = HashMap::new();
    let mut tunnels = JoinSet::new();
    loop {
        let members = each.borrow_and_update().clone();
        open.retain(|url, stop| {
            let stays = members.iter().any(|member| member == url.as_str());
            if !stays {
                stop.cancel();
            }
            stays
        });
        for url in members {
            open.entry(url.to_string()).or_insert_with(|| {
                let stop = shutdown.child_token();
                tunnels.spawn(keep(connection.clone(), url, app.clone(), stop.clone()));
                stop
            });
        }
        tokio::select! {
            changed = each.changed() => if changed.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    while tunnels.join_next().await.is_some() {}
}

/// Keeps a tunnel to one member open until `shutdown`.
async fn keep(connection: Arc<Connection>, url: Uri, app: Router, shutdown: CancellationToken) {
    let server = url.to_string();
    let mut wait = RETRY.0;
    let mut quiet = false;
    loop {
        let since = std::time::Instant::now();
        // None once it is no member: this task is then told to stop as well.
        let Some(client) = connection.members.only(&url) else { return };
        let outcome = tokio::select! {
            outcome = serve(&client, app.clone()) => outcome,
            () = shutdown.cancelled() => return,
        };
        if since.elapsed() >= STEADY_AFTER {
            (wait, quiet) = (RETRY.0, false);
        }
        // Once for each outage: the agent's other requests say the same.
        match outcome {
            Err(error) if !quiet => tracing::warn!(server, error, "no tunnel, trying again"),
            Err(error) => tracing::debug!(server, error, "no tunnel"),
            Ok(()) => tracing::info!(server, "tunnel closed"),
        }
        quiet = true;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Opens a tunnel and serves it until it breaks.
async fn serve(client: &kube::Client, app: Router) -> Result<(), String> {
    let request = Request::get(PATH)
        .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static(UPGRADE))
        .body(kube::client::Body::empty())
        .map_err(|error| error.to_string())?;
    let open = async {
        let response = client.send(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(format!("the server answered {}", response.status()));
        }
        hyper::upgrade::on(response).await.map_err(|error| error.to_string())
    };
    let stream =
        tokio::time::timeout(OPEN_MAX, open).await.map_err(|_| "no answer".to_owned())??;
    tracing::info!("tunnel open");
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(TUNNEL_WINDOW)
        .serve_connection(stream, TowerToHyperService::new(app))
        .await
        .map_err(|error| error.to_string())
}

fn router(context: Context, streams: streams::Context) -> Router {
    let workers = streams.clone();
    let metrics = async move |State(context): State<Context>| metrics(&context, &workers).await;
    let relays = Router::new()
        .route("/relay/{namespace}", post(relay::accept))
        .layer(DefaultBodyLimit::disable())
        .with_state(streams.relays.clone());
    let streams = Router::new()
        .route("/exec/{namespace}/{pod}/{container}", post(streams::exec))
        .route("/attach/{namespace}/{pod}/{container}", post(streams::attach))
        .route("/port/{namespace}/{pod}/{port}", post(streams::port))
        .route("/record/{namespace}/{pod}", get(streams::record))
        .route("/lately", get(streams::lately))
        .route("/traffic", get(streams::counters))
        .route("/world/{namespace}/{pod}/{container}", get(streams::world))
        .route("/requests/{namespace}/{pod}/{container}", get(streams::requests))
        // A stream takes as much as it likes: nothing is collected.
        .layer(DefaultBodyLimit::disable())
        .with_state(streams);
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/usage", get(usage))
        .route("/disk", get(disk))
        .route("/metrics", get(metrics))
        .route("/metrics/resource", get(resource))
        .route("/logs/{namespace}/{pod}/{container}", get(container_logs))
        .with_state(context)
        .merge(streams)
        .merge(relays)
}

async fn usage(State(context): State<Context>) -> Json<Vec<Row>> {
    Json(context.accounts.all(Timestamp::now()))
}

/// What the node's file system has, and what Pods have written there.
async fn disk(State(context): State<Context>) -> Json<Value> {
    let Context { logs, accounts, .. } = context;
    let looking = tokio::task::spawn_blocking(move || pressure::look(&logs, None));
    let signals = looking.await.ok().and_then(Result::ok);
    Json(json!({ "fs": signals.map(|signals| signals.summary()), "pods": accounts.summary() }))
}

/// What starts took, and what the workers tell of their traffic.
async fn metrics(context: &Context, workers: &streams::Context) -> Response {
    let mut all = streams::traffic(workers).await;
    all.push(context.accounts.starts.tell());
    all.push(context.accounts.tell());
    shown(&all)
}

/// What `metrics.k8s.io` is made of elsewhere.
async fn resource(State(context): State<Context>) -> Response {
    shown(&[context.accounts.resource()])
}

fn shown(all: &[metrics::Samples]) -> Response {
    let text = metrics::text(all);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn container_logs(
    State(context): State<Context>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let options = logs::Options::parse(query.as_deref().unwrap_or_default(), Timestamp::now());
    let options = match options {
        Ok(options) => options,
        Err(message) => return (StatusCode::BAD_REQUEST, message).into_response(),
    };
    let question = Question { namespace, pod, container, previous: options.previous };
    let source = match question.ask(&context.inputs).await {
        Ok(source) => source,
        Err(LogRefusal::NotFound(message)) => {
            return (StatusCode::NOT_FOUND, message).into_response();
        }
        Err(LogRefusal::Bad(message)) => {
            return (StatusCode::BAD_REQUEST, message).into_response();
        }
    };
    // The loop knows the Pod, so its names are names that the API accepted: no path tricks.
    let file = protocol::log_file(
        &context.logs,
        &question.namespace,
        &question.pod,
        &source.uid,
        &question.container,
        source.restart,
    );
    let (output, pieces) = mpsc::channel(PIECES);
    let inputs = context.inputs.clone();
    let still_runs: logs::StillRuns = Box::new(move || {
        let (question, inputs, source) = (question.clone(), inputs.clone(), source.clone());
        Box::pin(async move {
            question.ask(&inputs).await.is_ok_and(|now| {
                now.uid == source.uid && now.restart == source.restart && now.running
            })
        })
    });
    tokio::spawn(logs::stream(file, options, still_runs, output));
    let body = Body::from_stream(ReceiverStream::new(pieces));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))], body).into_response()
}

#[derive(Clone)]
struct Question {
    namespace: String,
    pod: String,
    container: String,
    previous: bool,
}

impl Question {
    async fn ask(&self, inputs: &mpsc::Sender<Input>) -> Result<LogSource, LogRefusal> {
        let (answer, reply) = oneshot::channel();
        let query = LogQuery {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            previous: self.previous,
            answer,
        };
        let gone = || LogRefusal::Bad("the node is being stopped".to_owned());
        inputs.send(Input::Logs(query)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}
