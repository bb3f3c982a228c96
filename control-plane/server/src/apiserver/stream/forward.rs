//! `portforward`: connections of a client to ports of a Pod.
//!
//! kubectl speaks SPDY, by itself or inside a WebSocket: each connection is a pair of streams, one
//! for data and one for the sentence that says what went wrong. Other clients name their ports in
//! the query and speak channels over a WebSocket: port `i` has channel `2i` for data and `2i + 1`
//! for errors, and the first frame of each is the port, two bytes, little-endian.
//!
//! A connection that fails ends alone; the session goes on until the client ends it.

use super::{
    Asked, Place, Upgrade, choose, no_protocol,
    node::NodeStream,
    spdy::{self, Stream},
    switching,
    websocket::{self, PING_INTERVAL, Protocol, Tunnel},
};
use crate::apiserver::{ApiServer, auth::User, errors::ApiError, request::Query};
use crate::contain;
use axum::response::Response;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// A pair whose second half does not come in this time is given up.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Ports of one session over channels: a channel is a byte.
const PORTS_MAX: usize = 100;
/// What is read of the node at once.
const READ_BYTES: usize = 32 << 10;
/// Frames that wait for a client's WebSocket.
const FRAMES_MAX: usize = 16;

/// A Pod that a client has connected to.
#[derive(Clone)]
struct Target {
    api: ApiServer,
    user: User,
    place: Place,
}

/// Answers `portforward`.
pub async fn forward(asked: Asked, http: axum::extract::Request) -> Result<Response, ApiError> {
    let pod = asked.object(&asked.attributes.name).await?;
    let place = Place::of(&pod)?;
    let target = Target { api: asked.api.clone(), user: asked.user.clone(), place };
    let (upgrade, offered) = Upgrade::of(http).await?;
    match upgrade {
        Upgrade::WebSocket(socket) => {
            let socket = websocket::bounded(*socket);
            if offered.iter().any(|name| name == TUNNEL_PROTOCOL) {
                let serve = |socket| contain::task(over_spdy(Tunnel::new(socket), target));
                return Ok(socket.protocols([TUNNEL_PROTOCOL]).on_upgrade(serve));
            }
            // v5 is of commands alone: a client that offers it for ports means it nowhere.
            let known = |name: &str| Protocol::named(name).filter(|known| known.version <= 4);
            let chosen = choose(&offered, known);
            if chosen.is_none() && !offered.is_empty() {
                return Err(no_protocol(&offered, &[TUNNEL_PROTOCOL, "v4.channel.k8s.io"]));
            }
            let ports = ports(&asked.query)?;
            let name = chosen.as_ref().map(|(name, _)| name.clone());
            let protocol = chosen.map_or(Protocol::PLAIN, |(_, protocol)| protocol);
            Ok(socket.protocols(name).on_upgrade(move |socket| {
                let channels = websocket::channels(socket, protocol);
                contain::task(over_channels(channels, ports, target))
            }))
        }
        Upgrade::Spdy(upgrade) => {
            let known = |name: &str| (name == SPDY_PROTOCOL).then_some(());
            if choose(&offered, known).is_none() && !offered.is_empty() {
                return Err(no_protocol(&offered, &[SPDY_PROTOCOL]));
            }
            let tasks = target.api.tasks().clone();
            tasks.spawn(contain::task(async move {
                match upgrade.await {
                    Ok(connection) => over_spdy(TokioIo::new(connection), target).await,
                    Err(error) => tracing::debug!(%error, "an upgrade failed"),
                }
            }));
            switching(Some(SPDY_PROTOCOL))
        }
    }
}

/// The ports in the query: repeated, or separated by commas.
fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let wrong = |text: &str| ApiError::BadRequest(format!("unable to parse {text:?} as a port"));
    let texts = query.all("ports").flat_map(|list| list.split(','));
    let port = |text: &str| text.trim().parse().ok().filter(|port| *port > 0);
    let ports: Result<Vec<u16>, ApiError> =
        texts.map(|text| port(text).ok_or_else(|| wrong(text))).collect();
    let ports = ports?;
    if ports.is_empty() || ports.len() > PORTS_MAX {
        let why = format!("query parameter \"ports\" must name 1 to {PORTS_MAX} ports");
        return Err(ApiError::BadRequest(why));
    }
    Ok(ports)
}

