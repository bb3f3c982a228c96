//! Gateways and their routes: what is said in their statuses. Nodes serve them by the same rules
//! (`wherry_resources::gateway`), so what is said is what is served.
//!
//! Owns: the class `wherry`, which every cluster has; the status of GatewayClasses and Gateways of
//! our controller; in the status of routes the entries of our controller. One key stands for all of
//! it, because whether one object is accepted depends on the others.
//!
//! Invariant: nothing is said until every kind has been listed once, or is not there.

mod held;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use serde_json::json;
use wherry_resources::gateway::objects::{Filter, Parsed};
use wherry_resources::gateway::{GROUP, Name, PORTS_REFUSED, Refusal, World};

use super::addresses;
use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::{Action, Write};

pub use held::{CERTIFICATE, Held, decode, hold, holds_certificate, kind_of};
pub use wherry_resources::gateway::objects::Kind;

type Definition = apiextensions::CustomResourceDefinition;

/// The class that every cluster has.
const CLASS: &str = "wherry";
/// How soon it is looked again whether everything has been listed.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What the plan reads.
#[derive(Default)]
pub struct Snapshot {
    pub world: World,
    /// All objects, with their kinds as the API serves them.
    pub objects: Vec<(&'static wherry_resources::Kind, Arc<Held>)>,
    /// Of the nodes that take traffic from outside.
    pub addresses: Vec<IpAddr>,
    /// Ports that none of these nodes can listen at, and why.
    pub refused: BTreeMap<i64, String>,
    /// Secrets with a certificate that can be used.
    pub certificates: BTreeSet<Name>,
    /// Services that routes name: their ports; none of an ExternalName, which nobody is behind.
    pub services: BTreeMap<Name, Option<Vec<i32>>>,
    /// The kind of classes, once it is served.
    pub class_kind: Option<&'static wherry_resources::Kind>,
}

pub const CONTROLLER: Controller = Controller { name: "gateway", wake, reconcile };

/// The one key of this controller.
fn key() -> Key {
    Key::of::<Definition>("", "gateways.gateway.networking.k8s.io")
}

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let kind = change.key.kind;
    let concerns = match (kind.group, kind.kind) {
        (GROUP, _) => true,
        ("apiextensions.k8s.io", _) => change.key.name().ends_with(GROUP),
        ("", "Service") => differs::<Service, _>(change, ports),
        ("", "Secret") => differs::<Secret, _>(change, is_certificate),
        ("", "Node") => {
            differs::<Node, _>(change, |node| (addresses::addresses(node), ports_refused(node)))
        }
        ("", "Namespace") => {
            differs::<Namespace, _>(change, |namespace| namespace.metadata.labels.clone())
        }
        _ => false,
    };
    let own = kind.group == GROUP || kind.group == "apiextensions.k8s.io";
    let mut held = cache.all_custom::<Held>(GROUP);
    if concerns && (own || held.any(|(kind, _)| kind.kind == Kind::Gateway.name())) {
        keys.push(key());
    }
}

/// Whether a change is one of what the controller reads of an object.
pub(super) fn differs<T: super::cache::Typed, R: PartialEq>(
    change: &Change,
    read: fn(&T) -> R,
) -> bool {
    let Some((before, after)) = change.of::<T>() else { return false };
    before.map(read) != after.map(read)
}

fn ports(service: &Service) -> Option<Vec<i32>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    Some(spec.ports.iter().flatten().map(|port| port.port).collect())
}

pub(super) fn is_certificate(secret: &Secret) -> bool {
    secret.data.as_ref().is_some_and(|data| data.contains_key(CERTIFICATE))
}

fn reconcile(view: &View<'_>, _: &Key) -> Plan {
    let cache = view.cache;
    let definitions = cache.all::<Definition>().filter(|one| one.spec.group == GROUP);
    let served: BTreeSet<String> = definitions.map(|one| one.spec.names.kind.clone()).collect();
    let is_known =
        |kind: Kind| !served.contains(kind.name()) || cache.is_listed(GROUP, kind.name());
    if !Kind::ALL.into_iter().all(is_known) {
        let mut plan = Plan::default();
        plan.look_again(LOOK_AGAIN);
        return plan;
    }
    let objects: Vec<_> = cache.all_custom::<Held>(GROUP).collect();
    let mut world = World::default();
    for object in objects.iter().filter_map(|(_, held)| held.parsed.as_ref()) {
        world.add(object);
    }
    let any = format!("{GROUP}/v1");
    let class_kind = cache.custom_kind(&any, Kind::Class.name());
    let mut snapshot = Snapshot { class_kind, ..Snapshot::default() };
    if !world.gateways.is_empty() {
        for namespace in cache.all::<Namespace>() {
            let meta = &namespace.metadata;
            let labels = meta.labels.clone().unwrap_or_default();
            world.namespaces.insert(meta.name.clone().unwrap_or_default(), labels);
        }
        let nodes: Vec<Arc<Node>> = cache.all().collect();
        snapshot.addresses = addresses::of_nodes(&nodes);
        snapshot.refused = refused_by_all(&nodes);
        let secrets = world.gateways.iter().flat_map(|gateway| world.secrets(gateway));
        snapshot.certificates = secrets
            .filter(|(namespace, name)| {
                cache.get::<Secret>(namespace, name).is_some_and(|secret| is_certificate(&secret))
            })
            .collect();
        snapshot.services = services(cache, &world);
    }
    plan(&Snapshot { world, objects, ..snapshot }, view.now).into()
}

