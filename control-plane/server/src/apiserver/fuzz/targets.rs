//! Targets that are functions of their input: readers of bodies, patches, apply, selectors, CEL,
//! paths of fields. Each says what must hold beyond not to panic.

use base64::Engine as _;
use serde_json::{Value, json};
use wherry_resources::apply::{self, BuiltIn, Writer};
use wherry_resources::custom::{path, schema::Schema};
use wherry_resources::quantity::Quantity;
use wherry_resources::selectors::{FieldSelector, LabelSelector};
use wherry_resources::{Kind, Object, protobuf};

use super::run;
use crate::apiserver::cel::{self, Expression, Meter, Type, Types};
use crate::apiserver::content;
use crate::apiserver::tests::contract::sent;
use crate::apiserver::verbs::patch;
use crate::apiserver::yaml;

/// Words of bodies.
const WORDS: &[&str] = &[
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "metadata",
    "name",
    "spec",
    "containers",
    "$patch",
    "\"$patch\":\"delete\",",
    "\"$patch\":\"replace\",",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "$retainKeys",
    "managedFields",
    "apiVersion",
    "kind",
    "\"op\":\"copy\",",
    "\"op\":\"move\",",
    "\"from\":\"/spec\",",
    "\"path\":\"/\"",
    "~0",
    "~1",
    "/-",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|-\n",
    "? ",
    "- - - ",
    "---\n",
    "\u{feff}",
    "\\ud800",
    "labels",
    "finalizers",
    "ownerReferences",
    "f:",
    "k:{\"name\":\"a\"}",
    "v:\"a\"",
    ".",
];

fn kind(plural: &str, group: &str) -> &'static Kind {
    wherry_resources::kind(group, "v1", plural).expect("a built-in kind")
}

/// Bodies of the golden scripts whose content type has this in it.
fn bodies(media: &str) -> Vec<Vec<u8>> {
    let of_type = |sent: &crate::apiserver::tests::contract::Sent| {
        sent.content_type.contains(media) && sent.body.len() < super::INPUT_BYTES_MAX
    };
    let found: Vec<Vec<u8>> = sent().into_iter().filter(of_type).map(|sent| sent.body).collect();
    assert!(!found.is_empty(), "the scripts send {media}");
    found
}

#[test]
fn json() {
    run("json", bodies("json"), WORDS, |input| {
        let decoded = content::decode_json(input);
        match (decoded, serde_json::from_slice::<Value>(input)) {
            (Ok(decoded), Ok(plain)) => {
                if decoded.value != plain {
                    return Err(format!("{} is not {plain}", decoded.value));
                }
                let again = content::decode_json(decoded.value.to_string().as_bytes());
                match again {
                    Ok(again) if again.value == plain => {}
                    again => return Err(format!("does not come back: {again:?}")),
                }
                Ok(format!("object with {} duplicates", decoded.duplicates.len()))
            }
            (Err(error), _) => Ok(error),
            (Ok(decoded), Err(error)) => Err(format!("{error}, but read as {}", decoded.value)),
        }
    });
}

#[test]
fn yaml() {
    let mut seeds = bodies("yaml");
    seeds.extend(bodies("json").into_iter().take(40));
    seeds.push(b"a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}\n? [k]\n: v\n".to_vec());
    seeds.push(
        b"a: |\n  text\nb: >-\n  folded\nc: !!str 1\nd: 0o17\ne: .inf\nf: 2026-01-01\n".to_vec(),
    );
    run("yaml", seeds, WORDS, |input| match content::decode_yaml(input) {
        Err(error) => Ok(error),
        Ok(decoded) => {
            let text = yaml::text(&decoded.value);
            match content::decode_yaml(text.as_bytes()) {
                Ok(again) if again.value == decoded.value => Ok("read".to_owned()),
                // What was almost too much is a little more when it is written anew.
                Err(error) if input.len() > 8_000 => Ok(error),
                again => Err(format!("{} does not come back: {again:?}", decoded.value)),
            }
        }
    });
}

