//! Rules for security contexts: identities in range, profiles that say what they mean.

use std::collections::BTreeSet;

use serde_json::Value;

use super::windows;
use crate::meta::{items, text};
use crate::validate::{Errors, at, flag, get, integer, nth};

/// Greatest number of a user or a group.
const IDENTITY_MAX: i64 = i32::MAX as i64;
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const SYSCTL_LENGTH_MAX: usize = 253;
/// The form of a sysctl's name, as the refusal says it.
const SYSCTL_FORM: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

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
        // It stands in the context where Kubernetes looks at it.
        errors.invalid(&at(&field, "shareProcessNamespace"), true, detail);
    }
    sysctls(spec, &field, errors);
    let policy = text(context, "fsGroupChangePolicy");
    if !policy.is_empty() {
        let supported = &["Always", "OnRootMismatch"];
        errors.one_of(&at(&field, "fsGroupChangePolicy"), policy, supported);
    }
    profile(context, "seccompProfile", "seccomp", &field, errors);
    windows::options(context, &field, errors);
    profile(context, "appArmorProfile", "AppArmor", &field, errors);
    let policy = text(context, "supplementalGroupsPolicy");
    if !policy.is_empty() {
        errors.one_of(&at(&field, "supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
}

/// Switches of the kernel: named well, each once, and none that belongs to the host's own network
/// or memory where the Pod shares that.
fn sysctls(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, sysctl) in items(get(spec, "securityContext"), "sysctls").iter().enumerate() {
        let field = at(&nth(path, "sysctls", index), "name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.required(&field, "");
        } else if !is_sysctl(name) {
            let detail = format!(
                "must have at most {SYSCTL_LENGTH_MAX} characters and match regex {SYSCTL_FORM}"
            );
            errors.invalid(&field, name, &detail);
        } else if seen.contains(name) {
            errors.duplicate(&field, name);
        }
        let dotted = name.replace('/', ".");
        let is_of = |prefixes: &[&str]| prefixes.iter().any(|it| dotted.starts_with(it));
        if flag(spec, "hostNetwork") && is_of(&["net."]) {
            errors.invalid(&field, name, "may not be specified when 'hostNetwork' is true");
        } else if flag(spec, "hostIPC")
            && (dotted == "kernel.sem" || is_of(&["kernel.shm", "kernel.msg", "fs.mqueue."]))
        {
            errors.invalid(&field, name, "may not be specified when 'hostIPC' is true");
        }
        seen.insert(name);
    }
}

/// Whether a name has the form of [`SYSCTL_FORM`].
fn is_sysctl(name: &str) -> bool {
    let is_edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| is_edge(*b))
            && bytes.last().is_some_and(|b| is_edge(*b))
            && bytes.iter().all(|b| is_edge(*b) || matches!(*b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_LENGTH_MAX && name.split(['.', '/']).all(is_part)
}

/// A Pod with users of its own shares nothing else with the host.
pub(super) fn host_users(spec: &Value, path: &str, errors: &mut Errors) {
    if spec.get("hostUsers").and_then(Value::as_bool) != Some(false) {
        return;
    }
    let fields = [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")];
    for (key, told) in fields {
        if flag(spec, key) {
            errors.forbidden(&at(path, told), "when `pod.Spec.HostUsers` is false");
        }
    }
}

/// The context of one container.
pub(super) fn container(context: &Value, path: &str, errors: &mut Errors) {
    for key in ["runAsUser", "runAsGroup"] {
        identity(integer(context, key), &at(path, key), errors);
    }
    let mount = text(context, "procMount");
    if !mount.is_empty() {
        errors.one_of(&at(path, "procMount"), mount, &["Default", "Unmasked"]);
    }
    profile(context, "seccompProfile", "seccomp", path, errors);
    let escalates = context.get("allowPrivilegeEscalation").and_then(Value::as_bool);
    if escalates == Some(false) && flag(context, "privileged") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid(path, context.clone(), detail);
    }
    let added = items(get(context, "capabilities"), "add");
    if escalates == Some(false) && added.iter().any(|name| name == "CAP_SYS_ADMIN") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` \
            CAP_SYS_ADMIN";
        errors.invalid(path, context.clone(), detail);
    }
    windows::options(context, path, errors);
    profile(context, "appArmorProfile", "AppArmor", path, errors);
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
        ("Localhost", _) if word == "seccomp" => {
            if name.starts_with('/') {
                errors.invalid(&field, name, "must be a relative path");
            }
            if name.split('/').any(|part| part == "..") {
                errors.invalid(&field, name, "must not contain '..'");
            }
        }
        ("Localhost", _) if name.trim() != name => {
            errors.invalid(&field, name, "must not be padded with whitespace");
        }
        ("Localhost", _) | (_, "") => {}
        _ => {
            let detail = format!("can only be set when {word} type is Localhost");
            errors.invalid(&field, name, &detail);
        }
    }
}
