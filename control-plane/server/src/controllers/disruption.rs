//! PodDisruptionBudgets: how many Pods may be evicted now.
//!
//! Owns: the status of PodDisruptionBudgets, but for what an eviction takes from it
//! (`apiserver/verbs/pods.rs`): that one lowers `disruptionsAllowed` and names the Pod in
//! `disruptedPods`, under the status's revision, so two evictions cannot both take the last place.
//! And the end of the condition DisruptionTarget on Pods that were spared after all.
//!
//! A Pod named there does not count as healthy until it is gone; one that is still there after
//! [`EVICTION_MAX`] was not evicted after all, and counts again.
//!
//! Sizes of custom resources are asked of their scale and kept in mind for [`SIZE_KEPT`].
//!
//! Invariant: what cannot be counted (owners of a kind without a size) allows nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodCondition, ReplicationController};
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::errands::{Answers, Measure};
use super::events::Note;
use super::owners::{controller_of, selects};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Write, status_patch};

/// An evicted Pod is gone or on its way out by then, as in Kubernetes.
const EVICTION_MAX: SignedDuration = SignedDuration::from_mins(2);
/// A custom resource's size is asked for again after this time: as often as autoscalers measure.
const SIZE_KEPT: SignedDuration = SignedDuration::from_secs(15);
/// Why a node itself ends a Pod: that may take it any time.
const BY_NODE: &str = "TerminationByKubelet";
const COMPONENT: &str = "controllermanager";

/// The size that one owner of Pods is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub uid: String,
    pub size: i32,
}

/// What a plan for one budget reads.
pub struct Snapshot {
    pub budget: Arc<PodDisruptionBudget>,
    /// Pods that its selector matches.
    pub pods: Vec<Arc<Pod>>,
    /// Their owners with sizes, each once; or why they cannot be told.
    pub owners: Result<Vec<Owner>, String>,
    /// Owners whose sizes have to be asked for.
    pub ask: Vec<Key>,
    /// Whether one of these is not known at all yet.
    pub unknown: bool,
    /// When the next one has to be.
    pub old_in: Option<Duration>,
}

pub const CONTROLLER: Controller = Controller { name: "disruption", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<PodDisruptionBudget>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let namespace = change.key.namespace();
    if let Some((before, after)) = change.of::<Pod>() {
        if after.and_then(disrupted_since).is_some() {
            keys.push(change.key.clone());
        }
        if let (Some(before), Some(after)) = (before, after)
            && facts(before) == facts(after)
        {
            return;
        }
        for budget in cache.within::<PodDisruptionBudget>(namespace) {
            let mut states = [before, after].into_iter().flatten();
            if states.any(|pod| covers(&budget, pod)) {
                keys.push(Key::of::<PodDisruptionBudget>(namespace, name_of(&budget.metadata)));
            }
        }
        return;
    }
    let resized = resized::<Deployment>(change, |it| it.spec.replicas)
        || resized::<ReplicaSet>(change, |it| it.spec.replicas)
        || resized::<StatefulSet>(change, |it| it.spec.replicas)
        || resized::<ReplicationController>(change, |it| it.spec.as_ref()?.replicas);
    if resized {
        let budgets = cache.within::<PodDisruptionBudget>(namespace);
        let key = |name: &str| Key::of::<PodDisruptionBudget>(namespace, name);
        keys.extend(budgets.map(|budget| key(name_of(&budget.metadata))));
    }
}

fn resized<T: super::cache::Typed>(change: &Change, size: fn(&T) -> Option<i32>) -> bool {
    let Some((before, after)) = change.of::<T>() else { return false };
    before.map(size) != after.map(size)
}

