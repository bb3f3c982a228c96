//! Scripts over the lifecycle: what is heard, what is done, where the Pod is then.
//!
//! A script line is `<second> <what>`; after each one the Pod is stepped as the loop does it. Words:
//! `step`, `address`, `prepared C`, `compiling C`, `failed C REASON`, `started C`, `exited C CODE`,
//! `probed C starting|started|ready|dead`, `evict`,
//! `worker knows C=running|exited:CODE …` (a worker connects), `lost`, `removed`, `delete GRACE`,
//! `image C IMAGE` (the Pod names another one).

use std::{fmt::Write as _, sync::Arc, time::Duration};

use expect_test::{Expect, expect};
use jiff::Timestamp;

use super::*;
use crate::{
    agent::spec::{Deletion, PullPolicy, RestartPolicy, Restarts},
    protocol::ContainerPhase,
};

/// A name with `?` has all three probes.
fn probes(name: &str) -> protocol::Probes {
    let probe = name.contains('?').then_some(protocol::Probe {
        check: protocol::Check::Sleep { seconds: 0 },
        initial_delay_s: 0,
        timeout_s: 1,
        period_s: 10,
        success_threshold: 1,
        failure_threshold: 3,
        grace_s: Some(7),
    });
    protocol::Probes { startup: probe.clone(), liveness: probe.clone(), readiness: probe }
}

/// Names before `|` are init containers. Marks behind a name: `+` a sidecar, `?` has probes, `~` is
/// ephemeral.
fn desired(containers: &str, restart: RestartPolicy) -> Desired {
    let (init, main) = containers.split_once('|').unwrap_or(("", containers));
    let names: Vec<&str> = init.split_whitespace().chain(main.split_whitespace()).collect();
    let containers = names.iter().map(|name| ContainerSpec {
        name: name.trim_end_matches(['+', '?', '~']).to_owned(),
        image: "hello:1".to_owned(),
        pull: PullPolicy::IfNotPresent,
        sidecar: name.contains('+'),
        restarts: Restarts {
            policy: name.contains('+').then_some(RestartPolicy::Always),
            rules: Vec::new(),
        },
        cwd: None,
        command: Vec::new(),
        args: Vec::new(),
        env_from: Vec::new(),
        env: Vec::new(),
        limits: protocol::Limits::default(),
        requests: (None, None),
        storage: (None, None),
        ports: Vec::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        read_only_root: false,
        probes: probes(name),
        hooks: protocol::Hooks::default(),
        mounts: Vec::new(),
        message_path: String::new(),
        message_from_log: false,
    });
    let spec = PodSpec {
        uid: "u1".to_owned(),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        labels: Default::default(),
        annotations: Default::default(),
        generation: Some(1),
        node: "node-1".to_owned(),
        hostname: "web".to_owned(),
        full_name: None,
        hosts: Vec::new(),
        dns: Default::default(),
        priority: 0,
        gates: Vec::new(),
        service_account: "default".to_owned(),
        restart,
        grace: Duration::from_secs(30),
        active_deadline: None,
        service_links: true,
        pull_secrets: Vec::new(),
        qos: "BestEffort",
        scheduled: None,
        placement: None,
        conditions: Vec::new(),
        volumes: Vec::new(),
        init: init.split_whitespace().count(),
        ephemeral: names.iter().filter(|name| !name.ends_with('~')).count(),
        containers: containers.collect(),
    };
    Desired { spec: Arc::new(spec), deletion: None }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn check(mut desired: Desired, script: &str, expected: Expect) {
    let mut state = PodState::new(&desired.spec, at(0));
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = at(words[0].parse().expect("a second"));
        if words[1] == "delete" {
            let grace = Duration::from_secs(words[2].parse().expect("seconds"));
            desired.deletion = Some(Deletion { grace, gone: false });
        } else if words[1] == "image" {
            let spec = Arc::make_mut(&mut desired.spec);
            let index = spec.container(words[2]).expect("a container");
            spec.containers[index].image = words[3].to_owned();
        } else if let Some(observation) = observation(&words[1..], &state, &desired.spec, now) {
            state = observe(&state, &desired.spec, observation, now);
        }
        let (next, actions) = step(&state, &desired, now);
        state = next;
        let (again, nothing) = step(&state, &desired, now);
        let allocates = nothing == [Action::Allocate];
        assert!(allocates || (nothing.is_empty() && again == state), "a step repeats: {nothing:?}");
        writeln!(out, "{line}").expect("a string");
        for action in actions {
            writeln!(out, "    ! {action:?}").expect("a string");
        }
        writeln!(out, "    {}", shown(&state, &desired.spec)).expect("a string");
    }
    expected.assert_eq(&out);
}

