//! Version 2 with what aggregated APIs say of themselves.
//!
//! Version 3 has a document for each group and version, so theirs stand beside ours. Version 2 is
//! one document, into which theirs are merged: of each the paths of the group version that it
//! serves, and the definitions that these need. A definition that both have under one name and
//! differently gets another name (`NAME_v2`), as in Kubernetes. Ours are never changed, whatever
//! others say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::swagger::DEFINITION;
use super::{Document, Version2};

const PARAMETER: &str = "#/parameters/";

/// What a server says of one group version.
#[derive(Clone, Debug)]
pub struct Part(Document);

impl Part {
    /// Takes out of a server's own document what is about paths below `prefix` (`/apis/G/V`); None
    /// when that is nothing.
    pub fn of(document: &Value, prefix: &str) -> Option<Part> {
        let own = |path: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        let paths = document["paths"].as_object()?.iter().filter(|(path, _)| own(path));
        let mut paths: Map<String, Value> =
            paths.map(|(path, item)| (path.clone(), item.clone())).collect();
        if paths.is_empty() {
            return None;
        }
        paths.values_mut().for_each(|item| inline(item, &document["parameters"]));
        let mut wanted = BTreeSet::new();
        paths.values().for_each(|item| references(item, &mut wanted));
        let mut definitions = Map::new();
        while let Some(name) = wanted.pop_first() {
            // Clients give the whole document up for one reference that leads nowhere.
            let found = document["definitions"].get(&name).cloned();
            let schema = found.unwrap_or_else(|| json!({"type": "object"}));
            references(&schema, &mut wanted);
            definitions.insert(name, schema);
            wanted.retain(|name| !definitions.contains_key(name));
        }
        Some(Part(Document::new(&json!({"paths": paths, "definitions": definitions}))))
    }
}

/// The document last merged, by what it was made of. Held for a look, and while it is made anew.
#[derive(Default)]
pub struct Merged(Mutex<Option<(Vec<String>, Arc<Version2>)>>);

impl Merged {
    /// Ours with these parts.
    pub(super) fn of(&self, ours: &Version2, parts: &[Part]) -> Arc<Version2> {
        let made_of = std::iter::once(&ours.json).chain(parts.iter().map(|part| &part.0));
        let made_of: Vec<String> = made_of.map(|document| document.hash.clone()).collect();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, whole)) = &*held
            && *key == made_of
        {
            return whole.clone();
        }
        let mut whole = parsed(&ours.json.body);
        for Part(document) in parts {
            add(&mut whole, parsed(&document.body));
        }
        let whole = Arc::new(Version2::of_swagger(&whole));
        *held = Some((made_of, whole.clone()));
        whole
    }
}

fn parsed(body: &Bytes) -> Value {
    serde_json::from_slice(body).expect("documents are JSON")
}

fn add(whole: &mut Value, mut part: Value) {
    let names = names(&whole["definitions"], &part["definitions"]);
    rename(&mut part, &names);
    let new = |section: &str| part[section].as_object().cloned().unwrap_or_default();
    let (paths, definitions) = (new("paths"), new("definitions"));
    for (path, item) in paths {
        let held = whole["paths"].as_object_mut().expect("ours has paths");
        held.entry(path).or_insert(item);
    }
    for (name, schema) in definitions {
        let name = names.get(&name).cloned().unwrap_or(name);
        let held = whole["definitions"].as_object_mut().expect("ours has definitions");
        held.entry(name).or_insert(schema);
    }
}

