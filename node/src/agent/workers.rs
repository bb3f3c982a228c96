//! Worker processes: start, find again, supervise, end.
//!
//! ```text
//!   $TMPDIR/wherry-<uid>/<16 hex of the data dir>/<namespace>.sock     0700 folder, ours only
//!   <data dir>/workers/<namespace>.log                                 what a worker prints
//! ```
//!
//! A worker is a process of its own session, so it lives on when the agent ends. A starting agent
//! connects to every socket that it finds. Whoever answers is taken over, also where its engine is
//! another one; whoever refuses this agent is ended with grace, and who says nothing is killed.
//! One task for each worker owns its process and its connection; it reports to the agent's loop with
//! [`WorkerEvent`]s and takes encoded frames from a bounded queue. A worker that does not take its
//! frames is killed like one that died: its guests start again by their restart policy.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::{
    codec::{Framed, LengthDelimitedCodec},
    sync::CancellationToken,
};

use crate::{
    protocol::{self, Hello, State, ToAgent, ToWorker},
    worker::Walls,
};

use super::{cgroups::Cgroups, pods::Input, relay::Relays, users::Users};

/// The longest path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;
/// Frames that wait for a worker: two for each of 12,000 Pods, as many for Services that come at the
/// same time. Full means that it hangs.
const QUEUE: usize = 50_000;
/// A worker that has started listens in this time, even on a busy machine.
const LISTEN_MAX: Duration = Duration::from_secs(20);
/// How often it is tried to connect meanwhile.
const LISTEN_POLL: Duration = Duration::from_millis(10);
/// An answer to `Hello` comes in this time, or the worker hangs.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Time the containers of a worker that is ended get: nothing needs them any more.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Time those of a worker get that another one takes the place of. Meanwhile nobody answers new
/// requests, so it is shorter than the grace of Pods.
const REPLACE_GRACE: Duration = Duration::from_secs(5);
/// Time a stopped worker gets beyond the grace of its containers.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// A worker that lived this long is started again without delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// First and longest delay before a worker that dies again and again is started anew.
const RESTART: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A worker's own log is moved aside when a new worker starts and it has grown to this.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// Why workers cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    /// The folder for sockets cannot be used.
    #[error("prepare the socket folder {}", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder belongs to somebody else.
    #[error("{} belongs to another user or is open to others; remove it", .0.display())]
    NotOurs(PathBuf),
}

/// What the agent's loop hears of a worker.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A connection is up. Frames queued before are void.
    Connected(Box<State>),
    /// The worker says something.
    Message(ToAgent),
    /// The process is gone, and with it all that ran in it.
    Lost,
}

/// What all workers of this node have in common.
#[derive(Debug)]
pub struct Workers {
    /// The program that has the `worker` command.
    pub binary: PathBuf,
    /// Folder of the sockets.
    pub sockets: PathBuf,
    /// Folder of the workers' own logs.
    pub logs: PathBuf,
    /// What workers must neither see nor change.
    pub walls: Walls,
    /// As whom they run.
    pub users: Arc<Users>,
    /// What the machine holds them to.
    pub cgroups: Cgroups,
    /// First frame for each, but for the namespace.
    pub hello: Hello,
    /// To the agent's loop.
    pub events: mpsc::Sender<Input>,
    /// Ways to workers elsewhere, for those that ask.
    pub relays: Arc<Relays>,
}

/// A supervised worker.
#[derive(Debug)]
pub struct Worker {
    frames: mpsc::Sender<Bytes>,
    /// Cancelled to let go of it: the connection is closed, the process lives on.
    release: CancellationToken,
    /// Cancelled to end it.
    stop: CancellationToken,
    /// Its end is to wait for requests that are under way.
    patient: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Queues a frame. A full queue ends the worker.
    pub fn send(&self, frame: Bytes) {
        if self.frames.try_send(frame).is_err() && !self.task.is_finished() {
            tracing::warn!("a worker does not take its messages; ending it");
            self.stop.cancel();
        }
    }

