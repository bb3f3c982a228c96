//! The numbers of a run, from its history alone, and the text that is printed: promises, which fail
//! the run when they are broken, and speeds, each beside its goal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::check::{Findings, Violation};
use super::history::{Call, FaultLine, History, Outcome, Refusal, StolenLine};
use super::nemesis::{KILL_LEADER, TRANSFER};

/// Most violations shown; the history has the rest.
const SHOWN_MAX: usize = 12;
/// Writes of unknown outcome at most, in per cent of all calls.
const UNKNOWN_PERCENT_MAX: f64 = 1.0;
/// Without a leader nothing is written; so long at most, half of the times and nearly always.
const KILL_GOAL_MS: (f64, f64) = (1000.0, 2000.0);
/// A planned transfer lets writes wait no longer than this, nearly always.
const TRANSFER_GOAL_MS: f64 = 100.0;
/// With more than this taken by the host, a time says more about the host.
const STOLEN_PERCENT_CALM: f64 = 5.0;
/// A member that cannot serve says so in this time.
const REFUSAL_GOAL_MS: f64 = 2000.0;

/// What a run showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What kind of run it was.
    pub mode: String,
    pub calls: usize,
    pub writes: usize,
    pub acknowledged_writes: usize,
    pub lost: usize,
    pub violations: usize,
    /// Violations by checker.
    pub checkers: Vec<(String, usize)>,
    /// Violations by rule.
    pub rules: Vec<(String, usize)>,
    /// Writes that may or may not have been done.
    pub unknown: usize,
    pub unknown_percent: f64,
    /// Why their outcome is unknown, with how often.
    pub unknown_reasons: Vec<(String, usize)>,
    /// Reads without an answer: they have done nothing.
    pub unanswered_reads: usize,
    pub refused_unserved: usize,
    pub keys: usize,
    /// Acknowledged increments of the counter.
    pub increments: usize,
    pub undecided_keys: usize,
    pub events: usize,
    pub leader_kills: usize,
    pub transfers: usize,
    /// How long no write was answered, by sort of fault.
    pub gaps: Vec<Gap>,
    /// How long a member that cannot serve took to say so, at the 99th percentile.
    pub refusal_p99_ms: Option<f64>,
    /// Backups made while all this went on, and how many could be restored.
    pub backups: (usize, usize),
    pub accidents: usize,
    pub faults: usize,
    /// What the machine's host gave to others, of all processor time; and in the worst second.
    pub stolen_percent: (f64, f64),
}

/// The longest time without an answer to a write around each fault of one sort.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    pub sort: String,
    /// Whether a fault of another sort was near.
    pub company: bool,
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// The same of those during which the machine had its processors.
    pub calm: Option<Calm>,
}

/// Faults during which the machine's host gave at most [`STOLEN_PERCENT_CALM`] of the processors to
/// others, in every second.
#[derive(Clone, Debug, Serialize)]
pub struct Calm {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Report {
    pub fn of(history: &History, findings: &Findings, accidents: usize) -> Report {
        let calls = &history.calls;
        let count = |is: &dyn Fn(&Call) -> bool| calls.iter().filter(|call| is(call)).count();
        let unserved = |call: &Call| matches!(call.outcome, Outcome::Refused(Refusal::Unserved(_)));
        let took = |call: &Call| ms(call.return_us - call.invoke_us);
        let refused = calls.iter().filter(|call| says_so(call));
        let refusals: Vec<f64> = refused.map(took).collect();
        let unknown = count(&Call::is_unknown_write);
        let sort = |fault: &&FaultLine, sort: &str| fault.sort.as_deref() == Some(sort);
        let faults = |name: &str| history.faults.iter().filter(|line| sort(line, name)).count();
        Report {
            mode: history.mode.clone(),
            calls: calls.len(),
            writes: count(&|call| call.op.is_write()),
            acknowledged_writes: count(&Call::acknowledged_write),
            lost: findings.lost,
            violations: findings.violations.len(),
            checkers: findings
                .checkers
                .iter()
                .map(|(checker, found)| ((*checker).to_owned(), *found))
                .collect(),
            rules: counted(findings.violations.iter().map(|violation| violation.rule)),
            unknown,
            unknown_percent: 100.0 * unknown as f64 / calls.len().max(1) as f64,
            unknown_reasons: unknown_reasons(calls),
            unanswered_reads: count(&|call| call.is_unknown() && !call.op.is_write()),
            refused_unserved: count(&unserved),
            keys: findings.keys,
            increments: findings.increments,
            undecided_keys: findings.undecided.len(),
            events: findings.events_checked,
            leader_kills: faults(KILL_LEADER),
            transfers: faults(TRANSFER),
            gaps: gaps(history),
            refusal_p99_ms: quantile(&refusals, 0.99),
            backups: (0, 0),
            accidents,
            faults: history.faults.iter().filter(|line| line.sort.is_some()).count(),
            stolen_percent: stolen(&history.stolen),
        }
    }

