//! Where bytes stand in objects as base64, and bringing them into canonical form.
//!
//! A stock API server reads past the ends of lines that people leave in base64, and answers
//! without them.

use serde_json::Value;

use crate::{Kind, Object};

const ADMISSION: &str = "admissionregistration.k8s.io";

/// (group, plural, path to bytes); `*` stands for every item of a list or entry of a map.
const BYTES: &[(&str, &str, &str)] = &[
    ("", "secrets", "data.*"),
    ("", "configmaps", "binaryData.*"),
    ("certificates.k8s.io", "certificatesigningrequests", "spec.request"),
    ("certificates.k8s.io", "certificatesigningrequests", "status.certificate"),
    (ADMISSION, "mutatingwebhookconfigurations", "webhooks.*.clientConfig.caBundle"),
    (ADMISSION, "validatingwebhookconfigurations", "webhooks.*.clientConfig.caBundle"),
    ("apiregistration.k8s.io", "apiservices", "spec.caBundle"),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "spec.conversion.webhook.clientConfig.caBundle",
    ),
];

pub(super) fn canonical(kind: &Kind, object: &mut Object) {
    for (_, _, path) in BYTES.iter().filter(|row| row.0 == kind.group && row.1 == kind.plural) {
        rewrite(object, Some(path));
    }
}

fn rewrite(value: &mut Value, path: Option<&str>) {
    let Some(path) = path else {
        if let Value::String(text) = value {
            text.retain(|c| !matches!(c, '\r' | '\n'));
        }
        return;
    };
    let (step, rest) = match path.split_once('.') {
        Some((step, rest)) => (step, Some(rest)),
        None => (path, None),
    };
    match value {
        Value::Array(items) if step == "*" => items.iter_mut().for_each(|it| rewrite(it, rest)),
        Value::Object(map) if step == "*" => map.values_mut().for_each(|it| rewrite(it, rest)),
        Value::Object(map) => map.get_mut(step).into_iter().for_each(|it| rewrite(it, rest)),
        _ => {}
    }
}
