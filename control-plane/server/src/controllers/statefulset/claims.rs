//! The claims of a StatefulSet's Pods: when they are made, and who owns them.
//!
//! | `whenScaled` | `whenDeleted` | a wanted Pod's claim | a condemned Pod's claim |
//! |---|---|---|---|
//! | Retain | Retain | nobody's | nobody's |
//! | Retain | Delete | the set's | the set's |
//! | Delete | Retain | nobody's | the Pod's |
//! | Delete | Delete | the set's | the Pod's |
//!
//! What an owner's end does to its claims is the garbage collector's business.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::super::events::Note;
use super::super::owners::{controller_of, controller_reference};
use super::super::replicaset::name_of;
use super::super::write::Write;
use super::identity::{claims_of, ordinal, pod_name};
use super::{COMPONENT, State};

/// Whether a claim of this name would belong to a Pod of this set.
pub fn may_own(set: &StatefulSet, claim: &str) -> bool {
    set.spec.volume_claim_templates.iter().flatten().any(|template| {
        let rest = claim.strip_prefix(name_of(&template.metadata));
        let pod = rest.and_then(|rest| rest.strip_prefix('-'));
        pod.is_some_and(|pod| ordinal(name_of(&set.metadata), pod).is_some())
    })
}

fn deletes(state: &State<'_>) -> (bool, bool) {
    let policy = state.spec.persistent_volume_claim_retention_policy.as_ref();
    let is = |word: Option<&String>| word.is_some_and(|word| word == "Delete");
    (
        is(policy.and_then(|policy| policy.when_scaled.as_ref())),
        is(policy.and_then(|policy| policy.when_deleted.as_ref())),
    )
}

/// The claims of a Pod that are not there, as creations.
pub fn missing(state: &State<'_>, ordinal: i32) -> Vec<Write> {
    let (set, snapshot) = (state.set, state.snapshot);
    let of_set = name_of(&set.metadata);
    let (_, when_deleted) = deletes(state);
    let mut writes = Vec::new();
    for mut claim in claims_of(set, ordinal) {
        let name = name_of(&claim.metadata).to_string();
        if snapshot.claims.contains_key(&name) {
            continue;
        }
        if when_deleted {
            claim.metadata.owner_references = Some(vec![controller_reference(set)]);
        }
        let message = format!(
            "create Claim {name} Pod {} in StatefulSet {of_set} success",
            pod_name(of_set, ordinal)
        );
        let note = Note::normal(COMPONENT, set, "SuccessfulCreate", message);
        writes.push(Write::create(&claim).noting(note));
    }
    writes
}

/// Whether none of the claims that are there is on its way out, or will be because the Pod that
/// owned it is gone.
pub fn are_settled(state: &State<'_>, ordinal: i32) -> bool {
    let pod = pod_name(name_of(&state.set.metadata), ordinal);
    claims_of(state.set, ordinal).iter().all(|wanted| {
        let Some(held) = state.snapshot.claims.get(name_of(&wanted.metadata)) else { return true };
        let mut owners = held.metadata.owner_references.iter().flatten();
        held.metadata.deletion_timestamp.is_none()
            && !owners.any(|owner| owner.kind == "Pod" && owner.name == pod)
    })
}

/// The patches that give claims the owners they should have.
pub fn owners(state: &State<'_>) -> Vec<Write> {
    let (when_scaled, when_deleted) = deletes(state);
    let mut writes = Vec::new();
    let by_set = || when_deleted.then(|| controller_reference(state.set));
    for replica in &state.replicas {
        // Without its Pod a claim may still be owned by the one that is gone: then it goes, too.
        let Some(pod) = replica.pod else { continue };
        writes.extend(own(state, replica.ordinal, pod, by_set()));
    }
    for replica in &state.condemned {
        let Some(pod) = replica.pod else { continue };
        let owner = match when_scaled {
            true => Some(controller_reference(&**pod)),
            false => by_set(),
        };
        writes.extend(own(state, replica.ordinal, pod, owner));
    }
    writes
}

fn own(
    state: &State<'_>,
    ordinal: i32,
    pod: &Arc<Pod>,
    owner: Option<OwnerReference>,
) -> Vec<Write> {
    let set = state.set;
    let names = claims_of(set, ordinal);
    let held = names.iter().filter_map(|claim| state.snapshot.claims.get(name_of(&claim.metadata)));
    let patch = |claim: &Arc<PersistentVolumeClaim>| {
        let meta = &claim.metadata;
        let is_own = |owner: &OwnerReference| {
            Some(&owner.uid) == set.metadata.uid.as_ref()
                || owner.kind == "Pod" && owner.name == name_of(&pod.metadata)
        };
        // Somebody else's claim is used, and left to them.
        let foreign = controller_of(meta).is_some_and(|controller| !is_own(controller));
        let old = meta.owner_references.clone().unwrap_or_default();
        let mut new: Vec<OwnerReference> =
            old.iter().filter(|owner| !is_own(owner)).cloned().collect();
        new.extend(owner.clone());
        let same = |a: &[OwnerReference], b: &[OwnerReference]| {
            let uids = |owners: &[OwnerReference]| {
                let mut uids: Vec<String> = owners.iter().map(|owner| owner.uid.clone()).collect();
                uids.sort();
                uids
            };
            uids(a) == uids(b)
        };
        if foreign || meta.deletion_timestamp.is_some() || same(&old, &new) {
            return None;
        }
        Some(Write::patch(&**claim, json!({"metadata": {"ownerReferences": new}})))
    };
    held.filter_map(patch).collect()
}
