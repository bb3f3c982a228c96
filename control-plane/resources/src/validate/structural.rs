//! Rules for the schemas in CustomResourceDefinitions: a schema must be *structural*, that is, its
//! skeleton must say the type of everything, and what stands under `allOf`, `anyOf`, `oneOf` and
//! `not` may only restrict values that the skeleton has.

use serde_json::Value;

use super::{Errors, at, entries, flag, get};
use crate::custom::schema::{self, Schema};
use crate::custom::{check, shape};
use crate::meta::{items, text};

/// Deepest nesting of a schema: every look at an object goes as deep.
const DEPTH_MAX: usize = 100;

/// What a schema stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Complaints about the schema of a whole object, sorted by text as a stock server has them.
pub(super) fn check(source: &Value, path: &str, errors: &mut Errors) {
    let mut found = Errors::default();
    skeleton(source, path, Level::Root, 0, &mut found);
    complete(source, source, path, 0, &mut found);
    found.0.sort_by_key(ToString::to_string);
    let is_sound = found.0.is_empty();
    errors.0.extend(found.0);
    if is_sound {
        defaults(source, &Schema::parse(source), path, true, errors);
    }
}

fn skeleton(source: &Value, path: &str, level: Level, depth: usize, errors: &mut Errors) {
    if depth > DEPTH_MAX {
        errors.invalid(path, "", "the schema is nested too deeply");
        return;
    }
    unsupported(source, path, errors);
    let kind = text(source, "type");
    let int_or_text = flag(source, "x-kubernetes-int-or-string");
    let preserve = flag(source, "x-kubernetes-preserve-unknown-fields");
    let embedded = flag(source, "x-kubernetes-embedded-resource");
    if kind == "array" && source.get("items").is_none() {
        errors.required(&at(path, "items"), "must be specified");
    }
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        match kind {
            "" => errors.required(&at(path, "type"), detail),
            kind => errors.invalid(&at(path, "type"), kind, detail),
        }
    } else if kind.is_empty() && !int_or_text && !preserve {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.required(&at(path, "type"), detail);
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&at(path, "type"), kind, "must be object at the root");
    }
    let open = source.get("additionalProperties").is_some();
    if embedded && open {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&at(path, "additionalProperties"), detail);
    }
    if level == Level::Root && open {
        errors.forbidden(&at(path, "additionalProperties"), "must not be used at the root");
    }
    if int_or_text && preserve {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.invalid(&at(path, "x-kubernetes-preserve-unknown-fields"), true, detail);
    }
    if int_or_text && embedded {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.invalid(&at(path, "x-kubernetes-embedded-resource"), true, detail);
    }
    if embedded && !preserve && !super::custom::has_any(source, "properties") {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
            x-kubernetes-preserve-unknown-fields";
        errors.required(&at(path, "properties"), detail);
    }
    if level == Level::Root || embedded {
        type_meta(source, path, level, errors);
    }
    list_and_map(source, path, kind, errors);
    values(source, path, int_or_text, errors);
    children(source, path, depth, errors);
}

fn children(source: &Value, path: &str, depth: usize, errors: &mut Errors) {
    for (key, child) in entries(source, "properties") {
        let path = format!("{path}.properties[{key}]");
        skeleton(child, &path, Level::Field, depth + 1, errors);
    }
    if let Some(items) = source.get("items").filter(|items| items.is_object()) {
        skeleton(items, &at(path, "items"), Level::Item, depth + 1, errors);
    }
    if let Some(inner @ Value::Object(_)) = source.get("additionalProperties") {
        skeleton(inner, &at(path, "additionalProperties"), Level::Field, depth + 1, errors);
    }
}

/// What OpenAPI has and structural schemas have not.
fn unsupported(source: &Value, path: &str, errors: &mut Errors) {
    let forbidden = [
        ("$ref", "$ref is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("id", "id is not supported"),
        ("$schema", "$schema is not supported"),
    ];
    for (key, detail) in forbidden {
        if source.get(key).is_some_and(|value| !value.is_null() && value != "") {
            errors.forbidden(&at(path, key), detail);
        }
    }
    let kind = text(source, "type");
    let kinds = ["array", "boolean", "integer", "number", "object", "string"];
    if kind == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.forbidden(&at(path, "type"), detail);
    } else if !kind.is_empty() && !kinds.contains(&kind) {
        errors.unsupported(&at(path, "type"), kind, &kinds);
    }
    if flag(source, "uniqueItems") {
        let detail =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&at(path, "uniqueItems"), detail);
    }
    if source.get("items").is_some_and(Value::is_array) {
        let detail = "items must be a schema object and not an array";
        errors.forbidden(&at(path, "items"), detail);
    }
    if let Some(open) = source.get("additionalProperties") {
        let path = at(path, "additionalProperties");
        if super::custom::has_any(source, "properties") && *open != Value::Bool(false) {
            errors.forbidden(&path, "additionalProperties and properties are mutual exclusive");
        }
        if *open == Value::Bool(false) {
            errors.forbidden(&path, "additionalProperties cannot be set to false");
        }
    }
    if source.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let path = at(path, "x-kubernetes-preserve-unknown-fields");
        errors.invalid(&path, false, "must be true or undefined");
    }
    if flag(source, "x-kubernetes-int-or-string") && !kind.is_empty() {
        let detail = "must be empty if x-kubernetes-int-or-string is true";
        errors.forbidden(&at(path, "type"), detail);
    }
}

