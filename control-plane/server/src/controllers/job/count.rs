//! Counting Pods that ended, each once, and what follows from their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::super::pods;
use super::policy::{self, Outcome, Verdict};
use super::{index, is_indexed, is_tracked, pause, replaces_ended_only, some};

/// A Job's Pods, and what has been counted of them.
pub struct Tally<'a> {
    /// Neither ended nor on their way out.
    pub active: Vec<&'a Arc<Pod>>,
    /// On their way out, and not ended.
    pub terminating: Vec<&'a Arc<Pod>>,
    pub succeeded: usize,
    pub failed: usize,
    /// Indexes that succeeded and that failed for good.
    pub completed: BTreeSet<i32>,
    pub failed_indexes: BTreeSet<i32>,
    /// Pods whose finalizer may go: they stand in the status, or need not.
    pub released: Vec<&'a Arc<Pod>>,
    /// Why the Job fails, if a rule about a Pod's failure says so.
    pub fatal: Option<String>,
    ready: usize,
    /// Indexes that the status says succeeded.
    stored: BTreeSet<i32>,
    counted: (usize, usize),
    uncounted: (BTreeSet<String>, BTreeSet<String>),
    /// Failures of each index, and when the newest was.
    failures: BTreeMap<i32, (usize, Option<Timestamp>)>,
    /// When Pods failed that are still there, and when the newest success was.
    failed_at: Vec<Option<Timestamp>>,
    succeeded_at: Option<Timestamp>,
}

