//! Nothing is created in a namespace that is not there or that is going away, and the namespaces
//! that a cluster cannot do without are not deleted.

use super::Context;
use crate::apiserver::errors::{ApiError, Cause};
use wherry_resources::{Kind, Object, meta};

/// Namespaces that every cluster has.
const PERMANENT: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The namespace of a new object must be there, and not on its way out.
pub fn must_live(context: &Context<'_>, new: &Object) -> Result<(), ApiError> {
    if !context.kind.namespaced {
        return Ok(());
    }
    let Some(namespace) = &context.facts.namespace else {
        let kind = wherry_resources::kind("", "v1", "namespaces");
        let kind = kind.expect("Namespace is a built-in kind");
        return Err(ApiError::not_found(kind, context.namespace));
    };
    if !meta::is_deleting(namespace) {
        return Ok(());
    }
    let name = context.namespace;
    Err(ApiError::Forbidden {
        resource: context.kind.into(),
        name: meta::name(new).to_owned(),
        why: format!(
            "unable to create new content in namespace {name} because it is being terminated"
        ),
        causes: vec![Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {name} is being terminated"),
            field: "metadata.namespace".to_owned(),
        }],
    })
}

/// Refuses to delete a permanent namespace.
pub fn may_be_deleted(kind: &Kind, old: &Object) -> Result<(), ApiError> {
    let name = meta::name(old);
    if kind.is("", "Namespace") && PERMANENT.contains(&name) {
        return Err(ApiError::forbidden(kind, name, "this namespace may not be deleted"));
    }
    Ok(())
}
