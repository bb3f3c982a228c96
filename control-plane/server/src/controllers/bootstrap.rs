//! What a cluster has from the start: its own namespaces, the system's priority classes, and the
//! Service `kubernetes` with the API server's address behind it.
//!
//! Owns: these objects. They are made when missing (after a deletion too); the endpoint is put
//! right when the API server's address changes. One key stands for all of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as AddressPort, EndpointSubset, Endpoints, Namespace, Service,
    ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

/// Namespaces of the system, in the order they are made.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Priority classes with their values: as in Kubernetes.
const PRIORITY_CLASSES: [(&str, i32); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
const SERVICE: &str = "kubernetes";
/// The first address of the Services' range; the API server's certificate names it.
const SERVICE_ADDRESS: &str = "172.20.0.1";
const SERVICE_PORT: i32 = 443;

/// What the plan reads.
#[derive(Default)]
pub struct Snapshot {
    pub namespaces: Vec<String>,
    pub priority_classes: Vec<String>,
    pub service: Option<Arc<Service>>,
    pub endpoints: Option<Arc<Endpoints>>,
    pub slice: Option<Arc<EndpointSlice>>,
    /// Where the API server listens.
    pub address: Option<SocketAddr>,
}

pub const CONTROLLER: Controller = Controller { name: "bootstrap", wake, reconcile };

/// The one key of this controller.
pub fn key() -> Key {
    Key::of::<Namespace>("", "")
}

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let (namespace, name) = (change.key.namespace(), change.key.name());
    let served = namespace == "default" && name == SERVICE;
    let own = match change.key.kind.kind {
        "Namespace" => NAMESPACES.contains(&name),
        "PriorityClass" => PRIORITY_CLASSES.iter().any(|(class, _)| *class == name),
        "Service" | "Endpoints" | "EndpointSlice" => served,
        _ => false,
    };
    if own {
        keys.push(key());
    }
}

fn reconcile(view: &View<'_>, _: &Key) -> Plan {
    let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
    let classes = view.cache.all::<PriorityClass>();
    let snapshot = Snapshot {
        namespaces: view.cache.all::<Namespace>().map(|held| name(&held.metadata)).collect(),
        priority_classes: classes.map(|held| name(&held.metadata)).collect(),
        service: view.cache.get("default", SERVICE),
        endpoints: view.cache.get("default", SERVICE),
        slice: view.cache.get("default", SERVICE),
        address: Some(view.config.api_address),
    };
    plan(&snapshot, view.now).into()
}

/// Makes what is missing. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    for name in NAMESPACES.iter().filter(|name| !contains(&snapshot.namespaces, name)) {
        writes.push(Write::create(&Namespace {
            metadata: ObjectMeta { name: Some((*name).to_string()), ..ObjectMeta::default() },
            ..Namespace::default()
        }));
    }
    let classes = PRIORITY_CLASSES.iter();
    for (name, value) in classes.filter(|(name, _)| !contains(&snapshot.priority_classes, name)) {
        writes.push(Write::create(&priority_class(name, *value)));
    }
    // What lives in a namespace has to wait until it exists: the next plan makes it.
    if contains(&snapshot.namespaces, "default") {
        writes.extend(api_service(snapshot));
    }
    writes
}

fn contains(names: &[String], name: &str) -> bool {
    names.iter().any(|held| held == name)
}

fn priority_class(name: &str, value: i32) -> PriorityClass {
    let what = if name.contains("node") { "a node" } else { "the cluster" };
    PriorityClass {
        metadata: ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() },
        value: Some(value),
        description: Some(format!("For Pods of the system that {what} cannot do without.")),
        preemption_policy: Some("PreemptLowerPriority".to_string()),
        ..PriorityClass::default()
    }
}

fn api_service(snapshot: &Snapshot) -> Vec<Write> {
    let mut writes = Vec::new();
    if snapshot.service.is_none() {
        writes.push(Write::create(&service()));
    }
    let Some(address) = snapshot.address else { return writes };
    let subsets = vec![subset(address)];
    match &snapshot.endpoints {
        None => {
            writes.push(Write::create(&Endpoints { metadata: meta(&[]), subsets: Some(subsets) }))
        }
        Some(held) if held.subsets.as_ref() != Some(&subsets) => {
            writes.push(Write::patch(&**held, json!({"subsets": subsets})));
        }
        Some(_) => {}
    }
    let wanted = slice(address);
    match &snapshot.slice {
        None => writes.push(Write::create(&wanted)),
        Some(held) if (&held.endpoints, &held.ports) != (&wanted.endpoints, &wanted.ports) => {
            let body = json!({"endpoints": wanted.endpoints, "ports": wanted.ports});
            writes.push(Write::patch(&**held, body));
        }
        Some(_) => {}
    }
    writes
}

