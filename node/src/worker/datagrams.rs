//! Datagrams on their way between Pods, and from node ports to them.
//!
//! Who sends to a Service gets one endpoint and keeps it while the two talk; answers come from the
//! address that was asked, as a kernel's address translation would have it. When nobody takes them
//! there any more, another endpoint gets them. To another worker the datagrams of one conversation are
//! one HTTP/2 stream, each with two bytes of length before it, answers the other way on the same
//! stream.
//!
//! ```text
//!   guest ─▶ send_datagram ─▶ Way::Local ─▶ inbox           answer: Back::Rewrite ─▶ asker's inbox
//!                        └──▶ Way::Remote ═stream═▶ inbox   answer: Back::Stream ═▶ asker's worker
//!   node port ─▶ the same ways                              answer: Back::Socket ─▶ client
//! ```
//!
//! Whatever finds no room is lost, as datagrams are.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, error::TrySendError},
};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};
use wherry_wasi_shim::{Body, BodyError, NetworkError};

use super::{
    network::{At, Destination, Endpoint, Place, ResolveError},
    policy::Caller,
    reply::Reply,
    switch::{FROM_HEADER, POD_HEADER, REFUSED_HEADER, Refusal, Switch},
};
use crate::protocol::Protocol;

/// On a request between workers: its bodies are datagrams, and this is who sends the first ones.
pub const DATAGRAM_HEADER: HeaderName = HeaderName::from_static("wherry-datagrams");
/// A conversation without a word is over, as in a kernel's tables.
const IDLE: Duration = Duration::from_secs(60);
/// Conversations of a worker; the oldest silent ones make room.
const CONVERSATIONS_MAX: usize = 8192;
/// Datagrams that wait for a slow stream; their bytes count for who sent them (`ports.rs`).
const QUEUE: usize = 64;
/// The largest datagram that there is.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// All conversations of a worker.
#[derive(Default)]
pub struct Conversations(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    /// By who asks and what address is asked.
    ways: HashMap<(SocketAddr, SocketAddr), Conversation>,
    /// By who answers and to whom.
    backs: HashMap<(SocketAddr, SocketAddr), (Back, Instant)>,
}

struct Conversation {
    way: Way,
    last: Instant,
}

/// How datagrams go on.
#[derive(Clone)]
enum Way {
    Local(SocketAddr),
    Remote(mpsc::Sender<Bytes>),
}

/// How answers come back.
#[derive(Clone)]
enum Back {
    /// To a guest of this worker, from the address that it asked.
    Rewrite(SocketAddr),
    /// To another worker, from this address.
    Stream(SocketAddr, mpsc::Sender<Bytes>),
    /// To a client of a node port.
    Socket(Arc<UdpSocket>),
}

impl Conversations {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn way(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<Way> {
        let found = self.ways.get_mut(&(from, to))?;
        let over = now.saturating_duration_since(found.last) > IDLE
            || matches!(&found.way, Way::Remote(queue) if queue.is_closed());
        if over {
            self.ways.remove(&(from, to));
            return None;
        }
        found.last = now;
        let way = found.way.clone();
        if let Way::Local(address) = &way
            && let Some((_, last)) = self.backs.get_mut(&(*address, from))
        {
            *last = now;
        }
        Some(way)
    }

    fn back(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<Back> {
        let (back, last) = self.backs.get_mut(&(from, to))?;
        if now.saturating_duration_since(*last) > IDLE {
            self.backs.remove(&(from, to));
            return None;
        }
        *last = now;
        Some(back.clone())
    }

    /// Forgets where the answers of a stream go. Its successor, which the same two may have begun
    /// before it was seen to end, stays.
    fn end(&mut self, key: (SocketAddr, SocketAddr), own: &mpsc::WeakSender<Bytes>) {
        let is_own = |(back, _): &(Back, Instant)| match back {
            Back::Stream(_, queue) => own.upgrade().is_some_and(|own| own.same_channel(queue)),
            Back::Rewrite(_) | Back::Socket(_) => false,
        };
        if self.backs.get(&key).is_some_and(is_own) {
            self.backs.remove(&key);
        }
    }

    /// Whether there is room for another conversation.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.ways.len().max(self.backs.len()) < CONVERSATIONS_MAX {
            return true;
        }
        let fresh = |last: Instant| now.saturating_duration_since(last) <= IDLE;
        self.ways.retain(|_, conversation| fresh(conversation.last));
        self.backs.retain(|_, (_, last)| fresh(*last));
        self.ways.len().max(self.backs.len()) < CONVERSATIONS_MAX
    }
}

