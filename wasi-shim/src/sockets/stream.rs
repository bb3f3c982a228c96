//! The two halves of a connection: as `wasi:io` streams of WASI 0.2, and for the streams of 0.3.
//!
//! What a guest has written is on its way even if the guest never looks again: what the stream does
//! not take at once is written by a task, one piece at a time, so a slow peer holds one piece.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::Stream;

/// What is read or written at once.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// How long a piece may take that a guest has left behind.
const LINGER: Duration = Duration::from_secs(30);

type Half = WriteHalf<Box<dyn Stream>>;

/// A place under the limit of sockets, held by everything that keeps a connection or a port.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// The reading end. Shared with the socket, which can shut it.
#[derive(Clone)]
pub(super) struct Reader(Arc<Mutex<Reading>>);

struct Reading {
    half: Option<ReadHalf<Box<dyn Stream>>>,
    buffer: BytesMut,
    failed: Option<io::ErrorKind>,
}

/// The writing end. Shared with the socket, which can shut it.
#[derive(Clone)]
pub(super) struct Writer(Arc<Mutex<Writing>>);

struct Writing {
    state: State,
    /// Cancelled when nobody waits for what is still being written.
    left: CancellationToken,
    /// Of what is still being written, whoever has left. None: nothing more will be.
    place: Option<Place>,
}

enum State {
    Idle(Half),
    Busy(JoinHandle<io::Result<Half>>),
    Closing(JoinHandle<io::Result<()>>),
    Closed,
    Failed(io::ErrorKind),
}

/// Both ends of a connection.
pub(super) fn split(stream: Box<dyn Stream>, place: &Place) -> (Reader, Writer) {
    let (reading, writing) = tokio::io::split(stream);
    let reading = Reading { half: Some(reading), buffer: BytesMut::new(), failed: None };
    let (left, place) = (CancellationToken::new(), Some(Arc::clone(place)));
    let writing = Writing { state: State::Idle(writing), left, place };
    (Reader(Arc::new(Mutex::new(reading))), Writer(Arc::new(Mutex::new(writing))))
}

impl Reader {
    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when there is something to take, or never will be.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.lock().poll_fill(cx)
    }

    /// Takes what has been read, without waiting; after [`Reader::poll_fill`] nothing is the end.
    pub(super) fn take(&self, into: &mut [u8]) -> Result<usize, io::ErrorKind> {
        let mut reading = self.lock();
        let count = into.len().min(reading.buffer.len());
        into[..count].copy_from_slice(&reading.buffer[..count]);
        reading.buffer.advance(count);
        match (count, reading.failed) {
            (0, Some(kind)) => Err(kind),
            _ => Ok(count),
        }
    }

    /// Reads nothing more.
    pub(super) fn shut(&self) {
        let mut reading = self.lock();
        reading.half = None;
        reading.buffer.clear();
    }
}

impl Reading {
    /// Ready when there is something to read, or never will be.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(half) = self.half.as_mut().filter(|_| self.buffer.is_empty()) else {
            return Poll::Ready(());
        };
        self.buffer.resize(PIECE_BYTES_MAX, 0);
        let mut into = ReadBuf::new(&mut self.buffer);
        let polled = Pin::new(half).poll_read(cx, &mut into);
        let count = into.filled().len();
        self.buffer.truncate(if polled.is_ready() { count } else { 0 });
        match ready!(polled) {
            Ok(()) if count == 0 => self.half = None,
            Ok(()) => {}
            Err(error) => {
                self.half = None;
                self.failed = Some(error.kind());
            }
        }
        Poll::Ready(())
    }
}

fn failed(kind: io::ErrorKind) -> StreamError {
    StreamError::LastOperationFailed(io::Error::from(kind).into())
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        poll_fn(|cx| self.lock().poll_fill(cx)).await;
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut reading = self.lock();
        if size == 0 {
            return Ok(Bytes::new());
        }
        // Whether it is ready now; the guest subscribes if it wants to wait.
        let _ = reading.poll_fill(&mut Context::from_waker(Waker::noop()));
        if !reading.buffer.is_empty() {
            let count = size.min(reading.buffer.len());
            let bytes = Bytes::copy_from_slice(&reading.buffer[..count]);
            reading.buffer.advance(count);
            return Ok(bytes);
        }
        let failure = reading.failed.take();
        match (reading.half.is_some(), failure) {
            (true, _) => Ok(Bytes::new()),
            (false, Some(kind)) => Err(failed(kind)),
            (false, None) => Err(StreamError::Closed),
        }
    }
}

