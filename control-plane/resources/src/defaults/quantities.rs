//! Where quantities stand in objects, and bringing them into canonical form.
//!
//! A stock API server answers `500m` to whoever wrote `0.5`, and clients compare the two texts.

use serde_json::Value;

use crate::quantity::Quantity;
use crate::{Kind, Object};

/// (group, plural, path to a map of quantities); `*` stands for every item of a list.
const MAPS: &[(&str, &str, &str)] = &[
    ("", "nodes", "status.capacity"),
    ("", "nodes", "status.allocatable"),
    ("", "persistentvolumes", "spec.capacity"),
    ("", "persistentvolumeclaims", "spec.resources.requests"),
    ("", "persistentvolumeclaims", "spec.resources.limits"),
    ("", "persistentvolumeclaims", "status.capacity"),
    ("", "resourcequotas", "spec.hard"),
    ("", "resourcequotas", "status.hard"),
    ("", "resourcequotas", "status.used"),
    ("", "limitranges", "spec.limits.*.max"),
    ("", "limitranges", "spec.limits.*.min"),
    ("", "limitranges", "spec.limits.*.default"),
    ("", "limitranges", "spec.limits.*.defaultRequest"),
    ("", "limitranges", "spec.limits.*.maxLimitRequestRatio"),
    ("apps", "statefulsets", "spec.volumeClaimTemplates.*.spec.resources.requests"),
    ("apps", "statefulsets", "spec.volumeClaimTemplates.*.spec.resources.limits"),
];

/// Paths within a PodSpec.
const POD_MAPS: &[&str] = &[
    "containers.*.resources.limits",
    "containers.*.resources.requests",
    "initContainers.*.resources.limits",
    "initContainers.*.resources.requests",
    "overhead",
];

/// Where a PodSpec stands: (group, plural, path).
pub(crate) const POD_SPECS: &[(&str, &str, &str)] = &[
    ("", "pods", "spec"),
    ("", "podtemplates", "template.spec"),
    ("", "replicationcontrollers", "spec.template.spec"),
    ("apps", "deployments", "spec.template.spec"),
    ("apps", "replicasets", "spec.template.spec"),
    ("apps", "statefulsets", "spec.template.spec"),
    ("apps", "daemonsets", "spec.template.spec"),
    ("batch", "jobs", "spec.template.spec"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template.spec"),
];

pub(super) fn canonical(kind: &Kind, object: &mut Object) {
    let is_here = |group: &str, plural: &str| group == kind.group && plural == kind.plural;
    for (_, _, path) in MAPS.iter().filter(|row| is_here(row.0, row.1)) {
        rewrite(object, path);
    }
    for (_, _, spec) in POD_SPECS.iter().filter(|row| is_here(row.0, row.1)) {
        for path in POD_MAPS {
            rewrite(object, &format!("{spec}.{path}"));
        }
    }
}

fn rewrite(value: &mut Value, path: &str) {
    let (step, rest) = match path.split_once('.') {
        Some((step, rest)) => (step, Some(rest)),
        None => (path, None),
    };
    if step == "*" {
        let items = value.as_array_mut().into_iter().flatten();
        return items.for_each(|item| rewrite(item, rest.unwrap_or("")));
    }
    let Some(value) = value.get_mut(step) else {
        return;
    };
    if let Some(rest) = rest {
        return rewrite(value, rest);
    }
    for amount in value.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        if let Some(quantity) = Quantity::of(amount) {
            *amount = Value::from(quantity.to_string());
        }
    }
}
