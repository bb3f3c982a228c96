//! EndpointSlices and Endpoints: where the Pods behind a Service can be reached.
//!
//! Owns: the EndpointSlices of Services with a selector, and the Endpoints object of the same name,
//! which older clients read. A Service without a selector is its owner's business.
//!
//! Invariants: an endpoint stays in the slice it is in, so one Pod's change rewrites one slice of
//! at most [`ENDPOINTS_MAX`]; Pods whose named ports resolve to different numbers never share a
//! slice; slices that would be empty are deleted, except that a Service always has one. The slices
//! of a Service whose workload comes back from zero say that requests are to wait.
//!
//! An endpoint says the zone that its node has when it is planned for, and the hints that follow
//! from `trafficDistribution`. Wherry's nodes go by their own table of nodes; others read these.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as AddressPort, EndpointSubset, Endpoints, Node, ObjectReference,
    Pod, Service, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use wherry_resources::demand::HOLD;

use super::autoscaler::demand;
use super::cache::{Cache, Change, Key};
use super::owners::{controller_of, controller_reference, seeded_name};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

/// Endpoints in one slice: Kubernetes' own limit, so that one change stays a small write.
const ENDPOINTS_MAX: usize = 100;
/// Addresses in an Endpoints object; what is beyond is cut off, as Kubernetes does.
const ADDRESSES_MAX: usize = 1_000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What a plan for one Service reads.
#[derive(Default)]
pub struct Snapshot {
    pub service: Arc<Service>,
    /// Pods of its namespace that its selector matches.
    pub pods: Vec<Arc<Pod>>,
    /// Slices that the Service controls.
    pub slices: Vec<Arc<EndpointSlice>>,
    pub endpoints: Option<Arc<Endpoints>>,
    /// Zones of the Pods' nodes, by node.
    pub zones: HashMap<String, String>,
    /// Whether requests are to wait while there is no Pod.
    pub holds: bool,
}

pub const CONTROLLER: Controller = Controller { name: "endpoints", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Service>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let namespace = change.key.namespace();
    if change.of::<Endpoints>().is_some() {
        if cache.get::<Service>(namespace, change.key.name()).is_some() {
            keys.push(Key::of::<Service>(namespace, change.key.name()));
        }
        return;
    }
    for slice in change.states::<EndpointSlice>() {
        let owner = controller_of(&slice.metadata).filter(|owner| owner.kind == "Service");
        keys.extend(owner.map(|owner| Key::of::<Service>(namespace, &owner.name)));
    }
    keys.extend(demand::concerned(cache, change));
    if let Some((before, after)) = change.of::<Pod>() {
        if let (Some(before), Some(after)) = (before, after)
            && facts(before) == facts(after)
        {
            return;
        }
        for pod in [before, after].into_iter().flatten() {
            keys.extend(cache.selecting(namespace, pod.metadata.labels.as_ref()));
        }
    }
}

/// Everything about a Pod that an endpoint shows.
fn facts(pod: &Pod) -> impl PartialEq + '_ {
    (
        address(pod),
        pods::is_ready(pod),
        pods::is_deleting(pod),
        pods::is_finished(pod),
        pods::node(pod),
        pod.metadata.labels.as_ref(),
        pod.metadata.uid.as_deref(),
    )
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(service) = view.cache.get::<Service>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = service.metadata.uid.as_deref().unwrap_or("");
    let selected = |selector| view.cache.selected(key.namespace(), selector);
    let pods = selector(&service).map(selected).unwrap_or_default();
    let snapshot = Snapshot {
        zones: zones(view.cache, &pods),
        pods,
        slices: view.cache.controlled(uid),
        endpoints: view.cache.get(key.namespace(), key.name()),
        holds: demand::holds(view.cache, &service),
        service,
    };
    plan(&snapshot, view.now).into()
}