/// Everything about a Pod that a budget counts.
fn facts(pod: &Pod) -> impl PartialEq + '_ {
    (
        pods::is_ready(pod),
        pods::is_deleting(pod),
        pods::is_finished(pod),
        pod.metadata.labels.as_ref(),
        pod.metadata.uid.as_deref(),
        controller_of(&pod.metadata).map(|owner| &owner.uid),
    )
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let namespace = key.namespace();
    if key.kind.is("", "Pod") {
        let pod = view.cache.get::<Pod>(namespace, key.name());
        return pod.map_or_else(Plan::default, |pod| spared(&pod, view.now));
    }
    let Some(budget) = view.cache.get::<PodDisruptionBudget>(namespace, key.name()) else {
        return Plan::default();
    };
    let pods = view.cache.within::<Pod>(namespace).filter(|pod| covers(&budget, pod));
    let pods: Vec<Arc<Pod>> = pods.collect();
    let (owners, ask) = (Ok(Vec::new()), Vec::new());
    let mut snapshot = Snapshot { budget, pods, owners, ask, unknown: false, old_in: None };
    if snapshot.counts_owners() {
        snapshot.read_owners(view.cache, view.now);
    }
    plan(&snapshot, view.now)
}

/// Since when a Pod says that it is about to be deleted; none when it is, or has ended.
fn disrupted_since(pod: &Pod) -> Option<Timestamp> {
    if pods::is_deleting(pod) || pods::is_finished(pod) {
        return None;
    }
    let held = pods::condition(pod, pods::DISRUPTED).filter(|held| held.status == "True")?;
    let by_node = held.reason.as_deref() == Some(BY_NODE);
    held.last_transition_time.as_ref().filter(|_| !by_node).map(|time| time.0)
}

