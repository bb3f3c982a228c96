//! The checkers: what holds after every write, and what is missing until everything has settled.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

impl Sim {
    pub(super) fn check(&mut self) {
        self.check_guests();
        self.check_jobs();
        self.watch_budget();
        let mut bound: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut active: BTreeMap<&str, i64> = BTreeMap::new();
        for (_, pod) in self.api.briefs_of("Pod") {
            if !pod.node.is_empty() && !pod.finished {
                let (pods, cpu) = bound.entry(&pod.node).or_default();
                *pods += 1;
                *cpu += pod.cpu_millis;
            }
            *active.entry(&pod.owner).or_default() += i64::from(pod.is_active());
        }
        for (node, (pods, cpu)) in bound {
            assert!(pods <= NODE_PODS, "{pods} Pods are bound to {node}");
            assert!(cpu <= NODE_CPU_MILLIS, "{node} has not so much CPU");
        }
        let mut sizes: BTreeMap<&str, i64> = BTreeMap::new();
        for (key, set) in self.api.briefs_of("ReplicaSet") {
            *sizes.entry(&set.owner).or_default() += set.size;
            let has = active.get(set.uid.as_str()).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<ReplicaSet>(key, set);
            bounded(&mut self.most, key, set, (has, set.size), settled);
        }
        for (key, found) in self.api.briefs_of("Deployment") {
            // Without any leave the controller takes one Pod away, never one more.
            let asked = found.size + found.surge;
            let has = sizes.get(found.uid.as_str()).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<Deployment>(key, found);
            bounded(&mut self.most, key, found, (has, asked), settled);
        }
    }

    /// A step of a rolling update takes no Pod away, as far as its leader knows, without which fewer
    /// work than maxUnavailable lets. (Who scales down takes part of what works, too.)
    pub(super) fn check_step(&self, job: &Job) {
        let (row, key) = (&self.controllers[job.0], &job.1);
        let cache = &self.leader.cache;
        let deployment = cache.get::<Deployment>(key.namespace(), key.name());
        let busy = self.leader.busy.get(job);
        let (Some(deployment), Some(busy), "deployment") = (deployment, busy, row.name) else {
            return;
        };
        let mut sizes: BTreeMap<&str, i64> = BTreeMap::new();
        for write in &busy.left {
            if let Action::Patch { target, body, .. } = &write.action
                && let Some(size) = body["spec"]["replicas"].as_i64()
            {
                sizes.insert(target.key.name(), size);
            }
        }
        if sizes.is_empty() {
            return;
        }
        let spec = json!(deployment.spec);
        if text(&spec, "/strategy/type") != "RollingUpdate" {
            return;
        }
        let (replicas, limits) = (number(&spec, "/replicas"), &spec["strategy"]["rollingUpdate"]);
        let away = match (number(limits, "/maxSurge"), number(limits, "/maxUnavailable")) {
            (0, 0) => 1,
            (_, away) => away,
        };
        let (mut works, mut left, mut shrinks) = (0, 0, false);
        for set in cache.controlled::<ReplicaSet>(deployment.metadata.uid.as_deref().unwrap_or(""))
        {
            let set = json!(*set);
            let asked = number(&set, "/spec/replicas");
            let size = sizes.get(text(&set, "/metadata/name")).copied().unwrap_or(asked);
            let sized_for =
                &set["metadata"]["annotations"]["deployment.kubernetes.io/desired-replicas"];
            if asked > 0 && sized_for.as_str() != Some(&replicas.to_string()) {
                return;
            }
            let available = number(&set, "/status/availableReplicas").min(asked);
            works += available;
            left += available.min(size);
            shrinks |= size < asked;
        }
        let least = works.min(replicas - away);
        assert!(!shrinks || left >= least, "{key} keeps {left} that work where {least} are to");
    }

    /// What runs where: identities once, daemons once a node, data where its volume is.
    fn check_guests(&self) {
        let mut at: BTreeMap<&str, &str> = BTreeMap::new();
        let mut daemons: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
        for ((node, _), (name, owner)) in &self.guests {
            let set = name.rsplit_once('-').map_or("", |(set, _)| set);
            if STATEFUL_SETS.contains(&set) {
                let other = at.insert(name, node);
                assert!(other.is_none(), "{name} runs on {node} and {}", other.unwrap_or(""));
            }
            if DAEMON_SETS.contains(&set) {
                // One that is deleted and made again is another one, whatever its name.
                *daemons.entry((*node, set, owner.as_str())).or_default() += 1;
            }
        }
        for ((node, set, _), count) in daemons {
            let most = if set == DAEMON_SETS[1] { 2 } else { 1 };
            assert!(count <= most, "{count} Pods of {set} run on {node}");
        }
        for (key, pod) in self.api.briefs_of("Pod") {
            let (node, name) = (pod.node.as_str(), key.name());
            if node.is_empty() || !name.starts_with("s-") {
                continue;
            }
            let key = Key::of::<PersistentVolumeClaim>(NAMESPACE, &format!("data-{name}"));
            let claim = self.api.objects.get(&key);
            let volume = claim.map_or("", |claim| text(claim, "/spec/volumeName"));
            let volume = self.api.objects.get(&Key::of::<PersistentVolume>("", volume));
            let terms =
                "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
            let there = volume.map_or(node, |volume| text(volume, terms));
            assert_eq!(there, node, "{name} is away from its data");
        }
    }

