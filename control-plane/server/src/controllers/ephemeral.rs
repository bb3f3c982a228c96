//! Ephemeral volumes: the claim that a Pod brings along.
//!
//! Owns: the claims made from `spec.volumes[*].ephemeral` of Pods. A claim is called after the Pod
//! and the volume, and is the Pod's, so it goes with it. A claim of that name that is not the Pod's
//! is not touched, and the Pod is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::owners::{controller_reference, is_controlled_by};
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

const COMPONENT: &str = "ephemeral_volume";

/// What a plan for one Pod reads.
#[derive(Default)]
pub struct Snapshot {
    pub pod: Arc<Pod>,
    /// Claims of its namespace that have the names of its own.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

pub const CONTROLLER: Controller = Controller { name: "ephemeral", wake, reconcile };

fn has_any(pod: &Pod) -> bool {
    let volumes = pods::spec(pod).and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().any(|volume| volume.ephemeral.is_some())
}

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if let Some((_, Some(pod))) = change.of::<Pod>() {
        keys.extend(has_any(pod).then(|| change.key.clone()));
    } else if let Some((Some(claim), None)) = change.of::<PersistentVolumeClaim>() {
        // A claim that is gone was in the way, or is made again.
        let owners = claim.metadata.owner_references.iter().flatten();
        let owners = owners.filter_map(|owner| cache.by_uid(&owner.uid));
        keys.extend(owners.filter(|key| key.kind.is("", "Pod")).cloned());
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(pod) = view.cache.get::<Pod>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let held = |name: String| {
        let claim = view.cache.get::<PersistentVolumeClaim>(key.namespace(), &name)?;
        Some((name, claim))
    };
    let claims = pods::claims(&pod).into_iter().filter_map(held).collect();
    plan(&Snapshot { pod, claims }, view.now).into()
}

/// Makes the claims that are missing, for Pods that are neither over nor on their way out.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let pod = &*snapshot.pod;
    let mut writes = Vec::new();
    if !pods::is_active(pod) {
        return writes;
    }
    let (name, uid) = (name_of(&pod.metadata), pod.metadata.uid.as_deref().unwrap_or(""));
    let volumes = pods::spec(pod).and_then(|spec| spec.volumes.as_deref()).unwrap_or(&[]);
    for volume in volumes {
        let template = volume.ephemeral.as_ref().and_then(|it| it.volume_claim_template.as_ref());
        let Some(template) = template else { continue };
        let claim_name = format!("{name}-{}", volume.name);
        if let Some(held) = snapshot.claims.get(&claim_name) {
            if !is_controlled_by(&held.metadata, uid) {
                let message = format!("PVC {claim_name} was not created for the pod");
                let note = Note::warning(COMPONENT, pod, "FailedBinding", message);
                writes.push(Write::tell(note));
            }
            continue;
        }
        let meta = template.metadata.clone().unwrap_or_default();
        writes.push(Write::create(&PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name),
                namespace: pod.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: meta.annotations,
                owner_references: Some(vec![controller_reference(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        }));
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn snapshot(phase: &str) -> Snapshot {
        let pod: Pod = yaml(&format!(
            "metadata: {{name: p, namespace: d}}\nspec:\n  containers: []\n  volumes:\n  \
             - {{name: plain, emptyDir: {{}}}}\n  - name: scratch\n    ephemeral:\n      \
             volumeClaimTemplate:\n        metadata: {{labels: {{a: b}}}}\n        \
             spec: {{accessModes: [ReadWriteOnce]}}\nstatus: {{phase: {phase}}}"
        ));
        Snapshot { pod: Arc::new(pod), claims: BTreeMap::new() }
    }

    #[test]
    fn a_pod_brings_its_claim_along() {
        let writes = plan(&snapshot("Pending"), at(0));
        assert_eq!(text(&writes), "create persistentvolumeclaims d/p-scratch\n");
        assert!(plan(&snapshot("Succeeded"), at(0)).is_empty());
    }

    #[test]
    fn anothers_claim_is_not_used() {
        let mut world = snapshot("Pending");
        let mut claim: PersistentVolumeClaim = yaml("metadata: {name: p-scratch, namespace: d}");
        world.claims.insert("p-scratch".to_string(), Arc::new(claim.clone()));
        let told = text(&plan(&world, at(0)));
        assert_eq!(told, "(Warning FailedBinding: PVC p-scratch was not created for the pod)\n");
        claim.metadata.owner_references = Some(vec![super::super::testing::owner("p")]);
        world.claims.insert("p-scratch".to_string(), Arc::new(claim));
        assert_eq!(text(&plan(&world, at(0))), "");
    }
}
