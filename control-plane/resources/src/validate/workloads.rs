//! Rules for the kinds that make Pods: selectors that match templates, strategies, numbers,
//! immutable fields.

mod job;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::pod::template;
use super::{Errors, IMMUTABLE, at, flag, get, integer, is_empty, nth};
use crate::cron::{self, Schedule};
use crate::meta::{self, items, text};
use crate::selectors::LabelSelector;
use crate::{Object, names};

const STATEFUL_SET_FIELDS: &str = "updates to statefulset spec for fields other than 'replicas', \
    'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
    'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
const JOB_POLICIES: &str = "valid values: \"OnFailure\", \"Never\"";
/// Completions above which a Job's finished indexes cannot be recorded.
const COMPLETIONS_MAX: i64 = 100_000;
/// Indexes of one Job that may run at once.
const PARALLELISM_MAX: i64 = 100_000;

/// A typed `metav1.LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &str, errors: &mut Errors) {
    super::metadata::label_map(selector, path, "matchLabels", errors);
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let path = nth(path, "matchExpressions", index);
        let values = is_empty(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.required(&at(&path, "values"), detail);
            }
            "Exists" | "DoesNotExist" if !values => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&at(&path, "values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.invalid(&at(&path, "operator"), other, "not a valid selector operator");
            }
        }
        let key = text(expression, "key");
        errors.complaints(&at(&path, "key"), key, names::qualified(key));
        for (index, value) in items(expression, "values").iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            let path = nth(&path, "values", index);
            errors.complaints(&path, value, names::label_value(value));
        }
    }
}

/// The selector of a workload in `apps`, and whether its template carries what it selects.
fn selected_template(spec: &Value, owner: &str, errors: &mut Errors) {
    let selector = get(spec, "selector");
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        label_selector(selector, "spec.selector", errors);
        if is_empty(selector, "matchLabels") && is_empty(selector, "matchExpressions") {
            let detail = format!("empty selector is invalid for {owner}");
            errors.invalid("spec.selector", selector.clone(), &detail);
        }
    }
    let Some(template) = spec.get("template").filter(|template| !template.is_null()) else {
        errors.required("spec.template", "");
        return;
    };
    if let Ok(parsed) = LabelSelector::from_typed(Some(selector))
        && !parsed.is_everything()
    {
        labels_match(&parsed, template, errors);
    }
    running_template(&with_claims(template, spec), owner, errors);
}

/// A template with the volumes that come from the claims of a StatefulSet.
fn with_claims<'a>(template: &'a Value, spec: &Value) -> Cow<'a, Value> {
    let claims = items(spec, "volumeClaimTemplates");
    if claims.is_empty() || !get(template, "spec").is_object() {
        return Cow::Borrowed(template);
    }
    let names: Vec<&str> = claims.iter().map(meta::name).collect();
    let mut template = template.clone();
    let own = items(get(&template, "spec"), "volumes").iter();
    let own = own.filter(|volume| !names.contains(&text(volume, "name"))).cloned();
    let made = names
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let volumes: Vec<Value> = own.chain(made).collect();
    template["spec"]["volumes"] = Value::Array(volumes);
    Cow::Owned(template)
}

fn labels_match(selector: &LabelSelector, template: &Value, errors: &mut Errors) {
    let labels = template.pointer("/metadata/labels");
    if !selector.matches_labels(labels) {
        let labels = labels.cloned().unwrap_or_else(|| serde_json::json!({}));
        let detail = "`selector` does not match template `labels`";
        errors.invalid("spec.template.metadata.labels", labels, detail);
    }
}