fn observation(
    words: &[&str],
    state: &PodState,
    spec: &PodSpec,
    now: Timestamp,
) -> Option<Observation> {
    let index = || spec.container(words[1]).expect("a container");
    Some(match words[0] {
        "step" => return None,
        "address" => Observation::Address("10.0.0.2".parse().expect("an address")),
        "compiling" => Observation::Compiling(index()),
        "prepared" => Observation::Prepared {
            container: index(),
            image_id: "hello@sha256:1".to_owned(),
            guest: Guest::Handler,
        },
        "failed" => {
            let reason = ["ErrImagePull", "CreateContainerConfigError", "InvalidImage", UNMOUNTED]
                .into_iter()
                .find(|reason| *reason == words[2])
                .expect("a reason");
            let problem = Problem { reason, message: "because".to_owned() };
            Observation::Failed { container: index(), problem }
        }
        "started" => Observation::Started {
            container: index(),
            restart: state.containers[index()].restarts,
            at: now,
        },
        "exited" => Observation::Exited {
            container: index(),
            restart: state.containers[index()].restarts,
            exit: exit(words[2].parse().expect("a code"), &state.containers[index()], now),
        },
        "worker" => Observation::Worker(known(&words[2..], state, spec, now)),
        "probed" => Observation::Probed {
            container: index(),
            restart: state.containers[index()].restarts,
            health: Health {
                started: words[2] != "starting",
                ready: words[2] == "ready",
                failed: match words[2] {
                    "dead" => Some(ProbeKind::Liveness),
                    _ => None,
                },
            },
        },
        "evict" => {
            let sentence = "The node was low on resource: memory.".to_owned();
            Observation::Evict(Eviction::Shortage(sentence))
        }
        "refuse" => Observation::Refuse("OutOfcpu", "Pod was rejected".to_owned()),
        "lost" => Observation::WorkerLost,
        "removed" => Observation::Removed,
        other => panic!("unknown word {other}"),
    })
}

fn exit(code: i32, container: &Container, now: Timestamp) -> Exit {
    Exit {
        code,
        reason: if code == 0 { ExitReason::Completed } else { ExitReason::Error },
        message: String::new(),
        started_at: container.running_since(),
        finished_at: now,
    }
}

fn known(
    words: &[&str],
    state: &PodState,
    spec: &PodSpec,
    now: Timestamp,
) -> Option<protocol::PodState> {
    if words.is_empty() {
        return None;
    }
    let containers = words.iter().map(|word| {
        let (name, phase) = word.split_once('=').expect("name=phase");
        let container = &state.containers[spec.container(name).expect("a container")];
        protocol::ContainerState {
            name: name.to_owned(),
            health: container.health,
            restart: container.restarts,
            image_id: String::new(),
            guest: Guest::Handler,
            phase: match phase.strip_prefix("exited:") {
                Some(code) => {
                    ContainerPhase::Exited(exit(code.parse().expect("a code"), container, now))
                }
                None => ContainerPhase::Running { at: now },
            },
        }
    });
    Some(protocol::PodState {
        uid: spec.uid.clone(),
        name: spec.name.clone(),
        ip: "10.0.0.2".parse().expect("an address"),
        containers: containers.collect(),
    })
}

fn shown(state: &PodState, spec: &PodSpec) -> String {
    let stage = match &state.stage {
        Stage::Stopping { why, .. } => format!("Stopping({why:?})"),
        Stage::Removing { why, .. } => format!("Removing({why:?})"),
        stage => format!("{stage:?}"),
    };
    let mut text = stage;
    for (container, spec) in state.containers.iter().zip(&spec.containers) {
        let phase = match &container.phase {
            Phase::Waiting => "Waiting".to_owned(),
            Phase::Preparing { compiling: false } => "Preparing".to_owned(),
            Phase::Preparing { compiling: true } => "Compiling".to_owned(),
            Phase::BackOff { until, problem } => {
                format!("BackOff({} until {})", problem.reason, until.as_second())
            }
            Phase::Ready => "Ready".to_owned(),
            Phase::Starting => "Starting".to_owned(),
            Phase::Running { since } => format!("Running(since {})", since.as_second()),
            Phase::Stopping { .. } => "Stopping".to_owned(),
            Phase::Exited(exit) => format!("Exited({})", exit.code),
            Phase::CrashLoop { until } => format!("CrashLoop(until {})", until.as_second()),
            Phase::Ended(exit) => format!("Ended({})", exit.code),
        };
        write!(text, " {}#{}={phase}", spec.name, container.restarts).expect("a string");
    }
    if let Some(wake) = state.wake(spec) {
        write!(text, " wake={}", wake.as_second()).expect("a string");
    }
    if state.conditions.ready.value {
        text.push_str(" ready");
    }
    text
}

