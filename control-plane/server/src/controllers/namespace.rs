//! Namespaces on their way out: everything in them is deleted, then they are let go.
//!
//! Owns: a terminating Namespace's conditions and its finalizer `kubernetes`.
//!
//! ```text
//!  deleted by a user ─► delete all Pods ─► when none is left: all other objects, kind by kind
//!        ─► wait for finalizers and grace
//!        ─► nothing left in the cache ─► nothing left by the API server's word ─► finalizer off
//! ```
//!
//! Invariants: Pods go before what guards them, such as NetworkPolicies; the finalizer goes only
//! after the API server found every kind empty, and it refuses new objects in a terminating
//! namespace, so nothing can outlive its namespace.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use wherry_resources::{Kind, kind_of};

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Target, Write};

/// What is left of one kind in a namespace.
pub struct Rest {
    pub kind: &'static Kind,
    pub count: usize,
    /// Those not yet being deleted.
    pub alive: usize,
    /// Finalizers that hold the others, each named once.
    pub finalizers: Vec<String>,
}

/// What a plan for one namespace reads.
#[derive(Default)]
pub struct Snapshot {
    pub namespace: Arc<Namespace>,
    pub rest: Vec<Rest>,
}

pub const CONTROLLER: Controller = Controller { name: "namespace", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Namespace>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let namespace = change.key.namespace();
    if namespace.is_empty() {
        return;
    }
    let terminating = cache
        .get::<Namespace>("", namespace)
        .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some());
    if terminating {
        keys.push(Key::of::<Namespace>("", namespace));
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(namespace) = view.cache.get::<Namespace>("", key.name()) else {
        return Plan::default();
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Plan::default();
    }
    let mut rest = Vec::new();
    for (kind, objects) in view.cache.contents(key.name()) {
        let deleting = objects.iter().filter(|meta| meta.deletion_timestamp.is_some());
        let mut finalizers: Vec<String> =
            deleting.clone().flat_map(|meta| meta.finalizers.clone().unwrap_or_default()).collect();
        finalizers.sort();
        finalizers.dedup();
        let (count, dying) = (objects.len(), deleting.count());
        rest.push(Rest { kind, count, alive: count - dying, finalizers });
    }
    plan(&Snapshot { namespace, rest }, view.now).into()
}

/// Deletes what lives, says what holds the namespace up, and lets it go when nothing is left.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Vec<Write> {
    let namespace = &*snapshot.namespace;
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let held = finalizers.is_some_and(|all| all.iter().any(|name| name == "kubernetes"));
    if namespace.metadata.deletion_timestamp.is_none() || !held {
        return Vec::new();
    }
    let name = name_of(&namespace.metadata);
    let delete_all = |kind: &'static Kind| -> Write {
        Action::DeleteAll { kind, namespace: name.to_string() }.into()
    };
    // As in Kubernetes since 1.34.
    let is_pod = |rest: &&Rest| rest.kind.is("", "Pod");
    let pods_first = snapshot.rest.iter().any(|rest| is_pod(&rest));
    let alive = snapshot.rest.iter().filter(|rest| rest.alive > 0);
    let alive = alive.filter(|rest| !pods_first || is_pod(rest));
    let mut writes: Vec<Write> = alive.map(|rest| delete_all(rest.kind)).collect();
    // Events are not in the cache, and nothing waits for them.
    let events = kind_of("v1", "Event").expect("events stand in the table of kinds");
    if snapshot.rest.is_empty() {
        writes.push(delete_all(events));
        writes.push(Action::Finalize { target: Target::of(namespace) }.into());
        return writes;
    }
    writes.extend(report(snapshot, now));
    writes
}

/// What is said of a count: its first two digits, rounded up, so that thousands that leave one by
/// one do not cost a write each.
fn told(count: usize) -> usize {
    let unit = 10_usize.pow(count.checked_ilog10().unwrap_or(0).saturating_sub(1));
    count.next_multiple_of(unit)
}

