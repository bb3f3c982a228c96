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
            let on_node = |(key, pod): (&Key, &Value)| {
                (key.kind.kind == "Pod" && text(pod, "/spec/nodeName") == name)
                    .then(|| (key.clone(), pod.clone()))
            };
            let bound: Vec<(Key, Value)> = self.api.objects.iter().filter_map(on_node).collect();
            let known: BTreeSet<&str> = bound.iter().map(|(_, pod)| uid(pod)).collect();
            self.guests.retain(|(node, pod), _| *node != name || known.contains(pod.as_str()));
            for (key, pod) in bound {
                if !self.chance(percent) {
                    continue;
                }
                let target = Target { key, uid: String::new(), revision: String::new() };
                let fails = percent < 100 && self.chance(2);
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
                        self.api.patch(&target, &failed(self.clock.now))
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

fn failed(now: Timestamp) -> Value {
    let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
    json!({"status": {"phase": "Failed", "conditions": [ready]}})
}
