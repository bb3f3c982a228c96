//! What a node agent may write: its own Node, its own lease, the status of its own Pods.
//!
//! Authorisation has let the request through by verb, resource and name; here the contents are
//! looked at, so that a stolen node certificate cannot move workloads to itself, mark itself as
//! something it is not, or have objects collected by giving its Node an owner.

use super::{Context, Operation};
use crate::apiserver::{
    auth::User,
    errors::ApiError,
    verbs::{Part, delete::Options},
};
use serde_json::Value;
use wherry_resources::{Kind, Object, meta, node_labels};

/// Checks a write of a node agent; everybody else passes.
pub fn admit(context: &Context<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let Some(node) = context.user.node() else {
        return Ok(());
    };
    let refuse = |why: String| Err(ApiError::forbidden(context.kind, meta::name(new), why));
    match (context.kind.group, context.kind.plural) {
        ("", "nodes") => own_node(node, new, old).or_else(refuse),
        ("coordination.k8s.io", "leases") if meta::name(new) != node => refuse(
            "can only access node lease with the same name as the requesting node".to_owned(),
        ),
        ("", "pods") if context.operation == Operation::Create => {
            refuse(format!("node {node:?} may not create pods"))
        }
        ("", "pods") if context.part == Part::Status => {
            let bound = old.and_then(|old| old.pointer("/spec/nodeName")?.as_str());
            if bound != Some(node) {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to \
                     itself"
                ));
            }
            if old.map(labels) != Some(labels(new)) {
                return refuse(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn labels(object: &Object) -> Vec<(&str, &str)> {
    meta::labels(object).collect()
}

fn own_node(node: &str, new: &Object, old: Option<&Object>) -> Result<(), String> {
    if meta::name(new) != node {
        return Err(format!("node {node:?} is not allowed to modify node {:?}", meta::name(new)));
    }
    let owners = |object: &Object| object.pointer("/metadata/ownerReferences").cloned();
    if owners(new) != old.and_then(owners) {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let taints = |object: &Object| object.pointer("/spec/taints").cloned();
    if let Some(old) = old.filter(|old| taints(old) != taints(new)) {
        return Err(format!(
            "node {node:?} is not allowed to modify taints of {:?}",
            meta::name(old)
        ));
    }
    let before = old.and_then(|old| old.pointer("/metadata/labels"));
    let after = new.pointer("/metadata/labels");
    let keys = |labels: Option<&Value>| -> Vec<String> {
        labels
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect()
    };
    for key in keys(before).iter().chain(&keys(after)) {
        let value = |labels: Option<&Value>| labels.and_then(|labels| labels.get(key)).cloned();
        if value(before) != value(after) && !node_labels::may_set(key) {
            return Err(format!("node {node:?} is not allowed to modify label {key:?}"));
        }
    }
    Ok(())
}

/// An agent gets tokens for Pods of its own only, each bound to its Pod by uid.
pub fn token(
    user: &User,
    account: &Object,
    pod: Option<&Object>,
    uid: &str,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else {
        return Ok(());
    };
    let kind = wherry_resources::kind("", "v1", "serviceaccounts").expect("a built-in kind");
    let refuse = |why: &str| Err(ApiError::forbidden(kind, meta::name(account), why));
    match pod {
        None => refuse("node requested token not bound to a pod"),
        Some(_) if uid.is_empty() => {
            refuse("node requested token with a pod binding without a uid")
        }
        Some(pod) if pod.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) => {
            refuse("node requested token bound to a pod scheduled on a different node")
        }
        Some(_) => Ok(()),
    }
}

/// An agent ends a Pod of its own, and names the one it means by uid: a Pod of the same name may
/// have been made meanwhile.
pub fn deletion(kind: &Kind, user: &User, old: &Object, options: &Options) -> Result<(), ApiError> {
    let Some(node) = user.node().filter(|_| kind.is("", "Pod")) else {
        return Ok(());
    };
    let refuse = |why: String| Err(ApiError::forbidden(kind, meta::name(old), why));
    if old.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
        return refuse(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        ));
    }
    if options.uid.is_none() {
        return refuse(format!("node {node:?} must name the uid of the pod that it deletes"));
    }
    Ok(())
}
