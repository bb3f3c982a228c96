//! Deployments: one ReplicaSet for each version of the Pod template, and the way from one to the
//! next.
//!
//! Owns: the ReplicaSets a Deployment controls (their creation, size, revision annotation, deletion
//! when the history is full) and the Deployment's status and revision annotation.
//!
//! Words: the *new* ReplicaSet has the Deployment's present template, all others are *old*. *Size*
//! is what a ReplicaSet is asked for (`spec.replicas`), not what it has.
//!
//! ```text
//!  adopt ─► paused, or size changed ─► share the size out (rollout::scale)
//!       └─► Recreate: old to 0 ─► wait for their Pods to end ─► new to full size
//!       └─► RollingUpdate: new up as maxSurge lets ─► old down as maxUnavailable lets
//!  then always: history, status (status.rs)
//! ```
//!
//! Invariants: a ReplicaSet's name is the Deployment's and a hash of the template, so two plans
//! cannot make two of them; a hash that some other ReplicaSet has taken is counted in
//! `status.collisionCount` and avoided.

mod rollout;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::owners::{adopt_and_release, controller_of, controller_reference, hash_text, selects};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

/// The label that tells the ReplicaSets of a Deployment, and their Pods, apart.
pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that belong to the Deployment alone.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Old revisions kept when the Deployment does not say.
const HISTORY_LIMIT: i32 = 10;
/// Letters of a template's hash.
const HASH_LENGTH: usize = 10;
const COMPONENT: &str = "deployment-controller";

/// What a plan for one Deployment reads.
#[derive(Default)]
pub struct Snapshot {
    pub deployment: Arc<Deployment>,
    /// ReplicaSets it controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// ReplicaSets in its namespace that nobody controls.
    pub strays: Vec<Arc<ReplicaSet>>,
    /// ReplicaSets in its namespace that are not its own but have names it might want.
    pub taken: Vec<String>,
    /// Pods that have not ended, deleting ones included, by the uid of their ReplicaSet.
    pub running: HashMap<String, usize>,
    pub failure: Option<String>,
}

pub const CONTROLLER: Controller = Controller { name: "deployment", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Deployment>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let owner_key = |meta: &ObjectMeta| {
        let key = cache.by_uid(&controller_of(meta)?.uid)?;
        key.kind.is("apps", "Deployment").then(|| key.clone())
    };
    for set in change.states::<ReplicaSet>() {
        keys.extend(owner_key(&set.metadata));
        if controller_of(&set.metadata).is_none() {
            keys.extend(matching(cache, &set.metadata));
        }
    }
    // A Pod's end matters where old Pods must be gone before new ones come.
    if let Some((Some(pod), None)) = change.of::<Pod>()
        && let Some(owner) = controller_of(&pod.metadata)
        && let Some(set) = cache.by_uid(&owner.uid).and_then(|key| cache.object(key))
        && let Some(key) = owner_key(set.meta())
        && let Some(deployment) = cache.get::<Deployment>(key.namespace(), key.name())
        && recreates(&deployment.spec)
    {
        keys.push(key);
    }
}

fn matching(cache: &Cache, meta: &ObjectMeta) -> Vec<Key> {
    let namespace = meta.namespace.as_deref().unwrap_or("");
    let deployments = cache.within::<Deployment>(namespace);
    let matches =
        deployments.filter(|deployment| selects(&deployment.spec.selector, meta.labels.as_ref()));
    matches.map(|found| Key::of::<Deployment>(namespace, name_of(&found.metadata))).collect()
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(deployment) = view.cache.get::<Deployment>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = deployment.metadata.uid.clone().unwrap_or_default();
    let sets: Vec<Arc<ReplicaSet>> = view.cache.controlled(&uid);
    let mut running = HashMap::new();
    if recreates(&deployment.spec) {
        for set in &sets {
            let uid = set.metadata.uid.clone().unwrap_or_default();
            let pods = view.cache.controlled::<Pod>(&uid);
            running.insert(uid, pods.iter().filter(|pod| !pods::is_finished(pod)).count());
        }
    }
    let prefix = format!("{}-", key.name());
    let mine =
        |set: &ReplicaSet| controller_of(&set.metadata).is_some_and(|owner| owner.uid == uid);
    let named = view.cache.named::<ReplicaSet>(key.namespace(), &prefix);
    let foreign = named.filter(|set| !mine(set));
    let snapshot = Snapshot {
        taken: foreign.map(|set| name_of(&set.metadata).to_string()).collect(),
        strays: view.cache.strays(key.namespace()),
        failure: view.failure.map(str::to_string),
        deployment,
        sets,
        running,
    };
    plan(&snapshot, view.now)
}

