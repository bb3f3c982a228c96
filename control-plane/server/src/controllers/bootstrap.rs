//! What a cluster has from the start: its own namespaces, the system's priority classes, the
//! default roles (`access`), flow schemas (`flow`) and storage class (`storage`), an APIService for
//! each group that is built in, the kinds of the Gateway API (`gateway`), what servers of other
//! groups must know (`front_proxy`), and the Service `kubernetes` with the addresses of the control plane's members behind it.
//!
//! Owns: these objects. They are made when missing (after a deletion too); the endpoints are put
//! right when members come, go, or move. One key stands for all of it.

pub mod access;
pub mod flow;
pub mod front_proxy;
pub mod gateway;
pub mod storage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as AddressPort, EndpointSubset, Endpoints, Namespace, Service,
    ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};
use serde_json::json;
use wherry_resources::GROUPS;

use super::ApiMember;
use super::cache::{Cache, Change, Key};
use super::mirroring::SKIP_MIRROR;
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
/// How often it is compared with who the members are, which is no object that could be watched.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the plan reads.
#[derive(Default)]
pub struct Snapshot {
    pub namespaces: Vec<String>,
    pub priority_classes: Vec<String>,
    pub api_services: Vec<Arc<APIService>>,
    pub service: Option<Arc<Service>>,
    pub endpoints: Option<Arc<Endpoints>>,
    /// All slices of the Service.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Where the API is. Empty until that is known: then nothing is changed.
    pub members: Vec<ApiMember>,
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
        "StorageClass" => name == storage::CLASS,
        "CustomResourceDefinition" => gateway::is_own(name),
        "ConfigMap" => namespace == front_proxy::NAMESPACE && name == front_proxy::CONFIG,
        "Role" => namespace == front_proxy::NAMESPACE && name == front_proxy::READER,
        "PriorityClass" => PRIORITY_CLASSES.iter().any(|(class, _)| *class == name),
        "Service" | "Endpoints" => served,
        "EndpointSlice" => namespace == "default" && is_slice_name(name),
        "APIService" => {
            local_versions().any(|(group, version, _, _)| name == api_service_name(group, version))
        }
        kind => access::is_default(kind, name) || flow::is_default(kind, name),
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
        api_services: view.cache.all::<APIService>().collect(),
        service: view.cache.get("default", SERVICE),
        endpoints: view.cache.get("default", SERVICE),
        slices: slices(view.cache),
        members: view.config.api_members.borrow().clone(),
    };
    let mut writes = plan(&snapshot, view.now);
    let cache = view.cache;
    writes.extend(access::plan(|name| cache.get("", name), |name| cache.get("", name)));
    let class = cache.get::<StorageClass>("", storage::CLASS);
    writes.extend(storage::plan(class.is_some()));
    writes.extend(flow::plan(|name| cache.get("", name), |name| cache.get("", name)));
    writes.extend(gateway::plan(|name| cache.get("", name)));
    writes.extend(front_proxy(view));
    let mut plan: Plan = writes.into();
    plan.look_again(LOOK_EVERY);
    plan
}

/// In its namespace, once that is there.
fn front_proxy(view: &View<'_>) -> Vec<Write> {
    use front_proxy::{CONFIG, NAMESPACE, READER, plan};
    if view.cache.get::<Namespace>("", NAMESPACE).is_none() {
        return Vec::new();
    }
    let roles = wherry_resources::kind("rbac.authorization.k8s.io", "v1", "roles");
    let role = Key::new(roles.expect("Role is a built-in kind"), NAMESPACE, READER);
    let has_role = view.cache.object(&role).is_some();
    plan(view.cache.get(NAMESPACE, CONFIG).as_deref(), has_role, &view.config.pki)
}

fn slices(cache: &Cache) -> Vec<Arc<EndpointSlice>> {
    let all = cache.all::<EndpointSlice>();
    let own = all.filter(|slice| {
        let meta = &slice.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        meta.namespace.as_deref() == Some("default") && is_slice_name(name)
    });
    own.collect()
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
    writes.extend(api_services(&snapshot.api_services));
    // What lives in a namespace has to wait until it exists: the next plan makes it.
    if contains(&snapshot.namespaces, "default") {
        writes.extend(api_service(snapshot));
    }
    writes
}

/// Every group and version that this API server serves itself, with the priorities of both.
fn local_versions() -> impl Iterator<Item = (&'static str, &'static str, u32, i32)> {
    GROUPS.iter().flat_map(|group| {
        let count = i32::try_from(group.versions.len()).expect("a group has a few versions");
        let versions = group.versions.iter().zip((1..=count).rev());
        // The preferred version has the highest priority.
        versions.map(move |(version, place)| (group.name, *version, group.priority, place * 10))
    })
}

