//! Scripts over [`plan`]: a small world applies what is planned; Pods become ready and end as the
//! test says.

use std::time::Instant;

use super::super::cache::{Object, Seen, kind_row};
use super::super::testing::{self, Objects, at, go, ready, text, yaml};
use super::*;

const CLAIMS: &str = "  volumeClaimTemplates:\n  - metadata: {name: data}\n    spec: \
    {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";

struct World {
    objects: Objects,
    failure: Option<String>,
    resting: BTreeMap<String, Duration>,
}

impl World {
    fn new(spec: &str) -> World {
        let set: StatefulSet = yaml(&format!(
            "metadata: {{name: db, namespace: d}}\nspec:\n  serviceName: db\n  \
             selector: {{matchLabels: {{app: db}}}}\n  template:\n    \
             metadata: {{labels: {{app: db}}}}\n    \
             spec: {{containers: [{{name: c, image: one}}]}}\n{spec}"
        ));
        let mut objects = Objects::default();
        objects.put(&set);
        World { objects, failure: None, resting: BTreeMap::new() }
    }

    fn set(&self) -> Arc<StatefulSet> {
        self.objects.get("db").expect("the set is there")
    }

    fn edit(&mut self, spec: serde_json::Value) {
        self.objects.edit::<StatefulSet>("db", json!({"spec": spec}));
    }

    fn image(&mut self, image: &str) {
        self.edit(testing::image(image));
    }

    fn snapshot(&self) -> Snapshot {
        let set = self.set();
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let (pods, strays) = self.objects.controlled::<Pod>(&uid);
        let (revisions, stray_revisions) = self.objects.controlled(&uid);
        let foreign = self.objects.of::<Pod>().into_iter().filter(|pod| {
            let owner = controller_of(&pod.metadata);
            owner.is_some_and(|owner| owner.uid != uid)
        });
        let claims = self.objects.of::<PersistentVolumeClaim>().into_iter();
        let claims = claims.filter(|claim| claims::may_own(&set, name_of(&claim.metadata)));
        Snapshot {
            foreign: foreign.map(|pod| name_of(&pod.metadata).to_string()).collect(),
            claims: claims.map(|it| (name_of(&it.metadata).to_string(), it)).collect(),
            taken: Vec::new(),
            failure: self.failure.clone(),
            resting: self.resting.clone(),
            set,
            pods,
            strays,
            revisions,
            stray_revisions,
        }
    }

    /// Plans and applies once; the lines of the plan without status and revisions, cut at notes.
    fn step(&mut self) -> String {
        self.objects.seconds += 1;
        let plan = plan(&self.snapshot(), at(self.objects.seconds));
        self.objects.apply(&plan.writes);
        let shown = text(&plan.writes);
        let lines = shown
            .lines()
            .filter(|line| !line.contains("/status ") && !line.contains("controllerrevisions"));
        let cut = |line: &str| line.split(" (").next().unwrap_or("").replace("d/", "");
        lines.map(cut).collect::<Vec<_>>().join(", ")
    }

    /// Steps until there is nothing to do or only Pods to wait for; what was done, in one line.
    fn go(&mut self) -> String {
        go(self, |world| &world.objects, World::step)
    }

    fn ready(&mut self, names: &[&str]) {
        for name in names {
            self.objects.edit::<Pod>(name, ready(self.objects.seconds));
        }
    }

    /// Steps with every Pod becoming ready until all is done.
    fn settle(&mut self) -> String {
        let mut done = Vec::new();
        for _ in 0..40 {
            let went = self.go();
            let quiet = went.is_empty();
            done.extend((!quiet).then_some(went));
            let pods = self.objects.of::<Pod>();
            let waiting = pods.iter().filter(|pod| pods::is_active(pod) && !pods::is_ready(pod));
            let names: Vec<String> =
                waiting.map(|pod| name_of(&pod.metadata).to_string()).collect();
            if quiet && names.is_empty() {
                return done.join("; ");
            }
            names.iter().for_each(|name| self.ready(&[name]));
        }
        panic!("it does not settle: {done:?}");
    }

    /// `name:image` of every Pod.
    fn pods(&self) -> String {
        let image = |pod: &Pod| {
            let spec = pod.spec.clone().unwrap_or_default();
            spec.containers[0].image.clone().unwrap_or_default()
        };
        let pods = self.objects.of::<Pod>();
        let shown = pods.iter().map(|pod| format!("{}:{}", name_of(&pod.metadata), image(pod)));
        shown.collect::<Vec<_>>().join(" ")
    }

