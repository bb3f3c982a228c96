//! Whether this node is one that a Pod may be on. The scheduler sees to that; a kubelet looks again,
//! since a Pod can name its node, or be bound to it by somebody else.
//!
//! As a kubelet does: the Pod's selector and its required affinity must allow the node's labels, and
//! of the node's taints only those are looked at that would evict it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// What a Pod asks of its node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    selector: BTreeMap<String, String>,
    /// One of these must hold.
    required: Option<Vec<NodeSelectorTerm>>,
    tolerations: Vec<Toleration>,
}

/// What this node is, for Pods that come to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    name: String,
    labels: BTreeMap<String, String>,
    /// Those that evict.
    taints: Vec<Taint>,
}

impl Place {
    /// Reads a Node.
    pub fn of(node: &Node) -> Place {
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        Place {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: taints.filter(|taint| taint.effect == "NoExecute").cloned().collect(),
        }
    }

    /// Whether one of these terms holds here.
    pub fn is_in(&self, terms: &[NodeSelectorTerm]) -> bool {
        terms.iter().any(|term| holds(self, term))
    }
}

impl Placement {
    /// Reads a Pod's specification.
    pub fn of(spec: &PodSpec) -> Placement {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| {
            affinity.required_during_scheduling_ignored_during_execution.as_ref()
        });
        Placement {
            selector: spec.node_selector.clone().unwrap_or_default(),
            required: required.map(|required| required.node_selector_terms.clone()),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
        }
    }

    /// Reason and sentence, in the words of a kubelet, if the Pod may not be there.
    pub fn refused_by(&self, place: &Place) -> Option<(&'static str, String)> {
        let selected =
            self.selector.iter().all(|(key, value)| place.labels.get(key) == Some(value));
        if !selected || !self.required.as_ref().is_none_or(|terms| place.is_in(terms)) {
            let why = "node(s) didn't match Pod's node affinity/selector";
            return Some(rejected("NodeAffinity", why));
        }
        let evicts = |taint: &&Taint| !self.tolerations.iter().any(|it| tolerates(it, taint));
        place.taints.iter().find(evicts)?;
        Some(rejected("TaintToleration", "node(s) had taints that the pod didn't tolerate"))
    }
}

fn rejected(reason: &'static str, why: &str) -> (&'static str, String) {
    (reason, format!("Pod was rejected: Predicate {reason} failed: {why}"))
}

/// Whether all of a term's rules hold; one without rules holds nowhere.
fn holds(place: &Place, term: &NodeSelectorTerm) -> bool {
    let by_label = term.match_expressions.as_deref().unwrap_or(&[]);
    let by_field = term.match_fields.as_deref().unwrap_or(&[]);
    let label = |rule: &NodeSelectorRequirement| {
        rule_holds(rule, place.labels.get(&rule.key).map(String::as_str))
    };
    let field = |rule: &NodeSelectorRequirement| {
        rule.key == "metadata.name" && rule_holds(rule, Some(&place.name))
    };
    let any = !by_label.is_empty() || !by_field.is_empty();
    any && by_label.iter().all(label) && by_field.iter().all(field)
}

fn rule_holds(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or(&[]);
    let listed = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let number = value.and_then(|value| value.parse::<i64>().ok());
    let numbers = number.zip(values.first().and_then(|value| value.parse::<i64>().ok()));
    match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers.is_some_and(|(number, bound)| number > bound),
        "Lt" => numbers.is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    let operator = toleration.operator.as_deref().unwrap_or("");
    let held = taint.value.as_deref().unwrap_or("");
    let wanted = toleration.value.as_deref().unwrap_or("");
    let numbers = || held.parse::<i64>().ok().zip(wanted.parse::<i64>().ok());
    let by_value = match operator {
        "Exists" => true,
        "Gt" => numbers().is_some_and(|(held, wanted)| held > wanted),
        "Lt" => numbers().is_some_and(|(held, wanted)| held < wanted),
        _ => held == wanted,
    };
    (effect.is_empty() || effect == taint.effect)
        && match key {
            "" => operator == "Exists",
            key => key == taint.key && by_value,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(mut spec: Value, expected: &str) {
        let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cpus": "8"}},
            "spec": {"taints": [
                {"key": "old", "effect": "NoSchedule"},
                {"key": "gone", "value": "7", "effect": "NoExecute"}]}});
        spec["containers"] = json!([]);
        let node: Node = serde_json::from_value(node).expect("a Node");
        let spec: PodSpec = serde_json::from_value(spec).expect("a Pod's specification");
        let refused = Placement::of(&spec).refused_by(&Place::of(&node));
        assert_eq!(refused.map_or("", |(reason, _)| reason), expected, "{spec:?}");
    }

    /// Such a rule, and a toleration of the taint.
    fn affinity(term: Value) -> Value {
        json!({"tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
    }

    #[test]
    fn labels_must_be_as_the_pod_asks() {
        let selector = |zone: &str| {
            let tolerations = json!([{"operator": "Exists"}]);
            json!({"nodeSelector": {"zone": zone}, "tolerations": tolerations})
        };
        check(selector("a"), "");
        check(selector("b"), "NodeAffinity");
        let rule = |rule: Value| affinity(json!({"matchExpressions": [rule]}));
        check(rule(json!({"key": "zone", "operator": "In", "values": ["a", "b"]})), "");
        check(rule(json!({"key": "zone", "operator": "NotIn", "values": ["a"]})), "NodeAffinity");
        check(rule(json!({"key": "cpus", "operator": "Gt", "values": ["4"]})), "");
        check(rule(json!({"key": "cpus", "operator": "Lt", "values": ["4"]})), "NodeAffinity");
        check(rule(json!({"key": "gpu", "operator": "DoesNotExist"})), "");
        check(affinity(json!({})), "NodeAffinity");
        // As a DaemonSet names its nodes.
        let named = |name: &str| {
            affinity(json!({"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [name]}]}))
        };
        check(named("n1"), "");
        check(named("n2"), "NodeAffinity");
    }

    #[test]
    fn only_taints_that_evict_refuse() {
        let with = |toleration: Value| json!({"tolerations": [toleration]});
        check(json!({}), "TaintToleration");
        check(with(json!({"key": "gone", "operator": "Exists"})), "");
        check(with(json!({"key": "gone", "value": "7", "effect": "NoExecute"})), "");
        check(with(json!({"key": "gone", "value": "no"})), "TaintToleration");
        check(with(json!({"key": "gone", "operator": "Gt", "value": "6"})), "");
        check(with(json!({"key": "gone", "operator": "Lt", "value": "6"})), "TaintToleration");
        check(
            with(json!({"key": "gone", "operator": "Exists", "effect": "NoSchedule"})),
            "TaintToleration",
        );
    }

    #[test]
    fn the_sentence_is_a_kubelets() {
        let spec = PodSpec {
            node_selector: Some([("zone".to_owned(), "b".to_owned())].into()),
            ..PodSpec::default()
        };
        let (_, message) =
            Placement::of(&spec).refused_by(&Place::of(&Node::default())).expect("no");
        let wanted = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's \
                      node affinity/selector";
        assert_eq!(message, wanted);
    }
}
