//! ReplicaSets and ReplicationControllers: as many active Pods of one template as asked for.
//!
//! Owns: creation and deletion of the Pods that one of them controls, their controller reference,
//! and its status. A Pod counts while it is *active*: neither finished nor being deleted. Both
//! kinds have one plan; [`Replicated`] says in what they differ.
//!
//! Invariants: names of new Pods follow from the owner and the newest revision in the cache, so
//! planning twice from one state cannot create twice; too many Pods are deleted in an order in
//! which the least is lost (see [`Worth`]); nothing is created or deleted while the owner itself is
//! being deleted.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, Time,
};

use super::cache::{Cache, Change, Key, Typed, kind_row};
use super::events::Note;
use super::owners::{
    adopt_and_release, controller_of, controller_reference, is_controlled_by, seeded_name, selects,
};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::write::{Write, status_patch};

/// Pods created or deleted by one plan; the next plan goes on from there.
const BURST_MAX: usize = 500;
/// An annotation by which a Pod says how much its deletion would cost.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What asks for a number of Pods of one template.
pub trait Replicated: Typed + Default {
    /// Who tells of it in events.
    const COMPONENT: &'static str;
    /// Whether its status has a place for the number of Pods that are on their way out.
    const COUNTS_LEAVING: bool;

    fn asked(&self) -> Asked<'_>;

    /// Both kinds say the same of themselves.
    fn status(&self) -> Option<ReplicaSetStatus>;
}

/// What is asked for.
pub struct Asked<'a> {
    pub replicas: i32,
    pub min_ready_seconds: i32,
    pub selector: Cow<'a, LabelSelector>,
    pub template: Option<&'a PodTemplateSpec>,
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const COUNTS_LEAVING: bool = true;

    fn asked(&self) -> Asked<'_> {
        Asked {
            replicas: self.spec.replicas.unwrap_or(1),
            min_ready_seconds: self.spec.min_ready_seconds.unwrap_or(0),
            selector: Cow::Borrowed(&self.spec.selector),
            template: self.spec.template.as_ref(),
        }
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const COUNTS_LEAVING: bool = false;

    fn asked(&self) -> Asked<'_> {
        let spec = self.spec.as_ref();
        let labels = spec.and_then(|spec| spec.selector.clone());
        // Without labels it would own everything. Admission has refused that; here it owns nothing.
        let nothing = labels.as_ref().is_none_or(BTreeMap::is_empty).then(|| {
            vec![LabelSelectorRequirement { operator: "In".to_string(), ..Default::default() }]
        });
        Asked {
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
            selector: Cow::Owned(LabelSelector {
                match_labels: labels,
                match_expressions: nothing,
            }),
            template: spec.and_then(|spec| spec.template.as_ref()),
        }
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let conditions = status.conditions.map(|conditions| {
            let same = conditions.into_iter().map(|condition| ReplicaSetCondition {
                last_transition_time: condition.last_transition_time,
                message: condition.message,
                reason: condition.reason,
                status: Some(condition.status),
                type_: Some(condition.type_),
            });
            same.collect()
        });
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
            ..ReplicaSetStatus::default()
        })
    }
}

/// What a plan for one of them reads.
#[derive(Default)]
pub struct Snapshot<T: Replicated> {
    pub set: Arc<T>,
    /// Pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods in its namespace that nobody controls.
    pub strays: Vec<Arc<Pod>>,
    /// Active Pods of all ReplicaSets of the same owner, by node; counted where there are too many.
    pub on_node: HashMap<String, usize>,
    /// Why Pods could not be created or deleted last time.
    pub failure: Option<String>,
    /// The newest revision known: the seed of new names.
    pub revision: u64,
}

pub const CONTROLLER: Controller =
    Controller { name: "replicaset", wake: wake::<ReplicaSet>, reconcile: reconcile::<ReplicaSet> };

pub const REPLICATION_CONTROLLER: Controller = Controller {
    name: "replicationcontroller",
    wake: wake::<ReplicationController>,
    reconcile: reconcile::<ReplicationController>,
};

