//! One start of a container: from loading its code to closing its log.
//!
//! ```text
//!   load ─▶ guest runs ─▶ postStart ─▶ `Started`      asked to stop: preStop ─▶ `Leaving`
//!             │ends or fails                             ─▶ requests finish, or `term` is heard
//!             ▼                                          ─▶ deadline: cut off
//!           last words ─▶ log closed ─▶ Exit
//! ```
//!
//! All of it happens in one task of the worker. What it has to say before its end it says by
//! [`Note`]s to the main task, which alone changes what others see.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wherry_resources::channels;
use wherry_wasi_shim::{
    self as shim, Account, Budget, Engine, GuestConfig, Input, LoadError, Module, Term, Wake,
};

use super::{
    attached::Io,
    checks::{Callee, Target, perform_hook},
    logs::{Log, Logs, Stream},
    names::Names,
    outgoing::outgoing,
    probers::Key,
    record::Record,
    served::{Served, Traced},
    signals::Signal,
    sockets::PodNetwork,
    switch::Switch,
    trace::Source,
};
use crate::protocol::{
    Container, ENDS_WITH_INPUT, Exit, ExitReason, Form, Guest, HookKind, LastWords, Limits, Mount,
    Protocol,
};

/// Killed, as shells and Kubernetes count it: 128 + SIGKILL.
pub const CODE_KILLED: i32 = 137;
/// Ended by ^C: 128 + SIGINT.
pub const CODE_INTERRUPTED: i32 = 130;
/// Ended because it was told to, without having a say: 128 + SIGTERM.
pub const CODE_TERMINATED: i32 = 143;
/// Could not start.
const CODE_START: i32 = 128;
/// Ended by a trap: what a process that aborts gets, 128 + SIGABRT.
pub const CODE_TRAP: i32 = 134;
/// A message for status; Kubernetes cuts at 4 KiB.
const MESSAGE_BYTES_MAX: usize = 4096;
/// How long a volume may take to show a container's last words: one that hangs has none, and the
/// container's end is told all the same.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
/// What is taken of a log as last words.
const LOG_TAIL_BYTES: usize = 2048;
const LOG_TAIL_LINES: usize = 80;
/// What a container gets after its `preStop` hook at the least.
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// What a handler's requests get to finish when a `kill` terminates it: a Pod's usual grace.
const TERM_GRACE: Duration = Duration::from_secs(30);
/// How long a handler keeps its compiled code without a request, where its Pod does not say: mapping
/// it again takes about a millisecond, and most that were asked a minute ago will be asked again.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// Requests of one instance that may have several at once, where its Pod does not say how many in
/// all: enough that making instances costs nothing, few enough that what it leaks ends with it.
const SHARED_REQUESTS: u32 = 10_000;
/// The longest a `postStart` hook may take; Kubernetes has no bound, and a container that waits for
/// ever for its hook helps nobody.
const POST_START_MAX: Duration = Duration::from_secs(600);

/// Threads that map code: those of the worker's runtime may all be waiting for a volume that hangs.
const MAPPING_THREADS_MAX: usize = 8;
static MAPPING_THREADS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut threads = tokio::runtime::Builder::new_current_thread();
    threads.thread_name("mapping").max_blocking_threads(MAPPING_THREADS_MAX);
    threads.build().expect("it begins without threads")
});

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
    /// Their code.
    pub modules: Modules,
}

impl Runtime {
    /// With no code loaded yet.
    pub fn new(engine: Engine, switch: Arc<Switch>, logs: Logs, log_root: PathBuf) -> Runtime {
        Runtime { engine, switch, logs, log_root, modules: Modules::default() }
    }
}

/// What a container task says to the main task.
pub enum Note {
    /// Its guest runs or serves, and its `postStart` hook has succeeded.
    Started {
        /// Which one.
        key: Key,
        /// Since when.
        at: Timestamp,
        /// What it uses.
        account: Account,
        /// What loading and linking took.
        took: (Duration, Duration),
        /// A handler's place in the table.
        served: Option<Arc<Served>>,
        /// For probes.
        target: Arc<Target>,
    },
    /// It takes no requests any more; `gone` is told when the table says so.
    Leaving {
        /// Which one.
        key: Key,
        /// Answered by the main task.
        gone: oneshot::Sender<()>,
    },
    /// A hook failed.
    HookFailed {
        /// Of which one.
        key: Key,
        /// Which hook.
        hook: HookKind,
        /// Why.
        message: String,
    },
}

