//! What nobody else takes away: Pods that have ended long ago, Pods of nodes that are out of
//! service, leases of nodes that are gone, bootstrap tokens that have expired, Events of yesterday.
//!
//! Owns: the deletion of these. One key each ([`Sweep`]), looked at by the clock and, where it
//! cannot wait, when something changes.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};

use super::cache::{Cache, Change, Key, LEASE_NAMESPACE};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Target, Write};

/// Ended Pods that are kept, as in Kubernetes: enough to look at, few enough to list.
const ENDED_MAX: usize = 12_500;
/// Pods deleted by one plan.
const BURST_MAX: usize = 500;
/// How often ended Pods and leases are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// A lease without a node may be one whose node is about to be made.
const LEASE_GRACE: Duration = Duration::from_secs(60);
/// Events live so long after they were told last, as in Kubernetes.
pub(super) const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How often Events are looked at: each time all of them are read.
const EVENTS_EVERY: Duration = Duration::from_secs(120);
/// Put on a node by a person who has made sure that it is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
const TOKENS: &str = "kube-system";
/// The namespace under whose keys the sweeps stand, since it is always there.
const ANCHOR: &str = "kube-system";

/// One kind of leftovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    Pods,
    Leases,
    Events,
}

pub const CONTROLLER: Controller = Controller { name: "leftovers", wake, reconcile };

/// The key of a sweep: no namespace has a name with a slash, so it meets no object.
fn key(sweep: Sweep) -> Key {
    Key::of::<Namespace>("", &format!("{ANCHOR}/{sweep:?}"))
}

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let begins = change.of::<Namespace>().is_some_and(|(before, _)| before.is_none());
    if begins && change.key.name() == ANCHOR {
        keys.extend([Sweep::Pods, Sweep::Leases, Sweep::Events].map(key));
    }
    if change.of::<Secret>().is_some() && change.key.namespace() == TOKENS {
        keys.push(change.key.clone());
    }
    if let Some((_, Some(node))) = change.of::<Node>()
        && is_out_of_service(node)
    {
        keys.push(change.key.clone());
    }
    if let Some((_, Some(pod))) = change.of::<Pod>()
        && pods::is_deleting(pod)
    {
        let node = cache.get::<Node>("", pods::node(pod));
        if node.is_some_and(|node| is_out_of_service(&node)) {
            keys.push(Key::of::<Node>("", pods::node(pod)));
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    if key.kind.is("", "Secret") {
        let secret = view.cache.get::<Secret>(key.namespace(), key.name());
        return secret.map_or_else(Plan::default, |secret| token(&secret, view.now));
    }
    if key.kind.is("", "Node") {
        let node = view.cache.get::<Node>("", key.name());
        let pods = view.cache.pods_on(key.name());
        return node.map_or_else(Plan::default, |node| out_of_service(&node, &pods, view.now));
    }
    match key.name().rsplit('/').next() {
        Some("Pods") => {
            let ended = view.cache.all::<Pod>().filter(|pod| pods::is_finished(pod));
            ended_pods(&ended.collect::<Vec<_>>(), ENDED_MAX)
        }
        Some("Leases") => {
            let leases = view.cache.within::<Lease>(LEASE_NAMESPACE);
            let alone = leases.filter_map(|lease| {
                let name = name_of(&lease.metadata);
                let silent_for = view.cache.silent_for(name, view.instant).unwrap_or_default();
                view.cache.get::<Node>("", name).is_none().then_some((lease, silent_for))
            });
            leases_alone(&alone.collect::<Vec<_>>())
        }
        _ => Plan {
            writes: vec![Action::ExpireEvents { before: view.now - EVENT_LIFE }.into()],
            again: Some(EVENTS_EVERY),
        },
    }
}

/// Deletes the ended Pods that are too many, the oldest first.
pub fn ended_pods(ended: &[Arc<Pod>], most: usize) -> Plan {
    let mut plan = Plan { writes: Vec::new(), again: Some(SWEEP_EVERY) };
    let surplus = ended.len().saturating_sub(most).min(BURST_MAX);
    if surplus == 0 {
        return plan;
    }
    let mut oldest: Vec<&Arc<Pod>> = ended.iter().collect();
    oldest.sort_by_key(|pod| {
        let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (made, name_of(&pod.metadata).to_string())
    });
    let oldest = oldest.into_iter().filter(|pod| !pods::is_deleting(pod)).take(surplus);
    plan.writes = oldest.map(|pod| Write::delete(&**pod)).collect();
    plan
}

/// Deletes the leases of nodes that are gone, if the API server does not know the node either. Each
/// comes with the time for which it has not changed, by this process's clock: that of a node may be
/// far ahead.
pub fn leases_alone(alone: &[(Arc<Lease>, Duration)]) -> Plan {
    let mut plan = Plan { writes: Vec::new(), again: Some(SWEEP_EVERY) };
    for (lease, silent_for) in alone {
        if *silent_for < LEASE_GRACE {
            plan.look_again(LEASE_GRACE - *silent_for);
            continue;
        }
        let node = Key::of::<Node>("", name_of(&lease.metadata));
        let delete = Write::delete(&**lease);
        plan.writes.push(Write { unless_found: vec![(node, String::new())], ..delete });
    }
    plan
}

/// Deletes a bootstrap token when it has expired. One without an end stays.
pub fn token(secret: &Secret, now: Timestamp) -> Plan {
    if secret.type_.as_deref() != Some(TOKEN_TYPE) || secret.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let text = secret.data.as_ref().and_then(|data| data.get("expiration"));
    let text = text.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let Some(end) = text.and_then(|text| text.trim().parse::<Timestamp>().ok()) else {
        return Plan::default();
    };
    match Duration::try_from(end.duration_since(now)) {
        Ok(left) if !left.is_zero() => Plan { writes: Vec::new(), again: Some(left) },
        _ => vec![Write::delete(secret)].into(),
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == OUT_OF_SERVICE))
}

