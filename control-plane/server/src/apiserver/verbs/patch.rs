//! PATCH: JSON patch, merge patch and strategic merge patch of an object or one of its parts.
//! Applies are a file of their own (`apply.rs`).
//!
//! A patch is applied to the object as the client sees it, and the result goes the way of an
//! update. If another write comes first the patch is applied anew, unless it names a
//! resourceVersion: then that is its precondition.

use super::{
    Part, WriteOptions, apply, body, get, prepare,
    state::States,
    write::{self, Call, Failure, Written},
};
use crate::apiserver::{
    ApiServer, content,
    errors::{self, ApiError},
    request::Request,
};
use axum::response::Response;
use http::StatusCode;
use json_patch::PatchOperation;
use serde_json::Value;
use wherry_resources::validate::Reason;
use wherry_resources::{Kind, Object, meta, patch as strategic};
use wherry_store::Snapshot;

/// Most operations of a JSON patch, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;
/// Most bytes that all `copy` operations of a patch may copy: each may double the object, so a small
/// patch could grow without end.
const COPIED_BYTES_MAX: usize = content::BODY_BYTES_MAX;

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
    application/apply-patch+yaml, application/strategic-merge-patch+json";

/// Custom resources have no strategic merge: nobody knows their keys.
const ACCEPTED_CUSTOM: &str = "application/json-patch+json, application/merge-patch+json, \
    application/apply-patch+yaml";

/// A patch, decoded.
pub enum Patch {
    Json(Vec<PatchOperation>),
    Merge(Value),
    Strategic(Value),
}

/// Patches the object that the path names.
pub async fn patch(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let content_type = request.content_type();
    if content_type == apply::CONTENT_TYPE {
        return apply::apply(api, request).await;
    }
    let options = WriteOptions::of_patch(&request.query, false)?;
    let part = Part::of(request)?;
    let (patch, duplicates) = decode(&content_type, &request.body, request.kind.custom.is_some())?;
    let call = Call::of(api, request, part, options.dry_run);
    let attempt = async |snapshot: &Snapshot| -> Result<Written, Failure> {
        let mut warnings = Vec::new();
        let (old, entry) = call.load(snapshot, request.name()).await?;
        let mut new = patch.apply(request.kind, &old)?;
        prepare::addressed(request.name(), request.namespace(), &mut new)?;
        let kind = request.kind;
        body::fields(kind, &mut new, &duplicates, options.validation, &mut warnings)?;
        let version = meta::resource_version(&new);
        if !version.is_empty() && version != meta::resource_version(&old) {
            return Err(ApiError::modified(kind, request.name()).into());
        }
        let mut written = write::replace(&call, &old, &entry, new).await?;
        warnings.append(&mut written.warnings);
        Ok(Written { warnings, ..written })
    };
    let mut states = States::of(api);
    while let Some(snapshot) = states.next().await? {
        if let Some(done) = states.settle(attempt(&snapshot).await) {
            let Written { object, warnings, .. } = done?;
            return get::respond(request, StatusCode::OK, object, &warnings);
        }
    }
    Err(ApiError::modified(request.kind, request.name()))
}

/// Reads a patch body, of a custom kind or a built-in one. The second part names the keys that
/// stood twice.
pub fn decode(
    content_type: &str,
    bytes: &[u8],
    is_custom: bool,
) -> Result<(Patch, Vec<String>), ApiError> {
    let json = || {
        content::decode_json(bytes)
            .map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))
    };
    match content_type {
        "application/json-patch+json" => {
            let decoded = json()?;
            let count = decoded.value.as_array().map_or(0, Vec::len);
            if count > OPERATIONS_MAX {
                return Err(ApiError::TooLarge(format!(
                    "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, \
                     got {count}"
                )));
            }
            let operations = serde_json::from_value(decoded.value)
                .map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
            Ok((Patch::Json(operations), decoded.duplicates))
        }
        "application/merge-patch+json" => {
            let decoded = json()?;
            Ok((Patch::Merge(of_object(decoded.value)?), decoded.duplicates))
        }
        "application/strategic-merge-patch+json" if !is_custom => {
            let decoded = json()?;
            Ok((Patch::Strategic(of_object(decoded.value)?), decoded.duplicates))
        }
        _ if is_custom => Err(ApiError::UnsupportedMediaType(ACCEPTED_CUSTOM)),
        _ => Err(ApiError::UnsupportedMediaType(ACCEPTED)),
    }
}

fn of_object(value: Value) -> Result<Value, ApiError> {
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::BadRequest("error decoding patch: a patch is an object".to_owned()))
    }
}

impl Patch {
    /// The object after the patch.
    pub fn apply(&self, kind: &Kind, old: &Object) -> Result<Object, ApiError> {
        let invalid = |why: String| {
            let error = errors::field(Reason::Invalid, "patch", why);
            ApiError::invalid(kind, meta::name(old), vec![error])
        };
        let mut new = old.clone();
        match self {
            Patch::Json(operations) => run(operations, &mut new, invalid)?,
            Patch::Merge(patch) => json_patch::merge(&mut new, patch),
            Patch::Strategic(patch) => {
                new = strategic::strategic(kind, old, patch)
                    .map_err(|error| ApiError::BadRequest(error.to_string()))?;
            }
        }
        if !new.is_object() || !new["metadata"].is_object() {
            return Err(invalid("the patched object is no object with metadata".to_owned()));
        }
        for (key, word) in [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())] {
            if new[key] != Value::from(word) {
                return Err(ApiError::BadRequest(format!("a patch must not change {key}")));
            }
        }
        meta::order(&mut new);
        Ok(new)
    }
}

/// Runs the operations of a JSON patch one after the other.
pub fn run(
    operations: &[PatchOperation],
    value: &mut Value,
    invalid: impl Fn(String) -> ApiError,
) -> Result<(), ApiError> {
    let mut copied = 0;
    for operation in operations {
        if let PatchOperation::Copy(copy) = operation {
            copied += value.pointer(copy.from.as_str()).map_or(0, size);
            if copied > COPIED_BYTES_MAX {
                let why = format!("the copies of a patch are limited to {COPIED_BYTES_MAX} bytes");
                return Err(ApiError::TooLarge(why));
            }
        }
        json_patch::patch(value, std::slice::from_ref(operation))
            .map_err(|error| invalid(format!("the server rejected our request: {error}")))?;
    }
    Ok(())
}

/// About how many bytes a value is as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => {
            2 + map.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>()
        }
        Value::String(text) => text.len() + 2,
        _ => 8,
    }
}
