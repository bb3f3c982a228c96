//! A new Pod's ServiceAccount and priority, and that its gates keep it from being scheduled.
//!
//! A token is mounted only where the Pod or its account says `automountServiceAccountToken: true`:
//! a guest that does not ask for credentials of the cluster gets none (DECISIONS.md).

use super::Context;
use crate::apiserver::errors::ApiError;
use serde_json::{Value, json};
use wherry_resources::{Object, defaults, meta, names, pod_fields};

/// Fills in what depends on other objects; refuses a Pod whose ServiceAccount or PriorityClass is
/// not there.
pub fn admit(context: &Context<'_>, pod: &mut Object) -> Result<Vec<String>, ApiError> {
    service_account(context, pod)?;
    priority(context, pod)?;
    gates(pod);
    Ok(pod_fields::warnings(pod))
}

/// What follows from the resources of a new Pod follows from these.
pub fn follow_resources(context: &Context<'_>, pod: &mut Object) {
    if let Some(status) = pod["status"].as_object_mut() {
        status.shift_remove("qosClass");
    }
    defaults::apply(context.kind, pod);
}

/// What those should know who give a Pod other resources.
pub fn resized(new: &Object, old: Option<&Object>) -> Option<String> {
    let changes = old.is_some_and(|old| old["spec"] != new["spec"]);
    changes.then(|| {
        "spec.containers[*].resources: a Wasm container keeps what it was started with; its next \
         start takes these"
            .to_owned()
    })
}

/// No scheduler looks at a Pod with gates, so the Pod says itself why it has no node.
fn gates(pod: &mut Object) {
    let gates = pod.pointer("/spec/schedulingGates").and_then(Value::as_array);
    if gates.is_none_or(Vec::is_empty) {
        return;
    }
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
    });
    pod["status"]["conditions"] = json!([condition]);
}

/// Only one PriorityClass is the default.
pub fn one_default(context: &Context<'_>, class: &Object) -> Result<(), ApiError> {
    match &context.facts.other_default_class {
        Some(other) if class["globalDefault"] == true => {
            let why = format!(
                "PriorityClass {other} is already marked as default. Only one default can exist"
            );
            Err(ApiError::forbidden(context.kind, meta::name(class), why))
        }
        _ => Ok(()),
    }
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
    let asks = |object: &Value| object.get("automountServiceAccountToken").and_then(Value::as_bool);
    let mounts = asks(&pod["spec"]).or_else(|| asks(account)).unwrap_or(false);
    if mounts {
        mount_token(context.facts.random, &mut pod["spec"]);
    }
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

/// Where programs look for their token.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume with it begins; a container that a hook has added mounts the one that is there.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// Renewed by the node well before; the 7 shows that nobody chose it.
const TOKEN_SECONDS: i64 = 3607;

/// Adds the volume with token, authority and namespace, and mounts it into every container that has
/// nothing there yet.
fn mount_token(mut random: u64, spec: &mut Value) {
    let is_there = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        mounts.into_iter().any(|mount| mount["mountPath"] == TOKEN_FOLDER)
    };
    let mut below = |most: usize| {
        let digit = usize::try_from(random % most as u64).expect("below a usize");
        random = random.rotate_right(9).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        digit
    };
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let known = volumes
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with(TOKEN_VOLUME))
        .map(str::to_owned);
    let is_known = known.is_some();
    let name =
        known.unwrap_or_else(|| format!("{TOKEN_VOLUME}{}", names::random_suffix(5, &mut below)));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if is_there(container) {
                continue;
            }
            mounted = true;
            let mount = json!({ "name": name, "readOnly": true, "mountPath": TOKEN_FOLDER });
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
    if !mounted || is_known {
        return;
    }
    let field = json!({ "apiVersion": "v1", "fieldPath": "metadata.namespace" });
    let sources = json!([
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt",
            "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": field }] } },
    ]);
    let volume = json!({ "name": name, "projected": { "sources": sources, "defaultMode": 420 } });
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}

fn priority(context: &Context<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let name = text(pod, "/spec/priorityClassName").to_owned();
    let asked = pod.pointer("/spec/priority").and_then(Value::as_i64);
    let class = context.facts.priority_class.as_ref();
    let value = match class {
        Some(class) => class.get("value").and_then(Value::as_i64).unwrap_or(0),
        None if name.is_empty() => 0,
        // The defaults know these, so that a cluster can start before they exist.
        None => defaults::system_priority(&name).ok_or_else(|| {
            let why = format!("no PriorityClass with name {name} was found");
            ApiError::forbidden(context.kind, meta::name(pod), why)
        })?,
    };
    // Without a name the 0 of the defaults is not the user's.
    let is_own = |asked: &i64| *asked != value && !(name.is_empty() && *asked == 0);
    if let Some(asked) = asked.filter(is_own) {
        let why = format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority \
             admission controller computed {value} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(context.kind, meta::name(pod), why));
    }
    let Some(class) = class else { return Ok(()) };
    let policy = class.get("preemptionPolicy").cloned();
    let spec = &mut pod["spec"];
    spec["priorityClassName"] = json!(meta::name(class));
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = policy.unwrap_or_else(|| json!("PreemptLowerPriority"));
    Ok(())
}
