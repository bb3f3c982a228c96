//! Reading and writing `metadata`, and the order of keys.
//!
//! Readers never fail: an absent or mistyped field reads as empty, because validation refuses such
//! objects before they are stored. Writers create what is missing. Times on the wire are RFC 3339
//! in UTC with whole seconds ([`time`]) or, in leases and events, microseconds ([`micro_time`]).

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::Object;

/// Finalizer that holds an object until its blocking dependents are gone.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// Finalizer that holds an object until its dependents no longer name it as their owner.
pub const ORPHAN_FINALIZER: &str = "orphan";

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// `apiVersion`, empty when absent.
pub fn api_version(object: &Object) -> &str {
    text(object, "apiVersion")
}

/// `kind`, empty when absent.
pub fn kind(object: &Object) -> &str {
    text(object, "kind")
}

/// `metadata.name`, empty when absent.
pub fn name(object: &Object) -> &str {
    field(object, "name")
}

/// `metadata.generateName`, empty when absent.
pub fn generate_name(object: &Object) -> &str {
    field(object, "generateName")
}

/// `metadata.namespace`, empty when absent.
pub fn namespace(object: &Object) -> &str {
    field(object, "namespace")
}

/// `metadata.uid`, empty when absent.
pub fn uid(object: &Object) -> &str {
    field(object, "uid")
}

/// `metadata.resourceVersion`, empty when absent.
pub fn resource_version(object: &Object) -> &str {
    field(object, "resourceVersion")
}