    /// Leaves the process running without an agent.
    pub async fn release(self) {
        self.release.cancel();
        let _ = self.task.await;
    }

    /// Ends the process; waits until it is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }

    /// Asks the process to end; its `Lost` follows.
    pub fn end(&self) {
        self.stop.cancel();
    }

    /// Asks the process to end when what is under way has ended; its `Lost` follows.
    pub fn retire(&self) {
        self.patient.store(true, Ordering::Relaxed);
        self.stop.cancel();
    }

    /// Whether it was asked to end; then nobody starts another process.
    pub fn is_ending(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// A connection that is past `Hello`.
pub struct Link {
    framed: Framed<UnixStream, LengthDelimitedCodec>,
    pid: Option<i32>,
    state: State,
}

impl Link {
    /// What the worker said about itself.
    pub fn state(&self) -> &State {
        &self.state
    }
}

/// The folder of this node's sockets: short enough for a socket's path whatever the data folder is,
/// and the same at every start.
pub fn socket_folder(data_dir: &Path) -> PathBuf {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let hash = hex::encode(Sha256::digest(data_dir.as_os_str().as_encoded_bytes()));
    let user = nix::unistd::getuid();
    let below = |root: PathBuf| root.join(format!("wherry-{user}")).join(&hash[..16]);
    // The longest namespace has 63 characters.
    let folder = below(std::env::temp_dir());
    let longest = folder.as_os_str().len() + 1 + 63 + ".sock".len();
    if longest <= SOCKET_PATH_MAX { folder } else { below(PathBuf::from("/tmp")) }
}

/// A folder of this node that no disk holds, gone with a reboot. None where the machine has no
/// memory-backed file system that we may write to.
pub fn memory_folder(data_dir: &Path) -> Option<PathBuf> {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let hash = hex::encode(Sha256::digest(data_dir.as_os_str().as_encoded_bytes()));
    let name = format!("wherry-{}-{}", nix::unistd::getuid(), &hash[..16]);
    ["/run", "/dev/shm"].into_iter().find_map(|root| {
        let found = nix::sys::statfs::statfs(root).ok()?;
        if found.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
            return None;
        }
        let folder = Path::new(root).join(&name);
        prepare_folder(&folder.join("node")).ok()?;
        Some(folder.join("node"))
    })
}

/// Makes the folder, or checks that an existing one is ours alone: others may go through it at most.
pub fn prepare_folder(folder: &Path) -> Result<(), WorkersError> {
    let error = |source| WorkersError::Folder { path: folder.to_owned(), source };
    let parent = folder.parent().unwrap_or(folder);
    for path in [parent, folder] {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(exists) if exists.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(error(source)),
        }
        let metadata = fs::symlink_metadata(path).map_err(error)?;
        let ours = metadata.is_dir()
            && metadata.uid() == nix::unistd::getuid().as_raw()
            && metadata.mode() & 0o066 == 0;
        if !ours {
            return Err(WorkersError::NotOurs(path.to_owned()));
        }
    }
    Ok(())
}

impl Workers {
    fn socket(&self, namespace: &str) -> PathBuf {
        self.sockets.join(format!("{namespace}.sock"))
    }

    /// Whether a worker runs code of another engine than this agent's.
    pub fn is_outdated(&self, state: &State) -> bool {
        // One that does not say its own has refused all others.
        !state.engine.is_empty() && state.engine != self.hello.engine
    }

