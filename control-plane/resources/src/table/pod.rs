//! The table of Pods, and what a Pod is doing in one word and in one sentence.
//!
//! The word is what kubectl users know (`Running`, `CrashLoopBackOff`, `Init:1/2`), but never a
//! bare `Pending`: a Pod that waits says for what. Programs read `status.phase`, which this does
//! not touch.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, Row, age, at, column, containers, count, duration, field, labels, list,
    name, or_none, size,
};
use crate::meta::{self, items, text};
use crate::read::Paths;
use crate::{Object, conditions};

pub(super) const TABLES: &[Row] =
    &[("", "pods", POD, pod), ("", "podtemplates", POD_TEMPLATE, pod_template)];

const POD: &[Column] = &[
    NAME,
    column("Ready", "The containers that are ready, of all containers"),
    column("Status", "What the Pod is doing, in one word"),
    column("Restarts", "How often containers were restarted, and when last"),
    AGE,
    column("IP", "The address of the Pod").wide(),
    column("Node", "The node that the Pod is bound to").wide(),
    column("Nominated Node", "The node that is being freed for the Pod").wide(),
    column("Readiness Gates", "The conditions that are met, of those the Pod waits for").wide(),
    column("Why", "Why the Pod is not running, in one sentence").wide(),
];

/// All that the cells of a Pod are made of.
pub(super) const PRINTED: Paths = &[
    &["metadata", "name"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["spec", "containers", "name"],
    &["spec", "initContainers", "name"],
    &["spec", "initContainers", "restartPolicy"],
    &["spec", "nodeName"],
    &["spec", "readinessGates"],
    &["status"],
];

const POD_TEMPLATE: &[Column] = &[
    NAME,
    column("Containers", "The names of the containers"),
    column("Images", "The images of the containers"),
    column("Pod Labels", "The labels of the Pods that are made from it"),
];

fn pod(pod: &Object, now: Timestamp) -> Vec<Value> {
    let containers = list(pod, "/spec/containers").len() + sidecars(pod).count();
    let ready = ready_containers(pod);
    vec![
        name(pod),
        Value::from(format!("{ready}/{containers}")),
        Value::from(status(pod)),
        Value::from(restarts(pod, now)),
        age(pod, now),
        or_none(field(pod, "/status/podIP")),
        or_none(field(pod, "/spec/nodeName")),
        or_none(field(pod, "/status/nominatedNodeName")),
        or_none(&readiness_gates(pod)),
        or_none(&why(pod)),
    ]
}

fn pod_template(object: &Object, _: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/template/spec"));
    vec![name(object), names, images, labels(object.pointer("/template/metadata/labels"))]
}

/// Init containers that keep running beside the others.
fn sidecars(pod: &Object) -> impl Iterator<Item = &Value> {
    let list = list(pod, "/spec/initContainers").iter();
    list.filter(|container| text(container, "restartPolicy") == "Always")
}

fn is_sidecar(pod: &Object, status: &Value) -> bool {
    sidecars(pod).any(|container| text(container, "name") == text(status, "name"))
}

fn is_running(status: &Value) -> bool {
    status.get("ready") == Some(&Value::Bool(true)) && at(status, "/state/running").is_some()
}

fn ready_containers(pod: &Object) -> usize {
    let init = list(pod, "/status/initContainerStatuses").iter();
    let init = init.filter(|status| is_sidecar(pod, status) && is_running(status)).count();
    init + list(pod, "/status/containerStatuses").iter().filter(|it| is_running(it)).count()
}

/// `3 (5m ago)`: restarts of the containers that matter now, and when the last one was.
fn restarts(pod: &Object, now: Timestamp) -> String {
    let all = list(pod, "/status/initContainerStatuses").iter();
    let counts_init = initializing(pod).is_some();
    let init = all.filter(|status| counts_init || is_sidecar(pod, status));
    let main: &[Value] = if counts_init { &[] } else { list(pod, "/status/containerStatuses") };
    let (mut restarts, mut last) = (0, None);
    for status in init.chain(main) {
        restarts += count(status, "/restartCount");
        let finished = meta::parse_time(field(status, "/lastState/terminated/finishedAt"));
        last = last.max(finished);
    }
    match last {
        Some(last) if restarts > 0 => format!("{restarts} ({} ago)", duration(last, now)),
        _ => restarts.to_string(),
    }
}

/// What a Pod is doing, in one word.
pub fn status(pod: &Object) -> String {
    let phase = field(pod, "/status/phase");
    let mut word = match field(pod, "/status/reason") {
        "" => phase.to_string(),
        reason => reason.to_string(),
    };
    if let Some(reason) = unscheduled(pod) {
        word = reason.to_string();
    }
    let is_initialized = conditions::is_true(conditions::of(pod), "Initialized");
    let init = initializing(pod);
    match init {
        Some(init) if !is_initialized => word = init,
        _ => {
            if let Some(reason) = container_reason(pod) {
                word = reason;
            }
        }
    }
    if meta::is_deleting(pod) {
        if field(pod, "/status/reason") == "NodeLost" {
            return "Unknown".to_string();
        }
        if !matches!(phase, "Succeeded" | "Failed") {
            return "Terminating".to_string();
        }
    }
    match word.as_str() {
        "Pending" | "" if field(pod, "/spec/nodeName").is_empty() => "Scheduling".to_string(),
        "Pending" | "" => "Starting".to_string(),
        _ => word,
    }
}

/// Why no node was chosen, if the scheduler said so.
fn unscheduled(pod: &Object) -> Option<&str> {
    let scheduled = conditions::find(conditions::of(pod), "PodScheduled")?;
    let reason = text(scheduled, "reason");
    (text(scheduled, "status") == "False" && !reason.is_empty()).then_some(reason)
}

/// What the first init container that is not done is doing; `None` when all are done.
fn initializing(pod: &Object) -> Option<String> {
    let total = list(pod, "/spec/initContainers").len();
    for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        let state = status.get("state").unwrap_or(&Value::Null);
        let terminated = state.get("terminated");
        let is_started = status.get("started") == Some(&Value::Bool(true));
        if is_sidecar(pod, status) && is_started {
            continue;
        }
        let waiting = field(state, "/waiting/reason");
        match terminated {
            Some(ended) if count(ended, "/exitCode") == 0 => continue,
            Some(ended) => return Some(format!("Init:{}", ended_reason(ended))),
            None if !waiting.is_empty() && waiting != "PodInitializing" => {
                return Some(format!("Init:{waiting}"));
            }
            None => return Some(format!("Init:{index}/{total}")),
        }
    }
    None
}

