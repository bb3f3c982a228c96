//! The Gateway API: which listeners are there, which routes are attached to them, and what a route's
//! references lead to. Pure; what nodes serve and what controllers write into statuses both follow
//! from [`settle`], so they cannot say different things.
//!
//! Words: a Gateway is *ours* if its class has our [`CONTROLLER`]; a listener is *served* if nodes
//! listen for it; a route is *attached* to a listener, for some hosts, if both want it.
//!
//! All Gateways share the addresses of the nodes. So listeners of the same port and host are one,
//! and of two Gateways that want one port for different protocols the older has it.

pub mod hosts;
pub mod objects;
pub mod rules;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::json;

use crate::names;
use crate::selectors::LabelSelector;
use objects::{
    BackendRef, Class, Gateway, Grant, Kind, Listener, ObjectRef, ParentRef, Parsed, Route,
};

pub const GROUP: &str = "gateway.networking.k8s.io";
/// The controller of GatewayClasses that this cluster's nodes serve.
pub const CONTROLLER: &str = "wherry.dev/gateway";
/// Ports that nodes have for HTTP and HTTPS from outside; they stand for whatever `--ingress-ports`
/// says. Each has its protocol.
pub const HTTP_PORT: i64 = 80;
pub const HTTPS_PORT: i64 = 443;
/// Where the API server listens unless it was told another port. A node that shares its machine would
/// take the port from it the next time it starts.
pub const API_PORT: i64 = 6443;
/// Annotation of a Node: ports of Gateways that it cannot listen at, with the reasons, as JSON.
pub const PORTS_REFUSED: &str = "wherry.dev/ports-refused";
/// Ports of Services on nodes.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// Namespace and name.
pub type Name = (String, String);

/// Why something is not as its object asks for: a condition's reason, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

/// All objects, and the labels of namespaces.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub classes: Vec<Arc<Class>>,
    pub gateways: Vec<Arc<Gateway>>,
    pub routes: Vec<Arc<Route>>,
    pub grants: Vec<Arc<Grant>>,
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// What all objects together come to.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Ours, the older first.
    pub gateways: Vec<SettledGateway>,
    /// All, the older first.
    pub routes: Vec<SettledRoute>,
}

#[derive(Clone, Debug)]
pub struct SettledGateway {
    pub gateway: Arc<Gateway>,
    /// Why none of it is served.
    pub refused: Option<Refusal>,
    /// In the order of its listeners.
    pub listeners: Vec<Listening>,
}

impl SettledGateway {
    /// Whether nodes listen for one of its listeners.
    pub fn serves(&self, listener: usize) -> bool {
        self.refused.is_none() && self.listeners[listener].is_served()
    }
}

/// What becomes of a listener.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Kinds of routes that it takes.
    pub kinds: Vec<Kind>,
    pub accepted: Result<(), Refusal>,
    /// It is told from the others of its Gateway.
    pub distinct: Result<(), Refusal>,
    pub resolved: Result<(), Refusal>,
    /// Secrets with certificates that can be used.
    pub certificates: Vec<Name>,
    encrypted: bool,
    /// How many routes are attached.
    pub attached: usize,
}

impl Listening {
    fn is_served(&self) -> bool {
        let certain = !self.encrypted || !self.certificates.is_empty();
        self.accepted.is_ok() && self.distinct.is_ok() && certain && !self.kinds.is_empty()
    }
}

#[derive(Clone, Debug)]
pub struct SettledRoute {
    pub route: Arc<Route>,
    /// Those of its parents that are ours.
    pub parents: Vec<Attachment>,
}

/// What becomes of one parent of a route.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub parent: ParentRef,
    /// Index of its Gateway.
    pub gateway: usize,
    pub accepted: Result<Vec<Place>, Refusal>,
}

/// A listener that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its index in the Gateway.
    pub listener: usize,
    /// For these hosts; an empty pattern is every host.
    pub hosts: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub namespace: String,
    pub service: String,
    pub port: u16,
}

