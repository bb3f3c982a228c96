//! Pod Security Standards at work: Pods that ask for more than their namespace allows are refused;
//! workloads whose Pods would be are warned of, and so are Pods that are there when their namespace
//! gets a stricter level. What a level means is in `pod_security`.

use super::{Context, Operation, pod_security};
use crate::apiserver::{
    asides,
    errors::{self, ApiError},
    verbs::Part,
};
use pod_security::{Standard, Wrong};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use wherry_resources::{Kind, Object, meta, pod_fields, validate::Reason};

/// What the audit log is told of a Pod, under Kubernetes' names.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const VIOLATIONS: &str = "pod-security.kubernetes.io/audit-violations";
/// Most Pods that are judged when their namespace gets a stricter level, and for how long: as many,
/// and as long, as in Kubernetes.
const PODS_MAX: usize = 3_000;
pub const TIME_MAX: Duration = Duration::from_secs(1);

/// What may change of a Pod and is of no concern to any level.
const INDIFFERENT: [&str; 7] = [
    "activeDeadlineSeconds",
    "affinity",
    "nodeSelector",
    "resources",
    "schedulingGates",
    "terminationGracePeriodSeconds",
    "tolerations",
];

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

/// Checks a Pod, or warns of a workload. Returns warnings; the audit log is told besides.
pub fn admit(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    let Some(namespace) = &context.facts.namespace else {
        return Ok(Vec::new());
    };
    let (group, plural) = (context.kind.group, context.kind.plural);
    if !concerns(context.part, group, plural) {
        return Ok(Vec::new());
    }
    let of_workload = template(group, plural);
    let path = of_workload.unwrap_or("/spec");
    // What was let in stays in, as long as nothing about it changes.
    let was = old.and_then(|old| old.pointer(path));
    let Some(spec) = new.pointer(path).filter(|spec| was != Some(*spec)) else {
        return Ok(Vec::new());
    };
    if of_workload.is_none() && was.is_some_and(|was| concerning(was) == concerning(spec)) {
        return Ok(Vec::new());
    }
    let policy = pod_security::policy(namespace);
    let mut met = None;
    if of_workload.is_none() {
        asides::state(ENFORCED, Some(&policy.enforce.to_string()));
        if let Some(found) = pod_security::violations(spec, policy.enforce.level) {
            asides::state(VIOLATIONS, warning(spec, &policy.audit).as_deref());
            let why = format!("violates PodSecurity \"{}\": {found}", policy.enforce);
            return Err(ApiError::forbidden(context.kind, meta::name(new), why));
        }
        met = Some(policy.enforce.level);
    }
    // What meets a level meets those that are less strict.
    let beyond = |standard: &Standard| match met.is_some_and(|met| standard.level <= met) {
        true => None,
        false => warning(spec, standard),
    };
    let warned = beyond(&policy.warn);
    let audited = match policy.audit == policy.warn {
        true => warned.clone(),
        false => beyond(&policy.audit),
    };
    asides::state(VIOLATIONS, audited.as_deref());
    Ok(warned.into_iter().collect())
}

/// A Pod's spec without what is of no concern.
fn concerning(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|key, _| !INDIFFERENT.contains(&key.as_str()));
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            container.shift_remove("resources");
        }
    }
    spec
}

fn warning(spec: &Value, standard: &Standard) -> Option<String> {
    let found = pod_security::violations(spec, standard.level)?;
    Some(format!("would violate PodSecurity \"{standard}\": {found}"))
}

/// Whether a namespace gets a stricter level than it had.
pub fn tightens(kind: &Kind, new: &Object, old: &Object) -> bool {
    let level = |namespace| pod_security::policy(namespace).enforce.level;
    kind.is("", "Namespace") && level(new) > level(old)
}

/// The Pods that are there, and stay, when their namespace gets a stricter level.
pub struct Inside {
    standard: Standard,
    all: usize,
    judged: usize,
    /// By what they ask for too much: the first that does, and how many do.
    found: BTreeMap<String, (String, usize)>,
}

impl Inside {
    /// None yet, of this namespace.
    pub fn of(namespace: &Object) -> Inside {
        let standard = pod_security::policy(namespace).enforce;
        Inside { standard, all: 0, judged: 0, found: BTreeMap::new() }
    }

    /// Counts one more, and judges it unless that were too many, or it is late and not the first.
    pub fn take(&mut self, is_late: bool, pod: impl FnOnce() -> Object) {
        self.all += 1;
        if self.judged >= PODS_MAX || is_late && self.judged > 0 {
            return;
        }
        self.judged += 1;
        let pod = pod();
        if let Some(reasons) = pod_security::reasons(&pod["spec"], self.standard.level) {
            let first = || (meta::name(&pod).to_owned(), 0);
            self.found.entry(reasons).or_insert_with(first).1 += 1;
        }
    }

    /// Says which of them would not be let in any more.
    pub fn warnings(self, namespace: &Object) -> Vec<String> {
        let Inside { standard, all, judged, found } = self;
        let tell = |(reasons, (name, count)): (String, (String, usize))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            _ => format!("{name} (and {} other pods): {reasons}", count - 1),
        };
        let mut each: Vec<String> = found.into_iter().map(tell).collect();
        each.sort();
        let mut warnings = Vec::new();
        if judged < all {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {judged} of {all} \
                 existing pods"
            ));
        }
        if !each.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {:?} violate the new PodSecurity enforce level \
                 \"{standard}\"",
                meta::name(namespace)
            ));
        }
        warnings.extend(each);
        warnings
    }
}

/// A namespace's labels must name levels and versions. Returns warnings.
pub fn namespace(
    context: &Context<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    let wrong = pod_security::wrong_labels(new);
    let known = old.map(pod_security::wrong_labels).unwrap_or_default();
    let fresh: Vec<_> = wrong
        .into_iter()
        .filter(|label| context.operation == Operation::Create || !known.contains(label))
        .map(|Wrong { key, word, must }| {
            let message = format!("Invalid value: {word:?}: {must}");
            errors::field(Reason::Invalid, &format!("metadata.labels[{key}]"), message)
        })
        .collect();
    match fresh.is_empty() {
        true => Ok(context.facts.left_inside.clone()),
        false => Err(ApiError::invalid(context.kind, meta::name(new), fresh)),
    }
}
