//! EndpointSlices of Endpoints that somebody wrote by hand, for a Service without a selector: nodes
//! and newer clients read slices only.
//!
//! Owns: slices that the Endpoints object controls and whose label says that this controller manages
//! them. Endpoints of a Service with a selector, those labelled
//! `endpointslice.kubernetes.io/skip-mirror: "true"` and the records of elections are not mirrored.
//!
//! Invariant: a slice's name follows from the Endpoints and from its place among them, so a plan
//! made twice makes no two.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::cache::{Cache, Change, Key};
use super::owners::{controller_of, controller_reference, seeded_name};
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

/// Addresses of one subset that are mirrored, as in Kubernetes.
const ADDRESSES_MAX: usize = 1_000;
/// Endpoints in one slice.
const ENDPOINTS_MAX: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// A label: slices of these Endpoints are somebody else's business.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";

/// What a plan for one Endpoints object reads.
pub struct Snapshot {
    pub endpoints: Arc<Endpoints>,
    pub service: Option<Arc<Service>>,
    /// Slices that the Endpoints object controls.
    pub slices: Vec<Arc<EndpointSlice>>,
}

pub const CONTROLLER: Controller = Controller { name: "mirroring", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let namespace = change.key.namespace();
    if change.of::<Endpoints>().is_some() || change.of::<Service>().is_some() {
        keys.push(Key::of::<Endpoints>(namespace, change.key.name()));
    }
    for slice in change.states::<EndpointSlice>() {
        let owner = controller_of(&slice.metadata).filter(|owner| owner.kind == "Endpoints");
        keys.extend(owner.map(|owner| Key::of::<Endpoints>(namespace, &owner.name)));
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(endpoints) = view.cache.get::<Endpoints>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = endpoints.metadata.uid.as_deref().unwrap_or("");
    let snapshot = Snapshot {
        service: view.cache.get(key.namespace(), key.name()),
        slices: view.cache.controlled(uid),
        endpoints,
    };
    plan(&snapshot, view.now).into()
}

fn is_mirrored(snapshot: &Snapshot) -> bool {
    let meta = &snapshot.endpoints.metadata;
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    let record = meta.annotations.as_ref().is_some_and(|all| all.contains_key(ELECTION));
    let by_hand = snapshot.service.as_ref().and_then(|service| service.spec.as_ref());
    let by_hand = by_hand.is_some_and(|spec| {
        spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
            && spec.type_.as_deref() != Some("ExternalName")
    });
    by_hand && !record && label(SKIP_MIRROR).map(String::as_str) != Some("true")
}

/// The writes that make the slices say what the Endpoints say. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let endpoints = &*snapshot.endpoints;
    if endpoints.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let wanted = if is_mirrored(snapshot) { wanted(endpoints) } else { Vec::new() };
    let mut writes = Vec::new();
    for slice in &wanted {
        let name = name_of(&slice.metadata);
        let held = snapshot.slices.iter().find(|held| name_of(&held.metadata) == name);
        match held {
            None => writes.push(Write::create(slice)),
            // What kind of addresses a slice has cannot be changed.
            Some(held) if held.address_type != slice.address_type => {
                writes.push(Write::delete(&**held));
            }
            Some(held) => writes.extend(difference(held, slice)),
        }
    }
    let names: Vec<&str> = wanted.iter().map(|slice| name_of(&slice.metadata)).collect();
    let surplus = snapshot.slices.iter().filter(|held| !names.contains(&name_of(&held.metadata)));
    writes.extend(surplus.map(|held| Write::delete(&**held)));
    writes
}

fn difference(held: &EndpointSlice, wanted: &EndpointSlice) -> Option<Write> {
    let mut body = json!({});
    if held.endpoints != wanted.endpoints {
        body["endpoints"] = json!(wanted.endpoints);
    }
    if held.ports != wanted.ports {
        body["ports"] = json!(wanted.ports);
    }
    if held.metadata.labels != wanted.metadata.labels {
        let mut labels = json!(wanted.metadata.labels);
        for name in held.metadata.labels.iter().flat_map(BTreeMap::keys) {
            if labels.get(name).is_none() {
                labels[name] = Value::Null;
            }
        }
        body["metadata"]["labels"] = labels;
    }
    let changed = body.as_object().is_some_and(|body| !body.is_empty());
    changed.then(|| Write::patch(held, body))
}

/// Ports, and the addresses that have them, each with its family.
type Group<'a> = (Vec<EndpointPort>, Vec<(&'a str, Endpoint)>);

/// The slices of Endpoints: one for each set of ports and each family of addresses, and more where
/// there are many.
fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    // Subsets with the same ports belong together.
    let mut groups: BTreeMap<String, Group<'_>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports_of(subset);
        let group = groups.entry(json!(ports).to_string()).or_insert((ports, Vec::new()));
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let all = ready.chain(unready).take(ADDRESSES_MAX);
        group.1.extend(all.filter_map(|(address, ready)| endpoint(address, ready)));
    }
    for (ports, members) in groups.into_values() {
        for family in ["IPv4", "IPv6"] {
            let of_family = members.iter().filter(|(own, _)| *own == family);
            let of_family: Vec<Endpoint> =
                of_family.map(|(_, endpoint)| endpoint.clone()).collect();
            for part in of_family.chunks(ENDPOINTS_MAX) {
                slices.push(slice(endpoints, slices.len(), family, &ports, part));
            }
        }
    }
    slices
}

