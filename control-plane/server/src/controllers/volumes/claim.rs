//! Claims: finding or making the volume, saying that it is bound, growing, ending.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use super::super::cache::Key;
use super::super::events::Note;
use super::super::pods;
use super::super::reconcile::{Plan, View};
use super::super::replicaset::name_of;
use super::super::write::{Write, status_patch};
use super::*;

/// What could not be made is tried again after this, as nothing tells when a node has room.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What a plan for one claim reads.
#[derive(Default)]
pub struct Snapshot {
    pub claim: Arc<PersistentVolumeClaim>,
    /// The volume that it names.
    pub volume: Option<Arc<PersistentVolume>>,
    /// All volumes; empty where the claim names one.
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub class: Option<Arc<StorageClass>>,
    /// The class of claims that name none.
    pub default_class: Option<String>,
    pub nodes: Vec<Arc<Node>>,
    /// Pods of its namespace.
    pub pods: Vec<Arc<Pod>>,
}

pub fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let cache = view.cache;
    let Some(claim) = cache.get::<PersistentVolumeClaim>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let spec = claim.spec.clone().unwrap_or_default();
    let name = spec.volume_name.filter(|name| !name.is_empty());
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let class = spec.storage_class_name.filter(|class| !class.is_empty());
    let snapshot = Snapshot {
        volume: name.as_ref().and_then(|name| cache.get("", name)),
        volumes: if name.is_none() { cache.all().collect() } else { Vec::new() },
        class: class.and_then(|class| cache.get("", &class)),
        default_class: default_class(cache),
        nodes: if name.is_none() { cache.all().collect() } else { Vec::new() },
        pods: if deleting { cache.within(key.namespace()).collect() } else { Vec::new() },
        claim,
    };
    plan(&snapshot, view.now)
}

/// Binds step by step; a claim that is on its way out is let go when nobody uses it.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Plan {
    let claim = &*snapshot.claim;
    let Some(spec) = &claim.spec else { return Plan::default() };
    if claim.metadata.deletion_timestamp.is_some() {
        return release(snapshot).into_iter().collect::<Vec<_>>().into();
    }
    if spec.volume_name.as_deref().is_none_or(str::is_empty) {
        if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume \
                is lost!";
            return lost(claim, "ClaimLost", message).into();
        }
        return seek(snapshot, spec);
    }
    settle(snapshot, spec)
}

/// A claim that is deleted stays while a Pod that has a node and has not ended uses it.
fn release(snapshot: &Snapshot) -> Option<Write> {
    let claim = &*snapshot.claim;
    let name = name_of(&claim.metadata);
    let uses = |pod: &&Arc<Pod>| {
        !pods::node(pod).is_empty()
            && !pods::is_finished(pod)
            && pods::claims(pod).iter().any(|used| used == name)
    };
    let in_use = snapshot.pods.iter().any(|pod| uses(&pod));
    let held = has_finalizer(&claim.metadata, CLAIM_PROTECTION);
    (held && !in_use).then(|| without_finalizer(claim, CLAIM_PROTECTION))
}

fn told(claim: &PersistentVolumeClaim, warning: bool, reason: &'static str, what: String) -> Write {
    Write::tell(match warning {
        true => Note::warning(COMPONENT, claim, reason, what),
        false => Note::normal(COMPONENT, claim, reason, what),
    })
}

