//! Scripts over [`plan`]: a small world with nodes applies what is planned; Pods become ready and
//! end as the test says.

use super::super::testing::{self, Objects, at, go, ready, text, yaml};
use super::*;

struct World {
    objects: Objects,
    failure: Option<String>,
    /// Keeps in mind what plans want to be kept in mind.
    cache: Cache,
}

impl World {
    fn new(nodes: &[&str], spec: &str) -> World {
        let set: DaemonSet = yaml(&format!(
            "metadata: {{name: log, namespace: d}}\nspec:\n  \
             selector: {{matchLabels: {{app: log}}}}\n  template:\n    \
             metadata: {{labels: {{app: log}}}}\n    \
             spec: {{containers: [{{name: c, image: one}}]}}\n{spec}"
        ));
        let mut world =
            World { objects: Objects::default(), failure: None, cache: Cache::default() };
        world.objects.put(&set);
        nodes.iter().for_each(|node| world.node(node, "{}"));
        world
    }

    fn node(&mut self, name: &str, spec: &str) {
        let node: Node =
            yaml(&format!("metadata: {{name: {name}, labels: {{disk: ssd}}}}\nspec: {spec}"));
        self.objects.put(&node);
    }

    fn edit(&mut self, spec: serde_json::Value) {
        self.objects.edit::<DaemonSet>("log", json!({"spec": spec}));
    }

    fn image(&mut self, image: &str) {
        self.edit(testing::image(image));
    }

    fn snapshot(&self) -> Snapshot {
        let set = self.objects.get::<DaemonSet>("log").expect("the set is there");
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let (pods, strays) = self.objects.controlled::<Pod>(&uid);
        let (revisions, stray_revisions) = self.objects.controlled(&uid);
        Snapshot {
            nodes: self.objects.of(),
            taken: Vec::new(),
            failure: self.failure.clone(),
            failures: self.cache.memo(&Key::of::<DaemonSet>("d", "log")).unwrap_or_default(),
            revision: u64::try_from(self.objects.seconds).unwrap_or(0),
            set,
            pods,
            strays,
            revisions,
            stray_revisions,
        }
    }

    /// Plans and applies once; what became of Pods, as `+node` and `-node`.
    fn step(&mut self) -> String {
        self.objects.seconds += 1;
        let before: BTreeMap<String, String> = self.by_name();
        let plan = plan(&self.snapshot(), at(self.objects.seconds));
        self.objects.apply(&plan.writes);
        for write in &plan.writes {
            if let Action::Remember { about, memo } = &write.action {
                self.cache.remember(about, memo.clone());
            }
        }
        let after = self.by_name();
        let made = after.iter().filter(|(name, _)| !before.contains_key(*name));
        let mut all: Vec<String> = made.map(|(_, node)| format!("+{node}")).collect();
        for write in plan.writes.iter().map(ToString::to_string) {
            let Some(rest) = write.strip_prefix("delete pods d/") else { continue };
            let name = rest.split(' ').next().unwrap_or("");
            all.push(format!("-{}", before.get(name).map_or("", String::as_str)));
        }
        all.sort();
        all.join(" ")
    }

    fn by_name(&self) -> BTreeMap<String, String> {
        let pods = self.objects.of::<Pod>();
        let named =
            |pod: &Arc<Pod>| (name_of(&pod.metadata).to_string(), place::target(pod).to_string());
        pods.iter().map(named).collect()
    }

    /// Steps until nothing changes.
    fn go(&mut self) -> String {
        go(self, |world| &world.objects, World::step)
    }

    /// Pods on these nodes become ready.
    fn ready(&mut self, nodes: &[&str]) {
        let seconds = self.objects.seconds;
        for (name, node) in self.by_name() {
            if nodes.contains(&node.as_str()) {
                self.objects.edit::<Pod>(&name, ready(seconds));
            }
        }
    }

    /// Ends the Pods on a node.
    fn end(&mut self, node: &str) {
        let named = self.by_name().into_iter().filter(|(_, on)| on == node);
        named.for_each(|(name, _)| self.objects.end::<Pod>(&name));
    }

