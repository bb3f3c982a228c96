//! The agent's side of a worker: one connection over the Unix socket.
//!
//! Reading is the main task's; writing is a task of its own behind a bounded queue, so that a stuck
//! agent cannot stop the worker. An agent that falls behind is cut off: it connects again and gets
//! the whole state.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, SinkExt, StreamExt};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::protocol::{self, Hello, Open, ProtocolError, ToAgent, ToWorker};

/// An agent says hello at once; who does not is no agent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages waiting for a slow agent: a start and an exit for each Pod of a full node.
const OUTBOX_MAX: usize = 32_768;

/// A connection that has said hello.
pub struct Link {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    outbox: mpsc::Sender<Bytes>,
    writer: JoinHandle<()>,
}

/// What a connection turned out to be.
pub enum Caller {
    /// An agent that wants to command this worker.
    Agent(Hello, Link),
    /// One stream of the agent's.
    Stream(Open, UnixStream),
    /// An agent, of whatever version, that wants this worker to end; the grace.
    Stop(Duration, Link),
}

/// Why a connection does not become (or stay) the agent's.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Another user's process.
    #[error("the process at the other end belongs to user {0}")]
    Stranger(u32),
    /// The socket itself.
    #[error("talk to the agent")]
    Io(#[from] std::io::Error),
    /// Nothing was said in time.
    #[error("no hello within {HELLO_TIMEOUT:?}")]
    Silent,
    /// Its first message is another one.
    #[error("the first message is no hello, opens no stream, and does not end the worker")]
    NoHello,
    /// The agent closed the connection.
    #[error("the agent closed the connection")]
    Closed,
    /// A message that is none.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// It does not read.
    #[error("the agent does not read its messages")]
    Slow,
}

/// Waits for the first message of a connection.
pub async fn greet(stream: UnixStream) -> Result<Caller, LinkError> {
    let user = stream.peer_cred()?.uid();
    // An agent that is root gives its workers other users than its own.
    if user != 0 && user != nix::unistd::getuid().as_raw() {
        return Err(LinkError::Stranger(user));
    }
    let (reader, writer) = stream.into_split();
    let mut frames = FramedRead::new(reader, protocol::codec());
    let first = tokio::time::timeout(HELLO_TIMEOUT, frames.next()).await;
    let frame = first.map_err(|_| LinkError::Silent)?;
    match message(frame)? {
        ToWorker::Hello(hello) => Ok(Caller::Agent(hello, Link::new(frames, writer))),
        ToWorker::Stop { grace_ms } => {
            let grace = Duration::from_millis(grace_ms);
            Ok(Caller::Stop(grace, Link::new(frames, writer)))
        }
        // Nothing follows before it is answered, so nothing is lost in the buffer.
        ToWorker::Open(open) => {
            let reader = frames.into_inner();
            let stream = reader.reunite(writer).expect("both halves are of this stream");
            Ok(Caller::Stream(open, stream))
        }
        _ => Err(LinkError::NoHello),
    }
}

fn message(frame: Option<std::io::Result<BytesMut>>) -> Result<ToWorker, LinkError> {
    let frame = frame.ok_or(LinkError::Closed)??;
    Ok(protocol::decode(&frame)?)
}

async fn write(
    mut frames: FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    mut messages: mpsc::Receiver<Bytes>,
) {
    while let Some(message) = messages.recv().await {
        // A broken connection is noticed, and reported, by the reading side.
        if frames.send(message).await.is_err() {
            return;
        }
    }
}

impl Link {
    fn new(
        frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
        writer: OwnedWriteHalf,
    ) -> Link {
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let writer = tokio::spawn(write(FramedWrite::new(writer, protocol::codec()), messages));
        Link { frames, outbox, writer }
    }

    /// The next message. Cancel safe.
    pub async fn receive(&mut self) -> Result<ToWorker, LinkError> {
        message(self.frames.next().await)
    }

    /// A message that has already arrived.
    pub fn received(&mut self) -> Option<Result<ToWorker, LinkError>> {
        self.receive().now_or_never()
    }

    /// Sends a message, without waiting.
    pub fn send(&self, message: &ToAgent) -> Result<(), LinkError> {
        let frame = protocol::encode(message)?;
        self.outbox.try_send(frame).map_err(|_| LinkError::Slow)
    }

    /// Sends what is queued, then closes.
    pub async fn finish(self) {
        drop(self.outbox);
        // A panic there has been reported, and the connection ends anyway.
        let _ = self.writer.await;
    }
}