/// The conditions that say what the namespace is waiting for.
fn report(snapshot: &Snapshot, now: Timestamp) -> Option<Write> {
    let namespace = &*snapshot.namespace;
    let content: Vec<String> = snapshot
        .rest
        .iter()
        .map(|rest| {
            let Kind { plural, group, .. } = rest.kind;
            format!("{plural}.{group} has {} resource instances", told(rest.count))
        })
        .collect();
    let mut holding: Vec<String> =
        snapshot.rest.iter().flat_map(|rest| rest.finalizers.clone()).collect();
    holding.sort();
    holding.dedup();
    let stuck = snapshot.rest.iter().all(|rest| rest.alive == 0 && !rest.finalizers.is_empty());
    let remaining = format!("Some resources are remaining: {}", content.join(", "));
    let finalizers = format!("Some content waits for finalizers: {}", holding.join(", "));
    let wanted = [
        ("NamespaceContentRemaining", true, "SomeResourcesRemain", remaining),
        ("NamespaceFinalizersRemaining", !holding.is_empty(), "SomeFinalizersRemain", finalizers),
    ];
    let old = namespace.status.as_ref().and_then(|status| status.conditions.clone());
    let mut conditions = old.clone().unwrap_or_default();
    for (kind, holds, reason, message) in wanted {
        let status = if holds { "True" } else { "False" };
        let found = conditions.iter_mut().find(|condition| condition.type_ == kind);
        let fresh = NamespaceCondition {
            type_: kind.to_string(),
            status: status.to_string(),
            reason: Some(if holds { reason } else { "ContentHasNoFinalizers" }.to_string()),
            message: holds.then_some(message),
            last_transition_time: Some(Time(now)),
        };
        match found {
            // Counts shrink with every object: only news about the outcome are worth a write, and
            // what is left in the end.
            Some(found) if found.status == status && stuck => found.message = fresh.message,
            Some(found) if found.status == status => {}
            Some(found) => *found = fresh,
            None if holds => conditions.push(fresh),
            None => {}
        }
    }
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    if old.unwrap_or_default() == conditions && phase == Some("Terminating") {
        return None;
    }
    let body = json!({"status": {"phase": "Terminating", "conditions": conditions}});
    Some(Write::patch_status(namespace, body))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::testing::{at, text, yaml};
    use super::*;

    fn snapshot(rest: &[(&str, usize, usize, &[&str])]) -> Snapshot {
        let namespace: Namespace = yaml(
            "metadata: {name: shop, deletionTimestamp: 2024-01-01T00:00:00Z}\n\
             spec: {finalizers: [kubernetes]}\nstatus: {phase: Terminating}",
        );
        let rest = rest.iter().map(|(kind, count, alive, finalizers)| Rest {
            kind: kind_of("v1", kind).expect("in the table"),
            count: *count,
            alive: *alive,
            finalizers: finalizers.iter().map(|name| (*name).to_string()).collect(),
        });
        Snapshot { namespace: Arc::new(namespace), rest: rest.collect() }
    }

    fn check(rest: &[(&str, usize, usize, &[&str])], expected: &[&str]) {
        let shown = text(&plan(&snapshot(rest), at(0)));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{shown}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line} is not {expected}");
        }
    }

    #[test]
    fn content_goes_first() {
        check(
            &[("ConfigMap", 2, 2, &[]), ("Secret", 3, 1, &[])],
            &[
                "delete all configmaps in shop",
                "delete all secrets in shop",
                r#"patch namespaces shop/status {"status":{"phase":"Terminating","conditions":[{"#,
            ],
        );
    }

    #[test]
    fn pods_go_before_everything_else() {
        let status = "patch namespaces shop/status";
        let none: &[&str] = &[];
        let others = ("ConfigMap", 2, 2, none);
        check(&[others, ("Pod", 3, 1, none)], &["delete all pods in shop", status]);
        check(&[others, ("Pod", 2, 0, none)], &[status]);
        check(&[others], &["delete all configmaps in shop", status]);
    }

    #[test]
    fn what_is_being_deleted_is_waited_for_and_its_finalizers_are_named() {
        let shown = text(&plan(&snapshot(&[("Pod", 1, 0, &["example.com/keep"])]), at(0)));
        assert!(!shown.contains("delete"), "{shown}");
        assert!(shown.contains("Some content waits for finalizers: example.com/keep"), "{shown}");
        assert!(shown.contains("pods. has 1 resource instances"), "{shown}");
    }

    #[test]
    fn what_is_left_in_the_end_is_told_as_it_is() {
        let mut held = snapshot(&[("ConfigMap", 1, 0, &["example.com/keep"])]);
        let status = Arc::make_mut(&mut held.namespace).status.as_mut().expect("a status");
        status.conditions = Some(vec![NamespaceCondition {
            type_: "NamespaceContentRemaining".to_string(),
            status: "True".to_string(),
            message: Some("Some resources are remaining: secrets. has 3".to_string()),
            ..NamespaceCondition::default()
        }]);
        let shown = text(&plan(&held, at(0)));
        assert!(shown.contains("remaining: configmaps. has 1 resource instances"), "{shown}");
        held.rest[0].finalizers.clear();
        assert_eq!(text(&plan(&held, at(0))), "", "what goes by itself is no news each time");
    }

    #[test]
    fn thousands_that_leave_one_by_one_are_told_of_now_and_then() {
        let counts = [1, 9, 10, 99, 100, 101, 4_321].map(told);
        assert_eq!(counts, [1, 9, 10, 99, 100, 110, 4_400]);
        let said: BTreeSet<usize> = (1..=10_000).map(told).collect();
        assert_eq!(said.len(), 280);
    }

    #[test]
    fn an_empty_namespace_is_let_go() {
        check(&[], &["delete all events in shop", "finalize namespaces shop"]);
    }

    #[test]
    fn a_living_namespace_is_left_alone() {
        let mut living = snapshot(&[("Pod", 1, 1, &[])]);
        Arc::make_mut(&mut living.namespace).metadata.deletion_timestamp = None;
        assert_eq!(text(&plan(&living, at(0))), "");
    }
}
