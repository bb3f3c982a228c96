//! Server-side apply over its pure functions: objects and owners in, objects and owners out.

use serde_json::{Value, json};

use super::*;
use crate::testscript::{self, Case};

/// Runs the writes of a case one after the other; prints each outcome, and at the end the object
/// and who owns what.
fn run(case: &Case<'_>) -> String {
    let custom = testscript::argument(case, "schema");
    let kind = testscript::argument(case, "kind");
    let kind = if kind.is_empty() { "configmaps" } else { kind };
    let built_in = BuiltIn(testscript::kind(kind));
    let mut schemas = BTreeMap::new();
    if !custom.is_empty() {
        schemas.insert("x.dev/v1".to_owned(), testscript::json(custom));
    }
    let custom = Custom { schemas };
    let types: &dyn Types = if custom.schemas.is_empty() { &built_in } else { &custom };
    let mut live: Option<Object> = None;
    let mut out = String::new();
    for (at, (word, rest)) in case.iter().enumerate() {
        if !matches!(*word, "create" | "update" | "apply" | "force") {
            continue;
        }
        let (manager, body) = rest.split_once(' ').expect("a manager and an object");
        let (manager, subresource) = manager.split_once('/').unwrap_or((manager, ""));
        let body = testscript::json(body);
        let writer = Writer {
            manager: manager.to_owned(),
            api_version: meta::api_version(&body).to_owned(),
            subresource: subresource.to_owned(),
            time: format!("2026-01-01T00:00:{at:02}Z"),
        };
        let done = match *word {
            "apply" | "force" => apply(types, live.as_ref(), &body, &writer, *word == "force"),
            _ => {
                let mut new = body;
                track(types, live.as_ref(), &mut new, &writer);
                Ok(new)
            }
        };
        match done {
            Ok(mut new) => {
                if let Some(old) = &live {
                    settle_times(old, &mut new);
                    if new == *old {
                        out.push_str(&format!("{word} {manager}: unchanged\n"));
                    }
                }
                live = Some(new);
            }
            Err(error) => out.push_str(&format!("{word} {manager}: {error}\n")),
        }
    }
    let Some(mut live) = live else {
        return out;
    };
    let entries = meta::managed_fields(&live).to_vec();
    meta::set_managed_fields(&mut live, Vec::new());
    out.push_str(&format!("{live}\n"));
    for entry in entries {
        let text = |key: &str| entry[key].as_str().unwrap_or("").to_owned();
        let subresource = text("subresource");
        let subresource =
            if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
        out.push_str(&format!(
            "{} {}{subresource} {} {}\n",
            text("operation"),
            text("manager"),
            &text("time")[17..19],
            entry["fieldsV1"]
        ));
    }
    out
}

#[test]
fn scripts() {
    testscript::check("apply.txt", run);
}

#[test]
fn sets() {
    let a = FieldSet::from_json(&json!({
        "f:a": {".": {}, "f:b": {}}, "f:l": {"k:{\"p\":80,\"n\":\"x\"}": {".": {}, "f:i": {}}},
        "f:s": {"v:\"q\"": {}, "v:2": {}, "i:3": {}},
    }))
    .expect("well formed");
    assert_eq!(
        a.to_json().to_string(),
        "{\"f:a\":{\".\":{},\"f:b\":{}},\"f:l\":{\"k:{\\\"n\\\":\\\"x\\\",\\\"p\\\":80}\":\
         {\".\":{},\"f:i\":{}}},\"f:s\":{\"v:2\":{},\"v:\\\"q\\\"\":{},\"i:3\":{}}}"
    );
    let paths: Vec<String> = a.paths().iter().map(|path| set::display(path)).collect();
    assert_eq!(
        paths.join(" "),
        ".a .a.b .l[n=\"x\",p=80] .l[n=\"x\",p=80].i .s[=2] .s[=\"q\"] .s[3]"
    );
    let b = FieldSet::from_json(&json!({"f:a": {}, "f:s": {"v:2": {}}})).expect("well formed");
    let text = |set: FieldSet| {
        let paths = set.paths();
        paths.iter().map(|path| set::display(path)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(a.intersection(&b)), ".a .s[=2]");
    assert!(text(a.difference(&b)).starts_with(".a.b .l["));
    assert!(text(a.recursive_difference(&b)).starts_with(".l["));
    assert_eq!(a.union(&b), a);
    let mut rest = a.clone();
    rest.take_away(&b);
    assert_eq!(rest, a.difference(&b));
    rest.take_away(&a);
    assert!(rest.is_empty());
    for wrong in
        [json!({"x": {}}), json!({"v:{": {}}), json!({"i:x": {}}), json!([]), json!({"f:a": 1})]
    {
        assert!(FieldSet::from_json(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn paths_of_undeclared_fields_name_items_by_their_keys() {
    let kind = crate::kind("apps", "v1", "deployments").expect("in the table");
    let config = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "x": 1}],
        "tolerations": [{"y": 1}]}}}});
    let paths = [
        "spec.template.spec.containers[0].x".to_owned(),
        "spec.template.spec.tolerations[0].y".to_owned(),
    ];
    assert_eq!(
        undeclared(Place::built_in(kind), &config, &paths),
        [
            ".spec.template.spec.containers[name=\"a\"].x: field not declared in schema",
            ".spec.template.spec.tolerations[0].y: field not declared in schema",
        ]
    );
}

