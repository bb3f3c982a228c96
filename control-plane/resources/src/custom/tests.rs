//! Scripts for schemas: what becomes of objects, and what is said about schemas and CRDs.

use serde_json::Value;

use super::*;
use crate::testscript::{self, argument};
use crate::validate;

fn yes_or(texts: Vec<String>, otherwise: &str) -> String {
    if texts.is_empty() { otherwise.to_owned() } else { texts.join("\n") }
}

/// A schema, an object, perhaps an older one: pruned, defaulted, checked.
#[test]
fn objects() {
    testscript::check("custom_objects", |case| {
        let schema = Schema::parse(&testscript::json(argument(case, "schema")));
        let mut object = testscript::json(argument(case, "object"));
        let old = argument(case, "old");
        let old = (!old.is_empty()).then(|| testscript::json(old));
        let dropped = shape::prune(&schema, &mut object);
        shape::default(&schema, &mut object);
        let errors = check::object(&schema, &object, old.as_ref());
        let mut lines: Vec<String> = Vec::new();
        lines.extend(dropped.iter().map(|path| format!("dropped {path}")));
        lines.push(object.to_string());
        lines.extend(errors.iter().map(ToString::to_string));
        lines.join("\n")
    });
}

/// A schema inside an otherwise sound CRD.
#[test]
fn schemas() {
    testscript::check("custom_schemas", |case| {
        let schema = testscript::json(argument(case, "schema"));
        let crd = definition(json!([{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}}]));
        let kind = crate::kind("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let errors = validate::create(kind.expect("a built-in kind"), &crd);
        yes_or(errors.iter().map(ToString::to_string).collect(), "sound")
    });
}

/// Parts of a CRD's spec over a sound one.
#[test]
fn definitions() {
    testscript::check("custom_definitions", |case| {
        let mut crd = definition(json!([{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]));
        let merge = |into: &mut Value, text: &str| {
            if !text.is_empty() {
                for (key, value) in testscript::json(text).as_object().expect("an object") {
                    into[key] = value.clone();
                }
            }
        };
        let old = crd.clone();
        merge(&mut crd["spec"], argument(case, "spec"));
        merge(&mut crd["metadata"], argument(case, "metadata"));
        let kind = crate::kind("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let kind = kind.expect("a built-in kind");
        let is_update = case.iter().any(|(word, _)| *word == "update");
        let errors = match is_update {
            true => validate::update(kind, &crd, &old),
            false => validate::create(kind, &crd),
        };
        yes_or(errors.iter().map(ToString::to_string).collect(), "sound")
    });
}

fn definition(versions: Value) -> Object {
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "shirts.example.com", "uid": "u", "resourceVersion": "7"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "shirts", "singular": "shirt", "kind": "Shirt",
                "listKind": "ShirtList", "shortNames": ["sh"]},
            "versions": versions, "conversion": {"strategy": "None"},
        },
    });
    names::decide(&crd, &[], Timestamp::UNIX_EPOCH)
}

#[test]
fn rows_come_and_go() {
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage,
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object"}}})
    };
    let mut rows = Rows::default();
    let compile = |crd: &Object, version: &Value| Some(Definition::new(crd, version));
    let crd = definition(json!([version("v1beta1", false), version("v1", true)]));
    let first = rows.update(std::slice::from_ref(&crd), compile).to_vec();
    let shown: Vec<String> = first.iter().map(|row| row.api_version()).collect();
    assert_eq!(shown, ["example.com/v1beta1", "example.com/v1"]);
    assert!(first[0].has_status && first[0].custom().is_some());
    assert_eq!(first[0].custom().expect("defined").storage_version, "v1");
    assert!(rows.update(&[], compile).is_empty());
    assert!(first[0].custom().is_none(), "the definition goes with its CRD");
    let again = rows.update(std::slice::from_ref(&crd), compile)[0];
    assert!(std::ptr::eq(again, first[0]), "the same names give the same row");
    let mut changed = crd;
    changed["metadata"]["resourceVersion"] = json!("8");
    let only_v1 = |crd: &Object, version: &Value| {
        (version["name"] == "v1").then(|| Definition::new(crd, version))
    };
    let left = rows.update(&[changed], only_v1).to_vec();
    assert!(left.len() == 1 && std::ptr::eq(left[0], first[1]), "the other cannot be compiled");
    assert!(first[0].custom().is_none());
}

