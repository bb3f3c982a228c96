//! Long answers are made in pieces, so that nobody else waits for them.
//!
//! ```text
//!  a task of its own:   room for a piece ─► a turn ─► makes the piece ─► others run ─► ...
//!                              ▲                             │
//!  the connection:             └──────────── takes and sends it
//! ```
//!
//! A list of thousands of objects takes many milliseconds to make, and the threads that answer
//! everybody are as few as the processors. So it is made piece by piece, none of which takes longer
//! than a few short answers. There are fewer turns than threads, users take them in turn, and who has
//! one lets everything else run that can run before the next begins.
//!
//! What a client does not take is not made. A task holds its turn only while it makes a piece and
//! lets others run, never while it waits for a client.

use super::fairness::Share;
use crate::contain::{self, Panic};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_stream::wrappers::ReceiverStream;

/// Answers about objects of so many bytes are long: the others are made at once.
pub const LONG: usize = 128 * 1024;
/// A piece of so many bytes is enough: to encrypt and send it takes as long as to make it.
pub const ENOUGH: usize = 32 * 1024;
/// A piece is made in this time, whatever has come of it.
const TIME: Duration = Duration::from_micros(200);

/// Stands among the extensions of an answer that flows and is long all the same.
#[derive(Clone, Copy, Debug)]
pub struct Long;

/// Measures the making of one piece.
pub struct Pace(Instant);

impl Pace {
    /// A piece is begun.
    pub fn begin() -> Pace {
        Pace(Instant::now())
    }

    /// Whether it is time for others.
    pub fn is_over(&self) -> bool {
        self.0.elapsed() >= TIME
    }
}

/// Does work step by step, until a step says that it was the last. Short work is done with its
/// first step; the others of long work are made by turns.
pub async fn steps<W: Send + 'static>(
    share: Share,
    mut work: W,
    mut step: impl FnMut(&mut W, &Pace) -> bool + Send + 'static,
) -> W {
    if step(&mut work, &Pace::begin()) {
        return work;
    }
    let mut work = Some(work);
    let mut steps = made(share, move |pace| {
        let is_last = step(work.as_mut()?, pace);
        Some(work.take_if(|_| is_last))
    });
    loop {
        match steps.recv().await.expect("the last step gives the work back") {
            Ok(Some(work)) => return work,
            Ok(None) => {}
            Err(panic) => panic.resume(),
        }
    }
}

/// Makes pieces for whoever takes them; the task ends with them, or when nobody takes any more.
pub fn made<T: Send + 'static>(
    share: Share,
    mut next: impl FnMut(&Pace) -> Option<T> + Send + 'static,
) -> mpsc::Receiver<Result<T, Panic>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok(room) = sender.reserve().await {
            let turn = share.turn().await;
            match contain::sync(|| next(&Pace::begin())) {
                Ok(Some(piece)) => room.send(Ok(piece)),
                Ok(None) => return,
                Err(panic) => {
                    room.send(Err(panic));
                    return;
                }
            }
            // Whoever can run now does, the connection with this piece among them, and the sockets
            // are looked at. Only then the next piece is made, by whoever's turn it is.
            yield_now().await;
            turn.end().await;
        }
    });
    receiver
}

/// An answer that is made in pieces.
pub fn answer(
    media: &'static str,
    share: Share,
    next: impl FnMut(&Pace) -> Option<Bytes> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(made(share, next))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.extensions_mut().insert(Long);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::User;
    use crate::apiserver::fairness::Fairness;
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn share(fairness: &Fairness) -> Share {
        fairness.share(&User::new("somebody", &[]))
    }

    #[tokio::test]
    async fn pieces_come_in_their_order_and_end() {
        let fairness = Fairness::new();
        let mut left = 3;
        let response = answer("text/plain", share(&fairness), move |_| {
            left -= 1;
            (left >= 0).then(|| Bytes::from(left.to_string()))
        });
        let body = response.into_body().collect().await.expect("it ends well");
        assert_eq!(body.to_bytes(), "210");
    }

    #[tokio::test]
    async fn nothing_is_made_that_nobody_takes() {
        let fairness = Fairness::new();
        let made_so_far = Arc::new(AtomicUsize::new(0));
        let counted = made_so_far.clone();
        let mut slow = made(share(&fairness), move |_| Some(counted.fetch_add(1, Relaxed)));
        // While nobody takes it others are answered, who need the same turns.
        for _ in 0..10 {
            let mut once = Some(());
            let mut other = made(share(&fairness), move |_| once.take());
            assert!(matches!(other.recv().await, Some(Ok(()))));
            assert!(other.recv().await.is_none());
        }
        assert_eq!(made_so_far.load(Relaxed), 1);
        assert!(matches!(slow.recv().await, Some(Ok(0))));
    }

    #[tokio::test]
    async fn long_work_goes_on_by_turns_and_short_work_needs_none() {
        let fairness = Fairness::new();
        let count = |up_to: usize| {
            steps(share(&fairness), 0, move |done: &mut usize, _: &Pace| {
                *done += 1;
                *done == up_to
            })
        };
        let mut turns = Vec::new();
        while let Some(turn) = share(&fairness).turn().now_or_never() {
            turns.push(turn);
        }
        assert_eq!(count(1).now_or_never(), Some(1));
        let mut long = Box::pin(count(3));
        for _ in 0..10 {
            assert!((&mut long).now_or_never().is_none(), "it is nobody's turn");
            yield_now().await;
        }
        drop(turns);
        assert_eq!(long.await, 3);
    }

    #[tokio::test]
    async fn a_panic_ends_an_answer_early() {
        let fairness = Fairness::new();
        let mut pieces = 0;
        let response = answer("text/plain", share(&fairness), move |_| {
            pieces += 1;
            assert!(pieces < 2, "it knows no way");
            Some(Bytes::from_static(b"half"))
        });
        assert!(response.into_body().collect().await.is_err());
    }
}
