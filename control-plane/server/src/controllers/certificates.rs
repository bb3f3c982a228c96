//! Certificate requests: those of nodes are approved and signed, or refused, by rules that need no
//! human; those of people's clients and of nodes' servers are signed when somebody has approved them.
//!
//! Owns: the conditions and the certificate of CertificateSigningRequests of the signers below,
//! and the deletion of requests that are over.
//!
//! | signer | who may ask | for what |
//! |---|---|---|
//! | [`KUBELET_SIGNER`] | a node's join token, or the node | CN `system:node:NAME`, O `system:nodes` |
//! | [`TRAFFIC_SIGNER`] | the node NAME | CN NAME, O one existing namespace |
//! | [`CLIENT_SIGNER`] | anybody; a person approves | any CN, at most one O, client use |
//! | [`SERVING_SIGNER`] | the node NAME; a person approves | CN `system:node:NAME`, its names |
//!
//! Invariants: what a certificate says comes from the checked values, never from the request's
//! bytes; a request with any other name in it is refused; everything is checked again before
//! signing, so that an approval by hand cannot widen it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::{Action, Signer, Target, Write};
use crate::pki::{Profile, Request};

const KUBELET_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const TRAFFIC_SIGNER: &str = "wherry.dev/traffic";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
const MASTERS: &str = "system:masters";
const JOINING_NODES: &str = "system:bootstrappers:wherry:node";
/// Requests are kept so long after they were answered, for whoever wants to see why.
const ANSWERED_KEPT: SignedDuration = SignedDuration::from_hours(1);
/// Requests that nobody answers are kept so long.
const PENDING_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// What a plan for one request reads.
#[derive(Default)]
pub struct Snapshot {
    pub request: Arc<CertificateSigningRequest>,
    /// The namespaces there are.
    pub namespaces: Vec<String>,
}

pub const CONTROLLER: Controller = Controller { name: "certificates", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<CertificateSigningRequest>().is_some() {
        keys.push(change.key.clone());
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(request) = view.cache.get::<CertificateSigningRequest>("", key.name()) else {
        return Plan::default();
    };
    let namespaces = view.cache.all::<Namespace>();
    let living = namespaces.filter(|held| held.metadata.deletion_timestamp.is_none());
    let namespaces = living.filter_map(|held| held.metadata.name.clone()).collect();
    plan(&Snapshot { request, namespaces }, view.now)
}

/// Approves or refuses a new request, signs an approved one, deletes an old one.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let request = &*snapshot.request;
    if request.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    if let Some(plan) = expire(request, now) {
        return plan;
    }
    let signer = match request.spec.signer_name.as_str() {
        KUBELET_SIGNER | CLIENT_SIGNER | SERVING_SIGNER => Signer::Cluster,
        TRAFFIC_SIGNER => Signer::Traffic,
        _ => return pending(request, now),
    };
    let signed = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    if signed || has(request, "Denied") || has(request, "Failed") {
        return pending(request, now);
    }
    let by_hand = [CLIENT_SIGNER, SERVING_SIGNER].contains(&&*request.spec.signer_name);
    if by_hand && !has(request, "Approved") {
        return pending(request, now);
    }
    let verdict = match request.spec.signer_name.as_str() {
        KUBELET_SIGNER => check_node(request),
        CLIENT_SIGNER => check_client(request),
        SERVING_SIGNER => check_serving(request),
        _ => check_traffic(request, &snapshot.namespaces),
    };
    let write = match (verdict, has(request, "Approved")) {
        (Ok(_), false) => {
            let message = "The request is one that this node may make.".to_string();
            answer(request, "approval", "Approved", "AutoApproved", message, now)
        }
        (Ok((profile, request_pem)), true) => {
            Action::Sign { target: Target::of(request), signer, profile, request_pem }.into()
        }
        (Err(refusal), false) => {
            answer(request, "approval", "Denied", "NotAllowed", refusal.to_string(), now)
        }
        (Err(refusal), true) => {
            answer(request, "status", "Failed", "SignerValidationFailure", refusal.to_string(), now)
        }
    };
    vec![write].into()
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    find(request, kind).is_some()
}

