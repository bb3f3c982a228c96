//! Rules for webhook configurations and admission policies. Whether their expressions compile is
//! for those to say who have an evaluator.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::workloads::label_selector;
use super::{Errors, at, get};
use crate::meta::{items, text};
use crate::{Object, names};

/// Most match conditions of one webhook or policy, as in Kubernetes.
const CONDITIONS_MAX: usize = 64;
/// Most of a policy's annotations for the audit log, as in Kubernetes.
const ANNOTATIONS_MAX: usize = 20;
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// Mutating and validating webhook configurations.
pub(super) fn webhooks(object: &Object, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, webhook) in items(object, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{index}]");
        let name = text(webhook, "name");
        qualified(name, &at(&path, "name"), errors);
        if !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
        for (at_rule, rule) in items(webhook, "rules").iter().enumerate() {
            self::rule(rule, &format!("{path}.rules[{at_rule}]"), errors);
        }
        webhook_policies(webhook, &path, errors);
        selectors(webhook, &path, errors);
        match_conditions(webhook, &path, errors);
        let config = get(webhook, "clientConfig");
        client(config, &at(&path, "clientConfig"), errors);
    }
}

fn webhook_policies(webhook: &Value, path: &str, errors: &mut Errors) {
    let optional = |key: &str, known: &[&str], errors: &mut Errors| {
        if webhook.get(key).is_some() {
            errors.one_of(&at(path, key), text(webhook, key), known);
        }
    };
    optional("failurePolicy", &["Fail", "Ignore"], errors);
    optional("matchPolicy", &["Equivalent", "Exact"], errors);
    optional("reinvocationPolicy", &["IfNeeded", "Never"], errors);
    match text(webhook, "sideEffects") {
        "" => errors.required(&at(path, "sideEffects"), "must specify one of None, NoneOnDryRun"),
        other => errors.one_of(&at(path, "sideEffects"), other, &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = webhook.get("timeoutSeconds").and_then(Value::as_i64)
        && !(1..=30).contains(&seconds)
    {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&at(path, "timeoutSeconds"), seconds, detail);
    }
    let versions = items(webhook, "admissionReviewVersions");
    let path = at(path, "admissionReviewVersions");
    if versions.is_empty() {
        errors.required(&path, "must specify one of v1, v1beta1");
    } else if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        let detail = "must include at least one of v1, v1beta1";
        errors.invalid(&path, Value::Array(versions.to_vec()), detail);
    }
}

/// A name of at least three parts.
fn qualified(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    errors.complaints(path, name, names::subdomain(name));
    if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.invalid(path, name, detail);
    }
}

fn rule(rule: &Value, path: &str, errors: &mut Errors) {
    let operations = items(rule, "operations");
    if operations.is_empty() {
        errors.required(&at(path, "operations"), "");
    }
    for (index, operation) in operations.iter().enumerate() {
        let path = format!("{path}.operations[{index}]");
        errors.one_of(&path, operation.as_str().unwrap_or(""), &OPERATIONS);
    }
    for (key, alone) in [
        ("operations", "if '*' is present, must not specify other operations"),
        ("apiGroups", "if '*' is present, must not specify other API groups"),
        ("apiVersions", "if '*' is present, must not specify other API versions"),
    ] {
        let list = items(rule, key);
        if list.is_empty() && key != "operations" {
            errors.required(&at(path, key), "");
        }
        if list.len() > 1 && list.iter().any(|one| one == "*") {
            errors.invalid(&at(path, key), Value::Array(list.to_vec()), alone);
        }
    }
    let resources = items(rule, "resources");
    if resources.is_empty() {
        errors.required(&at(path, "resources"), "");
    }
    for (index, resource) in resources.iter().enumerate() {
        if resource.as_str().unwrap_or("").is_empty() {
            errors.required(&format!("{path}.resources[{index}]"), "");
        }
    }
    if resources.len() > 1 && resources.iter().any(|one| one == "*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.invalid(&at(path, "resources"), Value::Array(resources.to_vec()), detail);
    }
    if rule.get("scope").is_some() {
        errors.one_of(&at(path, "scope"), text(rule, "scope"), &["*", "Cluster", "Namespaced"]);
    }
}

