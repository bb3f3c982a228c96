//! Tables of namespaces, nodes, configuration, storage, events, access rules and extensions.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, CREATED, Column, NAME, NONE, Row, age, column, count, created, duration, field, list,
    name, number, or_none, scalar, since, size,
};
use crate::meta::{self, items, text};
use crate::{Object, conditions};

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

pub(super) const TABLES: &[Row] = &[
    ("", "namespaces", NAMESPACE, namespace),
    ("", "nodes", NODE, node),
    ("", "configmaps", CONFIG_MAP, config_map),
    ("", "secrets", SECRET, secret),
    ("", "serviceaccounts", SERVICE_ACCOUNT, service_account),
    ("", "events", EVENT, event),
    ("events.k8s.io", "events", EVENT, event),
    ("", "componentstatuses", COMPONENT, component),
    ("", "resourcequotas", QUOTA, quota),
    ("", "limitranges", CREATED_ONLY, created_only),
    ("", "persistentvolumes", VOLUME, volume),
    ("", "persistentvolumeclaims", CLAIM, claim),
    ("storage.k8s.io", "storageclasses", STORAGE_CLASS, storage_class),
    ("storage.k8s.io", "csinodes", CSI_NODE, csi_node),
    ("storage.k8s.io", "volumeattachments", ATTACHMENT, attachment),
    (RBAC, "roles", CREATED_ONLY, created_only),
    (RBAC, "clusterroles", CREATED_ONLY, created_only),
    (RBAC, "rolebindings", BINDING, binding),
    (RBAC, "clusterrolebindings", BINDING, binding),
    ("apiextensions.k8s.io", "customresourcedefinitions", CREATED_ONLY, created_only),
    ("apiregistration.k8s.io", "apiservices", API_SERVICE, api_service),
    ("coordination.k8s.io", "leases", LEASE, lease),
    ("certificates.k8s.io", "certificatesigningrequests", REQUEST, request),
    ("node.k8s.io", "runtimeclasses", RUNTIME_CLASS, runtime_class),
    ("scheduling.k8s.io", "priorityclasses", PRIORITY, priority),
    (ADMISSION, "mutatingwebhookconfigurations", WEBHOOKS, webhooks),
    (ADMISSION, "validatingwebhookconfigurations", WEBHOOKS, webhooks),
];

const CREATED_ONLY: &[Column] = &[NAME, CREATED];

fn created_only(object: &Object, _: Timestamp) -> Vec<Value> {
    vec![name(object), created(object)]
}

const NAMESPACE: &[Column] =
    &[NAME, column("Status", "Whether the namespace is in use or going away"), AGE];

fn namespace(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(field(object, "/status/phase")), age(object, now)]
}

const NODE: &[Column] = &[
    NAME,
    column("Status", "Whether the node is ready, and takes new Pods"),
    column("Roles", "What the node is for"),
    AGE,
    column("Version", "The version of the node's agent"),
    column("Internal-IP", "The address inside the cluster").wide(),
    column("External-IP", "The address outside the cluster").wide(),
    column("OS-Image", "The operating system").wide(),
    column("Kernel-Version", "The version of its kernel").wide(),
    column("Container-Runtime", "What runs the containers").wide(),
];

