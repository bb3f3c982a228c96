//! The model of the API server: uids, revisions and preconditions as the real one has them,
//! deletion in the background, in the foreground and with grace, and a log of events for each kind.

use std::collections::BTreeMap;

use super::*;

pub fn typed<T: Typed>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("an object of this kind")
}

pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

pub fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn owner(object: &Value) -> &str {
    text(object, "/metadata/ownerReferences/0/uid")
}

pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub fn is_finished(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Failed"
}

pub fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// A JSON merge patch (RFC 7396).
pub fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let fields = into.as_object_mut().expect("made an object above");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// The model of the API server: objects, one revision for all, and what watches say of each kind.
pub struct Api {
    pub objects: BTreeMap<Key, Value>,
    pub revision: u64,
    /// Events by kind, in the order of [`WATCHED`]; `true` with those that say that it is gone.
    pub logs: Vec<Vec<(Value, bool)>>,
    pub now: Timestamp,
}

impl Api {
    pub fn all<T: Typed>(&self) -> impl Iterator<Item = &Value> {
        self.of(kind_row::<T>())
    }

    pub fn of(&self, kind: &'static Kind) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |(key, _)| std::ptr::eq(key.kind, kind))
            .map(|(_, object)| object)
    }

    pub fn find(&self, target: &Target) -> Result<&Value, String> {
        let object = self.objects.get(&target.key).ok_or("not found")?;
        let same = |wanted: &str, path| wanted.is_empty() || wanted == text(object, path);
        if !same(&target.uid, "/metadata/uid") {
            return Err("another object has this name".to_string());
        }
        if !same(&target.revision, "/metadata/resourceVersion") {
            return Err("the object has been modified".to_string());
        }
        Ok(object)
    }

    /// Commits a state of an object; one that is deleted and has no finalizers left goes.
    pub fn commit(&mut self, key: &Key, mut object: Value, gone: bool) -> Outcome {
        let held = self.objects.get(key);
        if let Some(held) = held {
            let node = text(held, "/spec/nodeName");
            assert!(node.is_empty() || node == text(&object, "/spec/nodeName"), "{key} moved");
            if *held == object && !gone {
                return Outcome::Object { kind: key.kind, object };
            }
            if held["spec"] != object["spec"] {
                let generation = number(held, "/metadata/generation") + 1;
                object["metadata"]["generation"] = generation.into();
            }
        }
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        let gone = gone || (is_deleting(&object) && finalizers == 0 && key.kind.kind != "Pod");
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let log = WATCHED.iter().position(|watched| std::ptr::eq(watched.kind, key.kind));
        self.logs[log.expect("a kind of the model")].push((object.clone(), gone));
        if gone {
            self.objects.remove(key);
            return Outcome::Removed { key: key.clone(), uid: uid(&object).to_string() };
        }
        self.objects.insert(key.clone(), object.clone());
        Outcome::Object { kind: key.kind, object }
    }

    pub fn create(&mut self, key: &Key, mut object: Value) -> Result<Outcome, String> {
        if self.objects.contains_key(key) {
            return Err(format!("{key} already exists"));
        }
        object["apiVersion"] = key.kind.api_version().into();
        object["kind"] = key.kind.kind.into();
        let meta = &mut object["metadata"];
        meta["name"] = key.name().into();
        if key.kind.namespaced {
            meta["namespace"] = key.namespace().into();
        }
        meta["uid"] = format!("uid-{}", self.revision + 1).into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = json!(self.now);
        match key.kind.kind {
            "Pod" => object["status"] = json!({"phase": "Pending"}),
            // As admission has it.
            "PersistentVolumeClaim" => {
                object["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
                object["status"] = json!({"phase": "Pending"});
            }
            "PersistentVolume" => {
                object["metadata"]["finalizers"] = json!(["kubernetes.io/pv-protection"]);
                object["status"] = json!({"phase": "Pending"});
            }
            _ => {}
        }
        Ok(self.commit(key, object, false))
    }

    pub fn patch(&mut self, target: &Target, body: &Value) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        merge(&mut object, body);
        Ok(self.commit(&target.key, object, false))
    }

    pub fn delete(
        &mut self,
        target: &Target,
        grace_seconds: Option<i64>,
        policy: Option<&str>,
    ) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        let is_pod = target.key.kind.kind == "Pod";
        let bound = !text(&object, "/spec/nodeName").is_empty();
        if is_pod && (grace_seconds == Some(0) || !bound) {
            return Ok(self.commit(&target.key, object, true));
        }
        if !is_deleting(&object) {
            object["metadata"]["deletionTimestamp"] = json!(self.now);
            if policy == Some("Foreground") && !is_pod {
                let finalizers = &mut object["metadata"]["finalizers"];
                match finalizers.as_array_mut() {
                    Some(all) => all.push(json!(FOREGROUND)),
                    None => *finalizers = json!([FOREGROUND]),
                }
            }
        }
        Ok(self.commit(&target.key, object, false))
    }

    pub fn perform(&mut self, write: &Write) -> Result<Outcome, String> {
        let found = |(key, uid): &(Key, String)| {
            let target = Target { key: key.clone(), uid: uid.clone(), revision: String::new() };
            self.find(&target).is_ok()
        };
        if write.unless_found.iter().any(found) {
            return Ok(Outcome::Nothing);
        }
        match &write.action {
            Action::Create { kind, namespace, object } => {
                let key = Key::new(kind, namespace, text(object, "/metadata/name"));
                self.create(&key, object.clone())
            }
            Action::Patch { target, body, .. } => self.patch(target, body),
            Action::Delete { target, grace_seconds, policy } => {
                self.delete(target, *grace_seconds, *policy)
            }
            Action::Tell => Ok(Outcome::Nothing),
            other => panic!("no controller of the simulation asks for {other:?}"),
        }
    }

    /// Does what the scheduler decided: binds a Pod, or gives its claims their node.
    pub fn follow(&mut self, order: &Order) -> Result<Outcome, String> {
        let Order { need, node, claims } = order;
        if claims.is_empty() {
            return self.bind(need, node);
        }
        let mut last = Ok(Outcome::Nothing);
        for claim in claims {
            let key = Key::of::<PersistentVolumeClaim>(&need.namespace, claim);
            let target = Target { key, uid: String::new(), revision: String::new() };
            let annotations = json!({volumes::SELECTED_NODE: node});
            last = self.patch(&target, &json!({"metadata": {"annotations": annotations}}));
        }
        last
    }

    fn bind(&mut self, need: &Need, node: &str) -> Result<Outcome, String> {
        let key = Key::of::<Pod>(&need.namespace, &need.name);
        let target = Target { key, uid: need.uid.clone(), revision: String::new() };
        let pod = self.find(&target)?;
        if is_deleting(pod) || !text(pod, "/spec/nodeName").is_empty() {
            return Err("the Pod is bound or on its way out".to_string());
        }
        self.patch(&target, &json!({"spec": {"nodeName": node}}))
    }
}
