//! Scripts of budgets: what a status says, by the budget, the Pods and their owners.

use super::super::testing::{at, text, yaml};
use super::*;

/// Pods by short texts: `NAME [ready] [deleting]`.
fn pod(words: &str) -> Arc<Pod> {
    let name = words.split(' ').next().expect("a name");
    let ready = if words.contains("ready") { "True" } else { "False" };
    let deleting =
        if words.contains("deleting") { ", deletionTimestamp: 2024-01-01T00:00:00Z" } else { "" };
    Arc::new(yaml(&format!(
        "metadata: {{name: {name}, namespace: d{deleting}}}\n\
         status: {{phase: Running, conditions: [{{type: Ready, status: \"{ready}\"}}]}}"
    )))
}

fn snapshot(spec: &str, size: i32, pods: &[&str]) -> Snapshot {
    Snapshot {
        budget: Arc::new(yaml(&format!(
            "metadata: {{name: web, namespace: d}}\nspec: {{selector: {{}}, {spec}}}"
        ))),
        pods: pods.iter().map(|words| pod(words)).collect(),
        owners: Ok(vec![Owner { uid: "o".to_string(), size }]),
        ask: Vec::new(),
        unknown: false,
        old_in: None,
    }
}

/// `allowed: healthy/desired of expected, reason`, and what else is asked for.
fn shown(snapshot: &Snapshot, seconds: i64) -> (String, String) {
    let plan = plan(snapshot, at(seconds));
    let other: Vec<_> = plan.writes.iter().filter(|write| write.note.is_some()).cloned().collect();
    let mut status = json::status(snapshot);
    for write in &plan.writes {
        if let super::super::write::Action::Patch { body, .. } = &write.action {
            json_patch::merge(&mut status, &body["status"]);
        }
    }
    let number = |key: &str| status[key].as_i64().unwrap_or(-1);
    let line = format!(
        "{}: {}/{} of {}, {}",
        number("disruptionsAllowed"),
        number("currentHealthy"),
        number("desiredHealthy"),
        number("expectedPods"),
        status["conditions"][0]["reason"].as_str().unwrap_or("")
    );
    (line, text(&other))
}

mod json {
    use super::*;

    pub fn status(snapshot: &Snapshot) -> serde_json::Value {
        serde_json::to_value(snapshot.budget.status.clone().unwrap_or_default()).expect("JSON")
    }
}

#[track_caller]
fn check(spec: &str, size: i32, pods: &[&str], expected: &str) {
    assert_eq!(shown(&snapshot(spec, size, pods), 0).0, expected);
}

const THREE: [&str; 3] = ["a ready", "b ready", "c ready"];

#[test]
fn min_available() {
    check("minAvailable: 2", 3, &THREE, "1: 3/2 of 3, SufficientPods");
    check("minAvailable: 3", 3, &THREE, "0: 3/3 of 3, InsufficientPods");
    check("minAvailable: 2", 3, &["a ready", "b"], "0: 1/2 of 2, InsufficientPods");
    check("minAvailable: 50%", 3, &THREE, "1: 3/2 of 3, SufficientPods");
    check("minAvailable: 100%", 3, &THREE, "0: 3/3 of 3, InsufficientPods");
    check("minAvailable: 0", 3, &[], "0: 0/0 of 0, InsufficientPods");
}

#[test]
fn max_unavailable() {
    check("maxUnavailable: 1", 3, &THREE, "1: 3/2 of 3, SufficientPods");
    check("maxUnavailable: 0", 3, &THREE, "0: 3/3 of 3, InsufficientPods");
    check("maxUnavailable: 34%", 3, &THREE, "2: 3/1 of 3, SufficientPods");
    check("maxUnavailable: 1", 4, &THREE, "0: 3/3 of 4, InsufficientPods");
    check("maxUnavailable: 9", 3, &THREE, "3: 3/0 of 3, SufficientPods");
}

#[test]
fn what_leaves_is_not_healthy() {
    let pods = ["a ready", "b ready deleting", "c"];
    check("minAvailable: 1", 3, &pods, "0: 1/1 of 3, InsufficientPods");
}

#[test]
fn an_evicted_pod_counts_as_gone_until_it_is_or_two_minutes_are_over() {
    let mut world = snapshot("minAvailable: 1", 3, &THREE);
    let disrupted = BTreeMap::from([("a".to_string(), Time(at(0)))]);
    let status =
        PodDisruptionBudgetStatus { disrupted_pods: Some(disrupted), ..Default::default() };
    Arc::make_mut(&mut world.budget).status = Some(status);
    assert_eq!(shown(&world, 30).0, "1: 2/1 of 3, SufficientPods");
    assert_eq!(plan(&world, at(30)).again, Some(Duration::from_secs(90)));
    let (line, told) = shown(&world, 120);
    assert_eq!(line, "2: 3/1 of 3, SufficientPods");
    assert!(told.contains("Warning NotDeleted: Pod was expected by PDB d/web"), "{told}");
    world.pods[0] = pod("a ready deleting");
    assert_eq!(shown(&world, 30).0, "1: 2/1 of 3, SufficientPods");
    let mut next = Pod::clone(&pod("a ready"));
    next.metadata.creation_timestamp = Some(Time(at(1)));
    world.pods[0] = Arc::new(next);
    assert_eq!(shown(&world, 30).0, "2: 3/1 of 3, SufficientPods");
}

