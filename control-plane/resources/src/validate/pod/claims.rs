//! Rules for claims of devices: what a Pod names, and which of them its containers use.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::meta::{items, text};
use crate::names;
use crate::validate::{Errors, Reason, at, get, nth};

/// The claims of a PodSpec. `pod` is the name of the Pod, if it is of one.
pub(super) fn named(spec: &Value, pod: Option<&str>, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, claim) in items(spec, "resourceClaims").iter().enumerate() {
        let path = nth(path, "resourceClaims", index);
        let (name, field) = (text(claim, "name"), at(&path, "name"));
        let template = get(claim, "resourceClaimTemplateName").as_str();
        if name.is_empty() {
            errors.required(&field, "");
        } else if !seen.insert(name) {
            errors.duplicate(&field, name);
        } else {
            let complaints = names::label(name);
            if let Some(pod) = pod.filter(|_| complaints.is_empty() && template.is_some()) {
                let made = format!("{pod}-{name}");
                for complaint in names::subdomain(&made) {
                    let detail = format!("final ResourceClaim name: {complaint}");
                    errors.invalid(&field, made.as_str(), &detail);
                }
            }
            errors.complaints(&field, name, complaints);
        }
        source(claim, &path, errors);
    }
}

/// A claim is there already or is made from a template.
fn source(claim: &Value, path: &str, errors: &mut Errors) {
    let keys = ["resourceClaimName", "resourceClaimTemplateName"];
    let given = keys.map(|key| get(claim, key).as_str());
    match given {
        [Some(_), Some(_)] => {
            let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be \
                specified";
            errors.invalid(path, claim.clone(), detail);
        }
        [None, None] => {
            let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid(path, claim.clone(), detail);
        }
        _ => {}
    }
    for (key, name) in keys.iter().zip(given) {
        if let Some(name) = name {
            errors.complaints(&at(path, key), name, names::subdomain(name));
        }
    }
}

/// The claims that a container uses: of those of its Pod, each once, whole or one request of it.
pub(super) fn wanted(container: &Value, spec: &Value, path: &str, errors: &mut Errors) {
    let all = items(spec, "resourceClaims").iter().map(|claim| text(claim, "name"));
    let all: BTreeSet<&str> = all.filter(|name| !name.is_empty()).collect();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in items(get(container, "resources"), "claims").iter().enumerate() {
        let path = nth(path, "claims", index);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        let field = at(&path, "name");
        if name.is_empty() {
            errors.required(&field, "");
            continue;
        }
        let key = match request {
            "" => name.to_string(),
            request => format!("{name}/{request}"),
        };
        let part = format!("{name}/");
        if seen.contains(name) {
            errors.duplicate(&field, name);
        } else {
            if !request.is_empty() {
                errors.complaints(&at(&path, "request"), request, names::label(request));
            }
            if seen.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() && seen.iter().any(|other| other.starts_with(&part)) {
                errors.duplicate(&field, name);
            }
            seen.insert(key);
        }
        if !all.contains(name) {
            let list: Vec<&str> = all.iter().copied().collect();
            let rest = match list[..] {
                [] => " which is empty".to_string(),
                _ => format!(": {}", list.join(", ")),
            };
            let message = format!(
                "Not found: {}: must be one of the names in pod.spec.resourceClaims{rest}",
                Value::from(name)
            );
            errors.add(Reason::NotFound, &field, message);
        }
    }
}
