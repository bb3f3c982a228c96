//! Defaults of Pods and of everything with a Pod inside.
//!
//! A template gets the defaults of a PodSpec; a Pod gets some more that only a Pod has (requests
//! from limits, priority, tolerations, phase). What depends on other objects (ServiceAccount,
//! PriorityClass) is admission.

use serde_json::{Value, json};

use super::{Fields, child, default, default_text, drop_empty, each, existing, text};
use crate::quantity::Quantity;

/// Seconds that a Pod stays bound to a node that says that it is not ready, as in Kubernetes: it runs
/// on there, and may get well.
const NOT_READY_SECONDS: i64 = 300;
/// Seconds that a Pod stays bound to a node that says nothing any more. The node is called lost after
/// 5 s of silence; with these its Pods run elsewhere within 10 s.
const UNREACHABLE_SECONDS: i64 = 3;
/// rw-r--r--: the mode of files made from ConfigMaps, Secrets and their like.
const FILE_MODE: i64 = 0o644;
/// Classes that exist in every cluster and their values.
const SYSTEM_PRIORITIES: &[(&str, i64)] =
    &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Maps inside of a Pod. Any other object is a struct, and says something by being there.
const MAPS: &[&str] = &[
    "annotations",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "options",
    "overhead",
    "requests",
    "volumeAttributes",
];
/// Lists inside of a Pod that may be absent.
const LISTS: &[&str] = &[
    "add",
    "args",
    "claims",
    "command",
    "drop",
    "env",
    "envFrom",
    "ephemeralContainers",
    "hostAliases",
    "hostnames",
    "httpHeaders",
    "imagePullSecrets",
    "initContainers",
    "items",
    "matchExpressions",
    "matchFields",
    "matchLabelKeys",
    "mismatchLabelKeys",
    "nameservers",
    "namespaces",
    "options",
    "ports",
    "preferredDuringSchedulingIgnoredDuringExecution",
    "readinessGates",
    "resourceClaims",
    "schedulingGates",
    "searches",
    "supplementalGroups",
    "sysctls",
    "tolerations",
    "topologySpreadConstraints",
    "values",
    "volumeDevices",
    "volumeMounts",
    "volumes",
];

pub(super) fn pod(pod: &mut Fields) {
    let Some(spec) = child(pod, "spec") else {
        return;
    };
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
        }
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        host_ports(spec);
    }
    default(spec, "enableServiceLinks", true);
    priority(spec);
    tolerations(spec);
    let class = qos_class(spec);
    if let Some(status) = child(pod, "status") {
        default_text(status, "phase", "Pending");
        default_text(status, "qosClass", class);
    }
}

pub(super) fn pod_template(object: &mut Fields) {
    template(object);
}

/// The `template` of a workload, or of a PodTemplate object.
pub(super) fn template(fields: &mut Fields) {
    let Some(template) = existing(fields, "template") else {
        return;
    };
    if let Some(metadata) = existing(template, "metadata") {
        drop_empty(metadata, MAPS, &[]);
    }
    if let Some(spec) = child(template, "spec") {
        pod_spec(spec);
    }
}

/// Drops maps and lists in which nothing is, at any depth: a template that no longer has them is
/// the same one, and its Pods stay.
fn drop_hollow(fields: &mut Fields) {
    drop_empty(fields, MAPS, LISTS);
    for value in fields.values_mut() {
        match value {
            Value::Object(inner) => drop_hollow(inner),
            Value::Array(items) => {
                items.iter_mut().filter_map(Value::as_object_mut).for_each(drop_hollow);
            }
            _ => {}
        }
    }
}

fn pod_spec(spec: &mut Fields) {
    drop_hollow(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in each(spec, list) {
            self::container(container);
        }
    }
    each(spec, "volumes").for_each(volume);
    default_text(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "dnsPolicy", "ClusterFirst");
    // The older name of the same field is written too, and read by older clients.
    let account = text(spec, "serviceAccountName").to_string();
    let deprecated = text(spec, "serviceAccount").to_string();
    match (account.is_empty(), deprecated.is_empty()) {
        (false, _) => {
            spec.insert("serviceAccount".to_string(), Value::from(account));
        }
        (true, false) => {
            spec.insert("serviceAccountName".to_string(), Value::from(deprecated));
        }
        (true, true) => {}
    }
    default(spec, "securityContext", json!({}));
    default_text(spec, "schedulerName", "default-scheduler");
}