    /// The Pod on a node fails.
    fn fail(&mut self, node: &str) {
        let status = json!({"status": {"phase": "Failed", "conditions": []}});
        let named = self.by_name().into_iter().filter(|(_, on)| on == node);
        named.for_each(|(name, _)| self.objects.edit::<Pod>(&name, status.clone()));
    }

    /// Ends the Pods that are on their way out.
    fn end_leaving(&mut self) {
        for pod in self.objects.of::<Pod>() {
            if pods::is_deleting(&pod) {
                self.objects.end::<Pod>(name_of(&pod.metadata));
            }
        }
    }

    /// desired current ready updated available unavailable misscheduled
    fn status(&self) -> String {
        let set = self.objects.get::<DaemonSet>("log").expect("the set is there");
        let status = set.status.clone().unwrap_or_default();
        let counts = [
            Some(status.desired_number_scheduled),
            Some(status.current_number_scheduled),
            Some(status.number_ready),
            status.updated_number_scheduled,
            status.number_available,
            status.number_unavailable,
            Some(status.number_misscheduled),
        ];
        counts.map(|count| count.unwrap_or(0).to_string()).join(" ")
    }
}

const THREE: &[&str] = &["a", "b", "c"];

#[test]
fn every_node_gets_one_pod() {
    let mut world = World::new(THREE, "");
    assert_eq!(world.go(), "+a +b +c");
    assert_eq!(world.status(), "3 3 0 3 0 3 0");
    world.ready(THREE);
    assert_eq!(world.go(), "");
    assert_eq!(world.status(), "3 3 3 3 3 0 0");
    world.node("e", "{}");
    assert_eq!(world.go(), "+e");
    let pods = world.objects.of::<Pod>();
    let spec = pods[0].spec.clone().unwrap_or_default();
    let tolerations = spec.tolerations.unwrap_or_default();
    assert_eq!(tolerations.len(), 6);
    assert!(tolerations.iter().all(|one| one.operator.as_deref() == Some("Exists")));
    let labels = pods[0].metadata.labels.clone().unwrap_or_default();
    let revision = &world.objects.of::<ControllerRevision>()[0];
    assert_eq!(
        labels.get("controller-revision-hash").map(String::as_str),
        Some(history::hash(revision))
    );
}

