//! Aggregated APIs: group versions that an APIService hands to a server of its own.
//!
//! ```text
//!  client ─► guard (who, may they) ─► divert ─► server behind the Service, over TLS
//!                                       └─────► everything else: the routes
//! ```
//!
//! What is asked of such a group version is asked of that server, with the user's name in headers
//! that it believes because of the certificate shown (`pki::FRONT_PROXY`). The client's own
//! credentials go nowhere. A redirect is not passed on: a server could send clients, credentials
//! and all, to an address of its choice.
//!
//! [`checks`] asks each server whether it answers, for the condition `Available`, and keeps what it
//! says that it serves; [`discovery`] shows that among the rest. Group versions that are built in
//! are never handed on, whatever an APIService says.

mod checks;
mod discovery;

pub use checks::run;
pub use discovery::Foreign;

use super::{
    ApiServer,
    auth::User,
    derived::Derived,
    errors::ApiError,
    openapi,
    outbound::{ReachError, Target},
    request::Attributes,
    stored,
    stream::proxy::{self, Answer, Wanted},
    ui,
};
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wherry_resources::{GROUPS, Kind, Object, meta};
use wherry_store::{Snapshot, Store};

/// From the request to the head of the answer, of a request that may take as long as it likes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const REMOTE_PREFIX: &str = "x-remote-";
const REMOTE_EXTRA: &str = "x-remote-extra-";
/// What may stand in a header's name as it is; `%` marks what may not.
const IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// A group version that somebody else serves.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Of the APIService.
    pub name: String,
    pub uid: String,
    pub group: String,
    pub version: String,
    /// Groups, and versions of a group, with a higher one come first.
    pub group_priority: i64,
    pub version_priority: i64,
    pub target: Target,
}

/// What somebody else serves, and what is known of it.
pub struct Aggregated {
    remotes: Derived<Vec<Arc<Remote>>>,
    /// What servers have said, by the name of their APIService. Held for a look.
    said: Mutex<HashMap<String, Said>>,
    /// Version 2 of OpenAPI with theirs.
    pub merged: openapi::Merged,
}

/// What a server has said that it serves.
#[derive(Clone, Debug, Default)]
struct Said {
    /// As an entry of the aggregated form; null before it has said anything.
    version: Value,
    /// The address of its OpenAPI document.
    openapi_v3: Option<String>,
    /// What it says in version 2 of OpenAPI.
    openapi_v2: Option<openapi::Part>,
    /// Whether it answered when it was asked last.
    fresh: bool,
}

/// The kind of APIServices.
fn row() -> &'static Kind {
    wherry_resources::kind("apiregistration.k8s.io", "v1", "apiservices")
        .expect("APIService is a built-in kind")
}

impl Default for Aggregated {
    fn default() -> Aggregated {
        let remotes = Derived::new(vec![stored::prefix(row(), None)]);
        Aggregated { remotes, said: Mutex::default(), merged: openapi::Merged::default() }
    }
}

impl Aggregated {
    /// All group versions that others serve.
    fn remotes(&self, store: &Store) -> Arc<Vec<Arc<Remote>>> {
        self.remotes.get(store, |snapshot, _| all(snapshot))
    }

    fn find(&self, store: &Store, group: &str, version: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes(store);
        let same = |remote: &&Arc<Remote>| remote.group == group && remote.version == version;
        remotes.iter().find(same).cloned()
    }

    fn said(&self) -> MutexGuard<'_, HashMap<String, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all(snapshot: &Snapshot) -> Vec<Arc<Remote>> {
    let range = snapshot.range(&stored::prefix(row(), None), None);
    let remotes = range.filter_map(|(_, entry)| remote(&stored::decode(row(), &entry)));
    remotes.map(Arc::new).collect()
}

/// Reads an APIService; None where it hands nothing on.
fn remote(service: &Object) -> Option<Remote> {
    let spec = &service["spec"];
    let target = Target::of_api_service(spec)?;
    let (group, version) = (meta::text(spec, "group"), meta::text(spec, "version"));
    let built_in =
        |row: &wherry_resources::Group| row.name == group && row.versions.contains(&version);
    if group.is_empty() || GROUPS.iter().any(built_in) {
        return None;
    }
    Some(Remote {
        name: meta::name(service).to_owned(),
        uid: meta::uid(service).to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
        version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
        target,
    })
}

