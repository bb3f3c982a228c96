//! Rules for configuration, nodes, events, leases, priorities and API services.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::pod::quantity;
use super::{Errors, Reason, at, entries, flag, get, integer, is_empty, nth};
use crate::meta::{self, items, text};
use crate::{Object, names};

/// Largest ConfigMap or Secret, all values together.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const FROZEN: &str = "field is immutable when `immutable` is set";
/// What users may not see when their Secret is refused.
const REDACTED: &str = "<secret contents redacted>";
/// Above this are the priorities of the system.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn config_map(object: &Object, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        let field = format!("data[{key}]");
        errors.complaints(&field, key, names::config_key(key));
        if get(object, "binaryData").get(key).is_some() {
            errors.invalid(&field, key.as_str(), "duplicate of key present in binaryData");
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        let field = format!("binaryData[{key}]");
        errors.complaints(&field, key, names::config_key(key));
        size += decoded(value, &field, errors).map_or(0, |bytes| bytes.len());
    }
    if size > DATA_BYTES_MAX {
        errors.too_long("", DATA_BYTES_MAX);
    }
}

pub(super) fn config_map_change(new: &Object, old: &Object, errors: &mut Errors) {
    frozen(new, old, &["data", "binaryData"], errors);
}

/// What `immutable: true` promises: it stays, and so does the data.
fn frozen(new: &Object, old: &Object, fields: &[&str], errors: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        errors.forbidden("immutable", FROZEN);
    }
    for field in fields {
        let is_same =
            is_empty(new, field) && is_empty(old, field) || get(new, field) == get(old, field);
        if !is_same {
            errors.forbidden(field, FROZEN);
        }
    }
}

/// The bytes of a value in base64, or a complaint that does not repeat them.
fn decoded(value: &Value, field: &str, errors: &mut Errors) -> Option<Vec<u8>> {
    match STANDARD.decode(value.as_str().unwrap_or("")) {
        Ok(bytes) => Some(bytes),
        Err(_) => {
            errors.invalid(field, REDACTED, "illegal base64 data");
            None
        }
    }
}

/// (type of Secret, keys it needs)
const SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

pub(super) fn secret(object: &Object, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        let field = format!("data[{key}]");
        errors.complaints(&field, key, names::config_key(key));
        size += decoded(value, &field, errors).map_or(0, |bytes| bytes.len());
    }
    if size > DATA_BYTES_MAX {
        errors.too_long("data", DATA_BYTES_MAX);
    }
    let kind = text(object, "type");
    let data = get(object, "data");
    if let Some((_, keys)) = SECRET_KEYS.iter().find(|(name, _)| *name == kind) {
        for key in keys.iter().filter(|key| data.get(**key).is_none()) {
            errors.required(&format!("data[{key}]"), "");
        }
    }
    match kind {
        "kubernetes.io/dockercfg" => is_json(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => is_json(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" => {
            let keys = ["username", "password"];
            if keys.iter().all(|key| data.get(*key).is_none()) {
                keys.iter().for_each(|key| errors.required(&format!("data[{key}]"), ""));
            }
        }
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if meta::annotation(object, annotation).unwrap_or("").is_empty() {
                errors.required(&format!("metadata.annotations[{annotation}]"), "");
            }
        }
        _ => {}
    }
}

fn is_json(data: &Value, key: &str, errors: &mut Errors) {
    let Some(value) = data.get(key).and_then(Value::as_str) else {
        return;
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
        errors.invalid(&format!("data[{key}]"), REDACTED, &error.to_string());
    }
}

pub(super) fn secret_change(new: &Object, old: &Object, errors: &mut Errors) {
    errors.immutable("type", new.get("type"), old.get("type"));
    frozen(new, old, &["data"], errors);
}

pub(super) fn node(object: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in items(get(object, "spec"), "taints").iter().enumerate() {
        // A stock server reports taints under metadata, and tools know them by that path.
        let path = nth("metadata", "taints", index);
        let (key, value, effect) =
            (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.complaints(&at(&path, "key"), key, names::qualified(key));
        let complaints = names::label_value(value);
        if let Some(first) = complaints.first() {
            errors.invalid(&at(&path, "value"), value, first);
        }
        match effect {
            "" => errors.required(&at(&path, "effect"), ""),
            effect => errors.one_of(&at(&path, "effect"), effect, EFFECTS),
        }
        if !seen.insert((key, effect)) {
            let rule = "taints must be unique by key and effect pair";
            errors.add(Reason::Duplicate, &path, format!("Duplicate value: {taint}: {rule}"));
        }
    }
    for (index, cidr) in items(get(object, "spec"), "podCIDRs").iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or("");
        if !names::is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(&nth("spec", "podCIDRs", index), cidr, detail);
        }
    }
    for list in ["capacity", "allocatable"] {
        for (name, amount) in entries(get(object, "status"), list) {
            quantity(amount, &format!("status.{list}[{name}]"), errors);
        }
    }
}

