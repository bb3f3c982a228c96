//! Nodes that fall silent, and the Pods of nodes that are lost, tainted or deleted.
//!
//! When more than [`FAILURE_PERCENT`] of a zone's nodes fall silent, it is more likely this control
//! plane or the network between that has failed than all of them: then no taint evicts, and Pods stay
//! where they are until fewer are silent; who is silent then has its whole time from there on. Their
//! endpoints leave all the same.
//!
//! Owns: the taints that follow from a Node's conditions and from its being cordoned ([`due`]), the
//! Ready condition of a Node while its lease is stale, the Ready condition of its Pods meanwhile,
//! and eviction by taints.
//!
//! ```text
//!  lease renewed in time ─► Ready is what the node says, no taint
//!  lease stale for SILENCE_MAX ─► Ready Unknown ─► unreachable taints ─► Pods not ready
//!           ─► tolerations run out ─► Pods say that they are disrupted ─► Pods deleted
//!           ─► their owners make new ones elsewhere
//!  lease renewed again ─► what this controller said is taken back
//!  memory, disk, … under pressure, or cordoned ─► a taint NoSchedule as long as that is so
//! ```
//!
//! Invariants: silence is measured by this process's clock from the moment a renewal was seen, so
//! clocks of nodes do not matter, and a new leader gives each node its full time; a pause of this
//! process is nobody's silence (`pace`); only statements that carry this controller's reasons are
//! taken back.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::cache::{Cache, Change, Key, LEASE_NAMESPACE, Memo};
use super::events::Note;
use super::owners::controller_of;
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::taints::tolerates;
use super::write::{Action, Target, Write};

/// A node renews its lease each 2 s; two renewals may be lost.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A share of silent nodes above which nobody is evicted for it, and the fewest nodes that are a
/// share: as in Kubernetes.
const FAILURE_PERCENT: usize = 55;
const FAILURE_NODES_MIN: usize = 3;
/// How often it is looked whether a mass failure is over.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
const ZONE: &str = "topology.kubernetes.io/zone";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep new Pods away while they are True, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// How old a count of silent nodes may be. Each of them asks for it, and thousands that each counted all
/// others would keep this control plane from hearing any.
const COUNT_AGE_MAX: Duration = Duration::from_millis(100);
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// Why a Node's Ready condition is Unknown, when this controller made it so.
const SILENT: &str = "NodeStatusUnknown";
/// Why a Pod's Ready condition is False, when this controller made it so.
const NODE_LOST: &str = "NodeNotReady";
const COMPONENT: &str = "node-controller";
const EVICTION: &str = "taint-eviction-controller";

/// What a plan for one node reads.
#[derive(Default)]
pub struct Snapshot {
    pub name: String,
    pub node: Option<Arc<Node>>,
    /// How long its lease has not changed; `None` when it has none.
    pub silent_for: Option<Duration>,
    /// Pods bound to it.
    pub pods: Vec<Arc<Pod>>,
    /// The nodes of its zone, counted when it is silent itself.
    pub zone: Zone,
    pub doomed: Arc<Doomed>,
}

/// Uids of the Pods whose stay a taint of somebody else's ends later, as of the last plan.
#[derive(Default)]
pub struct Doomed(BTreeSet<String>);

/// How many nodes of a zone are silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    pub silent: usize,
    pub nodes: usize,
}

impl Zone {
    /// Whether so many are silent that no single one is to blame.
    fn has_failed(self) -> bool {
        self.silent >= FAILURE_NODES_MIN && self.silent * 100 > self.nodes * FAILURE_PERCENT
    }
}

