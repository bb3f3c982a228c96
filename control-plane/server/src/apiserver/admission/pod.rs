//! A new Pod's ServiceAccount and priority.

use super::Context;
use crate::apiserver::errors::ApiError;
use serde_json::{Value, json};
use wherry_resources::{Object, meta, pod_fields};

/// Fills in what depends on other objects; refuses a Pod whose ServiceAccount or PriorityClass is
/// not there.
pub fn admit(context: &Context<'_>, pod: &mut Object) -> Result<Vec<String>, ApiError> {
    service_account(context, pod)?;
    priority(context, pod)?;
    Ok(pod_fields::warnings(pod))
}

fn text<'a>(pod: &'a Object, path: &str) -> &'a str {
    pod.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn service_account(context: &Context<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let named = text(pod, "/spec/serviceAccountName").to_owned();
    let name = if named.is_empty() { "default".to_owned() } else { named };
    let Some(account) = &context.facts.service_account else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            context.namespace
        );
        return Err(ApiError::forbidden(context.kind, meta::name(pod), why));
    };
    let secrets = account.get("imagePullSecrets").cloned();
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    let has_secrets = spec["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty());
    if let Some(secrets) = secrets.filter(|_| !has_secrets) {
        spec["imagePullSecrets"] = secrets;
    } else if let Some(spec) = spec.as_object_mut().filter(|_| !has_secrets) {
        spec.shift_remove("imagePullSecrets");
    }
    Ok(())
}

fn priority(context: &Context<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let name = text(pod, "/spec/priorityClassName").to_owned();
    let asked = pod.pointer("/spec/priority").and_then(Value::as_i64);
    let class = match &context.facts.priority_class {
        Some(class) => class,
        // The defaults know these, so that a cluster can start before they exist.
        None if name.is_empty() || name.starts_with("system-") && asked.is_some() => return Ok(()),
        None => {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(ApiError::forbidden(context.kind, meta::name(pod), why));
        }
    };
    let value = class.get("value").and_then(Value::as_i64).unwrap_or(0);
    // Without a name the 0 of the defaults is not the user's.
    if !name.is_empty() && asked.is_some_and(|asked| asked != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority \
             admission controller computed {value} from the given PriorityClass name",
            asked.unwrap_or(0)
        );
        return Err(ApiError::forbidden(context.kind, meta::name(pod), why));
    }
    let policy = class.get("preemptionPolicy").cloned();
    let spec = &mut pod["spec"];
    spec["priorityClassName"] = json!(meta::name(class));
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = policy.unwrap_or_else(|| json!("PreemptLowerPriority"));
    Ok(())
}
