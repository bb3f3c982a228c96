//! LimitRanges: what a container gets when it does not say, and how little or much it may say.
//!
//! Defaults are filled into a new Pod by every LimitRange of the namespace, in the order of their
//! names, before hooks see it and once more after they have changed it. Each LimitRange checks what
//! comes of that: a new Pod, one that is resized, and a PersistentVolumeClaim whenever it is written.

use super::{Context, pod};
use crate::apiserver::errors::ApiError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wherry_resources::meta::{items, text};
use wherry_resources::quantity::Quantity;
use wherry_resources::quota::{self, Amounts};
use wherry_resources::{Object, meta};

/// Where a Pod says what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives the containers of a new Pod what they do not say.
pub fn fill(context: &Context<'_>, pod: &mut Object) {
    let mut filled = false;
    for range in &context.facts.limit_ranges {
        filled |= fill_by(range, pod);
    }
    if filled {
        pod::follow_resources(context, pod);
    }
}

/// Refuses what is too little or too much. What is being deleted may have been let in before.
pub fn check(context: &Context<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    if old.is_some_and(meta::is_deleting) {
        return Ok(());
    }
    let is_pod = context.kind.is("", "Pod");
    let each = context.facts.limit_ranges.iter().map(|range| problems(range, is_pod, new));
    let mut refusing = each.filter(|problems| !problems.is_empty());
    let Some(problems) = refusing.next() else { return Ok(()) };
    let why = match problems.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Err(ApiError::forbidden(context.kind, meta::name(new), why))
}

/// What one LimitRange says against a Pod or a claim, each once.
fn problems(range: &Object, is_pod: bool, object: &Object) -> Vec<String> {
    let mut problems = Vec::new();
    let requests = Amounts::read(&object["spec"]["resources"]["requests"]);
    for limit in items(&range["spec"], "limits") {
        match is_pod {
            true => check_pod(limit, object, &mut problems),
            false if text(limit, "type") == "PersistentVolumeClaim" => {
                check_claim(limit, &requests, &mut problems);
            }
            false => {}
        }
    }
    let mut told: Vec<String> = Vec::new();
    for problem in problems {
        if !told.contains(&problem) {
            told.push(problem);
        }
    }
    told
}

