//! What nodes do: say that they are alive, start and end Pods, die and come back.

use super::*;

impl Sim {
    /// A node dies, and its object may be deleted; or it comes back.
    pub(super) fn toggle_node(&mut self) {
        let name = NODES[self.rng.random_range(0..NODES.len())];
        let alive = !self.alive[name];
        self.alive.insert(name, alive);
        self.show(|| format!("{name} is alive: {alive}"));
        if !alive && self.chance(30) {
            let key = Key::of::<Node>("", name);
            let target = Target { key, uid: String::new(), revision: String::new() };
            _ = self.api.delete(&target, None, None);
            // Who deletes the object says that the machine is gone, and what ran there with it.
            self.guests.retain(|(node, _), _| *node != name);
        }
    }

    /// What the nodes that are alive do: say so, start Pods, end Pods; each with this chance.
    pub(super) fn kubelets(&mut self, percent: u32) {
        for name in NODES.into_iter().filter(|name| self.alive[name]).collect::<Vec<_>>() {
            self.say_alive(name);
            let here = self.api.briefs.iter().filter(|(_, brief)| brief.node == name);
            let bound: Vec<Key> = here.clone().map(|(key, _)| key.clone()).collect();
            let known: BTreeSet<&str> = here.map(|(_, brief)| brief.uid.as_str()).collect();
            self.guests.retain(|(node, pod), _| *node != name || known.contains(pod.as_str()));
            for key in bound {
                if !self.chance(percent) {
                    continue;
                }
                let pod = self.api.objects[&key].clone();
                let target = Target { key, uid: String::new(), revision: String::new() };
                let fails = percent < 100 && self.chance(2);
                let runs_to_an_end = !label(&pod, JOB_LABEL).is_empty();
                let guest = (name, uid(&pod).to_string());
                let _ = match (is_deleting(&pod), text(&pod, "/status/phase")) {
                    (true, _) => {
                        self.guests.remove(&guest);
                        self.api.delete(&target, Some(0), None)
                    }
                    (_, "Pending") => {
                        let name = text(&pod, "/metadata/name").to_string();
                        self.guests.insert(guest, (name, owner(&pod).to_string()));
                        self.api.patch(&target, &running(&pod, self.clock.now))
                    }
                    (_, "Running") if fails => {
                        self.guests.remove(&guest);
                        self.api.patch(&target, &ended("Failed", self.clock.now))
                    }
                    (_, "Running") if runs_to_an_end => {
                        self.guests.remove(&guest);
                        self.succeeded.insert((guest.1, index_of(&pod)), owner(&pod).to_string());
                        self.api.patch(&target, &ended("Succeeded", self.clock.now))
                    }
                    _ => continue,
                };
                self.check();
            }
        }
    }

    fn say_alive(&mut self, name: &str) {
        let key = Key::of::<Node>("", name);
        if !self.api.objects.contains_key(&key) {
            let cpu = format!("{NODE_CPU_MILLIS}m");
            let status = json!({
                "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": NODE_PODS.to_string()},
                "conditions": [{"type": "Ready", "status": "True", "reason": "NodeReady"}],
            });
            let labels = json!({"kubernetes.io/hostname": name});
            let node = json!({"metadata": {"labels": labels}, "status": status});
            let created = self.api.create(&key, node);
            created.expect("the node registers itself");
        }
        let key = Key::of::<Lease>(LEASE_NAMESPACE, name);
        let lease = json!({"spec": {"holderIdentity": self.clock.now.to_string()}});
        let target = Target { key, uid: String::new(), revision: String::new() };
        if self.api.patch(&target, &lease).is_err() {
            self.api.create(&target.key, lease).expect("it was not there");
        }
    }
}

/// What a node says of a Pod that runs.
fn running(pod: &Value, now: Timestamp) -> Value {
    let address: String = text(pod, "/metadata/uid").trim_start_matches("uid-").to_string();
    let number: u32 = address.parse().expect("uids are numbers");
    let status = json!({
        "phase": "Running",
        "podIP": std::net::Ipv4Addr::from(0x0A00_0000 + number).to_string(),
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [{
            "name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "",
        }],
    });
    json!({"status": status})
}

fn ended(phase: &str, now: Timestamp) -> Value {
    let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
    let finished = json!({"exitCode": i32::from(phase == "Failed"), "finishedAt": now});
    let container = json!({
        "name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": finished},
    });
    json!({"status": {
        "phase": phase, "conditions": [ready], "containerStatuses": [container],
    }})
}

/// The index of a Job's Pod, or nothing.
fn index_of(pod: &Value) -> String {
    let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
    index.as_str().unwrap_or("").to_string()
}
