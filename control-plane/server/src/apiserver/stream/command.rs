//! `exec` and `attach`: a client at a command, over a WebSocket or SPDY.
//!
//! Both speak the same to the node (`resources/channels.rs`). [`Hear`] and [`Tell`] are the two
//! halves of a client, whatever it speaks; [`relay`] joins them with the node until the command has
//! ended or the client has gone. Nothing is collected on the way: whoever does not read makes the
//! other side wait.

use super::{
    Asked, Place, Upgrade, choose, no_protocol,
    node::NodeStream,
    spdy::{self, Gone, Session, Stream, StreamReader, StreamWriter},
    switching,
    websocket::{self, PING_INTERVAL, Protocol},
};
use crate::apiserver::{
    errors::{self, ApiError},
    escape,
    request::Query,
    verbs::logs,
};
use crate::contain;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use wherry_resources::channels::{self, Outcome};

/// The protocols over SPDY: how the end is told, and whether terminals have sizes.
const SPDY_PROTOCOLS: [(&str, u8); 5] = [
    ("v5.channel.k8s.io", 5),
    ("v4.channel.k8s.io", 4),
    ("v3.channel.k8s.io", 3),
    ("v2.channel.k8s.io", 2),
    ("channel.k8s.io", 1),
];
/// A client that has upgraded opens its streams in this time.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client may take to close, after it was told everything.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Stdin(Bytes),
    StdinEnd,
    /// The terminal's new size, as the client wrote it.
    Resize(Bytes),
}

/// The client as a source.
pub trait Hear: Send {
    /// The next that it says; None when it has gone.
    fn hear(&mut self) -> impl Future<Output = Option<Heard>> + Send;
}

/// The client as a sink.
pub trait Tell: Send {
    /// Data of a channel.
    fn tell(&mut self, channel: u8, bytes: Bytes) -> impl Future<Output = Result<(), Gone>> + Send;
    /// Writes something without meaning, to find out whether the client is there.
    fn beat(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;
    /// How it ended, in the client's version of the protocol, and that this was all.
    fn end(&mut self, status: Bytes) -> impl Future<Output = ()> + Send;
}

/// What is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Result<Wanted, ApiError> {
        let tty = query.flag("tty");
        let wanted = Wanted {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            // A terminal has one screen.
            stderr: query.flag("stderr") && !tty,
            tty,
        };
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            let why = "you must specify at least 1 of stdin, stdout, stderr";
            return Err(ApiError::BadRequest(why.to_owned()));
        }
        Ok(wanted)
    }

    /// Streams that a client opens over SPDY.
    fn count(self, version: u8) -> usize {
        let sizes = self.tty && version >= 3;
        let all = [true, self.stdin, self.stdout, self.stderr, sizes];
        all.into_iter().filter(|is| *is).count()
    }

    /// The lowest channel that will be written.
    fn first_channel(self) -> u8 {
        match self {
            Wanted { stdout: true, .. } => channels::STDOUT,
            Wanted { stderr: true, .. } => channels::STDERR,
            _ => channels::STATUS,
        }
    }
}

/// Answers `exec` and `attach`.
pub async fn command(asked: Asked, http: axum::extract::Request) -> Result<Response, ApiError> {
    let wanted = Wanted::of(&asked.query)?;
    let pod = asked.object(&asked.attributes.name).await?;
    let container = logs::choose(&pod, asked.query.get("container"))?;
    let place = Place::of(&pod)?;
    let what = asked.attributes.subresource.as_str();
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    if what == "exec" {
        parameters.extend(asked.query.all("command").map(|word| ("command", word)));
        if parameters.is_empty() {
            let why = "you must specify at least one command for the container";
            return Err(ApiError::BadRequest(why.to_owned()));
        }
    }
    let flags = [
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("tty", wanted.tty),
    ];
    parameters.extend(flags.iter().filter(|(_, is)| *is).map(|(name, _)| (*name, "1")));
    let target = place.target(what, &container, &parameters);
    let (upgrade, offered) = Upgrade::of(http).await?;
    asked.api.tunnels().until_open(&place.node).await;
    let count = asked.api.tunnels().count(&place.node, &asked.user)?;
    let shutdown = asked.api.shutdown().clone();
    match upgrade {
        Upgrade::WebSocket(socket) => {
            let chosen = choose(&offered, Protocol::named);
            if chosen.is_none() && !offered.is_empty() {
                return Err(no_protocol(&offered, &SPDY_PROTOCOLS.map(|(name, _)| name)));
            }
            let node = NodeStream::open(&asked.api, &place.node, &target, Some(count)).await?;
            let name = chosen.as_ref().map(|(name, _)| name.clone());
            let protocol = chosen.map_or(Protocol::PLAIN, |(_, protocol)| protocol);
            let socket = websocket::bounded(*socket).protocols(name);
            let serve = move |socket| async move {
                let (mut receiver, mut sender) = websocket::channels(socket, protocol);
                // Older clients take it as the sign that the session is up.
                if sender.send(wanted.first_channel(), &[]).await.is_ok() {
                    relay(node, &mut receiver, &mut sender, protocol.version, shutdown).await;
                    let rest = async { while receiver.next().await.is_some() {} };
                    // What the client still sends is for nobody; it closes, or is cut off.
                    let _ = tokio::time::timeout(CLOSE_TIMEOUT, rest).await;
                }
            };
            Ok(socket.on_upgrade(|socket| contain::task(serve(socket))))
        }
        Upgrade::Spdy(upgrade) => {
            let known = |name: &str| {
                let found = SPDY_PROTOCOLS.iter().find(|(own, _)| *own == name);
                found.map(|(_, version)| *version)
            };
            let chosen = choose(&offered, known);
            if chosen.is_none() && !offered.is_empty() {
                return Err(no_protocol(&offered, &SPDY_PROTOCOLS.map(|(name, _)| name)));
            }
            let response = switching(chosen.as_ref().map(|(name, _)| name.as_str()))?;
            let version = chosen.map_or(1, |(_, version)| version);
            let node = NodeStream::open(&asked.api, &place.node, &target, Some(count)).await?;
            let serve = over_spdy(upgrade, node, wanted, version, shutdown);
            asked.api.tasks().spawn(contain::task(serve));
            Ok(response)
        }
    }
}

