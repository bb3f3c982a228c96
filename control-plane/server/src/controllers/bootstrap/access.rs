//! The default roles and bindings (`roles.yaml`, `bindings.yaml`), and the plan that keeps them.
//!
//! As in Kubernetes: what is missing of a role's rules or a binding's subjects is added, what users
//! have added stays, and the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"`
//! leaves an object alone. A binding of another role is made anew.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wherry_resources::rbac::{GROUP, Rule, compact, uncovered};

use super::super::write::Write;

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// A role with the label `rbac.authorization.k8s.io/aggregate-to-X` is gathered by the role X.
const GATHERED: &str = "rbac.authorization.k8s.io/aggregate-to-";

#[derive(Deserialize)]
struct RoleRow {
    name: String,
    #[serde(default)]
    gathered: Vec<String>,
    #[serde(default)]
    gathers: Vec<String>,
    #[serde(default)]
    rules: Vec<Value>,
}

#[derive(Deserialize)]
struct BindingRow {
    name: String,
    groups: Vec<String>,
}

/// The default objects, as they are when nobody has changed them.
pub struct Defaults {
    pub roles: Vec<ClusterRole>,
    pub bindings: Vec<ClusterRoleBinding>,
}

/// Parsed once.
pub static DEFAULTS: LazyLock<Defaults> = LazyLock::new(|| {
    let roles: Vec<RoleRow> =
        serde_yaml_ng::from_str(include_str!("roles.yaml")).expect("a test reads this file");
    let bindings: Vec<BindingRow> =
        serde_yaml_ng::from_str(include_str!("bindings.yaml")).expect("a test reads this file");
    Defaults {
        roles: roles.iter().map(role).collect(),
        bindings: bindings.iter().map(binding).collect(),
    }
});

fn metadata(name: &str, gathered: &[String]) -> Value {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"));
    for by in gathered {
        labels.insert(format!("{GATHERED}{by}"), json!("true"));
    }
    json!({ "name": name, "labels": labels, "annotations": { AUTOUPDATE: "true" } })
}

fn role(row: &RoleRow) -> ClusterRole {
    let mut role = json!({
        "metadata": metadata(&row.name, &row.gathered),
        "rules": row.rules,
    });
    if !row.gathers.is_empty() {
        let selectors: Vec<Value> = row
            .gathers
            .iter()
            .map(|by| json!({"matchLabels": { format!("{GATHERED}{by}"): "true" }}))
            .collect();
        role["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
    }
    serde_json::from_value(role).expect("a test reads this table")
}

fn binding(row: &BindingRow) -> ClusterRoleBinding {
    let subjects: Vec<Value> = row
        .groups
        .iter()
        .map(|group| json!({ "kind": "Group", "apiGroup": GROUP, "name": group }))
        .collect();
    let binding = json!({
        "metadata": metadata(&row.name, &[]),
        "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": row.name },
        "subjects": subjects,
    });
    serde_json::from_value(binding).expect("a test reads this table")
}

/// Whether a change of an object of this name may need the plan.
pub fn is_default(kind: &str, name: &str) -> bool {
    let is = |meta: &ObjectMeta| meta.name.as_deref() == Some(name);
    match kind {
        "ClusterRole" => DEFAULTS.roles.iter().any(|role| is(&role.metadata)),
        "ClusterRoleBinding" => DEFAULTS.bindings.iter().any(|binding| is(&binding.metadata)),
        _ => false,
    }
}

/// Makes what is missing and completes what is not whole. `role` and `binding` look up what there
/// is.
pub fn plan(
    role: impl Fn(&str) -> Option<Arc<ClusterRole>>,
    binding: impl Fn(&str) -> Option<Arc<ClusterRoleBinding>>,
) -> Vec<Write> {
    let mut writes = Vec::new();
    for wanted in &DEFAULTS.roles {
        match role(wanted.metadata.name.as_deref().unwrap_or("")) {
            None => writes.push(Write::create(wanted)),
            Some(held) => writes.extend(completed_role(&held, wanted)),
        }
    }
    for wanted in &DEFAULTS.bindings {
        match binding(wanted.metadata.name.as_deref().unwrap_or("")) {
            None => writes.push(Write::create(wanted)),
            Some(held) => writes.extend(completed_binding(&held, wanted)),
        }
    }
    writes
}

fn is_left_alone(meta: &ObjectMeta) -> bool {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(AUTOUPDATE));
    annotation.is_some_and(|value| value == "false") || meta.deletion_timestamp.is_some()
}

/// The labels that are missing or wrong, as the metadata of a merge patch.
fn missing_labels(held: &ObjectMeta, wanted: &ObjectMeta) -> Option<Value> {
    let none = BTreeMap::new();
    let labels = |meta: &'_ ObjectMeta| meta.labels.clone().unwrap_or_default();
    let held = held.labels.as_ref().unwrap_or(&none);
    let missing: BTreeMap<String, String> =
        labels(wanted).into_iter().filter(|(key, value)| held.get(key) != Some(value)).collect();
    (!missing.is_empty()).then(|| json!({ "labels": missing }))
}

