//! What is refused: one script, in which each case changes a good object in a few places.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::testscript::{self, argument};
use crate::{Object, defaults};

/// `set /spec/replicas -1`: puts a value at a JSON pointer; without a value the field is removed. A
/// pointer may end in `-` to append to a list.
fn set(object: &mut Object, line: &str) {
    let (pointer, value) = line.split_once(' ').unwrap_or((line, ""));
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {parent}"));
    match parent {
        Value::Array(list) if key == "-" => list.push(testscript::json(value)),
        Value::Object(map) if value.is_empty() => {
            map.shift_remove(key);
        }
        parent => parent[key] = testscript::json(value),
    }
}

fn said(errors: &[super::FieldError]) -> String {
    let lines: Vec<String> =
        errors.iter().map(|error| format!("{} {error}", error.reason.as_str())).collect();
    if lines.is_empty() { "ok".to_string() } else { lines.join("\n") }
}

#[test]
fn refusals() {
    let mut bases: BTreeMap<String, Object> = BTreeMap::new();
    testscript::check("validate.txt", |case| {
        let (verb, qualified) = case[0];
        let kind = testscript::kind(qualified);
        if verb == "base" {
            let mut object = testscript::json(argument(case, "object"));
            defaults::apply(kind, &mut object);
            let errors = super::create(kind, &object);
            bases.insert(qualified.to_string(), object);
            return said(&errors);
        }
        let mut old = bases[qualified].clone();
        let lines = |word: &'static str| case.iter().filter(move |(other, _)| *other == word);
        lines("old").for_each(|(_, line)| set(&mut old, line));
        let mut new = old.clone();
        lines("set").for_each(|(_, line)| set(&mut new, line));
        let errors = match verb {
            "create" => super::create(kind, &new),
            "update" => super::update(kind, &new, &old),
            "status" => super::update_status(kind, &new, &old),
            other => panic!("{other} is no verb of this script"),
        };
        let lines: Vec<String> =
            errors.iter().map(|error| format!("{} {error}", error.reason.as_str())).collect();
        if lines.is_empty() { "ok".to_string() } else { lines.join("\n") }
    });
}

#[test]
fn one_complaint_stands_alone_and_several_in_brackets() {
    let kind = testscript::kind("configmaps");
    let bad = serde_json::json!({"metadata": {"namespace": "n"}});
    let errors = super::create(kind, &bad);
    assert_eq!(
        super::summary(&errors),
        "metadata.name: Required value: name or generateName is required"
    );
    let worse = super::create(kind, &serde_json::json!({}));
    assert_eq!(
        super::summary(&worse),
        "[metadata.name: Required value: name or generateName is required, \
         metadata.namespace: Required value]"
    );
}

#[test]
fn complaints_end_somewhere() {
    let env = vec![serde_json::json!({}); 20_000];
    let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n"},
        "spec": {"containers": [{"name": "c", "image": "i", "env": env}]}});
    let errors = super::create(testscript::kind("pods"), &pod);
    assert_eq!(errors.len(), super::ERRORS_MAX);
    assert!(super::summary(&errors).contains("spec.containers[0].env[3]"));
}

#[test]
fn complaints_that_repeat_a_long_list_end_soon() {
    let scopes: Vec<String> = (0..20_000).map(|number| format!("none{number}")).collect();
    let quota = serde_json::json!({"metadata": {"name": "q", "namespace": "n"},
        "spec": {"scopes": scopes}});
    let errors = super::create(testscript::kind("resourcequotas"), &quota);
    let bytes: usize = errors.iter().map(|error| error.message.len()).sum();
    assert!(!errors.is_empty() && bytes < 2 * super::ERROR_BYTES_MAX, "{bytes}");
}

#[test]
fn what_was_stored_before_a_rule_came_holds_up_no_other_change() {
    let kind = testscript::kind("ingresses.networking.k8s.io");
    let ingress = |class: &str, secrets: &[&str]| {
        let tls: Vec<Value> = secrets.iter().map(|name| json!({"secretName": name})).collect();
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        json!({
            "metadata": {"name": "a", "namespace": "n"},
            "spec": {"ingressClassName": class, "tls": tls, "defaultBackend": backend},
        })
    };
    let old = ingress("one", &["S"]);
    assert_eq!(super::create(kind, &old).len(), 1);
    assert_eq!(said(&super::update(kind, &ingress("two", &["S"]), &old)), "ok");
    let errors = super::update(kind, &ingress("one", &["S", "T"]), &old);
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["spec.tls[1].secretName"]);
}

#[test]
fn what_a_policy_would_silently_not_do_is_refused() {
    let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Is", "values": ["b"]}]});
    let rule = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*"]});
    let note = json!({"key": "k", "valueExpression": "'x'"});
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule], "matchPolicy": "Equal",
            "namespaceSelector": wrong, "objectSelector": {"matchLabels": {"a": "b"}}},
        "auditAnnotations": [note, note]}});
    let kind = "validatingadmissionpolicies.admissionregistration.k8s.io";
    let errors = super::create(testscript::kind(kind), &policy);
    let operator =
        "matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator";
    let expected = [
        "FieldValueDuplicate spec.auditAnnotations[1].key: Duplicate value: \"k\"".to_owned(),
        format!("FieldValueInvalid spec.matchConstraints.namespaceSelector.{operator}"),
        "FieldValueNotSupported spec.matchConstraints.matchPolicy: Unsupported value: \"Equal\": \
         supported values: \"Equivalent\", \"Exact\""
            .to_owned(),
    ];
    let said = said(&errors);
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, expected);
}