/// The template of Pods that run forever.
fn running_template(template: &Value, owner: &str, errors: &mut Errors) {
    self::template(template, "spec.template", errors);
    let spec = get(template, "spec");
    let policy = text(spec, "restartPolicy");
    if !matches!(policy, "Always" | "") {
        errors.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if spec.get("activeDeadlineSeconds").is_some() {
        let owner = match owner {
            "deployment" | "replicaset" => "ReplicaSet",
            "statefulset" => "StatefulSet",
            "daemonset" => "DaemonSet",
            _ => "ReplicationController",
        };
        let detail = format!("activeDeadlineSeconds in {owner} is not Supported");
        errors.forbidden("spec.template.spec.activeDeadlineSeconds", &detail);
    }
}

fn counts(spec: &Value, keys: &[&str], errors: &mut Errors) {
    for key in keys {
        errors.not_negative(spec, "spec", key);
    }
}

pub(super) fn deployment(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    counts(spec, &["replicas"], errors);
    selected_template(spec, "deployment", errors);
    let strategy = get(spec, "strategy");
    let path = "spec.strategy";
    match text(strategy, "type") {
        "Recreate" => {
            if strategy.get("rollingUpdate").is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(&at(path, "rollingUpdate"), detail);
            }
        }
        "RollingUpdate" => {
            let rolling = get(strategy, "rollingUpdate");
            if rolling.is_null() {
                let detail = "this should be defaulted and never be nil";
                errors.required(&at(path, "rollingUpdate"), detail);
            } else {
                rolling_update(rolling, &at(path, "rollingUpdate"), errors);
            }
        }
        other => errors.unsupported(&at(path, "type"), other, &["Recreate", "RollingUpdate"]),
    }
    counts(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
    let ready = integer(spec, "minReadySeconds").unwrap_or(0);
    if let Some(deadline) = integer(spec, "progressDeadlineSeconds").filter(|it| *it <= ready) {
        let detail = "must be greater than minReadySeconds";
        errors.invalid("spec.progressDeadlineSeconds", deadline, detail);
    }
}

fn rolling_update(rolling: &Value, path: &str, errors: &mut Errors) {
    for key in ["maxUnavailable", "maxSurge"] {
        int_or_percent(get(rolling, key), &at(path, key), errors);
    }
    let is_zero = |key| percent_or_number(get(rolling, key)) == Some(0);
    if is_zero("maxUnavailable") && is_zero("maxSurge") {
        let value = get(rolling, "maxUnavailable").clone();
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.invalid(&at(path, "maxUnavailable"), value, detail);
    }
    at_most_all(get(rolling, "maxUnavailable"), &at(path, "maxUnavailable"), errors);
}

fn percent_or_number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.strip_suffix('%')?.parse().ok(),
        other => other.as_i64(),
    }
}

fn int_or_percent(value: &Value, field: &str, errors: &mut Errors) {
    let number = percent_or_number(value);
    match value {
        Value::String(text) if number.is_none_or(|number| number < 0) => {
            let detail = "a valid percent string must be a numeric string followed by an ending \
                '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.invalid(field, text.as_str(), detail);
        }
        Value::Number(_) if number.is_some_and(|number| number < 0) => {
            errors.invalid(field, number.unwrap_or(0), super::NOT_NEGATIVE);
        }
        _ => {}
    }
}

/// A part of something is not more than the whole.
fn at_most_all(value: &Value, field: &str, errors: &mut Errors) {
    if let Value::String(percent) = value
        && percent_or_number(value).is_some_and(|value| value > 100)
    {
        errors.invalid(field, percent.as_str(), "must not be greater than 100%");
    }
}

pub(super) fn replica_set(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    counts(spec, &["replicas", "minReadySeconds"], errors);
    selected_template(spec, "replicaset", errors);
}

pub(super) fn replication_controller(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    counts(spec, &["minReadySeconds"], errors);
    if is_empty(spec, "selector") {
        errors.required("spec.selector", "");
    }
    counts(spec, &["replicas"], errors);
    let Some(template) = spec.get("template").filter(|template| !template.is_null()) else {
        errors.required("spec.template", "");
        return;
    };
    if let Some(selector) = spec.get("selector").and_then(Value::as_object) {
        labels_match(&LabelSelector::from_map(selector), template, errors);
    }
    running_template(template, "replicationcontroller", errors);
}

pub(super) fn daemon_set(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    selected_template(spec, "daemonset", errors);
    counts(spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
    let strategy = get(spec, "updateStrategy");
    let path = "spec.updateStrategy";
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = get(strategy, "rollingUpdate");
            for key in ["maxUnavailable", "maxSurge"] {
                int_or_percent(get(rolling, key), &format!("{path}.rollingUpdate.{key}"), errors);
            }
            for key in ["maxUnavailable", "maxSurge"] {
                at_most_all(get(rolling, key), &format!("{path}.rollingUpdate.{key}"), errors);
            }
            let amount = |key| percent_or_number(get(rolling, key)).unwrap_or(0);
            match (amount("maxUnavailable"), amount("maxSurge")) {
                (0, 0) => {
                    let field = format!("{path}.rollingUpdate.maxUnavailable");
                    errors.required(&field, "cannot be 0 when maxSurge is 0");
                }
                (0, _) | (_, 0) => {}
                _ => {
                    let (field, surge) = ("rollingUpdate.maxSurge", get(rolling, "maxSurge"));
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errors.invalid(&at(path, field), surge.clone(), detail);
                }
            }
        }
        other => errors.unsupported(&at(path, "type"), other, &["RollingUpdate", "OnDelete"]),
    }
}