fn node(object: &Object, now: Timestamp) -> Vec<Value> {
    let address = |kind: &str| {
        let mut all = list(object, "/status/addresses").iter();
        or_none(all.find(|it| text(it, "type") == kind).map_or("", |it| text(it, "address")))
    };
    let info = |key: &str| match field(object, &format!("/status/nodeInfo/{key}")) {
        "" => Value::from("<unknown>"),
        value => Value::from(value),
    };
    vec![
        name(object),
        Value::from(node_status(object)),
        or_none(&node_roles(object)),
        age(object, now),
        Value::from(field(object, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn node_status(object: &Object) -> String {
    let ready = conditions::find(conditions::of(object), "Ready");
    let word = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let is_cordoned = object.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    format!("{word}{}", if is_cordoned { ",SchedulingDisabled" } else { "" })
}

fn node_roles(object: &Object) -> String {
    let mut roles: Vec<&str> = meta::labels(object)
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

const CONFIG_MAP: &[Column] = &[NAME, number("Data", "The number of values"), AGE];

fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    let size = size(object.get("data")) + size(object.get("binaryData"));
    vec![name(object), Value::from(size), age(object, now)]
}

const SECRET: &[Column] =
    &[NAME, column("Type", "What the Secret is for"), number("Data", "The number of values"), AGE];

fn secret(object: &Object, now: Timestamp) -> Vec<Value> {
    let kind = Value::from(text(object, "type"));
    vec![name(object), kind, Value::from(size(object.get("data"))), age(object, now)]
}

const SERVICE_ACCOUNT: &[Column] =
    &[NAME, number("Secrets", "The number of Secrets of the account"), AGE];

fn service_account(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(size(object.get("secrets"))), age(object, now)]
}

const EVENT: &[Column] = &[
    column("Last Seen", "The time since it happened last"),
    column("Type", "Normal or Warning"),
    column("Reason", "What happened, in one word"),
    column("Object", "What it happened to"),
    column("Subobject", "The part of the object").wide(),
    column("Source", "Who says so").wide(),
    column("Message", "What happened, in a sentence"),
    column("First Seen", "The time since it happened first").wide(),
    number("Count", "How often it happened").wide(),
    Column { priority: 1, ..NAME },
];

/// Both forms of events: the older and the newer one call the same things by other names.
fn event(object: &Object, now: Timestamp) -> Vec<Value> {
    let either = |old: &str, new: &str| match scalar(object.pointer(old)).as_str() {
        "" => scalar(object.pointer(new)),
        value => value.to_string(),
    };
    let involved = ["involvedObject", "regarding"].iter().find_map(|key| object.get(*key));
    let involved = involved.unwrap_or(&Value::Null);
    let event_time = field(object, "/eventTime").to_string();
    let or_event_time = |time: String| {
        if time.is_empty() { event_time.clone() } else { time }
    };
    let first = or_event_time(either("/firstTimestamp", "/deprecatedFirstTimestamp"));
    let series = field(object, "/series/lastObservedTime");
    let last = match series {
        "" => or_event_time(either("/lastTimestamp", "/deprecatedLastTimestamp")),
        series => series.to_string(),
    };
    let last = if last.is_empty() { first.clone() } else { last };
    let counted = count(object, "/count").max(count(object, "/deprecatedCount"));
    let counted = counted.max(count(object, "/series/count")).max(1);
    let kind = text(involved, "kind").to_lowercase();
    vec![
        Value::from(since(&last, now)),
        Value::from(text(object, "type")),
        Value::from(text(object, "reason")),
        Value::from(format!("{kind}/{}", text(involved, "name"))),
        Value::from(text(involved, "fieldPath")),
        Value::from(event_source(object)),
        Value::from(either("/message", "/note").trim().to_string()),
        Value::from(since(&first, now)),
        Value::from(counted),
        name(object),
    ]
}

fn event_source(object: &Object) -> String {
    let pairs = [
        ("/source/component", "/source/host"),
        ("/deprecatedSource/component", "/deprecatedSource/host"),
        ("/reportingComponent", "/reportingInstance"),
        ("/reportingController", "/reportingInstance"),
    ];
    let parts = pairs.map(|(component, host)| (field(object, component), field(object, host)));
    match parts.into_iter().find(|(component, _)| !component.is_empty()) {
        None => String::new(),
        Some((component, "")) => component.to_string(),
        Some((component, host)) => format!("{component}, {host}"),
    }
}

const COMPONENT: &[Column] = &[
    NAME,
    column("Status", "Whether the component works"),
    column("Message", "What it says"),
    column("Error", "What is wrong"),
];

fn component(object: &Object, _: Timestamp) -> Vec<Value> {
    let healthy = conditions::find(items(object, "conditions"), "Healthy");
    let healthy = healthy.unwrap_or(&Value::Null);
    let status = match text(healthy, "status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    };
    let (message, error) = (text(healthy, "message"), text(healthy, "error"));
    vec![name(object), Value::from(status), Value::from(message), Value::from(error)]
}

const QUOTA: &[Column] = &[
    NAME,
    column("Request", "What is requested, of what may be"),
    column("Limit", "The limits in use, of what they may be"),
    AGE,
];

fn quota(object: &Object, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let hard = object.pointer("/status/hard").or_else(|| object.pointer("/spec/hard"));
    for (resource, hard) in hard.and_then(Value::as_object).into_iter().flatten() {
        let used = object.pointer("/status/used").and_then(|used| used.get(resource));
        let used = scalar(used);
        let used = if used.is_empty() { "0" } else { &used };
        let line = format!("{resource}: {used}/{}", scalar(Some(hard)));
        let kind = if resource.starts_with("limits") { &mut limits } else { &mut requests };
        kind.push(line);
    }
    requests.sort();
    limits.sort();
    vec![
        name(object),
        Value::from(requests.join(", ")),
        Value::from(limits.join(", ")),
        age(object, now),
    ]
}

const VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "The size"),
    column("Access Modes", "Who may mount it, and how"),
    column("Reclaim Policy", "What happens to it after its claim"),
    column("Status", "Whether it is bound"),
    column("Claim", "The claim that it is bound to"),
    column("StorageClass", "The class that it belongs to"),
    column("VolumeAttributesClass", "The class of its attributes"),
    column("Reason", "Why it is in this state"),
    AGE,
    column("VolumeMode", "Files or blocks").wide(),
];

fn volume(object: &Object, now: Timestamp) -> Vec<Value> {
    let claim = match field(object, "/spec/claimRef/name") {
        "" => String::new(),
        claim => format!("{}/{claim}", field(object, "/spec/claimRef/namespace")),
    };
    vec![
        name(object),
        Value::from(scalar(object.pointer("/spec/capacity/storage"))),
        Value::from(access_modes(object, "/spec/accessModes")),
        Value::from(field(object, "/spec/persistentVolumeReclaimPolicy")),
        Value::from(volume_phase(object)),
        Value::from(claim),
        Value::from(field(object, "/spec/storageClassName")),
        attributes_class(object),
        Value::from(field(object, "/status/reason")),
        age(object, now),
        or_unset(field(object, "/spec/volumeMode")),
    ]
}

const CLAIM: &[Column] = &[
    NAME,
    column("Status", "Whether it is bound"),
    column("Volume", "The volume that it is bound to"),
    column("Capacity", "The size of the volume"),
    column("Access Modes", "Who may mount it, and how"),
    column("StorageClass", "The class that it asks for"),
    column("VolumeAttributesClass", "The class of its attributes"),
    AGE,
    column("VolumeMode", "Files or blocks").wide(),
];

fn claim(object: &Object, now: Timestamp) -> Vec<Value> {
    let is_bound = !field(object, "/spec/volumeName").is_empty();
    let capacity = object.pointer("/status/capacity/storage").filter(|_| is_bound);
    let modes = if is_bound { access_modes(object, "/status/accessModes") } else { String::new() };
    vec![
        name(object),
        Value::from(volume_phase(object)),
        Value::from(field(object, "/spec/volumeName")),
        Value::from(scalar(capacity)),
        Value::from(modes),
        Value::from(field(object, "/spec/storageClassName")),
        attributes_class(object),
        age(object, now),
        or_unset(field(object, "/spec/volumeMode")),
    ]
}

fn volume_phase(object: &Object) -> &str {
    if meta::is_deleting(object) { "Terminating" } else { field(object, "/status/phase") }
}

fn attributes_class(object: &Object) -> Value {
    or_unset(field(object, "/spec/volumeAttributesClassName"))
}

fn or_unset(text: &str) -> Value {
    Value::from(if text.is_empty() { "<unset>" } else { text })
}

fn access_modes(object: &Object, path: &str) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| list(object, path).iter().any(|it| it.as_str() == Some(mode));
    let present = short.iter().filter(|(mode, _)| has(mode));
    present.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

const STORAGE_CLASS: &[Column] = &[
    NAME,
    column("Provisioner", "Who makes the volumes"),
    column("ReclaimPolicy", "What happens to volumes after their claims"),
    column("VolumeBindingMode", "When claims are bound"),
    column("AllowVolumeExpansion", "Whether volumes may grow"),
    AGE,
];

fn storage_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let annotation = "storageclass.kubernetes.io/is-default-class";
    let is_default = meta::annotation(object, annotation) == Some("true");
    let name = format!("{}{}", meta::name(object), if is_default { " (default)" } else { "" });
    let expands = object.get("allowVolumeExpansion") == Some(&Value::Bool(true));
    vec![
        Value::from(name),
        Value::from(text(object, "provisioner")),
        Value::from(text(object, "reclaimPolicy")),
        Value::from(text(object, "volumeBindingMode")),
        Value::from(expands),
        age(object, now),
    ]
}

const CSI_NODE: &[Column] = &[NAME, number("Drivers", "The number of drivers"), AGE];

fn csi_node(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(size(object.pointer("/spec/drivers"))), age(object, now)]
}

