//! Streams through the tunnel: commands, attached clients, ports of Pods.
//!
//! ```text
//!   POST /exec/{namespace}/{pod}/{container}?uid=…&command=…&stdin=1     frames both ways, see
//!   POST /attach/{namespace}/{pod}/{container}?uid=…&stdout=1            `resources/channels.rs`
//!   POST /port/{namespace}/{pod}/{port}?uid=…                            bytes both ways
//!   GET  /record/{namespace}/{pod}?uid=…                                 JSON, see
//!   GET  /world/{namespace}/{pod}/{container}?uid=…                      `protocol/stream.rs`
//!   GET  /requests/{namespace}/{pod}/{container}?uid=…&since=…           lines of JSON, see
//!                                                                        `protocol/requests.rs`
//!   POST /relay/{namespace}                                              bytes, see `relay.rs`
//!   GET  /lately?since=…                                                 a list of what workers tell
//!   GET  /traffic                                                        the same
//! ```
//!
//! The bodies of request and answer are the two directions. The agent finds the Pod, opens a
//! connection to its worker, and from then on only passes bytes on, no more of them than fit in a
//! buffer. When either side goes, so does the other.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as Polling, Poll},
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::{
    codec::Framed,
    io::{ReaderStream, StreamReader},
    sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned},
};

use crate::{
    metrics::{SILENT, Samples},
    protocol::{self, Answer, Open, Since, Streams, ToWorker},
};

use super::{images::Images, pods::Input, relay::Relays};

/// What is read of a worker at once.
const READ_BYTES: usize = 32 << 10;
/// A worker's answer is one sentence.
const ANSWER_BYTES_MAX: usize = 4096;
/// A worker answers in this time: it may have to load code first.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A command, an attached client or a forwarded port is given up when nothing has passed for so long,
/// as by a kubelet: each has one of few places.
const IDLE_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// What a worker may tell of its traffic: as many pairs or workloads as it tells at most, and room.
const TOLD_BYTES_MAX: u64 = 16 << 20;
/// The arguments of a command together; Linux allows 2 MiB, an URL less than that.
const COMMAND_BYTES_MAX: usize = 128 << 10;

/// A question to the agent's loop: is this Pod here, and does it run?
#[derive(Debug)]
pub struct ReachQuery {
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Pod.
    pub pod: String,
    /// Uid of the Pod: another one of the same name is not meant.
    pub uid: String,
    /// A container that must run.
    pub container: Option<String>,
    /// Takes the answer: whether the worker takes code for this agent's engine. The error is for
    /// people.
    pub answer: oneshot::Sender<Result<bool, String>>,
}

/// What the handlers need.
#[derive(Clone)]
pub struct Context {
    /// Where workers listen.
    pub sockets: Arc<PathBuf>,
    /// The agent's loop.
    pub inputs: mpsc::Sender<Input>,
    /// For the toolbox, which runs the commands that an image does not have.
    pub images: Arc<Images>,
    /// Ways to workers of this node for those of others.
    pub relays: Arc<Relays>,
}

/// The query of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    uid: String,
    command: Vec<String>,
    streams: Streams,
    /// Where requests are followed from, not read yet.
    since: Option<String>,
}

impl Asked {
    fn parse(query: &str) -> Asked {
        let mut asked = Asked::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "uid" => asked.uid = value.into_owned(),
                "command" => asked.command.push(value.into_owned()),
                "since" => asked.since = Some(value.into_owned()),
                "stdin" => asked.streams.stdin = true,
                "stdout" => asked.streams.stdout = true,
                "stderr" => asked.streams.stderr = true,
                "tty" => asked.streams.tty = true,
                _ => {}
            }
        }
        asked
    }
}