impl<'a> Tally<'a> {
    pub fn of(
        job: &Job,
        spec: &JobSpec,
        pods: &'a [Arc<Pod>],
        old: &JobStatus,
        decided: Option<&Verdict>,
    ) -> Tally<'a> {
        let held = old.uncounted_terminated_pods.clone().unwrap_or_default();
        let listed = |uids: Option<Vec<String>>| -> BTreeSet<String> {
            uids.unwrap_or_default().into_iter().collect()
        };
        let (held_succeeded, held_failed) = (listed(held.succeeded), listed(held.failed));
        let count = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(0);
        let completions = spec.completions.unwrap_or(0);
        let indexes =
            |text: &Option<String>| index::parse(text.as_deref().unwrap_or(""), completions);
        let mut tally = Tally {
            active: Vec::new(),
            terminating: Vec::new(),
            succeeded: 0,
            failed: 0,
            completed: indexes(&old.completed_indexes),
            failed_indexes: indexes(&old.failed_indexes),
            released: Vec::new(),
            fatal: None,
            ready: 0,
            stored: indexes(&old.completed_indexes),
            counted: (count(old.succeeded), count(old.failed)),
            uncounted: (BTreeSet::new(), BTreeSet::new()),
            failures: BTreeMap::new(),
            failed_at: Vec::new(),
            succeeded_at: None,
        };
        let tracked: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| is_tracked(&pod.metadata))
            .filter_map(|pod| pod.metadata.uid.as_deref())
            .collect();
        // Those whose finalizer is gone have been let go because they stand here: now they count.
        let is_gone = |uid: &&String| !tracked.contains(uid.as_str());
        if !is_indexed(spec) {
            tally.counted.0 += held_succeeded.iter().filter(is_gone).count();
        }
        tally.counted.1 += held_failed.iter().filter(is_gone).count();
        for pod in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let known = held_succeeded.contains(&uid) || held_failed.contains(&uid);
            tally.take(job, spec, pod, known, decided);
        }
        tally.settle(spec);
        tally
    }

    fn take(
        &mut self,
        job: &Job,
        spec: &JobSpec,
        pod: &'a Arc<Pod>,
        known: bool,
        decided: Option<&Verdict>,
    ) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let tracked = is_tracked(&pod.metadata);
        let phase = phase(pod);
        let leaving = pods::is_deleting(pod);
        match phase {
            "Succeeded" | "Failed" => {}
            _ if leaving => self.terminating.push(pod),
            _ => {
                self.ready += usize::from(pods::is_ready(pod));
                self.active.push(pod);
            }
        }
        let index = index::of_pod(&pod.metadata).filter(|_| is_indexed(spec));
        if phase == "Succeeded" {
            self.succeeded_at = self.succeeded_at.max(ended(pod));
            if tracked && let Some(index) = index {
                let asked = index < spec.completions.unwrap_or(0);
                if asked {
                    self.completed.insert(index);
                }
                self.released.extend((!asked || self.stored.contains(&index)).then_some(pod));
            } else if tracked {
                self.uncounted.0.insert(uid);
                self.released.extend(known.then_some(pod));
            }
            return;
        }
        // A Pod that is deleted by somebody may never get to say that it failed.
        let lost = leaving && (!replaces_ended_only(spec) || decided.is_some_and(|it| it.failed));
        if phase != "Failed" && !lost {
            return;
        }
        let outcome = policy::outcome(job, spec, pod);
        let ended = ended(pod);
        if let Some(index) = index {
            let ignored = outcome == Outcome::Ignored;
            let count = index::failures_before(&pod.metadata) + usize::from(!ignored);
            let entry = self.failures.entry(index).or_default();
            entry.0 = entry.0.max(count);
            entry.1 = entry.1.max(ended);
            if outcome == Outcome::FailsIndex && tracked {
                self.failed_indexes.insert(index);
            }
        }
        if outcome == Outcome::Ignored {
            self.released.extend(tracked.then_some(pod));
            return;
        }
        self.failed_at.push(ended);
        if let Outcome::FailsJob(why) = outcome {
            self.fatal.get_or_insert(why);
        }
        if tracked {
            self.uncounted.1.insert(uid);
            self.released.extend(known.then_some(pod));
        }
    }

    /// Adds up, and closes the indexes that failed too often.
    fn settle(&mut self, spec: &JobSpec) {
        self.succeeded = match is_indexed(spec) {
            true => self.completed.len(),
            false => self.counted.0 + self.uncounted.0.len(),
        };
        self.failed = self.counted.1 + self.uncounted.1.len();
        if let Some(limit) = spec.backoff_limit_per_index {
            let limit = usize::try_from(limit).unwrap_or(0);
            let over = self.failures.iter().filter(|(_, (count, _))| *count > limit);
            self.failed_indexes.extend(over.map(|(index, _)| *index));
            self.failed_indexes.retain(|index| !self.completed.contains(index));
            // The newest failed Pod of an index carries its count until the next one has it.
            let (failures, closed) = (&self.failures, &self.failed_indexes);
            let next: BTreeMap<i32, usize> = self
                .active
                .iter()
                .filter_map(|pod| {
                    let index = index::of_pod(&pod.metadata)?;
                    Some((index, index::failures_before(&pod.metadata)))
                })
                .collect();
            self.released.retain(|pod| {
                let Some(index) = index::of_pod(&pod.metadata) else { return true };
                let count = failures.get(&index).map_or(0, |(count, _)| *count);
                phase(pod) != "Failed"
                    || closed.contains(&index)
                    || index::failures_before(&pod.metadata) + 1 < count
                    || next.get(&index).is_some_and(|carried| *carried >= count)
            });
        }
    }

    /// Whether every Pod that ended has been counted and let go.
    pub fn is_settled(&self) -> bool {
        self.uncounted.0.is_empty()
            && self.uncounted.1.is_empty()
            && self.released.is_empty()
            && self.completed == self.stored
    }

    /// Indexes with Pods in whose place no others come yet.
    pub fn held_indexes(&self, spec: &JobSpec) -> BTreeSet<i32> {
        let ending: &[&Arc<Pod>] = if replaces_ended_only(spec) { &self.terminating } else { &[] };
        let pods = self.active.iter().chain(ending);
        pods.filter_map(|pod| index::of_pod(&pod.metadata)).collect()
    }

    /// Indexes with Pods that run.
    pub fn busy_indexes(&self) -> usize {
        let indexes = self.active.iter().filter_map(|pod| index::of_pod(&pod.metadata));
        indexes.collect::<BTreeSet<i32>>().len()
    }

    /// Pods that are one too many: of an index that has another, is done, or is not asked for.
    pub fn twins(&self, spec: &JobSpec) -> Vec<&'a Arc<Pod>> {
        if !is_indexed(spec) {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let mut twins = Vec::new();
        for pod in &self.active {
            let Some(index) = index::of_pod(&pod.metadata) else { continue };
            let closed = self.completed.contains(&index) || self.failed_indexes.contains(&index);
            if closed || index >= spec.completions.unwrap_or(0) || !seen.insert(index) {
                twins.push(*pod);
            }
        }
        twins
    }

    pub fn failures_of(&self, index: i32) -> usize {
        self.failures.get(&index).map_or(0, |(count, _)| *count)
    }

    pub fn pause_of(&self, index: i32, now: Timestamp) -> Option<Duration> {
        let (count, last) = self.failures.get(&index).copied()?;
        pause(count, last, now)
    }

    /// What is left of the pause after the newest failure. A success makes up for all failures
    /// before it.
    pub fn pause(&self, now: Timestamp) -> Option<Duration> {
        let last = self.failed_at.iter().copied().max().flatten();
        let since = self.failed_at.iter().filter(|at| **at > self.succeeded_at).count();
        let failures = if self.succeeded_at.is_some() { since } else { self.failed };
        pause(failures, last, now)
    }

    /// Restarts of containers in Pods that have not ended.
    pub fn restarts(&self) -> i32 {
        self.active.iter().map(|pod| pods::restarts(pod)).fold(0, i32::saturating_add)
    }

    /// Writes the numbers into the status.
    pub fn tell(&self, spec: &JobSpec, status: &mut JobStatus) {
        status.active = some(self.active.len());
        status.ready = Some(i32::try_from(self.ready).unwrap_or(i32::MAX));
        status.terminating = Some(i32::try_from(self.terminating.len()).unwrap_or(i32::MAX));
        status.failed = some(self.counted.1);
        status.succeeded = match is_indexed(spec) {
            true => some(self.completed.len()),
            false => some(self.counted.0),
        };
        let list = |uids: &BTreeSet<String>| {
            (!uids.is_empty()).then(|| uids.iter().cloned().collect::<Vec<_>>())
        };
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(&self.uncounted.0),
            failed: list(&self.uncounted.1),
        });
        if is_indexed(spec) {
            let text = index::text(&self.completed);
            status.completed_indexes = (!text.is_empty()).then_some(text);
            status.failed_indexes =
                spec.backoff_limit_per_index.map(|_| index::text(&self.failed_indexes));
        }
    }
}

/// The phase; a Pod of which its node has let go before it said how it ended has failed.
fn phase(pod: &Pod) -> &str {
    let let_go = pods::is_deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
    match pods::phase(pod) {
        ended @ ("Succeeded" | "Failed") => ended,
        _ if let_go => "Failed",
        phase => phase,
    }
}

/// When a Pod's last container ended; for one that is on its way out, when that began.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let ends = statuses.into_iter().flatten().filter_map(|status| {
        let terminated = status.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(|time| time.0)
    });
    ends.max().or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
}
