//! Preemption: which Pods of lower priority would have to go so that a Pod fits.
//!
//! On each node all Pods of lower priority are taken away in thought; if the Pod then fits, they
//! are put back one by one, those that a budget protects first, then the important ones, and who
//! does not fit any more is a victim. Of the plans the one that hurts least is taken, judged as
//! Kubernetes does: fewest budgets broken, then the least important victims, then the fewest, then
//! the youngest.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::cluster::{Cluster, Placed};
use super::filter::{could_fit, fits, missing_import};
use super::need::Need;
use crate::contain;

/// Nodes with a plan after which no further ones are looked at.
const PLANS_MAX: usize = 100;

/// A Pod that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Who goes, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub node: String,
    pub victims: Vec<Victim>,
}

/// How much a plan hurts; less is better.
type Harm = (usize, i32, i64, usize, Reverse<Option<Timestamp>>);

/// The plan that hurts least; none if nothing helps, or if room is being made already. The cluster
/// is as before when this returns.
pub fn preempt(cluster: &mut Cluster, need: &Need) -> Option<Plan> {
    if !need.preempts || waits_for_room(cluster, need) {
        return None;
    }
    // Nobody goes for a Pod that could not come for another reason.
    let ties = cluster.ties(need).ok()?;
    let imports = cluster.imports(need);
    let mut best: Option<(Harm, Plan)> = None;
    let mut plans = 0;
    for index in 0..cluster.nodes().len() {
        let node = &cluster.nodes()[index];
        let closed = ties.obstacle(node).is_some() || missing_import(node, &imports).is_some();
        if !node.present || closed || !could_fit(node, need) {
            continue;
        }
        let Some((harm, victims)) = on_node(cluster, need, index) else { continue };
        if best.as_ref().is_none_or(|(least, _)| harm < *least) {
            let node = cluster.nodes()[index].name.clone();
            best = Some((harm, Plan { node, victims }));
        }
        plans += 1;
        if plans == PLANS_MAX {
            break;
        }
    }
    best.map(|(_, plan)| plan)
}

/// Whether Pods that were to make room for this one are still leaving. On a node that cannot take
/// it any more (it is lost, say, and ends nobody) room is not waited for.
fn waits_for_room(cluster: &Cluster, need: &Need) -> bool {
    let told = need.nominated.as_deref().and_then(|name| cluster.node_index(name));
    let Some(index) = cluster.nominee(&need.uid).or(told) else { return false };
    let node = &cluster.nodes()[index];
    if !node.present || !could_fit(node, need) {
        return false;
    }
    node.residents
        .iter()
        .filter_map(|uid| cluster.placed(uid))
        .any(|placed| placed.leaving && placed.need.priority < need.priority)
}

fn on_node(cluster: &mut Cluster, need: &Need, index: usize) -> Option<(Harm, Vec<Victim>)> {
    let lower: Vec<String> = cluster.nodes()[index]
        .residents
        .iter()
        .filter_map(|uid| cluster.placed(uid))
        .filter(|placed| placed.need.priority < need.priority && !placed.assumed)
        .map(|placed| placed.need.uid.clone())
        .collect();
    if lower.is_empty() {
        return None;
    }
    let mut away: Vec<Placed> = lower.iter().filter_map(|uid| cluster.take_out(uid)).collect();
    if !takes(cluster, need, index) {
        away.into_iter().for_each(|placed| cluster.put_back(placed));
        return None;
    }
    away.sort_by_key(|placed| {
        let Need { priority, started, uid, .. } = &placed.need;
        (Reverse(*priority), *started, uid.clone())
    });
    let protected = protected(cluster, &away);
    let (kept_first, kept_last): (Vec<_>, Vec<_>) =
        away.into_iter().zip(protected).partition(|(_, protected)| *protected);
    let mut victims: Vec<Placed> = Vec::new();
    let mut broken = 0;
    for (placed, protected) in kept_first.into_iter().chain(kept_last) {
        let uid = placed.need.uid.clone();
        cluster.put_back(placed);
        if !takes(cluster, need, index) {
            victims.extend(cluster.take_out(&uid));
            broken += usize::from(protected);
        }
    }
    if victims.is_empty() {
        return None;
    }
    let harm = harm(&victims, broken);
    let named = victims.iter().map(|placed| {
        let Need { namespace, name, uid, .. } = &placed.need;
        Victim { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() }
    });
    let named = named.collect();
    victims.into_iter().for_each(|placed| cluster.put_back(placed));
    Some((harm, named))
}

/// Whether the node can take it as things are. Where a bug keeps that from being known it cannot: who
/// was taken away in thought is to be put back.
fn takes(cluster: &Cluster, need: &Need, index: usize) -> bool {
    let looked = contain::sync(|| {
        let nodes = cluster.nodes();
        let circle = cluster.census().circle(need, nodes);
        fits(&nodes[index], need) && circle.is_none_or(|circle| circle.obstacle(index).is_none())
    });
    looked.unwrap_or(false)
}

/// For each Pod whether its going would break a budget, in this order.
fn protected(cluster: &Cluster, pods: &[Placed]) -> Vec<bool> {
    let mut spent: BTreeMap<&(String, String), i32> = BTreeMap::new();
    let mut protected = Vec::with_capacity(pods.len());
    for placed in pods {
        let covers = cluster.budgets().filter(|((namespace, _), budget)| {
            *namespace == placed.need.namespace && budget.covers(&placed.need.labels)
        });
        let mut breaks = false;
        for (key, budget) in covers {
            let spent = spent.entry(key).or_default();
            *spent += 1;
            breaks |= *spent > budget.allowed;
        }
        protected.push(breaks);
    }
    protected
}

fn harm(victims: &[Placed], broken: usize) -> Harm {
    let highest = victims.iter().map(|placed| placed.need.priority).max().unwrap_or(i32::MIN);
    // Counted from the bottom of the range, so that more victims are more harm.
    let sum = victims.iter().map(|placed| i64::from(placed.need.priority) - i64::from(i32::MIN));
    let top = victims.iter().filter(|placed| placed.need.priority == highest);
    let oldest = top.filter_map(|placed| placed.need.started).min();
    (broken, highest, sum.sum(), victims.len(), Reverse(oldest))
}