impl Target {
    async fn connect(&self, port: u16) -> Result<NodeStream, String> {
        let target = self.place.target("port", &port.to_string(), &[]);
        let Place { node, pod, uid, .. } = &self.place;
        let failed = |why: &dyn std::fmt::Display| {
            format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}")
        };
        self.api.tunnels().until_open(node).await;
        let count = self.api.tunnels().count(node, &self.user).map_err(|why| failed(&why))?;
        let opened = NodeStream::open(&self.api, node, &target, Some(count)).await;
        opened.map_err(|why| failed(&why))
    }
}

/// Halves of a connection that wait for each other.
struct Pair {
    error: Option<Stream>,
    data: Option<Stream>,
    since: Instant,
}

/// Serves a client that speaks SPDY, until it ends the session.
async fn over_spdy<S>(io: S, target: Target)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let shutdown = target.api.shutdown().clone();
    let (mut session, drive) = spdy::session(io);
    let serve = async move {
        let mut pairs: HashMap<String, Pair> = HashMap::new();
        let mut connections = JoinSet::new();
        let mut sweep = tokio::time::interval(PAIR_TIMEOUT);
        loop {
            tokio::select! {
                stream = session.streams.recv() => {
                    let Some(stream) = stream else { break };
                    if let Some((port, data, error)) = matched(stream, &mut pairs).await {
                        let passed = connection(target.clone(), port, data, error);
                        connections.spawn(contain::task(passed));
                    }
                }
                Some(_) = connections.join_next() => {}
                _ = sweep.tick() => give_up(&mut pairs).await,
                () = shutdown.cancelled() => break,
            }
        }
        connections.shutdown().await;
        session.close().await;
    };
    let (driven, ()) = tokio::join!(drive, serve);
    if let Err(error) = driven {
        tracing::debug!(%error, "a port's session ended early");
    }
}

/// Finds the other half of a stream. Some: the pair is complete.
async fn matched(
    stream: Stream,
    pairs: &mut HashMap<String, Pair>,
) -> Option<(u16, Stream, Stream)> {
    let kind = stream.header("streamtype").unwrap_or("");
    let is_data = kind == "data";
    let port =
        stream.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    if port.is_none() || !(is_data || kind == "error") {
        // A client that has gone needs no refusal.
        let _ = stream.writer.cancel().await;
        return None;
    }
    // Clients without numbers open the error stream first, and the data stream right after it.
    let unnumbered = if is_data { stream.id.saturating_sub(2) } else { stream.id };
    let request = stream.header("requestid").map_or(format!("#{unnumbered}"), str::to_owned);
    let none = Pair { error: None, data: None, since: Instant::now() };
    let pair = pairs.entry(request.clone()).or_insert(none);
    let half = if is_data { &mut pair.data } else { &mut pair.error };
    if let Some(double) = half.replace(stream) {
        let _ = double.writer.cancel().await;
    }
    if pair.error.is_none() || pair.data.is_none() {
        return None;
    }
    let pair = pairs.remove(&request)?;
    let (data, error) = (pair.data?, pair.error?);
    let port = data.header("port")?.parse().ok()?;
    Some((port, data, error))
}

async fn give_up(pairs: &mut HashMap<String, Pair>) {
    let old: Vec<String> = pairs
        .iter()
        .filter(|(_, pair)| pair.since.elapsed() >= PAIR_TIMEOUT)
        .map(|(request, _)| request.clone())
        .collect();
    for request in old {
        let Some(Pair { error, data, .. }) = pairs.remove(&request) else { continue };
        for stream in [error, data].into_iter().flatten() {
            let _ = stream.writer.cancel().await;
        }
    }
}

