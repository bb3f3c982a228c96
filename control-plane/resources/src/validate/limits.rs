//! Rules for LimitRanges (each type once, and its bounds in order) and ResourceQuotas.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod::quantity;
use super::{Errors, at, entries, get, is_empty, nth};
use crate::meta::{items, text};
use crate::quantity::Quantity;
use crate::{Object, names};

const BOUNDS: &[&str] = &["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
const TYPES: &[&str] = &["Container", "PersistentVolumeClaim", "Pod"];

/// One ordering: `low` may not be above `high`, or `field` is complained about. A bound is its key
/// and its words.
struct Order {
    low: (&'static str, &'static str),
    high: (&'static str, &'static str),
    field: &'static str,
    /// Whether the complaint shows the higher bound as the bad value. (For two of these it is not
    /// the bound of the field: tools know the sentences as they are.)
    shows_high: bool,
}

const MIN: (&str, &str) = ("min", "min");
const MAX: (&str, &str) = ("max", "max");
const REQUEST: (&str, &str) = ("defaultRequest", "default request");
const DEFAULT: (&str, &str) = ("default", "default");
const LIMIT: (&str, &str) = ("default", "default limit");
const ORDERS: &[Order] = &[
    Order { low: MIN, high: MAX, field: "min", shows_high: false },
    Order { low: MIN, high: REQUEST, field: "defaultRequest", shows_high: true },
    Order { low: REQUEST, high: MAX, field: "defaultRequest", shows_high: false },
    Order { low: REQUEST, high: LIMIT, field: "defaultRequest", shows_high: false },
    Order { low: MIN, high: DEFAULT, field: "default", shows_high: false },
    Order { low: DEFAULT, high: MAX, field: "default", shows_high: true },
];

pub(super) fn limit_range(object: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, limit) in items(get(object, "spec"), "limits").iter().enumerate() {
        let path = nth("spec", "limits", index);
        let kind = text(limit, "type");
        let field = at(&path, "type");
        errors.complaints(&field, kind, names::qualified(kind));
        if !kind.contains('/') && !TYPES.contains(&kind) {
            errors.invalid(&field, kind, "must be a standard limit type or fully qualified");
        }
        if !seen.insert(kind) {
            errors.duplicate(&field, kind);
        }
        self::limit(limit, kind, &path, errors);
    }
}

fn limit(limit: &Value, kind: &str, path: &str, errors: &mut Errors) {
    let mut resources = BTreeSet::new();
    for bound in BOUNDS {
        if kind == "Pod" && bound.starts_with("default") {
            if !is_empty(limit, bound) {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.forbidden(&at(path, bound), detail);
            }
            continue;
        }
        for (resource, amount) in entries(limit, bound) {
            let field = format!("{}[{resource}]", at(path, bound));
            errors.complaints(&field, resource, names::qualified(resource));
            quantity(amount, &field, errors);
            resources.insert(resource.as_str());
        }
    }
    let has_storage = |bound| get(limit, bound).get("storage").is_some();
    if kind == "PersistentVolumeClaim" && !has_storage("min") && !has_storage("max") {
        let detail = "either minimum or maximum storage value is required, but neither was \
            provided";
        errors.required(&at(path, "limits"), detail);
    }
    for resource in resources {
        bounds(limit, resource, path, errors);
    }
}

fn bounds(limit: &Value, resource: &str, path: &str, errors: &mut Errors) {
    let amount = |bound: &str| get(limit, bound).get(resource).and_then(Quantity::of);
    let field = |bound: &str| format!("{}[{resource}]", at(path, bound));
    for order in ORDERS {
        let ((low, low_words), (high, high_words)) = (order.low, order.high);
        if let (Some(below), Some(above)) = (amount(low), amount(high))
            && below > above
        {
            let shown = if order.shows_high { above } else { below };
            let detail =
                format!("{low_words} value {below} is greater than {high_words} value {above}");
            errors.invalid(&field(order.field), shown.to_string(), &detail);
        }
    }
    let Some(ratio) = amount("maxLimitRequestRatio") else {
        return;
    };
    let path = field("maxLimitRequestRatio");
    if ratio < Quantity::from_units(1) {
        errors.invalid(&path, ratio.to_string(), &format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (amount("min"), amount("max"))
        && !min.is_zero()
    {
        let most = max.millis() as f64 / min.millis() as f64;
        if ratio.millis() as f64 / 1000.0 > most {
            let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
            errors.invalid(&path, ratio.to_string(), &detail);
        }
    }
}

/// Resources a quota may limit besides those with a domain (`count/…`, `example.com/…`) and pages.
const QUOTA_RESOURCES: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Resources that a scope about Pods can be about.
const POD_RESOURCES: &[&str] =
    &["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const OPPOSITES: &[[&str; 2]] =
    &[["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

pub(super) fn resource_quota(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    for (name, amount) in entries(spec, "hard") {
        let path = format!("spec.hard[{name}]");
        errors.complaints(&path, name, names::qualified(name));
        let is_pages = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        if !name.contains('/') && !is_pages && !QUOTA_RESOURCES.contains(&name.as_str()) {
            errors.invalid(&path, name.as_str(), "must be a standard resource for quota");
        }
        quantity(amount, &path, errors);
        let is_number = name.starts_with("count/")
            || QUOTA_RESOURCES.contains(&name.as_str()) && is_counted(name);
        if is_number && Quantity::of(amount).is_some_and(|amount| !amount.is_whole()) {
            errors.invalid(&path, amount.clone(), "must be an integer");
        }
    }
    let list = get(spec, "scopes");
    let mut scopes: Vec<&str> = items(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let mut known = BTreeSet::new();
    scopes.retain(|scope| known.insert(*scope));
    for scope in &scopes {
        if errors.is_full() {
            return;
        }
        if !SCOPES.contains(scope) {
            errors.invalid("spec.scopes", list.clone(), "unsupported scope");
            continue;
        }
        let allowed: &[&str] = match *scope {
            "BestEffort" => &["pods"],
            "VolumeAttributesClass" => continue,
            _ => POD_RESOURCES,
        };
        for (name, _) in entries(spec, "hard") {
            let name = name.as_str();
            let misfits = QUOTA_RESOURCES.contains(&name) && !allowed.contains(&name);
            if misfits && !errors.is_full() {
                let detail = "unsupported scope applied to resource";
                errors.invalid("spec.scopes", list.clone(), detail);
            }
        }
    }
    if OPPOSITES.iter().any(|pair| pair.iter().all(|scope| scopes.contains(scope))) {
        errors.invalid("spec.scopes", list.clone(), "conflicting scopes");
    }
}

/// Whether a resource without a domain is a number of objects rather than an amount.
fn is_counted(name: &str) -> bool {
    let amounts = ["cpu", "memory", "storage"];
    !amounts.iter().any(|amount| name.ends_with(amount))
}

pub(super) fn resource_quota_change(new: &Object, old: &Object, errors: &mut Errors) {
    let scopes = |object| get(get(object, "spec"), "scopes");
    errors.immutable("spec.scopes", Some(scopes(new)), Some(scopes(old)));
}
