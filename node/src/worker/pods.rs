//! The Pods of a worker: starts and stops containers on the agent's word and remembers how they
//! ended.
//!
//! One task runs each container start, from loading its code to closing its log; [`Pods`], owned by
//! the worker's main task, holds what is known of them, and the table of Pods that serve. Restarts
//! are the agent's decision. What ended while no agent listened stays in the state.
//!
//! ```text
//!   ApplyPod ─▶ Starting ─▶ Running ─▶ Exited       a newer start replaces the entry; the exit of
//!                  └───────────────────────▲        the old one is still reported, once
//! ```
//!
//! A handler that is to stop runs its `preStop` hook, then leaves the table; then its requests may
//! finish within the grace, and what is left is cut off. A command that can hear it is asked to end
//! (see `wasi-shim/src/input.rs`); one that cannot is ended at once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use wherry_wasi_shim::Account;

pub use super::start::Runtime;
use super::{
    attached::Io,
    checks::Target,
    jobs::{Job, Running, Tasks},
    names::Names,
    policy::Subject,
    probers::{Finding, Key, Probers},
    record::{Kept, Lately, Record},
    served::Served,
    start::{CODE_TRAP, Note, Start, exit_now},
    switch::{LocalPods, Refusal},
    trace::Source,
};
use crate::compile::world_file;
use crate::protocol::{
    Answer, Container, ContainerPhase, ContainerState, Exit, ExitReason, Guest, Health, Open, Pod,
    PodState, Port, Probes, Protocol, StartTimes, ToAgent, Usage, log_file,
};

/// Starts and exits taken together before the table is published once.
const BATCH_MAX: usize = 256;
/// Handlers that become idle at one look: unmapping takes some tens of microseconds each.
const RESTS_MAX: usize = 256;

/// Workloads whose requests are told together; more are named one by one only.
const WORKLOADS_MAX: usize = 1000;

/// All Pods of the worker.
pub struct Pods {
    runtime: Runtime,
    pods: BTreeMap<String, Entry>,
    /// Published to the switch after each change.
    local: LocalPods,
    /// It differs from what was published.
    stale: bool,
    tasks: JoinSet<(Key, Exit)>,
    notes: (mpsc::Sender<Note>, mpsc::Receiver<Note>),
    probers: Probers,
    usage_sent: BTreeMap<(String, String), Usage>,
    streams: Tasks,
}

/// A Pod.
struct Entry {
    name: String,
    ip: IpAddr,
    names: Arc<Names>,
    containers: BTreeMap<String, Known>,
    /// Container starts that have not exited, older ones included.
    live: usize,
    /// Goes when the last of them has.
    leaving: bool,
    /// Declared ports, by container.
    ports: Vec<(String, Port)>,
}

/// A container as people are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    container: String,
    restart: u32,
    guest: Guest,
    in_flight: usize,
    /// It has given its compiled code back.
    idle: bool,
    record: Kept,
}

/// The newest start of a container.
struct Known {
    restart: u32,
    image_id: String,
    guest: Guest,
    /// Its compiled code.
    module: PathBuf,
    /// Of all starts.
    record: Arc<Record>,
    ports: Vec<u16>,
    probes: Probes,
    health: Health,
    phase: Phase,
    /// For whoever is attached.
    io: Arc<Io>,
    stop: watch::Sender<Option<Instant>>,
    /// What earlier starts used.
    used: Used,
}

#[derive(Default, Clone, Copy)]
struct Used {
    cpu_ns: u64,
    requests: u64,
    busy_ns: u64,
}

enum Phase {
    Starting,
    Running {
        at: Timestamp,
        account: Account,
        /// What loading and linking took.
        took: (Duration, Duration),
        served: Option<Arc<Served>>,
        target: Arc<Target>,
    },
    Exited(Exit),
}

