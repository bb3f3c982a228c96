//! Builders of objects for the tests of plans, the text form of what a plan asks for, and a small
//! world to which it is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cache::{Key, Typed, kind_row};
use super::owners::controller_of;
use super::write::{Action, Target, Write};

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

/// Compares the lines of a plan with what each of them has to contain.
#[track_caller]
pub fn check_lines(writes: &[Write], expected: &[&str]) {
    let shown = text(writes);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{shown}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line} lacks {expected}");
    }
}

/// The patch of a spec that gives its Pods' container another image.
pub fn image(image: &str) -> Value {
    let containers = json!([{"name": "c", "image": image}]);
    json!({"template": {"spec": {"containers": containers}}})
}

/// Steps until nothing changes; what was done, in one line.
pub fn go<W>(world: &mut W, objects: fn(&W) -> &Objects, step: fn(&mut W) -> String) -> String {
    let mut done = Vec::new();
    for _ in 0..40 {
        let before = objects(world).all.clone();
        let step = step(world);
        if !step.is_empty() {
            done.push(step);
        }
        if before == objects(world).all {
            return done.join("; ");
        }
    }
    panic!("it does not settle: {done:?}");
}

/// Objects to which writes are done as the API server would, without its checks. Pods that are
/// deleted go at once unless they linger.
#[derive(Default)]
pub struct Objects {
    pub all: BTreeMap<Key, Value>,
    pub seconds: i64,
    /// Whether Pods that are deleted stay until [`Objects::end`].
    pub lingers: bool,
    made: usize,
}

impl Objects {
    pub fn put<T: Typed + Serialize>(&mut self, object: &T) {
        let meta = object.metadata();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let key = Key::of::<T>(&namespace, meta.name.as_deref().unwrap_or(""));
        self.all.insert(key, serde_json::to_value(object).expect("JSON"));
    }

    pub fn of<T: Typed>(&self) -> Vec<Arc<T>> {
        let own = self.all.iter().filter(|(key, _)| std::ptr::eq(key.kind, kind_row::<T>()));
        let read = |value: &Value| serde_json::from_value(value.clone()).expect("of this kind");
        own.map(|(_, value)| Arc::new(read(value))).collect()
    }

    pub fn get<T: Typed>(&self, name: &str) -> Option<Arc<T>> {
        self.of::<T>().into_iter().find(|object| object.metadata().name.as_deref() == Some(name))
    }

    /// Objects that the one with this uid controls, and those that nobody does.
    pub fn controlled<T: Typed>(&self, uid: &str) -> (Vec<Arc<T>>, Vec<Arc<T>>) {
        let mut found = (Vec::new(), Vec::new());
        for object in self.of::<T>() {
            match controller_of(object.metadata()) {
                Some(owner) if owner.uid == uid => found.0.push(object),
                Some(_) => {}
                None => found.1.push(object),
            }
        }
        found
    }

    /// Merges a patch into the object of this name.
    pub fn edit<T: Typed>(&mut self, name: &str, patch: Value) {
        let kind = kind_row::<T>();
        let own = |key: &&Key| std::ptr::eq(key.kind, kind) && key.name() == name;
        let key = self.all.keys().find(own).expect("it is there").clone();
        self.patch(&key, &patch);
    }

    fn patch(&mut self, key: &Key, patch: &Value) {
        let object = self.all.get_mut(key).expect("patched objects are there");
        let before = object["spec"].clone();
        json_patch::merge(object, patch);
        if object["spec"] != before {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = generation.into();
        }
    }

    /// Removes an object, as its node or finalizer would.
    pub fn end<T: Typed>(&mut self, name: &str) {
        let kind = kind_row::<T>();
        self.all.retain(|key, _| !(std::ptr::eq(key.kind, kind) && key.name() == name));
    }

    pub fn apply(&mut self, writes: &[Write]) {
        for write in writes {
            match &write.action {
                Action::Create { kind, namespace, object } => {
                    let name = object["metadata"]["name"].as_str().expect("a name");
                    let key = Key::new(kind, namespace, name);
                    assert!(!self.all.contains_key(&key), "{key} is made twice");
                    self.made += 1;
                    let mut object = object.clone();
                    let meta = &mut object["metadata"];
                    meta["uid"] = format!("uid-{name}-{}", self.made).into();
                    meta["generation"] = 1.into();
                    meta["creationTimestamp"] = json!(at(self.seconds));
                    self.all.insert(key, object);
                }
                Action::Patch { target, body, .. } => {
                    self.patch(&target.key, body);
                    if body["metadata"].get("finalizers").is_some() {
                        self.let_go(&target.key);
                    }
                }
                Action::Delete { target, .. } => self.delete(target),
                _ => {}
            }
        }
    }

    /// An object that is on its way out goes with its last finalizer.
    fn let_go(&mut self, key: &Key) {
        let lingers = self.lingers && key.kind.is("", "Pod");
        let meta = &self.all[key]["metadata"];
        let held = meta["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if meta["deletionTimestamp"].is_string() && !held && !lingers {
            self.all.remove(key);
        }
    }

    fn delete(&mut self, target: &Target) {
        let lingers = self.lingers && target.key.kind.is("", "Pod");
        let object = self.all.get_mut(&target.key).expect("deleted objects are there");
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if lingers || held {
            object["metadata"]["deletionTimestamp"] = json!(at(self.seconds));
        } else {
            self.all.remove(&target.key);
        }
    }
}

/// The status of a Pod that is ready since this second.
pub fn ready(seconds: i64) -> Value {
    let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": at(seconds)});
    json!({"status": {"phase": "Running", "conditions": [condition]}})
}
