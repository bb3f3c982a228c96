//! The worker: one process for the guests of one trust domain (a namespace) on one node, with their
//! network, the traffic they serve, and their logs.
//!
//! ```text
//!              agent ── Unix socket ── link ──▶ main task: owns Pods, Router, Fronts, PeerListener
//!                                                 │ publishes snapshots
//!   client ── node port ── front ─┐               ▼
//!   guest  ── wasi:http ─ outgoing ┼─▶ switch: Table, LocalPods ──▶ guest of this worker (a call)
//!   guest  ── wasi:sockets ─ sockets ┤         streams, ports ──▶ guest that listens (memory)
//!   worker ── mTLS ─────── peer ──┘      └─▶ peers ── mTLS ──▶ another worker, `relays`: by a member
//!                                        guest prints ──▶ logs ──▶ files
//! ```
//!
//! The main task is the only one that changes anything; requests read snapshots without locks.
//! The agent may go away at any time: everything goes on, exits are kept, and the next agent is
//! told the whole state. A worker holds no credentials of the cluster, only its certificate for
//! traffic. Traces of requests go to a collector, if there is one (`trace`).
//!
//! It ends when it is told to ([`ToWorker::Stop`], SIGTERM), or by itself when it has had neither
//! Pods nor an agent for [`ORPHAN_AFTER`].

mod attached;
mod balance;
mod checks;
mod confine;
mod datagrams;
mod denials;
mod front;
pub(crate) mod gate;
mod hold;
mod jobs;
mod kept;
mod link;
mod listen;
mod logs;
mod names;
mod network;
mod opening;
mod outgoing;
mod outside;
mod peer;
mod peers;
mod pipe;
mod pods;
mod policy;
mod ports;
mod probe;
mod probers;
mod record;
mod refusal;
mod relays;
mod reply;
mod served;
mod session;
mod signals;
mod sockets;
mod start;
mod streams;
mod switch;
mod tail;
mod taken;
mod terminal;
mod tls;
mod trace;
mod traffic;
mod unchecked;
mod unread;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    os::unix::{fs::PermissionsExt, net},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use wherry_wasi_shim::{Engine, EngineConfig, EngineError, engine_hash};

pub use self::confine::{WallError, Walls};
use self::{
    confine::confine,
    front::Fronts,
    gate::Gate,
    link::{Caller, Link, LinkError, greet},
    logs::Logs,
    network::{Here, Router, Table},
    peer::PeerListener,
    peers::{Peers, explain},
    pods::{Pods, Runtime},
    switch::Switch,
    tls::Credentials,
};
use crate::protocol::{self, Hello, State, ToAgent, ToWorker, USAGE_INTERVAL_SECONDS};