/// All that one container start needs.
pub struct Start {
    /// What all need.
    pub runtime: Runtime,
    /// Which one.
    pub key: Key,
    /// The Pod's address.
    pub ip: std::net::IpAddr,
    /// The Pod's own names.
    pub names: Arc<Names>,
    /// As the agent said it.
    pub container: Container,
    /// Its log.
    pub log: Log,
    /// The file of the log.
    pub log_path: PathBuf,
    /// What its requests were like.
    pub record: Arc<Record>,
    /// Who it is in traces.
    pub source: Arc<Source>,
    /// For whoever is attached.
    pub io: Arc<Io>,
    /// What its guest reads.
    pub input: Option<Input>,
    /// When it shall end.
    pub stopped: watch::Receiver<Option<Instant>>,
    /// To the main task.
    pub notes: mpsc::Sender<Note>,
    /// What loading and linking took, once that is done.
    pub took: (Duration, Duration),
}

/// A guest's configuration and what must live as long as it.
pub struct View {
    /// What the guest gets of the world.
    pub config: GuestConfig,
    /// Directories below a volume's root, held open so that nobody can move them elsewhere.
    _held: Vec<OwnedFd>,
}

impl Start {
    /// Runs to the end of the container, and of its log.
    pub async fn run(mut self) -> Exit {
        let Container { module, form, .. } = &self.container;
        let begun = Instant::now();
        let code = self.runtime.modules.code(&self.runtime.engine, module, *form);
        let loaded = code.map().await;
        self.took.0 = begun.elapsed();
        let mut exit = match loaded {
            Ok(module) => match self.view().map(Arc::new) {
                Ok(view) => match self.container.guest {
                    Guest::Handler => self.serve((code, module), &view).await,
                    Guest::Command => self.execute((code, module), &view).await,
                },
                Err(message) => exit_now(CODE_START, ExitReason::StartError, message),
            },
            Err(error) => start_error(&error),
        };
        // What the container has left is read before the worker adds its own word.
        self.log.close().await;
        let (words, failed) = (self.container.last_words.clone(), exit.code != 0);
        let path = self.log_path;
        let last = tokio::task::spawn_blocking(move || {
            let file = last_words(&words);
            file.or_else(|| (words.from_log && failed).then(|| log_tail(&path)).flatten())
        });
        let last = tokio::time::timeout(LAST_WORDS_MAX, last).await;
        if exit.reason != ExitReason::Stopped && !exit.message.is_empty() {
            self.log.note(&exit.message);
            self.log.close().await;
        }
        if let Ok(Ok(Some(text))) = last {
            exit.message = match exit.message.as_str() {
                "" => text,
                why => format!("{why}: {text}"),
            };
        }
        exit
    }

    async fn serve(&mut self, (code, module): (Arc<Code>, Arc<Module>), view: &Arc<View>) -> Exit {
        let begun = Instant::now();
        let handler = match code.is_held_open() {
            true => module.resting_handler(view.config.clone(), code.wake()),
            false => module.handler(view.config.clone()),
        };
        let handler = match handler {
            Ok(handler) => handler,
            Err(error) => return start_error(&error),
        };
        // From here on the handler holds it, as long as it needs it.
        drop(module);
        self.took.1 = begun.elapsed();
        let (account, budget) = (handler.account(), handler.budget());
        let idle_after = self.container.limits.handling.idle_after_seconds;
        let idle_after = idle_after.map_or(IDLE_AFTER, |some| Duration::from_secs(some.into()));
        let traced =
            Traced { tracer: self.runtime.switch.tracer.clone(), source: self.source.clone() };
        let served = Arc::new(Served::new(handler, self.record.clone(), idle_after, traced));
        let tcp = self.container.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let ports = tcp.map(|port| port.port).collect();
        let target = self.target(Some((served.clone(), ports)), &code, view, budget);
        let at = Timestamp::now();
        if let Err(message) = self.post_start(&target).await {
            return Exit { started_at: Some(at), ..hook_failed(message) };
        }
        self.say_started(at, account, Some(served.clone()), &target).await;
        let io = self.io.clone();
        let (mut deadline, exit) = tokio::select! {
            mut deadline = self.asked_to_stop() => {
                self.pre_stop(&target, &mut deadline).await;
                (deadline, exit_now(0, ExitReason::Stopped, String::new()))
            }
            // It has no terminal that could interrupt it.
            signal = io.signalled(Some(Signal::Interrupt)) => {
                let grace = if signal == Signal::Kill { Duration::ZERO } else { TERM_GRACE };
                (Instant::now() + grace, signal.exit())
            }
        };
        let exit = Exit { started_at: Some(at), ..exit };
        self.leave().await;
        loop {
            tokio::select! {
                biased;
                () = served.idle() => return Exit { finished_at: Timestamp::now(), ..exit },
                () = tokio::time::sleep_until(deadline) => break,
                Ok(()) = self.stopped.changed() => {
                    deadline = self.stopped.borrow_and_update().unwrap_or(deadline);
                }
            }
        }
        let cut_off = served.in_flight();
        served.cut_off();
        let message = format!("{cut_off} requests did not finish in time and were cut off");
        Exit { code: CODE_KILLED, message, finished_at: Timestamp::now(), ..exit }
    }

