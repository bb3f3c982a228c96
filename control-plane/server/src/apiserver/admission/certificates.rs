//! A certificate request carries who has made it: the approver trusts these fields, so nobody but
//! the server writes them. Who decides on a request needs the verb `approve` on its signer, who
//! puts a certificate in needs `sign`; and nobody becomes an administrator this way.

use super::{Context, Operation};
use crate::apiserver::{
    auth,
    errors::{self, ApiError},
    verbs::Part,
};
use serde_json::{Value, json};
use wherry_resources::validate::Reason;
use wherry_resources::{Object, meta};

/// What a machine without an identity may ask for, and what a node may.
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SIGNERS: [&str; 3] =
    [NODE_CLIENT, "kubernetes.io/kubelet-serving", "wherry.dev/traffic"];

/// The signer of ordinary clients, and the group that it must not make members of.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// Checks a decision or a signature; prepares a new request.
pub fn admit(
    context: &Context<'_>,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let refuse = |verb: &str, new: &Object| {
        let signer = new.pointer("/spec/signerName").and_then(Value::as_str).unwrap_or("");
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(ApiError::forbidden(context.kind, meta::name(new), why))
    };
    let certificate = |object: &Object| object.pointer("/status/certificate").cloned();
    match context.part {
        Part::Approval if !context.facts.may_sign => refuse("approve", new),
        Part::Status if certificate(new) != old.and_then(certificate) => {
            if context.facts.may_sign {
                Ok(())
            } else {
                refuse("sign", new)
            }
        }
        _ if context.operation == Operation::Create => created(context, new),
        _ => Ok(()),
    }
}

/// Whether a request in PEM asks to be in the administrators' group. One that cannot be read is
/// refused by its signer.
fn asks_for_masters(object: &Object) -> bool {
    use base64::Engine as _;
    let encoded = object.pointer("/spec/request").and_then(Value::as_str).unwrap_or("");
    let pem = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    let request = crate::pki::Request::parse(&String::from_utf8_lossy(&pem));
    request.is_ok_and(|request| request.organizations.iter().any(|one| one == auth::MASTERS))
}

/// Writes the requester into a new request, and keeps machines to their own signers.
fn created(context: &Context<'_>, new: &mut Object) -> Result<(), ApiError> {
    let user = context.user;
    let signer = new.pointer("/spec/signerName").and_then(Value::as_str).unwrap_or("");
    let allowed = if context.is_trusted() {
        true
    } else if user.node().is_some() {
        NODE_SIGNERS.contains(&signer)
    } else if user.is_in(auth::BOOTSTRAPPERS) {
        signer == NODE_CLIENT
    } else {
        true
    };
    if !allowed {
        let message = format!("Forbidden: user {:?} may not ask the signer {signer:?}", user.name);
        let error = errors::field(Reason::Forbidden, "spec.signerName", message);
        return Err(ApiError::invalid(context.kind, meta::name(new), vec![error]));
    }
    if signer == CLIENT && asks_for_masters(new) {
        let why = format!("use of {CLIENT} signer with system:masters group is not allowed");
        return Err(ApiError::forbidden(context.kind, meta::name(new), why));
    }
    let spec = &mut new["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    spec["username"] = json!(user.name);
    spec["groups"] = json!(user.groups);
    for (key, value) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
        let empty = value == json!("") || value == json!({});
        match spec.as_object_mut() {
            Some(spec) if empty => drop(spec.shift_remove(key)),
            _ => spec[key] = value,
        }
    }
    Ok(())
}
