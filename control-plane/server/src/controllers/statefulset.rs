//! StatefulSets: Pods with names, hostnames and volumes that stay theirs.
//!
//! Owns: the Pods of a StatefulSet (their creation, deletion, controller reference), the claims
//! made from its templates and their owners, its ControllerRevisions, its status.
//!
//! Words: an *ordinal* is the number in a Pod's name; a *replica* is a place for an ordinal that is
//! asked for, with or without a Pod; a *condemned* Pod has an ordinal that is not asked for.
//!
//! ```text
//!  adopt ─► revision of the template ─► owners of claims
//!    └─► replicas, lowest first: make what is missing, replace what ended
//!          └─► condemned Pods, highest first
//!                └─► outdated Pods, highest first, as partition and maxUnavailable let
//!  in order (OrderedReady): each line ends at the first Pod that is not available
//! ```
//!
//! Invariants:
//! - *an identity exists once*: a Pod is made only when no Pod object has its name, and no Pod is
//!   ever deleted without its grace. So while the node of the first may still run it (it has not
//!   said that it ended, its Node is still there), there is no second one; when a Node object is
//!   deleted, its Pods go with it and come back elsewhere;
//! - a Pod is made after its claims, and never with a claim that is on its way out;
//! - with volumes that tie Pods to nodes, an identity returns to its data, or waits for it.

mod claims;
mod identity;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::history::{self, History, Present};
use super::owners::{adopt_and_release, controller_of, selects};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::share;
use super::write::{Write, status_patch};
use identity::{POD_NAME_LABEL, ordinal, pod_name};

/// Pods made by one plan; the next plan goes on from there.
const BURST_MAX: usize = 500;
/// The name of a Pod that was deleted stays free for so long: `kubectl delete` gets the Pod and
/// then lists its name, and if the next Pod has come in between, it waits for that one without end.
const NAME_PAUSE: Duration = Duration::from_millis(300);
const COMPONENT: &str = "statefulset-controller";

/// What a plan for one StatefulSet reads.
#[derive(Default)]
pub struct Snapshot {
    pub set: Arc<StatefulSet>,
    /// Pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods in its namespace that nobody controls.
    pub strays: Vec<Arc<Pod>>,
    /// Names that are its own to give, on Pods that others control.
    pub foreign: BTreeSet<String>,
    /// Claims in its namespace whose names are its own to give.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// Revisions it controls, and those that nobody does.
    pub revisions: Vec<Arc<ControllerRevision>>,
    pub stray_revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions of others that it might want.
    pub taken: Vec<String>,
    pub failure: Option<String>,
    /// Names that stay free for a while yet, as they have just become so.
    pub resting: BTreeMap<String, Duration>,
}