#[test]
fn starts_serves_and_is_deleted() {
    check(
        desired("app", RestartPolicy::Always),
        "0 step
         0 address
         1 compiling app
         2 prepared app
         3 started app
         9 delete 30
         10 exited app 0
         10 removed",
        expect![[r#"
            0 step
                ! Allocate
                Admitted app#0=Waiting
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            1 compiling app
                Active app#0=Compiling
            2 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            3 started app
                Active app#0=Running(since 3) ready
            9 delete 30
                ! Stop { container: 0, restart: 0, grace: 30s, because: None }
                Stopping(Deleted) app#0=Stopping wake=44 ready
            10 exited app 0
                ! Remove
                Removing(Deleted) app#0=Ended(0) wake=20
            10 removed
                ! Unmount
                ! Delete
                Deleting app#0=Ended(0)
        "#]],
    );
}

#[test]
fn a_crash_loop_backs_off_and_forgets_after_health() {
    check(
        desired("app", RestartPolicy::Always),
        "0 address
         0 prepared app
         1 started app
         2 exited app 1
         2 prepared app
         3 started app
         4 exited app 1
         13 step
         14 step
         14 prepared app
         15 started app
         800 exited app 1
         800 prepared app
         801 started app",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1) ready
            2 exited app 1
                ! Prepare(0)
                Active app#1=Preparing
            2 prepared app
                ! Start { container: 0, restart: 1 }
                Active app#1=Starting
            3 started app
                Active app#1=Running(since 3) ready
            4 exited app 1
                ! BackingOff(0)
                Active app#1=CrashLoop(until 14) wake=14
            13 step
                Active app#1=CrashLoop(until 14) wake=14
            14 step
                ! Prepare(0)
                Active app#2=Preparing
            14 prepared app
                ! Start { container: 0, restart: 2 }
                Active app#2=Starting
            15 started app
                Active app#2=Running(since 15) ready
            800 exited app 1
                ! Prepare(0)
                Active app#3=Preparing
            800 prepared app
                ! Start { container: 0, restart: 3 }
                Active app#3=Starting
            801 started app
                Active app#3=Running(since 801) ready
        "#]],
    );
}

#[test]
fn another_image_restarts_a_container_whatever_the_policy() {
    check(
        desired("app side", RestartPolicy::Never),
        "0 address
         0 prepared app
         0 failed side ErrImagePull
         1 started app
         2 image app hello:2
         3 image side right:1
         4 exited app 143
         4 prepared app
         5 started app
         6 prepared side
         7 started side
         8 exited side 0
         9 image side right:2",
        expect![[r#"
            0 address
                ! Prepare(0)
                ! Prepare(1)
                Active app#0=Preparing side#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting side#0=Preparing
            0 failed side ErrImagePull
                Active app#0=Starting side#0=BackOff(ErrImagePull until 10) wake=10
            1 started app
                Active app#0=Running(since 1) side#0=BackOff(ErrImagePull until 10) wake=10
            2 image app hello:2
                ! Stop { container: 0, restart: 0, grace: 30s, because: None }
                Active app#0=Stopping side#0=BackOff(ErrImagePull until 10) wake=10
            3 image side right:1
                ! Prepare(1)
                Active app#0=Stopping side#0=Preparing
            4 exited app 143
                ! Prepare(0)
                Active app#1=Preparing side#0=Preparing
            4 prepared app
                ! Start { container: 0, restart: 1 }
                Active app#1=Starting side#0=Preparing
            5 started app
                Active app#1=Running(since 5) side#0=Preparing
            6 prepared side
                ! Start { container: 1, restart: 0 }
                Active app#1=Running(since 5) side#0=Starting
            7 started side
                Active app#1=Running(since 5) side#0=Running(since 7) ready
            8 exited side 0
                Active app#1=Running(since 5) side#0=Ended(0)
            9 image side right:2
                Active app#1=Running(since 5) side#0=Ended(0)
        "#]],
    );
}

#[test]
fn image_errors_double_their_delay() {
    check(
        desired("app", RestartPolicy::Always),
        "0 address
         0 failed app ErrImagePull
         9 step
         10 step
         10 failed app ErrImagePull
         30 step
         30 failed app CreateContainerConfigError
         32 step
         32 prepared app",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 failed app ErrImagePull
                Active app#0=BackOff(ErrImagePull until 10) wake=10
            9 step
                Active app#0=BackOff(ErrImagePull until 10) wake=10
            10 step
                ! Prepare(0)
                Active app#0=Preparing
            10 failed app ErrImagePull
                Active app#0=BackOff(ImagePullBackOff until 30) wake=30
            30 step
                ! Prepare(0)
                Active app#0=Preparing
            30 failed app CreateContainerConfigError
                Active app#0=BackOff(CreateContainerConfigError until 32) wake=32
            32 step
                ! Prepare(0)
                Active app#0=Preparing
            32 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
        "#]],
    );
}

#[test]
fn a_pod_without_its_volumes_cannot_start_containers() {
    let desired = desired("app", RestartPolicy::Always);
    let mut state = PodState::new(&desired.spec, at(0));
    let mut can_start = |second: i64, script: &str| {
        let words: Vec<&str> = script.split_whitespace().collect();
        if let Some(observation) = observation(&words, &state, &desired.spec, at(second)) {
            state = observe(&state, &desired.spec, observation, at(second));
        }
        state = step(&state, &desired, at(second)).0;
        state.conditions.network.value
    };
    assert!(can_start(0, "address"));
    assert!(!can_start(1, "failed app ContainerCreating"));
    assert!(!can_start(3, "step"), "it is tried again");
    assert!(can_start(4, "failed app ErrImagePull"));
    assert!(can_start(30, "step"));
    assert!(!can_start(31, "failed app ContainerCreating"));
    assert!(!can_start(60, "step"));
    assert!(can_start(61, "prepared app"));
    assert!(can_start(62, "started app") && can_start(63, "exited app 1"));
    assert!(can_start(64, "failed app ContainerCreating"), "it had begun");
}

#[test]
fn init_containers_run_one_after_the_other() {
    check(
        desired("one proxy+ two | app", RestartPolicy::OnFailure),
        "0 address
         1 prepared one
         1 started one
         2 exited one 1
         2 prepared one
         2 started one
         3 exited one 0
         3 prepared proxy
         4 started proxy
         4 prepared two
         5 started two
         6 exited two 0
         6 prepared app
         7 started app
         8 exited app 0
         9 exited proxy 0
         9 removed",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing proxy#0=Waiting two#0=Waiting app#0=Waiting
            1 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting proxy#0=Waiting two#0=Waiting app#0=Waiting
            1 started one
                Active one#0=Running(since 1) proxy#0=Waiting two#0=Waiting app#0=Waiting
            2 exited one 1
                ! Prepare(0)
                Active one#1=Preparing proxy#0=Waiting two#0=Waiting app#0=Waiting
            2 prepared one
                ! Start { container: 0, restart: 1 }
                Active one#1=Starting proxy#0=Waiting two#0=Waiting app#0=Waiting
            2 started one
                Active one#1=Running(since 2) proxy#0=Waiting two#0=Waiting app#0=Waiting
            3 exited one 0
                ! Prepare(1)
                Active one#1=Ended(0) proxy#0=Preparing two#0=Waiting app#0=Waiting
            3 prepared proxy
                ! Start { container: 1, restart: 0 }
                Active one#1=Ended(0) proxy#0=Starting two#0=Waiting app#0=Waiting
            4 started proxy
                ! Prepare(2)
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Preparing app#0=Waiting
            4 prepared two
                ! Start { container: 2, restart: 0 }
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Starting app#0=Waiting
            5 started two
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Running(since 5) app#0=Waiting
            6 exited two 0
                ! Prepare(3)
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Ended(0) app#0=Preparing
            6 prepared app
                ! Start { container: 3, restart: 0 }
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Ended(0) app#0=Starting
            7 started app
                Active one#1=Ended(0) proxy#0=Running(since 4) two#0=Ended(0) app#0=Running(since 7) ready
            8 exited app 0
                ! Stop { container: 1, restart: 0, grace: 30s, because: None }
                Stopping(Succeeded) one#1=Ended(0) proxy#0=Stopping two#0=Ended(0) app#0=Ended(0) wake=47
            9 exited proxy 0
                ! Remove
                Removing(Succeeded) one#1=Ended(0) proxy#0=Ended(0) two#0=Ended(0) app#0=Ended(0) wake=19
            9 removed
                ! Unmount
                Finished(Succeeded) one#1=Ended(0) proxy#0=Ended(0) two#0=Ended(0) app#0=Ended(0)
        "#]],
    );
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    check(
        desired("one | app", RestartPolicy::Never),
        "0 address
         1 prepared one
         1 started one
         2 exited one 3
         2 removed
         3 delete 0",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing app#0=Waiting
            1 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting app#0=Waiting
            1 started one
                Active one#0=Running(since 1) app#0=Waiting
            2 exited one 3
                ! Remove
                Removing(Failed) one#0=Ended(3) app#0=Waiting wake=12
            2 removed
                ! Unmount
                Finished(Failed) one#0=Ended(3) app#0=Waiting
            3 delete 0
                ! Unmount
                ! Delete
                Deleting one#0=Ended(3) app#0=Waiting
        "#]],
    );
}

#[test]
fn a_job_completes() {
    check(
        desired("app", RestartPolicy::OnFailure),
        "0 address
         0 prepared app
         1 started app
         2 exited app 0
         2 removed
         3 worker knows",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1) ready
            2 exited app 0
                ! Remove
                Removing(Succeeded) app#0=Ended(0) wake=12
            2 removed
                ! Unmount
                Finished(Succeeded) app#0=Ended(0)
            3 worker knows
                Finished(Succeeded) app#0=Ended(0)
        "#]],
    );
}

#[test]
fn a_worker_that_dies_restarts_its_containers() {
    check(
        desired("app", RestartPolicy::Always),
        "0 address
         0 prepared app
         1 started app
         5 lost
         5 prepared app
         6 worker knows
         6 prepared app
         7 started app",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1) ready
            5 lost
                ! Prepare(0)
                Active app#1=Preparing
            5 prepared app
                ! Start { container: 0, restart: 1 }
                Active app#1=Starting
            6 worker knows
                ! Prepare(0)
                Active app#1=Preparing
            6 prepared app
                ! Start { container: 0, restart: 1 }
                Active app#1=Starting
            7 started app
                Active app#1=Running(since 7) ready
        "#]],
    );
}

#[test]
fn what_happened_while_nobody_listened_is_caught_up() {
    check(
        desired("app side", RestartPolicy::Never),
        "0 address
         0 prepared app
         0 prepared side
         1 started side
         2 worker knows app=running side=exited:7
         3 worker knows side=exited:7",
        expect![[r#"
            0 address
                ! Prepare(0)
                ! Prepare(1)
                Active app#0=Preparing side#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting side#0=Preparing
            0 prepared side
                ! Start { container: 1, restart: 0 }
                Active app#0=Starting side#0=Starting
            1 started side
                Active app#0=Starting side#0=Running(since 1)
            2 worker knows app=running side=exited:7
                Active app#0=Running(since 2) side#0=Ended(7)
            3 worker knows side=exited:7
                ! Remove
                Removing(Failed) app#0=Ended(137) side#0=Ended(7) wake=13
        "#]],
    );
}

#[test]
fn a_second_deletion_shortens_the_first() {
    check(
        desired("app", RestartPolicy::Always),
        "0 address
         0 prepared app
         1 started app
         2 delete 600
         3 delete 1
         9 step
         12 step
         20 step",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1) ready
            2 delete 600
                ! Stop { container: 0, restart: 0, grace: 600s, because: None }
                Stopping(Deleted) app#0=Stopping wake=607 ready
            3 delete 1
                ! Stop { container: 0, restart: 0, grace: 1s, because: None }
                Stopping(Deleted) app#0=Stopping wake=9 ready
            9 step
                ! Remove
                Removing(Deleted) app#0=Ended(137) wake=19
            12 step
                Removing(Deleted) app#0=Ended(137) wake=19
            20 step
                ! Unmount
                ! Delete
                Deleting app#0=Ended(137)
        "#]],
    );
}

#[test]
fn a_pod_that_never_started_goes_at_once() {
    check(
        desired("app", RestartPolicy::Always),
        "0 step
         1 delete 30
         1 removed",
        expect![[r#"
            0 step
                ! Allocate
                Admitted app#0=Waiting
            1 delete 30
                ! Remove
                Removing(Deleted) app#0=Waiting wake=11
            1 removed
                ! Unmount
                ! Delete
                Deleting app#0=Waiting
        "#]],
    );
}

#[path = "lifecycle_probe_tests.rs"]
mod probes_and_ends;
