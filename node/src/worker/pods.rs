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
//! A handler that is to stop leaves the table first; then its requests may finish within the grace,
//! and what is left is cut off. A command cannot be asked to end (WASI has no signals) and is ended
//! at once.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::{
    sync::{OnceCell, mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wherry_wasi_shim::{self as shim, Account, Engine, GuestConfig, LoadError, Module};

use super::{
    logs::{Log, Logs, Stream},
    outgoing::outgoing,
    switch::{LocalPods, Served, Switch},
};
use crate::protocol::{
    Container, ContainerPhase, ContainerState, Exit, ExitReason, Form, Guest, Limits, Pod,
    PodState, Protocol, ToAgent, Usage, log_file,
};

/// Killed, as shells and Kubernetes count it: 128 + SIGKILL.
const CODE_KILLED: i32 = 137;
/// Asked to end by someone who cannot say no: 128 + SIGTERM.
const CODE_TERMINATED: i32 = 143;
/// Could not start.
const CODE_START: i32 = 128;
/// Ended by a trap: what a process that aborts gets, 128 + SIGABRT.
const CODE_TRAP: i32 = 134;
/// A message for status; Kubernetes cuts at 4 KiB.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Starts and exits taken together before the table is published once.
const BATCH_MAX: usize = 256;

/// What all containers need.
#[derive(Clone)]
pub struct Runtime {
    /// Runs the guests.
    pub engine: Engine,
    /// Their network.
    pub switch: Arc<Switch>,
    /// Their output.
    pub logs: Logs,
    /// Where log files go.
    pub log_root: PathBuf,
    modules: Modules,
}

impl Runtime {
    /// With no code loaded yet.
    pub fn new(engine: Engine, switch: Arc<Switch>, logs: Logs, log_root: PathBuf) -> Runtime {
        Runtime { engine, switch, logs, log_root, modules: Modules::default() }
    }
}

/// All Pods of the worker.
pub struct Pods {
    runtime: Runtime,
    pods: BTreeMap<String, Entry>,
    /// Published to the switch after each change.
    local: LocalPods,
    tasks: JoinSet<(Key, Exit)>,
    started: (mpsc::Sender<Started>, mpsc::Receiver<Started>),
    usage_sent: BTreeMap<(String, String), Usage>,
}

/// A Pod.
struct Entry {
    name: String,
    ip: IpAddr,
    containers: BTreeMap<String, Known>,
    /// Container starts that have not exited, older ones included.
    live: usize,
    /// Goes when the last of them has.
    leaving: bool,
}

/// The newest start of a container.
struct Known {
    restart: u32,
    image_id: String,
    guest: Guest,
    ports: Vec<u16>,
    phase: Phase,
    stop: watch::Sender<Option<Instant>>,
    /// What earlier starts used.
    used: Used,
}

#[derive(Default, Clone, Copy)]
struct Used {
    cpu_ns: u64,
    requests: u64,
}

enum Phase {
    Starting,
    Running { at: Timestamp, account: Account, served: Option<Arc<Served>> },
    Exited(Exit),
}

/// One container start.
#[derive(Clone)]
struct Key {
    uid: String,
    container: String,
    restart: u32,
}

/// A container task says that its guest runs or serves.
struct Started {
    key: Key,
    at: Timestamp,
    account: Account,
    served: Option<Arc<Served>>,
}

impl Pods {
    /// With no Pods.
    pub fn new(runtime: Runtime) -> Pods {
        Pods {
            runtime,
            pods: BTreeMap::new(),
            local: LocalPods::default(),
            tasks: JoinSet::new(),
            started: mpsc::channel(BATCH_MAX),
            usage_sent: BTreeMap::new(),
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
            containers: BTreeMap::new(),
            live: 0,
            leaving: false,
        });
        if entry.leaving {
            tracing::warn!(uid = pod.uid, "a Pod that is being removed was applied again");
            return;
        }
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
            self.start(&pod.uid, container, &path);
        }
    }

    fn start(&mut self, uid: &str, container: Container, log_path: &Path) {
        let entry = self.pods.get_mut(uid).expect("apply has made the entry");
        let mut used = Used::default();
        if let Some(old) = entry.containers.remove(&container.name) {
            used = old.used_so_far();
            end(&mut self.local, entry.ip, &old, Instant::now());
            self.runtime.switch.publish_pods(self.local.clone());
        }
        let key = Key {
            uid: uid.to_owned(),
            container: container.name.clone(),
            restart: container.restart,
        };
        let (stop, stopped) = watch::channel(None);
        let tcp = |port: &&crate::protocol::Port| port.protocol == Protocol::Tcp;
        let known = Known {
            restart: container.restart,
            image_id: container.image_id.clone(),
            guest: container.guest,
            ports: container.ports.iter().filter(tcp).map(|port| port.port).collect(),
            phase: Phase::Starting,
            stop,
            used,
        };
        entry.containers.insert(container.name.clone(), known);
        entry.live += 1;
        tracing::info!(uid, container = key.container, restart = key.restart, "starting");
        let start = Start {
            log: self.runtime.logs.open(log_path.to_owned()),
            runtime: self.runtime.clone(),
            key: key.clone(),
            container,
            stopped,
            started: self.started.0.clone(),
        };
        self.tasks.spawn(async move {
            let exit = match AssertUnwindSafe(start.run()).catch_unwind().await {
                Ok(exit) => exit,
                Err(_) => exit_now(CODE_TRAP, ExitReason::Error, "the worker failed".to_owned()),
            };
            (key, exit)
        });
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
            (known.restart == restart).then_some((entry.ip, known))
        });
        let exit = match known {
            Some((ip, known)) => match &known.phase {
                Phase::Exited(exit) => exit.clone(),
                Phase::Starting | Phase::Running { .. } => {
                    end(&mut self.local, ip, known, Instant::now() + grace);
                    self.runtime.switch.publish_pods(self.local.clone());
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
        for known in entry.containers.values() {
            end(&mut self.local, entry.ip, known, Instant::now());
        }
        self.runtime.switch.publish_pods(self.local.clone());
        if entry.live > 0 {
            return None;
        }
        self.pods.remove(&uid);
        Some(ToAgent::PodRemoved { uid })
    }

    /// Asks everything to end by `deadline`.
    pub fn stop_all(&mut self, deadline: Instant) {
        for entry in self.pods.values() {
            for known in entry.containers.values() {
                end(&mut self.local, entry.ip, known, deadline);
            }
        }
        self.runtime.switch.publish_pods(self.local.clone());
    }

    /// Whether any container start has not exited.
    pub fn is_running(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Waits for containers to start or exit, and returns what to tell the agent. Cancel safe.
    pub async fn next(&mut self) -> Vec<ToAgent> {
        let mut messages = Vec::new();
        // A container is seen starting before it is seen exiting, because it says so before.
        tokio::select! {
            biased;
            started = self.started.1.recv() => {
                let started = started.expect("the sender is held here");
                self.take_started(started, &mut messages);
            }
            Some(ended) = self.tasks.join_next() => self.take_ended(ended, &mut messages),
        }
        for _ in 1..BATCH_MAX {
            if let Ok(started) = self.started.1.try_recv() {
                self.take_started(started, &mut messages);
            } else if let Some(ended) = self.tasks.try_join_next() {
                self.take_ended(ended, &mut messages);
            } else {
                break;
            }
        }
        self.runtime.switch.publish_pods(self.local.clone());
        messages
    }

    fn take_started(&mut self, started: Started, messages: &mut Vec<ToAgent>) {
        let Started { key, at, account, served } = started;
        if let Some(entry) = self.pods.get_mut(&key.uid)
            && let Some(known) = entry.containers.get_mut(&key.container)
            && known.restart == key.restart
        {
            let asked_to_stop = known.stop.borrow().is_some();
            if let Some(served) = served.as_ref().filter(|_| !asked_to_stop) {
                self.local.insert(entry.ip, &known.ports, served);
            }
            known.phase = Phase::Running { at, account, served };
        }
        let Key { uid, container, restart } = key;
        tracing::info!(uid, container, restart, "started");
        messages.push(ToAgent::ContainerStarted { uid, container, restart, at });
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
            self.pods.remove(&uid);
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
        };
        let pod = |(uid, entry): (&String, &Entry)| PodState {
            uid: uid.clone(),
            name: entry.name.clone(),
            ip: entry.ip,
            containers: entry.containers.iter().map(container).collect(),
        };
        self.pods.iter().map(pod).collect()
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

/// Takes a container out of the table and asks it to end by `deadline`, or earlier if that was
/// asked before. The caller publishes the table.
fn end(local: &mut LocalPods, ip: IpAddr, known: &Known, deadline: Instant) {
    if let Phase::Running { served: Some(served), .. } = &known.phase {
        local.remove(ip, served);
    }
    known.stop.send_modify(|asked| {
        *asked = Some(asked.map_or(deadline, |earlier| earlier.min(deadline)));
    });
}

impl Known {
    fn used_so_far(&self) -> Used {
        let Phase::Running { account, served, .. } = &self.phase else {
            return self.used;
        };
        let cpu_ns = u64::try_from(account.usage().cpu.as_nanos()).unwrap_or(u64::MAX);
        Used {
            cpu_ns: self.used.cpu_ns.saturating_add(cpu_ns),
            requests: self.used.requests + served.as_ref().map_or(0, |served| served.requests()),
        }
    }

    fn usage(&self, uid: &str, name: &str) -> Usage {
        let used = self.used_so_far();
        let memory_bytes = match &self.phase {
            Phase::Running { account, .. } => account.usage().memory_bytes,
            Phase::Starting | Phase::Exited(_) => 0,
        };
        Usage {
            uid: uid.to_owned(),
            container: name.to_owned(),
            cpu_ns: used.cpu_ns,
            memory_bytes,
            requests: used.requests,
        }
    }
}

/// All that one container start needs.
struct Start {
    runtime: Runtime,
    key: Key,
    container: Container,
    log: Log,
    stopped: watch::Receiver<Option<Instant>>,
    started: mpsc::Sender<Started>,
}

impl Start {
    /// Runs to the end of the container, and of its log.
    async fn run(mut self) -> Exit {
        let Container { module, form, .. } = &self.container;
        let exit = match self.runtime.modules.get(&self.runtime.engine, module, *form).await {
            Ok(module) => {
                let module = module.get().expect("it was just loaded");
                match self.container.guest {
                    Guest::Handler => self.serve(module).await,
                    Guest::Command => self.execute(module).await,
                }
            }
            Err(error) => start_error(&error),
        };
        if exit.reason != ExitReason::Stopped && !exit.message.is_empty() {
            self.log.note(&exit.message);
        }
        self.log.close().await;
        exit
    }

    async fn serve(&mut self, module: &Module) -> Exit {
        let handler = match module.handler(self.config()) {
            Ok(handler) => handler,
            Err(error) => return start_error(&error),
        };
        let account = handler.account();
        let served = Arc::new(Served::new(handler));
        let at = self.say_started(account, Some(served.clone())).await;
        let mut deadline = self.asked_to_stop().await;
        loop {
            tokio::select! {
                () = served.idle() => {
                    let exit = exit_now(0, ExitReason::Stopped, String::new());
                    return Exit { started_at: Some(at), ..exit };
                }
                () = tokio::time::sleep_until(deadline) => break,
                Ok(()) = self.stopped.changed() => {
                    deadline = self.stopped.borrow_and_update().unwrap_or(deadline);
                }
            }
        }
        let cut_off = served.in_flight();
        served.cut_off();
        let message = format!("{cut_off} requests did not finish in time and were cut off");
        let exit = exit_now(CODE_KILLED, ExitReason::Stopped, message);
        Exit { started_at: Some(at), ..exit }
    }

    async fn execute(&mut self, module: &Module) -> Exit {
        let command = match module.command(self.config()) {
            Ok(command) => command,
            Err(error) => return start_error(&error),
        };
        let at = self.say_started(command.account(), None).await;
        let stop = CancellationToken::new();
        let mut running = std::pin::pin!(command.run(stop.clone()));
        let exit = tokio::select! {
            exit = running.as_mut() => exit,
            _ = self.asked_to_stop() => {
                stop.cancel();
                running.await
            }
        };
        let exit = match exit {
            shim::Exit::Code(0) => exit_now(0, ExitReason::Completed, String::new()),
            shim::Exit::Code(code) => exit_now(code, ExitReason::Error, String::new()),
            shim::Exit::Trap(why) => {
                exit_now(CODE_TRAP, ExitReason::Error, format!("the guest trapped: {why}"))
            }
            shim::Exit::OutOfMemory => {
                let message = "the guest needed more memory than its limit".to_owned();
                exit_now(CODE_KILLED, ExitReason::OOMKilled, message)
            }
            shim::Exit::Stopped => exit_now(CODE_TERMINATED, ExitReason::Stopped, String::new()),
        };
        Exit { started_at: Some(at), ..exit }
    }

    async fn say_started(&self, account: Account, served: Option<Arc<Served>>) -> Timestamp {
        let at = Timestamp::now();
        let started = Started { key: self.key.clone(), at, account, served };
        // The main task drops the receiver only when it ends, and the process with it.
        let _ = self.started.send(started).await;
        at
    }

    /// Returns the deadline. The end of the sender is an order as well: its owner has forgotten us.
    async fn asked_to_stop(&mut self) -> Instant {
        match self.stopped.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.unwrap_or_else(Instant::now),
            Err(_) => Instant::now(),
        }
    }

    fn config(&mut self) -> GuestConfig {
        GuestConfig {
            args: std::mem::take(&mut self.container.args),
            env: std::mem::take(&mut self.container.env.0),
            stdout: self.log.output(Stream::Stdout),
            stderr: self.log.output(Stream::Stderr),
            limits: limits(&self.container.limits),
            outgoing: outgoing(&self.runtime.switch, &self.log),
        }
    }
}

/// The shim's bounds, with what the Pod names instead of the defaults.
fn limits(wanted: &Limits) -> shim::Limits {
    let default = shim::Limits::default();
    let memory_bytes = wanted.memory_bytes.unwrap_or(default.memory_bytes);
    shim::Limits {
        memory_bytes,
        memory_bytes_total: default.memory_bytes_total.max(memory_bytes),
        request_deadline: wanted
            .request_deadline_ms
            .map_or(default.request_deadline, Duration::from_millis),
        cpu: wanted.cpu_millis,
        ..default
    }
}

fn start_error(error: &LoadError) -> Exit {
    exit_now(CODE_START, ExitReason::StartError, super::peers::explain(error))
}

fn exit_now(code: i32, reason: ExitReason, mut message: String) -> Exit {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    Exit { code, reason, message, started_at: None, finished_at: Timestamp::now() }
}

/// Compiled code, mapped once for all containers of an image, for as long as one of them lives.
#[derive(Clone, Default)]
struct Modules(Arc<Mutex<BTreeMap<PathBuf, Weak<OnceCell<Module>>>>>);

impl Modules {
    /// The loaded cell. Callers that want the same file wait for one load.
    async fn get(
        &self,
        engine: &Engine,
        path: &Path,
        form: Form,
    ) -> Result<Arc<OnceCell<Module>>, LoadError> {
        let cell = self.cell(path);
        let load = || {
            let (engine, path) = (engine.clone(), path.to_owned());
            let form = match form {
                Form::Module => shim::Form::Module,
                Form::Component => shim::Form::Component,
            };
            async move {
                let load = tokio::task::spawn_blocking(move || engine.load(&path, form));
                load.await.expect("loading does not panic and is not aborted")
            }
        };
        cell.get_or_try_init(load).await?;
        Ok(cell)
    }

    fn cell(&self, path: &Path) -> Arc<OnceCell<Module>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = known.get(path).and_then(Weak::upgrade) {
            return cell;
        }
        known.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::new(OnceCell::new());
        known.insert(path.to_owned(), Arc::downgrade(&cell));
        cell
    }
}
