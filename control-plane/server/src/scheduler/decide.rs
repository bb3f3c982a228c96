//! Where each Pod goes: the scheduler's decision, as a pure function of the cluster it knows.
//!
//! With many nodes only as many candidates are looked for as [`sample`] says, starting where the
//! last search ended, as Kubernetes does: a good node among hundreds is as good as the best among
//! thousands.

use std::collections::{BTreeMap, BTreeSet};

use super::census::Circle;
use super::cluster::Cluster;
use super::filter::{Reason, fits, missing_import, reasons};
use super::need::{Gang, Need};
use super::preempt::{Plan, Victim, preempt};
use super::score;
use super::volumes::Ties;
use crate::contain::{self, Panic};

/// Candidates that are always looked for.
const SAMPLE_MIN: usize = 100;
/// Of more nodes, one in so many has to be a candidate.
const SAMPLE_PART: usize = 20;
/// Classes of Pods that fit nowhere, kept in mind; with more the memory starts anew.
const HOPELESS_MAX: usize = 10_000;

/// What becomes of one Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bind {
        node: String,
    },
    Unschedulable {
        sentence: String,
    },
    /// Its claims get this node, and with them made there it is decided for again.
    Provision {
        node: String,
        claims: Vec<String>,
    },
    /// Its claims have their node, and their volumes are not there yet.
    Wait {
        sentence: String,
    },
    /// The victims go, and room on the node is kept.
    Preempt {
        node: String,
        victims: Vec<Victim>,
        sentence: String,
    },
}

/// Candidates to look for among so many nodes.
fn sample(nodes: usize) -> usize {
    (nodes / SAMPLE_PART).max(SAMPLE_MIN)
}

/// Decides for each Pod in turn. A Pod that is given a node is assumed there, so that the next one
/// finds less room; one for which others must go has its room kept. Members of one gang that
/// follow each other are decided together. The same cluster and Pods give the same decisions.
pub fn decide(cluster: &mut Cluster, pods: &[Need]) -> Vec<Decision> {
    let mut decisions = Vec::with_capacity(pods.len());
    for group in pods.chunk_by(|a, b| a.gang.is_some() && a.gang == b.gang) {
        let decided = contain::sync(|| match &group[0].gang {
            Some(gang) => decide_gang(cluster, gang, group),
            None => vec![decide_one(cluster, &group[0])],
        });
        decisions.extend(decided.unwrap_or_else(|panic| set_aside(cluster, group, &panic)));
    }
    decisions
}

/// Who cannot be decided for, by a bug, waits as if there were no room, and keeps none.
fn set_aside(cluster: &mut Cluster, group: &[Need], panic: &Panic) -> Vec<Decision> {
    group.iter().for_each(|need| cluster.forget(&need.uid));
    let sentence = format!("the scheduler met {panic}");
    vec![Decision::Unschedulable { sentence }; group.len()]
}

/// All members that are there, or none.
fn decide_gang(cluster: &mut Cluster, gang: &Gang, group: &[Need]) -> Vec<Decision> {
    let Gang { name, size, .. } = gang;
    let nobody = |why: String| {
        let why = format!("gang {name:?} starts with {size} Pods: {why}");
        vec![Decision::Unschedulable { sentence: why }; group.len()]
    };
    let there = cluster.gang_placed(gang);
    if group.len() + there < *size {
        let count = group.len() + there;
        return nobody(format!("{count} {} there", if count == 1 { "is" } else { "are" }));
    }
    let company = cluster.company();
    let mut decisions = Vec::new();
    for need in group {
        match place(cluster, need) {
            Ok(Decision::Bind { node }) => decisions.push(Decision::Bind { node }),
            // One that waits for its volumes keeps the others waiting.
            Ok(decision) => {
                cluster.take_back(&group[..decisions.len()], company);
                let mut all = nobody(format!("volumes are made for {}", need.name));
                all[decisions.len()] = decision;
                return all;
            }
            Err(Stuck { sentence, .. }) => {
                let fit = decisions.len() + there;
                cluster.take_back(&group[..decisions.len()], company);
                return nobody(format!("{fit} would fit, and for the next one {sentence}"));
            }
        }
    }
    decisions
}

fn decide_one(cluster: &mut Cluster, need: &Need) -> Decision {
    let now = (cluster.room(), if need.company.is_some() { cluster.company() } else { 0 });
    // Where room is kept for a Pod, others of its class may be hopeless and it is not.
    if let Some((then, sentence)) = cluster.hopeless.get(&need.class)
        && *then == now
        && cluster.nominee(&need.uid).is_none()
    {
        return Decision::Unschedulable { sentence: sentence.clone() };
    }
    let Stuck { sentence, lacks_room } = match place(cluster, need) {
        Ok(decision) => return decision,
        Err(stuck) => stuck,
    };
    if lacks_room && let Some(Plan { node, victims }) = preempt(cluster, need) {
        let index = cluster.node_index(&node).expect("a plan names a node of the cluster");
        cluster.nominate(need, index);
        return Decision::Preempt { node, victims, sentence };
    }
    // One that waits until others have left its node says nothing about the rest of its class.
    if cluster.nominee(&need.uid).is_none() {
        if cluster.hopeless.len() >= HOPELESS_MAX {
            cluster.hopeless.clear();
        }
        cluster.hopeless.insert(need.class, (now, sentence.clone()));
    }
    Decision::Unschedulable { sentence }
}

