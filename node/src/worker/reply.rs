//! Bodies on their way: of a request that may be tried again, of a response wherever it comes from.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use wherry_wasi_shim::{Body, BodyError};

use super::{
    balance::Open,
    peers::StreamGuard,
    served::InFlight,
    traffic::{Counted, Pair},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is kept of a body that was read, to be sent again: most that come with a body are small.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A request body that can be sent again to somebody else, if whoever got it before has not seen the
/// request: as long as nobody has read more of it than [`KEPT_BYTES_MAX`].
pub enum Replay<B> {
    /// Nothing to send: can be sent any number of times.
    Empty,
    /// Not lent yet.
    Whole(B),
    /// Lent; the newest loan reads it.
    Lent(Arc<Mutex<Lent<B>>>),
}

/// A body that was lent. The lock is never waited for: an attempt that has ended reads no more.
pub struct Lent<B> {
    body: B,
    /// What was read of it, from its beginning. A copy: pieces may hold much larger buffers.
    kept: Vec<u8>,
    /// More was read than is kept.
    is_lost: bool,
    /// Its end was read; not every body can be asked for that twice.
    is_read: bool,
    /// Which loan reads it.
    loan: usize,
}

impl<B> Replay<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Takes a body that nobody has read of.
    pub fn new(body: B) -> Replay<B> {
        if body.is_end_stream() { Replay::Empty } else { Replay::Whole(body) }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Replay::Empty)
    }

    /// Whether it can be sent once more.
    pub fn is_left(&self) -> bool {
        match self {
            Replay::Empty | Replay::Whole(_) => true,
            Replay::Lent(lent) => !lock(lent).is_lost,
        }
    }

    /// The body for one attempt, which takes it away from the one before; None if too much of it was
    /// read. For the last one it is given away for good, which is cheaper.
    pub fn lend(&mut self, last: bool) -> Option<Body> {
        let lent = match std::mem::replace(self, Replay::Empty) {
            Replay::Empty => return Some(Body::new(Empty::new().map_err(|never| match never {}))),
            Replay::Whole(body) if last => return Some(Body::new(body.map_err(BodyError::new))),
            Replay::Whole(body) => Arc::new(Mutex::new(Lent {
                body,
                kept: Vec::new(),
                is_lost: false,
                is_read: false,
                loan: 0,
            })),
            Replay::Lent(lent) => lent,
        };
        // What is gone stays gone: not an empty body.
        *self = Replay::Lent(lent.clone());
        let mut held = lock(&lent);
        if held.is_lost {
            return None;
        }
        held.loan += 1;
        let number = held.loan;
        drop(held);
        Some(Body::new(Loan { lent, number, at: 0 }))
    }
}

fn lock<B>(lent: &Mutex<Lent<B>>) -> MutexGuard<'_, Lent<B>> {
    lent.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Lent<B> {
    /// Keeps data that was read, if there is room and somebody who could send it again.
    fn keep(&mut self, data: Option<&Bytes>, may_be_sent_again: bool) {
        let room = KEPT_BYTES_MAX - self.kept.len();
        match data {
            Some(data) if may_be_sent_again && data.len() <= room => {
                self.kept.extend_from_slice(data);
            }
            // Trailers are not kept: nobody sends any with a body that is tried again.
            _ => {
                self.is_lost = true;
                self.kept = Vec::new();
            }
        }
    }
}

/// A body on its way to one endpoint.
struct Loan<B> {
    lent: Arc<Mutex<Lent<B>>>,
    number: usize,
    /// How much of what was kept it has passed on.
    at: usize,
}

impl<B> HttpBody for Loan<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let may_be_sent_again = Arc::strong_count(&this.lent) > 1;
        let mut held = lock(&this.lent);
        if held.loan != this.number {
            return Poll::Ready(Some(Err(BodyError::new("the request is sent to another Pod"))));
        }
        if this.at < held.kept.len() {
            let again = Bytes::copy_from_slice(&held.kept[this.at..]);
            this.at = held.kept.len();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        if held.is_read {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut held.body).poll_frame(cx).map_err(BodyError::new));
        match &frame {
            Some(Ok(frame)) if !held.is_lost => held.keep(frame.data_ref(), may_be_sent_again),
            // Whatever is read after that, the body is not whole.
            Some(Err(_)) => held.keep(None, may_be_sent_again),
            Some(Ok(_)) | None => {}
        }
        held.is_read = frame.is_none();
        this.at = held.kept.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let held = lock(&self.lent);
        // One that was taken away ends in an error.
        let at_end = held.is_read || held.body.is_end_stream();
        held.loan == self.number && self.at >= held.kept.len() && at_end
    }

    fn size_hint(&self) -> SizeHint {
        let held = lock(&self.lent);
        let again = held.kept.len().saturating_sub(self.at) as u64;
        let inner = held.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(again));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint
    }
}

/// The body of a response, wherever it comes from. Holds the request's place until it is dropped.
pub enum Reply {
    /// A guest of this worker.
    Guest {
        /// What it writes.
        body: Body,
        /// Its place among the requests in flight.
        flight: InFlight,
    },
    /// A guest of another worker.
    Peer {
        /// What arrives.
        body: Incoming,
        /// Its place on the connection.
        _stream: StreamGuard,
        /// Its count at its endpoint.
        _open: Option<Open>,
    },
    /// Somebody to whom HTTP/1.1 was spoken: a guest that listens with a socket, or an address
    /// outside of the cluster.
    Socket {
        /// What arrives.
        body: Incoming,
        /// Its count at its endpoint.
        _open: Option<Open>,
    },
    /// One direction of a connection, or an answer that must end by a time or is followed.
    Stream(Body),
    /// The worker itself; empty after it was sent.
    Text(Bytes),
    /// Any of these, counted as it passes.
    Counted(Box<Counted<Reply>>),
}

