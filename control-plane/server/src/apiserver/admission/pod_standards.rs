//! Pod Security Standards at work: Pods that ask for more than their namespace allows are refused;
//! workloads whose Pods would be are warned of. What a level means is in `pod_security`.

use super::{Context, Operation, pod_security};
use crate::apiserver::{
    errors::{self, ApiError},
    verbs::Part,
};
use pod_security::Level;
use serde_json::Value;
use wherry_resources::{Object, meta, pod_fields, validate::Reason};

/// Where kinds have a Pod's spec inside.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "/template/spec"),
    ("", "replicationcontrollers", "/spec/template/spec"),
    ("apps", "daemonsets", "/spec/template/spec"),
    ("apps", "deployments", "/spec/template/spec"),
    ("apps", "replicasets", "/spec/template/spec"),
    ("apps", "statefulsets", "/spec/template/spec"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template/spec"),
    ("batch", "jobs", "/spec/template/spec"),
];

/// Whether the namespace's labels matter for a write to this part of a kind.
pub fn concerns(part: Part, group: &str, plural: &str) -> bool {
    [Part::Main, Part::EphemeralContainers, Part::Resize].contains(&part)
        && ((group, plural) == ("", "pods") || template(group, plural).is_some())
}

/// What those should know who send a workload: the same as of its Pods. Nothing where its template
/// is what it was.
pub fn fields_of_template(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Vec<String> {
    let Some(path) = template(context.kind.group, context.kind.plural) else {
        return Vec::new();
    };
    let path = path.trim_end_matches("/spec");
    let at = format!("{}.", path.trim_start_matches('/').replace('/', "."));
    match (new.pointer(path), old.and_then(|old| old.pointer(path))) {
        (Some(new), old) if old != Some(new) => pod_fields::warnings_of(&at, new),
        _ => Vec::new(),
    }
}

fn template(group: &str, plural: &str) -> Option<&'static str> {
    let row = TEMPLATES.iter().find(|row| (row.0, row.1) == (group, plural))?;
    Some(row.2)
}

/// Checks a Pod, or warns of a workload. Returns warnings.
pub fn admit(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    let Some(namespace) = &context.facts.namespace else {
        return Ok(Vec::new());
    };
    if !concerns(context.part, context.kind.group, context.kind.plural) {
        return Ok(Vec::new());
    }
    let policy = pod_security::policy(namespace);
    if (context.kind.group, context.kind.plural) == ("", "pods") {
        // What was let in stays in, as long as nothing about it changes.
        if old.is_some_and(|old| old["spec"] == new["spec"]) {
            return Ok(Vec::new());
        }
        if let Some(found) = pod_security::violations(&new["spec"], policy.enforce) {
            let why = format!("violates PodSecurity {:?}: {found}", version(policy.enforce));
            return Err(ApiError::forbidden(context.kind, meta::name(new), why));
        }
        return Ok(warning(&new["spec"], policy.warn));
    }
    let Some(path) = template(context.kind.group, context.kind.plural) else {
        return Ok(Vec::new());
    };
    match new.pointer(path) {
        Some(spec) if old.and_then(|old| old.pointer(path)) != Some(spec) => {
            Ok(warning(spec, policy.warn))
        }
        _ => Ok(Vec::new()),
    }
}

fn version(level: Level) -> String {
    format!("{}:latest", level.name())
}

fn warning(spec: &Value, level: Level) -> Vec<String> {
    let found = pod_security::violations(spec, level);
    let text = |found| format!("would violate PodSecurity {:?}: {found}", version(level));
    found.map(text).into_iter().collect()
}

/// A namespace's labels must name levels.
pub fn namespace(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let wrong = pod_security::wrong_labels(new);
    let known = old.map(pod_security::wrong_labels).unwrap_or_default();
    let fresh: Vec<_> = wrong
        .into_iter()
        .filter(|label| context.operation == Operation::Create || !known.contains(label))
        .map(|(key, word)| {
            let levels = "must be one of privileged, baseline, restricted";
            let message = format!("Invalid value: {word:?}: {levels}");
            errors::field(Reason::Invalid, &format!("metadata.labels[{key}]"), message)
        })
        .collect();
    match fresh.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(context.kind, meta::name(new), fresh)),
    }
}