    /// What is not yet as the user asked; empty when all is.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let all = |kind: &'static Kind| self.api.of(kind);
        let uids: BTreeSet<&str> = self.api.briefs.values().map(|it| it.uid.as_str()).collect();
        let lives = |wanted: &str| uids.contains(wanted);
        for (key, object) in &self.api.objects {
            let owned = matches!(key.kind.kind, "Pod" | "ReplicaSet" | "ControllerRevision");
            let owned = owned || key.kind.kind == "PersistentVolumeClaim";
            let owned = owned || !owner(object).is_empty();
            if owned && !lives(owner(object)) {
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
                pods.filter(|pod| !is_finished(pod) && !is_deleting(pod)).count()
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
        missing.extend(self.missing_of_sets());
        missing.extend(self.missing_of_jobs());
        missing
    }

    fn missing_of_sets(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let image = "/spec/template/spec/containers/0/image";
        let own_image = "/spec/containers/0/image";
        for (key, set) in &self.api.objects {
            let pods = self.api.all::<Pod>().filter(|pod| owner(pod) == uid(set));
            let pods: Vec<&Value> =
                pods.filter(|pod| !is_finished(pod) && !is_deleting(pod)).collect();
            let outdated = pods.iter().any(|pod| text(pod, own_image) != text(set, image));
            let says = |path: &str| number(set, path);
            match key.kind.kind {
                "StatefulSet" => {
                    let wanted = number(set, "/spec/replicas");
                    let mut names: Vec<String> =
                        pods.iter().map(|pod| text(pod, "/metadata/name").to_string()).collect();
                    names.sort();
                    let right: Vec<String> =
                        (0..wanted).map(|ordinal| format!("{}-{ordinal}", key.name())).collect();
                    let counts =
                        ["/status/replicas", "/status/readyReplicas", "/status/updatedReplicas"];
                    let told = counts.iter().all(|path| says(path) == wanted);
                    let revisions = ["/status/currentRevision", "/status/updateRevision"];
                    let done = text(set, revisions[0]) == text(set, revisions[1]);
                    if outdated || names != right || !told || !done {
                        missing.push(format!("{key} has {names:?} of {wanted}: {}", set["status"]));
                    }
                }
                "DaemonSet" => {
                    let nodes: BTreeSet<&str> =
                        pods.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
                    let all = nodes.len() == NODES.len() && pods.len() == NODES.len();
                    let told = |wanted: usize| {
                        usize::try_from(says("/status/numberAvailable")) == Ok(wanted)
                    };
                    if outdated || !all || !told(NODES.len()) {
                        missing.push(format!("{key} is on {nodes:?}: {}", set["status"]));
                    }
                }
                "PersistentVolume" => {
                    let claim = text(set, "/spec/claimRef/uid");
                    if !self.api.all::<PersistentVolumeClaim>().any(|held| uid(held) == claim) {
                        missing.push(format!("{key} is nobody's"));
                    }
                }
                _ => {}
            }
        }
        missing
    }

    pub(super) fn all_jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for key in self.api.objects.keys() {
            let own = match key.kind.kind {
                "Node" => "node",
                "Deployment" => "deployment",
                "ReplicaSet" => "replicaset",
                "Service" => "endpoints",
                "StatefulSet" => "statefulset",
                "DaemonSet" => "daemonset",
                "PersistentVolume" | "PersistentVolumeClaim" => "volumes",
                "Job" => "job",
                "CronJob" => "cronjob",
                "PodDisruptionBudget" => "disruption",
                _ => "garbage",
            };
            let named = |(_, row): &(usize, &Controller)| [own, "garbage"].contains(&row.name);
            let rows = self.controllers.iter().enumerate().filter(named);
            jobs.extend(rows.map(|(index, _)| (index, key.clone())));
        }
        jobs
    }
}

/// Holds a count against what may be there: what is asked for now or, until things have settled,
/// has been asked for since they were.
pub fn bounded(
    most: &mut BTreeMap<String, i64>,
    key: &Key,
    object: &Brief,
    (has, asked): (i64, i64),
    settled: bool,
) {
    let most = most.entry(object.uid.clone()).or_insert(asked);
    *most = asked.max(*most);
    if settled && has <= asked {
        *most = asked;
    }
    assert!(has <= *most, "{key} has {has} where {most} are allowed");
}
