//! A certificate request carries who has made it: the approver trusts these fields, so nobody but
//! the server writes them.

use super::{Context, Operation};
use crate::apiserver::{
    auth,
    errors::{self, ApiError},
};
use serde_json::{Value, json};
use wherry_resources::validate::Reason;
use wherry_resources::{Object, meta};

/// What a machine without an identity may ask for, and what a node may.
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SIGNERS: [&str; 3] =
    [NODE_CLIENT, "kubernetes.io/kubelet-serving", "wherry.dev/traffic"];

/// Writes the requester into a new request, and keeps machines to their own signers.
pub fn admit(context: &Context<'_>, new: &mut Object) -> Result<(), ApiError> {
    if context.operation != Operation::Create {
        return Ok(());
    }
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