    /// What faults of a sort cost where they were alone.
    pub fn gap(&self, sort: &str) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.sort == sort && !gap.company)
    }

    /// The promises that were broken, in words.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.lost > 0 {
            broken.push(format!("{} acknowledged writes were lost", self.lost));
        }
        if self.violations > 0 {
            broken.push(format!("{} violations: {:?}", self.violations, self.rules));
        }
        if self.unknown_percent > UNKNOWN_PERCENT_MAX {
            let (unknown, most) = (self.unknown_percent, UNKNOWN_PERCENT_MAX);
            broken.push(format!("{unknown:.2} % unknown outcomes, at most {most} % are allowed"));
        }
        broken
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<42} {value}");
        line("mode", self.mode.clone());
        line("calls", format!("{}, {} of them writes", self.calls, self.writes));
        line("acknowledged writes", self.acknowledged_writes.to_string());
        line("  lost", promised(self.lost.to_string(), self.lost == 0, "0"));
        for (checker, found) in &self.checkers {
            let name = format!("  violations, {checker}");
            line(&name, promised(found.to_string(), *found == 0, "0"));
        }
        let few = self.unknown_percent <= UNKNOWN_PERCENT_MAX;
        let of_writes = 100.0 * self.unknown as f64 / self.writes.max(1) as f64;
        let unknown = format!(
            "{} ({:.2} % of calls, {of_writes:.2} % of writes)",
            self.unknown, self.unknown_percent
        );
        line("  unknown outcomes", promised(unknown, few, "at most 1 % of calls"));
        for (why, times) in &self.unknown_reasons {
            line("", format!("  {times} × {why}"));
        }
        line("reads without an answer", self.unanswered_reads.to_string());
        line("refused by members out of service", self.refused_unserved.to_string());
        line("keys searched (undecided)", format!("{} ({})", self.keys, self.undecided_keys));
        line("increments of the counter", self.increments.to_string());
        line("watch events checked", self.events.to_string());
        let (made, restored) = self.backups;
        line("backups under load", format!("{made} made, {restored} restored and compared"));
        line("members that ended by themselves", self.accidents.to_string());
        let (kills, transfers) = (self.leader_kills, self.transfers);
        let faults = self.faults;
        line("faults", format!("{faults}: {kills} leader kills, {transfers} planned transfers"));
        let (mean, worst) = self.stolen_percent;
        let taken = format!("{mean:.1} % of all processor time, {worst:.0} % of the worst second");
        line("taken by the machine's host", taken);
        if let Some(p99) = self.refusal_p99_ms {
            let met = met(p99 <= REFUSAL_GOAL_MS);
            line("a refusal takes", format!("p99 {p99:.0} ms (goal: at most 2000 ms, {met})"));
        }
        text + &self.gap_table()
    }

    fn gap_table(&self) -> String {
        let name = "no write answered around a";
        let mut text =
            format!("\n{name:<42} {:>6} {:>9} {:>9} {:>9}\n", "faults", "p50", "p99", "max");
        for gap in &self.gaps {
            let Gap { sort, count, p50_ms, p99_ms, max_ms, calm, .. } = gap;
            let shaken = calm.as_ref().is_none_or(|calm| calm.count < *count);
            let name = if gap.company { format!("{sort} + another") } else { sort.clone() };
            _ = write!(
                text,
                "  {name:<40} {count:>6} {p50_ms:>6.0} ms {p99_ms:>6.0} ms {max_ms:>6.0} ms"
            );
            if let Some(goal) = gap.goal() {
                _ = write!(text, "   {goal}");
            }
            text.push('\n');
            if let Some(Calm { count, p50_ms, p99_ms }) = calm.as_ref().filter(|_| shaken) {
                let name = "    while the host took little";
                _ = writeln!(text, "{name:<42} {count:>6} {p50_ms:>6.0} ms {p99_ms:>6.0} ms");
            }
        }
        text
    }
}

