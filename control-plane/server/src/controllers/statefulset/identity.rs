//! Names of a StatefulSet's Pods and claims, and what is written into them.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::history::REVISION_LABEL;
use super::super::owners::controller_reference;
use super::super::replicaset::name_of;

/// Labels by which one Pod of a set can be selected.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// Most Pods of a set that are looked after, and more than a cluster is designed for: each costs
/// memory in every step, whether it is there or not. Those beyond are not made.
const REPLICAS_MAX: i32 = 200_000;

/// The first ordinal.
pub fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// The ordinals that are asked for.
pub fn wanted(spec: &StatefulSetSpec) -> std::ops::Range<i32> {
    let start = start(spec);
    start..start.saturating_add(spec.replicas.unwrap_or(1).clamp(0, REPLICAS_MAX))
}

pub fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// The ordinal in the name of a Pod of this set; `None` for any other name, `web-01` too.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let text = pod.strip_prefix(set)?.strip_prefix('-')?;
    let number = text.parse::<i32>().ok()?;
    (number >= 0 && number.to_string() == text).then_some(number)
}

/// The claims of one Pod, as they are made.
pub fn claims_of(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let pod = pod_name(name_of(&set.metadata), ordinal);
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{pod}", name_of(&template.metadata))),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates.map(claim).collect()
}

/// The Pod of an ordinal, from the template of a revision.
pub fn pod_of(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let name = pod_name(name_of(&set.metadata), ordinal);
    let mut labels = meta.labels.unwrap_or_default();
    for (key, value) in [
        (POD_NAME_LABEL, name.clone()),
        (POD_INDEX_LABEL, ordinal.to_string()),
        (REVISION_LABEL, revision.to_string()),
    ] {
        labels.insert(key.to_string(), value);
    }
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.service_name.clone().filter(|service| !service.is_empty());
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let claimed: Vec<&str> = templates.map(|claim| name_of(&claim.metadata)).collect();
    let mut volumes = spec.volumes.take().unwrap_or_default();
    volumes.retain(|volume| !claimed.contains(&volume.name.as_str()));
    volumes.extend(claimed.into_iter().map(|claim| Volume {
        name: claim.to_string(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: format!("{claim}-{name}"),
            read_only: None,
        }),
        ..Volume::default()
    }));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            generate_name: Some(format!("{}-", name_of(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_from_whole_names_only() {
        assert_eq!(ordinal("web", "web-0"), Some(0));
        assert_eq!(ordinal("web", "web-12"), Some(12));
        for other in ["web-01", "web-", "web", "web-x", "webs-1", "web-1-2", "web--1"] {
            assert_eq!(ordinal("web", other), None, "{other}");
        }
    }
}
