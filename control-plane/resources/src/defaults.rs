//! Defaults: what a stock API server fills in before it validates and stores an object.
//!
//! [`apply`] runs on every create, update and patch, after the metadata has been set (generated
//! selectors of Jobs need the uid) and after `status` has been cleared on a create. It is
//! idempotent, touches only what is absent, and never refuses: a mistyped field stays for
//! validation to complain about. One row a kind; kinds without a row have no defaults.
//!
//! Before the row's function, fields that are `null` are dropped, because a typed server never sees
//! them; after it a status that nobody has written yet is made (`statuses`), and quantities and
//! bytes are brought into canonical form.

mod bytes;
mod cluster;
mod network;
mod pod;
mod quantities;
mod statuses;
mod workloads;

pub use pod::{qos_class, system_priority};

use serde_json::{Map, Value};

use crate::{Kind, Object, meta};

type Fields = Map<String, Value>;
type Fill = fn(&mut Fields);

/// (group, plural, function over the whole object); the version does not matter unless the function
/// asks.
const DEFAULTS: &[(&str, &str, Fill)] = &[
    ("", "pods", pod::pod),
    ("", "podtemplates", pod::pod_template),
    ("", "namespaces", cluster::namespace),
    ("", "nodes", cluster::node),
    ("", "configmaps", cluster::config_map),
    ("", "secrets", cluster::secret),
    ("", "services", network::service),
    ("", "endpoints", network::endpoints),
    ("", "limitranges", cluster::limit_range),
    ("", "persistentvolumes", cluster::persistent_volume),
    ("", "persistentvolumeclaims", cluster::persistent_volume_claim),
    ("", "replicationcontrollers", workloads::replication_controller),
    ("apps", "deployments", workloads::deployment),
    ("apps", "replicasets", workloads::replica_set),
    ("apps", "statefulsets", workloads::stateful_set),
    ("apps", "daemonsets", workloads::daemon_set),
    ("batch", "jobs", workloads::job),
    ("batch", "cronjobs", workloads::cron_job),
    ("autoscaling", "horizontalpodautoscalers", workloads::horizontal_pod_autoscaler),
    ("discovery.k8s.io", "endpointslices", network::endpoint_slice),
    ("networking.k8s.io", "networkpolicies", network::network_policy),
    ("networking.k8s.io", "ingressclasses", network::ingress_class),
    ("rbac.authorization.k8s.io", "rolebindings", cluster::role_binding),
    ("rbac.authorization.k8s.io", "clusterrolebindings", cluster::role_binding),
    ("scheduling.k8s.io", "priorityclasses", cluster::priority_class),
    ("storage.k8s.io", "storageclasses", cluster::storage_class),
    ("storage.k8s.io", "csidrivers", cluster::csi_driver),
    ("apiextensions.k8s.io", "customresourcedefinitions", cluster::custom_resource_definition),
    ("apiregistration.k8s.io", "apiservices", cluster::api_service),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", cluster::mutating_webhooks),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", cluster::webhooks),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", cluster::admission_policy),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", cluster::admission_policy),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", cluster::flow_schema),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", cluster::priority_level),
];

/// Kinds with free JSON inside, in which a `null` means something: (group, plural, field that is
/// left alone).
const FREE_JSON: &[(&str, &str, &str)] = &[
    ("apps", "controllerrevisions", "data"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "spec"),
];

/// Fills in an object's defaults.
pub fn apply(kind: &Kind, object: &mut Object) {
    if kind.custom.is_some() {
        // Without a definition the kind is gone, and there is nothing to fill in.
        if let Some(definition) = kind.custom() {
            definition.default(object);
        }
        return;
    }
    let free = FREE_JSON.iter().find(|row| row.0 == kind.group && row.1 == kind.plural);
    let fields = meta::object_mut(object);
    fields.retain(|_, value| !value.is_null());
    for (key, value) in fields.iter_mut() {
        if free.is_none_or(|row| row.2 != key) {
            drop_nulls(value);
        }
    }
    if let Some(row) = DEFAULTS.iter().find(|row| row.0 == kind.group && row.1 == kind.plural) {
        (row.2)(fields);
    }
    if let Some(status) = statuses::empty(kind).filter(|_| !fields.contains_key("status")) {
        fields.insert("status".to_owned(), status);
    }
    quantities::canonical(kind, object);
    bytes::canonical(kind, object);
}

/// Drops from the new form of an object what only fitted the old one, on updates of the main
/// endpoint and before [`apply`]: the node ports of a Service that has none any more.
pub fn drop_outdated(kind: &Kind, new: &mut Object, old: &Object) {
    if kind.is("", "Service") {
        network::drop_outdated(new, old);
    }
}

/// Drops fields that are `null`, at any depth; items of lists stay.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Drops those of these maps and lists in which nothing is: a typed server does not write them, so
/// they are the same as absent ones.
fn drop_empty(fields: &mut Fields, maps: &[&str], lists: &[&str]) {
    fields.retain(|key, value| match value {
        Value::Object(map) => !map.is_empty() || !maps.contains(&key.as_str()),
        Value::Array(items) => !items.is_empty() || !lists.contains(&key.as_str()),
        _ => true,
    });
}

/// Sets a field that is absent.
fn default(fields: &mut Fields, key: &str, value: impl Into<Value>) {
    if !fields.contains_key(key) {
        fields.insert(key.to_string(), value.into());
    }
}

/// Sets a text that is absent or empty; for enumerations, whose zero value is the empty text.
fn default_text(fields: &mut Fields, key: &str, value: &str) {
    if fields.get(key).is_none_or(|old| old.as_str() == Some("")) {
        fields.insert(key.to_string(), Value::from(value));
    }
}

/// A nested object that is created when absent; a mistyped one is left alone.
fn child<'a>(fields: &'a mut Fields, key: &str) -> Option<&'a mut Fields> {
    fields.entry(key).or_insert_with(|| Value::Object(Fields::new())).as_object_mut()
}

/// A nested object, if it is there.
fn existing<'a>(fields: &'a mut Fields, key: &str) -> Option<&'a mut Fields> {
    fields.get_mut(key).and_then(Value::as_object_mut)
}

/// The objects in a list.
fn each<'a>(fields: &'a mut Fields, key: &str) -> impl Iterator<Item = &'a mut Fields> {
    let list = fields.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// A text field, empty when absent.
fn text<'a>(fields: &'a Fields, key: &str) -> &'a str {
    fields.get(key).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests;
