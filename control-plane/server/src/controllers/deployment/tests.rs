//! Scripts over [`plan`]: a small world applies what is planned, Pods become ready one by one.

use std::fmt::Write as _;

use super::super::testing::{at, text, yaml};
use super::super::write::{Action, Write};
use super::*;

/// A Deployment and its ReplicaSets, to which writes are applied as the API server would.
struct World {
    snapshot: Snapshot,
    seconds: i64,
}

impl World {
    fn new(spec: &str) -> World {
        let deployment: Deployment = yaml(&format!(
            "metadata: {{name: web, namespace: d}}\nspec:\n  \
             selector: {{matchLabels: {{app: web}}}}\n  progressDeadlineSeconds: 600\n  \
             template:\n    metadata: {{labels: {{app: web}}}}\n    \
             spec: {{containers: [{{name: c, image: one}}]}}\n{spec}"
        ));
        let snapshot = Snapshot { deployment: Arc::new(deployment), ..Snapshot::default() };
        World { snapshot, seconds: 0 }
    }

    fn spec(&mut self) -> &mut DeploymentSpec {
        let deployment = Arc::make_mut(&mut self.snapshot.deployment);
        deployment.metadata.generation = deployment.metadata.generation.map(|now| now + 1);
        &mut deployment.spec
    }

    fn image(&mut self, image: &str) {
        let spec = self.spec().template.spec.as_mut().expect("has a Pod spec");
        spec.containers[0].image = Some(image.to_string());
    }

    /// Plans and applies once; returns the plan's lines with hashes replaced by their ReplicaSet's
    /// image.
    fn step(&mut self) -> String {
        self.seconds += 1;
        let plan = plan(&self.snapshot, at(self.seconds));
        let mut shown = text(&plan.writes);
        for write in &plan.writes {
            self.apply(write);
        }
        for set in &self.snapshot.sets {
            shown = shown.replace(name_of(&set.metadata), &format!("web-{}", image_of(set)));
        }
        shown
    }

    fn apply(&mut self, write: &Write) {
        match &write.action {
            Action::Create { object, .. } => {
                let mut set: ReplicaSet =
                    serde_json::from_value(object.clone()).expect("a ReplicaSet");
                let name = name_of(&set.metadata).to_string();
                set.metadata.uid = Some(format!("uid-{name}"));
                set.metadata.generation = Some(1);
                set.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.seconds)));
                self.snapshot.sets.push(Arc::new(set));
            }
            Action::Patch { target, body, .. } if target.key.kind.is("apps", "Deployment") => {
                merge(&mut self.snapshot.deployment, body);
            }
            Action::Patch { target, body, .. } => {
                let mut sets = self.snapshot.sets.iter_mut();
                let set = sets.find(|set| name_of(&set.metadata) == target.key.name());
                merge(set.expect("patched sets exist"), body);
            }
            Action::Delete { target, .. } => {
                let gone = target.key.name();
                self.snapshot.sets.retain(|set| name_of(&set.metadata) != gone);
            }
            _ => {}
        }
    }

    /// The ReplicaSets' Pods become what is asked for; those of the images named become ready.
    fn pods(&mut self, ready_images: &[&str]) {
        for set in &mut self.snapshot.sets {
            let ready = ready_images.contains(&image_of(set).as_str());
            let set = Arc::make_mut(set);
            let size = set.spec.replicas.unwrap_or(0);
            let status = set.status.get_or_insert_default();
            let kept = status.ready_replicas.unwrap_or(0).min(size);
            let count = if ready { size } else { kept };
            status.replicas = size;
            status.ready_replicas = Some(count);
            status.available_replicas = Some(count);
            status.observed_generation = set.metadata.generation;
        }
    }

    /// `image:size/available` of every ReplicaSet, oldest first.
    fn sizes(&self) -> String {
        let mut shown = String::new();
        for set in &self.snapshot.sets {
            let set = Set::new(set);
            let gap = if shown.is_empty() { "" } else { " " };
            let image = image_of(&set.object);
            write!(shown, "{gap}{image}:{}/{}", set.size, set.available()).expect("a string");
        }
        shown
    }

    /// Plans until nothing changes; everything that is created works. Returns the sizes after each
    /// step.
    fn settle(&mut self, ready_images: &[&str]) -> Vec<String> {
        let mut steps: Vec<String> = Vec::new();
        for _ in 0..50 {
            let shown = self.step();
            self.pods(ready_images);
            if steps.last() != Some(&self.sizes()) {
                steps.push(self.sizes());
            }
            if shown.is_empty() {
                return steps;
            }
        }
        panic!("it does not settle: {steps:?}");
    }

    fn condition(&self, kind: &str) -> String {
        let status = self.snapshot.deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let found = conditions.into_iter().find(|found| found.type_.as_deref() == Some(kind));
        found.map_or("none".to_string(), |found| {
            format!("{} {}", found.status.unwrap_or_default(), found.reason.unwrap_or_default())
        })
    }

    fn revision(&self, image: &str) -> i64 {
        let mut sets = self.snapshot.sets.iter().filter(|set| image_of(set) == image);
        sets.next().map_or(0, |set| Set::new(set).revision())
    }
}

