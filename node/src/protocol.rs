//! What the agent and a worker say to each other over their Unix socket.
//!
//! One worker process serves one trust domain (a namespace) of one node. It outlives the agent, so
//! every message states what shall be, not what changed since the last one, and is idempotent: a
//! restarted agent connects, reads the worker's [`State`], and says again what it wants.
//!
//! ```text
//!   agent                                     worker
//!     | connect, Hello  ------------------------> |   refused (connection closed) for another node,
//!     |                                           |   namespace or protocol version, and when
//!     |                                           |   address, log root or domain have changed
//!     | <------------------------------- State    |   always the first frame of the worker
//!     | Identity, Services(Replace) ------------> |
//!     | ApplyPod / StopContainer / RemovePod ---> |
//!     | <--- ContainerStarted / Exited / ...      |   deltas, in order for each container
//! ```
//!
//! Frames are a 4 byte big-endian length and JSON (see [`codec`]). A worker listens for one agent at
//! a time: a new connection replaces the old one. When the agent goes away the worker keeps
//! everything running and keeps the exits that nobody heard of in its state. An agent of another
//! engine commands it too, and gives it no code.
//!
//! One part is the same in all versions, so that a worker whose version an agent does not speak can
//! be ended in order: these frames, and [`ToWorker::Stop`] as the first one of a connection, which
//! then stays open until the worker is gone. What the worker says on it is for nobody.
//!
//! A *container* is known by `(uid, name, restart)`: `restart` counts the starts of this container
//! in this Pod, and a number never runs twice.

mod container;
mod dns;
mod gate;
mod network;
mod requests;
mod stream;

pub use self::container::{
    Check, Health, HookKind, Hooks, HostAlias, HttpCheck, LastWords, Mount, Probe, ProbeKind,
    Probes,
};
pub use self::dns::Dns;
pub use self::gate::{
    Backend, Certificate, Family, Filters, GatePort, GateTable, HeaderChange, HttpMatch, HttpRule,
    INGRESS_LOGS, INGRESS_NAMESPACE, Mirror, Owner, PathChange, PathMatch, Redirect, Rewrite, Site,
    Target, ValueMatch,
};
pub use self::network::{
    Demand, Denial, Direction, Endpoint, HealthPort, NodeRoute, Nodes, Policies, RoutePort,
    ServiceKey, ServiceRoute, Services, dashed_address,
};
pub use self::requests::{Line, Place, Seen, Since};
pub use self::stream::{Answer, Code, Open, Streams};

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::codec::LengthDelimitedCodec;
use wherry_resources::handling::Handling;

/// Changes with every incompatible change of a message. An agent that finds a worker of another
/// version stops it, with grace, and starts its own.
pub const VERSION: u32 = 4;

/// The largest frame. The largest message is `Services(Replace)`: 150,000 endpoints of about 200
/// bytes are 30 MB.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// How many rotated log files are kept for one container start: the live one, `.1` and `.2`.
pub const LOG_FILES_MAX: usize = 3;

/// What the imageID of the built-in toolbox begins with.
pub const TOOLBOX_REPOSITORY: &str = "wherry.dev/toolbox";

/// Tells the toolbox that its input is never written to, and ends when the toolbox shall.
pub const ENDS_WITH_INPUT: &str = "WHERRY_ENDS_WITH_INPUT";

/// Why a message could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The message does not become JSON, or is larger than a frame may be.
    #[error("encode a worker message")]
    Encode(#[source] serde_json::Error),
    /// The frame is not a message of this version.
    #[error("decode a worker message")]
    Decode(#[source] serde_json::Error),
    /// The message could not be sent.
    #[error("send a worker message")]
    Send(#[source] std::io::Error),
    /// The message does not fit in a frame.
    #[error("a worker message has {bytes} bytes, the limit is {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
    },
}

/// The framing both sides use.
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec()
}

/// Encodes one message for [`codec`].
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, ProtocolError> {
    let bytes = serde_json::to_vec(message).map_err(ProtocolError::Encode)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(ProtocolError::TooLarge { bytes: bytes.len() });
    }
    Ok(Bytes::from(bytes))
}

/// Decodes one frame of [`codec`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(frame).map_err(ProtocolError::Decode)
}

