//! What can be done to a Pod beside changing it: binding to a node, and eviction.

use super::{
    Part, body,
    delete::{self, Deleted},
    state::States,
    update::RACE_TRIES,
    write::{self, Call, Failure, Record, Written},
};
use crate::apiserver::{
    ApiServer, content,
    errors::{self, ApiError, Cause, GroupResource},
    extensions,
    request::Request,
    stored,
};
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_resources::{
    Kind, Object,
    conditions::{self, Condition},
    meta,
    selectors::LabelSelector,
    validate::Reason,
};
use wherry_store::{Entry, Snapshot};

/// Evictions that the budget controller has not seen the end of, as in Kubernetes.
const UNCONFIRMED_MAX: usize = 2_000;

fn pods() -> &'static Kind {
    wherry_resources::kind("", "v1", "pods").expect("Pod is a built-in kind")
}

fn done(request: &Request, warnings: &[String]) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    content::respond(StatusCode::CREATED, &request.accepted, &status, warnings)
}

/// Binds a Pod to a node: the scheduler's write. A Pod is bound once.
pub async fn bind(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = super::WriteOptions::parse(&request.query, "CreateOptions")?;
    let binding = body::other(request, "v1", "Binding")?;
    let name = match (request.name(), meta::name(&binding)) {
        ("", sent) => sent,
        (name, sent) if sent.is_empty() || sent == name => name,
        _ => {
            let why = "name in URL does not match name in Binding object";
            return Err(ApiError::BadRequest(why.to_owned()));
        }
    };
    let node = target(&binding, name)?;
    let mut call = Call::of(api, request, Part::Binding, options.dry_run);
    let asked = call.asked(extensions::Verb::Create, request.name());
    let mut heard = extensions::Heard::default();
    extensions::validate_part(&asked, &binding, &mut heard).await?;
    call.kind = pods();
    call.record = Record::Keep;
    call.namespace = &request.attributes.namespace;
    let attempt = async |snapshot: &Snapshot| -> Result<Written, Failure> {
        let (old, entry) = call.find(snapshot, name)?;
        let new = bound(&old, &binding, node, Timestamp::now())?;
        write::replace(&call, &old, &entry, new).await
    };
    let mut states = States::of(api);
    while let Some(snapshot) = states.next().await? {
        if let Some(settled) = states.settle(attempt(&snapshot).await) {
            heard.warnings.extend(settled?.warnings);
            return Ok(done(request, &heard.warnings));
        }
    }
    Err(ApiError::modified(pods(), name))
}

/// The node that a Binding names.
fn target<'b>(binding: &'b Object, name: &str) -> Result<&'b str, ApiError> {
    let text = |key: &str| binding["target"][key].as_str().unwrap_or("");
    let (kind, node) = (text("kind"), text("name"));
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        let message =
            format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"");
        errors.push(errors::field(Reason::NotSupported, "target.kind", message));
    }
    if node.is_empty() {
        let message = "Required value".to_owned();
        errors.push(errors::field(Reason::Required, "target.name", message));
    }
    match errors.is_empty() {
        true => Ok(node),
        false => {
            let (group, kind) = (String::new(), "Binding".to_owned());
            Err(ApiError::Invalid { group, kind, name: name.to_owned(), errors })
        }
    }
}