    /// Counts of the status: all, ready, available, current, updated; and whether the current
    /// revision is the one of the template.
    fn status(&self) -> String {
        let status = self.set().status.clone().unwrap_or_default();
        let count = |count: Option<i32>| count.unwrap_or(0);
        format!(
            "{} {} {} {} {} {}",
            status.replicas,
            count(status.ready_replicas),
            count(status.available_replicas),
            count(status.current_replicas),
            count(status.updated_replicas),
            if status.current_revision == status.update_revision { "done" } else { "rolling" }
        )
    }
}

#[test]
fn the_name_of_a_pod_that_has_just_gone_stays_free_for_a_moment() {
    for (spec, others) in [("", ""), ("  podManagementPolicy: Parallel", "create pods db-2")] {
        let mut world = World::new(&format!("  replicas: 2\n{spec}"));
        world.settle();
        world.objects.end::<Pod>("db-0");
        world.edit(json!({"replicas": 3}));
        world.resting.insert("db-0".to_string(), NAME_PAUSE);
        assert_eq!(world.go(), others, "in order, the others wait too");
        let again = plan(&world.snapshot(), at(world.objects.seconds)).again;
        assert_eq!(again, Some(NAME_PAUSE));
        world.resting.clear();
        assert_eq!(world.go(), "create pods db-0");
    }
}

#[test]
fn it_is_known_for_how_long_a_name_that_comes_back_has_been_free() {
    let mut cache = Cache::new();
    cache.hold::<Pod>();
    let begin = Instant::now();
    for (name, kind) in [("db-0", "StatefulSet"), ("web-x", "ReplicaSet")] {
        let owner =
            format!("{{apiVersion: apps/v1, kind: {kind}, name: o, uid: u, controller: true}}");
        let pod: Pod =
            yaml(&format!("metadata: {{name: {name}, namespace: d, ownerReferences: [{owner}]}}"));
        let seen = [Seen::Put(Object::new(pod.clone())), Seen::Gone(Object::new(pod))];
        for seen in seen {
            cache.observe(kind_row::<Pod>(), seen, begin);
        }
    }
    let free_for =
        |name: &str| cache.free_for(&Key::of::<Pod>("d", name), begin + Duration::from_millis(40));
    assert_eq!(free_for("db-0"), Some(Duration::from_millis(40)));
    assert_eq!(free_for("web-x"), None, "its name does not come back");
    assert_eq!(free_for("db-1"), None, "nobody had it");
}

#[test]
fn pods_come_in_order_each_when_the_one_before_is_ready() {
    let mut world = World::new("  replicas: 3");
    assert_eq!(world.go(), "create pods db-0");
    assert_eq!(world.status(), "1 0 0 1 1 done");
    assert_eq!(world.go(), "");
    world.ready(&["db-0"]);
    assert_eq!(world.go(), "create pods db-1");
    world.ready(&["db-1"]);
    assert_eq!(world.go(), "create pods db-2");
    world.ready(&["db-2"]);
    assert_eq!(world.go(), "");
    assert_eq!(world.status(), "3 3 3 3 3 done");
    assert_eq!(world.set().status.as_ref().and_then(|status| status.observed_generation), Some(1));
}

#[test]
fn a_pod_knows_who_it_is() {
    let mut world = World::new(&format!("  replicas: 1\n  ordinals: {{start: 5}}\n{CLAIMS}"));
    assert_eq!(world.go(), "create persistentvolumeclaims data-db-5; create pods db-5");
    let pod = world.objects.get::<Pod>("db-5").expect("made");
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let label = |name: &str| labels.get(name).map(String::as_str);
    assert_eq!(label("statefulset.kubernetes.io/pod-name"), Some("db-5"));
    assert_eq!(label("apps.kubernetes.io/pod-index"), Some("5"));
    assert_eq!(label("app"), Some("db"));
    let revision = world.set().status.clone().and_then(|status| status.update_revision);
    assert_eq!(label("controller-revision-hash"), revision.as_deref());
    let spec = pod.spec.clone().unwrap_or_default();
    assert_eq!(spec.hostname.as_deref(), Some("db-5"));
    assert_eq!(spec.subdomain.as_deref(), Some("db"));
    let volume = &spec.volumes.unwrap_or_default()[0];
    let claim = volume.persistent_volume_claim.as_ref().expect("of a claim");
    assert_eq!((volume.name.as_str(), claim.claim_name.as_str()), ("data", "data-db-5"));
    let claim = world.objects.get::<PersistentVolumeClaim>("data-db-5").expect("made");
    let labels = claim.metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels.get("app").map(String::as_str), Some("db"));
    assert_eq!(claim.metadata.owner_references, None);
}

