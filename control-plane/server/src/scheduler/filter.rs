//! Which nodes can take a Pod, and why the others cannot.
//!
//! The sentences are the ones that people know from `kubectl describe pod`; tools look for them,
//! too.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Taint};
use wherry_resources::offers::serve;

use super::cluster::NodeState;
use super::need::{HostPort, Need};
use crate::controllers::affinity::term_holds;
use crate::controllers::taints::is_tolerated;

/// Why a node cannot take a Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    NotReady,
    Unschedulable,
    Taint {
        key: String,
        value: String,
    },
    Affinity,
    Ports,
    TooManyPods,
    Insufficient(String),
    NotNear,
    NotAway,
    Unwelcome,
    Spread,
    SpreadLabel,
    VolumeElsewhere,
    VolumeZone,
    VolumeLost,
    /// The node's workers do not offer what the images import.
    Import(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NotReady => write!(f, "node(s) were not ready"),
            Reason::Unschedulable => write!(f, "node(s) were unschedulable"),
            Reason::Taint { key, value } => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
            Reason::Affinity => write!(f, "node(s) didn't match Pod's node affinity/selector"),
            Reason::Ports => {
                write!(f, "node(s) didn't have free ports for the requested pod ports")
            }
            Reason::TooManyPods => write!(f, "Too many pods"),
            Reason::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Reason::NotNear => write!(f, "node(s) didn't match pod affinity rules"),
            Reason::NotAway => write!(f, "node(s) didn't match pod anti-affinity rules"),
            Reason::Unwelcome => {
                write!(f, "node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Reason::Spread => write!(f, "node(s) didn't match pod topology spread constraints"),
            Reason::VolumeElsewhere => write!(f, "node(s) had volume node affinity conflict"),
            Reason::VolumeZone => write!(f, "node(s) had no available volume zone"),
            Reason::VolumeLost => write!(
                f,
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
            ),
            Reason::Import(import) => {
                write!(f, "node(s) didn't offer {import}, which an image imports")
            }
            Reason::SpreadLabel => write!(
                f,
                "node(s) didn't match pod topology spread constraints (missing required label)"
            ),
        }
    }
}

/// Whether a node can take a Pod, as far as its own state goes; see `Circle` for the others there.
pub fn fits(node: &NodeState, need: &Need) -> bool {
    obstacle(node, need).is_none() && shortages(node, need, |_| {}) == 0
}

/// Whether a node could take a Pod if other Pods made room.
pub fn could_fit(node: &NodeState, need: &Need) -> bool {
    fixed_obstacle(node, need).is_none()
}

/// Whether the Pod tolerates all of a node's taints that keep Pods away.
pub fn tolerates(node: &NodeState, need: &Need) -> bool {
    untolerated(node, need).is_none()
}

fn untolerated<'a>(node: &'a NodeState, need: &Need) -> Option<&'a Taint> {
    let repels = |taint: &&Taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !is_tolerated(taint, &need.tolerations)
    };
    node.taints.iter().find(repels)
}

/// Every reason that speaks against a node: the first obstacle, or all that it has too little of.
pub fn reasons(node: &NodeState, need: &Need) -> Vec<Reason> {
    if let Some(obstacle) = obstacle(node, need) {
        return vec![obstacle];
    }
    let mut reasons = Vec::new();
    shortages(node, need, |reason| reasons.push(reason()));
    reasons
}

fn obstacle(node: &NodeState, need: &Need) -> Option<Reason> {
    if let Some(reason) = fixed_obstacle(node, need) {
        return Some(reason);
    }
    let taken = |port: &HostPort| node.ports.keys().any(|held| collide(held, port));
    need.ports.iter().any(taken).then_some(Reason::Ports)
}

/// What no other Pod's leaving would change.
fn fixed_obstacle(node: &NodeState, need: &Need) -> Option<Reason> {
    if node.unschedulable && !is_tolerated(&cordon(), &need.tolerations) {
        return Some(Reason::Unschedulable);
    }
    if let Some(taint) = untolerated(node, need) {
        let value = taint.value.clone().unwrap_or_default();
        return Some(Reason::Taint { key: taint.key.clone(), value });
    }
    if !node.ready {
        return Some(Reason::NotReady);
    }
    (!allows(node, need)).then_some(Reason::Affinity)
}

/// The first of these imports that the node does not offer. One that says nothing is tried.
pub fn missing_import<'a>(node: &NodeState, imports: &'a BTreeSet<String>) -> Option<&'a String> {
    let offers = node.offers.as_ref()?;
    imports.iter().find(|import| !serve(offers, import))
}

/// What a cordoned node would be tainted with.
fn cordon() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_string(),
        effect: "NoSchedule".to_string(),
        ..Taint::default()
    }
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1.is_empty() || b.1.is_empty())
}

/// Counts what the node has too little of. Reasons are made only by those who want them: this runs
/// for every Pod and node.
fn shortages(node: &NodeState, need: &Need, mut tell: impl FnMut(&dyn Fn() -> Reason)) -> usize {
    let mut count = 0;
    let mut short = |is_short: bool, reason: &dyn Fn() -> Reason| {
        if is_short {
            count += 1;
            tell(reason);
        }
    };
    let mut pods = node.pods;
    let mut used = Cow::Borrowed(&node.used);
    // Room that was made for a Pod of at least this priority is that Pod's.
    for held in node.reserved.iter().filter(|held| held.keeps_out(need)) {
        used.to_mut().add(&held.requests);
        pods += 1;
    }
    short(pods >= node.pods_max, &|| Reason::TooManyPods);
    let lacks = |wanted: i64, used: i64, capacity: i64| wanted > 0 && wanted > capacity - used;
    let (wanted, used, capacity) = (&need.requests, &*used, &node.capacity);
    short(lacks(wanted.cpu, used.cpu, capacity.cpu), &|| Reason::Insufficient("cpu".to_string()));
    short(lacks(wanted.memory, used.memory, capacity.memory), &|| {
        Reason::Insufficient("memory".to_string())
    });
    for (name, amount) in &wanted.others {
        let of = |amounts: &BTreeMap<String, i64>| amounts.get(name).copied().unwrap_or(0);
        let is_short = lacks(*amount, of(&used.others), of(&capacity.others));
        short(is_short, &|| Reason::Insufficient(name.clone()));
    }
    count
}

/// Whether the Pod's own selector and required affinity allow a node.
pub fn allows(node: &NodeState, need: &Need) -> bool {
    let labels = &node.labels;
    need.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && (need.required.is_empty() || need.required.iter().any(|term| matches(node, term)))
}

/// Whether all of a term's rules hold; a term without rules holds nowhere.
pub fn matches(node: &NodeState, term: &NodeSelectorTerm) -> bool {
    term_holds(&node.name, &node.labels, term)
}