#[test]
fn protobuf_bodies() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/src/protobuf/bodies.txt");
    let text = std::fs::read_to_string(file).expect("the recorded bodies are readable");
    let encoded = |section: &str| -> Vec<u8> {
        let lines = section.lines().skip(1);
        let text: String = lines.take_while(|line| !line.is_empty() && *line != "{").collect();
        base64::engine::general_purpose::STANDARD.decode(text).expect("bodies are base64")
    };
    let seeds = text.split("\n$ ").skip(1).map(encoded).collect();
    run("protobuf", seeds, WORDS, |input| match protobuf::decode(input) {
        Err(error) => Ok(error.to_string()),
        Ok(object) => {
            let size = object.to_string().len();
            // Two bytes can be a field of a hundred letters, so the factor is large; but bounded.
            if size > 20_000 + 200 * input.len() {
                return Err(format!("{} bytes became {size}", input.len()));
            }
            match object["kind"].as_str().zip(object["apiVersion"].as_str()) {
                Some((kind, _)) => Ok(format!("read {kind}")),
                None => Err(format!("without a kind: {object}")),
            }
        }
    });
}

/// A Deployment with something of everything in it.
fn deployment() -> Object {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "d", "namespace": "default", "uid": "1", "resourceVersion": "7",
            "labels": {"a": "1"}, "finalizers": ["x.dev/a"]},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "containers": [
                    {"name": "a", "image": "1", "ports": [{"containerPort": 80}],
                        "env": [{"name": "A", "value": "1"}]},
                    {"name": "b", "image": "1", "args": ["x"]}],
                "volumes": [{"name": "v", "emptyDir": {}}]}}},
    })
}

