//! The truth of a Pod's conditions, and when it last changed.

use jiff::Timestamp;

use crate::agent::spec::PodSpec;

use super::{Container, Eviction, Mark, Phase, PodState, Stage, UNMOUNTED, Why, init_is_done};

/// Brings the conditions up to date; a time changes only with its value.
pub(super) fn settle(state: &mut PodState, spec: &PodSpec, now: Timestamp) {
    let initialized = is_initialized(state, spec);
    let serving = matches!(state.stage, Stage::Admitted | Stage::Active) || state.is_leaving();
    let all_ready = spec.staying().all(|index| state.is_ready(index));
    let containers_ready = serving && initialized && all_ready;
    let ready = containers_ready && gate_trouble(spec).is_empty();
    let set = |mark: &mut Mark, value: bool| {
        if mark.value != value {
            *mark = Mark { value, at: now };
        }
    };
    set(&mut state.conditions.initialized, initialized);
    set(&mut state.conditions.containers_ready, containers_ready);
    set(&mut state.conditions.ready, ready);
    let network = state.ip.is_some() && state.needs_worker() && is_mounted(state);
    set(&mut state.conditions.network, network);
    let disrupted = matches!(state.eviction, Some(Eviction::Shortage(_)));
    set(&mut state.conditions.disruption, disrupted);
}

impl PodState {
    /// Whether a container runs, has started and passes its readiness probe. One that ends with its
    /// deleted Pod may still be asked, where nobody else can be; one that is to start again may not.
    pub fn is_ready(&self, index: usize) -> bool {
        let Container { phase, health, .. } = &self.containers[index];
        let runs = match phase {
            Phase::Running { .. } => true,
            Phase::Stopping { since } => since.is_some() && self.is_leaving(),
            _ => false,
        };
        runs && health.started && health.ready && health.failed.is_none()
    }

    /// Whether it was deleted and its containers are ending. Who ends for another reason is no longer
    /// there for anybody.
    fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Stopping { why: Why::Deleted, .. })
    }
}

/// One sentence for each readiness gate that does not hold.
pub fn gate_trouble(spec: &PodSpec) -> Vec<String> {
    let mut trouble = Vec::new();
    for gate in &spec.gates {
        let found = spec.conditions.iter().find(|condition| &condition.type_ == gate);
        match found {
            None => trouble.push(format!(
                "corresponding condition of pod readiness gate {gate:?} does not exist."
            )),
            Some(condition) if condition.status != "True" => trouble.push(format!(
                "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    trouble
}

/// Whether no volume keeps the Pod from beginning. While that is tried again it stays what it was.
fn is_mounted(state: &PodState) -> bool {
    let is_before = |phase: &Phase| {
        matches!(phase, Phase::Waiting | Phase::Preparing { .. } | Phase::BackOff { .. })
    };
    let begun = |it: &Container| !is_before(&it.phase) || it.restarts > 0 || it.last.is_some();
    let unmounted = |it: &Container| match &it.phase {
        Phase::BackOff { problem, .. } => problem.reason == UNMOUNTED,
        Phase::Preparing { .. } => it.failures > 0 && !state.conditions.network.value,
        _ => false,
    };
    state.containers.iter().any(begun) || !state.containers.iter().any(unmounted)
}

/// Whether every init container has done its part; a sidecar has as soon as those after it began.
fn is_initialized(state: &PodState, spec: &PodSpec) -> bool {
    let begun = state.containers[spec.main()].iter().any(|c| c.phase != Phase::Waiting);
    let mut init = state.containers[..spec.init].iter().zip(&spec.containers);
    (begun || state.stage != Stage::Admitted)
        && init.all(|(container, spec)| {
            init_is_done(container, spec.sidecar) || (begun && spec.sidecar)
        })
}