/// Without an agent and without Pods for this long, nobody will come back.
const ORPHAN_AFTER: Duration = Duration::from_secs(60);
/// Descriptors that the worker asks for: connections of clients, and files that guests hold open,
/// which must not take them all.
const DESCRIPTORS_WANTED: u64 = 262_144;
/// Connections of clients, of those.
const CONNECTIONS_MAX: u64 = 16_384;
/// Of those, what is not for clients: peers, log files, the agent, the engine.
const DESCRIPTORS_KEPT: u64 = 512;
/// Threads for calls that block: files being loaded, and file calls of guests.
const BLOCKING_THREADS_MAX: usize = 64;
/// For good: see [`start_blocking_threads`].
const BLOCKING_THREADS_KEPT: Duration = Duration::from_secs(365 * 86_400);
/// Rhythm of what is done from time to time: node ports that could not be bound, handlers that
/// nobody asks, being an orphan.
const TICK: Duration = Duration::from_secs(5);
/// The access log of Ingresses and Gateways.
const INGRESS_LOG: &str = "access.log";
/// Messages taken together before tables are published.
const BATCH_MAX: usize = 256;
/// After a failed accept: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that have not said yet what they are: a browser opens ten streams at once.
const GREETINGS_MAX: usize = 64;
/// What containers get when the machine shuts down; systemd kills after 90 s.
const TERMINATE_GRACE: Duration = Duration::from_secs(10);
/// After the containers, for connections to close.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// What was typed.
#[derive(Debug, Clone)]
pub struct Flags {
    /// The Unix socket to listen on for the agent; at most 107 bytes.
    pub socket: PathBuf,
    /// What it must not see or change.
    pub walls: Walls,
    /// The user to become; none: as it was started.
    pub user: Option<u32>,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No threads.
    #[error("start the worker's runtime")]
    Runtime(#[source] io::Error),
    /// The socket.
    #[error("listen on {path}", path = path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another worker is there.
    #[error("another worker is listening on {path}", path = path.display())]
    Taken {
        /// Which.
        path: PathBuf,
    },
    /// The signal handler.
    #[error("listen for SIGTERM")]
    Signal(#[source] io::Error),
    /// The thread that writes logs.
    #[error("start the log writer")]
    Logs(#[source] io::Error),
    /// The user of its own.
    #[error(transparent)]
    Wall(#[from] WallError),
    /// wasmtime.
    #[error("start the Wasm engine")]
    Engine(#[from] EngineError),
}

/// Runs a worker until it ends. Makes its own runtime: call it from a thread that has none.
pub fn main(flags: Flags) -> Result<(), WorkerError> {
    let descriptors = raise_descriptors();
    // The folder of sockets is the agent's: nobody else can make one there.
    let listener = listen_for_agents(&flags.socket)?;
    confine(&flags.walls, flags.user)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("worker")
        // Guests that go on and on take as many at a time as there are processors: one more answers.
        .worker_threads(std::thread::available_parallelism().map_or(1, |cores| cores.get()) + 1)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREADS_KEPT)
        .build()
        .map_err(WorkerError::Runtime)?;
    start_blocking_threads(&runtime);
    let connections_max = descriptors.saturating_sub(DESCRIPTORS_KEPT).clamp(1, CONNECTIONS_MAX);
    let ended = runtime.block_on(async {
        let path = &flags.socket;
        let listener = UnixListener::from_std(listener)
            .map_err(|source| WorkerError::Socket { path: path.clone(), source })?;
        run(listener, usize::try_from(connections_max).unwrap_or(usize::MAX)).await
    });
    // A guest that is being dropped must not keep the process.
    runtime.shutdown_timeout(CLOSE_GRACE);
    // Already gone is as good; where it may not, the agent does.
    let _ = std::fs::remove_file(&flags.socket);
    ended
}

/// Starts all threads for calls that block. Later some would be started by turns that are taken for idle
/// (`slice.rs` of wasi-shim), and be so for all who come after.
fn start_blocking_threads(runtime: &tokio::runtime::Runtime) {
    // Each keeps its thread until all are there.
    let all = Arc::new(Mutex::new(()));
    let starting = all.lock();
    for _ in 0..BLOCKING_THREADS_MAX {
        let all = Arc::clone(&all);
        runtime.spawn_blocking(move || drop(all.lock()));
    }
    drop(starting);
}

/// Raises the limit of open files as far as wanted and allowed, and returns it.
fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return DESCRIPTORS_KEPT * 2;
    };
    let wanted = DESCRIPTORS_WANTED;
    if soft >= wanted {
        return soft;
    }
    // Root may raise the hard limit, too.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
    let wanted = if raised.is_ok() { wanted } else { wanted.min(hard) };
    match raised.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, wanted, "cannot raise the limit of open files");
            soft
        }
    }
}

