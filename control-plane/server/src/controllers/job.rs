//! Jobs: Pods that run to their end, so many of them, with so many failures allowed.
//!
//! Owns: the Pods a Job controls, the finalizer [`TRACKING`] on them, and the Job's status. Jobs
//! with `managedBy` are somebody else's.
//!
//! ```text
//!  count what ended (count) ─► verdict: goes on · SuccessCriteriaMet · FailureTarget
//!    └─ goes on: as many Pods as parallelism and what is left allow, after the pause of failures
//!    └─ else: Pods end ─► all have ended and are counted ─► Complete · Failed ─► time to live
//! ```
//!
//! Invariants: each Pod that ended is counted once: its uid stands in the status before the
//! finalizer is taken off it, and is taken out of the status when the finalizer is seen to be gone;
//! a Job whose end is decided makes no Pod; a Pod that is taken away on purpose (suspended, too
//! many) loses the finalizer first, so that it is not counted as failed; a Pod that nobody controls
//! is not held: it is adopted, or let go.

mod count;
mod index;
mod policy;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::owners::{adopt_and_release, controller_of, controller_reference, selects};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Target, Write, status_patch};
use count::Tally;
use policy::Verdict;

/// Failed Pods allowed when the Job does not say.
const BACKOFF_LIMIT: i32 = 6;
/// The pause after the first failed Pod; it doubles with each.
const PAUSE_FIRST: SignedDuration = SignedDuration::from_secs(10);
const PAUSE_MAX: SignedDuration = SignedDuration::from_secs(600);
/// Pods created by one plan.
const BURST_MAX: usize = 500;
/// Who manages Jobs that name nobody.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Holds a Pod that ended until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const COMPONENT: &str = "job-controller";

/// What a plan for one Job reads.
#[derive(Default)]
pub struct Snapshot {
    pub job: Arc<Job>,
    /// Pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods in its namespace that nobody controls.
    pub strays: Vec<Arc<Pod>>,
    /// Why Pods could not be made last time.
    pub failure: Option<String>,
    /// The newest revision known: the seed of new names.
    pub revision: u64,
}

pub const CONTROLLER: Controller = Controller { name: "job", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if let Some((_, after)) = change.of::<Job>() {
        keys.push(change.key.clone());
        if after.is_none() {
            // Its Pods are nobody's, and nobody will count them.
            let uid = change.meta().uid.as_deref().unwrap_or("");
            keys.extend(cache.dependents(uid).filter(|key| key.kind.is("", "Pod")).cloned());
        }
    }
    for pod in change.states::<Pod>() {
        let Some(owner) = controller_of(&pod.metadata) else {
            keys.extend(is_tracked(&pod.metadata).then(|| change.key.clone()));
            let namespace = change.key.namespace();
            let jobs = cache.within::<Job>(namespace).filter(|job| means(job, &pod.metadata));
            keys.extend(jobs.map(|job| Key::of::<Job>(namespace, name_of(&job.metadata))));
            continue;
        };
        match cache.by_uid(&owner.uid) {
            Some(key) => keys.extend(Some(key).filter(|key| key.kind.is("batch", "Job")).cloned()),
            None if owner.kind == "Job" && is_tracked(&pod.metadata) => {
                keys.push(change.key.clone());
            }
            None => {}
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    if key.kind.is("", "Pod") {
        return orphan(view, key).into_iter().collect::<Vec<_>>().into();
    }
    let Some(job) = view.cache.get::<Job>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = job.metadata.uid.as_deref().unwrap_or("");
    let snapshot = Snapshot {
        pods: view.cache.controlled(uid),
        strays: view.cache.strays(key.namespace()),
        failure: view.failure.map(str::to_string),
        revision: view.cache.revision(),
        job,
    };
    plan(&snapshot, view.now)
}

/// Lets go of a Pod that nobody controls, or whose Job is gone, once the API server says so, too.
fn orphan(view: &View<'_>, key: &Key) -> Option<Write> {
    let pod = view.cache.get::<Pod>(key.namespace(), key.name())?;
    if !is_tracked(&pod.metadata) {
        return None;
    }
    let mut write = untracked(&pod);
    if let Some(owner) = controller_of(&pod.metadata) {
        if view.cache.by_uid(&owner.uid).is_some() {
            return None;
        }
        write.unless_found =
            vec![(Key::of::<Job>(key.namespace(), &owner.name), owner.uid.clone())];
    }
    Some(write)
}

/// Whether a Job's selector matches a Pod.
fn means(job: &Job, pod: &ObjectMeta) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, pod.labels.as_ref()))
}