/// `apiVersion`, `kind` and `metadata` mean the same everywhere.
fn type_meta(source: &Value, path: &str, level: Level, errors: &mut Errors) {
    let properties = get(source, "properties");
    for (key, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        if let Some(child) = properties.get(key)
            && text(child, "type") != wanted
        {
            let path = format!("{path}.properties[{key}].type");
            errors.invalid(&path, text(child, "type"), &format!("must be {wanted}"));
        }
    }
    let Some(metadata) = properties.get("metadata").filter(|_| level == Level::Root) else {
        return;
    };
    let known = |key: &str| matches!(key, "type" | "properties" | "description");
    let other = metadata.as_object().into_iter().flatten().any(|(key, _)| !known(key));
    let fields =
        entries(metadata, "properties").any(|(key, _)| key != "name" && key != "generateName");
    if other || fields {
        let detail = "must not specify anything other than name and generateName, but metadata \
            is implicitly specified";
        errors.forbidden(&format!("{path}.properties[metadata]"), detail);
    }
}

fn list_and_map(source: &Value, path: &str, kind: &str, errors: &mut Errors) {
    let list_type = text(source, "x-kubernetes-list-type");
    let keys = items(source, "x-kubernetes-list-map-keys");
    if !list_type.is_empty() {
        errors.one_of(&at(path, "x-kubernetes-list-type"), list_type, &["atomic", "map", "set"]);
        if kind != "array" {
            let detail = "must be array if x-kubernetes-list-type is specified";
            errors.invalid(&at(path, "type"), kind, detail);
        }
    }
    let keys_path = at(path, "x-kubernetes-list-map-keys");
    if list_type == "map" && keys.is_empty() {
        errors.required(&keys_path, "must not be empty if x-kubernetes-list-type is map");
    }
    if list_type != "map" && !keys.is_empty() {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.invalid(&at(path, "x-kubernetes-list-type"), list_type, detail);
    }
    let item = get(source, "items");
    if list_type == "map" && text(item, "type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.invalid(&format!("{path}.items.type"), text(item, "type"), detail);
    }
    for (index, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or("");
        let field = get(item, "properties").get(name);
        let path_of_field = format!("{path}.items.properties[{name}]");
        match field {
            None => {
                let detail = "entries must all be names of item properties";
                errors.invalid(&format!("{keys_path}[{index}]"), name, detail);
            }
            Some(field) if matches!(text(field, "type"), "array" | "object") => {
                let detail =
                    "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(&at(&path_of_field, "type"), text(field, "type"), detail);
            }
            Some(field) => {
                let required = items(item, "required").contains(key);
                if !required && field.get("default").is_none() {
                    let detail = "this property is in x-kubernetes-list-map-keys, so it must \
                        have a default or be a required property";
                    errors.required(&at(&path_of_field, "default"), detail);
                }
            }
        }
    }
    let map_type = text(source, "x-kubernetes-map-type");
    if !map_type.is_empty() {
        let path_of_type = at(path, "x-kubernetes-map-type");
        errors.one_of(&path_of_type, map_type, &["atomic", "granular"]);
        if kind != "object" {
            let detail = "must be object if x-kubernetes-map-type is specified";
            errors.invalid(&at(path, "type"), kind, detail);
        }
    }
}

/// The combinations and the pattern of a schema.
fn values(source: &Value, path: &str, int_or_text: bool, errors: &mut Errors) {
    let int_or_text_pattern = |source: &Value| {
        let kinds: Vec<&str> = items(source, "anyOf").iter().map(|one| text(one, "type")).collect();
        kinds == ["integer", "string"]
    };
    let skip = int_or_text && int_or_text_pattern(source);
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, one) in items(source, key).iter().enumerate() {
            let path = format!("{path}.{key}[{index}]");
            let first = int_or_text && key == "allOf" && index == 0 && int_or_text_pattern(one);
            if !(skip && key == "anyOf") {
                nested(one, &path, first, errors);
            }
        }
    }
    if let Some(not) = source.get("not") {
        nested(not, &at(path, "not"), false, errors);
    }
    let pattern = text(source, "pattern");
    if !pattern.is_empty()
        && let Err(why) = schema::compile(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&at(path, "pattern"), pattern, &detail);
    }
}