/// Passes everything on until the command has ended or the client has gone.
async fn relay(
    node: NodeStream,
    hear: &mut impl Hear,
    tell: &mut impl Tell,
    version: u8,
    shutdown: CancellationToken,
) {
    let (up, down) = node.split();
    let outcome = tokio::select! {
        told = pass_down(down, tell) => match told {
            Ok(outcome) => outcome,
            Err(Gone) => return,
        },
        () = pass_up(hear, up) => return,
        () = shutdown.cancelled() => {
            Outcome::Failed("this member of the control plane stops".to_owned())
        }
    };
    tell.end(told(&outcome, version)).await;
}

/// How a client of this version is told of the end.
fn told(outcome: &Outcome, version: u8) -> Bytes {
    let status = errors::command_status(outcome);
    if version >= 4 {
        return escape::whole(status.to_string().into_bytes()).into();
    }
    // Older ones get text, and nothing where nothing went wrong.
    let message = status.get("message").and_then(serde_json::Value::as_str);
    message.unwrap_or_default().to_owned().into()
}

async fn pass_up(hear: &mut impl Hear, up: mpsc::Sender<Bytes>) {
    while let Some(heard) = hear.hear().await {
        let (channel, bytes) = match heard {
            Heard::Stdin(bytes) => (channels::STDIN, bytes),
            Heard::StdinEnd => (channels::CLOSE, Bytes::from_static(&[channels::STDIN])),
            Heard::Resize(bytes) => (channels::RESIZE, bytes),
        };
        for piece in bytes.chunks(channels::FRAME_BYTES_MAX - 1) {
            if up.send(frame(channel, piece)).await.is_err() {
                // The node has ended the stream; how is told by the other direction.
                return std::future::pending().await;
            }
        }
    }
}

/// One frame as the node reads it.
fn frame(channel: u8, bytes: &[u8]) -> Bytes {
    let length = u32::try_from(1 + bytes.len()).expect("a frame is bounded");
    let mut frame = BytesMut::with_capacity(5 + bytes.len());
    frame.put_u32(length);
    frame.put_u8(channel);
    frame.put_slice(bytes);
    frame.freeze()
}

async fn pass_down(
    down: impl AsyncRead + Unpin + Send,
    tell: &mut impl Tell,
) -> Result<Outcome, Gone> {
    let codec =
        LengthDelimitedCodec::builder().max_frame_length(channels::FRAME_BYTES_MAX).new_codec();
    let mut frames = FramedRead::new(down, codec);
    let mut beat = tokio::time::interval(PING_INTERVAL);
    beat.tick().await;
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame,
            _ = beat.tick() => {
                tell.beat().await?;
                continue;
            }
        };
        let Some(Ok(mut frame)) = frame else {
            return Ok(Outcome::Failed("the connection to the node broke".to_owned()));
        };
        if frame.is_empty() {
            continue;
        }
        let channel = frame.split_to(1)[0];
        match channel {
            channels::STATUS => {
                let outcome = Outcome::decode(&frame);
                let strange = || Outcome::Failed("the node tells a strange end".to_owned());
                return Ok(outcome.unwrap_or_else(strange));
            }
            channels::STDOUT | channels::STDERR => tell.tell(channel, frame.freeze()).await?,
            _ => {}
        }
    }
}

/// A client that speaks SPDY: a stream for each channel.
async fn over_spdy(
    upgrade: OnUpgrade,
    node: NodeStream,
    wanted: Wanted,
    version: u8,
    shutdown: CancellationToken,
) {
    let connection = match upgrade.await {
        Ok(connection) => TokioIo::new(connection),
        Err(error) => return tracing::debug!(%error, "an upgrade failed"),
    };
    let (mut session, drive) = spdy::session(connection);
    let serve = async move {
        let streams = streams(&mut session, wanted.count(version));
        let Ok(Some(mut client)) = tokio::time::timeout(STREAMS_TIMEOUT, streams).await else {
            return session.close().await;
        };
        relay(node, &mut client.source, &mut client.sink, version, shutdown).await;
        session.close().await;
    };
    let (driven, ()) = tokio::join!(drive, serve);
    if let Err(error) = driven {
        tracing::debug!(%error, "a command's connection ended early");
    }
}

