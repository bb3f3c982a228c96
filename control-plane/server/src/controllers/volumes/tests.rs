//! Scripts over the plans of claims and volumes: a small world applies what is planned until it
//! settles.

use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::super::cache::{Object, Seen, kind_row};
use super::super::testing::{Objects, at, text, yaml};
use super::super::write::Action;
use super::*;

const LOCAL_CLASS: &str = "metadata: {name: local}\nprovisioner: wherry.dev/local\n\
    reclaimPolicy: Delete\nvolumeBindingMode: WaitForFirstConsumer\nallowVolumeExpansion: true";

/// A spec, given as the inside of a YAML mapping, as a patch.
fn spec_of(text: &str) -> Value {
    json!({"spec": serde_yaml_ng::from_str::<Value>(&format!("{{{text}}}")).expect("YAML")})
}

#[derive(Default)]
struct World {
    objects: Objects,
    default_class: Option<String>,
    /// Events of the last settling, by reason.
    told: Vec<String>,
}

impl World {
    fn new() -> World {
        let mut world = World::default();
        world.class(LOCAL_CLASS);
        world.class(
            "metadata: {name: at-once}\nprovisioner: wherry.dev/local\n\
             volumeBindingMode: Immediate",
        );
        world.class("metadata: {name: other}\nprovisioner: example.com/disks");
        for (name, size) in [("a", "10Gi"), ("b", "5Gi")] {
            let node: Node = yaml(&format!(
                "metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}\n\
                 status:\n  capacity: {{ephemeral-storage: {size}}}\n  \
                 conditions: [{{type: Ready, status: 'True'}}]"
            ));
            world.objects.put(&node);
        }
        world
    }

    fn class(&mut self, text: &str) {
        self.objects.put(&yaml::<StorageClass>(text));
    }

    fn claim(&mut self, name: &str, spec: &str) {
        let claim: PersistentVolumeClaim = yaml(&format!(
            "metadata: {{name: {name}, namespace: d, finalizers: [{CLAIM_PROTECTION}]}}\n\
             spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}, \
             volumeMode: Filesystem}}\nstatus: {{phase: Pending}}"
        ));
        self.objects.put(&claim);
        self.objects.edit::<PersistentVolumeClaim>(name, spec_of(spec));
    }

    fn volume(&mut self, name: &str, spec: &str) {
        let volume: PersistentVolume = yaml(&format!(
            "metadata: {{name: {name}, labels: {{tier: {name}}}, \
             finalizers: [{VOLUME_PROTECTION}]}}\n\
             spec: {{accessModes: [ReadWriteOnce], volumeMode: Filesystem, \
             persistentVolumeReclaimPolicy: Retain, hostPath: {{path: /x}}}}\n\
             status: {{phase: Pending}}"
        ));
        self.objects.put(&volume);
        self.objects.edit::<PersistentVolume>(name, spec_of(spec));
    }

    fn select(&mut self, claim: &str, node: &str) {
        let annotations = json!({SELECTED_NODE: node});
        self.objects.edit::<PersistentVolumeClaim>(
            claim,
            json!({"metadata": {"annotations": annotations}}),
        );
    }

    fn plans(&self) -> Vec<Write> {
        let now = at(self.objects.seconds);
        let volumes = self.objects.of::<PersistentVolume>();
        let claims = self.objects.of::<PersistentVolumeClaim>();
        let mut writes = Vec::new();
        for volume in &volumes {
            let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            let claim = held.and_then(|held| self.objects.get(held.name.as_deref()?));
            let snapshot = volume::Snapshot { volume: volume.clone(), claim };
            writes.extend(volume::plan(&snapshot, now).writes);
        }
        for claim in claims {
            let spec = claim.spec.clone().unwrap_or_default();
            let named = spec.volume_name.as_deref().unwrap_or("");
            let snapshot = claim::Snapshot {
                volume: self.objects.get(named),
                volumes: volumes.clone(),
                class: spec.storage_class_name.as_deref().and_then(|name| self.objects.get(name)),
                default_class: self.default_class.clone(),
                nodes: self.objects.of(),
                pods: self.objects.of(),
                claim,
            };
            writes.extend(claim::plan(&snapshot, now).writes);
        }
        writes
    }

    /// Plans and applies one write at a time, until only events are left. Returns the events.
    fn settle(&mut self) -> String {
        self.told.clear();
        for _ in 0..100 {
            let writes = self.plans();
            let told = |write: &Write| matches!(write.action, Action::Tell);
            // Two plans of one round may both write to one object: the second would be refused.
            let Some(next) = writes.iter().find(|write| !told(write)) else {
                let notes = writes.iter().map(ToString::to_string);
                self.told = notes.collect();
                return self.told.join("\n");
            };
            self.objects.apply(std::slice::from_ref(next));
        }
        panic!("it does not settle: {}", text(&self.plans()));
    }