fn image_of(set: &ReplicaSet) -> String {
    let template = set.spec.template.as_ref();
    let pod = template.and_then(|template| template.spec.as_ref()).expect("has a Pod spec");
    pod.containers[0].image.clone().unwrap_or_default()
}

fn merge<T: serde::Serialize + serde::de::DeserializeOwned>(object: &mut Arc<T>, patch: &Value) {
    let mut value = serde_json::to_value(&**object).expect("JSON");
    json_patch::merge(&mut value, patch);
    *object = Arc::new(serde_json::from_value(value).expect("the same type"));
}

#[test]
fn a_new_deployment_gets_one_replica_set_and_becomes_complete() {
    let mut world = World::new("  replicas: 3");
    let shown = world.step();
    let first = shown.lines().next().unwrap_or_default();
    assert_eq!(
        first,
        "create replicasets.apps d/web-one \
         (Normal ScalingReplicaSet: Scaled up replica set web-one from 0 to 3)"
    );
    let status = world.snapshot.deployment.status.clone().expect("has a status");
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetCreated");
    assert_eq!(world.condition("Available"), "False MinimumReplicasUnavailable");
    let set = &world.snapshot.sets[0];
    let hash = set.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).cloned();
    let hash = hash.expect("has a hash");
    assert_eq!(name_of(&set.metadata), format!("web-{hash}"));
    let spec = &set.spec;
    assert_eq!(spec.selector.match_labels.as_ref().map(BTreeMap::len), Some(2));

    world.pods(&["one"]);
    world.settle(&["one"]);
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
    let annotations = world.snapshot.deployment.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.get(REVISION).map(String::as_str), Some("1"));
    assert_eq!(world.step(), "", "planning again changes nothing");
}

#[test]
fn a_rolling_update_step_by_step() {
    let mut world = World::new("  replicas: 4");
    world.settle(&["one"]);
    world.image("two");
    let steps = world.settle(&["one", "two"]);
    assert_eq!(
        steps,
        [
            "one:4/4 two:1/1",
            "one:2/2 two:1/1",
            "one:2/2 two:3/3",
            "one:0/0 two:3/3",
            "one:0/0 two:4/4"
        ]
    );
    assert_eq!(world.revision("two"), 2);
}

