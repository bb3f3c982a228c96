//! When a Job is over, and what one Pod's failure means for it.

use std::ops::RangeInclusive;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, JobStatus, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
    SuccessPolicyRule,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::super::pods;
use super::super::replicaset::name_of;
use super::count::Tally;
use super::{BACKOFF_LIMIT, find, index, is_indexed};

/// How a Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub failed: bool,
    pub reason: String,
    pub message: String,
}

impl Verdict {
    fn failed(reason: &str, message: &str) -> Option<Verdict> {
        let (reason, message) = (reason.to_string(), message.to_string());
        Some(Verdict { failed: true, reason, message })
    }

    fn succeeded(reason: &str, message: &str) -> Option<Verdict> {
        let (reason, message) = (reason.to_string(), message.to_string());
        Some(Verdict { failed: false, reason, message })
    }

    /// The reason as an event has it.
    pub fn note(&self) -> &'static str {
        let known = [
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "PodFailurePolicy",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
        ];
        known.into_iter().find(|known| *known == self.reason).unwrap_or("Failed")
    }
}

/// What was decided before: it stays.
pub fn decided(status: &JobStatus) -> Option<Verdict> {
    let of = |kind: &str, failed: bool| {
        let condition = find(status, kind)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (reason, message) = (text(&condition.reason), text(&condition.message));
        Some(Verdict { failed, reason, message })
    };
    of("SuccessCriteriaMet", false).or_else(|| of("FailureTarget", true))
}

/// Whether the Job is over, and how.
pub fn verdict(
    spec: &JobSpec,
    tally: &Tally<'_>,
    status: &JobStatus,
    now: Timestamp,
) -> Option<Verdict> {
    if let Some(why) = &tally.fatal {
        return Verdict::failed("PodFailurePolicy", why);
    }
    if is_spent(spec, tally) {
        let message = "Job has reached the specified backoff limit";
        return Verdict::failed("BackoffLimitExceeded", message);
    }
    if let (Some(limit), Some(start)) = (spec.active_deadline_seconds, &status.start_time)
        && spec.suspend != Some(true)
        && now.duration_since(start.0) >= SignedDuration::from_secs(limit)
    {
        let message = "Job was active longer than specified deadline";
        return Verdict::failed("DeadlineExceeded", message);
    }
    // Where a rule about failed indexes and one of success are met at once, it has failed.
    if let Some(verdict) = indexes_failed(spec, tally) {
        return Some(verdict);
    }
    let mut rules = spec.success_policy.iter().flat_map(|policy| &policy.rules);
    if let Some(at) = rules.position(|rule| is_met(rule, spec, tally)) {
        return Verdict::succeeded("SuccessPolicy", &format!("Matched rules at index {at}"));
    }
    complete(spec, tally)
}

/// Whether more indexes failed than may, or some did and all others are done.
fn indexes_failed(spec: &JobSpec, tally: &Tally<'_>) -> Option<Verdict> {
    let failed = if is_indexed(spec) { tally.failed_indexes.len() } else { 0 };
    let most = spec.max_failed_indexes.and_then(|most| usize::try_from(most).ok());
    if most.is_some_and(|most| failed > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Verdict::failed("MaxFailedIndexesExceeded", message);
    }
    let wanted = usize::try_from(spec.completions.unwrap_or(0)).unwrap_or(0);
    if failed > 0 && tally.succeeded + failed >= wanted {
        return Verdict::failed("FailedIndexes", "Job has failed indexes");
    }
    None
}

fn complete(spec: &JobSpec, tally: &Tally<'_>) -> Option<Verdict> {
    let reached = "Reached expected number of succeeded pods";
    let Some(wanted) = spec.completions.and_then(|wanted| usize::try_from(wanted).ok()) else {
        let over = tally.succeeded > 0 && tally.active.is_empty() && tally.terminating.is_empty();
        return if over { Verdict::succeeded("CompletionsReached", reached) } else { None };
    };
    if tally.succeeded < wanted {
        return None;
    }
    Verdict::succeeded("CompletionsReached", reached)
}

/// Whether too many Pods have failed, or containers that are restarted in place too often.
fn is_spent(spec: &JobSpec, tally: &Tally<'_>) -> bool {
    let limit = spec.backoff_limit.unwrap_or(BACKOFF_LIMIT);
    let failed = i32::try_from(tally.failed).unwrap_or(i32::MAX);
    let template = spec.template.spec.as_ref();
    let in_place = template.and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
    let restarts = if in_place { tally.restarts() } else { 0 };
    failed > limit || (restarts > 0 && restarts >= limit)
}

fn is_met(rule: &SuccessPolicyRule, spec: &JobSpec, tally: &Tally<'_>) -> bool {
    let wanted = rule.succeeded_indexes.as_deref();
    let wanted = wanted.map(|text| index::ranges(text, spec.completions.unwrap_or(0)));
    let count = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
    let done = |ranges: &[RangeInclusive<i32>]| -> usize {
        ranges.iter().map(|range| tally.completed.range(range.clone()).count()).sum()
    };
    match (wanted, count) {
        (None, None) => false,
        (None, Some(count)) => tally.completed.len() >= count,
        (Some(wanted), None) => done(&wanted) == wanted.iter().map(index::length).sum::<usize>(),
        (Some(wanted), Some(count)) => done(&wanted) >= count,
    }
}

/// What a Pod's failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Counts,
    Ignored,
    FailsIndex,
    FailsJob(String),
}

/// The first rule that matches decides.
pub fn outcome(job: &Job, spec: &JobSpec, pod: &Pod) -> Outcome {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (at, rule) in rules.enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        let namespace = job.metadata.namespace.as_deref().unwrap_or("");
        let name = name_of(&pod.metadata);
        return match rule.action.as_str() {
            "Ignore" => Outcome::Ignored,
            "FailIndex" => Outcome::FailsIndex,
            "FailJob" => Outcome::FailsJob(
                what.replace("POD", &format!("pod {namespace}/{name}"))
                    + &format!(" matching FailJob rule at index {at}"),
            ),
            _ => Outcome::Counts,
        };
    }
    Outcome::Counts
}

/// What of a Pod matches a rule, as the beginning of a sentence with POD in it.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let all = [&status.init_container_statuses, &status.container_statuses];
        let mut containers = all.into_iter().flatten().flatten();
        let found = containers.find_map(|container| exited(codes, container))?;
        return Some(found);
    }
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    patterns.find_map(|pattern| {
        let condition = pods::condition(pod, &pattern.type_)?;
        let wanted = pattern.status.as_deref().unwrap_or("True");
        (condition.status == wanted).then(|| format!("POD has condition {}", pattern.type_))
    })
}

fn exited(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    container: &ContainerStatus,
) -> Option<String> {
    let named = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = codes.values.contains(&code);
    let matches = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (named && code != 0 && matches)
        .then(|| format!("Container {} for POD failed with exit code {code}", container.name))
}
