//! PersistentVolumes and the claims for them: who gets which, the volumes that are made for claims,
//! and what becomes of both in the end.
//!
//! Owns: `spec.claimRef` of volumes that it binds, `spec.volumeName` of claims, the status of both,
//! their protecting finalizers, and the volumes of the class provisioner [`LOCAL`].
//!
//! ```text
//!  claim Pending ─► a volume fits (matching) ─┐
//!               └─► its class makes one ──────┴► volume names the claim ─► claim names the volume
//!                   (provision)                    ─► both say Bound
//!  claim gone ─► volume Released ─► Retain: stays · Delete: goes, and its node removes the folder
//! ```
//!
//! A binding is three writes, one after the other, each planned from what the one before left: the
//! volume's side decides, so two claims cannot get one volume.
//!
//! Invariants: a claim counts as gone only when the API server says so at that moment
//! (`unless_found`): two watches may be apart, and a volume that is released by mistake is lost
//! data; a claim stays while a Pod on a node uses it, a volume while it is bound.

mod claim;
pub mod matching;
mod provision;
mod volume;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeSpec, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use wherry_resources::quantity::Quantity;

use super::cache::{Cache, Change, Key};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

/// The provisioner of volumes that are folders of a node.
pub const LOCAL: &str = "wherry.dev/local";
/// What classes say that make no volumes.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The node that the scheduler chose for a claim's first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const COMPONENT: &str = "persistentvolume-controller";

pub const CONTROLLER: Controller = Controller { name: "volumes", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if let Some((_, after)) = change.of::<PersistentVolumeClaim>() {
        keys.push(change.key.clone());
        for claim in change.states::<PersistentVolumeClaim>() {
            let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            keys.extend(named.map(|name| Key::of::<PersistentVolume>("", name)));
        }
        if after.is_none() {
            let (namespace, name) = (change.key.namespace(), change.key.name());
            let held = cache.all::<PersistentVolume>().filter(|volume| {
                let spec = volume.spec.as_ref();
                spec.and_then(|spec| spec.claim_ref.as_ref())
                    .is_some_and(|claim| is_for(claim, namespace, name))
            });
            keys.extend(held.map(|it| Key::of::<PersistentVolume>("", name_of(&it.metadata))));
        }
    } else if let Some((_, after)) = change.of::<PersistentVolume>() {
        keys.push(change.key.clone());
        for volume in change.states::<PersistentVolume>() {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            keys.extend(claim.map(claim_key));
        }
        let free = |volume: &PersistentVolume| {
            volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        };
        if after.is_some_and(free) {
            keys.extend(unbound(cache));
        }
    } else if change.of::<StorageClass>().is_some() {
        keys.extend(unbound(cache));
    }
    // A claim that is on its way out waits for the Pods that use it.
    for pod in change.states::<Pod>() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        for name in pods::claims(pod) {
            let claim = cache.get::<PersistentVolumeClaim>(namespace, &name);
            if claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
                keys.push(Key::of::<PersistentVolumeClaim>(namespace, &name));
            }
        }
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    match key.kind.kind {
        "PersistentVolume" => volume::reconcile(view, key),
        _ => claim::reconcile(view, key),
    }
}

/// Claims that wait for a volume, and those that lost theirs: it may be back.
fn unbound(cache: &Cache) -> impl Iterator<Item = Key> {
    let claims = cache.all::<PersistentVolumeClaim>();
    let waiting = claims.filter(|claim| {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        phase != Some("Bound")
    });
    waiting.map(|claim| {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
        Key::of::<PersistentVolumeClaim>(namespace, name_of(&claim.metadata))
    })
}

fn claim_key(reference: &ObjectReference) -> Key {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Key::of::<PersistentVolumeClaim>(&text(&reference.namespace), &text(&reference.name))
}

fn is_for(reference: &ObjectReference, namespace: &str, name: &str) -> bool {
    reference.namespace.as_deref() == Some(namespace) && reference.name.as_deref() == Some(name)
}

/// Whether a volume's reference names this claim, and not an earlier one of the same name.
fn refers(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let meta = &claim.metadata;
    let uid = reference.uid.as_deref().unwrap_or("");
    is_for(reference, meta.namespace.as_deref().unwrap_or(""), name_of(meta))
        && (uid.is_empty() || meta.uid.as_deref() == Some(uid))
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The amount of storage in a list of resources; 0 where it says nothing.
fn storage(amounts: Option<&BTreeMap<String, Amount>>) -> Quantity {
    let amount = amounts.and_then(|amounts| amounts.get("storage"));
    amount.and_then(|amount| Quantity::parse(&amount.0).ok()).unwrap_or(Quantity::ZERO)
}

fn requested(spec: &PersistentVolumeClaimSpec) -> Quantity {
    storage(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

fn capacity(spec: &PersistentVolumeSpec) -> Quantity {
    storage(spec.capacity.as_ref())
}

/// Whether the provisioner of folders made it.
fn is_local(spec: &PersistentVolumeSpec) -> bool {
    spec.csi.as_ref().is_some_and(|csi| csi.driver == LOCAL)
}

/// Whether new claims that name no class get this one.
fn is_default(class: &StorageClass) -> bool {
    annotation(&class.metadata, DEFAULT_CLASS) == Some("true")
        && class.metadata.deletion_timestamp.is_none()
}

/// The class of claims that name none: the newest of those that say so.
fn default_class(cache: &Cache) -> Option<String> {
    let classes = cache.all::<StorageClass>().filter(|class| is_default(class));
    let newest = classes.max_by_key(|class| {
        let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, std::cmp::Reverse(name_of(&class.metadata).to_string()))
    });
    newest.map(|class| name_of(&class.metadata).to_string())
}

/// Takes a finalizer off an object.
fn without_finalizer<T: super::cache::Typed>(object: &T, finalizer: &str) -> Write {
    let finalizers = object.metadata().finalizers.iter().flatten();
    let rest: Vec<&String> = finalizers.filter(|name| *name != finalizer).collect();
    Write::patch(object, serde_json::json!({"metadata": {"finalizers": rest}}))
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|name| name == finalizer)
}

#[cfg(test)]
mod tests;
