//! Where a Pod's data is, or can be: claims, volumes and classes as far as they tie a Pod to nodes.
//!
//! A bound claim's volume says by its node affinity where it can be used, or by its labels in which
//! zone it is. A claim whose class waits for its first consumer gets the node that the scheduler
//! chose in an annotation; who provisions volumes makes one there, and with the claim bound the Pod
//! is decided for again.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;

use super::cluster::NodeState;
use super::filter::{Reason, matches};
use crate::controllers::volumes::{NO_PROVISIONER, SELECTED_NODE, matching};

/// Labels by which a volume without a node affinity says where it is; a node has the same.
const PLACES: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
/// Between the values of such a label, for a volume that is in several zones.
const PLACES_SEPARATOR: &str = "__";

/// A label, and values of which a node must have one.
type Place = (String, BTreeSet<String>);

struct Claim {
    deleting: bool,
    spec: PersistentVolumeClaimSpec,
    /// The volume, once it is bound.
    volume: Option<String>,
    class: String,
    once_by_one_pod: bool,
    selected_node: Option<String>,
}

struct Volume {
    spec: PersistentVolumeSpec,
    places: Vec<Place>,
    /// Whether a claim may still have it.
    free: bool,
}

struct Class {
    /// Whether its claims wait for their first consumer.
    waits: bool,
    /// Whether it makes volumes, rather than only naming those that are there.
    makes: bool,
    /// Where it makes them; empty allows every node.
    topologies: Vec<NodeSelectorTerm>,
}

/// Claims, volumes and classes.
#[derive(Default)]
pub struct Volumes {
    claims: HashMap<(String, String), Claim>,
    volumes: HashMap<String, Volume>,
    classes: HashMap<String, Class>,
}

/// What a Pod's claims mean for its place.
#[derive(Debug, Default)]
pub struct Ties {
    /// One of each set of terms must hold on the node.
    affinities: Vec<Vec<NodeSelectorTerm>>,
    /// All must hold on a node that says where it is.
    places: Vec<Place>,
    /// A claim is bound to a volume that is not there.
    lost: bool,
    /// Claims that wait for this Pod: name, and the node they were given before.
    pub waiting: Vec<(String, Option<String>)>,
}

impl Volumes {
    pub fn put_claim(&mut self, claim: &PersistentVolumeClaim) {
        let meta = &claim.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let spec = claim.spec.clone().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let modes = spec.access_modes.clone().unwrap_or_default();
        let annotations = meta.annotations.as_ref();
        let claim = Claim {
            deleting: meta.deletion_timestamp.is_some(),
            volume: spec.volume_name.clone().filter(|_| phase == Some("Bound")),
            class: spec.storage_class_name.clone().unwrap_or_default(),
            once_by_one_pod: modes.iter().any(|mode| mode == "ReadWriteOncePod"),
            selected_node: annotations.and_then(|all| all.get(SELECTED_NODE)).cloned(),
            spec,
        };
        self.claims.insert((text(&meta.namespace), text(&meta.name)), claim);
    }

    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        self.claims.remove(&(namespace.to_string(), name.to_string()));
    }

    pub fn put_volume(&mut self, volume: &PersistentVolume) {
        let spec = volume.spec.clone().unwrap_or_default();
        let free = spec.claim_ref.is_none() && volume.metadata.deletion_timestamp.is_none();
        let name = volume.metadata.name.clone().unwrap_or_default();
        let labels = volume.metadata.labels.iter().flatten();
        let places = labels.filter(|(key, _)| PLACES.contains(&key.as_str())).map(|(key, text)| {
            let values: BTreeSet<String> =
                text.split(PLACES_SEPARATOR).map(str::to_string).collect();
            (key.clone(), values)
        });
        self.volumes.insert(name, Volume { spec, places: places.collect(), free });
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn put_class(&mut self, class: &StorageClass) {
        let topologies = class.allowed_topologies.iter().flatten().map(|term| {
            let rules = term.match_label_expressions.iter().flatten();
            let rules = rules.map(|rule| NodeSelectorRequirement {
                key: rule.key.clone(),
                operator: "In".to_string(),
                values: Some(rule.values.clone()),
            });
            NodeSelectorTerm { match_expressions: Some(rules.collect()), match_fields: None }
        });
        let class_state = Class {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            makes: class.provisioner != NO_PROVISIONER,
            topologies: topologies.collect(),
        };
        self.classes.insert(class.metadata.name.clone().unwrap_or_default(), class_state);
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
                    Some(volume) => {
                        ties.affinities.extend(affinity(&volume.spec));
                        ties.places.extend(volume.places.iter().cloned());
                    }
                    None => ties.lost = true,
                },
                None => match self.classes.get(&claim.class) {
                    Some(class) if class.waits => {
                        ties.waiting.push((name.clone(), claim.selected_node.clone()));
                        self.free_for(name, claim, class, &mut ties)?;
                    }
                    _ => return Err("pod has unbound immediate PersistentVolumeClaims".into()),
                },
            }
        }
        Ok(ties)
    }

    /// Where a claim that waits can get a volume: one that is there, or one that its class makes.
    fn free_for(
        &self,
        name: &str,
        claim: &Claim,
        class: &Class,
        ties: &mut Ties,
    ) -> Result<(), String> {
        let free = self.volumes.values().filter(|volume| {
            volume.free && matching::mismatch(&volume.spec, &claim.spec).is_none()
        });
        if class.makes && class.topologies.is_empty() {
            return Ok(());
        }
        let mut places = if class.makes { class.topologies.clone() } else { Vec::new() };
        let mut any = class.makes;
        for volume in free {
            any = true;
            match affinity(&volume.spec) {
                Some(terms) => places.extend(terms),
                None => return Ok(()),
            }
        }
        if !any {
            return Err(format!(
                "no free volume fits persistentvolumeclaim {name:?} in class, size and modes, and \
                 its class makes none"
            ));
        }
        ties.affinities.push(places);
        Ok(())
    }
}

