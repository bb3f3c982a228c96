//! Services and where their traffic goes.
//!
//! The agent watches Services, EndpointSlices and Nodes, keeps of each only what routing needs, and
//! builds for every Service one [`ServiceRoute`], which all workers of the node get. Building is a
//! pure function of the table; a change is sent only if the route differs from the one sent before.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

use serde::{Deserialize, Serialize};

use crate::protocol::{Endpoint, Protocol, RoutePort, ServiceKey, ServiceRoute};

use super::spec::transport;

/// Annotation on a Node: `{"<namespace>":"<ip>:<port>"}`, the peer listeners of its workers.
pub const ANNOTATION_WORKERS: &str = "wherry.dev/workers";
/// Label on an EndpointSlice that names its Service.
const LABEL_SERVICE: &str = "kubernetes.io/service-name";

/// What routing needs of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Virtual addresses; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name, empty if it has none.
    pub name: String,
    /// Port of the virtual address.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Port on the nodes.
    pub node_port: Option<u16>,
}

/// What routing needs of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service it belongs to.
    pub service: String,
    /// Port name and target port.
    pub ports: Vec<(String, Protocol, u16)>,
    /// Addresses of ready endpoints and their nodes.
    pub ready: Vec<(IpAddr, Option<String>)>,
}

/// What routing needs of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Peer listeners by namespace.
    pub workers: BTreeMap<String, SocketAddr>,
    /// `spec.podCIDRs`: where addresses of its Pods are from.
    #[serde(default)]
    pub pod_cidrs: Vec<String>,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
}

/// Reads a Service. `None` for one without a name, and for `ExternalName`, which is only a name.
pub fn service(object: Service) -> Option<ServiceInfo> {
    let spec = object.spec?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let addresses = spec.cluster_ips.or_else(|| spec.cluster_ip.map(|ip| vec![ip]));
    let ports = spec.ports.into_iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.unwrap_or_default(),
            port: u16::try_from(port.port).ok()?,
            protocol: transport(port.protocol.as_deref())?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
        })
    });
    Some(ServiceInfo {
        namespace: object.metadata.namespace?,
        name: object.metadata.name?,
        cluster_ips: addresses.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
        ports: ports.filter(|port| port.port > 0).collect(),
    })
}

/// Reads an EndpointSlice. `None` for one that belongs to no Service or has no IP addresses.
pub fn slice(object: EndpointSlice) -> Option<SliceInfo> {
    let service = object.metadata.labels?.remove(LABEL_SERVICE)?;
    let ports = object.ports.into_iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.unwrap_or_default(), transport(port.protocol.as_deref())?, number))
    });
    let ready = object.endpoints.into_iter().flatten().filter_map(|endpoint| {
        let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        // Further addresses of one endpoint are the same Pod.
        let address = endpoint.addresses.first()?.parse().ok()?;
        ready.then_some((address, endpoint.node_name))
    });
    Some(SliceInfo {
        namespace: object.metadata.namespace?,
        name: object.metadata.name?,
        service,
        ports: ports.collect(),
        ready: ready.collect(),
    })
}

/// Reads a Node.
pub fn node(object: Node) -> Option<NodeInfo> {
    let annotations = object.metadata.annotations.unwrap_or_default();
    let workers = annotations
        .get(ANNOTATION_WORKERS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let ready = object
        .status
        .and_then(|status| status.conditions)
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let spec = object.spec.unwrap_or_default();
    let mut pod_cidrs = spec.pod_cidrs.unwrap_or_default();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.pod_cidr);
    }
    Some(NodeInfo { name: object.metadata.name?, workers, pod_cidrs, ready })
}

/// Services, slices and nodes as they are now, and the routes that follow.
#[derive(Default)]
pub struct Table {
    services: BTreeMap<ServiceKey, ServiceInfo>,
    slices: BTreeMap<ServiceKey, BTreeMap<String, SliceInfo>>,
    /// Service of each slice, because a deleted slice may come without its labels.
    slice_service: HashMap<(String, String), String>,
    nodes: HashMap<String, NodeInfo>,
    routes: BTreeMap<ServiceKey, ServiceRoute>,
}

/// What a change did to the routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// This route is new or different.
    Upsert(ServiceRoute),
    /// This route is gone.
    Remove(ServiceKey),
}

impl Table {
    /// Takes a Service.
    pub fn set_service(&mut self, service: ServiceInfo) -> Option<Changed> {
        let key = ServiceKey { namespace: service.namespace.clone(), name: service.name.clone() };
        self.services.insert(key.clone(), service);
        self.rebuild(key)
    }

