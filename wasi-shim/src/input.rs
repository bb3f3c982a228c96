//! A guest's standard input, and how it is told to end.
//!
//! WASI has no signals. A guest can learn that it shall end in two ways, and both hang on one
//! [`Term`]: an open standard input ends, or the interface `wherry:pod/lifecycle` says so (see
//! `interfaces.rs`). A guest that uses neither cannot be asked and is simply dropped.
//!
//! An [`Input`] is a pipe: its one [`InputWriter`] waits when the guest does not read, and all
//! streams that a guest makes of it take from the same place.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// The request to end, as a guest sees it. Cancelled once, never taken back.
pub type Term = CancellationToken;

/// Pieces that wait for a guest that does not read.
const PIECES_MAX: usize = 4;

/// What a guest reads as its standard input. Clones are the same pipe.
#[derive(Clone)]
pub struct Input(Arc<Mutex<Pending>>);

/// Feeds an [`Input`]; dropped, the input ends behind what was written.
pub struct InputWriter(mpsc::Sender<Bytes>);

struct Pending {
    /// What is left of the piece that was taken last.
    piece: Bytes,
    pieces: mpsc::Receiver<Bytes>,
}

impl Input {
    /// An empty pipe that is open.
    pub fn pipe() -> (InputWriter, Input) {
        let (writer, pieces) = mpsc::channel(PIECES_MAX);
        let pending = Pending { piece: Bytes::new(), pieces };
        (InputWriter(writer), Input(Arc::new(Mutex::new(pending))))
    }
}

impl AsRef<InputWriter> for InputWriter {
    fn as_ref(&self) -> &InputWriter {
        self
    }
}

impl InputWriter {
    /// Waits until there is room. False: the guest is gone, and nothing will ever be read. Cancel
    /// safe: a cancelled write has written nothing.
    pub async fn write(&self, piece: Bytes) -> bool {
        piece.is_empty() || self.0.send(piece).await.is_ok()
    }
}

/// An [`Input`] as wasmtime wants it.
pub(crate) struct Stdin {
    pub(crate) input: Input,
    pub(crate) term: Term,
    pub(crate) terminal: bool,
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl Stdin {
    fn reader(&self) -> Reader {
        let (input, term) = (self.input.clone(), self.term.clone());
        let ended: BoxFuture<'static, ()> = Box::pin(term.clone().cancelled_owned());
        Reader { input, term, ended: Mutex::new(ended), over: false }
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.reader())
    }

    /// Not wasmtime's own adapter: it reads ahead, and a stream that a guest has opened and does
    /// not read would keep what another one waits for.
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.reader())
    }
}

/// Reads from the pipe until the end, nothing ahead. The mutex of `ended` makes it `Sync`; only its
/// one reader ever locks it.
struct Reader {
    input: Input,
    term: Term,
    ended: Mutex<BoxFuture<'static, ()>>,
    /// Whether it has been seen to end.
    over: bool,
}

impl Reader {
    /// Waits until there is something to take, or the end.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut pending = self.input.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !pending.piece.is_empty() || self.over {
            return Poll::Ready(());
        }
        match pending.pieces.poll_recv(cx) {
            Poll::Ready(Some(piece)) => pending.piece = piece,
            Poll::Ready(None) => self.over = true,
            Poll::Pending => {
                let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
                ready!(ended.as_mut().poll(cx));
                self.over = true;
            }
        }
        Poll::Ready(())
    }

    /// Finds what has arrived, without waiting.
    fn look(&mut self) {
        let mut pending = self.input.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.piece.is_empty() && !self.over {
            match pending.pieces.try_recv() {
                Ok(piece) => pending.piece = piece,
                Err(TryRecvError::Disconnected) => self.over = true,
                Err(TryRecvError::Empty) => self.over = self.term.is_cancelled(),
            }
        }
    }

    /// Takes what is there.
    fn take(&mut self, count_max: usize) -> Bytes {
        let mut pending = self.input.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pending.piece.len().min(count_max);
        pending.piece.split_to(count)
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_ready(cx));
        buffer.put_slice(&this.take(buffer.remaining()));
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.look();
        let bytes = self.take(size);
        match bytes.is_empty() && self.over && size > 0 {
            true => Err(StreamError::Closed),
            false => Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tokio::io::AsyncReadExt as _;

    fn stdin() -> (InputWriter, Stdin) {
        let (writer, input) = Input::pipe();
        (writer, Stdin { input, term: Term::new(), terminal: false })
    }

    async fn read(stream: &mut Pin<Box<dyn AsyncRead + Send + Sync>>, count: usize) -> String {
        let mut bytes = vec![0; count];
        let count = stream.read(&mut bytes).await.expect("reading does not fail");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[tokio::test]
    async fn streams_share_one_pipe_and_end_with_its_writer() {
        let (writer, stdin) = stdin();
        let mut one = Pin::from(stdin.async_stream());
        let mut other = Pin::from(stdin.async_stream());
        assert!(writer.write(Bytes::from_static(b"abcde")).await);
        assert_eq!(read(&mut one, 2).await, "ab");
        assert_eq!(read(&mut other, 8).await, "cde");
        drop(writer);
        assert_eq!(read(&mut one, 8).await, "");
    }

    /// A guest may have its input opened twice, by its runtime and by itself.
    #[tokio::test]
    async fn a_stream_that_is_not_read_keeps_nothing() {
        let (writer, stdin) = stdin();
        let mut idle = stdin.p2_stream();
        let mut stream = stdin.p2_stream();
        assert!(stream.ready().now_or_never().is_none());
        assert!(idle.read(8).expect("open").is_empty());
        assert!(writer.write(Bytes::from_static(b"abc")).await);
        idle.ready().await;
        stream.ready().await;
        assert_eq!(stream.read(2).expect("open"), "ab");
        assert_eq!(stream.read(2).expect("open"), "c");
        assert!(stream.read(2).expect("open").is_empty());
        drop(writer);
        stream.ready().await;
        assert!(matches!(stream.read(2), Err(StreamError::Closed)));
        assert!(matches!(idle.read(2), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_guest_that_does_not_read() {
        let (writer, stdin) = stdin();
        for _ in 0..PIECES_MAX {
            assert!(writer.write(Bytes::from_static(b"x")).await);
        }
        assert!(writer.write(Bytes::from_static(b"y")).now_or_never().is_none());
        let mut stream = Pin::from(stdin.async_stream());
        assert_eq!(read(&mut stream, 1).await, "x");
        assert_eq!(writer.write(Bytes::from_static(b"y")).now_or_never(), Some(true));
    }

    #[tokio::test]
    async fn it_ends_when_the_guest_shall() {
        let (_writer, stdin) = stdin();
        let mut stream = Pin::from(stdin.async_stream());
        assert!(read(&mut stream, 1).now_or_never().is_none());
        stdin.term.cancel();
        assert_eq!(read(&mut stream, 1).await, "");
    }
}
