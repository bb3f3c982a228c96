//! The checkers: what holds after every write, and what is missing until everything has settled.

use std::collections::BTreeMap;

use super::*;

impl Sim {
    pub(super) fn check(&mut self) {
        let mut bound: BTreeMap<&str, usize> = BTreeMap::new();
        let mut active: BTreeMap<&str, i64> = BTreeMap::new();
        for pod in self.api.all::<Pod>() {
            let node = text(pod, "/spec/nodeName");
            *bound.entry(node).or_default() += usize::from(!node.is_empty() && !is_finished(pod));
            *active.entry(owner(pod)).or_default() += i64::from(is_active(pod));
        }
        for (node, count) in bound {
            assert!(count <= NODE_PODS, "{count} Pods are bound to {node}");
            assert!(count * POD_CPU_MILLIS <= NODE_CPU_MILLIS, "{node} has not so much CPU");
        }
        let mut sizes: BTreeMap<&str, i64> = BTreeMap::new();
        for (key, set) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "ReplicaSet") {
            let asked = number(set, "/spec/replicas");
            *sizes.entry(owner(set)).or_default() += asked;
            let has = active.get(uid(set)).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<ReplicaSet>(key, set);
            bounded(&mut self.most, key, set, (has, asked), settled);
        }
        for (key, found) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "Deployment")
        {
            let surge = number(found, "/spec/strategy/rollingUpdate/maxSurge");
            // Without any leave the controller takes one Pod away, never one more.
            let asked = number(found, "/spec/replicas") + surge;
            let has = sizes.get(uid(found)).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<Deployment>(key, found);
            bounded(&mut self.most, key, found, (has, asked), settled);
        }
    }

    /// What is not yet as the user asked; empty when all is.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let all = |kind: &'static Kind| self.api.of(kind);
        let lives = |wanted: &str| self.api.objects.values().any(|object| uid(object) == wanted);
        for (key, object) in &self.api.objects {
            if matches!(key.kind.kind, "Pod" | "ReplicaSet") && !lives(owner(object)) {
                missing.push(format!("{key} has no owner"));
            }
            if is_deleting(object) {
                missing.push(format!("{key} is being deleted"));
            }
        }
        for pod in all(kind_row::<Pod>()).filter(|pod| !is_finished(pod)) {
            if !pods::is_ready(&typed(pod)) {
                missing.push(format!("Pod {} is not ready", text(pod, "/metadata/name")));
            }
        }
        for (key, found) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "Deployment")
        {
            let sets = all(kind_row::<ReplicaSet>()).filter(|set| owner(set) == uid(found));
            let current: Vec<&Value> =
                sets.filter(|set| number(set, "/spec/replicas") > 0).collect();
            let image = "/spec/template/spec/containers/0/image";
            let outdated = current.iter().any(|set| text(set, image) != text(found, image));
            let has = |set: &&Value| {
                let pods = all(kind_row::<Pod>()).filter(|pod| owner(pod) == uid(set));
                pods.filter(|pod| is_active(pod)).count()
            };
            let has = i64::try_from(current.iter().map(has).sum::<usize>()).expect("few");
            let wanted = number(found, "/spec/replicas");
            if current.len() > 1 || outdated || has != wanted {
                missing.push(format!("{key} has {has} of {wanted}, in {} sets", current.len()));
            }
            if number(found, "/status/availableReplicas") != wanted {
                missing.push(format!("{key} does not say that it is available"));
            }
        }
        missing
    }

    pub(super) fn all_jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for key in self.api.objects.keys() {
            let own = match key.kind.kind {
                "Node" => Some(0),
                "Deployment" => Some(1),
                "ReplicaSet" => Some(2),
                "Service" => Some(3),
                _ => None,
            };
            jobs.extend(own.into_iter().chain([4]).map(|index| (index, key.clone())));
        }
        jobs
    }
}

/// Holds a count against what may be there: what is asked for now or, until things have settled,
/// has been asked for since they were.
fn bounded(
    most: &mut BTreeMap<String, i64>,
    key: &Key,
    object: &Value,
    (has, asked): (i64, i64),
    settled: bool,
) {
    let most = most.entry(uid(object).to_string()).or_insert(asked);
    *most = asked.max(*most);
    if settled && has <= asked {
        *most = asked;
    }
    assert!(has <= *most, "{key} has {has} where {most} are allowed");
}
