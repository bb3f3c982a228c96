//! Rules for CustomResourceDefinitions, and for objects of the kinds they define.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Errors, IMMUTABLE, at, entries, get, structural};
use crate::custom::{Definition, check, names, path};
use crate::meta::{items, text};
use crate::names as name_rules;
use crate::{Object, meta};

/// Most selectable fields of one version, as in Kubernetes.
const SELECTABLE_MAX: usize = 8;
/// Groups that need an approval annotation.
const PROTECTED: [&str; 2] = ["k8s.io", "kubernetes.io"];
const APPROVAL: &str = "api-approved.kubernetes.io";

/// A CRD.
pub(super) fn definition(crd: &Object, errors: &mut Errors) {
    let spec = get(crd, "spec");
    let (group, plural) = (text(spec, "group"), text(get(spec, "names"), "plural"));
    if meta::name(crd) != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.invalid("metadata.name", meta::name(crd), detail);
    }
    approval(crd, group, errors);
    group_and_scope(spec, group, errors);
    versions(spec, errors);
    requested_names(get(spec, "names"), errors);
    conversion(spec, errors);
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(true)) {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
            spec.versions[*].schema instead";
        errors.invalid("spec.preserveUnknownFields", true, detail);
    }
}

fn approval(crd: &Object, group: &str, errors: &mut Errors) {
    let guarded =
        PROTECTED.iter().any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    let approved = meta::annotation(crd, APPROVAL).unwrap_or("");
    let holds = approved.starts_with("http://")
        || approved.starts_with("https://")
        || approved.starts_with("unapproved");
    if guarded && !holds {
        let detail = "protected groups must have approval annotation \
            \"api-approved.kubernetes.io\", see \
            https://github.com/kubernetes/enhancements/pull/1111";
        errors.required(&format!("metadata.annotations[{APPROVAL}]"), detail);
    }
}

fn group_and_scope(spec: &Value, group: &str, errors: &mut Errors) {
    if group.is_empty() {
        errors.required("spec.group", "");
    } else {
        errors.complaints("spec.group", group, name_rules::subdomain(group));
        if !group.contains('.') {
            errors.invalid("spec.group", group, "should be a domain with at least one dot");
        }
    }
    match text(spec, "scope") {
        "" => errors.required("spec.scope", ""),
        scope => errors.one_of("spec.scope", scope, &["Cluster", "Namespaced"]),
    }
}

fn versions(spec: &Value, errors: &mut Errors) {
    let versions = items(spec, "versions");
    let mut seen = HashSet::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, "name");
        unique &= seen.insert(name);
        errors.complaints(&at(&path, "name"), name, name_rules::label_1035(name));
        if text(version, "deprecationWarning").len() > 256 {
            errors.too_long(&at(&path, "deprecationWarning"), 256);
        }
        if version.get("deprecationWarning").is_some()
            && version.get("deprecated") != Some(&json!(true))
        {
            let detail = "can only be set for deprecated versions";
            errors.invalid(
                &at(&path, "deprecationWarning"),
                text(version, "deprecationWarning"),
                detail,
            );
        }
        schema(version, &path, versions.len(), errors);
        subresources(get(version, "subresources"), &at(&path, "subresources"), errors);
        columns(version, &path, errors);
        selectable(version, &path, errors);
    }
    // A stock server shows the versions as Go writes structs, which helps nobody.
    let shown: Vec<&str> = versions.iter().map(|version| text(version, "name")).collect();
    if !unique {
        errors.invalid("spec.versions", shown.clone(), "must contain unique version names");
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid("spec.versions", shown, detail);
    }
}

/// With one version alone a stock server speaks of `spec.validation`, its older place.
fn schema(version: &Value, path: &str, count: usize, errors: &mut Errors) {
    let source = version.pointer("/schema/openAPIV3Schema");
    let path = match count {
        1 => "spec.validation.openAPIV3Schema".to_owned(),
        _ => format!("{path}.schema.openAPIV3Schema"),
    };
    match source.filter(|source| source.is_object()) {
        Some(source) => structural::check(source, &path, errors),
        None => errors.required(
            &format!("{}.schema.openAPIV3Schema", "spec.versions[*]"),
            "schemas are required",
        ),
    }
}

