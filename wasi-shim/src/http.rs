//! HTTP at the edge of the guest: the body type that both directions share, and the guest's own
//! requests.
//!
//! A guest's request never reaches a network from here. It is handed to the embedder's [`Outgoing`]
//! function, under this host's own limits: the number of open requests, the time to the head of the
//! response and the silence within its body, whatever the function or the guest would allow.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::{Error as WasiError, RequestOptions, WasiBody, WasiHttpHooks};

use crate::limits::BODY_CHUNK_BYTES_MAX;

/// To connect, within a cluster: five seconds are a broken network.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// From the request to the head of the response.
const FIRST_BYTE_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// The longest silence within a response's body.
const BETWEEN_BYTES_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// A streamed body, of a request or a response, to a guest or from it.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body was cut off: {0}")]
pub struct BodyError(#[source] Box<dyn StdError + Send + Sync>);

impl BodyError {
    pub fn new(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> BodyError {
        BodyError(cause.into())
    }
}

/// How long a guest wants to wait, cut to this host's limits. The shim itself holds the guest to
/// them; they are here for a sender that can say more precisely what took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingTimeouts {
    pub connect: Duration,
    pub first_byte: Duration,
    pub between_bytes: Duration,
}

/// Why a guest's request got no response; the guest sees the matching `wasi:http` error code.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    #[error("the name does not resolve")]
    NameNotFound,
    #[error("requests to this destination are not allowed")]
    Denied,
    #[error("nothing answers at the destination")]
    Unavailable,
    #[error("the connection was refused")]
    ConnectionRefused,
    #[error("connecting took too long")]
    ConnectionTimeout,
    #[error("the response took too long")]
    ResponseTimeout,
    #[error("too many requests are open")]
    TooMany,
    #[error("the request was not understood: {0}")]
    Invalid(String),
    #[error("the exchange failed: {0}")]
    Failed(String),
}

/// Sends a guest's request and returns the response. The URI is absolute; its authority is what
/// the guest named, not resolved.
pub type Outgoing = Arc<
    dyn Fn(
            http::Request<Body>,
            OutgoingTimeouts,
        ) -> BoxFuture<'static, Result<http::Response<Body>, OutgoingError>>
        + Send
        + Sync,
>;

/// Denies every request.
pub fn no_outgoing() -> Outgoing {
    Arc::new(|_, _| futures::future::ready(Err(OutgoingError::Denied)).boxed())
}