    async fn execute(
        &mut self,
        (code, module): (Arc<Code>, Arc<Module>),
        view: &Arc<View>,
    ) -> Exit {
        let begun = Instant::now();
        let mut config = view.config.clone();
        if self.io.ends_with_input {
            let more = (ENDS_WITH_INPUT.to_owned(), "1".to_owned());
            config.env = config.env.iter().cloned().chain([more]).collect();
        }
        let command = match module.command(config) {
            Ok(command) => command,
            Err(error) => return start_error(&error),
        };
        self.took.1 = begun.elapsed();
        let (account, hears_term) = (command.account(), command.hears_term());
        let target = self.target(None, &code, view, command.budget());
        let at = Timestamp::now();
        let stop = CancellationToken::new();
        let mut running = std::pin::pin!(command.run(stop.clone()));
        let exit = tokio::select! {
            biased;
            exit = running.as_mut() => {
                // It was started, however short its life.
                self.say_started(at, account, None, &target).await;
                ended(exit, CODE_TERMINATED)
            }
            outcome = self.post_start(&target) => match outcome {
                Ok(()) => {
                    self.say_started(at, account, None, &target).await;
                    self.supervise(running, &view.config.term, hears_term, &target, &stop).await
                }
                Err(message) => {
                    stop.cancel();
                    running.await;
                    hook_failed(message)
                }
            },
        };
        Exit { started_at: Some(at), ..exit }
    }

    /// Waits until the command ends, asking it to and then making it when the time has come.
    async fn supervise(
        &mut self,
        mut running: std::pin::Pin<&mut impl Future<Output = shim::Exit>>,
        term: &Term,
        hears_term: bool,
        target: &Target,
        stop: &CancellationToken,
    ) -> Exit {
        let io = self.io.clone();
        let mut heard = None;
        let mut deadline = loop {
            tokio::select! {
                biased;
                exit = running.as_mut() => return ended(exit, CODE_TERMINATED),
                signal = io.signalled(heard) => {
                    if signal != Signal::Terminate || !hears_term {
                        stop.cancel();
                        running.await;
                        return signal.exit();
                    }
                    // Whether it ends, and how, is its own affair.
                    term.cancel();
                    heard = Some(signal);
                }
                deadline = self.asked_to_stop() => break deadline,
            }
        };
        tokio::select! {
            exit = running.as_mut() => return ended(exit, CODE_TERMINATED),
            () = self.pre_stop(target, &mut deadline) => {}
        }
        term.cancel();
        if hears_term {
            loop {
                tokio::select! {
                    biased;
                    exit = running.as_mut() => {
                        // It says by its code that it did as it was told.
                        let exit = match exit {
                            shim::Exit::Code(CODE_TERMINATED) => shim::Exit::Stopped,
                            exit => exit,
                        };
                        return ended(exit, CODE_TERMINATED);
                    }
                    () = tokio::time::sleep_until(deadline) => break,
                    _ = io.signalled(Some(Signal::Terminate)) => break,
                    Ok(()) = self.stopped.changed() => {
                        deadline = self.stopped.borrow_and_update().unwrap_or(deadline);
                    }
                }
            }
        }
        stop.cancel();
        // Nobody asked it who cannot hear: it was terminated. Who could and did not end, is killed.
        ended(running.await, if hears_term { CODE_KILLED } else { CODE_TERMINATED })
    }

