//! What an object must be, beyond being valid: rules that depend on who writes it and on what else
//! there is. One file a kind (or rule) that needs it; this file is the list.
//!
//! Admission is pure. It never reads the store: what it needs to know is in [`Facts`], gathered
//! before by `verbs::facts`. It runs after defaults and before validation, and may still change
//! the new object.

mod certificates;
mod endpoints;
mod namespace;
mod node_restriction;
mod pod;
pub mod service;

use super::{
    auth::{self, User},
    errors::ApiError,
    verbs::{Part, delete::Options},
};
use wherry_resources::{Kind, Object};

/// What happens to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
}

/// State that admission may have to know; only what the kind needs is filled in.
#[derive(Default)]
pub struct Facts {
    /// The namespace of a new object.
    pub namespace: Option<Object>,
    /// The ServiceAccount that a new Pod names, or `default`.
    pub service_account: Option<Object>,
    /// The PriorityClass that a new Pod names, or the default one.
    pub priority_class: Option<Object>,
    /// Addresses and ports for a Service.
    pub service: Option<service::Grant>,
    /// Where a search for a free address begins.
    pub random: u64,
}

/// One admission.
pub struct Context<'a> {
    pub operation: Operation,
    pub user: &'a User,
    pub kind: &'static Kind,
    pub part: Part,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub facts: &'a Facts,
}

impl Context<'_> {
    /// The control plane's own writers and administrators.
    fn is_trusted(&self) -> bool {
        let own = ["system:kube-controller-manager", "system:kube-scheduler"];
        self.user.is_in(auth::MASTERS) || own.contains(&self.user.name.as_str())
    }
}

/// Lets an object pass, changes it, or refuses it. Returns warnings for the client.
pub fn admit(
    context: &Context<'_>,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    if context.operation == Operation::Create {
        namespace::must_live(context, new)?;
    }
    node_restriction::admit(context, new, old)?;
    let creates = context.operation == Operation::Create;
    match (context.kind.group, context.kind.plural) {
        ("", "pods") if creates => pod::admit(context, new),
        ("", "services") if context.part == Part::Main => service::admit(context, new, old),
        ("", "endpoints") | ("discovery.k8s.io", "endpointslices") => {
            endpoints::admit(context, new).map(|()| Vec::new())
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::admit(context, new).map(|()| Vec::new())
        }
        _ => Ok(Vec::new()),
    }
}

/// Lets a deletion pass or refuses it.
pub fn deletion(kind: &Kind, user: &User, old: &Object, options: &Options) -> Result<(), ApiError> {
    namespace::may_be_deleted(kind, old)?;
    node_restriction::deletion(kind, user, old, options)
}

#[cfg(test)]
mod tests;
