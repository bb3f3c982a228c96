//! The built-in provisioner: a volume is a folder of one node, with a size that the node holds it
//! to.
//!
//! The volume names its node by affinity and its folder by the handle of the driver
//! [`LOCAL`](super::LOCAL); where that folder is, the node knows, makes it when a Pod first mounts
//! it, and removes it when the volume is gone that said `Delete`. What all volumes of a node may hold
//! together is what the node has for Pods (`ephemeral-storage`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use wherry_resources::quantity::Quantity;

use super::super::replicaset::name_of;
use super::matching::reaches;
use super::{LOCAL, PROVISIONED_BY, capacity, is_local};

/// The label of nodes by which a volume says where it is.
const HOST: &str = "kubernetes.io/hostname";

/// How a volume is called: after the claim's uid, so that no two ever have the same name.
pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or(""))
}

/// What a folder cannot be.
pub fn obstacle(spec: &PersistentVolumeClaimSpec) -> Option<String> {
    let modes = spec.access_modes.as_deref().unwrap_or(&[]);
    let many = modes.iter().find(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"));
    if let Some(mode) = many {
        return Some(format!(
            "a folder of one node cannot be {mode}; ask for ReadWriteOnce, or make a \
             PersistentVolume for an export that all nodes have mounted"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("a folder is no block device; ask for volumeMode Filesystem".to_string());
    }
    if spec.selector.is_some() {
        return Some("claim.spec.selector is not supported for dynamic provisioning".to_string());
    }
    let source = spec.data_source.is_some() || spec.data_source_ref.is_some();
    source.then(|| "a folder is made empty: dataSource is not supported".to_string())
}

/// The node that takes a claim that waits for nobody: ready, open, allowed by the class, and the
/// one with the fewest bytes promised.
pub fn node_for<'a>(
    class: &StorageClass,
    nodes: &'a [Arc<Node>],
    volumes: &[Arc<PersistentVolume>],
    size: Quantity,
) -> Option<&'a Arc<Node>> {
    let promises = Promises::of(volumes);
    let fit = nodes.iter().filter(|node| {
        is_open(node) && allows(class, node) && room(node, &promises, size).is_none()
    });
    fit.min_by_key(|node| (promises.on(node), name_of(&node.metadata).to_string()))
}

fn is_open(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let closed = spec.taints.iter().flatten().any(|taint| taint.effect != "PreferNoSchedule");
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let ready = conditions.any(|found| found.type_ == "Ready" && found.status == "True");
    ready && !closed && spec.unschedulable != Some(true)
}

/// Whether the class's topologies allow a node.
pub fn allows(class: &StorageClass, node: &Node) -> bool {
    let Some(terms) = class.allowed_topologies.as_ref().filter(|terms| !terms.is_empty()) else {
        return true;
    };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    terms.iter().any(|term| {
        let mut rules = term.match_label_expressions.iter().flatten();
        rules.all(|rule| labels.get(&rule.key).is_some_and(|value| rule.values.contains(value)))
    })
}

/// Bytes promised to the folders on nodes: read once, and then asked for any number of nodes.
pub struct Promises<'a> {
    by_host: HashMap<&'a str, i64>,
    /// Folders that say otherwise than [`volume_for`] where they are.
    others: Vec<&'a PersistentVolumeSpec>,
}

impl<'a> Promises<'a> {
    pub fn of(volumes: &'a [Arc<PersistentVolume>]) -> Promises<'a> {
        let mut promises = Promises { by_host: HashMap::new(), others: Vec::new() };
        let specs = volumes.iter().filter_map(|volume| volume.spec.as_ref());
        for spec in specs.filter(|spec| is_local(spec)) {
            match host_of(spec) {
                Some(host) => {
                    let held = promises.by_host.entry(host).or_default();
                    *held = held.saturating_add(capacity(spec).value());
                }
                None => promises.others.push(spec),
            }
        }
        promises
    }

    fn on(&self, node: &Node) -> i64 {
        let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOST));
        let by_host = host.and_then(|host| self.by_host.get(host.as_str())).copied().unwrap_or(0);
        let others = self.others.iter().filter(|spec| reaches(spec, node));
        others.map(|spec| capacity(spec).value()).fold(by_host, i64::saturating_add)
    }
}

/// The host of a volume whose affinity says nothing else.
fn host_of(spec: &PersistentVolumeSpec) -> Option<&str> {
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let [rule] = term.match_expressions.as_deref()? else { return None };
    let [host] = rule.values.as_deref()? else { return None };
    let plain = term.match_fields.as_ref().is_none_or(Vec::is_empty);
    (plain && rule.key == HOST && rule.operator == "In").then_some(host.as_str())
}

/// Why a node has no room for a folder of this size.
pub fn room(node: &Node, promises: &Promises<'_>, size: Quantity) -> Option<String> {
    let status = node.status.as_ref()?;
    let amounts = status.capacity.as_ref().or(status.allocatable.as_ref())?;
    let total = Quantity::parse(&amounts.get("ephemeral-storage")?.0).ok()?.value();
    let promised = promises.on(node);
    (promised.saturating_add(size.value()) > total).then(|| {
        format!(
            "node {} has no room for {size}: of its {total} bytes {promised} are promised to \
             other volumes",
            name_of(&node.metadata)
        )
    })
}

/// The volume for a claim on a node.
pub fn volume_for(
    claim: &PersistentVolumeClaim,
    spec: &PersistentVolumeClaimSpec,
    class: &StorageClass,
    node: &Node,
) -> PersistentVolume {
    let name = volume_name(claim);
    let labels = node.metadata.labels.as_ref();
    let host = labels.and_then(|labels| labels.get(HOST));
    let host = host.cloned().unwrap_or_else(|| name_of(&node.metadata).to_string());
    let rule = NodeSelectorRequirement {
        key: HOST.to_string(),
        operator: "In".to_string(),
        values: Some(vec![host]),
    };
    let terms = vec![NodeSelectorTerm { match_expressions: Some(vec![rule]), match_fields: None }];
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
    let mut size: BTreeMap<_, _> = requests.unwrap_or_default();
    size.retain(|name, _| name == "storage");
    let policy = class.reclaim_policy.clone().unwrap_or("Delete".to_string());
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_string(), LOCAL.to_string())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes.clone(),
            capacity: Some(size),
            claim_ref: Some(reference(claim)),
            csi: Some(CSIPersistentVolumeSource {
                driver: LOCAL.to_string(),
                volume_handle: name,
                ..CSIPersistentVolumeSource::default()
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: terms }),
            }),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: spec.storage_class_name.clone(),
            volume_mode: Some("Filesystem".to_string()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// How a volume names a claim.
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    let meta = &claim.metadata;
    ObjectReference {
        api_version: Some("v1".to_string()),
        kind: Some("PersistentVolumeClaim".to_string()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}
