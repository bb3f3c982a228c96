//! Scripts of autoscalers: from answers of the metrics APIs to a size and what is said of it.

use super::super::testing::{at, text, yaml};
use super::*;

/// Pods by short texts: `NAME [new] [unready] [pending] [failed]`, each asking for 100m of CPU.
fn pod(words: &str) -> Arc<Pod> {
    let name = words.split(' ').next().expect("a name");
    let has = |word: &str| words.split(' ').any(|held| held == word);
    let started = if has("new") { "2023-11-14T22:13:00Z" } else { "2023-11-14T20:00:00Z" };
    let (ready, changed) = match has("unready") {
        true => ("False", "2023-11-14T22:00:00Z"),
        false => ("True", "2023-11-14T20:00:10Z"),
    };
    let phase = match (has("pending"), has("failed")) {
        (true, _) => "Pending",
        (_, true) => "Failed",
        _ => "Running",
    };
    Arc::new(yaml(&format!(
        "metadata: {{name: {name}, namespace: d, labels: {{app: web}}}}\n\
         spec:\n  containers:\n  - {{name: c, resources: {{requests: {{cpu: 100m}}}}}}\n\
         status:\n  phase: {phase}\n  startTime: {started}\n  \
         conditions: [{{type: Ready, status: \"{ready}\", lastTransitionTime: {changed}}}]"
    )))
}

fn cpu(used: &[(&str, i64)]) -> Value {
    let item = |(name, used): &(&str, i64)| {
        json!({
            "metadata": {"name": name}, "timestamp": "2023-11-14T22:13:15Z", "window": "15s",
            "containers": [{"name": "c", "usage": {"cpu": format!("{used}m"), "memory": "1Mi"}}],
        })
    };
    json!({"items": used.iter().map(item).collect::<Vec<_>>()})
}

fn values(metric: &[(&str, &str)]) -> Value {
    let item = |(name, value): &(&str, &str)| json!({"describedObject": {"name": name}, "value": value, "windowSeconds": 15});
    json!({"items": metric.iter().map(item).collect::<Vec<_>>()})
}

struct Case {
    spec: &'static str,
    size: i32,
    pods: Vec<Arc<Pod>>,
    metrics: Vec<Result<Value, String>>,
}

impl Case {
    fn new(spec: &'static str, size: i32, pods: &[&str], metrics: Vec<Value>) -> Case {
        let pods = pods.iter().map(|words| pod(words)).collect();
        Case { spec, size, pods, metrics: metrics.into_iter().map(Ok).collect() }
    }

    fn snapshot(self) -> Snapshot {
        let autoscaler: HorizontalPodAutoscaler = yaml(&format!(
            "metadata: {{name: web, namespace: d}}\nspec:\n  \
             scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: web}}\n{}",
            self.spec
        ));
        let spec = &autoscaler.spec;
        let queries = spec.metrics.iter().flatten().filter_map(query).collect();
        let scale = json!({
            "kind": "Scale", "metadata": {"uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": self.size},
            "status": {"replicas": self.size, "selector": "app=web"},
        });
        let answers = Answers { at: at(0), queries, scale: Ok(scale), metrics: self.metrics };
        Snapshot {
            kind: wherry_resources::kind_of("apps/v1", "Deployment"),
            autoscaler: Arc::new(autoscaler),
            answers: Some(Arc::new(answers)),
            // It has looked for long, and recommended nothing lately.
            memory: Arc::new(Memory { recommended: vec![(at(-1_000), 9)], ..Memory::default() }),
            pods: self.pods,
            rivals: Vec::new(),
            failure: None,
            waiting: Demand::default(),
            workload: None,
        }
    }
}

/// The plan's lines without the status, and the status.
fn shown(snapshot: &Snapshot) -> (String, Value) {
    let plan = plan(snapshot, at(1));
    let mut status = json!({});
    let mut lines = Vec::new();
    for write in plan.writes {
        match &write.action {
            Action::Patch { body, .. } => json_patch::merge(&mut status, &body["status"]),
            Action::Remember { .. } => {}
            _ => lines.push(write),
        }
    }
    (text(&lines), status)
}