/// The streams of a command by their purpose.
struct Client {
    source: Source,
    sink: Sink,
}

struct Source {
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
    gone: CancellationToken,
}

#[derive(Default)]
struct Sink {
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    error: Option<StreamWriter>,
    /// Held so that the client's ends of these streams stay open.
    _inputs: Vec<StreamWriter>,
}

/// Waits for the streams that the client has announced. None: it has gone.
async fn streams(session: &mut Session, count: usize) -> Option<Client> {
    let mut source = Source { stdin: None, resize: None, gone: session.gone.clone() };
    let mut sink = Sink::default();
    for _ in 0..count {
        let stream = session.streams.recv().await?;
        let kind = stream.header("streamtype").unwrap_or("").to_owned();
        let Stream { reader, writer, .. } = stream;
        match kind.as_str() {
            "stdout" => sink.stdout = Some(writer),
            "stderr" => sink.stderr = Some(writer),
            "error" => sink.error = Some(writer),
            "stdin" => {
                source.stdin = Some(reader);
                sink._inputs.push(writer);
            }
            "resize" => {
                source.resize = Some(reader);
                sink._inputs.push(writer);
            }
            // Of a newer client: it counts, and nothing is written to it.
            _ => sink._inputs.push(writer),
        }
    }
    Some(Client { source, sink })
}

impl Hear for Source {
    async fn hear(&mut self) -> Option<Heard> {
        async fn next(reader: &mut Option<StreamReader>) -> Option<Bytes> {
            match reader {
                Some(reader) => reader.next().await,
                None => std::future::pending().await,
            }
        }
        loop {
            tokio::select! {
                biased;
                () = self.gone.cancelled() => return None,
                bytes = next(&mut self.stdin) => return Some(match bytes {
                    Some(bytes) => Heard::Stdin(bytes),
                    None => {
                        self.stdin = None;
                        Heard::StdinEnd
                    }
                }),
                bytes = next(&mut self.resize) => match bytes {
                    Some(bytes) => return Some(Heard::Resize(bytes)),
                    None => self.resize = None,
                },
            }
        }
    }
}

impl Tell for Sink {
    async fn tell(&mut self, channel: u8, bytes: Bytes) -> Result<(), Gone> {
        let writer = match channel {
            channels::STDERR => &self.stderr,
            _ => &self.stdout,
        };
        match writer {
            Some(writer) => writer.write(bytes).await,
            None => Ok(()),
        }
    }

    /// The session pings by itself.
    async fn beat(&mut self) -> Result<(), Gone> {
        Ok(())
    }

    async fn end(&mut self, status: Bytes) {
        for writer in [&self.stdout, &self.stderr].into_iter().flatten() {
            // A client that has gone needs no end.
            let _ = writer.finish().await;
        }
        if let Some(error) = &self.error {
            let _ = error.write(status).await;
            let _ = error.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_connected() {
        let of = |query: &str| Wanted::of(&Query::parse(query));
        let all = of("stdin=true&stdout=1&stderr=true").expect("three");
        assert_eq!((all.count(4), all.first_channel()), (4, channels::STDOUT));
        let tty = of("stdin=1&stdout=1&stderr=1&tty=1").expect("a terminal");
        assert!(!tty.stderr);
        assert_eq!((tty.count(4), tty.count(2)), (4, 3));
        assert_eq!(of("stdin=1").expect("one").first_channel(), channels::STATUS);
        assert_eq!(of("stderr=1").expect("one").first_channel(), channels::STDERR);
        assert!(of("tty=1&stderr=1").is_err());
    }

    #[test]
    fn ends_are_told_by_version() {
        let of = |outcome: Outcome, version| {
            String::from_utf8_lossy(&told(&outcome, version)).into_owned()
        };
        let text = expect_test::expect![[r#"
            {"metadata":{},"status":"Success"}
            {"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}
            {"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: no","reason":"InternalError","details":{"causes":[{"message":"error executing command in container: no"}]},"code":500}"#]];
        let all = [Outcome::Code(0), Outcome::Code(3), Outcome::Failed("no".to_owned())];
        text.assert_eq(&all.clone().map(|outcome| of(outcome, 4)).join("\n"));
        assert_eq!(of(Outcome::Code(0), 1), "");
        let words = "command terminated with non-zero exit code: exit status 3";
        assert_eq!(of(Outcome::Code(3), 3), words);
    }

    #[test]
    fn frames_are_as_the_node_reads_them() {
        assert_eq!(frame(channels::STDIN, b"ab")[..], [0, 0, 0, 3, 0, b'a', b'b']);
    }
}
