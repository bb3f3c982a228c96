//! The numbers of a run, from its history alone, and the text that is printed.

use std::fmt::Write as _;

use serde::Serialize;

use super::check::{Findings, Violation};
use super::history::{Call, History, Outcome, Refusal};

/// Most violations shown; the history has the rest.
const SHOWN_MAX: usize = 12;

/// What a run showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub calls: usize,
    pub acknowledged_writes: usize,
    pub lost: usize,
    pub violations: usize,
    /// By rule.
    pub rules: Vec<(String, usize)>,
    pub unknown: usize,
    pub unknown_percent: f64,
    pub refused_unserved: usize,
    pub keys: usize,
    pub undecided_keys: usize,
    pub events: usize,
    pub leader_kills: usize,
    /// From the last acknowledged write before a kill of the leader to the first after it.
    pub gap_p50_ms: Option<f64>,
    pub gap_p99_ms: Option<f64>,
    /// The same for kills with no other fault near.
    pub plain_gap_p50_ms: Option<f64>,
    pub plain_gap_p99_ms: Option<f64>,
    pub transfers: usize,
    /// The longest time without an acknowledged write around a planned transfer.
    pub transfer_stall_p99_ms: Option<f64>,
    /// How long a member that cannot serve took to say so, at the 99th percentile.
    pub refusal_p99_ms: Option<f64>,
    pub accidents: usize,
    pub faults: usize,
}

/// A fault's line in the history begins with one of these words.
pub const KILL_LEADER: &str = "kill leader";
pub const TRANSFER: &str = "transfer";

impl Report {
    pub fn of(history: &History, findings: &Findings, accidents: usize) -> Report {
        let count =
            |is: &dyn Fn(&Call) -> bool| history.calls.iter().filter(|call| is(call)).count();
        let unserved = |call: &Call| matches!(call.outcome, Outcome::Refused(Refusal::Unserved(_)));
        let unknown = count(&Call::is_unknown);
        let kills = times(history, KILL_LEADER);
        let answers = answers(history);
        let gaps = |kills: &[u64]| kills.iter().filter_map(|at| gap(&answers, *at, 0)).collect();
        let (all, plain): (Vec<f64>, Vec<f64>) = (gaps(&kills), gaps(&alone(history, &kills)));
        let transfers = times(history, TRANSFER);
        let stalls = transfers.iter().filter_map(|at| gap(&answers, *at, STALL_US));
        let stalls: Vec<f64> = stalls.collect();
        let refusals: Vec<f64> = history
            .calls
            .iter()
            .filter(|call| unserved(call))
            .map(|call| ms(call.return_us - call.invoke_us))
            .collect();
        Report {
            calls: history.calls.len(),
            acknowledged_writes: count(&Call::acknowledged_write),
            lost: findings.lost,
            violations: findings.violations.len(),
            rules: rules(&findings.violations),
            unknown,
            unknown_percent: 100.0 * unknown as f64 / history.calls.len().max(1) as f64,
            refused_unserved: count(&unserved),
            keys: findings.keys,
            undecided_keys: findings.undecided.len(),
            events: findings.events_checked,
            leader_kills: kills.len(),
            gap_p50_ms: quantile(&all, 0.5),
            gap_p99_ms: quantile(&all, 0.99),
            plain_gap_p50_ms: quantile(&plain, 0.5),
            plain_gap_p99_ms: quantile(&plain, 0.99),
            transfers: transfers.len(),
            transfer_stall_p99_ms: quantile(&stalls, 0.99),
            refusal_p99_ms: quantile(&refusals, 0.99),
            accidents,
            faults: history.faults.len(),
        }
    }

