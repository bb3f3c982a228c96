//! States in, `PodStatus` out.

use expect_test::{Expect, expect};
use jiff::Timestamp;

use super::*;
use crate::{
    agent::{
        lifecycle::{Eviction, Observation, Problem, observe, step},
        recover::recover,
        spec::{Deletion, Desired, read},
    },
    protocol::Guest,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn pod(spec: &str) -> Desired {
    let text = format!(
        r#"{{"metadata":{{"name":"web","namespace":"default","uid":"u1","generation":2}},
             "spec":{{"nodeName":"node-1",{spec}}}}}"#
    );
    let pod = serde_json::from_str(&text).expect("a Pod");
    read(pod).expect("a Pod of a node").0
}

fn walked(desired: &Desired, observations: Vec<(i64, Observation)>) -> PodState {
    let mut state = PodState::new(&desired.spec, at(0));
    for (second, observation) in observations {
        state = observe(&state, &desired.spec, observation, at(second));
        state = step(&state, desired, at(second)).0;
    }
    state
}

fn address() -> Observation {
    Observation::Address("10.0.0.2".parse().expect("an address"))
}

fn prepared() -> Observation {
    let image_id = "hello@sha256:1".to_owned();
    Observation::Prepared { container: 0, image_id, guest: Guest::Handler }
}

fn started(restart: u32, second: i64) -> Observation {
    Observation::Started { container: 0, restart, at: at(second) }
}

fn exited(restart: u32, code: i32, second: i64) -> Observation {
    let exit = Exit {
        code,
        reason: if code == 0 { ExitReason::Completed } else { ExitReason::Error },
        message: "wasm trap: unreachable".to_owned(),
        started_at: Some(at(second - 1)),
        finished_at: at(second),
    };
    Observation::Exited { container: 0, restart, exit }
}

/// The same of the second container.
fn of_second(observation: Observation) -> Observation {
    of(1, observation)
}

/// The same of another container.
fn of(container: usize, observation: Observation) -> Observation {
    match observation {
        Observation::Prepared { image_id, guest, .. } => {
            Observation::Prepared { container, image_id, guest }
        }
        Observation::Started { restart, at, .. } => Observation::Started { container, restart, at },
        Observation::Exited { restart, exit, .. } => {
            Observation::Exited { container, restart, exit }
        }
        other => other,
    }
}

