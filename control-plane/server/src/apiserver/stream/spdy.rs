//! SPDY/3.1, the server's side: what kubectl falls back to for commands, and what it speaks for
//! forwarded ports, inside a WebSocket or by itself.
//!
//! SPDY is dead everywhere else: no maintained crate speaks it, so its few frames are read and
//! written here (`frame`, `headers`), with zlib by `zlib-rs`. A [`Session`] is one connection with
//! many streams, driven by one future:
//!
//! ```text
//!   client ── frames ──▶ read ──▶ queue of each stream   a full one stops the reading of all
//!   client ◀── frames ── write ◀── one queue ◀── replies, pings, data of all streams
//! ```
//!
//! As in Kubernetes there are no windows: back-pressure is the connection's own, and one stream
//! that is not read holds up the others.

mod frame;
mod headers;

use bytes::Bytes;
use frame::{Codec, Frame};
use futures::{SinkExt as _, StreamExt as _};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;

pub use headers::Headers;

/// Streams of one session at once: a browser behind a forwarded port opens a pair for each of its
/// connections.
const STREAMS_MAX: usize = 512;
/// New streams that nobody has looked at.
const NEW_MAX: usize = 16;
/// Pieces that wait for the reader of a stream.
const PIECES_MAX: usize = 4;
/// Frames that wait for the connection.
const FRAMES_MAX: usize = 16;
/// A client that has gone without a word is found out by writing to it.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// What the client may take to close, after it was told everything.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// `REFUSED_STREAM` and `CANCEL`.
const REFUSED: u32 = 3;
const CANCEL: u32 = 5;

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the client does not speak SPDY/3")]
    Version,
    #[error("a frame is malformed")]
    Frame,
    #[error("a header block is malformed")]
    Headers,
    #[error("a frame is too large")]
    TooLarge,
    #[error("the client broke the rules of streams")]
    Stream,
}

/// The streams that a client opens.
pub struct Session {
    /// New ones, in order; they are accepted already.
    pub streams: mpsc::Receiver<Stream>,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
    out: mpsc::Sender<Out>,
}

/// One stream.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

/// What a client sends in a stream.
pub struct StreamReader(mpsc::Receiver<Bytes>);

/// What a client gets in a stream.
#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    out: mpsc::Sender<Out>,
    /// Cancelled when the client wants nothing more of it.
    pub reset: CancellationToken,
    _used: Arc<()>,
}

enum Out {
    Frame(Frame),
    /// The last one.
    Close,
}

/// Whoever should be told has gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Session {
    /// Tells the client everything that is in the queue, and that this was all.
    pub async fn close(&self) {
        let _ = self.out.send(Out::Frame(Frame::GoAway { last: 0 })).await;
        let _ = self.out.send(Out::Close).await;
    }
}

impl Stream {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl StreamReader {
    /// The next piece; None at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl StreamWriter {
    /// Sends bytes; waits for the connection.
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(frame::PIECE_BYTES_MAX));
            self.send(Frame::Data { id: self.id, fin: false, bytes: piece }).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.send(Frame::Data { id: self.id, fin: true, bytes: Bytes::new() }).await
    }

    /// Ends the stream in both directions.
    pub async fn cancel(&self) -> Result<(), Gone> {
        self.send(Frame::Reset { id: self.id, status: CANCEL }).await
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        if self.reset.is_cancelled() {
            return Err(Gone);
        }
        self.out.send(Out::Frame(frame)).await.map_err(|_| Gone)
    }
}

/// A session over a connection, and the future that drives it until the connection ends.
pub fn session<S>(io: S) -> (Session, impl Future<Output = Result<(), SpdyError>>)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (out, outs) = mpsc::channel(FRAMES_MAX);
    let (new, streams) = mpsc::channel(NEW_MAX);
    let gone = CancellationToken::new();
    let session = Session { streams, gone: gone.clone(), out: out.clone() };
    let drive = async move {
        let _gone = gone.drop_guard();
        let (reader, writer) = tokio::io::split(io);
        // Two codecs, since each uses one half: a session has a zlib stream for each direction.
        let reader = FramedRead::new(reader, Codec::new());
        let writer = FramedWrite::new(writer, Codec::new());
        let mut reading = std::pin::pin!(read(reader, new, out));
        tokio::select! {
            read = reading.as_mut() => return read,
            written = write(writer, outs) => written?,
        }
        // The client closes when it has taken everything; what it still sends is for nobody.
        match tokio::time::timeout(CLOSE_TIMEOUT, reading).await {
            Ok(read) => read,
            Err(_) => Ok(()),
        }
    };
    (session, drive)
}