#[test]
fn patches() {
    let old = deployment();
    let mut seeds = bodies("patch+json");
    seeds.push(br#"[{"op":"move","from":"/spec/template","path":"/spec/x"}]"#.to_vec());
    run("patches", seeds, WORDS, |input| {
        let mut said = String::new();
        for media in ["json", "merge", "strategic-merge"] {
            let media = format!("application/{media}-patch+json");
            let decoded = match patch::decode(&media, input, false) {
                Ok((decoded, _)) => decoded,
                Err(error) => {
                    said.push_str(&error.to_string());
                    continue;
                }
            };
            let kind = kind("deployments", "apps");
            let new = match decoded.apply(kind, &old) {
                Ok(new) => new,
                Err(error) => {
                    said.push_str(&error.to_string());
                    continue;
                }
            };
            if new["kind"] != "Deployment" || !new["metadata"].is_object() {
                return Err(format!("{media}: {new}"));
            }
            // The same merge patch once more changes nothing.
            if media.contains("/merge") {
                match decoded.apply(kind, &new) {
                    Ok(again) if again == new => {}
                    again => return Err(format!("{media}: not stable: {again:?}")),
                }
            }
            said.push_str("patched ");
        }
        Ok(said)
    });
}

#[test]
fn applies() {
    let types = BuiltIn(kind("deployments", "apps"));
    let writer = |manager: &str| Writer {
        manager: manager.to_owned(),
        api_version: "apps/v1".to_owned(),
        subresource: String::new(),
        time: "2026-01-01T00:00:00Z".to_owned(),
    };
    let mut live = deployment();
    apply::track(&types, None, &mut live, &writer("first"));
    let mut seeds = bodies("json");
    seeds.insert(0, deployment().to_string().into_bytes());
    seeds.push(live["metadata"]["managedFields"].to_string().into_bytes());
    run("applies", seeds, WORDS, |input| {
        let Ok(decoded) = content::decode_json(input) else { return Ok("no JSON".to_owned()) };
        // A list stands in for the record of owners.
        if decoded.value.is_array() {
            let mut live = live.clone();
            live["metadata"]["managedFields"] = decoded.value;
            let config = json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d"}, "spec": {"replicas": 3}});
            let applied = apply::apply(&types, Some(&live), &config, &writer("me"), true);
            return Ok(applied.map_or_else(|error| error.to_string(), |_| "recorded".to_owned()));
        }
        if !decoded.value.is_object() || decoded.value["metadata"].get("managedFields").is_some() {
            return Ok("no configuration".to_owned());
        }
        let config = decoded.value;
        let first = match apply::apply(&types, Some(&live), &config, &writer("me"), true) {
            Ok(first) => first,
            Err(error) => return Ok(error.to_string()),
        };
        match apply::apply(&types, Some(&first), &config, &writer("me"), false) {
            Ok(again) if again == first => {
                let owners = &first["metadata"]["managedFields"];
                Ok(format!("applied: {owners}"))
            }
            Ok(again) => Err(format!("the second apply changed {first} to {again}")),
            Err(error) => Err(format!("the second apply was refused: {error}")),
        }
    });
}

/// What a quantity says of itself is the same quantity.
fn quantity(text: &str) -> Result<String, String> {
    let quantity = match Quantity::parse(text) {
        Err(error) => return Ok(error.to_string()),
        Ok(quantity) => quantity,
    };
    let shown = quantity.to_string();
    match Quantity::parse(&shown) {
        Ok(again) if again == quantity => Ok("quantity".to_owned()),
        again => Err(format!("{text:?} is {shown}, which is {again:?}")),
    }
}

const SELECTOR_WORDS: &[&str] = &[
    "=",
    "==",
    "!=",
    " in (",
    " notin (",
    ")",
    ",",
    "!",
    "a",
    "b/c",
    "x.dev/y",
    "\\,",
    "\\=",
    "\\\\",
    "metadata.name",
    "spec.nodeName",
    " ",
    "(",
    "<",
    ">",
    "\u{e9}",
    "1Gi",
    "100m",
    "1e3",
];

#[test]
fn selectors() {
    let seeds = [
        "a",
        "!a",
        "a=b",
        "a==b,c!=d",
        "a in (x,y)",
        "a notin (x)",
        "app in (web, api),tier!=db",
        "metadata.name=x,spec.nodeName!=y",
        "a=b\\,c",
        "x.dev/y in ()",
        "100m",
        "1.5Gi",
        "-2e3",
    ];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let object = json!({"metadata": {"labels": {"a": "b", "app": "web", "x.dev/y": ""}}});
    run("selectors", seeds, SELECTOR_WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        let mut said = String::new();
        match LabelSelector::parse(&text) {
            Err(error) => said.push_str(&error.to_string()),
            Ok(selector) => {
                let shown = selector.to_string();
                let again = LabelSelector::parse(&shown).map_err(|e| format!("{shown:?}: {e}"))?;
                if again.matches(&object) != selector.matches(&object) {
                    return Err(format!("{shown:?} selects something else"));
                }
                said.push_str("labels");
            }
        }
        match FieldSelector::parse(&text) {
            Err(error) => said.push_str(&error.to_string()),
            Ok(selector) => {
                let shown = selector.to_string();
                let again = FieldSelector::parse(&shown).map_err(|e| format!("{shown:?}: {e}"))?;
                if again.to_string() != shown {
                    return Err(format!("{shown:?} becomes {:?}", again.to_string()));
                }
                said.push_str("fields");
            }
        }
        said.push_str(&quantity(&text)?);
        Ok(said)
    });
}

const CEL_WORDS: &[&str] = &[
    "self",
    "oldSelf",
    "self.a",
    ".map(x, x)",
    ".filter(x, true)",
    ".all(x, x > 0)",
    "has(self.a)",
    "size(self.a)",
    "matches('(a*)*b')",
    "'%s'.format([self])",
    "quantity('1Gi')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "url('https://a/')",
    "duration('1h')",
    "timestamp('2026-01-01T00:00:00Z')",
    " in ",
    "? :",
    "&&",
    "||",
    "[0]",
    "{'a': 1}",
    "9223372036854775807",
    "-9223372036854775808",
    "1 / 0",
    "% 0",
    "+ 1u",
    "b'\\xff'",
    "r'\\d'",
    ".?a.orValue(1)",
    "sets.contains([1],[1])",
    "'",
    "((((((((",
    ".exists_one(i, i == 1)",
    ".replace('', 'aa')",
    ".split('')",
    ".join()",
];

