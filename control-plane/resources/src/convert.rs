//! Conversion between the versions of a kind that share one storage.
//!
//! Two kinds are served in two forms: events (`v1` and `events.k8s.io/v1`) and autoscalers
//! (`autoscaling/v1` and `v2`). Objects are stored in one of them (`Kind::stored_as`) and converted
//! on the way in and out. What the older form of an autoscaler cannot say travels in annotations,
//! so that nothing is lost on the way through.

use serde_json::{Map, Value, json};

use crate::{Kind, Object, meta};

type Fields = Map<String, Value>;

/// The names of one field in `v1` and in `events.k8s.io/v1`.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// Brings an object from one form of its kind into another; the same form only gets its apiVersion
/// set.
pub fn to(from: &Kind, to: &Kind, object: Object) -> Object {
    let mut object = object;
    let fields = meta::object_mut(&mut object);
    match (from.api_version().as_str(), to.api_version().as_str(), to.kind) {
        ("v1", "events.k8s.io/v1", "Event") => {
            for (old, new) in EVENT_FIELDS {
                rename(fields, old, new);
            }
        }
        ("events.k8s.io/v1", "v1", "Event") => {
            for (old, new) in EVENT_FIELDS {
                rename(fields, new, old);
            }
        }
        ("autoscaling/v1", "autoscaling/v2", _) => autoscaler_up(&mut object),
        ("autoscaling/v2", "autoscaling/v1", _) => autoscaler_down(&mut object),
        _ => {}
    }
    let fields = meta::object_mut(&mut object);
    fields.insert("apiVersion".to_string(), Value::from(to.api_version()));
    fields.insert("kind".to_string(), Value::from(to.kind));
    object
}

fn rename(fields: &mut Fields, from: &str, to: &str) {
    if let Some(value) = fields.shift_remove(from) {
        fields.insert(to.to_string(), value);
    }
}

/// The CPU target of `v1` becomes the first metric of `v2`; the others come back from the
/// annotations.
fn autoscaler_up(object: &mut Object) {
    let metrics = take_annotation(object, METRICS_ANNOTATION);
    let behavior = take_annotation(object, BEHAVIOR_ANNOTATION);
    let conditions = take_annotation(object, CONDITIONS_ANNOTATION);
    let current_metrics = take_annotation(object, CURRENT_ANNOTATION);
    let fields = meta::object_mut(object);
    if let Some(Value::Object(spec)) = fields.get_mut("spec") {
        let mut list = Vec::new();
        if let Some(target) = spec.shift_remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": target});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        list.extend(as_list(metrics));
        if !list.is_empty() {
            spec.insert("metrics".to_string(), Value::Array(list));
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".to_string(), behavior);
        }
    }
    if let Some(Value::Object(status)) = fields.get_mut("status") {
        let mut list = Vec::new();
        if let Some(current) = status.shift_remove("currentCPUUtilizationPercentage") {
            let current = json!({"averageUtilization": current});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
        }
        list.extend(as_list(current_metrics));
        if !list.is_empty() {
            status.insert("currentMetrics".to_string(), Value::Array(list));
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".to_string(), conditions);
        }
    }
}

/// Takes out of `v2` what `v1` can say and keeps the rest in annotations.
fn autoscaler_down(object: &mut Object) {
    let mut kept = Vec::new();
    let fields = meta::object_mut(object);
    if let Some(Value::Object(spec)) = fields.get_mut("spec") {
        let path = "/resource/target/averageUtilization";
        let (cpu, others) = take_cpu(spec.shift_remove("metrics"), path);
        if let Some(cpu) = cpu {
            spec.insert("targetCPUUtilizationPercentage".to_string(), cpu);
        }
        kept.push((METRICS_ANNOTATION, others));
        kept.push((BEHAVIOR_ANNOTATION, spec.shift_remove("behavior")));
    }
    if let Some(Value::Object(status)) = fields.get_mut("status") {
        let path = "/resource/current/averageUtilization";
        let (cpu, others) = take_cpu(status.shift_remove("currentMetrics"), path);
        if let Some(cpu) = cpu {
            status.insert("currentCPUUtilizationPercentage".to_string(), cpu);
        }
        kept.push((CURRENT_ANNOTATION, others));
        kept.push((CONDITIONS_ANNOTATION, status.shift_remove("conditions")));
    }
    for (annotation, value) in kept {
        if let Some(value) = value {
            meta::set_annotation(object, annotation, &value.to_string());
        }
    }
}

/// Splits a list of metrics into the CPU utilization and the rest, if there is any.
fn take_cpu(metrics: Option<Value>, path: &str) -> (Option<Value>, Option<Value>) {
    let mut cpu = None;
    let mut others = Vec::new();
    for metric in as_list(metrics) {
        let is_cpu = metric.pointer("/resource/name").and_then(Value::as_str) == Some("cpu");
        match metric.pointer(path) {
            Some(value) if is_cpu && cpu.is_none() => cpu = Some(value.clone()),
            _ => others.push(metric),
        }
    }
    let others = (!others.is_empty()).then_some(Value::Array(others));
    (cpu, others)
}

fn as_list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn take_annotation(object: &mut Object, key: &str) -> Option<Value> {
    let value = serde_json::from_str(meta::annotation(object, key)?).ok()?;
    meta::remove_annotation(object, key);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(group: &str, version: &str, plural: &str) -> &'static Kind {
        crate::kind(group, version, plural).expect("in the table")
    }

    #[test]
    fn events_there_and_back() {
        let (core, new) = (row("", "v1", "events"), row("events.k8s.io", "v1", "events"));
        let event = json!({"apiVersion": "v1", "kind": "Event", "reason": "R", "message": "m",
            "involvedObject": {"kind": "Pod"}, "count": 2});
        let converted = to(core, new, event.clone());
        assert_eq!(
            (&converted["note"], &converted["regarding"]["kind"]),
            (&json!("m"), &json!("Pod"))
        );
        assert_eq!(converted["apiVersion"], "events.k8s.io/v1");
        assert_eq!(to(new, core, converted), event);
    }

    #[test]
    fn autoscalers_there_and_back() {
        let plural = "horizontalpodautoscalers";
        let (old, new) = (row("autoscaling", "v1", plural), row("autoscaling", "v2", plural));
        let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"metric": {"name": "x"}}}]}});
        let converted = to(new, old, scaler.clone());
        assert_eq!(converted["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(to(old, new, converted), scaler);
    }
}
