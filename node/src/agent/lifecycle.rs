//! The life of a Pod on its node: one state, one pure step.
//!
//! ```text
//!   Admitted --address--> Active --all ended / deadline / deletion--> Stopping --nothing runs-->
//!   Removing --worker forgot it--> Finished | Deleting
//!
//!   container:  Waiting -> Preparing -> Ready -> Starting -> Running -> Exited -> Ended
//!                 ^           |  ^                                        |
//!                 |           v  |                                        v
//!                 |         BackOff                                   CrashLoop -> Preparing
//! ```
//!
//! The agent's loop folds what it hears into the state with [`observe`], then calls [`step`] until
//! there is nothing to do, and performs the actions. Both are functions of their arguments; time is
//! an argument. Steps are level-triggered: a lost action is asked for again when its observation
//! says that it did not happen (a restarted worker that does not know a container).
//!
//! Invariants: at most one start of a container is with the worker at any time; `restarts` grows
//! before each new start, so a start number never runs twice; an ended Pod never starts again.

mod conditions;
mod ending;
mod hear;

pub use self::{conditions::gate_trouble, hear::observe};
use self::{
    conditions::settle,
    ending::{after_removal, begin_ending, margin, remove_if_still, stop_containers},
};

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;

use crate::protocol::{self, Exit, ExitReason, Guest, Health, ProbeKind};

use super::spec::{ContainerSpec, Desired, PodSpec};

/// First delay of a repeated failure, and of image errors.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest delay between attempts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Missing ConfigMaps and Secrets are usually created soon, and a server that was away is back: look
/// again after this, then twice that, up to [`BACKOFF_CONFIG`].
pub const BACKOFF_CONFIG_FIRST: Duration = Duration::from_millis(500);
/// The longest wait of this kind.
pub const BACKOFF_CONFIG: Duration = Duration::from_secs(5);
/// A run this long counts as healthy: the next failure starts with no delay again.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);
/// How much longer than its grace period a container may take before the Pod is removed anyway; its
/// sidecars add to that, see `ending.rs`.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long a worker may take to forget a Pod.
const REMOVE_MAX: Duration = Duration::from_secs(10);

/// What the containers of an evicted Pod get: the node is short of something now.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// Exit code of a container whose worker died: killed by signal 9.
pub const CODE_KILLED: i32 = 137;
/// Exit code of a container that was told to end: signal 15.
const CODE_TERMINATED: i32 = 143;

/// A Pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// Where it is.
    pub stage: Stage,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// `status.startTime`: when the node took it.
    pub started: Timestamp,
    /// In the order of the spec: init containers first.
    pub containers: Vec<Container>,
    /// Truth and time of the Pod's conditions, see `status.rs`.
    pub conditions: Conditions,
    /// Why the node wants to be rid of it.
    pub eviction: Option<Eviction>,
    /// Why the node does not take it: reason and sentence for its status.
    pub refusal: Option<(&'static str, String)>,
}

/// Reasons for which a node does not take a Pod.
pub const REFUSALS: [&str; 5] =
    ["OutOfcpu", "OutOfmemory", "OutOfpods", "NodeAffinity", "TaintToleration"];

/// Why the node wants to be rid of a Pod, with the sentence for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// The node is short of something. That is no fault of the Pod, which says so (`DisruptionTarget`).
    Shortage(String),
    /// It uses more than its own limits let it: a failure as any other, which Jobs have to count.
    OverLimit(String),
}

impl Eviction {
    /// The sentence for its status.
    pub fn sentence(&self) -> &str {
        match self {
            Eviction::Shortage(sentence) | Eviction::OverLimit(sentence) => sentence,
        }
    }
}

/// Stage of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Needs an address. Entered at first sight; left by `Observation::Address` or deletion.
    Admitted,
    /// Containers start and run. Left when all ended, at the active deadline, or by deletion.
    Active,
    /// Containers are asked to end. Left when none runs, or when the time is over.
    Stopping {
        /// What it is for.
        why: Why,
        /// When the Pod is removed whatever still runs.
        deadline: Timestamp,
    },
    /// The worker is asked to forget the Pod. Left by `Observation::Removed` or the deadline.
    Removing {
        /// What it is for.
        why: Why,
        /// When the answer is no longer waited for.
        deadline: Timestamp,
    },
    /// Nothing runs and nothing will; the object stays. Left by deletion.
    Finished(Why),
    /// The API is asked to drop the object. Left when the watch says that it is gone.
    Deleting,
}

/// Why a Pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Every container ended with code 0.
    Succeeded,
    /// A container failed for good.
    Failed,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// The node is short of something, or it is beyond its own limits.
    Evicted,
    /// The node has no room for it.
    Refused,
    /// The object is being deleted.
    Deleted,
}

