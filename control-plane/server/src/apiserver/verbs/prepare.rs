//! What a request makes of an object before defaults and admission: pure.
//!
//! The server owns uid, times, generation and revision; the path owns name and namespace; each
//! part of an object (`Part`) has its own endpoint, and every endpoint leaves the other parts as
//! they are stored.

use super::Part;
use crate::apiserver::errors::ApiError;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wherry_resources::{Kind, Object, meta};

/// What a new object gets that cannot be computed.
pub struct Stamp {
    pub now: Timestamp,
    pub uid: String,
}

impl Stamp {
    /// Reads the clock and makes a uid.
    pub fn new() -> Stamp {
        Stamp { now: Timestamp::now(), uid: uid() }
    }
}

/// A random UUID. Each request wants one or two, so the chance is this thread's own, not the
/// machine's, which would be asked by a system call.
pub fn uid() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// Fields of metadata that only the server writes.
const SERVER_OWNED: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
];

/// A new object out of a body. `namespace` is the path's, None for cluster-scoped kinds.
pub fn created(
    kind: &Kind,
    namespace: Option<&str>,
    mut object: Object,
    stamp: &Stamp,
) -> Result<Object, ApiError> {
    let revision = meta::resource_version(&object);
    if !revision.is_empty() && revision != "0" {
        return Err(ApiError::BadRequest(
            "resourceVersion should not be set on objects to be created".to_owned(),
        ));
    }
    in_namespace(namespace, &mut object)?;
    let metadata = meta::metadata_mut(&mut object);
    for key in SERVER_OWNED.iter().filter(|key| **key != "generateName") {
        metadata.shift_remove(*key);
    }
    metadata.shift_remove("resourceVersion");
    metadata.shift_remove("selfLink");
    drop_empty(metadata);
    meta::set(&mut object, "uid", &stamp.uid);
    meta::set(&mut object, "creationTimestamp", &meta::time(stamp.now));
    if kind.generation {
        meta::set_generation(&mut object, 1);
    }
    // An agent registers its Node together with what the machine offers.
    if kind.has_status && !kind.is("", "Node") {
        object_mut(&mut object).shift_remove("status");
    }
    Ok(object)
}

/// The path's namespace goes into the object; another one in the body is an error.
fn in_namespace(namespace: Option<&str>, object: &mut Object) -> Result<(), ApiError> {
    let sent = meta::namespace(object);
    let Some(namespace) = namespace else {
        meta::set(object, "namespace", "");
        return Ok(());
    };
    if !sent.is_empty() && sent != namespace {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request"
                .to_owned(),
        ));
    }
    meta::set(object, "namespace", namespace);
    Ok(())
}

/// Checks that the body of an update names the object in the path, and fills in what it leaves out.
pub fn addressed(name: &str, namespace: Option<&str>, object: &mut Object) -> Result<(), ApiError> {
    let sent = meta::name(object);
    if !sent.is_empty() && sent != name {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    meta::set(object, "name", name);
    in_namespace(namespace, object)
}

/// The object that an update leads to: `new` where the endpoint may change it, `old` elsewhere.
/// Both are of the same kind; `old` carries its resourceVersion, and so does the result.
pub fn updated(kind: &Kind, part: Part, old: &Object, new: Object) -> Result<Object, ApiError> {
    let uid = meta::uid(&new);
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(old)
        );
        return Err(ApiError::conflict(kind, meta::name(old), why));
    }
    let mut result = match part {
        Part::Main => main(kind, old, new),
        Part::Status => status(kind, old, &new),
        Part::Approval => {
            let conditions = new.pointer("/status/conditions").cloned();
            with(old, "status", "conditions", conditions)
        }
        Part::Finalize => with(old, "spec", "finalizers", new.pointer("/spec/finalizers").cloned()),
        Part::EphemeralContainers => {
            let containers = new.pointer("/spec/ephemeralContainers").cloned();
            with(old, "spec", "ephemeralContainers", containers)
        }
        Part::Resize => resized(old, &new),
        Part::Binding => new,
    };
    let metadata = meta::metadata_mut(&mut result);
    for key in SERVER_OWNED.iter().chain(&["resourceVersion", "name", "namespace"]) {
        copy(old.pointer("/metadata"), metadata, key);
    }
    metadata.shift_remove("selfLink");
    drop_empty(metadata);
    Ok(result)
}

