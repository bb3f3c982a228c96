//! How an object is, for people: good, to be looked at, broken or at rest, with a word and the
//! reason.
//!
//! The word is what the object's own table says where it says one (a Pod's `CrashLoopBackOff`);
//! the reason is a sentence that stands in its status. Kinds that have no state have none here.
//! Whether something has been so for too long is for whoever knows the time.

use serde_json::Value;

use crate::meta::{self, items, text};
use crate::{Kind, Object, conditions, table};

/// Four states, in the order in which they need somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Broken.
    Bad,
    /// Not as it should be, or on its way.
    Warn,
    /// Does what it should.
    Good,
    /// At rest on purpose.
    Idle,
}

impl Health {
    /// As it stands on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Health::Bad => "bad",
            Health::Warn => "warn",
            Health::Good => "good",
            Health::Idle => "idle",
        }
    }

    /// Reads [`word`](Self::word).
    pub fn parse(word: &str) -> Option<Health> {
        let all = [Health::Bad, Health::Warn, Health::Good, Health::Idle];
        all.into_iter().find(|health| health.word() == word)
    }
}

/// What there is to say about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub health: Health,
    /// One word or two.
    pub word: String,
    /// A sentence, or empty.
    pub why: String,
}

impl State {
    fn new(health: Health, word: &str, why: impl Into<String>) -> State {
        State { health, word: word.to_owned(), why: why.into() }
    }
}

/// The state of an object of that kind.
pub fn of(kind: &Kind, object: &Object) -> Option<State> {
    match (kind.group, kind.plural) {
        ("", "pods") => Some(pod(object)),
        ("apps", "deployments") => Some(deployment(object)),
        ("apps", "replicasets") | ("", "replicationcontrollers") => Some(replicas(
            number(object, "/spec/replicas").unwrap_or(1),
            number(object, "/status/readyReplicas").unwrap_or(0),
        )),
        ("apps", "statefulsets") => Some(stateful_set(object)),
        ("apps", "daemonsets") => Some(replicas(
            number(object, "/status/desiredNumberScheduled").unwrap_or(0),
            number(object, "/status/numberReady").unwrap_or(0),
        )),
        ("batch", "jobs") => Some(job(object)),
        ("batch", "cronjobs") => Some(match flag(object, "/spec/suspend") {
            true => State::new(Health::Idle, "Suspended", ""),
            false => State::new(Health::Good, "Scheduled", ""),
        }),
        ("", "nodes") => Some(node(object)),
        ("", "persistentvolumeclaims" | "persistentvolumes" | "namespaces") => phase(object),
        ("" | "events.k8s.io", "events") => Some(event(object)),
        _ => by_condition(object),
    }
}

fn pod(pod: &Object) -> State {
    let word = table::pod_status(pod);
    let ready = conditions::is_true(conditions::of(pod), "Ready");
    if word == "Running" && ready && is_idle(pod) {
        return State::new(Health::Idle, "Idle", "Nobody asks it; the next request wakes it.");
    }
    let waits = ["Scheduling", "Starting", "ContainerCreating", "PodInitializing", "Compiling"];
    let health = match word.as_str() {
        "Completed" | "Succeeded" | "Terminating" => Health::Idle,
        "Running" if ready => Health::Good,
        "Running" | "NotReady" => Health::Warn,
        word if waits.contains(&word) => Health::Warn,
        word if word.strip_prefix("Init:").is_some_and(|rest| rest.contains('/')) => Health::Warn,
        _ => Health::Bad,
    };
    let why = if health == Health::Good { String::new() } else { table::pod_why(pod) };
    State { health, word, why }
}

/// Whether all its containers have given back what they do not need until somebody asks them; the
/// node notes it.
fn is_idle(pod: &Object) -> bool {
    let containers = items(&pod["spec"], "containers");
    let rests = |container: &Value| {
        let key = format!("state.wherry.dev/{}", text(container, "name"));
        meta::annotation(pod, &key) == Some("Idle")
    };
    !containers.is_empty() && containers.iter().all(rests)
}