/// A container of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Where it is.
    pub phase: Phase,
    /// Number of the current start: 0 for the first.
    pub restarts: u32,
    /// How the start before the current one ended.
    pub last: Option<Exit>,
    /// Delay before the next start after a failure.
    pub delay: Duration,
    /// Attempts to prepare that failed one after the other.
    pub failures: u32,
    /// The image that the Pod named for the current start; empty if that is not known.
    pub image: String,
    /// `<name>@sha256:…` of the current start.
    pub image_id: String,
    /// How the image is run, once known.
    pub guest: Option<Guest>,
    /// What its probes have found out since it was started.
    pub health: Health,
}

/// Phase of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Not its turn yet.
    Waiting,
    /// Image and environment are being prepared. Left by `Prepared` or `Failed`.
    Preparing {
        /// The image is being compiled.
        compiling: bool,
    },
    /// Preparing failed; tried again at `until`.
    BackOff {
        /// When.
        until: Timestamp,
        /// What failed.
        problem: Problem,
    },
    /// Everything for a start is there. Left at the next step.
    Ready,
    /// The worker was told. Left by `Started` or `Exited`.
    Starting,
    /// It runs or serves. Left by `Exited`, or by stopping.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// Asked to end. Left by `Exited`.
    Stopping {
        /// Since when it ran, if it did.
        since: Option<Timestamp>,
    },
    /// Ended a moment ago; the next step decides.
    Exited(Exit),
    /// Ended (see `last`), starts again at `until`.
    CrashLoop {
        /// When.
        until: Timestamp,
    },
    /// Ended for good.
    Ended(Exit),
}

/// The reason of a container whose volumes are not there: it waits as one that is being created.
pub const UNMOUNTED: &str = "ContainerCreating";

/// Why a container cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The word for status: `ErrImagePull`, `InvalidImage` …
    pub reason: &'static str,
    /// A sentence with the next step.
    pub message: String,
}

/// Truth of the Pod's conditions with the time of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// `Initialized`
    pub initialized: Mark,
    /// `ContainersReady`
    pub containers_ready: Mark,
    /// `Ready`: that, and every readiness gate.
    pub ready: Mark,
    /// `DisruptionTarget`: the node is short of something and about to evict it.
    pub disruption: Mark,
    /// `PodReadyToStartContainers`: it has an address and its volumes.
    pub network: Mark,
}

/// A condition's value and when it last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its status.
    pub value: bool,
    /// `lastTransitionTime`
    pub at: Timestamp,
}

/// What the agent heard about a Pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// An address was allocated.
    Address(IpAddr),
    /// The image of a container is not compiled yet.
    Compiling(usize),
    /// Everything for the next start of a container is there.
    Prepared {
        /// Which container.
        container: usize,
        /// Its image.
        image_id: String,
        /// How it is run.
        guest: Guest,
    },
    /// It is not, and why.
    Failed {
        /// Which container.
        container: usize,
        /// Why.
        problem: Problem,
    },
    /// The worker started it.
    Started {
        /// Which container.
        container: usize,
        /// Which start.
        restart: u32,
        /// When.
        at: Timestamp,
    },
    /// A probe changed what is known of it.
    Probed {
        /// Which container.
        container: usize,
        /// Which start.
        restart: u32,
        /// All that is known now.
        health: Health,
    },
    /// This Pod is to go.
    Evict(Eviction),
    /// The node has no room for it or is none that it may be on, and it has not begun; reason and
    /// sentence for its status.
    Refuse(&'static str, String),
    /// It ended.
    Exited {
        /// Which container.
        container: usize,
        /// Which start.
        restart: u32,
        /// How.
        exit: Exit,
    },
    /// A worker connected; this is what it knows of the Pod.
    Worker(Option<protocol::PodState>),
    /// The worker process is gone.
    WorkerLost,
    /// The worker forgot the Pod.
    Removed,
}

/// What the agent shall do for a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find an address; answered by `Address`.
    Allocate,
    /// Get image and environment; answered by `Prepared` or `Failed`.
    Prepare(usize),
    /// Tell the worker to start what was prepared.
    Start {
        /// Which container.
        container: usize,
        /// Which start.
        restart: u32,
    },
    /// Tell the worker to stop a container.
    Stop {
        /// Which container.
        container: usize,
        /// Which start.
        restart: u32,
        /// Time it gets.
        grace: Duration,
        /// The probe that failed, if it is to be started again.
        because: Option<ProbeKind>,
    },
    /// Say in an event that a restart is being delayed.
    BackingOff(usize),
    /// Tell the worker to forget the Pod; answered by `Removed`.
    Remove,
    /// Remove its volumes: nothing of it runs any more, nor will.
    Unmount,
    /// Delete the object in the API, after its last status was written.
    Delete,
}