#[test]
fn parallel_pods_do_not_wait_for_each_other() {
    let mut world = World::new("  replicas: 3\n  podManagementPolicy: Parallel");
    assert_eq!(world.go(), "create pods db-0, create pods db-1, create pods db-2");
    world.edit(json!({"replicas": 1}));
    assert_eq!(world.go(), "delete pods db-2, delete pods db-1");
}

#[test]
fn fewer_replicas_go_from_the_highest_one_after_the_other() {
    let mut world = World::new("  replicas: 3");
    world.settle();
    world.objects.lingers = true;
    world.edit(json!({"replicas": 1}));
    assert_eq!(world.go(), "delete pods db-2");
    world.objects.end::<Pod>("db-2");
    assert_eq!(world.go(), "delete pods db-1");
    world.objects.end::<Pod>("db-1");
    assert_eq!(world.go(), "");
    world.edit(json!({"ordinals": {"start": 2}, "replicas": 1}));
    assert_eq!(world.go(), "create pods db-2", "another start moves the window");
    assert_eq!(world.go(), "");
    world.ready(&["db-2"]);
    assert_eq!(world.go(), "delete pods db-0");
}

#[test]
fn pods_that_ended_and_are_not_asked_for_do_not_wait_for_each_other() {
    let mut world = World::new("  replicas: 3");
    world.settle();
    for name in ["db-1", "db-2"] {
        world.objects.edit::<Pod>(name, json!({"status": {"phase": "Failed"}}));
    }
    world.edit(json!({"replicas": 1}));
    assert_eq!(world.go(), "delete pods db-2, delete pods db-1");
}

#[test]
fn an_identity_waits_until_the_one_before_is_gone() {
    let mut world = World::new("  replicas: 2");
    world.settle();
    world.objects.lingers = true;
    // Its node is silent: the Pod is marked, and nobody has said that it ended.
    world.objects.edit::<Pod>("db-0", json!({"metadata": {"deletionTimestamp": at(0)}}));
    assert_eq!(world.go(), "", "nothing is made beside it, and nothing is forced");
    world.objects.end::<Pod>("db-0");
    assert_eq!(world.go(), "create pods db-0");
}

#[test]
fn a_pod_that_ended_is_replaced() {
    let mut world = World::new("  replicas: 1");
    world.settle();
    world.objects.edit::<Pod>("db-0", json!({"status": {"phase": "Failed"}}));
    assert_eq!(world.go(), "delete pods db-0; create pods db-0");
}

#[test]
fn anothers_pod_of_the_same_name_is_in_the_way() {
    let mut world = World::new("  replicas: 1");
    let mut other: Pod = yaml("metadata: {name: db-0, namespace: d}\nspec: {containers: []}");
    other.metadata.owner_references = Some(vec![super::super::testing::owner("other")]);
    world.objects.put(&other);
    let plan = loop {
        let plan = plan(&world.snapshot(), at(1));
        world.objects.apply(&plan.writes);
        if world.set().status.is_some() {
            break plan;
        }
    };
    assert!(text(&plan.writes).contains("Warning FailedCreate: create Pod db-0"));
}

#[test]
fn an_update_goes_from_the_highest_and_waits_for_each() {
    let mut world = World::new("  replicas: 3");
    world.settle();
    world.image("two");
    assert_eq!(world.go(), "delete pods db-2; create pods db-2");
    assert_eq!(world.pods(), "db-0:one db-1:one db-2:two");
    assert_eq!(world.status(), "3 2 2 2 1 rolling");
    world.ready(&["db-2"]);
    assert_eq!(world.go(), "delete pods db-1; create pods db-1");
    world.settle();
    assert_eq!(world.pods(), "db-0:two db-1:two db-2:two");
    assert_eq!(world.status(), "3 3 3 3 3 done");
}