fn main(kind: &Kind, old: &Object, mut new: Object) -> Object {
    let map = object_mut(&mut new);
    if kind.has_status {
        copy(Some(old), map, "status");
    }
    if kind.is("certificates.k8s.io", "CertificateSigningRequest") {
        copy(Some(old), map, "spec");
    }
    if kind.is("", "Namespace") {
        let finalizers = old.pointer("/spec/finalizers").cloned();
        return with(&new, "spec", "finalizers", finalizers);
    }
    new
}

fn status(kind: &Kind, old: &Object, new: &Object) -> Object {
    let mut result = old.clone();
    copy(Some(new), object_mut(&mut result), "status");
    // Custom resources take nothing but the status here, built-in ones labels and annotations too.
    let also: &[&str] = if kind.custom.is_some() { &[] } else { &["labels", "annotations"] };
    for key in also {
        copy(new.pointer("/metadata"), meta::metadata_mut(&mut result), key);
    }
    if kind.is("certificates.k8s.io", "CertificateSigningRequest") {
        keep_decision(old, &mut result);
    }
    result
}

/// Whether a certificate request is approved is decided by `/approval` alone.
fn keep_decision(old: &Object, result: &mut Object) {
    let decides = |condition: &Value| {
        matches!(condition.get("type").and_then(Value::as_str), Some("Approved" | "Denied"))
    };
    let list = |object: &Object| -> Vec<Value> {
        let found = object.pointer("/status/conditions").and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    let mut conditions: Vec<Value> = list(old).into_iter().filter(|one| decides(one)).collect();
    conditions.extend(list(result).into_iter().filter(|one| !decides(one)));
    if !conditions.is_empty() {
        *result = with(result, "status", "conditions", Some(Value::Array(conditions)));
    }
}

/// Takes the resources of containers from `new`, by name, and nothing else.
fn resized(old: &Object, new: &Object) -> Object {
    let mut result = old.clone();
    let wanted = new.pointer("/spec/containers").and_then(Value::as_array);
    let containers = result.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        let same = |one: &&Value| one.get("name") == container.get("name");
        let resources = wanted.and_then(|list| list.iter().find(same)?.get("resources"));
        if let Some(resources) = resources {
            container["resources"] = resources.clone();
        }
    }
    result
}

/// A copy of `object` with `object[outer][inner]` set, or removed if None.
fn with(object: &Object, outer: &str, inner: &str, value: Option<Value>) -> Object {
    let mut result = object.clone();
    let map = object_mut(&mut result).entry(outer).or_insert_with(|| json!({}));
    if let Some(map) = map.as_object_mut() {
        match value {
            Some(value) => map.insert(inner.to_owned(), value),
            None => map.shift_remove(inner),
        };
    }
    result
}

fn copy(from: Option<&Value>, to: &mut Map<String, Value>, key: &str) {
    match from.and_then(|object| object.get(key)) {
        Some(value) => to.insert(key.to_owned(), value.clone()),
        None => to.shift_remove(key),
    };
}

/// Drops what is null, and lists and maps in which nothing is left: they are the same as absent ones,
/// and a stock server never shows them.
fn drop_empty(metadata: &mut Map<String, Value>) {
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
}

fn object_mut(object: &mut Object) -> &mut Map<String, Value> {
    object.as_object_mut().expect("a decoded body is an object")
}

/// Counts the generation: +1 when anything but metadata and status differs from `old`. A binding
/// does not count: it is part of how a Pod begins.
pub fn count_generation(kind: &Kind, part: Part, old: &Object, new: &mut Object) {
    if !kind.generation || part == Part::Binding {
        return;
    }
    // Without a status subresource a custom resource's status is a field like any other.
    let whole = kind.custom.is_some() && !kind.has_status;
    let changed = relevant(old, whole) != relevant(new, whole);
    let generation = meta::generation(old) + i64::from(changed);
    // Of one that was made before its kind was counted nothing is said until it changes.
    if generation > 0 {
        meta::set_generation(new, generation);
    }
}

/// The fields whose changes count, by name: their order does not.
fn relevant(object: &Object, status_too: bool) -> BTreeMap<&String, &Value> {
    let fields = object.as_object().into_iter().flatten();
    let counted = fields.filter(|(key, _)| match key.as_str() {
        "metadata" | "apiVersion" => false,
        "status" => status_too,
        _ => true,
    });
    counted.collect()
}

/// Whether an object that is being deleted has nothing left to wait for.
pub fn is_gone(kind: &Kind, object: &Object) -> bool {
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let held = kind.is("", "Namespace")
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty());
    meta::is_deleting(object)
        && grace.unwrap_or(0) == 0
        && meta::finalizers(object).is_empty()
        && !held
}