impl PodState {
    /// A Pod that was never seen before.
    pub fn new(spec: &PodSpec, now: Timestamp) -> PodState {
        let mark = Mark { value: false, at: now };
        PodState {
            stage: Stage::Admitted,
            ip: None,
            started: now,
            containers: spec.containers.iter().map(|it| Container::new(&it.probes)).collect(),
            conditions: Conditions {
                initialized: mark,
                containers_ready: mark,
                ready: mark,
                network: mark,
                disruption: mark,
            },
            eviction: None,
            refusal: None,
        }
    }

    /// Makes room for ephemeral containers that were added to the Pod.
    pub fn fit(&mut self, spec: &PodSpec) {
        let known = self.containers.len().min(spec.containers.len());
        let new = spec.containers[known..].iter().map(|it| Container::new(&it.probes));
        self.containers.extend(new);
    }

    /// Whether a worker has, or may have, anything of this Pod.
    pub fn needs_worker(&self) -> bool {
        matches!(
            self.stage,
            Stage::Admitted | Stage::Active | Stage::Stopping { .. } | Stage::Removing { .. }
        )
    }

    /// When [`step`] has something to do though nothing is heard.
    pub fn wake(&self, spec: &PodSpec) -> Option<Timestamp> {
        let stage = match &self.stage {
            Stage::Active | Stage::Admitted => {
                spec.active_deadline.map(|deadline| self.started + deadline)
            }
            Stage::Stopping { deadline, .. } | Stage::Removing { deadline, .. } => Some(*deadline),
            Stage::Finished(_) | Stage::Deleting => return None,
        };
        let containers = self.containers.iter().filter_map(|container| match &container.phase {
            Phase::BackOff { until, .. } | Phase::CrashLoop { until } => Some(*until),
            _ => None,
        });
        containers.chain(stage).min()
    }
}

impl Container {
    /// A container that never started.
    pub fn new(probes: &protocol::Probes) -> Container {
        Container {
            phase: Phase::Waiting,
            restarts: 0,
            last: None,
            delay: Duration::ZERO,
            failures: 0,
            image: String::new(),
            image_id: String::new(),
            guest: None,
            health: Health::new(probes),
        }
    }

    /// Whether the Pod has been given another image for it than the one it was started with.
    pub fn is_outdated(&self, spec: &ContainerSpec) -> bool {
        !self.image.is_empty() && self.image != spec.image
    }

    /// Whether the worker has it.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. })
    }

    fn running_since(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Running { since } => Some(since),
            Phase::Stopping { since } => since,
            _ => None,
        }
    }
}

/// Decides what to do next. Calling it again with its own result returns no actions, until time
/// passes or something is observed.
pub fn step(state: &PodState, desired: &Desired, now: Timestamp) -> (PodState, Vec<Action>) {
    let mut state = state.clone();
    state.fit(&desired.spec);
    let mut actions = Vec::new();
    let spec = &*desired.spec;
    begin_ending(&mut state, desired, now);
    match state.stage.clone() {
        Stage::Admitted => actions.push(Action::Allocate),
        Stage::Active => {
            advance_active(&mut state, spec, now, &mut actions);
            if let Some(why) = outcome(&state, spec) {
                state.stage = Stage::Stopping { why, deadline: now + spec.grace + margin(spec) };
                stop_containers(&mut state, spec, now, &mut actions);
                remove_if_still(&mut state, now, &mut actions);
            }
        }
        Stage::Stopping { .. } => {
            stop_containers(&mut state, spec, now, &mut actions);
            remove_if_still(&mut state, now, &mut actions);
        }
        Stage::Removing { why, deadline } if now >= deadline => {
            state.stage = after_removal(why);
            actions.push(Action::Unmount);
            if state.stage == Stage::Deleting {
                actions.push(Action::Delete);
            }
        }
        Stage::Removing { .. } | Stage::Finished(_) | Stage::Deleting => {}
    }
    settle(&mut state, spec, now);
    (state, actions)
}

fn advance_active(state: &mut PodState, spec: &PodSpec, now: Timestamp, actions: &mut Vec<Action>) {
    // They are there to look at a Pod that may never get beyond its init containers.
    for index in spec.ephemeral..spec.containers.len() {
        advance(state, spec, index, now, actions);
    }
    for index in 0..spec.init {
        advance(state, spec, index, now, actions);
        let sidecar = spec.containers[index].sidecar;
        // A sidecar that is started again holds back nobody who has begun, nor who comes after them.
        let mut later = state.containers[index + 1..spec.ephemeral].iter();
        let passed = sidecar && later.any(|it| it.phase != Phase::Waiting);
        if !passed && !init_is_done(&state.containers[index], sidecar) {
            return;
        }
    }
    for index in spec.main() {
        advance(state, spec, index, now, actions);
    }
}