/// Adopts Pods that nobody controls, to be counted from now on (`manualSelector`), and lets go of
/// those that the selector matches no more; their finalizers are taken by [`orphan`].
fn claim(snapshot: &Snapshot) -> Vec<Write> {
    let job = &*snapshot.job;
    let Some(selector) = job.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
        return Vec::new();
    };
    let mut writes = adopt_and_release(job, selector, &snapshot.pods, &[]);
    for pod in snapshot.strays.iter().filter(|pod| means(job, &pod.metadata)) {
        let meta = &pod.metadata;
        if meta.deletion_timestamp.is_some() {
            continue;
        }
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.push(controller_reference(job));
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        finalizers.extend((!is_tracked(meta)).then(|| TRACKING.to_string()));
        let body = json!({"metadata": {"ownerReferences": owners, "finalizers": finalizers}});
        writes.push(Write::patch(&**pod, body));
    }
    writes
}

fn is_tracked(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// Takes the finalizer off a Pod.
fn untracked(pod: &Pod) -> Write {
    let finalizers = pod.metadata.finalizers.iter().flatten();
    let rest: Vec<&String> = finalizers.filter(|finalizer| *finalizer != TRACKING).collect();
    Write::patch(pod, json!({"metadata": {"finalizers": rest}}))
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether only Pods that have ended are replaced, and not those that are about to.
fn replaces_ended_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

fn some(count: usize) -> Option<i32> {
    (count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX))
}

/// Counts, decides whether the Job is over, creates or deletes Pods, and writes the status.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let job = &*snapshot.job;
    let Some(spec) = &job.spec else { return Plan::default() };
    if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
        return Plan::default();
    }
    let old = job.status.clone().unwrap_or_default();
    let over = ["Complete", "Failed"].iter().find_map(|kind| find(&old, kind));
    if over.is_some() || job.metadata.deletion_timestamp.is_some() {
        let tracked = snapshot.pods.iter().filter(|pod| is_tracked(&pod.metadata));
        let writes: Vec<Write> = tracked.map(|pod| untracked(pod)).collect();
        return match over.filter(|_| writes.is_empty()) {
            Some(over) if job.metadata.deletion_timestamp.is_none() => {
                finished(job, spec, over, now)
            }
            _ => writes.into(),
        };
    }
    let claims = claim(snapshot);
    if !claims.is_empty() {
        return claims.into();
    }
    let suspended = spec.suspend == Some(true);
    let mut status = JobStatus {
        start_time: old.start_time.clone().or((!suspended).then_some(Time(now))),
        ..old.clone()
    };
    let decided = policy::decided(&old);
    let tally = Tally::of(job, spec, &snapshot.pods, &old, decided.as_ref());
    let verdict = decided.or_else(|| policy::verdict(spec, &tally, &status, now));
    let mut plan = Plan::default();
    match &verdict {
        Some(verdict) => conclude(job, verdict, &tally, &mut status, &mut plan, now),
        None if suspended => take_away(job, &tally.active, tally.active.len(), &mut plan),
        None => size(snapshot, spec, &tally, &mut plan, now),
    }
    suspend(job, &mut status, suspended && verdict.is_none(), &mut plan, now);
    if let (Some(limit), Some(start)) = (spec.active_deadline_seconds, &status.start_time)
        && verdict.is_none()
        && !suspended
    {
        let left = SignedDuration::from_secs(limit).saturating_sub(now.duration_since(start.0));
        plan.look_again(Duration::try_from(left).unwrap_or_default());
    }
    tally.tell(spec, &mut status);
    plan.writes.extend(tally.released.iter().map(|pod| untracked(pod)));
    let patch = status_patch(job.status.as_ref(), &status);
    plan.writes.extend(patch.map(|patch| Write::patch_status(job, patch)));
    plan
}

/// The end is decided: what runs is ended, and when nothing runs any more and all is counted, the
/// Job says that it is over.
fn conclude(
    job: &Job,
    verdict: &Verdict,
    tally: &Tally<'_>,
    status: &mut JobStatus,
    plan: &mut Plan,
    now: Timestamp,
) {
    plan.writes = tally.active.iter().map(|pod| delete(job, pod)).collect();
    let (first, last) = match verdict.failed {
        true => ("FailureTarget", "Failed"),
        false => ("SuccessCriteriaMet", "Complete"),
    };
    let mut kinds = Vec::new();
    if find(status, first).is_none() {
        kinds.push(first);
    }
    if tally.active.is_empty() && tally.terminating.is_empty() && tally.is_settled() {
        kinds.push(last);
        if verdict.failed {
            let message = verdict.message.clone();
            let note = Note::warning(COMPONENT, job, verdict.note(), message);
            plan.writes.push(Write::tell(note));
        } else {
            status.completion_time = Some(Time(now));
            let message = "Job completed".to_string();
            let note = Note::normal(COMPONENT, job, "Completed", message);
            plan.writes.push(Write::tell(note));
        }
    }
    for kind in kinds {
        let said = condition(kind, "True", &verdict.reason, &verdict.message, now);
        status.conditions.get_or_insert_default().push(said);
    }
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

fn suspend(job: &Job, status: &mut JobStatus, suspended: bool, plan: &mut Plan, now: Timestamp) {
    let held = status.conditions.iter().flatten().find(|held| held.type_ == "Suspended");
    let stands = held.is_some_and(|held| held.status == "True");
    if suspended == stands {
        return;
    }
    let (word, reason, message, note) = match suspended {
        true => ("True", "JobSuspended", "Job suspended", "Suspended"),
        false => ("False", "JobResumed", "Job resumed", "Resumed"),
    };
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|held| held.type_ != "Suspended");
    conditions.push(condition("Suspended", word, reason, message, now));
    let note = Note::normal(COMPONENT, job, note, message.to_string());
    plan.writes.push(Write::tell(note));
    // The deadline counts from the moment it runs.
    status.start_time = (!suspended).then_some(Time(now));
}