fn slice(
    endpoints: &Endpoints,
    number: usize,
    family: &str,
    ports: &[EndpointPort],
    part: &[Endpoint],
) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let name = name_of(meta);
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_string(), name.to_string());
    labels.insert(MANAGED_BY.to_string(), MANAGER.to_string());
    let uid = meta.uid.as_deref().unwrap_or("");
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(seeded_name(name, &format!("{uid}/mirror/{number}"))),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_string(),
        endpoints: Some(part.to_vec()),
        ports: Some(ports.to_vec()),
    }
}

fn ports_of(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or("TCP".to_string())),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

/// An address with its family; none for what is no address.
fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let family = match address.ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let endpoint = Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((family, endpoint))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::super::write::Action;
    use super::*;

    fn snapshot(subsets: &str, labels: &str, service: &str) -> Snapshot {
        Snapshot {
            endpoints: Arc::new(yaml(&format!(
                "metadata: {{name: db, namespace: d, labels: {{{labels}}}}}\nsubsets: {subsets}"
            ))),
            service: (!service.is_empty())
                .then(|| Arc::new(yaml(&format!("metadata: {{name: db}}\nspec: {{{service}}}")))),
            slices: Vec::new(),
        }
    }

    fn made(snapshot: &Snapshot) -> Vec<EndpointSlice> {
        let slices = plan(snapshot, at(0)).into_iter().filter_map(|write| match write.action {
            Action::Create { object, .. } => serde_json::from_value(object).ok(),
            _ => None,
        });
        slices.collect()
    }

    const PLAIN: &str = "clusterIP: 1.2.3.4";
    const SUBSETS: &str = "[{addresses: [{ip: 10.1.0.1}, {ip: \"fd00::1\"}], notReadyAddresses: \
        [{ip: 10.1.0.2}], ports: [{port: 5432, name: sql}]}]";

    #[test]
    fn families_and_readiness() {
        let slices = made(&snapshot(SUBSETS, "team: a", PLAIN));
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0].address_type, "IPv4");
        let shown: Vec<_> = slices[0]
            .endpoints
            .iter()
            .flatten()
            .map(|held| (&*held.addresses[0], held.conditions.as_ref().and_then(|it| it.ready)))
            .collect();
        assert_eq!(shown, [("10.1.0.1", Some(true)), ("10.1.0.2", Some(false))]);
        assert_eq!(slices[1].address_type, "IPv6");
        let labels = slices[0].metadata.labels.clone().unwrap_or_default();
        assert_eq!(labels[SERVICE_NAME], "db");
        assert_eq!(labels[MANAGED_BY], MANAGER);
        assert_eq!(labels["team"], "a");
    }

    #[test]
    fn what_is_not_mirrored() {
        assert!(made(&snapshot(SUBSETS, "", "")).is_empty(), "no Service");
        assert!(made(&snapshot(SUBSETS, "", "selector: {a: b}")).is_empty());
        let skipped = snapshot(SUBSETS, "endpointslice.kubernetes.io/skip-mirror: \"true\"", PLAIN);
        assert!(made(&skipped).is_empty());
        // Slices of before go.
        let mut later = snapshot(SUBSETS, "", "selector: {a: b}");
        later.slices = made(&snapshot(SUBSETS, "", PLAIN)).into_iter().map(Arc::new).collect();
        let shown = text(&plan(&later, at(0)));
        assert_eq!(shown.matches("delete endpointslices").count(), 2, "{shown}");
    }

    #[test]
    fn a_change_rewrites_what_differs_and_planning_again_changes_nothing() {
        let mut world = snapshot(SUBSETS, "", PLAIN);
        world.slices = made(&world).into_iter().map(Arc::new).collect();
        assert_eq!(text(&plan(&world, at(0))), "");
        let subsets = SUBSETS.replace("10.1.0.2", "10.1.0.3");
        world.endpoints = snapshot(&subsets, "", PLAIN).endpoints;
        let shown = text(&plan(&world, at(0)));
        assert_eq!(shown.lines().count(), 1, "{shown}");
        assert!(shown.contains("10.1.0.3") && !shown.contains("ports"), "{shown}");
    }

    #[test]
    fn many_addresses_get_several_slices() {
        let addresses: Vec<String> =
            (0..250).map(|n| format!("{{ip: 10.2.{}.{}}}", n / 250, n % 250 + 1)).collect();
        let subsets = format!("[{{addresses: [{}], ports: [{{port: 1}}]}}]", addresses.join(", "));
        let sizes: Vec<usize> = made(&snapshot(&subsets, "", PLAIN))
            .iter()
            .map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len))
            .collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
