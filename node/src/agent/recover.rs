//! The state of a Pod that an agent finds when it starts.
//!
//! Two witnesses: what the API's status says (written by an earlier agent, perhaps long ago) and what
//! the worker says, which is the truth about everything that runs. Whatever the API calls running and
//! no worker knows was lost with its process, and starts again by the Pod's restart policy. So a
//! crash of the agent costs nothing, and a reboot restarts every Pod from the API's state: its init
//! containers first, since what they had left in memory is gone, and each container in its turn.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use crate::protocol::{self, ContainerPhase, Exit, ExitReason};

use super::{
    lifecycle::{
        BACKOFF_MAX, Conditions, Container, Eviction, Mark, Phase, PodState, REFUSALS, Stage, Why,
        longer,
    },
    spec::PodSpec,
    status,
};

/// As Kubernetes has it: nobody knows how the container ended.
const CODE_UNKNOWN: i32 = 255;

/// Builds the state from both witnesses. `booted` is when the machine started.
pub fn recover(
    spec: &PodSpec,
    api: Option<&core::PodStatus>,
    worker: Option<&protocol::PodState>,
    now: Timestamp,
    booted: Timestamp,
) -> PodState {
    let mut state = PodState::new(spec, now);
    let Some(api) = api else {
        return with_worker(state, spec, worker);
    };
    if let Some(started) = &api.start_time {
        state.started = started.0;
    }
    state.conditions = Conditions {
        initialized: mark(api, "Initialized", now),
        containers_ready: mark(api, "ContainersReady", now),
        ready: mark(api, "Ready", now),
        network: mark(api, "PodReadyToStartContainers", now),
        disruption: Mark { value: false, at: now },
    };
    state.ip = api.pod_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    for (index, container) in state.containers.iter_mut().enumerate() {
        if let Some(known) = container_status(api, spec, index) {
            *container = from_api(known, &spec.containers[index].probes, now);
        }
    }
    let finished = match api.phase.as_deref() {
        Some("Succeeded") => Some(Why::Succeeded),
        Some("Failed") if api.reason.as_deref() == Some("DeadlineExceeded") => Some(Why::Deadline),
        Some("Failed") if api.reason.as_deref() == Some("Evicted") => {
            state.conditions.disruption = mark(api, "DisruptionTarget", now);
            let sentence = api.message.clone().unwrap_or_default();
            state.eviction = Some(match state.conditions.disruption.value {
                true => Eviction::Shortage(sentence),
                false => Eviction::OverLimit(sentence),
            });
            Some(Why::Evicted)
        }
        Some("Failed") => {
            let reason = REFUSALS.into_iter().find(|it| api.reason.as_deref() == Some(*it));
            state.refusal = reason.map(|it| (it, api.message.clone().unwrap_or_default()));
            Some(if reason.is_some() { Why::Refused } else { Why::Failed })
        }
        _ => None,
    };
    if let Some(why) = finished {
        for container in &mut state.containers {
            if let Phase::Exited(exit) = container.phase.clone() {
                container.phase = Phase::Ended(exit);
            }
        }
        state.stage = match worker {
            // It was still to be told, or to say that it has forgotten the Pod.
            Some(worker) => {
                state.ip = Some(worker.ip);
                Stage::Stopping { why, deadline: now }
            }
            None => Stage::Finished(why),
        };
        return state;
    }
    if worker.is_none() {
        run_init_again(&mut state, spec, booted);
    }
    with_worker(state, spec, worker)
}

/// Has the init containers run again that ended before the machine started, each with a number of its
/// own. What began before the machine did and starts again waits for its turn behind them, and
/// behind its sidecars, as at first, also if it was backing off: that wait is lost, but its delay
/// stays. Not if nothing would start after them.
fn run_init_again(state: &mut PodState, spec: &PodSpec, booted: Timestamp) {
    let stays_ended = |index: usize| match &state.containers[index].phase {
        Phase::Exited(exit) => {
            let again = spec.containers[index].restarts.after(exit.code, spec.restart);
            (!again).then_some(exit.code)
        }
        _ => None,
    };
    let failed = (0..spec.init).any(|index| stays_ended(index).is_some_and(|code| code != 0));
    if spec.init == 0 || failed || spec.main().all(|index| stays_ended(index).is_some()) {
        return;
    }
    for (index, container) in state.containers[..spec.ephemeral].iter_mut().enumerate() {
        let this = &spec.containers[index];
        let (exit, again) = match (&container.phase, &container.last) {
            (Phase::Exited(exit), _) => {
                (exit.clone(), this.restarts.after(exit.code, spec.restart))
            }
            // That it starts again has been decided.
            (Phase::CrashLoop { .. }, Some(exit)) => (exit.clone(), true),
            _ => continue,
        };
        let is_init = spec.is_init(index) && !this.sidecar;
        let done = is_init && exit.code == 0 && exit.finished_at < booted;
        let lost = again && exit.started_at.unwrap_or(exit.finished_at) < booted;
        if done || lost {
            container.last = Some(exit);
            container.restarts += 1;
            container.phase = Phase::Waiting;
        }
    }
}