/// Gives each container what it does not say, and notes it. Whether there was anything to give.
fn fill_by(range: &Object, pod: &mut Object) -> bool {
    let Some(limit) =
        items(&range["spec"], "limits").iter().find(|limit| text(limit, "type") == "Container")
    else {
        return false;
    };
    let mut notes: Vec<String> = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"][list].as_array_mut().into_iter().flatten();
        for container in containers {
            let name = text(container, "name").to_owned();
            for (part, source) in [("requests", "defaultRequest"), ("limits", "default")] {
                let given = merge(&limit[source], &mut container["resources"], part);
                if !given.is_empty() {
                    let given = given.join(", ");
                    let what = part.trim_end_matches('s');
                    notes.push(format!("{given} {what} for {word} {name}"));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        meta::set_annotation(pod, ANNOTATION, &note);
    }
    !notes.is_empty()
}

/// Adds what `part` of the resources lacks; returns the names of what was added.
fn merge(defaults: &Value, resources: &mut Value, part: &str) -> Vec<String> {
    let mut given = Vec::new();
    let Some(defaults) = defaults.as_object().filter(|defaults| !defaults.is_empty()) else {
        return given;
    };
    if !resources.is_object() {
        *resources = json!({});
    }
    if !resources[part].is_object() {
        resources[part] = Value::Object(Map::new());
    }
    for (name, amount) in defaults {
        if resources[part].get(name).is_none() {
            resources[part][name] = amount.clone();
            given.push(name.clone());
        }
    }
    given.sort();
    given
}

/// Requests and limits of one thing that a limit is about.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

fn check_pod(limit: &Value, pod: &Object, problems: &mut Vec<String>) {
    match text(limit, "type") {
        "Container" => {
            let lists = ["containers", "initContainers"];
            for container in lists.iter().flat_map(|list| items(&pod["spec"], list)) {
                let asked = Asked {
                    requests: Amounts::read(&container["resources"]["requests"]),
                    limits: Amounts::read(&container["resources"]["limits"]),
                };
                compare(limit, "Container", &asked, problems);
            }
        }
        "Pod" => {
            let asked = Asked {
                requests: quota::pod_total(&pod["spec"], "requests"),
                limits: quota::pod_total(&pod["spec"], "limits"),
            };
            compare(limit, "Pod", &asked, problems);
        }
        _ => {}
    }
}

fn compare(limit: &Value, kind: &str, asked: &Asked, problems: &mut Vec<String>) {
    for (name, least) in sorted(&limit["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match (asked.requests.get(&name), asked.limits.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No request is specified")),
            (Some(request), _) if request < least => {
                problems.push(format!("{head}, but request is {request}"));
            }
            (_, Some(most)) if most < least => {
                problems.push(format!("{head}, but limit is {most}"));
            }
            _ => {}
        }
    }
    for (name, most) in sorted(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (asked.limits.get(&name), asked.requests.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if limit > most => {
                problems.push(format!("{head}, but limit is {limit}"));
            }
            (_, Some(request)) if request > most => {
                problems.push(format!("{head}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, most) in sorted(&limit["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let positive = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
        match (positive(asked.requests.get(&name)), positive(asked.limits.get(&name))) {
            (None, _) => {
                problems.push(format!("{head}, but no request is specified or request is 0"));
            }
            (_, None) => problems.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.millis() as f64 / request.millis() as f64;
                if ratio * 1000.0 > most.millis() as f64 {
                    problems.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn check_claim(limit: &Value, requests: &Amounts, problems: &mut Vec<String>) {
    let kind = "PersistentVolumeClaim";
    for (name, least) in sorted(&limit["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match requests.get(&name) {
            None => problems.push(format!("{head}.  No request is specified")),
            Some(request) if request < least => {
                problems.push(format!("{head}, but request is {request}"));
            }
            Some(_) => {}
        }
    }
    for (name, most) in sorted(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match requests.get(&name) {
            None => problems.push(format!("{head}.  No request is specified")),
            Some(request) if request > most => {
                problems.push(format!("{head}, but request is {request}"));
            }
            Some(_) => {}
        }
    }
}

fn sorted(amounts: &Value) -> BTreeMap<String, Quantity> {
    Amounts::read(amounts).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::{Facts, Operation};
    use crate::apiserver::auth::User;
    use crate::apiserver::verbs::Part;

    fn admitted(limits: Value, resources: Value) -> Result<Object, String> {
        admitted_at(Operation::Create, Part::Main, limits, resources)
    }

    fn admitted_at(
        operation: Operation,
        part: Part,
        limits: Value,
        resources: Value,
    ) -> Result<Object, String> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": resources}]}});
        let range = json!({"metadata": {"name": "r"}, "spec": {"limits": limits}});
        let facts = Facts { limit_ranges: vec![range], ..Facts::default() };
        let context = Context {
            operation,
            user: &User::new("ann", &[]),
            kind: wherry_resources::kind("", "v1", "pods").expect("a built-in kind"),
            part,
            namespace: "n",
            facts: &facts,
        };
        if operation == Operation::Create {
            fill(&context, &mut pod);
        }
        check(&context, &pod, None).map(|()| pod).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_given() {
        let limits = json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m", "memory": "1Gi"}}]);
        let pod = admitted(limits, json!({"limits": {"cpu": "2"}})).expect("allowed");
        let resources = &pod["spec"]["containers"][0]["resources"];
        let all = json!({"limits": {"cpu": "2", "memory": "1Gi"},
            "requests": {"cpu": "100m", "memory": "1Gi"}});
        assert_eq!(resources, &all);
        assert_eq!(
            meta::annotation(&pod, ANNOTATION),
            Some(
                "LimitRanger plugin set: cpu, memory request for container c; memory limit for \
                 container c"
            )
        );
    }

    #[test]
    fn what_is_too_little_or_too_much_is_refused() {
        let limits = json!([
            {"type": "Container", "min": {"cpu": "100m"}, "max": {"memory": "1Gi"}},
            {"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}},
        ]);
        let asked = json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m", "memory": "2Gi"}});
        let refused = admitted(limits.clone(), asked).expect_err("refused");
        assert_eq!(
            refused,
            "pods \"p\" is forbidden: [minimum cpu usage per Container is 100m, but request is 50m, \
             maximum memory usage per Container is 1Gi, but limit is 2Gi, cpu max limit to request \
             ratio per Pod is 2, but provided ratio is 4.000000]"
        );
        let fits = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "1Gi"}});
        assert!(admitted(limits, fits).is_ok());
    }

    #[test]
    fn a_pod_that_is_resized_is_checked_and_given_nothing() {
        let limits = json!([{"type": "Container", "default": {"memory": "1Gi"},
            "max": {"cpu": "1"}}]);
        let resized = |cpu: &str| {
            let resources = json!({"limits": {"cpu": cpu}});
            admitted_at(Operation::Update, Part::Resize, limits.clone(), resources)
        };
        let pod = resized("1").expect("it fits");
        let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(limits, &json!({"cpu": "1"}));
        assert!(resized("2").expect_err("refused").contains("usage per Container is 1, but limit"));
    }

    #[test]
    fn a_claim_is_judged_until_it_is_being_deleted() {
        let range = |name: &str, most: &str| {
            json!({"metadata": {"name": name}, "spec": {"limits": [
                {"type": "PersistentVolumeClaim", "max": {"storage": most}}]}})
        };
        let facts =
            Facts { limit_ranges: vec![range("a", "1Gi"), range("b", "2Gi")], ..Facts::default() };
        let context = Context {
            operation: Operation::Update,
            user: &User::new("ann", &[]),
            kind: wherry_resources::kind("", "v1", "persistentvolumeclaims").expect("built in"),
            part: Part::Main,
            namespace: "n",
            facts: &facts,
        };
        let mut claim = json!({"metadata": {"name": "c"},
            "spec": {"resources": {"requests": {"storage": "4Gi"}}}});
        let refused = check(&context, &claim, Some(&claim)).expect_err("it asks for too much");
        assert_eq!(
            refused.to_string(),
            "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per \
             PersistentVolumeClaim is 1Gi, but request is 4Gi"
        );
        claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(check(&context, &claim, Some(&claim)).is_ok(), "its finalizers can be taken off");
    }
}
