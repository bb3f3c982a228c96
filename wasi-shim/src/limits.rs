//! What one guest may use. Each limit is per Pod unless it says per instance; the defaults bound a
//! Pod that names no limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::account::Budget;
use crate::http::{Outgoing, no_outgoing};
use crate::input::{Input, Term};
use crate::output::{Output, Room, no_output};
use crate::sockets::{Network, no_network};

/// Instances that one store may make: a component of `wit-component` has four (the program, its
/// adapter and two helpers); composed ones have a few times that.
pub(crate) const CORE_INSTANCES_MAX: u32 = 64;
/// Memories and tables of one component, transitively.
pub(crate) const MEMORIES_MAX: u32 = 8;
pub(crate) const TABLES_MAX: u32 = 16;
/// Tables of one core module: LLVM makes one, tools that hold host references a second.
pub(crate) const TABLES_PER_MODULE_MAX: u32 = 4;
/// Elements of one table: function pointers of a very large program.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Data that one call may make the host copy out of the guest: strings, lists, records.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 8 << 20;
/// Handles in the guest's own tables, and entries in the host's table of resources.
pub(crate) const HANDLES_MAX: usize = 10_000;
/// Pollables in one list. A guest has 256 sockets and 64 requests; the rest are timers.
pub(crate) const POLLABLES_MAX: usize = 1_000;
/// Files and directories that one instance has open at the same time, and all instances of one
/// container: all guests of a worker share the descriptors of its process. A core module has one
/// instance, and all that it has open and waits for together is so many.
pub(crate) const OPEN_FILES_MAX: usize = 128;
pub(crate) const OPEN_FILES_MAX_TOTAL: usize = 1_024;
/// Descriptors and streams of files of one instance, and of all instances of one container: a stream of
/// WASI 0.2 holds up to 64 KiB that were read ahead or are being written, one of WASI 0.3 up to 8 KiB.
pub(crate) const FILE_HANDLES_MAX: usize = 2 * OPEN_FILES_MAX;
pub(crate) const FILE_HANDLES_MAX_TOTAL: usize = 1_024;
/// Random bytes in one call: keys and seeds need far less, and the host allocates them.
pub(crate) const RANDOM_BYTES_MAX: u64 = 64 << 10;
/// One `fields` resource, as it is held in memory: about 32 KiB of headers on the wire.
pub(crate) const FIELDS_BYTES_MAX: usize = 64 << 10;
/// One chunk of a body that a guest writes; two chunks are in flight.
pub(crate) const BODY_CHUNK_BYTES_MAX: usize = 64 << 10;
/// What the host holds for all instances of a container together: its bucket in memory, directories
/// that are listed, and headers and bodies of messages and answers of buckets beyond what each
/// instance has free.
pub(crate) const HOST_BYTES_MAX: usize = 16 << 20;
/// Headers and bodies that each instance may hold beside: a request with its response, and one of
/// its own.
pub(crate) const MESSAGE_BYTES_FREE: usize = 256 << 10;
/// What a bucket tells each instance at once beside: a page of the longest keys, or a small value.
pub(crate) const ANSWER_BYTES_FREE: usize = 256 << 10;

/// The bounds of one guest.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Linear memory of one instance. Growth beyond it fails, and a guest that traps after that is
    /// reported as out of memory.
    pub memory_bytes: u64,
    /// Linear memory of all instances of a handler together. A request that finds no room for its
    /// instance waits in the queue; one whose instance cannot grow any more has run out of memory.
    pub memory_bytes_total: u64,
    /// From the request to the head of its response; after the head, the longest silence between
    /// two frames of the body.
    pub request_deadline: Duration,
    /// CPU quota in thousandths of a core, over periods of 100 ms. None: as much as there is.
    pub cpu: Option<u32>,
    /// The share when there is not enough CPU time for all, in the same unit.
    pub cpu_weight: u32,
    /// Requests that a handler answers at the same time, in whichever instances.
    pub concurrent_requests: usize,
    /// Requests that wait for a place; more are refused at once.
    pub queued_requests: usize,
    /// Requests that one instance of a handler answers, one after the other. One: each has an
    /// instance of its own, and nothing of it is seen by the next.
    pub instance_requests: u32,
    /// Requests that one instance of a handler of WASI 0.3 answers at the same time. One: each waits
    /// for the one before. Others than these have no more than one at a time.
    pub instance_concurrency: usize,
    /// How long an instance rests between two requests before it is given back.
    pub instance_rest: Duration,
    /// Requests that the guest itself has open at the same time.
    pub outgoing_requests: usize,
    /// Sockets that the guest has at the same time, connections that it accepted included.
    pub sockets: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: 128 << 20,
            memory_bytes_total: 1 << 30,
            request_deadline: Duration::from_secs(30),
            cpu: None,
            cpu_weight: 0,
            concurrent_requests: 256,
            queued_requests: 256,
            instance_requests: 1,
            instance_concurrency: 1,
            instance_rest: Duration::from_secs(10),
            outgoing_requests: 64,
            sockets: 256,
        }
    }
}

/// A directory of the host that a guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is on the host. Opened anew for each instance, when it asks for its directories, so
    /// that what was mounted before that is what it sees; nothing in it leads outside of it.
    pub host: PathBuf,
    /// Where the guest sees it, an absolute path.
    pub guest: String,
    pub read_only: bool,
}

/// All that a guest gets from the world.
#[derive(Clone)]
pub struct GuestConfig {
    /// The arguments; the first is the program's name, as everywhere.
    pub args: Vec<String>,
    /// The directory that the guest starts in, as `wasi:cli/environment` tells it. None: it says
    /// nothing.
    pub cwd: Option<String>,
    /// The whole environment: nothing is inherited. Shared by all who have this configuration.
    pub env: Arc<[(String, String)]>,
    pub stdout: Output,
    pub stderr: Output,
    pub limits: Limits,
    /// Where the guest's HTTP requests go.
    pub outgoing: Outgoing,
    /// Where the guest's sockets lead.
    pub network: Arc<dyn Network>,
    /// The directories it sees, and no others.
    pub mounts: Vec<Mount>,
    /// Standard input: what its writer gives, until the writer is dropped or `term`. None: it is
    /// empty from the start.
    pub stdin: Option<Input>,
    /// How much the guest may print ahead of its reader; then it waits. None: it never waits.
    pub room: Option<Room>,
    /// Whether input and output are a terminal in the guest's eyes.
    pub terminal: bool,
    /// Cancelled when the guest shall end by itself.
    pub term: Term,
    /// The account and quota that this guest shares with another one, beside whose memory it has its
    /// own. None: its own.
    pub budget: Option<Budget>,
}

impl Default for GuestConfig {
    /// A guest without arguments, environment, output or network.
    fn default() -> GuestConfig {
        GuestConfig {
            args: Vec::new(),
            cwd: None,
            env: Arc::default(),
            stdout: no_output(),
            stderr: no_output(),
            limits: Limits::default(),
            outgoing: no_outgoing(),
            network: no_network(),
            mounts: Vec::new(),
            stdin: None,
            room: None,
            terminal: false,
            term: Term::new(),
            budget: None,
        }
    }
}
