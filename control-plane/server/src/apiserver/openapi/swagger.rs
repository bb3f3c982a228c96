//! The same document in OpenAPI's version 2, for older tools: a translation of version 3 word for
//! word.

use serde_json::{Map, Value, json};

use super::schemas::REFERENCE;

/// What a reference starts with in version 2.
pub const DEFINITION: &str = "#/definitions/";

/// A version 2 document from a version 3 document.
pub fn document(version_3: &Value) -> Value {
    let objects = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let mut paths = Map::new();
    for (path, item) in objects(&version_3["paths"]) {
        let translate = |(key, value): (String, Value)| match key.as_str() {
            "parameters" => (key, parameters(&value)),
            _ => (key, operation(&value)),
        };
        paths.insert(path, Value::Object(objects(&item).into_iter().map(translate).collect()));
    }
    let mut definitions = Map::new();
    for (name, mut schema) in objects(&version_3["components"]["schemas"]) {
        translate_schema(&mut schema);
        definitions.insert(name, schema);
    }
    json!({
        "swagger": "2.0",
        "info": version_3["info"],
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": version_3["components"]["securitySchemes"],
        "security": [{"BearerToken": []}],
    })
}

fn operation(version_3: &Value) -> Value {
    let mut operation = json!({
        "tags": version_3["tags"],
        "description": version_3["description"],
        "operationId": version_3["operationId"],
        "schemes": ["https"],
    });
    let mut all = parameters(&version_3["parameters"]);
    let body = &version_3["requestBody"];
    if let Some((schema, media_types)) = content(body) {
        operation["consumes"] = json!(media_types);
        let body =
            json!({"name": "body", "in": "body", "required": body["required"], "schema": schema});
        all.as_array_mut().into_iter().for_each(|all| all.push(body.clone()));
    }
    operation["parameters"] = all;
    let mut responses = Map::new();
    for (status, response) in version_3["responses"].as_object().into_iter().flatten() {
        let mut translated = json!({"description": response["description"]});
        if let Some((schema, media_types)) = content(response) {
            operation["produces"] = json!(media_types);
            translated["schema"] = schema;
        }
        responses.insert(status.clone(), translated);
    }
    operation["responses"] = Value::Object(responses);
    for (key, value) in version_3.as_object().into_iter().flatten() {
        if key.starts_with("x-") {
            operation[key] = value.clone();
        }
    }
    operation
}

/// The schema and the media types of a body; version 2 has one schema for all of them.
fn content(body: &Value) -> Option<(Value, Vec<String>)> {
    let content = body.get("content")?.as_object()?;
    let mut schema = content.values().next()?["schema"].clone();
    translate_schema(&mut schema);
    Some((schema, content.keys().cloned().collect()))
}

/// Version 2 has a parameter's type beside its name.
fn parameters(version_3: &Value) -> Value {
    let flatten = |parameter: &Value| {
        let mut flat = parameter.clone();
        if let Some(fields) = flat.as_object_mut()
            && let Some(Value::Object(schema)) = fields.shift_remove("schema")
        {
            fields.extend(schema);
        }
        flat
    };
    version_3.as_array().into_iter().flatten().map(flatten).collect()
}

/// Version 2 has no `oneOf`, and a description may stand beside a reference.
fn translate_schema(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let wrapped = fields.get("allOf").and_then(|all| all.get(0)?.get("$ref").cloned());
            if let Some(reference) = wrapped {
                fields.shift_remove("allOf");
                fields.insert("$ref".to_string(), reference);
            }
            if fields.get("oneOf").is_some_and(Value::is_array) {
                fields.shift_remove("oneOf");
                let has_type = fields.contains_key("type") || fields.contains_key("$ref");
                if !has_type && fields.contains_key("x-kubernetes-int-or-string") {
                    fields.insert("type".to_string(), json!("string"));
                }
            }
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replacen(REFERENCE, DEFINITION, 1);
            }
            fields.values_mut().for_each(translate_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(translate_schema),
        _ => {}
    }
}
