//! All routes. Paths of objects are read by `request.rs`, because a route pattern cannot tell a
//! Namespace's part (`/namespaces/a/status`) from a resource inside it (`/namespaces/a/pods`).

use super::{
    ApiServer, aggregate, audit,
    auth::User,
    backup,
    content::{self, BODY_BYTES_MAX, WithoutManagers},
    discovery,
    elsewhere::{self, Leader},
    errors::{ApiError, GroupResource},
    guard, health, members, openapi, pieces, registry,
    request::{self, Attributes, Query, Request},
    stream, tunnel, ui, verbs,
};
use crate::member::join;
use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts as _, State, ws::WebSocketUpgrade},
    middleware,
    response::Response,
    routing::{any, delete, get, post},
};
use http::header;
use http_body_util::{BodyExt, Limited};
use tower_http::CompressionLevel;
use tower_http::compression::{CompressionLayer, predicate::Predicate};

/// Answers smaller than this are sent as they are, as in Kubernetes.
const GZIP_BYTES_MIN: u64 = 128 * 1024;

/// Every path that is answered.
pub fn router(api: ApiServer) -> Router {
    Router::new()
        .route("/", get(health::paths))
        .route("/livez", get(health::livez))
        .route("/livez/{check}", get(health::one))
        .route("/readyz", get(health::readyz))
        .route("/readyz/{check}", get(health::one))
        .route("/healthz", get(health::healthz))
        .route("/healthz/{check}", get(health::one))
        .route("/version", get(health::version))
        .route("/version/", get(health::version))
        .route("/metrics", get(health::metrics))
        .merge(documents())
        .route("/openapi/v3/{*path}", get(openapi::v3_document))
        .route(verbs::custom_metrics::GROUP, get(verbs::custom_metrics::list))
        .route(verbs::custom_metrics::PATH, get(verbs::custom_metrics::answer))
        .route("/api/v1/{*path}", any(resource))
        .route("/apis/{group}/{version}/{*path}", any(resource))
        .route("/.well-known/openid-configuration", get(verbs::token::configuration))
        .route("/openid/v1/jwks", get(verbs::token::keys))
        .route("/openid/v1/jwks/", get(verbs::token::keys))
        .route("/v2/", any(registry::serve))
        .route("/v2/{*path}", any(registry::serve))
        .route("/wherry/v1/tunnel", get(tunnel::accept))
        .route("/wherry/v1/relay/{node}/{namespace}", get(stream::relay::accept))
        .route(join::PATH, get(members::list).post(members::join))
        .route("/wherry/v1/members/{id}", delete(members::remove))
        .route("/wherry/v1/leader", post(members::transfer))
        .route("/wherry/v1/backup", get(backup::save))
        .route("/wherry/v1/audit", get(audit::tail::newest))
        .merge(ui::router())
        .fallback(|| async { ApiError::NoSuchPath })
        .method_not_allowed_fallback(|| async {
            ApiError::MethodNotAllowed(GroupResource::default())
        })
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .quality(CompressionLevel::Fastest)
                .compress_when(WorthGzip),
        )
        .layer(middleware::from_fn_with_state(api.clone(), aggregate::divert))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
}

/// What is served, told. Generated clients (Python's, JavaScript's) ask with a slash behind.
fn documents() -> Router<ApiServer> {
    let mut router = Router::new().route("/openapi/v2", get(openapi::v2));
    for end in ["", "/"] {
        let path = |path: &str| format!("{path}{end}");
        router = router
            .route(&path("/api"), get(discovery::api))
            .route(&path("/apis"), get(discovery::apis))
            .route(&path("/apis/{group}"), get(discovery::group))
            .route(&path("/api/v1"), get(discovery::core))
            .route(&path("/apis/{group}/{version}"), get(discovery::version))
            .route(&path("/openapi/v3"), get(openapi::v3));
    }
    router
}

/// Every verb on every kind and subresource.
async fn resource(
    State(api): State<ApiServer>,
    http: axum::extract::Request,
) -> Result<Response, ApiError> {
    if http.extensions().get::<Attributes>().is_some_and(stream::concerns) {
        return stream::serve(api, http).await;
    }
    let leaders = |asked: &Attributes| {
        elsewhere::is_leaders(asked) || elsewhere::is_counted(&api.store().current(), asked)
    };
    if !http.extensions().get::<Attributes>().is_some_and(leaders) {
        return answer(api, http).await;
    }
    elsewhere::wait_for_leader(&api).await;
    match elsewhere::leader(&api, &http)? {
        Leader::Here(api) => answer(api, http).await,
        Leader::There(others, peer) => elsewhere::pass_on(&others, &peer, http).await,
    }
}

async fn answer(api: ApiServer, mut http: axum::extract::Request) -> Result<Response, ApiError> {
    let socket = websocket(&mut http).await?;
    let request = read(&api, http).await?;
    let mut answer = perform(&api, &request, socket).await;
    if let (Some(custom), Ok(answer)) = (request.kind.custom(), &mut answer)
        && let Some(warning) = &custom.deprecation
    {
        content::warn(answer.headers_mut(), std::slice::from_ref(warning));
    }
    answer
}