pub(super) fn stateful_set(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    match text(spec, "podManagementPolicy") {
        "" => errors.required("spec.podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errors.invalid("spec.podManagementPolicy", other, detail);
        }
    }
    let strategy = get(spec, "updateStrategy");
    match text(strategy, "type") {
        "" => errors.required("spec.updateStrategy", ""),
        "OnDelete" => {
            if strategy.get("rollingUpdate").is_some() {
                let value = get(strategy, "rollingUpdate").clone();
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errors.invalid("spec.updateStrategy.rollingUpdate", value, detail);
            }
        }
        "RollingUpdate" => {
            let path = "spec.updateStrategy.rollingUpdate";
            let rolling = get(strategy, "rollingUpdate");
            errors.not_negative(rolling, path, "partition");
            let most = get(rolling, "maxUnavailable");
            let field = at(path, "maxUnavailable");
            int_or_percent(most, &field, errors);
            if percent_or_number(most) == Some(0) {
                errors.invalid(&field, most.clone(), "cannot be 0");
            }
        }
        other => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.invalid("spec.updateStrategy", other, detail);
        }
    }
    counts(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], errors);
    errors.not_negative(get(spec, "ordinals"), "spec.ordinals", "start");
    let policy = get(spec, "persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let word = text(policy, key);
        if !word.is_empty() {
            let path = at("spec.persistentVolumeClaimRetentionPolicy", key);
            errors.one_of(&path, word, &["Delete", "Retain"]);
        }
    }
    selected_template(spec, "statefulset", errors);
}

pub(super) fn stateful_set_change(new: &Object, old: &Object, errors: &mut Errors) {
    let free = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |object: &Object| {
        let mut spec = get(object, "spec").clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|key, _| !free.contains(&key.as_str()));
        }
        spec
    };
    if rest(new) != rest(old) {
        errors.forbidden("spec", STATEFUL_SET_FIELDS);
    }
}

/// Deployments, ReplicaSets and DaemonSets may not select other Pods than before.
pub(super) fn selector_change(new: &Object, old: &Object, errors: &mut Errors) {
    let selector = |object| get(get(object, "spec"), "selector");
    errors.immutable("spec.selector", Some(selector(new)), Some(selector(old)));
}

pub(super) fn job(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let selector = get(spec, "selector");
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        label_selector(selector, "spec.selector", errors);
        if let Ok(parsed) = LabelSelector::from_typed(Some(selector)) {
            labels_match(&parsed, get(spec, "template"), errors);
        }
    }
    job_spec(spec, "spec", errors);
}

fn job_spec(spec: &Value, path: &str, errors: &mut Errors) {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for key in numbers {
        errors.not_negative(spec, path, key);
    }
    let mode = text(spec, "completionMode");
    if !mode.is_empty() {
        errors.one_of(&at(path, "completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    let completions = integer(spec, "completions");
    let parallelism = integer(spec, "parallelism").unwrap_or(0);
    if mode == "Indexed" {
        if completions.is_none() {
            let detail = "when completion mode is Indexed";
            errors.required(&at(path, "completions"), detail);
        }
        let limits = [
            ("parallelism", parallelism, PARALLELISM_MAX),
            ("completions", completions.unwrap_or(0), COMPLETIONS_MAX),
        ];
        for (key, number, limit) in limits.into_iter().filter(|(_, number, limit)| number > limit) {
            let detail =
                format!("must be less than or equal to {limit} when completion mode is Indexed");
            errors.invalid(&at(path, key), number, &detail);
        }
    }
    template(get(spec, "template"), &at(path, "template"), errors);
    let field = at(path, "template.spec.restartPolicy");
    match spec.pointer("/template/spec/restartPolicy").and_then(Value::as_str).unwrap_or("") {
        "Always" => errors.required(&field, JOB_POLICIES),
        "OnFailure" | "Never" | "" => {}
        other => errors.unsupported(&field, other, &["OnFailure", "Never"]),
    }
    job::policies(spec, path, errors);
}

/// A Job's work is fixed; what places its Pods may still change while it waits suspended.
pub(super) fn job_change(new: &Object, old: &Object, errors: &mut Errors) {
    let (new_spec, old_spec) = (get(new, "spec"), get(old, "spec"));
    let is_indexed = text(new_spec, "completionMode") == "Indexed";
    let same_as_parallelism = integer(new_spec, "completions") == integer(new_spec, "parallelism");
    for key in [
        "completions",
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        // An indexed Job grows and shrinks by both numbers together.
        let is_elastic = key == "completions" && is_indexed && same_as_parallelism;
        if !is_elastic {
            errors.immutable(&at("spec", key), new_spec.get(key), old_spec.get(key));
        }
    }
    let is_waiting = flag(old_spec, "suspend") && get(old, "status").get("startTime").is_none();
    let placed = |spec: &Value| {
        let mut template = get(spec, "template").clone();
        if let Some(fields) = template.get_mut("spec").and_then(Value::as_object_mut)
            && is_waiting
        {
            for key in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                fields.shift_remove(key);
            }
        }
        if let Some(fields) = template.as_object_mut()
            && is_waiting
        {
            fields.shift_remove("metadata");
        }
        template
    };
    if placed(new_spec) != placed(old_spec) {
        let value = get(new_spec, "template").clone();
        errors.invalid("spec.template", value, IMMUTABLE);
    }
}

pub(super) fn cron_job(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        errors.required("spec.schedule", "");
    } else if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid("spec.schedule", schedule, detail);
    } else if let Some(detail) = schedule_complaint(schedule) {
        errors.invalid("spec.schedule", schedule, &detail);
    } else if let Err(error) = Schedule::parse(schedule) {
        errors.invalid("spec.schedule", schedule, &error.to_string());
    }
    let zone = text(spec, "timeZone");
    if spec.get("timeZone").is_some() && (zone.is_empty() || zone.eq_ignore_ascii_case("local")) {
        let detail = "timeZone must be an explicit time zone as defined in \
            https://www.iana.org/time-zones";
        errors.invalid("spec.timeZone", zone, detail);
    } else if let Err(error) = cron::zone(zone) {
        errors.invalid("spec.timeZone", zone, &error.to_string());
    }
    counts(
        spec,
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        errors,
    );
    let policy = text(spec, "concurrencyPolicy");
    errors.one_of("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"]);
    let template = get(spec, "jobTemplate");
    job_spec(get(template, "spec"), "spec.jobTemplate.spec", errors);
    if get(template, "spec").get("selector").is_some() {
        let value = get(get(template, "spec"), "selector").clone();
        let detail = "`selector` will be auto-generated";
        errors.invalid("spec.jobTemplate.spec.selector", value, detail);
    }
}

