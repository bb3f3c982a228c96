//! A Pod's state on this node, said in the words of the API.
//!
//! A pure function from the lifecycle's state to a complete `PodStatus`; the agent writes it when its
//! text changes. Times come from the state, so the same state always gives the same text.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time};

use crate::protocol::{Exit, ExitReason};

use super::{
    lifecycle::{Container, Mark, Phase, PodState, Stage, Why, gate_trouble},
    spec::PodSpec,
};

/// The status of a Pod.
pub fn status(state: &PodState, spec: &PodSpec, node: IpAddr) -> core::PodStatus {
    let init = &state.containers[..spec.init];
    let main = &state.containers[spec.main()];
    let ephemeral = &state.containers[spec.ephemeral..];
    let statuses = |containers: &[Container], first: usize| -> Vec<core::ContainerStatus> {
        containers
            .iter()
            .enumerate()
            .map(|(offset, container)| container_status(container, state, spec, first + offset))
            .collect()
    };
    let (reason, message) = pod_reason(state);
    // The containers of one that was refused were never looked at.
    let taken = !matches!(ending(&state.stage), Some(Why::Refused));
    core::PodStatus {
        phase: Some(phase(state, spec).to_owned()),
        reason,
        message,
        conditions: Some(conditions(state, spec)),
        host_ip: Some(node.to_string()),
        host_ips: Some(vec![core::HostIP { ip: node.to_string() }]),
        pod_ip: state.ip.map(|ip| ip.to_string()),
        pod_ips: state.ip.map(|ip| vec![core::PodIP { ip: ip.to_string() }]),
        start_time: Some(Time(state.started)),
        qos_class: Some(spec.qos.to_owned()),
        observed_generation: spec.generation,
        init_container_statuses: (taken && spec.init > 0).then(|| statuses(init, 0)),
        container_statuses: taken.then(|| statuses(main, spec.init)),
        ephemeral_container_statuses: (taken && !ephemeral.is_empty())
            .then(|| statuses(ephemeral, spec.ephemeral)),
        ..core::PodStatus::default()
    }
}

fn pod_reason(state: &PodState) -> (Option<String>, Option<String>) {
    match ending(&state.stage) {
        Some(Why::Deadline) => (
            Some("DeadlineExceeded".to_owned()),
            Some("Pod was active on the node longer than the specified deadline".to_owned()),
        ),
        Some(Why::Evicted) => (Some("Evicted".to_owned()), why_evicted(state)),
        Some(Why::Refused) => {
            let told = state.refusal.clone();
            told.map(|(reason, message)| (reason.to_owned(), message)).unzip()
        }
        _ => (None, None),
    }
}

fn ending(stage: &Stage) -> Option<Why> {
    match stage {
        Stage::Stopping { why, .. } | Stage::Removing { why, .. } | Stage::Finished(why) => {
            Some(*why)
        }
        Stage::Admitted | Stage::Active | Stage::Deleting => None,
    }
}

/// `status.phase`, by the rules of Kubernetes.
pub fn phase(state: &PodState, spec: &PodSpec) -> &'static str {
    if let Stage::Removing { why, .. } | Stage::Finished(why) = &state.stage {
        match why {
            Why::Succeeded => return "Succeeded",
            Why::Failed | Why::Deadline | Why::Evicted | Why::Refused => return "Failed",
            Why::Deleted => {}
        }
    }
    let main = &state.containers[spec.main()];
    // While a sidecar ends, the Pod has not.
    let runs = state.containers[..spec.ephemeral].iter().any(Container::is_live);
    if !runs && main.iter().all(|container| matches!(container.phase, Phase::Ended(_))) {
        // Nothing of it runs any more, the object is about to go.
        let failed = main
            .iter()
            .any(|container| matches!(&container.phase, Phase::Ended(exit) if exit.code != 0));
        return if failed { "Failed" } else { "Succeeded" };
    }
    let never_ran = |container: &Container| {
        container.last.is_none()
            && matches!(
                container.phase,
                Phase::Waiting
                    | Phase::Preparing { .. }
                    | Phase::BackOff { .. }
                    | Phase::Ready
                    | Phase::Starting
            )
    };
    if !state.conditions.initialized.value || main.iter().any(never_ran) {
        "Pending"
    } else {
        "Running"
    }
}

