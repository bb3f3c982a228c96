//! Volumes: their phase, and what becomes of them after their claim.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, PersistentVolumeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::super::cache::Key;
use super::super::events::Note;
use super::super::reconcile::{Plan, View};
use super::super::replicaset::name_of;
use super::super::write::{Action, Target, Write, status_patch};
use super::*;

/// What a plan for one volume reads.
#[derive(Default)]
pub struct Snapshot {
    pub volume: Arc<PersistentVolume>,
    /// The claim of the name that it holds, whatever its uid.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
}

pub fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(volume) = view.cache.get::<PersistentVolume>("", key.name()) else {
        return Plan::default();
    };
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).map(claim_key);
    let claim = held.and_then(|held| view.cache.get(held.namespace(), held.name()));
    plan(&Snapshot { volume, claim }, view.now)
}

/// Says the phase; reclaims what is released; lets go of what is deleted and not bound.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let volume = &*snapshot.volume;
    let Some(spec) = &volume.spec else { return Plan::default() };
    let held = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let standing = standing(snapshot, spec);
    let mut writes = Vec::new();
    match standing {
        Standing::Free => writes.extend(phase(volume, "Available", None, now)),
        Standing::Bound => writes.extend(phase(volume, "Bound", None, now)),
        Standing::Expected => {}
        Standing::Unwanted => writes.push(let_go(volume)),
        Standing::Alone if held == "Released" && !deleting => {
            writes.extend(reclaim(volume, spec, now));
        }
        Standing::Alone if held == "Failed" => {}
        Standing::Alone => {
            let mut released = phase(volume, "Released", None, now);
            released.iter_mut().for_each(|write| write.unless_found = claim_of(spec));
            writes.extend(released);
        }
    }
    let protected = has_finalizer(&volume.metadata, VOLUME_PROTECTION);
    let settled = writes.is_empty();
    if deleting && protected && settled && held != "Bound" {
        writes.push(without_finalizer(volume, VOLUME_PROTECTION));
    }
    writes.into()
}

/// How a volume and its claim stand to each other.
enum Standing {
    /// Nobody's, or kept for a claim that is not there yet.
    Free,
    /// Its claim is there and is about to name it.
    Expected,
    Bound,
    /// Its claim has another volume.
    Unwanted,
    /// Its claim is gone.
    Alone,
}

fn standing(snapshot: &Snapshot, spec: &PersistentVolumeSpec) -> Standing {
    let Some(reference) = &spec.claim_ref else { return Standing::Free };
    if reference.uid.as_deref().unwrap_or("").is_empty() {
        return Standing::Free;
    }
    let Some(claim) = snapshot.claim.as_ref().filter(|claim| refers(reference, claim)) else {
        return Standing::Alone;
    };
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
    match named {
        "" => Standing::Expected,
        name if name == name_of(&snapshot.volume.metadata) => Standing::Bound,
        _ => Standing::Unwanted,
    }
}

fn claim_of(spec: &PersistentVolumeSpec) -> Vec<(Key, String)> {
    let reference = spec.claim_ref.iter();
    let uid = |it: &ObjectReference| it.uid.clone().unwrap_or_default();
    reference.map(|reference| (claim_key(reference), uid(reference))).collect()
}

fn phase(
    volume: &PersistentVolume,
    phase: &str,
    message: Option<&str>,
    now: Timestamp,
) -> Option<Write> {
    let old = volume.status.clone().unwrap_or_default();
    if old.phase.as_deref() == Some(phase) {
        return None;
    }
    let status = PersistentVolumeStatus {
        phase: Some(phase.to_string()),
        message: message.map(str::to_string),
        reason: None,
        last_phase_transition_time: Some(Time(now)),
    };
    let patch = status_patch(volume.status.as_ref(), &status);
    patch.map(|patch| Write::patch_status(volume, patch))
}

/// A volume that was made for a claim which has another goes; one that was only taken is free
/// again.
fn let_go(volume: &PersistentVolume) -> Write {
    if annotation(&volume.metadata, PROVISIONED_BY) == Some(LOCAL) {
        return Write::delete(volume);
    }
    let by_controller = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
    let body = match by_controller {
        true => json!({
            "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null},
        }),
        // An administrator keeps it for the claim of this name.
        false => json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}}),
    };
    Write::patch(volume, body)
}

fn reclaim(volume: &PersistentVolume, spec: &PersistentVolumeSpec, now: Timestamp) -> Vec<Write> {
    let policy = spec.persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain");
    let by = annotation(&volume.metadata, PROVISIONED_BY);
    let mut writes: Vec<Write> = match (policy, by) {
        ("Delete", Some(LOCAL)) => {
            let target = Target { revision: String::new(), ..Target::of(volume) };
            let action = Action::Delete { target, grace_seconds: None, policy: None };
            vec![action.into()]
        }
        // Who made it deletes it.
        ("Delete", Some(_)) => Vec::new(),
        ("Delete", None) => {
            let message = "nothing here can delete what is behind this volume; remove it by hand, \
                then delete the PersistentVolume";
            failed(volume, "VolumeFailedDelete", message, now)
        }
        ("Recycle", _) => {
            let message = "nothing here recycles volumes; clean it by hand, then take \
                spec.claimRef off the PersistentVolume";
            failed(volume, "VolumeFailedRecycle", message, now)
        }
        _ => Vec::new(),
    };
    writes.iter_mut().for_each(|write| write.unless_found = claim_of(spec));
    writes
}

fn failed(
    volume: &PersistentVolume,
    reason: &'static str,
    message: &str,
    now: Timestamp,
) -> Vec<Write> {
    let note = Note::warning(COMPONENT, volume, reason, message.to_string());
    let phase = phase(volume, "Failed", Some(message), now);
    phase.map(|write| write.noting(note)).into_iter().collect()
}