    /// `claim phase volume` of each claim, then `volume phase claim` of each volume.
    fn shown(&self) -> String {
        let mut lines = Vec::new();
        let text = |text: Option<String>| text.unwrap_or("-".to_string());
        for claim in self.objects.of::<PersistentVolumeClaim>() {
            let phase = text(claim.status.clone().and_then(|status| status.phase));
            let volume = text(claim.spec.clone().and_then(|spec| spec.volume_name));
            lines.push(format!("{} {phase} {volume}", name_of(&claim.metadata)));
        }
        for volume in self.objects.of::<PersistentVolume>() {
            let phase = text(volume.status.clone().and_then(|status| status.phase));
            let claim = volume.spec.clone().and_then(|spec| spec.claim_ref);
            let claim = text(claim.and_then(|claim| claim.name));
            lines.push(format!("{} {phase} {claim}", name_of(&volume.metadata)));
        }
        lines.join(", ")
    }

    #[track_caller]
    fn check(&mut self, events: &str, expected: &str) {
        let told = self.settle();
        assert!(told.contains(events) && (events.is_empty() == told.is_empty()), "{told}");
        assert_eq!(self.shown(), expected);
    }
}

#[test]
fn a_claim_gets_the_smallest_volume_that_will_do() {
    let mut world = World::new();
    world.volume("small", "capacity: {storage: 500Mi}");
    world.volume("large", "capacity: {storage: 8Gi}");
    world.volume("medium", "capacity: {storage: 2Gi}");
    world.claim("data", "storageClassName: ''");
    world.check("", "data Bound medium, large Available -, medium Bound data, small Available -");
    let claim = world.objects.get::<PersistentVolumeClaim>("data").expect("there");
    let status = claim.status.clone().expect("has one");
    assert_eq!(status.capacity.expect("told")["storage"].0, "2Gi", "what it got");
    assert_eq!(annotation(&claim.metadata, BIND_COMPLETED), Some("yes"));
    assert_eq!(annotation(&claim.metadata, BOUND_BY_CONTROLLER), Some("yes"));
}

#[test]
fn class_modes_and_selector_must_fit() {
    let mut world = World::new();
    world.volume("classy", "capacity: {storage: 2Gi}, storageClassName: x");
    world.volume("block", "capacity: {storage: 2Gi}, volumeMode: Block");
    world.volume("many", "capacity: {storage: 2Gi}, accessModes: [ReadOnlyMany]");
    world.claim("data", "storageClassName: ''");
    let rest = "block Available -, classy Available -, many Available -";
    world.check(
        "Normal FailedBinding: no persistent volumes available for this claim",
        &format!("data Pending -, {rest}"),
    );
    world.volume("plain", "capacity: {storage: 2Gi}");
    world.objects.edit::<PersistentVolumeClaim>(
        "data",
        json!({"spec": {"selector": {"matchLabels": {"tier": "gold"}}}}),
    );
    world.settle();
    assert!(world.shown().starts_with("data Pending -"), "{}", world.shown());
    world
        .objects
        .edit::<PersistentVolume>("plain", json!({"metadata": {"labels": {"tier": "gold"}}}));
    world.settle();
    assert!(world.shown().starts_with("data Bound plain"), "{}", world.shown());
}

#[test]
fn a_claim_that_names_its_volume_gets_it_or_says_why_not() {
    let mut world = World::new();
    world.volume("v", "capacity: {storage: 2Gi}");
    world.claim("one", "storageClassName: '', volumeName: v");
    world.check("", "one Bound v, v Bound one");
    world.claim("two", "storageClassName: '', volumeName: v");
    world.check(
        "Warning FailedBinding: volume \"v\" already bound to a different claim.",
        "one Bound v, two Pending v, v Bound one",
    );
    world.claim("three", "storageClassName: '', volumeName: w");
    world.volume("w", "capacity: {storage: 2Mi}");
    world.settle();
    assert!(world.told.iter().any(|told| told.contains("requested PV is too small")));
}

#[test]
fn a_volume_that_is_kept_for_a_claim_goes_to_no_other() {
    let mut world = World::new();
    world.volume("v", "capacity: {storage: 2Gi}, claimRef: {namespace: d, name: later}");
    world.claim("data", "storageClassName: ''");
    world.check("FailedBinding", "data Pending -, v Available later");
    world.claim("later", "storageClassName: ''");
    world.settle();
    assert_eq!(world.shown(), "data Pending -, later Bound v, v Bound later");
}