/// The reason of the first container that has one; `Running` over `Completed` when one still runs.
fn container_reason(pod: &Object) -> Option<String> {
    let mut reason = None;
    let mut any_running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        let waiting = field(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            reason = Some(waiting.to_string());
        } else if let Some(ended) = at(status, "/state/terminated") {
            reason = Some(ended_reason(ended));
        } else if is_running(status) {
            any_running = true;
        }
    }
    if reason.as_deref() == Some("Completed") && any_running {
        let is_ready = conditions::is_true(conditions::of(pod), "Ready");
        return Some(if is_ready { "Running" } else { "NotReady" }.to_string());
    }
    reason
}

fn ended_reason(ended: &Value) -> String {
    let (reason, signal) = (text(ended, "reason"), count(ended, "/signal"));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", count(ended, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

/// Why a Pod is not doing what it should, in one sentence; empty when it is.
pub fn why(pod: &Object) -> String {
    let message = field(pod, "/status/message");
    if !message.is_empty() {
        return message.to_string();
    }
    let statuses = ["/status/initContainerStatuses", "/status/containerStatuses"];
    for status in statuses.into_iter().flat_map(|path| list(pod, path)) {
        for path in ["/state/waiting/message", "/state/terminated/message"] {
            let message = field(status, path);
            if !message.is_empty() {
                return message.to_string();
            }
        }
    }
    for kind in ["PodScheduled", "Ready"] {
        let condition = conditions::find(conditions::of(pod), kind);
        let failed = condition.filter(|condition| text(condition, "status") != "True");
        if let Some(message) = failed.map(|condition| text(condition, "message"))
            && !message.is_empty()
        {
            return message.to_string();
        }
    }
    String::new()
}

fn readiness_gates(pod: &Object) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if size(at(pod, "/spec/readinessGates")) == 0 {
        return String::new();
    }
    let list = items(pod.get("status").unwrap_or(&Value::Null), "conditions");
    let met = gates.iter().filter(|gate| conditions::is_true(list, text(gate, "conditionType")));
    format!("{}/{}", met.count(), gates.len())
}
