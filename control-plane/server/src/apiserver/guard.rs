//! What stands before every route: who asks, may they, is it their turn, how long may it take; and
//! what the audit log is told of it.
//!
//! One middleware, so that no route can be added without it. It leaves the [`User`] and the
//! [`Attributes`] as request extensions for the routes behind it.

use super::{
    ApiServer, asides,
    audit::{self, Source, Told},
    auth,
    auth::{PeerAddress, PeerCertificate, User},
    content::{self, BODY_BYTES_MAX},
    errors::ApiError,
    fairness::{self, Class, Passed, WatchCount},
    impersonate, pieces,
    request::{self, Attributes, Query},
    verbs::prepare,
};
use crate::contain;
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::Map;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Ordinary requests end after this, as in Kubernetes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// What a client is told of a panic; where and why is for the log alone.
const MET_A_BUG: &str =
    "this request met a bug of the API server; its log says more, under the answer's Audit-Id";
/// Longest Audit-ID that is taken over from a client.
const AUDIT_ID_BYTES_MAX: usize = 64;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Which flow schema and priority level a request fell under.
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Authenticates, authorises, waits for the request's turn, limits the time, tells the audit log,
/// and puts the headers on that every answer has.
pub async fn guard(State(api): State<ApiServer>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(AUDIT_ID).filter(|id| id.len() <= AUDIT_ID_BYTES_MAX);
    let audit_id = match sent {
        Some(id) => id.clone(),
        None => {
            HeaderValue::try_from(prepare::uid()).expect("a UUID is made of hexadecimal digits")
        }
    };
    let _in_flight = InFlight::begin(&api.metrics().in_flight);
    let mut told = tell(&audit_id, &request);
    let answered = contain::future(answer(&api, request, next, &mut told));
    let (answered, said) = asides::beside(answered).await;
    let (answer, class) = answered.unwrap_or_else(|panic| {
        tracing::error!(id = told.id, uri = told.uri, %panic, "a request met a bug");
        (ApiError::Internal(MET_A_BUG.to_owned()).into_response(), None)
    });
    api.metrics().answered(answer.status());
    if let Some(log) = api.audit() {
        let code = answer.status().as_u16();
        let level = audit::level(log.policy(), &told, code);
        if level != audit::Level::None {
            told.notes = said.annotations();
            log.record(audit::event(&told, level, code, Timestamp::now())).await;
        }
    }
    let failed = answer.status().is_client_error() || answer.status().is_server_error();
    let is_shown = answer.extensions().get::<content::Shown>().is_some();
    let mut answer = match is_shown && is_for_people(&told) {
        true => content::for_people(answer),
        false => answer,
    };
    if failed {
        content::warn(answer.headers_mut(), &said.warnings);
    }
    dressed(answer, audit_id, class)
}

/// Whether the client shows what it gets to people.
fn is_for_people(told: &Told) -> bool {
    let query = told.uri.split_once('?').map_or("", |(_, query)| query);
    content::is_for_people(&told.agent, Query::parse(query).get("pretty"))
}

/// Counts a request until it is answered, or its client has gone.
struct InFlight<'a>(&'a AtomicU64);

