//! The loop's part in running without a server.

use crate::agent::{offline::Kept, pods::Input, spec, watch::Change};

use super::Pods;

impl Pods {
    /// Takes what was kept of the kinds that no watch has listed.
    pub(super) fn offline(&mut self, kept: Kept) {
        let live = self.live;
        let network = live.services && live.slices && live.nodes;
        if live.pods && network && live.policies && live.namespaces {
            return;
        }
        self.parts.away.note_silence();
        tracing::info!(
            pods = kept.pods.len(),
            services = kept.services.len(),
            "no server has answered yet; running what was kept"
        );
        if !live.policies {
            for (name, policy) in kept.policies {
                self.unconfirmed.policies.insert(name.clone());
                self.parts.fleet.set_policy(name, policy);
            }
            self.parts.fleet.policies_synced();
        }
        if !live.namespaces {
            for (name, labels) in kept.namespaces {
                self.unconfirmed.namespaces.insert(name.clone());
                self.parts.fleet.set_namespace(name, labels);
            }
            self.parts.fleet.namespaces_synced();
        }
        if !live.nodes {
            for node in kept.nodes {
                self.unconfirmed.nodes.insert(node.name.clone());
                self.node(Change::Apply(node));
            }
            self.parts.fleet.nodes_synced();
        }
        if !live.services {
            for service in kept.services {
                let name = (service.namespace.clone(), service.name.clone());
                self.unconfirmed.services.insert(name);
                self.parts.fleet.set_service(service);
            }
            self.parts.fleet.services_synced();
        }
        if !live.slices {
            for slice in kept.slices {
                self.unconfirmed.slices.insert((slice.namespace.clone(), slice.name.clone()));
                self.parts.fleet.set_slice(slice);
            }
            self.parts.fleet.slices_synced();
        }
        if !live.pods {
            for pod in kept.pods {
                let Some((desired, api)) = spec::read(pod) else { continue };
                if !self.entries.contains_key(&desired.spec.uid) {
                    self.unconfirmed.pods.insert(desired.spec.uid.clone());
                    self.apply(desired, api);
                }
            }
        }
        self.process_all();
    }

    /// A watch has spoken of something: the checkpoint's word is no longer needed. After its list is
    /// complete, what only the checkpoint knew is gone.
    pub(super) fn confirm(&mut self, input: &Input) {
        let unconfirmed = &mut self.unconfirmed;
        match input {
            Input::Pod(Change::Apply(pod)) => {
                unconfirmed.pods.remove(&pod.0.spec.uid);
            }
            Input::Service(Change::Apply(service)) => {
                unconfirmed.services.remove(&(service.namespace.clone(), service.name.clone()));
            }
            Input::Slice(Change::Apply(slice)) => {
                unconfirmed.slices.remove(&(slice.namespace.clone(), slice.name.clone()));
            }
            Input::Node(Change::Apply(node)) => {
                unconfirmed.nodes.remove(&node.name);
            }
            Input::Policy(Change::Apply((name, _))) => {
                unconfirmed.policies.remove(name);
            }
            Input::Namespace(Change::Apply((name, _))) => {
                unconfirmed.namespaces.remove(name);
            }
            Input::Policy(Change::Synced) => {
                self.live.policies = true;
                for name in std::mem::take(&mut unconfirmed.policies) {
                    self.parts.fleet.remove_policy(&name);
                }
            }
            Input::Namespace(Change::Synced) => {
                self.live.namespaces = true;
                for name in std::mem::take(&mut unconfirmed.namespaces) {
                    self.parts.fleet.remove_namespace(&name);
                }
            }
            Input::Pod(Change::Synced) => {
                self.live.pods = true;
                for uid in std::mem::take(&mut unconfirmed.pods) {
                    tracing::info!(uid, "a Pod was deleted while no server could be reached");
                    self.deleted(&uid);
                }
            }
            Input::Service(Change::Synced) => {
                self.live.services = true;
                for (namespace, name) in std::mem::take(&mut unconfirmed.services) {
                    self.parts.fleet.remove_service(&namespace, &name);
                }
            }
            Input::Slice(Change::Synced) => {
                self.live.slices = true;
                for (namespace, name) in std::mem::take(&mut unconfirmed.slices) {
                    self.parts.fleet.remove_slice(&namespace, &name);
                }
            }
            Input::Node(Change::Synced) => {
                self.live.nodes = true;
                for name in std::mem::take(&mut unconfirmed.nodes) {
                    self.parts.fleet.remove_node(&name);
                }
            }
            _ => {}
        }
    }
}
