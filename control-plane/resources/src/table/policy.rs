//! Tables of what decides about requests: admission policies, priority and fairness; of drivers, and
//! of usage.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, NONE, Row, age, column, field, list, name, number, or_none, scalar,
};
use crate::{Object, conditions, meta};

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";

pub(super) const TABLES: &[Row] = &[
    (ADMISSION, "validatingadmissionpolicies", POLICY, policy),
    (ADMISSION, "mutatingadmissionpolicies", MUTATION, mutation),
    (ADMISSION, "validatingadmissionpolicybindings", BINDING, binding),
    (ADMISSION, "mutatingadmissionpolicybindings", BINDING, binding),
    (FLOW, "flowschemas", FLOW_SCHEMA, flow_schema),
    (FLOW, "prioritylevelconfigurations", LEVEL, level),
    ("storage.k8s.io", "csidrivers", DRIVER, driver),
    ("metrics.k8s.io", "pods", USAGE, usage),
    ("metrics.k8s.io", "nodes", USAGE, usage),
];

const POLICY: &[Column] = &[
    NAME,
    number("Validations", "How many expressions must hold"),
    column("ParamKind", "The kind of object that parameters come from"),
    AGE,
];

fn policy(object: &Object, now: Timestamp) -> Vec<Value> {
    let count = list(object, "/spec/validations").len();
    vec![name(object), Value::from(count), param_kind(object), age(object, now)]
}

const MUTATION: &[Column] = &[
    NAME,
    number("Mutations", "How many changes it makes"),
    column("ParamKind", "The kind of object that parameters come from"),
    AGE,
];

fn mutation(object: &Object, now: Timestamp) -> Vec<Value> {
    let count = list(object, "/spec/mutations").len();
    vec![name(object), Value::from(count), param_kind(object), age(object, now)]
}

fn param_kind(object: &Object) -> Value {
    let version = field(object, "/spec/paramKind/apiVersion");
    let kind = field(object, "/spec/paramKind/kind");
    Value::from(if kind.is_empty() { "<unset>".to_owned() } else { format!("{version}/{kind}") })
}

const BINDING: &[Column] = &[
    NAME,
    column("PolicyName", "The policy that is put to use"),
    column("ParamRef", "The object that its parameters come from"),
    AGE,
];

fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let parameter =
        match (field(object, "/spec/paramRef/namespace"), field(object, "/spec/paramRef/name")) {
            (_, "") if object.pointer("/spec/paramRef/selector").is_some() => "*".to_owned(),
            (_, "") => "<unset>".to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
    let policy = or_none(field(object, "/spec/policyName"));
    vec![name(object), policy, Value::from(parameter), age(object, now)]
}

const FLOW_SCHEMA: &[Column] = &[
    NAME,
    column("PriorityLevel", "The level whose share these requests use"),
    number("MatchingPrecedence", "The lowest one that matches a request takes it"),
    column("DistinguisherMethod", "What makes requests one flow"),
    AGE,
    column("MissingPL", "Whether the level is not there"),
];

fn flow_schema(object: &Object, now: Timestamp) -> Vec<Value> {
    let dangling = conditions::find(conditions::of(object), "Dangling");
    let dangling = dangling.map_or("?", |condition| meta::text(condition, "status"));
    vec![
        name(object),
        or_none(field(object, "/spec/priorityLevelConfiguration/name")),
        object.pointer("/spec/matchingPrecedence").cloned().unwrap_or(Value::from(0)),
        or_none(field(object, "/spec/distinguisherMethod/type")),
        age(object, now),
        Value::from(dangling),
    ]
}

const LEVEL: &[Column] = &[
    NAME,
    column("Type", "Whether there is a limit"),
    column("NominalConcurrencyShares", "The share of all requests at a time"),
    column("Queues", "How many queues wait"),
    column("HandSize", "How many of them one flow may use"),
    column("QueueLengthLimit", "How many requests wait in one"),
    AGE,
];

fn level(object: &Object, now: Timestamp) -> Vec<Value> {
    let at = |path: &str| match object.pointer(path) {
        None => Value::from(NONE),
        Some(value) => Value::from(scalar(Some(value))),
    };
    let queuing = |key: &str| at(&format!("/spec/limited/limitResponse/queuing/{key}"));
    let shares = match at("/spec/limited/nominalConcurrencyShares") {
        none if none == NONE => at("/spec/exempt/nominalConcurrencyShares"),
        shares => shares,
    };
    vec![
        name(object),
        or_none(field(object, "/spec/type")),
        shares,
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        age(object, now),
    ]
}

const DRIVER: &[Column] = &[
    NAME,
    column("AttachRequired", "Whether volumes are attached to a node first"),
    column("PodInfoOnMount", "Whether the driver hears which Pod mounts"),
    column("StorageCapacity", "Whether the scheduler looks at free capacity"),
    column("TokenRequests", "Audiences of the tokens the driver gets"),
    column("RequiresRepublish", "Whether volumes are published again and again"),
    column("Modes", "How long volumes live"),
    AGE,
];

fn driver(object: &Object, now: Timestamp) -> Vec<Value> {
    let flag = |key: &str| {
        let value = object.pointer(&format!("/spec/{key}")).and_then(Value::as_bool);
        Value::from(value.unwrap_or(false).to_string())
    };
    let audiences = list(object, "/spec/tokenRequests").iter();
    let audiences: Vec<&str> = audiences.map(|request| meta::text(request, "audience")).collect();
    let modes = list(object, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str);
    vec![
        name(object),
        flag("attachRequired"),
        flag("podInfoOnMount"),
        flag("storageCapacity"),
        Value::from(if audiences.is_empty() { "<unset>".to_owned() } else { audiences.join(",") }),
        flag("requiresRepublish"),
        or_none(&modes.collect::<Vec<_>>().join(",")),
        age(object, now),
    ]
}

const USAGE: &[Column] = &[
    NAME,
    column("CPU", "Thousandths of a core in use"),
    column("Memory", "Memory in use"),
    column("Window", "Length of the interval that was measured"),
];

/// Of a Pod the sum over its containers, of a node what it says itself.
fn usage(object: &Object, _: Timestamp) -> Vec<Value> {
    let containers = list(object, "/containers").iter();
    let parts: Vec<&Value> = containers.chain([object]).collect();
    let number = |key: &str, unit: &str| -> u64 {
        let amounts = parts.iter().filter_map(|part| part.get("usage")?.get(key)?.as_str());
        let numbers = amounts.filter_map(|text| text.strip_suffix(unit)?.parse().ok());
        numbers.fold(0, u64::saturating_add)
    };
    let cpu = number("cpu", "n").div_ceil(1_000_000);
    let memory = number("memory", "Ki") / 1024;
    vec![
        name(object),
        Value::from(format!("{cpu}m")),
        Value::from(format!("{memory}Mi")),
        Value::from(field(object, "/window")),
    ]
}
