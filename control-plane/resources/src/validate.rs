//! Validation: what a stock API server refuses, in its own words.
//!
//! [`create`], [`update`] and [`update_status`] get objects after defaults and return every
//! complaint, in the order a stock server has them. A complaint names a field, a reason that
//! programs read, and a sentence that people search for; the API server turns the list into one 422
//! Status. Types of fields are not checked here (a decoder refuses those with 400): a field of a
//! wrong type reads as absent.
//!
//! One row a kind; kinds without a row have their metadata checked and nothing else.

mod admission;
mod autoscaling;
mod certificates;
mod cluster;
mod custom;
mod flow;
mod limits;
mod metadata;
mod network;
mod pod;
mod rbac;
mod storage;
mod structural;
mod workloads;

use std::collections::HashSet;

use serde_json::Value;

use crate::{Kind, Object};

/// What programs read: the `reason` of a cause in a Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    Forbidden,
    NotSupported,
    Duplicate,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl Reason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// Complaints about one object: a body may give cause for hundreds of thousands, which would make
/// an answer many times its size.
pub const ERRORS_MAX: usize = 1_000;
/// Their sentences, which may repeat the values that they are about, have so many bytes; the last
/// one may go beyond it.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// One complaint about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub reason: Reason,
    /// Path such as `spec.containers[0].name`.
    pub field: String,
    /// The whole sentence without the field, such as `Invalid value: -1: must be …`.
    pub message: String,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.field, self.message)
    }
}

/// Complaints as one text: what stands behind `is invalid: ` in the message of a 422.
pub fn summary(errors: &[FieldError]) -> String {
    let mut known = HashSet::new();
    let lines = errors.iter().map(FieldError::to_string);
    let lines: Vec<String> = lines.filter(|line| known.insert(line.clone())).collect();
    match &lines[..] {
        [line] => line.clone(),
        lines => format!("[{}]", lines.join(", ")),
    }
}

/// How one kind is validated beyond its metadata.
struct Rules {
    group: &'static str,
    plural: &'static str,
    /// Runs on create, and on update unless the kind says otherwise.
    object: fn(&Object, &mut Errors),
    /// Runs on update with the new and the old object.
    change: fn(&Object, &Object, &mut Errors),
}

const fn rules(
    group: &'static str,
    plural: &'static str,
    object: fn(&Object, &mut Errors),
    change: fn(&Object, &Object, &mut Errors),
) -> Rules {
    Rules { group, plural, object, change }
}

/// No rule for changes: any valid object may become any other.
fn any_change(_: &Object, _: &Object, _: &mut Errors) {}

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";

