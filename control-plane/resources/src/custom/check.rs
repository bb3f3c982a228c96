//! Validation of objects against a schema, in the words of a stock API server.
//!
//! One pass over the object. A path is written as OpenAPI's validators write it (`spec.list[0].x`);
//! the same path stands in the sentence (`spec.x in body should be …`) and before it. Rules in CEL
//! are not this file's: they need an evaluator.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::schema::{Additional, Form, Limits, List, Schema};
use crate::validate::{FieldError, Reason};

/// Complaints that one object gives rise to: more help nobody.
const COMPLAINTS_MAX: usize = 100;

/// Everything that is wrong with an object, seen from the schema of the whole object. What an
/// update leaves as it was is not complained about: its rules may be newer than it is.
pub fn object(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new() };
    checker.value(schema, object, old, "");
    checker.embedded(schema, object, "", true);
    checker.lists(schema, object, "");
    checker.errors
}

/// Everything that is wrong with a value at a path, such as a default.
pub fn value(schema: &Schema, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new() };
    checker.value(schema, value, old, path);
    checker.lists(schema, value, path);
    checker.errors
}

/// The items that a list with keys had, by these: what items of the new list are compared with.
/// There may be a hundred thousand.
pub struct Counterparts<'v> {
    keys: &'v [String],
    items: HashMap<Vec<Option<&'v Value>>, &'v Value>,
}

impl<'v> Counterparts<'v> {
    /// Those of a list; none of one whose items have no keys.
    pub fn of(schema: &'v Schema, old: Option<&'v Value>) -> Counterparts<'v> {
        let List::Map(keys) = &schema.list else {
            return Counterparts { keys: &[], items: HashMap::new() };
        };
        let mut items = HashMap::new();
        for item in old.and_then(Value::as_array).into_iter().flatten() {
            items.entry(identity(keys, item)).or_insert(item);
        }
        Counterparts { keys, items }
    }

    /// The one with the keys of an item.
    pub fn find(&self, item: &Value) -> Option<&'v Value> {
        self.items.get(&identity(self.keys, item)).copied()
    }
}

fn identity<'v>(keys: &[String], item: &'v Value) -> Vec<Option<&'v Value>> {
    keys.iter().map(|key| item.get(key)).collect()
}

struct Checker {
    errors: Vec<FieldError>,
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The word for a value's type in messages.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A whole number, written with or without a fraction of zero.
fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

impl Checker {
    fn add(&mut self, reason: Reason, path: &str, message: String) {
        if self.errors.len() < COMPLAINTS_MAX {
            self.errors.push(FieldError { reason, field: path.to_owned(), message });
        }
    }

    /// `Invalid value: <value>: <path> in body <why>`
    fn in_body(&mut self, path: &str, value: &Value, why: &str) {
        let body = if path.is_empty() { " in body" } else { &format!("{path} in body") };
        self.add(Reason::Invalid, path, format!("Invalid value: {value}: {body} {why}"));
    }

