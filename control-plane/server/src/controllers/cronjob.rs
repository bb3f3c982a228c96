//! CronJobs: a Job, or a request to a Service, whenever a schedule says so.
//!
//! Owns: the Jobs a CronJob controls (their creation, their deletion when one replaces another or
//! the history is full) and the CronJob's status.
//!
//! ```text
//!  due? ─► too late for startingDeadlineSeconds ─► told, not started
//!       ─► one still runs: Allow starts beside it, Forbid waits, Replace deletes it first
//!       ─► Job NAME-MINUTE (or the request) ─► lastScheduleTime
//! ```
//!
//! Of several missed times only the latest is caught up on. A Job's name follows from the time that
//! it is for, and that time stands in an annotation of the Job: so a plan made twice makes one Job,
//! and the status follows from the Jobs there are.
//!
//! With the annotation [`REQUEST`] (as `POST http://reports:8080/nightly`) nothing is started: the
//! request is sent to that Service of the CronJob's namespace, with the time that was due in the
//! header `wherry-cron-due`. It is sent at most once, after its time was noted in the status; an
//! answer of 2xx counts as success, anything else is told by an event, and an answer takes a minute
//! at most. While the Service has no Pod the request waits for one, and brings a workload back whose
//! autoscaler has `minReplicas: 0`. Requests overlap only where the schedule is shorter than the
//! guest is quick; concurrencyPolicy is about Jobs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use wherry_resources::cron::{self, Schedule};

use super::cache::{Cache, Change, Key};
use super::errands::{CALL_TIMEOUT, Call};
use super::events::Note;
use super::owners::{controller_of, controller_reference};
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Target, Write, status_patch};

/// Asks for a request instead of a Job: `METHOD http://SERVICE[:PORT][/PATH]`.
pub const REQUEST: &str = "wherry.dev/request";
/// The time that a Job is for.
const DUE: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are a sign of a clock that was wrong.
const MISSED_MAX: usize = 100;
/// Finished Jobs kept when the CronJob does not say.
const SUCCEEDED_KEPT: i32 = 3;
const FAILED_KEPT: i32 = 1;
const COMPONENT: &str = "cronjob-controller";

/// What a plan for one CronJob reads.
#[derive(Default)]
pub struct Snapshot {
    pub cron_job: Arc<CronJob>,
    /// Jobs it controls.
    pub jobs: Vec<Arc<Job>>,
}

pub const CONTROLLER: Controller = Controller { name: "cronjob", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<CronJob>().is_some() {
        keys.push(change.key.clone());
    }
    for job in change.states::<Job>() {
        let key = controller_of(&job.metadata).and_then(|owner| cache.by_uid(&owner.uid));
        keys.extend(key.filter(|key| key.kind.is("batch", "CronJob")).cloned());
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(cron_job) = view.cache.get::<CronJob>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let uid = cron_job.metadata.uid.as_deref().unwrap_or("");
    let snapshot = Snapshot { jobs: view.cache.controlled(uid), cron_job };
    plan(&snapshot, view.now)
}

/// How a Job ended.
fn ending(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    ["Complete", "Failed"]
        .into_iter()
        .find(|kind| conditions.iter().any(|held| held.type_ == *kind && held.status == "True"))
}

/// The time that a Job is for; none for one that a person made of the template.
fn due_of(job: &Job) -> Option<Timestamp> {
    job.metadata.annotations.as_ref()?.get(DUE)?.parse().ok()
}

/// Cleans up, says what is, and starts what is due.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let cron_job = &*snapshot.cron_job;
    let spec = &cron_job.spec;
    let mut plan = Plan::default();
    if cron_job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    clean_up(snapshot, &mut plan);
    let status = status(snapshot, &mut plan);
    let last = status.last_schedule_time.as_ref().map(|time| time.0);
    let changed = status_patch(cron_job.status.as_ref(), &status);
    let says = changed.is_some();
    plan.writes.extend(changed.map(|patch| Write::patch_status(cron_job, patch)));
    if spec.suspend == Some(true) {
        return plan;
    }
    let (schedule, zone) = match read(spec) {
        Ok(read) => read,
        Err((reason, message)) => {
            plan.writes.push(tell(cron_job, true, reason, message));
            return plan;
        }
    };
    if let Some(next) = schedule.next_after(&zone, now)
        && let Ok(left) = Duration::try_from(next.duration_since(now))
    {
        plan.look_again(left);
    }
    // One write a CronJob at a time: each carries the revision that the one before would change.
    if !says && let Some(due) = due(cron_job, spec, &schedule, &zone, last, now, &mut plan) {
        start(snapshot, spec, &zone, due, &mut plan);
    }
    plan
}