pub const CONTROLLER: Controller = Controller { name: "node", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Node>().is_some() {
        keys.push(change.key.clone());
    } else if change.of::<Lease>().is_some() && change.key.namespace() == LEASE_NAMESPACE {
        // Renewals of a healthy node need no plan: its timer looks at the newest one.
        let node = cache.get::<Node>("", change.key.name());
        if change.before.is_none() || node.is_some_and(|node| ready_status(&node) != "True") {
            keys.push(Key::of::<Node>("", change.key.name()));
        }
    } else if let Some((_, Some(pod))) = change.of::<Pod>()
        && !pods::node(pod).is_empty()
    {
        let node = cache.get::<Node>("", pods::node(pod));
        if node.is_none_or(|node| ready_status(&node) != "True" || evicts(&node)) {
            keys.push(Key::of::<Node>("", pods::node(pod)));
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    if key.name().is_empty() {
        return Plan::default();
    }
    let node = view.cache.get::<Node>("", key.name());
    let silent_for = view.cache.silent_for(key.name(), view.instant);
    let is_silent = silent_for.is_some_and(|time| time >= SILENCE_MAX);
    let snapshot = Snapshot {
        name: key.name().to_string(),
        zone: node.as_ref().filter(|_| is_silent).map_or(Zone::default(), |node| zone(view, node)),
        node,
        silent_for,
        pods: view.cache.pods_on(key.name()),
        doomed: view.cache.memo(key).unwrap_or_default(),
    };
    plan(&snapshot, view.now)
}

/// Those of all nodes, by the name of their zone.
#[derive(Default)]
struct Zones(HashMap<Option<String>, Zone>);

fn zone(view: &View<'_>, node: &Node) -> Zone {
    let zones = view.cache.counted(view.instant, COUNT_AGE_MAX, || zones(view));
    zones.0.get(&zone_of(node).cloned()).copied().unwrap_or_default()
}

fn zones(view: &View<'_>) -> Zones {
    let mut zones = Zones::default();
    for node in view.cache.all::<Node>() {
        let silent_for = view.cache.silent_for(name_of(&node.metadata), view.instant);
        let Some(silent_for) = silent_for else { continue };
        let zone = zones.0.entry(zone_of(&node).cloned()).or_default();
        zone.nodes += 1;
        zone.silent += usize::from(silent_for >= SILENCE_MAX);
    }
    zones
}

fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE)
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// A node that has never said anything is not ready.
fn ready_status(node: &Node) -> &str {
    ready(node).map_or("False", |condition| &condition.status)
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or(&[])
}

fn evicts(node: &Node) -> bool {
    taints(node).iter().any(|taint| taint.effect == NO_EXECUTE)
}

/// Says what the lease says, taints, and deletes Pods whose time on the node is over.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let Some(node) = &snapshot.node else {
        return collect(snapshot, now).into();
    };
    let mut plan = Plan::default();
    let silent = silent(node, snapshot.silent_for, now);
    let lost = silent >= SILENCE_MAX;
    if !lost {
        plan.look_again(SILENCE_MAX - silent);
    }
    let braked = lost && snapshot.zone.has_failed();
    if braked {
        plan.look_again(FAILURE_PAUSE);
    }
    // One write a Node at a time: each carries the revision that the one before would change.
    let report = report(node, lost, braked, now);
    let reported = report.is_some();
    plan.writes.extend(report.or_else(|| taint(node, braked, now)));
    let back = !lost && !reported && ready_status(node) == "True";
    // A node that is heard again evicts nobody for its silence, though the taint is still there.
    let spared = |taint: &Taint| taint.key == UNREACHABLE && (braked || !lost);
    let evicting: Vec<&Taint> =
        taints(node).iter().filter(|taint| taint.effect == NO_EXECUTE && !spared(taint)).collect();
    for pod in &snapshot.pods {
        // One write a Pod at a time, too.
        match mark(pod, lost, back, now) {
            Some(mark) => plan.writes.push(mark),
            None => evict(pod, &evicting, now, &mut plan),
        }
    }
    reprieve(snapshot, &evicting, now, &mut plan);
    plan
}

/// Pods of a node that is gone will never be ended by it: they have failed, and are removed.
fn collect(snapshot: &Snapshot, now: Timestamp) -> Vec<Write> {
    let node = Key::of::<Node>("", &snapshot.name);
    let remove = |pod: &Arc<Pod>| {
        let target = Target { revision: String::new(), ..Target::of(&**pod) };
        let delete = Action::Delete { target, grace_seconds: Some(0), policy: None };
        let why = "PodGC: node no longer exists";
        let told = pods::disrupted(pod, "DeletionByPodGC", why, true, now);
        let unless_found = vec![(node.clone(), String::new())];
        Write { unless_found, ..told.unwrap_or_else(|| delete.into()) }
    };
    snapshot.pods.iter().map(remove).collect()
}

