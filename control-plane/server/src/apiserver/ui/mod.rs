//! The dashboard: its files, and its sessions.
//!
//! Signing in: `wherry ui` asks, with its own credentials, for a code (`POST /ui/codes`); the
//! browser exchanges it once for a session (`POST /ui/session`) that acts as the same user. A
//! pasted bearer token works too. The session is an HttpOnly, SameSite=Strict cookie, so no script
//! and no other site can use it; a write must carry the session's own `x-wherry-csrf` value
//! besides, and a WebSocket, for which a browser sets no headers, a subprotocol
//! `wherry.csrf.VALUE`. Sessions live in this member's memory: a restart signs everybody out.
//!
//! `stream` is what the pages live on, `printed` the lists that all of them share, made of `row`s,
//! and `view` what one person sees of one; `past` is the last day of the store, `history` the
//! timeline of it and `asof` one object in it, `why` the scheduler's decisions, `inside` what only
//! a Pod's worker knows, `lately` and `traffic` what all of them have counted (`nodes` asks them);
//! each of these answers a `question`.
//!
//! Invariants: a code is used at most once; codes and sessions are bounded in number and time; the
//! cookie never stands for more than the user who asked for the code.

mod asof;
mod history;
mod inside;
mod lately;
mod nodes;
mod past;
mod printed;
mod question;
mod row;
mod stream;
mod traffic;
mod view;
mod why;

pub use lately::Lately;
pub use past::{Past, REMEMBER};
pub use printed::Shelf;
pub use traffic::Traffic;

use super::{ApiServer, auth, auth::PeerCertificate, auth::User, errors::ApiError};
use axum::{
    Extension, Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A code goes from a terminal to a browser at once.
const CODE_LIFE: Duration = Duration::from_secs(60);
/// A working day; then `wherry ui` again.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);
/// More than these at a time are somebody's mistake; the oldest go first.
const CODES_MAX: usize = 256;
const SESSIONS_MAX: usize = 4096;

const COOKIE: &str = "wherry-session";
const CSRF: HeaderName = HeaderName::from_static("x-wherry-csrf");
/// The same value, as a WebSocket's subprotocol.
const CSRF_PROTOCOL: &str = "wherry.csrf.";

/// What the page may load: its own files, nothing inline, nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    font-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'";
/// The terminal's own document: what draws it puts style elements into its page. Only the dashboard
/// may frame it.
const TERMINAL_POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self' 'unsafe-inline'; font-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'self'";
const TERMINAL: &str = "terminal.html";

/// Codes and sessions of this member.
#[derive(Default)]
pub struct Sessions {
    // Held for a look-up only, never across an await.
    codes: Mutex<HashMap<String, Issued<Asker>>>,
    sessions: Mutex<HashMap<String, Issued<Session>>>,
}

/// Who is to get a session, and the token that it ends with, if any.
type Asker = (User, Option<String>);

struct Issued<T> {
    at: Instant,
    value: T,
}

#[derive(Clone)]
struct Session {
    user: User,
    csrf: String,
    /// What the session was opened with, if that can end before the session does.
    token: Option<String>,
}

impl Sessions {
    /// The user of the request's session cookie, if it has a valid one. A write without the
    /// session's own value is refused: another site cannot know it. `still` says whose a token is:
    /// a session that was opened with one ends with it.
    pub fn authenticate(
        &self,
        method: &Method,
        headers: &HeaderMap,
        still: impl FnOnce(&str) -> Option<User>,
    ) -> Result<Option<User>, ApiError> {
        let Some(session) = self.session(headers) else { return Ok(None) };
        if session.token.is_some_and(|token| still(&token).is_none()) {
            // Another one can be opened in its place.
            self.close(headers);
            return Err(ApiError::Unauthorized);
        }
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        let upgrades = headers.contains_key(header::UPGRADE);
        let header = headers.get(&CSRF).and_then(|value| value.to_str().ok());
        let mut offered = auth::subprotocols(headers);
        let shown = header.or_else(|| offered.find_map(|one| one.strip_prefix(CSRF_PROTOCOL)));
        if (reads && !upgrades) || shown == Some(session.csrf.as_str()) {
            return Ok(Some(session.user));
        }
        Err(ApiError::BadRequest(format!(
            "a write with the dashboard's session must carry the header {CSRF}"
        )))
    }

    /// Whether what a stream was opened with is still good: its session, if it has one.
    fn still_open(&self, headers: &HeaderMap, still: impl FnOnce(&str) -> Option<User>) -> bool {
        if cookie(headers).is_none() {
            return true;
        }
        let session = self.session(headers);
        session.is_some_and(|session| session.token.is_none_or(|token| still(&token).is_some()))
    }

    fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let key = cookie(headers)?;
        let mut sessions = self.sessions.lock().expect("nobody panics with the lock");
        forget_old(&mut sessions, SESSION_LIFE, SESSIONS_MAX);
        sessions.get(key).map(|issued| issued.value.clone())
    }

    fn issue_code(&self, asker: Asker) -> String {
        let mut codes = self.codes.lock().expect("nobody panics with the lock");
        forget_old(&mut codes, CODE_LIFE, CODES_MAX);
        let code = secret();
        codes.insert(code.clone(), Issued { at: Instant::now(), value: asker });
        code
    }

    fn redeem(&self, code: &str) -> Option<Asker> {
        let mut codes = self.codes.lock().expect("nobody panics with the lock");
        forget_old(&mut codes, CODE_LIFE, CODES_MAX);
        codes.remove(code).map(|issued| issued.value)
    }

    fn open(&self, user: User, token: Option<String>) -> (String, Session) {
        let session = Session { user, csrf: secret(), token };
        let key = secret();
        let mut sessions = self.sessions.lock().expect("nobody panics with the lock");
        forget_old(&mut sessions, SESSION_LIFE, SESSIONS_MAX);
        sessions.insert(key.clone(), Issued { at: Instant::now(), value: session.clone() });
        (key, session)
    }

    fn close(&self, headers: &HeaderMap) {
        if let Some(key) = cookie(headers) {
            self.sessions.lock().expect("nobody panics with the lock").remove(key);
        }
    }
}

