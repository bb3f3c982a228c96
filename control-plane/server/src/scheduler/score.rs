//! Which of the nodes that can take a Pod is the best.
//!
//! Each view of a node is a number from 0 to 100, and a node's score is their weighted sum. All are
//! whole numbers, so that the same cluster gives the same answer everywhere.

use k8s_openapi::api::core::v1::Taint;

use super::census::Circle;
use super::cluster::{InZones, NodeState};
use super::filter::matches;
use super::need::Need;
use crate::controllers::taints::is_tolerated;

const FULL: i64 = 100;
/// Free space first of all: it keeps nodes from filling up one after the other.
const FREE_WEIGHT: i64 = 1;
/// A node whose CPU and memory run out together wastes neither.
const BALANCE_WEIGHT: i64 = 1;
/// An image that is there need not be fetched and compiled.
const IMAGE_WEIGHT: i64 = 1;
/// Replicas on different nodes survive the loss of one. Where there are several zones two thirds of
/// this are for different zones.
const SPREAD_WEIGHT: i64 = 2;
/// What the user prefers outweighs what the scheduler finds out: replicas that are drawn to a node
/// go there together, as long as it has room to spare.
const AFFINITY_WEIGHT: i64 = 3;
const COMPANY_WEIGHT: i64 = 3;
const TAINT_WEIGHT: i64 = 4;
/// As much as free space: requests say what a Pod may use, measurements what its neighbours do.
const QUIET_WEIGHT: i64 = 1;

/// A number for each candidate, stretched so that the least is 0 and the most is 100.
fn stretched(candidates: &[usize], value: impl Fn(usize) -> i64) -> Vec<i64> {
    let values: Vec<i64> = candidates.iter().map(|index| value(*index)).collect();
    let least = values.iter().copied().min().unwrap_or(0);
    let range = values.iter().copied().max().unwrap_or(0) - least;
    let stretch = |value: i64| if range == 0 { 0 } else { FULL * (value - least) / range };
    values.into_iter().map(stretch).collect()
}

/// A node's score, view by view, with the weights in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub free: i64,
    pub balance: i64,
    pub images: i64,
    pub siblings: i64,
    pub affinity: i64,
    pub taints: i64,
    /// Other Pods that it wants near or away, and spread constraints that are wishes.
    pub company: i64,
    /// CPU that is really free there, also for what its siblings use elsewhere.
    pub quiet: i64,
}

impl Score {
    pub fn total(&self) -> i64 {
        let Score { free, balance, images, siblings, affinity, taints, company, quiet } = self;
        free + balance + images + siblings + affinity + taints + company + quiet
    }
}

/// Zones by how many Pods of one owner they have.
struct Zones<'a> {
    siblings: Option<&'a InZones>,
    /// The most that a candidate's zone has; 0 where zones make no difference.
    most: i64,
}