/// The terms of which one must hold where a volume is used; `None` allows every node.
fn affinity(volume: &PersistentVolumeSpec) -> Option<Vec<NodeSelectorTerm>> {
    let required = volume.node_affinity.as_ref()?.required.as_ref()?;
    Some(required.node_selector_terms.clone()).filter(|terms| !terms.is_empty())
}

impl Ties {
    /// Why a node cannot take the Pod.
    pub fn obstacle(&self, node: &NodeState) -> Option<Reason> {
        if self.lost {
            return Some(Reason::VolumeLost);
        }
        let holds = |terms: &Vec<NodeSelectorTerm>| terms.iter().any(|term| matches(node, term));
        if !self.affinities.iter().all(holds) {
            return Some(Reason::VolumeElsewhere);
        }
        let is_there = |(key, values): &Place| {
            node.labels.get(key).is_some_and(|value| values.contains(value))
        };
        // Most Pods have no volumes, and this is asked for each Pod and node.
        let elsewhere = !self.places.iter().all(is_there)
            && PLACES.iter().any(|key| node.labels.contains_key(*key));
        elsewhere.then_some(Reason::VolumeZone)
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
    fn volumes_say_by_labels_in_which_zones_they_are() {
        let mut volumes = volumes();
        volumes.put_volume(&yaml(
            "metadata: {name: z, labels: {topology.kubernetes.io/zone: z1__z2, tier: fast}}",
        ));
        volumes.put_claim(&yaml(
            "metadata: {name: zonal, namespace: d}\nspec: {volumeName: z}\n\
             status: {phase: Bound}",
        ));
        let ties = volumes.ties("d", &["zonal".to_string()], |_| false).expect("it is bound");
        let obstacle = |zone: &str| {
            let label = ("topology.kubernetes.io/zone".to_string(), zone.to_string());
            let labels = (!zone.is_empty()).then_some(label).into_iter().collect();
            ties.obstacle(&NodeState { labels, ..NodeState::default() })
        };
        assert_eq!(obstacle("z2"), None);
        let reason = obstacle("z3").map(|reason| reason.to_string());
        assert_eq!(reason.as_deref(), Some("node(s) had no available volume zone"));
        assert_eq!(obstacle(""), None, "a node that does not say where it is may be anywhere");
    }

    #[test]
    fn claims_tie_a_pod_to_nodes() {
        check(
            &["bound"],
            false,
            "a None, b Some(\"node(s) had volume node affinity conflict\"), waiting []",
        );
        check(&["waits"], false, "a None, b None, waiting [(\"waits\", None)]");
        let mut volumes = volumes();
        volumes.put_class(&yaml(
            "metadata: {name: there}\nprovisioner: kubernetes.io/no-provisioner\n\
             volumeBindingMode: WaitForFirstConsumer",
        ));
        volumes.put_claim(&yaml(
            "metadata: {name: static, namespace: d}\nspec: {storageClassName: there}",
        ));
        let ties = |volumes: &Volumes| volumes.ties("d", &["static".to_string()], |_| false);
        assert!(ties(&volumes).is_err_and(|why| why.contains("no free volume fits")));
        volumes.put_volume(&yaml(
            "metadata: {name: w}\nspec: {storageClassName: there, nodeAffinity: {required: \
             {nodeSelectorTerms: [{matchExpressions: [{key: host, operator: In, values: [a]}]}]}}}",
        ));
        let found = ties(&volumes).expect("there is one");
        assert_eq!(found.affinities.len(), 1, "only where the volume is");
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
