//! DaemonSets: one Pod on every node that the template allows.
//!
//! Owns: the Pods of a DaemonSet (creation, deletion, controller reference), its
//! ControllerRevisions, its status.
//!
//! Words: a node is *wanted* when its Pod should run there, *tolerated* when a Pod that is there
//! may stay (a taint `NoSchedule` came later); a Pod is *new* when it has the present template,
//! else
//! *old*. Each Pod names its node by an affinity; the scheduler binds it, as it binds all Pods.
//!
//! ```text
//!  adopt ─► revision of the template ─► each node: make, or take away what is too much
//!    └─► RollingUpdate, maxSurge 0: delete old Pods, at most maxUnavailable nodes without one
//!    └─► RollingUpdate, maxSurge n: make new Pods beside the old, then delete the old
//! ```
//!
//! Invariants: without surge a node's next Pod is made when the one before is gone from the API, so
//! two never run beside each other; at most `maxSurge` nodes have two.

mod failures;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::cache::{Cache, Change, Key, Memo};
use super::events::Note;
use super::history::{self, History, Present};
use super::owners::{adopt_and_release, controller_of, selects};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::share;
use super::write::{Action, Write, status_patch};
use failures::Failures;
use place::Wish;

/// Pods made by one plan; the next plan goes on from there.
const BURST_MAX: usize = 500;
const COMPONENT: &str = "daemonset-controller";

/// What a plan for one DaemonSet reads.
#[derive(Default)]
pub struct Snapshot {
    pub set: Arc<DaemonSet>,
    /// Pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods in its namespace that nobody controls.
    pub strays: Vec<Arc<Pod>>,
    pub nodes: Vec<Arc<Node>>,
    /// Revisions it controls, and those that nobody does.
    pub revisions: Vec<Arc<ControllerRevision>>,
    pub stray_revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions of others that it might want.
    pub taken: Vec<String>,
    pub failure: Option<String>,
    /// Nodes where its Pods ended, as kept in mind.
    pub failures: Arc<Failures>,
    /// The newest revision known: the seed of new names.
    pub revision: u64,
}

pub const CONTROLLER: Controller = Controller { name: "daemonset", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<DaemonSet>().is_some() {
        keys.push(change.key.clone());
    } else if let Some((before, after)) = change.of::<Node>() {
        // What nodes say of themselves every few seconds places no Pod.
        if before.map(place::facts) != after.map(place::facts) {
            let all = cache.all::<DaemonSet>();
            keys.extend(all.map(|set| {
                let namespace = set.metadata.namespace.as_deref().unwrap_or("");
                Key::of::<DaemonSet>(namespace, name_of(&set.metadata))
            }));
        }
    }
    let metas = change.states::<Pod>().map(|pod| &pod.metadata);
    let metas = metas.chain(change.states::<ControllerRevision>().map(|it| &it.metadata));
    for meta in metas {
        let namespace = meta.namespace.as_deref().unwrap_or("");
        match controller_of(meta) {
            Some(owner) => {
                let key = cache.by_uid(&owner.uid);
                keys.extend(key.filter(|key| key.kind.is("apps", "DaemonSet")).cloned());
            }
            None => {
                let sets = cache.within::<DaemonSet>(namespace);
                let own = sets.filter(|set| selects(&set.spec.selector, meta.labels.as_ref()));
                keys.extend(own.map(|set| Key::of::<DaemonSet>(namespace, name_of(&set.metadata))));
            }
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(set) = view.cache.get::<DaemonSet>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let revisions: Vec<Arc<ControllerRevision>> = view.cache.controlled(&uid);
    let all = view.cache.within::<ControllerRevision>(key.namespace());
    let snapshot = Snapshot {
        pods: view.cache.controlled(&uid),
        strays: view.cache.strays(key.namespace()),
        nodes: view.cache.all().collect(),
        stray_revisions: view.cache.strays(key.namespace()),
        taken: history::taken(all, key.name(), &revisions),
        failure: view.failure.map(str::to_string),
        failures: view.cache.memo(key).unwrap_or_default(),
        revision: view.cache.revision(),
        set,
        revisions,
    };
    plan(&snapshot, view.now)
}

/// A node, or a name of one that is gone, with the Pods for it.
struct Site<'a> {
    name: &'a str,
    wish: Wish,
    /// Those that do not run any more included; the oldest first.
    pods: Vec<&'a Arc<Pod>>,
}

/// The new and the old Pod of a node.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// A DaemonSet with its nodes and Pods sorted out.
struct State<'a> {
    snapshot: &'a Snapshot,
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    sites: Vec<Site<'a>>,
    /// What new Pods carry in their label.
    hash: String,
    failures: Failures,
    now: Timestamp,
    plan: Plan,
}