fn match_conditions(parent: &Value, path: &str, errors: &mut Errors) {
    let path = at(path, "matchConditions");
    let conditions = items(parent, "matchConditions");
    if conditions.len() > CONDITIONS_MAX {
        errors.too_many(&path, conditions.len(), CONDITIONS_MAX);
    }
    let mut seen = HashSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = text(condition, "name");
        if name.is_empty() {
            errors.required(&at(&path, "name"), "");
        } else {
            errors.complaints(&at(&path, "name"), name, names::qualified(name));
        }
        if !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
        if text(condition, "expression").trim().is_empty() {
            errors.required(&at(&path, "expression"), "");
        }
    }
}

/// Where a webhook is reached.
pub(super) fn client(config: &Value, path: &str, errors: &mut Errors) {
    match (config.get("url"), config.get("service")) {
        (Some(url), None) => self::url(url.as_str().unwrap_or(""), &at(path, "url"), errors),
        (None, Some(service)) => self::service(service, &at(path, "service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn url(url: &str, path: &str, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut say = |value: &str, detail: &str| {
        errors.invalid(path, value, &format!("{detail}{FORM}"));
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        say(url, "url must be a valid URL");
        return;
    };
    if scheme != "https" {
        say(scheme, "'https' is the only allowed URL scheme");
    }
    let (host, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if host.is_empty() {
        say(host, "host must be specified");
    }
    if let Some((user, _)) = host.rsplit_once('@') {
        say(user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = tail.split_once('#') {
        say(fragment, "fragments are not permitted in the URL");
    }
    let before = tail.split('#').next().unwrap_or("");
    if let Some((_, query)) = before.split_once('?') {
        say(query, "query parameters are not permitted in the URL");
    }
}

/// A Service that the API server connects to.
pub(super) fn service(service: &Value, path: &str, errors: &mut Errors) {
    for (key, detail) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if text(service, key).is_empty() {
            errors.required(&at(path, key), detail);
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    if !(1..=65_535).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&at(path, "port"), port, detail);
    }
    let written = text(service, "path");
    if !written.is_empty() && (!written.starts_with('/') || written.contains("//")) {
        let detail = "must start with a '/', and no segment may be empty";
        errors.invalid(&at(path, "path"), written, detail);
    }
}

/// ValidatingAdmissionPolicies and MutatingAdmissionPolicies.
pub(super) fn policy(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    errors.one_of("spec.failurePolicy", text(spec, "failurePolicy"), &["Fail", "Ignore"]);
    if let Some(kind) = spec.get("paramKind") {
        for key in ["apiVersion", "kind"] {
            if text(kind, key).is_empty() {
                errors.required(&at("spec.paramKind", key), "");
            }
        }
    }
    match spec.get("matchConstraints") {
        None => errors.required("spec.matchConstraints", ""),
        Some(constraints) => match_resources(constraints, "spec.matchConstraints", true, errors),
    }
    match_conditions(spec, "spec", errors);
    variables(spec, errors);
    if object.get("kind") == Some(&json!("MutatingAdmissionPolicy")) {
        mutations(spec, errors);
    } else {
        validations(spec, errors);
    }
}

fn variables(spec: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, variable) in items(spec, "variables").iter().enumerate() {
        let path = format!("spec.variables[{index}]");
        let name = text(variable, "name");
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            errors.required(&at(&path, "name"), "name is not specified");
        } else if !is_name {
            errors.invalid(&at(&path, "name"), name, "name is not a valid CEL identifier");
        }
        if !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
        if text(variable, "expression").trim().is_empty() {
            errors.required(&at(&path, "expression"), "expression is not specified");
        }
    }
}

fn validations(spec: &Value, errors: &mut Errors) {
    let (validations, annotations) = (items(spec, "validations"), items(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must be specified";
        errors.required("spec.validations", detail);
        errors.required("spec.auditAnnotations", detail);
    }
    for (index, validation) in validations.iter().enumerate() {
        let path = format!("spec.validations[{index}]");
        if text(validation, "expression").trim().is_empty() {
            errors.required(&at(&path, "expression"), "expression is not specified");
        }
        let message = text(validation, "message");
        if validation.get("message").is_some() && message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errors.invalid(&at(&path, "message"), message, detail);
        }
        if message.contains('\n') {
            let detail = "message must not contain line breaks";
            errors.invalid(&at(&path, "message"), message, detail);
        }
        if validation.get("reason").is_some() {
            let known = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
            errors.one_of(&at(&path, "reason"), text(validation, "reason"), &known);
        }
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid("spec.auditAnnotations", annotations.to_vec(), &detail);
    }
    let mut seen = HashSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{index}]");
        for key in ["key", "valueExpression"] {
            if text(annotation, key).trim().is_empty() {
                errors.required(&at(&path, key), "");
            }
        }
        let key = text(annotation, "key");
        errors.complaints(&at(&path, "key"), key, names::qualified(key));
        if !seen.insert(key) {
            errors.duplicate(&at(&path, "key"), key);
        }
    }
}

