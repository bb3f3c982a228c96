//! HTTP requests of guests: resolved in the virtual network, sent by the switch.
//!
//! A guest reaches Services and Pods, and of the world outside what a policy opens (`outside.rs`).
//! Everything else is denied, with the reason in the container's log, because `wasi:http` has no
//! room for sentences. The shim bounds number and time of these requests.

use std::{net::IpAddr, sync::Arc};

use http::{Request, Response, uri::Scheme};
use http_body_util::BodyExt;
use wherry_wasi_shim::{Body, BodyError, Outgoing, OutgoingError};

use super::{
    logs::Log,
    names::Names,
    network::ResolveError,
    outside,
    peers::PeerError,
    record::Sender,
    reply::Replay,
    switch::{Refusal, Switch},
};
/// The network of one container of the Pod at `ip`.
pub fn outgoing(switch: &Arc<Switch>, log: &Log, names: &Arc<Names>, ip: IpAddr) -> Outgoing {
    let (switch, log, names) = (switch.clone(), log.clone(), names.clone());
    Arc::new(move |mut request, _timeouts| {
        request.extensions_mut().insert(Sender::Pod(ip));
        let (switch, log, names) = (switch.clone(), log.clone(), names.clone());
        Box::pin(async move { send(&switch, &log, &names, ip, request).await })
    })
}

async fn send(
    switch: &Arc<Switch>,
    log: &Log,
    names: &Names,
    ip: IpAddr,
    request: Request<Body>,
) -> Result<Response<Body>, OutgoingError> {
    let (mut parts, body) = request.into_parts();
    let Some(authority) = parts.uri.authority() else {
        return Err(OutgoingError::Invalid("the request names no host".to_owned()));
    };
    let https = parts.uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
    let destination = match names.resolve(switch, authority.host(), port) {
        Ok(destination) => destination,
        Err(error) => {
            let authority = authority.clone();
            let hosts = outside_names(switch, names, ip, authority.host(), port, &error);
            if hosts.is_empty() {
                log.note(&format!("request to {authority} refused: {error}"));
                return Err(resolve_code(error));
            }
            let caller = switch.caller(ip);
            let mut span = switch.tracer.request(&caller, authority.as_str(), &mut parts);
            let request = Request::from_parts(parts, body);
            let sent = outside::send(switch, &caller, &hosts, port, https, request).await;
            if let Some(span) = &mut span {
                match &sent {
                    Ok(response) => span.answered(response.status()),
                    Err(error) => span.failed(&error.to_string()),
                }
            }
            return sent.map_err(|error| {
                log.note(&format!("request to {authority} refused: {error}"));
                error.code()
            });
        }
    };
    if https {
        let why = "within the cluster use http: traffic between nodes is encrypted by Wherry";
        log.note(&format!("request to {authority} refused: {why}"));
        return Err(OutgoingError::Invalid(why.to_owned()));
    }
    let authority = authority.clone();
    match switch.send(&switch.caller(ip), &destination, parts, Replay::new(body)).await {
        Ok(response) => Ok(response.map(|reply| Body::new(reply.map_err(BodyError::new)))),
        Err(refusal) => {
            log.note(&format!("request to {authority} failed: {refusal}"));
            Err(refusal_code(refusal))
        }
    }
}

/// By which names a host is asked for outside. Those that it is searched by are asked for only if a
/// policy opens them: a guest that is refused one name is not refused all that it did not say.
fn outside_names(
    switch: &Switch,
    names: &Names,
    ip: IpAddr,
    host: &str,
    port: u16,
    error: &ResolveError,
) -> Vec<String> {
    let mut hosts = names.outside(host, error, |name| switch.resolve(name, port));
    let caller = switch.caller(ip);
    hosts.retain(|name| {
        let as_it_is = matches!(error, ResolveError::Outside { host } if host == name);
        let may = |pod| switch.policies().may_look_up(pod, name, port).is_ok();
        as_it_is || caller.pod.as_deref().is_some_and(may)
    });
    hosts
}

fn resolve_code(error: ResolveError) -> OutgoingError {
    match error {
        ResolveError::NoService { .. } | ResolveError::NoName { .. } => OutgoingError::NameNotFound,
        ResolveError::NoPort { .. } => OutgoingError::ConnectionRefused,
        ResolveError::Outside { .. } | ResolveError::Forbidden { .. } => OutgoingError::Denied,
    }
}

fn refusal_code(refusal: Refusal) -> OutgoingError {
    match refusal {
        Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => OutgoingError::Unavailable,
        Refusal::Asleep { .. } | Refusal::Handler => OutgoingError::Unavailable,
        Refusal::Unconnected { .. } => OutgoingError::ConnectionRefused,
        Refusal::Denied { .. } => OutgoingError::Denied,
        Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Full(..)) => {
            OutgoingError::Unavailable
        }
        Refusal::Deadline => OutgoingError::ResponseTimeout,
        Refusal::BadRequest | Refusal::Incomplete => OutgoingError::Invalid(refusal.to_string()),
        Refusal::OutOfMemory | Refusal::Failed | Refusal::Peer(PeerError::Lost { .. }) => {
            OutgoingError::Failed(refusal.to_string())
        }
        Refusal::Broken(_) => OutgoingError::Failed(refusal.to_string()),
    }
}
