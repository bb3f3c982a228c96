//! Jobs: Pods that run to their end, so many of them, with so many failures allowed.
//!
//! Owns: the Pods a Job controls, and the Job's status. Covers the NonIndexed mode: completions,
//! parallelism, backoffLimit with growing pauses, activeDeadlineSeconds, suspend,
//! ttlSecondsAfterFinished.
//!
//! Invariants: finished Pods are counted from the Pods themselves and never fewer than the status
//! already says, so a Pod deleted after it was counted stays counted; a Job that is Complete or
//! Failed creates no Pod.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::owners::controller_of;
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::{name_of, pod_of};
use super::write::{Write, status_patch};

/// Failed Pods allowed when the Job does not say.
const BACKOFF_LIMIT: i32 = 6;
/// The pause after the first failed Pod; it doubles with each.
const PAUSE_FIRST: SignedDuration = SignedDuration::from_secs(10);
const PAUSE_MAX: SignedDuration = SignedDuration::from_secs(600);
/// Pods created by one plan.
const BURST_MAX: i32 = 500;
const COMPONENT: &str = "job-controller";

/// What a plan for one Job reads.
#[derive(Default)]
pub struct Snapshot {
    pub job: Arc<Job>,
    /// Pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// The newest revision known: the seed of new names.
    pub revision: u64,
}

pub const CONTROLLER: Controller = Controller { name: "job", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Job>().is_some() {
        keys.push(change.key.clone());
    }
    for pod in change.states::<Pod>() {
        let key = controller_of(&pod.metadata).and_then(|owner| cache.by_uid(&owner.uid));
        keys.extend(key.filter(|key| key.kind.is("batch", "Job")).cloned());
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(job) = view.cache.get::<Job>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = job.metadata.uid.as_deref().unwrap_or("");
    let snapshot =
        Snapshot { pods: view.cache.controlled(uid), revision: view.cache.revision(), job };
    plan(&snapshot, view.now)
}

/// Counts of one Job's Pods.
struct Counts<'a> {
    active: Vec<&'a Arc<Pod>>,
    terminating: i32,
    ready: i32,
    succeeded: i32,
    failed: i32,
    /// When the newest failure happened.
    last_failure: Option<Timestamp>,
}

/// Creates or deletes Pods, decides whether the Job is over, and writes the status.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let job = &*snapshot.job;
    let Some(spec) = &job.spec else { return Plan::default() };
    if job.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let old = job.status.clone().unwrap_or_default();
    if let Some(over) = ["Complete", "Failed"].iter().find_map(|kind| find(&old, kind)) {
        return finished(job, spec, over, now);
    }
    let counts = count(&snapshot.pods, &old);
    let suspended = spec.suspend == Some(true);
    let mut plan = Plan::default();
    let mut status = JobStatus {
        start_time: old.start_time.clone().or((!suspended).then_some(Time(now))),
        ..old.clone()
    };
    let verdict = verdict(spec, &counts, &status, now);
    match &verdict {
        Some(verdict) => conclude(job, verdict, &counts, &mut status, &mut plan, now),
        None if suspended => {
            plan.writes = counts.active.iter().map(|pod| Write::delete(&***pod)).collect();
        }
        None => size(snapshot, spec, &counts, &mut plan, now),
    }
    suspend(&mut status, suspended, now);
    if let (Some(limit), Some(start)) = (spec.active_deadline_seconds, &status.start_time)
        && verdict.is_none()
    {
        let left = SignedDuration::from_secs(limit) - now.duration_since(start.0);
        plan.look_again(Duration::try_from(left).unwrap_or_default());
    }
    let active = if verdict.is_some() { 0 } else { counts.active.len() };
    let some = |count: i32| (count > 0).then_some(count);
    status.active = some(i32::try_from(active).unwrap_or(i32::MAX));
    status.ready = Some(if verdict.is_some() { 0 } else { counts.ready });
    status.terminating = Some(counts.terminating);
    status.succeeded = some(counts.succeeded);
    status.failed = some(counts.failed);
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
    let patch = status_patch(job.status.as_ref(), &status);
    plan.writes.extend(patch.map(|patch| Write::patch_status(job, patch)));
    plan
}

fn count<'a>(pods: &'a [Arc<Pod>], old: &JobStatus) -> Counts<'a> {
    let mut counts = Counts {
        active: Vec::new(),
        terminating: 0,
        ready: 0,
        succeeded: 0,
        failed: 0,
        last_failure: None,
    };
    for pod in pods {
        match pods::phase(pod) {
            "Succeeded" => counts.succeeded += 1,
            "Failed" => {
                counts.failed += 1;
                counts.last_failure = counts.last_failure.max(ended(pod));
            }
            _ if pods::is_deleting(pod) => counts.terminating += 1,
            _ => {
                counts.ready += i32::from(pods::is_ready(pod));
                counts.active.push(pod);
            }
        }
    }
    counts.succeeded = counts.succeeded.max(old.succeeded.unwrap_or(0));
    counts.failed = counts.failed.max(old.failed.unwrap_or(0));
    counts
}