    fn target(
        &self,
        served: Option<(Arc<Served>, Vec<u16>)>,
        code: &Arc<Code>,
        view: &Arc<View>,
        budget: Budget,
    ) -> Arc<Target> {
        let (code, view, guest) = (code.clone(), view.clone(), self.container.guest);
        let toolbox = self.container.toolbox.as_ref().map(|toolbox| {
            let Runtime { modules, engine, .. } = &self.runtime;
            modules.code(engine, &toolbox.module, toolbox.form)
        });
        let callee = Callee { code, guest, view, budget, toolbox };
        Arc::new(Target { ip: self.ip, switch: self.runtime.switch.clone(), served, callee })
    }

    async fn post_start(&mut self, target: &Target) -> Result<(), String> {
        let Some(check) = self.container.hooks.post_start.clone() else {
            return Ok(());
        };
        let hook = Box::pin(perform_hook(target, &check, POST_START_MAX));
        let outcome = tokio::select! {
            outcome = hook => outcome,
            _ = self.asked_to_stop() => Err("the container was stopped meanwhile".to_owned()),
        };
        if let Err(message) = &outcome {
            self.say_hook_failed(HookKind::PostStart, message).await;
        }
        outcome
    }

    /// Runs the hook within the grace. Afterwards there is a little time left in any case, but for one
    /// that shall be gone at once.
    async fn pre_stop(&mut self, target: &Target, deadline: &mut Instant) {
        let Some(check) = self.container.hooks.pre_stop.clone() else {
            return;
        };
        let mut hook = {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            Box::pin(perform_hook(target, &check, left))
        };
        let outcome = loop {
            tokio::select! {
                outcome = hook.as_mut() => break outcome,
                () = tokio::time::sleep_until(*deadline) => {
                    break Err("it did not end within the grace period".to_owned());
                }
                Ok(()) = self.stopped.changed() => {
                    *deadline = self.stopped.borrow_and_update().unwrap_or(*deadline);
                    if *deadline <= Instant::now() {
                        return;
                    }
                }
            }
        };
        if let Err(message) = outcome {
            self.say_hook_failed(HookKind::PreStop, &message).await;
        }
        *deadline = (*deadline).max(Instant::now() + AFTER_HOOK);
    }

    async fn say_started(
        &self,
        at: Timestamp,
        account: Account,
        served: Option<Arc<Served>>,
        target: &Arc<Target>,
    ) {
        let (key, target, took) = (self.key.clone(), target.clone(), self.took);
        // The main task drops the receiver only when it ends, and the process with it.
        let _ = self.notes.send(Note::Started { key, at, account, took, served, target }).await;
    }

    async fn say_hook_failed(&self, hook: HookKind, message: &str) {
        let (key, message) = (self.key.clone(), message.to_owned());
        let _ = self.notes.send(Note::HookFailed { key, hook, message }).await;
    }

    /// Leaves the table of Pods that serve; returns when nobody is sent here any more.
    async fn leave(&self) {
        let (gone, told) = oneshot::channel();
        let note = Note::Leaving { key: self.key.clone(), gone };
        if self.notes.send(note).await.is_ok() {
            let _ = told.await;
        }
    }

    /// Returns the deadline. The end of the sender is an order as well: its owner has forgotten us.
    async fn asked_to_stop(&mut self) -> Instant {
        match self.stopped.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.unwrap_or_else(Instant::now),
            Err(_) => Instant::now(),
        }
    }

    /// What the guest gets of the world.
    fn view(&mut self) -> Result<View, String> {
        let mut held = Vec::new();
        let mut mounts = Vec::with_capacity(self.container.mounts.len());
        for mount in std::mem::take(&mut self.container.mounts) {
            mounts.push(opened(mount, &mut held)?);
        }
        let config = GuestConfig {
            args: std::mem::take(&mut self.container.args),
            cwd: self.container.cwd.take(),
            env: std::mem::take(&mut self.container.env.0).into(),
            stdout: self.io.output(channels::STDOUT, self.log.output(Stream::Stdout)),
            stderr: self.io.output(channels::STDERR, self.log.output(Stream::Stderr)),
            limits: limits(&self.container.limits),
            outgoing: outgoing(&self.runtime.switch, &self.log, &self.names, self.ip),
            network: Arc::new(PodNetwork {
                switch: self.runtime.switch.clone(),
                log: self.log.clone(),
                names: self.names.clone(),
                ip: self.ip,
            }),
            mounts,
            stdin: self.input.take(),
            terminal: self.container.tty,
            ..GuestConfig::default()
        };
        Ok(View { config, _held: held })
    }
}

