//! How many Pods of each kind that somebody cares about are in each domain.
//!
//! A [`Term`] is counted from the first time that a Pod asks for it, and from then on with each Pod
//! that comes and goes, so a decision reads numbers instead of Pods. Besides the Pods that a term
//! means, it counts those that hold it: an anti-affinity keeps others away from its holder, too.
//!
//! ```text
//!  Count of one term:   meant   Pods that the term speaks of      (looked up by who decides)
//!                       leaving those of them on their way out     (no matter for an even spread)
//!                       away    Pods that hold it as "never with"  (looked up by who is meant)
//!                       pull    weights of those that hold it as a wish, or as "only with"
//! ```
//!
//! Invariant: a tally's domains are the sums of its nodes, by the labels that the nodes have now.

use std::collections::HashMap;

use super::cluster::NodeState;
use super::company::{Company, Labels, Spread, Term};
use super::filter::{Reason, allows, tolerates};
use super::need::Need;

/// Terms that are counted; with more, those that nobody holds are forgotten.
pub const TERMS_MAX: usize = 10_000;

/// The domains of one label.
#[derive(Default)]
struct Topology {
    /// By node.
    domains: Vec<Option<usize>>,
    ids: HashMap<String, usize>,
    /// Present nodes, by domain.
    nodes: Vec<usize>,
}

impl Topology {
    fn domain(&self, node: usize) -> Option<usize> {
        self.domains.get(node).copied().flatten()
    }

    fn id(&mut self, value: &str) -> usize {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = self.nodes.len();
        self.nodes.push(0);
        self.ids.insert(value.to_string(), id);
        id
    }

    fn count(&self) -> usize {
        self.nodes.iter().filter(|count| **count > 0).count()
    }
}

#[derive(Default)]
struct Tally {
    by_node: HashMap<usize, i64>,
    by_domain: Vec<i64>,
}

impl Tally {
    fn add(&mut self, node: usize, domain: Option<usize>, more: i64) {
        if more == 0 {
            return;
        }
        let held = self.by_node.entry(node).or_default();
        *held += more;
        if *held == 0 {
            self.by_node.remove(&node);
        }
        if let Some(domain) = domain {
            if self.by_domain.len() <= domain {
                self.by_domain.resize(domain + 1, 0);
            }
            self.by_domain[domain] += more;
        }
    }

    fn at(&self, domain: usize) -> i64 {
        self.by_domain.get(domain).copied().unwrap_or(0)
    }

    fn relabel(&mut self, node: usize, old: Option<usize>, new: Option<usize>) {
        let Some(count) = self.by_node.get(&node).copied() else { return };
        self.add(node, old, -count);
        self.add(node, new, count);
    }

    fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// Whether no domain has any; there may be some on nodes outside of all domains.
    fn is_nowhere(&self) -> bool {
        self.by_domain.iter().all(|count| *count == 0)
    }
}

struct Count {
    term: Term,
    meant: Tally,
    leaving: Tally,
    away: Tally,
    pull: Tally,
}

impl Count {
    fn new(term: Term) -> Count {
        let none = Tally::default;
        Count { term, meant: none(), leaving: none(), away: none(), pull: none() }
    }
}

/// Where a Pod is, and what it is called there.
pub struct Resident<'a> {
    pub node: usize,
    pub namespace: &'a str,
    pub labels: &'a Labels,
    pub company: Option<&'a Company>,
    /// On its way out.
    pub leaving: bool,
}

/// All counts. Empty, and free of cost, while no Pod cares about others.
#[derive(Default)]
pub struct Census {
    topologies: HashMap<String, Topology>,
    counts: Vec<Count>,
    ids: HashMap<String, usize>,
    /// Counts by a label that their Pods must have; the rest may mean any Pod.
    by_label: HashMap<(String, String), Vec<usize>>,
    by_nothing: Vec<usize>,
    namespaces: HashMap<String, Labels>,
}