impl World {
    /// Takes in an object.
    pub fn add(&mut self, object: &Parsed) {
        match object {
            Parsed::Class(class) => self.classes.push(class.clone()),
            Parsed::Gateway(gateway) => self.gateways.push(gateway.clone()),
            Parsed::Route(route) => self.routes.push(route.clone()),
            Parsed::Grant(grant) => self.grants.push(grant.clone()),
        }
    }

    /// Whether a Gateway's class has our controller and is accepted.
    pub fn is_ours(&self, gateway: &Gateway) -> bool {
        let name = &gateway.spec.gateway_class_name;
        let class = self.classes.iter().find(|class| class.name == *name);
        class.is_some_and(|class| is_ours(class) && class_refusal(class).is_none())
    }

    /// Whether any Gateway is ours.
    pub fn serves(&self) -> bool {
        self.gateways.iter().any(|gateway| self.is_ours(gateway))
    }

    /// Secrets that a Gateway names and may use, whether they are there or not.
    pub fn secrets(&self, gateway: &Gateway) -> Vec<Name> {
        let tls = gateway.spec.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let refs = tls.flat_map(|tls| &tls.certificate_refs);
        refs.filter_map(|to| self.secret(gateway, to).ok()).collect()
    }

    fn secret(&self, gateway: &Gateway, to: &ObjectRef) -> Result<Name, Refusal> {
        let group = to.group.as_deref().unwrap_or("");
        let kind = to.kind.as_deref().unwrap_or("Secret");
        if (group, kind) != ("", "Secret") {
            let message = format!("a certificate is a Secret, not a {kind}");
            return Err(refuse("InvalidCertificateRef", message));
        }
        // The definition takes any text, and nodes would ask for it in vain before they serve.
        if !names::subdomain(&to.name).is_empty() {
            let message = format!("{:?} is no name of a Secret", to.name);
            return Err(refuse("InvalidCertificateRef", message));
        }
        let namespace = to.namespace.as_deref().unwrap_or(&gateway.namespace);
        let from = (Kind::Gateway, gateway.namespace.as_str());
        if !self.granted(from, (kind, namespace, &to.name)) {
            let message = format!("no ReferenceGrant lets it use Secret {namespace}/{}", to.name);
            return Err(refuse("RefNotPermitted", message));
        }
        Ok((namespace.to_owned(), to.name.clone()))
    }

    /// Whether an object may name another one of the core group.
    fn granted(&self, from: (Kind, &str), to: (&str, &str, &str)) -> bool {
        let (of, here) = from;
        let (kind, namespace, name) = to;
        if namespace == here {
            return true;
        }
        self.grants.iter().filter(|grant| grant.namespace == namespace).any(|grant| {
            let is_from = grant.spec.from.iter().any(|from| {
                from.group == GROUP && from.kind == of.name() && from.namespace == here
            });
            let is_to = grant.spec.to.iter().any(|to| {
                let named = to.name.as_deref().filter(|name| !name.is_empty());
                to.group.is_empty() && to.kind == kind && named.is_none_or(|to| to == name)
            });
            is_from && is_to
        })
    }