/// Adopts first, then sees to the revision of the template, then to Pods; writes the status.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let set = &*snapshot.set;
    let deleting = set.metadata.deletion_timestamp.is_some();
    if !deleting {
        let selector = &set.spec.selector;
        let strays: Vec<Arc<Pod>> =
            snapshot.strays.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let mut writes = adopt_and_release(set, selector, &snapshot.pods, &strays);
        let revisions = (&snapshot.revisions, &snapshot.stray_revisions);
        writes.extend(adopt_and_release(set, selector, revisions.0, revisions.1));
        if !writes.is_empty() {
            return writes.into();
        }
    }
    let history = History::new(&snapshot.revisions);
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let present = history.present(set, &set.spec.template, collisions, &snapshot.taken);
    let revision = match present {
        Present::Found(revision) => revision,
        // Nothing more is made for a set that is on its way out.
        _ if deleting => return Plan::default(),
        Present::After(write) => return vec![*write].into(),
        Present::Taken => {
            let body = json!({"status": {"collisionCount": collisions.saturating_add(1)}});
            return vec![Write::patch_status(set, body)].into();
        }
    };
    let mut state = State {
        snapshot,
        set,
        spec: &set.spec,
        sites: sites(snapshot),
        hash: history::hash(&revision).to_string(),
        failures: Failures::of(&snapshot.failures, set.metadata.generation.unwrap_or(0)),
        now,
        plan: Plan::default(),
    };
    if !deleting {
        state.act();
        if state.plan.writes.is_empty() {
            let mut live: BTreeSet<&str> =
                snapshot.pods.iter().map(|pod| history::of_pod(&pod.metadata)).collect();
            live.insert(&state.hash);
            let surplus = history.surplus(&live, set.spec.revision_history_limit);
            state.plan.writes = surplus;
        }
    }
    let status = state.status();
    let patch = status_patch(set.status.as_ref(), &status);
    state.plan.writes.extend(patch.map(|patch| Write::patch_status(set, patch)));
    state.plan
}

fn sites(snapshot: &Snapshot) -> Vec<Site<'_>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in &snapshot.pods {
        by_node.entry(place::target(pod)).or_default().push(pod);
    }
    let mut sites = Vec::new();
    for node in &snapshot.nodes {
        let name = name_of(&node.metadata);
        let pods = by_node.remove(name).unwrap_or_default();
        sites.push(Site { name, wish: place::wish(&snapshot.set.spec.template, node), pods });
    }
    // Pods for nodes that are gone.
    let gone = |(name, pods)| Site { name, wish: Wish::Never, pods };
    sites.extend(by_node.into_iter().map(gone));
    for site in &mut sites {
        site.pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, name_of(&pod.metadata).to_string())
        });
    }
    sites
}

impl<'a> State<'a> {
    fn min_ready(&self) -> Duration {
        let seconds = u64::try_from(self.spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0);
        Duration::from_secs(seconds)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::availability(pod, self.min_ready(), self.now).0
    }

    fn is_new(&self, pod: &Pod) -> bool {
        history::of_pod(&pod.metadata) == self.hash
    }

    fn rolling(&self) -> Option<Option<&RollingUpdateDaemonSet>> {
        let strategy = self.spec.update_strategy.as_ref();
        let rolls = strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
        rolls.then(|| strategy.and_then(|strategy| strategy.rolling_update.as_ref()))
    }

    /// Nodes that may have two Pods, and nodes that may have none that is available.
    fn limits(&self) -> (i32, i32) {
        let Some(rolling) = self.rolling() else { return (0, 0) };
        let wanted = self.sites.iter().filter(|site| site.wish == Wish::Run).count();
        let wanted = i32::try_from(wanted).unwrap_or(i32::MAX);
        let amount = |value, up| share::of_whole(value, wanted, up);
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let surge = surge.and_then(|surge| amount(surge, true)).unwrap_or(0);
        let away = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let away = away.and_then(|away| amount(away, true)).unwrap_or(1);
        // Small parts of few nodes: without this nothing would ever move.
        (surge, if surge == 0 { away.max(1) } else { away })
    }

