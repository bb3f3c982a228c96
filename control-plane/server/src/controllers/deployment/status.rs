//! What a Deployment says of itself: counts, and the conditions that `kubectl rollout status` waits
//! for.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::super::replicaset::name_of;
use super::super::write::{Write, status_patch};
use super::{REVISION, Rollout, Set};

/// What a plan did that the status must tell.
#[derive(Default)]
pub struct Step {
    /// The new ReplicaSet's name, when this plan creates it.
    pub created: Option<String>,
    /// The collision count, when this plan met one.
    pub collisions: Option<i32>,
}

type Conditions = Vec<DeploymentCondition>;

/// The patch of status and revision annotation, and when the progress deadline runs out.
pub fn patch(
    rollout: &Rollout<'_>,
    step: &Step,
    failure: Option<&str>,
    now: Timestamp,
) -> (Option<Write>, Option<Duration>) {
    let deployment = rollout.deployment;
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(rollout, &old);
    status.collision_count = step.collisions.or(old.collision_count);
    let mut conditions = old.conditions.clone().unwrap_or_default();
    available(rollout, &status, &mut conditions, now);
    let again = progressing(rollout, step, &old, &status, &mut conditions, now);
    replica_failure(rollout, failure, &mut conditions, now);
    status.conditions = (!conditions.is_empty()).then_some(conditions);

    let mut body = status_patch(Some(&old), &status);
    let held = deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
    let revision = rollout.revision().to_string();
    let has_set = rollout.new.is_some() || step.created.is_some();
    if has_set && held != Some(&revision) {
        let body = body.get_or_insert_with(|| json!({}));
        body["metadata"]["annotations"][REVISION] = revision.into();
    }
    (body.map(|body| Write::patch_status(deployment, body)), again)
}

fn counts(rollout: &Rollout<'_>, old: &DeploymentStatus) -> DeploymentStatus {
    let sum = |count: fn(&Set) -> i32| rollout.all().map(count).fold(0, i32::saturating_add);
    let some = |count: i32| (count > 0).then_some(count);
    let available = sum(Set::available);
    // Unknown as long as one ReplicaSet has not counted them.
    let leaving = rollout.all().map(|set| match &set.object.status {
        Some(status) => status.terminating_replicas,
        None => Some(0),
    });
    DeploymentStatus {
        terminating_replicas: leaving.sum(),
        observed_generation: rollout.deployment.metadata.generation,
        replicas: some(sum(Set::actual)),
        updated_replicas: some(rollout.new.as_ref().map_or(0, Set::actual)),
        ready_replicas: some(sum(Set::ready)),
        available_replicas: some(available),
        unavailable_replicas: some(sum(Set::asked).saturating_sub(available)),
        ..old.clone()
    }
}

fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(kind))
}

fn remove(conditions: &mut Conditions, kind: &str) {
    conditions.retain(|condition| condition.type_.as_deref() != Some(kind));
}