#[test]
fn entries_are_ordered_by_operation_second_and_name() {
    let entry = |operation: &str, manager: &str, subresource: &str, time: &str| {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": {}, "subresource": subresource})
    };
    let ordered = [
        entry("Apply", "z", "scale", "2026-01-01T00:00:08.9Z"),
        entry("Apply", "a", "scale", "2026-01-01T00:00:09Z"),
        entry("Update", "d", "scale", ""),
        // Within one second it is the name that decides, whatever zone the time is written in.
        entry("Update", "b", "scale", "2026-01-01T02:00:03+02:00"),
        entry("Update", "c", "scale", "2026-01-01T00:00:03.1Z"),
        entry("Update", "c", "status", "2026-01-01T00:00:03Z"),
        entry("Update", "a", "scale", "2026-01-01T00:00:04Z"),
    ];
    let name = |entry: &Value| format!("{} {}", entry["manager"], entry["subresource"]);
    let wanted: Vec<String> = ordered.iter().map(name).collect();
    let mut shuffled = ordered.to_vec();
    shuffled.reverse();
    let managers = managers::decode(&shuffled).expect("well formed");
    let encoded: Vec<String> = managers::encode(managers).iter().map(name).collect();
    assert_eq!(encoded, wanted);
}

#[test]
fn the_oldest_updaters_become_one() {
    let mut managers: Vec<Manager> = (0..13)
        .map(|at| Manager {
            name: format!("m{at:02}"),
            operation: Operation::Update,
            api_version: "v1".to_owned(),
            time: format!("2026-01-01T00:00:{at:02}Z"),
            subresource: String::new(),
            fields: FieldSet::from_json(&json!({format!("f:{at}"): {}})).expect("well formed"),
        })
        .collect();
    managers::cap(&mut managers);
    let entries = managers::encode(managers);
    assert_eq!(entries.len(), 10);
    let ancient = entries.iter().find(|entry| entry["manager"] == "ancient-changes");
    let fields = &ancient.expect("there is one")["fieldsV1"];
    assert_eq!(*fields, json!({"f:0": {}, "f:1": {}, "f:2": {}, "f:3": {}}));
    let _: Vec<Value> = entries;
}

/// Chance that can be repeated: xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }

    /// A map of texts, often absent.
    fn map(&mut self) -> Value {
        let count = self.below(3);
        let pair = |chance: &mut Chance| (chance.pick(&["k", "l", "m"]).to_owned(), chance.text());
        Value::Object((0..count).map(|_| pair(self)).collect())
    }

    fn text(&mut self) -> Value {
        Value::from(self.pick(&["1", "2"]))
    }

    /// Objects by name, each name once.
    fn named(&mut self, fill: impl Fn(&mut Chance) -> Value) -> Value {
        let mut items = Vec::new();
        for name in ["a", "b", "c"] {
            if self.below(2) == 0 {
                let mut item = fill(self);
                item["name"] = name.into();
                let at = self.below(items.len() as u64 + 1) as usize;
                items.insert(at, item);
            }
        }
        Value::Array(items)
    }

    fn pod(&mut self) -> Object {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        pod["metadata"]["labels"] = self.map();
        if self.below(2) == 0 {
            pod["metadata"]["finalizers"] = json!([self.text()]);
        }
        if self.below(3) > 0 {
            pod["spec"]["containers"] = self.named(|chance| {
                let mut container = json!({"image": chance.text()});
                if chance.below(2) == 0 {
                    container["env"] = chance.named(|chance| json!({"value": chance.text()}));
                }
                if chance.below(3) == 0 {
                    container["args"] = json!([chance.text()]);
                }
                container
            });
        }
        if self.below(3) == 0 {
            pod["spec"]["nodeSelector"] = self.map();
        }
        if self.below(3) == 0 {
            pod["spec"]["hostname"] = self.text();
        }
        pod
    }
}