/// Pods that are being deleted on a node that is off and says nothing will not be ended by it: they
/// go at once, and so StatefulSets can make theirs anew.
pub fn out_of_service(node: &Node, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .is_some_and(|all| all.iter().any(|held| held.type_ == "Ready" && held.status == "True"));
    if ready || !is_out_of_service(node) {
        return Plan::default();
    }
    let mut writes = Vec::new();
    for pod in pods.iter().filter(|pod| pods::is_deleting(pod)) {
        let target = Target { revision: String::new(), ..Target::of(&**pod) };
        let delete = Action::Delete { target, grace_seconds: Some(0), policy: None };
        let why = "PodGC: node is out of service";
        let told = pods::disrupted(pod, "DeletionByPodGC", why, true, now);
        writes.push(told.unwrap_or_else(|| delete.into()));
    }
    writes.into()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    #[test]
    fn ended_pods_go_oldest_first_when_there_are_too_many() {
        let pod = |name: &str, day: u8| -> Arc<Pod> {
            Arc::new(yaml(&format!(
                "metadata: {{name: {name}, namespace: d, creationTimestamp: \
                 2024-01-0{day}T00:00:00Z}}\nstatus: {{phase: Succeeded}}"
            )))
        };
        let ended = [pod("b", 2), pod("a", 1), pod("c", 3)];
        assert_eq!(text(&ended_pods(&ended, 3).writes), "");
        assert_eq!(text(&ended_pods(&ended, 2).writes), "delete pods d/a\n");
        assert_eq!(ended_pods(&ended, 1).writes.len(), 2);
    }

    #[test]
    fn leases_go_after_their_nodes() {
        let after = |seconds: u64| {
            let lease = "metadata: {name: n1, namespace: kube-node-lease}\n\
                spec: {renewTime: 2099-01-01T00:00:00.000000Z}";
            let plan = leases_alone(&[(Arc::new(yaml(lease)), Duration::from_secs(seconds))]);
            (text(&plan.writes), plan.again)
        };
        let wanted =
            "delete leases.coordination.k8s.io kube-node-lease/n1 unless nodes n1 is there\n";
        assert_eq!(after(60), (wanted.to_string(), Some(SWEEP_EVERY)));
        assert_eq!(after(0), (String::new(), Some(SWEEP_EVERY)));
        assert_eq!(after(59), (String::new(), Some(Duration::from_secs(1))), "not a sweep later");
    }

    #[test]
    fn tokens_go_when_they_expire() {
        let secret = |kind: &str, end: &str| -> Secret {
            let mut secret: Secret =
                yaml(&format!("metadata: {{name: t, namespace: kube-system}}\ntype: {kind}"));
            let bytes = k8s_openapi::ByteString(end.as_bytes().to_vec());
            secret.data = Some([("expiration".to_string(), bytes)].into());
            secret
        };
        let token = |kind: &str, end: &str| super::token(&secret(kind, end), at(0));
        assert_eq!(
            text(&token(TOKEN_TYPE, "2023-11-14T22:13:20Z").writes),
            "delete secrets kube-system/t\n"
        );
        assert_eq!(token(TOKEN_TYPE, "2023-11-14T22:14:20Z").again, Some(Duration::from_secs(60)));
        assert_eq!(token("Opaque", "2023-11-14T22:13:20Z").writes.len(), 0);
        assert_eq!(token(TOKEN_TYPE, "").writes.len(), 0);
    }

    #[test]
    fn pods_of_a_node_that_is_off_end_when_they_are_to() {
        let node = |ready: &str| -> Node {
            yaml(&format!(
                "metadata: {{name: n1}}\nspec: {{taints: [{{key: {OUT_OF_SERVICE}, effect: \
                 NoExecute}}]}}\nstatus: {{conditions: [{{type: Ready, status: \"{ready}\"}}]}}"
            ))
        };
        let pod = |name: &str, more: &str, conditions: &str| -> Arc<Pod> {
            Arc::new(yaml(&format!(
                "metadata: {{name: {name}, namespace: d{more}}}\n\
                 status: {{phase: Running, conditions: [{conditions}]}}"
            )))
        };
        let deleting = ", deletionTimestamp: 2024-01-01T00:00:00Z";
        let told = "{type: DisruptionTarget, status: \"True\"}";
        let pods = [pod("a", "", ""), pod("b", deleting, ""), pod("c", deleting, told)];
        let shown = text(&out_of_service(&node("Unknown"), &pods, at(0)).writes);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 2, "{shown}");
        assert!(
            lines[0].starts_with("patch pods d/b/status") && lines[0].contains("DeletionByPodGC")
        );
        assert_eq!(lines[1], "delete pods d/c grace=0");
        assert_eq!(out_of_service(&node("True"), &pods, at(0)).writes.len(), 0);
    }
}