/// Drops what is too old, and the oldest where there is no room for one more.
fn forget_old<T>(issued: &mut HashMap<String, Issued<T>>, life: Duration, most: usize) {
    issued.retain(|_, one| one.at.elapsed() < life);
    while issued.len() >= most {
        let oldest = issued.iter().min_by_key(|(_, one)| one.at).map(|(key, _)| key.clone());
        issued.remove(&oldest.expect("the map is not empty"));
    }
}

/// 256 random bits, in hex.
fn secret() -> String {
    hex::encode(rand::rng().random::<[u8; 32]>())
}

/// Whether a request comes from a browser with a session, valid or not.
pub fn is_signed_in(headers: &HeaderMap) -> bool {
    cookie(headers).is_some()
}

/// Takes the session out of what is passed on to others; other cookies stay.
pub fn hide_cookie(headers: &mut HeaderMap) {
    headers.remove(&CSRF);
    auth::hide_subprotocol(headers, CSRF_PROTOCOL);
    if cookie(headers).is_none() {
        return;
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let is_ours = |pair: &&str| pair.split('=').next() == Some(COOKIE);
    let pairs = cookies.flat_map(|cookies| cookies.split(';')).map(str::trim);
    let rest: Vec<&str> = pairs.filter(|pair| !is_ours(pair)).collect();
    let rest = HeaderValue::from_str(&rest.join("; "));
    let rest = rest.expect("parts of a header's value are a header's value");
    headers.remove(header::COOKIE);
    if !rest.is_empty() {
        headers.insert(header::COOKIE, rest);
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// The routes below `/ui`.
pub fn router() -> Router<ApiServer> {
    Router::new()
        .route("/ui", get(|| async { axum::response::Redirect::permanent("/ui/") }))
        .route("/ui/", get(|headers: HeaderMap| async move { file("", &headers) }))
        .route("/ui/codes", post(codes))
        .route("/ui/session", get(session).post(sign_in).delete(sign_out))
        .route("/ui/stream", get(stream::accept))
        .route("/ui/history", get(history::history))
        .route("/ui/past", get(asof::object))
        .route("/ui/why", get(why::explain))
        .route("/ui/record", get(inside::record))
        .route("/ui/requests", get(inside::requests))
        .route("/ui/lately", get(lately::lately))
        .route("/ui/traffic", get(traffic::traffic))
        .route("/ui/world", get(inside::world))
        .route("/ui/{*path}", get(asset))
}

async fn asset(Path(path): Path<String>, headers: HeaderMap) -> Response {
    file(&path, &headers)
}

/// A file; every path that is none is a page's address, and the page finds out which.
fn file(path: &str, headers: &HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let accepts = accepts.unwrap_or_default();
    let page = || wherry_dashboard::file("", accepts).filter(|_| !path.starts_with("assets/"));
    let Some(file) = wherry_dashboard::file(path, accepts).or_else(page) else {
        return ApiError::NoSuchPath.into_response();
    };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = match known == Some(&file.etag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => file.content.into_owned().into_response(),
    };
    let kept = if file.immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let policy = if path == TERMINAL { TERMINAL_POLICY } else { POLICY };
    let fixed = [
        (header::CONTENT_TYPE, file.content_type),
        (header::CACHE_CONTROL, kept),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let own = response.headers_mut();
    for (name, value) in fixed {
        own.insert(name, HeaderValue::from_static(value));
    }
    if let Some(encoding) = file.encoding {
        own.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    own.insert(header::ETAG, HeaderValue::try_from(file.etag).expect("hex digits in quotes"));
    response
}

/// Somebody is about to open a dashboard, and soon looks at Pods: where there are many, printing
/// them begins now, while the browser still starts.
fn expect_visitor(api: &ApiServer) {
    if let Some(pods) = wherry_resources::kind("", "v1", "pods") {
        // Why it cannot be had is told to whoever opens the list.
        let _ = api.printed().get(api, pods);
    }
}

#[derive(Serialize)]
struct Code {
    code: String,
}

/// A code for whoever asks, provided that they said who they are, and not by a session's cookie.
/// Who says so with a token gets a session that ends with it.
async fn codes(
    State(api): State<ApiServer>,
    Extension(user): Extension<User>,
    certificate: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
) -> Result<Json<Code>, ApiError> {
    // A token that came as a subprotocol has been taken off.
    let hidden = headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    if user.is_in(auth::UNAUTHENTICATED) || cookie(&headers).is_some() || hidden {
        return Err(ApiError::Unauthorized);
    }
    let token = match certificate {
        Some(_) => None,
        None => auth::bearer(&headers)?,
    };
    expect_visitor(&api);
    Ok(Json(Code { code: api.sessions().issue_code((user, token)) }))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Credential {
    Code(String),
    Token(String),
}

#[derive(Serialize)]
struct SignedIn {
    user: String,
    groups: Vec<String>,
    csrf: String,
}

impl From<Session> for SignedIn {
    fn from(session: Session) -> SignedIn {
        let Session { user, csrf, .. } = session;
        SignedIn { user: user.name, groups: user.groups, csrf }
    }
}

async fn sign_in(
    State(api): State<ApiServer>,
    Json(credential): Json<Credential>,
) -> Result<Response, ApiError> {
    let asker = match credential {
        Credential::Code(code) => api.sessions().redeem(&code),
        Credential::Token(token) => api.bearer(&token).map(|user| (user, Some(token))),
    };
    let (user, token) = asker.ok_or(ApiError::Unauthorized)?;
    let (key, session) = api.sessions().open(user, token);
    let age = SESSION_LIFE.as_secs();
    let cookie =
        format!("{COOKIE}={key}; Path=/; Max-Age={age}; HttpOnly; Secure; SameSite=Strict");
    let mut response = Json(SignedIn::from(session)).into_response();
    let cookie = HeaderValue::try_from(cookie).expect("hex digits and plain words");
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Who is signed in. That nobody is is an answer like any other: a browser tells of errors.
async fn session(State(api): State<ApiServer>, headers: HeaderMap) -> Json<Option<SignedIn>> {
    Json(api.sessions().session(&headers).map(SignedIn::from))
}

async fn sign_out(State(api): State<ApiServer>, headers: HeaderMap) -> Response {
    api.sessions().close(&headers);
    let gone = format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Strict");
    let gone = HeaderValue::try_from(gone).expect("plain words");
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, gone)]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::Server;

    fn with_cookie(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("other=1; {COOKIE}={key}");
        headers.insert(header::COOKIE, value.parse().expect("a header"));
        headers
    }

    #[test]
    fn a_code_works_once() {
        let sessions = Sessions::default();
        let code = sessions.issue_code((User::new("anna", &[]), None));
        assert_eq!(sessions.redeem(&code).expect("the first time").0.name, "anna");
        assert!(sessions.redeem(&code).is_none());
        assert!(sessions.redeem("made up").is_none());
    }

    #[test]
    fn a_session_reads_freely_and_writes_with_its_own_value() {
        let sessions = Sessions::default();
        let (key, session) = sessions.open(User::new("anna", &[]), None);
        let mut headers = with_cookie(&key);
        let user = |method, headers: &HeaderMap| {
            sessions.authenticate(&method, headers, |_| None).map(|user| user.map(|user| user.name))
        };
        assert_eq!(user(Method::GET, &headers).expect("reads"), Some("anna".to_owned()));
        assert!(user(Method::POST, &headers).is_err());
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        assert!(user(Method::GET, &headers).is_err());
        let offered = format!("wherry.stream.v1, {CSRF_PROTOCOL}{}", session.csrf);
        let offered = HeaderValue::try_from(offered).expect("a header");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
        assert_eq!(user(Method::GET, &headers).expect("streams"), Some("anna".to_owned()));
        assert!(sessions.still_open(&headers, |_| None));
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        headers.insert(CSRF, session.csrf.parse().expect("a header"));
        assert_eq!(user(Method::POST, &headers).expect("writes"), Some("anna".to_owned()));
        sessions.close(&headers);
        assert_eq!(user(Method::GET, &headers).expect("nobody"), None);
        assert!(!sessions.still_open(&headers, |_| None));
        assert_eq!(user(Method::GET, &with_cookie("made-up")).expect("nobody"), None);
    }

    #[tokio::test]
    async fn that_nobody_is_signed_in_is_an_answer() {
        let server = Server::start().await;
        let told = |headers: HeaderMap| session(State(server.api.clone()), headers);
        assert!(told(HeaderMap::new()).await.0.is_none());
        let (key, _) = server.api.sessions().open(User::new("anna", &[]), None);
        let signed_in = told(with_cookie(&key)).await.0.expect("somebody");
        assert_eq!(signed_in.user, "anna");
    }

    #[test]
    fn what_is_passed_on_has_nothing_of_the_session() {
        let mut headers = with_cookie("key");
        headers.insert(CSRF, HeaderValue::from_static("value"));
        let offered = HeaderValue::from_static("chat, wherry.csrf.value");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
        hide_cookie(&mut headers);
        assert_eq!(headers[header::COOKIE], "other=1");
        assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "chat");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn a_session_ends_with_the_token_that_asked_for_its_code() {
        let sessions = Sessions::default();
        let code = sessions.issue_code((User::new("bot", &[]), Some("t".to_owned())));
        let (user, token) = sessions.redeem(&code).expect("the first time");
        let (key, _) = sessions.open(user, token);
        let headers = with_cookie(&key);
        let still = |token: &str| (token == "t").then(|| User::new("bot", &[]));
        let found = sessions.authenticate(&Method::GET, &headers, still).expect("good");
        assert_eq!(found.expect("somebody").name, "bot");
        assert!(sessions.authenticate(&Method::POST, &headers, |_| None).is_err());
        // It is gone, so that another can be opened in its place.
        assert_eq!(sessions.authenticate(&Method::POST, &headers, |_| None).expect("good"), None);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut issued = HashMap::new();
        for number in 0..3 {
            issued.insert(number.to_string(), Issued { at: Instant::now(), value: () });
        }
        forget_old(&mut issued, SESSION_LIFE, 3);
        assert_eq!(issued.len(), 2);
        assert!(!issued.contains_key("0"));
    }
}