#[test]
fn the_template_says_which_nodes() {
    let mut world = World::new(&[], "");
    world.node("plain", "{}");
    world.node("tainted", "{taints: [{key: k, effect: NoSchedule}]}");
    world.node(
        "cordoned",
        "{unschedulable: true, taints: \
         [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}",
    );
    world.node("lost", "{taints: [{key: node.kubernetes.io/unreachable, effect: NoExecute}]}");
    assert_eq!(world.go(), "+cordoned +lost +plain");
    world.edit(json!({"template": {"spec": {"nodeSelector": {"disk": "hdd"}}}}));
    assert_eq!(world.go(), "-cordoned -lost -plain");
    world.edit(json!({"template": {"spec": {"nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}]}}}));
    assert_eq!(world.go(), "+cordoned +lost +plain +tainted");
}

#[test]
fn a_taint_that_comes_later_lets_a_pod_stay_or_not() {
    let mut world = World::new(&["a", "b"], "");
    world.go();
    world.node("a", "{taints: [{key: k, effect: NoSchedule}]}");
    assert_eq!(world.go(), "");
    assert_eq!(world.status(), "1 1 0 1 0 1 1");
    world.end("a");
    assert_eq!(world.go(), "");
    world.node("b", "{taints: [{key: k, effect: NoExecute}]}");
    assert_eq!(world.go(), "-b");
    assert_eq!(world.status(), "0 0 0 0 0 0 0");
}

#[test]
fn pods_of_nodes_that_are_gone_go() {
    let mut world = World::new(&["a", "b"], "");
    world.go();
    world.objects.end::<Node>("b");
    assert_eq!(world.go(), "-b");
}

#[test]
fn a_pod_that_ended_is_replaced_but_not_in_a_hurry() {
    let mut world = World::new(&["a", "b"], "");
    world.go();
    world.fail("a");
    assert_eq!(world.step(), "-a", "the first at once");
    assert_eq!(world.step(), "+a");
    world.objects.seconds -= 2;
    world.fail("a");
    assert_eq!(world.step(), "", "the next after a second");
    let again = plan(&world.snapshot(), at(world.objects.seconds)).again;
    assert_eq!(again, Some(Duration::from_secs(1)));
    world.fail("b");
    assert_eq!(world.step(), "-a -b", "each node has its own pause");
    assert_eq!(world.step(), "+a +b");
    world.objects.seconds -= 2;
    world.fail("a");
    // Under another spec nothing has failed yet.
    world.image("two");
    assert_eq!(world.step(), "");
    assert!(world.step().contains("-a"));
}

#[test]
fn an_update_takes_as_many_as_may_be_away() {
    let mut world = World::new(THREE, "");
    world.go();
    world.ready(THREE);
    world.go();
    world.image("two");
    world.objects.lingers = true;
    assert_eq!(world.go(), "-a");
    assert_eq!(world.go(), "", "while the old Pod is there, no new one comes beside it");
    world.end("a");
    assert_eq!(world.go(), "+a");
    assert_eq!(world.status(), "3 3 2 1 2 1 0");
    world.ready(&["a"]);
    assert_eq!(world.go(), "-b");
    world.end("b");
    assert_eq!(world.go(), "+b");
    world.ready(&["b"]);
    assert_eq!(world.go(), "-c");
    world.end("c");
    world.go();
    world.ready(&["c"]);
    world.go();
    assert_eq!(world.status(), "3 3 3 3 3 0 0");
}

#[test]
fn old_pods_that_do_not_work_go_at_once() {
    let mut world = World::new(THREE, "");
    world.go();
    world.ready(&["a"]);
    world.image("two");
    assert_eq!(world.go(), "-b -c; +b +c", "the one that works stays until another does");
    world.ready(&["b", "c"]);
    assert_eq!(world.go(), "-a; +a");
}

#[test]
fn on_delete_leaves_the_update_to_people() {
    let mut world = World::new(&["a", "b"], "  updateStrategy: {type: OnDelete}");
    world.go();
    world.image("two");
    assert_eq!(world.go(), "");
    world.end("a");
    assert_eq!(world.go(), "+a");
    assert_eq!(world.status(), "2 2 0 1 0 2 0");
}

const SURGE: &str = "  updateStrategy: {type: RollingUpdate, rollingUpdate: \
    {maxSurge: 1, maxUnavailable: 0}}";

#[test]
fn with_surge_the_new_pod_works_before_the_old_one_goes() {
    let mut world = World::new(THREE, SURGE);
    world.go();
    world.ready(THREE);
    world.go();
    world.image("two");
    assert_eq!(world.go(), "+a");
    assert_eq!(world.status(), "3 3 3 0 3 0 0", "a node with its old Pod is not done");
    world.ready(&["a"]);
    assert_eq!(world.go(), "+b -a", "as soon as it works the next node may begin");
    world.ready(&["b"]);
    assert_eq!(world.go(), "+c -b");
    world.ready(&["c"]);
    assert_eq!(world.go(), "-c");
    assert_eq!(world.status(), "3 3 3 3 3 0 0");
}

#[test]
fn nodes_that_must_not_run_a_pod_hold_no_update_up() {
    let mut world = World::new(&["a", "b", "lost"], "");
    world.node("tainted", "{taints: [{key: k, effect: NoSchedule}]}");
    assert_eq!(world.go(), "+a +b +lost");
    world.ready(&["a", "b"]);
    world.node("lost", "{taints: [{key: node.kubernetes.io/unreachable, effect: NoSchedule}]}");
    world.image("two");
    world.objects.lingers = true;
    assert_eq!(world.go(), "-a -lost");
    world.end("a");
    assert_eq!(world.go(), "+a");
    world.ready(&["a"]);
    assert_eq!(world.go(), "-b", "the one that does not end keeps nobody waiting");
    world.end("b");
    assert_eq!(world.go(), "+b");
    world.ready(&["b"]);
    world.go();
    assert_eq!(world.status(), "2 2 2 2 2 0 1");
}

#[test]
fn a_new_pod_that_is_ending_is_away() {
    let mut world = World::new(&["a", "b"], "");
    world.go();
    world.ready(&["a", "b"]);
    world.image("two");
    assert_eq!(world.go(), "-a; +a");
    world.ready(&["a"]);
    world.objects.lingers = true;
    let pods = world.objects.of::<Pod>();
    let new = pods.iter().find(|pod| place::target(pod) == "a").expect("the Pod of a");
    let deleted = json!({"metadata": {"deletionTimestamp": at(world.objects.seconds)}});
    world.objects.edit::<Pod>(name_of(&new.metadata), deleted);
    assert_eq!(world.go(), "", "although it still says that it is ready");
}

#[test]
fn with_surge_a_node_never_runs_three() {
    let mut world = World::new(&["a"], SURGE);
    world.go();
    world.ready(&["a"]);
    world.image("two");
    assert_eq!(world.go(), "+a");
    world.objects.lingers = true;
    world.ready(&["a"]);
    assert_eq!(world.go(), "-a");
    world.image("three");
    assert_eq!(world.go(), "", "one works, and one is still ending");
    world.end_leaving();
    assert_eq!(world.go(), "+a");
    assert_eq!(world.by_name().len(), 2);
}

#[test]
fn with_surge_a_new_pod_that_failed_has_its_place_until_it_is_replaced() {
    let mut world = World::new(&["a"], SURGE);
    world.go();
    world.ready(&["a"]);
    world.go();
    let old = world.by_name();
    world.image("two");
    assert_eq!(world.go(), "+a");
    let fail = |world: &mut World| {
        let new = world.by_name().into_keys().find(|name| !old.contains_key(name));
        let failed = json!({"status": {"phase": "Failed"}});
        world.objects.edit::<Pod>(&new.expect("the new Pod"), failed);
    };
    fail(&mut world);
    assert_eq!(world.step(), "-a");
    assert_eq!(world.step(), "+a");
    world.objects.seconds -= 2;
    fail(&mut world);
    assert_eq!(world.step(), "", "it waits for its pause, and nothing comes in its place");
    assert_eq!(world.by_name().len(), 2);
}

#[test]
fn with_surge_old_pods_of_no_use_go() {
    let mut world = World::new(&["a", "b"], SURGE);
    world.go();
    world.ready(&["a", "b"]);
    world.go();
    let old: BTreeMap<String, String> = world.by_name();
    // Where none is to run any more, the old one goes as soon as enough others work.
    world.node("b", "{taints: [{key: k, effect: NoSchedule}]}");
    world.image("two");
    assert_eq!(world.go(), "+a -b");
    let (broken, _) = old.iter().find(|(_, node)| *node == "a").expect("the Pod of a");
    let unready = json!([{"type": "Ready", "status": "False"}]);
    world.objects.edit::<Pod>(broken, json!({"status": {"conditions": unready}}));
    assert_eq!(world.go(), "-a", "it works no more than the new one");
}

#[test]
fn two_of_a_kind_on_a_node_are_one_too_many() {
    let mut world = World::new(&["a"], "");
    world.go();
    let mut twin = world.objects.of::<Pod>()[0].as_ref().clone();
    twin.metadata.name = Some("log-twin".to_string());
    let later = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(99));
    twin.metadata.creation_timestamp = Some(later);
    world.objects.put(&twin);
    let shown = text(&plan(&world.snapshot(), at(100)).writes);
    assert!(shown.contains("delete pods d/log-twin "), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("delete")).count(), 1);
}

#[test]
fn going_back_gives_the_old_revision_the_next_number() {
    let mut world = World::new(&["a"], "  revisionHistoryLimit: 1");
    for image in ["one", "two", "one", "three"] {
        world.image(image);
        world.go();
        world.ready(&["a"]);
        world.go();
        world.ready(&["a"]);
        world.go();
    }
    let revisions = world.objects.of::<ControllerRevision>();
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort();
    assert_eq!(numbers, [Some(3), Some(4)]);
}

#[test]
fn a_failure_is_told_and_tried_with_one_pod() {
    let mut world = World::new(THREE, "");
    world.step();
    world.failure = Some("quota is used up".to_string());
    let shown = text(&plan(&world.snapshot(), at(2)).writes);
    assert!(shown.contains("Warning FailedCreate: Error creating: quota is used up"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("create pods")).count(), 1);
}