    /// Forgets a Service.
    pub fn remove_service(&mut self, namespace: &str, name: &str) -> Option<Changed> {
        let key = ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() };
        self.services.remove(&key);
        self.rebuild(key)
    }

    /// Takes an EndpointSlice.
    pub fn set_slice(&mut self, slice: SliceInfo) -> Vec<Changed> {
        let id = (slice.namespace.clone(), slice.name.clone());
        let moved = self.slice_service.get(&id).is_some_and(|old| *old != slice.service);
        let mut changes = Vec::new();
        if moved {
            changes.extend(self.remove_slice(&slice.namespace, &slice.name));
        }
        let key = ServiceKey { namespace: slice.namespace.clone(), name: slice.service.clone() };
        self.slice_service.insert(id, slice.service.clone());
        self.slices.entry(key.clone()).or_default().insert(slice.name.clone(), slice);
        changes.extend(self.rebuild(key));
        changes
    }

    /// Forgets an EndpointSlice.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) -> Option<Changed> {
        let service = self.slice_service.remove(&(namespace.to_owned(), name.to_owned()))?;
        let key = ServiceKey { namespace: namespace.to_owned(), name: service };
        if let Some(slices) = self.slices.get_mut(&key) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&key);
            }
        }
        self.rebuild(key)
    }

    /// Takes a Node. Its workers' addresses are part of the routes to its Pods.
    pub fn set_node(&mut self, node: NodeInfo) -> Vec<Changed> {
        let name = node.name.clone();
        let same = self.nodes.get(&name).is_some_and(|known| known.workers == node.workers);
        self.nodes.insert(name.clone(), node);
        if same { Vec::new() } else { self.rebuild_node(&name) }
    }

    /// Forgets a Node.
    pub fn remove_node(&mut self, name: &str) -> Vec<Changed> {
        self.nodes.remove(name);
        self.rebuild_node(name)
    }

    /// Every route.
    pub fn routes(&self) -> Vec<ServiceRoute> {
        self.routes.values().cloned().collect()
    }

    /// The Services that give variables to Pods of a namespace.
    pub fn services_for(&self, namespace: &str) -> Vec<ServiceInfo> {
        let kubernetes =
            ServiceKey { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        let first = ServiceKey { namespace: namespace.to_owned(), name: String::new() };
        let own = self.services.range(first..).map(|(_, service)| service);
        let own = own.take_while(|service| service.namespace == namespace);
        let default = (namespace != "default").then(|| self.services.get(&kubernetes)).flatten();
        default.into_iter().chain(own).cloned().collect()
    }

    /// Whether a namespace has a Service with a port on the nodes.
    pub fn has_node_port(&self, namespace: &str) -> bool {
        let first = ServiceKey { namespace: namespace.to_owned(), name: String::new() };
        self.services
            .range(first..)
            .take_while(|(key, _)| key.namespace == namespace)
            .any(|(_, service)| service.ports.iter().any(|port| port.node_port.is_some()))
    }

    fn rebuild(&mut self, key: ServiceKey) -> Option<Changed> {
        let Some(service) = self.services.get(&key) else {
            return self.routes.remove(&key).map(|_| Changed::Remove(key));
        };
        let empty = BTreeMap::new();
        let slices = self.slices.get(&key).unwrap_or(&empty);
        let route = route(service, slices.values(), &self.nodes);
        if self.routes.get(&key) == Some(&route) {
            return None;
        }
        self.routes.insert(key, route.clone());
        Some(Changed::Upsert(route))
    }

    fn rebuild_node(&mut self, node: &str) -> Vec<Changed> {
        let touches =
            |slice: &SliceInfo| slice.ready.iter().any(|(_, of)| of.as_deref() == Some(node));
        let keys: Vec<ServiceKey> = self
            .slices
            .iter()
            .filter(|(_, slices)| slices.values().any(touches))
            .map(|(key, _)| key.clone())
            .collect();
        keys.into_iter().filter_map(|key| self.rebuild(key)).collect()
    }
}

/// The route of one Service.
pub fn route<'a>(
    service: &ServiceInfo,
    slices: impl Iterator<Item = &'a SliceInfo> + Clone,
    nodes: &HashMap<String, NodeInfo>,
) -> ServiceRoute {
    let ports = service.ports.iter().map(|port| {
        let mut endpoints = Vec::new();
        for slice in slices.clone() {
            let target = slice
                .ports
                .iter()
                .find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
            let Some((_, _, target)) = target else {
                continue;
            };
            for (address, node) in &slice.ready {
                let peer = node
                    .as_ref()
                    .and_then(|node| nodes.get(node))
                    .and_then(|node| node.workers.get(&slice.namespace).copied());
                endpoints.push(Endpoint {
                    address: SocketAddr::new(*address, *target),
                    namespace: slice.namespace.clone(),
                    node: node.clone(),
                    peer,
                });
            }
        }
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        RoutePort {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol,
            node_port: port.node_port,
            endpoints,
        }
    });
    ServiceRoute {
        key: ServiceKey { namespace: service.namespace.clone(), name: service.name.clone() },
        cluster_ips: service.cluster_ips.clone(),
        ports: ports.collect(),
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