impl Pods {
    /// With no Pods.
    pub fn new(runtime: Runtime) -> Pods {
        Pods {
            runtime,
            pods: BTreeMap::new(),
            local: LocalPods::default(),
            stale: false,
            tasks: JoinSet::new(),
            notes: mpsc::channel(BATCH_MAX),
            probers: Probers::default(),
            usage_sent: BTreeMap::new(),
            streams: Tasks::default(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.tasks.is_empty()
    }

    /// Adds a Pod and starts what is new in it.
    pub fn apply(&mut self, pod: Pod) {
        let entry = self.pods.entry(pod.uid.clone()).or_insert_with(|| Entry {
            name: pod.name.clone(),
            ip: pod.ip.to_canonical(),
            names: Arc::new(Names { hosts: pod.hosts.clone(), dns: pod.dns.clone() }),
            containers: BTreeMap::new(),
            live: 0,
            leaving: false,
            ports: Vec::new(),
        });
        if entry.leaving {
            tracing::warn!(uid = pod.uid, "a Pod that is being removed was applied again");
            return;
        }
        for container in &pod.containers {
            entry.ports.retain(|(of, _)| *of != container.name);
            let ports = container.ports.iter().cloned();
            entry.ports.extend(ports.map(|port| (container.name.clone(), port)));
        }
        let known = (entry.name.clone(), entry.ip, entry.ports.clone());
        self.know(&pod.uid, &pod.namespace, known, &pod.labels);
        let entry = self.pods.get_mut(&pod.uid).expect("it was just made");
        let is_new = |container: &Container| match entry.containers.get(&container.name) {
            Some(known) => known.restart < container.restart,
            None => true,
        };
        let new: Vec<Container> = pod.containers.into_iter().filter(is_new).collect();
        for container in new {
            let path = log_file(
                &self.runtime.log_root,
                &pod.namespace,
                &pod.name,
                &pod.uid,
                &container.name,
                container.restart,
            );
            self.start(&pod.uid, container, path);
        }
    }

    /// A Pod's labels have changed.
    pub fn relabel(&mut self, uid: &str, namespace: &str, labels: &BTreeMap<String, String>) {
        if let Some(entry) = self.pods.get(uid) {
            let known = (entry.name.clone(), entry.ip, entry.ports.clone());
            self.know(uid, namespace, known, labels);
        }
    }

    /// Makes a Pod known as one that policies speak of.
    fn know(
        &mut self,
        uid: &str,
        namespace: &str,
        (name, ip, ports): (String, IpAddr, Vec<(String, Port)>),
        labels: &BTreeMap<String, String>,
    ) {
        self.local.know(Subject {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name,
            ip,
            labels: serde_json::json!(labels),
            ports: ports.into_iter().map(|(_, port)| port).collect(),
        });
        self.stale = true;
    }

    /// Publishes what was applied and removed since the last time.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.runtime.switch.publish_pods(self.local.clone());
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some(entry) = self.pods.remove(uid) {
            entry.containers.values().for_each(|known| known.record.close());
            self.local.forget(entry.ip);
            self.stale = true;
        }
    }

    fn start(&mut self, uid: &str, container: Container, log_path: PathBuf) {
        let entry = self.pods.get_mut(uid).expect("apply has made the entry");
        let mut used = Used::default();
        let mut record = None;
        if let Some(old) = entry.containers.remove(&container.name) {
            used = old.used_so_far();
            record = Some(old.record.clone());
            if let Phase::Running { served: Some(served), .. } = &old.phase {
                self.local.remove(entry.ip, served);
                self.runtime.switch.publish_pods(self.local.clone());
            }
            end(&old, Instant::now());
            self.probers.remove(&key(uid, &container.name, old.restart));
        }
        let key = key(uid, &container.name, container.restart);
        let (stop, stopped) = watch::channel(None);
        let (io, input) = Io::new(&container);
        let workload = self.local.source(entry.ip).unwrap_or_default();
        let source = Arc::new(Source::pod(workload, &entry.name));
        let record = record.unwrap_or_else(|| {
            let phases = self.runtime.switch.traffic.phases.of(workload);
            Arc::new(Record::new(phases))
        });
        let tcp = |port: &&crate::protocol::Port| port.protocol == Protocol::Tcp;
        let known = Known {
            restart: container.restart,
            image_id: container.image_id.clone(),
            guest: container.guest,
            module: container.module.clone(),
            record: record.clone(),
            ports: container.ports.iter().filter(tcp).map(|port| port.port).collect(),
            health: Health::new(&container.probes),
            probes: container.probes.clone(),
            phase: Phase::Starting,
            io: io.clone(),
            stop,
            used,
        };
        entry.containers.insert(container.name.clone(), known);
        entry.live += 1;
        tracing::info!(uid, container = key.container, restart = key.restart, "starting");
        let start = Start {
            log: self.runtime.logs.open(log_path.clone()),
            log_path,
            record,
            source,
            io: io.clone(),
            input,
            runtime: self.runtime.clone(),
            key: key.clone(),
            ip: entry.ip,
            names: entry.names.clone(),
            container,
            stopped,
            notes: self.notes.0.clone(),
            took: Default::default(),
        };
        self.tasks.spawn(async move {
            let exit = match AssertUnwindSafe(start.run()).catch_unwind().await {
                Ok(exit) => exit,
                Err(_) => exit_now(CODE_TRAP, ExitReason::Error, "the worker failed".to_owned()),
            };
            io.end();
            (key, exit)
        });
    }

    /// Serves a stream that the agent has opened.
    pub fn open(&mut self, open: Open, stream: UnixStream) {
        let job = self.job(open);
        self.streams.start(stream, job, &self.runtime);
    }

    /// Finds what a stream is for.
    fn job(&self, open: Open) -> Result<Job, Answer> {
        match open {
            Open::Exec { uid, container, command, streams, toolbox } => {
                let running = self.running(&uid, &container)?;
                let place = place(&running.io, &container)?;
                Ok(Job::Exec { running, place, command, streams, toolbox })
            }
            Open::Attach { uid, container, streams } => {
                let io = self.running(&uid, &container)?.io;
                let place = place(&io, &container)?;
                Ok(Job::Attach { io, place, streams })
            }
            Open::Record { uid } => self.told(&uid).map(Job::Text),
            Open::Requests { uid, container, since } => {
                let record = self.container(&uid, &container)?.record.clone();
                Ok(Job::Requests { record, since })
            }
            Open::Lately { since } => Ok(Job::Text(self.lately(since))),
            Open::Metrics => Ok(Job::Metrics),
            Open::Relayed { id, failed } => Ok(Job::Relayed(id, failed)),
            Open::World { uid, container } => {
                Ok(Job::File(world_file(&self.container(&uid, &container)?.module)))
            }
            Open::Port { uid, port } => {
                let gone = || Answer::NotFound("the Pod does not run".to_owned());
                let ip = self.pods.get(&uid).ok_or_else(gone)?.ip;
                let address = SocketAddr::new(ip, port);
                // From within the Pod, so that what listens on its loopback is reached as well.
                let stream = self.runtime.switch.dial(address, SocketAddr::new(ip, 0));
                stream.map(Job::Port).map_err(|refusal| match refusal {
                    Refusal::Busy => Answer::Busy(format!("port {port} takes no more")),
                    _ => Answer::NotFound(format!(
                        "failed to connect to localhost:{port} inside the Pod: dial tcp \
                         {address}: connect: connection refused"
                    )),
                })
            }
        }
    }

    fn container(&self, uid: &str, container: &str) -> Result<&Known, Answer> {
        let known = self.pods.get(uid).and_then(|entry| entry.containers.get(container));
        known.ok_or_else(|| not_found(container))
    }

    fn running(&self, uid: &str, container: &str) -> Result<Running, Answer> {
        match self.container(uid, container)? {
            Known { io, phase: Phase::Running { target, .. }, .. } => {
                Ok(Running { io: io.clone(), target: target.clone() })
            }
            _ => Err(not_found(container)),
        }
    }

    /// What the requests of a Pod were like, container by container.
    fn told(&self, uid: &str) -> Result<Vec<u8>, Answer> {
        let gone = || Answer::NotFound("the Pod does not run".to_owned());
        let entry = self.pods.get(uid).ok_or_else(gone)?;
        let told = |(name, known): (&String, &Known)| Told {
            container: name.clone(),
            restart: known.restart,
            guest: known.guest,
            in_flight: known.in_flight(),
            idle: known.is_idle(),
            record: known.record.told(),
        };
        let told: Vec<Told> = entry.containers.iter().map(told).collect();
        Ok(serde_json::to_vec(&told).expect("plain fields become JSON"))
    }

    /// How many requests each workload has had since a minute.
    fn lately(&self, since: i64) -> Vec<u8> {
        let mut all: BTreeMap<&str, Lately> = BTreeMap::new();
        for entry in self.pods.values() {
            let Some(workload) = self.local.source(entry.ip) else { continue };
            if all.len() == WORKLOADS_MAX && !all.contains_key(workload) {
                continue;
            }
            for known in entry.containers.values() {
                known.record.count(since, all.entry(workload).or_default());
            }
        }
        all.retain(|_, lately| !lately.is_empty());
        serde_json::to_vec(&all).expect("plain fields become JSON")
    }

    /// Asks one container start to end. Some: it has ended already.
    pub fn stop_container(
        &mut self,
        uid: String,
        container: String,
        restart: u32,
        grace: Duration,
    ) -> Option<ToAgent> {
        let entry = self.pods.get_mut(&uid);
        let known = entry.and_then(|entry| {
            let known = entry.containers.get(&container)?;
            (known.restart == restart).then_some(known)
        });
        let exit = match known {
            Some(known) => match &known.phase {
                Phase::Exited(exit) => exit.clone(),
                Phase::Starting | Phase::Running { .. } => {
                    end(known, Instant::now() + grace);
                    self.probers.ending(&key(&uid, &container, restart));
                    return None;
                }
            },
            None => exit_now(0, ExitReason::Stopped, String::new()),
        };
        Some(ToAgent::ContainerExited { uid, container, restart, exit })
    }

    /// Ends a Pod at once and forgets it. Some: it is gone already.
    pub fn remove(&mut self, uid: String) -> Option<ToAgent> {
        let Some(entry) = self.pods.get_mut(&uid) else {
            return Some(ToAgent::PodRemoved { uid });
        };
        entry.leaving = true;
        for (name, known) in &entry.containers {
            end(known, Instant::now());
            self.probers.remove(&key(&uid, name, known.restart));
        }
        if entry.live > 0 {
            return None;
        }
        self.forget(&uid);
        Some(ToAgent::PodRemoved { uid })
    }

    /// Asks everything to end by `deadline`.
    pub fn stop_all(&mut self, deadline: Instant) {
        for entry in self.pods.values() {
            for known in entry.containers.values() {
                end(known, deadline);
            }
        }
    }

    /// Whether any container start has not exited.
    pub fn is_running(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Waits for containers to start or exit, and returns what to tell the agent. Cancel safe.
    pub async fn next(&mut self) -> Vec<ToAgent> {
        let mut messages = Vec::new();
        let mut gone = Vec::new();
        // A container is seen starting before it is seen exiting, because it says so before.
        tokio::select! {
            biased;
            note = self.notes.1.recv() => {
                let note = note.expect("the sender is held here");
                gone.extend(self.take_note(note, &mut messages));
            }
            Some(ended) = self.tasks.join_next() => self.take_ended(ended, &mut messages),
            finding = self.probers.next() => {
                messages.extend(self.take_finding(finding));
                return messages;
            }
        }
        for _ in 1..BATCH_MAX {
            if let Ok(note) = self.notes.1.try_recv() {
                gone.extend(self.take_note(note, &mut messages));
            } else if let Some(ended) = self.tasks.try_join_next() {
                self.take_ended(ended, &mut messages);
            } else {
                break;
            }
        }
        self.runtime.switch.publish_pods(self.local.clone());
        for gone in gone {
            // Whoever waited may have been ended meanwhile.
            let _ = gone.send(());
        }
        messages
    }

    /// Takes what a container task says. Some: to be told when the table was published.
    fn take_note(
        &mut self,
        note: Note,
        messages: &mut Vec<ToAgent>,
    ) -> Option<oneshot::Sender<()>> {
        match note {
            Note::Started { key, at, account, took, served, target } => {
                if let Some((ip, known)) = self.known(&key) {
                    let asked_to_stop = known.stop.borrow().is_some();
                    let (ports, probes) = (known.ports.clone(), known.probes.clone());
                    known.phase = Phase::Running {
                        at,
                        account,
                        took,
                        served: served.clone(),
                        target: target.clone(),
                    };
                    if !asked_to_stop {
                        self.probers.add(key.clone(), &probes, target);
                        if let Some(served) = &served {
                            self.local.insert(ip, &ports, served);
                        }
                    }
                }
                let Key { uid, container, restart } = key;
                tracing::info!(uid, container, restart, "started");
                messages.push(ToAgent::ContainerStarted { uid, container, restart, at });
                None
            }
            Note::Leaving { key, gone } => {
                if let Some((ip, known)) = self.known(&key)
                    && let Phase::Running { served: Some(served), .. } = &known.phase
                {
                    let served = served.clone();
                    self.local.remove(ip, &served);
                }
                Some(gone)
            }
            Note::HookFailed { key: Key { uid, container, restart }, hook, message } => {
                messages.push(ToAgent::HookFailed { uid, container, restart, hook, message });
                None
            }
        }
    }

    /// The newest start of a container, if it is this one.
    fn known(&mut self, key: &Key) -> Option<(IpAddr, &mut Known)> {
        let entry = self.pods.get_mut(&key.uid)?;
        let known = entry.containers.get_mut(&key.container)?;
        (known.restart == key.restart).then_some((entry.ip, known))
    }

    fn take_finding(&mut self, finding: Finding) -> Option<ToAgent> {
        let Finding { key, kind, failure, health } = finding;
        let (_, known) = self.known(&key)?;
        known.health = health;
        let Key { uid, container, restart } = key;
        Some(ToAgent::Probed { uid, container, restart, kind, failure, health })
    }

    fn take_ended(
        &mut self,
        ended: Result<(Key, Exit), tokio::task::JoinError>,
        messages: &mut Vec<ToAgent>,
    ) {
        let (key, exit) = ended.expect("panics are caught in the task, and it is never aborted");
        let Key { uid, container, restart } = key;
        tracing::info!(uid, container, restart, code = exit.code, reason = ?exit.reason, "exited");
        let entry = self.pods.get_mut(&uid).expect("an entry stays until its last task has ended");
        entry.live -= 1;
        self.probers.remove(&Key { uid: uid.clone(), container: container.clone(), restart });
        if let Some(known) = entry.containers.get_mut(&container)
            && known.restart == restart
        {
            if let Phase::Running { served: Some(served), .. } = &known.phase {
                self.local.remove(entry.ip, served);
            }
            known.used = known.used_so_far();
            known.phase = Phase::Exited(exit.clone());
        }
        let gone = entry.leaving && entry.live == 0;
        messages.push(ToAgent::ContainerExited { uid: uid.clone(), container, restart, exit });
        if gone {
            self.forget(&uid);
            messages.push(ToAgent::PodRemoved { uid });
        }
    }

    /// Every Pod, for a new agent.
    pub fn state(&self) -> Vec<PodState> {
        let container = |(name, known): (&String, &Known)| ContainerState {
            name: name.clone(),
            restart: known.restart,
            image_id: known.image_id.clone(),
            guest: known.guest,
            phase: match &known.phase {
                Phase::Starting => ContainerPhase::Starting,
                Phase::Running { at, .. } => ContainerPhase::Running { at: *at },
                Phase::Exited(exit) => ContainerPhase::Exited(exit.clone()),
            },
            health: known.health,
        };
        let pod = |(uid, entry): (&String, &Entry)| PodState {
            uid: uid.clone(),
            name: entry.name.clone(),
            ip: entry.ip,
            containers: entry.containers.iter().map(container).collect(),
        };
        self.pods.iter().map(pod).collect()
    }

    /// Lets handlers that nobody asks give their code back.
    pub fn rest(&self) {
        let all = self.pods.values().flat_map(|entry| entry.containers.values());
        let rested = all.filter_map(Known::served).filter(|served| served.rest());
        let count = rested.take(RESTS_MAX).count();
        if count > 0 {
            tracing::debug!(count, "handlers are idle");
        }
    }

    /// What changed since the last call, or all of it for an agent that has heard nothing yet.
    pub fn usage(&mut self, agent_is_new: bool) -> Vec<Usage> {
        let before =
            if agent_is_new { BTreeMap::new() } else { std::mem::take(&mut self.usage_sent) };
        let mut changed = Vec::new();
        for (uid, entry) in &self.pods {
            for (name, known) in &entry.containers {
                let usage = known.usage(uid, name);
                let key = (uid.clone(), name.clone());
                if before.get(&key) != Some(&usage) {
                    changed.push(usage.clone());
                }
                self.usage_sent.insert(key, usage);
            }
        }
        changed
    }
}

/// Asks a container to end by `deadline`, or earlier if that was asked before.
fn end(known: &Known, deadline: Instant) {
    known.stop.send_modify(|asked| {
        *asked = Some(asked.map_or(deadline, |earlier| earlier.min(deadline)));
    });
}

/// A place for one more session of a container.
fn place(io: &Io, container: &str) -> Result<OwnedSemaphorePermit, Answer> {
    io.sessions.clone().try_acquire_owned().map_err(|_| {
        let why = "has as many commands and attached clients as it may";
        Answer::Busy(format!("container {container} {why}"))
    })
}

fn key(uid: &str, container: &str, restart: u32) -> Key {
    Key { uid: uid.to_owned(), container: container.to_owned(), restart }
}

fn not_found(container: &str) -> Answer {
    Answer::NotFound(format!("container not found (\"{container}\")"))
}

impl Known {
    fn served(&self) -> Option<&Arc<Served>> {
        match &self.phase {
            Phase::Running { served, .. } => served.as_ref(),
            Phase::Starting | Phase::Exited(_) => None,
        }
    }

    fn in_flight(&self) -> usize {
        self.served().map_or(0, |served| served.in_flight())
    }

    fn is_idle(&self) -> bool {
        self.served().is_some_and(|served| served.is_idle())
    }

    fn used_so_far(&self) -> Used {
        let Phase::Running { account, served, .. } = &self.phase else {
            return self.used;
        };
        let cpu_ns = u64::try_from(account.usage().cpu.as_nanos()).unwrap_or(u64::MAX);
        Used {
            cpu_ns: self.used.cpu_ns.saturating_add(cpu_ns),
            requests: self.used.requests + served.as_ref().map_or(0, |served| served.requests()),
            busy_ns: self.used.busy_ns + served.as_ref().map_or(0, |served| served.busy_ns()),
        }
    }

    fn usage(&self, uid: &str, name: &str) -> Usage {
        let used = self.used_so_far();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (memory_bytes, start) = match &self.phase {
            Phase::Running { account, took, .. } => {
                let usage = account.usage();
                let start = StartTimes {
                    load: micros(took.0),
                    link: micros(took.1),
                    instantiate: micros(usage.first_instance),
                    first_byte: micros(usage.first_answer),
                };
                (usage.memory_bytes, Some(start))
            }
            Phase::Starting | Phase::Exited(_) => (0, None),
        };
        Usage {
            uid: uid.to_owned(),
            container: name.to_owned(),
            cpu_ns: used.cpu_ns,
            memory_bytes,
            requests: used.requests,
            busy_ns: used.busy_ns,
            start,
            idle: self.is_idle(),
        }
    }
}