fn zones(cache: &Cache, pods: &[Arc<Pod>]) -> HashMap<String, String> {
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pods::node(pod)).collect();
    let zone = |name: &str| {
        let node = cache.get::<Node>("", name)?;
        Some((name.to_string(), node.metadata.labels.as_ref()?.get(ZONE)?.clone()))
    };
    nodes.into_iter().filter_map(zone).collect()
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|selector| !external && !selector.is_empty())
}

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// Which ports, under which names and numbers, the endpoints of a slice have.
type Ports = Vec<EndpointPort>;

/// The writes that make slices and Endpoints say where the Service's Pods are. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let service = &*snapshot.service;
    let Some(spec) = service.spec.as_ref().filter(|_| selector(service).is_some()) else {
        return Vec::new();
    };
    if service.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let reachable = |pod: &&Arc<Pod>| !pods::is_finished(pod) && address(pod).is_some();
    let pods: Vec<&Arc<Pod>> = snapshot.pods.iter().filter(reachable).collect();
    // Ordered by the ports' text, so that the plan does not depend on the order of a hash map.
    let mut groups: BTreeMap<String, (Ports, Vec<Endpoint>)> = BTreeMap::new();
    for pod in &pods {
        let ports = ports_of(spec, pod);
        let group = groups.entry(json!(ports).to_string()).or_insert((ports, Vec::new()));
        let zone = snapshot.zones.get(pods::node(pod));
        group.1.push(endpoint(service, spec, pod, zone));
    }
    if groups.is_empty() {
        let first = snapshot.slices.first().and_then(|slice| slice.ports.clone());
        groups.insert(String::new(), (first.unwrap_or_default(), Vec::new()));
    }
    let mut slices: Vec<Slice> = snapshot.slices.iter().map(Slice::new).collect();
    let mut names: BTreeSet<String> =
        snapshot.slices.iter().map(|slice| name_of(&slice.metadata).to_string()).collect();
    for (ports, endpoints) in groups.into_values() {
        place(service, &mut slices, &mut names, ports, endpoints);
    }
    let labels = slice_labels(service, spec);
    let mut writes: Vec<Write> =
        slices.into_iter().filter_map(|slice| slice.write(snapshot, &labels)).collect();
    writes.extend(mirror(snapshot, spec, &pods));
    writes
}

/// One slice as it is and as it is going to be.
struct Slice {
    name: String,
    held: Option<Arc<EndpointSlice>>,
    ports: Ports,
    endpoints: Vec<Endpoint>,
    /// Whether some group of Pods lives in it.
    used: bool,
}

impl Slice {
    fn new(held: &Arc<EndpointSlice>) -> Slice {
        Slice {
            name: name_of(&held.metadata).to_string(),
            ports: held.ports.clone().unwrap_or_default(),
            endpoints: held.endpoints.clone().unwrap_or_default(),
            held: Some(held.clone()),
            used: false,
        }
    }

    fn write(self, snapshot: &Snapshot, labels: &BTreeMap<String, String>) -> Option<Write> {
        let (service, holds) = (&*snapshot.service, snapshot.holds);
        let Some(held) = &self.held else {
            let annotation = || BTreeMap::from([(HOLD.to_string(), "true".to_string())]);
            return Some(Write::create(&EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(self.name),
                    namespace: service.metadata.namespace.clone(),
                    labels: Some(labels.clone()),
                    annotations: holds.then(annotation),
                    owner_references: Some(vec![controller_reference(service)]),
                    ..ObjectMeta::default()
                },
                address_type: "IPv4".to_string(),
                endpoints: Some(self.endpoints),
                ports: Some(self.ports),
            }));
        };
        if !self.used {
            return Some(Write::delete(&**held));
        }
        let mut body = json!({});
        if held.endpoints.as_ref() != Some(&self.endpoints) {
            body["endpoints"] = json!(self.endpoints);
        }
        if held.ports.clone().unwrap_or_default() != self.ports {
            body["ports"] = json!(self.ports);
        }
        if held.metadata.labels.as_ref() != Some(labels) {
            body["metadata"]["labels"] = label_patch(held.metadata.labels.as_ref(), labels);
        }
        let said = held.metadata.annotations.as_ref().and_then(|all| all.get(HOLD));
        if said.is_some_and(|said| said == "true") != holds {
            let value = if holds { "true".into() } else { serde_json::Value::Null };
            body["metadata"]["annotations"][HOLD] = value;
        }
        let changed = body.as_object().is_some_and(|body| !body.is_empty());
        changed.then(|| Write::patch(&**held, body))
    }
}

