//! Rules over objects: what is complained about, and where.

use serde_json::json;

use super::*;

/// Complaints about an object, one a line.
fn check(schema: &Value, new: Value, old: Option<Value>) -> String {
    let schema = Schema::parse(schema);
    let mut mistakes = Vec::new();
    let rules = Rules::compile(&schema, &mut mistakes);
    let wrong = mistakes.iter().map(|one| format!("{}[{}] {}", one.place, one.index, one.why));
    let errors = rules.check(&schema, &new, old.as_ref());
    wrong.chain(errors.iter().map(ToString::to_string)).collect::<Vec<_>>().join("\n")
}

fn schema(spec_rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": spec_rules,
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
            "list": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["key"],
                "items": {"type": "object", "required": ["key"],
                    "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size",
                        "message": "may only grow"}],
                    "properties": {"key": {"type": "string"}, "size": {"type": "integer"}}}},
        },
    }}})
}

#[test]
fn a_rule_speaks_with_its_message_or_itself() {
    let rules = schema(json!([{"rule": "self.min <= self.max"},
        {"rule": "self.min > 0", "message": "min must be positive"},
        {"rule": "self.max < 10", "messageExpression": "'max is ' + string(self.max)",
            "fieldPath": ".max", "reason": "FieldValueForbidden"}]));
    assert_eq!(
        check(&rules, json!({"spec": {"min": 0, "max": -1}}), None),
        "spec: Invalid value: \"object\": failed rule: self.min <= self.max\n\
         spec: Invalid value: \"object\": min must be positive"
    );
    assert_eq!(
        check(&rules, json!({"spec": {"min": 1, "max": 12}}), None),
        "spec.max: Forbidden: max is 12"
    );
    assert_eq!(
        check(&rules, json!({"spec": {"min": 1}}), None).lines().next(),
        Some(
            "spec: Invalid value: \"object\": no such key: max evaluating rule: \
             self.min <= self.max"
        )
    );
    assert_eq!(check(&rules, json!({"spec": {"min": 1, "max": 2}}), None), "");
}

#[test]
fn transitions_look_at_what_was_before() {
    let rules = schema(json!([{"rule": "self.name == oldSelf.name", "message": "name is fixed"}]));
    let spec = |name: &str| json!({"spec": {"name": name}});
    assert_eq!(check(&rules, spec("a"), None), "");
    assert_eq!(check(&rules, spec("a"), Some(spec("a"))), "");
    assert_eq!(
        check(&rules, spec("b"), Some(spec("a"))),
        "spec: Invalid value: \"object\": name is fixed"
    );
    let list = |size: i64| json!({"spec": {"name": "a", "list": [{"key": "k", "size": size}]}});
    assert_eq!(check(&rules, list(2), Some(list(1))), "");
    assert_eq!(
        check(&rules, list(1), Some(list(2))),
        "spec.list[0]: Invalid value: \"object\": may only grow"
    );
    let optional = schema(json!([{"rule": "!oldSelf.hasValue() || oldSelf.value().name == 'a'",
        "optionalOldSelf": true, "message": "was not a"}]));
    assert_eq!(check(&optional, spec("b"), None), "");
    assert_eq!(
        check(&optional, spec("c"), Some(spec("b"))),
        "spec: Invalid value: \"object\": was not a"
    );
}

#[test]
fn an_update_is_not_held_to_rules_about_what_it_leaves_alone() {
    let rules = schema(json!([{"rule": "self.min > 0"}]));
    let object = |label: &str| json!({"metadata": {"labels": {"a": label}}, "spec": {"min": 0}});
    assert_eq!(check(&rules, object("x"), Some(object("y"))), "");
}

#[test]
fn rules_that_cannot_work_are_named() {
    let rules = schema(json!([{"rule": "self.none > 0"}, {"rule": " "}]));
    let shown = check(&rules, json!({}), None);
    assert!(
        shown.contains(".properties[spec][0] compilation failed: ERROR: <input>:1:5: "),
        "{shown}"
    );
    assert!(shown.contains(".properties[spec][1] rule is not specified"), "{shown}");
    let set = json!({"type": "object", "properties": {"set": {"type": "array",
        "items": {"type": "integer",
            "x-kubernetes-validations": [{"rule": "self > oldSelf"}]}}}});
    assert!(check(&set, json!({}), None).contains("uncorrelatable"));
}