impl InFlight<'_> {
    fn begin(count: &AtomicU64) -> InFlight<'_> {
        count.fetch_add(1, Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn answer(
    api: &ApiServer,
    mut request: Request,
    next: Next,
    told: &mut Told,
) -> (Response, Option<Class>) {
    match admit_latest(api, &mut request, told).await {
        Err(error) => {
            content::drain(std::mem::take(request.body_mut())).await;
            (refused(error, told), None)
        }
        Ok(admitted) => pass(api, admitted, request, next, told).await,
    }
}

fn refused(error: ApiError, told: &mut Told) -> Response {
    if matches!(error.code(), StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        told.refused = Some(error.to_string());
    }
    error.into_response()
}

/// Waits for the request's turn, then has it answered.
async fn pass(
    api: &ApiServer,
    admitted: Admitted,
    mut request: Request,
    next: Next,
    told: &mut Told,
) -> (Response, Option<Class>) {
    let Admitted { user, attributes, limit } = admitted;
    let flows = api.flows();
    // Streams take as long as they like, so they hold no seat; watches hold one until they begin.
    let is_stream = limit == Duration::MAX && attributes.verb != "watch";
    let passed = match is_stream {
        true => Ok(Passed::free()),
        false => api.fairness().pass(&flows, &user, &attributes).await,
    };
    let Passed { seat, class } = match passed {
        Ok(passed) => passed,
        Err(refused) => {
            content::drain(request.into_body()).await;
            return (refused.error().into_response(), Some(refused.class));
        }
    };
    let counted = match attributes.verb.as_str() {
        "watch" => api.fairness().watch(&user),
        _ => Ok(None),
    };
    let counted = match counted {
        Ok(counted) => counted,
        Err(error) => return (error.into_response(), class),
    };
    let keeps = match api.audit() {
        Some(log) => audit::level_ahead(log.policy(), &user, &attributes),
        None => audit::Level::None,
    };
    if keeps >= audit::Level::Request && limit != Duration::MAX {
        request = match tokio::time::timeout(limit, keep_body(request, told)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => return (error.into_response(), class),
            // Who sends a body by the drop would keep a seat.
            Err(_) => return (timed_out().into_response(), class),
        };
    }
    let keeps_answer = keeps >= audit::Level::RequestResponse && limit != Duration::MAX;
    if keeps_answer {
        // The log is told what the answer says: nobody packs it first.
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let teaches = fairness::teaches(&attributes).then(|| attributes.clone());
    request.extensions_mut().insert::<User>(user);
    request.extensions_mut().insert::<Attributes>(attributes);
    let since = Instant::now();
    let mut answer = match limit {
        Duration::MAX => next.run(request).await,
        limit => match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => timed_out().into_response(),
        },
    };
    if let Some(attributes) = teaches {
        api.fairness().learn(&attributes, since.elapsed());
    }
    drop(seat);
    if keeps_answer {
        answer = keep_answer(answer, told).await;
    }
    if answer.body().size_hint().exact().is_none() {
        answer = answer.map(|body| Body::new(Flowing { body, _counted: counted }));
    }
    (answer, class)
}

/// A body that is made while it is sent. A watch counts for as long as its body flows.
struct Flowing {
    body: Body,
    _counted: Option<WatchCount>,
}

impl http_body::Body for Flowing {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, axum::Error>>> {
        let body = Pin::new(&mut self.body);
        contain::sync(|| body.poll_frame(context)).unwrap_or_else(|panic| {
            tracing::error!(%panic, "an answer ended early");
            std::task::Poll::Ready(Some(Err(axum::Error::new(panic))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Reads the body for the audit log, and puts it back.
async fn keep_body(request: Request, told: &mut Told) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
    let bytes = bytes.map_err(|_| ApiError::TooLarge(format!("limit is {BODY_BYTES_MAX}")))?;
    told.request = serde_json::from_slice(&bytes).ok();
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Reads a complete answer for the audit log, and puts it back. What is too long for the log, or
/// goes on and on, is left alone.
async fn keep_answer(answer: Response, told: &mut Told) -> Response {
    let is_long = answer.extensions().get::<pieces::Long>().is_some();
    let fits = |size: u64| size <= BODY_BYTES_MAX as u64;
    if !answer.body().size_hint().exact().map_or(is_long, fits) {
        return answer;
    }
    let (parts, mut body) = answer.into_parts();
    let mut kept = BytesMut::new();
    while kept.len() <= BODY_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => kept.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => {
                body = Body::from_stream(stream::iter([Err::<Bytes, _>(error)]));
                break;
            }
            None => {
                told.response = serde_json::from_slice(&kept).ok();
                return Response::from_parts(parts, Body::from(kept.freeze()));
            }
        }
    }
    let begun = stream::iter([Ok(kept.freeze())]);
    Response::from_parts(parts, Body::from_stream(begun.chain(body.into_data_stream())))
}

/// What is known before anything has been looked at.
fn tell(audit_id: &HeaderValue, request: &Request) -> Told {
    let text = |name: &HeaderName| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or("").to_owned()
    };
    let uri = request.uri().path_and_query().map_or("", |path| path.as_str());
    Told {
        id: audit_id.to_str().unwrap_or("").to_owned(),
        received: Timestamp::now(),
        uri: uri.to_owned(),
        user: None,
        acts_as: None,
        source: source(request),
        address: request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip().to_string()),
        agent: text(&header::USER_AGENT),
        asked: Attributes::default(),
        refused: None,
        request: None,
        response: None,
        notes: Map::new(),
    }
}

fn source(request: &Request) -> Source {
    let extensions = request.extensions();
    if extensions.get::<User>().is_some() {
        Source::Internal
    } else if extensions.get::<PeerCertificate>().is_some() {
        Source::Certificate
    } else if request.headers().contains_key(header::AUTHORIZATION) {
        Source::Token
    } else {
        Source::Nothing
    }
}

fn dressed(mut answer: Response, audit_id: HeaderValue, class: Option<Class>) -> Response {
    let headers = answer.headers_mut();
    if let Some(class) = class {
        headers.insert(SCHEMA_UID, class.schema_uid);
        headers.insert(LEVEL_UID, class.level_uid);
    }
    headers.insert(AUDIT_ID, audit_id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    answer
}

fn timed_out() -> ApiError {
    ApiError::Timeout {
        message: "request did not complete within the allotted timeout".to_owned(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}

/// The same as [`admit`], but who is refused by a state that may be old is judged again by the
/// newest one: a token that another member has just made is good here too. Where no newer state
/// can change the answer nobody is asked for one, so that refusing a stranger costs no other member
/// anything.
async fn admit_latest(
    api: &ApiServer,
    request: &mut Request,
    told: &mut Told,
) -> Result<Admitted, ApiError> {
    let judged_by = api.store().current().revision();
    let refused = match admit(api, request, told) {
        Ok(admitted) => {
            hide_credentials(request);
            return Ok(admitted);
        }
        Err(refused) => refused,
    };
    // What anonymous users may do stands in no object; nor does a bearer nobody could have made.
    let is_stranger = match &told.user {
        Some(user) => user.is_in(auth::UNAUTHENTICATED),
        None => !api.could_be_known(request.headers()),
    };
    if is_stranger || api.others().is_none() {
        return Err(refused);
    }
    // Where there is none to be had nobody can say that they are refused: another member may know.
    if api.latest().await?.revision() == judged_by {
        return Err(refused);
    }
    let admitted = admit(api, request, told)?;
    hide_credentials(request);
    Ok(admitted)
}

/// Takes away what nobody behind the guard may see or answer with.
fn hide_credentials(request: &mut Request) {
    auth::hide_token(request.headers_mut());
    impersonate::hide(request.headers_mut());
}

/// A request that may be answered.
struct Admitted {
    user: User,
    attributes: Attributes,
    /// How long it may take.
    limit: Duration,
}

/// Finds out who asks for what, and whether they may.
fn admit(api: &ApiServer, request: &Request, told: &mut Told) -> Result<Admitted, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let attributes = request::attributes(request.method(), request.uri().path(), &query);
    told.asked = attributes.clone();
    let mut user = api.authenticate(request.extensions(), request.headers())?;
    if user.is_in(auth::UNAUTHENTICATED) {
        let still = |token: &str| api.bearer(token);
        let session = api.sessions().authenticate(request.method(), request.headers(), still)?;
        if let Some(session) = session {
            user = session;
            told.source = Source::Session;
        }
    }
    told.user = Some(user.clone());
    if let Some(wanted) = impersonate::wanted(request.headers())? {
        for asked in wanted.asked() {
            api.authorize(&user, &asked)?;
        }
        user = wanted.user();
        told.acts_as = Some(user.clone());
    }
    if let Err(refused) = api.authorize(&user, &attributes) {
        tracing::debug!(
            user = user.name,
            verb = attributes.verb,
            path = attributes.path,
            "refused"
        );
        // Whoever has not said who they are is told that this is what is missing.
        let anonymous = user.is_in(auth::UNAUTHENTICATED);
        let wants_login = anonymous && attributes.path.starts_with("/v2");
        return Err(if wants_login { ApiError::Unauthorized } else { refused });
    }
    let limit = if is_long(&attributes, &query) { Duration::MAX } else { REQUEST_TIMEOUT };
    Ok(Admitted { user, attributes, limit })
}

/// Watches, streams and image transfers go on for as long as both sides like.
fn is_long(asked: &Attributes, query: &Query) -> bool {
    let streams = ["exec", "attach", "portforward", "proxy"];
    let follows = asked.subresource == "log" && query.flag("follow");
    let registry = asked.path.starts_with("/v2/");
    let by_path = ["/wherry/v1/tunnel", "/wherry/v1/backup", "/ui/requests"];
    let endless =
        by_path.contains(&asked.path.as_str()) || asked.path.starts_with("/wherry/v1/relay/");
    asked.verb == "watch"
        || streams.contains(&asked.subresource.as_str())
        || follows
        || registry
        || endless
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::{Server, admin, text};
    use axum::{Router, middleware, routing::get};
    use tower::ServiceExt as _;

    async fn broken() -> &'static str {
        panic!("its handler knows no way")
    }

    async fn breaks_off() -> Body {
        Body::from_stream(futures::stream::poll_fn(|_| -> std::task::Poll<Option<Chunk>> {
            panic!("half of it was sent")
        }))
    }

    type Chunk = Result<bytes::Bytes, std::io::Error>;

    #[tokio::test]
    async fn whose_client_goes_is_counted_no_more() {
        let server = Server::start().await;
        let router = Router::new()
            .route("/waits", get(std::future::pending::<()>))
            .layer(middleware::from_fn_with_state(server.api.clone(), guard));
        let request = http::Request::builder().uri("/waits").extension(admin()).body(Body::empty());
        let mut answer = Box::pin(router.oneshot(request.expect("a request")));
        let in_flight = || server.api.metrics().in_flight.load(Relaxed);
        assert!(futures::poll!(answer.as_mut()).is_pending());
        assert_eq!(in_flight(), 1);
        drop(answer);
        assert_eq!(in_flight(), 0);
    }

    #[tokio::test]
    async fn the_log_is_told_of_answers_that_flow_and_end() {
        let too_long = format!("1]{}", " ".repeat(BODY_BYTES_MAX));
        for (end, kept) in [("1]", true), (too_long.as_str(), false)] {
            let parts = ["[0,".to_owned(), end.to_owned()].map(Ok::<String, std::io::Error>);
            let mut answer = Response::new(Body::from_stream(stream::iter(parts)));
            answer.extensions_mut().insert(pieces::Long);
            let mut told = tell(&HeaderValue::from_static("id"), &Request::new(Body::empty()));
            let answer = keep_answer(answer, &mut told).await;
            assert_eq!(told.response, kept.then(|| serde_json::json!([0, 1])));
            assert!(text(answer).await == format!("[0,{end}"));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_one_request() {
        let server = Server::start().await;
        let router = Router::new()
            .route("/broken", get(broken))
            .route("/breaks-off", get(breaks_off))
            .layer(middleware::from_fn_with_state(server.api.clone(), guard));
        let ask = |path: &str| {
            let request = http::Request::builder().uri(path).extension(admin()).body(Body::empty());
            router.clone().oneshot(request.expect("a request"))
        };
        let answer = ask("/broken").await.expect("the router is infallible");
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer.headers().contains_key(AUDIT_ID));
        let told = text(answer).await;
        assert!(
            told.contains("\"reason\":\"InternalError\"") && told.contains(MET_A_BUG),
            "{told}"
        );
        let answer = ask("/breaks-off").await.expect("the router is infallible");
        assert!(answer.into_body().collect().await.is_err(), "the body ends early");
        assert_eq!(server.api.metrics().in_flight.load(Relaxed), 0);
        server.ok("GET", "/api/v1/namespaces/default", "").await;
    }
}
