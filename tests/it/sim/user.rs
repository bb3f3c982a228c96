//! What people do: make workloads, scale them, change their images, delete them.

use super::*;

impl Sim {
    pub(super) fn user(&mut self) {
        match self.rng.random_range(0..10) {
            0..5 => self.user_of_deployments(),
            5..7 => self.user_of_stateful_sets(),
            7 => self.user_of_daemon_sets(),
            _ => self.user_of_jobs(),
        }
        self.check();
    }

    fn user_of_deployments(&mut self) {
        let name = DEPLOYMENTS[self.rng.random_range(0..DEPLOYMENTS.len())];
        let key = Key::of::<Deployment>(NAMESPACE, name);
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        let (replicas, image) = (self.rng.random_range(0..=6), self.rng.random_range(1..=4));
        let image = format!("hello:{image}");
        if !self.api.objects.contains_key(&key) {
            let mut object = new_deployment(name, replicas, &image);
            let (surge, unavailable) = (self.rng.random_range(0..3), self.rng.random_range(0..2));
            let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
            object["spec"]["strategy"] = match self.chance(25) {
                true => json!({"type": "Recreate"}),
                false => json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
            };
            self.show(|| format!("user creates {name}: {replicas} of {image}"));
            self.api.create(&key, object).expect("nobody has this name");
            return;
        }
        let done = match self.rng.random_range(0..10) {
            0..4 => {
                self.show(|| format!("user scales {name} to {replicas}"));
                self.api.patch(&target, &json!({"spec": {"replicas": replicas}}))
            }
            4..9 => {
                self.show(|| format!("user updates {name} to {image}"));
                let containers = new_deployment(name, 0, &image);
                let template = json!({"spec": {"template": containers["spec"]["template"]}});
                self.api.patch(&target, &template)
            }
            _ => {
                let policy = if self.chance(30) { "Foreground" } else { "Background" };
                self.show(|| format!("user deletes {name}, {policy}"));
                self.api.delete(&target, None, Some(policy))
            }
        };
        done.expect("users name no revision");
    }

    fn user_of_stateful_sets(&mut self) {
        let which = self.rng.random_range(0..STATEFUL_SETS.len());
        let name = STATEFUL_SETS[which];
        let (replicas, image) = (self.rng.random_range(0..=3), self.rng.random_range(1..=3));
        let object = new_stateful_set(name, which == 0, replicas, &format!("hello:{image}"));
        self.change::<StatefulSet>(name, object, json!({"spec": {"replicas": replicas}}));
    }

    fn user_of_daemon_sets(&mut self) {
        let which = self.rng.random_range(0..DAEMON_SETS.len());
        let name = DAEMON_SETS[which];
        let image = self.rng.random_range(1..=3);
        let object = new_daemon_set(name, which == 1, &format!("hello:{image}"));
        self.change::<DaemonSet>(name, object, json!({}));
    }

    /// Makes an object that is not there, or scales it, changes its template, or deletes it.
    fn change<T: Typed>(&mut self, name: &str, object: Value, scaled: Value) {
        let key = Key::of::<T>(NAMESPACE, name);
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        if !self.api.objects.contains_key(&key) {
            self.show(|| format!("user creates {key}"));
            self.api.create(&key, object).expect("nobody has this name");
            return;
        }
        let done = match self.rng.random_range(0..10) {
            0..4 => {
                self.show(|| format!("user changes {key}: {scaled}"));
                self.api.patch(&target, &scaled)
            }
            4..9 => {
                let template = json!({"spec": {"template": object["spec"]["template"]}});
                self.show(|| format!("user updates the template of {key}"));
                self.api.patch(&target, &template)
            }
            _ => {
                let policy = if self.chance(30) { "Foreground" } else { "Background" };
                self.show(|| format!("user deletes {key}, {policy}"));
                self.api.delete(&target, None, Some(policy))
            }
        };
        done.expect("users name no revision");
    }
}

pub fn new_deployment(name: &str, replicas: i64, image: &str) -> Value {
    let labels = json!({"app": name, "tier": "web"});
    let requests = json!({"cpu": format!("{POD_CPU_MILLIS}m")});
    // The first app matters least and the last one most: who needs room takes it from the first.
    let priority = DEPLOYMENTS.iter().position(|other| *other == name);
    json!({"spec": {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": 600,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [{"name": "c", "image": image, "resources": {"requests": requests}}],
            "priority": priority,
            "tolerations": leaves_lost_nodes(),
        }},
    }})
}

/// Pods leave a node that is lost after a while.
pub fn leaves_lost_nodes() -> Value {
    let toleration = |what: &str| {
        let key = format!("node.kubernetes.io/{what}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 4})
    };
    json!([toleration("not-ready"), toleration("unreachable")])
}

/// A set with volumes goes in order and takes its claims along when it goes.
fn new_stateful_set(name: &str, volumes: bool, replicas: i64, image: &str) -> Value {
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local",
        "resources": {"requests": {"storage": "1Gi"}},
    }});
    let order = if volumes { "OrderedReady" } else { "Parallel" };
    json!({"spec": {
        "replicas": replicas,
        "serviceName": name,
        "revisionHistoryLimit": 1,
        "podManagementPolicy": order,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "selector": {"matchLabels": {"app": name}},
        "volumeClaimTemplates": if volumes { json!([claim]) } else { json!([]) },
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": "c", "image": image}],
            "tolerations": leaves_lost_nodes(),
        }},
    }})
}

fn new_daemon_set(name: &str, surges: bool, image: &str) -> Value {
    let (surge, unavailable) = if surges { (1, 0) } else { (0, 1) };
    let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
    json!({"spec": {
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": {"app": name}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": "c", "image": image}],
        }},
    }})
}
