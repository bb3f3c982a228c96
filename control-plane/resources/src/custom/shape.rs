//! What a schema makes of an object before it is looked at: unknown fields go, defaults come.
//!
//! Both are idempotent. The type, the name and the metadata of an object (and of an embedded one)
//! belong to no schema: they stay whatever it says, except for fields that metadata does not have.

use serde_json::{Map, Value};

use super::schema::{Additional, Form, Schema};
use crate::meta::METADATA_ORDER;

/// Paths of dropped fields that are remembered: a body of nothing else would otherwise be answered
/// with a text of its own size.
const REPORTED_MAX: usize = 100;

/// Drops what the schema of a whole object does not know; the paths of what was dropped.
pub fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    value(schema, true, object, "", &mut dropped);
    dropped
}

/// The same for a value inside an object.
pub fn prune_value(schema: &Schema, at: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    value(schema, schema.embedded, at, "", &mut dropped);
    dropped
}

fn value(
    schema: &Schema,
    is_resource: bool,
    at: &mut Value,
    path: &str,
    dropped: &mut Vec<String>,
) {
    match at {
        Value::Object(map) => object(schema, is_resource, map, path, dropped),
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    value(inner, inner.embedded, item, &format!("{path}[{index}]"), dropped);
                }
            }
        }
        _ => {}
    }
}

fn object(
    schema: &Schema,
    is_resource: bool,
    map: &mut Map<String, Value>,
    path: &str,
    dropped: &mut Vec<String>,
) {
    map.retain(|key, inner| {
        if is_resource && matches!(key.as_str(), "apiVersion" | "kind") {
            return true;
        }
        let path = join(path, key);
        if is_resource && key == "metadata" {
            metadata(inner, &path, dropped);
            return true;
        }
        if let Some(child) = schema.child(key) {
            value(child, child.embedded, inner, &path, dropped);
            return true;
        }
        let known = schema.preserve
            || matches!(schema.additional, Additional::Anything)
            || schema.form == Form::IntOrText;
        if !known && dropped.len() < REPORTED_MAX {
            dropped.push(path);
        }
        known
    });
}

fn metadata(metadata: &mut Value, path: &str, dropped: &mut Vec<String>) {
    let Some(map) = metadata.as_object_mut() else {
        return;
    };
    map.retain(|key, _| {
        let known = METADATA_ORDER.contains(&key.as_str());
        if !known && dropped.len() < REPORTED_MAX {
            dropped.push(join(path, key));
        }
        known
    });
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Puts defaults where nothing stands, or a null that may not.
pub fn default(schema: &Schema, at: &mut Value) {
    match at {
        Value::Object(map) => {
            for (key, child) in &schema.properties {
                let Some(wanted) = child.default.as_ref().filter(|wanted| !wanted.is_null()) else {
                    continue;
                };
                let missing = map.get(key).is_none_or(|held| held.is_null() && !child.nullable);
                if missing {
                    map.insert(key.clone(), wanted.clone());
                }
            }
            for (key, inner) in map.iter_mut() {
                if let Some(child) = schema.child(key) {
                    instead_of_null(child, inner);
                    default(child, inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(child) = &schema.items {
                for item in items {
                    instead_of_null(child, item);
                    default(child, item);
                }
            }
        }
        _ => {}
    }
}

fn instead_of_null(schema: &Schema, at: &mut Value) {
    if at.is_null()
        && !schema.nullable
        && let Some(wanted) = &schema.default
    {
        *at = wanted.clone();
    }
}
