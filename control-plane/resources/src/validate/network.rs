//! Rules for Services, endpoints, Ingresses and network policies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::metadata::label_map;
use super::pod::port_or_name;
use super::workloads::label_selector;
use super::{Errors, at, get, integer, is_empty, nth};
use crate::meta::{self, items, text};
use crate::{Object, names};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// The same in the order in which refusals of policies have them.
const POLICY_PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const POLICY_TYPES: &[&str] = &["Ingress", "Egress"];
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
/// A day, in seconds.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// Longest name of a controller of Ingresses.
const CONTROLLER_NAME_MAX: usize = 250;
/// What is said of networks that are none.
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
/// Most addresses in one slice.
const SLICE_ENDPOINTS_MAX: usize = 1000;
/// Most addresses of one endpoint.
const SLICE_ADDRESSES_MAX: usize = 100;
/// Most ports of a slice: what a stock server takes, which is far more than its documents say.
const SLICE_PORTS_MAX: usize = 20_000;
/// The older way to name the class of an Ingress.
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";

pub(super) fn service(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let kind = text(spec, "type");
    let is_headless = text(spec, "clusterIP") == "None";
    if is_empty(spec, "ports") && !is_headless && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    if kind == "LoadBalancer" && is_headless {
        let detail = "may not be set to 'None' for LoadBalancer services";
        errors.invalid("spec.clusterIPs[0]", "None", detail);
    }
    if kind == "NodePort" && is_headless {
        let detail = "may not be set to 'None' for NodePort services";
        errors.invalid("spec.clusterIPs[0]", "None", detail);
    }
    if kind == "ExternalName" {
        external_name(spec, errors);
    }
    service_ports(spec, kind, errors);
    label_map(spec, "spec", "selector", errors);
    match text(spec, "sessionAffinity") {
        "" => errors.required("spec.sessionAffinity", ""),
        affinity => errors.one_of("spec.sessionAffinity", affinity, &["ClientIP", "None"]),
    }
    affinity_timeout(spec, errors);
    match kind {
        "" => errors.required("spec.type", ""),
        kind => errors.one_of("spec.type", kind, TYPES),
    }
    addresses(spec, kind, errors);
    if kind != "ExternalName" {
        families(spec, errors);
    }
    balancer(spec, kind, errors);
    if let Some(distribution) = get(spec, "trafficDistribution").as_str() {
        errors.one_of("spec.trafficDistribution", distribution, DISTRIBUTIONS);
    }
    for key in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let policy = text(spec, key);
        if !policy.is_empty() {
            errors.one_of(&at("spec", key), policy, &["Cluster", "Local"]);
        }
    }
    let is_external = matches!(kind, "NodePort" | "LoadBalancer") || !is_empty(spec, "externalIPs");
    let external_policy = text(spec, "externalTrafficPolicy");
    if !is_external && !external_policy.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", external_policy, detail);
    }
    let health_port = integer(spec, "healthCheckNodePort").unwrap_or(0);
    if health_port != 0 && !has_health_port(spec) {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` \
                      is 'Local'";
        errors.invalid("spec.healthCheckNodePort", health_port, detail);
    }
}

/// Whether balancers can ask a node for Pods of the Service.
fn has_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn external_name(spec: &Value, errors: &mut Errors) {
    if !is_empty(spec, "clusterIPs") || !text(spec, "clusterIP").is_empty() {
        let detail = "may not be set for ExternalName services";
        errors.forbidden("spec.clusterIPs", detail);
    }
    // A name that ends in a dot is as good as one that does not.
    let name = text(spec, "externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.required("spec.externalName", "");
    } else {
        errors.complaints("spec.externalName", name, names::subdomain(name));
    }
}

fn service_ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = items(spec, "ports");
    let mut names_seen = BTreeSet::new();
    let mut ports_seen = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = nth("spec", "ports", index);
        let (name, protocol) = (text(port, "name"), text(port, "protocol"));
        let number = integer(port, "port").unwrap_or(0);
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(&at(&path, "name"), "");
            }
        } else {
            errors.complaints(&at(&path, "name"), name, names::label(name));
            if !names_seen.insert(name) {
                errors.duplicate(&at(&path, "name"), name);
            }
        }
        for complaint in names::port_number(number) {
            errors.invalid(&at(&path, "port"), number, &complaint);
        }
        match protocol {
            "" => errors.required(&at(&path, "protocol"), ""),
            protocol => errors.one_of(&at(&path, "protocol"), protocol, PROTOCOLS),
        }
        port_or_name(get(port, "targetPort"), &at(&path, "targetPort"), errors);
        let application = text(port, "appProtocol");
        if !application.is_empty() {
            let complaints = names::qualified(application);
            errors.complaints(&at(&path, "appProtocol"), application, complaints);
        }
        let node_port = integer(port, "nodePort").unwrap_or(0);
        if kind == "ClusterIP" && node_port != 0 {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(&at(&path, "nodePort"), detail);
        } else if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.duplicate(&at(&path, "nodePort"), node_port);
        }
        if !ports_seen.insert((protocol, number)) {
            errors.duplicate(&path, json!({"protocol": protocol, "port": number}));
        }
    }
}

fn affinity_timeout(spec: &Value, errors: &mut Errors) {
    let timeout = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
    let seconds = timeout.and_then(Value::as_i64);
    if let Some(seconds) = seconds.filter(|it| *it <= 0 || *it > AFFINITY_SECONDS_MAX) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.invalid(field, seconds, &detail);
    }
}

fn addresses(spec: &Value, kind: &str, errors: &mut Errors) {
    let first = text(spec, "clusterIP");
    let list = items(spec, "clusterIPs");
    if let Some(listed) = list.first().and_then(Value::as_str)
        && !first.is_empty()
        && listed != first
    {
        let value = Value::Array(list.to_vec());
        errors.invalid("spec.clusterIPs", value, "first value must match `clusterIP`");
    }
    if kind == "ExternalName" {
        return;
    }
    for (index, address) in list.iter().enumerate() {
        let address = address.as_str().unwrap_or("");
        if address != "None" && address.parse::<IpAddr>().is_err() {
            let detail = "must be empty, \"None\", or a valid IP address";
            errors.invalid(&nth("spec", "clusterIPs", index), address, detail);
        }
    }
    for (index, address) in items(spec, "externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or("");
        let field = nth("spec", "externalIPs", index);
        errors.complaints(&field, address, names::ip_address(address));
    }
}

/// Services have addresses of IPv4 only. Who writes the endpoints of a headless one may write others.
fn families(spec: &Value, errors: &mut Errors) {
    let is_own = text(spec, "clusterIP") == "None" && is_empty(spec, "selector");
    for (index, family) in items(spec, "ipFamilies").iter().enumerate() {
        let (field, family) = (nth("spec", "ipFamilies", index), family.as_str().unwrap_or(""));
        errors.one_of(&field, family, &["IPv4", "IPv6"]);
        if family == "IPv6" && !is_own {
            errors.invalid(&field, family, "not configured on this cluster");
        }
    }
    let (field, policy) = ("spec.ipFamilyPolicy", text(spec, "ipFamilyPolicy"));
    if !policy.is_empty() {
        errors.one_of(field, policy, FAMILY_POLICIES);
    }
    if policy == "RequireDualStack" && !is_own {
        errors.invalid(field, policy, "this cluster is not configured for dual-stack services");
    }
}

/// What only balancers have.
fn balancer(spec: &Value, kind: &str, errors: &mut Errors) {
    let is_balancer = kind == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    // A stock server writes this name so.
    let field = "spec.LoadBalancerSourceRanges";
    if !is_balancer && !is_empty(spec, "loadBalancerSourceRanges") {
        errors.forbidden(field, only);
    }
    for (index, range) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let range = range.as_str().unwrap_or("").trim();
        if !names::is_cidr(range) {
            errors.invalid(&format!("{field}[{index}]"), range, CIDR);
        }
    }
    if !is_balancer && !get(spec, "allocateLoadBalancerNodePorts").is_null() {
        errors.forbidden("spec.allocateLoadBalancerNodePorts", only);
    }
    let field = "spec.loadBalancerClass";
    match get(spec, "loadBalancerClass").as_str() {
        Some(class) if is_balancer => errors.complaints(field, class, names::qualified(class)),
        Some(_) => errors.forbidden(field, only),
        None => {}
    }
}

/// An address that was given once stays, unless the Service turns into or from a mere name.
pub(super) fn service_change(new: &Object, old: &Object, errors: &mut Errors) {
    let (new, old) = (get(new, "spec"), get(old, "spec"));
    let is_name = |spec| text(spec, "type") == "ExternalName";
    if is_name(new) || is_name(old) || text(old, "clusterIP").is_empty() {
        return;
    }
    if text(new, "clusterIP") != text(old, "clusterIP") {
        let value = get(new, "clusterIPs").clone();
        errors.invalid("spec.clusterIPs[0]", value, "may not change once set");
    }
    let is_balancer = |spec| text(spec, "type") == "LoadBalancer";
    let class = |spec| get(spec, "loadBalancerClass").clone();
    if is_balancer(new) && is_balancer(old) && class(new) != class(old) {
        errors.invalid("spec.loadBalancerClass", class(new), "may not change once set");
    }
    let health_port = |spec| integer(spec, "healthCheckNodePort").filter(|port| *port != 0);
    if has_health_port(new)
        && has_health_port(old)
        && let Some(before) = health_port(old)
        && let Some(now) = health_port(new).filter(|now| *now != before)
    {
        let detail = "cannot change healthCheckNodePort on loadBalancer service with \
                      externalTraffic=Local during update";
        errors.invalid("spec.healthCheckNodePort", now, detail);
    }
}

pub(super) fn endpoints(object: &Object, errors: &mut Errors) {
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let path = nth("", "subsets", index);
        if is_empty(subset, "addresses") && is_empty(subset, "notReadyAddresses") {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(subset, list).iter().enumerate() {
                let path = nth(&path, list, index);
                let ip = text(address, "ip");
                errors.complaints(&at(&path, "ip"), ip, names::ip_address(ip));
                endpoint_names(address, &path, errors);
            }
        }
        let ports = items(subset, "ports");
        for (index, port) in ports.iter().enumerate() {
            let path = nth(&path, "ports", index);
            match text(port, "name") {
                "" if ports.len() > 1 => errors.required(&at(&path, "name"), ""),
                "" => {}
                name => errors.complaints(&at(&path, "name"), name, names::label(name)),
            }
            let number = integer(port, "port").unwrap_or(0);
            for complaint in names::port_number(number) {
                errors.invalid(&at(&path, "port"), number, &complaint);
            }
            let protocol = text(port, "protocol");
            if !protocol.is_empty() {
                errors.one_of(&at(&path, "protocol"), protocol, PROTOCOLS);
            }
        }
    }
}

/// The names that an endpoint may have: its own, and its node's.
fn endpoint_names(endpoint: &Value, path: &str, errors: &mut Errors) {
    let (host, node) = (text(endpoint, "hostname"), text(endpoint, "nodeName"));
    if !host.is_empty() {
        errors.complaints(&at(path, "hostname"), host, names::label(host));
    }
    if !node.is_empty() {
        errors.complaints(&at(path, "nodeName"), node, names::subdomain(node));
    }
}

pub(super) fn slice(object: &Object, errors: &mut Errors) {
    let kind = text(object, "addressType");
    match kind {
        "" => errors.required("addressType", ""),
        kind => errors.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]),
    }
    let endpoints = items(object, "endpoints");
    if endpoints.len() > SLICE_ENDPOINTS_MAX {
        let message =
            format!("Too many: {}: must have at most {SLICE_ENDPOINTS_MAX} items", endpoints.len());
        errors.add(super::Reason::TooMany, "endpoints", message);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = nth("", "endpoints", index);
        if is_empty(endpoint, "addresses") {
            errors.required(&at(&path, "addresses"), "must contain at least 1 address");
        }
        let count = items(endpoint, "addresses").len();
        if count > SLICE_ADDRESSES_MAX {
            errors.too_many(&at(&path, "addresses"), count, SLICE_ADDRESSES_MAX);
        }
        for (index, address) in items(endpoint, "addresses").iter().enumerate() {
            let address = address.as_str().unwrap_or("");
            let field = nth(&path, "addresses", index);
            let parsed = address.parse::<IpAddr>();
            match kind {
                "IPv4" if !matches!(parsed, Ok(IpAddr::V4(_))) => {
                    errors.invalid(&field, address, "must be a valid IPv4 address");
                }
                "IPv6" if !matches!(parsed, Ok(IpAddr::V6(_))) => {
                    errors.invalid(&field, address, "must be a valid IPv6 address");
                }
                "FQDN" => errors.complaints(&field, address, names::subdomain(address)),
                _ => {}
            }
        }
        endpoint_names(endpoint, &path, errors);
    }
    slice_ports(object, errors);
}

fn slice_ports(object: &Object, errors: &mut Errors) {
    let count = items(object, "ports").len();
    if count > SLICE_PORTS_MAX {
        return errors.too_many("ports", count, SLICE_PORTS_MAX);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in items(object, "ports").iter().enumerate() {
        let path = nth("", "ports", index);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.complaints(&at(&path, "name"), name, names::label(name));
        }
        if !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
        match text(port, "protocol") {
            "" => errors.required(&at(&path, "protocol"), ""),
            protocol => errors.one_of(&at(&path, "protocol"), protocol, PROTOCOLS),
        }
        let application = text(port, "appProtocol");
        if !application.is_empty() {
            let complaints = names::qualified(application);
            errors.complaints(&at(&path, "appProtocol"), application, complaints);
        }
    }
}

pub(super) fn slice_change(new: &Object, old: &Object, errors: &mut Errors) {
    errors.immutable("addressType", new.get("addressType"), old.get("addressType"));
}

pub(super) fn ingress(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let has_default = spec.get("defaultBackend").is_some();
    if is_empty(spec, "rules") && !has_default {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.invalid("spec", items(spec, "rules").to_vec(), detail);
    }
    if has_default {
        backend(get(spec, "defaultBackend"), "spec.defaultBackend", errors);
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        let path = nth("spec", "rules", index);
        let host = text(rule, "host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(&at(&path, "host"), host, "must be a DNS name, not an IP address");
            }
            errors.complaints(&at(&path, "host"), host, host_name(host));
        }
        let http = get(rule, "http");
        if !http.is_null() && is_empty(http, "paths") {
            errors.required(&at(&path, "http.paths"), "");
        }
        for (index, rule) in items(http, "paths").iter().enumerate() {
            ingress_path(rule, &nth(&at(&path, "http"), "paths", index), errors);
        }
    }
    for (index, tls) in items(spec, "tls").iter().enumerate() {
        let path = nth("spec", "tls", index);
        for (index, host) in items(tls, "hosts").iter().enumerate() {
            let host = host.as_str().unwrap_or("");
            errors.complaints(&nth(&path, "hosts", index), host, host_name(host));
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            errors.complaints(&at(&path, "secretName"), secret, names::subdomain(secret));
        }
    }
    if let Some(class) = get(spec, "ingressClassName").as_str() {
        errors.complaints("spec.ingressClassName", class, names::subdomain(class));
    }
}

/// What is wrong with the name of a host, which may stand for all below another.
fn host_name(host: &str) -> Vec<String> {
    match host.contains('*') {
        true => names::wildcard_subdomain(host),
        false => names::subdomain(host),
    }
}

/// Who names a class in both ways names the same one.
pub(super) fn only_on_create(object: &Object, errors: &mut Errors) {
    let class = get(get(object, "spec"), "ingressClassName").as_str();
    if let Some(older) = meta::annotation(object, INGRESS_CLASS)
        && class.is_some_and(|class| class != older)
    {
        let detail = "must match `ingressClassName` when both are specified";
        errors.invalid(&at("annotations", INGRESS_CLASS), older, detail);
    }
}

pub(super) fn ingress_class(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    let controller = text(spec, "controller");
    let field = "spec.controller";
    if controller.len() > CONTROLLER_NAME_MAX {
        errors.too_long(field, CONTROLLER_NAME_MAX);
    }
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.required(field, ""),
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            errors.complaints(field, host, names::subdomain(host));
            errors.complaints(field, path, names::url_path(path));
        }
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid(field, controller, detail);
        }
    }
    let parameters = get(spec, "parameters");
    if !parameters.is_object() {
        return;
    }
    for key in ["kind", "name"] {
        if text(parameters, key).is_empty() {
            errors.required(&at("spec.parameters", key), "");
        }
    }
    let field = "spec.parameters.namespace";
    let has_namespace = !text(parameters, "namespace").is_empty();
    match text(parameters, "scope") {
        "Cluster" if has_namespace => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.forbidden(field, detail);
        }
        "Namespace" if !has_namespace => {
            errors.required(field, "`parameters.scope` is set to 'Namespace'");
        }
        "Cluster" | "Namespace" => {}
        other => errors.unsupported("spec.parameters.scope", other, &["Cluster", "Namespace"]),
    }
}

pub(super) fn ingress_class_change(new: &Object, old: &Object, errors: &mut Errors) {
    let controller = |object| get(get(object, "spec"), "controller");
    errors.immutable("spec.controller", Some(controller(new)), Some(controller(old)));
}

fn ingress_path(rule: &Value, path: &str, errors: &mut Errors) {
    let route = text(rule, "path");
    match text(rule, "pathType") {
        "" => return errors.required(&at(path, "pathType"), "pathType must be specified"),
        "ImplementationSpecific" if !route.is_empty() && !route.starts_with('/') => {
            errors.invalid(&at(path, "path"), route, "must be an absolute path");
        }
        "Exact" | "Prefix" => {
            if !route.starts_with('/') {
                errors.invalid(&at(path, "path"), route, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if route.contains(part) {
                    errors.invalid(&at(path, "path"), route, &format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if route.ends_with(end) {
                    errors.invalid(&at(path, "path"), route, &format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" => {}
        other => {
            let supported = &["Exact", "ImplementationSpecific", "Prefix"];
            errors.unsupported(&at(path, "pathType"), other, supported);
        }
    }
    backend(get(rule, "backend"), &at(path, "backend"), errors);
}

fn backend(backend: &Value, path: &str, errors: &mut Errors) {
    let service = get(backend, "service");
    let resource = get(backend, "resource");
    match (service.is_null(), resource.is_object()) {
        (true, true) => {
            let path = at(path, "resource");
            for key in ["kind", "name"] {
                match text(resource, key) {
                    "" => errors.required(&at(&path, key), ""),
                    name => errors.complaints(&at(&path, key), name, names::path_segment(name)),
                }
            }
            return;
        }
        (true, false) => {
            return errors.invalid(path, "", "resource or service backend is required");
        }
        (false, true) => {
            let detail = "cannot set both resource and service backends";
            return errors.invalid(path, "", detail);
        }
        (false, false) => {}
    }
    match text(service, "name") {
        "" => errors.required(&at(path, "service.name"), ""),
        name => errors.complaints(&at(path, "service.name"), name, names::label_1035(name)),
    }
    let port = get(service, "port");
    let (number, name) = (integer(port, "number").unwrap_or(0), text(port, "name"));
    match (number, name) {
        (0, "") => errors.required(path, "port name or number is required"),
        (0, name) => {
            errors.complaints(&at(path, "service.port.name"), name, names::port_name(name));
        }
        (_, "") => {
            for complaint in names::port_number(number) {
                errors.invalid(&at(path, "service.port.number"), number, &complaint);
            }
        }
        _ => errors.invalid(path, "", "cannot set both port name & port number"),
    }
}

pub(super) fn network_policy(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    label_selector(get(spec, "podSelector"), "spec.podSelector", errors);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(spec, list).iter().enumerate() {
            let path = nth("spec", list, index);
            for (index, port) in items(rule, "ports").iter().enumerate() {
                policy_port(port, &nth(&path, "ports", index), errors);
            }
            for (index, peer) in items(rule, peers).iter().enumerate() {
                network_peer(peer, &nth(&path, peers, index), errors);
            }
        }
    }
    let kinds = items(spec, "policyTypes");
    if kinds.len() > POLICY_TYPES.len() {
        let detail = "may not specify more than two policyTypes";
        return errors.invalid("spec.policyTypes", kinds.to_vec(), detail);
    }
    for (index, kind) in kinds.iter().enumerate() {
        let kind = kind.as_str().unwrap_or("");
        errors.one_of(&nth("spec", "policyTypes", index), kind, POLICY_TYPES);
    }
}

/// A port of a policy: by name, by number, or from a number on.
fn policy_port(port: &Value, path: &str, errors: &mut Errors) {
    errors.one_of(&at(path, "protocol"), text(port, "protocol"), POLICY_PROTOCOLS);
    let first = get(port, "port");
    let (last, field) = (integer(port, "endPort"), at(path, "endPort"));
    if let (Some(last), false) = (last, first.is_number()) {
        let detail = match first {
            Value::String(_) => "may not be specified when `port` is non-numeric",
            _ => "may not be specified when `port` is not specified",
        };
        errors.invalid(&field, last, detail);
    }
    if !first.is_null() {
        port_or_name(first, &at(path, "port"), errors);
    }
    if let (Some(last), Some(first)) = (last, first.as_i64()) {
        if last < first {
            errors.invalid(&field, last, "must be greater than or equal to `port`");
        }
        for complaint in names::port_number(last) {
            errors.invalid(&field, last, &complaint);
        }
    }
}

fn network_peer(peer: &Value, path: &str, errors: &mut Errors) {
    let has = |key| peer.get(key).is_some();
    for key in ["podSelector", "namespaceSelector"] {
        label_selector(get(peer, key), &at(path, key), errors);
    }
    if has("ipBlock") {
        address_block(get(peer, "ipBlock"), &at(path, "ipBlock"), errors);
    }
    if has("ipBlock") && (has("podSelector") || has("namespaceSelector")) {
        let detail = "may not specify both ipBlock and another peer";
        errors.forbidden(path, detail);
    } else if !has("ipBlock") && !has("podSelector") && !has("namespaceSelector") {
        errors.required(path, "must specify a peer");
    }
}

/// A network, and parts of it that are left out.
fn address_block(block: &Value, path: &str, errors: &mut Errors) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        return errors.required(&at(path, "cidr"), "");
    }
    let Some(whole) = network(cidr) else {
        return errors.invalid(&at(path, "cidr"), cidr, CIDR);
    };
    for (index, except) in items(block, "except").iter().enumerate() {
        let (except, field) = (except.as_str().unwrap_or(""), nth(path, "except", index));
        match network(except) {
            None => errors.invalid(&field, except, CIDR),
            Some(part) if !is_part(part, whole) => {
                errors.invalid(&field, except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

/// An address and the length of its prefix.
type Network = (IpAddr, u32);

fn network(cidr: &str) -> Option<Network> {
    let (address, bits) = cidr.split_once('/').filter(|_| names::is_cidr(cidr))?;
    Some((address.parse().ok()?, bits.parse().ok()?))
}

/// Whether a network is smaller than another one and in it.
fn is_part((part, length): Network, (whole, shorter): Network) -> bool {
    // Both kinds begin with their most significant bit, so that prefixes are compared alike.
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differing = (bits(part) ^ bits(whole)).checked_shr(128 - shorter).unwrap_or(0);
    part.is_ipv4() == whole.is_ipv4() && shorter < length && differing == 0
}