/// A mount as the shim wants it. A directory below the root of its volume is opened without leaving
/// the root, and named by the descriptor: what the guest does to the path later changes nothing.
fn opened(mount: Mount, held: &mut Vec<OwnedFd>) -> Result<shim::Mount, String> {
    let Mount { root, sub, guest, read_only } = mount;
    let Some(sub) = sub else {
        return Ok(shim::Mount { host: root, guest, read_only });
    };
    let failed = |error: std::io::Error| {
        format!("the volume at {guest} has no directory {}: {error}", sub.display())
    };
    let found = crate::beneath::open_dir(&root, &sub).map_err(failed)?;
    let host = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    held.push(found);
    Ok(shim::Mount { host, guest, read_only })
}

/// How the shim says that a command ended, in the words of status. `stopped` is the code of one that
/// had to be stopped.
fn ended(exit: shim::Exit, stopped: i32) -> Exit {
    match exit {
        shim::Exit::Code(0) => exit_now(0, ExitReason::Completed, String::new()),
        shim::Exit::Code(code) => exit_now(code, ExitReason::Error, String::new()),
        shim::Exit::Trap(why) => {
            exit_now(CODE_TRAP, ExitReason::Error, format!("the guest trapped: {why}"))
        }
        shim::Exit::OutOfMemory => {
            let message = "the guest needed more memory than its limit".to_owned();
            exit_now(CODE_KILLED, ExitReason::OOMKilled, message)
        }
        shim::Exit::Stopped => exit_now(stopped, ExitReason::Stopped, String::new()),
    }
}

fn hook_failed(message: String) -> Exit {
    exit_now(CODE_KILLED, ExitReason::Error, format!("the postStart hook failed: {message}"))
}

/// What the guest wrote into its termination message, if anything.
fn last_words(words: &LastWords) -> Option<String> {
    let file = words.file.as_deref()?;
    let (folder, name) = (file.parent()?, file.file_name()?);
    let below = words.sub.as_deref().unwrap_or(Path::new("")).join(name);
    // The guest could have put anything there: a link, a pipe that blocks.
    let mut file = crate::beneath::open_file(folder, &below).ok()?;
    let text = tail(&mut file, MESSAGE_BYTES_MAX)?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The end of a log, without the marks of its records.
fn log_tail(path: &Path) -> Option<String> {
    let text = tail(&mut File::open(path).ok()?, 4 * LOG_TAIL_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let kept = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    let from = kept.ceil_char_boundary(kept.len().saturating_sub(LOG_TAIL_BYTES));
    (!kept.is_empty()).then(|| kept[from..].to_owned())
}

fn tail(file: &mut File, bytes_max: usize) -> Option<Vec<u8>> {
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        return None;
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(bytes_max as u64))).ok()?;
    let mut text = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The shim's bounds, with what the Pod names instead of the defaults.
fn limits(wanted: &Limits) -> shim::Limits {
    let default = shim::Limits::default();
    // Of the container, whose instances share it; where nothing is said, each instance has a bound.
    let (memory_bytes, memory_bytes_total) = match wanted.memory_bytes {
        Some(limit) => (limit, limit),
        None => (default.memory_bytes, default.memory_bytes_total),
    };
    let handling = wanted.handling;
    let count = |number: Option<u32>, default| number.map_or(default, |number| number as usize);
    shim::Limits {
        memory_bytes,
        memory_bytes_total,
        request_deadline: handling
            .deadline_seconds
            .map_or(default.request_deadline, |seconds| Duration::from_secs(seconds.into())),
        concurrent_requests: count(handling.at_once, default.concurrent_requests),
        queued_requests: count(handling.queued, default.queued_requests),
        instance_requests: match (handling.per_instance, handling.at_once_per_instance) {
            (Some(requests), _) => requests,
            (None, Some(2..)) => SHARED_REQUESTS,
            (None, _) => default.instance_requests,
        },
        instance_concurrency: count(handling.at_once_per_instance, default.instance_concurrency),
        cpu: wanted.cpu_millis,
        cpu_weight: wanted.cpu_request_millis.or(wanted.cpu_millis).unwrap_or(0),
        ..default
    }
}

fn start_error(error: &LoadError) -> Exit {
    exit_now(CODE_START, ExitReason::StartError, super::peers::explain(error))
}

pub fn exit_now(code: i32, reason: ExitReason, mut message: String) -> Exit {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    Exit { code, reason, message, started_at: None, finished_at: Timestamp::now() }
}

/// The compiled code of each image that a container has: mapped once for all of them.
#[derive(Clone, Default)]
pub struct Modules(Arc<Mutex<BTreeMap<PathBuf, Weak<Code>>>>);

impl Modules {
    /// The code of a file.
    pub fn code(&self, engine: &Engine, path: &Path, form: Form) -> Arc<Code> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = known.get(path).and_then(Weak::upgrade) {
            return code;
        }
        known.retain(|_, code| code.strong_count() > 0);
        let code = Arc::new(Code {
            engine: engine.clone(),
            path: path.to_owned(),
            form,
            mapped: Mutex::default(),
            mapping: tokio::sync::Mutex::default(),
        });
        known.insert(path.to_owned(), Arc::downgrade(&code));
        code
    }
}