/// Binds the socket; one that a dead worker left behind is replaced.
fn listen_for_agents(path: &Path) -> Result<net::UnixListener, WorkerError> {
    let failed = |source| WorkerError::Socket { path: path.to_owned(), source };
    if net::UnixStream::connect(path).is_ok() {
        return Err(WorkerError::Taken { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = net::UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves agents until the end. The first hello says what the worker is; later ones must agree.
async fn run(listener: UnixListener, connections_max: usize) -> Result<(), WorkerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Signal)?;
    let engine = Engine::new(&EngineConfig::default())?;
    let mut agents = Agents { listener, greetings: JoinSet::new() };
    let first = async {
        loop {
            match agents.next(None).await {
                Caller::Agent(hello, link) => return Some((hello, link)),
                Caller::Stop(..) => return None,
                // A stream has nobody to go to yet: its connection is closed.
                Caller::Stream(..) => {}
            }
        }
    };
    let first = tokio::select! {
        first = first => first,
        () = tokio::time::sleep(ORPHAN_AFTER) => None,
        _ = terminate.recv() => None,
    };
    let Some((hello, link)) = first else { return Ok(()) };
    let mut worker = Worker::new(hello, link, engine, connections_max)?;
    let grace = tokio::select! {
        grace = worker.serve(&mut agents) => grace,
        _ = terminate.recv() => TERMINATE_GRACE,
    };
    worker.shut_down(grace).await;
    Ok(())
}

/// Where agents come from.
struct Agents {
    listener: UnixListener,
    greetings: JoinSet<Result<Caller, LinkError>>,
}

impl Agents {
    /// The next agent that may command this worker, a stream, or the end. Cancel safe.
    async fn next(&mut self, serving: Option<&Hello>) -> Caller {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if self.greetings.len() < GREETINGS_MAX => {
                        self.greetings.spawn(greet(stream));
                    }
                    Ok(_) => {}
                    // Out of descriptors, most likely: traffic goes on, agents come again.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an agent");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(greeted) = self.greetings.join_next() => match greeted {
                    Ok(Ok(Caller::Agent(hello, link))) => {
                        match refuse(&hello, serving) {
                            None => return Caller::Agent(hello, link),
                            Some(why) => tracing::warn!(node = hello.node, why, "refused an agent"),
                        }
                    }
                    Ok(Ok(other)) => return other,
                    Ok(Err(error)) => tracing::info!(error = explain(&error), "refused an agent"),
                    Err(panic) => tracing::error!(%panic, "greeting an agent failed"),
                },
            }
        }
    }
}

/// Why an agent may not command this worker.
fn refuse(hello: &Hello, serving: Option<&Hello>) -> Option<&'static str> {
    if hello.protocol != protocol::VERSION {
        return Some("it speaks another version of the protocol");
    }
    let serving = serving?;
    let same = hello.node == serving.node
        && hello.namespace == serving.namespace
        && hello.address == serving.address
        && hello.log_root == serving.log_root
        && hello.cluster_domain == serving.cluster_domain;
    (!same).then_some("this worker serves another node or namespace")
}

/// The main task's state.
struct Worker {
    hello: Hello,
    /// [`engine_hash`] of this process.
    engine_hash: String,
    link: Option<Link>,
    /// When the last agent went.
    alone_since: Instant,
    switch: Arc<Switch>,
    router: Router,
    peers: Peers,
    pods: Pods,
    fronts: Fronts,
    /// In the worker of one namespace alone.
    gate: Option<Gate>,
    credentials: Option<Arc<Credentials>>,
    peer: Option<PeerListener>,
    /// Sends traces until it is stopped.
    exporter: (CancellationToken, JoinHandle<()>),
}

