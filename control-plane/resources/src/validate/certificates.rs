//! Rules for requests for certificates: what is asked of whom, and what was decided.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Errors, get, integer, is_empty, nth};
use crate::meta::{items, text};
use crate::{Object, names};

/// The shortest life of a certificate that one may ask for, in seconds.
const EXPIRATION_MIN: i64 = 600;
/// Conditions that are only ever true, and stay.
const DECISIONS: &[&str] = &["Approved", "Denied", "Failed"];
/// Longest domain of a signer's name.
const DOMAIN_MAX: usize = 253;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(super) fn request(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    if !is_request(text(spec, "request")) {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        errors.invalid("spec.request", text(spec, "request"), detail);
    }
    if is_empty(spec, "usages") {
        errors.required("spec.usages", "");
    }
    let usages: Vec<&str> =
        items(spec, "usages").iter().map(|usage| usage.as_str().unwrap_or("")).collect();
    for (index, usage) in usages.iter().enumerate() {
        errors.one_of(&nth("spec", "usages", index), usage, USAGES);
    }
    let mut seen = BTreeSet::new();
    for (index, usage) in usages.iter().enumerate() {
        if !seen.insert(usage) {
            errors.duplicate(&nth("spec", "usages", index), *usage);
        }
    }
    signer(text(spec, "signerName"), errors);
    if let Some(seconds) = integer(spec, "expirationSeconds").filter(|it| *it < EXPIRATION_MIN) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid("spec.expirationSeconds", seconds, detail);
    }
    conditions(object, errors);
}

/// Whether the first PEM block of text in base64 is a request.
fn is_request(encoded: &str) -> bool {
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN "));
    lines.next().is_some_and(|line| line.trim_end() == "-----BEGIN CERTIFICATE REQUEST-----")
        && lines.any(|line| line.trim_end() == "-----END CERTIFICATE REQUEST-----")
}

/// `example.com/signer-name`.
fn signer(name: &str, errors: &mut Errors) {
    let field = "spec.signerName";
    if name.is_empty() {
        errors.required(field, "");
        return;
    }
    if name == "kubernetes.io/legacy-unknown" {
        errors.invalid(field, name, "the legacy signerName is not allowed via this API version");
        return;
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(field, name, detail);
        return;
    };
    if domain.len() > DOMAIN_MAX {
        errors.too_long(field, DOMAIN_MAX);
    }
    let parts = [
        (domain, names::label as fn(&str) -> Vec<String>),
        (path, names::subdomain as fn(&str) -> Vec<String>),
    ];
    for (index, (part, check)) in parts.into_iter().enumerate() {
        // The first bad label says enough.
        let bad = part.split('.').find(|label| !check(label).is_empty());
        for complaint in bad.map(check).into_iter().flatten() {
            let detail = format!("validating label {:?}: {complaint}", bad.unwrap_or(""));
            errors.invalid(field, part, &detail);
        }
        if index == 0 && !domain.contains('.') {
            let detail = "should be a domain with at least two segments separated by dots";
            errors.invalid(field, domain, detail);
        }
    }
}

fn conditions(object: &Object, errors: &mut Errors) {
    let conditions = items(get(object, "status"), "conditions");
    let kinds: Vec<&str> = conditions.iter().map(|condition| text(condition, "type")).collect();
    for (index, condition) in conditions.iter().enumerate() {
        let path = nth("status", "conditions", index);
        let (kind, status) = (kinds[index], text(condition, "status"));
        if kind.is_empty() {
            errors.required(&format!("{path}.type"), "");
        }
        let allowed: &[&str] =
            if DECISIONS.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match status {
            "" => errors.required(&format!("{path}.status"), ""),
            status => errors.one_of(&format!("{path}.status"), status, allowed),
        }
        let before = &kinds[..index];
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !opposite.is_empty() && before.contains(&opposite) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&format!("{path}.type"), kind, detail);
        }
        if before.contains(&kind) {
            errors.duplicate(&format!("{path}.type"), kind);
        }
    }
}

/// What was decided stays decided.
pub(super) fn status_change(new: &Object, old: &Object, errors: &mut Errors) {
    let is = |object: &Object, kind: &str| {
        items(get(object, "status"), "conditions").iter().any(|other| text(other, "type") == kind)
    };
    for kind in DECISIONS.iter().filter(|kind| is(old, kind) && !is(new, kind)) {
        let detail = format!("updates may not remove a condition of type {kind:?}");
        errors.forbidden("status.conditions", &detail);
    }
    let list = |object: &Object| get(get(object, "status"), "conditions").clone();
    // A request that was stored with such conditions may keep them.
    if list(new) != list(old) {
        conditions(new, errors);
    }
}