/// How long the node has not been heard; without a lease, since it was made.
fn silent(node: &Node, silent_for: Option<Duration>, now: Timestamp) -> Duration {
    let created = node.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    silent_for.unwrap_or(age)
}

/// The node's Ready condition, when it has to change.
fn report(node: &Node, lost: bool, braked: bool, now: Timestamp) -> Option<Write> {
    let held = ready(node)?;
    let taken_back = held.status == "Unknown" && held.reason.as_deref() == Some(SILENT);
    let (status, reason, message) = match (lost, held.status.as_str()) {
        (true, "True" | "False") => ("Unknown", SILENT, "The node stopped renewing its lease."),
        (false, _) if taken_back => ("True", "NodeReady", "The node renews its lease again."),
        _ => return None,
    };
    let mut conditions = node.status.as_ref()?.conditions.clone()?;
    let condition = conditions.iter_mut().find(|condition| condition.type_ == "Ready")?;
    condition.status = status.to_string();
    condition.reason = Some(reason.to_string());
    condition.message = Some(message.to_string());
    condition.last_transition_time = Some(Time(now));
    let what = if lost { "NodeNotReady" } else { "NodeReady" };
    let stays = if braked { "; most nodes of its zone are silent, so its Pods stay" } else { "" };
    let note = format!("Node {} status is now: {what}{stays}", name_of(&node.metadata));
    let note = Note::normal(COMPONENT, node, what, note);
    let body = json!({"status": {"conditions": conditions}});
    Some(Write::patch_status(node, body).noting(note))
}

