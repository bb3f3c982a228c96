//! Tables of Services and of what routes to them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, NONE, Row, age, column, count, field, labels, list, name, or_none, selector,
};
use crate::Object;
use crate::meta::{items, text};

/// Endpoints or ports shown before the rest is only counted.
const SHOWN_MAX: usize = 3;

pub(super) const TABLES: &[Row] = &[
    ("", "services", SERVICE, service),
    ("", "endpoints", ENDPOINTS, endpoints),
    ("discovery.k8s.io", "endpointslices", SLICE, slice),
    ("networking.k8s.io", "ingresses", INGRESS, ingress),
    ("networking.k8s.io", "ingressclasses", INGRESS_CLASS, ingress_class),
    ("networking.k8s.io", "networkpolicies", POLICY, network_policy),
];

const SERVICE: &[Column] = &[
    NAME,
    column("Type", "How the Service is reached"),
    column("Cluster-IP", "The address inside the cluster"),
    column("External-IP", "The addresses or the name outside the cluster"),
    column("Port(s)", "The ports, and those of the nodes behind a colon"),
    AGE,
    column("Selector", "The labels by which Pods are selected").wide(),
];

fn service(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        Value::from(field(object, "/spec/type")),
        or_none(field(object, "/spec/clusterIP")),
        Value::from(external_ip(object)),
        or_none(&service_ports(object)),
        age(object, now),
        labels(object.pointer("/spec/selector")),
    ]
}

fn external_ip(object: &Object) -> String {
    let listed: Vec<&str> =
        list(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match field(object, "/spec/type") {
        "ExternalName" => field(object, "/spec/externalName").to_string(),
        "LoadBalancer" => {
            let mut addresses = balancer_addresses(object);
            addresses.extend(listed.iter().map(|address| (*address).to_string()));
            if addresses.is_empty() { "<pending>".to_string() } else { addresses.join(",") }
        }
        _ if listed.is_empty() => NONE.to_string(),
        _ => listed.join(","),
    }
}

fn balancer_addresses(object: &Object) -> Vec<String> {
    let ingress = list(object, "/status/loadBalancer/ingress").iter();
    let address = |entry: &Value| match text(entry, "ip") {
        "" => text(entry, "hostname").to_string(),
        ip => ip.to_string(),
    };
    ingress.map(address).filter(|address| !address.is_empty()).collect()
}

fn service_ports(object: &Object) -> String {
    let ports = list(object, "/spec/ports").iter().map(|port| {
        let (number, protocol) = (count(port, "/port"), text(port, "protocol"));
        match count(port, "/nodePort") {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

/// The first few of a list, then how many more there are.
fn shortened(all: &[String], empty: &str) -> String {
    match all.len() {
        0 => empty.to_string(),
        total if total > SHOWN_MAX => {
            format!("{} + {} more...", all[..SHOWN_MAX].join(","), total - SHOWN_MAX)
        }
        _ => all.join(","),
    }
}

const ENDPOINTS: &[Column] =
    &[NAME, column("Endpoints", "The addresses and ports that are ready"), AGE];

fn endpoints(object: &Object, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(object, "subsets") {
        let addresses = items(subset, "addresses");
        let ports = items(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|address| text(address, "ip").to_string()));
        }
        for port in ports {
            let port = count(port, "/port");
            all.extend(addresses.iter().map(|address| format!("{}:{port}", text(address, "ip"))));
        }
    }
    vec![name(object), Value::from(shortened(&all, NONE)), age(object, now)]
}

const SLICE: &[Column] = &[
    NAME,
    column("AddressType", "The family of the addresses"),
    column("Ports", "The ports of every endpoint"),
    column("Endpoints", "The addresses"),
    AGE,
];

fn slice(object: &Object, now: Timestamp) -> Vec<Value> {
    let ports: BTreeSet<i64> = items(object, "ports").iter().map(|it| count(it, "/port")).collect();
    let ports: Vec<String> = ports
        .iter()
        .map(|port| match port {
            0 => "*".to_string(),
            port => port.to_string(),
        })
        .collect();
    let addresses = items(object, "endpoints").iter().flat_map(|it| items(it, "addresses"));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_string).collect();
    vec![
        name(object),
        Value::from(text(object, "addressType")),
        Value::from(shortened(&ports, "<unset>")),
        Value::from(shortened(&addresses, "<unset>")),
        age(object, now),
    ]
}

const INGRESS: &[Column] = &[
    NAME,
    column("Class", "Who implements the Ingress"),
    column("Hosts", "The hosts whose requests are taken"),
    column("Address", "The addresses of the load balancer"),
    column("Ports", "The ports that are served"),
    AGE,
];

fn ingress(object: &Object, now: Timestamp) -> Vec<Value> {
    let hosts: Vec<String> = list(object, "/spec/rules")
        .iter()
        .map(|rule| text(rule, "host").to_string())
        .filter(|host| !host.is_empty())
        .collect();
    let ports = if list(object, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(object),
        or_none(field(object, "/spec/ingressClassName")),
        Value::from(shortened(&hosts, "*")),
        Value::from(balancer_addresses(object).join(",")),
        Value::from(ports),
        age(object, now),
    ]
}

const INGRESS_CLASS: &[Column] = &[
    NAME,
    column("Controller", "Who implements Ingresses of this class"),
    column("Parameters", "The object with more settings"),
    AGE,
];

fn ingress_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let parameters = match object.pointer("/spec/parameters") {
        None => NONE.to_string(),
        Some(reference) => {
            let group = text(reference, "apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(reference, "kind"), text(reference, "name"))
        }
    };
    let controller = Value::from(field(object, "/spec/controller"));
    vec![name(object), controller, Value::from(parameters), age(object, now)]
}

const POLICY: &[Column] = &[NAME, column("Pod-Selector", "The Pods that the policy is for"), AGE];

fn network_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), selector(object.pointer("/spec/podSelector")), age(object, now)]
}