    fn act(&mut self) {
        let (surge, away) = self.limits();
        let sites = std::mem::take(&mut self.sites);
        let (mut wanting, mut surplus) = (Vec::new(), Vec::new());
        for site in &sites {
            self.settle(site, surge > 0, &mut wanting, &mut surplus);
        }
        // What has been written until here replaces Pods that ended.
        if !self.plan.writes.is_empty() {
            let namespace = self.set.metadata.namespace.as_deref().unwrap_or("");
            let about = Key::of::<DaemonSet>(namespace, name_of(&self.set.metadata));
            let memo = Memo::new(self.failures.clone());
            self.plan.writes.push(Action::Remember { about, memo }.into());
        }
        if self.rolling().is_some() {
            match surge {
                0 => surplus.extend(self.make_way(&sites, away)),
                _ => {
                    let (make, take) = self.surge(&sites, surge);
                    wanting.extend(make);
                    surplus.extend(take);
                }
            }
        }
        wanting.sort_unstable();
        wanting.dedup();
        surplus.sort_by_key(|pod| name_of(&pod.metadata).to_string());
        surplus.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for pod in surplus.into_iter().take(BURST_MAX) {
            let delete = self.delete(pod);
            self.plan.writes.push(delete);
        }
        self.create(&wanting);
        self.sites = sites;
    }