/// The Pod on its node: pure.
fn bound(old: &Object, binding: &Object, node: &str, now: Timestamp) -> Result<Object, ApiError> {
    let name = meta::name(old);
    let preconditions = [
        ("UID", meta::uid(binding), meta::uid(old)),
        ("ResourceVersion", meta::resource_version(binding), meta::resource_version(old)),
    ];
    for (word, asked, found) in preconditions {
        if !asked.is_empty() && asked != found {
            let why = format!(
                "Precondition failed: {word} in precondition: {asked}, {word} in object meta: \
                 {found}"
            );
            return Err(ApiError::conflict(pods(), name, why));
        }
    }
    let refused = |why: String| {
        let resource = GroupResource { group: String::new(), plural: "pods/binding".to_owned() };
        Err(ApiError::Conflict { resource, name: name.to_owned(), why })
    };
    if meta::is_deleting(old) {
        return refused(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let taken = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if !taken.is_empty() {
        return refused(format!("pod {name} is already assigned to node {taken:?}"));
    }
    if !meta::items(&old["spec"], "schedulingGates").is_empty() {
        return refused(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = node.into();
    for (key, value) in meta::annotations(binding) {
        meta::set_annotation(&mut new, key, value);
    }
    let scheduled = Condition { kind: "PodScheduled", status: "True", reason: "", message: "" };
    conditions::set(&mut new, scheduled, now);
    // The node is known now, and what was hoped for is not to be taken for it.
    if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("nominatedNodeName");
    }
    Ok(new)
}

/// Evicts a Pod: a deletion that a PodDisruptionBudget may refuse.
pub async fn evict(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let dry_run = super::WriteOptions::parse(&request.query, "CreateOptions")?.dry_run;
    let eviction = body::other(request, "policy/v1", "Eviction")?;
    let sent = meta::name(&eviction);
    if !sent.is_empty() && sent != request.name() {
        let why = "name in URL does not match name in Eviction object";
        return Err(ApiError::BadRequest(why.to_owned()));
    }
    let options = delete::told(eviction.get("deleteOptions").unwrap_or(&Value::Null), dry_run)?;
    let call = Call::of(api, request, Part::Main, options.dry_run);
    let asked = call.asked(extensions::Verb::Create, request.name());
    let mut heard = extensions::Heard::default();
    extensions::validate_part(&asked, &eviction, &mut heard).await?;
    let (pod, _) = call.find(&api.latest().await?, request.name())?;
    if is_protected(&pod) {
        spend_budgets(&call, &pod).await?;
    }
    // A revision that the client names would not be the newest any more.
    if !options.dry_run && options.resource_version.is_none() {
        call_disrupted(&call, request.name()).await?;
    }
    let mut warnings = heard.take();
    let (Deleted::Gone(_) | Deleted::Lingers(_)) =
        delete::one(&call, request.name(), &options, &mut warnings).await?;
    Ok(done(request, &warnings))
}

/// Budgets count running Pods; what has ended or has not begun may always go.
fn is_protected(pod: &Object) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    !matches!(phase, "Succeeded" | "Failed" | "Pending" | "") && !meta::is_deleting(pod)
}

/// Says in the Pod's status why it ends, for Jobs and people.
async fn call_disrupted(call: &Call<'_>, name: &str) -> Result<(), ApiError> {
    let write = Call { part: Part::Status, record: Record::Keep, ..call.clone() };
    for _ in 0..RACE_TRIES {
        let (old, entry) = call.find(&call.api.latest().await?, name)?;
        if meta::is_deleting(&old) {
            return Ok(());
        }
        let mut new = old.clone();
        let target = Condition {
            kind: "DisruptionTarget",
            status: "True",
            reason: "EvictionByEvictionAPI",
            message: "Eviction API: evicting",
        };
        conditions::set(&mut new, target, Timestamp::now());
        match write::replace(&write, &old, &entry, new).await {
            Ok(_) => return Ok(()),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(ApiError::modified(pods(), name))
}

/// Takes one disruption from every budget that covers the Pod, or refuses.
async fn spend_budgets(call: &Call<'_>, pod: &Object) -> Result<(), ApiError> {
    let kind = wherry_resources::kind("policy", "v1", "poddisruptionbudgets")
        .expect("PodDisruptionBudget is a built-in kind");
    for _ in 0..RACE_TRIES {
        let snapshot = call.api.store().current();
        let budgets: Vec<(Object, Entry)> = snapshot
            .range(&stored::prefix(kind, Some(call.namespace)), None)
            .map(|(_, entry)| (stored::decode(kind, &entry), entry))
            .filter(|(budget, _)| covers(budget, pod))
            .collect();
        if budgets.len() > 1 {
            return Err(ApiError::Internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource \
                 does not support."
                    .to_owned(),
            ));
        }
        let Some((budget, entry)) = budgets.first() else {
            return Ok(());
        };
        if goes_unhealthy(budget, pod) {
            return Ok(());
        }
        let spent = spend(budget, pod, Timestamp::now())?;
        if call.dry_run {
            return Ok(());
        }
        let write = Call { kind, part: Part::Status, record: Record::Keep, ..call.clone() };
        match write::replace(&write, budget, entry, spent).await {
            Ok(_) => return Ok(()),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(blocked("the disruption budget changes too fast; try again"))
}

fn covers(budget: &Object, pod: &Object) -> bool {
    LabelSelector::from_typed(budget.pointer("/spec/selector"))
        .is_ok_and(|selector| selector.matches(pod))
}

/// Whether a Pod may go because it is not ready anyway: always, or (by default) as long as the
/// others are as many as the budget wants.
fn goes_unhealthy(budget: &Object, pod: &Object) -> bool {
    let ready = conditions::find(conditions::of(pod), "Ready");
    if ready.is_some_and(|ready| meta::text(ready, "status") == "True") {
        return false;
    }
    if meta::text(&budget["spec"], "unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let number = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy")
}

/// The budget with one disruption less, or 429.
fn spend(budget: &Object, pod: &Object, now: Timestamp) -> Result<Object, ApiError> {
    let number = |path: &str| budget.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let name = meta::name(budget);
    if number("/status/observedGeneration") < meta::generation(budget) {
        return Err(blocked(&format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let allowed = number("/status/disruptionsAllowed");
    if allowed <= 0 {
        return Err(blocked(&format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        )));
    }
    let unconfirmed = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    if unconfirmed.is_some_and(|map| map.len() >= UNCONFIRMED_MAX) {
        return Err(blocked("DisruptedPods map too big - too many evictions not confirmed"));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    new["status"]["disruptedPods"][meta::name(pod)] = meta::time(now).into();
    Ok(new)
}

fn blocked(why: &str) -> ApiError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let cause = Cause { reason: "DisruptionBudget", message: why.to_owned(), field: String::new() };
    ApiError::TooManyRequests {
        message: message.to_owned(),
        causes: vec![cause],
        retry_after_seconds: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {},
            "status": {"nominatedNodeName": "m", "phase": "Pending"}});
        let pod = bound(&pod, &json!({"metadata": {}}), "n", now).expect("unbound before");
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod.pointer("/status/nominatedNodeName"), None);
        assert_eq!(pod["status"]["phase"], "Pending");
        let again = bound(&pod, &json!({"metadata": {}}), "m", now).expect_err("bound already");
        assert_eq!(
            again.to_string(),
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \
             \"n\""
        );
        let gated = json!({"metadata": {"name": "p", "resourceVersion": "5"},
            "spec": {"schedulingGates": [{"name": "g"}]}});
        let refused = bound(&gated, &json!({"metadata": {}}), "n", now).expect_err("it waits");
        assert!(refused.to_string().ends_with("pod p has non-empty .spec.schedulingGates"));
        let stale = json!({"metadata": {"resourceVersion": "4"}});
        let refused = bound(&gated, &stale, "n", now).expect_err("it is another one");
        assert!(refused.to_string().contains("ResourceVersion in precondition: 4"), "{refused}");
    }

    #[test]
    fn budgets() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let pod = json!({"metadata": {"name": "p"}});
        let budget = json!({"metadata": {"name": "b"},
            "status": {"disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        let spent = spend(&budget, &pod, now).expect("one is left");
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        let refused = spend(&spent, &pod, now).expect_err("none is left");
        assert_eq!(refused.code(), 429);
    }

    #[test]
    fn unhealthy_pods_by_policy() {
        let check = |policy: &str, ready: &str, healthy: i64, expected: bool| {
            let pod = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
            let budget = json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": healthy, "desiredHealthy": 2}});
            assert_eq!(goes_unhealthy(&budget, &pod), expected, "{policy} {ready} {healthy}");
        };
        check("AlwaysAllow", "False", 0, true);
        check("AlwaysAllow", "True", 0, false);
        check("", "False", 2, true);
        check("IfHealthyBudget", "False", 1, false);
        check("IfHealthyBudget", "True", 2, false);
    }
}