async fn write<W>(
    mut writer: FramedWrite<W, Codec>,
    mut outs: mpsc::Receiver<Out>,
) -> Result<(), SpdyError>
where
    W: AsyncWrite + Unpin,
{
    let mut beat = tokio::time::interval(PING_INTERVAL);
    beat.tick().await;
    // A server's own pings are even.
    let mut ping = 0;
    loop {
        tokio::select! {
            out = outs.recv() => match out {
                Some(Out::Frame(frame)) => writer.send(frame).await?,
                Some(Out::Close) | None => break,
            },
            _ = beat.tick() => {
                ping += 2;
                writer.send(Frame::Ping { id: ping }).await?;
            }
        }
    }
    Ok(writer.get_mut().shutdown().await?)
}

/// The sides of a stream that the reader of frames knows.
struct Known {
    /// None once the client has said its last.
    pieces: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Held by its writers.
    used: Weak<()>,
}

async fn read<R>(
    mut reader: FramedRead<R, Codec>,
    new: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
) -> Result<(), SpdyError>
where
    R: AsyncRead + Unpin,
{
    let mut known: HashMap<u32, Known> = HashMap::new();
    let mut last = 0;
    while let Some(frame) = reader.next().await {
        match frame? {
            Frame::SynStream { id, fin, headers } => {
                if id % 2 == 0 || id <= last {
                    return Err(SpdyError::Stream);
                }
                last = id;
                known.retain(|_, stream| !stream.is_over());
                if known.len() >= STREAMS_MAX {
                    say(&out, Frame::Reset { id, status: REFUSED }).await;
                    continue;
                }
                say(&out, Frame::SynReply { id, headers: Headers::new() }).await;
                let (pieces, queue) = mpsc::channel(PIECES_MAX);
                let reset = CancellationToken::new();
                let (out, used) = (out.clone(), Arc::new(()));
                let pieces = (!fin).then_some(pieces);
                let stream = Known { pieces, reset: reset.clone(), used: Arc::downgrade(&used) };
                known.insert(id, stream);
                let writer = StreamWriter { id, out, reset, _used: used };
                let stream = Stream { id, headers, reader: StreamReader(queue), writer };
                // Nobody wants streams any more: the session is being closed.
                let _ = new.send(stream).await;
            }
            Frame::Data { id, fin, bytes } => {
                if let Some(stream) = known.get_mut(&id) {
                    stream.take(bytes, fin).await;
                }
            }
            Frame::Headers { id, fin: true } => {
                if let Some(stream) = known.get_mut(&id) {
                    stream.pieces = None;
                }
            }
            Frame::Reset { id, .. } => {
                if let Some(stream) = known.remove(&id) {
                    stream.reset.cancel();
                }
            }
            // A client's pings are odd; an even one answers ours.
            Frame::Ping { id } if id % 2 == 1 => say(&out, Frame::Ping { id }).await,
            Frame::Ping { .. }
            | Frame::GoAway { .. }
            | Frame::Headers { .. }
            | Frame::SynReply { .. } => {}
        }
    }
    Ok(())
}

impl Known {
    /// Hands a piece to the stream's reader; waits for it. One that has gone loses it.
    async fn take(&mut self, bytes: Bytes, fin: bool) {
        if let Some(pieces) = self.pieces.as_ref().filter(|_| !bytes.is_empty()) {
            let _ = pieces.send(bytes).await;
        }
        if fin {
            self.pieces = None;
        }
    }

    /// Whether neither side uses it: the client has ended its half and ours is dropped.
    fn is_over(&self) -> bool {
        self.used.strong_count() == 0 && self.pieces.as_ref().is_none_or(mpsc::Sender::is_closed)
    }
}

