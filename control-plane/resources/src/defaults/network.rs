//! Defaults of Services and of what routes to them.
//!
//! Addresses and node ports are not defaults: they are allocated at admission.

use serde_json::{Value, json};

use super::{Fields, child, default, default_text, drop_empty, each, existing, text};

/// Three hours: how long a client stays with one endpoint under `ClientIP` affinity.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn service(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    drop_empty(spec, &["selector"], &["ports", "externalIPs", "loadBalancerSourceRanges"]);
    default_text(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.shift_remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let config = child(spec, "sessionAffinityConfig").and_then(|it| child(it, "clientIP"));
            if let Some(client) = config {
                default(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
        _ => {}
    }
    default_text(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        default_text(port, "protocol", "TCP");
        let unset = |value: &Value| value == 0 || value == "";
        if port.get("targetPort").is_none_or(unset)
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_string(), number);
        }
    }
    addresses(spec);
    policies(spec);
}

/// `clusterIP` is the first of `clusterIPs`; with an address come its families.
fn addresses(spec: &mut Fields) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let first = spec.get("clusterIPs").and_then(|list| list.get(0)).cloned();
    let address = text(spec, "clusterIP").to_string();
    match (address.is_empty(), first) {
        (true, Some(first)) => {
            spec.insert("clusterIP".to_string(), first);
        }
        (false, None) => {
            spec.insert("clusterIPs".to_string(), json!([address]));
        }
        _ => {}
    }
    let family = if text(spec, "clusterIP").contains(':') { "IPv6" } else { "IPv4" };
    default(spec, "ipFamilies", json!([family]));
    default_text(spec, "ipFamilyPolicy", "SingleStack");
}

fn policies(spec: &mut Fields) {
    let kind = text(spec, "type").to_string();
    let is_external = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let has_external_ips = spec.get("externalIPs").is_some_and(|list| list != &json!([]));
    if kind != "ExternalName" {
        default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if is_external || kind == "ClusterIP" && has_external_ips {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// A Service whose type changed loses what only the old type needed, unless the user changed that
/// too and is to be told. What a Service keeps is the business of who allocates it.
pub(super) fn drop_outdated(new: &mut Value, old: &Value) {
    let Some(old) = old.get("spec").and_then(Value::as_object) else {
        return;
    };
    let Some(new) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let has_address = |spec: &Fields| text(spec, "type") != "ExternalName";
    let has_ports = |spec: &Fields| matches!(text(spec, "type"), "NodePort" | "LoadBalancer");
    let is_balancer = |spec: &Fields| text(spec, "type") == "LoadBalancer";
    if has_address(old) && !has_address(new) {
        let addresses =
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"];
        drop_unchanged(new, old, &addresses);
    }
    // Who names another address means the list of them, too.
    let address = text(new, "clusterIP");
    if has_address(new) && !address.is_empty() && address != text(old, "clusterIP") {
        drop_unchanged(new, old, &["clusterIPs"]);
    }
    if has_ports(old) && !has_ports(new) {
        for port in each(new, "ports") {
            let before = same_port(old, port).and_then(|port| port.get("nodePort"));
            if before.is_some() && port.get("nodePort") == before {
                port.shift_remove("nodePort");
            }
        }
        drop_unchanged(new, old, &["externalTrafficPolicy"]);
    }
    let has_health_port =
        |spec: &Fields| is_balancer(spec) && text(spec, "externalTrafficPolicy") == "Local";
    if has_health_port(old) && !has_health_port(new) {
        drop_unchanged(new, old, &["healthCheckNodePort"]);
    }
    if is_balancer(old) && !is_balancer(new) {
        drop_unchanged(new, old, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
}

fn drop_unchanged(new: &mut Fields, old: &Fields, keys: &[&str]) {
    for key in keys {
        if new.get(*key) == old.get(*key) {
            new.shift_remove(*key);
        }
    }
}

/// The port of `old` that serves the same protocol and number.
fn same_port<'a>(old: &'a Fields, port: &Fields) -> Option<&'a Value> {
    let protocol = |port: Option<&Value>| match port.and_then(Value::as_str) {
        None | Some("") => "TCP".to_string(),
        Some(protocol) => protocol.to_string(),
    };
    let wanted = protocol(port.get("protocol"));
    let mut ports = old.get("ports").and_then(Value::as_array).into_iter().flatten();
    ports.find(|it| it.get("port") == port.get("port") && protocol(it.get("protocol")) == wanted)
}

pub(super) fn endpoints(object: &mut Fields) {
    for subset in each(object, "subsets") {
        each(subset, "ports").for_each(|port| default_text(port, "protocol", "TCP"));
    }
}

pub(super) fn endpoint_slice(object: &mut Fields) {
    for port in each(object, "ports") {
        default(port, "name", "");
        default_text(port, "protocol", "TCP");
    }
}

pub(super) fn network_policy(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "podSelector", json!({}));
    for list in ["ingress", "egress"] {
        for rule in each(spec, list) {
            each(rule, "ports").for_each(|port| default_text(port, "protocol", "TCP"));
        }
    }
    let has_egress = spec.get("egress").is_some_and(|list| list != &json!([]));
    let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    if spec.get("policyTypes").is_none_or(|list| list == &json!([])) {
        spec.insert("policyTypes".to_string(), types);
    }
}

pub(super) fn ingress_class(object: &mut Fields) {
    let parameters = existing(object, "spec").and_then(|spec| existing(spec, "parameters"));
    if let Some(parameters) = parameters {
        default_text(parameters, "scope", "Cluster");
    }
}