    /// Connects to every worker that an earlier agent left. Those that do not answer are ended.
    pub async fn adopt(self: &Arc<Workers>) -> HashMap<String, Link> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.sockets).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(namespace) = name.strip_suffix(".sock") {
                found.push(namespace.to_owned());
            }
        }
        let attempts = found.into_iter().map(|namespace| async move {
            let link = self.connect(&namespace).await;
            (namespace, link)
        });
        let mut links = HashMap::new();
        for (namespace, link) in futures::future::join_all(attempts).await {
            match link {
                Ok(link) => {
                    let pods = link.state.pods.len();
                    tracing::info!(namespace, pid = link.state.pid, pods, "found a worker");
                    if let Some(user) = link.pid.and_then(user_of) {
                        self.users.found(&namespace, user);
                    }
                    links.insert(namespace, link);
                }
                Err(error) => {
                    tracing::info!(namespace, error, "a socket without a worker");
                    let _ = fs::remove_file(self.socket(&namespace));
                }
            }
        }
        links
    }

    /// Supervises the worker of a namespace: over `link`, or a new process.
    pub fn start(self: &Arc<Workers>, namespace: &str, link: Option<Link>) -> Worker {
        let (frames, queue) = mpsc::channel(QUEUE);
        let (release, stop) = (CancellationToken::new(), CancellationToken::new());
        let patient = Arc::new(AtomicBool::new(false));
        let supervisor = Supervisor {
            workers: self.clone(),
            namespace: namespace.to_owned(),
            queue,
            release: release.clone(),
            stop: stop.clone(),
            patient: patient.clone(),
        };
        let task = tokio::spawn(supervisor.run(link));
        Worker { frames, release, stop, patient, task }
    }

    /// Connects, says hello, reads the state. A process that listens but does not answer is killed,
    /// one that refuses is ended in order first.
    async fn connect(&self, namespace: &str) -> Result<Link, String> {
        let path = self.socket(namespace);
        let stream = UnixStream::connect(&path).await.map_err(|error| error.to_string())?;
        let peer = stream.peer_cred().map_err(|error| error.to_string())?;
        let pid = peer.pid();
        if peer.uid() != nix::unistd::getuid().as_raw() {
            return Err("somebody else listens on its socket".to_owned());
        }
        let mut framed = Framed::new(stream, protocol::codec());
        let hello = Hello { namespace: namespace.to_owned(), ..self.hello.clone() };
        let hello = protocol::encode(&ToWorker::Hello(hello)).map_err(|e| e.to_string())?;
        let answer = tokio::time::timeout(ANSWER_MAX, async {
            framed.send(hello).await.map_err(|error| error.to_string())?;
            let frame = framed.next().await.ok_or("it closed the connection")?;
            let frame = frame.map_err(|error| error.to_string())?;
            match protocol::decode(&frame).map_err(|error| error.to_string())? {
                ToAgent::State(state) if state.protocol == protocol::VERSION => Ok(state),
                ToAgent::State(state) => Err(format!("it speaks version {}", state.protocol)),
                _ => Err("its first message is not its state".to_owned()),
            }
        });
        let error = match answer.await {
            Ok(Ok(state)) => return Ok(Link { framed, pid, state }),
            Ok(Err(error)) => {
                if let Ok(stream) = UnixStream::connect(&path).await {
                    stop(&mut Framed::new(stream, protocol::codec()), REPLACE_GRACE).await;
                }
                error
            }
            Err(_) => "it does not answer".to_owned(),
        };
        if let Some(pid) = pid {
            kill(pid, &path);
        }
        Err(error)
    }

    fn spawn(&self, namespace: &str) -> std::io::Result<Child> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.logs)?;
        // One of an older version was open to others.
        fs::set_permissions(&self.logs, fs::Permissions::from_mode(0o700))?;
        let log = self.logs.join(format!("{namespace}.log"));
        if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
            fs::rename(&log, log.with_extension("log.1"))?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let socket = self.socket(namespace);
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(&self.binary);
        command
            .arg("worker")
            .arg("--socket")
            .arg(&socket)
            .args(self.walls.hidden.iter().map(|path| argument("--hide=", path)))
            .args(self.walls.read_only.iter().map(|path| argument("--read-only=", path)))
            .args(self.users.begin(namespace).map(|user| format!("--user={user}")))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(false);
        let door = self.cgroups.door(namespace);
        // SAFETY: plain system calls; nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                if let Some(door) = &door {
                    // A worker outside of its cgroup is better than none.
                    let _ = nix::unistd::write(door, b"0");
                }
                Ok(())
            });
        }
        command.spawn()
    }
}

