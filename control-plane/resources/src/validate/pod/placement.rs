//! Rules for where Pods want to be: affinities and how they spread.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::meta::{items, text};
use crate::names;
use crate::validate::workloads::label_selector;
use crate::validate::{Errors, at, entries, get, integer, is_empty, nth};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const WITHOUT_SELECTOR: &str = "must not be specified when labelSelector is not set";
const IN_SELECTOR: &str = "exists in both matchLabelKeys and labelSelector";

/// `labels` are those of the Pod; a template has none.
pub(super) fn affinity(affinity: &Value, labels: &Value, path: &str, errors: &mut Errors) {
    let nodes = get(affinity, "nodeAffinity");
    let field = at(path, "nodeAffinity");
    let required = get(nodes, REQUIRED);
    if required.is_object() {
        let field = at(&field, REQUIRED);
        if is_empty(required, "nodeSelectorTerms") {
            let detail = "must have at least one node selector term";
            errors.required(&at(&field, "nodeSelectorTerms"), detail);
        }
        for (index, term) in items(required, "nodeSelectorTerms").iter().enumerate() {
            node_term(term, &nth(&field, "nodeSelectorTerms", index), errors);
        }
    }
    for (index, term) in items(nodes, PREFERRED).iter().enumerate() {
        let field = nth(&field, PREFERRED, index);
        weight(term, &field, errors);
        node_term(get(term, "preference"), &at(&field, "preference"), errors);
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let (pods, field) = (get(affinity, key), at(path, key));
        for (index, term) in items(pods, REQUIRED).iter().enumerate() {
            pod_term(term, labels, &nth(&field, REQUIRED, index), errors);
        }
        for (index, term) in items(pods, PREFERRED).iter().enumerate() {
            let field = nth(&field, PREFERRED, index);
            weight(term, &field, errors);
            let (term, field) = (get(term, "podAffinityTerm"), at(&field, "podAffinityTerm"));
            pod_term(term, labels, &field, errors);
        }
    }
}

fn weight(term: &Value, path: &str, errors: &mut Errors) {
    let weight = integer(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&at(path, "weight"), weight, "must be in the range 1-100");
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for (index, wanted) in items(term, "matchExpressions").iter().enumerate() {
        let path = nth(path, "matchExpressions", index);
        let values = items(wanted, "values").len();
        let field = at(&path, "values");
        match text(wanted, "operator") {
            "In" | "NotIn" if values == 0 => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.required(&field, detail);
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&field, detail);
            }
            "Gt" | "Lt" if values != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&field, detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                errors.invalid(&at(&path, "operator"), other, "not a valid selector operator");
            }
        }
        let key = text(wanted, "key");
        errors.complaints(&at(&path, "key"), key, names::qualified(key));
    }
    for (index, wanted) in items(term, "matchFields").iter().enumerate() {
        let path = nth(path, "matchFields", index);
        match text(wanted, "operator") {
            "In" | "NotIn" => {
                if items(wanted, "values").len() != 1 {
                    let detail = "must be only one value when `operator` is 'In' or 'NotIn' for \
                        node field selector";
                    errors.required(&at(&path, "values"), detail);
                }
            }
            other => {
                errors.invalid(&at(&path, "operator"), other, "not a valid selector operator");
            }
        }
        let key = text(wanted, "key");
        if key != "metadata.name" {
            errors.invalid(&at(&path, "key"), key, "not a valid field selector key");
        }
    }
}

fn pod_term(term: &Value, labels: &Value, path: &str, errors: &mut Errors) {
    for key in ["labelSelector", "namespaceSelector"] {
        label_selector(get(term, key), &at(path, key), errors);
    }
    for name in items(term, "namespaces").iter().filter_map(Value::as_str) {
        errors.complaints(&at(path, "namespace"), name, names::label(name));
    }
    label_keys(term, labels, path, errors);
    let (key, field) = (text(term, "topologyKey"), at(path, "topologyKey"));
    if key.is_empty() {
        errors.required(&field, "can not be empty");
    }
    errors.complaints(&field, key, names::qualified(key));
}

/// Keys whose values are the Pod's own: a selector that has them too would say them twice.
fn label_keys(term: &Value, labels: &Value, path: &str, errors: &mut Errors) {
    let selector = get(term, "labelSelector");
    let keys = |list| items(term, list).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let (matched, mismatched) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    for (list, keys) in [("matchLabelKeys", &matched), ("mismatchLabelKeys", &mismatched)] {
        if !keys.is_empty() && !selector.is_object() {
            errors.forbidden(&at(path, list), WITHOUT_SELECTOR);
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            errors.complaints(&nth(path, list, index), key, names::qualified(key));
        }
    }
    if selector.is_object() {
        // A stock server has made expressions of the keys that the Pod has, behind the others.
        let made = matched.iter().chain(&mismatched).copied();
        let made = made.filter(|key| labels.get(key).is_some());
        let written = items(selector, "matchExpressions").iter().map(|it| text(it, "key"));
        let mut known: BTreeSet<&str> =
            entries(selector, "matchLabels").map(|(key, _)| key.as_str()).collect();
        for key in written.chain(made) {
            let index = matched.iter().rposition(|other| *other == key);
            if let Some(index) = index.filter(|_| known.contains(key)) {
                errors.invalid(&format!("{path}[{index}]"), key, IN_SELECTOR);
            }
            known.insert(key);
        }
    }
    for (index, key) in matched.iter().enumerate() {
        if mismatched.contains(key) {
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.invalid(&nth(path, "matchLabelKeys", index), *key, detail);
        }
    }
}

/// The same for a constraint, whose selector must not have them at all.
fn spread_keys(constraint: &Value, path: &str, errors: &mut Errors) {
    let selector = get(constraint, "labelSelector");
    let keys = items(constraint, "matchLabelKeys");
    if !keys.is_empty() && !selector.is_object() {
        errors.forbidden(&at(path, "matchLabelKeys"), WITHOUT_SELECTOR);
    }
    for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
        let field = nth(path, "matchLabelKeys", index);
        errors.complaints(&field, key, names::qualified(key));
        let mut expressions = items(selector, "matchExpressions").iter();
        if get(selector, "matchLabels").get(key).is_some()
            || expressions.any(|it| text(it, "key") == key)
        {
            errors.invalid(&field, key, IN_SELECTOR);
        }
    }
}

pub(super) fn spread(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = nth(path, "topologySpreadConstraints", index);
        let skew = integer(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&at(&path, "maxSkew"), skew, "must be greater than zero");
        }
        let key = text(constraint, "topologyKey");
        match key {
            "" => errors.required(&at(&path, "topologyKey"), "can not be empty"),
            key => errors.complaints(&at(&path, "topologyKey"), key, names::qualified(key)),
        }
        let action = text(constraint, "whenUnsatisfiable");
        let supported = &["DoNotSchedule", "ScheduleAnyway"];
        errors.one_of(&at(&path, "whenUnsatisfiable"), action, supported);
        if !seen.insert((key, action)) {
            let field = at(&path, "{topologyKey, whenUnsatisfiable}");
            errors.duplicate(&field, format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = integer(constraint, "minDomains") {
            let field = at(&path, "minDomains");
            if domains <= 0 {
                errors.invalid(&field, domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                errors.invalid(&field, domains, &detail);
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = text(constraint, key);
            if !policy.is_empty() {
                errors.one_of(&at(&path, key), policy, &["Honor", "Ignore"]);
            }
        }
        spread_keys(constraint, &path, errors);
        label_selector(get(constraint, "labelSelector"), &at(&path, "labelSelector"), errors);
    }
}
