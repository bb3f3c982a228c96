//! Scripts over [`plan`]: a small world applies what is planned; Pods end as the test says.

use std::time::Instant;

use super::super::cache::{Object, Seen, kind_row};
use super::super::testing::{Objects, at, check_lines, text, yaml};
use super::*;

struct World {
    objects: Objects,
    failure: Option<String>,
}

impl World {
    fn new(spec: &str) -> World {
        World::of(spec, "Never")
    }

    fn of(spec: &str, restarts: &str) -> World {
        let job: Job = yaml(&format!(
            "metadata: {{name: sum, namespace: d}}\nspec:\n  template: {{spec: \
             {{restartPolicy: {restarts}, containers: [{{name: c, image: i}}]}}}}\n{spec}"
        ));
        let mut objects = Objects::default();
        objects.put(&job);
        World { objects, failure: None }
    }

    fn job(&self) -> Arc<Job> {
        self.objects.get("sum").expect("the Job is there")
    }

    fn snapshot(&self) -> Snapshot {
        let job = self.job();
        let uid = job.metadata.uid.clone().unwrap_or_default();
        Snapshot {
            pods: self.objects.controlled(&uid).0,
            strays: Vec::new(),
            failure: self.failure.clone(),
            revision: u64::try_from(self.objects.seconds).unwrap_or(0),
            job,
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.snapshot(), at(self.objects.seconds))
    }

    /// Steps until nothing changes; returns how many Pods were made.
    fn go(&mut self) -> usize {
        let mut made = 0;
        for _ in 0..30 {
            self.objects.seconds += 1;
            let writes = self.plan().writes;
            if writes.is_empty() {
                return made;
            }
            let is_create = |write: &&Write| matches!(write.action, Action::Create { .. });
            made += writes.iter().filter(is_create).count();
            // One after the other: finalizers go before their Pods.
            self.objects.apply(&writes);
            if self.objects.get::<Job>("sum").is_none() {
                return made;
            }
        }
        panic!("it does not settle: {}", text(&self.plan().writes));
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.objects.of::<Pod>();
        pods.retain(|pod| pods::is_active(pod));
        pods
    }

    /// The first active Pod, or the one of an index, ends with this exit code.
    fn end(&mut self, index: Option<i32>, code: i32) {
        let active = self.active();
        let mut found =
            active.iter().filter(|pod| index.is_none() || index::of_pod(&pod.metadata) == index);
        let pod = found.next().expect("one is active");
        let name = name_of(&pod.metadata).to_string();
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let state = json!({"terminated": {
            "exitCode": code, "finishedAt": at(self.objects.seconds),
        }});
        let container = json!({
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        });
        let status = json!({"phase": phase, "containerStatuses": [container]});
        self.objects.edit::<Pod>(&name, json!({"status": status}));
    }

    /// `active succeeded failed` and the conditions that hold.
    fn status(&self) -> String {
        let status = self.job().status.clone().unwrap_or_default();
        let count = |count: Option<i32>| count.unwrap_or(0);
        let held = status.conditions.iter().flatten().filter(|held| held.status == "True");
        let held: Vec<&str> = held.map(|held| held.type_.as_str()).collect();
        let counts = [status.active, status.succeeded, status.failed].map(count);
        format!("{} {} {} {}", counts[0], counts[1], counts[2], held.join(" ")).trim().to_string()
    }

    fn reason(&self) -> String {
        let status = self.job().status.clone().unwrap_or_default();
        let last = status.conditions.and_then(|mut all| all.pop());
        last.and_then(|last| last.reason).unwrap_or_default()
    }

    fn wait(&mut self, seconds: i64) {
        self.objects.seconds += seconds;
    }
}

#[test]
fn pods_are_made_up_to_parallelism_and_completions() {
    let mut world = World::new("  completions: 5\n  parallelism: 3");
    assert_eq!(world.go(), 3);
    world.end(None, 0);
    assert_eq!(world.go(), 1);
    world.end(None, 0);
    world.end(None, 0);
    assert_eq!(world.go(), 1, "two are left, one of them runs");
    assert_eq!(world.status(), "2 3 0");
    world.end(None, 0);
    world.end(None, 0);
    assert_eq!(world.go(), 0);
    assert_eq!(world.status(), "0 5 0 SuccessCriteriaMet Complete");
    assert!(world.job().status.as_ref().is_some_and(|it| it.completion_time.is_some()));
}