#[test]
fn versions_are_ordered_as_in_kubernetes() {
    let mut versions = [
        "foo10",
        "v11alpha2",
        "v3beta1",
        "v1",
        "v11beta2",
        "v2",
        "foo1",
        "v10beta3",
        "v10",
        "v12alpha1",
    ];
    versions.sort_by(|left, right| compare_versions(left, right));
    let expected = [
        "v10",
        "v2",
        "v1",
        "v11beta2",
        "v10beta3",
        "v3beta1",
        "v12alpha1",
        "v11alpha2",
        "foo1",
        "foo10",
    ];
    assert_eq!(versions, expected);
}

#[test]
fn columns_print_what_their_paths_find() {
    let columns = Columns::parse(&json!([
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
        {"name": "Ready", "type": "string",
            "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Hosts", "type": "string", "jsonPath": ".spec.hosts[*]"},
        {"name": "Note", "type": "string", "jsonPath": ".metadata.annotations.example\\.com/note"},
        {"name": "Since", "type": "date", "jsonPath": ".status.since", "priority": 1},
        {"name": "Missing", "type": "boolean", "jsonPath": ".spec.none"},
    ]));
    let object = json!({
        "metadata": {"name": "a", "annotations": {"example.com/note": "n"}},
        "spec": {"replicas": 3, "hosts": ["x", "y"]},
        "status": {"since": "1970-01-01T00:00:00Z",
            "conditions": [
                {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
    });
    let now = Timestamp::from_second(90).expect("a time");
    let cells = Value::Array(columns.cells(&object, now));
    assert_eq!(cells.to_string(), r#"["a",3,"True","x y","n","90s",null]"#);
    assert_eq!(columns.definitions()[5]["priority"], 1);
    let age = Columns::parse(&Value::Null);
    assert_eq!(age.definitions()[1]["name"], "Age");
}

#[test]
fn formats_know_their_texts() {
    let cases = [
        ("date-time", "2024-01-01T00:00:00Z", true),
        ("date-time", "2024-13-01T00:00:00Z", false),
        ("date", "2024-02-30", false),
        ("duration", "1h30m", true),
        ("duration", "1x", false),
        ("ipv4", "10.0.0.1", true),
        ("ipv4", "::1", false),
        ("cidr", "10.0.0.0/33", false),
        ("uuid", "a8098c1a-f86e-11da-bd1a-00112444be1e", true),
        ("uuid4", "a8098c1a-f86e-11da-bd1a-00112444be1e", false),
        ("email", "a@b.c", true),
        ("byte", "YQ==", true),
        ("byte", "?", false),
        ("hostname", "a-b.c", true),
        ("hostname", "-a", false),
        ("uri", "https://a/b", true),
        ("uri", "a b", false),
        ("isbn10", "0-306-40615-2", true),
        ("isbn13", "978-0-306-40615-7", true),
        ("creditcard", "4111 1111 1111 1111", true),
        ("creditcard", "4111 1111 1111 1112", false),
        ("hexcolor", "#fff", true),
        ("mac", "00:11:22:33:44:55", true),
    ];
    for (name, text, expected) in cases {
        let test = formats::named(name).expect(name);
        assert_eq!(test(text), expected, "{name} {text}");
    }
    let long = "9".repeat(100_000);
    assert!(!formats::named("isbn10").is_some_and(|test| test(&long)));
    assert!(formats::named("no-such-format").is_none());
}
