//! Clients of HTTP/2 that ask and do not take.
//!
//! Each stream has a window of its own. So a client can ask for as much as it may at once and take
//! nothing of it, on a connection that is alive and well; hyper waits for such a window for ever, and
//! asks nobody. So the pieces of answers are followed until they were sent: a connection with one that
//! was not for [`TAKEN_WITHIN`] is closed, and all that is held for it is given back.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use wherry_wasi_shim::{Body, BodyError};

use super::reply::Reply;

/// Longer than links are slow and readers of one stream busy with something else: the others of its
/// connection end with it.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(300);

/// Pieces of the answers on one connection, from when they are given to be sent until they were.
#[derive(Clone, Default)]
pub struct Pieces(Arc<Mutex<Given>>);

/// Locked for an entry.
#[derive(Default)]
struct Given {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A piece; it is dropped when it was sent.
struct Piece {
    data: Bytes,
    number: u64,
    pieces: Pieces,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.pieces.lock().since.remove(&self.number);
    }
}

impl Pieces {
    fn lock(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an answer to a request of HTTP/2. With HTTP/1 a client that takes nothing is noticed by
    /// its socket.
    pub fn follow(&self, version: Version, answer: Response<Reply>) -> Response<Reply> {
        if version != Version::HTTP_2 || answer.body().is_end_stream() {
            return answer;
        }
        answer.map(|body| Reply::Stream(Body::new(Followed { body, pieces: self.clone() })))
    }

    fn give(&self, data: Bytes) -> Bytes {
        if data.is_empty() {
            return data;
        }
        let mut given = self.lock();
        let number = given.next;
        given.next += 1;
        given.since.insert(number, Instant::now());
        drop(given);
        Bytes::from_owner(Piece { data, number, pieces: self.clone() })
    }

    /// Ends when one was not sent within this time.
    pub async fn stuck(&self, within: Duration) {
        loop {
            let oldest = self.lock().since.first_key_value().map(|(_, since)| *since);
            let due = oldest.unwrap_or_else(Instant::now) + within;
            if oldest.is_some() && due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The body of an answer that is followed.
struct Followed {
    body: Reply,
    pieces: Pieces,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.map_data(|data| this.pieces.give(data))),
            Err(error) => Err(BodyError::new(error)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    /// The one piece of an answer.
    async fn piece(pieces: &Pieces, version: Version) -> Bytes {
        let answer = Response::new(Reply::Text(Bytes::from_static(b"hello")));
        let mut body = pieces.follow(version, answer).into_body();
        assert_eq!(body.size_hint().exact(), Some(5));
        let frame = body.frame().await.expect("a piece").expect("it does not break");
        frame.into_data().expect("data")
    }

    async fn is_stuck(pieces: &Pieces) -> bool {
        tokio::time::timeout(SHORT * 4, pieces.stuck(SHORT)).await.is_ok()
    }

    #[tokio::test]
    async fn a_piece_that_is_not_taken_is_noticed() {
        let pieces = Pieces::default();
        assert!(!is_stuck(&pieces).await);
        let mut first = piece(&pieces, Version::HTTP_2).await;
        assert_eq!(first, "hello");
        // A part of it is sent, the rest waits for the client.
        drop(first.split_to(3));
        assert!(is_stuck(&pieces).await);
        drop(first);
        assert!(!is_stuck(&pieces).await);
        let _unfollowed = piece(&pieces, Version::HTTP_11).await;
        assert!(!is_stuck(&pieces).await);
    }
}