    /// What a reference of a route leads to. Whether the Service is there is not known here.
    pub fn backend(&self, route: &Route, to: &BackendRef) -> Result<Backend, Refusal> {
        let group = to.group.as_deref().unwrap_or("");
        let kind = to.kind.as_deref().unwrap_or("Service");
        if (group, kind) != ("", "Service") {
            return Err(refuse("InvalidKind", format!("a backend is a Service, not a {kind}")));
        }
        let here = route.read.namespace.as_str();
        let namespace = to.namespace.as_deref().unwrap_or(here);
        if !self.granted((route.kind(), here), (kind, namespace, &to.name)) {
            let message = format!("no ReferenceGrant lets it use Service {namespace}/{}", to.name);
            return Err(refuse("RefNotPermitted", message));
        }
        let port = to.port.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| {
            refuse(
                "BackendNotFound",
                format!("Service {namespace}/{} is named without a port", to.name),
            )
        })?;
        Ok(Backend { namespace: namespace.to_owned(), service: to.name.clone(), port })
    }

    fn allows(&self, gateway: &Gateway, listener: &Listener, namespace: &str) -> bool {
        let allowed = listener.allowed_routes.as_ref().and_then(|it| it.namespaces.as_ref());
        let from = allowed.and_then(|it| it.from.as_deref()).unwrap_or("Same");
        match from {
            "All" => true,
            "Same" => gateway.namespace == namespace,
            "Selector" => {
                let selector = allowed.and_then(|it| it.selector.as_ref());
                let labels = self.namespaces.get(namespace).map(|labels| json!(labels));
                let selector = LabelSelector::from_typed(selector);
                labels.is_some() && selector.is_ok_and(|it| it.matches_labels(labels.as_ref()))
            }
            _ => false,
        }
    }

    /// Settles everything. `has_certificate` says whether a Secret holds one that can be used.
    pub fn settle(&self, has_certificate: &dyn Fn(&Name) -> bool) -> Settled {
        let ours = self.gateways.iter().filter(|gateway| self.is_ours(gateway));
        let mut ours: Vec<Arc<Gateway>> = ours.cloned().collect();
        ours.sort_by(|left, right| left.age().cmp(&right.age()));
        let mut ports: HashMap<i64, String> = HashMap::new();
        let mut settled = Settled::default();
        for gateway in ours {
            let refused = gateway_refusal(&gateway);
            let listeners = self.listeners(&gateway, &mut ports, has_certificate);
            settled.gateways.push(SettledGateway { gateway, refused, listeners });
        }
        let mut routes = self.routes.clone();
        routes.sort_by(|left, right| {
            (left.read.age(), left.grpc).cmp(&(right.read.age(), right.grpc))
        });
        // Hosts that routes have at listeners, and of which kind these are.
        let mut taken: HashMap<(usize, usize), Vec<(bool, String)>> = HashMap::new();
        for route in routes {
            let parents = self.parents(&route, &mut settled.gateways, &mut taken);
            settled.routes.push(SettledRoute { route, parents });
        }
        settled
    }

    fn listeners(
        &self,
        gateway: &Gateway,
        ports: &mut HashMap<i64, String>,
        has_certificate: &dyn Fn(&Name) -> bool,
    ) -> Vec<Listening> {
        let mut all = Vec::new();
        for (index, listener) in gateway.spec.listeners.iter().enumerate() {
            let (kinds, unknown) = route_kinds(listener);
            let mut resolved = match unknown {
                None => Ok(()),
                Some(kind) => Err(refuse(
                    "InvalidRouteKinds",
                    format!("there are no routes of kind {kind} here"),
                )),
            };
            let encrypted = listener.protocol == "HTTPS";
            let mut certificates = Vec::new();
            if encrypted {
                let refs = listener.tls.as_ref().map(|tls| tls.certificate_refs.as_slice());
                let refs = refs.unwrap_or_default();
                if refs.is_empty() {
                    let message = "an HTTPS listener needs a certificate";
                    resolved = resolved.and(Err(refuse("InvalidCertificateRef", message)));
                }
                for to in refs {
                    match self.certificate(gateway, to, has_certificate) {
                        Ok(name) => certificates.push(name),
                        Err(why) => resolved = resolved.and(Err(why)),
                    }
                }
            }
            let accepted = listener_refusal(listener, ports).map_or(Ok(()), Err);
            let distinct = conflict(gateway, index).map_or(Ok(()), Err);
            if accepted.is_ok() && distinct.is_ok() {
                ports.entry(listener.port).or_insert_with(|| listener.protocol.clone());
            }
            all.push(Listening {
                kinds,
                accepted,
                distinct,
                resolved,
                certificates,
                encrypted,
                attached: 0,
            });
        }
        all
    }

    fn certificate(
        &self,
        gateway: &Gateway,
        to: &ObjectRef,
        has_certificate: &dyn Fn(&Name) -> bool,
    ) -> Result<Name, Refusal> {
        let name = self.secret(gateway, to)?;
        if !has_certificate(&name) {
            let (namespace, name) = &name;
            let message = format!("Secret {namespace}/{name} holds no certificate with its key");
            return Err(refuse("InvalidCertificateRef", message));
        }
        Ok(name)
    }

    fn parents(
        &self,
        route: &Arc<Route>,
        gateways: &mut [SettledGateway],
        taken: &mut HashMap<(usize, usize), Vec<(bool, String)>>,
    ) -> Vec<Attachment> {
        let mut parents: Vec<Attachment> = Vec::new();
        let unusable = route_refusal(route);
        for parent in &route.read.spec.parent_refs {
            let Some(gateway) = find(gateways, route, parent) else { continue };
            let mut accepted = match &unusable {
                Some(why) => Err(why.clone()),
                None => self.places(&gateways[gateway], route, parent),
            };
            let other = accepted.as_ref().ok().and_then(|places| {
                places.iter().find_map(|place| {
                    let held = taken.get(&(gateway, place.listener))?;
                    let others = held.iter().filter(|(grpc, _)| *grpc != route.grpc);
                    let mut others = others.map(|(_, host)| host);
                    let meets = |other: &&String| {
                        place.hosts.iter().any(|host| hosts::common(host, other).is_some())
                    };
                    others.find(meets).cloned()
                })
            });
            if let Some(host) = other {
                let kind = if route.grpc { Kind::HttpRoute } else { Kind::GrpcRoute };
                let message = format!("an older {} has the host {host:?}", kind.name());
                accepted = Err(refuse("HostnameConflict", message));
            }
            for place in accepted.iter().flatten() {
                let held = taken.entry((gateway, place.listener)).or_default();
                held.extend(place.hosts.iter().map(|host| (route.grpc, host.clone())));
                let counted = parents.iter().any(|earlier| {
                    let places = earlier.accepted.iter().flatten();
                    earlier.gateway == gateway
                        && places.into_iter().any(|it| it.listener == place.listener)
                });
                if !counted {
                    gateways[gateway].listeners[place.listener].attached += 1;
                }
            }
            parents.push(Attachment { parent: parent.clone(), gateway, accepted });
        }
        parents
    }

    /// The listeners that one parent means and that take the route.
    fn places(
        &self,
        settled: &SettledGateway,
        route: &Route,
        parent: &ParentRef,
    ) -> Result<Vec<Place>, Refusal> {
        let gateway = &settled.gateway;
        let name = format!("Gateway {}/{}", gateway.namespace, gateway.name);
        let (mut meant, mut allowed, mut places) = (false, false, Vec::new());
        for (index, listener) in gateway.spec.listeners.iter().enumerate() {
            let section = parent.section_name.as_deref().filter(|it| !it.is_empty());
            let named = section.is_none_or(|section| section == listener.name);
            if !named || parent.port.is_some_and(|port| port != listener.port) {
                continue;
            }
            meant = true;
            let kinds = &settled.listeners[index].kinds;
            if !kinds.contains(&route.kind())
                || !self.allows(gateway, listener, &route.read.namespace)
            {
                continue;
            }
            allowed = true;
            let hosts = hosts_at(listener, route);
            if !hosts.is_empty() {
                places.push(Place { listener: index, hosts });
            }
        }
        if !meant {
            return Err(refuse("NoMatchingParent", format!("{name} has no such listener")));
        }
        if !allowed {
            let message = format!("{name} takes no such routes from this namespace");
            return Err(refuse("NotAllowedByListeners", message));
        }
        if places.is_empty() {
            let message = format!("no listener of {name} is for one of the route's hosts");
            return Err(refuse("NoMatchingListenerHostname", message));
        }
        Ok(places)
    }
}