#[test]
fn a_claim_that_waits_is_bound_for_its_consumers_node() {
    let mut world = World::new();
    world.claim("data", "storageClassName: local");
    world.check(
        "Normal WaitForFirstConsumer: waiting for first consumer to be created before binding",
        "data Pending -",
    );
    world.select("data", "b");
    world.check("", "data Bound pvc-uid-data, pvc-uid-data Bound data");
    let volume = world.objects.get::<PersistentVolume>("pvc-uid-data").expect("made");
    let spec = volume.spec.clone().expect("has one");
    let node = |name: &str| world.objects.get::<Node>(name).expect("there");
    assert!(matching::reaches(&spec, &node("b")) && !matching::reaches(&spec, &node("a")));
    let csi = spec.csi.expect("of a driver");
    assert_eq!((csi.driver.as_str(), csi.volume_handle.as_str()), (LOCAL, "pvc-uid-data"));
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
}

#[test]
fn a_volume_that_is_there_is_taken_before_one_is_made() {
    let terms = "[{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [a]}]}]";
    let at_a = format!("nodeAffinity: {{required: {{nodeSelectorTerms: {terms}}}}}");
    let mut world = World::new();
    world.volume("v", &format!("capacity: {{storage: 2Gi}}, storageClassName: local, {at_a}"));
    world.claim("data", "storageClassName: local");
    world.claim("more", "storageClassName: local");
    world.select("data", "a");
    world.select("more", "b");
    world.check("", "data Bound v, more Bound pvc-uid-more, pvc-uid-more Bound more, v Bound data");
}

#[test]
fn a_claim_that_waits_for_nobody_gets_the_emptiest_node() {
    let mut world = World::new();
    world.claim("big", "storageClassName: at-once, resources: {requests: {storage: 6Gi}}");
    world.claim("small", "storageClassName: at-once");
    world.settle();
    let on = |name: &str| {
        let volume = world.objects.get::<PersistentVolume>(name).expect("made");
        let node = world.objects.get::<Node>("a").expect("there");
        matching::reaches(volume.spec.as_ref().expect("has one"), &node)
    };
    assert!(on("pvc-uid-big") && !on("pvc-uid-small"));
    world.claim("huge", "storageClassName: at-once, resources: {requests: {storage: 7Gi}}");
    let told = world.settle();
    assert!(told.contains("no node that is ready and open has room for 7Gi"), "{told}");
}

#[test]
fn what_a_folder_cannot_be_is_said() {
    let mut world = World::new();
    world.claim("many", "storageClassName: at-once, accessModes: [ReadWriteMany]");
    world.claim("block", "storageClassName: at-once, volumeMode: Block");
    let told = world.settle();
    assert!(told.contains("a folder of one node cannot be ReadWriteMany"), "{told}");
    assert!(told.contains("a folder is no block device"), "{told}");
    world.claim("theirs", "storageClassName: other");
    let told = world.settle();
    assert!(told.contains("external provisioner \"example.com/disks\""), "{told}");
    world.claim("typo", "storageClassName: lokal");
    let told = world.settle();
    assert!(told.contains("storageclass.storage.k8s.io \"lokal\" not found"), "{told}");
}

#[test]
fn a_claim_without_a_class_gets_the_default_one_when_there_is_one() {
    let mut world = World::new();
    world.claim("data", "volumeName: ''");
    world.check("no storage class is set", "data Pending ");
    world.default_class = Some("local".to_string());
    world.check("WaitForFirstConsumer", "data Pending ");
}

#[test]
fn claims_in_use_stay_and_volumes_follow_their_policy() {
    let mut world = World::new();
    world.claim("data", "storageClassName: local");
    world.select("data", "a");
    world.settle();
    let pod = |phase: &str| -> Pod {
        yaml(&format!(
            "metadata: {{name: p, namespace: d}}\nspec: {{nodeName: a, containers: [], volumes: \
             [{{name: v, persistentVolumeClaim: {{claimName: data}}}}]}}\n\
             status: {{phase: {phase}}}"
        ))
    };
    world.objects.put(&pod("Running"));
    let deleting = json!({"metadata": {"deletionTimestamp": at(1)}});
    world.objects.edit::<PersistentVolumeClaim>("data", deleting);
    world.check("", "data Bound pvc-uid-data, pvc-uid-data Bound data");
    world.objects.put(&pod("Succeeded"));
    let shown = text(&world.plans());
    assert_eq!(shown, "patch persistentvolumeclaims d/data {\"metadata\":{\"finalizers\":[]}}\n");
    world.objects.end::<PersistentVolumeClaim>("data");
    let released = text(&world.plans());
    assert!(released.ends_with("unless persistentvolumeclaims d/data is there\n"), "{released}");
    world.settle();
    assert_eq!(world.shown(), "", "the policy was Delete");
}