impl Writer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the end of the stream after what was written.
    pub(super) fn shut(&self) {
        let mut writing = self.lock();
        let (left, place) = (writing.left.clone(), writing.place.take());
        writing.state = match std::mem::replace(&mut writing.state, State::Closed) {
            State::Idle(mut half) => {
                let ending =
                    Pin::new(&mut half).poll_shutdown(&mut Context::from_waker(Waker::noop()));
                match ending {
                    Poll::Ready(_) => State::Closed,
                    Poll::Pending => State::Closing(tokio::spawn(async move {
                        let _place = place;
                        within(left, half.shutdown()).await
                    })),
                }
            }
            State::Busy(task) => State::Closing(tokio::spawn(async move {
                let _place = place;
                match task.await {
                    Ok(Ok(mut half)) => within(left, half.shutdown()).await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Ok(()),
                }
            })),
            other => other,
        };
    }

    /// Ready with how many bytes may be put, or with why none will ever be.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<usize, io::ErrorKind>> {
        let mut writing = self.lock();
        ready!(writing.poll_idle(cx));
        Poll::Ready(match writing.state {
            State::Idle(_) => Ok(PIECE_BYTES_MAX),
            _ => Err(writing.failure()),
        })
    }

    /// Writes what [`Writer::poll_room`] said that there is room for.
    pub(super) fn put(&self, bytes: Bytes) -> Result<(), io::ErrorKind> {
        let mut writing = self.lock();
        let written = writing.write(bytes);
        written.map_err(|_| writing.failure())
    }

    /// Ready when all that was written before [`Writer::shut`] is on its way, or could not be.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Result<(), io::ErrorKind>> {
        let mut writing = self.lock();
        ready!(writing.poll_idle(cx));
        Poll::Ready(match writing.state {
            State::Failed(kind) => Err(kind),
            _ => Ok(()),
        })
    }
}

/// Runs to the end, or for [`LINGER`] after everybody has gone.
async fn within<T>(
    left: CancellationToken,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = async {
            left.cancelled().await;
            tokio::time::sleep(LINGER).await;
        } => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.left.cancel();
    }
}

impl Writing {
    /// Ready when the next piece can be written, or none ever.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Busy(task) => {
                self.state = match ready!(Pin::new(task).poll(cx)) {
                    Ok(Ok(half)) => State::Idle(half),
                    Ok(Err(error)) => State::Failed(error.kind()),
                    Err(_) => State::Closed,
                };
            }
            State::Closing(task) => {
                self.state = match ready!(Pin::new(task).poll(cx)) {
                    Ok(Err(error)) => State::Failed(error.kind()),
                    Ok(Ok(())) | Err(_) => State::Closed,
                };
            }
            State::Idle(_) | State::Closed | State::Failed(_) => {}
        }
        Poll::Ready(())
    }

    /// Why nothing can be written any more.
    fn failure(&self) -> io::ErrorKind {
        match self.state {
            State::Failed(kind) => kind,
            _ => io::ErrorKind::BrokenPipe,
        }
    }

    fn check(&mut self) -> StreamResult<usize> {
        let idle = self.poll_idle(&mut Context::from_waker(Waker::noop()));
        if idle.is_pending() {
            return Ok(0);
        }
        match self.state {
            State::Idle(_) => Ok(PIECE_BYTES_MAX),
            State::Failed(io::ErrorKind::BrokenPipe) => Err(StreamError::Closed),
            State::Failed(kind) => Err(failed(kind)),
            _ => Err(StreamError::Closed),
        }
    }

    fn write(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        if self.check()? < bytes.len() {
            return Err(StreamError::trap("more was written than was permitted"));
        }
        let State::Idle(mut half) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(StreamError::Closed);
        };
        let mut now = Context::from_waker(Waker::noop());
        while !bytes.is_empty() {
            match Pin::new(&mut half).poll_write(&mut now, &bytes) {
                Poll::Ready(Ok(count)) if count > 0 => bytes.advance(count),
                Poll::Ready(outcome) => {
                    let kind = outcome.err().map_or(io::ErrorKind::BrokenPipe, |it| it.kind());
                    self.state = State::Failed(kind);
                    return Err(self.check().map_or_else(|error| error, |_| StreamError::Closed));
                }
                Poll::Pending => {
                    let (left, place) = (self.left.clone(), self.place.clone());
                    self.state = State::Busy(tokio::spawn(async move {
                        let _place = place;
                        within(left, half.write_all(&bytes)).await?;
                        Ok(half)
                    }));
                    return Ok(());
                }
            }
        }
        self.state = State::Idle(half);
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        poll_fn(|cx| self.lock().poll_idle(cx)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.lock().write(bytes)
    }

    /// Nothing is held back, so there is nothing to flush.
    fn flush(&mut self) -> StreamResult<()> {
        self.lock().check().map(drop)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.lock().check()
    }
}