impl Reply {
    /// Its bytes are counted, if there are any.
    pub fn counted(self, pair: &Arc<Pair>) -> Reply {
        if self.is_end_stream() {
            return self;
        }
        Reply::Counted(Box::new(Counted::received(self, pair)))
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Reply::Guest { flight, .. } if flight.is_cut_off() => {
                Poll::Ready(Some(Err("the Pod was stopped".into())))
            }
            Reply::Guest { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Peer { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Socket { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Stream(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Reply::Text(text) if text.is_empty() => Poll::Ready(None),
            Reply::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Reply::Counted(body) => Pin::new(body.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Guest { body, .. } => body.is_end_stream(),
            Reply::Peer { body, .. } | Reply::Socket { body, .. } => body.is_end_stream(),
            Reply::Stream(body) => body.is_end_stream(),
            Reply::Text(text) => text.is_empty(),
            Reply::Counted(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Guest { body, .. } => body.size_hint(),
            Reply::Peer { body, .. } | Reply::Socket { body, .. } => body.size_hint(),
            Reply::Stream(body) => body.size_hint(),
            Reply::Text(text) => SizeHint::with_exact(text.len() as u64),
            Reply::Counted(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &'static str) -> http_body_util::Full<Bytes> {
        http_body_util::Full::new(Bytes::from_static(text.as_bytes()))
    }

    async fn read(body: Body) -> String {
        let bytes = body.collect().await.expect("it does not break").to_bytes();
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn a_body_is_sent_again() {
        let mut replay = Replay::new(body("all of it"));
        let untouched = replay.lend(false).expect("the first attempt");
        assert_eq!(untouched.size_hint().exact(), Some(9));
        drop(untouched);
        for last in [false, false, true] {
            let again = replay.lend(last).expect("another attempt");
            assert_eq!((again.size_hint().exact(), again.is_end_stream()), (Some(9), false));
            assert_eq!(read(again).await, "all of it");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_body_is_read_once() {
        let pieces = futures::stream::unfold(Some("all"), |left| async move {
            let piece = Ok::<_, BodyError>(Frame::data(Bytes::from_static(left?.as_bytes())));
            Some((piece, None))
        });
        let mut replay = Replay::new(http_body_util::StreamBody::new(Box::pin(pieces)));
        for _ in 0..3 {
            assert_eq!(read(replay.lend(false).expect("it is kept")).await, "all");
        }
    }

    #[tokio::test]
    async fn an_attempt_that_still_reads_loses_the_body_to_the_next() {
        let (sender, pieces) = futures::channel::mpsc::unbounded();
        let say = |text: &'static str| {
            let piece = Ok::<_, BodyError>(Frame::data(Bytes::from_static(text.as_bytes())));
            sender.unbounded_send(piece).expect("it is read");
        };
        let mut replay = Replay::new(http_body_util::StreamBody::new(pieces));
        say("one ");
        let mut first = replay.lend(false).expect("the first attempt");
        let piece = first.frame().await.expect("a piece").expect("it does not break");
        assert_eq!(piece.into_data().expect("data"), "one ");
        let second = replay.lend(false).expect("little was read");
        say("two");
        assert!(first.frame().await.expect("no end").is_err());
        assert!(!first.is_end_stream());
        sender.close_channel();
        assert_eq!(read(second).await, "one two");
    }

    #[tokio::test]
    async fn a_body_that_broke_off_is_not_sent_again() {
        let pieces = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(BodyError::new("gone"))];
        let mut replay =
            Replay::new(http_body_util::StreamBody::new(futures::stream::iter(pieces)));
        let lent = replay.lend(false).expect("the first attempt");
        assert!(replay.is_left());
        assert!(lent.collect().await.is_err());
        assert!(!replay.is_left() && replay.lend(false).is_none());
    }

    #[tokio::test]
    async fn what_is_too_large_to_be_kept_is_sent_once() {
        let large = || http_body_util::Full::new(Bytes::from(vec![7; KEPT_BYTES_MAX + 1]));
        let mut replay = Replay::new(large());
        drop(replay.lend(false));
        let bytes = replay.lend(false).expect("nobody has read of it").collect().await;
        assert_eq!(bytes.expect("it does not break").to_bytes().len(), KEPT_BYTES_MAX + 1);
        assert!(replay.lend(false).is_none());
        assert!(replay.lend(true).is_none());
        // Nobody is left who could send it again: nothing is kept.
        let mut replay = Replay::new(body("small"));
        let lent = replay.lend(false).expect("the first attempt");
        let Replay::Lent(held) = &replay else { panic!("it was lent") };
        let held = Arc::downgrade(held);
        drop(replay);
        assert_eq!(read(lent).await, "small");
        assert!(held.upgrade().is_none());
    }

    #[tokio::test]
    async fn the_last_attempt_gets_the_body_itself_and_an_empty_one_is_lent_for_ever() {
        let mut replay = Replay::new(body("x"));
        drop(replay.lend(false));
        assert_eq!(read(replay.lend(true).expect("the last attempt")).await, "x");
        let mut replay = Replay::new(body(""));
        assert!(replay.is_empty());
        for last in [false, false, true] {
            assert_eq!(read(replay.lend(last).expect("nothing is there again")).await, "");
        }
    }
}
