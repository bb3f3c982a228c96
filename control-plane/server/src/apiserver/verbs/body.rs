//! The object in a request's body: decoded, of the right type, with its unknown fields dealt with.

use super::Validation;
use crate::apiserver::{
    content::{self, Decoded},
    errors::ApiError,
    openapi,
    request::Request,
};
use serde_json::{Value, json};
use wherry_resources::{Kind, Object, meta, quoted};

/// Reads the body as an object of the kind in the path. Warnings go to `warnings`.
pub fn object(
    request: &Request,
    validation: Validation,
    warnings: &mut Vec<String>,
) -> Result<Object, ApiError> {
    let kind = request.kind;
    let decoded = content::decode(&request.content_type(), &request.body, kind.kind)?;
    let mut object = typed(decoded.value, &kind.api_version(), kind.kind)?;
    openapi::fill_nulls(kind, &mut object);
    fields(kind, &mut object, &decoded.duplicates, validation, warnings)?;
    Ok(object)
}

/// Reads the body as an object of another type than the path's: Scale, Binding, Eviction, reviews.
pub fn other(request: &Request, api_version: &str, kind: &str) -> Result<Object, ApiError> {
    let Decoded { value, .. } = content::decode(&request.content_type(), &request.body, kind)?;
    let sent = typed(value, api_version, kind)?;
    openapi::check_part(api_version, kind, &sent)
        .map_err(|why| undecodable(api_version, kind, &why))?;
    Ok(sent)
}

/// Bodies without kind or apiVersion are valid: the path says both.
fn typed(mut object: Value, api_version: &str, kind: &str) -> Result<Object, ApiError> {
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {kind}): \
             the body is not an object"
        )));
    };
    for (key, expected) in [("apiVersion", api_version), ("kind", kind)] {
        let sent = map.get(key).and_then(Value::as_str).unwrap_or("");
        if sent.is_empty() {
            map.insert(key.to_owned(), json!(expected));
        } else if sent != expected && key == "apiVersion" {
            return Err(ApiError::BadRequest(format!(
                "the API version in the data ({sent}) does not match the expected API version \
                 ({expected})"
            )));
        } else if sent != expected {
            return Err(ApiError::BadRequest(format!(
                "{sent} in version \"{}\" cannot be handled as a {kind}: the kind in the data does \
                 not match the path",
                version(api_version)
            )));
        }
    }
    if map.get("metadata").is_none_or(Value::is_null) {
        map.insert("metadata".to_owned(), json!({}));
    }
    if !map["metadata"].is_object() {
        return Err(undecodable(api_version, kind, "metadata is not an object"));
    }
    meta::order(&mut object);
    Ok(object)
}

fn version(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// The sentence for a body that does not fit its type.
pub fn undecodable(api_version: &str, kind: &str, why: &str) -> ApiError {
    let version = version(api_version);
    ApiError::BadRequest(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
    ))
}

/// Finds fields that the kind does not have and keys sent twice; reports them as the client asked,
/// then drops what is unknown.
pub fn fields(
    kind: &Kind,
    object: &mut Object,
    duplicates: &[String],
    validation: Validation,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let unknown = match kind.custom() {
        Some(custom) => custom.prune(object),
        None => openapi::unknown_fields(kind, object),
    };
    let found: Vec<String> = unknown
        .iter()
        .take(openapi::REPORTED_MAX)
        .map(|path| match openapi::did_you_mean(kind, path) {
            Some(meant) => {
                format!("unknown field {} (did you mean {}?)", quoted(path), quoted(meant))
            }
            None => format!("unknown field {}", quoted(path)),
        })
        .chain(duplicates.iter().map(|path| format!("duplicate field {}", quoted(path))))
        .collect();
    match validation {
        Validation::Strict if !found.is_empty() => {
            let why = format!("strict decoding error: {}", found.join(", "));
            return Err(undecodable(&kind.api_version(), kind.kind, &why));
        }
        Validation::Strict | Validation::Ignore => {}
        Validation::Warn => warnings.extend(found),
    }
    if kind.custom.is_none() && !unknown.is_empty() {
        openapi::drop_unknown(kind, object);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_unknown_fields_are_dropped_and_some_are_told() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let mut object = json!({"metadata": {"name": "p", "labels": {"any.key": "x"}},
            "spec": {"containers": [{"name": "c", "x": 1, "image": "i"}]}});
        for number in 0..300 {
            object["spec"][format!("x{number}")] = json!({"y": number});
        }
        let mut warnings = Vec::new();
        fields(kind, &mut object, &[], Validation::Warn, &mut warnings).expect("it may warn");
        assert_eq!(warnings.len(), openapi::REPORTED_MAX);
        let kept = json!({"metadata": {"name": "p", "labels": {"any.key": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(object, kept);
    }
}