fn with_worker(
    mut state: PodState,
    spec: &PodSpec,
    worker: Option<&protocol::PodState>,
) -> PodState {
    if let Some(worker) = worker {
        state.ip = Some(worker.ip);
        for theirs in &worker.containers {
            if let Some(index) = spec.container(&theirs.name) {
                from_worker(&mut state.containers[index], theirs);
            }
        }
        state.stage = Stage::Active;
    }
    state
}

fn mark(api: &core::PodStatus, kind: &str, now: Timestamp) -> Mark {
    let condition = api.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    Mark {
        value: condition.is_some_and(|condition| condition.status == "True"),
        at: condition
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map_or(now, |time| time.0),
    }
}

fn container_status<'a>(
    api: &'a core::PodStatus,
    spec: &PodSpec,
    index: usize,
) -> Option<&'a core::ContainerStatus> {
    let list = if spec.is_init(index) {
        &api.init_container_statuses
    } else if index >= spec.ephemeral {
        &api.ephemeral_container_statuses
    } else {
        &api.container_statuses
    };
    list.iter().flatten().find(|status| status.name == spec.containers[index].name)
}

fn from_api(known: &core::ContainerStatus, probes: &protocol::Probes, now: Timestamp) -> Container {
    let mut container = Container::new(probes);
    container.restarts = u32::try_from(known.restart_count).unwrap_or(0);
    container.image.clone_from(&known.image);
    container.image_id = known.image_id.clone();
    let last = known.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    container.last = last.map(|terminated| status::exit(terminated, now));
    container.delay = delay_after(container.restarts);
    let state = known.state.as_ref();
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        container.phase = Phase::Exited(Exit {
            code: CODE_UNKNOWN,
            reason: ExitReason::Error,
            message: "the node or its worker process was restarted while it ran".to_owned(),
            started_at: running.started_at.as_ref().map(|time| time.0),
            finished_at: now,
        });
        // That was no fault of the container.
        container.delay = Duration::ZERO;
    } else if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        container.phase = Phase::Exited(status::exit(ended, now));
        // Another image does not start again what had ended before.
        container.image.clear();
    } else if let Some(last) = &container.last {
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let looping =
            waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff");
        // Any other reason to wait came after `restarts` had been counted up for a start that may
        // have been given to a worker: the next one gets a new number, at once.
        let until = if looping { last.finished_at + container.delay } else { now };
        container.delay = longer(container.delay);
        container.phase = Phase::CrashLoop { until };
    }
    container
}

fn from_worker(container: &mut Container, theirs: &protocol::ContainerState) {
    if theirs.restart < container.restarts {
        return;
    }
    if let (true, Phase::Exited(exit)) =
        (theirs.restart > container.restarts, container.phase.clone())
        && exit.code != CODE_UNKNOWN
    {
        container.last = Some(exit);
    }
    if theirs.restart > container.restarts || matches!(theirs.phase, ContainerPhase::Exited(_)) {
        // A start that the API has not heard of, or an end: not to be compared with the Pod.
        container.image.clear();
    }
    container.restarts = theirs.restart;
    container.image_id.clone_from(&theirs.image_id);
    container.guest = Some(theirs.guest);
    container.health = theirs.health;
    container.delay = delay_after(theirs.restart);
    container.phase = match &theirs.phase {
        ContainerPhase::Starting => Phase::Starting,
        ContainerPhase::Running { at } => Phase::Running { since: *at },
        ContainerPhase::Exited(exit) => Phase::Exited(exit.clone()),
    };
}

/// The delay that so many restarts lead to.
fn delay_after(restarts: u32) -> Duration {
    let mut delay = Duration::ZERO;
    for _ in 0..restarts {
        if delay == BACKOFF_MAX {
            break;
        }
        delay = longer(delay);
    }
    delay
}