/// Takes Pods away that are not to be counted: first the finalizer, then the Pod.
fn take_away(job: &Job, pods: &[&Arc<Pod>], surplus: usize, plan: &mut Plan) {
    let mut pods = pods.to_vec();
    pods.sort_by_key(|pod| {
        let meta = &pod.metadata;
        (is_tracked(meta), pods::is_ready(pod), name_of(meta).to_string())
    });
    for pod in pods.into_iter().take(surplus) {
        if is_tracked(&pod.metadata) {
            plan.writes.push(untracked(pod));
            continue;
        }
        plan.writes.push(delete(job, pod));
    }
}

fn delete(job: &Job, pod: &Pod) -> Write {
    let message = format!("Deleted pod: {}", name_of(&pod.metadata));
    Write::delete(pod).noting(Note::normal(COMPONENT, job, "SuccessfulDelete", message))
}

/// Creates Pods up to the parallelism, after the pause that failures cost, or takes away what is
/// too much.
fn size(snapshot: &Snapshot, spec: &JobSpec, tally: &Tally<'_>, plan: &mut Plan, now: Timestamp) {
    let job = &*snapshot.job;
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let left = match (spec.completions, is_indexed(spec)) {
        // No more than one step could use are counted: there may be very many.
        (Some(_), true) => {
            let usable = tally.active.len() + tally.terminating.len() + BURST_MAX;
            index::open(spec, tally).take(usable).count() + tally.busy_indexes()
        }
        (Some(completions), false) => {
            usize::try_from(completions).unwrap_or(0).saturating_sub(tally.succeeded)
        }
        // Without a number the first success lets the others end, and no more are made.
        (None, _) if tally.succeeded > 0 => tally.active.len(),
        (None, _) => usize::MAX,
    };
    let wanted = parallelism.min(left);
    let twins: Vec<&Arc<Pod>> = tally.twins(spec);
    if !twins.is_empty() {
        let count = twins.len();
        return take_away(job, &twins, count, plan);
    }
    if tally.active.len() > wanted {
        let surplus = tally.active.len() - wanted;
        return take_away(job, &tally.active, surplus, plan);
    }
    let ending = if replaces_ended_only(spec) { tally.terminating.len() } else { 0 };
    let mut missing = wanted.saturating_sub(tally.active.len() + ending).min(BURST_MAX);
    if missing == 0 {
        return;
    }
    if let Some(failure) = &snapshot.failure {
        let message = format!("Error creating: {failure}");
        plan.writes.push(Write::tell(Note::warning(COMPONENT, job, "FailedCreate", message)));
        missing = 1;
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    if !per_index && let Some(left) = tally.pause(now) {
        plan.look_again(left);
        return;
    }
    let mut open = index::open(spec, tally);
    let uid = job.metadata.uid.as_deref().unwrap_or("");
    let mut made = 0;
    while made < missing {
        let seed = format!("{uid}/{}/{made}", snapshot.revision);
        let pod = match is_indexed(spec) {
            false => index::pod_of(job, spec, None, &seed),
            true => {
                let Some(index) = open.next() else { return };
                let failures = tally.failures_of(index);
                if per_index && let Some(left) = tally.pause_of(index, now) {
                    plan.look_again(left);
                    continue;
                }
                index::pod_of(job, spec, Some((index, failures)), &seed)
            }
        };
        let message = format!("Created pod: {}", name_of(&pod.metadata));
        let note = Note::normal(COMPONENT, job, "SuccessfulCreate", message);
        plan.writes.push(Write::create(&pod).noting(note));
        made += 1;
    }
}

/// What is left of the pause after so many failures, the newest of which was then.
fn pause(failures: usize, last: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(failures.checked_sub(1)?).unwrap_or(u32::MAX).min(16);
    let pause = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
    let left = pause - now.duration_since(last?);
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
        // Its Pods go first. Whoever has given it more time meanwhile is heeded.
        _ => {
            let (target, policy) = (Target::of(job), Some("Foreground"));
            vec![Action::Delete { target, grace_seconds: None, policy }.into()].into()
        }
    }
}

#[cfg(test)]
mod tests;