/// Whether a class has our controller.
pub fn is_ours(class: &Class) -> bool {
    class.spec.controller_name == CONTROLLER
}

/// Why a class cannot be used.
pub fn class_refusal(class: &Class) -> Option<Refusal> {
    class.spec.parameters_ref.as_ref()?;
    Some(refuse("InvalidParameters", "classes of this controller take no parameters"))
}

fn gateway_refusal(gateway: &Gateway) -> Option<Refusal> {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    if infrastructure.is_some_and(|it| it.parameters_ref.is_some()) {
        return Some(refuse("InvalidParameters", "Gateways of this class take no parameters"));
    }
    let by_address = |kind: Option<&str>| kind.unwrap_or("IPAddress") == "IPAddress";
    let mut addresses = gateway.spec.addresses.iter();
    let other = addresses.find(|address| !by_address(address.r#type.as_deref()))?;
    let kind = other.r#type.as_deref().unwrap_or("");
    Some(refuse("UnsupportedAddress", format!("there are no addresses of type {kind}")))
}

/// Kinds of routes that a listener takes, and one that it asks for in vain.
fn route_kinds(listener: &Listener) -> (Vec<Kind>, Option<String>) {
    let served = match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => vec![Kind::HttpRoute, Kind::GrpcRoute],
        _ => Vec::new(),
    };
    let asked = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice());
    let asked = asked.unwrap_or_default();
    if asked.is_empty() {
        return (served, None);
    }
    let (mut kinds, mut unknown) = (Vec::new(), None);
    for kind in asked {
        let own = kind.group.as_deref().unwrap_or(GROUP) == GROUP;
        match Kind::named(&kind.kind).filter(|kind| own && served.contains(kind)) {
            Some(kind) if kinds.contains(&kind) => {}
            Some(kind) => kinds.push(kind),
            None => unknown = unknown.or(Some(kind.kind.clone())),
        }
    }
    (kinds, unknown)
}