#[track_caller]
fn check(case: Case, expected: &str) {
    let (lines, status) = shown(&case.snapshot());
    assert!(lines.contains(expected), "{lines} lacks {expected}\n{status}");
    assert_eq!(lines.is_empty(), expected.is_empty(), "{lines}");
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    let held = all.find(|held| held["type"] == kind);
    held.and_then(|held| held["reason"].as_str()).unwrap_or("")
}

const CPU: &str = "  minReplicas: 1\n  maxReplicas: 10\n  metrics: [{type: Resource, resource: \
    {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]";
const TWO: [&str; 2] = ["a", "b"];

#[test]
fn cpu_above_its_target() {
    let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 100), ("b", 100)])]);
    check(
        case,
        "scale deployments.apps d/web to 4 (Normal SuccessfulRescale: New size: 4; reason: cpu \
         resource utilization (percentage of request) above target)",
    );
}

#[test]
fn cpu_within_tolerance_or_at_target() {
    for used in [46, 50, 54] {
        let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", used), ("b", used)])]);
        let snapshot = case.snapshot();
        let (lines, status) = shown(&snapshot);
        assert_eq!(lines, "");
        assert_eq!(status["desiredReplicas"], 2);
        let current = &status["currentMetrics"][0]["resource"]["current"];
        assert_eq!(current["averageUtilization"], used);
        assert_eq!(condition(&status, "ScalingActive"), "ValidMetricFound");
        assert_eq!(condition(&status, "AbleToScale"), "ReadyForNewScale");
        assert_eq!(condition(&status, "ScalingLimited"), "DesiredWithinRange");
    }
}

#[test]
fn below_target_it_shrinks_when_nothing_else_was_recommended() {
    let case = Case::new(
        CPU,
        4,
        &["a", "b", "c", "d"],
        vec![cpu(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)])],
    );
    check(
        case,
        "scale deployments.apps d/web to 1 (Normal SuccessfulRescale: New size: 1; reason: \
        All metrics below target)",
    );
    let case = Case::new(CPU, 4, &TWO, vec![cpu(&[("a", 10), ("b", 10)])]);
    let mut snapshot = case.snapshot();
    let memory = Memory { recommended: vec![(at(-100), 4)], ..Memory::default() };
    snapshot.memory = Arc::new(memory);
    let (lines, status) = shown(&snapshot);
    assert_eq!(lines, "");
    assert_eq!(condition(&status, "AbleToScale"), "ScaleDownStabilized");
}

#[test]
fn who_has_just_begun_to_look_grows_and_does_not_shrink() {
    let case = |used: i64| {
        let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", used), ("b", used)])]);
        Snapshot { memory: Arc::default(), ..case.snapshot() }
    };
    let (lines, status) = shown(&case(10));
    assert_eq!(lines, "");
    assert_eq!(condition(&status, "AbleToScale"), "ScaleDownStabilized");
    assert!(shown(&case(100)).0.contains("to 4"));
}

#[test]
fn guesses_for_pods_without_figures_never_make_the_change_larger() {
    // Three times the target on one of two Pods: the other counts as idle.
    check(Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 150)])]), "to 3");
    // Low on one of two: the other counts as at its request, which holds the size.
    check(Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 10)])]), "");
    // A Pod that has just begun counts as idle where the size would grow.
    let pods = ["a", "b new unready"];
    check(Case::new(CPU, 2, &pods, vec![cpu(&[("a", 150), ("b", 400)])]), "to 3");
    // Failed Pods do not count at all.
    check(Case::new(CPU, 1, &["a", "b failed"], vec![cpu(&[("a", 100)])]), "to 2");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let mut case = Case::new(CPU, 2, &TWO, vec![]);
    case.metrics = vec![Err("the server could not find the requested resource".to_string())];
    let (lines, status) = shown(&case.snapshot());
    assert!(lines.contains("Warning FailedGetResourceMetric: failed to get cpu utilization"));
    assert!(lines.contains("Warning FailedComputeMetricsReplicas: invalid metrics (1 invalid out"));
    assert_eq!(condition(&status, "ScalingActive"), "FailedGetResourceMetric");
    let mut case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 100), ("b", 100)])]);
    for pod in &mut case.pods {
        let spec = Arc::make_mut(pod).spec.as_mut().expect("has a spec");
        spec.containers[0].resources = None;
    }
    let (lines, _) = shown(&case.snapshot());
    assert!(lines.contains("missing request for cpu in container c of Pod a"), "{lines}");
}