fn deployment(object: &Object) -> State {
    let wanted = number(object, "/spec/replicas").unwrap_or(1);
    let of = conditions::of(object);
    let message = |kind: &str| conditions::find(of, kind).map_or("", |it| text(it, "message"));
    let progressing = conditions::find(of, "Progressing");
    if progressing.is_some_and(|condition| text(condition, "status") == "False") {
        return State::new(Health::Bad, "Stuck", message("Progressing"));
    }
    if conditions::is_true(of, "ReplicaFailure") {
        return State::new(Health::Bad, "Failing", message("ReplicaFailure"));
    }
    let ready = number(object, "/status/readyReplicas").unwrap_or(0);
    let updated = number(object, "/status/updatedReplicas").unwrap_or(0);
    let all = number(object, "/status/replicas").unwrap_or(0);
    let moves = updated < wanted || all > updated;
    match (flag(object, "/spec/paused"), wanted > 0 && moves && ready > 0) {
        (true, true) => State::new(Health::Idle, "Paused", "The rollout is paused."),
        (false, true) => {
            let why = format!("{updated} of {wanted} Pods are made from the new template.");
            State::new(Health::Warn, "Rolling out", why)
        }
        _ => replicas(wanted, ready),
    }
}

fn stateful_set(object: &Object) -> State {
    let wanted = number(object, "/spec/replicas").unwrap_or(1);
    let status = |field: &str| object.pointer(&format!("/status/{field}")).and_then(Value::as_str);
    let (current, update) = (status("currentRevision"), status("updateRevision"));
    let ready = number(object, "/status/readyReplicas").unwrap_or(0);
    if wanted > 0 && ready > 0 && current != update {
        let updated = number(object, "/status/updatedReplicas").unwrap_or(0);
        let why = format!("{updated} of {wanted} Pods are made from the new template.");
        return State::new(Health::Warn, "Rolling out", why);
    }
    replicas(wanted, ready)
}

fn replicas(wanted: i64, ready: i64) -> State {
    let why = || format!("{ready} of {wanted} Pods are ready.");
    match (wanted, ready) {
        (0, _) => State::new(Health::Idle, "Scaled to 0", ""),
        (_, 0) => State::new(Health::Bad, "Unavailable", why()),
        (wanted, ready) if ready < wanted => State::new(Health::Warn, "Degraded", why()),
        _ => State::new(Health::Good, "Running", ""),
    }
}

fn job(object: &Object) -> State {
    let of = conditions::of(object);
    if conditions::is_true(of, "Failed") {
        let why = conditions::find(of, "Failed").map_or("", |failed| text(failed, "message"));
        return State::new(Health::Bad, "Failed", why);
    }
    if conditions::is_true(of, "Complete") {
        return State::new(Health::Idle, "Complete", "");
    }
    match flag(object, "/spec/suspend") {
        true => State::new(Health::Idle, "Suspended", ""),
        false => State::new(Health::Good, "Running", ""),
    }
}

fn node(object: &Object) -> State {
    let of = conditions::of(object);
    if !conditions::is_true(of, "Ready") {
        let why = conditions::find(of, "Ready").map_or("", |ready| text(ready, "message"));
        return State::new(Health::Bad, "NotReady", why);
    }
    let pressed = of.iter().find(|condition| {
        text(condition, "type").ends_with("Pressure") && text(condition, "status") == "True"
    });
    if let Some(pressure) = pressed {
        return State::new(Health::Warn, text(pressure, "type"), text(pressure, "message"));
    }
    match flag(object, "/spec/unschedulable") {
        true => State::new(Health::Idle, "Cordoned", "No new Pods are put on this node."),
        false => State::new(Health::Good, "Ready", ""),
    }
}

fn phase(object: &Object) -> Option<State> {
    let word = object.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    let message = object.pointer("/status/message").and_then(Value::as_str).unwrap_or("");
    if meta::is_deleting(object) {
        let why = conditions::of(object).iter().find(|condition| {
            text(condition, "status") == "True" && !text(condition, "message").is_empty()
        });
        let why = why.map_or("", |condition| text(condition, "message"));
        return Some(State::new(Health::Idle, "Terminating", why));
    }
    let health = match word {
        "Bound" | "Active" => Health::Good,
        "Available" | "Released" => Health::Idle,
        "Pending" => Health::Warn,
        "" => return None,
        _ => Health::Bad,
    };
    Some(State::new(health, word, message))
}

fn event(object: &Object) -> State {
    let note = ["message", "note"].map(|field| text(object, field));
    let why = note.into_iter().find(|note| !note.is_empty()).unwrap_or("");
    let is_warning = text(object, "type") == "Warning";
    let health = if is_warning { Health::Warn } else { Health::Good };
    State::new(health, text(object, "type"), why)
}

/// What controllers of custom kinds agree on: a condition `Ready`, `Available` or `Established`.
fn by_condition(object: &Object) -> Option<State> {
    let of = items(object.get("status")?, "conditions");
    let kinds = ["Ready", "Available", "Established", "ScalingActive"];
    let condition = kinds.iter().find_map(|kind| conditions::find(of, kind))?;
    let (reason, message) = (text(condition, "reason"), text(condition, "message"));
    Some(match text(condition, "status") {
        "True" => State::new(Health::Good, text(condition, "type"), ""),
        "False" => {
            let word = if reason.is_empty() { "Not ready" } else { reason };
            State::new(Health::Bad, word, message)
        }
        _ => State::new(Health::Warn, "Unknown", message),
    })
}