    pub fn text(&self) -> String {
        let time = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:.0} ms"));
        let mut text = String::new();
        let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<34} {value}");
        line("calls", self.calls.to_string());
        line("acknowledged writes", self.acknowledged_writes.to_string());
        line("lost", self.lost.to_string());
        line("violations", format!("{} {:?}", self.violations, self.rules));
        line("unknown", format!("{} ({:.2} %)", self.unknown, self.unknown_percent));
        line("refused by members out of service", self.refused_unserved.to_string());
        line("keys searched (undecided)", format!("{} ({})", self.keys, self.undecided_keys));
        line("watch events checked", self.events.to_string());
        line("faults", self.faults.to_string());
        line("leader kills", self.leader_kills.to_string());
        let two = |p50, p99| format!("p50 {}, p99 {}", time(p50), time(p99));
        line("no-write gap, kills alone", two(self.plain_gap_p50_ms, self.plain_gap_p99_ms));
        line("no-write gap, all kills", two(self.gap_p50_ms, self.gap_p99_ms));
        let stall = time(self.transfer_stall_p99_ms);
        line("planned transfers", format!("{}, stall p99 {stall}", self.transfers));
        line("refusal takes", format!("p99 {}", time(self.refusal_p99_ms)));
        line("members that ended by themselves", self.accidents.to_string());
        text
    }
}

/// The first violations, in words.
pub fn shown(violations: &[Violation]) -> String {
    let mut text = String::new();
    for violation in violations.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "  {violation}");
    }
    if violations.len() > SHOWN_MAX {
        let _ = writeln!(text, "  … and {} more", violations.len() - SHOWN_MAX);
    }
    text
}

/// A planned transfer's stall is looked for in so long a time behind it.
const STALL_US: u64 = 1_000_000;
/// A fault so near to a kill takes part in its gap.
const NEAR_US: u64 = 9_000_000;

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn rules(violations: &[Violation]) -> Vec<(String, usize)> {
    let mut rules = std::collections::BTreeMap::new();
    for violation in violations {
        *rules.entry(violation.rule.to_owned()).or_insert(0) += 1;
    }
    rules.into_iter().collect()
}

fn times(history: &History, what: &str) -> Vec<u64> {
    let of_kind = history.faults.iter().filter(|(_, fault)| fault.starts_with(what));
    of_kind.map(|(at, _)| *at).collect()
}

/// Kills with no fault of another kind near.
fn alone(history: &History, kills: &[u64]) -> Vec<u64> {
    let others = history
        .faults
        .iter()
        .filter(|(_, what)| !what.starts_with(KILL_LEADER) && !what.starts_with(TRANSFER));
    let others: Vec<u64> = others.map(|(at, _)| *at).collect();
    let is_alone = |at: &&u64| others.iter().all(|other| other.abs_diff(**at) > NEAR_US);
    kills.iter().filter(is_alone).copied().collect()
}

/// When writes were acknowledged, in order.
fn answers(history: &History) -> Vec<u64> {
    let writes = history.calls.iter().filter(|call| call.acknowledged_write());
    let mut answers: Vec<u64> = writes.map(|call| call.return_us).collect();
    answers.sort_unstable();
    answers
}

/// The longest time without an answer that begins between the answer before `at` and `within` after
/// `at`, in milliseconds.
fn gap(answers: &[u64], at: u64, within: u64) -> Option<f64> {
    let first = answers.partition_point(|answer| *answer <= at).checked_sub(1)?;
    let pairs = answers[first..].windows(2).take_while(|pair| pair[0] <= at + within);
    pairs.map(|pair| pair[1] - pair[0]).max().map(ms)
}

/// The value at a quantile, the next larger one where it lies between two.
fn quantile(values: &[f64], quantile: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() as f64 * quantile).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_the_time_between_the_answers_around_it() {
        let answers = [1_000, 2_000, 900_000, 901_000, 1_400_000];
        assert_eq!(gap(&answers, 3_000, 0), Some(898.0));
        assert_eq!(gap(&answers, 3_000, 1_000_000), Some(898.0));
        assert_eq!(gap(&answers, 900_500, 1_000_000), Some(499.0));
        assert_eq!(gap(&answers, 2_000_000, 0), None);
        assert_eq!(gap(&answers, 10, 0), None);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[], 0.99), None);
    }
}