#[test]
fn of_two_that_mean_the_same_pods_none_scales() {
    let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 100), ("b", 100)])]);
    let mut snapshot = case.snapshot();
    snapshot.rivals = vec!["a-second".to_string()];
    let (lines, status) = shown(&snapshot);
    let why = "Warning AmbiguousSelector: pods by selector app=web are controlled by multiple \
               HPAs: [d/a-second d/web]";
    assert!(lines.contains(why) && !lines.contains("scale"), "{lines}");
    assert_eq!(condition(&status, "ScalingActive"), "AmbiguousSelector");
}

#[test]
fn who_means_the_same_pods_is_found_by_what_was_measured() {
    use super::super::cache::Seen;
    let mut cache = Cache::new();
    cache.hold::<HorizontalPodAutoscaler>();
    let kind = super::super::cache::kind_row::<HorizontalPodAutoscaler>();
    let now = std::time::Instant::now();
    let mut key_of = |name: &str, selector: &str| {
        let autoscaler: HorizontalPodAutoscaler = yaml(&format!(
            "metadata: {{name: {name}, namespace: d}}\nspec: {{maxReplicas: 3, scaleTargetRef: \
             {{kind: Deployment, name: web}}}}"
        ));
        cache.observe(kind, Seen::Put(Object::new(autoscaler)), now);
        let key = Key::of::<HorizontalPodAutoscaler>("d", name);
        let scale = Ok(json!({"status": {"selector": selector}}));
        let answers = Answers { at: at(0), queries: Vec::new(), scale, metrics: Vec::new() };
        cache.remember(&key, Memo::new(answers));
        key
    };
    let first = key_of("first", "app=web");
    let second = key_of("second", "app in (web, db)");
    let other = key_of("other", "app=db");
    let pods = [pod("a")];
    assert_eq!(rivals(&cache, &first, &pods), ["second"]);
    assert_eq!(rivals(&cache, &second, &pods), ["first"]);
    assert_eq!(rivals(&cache, &other, &[]), [""; 0]);
}

#[test]
fn with_one_metric_unreadable_it_may_grow_and_not_shrink() {
    const BOTH: &str = "  maxReplicas: 10\n  metrics: [{type: Resource, resource: {name: cpu, \
        target: {type: Utilization, averageUtilization: 50}}}, {type: Pods, pods: {metric: \
        {name: x}, target: {type: AverageValue, averageValue: 1}}}]";
    let case = |used: i64| {
        let mut case = Case::new(BOTH, 2, &TWO, vec![cpu(&[("a", used), ("b", used)])]);
        case.metrics.push(Err("none".to_string()));
        case
    };
    check(case(100), "to 4");
    let (lines, status) = shown(&case(10).snapshot());
    assert!(!lines.contains("scale "), "{lines}");
    assert_eq!(condition(&status, "ScalingActive"), "FailedGetPodsMetric");
}

#[test]
fn requests_per_second_of_pods() {
    const RPS: &str = "  maxReplicas: 10\n  metrics: [{type: Pods, pods: {metric: {name: \
        requests_per_second}, target: {type: AverageValue, averageValue: 10}}}]";
    let case = Case::new(RPS, 2, &TWO, vec![values(&[("a", "20"), ("b", "15500m")])]);
    check(
        case,
        "to 4 (Normal SuccessfulRescale: New size: 4; reason: pods metric \
        requests_per_second above target)",
    );
}

#[test]
fn containers_by_themselves() {
    const ONE: &str = "  maxReplicas: 10\n  metrics: [{type: ContainerResource, \
        containerResource: {name: cpu, container: c, target: {type: AverageValue, averageValue: \
        50m}}}]";
    check(Case::new(ONE, 2, &TWO, vec![cpu(&[("a", 100), ("b", 50)])]), "to 3");
}

