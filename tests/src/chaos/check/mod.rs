//! The checkers: pure functions from a history to what is wrong with it.
//!
//! - [`timeline`]: the one sequence of writes that all who saw any of it must agree on;
//! - [`revisions`]: acknowledged writes have their revision, real-time order agrees, every read is
//!   the state at a revision between what was answered before it and what was asked after it;
//! - [`linear`]: each key for itself, by values alone, is linearizable; revisions are not looked
//!   at, so that a fault in them cannot hide one in the values, nor the other way round;
//! - [`counter`]: writes of the same bytes are told apart, and their sum is right;
//! - [`watches`]: every follower saw the timeline: in order, once, whole, across resumptions.

pub mod counter;
pub mod linear;
pub mod revisions;
pub mod timeline;
pub mod watches;

#[cfg(test)]
mod tests;

use super::history::History;

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Stable name of the rule.
    pub rule: &'static str,
    /// What was seen, with the calls that show it.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

/// What all checkers together found.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// How many of them each checker found.
    pub checkers: Vec<(&'static str, usize)>,
    /// Acknowledged writes that later states do not show.
    pub lost: usize,
    /// Keys whose search was given up at its limit.
    pub undecided: Vec<String>,
    pub keys: usize,
    /// Acknowledged increments of the counter.
    pub increments: usize,
    pub events_checked: usize,
}

impl Findings {
    /// Says which checker found what has been added since the last one was named.
    pub fn name(&mut self, checker: &'static str) {
        let named: usize = self.checkers.iter().map(|(_, found)| found).sum();
        self.checkers.push((checker, self.violations.len() - named));
    }
}

/// Runs all checkers.
pub fn check(history: &History) -> Findings {
    let mut findings = Findings::default();
    let timeline = timeline::Timeline::of(history, &mut findings.violations);
    let seen = revisions::check(history, &timeline, &mut findings.violations);
    findings.lost = seen.lost;
    findings.name("revision order");
    let searched = linear::check(history, &mut findings.violations);
    findings.keys = searched.keys;
    findings.undecided = searched.undecided;
    findings.name("linearizability by values");
    findings.increments = counter::check(history, &mut findings.violations);
    findings.name("sum of a counter");
    findings.events_checked = watches::check(history, &timeline, &mut findings.violations);
    findings.name("watches");
    findings
}