fn find<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// When a request is to be deleted, by what became of it.
fn end(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let answered = ["Denied", "Failed", "Approved"].iter().find_map(|kind| find(request, kind));
    let signed = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    match answered {
        Some(answer) if signed || answer.type_ != "Approved" => {
            answer.last_update_time.as_ref()?.0.checked_add(ANSWERED_KEPT).ok()
        }
        _ => request.metadata.creation_timestamp.as_ref()?.0.checked_add(PENDING_KEPT).ok(),
    }
}

fn expire(request: &CertificateSigningRequest, now: Timestamp) -> Option<Plan> {
    (end(request)? <= now).then(|| vec![Write::delete(request)].into())
}

fn pending(request: &CertificateSigningRequest, now: Timestamp) -> Plan {
    let left = end(request).map(|end| end.duration_since(now));
    let again = left.and_then(|left| Duration::try_from(left).ok());
    Plan { writes: Vec::new(), again }
}

fn answer(
    request: &CertificateSigningRequest,
    subresource: &'static str,
    kind: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Write {
    let status = request.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: kind.to_string(),
        status: "True".to_string(),
        reason: Some(reason.to_string()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
    let body = json!({"status": {"conditions": conditions}});
    Action::Patch { target: Target::of(request), subresource, body }.into()
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request is not PEM text")]
    NotText,
    #[error("the request cannot be read: {0}")]
    Unreadable(#[from] crate::pki::PkiError),
    #[error("a node's certificate carries no alternative names")]
    AlternativeNames,
    #[error("the name {0:?} is not allowed for this signer")]
    Name(String),
    #[error("the organization must be {expected}, not {found:?}")]
    Organization { expected: String, found: Vec<String> },
    #[error("the usage {0:?} is not allowed for this signer")]
    Usage(String),
    #[error("the usage {0:?} is missing")]
    NoUse(&'static str),
    #[error("nobody becomes a member of system:masters by a certificate request")]
    Masters,
    #[error("a server's certificate needs names or addresses")]
    NoNames,
    #[error("only DNS names and addresses may stand in a node's certificate")]
    OtherNames,
    #[error("{user:?} may not ask for a certificate of {wanted:?}")]
    NotYours { user: String, wanted: String },
    #[error("there is no namespace {0:?}")]
    NoNamespace(String),
}

type Checked = (Profile, String);

fn parse(request: &CertificateSigningRequest) -> Result<(Request, String), Refusal> {
    let pem = String::from_utf8(request.spec.request.0.clone()).map_err(|_| Refusal::NotText)?;
    let parsed = Request::parse(&pem)?;
    Ok((parsed, pem))
}

fn read(request: &CertificateSigningRequest) -> Result<(Request, String), Refusal> {
    let (parsed, pem) = parse(request)?;
    if parsed.has_alternative_names {
        return Err(Refusal::AlternativeNames);
    }
    Ok((parsed, pem))
}

fn check_usages(request: &CertificateSigningRequest, allowed: &[&str]) -> Result<(), Refusal> {
    check_uses(request, allowed, "client auth")
}

/// All usages must be allowed ones, and the needed one among them.
fn check_uses(
    request: &CertificateSigningRequest,
    allowed: &[&str],
    needed: &'static str,
) -> Result<(), Refusal> {
    let usages = request.spec.usages.iter().flatten();
    if let Some(other) = usages.clone().find(|usage| !allowed.contains(&usage.as_str())) {
        return Err(Refusal::Usage(other.clone()));
    }
    let has = usages.clone().any(|usage| usage == needed);
    if has { Ok(()) } else { Err(Refusal::NoUse(needed)) }
}

/// What the request asks for as its time, if anything.
fn lifetime(request: &CertificateSigningRequest) -> Option<Duration> {
    let seconds = request.spec.expiration_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// A client of the API, under any name: who approves it decides whom it may be.
fn check_client(request: &CertificateSigningRequest) -> Result<Checked, Refusal> {
    let (parsed, pem) = read(request)?;
    if parsed.organizations.iter().any(|group| group == MASTERS) {
        return Err(Refusal::Masters);
    }
    if parsed.common_name.is_empty() {
        return Err(Refusal::Name(parsed.common_name));
    }
    check_usages(request, &["digital signature", "key encipherment", "client auth"])?;
    let profile = Profile {
        common_name: parsed.common_name,
        organization: parsed.organizations.into_iter().next(),
        client: true,
        lifetime: lifetime(request),
        ..Profile::default()
    };
    Ok((profile, pem))
}

/// What a node serves its own port with: under the names and addresses that it asks for.
fn check_serving(request: &CertificateSigningRequest) -> Result<Checked, Refusal> {
    let (parsed, pem) = parse(request)?;
    check_subject(&parsed)?;
    if parsed.names.is_empty() && parsed.addresses.is_empty() {
        return Err(Refusal::NoNames);
    }
    if parsed.has_other_names {
        return Err(Refusal::OtherNames);
    }
    check_uses(request, &["digital signature", "key encipherment", "server auth"], "server auth")?;
    let user = request.spec.username.clone().unwrap_or_default();
    if user != parsed.common_name || !in_group(request, NODES) {
        return Err(Refusal::NotYours { user, wanted: parsed.common_name });
    }
    let profile = Profile {
        common_name: parsed.common_name,
        organization: Some(NODES.to_string()),
        names: parsed.names,
        addresses: parsed.addresses,
        server: true,
        lifetime: lifetime(request),
        ..Profile::default()
    };
    Ok((profile, pem))
}

fn in_group(request: &CertificateSigningRequest, group: &str) -> bool {
    request.spec.groups.iter().flatten().any(|held| held == group)
}

/// A name of a node: what may stand in an object's name.
fn is_node_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=253).contains(&bytes.len())
        && bytes.iter().all(|byte| letter(*byte) || matches!(byte, b'-' | b'.'))
        && letter(bytes[0])
        && letter(bytes[bytes.len() - 1])
}

/// The subject of a node: `system:node:NAME` of the group of nodes.
fn check_subject(parsed: &Request) -> Result<(), Refusal> {
    let node = parsed.common_name.strip_prefix(NODE_PREFIX).filter(|node| is_node_name(node));
    if node.is_none() {
        return Err(Refusal::Name(parsed.common_name.clone()));
    }
    if parsed.organizations != [NODES] {
        let (expected, found) = (NODES.to_string(), parsed.organizations.clone());
        return Err(Refusal::Organization { expected, found });
    }
    Ok(())
}

fn check_node(request: &CertificateSigningRequest) -> Result<Checked, Refusal> {
    let (parsed, pem) = read(request)?;
    check_subject(&parsed)?;
    check_usages(request, &["digital signature", "key encipherment", "client auth"])?;
    let user = request.spec.username.clone().unwrap_or_default();
    let renews = user == parsed.common_name && in_group(request, NODES);
    if !renews && !in_group(request, JOINING_NODES) {
        return Err(Refusal::NotYours { user, wanted: parsed.common_name });
    }
    let profile = Profile {
        common_name: parsed.common_name,
        organization: Some(NODES.to_string()),
        client: true,
        ..Profile::default()
    };
    Ok((profile, pem))
}

fn check_traffic(
    request: &CertificateSigningRequest,
    namespaces: &[String],
) -> Result<Checked, Refusal> {
    let (parsed, pem) = read(request)?;
    let user = request.spec.username.clone().unwrap_or_default();
    let node = user.strip_prefix(NODE_PREFIX).filter(|node| is_node_name(node));
    if node != Some(&parsed.common_name) || !in_group(request, NODES) {
        return Err(Refusal::NotYours { user, wanted: parsed.common_name });
    }
    let [namespace] = parsed.organizations.as_slice() else {
        let expected = "one namespace".to_string();
        return Err(Refusal::Organization { expected, found: parsed.organizations });
    };
    if !namespaces.contains(namespace) {
        return Err(Refusal::NoNamespace(namespace.clone()));
    }
    check_usages(
        request,
        &["digital signature", "key encipherment", "client auth", "server auth"],
    )?;
    let profile = Profile {
        common_name: parsed.common_name.clone(),
        organization: Some(namespace.clone()),
        // The worker that connects checks the other's node by this name.
        names: vec![parsed.common_name],
        client: true,
        server: true,
        ..Profile::default()
    };
    Ok((profile, pem))
}

#[cfg(test)]
mod tests;