impl Census {
    /// Terms of this Pod that are not counted yet.
    pub fn unknown(&self, company: &Company) -> Vec<Term> {
        company.terms().filter(|term| !self.ids.contains_key(&term.id)).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.counts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Forgets every count, to be made anew.
    pub fn clear(&mut self) {
        let namespaces = std::mem::take(&mut self.namespaces);
        *self = Census { namespaces, ..Census::default() };
    }

    /// Starts to count a term, over the Pods that are there.
    pub fn register<'a>(
        &mut self,
        term: Term,
        nodes: &[NodeState],
        residents: impl Iterator<Item = Resident<'a>>,
    ) {
        if self.ids.contains_key(&term.id) {
            return;
        }
        if !self.topologies.contains_key(&term.key) {
            self.topologies.insert(term.key.clone(), Topology::default());
            let key = term.key.clone();
            nodes.iter().enumerate().for_each(|(index, node)| self.place_node(&key, index, node));
        }
        let id = self.counts.len();
        self.ids.insert(term.id.clone(), id);
        let selector = term.who.first().and_then(|who| who.selector.as_ref());
        let label = selector.and_then(|selector| selector.match_labels.as_ref()?.first_key_value());
        match label {
            Some((key, value)) => {
                self.by_label.entry((key.clone(), value.clone())).or_default().push(id);
            }
            None => self.by_nothing.push(id),
        }
        let mut count = Count::new(term);
        let topology = &self.topologies[&count.term.key];
        for resident in residents {
            let domain = topology.domain(resident.node);
            book(&self.namespaces, &mut count, &resident, domain, 1);
        }
        self.counts.push(count);
    }

    /// A Pod comes (1) or goes (-1).
    pub fn book(&mut self, resident: &Resident, times: i64) {
        if self.counts.is_empty() {
            return;
        }
        let mut ids = self.may_mean(resident.labels);
        if let Some(company) = resident.company {
            ids.extend(company.terms().filter_map(|term| self.ids.get(&term.id)));
            ids.sort_unstable();
            ids.dedup();
        }
        for id in ids {
            let count = &mut self.counts[id];
            let domain = self.topologies[&count.term.key].domain(resident.node);
            book(&self.namespaces, count, resident, domain, times);
        }
    }

    /// Counts that may mean a Pod with these labels.
    fn may_mean(&self, labels: &Labels) -> Vec<usize> {
        let mut ids = self.by_nothing.clone();
        if !self.by_label.is_empty() {
            for (key, value) in labels {
                ids.extend(self.by_label.get(&(key.clone(), value.clone())).into_iter().flatten());
            }
        }
        ids
    }

    /// A node came, went or has other labels.
    pub fn put_node(&mut self, index: usize, node: &NodeState) {
        let keys: Vec<String> = self.topologies.keys().cloned().collect();
        keys.iter().for_each(|key| self.place_node(key, index, node));
    }

    fn place_node(&mut self, key: &str, index: usize, node: &NodeState) {
        let topology = self.topologies.get_mut(key).expect("the caller has it from the map");
        let old = topology.domain(index);
        let value = node.labels.get(key).filter(|_| node.present);
        let new = value.map(|value| topology.id(value));
        if old == new {
            return;
        }
        if topology.domains.len() <= index {
            topology.domains.resize(index + 1, None);
        }
        topology.domains[index] = new;
        old.into_iter().for_each(|domain| topology.nodes[domain] -= 1);
        new.into_iter().for_each(|domain| topology.nodes[domain] += 1);
        for count in self.counts.iter_mut().filter(|count| count.term.key == key) {
            count.meant.relabel(index, old, new);
            count.leaving.relabel(index, old, new);
            count.away.relabel(index, old, new);
            count.pull.relabel(index, old, new);
        }
    }

