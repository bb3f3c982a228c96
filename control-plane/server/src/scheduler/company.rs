//! Which other Pods a Pod wants near it or away from it, read from its spec once.
//!
//! Words: a [`Who`] says which Pods are meant, a [`Term`] where these Pods count: in the *domain*,
//! all nodes with one value of a label. Inter-Pod affinity and topology spread are both said in
//! terms; `census` counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher};

use k8s_openapi::api::core::v1::{PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::controllers::owners::selects;

pub type Labels = BTreeMap<String, String>;

/// Which Pods a term speaks of.
#[derive(Clone, Debug, PartialEq)]
pub struct Who {
    pub namespaces: BTreeSet<String>,
    /// Namespaces by their labels, besides the named ones.
    pub namespace_selector: Option<LabelSelector>,
    /// None selects nobody.
    pub selector: Option<LabelSelector>,
}

impl Who {
    /// Whether a Pod in a namespace with these labels is meant.
    pub fn means(&self, namespace: &str, of_namespace: Option<&Labels>, labels: &Labels) -> bool {
        let Some(selector) = &self.selector else { return false };
        let there = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|by| selects(by, of_namespace));
        there && selects(selector, Some(labels))
    }
}

/// Pods that are meant, counted by the domains of a label. Several `who` must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub who: Vec<Who>,
    /// The nodes' label.
    pub key: String,
    /// Equal for equal terms.
    pub id: String,
}

impl Term {
    fn new(who: Vec<Who>, key: &str) -> Term {
        let parts: Vec<_> = who
            .iter()
            .map(|who| (&who.namespaces, &who.namespace_selector, &who.selector))
            .collect();
        let id = serde_json::to_string(&(key, parts)).expect("names and selectors are JSON");
        Term { who, key: key.to_string(), id }
    }
}

/// One topology spread constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub term: Term,
    pub skew_max: i64,
    /// Fewer domains than this count as an empty one being there.
    pub domains_min: usize,
    /// Only nodes count that the Pod's own affinity and selector allow.
    pub honors_affinity: bool,
    /// Only nodes count whose taints the Pod tolerates.
    pub honors_taints: bool,
    /// Whether the Pod itself is one of those that it spreads.
    pub counts_itself: bool,
    pub required: bool,
}

/// All that a Pod says about other Pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Company {
    pub spreads: Vec<Spread>,
    /// Must have one of these Pods in the domain. Each counts only Pods that all of them mean.
    pub near: Vec<Term>,
    /// Must have none of these.
    pub away: Vec<Term>,
    /// Weight and term; below zero it would rather be away.
    pub wishes: Vec<(i64, Term)>,
}

impl Company {
    /// None when the Pod does not mind others.
    pub fn read(spec: &PodSpec, namespace: &str, labels: &Labels) -> Option<Company> {
        let spreads = spec.topology_spread_constraints.as_deref().unwrap_or(&[]);
        let affinity = spec.affinity.as_ref();
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let away = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        if spreads.is_empty() && near.is_none() && away.is_none() {
            return None;
        }
        let who = |term: &PodAffinityTerm| who(term, namespace, labels);
        let mut company = Company {
            spreads: spreads.iter().map(|spread| read_spread(spread, namespace, labels)).collect(),
            ..Company::default()
        };
        if let Some(near) = near {
            let required =
                near.required_during_scheduling_ignored_during_execution.iter().flatten();
            let all: Vec<Who> = required.clone().map(who).collect();
            company.near =
                required.map(|term| Term::new(all.clone(), &term.topology_key)).collect();
            for wish in near.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let term = &wish.pod_affinity_term;
                let term = Term::new(vec![who(term)], &term.topology_key);
                company.wishes.push((i64::from(wish.weight), term));
            }
        }
        if let Some(away) = away {
            let required =
                away.required_during_scheduling_ignored_during_execution.iter().flatten();
            company.away =
                required.map(|term| Term::new(vec![who(term)], &term.topology_key)).collect();
            for wish in away.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let term = &wish.pod_affinity_term;
                let term = Term::new(vec![who(term)], &term.topology_key);
                company.wishes.push((-i64::from(wish.weight), term));
            }
        }
        Some(company)
    }

    /// Hashes all that decides which nodes can take the Pod. A term alone does not say it: one may
    /// be held to be near and by another Pod to be away.
    pub fn hash_rules(&self, hasher: &mut impl Hasher) {
        for spread in &self.spreads {
            let Spread { term, skew_max, domains_min, .. } = spread;
            (&term.id, skew_max, domains_min).hash(hasher);
            (spread.honors_affinity, spread.honors_taints, spread.required).hash(hasher);
        }
        for (kind, terms) in [("near", &self.near), ("away", &self.away)] {
            for term in terms {
                (kind, &term.id).hash(hasher);
            }
        }
        for (weight, term) in &self.wishes {
            (weight, &term.id).hash(hasher);
        }
    }

    /// Every term that this Pod's own decision looks at.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        let spreads = self.spreads.iter().map(|spread| &spread.term);
        let wishes = self.wishes.iter().map(|(_, term)| term);
        spreads.chain(&self.near).chain(&self.away).chain(wishes)
    }
}

fn who(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Who {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace.to_string());
    }
    let selector = term.label_selector.clone().map(|mut selector| {
        narrow(&mut selector, "In", term.match_label_keys.as_deref(), labels);
        narrow(&mut selector, "NotIn", term.mismatch_label_keys.as_deref(), labels);
        selector
    });
    Who { namespaces, namespace_selector: term.namespace_selector.clone(), selector }
}

/// Adds that some labels must have, or must not have, the values that the Pod itself has.
fn narrow(selector: &mut LabelSelector, op: &str, keys: Option<&[String]>, labels: &Labels) {
    for key in keys.unwrap_or(&[]) {
        let Some(value) = labels.get(key) else { continue };
        let rule = LabelSelectorRequirement {
            key: key.clone(),
            operator: op.to_string(),
            values: Some(vec![value.clone()]),
        };
        let rules = selector.match_expressions.get_or_insert_default();
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
}

fn read_spread(spread: &TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Spread {
    let mut selector = spread.label_selector.clone();
    if let Some(selector) = &mut selector {
        narrow(selector, "In", spread.match_label_keys.as_deref(), labels);
    }
    let namespaces = BTreeSet::from([namespace.to_string()]);
    let who = Who { namespaces, namespace_selector: None, selector };
    let counts_itself = who.means(namespace, None, labels);
    let domains_min = spread.min_domains.and_then(|count| usize::try_from(count).ok());
    Spread {
        term: Term::new(vec![who], &spread.topology_key),
        skew_max: i64::from(spread.max_skew),
        domains_min: domains_min.unwrap_or(0),
        honors_affinity: spread.node_affinity_policy.as_deref() != Some("Ignore"),
        honors_taints: spread.node_taints_policy.as_deref() == Some("Honor"),
        counts_itself,
        required: spread.when_unsatisfiable != "ScheduleAnyway",
    }
}
