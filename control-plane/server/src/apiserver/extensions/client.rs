//! The conversation with a webhook, and what hooks may look up in the cluster.
//!
//! One request on a connection of its own (`outbound` makes it), no redirects followed, an answer
//! of limited size within a limited time, nothing of the answer's body repeated in errors.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use wherry_resources::{Kind, Object};

use crate::apiserver::auth::User;
use crate::apiserver::cel::Check;
use crate::apiserver::outbound::{ReachError, Reached, Target};
use crate::apiserver::request::Attributes;
use crate::apiserver::{ApiServer, stored};

/// Largest answer of a webhook.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a webhook could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("Post {url:?}: {why}")]
    Http { url: String, why: String },
    #[error("Post {url:?}: the answer has status {status}")]
    Status { url: String, status: u16 },
    #[error("Post {url:?}: context deadline exceeded")]
    Timeout { url: String },
    #[error("Post {url:?}: the answer is not JSON")]
    Answer { url: String },
}

/// Sends JSON to a webhook and reads JSON. Its address says how long it has, as in Kubernetes.
pub async fn call(
    api: &ApiServer,
    target: &Target,
    body: &Value,
    timeout: Duration,
) -> Result<Value, CallError> {
    let query = format!("?timeout={}s", timeout.as_secs());
    let url = target.shown() + &query;
    let attempt = async {
        let mut reached = api.outbound().reach(api, target, None).await?;
        reached.path.push_str(&query);
        exchange(reached, body, &url).await
    };
    let called = tokio::time::timeout(timeout, attempt).await;
    called.unwrap_or_else(|_| Err(CallError::Timeout { url: url.clone() }))
}

async fn exchange(reached: Reached, body: &Value, url: &str) -> Result<Value, CallError> {
    let Reached { stream, authority, path } = reached;
    let wrong = |why: String| CallError::Http { url: url.to_owned(), why };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| wrong(error.to_string()))?;
    let request = Request::post(path)
        .header(header::HOST, &authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "wherry-admission")
        .body(Full::<bytes::Bytes>::from(body.to_string()))
        .map_err(|error| wrong(error.to_string()))?;
    let answer = async {
        let answer =
            sender.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
        let status = answer.status();
        // A redirect is an answer like any other that is not a success.
        if !status.is_success() {
            return Err(CallError::Status { url: url.to_owned(), status: status.as_u16() });
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| CallError::Answer { url: url.to_owned() })
    };
    tokio::select! {
        answer = answer => answer,
        // The connection never ends before the answer is read, unless it breaks.
        never = until_dropped(connection) => match never {},
    }
}

/// Drives a connection; whoever waits for an answer hears of its end.
async fn until_dropped<T>(connection: impl Future<Output = T>) -> Infallible {
    connection.await;
    std::future::pending().await
}

/// An object of a built-in kind in version 1, as this member sees it now.
pub fn find(
    api: &ApiServer,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Option<Object> {
    find_of(api, wherry_resources::kind(group, "v1", plural)?, namespace, name)
}

/// An object of any kind.
pub fn find_of(
    api: &ApiServer,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
) -> Option<Object> {
    let entry = api.store().current().get(&stored::key(kind, namespace, name))?;
    Some(stored::decode(kind, &entry))
}

/// Objects of a kind in one namespace, or in all when it is empty; at most so many.
pub fn all(api: &ApiServer, kind: &'static Kind, namespace: &str, most: usize) -> Vec<Object> {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    let snapshot = api.store().current();
    let range = snapshot.range(&stored::prefix(kind, namespace), None).take(most);
    range.map(|(_, entry)| stored::decode(kind, &entry)).collect()
}

/// Whether the user, or the account that a check names, may do that.
pub fn allowed(api: &ApiServer, user: &User, check: &Check, verb: &str) -> bool {
    let account = check.account.as_ref().map(|(namespace, name)| {
        let groups =
            ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        User::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups)
    });
    let is_resource = check.path.is_empty();
    let asked = Attributes {
        verb: verb.to_owned(),
        is_resource,
        group: check.group.clone(),
        version: "*".to_owned(),
        namespace: check.namespace.clone(),
        resource: check.resource.clone(),
        subresource: check.subresource.clone(),
        name: check.name.clone(),
        named: !check.name.is_empty(),
        path: check.path.clone(),
        ..Attributes::default()
    };
    api.may(account.as_ref().unwrap_or(user), &asked)
}