#[test]
fn objects_and_external_metrics_also_from_zero() {
    const OBJECT: &str = "  minReplicas: 0\n  maxReplicas: 10\n  metrics: [{type: Object, object: \
        {metric: {name: requests_per_second}, describedObject: {apiVersion: v1, kind: Service, \
        name: web}, target: {type: Value, value: 10}}}]";
    check(Case::new(OBJECT, 0, &[], vec![values(&[("web", "25")])]), "to 3");
    check(Case::new(OBJECT, 0, &[], vec![values(&[("web", "0")])]), "");
    check(Case::new(OBJECT, 2, &TWO, vec![values(&[("web", "0")])]), "to 0");
    check(Case::new(OBJECT, 2, &TWO, vec![values(&[("web", "15")])]), "to 3");
    const EXTERNAL: &str = "  minReplicas: 0\n  maxReplicas: 10\n  metrics: [{type: External, \
        external: {metric: {name: queue}, target: {type: AverageValue, averageValue: 30}}}]";
    check(Case::new(EXTERNAL, 0, &[], vec![values(&[("q", "20"), ("r", "50")])]), "to 3");
    check(Case::new(EXTERNAL, 3, &["a", "b", "c"], vec![values(&[("q", "92")])]), "");
}

#[test]
fn a_workload_that_a_person_scaled_to_zero_is_left_alone() {
    let (lines, status) = shown(&Case::new(CPU, 0, &[], vec![cpu(&[])]).snapshot());
    assert_eq!(lines, "");
    assert_eq!(condition(&status, "ScalingActive"), "ScalingDisabled");
}

#[test]
fn the_bounds_hold_without_any_metric() {
    const BOUNDS: &str = "  minReplicas: 3\n  maxReplicas: 5\n  metrics: []";
    check(
        Case::new(BOUNDS, 9, &[], vec![]),
        "to 5 (Normal SuccessfulRescale: New size: 5; \
        reason: Current number of replicas above Spec.MaxReplicas)",
    );
    check(
        Case::new(BOUNDS, 1, &[], vec![]),
        "to 3 (Normal SuccessfulRescale: New size: 3; \
        reason: Current number of replicas below Spec.MinReplicas)",
    );
}

#[test]
fn what_was_measured_is_judged_once_and_measured_again_in_time() {
    let mut snapshot = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 50), ("b", 50)])]).snapshot();
    assert_eq!(plan(&snapshot, at(1)).again, Some(Duration::from_secs(14)));
    let memory = Memory { judged: Some(at(0)), generation: Some(1), ..Memory::default() };
    snapshot.memory = Arc::new(memory);
    assert_eq!(text(&plan(&snapshot, at(1)).writes), "");
    assert_eq!(plan(&snapshot, at(1)).again, Some(Duration::from_secs(14)));
    let measure = "measure deployments.apps d/web /apis/metrics.k8s.io/v1beta1/namespaces/d/pods?\
        labelSelector=SELECTOR\n";
    assert_eq!(text(&plan(&snapshot, at(15)).writes), measure);
    Arc::make_mut(&mut snapshot.autoscaler).metadata.generation = Some(2);
    assert_eq!(text(&plan(&snapshot, at(2)).writes), measure, "it was changed");
}

#[test]
fn a_scale_that_cannot_be_had_or_changed() {
    let mut snapshot = Case::new(CPU, 2, &TWO, vec![]).snapshot();
    let mut answers = (**snapshot.answers.as_ref().expect("measured")).clone();
    answers.scale = Err("deployments.apps \"web\" not found".to_string());
    snapshot.answers = Some(Arc::new(answers));
    let (lines, status) = shown(&snapshot);
    assert!(lines.contains("Warning FailedGetScale: deployments.apps \"web\" not found"));
    assert_eq!(condition(&status, "AbleToScale"), "FailedGetScale");
    let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 100), ("b", 100)])]);
    let mut snapshot = case.snapshot();
    snapshot.failure = Some("forbidden".to_string());
    let (lines, status) = shown(&snapshot);
    assert!(lines.contains("Warning FailedRescale: New size: 4; reason: "), "{lines}");
    assert_eq!(condition(&status, "AbleToScale"), "FailedUpdateScale");
}

const TO_ZERO: &str = "  minReplicas: 0\n  maxReplicas: 10\n  metrics: [{type: Object, object: \
    {describedObject: {apiVersion: v1, kind: Service, name: web}, metric: {name: concurrency}, \
    target: {type: AverageValue, averageValue: \"10\"}}}]";

