//! Bodies within bounds: of a client's request, not larger than allowed and not slower; of an
//! answer, not later than its rule says. And copies of bodies, for mirrors.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::mpsc, time::Sleep};
use wherry_wasi_shim::BodyError;

use crate::worker::reply::Reply;

/// The longest silence within a body: a client that sends a byte a minute holds a Pod for days.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Pieces of a body that wait for a mirror. One that is slower gets no more: the request itself must
/// not wait for it.
const PIECES_MAX: usize = 64;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body is not read on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum BodyRefused {
    /// Too much.
    #[error("the body of the request is larger than {0} bytes")]
    TooLarge(u64),
    /// Too slow.
    #[error("the client sent nothing for {0:?}")]
    Silent(Duration),
    /// The answer took longer than its rule allows.
    #[error("the answer was not complete within {0:?}")]
    Late(Duration),
    /// The request was broken off, or its copy was too slow.
    #[error("the request that is mirrored came to no end")]
    Incomplete,
}

impl BodyRefused {
    /// The status for the client.
    pub fn status(&self) -> StatusCode {
        match self {
            BodyRefused::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BodyRefused::Silent(_) => StatusCode::REQUEST_TIMEOUT,
            BodyRefused::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            BodyRefused::Incomplete => StatusCode::BAD_REQUEST,
        }
    }
}

/// What becomes of the body of a request, for whoever answers the client.
#[derive(Default)]
pub struct Fate {
    pieces: AtomicUsize,
    refused: OnceLock<BodyRefused>,
}

impl Fate {
    /// How many pieces were read.
    pub fn pieces(&self) -> usize {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Why no more of it is read.
    pub fn refused(&self) -> Option<&BodyRefused> {
        self.refused.get()
    }

    fn refuse(&self, why: BodyRefused) -> BoxError {
        // The first reason is the one.
        let _ = self.refused.set(why);
        why.into()
    }
}

/// A body within bounds.
pub struct Bounded<B> {
    inner: B,
    left: u64,
    max: u64,
    silence_max: Duration,
    silent: Option<Pin<Box<Sleep>>>,
    fate: Arc<Fate>,
}

impl<B> Bounded<B> {
    /// At most `max` bytes, with no longer pauses between them.
    pub fn new(inner: B, max: u64, silence_max: Duration) -> Bounded<B> {
        Bounded { inner, left: max, max, silence_max, silent: None, fate: Arc::default() }
    }

    /// What becomes of it.
    pub fn fate(&self) -> Arc<Fate> {
        self.fate.clone()
    }
}

impl<B> HttpBody for Bounded<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silent = None;
                this.fate.pieces.fetch_add(1, Ordering::Relaxed);
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match this.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) {
                    Some(left) => this.left = left,
                    None => {
                        let refused = this.fate.refuse(BodyRefused::TooLarge(this.max));
                        return Poll::Ready(Some(Err(refused)));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let silence_max = this.silence_max;
                let silent =
                    this.silent.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence_max)));
                ready!(silent.as_mut().poll(cx));
                let refused = this.fate.refuse(BodyRefused::Silent(silence_max));
                Poll::Ready(Some(Err(refused)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer that must be complete by a time.
pub struct Until {
    inner: Reply,
    end: Pin<Box<Sleep>>,
    /// What the rule says, for the error.
    limit: Duration,
}

impl Until {
    /// `left` is what is left of `limit`.
    pub fn new(inner: Reply, left: Duration, limit: Duration) -> Until {
        Until { inner, end: Box::pin(tokio::time::sleep(left)), limit }
    }
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::new(BodyRefused::Late(this.limit)))));
        }
        Pin::new(&mut this.inner).poll_frame(cx).map_err(BodyError::new)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that is copied as it is read.
pub struct Tee<B> {
    inner: B,
    copies: Vec<(mpsc::Sender<Bytes>, Arc<AtomicBool>)>,
}