fn listener_refusal(listener: &Listener, ports: &HashMap<i64, String>) -> Option<Refusal> {
    let (port, protocol) = (listener.port, listener.protocol.as_str());
    if !["HTTP", "HTTPS"].contains(&protocol) {
        let message = format!("nodes do not listen for {protocol}");
        return Some(refuse("UnsupportedProtocol", message));
    }
    let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
    if protocol == "HTTPS" && mode != "Terminate" {
        return Some(refuse("UnsupportedProtocol", format!("there is no mode {mode} for HTTPS")));
    }
    let unavailable = |message: String| Some(refuse("PortUnavailable", message));
    if !(1..=65_535).contains(&port) || NODE_PORTS.contains(&port) {
        return unavailable(format!("{port} is not a port that Gateways can have"));
    }
    if port == API_PORT {
        return unavailable(format!("port {port} is the API server's"));
    }
    let mine = [(HTTP_PORT, "HTTP"), (HTTPS_PORT, "HTTPS")];
    if let Some((_, own)) = mine.iter().find(|(it, own)| *it == port && *own != protocol) {
        return unavailable(format!("port {port} is for {own}"));
    }
    let held = ports.get(&port).filter(|held| *held != protocol)?;
    unavailable(format!("an older Gateway has port {port} for {held}"))
}

/// What clients speak first: in TLS they name the host, by which HTTPS and TLS share a port.
fn spoken(listener: &Listener) -> &str {
    match listener.protocol.as_str() {
        "HTTPS" | "TLS" => "TLS",
        other => other,
    }
}

/// How a listener cannot be told from another one of its Gateway.
fn conflict(gateway: &Gateway, index: usize) -> Option<Refusal> {
    let listener = &gateway.spec.listeners[index];
    let others = gateway
        .spec
        .listeners
        .iter()
        .enumerate()
        .filter(|(other, it)| *other != index && it.port == listener.port);
    let mut found = None;
    for (_, other) in others {
        if spoken(other) != spoken(listener) {
            let message = format!("listener {} has its port for {}", other.name, other.protocol);
            return Some(refuse("ProtocolConflict", message));
        }
        if other.host() == listener.host() {
            let message = format!("listener {} has its port and hostname", other.name);
            found = Some(refuse("HostnameConflict", message));
        }
    }
    found
}