/// `metadata.generation`, zero when absent.
pub fn generation(object: &Object) -> i64 {
    metadata(object).and_then(|map| map.get("generation")).and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.creationTimestamp`.
pub fn creation_timestamp(object: &Object) -> Option<Timestamp> {
    parse_time(field(object, "creationTimestamp"))
}

/// `metadata.deletionTimestamp`.
pub fn deletion_timestamp(object: &Object) -> Option<Timestamp> {
    parse_time(field(object, "deletionTimestamp"))
}

/// Whether a deletion has begun.
pub fn is_deleting(object: &Object) -> bool {
    !field(object, "deletionTimestamp").is_empty()
}

/// `metadata.labels` as pairs in their order.
pub fn labels(object: &Object) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "labels")
}

/// `metadata.annotations` as pairs in their order.
pub fn annotations(object: &Object) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "annotations")
}

/// One label.
pub fn label<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    metadata(object)?.get("labels")?.get(key)?.as_str()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    metadata(object)?.get("annotations")?.get(key)?.as_str()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Object) -> Vec<&str> {
    list(object, "finalizers").iter().filter_map(Value::as_str).collect()
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Object) -> Vec<OwnerReference<'_>> {
    let flag = |owner: &Value, name| owner.get(name).and_then(Value::as_bool).unwrap_or(false);
    list(object, "ownerReferences")
        .iter()
        .map(|owner| OwnerReference {
            api_version: text(owner, "apiVersion"),
            kind: text(owner, "kind"),
            name: text(owner, "name"),
            uid: text(owner, "uid"),
            controller: flag(owner, "controller"),
            block_owner_deletion: flag(owner, "blockOwnerDeletion"),
        })
        .collect()
}

/// The owner that controls this object, if any.
pub fn controller(object: &Object) -> Option<OwnerReference<'_>> {
    owner_references(object).into_iter().find(|owner| owner.controller)
}

/// A controlling owner reference to `owner`, as every workload controller writes into what it
/// creates.
pub fn controller_reference(owner: &Object) -> Value {
    serde_json::json!({
        "apiVersion": api_version(owner),
        "kind": kind(owner),
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// `metadata.managedFields`.
pub fn managed_fields(object: &Object) -> &[Value] {
    list(object, "managedFields")
}

/// Takes `metadata.managedFields` out of an object.
pub fn take_managed_fields(object: &mut Object) -> Vec<Value> {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    match metadata.and_then(|metadata| metadata.shift_remove("managedFields")) {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    }
}

/// Replaces `metadata.managedFields`; an empty list removes it.
pub fn set_managed_fields(object: &mut Object, entries: Vec<Value>) {
    set_or_remove(object, "managedFields", Value::Array(entries));
}

/// `metadata` of an object, created when it is absent or no object.
pub fn metadata_mut(object: &mut Object) -> &mut Map<String, Value> {
    child_mut(object_mut(object), "metadata")
}

/// Sets one string field of `metadata`; an empty string removes the field.
pub fn set(object: &mut Object, key: &str, value: &str) {
    if value.is_empty() {
        metadata_mut(object).shift_remove(key);
        return;
    }
    metadata_mut(object).insert(key.to_string(), Value::from(value));
}

/// Sets `metadata.resourceVersion` from a revision.
pub fn set_resource_version(object: &mut Object, revision: u64) {
    set(object, "resourceVersion", &revision.to_string());
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Object, generation: i64) {
    metadata_mut(object).insert("generation".to_string(), Value::from(generation));
}

/// Sets one label.
pub fn set_label(object: &mut Object, key: &str, value: &str) {
    child_mut(metadata_mut(object), "labels").insert(key.to_string(), Value::from(value));
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Object, key: &str, value: &str) {
    child_mut(metadata_mut(object), "annotations").insert(key.to_string(), Value::from(value));
}

/// Removes one annotation, and the map when it was the last.
pub fn remove_annotation(object: &mut Object, key: &str) {
    let metadata = metadata_mut(object);
    let Some(Value::Object(annotations)) = metadata.get_mut("annotations") else {
        return;
    };
    annotations.shift_remove(key);
    if annotations.is_empty() {
        metadata.shift_remove("annotations");
    }
}

/// Replaces `metadata.finalizers`; an empty list removes it.
pub fn set_finalizers(object: &mut Object, finalizers: &[&str]) {
    let list = finalizers.iter().map(|name| Value::from(*name)).collect();
    set_or_remove(object, "finalizers", Value::Array(list));
}

/// Replaces `metadata.ownerReferences`; an empty list removes it.
pub fn set_owner_references(object: &mut Object, owners: Vec<Value>) {
    set_or_remove(object, "ownerReferences", Value::Array(owners));
}

/// A time as Kubernetes writes it: UTC, whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time with microseconds, as in leases and in `events.k8s.io` events.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads either form; `None` for an empty or unreadable time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Keys of an object in the order of the wire, then whatever else there is in its own order.
const OBJECT_ORDER: &[&str] = &["kind", "apiVersion", "metadata", "spec"];

/// All keys of `metadata`, in the order of the wire.
pub(crate) const METADATA_ORDER: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Brings the keys of an object and of its metadata into the order that stock servers write and
/// that callers rely on: `kind`, `apiVersion`, `metadata` first, because they decode the type
/// before the rest.
pub fn order(object: &mut Object) {
    let Value::Object(map) = object else { return };
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        sort_first(metadata, METADATA_ORDER);
        for key in ["labels", "annotations"] {
            if let Some(Value::Object(pairs)) = metadata.get_mut(key)
                && !pairs.keys().is_sorted()
            {
                pairs.sort_keys();
            }
        }
    }
    // `status` comes last even after the fields that other kinds keep beside `spec`.
    let is_last = map.keys().next_back().is_some_and(|key| key == "status");
    let status = if is_last { None } else { map.shift_remove("status") };
    sort_first(map, OBJECT_ORDER);
    if let Some(status) = status {
        map.insert("status".to_string(), status);
    }
}

/// Whether the named keys stand in front already, in that order.
fn stand_first(map: &Map<String, Value>, order: &[&str]) -> bool {
    let mut next = order.iter();
    map.keys().all(|key| next.any(|name| name == key) || !order.contains(&key.as_str()))
}

/// Moves the named keys to the front, in that order.
fn sort_first(map: &mut Map<String, Value>, order: &[&str]) {
    // Each write asks several times, and what has been ordered mostly is.
    if stand_first(map, order) {
        return;
    }
    let mut rest = std::mem::take(map);
    for key in order {
        if let Some(value) = rest.shift_remove(*key) {
            map.insert((*key).to_string(), value);
        }
    }
    map.extend(rest);
}

/// The JSON object in `value`, which becomes an empty one if it is anything else.
pub(crate) fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// A nested object, created when it is absent or no object.
pub(crate) fn child_mut<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> &'a mut Map<String, Value> {
    object_mut(map.entry(key).or_insert(Value::Null))
}

/// A string field, empty when absent or no string.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// The items of a list field, empty when absent or no list.
pub fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
}

fn metadata(object: &Object) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

fn field<'a>(object: &'a Object, key: &str) -> &'a str {
    metadata(object).and_then(|map| map.get(key)).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(object: &'a Object, key: &str) -> &'a [Value] {
    object.get("metadata").map(|metadata| items(metadata, key)).unwrap_or(&[])
}

fn pairs<'a>(object: &'a Object, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    metadata(object)
        .and_then(|map| map.get(key))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

fn set_or_remove(object: &mut Object, key: &str, value: Value) {
    let metadata = metadata_mut(object);
    if value.as_array().is_some_and(Vec::is_empty) {
        metadata.shift_remove(key);
        return;
    }
    metadata.insert(key.to_string(), value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_brought_into_the_order_of_the_wire() {
        let mut object = json!({
            "status": {}, "spec": {}, "metadata": {"labels": {"b": "1", "a": "2"}, "name": "x"},
            "apiVersion": "v1", "data": {}, "kind": "Pod",
        });
        order(&mut object);
        let expected = [
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","#,
            r#""labels":{"a":"2","b":"1"}},"spec":{},"data":{},"status":{}}"#,
        ];
        assert_eq!(object.to_string(), expected.concat());
    }

    #[test]
    fn however_keys_stood_they_end_in_one_order() {
        let keys = ["kind", "apiVersion", "metadata", "spec", "data", "status"];
        for (one, other) in (0..keys.len()).flat_map(|one| (0..=one).map(move |other| (one, other)))
        {
            let mut stood = keys.to_vec();
            stood.swap(one, other);
            let fields = stood.iter().map(|key| ((*key).to_owned(), json!({})));
            let mut object = Value::Object(fields.collect());
            order(&mut object);
            let map = object.as_object().expect("it stays an object");
            assert_eq!(map.keys().collect::<Vec<_>>(), keys, "{stood:?}");
        }
    }

    #[test]
    fn times() {
        let at: Timestamp = "2026-01-02T03:04:05.678901Z".parse().expect("a time");
        assert_eq!(time(at), "2026-01-02T03:04:05Z");
        assert_eq!(micro_time(at), "2026-01-02T03:04:05.678901Z");
        assert_eq!(parse_time(""), None);
    }

    #[test]
    fn writers_create_and_remove() {
        let mut object = json!({});
        set_label(&mut object, "a", "b");
        set_finalizers(&mut object, &["x"]);
        set_annotation(&mut object, "k", "v");
        assert_eq!((label(&object, "a"), finalizers(&object)), (Some("b"), vec!["x"]));
        set_finalizers(&mut object, &[]);
        remove_annotation(&mut object, "k");
        set_managed_fields(&mut object, vec![json!({"manager": "m"})]);
        assert_eq!(take_managed_fields(&mut object), [json!({"manager": "m"})]);
        assert!(take_managed_fields(&mut object).is_empty());
        assert_eq!(object, json!({"metadata": {"labels": {"a": "b"}}}));
    }

    #[test]
    fn the_controller_among_owners() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "uid": "u"}});
        let mut object = json!({});
        set_owner_references(&mut object, vec![controller_reference(&owner)]);
        let found = controller(&object).expect("has a controller");
        assert_eq!((found.kind, found.name, found.uid), ("ReplicaSet", "web", "u"));
    }
}