/// One ReplicaSet with the size it is going to have.
#[derive(Clone)]
struct Set {
    object: Arc<ReplicaSet>,
    size: i32,
}

impl Set {
    fn new(object: &Arc<ReplicaSet>) -> Set {
        let size = object.spec.replicas.unwrap_or(1);
        Set { object: object.clone(), size }
    }

    /// The size it has been asked for so far.
    fn asked(&self) -> i32 {
        Set::new(&self.object).size
    }

    fn actual(&self) -> i32 {
        self.object.status.as_ref().map_or(0, |status| status.replicas)
    }

    fn ready(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    }

    fn available(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.object.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Users can write the annotation, too: a number to which one can be added.
    fn revision(&self) -> i64 {
        let held = self.annotation(REVISION).and_then(|text| text.parse::<i64>().ok());
        held.unwrap_or(0).min(i64::MAX - 1)
    }

    fn created(&self) -> Option<Timestamp> {
        self.object.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }

    fn name(&self) -> &str {
        name_of(&self.object.metadata)
    }

    fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or("")
    }
}

/// A Deployment with its ReplicaSets sorted out. Plans change the sizes, [`Rollout::writes`] tells
/// them.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    /// The ReplicaSet of the present template.
    new: Option<Set>,
    /// All others, the oldest first.
    old: Vec<Set>,
    limits: rollout::Limits,
}

/// Adopts first; then moves sizes one step on, trims the history and writes the status.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let deployment = &*snapshot.deployment;
    let spec = &deployment.spec;
    let deleting = deployment.metadata.deletion_timestamp.is_some();
    if !deleting {
        let writes =
            adopt_and_release(deployment, &spec.selector, &snapshot.sets, &snapshot.strays);
        if !writes.is_empty() {
            return writes.into();
        }
    }
    let mut rollout = Rollout::new(deployment, spec, &snapshot.sets);
    let mut step = status::Step::default();
    let mut writes = Vec::new();
    if !deleting {
        writes = rollout.advance(snapshot, &mut step);
        writes.extend(rollout.writes());
        writes.extend(rollout.history());
    }
    let (status, again) = status::patch(&rollout, &step, snapshot.failure.as_deref(), now);
    writes.extend(status);
    Plan { writes, again }
}