const RULES: &[Rules] = &[
    rules("", "pods", pod::pod, pod::change),
    rules("", "podtemplates", pod::pod_template, any_change),
    rules("", "services", network::service, network::service_change),
    rules("", "endpoints", network::endpoints, any_change),
    rules("", "configmaps", cluster::config_map, cluster::config_map_change),
    rules("", "secrets", cluster::secret, cluster::secret_change),
    rules("", "nodes", cluster::node, cluster::node_change),
    rules("", "events", cluster::event, any_change),
    rules("events.k8s.io", "events", cluster::event, any_change),
    rules("", "limitranges", limits::limit_range, any_change),
    rules("", "resourcequotas", limits::resource_quota, limits::resource_quota_change),
    rules("", "persistentvolumes", storage::volume, storage::volume_change),
    rules("", "persistentvolumeclaims", storage::claim, storage::claim_change),
    rules("", "replicationcontrollers", workloads::replication_controller, any_change),
    rules("apps", "deployments", workloads::deployment, workloads::selector_change),
    rules("apps", "replicasets", workloads::replica_set, workloads::selector_change),
    rules("apps", "daemonsets", workloads::daemon_set, workloads::selector_change),
    rules("apps", "statefulsets", workloads::stateful_set, workloads::stateful_set_change),
    rules("apps", "controllerrevisions", cluster::revision, cluster::revision_change),
    rules("batch", "jobs", workloads::job, workloads::job_change),
    rules("batch", "cronjobs", workloads::cron_job, any_change),
    rules("autoscaling", "horizontalpodautoscalers", autoscaling::autoscaler, any_change),
    rules("policy", "poddisruptionbudgets", workloads::disruption_budget, any_change),
    rules("discovery.k8s.io", "endpointslices", network::slice, network::slice_change),
    rules("networking.k8s.io", "ingresses", network::ingress, any_change),
    rules(
        "networking.k8s.io",
        "ingressclasses",
        network::ingress_class,
        network::ingress_class_change,
    ),
    rules("networking.k8s.io", "networkpolicies", network::network_policy, any_change),
    rules("certificates.k8s.io", "certificatesigningrequests", certificates::request, any_change),
    rules("node.k8s.io", "runtimeclasses", cluster::runtime_class, cluster::runtime_class_change),
    rules(FLOW, "flowschemas", flow::schema, any_change),
    rules(FLOW, "prioritylevelconfigurations", flow::level, any_change),
    rules("coordination.k8s.io", "leases", cluster::lease, any_change),
    rules("apiregistration.k8s.io", "apiservices", cluster::api_service, any_change),
    rules(
        "scheduling.k8s.io",
        "priorityclasses",
        cluster::priority_class,
        cluster::priority_change,
    ),
    rules("storage.k8s.io", "storageclasses", storage::class, storage::class_change),
    rules("storage.k8s.io", "volumeattachments", storage::attachment, storage::attachment_change),
    rules("storage.k8s.io", "csinodes", storage::node_drivers, any_change),
    rules(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        custom::definition,
        custom::definition_change,
    ),
    rules(ADMISSION, "mutatingwebhookconfigurations", admission::webhooks, any_change),
    rules(ADMISSION, "validatingwebhookconfigurations", admission::webhooks, any_change),
    rules(ADMISSION, "validatingadmissionpolicies", admission::policy, any_change),
    rules(ADMISSION, "validatingadmissionpolicybindings", admission::binding, any_change),
    rules(ADMISSION, "mutatingadmissionpolicies", admission::policy, any_change),
    rules(ADMISSION, "mutatingadmissionpolicybindings", admission::binding, any_change),
    rules(RBAC, "roles", rbac::role, any_change),
    rules(RBAC, "clusterroles", rbac::cluster_role, any_change),
    rules(RBAC, "rolebindings", rbac::role_binding, rbac::role_ref_change),
    rules(RBAC, "clusterrolebindings", rbac::cluster_role_binding, rbac::role_ref_change),
];

fn of(kind: &Kind) -> Option<&'static Rules> {
    RULES.iter().find(|row| row.group == kind.group && row.plural == kind.plural)
}

/// Complaints about a new object.
pub fn create(kind: &Kind, new: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::create(kind, new, &mut errors);
    if let Some(rules) = of(kind) {
        (rules.object)(new, &mut errors);
    }
    if let Some(definition) = kind.custom() {
        custom::object(&definition, new, None, &mut errors);
    }
    if kind.is("", "Pod") {
        pod::only_on_create(new, &mut errors);
    }
    if kind.is("events.k8s.io", "Event") {
        cluster::only_on_create(new, &mut errors);
    }
    if kind.is("networking.k8s.io", "Ingress") {
        network::only_on_create(new, &mut errors);
    }
    errors.0
}

/// Complaints about an object that is to replace another one.
pub fn update(kind: &Kind, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(kind, new, old, &mut errors);
    if let Some(rules) = of(kind) {
        (rules.change)(new, old, &mut errors);
        let is_same = new.get("spec").is_some() && new.get("spec") == old.get("spec");
        if !is_same {
            since(rules.object, new, old, &mut errors);
        }
    }
    if let Some(definition) = kind.custom() {
        custom::object(&definition, new, Some(old), &mut errors);
    }
    errors.0
}

/// Complaints of a rule that the old object gives no cause for: a stored object is not refused for
/// what it already was, since rules may have become stricter after it was written.
fn since(rule: fn(&Object, &mut Errors), new: &Object, old: &Object, errors: &mut Errors) {
    let mut found = Errors::default();
    rule(new, &mut found);
    if found.0.is_empty() {
        return;
    }
    let mut before = Errors::default();
    rule(old, &mut before);
    errors.0.extend(found.0.into_iter().filter(|error| !before.0.contains(error)));
}

/// Complaints about a new status; everything but status and metadata is as in the old object.
pub fn update_status(kind: &Kind, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(kind, new, old, &mut errors);
    if kind.is("", "Pod") {
        pod::status_change(new, old, &mut errors);
    }
    if kind.is("certificates.k8s.io", "CertificateSigningRequest") {
        certificates::status_change(new, old, &mut errors);
    }
    if kind.is("apiextensions.k8s.io", "CustomResourceDefinition") {
        custom::stored_versions(new, &mut errors);
    }
    if let Some(definition) = kind.custom() {
        custom::status(&definition, new, old, &mut errors);
    }
    errors.0
}