fn number(object: &Object, path: &str) -> Option<i64> {
    object.pointer(path).and_then(Value::as_i64)
}

fn flag(object: &Object, path: &str) -> bool {
    object.pointer(path) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn told(group: &str, plural: &str, object: Value) -> String {
        let version = "v1";
        let kind = crate::kind(group, version, plural).expect("a built-in kind");
        match of(kind, &object) {
            None => "none\n".to_owned(),
            Some(State { health, word, why }) => format!("{}: {word}. {why}\n", health.word()),
        }
    }

    #[test]
    fn pods_and_what_makes_them() {
        let waiting = json!({"name": "c", "state": {"waiting": {
            "reason": "CrashLoopBackOff", "message": "exit code 1, next start in 40s"}}});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let running = json!([{"name": "c", "ready": true, "state": {"running": {}}}]);
        let out = [
            told(
                "",
                "pods",
                json!({"status": {"phase": "Running",
                "conditions": ready, "containerStatuses": running}}),
            ),
            told("", "pods", json!({"status": {"containerStatuses": [waiting]}})),
            told("", "pods", json!({"status": {"phase": "Pending"}})),
            told(
                "apps",
                "deployments",
                json!({"spec": {"replicas": 3}, "status": {
                "replicas": 3, "readyReplicas": 3, "updatedReplicas": 3}}),
            ),
            told(
                "apps",
                "deployments",
                json!({"spec": {"replicas": 3}, "status": {
                "replicas": 4, "readyReplicas": 3, "updatedReplicas": 1}}),
            ),
            told(
                "apps",
                "deployments",
                json!({"spec": {"replicas": 3}, "status": {
                "replicas": 3, "updatedReplicas": 3}}),
            ),
            told("apps", "deployments", json!({"spec": {"replicas": 0}})),
            told(
                "batch",
                "jobs",
                json!({"status": {"conditions": [
                {"type": "Failed", "status": "True", "message": "3 attempts failed"}]}}),
            ),
        ];
        expect![[r#"
            good: Running. 
            bad: CrashLoopBackOff. exit code 1, next start in 40s
            warn: Scheduling. 
            good: Running. 
            warn: Rolling out. 1 of 3 Pods are made from the new template.
            bad: Unavailable. 0 of 3 Pods are ready.
            idle: Scaled to 0. 
            bad: Failed. 3 attempts failed
        "#]]
        .assert_eq(&out.concat());
    }

    #[test]
    fn a_pod_is_idle_when_all_its_containers_are() {
        let pod = |noted: Value, ready: &str| {
            told(
                "",
                "pods",
                json!({
                    "metadata": {"annotations": noted},
                    "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
                    "status": {"phase": "Running",
                        "conditions": [{"type": "Ready", "status": ready}],
                        "containerStatuses": [
                            {"name": "a", "ready": true, "state": {"running": {}}},
                            {"name": "b", "ready": true, "state": {"running": {}}}]}
                }),
            )
        };
        let idle = json!({"state.wherry.dev/a": "Idle", "state.wherry.dev/b": "Idle"});
        let half = json!({"state.wherry.dev/a": "Idle", "state.wherry.dev/b": "Active"});
        assert_eq!(
            pod(idle.clone(), "True"),
            "idle: Idle. Nobody asks it; the next request wakes it.\n"
        );
        assert_eq!(pod(half, "True"), "good: Running. \n");
        assert!(pod(idle, "False").starts_with("warn"));
    }

    #[test]
    fn nodes_and_what_has_no_state() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let gone = json!([{"type": "Ready", "status": "Unknown", "message": "no heartbeat"}]);
        let out = [
            told("", "nodes", json!({"status": {"conditions": ready}})),
            told(
                "",
                "nodes",
                json!({"spec": {"unschedulable": true},
                "status": {"conditions": ready}}),
            ),
            told("", "nodes", json!({"status": {"conditions": gone}})),
            told("", "configmaps", json!({"data": {}})),
            told("", "persistentvolumeclaims", json!({"status": {"phase": "Pending"}})),
        ];
        expect![[r#"
            good: Ready. 
            idle: Cordoned. No new Pods are put on this node.
            bad: NotReady. no heartbeat
            none
            warn: Pending. 
        "#]]
        .assert_eq(&out.concat());
    }
}