/// A Pod that was to be deleted and is still there after [`EVICTION_MAX`] was spared: it does not
/// say any more that it is disrupted, so that a later failure is its own.
pub fn spared(pod: &Pod, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(since) = disrupted_since(pod) else { return plan };
    let left = EVICTION_MAX - now.duration_since(since);
    if let Ok(left) = Duration::try_from(left)
        && !left.is_zero()
    {
        plan.look_again(left);
        return plan;
    }
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|held| held.type_ != pods::DISRUPTED);
    conditions.push(PodCondition {
        type_: pods::DISRUPTED.to_string(),
        status: "False".to_string(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    plan.writes.push(Write::patch_status(pod, json!({"status": {"conditions": conditions}})));
    plan
}

impl Snapshot {
    /// Whether the budget is a part of what the owners of its Pods are asked for.
    fn counts_owners(&self) -> bool {
        let spec = self.budget.spec.as_ref();
        spec.is_some_and(|spec| {
            let of_part = matches!(spec.min_available, Some(IntOrString::String(_)));
            spec.max_unavailable.is_some() || of_part
        })
    }

    /// Finds the sizes of the Pods' owners. A Pod that nobody controls has none and does not count.
    fn read_owners(&mut self, cache: &Cache, now: Timestamp) {
        let mut found: BTreeMap<String, i32> = BTreeMap::new();
        for pod in &self.pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            if found.contains_key(&owner.uid) {
                continue;
            }
            if let Some((uid, size)) = size(cache, &owner.uid) {
                found.insert(uid, size);
                continue;
            }
            let (kind, name) = (&owner.kind, &owner.name);
            let custom = cache.by_uid(&owner.uid).filter(|key| key.kind.custom().is_some());
            let Some(key) = custom else {
                let why = format!("{kind} {name:?} does not implement the scale subresource");
                self.owners = Err(why);
                return;
            };
            let answers = cache.memo::<Answers>(key);
            let left = answers.as_ref().map(|answers| SIZE_KEPT - now.duration_since(answers.at));
            match left.and_then(|left| Duration::try_from(left).ok()) {
                Some(left) if !left.is_zero() => {
                    self.old_in = Some(self.old_in.map_or(left, |old_in| old_in.min(left)));
                }
                _ if self.ask.contains(key) => {}
                _ => self.ask.push(key.clone()),
            }
            match answers.as_ref().map(|answers| said(answers)) {
                Some(Ok(size)) => _ = found.insert(owner.uid.clone(), size),
                Some(Err(why)) => {
                    let why = format!("{kind} {name:?} does not say its scale: {why}");
                    self.owners = Err(why);
                    return;
                }
                None => self.unknown = true,
            }
        }
        self.owners = Ok(found.into_iter().map(|(uid, size)| Owner { uid, size }).collect());
    }
}

/// The size in the answer for a scale.
fn said(answers: &Answers) -> Result<i32, String> {
    let scale = answers.scale.as_ref().map_err(String::clone)?;
    Ok(i32::try_from(scale["spec"]["replicas"].as_i64().unwrap_or(0)).unwrap_or(i32::MAX))
}

/// What an owner is asked for; of a Deployment's ReplicaSet, what the Deployment is asked for.
fn size(cache: &Cache, uid: &str) -> Option<(String, i32)> {
    let key = cache.by_uid(uid)?;
    let object = cache.object(key)?;
    let own = |replicas: Option<i32>| Some((uid.to_string(), replicas.unwrap_or(1)));
    if let Some(set) = object.get::<ReplicaSet>() {
        let above = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
        return match above {
            Some(above) => size(cache, &above.uid),
            None => own(set.spec.replicas),
        };
    }
    if let Some(deployment) = object.get::<Deployment>() {
        return own(deployment.spec.replicas);
    }
    if let Some(set) = object.get::<StatefulSet>() {
        return own(set.spec.replicas);
    }
    own(object.get::<ReplicationController>()?.spec.as_ref()?.replicas)
}

/// Counts, and writes the status when it says anything else.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let budget = &*snapshot.budget;
    let Some(spec) = &budget.spec else { return Plan::default() };
    let mut plan = Plan::default();
    if budget.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for owner in &snapshot.ask {
        let (about, workload) = (owner.clone(), owner.clone());
        let measure = Measure { about, workload, queries: Vec::new() };
        plan.writes.push(Action::Measure(Box::new(measure)).into());
    }
    if let Some(left) = snapshot.old_in {
        plan.look_again(left);
    }
    if snapshot.unknown {
        return plan;
    }
    let old = budget.status.clone().unwrap_or_default();
    let disrupted = disrupted(snapshot, &old, now, &mut plan);
    let healthy = snapshot.pods.iter().filter(|pod| {
        let name = name_of(&pod.metadata);
        !disrupted.contains_key(name) && pods::is_active(pod) && pods::is_ready(pod)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let counted = expected(spec, snapshot);
    plan.writes.extend(unmanaged(snapshot));
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        ..old.clone()
    };
    let verdict = match counted {
        Ok((expected, desired)) => {
            let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
            status.expected_pods = Some(expected);
            status.desired_healthy = Some(desired);
            status.current_healthy = Some(healthy);
            status.disruptions_allowed = Some(allowed);
            match allowed > 0 {
                true => ("True", "SufficientPods", String::new()),
                false => ("False", "InsufficientPods", String::new()),
            }
        }
        Err(why) => {
            status.disruptions_allowed = Some(0);
            let note = Note::warning(COMPONENT, budget, "CalculateExpectedPodCountFailed", {
                format!("Failed to calculate the number of expected pods: {why}")
            });
            plan.writes.push(Write::tell(note));
            ("False", "SyncFailed", why)
        }
    };
    set_condition(&mut status, verdict, budget.metadata.generation, now);
    let patch = status_patch(budget.status.as_ref(), &status);
    plan.writes.extend(patch.map(|patch| Write::patch_status(budget, patch)));
    plan
}

/// Pods whose eviction was allowed and that are not on their way out yet.
fn disrupted(
    snapshot: &Snapshot,
    old: &PodDisruptionBudgetStatus,
    now: Timestamp,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let mut kept = BTreeMap::new();
    for (name, at) in old.disrupted_pods.iter().flatten() {
        let pod = snapshot.pods.iter().find(|pod| name_of(&pod.metadata) == name);
        // A StatefulSet has given the name to the next one, which nobody has evicted.
        let is_next =
            |pod: &Pod| pod.metadata.creation_timestamp.as_ref().is_some_and(|made| made.0 > at.0);
        let Some(pod) = pod.filter(|pod| !pods::is_deleting(pod) && !is_next(pod)) else {
            continue;
        };
        let left = EVICTION_MAX - now.duration_since(at.0);
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            plan.look_again(left);
            kept.insert(name.clone(), at.clone());
            continue;
        }
        let budget = &snapshot.budget.metadata;
        let namespace = budget.namespace.as_deref().unwrap_or("");
        let message = format!(
            "Pod was expected by PDB {namespace}/{} to be deleted but it wasn't",
            name_of(budget)
        );
        plan.writes.push(Write::tell(Note::warning(COMPONENT, &**pod, "NotDeleted", message)));
    }
    kept
}

