//! Tables of the kinds that make Pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Column, NAME, NONE, Row, age, column, containers, count, duration, field, labels, list,
    name, number, or_none, scalar, selector, since, size,
};
use crate::meta::{self, text};
use crate::{Object, conditions};

pub(super) const TABLES: &[Row] = &[
    ("apps", "deployments", DEPLOYMENT, deployment),
    ("apps", "replicasets", REPLICA_SET, replica_set),
    ("", "replicationcontrollers", REPLICA_SET, replication_controller),
    ("apps", "statefulsets", STATEFUL_SET, stateful_set),
    ("apps", "daemonsets", DAEMON_SET, daemon_set),
    ("apps", "controllerrevisions", REVISION, revision),
    ("batch", "jobs", JOB, job),
    ("batch", "cronjobs", CRON_JOB, cron_job),
    ("autoscaling", "horizontalpodautoscalers", AUTOSCALER, autoscaler),
    ("policy", "poddisruptionbudgets", BUDGET, budget),
];

const CONTAINERS: Column = column("Containers", "The names of the containers").wide();
const IMAGES: Column = column("Images", "The images of the containers").wide();
const SELECTOR: Column = column("Selector", "The labels by which Pods are selected").wide();

const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "The Pods that are ready, of those wanted"),
    number("Up-to-date", "The Pods made from the present template"),
    number("Available", "The Pods that have been ready long enough"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn deployment(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/template/spec"));
    let ready = count(object, "/status/readyReplicas");
    vec![
        name(object),
        Value::from(format!("{ready}/{}", count(object, "/spec/replicas"))),
        Value::from(count(object, "/status/updatedReplicas")),
        Value::from(count(object, "/status/availableReplicas")),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/selector")),
    ]
}

const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", "The Pods that are wanted"),
    number("Current", "The Pods that exist"),
    number("Ready", "The Pods that are ready"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn replica_set(object: &Object, now: Timestamp) -> Vec<Value> {
    replicas(object, selector(object.pointer("/spec/selector")), now)
}

fn replication_controller(object: &Object, now: Timestamp) -> Vec<Value> {
    replicas(object, labels(object.pointer("/spec/selector")), now)
}

fn replicas(object: &Object, selector: Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/template/spec"));
    vec![
        name(object),
        Value::from(count(object, "/spec/replicas")),
        Value::from(count(object, "/status/replicas")),
        Value::from(count(object, "/status/readyReplicas")),
        age(object, now),
        names,
        images,
        selector,
    ]
}

const STATEFUL_SET: &[Column] =
    &[NAME, column("Ready", "The Pods that are ready, of those wanted"), AGE, CONTAINERS, IMAGES];

fn stateful_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/template/spec"));
    let ready = count(object, "/status/readyReplicas");
    let ready = format!("{ready}/{}", count(object, "/spec/replicas"));
    vec![name(object), Value::from(ready), age(object, now), names, images]
}

const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired", "The nodes that should run a Pod"),
    number("Current", "The nodes that run a Pod"),
    number("Ready", "The nodes whose Pod is ready"),
    number("Up-to-date", "The nodes whose Pod is made from the present template"),
    number("Available", "The nodes whose Pod has been ready long enough"),
    column("Node Selector", "The labels of the nodes that run a Pod"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn daemon_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/template/spec"));
    vec![
        name(object),
        Value::from(count(object, "/status/desiredNumberScheduled")),
        Value::from(count(object, "/status/currentNumberScheduled")),
        Value::from(count(object, "/status/numberReady")),
        Value::from(count(object, "/status/updatedNumberScheduled")),
        Value::from(count(object, "/status/numberAvailable")),
        labels(object.pointer("/spec/template/spec/nodeSelector")),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/selector")),
    ]
}

const REVISION: &[Column] = &[
    NAME,
    column("Controller", "The object whose state this is"),
    number("Revision", "The place of this state among the others"),
    AGE,
];

fn revision(object: &Object, now: Timestamp) -> Vec<Value> {
    let controller = meta::controller(object).map_or(NONE.to_string(), |owner| {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let dot = if group.is_empty() { "" } else { "." };
        format!("{}{dot}{group}/{}", owner.kind.to_lowercase(), owner.name)
    });
    let revision = Value::from(count(object, "/revision"));
    vec![name(object), Value::from(controller), revision, age(object, now)]
}

const JOB: &[Column] = &[
    NAME,
    column("Status", "What the Job is doing"),
    column("Completions", "The Pods that succeeded, of those that must"),
    column("Duration", "The time that the Job took, or has taken so far"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/template/spec"));
    let succeeded = count(object, "/status/succeeded");
    let parallelism = count(object, "/spec/parallelism");
    let completions = match object.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let started = meta::parse_time(field(object, "/status/startTime"));
    let ended = meta::parse_time(field(object, "/status/completionTime")).unwrap_or(now);
    vec![
        name(object),
        Value::from(job_status(object)),
        Value::from(completions),
        Value::from(started.map_or(String::new(), |started| duration(started, ended))),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/selector")),
    ]
}

fn job_status(job: &Object) -> &'static str {
    let is = |kind| conditions::is_true(conditions::of(job), kind);
    let states = [
        (is("Complete"), "Complete"),
        (is("Failed"), "Failed"),
        (meta::is_deleting(job), "Terminating"),
        (is("Suspended"), "Suspended"),
        (is("FailureTarget"), "FailureTarget"),
        (is("SuccessCriteriaMet"), "SuccessCriteriaMet"),
    ];
    states.iter().find(|(holds, _)| *holds).map_or("Running", |(_, word)| word)
}

const CRON_JOB: &[Column] = &[
    NAME,
    column("Schedule", "When Jobs are made"),
    column("Timezone", "The time zone of the schedule"),
    column("Suspend", "Whether no more Jobs are made"),
    number("Active", "The Jobs that run now"),
    column("Last Schedule", "The time since the last Job was made"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn cron_job(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object.pointer("/spec/jobTemplate/spec/template/spec"));
    let suspend = object.pointer("/spec/suspend") == Some(&Value::Bool(true));
    let last = match field(object, "/status/lastScheduleTime") {
        "" => NONE.to_string(),
        time => since(time, now),
    };
    vec![
        name(object),
        Value::from(field(object, "/spec/schedule")),
        or_none(field(object, "/spec/timeZone")),
        Value::from(if suspend { "True" } else { "False" }),
        Value::from(size(object.pointer("/status/active"))),
        Value::from(last),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/jobTemplate/spec/selector")),
    ]
}

const AUTOSCALER: &[Column] = &[
    NAME,
    column("Reference", "The workload that is scaled"),
    column("Targets", "What is measured and what is aimed at"),
    column("MinPods", "The fewest Pods"),
    column("MaxPods", "The most Pods"),
    number("Replicas", "The Pods that exist"),
    AGE,
];

fn autoscaler(object: &Object, now: Timestamp) -> Vec<Value> {
    let target = object.pointer("/spec/scaleTargetRef").unwrap_or(&Value::Null);
    let least = scalar(object.pointer("/spec/minReplicas"));
    vec![
        name(object),
        Value::from(format!("{}/{}", text(target, "kind"), text(target, "name"))),
        Value::from(targets(object)),
        Value::from(if least.is_empty() { "<unset>".to_string() } else { least }),
        Value::from(scalar(object.pointer("/spec/maxReplicas"))),
        Value::from(count(object, "/status/currentReplicas")),
        age(object, now),
    ]
}

/// `cpu: 10%/80%`; at most two metrics, then how many more there are.
fn targets(object: &Object) -> String {
    const SHOWN_MAX: usize = 2;
    let current = list(object, "/status/currentMetrics");
    let mut targets = Vec::new();
    for (index, metric) in list(object, "/spec/metrics").iter().enumerate() {
        let kind = text(metric, "type");
        let source = lower_first(kind);
        let part =
            |status: &Value, what: &str| match status.get(&source).and_then(|it| it.get(what)) {
                Some(value) => amount(value),
                None => "<unknown>".to_string(),
            };
        let label = match kind {
            "Resource" | "ContainerResource" => {
                format!("{}: ", field(metric, &format!("/{source}/name")))
            }
            _ => String::new(),
        };
        let now = part(current.get(index).unwrap_or(&Value::Null), "current");
        targets.push(format!("{label}{now}/{}", part(metric, "target")));
    }
    if let Some(percent) = object.pointer("/spec/targetCPUUtilizationPercentage") {
        let now = match object.pointer("/status/currentCPUUtilizationPercentage") {
            Some(now) => format!("{now}%"),
            None => "<unknown>".to_string(),
        };
        targets.push(format!("cpu: {now}/{percent}%"));
    }
    match targets.len() {
        0 => NONE.to_string(),
        total if total > SHOWN_MAX => {
            format!("{} + {} more...", targets[..SHOWN_MAX].join(", "), total - SHOWN_MAX)
        }
        _ => targets.join(", "),
    }
}

fn amount(value: &Value) -> String {
    if let Some(percent) = value.get("averageUtilization") {
        return format!("{percent}%");
    }
    if let Some(average) = value.get("averageValue") {
        return format!("{} (avg)", scalar(Some(average)));
    }
    value.get("value").map_or("<unknown>".to_string(), |value| scalar(Some(value)))
}

fn lower_first(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

const BUDGET: &[Column] = &[
    NAME,
    column("Min Available", "The Pods that must stay"),
    column("Max Unavailable", "The Pods that may be missing"),
    number("Allowed Disruptions", "The Pods that may be evicted now"),
    AGE,
];

fn budget(object: &Object, now: Timestamp) -> Vec<Value> {
    let bound = |path| match scalar(object.pointer(path)).as_str() {
        "" => json!("N/A"),
        bound => json!(bound),
    };
    vec![
        name(object),
        bound("/spec/minAvailable"),
        bound("/spec/maxUnavailable"),
        Value::from(count(object, "/status/disruptionsAllowed")),
        age(object, now),
    ]
}
