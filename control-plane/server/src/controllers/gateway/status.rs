//! The statuses, in the words of the specification. Pure. Each function gives the fields that are
//! ours, or nothing where they are already so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_resources::conditions;
use wherry_resources::gateway::objects::Class;
use wherry_resources::gateway::{
    Attachment, CONTROLLER, GROUP, Listening, Refusal, SettledGateway, SettledRoute, class_refusal,
    is_ours, rules,
};
use wherry_resources::meta::{items, text, time};

use super::held::Held;
use crate::controllers::write::{Action, Target, Write};

/// What of the specification is honoured, by its names for it.
const FEATURES: &[&str] = &[
    "GRPCRoute",
    "Gateway",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// The write of some fields of a status.
pub fn write(kind: &'static wherry_resources::Kind, held: &Held, status: Value) -> Write {
    let target = Target::new(kind, &held.meta);
    Action::Patch { target, subresource: "status", body: json!({"status": status}) }.into()
}

/// One condition.
struct Said {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Said {
    fn yes(kind: &'static str, reason: &'static str, message: &str) -> Said {
        Said { kind, holds: true, reason, message: message.to_owned() }
    }

    fn no(kind: &'static str, reason: &'static str, message: &str) -> Said {
        Said { kind, holds: false, reason, message: message.to_owned() }
    }

    fn of(kind: &'static str, outcome: &Result<(), Refusal>, message: &str) -> Said {
        match outcome {
            Ok(()) => Said::yes(kind, kind, message),
            Err(why) => Said::no(kind, why.reason, &why.message),
        }
    }
}

/// Conditions as a list. Those of others stay; a time moves with its status only.
fn list(before: &[Value], said: Vec<Said>, generation: i64, now: Timestamp) -> Value {
    let others = before.iter().filter(|held| said.iter().all(|one| text(held, "type") != one.kind));
    let mut all: Vec<Value> = said
        .iter()
        .map(|one| {
            let status = if one.holds { "True" } else { "False" };
            let held = conditions::find(before, one.kind);
            let same = held.filter(|held| text(held, "status") == status);
            let since = same.map(|held| text(held, "lastTransitionTime").to_owned());
            json!({
                "type": one.kind, "status": status, "observedGeneration": generation,
                "lastTransitionTime": since.unwrap_or_else(|| time(now)),
                "reason": one.reason, "message": one.message,
            })
        })
        .collect();
    all.extend(others.cloned());
    all.into()
}

/// The fields that are others than before.
fn changed(held: &Held, fields: Vec<(&str, Value)>) -> Option<Value> {
    let differs = |name: &str, value: &Value| held.status.get(name) != Some(value);
    let fields: Map<String, Value> = fields
        .into_iter()
        .filter(|(name, value)| differs(name, value))
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// Of a class, if it is ours.
pub fn class(class: &Class, held: &Held, now: Timestamp) -> Option<Value> {
    if !is_ours(class) {
        return None;
    }
    let said = match class_refusal(class) {
        None => Said::yes("Accepted", "Accepted", "nodes serve Gateways of this class"),
        Some(why) => Said::no("Accepted", why.reason, &why.message),
    };
    let conditions = list(items(&held.status, "conditions"), vec![said], class.generation, now);
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
    changed(held, vec![("conditions", conditions), ("supportedFeatures", features.into())])
}

/// Of a Gateway of ours, with the addresses of the nodes and the ports that none of them can have.
pub fn gateway(
    own: &SettledGateway,
    held: &Held,
    (nodes, refused): (&[IpAddr], &BTreeMap<i64, String>),
    now: Timestamp,
) -> Option<Value> {
    let generation = own.gateway.generation;
    let spec = &own.gateway.spec;
    let usable = own.listeners.iter().filter(|one| one.accepted.is_ok() && one.distinct.is_ok());
    let usable = usable.count();
    let accepted = match &own.refused {
        Some(why) => Said::no("Accepted", why.reason, &why.message),
        None if usable == 0 => {
            Said::no("Accepted", "ListenersNotValid", "no listener can be served")
        }
        None if usable < own.listeners.len() => {
            Said::yes("Accepted", "ListenersNotValid", "some listeners cannot be served")
        }
        None => Said::yes("Accepted", "Accepted", "its listeners can be served"),
    };
    let wanted: Vec<&str> = spec.addresses.iter().filter_map(|it| it.value.as_deref()).collect();
    let known: Vec<String> = nodes.iter().map(IpAddr::to_string).collect();
    let unknown = wanted.iter().find(|wanted| !known.iter().any(|known| known == *wanted));
    let shown: Vec<&str> = match wanted.is_empty() {
        true => known.iter().map(String::as_str).collect(),
        false => wanted.clone(),
    };
    let served: Vec<usize> = (0..own.listeners.len()).filter(|index| own.serves(*index)).collect();
    let why_not = |index: usize| refused.get(&spec.listeners[index].port).map(String::as_str);
    let is_open = served.iter().any(|index| why_not(*index).is_none());
    let programmed = if let Some(unknown) = unknown {
        let message = format!("{unknown} is no address of a node");
        Said::no("Programmed", "AddressNotUsable", &message)
    } else if !accepted.holds || served.is_empty() {
        Said::no("Programmed", "Invalid", "nodes listen for none of its listeners")
    } else if shown.is_empty() {
        Said::no("Programmed", "AddressNotAssigned", "no node takes traffic from outside")
    } else if !is_open {
        let why = served.iter().find_map(|index| why_not(*index)).unwrap_or_default();
        Said::no("Programmed", "PortUnavailable", why)
    } else {
        Said::yes("Programmed", "Programmed", "nodes listen")
    };
    let addresses: Vec<Value> = match programmed.holds {
        true => shown.iter().map(|ip| json!({"type": "IPAddress", "value": ip})).collect(),
        false => Vec::new(),
    };
    let before = items(&held.status, "listeners");
    let listeners = own.listeners.iter().zip(&spec.listeners).enumerate();
    let listeners: Vec<Value> = listeners
        .map(|(index, (one, listener))| {
            let old = before.iter().find(|old| text(old, "name") == listener.name);
            let old = old.map(|old| items(old, "conditions")).unwrap_or_default();
            let is_served = own.serves(index);
            let said = match why_not(index) {
                Some(why) if is_served => Said::no("Programmed", "PortUnavailable", why),
                _ if is_served && programmed.holds => {
                    Said::yes("Programmed", "Programmed", "nodes listen")
                }
                _ => Said::no("Programmed", "Invalid", "nodes do not listen for it"),
            };
            listening(&listener.name, one, (old, said), generation, now)
        })
        .collect();
    let conditions = items(&held.status, "conditions");
    let conditions = list(conditions, vec![accepted, programmed], generation, now);
    changed(
        held,
        vec![
            ("addresses", addresses.into()),
            ("conditions", conditions),
            ("listeners", listeners.into()),
        ],
    )
}

fn listening(
    name: &str,
    one: &Listening,
    (before, programmed): (&[Value], Said),
    generation: i64,
    now: Timestamp,
) -> Value {
    let conflicted = match &one.distinct {
        Ok(()) => Said::no("Conflicted", "NoConflicts", "it is told from the other listeners"),
        Err(why) => Said::yes("Conflicted", why.reason, &why.message),
    };
    let accepted = match &one.distinct {
        Err(why) if one.accepted.is_ok() => Said::no("Accepted", why.reason, &why.message),
        _ => Said::of("Accepted", &one.accepted, "it can be served"),
    };
    let resolved = Said::of("ResolvedRefs", &one.resolved, "all that it names can be used");
    let kinds = one.kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind.name()}));
    json!({
        "name": name,
        "attachedRoutes": one.attached,
        "supportedKinds": kinds.collect::<Vec<Value>>(),
        "conditions": list(before, vec![accepted, programmed, resolved, conflicted], generation, now),
    })
}