/// Compiled code of one file: mapped while somebody holds it, and the file held open meanwhile and
/// after, so that what is mapped again is what the agent has checked.
pub struct Code {
    engine: Engine,
    path: PathBuf,
    form: Form,
    /// Locked to look at it.
    mapped: Mutex<Mapped>,
    /// Held while it is mapped: others wait for the outcome.
    mapping: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Mapped {
    module: Weak<Module>,
    /// None: not mapped yet, or there was no descriptor for it.
    file: Option<Arc<File>>,
}

impl Code {
    fn mapped(&self) -> MutexGuard<'_, Mapped> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The code, mapped. Callers that want it at the same time wait for one of them.
    pub async fn map(&self) -> Result<Arc<Module>, LoadError> {
        if let Some(module) = self.mapped().module.upgrade() {
            return Ok(module);
        }
        let _alone = self.mapping.lock().await;
        let held = {
            let mapped = self.mapped();
            if let Some(module) = mapped.module.upgrade() {
                return Ok(module);
            }
            mapped.file.clone()
        };
        let (engine, path) = (self.engine.clone(), self.path.clone());
        let form = match self.form {
            Form::Module => shim::Form::Module,
            Form::Component => shim::Form::Component,
        };
        let load = MAPPING_THREADS.spawn_blocking(move || {
            // Without a descriptor the code is loaded all the same, and then stays.
            let file = held.or_else(|| File::open(&path).ok().map(Arc::new));
            let open =
                |file: &Arc<File>| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let from = file.as_ref().map_or_else(|| path.clone(), open);
            match engine.load(&from, form) {
                Ok(module) => Ok((Arc::new(module), file)),
                // In the words that people know it by.
                Err(LoadError::Form { .. }) => Err(LoadError::Form { path }),
                Err(LoadError::Load { source, .. }) => Err(LoadError::Load { path, source }),
                Err(error) => Err(error),
            }
        });
        let (module, file) = load.await.expect("loading does not panic and is not aborted")?;
        *self.mapped() = Mapped { module: Arc::downgrade(&module), file };
        Ok(module)
    }

    /// Whether it can be given back: it is certain to be the same when it is mapped again.
    pub fn is_held_open(&self) -> bool {
        self.mapped().file.is_some()
    }

    /// Has it mapped for a handler that gave it back.
    fn wake(self: &Arc<Code>) -> Wake {
        let code = self.clone();
        Arc::new(move || {
            let code = code.clone();
            async move { code.map().await }.boxed()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_limit_is_for_all_instances_together() {
        let of = |memory_bytes| {
            let bounds = limits(&Limits { memory_bytes, ..Limits::default() });
            (bounds.memory_bytes, bounds.memory_bytes_total)
        };
        assert_eq!(of(Some(64 << 20)), (64 << 20, 64 << 20));
        assert_eq!(of(Some(4 << 30)), (4 << 30, 4 << 30));
        assert_eq!(of(None), (128 << 20, 1 << 30));
    }

    #[test]
    fn code_is_mapped_while_all_other_threads_wait() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(1).build().expect("threads");
        runtime.block_on(async {
            let (go, hangs) = std::sync::mpsc::channel::<()>();
            let hung = tokio::task::spawn_blocking(move || hangs.recv());
            let mapped = MAPPING_THREADS.spawn_blocking(|| "mapped").await;
            assert_eq!(mapped.expect("it does not panic"), "mapped");
            drop(go);
            assert!(hung.await.expect("it does not panic").is_err());
        });
    }
}