#[test]
fn a_version_that_does_not_work_stops_the_update_and_times_out() {
    let mut world = World::new("  replicas: 4");
    world.settle(&["one"]);
    world.image("bad");
    world.settle(&["one"]);
    assert_eq!(world.sizes(), "one:3/3 bad:2/0");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
    assert!(plan(&world.snapshot, at(world.seconds)).again.is_some());
    world.seconds += 601;
    world.step();
    assert_eq!(world.condition("Progressing"), "False ProgressDeadlineExceeded");
    world.image("one");
    world.settle(&["one"]);
    assert_eq!(world.sizes(), "one:4/4 bad:0/0");
    assert_eq!(world.revision("one"), 3, "going back makes a new revision");
    let one = Set::new(&world.snapshot.sets[0]);
    assert_eq!(one.annotation(REVISION_HISTORY), Some("1"));
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn surge_and_unavailable_are_kept() {
    let strategy =
        "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}";
    let mut world = World::new(&format!("  replicas: 3\n{strategy}"));
    world.settle(&["one"]);
    world.image("two");
    for step in world.settle(&["one", "two"]) {
        let sizes: Vec<i32> =
            step.split([' ', ':', '/']).filter_map(|part| part.parse().ok()).collect();
        let (asked, available) =
            (sizes[0] + sizes.get(2).unwrap_or(&0), sizes[1] + sizes.get(3).unwrap_or(&0));
        assert!(asked <= 3 && available >= 2, "{step}");
    }
    assert_eq!(world.sizes(), "one:0/0 two:3/3");
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut world = World::new("  replicas: 2\n  strategy: {type: Recreate}");
    world.settle(&["one"]);
    let uid = Set::new(&world.snapshot.sets[0]).uid().to_string();
    world.snapshot.running.insert(uid.clone(), 2);
    world.image("two");
    world.settle(&["one"]);
    assert_eq!(world.sizes(), "one:0/0");
    world.snapshot.running.insert(uid, 0);
    world.settle(&["two"]);
    assert_eq!(world.sizes(), "one:0/0 two:2/2");
}

#[test]
fn scaling_is_not_a_rollout() {
    let mut world = World::new("  replicas: 2");
    world.settle(&["one"]);
    world.spec().replicas = Some(5);
    let shown = world.step();
    assert!(shown.contains("Scaled up replica set web-one from 2 to 5"), "{shown}");
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
    world.settle(&["one"]);
    world.spec().replicas = Some(0);
    world.settle(&["one"]);
    assert_eq!(world.sizes(), "one:0/0");
    assert_eq!(world.revision("one"), 1);
}

#[test]
fn scaling_during_a_rollout_keeps_the_mix() {
    let mut world = World::new("  replicas: 4");
    world.settle(&["one"]);
    world.image("bad");
    world.settle(&["one"]);
    assert_eq!(world.sizes(), "one:3/3 bad:2/0");
    world.spec().replicas = Some(8);
    world.step();
    assert_eq!(world.sizes(), "one:6/3 bad:4/0");
}

#[test]
fn a_new_version_of_the_size_that_is_now_asked_for_does_not_end_the_old_one() {
    let mut world = World::new("  replicas: 8");
    world.settle(&["one"]);
    world.image("two");
    for _ in 0..9 {
        if world.sizes() == "one:4/4 two:6/6" {
            break;
        }
        world.step();
        world.pods(&["one", "two"]);
    }
    assert_eq!(world.sizes(), "one:4/4 two:6/6");
    world.spec().replicas = Some(6);
    world.step();
    assert_eq!(world.sizes(), "one:3/4 two:5/6", "each gives its part");
    world.settle(&["one", "two"]);
    assert_eq!(world.sizes(), "one:0/0 two:6/6");
}

#[test]
fn pods_that_are_about_to_go_are_not_counted_on() {
    let strategy =
        "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}";
    let mut world = World::new(&format!("  replicas: 4\n{strategy}"));
    world.settle(&["one"]);
    world.image("two");
    for _ in 0..9 {
        if world.sizes() == "one:2/2 two:4/4" {
            break;
        }
        world.step();
        world.pods(&["one", "two"]);
    }
    assert_eq!(world.sizes(), "one:2/2 two:4/4");
    // The first has not yet been counted anew, and one of the new ones does not work.
    let available = |set: &mut Arc<ReplicaSet>, count: i32| {
        let status = Arc::make_mut(set).status.get_or_insert_default();
        status.available_replicas = Some(count);
    };
    available(&mut world.snapshot.sets[0], 4);
    available(&mut world.snapshot.sets[1], 3);
    world.step();
    assert_eq!(world.sizes(), "one:1/4 two:4/3", "three and one of the two really work");
}

#[test]
fn pods_on_their_way_out_are_counted_once_all_replica_sets_have_counted() {
    let mut world = World::new("  replicas: 2");
    let leaving = |world: &World| {
        let status = world.snapshot.deployment.status.clone().expect("has a status");
        status.terminating_replicas
    };
    world.step();
    assert_eq!(leaving(&world), Some(0));
    world.pods(&["one"]);
    world.step();
    assert_eq!(leaving(&world), None, "its ReplicaSet says nothing of them");
    let set = Arc::make_mut(&mut world.snapshot.sets[0]);
    set.status.get_or_insert_default().terminating_replicas = Some(3);
    world.step();
    assert_eq!(leaving(&world), Some(3));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new("  replicas: 2");
    world.settle(&["one"]);
    world.spec().paused = Some(true);
    world.image("two");
    world.settle(&["one", "two"]);
    assert_eq!(world.sizes(), "one:2/2");
    assert_eq!(world.condition("Progressing"), "Unknown DeploymentPaused");
    world.spec().replicas = Some(3);
    world.settle(&["one", "two"]);
    assert_eq!(world.sizes(), "one:3/3");
    world.spec().paused = None;
    world.settle(&["one", "two"]);
    assert_eq!(world.sizes(), "one:0/0 two:3/3");
}

#[test]
fn history_is_trimmed_from_the_oldest() {
    let mut world = World::new("  replicas: 1\n  revisionHistoryLimit: 1");
    for image in ["one", "two", "three", "four"] {
        world.image(image);
        world.settle(&["one", "two", "three", "four"]);
    }
    assert_eq!(world.sizes(), "three:0/0 four:1/1");
}

#[test]
fn numbers_that_people_wrote_into_replica_sets_are_borne() {
    let mut world = World::new("  replicas: 2");
    world.step();
    for image in ["two", "three"] {
        for set in &mut world.snapshot.sets {
            let set = Arc::make_mut(set);
            set.spec.replicas = Some(i32::MAX);
            let annotations = set.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_string(), i64::MAX.to_string());
        }
        world.step();
        world.image(image);
        for _ in 0..3 {
            world.step();
        }
    }
    assert!(!world.snapshot.sets.is_empty());
}

#[test]
fn a_taken_name_is_counted_and_avoided() {
    let mut world = World::new("  replicas: 1");
    let hash = template_hash(&world.spec().template, 0);
    world.snapshot.taken = vec![format!("web-{hash}")];
    assert!(!world.step().contains("create"));
    let status = world.snapshot.deployment.status.clone().expect("has a status");
    assert_eq!(status.collision_count, Some(1));
    assert!(world.step().contains("create replicasets.apps"));
    assert_ne!(name_of(&world.snapshot.sets[0].metadata), format!("web-{hash}"));
}

#[test]
fn an_old_replica_set_is_adopted_by_its_labels() {
    let mut world = World::new("  replicas: 1");
    let stray: ReplicaSet = yaml(
        "metadata: {name: web-old, namespace: d, labels: {app: web}}\n\
         spec: {selector: {matchLabels: {app: web}}}",
    );
    world.snapshot.strays = vec![Arc::new(stray)];
    let shown = text(&plan(&world.snapshot, at(0)).writes);
    assert!(shown.starts_with("patch replicasets.apps d/web-old"), "{shown}");
    assert_eq!(shown.lines().count(), 1, "nothing else before that");
}
