//! Rules for Pods and for every PodSpec within another kind.

mod claims;
mod container;
mod placement;
mod security;
mod volume;
mod windows;

use std::collections::BTreeSet;

pub(super) use container::{port_or_name, quantity};
use serde_json::Value;

use super::metadata::{annotations, label_map, labels};
use super::{Errors, at, flag, get, integer, is_empty, nth};
use crate::meta::{items, text};
use crate::{Object, names};

const SECONDS_MAX: i64 = i32::MAX as i64;
/// Name servers that a resolver asks.
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
/// What a resolver takes.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCHES_LENGTH_MAX: usize = 2048;

/// What a Pod may change after it was created, as the refusal of anything else says it.
const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions \
    to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it \
    was previously negative)";

pub(super) fn pod(pod: &Object, errors: &mut Errors) {
    let spec = get(pod, "spec");
    pod_spec(spec, get(pod, "metadata"), "spec", errors);
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            container::padding(container, &nth("spec", list, index), errors);
        }
    }
}

pub(super) fn only_on_create(pod: &Object, errors: &mut Errors) {
    let spec = get(pod, "spec");
    if !is_empty(spec, "ephemeralContainers") {
        errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !is_empty(spec, "schedulingGates") && !text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden("spec.nodeName", detail);
    }
}

pub(super) fn pod_template(object: &Object, errors: &mut Errors) {
    template(get(object, "template"), "template", errors);
}

/// A template within another kind.
pub(super) fn template(template: &Value, path: &str, errors: &mut Errors) {
    labels(get(template, "metadata"), path, errors);
    annotations(get(template, "metadata"), path, errors);
    let spec = get(template, "spec");
    if !is_empty(spec, "ephemeralContainers") {
        let detail = "ephemeral containers not allowed in pod template";
        errors.forbidden(&at(path, "spec.ephemeralContainers"), detail);
    }
    pod_spec(spec, &Value::Null, &at(path, "spec"), errors);
}

/// `metadata` is that of the Pod; it is null where the spec is part of a template.
fn pod_spec(spec: &Value, metadata: &Value, path: &str, errors: &mut Errors) {
    let volumes = volume::volumes(spec, path, errors);
    let name = metadata.is_object().then(|| text(metadata, "name"));
    claims::named(spec, name, path, errors);
    container::containers(spec, path, &volumes, errors);
    if flag(spec, "hostNetwork") {
        container::ports_of_node(spec, path, errors);
    }
    match text(spec, "restartPolicy") {
        "" => errors.required(&at(path, "restartPolicy"), ""),
        policy => errors.one_of(&at(path, "restartPolicy"), policy, POLICIES),
    }
    errors.one_of(&at(path, "dnsPolicy"), text(spec, "dnsPolicy"), DNS_POLICIES);
    label_map(spec, path, "nodeSelector", errors);
    security::pod(spec, path, errors);
    let labels = get(metadata, "labels");
    placement::affinity(get(spec, "affinity"), labels, &at(path, "affinity"), errors);
    dns_config(spec, path, errors);
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let field = at(&nth(path, "readinessGates", index), "conditionType");
        errors.complaints(&field, kind, names::qualified(kind));
    }
    let mut gates = BTreeSet::new();
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let (name, path) = (text(gate, "name"), nth(path, "schedulingGates", index));
        errors.complaints(&path, name, names::qualified(name));
        if !gates.insert(name) {
            errors.duplicate(&path, name);
        }
    }
    placement::spread(spec, path, errors);
    windows::host_process(spec, path, errors);
    security::host_users(spec, path, errors);
    let account = text(spec, "serviceAccountName");
    if !account.is_empty() {
        errors.complaints(&at(path, "serviceAccountName"), account, names::subdomain(account));
    }
    let node = text(spec, "nodeName");
    if !node.is_empty() {
        errors.complaints(&at(path, "nodeName"), node, names::subdomain(node));
    }
    if let Some(seconds) = integer(spec, "activeDeadlineSeconds") {
        deadline(seconds, 1, &at(path, "activeDeadlineSeconds"), errors);
    }
    for key in ["hostname", "subdomain"] {
        let value = text(spec, key);
        if !value.is_empty() {
            errors.complaints(&at(path, key), value, names::label(value));
        }
    }
    tolerations(spec, path, errors);
    host_aliases(spec, path, errors);
    for key in ["priorityClassName", "runtimeClassName"] {
        let name = text(spec, key);
        if !name.is_empty() {
            errors.complaints(&at(path, key), name, names::subdomain(name));
        }
    }
    let policy = text(spec, "preemptionPolicy");
    if !policy.is_empty() {
        let supported = &["PreemptLowerPriority", "Never"];
        errors.one_of(&at(path, "preemptionPolicy"), policy, supported);
    }
    windows::system(spec, path, errors);
}