    /// What one node has too little or too much of, whatever the strategy.
    fn settle(
        &mut self,
        site: &Site<'a>,
        surges: bool,
        wanting: &mut Vec<&'a str>,
        surplus: &mut Vec<&'a Arc<Pod>>,
    ) {
        if site.wish == Wish::Run && site.pods.is_empty() {
            wanting.push(site.name);
            return;
        }
        let mut running = Vec::new();
        for pod in site.pods.iter().copied().filter(|pod| !pods::is_deleting(pod)) {
            match (site.wish, pods::phase(pod)) {
                (Wish::Never, _) => surplus.push(pod),
                (_, "Failed" | "Succeeded") => self.replace(site, pod),
                _ => running.push(pod),
            }
        }
        // The oldest stays; with surge the oldest of each kind.
        let (new, old): (Vec<_>, Vec<_>) =
            running.iter().copied().partition(|pod| self.is_new(pod));
        match surges {
            true => surplus.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1))),
            false => surplus.extend(running.into_iter().skip(1)),
        }
    }

    /// A Pod that ended goes, so that the next one can come; where Pods end again and again, after
    /// a pause.
    fn replace(&mut self, site: &Site<'_>, pod: &'a Arc<Pod>) {
        if let Some(left) = self.failures.left(site.name, self.now) {
            self.plan.look_again(left);
            return;
        }
        self.failures.note(site.name, self.now);
        let (name, phase) = (name_of(&pod.metadata), pods::phase(pod));
        let failed = phase == "Failed";
        let reason = if failed { "FailedDaemonPod" } else { "SucceededDaemonPod" };
        let message = format!(
            "Found {} daemon pod {name} on node {}, will try to {} it",
            phase.to_lowercase(),
            site.name,
            if failed { "kill" } else { "delete" }
        );
        let note = match failed {
            true => Note::warning(COMPONENT, self.set, reason, message),
            false => Note::normal(COMPONENT, self.set, reason, message),
        };
        self.plan.writes.push(Write::delete(&**pod).noting(note));
    }

    /// Whether a Pod does its work, and goes on with it.
    fn works(&self, pod: &Pod) -> bool {
        pods::is_active(pod) && self.is_available(pod)
    }

    /// The one new and the one old Pod of a node; a node with more is settled first. One that is on
    /// its way out counts as long as it may run, and one that ended until it is deleted: its place
    /// is not free before.
    fn pair(&self, site: &Site<'a>) -> Option<Pair<'a>> {
        let counts = |pod: &&Arc<Pod>| !pods::is_finished(pod) || !pods::is_deleting(pod);
        let counting = site.pods.iter().copied().filter(counts);
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            counting.partition(|pod| self.is_new(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    /// Old Pods that may go: those that are of no use at once, others as far as it is allowed that
    /// nodes have none. A node that is not to run a Pod (it is tainted, or lost) misses none.
    fn make_way(&self, sites: &[Site<'a>], most: i32) -> Vec<&'a Arc<Pod>> {
        let (mut away, mut going, mut could_go) = (0, Vec::new(), Vec::new());
        for site in sites.iter().filter(|site| site.wish != Wish::Never) {
            let missed = i32::from(site.wish == Wish::Run);
            let Some((new, old)) = self.pair(site) else {
                let some_works = site.pods.iter().any(|pod| self.works(pod));
                away += if some_works { 0 } else { missed };
                continue;
            };
            match (new, old) {
                (Some(new), _) if self.works(new) => {}
                (None, Some(old)) if self.works(old) => could_go.push(old),
                (None, Some(old)) if pods::is_active(old) => {
                    away += missed;
                    going.push(old);
                }
                // What ended or is on its way out needs nobody to delete it.
                _ => away += missed,
            }
        }
        let spare = usize::try_from(most - away).unwrap_or(0);
        going.extend(could_go.into_iter().take(spare));
        going
    }

    /// Nodes where a new Pod may come beside the old one, and old Pods that are not needed any
    /// more: a new one works, or they do not work themselves. Those of nodes that are to run none
    /// go when more nodes than wanted have one that works.
    fn surge(&self, sites: &[Site<'a>], most: i32) -> (Vec<&'a str>, Vec<&'a Arc<Pod>>) {
        let (mut surging, mut at_once, mut could_come) = (0, Vec::new(), Vec::new());
        let mut going: Vec<&'a Arc<Pod>> = Vec::new();
        let mut left_over: Vec<&'a Arc<Pod>> = Vec::new();
        let (mut working, mut wanted) = (0_usize, 0_usize);
        for site in sites.iter().filter(|site| site.wish != Wish::Never) {
            let runs = site.wish == Wish::Run;
            wanted += usize::from(runs);
            working += usize::from(site.pods.iter().any(|pod| self.works(pod)));
            let Some((new, old)) = self.pair(site) else {
                surging += i32::from(runs);
                continue;
            };
            let Some(old) = old else { continue };
            match new {
                Some(new) if self.works(new) => {
                    going.extend(pods::is_active(old).then_some(old));
                }
                Some(new) => {
                    surging += i32::from(runs);
                    let is_of_no_use = pods::is_active(old) && !pods::is_ready(old);
                    going.extend((pods::is_active(new) && is_of_no_use).then_some(old));
                }
                None if !runs => left_over.extend(pods::is_active(old).then_some(old)),
                None if !self.works(old) => at_once.push(site.name),
                None => could_come.push(site.name),
            }
        }
        let spare = usize::try_from(most - surging).unwrap_or(0);
        at_once.extend(could_come.into_iter().take(spare));
        going.extend(left_over.into_iter().take(working.saturating_sub(wanted)));
        (at_once, going)
    }

    fn create(&mut self, nodes: &[&str]) {
        let set = self.set;
        if let Some(failure) = self.snapshot.failure.as_ref().filter(|_| !nodes.is_empty()) {
            let message = format!("Error creating: {failure}");
            let note = Note::warning(COMPONENT, set, "FailedCreate", message);
            self.plan.writes.push(Write::tell(note));
        }
        // After a failure one Pod tries the ground.
        let count = if self.snapshot.failure.is_some() { 1 } else { BURST_MAX };
        for node in nodes.iter().take(count) {
            let pod = place::pod_for(set, node, &self.hash, self.snapshot.revision);
            let message = format!("Created pod: {}", name_of(&pod.metadata));
            let note = Note::normal(COMPONENT, set, "SuccessfulCreate", message);
            self.plan.writes.push(Write::create(&pod).noting(note));
        }
    }

    fn delete(&self, pod: &Pod) -> Write {
        let message = format!("Deleted pod: {}", name_of(&pod.metadata));
        let note = Note::normal(COMPONENT, self.set, "SuccessfulDelete", message);
        Write::delete(pod).noting(note)
    }

    fn status(&mut self) -> DaemonSetStatus {
        let old = self.set.status.clone().unwrap_or_default();
        let mut status = DaemonSetStatus {
            observed_generation: self.set.metadata.generation,
            collision_count: old.collision_count,
            conditions: old.conditions,
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        for site in &self.sites {
            // While an old Pod is there, its node is not done.
            let first = site.pods.iter().find(|pod| !pods::is_finished(pod));
            if site.wish != Wish::Run {
                status.number_misscheduled += i32::from(first.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = first else { continue };
            status.current_number_scheduled += 1;
            updated += i32::from(self.is_new(pod));
            // With surge the other Pod may be the one that works.
            let works = |holds: &dyn Fn(&Pod) -> bool| {
                i32::from(site.pods.iter().any(|pod| pods::is_active(pod) && holds(pod)))
            };
            status.number_ready += works(&|pod| pods::is_ready(pod));
            available += works(&|pod| self.is_available(pod));
        }
        let some = |count: i32| (count > 0).then_some(count);
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        for pod in self.snapshot.pods.iter() {
            if let (_, Some(wait)) = pods::availability(pod, self.min_ready(), self.now) {
                self.plan.look_again(wait);
            }
        }
        status
    }
}

#[cfg(test)]
mod tests;