/// The Gateway of ours that a parent names.
fn find(gateways: &[SettledGateway], route: &Route, parent: &ParentRef) -> Option<usize> {
    let group = parent.group.as_deref().unwrap_or(GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != (GROUP, "Gateway") {
        return None;
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.read.namespace);
    gateways.iter().position(|settled| {
        settled.gateway.namespace == namespace && settled.gateway.name == parent.name
    })
}

/// Why nothing of a route can be honoured.
fn route_refusal(route: &Route) -> Option<Refusal> {
    let all = &route.read.spec.rules;
    let refusals: Vec<Refusal> =
        all.iter().filter_map(|rule| rules::refusal(route, rule)).collect();
    let first = refusals.first()?.clone();
    (refusals.len() == all.len()).then_some(first)
}

/// The hosts that a route has at a listener; none if they have none in common.
fn hosts_at(listener: &Listener, route: &Route) -> Vec<String> {
    let own = listener.host();
    let asked = &route.read.spec.hostnames;
    if asked.is_empty() {
        return vec![own];
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in asked {
        let host = host.to_ascii_lowercase();
        if let Some(common) =
            hosts::common(&own, &host).filter(|it| !hosts.iter().any(|held| held == it))
        {
            hosts.push(common.to_owned());
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Secrets of a Gateway that names one so.
    fn secrets(name: &str) -> Vec<Name> {
        let object = json!({
            "metadata": {"name": "g", "namespace": "infra"},
            "spec": {"gatewayClassName": "wherry", "listeners": [{
                "name": "tls", "port": 443, "protocol": "HTTPS",
                "tls": {"certificateRefs": [{"name": name}]},
            }]},
        });
        let mut world = World::default();
        world.add(&Parsed::read(Kind::Gateway, &object).expect("a Gateway"));
        world.secrets(&world.gateways[0])
    }

    #[test]
    fn https_shares_its_port_with_tls_for_other_hosts() {
        let settled = |host: &str| {
            let class = json!({
                "metadata": {"name": "wherry"}, "spec": {"controllerName": CONTROLLER},
            });
            let gateway = json!({
                "metadata": {"name": "g", "namespace": "infra"},
                "spec": {"gatewayClassName": "wherry", "listeners": [
                    {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "a.com"},
                    {"name": "tls", "port": 443, "protocol": "TLS", "hostname": host},
                ]},
            });
            let mut world = World::default();
            for (kind, object) in [(Kind::Class, class), (Kind::Gateway, gateway)] {
                world.add(&Parsed::read(kind, &object).expect("an object of its kind"));
            }
            let listeners = world.settle(&|_: &Name| true).gateways.remove(0).listeners;
            let reason = |outcome: &Result<(), Refusal>| match outcome {
                Ok(()) => "",
                Err(why) => why.reason,
            };
            (reason(&listeners[0].distinct), reason(&listeners[1].accepted))
        };
        assert_eq!(settled("b.com"), ("", "UnsupportedProtocol"));
        assert_eq!(settled("a.com"), ("HostnameConflict", "UnsupportedProtocol"));
    }

    #[test]
    fn ports_of_others_are_not_for_gateways() {
        let refused = |port: i64| {
            let object = json!({
                "metadata": {"name": "g", "namespace": "infra"},
                "spec": {"gatewayClassName": "wherry", "listeners": [
                    {"name": "http", "port": port, "protocol": "HTTP"},
                ]},
            });
            let Some(Parsed::Gateway(gateway)) = Parsed::read(Kind::Gateway, &object) else {
                panic!("it is a Gateway")
            };
            let refusal = listener_refusal(&gateway.spec.listeners[0], &HashMap::new());
            refusal.map_or_else(String::new, |why| why.message)
        };
        assert_eq!(refused(8443), "");
        assert_eq!(refused(6443), "port 6443 is the API server's");
        assert_eq!(refused(30_000), "30000 is not a port that Gateways can have");
    }

    #[test]
    fn only_what_can_be_there_is_asked_for() {
        assert_eq!(secrets("a.tls"), [("infra".to_owned(), "a.tls".to_owned())]);
        for name in ["", "a,b", "a=b", "a/b", "Tls"] {
            assert!(secrets(name).is_empty(), "{name:?}");
        }
    }
}
