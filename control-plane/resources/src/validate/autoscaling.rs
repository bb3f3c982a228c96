//! Rules for HorizontalPodAutoscalers: bounds, metrics and their targets, and how fast it may go.

use serde_json::Value;

use super::{Errors, at, get, integer, nth};
use crate::Object;
use crate::meta::{items, text};
use crate::quantity::Quantity;

/// The longest time over which recommendations are looked at, in seconds.
const WINDOW_MAX: i64 = 3_600;
/// The longest period of a policy, in seconds.
const PERIOD_MAX: i64 = 1_800;
const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
const POSITIVE: &str = "must be greater than zero";

pub(super) fn autoscaler(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let least = integer(spec, "minReplicas").unwrap_or(1);
    let most = integer(spec, "maxReplicas").unwrap_or(0);
    if least < 0 {
        errors.invalid("spec.minReplicas", least, "must be greater than or equal to 0");
    }
    if most < 1 {
        errors.invalid("spec.maxReplicas", most, "must be greater than 0");
    }
    if most < least {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.invalid("spec.maxReplicas", most, detail);
    }
    for key in ["kind", "name"] {
        if text(get(spec, "scaleTargetRef"), key).is_empty() {
            errors.required(&at("spec.scaleTargetRef", key), "");
        }
    }
    let metrics = items(spec, "metrics");
    for (index, metric) in metrics.iter().enumerate() {
        self::metric(metric, &nth("spec", "metrics", index), errors);
    }
    // Pods that are not there use nothing: something else must say when they are wanted again.
    let wakes = metrics.iter().any(|metric| ["Object", "External"].contains(&text(metric, "type")));
    if least == 0 && !wakes {
        let detail = "must specify at least one Object or External metric to support scaling to \
            zero replicas";
        errors.forbidden("spec.metrics", detail);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = get(get(spec, "behavior"), direction);
        if rules.is_object() {
            self::rules(rules, &at("spec.behavior", direction), errors);
        }
    }
}

fn metric(metric: &Value, path: &str, errors: &mut Errors) {
    let kind = text(metric, "type");
    if kind.is_empty() {
        errors.required(&at(path, "type"), "must specify a metric source type");
        return;
    }
    if !TYPES.contains(&kind) {
        errors.unsupported(&at(path, "type"), kind, TYPES);
        return;
    }
    let key = format!("{}{}", kind[..1].to_lowercase(), &kind[1..]);
    let path = at(path, &key);
    let source = get(metric, &key);
    if !source.is_object() {
        errors.required(&path, "must populate information for the given metric source");
        return;
    }
    let by_name = match kind {
        "Resource" | "ContainerResource" => source,
        _ => get(source, "metric"),
    };
    if text(by_name, "name").is_empty() {
        let field = if std::ptr::eq(by_name, source) { "name" } else { "metric.name" };
        errors.required(&at(&path, field), "must specify a metric name");
    }
    if kind == "ContainerResource" && text(source, "container").is_empty() {
        errors.required(&at(&path, "container"), "must specify a container");
    }
    if kind == "Object" {
        for key in ["kind", "name"] {
            if text(get(source, "describedObject"), key).is_empty() {
                errors.required(&at(&at(&path, "describedObject"), key), "");
            }
        }
    }
    let allowed: &[&str] = match kind {
        "Resource" | "ContainerResource" => &["averageUtilization", "averageValue"],
        "Pods" => &["averageValue"],
        _ => &["value", "averageValue"],
    };
    target(get(source, "target"), &at(&path, "target"), allowed, errors);
}

/// Exactly one of the allowed ways to say what is aimed at, and more than nothing.
fn target(target: &Value, path: &str, allowed: &[&str], errors: &mut Errors) {
    errors.one_of(
        &at(path, "type"),
        text(target, "type"),
        &["Utilization", "Value", "AverageValue"],
    );
    let given: Vec<&&str> = allowed.iter().filter(|key| target.get(**key).is_some()).collect();
    match given.as_slice() {
        [] => {
            let detail = format!("must specify {}", allowed.join(" or "));
            errors.required(&at(path, allowed[0]), &detail);
        }
        [_] => {}
        [first, ..] => {
            let detail = format!("may not specify more than one of {}", allowed.join(", "));
            errors.forbidden(&at(path, first), &detail);
        }
    }
    if let Some(percent) = integer(target, "averageUtilization").filter(|percent| *percent < 1) {
        errors.invalid(&at(path, "averageUtilization"), percent, "must be greater than 0");
    }
    for key in ["value", "averageValue"] {
        let Some(value) = target.get(key) else { continue };
        if Quantity::of(value).is_none_or(|amount| amount <= Quantity::ZERO) {
            errors.invalid(&at(path, key), value.clone(), "must be positive");
        }
    }
}

fn rules(rules: &Value, path: &str, errors: &mut Errors) {
    let window = integer(rules, "stabilizationWindowSeconds").unwrap_or(0);
    if !(0..=WINDOW_MAX).contains(&window) {
        let detail = match window < 0 {
            true => "must be greater than or equal to zero".to_string(),
            false => format!("must be less than or equal to {WINDOW_MAX}"),
        };
        errors.invalid(&at(path, "stabilizationWindowSeconds"), window, &detail);
    }
    let select = text(rules, "selectPolicy");
    if !select.is_empty() {
        errors.one_of(&at(path, "selectPolicy"), select, &["Disabled", "Max", "Min"]);
    }
    if let Some(tolerance) = rules.get("tolerance").filter(|value| !value.is_null())
        && Quantity::of(tolerance).is_none_or(|share| share.is_negative())
    {
        let detail = "must be greater than or equal to zero";
        errors.invalid(&at(path, "tolerance"), tolerance.clone(), detail);
    }
    if rules.get("policies").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        errors.required(&at(path, "policies"), "must specify at least one Policy");
    }
    for (index, policy) in items(rules, "policies").iter().enumerate() {
        let path = nth(path, "policies", index);
        errors.one_of(&at(&path, "type"), text(policy, "type"), &["Percent", "Pods"]);
        let value = integer(policy, "value").unwrap_or(0);
        if value <= 0 {
            errors.invalid(&at(&path, "value"), value, POSITIVE);
        }
        let period = integer(policy, "periodSeconds").unwrap_or(0);
        if period <= 0 {
            errors.invalid(&at(&path, "periodSeconds"), period, POSITIVE);
        } else if period > PERIOD_MAX {
            let detail = format!("must be less than or equal to {PERIOD_MAX}");
            errors.invalid(&at(&path, "periodSeconds"), period, &detail);
        }
    }
}
