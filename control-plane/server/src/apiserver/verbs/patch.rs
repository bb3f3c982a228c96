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
/// Most steps of a JSON patch: values that are looked at before they go elsewhere, and items of
/// lists that make room for another one or close up behind it. Far above any honest patch, and some
/// tenths of a second.
const STEPS_MAX: usize = 20_000_000;

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
            if new[key] != word {
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
    let mut spent = Spent::default();
    for operation in operations {
        spent.charge(operation, value).map_err(ApiError::TooLarge)?;
        if tests_absence(operation, value) {
            continue;
        }
        json_patch::patch(value, std::slice::from_ref(operation))
            .map_err(|error| invalid(format!("the server rejected our request: {error}")))?;
    }
    Ok(())
}

/// Whether an operation tests for `null` what an object does not have: in Kubernetes that holds,
/// and clients ask so before they add the first label.
fn tests_absence(operation: &PatchOperation, value: &Value) -> bool {
    let PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let parent = path.rsplit_once('/').and_then(|(parent, _)| value.pointer(parent));
    test.value.is_null() && value.pointer(path).is_none() && parent.is_some_and(Value::is_object)
}

/// What the operations of a patch have cost so far.
#[derive(Default)]
struct Spent {
    copied: usize,
    steps: usize,
}

impl Spent {
    /// Charges an operation before it is done, or says why it must not be: what is nested too
    /// deeply could not even be dropped again.
    fn charge(&mut self, operation: &PatchOperation, value: &Value) -> Result<(), String> {
        let weigh = |from: &str| value.pointer(from).map(Weight::of).unwrap_or_default();
        let (weight, copied, from) = match operation {
            PatchOperation::Add(add) => (Weight::of(&add.value), false, ""),
            PatchOperation::Replace(replace) => (Weight::of(&replace.value), false, ""),
            PatchOperation::Copy(copy) => (weigh(copy.from.as_str()), true, ""),
            PatchOperation::Move(move_) => (weigh(move_.from.as_str()), false, move_.from.as_str()),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => (Weight::default(), false, ""),
        };
        let path = operation.path();
        if path.count() + weight.depth > content::DEPTH_MAX {
            return Err(format!("a patch must not nest more than {} levels", content::DEPTH_MAX));
        }
        self.copied += if copied { weight.bytes } else { 0 };
        if self.copied > COPIED_BYTES_MAX {
            return Err(format!("the copies of a patch are limited to {COPIED_BYTES_MAX} bytes"));
        }
        self.steps += weight.values + neighbours(value, path.as_str()) + neighbours(value, from);
        if self.steps > STEPS_MAX {
            return Err("the operations of the patch move too many values".to_owned());
        }
        Ok(())
    }
}

/// How many items stand beside what a pointer names in a list, but at its end.
fn neighbours(value: &Value, pointer: &str) -> usize {
    match pointer.rsplit_once('/') {
        None | Some((_, "-")) => 0,
        Some((list, _)) => value.pointer(list).and_then(Value::as_array).map_or(0, Vec::len),
    }
}

/// How large a value is: about its bytes as JSON, the values in it, how deep it is nested.
#[derive(Default)]
struct Weight {
    bytes: usize,
    values: usize,
    depth: usize,
}

impl Weight {
    fn of(value: &Value) -> Weight {
        let mut whole = Weight { bytes: 8, values: 1, depth: 0 };
        match value {
            Value::Array(items) => items.iter().for_each(|item| whole.add(0, item)),
            Value::Object(map) => map.iter().for_each(|(key, one)| whole.add(key.len() + 4, one)),
            Value::String(text) => whole.bytes = text.len() + 2,
            _ => {}
        }
        whole
    }

    fn add(&mut self, key: usize, value: &Value) {
        let part = Weight::of(value);
        self.bytes += key + part.bytes;
        self.values += part.values;
        self.depth = self.depth.max(part.depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ran(operations: Value, value: &mut Value) -> Result<(), String> {
        let operations: Vec<PatchOperation> = serde_json::from_value(operations).expect("a patch");
        run(&operations, value, ApiError::BadRequest).map_err(|error| error.to_string())
    }

    #[test]
    fn no_patch_nests_deeper_than_a_body() {
        let mut value = json!({"a": {}, "list": [1, 2]});
        let honest = json!([
            {"op": "add", "path": "/list/-", "value": 3},
            {"op": "move", "from": "/list/0", "path": "/a/first"},
            {"op": "copy", "from": "/a", "path": "/list/0"},
        ]);
        assert_eq!(ran(honest, &mut value), Ok(()));
        assert_eq!(value, json!({"a": {"first": 1}, "list": [{"first": 1}, 2, 3]}));
        // Each copy makes what is below `a` twice as deep.
        let mut doubled = json!({"a": {}});
        let paths =
            (0..20).map(|round| "/a".to_owned() + &"/b".repeat((1_usize << round).min(4096)));
        let copies: Vec<Value> =
            paths.map(|path| json!({"op": "copy", "from": "/a", "path": path})).collect();
        let refused = ran(Value::Array(copies), &mut doubled).expect_err("it is refused");
        assert!(refused.contains("128 levels"), "{refused}");
        // Each move puts a chain to the end of the next one.
        let deep = (0..100).fold(json!(1), |inner, _| json!({"b": inner}));
        let mut chains = json!({"x": deep, "y": deep});
        let end = "/y".to_owned() + &"/b".repeat(100);
        let refused = ran(json!([{"op": "move", "from": "/x", "path": end}]), &mut chains);
        assert!(refused.expect_err("it is refused").contains("128 levels"));
    }

    #[test]
    fn what_is_absent_tests_as_null() {
        let mut value = json!({"a": {}, "list": []});
        let first = json!([
            {"op": "test", "path": "/a/labels", "value": null},
            {"op": "add", "path": "/a/labels", "value": {"k": "v"}},
        ]);
        assert_eq!(ran(first.clone(), &mut value), Ok(()));
        assert!(ran(first, &mut value).is_err(), "it is there by now");
        for path in ["/b/labels", "/list/0"] {
            let test = json!([{"op": "test", "path": path, "value": null}]);
            assert!(ran(test, &mut value).is_err(), "{path}");
        }
    }

    #[test]
    fn a_patch_that_shifts_long_lists_again_and_again_is_refused() {
        let mut value = json!({"list": vec![0; 10_000]});
        let shift = json!({"op": "move", "from": "/list/0", "path": "/list/1"});
        let refused = ran(json!(vec![shift; 2_000]), &mut value).expect_err("it is refused");
        assert!(refused.contains("too many values"), "{refused}");
    }
}
