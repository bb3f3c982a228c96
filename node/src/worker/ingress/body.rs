//! The body of a client's request: not larger than allowed, and not slower.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

/// The longest silence within a body: a client that sends a byte a minute holds a Pod for days.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body is not read on.
#[derive(Debug, thiserror::Error)]
pub enum BodyRefused {
    /// Too much.
    #[error("the body of the request is larger than {0} bytes")]
    TooLarge(u64),
    /// Too slow.
    #[error("the client sent nothing for {0:?}")]
    Silent(Duration),
}

/// A body within bounds.
pub struct Bounded<B> {
    inner: B,
    left: u64,
    max: u64,
    silence_max: Duration,
    silent: Option<Pin<Box<Sleep>>>,
}

impl<B> Bounded<B> {
    /// At most `max` bytes, with no longer pauses between them.
    pub fn new(inner: B, max: u64, silence_max: Duration) -> Bounded<B> {
        Bounded { inner, left: max, max, silence_max, silent: None }
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
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match this.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) {
                    Some(left) => this.left = left,
                    None => {
                        let refused = BodyRefused::TooLarge(this.max);
                        return Poll::Ready(Some(Err(refused.into())));
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
                Poll::Ready(Some(Err(BodyRefused::Silent(silence_max).into())))
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
        let error = Bounded::new(body(), 4, SILENCE_MAX).collect().await.expect_err("it is larger");
        assert_eq!(error.to_string(), "the body of the request is larger than 4 bytes");
    }

    #[tokio::test]
    async fn a_silent_client_is_cut_off() {
        let never = futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let error = Bounded::new(StreamBody::new(never), 9, Duration::from_millis(1))
            .collect()
            .await
            .expect_err("silence");
        assert_eq!(error.to_string(), "the client sent nothing for 1ms");
    }
}
