//! Where each Pod goes: the scheduler's decision, as a pure function of the cluster it knows.
//!
//! With many nodes only as many candidates are looked for as [`sample`] says, starting where the
//! last search ended, as Kubernetes does: a good node among hundreds is as good as the best among
//! thousands.

use std::collections::BTreeMap;

use super::cluster::Cluster;
use super::filter::{Reason, fits, reasons};
use super::need::Need;
use super::score;

/// Candidates that are always looked for.
const SAMPLE_MIN: usize = 100;
/// Of more nodes, one in so many has to be a candidate.
const SAMPLE_PART: usize = 20;
/// Classes of Pods that fit nowhere, kept in mind; with more the memory starts anew.
const HOPELESS_MAX: usize = 10_000;

/// What becomes of one Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bind { node: String },
    Unschedulable { sentence: String },
}

/// Candidates to look for among so many nodes.
fn sample(nodes: usize) -> usize {
    (nodes / SAMPLE_PART).max(SAMPLE_MIN)
}

/// Decides for each Pod in turn. A Pod that is given a node is assumed there, so that the next one
/// finds less room; nothing else of the cluster changes. The same cluster and Pods give the same
/// decisions.
pub fn decide(cluster: &mut Cluster, pods: &[Need]) -> Vec<Decision> {
    pods.iter().map(|need| decide_one(cluster, need)).collect()
}

fn decide_one(cluster: &mut Cluster, need: &Need) -> Decision {
    if let Some((room, sentence)) = cluster.hopeless.get(&need.class)
        && *room == cluster.room()
    {
        return Decision::Unschedulable { sentence: sentence.clone() };
    }
    let candidates = candidates(cluster, need);
    if let Some(index) = score::best(cluster.nodes(), &candidates, need) {
        let node = cluster.nodes()[index].name.clone();
        cluster.assume(need, index);
        return Decision::Bind { node };
    }
    let sentence = explain(cluster, need);
    if cluster.hopeless.len() >= HOPELESS_MAX {
        cluster.hopeless.clear();
    }
    let room = cluster.room();
    cluster.hopeless.insert(need.class, (room, sentence.clone()));
    Decision::Unschedulable { sentence }
}

fn candidates(cluster: &mut Cluster, need: &Need) -> Vec<usize> {
    let nodes = cluster.nodes();
    let (count, wanted) = (nodes.len(), sample(nodes.len()));
    let mut found = Vec::with_capacity(wanted.min(count));
    let mut looked = 0;
    while looked < count && found.len() < wanted {
        let index = (cluster.next + looked) % count;
        if nodes[index].present && fits(&nodes[index], need) {
            found.push(index);
        }
        looked += 1;
    }
    if count > 0 {
        cluster.next = (cluster.next + looked) % count;
    }
    found
}

/// Says for how many nodes each reason holds: `0/3 nodes are available: 1 Insufficient cpu, ...`.
fn explain(cluster: &Cluster, need: &Need) -> String {
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    for node in cluster.nodes().iter().filter(|node| node.present) {
        for reason in reasons(node, need) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return "no nodes available to schedule pods".to_string();
    }
    let mut parts: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{} nodes are available: {}.", cluster.count(), parts.join(", "))
}

#[cfg(test)]
mod tests;