/// Says something under a condition's type. `refresh` marks it as news even when status and reason
/// stay.
fn say(
    conditions: &mut Conditions,
    kind: &str,
    (status, reason, message): (&str, &str, String),
    refresh: bool,
    now: Timestamp,
) {
    let old = find(conditions, kind);
    let same_status = old.is_some_and(|old| old.status.as_deref() == Some(status));
    let same_reason = old.is_some_and(|old| old.reason.as_deref() == Some(reason));
    if same_status && same_reason && !refresh {
        return;
    }
    let since = old.filter(|_| same_status).and_then(|old| old.last_transition_time.clone());
    let condition = DeploymentCondition {
        type_: Some(kind.to_string()),
        status: Some(status.to_string()),
        reason: Some(reason.to_string()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    };
    remove(conditions, kind);
    conditions.push(condition);
}

fn available(
    rollout: &Rollout<'_>,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
    now: Timestamp,
) {
    let enough = status.available_replicas.unwrap_or(0) >= rollout.limits.fewest_available();
    let what = if enough {
        let message = "Deployment has minimum availability.".to_string();
        ("True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.".to_string();
        ("False", "MinimumReplicasUnavailable", message)
    };
    say(conditions, "Available", what, false, now);
}

/// Keeps the condition `Progressing`; returns when its deadline runs out.
fn progressing(
    rollout: &Rollout<'_>,
    step: &Step,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
    now: Timestamp,
) -> Option<Duration> {
    const KIND: &str = "Progressing";
    let deadline = rollout.spec.progress_deadline_seconds.filter(|seconds| *seconds < i32::MAX);
    let Some(deadline) = deadline else {
        remove(conditions, KIND);
        return None;
    };
    let held = find(conditions, KIND).cloned();
    let reason = held.as_ref().and_then(|held| held.reason.as_deref()).unwrap_or("");
    if rollout.spec.paused == Some(true) {
        if reason != "ProgressDeadlineExceeded" {
            let message = "Deployment is paused".to_string();
            say(conditions, KIND, ("Unknown", "DeploymentPaused", message), false, now);
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        let message = "Deployment is resumed".to_string();
        say(conditions, KIND, ("Unknown", "DeploymentResumed", message), true, now);
    }
    let name = match (&rollout.new, &step.created) {
        (Some(new), _) => new.name().to_string(),
        (None, Some(created)) => created.clone(),
        (None, None) => name_of(&rollout.deployment.metadata).to_string(),
    };
    if step.created.is_some() {
        let message = format!("Created new replica set \"{name}\"");
        say(conditions, KIND, ("True", "NewReplicaSetCreated", message), true, now);
    } else if held.is_none() && rollout.new.is_some() {
        let message = format!("Found existing replica set \"{name}\"");
        say(conditions, KIND, ("True", "FoundNewReplicaSet", message), true, now);
    }
    if is_complete(rollout, status) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        say(conditions, KIND, ("True", "NewReplicaSetAvailable", message), false, now);
        return None;
    }
    if reason == "NewReplicaSetAvailable" && status.replicas == status.updated_replicas {
        // Only scaled, or Pods were lost: the rollout itself stays complete.
        return None;
    }
    if has_moved(old, status) {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        say(conditions, KIND, ("True", "ReplicaSetUpdated", message), true, now);
    }
    overdue(conditions, &name, i64::from(deadline), now)
}

fn overdue(
    conditions: &mut Conditions,
    name: &str,
    deadline: i64,
    now: Timestamp,
) -> Option<Duration> {
    let held = find(conditions, "Progressing")?;
    // After a finished rollout the clock starts with the next one's first move.
    if let Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable") = held.reason.as_deref() {
        return None;
    }
    let from = held.last_update_time.as_ref()?.0;
    let left = SignedDuration::from_secs(deadline) - now.duration_since(from);
    if let Ok(left) = Duration::try_from(left)
        && !left.is_zero()
    {
        return Some(left);
    }
    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
    say(conditions, "Progressing", ("False", "ProgressDeadlineExceeded", message), false, now);
    None
}

fn is_complete(rollout: &Rollout<'_>, status: &DeploymentStatus) -> bool {
    let wanted = rollout.limits.replicas;
    let all = [status.updated_replicas, status.replicas, status.available_replicas];
    rollout.new.is_some() && all.iter().all(|count| count.unwrap_or(0) == wanted)
}

/// Whether the new counts are nearer to the goal than the old ones.
fn has_moved(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let outdated =
        |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

/// Repeats what the ReplicaSets, or this controller's own writes, failed with.
fn replica_failure(
    rollout: &Rollout<'_>,
    failure: Option<&str>,
    conditions: &mut Conditions,
    now: Timestamp,
) {
    const KIND: &str = "ReplicaFailure";
    let of_set = |set: &Set| {
        let conditions = set.object.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|found| found.type_.as_deref() == Some(KIND))?;
        Some(found.message.clone().unwrap_or_default())
    };
    let message = failure.map(str::to_string).or_else(|| rollout.all().find_map(of_set));
    match message {
        Some(message) => say(conditions, KIND, ("True", "FailedCreate", message), false, now),
        None => remove(conditions, KIND),
    }
}