/// When a finished Pod's last container ended.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends = statuses.iter().filter_map(|status| {
        let terminated = status.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(|time| time.0)
    });
    ends.max()
}

/// How a Job ended.
enum Verdict {
    Complete,
    Failed { reason: &'static str, message: &'static str },
}

fn verdict(
    spec: &JobSpec,
    counts: &Counts<'_>,
    status: &JobStatus,
    now: Timestamp,
) -> Option<Verdict> {
    let wanted = spec.completions;
    if counts.failed > spec.backoff_limit.unwrap_or(BACKOFF_LIMIT) {
        let message = "Job has reached the specified backoff limit";
        return Some(Verdict::Failed { reason: "BackoffLimitExceeded", message });
    }
    if let (Some(limit), Some(start)) = (spec.active_deadline_seconds, &status.start_time)
        && spec.suspend != Some(true)
        && now.duration_since(start.0) >= SignedDuration::from_secs(limit)
    {
        let message = "Job was active longer than specified deadline";
        return Some(Verdict::Failed { reason: "DeadlineExceeded", message });
    }
    let complete = match wanted {
        Some(wanted) => counts.succeeded >= wanted,
        // Without a number of completions the first success lets the others end and starts no more.
        None => counts.succeeded > 0 && counts.active.is_empty() && counts.terminating == 0,
    };
    complete.then_some(Verdict::Complete)
}

fn conclude(
    job: &Job,
    verdict: &Verdict,
    counts: &Counts<'_>,
    status: &mut JobStatus,
    plan: &mut Plan,
    now: Timestamp,
) {
    plan.writes = counts.active.iter().map(|pod| Write::delete(&***pod)).collect();
    let (kinds, reason, message, note) = match verdict {
        Verdict::Complete => {
            status.completion_time = Some(Time(now));
            let message = "Reached expected number of succeeded pods";
            let note = Note::normal(COMPONENT, job, "Completed", "Job completed".to_string());
            (["SuccessCriteriaMet", "Complete"], "CompletionsReached", message, note)
        }
        Verdict::Failed { reason, message } => {
            let note = Note::warning(COMPONENT, job, reason, (*message).to_string());
            (["FailureTarget", "Failed"], *reason, *message, note)
        }
    };
    for kind in kinds {
        let condition = condition(kind, "True", reason, message, now);
        status.conditions.get_or_insert_default().push(condition);
    }
    plan.writes.push(Write::tell(note));
}

fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    JobCondition {
        type_: kind.to_string(),
        status: status.to_string(),
        reason: Some(reason.to_string()),
        message: Some(message.to_string()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn find<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

fn suspend(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    let held = status.conditions.iter().flatten().find(|held| held.type_ == "Suspended");
    let stands = held.is_some_and(|held| held.status == "True");
    if suspended == stands {
        return;
    }
    let (word, reason, message) = match suspended {
        true => ("True", "JobSuspended", "Job suspended"),
        false => ("False", "JobResumed", "Job resumed"),
    };
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|held| held.type_ != "Suspended");
    conditions.push(condition("Suspended", word, reason, message, now));
    // The deadline counts from the moment it runs.
    status.start_time = (!suspended).then_some(Time(now));
}

/// Creates Pods up to the parallelism, after the pause that failures cost, or deletes what is too
/// many.
fn size(snapshot: &Snapshot, spec: &JobSpec, counts: &Counts<'_>, plan: &mut Plan, now: Timestamp) {
    let active = i32::try_from(counts.active.len()).unwrap_or(i32::MAX);
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        Some(completions) => parallelism.min(completions - counts.succeeded),
        None if counts.succeeded > 0 => active.min(parallelism),
        None => parallelism,
    };
    let job = &*snapshot.job;
    if active > wanted {
        let surplus = usize::try_from(active - wanted).unwrap_or(0);
        let mut pods = counts.active.clone();
        pods.sort_by_key(|pod| (pods::is_ready(pod), name_of(&pod.metadata).to_string()));
        plan.writes = pods.into_iter().take(surplus).map(|pod| Write::delete(&**pod)).collect();
        return;
    }
    let missing = (wanted - active - counts.terminating).clamp(0, BURST_MAX);
    if missing == 0 {
        return;
    }
    if let Some(left) = pause(counts, now) {
        plan.look_again(left);
        return;
    }
    let uid = job.metadata.uid.as_deref().unwrap_or("");
    for number in 0..missing {
        let seed = format!("{uid}/{}/{number}", snapshot.revision);
        let pod = pod_of(job, &spec.template, &seed);
        let message = format!("Created pod: {}", name_of(&pod.metadata));
        let note = Note::normal(COMPONENT, job, "SuccessfulCreate", message);
        plan.writes.push(Write::create(&pod).noting(note));
    }
}