fn conditions(state: &PodState, spec: &PodSpec) -> Vec<core::PodCondition> {
    let finished = matches!(state.stage, Stage::Finished(Why::Succeeded));
    let marks = &state.conditions;
    let unready = unready(state, spec);
    let gates = gate_trouble(spec).join(", ");
    let incomplete = unready_init(state, spec);
    let ready = |kind: &str, mark: Mark| {
        let (reason, message) = if finished {
            (Some("PodCompleted"), None)
        } else if marks.containers_ready.value {
            (Some("ReadinessGatesNotReady"), Some(&gates))
        } else {
            (Some("ContainersNotReady"), Some(&unready))
        };
        condition(kind, mark, reason, message, spec)
    };
    let mut conditions = vec![
        condition("PodReadyToStartContainers", marks.network, None, None, spec),
        condition(
            "Initialized",
            marks.initialized,
            Some("ContainersNotInitialized"),
            Some(&incomplete),
            spec,
        ),
        ready("Ready", marks.ready),
        ready("ContainersReady", marks.containers_ready),
        condition(
            "PodScheduled",
            Mark { value: true, at: spec.scheduled.unwrap_or(state.started) },
            None,
            None,
            spec,
        ),
    ];
    let foreign = spec.conditions.iter();
    let foreign = foreign.filter(|it| !(marks.disruption.value && it.type_ == DISRUPTION));
    conditions.extend(foreign.cloned());
    if marks.disruption.value {
        let mut disruption = condition(DISRUPTION, marks.disruption, None, None, spec);
        disruption.reason = Some("TerminationByKubelet".to_owned());
        disruption.message = why_evicted(state);
        conditions.push(disruption);
    }
    conditions
}

fn why_evicted(state: &PodState) -> Option<String> {
    state.eviction.as_ref().map(|eviction| eviction.sentence().to_owned())
}

/// Says that a Pod is about to be ended by the cluster.
const DISRUPTION: &str = "DisruptionTarget";

/// A condition; reason and message belong to the value `False`.
fn condition(
    kind: &str,
    mark: Mark,
    reason: Option<&str>,
    message: Option<&String>,
    spec: &PodSpec,
) -> core::PodCondition {
    let explain = !mark.value;
    core::PodCondition {
        type_: kind.to_owned(),
        status: if mark.value { "True" } else { "False" }.to_owned(),
        last_transition_time: Some(Time(mark.at)),
        reason: reason.filter(|_| explain).map(str::to_owned),
        message: message.filter(|_| explain).cloned(),
        observed_generation: spec.generation,
        last_probe_time: None,
    }
}

/// The containers that are to be ready and are not, and the first reason there is.
fn unready(state: &PodState, spec: &PodSpec) -> String {
    let names: Vec<&str> = spec
        .staying()
        .filter(|index| !is_ready(state, spec, *index))
        .map(|index| spec.containers[index].name.as_str())
        .collect();
    let mut text = format!("containers with unready status: [{}]", names.join(" "));
    if let Some(why) = spec.staying().find_map(|index| trouble(&state.containers[index])) {
        text.push_str(": ");
        text.push_str(why);
    }
    text
}

fn unready_init(state: &PodState, spec: &PodSpec) -> String {
    let names: Vec<&str> = (0..spec.init)
        .filter(|index| !is_ready(state, spec, *index))
        .map(|index| spec.containers[index].name.as_str())
        .collect();
    let mut text = format!("containers with incomplete status: [{}]", names.join(" "));
    if let Some(why) = state.containers[..spec.init].iter().find_map(trouble) {
        text.push_str(": ");
        text.push_str(why);
    }
    text
}

/// The sentence that says why a container is not up.
fn trouble(container: &Container) -> Option<&str> {
    let message = match &container.phase {
        Phase::BackOff { problem, .. } => problem.message.as_str(),
        Phase::CrashLoop { .. } => container.last.as_ref()?.message.as_str(),
        Phase::Ended(exit) => exit.message.as_str(),
        _ => return None,
    };
    (!message.is_empty()).then_some(message)
}

/// `ready` of a container: running, or an init container that has done its part.
fn is_ready(state: &PodState, spec: &PodSpec, index: usize) -> bool {
    match &state.containers[index].phase {
        Phase::Ended(exit) => spec.is_init(index) && exit.code == 0,
        // An ephemeral container is never ready: it has no part in what the Pod is there for.
        _ if index >= spec.ephemeral => false,
        _ => state.is_ready(index) && (!spec.is_init(index) || spec.containers[index].sidecar),
    }
}

