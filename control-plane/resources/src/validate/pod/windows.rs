//! Rules for what only one operating system knows: which fields go with which, and who a program
//! of Windows runs as.

use serde_json::Value;

use crate::meta::{items, text};
use crate::names;
use crate::validate::{Errors, at, flag, get, is_empty, nth};

const SYSTEMS: &[&str] = &["linux", "windows"];
const CREDENTIAL_SPEC_KIB_MAX: usize = 64;
const DOMAIN_LENGTH_MAX: usize = 256;
const USER_LENGTH_MAX: usize = 104;
const NETBIOS_LENGTH_MAX: usize = 15;
const DNS_LABEL_LENGTH_MAX: usize = 63;

/// What a Pod for Windows cannot have, by its place in the PodSpec.
const NOT_OF_WINDOWS: &[&str] = &[
    "securityContext.appArmorProfile",
    "securityContext.seLinuxOptions",
    "hostUsers",
    "hostPID",
    "hostIPC",
    "securityContext.seccompProfile",
    "securityContext.fsGroup",
    "securityContext.fsGroupChangePolicy",
    "securityContext.sysctls",
    "shareProcessNamespace",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.supplementalGroups",
    "securityContext.supplementalGroupsPolicy",
    "securityContext.seLinuxChangePolicy",
];

/// The same in the context of a container.
const CONTEXT_NOT_OF_WINDOWS: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// The contexts of all containers and where they stand, in the order in which Kubernetes visits
/// them.
fn contexts<'a>(spec: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    let mut found = Vec::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            let path = at(&nth(path, list, index), "securityContext");
            found.push((get(container, "securityContext"), path));
        }
    }
    found
}

/// Programs of the host itself: all containers of a Pod or none, and in the host's network.
pub(super) fn host_process(spec: &Value, path: &str, errors: &mut Errors) {
    let asked = |context: &Value| get(get(context, "windowsOptions"), "hostProcess").as_bool();
    let of_pod = asked(get(spec, "securityContext"));
    let (mut count, mut of_host) = (0_usize, 0_usize);
    for (context, path) in contexts(spec, path) {
        count += 1;
        let own = asked(context);
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            let detail =
                format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.invalid(&at(&path, "windowsOptions.hostProcess"), own, &detail);
        }
        if own.or(of_pod) == Some(true) {
            of_host += 1;
        }
    }
    if of_host == 0 {
        return;
    }
    if of_host != count {
        let detail = "If pod contains any hostProcess containers then all containers must be \
            HostProcess containers";
        errors.invalid(path, "", detail);
    }
    if !flag(spec, "hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&at(path, "hostNetwork"), false, detail);
    }
}

/// What goes with the operating system that a Pod names.
pub(super) fn system(spec: &Value, path: &str, errors: &mut Errors) {
    let system = get(spec, "os");
    if system.is_null() {
        return;
    }
    match text(system, "name") {
        "" => errors.required(&at(path, "os.name"), "cannot be empty"),
        "linux" => linux(spec, path, errors),
        "windows" => windows(spec, path, errors),
        other => errors.unsupported(&at(path, "os"), other, SYSTEMS),
    }
}

fn linux(spec: &Value, path: &str, errors: &mut Errors) {
    const DETAIL: &str = "windows options cannot be set for a linux pod";
    let own = (get(spec, "securityContext"), at(path, "securityContext"));
    for (context, path) in std::iter::once(own).chain(contexts(spec, path)) {
        if !get(context, "windowsOptions").is_null() {
            errors.forbidden(&at(&path, "windowsOptions"), DETAIL);
        }
    }
}

fn windows(spec: &Value, path: &str, errors: &mut Errors) {
    const DETAIL: &str = "cannot be set for a windows pod";
    for field in NOT_OF_WINDOWS {
        let (parent, key) = match field.split_once('.') {
            Some((parent, key)) => (get(spec, parent), key),
            None => (spec, *field),
        };
        let is_set = match key {
            "hostPID" | "hostIPC" => flag(parent, key),
            "sysctls" => !is_empty(parent, key),
            _ => !get(parent, key).is_null(),
        };
        if is_set {
            errors.forbidden(&at(path, field), DETAIL);
        }
    }
    for (context, path) in contexts(spec, path) {
        for key in CONTEXT_NOT_OF_WINDOWS {
            if !get(context, key).is_null() {
                errors.forbidden(&at(&path, key), DETAIL);
            }
        }
    }
}

/// `windowsOptions` of a security context.
pub(super) fn options(context: &Value, path: &str, errors: &mut Errors) {
    let (options, path) = (get(context, "windowsOptions"), at(path, "windowsOptions"));
    let given = |key: &str| get(options, key).as_str();
    if let Some(name) = given("gmsaCredentialSpecName") {
        errors.complaints(&at(&path, "gmsaCredentialSpecName"), name, names::subdomain(name));
    }
    if let Some(spec) = given("gmsaCredentialSpec") {
        let field = at(&path, "gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&field, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > CREDENTIAL_SPEC_KIB_MAX * 1024 {
            let detail =
                format!("gmsaCredentialSpec size must be under {CREDENTIAL_SPEC_KIB_MAX} KiB");
            errors.invalid(&field, spec, &detail);
        }
    }
    if let Some(name) = given("runAsUserName") {
        for complaint in user_name(name) {
            errors.invalid(&at(&path, "runAsUserName"), name, &complaint);
        }
    }
}

/// What is wrong with `DOMAIN\user` or `user`.
fn user_name(name: &str) -> Vec<String> {
    let one = |text: &str| vec![format!("runAsUserName {text}")];
    if name.is_empty() {
        return one("cannot be an empty string");
    }
    if name.contains(|c: char| c.is_ascii_control()) {
        return one("cannot contain control characters");
    }
    let (domain, user) = match name.split('\\').collect::<Vec<_>>()[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return one("cannot contain more than one backslash"),
    };
    let mut wrong = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= DOMAIN_LENGTH_MAX) {
        let detail = format!("Domain length must be under {DOMAIN_LENGTH_MAX} characters");
        wrong.push(format!("runAsUserName's {detail}"));
    }
    if domain.is_some_and(|domain| !is_netbios(domain) && !is_dns(domain)) {
        let detail = "Domain doesn't match the NetBios nor the DNS format";
        wrong.push(format!("runAsUserName's {detail}"));
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty".to_string());
    } else if user.len() > USER_LENGTH_MAX {
        let detail = format!("User length must not be longer than {USER_LENGTH_MAX} characters");
        wrong.push(format!("runAsUserName's {detail}"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong.push("runAsUserName's User cannot contain only periods or spaces".to_string());
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        let detail = "User cannot contain the following characters: \"/\\:;|=,+*?<>@[]";
        wrong.push(format!("runAsUserName's {detail}"));
    }
    wrong
}

fn is_netbios(domain: &str) -> bool {
    let is_plain = |c: char| !"\\/:*?\"<>|".contains(c);
    (1..=NETBIOS_LENGTH_MAX).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && domain.chars().all(is_plain)
}

fn is_dns(domain: &str) -> bool {
    let is_label = |label: &str| {
        (1..=DNS_LABEL_LENGTH_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.split('.').all(is_label)
}