#[test]
fn the_partition_keeps_lower_ordinals_as_they_are() {
    let partition = |partition: i32| {
        let rolling = json!({"partition": partition});
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}})
    };
    let mut world = World::new("  replicas: 3");
    world.settle();
    world.edit(partition(2));
    world.image("two");
    world.settle();
    assert_eq!(world.pods(), "db-0:one db-1:one db-2:two");
    assert_eq!(world.status(), "3 3 3 2 1 rolling");
    // A Pod below the partition comes back as it was.
    world.objects.end::<Pod>("db-0");
    world.settle();
    assert_eq!(world.pods(), "db-0:one db-1:one db-2:two");
    world.edit(partition(0));
    world.settle();
    assert_eq!(world.status(), "3 3 3 3 3 done");
}

#[test]
fn on_delete_leaves_the_update_to_people() {
    let mut world = World::new("  replicas: 2\n  updateStrategy: {type: OnDelete}");
    world.settle();
    world.image("two");
    assert_eq!(world.go(), "");
    world.objects.end::<Pod>("db-0");
    world.settle();
    assert_eq!(world.pods(), "db-0:two db-1:one");
}

#[test]
fn more_than_one_may_be_away_if_it_is_allowed() {
    let mut world = World::new(
        "  replicas: 5\n  podManagementPolicy: Parallel\n  updateStrategy: \
         {type: RollingUpdate, rollingUpdate: {maxUnavailable: 40%}}",
    );
    world.settle();
    world.image("two");
    assert_eq!(
        world.go(),
        "delete pods db-4, delete pods db-3; create pods db-3, create pods db-4"
    );
    world.ready(&["db-4"]);
    assert_eq!(world.go(), "delete pods db-2; create pods db-2");
    // One of the old ones that does not work costs nothing.
    let broken = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    world.objects.edit::<Pod>("db-0", broken);
    assert_eq!(world.go(), "delete pods db-0; create pods db-0");
}

#[test]
fn pods_that_have_just_become_ready_are_not_updated_all_at_once() {
    let spec = "  replicas: 3\n  podManagementPolicy: Parallel\n  minReadySeconds: 10";
    let mut world = World::new(spec);
    world.go();
    world.ready(&["db-0", "db-1", "db-2"]);
    world.image("two");
    assert_eq!(world.go(), "", "they work, and count only later");
    world.objects.seconds += 10;
    assert_eq!(world.go(), "delete pods db-2; create pods db-2");
}

#[test]
fn going_back_is_a_new_revision_of_the_old_template() {
    let mut world = World::new("  replicas: 1");
    world.settle();
    world.image("two");
    world.settle();
    world.image("one");
    world.settle();
    let mut revisions: Vec<(i64, String)> = Vec::new();
    for revision in world.objects.of::<ControllerRevision>() {
        let template = history::template_of(&revision).expect("a template");
        let image = template.spec.and_then(|spec| spec.containers[0].image.clone());
        revisions.push((revision.revision.unwrap_or(0), image.unwrap_or_default()));
    }
    revisions.sort();
    assert_eq!(revisions, [(2, "two".to_string()), (3, "one".to_string())]);
    assert_eq!(world.pods(), "db-0:one");
}

#[test]
fn history_is_trimmed_and_keeps_what_is_in_use() {
    let mut world = World::new("  replicas: 1\n  revisionHistoryLimit: 1");
    for image in ["one", "two", "three", "four"] {
        world.image(image);
        world.settle();
    }
    let revisions = world.objects.of::<ControllerRevision>();
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort();
    assert_eq!(numbers, [Some(3), Some(4)]);
}