/// How many Pods there should be, and how many of them must stay healthy.
fn expected(spec: &PodDisruptionBudgetSpec, snapshot: &Snapshot) -> Result<(i32, i32), String> {
    let total = || -> Result<i32, String> {
        let owners = snapshot.owners.as_ref().map_err(String::clone)?;
        Ok(owners.iter().fold(0, |sum, owner| sum.saturating_add(owner.size)))
    };
    let found = i32::try_from(snapshot.pods.len()).unwrap_or(i32::MAX);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let total = total()?;
            Ok((total, (total - share(most, total)?).max(0)))
        }
        (None, Some(least @ IntOrString::Int(_))) => Ok((found, share(least, found)?)),
        (None, Some(least)) => {
            let total = total()?;
            Ok((total, share(least, total)?))
        }
        (None, None) => Ok((found, 0)),
    }
}

/// Pods that nobody controls have no size that a part of could be taken.
fn unmanaged(snapshot: &Snapshot) -> Option<Write> {
    let by_number = !snapshot.counts_owners();
    let mut alone = snapshot.pods.iter().filter(|pod| controller_of(&pod.metadata).is_none());
    let pod = alone.next().filter(|_| !by_number)?;
    let message = format!(
        "Pods selected by this PodDisruptionBudget, such as {}, were found to be unmanaged. As a \
         result, the status of the PDB cannot be calculated correctly. To account for these pods \
         please set \".spec.minAvailable\" to an integer value.",
        name_of(&pod.metadata)
    );
    let note = Note::warning(COMPONENT, &*snapshot.budget, "UnmanagedPods", message);
    Some(Write::tell(note))
}

/// A number, or a percentage of the total rounded up.
fn share(value: &IntOrString, total: i32) -> Result<i32, String> {
    let text = match value {
        IntOrString::Int(number) => return Ok(*number),
        IntOrString::String(text) => text,
    };
    let percent = text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok());
    let percent = percent.ok_or_else(|| format!("invalid value {text:?}: not a percentage"))?;
    let hundredths = percent.saturating_mul(i64::from(total));
    let share = hundredths.div_euclid(100) + i64::from(hundredths.rem_euclid(100) > 0);
    i32::try_from(share).map_err(|_| format!("invalid value {text:?}: out of range"))
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    (word, reason, message): (&str, &str, String),
    generation: Option<i64>,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let held = conditions.iter().find(|held| held.type_ == "DisruptionAllowed");
    let since =
        held.filter(|held| held.status == word).map(|held| held.last_transition_time.clone());
    let wanted = Condition {
        type_: "DisruptionAllowed".to_string(),
        status: word.to_string(),
        reason: reason.to_string(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    conditions.retain(|held| held.type_ != "DisruptionAllowed");
    conditions.push(wanted);
}

#[cfg(test)]
mod tests;