/// The user that a process runs as.
fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ends a worker in order: it takes nothing new, what is under way may end within the grace, and
/// then it closes the connection. Understood by workers of all versions, see `protocol.rs`.
async fn stop(framed: &mut Framed<UnixStream, LengthDelimitedCodec>, grace: Duration) {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let ending = async {
        if let Ok(frame) = protocol::encode(&ToWorker::Stop { grace_ms }) {
            let _ = framed.send(frame).await;
        }
        while let Some(Ok(_)) = framed.next().await {}
    };
    let _ = tokio::time::timeout(grace + STOP_MARGIN, ending).await;
}

fn argument(name: &str, value: &Path) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(value);
    argument
}

/// Kills a process, if it still is a worker at this socket.
fn kill(pid: i32, socket: &Path) {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let socket = socket.as_os_str().as_encoded_bytes();
    if line.split(|byte| *byte == 0).any(|argument| argument == socket) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

/// Owns one worker.
struct Supervisor {
    workers: Arc<Workers>,
    namespace: String,
    queue: mpsc::Receiver<Bytes>,
    release: CancellationToken,
    stop: CancellationToken,
    patient: Arc<AtomicBool>,
}

/// How a connection ended.
enum End {
    Lost,
    Released,
    Stopped,
}

impl Supervisor {
    async fn run(mut self, mut link: Option<Link>) {
        let mut delay = Duration::ZERO;
        loop {
            let since = Instant::now();
            let mut child = None;
            let connected = match link.take() {
                Some(link) => Ok(link),
                None => self.launch(&mut child).await,
            };
            let end = match connected {
                Ok(link) => self.talk(link).await,
                Err(error) => {
                    let namespace = &self.namespace;
                    tracing::warn!(namespace, error, "cannot start a worker");
                    if let Some(child) = &mut child {
                        let _ = child.kill().await;
                    }
                    End::Lost
                }
            };
            match end {
                // The child, if it is one, is left to whoever adopts it: it is not waited for.
                End::Released => return,
                End::Stopped | End::Lost => {
                    if let Some(mut child) = child {
                        let _ = child.kill().await;
                        let _ = child.wait().await;
                    }
                    let _ = fs::remove_file(self.workers.socket(&self.namespace));
                    self.workers.cgroups.leave(&self.namespace);
                    self.report(WorkerEvent::Lost).await;
                }
            }
            if self.stop.is_cancelled() || self.release.is_cancelled() {
                return;
            }
            delay = if since.elapsed() >= HEALTHY_AFTER {
                Duration::ZERO
            } else {
                longer_restart(delay)
            };
            tracing::warn!(namespace = self.namespace, ?delay, "worker gone, starting another");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return,
                () = self.release.cancelled() => return,
            }
        }
    }

    /// Starts a process and waits until it listens.
    async fn launch(&self, child: &mut Option<Child>) -> Result<Link, String> {
        let child = match self.workers.spawn(&self.namespace) {
            Ok(spawned) => child.insert(spawned),
            Err(error) => return Err(format!("start the process: {error}")),
        };
        tracing::info!(namespace = self.namespace, pid = child.id(), "started a worker");
        let socket = self.workers.socket(&self.namespace);
        let deadline = Instant::now() + LISTEN_MAX;
        loop {
            if UnixStream::connect(&socket).await.is_ok() {
                let link = self.workers.connect(&self.namespace).await?;
                if self.workers.is_outdated(&link.state) {
                    let program = self.workers.binary.display();
                    return Err(format!(
                        "{program} has another engine than this agent: it was replaced while the \
                         agent ran; start the agent anew"
                    ));
                }
                return Ok(link);
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended at once ({status}); see its log"));
            }
            if Instant::now() > deadline {
                return Err("it does not listen on its socket; see its log".to_owned());
            }
            tokio::select! {
                () = tokio::time::sleep(LISTEN_POLL) => {}
                () = self.stop.cancelled() => return Err("no longer needed".to_owned()),
                () = self.release.cancelled() => return Err("the agent ends".to_owned()),
            }
        }
    }

    /// Carries frames both ways until the connection ends.
    async fn talk(&mut self, link: Link) -> End {
        let Link { mut framed, pid, state } = link;
        // What was queued was for a worker that is no more; the loop says everything again.
        while self.queue.try_recv().is_ok() {}
        let (relays, namespace) = (self.workers.relays.clone(), self.namespace.clone());
        relays.listens(&namespace, state.peer);
        self.report(WorkerEvent::Connected(Box::new(state))).await;
        let mut end = loop {
            tokio::select! {
                frame = self.queue.recv() => {
                    let Some(frame) = frame else { break End::Released };
                    // One that hangs takes nothing: it must not keep us from ending it.
                    let sent = tokio::select! {
                        sent = framed.send(frame) => sent,
                        () = self.release.cancelled() => break End::Released,
                        () = self.stop.cancelled() => break End::Stopped,
                    };
                    if let Err(error) = sent {
                        tracing::debug!(%error, "worker connection");
                        break End::Lost;
                    }
                }
                frame = framed.next() => {
                    let message = match frame {
                        Some(Ok(frame)) => protocol::decode::<ToAgent>(&frame),
                        Some(Err(_)) | None => break End::Lost,
                    };
                    match message {
                        Ok(ToAgent::Relay(wanted)) => relays.open(&namespace, wanted),
                        Ok(message) => {
                            if let ToAgent::PeerListening { address } = &message {
                                relays.listens(&namespace, Some(*address));
                            }
                            self.report(WorkerEvent::Message(message)).await;
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a worker sends what is not the protocol");
                            break End::Lost;
                        }
                    }
                }
                () = self.release.cancelled() => break End::Released,
                () = self.stop.cancelled() => break End::Stopped,
            }
        };
        relays.listens(&namespace, None);
        if let End::Stopped = end {
            let patient = self.patient.load(Ordering::Relaxed);
            let grace = if patient { REPLACE_GRACE } else { STOP_GRACE };
            tokio::select! {
                () = stop(&mut framed, grace) => {}
                // It has been told, and ends by itself.
                () = self.release.cancelled() => end = End::Released,
            }
        }
        if let (End::Stopped | End::Lost, Some(pid)) = (&end, pid) {
            kill(pid, &self.workers.socket(&self.namespace));
        }
        end
    }

    async fn report(&self, event: WorkerEvent) {
        let input = Input::Worker { namespace: self.namespace.clone(), event };
        // The loop is gone only when the agent ends.
        let _ = self.workers.events.send(input).await;
    }
}