/// Complaints about a Pod whose ephemeral containers have changed; all else is as in the old one.
pub fn update_ephemeral_containers(kind: &Kind, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(kind, new, old, &mut errors);
    since(pod::pod, new, old, &mut errors);
    pod::ephemeral_change(new, old, &mut errors);
    errors.0
}

/// Complaints about a Pod whose containers' resources have changed; all else is as in the old one.
pub fn resize(kind: &Kind, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(kind, new, old, &mut errors);
    since(pod::pod, new, old, &mut errors);
    pod::resources_change(new, old, &mut errors);
    errors.0
}

/// Complaints so far. Each method adds one, worded as Kubernetes words its kind of complaint.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, reason: Reason, field: &str, message: String) {
        if !self.is_full() {
            self.0.push(FieldError { reason, field: field.to_string(), message });
        }
    }

    /// Whether further complaints are left out: who would repeat long values need not make them.
    fn is_full(&self) -> bool {
        let bytes = || self.0.iter().map(|error| error.message.len()).sum::<usize>();
        self.0.len() >= ERRORS_MAX || bytes() >= ERROR_BYTES_MAX
    }

    fn required(&mut self, field: &str, detail: &str) {
        let colon = if detail.is_empty() { "" } else { ": " };
        self.add(Reason::Required, field, format!("Required value{colon}{detail}"));
    }

    fn invalid(&mut self, field: &str, value: impl Into<Value>, detail: &str) {
        let value = value.into();
        let colon = if detail.is_empty() { "" } else { ": " };
        self.add(Reason::Invalid, field, format!("Invalid value: {value}{colon}{detail}"));
    }

    /// One complaint for each sentence of a check from `names`.
    fn complaints(&mut self, field: &str, value: &str, complaints: Vec<String>) {
        for complaint in complaints {
            self.invalid(field, value, &complaint);
        }
    }

    fn forbidden(&mut self, field: &str, detail: &str) {
        self.add(Reason::Forbidden, field, format!("Forbidden: {detail}"));
    }

    fn unsupported(&mut self, field: &str, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        let value = Value::from(value);
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        self.add(Reason::NotSupported, field, message);
    }

    fn duplicate(&mut self, field: &str, value: impl Into<Value>) {
        self.add(Reason::Duplicate, field, format!("Duplicate value: {}", value.into()));
    }

    fn not_found(&mut self, field: &str, value: &str) {
        self.add(Reason::NotFound, field, format!("Not found: {}", Value::from(value)));
    }

    fn too_long(&mut self, field: &str, limit: usize) {
        let message = format!("Too long: may not be more than {limit} bytes");
        self.add(Reason::TooLong, field, message);
    }

    fn too_many(&mut self, field: &str, found: usize, limit: usize) {
        let message = format!("Too many: {found}: must have at most {limit} items");
        self.add(Reason::TooMany, field, message);
    }

    /// A text that is one of a few; empty only if it may be.
    fn one_of(&mut self, field: &str, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.unsupported(field, value, supported);
        }
    }

    /// A number that is absent or not negative.
    fn not_negative(&mut self, parent: &Value, path: &str, key: &str) {
        if let Some(number) = integer(parent, key).filter(|number| *number < 0) {
            self.invalid(&at(path, key), number, NOT_NEGATIVE);
        }
    }

    /// A field that must stay as it was.
    fn immutable(&mut self, field: &str, new: Option<&Value>, old: Option<&Value>) {
        if new != old {
            let value = new.cloned().unwrap_or(Value::Null);
            self.invalid(field, value, IMMUTABLE);
        }
    }
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

/// `path.key`.
fn at(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_string();
    }
    format!("{path}.{key}")
}

/// `path.key[index]`.
fn nth(path: &str, key: &str, index: usize) -> String {
    format!("{}[{index}]", at(path, key))
}

fn integer(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// A map field, empty when absent.
fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flatten()
}

/// A list or map field that is absent or empty.
fn is_empty(value: &Value, key: &str) -> bool {
    match value.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

/// A field of an object; absent reads as `null`.
fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    const NULL: &Value = &Value::Null;
    value.get(key).unwrap_or(NULL)
}

#[cfg(test)]
mod tests;
