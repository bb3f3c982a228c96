//! Which nodes a DaemonSet's Pods belong on, and what they carry to get there and stay.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec,
    Taint, Toleration,
};

use super::super::affinity;
use super::super::history::REVISION_LABEL;
use super::super::pods;
use super::super::replicaset::{name_of, pod_of};
use super::super::taints::is_tolerated;

/// Taints that say something of a node on which a daemon works nevertheless.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Likewise, for those that use the network of the node.
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a DaemonSet wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A Pod there.
    Run,
    /// No new Pod; one that is there may stay.
    Stay,
    Never,
}

/// What of a node the wish depends on.
pub fn facts(node: &Node) -> (&str, Option<&BTreeMap<String, String>>, Vec<&Taint>, bool) {
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or(&[]);
    let cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    (name_of(&node.metadata), node.metadata.labels.as_ref(), taints.iter().collect(), cordoned)
}

pub fn wish(template: &PodTemplateSpec, node: &Node) -> Wish {
    let empty = PodSpec::default();
    let spec = template.spec.as_ref().unwrap_or(&empty);
    let (name, labels, taints, _) = facts(node);
    let named = spec.node_name.as_deref().filter(|wanted| !wanted.is_empty());
    let no_labels = BTreeMap::new();
    let allowed = affinity::allows(name, labels.unwrap_or(&no_labels), spec);
    if named.is_some_and(|wanted| wanted != name) || !allowed {
        return Wish::Never;
    }
    let tolerations = tolerations(spec);
    let repels = |effect: &str| {
        let mut repelling = taints.iter().filter(|taint| taint.effect == effect);
        repelling.any(|taint| !is_tolerated(taint, &tolerations))
    };
    match (repels("NoExecute"), repels("NoSchedule")) {
        (true, _) => Wish::Never,
        (false, true) => Wish::Stay,
        (false, false) => Wish::Run,
    }
}

/// The template's tolerations and those that every daemon has.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let host = (spec.host_network == Some(true)).then_some(NO_NETWORK);
    for (key, effect) in TOLERATED.into_iter().chain(host) {
        let added = Toleration {
            key: Some(key.to_string()),
            operator: Some("Exists".to_string()),
            effect: Some(effect.to_string()),
            ..Toleration::default()
        };
        // One that covers it only for a while, or not at all, does not count.
        if !tolerations.contains(&added) {
            tolerations.push(added);
        }
    }
    tolerations
}

/// The node that a Pod is on, or is for; empty if it names none.
pub fn target(pod: &Pod) -> &str {
    let bound = pods::node(pod);
    if !bound.is_empty() {
        return bound;
    }
    let affinity = pods::spec(pod).and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = required.map_or(&[][..], |required| &required.node_selector_terms);
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.filter(|rule| rule.key == "metadata.name" && rule.operator == "In");
    let mut names = named.filter_map(|rule| rule.values.as_ref()?.first());
    names.next().map_or("", String::as_str)
}

/// The Pod for a node. Its name follows from the node and the newest revision known.
pub fn pod_for(set: &DaemonSet, node: &str, hash: &str, revision: u64) -> Pod {
    let uid = set.metadata.uid.as_deref().unwrap_or("");
    let mut pod = pod_of(set, &set.spec.template, &format!("{uid}/{revision}/{node}"));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_string(), hash.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    // The node's name takes the place of the template's rules: these have been asked already.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_string(),
                operator: "In".to_string(),
                values: Some(vec![node.to_string()]),
            }]),
            match_expressions: None,
        }],
    });
    pod
}