/// The verb that the path and the method name.
async fn perform(
    api: &ApiServer,
    request: &Request,
    socket: Option<WebSocketUpgrade>,
) -> Result<Response, ApiError> {
    let part = request.subresource.map_or("", |subresource| subresource.name);
    match (part, request.attributes.verb.as_str()) {
        _ if request.kind.storage == wherry_resources::Storage::None => {
            verbs::review::answer(api, request).await
        }
        ("", "get") | ("status" | "approval" | "ephemeralcontainers" | "resize", "get") => {
            verbs::get::get(api, request).await
        }
        ("", "list") => verbs::list::list(api, request).await,
        ("", "watch") => verbs::watch::watch(api, request, socket).await,
        ("", "create") => verbs::create::create(api, request).await,
        ("", "delete") => verbs::delete::delete(api, request).await,
        ("", "deletecollection") => verbs::delete::delete_collection(api, request).await,
        ("scale", "get") => verbs::scale::get(api, request).await,
        ("scale", "update" | "patch") => verbs::scale::change(api, request).await,
        ("binding", "create") => verbs::pods::bind(api, request).await,
        ("token", "create") => verbs::token::create(api, request).await,
        ("eviction", "create") => verbs::pods::evict(api, request).await,
        ("log", "get") => verbs::logs::logs(api, request, socket).await,
        (_, "update") => verbs::update::update(api, request).await,
        (_, "patch") => verbs::patch::patch(api, request).await,
        _ => Err(ApiError::NoSuchPath),
    }
}

/// The handshake of a watch or a log over a WebSocket, if the client asks for one.
async fn websocket(
    http: &mut axum::extract::Request,
) -> Result<Option<WebSocketUpgrade>, ApiError> {
    let upgrade = http.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    let asks = upgrade.is_some_and(|word| word.eq_ignore_ascii_case("websocket"));
    let flows = |asked: &Attributes| asked.verb == "watch" || asked.subresource == "log";
    if !asks || !http.extensions().get::<Attributes>().is_some_and(flows) {
        return Ok(None);
    }
    let (mut parts, body) = std::mem::take(http).into_parts();
    let socket = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    *http = axum::extract::Request::from_parts(parts, body);
    socket.map(Some).map_err(|error| ApiError::BadRequest(error.to_string()))
}

/// Reads an HTTP request completely. The guard has left user and attributes.
async fn read(api: &ApiServer, http: axum::extract::Request) -> Result<Request, ApiError> {
    let (mut parts, body) = http.into_parts();
    let missing = || ApiError::Internal("a request went past the guard".to_owned());
    let user = parts.extensions.remove::<User>().ok_or_else(missing)?;
    let attributes = parts.extensions.remove::<Attributes>().ok_or_else(missing)?;
    let found = match request::resolve(&attributes, || api.catalog()) {
        // Its definition may have been stored through another member a moment ago.
        Err(ApiError::NoSuchPath) if api.others().is_some() => {
            api.latest().await?;
            request::resolve(&attributes, || api.catalog())
        }
        found => found,
    };
    let (kind, subresource) = match found {
        Ok(found) => found,
        Err(error) => {
            content::drain(body).await;
            return Err(error);
        }
    };
    let query = Query::parse(parts.uri.query().unwrap_or(""));
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut accepted = if subresource.is_some_and(|subresource| subresource.name == "log") {
        // Logs are text whatever the client prefers.
        content::negotiate("", "", None)?
    } else {
        content::negotiate(header(header::ACCEPT), header(header::USER_AGENT), query.get("pretty"))?
    };
    accepted.managers = parts.extensions.get::<WithoutManagers>().is_none();
    let body = whole(body).await?;
    let headers = parts.headers;
    Ok(Request { user, attributes, kind, subresource, query, accepted, headers, body })
}

async fn whole(body: Body) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::TooLarge(format!("limit is {BODY_BYTES_MAX}")))
        }
        Err(error) => Err(ApiError::BadRequest(format!("the body could not be read: {error}"))),
    }
}

/// Which answers are compressed: those that are text and long. A stream that goes on and on is not,
/// for it would wait in the compressor's buffer.
#[derive(Clone, Copy)]
struct WorthGzip;

impl Predicate for WorthGzip {
    fn should_compress<B: http_body::Body>(&self, response: &http::Response<B>) -> bool {
        // Blobs of the registry are compressed already, and must come as they were pushed.
        let media = response.headers().get(header::CONTENT_TYPE);
        let media = media.and_then(|value| value.to_str().ok()).unwrap_or("");
        let is_text = media.starts_with("application/json")
            || media.contains("yaml")
            || media.starts_with("text/");
        // The length is no header yet: that is written last of all.
        let size = response.body().size_hint().exact();
        let is_long = size.is_some_and(|size| size >= GZIP_BYTES_MIN)
            || response.extensions().get::<pieces::Long>().is_some();
        is_text && is_long
    }
}