fn held(uid: &str, revision: &str) -> Target {
    let kind = wherry_resources::kind_of("apps/v1", "Deployment").expect("a kind");
    let key = Key::new(kind, "d", "web");
    Target { key, uid: uid.to_string(), revision: revision.to_string() }
}

#[test]
fn a_workload_whose_status_was_written_since_it_was_measured_is_scaled_all_the_same() {
    let scaled_at = |workload: Option<(Target, i32)>| {
        let case = Case::new(CPU, 2, &TWO, vec![cpu(&[("a", 100), ("b", 100)])]);
        let snapshot = Snapshot { workload, ..case.snapshot() };
        let writes = plan(&snapshot, at(1)).writes;
        let revision = writes.into_iter().find_map(|write| match write.action {
            Action::Scale { target, .. } => Some(target.revision),
            _ => None,
        });
        revision.expect("it is scaled")
    };
    assert_eq!(scaled_at(None), "7", "as it was measured");
    assert_eq!(scaled_at(Some((held("u", "9"), 2))), "9");
    assert_eq!(scaled_at(Some((held("u", "9"), 5))), "7", "somebody gave it another size");
    assert_eq!(scaled_at(Some((held("another", "9"), 2))), "7");
}

fn waiting(requests: u64) -> Demand {
    Demand { requests, service: "web".to_string() }
}

#[test]
fn requests_that_wait_bring_a_workload_back_at_once() {
    let zero = json!({"items": [{"value": "0"}]});
    let mut snapshot = Case::new(TO_ZERO, 0, &[], vec![zero]).snapshot();
    snapshot.workload = Some((held("u", "7"), 0));
    assert_eq!(shown(&snapshot).0, "", "nobody asks");
    snapshot.waiting = waiting(3);
    let (lines, status) = shown(&snapshot);
    let one = "scale deployments.apps d/web to 1 (Normal SuccessfulRescale: New size: 1; reason: 3 \
        requests wait for Service web)\n";
    assert_eq!(lines, one);
    assert_eq!(status["desiredReplicas"], 1);
    snapshot.waiting = waiting(35);
    assert!(shown(&snapshot).0.contains("to 4"), "as many as the target asks for");
    // It is on its way; the cache does not show it yet.
    snapshot.memory = Arc::new(Memory { added: vec![(at(0), 1)], ..Memory::default() });
    assert_eq!(shown(&snapshot).0, "");
}

#[test]
fn nothing_goes_to_zero_while_requests_wait() {
    let zero = || json!({"items": [{"value": "0"}]});
    let case = || Case::new(TO_ZERO, 1, &["a"], vec![zero()]);
    let mut snapshot = case().snapshot();
    snapshot.memory = Arc::new(Memory { recommended: vec![(at(-400), 1)], ..Memory::default() });
    assert!(shown(&snapshot).0.contains("to 0"), "{}", shown(&snapshot).0);
    snapshot.waiting = waiting(1);
    assert_eq!(shown(&snapshot).0, "");
}

#[test]
fn pods_are_found_by_their_labels() {
    use super::super::cache::{Seen, kind_row};
    let mut cache = Cache::new();
    cache.hold::<Pod>();
    for (name, labels) in [("a", "app: web, tier: front"), ("b", "app: web"), ("c", "app: bank")] {
        let pod: Pod =
            yaml(&format!("metadata: {{name: {name}, namespace: d, labels: {{{labels}}}}}"));
        let seen = Seen::Put(Object::new(pod));
        cache.observe(kind_row::<Pod>(), seen, std::time::Instant::now());
    }
    let check = |selector: &str, expected: &str| {
        let selector = LabelSelector::parse(selector).expect("a selector");
        let pods = selected(&cache, "d", &selector);
        let names: Vec<&str> = pods.iter().map(|pod| name_of(&pod.metadata)).collect();
        assert_eq!(names.join(" "), expected, "{selector}");
    };
    check("app=web", "a b");
    check("app=web,tier=front", "a");
    check("app=web,tier!=front", "b");
    check("app=web,app=bank", "");
    check("app in (web,bank),!tier", "b c");
    check("app=other", "");
    check("", "a b c");
}