    /// Takes in a namespace's labels; says whether counts have to be made anew for them.
    pub fn put_namespace(&mut self, name: &str, labels: Option<&Labels>) -> bool {
        let before = match labels {
            Some(labels) => self.namespaces.insert(name.to_string(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        let by_labels =
            |count: &Count| count.term.who.iter().any(|who| who.namespace_selector.is_some());
        before.as_ref() != labels && self.counts.iter().any(by_labels)
    }

    /// What the others mean for one Pod; None when nothing.
    pub fn circle<'a>(&'a self, need: &Need, nodes: &[NodeState]) -> Option<Circle<'a>> {
        if self.counts.is_empty() {
            return None;
        }
        let mut circle = Circle::default();
        let of_namespace = self.namespaces.get(&need.namespace);
        for id in self.may_mean(&need.labels) {
            let count = &self.counts[id];
            let means =
                |who: &super::company::Who| who.means(&need.namespace, of_namespace, &need.labels);
            if !count.term.who.iter().all(means) {
                continue;
            }
            let topology = &self.topologies[&count.term.key];
            if !count.away.is_empty() {
                circle.unwelcome.push((topology, &count.away));
            }
            if !count.pull.is_empty() {
                circle.wishes.push((1, topology, &count.pull));
            }
        }
        if let Some(company) = &need.company {
            self.invite(&mut circle, company, need, nodes);
        }
        Some(circle)
    }

    fn invite<'a>(
        &'a self,
        circle: &mut Circle<'a>,
        company: &Company,
        need: &Need,
        nodes: &[NodeState],
    ) {
        let found = |term: &Term| {
            // Registered before every decision, see `Cluster::meet`.
            let count = &self.counts[self.ids[&term.id]];
            (&self.topologies[&term.key], count)
        };
        let of_namespace = self.namespaces.get(&need.namespace);
        circle.first_of_group = true;
        for term in &company.near {
            let (topology, count) = found(term);
            circle.near.push((topology, &count.meant));
            let itself =
                term.who.iter().all(|who| who.means(&need.namespace, of_namespace, &need.labels));
            circle.first_of_group &= itself && count.meant.is_nowhere();
        }
        for term in &company.away {
            let (topology, count) = found(term);
            circle.away.push((topology, &count.meant));
        }
        for (weight, term) in &company.wishes {
            let (topology, count) = found(term);
            circle.wishes.push((*weight, topology, &count.meant));
        }
        let required: Vec<&Spread> =
            company.spreads.iter().filter(|spread| spread.required).collect();
        for spread in &company.spreads {
            let (topology, count) = found(&spread.term);
            let keys = required.iter().map(|spread| &self.topologies[&spread.term.key]).collect();
            circle.spreads.push(rule(spread, topology, count, keys, need, nodes));
        }
    }
}

fn book(
    namespaces: &HashMap<String, Labels>,
    count: &mut Count,
    resident: &Resident,
    domain: Option<usize>,
    times: i64,
) {
    let of_namespace = namespaces.get(resident.namespace);
    let term = &count.term;
    let means =
        |who: &super::company::Who| who.means(resident.namespace, of_namespace, resident.labels);
    if term.who.iter().all(means) {
        count.meant.add(resident.node, domain, times);
        if resident.leaving {
            count.leaving.add(resident.node, domain, times);
        }
    }
    let Some(company) = resident.company else { return };
    let holds = |terms: &[Term]| terms.iter().any(|held| held.id == term.id);
    if holds(&company.away) {
        count.away.add(resident.node, domain, times);
    }
    let wishes = company.wishes.iter().filter(|(_, held)| held.id == term.id);
    // A Pod that must be near others also likes these near itself, if only a little.
    let pull = wishes.map(|(weight, _)| weight).sum::<i64>() + i64::from(holds(&company.near));
    count.pull.add(resident.node, domain, times * pull);
}

/// A spread constraint over the counts of one moment.
struct Rule<'a> {
    topology: &'a Topology,
    counts: Vec<i64>,
    /// The most Pods that a domain may have to still get one; of use when `required`.
    count_max: i64,
    required: bool,
    /// How much an uneven spread weighs: more when there are many domains.
    weight: i64,
    /// For nodes outside of every domain.
    worst: i64,
}