pub const CONTROLLER: Controller = Controller { name: "statefulset", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<StatefulSet>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let own = |key: &&Key| key.kind.is("apps", "StatefulSet");
    for pod in change.states::<Pod>() {
        let owner = controller_of(&pod.metadata).and_then(|owner| cache.by_uid(&owner.uid));
        keys.extend(owner.filter(own).cloned());
        // Whoever has the name of a Pod is in the way of it, and may be adopted.
        if let Some((set, _)) = change.key.name().rsplit_once('-')
            && cache.get::<StatefulSet>(change.key.namespace(), set).is_some()
        {
            keys.push(Key::of::<StatefulSet>(change.key.namespace(), set));
        }
    }
    for revision in change.states::<ControllerRevision>() {
        let owner = controller_of(&revision.metadata).and_then(|owner| cache.by_uid(&owner.uid));
        keys.extend(owner.filter(own).cloned());
    }
    if change.of::<PersistentVolumeClaim>().is_some() {
        let namespace = change.key.namespace();
        for set in cache.within::<StatefulSet>(namespace) {
            if claims::may_own(&set, change.key.name()) {
                keys.push(Key::of::<StatefulSet>(namespace, name_of(&set.metadata)));
            }
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(set) = view.cache.get::<StatefulSet>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let pods: Vec<Arc<Pod>> = view.cache.controlled(&uid);
    let revisions: Vec<Arc<ControllerRevision>> = view.cache.controlled(&uid);
    let (mut foreign, mut resting) = (BTreeSet::new(), BTreeMap::new());
    for ordinal in identity::wanted(&set.spec) {
        let name = pod_name(key.name(), ordinal);
        let held = view.cache.get::<Pod>(key.namespace(), &name);
        let own = |pod: &Pod| controller_of(&pod.metadata).is_some_and(|owner| owner.uid == uid);
        if held.as_ref().is_some_and(|pod| !own(pod)) {
            foreign.insert(name);
        } else if held.is_none() {
            let free_for =
                view.cache.free_for(&Key::of::<Pod>(key.namespace(), &name), view.instant);
            let left = free_for.and_then(|time| NAME_PAUSE.checked_sub(time));
            resting.extend(left.filter(|left| !left.is_zero()).map(|left| (name, left)));
        }
    }
    let mut claims = BTreeMap::new();
    if set.spec.volume_claim_templates.as_ref().is_some_and(|templates| !templates.is_empty()) {
        for claim in view.cache.within::<PersistentVolumeClaim>(key.namespace()) {
            if claims::may_own(&set, name_of(&claim.metadata)) {
                claims.insert(name_of(&claim.metadata).to_string(), claim);
            }
        }
    }
    let all = view.cache.within::<ControllerRevision>(key.namespace());
    let snapshot = Snapshot {
        strays: view.cache.strays(key.namespace()),
        stray_revisions: view.cache.strays(key.namespace()),
        taken: history::taken(all, key.name(), &revisions),
        failure: view.failure.map(str::to_string),
        set,
        pods,
        foreign,
        claims,
        revisions,
        resting,
    };
    plan(&snapshot, view.now)
}

/// How far a Pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Missing,
    /// Ended, and will not start again by itself.
    Finished,
    /// Being deleted.
    Leaving,
    /// There, and not ready.
    Starting,
    /// Not ready for long enough.
    Ready,
    Available,
}

/// A place for an ordinal.
struct Replica<'a> {
    ordinal: i32,
    pod: Option<&'a Arc<Pod>>,
    health: Health,
}

/// A StatefulSet with its Pods sorted out.
struct State<'a> {
    snapshot: &'a Snapshot,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    /// The lowest ordinal first.
    replicas: Vec<Replica<'a>>,
    /// Likewise.
    condemned: Vec<Replica<'a>>,
    /// The revision of the present template, and the one that Pods below the partition keep.
    update: Arc<ControllerRevision>,
    current: Arc<ControllerRevision>,
    /// When the next Pod will have been ready for long enough, or a name free.
    again: Option<Duration>,
}

/// Adopts first, then sees to the revision of the template, then to Pods; writes the status.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let set = &*snapshot.set;
    let deleting = set.metadata.deletion_timestamp.is_some();
    if !deleting {
        let writes = adopt(snapshot);
        if !writes.is_empty() {
            return writes.into();
        }
    }
    let history = History::new(&snapshot.revisions);
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let update = match history.present(set, &set.spec.template, collisions, &snapshot.taken) {
        Present::Found(revision) => revision,
        // Nothing more is made for a set that is on its way out.
        _ if deleting => return Plan::default(),
        Present::After(write) => return vec![*write].into(),
        Present::Taken => {
            let body = json!({"status": {"collisionCount": collisions.saturating_add(1)}});
            return vec![Write::patch_status(set, body)].into();
        }
    };
    let named = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = named.and_then(|name| history.named(name)).unwrap_or(&update).clone();
    let state = State::new(snapshot, update, current, now);
    let mut plan = Plan { writes: Vec::new(), again: state.again };
    if !deleting {
        plan.writes = state.act();
        if plan.writes.is_empty() {
            plan.writes = history.surplus(&state.live(), set.spec.revision_history_limit);
        }
    }
    let patch = status_patch(set.status.as_ref(), &state.status());
    plan.writes.extend(patch.map(|patch| Write::patch_status(set, patch)));
    plan
}

