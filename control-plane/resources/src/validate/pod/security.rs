//! Rules for security contexts: identities in range, profiles that say what they mean.

use serde_json::Value;

use crate::meta::{items, text};
use crate::validate::{Errors, at, flag, get, integer, nth};

/// Greatest number of a user or a group.
const IDENTITY_MAX: i64 = i32::MAX as i64;
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

/// The context of all containers of a Pod.
pub(super) fn pod(spec: &Value, path: &str, errors: &mut Errors) {
    let context = get(spec, "securityContext");
    let field = at(path, "securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        identity(integer(context, key), &at(&field, key), errors);
    }
    for (index, group) in items(context, "supplementalGroups").iter().enumerate() {
        identity(group.as_i64(), &nth(&field, "supplementalGroups", index), errors);
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&at(path, "shareProcessNamespace"), true, detail);
    }
    let policy = text(context, "fsGroupChangePolicy");
    if !policy.is_empty() {
        let supported = &["Always", "OnRootMismatch"];
        errors.one_of(&at(&field, "fsGroupChangePolicy"), policy, supported);
    }
    profile(context, "seccompProfile", "seccomp", &field, errors);
    profile(context, "appArmorProfile", "AppArmor", &field, errors);
}

/// The context of one container.
pub(super) fn container(context: &Value, path: &str, errors: &mut Errors) {
    for key in ["runAsUser", "runAsGroup"] {
        identity(integer(context, key), &at(path, key), errors);
    }
    profile(context, "seccompProfile", "seccomp", path, errors);
    profile(context, "appArmorProfile", "AppArmor", path, errors);
    let escalates = context.get("allowPrivilegeEscalation").and_then(Value::as_bool);
    if escalates == Some(false) && flag(context, "privileged") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid(path, context.clone(), detail);
    }
}

fn identity(number: Option<i64>, field: &str, errors: &mut Errors) {
    if let Some(number) = number
        && !(0..=IDENTITY_MAX).contains(&number)
    {
        let detail = format!("must be between 0 and {IDENTITY_MAX}, inclusive");
        errors.invalid(field, number, &detail);
    }
}

/// A profile of the kernel's filters; only one from the node's disk has a name.
fn profile(context: &Value, key: &str, word: &str, path: &str, errors: &mut Errors) {
    let profile = get(context, key);
    if !profile.is_object() {
        return;
    }
    let path = at(path, key);
    let kind = text(profile, "type");
    if kind.is_empty() {
        errors.required(&at(&path, "type"), &format!("type is required when {key} is set"));
        return;
    }
    errors.one_of(&at(&path, "type"), kind, PROFILES);
    let field = at(&path, "localhostProfile");
    let name = text(profile, "localhostProfile");
    match (kind, name) {
        ("Localhost", "") => {
            errors.required(&field, &format!("must be set when {word} type is Localhost"));
        }
        ("Localhost", _) | (_, "") => {}
        _ => {
            let detail = format!("can only be set when {word} type is Localhost");
            errors.invalid(&field, name, &detail);
        }
    }
}