fn host_aliases(spec: &Value, path: &str, errors: &mut Errors) {
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let path = nth(path, "hostAliases", index);
        let address = text(alias, "ip");
        errors.complaints(&at(&path, "ip"), address, names::ip_address(address));
        for (index, name) in items(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or("");
            errors.complaints(&nth(&path, "hostnames", index), name, names::subdomain(name));
        }
    }
}

fn deadline(seconds: i64, least: i64, field: &str, errors: &mut Errors) {
    if !(least..=SECONDS_MAX).contains(&seconds) {
        let detail = format!("must be between {least} and {SECONDS_MAX}, inclusive");
        errors.invalid(field, seconds, &detail);
    }
}

fn dns_config(spec: &Value, path: &str, errors: &mut Errors) {
    let (config, path) = (get(spec, "dnsConfig"), at(path, "dnsConfig"));
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            return errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if is_empty(config, "nameservers") {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(&at(&path, "nameservers"), detail);
        }
    }
    let servers = items(config, "nameservers");
    if servers.len() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(&at(&path, "nameservers"), get(config, "nameservers").clone(), &detail);
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or("");
        errors.complaints(&nth(&path, "nameservers", index), server, names::ip_address(server));
    }
    let field = at(&path, "searches");
    let searches: Vec<&str> =
        items(config, "searches").iter().map(|search| search.as_str().unwrap_or("")).collect();
    if searches.len() > SEARCHES_MAX {
        let detail = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.invalid(&field, get(config, "searches").clone(), &detail);
    }
    if searches.join(" ").len() > SEARCHES_LENGTH_MAX {
        let detail = format!(
            "must not have more than {SEARCHES_LENGTH_MAX} characters (including spaces) in the \
             search list"
        );
        errors.invalid(&field, get(config, "searches").clone(), &detail);
    }
    for (index, search) in searches.iter().enumerate() {
        // The root alone is one as well.
        let name = search.strip_suffix('.').unwrap_or(search);
        if !(name.is_empty() && *search == ".") {
            errors.complaints(&nth(&path, "searches", index), name, names::search_domain(name));
        }
    }
    for (index, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(&nth(&path, "options", index), "must not be empty");
        }
    }
}

fn tolerations(spec: &Value, path: &str, errors: &mut Errors) {
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        let path = nth(path, "tolerations", index);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            errors.complaints(&at(&path, "key"), key, names::qualified(key));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, \
                which means \"match all values and all keys\"";
            errors.invalid(&at(&path, "operator"), operator, detail);
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&at(&path, "effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                let complaints = names::label_value(value);
                if let Some(first) = complaints.first() {
                    errors.invalid(&at(&path, "operator"), value, first);
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&at(&path, "operator"), toleration.clone(), detail);
            }
            "Gt" | "Lt" => {
                if !value.parse::<i64>().is_ok_and(|number| number.to_string() == value) {
                    let detail = "must be an integer when `operator` is 'Gt' or 'Lt'";
                    errors.invalid(&at(&path, "value"), value, detail);
                }
            }
            other => {
                let known = &["Equal", "Exists", "Gt", "Lt"];
                errors.unsupported(&at(&path, "operator"), other, known);
            }
        }
        if !effect.is_empty() {
            errors.one_of(&at(&path, "effect"), effect, EFFECTS);
        }
    }
}

/// A Pod is immutable but for a few fields. The new spec is set back in those fields, and what then
/// still differs is refused.
pub(super) fn change(new: &Object, old: &Object, errors: &mut Errors) {
    let (new_spec, old_spec) = (get(new, "spec"), get(old, "spec"));
    let before = errors.0.len();
    for list in ["containers", "initContainers"] {
        if items(new_spec, list).len() != items(old_spec, list).len() {
            let detail = "pod updates may not add or remove containers";
            errors.forbidden(&at("spec", list), detail);
        }
    }
    if errors.0.len() > before {
        return;
    }
    deadline_change(new_spec, old_spec, errors);
    toleration_change(new_spec, old_spec, errors);
    gate_change(new_spec, old_spec, errors);
    let mut munged = new_spec.clone();
    let kept = ["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    for key in kept {
        keep(&mut munged, old_spec, key);
    }
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut);
        for (new, old) in containers.into_iter().flatten().zip(items(old_spec, list)) {
            keep(new, old, "image");
        }
    }
    let grace = |spec: &Value| integer(spec, "terminationGracePeriodSeconds");
    if grace(old_spec).is_some_and(|old| old < 0) && grace(new_spec) == Some(1) {
        keep(&mut munged, old_spec, "terminationGracePeriodSeconds");
    }
    // A Pod that waits behind a gate may still be pointed at fewer nodes.
    if !is_empty(old_spec, "schedulingGates") && is_narrower(new_spec, old_spec) {
        keep(&mut munged, old_spec, "nodeSelector");
    }
    let mut changed = Vec::new();
    differences("spec", &munged, old_spec, &mut changed);
    if !changed.is_empty() {
        errors.forbidden("spec", &format!("{UPDATABLE}\nchanged: {}", changed.join(", ")));
    }
}