fn adopt(snapshot: &Snapshot) -> Vec<Write> {
    let set = &*snapshot.set;
    let name = name_of(&set.metadata);
    let own = |pod: &&Arc<Pod>| ordinal(name, name_of(&pod.metadata)).is_some();
    let strays: Vec<Arc<Pod>> = snapshot.strays.iter().filter(own).cloned().collect();
    let selector = &set.spec.selector;
    let mut writes = adopt_and_release(set, selector, &snapshot.pods, &strays);
    let revisions = &snapshot.stray_revisions;
    writes.extend(adopt_and_release(set, selector, &snapshot.revisions, revisions));
    for pod in &snapshot.pods {
        let labels = pod.metadata.labels.as_ref();
        let own = labels.and_then(|labels| labels.get(POD_NAME_LABEL)).map(String::as_str);
        let matches = selects(selector, labels) && !pods::is_deleting(pod);
        if matches && own != Some(name_of(&pod.metadata)) {
            let labels = json!({POD_NAME_LABEL: name_of(&pod.metadata)});
            writes.push(Write::patch(&**pod, json!({"metadata": {"labels": labels}})));
        }
    }
    writes
}

impl<'a> State<'a> {
    fn new(
        snapshot: &'a Snapshot,
        update: Arc<ControllerRevision>,
        current: Arc<ControllerRevision>,
        now: Timestamp,
    ) -> State<'a> {
        let set = &*snapshot.set;
        let spec = &set.spec;
        let min_ready = u64::try_from(spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0);
        let min_ready = Duration::from_secs(min_ready);
        let mut again: Option<Duration> = snapshot.resting.values().min().copied();
        let mut health = |pod: &Pod| {
            let (is_available, wait) = pods::availability(pod, min_ready, now);
            again = wait.map(|wait| again.map_or(wait, |again| again.min(wait))).or(again);
            match pod {
                pod if pods::is_deleting(pod) => Health::Leaving,
                pod if pods::is_finished(pod) => Health::Finished,
                pod if pods::phase(pod) != "Running" || !pods::is_ready(pod) => Health::Starting,
                _ if is_available => Health::Available,
                _ => Health::Ready,
            }
        };
        let name = name_of(&set.metadata);
        let mut pods: BTreeMap<i32, &Arc<Pod>> = snapshot
            .pods
            .iter()
            .filter_map(|pod| Some((ordinal(name, name_of(&pod.metadata))?, pod)))
            .collect();
        let mut replicas = Vec::new();
        for ordinal in identity::wanted(spec) {
            let pod = pods.remove(&ordinal);
            let health = pod.map_or(Health::Missing, |pod| health(pod));
            replicas.push(Replica { ordinal, pod, health });
        }
        let condemned = pods
            .into_iter()
            .map(|(ordinal, pod)| Replica { ordinal, pod: Some(pod), health: health(pod) })
            .collect();
        State { snapshot, set, spec, replicas, condemned, update, current, again }
    }

    /// Whether Pods come and go one after the other.
    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// Ordinals below this keep the current revision.
    fn partition(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        identity::start(self.spec).saturating_add(partition)
    }

    /// The revision that a Pod of this ordinal should have.
    fn revision(&self, ordinal: i32) -> &Arc<ControllerRevision> {
        if self.rolls() && ordinal < self.partition() { &self.current } else { &self.update }
    }

    fn act(&self) -> Vec<Write> {
        // Who owns a claim decides what becomes of it when the Pod goes, so this is settled first.
        let owners = claims::owners(self);
        if !owners.is_empty() {
            return owners;
        }
        let mut writes = Vec::new();
        let goes_on = self.fill(&mut writes) && self.shrink(&mut writes) && self.rolls();
        if goes_on {
            self.update(&mut writes);
        }
        writes
    }

    /// Makes what is missing and replaces what ended; whether later steps may follow.
    fn fill(&self, writes: &mut Vec<Write>) -> bool {
        let mut made = 0;
        for replica in &self.replicas {
            match (replica.health, replica.pod) {
                (Health::Missing, _) if self.rests(replica.ordinal) => {}
                (Health::Missing, _) if made < self.burst() => {
                    made += 1;
                    self.make(replica.ordinal, writes);
                }
                (Health::Finished, Some(pod)) => {
                    let name = name_of(&pod.metadata);
                    let phase = pods::phase(pod).to_lowercase();
                    let message = format!(
                        "StatefulSet {}/{} is recreating {phase} Pod {name}",
                        self.set.metadata.namespace.as_deref().unwrap_or(""),
                        name_of(&self.set.metadata)
                    );
                    let note = Note::warning(COMPONENT, self.set, "RecreatingFailedPod", message);
                    writes.push(Write::delete(&**pod).noting(note));
                }
                (Health::Starting, Some(pod)) => {
                    if pods::phase(pod) == "Pending" {
                        writes.extend(claims::missing(self, replica.ordinal));
                    }
                    if self.in_order() && self.rolls() && self.is_stuck(replica.ordinal, pod) {
                        writes.push(self.delete(pod));
                    }
                }
                _ => {}
            }
            if self.in_order() && replica.health != Health::Available {
                return false;
            }
        }
        true
    }

    /// A Pod of an older revision that cannot start holds everything up, also the revision that
    /// puts it right: it has nothing to lose.
    fn is_stuck(&self, ordinal: i32, pod: &Pod) -> bool {
        let outdated = history::of_pod(&pod.metadata) != name_of(&self.revision(ordinal).metadata);
        outdated && (pods::phase(pod) == "Pending" || is_failing(pod))
    }

    /// Whether the name of a Pod stays free for a while yet.
    fn rests(&self, ordinal: i32) -> bool {
        let resting = &self.snapshot.resting;
        !resting.is_empty() && resting.contains_key(&pod_name(name_of(&self.set.metadata), ordinal))
    }

    /// Pods made by one plan: after a failure one tries the ground.
    fn burst(&self) -> usize {
        if self.snapshot.failure.is_some() { 1 } else { BURST_MAX }
    }

    /// Makes the claims of a Pod that are missing, or if there are none, the Pod.
    fn make(&self, ordinal: i32, writes: &mut Vec<Write>) {
        let (set, name) = (self.set, pod_name(name_of(&self.set.metadata), ordinal));
        let of_set = name_of(&set.metadata);
        if let Some(failure) = &self.snapshot.failure {
            let message =
                format!("create Pod {name} in StatefulSet {of_set} failed error: {failure}");
            writes.push(Write::tell(Note::warning(COMPONENT, set, "FailedCreate", message)));
        }
        if self.snapshot.foreign.contains(&name) {
            let message = format!(
                "create Pod {name} in StatefulSet {of_set} failed error: a Pod of this name is \
                 there that the StatefulSet does not own"
            );
            writes.push(Write::tell(Note::warning(COMPONENT, set, "FailedCreate", message)));
            return;
        }
        if !claims::are_settled(self, ordinal) {
            return;
        }
        let claims = claims::missing(self, ordinal);
        if !claims.is_empty() {
            writes.extend(claims);
            return;
        }
        let revision = self.revision(ordinal);
        let template: PodTemplateSpec =
            history::template_of(revision).unwrap_or_else(|| self.spec.template.clone());
        let pod = identity::pod_of(set, &template, name_of(&revision.metadata), ordinal);
        let message = format!("create Pod {name} in StatefulSet {of_set} successful");
        let note = Note::normal(COMPONENT, set, "SuccessfulCreate", message);
        writes.push(Write::create(&pod).noting(note));
    }

    fn delete(&self, pod: &Pod) -> Write {
        let (name, of_set) = (name_of(&pod.metadata), name_of(&self.set.metadata));
        let message = format!("delete Pod {name} in StatefulSet {of_set} successful");
        let note = Note::normal(COMPONENT, self.set, "SuccessfulDelete", message);
        Write::delete(pod).noting(note)
    }

    /// Deletes Pods with ordinals that are not asked for; whether later steps may follow.
    fn shrink(&self, writes: &mut Vec<Write>) -> bool {
        // One that has ended is nobody's to wait for, and two of them would wait for each other.
        let broken = |replica: &&Replica<'_>| {
            !matches!(replica.health, Health::Available | Health::Finished)
        };
        let first_broken = self.condemned.iter().find(broken).map(|replica| replica.ordinal);
        for replica in self.condemned.iter().rev() {
            let Some(pod) = replica.pod else { continue };
            if replica.health == Health::Finished {
                writes.push(self.delete(pod));
                continue;
            }
            if replica.health == Health::Leaving {
                if self.in_order() {
                    return false;
                }
                continue;
            }
            // Of several that are not well, the lowest is waited for: it may still be needed by the
            // others.
            let waits = broken(&replica) && first_broken != Some(replica.ordinal);
            if self.in_order() && waits {
                return false;
            }
            writes.push(self.delete(pod));
            if self.in_order() {
                return false;
            }
        }
        true
    }

    /// Deletes outdated Pods, so that they come back with the present template. Those that do not work
    /// anyway cost nothing; others, also those that are ready for a short time only, go as far as
    /// `maxUnavailable` lets.
    fn update(&self, writes: &mut Vec<Write>) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let total = i32::try_from(self.replicas.len()).unwrap_or(i32::MAX);
        let most = most.and_then(|most| share::of_whole(most, total, false)).unwrap_or(1).max(1);
        let away = self.replicas.iter().filter(|replica| replica.health != Health::Available);
        let mut spare = most - i32::try_from(away.count()).unwrap_or(i32::MAX);
        for replica in self.replicas.iter().rev() {
            let Some(pod) = replica.pod else { continue };
            if replica.ordinal < self.partition() {
                return;
            }
            let present = history::of_pod(&pod.metadata) == name_of(&self.update.metadata);
            if present || matches!(replica.health, Health::Leaving | Health::Finished) {
                continue;
            }
            if matches!(replica.health, Health::Available | Health::Ready) {
                if spare <= 0 {
                    continue;
                }
                spare -= 1;
            }
            writes.push(self.delete(pod));
        }
    }

    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.replicas.iter().chain(&self.condemned).filter_map(|replica| replica.pod)
    }

    /// Names of revisions that are in use.
    fn live(&self) -> BTreeSet<&str> {
        let mut live: BTreeSet<&str> =
            self.pods().map(|pod| history::of_pod(&pod.metadata)).collect();
        live.extend([name_of(&self.update.metadata), name_of(&self.current.metadata)]);
        live
    }

    fn status(&self) -> StatefulSetStatus {
        let count = |counts: &dyn Fn(&Replica<'_>) -> bool| {
            let all = self.replicas.iter().chain(&self.condemned);
            i32::try_from(all.filter(|one| counts(one)).count()).unwrap_or(i32::MAX)
        };
        let of = |revision: &ControllerRevision| {
            let name = name_of(&revision.metadata).to_string();
            count(&|one| {
                let leaving = one.health == Health::Leaving;
                !leaving && one.pod.is_some_and(|pod| history::of_pod(&pod.metadata) == name)
            })
        };
        let ready = count(&|one| {
            one.pod.is_some_and(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod))
        });
        let replicas = count(&|one| one.pod.is_some());
        let (updated, mut in_current) = (of(&self.update), of(&self.current));
        let mut current = &self.current;
        let wanted = i32::try_from(self.replicas.len()).unwrap_or(i32::MAX);
        if self.rolls() && [updated, ready, replicas].iter().all(|count| *count == wanted) {
            (current, in_current) = (&self.update, updated);
        }
        let name = |revision: &ControllerRevision| Some(name_of(&revision.metadata).to_string());
        let some = |count: i32| (count > 0).then_some(count);
        let old = self.set.status.clone().unwrap_or_default();
        StatefulSetStatus {
            replicas,
            ready_replicas: some(ready),
            available_replicas: Some(count(&|one| one.health == Health::Available)),
            current_replicas: some(in_current),
            updated_replicas: some(updated),
            current_revision: name(current),
            update_revision: name(&self.update),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(old.collision_count.unwrap_or(0)),
            conditions: old.conditions,
        }
    }
}

/// A container that fails again and again, or that cannot be made.
fn is_failing(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let all = [&status.init_container_statuses, &status.container_statuses];
    all.into_iter().flatten().flatten().any(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("");
        !matches!(reason, "" | "ContainerCreating" | "PodInitializing")
    })
}

#[cfg(test)]
mod tests;
