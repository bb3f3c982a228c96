//! What a client still sends of a request that was answered without reading it.
//!
//! A handler that does not care for the body of a request answers before it has come, and most clients
//! send head and body apart. Were the body just dropped, its connection would have to be closed under the
//! client, who finds that out with the next request. So a little more is read, and thrown away.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Version, header, request::Parts};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio_util::task::TaskTracker;

/// More is not read: then a new connection is cheaper.
const BYTES_MAX: usize = 256 << 10;
/// Nor for longer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// The body of a request of HTTP/1, the rest of which is read when nobody wants it any more.
pub struct Unread<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
{
    /// None at its end.
    body: Option<B>,
    /// Where the rest is read; None: it is not.
    tasks: Option<TaskTracker>,
}

impl<B> Unread<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
{
    /// The body of the request with this head.
    pub fn new(head: &Parts, body: B, tasks: &TaskTracker) -> Unread<B> {
        // HTTP/2 ends a stream by itself. Who waits to be told that the body is wanted may not send it.
        let waits = head.headers.contains_key(header::EXPECT);
        let is_read = head.version <= Version::HTTP_11 && !waits && !body.is_end_stream();
        Unread { body: Some(body), tasks: is_read.then(|| tasks.clone()) }
    }
}

impl<B> HttpBody for Unread<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl<B> Drop for Unread<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
{
    fn drop(&mut self) {
        let (Some(body), Some(tasks)) = (self.body.take(), self.tasks.take()) else { return };
        if body.is_end_stream() {
            return;
        }
        // Where there is no runtime nobody could read it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            tasks.spawn_on(discard(body), &runtime);
        }
    }
}

async fn discard<B>(mut body: B)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let reading = async {
        let mut left = BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Who sends no more is left to the limits of the connection.
    let _ = tokio::time::timeout(TIME_MAX, reading).await;
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use futures::StreamExt as _;
    use http::Request;
    use http_body_util::StreamBody;

    use super::*;

    /// How many of three pieces are read of a body that is dropped after the first.
    async fn read(request: http::request::Builder) -> usize {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let pieces = futures::stream::iter(["one", "two", "three"]).map(move |piece| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes())))
        });
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let tasks = TaskTracker::new();
        let mut body = Unread::new(&head, StreamBody::new(pieces), &tasks);
        let first = body.frame().await.expect("a piece").expect("it does not break");
        assert_eq!(first.into_data().expect("data"), "one");
        drop(body);
        tasks.close();
        tasks.wait().await;
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn the_rest_of_a_body_is_read_where_a_request_may_follow_it() {
        assert_eq!(read(Request::post("/")).await, 3);
        assert_eq!(read(Request::post("/").version(Version::HTTP_2)).await, 1);
        assert_eq!(read(Request::post("/").header("expect", "100-continue")).await, 1);
    }

    #[tokio::test]
    async fn no_more_is_read_than_a_new_connection_costs() {
        let large = http_body_util::Full::new(Bytes::from(vec![7; BYTES_MAX + 1]));
        discard(large).await;
        let never = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let ended = tokio::time::timeout(Duration::ZERO, discard(StreamBody::new(never))).await;
        assert!(ended.is_err(), "it is waited for");
    }
}
