//! How a Pod ends: its containers in their order, then the worker's memory of it.

use jiff::Timestamp;

use crate::agent::spec::{Desired, PodSpec};

use super::{
    Action, Container, Duration, EVICTION_GRACE, Phase, PodState, REMOVE_MAX, STOP_MARGIN, Stage,
    Why, between, killed,
};

/// What a sidecar gets at the least, though the others have used the whole grace up.
const SIDECAR_GRACE_MIN: Duration = Duration::from_secs(2);

/// How much longer than its grace a Pod may take. Sidecars end one after the other: each may be asked
/// when the grace is over, and has as much again once its hook has taken what it got.
pub(super) fn margin(spec: &PodSpec) -> Duration {
    let sidecars = spec.containers[..spec.init].iter().filter(|it| it.sidecar);
    STOP_MARGIN + sidecars.map(|_| SIDECAR_GRACE_MIN * 2).sum::<Duration>()
}

/// Starts the end of a Pod that shall go away or has run out of time, and shortens an end that is
/// under way.
pub(super) fn begin_ending(state: &mut PodState, desired: &Desired, now: Timestamp) {
    let over = desired.spec.active_deadline.is_some_and(|limit| now >= state.started + limit);
    let (evicted, refused) = (state.eviction.is_some(), state.refusal.is_some());
    let margin = margin(&desired.spec);
    let cut = desired.deletion.map(|deletion| now + deletion.grace + margin);
    match (&mut state.stage, cut) {
        (Stage::Admitted | Stage::Active, Some(deadline)) => {
            state.stage = Stage::Stopping { why: Why::Deleted, deadline };
        }
        // Nothing of it has begun.
        (Stage::Admitted | Stage::Active, None) if refused => {
            state.stage = Stage::Stopping { why: Why::Refused, deadline: now };
        }
        (Stage::Admitted | Stage::Active, None) if evicted => {
            let deadline = now + EVICTION_GRACE + margin;
            state.stage = Stage::Stopping { why: Why::Evicted, deadline };
        }
        (Stage::Admitted | Stage::Active, None) if over => {
            let deadline = now + desired.spec.grace + margin;
            state.stage = Stage::Stopping { why: Why::Deadline, deadline };
        }
        (Stage::Stopping { why, deadline }, Some(sooner)) => {
            *why = Why::Deleted;
            if sooner < *deadline {
                *deadline = sooner;
                // A shorter grace is a new request to the worker.
                for container in &mut state.containers {
                    if let Phase::Stopping { since: Some(since) } = container.phase {
                        container.phase = Phase::Running { since };
                    }
                }
            }
        }
        (Stage::Removing { why, .. }, Some(_)) => *why = Why::Deleted,
        (Stage::Finished(_), Some(deadline)) => {
            // Nothing runs: the worker has forgotten it, only the object is left.
            state.stage = Stage::Removing { why: Why::Deleted, deadline: deadline.min(now) };
        }
        _ => {}
    }
}

/// Asks the containers to end: sidecars after all others, and the last one first. Each gets what is
/// left of the Pod's grace, a sidecar at least [`SIDECAR_GRACE_MIN`].
pub(super) fn stop_containers(
    state: &mut PodState,
    spec: &PodSpec,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let Stage::Stopping { deadline, .. } = state.stage else {
        return;
    };
    let grace = between(now, deadline - margin(spec));
    let is_sidecar = |index: usize| spec.is_init(index) && spec.containers[index].sidecar;
    let mut wait = false;
    for index in (0..state.containers.len()).filter(|index| !is_sidecar(*index)) {
        stop(&mut state.containers[index], index, grace, actions);
        wait |= state.containers[index].is_live();
    }
    for index in (0..spec.init).rev().filter(|index| is_sidecar(*index)) {
        let container = &mut state.containers[index];
        if !wait || !container.is_live() {
            stop(container, index, grace.max(SIDECAR_GRACE_MIN), actions);
        }
        wait |= container.is_live();
    }
}

fn stop(container: &mut Container, index: usize, grace: Duration, actions: &mut Vec<Action>) {
    let restart = container.restarts;
    let order = Action::Stop { container: index, restart, grace, because: None };
    container.phase = match container.phase.clone() {
        Phase::Starting => {
            actions.push(order);
            Phase::Stopping { since: None }
        }
        Phase::Running { since } => {
            actions.push(order);
            Phase::Stopping { since: Some(since) }
        }
        Phase::Exited(exit) => Phase::Ended(exit),
        Phase::CrashLoop { .. } => match container.last.take() {
            Some(exit) => Phase::Ended(exit),
            None => Phase::Waiting,
        },
        Phase::Preparing { .. } | Phase::BackOff { .. } | Phase::Ready | Phase::Waiting => {
            Phase::Waiting
        }
        phase @ (Phase::Stopping { .. } | Phase::Ended(_)) => phase,
    };
}

pub(super) fn remove_if_still(state: &mut PodState, now: Timestamp, actions: &mut Vec<Action>) {
    let Stage::Stopping { why, deadline } = state.stage else {
        return;
    };
    let live = state.containers.iter().any(Container::is_live);
    if live && now < deadline {
        return;
    }
    for container in state.containers.iter_mut().filter(|container| container.is_live()) {
        let exit = killed(container, now, "it did not end in its grace period and was killed");
        container.phase = Phase::Ended(exit);
    }
    state.stage = Stage::Removing { why, deadline: now + REMOVE_MAX };
    actions.push(Action::Remove);
}

pub(super) fn after_removal(why: Why) -> Stage {
    match why {
        Why::Deleted => Stage::Deleting,
        Why::Succeeded | Why::Failed | Why::Deadline | Why::Evicted | Why::Refused => {
            Stage::Finished(why)
        }
    }
}