/// Keys and effects of the taints that follow from what the node says and what it is told.
fn due(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut due = match ready_status(node) {
        "True" => Vec::new(),
        "False" => vec![(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
        _ => vec![(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
    };
    for (kind, key) in PRESSURES {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            due.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        due.push((CORDONED, NO_SCHEDULE));
    }
    due
}

/// Whether a taint comes and goes with what [`due`] looks at.
fn is_own(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    let of_state = key == CORDONED || PRESSURES.iter().any(|(_, own)| *own == key);
    key == NOT_READY || key == UNREACHABLE || (of_state && taint.effect == NO_SCHEDULE)
}

/// Gives the node the taints that are due; those of others stay as they are.
fn taint(node: &Node, braked: bool, now: Timestamp) -> Option<Write> {
    let held = taints(node);
    let mut wanted: Vec<Taint> = held.iter().filter(|taint| !is_own(taint)).cloned().collect();
    for (key, effect) in due(node) {
        // One from before the failure goes: its time is not to be over when the failure is.
        if braked && effect == NO_EXECUTE {
            continue;
        }
        let known = held.iter().find(|taint| taint.key == key && taint.effect == effect);
        wanted.push(known.cloned().unwrap_or_else(|| Taint {
            key: key.to_string(),
            effect: effect.to_string(),
            value: None,
            time_added: Some(Time(now)),
        }));
    }
    // Tolerations are counted from this time.
    for taint in wanted.iter_mut().filter(|taint| taint.effect == NO_EXECUTE) {
        taint.time_added.get_or_insert(Time(now));
    }
    let same = |a: &Taint, b: &Taint| {
        (&a.key, &a.effect, &a.value, a.time_added.is_some())
            == (&b.key, &b.effect, &b.value, b.time_added.is_some())
    };
    let unchanged = wanted.len() == held.len()
        && wanted.iter().all(|taint| held.iter().any(|held| same(held, taint)));
    (!unchanged).then(|| Write::patch(node, json!({"spec": {"taints": wanted}})))
}

/// A Pod of a lost node is not ready, whatever it said last; it is again when the node is back.
fn mark(pod: &Pod, lost: bool, back: bool, now: Timestamp) -> Option<Write> {
    let held = pods::condition(pod, "Ready")?;
    let own = held.status == "False" && held.reason.as_deref() == Some(NODE_LOST);
    let condition = if lost && held.status == "True" && !pods::is_finished(pod) {
        PodCondition {
            status: "False".to_string(),
            reason: Some(NODE_LOST.to_string()),
            message: Some("The node stopped renewing its lease.".to_string()),
            last_transition_time: Some(Time(now)),
            ..held.clone()
        }
    } else if back && own && containers_are_ready(pod) {
        PodCondition {
            status: "True".to_string(),
            reason: None,
            message: None,
            last_transition_time: Some(Time(now)),
            ..held.clone()
        }
    } else {
        return None;
    };
    let mut conditions = pod.status.as_ref()?.conditions.clone()?;
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(condition);
    Some(Write::patch_status(pod, json!({"status": {"conditions": conditions}})))
}

fn containers_are_ready(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.is_some_and(|statuses| statuses.iter().all(|status| status.ready))
}

/// Ends a Pod that does not tolerate these taints, or not for so long. It says so first.
fn evict(pod: &Pod, evicting: &[&Taint], now: Timestamp, plan: &mut Plan) {
    if pods::is_deleting(pod) {
        return;
    }
    let Some(end) = stay(pod, evicting, now) else { return };
    if let Ok(left) = Duration::try_from(end.duration_since(now))
        && !left.is_zero()
    {
        plan.look_again(left);
        return;
    }
    let why = "Taint manager: deleting due to NoExecute taint";
    if let Some(told) = pods::disrupted(pod, "DeletionByTaintManager", why, false, now) {
        plan.writes.push(told);
        return;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let message = format!("Marking for deletion Pod {namespace}/{}", name_of(&pod.metadata));
    let note = Note::normal(EVICTION, pod, "TaintManagerEviction", message);
    let target = Target { revision: String::new(), ..Target::of(pod) };
    let delete = Action::Delete { target, grace_seconds: grace(pod), policy: None };
    plan.writes.push(Write::from(delete).noting(note));
}

/// Tells of Pods that may stay after all. What follows from the node's own state comes and goes with
/// it, and is told of the node.
fn reprieve(snapshot: &Snapshot, evicting: &[&Taint], now: Timestamp, plan: &mut Plan) {
    let others: Vec<&Taint> = evicting.iter().copied().filter(|taint| !is_own(taint)).collect();
    let mut doomed = BTreeSet::new();
    for pod in snapshot.pods.iter().filter(|pod| !pods::is_deleting(pod)) {
        let meta = &pod.metadata;
        let uid = meta.uid.as_deref().unwrap_or("");
        match stay(pod, &others, now) {
            Some(end) if end > now => _ = doomed.insert(uid.to_string()),
            None if snapshot.doomed.0.contains(uid) => {
                let namespace = meta.namespace.as_deref().unwrap_or("");
                let message = format!("Cancelling deletion of Pod {namespace}/{}", name_of(meta));
                let note = Note::normal(EVICTION, &**pod, "TaintManagerEviction", message);
                plan.writes.push(Write::tell(note));
            }
            _ => {}
        }
    }
    if doomed != snapshot.doomed.0 {
        let about = Key::of::<Node>("", &snapshot.name);
        plan.writes.push(Action::Remember { about, memo: Memo::new(Doomed(doomed)) }.into());
    }
}

/// The grace of a Pod's own, but a second at least for one that has a name: without any, the name
/// would be free at once, and a second Pod have it while a node that is not heard still runs this.
fn grace(pod: &Pod) -> Option<i64> {
    let named = controller_of(&pod.metadata).is_some_and(|owner| owner.kind == "StatefulSet");
    let own = pods::spec(pod).and_then(|spec| spec.termination_grace_period_seconds);
    (named && own == Some(0)).then_some(1)
}

/// When the first of these taints ends a Pod's stay.
fn stay(pod: &Pod, evicting: &[&Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pods::spec(pod).and_then(|spec| spec.tolerations.as_deref());
    let ends = evicting.iter().filter_map(|taint| end(taint, tolerations.unwrap_or(&[]), now));
    ends.min()
}

/// When a taint ends a Pod's stay; `None` when it is tolerated without end.
fn end(taint: &Taint, tolerations: &[Toleration], now: Timestamp) -> Option<Timestamp> {
    let mut covering =
        tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
    let from = taint.time_added.as_ref().map_or(now, |time| time.0);
    if covering.peek().is_none() {
        return Some(now);
    }
    let seconds = covering.filter_map(|toleration| toleration.toleration_seconds).min()?;
    Some(from.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, at, check_lines, text, yaml};
    use super::*;

    fn node(ready: &str, taints: &str) -> Option<Arc<Node>> {
        let (status, reason) = ready.split_once(' ').unwrap_or((ready, "NodeReady"));
        Some(Arc::new(yaml(&format!(
            "metadata: {{name: n1, creationTimestamp: 2023-11-14T22:13:20Z}}\n\
             spec: {{taints: [{taints}]}}\n\
             status: {{conditions: [{{type: Ready, status: \"{status}\", reason: {reason}}}]}}"
        ))))
    }

    fn pod(name: &str, condition: &str, tolerations: &str) -> Arc<Pod> {
        Arc::new(yaml(&format!(
            "metadata: {{name: {name}, namespace: d}}\n\
             spec: {{nodeName: n1, containers: [], tolerations: [{tolerations}]}}\n\
             status:\n  phase: Running\n  conditions: [{{type: Ready, {condition}}}]\n  \
             containerStatuses: [{{name: c, ready: true, image: i, imageID: i, restartCount: 0}}]"
        )))
    }

    fn snapshot(node: Option<Arc<Node>>, silent: u64, pods: &[Arc<Pod>]) -> Snapshot {
        Snapshot {
            name: "n1".to_string(),
            node,
            silent_for: Some(Duration::from_secs(silent)),
            pods: pods.to_vec(),
            ..Snapshot::default()
        }
    }

    /// What the plan's lines contain.
    #[track_caller]
    fn check(snapshot: &Snapshot, seconds: i64, expected: &[&str]) -> Option<Duration> {
        let plan = plan(snapshot, at(seconds));
        check_lines(&plan.writes, expected);
        plan.again
    }

    /// Pods that have said that they are disrupted.
    fn told(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let told = |pod: &Arc<Pod>| {
            let mut pod = Pod::clone(pod);
            let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
            conditions.expect("it has some").push(PodCondition {
                type_: "DisruptionTarget".to_string(),
                status: "True".to_string(),
                ..PodCondition::default()
            });
            Arc::new(pod)
        };
        pods.iter().map(told).collect()
    }

    const READY: &str = "status: \"True\"";
    const LOST: &str = "status: \"False\", reason: NodeNotReady";

    #[test]
    fn a_healthy_node_is_looked_at_when_its_lease_would_be_stale() {
        let again = check(&snapshot(node("True", ""), 2, &[]), 0, &[]);
        assert_eq!(again, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_silent_node_becomes_unknown_then_tainted_and_its_pods_not_ready() {
        let pods = [pod("a", READY, "{operator: Exists}")];
        check(
            &snapshot(node("True", ""), 5, &pods),
            0,
            &[r#"patch nodes n1/status"#, r#""reason":"NodeNotReady","status":"False""#],
        );
        let pods = [pod("a", LOST, "{operator: Exists}")];
        check(
            &snapshot(node("Unknown NodeStatusUnknown", ""), 6, &pods),
            0,
            &[r#"{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable""#],
        );
    }

    const TAINTED: &str = "{key: node.kubernetes.io/unreachable, effect: NoSchedule, \
        timeAdded: 2023-11-14T22:13:20Z}, {key: node.kubernetes.io/unreachable, \
        effect: NoExecute, timeAdded: 2023-11-14T22:13:20Z}";

    #[test]
    fn a_node_that_is_back_is_ready_then_untainted_and_its_pods_ready() {
        let pods = [pod("a", LOST, "{operator: Exists}")];
        check(
            &snapshot(node("Unknown NodeStatusUnknown", TAINTED), 0, &pods),
            9,
            &[r#""reason":"NodeReady","status":"True""#],
        );
        check(
            &snapshot(node("True", TAINTED), 0, &pods),
            9,
            &[r#"patch nodes n1 {"spec":{"taints":[]}}"#, r#"patch pods d/a/status"#],
        );
        let own = [pod("a", "status: \"False\", reason: ContainersNotReady", "{operator: Exists}")];
        check(&snapshot(node("True", ""), 0, &own), 9, &[]);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate_it() {
        let for_300 = "{key: node.kubernetes.io/unreachable, operator: Exists, \
            effect: NoExecute, tolerationSeconds: 300}";
        let pods = [
            pod("never", LOST, ""),
            pod("always", LOST, "{operator: Exists}"),
            pod("a-while", LOST, for_300),
        ];
        let lost = snapshot(node("Unknown NodeStatusUnknown", TAINTED), 60, &pods);
        let again = check(&lost, 100, &[r#""reason":"DeletionByTaintManager""#]);
        assert_eq!(again, Some(Duration::from_secs(200)));
        let lost = Snapshot { pods: told(&pods), ..lost };
        let again = check(&lost, 100, &["delete pods d/never (Normal TaintManagerEviction"]);
        assert_eq!(again, Some(Duration::from_secs(200)));
        check(&lost, 300, &["delete pods d/never", "delete pods d/a-while"]);
    }

    #[test]
    fn who_may_stay_after_all_is_told() {
        let taint = "{key: k, effect: NoExecute, timeAdded: 2023-11-14T22:13:20Z}";
        let a_while = "{key: k, operator: Exists, effect: NoExecute, tolerationSeconds: 100}";
        let pods = [pod("a", READY, a_while), pod("b", READY, "{operator: Exists}")];
        let mut world = snapshot(node("True", taint), 0, &pods);
        check(&world, 10, &["remember nodes n1"]);
        world.doomed = Arc::new(Doomed(["uid-a".to_string()].into()));
        check(&world, 10, &[]);
        world.node = node("True", "");
        let told = "Normal TaintManagerEviction: Cancelling deletion of Pod d/a";
        check(&world, 20, &[told, "remember nodes n1"]);
        // One whose time is over is gone for another reason.
        world.node = node("True", taint);
        check(&world, 100, &[r#""reason":"DeletionByTaintManager""#, "remember nodes n1"]);
    }

    #[test]
    fn a_pod_with_a_name_keeps_it_until_its_node_has_ended_it() {
        let delete = |kind: &str, grace: i64| {
            let mut pod = Pod::clone(&told(&[pod("a", LOST, "")])[0]);
            let mut owner = testing::owner("set");
            owner.kind = kind.to_string();
            pod.metadata.owner_references = Some(vec![owner]);
            let spec = pod.spec.as_mut().expect("a spec");
            spec.termination_grace_period_seconds = Some(grace);
            let lost = node("Unknown NodeStatusUnknown", TAINTED);
            let plan = plan(&snapshot(lost, 60, &[Arc::new(pod)]), at(100));
            text(&plan.writes).split(" (").next().unwrap_or("").to_string()
        };
        assert_eq!(delete("StatefulSet", 0), "delete pods d/a grace=1");
        assert_eq!(delete("StatefulSet", 30), "delete pods d/a");
        assert_eq!(delete("ReplicaSet", 0), "delete pods d/a");
    }

    #[test]
    fn a_pod_says_first_that_it_is_not_ready_and_then_that_it_is_disrupted() {
        let pods = [pod("a", READY, "")];
        let lost = snapshot(node("Unknown NodeStatusUnknown", TAINTED), 60, &pods);
        check(&lost, 100, &[r#""reason":"NodeNotReady","status":"False""#]);
    }

    #[test]
    fn pressure_and_cordons_keep_new_pods_away_as_long_as_they_last() {
        let node = |conditions: &str, spec: &str| -> Option<Arc<Node>> {
            Some(Arc::new(yaml(&format!(
                "metadata: {{name: n1, creationTimestamp: 2023-11-14T22:13:20Z}}\n\
                 spec: {{{spec}}}\nstatus: {{conditions: [{{type: Ready, status: \"True\"}}, \
                 {conditions}]}}"
            ))))
        };
        let short = "{type: DiskPressure, status: \"True\"}";
        let fine = "{type: DiskPressure, status: \"False\"}";
        let added = r#""timeAdded":"2023-11-14T22:13:20Z""#;
        let disk = format!(
            r#"{{"effect":"NoSchedule","key":"node.kubernetes.io/disk-pressure",{added}}}"#
        );
        let alone = format!("[{disk}]");
        check(&snapshot(node(short, ""), 0, &[]), 0, &[alone.as_str()]);
        let cordon = format!(
            r#"{{"effect":"NoSchedule","key":"node.kubernetes.io/unschedulable",{added}}}"#
        );
        let both = format!("[{disk},{cordon}]");
        check(&snapshot(node(short, "unschedulable: true"), 0, &[]), 0, &[both.as_str()]);
        // What it has stays, and goes with the condition; a person's own stays.
        let held = "taints: [{key: node.kubernetes.io/disk-pressure, effect: NoSchedule}, \
            {key: node.kubernetes.io/disk-pressure, effect: NoExecute, \
            timeAdded: 2023-11-14T22:13:20Z}]";
        check(&snapshot(node(short, held), 0, &[]), 0, &[]);
        let left = r#"{"taints":[{"effect":"NoExecute","key":"node.kubernetes.io/disk-pressure""#;
        check(&snapshot(node(fine, held), 0, &[]), 0, &[left]);
    }

    #[test]
    fn when_most_nodes_are_silent_nobody_is_evicted() {
        let failed = |silent: usize, nodes: usize| Zone { silent, nodes }.has_failed();
        assert!(failed(3, 5) && failed(56, 100) && failed(3, 3));
        assert!(!failed(55, 100) && !failed(2, 2) && !failed(2, 3) && !failed(0, 0));
        let pods = [pod("a", LOST, "")];
        let mut world = snapshot(node("Unknown NodeStatusUnknown", ""), 6, &pods);
        world.zone = Zone { silent: 3, nodes: 4 };
        let again = check(&world, 0, &[r#"{"taints":[{"effect":"NoSchedule","key":"node.kub"#]);
        assert_eq!(again, Some(FAILURE_PAUSE));
        assert!(!text(&plan(&world, at(0)).writes).contains("NoExecute"));
        // Taints from before the failure evict nobody, and are made anew when it is over.
        world.node = node("Unknown NodeStatusUnknown", TAINTED);
        check(&world, 900, &[r#"{"taints":[{"effect":"NoSchedule","key":"node.kub"#]);
        assert!(!text(&plan(&world, at(900)).writes).contains("NoExecute"));
        world.zone = Zone { silent: 2, nodes: 4 };
        check(&world, 900, &["DeletionByTaintManager"]);
    }

    #[test]
    fn a_node_that_is_heard_again_evicts_nobody_for_its_silence() {
        let pods = [pod("a", LOST, "")];
        check(
            &snapshot(node("Unknown NodeStatusUnknown", TAINTED), 0, &pods),
            900,
            &[r#""reason":"NodeReady","status":"True""#],
        );
        check(
            &snapshot(node("True", TAINTED), 0, &pods),
            900,
            &[r#"patch nodes n1 {"spec":{"taints":[]}}"#, "patch pods d/a/status"],
        );
    }

    #[test]
    fn taints_of_others_stay_and_get_their_time() {
        check(
            &snapshot(node("True", "{key: k, value: v, effect: NoExecute}"), 0, &[]),
            0,
            &[r#"{"effect":"NoExecute","key":"k","timeAdded":"2023-11-14T22:13:20Z","value""#],
        );
        check(&snapshot(node("True", "{key: k, effect: NoSchedule}"), 0, &[]), 0, &[]);
    }

    #[test]
    fn pods_of_a_deleted_node_go_at_once() {
        let pods = [pod("a", READY, "")];
        let shown = text(&plan(&snapshot(None, 0, &pods), at(0)).writes);
        assert!(shown.contains(r#""reason":"DeletionByPodGC","status":"True""#), "{shown}");
        let unready = r#""reason":"PodFailed","status":"False","type":"Ready""#;
        assert!(shown.contains(unready), "{shown}");
        assert!(shown.ends_with("\"phase\":\"Failed\"}} unless nodes n1 is there\n"), "{shown}");
        check(
            &snapshot(None, 0, &told(&pods)),
            0,
            &["delete pods d/a grace=0 unless nodes n1 is there"],
        );
    }

    #[test]
    fn a_node_that_says_it_is_not_ready_is_tainted_so() {
        check(
            &snapshot(node("False NodeNotReady", ""), 0, &[]),
            0,
            &["node.kubernetes.io/not-ready"],
        );
    }
}
