//! What an object must be, beyond being valid: rules that depend on who writes it and on what else
//! there is. One file a kind (or rule) that needs it; this file is the list.
//!
//! Admission is pure. It never reads the store: what it needs to know is in [`Facts`], gathered
//! before by `verbs::facts`. [`admit`] runs after defaults and before hooks, and may still change
//! the new object; [`check`] runs after hooks and validation, and may not.

mod certificates;
mod endpoints;
pub mod grants;
mod limit_range;
mod namespace;
pub mod network;
pub mod node_restriction;
pub mod owners;
mod pod;
mod pod_security;
pub mod pod_standards;
pub mod secret;
pub mod service;
pub mod storage;

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
    /// The namespace of a new object, and of one that has a Pod inside.
    pub namespace: Option<Object>,
    /// What is to be said of the Pods of a namespace that gets a stricter level.
    pub left_inside: Vec<String>,
    /// The ServiceAccount that a new Pod names, or `default`.
    pub service_account: Option<Object>,
    /// The PriorityClass that a new Pod names, or the default one.
    pub priority_class: Option<Object>,
    /// The LimitRanges of the namespace of a new or resized Pod, or of a claim, by name.
    pub limit_ranges: Vec<Object>,
    /// Addresses of the nodes and the control plane, for new Endpoints of the untrusted.
    pub machines: Vec<String>,
    /// The StorageClass of a new claim that names none, and the class of one that grows.
    pub default_storage_class: Option<String>,
    pub storage_class: Option<Object>,
    /// The IngressClass of a new Ingress that names none.
    pub default_ingress_class: Option<String>,
    /// Another PriorityClass that is the default already.
    pub other_default_class: Option<String>,
    /// Whether the user may decide on (or sign for) the signer of a certificate request.
    pub may_sign: bool,
    /// What a Secret for a service account's token is filled with.
    pub token: Option<secret::Content>,
    /// What the writer of a role or binding may give.
    pub grant: Option<grants::Grant>,
    /// What the writer of other owner references than before may do; None for the trusted.
    pub owners: Option<owners::Rights>,
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
        self.user.is_in(auth::MASTERS) || self.is_own()
    }

    /// The control plane's own writers.
    fn is_own(&self) -> bool {
        let own = ["system:kube-controller-manager", "system:kube-scheduler"];
        own.contains(&self.user.name.as_str())
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
    owners::admit(context, new)?;
    grants::admit(context, new, old)?;
    let creates = context.operation == Operation::Create;
    let mut warnings = Vec::new();
    match (context.kind.group, context.kind.plural) {
        ("", "namespaces") => warnings.extend(pod_standards::namespace(context, new, old)?),
        ("", "pods") if creates => warnings.extend(new_pod(context, new)?),
        ("", "pods") if context.part == Part::Resize => warnings.extend(pod::resized(new, old)),
        ("", "persistentvolumeclaims") if context.part == Part::Main => {
            storage::claim(context, new, old)?;
        }
        ("", "persistentvolumes") if creates => storage::volume(new),
        ("", "secrets") => secret::admit(context, new)?,
        ("", "services") if context.part == Part::Main => {
            warnings.extend(service::admit(context, new, old)?);
        }
        ("", "endpoints") | ("discovery.k8s.io", "endpointslices") => {
            endpoints::admit(context, new, old)?;
        }
        ("networking.k8s.io", "ingresses") if context.part == Part::Main => {
            warnings.extend(network::ingress(context, new));
        }
        ("networking.k8s.io", "networkpolicies") => warnings.extend(network::policy(new)),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::admit(context, new, old)?;
        }
        ("scheduling.k8s.io", "priorityclasses") => pod::one_default(context, new)?,
        _ => {}
    }
    if context.part == Part::Main {
        warnings.extend(pod_standards::fields_of_template(context, new, old));
    }
    Ok(warnings)
}

fn new_pod(context: &Context<'_>, pod: &mut Object) -> Result<Vec<String>, ApiError> {
    let warnings = pod::admit(context, pod)?;
    limit_range::fill(context, pod);
    Ok(warnings)
}

/// Admits once more what a hook has changed: it must not be what its writer could not have written,
/// and a container that came with it gets what containers get.
pub fn admit_again(
    context: &Context<'_>,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    node_restriction::admit(context, new, old)?;
    grants::admit(context, new, old)?;
    if context.operation == Operation::Create && context.kind.is("", "Pod") {
        new_pod(context, new)?;
        pod::follow_resources(context, new);
    }
    Ok(())
}

/// Refuses what may be refused only when hooks have made the object what it is to be. Returns
/// warnings.
pub fn check(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    limit_range::check(context, new, old)?;
    pod_standards::admit(context, new, old)
}

/// Lets a deletion pass or refuses it.
pub fn deletion(kind: &Kind, user: &User, old: &Object, options: &Options) -> Result<(), ApiError> {
    namespace::may_be_deleted(kind, old)?;
    node_restriction::deletion(kind, user, old, options)
}

#[cfg(test)]
mod tests;