impl Worker {
    fn new(
        hello: Hello,
        link: Link,
        engine: Engine,
        connections_max: usize,
    ) -> Result<Worker, WorkerError> {
        let here = Here {
            node: hello.node.clone(),
            namespace: hello.namespace.clone(),
            cluster_domain: hello.cluster_domain.clone(),
        };
        let peers = Peers::default();
        peers.relays().serve();
        let mut switch = Switch::new(here.clone());
        switch.traffic.relays = peers.relays().clone();
        let switch = Arc::new(switch);
        let logs = Logs::start().map_err(WorkerError::Logs)?;
        let runtime = Runtime::new(engine, switch.clone(), logs.clone(), hello.log_root.clone());
        let gate = (hello.namespace == protocol::INGRESS_NAMESPACE).then(|| {
            let log = hello.log_root.join(protocol::INGRESS_LOGS).join(INGRESS_LOG);
            Gate::new(switch.clone(), &logs, log, hello.address, connections_max)
        });
        switch.tracer.configure(hello.tracing.as_ref(), &hello.node);
        let stop = CancellationToken::new();
        let exporter = (stop.clone(), tokio::spawn(switch.tracer.clone().export(stop)));
        let mut worker = Worker {
            exporter,
            gate,
            fronts: Fronts::new(switch.clone(), hello.address, connections_max),
            router: Router::new(here, peers.clone()),
            pods: Pods::new(runtime),
            credentials: None,
            peer: None,
            alone_since: Instant::now(),
            link: None,
            engine_hash: engine_hash(),
            hello,
            switch,
            peers,
        };
        worker.welcome(link);
        Ok(worker)
    }

    /// Serves until told to stop, and returns the grace.
    async fn serve(&mut self, agents: &mut Agents) -> Duration {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut usage = tokio::time::interval(Duration::from_secs(USAGE_INTERVAL_SECONDS));
        usage.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let switch = self.switch.clone();
        let relays = self.peers.relays().clone();
        loop {
            tokio::select! {
                relay = relays.asked() => self.report(&ToAgent::Relay(relay)),
                caller = agents.next(Some(&self.hello)) => match caller {
                    Caller::Agent(hello, link) => {
                        self.switch.tracer.configure(hello.tracing.as_ref(), &hello.node);
                        self.welcome(link);
                    }
                    Caller::Stop(grace, link) => {
                        // Closed when all has ended.
                        self.link = Some(link);
                        return grace;
                    }
                    Caller::Stream(open, stream) => self.pods.open(open, stream),
                },
                message = receive(&mut self.link) => {
                    if let Some(grace) = self.take_messages(message) {
                        return grace;
                    }
                }
                messages = self.pods.next() => {
                    for message in &messages {
                        self.report(message);
                    }
                }
                _ = usage.tick() => self.report_usage(false),
                () = switch.holds.changed() => {
                    let demand = switch.holds.demand();
                    self.report(&ToAgent::Demand(demand));
                }
                _ = tick.tick() => {
                    self.pods.rest();
                    self.update_fronts();
                    self.update_gate();
                    let denials = switch.denials.take();
                    if !denials.is_empty() {
                        self.report(&ToAgent::Denied(denials));
                    }
                    if self.peer.is_none() && let Some(open) = self.listen_for_peers() {
                        self.report(&open);
                    }
                    let alone = self.link.is_none() && self.alone_since.elapsed() > ORPHAN_AFTER;
                    if alone && self.pods.is_empty() {
                        tracing::info!("no Pods and no agent: the worker ends");
                        return Duration::ZERO;
                    }
                }
            }
        }
    }

    /// A new agent replaces the one before and hears everything.
    fn welcome(&mut self, link: Link) {
        tracing::info!(namespace = self.hello.namespace, "an agent is connected");
        self.link = Some(link);
        let state = State {
            protocol: protocol::VERSION,
            pid: std::process::id(),
            engine: self.engine_hash.clone(),
            namespace: self.hello.namespace.clone(),
            peer: self.peer.as_ref().map(|peer| peer.address),
            identity_until: self.peer.as_ref().map(PeerListener::identity_until),
            pods: self.pods.state(),
            node_ports: self.fronts.state(),
        };
        self.report(&ToAgent::State(state));
        let demand = self.switch.holds.demand();
        if !demand.is_empty() {
            self.report(&ToAgent::Demand(demand));
        }
        if self.gate.as_ref().is_some_and(|gate| !gate.refused().is_empty()) {
            self.report_refused();
        }
        self.report_usage(true);
    }