#[test]
fn expressions() {
    let seeds = [
        "self.a > 2 && self.b.startsWith('we')",
        "self.list.all(p, p < 1000) || self.list.exists_one(p, p == 80)",
        "self.list.map(p, self.list.map(q, p * q)).size() > 3",
        "'%s has %d'.format([self.b, self.a])",
        "quantity('1Gi').isGreaterThan(quantity('1000Mi')) && isIP('1.2.3.4')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') ? ip('::1').family() == 6 : false",
        "format.dns1123Label().validate(self.b).hasValue()",
        "self.b.matches('^[a-z]+$') && self.b.replace('a', 'b').lowerAscii() != ''",
        "self.?missing.orValue('none') == 'none' && !has(self.missing)",
        "timestamp('2024-01-01T00:00:00Z') + duration('1h') > timestamp('2023-01-01T00:00:00Z')",
    ];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let object = json!({"a": 3, "b": "web", "list": [1, 80, 443], "map": {"k": "v"}, "f": 1.5});
    let schema = Schema::parse(&json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "b": {"type": "string"}, "f": {"type": "number"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "map": {"type": "object", "additionalProperties": {"type": "string"}}}}));
    run("cel", seeds, CEL_WORDS, |input| {
        let source = String::from_utf8_lossy(input);
        let mut said = String::new();
        for schema in [None, Some(&schema)] {
            let of = schema.map_or(Type::Any, Type::Schema);
            let types = Types::giving("").with("self", of);
            match Expression::compile(&source, &types) {
                Err(error) => said.push_str(error.lines().next().unwrap_or_default()),
                Ok(expression) => {
                    let meter = Meter::new(cel::OBJECT_COST_MAX);
                    let bindings = cel::Bindings::new(&meter);
                    let bindings = bindings.with("self", cel::value(&object, schema));
                    match expression.value(&bindings) {
                        Ok(value) => said.push_str(&format!("{:?}", cel::json(value.as_ref()))),
                        Err(error) => said.push_str(&error.to_string()),
                    }
                }
            }
        }
        Ok(said)
    });
}

const PATH_WORDS: &[&str] = &[
    ".spec",
    ".status",
    "[0]",
    "[*]",
    "['a']",
    "..",
    "[?(@.type==\"Ready\")]",
    "[?(@.a>1)]",
    ".",
    "{",
    "}",
    "$",
    "@",
    "~1",
    "\\.",
    "[-1:]",
    "[0:2]",
    "\u{e9}",
    "[\"x\"]",
    "length()",
];

#[test]
fn field_paths() {
    let seeds = [
        ".spec.replicas",
        ".metadata.creationTimestamp",
        ".status.conditions[?(@.type==\"Ready\")].status",
        ".spec.containers[*].image",
        "..name",
        ".metadata.labels.a\\.b",
        ".spec['x'][0].y",
        ".a[-1:]",
    ];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let object = deployment();
    run("paths", seeds, PATH_WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        let simple = path::Simple::parse(&text);
        let mut changed = json!({});
        simple.set(&mut changed, json!(1));
        let found = simple.get(&object).map(|_| "found").unwrap_or("nothing");
        let columns = json!([{"name": "C", "type": "string", "jsonPath": &*text}]);
        let columns = path::Columns::parse(&columns);
        // The name stands before it.
        if columns.definitions().len() != 2 {
            return Err("one column became another number".to_owned());
        }
        Ok(match path::compile(&text) {
            Ok(_) => format!("compiled, {found}"),
            Err(error) => error,
        })
    });
}