    fn mistyped(&mut self, path: &str, wanted: &str, found: &Value) {
        let found = type_of(found);
        let body = if path.is_empty() { " in body" } else { &format!("{path} in body") };
        let message =
            format!("Invalid value: {found:?}: {body} must be of type {wanted}: {found:?}");
        self.add(Reason::TypeInvalid, path, message);
    }

    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &str) {
        if old == Some(value) {
            return;
        }
        if value.is_null() {
            if !schema.nullable && schema.form != Form::Any {
                self.mistyped(path, schema.form.name(), value);
            }
            return;
        }
        let fits = match schema.form {
            Form::Any => true,
            Form::Object => value.is_object(),
            Form::Array => value.is_array(),
            Form::Text => value.is_string(),
            Form::Integer => is_whole(value),
            Form::Number => value.is_number(),
            Form::Boolean => value.is_boolean(),
            Form::IntOrText => value.is_string() || is_whole(value),
        };
        if !fits {
            self.mistyped(path, schema.form.name(), value);
            return;
        }
        self.combined(&schema.limits, value, path);
        self.limits(&schema.limits, value, path);
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    if let Some(child) = schema.child(key) {
                        let before = old.and_then(|old| old.get(key));
                        self.value(child, inner, before, &join(path, key));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(child) = &schema.items {
                    let before = Counterparts::of(schema, old);
                    for (index, item) in items.iter().enumerate() {
                        self.value(child, item, before.find(item), &format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn limits(&mut self, limits: &Limits, value: &Value, path: &str) {
        if !limits.one_of_values.is_empty() && !limits.one_of_values.contains(value) {
            self.unsupported(&limits.one_of_values, value, path);
        }
        match value {
            Value::String(text) => self.text(limits, text, value, path),
            Value::Number(_) => self.number(limits, value, path),
            Value::Array(items) => self.count_items(limits, items.len() as u64, value, path),
            Value::Object(map) => {
                let found = map.len() as u64;
                if let Some(least) = limits.min_properties.filter(|least| found < *least) {
                    self.in_body(path, value, &format!("should have at least {least} properties"));
                }
                if let Some(most) = limits.max_properties.filter(|most| found > *most) {
                    self.too_many(path, found, most);
                }
                for key in &limits.required {
                    if !map.contains_key(key) {
                        self.add(Reason::Required, &join(path, key), "Required value".to_owned());
                    }
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn unsupported(&mut self, supported: &[Value], value: &Value, path: &str) {
        let quoted = |value: &Value| match value {
            Value::String(text) => format!("{text:?}"),
            other => format!("{:?}", other.to_string()),
        };
        let list: Vec<String> = supported.iter().map(quoted).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        self.add(Reason::NotSupported, path, message);
    }

    fn text(&mut self, limits: &Limits, text: &str, value: &Value, path: &str) {
        let length = text.chars().count() as u64;
        if let Some(most) = limits.max_length.filter(|most| length > *most) {
            let message = format!("Too long: may not be more than {most} bytes");
            self.add(Reason::TooLong, path, message);
        }
        if let Some(least) = limits.min_length.filter(|least| length < *least) {
            self.in_body(path, value, &format!("should be at least {least} chars long"));
        }
        if let Some((source, pattern)) = &limits.pattern
            && !pattern.is_match(text)
        {
            self.in_body(path, value, &format!("should match '{source}'"));
        }
        if let Some((name, format)) = &limits.format
            && !format(text)
        {
            let why = format!("must be of type {name}: {value}");
            let body = if path.is_empty() { " in body" } else { &format!("{path} in body") };
            let message = format!("Invalid value: {value}: {body} {why}");
            self.add(Reason::TypeInvalid, path, message);
        }
    }

    fn number(&mut self, limits: &Limits, value: &Value, path: &str) {
        let Some(number) = value.as_f64() else {
            return;
        };
        if let Some(least) = limits.minimum {
            if limits.exclusive_minimum && number <= least {
                self.in_body(path, value, &format!("should be greater than {least}"));
            } else if number < least {
                self.in_body(path, value, &format!("should be greater than or equal to {least}"));
            }
        }
        if let Some(most) = limits.maximum {
            if limits.exclusive_maximum && number >= most {
                self.in_body(path, value, &format!("should be less than {most}"));
            } else if number > most {
                self.in_body(path, value, &format!("should be less than or equal to {most}"));
            }
        }
        if let Some(step) = limits.multiple_of.filter(|step| *step > 0.0) {
            let quotient = number / step;
            if (quotient - quotient.round()).abs() > f64::EPSILON * quotient.abs().max(1.0) {
                self.in_body(path, value, &format!("should be a multiple of {step}"));
            }
        }
    }

    fn count_items(&mut self, limits: &Limits, found: u64, value: &Value, path: &str) {
        if let Some(least) = limits.min_items.filter(|least| found < *least) {
            self.in_body(path, value, &format!("should have at least {least} items"));
        }
        if let Some(most) = limits.max_items.filter(|most| found > *most) {
            self.too_many(path, found, most);
        }
    }

    fn too_many(&mut self, path: &str, found: u64, most: u64) {
        let items = if most == 1 { "item" } else { "items" };
        let message = format!("Too many: {found}: must have at most {most} {items}");
        self.add(Reason::TooMany, path, message);
    }

    /// `allOf`, `anyOf`, `oneOf`, `not`.
    fn combined(&mut self, limits: &Limits, value: &Value, path: &str) {
        let complaints = |schema: &Schema| -> Vec<FieldError> {
            let mut inner = Checker { errors: Vec::new() };
            inner.value(schema, value, None, path);
            inner.errors
        };
        let mut say = |why: String| {
            let message = format!("Invalid value: \"\": {path:?} {why}");
            self.add(Reason::Invalid, path, message);
        };
        let mut nested: Vec<FieldError> = Vec::new();
        if !limits.any_of.is_empty() {
            let found: Vec<_> = limits.any_of.iter().map(complaints).collect();
            if !found.iter().any(Vec::is_empty) {
                say("must validate at least one schema (anyOf)".to_owned());
                nested.extend(found.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !limits.one_of.is_empty() {
            let found: Vec<_> = limits.one_of.iter().map(complaints).collect();
            let valid = found.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let what = if valid == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {valid} valid alternatives")
                };
                say(format!("must validate one and only one schema (oneOf). {what}"));
                if valid == 0 {
                    nested.extend(found.into_iter().min_by_key(Vec::len).unwrap_or_default());
                }
            }
        }
        if !limits.all_of.is_empty() {
            let found: Vec<_> = limits.all_of.iter().map(complaints).collect();
            if !found.iter().all(Vec::is_empty) {
                let none = found.iter().all(|errors| !errors.is_empty());
                let what = if none { ". None validated" } else { "" };
                say(format!("must validate all the schemas (allOf){what}"));
                nested.extend(found.into_iter().flatten());
            }
        }
        if limits.not.as_deref().is_some_and(|not| complaints(not).is_empty()) {
            say("must not validate the schema (not)".to_owned());
        }
        for error in nested {
            self.add(error.reason, &error.field, error.message);
        }
    }

    /// Embedded objects must say what they are.
    fn embedded(&mut self, schema: &Schema, value: &Value, path: &str, root: bool) {
        match value {
            Value::Object(map) => {
                if schema.embedded && !root {
                    for key in ["apiVersion", "kind"] {
                        if map.get(key).and_then(Value::as_str).unwrap_or("").is_empty() {
                            let message = "Required value: must not be empty".to_owned();
                            self.add(Reason::Required, &join(path, key), message);
                        }
                    }
                    if map.get("metadata").is_some_and(|metadata| !metadata.is_object()) {
                        let value = map["metadata"].to_string();
                        let message = format!("Invalid value: {value}: must be an object");
                        self.add(Reason::Invalid, &join(path, "metadata"), message);
                    }
                }
                for (key, inner) in map {
                    if let Some(child) = schema.child(key) {
                        self.embedded(child, inner, &join(path, key), false);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(child) = &schema.items {
                    for (index, item) in items.iter().enumerate() {
                        self.embedded(child, item, &format!("{path}[{index}]"), false);
                    }
                }
            }
            _ => {}
        }
    }

    /// Items of sets, and the keys of items of maps, must differ.
    fn lists(&mut self, schema: &Schema, value: &Value, path: &str) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    let path = match schema.properties.contains_key(key) {
                        true => join(path, key),
                        false => format!("{path}[{key}]"),
                    };
                    if let Some(child) = schema.child(key) {
                        self.lists(child, inner, &path);
                    }
                }
            }
            Value::Array(items) => {
                self.distinct(schema, items, path);
                if let Some(child) = &schema.items {
                    for (index, item) in items.iter().enumerate() {
                        self.lists(child, item, &format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn distinct(&mut self, schema: &Schema, items: &[Value], path: &str) {
        let identity = |item: &Value| -> Value {
            match &schema.list {
                List::Map(keys) => {
                    let defaulted = |key: &String| {
                        let schema = schema.items.as_ref().and_then(|items| items.child(key));
                        schema.and_then(|schema| schema.default.clone())
                    };
                    let pair = |key: &String| {
                        let value = item.get(key).cloned().or_else(|| defaulted(key));
                        value.map(|value| (key.clone(), value))
                    };
                    Value::Object(keys.iter().filter_map(pair).collect())
                }
                List::Set | List::Atomic => item.clone(),
            }
        };
        if schema.list == List::Atomic {
            return;
        }
        // Equal values have equal texts once their keys are sorted.
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = identity(item);
            let mut sorted = identity.clone();
            sorted.sort_all_objects();
            if !seen.insert(sorted.to_string()) {
                let path = format!("{path}[{index}]");
                self.add(Reason::Duplicate, &path, format!("Duplicate value: {identity}"));
            }
        }
    }
}

/// Whether a schema lets anything stand under any key: then nothing can be unknown.
pub fn is_open(schema: &Schema) -> bool {
    schema.preserve || matches!(schema.additional, Additional::Anything)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_is_compared_with_the_one_of_its_keys() {
        let keyed = Schema::parse(&json!({"type": "array", "items": {"type": "object"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "port"]}));
        let old =
            json!([{"name": "a", "port": 1, "x": 1}, {"name": "a"}, {"name": "b", "port": 1}]);
        let before = Counterparts::of(&keyed, Some(&old));
        let found = |item: Value| before.find(&item).cloned();
        assert_eq!(found(json!({"name": "a", "port": 1})), Some(old[0].clone()));
        assert_eq!(found(json!({"name": "a", "y": 2})), Some(old[1].clone()));
        assert_eq!(found(json!({"name": "b"})), None);
        let plain = Schema::parse(&json!({"type": "array", "items": {"type": "object"}}));
        assert!(Counterparts::of(&plain, Some(&old)).find(&old[0]).is_none());
    }
}