/// The merge patch that leaves exactly these labels.
fn label_patch(
    held: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> serde_json::Value {
    let mut patch = json!(wanted);
    for name in held.into_iter().flat_map(BTreeMap::keys) {
        if !wanted.contains_key(name) {
            patch[name] = serde_json::Value::Null;
        }
    }
    patch
}

/// Puts the endpoints of one group into slices: known ones stay where they are, gone ones leave,
/// new ones fill the gaps, and what is left over gets new slices.
fn place(
    service: &Service,
    slices: &mut Vec<Slice>,
    names: &mut BTreeSet<String>,
    ports: Ports,
    endpoints: Vec<Endpoint>,
) {
    let mut missing: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in endpoints {
        let id = endpoint_id(&endpoint);
        order.push(id.clone());
        missing.insert(id, endpoint);
    }
    let empty = missing.is_empty();
    let mut mine: Vec<&mut Slice> =
        slices.iter_mut().filter(|slice| slice.ports == ports).collect();
    for slice in &mut mine {
        let stay = |endpoint: &Endpoint| missing.remove(&endpoint_id(endpoint));
        slice.endpoints = slice.endpoints.iter().filter_map(stay).collect();
    }
    let mut rest = order.into_iter().filter_map(|id| missing.remove(&id)).peekable();
    for slice in &mut mine {
        while slice.endpoints.len() < ENDPOINTS_MAX
            && let Some(endpoint) = rest.next()
        {
            slice.endpoints.push(endpoint);
        }
        slice.used = !slice.endpoints.is_empty();
    }
    if empty && let Some(first) = mine.first_mut() {
        first.used = true;
        return;
    }
    while empty || rest.peek().is_some() {
        let endpoints = rest.by_ref().take(ENDPOINTS_MAX).collect();
        let name = free_name(service, names);
        slices.push(Slice { name, held: None, ports: ports.clone(), endpoints, used: true });
        if empty {
            return;
        }
    }
}

/// A name for a new slice that follows from the Service and the slices it has.
fn free_name(service: &Service, names: &mut BTreeSet<String>) -> String {
    let uid = service.metadata.uid.as_deref().unwrap_or("");
    let name = (0..)
        .map(|number: u32| seeded_name(name_of(&service.metadata), &format!("{uid}/{number}")))
        .find(|name| !names.contains(name))
        .expect("fewer slices than names");
    names.insert(name.clone());
    name
}

fn endpoint_id(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or("");
    format!("{uid} {}", endpoint.addresses.join(" "))
}

/// The name that a Pod has below a Service that it names as its subdomain.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pods::spec(pod)?;
    let own = spec.subdomain.as_deref() == Some(name_of(&service.metadata));
    spec.hostname.clone().filter(|_| own)
}

/// Who should use an endpoint, by what the Service says of its traffic.
fn hints(spec: &ServiceSpec, node: &str, zone: Option<&String>) -> Option<EndpointHints> {
    let by_node = match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        "PreferSameZone" | "PreferClose" => false,
        _ => return None,
    };
    let hints = EndpointHints {
        for_nodes: (by_node && !node.is_empty()).then(|| vec![ForNode { name: node.to_string() }]),
        for_zones: zone.map(|zone| vec![ForZone { name: zone.clone() }]),
    };
    (hints.for_nodes.is_some() || hints.for_zones.is_some()).then_some(hints)
}