impl Gap {
    /// The goal beside what was measured, for sorts that have one, and only where the fault was
    /// alone.
    fn goal(&self) -> Option<String> {
        match self.sort.as_str() {
            _ if self.company => None,
            KILL_LEADER => {
                let (p50, p99) = KILL_GOAL_MS;
                let met = met(self.p50_ms <= p50 && self.p99_ms <= p99);
                Some(format!("goal: p50 {p50:.0} ms, p99 {p99:.0} ms, {met}"))
            }
            TRANSFER => {
                let met = met(self.p99_ms <= TRANSFER_GOAL_MS);
                Some(format!("goal: p99 {TRANSFER_GOAL_MS:.0} ms, {met}"))
            }
            _ => None,
        }
    }
}

fn met(goal: bool) -> &'static str {
    if goal { "met" } else { "MISSED" }
}

fn promised(value: String, kept: bool, promise: &str) -> String {
    format!("{value} (promise: {promise}, {})", if kept { "kept" } else { "BROKEN" })
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

/// A fault without a length does what it does in so long a time.
const EFFECT_US: u64 = 1_000_000;
/// A planned transfer is over by then, and the next one has not begun.
const TRANSFER_US: u64 = 500_000;
/// A cluster is well again so long after a fault ended.
const HEALED_US: u64 = 4_000_000;

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn counted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.to_owned()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// A member that answers that it cannot serve, other than one that is not reached.
fn says_so(call: &Call) -> bool {
    matches!(&call.outcome, Outcome::Refused(Refusal::Unserved(why)) if why.starts_with("503"))
}

fn unknown_reasons(calls: &[Call]) -> Vec<(String, usize)> {
    let writes = calls.iter().filter(|call| call.is_unknown_write());
    let reasons = writes.filter_map(|call| match &call.outcome {
        // What follows names the object.
        Outcome::Unknown { why } => why.split(';').next(),
        _ => None,
    });
    let mut reasons = counted(reasons);
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons
}

/// When writes were answered, in order. One that was refused for what it found, a conflict or an object
/// that is there already, was answered by a leader as well.
fn answers(history: &History) -> Vec<u64> {
    let writes = history.calls.iter().filter(|call| call.op.is_write() && call.is_served());
    let mut answers: Vec<u64> = writes.map(|call| call.return_us).collect();
    answers.sort_unstable();
    answers
}

fn gaps(history: &History) -> Vec<Gap> {
    let answers = answers(history);
    let mut sorts: BTreeMap<(String, bool), Vec<(f64, bool)>> = BTreeMap::new();
    for fault in &history.faults {
        let Some(sort) = fault.sort.clone() else { continue };
        let effect = if sort == TRANSFER { TRANSFER_US } else { fault.for_us + EFFECT_US };
        let Some(found) = gap(&answers, fault.at_us, effect) else { continue };
        let calm = was_calm(&history.stolen, fault.at_us, effect + (found * 1000.0) as u64);
        let company = has_company(&history.faults, fault);
        sorts.entry((sort, company)).or_default().push((found, calm));
    }
    let gap_of = |((sort, company), found): ((String, bool), Vec<(f64, bool)>)| {
        let values: Vec<f64> = found.iter().map(|(gap, _)| *gap).collect();
        let at = |part| quantile(&values, part).expect("a sort has a fault");
        let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
        let calm: Vec<f64> = found.iter().filter(|(_, calm)| *calm).map(|(gap, _)| *gap).collect();
        let calm = quantile(&calm, 0.5).zip(quantile(&calm, 0.99));
        let calm_count = found.iter().filter(|(_, calm)| *calm).count();
        let calm = calm.map(|(p50_ms, p99_ms)| Calm { count: calm_count, p50_ms, p99_ms });
        Gap { sort, company, count: values.len(), p50_ms, p99_ms, max_ms, calm }
    };
    sorts.into_iter().map(gap_of).collect()
}

/// The mean and the worst second of what the host took.
fn stolen(lines: &[StolenLine]) -> (f64, f64) {
    let percents = || lines.iter().map(|line| line.percent);
    let mean = percents().sum::<f64>() / lines.len().max(1) as f64;
    (mean, percents().fold(0.0, f64::max))
}

/// Whether the machine had its processors from a second before `at` until `within` after it.
fn was_calm(lines: &[StolenLine], at: u64, within: u64) -> bool {
    const SECOND: u64 = 1_000_000;
    let from = at.saturating_sub(SECOND);
    let near = |line: &&StolenLine| (from..=at + within + SECOND).contains(&line.at_us);
    lines.iter().filter(near).all(|line| line.percent <= STOLEN_PERCENT_CALM)
}

/// Whether a fault of another sort lasts while this one does, or has ended only just before. A
/// planned transfer leaves nothing behind.
fn has_company(faults: &[FaultLine], fault: &FaultLine) -> bool {
    let end = fault.at_us + fault.for_us + EFFECT_US;
    faults.iter().any(|other| {
        let begun = other.at_us <= end;
        let over = other.at_us + other.for_us + HEALED_US < fault.at_us;
        let sort = other.sort.as_deref().filter(|sort| *sort != TRANSFER);
        sort.is_some() && sort != fault.sort.as_deref() && begun && !over
    })
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
    fn a_fault_is_calm_when_the_host_takes_little_around_it() {
        let line = |second: u64, percent| StolenLine { at_us: second * 1_000_000, percent };
        let lines = [line(9, 40.0), line(10, 0.0), line(11, 2.0), line(12, 0.0), line(14, 60.0)];
        assert!(was_calm(&lines, 11_000_000, 1_000_000));
        assert!(!was_calm(&lines, 10_000_000, 1_000_000), "the second before");
        assert!(!was_calm(&lines, 11_000_000, 2_000_000), "the second after");
        assert_eq!(stolen(&lines), (20.4, 60.0));
        assert_eq!(stolen(&[]), (0.0, 0.0));
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[], 0.99), None);
    }

    #[test]
    fn a_fault_is_alone_when_those_before_it_have_healed() {
        let line = |at_s: u64, for_s: u64, sort: &str| FaultLine {
            at_us: at_s * 1_000_000,
            for_us: for_s * 1_000_000,
            sort: Some(sort.to_owned()),
            what: String::new(),
        };
        let faults = [
            line(10, 0, KILL_LEADER),
            line(12, 0, KILL_LEADER),
            line(20, 5, "network late"),
            line(28, 0, KILL_LEADER),
            line(40, 0, KILL_LEADER),
        ];
        let company: Vec<bool> = faults.iter().map(|fault| has_company(&faults, fault)).collect();
        assert_eq!(company, [false, false, false, true, false]);
    }

    #[test]
    fn what_breaks_a_promise_fails_the_run() {
        let sound = Report { calls: 1000, unknown: 10, unknown_percent: 1.0, ..Report::default() };
        assert_eq!(sound.broken(), Vec::<String>::new());
        let lost = Report { lost: 1, unknown_percent: 1.01, ..sound };
        assert_eq!(
            lost.broken(),
            ["1 acknowledged writes were lost", "1.01 % unknown outcomes, at most 1 % are allowed"]
        );
    }
}