#[test]
fn what_nobody_can_delete_says_so_and_what_is_retained_stays() {
    let mut world = World::new();
    world.volume("kept", "capacity: {storage: 2Gi}");
    world.claim("one", "storageClassName: ''");
    world.settle();
    world.objects.end::<PersistentVolumeClaim>("one");
    world.check("", "kept Released one");
    // Another claim of the same name is another claim.
    world.claim("two", "storageClassName: ''");
    world.settle();
    assert!(world.shown().starts_with("two Pending -"), "{}", world.shown());
    let policy = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    world.objects.edit::<PersistentVolume>("kept", policy);
    world.settle();
    assert!(world.shown().ends_with("kept Failed one"), "{}", world.shown());
}

#[test]
fn a_volume_that_is_deleted_while_bound_waits_for_its_claim() {
    let mut world = World::new();
    world.volume("v", "capacity: {storage: 2Gi}");
    world.claim("data", "storageClassName: ''");
    world.settle();
    let deleting = json!({"metadata": {"deletionTimestamp": at(1)}});
    world.objects.edit::<PersistentVolume>("v", deleting);
    world.check("", "data Bound v, v Bound data");
    world.objects.end::<PersistentVolumeClaim>("data");
    let mut shown = String::new();
    for _ in 0..2 {
        let writes = world.plans();
        shown = text(&writes);
        world.objects.apply(&writes);
    }
    assert_eq!(shown, "patch persistentvolumes v {\"metadata\":{\"finalizers\":[]}}\n");
}

#[test]
fn a_claim_whose_volume_is_gone_is_lost() {
    let mut world = World::new();
    world.volume("v", "capacity: {storage: 2Gi}");
    world.claim("data", "storageClassName: ''");
    world.settle();
    world.objects.end::<PersistentVolume>("v");
    let shown = text(&world.plans());
    assert!(shown.contains("unless persistentvolumes v is there"), "asked for afresh: {shown}");
    assert!(shown.contains("Warning ClaimLost"), "{shown}");
    world.settle();
    assert_eq!(world.shown(), "data Lost v");
}

#[test]
fn a_folder_grows_when_its_claim_does() {
    let mut world = World::new();
    world.claim("data", "storageClassName: local");
    world.select("data", "a");
    world.settle();
    let size = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    world.objects.edit::<PersistentVolumeClaim>("data", size);
    world.settle();
    let claim = world.objects.get::<PersistentVolumeClaim>("data").expect("there");
    let told = claim.status.clone().and_then(|status| status.capacity).expect("told");
    assert_eq!(told["storage"].0, "3Gi");
    let volume = world.objects.get::<PersistentVolume>("pvc-uid-data").expect("there");
    assert_eq!(capacity(volume.spec.as_ref().expect("has one")).to_string(), "3Gi");
}

#[test]
fn a_volume_made_for_a_claim_that_has_another_goes() {
    let mut world = World::new();
    world.claim("data", "storageClassName: local");
    world.select("data", "a");
    world.settle();
    let other = json!({"spec": {"volumeName": "elsewhere"}});
    world.objects.edit::<PersistentVolumeClaim>("data", other);
    let shown = text(&world.plans());
    assert!(shown.starts_with("delete persistentvolumes pvc-uid-data\n"), "{shown}");
}

#[test]
fn wake_finds_who_is_concerned() {
    let mut cache = Cache::new();
    cache.hold::<PersistentVolumeClaim>();
    cache.hold::<PersistentVolume>();
    let claim: PersistentVolumeClaim =
        yaml("metadata: {name: data, namespace: d}\nspec: {volumeName: v}");
    let object = Object::new(claim);
    let key = Key::of::<PersistentVolumeClaim>("d", "data");
    let mut keys = Vec::new();
    wake(&cache, &Change { key: key.clone(), before: None, after: Some(object) }, &mut keys);
    assert_eq!(keys, [key.clone(), Key::of::<PersistentVolume>("", "v")]);
    // Volumes that were lost come back from a backup without the claims that they were bound to.
    let lost: PersistentVolumeClaim =
        yaml("metadata: {name: data, namespace: d}\nspec: {volumeName: v}\nstatus: {phase: Lost}");
    let lost = Seen::Put(Object::new(lost));
    cache.observe(kind_row::<PersistentVolumeClaim>(), lost, Instant::now());
    let volume: PersistentVolume = yaml("metadata: {name: v}\nspec: {hostPath: {path: /x}}");
    let volume_key = Key::of::<PersistentVolume>("", "v");
    let after = Some(Object::new(volume));
    let mut keys = Vec::new();
    wake(&cache, &Change { key: volume_key.clone(), before: None, after }, &mut keys);
    assert_eq!(keys, [volume_key, key]);
}