impl<'a> Zones<'a> {
    fn of(nodes: &[NodeState], candidates: &[usize], siblings: Option<&'a InZones>) -> Zones<'a> {
        let mut zones = Zones { siblings, most: 0 };
        let zone = |index: &usize| nodes[*index].zone;
        let first = candidates.first().and_then(zone);
        if siblings.is_some() && candidates.iter().any(|index| zone(index) != first) {
            let counts = candidates.iter().filter_map(zone).map(|zone| zones.count(zone));
            zones.most = counts.max().unwrap_or(0);
        }
        zones
    }

    fn count(&self, zone: usize) -> i64 {
        self.siblings.and_then(|siblings| siblings.get(&zone)).copied().unwrap_or(0)
    }

    /// How far a node is from its siblings, from 0 to 100, by how far it is as a node alone.
    fn apart(&self, node: &NodeState, alone: i64) -> i64 {
        match node.zone {
            Some(zone) if self.most > 0 => {
                (alone + 2 * FULL * (self.most - self.count(zone)) / self.most) / 3
            }
            _ => alone,
        }
    }
}

/// What is counted on a node, and compared with the most that any candidate has.
struct Counts {
    siblings: i64,
    wishes: i64,
    dislikes: i64,
}

impl Counts {
    fn of(node: &NodeState, need: &Need) -> Counts {
        Counts {
            siblings: siblings(node, need),
            wishes: wishes(node, need),
            dislikes: dislikes(node, need),
        }
    }
}

/// The scores of these nodes (indexes into `nodes`), in their order.
pub fn scores(
    nodes: &[NodeState],
    candidates: &[usize],
    need: &Need,
    circle: Option<&Circle>,
    appetite: i64,
    in_zones: Option<&InZones>,
) -> Vec<Score> {
    let counts: Vec<Counts> =
        candidates.iter().map(|index| Counts::of(&nodes[*index], need)).collect();
    let most = |count: fn(&Counts) -> i64| counts.iter().map(count).max().unwrap_or(0);
    let siblings_most = most(|counts| counts.siblings);
    let wishes_most = most(|counts| counts.wishes);
    let dislikes_most = most(|counts| counts.dislikes);
    let fewer = |count: i64, most: i64| if most == 0 { 0 } else { FULL * (most - count) / most };
    let zones = Zones::of(nodes, candidates, in_zones.filter(|_| !need.packs));
    let more = |count: i64, most: i64| if most == 0 { 0 } else { FULL * count / most };
    let alone = |(index, counts): (&usize, &Counts)| {
        let node = &nodes[*index];
        let (cpu, memory) = (cpu_free(node, need), memory_free(node, need));
        let free = free(node, cpu, memory);
        Score {
            free: FREE_WEIGHT * if need.packs { FULL - free } else { free },
            // What fills one resource of a node more than the other still fills it.
            balance: match need.packs {
                true => 0,
                false => BALANCE_WEIGHT * (FULL - (cpu - memory).abs()),
            },
            images: IMAGE_WEIGHT * images(node, need),
            siblings: match need.packs {
                true => 0,
                false => {
                    let alone = fewer(counts.siblings, siblings_most);
                    SPREAD_WEIGHT * zones.apart(node, alone)
                }
            },
            affinity: AFFINITY_WEIGHT * more(counts.wishes, wishes_most),
            taints: TAINT_WEIGHT * fewer(counts.dislikes, dislikes_most),
            company: 0,
            quiet: QUIET_WEIGHT * if need.packs { 0 } else { quiet(node, appetite) },
        }
    };
    let mut scores: Vec<Score> = candidates.iter().zip(&counts).map(alone).collect();
    if let Some(circle) = circle {
        let pulls = stretched(candidates, |index| circle.pull(index));
        let crowds = stretched(candidates, |index| -circle.crowd(index));
        for (score, (pull, room)) in scores.iter_mut().zip(pulls.into_iter().zip(crowds)) {
            score.company = COMPANY_WEIGHT * (pull + room);
        }
    }
    scores
}

/// The best of these nodes: the highest score, then the fewest Pods (where nodes are to be filled,
/// the most), then the name.
pub fn best(
    nodes: &[NodeState],
    candidates: &[usize],
    need: &Need,
    circle: Option<&Circle>,
    appetite: i64,
    in_zones: Option<&InZones>,
) -> Option<usize> {
    let scores = scores(nodes, candidates, need, circle, appetite, in_zones);
    let mut best: Option<((i64, i64, &str), usize)> = None;
    for (index, score) in candidates.iter().zip(scores) {
        let node = &nodes[*index];
        let pods = if need.packs { -node.pods } else { node.pods };
        let rank = (-score.total(), pods, node.name.as_str());
        if best.is_none_or(|(held, _)| rank < held) {
            best = Some((rank, *index));
        }
    }
    best.map(|(_, index)| index)
}

/// What would be free of a resource, in hundredths.
fn share_free(capacity: i64, used: i64, wanted: i64) -> i64 {
    if capacity <= 0 {
        return 0;
    }
    let free = (capacity - used - wanted).max(0);
    match free.checked_mul(FULL) {
        Some(hundredths) => hundredths / capacity,
        // More than any machine has: a node may say so all the same.
        None => {
            let share = i128::from(free) * i128::from(FULL) / i128::from(capacity);
            i64::try_from(share).unwrap_or(FULL)
        }
    }
}

fn cpu_free(node: &NodeState, need: &Need) -> i64 {
    share_free(node.capacity.cpu, node.used.cpu, need.requests.cpu)
}

fn memory_free(node: &NodeState, need: &Need) -> i64 {
    share_free(node.capacity.memory, node.used.memory, need.requests.memory)
}

/// Free CPU, memory and places: Pods that ask for nothing still take a place.
fn free(node: &NodeState, cpu: i64, memory: i64) -> i64 {
    (cpu + memory + share_free(node.pods_max, node.pods, 1)) / 3
}

/// CPU that nobody really uses, beside a Pod of this appetite. Where nothing was measured all is
/// quiet.
fn quiet(node: &NodeState, appetite: i64) -> i64 {
    let measured = node.measured.as_ref();
    measured.map_or(FULL, |measured| share_free(node.capacity.cpu, measured.cpu, appetite))
}

fn images(node: &NodeState, need: &Need) -> i64 {
    if need.images.is_empty() {
        return 0;
    }
    let there = need.images.iter().filter(|image| node.images.contains(*image)).count();
    FULL * i64::try_from(there).unwrap_or(0) / i64::try_from(need.images.len()).unwrap_or(1)
}

/// Pods of the same owner on the node.
fn siblings(node: &NodeState, need: &Need) -> i64 {
    let owner = need.owner.as_ref();
    owner.and_then(|owner| node.owners.get(owner)).copied().unwrap_or(0)
}

/// Weights of the Pod's preferred terms that hold on the node.
fn wishes(node: &NodeState, need: &Need) -> i64 {
    let met = need.preferred.iter().filter(|wish| matches(node, &wish.preference));
    met.map(|wish| i64::from(wish.weight)).sum()
}

/// Taints that would rather not have the Pod.
fn dislikes(node: &NodeState, need: &Need) -> i64 {
    let dislikes = |taint: &&Taint| {
        taint.effect == "PreferNoSchedule" && !is_tolerated(taint, &need.tolerations)
    };
    i64::try_from(node.taints.iter().filter(dislikes).count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_right_however_much_a_node_says_it_has() {
        let most = i64::MAX;
        let cases = [
            ((0, 0, 0), 0),
            ((32_000, 8_000, 100), 74),
            ((4, 3, 2), 0),
            ((most, 0, 0), 100),
            ((most, most / 2, 0), 50),
            ((most, most, 0), 0),
        ];
        for ((capacity, used, wanted), expected) in cases {
            assert_eq!(share_free(capacity, used, wanted), expected, "{used} of {capacity}");
        }
    }
}