fn endpoint(service: &Service, spec: &ServiceSpec, pod: &Pod, zone: Option<&String>) -> Endpoint {
    let (ready, deleting) = (pods::is_ready(pod), pods::is_deleting(pod));
    let always = spec.publish_not_ready_addresses == Some(true);
    Endpoint {
        addresses: address(pod).into_iter().map(str::to_string).collect(),
        conditions: Some(EndpointConditions {
            ready: Some(always || (ready && !deleting)),
            serving: Some(ready),
            terminating: Some(deleting),
        }),
        hints: hints(spec, pods::node(pod), zone),
        hostname: hostname(service, pod),
        node_name: Some(pods::node(pod).to_string()).filter(|node| !node.is_empty()),
        target_ref: Some(target(pod)),
        zone: zone.cloned(),
        ..Endpoint::default()
    }
}

fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_string()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The Service's ports as this Pod has them; a named port that the Pod lacks is left out.
fn ports_of(spec: &ServiceSpec, pod: &Pod) -> Ports {
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = port.protocol.clone().unwrap_or("TCP".to_string());
        let number = match &port.target_port {
            Some(IntOrString::Int(0)) | None => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => container_port(pod, name, &protocol),
        };
        if let Some(number) = number {
            ports.push(EndpointPort {
                // An empty name is part of the API: the only port of a Service may have none.
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number),
                protocol: Some(protocol),
                app_protocol: port.app_protocol.clone(),
            });
        }
    }
    ports
}

fn container_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let containers = pods::spec(pod)?.containers.iter();
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|port| port.container_port)
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn slice_labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_string(), name_of(&service.metadata).to_string());
    labels.insert(MANAGED_BY.to_string(), MANAGER.to_string());
    if is_headless(spec) {
        labels.insert(HEADLESS.to_string(), String::new());
    }
    labels
}

/// The Endpoints object with the same content, if it says anything else now.
fn mirror(snapshot: &Snapshot, spec: &ServiceSpec, pods: &[&Arc<Pod>]) -> Option<Write> {
    let service = &*snapshot.service;
    let always = spec.publish_not_ready_addresses == Some(true);
    let shown = pods.iter().filter(|pod| always || !pods::is_deleting(pod));
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    for pod in shown {
        count += 1;
        if count > ADDRESSES_MAX {
            continue;
        }
        let ports = ports_of(spec, pod);
        let subset = groups.entry(json!(ports).to_string()).or_insert_with(|| EndpointSubset {
            ports: Some(ports.into_iter().map(address_port).collect()),
            ..EndpointSubset::default()
        });
        let ready = always || pods::is_ready(pod);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(EndpointAddress {
            ip: address(pod).unwrap_or("").to_string(),
            hostname: hostname(service, pod),
            node_name: Some(pods::node(pod).to_string()).filter(|node| !node.is_empty()),
            target_ref: Some(target(pod)),
        });
    }
    let mut subsets: Vec<EndpointSubset> = groups.into_values().collect();
    for subset in &mut subsets {
        let lists = [&mut subset.addresses, &mut subset.not_ready_addresses];
        lists.into_iter().flatten().for_each(|list| list.sort_by(in_order));
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if is_headless(spec) {
        labels.insert(HEADLESS.to_string(), String::new());
    }
    let annotation = (count > ADDRESSES_MAX)
        .then(|| BTreeMap::from([(OVER_CAPACITY.to_string(), "truncated".to_string())]));
    let Some(held) = &snapshot.endpoints else {
        return Some(Write::create(&Endpoints {
            metadata: ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: service.metadata.namespace.clone(),
                labels: (!labels.is_empty()).then_some(labels),
                annotations: annotation,
                owner_references: Some(vec![controller_reference(service)]),
                ..ObjectMeta::default()
            },
            subsets: Some(subsets),
        }));
    };
    let mut body = json!({});
    if held.subsets.clone().unwrap_or_default() != subsets {
        body["subsets"] = json!(subsets);
    }
    let held_over = held.metadata.annotations.as_ref().and_then(|all| all.get(OVER_CAPACITY));
    if held_over.is_some() != annotation.is_some() {
        let value = annotation.map_or(serde_json::Value::Null, |_| "truncated".into());
        body["metadata"]["annotations"][OVER_CAPACITY] = value;
    }
    if held.metadata.labels.clone().unwrap_or_default() != labels {
        body["metadata"]["labels"] = label_patch(held.metadata.labels.as_ref(), &labels);
    }
    let changed = body.as_object().is_some_and(|body| !body.is_empty());
    changed.then(|| Write::patch(&**held, body))
}

