//! Rules for what a Job makes of failures and successes: its policies, limits by index, its
//! manager. The rest of a Job stands in the file above.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::{Errors, Reason, at, get, integer, nth};
use crate::meta::{items, text};
use crate::names;

/// Rules of one policy, and patterns of one rule.
const RULES_MAX: usize = 20;
/// Exit codes of one rule: as many as there are.
const CODES_MAX: usize = 255;
const MANAGER_BYTES_MAX: usize = 63;
const INDEXES_BYTES_MAX: usize = 64 * 1024;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const NOT_INDEXED: &str = "requires indexed completion mode";

/// Everything in a Job's spec that decides about failures and successes.
pub(super) fn policies(spec: &Value, path: &str, errors: &mut Errors) {
    by_index(spec, path, errors);
    manager(spec, path, errors);
    if !get(spec, "podFailurePolicy").is_null() {
        failure_policy(spec, path, errors);
    }
    if !get(spec, "successPolicy").is_null() {
        success_policy(spec, path, errors);
    }
    let replacement = text(spec, "podReplacementPolicy");
    if !replacement.is_empty() {
        let field = at(path, "podReplacementPolicy");
        match get(spec, "podFailurePolicy").is_null() {
            true => errors.one_of(&field, replacement, &["Failed", "TerminatingOrFailed"]),
            false => errors.one_of(&field, replacement, &["Failed"]),
        }
    }
}

fn is_indexed(spec: &Value) -> bool {
    text(spec, "completionMode") == "Indexed"
}

fn by_index(spec: &Value, path: &str, errors: &mut Errors) {
    for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if let Some(number) = integer(spec, key).filter(|_| !is_indexed(spec)) {
            errors.invalid(&at(path, key), number, NOT_INDEXED);
        }
    }
    let Some(most) = integer(spec, "maxFailedIndexes") else { return };
    if integer(spec, "backoffLimitPerIndex").is_none() {
        errors.required(&at(path, "backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if integer(spec, "completions").is_some_and(|completions| most > completions) {
        let detail = "must be less than or equal to completions";
        errors.invalid(&at(path, "maxFailedIndexes"), most, detail);
    }
}

fn manager(spec: &Value, path: &str, errors: &mut Errors) {
    let field = at(path, "managedBy");
    let Some(manager) = get(spec, "managedBy").as_str() else { return };
    match manager.split_once('/') {
        _ if manager.is_empty() => errors.required(&field, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            errors.complaints(&field, host, names::subdomain(host));
        }
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid(&field, manager, detail);
        }
    }
    if manager.len() > MANAGER_BYTES_MAX {
        errors.too_long(&field, MANAGER_BYTES_MAX);
    }
}

fn failure_policy(spec: &Value, path: &str, errors: &mut Errors) {
    let restarts = spec.pointer("/template/spec/restartPolicy").and_then(Value::as_str);
    if let Some(restarts) = restarts.filter(|word| *word == "OnFailure") {
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.invalid(&at(path, "template.spec.restartPolicy"), restarts, detail);
    }
    let path = at(path, "podFailurePolicy");
    let rules = items(get(spec, "podFailurePolicy"), "rules");
    if rules.len() > RULES_MAX {
        errors.too_many(&at(&path, "rules"), rules.len(), RULES_MAX);
    }
    for (index, rule) in rules.iter().enumerate() {
        failure_rule(spec, rule, &nth(&path, "rules", index), errors);
    }
}