impl Switch {
    /// Sends a datagram of a guest of this worker.
    pub fn send_datagram(
        self: &Arc<Switch>,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
        data: Bytes,
    ) -> Result<(), NetworkError> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let now = Instant::now();
        let (back, way) = {
            let mut tables = self.conversations.lock();
            let back = tables.back(from, to, now);
            let way = if back.is_none() { tables.way(from, to, now) } else { None };
            (back, way)
        };
        if let Some(back) = back {
            self.send_back(&back, to, data);
            return Ok(());
        }
        if let Some(way) = way
            && self.go(&way, from, data.clone())
        {
            return Ok(());
        }
        let found = self.resolve_datagram(to).map_err(|error| match error {
            ResolveError::Forbidden { .. } => NetworkError::Denied,
            ResolveError::Outside { .. } => NetworkError::Unreachable,
            ResolveError::NoService { .. }
            | ResolveError::NoName { .. }
            | ResolveError::NoPort { .. } => NetworkError::Refused,
        })?;
        let way = match self.begin(caller, &found, from, to, Back::Rewrite(to)) {
            Ok(Some(way)) => way,
            Ok(None) => return Ok(()),
            Err(Refusal::Denied { .. }) => return Err(NetworkError::Denied),
            Err(_) => return Err(NetworkError::Unreachable),
        };
        self.go(&way, from, data);
        Ok(())
    }

    /// Sends a datagram back to whoever asked from that address. False: nobody has.
    pub fn answer_datagram(&self, from: SocketAddr, to: SocketAddr, data: &Bytes) -> bool {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let back = self.conversations.lock().back(from, to, Instant::now());
        if let Some(back) = &back {
            self.send_back(back, to, data.clone());
        }
        back.is_some()
    }

    /// Takes what clients of a port of the node send, until dropped.
    pub async fn take_datagrams(self: Arc<Switch>, socket: Arc<UdpSocket>, at: At) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let Ok(own) = socket.local_addr() else { return };
        loop {
            let (count, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An answer that could not be delivered; the next one is another client's.
                Err(error) => {
                    tracing::debug!(%own, %error, "receive a datagram");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Some(entrance) = self.table().entrance(&at).cloned() else { continue };
            if entrance.balancer && !entrance.route.admits(client.ip().to_canonical()) {
                continue;
            }
            let data = Bytes::copy_from_slice(&buffer[..count]);
            let known = self.conversations.lock().way(client, own, Instant::now());
            if let Some(way) = known
                && self.go(&way, client, data.clone())
            {
                continue;
            }
            let caller = Caller::outside(client.ip());
            let destination = Destination::External(entrance.route);
            let back = Back::Socket(socket.clone());
            if let Ok(Some(way)) = self.begin(&caller, &destination, client, own, back) {
                self.go(&way, client, data);
            }
        }
    }

    /// False: who took them has gone, and somebody else may take them.
    fn go(&self, way: &Way, from: SocketAddr, data: Bytes) -> bool {
        match way {
            Way::Local(to) => self.ports.deliver(*to, from, data),
            Way::Remote(queue) => {
                let Some(data) = self.ports.keep(from, data) else { return true };
                !matches!(queue.try_send(data), Err(TrySendError::Closed(_)))
            }
        }
    }

    fn send_back(&self, back: &Back, to: SocketAddr, data: Bytes) {
        match back {
            Back::Rewrite(asked) => _ = self.ports.deliver(to, *asked, data),
            Back::Stream(from, queue) => {
                _ = self.ports.keep(*from, data).map(|data| queue.try_send(data));
            }
            Back::Socket(socket) => drop(socket.try_send_to(&data, to)),
        }
    }

    /// Begins a conversation. None: it goes nowhere, and nobody minds.
    fn begin(
        self: &Arc<Switch>,
        caller: &Caller,
        destination: &Destination,
        from: SocketAddr,
        to: SocketAddr,
        back: Back,
    ) -> Result<Option<Way>, Refusal> {
        let turn = Switch::turn(destination, caller);
        let Some(index) = self.pick(destination, caller, turn, &[]) else { return Ok(None) };
        self.learn(destination, caller, index, None);
        let Endpoint { address, place, .. } = &destination.endpoints()[index];
        let now = Instant::now();
        let way = match place {
            Place::Local => {
                self.permit(caller, *address, Protocol::Udp)?;
                Way::Local(*address)
            }
            Place::Peer(peer) => {
                let (queue, sent) = mpsc::channel(QUEUE);
                let request = datagram_request(caller, *address, from, sent);
                let (switch, peer) = (self.clone(), peer.clone());
                let (address, answers) = (*address, back.clone());
                self.streams.spawn(async move {
                    if let Err(refusal) = switch.converse(&peer, request, from, &answers).await {
                        tracing::debug!(%address, %refusal, "datagrams are not taken");
                    }
                });
                Way::Remote(queue)
            }
            Place::Outside => return Ok(None),
        };
        let mut tables = self.conversations.lock();
        if !tables.make_room(now) {
            return Ok(None);
        }
        // Also of one that was asked directly: its answer is no conversation of its own, which
        // policies would judge the other way round.
        if let Way::Local(address) = &way {
            tables.backs.insert((*address, from), (back, now));
        }
        tables.ways.insert((from, to), Conversation { way: way.clone(), last: now });
        Ok(Some(way))
    }

    /// The asking worker's side of a stream of datagrams.
    async fn converse(
        &self,
        peer: &super::peers::Peer,
        request: Request<Body>,
        from: SocketAddr,
        back: &Back,
    ) -> Result<(), Refusal> {
        let (response, _guard) = peer.send(request).await.map_err(Refusal::Peer)?;
        if let Some(word) = response.headers().get(REFUSED_HEADER) {
            return Err(Refusal::from_word(word, from));
        }
        let answers = Pieces::of(response.into_body());
        let take = |data| {
            self.send_back(back, from, data);
            true
        };
        answers.each(take).await;
        Ok(())
    }

    /// Answers a peer that wants to send datagrams to a Pod of this worker.
    pub fn accept_datagrams(
        self: &Arc<Switch>,
        caller: &Caller,
        address: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Refusal> {
        self.permit(caller, address, Protocol::Udp)?;
        let from = request.headers().get(DATAGRAM_HEADER);
        let from: Option<SocketAddr> = from.and_then(|from| from.to_str().ok()?.parse().ok());
        let from = from.ok_or(Refusal::BadRequest)?;
        let (queue, answers) = mpsc::channel(QUEUE);
        // Answers end when the table drops it, so it is not kept here.
        let own = queue.downgrade();
        {
            let mut tables = self.conversations.lock();
            if !tables.make_room(Instant::now()) {
                return Err(Refusal::Busy);
            }
            let back = Back::Stream(address, queue);
            tables.backs.insert((address, from), (back, Instant::now()));
        }
        let switch = self.clone();
        self.streams.spawn(async move {
            // Without anybody who takes them the stream ends, and who asks looks for another Pod.
            let asked = Pieces::of(request.into_body());
            asked.each(|data| switch.ports.deliver(address, from, data)).await;
            switch.conversations.lock().end((address, from), &own);
        });
        Ok(Response::new(Reply::Stream(body_of(answers))))
    }
}

fn datagram_request(
    caller: &Caller,
    address: SocketAddr,
    from: SocketAddr,
    sent: mpsc::Receiver<Bytes>,
) -> Request<Body> {
    let mut request = Request::new(body_of(sent));
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://{address}/").parse().expect("an address makes a URI");
    let visible = "an address is visible ASCII";
    let headers = request.headers_mut();
    headers.insert(POD_HEADER, HeaderValue::try_from(address.to_string()).expect(visible));
    headers.insert(FROM_HEADER, caller.word());
    headers.insert(DATAGRAM_HEADER, HeaderValue::try_from(from.to_string()).expect(visible));
    request
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .length_field_length(2)
        .max_frame_length(DATAGRAM_BYTES_MAX)
        .new_codec()
}

/// Datagrams as the body of a stream, until nothing has come for long.
fn body_of(queue: mpsc::Receiver<Bytes>) -> Body {
    let pieces = futures::stream::unfold(queue, |mut queue| async move {
        let data = tokio::time::timeout(IDLE, queue.recv()).await.ok().flatten()?;
        let mut piece = BytesMut::with_capacity(data.len() + 2);
        // Guests cannot make longer ones; if one could, it would be lost.
        let _ = codec().encode(data, &mut piece);
        Some((Ok::<_, BodyError>(Frame::data(piece.freeze())), queue))
    });
    Body::new(StreamBody::new(pieces))
}

/// The datagrams of a body.
struct Pieces<B> {
    body: B,
    codec: LengthDelimitedCodec,
    buffer: BytesMut,
}

impl<B: HttpBody<Data = Bytes> + Unpin> Pieces<B> {
    fn of(body: B) -> Pieces<B> {
        Pieces { body, codec: codec(), buffer: BytesMut::new() }
    }

    /// Gives out each, until the body ends or makes no sense, or one is not taken.
    async fn each(mut self, take: impl Fn(Bytes) -> bool) {
        while let Some(Ok(frame)) = self.body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            self.buffer.extend_from_slice(&data);
            loop {
                match self.codec.decode(&mut self.buffer) {
                    Ok(Some(datagram)) => {
                        if !take(datagram.freeze()) {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_conversation_ends_in_silence_and_makes_room() {
        let (mut tables, begun) = (Tables::default(), Instant::now());
        let (client, service) = (at("10.0.0.1:40000"), at("172.20.0.9:53"));
        let conversation = Conversation { way: Way::Local(at("10.0.0.2:53")), last: begun };
        tables.ways.insert((client, service), conversation);
        let later = begun + IDLE / 2;
        assert!(tables.way(client, service, later).is_some());
        assert!(tables.way(client, service, later + IDLE).is_some());
        assert!(tables.way(client, service, later + IDLE * 3).is_none());
        let back = (Back::Rewrite(service), begun);
        tables.backs.insert((at("10.0.0.2:53"), client), back);
        assert!(tables.back(at("10.0.0.2:53"), client, later).is_some());
        for port in 0..CONVERSATIONS_MAX {
            let client = SocketAddr::new(client.ip(), u16::try_from(port).expect("it fits"));
            let way = Way::Local(service);
            tables.ways.insert((client, service), Conversation { way, last: begun });
        }
        assert!(!tables.make_room(begun) && tables.make_room(begun + IDLE * 2));
    }

    #[test]
    fn the_end_of_a_stream_leaves_its_successor_alone() {
        let (mut tables, now) = (Tables::default(), Instant::now());
        let key = (at("10.0.0.2:53"), at("10.0.0.1:40000"));
        let (first, _answers) = mpsc::channel(QUEUE);
        let (second, _others) = mpsc::channel(QUEUE);
        let (ended, own) = (first.downgrade(), second.downgrade());
        tables.backs.insert(key, (Back::Stream(key.0, first), now));
        tables.backs.insert(key, (Back::Stream(key.0, second), now));
        tables.end(key, &ended);
        assert!(tables.backs.contains_key(&key));
        tables.end(key, &own);
        assert!(!tables.backs.contains_key(&key));
    }

    #[tokio::test]
    async fn datagrams_keep_their_borders_on_a_stream() {
        let (queue, sent) = mpsc::channel(QUEUE);
        for word in ["one", "", "three"] {
            queue.try_send(Bytes::from_static(word.as_bytes())).expect("there is room");
        }
        drop(queue);
        let heard = Mutex::new(Vec::new());
        let note = |data: Bytes| {
            heard.lock().expect("nobody panics").push(data);
            true
        };
        Pieces::of(body_of(sent)).each(note).await;
        assert_eq!(heard.into_inner().expect("nobody panics"), ["one", "", "three"]);
    }
}