impl<'a> Rollout<'a> {
    fn new(
        deployment: &'a Deployment,
        spec: &'a DeploymentSpec,
        sets: &[Arc<ReplicaSet>],
    ) -> Rollout<'a> {
        let mut all: Vec<Set> = sets.iter().map(Set::new).collect();
        all.sort_by(|a, b| (a.created(), a.name()).cmp(&(b.created(), b.name())));
        let is_new = |set: &Set| {
            let template = set.object.spec.template.as_ref();
            template.is_some_and(|template| same_template(template, &spec.template))
        };
        let new = all.iter().position(is_new).map(|at| all.remove(at));
        Rollout { deployment, spec, new, old: all, limits: rollout::Limits::of(spec) }
    }

    fn all(&self) -> impl Iterator<Item = &Set> {
        self.new.iter().chain(&self.old)
    }

    /// Decides the next sizes; returns the creation of the new ReplicaSet when it is due.
    fn advance(&mut self, snapshot: &Snapshot, step: &mut status::Step) -> Vec<Write> {
        if self.spec.paused == Some(true) || self.size_changed() {
            rollout::scale(self);
            return Vec::new();
        }
        if recreates(self.spec) {
            let were_old = self.old.iter().any(|set| set.size > 0);
            self.old.iter_mut().for_each(|set| set.size = 0);
            let running = |set: &Set| snapshot.running.get(set.uid()).is_some_and(|pods| *pods > 0);
            if were_old || self.old.iter().any(running) {
                return Vec::new();
            }
        }
        let Some(new) = &mut self.new else {
            return self.create(snapshot, step).into_iter().collect();
        };
        if recreates(self.spec) {
            new.size = self.limits.replicas;
            return Vec::new();
        }
        rollout::roll(self);
        Vec::new()
    }

    /// Whether the Deployment was scaled since its ReplicaSets were sized.
    fn size_changed(&self) -> bool {
        self.all().filter(|set| set.size > 0).any(|set| {
            let desired = set.annotation(DESIRED).and_then(|text| text.parse::<i32>().ok());
            desired.is_some_and(|desired| desired != self.limits.replicas)
        })
    }

    fn create(&self, snapshot: &Snapshot, step: &mut status::Step) -> Option<Write> {
        let status = self.deployment.status.as_ref();
        let collisions = status.and_then(|status| status.collision_count).unwrap_or(0);
        let hash = template_hash(&self.spec.template, collisions);
        let name = format!("{}-{hash}", name_of(&self.deployment.metadata));
        let taken = snapshot.taken.contains(&name) || self.old.iter().any(|set| set.name() == name);
        if taken {
            step.collisions = Some(collisions.saturating_add(1));
            return None;
        }
        let size = rollout::first_size(self);
        let set = self.new_set(&name, &hash, size);
        step.created = Some(name.clone());
        let message = format!("Scaled up replica set {name} from 0 to {size}");
        let note = Note::normal(COMPONENT, self.deployment, "ScalingReplicaSet", message);
        let create = Write::create(&set);
        Some(if size > 0 { create.noting(note) } else { create })
    }

    fn new_set(&self, name: &str, hash: &str, size: i32) -> ReplicaSet {
        let labeled = |labels: Option<BTreeMap<String, String>>| {
            let mut labels = labels.unwrap_or_default();
            labels.insert(HASH_LABEL.to_string(), hash.to_string());
            Some(labels)
        };
        let mut template = self.spec.template.clone();
        let mut meta = template.metadata.unwrap_or_default();
        meta.labels = labeled(meta.labels);
        let mut selector = self.spec.selector.clone();
        selector.match_labels = labeled(selector.match_labels);
        let labels = meta.labels.clone();
        template.metadata = Some(meta);
        let mut annotations = self.copied_annotations();
        annotations.insert(REVISION.to_string(), (self.old_revision() + 1).to_string());
        annotations.extend(self.size_annotations());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.to_string()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        }
    }

    fn copied_annotations(&self) -> BTreeMap<String, String> {
        let annotations = self.deployment.metadata.annotations.clone().unwrap_or_default();
        annotations.into_iter().filter(|(name, _)| !NOT_COPIED.contains(&name.as_str())).collect()
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        let most = self.limits.replicas.saturating_add(self.limits.surge);
        [
            (DESIRED.to_string(), self.limits.replicas.to_string()),
            (MAX.to_string(), most.to_string()),
        ]
    }

    fn old_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0)
    }

    /// The revision of the present template.
    fn revision(&self) -> i64 {
        let held = self.new.as_ref().map_or(0, Set::revision);
        if held > self.old_revision() { held } else { self.old_revision() + 1 }
    }

    /// One patch for each ReplicaSet whose size or annotations are not what they should be.
    fn writes(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        for set in self.all() {
            let is_new = self.new.as_ref().is_some_and(|new| new.uid() == set.uid());
            let mut wanted = BTreeMap::new();
            let mut body = json!({});
            if set.size > 0 || set.size != set.asked() {
                wanted.extend(self.size_annotations());
            }
            if is_new {
                wanted.extend(self.copied_annotations());
                wanted.extend(self.revision_annotations(set));
                let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
                if set.object.spec.min_ready_seconds.unwrap_or(0) != min_ready {
                    body["spec"]["minReadySeconds"] = min_ready.into();
                }
            }
            wanted.retain(|name, value| set.annotation(name) != Some(value));
            if !wanted.is_empty() {
                body["metadata"]["annotations"] = json!(wanted);
            }
            if set.size != set.asked() {
                body["spec"]["replicas"] = set.size.into();
            }
            if body.as_object().is_some_and(|body| !body.is_empty()) {
                writes.push(self.resize(set, body));
            }
        }
        writes
    }

    fn resize(&self, set: &Set, body: Value) -> Write {
        let write = Write::patch(&*set.object, body);
        let (before, after) = (set.asked(), set.size);
        if before == after {
            return write;
        }
        let way = if after > before { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {} from {before} to {after}", set.name());
        write.noting(Note::normal(COMPONENT, self.deployment, "ScalingReplicaSet", message))
    }

    /// The new ReplicaSet's revision; when it returns to an older template, its earlier numbers go
    /// into the history annotation.
    fn revision_annotations(&self, new: &Set) -> Vec<(String, String)> {
        let (held, wanted) = (new.revision(), self.revision());
        let mut annotations = vec![(REVISION.to_string(), wanted.to_string())];
        if held != 0 && held != wanted {
            let history = match new.annotation(REVISION_HISTORY) {
                Some(history) if !history.is_empty() => format!("{history},{held}"),
                _ => held.to_string(),
            };
            annotations.push((REVISION_HISTORY.to_string(), history));
        }
        annotations
    }

    /// Deletes the oldest empty ReplicaSets beyond the history limit, once nothing else is to do.
    fn history(&self) -> Vec<Write> {
        let settled = self.new.as_ref().is_some_and(|new| {
            new.size == self.limits.replicas && new.available() >= self.limits.replicas
        });
        let limit = self.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let Ok(limit) = usize::try_from(limit) else { return Vec::new() };
        let observed = |set: &Set| {
            let observed = set.object.status.as_ref().and_then(|status| status.observed_generation);
            set.object.metadata.generation.unwrap_or(0) <= observed.unwrap_or(0)
        };
        let mut empty: Vec<&Set> = self.old.iter().collect();
        empty.retain(|set| set.size == 0 && set.asked() == 0 && set.actual() == 0 && observed(set));
        empty.retain(|set| set.object.metadata.deletion_timestamp.is_none());
        if !settled || empty.len() <= limit {
            return Vec::new();
        }
        empty.sort_by_key(|set| set.revision());
        let surplus = empty.len() - limit;
        empty.into_iter().take(surplus).map(|set| Write::delete(&*set.object)).collect()
    }
}

fn recreates(spec: &DeploymentSpec) -> bool {
    let strategy = spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy == Some("Recreate")
}

/// Whether a ReplicaSet's template is the Deployment's, its hash label left out.
fn same_template(set: &PodTemplateSpec, deployment: &PodTemplateSpec) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let mut meta = template.metadata.take().unwrap_or_default();
        let mut labels = meta.labels.take().unwrap_or_default();
        labels.remove(HASH_LABEL);
        meta.creation_timestamp = None;
        (labels, meta, template)
    };
    plain(set) == plain(deployment)
}

/// A hash of the template; a collision gives another one.
fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut seed = serde_json::to_vec(template).expect("a template is JSON");
    if collisions > 0 {
        seed.extend(collisions.to_be_bytes());
    }
    hash_text(&seed, HASH_LENGTH)
}

#[cfg(test)]
mod tests;