fn rule<'a>(
    spread: &Spread,
    topology: &'a Topology,
    count: &Count,
    keys: Vec<&Topology>,
    need: &Need,
    nodes: &[NodeState],
) -> Rule<'a> {
    let Count { meant, leaving, .. } = count;
    let mut counts = vec![0; topology.nodes.len()];
    let mut counted = vec![false; topology.nodes.len()];
    let narrow = spread.honors_taints
        || (spread.honors_affinity && !(need.selector.is_empty() && need.required.is_empty()));
    if keys.len() <= 1 && !narrow {
        for (domain, count) in counts.iter_mut().enumerate() {
            *count = meant.at(domain) - leaving.at(domain);
            counted[domain] = topology.nodes[domain] > 0;
        }
    } else {
        for (index, node) in nodes.iter().enumerate() {
            let Some(domain) = topology.domain(index) else { continue };
            let counts_here = keys.iter().all(|key| key.domain(index).is_some())
                && (!spread.honors_affinity || allows(node, need))
                && (!spread.honors_taints || tolerates(node, need));
            if counts_here {
                let on = |tally: &Tally| tally.by_node.get(&index).copied().unwrap_or(0);
                counts[domain] += on(meant) - on(leaving);
                counted[domain] = true;
            }
        }
    }
    let domains = counted.iter().filter(|counted| **counted).count();
    let present = counts.iter().zip(&counted).filter(|(_, counted)| **counted);
    let fewest = present.map(|(count, _)| *count).min().unwrap_or(0);
    let fewest = if domains < spread.domains_min { 0 } else { fewest };
    let count_max = fewest + spread.skew_max - i64::from(spread.counts_itself);
    let weight = i64::from((topology.count() + 2).ilog2());
    let worst = counts.iter().max().copied().unwrap_or(0) + 1;
    Rule { topology, counts, count_max, required: spread.required, weight, worst }
}

/// What all other Pods mean for one Pod, at one moment.
#[derive(Default)]
pub struct Circle<'a> {
    unwelcome: Vec<(&'a Topology, &'a Tally)>,
    near: Vec<(&'a Topology, &'a Tally)>,
    /// Nobody it wants to be near is there yet, and it is one of them itself.
    first_of_group: bool,
    away: Vec<(&'a Topology, &'a Tally)>,
    wishes: Vec<(i64, &'a Topology, &'a Tally)>,
    spreads: Vec<Rule<'a>>,
}

impl Circle<'_> {
    /// Why a node cannot take the Pod.
    pub fn obstacle(&self, node: usize) -> Option<Reason> {
        let some = |(topology, tally): &(&Topology, &Tally)| {
            topology.domain(node).is_some_and(|domain| tally.at(domain) > 0)
        };
        if !self
            .near
            .iter()
            .all(|near| some(near) || (self.first_of_group && near.0.domain(node).is_some()))
        {
            return Some(Reason::NotNear);
        }
        if self.away.iter().any(some) {
            return Some(Reason::NotAway);
        }
        if self.unwelcome.iter().any(some) {
            return Some(Reason::Unwelcome);
        }
        for rule in self.spreads.iter().filter(|rule| rule.required) {
            let Some(domain) = rule.topology.domain(node) else {
                return Some(Reason::SpreadLabel);
            };
            if rule.counts[domain] > rule.count_max {
                return Some(Reason::Spread);
            }
        }
        None
    }

    /// The sum of the weights of those that are near.
    pub fn pull(&self, node: usize) -> i64 {
        let at = |(weight, topology, tally): &(i64, &Topology, &Tally)| {
            topology.domain(node).map_or(0, |domain| weight * tally.at(domain))
        };
        self.wishes.iter().map(at).sum()
    }

    /// How crowded a node's domains are with those that it should be spread from.
    pub fn crowd(&self, node: usize) -> i64 {
        let at = |rule: &Rule| {
            let domain = rule.topology.domain(node);
            domain.map_or(rule.worst, |domain| rule.counts[domain]) * rule.weight
        };
        self.spreads.iter().filter(|rule| !rule.required).map(at).sum()
    }
}