/// As the API server of Kubernetes lists them: by the text of the address, then by uid.
fn in_order(one: &EndpointAddress, other: &EndpointAddress) -> Ordering {
    let uid = |address: &EndpointAddress| {
        address.target_ref.as_ref().and_then(|target| target.uid.clone())
    };
    one.ip.cmp(&other.ip).then_with(|| uid(one).cmp(&uid(other)))
}

fn address_port(port: EndpointPort) -> AddressPort {
    AddressPort {
        name: port.name.filter(|name| !name.is_empty()),
        port: port.port.unwrap_or(0),
        protocol: port.protocol,
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::super::write::Action;
    use super::*;

    /// Pods by short texts: `name ip [ready] [deleting] [failed] [port=N]`.
    fn pod(words: &str) -> Arc<Pod> {
        let mut words = words.split_whitespace();
        let name = words.next().expect("a name");
        let (mut ip, mut ready, mut phase, mut port) = ("", "False", "Running", "8080");
        let mut deleting = "";
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("ready", _) => ready = "True",
                ("failed", _) => phase = "Failed",
                ("deleting", _) => deleting = ", deletionTimestamp: 2024-01-01T00:00:00Z",
                ("port", number) => port = number,
                _ => ip = word,
            }
        }
        Arc::new(yaml(&format!(
            "metadata: {{name: {name}, namespace: d, labels: {{app: web}}{deleting}}}\n\
             spec:\n  nodeName: n1\n  containers:\n  - name: c\n    \
             ports: [{{name: http, containerPort: {port}}}]\n\
             status: {{phase: {phase}, podIP: \"{ip}\", \
             conditions: [{{type: Ready, status: \"{ready}\"}}]}}"
        )))
    }

    fn snapshot(pods: &[&str]) -> Snapshot {
        let service: Service = yaml(
            "metadata: {name: web, namespace: d, labels: {team: a}}\n\
             spec: {clusterIP: 1.2.3.4, selector: {app: web}, \
             ports: [{port: 80, targetPort: http}]}",
        );
        Snapshot {
            service: Arc::new(service),
            pods: pods.iter().map(|text| pod(text)).collect(),
            ..Snapshot::default()
        }
    }

    /// Applies a plan to the snapshot as the API server would.
    fn apply(snapshot: &mut Snapshot) -> Vec<Write> {
        let writes = plan(snapshot, at(0));
        for write in &writes {
            match &write.action {
                Action::Create { kind, object, .. } if kind.kind == "EndpointSlice" => {
                    let slice = serde_json::from_value(object.clone()).expect("a slice");
                    snapshot.slices.push(Arc::new(slice));
                }
                Action::Create { object, .. } => {
                    let endpoints = serde_json::from_value(object.clone()).expect("Endpoints");
                    snapshot.endpoints = Some(Arc::new(endpoints));
                }
                Action::Patch { target, body, .. } if target.key.kind.kind == "Endpoints" => {
                    let held = snapshot.endpoints.take().expect("patched objects exist");
                    snapshot.endpoints = Some(merged(&held, body));
                }
                Action::Patch { target, body, .. } => {
                    let mut slices = snapshot.slices.iter_mut();
                    let slice = slices.find(|slice| name_of(&slice.metadata) == target.key.name());
                    let slice = slice.expect("patched slices exist");
                    *slice = merged(slice, body);
                }
                Action::Delete { target, .. } => {
                    snapshot.slices.retain(|slice| name_of(&slice.metadata) != target.key.name());
                }
                _ => {}
            }
        }
        writes
    }

    fn merged<T>(object: &Arc<T>, patch: &serde_json::Value) -> Arc<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let mut value = serde_json::to_value(&**object).expect("JSON");
        json_patch::merge(&mut value, patch);
        Arc::new(serde_json::from_value(value).expect("the same type"))
    }

    /// `ip:port` with `r`eady, `s`erving, `t`erminating, slice by slice.
    fn shown(snapshot: &Snapshot) -> String {
        let mut lines = Vec::new();
        for slice in &snapshot.slices {
            let port = slice.ports.iter().flatten().next().and_then(|port| port.port).unwrap_or(0);
            let endpoint = |endpoint: &Endpoint| {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let flags = [
                    (conditions.ready, "r"),
                    (conditions.serving, "s"),
                    (conditions.terminating, "t"),
                ];
                let flags: String = flags
                    .into_iter()
                    .filter(|(flag, _)| *flag == Some(true))
                    .map(|(_, letter)| letter)
                    .collect();
                format!("{}:{port} {flags}", endpoint.addresses[0])
            };
            let endpoints: Vec<_> = slice.endpoints.iter().flatten().map(endpoint).collect();
            lines.push(endpoints.join(", "));
        }
        lines.join(" | ")
    }

    #[test]
    fn pods_show_as_ready_serving_and_terminating() {
        let mut world = snapshot(&[
            "a 10.0.0.1 ready",
            "b 10.0.0.2",
            "c 10.0.0.3 ready deleting",
            "d",
            "e 10.0.0.5 failed",
        ]);
        apply(&mut world);
        assert_eq!(shown(&world), "10.0.0.1:8080 rs, 10.0.0.2:8080 , 10.0.0.3:8080 st");
        let slice = &world.slices[0];
        let labels = slice.metadata.labels.clone().unwrap_or_default();
        assert_eq!(labels.get(SERVICE_NAME).map(String::as_str), Some("web"));
        assert_eq!(labels.get("team").map(String::as_str), Some("a"));
        let endpoint = &slice.endpoints.as_ref().expect("has endpoints")[0];
        assert_eq!(endpoint.node_name.as_deref(), Some("n1"));
        let target = endpoint.target_ref.clone().expect("has a target");
        assert_eq!(target.name.as_deref(), Some("a"));
        let endpoints = world.endpoints.as_ref().expect("is mirrored");
        let subset = &endpoints.subsets.as_ref().expect("has subsets")[0];
        assert_eq!(subset.addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(subset.not_ready_addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(text(&plan(&world, at(0))), "", "planning again changes nothing");
    }

    #[test]
    fn zones_and_hints_follow_from_the_node_and_the_service() {
        let mut world = snapshot(&["a 10.0.0.1 ready"]);
        world.zones = [("n1".to_string(), "z1".to_string())].into();
        let hints = |world: &mut Snapshot, distribution: Option<&str>| {
            let service = Arc::make_mut(&mut world.service);
            let spec = service.spec.as_mut().expect("has a spec");
            spec.traffic_distribution = distribution.map(str::to_string);
            apply(world);
            assert_eq!(text(&plan(world, at(0))), "", "planning again changes nothing");
            let endpoint = world.slices[0].endpoints.as_ref().expect("has endpoints")[0].clone();
            assert_eq!(endpoint.zone.as_deref(), Some("z1"));
            endpoint.hints.map_or("null".to_string(), |hints| json!(hints).to_string())
        };
        assert_eq!(hints(&mut world, None), "null");
        let zone = r#"{"forZones":[{"name":"z1"}]}"#;
        assert_eq!(hints(&mut world, Some("PreferSameZone")), zone);
        let both = r#"{"forNodes":[{"name":"n1"}],"forZones":[{"name":"z1"}]}"#;
        assert_eq!(hints(&mut world, Some("PreferSameNode")), both);
        assert_eq!(hints(&mut world, None), "null");
    }

    #[test]
    fn a_change_of_one_pod_rewrites_one_slice() {
        let texts: Vec<String> =
            (0..250).map(|n| format!("p{n} 10.0.{}.{} ready", n / 100, n % 100 + 1)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut world = snapshot(&texts);
        apply(&mut world);
        assert_eq!(world.slices.len(), 3);
        world.pods[120] = pod("p120 10.0.1.21");
        let writes = apply(&mut world);
        let slices = writes.iter().filter(|write| write.to_string().contains("endpointslices"));
        assert_eq!(slices.count(), 1);
        world.pods.truncate(100);
        apply(&mut world);
        assert_eq!(world.slices.len(), 1, "empty slices go");
    }

    #[test]
    fn different_numbers_of_a_named_port_get_slices_of_their_own() {
        let mut world = snapshot(&["a 10.0.0.1 ready", "b 10.0.0.2 ready port=9090"]);
        apply(&mut world);
        assert_eq!(shown(&world), "10.0.0.1:8080 rs | 10.0.0.2:9090 rs");
    }

    #[test]
    fn a_service_without_pods_keeps_one_empty_slice() {
        let mut world = snapshot(&[]);
        apply(&mut world);
        assert_eq!(world.slices.len(), 1);
        assert_eq!(text(&plan(&world, at(0))), "");
        world.pods = vec![pod("a 10.0.0.1 ready")];
        apply(&mut world);
        assert_eq!(shown(&world), "10.0.0.1:8080 rs");
    }

    #[test]
    fn slices_say_that_requests_are_to_wait() {
        let mut world = snapshot(&[]);
        world.holds = true;
        let said = |world: &Snapshot| {
            let annotations = world.slices[0].metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(HOLD)).cloned()
        };
        apply(&mut world);
        assert_eq!(said(&world).as_deref(), Some("true"));
        assert_eq!(text(&apply(&mut world)), "", "once is enough");
        world.holds = false;
        apply(&mut world);
        assert_eq!(said(&world), None);
        world.holds = true;
        world.pods = vec![pod("a 10.0.0.1 ready")];
        apply(&mut world);
        assert_eq!(said(&world).as_deref(), Some("true"), "also while there are Pods");
    }

    #[test]
    fn unready_pods_can_be_published() {
        let mut world = snapshot(&["a 10.0.0.1"]);
        let service = Arc::make_mut(&mut world.service);
        let spec = service.spec.as_mut().expect("has a spec");
        spec.publish_not_ready_addresses = Some(true);
        apply(&mut world);
        assert_eq!(shown(&world), "10.0.0.1:8080 r");
    }

    #[test]
    fn endpoints_are_listed_by_their_addresses() {
        let mut world = snapshot(&[
            "a 10.0.0.9 ready",
            "b 10.0.0.3 ready",
            "c 10.0.0.12",
            "d 10.0.0.11",
            "f 10.0.0.3 ready",
        ]);
        apply(&mut world);
        let subsets = world.endpoints.as_ref().and_then(|held| held.subsets.as_ref());
        let subset = &subsets.expect("has subsets")[0];
        let listed = |list: &Option<Vec<EndpointAddress>>| -> String {
            let name = |held: &EndpointAddress| held.target_ref.as_ref()?.name.clone();
            list.iter().flatten().filter_map(name).collect()
        };
        assert_eq!(listed(&subset.addresses), "bfa");
        assert_eq!(listed(&subset.not_ready_addresses), "dc");
        assert_eq!(text(&plan(&world, at(0))), "", "planning again changes nothing");
    }

    #[test]
    fn a_service_without_selector_is_left_alone() {
        let mut world = snapshot(&["a 10.0.0.1 ready"]);
        let service = Arc::make_mut(&mut world.service);
        service.spec.as_mut().expect("has a spec").selector = None;
        assert_eq!(text(&plan(&world, at(0))), "");
    }
}
