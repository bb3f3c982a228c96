//! Builders of objects for the tests of plans, and the text form of what a plan asks for.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cache::Typed;
use super::write::Write;

/// Seconds after an arbitrary start.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

/// Metadata with a uid that follows from the name.
pub fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: (!namespace.is_empty()).then(|| namespace.to_string()),
        name: Some(name.to_string()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("1".to_string()),
        generation: Some(1),
        ..ObjectMeta::default()
    }
}

/// An empty object with this metadata.
pub fn object<T: Typed + Default>(meta: ObjectMeta) -> T {
    let mut object = T::default();
    *object.metadata_mut() = meta;
    object
}

/// An object from YAML. Uid, revision and generation are filled in where they are not given.
pub fn yaml<T: Typed + DeserializeOwned>(text: &str) -> T {
    let value: Value = serde_yaml_ng::from_str(text).expect("YAML");
    let mut object: T = serde_json::from_value(value).expect("an object of this type");
    let name = object.metadata().name.clone().unwrap_or_default();
    let given = object.metadata_mut();
    let filled = meta("", &name);
    given.uid = given.uid.take().or(filled.uid);
    given.resource_version = given.resource_version.take().or(filled.resource_version);
    given.generation = given.generation.or(filled.generation);
    object
}

/// A controller reference to the object of this name.
pub fn owner(name: &str) -> OwnerReference {
    OwnerReference {
        uid: format!("uid-{name}"),
        name: name.to_string(),
        controller: Some(true),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    }
}

/// One line a write.
pub fn text(writes: &[Write]) -> String {
    writes.iter().map(|write| format!("{write}\n")).collect()
}