/// New names of the definitions that cannot have theirs, because it stands for something else
/// already, or because they refer to one that cannot.
fn names(held: &Value, added: &Value) -> BTreeMap<String, String> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let none = Map::new();
    let added = added.as_object().unwrap_or(&none);
    loop {
        let before = names.len();
        for (name, schema) in added {
            let Some(known) = held.get(name).filter(|_| !names.contains_key(name)) else {
                continue;
            };
            let mut needed = BTreeSet::new();
            references(schema, &mut needed);
            if known != schema || needed.iter().any(|name| names.contains_key(name)) {
                let free = |name: &String| held.get(name).is_none() && !added.contains_key(name);
                let mut others = (2..).map(|number| format!("{name}_v{number}"));
                names.insert(name.clone(), others.find(free).expect("numbers do not end"));
            }
        }
        if names.len() == before {
            return names;
        }
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(DEFINITION)
                && let Some(name) = names.get(name)
            {
                *reference = format!("{DEFINITION}{name}");
            }
            fields.values_mut().for_each(|value| rename(value, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

/// The definitions that are referred to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str);
            let name = reference.and_then(|text| text.strip_prefix(DEFINITION));
            found.extend(name.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Puts parameters that a document defines once in the place of the references to them.
fn inline(item: &mut Value, parameters: &Value) {
    let Some(item) = item.as_object_mut() else { return };
    let resolved = |parameter: &Value| match parameter["$ref"].as_str() {
        None => Some(parameter.clone()),
        Some(reference) => parameters.get(reference.strip_prefix(PARAMETER)?).cloned(),
    };
    let resolve = |list: &mut Value| {
        if let Some(list) = list.as_array_mut() {
            *list = list.iter().filter_map(resolved).collect();
        }
    };
    for (key, value) in item {
        if key == "parameters" {
            resolve(value);
        } else if let Some(list) = value.get_mut("parameters") {
            resolve(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(ours: &Value, theirs: &Value) -> Value {
        let part = Part::of(theirs, "/apis/x.dev/v1").expect("it has paths");
        let whole = Merged::default().of(&Version2::of_swagger(ours), &[part]);
        parsed(&whole.json.body)
    }

    #[test]
    fn their_paths_come_with_the_definitions_they_need() {
        let ours = json!({"paths": {"/api/": {}}, "definitions": {
            "Meta": {"description": "ours", "type": "object"}, "Same": {"type": "string"},
        }});
        let theirs = json!({
            "paths": {
                "/apis/x.dev/v1/a": {
                    "parameters": [{"$ref": "#/parameters/pretty"}, {"$ref": "#/parameters/no"}],
                    "get": {"parameters": [{"name": "n", "in": "path"}],
                        "responses": {"200": {"schema": {"$ref": "#/definitions/A"}}}},
                },
                "/apis/x.dev/v1beta1/b": {"get": {}},
                "/api/": {"get": {}},
            },
            "parameters": {"pretty": {"name": "pretty", "in": "query"}},
            "definitions": {
                "A": {"properties": {"metadata": {"$ref": "#/definitions/Meta"},
                    "same": {"$ref": "#/definitions/Same"}, "gone": {"$ref": "#/definitions/No"}}},
                "Meta": {"description": "theirs", "type": "object"},
                "Same": {"type": "string"},
                "Unused": {},
            },
        });
        expect_test::expect![[r##"
            {
              "paths": {
                "/api/": {},
                "/apis/x.dev/v1/a": {
                  "parameters": [
                    {
                      "name": "pretty",
                      "in": "query"
                    }
                  ],
                  "get": {
                    "parameters": [
                      {
                        "name": "n",
                        "in": "path"
                      }
                    ],
                    "responses": {
                      "200": {
                        "schema": {
                          "$ref": "#/definitions/A"
                        }
                      }
                    }
                  }
                }
              },
              "definitions": {
                "Meta": {
                  "description": "ours",
                  "type": "object"
                },
                "Same": {
                  "type": "string"
                },
                "A": {
                  "properties": {
                    "metadata": {
                      "$ref": "#/definitions/Meta_v2"
                    },
                    "same": {
                      "$ref": "#/definitions/Same"
                    },
                    "gone": {
                      "$ref": "#/definitions/No"
                    }
                  }
                },
                "Meta_v2": {
                  "description": "theirs",
                  "type": "object"
                },
                "No": {
                  "type": "object"
                }
              }
            }"##]]
        .assert_eq(&serde_json::to_string_pretty(&merged(&ours, &theirs)).expect("JSON"));
    }

    #[test]
    fn what_refers_to_a_renamed_definition_is_renamed_too() {
        let schemas = |meta: &str| {
            json!({
                "A": {"$ref": "#/definitions/B"}, "B": {"$ref": "#/definitions/Meta"},
                "Meta": {"type": meta},
            })
        };
        let ours = json!({"paths": {}, "definitions": schemas("object")});
        let paths = json!({"/apis/x.dev/v1/a": {"get": {"$ref": "#/definitions/A"}}});
        let theirs = json!({"paths": paths, "definitions": schemas("string")});
        let whole = merged(&ours, &theirs);
        assert_eq!(whole["paths"]["/apis/x.dev/v1/a"]["get"]["$ref"], "#/definitions/A_v2");
        assert_eq!(whole["definitions"]["A_v2"]["$ref"], "#/definitions/B_v2");
        assert_eq!(whole["definitions"]["B_v2"]["$ref"], "#/definitions/Meta_v2");
        assert_eq!(whole["definitions"]["A"]["$ref"], "#/definitions/B");
    }

    #[test]
    fn a_document_without_their_paths_adds_nothing() {
        for document in [json!(null), json!({"paths": {"/apis/x.dev/v10/a": {}}}), json!([1])] {
            assert!(Part::of(&document, "/apis/x.dev/v1").is_none(), "{document}");
        }
    }
}