/// Finds a volume for a claim that names none, or has one made.
fn seek(snapshot: &Snapshot, spec: &PersistentVolumeClaimSpec) -> Plan {
    let claim = &*snapshot.claim;
    let waits = snapshot
        .class
        .as_ref()
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let selected = annotation(&claim.metadata, SELECTED_NODE);
    let node = selected.and_then(|selected| {
        snapshot.nodes.iter().find(|node| name_of(&node.metadata) == selected)
    });
    let found = matching::best(&snapshot.volumes, claim, waits, node.map(|node| &**node));
    if let Some(volume) = found {
        return join(claim, &volume).into();
    }
    if spec.storage_class_name.is_none()
        && let Some(class) = &snapshot.default_class
    {
        return vec![Write::patch(claim, json!({"spec": {"storageClassName": class}}))].into();
    }
    let Some(class) = &snapshot.class else {
        let message = match spec.storage_class_name.as_deref().unwrap_or("") {
            "" => "no persistent volumes available for this claim and no storage class is set"
                .to_string(),
            name => format!("storageclass.storage.k8s.io {name:?} not found"),
        };
        let reason = if spec.storage_class_name.as_deref().unwrap_or("").is_empty() {
            "FailedBinding"
        } else {
            "ProvisioningFailed"
        };
        return vec![told(claim, reason != "FailedBinding", reason, message)].into();
    };
    if waits && selected.is_none() {
        let message = "waiting for first consumer to be created before binding".to_string();
        return vec![told(claim, false, "WaitForFirstConsumer", message)].into();
    }
    make(snapshot, spec, class, node)
}

/// Has the class make a volume.
fn make(
    snapshot: &Snapshot,
    spec: &PersistentVolumeClaimSpec,
    class: &StorageClass,
    node: Option<&Arc<Node>>,
) -> Plan {
    let claim = &*snapshot.claim;
    let fails = |message: String| {
        let told = told(claim, true, "ProvisioningFailed", message);
        Plan { writes: vec![told], again: Some(TRY_AGAIN) }
    };
    if class.provisioner == NO_PROVISIONER {
        let message = "no persistent volumes available for this claim and its class makes none";
        return vec![told(claim, false, "FailedBinding", message.to_string())].into();
    }
    if annotation(&claim.metadata, PROVISIONER) != Some(class.provisioner.as_str()) {
        let annotations = json!({PROVISIONER: class.provisioner});
        return vec![Write::patch(claim, json!({"metadata": {"annotations": annotations}}))].into();
    }
    if class.provisioner != LOCAL {
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner {:?} or \
             manually by the system administrator. If volume creation is delayed, please verify \
             that the provisioner is running and correctly registered.",
            class.provisioner
        );
        return vec![told(claim, false, "ExternalProvisioning", message)].into();
    }
    if let Some(obstacle) = provision::obstacle(spec) {
        return fails(obstacle);
    }
    let size = requested(spec);
    let selected = annotation(&claim.metadata, SELECTED_NODE);
    let node = match (node, selected) {
        (Some(node), _) => node,
        (None, Some(gone)) => {
            // The Pod is to be decided for anew.
            let annotations = json!({SELECTED_NODE: null});
            let message = format!("the selected node {gone} is gone");
            let note = Note::warning(COMPONENT, claim, "ProvisioningFailed", message);
            let patch = Write::patch(claim, json!({"metadata": {"annotations": annotations}}));
            return vec![patch.noting(note)].into();
        }
        (None, None) => {
            let found = provision::node_for(class, &snapshot.nodes, &snapshot.volumes, size);
            let Some(node) = found else {
                return fails(format!("no node that is ready and open has room for {size}"));
            };
            node
        }
    };
    if !provision::allows(class, node) {
        let name = name_of(&node.metadata);
        return fails(format!("the class's allowedTopologies do not allow node {name}"));
    }
    let promises = provision::Promises::of(&snapshot.volumes);
    if let Some(full) = provision::room(node, &promises, size) {
        return fails(full);
    }
    let volume = provision::volume_for(claim, spec, class, node);
    let message = format!("Successfully provisioned volume {}", name_of(&volume.metadata));
    let note = Note::normal(LOCAL, claim, "ProvisioningSucceeded", message);
    vec![Write::create(&volume).noting(note)].into()
}

