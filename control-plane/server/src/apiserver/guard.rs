//! What stands before every route: who asks, may they, how long may it take.
//!
//! One middleware, so that no route can be added without it. It leaves the [`User`] and the
//! [`Attributes`] as request extensions for the routes behind it.

use super::{
    ApiServer, auth,
    auth::User,
    authorize,
    errors::ApiError,
    request::{self, Attributes, Query},
};
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Ordinary requests end after this, as in Kubernetes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest Audit-ID that is taken over from a client.
const AUDIT_ID_BYTES_MAX: usize = 64;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Authenticates, authorises, limits the time, and puts the headers on that every answer has.
pub async fn guard(State(api): State<ApiServer>, mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(AUDIT_ID).filter(|id| id.len() <= AUDIT_ID_BYTES_MAX);
    let audit_id = match sent {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(uuid::Uuid::new_v4().to_string())
            .expect("a UUID is made of hexadecimal digits"),
    };
    api.metrics().in_flight.fetch_add(1, Relaxed);
    let answer = match admit_latest(&api, &mut request).await {
        Err(error) => error.into_response(),
        Ok(Duration::MAX) => next.run(request).await,
        Ok(limit) => match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => timed_out().into_response(),
        },
    };
    api.metrics().in_flight.fetch_sub(1, Relaxed);
    api.metrics().answered(answer.status());
    dressed(answer, audit_id)
}

fn dressed(mut answer: Response, audit_id: HeaderValue) -> Response {
    let headers = answer.headers_mut();
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
/// newest one: a token that another member has just made is good here too.
async fn admit_latest(api: &ApiServer, request: &mut Request) -> Result<Duration, ApiError> {
    let judged_by = api.store().current().revision();
    // Judging takes the credentials away; the second judgement must see the same request.
    let headers = request.headers().clone();
    let refused = match admit(api, request) {
        Ok(limit) => return Ok(limit),
        Err(refused) => refused,
    };
    match api.latest().await {
        Ok(state) if state.revision() > judged_by => {
            *request.headers_mut() = headers;
            admit(api, request)
        }
        _ => Err(refused),
    }
}

/// Returns how long the request may take.
fn admit(api: &ApiServer, request: &mut Request) -> Result<Duration, ApiError> {
    let state = api.store().current();
    let secret = |name: &str| api.kube_system_secret(name);
    let now = jiff::Timestamp::now();
    let mut user = auth::authenticate(request.extensions(), request.headers(), secret, now)?;
    if user.is_in(auth::UNAUTHENTICATED) {
        let session = api.sessions().authenticate(request.method(), request.headers())?;
        user = session.unwrap_or(user);
    }
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let attributes = request::attributes(request.method(), request.uri().path(), &query);
    if let Err(refused) = authorize::authorize(&user, &attributes, &state) {
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
    request.extensions_mut().insert::<User>(user);
    request.extensions_mut().insert::<Attributes>(attributes);
    Ok(limit)
}

/// Watches, streams and image transfers go on for as long as both sides like.
fn is_long(asked: &Attributes, query: &Query) -> bool {
    let streams = ["exec", "attach", "portforward", "proxy"];
    let follows = asked.subresource == "log" && query.flag("follow");
    let registry = asked.path.starts_with("/v2/");
    let tunnel = ["/wherry/v1/tunnel", "/wherry/v1/backup"].contains(&asked.path.as_str());
    asked.verb == "watch"
        || streams.contains(&asked.subresource.as_str())
        || follows
        || registry
        || tunnel
}
