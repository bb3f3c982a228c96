//! Services and where their traffic goes.
//!
//! The agent watches Services, EndpointSlices and Nodes, keeps of each only what routing needs, and
//! builds for every Service one [`ServiceRoute`], which all workers of the node get. Building is a
//! pure function of the table; a change is sent only if the route differs from the one sent before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

use serde::{Deserialize, Serialize};
use wherry_resources::demand::HOLD;

use crate::protocol::{
    Endpoint, HealthPort, NodeRoute, Protocol, RoutePort, ServiceKey, ServiceRoute,
};

use super::spec::transport;

/// Annotation on a Node: `{"<namespace>":"<ip>:<port>"}`, the peer listeners of its workers.
pub const ANNOTATION_WORKERS: &str = "wherry.dev/workers";
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// How long a client keeps its Pod if the Service does not say, as in Kubernetes.
const AFFINITY_SECONDS: u32 = 10_800;
/// Services of a namespace that its Pods have variables of: each Pod has some seven of each Service,
/// about a kilobyte. Where there are more there are none, as with `enableServiceLinks: false`.
const LINKS_MAX: usize = 256;
/// Label on an EndpointSlice that names its Service.
const LABEL_SERVICE: &str = "kubernetes.io/service-name";

/// What routing needs of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, for events.
    pub uid: String,
    /// Virtual addresses; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `externalName` of a Service of that type.
    pub external_name: Option<String>,
    /// `sessionAffinity: ClientIP`, with its time.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `trafficDistribution`
    pub prefer: Option<Prefer>,
    /// Addresses that its status says it is balanced at.
    pub balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`
    pub source_ranges: Vec<String>,
    /// `healthCheckNodePort`
    pub health_port: Option<u16>,
}

/// `trafficDistribution`: which endpoints are preferred while there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefer {
    /// Those of the node, else those of its zone.
    SameNode,
    /// Those of the zone.
    SameZone,
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

impl ServicePort {
    /// Stands for all ports of a headless Service that names none.
    fn any() -> ServicePort {
        ServicePort { name: String::new(), port: 0, protocol: Protocol::Tcp, node_port: None }
    }
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
    /// Its endpoints.
    pub endpoints: Vec<EndpointInfo>,
    /// [`HOLD`]: requests wait for a Pod while there is none.
    #[serde(default)]
    pub hold: bool,
}

/// What routing needs of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Its first address; further ones are the same Pod.
    pub address: IpAddr,
    /// Its node.
    pub node: Option<String>,
    /// Its zone, if the slice says it.
    pub zone: Option<String>,
    /// The Pod's name of its own.
    pub hostname: Option<String>,
    /// It takes new connections.
    pub ready: bool,
    /// It ends, but still answers: for when nobody else is there.
    pub draining: bool,
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
    /// Label `topology.kubernetes.io/zone`.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Reads a Service. `None` for one without a name.
pub fn service(object: Service) -> Option<ServiceInfo> {
    let spec = object.spec?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let external_name = spec.external_name.filter(|_| kind == "ExternalName");
    let balanced = object.status.filter(|_| kind == "LoadBalancer");
    let balanced = balanced.and_then(|status| status.load_balancer?.ingress);
    let addresses = spec.cluster_ips.or_else(|| spec.cluster_ip.map(|ip| vec![ip]));
    let ports = spec.ports.into_iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.unwrap_or_default(),
            port: u16::try_from(port.port).ok()?,
            protocol: transport(port.protocol.as_deref())?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
        })
    });
    let cluster_ips: Vec<IpAddr> =
        addresses.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    // The names of a headless Service stand for its Pods, wherever they are.
    let headless = external_name.is_none() && cluster_ips.is_empty();
    let only_local = |policy: Option<String>| !headless && policy.as_deref() == Some("Local");
    let affine = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    Some(ServiceInfo {
        namespace: object.metadata.namespace?,
        name: object.metadata.name?,
        uid: object.metadata.uid.unwrap_or_default(),
        cluster_ips,
        ports: ports.filter(|port| port.port > 0).collect(),
        external_name,
        affinity_seconds: affine.then(|| seconds.unwrap_or(AFFINITY_SECONDS)),
        internal_local: only_local(spec.internal_traffic_policy),
        external_local: only_local(spec.external_traffic_policy),
        prefer: match spec.traffic_distribution.as_deref().filter(|_| !headless) {
            Some("PreferSameNode") => Some(Prefer::SameNode),
            Some("PreferSameZone" | "PreferClose") => Some(Prefer::SameZone),
            _ => None,
        },
        balancer_ips: balanced
            .into_iter()
            .flatten()
            .filter_map(|ingress| ingress.ip?.parse().ok())
            .collect(),
        source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
        health_port: spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()),
    })
}

/// Reads an EndpointSlice. `None` for one that belongs to no Service.
pub fn slice(object: EndpointSlice) -> Option<SliceInfo> {
    let service = object.metadata.labels?.remove(LABEL_SERVICE)?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    let ports = object.ports.into_iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.unwrap_or_default(), transport(port.protocol.as_deref())?, number))
    });
    let endpoints = object.endpoints.into_iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(ready);
        Some(EndpointInfo {
            address: endpoint.addresses.first()?.parse().ok()?,
            node: endpoint.node_name,
            zone: endpoint.zone,
            hostname: endpoint.hostname,
            ready,
            draining: serving && !ready && conditions.terminating == Some(true),
        })
    });
    Some(SliceInfo {
        namespace: object.metadata.namespace?,
        name: object.metadata.name?,
        service,
        ports: ports.collect(),
        endpoints: endpoints.collect(),
        hold: annotations.get(HOLD).is_some_and(|value| value == "true"),
    })
}

/// Reads a Node.
pub fn node(object: Node) -> Option<NodeInfo> {
    let annotations = object.metadata.annotations.unwrap_or_default();
    let workers = annotations
        .get(ANNOTATION_WORKERS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let ready = status
        .conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let addresses = status.addresses.into_iter().flatten();
    let spec = object.spec.unwrap_or_default();
    let mut pod_cidrs = spec.pod_cidrs.unwrap_or_default();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.pod_cidr);
    }
    Some(NodeInfo {
        name: object.metadata.name?,
        workers,
        pod_cidrs,
        ready,
        zone: object.metadata.labels.and_then(|mut labels| labels.remove(LABEL_ZONE)),
        addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
    })
}

/// Services, slices and nodes as they are now, and the routes that follow.
#[derive(Default)]
pub struct Table {
    /// Name of this node: what is near is near to it.
    here: String,
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
    /// Nothing is known yet.
    pub fn new(here: &str) -> Table {
        Table { here: here.to_owned(), ..Table::default() }
    }

    /// A Service's uid, empty if it is not known.
    pub fn service_uid(&self, namespace: &str, name: &str) -> String {
        let key = ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() };
        self.services.get(&key).map(|service| service.uid.clone()).unwrap_or_default()
    }

    /// Addresses of the nodes and of the control plane's members.
    pub fn machines(&self) -> Vec<IpAddr> {
        let kubernetes = ServiceKey { namespace: "default".into(), name: "kubernetes".into() };
        let members = self.slices.get(&kubernetes).into_iter().flat_map(BTreeMap::values);
        let members = members.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address);
        let nodes = self.nodes.values().flat_map(|node| node.addresses.iter().copied());
        let mut all: Vec<IpAddr> = members.chain(nodes).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Addresses of a node, as far as they are known.
    pub fn addresses_of(&self, node: &str) -> &[IpAddr] {
        self.nodes.get(node).map_or(&[], |node| &node.addresses)
    }

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
        let same = self.nodes.get(&name).is_some_and(|known| {
            (&known.workers, &known.zone, &known.pod_cidrs, &known.addresses)
                == (&node.workers, &node.zone, &node.pod_cidrs, &node.addresses)
        });
        let addresses = node.addresses.clone();
        let before = self.nodes.insert(name.clone(), node);
        match same {
            true => Vec::new(),
            // What is near changes for every Service.
            false if name == self.here => self.rebuild_all(),
            false => {
                let mut changes = self.rebuild_node(&name);
                if before.is_none_or(|before| before.addresses != addresses) {
                    changes.extend(self.rebuild_balanced(&addresses));
                }
                changes
            }
        }
    }

    /// Where the workers of a node are, of which perhaps nothing else is known yet.
    pub fn set_workers(
        &mut self,
        name: &str,
        workers: BTreeMap<String, SocketAddr>,
    ) -> Vec<Changed> {
        let unknown = || NodeInfo {
            name: name.to_owned(),
            workers: BTreeMap::new(),
            pod_cidrs: Vec::new(),
            ready: true,
            zone: None,
            addresses: Vec::new(),
        };
        let node = self.nodes.entry(name.to_owned()).or_insert_with(unknown);
        node.workers = workers;
        self.rebuild_node(name)
    }

    /// Forgets a Node.
    pub fn remove_node(&mut self, name: &str) -> Vec<Changed> {
        self.nodes.remove(name);
        self.rebuild_node(name)
    }

    /// Every node, for whoever looks for a Pod by its address.
    pub fn node_routes(&self) -> Vec<NodeRoute> {
        self.nodes.values().map(node_route).collect()
    }

    /// One node.
    pub fn node_route(&self, name: &str) -> Option<NodeRoute> {
        self.nodes.get(name).map(node_route)
    }

    /// Every route.
    pub fn routes(&self) -> Vec<ServiceRoute> {
        self.routes.values().cloned().collect()
    }

    /// The Services that give variables to Pods of a namespace: that of the API, and with `links`
    /// those of the namespace, if they are not too many.
    pub fn services_for(&self, namespace: &str, links: bool) -> Vec<ServiceInfo> {
        let kubernetes =
            ServiceKey { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        let first = ServiceKey { namespace: namespace.to_owned(), name: String::new() };
        let own = self.services.range(first..).map(|(_, service)| service);
        let own = own.take_while(|service| service.namespace == namespace);
        let mut own: Vec<&ServiceInfo> = own.take(LINKS_MAX + 1).collect();
        if !links || own.len() > LINKS_MAX {
            own.clear();
        }
        let is_among = namespace == "default" && !own.is_empty();
        let default = self.services.get(&kubernetes).filter(|_| !is_among);
        default.into_iter().chain(own).cloned().collect()
    }

    /// Whether a namespace has a Service with a port on the nodes.
    pub fn has_node_port(&self, namespace: &str) -> bool {
        let first = ServiceKey { namespace: namespace.to_owned(), name: String::new() };
        self.services.range(first..).take_while(|(key, _)| key.namespace == namespace).any(
            |(_, service)| {
                let ports = service.ports.iter().any(|port| port.node_port.is_some());
                ports || service.health_port.is_some() || !service.balancer_ips.is_empty()
            },
        )
    }

    fn rebuild(&mut self, key: ServiceKey) -> Option<Changed> {
        let Some(service) = self.services.get(&key) else {
            return self.routes.remove(&key).map(|_| Changed::Remove(key));
        };
        let empty = BTreeMap::new();
        let slices = self.slices.get(&key).unwrap_or(&empty);
        let route = route(service, slices.values(), &self.nodes, &self.here);
        if self.routes.get(&key) == Some(&route) {
            return None;
        }
        self.routes.insert(key, route.clone());
        Some(Changed::Upsert(route))
    }

    fn rebuild_all(&mut self) -> Vec<Changed> {
        let keys: Vec<ServiceKey> = self.services.keys().cloned().collect();
        keys.into_iter().filter_map(|key| self.rebuild(key)).collect()
    }

    fn rebuild_node(&mut self, node: &str) -> Vec<Changed> {
        let touches = |slice: &SliceInfo| {
            slice.endpoints.iter().any(|endpoint| endpoint.node.as_deref() == Some(node))
        };
        let keys: Vec<ServiceKey> = self
            .slices
            .iter()
            .filter(|(_, slices)| slices.values().any(touches))
            .map(|(key, _)| key.clone())
            .collect();
        keys.into_iter().filter_map(|key| self.rebuild(key)).collect()
    }

    /// Services with a balancer at one of these addresses, which are known to be a node's now.
    fn rebuild_balanced(&mut self, addresses: &[IpAddr]) -> Vec<Changed> {
        let is_there = |service: &ServiceInfo| {
            service.balancer_ips.iter().any(|address| addresses.contains(address))
        };
        let there = self.services.iter().filter(|(_, service)| is_there(service));
        let keys: Vec<ServiceKey> = there.map(|(key, _)| key.clone()).collect();
        keys.into_iter().filter_map(|key| self.rebuild(key)).collect()
    }
}

/// The route of one Service, as seen from the node `here`.
pub fn route<'a>(
    service: &ServiceInfo,
    slices: impl Iterator<Item = &'a SliceInfo> + Clone,
    nodes: &HashMap<String, NodeInfo>,
    here: &str,
) -> ServiceRoute {
    let own = nodes.get(here);
    let near = Near { node: here, zone: own.and_then(|node| node.zone.as_deref()) };
    // The control plane is not reached by way of the Service that names it.
    let machines = service.namespace == "default" && service.name == "kubernetes";
    // A headless Service may have no ports: its names stand for Pods, which answer at theirs.
    let headless = service.cluster_ips.is_empty() && service.external_name.is_none();
    let portless = headless && service.ports.is_empty();
    let any = portless.then(ServicePort::any);
    // Who waits for a Pod that comes does not go to one that leaves.
    let hold = slices.clone().any(|slice| slice.hold);
    let ports = service.ports.iter().chain(&any).map(|port| {
        let mut found: Vec<(&EndpointInfo, u16, &str)> = Vec::new();
        for slice in slices.clone() {
            let target = slice
                .ports
                .iter()
                .find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
            let target = target.map(|(_, _, target)| target).or(portless.then_some(&0));
            if let Some(target) = target {
                let all = slice.endpoints.iter();
                found.extend(all.map(|endpoint| (endpoint, *target, slice.namespace.as_str())));
            }
        }
        found.sort_by_key(|(endpoint, target, _)| (endpoint.address, *target, !endpoint.ready));
        found.dedup_by_key(|(endpoint, target, _)| (endpoint.address, *target));
        let candidates: Vec<Candidate> =
            found.iter().map(|(endpoint, ..)| candidate(endpoint, nodes)).collect();
        let only_ready = headless || hold;
        let choose = |local_only| Choice { local_only, prefer: service.prefer, only_ready };
        let internal = chosen(&candidates, choose(service.internal_local), near);
        let external = chosen(&candidates, choose(service.external_local), near);
        let flags = internal.into_iter().zip(external);
        let endpoints = found.iter().zip(&candidates).zip(flags).map(
            |(((endpoint, target, namespace), candidate), (internal, external))| {
                let node = candidate.node.map(str::to_owned);
                let place = node.as_ref().and_then(|node| nodes.get(node));
                Endpoint {
                    address: SocketAddr::new(endpoint.address, *target),
                    namespace: (*namespace).to_owned(),
                    outside: node.is_none() && !machines,
                    node,
                    peer: place.and_then(|node| node.workers.get(*namespace).copied()),
                    internal,
                    external,
                    hostname: endpoint.hostname.clone(),
                }
            },
        );
        RoutePort {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol,
            node_port: port.node_port,
            endpoints: endpoints.collect(),
        }
    });
    // Another node's address is that node's to answer at; one of no node is of a pool. Pods reach no
    // node, and their own addresses are theirs.
    let is_balanced = !service.balancer_ips.is_empty();
    let others = nodes.values().filter(|node| is_balanced && node.name != here);
    let others: HashSet<&IpAddr> = others.flat_map(|node| &node.addresses).collect();
    let balancer_ips: Vec<IpAddr> =
        service.balancer_ips.iter().copied().filter(|ip| !others.contains(ip)).collect();
    let of_pool = |ip: &IpAddr| {
        let mut blocks = nodes.values().flat_map(|node| &node.pod_cidrs);
        let is_own = own.is_some_and(|node| node.addresses.contains(ip));
        !is_own && !blocks.any(|block| is_within(block, *ip))
    };
    let open = balancer_ips.iter().copied().filter(|_| service.source_ranges.is_empty());
    let health = service
        .health_port
        .map(|port| HealthPort { port, endpoints: ready_on(here, slices.clone(), nodes) });
    ServiceRoute {
        key: ServiceKey { namespace: service.namespace.clone(), name: service.name.clone() },
        cluster_ips: service.cluster_ips.clone(),
        external_name: service.external_name.clone(),
        affinity_seconds: service.affinity_seconds,
        pool_ips: open.filter(of_pool).collect(),
        balancer_ips,
        source_ranges: service.source_ranges.clone(),
        hold,
        health,
        ports: ports.collect(),
    }
}

/// How many ready endpoints a node has, whatever their ports.
fn ready_on<'a>(
    node: &str,
    slices: impl Iterator<Item = &'a SliceInfo>,
    nodes: &HashMap<String, NodeInfo>,
) -> usize {
    let all = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
    let there = all.filter(|endpoint| candidate(endpoint, nodes).node == Some(node));
    there.map(|endpoint| endpoint.address).collect::<BTreeSet<IpAddr>>().len()
}

fn node_route(node: &NodeInfo) -> NodeRoute {
    NodeRoute {
        name: node.name.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        workers: node.workers.clone(),
    }
}

/// From where is looked.
#[derive(Clone, Copy)]
struct Near<'a> {
    node: &'a str,
    zone: Option<&'a str>,
}

/// What the choice of an endpoint looks at.
struct Candidate<'a> {
    ready: bool,
    draining: bool,
    node: Option<&'a str>,
    zone: Option<&'a str>,
}

fn is_within(block: &str, address: IpAddr) -> bool {
    block.parse::<IpNet>().is_ok_and(|block| block.contains(&address.to_canonical()))
}

/// Where an endpoint is: what its slice says, else what follows from its node or address.
fn candidate<'a>(
    endpoint: &'a EndpointInfo,
    nodes: &'a HashMap<String, NodeInfo>,
) -> Candidate<'a> {
    let holds =
        |node: &&NodeInfo| node.pod_cidrs.iter().any(|block| is_within(block, endpoint.address));
    let by_address = || nodes.values().find(holds).map(|node| node.name.as_str());
    let node = endpoint.node.as_deref().or_else(by_address);
    let of_node = node.and_then(|node| nodes.get(node)).and_then(|node| node.zone.as_deref());
    Candidate {
        ready: endpoint.ready,
        draining: endpoint.draining,
        node,
        zone: endpoint.zone.as_deref().or(of_node),
    }
}

/// How a Service wants its endpoints to be chosen.
#[derive(Clone, Copy)]
struct Choice {
    /// Only those of this node.
    local_only: bool,
    /// The near ones first.
    prefer: Option<Prefer>,
    /// Nobody stands in for ready ones: its names stand for ready Pods and for no other, or its
    /// requests wait.
    only_ready: bool,
}

/// Which endpoints callers are sent to: the ready ones of the scope, without any those that end but
/// still answer; of these the near ones, if they are preferred and there are any.
fn chosen(all: &[Candidate], choice: Choice, near: Near<'_>) -> Vec<bool> {
    let Choice { local_only, prefer, only_ready } = choice;
    let same_node = |it: &Candidate| it.node == Some(near.node);
    let same_zone = |it: &Candidate| near.zone.is_some() && it.zone == near.zone;
    let narrowed = |before: &[bool], fits: &dyn Fn(&Candidate) -> bool| -> Vec<bool> {
        all.iter().zip(before).map(|(it, before)| *before && fits(it)).collect()
    };
    let scope: Vec<bool> = all.iter().map(|it| !local_only || same_node(it)).collect();
    let mut usable = narrowed(&scope, &|it| it.ready);
    if !usable.contains(&true) && !only_ready {
        usable = narrowed(&scope, &|it| it.draining);
    }
    let closer: &[&dyn Fn(&Candidate) -> bool] = match prefer {
        Some(Prefer::SameNode) => &[&same_node, &same_zone],
        Some(Prefer::SameZone) => &[&same_zone],
        None => &[],
    };
    let found = closer.iter().map(|fits| narrowed(&usable, fits)).find(|set| set.contains(&true));
    found.unwrap_or(usable)
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