/// The next step of a binding: the volume's side, then the claim's.
fn join(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Write> {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let wanted = provision::reference(claim);
    if reference.and_then(|reference| reference.uid.as_ref()) != wanted.uid.as_ref() {
        let mut body = json!({"spec": {"claimRef": wanted}});
        if reference.is_none() {
            body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
        }
        return vec![Write::patch(volume, body)];
    }
    let mut body = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
    if named.is_empty() {
        body["spec"]["volumeName"] = name_of(&volume.metadata).into();
        body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    vec![Write::patch(claim, body)]
}

/// A claim that names a volume: bound, on the way to it, or without luck.
fn settle(snapshot: &Snapshot, spec: &PersistentVolumeClaimSpec) -> Plan {
    let claim = &*snapshot.claim;
    let completed = annotation(&claim.metadata, BIND_COMPLETED).is_some();
    let Some(volume) = &snapshot.volume else {
        if completed {
            let key = Key::of::<PersistentVolume>("", spec.volume_name.as_deref().unwrap_or(""));
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            let mut writes = lost(claim, "ClaimLost", message);
            writes.iter_mut().for_each(|it| it.unless_found = vec![(key.clone(), String::new())]);
            return writes.into();
        }
        return Plan::default();
    };
    let held = volume.spec.clone().unwrap_or_default();
    match &held.claim_ref {
        Some(reference) if refers(reference, claim) => {}
        Some(_) if completed => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            return lost(claim, "ClaimMisbound", message).into();
        }
        Some(_) => {
            let name = name_of(&volume.metadata);
            let message = format!("volume {name:?} already bound to a different claim.");
            return vec![told(claim, true, "FailedBinding", message)].into();
        }
        None => {
            if let Some(mismatch) = matching::mismatch(&held, spec).filter(|_| !completed) {
                let name = name_of(&volume.metadata);
                let message =
                    format!("Cannot bind to requested volume {name:?}: {}", mismatch.sentence());
                return vec![told(claim, true, "VolumeMismatch", message)].into();
            }
        }
    }
    let uid = held.claim_ref.as_ref().and_then(|reference| reference.uid.as_ref());
    if uid != claim.metadata.uid.as_ref() || !completed {
        return join(claim, volume).into();
    }
    if is_local(&held) && requested(spec) > capacity(&held) {
        return grow(claim, volume, spec).into();
    }
    let old = claim.status.clone().unwrap_or_default();
    let status = PersistentVolumeClaimStatus {
        phase: Some("Bound".to_string()),
        access_modes: held.access_modes,
        // Of volumes that somebody else makes grow, that one says when it is done.
        capacity: match &old.capacity {
            Some(told) if !is_local_name(volume) => Some(told.clone()),
            _ => held.capacity,
        },
        ..old.clone()
    };
    let patch = status_patch(claim.status.as_ref(), &status);
    patch.map(|patch| Write::patch_status(claim, patch)).into_iter().collect::<Vec<_>>().into()
}

fn is_local_name(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(is_local)
}

/// A folder grows by being allowed more; admission has asked the class.
fn grow(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    spec: &PersistentVolumeClaimSpec,
) -> Vec<Write> {
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let size = requests.and_then(|requests| requests.get("storage"));
    let message = "the volume may hold more now".to_string();
    let note = Note::normal(LOCAL, claim, "FileSystemResizeSuccessful", message);
    vec![Write::patch(volume, json!({"spec": {"capacity": {"storage": size}}})).noting(note)]
}

fn lost(claim: &PersistentVolumeClaim, reason: &'static str, message: &str) -> Vec<Write> {
    let old = claim.status.clone().unwrap_or_default();
    let status = PersistentVolumeClaimStatus {
        phase: Some("Lost".to_string()),
        access_modes: None,
        capacity: None,
        ..old
    };
    let note = Note::warning(COMPONENT, claim, reason, message.to_string());
    let patch = status_patch(claim.status.as_ref(), &status);
    patch.map(|patch| Write::patch_status(claim, patch).noting(note)).into_iter().collect()
}