pub(super) fn node_change(new: &Object, old: &Object, errors: &mut Errors) {
    let (new, old) = (get(new, "spec"), get(old, "spec"));
    let rules = [
        ("podCIDR", "podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
        (
            "providerID",
            "providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ];
    for (key, field, detail) in rules {
        let before = text(old, key);
        if !before.is_empty() && text(new, key) != before {
            errors.forbidden(&at("spec", field), detail);
        }
    }
}

/// Longest texts of an event that has a time of its own, in characters.
const EVENT_WORDS_MAX: usize = 128;
const EVENT_MESSAGE_MAX: usize = 1024;

/// An event in either form. One that has an `eventTime` must say more about itself.
pub(super) fn event(object: &Object, errors: &mut Errors) {
    // The older and the newer form name the object of an event differently.
    let key = if object.get("regarding").is_some() { "regarding" } else { "involvedObject" };
    let involved = text(get(object, key), "namespace");
    let namespace = meta::namespace(object);
    let has_time = !text(object, "eventTime").is_empty();
    let belongs = match has_time {
        false => involved == namespace || involved.is_empty() && namespace == "default",
        true => !involved.is_empty() || matches!(namespace, "default" | "kube-system"),
    };
    if !belongs {
        errors.invalid(&at(key, "namespace"), involved, "does not match event.namespace");
    }
    if !has_time {
        return;
    }
    let newer = object.get("reportingController").is_some();
    let reporter = if newer { "reportingController" } else { "reportingComponent" };
    match text(object, reporter) {
        "" => errors.required(reporter, ""),
        name => errors.complaints(reporter, name, names::qualified(name)),
    }
    for key in ["reportingInstance", "action", "reason"] {
        match text(object, key) {
            "" => errors.required(key, ""),
            words if words.chars().count() > EVENT_WORDS_MAX => {
                let detail = format!("can have at most {EVENT_WORDS_MAX} characters");
                errors.invalid(key, "", &detail);
            }
            _ => {}
        }
    }
    let message = if object.get("note").is_some() { "note" } else { "message" };
    if text(object, message).chars().count() > EVENT_MESSAGE_MAX {
        let detail = format!("can have at most {EVENT_MESSAGE_MAX} characters");
        errors.invalid(message, "", &detail);
    }
}

/// What only a new event in the newer form has to obey.
pub(super) fn only_on_create(object: &Object, errors: &mut Errors) {
    if text(object, "eventTime").is_empty() {
        errors.required("eventTime", "");
    }
    let kind = text(object, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid("type", "", &format!("has invalid value: {kind}"));
    }
    for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
        if !text(object, key).is_empty() {
            let field = key.trim_start_matches("deprecated");
            let field = format!("{}{}", field[..1].to_lowercase(), &field[1..]);
            errors.invalid(&field, "", "needs to be unset");
        }
    }
    if integer(object, "deprecatedCount").is_some_and(|count| count != 0) {
        errors.invalid("count", "", "needs to be unset");
    }
    if !is_empty(object, "deprecatedSource") {
        errors.invalid("source", "", "needs to be unset");
    }
}

pub(super) fn lease(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    if let Some(seconds) = integer(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    errors.not_negative(spec, "spec", "leaseTransitions");
}

pub(super) fn api_service(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let wanted = format!("{version}.{group}");
    if meta::name(object) != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.invalid("metadata.name", meta::name(object), &detail);
    }
    if !group.is_empty() {
        errors.complaints("spec.group", group, names::subdomain(group));
    } else if version != "v1" {
        errors
            .required("spec.group", "only v1 may have an empty group and it better be legacy kube");
    }
    errors.complaints("spec.version", version, names::label_1035(version));
    for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let priority = integer(spec, key).unwrap_or(0);
        if !(1..=most).contains(&priority) {
            let detail = format!("must be positive and less than {most}");
            errors.invalid(&at("spec", key), priority, &detail);
        }
    }
    let bundle = text(spec, "caBundle");
    let skips = flag(spec, "insecureSkipTLSVerify");
    let target = get(spec, "service");
    if !target.is_null() {
        super::admission::service(target, "spec.service", errors);
        if skips && !bundle.is_empty() {
            let detail = "may not be true if caBundle is present";
            errors.invalid("spec.insecureSkipTLSVerify", true, detail);
        }
        return;
    }
    if !bundle.is_empty() {
        errors.invalid("spec.caBundle", bundle, "local APIServices may not have a caBundle");
    }
    if skips {
        let detail = "local APIServices may not have insecureSkipTLSVerify";
        errors.invalid("spec.insecureSkipTLSVerify", true, detail);
    }
}

pub(super) fn runtime_class(object: &Object, errors: &mut Errors) {
    let handler = text(object, "handler");
    errors.complaints("handler", handler, names::label(handler));
}

pub(super) fn runtime_class_change(new: &Object, old: &Object, errors: &mut Errors) {
    errors.immutable("handler", new.get("handler"), old.get("handler"));
}

pub(super) fn priority_class(object: &Object, errors: &mut Errors) {
    let name = meta::name(object);
    let value = integer(object, "value").unwrap_or(0);
    if name.starts_with("system-") {
        let is_known = matches!(name, "system-cluster-critical" | "system-node-critical");
        if !is_known {
            let detail = "priority class names with 'system-' prefix are reserved for system use \
                only. error: not a valid system priority class";
            errors.forbidden("metadata.name", detail);
        }
    } else if value > USER_PRIORITY_MAX {
        let detail =
            format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        errors.forbidden("value", &detail);
    }
    let policy = text(object, "preemptionPolicy");
    if !policy.is_empty() {
        errors.one_of("preemptionPolicy", policy, &["Never", "PreemptLowerPriority"]);
    }
}

pub(super) fn priority_change(new: &Object, old: &Object, errors: &mut Errors) {
    if integer(new, "value") != integer(old, "value") {
        errors.forbidden("value", "may not be changed in an update.");
    }
    errors.immutable("preemptionPolicy", new.get("preemptionPolicy"), old.get("preemptionPolicy"));
}

pub(super) fn revision(object: &Object, errors: &mut Errors) {
    if object.get("data").is_none() {
        errors.required("data", "data is mandatory");
    }
    errors.not_negative(object, "", "revision");
}

pub(super) fn revision_change(new: &Object, old: &Object, errors: &mut Errors) {
    errors.immutable("data", new.get("data"), old.get("data"));
}
