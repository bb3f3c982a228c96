//! Which volumes a claim can have, and which of them it gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
};

use super::super::affinity::term_holds;
use super::super::owners::selects;
use super::super::replicaset::name_of;
use super::{capacity, refers, requested};

const FILES: &str = "Filesystem";

/// Why a volume cannot be a claim's; what people can do about it is in the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    TooSmall,
    Class,
    Mode,
    Access,
}

impl Mismatch {
    pub fn sentence(self) -> &'static str {
        match self {
            Mismatch::TooSmall => "requested PV is too small",
            Mismatch::Class => "storageClassName does not match",
            Mismatch::Mode => "incompatible volumeMode",
            Mismatch::Access => "incompatible accessMode",
        }
    }
}

/// Whether a volume is what a claim asks for, by what both say.
pub fn mismatch(
    volume: &PersistentVolumeSpec,
    claim: &PersistentVolumeClaimSpec,
) -> Option<Mismatch> {
    if capacity(volume) < requested(claim) {
        return Some(Mismatch::TooSmall);
    }
    let class = |class: &Option<String>| class.clone().unwrap_or_default();
    if class(&volume.storage_class_name) != class(&claim.storage_class_name) {
        return Some(Mismatch::Class);
    }
    let mode = |mode: &Option<String>| mode.clone().unwrap_or(FILES.to_string());
    if mode(&volume.volume_mode) != mode(&claim.volume_mode) {
        return Some(Mismatch::Mode);
    }
    let offered = volume.access_modes.as_deref().unwrap_or(&[]);
    let wanted = claim.access_modes.as_deref().unwrap_or(&[]);
    (!wanted.iter().all(|mode| offered.contains(mode))).then_some(Mismatch::Access)
}

/// Whether a volume can be used on a node.
pub fn reaches(volume: &PersistentVolumeSpec, node: &Node) -> bool {
    let affinity = volume.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let Some(required) = affinity else { return true };
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let name = name_of(&node.metadata);
    required.node_selector_terms.iter().any(|term| term_holds(name, labels, term))
}

/// The volume for a claim: one that names it already, else the smallest that will do. A claim that
/// waits for its consumer gets no other before the consumer's node is known.
pub fn best(
    volumes: &[Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    waits: bool,
    node: Option<&Node>,
) -> Option<Arc<PersistentVolume>> {
    let wanted = claim.spec.as_ref()?;
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes {
        let Some(spec) = &volume.spec else { continue };
        if volume.metadata.deletion_timestamp.is_some() || mismatch(spec, wanted).is_some() {
            continue;
        }
        if let Some(reference) = &spec.claim_ref {
            if refers(reference, claim) {
                return Some(volume.clone());
            }
            continue;
        }
        let selector = wanted.selector.as_ref();
        let selected =
            selector.is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()));
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let there = node.is_none_or(|node| reaches(spec, node));
        if !selected || !there || phase != Some("Available") || (waits && node.is_none()) {
            continue;
        }
        let size = |volume: &PersistentVolume| volume.spec.as_ref().map(capacity);
        if best.is_none_or(|best| size(volume) < size(best)) {
            best = Some(volume);
        }
    }
    best.cloned()
}