#[test]
fn without_a_number_the_first_success_is_the_end() {
    let mut world = World::new("  parallelism: 2");
    assert_eq!(world.go(), 2);
    world.end(None, 0);
    assert_eq!(world.go(), 0);
    assert_eq!(world.status(), "1 1 0", "the other may end by itself");
    world.end(None, 0);
    world.go();
    assert_eq!(world.status(), "0 2 0 SuccessCriteriaMet Complete");
}

#[test]
fn what_was_counted_stays_counted_when_its_pod_goes() {
    let mut world = World::new("  completions: 3\n  parallelism: 1");
    for done in 1..=2 {
        world.go();
        world.end(None, 0);
        world.go();
        // Somebody clears up.
        let ended = world.objects.of::<Pod>();
        for pod in ended.iter().filter(|pod| pods::is_finished(pod)) {
            world.objects.end::<Pod>(name_of(&pod.metadata));
        }
        assert_eq!(world.status(), format!("1 {done} 0"));
    }
}

#[test]
fn a_pod_that_ended_is_held_until_it_is_counted() {
    let mut world = World::new("  completions: 2\n  parallelism: 1");
    world.go();
    world.end(None, 0);
    world.objects.seconds += 1;
    let first = text(&world.plan().writes);
    assert!(first.contains(r#""uncountedTerminatedPods":{"succeeded":["#), "{first}");
    assert!(!first.contains("finalizers"), "the status comes first: {first}");
    let writes = world.plan().writes;
    world.objects.apply(&writes);
    let second = text(&world.plan().writes);
    assert!(second.contains(r#"{"metadata":{"finalizers":[]}}"#), "{second}");
    world.go();
    assert_eq!(world.status(), "1 1 0");
}

#[test]
fn failures_cost_a_pause_and_then_the_job() {
    let mut world = World::new("  completions: 1\n  parallelism: 1\n  backoffLimit: 1");
    assert_eq!(world.go(), 1);
    world.end(None, 1);
    assert_eq!(world.go(), 0, "the pause");
    assert!(world.plan().again.is_some_and(|again| again <= Duration::from_secs(10)));
    world.wait(10);
    assert_eq!(world.go(), 1);
    world.end(None, 1);
    assert_eq!(world.go(), 0);
    assert_eq!(world.status(), "0 0 2 FailureTarget Failed");
    assert_eq!(world.reason(), "BackoffLimitExceeded");
}

#[test]
fn restarts_in_place_count_against_the_limit() {
    let mut world = World::of("  completions: 1\n  backoffLimit: 2", "OnFailure");
    world.go();
    let name = name_of(&world.active()[0].metadata).to_string();
    let container = json!({
        "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 2,
    });
    let status = json!({"phase": "Running", "containerStatuses": [container]});
    world.objects.edit::<Pod>(&name, json!({"status": status}));
    world.objects.lingers = true;
    world.go();
    assert_eq!(world.reason(), "BackoffLimitExceeded");
}

#[test]
fn the_end_waits_until_pods_have_ended() {
    let mut world = World::new("  completions: 2\n  parallelism: 2\n  backoffLimit: 0");
    world.go();
    world.objects.lingers = true;
    world.end(None, 1);
    world.go();
    assert_eq!(world.status(), "0 0 2 FailureTarget");
    let leaving = world.objects.of::<Pod>().into_iter().find(|pod| pods::is_deleting(pod));
    let name = name_of(&leaving.expect("the other is on its way out").metadata).to_string();
    world.objects.end::<Pod>(&name);
    world.go();
    assert_eq!(world.status(), "0 0 2 FailureTarget Failed");
}

#[test]
fn the_deadline_ends_it() {
    let mut world = World::new("  completions: 1\n  activeDeadlineSeconds: 30");
    world.go();
    assert!(world.plan().again.is_some());
    world.wait(40);
    let ended = text(&world.plan().writes);
    assert!(ended.contains("(Normal SuccessfulDelete: Deleted pod: sum-"), "{ended}");
    world.go();
    assert_eq!(world.reason(), "DeadlineExceeded");
}

#[test]
fn a_suspended_job_has_no_pods_and_loses_no_try() {
    let mut world = World::new("  completions: 1\n  parallelism: 1");
    world.go();
    world.objects.edit::<Job>("sum", json!({"spec": {"suspend": true}}));
    world.go();
    assert_eq!(world.status(), "0 0 0 Suspended");
    assert_eq!(world.objects.of::<Pod>().len(), 0);
    assert!(world.job().status.as_ref().is_some_and(|it| it.start_time.is_none()));
    world.objects.edit::<Job>("sum", json!({"spec": {"suspend": false}}));
    assert_eq!(world.go(), 1);
    assert_eq!(world.status(), "1 0 0");
}

#[test]
fn fewer_at_once_takes_pods_away_uncounted() {
    let mut world = World::new("  completions: 9\n  parallelism: 3");
    world.go();
    world.objects.edit::<Job>("sum", json!({"spec": {"parallelism": 1}}));
    assert_eq!(world.go(), 0);
    assert_eq!(world.status(), "1 0 0");
}

#[test]
fn replacement_comes_with_the_end_or_with_its_beginning() {
    for (policy, made, terminating) in [("TerminatingOrFailed", 1, 1), ("Failed", 0, 1)] {
        let mut world = World::new(&format!("  completions: 1\n  podReplacementPolicy: {policy}"));
        world.objects.lingers = true;
        world.go();
        let name = name_of(&world.active()[0].metadata).to_string();
        let leaving = json!({"metadata": {
            "deletionTimestamp": at(1), "deletionGracePeriodSeconds": 30,
        }});
        world.objects.edit::<Pod>(&name, leaving);
        world.wait(20);
        assert_eq!(world.go(), made, "{policy}");
        let told = world.job().status.as_ref().and_then(|status| status.terminating);
        assert_eq!(told, Some(terminating), "{policy}");
    }
}

#[test]
fn indexes_are_worked_off_each_once() {
    let mut world = World::new("  completions: 3\n  parallelism: 2\n  completionMode: Indexed");
    assert_eq!(world.go(), 2);
    let pod = &world.active()[0];
    let spec = pod.spec.clone().unwrap_or_default();
    assert_eq!(index::of_pod(&pod.metadata), Some(0));
    assert_eq!(spec.hostname.as_deref(), Some("sum-0"));
    assert!(name_of(&pod.metadata).starts_with("sum-0-"));
    let env = spec.containers[0].env.clone().unwrap_or_default();
    assert_eq!(env[0].name, "JOB_COMPLETION_INDEX");
    world.end(Some(1), 0);
    assert_eq!(world.go(), 1);
    world.end(Some(0), 1);
    world.wait(20);
    assert_eq!(world.go(), 1, "index 0 again");
    world.end(Some(0), 0);
    world.end(Some(2), 0);
    world.go();
    assert_eq!(world.status(), "0 3 1 SuccessCriteriaMet Complete");
    let status = world.job().status.clone().unwrap_or_default();
    assert_eq!(status.completed_indexes.as_deref(), Some("0-2"));
}

#[test]
fn more_indexes_than_memory_holds_are_begun_with() {
    let mut world = World::new(
        "  completions: 2147483647\n  parallelism: 2\n  completionMode: Indexed\n  \
         successPolicy: {rules: [{succeededIndexes: 0-2147483646}]}",
    );
    assert_eq!(world.go(), 2);
    world.end(Some(0), 0);
    assert_eq!(world.go(), 1);
}

#[test]
fn a_count_of_failures_that_somebody_wrote_is_no_number_to_trust() {
    let mut meta = ObjectMeta::default();
    for (written, read) in [("3", 3), ("18446744073709551615", 0), ("-1", 0)] {
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(index::FAILURES.to_string(), written.to_string());
        assert_eq!(index::failures_before(&meta), read);
    }
}

#[test]
fn each_index_has_its_own_tries() {
    let mut world = World::new(
        "  completions: 2\n  parallelism: 2\n  completionMode: Indexed\n  \
         backoffLimitPerIndex: 1\n  backoffLimit: 2147483647",
    );
    world.go();
    for _ in 0..2 {
        world.end(Some(0), 1);
        world.wait(60);
        world.go();
    }
    let status = world.job().status.clone().unwrap_or_default();
    assert_eq!(status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(world.status(), "1 0 2", "the other goes on");
    world.end(Some(1), 0);
    world.go();
    assert_eq!(world.status(), "0 1 2 FailureTarget Failed");
    assert_eq!(world.reason(), "FailedIndexes");
}

#[test]
fn too_many_failed_indexes_end_it_early() {
    let mut world = World::new(
        "  completions: 3\n  parallelism: 3\n  completionMode: Indexed\n  \
         backoffLimitPerIndex: 0\n  maxFailedIndexes: 0\n  backoffLimit: 2147483647",
    );
    world.go();
    world.end(Some(2), 1);
    world.go();
    assert_eq!(world.reason(), "MaxFailedIndexesExceeded");
}

#[test]
fn rules_decide_what_a_failure_means() {
    let rules = |action: &str, code: i32| {
        format!(
            "  completions: 1\n  backoffLimit: 1\n  podReplacementPolicy: Failed\n  \
             podFailurePolicy: {{rules: [{{action: {action}, onExitCodes: \
             {{containerName: c, operator: In, values: [{code}]}}}}]}}"
        )
    };
    let mut world = World::new(&rules("FailJob", 42));
    world.go();
    world.end(None, 42);
    world.go();
    assert_eq!(world.reason(), "PodFailurePolicy");
    let conditions = world.job().status.clone().and_then(|status| status.conditions);
    let message = conditions.and_then(|all| all[0].message.clone()).unwrap_or_default();
    let end = "failed with exit code 42 matching FailJob rule at index 0";
    assert!(message.starts_with("Container c for pod d/sum-") && message.ends_with(end));

    let mut world = World::new(&rules("Ignore", 42));
    for _ in 0..3 {
        world.go();
        world.end(None, 42);
    }
    world.go();
    assert_eq!(world.status(), "1 0 0", "it costs no try");

    let mut world = World::new(&rules("Count", 42));
    world.go();
    world.end(None, 42);
    world.go();
    assert_eq!(world.status(), "0 0 1");
}

#[test]
fn a_condition_of_the_pod_can_be_ignored() {
    let mut world = World::new(
        "  completions: 1\n  podReplacementPolicy: Failed\n  podFailurePolicy: {rules: \
         [{action: Ignore, onPodConditions: [{type: DisruptionTarget, status: 'True'}]}]}",
    );
    world.go();
    let name = name_of(&world.active()[0].metadata).to_string();
    let condition = json!({"type": "DisruptionTarget", "status": "True"});
    let status = json!({"phase": "Failed", "conditions": [condition]});
    world.objects.edit::<Pod>(&name, json!({"status": status}));
    assert_eq!(world.go(), 1);
    assert_eq!(world.status(), "1 0 0");
}

#[test]
fn an_index_can_be_failed_by_a_rule() {
    let mut world = World::new(
        "  completions: 2\n  parallelism: 2\n  completionMode: Indexed\n  \
         backoffLimitPerIndex: 5\n  backoffLimit: 2147483647\n  podReplacementPolicy: Failed\n  \
         podFailurePolicy: {rules: [{action: FailIndex, onExitCodes: \
         {operator: NotIn, values: [1]}}]}",
    );
    world.go();
    world.end(Some(0), 7);
    world.wait(60);
    assert_eq!(world.go(), 0);
    let status = world.job().status.clone().unwrap_or_default();
    assert_eq!(status.failed_indexes.as_deref(), Some("0"));
}

#[test]
fn success_can_be_enough_of_the_indexes() {
    let mut world = World::new(
        "  completions: 4\n  parallelism: 4\n  completionMode: Indexed\n  \
         successPolicy: {rules: [{succeededIndexes: '0-1', succeededCount: 1}]}",
    );
    world.go();
    world.end(Some(3), 0);
    world.go();
    assert_eq!(world.status(), "3 1 0");
    world.end(Some(1), 0);
    world.go();
    assert_eq!(world.reason(), "SuccessPolicy");
    assert!(world.status().ends_with("SuccessCriteriaMet Complete"), "{}", world.status());
    assert!(world.active().is_empty());
}

#[test]
fn a_job_that_has_failed_and_succeeded_at_once_has_failed() {
    let mut world = World::new(
        "  completions: 3\n  parallelism: 3\n  completionMode: Indexed\n  \
         backoffLimitPerIndex: 0\n  maxFailedIndexes: 0\n  backoffLimit: 2147483647\n  \
         successPolicy: {rules: [{succeededCount: 1}]}",
    );
    world.go();
    world.end(Some(0), 0);
    world.end(Some(1), 1);
    world.go();
    assert_eq!(world.reason(), "MaxFailedIndexesExceeded");
}

#[test]
fn a_job_of_another_manager_is_left_alone() {
    let world = World::new("  completions: 1\n  managedBy: example.com/queue");
    assert!(world.plan().writes.is_empty());
}

#[test]
fn pods_that_nobody_controls_are_adopted_and_strangers_released() {
    let world = World::new("  manualSelector: true\n  selector: {matchLabels: {of: sum}}");
    let pod = |name: &str, rest: &str| -> Arc<Pod> {
        Arc::new(yaml(&format!("metadata: {{name: {name}, namespace: d, uid: {name}, {rest}}}")))
    };
    let leaves = "labels: {of: sum}, deletionTimestamp: 2026-01-01T00:00:00Z";
    let snapshot = Snapshot {
        pods: vec![pod("mine", "labels: {of: sum}"), pod("other", "labels: {of: another}")],
        strays: vec![
            pod("stray", "labels: {of: sum}"),
            pod("stranger", "labels: {of: another}"),
            pod("leaves", leaves),
        ],
        ..world.snapshot()
    };
    let writes = plan(&snapshot, at(0)).writes;
    check_lines(&writes, &["d/other {\"metadata\":{\"ownerReferences\":[]}}", "d/stray "]);
    let Action::Patch { body, .. } = &writes[1].action else { panic!("it is adopted") };
    assert_eq!(body["metadata"]["ownerReferences"][0]["name"], "sum");
    assert_eq!(body["metadata"]["finalizers"], json!([TRACKING]), "it is counted from now on");
}

#[test]
fn a_held_pod_that_nobody_controls_is_looked_at() {
    let mut cache = Cache::new();
    cache.hold::<Job>();
    cache.hold::<Pod>();
    let held = "metadata: {name: p, namespace: d, resourceVersion: '7', labels: {of: sum}, \
                finalizers: [batch.kubernetes.io/job-tracking]}";
    let job = "metadata: {name: sum, namespace: d, resourceVersion: '6'}\n\
               spec: {template: {}, selector: {matchLabels: {of: sum}}}";
    let mut put = |kind, object| {
        let seen = Seen::Put(object);
        let mut keys = Vec::new();
        for change in cache.observe(kind, seen, Instant::now()) {
            wake(&cache, &change, &mut keys);
        }
        keys
    };
    put(kind_row::<Job>(), Object::new(yaml::<Job>(job)));
    let keys = put(kind_row::<Pod>(), Object::new(yaml::<Pod>(held)));
    assert_eq!(keys, [Key::of::<Pod>("d", "p"), Key::of::<Job>("d", "sum")]);
}

#[test]
fn a_finished_job_lets_go_of_its_pods_and_goes_when_its_time_is_over() {
    let mut world = World::new("  completions: 1\n  ttlSecondsAfterFinished: 60");
    world.go();
    world.end(None, 0);
    world.go();
    assert!(world.objects.of::<Pod>().iter().all(|pod| !is_tracked(&pod.metadata)));
    let again = world.plan().again.expect("a time");
    assert!(again <= Duration::from_secs(60));
    world.wait(60);
    let writes = world.plan().writes;
    assert_eq!(text(&writes), "delete jobs.batch d/sum policy=Foreground\n");
    let Action::Delete { target, .. } = &writes[0].action else { panic!("it is deleted") };
    assert!(!target.revision.is_empty(), "unless it was changed meanwhile");
}

#[test]
fn a_job_that_is_deleted_lets_go_of_its_pods() {
    let mut world = World::new("  completions: 1");
    world.go();
    world.objects.edit::<Job>("sum", json!({"metadata": {"deletionTimestamp": at(0)}}));
    assert_eq!(world.go(), 0);
    assert!(world.objects.of::<Pod>().iter().all(|pod| !is_tracked(&pod.metadata)));
}

#[test]
fn a_failure_is_told_and_tried_with_one_pod() {
    let mut world = World::new("  completions: 5\n  parallelism: 5");
    world.failure = Some("quota is used up".to_string());
    let shown = text(&world.plan().writes);
    assert!(shown.contains("Warning FailedCreate: Error creating: quota is used up"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("create")).count(), 1);
}