fn subresources(subresources: &Value, path: &str, errors: &mut Errors) {
    let Some(scale) = subresources.get("scale") else {
        return;
    };
    let path = at(path, "scale");
    let places = [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", "", false),
    ];
    for (key, prefix, required) in places {
        let (path, value) = (at(&path, key), text(scale, key));
        if value.is_empty() {
            if required {
                errors.required(&path, "");
            }
            continue;
        }
        if let Some(why) = not_simple(value) {
            errors.invalid(&path, value, &why);
        } else if !value.starts_with(prefix) {
            let detail = format!("should be a json path under {prefix}");
            errors.invalid(&path, value, detail.trim_end_matches('.'));
        } else if prefix.is_empty()
            && !value.starts_with(".spec.")
            && !value.starts_with(".status.")
        {
            errors.invalid(&path, value, "should be a json path under either .spec or .status");
        }
    }
}

/// Why a path does not name one field by plain names.
fn not_simple(path: &str) -> Option<String> {
    if !path.starts_with('.') {
        return Some("is an invalid path: does not start with .".to_owned());
    }
    if path.contains('[') || path.contains('*') || path.contains("..") {
        return Some("should be a simple json path of field names".to_owned());
    }
    if path.matches('.').count() > path::NAMES_MAX {
        return Some(format!("should name at most {} fields", path::NAMES_MAX));
    }
    None
}

fn columns(version: &Value, path: &str, errors: &mut Errors) {
    let types = ["boolean", "date", "integer", "number", "string"];
    let formats = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password"];
    for (index, column) in items(version, "additionalPrinterColumns").iter().enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{index}]");
        if text(column, "name").is_empty() {
            errors.required(&at(&path, "name"), "");
        }
        match text(column, "type") {
            "" => {
                errors.required(&at(&path, "type"), &format!("must be one of {}", types.join(",")))
            }
            kind if !types.contains(&kind) => {
                let detail = format!("must be one of {}", types.join(","));
                errors.invalid(&at(&path, "type"), kind, &detail);
            }
            _ => {}
        }
        let format = text(column, "format");
        if !format.is_empty() && !formats.contains(&format) {
            let detail = format!("must be one of {}", formats.join(","));
            errors.invalid(&at(&path, "format"), format, &detail);
        }
        match text(column, "jsonPath") {
            "" => errors.required(&at(&path, "jsonPath"), ""),
            written => {
                if let Err(why) = path::compile(written) {
                    let detail = format!("is an invalid path: {why}");
                    errors.invalid(&at(&path, "jsonPath"), written, &detail);
                }
            }
        }
    }
}

fn selectable(version: &Value, path: &str, errors: &mut Errors) {
    let fields = items(version, "selectableFields");
    let list = at(path, "selectableFields");
    if fields.len() > SELECTABLE_MAX {
        errors.too_many(&list, fields.len(), SELECTABLE_MAX);
    }
    let mut seen = HashSet::new();
    for (index, field) in fields.iter().enumerate() {
        let (path, written) = (format!("{list}[{index}].jsonPath"), text(field, "jsonPath"));
        if written.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if let Some(why) = not_simple(written) {
            errors.invalid(&path, written, &why);
            continue;
        }
        if !seen.insert(written) {
            errors.duplicate(&path, written);
        }
        if written.starts_with(".metadata.") {
            errors.invalid(&path, written, "must not point to fields in metadata");
        }
        let names = path::Simple::parse(written);
        let mut schema = version.pointer("/schema/openAPIV3Schema");
        for name in names.fields() {
            schema = schema.and_then(|schema| schema.get("properties")?.get(name));
        }
        let kind = schema.map(|schema| text(schema, "type"));
        if !matches!(kind, Some("string" | "integer" | "boolean")) {
            let detail = "must point to a field of type string, boolean or integer. Enum string \
                fields and strings with formats are allowed.";
            errors.invalid(&path, written, detail);
        }
    }
}