/// One connection to a port, from its beginning to its end.
async fn connection(target: Target, port: u16, data: Stream, error: Stream) {
    let Stream { mut reader, writer, .. } = data;
    match target.connect(port).await {
        Err(why) => {
            tracing::debug!(why, "a forwarded connection failed");
            // A client that has gone needs no sentence.
            let _ = error.writer.write(why.into()).await;
        }
        Ok(node) => {
            let (up, mut down) = node.split();
            let upload = async {
                while let Some(bytes) = reader.next().await {
                    if up.send(bytes).await.is_err() {
                        break;
                    }
                }
                // The client has said its last; the Pod may still answer.
                drop(up);
                std::future::pending::<()>().await;
            };
            let download = async {
                let mut buffer = vec![0; READ_BYTES];
                while let Ok(count @ 1..) = down.read(&mut buffer).await {
                    let bytes = Bytes::copy_from_slice(&buffer[..count]);
                    if writer.write(bytes).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = download => {}
                () = upload => {}
                () = writer.reset.cancelled() => {}
            }
        }
    }
    let _ = error.writer.finish().await;
    let _ = writer.finish().await;
}

/// Serves a client that speaks channels, until it goes or all its connections have ended.
async fn over_channels(
    (mut receiver, mut sender): (websocket::Receiver, websocket::Sender),
    ports: Vec<u16>,
    target: Target,
) {
    let (frames, mut queue) = mpsc::channel::<(u8, Bytes)>(FRAMES_MAX);
    let mut connections = JoinSet::new();
    let mut ups = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (up, pieces) = mpsc::channel(FRAMES_MAX);
        ups.push(up);
        let channel = u8::try_from(2 * index).expect("the number of ports is bounded");
        let passed = channel_pair(target.clone(), channel, port, pieces, frames.clone());
        connections.spawn(contain::task(passed));
    }
    drop(frames);
    let write = async {
        let mut beat = tokio::time::interval(PING_INTERVAL);
        beat.tick().await;
        loop {
            let frame = tokio::select! {
                frame = queue.recv() => Some(frame),
                _ = beat.tick() => None,
            };
            let sent = match frame {
                Some(Some((channel, bytes))) => sender.send(channel, &bytes).await,
                Some(None) => return sender.close().await,
                None => sender.ping().await,
            };
            if sent.is_err() {
                return;
            }
        }
    };
    let read = async {
        while let Some((channel, bytes)) = receiver.next().await {
            // Nothing is to be said on the channels of errors.
            if let Some(up) = ups.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) {
                // A connection that has ended takes no more.
                let _ = up.send(bytes).await;
            }
        }
    };
    let shutdown = target.api.shutdown().clone();
    tokio::select! {
        () = write => {}
        () = read => {}
        () = shutdown.cancelled() => {}
    }
    connections.shutdown().await;
}

/// One port of a client that speaks channels.
async fn channel_pair(
    target: Target,
    channel: u8,
    port: u16,
    mut pieces: mpsc::Receiver<Bytes>,
    frames: mpsc::Sender<(u8, Bytes)>,
) {
    for channel in [channel, channel + 1] {
        let first = Bytes::copy_from_slice(&port.to_le_bytes());
        if frames.send((channel, first)).await.is_err() {
            return;
        }
    }
    let node = match target.connect(port).await {
        Ok(node) => node,
        Err(why) => {
            // A client that has gone needs no sentence.
            let _ = frames.send((channel + 1, why.into())).await;
            return;
        }
    };
    let (up, mut down) = node.split();
    let upload = async {
        while let Some(bytes) = pieces.recv().await {
            if up.send(bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let download = async {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = down.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(&buffer[..count]);
            if frames.send((channel, bytes)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = download => {}
        () = upload => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_query() {
        let of = |query: &str| ports(&Query::parse(query)).map_err(|error| error.to_string());
        assert_eq!(of("ports=80"), Ok(vec![80]));
        assert_eq!(of("ports=80&ports=81,82"), Ok(vec![80, 81, 82]));
        for wrong in ["", "ports=0", "ports=70000", "ports=x", "ports=80,"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