/// Why a Pod is given no node.
struct Stuck {
    sentence: String,
    /// Whether it could help that others go.
    lacks_room: bool,
}

/// Assumes the Pod on the best node, or says why there is none.
fn place(cluster: &mut Cluster, need: &Need) -> Result<Decision, Stuck> {
    cluster.meet(need);
    let nodes = cluster.nodes();
    let waits = |why: String| Stuck { sentence: nowhere(cluster, &why), lacks_room: false };
    let ties = cluster.ties(need).map_err(waits)?;
    let circle = cluster.census().circle(need, nodes);
    let imports = cluster.imports(need);
    let view = View { cluster, need, circle: circle.as_ref(), ties: &ties, imports: &imports };
    let (candidates, next) = view.candidates();
    let appetite = cluster.appetite(need);
    let in_zones = cluster.siblings(need);
    let best = score::best(nodes, &candidates, need, circle.as_ref(), appetite, in_zones);
    let Some(index) = best else {
        return Err(Stuck { sentence: view.explain(), lacks_room: true });
    };
    let node = nodes[index].name.clone();
    cluster.next = next;
    if ties.waiting.is_empty() {
        cluster.assume(need, index);
        return Ok(Decision::Bind { node });
    }
    let chosen = ties.waiting.iter().find_map(|(_, chosen)| chosen.clone());
    let node = chosen.unwrap_or(node);
    let unchosen = ties.waiting.into_iter().filter(|(_, chosen)| chosen.is_none());
    let claims: Vec<String> = unchosen.map(|(name, _)| name).collect();
    if let Some(index) = cluster.node_index(&node)
        && cluster.nominee(&need.uid).is_none()
    {
        cluster.nominate(need, index);
    }
    Ok(match claims.is_empty() {
        true => {
            let why = format!("waiting for volumes to be made on {node}");
            Decision::Wait { sentence: nowhere(cluster, &why) }
        }
        false => Decision::Provision { node, claims },
    })
}

/// A sentence for what no node could change.
fn nowhere(cluster: &Cluster, why: &str) -> String {
    format!("0/{} nodes are available: {why}.", cluster.count())
}

/// The cluster as one Pod sees it.
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub need: &'a Need,
    pub circle: Option<&'a Circle<'a>>,
    pub ties: &'a Ties,
    /// What its images import.
    pub imports: &'a BTreeSet<String>,
}

impl View<'_> {
    fn takes(&self, index: usize) -> bool {
        let node = &self.cluster.nodes()[index];
        // The circle first: its numbers lie close together, a node's are spread over memory.
        self.circle.is_none_or(|circle| circle.obstacle(index).is_none())
            && node.present
            && fits(node, self.need)
            && missing_import(node, self.imports).is_none()
            && self.ties.obstacle(node).is_none()
    }

    /// Every reason that speaks against a node; none if it can take the Pod.
    pub fn reasons(&self, index: usize) -> Vec<Reason> {
        let node = &self.cluster.nodes()[index];
        let found = reasons(node, self.need);
        if !found.is_empty() {
            return found;
        }
        if let Some(import) = missing_import(node, self.imports) {
            return vec![Reason::Import(import.clone())];
        }
        let company = || self.circle.and_then(|circle| circle.obstacle(index));
        self.ties.obstacle(node).or_else(company).into_iter().collect()
    }

    /// Nodes that can take the Pod, and where the next search begins.
    fn candidates(&self) -> (Vec<usize>, usize) {
        let (cluster, count) = (self.cluster, self.cluster.nodes().len());
        // Where room was made for it, it goes first of all.
        let nominee = cluster.nominee(&self.need.uid).filter(|index| self.takes(*index));
        if let Some(index) = nominee {
            return (vec![index], cluster.next);
        }
        let wanted = sample(count);
        let mut found = Vec::with_capacity(wanted.min(count));
        let mut looked = 0;
        while looked < count && found.len() < wanted {
            let index = (cluster.next + looked) % count;
            if self.takes(index) {
                found.push(index);
            }
            looked += 1;
        }
        (found, if count > 0 { (cluster.next + looked) % count } else { 0 })
    }

    /// Says for how many nodes each reason holds: `0/3 nodes are available: 1 Insufficient cpu, …`.
    fn explain(&self) -> String {
        let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
        let nodes = self.cluster.nodes().iter().enumerate();
        for (index, _) in nodes.filter(|(_, node)| node.present) {
            for reason in self.reasons(index) {
                *counts.entry(reason).or_default() += 1;
            }
        }
        if counts.is_empty() {
            return "no nodes available to schedule pods".to_string();
        }
        let mut parts: Vec<String> =
            counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        nowhere(self.cluster, &parts.join(", "))
    }
}

#[cfg(test)]
mod tests;