/// The rules of a role, in the form that can be compared.
pub fn rules(role: &ClusterRole) -> Vec<Rule> {
    let rules = role.rules.iter().flatten();
    let json = rules.map(|rule| serde_json::to_value(rule).expect("a rule is JSON"));
    json.map(|rule| Rule::read(&rule)).collect()
}

fn completed_role(held: &ClusterRole, wanted: &ClusterRole) -> Option<Write> {
    if is_left_alone(&held.metadata) {
        return None;
    }
    let mut patch = Map::new();
    let own = rules(held);
    let missing = uncovered(&own, &rules(wanted));
    if !missing.is_empty() {
        let all = own.iter().chain(&compact(missing)).map(Rule::to_json).collect::<Vec<_>>();
        patch.insert("rules".to_owned(), json!(all));
    }
    if wanted.aggregation_rule.is_some() && held.aggregation_rule.is_none() {
        patch.insert("aggregationRule".to_owned(), json!(wanted.aggregation_rule));
    }
    if let Some(metadata) = missing_labels(&held.metadata, &wanted.metadata) {
        patch.insert("metadata".to_owned(), metadata);
    }
    (!patch.is_empty()).then(|| Write::patch(held, Value::Object(patch)))
}

fn completed_binding(held: &ClusterRoleBinding, wanted: &ClusterRoleBinding) -> Option<Write> {
    if is_left_alone(&held.metadata) {
        return None;
    }
    if (&held.role_ref.kind, &held.role_ref.name) != (&wanted.role_ref.kind, &wanted.role_ref.name)
    {
        // The role of a binding cannot be changed; the next plan makes it again.
        return Some(Write::delete(held));
    }
    let mut patch = Map::new();
    let mut subjects = held.subjects.clone().unwrap_or_default();
    let same = |subject: &&k8s_openapi::api::rbac::v1::Subject| {
        subjects.iter().any(|own| (&own.kind, &own.name) == (&subject.kind, &subject.name))
    };
    let missing: Vec<_> =
        wanted.subjects.iter().flatten().filter(|one| !same(one)).cloned().collect();
    if !missing.is_empty() {
        subjects.extend(missing);
        patch.insert("subjects".to_owned(), json!(subjects));
    }
    if let Some(metadata) = missing_labels(&held.metadata, &wanted.metadata) {
        patch.insert("metadata".to_owned(), metadata);
    }
    (!patch.is_empty()).then(|| Write::patch(held, Value::Object(patch)))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::text;
    use super::*;

    /// What the plan does when everything is there but for one change.
    fn after(change: impl Fn(&mut ClusterRole), other: impl Fn(&mut ClusterRoleBinding)) -> String {
        let find = |name: &str| {
            let found =
                DEFAULTS.roles.iter().find(|role| role.metadata.name.as_deref() == Some(name));
            found.cloned().map(|mut role| {
                change(&mut role);
                Arc::new(role)
            })
        };
        let bound = |name: &str| {
            let all = &DEFAULTS.bindings;
            let found = all.iter().find(|one| one.metadata.name.as_deref() == Some(name));
            found.cloned().map(|mut binding| {
                other(&mut binding);
                Arc::new(binding)
            })
        };
        text(&plan(find, bound))
    }

    fn is(meta: &ObjectMeta, name: &str) -> bool {
        meta.name.as_deref() == Some(name)
    }

    #[test]
    fn what_is_missing_is_made() {
        let all = text(&plan(|_| None, |_| None));
        assert!(all.contains("create clusterroles.rbac.authorization.k8s.io cluster-admin\n"));
        assert!(
            all.contains("create clusterrolebindings.rbac.authorization.k8s.io cluster-admin\n")
        );
        assert_eq!(after(|_| {}, |_| {}), "");
    }

    #[test]
    fn what_was_taken_away_comes_back_and_what_was_added_stays() {
        let changed = after(
            |role| {
                if is(&role.metadata, "system:auth-delegator") {
                    let rules = role.rules.as_mut().expect("it has rules");
                    rules.remove(0);
                    rules[0].verbs.push("get".to_owned());
                }
            },
            |_| {},
        );
        let added = "patch clusterroles.rbac.authorization.k8s.io system:auth-delegator \
            {\"rules\":[{\"verbs\":[\"create\",\"get\"],\"apiGroups\":[\"authorization.k8s.io\"],\
            \"resources\":[\"subjectaccessreviews\"]},{\"verbs\":[\"create\"],\
            \"apiGroups\":[\"authentication.k8s.io\"],\"resources\":[\"tokenreviews\"]}]}\n";
        assert_eq!(changed, added);
        let left = after(
            |role| {
                if is(&role.metadata, "system:auth-delegator") {
                    role.rules = None;
                    let notes = role.metadata.annotations.get_or_insert_default();
                    notes.insert(AUTOUPDATE.to_owned(), "false".to_owned());
                }
            },
            |_| {},
        );
        assert_eq!(left, "");
        let unbound = after(
            |_| {},
            |binding| {
                if is(&binding.metadata, "cluster-admin") {
                    binding.subjects = None;
                }
            },
        );
        assert!(unbound.starts_with("patch clusterrolebindings"), "{unbound}");
        assert!(unbound.contains("system:masters"), "{unbound}");
    }
}