/// Agent to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToWorker {
    /// The first frame of a connection.
    Hello(Hello),
    /// The first frame of a connection of its own, which carries one stream: see [`Open`].
    Open(Open),
    /// The certificate for traffic between workers. Sent after `Hello` and again when renewed; the
    /// worker opens (or keeps) its peer listener and uses the newest identity for new connections.
    Identity(Identity),
    /// Brings a Pod in: see [`Pod`].
    ApplyPod(Pod),
    /// Asks a container to end: a stop signal first, the hard end after `grace_ms`. Answered by
    /// `ContainerExited` with reason [`ExitReason::Stopped`] (or what it ended with by itself).
    /// Unknown or already ended containers are answered by their last `ContainerExited`, or by one
    /// with exit code 0 and reason `Stopped` when nothing is known of them.
    StopContainer {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// Which start of it. A newer start is left alone.
        restart: u32,
        /// Time it gets to end by itself: in-flight requests of a handler are finished.
        grace_ms: u64,
    },
    /// Forgets a Pod: whatever still runs is ended at once, its address is free afterwards.
    /// Answered by `PodRemoved`, also for a Pod that is not known.
    RemovePod {
        /// Pod uid.
        uid: String,
    },
    /// The routing table, whole or in part.
    Services(Services),
    /// The nodes, whole or in part.
    Nodes(Nodes),
    /// Every NetworkPolicy, and what is needed to judge by them.
    Policies(Policies),
    /// Every Ingress and Gateway. For the worker of the namespace that serves them.
    Gate(GateTable),
    /// The labels of a Pod have changed. Unknown Pods are left alone.
    Labels {
        /// Pod uid.
        uid: String,
        /// All of them.
        labels: BTreeMap<String, String>,
    },
    /// Ends the whole worker: stops accepting, gives every container `grace_ms`, exits with code 0.
    /// Obeyed as the first frame of a connection as well. Never changes.
    Stop {
        /// Time for all containers together.
        grace_ms: u64,
    },
}

/// Worker to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToAgent {
    /// All that the worker knows; the first frame of a connection.
    State(State),
    /// The guest is loaded and serves (handler) or runs (command).
    ContainerStarted {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// Which start of it.
        restart: u32,
        /// When.
        at: Timestamp,
    },
    /// A probe failed, or changed what is known of the container's health.
    Probed {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// Which start of it.
        restart: u32,
        /// Which probe.
        kind: ProbeKind,
        /// Why this attempt failed, if it did.
        failure: Option<String>,
        /// All that is known now.
        health: Health,
    },
    /// A hook failed. After a failed `postStart` the container is ended by the worker.
    HookFailed {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// Which start of it.
        restart: u32,
        /// Which hook.
        hook: HookKind,
        /// Why.
        message: String,
    },
    /// The guest has ended. Exactly once for each start, also when it never got to run.
    ContainerExited {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// Which start of it.
        restart: u32,
        /// How it ended.
        exit: Exit,
    },
    /// Answer to `RemovePod`.
    PodRemoved {
        /// Pod uid.
        uid: String,
    },
    /// The peer listener accepts connections at this address.
    PeerListening {
        /// The node's address and a port the worker chose.
        address: SocketAddr,
    },
    /// A node port was bound, could not be bound, or was given up (`error: None, bound: false`).
    NodePort(NodePort),
    /// Ports of Ingresses and Gateways that cannot be bound, with the reasons, whenever that changes.
    PortsRefused(BTreeMap<u16, String>),
    /// All requests that wait for Pods, whenever that changes.
    Demand(Vec<Demand>),
    /// Connections of this worker's Pods that policies refused (or would have), since the last one.
    Denied(Vec<Denial>),
    /// What the guests used, each [`USAGE_INTERVAL_SECONDS`] and only when something changed.
    Usage(Vec<Usage>),
    /// A worker of another node does not answer: a way to it through a member is wanted. Answered
    /// by a stream, [`Open::Relayed`].
    Relay(Relay),
}

/// A way to a worker of another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// The worker's own number for it.
    pub id: u64,
    /// The node.
    pub node: String,
    /// The worker's namespace.
    pub namespace: String,
}

/// Rhythm of [`ToAgent::Usage`]: metrics of Kubernetes are 15 s old as well.
pub const USAGE_INTERVAL_SECONDS: u64 = 15;

/// Who the agent is and what the worker serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`VERSION`].
    pub protocol: u32,
    /// Version of the binary, for the log.
    pub version: String,
    /// Node name; the common name of certificates.
    pub node: String,
    /// The trust domain that this worker serves.
    pub namespace: String,
    /// The node's own address: peer listener and node ports bind here.
    pub address: IpAddr,
    /// Log files go below it, see [`log_file`].
    pub log_root: PathBuf,
    /// `wherry_wasi_shim::engine_hash()` of the agent: what it compiles is for this engine.
    pub engine: String,
    /// Domain of service names, `cluster.local`.
    pub cluster_domain: String,
    /// Where traces go. None: nowhere.
    #[serde(default)]
    pub tracing: Option<Tracing>,
}