/// Of a route: the entries of our controller among those of others. `unresolved` is the first
/// reference that leads nowhere.
pub fn route(
    own: &SettledRoute,
    held: &Held,
    unresolved: Option<Refusal>,
    now: Timestamp,
) -> Option<Value> {
    let before = items(&held.status, "parents");
    let mut wanted: Vec<Value> = own
        .parents
        .iter()
        .map(|attachment| parent(own, attachment, before, unresolved.as_ref(), now))
        .collect();
    let mut parents: Vec<Value> = Vec::new();
    // Everybody's entry stays where it is.
    for old in before {
        if text(old, "controllerName") != CONTROLLER {
            parents.push(old.clone());
        } else if let Some(at) = wanted.iter().position(|new| new["parentRef"] == old["parentRef"])
        {
            parents.push(wanted.remove(at));
        }
    }
    parents.extend(wanted);
    if parents.is_empty() && before.is_empty() {
        return None;
    }
    changed(held, vec![("parents", parents.into())])
}

fn parent(
    own: &SettledRoute,
    attachment: &Attachment,
    before: &[Value],
    unresolved: Option<&Refusal>,
    now: Timestamp,
) -> Value {
    let route = &own.route;
    let reference = json!(attachment.parent);
    let old = before
        .iter()
        .find(|old| text(old, "controllerName") == CONTROLLER && old["parentRef"] == reference);
    let old = old.map(|old| items(old, "conditions")).unwrap_or_default();
    let accepted = attachment.accepted.as_ref().map(|_| ()).map_err(Refusal::clone);
    let resolved = unresolved.cloned().map_or(Ok(()), Err);
    let mut said = vec![
        Said::of("Accepted", &accepted, "it is attached"),
        Said::of("ResolvedRefs", &resolved, "all that it names can be used"),
    ];
    let broken = route.read.spec.rules.iter().find_map(|rule| rules::refusal(route, rule));
    let old: Vec<Value> = match broken.filter(|_| accepted.is_ok()) {
        Some(why) => {
            let message = format!("Dropped Rule: {}", why.message);
            said.push(Said::yes("PartiallyInvalid", why.reason, &message));
            old.to_vec()
        }
        // It is there only where it holds.
        None => old.iter().filter(|one| text(one, "type") != "PartiallyInvalid").cloned().collect(),
    };
    json!({
        "parentRef": reference,
        "controllerName": CONTROLLER,
        "conditions": list(&old, said, route.read.generation, now),
    })
}