fn mutations(spec: &Value, errors: &mut Errors) {
    let mutations = items(spec, "mutations");
    if mutations.is_empty() {
        errors.required("spec.mutations", "mutations must contain at least one item");
    }
    if spec.get("reinvocationPolicy").is_none() {
        errors.required("spec.reinvocationPolicy", "");
    } else {
        let policy = text(spec, "reinvocationPolicy");
        errors.one_of("spec.reinvocationPolicy", policy, &["IfNeeded", "Never"]);
    }
    for (index, mutation) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{index}]");
        let (kind, body) = match text(mutation, "patchType") {
            "ApplyConfiguration" => ("applyConfiguration", mutation.get("applyConfiguration")),
            "JSONPatch" => ("jsonPatch", mutation.get("jsonPatch")),
            "" => {
                errors.required(&at(&path, "patchType"), "");
                continue;
            }
            other => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                errors.unsupported(&at(&path, "patchType"), other, &known);
                continue;
            }
        };
        let written = body.map_or("", |body| text(body, "expression"));
        if written.trim().is_empty() {
            let detail = "expression is not specified";
            errors.required(&format!("{path}.{kind}.expression"), detail);
        }
    }
}

fn match_resources(constraints: &Value, path: &str, required: bool, errors: &mut Errors) {
    let rules = items(constraints, "resourceRules");
    if required && rules.is_empty() {
        errors.required(&at(path, "resourceRules"), "");
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (index, one) in items(constraints, key).iter().enumerate() {
            rule(one, &format!("{path}.{key}[{index}]"), errors);
        }
    }
    if constraints.get("matchPolicy").is_some() {
        let policy = text(constraints, "matchPolicy");
        errors.one_of(&at(path, "matchPolicy"), policy, &["Equivalent", "Exact"]);
    }
    selectors(constraints, path, errors);
}

/// One that cannot be read would select nothing.
fn selectors(parent: &Value, path: &str, errors: &mut Errors) {
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(get(parent, key), &at(path, key), errors);
    }
}

/// Bindings of both kinds of policies.
pub(super) fn binding(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    if text(spec, "policyName").is_empty() {
        errors.required("spec.policyName", "");
    }
    if let Some(reference) = spec.get("paramRef") {
        let path = "spec.paramRef";
        match (text(reference, "name").is_empty(), reference.get("selector")) {
            (true, None) => errors.required(path, "one of name or selector must be specified"),
            (false, Some(_)) => {
                errors.forbidden(&at(path, "name"), "name and selector are mutually exclusive");
            }
            _ => {}
        }
        label_selector(get(reference, "selector"), &at(path, "selector"), errors);
        match text(reference, "parameterNotFoundAction") {
            "" => errors.required(&at(path, "parameterNotFoundAction"), ""),
            action => {
                let path = at(path, "parameterNotFoundAction");
                errors.one_of(&path, action, &["Allow", "Deny"]);
            }
        }
    }
    if let Some(resources) = spec.get("matchResources") {
        match_resources(resources, "spec.matchResources", false, errors);
    }
    if object.get("kind") == Some(&json!("ValidatingAdmissionPolicyBinding")) {
        actions(items(spec, "validationActions"), errors);
    }
}

fn actions(actions: &[Value], errors: &mut Errors) {
    let path = "spec.validationActions";
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
    let mut seen = HashSet::new();
    for (index, action) in actions.iter().enumerate() {
        let (path, action) = (format!("{path}[{index}]"), action.as_str().unwrap_or(""));
        errors.one_of(&path, action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action) {
            errors.duplicate(&path, action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure \
            information in the API response and headers serves no purpose)";
        errors.invalid(path, Value::Array(actions.to_vec()), detail);
    }
}
