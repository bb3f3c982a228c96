//! Rules for roles and their bindings.

use serde_json::Value;

use super::workloads::label_selector;
use super::{Errors, at, get, is_empty, nth};
use crate::meta::{items, text};
use crate::{Object, names};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(object: &Object, errors: &mut Errors) {
    rules(object, true, errors);
}

pub(super) fn cluster_role(object: &Object, errors: &mut Errors) {
    rules(object, false, errors);
    let selectors = items(get(object, "aggregationRule"), "clusterRoleSelectors");
    for (index, selector) in selectors.iter().enumerate() {
        label_selector(selector, &nth("aggregationRule", "clusterRoleSelectors", index), errors);
    }
    if object.get("aggregationRule").is_some() && selectors.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.required("aggregationRule.clusterRoleSelectors", detail);
    }
}

fn rules(object: &Object, is_namespaced: bool, errors: &mut Errors) {
    for (index, rule) in items(object, "rules").iter().enumerate() {
        let path = nth("", "rules", index);
        if is_empty(rule, "verbs") {
            errors.required(&at(&path, "verbs"), "verbs must contain at least one value");
        }
        if !is_empty(rule, "nonResourceURLs") {
            let urls = get(rule, "nonResourceURLs").clone();
            let field = at(&path, "nonResourceURLs");
            if is_namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&field, urls.clone(), detail);
            }
            let others = ["apiGroups", "resources", "resourceNames"];
            if others.iter().any(|key| !is_empty(rule, key)) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&field, urls, detail);
            }
            continue;
        }
        let needs = [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ];
        for (key, detail) in needs.into_iter().filter(|(key, _)| is_empty(rule, key)) {
            errors.required(&at(&path, key), detail);
        }
    }
}

pub(super) fn role_binding(object: &Object, errors: &mut Errors) {
    role_ref(object, &["Role", "ClusterRole"], errors);
    subjects(object, true, errors);
}

pub(super) fn cluster_role_binding(object: &Object, errors: &mut Errors) {
    role_ref(object, &["ClusterRole"], errors);
    subjects(object, false, errors);
}

fn role_ref(object: &Object, kinds: &[&str], errors: &mut Errors) {
    let role = get(object, "roleRef");
    errors.one_of("roleRef.apiGroup", text(role, "apiGroup"), &[GROUP]);
    errors.one_of("roleRef.kind", text(role, "kind"), kinds);
    match text(role, "name") {
        "" => errors.required("roleRef.name", ""),
        name => errors.complaints("roleRef.name", name, names::path_segment(name)),
    }
}

fn subjects(object: &Object, is_namespaced: bool, errors: &mut Errors) {
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        let path = nth("", "subjects", index);
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        if name.is_empty() {
            errors.required(&at(&path, "name"), "");
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.complaints(&at(&path, "name"), name, names::subdomain(name));
                }
                errors.one_of(&at(&path, "apiGroup"), group, &[""]);
                if !is_namespaced && text(subject, "namespace").is_empty() {
                    errors.required(&at(&path, "namespace"), "");
                }
            }
            "User" | "Group" => errors.one_of(&at(&path, "apiGroup"), group, &[GROUP]),
            other => {
                let supported = &["ServiceAccount", "User", "Group"];
                errors.unsupported(&at(&path, "kind"), other, supported);
            }
        }
    }
}

/// A binding is bound to its role: another role is another binding.
pub(super) fn role_ref_change(new: &Object, old: &Object, errors: &mut Errors) {
    let null = Value::Null;
    let role = |object: &Object| object.get("roleRef").unwrap_or(&null).clone();
    if role(new) != role(old) {
        errors.invalid("roleRef", role(new), "cannot change roleRef");
    }
}