/// Puts one field of `new` back to what it was.
fn keep(new: &mut Value, old: &Value, key: &str) {
    let Some(fields) = new.as_object_mut() else {
        return;
    };
    match old.get(key) {
        Some(value) => {
            fields.insert(key.to_string(), value.clone());
        }
        None => {
            fields.shift_remove(key);
        }
    }
}

fn deadline_change(new: &Value, old: &Value, errors: &mut Errors) {
    let field = "spec.activeDeadlineSeconds";
    let key = "activeDeadlineSeconds";
    match (integer(new, key), integer(old, key)) {
        (Some(after), before) => {
            deadline(after, 0, field, errors);
            if before.is_some_and(|before| after > before) {
                errors.invalid(field, after, "must be less than or equal to previous value");
            }
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid(field, Value::Null, detail);
        }
        (None, None) => {}
    }
}

/// Tolerations may be added, and their seconds may change.
fn toleration_change(new: &Value, old: &Value, errors: &mut Errors) {
    fn what(toleration: &Value) -> [&str; 4] {
        ["key", "operator", "value", "effect"].map(|key| text(toleration, key))
    }
    let after: BTreeSet<[&str; 4]> = items(new, "tolerations").iter().map(what).collect();
    if !items(old, "tolerations").iter().all(|before| after.contains(&what(before))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden("spec.tolerations", detail);
    }
}

fn gate_change(new: &Value, old: &Value, errors: &mut Errors) {
    let before: BTreeSet<&str> =
        items(old, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    for (index, gate) in items(new, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !before.contains(&name) {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&at(&nth("spec", "schedulingGates", index), "name"), &detail);
        }
    }
}

/// Whether every old entry of the node selector is still there.
fn is_narrower(new: &Value, old: &Value) -> bool {
    let new = get(new, "nodeSelector");
    super::entries(old, "nodeSelector").all(|(key, value)| new.get(key) == Some(value))
}

/// Paths at which two values differ; lists of another length differ as a whole.
fn differences(path: &str, new: &Value, old: &Value, found: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
            for key in keys {
                let (new, old) = (new.get(key), old.get(key));
                let null = Value::Null;
                differences(&at(path, key), new.unwrap_or(&null), old.unwrap_or(&null), found);
            }
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            for (index, (new, old)) in new.iter().zip(old).enumerate() {
                differences(&format!("{path}[{index}]"), new, old, found);
            }
        }
        _ if new == old => {}
        _ => found.push(path.to_string()),
    }
}

/// Ephemeral containers are added and never taken away or changed.
pub(super) fn ephemeral_change(new: &Object, old: &Object, errors: &mut Errors) {
    const FIELD: &str = "spec.ephemeralContainers";
    let list = |pod: &Object| -> Vec<Value> {
        let list = pod.pointer("/spec/ephemeralContainers").and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let wanted = list(new);
    for container in list(old) {
        let name = get(&container, "name");
        match wanted.iter().find(|other| get(other, "name") == name) {
            None => {
                let detail = format!("existing ephemeral containers {name} may not be removed");
                errors.forbidden(FIELD, &detail);
            }
            Some(other) if *other != container => {
                let detail = format!("existing ephemeral containers {name} may not be changed");
                errors.forbidden(FIELD, &detail);
            }
            Some(_) => {}
        }
    }
}

/// A Pod keeps its class: what it was promised when it was placed.
pub(super) fn resources_change(new: &Object, old: &Object, errors: &mut Errors) {
    let class =
        |pod: &Object| pod.get("spec").and_then(Value::as_object).map(crate::defaults::qos_class);
    if let Some(wanted) = class(new).filter(|wanted| Some(*wanted) != class(old)) {
        errors.invalid("spec", wanted, "Pod QOS Class may not change as a result of resizing");
    }
}

/// The node agent writes status; a container that ended for good stays ended.
pub(super) fn status_change(new: &Object, old: &Object, errors: &mut Errors) {
    let policy = text(get(old, "spec"), "restartPolicy");
    if policy == "Always" || policy.is_empty() {
        return;
    }
    for old_status in items(get(old, "status"), "containerStatuses") {
        let code = old_status.pointer("/state/terminated/exitCode").and_then(Value::as_i64);
        let is_final = match (policy, code) {
            (_, None) => false,
            ("OnFailure", Some(code)) => code == 0,
            (_, Some(_)) => true,
        };
        let statuses = items(get(new, "status"), "containerStatuses");
        let same = statuses.iter().position(|it| text(it, "name") == text(old_status, "name"));
        if let Some(index) = same.filter(|_| is_final)
            && statuses[index].pointer("/state/terminated").is_none()
        {
            let field = format!("status.containerStatuses[{index}].state");
            errors.forbidden(&field, "may not be transitioned to non-terminated state");
        }
    }
}
