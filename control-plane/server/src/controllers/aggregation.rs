//! Cluster roles that gather others: the rules of a role with an `aggregationRule` are those of all
//! roles that its selectors match.
//!
//! Owns: the `rules` of these roles. What users write there is replaced.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;
use wherry_resources::selectors::LabelSelector;

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

pub const CONTROLLER: Controller = Controller { name: "aggregation", wake, reconcile };

/// What a plan for one role reads.
pub struct Snapshot {
    pub role: Arc<ClusterRole>,
    /// All cluster roles, sorted by name.
    pub roles: Vec<Arc<ClusterRole>>,
}

/// Any cluster role may be one that any other gathers.
fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<ClusterRole>().is_none() {
        return;
    }
    let gathers = cache.all::<ClusterRole>().filter(|role| role.aggregation_rule.is_some());
    keys.extend(
        gathers.map(|role| Key::of::<ClusterRole>("", role.metadata.name.as_deref().unwrap_or(""))),
    );
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(role) = view.cache.get::<ClusterRole>("", key.name()) else {
        return Plan::default();
    };
    let snapshot = Snapshot { role, roles: view.cache.all::<ClusterRole>().collect() };
    plan(&snapshot, view.now).into()
}

/// Puts the gathered rules in place. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let role = &snapshot.role;
    let Some(rule) = role.aggregation_rule.as_ref() else {
        return Vec::new();
    };
    let selectors = rule.cluster_role_selectors.iter().flatten();
    // A selector that cannot be read gathers nothing.
    let selectors: Vec<LabelSelector> =
        selectors.filter_map(|one| LabelSelector::from_typed(Some(&json!(one))).ok()).collect();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in &snapshot.roles {
        let labels = json!(other.metadata.labels.clone().unwrap_or_default());
        let is_own = other.metadata.name == role.metadata.name;
        if is_own || !selectors.iter().any(|one| one.matches_labels(Some(&labels))) {
            continue;
        }
        for rule in other.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    if role.rules.clone().unwrap_or_default() == rules {
        return Vec::new();
    }
    vec![Write::patch(&**role, json!({ "rules": rules }))]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    #[test]
    fn rules_of_matching_roles_are_gathered_once() {
        let whole: Arc<ClusterRole> = Arc::new(yaml(
            "{metadata: {name: whole}, aggregationRule: {clusterRoleSelectors: \
             [{matchLabels: {to: whole}}]}, rules: []}",
        ));
        let part = |name: &str, to: &str, resource: &str| -> Arc<ClusterRole> {
            Arc::new(yaml(&format!(
                "{{metadata: {{name: {name}, labels: {{to: {to}}}}}, rules: [{{verbs: [get], \
                 apiGroups: [''], resources: [{resource}]}}]}}"
            )))
        };
        let roles = vec![
            part("a", "whole", "pods"),
            part("b", "other", "secrets"),
            part("c", "whole", "pods"),
            part("d", "whole", "nodes"),
            whole.clone(),
        ];
        let snapshot = Snapshot { role: whole, roles };
        let rule = |resource: &str| {
            format!("{{\"apiGroups\":[\"\"],\"resources\":[\"{resource}\"],\"verbs\":[\"get\"]}}")
        };
        let expected = format!(
            "patch clusterroles.rbac.authorization.k8s.io whole {{\"rules\":[{},{}]}}\n",
            rule("pods"),
            rule("nodes")
        );
        assert_eq!(text(&plan(&snapshot, at(0))), expected);
    }
}