/// `v1.apps`; of the core group `v1.`.
fn api_service_name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

fn api_services(held: &[Arc<APIService>]) -> Vec<Write> {
    let mut writes = Vec::new();
    for (group, version, group_priority, version_priority) in local_versions() {
        let name = api_service_name(group, version);
        let labels = [("kube-aggregator.kubernetes.io/automanaged", "onstart")];
        let metadata = ObjectMeta { name: Some(name.clone()), namespace: None, ..meta(&labels) };
        let spec = APIServiceSpec {
            group: (!group.is_empty()).then(|| group.to_owned()),
            version: Some(version.to_owned()),
            group_priority_minimum: i32::try_from(group_priority).expect("a small number"),
            version_priority,
            ..APIServiceSpec::default()
        };
        let Some(held) = held.iter().find(|held| held.metadata.name.as_ref() == Some(&name)) else {
            writes.push(Write::create(&APIService { metadata, spec: Some(spec), status: None }));
            continue;
        };
        writes.extend(local_status(held));
    }
    writes
}

/// Says of an APIService without a server of its own that it is there, if nothing is said.
pub fn local_status(held: &APIService) -> Option<Write> {
    let conditions = held.status.as_ref().and_then(|status| status.conditions.as_ref());
    if conditions.is_some_and(|conditions| !conditions.is_empty()) {
        return None;
    }
    let condition = json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available",
        "lastTransitionTime": held.metadata.creation_timestamp,
    });
    Some(Write::patch_status(held, json!({"status": {"conditions": [condition]}})))
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
    if snapshot.members.is_empty() {
        return writes;
    }
    let groups = by_port(&snapshot.members);
    let subsets: Vec<EndpointSubset> = groups.iter().map(|group| subset(group)).collect();
    // Its slices are made here: nobody is to make others of it.
    let labels = [(SKIP_MIRROR, "true")];
    match &snapshot.endpoints {
        None => writes
            .push(Write::create(&Endpoints { metadata: meta(&labels), subsets: Some(subsets) })),
        Some(held)
            if held.subsets.as_ref() != Some(&subsets)
                || held.metadata.labels != meta(&labels).labels =>
        {
            let body = json!({"subsets": subsets, "metadata": {"labels": meta(&labels).labels}});
            writes.push(Write::patch(&**held, body));
        }
        Some(_) => {}
    }
    let mut unwanted = snapshot.slices.clone();
    for (index, group) in groups.iter().enumerate() {
        let wanted = slice(group, index == 0);
        let held = unwanted.iter().position(|held| held.metadata.name == wanted.metadata.name);
        match held.map(|held| unwanted.swap_remove(held)) {
            None => writes.push(Write::create(&wanted)),
            Some(held) if (&held.endpoints, &held.ports) != (&wanted.endpoints, &wanted.ports) => {
                let body = json!({"endpoints": wanted.endpoints, "ports": wanted.ports});
                writes.push(Write::patch(&*held, body));
            }
            Some(_) => {}
        }
    }
    writes.extend(unwanted.iter().map(|slice| Write::delete(&**slice)));
    writes
}

/// All endpoints of a slice have the same port, and one family of addresses.
fn by_port(members: &[ApiMember]) -> Vec<Vec<ApiMember>> {
    let mut groups: BTreeMap<(bool, u16), Vec<ApiMember>> = BTreeMap::new();
    for member in members {
        let group = (member.address.is_ipv6(), member.address.port());
        groups.entry(group).or_default().push(*member);
    }
    groups.into_values().collect()
}

/// The first slice is called like the Service, further ones have their port behind it.
fn is_slice_name(name: &str) -> bool {
    let rest = name.strip_prefix(SERVICE);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("-port-"))
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

fn subset(members: &[ApiMember]) -> EndpointSubset {
    let addresses = |ready: bool| {
        let chosen = members.iter().filter(|member| member.ready == ready);
        let addresses: Vec<EndpointAddress> = chosen
            .map(|member| EndpointAddress {
                ip: member.address.ip().to_string(),
                ..EndpointAddress::default()
            })
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    };
    EndpointSubset {
        addresses: addresses(true),
        not_ready_addresses: addresses(false),
        ports: Some(vec![AddressPort {
            name: Some("https".to_string()),
            port: port(members),
            protocol: Some("TCP".to_string()),
            app_protocol: None,
        }]),
    }
}

fn port(members: &[ApiMember]) -> i32 {
    members.first().map_or(SERVICE_PORT, |member| i32::from(member.address.port()))
}

