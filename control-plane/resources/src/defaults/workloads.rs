//! Defaults of the kinds that make Pods.

use serde_json::{Value, json};

use super::pod::template;
use super::{Fields, child, default, default_text, each, existing, text};

const REVISION_HISTORY: i64 = 10;
const PROGRESS_DEADLINE_SECONDS: i64 = 600;
const JOB_BACKOFF_LIMIT: i64 = 6;
/// Utilization that an autoscaler without metrics aims at, in percent of the request.
const CPU_TARGET: i64 = 80;

pub(super) fn deployment(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "replicas", 1);
    template(spec);
    if let Some(strategy) = child(spec, "strategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
    default(spec, "revisionHistoryLimit", REVISION_HISTORY);
    default(spec, "progressDeadlineSeconds", PROGRESS_DEADLINE_SECONDS);
}

pub(super) fn replica_set(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "replicas", 1);
    template(spec);
}

pub(super) fn replication_controller(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "replicas", 1);
    template(spec);
    let labels = template_labels(spec);
    if let Some(labels) = &labels {
        default(spec, "selector", labels.clone());
    }
    inherit_labels(object, labels);
}

pub(super) fn stateful_set(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default_text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = child(spec, "updateStrategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "partition", 0);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        default_text(policy, "whenDeleted", "Retain");
        default_text(policy, "whenScaled", "Retain");
    }
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", REVISION_HISTORY);
    template(spec);
    for claim in each(spec, "volumeClaimTemplates") {
        default_text(claim, "apiVersion", "v1");
        default_text(claim, "kind", "PersistentVolumeClaim");
        super::cluster::persistent_volume_claim(claim);
    }
}

pub(super) fn daemon_set(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    template(spec);
    if let Some(strategy) = child(spec, "updateStrategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    }
    default(spec, "revisionHistoryLimit", REVISION_HISTORY);
}

pub(super) fn job(object: &mut Fields) {
    let name = metadata_text(object, "name");
    let uid = metadata_text(object, "uid");
    let Some(spec) = child(object, "spec") else {
        return;
    };
    if !spec.contains_key("parallelism") && !spec.contains_key("completions") {
        spec.insert("completions".to_string(), Value::from(1));
    }
    default(spec, "parallelism", 1);
    let is_per_index = spec.contains_key("backoffLimitPerIndex");
    let backoff = if is_per_index { i64::from(i32::MAX) } else { JOB_BACKOFF_LIMIT };
    default(spec, "backoffLimit", backoff);
    default_text(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    let has_failure_policy = spec.contains_key("podFailurePolicy");
    let replacement = if has_failure_policy { "Failed" } else { "TerminatingOrFailed" };
    default_text(spec, "podReplacementPolicy", replacement);
    failure_policy(spec);
    template(spec);
    if spec.get("manualSelector") != Some(&Value::Bool(true)) && !uid.is_empty() {
        job_selector(spec, &name, &uid);
    }
    let labels = template_labels(spec);
    inherit_labels(object, labels);
}

fn failure_policy(spec: &mut Fields) {
    let Some(policy) = existing(spec, "podFailurePolicy") else {
        return;
    };
    for rule in each(policy, "rules") {
        each(rule, "onPodConditions").for_each(|pattern| default_text(pattern, "status", "True"));
    }
}

/// A Job selects its Pods by its own uid, under the name of today and the one of before.
fn job_selector(spec: &mut Fields, name: &str, uid: &str) {
    let labels = [
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
        ("controller-uid", uid),
        ("job-name", name),
    ];
    let metadata = child(spec, "template").and_then(|template| child(template, "metadata"));
    if let Some(template_labels) = metadata.and_then(|metadata| child(metadata, "labels")) {
        for (key, value) in labels {
            default(template_labels, key, value);
        }
    }
    if let Some(selector) = child(spec, "selector").and_then(|it| child(it, "matchLabels")) {
        default(selector, "batch.kubernetes.io/controller-uid", uid);
    }
}

pub(super) fn cron_job(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default_text(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    let job_spec = existing(spec, "jobTemplate").and_then(|template| existing(template, "spec"));
    if let Some(job_spec) = job_spec {
        failure_policy(job_spec);
        template(job_spec);
    }
}

pub(super) fn horizontal_pod_autoscaler(object: &mut Fields) {
    let is_first_version = text(object, "apiVersion") == "autoscaling/v1";
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "minReplicas", 1);
    if let Some(behavior) = existing(spec, "behavior") {
        scaling_rules(behavior);
    }
    if is_first_version || spec.get("metrics").is_some_and(|list| list != &json!([])) {
        return;
    }
    let target = json!({"type": "Utilization", "averageUtilization": CPU_TARGET});
    let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
    spec.insert("metrics".to_string(), json!([metric]));
}

/// Who says anything of the behaviour has the rules of both directions written out.
fn scaling_rules(behavior: &mut Fields) {
    let policy =
        |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    let directions = [
        ("scaleUp", json!([policy("Pods", 4), policy("Percent", 100)])),
        ("scaleDown", json!([policy("Percent", 100)])),
    ];
    for (direction, policies) in directions {
        let Some(rules) = child(behavior, direction) else { continue };
        if direction == "scaleUp" {
            default(rules, "stabilizationWindowSeconds", 0);
        }
        default_text(rules, "selectPolicy", "Max");
        default(rules, "policies", policies);
    }
}

fn template_labels(spec: &Fields) -> Option<Value> {
    let labels = spec.get("template")?.get("metadata")?.get("labels")?;
    labels.is_object().then(|| labels.clone())
}

/// An object without labels gets those of its template.
fn inherit_labels(object: &mut Fields, labels: Option<Value>) {
    let Some(labels) = labels else { return };
    let Some(metadata) = child(object, "metadata") else {
        return;
    };
    let is_empty = metadata.get("labels").is_none_or(|labels| labels == &json!({}));
    if is_empty {
        metadata.insert("labels".to_string(), labels);
    }
}

fn metadata_text(object: &Fields, key: &str) -> String {
    let value = object.get("metadata").and_then(|metadata| metadata.get(key));
    value.and_then(Value::as_str).unwrap_or("").to_string()
}