/// A collector of traces, which speaks OTLP over HTTP.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Its address, `http://host:4318`; `/v1/traces` comes after it.
    pub endpoint: String,
    /// What it is sent beside the spans. Values are never logged.
    pub headers: Vec<(String, String)>,
    /// The part of the requests without a trace of their own that are recorded, from 0 to 1.
    pub ratio: f64,
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracing {{ endpoint: {:?}, ratio: {}, .. }}", self.endpoint, self.ratio)
    }
}

/// A certificate signed by the traffic authority: CN = node name, O = namespace.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Leaf first.
    pub certificate_pem: String,
    /// Its key. Never logged.
    pub key_pem: String,
    /// The traffic authority, the only one that a peer's certificate is checked against.
    pub ca_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity { .. }")
    }
}

/// A Pod and containers to start in it.
///
/// The worker adds the Pod if its uid is new, and starts every listed container whose `restart` is
/// larger than the one it knows. The same or an older number, and containers that are not listed,
/// are left as they are. So init containers, restarts and repeated messages are all the same call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Identity of the Pod.
    pub uid: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`; the worker's own.
    pub namespace: String,
    /// The Pod's address in the virtual network; it is never bound on the host.
    pub ip: IpAddr,
    /// Its labels: what policies know it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `hostAliases`
    pub hosts: Vec<HostAlias>,
    /// `dnsPolicy` and `dnsConfig`. Among the others, as its first field was before there were more.
    #[serde(flatten)]
    pub dns: Dns,
    /// What to start.
    pub containers: Vec<Container>,
}

/// One container start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Container name.
    pub name: String,
    /// Which start of this container, 0 for the first.
    pub restart: u32,
    /// Compiled module. The agent has checked its MAC; the worker may load it as it is.
    pub module: PathBuf,
    /// What the compiled file holds.
    pub form: Form,
    /// How it is run.
    pub guest: Guest,
    /// `<name>@sha256:…`, kept for an agent that restarts; the worker does not interpret it.
    pub image_id: String,
    /// `workingDir`
    #[serde(default)]
    pub cwd: Option<String>,
    /// `argv`, starting with the program's name.
    pub args: Vec<String>,
    /// Complete environment of the guest.
    pub env: Env,
    /// Bounds; what is absent gets the worker's default.
    pub limits: Limits,
    /// `containerPort`s. A handler answers on them; with none declared, on every port that no other
    /// container of the Pod has declared.
    pub ports: Vec<Port>,
    /// What it sees of the Pod's volumes.
    pub mounts: Vec<Mount>,
    /// `stdin`: a command's input stays open until it shall end.
    pub stdin: bool,
    /// `stdinOnce`: or until the first who was attached to it has left.
    #[serde(default)]
    pub stdin_once: bool,
    /// `tty`: its input and output are a terminal in its eyes.
    #[serde(default)]
    pub tty: bool,
    /// Its probes.
    pub probes: Probes,
    /// Its hooks.
    pub hooks: Hooks,
    /// The toolbox, where a probe or a hook calls what the image may not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolbox: Option<Code>,
    /// Its last words.
    pub last_words: LastWords,
}

/// Environment variables. They may hold Secrets, so they have no readable `Debug`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Env(pub Vec<(String, String)>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Env({} variables)", self.0.len())
    }
}

/// Core module (WASI p1) or component (p2, p3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// A core module.
    Module,
    /// A component.
    Component,
}

/// How the image is run (DECISIONS D7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Guest {
    /// One long-lived instance with a `main`.
    Command,
    /// An instance for each request; `ContainerStarted` as soon as it can serve.
    Handler,
}

/// From `resources.limits` and annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// `resources.limits.memory`
    pub memory_bytes: Option<u64>,
    /// `resources.limits.cpu` in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// `resources.requests.cpu` in thousandths of a core: its weight when there is not enough.
    #[serde(default)]
    pub cpu_request_millis: Option<u32>,
    /// How a handler takes requests.
    #[serde(default)]
    pub handling: Handling,
}

/// A declared container port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Port name, if it has one.
    pub name: Option<String>,
    /// `containerPort`
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// As in Kubernetes: the guest's own code; 137 killed; 128 could not start.
    pub code: i32,
    /// The word for status.
    pub reason: ExitReason,
    /// One plain sentence for people (a trap and where it happened), empty if there is nothing to say.
    pub message: String,
    /// When it started, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code, or a trap.
    Error,
    /// It wanted more memory than its limit.
    OOMKilled,
    /// It ran longer than it may.
    DeadlineExceeded,
    /// It was asked to, by `StopContainer`, `RemovePod` or `Stop`.
    Stopped,
    /// The module could not be loaded or instantiated; code 128.
    StartError,
}

/// All that a worker knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// [`VERSION`] of the worker.
    pub protocol: u32,
    /// Its process.
    pub pid: u32,
    /// Its own `engine_hash()`: it loads code of no other. Empty of one that obeys no other agent.
    #[serde(default)]
    pub engine: String,
    /// As in `Hello`.
    pub namespace: String,
    /// Where its peer listener accepts, once it has an identity.
    pub peer: Option<SocketAddr>,
    /// Whether it has an identity, and when that ends.
    pub identity_until: Option<Timestamp>,
    /// Every Pod that was applied and not removed.
    pub pods: Vec<PodState>,
    /// Every node port it was asked for.
    pub node_ports: Vec<NodePort>,
}

/// A Pod in a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// As applied.
    pub uid: String,
    /// As applied.
    pub name: String,
    /// As applied.
    pub ip: IpAddr,
    /// The newest start of each container.
    pub containers: Vec<ContainerState>,
}

/// A container in a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Container name.
    pub name: String,
    /// Its newest start.
    pub restart: u32,
    /// As applied.
    pub image_id: String,
    /// As applied.
    pub guest: Guest,
    /// Where it is.
    pub phase: ContainerPhase,
    /// What its probes have found out.
    pub health: Health,
}

/// Where a container is in its life, as the worker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerPhase {
    /// Loading; left by `ContainerStarted` or `ContainerExited`.
    Starting,
    /// Left by `ContainerExited`.
    Running {
        /// Since when.
        at: Timestamp,
    },
    /// Final for this start.
    Exited(Exit),
}

/// One node port of the worker's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePort {
    /// Service it belongs to.
    pub service: String,
    /// The port.
    pub port: u16,
    /// Whether it is listening.
    pub bound: bool,
    /// Why it is not.
    pub error: Option<String>,
}

/// What one container used since it was first started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Pod uid.
    pub uid: String,
    /// Container name.
    pub container: String,
    /// Time on a CPU, since the container's first start; never falls.
    pub cpu_ns: u64,
    /// Memory held now.
    pub memory_bytes: u64,
    /// Requests answered, since the container's first start.
    pub requests: u64,
    /// How long requests took together, since then: by how much it grows in a second is how many
    /// are answered at once.
    #[serde(default)]
    pub busy_ns: u64,
    /// How long its newest start took, part by part.
    #[serde(default)]
    pub start: Option<StartTimes>,
    /// A handler that nobody has asked for a while: it has given its compiled code back.
    #[serde(default)]
    pub idle: bool,
}

/// The worker's part of a cold start, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartTimes {
    /// Mapping the compiled code.
    pub load: u64,
    /// Linking it.
    pub link: u64,
    /// Making the first instance; 0 until there was one.
    pub instantiate: u64,
    /// From the first request to the head of its answer; 0 until there was one.
    pub first_byte: u64,
}

/// Name of a Pod's folder below the log root.
pub fn log_folder(namespace: &str, pod: &str, uid: &str) -> String {
    format!("{namespace}_{pod}_{uid}")
}

/// The live log file of one container start. Rotated files have `.1` (newest) and `.2` appended;
/// a rotation renames, so a reader that follows sees the inode of the live name change.
///
/// Lines are `<RFC 3339 with nanoseconds> stdout|stderr F|P <text>`; `P` marks a part of a line that
/// goes on in the next record of the same stream.
pub fn log_file(
    root: &Path,
    namespace: &str,
    pod: &str,
    uid: &str,
    container: &str,
    restart: u32,
) -> PathBuf {
    root.join(log_folder(namespace, pod, uid)).join(container).join(format!("{restart}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_worker_of_any_version_never_changes() {
        let stop = encode(&ToWorker::Stop { grace_ms: 5000 }).expect("encoded");
        assert_eq!(&stop[..], br#"{"stop":{"grace_ms":5000}}"#);
    }
}