/// Moves one container of an active Pod.
fn advance(
    state: &mut PodState,
    spec: &PodSpec,
    index: usize,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let container = &mut state.containers[index];
    let this = &spec.containers[index];
    if let Phase::Exited(exit) = container.phase.clone() {
        ended(container, spec, index, exit, now, actions);
    }
    let outdated = container.is_outdated(this);
    if outdated {
        // What failed was another image.
        (container.failures, container.delay) = (0, Duration::ZERO);
    }
    match container.phase.clone() {
        Phase::Waiting => prepare(container, this, index, actions),
        Phase::BackOff { until, .. } if outdated || now >= until => {
            prepare(container, this, index, actions);
        }
        Phase::CrashLoop { until } if outdated || now >= until => {
            container.restarts += 1;
            prepare(container, this, index, actions);
        }
        Phase::Ready if outdated => prepare(container, this, index, actions),
        Phase::Ready => {
            container.phase = Phase::Starting;
            container.health = Health::new(&this.probes);
            actions.push(Action::Start { container: index, restart: container.restarts });
        }
        Phase::Running { since } if container.health.failed.is_some() => {
            let because = container.health.failed;
            let probe = because.and_then(|kind| this.probes.get(kind));
            let grace = probe.and_then(|probe| probe.grace_s);
            let grace = grace.map_or(spec.grace, |seconds| Duration::from_secs(seconds.into()));
            let restart = container.restarts;
            actions.push(Action::Stop { container: index, restart, grace, because });
            container.phase = Phase::Stopping { since: Some(since) };
        }
        Phase::Running { since } if outdated => {
            let (restart, grace) = (container.restarts, spec.grace);
            let order = Action::Stop { container: index, restart, grace, because: None };
            actions.push(order);
            container.phase = Phase::Stopping { since: Some(since) };
        }
        Phase::BackOff { .. }
        | Phase::CrashLoop { .. }
        | Phase::Preparing { .. }
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Stopping { .. }
        | Phase::Exited(_)
        | Phase::Ended(_) => {}
    }
}

fn prepare(
    container: &mut Container,
    spec: &ContainerSpec,
    index: usize,
    actions: &mut Vec<Action>,
) {
    container.image.clone_from(&spec.image);
    container.phase = Phase::Preparing { compiling: false };
    actions.push(Action::Prepare(index));
}

/// A container ended by itself: starts again, now or later, or stays ended.
fn ended(
    container: &mut Container,
    spec: &PodSpec,
    index: usize,
    exit: Exit,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let this = &spec.containers[index];
    if container.is_outdated(this) {
        // It was stopped for its new image: no policy keeps that from starting, and no delay.
        container.last = Some(exit);
        container.phase = Phase::CrashLoop { until: now };
        return;
    }
    // An init container that succeeded has done its part, if it does not stay.
    let done = spec.is_init(index) && !this.sidecar && exit.code == 0;
    let restart = index < spec.ephemeral && !done && this.restarts.after(exit.code, spec.restart);
    if !restart {
        container.phase = Phase::Ended(exit);
        return;
    }
    let ran = exit.started_at.map_or(Duration::ZERO, |since| between(since, exit.finished_at));
    if ran >= HEALTHY_AFTER {
        container.delay = Duration::ZERO;
    }
    let until = exit.finished_at.max(now - container.delay) + container.delay;
    if !container.delay.is_zero() {
        actions.push(Action::BackingOff(index));
    }
    container.delay = longer(container.delay);
    container.last = Some(exit);
    container.phase = Phase::CrashLoop { until };
}

fn init_is_done(container: &Container, sidecar: bool) -> bool {
    match &container.phase {
        Phase::Running { .. } => sidecar && container.health.started,
        Phase::Exited(exit) => !sidecar && exit.code == 0,
        Phase::Ended(exit) => exit.code == 0,
        _ => false,
    }
}

/// How an active Pod ends, if it does now.
fn outcome(state: &PodState, spec: &PodSpec) -> Option<Why> {
    let init_failed = state.containers[..spec.init]
        .iter()
        .any(|container| matches!(&container.phase, Phase::Ended(exit) if exit.code != 0));
    if init_failed {
        return Some(Why::Failed);
    }
    let mut why = Why::Succeeded;
    for container in &state.containers[spec.main()] {
        match &container.phase {
            Phase::Ended(exit) if exit.code == 0 => {}
            Phase::Ended(_) => why = Why::Failed,
            _ => return None,
        }
    }
    Some(why)
}

fn killed(container: &Container, now: Timestamp, message: &str) -> Exit {
    Exit {
        code: CODE_KILLED,
        reason: ExitReason::Error,
        message: message.to_owned(),
        started_at: container.running_since(),
        finished_at: now,
    }
}

/// The next longer back-off delay.
pub fn longer(delay: Duration) -> Duration {
    if delay.is_zero() { BACKOFF_FIRST } else { (delay * 2).min(BACKOFF_MAX) }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
