//! Services, where their traffic goes, and who may reach whom.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::Protocol;

/// A change of the routing table. Every worker gets the routes of all namespaces (a guest may call
/// any Service) and binds node ports only for its own namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Services {
    /// The whole table: what is not in it is gone. First message after `Hello`.
    Replace(Vec<ServiceRoute>),
    /// New or changed Services, each whole.
    Upsert(Vec<ServiceRoute>),
    /// Services that are gone.
    Remove(Vec<ServiceKey>),
}

/// Names a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A Service and where its traffic goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceRoute {
    /// Which Service.
    pub key: ServiceKey,
    /// Its virtual addresses; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `ExternalName`: the name that its own stands for.
    pub external_name: Option<String>,
    /// `sessionAffinity: ClientIP`: how long a client keeps its Pod, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Addresses at which a `LoadBalancer` is reached through this node, besides its node ports.
    pub balancer_ips: Vec<IpAddr>,
    /// Those of them that Pods reach as well: of a pool, and open to everybody.
    pub pool_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`: who may come in by those addresses; empty for everybody.
    pub source_ranges: Vec<String>,
    /// Requests wait for a Pod while there is none: its workload comes back from zero on demand.
    pub hold: bool,
    /// Where balancers in front of the nodes ask whether this one has Pods of it.
    pub health: Option<HealthPort>,
    /// Its ports.
    pub ports: Vec<RoutePort>,
}

/// `healthCheckNodePort`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPort {
    /// Port on each node.
    pub port: u16,
    /// Ready endpoints on this node.
    pub endpoints: usize,
}

/// One port of a Service with its ready endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutePort {
    /// Port name, empty if it has none.
    pub name: String,
    /// Port of the Service's virtual address.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Port on each node, for `NodePort` and `LoadBalancer`.
    pub node_port: Option<u16>,
    /// Endpoints, in the order of their addresses.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The Pod's address and target port. The receiving worker finds its Pod by it.
    pub address: SocketAddr,
    /// Namespace of the Pod: the organisation that the peer's certificate must name.
    pub namespace: String,
    /// Node of the Pod: the common name that the peer's certificate must have. Absent for an
    /// endpoint that is no Pod.
    pub node: Option<String>,
    /// Peer listener of the worker that holds the Pod. Unused when the Pod is the worker's own;
    /// absent while it is not known, then the endpoint cannot be reached from elsewhere.
    pub peer: Option<SocketAddr>,
    /// Callers within the cluster are sent to it.
    pub internal: bool,
    /// Callers from outside (node ports, balancers) are sent to it.
    pub external: bool,
    /// It is no Pod but an address outside of the cluster that may be called.
    #[serde(default)]
    pub outside: bool,
    /// `spec.hostname` of a Pod that has a name of its own below a headless Service.
    #[serde(default)]
    pub hostname: Option<String>,
}

impl Endpoint {
    /// Its own name below that of its Service: the Pod's; below a headless one else its address.
    pub fn name_below(&self, headless: bool) -> Option<String> {
        let dashed = || self.address.ip().to_canonical().to_string().replace(['.', ':'], "-");
        self.hostname.clone().or_else(|| headless.then(dashed))
    }
}

/// The address that a name made of one stands for: `10-64-0-7`, `fd00--7`.
pub fn dashed_address(name: &str) -> Option<IpAddr> {
    let v4 = name.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| name.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

/// A node and the workers on it: the way to Pods that are behind no Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRoute {
    /// Its name: the common name that its workers' certificates must have.
    pub name: String,
    /// Addresses of its Pods.
    pub pod_cidrs: Vec<String>,
    /// Peer listeners by namespace.
    pub workers: BTreeMap<String, SocketAddr>,
}

/// A change of what nodes there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Nodes {
    /// All of them: what is not named is gone.
    Replace(Vec<NodeRoute>),
    /// New or changed ones.
    Upsert(Vec<NodeRoute>),
    /// One that is gone.
    Remove(String),
}

/// All that policies need. Sent as a whole: it changes seldom, and half of it would be wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policies {
    /// Every NetworkPolicy, with name, namespace, annotations and spec.
    pub policies: Vec<NetworkPolicy>,
    /// Labels of every namespace; empty while no policy could ask for them.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Addresses of nodes and of the control plane, which no policy opens.
    pub machines: Vec<IpAddr>,
}

/// From where a policy looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Somebody came to the Pod.
    Ingress,
    /// The Pod went to somebody.
    Egress,
}

/// Connections that were refused, or would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// The Pod whose policies said no.
    pub uid: String,
    /// Which way.
    pub direction: Direction,
    /// One sentence for people.
    pub message: String,
    /// Policies only look: it was let through.
    pub audit: bool,
    /// How often since the last report.
    pub count: u32,
}

/// Requests that wait for a Service whose workload is at zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// For which Service.
    pub service: ServiceKey,
    /// How many.
    pub waiting: u32,
}
