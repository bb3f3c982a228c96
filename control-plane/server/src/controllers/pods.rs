//! Facts about a Pod that several controllers ask for, and the one thing that several say of it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::write::Write;

/// The condition of a Pod that ends through no fault of its own.
pub const DISRUPTED: &str = "DisruptionTarget";

/// A condition of a Pod by its type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// The node it is bound to; empty when it is bound to none.
pub fn node(pod: &Pod) -> &str {
    spec(pod).and_then(|spec| spec.node_name.as_deref()).unwrap_or("")
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Ended, and will not start again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts for its owner: neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// When it became ready; `None` when it is not.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether a Pod has been ready for long enough, and if it is ready and has not: how long until
/// then.
pub fn availability(pod: &Pod, min_ready: Duration, now: Timestamp) -> (bool, Option<Duration>) {
    if !is_ready(pod) {
        return (false, None);
    }
    if min_ready.is_zero() {
        return (true, None);
    }
    let Some(since) = ready_since(pod) else { return (false, None) };
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if ready_for >= min_ready {
        return (true, None);
    }
    (false, Some(min_ready - ready_for))
}

/// Restarts of all containers, those that run first or beside the others included.
pub fn restarts(pod: &Pod) -> i32 {
    let lists = pod.status.iter().flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses].into_iter().flatten()
    });
    lists.flatten().map(|status| status.restart_count).fold(0, i32::saturating_add)
}

/// Says in a Pod's status why it ends, before it is deleted: Jobs judge it by that
/// (`podFailurePolicy`), and people. `lost` where no node will say how it ended. None when it has
/// been said, or the Pod has ended: then it can be deleted.
pub fn disrupted(
    pod: &Pod,
    reason: &str,
    message: &str,
    lost: bool,
    now: Timestamp,
) -> Option<Write> {
    let said = condition(pod, DISRUPTED).is_some_and(|held| held.status == "True");
    if said || is_finished(pod) {
        return None;
    }
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|held| held.type_ != DISRUPTED);
    let ready = |held: &&mut PodCondition| {
        matches!(held.type_.as_str(), "Ready" | "ContainersReady") && held.status == "True"
    };
    // What has failed serves nobody, whatever its node said last.
    for held in conditions.iter_mut().filter(ready).filter(|_| lost) {
        held.status = "False".to_string();
        held.reason = Some("PodFailed".to_string());
        held.last_transition_time = Some(Time(now));
    }
    conditions.push(PodCondition {
        type_: DISRUPTED.to_string(),
        status: "True".to_string(),
        reason: Some(reason.to_string()),
        message: Some(message.to_string()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    let mut status = json!({"conditions": conditions});
    if lost {
        status["phase"] = "Failed".into();
    }
    Some(Write::patch_status(pod, json!({"status": status})))
}

/// The names of the claims that a Pod uses.
pub fn claims(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or("");
    let volumes = spec(pod).and_then(|spec| spec.volumes.as_deref()).unwrap_or(&[]);
    let claim = |volume: &Volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        // An ephemeral volume's claim is named after the Pod and the volume.
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    };
    volumes.iter().filter_map(claim).collect()
}