    fn report(&mut self, message: &ToAgent) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.send(message) {
            self.lose_agent(&error);
        }
    }

    fn report_usage(&mut self, agent_is_new: bool) {
        let usage = self.pods.usage(agent_is_new);
        if !usage.is_empty() {
            self.report(&ToAgent::Usage(usage));
        }
    }

    fn lose_agent(&mut self, error: &LinkError) {
        tracing::warn!(error = explain(error), "the agent is gone; everything goes on");
        self.link = None;
        self.alone_since = Instant::now();
    }

    /// Takes a message and those that arrived with it. Some: to stop, with the grace.
    fn take_messages(&mut self, first: Result<ToWorker, LinkError>) -> Option<Duration> {
        let mut next = Some(first);
        let mut taken = 0;
        let mut routes_changed = false;
        let mut stop = None;
        while let Some(message) = next.take() {
            match message {
                Ok(ToWorker::Services(change)) => {
                    self.router.apply(change);
                    routes_changed = true;
                }
                Ok(ToWorker::Nodes(change)) => {
                    self.router.apply_nodes(change);
                    routes_changed = true;
                }
                Ok(ToWorker::Policies(policies)) => {
                    self.switch.publish_policies(policy::Table::new(policies));
                }
                Ok(ToWorker::Gate(table)) => match &mut self.gate {
                    Some(gate) => {
                        gate.publish(table);
                        self.update_gate();
                    }
                    // Keys of certificates are not for this process.
                    None => tracing::error!("refused Ingresses and Gateways"),
                },
                Ok(ToWorker::Stop { grace_ms }) => {
                    stop = Some(Duration::from_millis(grace_ms));
                    break;
                }
                Ok(message) => self.take_message(message),
                Err(error) => {
                    self.lose_agent(&error);
                    break;
                }
            }
            taken += 1;
            if taken < BATCH_MAX {
                next = self.link.as_mut().and_then(Link::received);
            }
        }
        self.pods.publish();
        if routes_changed {
            self.switch.publish_table(self.router.table());
            self.update_fronts();
        }
        stop
    }

    fn take_message(&mut self, message: ToWorker) {
        let answer = match message {
            ToWorker::Hello(_)
            | ToWorker::Open(_)
            | ToWorker::Services(_)
            | ToWorker::Policies(_)
            | ToWorker::Nodes(_)
            | ToWorker::Gate(_)
            | ToWorker::Stop { .. } => None,
            ToWorker::Labels { uid, labels } => {
                self.pods.relabel(&uid, &self.hello.namespace, &labels);
                None
            }
            ToWorker::Identity(identity) => self.identify(&identity),
            ToWorker::ApplyPod(pod) if pod.namespace != self.hello.namespace => {
                // Another trust domain's Pod must never run here, whoever asks.
                tracing::error!(uid = pod.uid, namespace = pod.namespace, "refused a strange Pod");
                None
            }
            ToWorker::ApplyPod(pod) => {
                self.pods.apply(pod);
                None
            }
            ToWorker::StopContainer { uid, container, restart, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.pods.stop_container(uid, container, restart, grace)
            }
            ToWorker::RemovePod { uid } => self.pods.remove(uid),
        };
        if let Some(answer) = answer {
            self.report(&answer);
        }
    }

    /// Begins to use a certificate; the first one opens the peer listener.
    fn identify(&mut self, identity: &protocol::Identity) -> Option<ToAgent> {
        let credentials = match Credentials::new(identity) {
            Ok(credentials) => Arc::new(credentials),
            Err(error) => {
                tracing::error!(error = explain(&error), "cannot use the traffic identity");
                return None;
            }
        };
        let holder = &credentials.holder;
        if holder.namespace != self.hello.namespace || holder.node != self.hello.node {
            tracing::error!(%holder, "the traffic identity is another worker's");
            return None;
        }
        self.peers.identify(credentials.clone());
        if let Some(peer) = &self.peer {
            peer.identify(credentials.clone());
        }
        self.credentials = Some(credentials);
        self.listen_for_peers()
    }

    /// Opens the peer listener if it should be open. Tried again at each tick: the node's address
    /// may come up after the worker.
    fn listen_for_peers(&mut self) -> Option<ToAgent> {
        if let Some(peer) = &self.peer {
            return Some(ToAgent::PeerListening { address: peer.address });
        }
        let credentials = self.credentials.clone()?;
        match PeerListener::start(self.switch.clone(), self.hello.address, credentials) {
            Ok(peer) => {
                let address = peer.address;
                self.peer = Some(peer);
                Some(ToAgent::PeerListening { address })
            }
            Err(error) => {
                tracing::error!(%error, address = %self.hello.address, "cannot listen for peers");
                None
            }
        }
    }

    fn update_fronts(&mut self) {
        for change in self.fronts.update() {
            self.report(&ToAgent::NodePort(change));
        }
    }

    fn update_gate(&mut self) {
        if self.gate.as_mut().is_some_and(Gate::update) {
            self.report_refused();
        }
    }

    fn report_refused(&mut self) {
        if let Some(refused) = self.gate.as_ref().map(|gate| gate.refused().clone()) {
            self.report(&ToAgent::PortsRefused(refused));
        }
    }

    /// Ends everything in order: no new connections, containers within the grace, connections.
    async fn shut_down(mut self, grace: Duration) {
        tracing::info!(?grace, "stopping");
        self.fronts.stop();
        if let Some(gate) = &mut self.gate {
            gate.stop();
        }
        let deadline = Instant::now() + grace;
        self.pods.stop_all(deadline);
        // Containers end by the deadline themselves; this is for the logs of a stuck disk.
        let hard = deadline + CLOSE_GRACE;
        while self.pods.is_running() {
            match tokio::time::timeout_at(hard, self.pods.next()).await {
                Ok(messages) => {
                    for message in &messages {
                        self.report(message);
                    }
                }
                Err(_) => break,
            }
        }
        let Worker { switch, router, peers, fronts, gate, peer, link, exporter, .. } = self;
        if let Some(peer) = &peer {
            peer.stop();
        }
        // The last holders of peers: their connections close when nothing is in flight.
        switch.publish_table(Table::default());
        drop(router);
        let closed = async {
            fronts.closed().await;
            if let Some(gate) = &gate {
                gate.closed().await;
            }
            if let Some(peer) = &peer {
                peer.closed().await;
            }
            peers.closed().await;
            if let Some(link) = link {
                link.finish().await;
            }
            let (stop, exporting) = exporter;
            stop.cancel();
            // It neither panics nor is aborted.
            let _ = exporting.await;
        };
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            tracing::info!("some connections were cut off");
        }
    }
}

/// The next message of the agent, if there is one.
async fn receive(link: &mut Option<Link>) -> Result<ToWorker, LinkError> {
    match link {
        Some(link) => link.receive().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod thread_tests {
    use super::*;

    #[test]
    fn threads_that_are_idle_start_none_for_calls_that_block() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(BLOCKING_THREADS_MAX);
        let runtime = runtime.build().expect("a runtime");
        start_blocking_threads(&runtime);
        let handle = runtime.handle().clone();
        let idle = std::thread::spawn(move || {
            let none = libc::sched_param { sched_priority: 0 };
            // SAFETY: plain system calls about the calling thread.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
            assert_eq!((set, policy()), (0, libc::SCHED_IDLE));
            let together = Arc::new(std::sync::Barrier::new(BLOCKING_THREADS_MAX));
            let calls: Vec<_> = (0..BLOCKING_THREADS_MAX)
                .map(|_| {
                    let together = Arc::clone(&together);
                    handle.spawn_blocking(move || {
                        together.wait();
                        policy()
                    })
                })
                .collect();
            handle.block_on(futures::future::join_all(calls))
        });
        for policy in idle.join().expect("it does not panic") {
            assert_eq!(policy.expect("the call ends"), libc::SCHED_OTHER);
        }
    }
}
