//! HTTP requests of guests: resolved in the virtual network, sent by the switch.
//!
//! A guest reaches Services and Pods, and nothing else: whatever does not resolve there is denied,
//! with the reason in the container's log, because `wasi:http` has no room for sentences. The shim
//! bounds number and time of these requests.

use std::sync::Arc;

use http::{Request, Response, uri::Scheme};
use http_body_util::BodyExt;
use wherry_wasi_shim::{Body, BodyError, Outgoing, OutgoingError};

use super::{
    logs::Log,
    network::ResolveError,
    peers::PeerError,
    switch::{Refusal, Replay, Switch},
};

/// The network of one container.
pub fn outgoing(switch: &Arc<Switch>, log: &Log) -> Outgoing {
    let (switch, log) = (switch.clone(), log.clone());
    Arc::new(move |request, _timeouts| {
        let (switch, log) = (switch.clone(), log.clone());
        Box::pin(async move { send(&switch, &log, request).await })
    })
}

async fn send(
    switch: &Switch,
    log: &Log,
    request: Request<Body>,
) -> Result<Response<Body>, OutgoingError> {
    let (parts, body) = request.into_parts();
    let Some(authority) = parts.uri.authority() else {
        return Err(OutgoingError::Invalid("the request names no host".to_owned()));
    };
    let https = parts.uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
    let destination = match switch.resolve(authority.host(), port) {
        Ok(destination) => destination,
        Err(error) => {
            log.note(&format!("request to {authority} refused: {error}"));
            return Err(resolve_code(error));
        }
    };
    if https {
        let why = "within the cluster use http: traffic between nodes is encrypted by Wherry";
        log.note(&format!("request to {authority} refused: {why}"));
        return Err(OutgoingError::Invalid(why.to_owned()));
    }
    let authority = authority.clone();
    match switch.send(&destination, parts, Replay::new(body)).await {
        Ok(response) => Ok(response.map(|reply| Body::new(reply.map_err(BodyError::new)))),
        Err(refusal) => {
            log.note(&format!("request to {authority} failed: {refusal}"));
            Err(refusal_code(refusal))
        }
    }
}

fn resolve_code(error: ResolveError) -> OutgoingError {
    match error {
        ResolveError::NoService { .. } => OutgoingError::NameNotFound,
        ResolveError::NoPort { .. } => OutgoingError::ConnectionRefused,
        ResolveError::Outside { .. } | ResolveError::Forbidden { .. } => OutgoingError::Denied,
    }
}

fn refusal_code(refusal: Refusal) -> OutgoingError {
    match refusal {
        Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => OutgoingError::Unavailable,
        Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Full(..)) => {
            OutgoingError::Unavailable
        }
        Refusal::Deadline => OutgoingError::ResponseTimeout,
        Refusal::BadRequest => OutgoingError::Invalid(refusal.to_string()),
        Refusal::OutOfMemory | Refusal::Failed | Refusal::Peer(PeerError::Lost { .. }) => {
            OutgoingError::Failed(refusal.to_string())
        }
    }
}