fn wake<T: Replicated>(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<T>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let kind = kind_row::<T>();
    for pod in change.states::<Pod>() {
        if let Some(owner) = controller_of(&pod.metadata) {
            let own = |key: &&Key| std::ptr::eq(key.kind, kind);
            keys.extend(cache.by_uid(&owner.uid).filter(own).cloned());
            continue;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        for set in cache.within::<T>(namespace) {
            if selects(&set.asked().selector, pod.metadata.labels.as_ref()) {
                keys.push(Key::of::<T>(namespace, name_of(set.metadata())));
            }
        }
    }
}

fn reconcile<T: Replicated>(view: &View<'_>, key: &Key) -> Plan {
    let Some(set) = view.cache.get::<T>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let pods: Vec<Arc<Pod>> = view.cache.controlled(set.metadata().uid.as_deref().unwrap_or(""));
    let active = pods.iter().filter(|pod| pods::is_active(pod)).count();
    let shrinks = active > usize::try_from(set.asked().replicas).unwrap_or(0);
    let snapshot = Snapshot {
        pods,
        strays: view.cache.strays(key.namespace()),
        on_node: if shrinks { on_node(view.cache, &set) } else { HashMap::new() },
        failure: view.failure.map(str::to_string),
        revision: view.cache.revision(),
        set,
    };
    plan(&snapshot, view.now)
}

/// Active Pods of all that have the owner of this one, by node.
fn on_node<T: Replicated>(cache: &Cache, set: &Arc<T>) -> HashMap<String, usize> {
    let siblings = match controller_of(set.metadata()) {
        Some(owner) => cache.controlled::<T>(&owner.uid),
        None => vec![set.clone()],
    };
    let mut on_node = HashMap::new();
    for sibling in siblings {
        let uid = sibling.metadata().uid.as_deref().unwrap_or("");
        for pod in cache.controlled::<Pod>(uid).iter().filter(|pod| pods::is_active(pod)) {
            *on_node.entry(pods::node(pod).to_string()).or_default() += 1;
        }
    }
    on_node
}

/// Adopts and releases first; then creates or deletes Pods, and writes the status.
pub fn plan<T: Replicated>(snapshot: &Snapshot<T>, now: Timestamp) -> Plan {
    let set = &*snapshot.set;
    let asked = set.asked();
    let deleting = set.metadata().deletion_timestamp.is_some();
    if !deleting {
        let strays: Vec<_> =
            snapshot.strays.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let writes = adopt_and_release(set, &asked.selector, &snapshot.pods, &strays);
        if !writes.is_empty() {
            return writes.into();
        }
    }
    let active: Vec<&Arc<Pod>> = snapshot.pods.iter().filter(|pod| pods::is_active(pod)).collect();
    let mut plan = Plan::default();
    if !deleting {
        let wanted = usize::try_from(asked.replicas).unwrap_or(0);
        if active.len() < wanted {
            plan.writes = creations(snapshot, &asked, wanted - active.len());
        } else if active.len() > wanted {
            plan.writes = deletions(snapshot, &active, active.len() - wanted);
        }
    }
    let (status, again) = status(snapshot, &asked, &active, now);
    plan.again = again;
    plan.writes.extend(
        status_patch(set.status().as_ref(), &status).map(|patch| Write::patch_status(set, patch)),
    );
    plan
}

fn creations<T: Replicated>(
    snapshot: &Snapshot<T>,
    asked: &Asked<'_>,
    missing: usize,
) -> Vec<Write> {
    let set = &*snapshot.set;
    let mut writes = Vec::new();
    if let Some(failure) = &snapshot.failure {
        let message = format!("Error creating: {failure}");
        writes.push(Write::tell(Note::warning(T::COMPONENT, set, "FailedCreate", message)));
    }
    let Some(template) = asked.template else { return writes };
    // After a failure one Pod tries the ground, so that a full quota is not asked hundreds of
    // times.
    let count = if snapshot.failure.is_some() { 1 } else { missing.min(BURST_MAX) };
    let uid = set.metadata().uid.as_deref().unwrap_or("");
    for number in 0..count {
        let seed = format!("{uid}/{}/{number}", snapshot.revision);
        let pod = pod_of(set, template, &seed);
        let message = format!("Created pod: {}", name_of(&pod.metadata));
        let note = Note::normal(T::COMPONENT, set, "SuccessfulCreate", message);
        writes.push(Write::create(&pod).noting(note));
    }
    writes
}

/// A Pod of a template, controlled by `owner`, its name made from the seed.
pub fn pod_of<T: Typed>(owner: &T, template: &PodTemplateSpec, seed: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let base = name_of(owner.metadata());
    Pod {
        metadata: ObjectMeta {
            name: Some(seeded_name(base, seed)),
            generate_name: Some(format!("{base}-")),
            namespace: owner.metadata().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

fn deletions<T: Replicated>(
    snapshot: &Snapshot<T>,
    active: &[&Arc<Pod>],
    surplus: usize,
) -> Vec<Write> {
    let mut ranked: Vec<&Arc<Pod>> = active.to_vec();
    ranked.sort_by_cached_key(|pod| worth(pod, &snapshot.on_node));
    let chosen = ranked.into_iter().take(surplus.min(BURST_MAX));
    let deletion = |pod: &Arc<Pod>| {
        let message = format!("Deleted pod: {}", name_of(&pod.metadata));
        let note = Note::normal(T::COMPONENT, &*snapshot.set, "SuccessfulDelete", message);
        Write::delete(&**pod).noting(note)
    };
    chosen.map(deletion).collect()
}

/// What is lost with a Pod, compared field by field; the smallest goes first: without a node, then
/// pending, not ready, cheap by its own word, sharing its node with many siblings, ready for a
/// short time, restarted often, young. The name decides last, so that the order is total.
type Worth = (
    bool,
    u8,
    bool,
    i64,
    Reverse<usize>,
    Reverse<Timestamp>,
    Reverse<i32>,
    Reverse<Timestamp>,
    String,
);

fn worth(pod: &Pod, on_node: &HashMap<String, usize>) -> Worth {
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST));
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let node = pods::node(pod);
    (
        !node.is_empty(),
        phase,
        pods::is_ready(pod),
        cost.and_then(|cost| cost.parse().ok()).unwrap_or(0),
        Reverse(if node.is_empty() { 0 } else { on_node.get(node).copied().unwrap_or(0) }),
        Reverse(pods::ready_since(pod).unwrap_or(Timestamp::MIN)),
        Reverse(pods::restarts(pod)),
        Reverse(created.unwrap_or(Timestamp::MAX)),
        name_of(&pod.metadata).to_string(),
    )
}

fn status<T: Replicated>(
    snapshot: &Snapshot<T>,
    asked: &Asked<'_>,
    active: &[&Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let min_ready = u64::try_from(asked.min_ready_seconds).unwrap_or(0);
    let min_ready = Duration::from_secs(min_ready);
    let labels = asked.template.and_then(|template| template.metadata.as_ref());
    let labels = labels.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let (mut ready, mut available, mut labeled) = (0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in active {
        ready += i32::from(pods::is_ready(pod));
        labeled += i32::from(super::owners::selects_all(&labels, pod.metadata.labels.as_ref()));
        let (is_available, wait) = pods::availability(pod, min_ready, now);
        available += i32::from(is_available);
        again = wait.map(|wait| again.map_or(wait, |again| again.min(wait))).or(again);
    }
    let leaving = snapshot.pods.iter().filter(|pod| pods::is_deleting(pod));
    let leaving = leaving.filter(|pod| !pods::is_finished(pod)).count();
    let leaving = i32::try_from(leaving).unwrap_or(i32::MAX);
    let some = |count: i32| (count > 0).then_some(count);
    let old = snapshot.set.status().unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        terminating_replicas: T::COUNTS_LEAVING.then_some(leaving),
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        observed_generation: snapshot.set.metadata().generation,
        conditions: conditions(old.conditions, snapshot.failure.as_deref(), now),
    };
    (status, again)
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&str>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let is_failure =
        |condition: &ReplicaSetCondition| condition.type_.as_deref() == Some("ReplicaFailure");
    let stands = conditions.iter().find(|condition| is_failure(condition));
    match failure {
        // One that says the same is left alone, so that a repeated failure writes nothing.
        Some(failure) if stands.is_some_and(|old| old.message.as_deref() == Some(failure)) => {}
        Some(failure) => {
            conditions.retain(|condition| !is_failure(condition));
            conditions.push(ReplicaSetCondition {
                type_: Some("ReplicaFailure".to_string()),
                status: Some("True".to_string()),
                reason: Some("FailedCreate".to_string()),
                message: Some(failure.to_string()),
                last_transition_time: Some(Time(now)),
            });
        }
        None => conditions.retain(|condition| !is_failure(condition)),
    }
    (!conditions.is_empty()).then_some(conditions)
}

pub fn name_of(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or("")
}

/// Whether a Pod belongs to this ReplicaSet.
pub fn owns(set: &ReplicaSet, pod: &Pod) -> bool {
    is_controlled_by(&pod.metadata, set.metadata.uid.as_deref().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    /// A Pod by a short text: name, then words: its node, `ready=SECONDS`, `failed`, `deleting`,
    /// `pending`, `stray`, `other` (labels that do not match), `cost=N`.
    fn pod(words: &str) -> Arc<Pod> {
        let mut words = words.split_whitespace();
        let name = words.next().expect("a name");
        let mut pod: Pod = yaml(&format!(
            "metadata: {{name: {name}, namespace: d, labels: {{app: web}}}}\n\
             spec: {{containers: []}}\nstatus: {{phase: Running}}"
        ));
        pod.metadata.owner_references = Some(vec![super::super::testing::owner("web")]);
        for word in words {
            let status = pod.status.as_mut().expect("has a status");
            let spec = pod.spec.as_mut().expect("has a spec");
            match word.split_once('=').unwrap_or((word, "")) {
                ("ready", seconds) => {
                    let since = at(seconds.parse().expect("seconds"));
                    status.conditions = Some(vec![k8s_openapi::api::core::v1::PodCondition {
                        type_: "Ready".to_string(),
                        status: "True".to_string(),
                        last_transition_time: Some(Time(since)),
                        ..Default::default()
                    }]);
                }
                ("failed", _) => status.phase = Some("Failed".to_string()),
                ("pending", _) => status.phase = Some("Pending".to_string()),
                ("deleting", _) => pod.metadata.deletion_timestamp = Some(Time(at(0))),
                ("stray", _) => pod.metadata.owner_references = None,
                ("other", _) => pod.metadata.labels = None,
                ("cost", cost) => {
                    let costs = [(DELETION_COST.to_string(), cost.to_string())];
                    pod.metadata.annotations = Some(costs.into());
                }
                (node, _) => spec.node_name = Some(node.to_string()),
            }
        }
        Arc::new(pod)
    }

    fn snapshot(replicas: i32, texts: &[&str]) -> Snapshot<ReplicaSet> {
        let set: ReplicaSet = yaml(&format!(
            "metadata: {{name: web, namespace: d}}\n\
             spec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: web}}}}\n  \
             template:\n    metadata: {{labels: {{app: web}}}}\n    \
             spec: {{containers: [{{name: c, image: hello}}]}}"
        ));
        let all: Vec<Arc<Pod>> = texts.iter().map(|text| pod(text)).collect();
        let (pods, strays): (Vec<_>, Vec<_>) = all.into_iter().partition(|pod| owns(&set, pod));
        let mut on_node = HashMap::new();
        for pod in &pods {
            *on_node.entry(pods::node(pod).to_string()).or_default() += 1;
        }
        Snapshot { set: Arc::new(set), pods, strays, on_node, failure: None, revision: 7 }
    }

    /// Names of the Pods that a plan deletes, in order.
    fn deleted(replicas: i32, pods: &[&str]) -> String {
        let writes = plan(&snapshot(replicas, pods), at(100)).writes;
        let text = text(&writes);
        let names = text.lines().filter_map(|line| line.strip_prefix("delete pods d/"));
        let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
        names.join(" ")
    }

    #[test]
    fn missing_pods_are_created_with_names_that_follow_from_the_state() {
        let writes = plan(&snapshot(2, &["a n1"]), at(0)).writes;
        let shown = text(&writes);
        assert_eq!(
            shown,
            text(&plan(&snapshot(2, &["a n1"]), at(9)).writes),
            "same state, same plan"
        );
        let mut lines = shown.lines();
        let create = lines.next().expect("a create");
        assert!(create.starts_with("create pods d/web-"), "{create}");
        assert!(create.contains("Normal SuccessfulCreate: Created pod: web-"), "{create}");
        assert_eq!(
            lines.next(),
            Some(concat!(
                r#"patch replicasets.apps d/web/status {"status":{"fullyLabeledReplicas":1,"#,
                r#""observedGeneration":1,"replicas":1,"terminatingReplicas":0}}"#,
            ))
        );
        let super::super::write::Action::Create { object, .. } = &writes[0].action else {
            panic!("a create");
        };
        assert_eq!(object["metadata"]["labels"]["app"], "web");
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
        assert_eq!(object["spec"]["containers"][0]["image"], "hello");
        let mut later = snapshot(2, &["a n1"]);
        later.revision = 8;
        assert_ne!(text(&plan(&later, at(0)).writes[..1]), format!("{create}\n"));
    }

    #[test]
    fn a_thousand_pods_come_in_bursts() {
        let writes = plan(&snapshot(1_000, &[]), at(0)).writes;
        let creates = text(&writes).lines().filter(|line| line.starts_with("create")).count();
        assert_eq!(creates, BURST_MAX);
    }

    #[test]
    fn pods_that_do_not_count_are_replaced() {
        let writes = plan(&snapshot(1, &["a n1 failed", "b n1 ready=0 deleting"]), at(0)).writes;
        let shown = text(&writes);
        assert!(shown.starts_with("create pods d/web-"));
        assert!(shown.contains(r#""terminatingReplicas":1"#), "those that leave are told: {shown}");
    }

    #[test]
    fn the_least_is_lost() {
        assert_eq!(deleted(1, &["a n1 ready=0", "b pending"]), "b", "no node");
        assert_eq!(deleted(1, &["a n1 ready=0", "b n1 pending"]), "b", "pending");
        assert_eq!(deleted(1, &["a n1 ready=0", "b n1"]), "b", "not ready");
        assert_eq!(deleted(1, &["a n1 ready=0 cost=-1", "b n1 ready=0"]), "a", "cheap");
        assert_eq!(deleted(2, &["a n1 ready=5", "b n2 ready=0", "c n2 ready=0"]), "b", "crowded");
        assert_eq!(deleted(1, &["a n1 ready=0", "b n1 ready=9"]), "b", "ready for a short time");
        assert_eq!(deleted(0, &["a n1", "b n1"]), "a b");
        assert_eq!(deleted(2, &["a n1", "b n1"]), "");
    }

    #[test]
    fn strays_are_adopted_and_strangers_released_before_anything_else() {
        let shown =
            text(&plan(&snapshot(3, &["a n1 stray", "b n1 other", "c stray other"]), at(0)).writes);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 2, "{shown}");
        assert!(lines[0].starts_with(r#"patch pods d/a {"metadata":{"ownerReferences":[{"#));
        assert!(lines[0].contains(r#""uid":"uid-web""#), "{shown}");
        assert_eq!(lines[1], r#"patch pods d/b {"metadata":{"ownerReferences":[]}}"#);
    }

    #[test]
    fn a_replication_controller_has_the_same_plan() {
        let set: ReplicationController = yaml(
            "metadata: {name: web, namespace: d}\n\
             spec:\n  replicas: 2\n  selector: {app: web}\n  template:\n    \
             metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, image: i}]}\n\
             status: {replicas: 1, conditions: [{type: ReplicaFailure, status: 'True'}]}",
        );
        let pods = vec![pod("a n1 ready=0"), pod("b n1 other")];
        let mut world = Snapshot { set: Arc::new(set), pods, ..Snapshot::default() };
        let shown = text(&plan(&world, at(0)).writes);
        assert_eq!(shown, "patch pods d/b {\"metadata\":{\"ownerReferences\":[]}}\n");
        world.pods.pop();
        let shown = text(&plan(&world, at(0)).writes);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("create pods d/web-"), "{shown}");
        assert_eq!(
            lines[1],
            concat!(
                r#"patch replicationcontrollers d/web/status {"status":{"conditions":null,"#,
                r#""availableReplicas":1,"fullyLabeledReplicas":1,"observedGeneration":1,"#,
                r#""readyReplicas":1}}"#,
            )
        );
    }

    #[test]
    fn a_set_that_is_deleted_only_reports() {
        let mut snapshot = snapshot(3, &["a n1 ready=0"]);
        Arc::make_mut(&mut snapshot.set).metadata.deletion_timestamp = Some(Time(at(0)));
        let shown = text(&plan(&snapshot, at(0)).writes);
        assert!(shown.starts_with("patch replicasets.apps d/web/status"), "{shown}");
        assert_eq!(shown.lines().count(), 1);
    }

    #[test]
    fn a_failure_is_told_and_tried_with_one_pod() {
        let mut snapshot = snapshot(5, &[]);
        snapshot.failure = Some("quota is used up".to_string());
        let shown = text(&plan(&snapshot, at(0)).writes);
        assert!(shown.starts_with("(Warning FailedCreate: Error creating: quota is used up)\n"));
        assert_eq!(shown.lines().filter(|line| line.starts_with("create")).count(), 1);
        assert!(shown.contains(r#""type":"ReplicaFailure""#), "{shown}");
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let mut snapshot = snapshot(1, &["a n1 ready=95"]);
        let spec = &mut Arc::make_mut(&mut snapshot.set).spec;
        spec.min_ready_seconds = Some(10);
        let plan = plan(&snapshot, at(100));
        assert_eq!(plan.again, Some(Duration::from_secs(5)));
        let shown = text(&plan.writes);
        assert!(shown.contains("readyReplicas") && !shown.contains("availableReplicas"), "{shown}");
    }
}