#[test]
fn what_cannot_be_counted_allows_nothing() {
    let mut world = snapshot("maxUnavailable: 1", 0, &THREE);
    world.owners = Err("Robot \"r\" does not implement the scale subresource".to_string());
    let (line, told) = shown(&world, 0);
    assert!(line.starts_with("0: ") && line.ends_with("SyncFailed"), "{line}");
    assert!(told.contains("Robot \"r\" does not implement"), "{told}");
    let mut world = snapshot("minAvailable: 1", 0, &THREE);
    world.owners = Err(String::new());
    assert_eq!(shown(&world, 0).0, "2: 3/1 of 3, SufficientPods", "a number needs no owners");
}

#[test]
fn pods_that_nobody_controls_need_a_number() {
    let told = |spec: &str| shown(&snapshot(spec, 3, &THREE), 0).1;
    assert!(told("maxUnavailable: 1").contains("Warning UnmanagedPods: "));
    assert!(told("minAvailable: 50%").contains("such as a, were found to be unmanaged"));
    assert_eq!(told("minAvailable: 2"), "");
    let mut owned = snapshot("maxUnavailable: 1", 3, &["a ready"]);
    let owner = super::super::testing::owner("web");
    Arc::make_mut(&mut owned.pods[0]).metadata.owner_references = Some(vec![owner]);
    assert_eq!(shown(&owned, 0).1, "");
}

#[test]
fn sizes_of_custom_resources_are_asked_for() {
    let mut world = snapshot("maxUnavailable: 1", 3, &THREE);
    world.ask = vec![Key::of::<Deployment>("d", "stands-for-one")];
    world.unknown = true;
    let asked = plan(&world, at(0));
    assert_eq!(text(&asked.writes), "measure deployments.apps d/stands-for-one\n");
    world.unknown = false;
    let asked = plan(&world, at(0));
    assert!(asked.writes.len() > 1, "what was known counts meanwhile");
    world.ask.clear();
    world.old_in = Some(Duration::from_secs(9));
    assert_eq!(plan(&world, at(0)).again, Some(Duration::from_secs(9)));
    let scale = |scale| Answers { at: at(0), queries: Vec::new(), scale, metrics: Vec::new() };
    let five = serde_json::from_str(r#"{"spec": {"replicas": 5}}"#).expect("JSON");
    assert_eq!(said(&scale(Ok(five))), Ok(5));
    assert_eq!(said(&scale(Err("gone".to_string()))), Err("gone".to_string()));
}

#[test]
fn a_pod_that_was_spared_does_not_say_for_ever_that_it_is_disrupted() {
    let pod = |reason: &str, more: &str| -> Pod {
        yaml(&format!(
            "metadata: {{name: a, namespace: d{more}}}\n\
             status: {{phase: Running, conditions: [{{type: Ready, status: \"True\"}}, \
             {{type: DisruptionTarget, status: \"True\", reason: {reason}, \
             lastTransitionTime: 2023-11-14T22:13:20Z}}]}}"
        ))
    };
    let taint = "DeletionByTaintManager";
    let waits = spared(&pod(taint, ""), at(30));
    assert_eq!((text(&waits.writes), waits.again), (String::new(), Some(Duration::from_secs(90))));
    let shown = text(&spared(&pod(taint, ""), at(120)).writes);
    assert!(shown.contains(r#""status":"False","type":"DisruptionTarget""#), "{shown}");
    assert!(shown.contains(r#""status":"True","type":"Ready""#), "the rest stays: {shown}");
    let deleting = ", deletionTimestamp: 2024-01-01T00:00:00Z";
    assert_eq!(text(&spared(&pod(taint, deleting), at(120)).writes), "");
    assert_eq!(text(&spared(&pod("TerminationByKubelet", ""), at(120)).writes), "");
}

#[test]
fn planning_again_changes_nothing() {
    let mut world = snapshot("minAvailable: 2", 3, &THREE);
    let first = plan(&world, at(0));
    let super::super::write::Action::Patch { body, .. } = &first.writes[0].action else {
        panic!("a patch")
    };
    let status = serde_json::from_value(body["status"].clone()).expect("a status");
    Arc::make_mut(&mut world.budget).status = Some(status);
    assert!(plan(&world, at(9)).writes.is_empty());
}