/// Whether the object is as the configuration says.
fn holds(object: &Object, config: &Object) -> bool {
    let place = Place::built_in(testscript::kind("pods"));
    let laid = walk::merge(place, object, config);
    walk::difference(place, object, &laid) == Difference::default()
}

#[test]
fn applies_keep_their_promises() {
    let types = BuiltIn(testscript::kind("pods"));
    let writer = |manager: &str| Writer {
        manager: manager.to_owned(),
        api_version: "v1".to_owned(),
        subresource: String::new(),
        time: "2026-01-01T00:00:00Z".to_owned(),
    };
    for seed in 1..3_000 {
        let mut chance = Chance(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let mut live = chance.pod();
        track(&types, None, &mut live, &writer("u"));
        let (mine, yours) = (chance.pod(), chance.pod());
        let first = apply(&types, Some(&live), &mine, &writer("a"), true).expect("force");
        assert!(holds(&first, &mine), "seed {seed}: {first} is not {mine}");
        // Once more changes nothing, and is no conflict.
        let again = apply(&types, Some(&first), &mine, &writer("a"), false).expect("no conflict");
        assert_eq!(again, first, "seed {seed}");
        // Another one does not take anything away without force.
        match apply(&types, Some(&first), &yours, &writer("b"), false) {
            Ok(shared) => {
                assert!(holds(&shared, &mine) && holds(&shared, &yours), "seed {seed}: {shared}");
            }
            Err(ApplyError::Conflicts(conflicts)) => assert!(!conflicts.is_empty()),
            Err(error) => panic!("seed {seed}: {error}"),
        }
        // With force it does, and what it then gives up is gone unless somebody else has it.
        let forced = apply(&types, Some(&first), &yours, &writer("b"), true).expect("force");
        assert!(holds(&forced, &yours), "seed {seed}: {forced} is not {yours}");
        let bare = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        let given_up = apply(&types, Some(&forced), &bare, &writer("b"), false).expect("bare");
        for entry in meta::managed_fields(&given_up) {
            assert_ne!(entry["manager"], "b", "seed {seed}: {given_up}");
        }
        // The record of owners survives its own encoding.
        let entries = meta::managed_fields(&given_up);
        let managers = managers::decode(entries).expect("well formed");
        assert_eq!(managers::encode(managers), entries, "seed {seed}");
    }
}

#[test]
fn what_an_applier_says_in_another_version_stays() {
    let kind = |version: &str| {
        let kind = crate::kind("autoscaling", version, "horizontalpodautoscalers");
        kind.expect("a built-in kind")
    };
    let types = BuiltIn(kind("v2"));
    let writer = |version: &str| Writer {
        manager: "a".to_owned(),
        api_version: format!("autoscaling/{version}"),
        subresource: String::new(),
        time: "2026-01-01T00:00:00Z".to_owned(),
    };
    let config = |version: &str, spec: Value| {
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": spec})
    };
    let spec = json!({"minReplicas": 2, "maxReplicas": 5, "targetCPUUtilizationPercentage": 50});
    let live = apply(&types, None, &config("v1", spec), &writer("v1"), false).expect("it is new");
    let live = convert::to(kind("v1"), kind("v2"), live);
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
    let spec = json!({"maxReplicas": 5, "metrics": [metric]});
    let sent = config("v2", spec.clone());
    let done = apply(&types, Some(&live), &sent, &writer("v2"), false).expect("it is its own");
    assert_eq!(done["spec"], spec);
}
