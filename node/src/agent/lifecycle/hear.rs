//! Folding what was heard into a Pod's state.

use jiff::Timestamp;

use crate::{
    agent::spec::PodSpec,
    protocol::{self, ContainerPhase, Exit, ExitReason, Health},
};

use super::{
    BACKOFF_CONFIG, BACKOFF_CONFIG_FIRST, BACKOFF_FIRST, BACKOFF_MAX, CODE_TERMINATED, Container,
    Observation, Phase, PodState, Problem, Stage, UNMOUNTED, killed, settle,
};

/// Folds one observation into the state. Observations that do not fit (a message about an older
/// start, an answer that came too late) change nothing.
pub fn observe(
    state: &PodState,
    spec: &PodSpec,
    observation: Observation,
    now: Timestamp,
) -> PodState {
    let mut state = state.clone();
    match observation {
        Observation::Address(ip) => {
            if state.stage == Stage::Admitted {
                state.ip = Some(ip);
                state.stage = Stage::Active;
            }
        }
        Observation::Compiling(index) => {
            if let Phase::Preparing { compiling } = &mut state.containers[index].phase {
                *compiling = true;
            }
        }
        Observation::Prepared { container, image_id, guest } => {
            let container = &mut state.containers[container];
            if matches!(container.phase, Phase::Preparing { .. }) {
                container.phase = Phase::Ready;
                container.failures = 0;
                container.image_id = image_id;
                container.guest = Some(guest);
            }
        }
        Observation::Failed { container, problem } => {
            let image = &spec.containers[container].image;
            preparing_failed(&mut state.containers[container], problem, image, now);
        }
        Observation::Started { container, restart, at } => {
            let container = &mut state.containers[container];
            if restart == container.restarts && container.phase == Phase::Starting {
                container.phase = Phase::Running { since: at };
            }
        }
        Observation::Probed { container, restart, health } => {
            let container = &mut state.containers[container];
            if restart == container.restarts && container.is_live() {
                container.health = health;
            }
        }
        Observation::Evict(eviction) => {
            if matches!(state.stage, Stage::Admitted | Stage::Active) {
                state.eviction = Some(eviction);
            }
        }
        Observation::Refuse(reason, message) => {
            if state.stage == Stage::Admitted {
                state.refusal = Some((reason, message));
            }
        }
        Observation::Exited { container, restart, exit } => {
            let container = &mut state.containers[container];
            if restart == container.restarts && container.is_live() {
                container.phase = Phase::Exited(told_to_end(exit, container.health));
            }
        }
        Observation::Worker(known) => compare(&mut state, spec, known.as_ref(), now),
        Observation::WorkerLost => {
            for container in state.containers.iter_mut().filter(|c| c.is_live()) {
                lose(container, now);
            }
        }
        Observation::Removed => {
            if let Stage::Removing { deadline, .. } = &mut state.stage {
                *deadline = now;
            }
        }
    }
    settle(&mut state, spec, now);
    state
}

fn preparing_failed(container: &mut Container, problem: Problem, image: &str, now: Timestamp) {
    if !matches!(container.phase, Phase::Preparing { .. }) {
        return;
    }
    let delay = if matches!(problem.reason, "CreateContainerConfigError" | UNMOUNTED) {
        (BACKOFF_CONFIG_FIRST * 2u32.pow(container.failures.min(5))).min(BACKOFF_CONFIG)
    } else {
        let doublings = container.failures.min(5);
        (BACKOFF_FIRST * 2u32.pow(doublings)).min(BACKOFF_MAX)
    };
    container.failures += 1;
    let problem = match problem.reason {
        "ErrImagePull" if container.failures > 1 => backed_off(image, &problem.message),
        _ => problem,
    };
    container.phase = Phase::BackOff { until: now + delay, problem };
}

/// An image that could not be pulled again, in the words of a kubelet.
fn backed_off(image: &str, why: &str) -> Problem {
    let message = format!("Back-off pulling image {image:?}: ErrImagePull: {why}");
    Problem { reason: "ImagePullBackOff", message }
}

/// Compares with what a worker that just connected knows.
fn compare(
    state: &mut PodState,
    spec: &PodSpec,
    known: Option<&protocol::PodState>,
    now: Timestamp,
) {
    if let (None, Stage::Removing { deadline, .. }) = (known, &mut state.stage) {
        *deadline = now;
        return;
    }
    for (index, container) in state.containers.iter_mut().enumerate() {
        let name = &spec.containers[index].name;
        let theirs = known
            .and_then(|pod| pod.containers.iter().find(|theirs| &theirs.name == name))
            .filter(|theirs| theirs.restart == container.restarts);
        if let Some(theirs) = theirs {
            container.health = theirs.health;
        }
        match (container.phase.clone(), theirs.map(|theirs| &theirs.phase)) {
            (Phase::Starting, Some(ContainerPhase::Running { at })) => {
                container.phase = Phase::Running { since: *at };
            }
            (phase, Some(ContainerPhase::Exited(exit))) if container.is_live() => {
                tracing::debug!(?phase, "ended while nobody listened");
                container.phase = Phase::Exited(told_to_end(exit.clone(), container.health));
            }
            // The order was lost on the way.
            (Phase::Starting, None) => container.phase = Phase::Waiting,
            (Phase::Stopping { since }, Some(ContainerPhase::Running { at })) => {
                // Asked once more at the next step.
                container.phase = Phase::Running { since: since.unwrap_or(*at) };
            }
            (Phase::Running { .. } | Phase::Stopping { .. }, None) => lose(container, now),
            _ => {}
        }
    }
}

/// A container that ended because a probe failed has failed, however orderly it went.
fn told_to_end(exit: Exit, health: Health) -> Exit {
    match health.failed {
        Some(kind) if exit.code == 0 => {
            let message = format!("ended after its {} probe failed", kind.word().to_lowercase());
            Exit { code: CODE_TERMINATED, reason: ExitReason::Error, message, ..exit }
        }
        _ => exit,
    }
}

fn lose(container: &mut Container, now: Timestamp) {
    let exit = killed(container, now, "the worker process that ran it is gone");
    // No fault of the container; worker processes that die again and again are started more and
    // more slowly.
    container.delay = std::time::Duration::ZERO;
    container.phase = Phase::Exited(exit);
}

#[cfg(test)]
mod tests {
    use super::backed_off;

    #[test]
    fn an_image_that_is_waited_for_is_named() {
        let problem = backed_off("shop:1", "not found");
        let message = "Back-off pulling image \"shop:1\": ErrImagePull: not found";
        assert_eq!((problem.reason, problem.message.as_str()), ("ImagePullBackOff", message));
    }
}
