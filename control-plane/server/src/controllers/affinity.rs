//! Selectors of nodes: which nodes a Pod's template or a volume's affinity means, for the
//! scheduler, DaemonSets and volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

type Labels = BTreeMap<String, String>;

/// Whether all of a term's rules hold for a node; a term without rules holds nowhere.
pub fn term_holds(name: &str, labels: &Labels, term: &NodeSelectorTerm) -> bool {
    let by_label = term.match_expressions.as_deref().unwrap_or(&[]);
    let by_field = term.match_fields.as_deref().unwrap_or(&[]);
    if by_label.is_empty() && by_field.is_empty() {
        return false;
    }
    by_label.iter().all(|rule| holds(rule, labels.get(&rule.key).map(String::as_str)))
        && by_field.iter().all(|rule| rule.key == "metadata.name" && holds(rule, Some(name)))
}

fn holds(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or(&[]);
    let listed = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let number = value.and_then(|value| value.parse::<i64>().ok());
    let bound = values.first().and_then(|value| value.parse::<i64>().ok());
    match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number.zip(bound).is_some_and(|(number, bound)| number > bound),
        "Lt" => number.zip(bound).is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}

/// Whether a Pod's selector and required affinity allow a node.
pub fn allows(name: &str, labels: &Labels, spec: &PodSpec) -> bool {
    let selector = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selector.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| term_holds(name, labels, term))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, expected: bool) {
        let spec: PodSpec = serde_yaml_ng::from_str(spec).expect("a Pod spec");
        let labels = [("zone".to_string(), "a".to_string()), ("cpus".to_string(), "8".to_string())];
        assert_eq!(allows("n1", &labels.into(), &spec), expected, "{spec:?}");
    }

    #[test]
    fn selector_and_affinity_must_both_allow_it() {
        check("{containers: []}", true);
        check("{containers: [], nodeSelector: {zone: a}}", true);
        check("{containers: [], nodeSelector: {zone: b}}", false);
        let affinity = |terms: &str| {
            format!(
                "{{containers: [], affinity: {{nodeAffinity: \
                 {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: \
                 [{terms}]}}}}}}}}"
            )
        };
        let rule = |rule: &str| affinity(&format!("{{matchExpressions: [{rule}]}}"));
        check(&rule("{key: zone, operator: In, values: [a, b]}"), true);
        check(&rule("{key: zone, operator: NotIn, values: [a]}"), false);
        check(&rule("{key: cpus, operator: Gt, values: ['4']}"), true);
        check(&rule("{key: gpu, operator: DoesNotExist}"), true);
        check(&affinity("{}"), false);
        let field = "{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}";
        check(&affinity(field), true);
        check(&affinity(&field.replace("n1", "n2")), false);
    }
}
