//! Where a Pod's data is, or can be: claims, volumes and classes as far as they tie a Pod to nodes.
//!
//! A bound claim's volume says by its node affinity where it can be used. A claim whose class waits
//! for its first consumer gets the node that the scheduler chose in an annotation; who provisions
//! volumes makes one there, and with the claim bound the Pod is decided for again.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;

use super::cluster::NodeState;
use super::filter::{Reason, matches};

/// Tells the provisioner the node; Kubernetes' own name.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

struct Claim {
    deleting: bool,
    /// The volume, once it is bound.
    volume: Option<String>,
    class: String,
    once_by_one_pod: bool,
    selected_node: Option<String>,
}

/// Claims, volumes and classes.
#[derive(Default)]
pub struct Volumes {
    claims: HashMap<(String, String), Claim>,
    /// Node affinity of each volume; empty allows every node.
    volumes: HashMap<String, Vec<NodeSelectorTerm>>,
    /// Whether a class waits for its first consumer.
    classes: HashMap<String, bool>,
}

/// What a Pod's claims mean for its place.
#[derive(Debug, Default)]
pub struct Ties {
    /// One of each set of terms must hold on the node.
    affinities: Vec<Vec<NodeSelectorTerm>>,
    /// A claim is bound to a volume that is not there.
    lost: bool,
    /// Claims that wait for this Pod: name, and the node they were given before.
    pub waiting: Vec<(String, Option<String>)>,
}

/// The names of the claims that a Pod uses.
pub fn claims(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or("");
    let volumes = spec.volumes.iter().flatten();
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        // An ephemeral volume's claim is named after the Pod and the volume.
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    };
    volumes.filter_map(claim).collect()
}

impl Volumes {
    pub fn put_claim(&mut self, claim: &PersistentVolumeClaim) {
        let meta = &claim.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let spec = claim.spec.clone().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let modes = spec.access_modes.unwrap_or_default();
        let annotations = meta.annotations.as_ref();
        let claim = Claim {
            deleting: meta.deletion_timestamp.is_some(),
            volume: spec.volume_name.filter(|_| phase == Some("Bound")),
            class: spec.storage_class_name.unwrap_or_default(),
            once_by_one_pod: modes.iter().any(|mode| mode == "ReadWriteOncePod"),
            selected_node: annotations.and_then(|all| all.get(SELECTED_NODE)).cloned(),
        };
        self.claims.insert((text(&meta.namespace), text(&meta.name)), claim);
    }

    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        self.claims.remove(&(namespace.to_string(), name.to_string()));
    }

    pub fn put_volume(&mut self, volume: &PersistentVolume) {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.clone());
        let required = affinity.and_then(|affinity| affinity.required);
        let terms = required.map(|required| required.node_selector_terms).unwrap_or_default();
        self.volumes.insert(volume.metadata.name.clone().unwrap_or_default(), terms);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn put_class(&mut self, class: &StorageClass) {
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        self.classes.insert(class.metadata.name.clone().unwrap_or_default(), waits);
    }

    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    /// What these claims mean for a Pod; an error is a sentence for why no node can do.
    pub fn ties(
        &self,
        namespace: &str,
        names: &[String],
        in_use: impl Fn(&str) -> bool,
    ) -> Result<Ties, String> {
        let mut ties = Ties::default();
        for name in names {
            let Some(claim) = self.claims.get(&(namespace.to_string(), name.clone())) else {
                return Err(format!("persistentvolumeclaim {name:?} not found"));
            };
            if claim.deleting {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if claim.once_by_one_pod && in_use(name) {
                return Err(format!(
                    "persistentvolumeclaim {name:?} is used by another pod, and its access mode \
                     ReadWriteOncePod allows one only"
                ));
            }
            match &claim.volume {
                Some(volume) => match self.volumes.get(volume) {
                    Some(terms) if terms.is_empty() => {}
                    Some(terms) => ties.affinities.push(terms.clone()),
                    None => ties.lost = true,
                },
                None if self.classes.get(&claim.class) == Some(&true) => {
                    ties.waiting.push((name.clone(), claim.selected_node.clone()));
                }
                None => return Err("pod has unbound immediate PersistentVolumeClaims".into()),
            }
        }
        Ok(ties)
    }
}

impl Ties {
    /// Why a node cannot take the Pod.
    pub fn obstacle(&self, node: &NodeState) -> Option<Reason> {
        if self.lost {
            return Some(Reason::VolumeLost);
        }
        let holds = |terms: &Vec<NodeSelectorTerm>| terms.iter().any(|term| matches(node, term));
        (!self.affinities.iter().all(holds)).then_some(Reason::VolumeElsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::yaml;

    fn volumes() -> Volumes {
        let mut volumes = Volumes::default();
        volumes.put_class(&yaml(
            "metadata: {name: local}\nprovisioner: wherry.dev/local\n\
             volumeBindingMode: WaitForFirstConsumer",
        ));
        volumes.put_volume(&yaml(
            "metadata: {name: v}\nspec: {nodeAffinity: {required: {nodeSelectorTerms: \
             [{matchExpressions: [{key: host, operator: In, values: [a]}]}]}}}",
        ));
        for (name, spec, phase) in [
            ("bound", "{volumeName: v}", "Bound"),
            ("lost", "{volumeName: gone}", "Bound"),
            ("waits", "{storageClassName: local}", "Pending"),
            ("at-once", "{}", "Pending"),
            ("alone", "{volumeName: v, accessModes: [ReadWriteOncePod]}", "Bound"),
        ] {
            volumes.put_claim(&yaml(&format!(
                "metadata: {{name: {name}, namespace: d}}\nspec: {spec}\nstatus: {{phase: {phase}}}"
            )));
        }
        volumes
    }

    #[track_caller]
    fn check(claims: &[&str], in_use: bool, expected: &str) {
        let node = |name: &str| NodeState {
            name: name.to_string(),
            labels: [("host".to_string(), name.to_string())].into(),
            ..NodeState::default()
        };
        let names: Vec<String> = claims.iter().map(|name| name.to_string()).collect();
        let text = match volumes().ties("d", &names, |_| in_use) {
            Err(sentence) => sentence,
            Ok(ties) => {
                let at = |name| ties.obstacle(&node(name)).map(|reason| reason.to_string());
                format!("a {:?}, b {:?}, waiting {:?}", at("a"), at("b"), ties.waiting)
            }
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn claims_tie_a_pod_to_nodes() {
        check(
            &["bound"],
            false,
            "a None, b Some(\"node(s) had volume node affinity conflict\"), waiting []",
        );
        check(&["waits"], false, "a None, b None, waiting [(\"waits\", None)]");
        check(&["at-once"], false, "pod has unbound immediate PersistentVolumeClaims");
        check(&["none"], false, "persistentvolumeclaim \"none\" not found");
        let lost = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
        check(&["lost"], false, &format!("a Some({lost:?}), b Some({lost:?}), waiting []"));
        check(
            &["alone"],
            true,
            "persistentvolumeclaim \"alone\" is used by another pod, and its access mode \
             ReadWriteOncePod allows one only",
        );
    }
}
