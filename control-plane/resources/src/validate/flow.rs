//! Rules for FlowSchemas and for the priority levels to which they lead.

use serde_json::Value;

use super::{Errors, at, flag, get, integer, is_empty, nth};
use crate::meta::{self, items, text};
use crate::{Object, names};

/// The last schemas that are asked have this precedence.
const PRECEDENCE_MAX: i64 = 10_000;
/// Queues of one level.
const QUEUES_MAX: i64 = 10_000_000;
const POSITIVE: &str = "must be positive";

pub(super) fn schema(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let precedence = integer(spec, "matchingPrecedence").unwrap_or(0);
    let field = "spec.matchingPrecedence";
    if precedence <= 0 {
        errors.invalid(field, precedence, "must be a positive value");
    } else if precedence > PRECEDENCE_MAX {
        let detail = format!("must not be greater than {PRECEDENCE_MAX}");
        errors.invalid(field, precedence, &detail);
    } else if precedence == 1 && meta::name(object) != "exempt" {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid(field, precedence, detail);
    }
    let method = get(spec, "distinguisherMethod");
    if method.is_object() {
        let field = "spec.distinguisherMethod.type";
        errors.one_of(field, text(method, "type"), &["ByNamespace", "ByUser"]);
    }
    let field = "spec.priorityLevelConfiguration.name";
    match text(get(spec, "priorityLevelConfiguration"), "name") {
        "" => errors.required(field, "must reference a priority level"),
        level => errors.complaints(field, level, names::subdomain(level)),
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        self::rule(rule, &nth("spec", "rules", index), errors);
    }
}

fn rule(rule: &Value, path: &str, errors: &mut Errors) {
    if is_empty(rule, "subjects") {
        errors.required(&at(path, "subjects"), "subjects must contain at least one value");
    }
    for (index, subject) in items(rule, "subjects").iter().enumerate() {
        self::subject(subject, &nth(path, "subjects", index), errors);
    }
    if is_empty(rule, "resourceRules") && is_empty(rule, "nonResourceRules") {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(path, detail);
    }
    for (index, part) in items(rule, "resourceRules").iter().enumerate() {
        let path = nth(path, "resourceRules", index);
        let missing = "resource rules must supply at least one";
        words(part, &path, "verbs", "verbs must contain at least one value", "verbs", errors);
        words(part, &path, "apiGroups", &format!("{missing} api group"), "api groups", errors);
        words(part, &path, "resources", &format!("{missing} resource"), "resources", errors);
        if !is_empty(part, "namespaces") {
            alone(part, &path, "namespaces", "namespaces", errors);
        } else if !flag(part, "clusterScope") {
            let detail = "resource rules that are not cluster scoped must supply at least one \
                namespace";
            errors.required(&at(&path, "namespaces"), detail);
        }
    }
    for (index, part) in items(rule, "nonResourceRules").iter().enumerate() {
        let path = nth(path, "nonResourceRules", index);
        let missing = "nonResourceURLs must contain at least one value";
        words(part, &path, "verbs", "verbs must contain at least one value", "verbs", errors);
        words(part, &path, "nonResourceURLs", missing, "non-resource URLs", errors);
    }
}

/// A list of words that is not empty; `*` stands alone.
fn words(rule: &Value, path: &str, key: &str, missing: &str, others: &str, errors: &mut Errors) {
    if is_empty(rule, key) {
        errors.required(&at(path, key), missing);
    }
    alone(rule, path, key, others, errors);
}

fn alone(rule: &Value, path: &str, key: &str, others: &str, errors: &mut Errors) {
    let list = items(rule, key);
    if list.len() > 1 && list.iter().any(|word| word == "*") {
        let detail = format!("if '*' is present, must not specify other {others}");
        errors.invalid(&at(path, key), get(rule, key).clone(), &detail);
    }
}

fn subject(subject: &Value, path: &str, errors: &mut Errors) {
    let kind = text(subject, "kind");
    let key = match kind {
        "Group" => "group",
        "ServiceAccount" => "serviceAccount",
        "User" => "user",
        _ => {
            errors.unsupported(&at(path, "kind"), kind, &["Group", "ServiceAccount", "User"]);
            return;
        }
    };
    let field = at(path, key);
    let given = get(subject, key);
    if !given.is_object() {
        errors.required(&field, &format!("{key} is required when subject kind is '{kind}'"));
        return;
    }
    if text(given, "name").is_empty() {
        errors.required(&at(&field, "name"), "");
    }
    if kind == "ServiceAccount" && text(given, "namespace").is_empty() {
        let detail = "must specify namespace for service account";
        errors.required(&at(&field, "namespace"), detail);
    }
}

pub(super) fn level(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let (exempt, limited) = (get(spec, "exempt"), get(spec, "limited"));
    match text(spec, "type") {
        "Exempt" => {
            if !limited.is_null() {
                errors.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
            shares(exempt, "spec.exempt", errors);
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            match limited.is_object() {
                true => self::limited(limited, errors),
                false => {
                    errors.required("spec.limited", "must not be empty when type is Limited");
                }
            }
        }
        other => errors.unsupported("spec.type", other, &["Exempt", "Limited"]),
    }
}

fn shares(level: &Value, path: &str, errors: &mut Errors) {
    if let Some(shares) = integer(level, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        let field = at(path, "nominalConcurrencyShares");
        errors.invalid(&field, shares, "must be a non-negative integer");
    }
    if let Some(percent) = integer(level, "lendablePercent")
        && !(0..=100).contains(&percent)
    {
        let field = at(path, "lendablePercent");
        errors.invalid(&field, percent, "must be between 0 and 100, inclusive");
    }
}

fn limited(limited: &Value, errors: &mut Errors) {
    shares(limited, "spec.limited", errors);
    if let Some(percent) = integer(limited, "borrowingLimitPercent").filter(|limit| *limit < 0) {
        let field = "spec.limited.borrowingLimitPercent";
        errors.invalid(field, percent, "if specified, must be a non-negative integer");
    }
    let response = get(limited, "limitResponse");
    let path = "spec.limited.limitResponse";
    let queuing = get(response, "queuing");
    let field = at(path, "queuing");
    match text(response, "type") {
        "Reject" if !queuing.is_null() => {
            // Kubernetes says "Limited" here, though it means the type "Queue".
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.forbidden(&field, detail);
        }
        "Reject" => {}
        "Queue" if queuing.is_object() => self::queuing(queuing, &field, errors),
        "Queue" => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.required(&field, detail);
        }
        other => errors.unsupported(&at(path, "type"), other, &["Queue", "Reject"]),
    }
}

fn queuing(queuing: &Value, path: &str, errors: &mut Errors) {
    let number = |key| integer(queuing, key).unwrap_or(0);
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    if length <= 0 {
        errors.invalid(&at(path, "queueLengthLimit"), length, POSITIVE);
    }
    if queues <= 0 {
        errors.invalid(&at(path, "queues"), queues, POSITIVE);
    } else if queues > QUEUES_MAX {
        let detail = format!("must not be greater than {QUEUES_MAX}");
        errors.invalid(&at(path, "queues"), queues, &detail);
    }
    if hand <= 0 {
        errors.invalid(&at(path, "handSize"), hand, POSITIVE);
    } else if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.invalid(&at(path, "handSize"), hand, &detail);
    }
}