/// Ports that a node cannot listen at, with its reasons.
fn ports_refused(node: &Node) -> BTreeMap<i64, String> {
    let annotations = node.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(PORTS_REFUSED));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Ports that none of the nodes that take traffic from outside can listen at, with what one of them
/// says.
fn refused_by_all(nodes: &[Arc<Node>]) -> BTreeMap<i64, String> {
    let mut outer = nodes.iter().filter(|node| !addresses::addresses(node).is_empty());
    let Some(first) = outer.next() else { return BTreeMap::new() };
    let mut refused = ports_refused(first);
    for node in outer {
        let theirs = ports_refused(node);
        refused.retain(|port, _| theirs.contains_key(port));
    }
    let name = first.metadata.name.as_deref().unwrap_or("");
    let told = |why: String| format!("no node can have the port; node {name}: {why}");
    refused.into_iter().map(|(port, why)| (port, told(why))).collect()
}

/// The Services that routes name.
fn services(cache: &Cache, world: &World) -> BTreeMap<Name, Option<Vec<i32>>> {
    let mut found = BTreeMap::new();
    for route in &world.routes {
        let rules = &route.read.spec.rules;
        let mirrored = |filters: &'_ [Filter]| -> Vec<_> {
            let mirrors = filters.iter().filter_map(|filter| filter.request_mirror.clone());
            mirrors.map(|mirror| mirror.backend_ref).collect()
        };
        let named = rules
            .iter()
            .flat_map(|rule| rule.backend_refs.iter().cloned().chain(mirrored(&rule.filters)));
        for to in named {
            let namespace = to.namespace.as_ref().unwrap_or(&route.read.namespace);
            if let Some(service) = cache.get::<Service>(namespace, &to.name) {
                found.insert((namespace.clone(), to.name.clone()), ports(&service));
            }
        }
    }
    found
}

/// Makes the class, and puts every status right.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    let class = |name: &str| snapshot.world.classes.iter().any(|class| class.name == name);
    if let Some(kind) = snapshot.class_kind.filter(|_| !class(CLASS)) {
        let object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": CLASS},
            "spec": {
                "controllerName": wherry_resources::gateway::CONTROLLER,
                "description": "Served by the nodes of this cluster",
            },
        });
        writes.push(Action::Create { kind, namespace: String::new(), object }.into());
    }
    let has_certificate = |name: &Name| snapshot.certificates.contains(name);
    let settled = snapshot.world.settle(&has_certificate);
    for &(kind, ref held) in &snapshot.objects {
        let body = match &held.parsed {
            Some(Parsed::Class(class)) => status::class(class, held, now),
            Some(Parsed::Gateway(gateway)) => {
                let own = settled.gateways.iter().find(|own| Arc::ptr_eq(&own.gateway, gateway));
                let nodes = (&*snapshot.addresses, &snapshot.refused);
                own.and_then(|own| status::gateway(own, held, nodes, now))
            }
            Some(Parsed::Route(route)) => {
                let own = settled.routes.iter().find(|own| Arc::ptr_eq(&own.route, route));
                let resolved = refused_backend(snapshot, route);
                own.and_then(|own| status::route(own, held, resolved, now))
            }
            Some(Parsed::Grant(_)) | None => None,
        };
        writes.extend(body.map(|body| status::write(kind, held, body)));
    }
    writes
}

/// The first of a route's references that leads nowhere.
fn refused_backend(
    snapshot: &Snapshot,
    route: &wherry_resources::gateway::objects::Route,
) -> Option<Refusal> {
    for rule in &route.read.spec.rules {
        let mirrors = rule.filters.iter().filter_map(|filter| filter.request_mirror.as_ref());
        let mirrors = mirrors.map(|mirror| &mirror.backend_ref);
        for to in rule.backend_refs.iter().chain(mirrors) {
            let backend = match snapshot.world.backend(route, to) {
                Ok(backend) => backend,
                Err(why) => return Some(why),
            };
            let name = format!("Service {}/{}", backend.namespace, backend.service);
            let held = snapshot.services.get(&(backend.namespace, backend.service));
            let message = match held {
                None => format!("{name} does not exist"),
                Some(None) => format!("{name} is an ExternalName, which nobody is behind"),
                Some(Some(ports)) if !ports.contains(&i32::from(backend.port)) => {
                    format!("{name} has no port {}", backend.port)
                }
                Some(Some(_)) => continue,
            };
            return Some(Refusal { reason: "BackendNotFound", message });
        }
    }
    None
}