fn slice(members: &[ApiMember], first: bool) -> EndpointSlice {
    let ipv6 = members.iter().any(|member| member.address.is_ipv6());
    let name = match first {
        true => SERVICE.to_string(),
        false => format!("{SERVICE}-port-{}{}", port(members), if ipv6 { "-v6" } else { "" }),
    };
    let endpoints = members.iter().map(|member| Endpoint {
        addresses: vec![member.address.ip().to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(member.ready),
            ..EndpointConditions::default()
        }),
        ..Endpoint::default()
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            ..meta(&[("kubernetes.io/service-name", SERVICE)])
        },
        address_type: if ipv6 { "IPv6" } else { "IPv4" }.to_string(),
        endpoints: Some(endpoints.collect()),
        ports: Some(vec![EndpointPort {
            name: Some("https".to_string()),
            port: Some(port(members)),
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

    /// All of them, available.
    fn api_services_in_place() -> Vec<Arc<APIService>> {
        let made = local_versions().map(|(group, version, _, _)| {
            let service = json!({
                "metadata": {"name": api_service_name(group, version)},
                "status": {"conditions": [{"type": "Available", "status": "True"}]},
            });
            Arc::new(serde_json::from_value(service).expect("an APIService"))
        });
        made.collect()
    }

    #[test]
    fn every_local_version_has_an_api_service() {
        let world = Snapshot::default();
        let lines = shown(&world);
        for name in ["v1.", "v1.apps", "v2.autoscaling", "v1.autoscaling"] {
            let line = format!("create apiservices.apiregistration.k8s.io {name}\n");
            assert!(lines.contains(&line), "{lines}");
        }
    }

    fn members(addresses: &[(&str, bool)]) -> Vec<ApiMember> {
        let member = |(address, ready): &(&str, bool)| ApiMember {
            address: address.parse().expect("an address"),
            ready: *ready,
        };
        addresses.iter().map(member).collect()
    }

    /// A cluster that has everything, for these members.
    fn complete(members: &[ApiMember]) -> Snapshot {
        let groups = by_port(members);
        let classes = PRIORITY_CLASSES.iter().map(|(name, _)| (*name).to_string());
        let slices = groups.iter().enumerate();
        Snapshot {
            namespaces: NAMESPACES.iter().map(|name| (*name).to_string()).collect(),
            priority_classes: classes.collect(),
            service: Some(Arc::new(service())),
            endpoints: Some(Arc::new(Endpoints {
                metadata: meta(&[(SKIP_MIRROR, "true")]),
                subsets: Some(groups.iter().map(|group| subset(group)).collect()),
            })),
            slices: slices.map(|(at, group)| Arc::new(slice(group, at == 0))).collect(),
            members: members.to_vec(),
            api_services: api_services_in_place(),
        }
    }

    #[test]
    fn an_empty_cluster_gets_everything_in_two_steps() {
        let members = members(&[("127.0.0.1:6443", true)]);
        let mut world = Snapshot { members: members.clone(), ..Snapshot::default() };
        world.api_services = api_services_in_place();
        assert_eq!(
            shown(&world),
            "create namespaces default\ncreate namespaces kube-system\n\
             create namespaces kube-public\ncreate namespaces kube-node-lease\n\
             create priorityclasses.scheduling.k8s.io system-cluster-critical\n\
             create priorityclasses.scheduling.k8s.io system-node-critical\n"
        );
        let whole = complete(&members);
        world.namespaces = whole.namespaces.clone();
        world.priority_classes = whole.priority_classes.clone();
        assert_eq!(
            shown(&world),
            "create services default/kubernetes\ncreate endpoints default/kubernetes\n\
             create endpointslices.discovery.k8s.io default/kubernetes\n"
        );
        assert_eq!(shown(&whole), "");
    }

    #[test]
    fn a_new_address_is_written_down() {
        let mut world = complete(&members(&[("127.0.0.1:6443", true)]));
        world.members = members(&[("127.0.0.1:7443", true)]);
        let lines = shown(&world);
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.lines().all(|line| line.contains("7443")), "{lines}");
        world.members.clear();
        assert_eq!(shown(&world), "", "nothing is changed while nobody is known");
    }

    #[test]
    fn members_on_other_ports_have_their_own_slice() {
        let three =
            members(&[("10.0.0.1:6443", true), ("10.0.0.2:6443", false), ("10.0.0.1:7", true)]);
        let mut world = complete(&three[..2]);
        world.members = three.clone();
        let lines = shown(&world);
        assert!(lines.contains("patch endpoints default/kubernetes"), "{lines}");
        assert!(
            lines.contains("endpointslices.discovery.k8s.io default/kubernetes-port-6443"),
            "{lines}"
        );
        let mut world = complete(&three);
        world.members = three[..2].to_vec();
        let lines = shown(&world);
        let gone = "delete endpointslices.discovery.k8s.io default/kubernetes-port-6443";
        assert!(lines.contains(gone), "{lines}");
    }
}