const ATTACHMENT: &[Column] = &[
    NAME,
    column("Attacher", "Who attaches the volume"),
    column("PV", "The volume"),
    column("Node", "The node"),
    column("Attached", "Whether it is attached"),
    AGE,
];

fn attachment(object: &Object, now: Timestamp) -> Vec<Value> {
    let attached = object.pointer("/status/attached") == Some(&Value::Bool(true));
    vec![
        name(object),
        Value::from(field(object, "/spec/attacher")),
        Value::from(field(object, "/spec/source/persistentVolumeName")),
        Value::from(field(object, "/spec/nodeName")),
        Value::from(attached),
        age(object, now),
    ]
}

const BINDING: &[Column] = &[
    NAME,
    column("Role", "The role that is given"),
    AGE,
    column("Users", "The users it is given to").wide(),
    column("Groups", "The groups it is given to").wide(),
    column("ServiceAccounts", "The accounts it is given to").wide(),
];

fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let all = items(object, "subjects").iter().filter(|it| text(it, "kind") == kind);
        let names = all.map(|it| match text(it, "namespace") {
            "" => text(it, "name").to_string(),
            namespace => format!("{namespace}/{}", text(it, "name")),
        });
        Value::from(names.collect::<Vec<_>>().join(", "))
    };
    let (kind, role) = (field(object, "/roleRef/kind"), field(object, "/roleRef/name"));
    vec![
        name(object),
        Value::from(format!("{kind}/{role}")),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

const API_SERVICE: &[Column] = &[
    NAME,
    column("Service", "Who serves this version"),
    column("Available", "Whether it can be reached"),
    AGE,
];

fn api_service(object: &Object, now: Timestamp) -> Vec<Value> {
    let service = match field(object, "/spec/service/name") {
        "" => "Local".to_string(),
        service => format!("{}/{service}", field(object, "/spec/service/namespace")),
    };
    let available = conditions::find(conditions::of(object), "Available");
    let available = match available.map(|it| (text(it, "status"), text(it, "reason"))) {
        Some(("True", _)) => "True".to_string(),
        Some((status, reason)) => format!("{status} ({reason})"),
        None => "Unknown".to_string(),
    };
    vec![name(object), Value::from(service), Value::from(available), age(object, now)]
}

const LEASE: &[Column] = &[NAME, column("Holder", "Who holds the lease"), AGE];

fn lease(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(field(object, "/spec/holderIdentity")), age(object, now)]
}