fn longer_restart(delay: Duration) -> Duration {
    if delay.is_zero() { RESTART.0 } else { (delay * 2).min(RESTART.1) }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::IpAddr, sync::RwLock};

    use tokio::sync::watch;

    use super::*;
    use crate::{
        agent::{
            dns::Zone,
            fleet::Fleet,
            node::{Seen, Traffic},
        },
        protocol::ContainerPhase,
        worker::tests::harness::{Fixture, command, pod, spinning},
    };

    /// What an agent with this hello has of a worker that runs in this process.
    fn agent(fixture: &Fixture, hello: Hello) -> (Arc<Workers>, mpsc::Receiver<Input>) {
        let (events, inputs) = mpsc::channel(64);
        let folder = fixture.folder.0.clone();
        let workers = Workers {
            binary: folder.join("nothing"),
            logs: folder.join("workers"),
            walls: Walls { hidden: Vec::new(), read_only: Vec::new() },
            users: Arc::new(Users::open(&folder, hello.log_root.clone(), None)),
            cgroups: Cgroups::default(),
            relays: Relays::new(folder.clone()),
            sockets: folder,
            hello,
            events,
        };
        (Arc::new(workers), inputs)
    }

    /// These workers, of an agent that no server answers.
    fn fleet(workers: Arc<Workers>, links: HashMap<String, Link>) -> Fleet {
        let never = |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        };
        let client = kube::Client::new(tower::service_fn(never), "default");
        let pki = workers.sockets.join("pki");
        let (traffic, seen) = (Traffic::default(), Seen::Nothing);
        let told = (watch::Sender::new(traffic), watch::Sender::new(seen));
        let own = IpAddr::from([127, 0, 0, 1]);
        let zone = Arc::new(RwLock::new(Zone::new("cluster.local", own)));
        Fleet::new(workers, client, links, pki, told, (0, 0), zone)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_worker_of_another_engine_goes_on_until_it_is_replaced() {
        let (fixture, mut before) = Fixture::start("shop").await;
        let module = fixture.module(&spinning());
        before.say(pod(&fixture, "a", "10.0.0.1", command(&module, 0))).await;
        before.started("a").await;
        let hello = Hello { engine: "upgraded".to_owned(), ..fixture.hello.clone() };
        let (workers, mut inputs) = agent(&fixture, hello);
        let links = workers.adopt().await;
        let phase = &links["shop"].state().pods[0].containers[0].phase;
        assert!(matches!(phase, ContainerPhase::Running { .. }), "{phase:?}");
        let mut fleet = fleet(workers, links);
        let first = inputs.recv().await;
        let Some(Input::Worker { event: WorkerEvent::Connected(state), .. }) = first else {
            panic!("its connection is told first, not {first:?}");
        };
        fleet.connected("shop", &state);
        assert!(fleet.is_connected("shop") && fleet.is_outdated("shop"));
        assert!(!fleet.takes_code("shop"), "code is for this agent's engine");
        fleet.replace("shop");
        assert!(!fleet.is_outdated("shop"), "it is asked once");
        assert_eq!(fleet.outdated(), ["shop"], "until it is gone");
        loop {
            match inputs.recv().await.expect("its end is told") {
                Input::Worker { event: WorkerEvent::Lost, .. } => break,
                Input::Worker { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        fleet.lost("shop");
        assert!(fleet.outdated().is_empty());
        fixture.worker.await.expect("no panic").expect("it ended by itself");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_worker_that_refuses_this_agent_is_ended_in_order() {
        let (fixture, _before) = Fixture::start("shop").await;
        let hello = Hello { protocol: protocol::VERSION + 1, ..fixture.hello.clone() };
        let (workers, _inputs) = agent(&fixture, hello);
        assert!(workers.adopt().await.is_empty());
        fixture.worker.await.expect("no panic").expect("it ended by itself");
    }

    #[test]
    fn socket_paths_fit_whatever_the_folder() {
        let folder = socket_folder(Path::new("/a/very/long/path/to/some/data/folder/of/a/node"));
        assert!(folder.as_os_str().len() + 1 + 63 + 5 <= SOCKET_PATH_MAX);
        assert_eq!(
            folder,
            socket_folder(Path::new("/a/very/long/path/to/some/data/folder/of/a/node"))
        );
        assert_ne!(folder, socket_folder(Path::new("/another")));
    }

    #[test]
    fn a_folder_of_ours_is_private() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("a").join("b");
        prepare_folder(&folder).expect("made");
        prepare_folder(&folder).expect("found");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&folder, open).expect("changed");
        assert!(matches!(prepare_folder(&folder), Err(WorkersError::NotOurs(_))));
        let enterable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(&folder, enterable).expect("changed");
        prepare_folder(&folder).expect("nobody can list it");
    }

    #[test]
    fn processes_have_users() {
        let own = i32::try_from(std::process::id()).expect("a small number");
        assert_eq!(user_of(own), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(user_of(i32::MAX), None);
    }

    #[test]
    fn restarts_slow_down() {
        let mut delay = Duration::ZERO;
        for _ in 0..20 {
            delay = longer_restart(delay);
        }
        assert_eq!(delay, RESTART.1);
    }
}