/// A copy of a body. It ends where the body does, or breaks off.
pub struct Copied {
    pieces: mpsc::Receiver<Bytes>,
    /// Everything was sent.
    whole: Arc<AtomicBool>,
    /// There is nothing to send.
    empty: bool,
}

impl<B: HttpBody<Data = Bytes>> Tee<B> {
    /// Without copies.
    pub fn new(inner: B) -> Tee<B> {
        Tee { inner, copies: Vec::new() }
    }

    /// One more copy. To be made before anything is read.
    pub fn copy(&mut self) -> Copied {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let whole = Arc::new(AtomicBool::new(false));
        let empty = self.inner.is_end_stream();
        self.copies.push((sender, whole.clone()));
        Copied { pieces, whole, empty }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Tee<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if this.copies.is_empty() {
            return Poll::Ready(frame);
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.copies.retain(|(sender, _)| sender.try_send(data.clone()).is_ok());
        }
        if frame.is_none() || (matches!(frame, Some(Ok(_))) && this.inner.is_end_stream()) {
            for (_, whole) in this.copies.drain(..) {
                whole.store(true, Ordering::Release);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match ready!(self.pieces.poll_recv(cx)) {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.empty || self.whole.load(Ordering::Acquire) => Poll::Ready(None),
            None => Poll::Ready(Some(Err(BodyRefused::Incomplete.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.empty
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    #[tokio::test]
    async fn a_body_may_be_as_large_as_allowed() {
        let body = || Full::new(Bytes::from_static(b"12345"));
        let whole =
            Bounded::new(body(), 5, SILENCE_MAX).collect().await.expect("it fits").to_bytes();
        assert_eq!(whole, "12345");
        let larger = Bounded::new(body(), 4, SILENCE_MAX);
        let fate = larger.fate();
        assert!(fate.refused().is_none() && fate.pieces() == 0);
        let error = larger.collect().await.expect_err("it is larger");
        assert_eq!(error.to_string(), "the body of the request is larger than 4 bytes");
        let refused = fate.refused().expect("that is said to whoever answers");
        assert_eq!((refused.status().as_u16(), fate.pieces()), (413, 1));
    }

    #[tokio::test]
    async fn a_silent_client_is_cut_off() {
        let never = futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let silent = Bounded::new(StreamBody::new(never), 9, Duration::from_millis(1));
        let fate = silent.fate();
        let error = silent.collect().await.expect_err("silence");
        assert_eq!(error.to_string(), "the client sent nothing for 1ms");
        assert_eq!(fate.refused().map(|why| why.status().as_u16()), Some(408));
    }

    #[tokio::test]
    async fn an_answer_ends_by_its_time() {
        let never = futures::stream::pending::<Result<Frame<Bytes>, BodyError>>();
        let reply = Reply::Stream(wherry_wasi_shim::Body::new(StreamBody::new(never)));
        let limit = Duration::from_millis(1);
        let error = Until::new(reply, limit, limit).collect().await.expect_err("too late");
        let said = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(said.as_deref(), Some("the answer was not complete within 1ms"));
    }

    #[tokio::test]
    async fn a_copy_is_the_same_or_breaks_off() {
        let mut tee = Tee::new(Full::new(Bytes::from_static(b"12345")));
        let (copy, dropped) = (tee.copy(), tee.copy());
        drop(dropped);
        let whole = tee.collect().await.expect("it fits").to_bytes();
        let copied = copy.collect().await.expect("it is whole").to_bytes();
        assert_eq!((&whole[..], &copied[..]), (&b"12345"[..], &b"12345"[..]));
        let mut tee = Tee::new(Full::new(Bytes::from_static(b"12345")));
        let copy = tee.copy();
        drop(tee);
        assert!(copy.collect().await.is_err());
        let mut tee = Tee::new(Full::new(Bytes::new()));
        assert!(tee.copy().is_end_stream());
    }
}