fn failure_rule(spec: &Value, rule: &Value, path: &str, errors: &mut Errors) {
    let field = at(path, "action");
    match text(rule, "action") {
        "" => errors.required(&field, &valid(&ACTIONS)),
        "FailIndex" if integer(spec, "backoffLimitPerIndex").is_none() => {
            errors.invalid(&field, "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
        action => errors.one_of(&field, action, &ACTIONS),
    }
    let codes = get(rule, "onExitCodes");
    let by_codes = !codes.is_null();
    if by_codes {
        exit_codes(spec, codes, &at(path, "onExitCodes"), errors);
    }
    let patterns = items(rule, "onPodConditions");
    if patterns.len() > RULES_MAX {
        errors.too_many(&at(path, "onPodConditions"), patterns.len(), RULES_MAX);
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = nth(path, "onPodConditions", index);
        let kind = text(pattern, "type");
        errors.complaints(&at(&path, "type"), kind, names::qualified(kind));
        let statuses = ["False", "True", "Unknown"];
        match text(pattern, "status") {
            "" => errors.required(&at(&path, "status"), &valid(&statuses)),
            status => errors.one_of(&at(&path, "status"), status, &statuses),
        }
    }
    let why = match (by_codes, patterns.is_empty()) {
        (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
        (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
        _ => return,
    };
    errors.add(Reason::Invalid, path, format!("Invalid value: {why}"));
}

/// `valid values: ["A" "B"]`
fn valid(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("valid values: [{}]", words.join(" "))
}

fn exit_codes(spec: &Value, codes: &Value, path: &str, errors: &mut Errors) {
    let operators = ["In", "NotIn"];
    let operator = text(codes, "operator");
    match operator {
        "" => errors.required(&at(path, "operator"), &valid(&operators)),
        operator => errors.one_of(&at(path, "operator"), operator, &operators),
    }
    if let Some(name) = get(codes, "containerName").as_str() {
        let template = get(get(spec, "template"), "spec");
        let lists = ["containers", "initContainers"];
        let mut named = lists.iter().flat_map(|list| items(template, list));
        if !named.any(|container| text(container, "name") == name) {
            let detail = "must be one of the container or initContainer names in the pod template";
            errors.invalid(&at(path, "containerName"), name, detail);
        }
    }
    let field = at(path, "values");
    let values: Vec<i64> = items(codes, "values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        errors.invalid(&field, Vec::<Value>::new(), "at least one value is required");
    } else if values.len() > CODES_MAX {
        errors.too_many(&field, values.len(), CODES_MAX);
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        let field = nth(path, "values", index);
        if operator == "In" && *value == 0 {
            errors.invalid(&field, 0, "must not be 0 for the In operator");
        }
        if !seen.insert(*value) {
            errors.duplicate(&field, *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&field, values, "must be ordered");
    }
}

fn success_policy(spec: &Value, path: &str, errors: &mut Errors) {
    let policy = get(spec, "successPolicy");
    let path = at(path, "successPolicy");
    if !is_indexed(spec) {
        return errors.invalid(&path, policy.clone(), NOT_INDEXED);
    }
    let rules = items(policy, "rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&at(&path, "rules"), detail);
    }
    if rules.len() > RULES_MAX {
        errors.too_many(&at(&path, "rules"), rules.len(), RULES_MAX);
    }
    let completions = integer(spec, "completions").unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        success_rule(rule, completions, &nth(&path, "rules", index), errors);
    }
}

fn success_rule(rule: &Value, completions: i64, path: &str, errors: &mut Errors) {
    let (indexes, count) =
        (get(rule, "succeededIndexes").as_str(), integer(rule, "succeededCount"));
    if indexes.is_none() && count.is_none() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.required(path, detail);
    }
    let mut named = None;
    if let Some(indexes) = indexes {
        let field = at(path, "succeededIndexes");
        if indexes.len() > INDEXES_BYTES_MAX {
            errors.too_long(&field, INDEXES_BYTES_MAX);
        }
        match count_indexes(indexes, completions) {
            Ok(count) => named = Some(count),
            Err(why) => {
                errors.invalid(&field, indexes, &format!("error parsing succeededIndexes: {why}"));
            }
        }
    }
    errors.not_negative(rule, path, "succeededCount");
    let Some(count) = count else { return };
    let field = at(path, "succeededCount");
    if count > completions {
        let detail = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        errors.invalid(&field, count, &detail);
    }
    if let Some(named) = named.filter(|named| count > *named) {
        let detail = format!(
            "must be less than or equal to {named} (the number of indexes in the specified \
             succeededIndexes field)"
        );
        errors.invalid(&field, count, &detail);
    }
}

/// How many indexes `0,2-4` names, each below `completions`.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |text: &str| {
        let number = text.parse::<i64>();
        let number =
            number.map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        match number < completions {
            true => Ok(number),
            false => Err(format!("too large index: {text:?}")),
        }
    };
    let falls = |last: i64, next: i64| {
        Err(format!("non-increasing order, previous: {last}, current: {next}"))
    };
    let (mut total, mut last): (i64, Option<i64>) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = part.split('-').collect();
        let (first, end) = match ends[..] {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can \
                     have at most two parts separated by '-'"
                ));
            }
        };
        if ends.len() == 2 && first >= end {
            return falls(first, end);
        }
        if let Some(last) = last.filter(|last| *last >= first) {
            return falls(last, first);
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Complaints about a Job whose spec has these fields, too.
    #[track_caller]
    fn check(fields: Value, expected: &[&str]) {
        let kind = crate::kind("batch", "v1", "jobs").expect("in the table of kinds");
        let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]});
        let mut spec = json!({"template": {"spec": pod}});
        for (key, value) in fields.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        let meta = json!({"name": "j", "namespace": "n", "uid": "u"});
        let mut job = json!({"metadata": meta, "spec": spec});
        crate::defaults::apply(kind, &mut job);
        let errors = super::super::super::create(kind, &job);
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn limits_by_index_need_indexes() {
        let needs = "requires indexed completion mode";
        check(
            json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 1}),
            &[
                &format!("spec.backoffLimitPerIndex: Invalid value: 1: {needs}"),
                &format!("spec.maxFailedIndexes: Invalid value: 1: {needs}"),
            ],
        );
        let indexed = |most: i64| {
            json!({
                "completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1,
                "maxFailedIndexes": most,
            })
        };
        check(indexed(3), &[]);
        let more =
            "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions";
        check(indexed(4), &[more]);
        check(
            json!({"completionMode": "Indexed", "completions": 3, "maxFailedIndexes": 1}),
            &["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"],
        );
    }

    #[test]
    fn a_manager_has_a_domain() {
        check(json!({"managedBy": "acme.io/jobs"}), &[]);
        let path = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        check(
            json!({"managedBy": "acme"}),
            &[&format!("spec.managedBy: Invalid value: \"acme\": {path}")],
        );
    }

    #[test]
    fn rules_about_failures_are_whole() {
        let policy = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
        let codes = |operator: &str, values: Value| {
            let codes = json!({"operator": operator, "values": values, "containerName": "c"});
            policy(json!({"action": "FailJob", "onExitCodes": codes}))
        };
        check(codes("In", json!([1, 42])), &[]);
        let at = "spec.podFailurePolicy.rules[0]";
        check(
            codes("In", json!([42, 0, 42])),
            &[
                &format!(
                    "{at}.onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In \
                     operator"
                ),
                &format!("{at}.onExitCodes.values[2]: Duplicate value: 42"),
                &format!("{at}.onExitCodes.values: Invalid value: [42,0,42]: must be ordered"),
            ],
        );
        check(
            codes("Is", json!([])),
            &[
                &format!(
                    "{at}.onExitCodes.operator: Unsupported value: \"Is\": supported values: \
                     \"In\", \"NotIn\""
                ),
                &format!(
                    "{at}.onExitCodes.values: Invalid value: []: at least one value is required"
                ),
            ],
        );
        check(policy(json!({"action": "Ignore", "onPodConditions": [{"type": "X"}]})), &[]);
        let one = "specifying one of OnExitCodes and OnPodConditions is required";
        check(
            policy(json!({"action": "FailIndex"})),
            &[
                &format!(
                    "{at}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex \
                     to be set"
                ),
                &format!("{at}: Invalid value: {one}"),
            ],
        );
        let mut beside = policy(json!({"action": "Count", "onPodConditions": [{"type": "X"}]}));
        beside["podReplacementPolicy"] = json!("TerminatingOrFailed");
        let only = "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": \
                    supported values: \"Failed\"";
        check(beside, &[only]);
    }

    #[test]
    fn rules_about_success_name_indexes_that_are_there() {
        let policy = |rule: Value| {
            json!({
                "completionMode": "Indexed", "completions": 5,
                "successPolicy": {"rules": [rule]},
            })
        };
        check(policy(json!({"succeededIndexes": "0,2-4", "succeededCount": 2})), &[]);
        let at = "spec.successPolicy.rules[0]";
        check(
            policy(json!({})),
            &[&format!(
                "{at}: Required value: at least one of succeededCount or succeededIndexes must be \
                 specified"
            )],
        );
        check(
            policy(json!({"succeededIndexes": "0-1", "succeededCount": 3})),
            &[&format!(
                "{at}.succeededCount: Invalid value: 3: must be less than or equal to 2 (the \
                 number of indexes in the specified succeededIndexes field)"
            )],
        );
        for (text, why) in [
            ("5", "too large index: \"5\""),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("3,1", "non-increasing order, previous: 3, current: 1"),
            ("2-2", "non-increasing order, previous: 2, current: 2"),
        ] {
            let error = format!(
                "{at}.succeededIndexes: Invalid value: {text:?}: error parsing succeededIndexes: \
                 {why}"
            );
            check(policy(json!({"succeededIndexes": text})), &[&error]);
        }
        check(
            json!({"successPolicy": {"rules": []}}),
            &[
                "spec.successPolicy: Invalid value: {\"rules\":[]}: requires indexed completion mode",
            ],
        );
    }
}