/// Headers of a request that the guest's own requests carry on, unless the guest has said something
/// else: by them one trace goes through many hands (Trace Context of the W3C).
const CARRIED: [HeaderName; 2] =
    [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// What wasmtime's `wasi:http` asks its embedder.
pub(crate) struct Hooks {
    pub(crate) outgoing: Outgoing,
    /// Of the request that the instance answers.
    pub(crate) carried: Vec<(HeaderName, HeaderValue)>,
    /// Places for open requests, shared by the Pod's instances.
    pub(crate) places: Arc<Semaphore>,
    /// Whether each is sent by a task of its own. wasmtime does that for WASI 0.2; for 0.3 it sends
    /// within the instance's turns, and a guest of this process that answers would be charged to the
    /// one that asks, and wait with it.
    pub(crate) apart: bool,
}

impl Hooks {
    /// From now on the guest answers a request with these headers.
    pub(crate) fn carry(&mut self, headers: &HeaderMap) {
        self.carried.clear();
        for name in CARRIED {
            if let Some(value) = headers.get(&name) {
                self.carried.push((name, value.clone()));
            }
        }
    }

    /// Adds what is carried to a request of the guest's own.
    fn pass_on(&self, headers: &mut HeaderMap) {
        // Who names a trace of its own means that one alone.
        if headers.contains_key(&CARRIED[0]) {
            return;
        }
        for (name, value) in &self.carried {
            headers.insert(name.clone(), value.clone());
        }
    }
}

type Sending = Box<dyn Future<Output = Result<(), WasiError>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Sending), WasiError>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _reading: Sending,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        self.pass_on(request.headers_mut());
        let place = Arc::clone(&self.places).try_acquire_owned();
        let outgoing = Arc::clone(&self.outgoing);
        let (timeouts, apart) = (timeouts(options.unwrap_or_default()), self.apart);
        Box::new(async move {
            let place = place.map_err(|_| WasiError::ConnectionLimitReached)?;
            let sending = outgoing(request.map(from_wasi), timeouts);
            let sending = if apart { in_a_task(sending) } else { sending };
            let head = tokio::time::timeout(timeouts.connect + timeouts.first_byte, sending).await;
            let response = head.map_err(|_| WasiError::HttpResponseTimeout)?.map_err(to_code)?;
            let body = |inner| ResponseBody::new(inner, timeouts.between_bytes, place);
            let nothing_more: Sending = Box::new(std::future::ready(Ok(())));
            Ok((response.map(|inner| body(inner).boxed_unsync()), nothing_more))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
}

type Answer = Result<http::Response<Body>, OutgoingError>;

/// Dropped, it gives up.
fn in_a_task(sending: BoxFuture<'static, Answer>) -> BoxFuture<'static, Answer> {
    let task = AbortOnDropHandle::new(tokio::spawn(sending));
    let failed = |error: JoinError| Err(OutgoingError::Failed(error.to_string()));
    task.map(move |ended| ended.unwrap_or_else(failed)).boxed()
}

fn timeouts(wanted: RequestOptions) -> OutgoingTimeouts {
    let cut = |wanted: Option<Duration>, max: Duration| wanted.unwrap_or(max).min(max);
    OutgoingTimeouts {
        connect: cut(wanted.connect_timeout, CONNECT_TIMEOUT_MAX),
        first_byte: cut(wanted.first_byte_timeout, FIRST_BYTE_TIMEOUT_MAX),
        between_bytes: cut(wanted.between_bytes_timeout, BETWEEN_BYTES_TIMEOUT_MAX),
    }
}

fn to_code(error: OutgoingError) -> WasiError {
    match error {
        OutgoingError::NameNotFound => WasiError::DnsError { rcode: None, info_code: None },
        OutgoingError::Denied => WasiError::HttpRequestDenied,
        OutgoingError::Unavailable => WasiError::DestinationUnavailable,
        OutgoingError::ConnectionRefused => WasiError::ConnectionRefused,
        OutgoingError::ConnectionTimeout => WasiError::ConnectionTimeout,
        OutgoingError::ResponseTimeout => WasiError::HttpResponseTimeout,
        OutgoingError::TooMany => WasiError::ConnectionLimitReached,
        OutgoingError::Invalid(_) => WasiError::HttpProtocolError,
        OutgoingError::Failed(text) => WasiError::InternalError(Some(text)),
    }
}

/// A body that comes from a guest.
pub(crate) fn from_wasi(body: WasiBody) -> Body {
    body.map_err(BodyError::new).boxed_unsync()
}

/// A body that goes to a guest.
pub(crate) fn to_wasi(body: Body) -> WasiBody {
    body.map_err(|error| WasiError::InternalError(Some(error.to_string()))).boxed_unsync()
}

/// The body of a response to the guest's own request: keeps its place until it is dropped, and ends
/// in an error when the sender falls silent.
struct ResponseBody {
    inner: Body,
    silence_max: Duration,
    silent: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl ResponseBody {
    fn new(inner: Body, silence_max: Duration, place: OwnedSemaphorePermit) -> ResponseBody {
        let silent = Box::pin(tokio::time::sleep(silence_max));
        ResponseBody { inner, silence_max, silent, _place: place }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.silent.as_mut().reset(Instant::now() + this.silence_max);
            let cut_off = |error: BodyError| WasiError::InternalError(Some(error.to_string()));
            return Poll::Ready(frame.map(|frame| frame.map_err(cut_off)));
        }
        ready!(this.silent.as_mut().poll(cx));
        Poll::Ready(Some(Err(WasiError::ConnectionReadTimeout)))
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
    use http_body_util::{Empty, StreamBody};

    use super::*;

    fn hooks(places: usize, outgoing: Outgoing) -> Hooks {
        let (carried, places) = (Vec::new(), Arc::new(Semaphore::new(places)));
        Hooks { outgoing, carried, places, apart: true }
    }

    async fn send(hooks: &mut Hooks, options: RequestOptions) -> Sent {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("http://api.default/x").body(body);
        let request = request.expect("a plain request");
        Box::into_pin(hooks.send_request(request, Some(options), Box::new(async { Ok(()) }))).await
    }

    fn silent_body() -> Body {
        StreamBody::new(futures::stream::pending()).boxed_unsync()
    }

    #[test]
    fn timeouts_are_cut_to_the_limits() {
        let wanted = RequestOptions {
            connect_timeout: Some(Duration::from_millis(5)),
            first_byte_timeout: Some(Duration::from_secs(9999)),
            between_bytes_timeout: None,
        };
        let cut = timeouts(wanted);
        assert_eq!(cut.connect, Duration::from_millis(5));
        assert_eq!(cut.first_byte, FIRST_BYTE_TIMEOUT_MAX);
        assert_eq!(cut.between_bytes, BETWEEN_BYTES_TIMEOUT_MAX);
    }

    #[test]
    fn a_guests_requests_belong_to_the_trace_of_the_one_it_answers() {
        let mut hooks = hooks(1, no_outgoing());
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            pairs.iter().map(pair).collect()
        };
        hooks.carry(&headers(&[("traceparent", "a"), ("tracestate", "b"), ("cookie", "c")]));
        let mut own = HeaderMap::new();
        hooks.pass_on(&mut own);
        assert_eq!(own, headers(&[("traceparent", "a"), ("tracestate", "b")]));
        let mut other = headers(&[("traceparent", "d")]);
        hooks.pass_on(&mut other);
        assert_eq!(other, headers(&[("traceparent", "d")]));
        // The next request of the instance comes without one.
        hooks.carry(&HeaderMap::new());
        let mut own = HeaderMap::new();
        hooks.pass_on(&mut own);
        assert!(own.is_empty());
    }

    #[tokio::test]
    async fn a_guest_without_network_is_denied() {
        let sent = send(&mut hooks(1, no_outgoing()), RequestOptions::default()).await;
        assert!(matches!(sent, Err(WasiError::HttpRequestDenied)));
    }

    /// What a guest asks for that does not want to wait.
    fn impatient() -> RequestOptions {
        let short = Some(Duration::from_millis(10));
        RequestOptions {
            connect_timeout: short,
            first_byte_timeout: short,
            between_bytes_timeout: short,
        }
    }

    #[tokio::test]
    async fn a_sender_that_never_answers_is_given_up() {
        let never: Outgoing = Arc::new(|_, _| futures::future::pending().boxed());
        let sent = send(&mut hooks(1, never), impatient()).await;
        assert!(matches!(sent, Err(WasiError::HttpResponseTimeout)));
    }

    #[tokio::test]
    async fn open_responses_keep_their_place_and_may_not_fall_silent() {
        let silent: Outgoing =
            Arc::new(|_, _| futures::future::ready(Ok(http::Response::new(silent_body()))).boxed());
        let mut hooks = hooks(1, silent);
        let first = send(&mut hooks, impatient()).await;
        let (mut response, _) = first.expect("the first request has a place");
        let second = send(&mut hooks, impatient()).await;
        assert!(matches!(second, Err(WasiError::ConnectionLimitReached)));
        let frame = response.body_mut().frame().await;
        assert!(matches!(frame, Some(Err(WasiError::ConnectionReadTimeout))));
        drop(response);
        assert!(send(&mut hooks, impatient()).await.is_ok(), "the place is free again");
    }
}