fn container(container: &mut Fields) {
    each(container, "ports").for_each(|port| default_text(port, "protocol", "TCP"));
    for variable in each(container, "env") {
        if let Some(source) = existing(variable, "valueFrom") {
            field_reference(source);
        }
    }
    default(container, "resources", json!({}));
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = existing(container, name) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = existing(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    default_text(container, "imagePullPolicy", policy);
}

fn probe(probe: &mut Fields) {
    let numbers = [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ];
    for (key, number) in numbers {
        if probe.get(key).is_none_or(|old| old == 0) {
            probe.insert(key.to_string(), Value::from(number));
        }
    }
    http_get(probe);
    if let Some(grpc) = existing(probe, "grpc") {
        default(grpc, "service", "");
    }
}

fn http_get(handler: &mut Fields) {
    if let Some(get) = existing(handler, "httpGet") {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
}

fn field_reference(source: &mut Fields) {
    if let Some(reference) = existing(source, "fieldRef") {
        default_text(reference, "apiVersion", "v1");
    }
}

fn volume(volume: &mut Fields) {
    let has_source = volume.keys().any(|key| key != "name");
    if !has_source {
        volume.insert("emptyDir".to_string(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = existing(volume, source) {
            default(source, "defaultMode", FILE_MODE);
            each(source, "items").for_each(field_reference);
        }
    }
    if let Some(projected) = existing(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = existing(source, "serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = existing(source, "downwardAPI") {
                each(downward, "items").for_each(field_reference);
            }
        }
    }
    if let Some(path) = existing(volume, "hostPath") {
        default(path, "type", "");
    }
    let claim = existing(volume, "ephemeral").and_then(|it| existing(it, "volumeClaimTemplate"));
    if let Some(spec) = claim.and_then(|template| child(template, "spec")) {
        default_text(spec, "volumeMode", "Filesystem");
    }
}

/// `Always` for an image that may change under its name.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

/// A limit without a request is the request.
fn requests_from_limits(container: &mut Fields) {
    let Some(resources) = existing(container, "resources") else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    let Some(requests) = child(resources, "requests") else {
        return;
    };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn host_ports(spec: &mut Fields) {
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            for port in each(container, "ports") {
                if let Some(number) = port.get("containerPort").cloned() {
                    default(port, "hostPort", number);
                }
            }
        }
    }
}

/// The value of a class that exists in every cluster.
pub fn system_priority(class: &str) -> Option<i64> {
    SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == class).map(|(_, value)| *value)
}

fn priority(spec: &mut Fields) {
    let class = text(spec, "priorityClassName");
    let value = if class.is_empty() { Some(0) } else { system_priority(class) };
    if let Some(value) = value {
        default(spec, "priority", value);
        default_text(spec, "preemptionPolicy", "PreemptLowerPriority");
    }
}

/// Tolerates an absent node for a while, unless the Pod says itself what it tolerates.
fn tolerations(spec: &mut Fields) {
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else {
        return;
    };
    let stays = [
        ("node.kubernetes.io/not-ready", NOT_READY_SECONDS),
        ("node.kubernetes.io/unreachable", UNREACHABLE_SECONDS),
    ];
    for (taint, seconds) in stays {
        let is_tolerated = list.iter().filter_map(Value::as_object).any(|toleration| {
            let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
            let same_key = key == taint || key.is_empty();
            same_key && (effect == "NoExecute" || effect.is_empty())
        });
        if !is_tolerated {
            list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}));
        }
    }
}

/// `Guaranteed` when every container has equal requests and limits of cpu and memory, `BestEffort`
/// when none has any, else `Burstable`.
pub fn qos_class(spec: &Fields) -> &'static str {
    let lists = ["containers", "initContainers"].into_iter();
    let containers: Vec<&Value> =
        lists.filter_map(|list| spec.get(list)?.as_array()).flatten().collect();
    let amount = |container: &Value, which: &str, resource: &str| {
        let value = container.get("resources")?.get(which)?.get(resource)?;
        Quantity::of(value).filter(|quantity| !quantity.is_zero())
    };
    let (mut any, mut all) = (false, !containers.is_empty());
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = amount(container, "requests", resource);
            let limit = amount(container, "limits", resource);
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