/// `POST /exec/…`
pub async fn exec(
    State(context): State<Context>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    let Asked { uid, command, streams, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    if command.iter().map(String::len).sum::<usize>() > COMMAND_BYTES_MAX {
        let why = format!("the command is longer than {COMMAND_BYTES_MAX} bytes");
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    let toolbox = context.images.toolbox_code().await;
    let (target, name) = (uid.clone(), container.clone());
    let open = Open::Exec { uid: target, container: name, command, streams, toolbox };
    context.stream((namespace, pod, uid), Some(container), open, body).await
}

/// `POST /attach/…`
pub async fn attach(
    State(context): State<Context>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    let Asked { uid, streams, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    let open = Open::Attach { uid: uid.clone(), container: container.clone(), streams };
    context.stream((namespace, pod, uid), Some(container), open, body).await
}

/// `POST /port/…`
pub async fn port(
    State(context): State<Context>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    let Asked { uid, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    let open = Open::Port { uid: uid.clone(), port };
    context.stream((namespace, pod, uid), None, open, body).await
}

/// `GET /record/…`: what a Pod's requests were like, as its worker tells it.
pub async fn record(
    State(context): State<Context>,
    Path((namespace, pod)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let Asked { uid, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    let open = Open::Record { uid: uid.clone() };
    context.stream((namespace, pod, uid), None, open, Body::empty()).await
}

/// `GET /requests/…`: what a container answers, request by request, until either side goes.
pub async fn requests(
    State(context): State<Context>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let Asked { uid, since, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    let since = match since.as_deref().map_or(Ok(Since::Now), str::parse) {
        Ok(since) => since,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let open = Open::Requests { uid: uid.clone(), container: container.clone(), since };
    // Its end would mean that nobody follows any more.
    let endless = Body::from_stream(futures::stream::pending::<std::io::Result<bytes::Bytes>>());
    context.stream((namespace, pod, uid), Some(container), open, endless).await
}

/// `GET /world/…`: what a container's image wants and gives.
pub async fn world(
    State(context): State<Context>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let Asked { uid, .. } = Asked::parse(query.as_deref().unwrap_or_default());
    let open = Open::World { uid: uid.clone(), container };
    context.stream((namespace, pod, uid), None, open, Body::empty()).await
}

/// `GET /lately?since=…`: how many requests the workloads of the node have had, as each of its
/// workers tells it.
pub async fn lately(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let since = pairs.find(|(name, _)| name == "since").and_then(|(_, since)| since.parse().ok());
    let Some(since) = since else {
        return (StatusCode::BAD_REQUEST, "since is no number of a minute").into_response();
    };
    let (told, _) = ask_all::<Value>(&context, &Open::Lately { since }).await;
    Json(told).into_response()
}

/// `GET /traffic`: what all workers of the node tell of their traffic, each as it tells it.
pub async fn counters(State(context): State<Context>) -> Response {
    let (told, _) = ask_all::<Samples>(&context, &Open::Metrics).await;
    Json(told).into_response()
}

/// What all workers of the node tell of their traffic, and how many do not.
pub async fn traffic(context: &Context) -> Vec<Samples> {
    let (mut all, silent) = ask_all::<Samples>(context, &Open::Metrics).await;
    all.push(Samples::from([(SILENT.to_owned(), vec![format!(" {silent}")])]));
    all
}

/// What each worker of the node answers, and how many did not.
async fn ask_all<T: DeserializeOwned>(context: &Context, open: &Open) -> (Vec<T>, usize) {
    let (mut all, mut silent) = (Vec::new(), 0);
    for socket in workers(&context.sockets).await {
        match told(&socket, open.clone()).await {
            Ok(told) => all.push(told),
            Err(why) => {
                tracing::debug!(socket = %socket.display(), why, ?open, "a worker does not tell");
                silent += 1;
            }
        }
    }
    (all, silent)
}

/// Where workers listen, in the order of their names.
async fn workers(sockets: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(sockets).await else { return found };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "sock") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What one worker tells.
async fn told<T: DeserializeOwned>(socket: &std::path::Path, open: Open) -> Result<T, String> {
    let (stream, answer) = connect(socket, open).await?;
    if answer != Answer::Open {
        return Err(format!("it answered {answer:?}"));
    }
    let mut text = Vec::new();
    let mut stream = stream.take(TOLD_BYTES_MAX);
    match tokio::time::timeout(ANSWER_MAX, stream.read_to_end(&mut text)).await {
        Ok(read) => read.map_err(|error| error.to_string())?,
        Err(_) => return Err("it does not end".to_owned()),
    };
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

impl Context {
    async fn stream(
        &self,
        (namespace, pod, uid): (String, String, String),
        container: Option<String>,
        mut open: Open,
        body: Body,
    ) -> Response {
        let (answer, reply) = oneshot::channel();
        let socket = self.sockets.join(format!("{namespace}.sock"));
        let query = ReachQuery { namespace, pod, uid, container, answer };
        let asked = self.inputs.send(Input::Reach(query)).await;
        let reached = match asked {
            Ok(()) => reply.await,
            Err(_) => return (StatusCode::SERVICE_UNAVAILABLE, "the node stops").into_response(),
        };
        match reached {
            Ok(Ok(takes_code)) => suit(&mut open, takes_code),
            Ok(Err(why)) => return (StatusCode::NOT_FOUND, why).into_response(),
            Err(_) => return (StatusCode::SERVICE_UNAVAILABLE, "the node stops").into_response(),
        }
        let of_few = matches!(open, Open::Exec { .. } | Open::Attach { .. } | Open::Port { .. });
        match connect(&socket, open).await {
            Ok((stream, Answer::Open)) => pass(stream, body, of_few.then_some(IDLE_MAX)),
            Ok((_, Answer::NotFound(why))) => (StatusCode::NOT_FOUND, why).into_response(),
            Ok((_, Answer::Busy(why))) => (StatusCode::TOO_MANY_REQUESTS, why).into_response(),
            Err(why) => {
                tracing::warn!(why, "cannot open a stream to a worker");
                let why = format!("the Pod's worker cannot be reached: {why}");
                (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
            }
        }
    }
}

/// Leaves out what a worker of another engine must not load: it would take code of a near version
/// for its own.
fn suit(open: &mut Open, takes_code: bool) {
    if let (false, Open::Exec { toolbox, .. }) = (takes_code, open) {
        *toolbox = None;
    }
}

/// Opens a stream to the worker at a socket. No byte behind the answer is read.
pub async fn connect(socket: &std::path::Path, open: Open) -> Result<(UnixStream, Answer), String> {
    let open = protocol::encode(&ToWorker::Open(open)).map_err(|error| error.to_string())?;
    let talk = async {
        let stream = UnixStream::connect(socket).await?;
        let mut frames = Framed::new(stream, protocol::codec());
        frames.send(open).await?;
        let mut stream = frames.into_inner();
        let length = stream.read_u32().await? as usize;
        if length > ANSWER_BYTES_MAX {
            return Err(std::io::Error::other("its answer is too long"));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        Ok((stream, answer))
    };
    let (stream, answer) = match tokio::time::timeout(ANSWER_MAX, talk).await {
        Ok(answered) => answered.map_err(|error| error.to_string())?,
        Err(_) => return Err("it does not answer".to_owned()),
    };
    let answer = protocol::decode(&answer).map_err(|error| error.to_string())?;
    Ok((stream, answer))
}

/// Makes a worker's connection the two bodies. If nothing passes for `idle`, or at most twice as
/// long, both end.
pub fn pass<S>(stream: S, body: Body, idle: Option<Duration>) -> Response
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (gone, over) = (CancellationToken::new(), CancellationToken::new());
    let passed = Arc::new(AtomicU64::new(0));
    let guarded = Guarded {
        pieces: ReaderStream::with_capacity(reader, READ_BYTES),
        passed: passed.clone(),
        over: Box::pin(over.clone().cancelled_owned()),
        _guard: gone.clone().drop_guard(),
    };
    tokio::spawn(async move {
        let upload = async {
            upload(body, writer, &passed).await;
            // The answer goes on.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = upload => {}
            // Nobody takes the answer any more: the connection is closed as a whole.
            () = gone.cancelled() => {}
            () = silence(&passed, idle) => over.cancel(),
        }
    });
    Body::from_stream(guarded).into_response()
}

/// Ends when nothing has passed for so long.
async fn silence(passed: &AtomicU64, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    loop {
        let before = passed.load(Ordering::Relaxed);
        tokio::time::sleep(idle).await;
        if passed.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

async fn upload<S>(body: Body, mut writer: WriteHalf<S>, passed: &AtomicU64)
where
    S: AsyncRead + AsyncWrite,
{
    let pieces = body.into_data_stream().map_err(std::io::Error::other);
    let pieces = pieces.inspect_ok(|_| _ = passed.fetch_add(1, Ordering::Relaxed));
    let mut reader = StreamReader::new(pieces);
    // The end of the request ends this direction; a broken one as well.
    let _ = tokio::io::copy_buf(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// What the worker says, and who is told when it is not wanted any more.
struct Guarded<S> {
    pieces: ReaderStream<ReadHalf<S>>,
    /// Counts what passes, in both directions.
    passed: Arc<AtomicU64>,
    /// Nothing passes any more.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    _guard: DropGuard,
}

impl<S: AsyncRead + AsyncWrite> futures::Stream for Guarded<S> {
    type Item = std::io::Result<bytes::Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Polling<'_>) -> Poll<Option<Self::Item>> {
        let next = self.pieces.poll_next_unpin(cx);
        if next.is_ready() {
            self.passed.fetch_add(1, Ordering::Relaxed);
            return next;
        }
        self.over.as_mut().poll(cx).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn streams_on_which_nothing_passes_end() {
        let (near, mut far) = tokio::io::duplex(64);
        let endless = || futures::stream::pending::<std::io::Result<bytes::Bytes>>();
        let answer = pass(near, Body::from_stream(endless()), Some(Duration::from_millis(10)));
        far.write_all(b"all").await.expect("written");
        let text = axum::body::to_bytes(answer.into_body(), 64).await.expect("it ends");
        assert_eq!(text, "all");
        // So does the other end.
        assert_eq!(far.read(&mut [0; 8]).await.expect("no error"), 0);
    }

    #[test]
    fn a_worker_of_another_engine_gets_no_code() {
        let code = protocol::Code { module: PathBuf::from("m"), form: protocol::Form::Module };
        let check = |takes_code: bool, expected: Option<protocol::Code>| {
            let mut open = Open::Exec {
                uid: "u".to_owned(),
                container: "c".to_owned(),
                command: vec!["ls".to_owned()],
                streams: Streams::default(),
                toolbox: Some(code.clone()),
            };
            suit(&mut open, takes_code);
            let Open::Exec { toolbox, .. } = open else { panic!("{open:?}") };
            assert_eq!(toolbox, expected);
        };
        check(true, Some(code.clone()));
        check(false, None);
    }

    #[test]
    fn queries_are_read() {
        let asked = Asked::parse("uid=u&command=sh&command=-c&command=echo+1&stdin=1&tty=1");
        let streams = Streams { stdin: true, tty: true, ..Streams::default() };
        let command = ["sh", "-c", "echo 1"].map(str::to_owned).to_vec();
        assert_eq!(asked, Asked { uid: "u".to_owned(), command, streams, since: None });
    }
}