/// One line for each fact that people and controllers look at.
fn check(desired: &Desired, state: &PodState, expected: Expect) {
    let status = status(state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    let mut out = format!("phase {}\n", status.phase.unwrap_or_default());
    for condition in status.conditions.into_iter().flatten() {
        let since = condition.last_transition_time.map_or(0, |time| time.0.as_second());
        let why = [condition.reason, condition.message].into_iter().flatten();
        let why: Vec<String> = why.collect();
        let (kind, value) = (condition.type_, condition.status);
        out += format!("{kind}={value} since {since} {}", why.join(": ")).trim_end();
        out += "\n";
    }
    let lists = [status.init_container_statuses, status.container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        let json = serde_json::to_value(&container).expect("plain data");
        out += &format!(
            "{} ready={} restarts={} image={} state={} last={}\n",
            container.name,
            container.ready,
            container.restart_count,
            container.image_id,
            json["state"],
            json["lastState"]
        );
    }
    expected.assert_eq(&out);
}

const APP: &str = r#""containers":[{"name":"app","image":"hello:1"}]"#;

#[test]
fn sidecars_that_are_not_ready_are_named() {
    let side = r#""initContainers":[{"name":"side","image":"hello:1","restartPolicy":"Always"}],"#;
    let desired = pod(&format!("{side}{APP}"));
    let state = walked(&desired, vec![(1, address())]);
    let status = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    let ready = status.conditions.into_iter().flatten().find(|it| it.type_ == "Ready");
    let message = ready.and_then(|it| it.message).unwrap_or_default();
    assert_eq!(message, "containers with unready status: [side app]");
}

#[test]
fn a_new_pod_waits() {
    let desired = pod(APP);
    let state = walked(&desired, vec![(1, address()), (2, Observation::Compiling(0))]);
    check(
        &desired,
        &state,
        expect![[r#"
        phase Pending
        PodReadyToStartContainers=True since 1
        Initialized=True since 1
        Ready=False since 0 ContainersNotReady: containers with unready status: [app]
        ContainersReady=False since 0 ContainersNotReady: containers with unready status: [app]
        PodScheduled=True since 0
        app ready=false restarts=0 image= state={"waiting":{"reason":"Compiling"}} last=null
    "#]],
    );
}

#[test]
fn a_running_pod_is_ready() {
    let desired = pod(APP);
    let state = walked(&desired, vec![(1, address()), (2, prepared()), (3, started(0, 3))]);
    check(
        &desired,
        &state,
        expect![[r#"
        phase Running
        PodReadyToStartContainers=True since 1
        Initialized=True since 1
        Ready=True since 3
        ContainersReady=True since 3
        PodScheduled=True since 0
        app ready=true restarts=0 image=hello@sha256:1 state={"running":{"startedAt":"1970-01-01T00:00:03Z"}} last=null
    "#]],
    );
}

#[test]
fn who_ends_is_ready_only_if_it_was_deleted() {
    let mut desired = pod(APP);
    let running = vec![(1, address()), (2, prepared()), (3, started(0, 3))];
    let ready = |state: &PodState, desired: &Desired| {
        let status = status(state, &desired.spec, "127.0.0.1".parse().expect("an address"));
        let containers = status.container_statuses.unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        let is_ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
        (containers[0].ready, is_ready)
    };
    let state = walked(&desired, running);
    let evicted = observe(
        &state,
        &desired.spec,
        Observation::Evict(Eviction::Shortage("full".to_owned())),
        at(4),
    );
    let evicted = step(&evicted, &desired, at(4)).0;
    assert_eq!(ready(&evicted, &desired), (false, false));
    let grace = std::time::Duration::from_secs(30);
    desired.deletion = Some(Deletion { grace, gone: false });
    let deleted = step(&state, &desired, at(4)).0;
    assert_eq!(ready(&deleted, &desired), (true, true));
}

#[test]
fn a_bad_image_is_said_where_people_look() {
    let desired = pod(APP);
    let problem = Problem { reason: "InvalidImage", message: "hello:1: not a Wasm file".into() };
    let failed = Observation::Failed { container: 0, problem };
    let state = walked(&desired, vec![(1, address()), (2, failed)]);
    check(
        &desired,
        &state,
        expect![[r#"
        phase Pending
        PodReadyToStartContainers=True since 1
        Initialized=True since 1
        Ready=False since 0 ContainersNotReady: containers with unready status: [app]: hello:1: not a Wasm file
        ContainersReady=False since 0 ContainersNotReady: containers with unready status: [app]: hello:1: not a Wasm file
        PodScheduled=True since 0
        app ready=false restarts=0 image= state={"waiting":{"message":"hello:1: not a Wasm file","reason":"InvalidImage"}} last=null
    "#]],
    );
}

/// One that failed twice, at 4 and at 7.
fn looping(desired: &Desired) -> PodState {
    walked(
        desired,
        vec![
            (1, address()),
            (2, prepared()),
            (3, started(0, 3)),
            (4, exited(0, 1, 4)),
            (5, prepared()),
            (6, started(1, 6)),
            (7, exited(1, 1, 7)),
        ],
    )
}

#[test]
fn a_crash_loop_says_how_long_it_waits() {
    let desired = pod(APP);
    let mut state = looping(&desired);
    state.containers[0].phase = Phase::CrashLoop { until: at(7 + 160) };
    state.containers[0].delay = std::time::Duration::from_secs(300);
    let status = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    let containers = status.container_statuses.unwrap_or_default();
    let state = containers[0].state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    assert!(message.starts_with("back-off 2m40s restarting "), "{message}");
}

#[test]
fn a_crash_loop_keeps_its_last_end() {
    let desired = pod(APP);
    let state = looping(&desired);
    check(
        &desired,
        &state,
        expect![[r#"
        phase Running
        PodReadyToStartContainers=True since 1
        Initialized=True since 1
        Ready=False since 7 ContainersNotReady: containers with unready status: [app]: wasm trap: unreachable
        ContainersReady=False since 7 ContainersNotReady: containers with unready status: [app]: wasm trap: unreachable
        PodScheduled=True since 0
        app ready=false restarts=1 image=hello@sha256:1 state={"waiting":{"message":"back-off 10s restarting failed container=app pod=web_default(u1): wasm trap: unreachable","reason":"CrashLoopBackOff"}} last={"terminated":{"containerID":"wasmtime://u1/app/1","exitCode":1,"finishedAt":"1970-01-01T00:00:07Z","message":"wasm trap: unreachable","reason":"Error","startedAt":"1970-01-01T00:00:06Z"}}
    "#]],
    );
}

#[test]
fn a_job_that_is_done_is_not_ready() {
    let desired = pod(&format!(r#""restartPolicy":"Never",{APP}"#));
    let state = walked(
        &desired,
        vec![
            (1, address()),
            (2, prepared()),
            (3, started(0, 3)),
            (4, exited(0, 0, 4)),
            (4, Observation::Removed),
        ],
    );
    check(
        &desired,
        &state,
        expect![[r#"
        phase Succeeded
        PodReadyToStartContainers=False since 4
        Initialized=True since 1
        Ready=False since 4 PodCompleted
        ContainersReady=False since 4 PodCompleted
        PodScheduled=True since 0
        app ready=false restarts=0 image=hello@sha256:1 state={"terminated":{"containerID":"wasmtime://u1/app/0","exitCode":0,"finishedAt":"1970-01-01T00:00:04Z","message":"wasm trap: unreachable","reason":"Completed","startedAt":"1970-01-01T00:00:03Z"}} last=null
    "#]],
    );
}

#[test]
fn a_pod_runs_as_long_as_its_sidecars_do() {
    let side = r#""initContainers":[{"name":"side","image":"hello:1","restartPolicy":"Always"}],"#;
    let desired = pod(&format!(r#""restartPolicy":"Never",{side}{APP}"#));
    let state = walked(
        &desired,
        vec![
            (1, address()),
            (2, prepared()),
            (3, started(0, 3)),
            (4, of_second(prepared())),
            (5, of_second(started(0, 5))),
            (6, of_second(exited(0, 0, 6))),
        ],
    );
    assert!(matches!(state.stage, Stage::Stopping { why: Why::Succeeded, .. }));
    assert_eq!(phase(&state, &desired.spec), "Running");
    let state = observe(&state, &desired.spec, exited(0, 143, 8), at(8));
    let state = step(&state, &desired, at(8)).0;
    assert!(matches!(state.stage, Stage::Removing { why: Why::Succeeded, .. }));
    assert_eq!(phase(&state, &desired.spec), "Succeeded");
}

#[test]
fn what_a_worker_still_has_of_a_finished_pod_is_removed() {
    let desired = pod(&format!(r#""restartPolicy":"Never",{APP}"#));
    let ended = vec![
        (1, address()),
        (2, prepared()),
        (3, started(0, 3)),
        (4, exited(0, 2, 4)),
        (4, Observation::Removed),
    ];
    let state = walked(&desired, ended);
    let api = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    let worker = crate::protocol::PodState {
        uid: "u1".to_owned(),
        name: "web".to_owned(),
        ip: "10.0.0.2".parse().expect("an address"),
        containers: Vec::new(),
    };
    let found = recover(&desired.spec, Some(&api), Some(&worker), at(100), at(50));
    assert!(found.needs_worker(), "its address is taken still");
    let (found, actions) = step(&found, &desired, at(100));
    expect!["[Remove]"].assert_eq(&format!("{actions:?}"));
    assert_eq!(phase(&found, &desired.spec), "Failed");
    let found = observe(&found, &desired.spec, Observation::Removed, at(101));
    let (found, actions) = step(&found, &desired, at(101));
    assert_eq!(found.stage, Stage::Finished(Why::Failed));
    expect!["[Unmount]"].assert_eq(&format!("{actions:?}"));
}

#[test]
fn a_reboot_starts_everything_again_with_a_new_number() {
    let desired = pod(APP);
    let state = walked(&desired, vec![(1, address()), (2, prepared()), (3, started(0, 3))]);
    let api = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    let found = recover(&desired.spec, Some(&api), None, at(100), at(50));
    assert_eq!(found.ip, state.ip);
    let found = observe(&found, &desired.spec, address(), at(100));
    let (found, actions) = step(&found, &desired, at(100));
    expect!["[Prepare(0)]"].assert_eq(&format!("{actions:?}"));
    check(
        &desired,
        &found,
        expect![[r#"
        phase Running
        PodReadyToStartContainers=True since 1
        Initialized=True since 1
        Ready=False since 100 ContainersNotReady: containers with unready status: [app]
        ContainersReady=False since 100 ContainersNotReady: containers with unready status: [app]
        PodScheduled=True since 0
        app ready=false restarts=1 image=hello@sha256:1 state={"waiting":{"reason":"ContainerCreating"}} last={"terminated":{"containerID":"wasmtime://u1/app/0","exitCode":255,"finishedAt":"1970-01-01T00:01:40Z","message":"the node or its worker process was restarted while it ran","reason":"Error","startedAt":"1970-01-01T00:00:03Z"}}
    "#]],
    );
}

#[test]
fn after_a_reboot_init_containers_run_first() {
    let init = r#""initContainers":[{"name":"fill","image":"hello:1"}],"#;
    let desired = pod(&format!("{init}{APP}"));
    let state = walked(
        &desired,
        vec![
            (1, address()),
            (2, prepared()),
            (3, started(0, 3)),
            (4, exited(0, 0, 4)),
            (5, of_second(prepared())),
            (5, of_second(started(0, 5))),
        ],
    );
    let api = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    assert_eq!(api.phase.as_deref(), Some("Running"));
    let begins = |booted: i64| {
        let found = recover(&desired.spec, Some(&api), None, at(100), at(booted));
        let found = observe(&found, &desired.spec, address(), at(100));
        step(&found, &desired, at(100))
    };
    let actions = |booted| format!("{:?}", begins(booted).1);
    expect!["[Prepare(1)]"].assert_eq(&actions(1));
    expect!["[Prepare(0)]"].assert_eq(&actions(50));
    let (mut found, _) = begins(50);
    check(
        &desired,
        &found,
        expect![[r#"
        phase Pending
        PodReadyToStartContainers=True since 1
        Initialized=False since 100 ContainersNotInitialized: containers with incomplete status: [fill]
        Ready=False since 100 ContainersNotReady: containers with unready status: [app]
        ContainersReady=False since 100 ContainersNotReady: containers with unready status: [app]
        PodScheduled=True since 0
        fill ready=false restarts=1 image=hello@sha256:1 state={"waiting":{"reason":"ContainerCreating"}} last={"terminated":{"containerID":"wasmtime://u1/fill/0","exitCode":0,"finishedAt":"1970-01-01T00:00:04Z","message":"wasm trap: unreachable","reason":"Completed","startedAt":"1970-01-01T00:00:03Z"}}
        app ready=false restarts=1 image=hello@sha256:1 state={"waiting":{"reason":"PodInitializing"}} last={"terminated":{"containerID":"wasmtime://u1/app/0","exitCode":255,"finishedAt":"1970-01-01T00:01:40Z","message":"the node or its worker process was restarted while it ran","reason":"Error","startedAt":"1970-01-01T00:00:05Z"}}
    "#]],
    );
    for observation in [prepared(), started(1, 101), exited(1, 0, 102)] {
        found = observe(&found, &desired.spec, observation, at(102));
        let (next, actions) = step(&found, &desired, at(102));
        found = next;
        let last = matches!(found.containers[0].phase, Phase::Ended(_));
        assert_eq!(last, format!("{actions:?}") == "[Prepare(1)]", "{actions:?}");
    }
    assert_eq!(found.containers[1].restarts, 1);
    // Nothing comes after them in a Pod that has failed by the reboot.
    let never = pod(&format!(r#""restartPolicy":"Never",{init}{APP}"#));
    let found = recover(&never.spec, Some(&api), None, at(100), at(50));
    assert!(matches!(found.containers[0].phase, Phase::Exited(_)));
}

/// A Pod with a sidecar and an init container behind it, and what is observed until all has begun.
fn with_sidecar() -> (Desired, Vec<(i64, Observation)>) {
    let init = r#""initContainers":[{"name":"side","image":"hello:1","restartPolicy":"Always"},
        {"name":"fill","image":"hello:1"}],"#;
    let observations = vec![
        (1, address()),
        (2, prepared()),
        (3, started(0, 3)),
        (4, of(1, prepared())),
        (5, of(1, started(0, 5))),
        (6, of(1, exited(0, 0, 6))),
        (7, of(2, prepared())),
        (8, of(2, started(0, 8))),
    ];
    (pod(&format!("{init}{APP}")), observations)
}

#[test]
fn after_a_reboot_nobody_overtakes_the_sidecars() {
    let (desired, observations) = with_sidecar();
    let state = walked(&desired, observations);
    let api = status(&state, &desired.spec, "127.0.0.1".parse().expect("an address"));
    assert_eq!(api.phase.as_deref(), Some("Running"));
    let mut found = recover(&desired.spec, Some(&api), None, at(100), at(50));
    let script = [
        (address(), "[Prepare(0)]"),
        (prepared(), "[Start { container: 0, restart: 1 }]"),
        (started(1, 101), "[Prepare(1)]"),
        (of(1, prepared()), "[Start { container: 1, restart: 1 }]"),
        (of(1, started(1, 102)), "[]"),
        (of(1, exited(1, 0, 103)), "[Prepare(2)]"),
        (of(2, prepared()), "[Start { container: 2, restart: 1 }]"),
    ];
    for (observation, expected) in script {
        found = observe(&found, &desired.spec, observation, at(103));
        let (next, actions) = step(&found, &desired, at(103));
        found = next;
        assert_eq!(format!("{actions:?}"), expected);
    }
}

#[test]
fn after_a_reboot_who_was_backing_off_overtakes_no_sidecar() {
    let (desired, mut observations) = with_sidecar();
    observations.extend([
        (9, of(2, exited(0, 1, 9))),
        (10, of(2, prepared())),
        (11, of(2, started(1, 11))),
        (12, of(2, exited(1, 1, 12))),
    ]);
    let state = walked(&desired, observations);
    assert!(matches!(state.containers[2].phase, Phase::CrashLoop { .. }));
    let node = "127.0.0.1".parse().expect("an address");
    let mut api = status(&state, &desired.spec, node);
    // Each of these agents dies before the sidecar has started.
    for restarts in 1..=3 {
        let found = recover(&desired.spec, Some(&api), None, at(100), at(50));
        let found = observe(&found, &desired.spec, address(), at(100));
        let (found, actions) = step(&found, &desired, at(100));
        assert_eq!(format!("{actions:?}"), "[Prepare(0)]");
        assert!(found.containers[1..].iter().all(|it| it.phase == Phase::Waiting));
        let counts = found.containers.iter().map(|it| it.restarts).collect::<Vec<_>>();
        assert_eq!(counts, [restarts, restarts, restarts + 1]);
        assert!(!found.containers[2].delay.is_zero(), "its delay stays");
        api = status(&found, &desired.spec, node);
    }
}

#[test]
fn an_agent_that_restarts_finds_what_its_worker_runs() {
    let desired = pod(APP);
    let state = walked(&desired, vec![(1, address()), (2, prepared()), (3, started(0, 3))]);
    let node = "127.0.0.1".parse().expect("an address");
    let api = status(&state, &desired.spec, node);
    let worker = crate::protocol::PodState {
        uid: "u1".to_owned(),
        name: "web".to_owned(),
        ip: "10.0.0.2".parse().expect("an address"),
        containers: vec![crate::protocol::ContainerState {
            name: "app".to_owned(),
            restart: 0,
            image_id: "hello@sha256:1".to_owned(),
            guest: Guest::Handler,
            phase: crate::protocol::ContainerPhase::Running { at: at(3) },
            health: crate::protocol::Health { started: true, ready: true, failed: None },
        }],
    };
    let found = recover(&desired.spec, Some(&api), Some(&worker), at(100), at(50));
    let (found, actions) = step(&found, &desired, at(100));
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!(status(&found, &desired.spec, node), api, "nothing to write");
}

#[test]
fn a_finished_pod_stays_finished() {
    let desired = pod(&format!(r#""restartPolicy":"Never",{APP}"#));
    let state = walked(
        &desired,
        vec![
            (1, address()),
            (2, prepared()),
            (3, started(0, 3)),
            (4, exited(0, 2, 4)),
            (4, Observation::Removed),
        ],
    );
    let node = "127.0.0.1".parse().expect("an address");
    let api = status(&state, &desired.spec, node);
    assert_eq!(api.phase.as_deref(), Some("Failed"));
    let found = recover(&desired.spec, Some(&api), None, at(100), at(50));
    assert!(step(&found, &desired, at(100)).1.is_empty());
    assert_eq!(status(&found, &desired.spec, node).phase, api.phase);
}

/// A Job may be told to ignore disruptions, and would try a Pod again for ever that always writes
/// more than its own limits let it.
#[test]
fn only_a_node_that_is_short_disrupts() {
    let desired = pod(APP);
    let address_of_node = "127.0.0.1".parse().expect("an address");
    let check = |eviction: Eviction, expected: Option<&str>| {
        let evicted =
            vec![(1, address()), (2, Observation::Evict(eviction)), (3, Observation::Removed)];
        let state = walked(&desired, evicted);
        let told = status(&state, &desired.spec, address_of_node);
        assert_eq!(told.reason.as_deref(), Some("Evicted"));
        assert_eq!(told.message.as_deref(), Some("why"));
        // The same after a restart of the agent.
        let found = recover(&desired.spec, Some(&told), None, at(100), at(50));
        assert_eq!(found.eviction, state.eviction);
        let again = status(&found, &desired.spec, address_of_node);
        for status in [told, again] {
            let mut conditions = status.conditions.into_iter().flatten();
            let disrupted = conditions.find(|it| it.type_ == "DisruptionTarget");
            assert_eq!(disrupted.and_then(|it| it.reason).as_deref(), expected);
        }
    };
    check(Eviction::Shortage("why".to_owned()), Some("TerminationByKubelet"));
    check(Eviction::OverLimit("why".to_owned()), None);
}