const MACROS: &[&str] =
    &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Minute, hour, day of month, month, day of week: (least, greatest, names of the values)
const SCHEDULE_FIELDS: &[(u32, u32, &[&str])] = &[
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// What is wrong with a schedule of five fields, or with one of the names for common schedules.
fn schedule_complaint(schedule: &str) -> Option<String> {
    if schedule.starts_with('@') {
        let is_known = MACROS.contains(&schedule) || schedule.starts_with("@every ");
        return (!is_known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != SCHEDULE_FIELDS.len() {
        let list = fields.join(" ");
        return Some(format!("expected exactly 5 fields, found {}: [{list}]", fields.len()));
    }
    for (field, (least, greatest, names)) in fields.iter().zip(SCHEDULE_FIELDS) {
        for part in field.split(',') {
            if let Some(complaint) = range_complaint(part, *least, *greatest, names) {
                return Some(complaint);
            }
        }
    }
    None
}

/// One part of a field: `*`, `5`, `mon-fri`, `*/10`, `1-30/2`.
fn range_complaint(part: &str, least: u32, greatest: u32, names: &[&str]) -> Option<String> {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let number = |text: &str| {
        let lower = text.to_lowercase();
        let named = names.iter().position(|name| *name == lower);
        match named.and_then(|at| u32::try_from(at).ok()) {
            Some(at) => Ok(at + least),
            None => text.parse::<u32>().map_err(|_| format!("failed to parse int from {text}")),
        }
    };
    if step.is_some_and(|step| step.parse::<u32>().map_or(true, |step| step == 0)) {
        return Some(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return None;
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = match (number(first), number(last)) {
        (Ok(first), Ok(last)) => (first, last),
        (Err(complaint), _) | (_, Err(complaint)) => return Some(complaint),
    };
    if first < least {
        return Some(format!("beginning of range ({first}) below minimum ({least}): {part}"));
    }
    if last > greatest {
        return Some(format!("end of range ({last}) above maximum ({greatest}): {part}"));
    }
    let complaint = format!("beginning of range ({first}) beyond end of range ({last}): {part}");
    (first > last).then_some(complaint)
}

pub(super) fn disruption_budget(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let both = ["minAvailable", "maxUnavailable"];
    if both.iter().all(|key| spec.get(*key).is_some()) {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.invalid("spec", spec.clone(), detail);
    }
    for key in both {
        int_or_percent(get(spec, key), &at("spec", key), errors);
        at_most_all(get(spec, key), &at("spec", key), errors);
    }
    let policy = text(spec, "unhealthyPodEvictionPolicy");
    if !policy.is_empty() {
        let field = "spec.unhealthyPodEvictionPolicy";
        errors.one_of(field, policy, &["IfHealthyBudget", "AlwaysAllow"]);
    }
    label_selector(get(spec, "selector"), "spec.selector", errors);
}
