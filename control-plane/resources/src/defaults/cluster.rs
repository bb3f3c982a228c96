//! Defaults of namespaces, nodes, configuration, storage, access rules and extensions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Fields, child, default, default_text, drop_empty, each, existing, text};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A namespace carries its name as a label, and a finalizer that holds it until its content is
/// gone.
pub(super) fn namespace(object: &mut Fields) {
    let Some(metadata) = child(object, "metadata") else {
        return;
    };
    let name = text(metadata, "name").to_string();
    let is_deleting = metadata.contains_key("deletionTimestamp");
    if !name.is_empty()
        && let Some(labels) = child(metadata, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".to_string(), Value::from(name));
    }
    if is_deleting {
        return;
    }
    if let Some(spec) = child(object, "spec") {
        default(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child(object, "status") {
        default_text(status, "phase", "Active");
    }
}

pub(super) fn node(object: &mut Fields) {
    let Some(status) = existing(object, "status") else {
        return;
    };
    if let Some(capacity) = status.get("capacity").cloned() {
        default(status, "allocatable", capacity);
    }
}

pub(super) fn config_map(object: &mut Fields) {
    drop_empty(object, &["data", "binaryData"], &[]);
}

/// `stringData` is written only: it becomes `data` and is never stored.
pub(super) fn secret(object: &mut Fields) {
    if let Some(Value::Object(strings)) = object.shift_remove("stringData")
        && !strings.is_empty()
        && let Some(data) = child(object, "data")
    {
        for (key, value) in strings {
            let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
            data.insert(key, Value::from(encoded));
        }
    }
    drop_empty(object, &["data"], &[]);
    default_text(object, "type", "Opaque");
}

pub(super) fn limit_range(object: &mut Fields) {
    let Some(spec) = existing(object, "spec") else {
        return;
    };
    for limit in each(spec, "limits").filter(|limit| text(limit, "type") == "Container") {
        for (from, to) in
            [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")]
        {
            let Some(Value::Object(source)) = limit.get(from).cloned() else {
                continue;
            };
            let Some(target) = child(limit, to) else {
                continue;
            };
            for (resource, amount) in source {
                target.entry(resource).or_insert(amount);
            }
        }
    }
}

pub(super) fn persistent_volume(object: &mut Fields) {
    if let Some(spec) = child(object, "spec") {
        default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_text(spec, "volumeMode", "Filesystem");
        if let Some(path) = existing(spec, "hostPath") {
            default(path, "type", "");
        }
    }
    if let Some(status) = child(object, "status") {
        default_text(status, "phase", "Pending");
    }
}

pub(super) fn persistent_volume_claim(object: &mut Fields) {
    if let Some(spec) = child(object, "spec") {
        default_text(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = child(object, "status") {
        default_text(status, "phase", "Pending");
    }
}

pub(super) fn role_binding(object: &mut Fields) {
    for subject in each(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default_text(subject, "apiGroup", RBAC_GROUP);
        }
    }
    if let Some(role) = existing(object, "roleRef") {
        default_text(role, "apiGroup", RBAC_GROUP);
    }
}

pub(super) fn priority_class(object: &mut Fields) {
    default_text(object, "preemptionPolicy", "PreemptLowerPriority");
}

pub(super) fn storage_class(object: &mut Fields) {
    default_text(object, "reclaimPolicy", "Delete");
    default_text(object, "volumeBindingMode", "Immediate");
}

pub(super) fn csi_driver(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "attachRequired", true);
    default(spec, "podInfoOnMount", false);
    default(spec, "storageCapacity", false);
    default_text(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    default(spec, "volumeLifecycleModes", json!(["Persistent"]));
    default(spec, "requiresRepublish", false);
    default(spec, "seLinuxMount", false);
}

pub(super) fn custom_resource_definition(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    if let Some(names) = child(spec, "names") {
        let kind = text(names, "kind").to_string();
        default_text(names, "singular", &kind.to_lowercase());
        default_text(names, "listKind", &format!("{kind}List"));
    }
    if let Some(conversion) = child(spec, "conversion") {
        default_text(conversion, "strategy", "None");
        let client =
            existing(conversion, "webhook").and_then(|hook| existing(hook, "clientConfig"));
        if let Some(client) = client {
            service_port(client);
        }
    }
}

pub(super) fn api_service(object: &mut Fields) {
    if let Some(spec) = existing(object, "spec") {
        service_port(spec);
    }
}

/// Webhooks and aggregated APIs are reached at the port of HTTPS.
fn service_port(client: &mut Fields) {
    if let Some(service) = existing(client, "service") {
        default(service, "port", 443);
    }
}

pub(super) fn webhooks(object: &mut Fields) {
    for webhook in each(object, "webhooks") {
        if let Some(client) = existing(webhook, "clientConfig") {
            service_port(client);
        }
        match_rules(webhook);
        default(webhook, "timeoutSeconds", 10);
        each(webhook, "rules").for_each(|rule| default_text(rule, "scope", "*"));
    }
}

pub(super) fn mutating_webhooks(object: &mut Fields) {
    webhooks(object);
    for webhook in each(object, "webhooks") {
        default_text(webhook, "reinvocationPolicy", "Never");
    }
}

pub(super) fn admission_policy(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default_text(spec, "failurePolicy", "Fail");
    let Some(constraints) = existing(spec, "matchConstraints") else {
        return;
    };
    default_text(constraints, "matchPolicy", "Equivalent");
    default(constraints, "namespaceSelector", json!({}));
    default(constraints, "objectSelector", json!({}));
    each(constraints, "resourceRules").for_each(|rule| default_text(rule, "scope", "*"));
}

fn match_rules(webhook: &mut Fields) {
    default_text(webhook, "failurePolicy", "Fail");
    default_text(webhook, "matchPolicy", "Equivalent");
    default(webhook, "namespaceSelector", json!({}));
    default(webhook, "objectSelector", json!({}));
}

pub(super) fn flow_schema(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    if spec.get("matchingPrecedence").is_none_or(|value| value == 0) {
        spec.insert("matchingPrecedence".to_string(), Value::from(1000));
    }
}

pub(super) fn priority_level(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    if let Some(exempt) = existing(spec, "exempt") {
        default(exempt, "nominalConcurrencyShares", 0);
        default(exempt, "lendablePercent", 0);
    }
    let Some(limited) = existing(spec, "limited") else {
        return;
    };
    default(limited, "nominalConcurrencyShares", 30);
    default(limited, "lendablePercent", 0);
    let Some(response) = existing(limited, "limitResponse") else {
        return;
    };
    if let Some(queuing) = existing(response, "queuing") {
        default(queuing, "queues", 64);
        default(queuing, "queueLengthLimit", 50);
        default(queuing, "handSize", 8);
    }
}
