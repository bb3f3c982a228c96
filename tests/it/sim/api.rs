//! The model of the API server: uids, revisions and preconditions as the real one has them,
//! deletion in the background, in the foreground and with grace, eviction under budgets, and a log
//! of events for each kind.
//!
//! Beside each object stands its [`Brief`]: what the checkers ask for after every write, read from
//! the JSON once for each state instead of once for each question.

use std::collections::BTreeMap;

use super::*;

pub fn typed<T: Typed>(value: &Value) -> T {
    T::deserialize(value).expect("an object of this kind")
}

/// What stands at a path such as `/spec/containers/0/image`. `Value::pointer` unescapes each part,
/// and these paths have nothing to unescape.
fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').skip(1).try_fold(object, |value, part| match value {
        Value::Object(fields) => fields.get(part),
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

pub fn number(object: &Value, path: &str) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// The value of a label, or nothing.
pub fn label<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"]["labels"][name].as_str().unwrap_or("")
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
    matches!(text(pod, "/status/phase"), "Failed" | "Succeeded")
}

/// What the checkers ask of an object.
pub struct Brief {
    pub uid: String,
    pub owner: String,
    /// Where a Pod is; empty when it waits.
    pub node: String,
    pub app: String,
    pub deleting: bool,
    /// Of a Pod: it ended, or it works.
    pub finished: bool,
    pub ready: bool,
    pub cpu_millis: usize,
    pub tracked: bool,
    pub generation: i64,
    /// `spec.replicas`; of a Job, `spec.parallelism`.
    pub size: i64,
    pub surge: i64,
}

impl Brief {
    fn of(kind: &Kind, object: &Value) -> Brief {
        let is_pod = kind.kind == "Pod";
        let request = text(object, "/spec/containers/0/resources/requests/cpu");
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.any(|held| held["type"] == "Ready" && held["status"] == "True");
        let size = if kind.kind == "Job" { "/spec/parallelism" } else { "/spec/replicas" };
        Brief {
            uid: uid(object).to_string(),
            owner: owner(object).to_string(),
            node: if is_pod { text(object, "/spec/nodeName").to_string() } else { String::new() },
            app: label(object, "app").to_string(),
            deleting: is_deleting(object),
            finished: is_pod && is_finished(object),
            ready: is_pod && ready && !is_finished(object),
            cpu_millis: request.trim_end_matches('m').parse().unwrap_or(0),
            tracked: is_pod && object["metadata"]["finalizers"].get(0).is_some(),
            generation: number(object, "/metadata/generation"),
            size: number(object, size),
            surge: number(object, "/spec/strategy/rollingUpdate/maxSurge"),
        }
    }

    /// A Pod that counts for its owner.
    pub fn is_active(&self) -> bool {
        !self.finished && !self.deleting
    }

    /// A Pod that counts for a budget.
    pub fn is_healthy(&self) -> bool {
        self.ready && self.is_active()
    }
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
    /// Of every object.
    pub briefs: BTreeMap<Key, Brief>,
    pub revision: u64,
    /// Events by kind, in the order of [`WATCHED`]; `true` with those that say that it is gone.
    pub logs: Vec<Vec<(Object, bool)>>,
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

    /// Briefs of a kind, with their names.
    pub fn briefs_of(&self, kind: &str) -> impl Iterator<Item = (&Key, &Brief)> {
        self.briefs.iter().filter(move |(key, _)| key.kind.kind == kind)
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
    fn commit(&mut self, key: &Key, mut object: Value) -> Outcome {
        let held = self.objects.get(key);
        if let Some(held) = held {
            let node = text(held, "/spec/nodeName");
            assert!(node.is_empty() || node == text(&object, "/spec/nodeName"), "{key} moved");
            if *held == object {
                return Outcome::Object { kind: key.kind, object };
            }
            if held["spec"] != object["spec"] {
                let generation = number(held, "/metadata/generation") + 1;
                object["metadata"]["generation"] = generation.into();
            }
        }
        // A Pod that has a node goes when the node has ended it, which is grace 0.
        let held_by_node =
            key.kind.kind == "Pod" && number(&object, "/metadata/deletionGracePeriodSeconds") > 0;
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        let gone = is_deleting(&object) && finalizers == 0 && !held_by_node;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let log = WATCHED.iter().position(|watched| std::ptr::eq(watched.kind, key.kind));
        let log = log.expect("a kind of the model");
        self.logs[log].push(((WATCHED[log].read)(&object), gone));
        if gone {
            self.objects.remove(key);
            self.briefs.remove(key);
            return Outcome::Removed { key: key.clone(), uid: uid(&object).to_string() };
        }
        self.briefs.insert(key.clone(), Brief::of(key.kind, &object));
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
        Ok(self.commit(key, object))
    }

    pub fn patch(&mut self, target: &Target, body: &Value) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        merge(&mut object, body);
        Ok(self.commit(&target.key, object))
    }

    pub fn delete(
        &mut self,
        target: &Target,
        grace_seconds: Option<i64>,
        policy: Option<&str>,
    ) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        let is_pod = target.key.kind.kind == "Pod";
        let waits = is_pod && !text(&object, "/spec/nodeName").is_empty() && !is_finished(&object);
        let grace_seconds = if waits { grace_seconds.unwrap_or(30) } else { 0 };
        if is_pod {
            // A later deletion only ever makes it shorter.
            let held = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
            let grace_seconds = held.map_or(grace_seconds, |held| held.min(grace_seconds));
            object["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.into();
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
        Ok(self.commit(&target.key, object))
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
            Action::Remember { about, memo } => {
                Ok(Outcome::Known { key: about.clone(), memo: memo.clone() })
            }
            Action::Tell => Ok(Outcome::Nothing),
            other => panic!("no controller of the simulation asks for {other:?}"),
        }
    }

    /// Does what the scheduler decided: binds a Pod, gives its claims their node, or has others
    /// leave for it.
    pub fn follow(&mut self, order: &Order) -> Result<Outcome, String> {
        let Order { need, node, claims, victims } = order;
        for victim in victims {
            let key = Key::of::<Pod>(&victim.namespace, &victim.name);
            let target = Target { key, uid: victim.uid.clone(), revision: String::new() };
            // One that is gone already made its room.
            _ = self.delete(&target, None, None);
        }
        if !victims.is_empty() {
            let key = Key::of::<Pod>(&need.namespace, &need.name);
            let target = Target { key, uid: need.uid.clone(), revision: String::new() };
            return self.patch(&target, &json!({"status": {"nominatedNodeName": node}}));
        }
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

    /// Evicts a Pod as `kubectl drain` does, if its budget lets it; says whether it did.
    pub fn evict(&mut self, key: &Key) -> bool {
        let Some(brief) = self.briefs.get(key) else { return false };
        let budget = Key::of::<PodDisruptionBudget>(key.namespace(), BUDGET);
        let covered = brief.app == BUDGET_APP && !brief.finished && !brief.deleting;
        if let Some(held) = self.objects.get(&budget).filter(|_| covered) {
            let confirmed =
                number(held, "/status/observedGeneration") >= number(held, "/metadata/generation");
            let allowed = number(held, "/status/disruptionsAllowed");
            if !confirmed || allowed < 1 {
                return false;
            }
            let spent = json!({"status": {
                "disruptionsAllowed": allowed - 1,
                "disruptedPods": {key.name(): self.now},
            }});
            let target = Target { key: budget, uid: String::new(), revision: String::new() };
            self.patch(&target, &spent).expect("it was there");
        }
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        self.delete(&target, None, None).is_ok()
    }
}