fn requested_names(names: &Value, errors: &mut Errors) {
    let singles = ["plural", "singular", "kind", "listKind"];
    for key in singles {
        let (path, value) = (format!("spec.names.{key}"), text(names, key));
        if value.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let lower = value.to_lowercase();
        let bare = matches!(key, "kind" | "listKind").then_some(lower.as_str()).unwrap_or(value);
        let complaints = name_rules::label_1035(bare);
        if !complaints.is_empty() {
            let detail = complaints.join(",");
            match key {
                "kind" | "listKind" => errors.invalid(
                    &path,
                    value,
                    &format!("may have mixed case, but should otherwise match: {detail}"),
                ),
                _ => errors.invalid(&path, value, &detail),
            }
        }
    }
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        let detail = "kind and listKind may not be the same";
        errors.invalid("spec.names.listKind", text(names, "listKind"), detail);
    }
    for key in ["shortNames", "categories"] {
        for (index, value) in items(names, key).iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            let complaints = name_rules::label_1035(value);
            if !complaints.is_empty() {
                let path = format!("spec.names.{key}[{index}]");
                errors.invalid(&path, value, &complaints.join(","));
            }
        }
    }
}

fn conversion(spec: &Value, errors: &mut Errors) {
    let conversion = get(spec, "conversion");
    let webhook = get(conversion, "webhook");
    match text(conversion, "strategy") {
        "None" => {
            if !webhook.is_null() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.forbidden("spec.conversion.webhook", detail);
            }
        }
        "Webhook" => {
            let client = get(webhook, "clientConfig");
            if client.is_null() {
                let detail = "required when strategy is set to Webhook";
                errors.required("spec.conversion.webhookClientConfig", detail);
            } else {
                super::admission::client(client, "spec.conversion.webhookClientConfig", errors);
            }
            let versions = items(webhook, "conversionReviewVersions");
            if versions.is_empty() {
                errors.required("spec.conversion.conversionReviewVersions", "");
            } else if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
                let detail = "must include at least one of v1, v1beta1";
                let shown = Value::Array(versions.to_vec());
                errors.invalid("spec.conversion.conversionReviewVersions", shown, detail);
            }
        }
        "" => errors.required("spec.conversion.strategy", ""),
        other => errors.unsupported("spec.conversion.strategy", other, &["None", "Webhook"]),
    }
}

/// What may not change, least of all once objects are served.
pub(super) fn definition_change(new: &Object, old: &Object, errors: &mut Errors) {
    let place = |object: &Object, path: &str| object.pointer(path).cloned();
    let mut fixed =
        vec![("spec.group", "/spec/group"), ("spec.names.plural", "/spec/names/plural")];
    if names::is_established(old) {
        fixed.push(("spec.scope", "/spec/scope"));
        fixed.push(("spec.names.kind", "/spec/names/kind"));
    }
    for (field, path) in fixed {
        if place(new, path) != place(old, path) {
            let value = place(new, path).unwrap_or(Value::Null);
            errors.invalid(field, value, IMMUTABLE);
        }
    }
    stored_versions(new, errors);
}

/// Objects may be stored in these versions, so their schemas must stay.
pub(super) fn stored_versions(crd: &Object, errors: &mut Errors) {
    let versions = items(get(crd, "spec"), "versions");
    for (index, stored) in items(get(crd, "status"), "storedVersions").iter().enumerate() {
        if !versions.iter().any(|version| version.get("name") == Some(stored)) {
            let path = format!("status.storedVersions[{index}]");
            errors.invalid(&path, stored.clone(), "must appear in spec.versions");
        }
    }
}

/// An object of a custom kind.
pub(super) fn object(
    definition: &Definition,
    object: &Object,
    old: Option<&Object>,
    errors: &mut Errors,
) {
    errors.0.extend(check::object(&definition.schema, object, old));
}

/// A new status of a custom object: what is wrong elsewhere in it is not this write's fault.
pub(super) fn status(definition: &Definition, object: &Object, old: &Object, errors: &mut Errors) {
    let Some(schema) = definition.schema.child("status") else {
        return;
    };
    if let Some(status) = object.get("status") {
        errors.0.extend(check::value(schema, status, old.get("status"), "status"));
    }
}

/// Whether any key of a map is there.
pub(super) fn has_any(value: &Value, key: &str) -> bool {
    entries(value, key).next().is_some()
}