fn read(spec: &CronJobSpec) -> Result<(Schedule, TimeZone), (&'static str, String)> {
    let zone = cron::zone(spec.time_zone.as_deref().unwrap_or(""));
    let zone = zone.map_err(|error| ("UnknownTimeZone", format!("invalid timeZone: {error}")))?;
    let schedule = Schedule::parse(&spec.schedule).map_err(|error| {
        ("UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule))
    })?;
    Ok((schedule, zone))
}

/// Deletes finished Jobs beyond the history, the oldest first.
fn clean_up(snapshot: &Snapshot, plan: &mut Plan) {
    let Snapshot { cron_job, jobs } = snapshot;
    let spec = &cron_job.spec;
    let limits = [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(SUCCEEDED_KEPT)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(FAILED_KEPT)),
    ];
    for (kind, limit) in limits {
        let mut over: Vec<&Arc<Job>> = jobs
            .iter()
            .filter(|job| ending(job) == Some(kind) && job.metadata.deletion_timestamp.is_none())
            .collect();
        over.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.clone());
            (started.map(|time| time.0), name_of(&job.metadata).to_string())
        });
        let surplus = over.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        plan.writes.extend(over.into_iter().take(surplus).map(|job| delete(cron_job, job)));
    }
}

fn delete(cron_job: &CronJob, job: &Job) -> Write {
    let message = format!("Deleted job {}", name_of(&job.metadata));
    Write::delete(job).noting(Note::normal(COMPONENT, cron_job, "SuccessfulDelete", message))
}