fn container_status(
    container: &Container,
    pod: &PodState,
    spec: &PodSpec,
    index: usize,
) -> core::ContainerStatus {
    let name = &spec.containers[index].name;
    let id = |restart: u32| format!("wasmtime://{}/{name}/{restart}", spec.uid);
    let current = container_state(container, pod, spec, index, &id);
    let started = current.running.is_some() && container.health.started;
    let never = container.restarts == 0 && current.waiting.is_some();
    let last = match &container.phase {
        // While it waits for its next start, `restarts` is still the number of the last one.
        Phase::CrashLoop { .. } => container.restarts,
        _ => container.restarts.saturating_sub(1),
    };
    let image = match container.image.as_str() {
        "" => &spec.containers[index].image,
        _ => &container.image,
    };
    core::ContainerStatus {
        name: name.clone(),
        image: image.clone(),
        image_id: container.image_id.clone(),
        container_id: (!never || container.last.is_some()).then(|| id(container.restarts)),
        ready: is_ready(pod, spec, index),
        started: Some(started),
        restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
        last_state: container.last.as_ref().map(|exit| core::ContainerState {
            terminated: Some(terminated(exit, id(last))),
            ..core::ContainerState::default()
        }),
        state: Some(current),
        ..core::ContainerStatus::default()
    }
}

fn container_state(
    container: &Container,
    pod: &PodState,
    spec: &PodSpec,
    index: usize,
    id: &dyn Fn(u32) -> String,
) -> core::ContainerState {
    let waiting = |reason: &str, message: Option<String>| core::ContainerState {
        waiting: Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..core::ContainerState::default()
    };
    match &container.phase {
        Phase::Waiting if spec.init > 0 && !(pod.conditions.initialized.value) => {
            waiting("PodInitializing", None)
        }
        Phase::Preparing { compiling: true } => waiting("Compiling", None),
        Phase::Waiting | Phase::Preparing { .. } | Phase::Ready | Phase::Starting => {
            waiting("ContainerCreating", None)
        }
        Phase::BackOff { problem, .. } => waiting(problem.reason, Some(problem.message.clone())),
        Phase::CrashLoop { until } => {
            let name = &spec.containers[index].name;
            let last = container.last.as_ref();
            let wait = last.map_or(0, |exit| until.duration_since(exit.finished_at).as_secs());
            let ended = last.map_or("", |exit| exit.message.as_str());
            let separator = if ended.is_empty() { "" } else { ": " };
            let message = format!(
                "back-off {} restarting failed container={name} pod={}_{}({}){separator}{ended}",
                as_kubelet(wait),
                spec.name,
                spec.namespace,
                spec.uid
            );
            waiting("CrashLoopBackOff", Some(message))
        }
        Phase::Running { since } => running(*since),
        Phase::Stopping { since: Some(since) } => running(*since),
        Phase::Stopping { since: None } => waiting("ContainerCreating", None),
        Phase::Exited(exit) | Phase::Ended(exit) => core::ContainerState {
            terminated: Some(terminated(exit, id(container.restarts))),
            ..core::ContainerState::default()
        },
    }
}

/// `10s`, `1m20s`, `5m0s`
fn as_kubelet(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

fn running(since: Timestamp) -> core::ContainerState {
    core::ContainerState {
        running: Some(core::ContainerStateRunning { started_at: Some(Time(since)) }),
        ..core::ContainerState::default()
    }
}

fn terminated(exit: &Exit, id: String) -> core::ContainerStateTerminated {
    core::ContainerStateTerminated {
        exit_code: exit.code,
        reason: Some(reason(exit).to_owned()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
        container_id: Some(id),
        signal: None,
    }
}

/// The word for an exit.
fn reason(exit: &Exit) -> &'static str {
    match exit.reason {
        ExitReason::Completed => "Completed",
        ExitReason::Error => "Error",
        ExitReason::OOMKilled => "OOMKilled",
        ExitReason::DeadlineExceeded => "DeadlineExceeded",
        ExitReason::StartError => "StartError",
        ExitReason::Stopped if exit.code == 0 => "Completed",
        ExitReason::Stopped => "Error",
    }
}

/// The exit that an API status describes; the reverse of [`terminated`].
pub fn exit(terminated: &core::ContainerStateTerminated, now: Timestamp) -> Exit {
    let reason = match terminated.reason.as_deref() {
        Some("Completed") => ExitReason::Completed,
        Some("OOMKilled") => ExitReason::OOMKilled,
        Some("DeadlineExceeded") => ExitReason::DeadlineExceeded,
        Some("StartError") => ExitReason::StartError,
        _ => ExitReason::Error,
    };
    Exit {
        code: terminated.exit_code,
        reason,
        message: terminated.message.clone().unwrap_or_default(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated.finished_at.as_ref().map_or(now, |time| time.0),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
