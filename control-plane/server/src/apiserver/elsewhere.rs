//! Requests that this member does not answer itself.
//!
//! Nearly everything any member answers: reads are linearizable and writes are judged where they
//! are applied. Three things are not like that:
//! - A Service gets addresses and ports that no other Service may have. One process must give them
//!   away, so the leader answers writes of Services, and its writes are not forwarded: one that has
//!   lost the leadership fails instead of giving the same address away twice.
//! - In a namespace with a ResourceQuota, two steps make a write: it is counted, then stored.
//!   Whoever counts anew between them must know of it, so one process does both for all: the leader
//!   again.
//! - An image lies on the disk of the member to which it was pushed; the others ask around.
//!
//! A request is passed on once at most.

use super::{
    ApiServer, User, content::BODY_BYTES_MAX, errors::ApiError, request::Attributes, verbs::quota,
};
use crate::peer::{Others, PassedOn};
use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use std::io::ErrorKind;
use std::time::Duration;
use wherry_store::{Leadership, Peer, Snapshot};

/// By then a new leader is known, or there is none; a client hears of that within two seconds.
const LEADER_TIMEOUT: Duration = Duration::from_millis(1400);
/// The other member's own limit of a request is longer; this one is for a member that has hung.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether only the leader may answer: see above.
pub fn is_leaders(asked: &Attributes) -> bool {
    let writes = ["create", "update", "patch"].contains(&asked.verb.as_str());
    writes && asked.group.is_empty() && asked.resource == "services" && asked.subresource.is_empty()
}

/// Whether a write changes what a quota of its namespace may count, or the count. Other statuses
/// are left out: by them a Pod can only come to use less, and counting that too late is harmless.
pub fn is_counted(state: &Snapshot, asked: &Attributes) -> bool {
    let writes = ["create", "update", "patch", "delete", "deletecollection"];
    writes.contains(&asked.verb.as_str())
        && asked.is_resource
        && !asked.namespace.is_empty()
        && (["", "eviction", "resize", "scale"].contains(&asked.subresource.as_str())
            || asked.group.is_empty() && asked.resource == "resourcequotas")
        && quota::is_any(state, &asked.namespace)
}

/// Who answers what only the leader may.
pub enum Leader {
    /// This member, through this handle.
    Here(ApiServer),
    /// Another one.
    There(Others, Peer),
}

/// Waits while nobody is known to lead, as other writes do.
pub async fn wait_for_leader(api: &ApiServer) {
    let mut leadership = api.store().leadership();
    let known = |leadership: &Leadership| *leadership != Leadership::Follower { leader: None };
    // Whoever looks for the leader next says that there is none.
    let _ = tokio::time::timeout(LEADER_TIMEOUT, leadership.wait_for(known)).await;
}

/// Finds the leader for a request.
pub fn leader(api: &ApiServer, request: &Request) -> Result<Leader, ApiError> {
    let leadership = *api.store().leadership().borrow();
    if let Leadership::Leader { .. } = leadership {
        return Ok(Leader::Here(api.leading()));
    }
    let passed_on = request.extensions().get::<PassedOn>().is_some();
    let others = api.others().filter(|_| !passed_on);
    let found = others.and_then(|others| Some((others.clone(), others.leader(api.store())?)));
    let (others, peer) =
        found.ok_or_else(|| ApiError::Unavailable("no leader is known at present".to_owned()))?;
    Ok(Leader::There(others, peer))
}

/// Has another member answer.
pub async fn pass_on(others: &Others, peer: &Peer, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let too_large = |_| ApiError::TooLarge(format!("limit is {BODY_BYTES_MAX}"));
    let body = body.map_err(too_large)?.to_bytes();
    send(others, peer, http::Request::from_parts(parts, body)).await
}

async fn send(
    others: &Others,
    peer: &Peer,
    request: http::Request<Bytes>,
) -> Result<Response, ApiError> {
    let user = request.extensions().get::<User>().cloned();
    let user = user.ok_or_else(|| ApiError::Internal("a request without a user".to_owned()))?;
    let answer = others.peers.forward(peer, &user, request);
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.map(Body::new)),
        Ok(Err(error)) => Err(match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::NotConnected
            | ErrorKind::PermissionDenied => {
                ApiError::Unavailable(format!("member {} cannot be reached: {error}", peer.id))
            }
            _ => unknown(peer),
        }),
        Err(_) => Err(unknown(peer)),
    }
}

fn unknown(peer: &Peer) -> ApiError {
    ApiError::Timeout {
        message: format!("member {} gave no answer; it may have done what was asked", peer.id),
        causes: Vec::new(),
        retry_after_seconds: 1,
    }
}

/// Asks the other members for what is not on this one's disk: the first that has it answers. The
/// request is a read, without a body.
pub async fn ask_around(api: &ApiServer, request: &http::request::Parts) -> Option<Response> {
    if request.extensions.get::<PassedOn>().is_some() {
        return None;
    }
    let others = api.others()?;
    for peer in others.all(api.store()) {
        let asked = http::Request::from_parts(request.clone(), Bytes::new());
        if let Ok(answer) = send(others, &peer, asked).await
            && answer.status().is_success()
        {
            return Some(answer);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::is_leaders;
    use crate::apiserver::request::{self, Query};

    #[test]
    fn who_answers() {
        let leaders = |line: &str| {
            let (method, path) = line.split_once(' ').expect("method and path");
            let method = http::Method::from_bytes(method.as_bytes()).expect("a method");
            is_leaders(&request::attributes(&method, path, &Query::default()))
        };
        for line in ["POST /api/v1/namespaces/a/services", "PATCH /api/v1/namespaces/a/services/b"]
        {
            assert!(leaders(line), "{line}");
        }
        for line in [
            "GET /api/v1/namespaces/a/services/b",
            "DELETE /api/v1/namespaces/a/services/b",
            "PUT /api/v1/namespaces/a/services/b/status",
            "POST /api/v1/namespaces/a/pods",
            "POST /apis/example.com/v1/services",
        ] {
            assert!(!leaders(line), "{line}");
        }
    }
}