const REQUEST: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "Who should sign"),
    column("Requestor", "Who asks"),
    column("RequestedDuration", "For how long"),
    column("Condition", "What became of it"),
];

fn request(object: &Object, now: Timestamp) -> Vec<Value> {
    let seconds = count(object, "/spec/expirationSeconds");
    let asked = Timestamp::from_second(seconds).ok().filter(|_| seconds > 0);
    let asked = asked.map_or(NONE.to_string(), |end| duration(Timestamp::UNIX_EPOCH, end));
    vec![
        name(object),
        age(object, now),
        or_none(field(object, "/spec/signerName")),
        Value::from(field(object, "/spec/username")),
        Value::from(asked),
        Value::from(request_condition(object)),
    ]
}

fn request_condition(object: &Object) -> String {
    let has = |kind| conditions::find(conditions::of(object), kind).is_some();
    let mut words = Vec::new();
    for kind in ["Approved", "Denied", "Failed"] {
        if has(kind) {
            words.push(kind);
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if !field(object, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

const RUNTIME_CLASS: &[Column] = &[NAME, column("Handler", "What runs such Pods"), AGE];

fn runtime_class(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(text(object, "handler")), age(object, now)]
}

const PRIORITY: &[Column] = &[
    NAME,
    number("Value", "The priority; higher goes first"),
    column("Global-Default", "Whether Pods without a class get this one"),
    AGE,
    column("PreemptionPolicy", "Whether such Pods push others out"),
];

fn priority(object: &Object, now: Timestamp) -> Vec<Value> {
    let is_default = object.get("globalDefault") == Some(&Value::Bool(true));
    vec![
        name(object),
        Value::from(count(object, "/value")),
        Value::from(is_default),
        age(object, now),
        Value::from(text(object, "preemptionPolicy")),
    ]
}

const WEBHOOKS: &[Column] = &[NAME, number("Webhooks", "The number of webhooks"), AGE];

fn webhooks(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), Value::from(size(object.get("webhooks"))), age(object, now)]
}