#[test]
fn a_pod_that_cannot_start_gives_way_to_a_better_revision() {
    let mut world = World::new("  replicas: 2");
    world.settle();
    world.image("bad");
    assert_eq!(world.go(), "delete pods db-1; create pods db-1");
    assert_eq!(world.go(), "", "it waits for the new one");
    world.image("one");
    assert_eq!(world.go(), "delete pods db-1; create pods db-1");
    world.settle();
    assert_eq!(world.pods(), "db-0:one db-1:one");
    // One that ran and is not ready for now is left alone.
    world.objects.edit::<Pod>(
        "db-0",
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    world.image("two");
    assert_eq!(world.go(), "");
}

#[test]
fn a_pod_counts_when_it_has_been_ready_for_long_enough() {
    let mut world = World::new("  replicas: 2\n  minReadySeconds: 10");
    world.go();
    world.ready(&["db-0"]);
    assert_eq!(world.go(), "");
    assert_eq!(world.status(), "1 1 0 1 1 done");
    assert!(plan(&world.snapshot(), at(world.objects.seconds)).again.is_some());
    world.objects.seconds += 10;
    assert_eq!(world.go(), "create pods db-1");
}

#[test]
fn a_claim_that_goes_is_waited_for() {
    let mut world = World::new(&format!("  replicas: 1\n{CLAIMS}"));
    world.settle();
    let deleting = json!({"metadata": {"deletionTimestamp": at(0)}});
    world.objects.edit::<PersistentVolumeClaim>("data-db-0", deleting);
    world.objects.end::<Pod>("db-0");
    assert_eq!(world.go(), "");
    world.objects.end::<PersistentVolumeClaim>("data-db-0");
    assert_eq!(world.go(), "create persistentvolumeclaims data-db-0; create pods db-0");
}

/// Who owns `data-db-ORDINAL`.
fn owner_of(world: &World, ordinal: i32) -> String {
    let name = format!("data-db-{ordinal}");
    let claim = world.objects.get::<PersistentVolumeClaim>(&name).expect("the claim is there");
    let owners = claim.metadata.owner_references.clone().unwrap_or_default();
    owners.first().map_or("nobody".to_string(), |owner| owner.kind.clone())
}

#[test]
fn claims_are_owned_as_the_retention_policy_says() {
    for (scaled, deleted, wanted, condemned) in [
        ("Retain", "Retain", "nobody", "nobody"),
        ("Retain", "Delete", "StatefulSet", "StatefulSet"),
        ("Delete", "Retain", "nobody", "Pod"),
        ("Delete", "Delete", "StatefulSet", "Pod"),
    ] {
        let policy = format!("{{whenScaled: {scaled}, whenDeleted: {deleted}}}");
        let policy = format!("  persistentVolumeClaimRetentionPolicy: {policy}\n");
        let mut world = World::new(&format!("  replicas: 2\n{CLAIMS}{policy}"));
        world.settle();
        assert_eq!(owner_of(&world, 1), wanted, "{policy}");
        world.objects.lingers = true;
        world.edit(json!({"replicas": 1}));
        world.settle();
        let case = (owner_of(&world, 0), owner_of(&world, 1));
        assert_eq!(case, (wanted.to_string(), condemned.to_string()), "{policy}");
    }
}

#[test]
fn a_claim_of_a_pod_that_was_scaled_away_is_not_used_again() {
    let policy = "  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}\n";
    let mut world = World::new(&format!("  replicas: 1\n{CLAIMS}{policy}"));
    world.settle();
    world.edit(json!({"replicas": 0}));
    world.go();
    world.edit(json!({"replicas": 1}));
    assert_eq!(world.go(), "", "the garbage collector has it first");
    world.objects.end::<PersistentVolumeClaim>("data-db-0");
    assert_eq!(world.go(), "create persistentvolumeclaims data-db-0; create pods db-0");
}

#[test]
fn a_pod_of_its_own_names_is_adopted() {
    let mut world = World::new("  replicas: 1");
    for name in ["db-0", "db-x"] {
        let pod: Pod = yaml(&format!(
            "metadata: {{name: {name}, namespace: d, labels: {{app: db}}}}\n\
             spec: {{containers: [{{name: c, image: zero}}]}}"
        ));
        world.objects.put(&pod);
    }
    world.settle();
    let owner = |name: &str| {
        let pod = world.objects.get::<Pod>(name).expect("there");
        controller_of(&pod.metadata).map(|owner| owner.name.clone())
    };
    assert_eq!(owner("db-0").as_deref(), Some("db"));
    assert_eq!(owner("db-x"), None);
    assert!(world.pods().starts_with("db-0:one"), "without a revision it is outdated");
}

#[test]
fn a_failure_is_told_and_tried_with_one_pod() {
    let mut world = World::new("  replicas: 3\n  podManagementPolicy: Parallel");
    world.step();
    world.failure = Some("quota is used up".to_string());
    let shown = text(&plan(&world.snapshot(), at(2)).writes);
    let message = "create Pod db-0 in StatefulSet db failed error: quota is used up";
    assert!(shown.contains(message), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("create")).count(), 1);
}

#[test]
fn a_set_that_is_deleted_only_reports() {
    let mut world = World::new("  replicas: 2");
    world.settle();
    world.objects.edit::<StatefulSet>("db", json!({"metadata": {"deletionTimestamp": at(0)}}));
    world.objects.end::<Pod>("db-1");
    assert_eq!(world.go(), "");
    assert_eq!(world.status(), "1 1 1 1 1 done");
}
