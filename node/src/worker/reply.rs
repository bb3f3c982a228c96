//! Bodies on their way: of a request that may be tried again, of a response wherever it comes from.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
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

/// A request body that can be sent again as long as nobody has read of it.
pub enum Replay<B> {
    /// Nothing to send: can be sent any number of times.
    Empty,
    /// Not lent yet.
    Whole(B),
    /// Lent; comes back if it was dropped untouched.
    Lent(Arc<Mutex<Option<B>>>),
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

    /// The body for one attempt; None if an earlier attempt has read of it. For the last one it
    /// is given away for good, which is cheaper.
    pub fn lend(&mut self, last: bool) -> Option<Body> {
        let body = match std::mem::replace(self, Replay::Empty) {
            Replay::Empty => return Some(Body::new(Empty::new().map_err(|never| match never {}))),
            Replay::Whole(body) => body,
            Replay::Lent(slot) => {
                let body = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                // What is gone stays gone: not an empty body.
                *self = Replay::Lent(slot);
                body?
            }
        };
        if last {
            return Some(Body::new(body.map_err(BodyError::new)));
        }
        let slot = Arc::new(Mutex::new(None));
        *self = Replay::Lent(slot.clone());
        Some(Body::new(Loan { body: Some(body), slot: Some(slot) }))
    }
}

/// Goes back to its slot when dropped untouched. The lock is never waited for: the sender looks
/// after the attempt has ended.
struct Loan<B> {
    body: Option<B>,
    slot: Option<Arc<Mutex<Option<B>>>>,
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
        self.slot = None;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::new),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, HttpBody::size_hint)
    }
}

impl<B> Drop for Loan<B> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
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
    /// One direction of a connection, or an answer that must end by a time.
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
    async fn a_body_comes_back_if_nobody_has_read_of_it() {
        let mut replay = Replay::new(body("all of it"));
        let untouched = replay.lend(false).expect("the first attempt");
        assert_eq!(untouched.size_hint().exact(), Some(9));
        drop(untouched);
        let again = replay.lend(false).expect("the second attempt");
        assert_eq!(read(again).await, "all of it");
        assert!(replay.lend(false).is_none());
        assert!(replay.lend(true).is_none());
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