/// The group and version that a path is about: of `/apis/G/V/…` and `/openapi/v3/apis/G/V`.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, version) = (parts.next()?, parts.next()?);
    (!group.is_empty() && !version.is_empty()).then_some((group, version))
}

/// Whether a path that names no resource may be handed on: the group version itself, or what it says
/// in OpenAPI. What lies below and is no resource here (for a part that is empty, say) was judged by
/// its path alone, and its server could take it for a resource.
fn is_whole(path: &str) -> bool {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    path.trim_end_matches('/').split('/').count() == "/apis/GROUP/VERSION".split('/').count()
}

/// Hands a request on if it is about what others serve.
pub async fn divert(State(api): State<ApiServer>, request: Request, next: Next) -> Response {
    let found = group_version(request.uri().path())
        .and_then(|(group, version)| api.aggregated().find(api.store(), group, version));
    match found {
        None => next.run(request).await,
        Some(remote) => match pass(&api, &remote, request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
    }
}

async fn pass(api: &ApiServer, remote: &Remote, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let missing = || ApiError::Internal("a request went past the guard".to_owned());
    let user = parts.extensions.remove::<User>().ok_or_else(missing)?;
    let asked = parts.extensions.remove::<Attributes>().ok_or_else(missing)?;
    if !asked.is_resource && !is_whole(parts.uri.path()) {
        return Err(ApiError::NoSuchPath);
    }
    let signed_in = ui::is_signed_in(&parts.headers);
    let upgrade = Wanted::take(&mut parts);
    let failed = |why: String| {
        ApiError::Unavailable(format!("error trying to reach service of {}: {why}", remote.name))
    };
    let exchange = async {
        let reached = api.outbound().reach(api, &remote.target, Some(&user)).await;
        let reached = reached.map_err(|error| match error {
            ReachError::Full(why) => why,
            error => failed(error.to_string()),
        })?;
        outgoing(&mut parts, &user, &reached.authority, upgrade.as_ref())?;
        let request = http::Request::from_parts(parts, body);
        let answer = proxy::exchange(api, reached.stream, request, upgrade).await;
        answer.map_err(failed)
    };
    match tokio::time::timeout(HEAD_TIMEOUT, exchange).await {
        Err(_) => Err(failed("it did not answer in time".to_owned())),
        Ok(answer) => match answer? {
            Answer::Switched(response) => Ok(response),
            Answer::Ordinary(answer) if answer.status().is_redirection() => {
                Err(ApiError::Relayed {
                    code: http::StatusCode::BAD_GATEWAY,
                    reason: "BadGateway".to_owned(),
                    message:
                        "the backend attempted to redirect this request, which is not permitted"
                            .to_owned(),
                    details: None,
                })
            }
            Answer::Ordinary(mut answer) => {
                proxy::strip_hop(answer.headers_mut());
                if signed_in {
                    proxy::sandbox(answer.headers_mut());
                }
                Ok(answer.map(Body::new))
            }
        },
    }
}

/// Makes a client's request this server's: who asks is said in place of how they proved it.
fn outgoing(
    parts: &mut Parts,
    user: &User,
    host: &str,
    upgrade: Option<&Wanted>,
) -> Result<(), ApiError> {
    let strange = || ApiError::BadRequest("the path is not understood".to_owned());
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse::<Uri>().map_err(|_| strange())?;
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    let headers = &mut parts.headers;
    proxy::strip_hop(headers);
    headers.remove(header::AUTHORIZATION);
    ui::hide_cookie(headers);
    let said: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(REMOTE_PREFIX)).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    say_who(headers, user)?;
    if let Some(upgrade) = upgrade {
        upgrade.ask(headers);
    }
    headers.insert(header::HOST, HeaderValue::from_str(host).map_err(|_| strange())?);
    Ok(())
}

fn say_who(headers: &mut HeaderMap, user: &User) -> Result<(), ApiError> {
    let value = |text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
            ApiError::BadRequest(format!("the name {text:?} cannot be told to another server"))
        })
    };
    headers.insert(REMOTE_USER, value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert(REMOTE_UID, value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(REMOTE_GROUP, value(group)?);
    }
    for (key, values) in &user.extra {
        let key = utf8_percent_encode(&key.to_lowercase(), IN_NAMES).to_string();
        let name = HeaderName::try_from(format!("{REMOTE_EXTRA}{key}"));
        let name = name.expect("what no name may hold is encoded");
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