fn meta(labels: &[(&str, &str)]) -> ObjectMeta {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
    ObjectMeta {
        name: Some(SERVICE.to_string()),
        namespace: Some("default".to_string()),
        labels: (!labels.is_empty()).then_some(labels),
        ..ObjectMeta::default()
    }
}

fn service() -> Service {
    Service {
        metadata: meta(&[("component", "apiserver"), ("provider", "kubernetes")]),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_string()),
            cluster_ip: Some(SERVICE_ADDRESS.to_string()),
            cluster_ips: Some(vec![SERVICE_ADDRESS.to_string()]),
            ports: Some(vec![ServicePort {
                name: Some("https".to_string()),
                port: SERVICE_PORT,
                protocol: Some("TCP".to_string()),
                target_port: Some(IntOrString::Int(SERVICE_PORT)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The address to write down: one that listens everywhere is reached by the loopback at least.
fn reachable(address: SocketAddr) -> String {
    let ip = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
    IpAddr::to_string(&ip)
}

fn subset(address: SocketAddr) -> EndpointSubset {
    EndpointSubset {
        addresses: Some(vec![EndpointAddress {
            ip: reachable(address),
            ..EndpointAddress::default()
        }]),
        not_ready_addresses: None,
        ports: Some(vec![AddressPort {
            name: Some("https".to_string()),
            port: i32::from(address.port()),
            protocol: Some("TCP".to_string()),
            app_protocol: None,
        }]),
    }
}

fn slice(address: SocketAddr) -> EndpointSlice {
    EndpointSlice {
        metadata: meta(&[("kubernetes.io/service-name", SERVICE)]),
        address_type: if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_string(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![reachable(address)],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some("https".to_string()),
            port: Some(i32::from(address.port())),
            protocol: Some("TCP".to_string()),
            app_protocol: None,
        }]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text};
    use super::*;

    fn shown(snapshot: &Snapshot) -> String {
        text(&plan(snapshot, at(0)))
    }

    #[test]
    fn an_empty_cluster_gets_everything_in_two_steps() {
        let address = "127.0.0.1:6443".parse().expect("an address");
        let mut world = Snapshot { address: Some(address), ..Snapshot::default() };
        assert_eq!(
            shown(&world),
            "create namespaces default\ncreate namespaces kube-system\n\
             create namespaces kube-public\ncreate namespaces kube-node-lease\n\
             create priorityclasses.scheduling.k8s.io system-cluster-critical\n\
             create priorityclasses.scheduling.k8s.io system-node-critical\n"
        );
        world.namespaces = NAMESPACES.iter().map(|name| (*name).to_string()).collect();
        world.priority_classes =
            PRIORITY_CLASSES.iter().map(|(name, _)| (*name).to_string()).collect();
        assert_eq!(
            shown(&world),
            "create services default/kubernetes\ncreate endpoints default/kubernetes\n\
             create endpointslices.discovery.k8s.io default/kubernetes\n"
        );
        world.service = Some(Arc::new(service()));
        world.endpoints =
            Some(Arc::new(Endpoints { metadata: meta(&[]), subsets: Some(vec![subset(address)]) }));
        world.slice = Some(Arc::new(slice(address)));
        assert_eq!(shown(&world), "");
    }

    #[test]
    fn a_new_address_is_written_down() {
        let old = "127.0.0.1:6443".parse().expect("an address");
        let new: SocketAddr = "127.0.0.1:7443".parse().expect("an address");
        let world = Snapshot {
            namespaces: NAMESPACES.iter().map(|name| (*name).to_string()).collect(),
            priority_classes: vec![
                "system-cluster-critical".to_string(),
                "system-node-critical".to_string(),
            ],
            service: Some(Arc::new(service())),
            endpoints: Some(Arc::new(Endpoints {
                metadata: meta(&[]),
                subsets: Some(vec![subset(old)]),
            })),
            slice: Some(Arc::new(slice(old))),
            address: Some(new),
        };
        let lines = shown(&world);
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.lines().all(|line| line.contains("7443")), "{lines}");
    }
}