async fn say(out: &mpsc::Sender<Out>, frame: Frame) {
    // The writer ends before the reader only when the session is being closed.
    let _ = out.send(Out::Frame(frame)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio_util::codec::Framed;

    type Client = Framed<DuplexStream, Codec>;

    /// A session, driven by a task, and its client.
    fn pair() -> (Session, Client) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (session, drive) = session(ours);
        tokio::spawn(drive);
        (session, Framed::new(theirs, Codec::new()))
    }

    fn open(id: u32, kind: &str) -> Frame {
        let headers = vec![("streamtype".to_owned(), kind.to_owned())];
        Frame::SynStream { id, fin: false, headers }
    }

    fn data(id: u32, fin: bool, bytes: &'static [u8]) -> Frame {
        Frame::Data { id, fin, bytes: Bytes::from_static(bytes) }
    }

    /// The next frame that is not a ping of the server's.
    async fn heard(client: &mut Client) -> Option<Frame> {
        loop {
            match client.next().await.transpose().expect("frames") {
                Some(Frame::Ping { id }) if id % 2 == 0 => {}
                frame => return frame,
            }
        }
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_end_by_halves() {
        let (mut session, mut client) = pair();
        client.send(open(1, "data")).await.expect("sent");
        let mut stream = session.streams.recv().await.expect("a stream");
        assert_eq!((stream.id, stream.header("streamtype")), (1, Some("data")));
        let reply = Frame::SynReply { id: 1, headers: Headers::new() };
        assert_eq!(heard(&mut client).await, Some(reply));
        client.send(data(1, false, b"to")).await.expect("sent");
        client.send(data(1, true, b"")).await.expect("sent");
        assert_eq!(stream.reader.next().await.as_deref(), Some(&b"to"[..]));
        assert_eq!(stream.reader.next().await, None);
        stream.writer.write(Bytes::from_static(b"fro")).await.expect("the client is there");
        stream.writer.finish().await.expect("the client is there");
        assert_eq!(heard(&mut client).await, Some(data(1, false, b"fro")));
        assert_eq!(heard(&mut client).await, Some(data(1, true, b"")));
        client.send(Frame::Ping { id: 7 }).await.expect("sent");
        assert_eq!(heard(&mut client).await, Some(Frame::Ping { id: 7 }));
        session.close().await;
        assert_eq!(heard(&mut client).await, Some(Frame::GoAway { last: 0 }));
        assert_eq!(heard(&mut client).await, None);
    }

    #[tokio::test]
    async fn a_reset_ends_a_stream_and_leaves_the_others() {
        let (mut session, mut client) = pair();
        client.send(open(1, "data")).await.expect("sent");
        client.send(open(3, "data")).await.expect("sent");
        let mut first = session.streams.recv().await.expect("a stream");
        let second = session.streams.recv().await.expect("a stream");
        client.send(Frame::Reset { id: 1, status: CANCEL }).await.expect("sent");
        first.writer.reset.cancelled().await;
        assert_eq!(first.reader.next().await, None);
        assert_eq!(first.writer.write(Bytes::from_static(b"x")).await, Err(Gone));
        assert_eq!(second.writer.write(Bytes::from_static(b"x")).await, Ok(()));
    }

    #[tokio::test]
    async fn a_client_that_goes_is_noticed() {
        let (mut session, mut client) = pair();
        client.send(open(1, "stdin")).await.expect("sent");
        let mut stream = session.streams.recv().await.expect("a stream");
        drop(client);
        session.gone.cancelled().await;
        assert_eq!(stream.reader.next().await, None);
        assert!(session.streams.recv().await.is_none());
    }

    #[tokio::test]
    async fn wrong_stream_numbers_end_the_session() {
        for ids in [[2, 3], [3, 1]] {
            let (session, mut client) = pair();
            for id in ids {
                // The session may have ended at the first.
                let _ = client.send(open(id, "data")).await;
            }
            session.gone.cancelled().await;
        }
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_stops_its_client() {
        let (mut session, mut client) = pair();
        client.send(open(1, "data")).await.expect("sent");
        let mut stream = session.streams.recv().await.expect("a stream");
        let flood = tokio::spawn(async move {
            for _ in 0..64 {
                client.send(data(1, false, &[0; 16 << 10])).await.expect("sent");
            }
            client
        });
        // It cannot end before the stream is read: a MiB fits nowhere.
        tokio::task::yield_now().await;
        assert!(!flood.is_finished());
        let mut total = 0;
        while total < 1 << 20 {
            total += stream.reader.next().await.expect("more").len();
        }
        flood.await.expect("the client can go on");
    }
}