/// What is left of the pause after the newest failure.
fn pause(counts: &Counts<'_>, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(counts.failed - 1).ok()?;
    let pause = PAUSE_FIRST.saturating_mul(1 << doublings.min(16)).min(PAUSE_MAX);
    let left = pause - now.duration_since(counts.last_failure?);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

/// A finished Job waits for its time to live, if it has one.
fn finished(job: &Job, spec: &JobSpec, over: &JobCondition, now: Timestamp) -> Plan {
    let ttl =
        spec.ttl_seconds_after_finished.map(|seconds| SignedDuration::from_secs(seconds.into()));
    let (Some(ttl), Some(ended)) = (ttl, &over.last_transition_time) else {
        return Plan::default();
    };
    match Duration::try_from(ttl - now.duration_since(ended.0)) {
        Ok(left) if !left.is_zero() => Plan { writes: Vec::new(), again: Some(left) },
        _ => vec![Write::delete(job)].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    /// A Job with Pods by phase; failed ones ended at second 0.
    fn snapshot(spec: &str, phases: &[&str]) -> Snapshot {
        let job: Job = yaml(&format!(
            "metadata: {{name: sum, namespace: d}}\n\
             spec:\n  template: {{spec: {{containers: [{{name: c, image: i}}]}}}}\n{spec}"
        ));
        let pod = |(number, phase): (usize, &&str)| {
            Arc::new(yaml(&format!(
                "metadata: {{name: p{number}, namespace: d}}\nspec: {{containers: []}}\n\
                 status:\n  phase: {phase}\n  containerStatuses:\n  - {{name: c, image: i, \
                 imageID: i, ready: false, restartCount: 0, state: {{terminated: {{exitCode: 1, \
                 finishedAt: 2023-11-14T22:13:20Z}}}}}}"
            )))
        };
        let pods = phases.iter().enumerate().map(pod).collect();
        Snapshot { job: Arc::new(job), pods, revision: 1 }
    }

    fn shown(snapshot: &Snapshot, seconds: i64) -> String {
        text(&plan(snapshot, at(seconds)).writes)
    }

    fn count(text: &str, start: &str) -> usize {
        text.lines().filter(|line| line.starts_with(start)).count()
    }

    #[test]
    fn pods_are_made_up_to_parallelism_and_completions() {
        let creates = |spec: &str, phases: &[&str]| {
            count(&shown(&snapshot(spec, phases), 1_000), "create pods d/sum-")
        };
        assert_eq!(creates("  completions: 1\n  parallelism: 1", &[]), 1);
        assert_eq!(creates("  completions: 5\n  parallelism: 3", &["Running"]), 2);
        assert_eq!(creates("  completions: 5\n  parallelism: 3", &["Succeeded"; 4]), 1);
        assert_eq!(creates("  completions: 1\n  parallelism: 1", &["Running"]), 0);
        assert_eq!(creates("  parallelism: 2", &["Succeeded", "Running"]), 0);
    }

    #[test]
    fn enough_successes_complete_it() {
        let text = shown(&snapshot("  completions: 1\n  parallelism: 1", &["Succeeded"]), 0);
        assert!(text.contains("(Normal Completed: Job completed)"), "{text}");
        assert!(text.contains(r#""type":"Complete""#) && text.contains("completionTime"), "{text}");
        assert_eq!(count(&text, "create"), 0);
    }

    #[test]
    fn failures_cost_a_pause_and_then_the_job() {
        let spec = "  completions: 1\n  parallelism: 1\n  backoffLimit: 2";
        let one = plan(&snapshot(spec, &["Failed"]), at(4));
        assert_eq!(one.again, Some(Duration::from_secs(6)));
        assert_eq!(count(&text(&one.writes), "create"), 0);
        assert_eq!(count(&shown(&snapshot(spec, &["Failed"]), 10), "create"), 1);
        let text = shown(&snapshot(spec, &["Failed", "Failed", "Failed"]), 1_000);
        assert!(text.contains("Warning BackoffLimitExceeded"), "{text}");
        assert!(text.contains(r#""type":"Failed""#), "{text}");
    }

    #[test]
    fn what_was_counted_stays_counted() {
        let mut world = snapshot("  completions: 2\n  parallelism: 1", &["Succeeded"]);
        let status = JobStatus { succeeded: Some(2), ..JobStatus::default() };
        Arc::make_mut(&mut world.job).status = Some(status);
        assert!(shown(&world, 0).contains(r#""type":"Complete""#));
    }

    #[test]
    fn a_suspended_job_has_no_pods() {
        let text = shown(&snapshot("  completions: 1\n  suspend: true", &["Running"]), 0);
        assert_eq!(count(&text, "delete pods d/p0"), 1);
        assert!(text.contains("JobSuspended"), "{text}");
    }

    #[test]
    fn a_finished_job_goes_when_its_time_is_over() {
        let mut world = snapshot("  completions: 1\n  ttlSecondsAfterFinished: 60", &[]);
        let conditions = vec![condition("Complete", "True", "", "", at(0))];
        let status = JobStatus { conditions: Some(conditions), ..JobStatus::default() };
        Arc::make_mut(&mut world.job).status = Some(status);
        assert_eq!(plan(&world, at(20)).again, Some(Duration::from_secs(40)));
        assert_eq!(shown(&world, 60), "delete jobs.batch d/sum\n");
    }
}
