//! Connections in memory, which can break.
//!
//! An end that is dropped or shut ends well for whoever reads the other one: that is how a connection
//! ends. One that came to no end (the way to another worker broke, a client was gone in the middle)
//! is [broken off](Breaker::break_off) instead: the other end reads what was written, and then an
//! error, never an end. So does a body that is made of such an end, or written into one.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use wherry_wasi_shim::{Body, BodyError};

use super::balance::Open;

/// What each direction of a connection holds while the reader is busy.
const BUFFER_BYTES: usize = 64 << 10;
/// What is read at once.
const PIECE_BYTES: usize = 16 << 10;

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    stream: DuplexStream,
    breaker: Breaker,
    /// Whether the other end was broken off.
    broken: Arc<AtomicBool>,
    /// Its count at its endpoint.
    _open: Option<Open>,
}

/// Breaks an end off, also one that was split or given away.
#[derive(Debug, Clone)]
pub struct Breaker(Arc<AtomicBool>);

impl Breaker {
    /// What is written into the end from now on, its closing above all, is no good end. The end must
    /// be closed after this: nobody is woken by it.
    pub fn break_off(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Both ends of a new connection.
pub fn pair() -> (End, End) {
    let (one, other) = tokio::io::duplex(BUFFER_BYTES);
    let (first, second) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let end = |stream, own: &Arc<AtomicBool>, others: &Arc<AtomicBool>| End {
        stream,
        breaker: Breaker(own.clone()),
        broken: others.clone(),
        _open: None,
    };
    (end(one, &first, &second), end(other, &second, &first))
}

impl End {
    /// Breaks this end off.
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    /// Counted at its endpoint as well, until it is dropped.
    pub fn counted(self, open: Open) -> End {
        End { _open: Some(open), ..self }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let at_end = room > 0 && buffer.filled().len() == before;
        // Set before the end came, so it is seen with it.
        if at_end && self.broken.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What is read, as a body. A connection that broke off makes it end in an error.
pub fn body_of(reading: ReadHalf<End>) -> Body {
    let pieces = futures::stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match reading.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Frame::data(piece.freeze())), Some(reading))),
            Err(error) => Some((Err(BodyError::new(error)), None)),
        }
    });
    Body::new(StreamBody::new(pieces))
}

/// Writes a body out, and its end: one that breaks off breaks its connection off.
pub async fn pump<B>(body: B, mut writing: WriteHalf<End>, breaker: Breaker)
where
    B: HttpBody<Data = Bytes>,
{
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            breaker.break_off();
            break;
        };
        if let Ok(data) = frame.into_data()
            && writing.write_all(&data).await.is_err()
        {
            return;
        }
    }
    // The reader may be gone.
    let _ = writing.shutdown().await;
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// What is read up to the end, and how that was.
    async fn read(mut end: impl AsyncRead + Unpin) -> (String, Result<(), io::ErrorKind>) {
        let mut said = Vec::new();
        let outcome = end.read_to_end(&mut said).await.map(drop).map_err(|error| error.kind());
        (String::from_utf8(said).expect("text"), outcome)
    }

    fn broken_body() -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, BodyError>>> {
        let pieces = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(BodyError::new("broke"))];
        StreamBody::new(futures::stream::iter(pieces))
    }

    #[tokio::test]
    async fn an_end_that_is_closed_ends_well() {
        let (mut one, other) = pair();
        one.write_all(b"all").await.expect("there is room");
        drop(one);
        assert_eq!(read(other).await, ("all".to_owned(), Ok(())));
        let (one, other) = pair();
        let breaker = one.breaker();
        let (_reading, writing) = tokio::io::split(one);
        pump(Full::new(Bytes::from_static(b"all")), writing, breaker).await;
        assert_eq!(read(other).await, ("all".to_owned(), Ok(())));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_end() {
        let (one, other) = pair();
        let breaker = one.breaker();
        let (_reading, writing) = tokio::io::split(one);
        pump(broken_body(), writing, breaker).await;
        let reset = Err(io::ErrorKind::ConnectionReset);
        assert_eq!(read(other).await, ("half".to_owned(), reset));
    }

    #[tokio::test]
    async fn nor_is_a_connection_that_breaks_off_a_whole_body() {
        let (mut one, other) = pair();
        one.write_all(b"half").await.expect("there is room");
        one.breaker().break_off();
        drop(one);
        let (reading, mut writing) = tokio::io::split(other);
        let mut body = body_of(reading);
        let first = body.frame().await.expect("a piece").expect("it was written");
        assert_eq!(first.into_data().expect("data"), "half");
        assert!(body.frame().await.expect("not the end").is_err());
        assert!(body.frame().await.is_none());
        assert!(writing.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn each_direction_breaks_by_itself() {
        let (mut one, mut other) = pair();
        one.breaker().break_off();
        other.write_all(b"answer").await.expect("there is room");
        drop(other.shutdown().await);
        assert_eq!(read(&mut one).await, ("answer".to_owned(), Ok(())));
        drop(one);
        assert_eq!(read(other).await, (String::new(), Err(io::ErrorKind::ConnectionReset)));
    }
}