/// What the Jobs say: who is active, what was due last, what succeeded last. News are told.
fn status(snapshot: &Snapshot, plan: &mut Plan) -> CronJobStatus {
    let cron_job = &*snapshot.cron_job;
    let old = cron_job.status.clone().unwrap_or_default();
    let was_active: BTreeSet<&str> =
        old.active.iter().flatten().filter_map(|held| held.uid.as_deref()).collect();
    let mut active = Vec::new();
    let mut last_due = old.last_schedule_time.clone().map(|time| time.0);
    let mut last_success = old.last_successful_time.clone().map(|time| time.0);
    for job in &snapshot.jobs {
        last_due = last_due.max(due_of(job));
        let uid = job.metadata.uid.as_deref().unwrap_or("");
        let Some(ending) = ending(job) else {
            active.push(reference(job));
            continue;
        };
        if was_active.contains(uid) {
            let name = name_of(&job.metadata);
            let message = format!("Saw completed job: {name}, condition: {ending}");
            plan.writes.push(tell(cron_job, false, "SawCompletedJob", message));
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
        last_success = last_success.max(completed.map(|time| time.0));
    }
    let there: BTreeSet<&str> =
        snapshot.jobs.iter().filter_map(|job| job.metadata.uid.as_deref()).collect();
    // Whom a newer Job has replaced was deleted here, and that was told.
    let replaced = cron_job.spec.concurrency_policy.as_deref() == Some("Replace")
        && last_due > old.last_schedule_time.as_ref().map(|time| time.0);
    for missing in old.active.iter().flatten().filter(|_| !replaced) {
        if missing.uid.as_deref().is_some_and(|uid| !there.contains(uid)) {
            let name = missing.name.as_deref().unwrap_or("");
            let message = format!("Active job went missing: {name}");
            plan.writes.push(tell(cron_job, false, "MissingJob", message));
        }
    }
    CronJobStatus {
        active: (!active.is_empty()).then_some(active),
        last_schedule_time: last_due.map(Time),
        last_successful_time: last_success.map(Time),
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_string()),
        kind: Some("Job".to_string()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn tell(cron_job: &CronJob, warning: bool, reason: &'static str, message: String) -> Write {
    Write::tell(match warning {
        true => Note::warning(COMPONENT, cron_job, reason, message),
        false => Note::normal(COMPONENT, cron_job, reason, message),
    })
}

/// The latest time that nothing was started for, unless it is too late for it.
fn due(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    last: Option<Timestamp>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Timestamp> {
    let created = cron_job.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let since = last.unwrap_or(created);
    let due = schedule.latest(zone, since, now)?;
    let grace = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let counted_from = grace.and_then(|grace| now.checked_sub(grace).ok());
    let counted_from = counted_from.map_or(since, |from| from.max(since));
    if schedule.count(zone, counted_from, now, MISSED_MAX + 1) > MISSED_MAX {
        let message = "too many missed start times. Set or decrease \
            .spec.startingDeadlineSeconds or check clock skew";
        plan.writes.push(tell(cron_job, true, "TooManyMissedTimes", message.to_string()));
    }
    if grace.is_some_and(|grace| now.duration_since(due) > grace) {
        let at = zone.to_datetime(due);
        let message = format!("Missed scheduled time to start a job: {at} {}", zone_name(zone));
        plan.writes.push(tell(cron_job, true, "MissSchedule", message));
        return None;
    }
    Some(due)
}

fn zone_name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or("UTC")
}

fn start(
    snapshot: &Snapshot,
    spec: &CronJobSpec,
    zone: &TimeZone,
    due: Timestamp,
    plan: &mut Plan,
) {
    let cron_job = &*snapshot.cron_job;
    let annotations = cron_job.metadata.annotations.as_ref();
    if let Some(request) = annotations.and_then(|all| all.get(REQUEST)) {
        plan.writes.push(match call(cron_job, request, due) {
            Ok(call) => Action::Call(Box::new(call)).into(),
            Err(why) => tell(cron_job, true, "InvalidRequest", why),
        });
        return;
    }
    let active: Vec<&Arc<Job>> = snapshot.jobs.iter().filter(|job| ending(job).is_none()).collect();
    let policy = spec.concurrency_policy.as_deref().unwrap_or("Allow");
    if policy == "Forbid" && !active.is_empty() {
        let message = "Not starting job because prior execution is running and concurrency \
            policy is Forbid";
        plan.writes.push(tell(cron_job, false, "JobAlreadyActive", message.to_string()));
        return;
    }
    if policy == "Replace" {
        let going = active.iter().filter(|job| job.metadata.deletion_timestamp.is_none());
        plan.writes.extend(going.map(|job| delete(cron_job, job)));
    }
    let job = job_of(cron_job, spec, zone, due);
    let message = format!("Created job {}", name_of(&job.metadata));
    let note = Note::normal(COMPONENT, cron_job, "SuccessfulCreate", message);
    plan.writes.push(Write::create(&job).noting(note));
}

/// The Job for a time.
fn job_of(cron_job: &CronJob, spec: &CronJobSpec, zone: &TimeZone, due: Timestamp) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = due.display_with_offset(zone.to_offset(due)).to_string();
    annotations.insert(DUE.to_string(), local);
    // As Kubernetes names them; times within a minute, which only `@every` has, by their second.
    let second = due.as_second();
    let number = if second.rem_euclid(60) == 0 { second.div_euclid(60) } else { second };
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{number}", name_of(&cron_job.metadata))),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// What an annotation asks for.
struct Asked<'a> {
    method: Method,
    url: &'a str,
    service: &'a str,
    port: &'a str,
    path: &'a str,
}

impl Asked<'_> {
    /// Reads `POST http://reports:8080/nightly`, or says what is wrong with it.
    fn read(text: &str) -> Result<Asked<'_>, &'static str> {
        let (method, url) = text.trim().split_once(' ').ok_or("has no method")?;
        let method = method.parse::<Method>().map_err(|_| "has no known method")?;
        let rest = url.trim().strip_prefix("http://").ok_or("has no http URL")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (service, port) = authority.split_once(':').unwrap_or((authority, ""));
        let label = |text: &str| {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            text.bytes().all(plain)
        };
        if service.is_empty() || !label(service) || !label(port) {
            return Err("names no Service");
        }
        Ok(Asked { method, url, service, port, path })
    }
}

/// The Service that a request goes to which was due a moment ago and has not been answered: while
/// it has no Pod, the request waits for one.
pub fn waits_for(cron_job: &CronJob, now: Timestamp) -> Option<&str> {
    let text = cron_job.metadata.annotations.as_ref()?.get(REQUEST)?;
    let status = cron_job.status.as_ref()?;
    let due = status.last_schedule_time.as_ref()?.0;
    let answered = status.last_successful_time.as_ref().is_some_and(|time| time.0 >= due);
    let over = now.duration_since(due).unsigned_abs() >= CALL_TIMEOUT;
    let asked = Asked::read(text).ok()?;
    (!answered && !over).then_some(asked.service)
}

/// The request that an annotation asks for.
fn call(cron_job: &CronJob, text: &str, due: Timestamp) -> Result<Call, String> {
    let wrong = |why: &str| {
        format!(
            "the annotation {REQUEST} {text:?} {why}: want METHOD http://SERVICE[:PORT][/PATH] \
             with a Service of this namespace"
        )
    };
    let Asked { method, url, service, port, path } = Asked::read(text).map_err(wrong)?;
    let namespace = cron_job.metadata.namespace.as_deref().unwrap_or("");
    let place = if port.is_empty() { service.to_string() } else { format!("{service}:{port}") };
    let path = format!("/api/v1/namespaces/{namespace}/services/{place}/proxy/{path}");
    if path.parse::<http::Uri>().is_err() {
        return Err(wrong("has no path that can be sent"));
    }
    let meta = &cron_job.metadata;
    let about = wherry_resources::events::reference(&json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {
            "namespace": namespace, "name": meta.name, "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
    }));
    let shown = format!("{method} {url}");
    Ok(Call { target: Target::of(cron_job), about, due, method, path, shown })
}

#[cfg(test)]
mod tests;
