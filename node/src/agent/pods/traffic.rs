//! The loop's part in where traffic goes, and who may reach whom.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{Name, Pods};
use crate::{
    agent::{
        routes::{NodeInfo, ServiceInfo},
        watch::Change,
    },
    protocol::{Denial, INGRESS_NAMESPACE, NodePort},
};

impl Pods {
    pub(super) fn service(&mut self, change: Change<ServiceInfo, Name>) {
        match change {
            Change::Apply(service) => self.parts.fleet.set_service(service),
            Change::Delete((namespace, name)) => {
                self.parts.fleet.remove_service(&namespace, &name);
            }
            Change::Synced => {
                self.parts.fleet.services_synced();
                self.process_all();
            }
        }
    }

    pub(super) fn node(&mut self, change: Change<NodeInfo, String>) {
        match change {
            Change::Apply(node) => {
                let own = node.name == self.parts.node;
                let blocks = if own { node.pod_cidrs.clone() } else { Vec::new() };
                self.parts.fleet.set_node(node);
                if !blocks.is_empty() {
                    let before = self.addresses.count();
                    if let Err(block) = self.addresses.set_blocks(&blocks) {
                        tracing::error!(block, "spec.podCIDRs of this node has no IPv4 block here");
                    }
                    if self.addresses.count() > before {
                        tracing::info!(?blocks, "Pod addresses");
                        self.process_all();
                    }
                }
            }
            Change::Delete(name) => self.parts.fleet.remove_node(&name),
            Change::Synced => {
                self.parts.fleet.nodes_synced();
                self.process_all();
            }
        }
    }

    pub(super) fn policy(&mut self, change: Change<(Name, NetworkPolicy), Name>) {
        match change {
            Change::Apply((name, policy)) => self.parts.fleet.set_policy(name, policy),
            Change::Delete(name) => self.parts.fleet.remove_policy(&name),
            Change::Synced => {
                self.parts.fleet.policies_synced();
                self.process_all();
            }
        }
    }

    pub(super) fn namespace(&mut self, change: Change<(String, BTreeMap<String, String>), String>) {
        match change {
            Change::Apply((name, labels)) => self.parts.fleet.set_namespace(name, labels),
            Change::Delete(name) => self.parts.fleet.remove_namespace(&name),
            Change::Synced => {
                self.parts.fleet.namespaces_synced();
                self.process_all();
            }
        }
    }

    /// A port of the node was opened, or closed, or could not be opened: whoever looks at the Service
    /// shall see why nobody answers.
    pub(super) fn node_port(&self, namespace: &str, port: &NodePort) {
        self.parts.fleet.node_port(namespace, port);
        if let Some(error) = &port.error {
            let node = &self.parts.node;
            let message = format!("node {node} does not serve port {}: {error}", port.port);
            let uid = self.parts.fleet.service_uid(namespace, &port.service);
            let service = (port.service.as_str(), uid);
            let events = &self.parts.events;
            events.warning_of_service(namespace, service, "NodePortUnavailable", message);
        }
    }

    /// Ports of Ingresses and Gateways that this node cannot have: the Node says why nobody answers there.
    pub(super) fn ports_refused(&mut self, namespace: &str, refused: BTreeMap<u16, String>) {
        // No other worker has any.
        if namespace != INGRESS_NAMESPACE {
            return;
        }
        for why in refused.values() {
            let message = format!("Ingresses and Gateways are not served: {why}");
            self.parts.events.of_node(&self.parts.node, "IngressPortUnavailable", message, true);
        }
        self.parts.fleet.set_refused(refused);
    }

    /// Policies refused connections of a Pod: its owner shall see that.
    pub(super) fn denied(&self, denial: &Denial) {
        let Some(entry) = self.entries.get(&denial.uid) else { return };
        let reason = match denial.audit {
            true => "NetworkPolicyAudit",
            false => "NetworkPolicyDenied",
        };
        let spec = &entry.desired.spec;
        self.parts.events.warning_of_pod(spec, reason, denial.message.clone());
    }
}