/// A schema that may only restrict values.
fn nested(source: &Value, path: &str, is_int_or_text: bool, errors: &mut Errors) {
    let empty = "must be empty to be structural";
    let undefined = "must be undefined to be structural";
    let is_false = "must be false to be structural";
    let rules = [
        ("type", empty),
        ("additionalProperties", undefined),
        ("default", undefined),
        ("title", empty),
        ("description", empty),
        ("nullable", is_false),
        ("x-kubernetes-preserve-unknown-fields", is_false),
        ("x-kubernetes-embedded-resource", is_false),
        ("x-kubernetes-int-or-string", is_false),
        ("x-kubernetes-list-map-keys", empty),
        ("x-kubernetes-list-type", undefined),
    ];
    for (key, detail) in rules {
        if source.get(key).is_some_and(|value| *value != Value::Bool(false) && *value != "") {
            errors.forbidden(&at(path, key), detail);
        }
    }
    if get(source, "properties").get("metadata").is_some() {
        let path = format!("{path}.properties[metadata]");
        errors.forbidden(&path, "must not be specified in a nested context");
    }
    if !is_int_or_text {
        values(source, path, false, errors);
    }
    for (key, child) in entries(source, "properties") {
        nested(child, &format!("{path}.properties[{key}]"), false, errors);
    }
    if let Some(items) = source.get("items") {
        nested(items, &at(path, "items"), false, errors);
    }
}

/// What a nested schema restricts must be in the skeleton.
fn complete(skeleton: &Value, source: &Value, path: &str, depth: usize, errors: &mut Errors) {
    if depth > DEPTH_MAX {
        return;
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, one) in items(source, key).iter().enumerate() {
            within(skeleton, one, path, &format!("{path}.{key}[{index}]"), depth, errors);
        }
    }
    if let Some(not) = source.get("not") {
        within(skeleton, not, path, &at(path, "not"), depth, errors);
    }
    if std::ptr::eq(skeleton, source) {
        for (key, child) in entries(source, "properties") {
            complete(child, child, &format!("{path}.properties[{key}]"), depth + 1, errors);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = source.get(key).filter(|child| child.is_object()) {
                complete(child, child, &at(path, key), depth + 1, errors);
            }
        }
    }
}

fn within(
    skeleton: &Value,
    source: &Value,
    place: &str,
    path: &str,
    depth: usize,
    errors: &mut Errors,
) {
    if depth > DEPTH_MAX {
        return;
    }
    for (key, child) in entries(source, "properties") {
        let (path, place) =
            (format!("{path}.properties[{key}]"), format!("{place}.properties[{key}]"));
        let named = get(skeleton, "properties").get(key);
        let open = get(skeleton, "additionalProperties");
        match named.or(Some(open).filter(|open| open.is_object())) {
            Some(inner) => within(inner, child, &place, &path, depth + 1, errors),
            None => errors.required(&place, &format!("because it is defined in {path}")),
        }
    }
    if let Some(child) = source.get("items") {
        match skeleton.get("items") {
            Some(inner) => {
                within(inner, child, &at(place, "items"), &at(path, "items"), depth + 1, errors);
            }
            None => {
                let detail = format!("because it is defined in {}", at(path, "items"));
                errors.required(&at(place, "items"), &detail);
            }
        }
    }
    complete(skeleton, source, path, depth + 1, errors);
}

/// Defaults must be what pruning and validation leave as it is.
fn defaults(source: &Value, schema: &Schema, path: &str, is_root: bool, errors: &mut Errors) {
    if let Some(default) = source.get("default") {
        let path = at(path, "default");
        if is_root {
            errors.forbidden(&path, "must not be set at the root");
        }
        let mut pruned = default.clone();
        let unknown = shape::prune_value(schema, &mut pruned);
        if !unknown.is_empty() {
            errors.invalid(&path, default.clone(), "must not have unknown fields");
        }
        shape::default(schema, &mut pruned);
        errors.0.extend(check::value(schema, &pruned, None, &path));
    }
    for (key, child) in entries(source, "properties") {
        if let Some(inner) = schema.properties.get(key) {
            defaults(child, inner, &format!("{path}.properties[{key}]"), false, errors);
        }
    }
    if let (Some(child), Some(inner)) = (source.get("items"), &schema.items) {
        defaults(child, inner, &at(path, "items"), false, errors);
    }
    if let (Some(child), schema::Additional::Of(inner)) =
        (source.get("additionalProperties"), &schema.additional)
    {
        defaults(child, inner, &at(path, "additionalProperties"), false, errors);
    }
}
