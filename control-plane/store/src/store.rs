//! The store as its users see it: opening, writing, reading, watching, stopping.
//!
//! Tasks, all owned by the store and joined by `shutdown`:
//! - *leadership* follows who leads and notices when the member has stopped;
//! - *reads* asks the leader for a read index, once for all readers that wait at that moment;
//! - *housekeeping* looks at the free space of the disk and compacts the log when it has grown;
//! - the writer thread (see `writer`), and openraft's own tasks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::memory::Memory;
use crate::engine::rocks::Rocks;
use crate::engine::{Column, Engine as Disk, EngineError, KEY_BYTES_MAX};
use crate::log::Log;
use crate::machine::{Growth, Machine};
use crate::network::{Inbox, Peers, Transport, no_transport};
use crate::raft::{Member, StartError};
use crate::state::{
    Action, Command, Entry, Outcome, Precondition, Revision, Snapshot, Window, WindowError,
};
use crate::watch::{Feed, Watch};
use crate::writer::{Stop, Writer};

/// The largest key and value together. Kubernetes' objects end at 1.5 MiB, and Raft sends whole
/// entries.
pub const WRITE_BYTES_MAX: usize = 3 << 19;

/// A member that is alone must lead and have applied its log by then, else it does not open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Readers that may wait for a read index; behind them whoever reads waits.
const READERS_MAX: usize = 4096;

/// How often the free space is looked at.
const DISK_CHECK_EVERY: Duration = Duration::from_secs(2);

/// A disk counts as full when this part of it is used …
const DISK_USED_MAX: f64 = 0.9;

/// … unless so much is free anyway: a large disk at 90 % has room for years of this.
const DISK_FREE_ENOUGH: u64 = 4 << 30;

/// Key of `Column::Meta`: whose data this is.
const IDENTITY: &[u8] = b"identity";

/// Where the store keeps its data.
#[derive(Clone, Debug)]
pub enum Engine {
    /// In this folder, in RocksDB.
    Rocks(PathBuf),
    /// Nowhere: gone with the store. For tests.
    Memory,
}

impl Engine {
    /// The folder on disk; empty, and so no folder, for memory.
    fn folder(&self) -> PathBuf {
        match self {
            Engine::Rocks(path) => path.clone(),
            Engine::Memory => PathBuf::new(),
        }
    }
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the data is.
    pub engine: Engine,
    /// Who this member is. Never given to another member, nor to this one after it lost its data.
    pub member_id: u64,
    /// Where other members reach this one.
    pub address: String,
    /// How much of the past is kept.
    pub window: Window,
}

/// Who leads, as this member knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This member does.
    Leader {
        /// Its term; a later leader has a greater one.
        term: u64,
    },
    /// Another one does, or nobody known.
    Follower {
        /// The leader's member id.
        leader: Option<u64>,
    },
}

/// How the store is.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether writes and reads have a chance here: the store runs and a leader is known.
    pub serving: bool,
    /// Why not, in one sentence; `None` while it serves.
    pub reason: Option<String>,
    /// Who leads.
    pub leadership: Leadership,
    /// The newest revision applied here.
    pub revision: Revision,
    /// Keys in the store.
    pub objects: usize,
    /// Oldest revision that can still be had.
    pub oldest_revision: Revision,
    /// Changes in the window.
    pub window_revisions: usize,
    /// Memory the window needs, estimated.
    pub window_bytes: u64,
    /// Watches that run.
    pub watchers: usize,
    /// Watches that were cut off since the start.
    pub watchers_cut_off: u64,
    /// Changes handed to the disk since the start.
    pub disk_changes: u64,
    /// Fsyncs since the start; far fewer than writes, when many write at once.
    pub disk_fsyncs: u64,
    /// Whether new objects are refused because the disk is nearly full.
    pub disk_full: bool,
}

/// Why a store does not open. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store in {path:?} is in use by another process; stop that process, or choose another \
         data folder"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// What lies there cannot be trusted.
    #[error(
        "the store in {path:?} is damaged ({detail}); keep a copy of the folder, then restore it \
         from a backup or let this machine join again as a new member with an empty folder"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The folder belongs to somebody else.
    #[error(
        "the store in {path:?} belongs to member {found}, this is member {wanted}; start the \
         member with its own folder"
    )]
    OtherMember {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asked.
        wanted: u64,
    },
    /// The folder cannot be used.
    #[error("the folder {path:?} cannot be used for a store; check its owner, rights and disk")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Raft does not start.
    #[error("the store's Raft member did not start; its log says more, a restart is safe")]
    Raft(#[source] StartError),
    /// The process cannot start a thread.
    #[error("the store's writer thread did not start; check the limits of the process")]
    Thread(#[source] std::io::Error),
}

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Its precondition does not hold.
    #[error("the precondition does not hold")]
    Conflict {
        /// What the key held when the write was judged.
        current: Option<Entry>,
    },
    /// Another member takes the writes. Nothing happened.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
        /// Where it is.
        address: Option<String>,
    },
    /// Not answered in time, or the leader changed meanwhile: it may happen, now or later. Read, or
    /// try again with a precondition.
    #[error("it is not known whether the write happened")]
    Unknown,
    /// The disk is nearly full. Deletes still work.
    #[error("the disk of the control plane is nearly full; delete objects or make room")]
    Full,
    /// Key and value are too large.
    #[error("{size} bytes are too many for one object, {limit} are allowed")]
    TooLarge {
        /// How large they are.
        size: usize,
        /// How large they may be.
        limit: usize,
    },
    /// The store has stopped; `health` and `stopped` say why.
    #[error("the store has stopped")]
    Stopped,
}

/// Why a linearizable read is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another member leads.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
        /// Where it is.
        address: Option<String>,
    },
    /// This member leads, but the others do not answer in time.
    #[error("no majority of members answers")]
    NoMajority,
    /// The store has stopped; `health` and `stopped` say why.
    #[error("the store has stopped")]
    Stopped,
}

/// The writer thread panicked; what was answered is on disk all the same.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store's writer thread panicked, see the log")]
pub struct ShutdownError;

/// The store. Clones are the same one.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    member: Member,
    inbox: Inbox,
    feed: Arc<Feed>,
    writer: Writer,
    stop: Stop,
    leadership: watch::Receiver<Leadership>,
    readers: mpsc::Sender<oneshot::Sender<Result<Revision, ReadError>>>,
    disk_full: Arc<AtomicBool>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Taken by whoever joins it.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A store that nobody holds any more ends by itself, only `shutdown` waits for it.
impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Store {
    /// Opens the store of a member that is alone, and waits until it leads.
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        Store::open_with(config, no_transport()).await
    }

    /// Opens the store of a member that reaches others by `transport`. With an empty folder it
    /// founds a cluster of its own. While it is the only voter, this waits until it leads.
    pub async fn open_with(config: Config, transport: Transport) -> Result<Store, OpenError> {
        let address = config.address.clone();
        let store = Store::join(config, transport).await?;
        let member = &store.0.member;
        let ready = match member.found(address).await {
            Ok(()) => member.ready(OPEN_TIMEOUT).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            // Why it did not start says more than how it ended.
            let _ = store.shutdown().await;
            return Err(OpenError::Raft(error));
        }
        let revision = store.current().revision();
        tracing::info!(revision, "store serves");
        Ok(store)
    }

    /// Opens the store of a member that with an empty folder waits to be taken into a cluster.
    pub async fn join(config: Config, transport: Transport) -> Result<Store, OpenError> {
        let id = config.member_id;
        let folder = config.engine.folder();
        let opened = tokio::task::spawn_blocking(move || open_disk(&config.engine, id));
        let (disk, restored) = opened.await.expect("opening the disk does not panic")?;

        let stop = Stop::new();
        let (writer, thread) =
            Writer::start(disk.clone(), stop.clone()).map_err(OpenError::Thread)?;
        let log = Log::open(disk.clone(), writer.clone());
        let log = log.map_err(|error| damaged(&folder, error))?;
        let feed = Feed::new(config.window, restored.state.snapshot());
        let growth = Arc::new(Growth::default());
        let machine = Machine::new(restored, writer.clone(), feed.clone(), growth.clone());
        let peers = Peers::new(id, transport);
        let member = Member::start(id, peers, log, machine).await;
        let member = member.map_err(OpenError::Raft)?;

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (tell, leadership) = watch::channel(Leadership::Follower { leader: None });
        let end = (stop.clone(), shutdown.clone());
        tasks.spawn(follow(member.clone(), tell, feed.clone(), end));
        let (readers, waiting) = mpsc::channel(READERS_MAX);
        let reads = reads(member.clone(), waiting);
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(reads));
        let disk_full = Arc::new(AtomicBool::new(false));
        let house = keep_house(member.clone(), growth, folder, disk_full.clone());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(house));

        tracing::info!(member = id, revision = feed.current().revision(), "store opened");
        Ok(Store(Arc::new(Inner {
            disk,
            inbox: Inbox::new(member.clone()),
            member,
            feed,
            writer,
            stop,
            leadership,
            readers,
            disk_full,
            tasks,
            shutdown,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// The newest state this member knows; may be behind the leader's.
    pub fn current(&self) -> Snapshot {
        self.0.feed.current()
    }

    /// A state that shows every write answered before this call. One question to the other members
    /// serves all who wait.
    pub async fn read(&self) -> Result<Snapshot, ReadError> {
        let (sender, index) = oneshot::channel();
        self.0.readers.send(sender).await.map_err(|_| ReadError::Stopped)?;
        let revision = index.await.map_err(|_| ReadError::Stopped)??;
        tokio::select! {
            _ = self.reached(revision) => Ok(self.current()),
            _ = self.0.stop.stopped() => Err(ReadError::Stopped),
        }
    }

    /// The state at exactly this revision, if it is in the window.
    pub fn at(&self, revision: Revision) -> Result<Snapshot, WindowError> {
        self.0.feed.at(revision)
    }

    /// Waits until this member has applied a revision; false if the store stopped before. The
    /// caller brings the timeout.
    pub async fn reached(&self, revision: Revision) -> bool {
        let mut current = self.0.feed.subscribe();
        tokio::select! {
            biased;
            reached = current.wait_for(|state| state.revision() >= revision) => reached.is_ok(),
            _ = self.0.stop.stopped() => false,
        }
    }

    /// Sets a key if the precondition holds, and returns it as it now is.
    pub async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        precondition: Precondition,
    ) -> Result<Entry, WriteError> {
        let size = key.len() + value.len();
        if size > WRITE_BYTES_MAX {
            return Err(WriteError::TooLarge { size, limit: WRITE_BYTES_MAX });
        }
        if self.0.disk_full.load(Ordering::Relaxed) {
            return Err(WriteError::Full);
        }
        match self.write(key, precondition, Action::Put(value)).await? {
            (_, Outcome::Put { entry, .. }) => Ok(entry),
            (_, Outcome::Refused { current }) => Err(WriteError::Conflict { current }),
            (_, outcome) => unreachable!("a put leads to {outcome:?}"),
        }
    }

    /// Removes a key if it exists and the precondition holds; returns when, and what it last held.
    pub async fn delete(
        &self,
        key: Bytes,
        precondition: Precondition,
    ) -> Result<(Revision, Entry), WriteError> {
        match self.write(key, precondition, Action::Delete).await? {
            (revision, Outcome::Deleted { last }) => Ok((revision, last)),
            (_, Outcome::Refused { current }) => Err(WriteError::Conflict { current }),
            (_, outcome) => unreachable!("a delete leads to {outcome:?}"),
        }
    }

    async fn write(
        &self,
        key: Bytes,
        precondition: Precondition,
        action: Action,
    ) -> Result<(Revision, Outcome), WriteError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(WriteError::TooLarge { size: key.len(), limit: KEY_BYTES_MAX });
        }
        if self.0.stop.reason().is_some() {
            return Err(WriteError::Stopped);
        }
        let time_ms = now_ms();
        self.0.member.propose(Command { time_ms, key, precondition, action }).await
    }

    /// The changes of all keys with a prefix after a revision, which may be one still to come.
    pub fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, WindowError> {
        self.0.feed.watch(prefix, after)
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// Answers a request another member's transport brought. The caller has checked who it is.
    pub async fn handle_peer(&self, request: Bytes) -> Bytes {
        self.0.inbox.answer(&request).await
    }

    /// How the store is, and its sizes.
    pub fn health(&self) -> Health {
        let leadership = *self.0.leadership.borrow();
        let disk_full = self.0.disk_full.load(Ordering::Relaxed);
        let current = self.current();
        let sizes = self.0.feed.sizes();
        let written = self.0.writer.written();
        let stopped = self.0.stop.reason();
        let leaderless = leadership == Leadership::Follower { leader: None };
        let reason = match &stopped {
            Some(reason) => Some(format!("the store has stopped: {reason}")),
            None if leaderless => Some("no leader is known".to_owned()),
            None => None,
        };
        Health {
            serving: stopped.is_none() && !leaderless,
            reason,
            leadership,
            revision: current.revision(),
            objects: current.len(),
            oldest_revision: sizes.oldest,
            window_revisions: sizes.revisions,
            window_bytes: sizes.bytes,
            watchers: sizes.watchers,
            watchers_cut_off: sizes.cut_off,
            disk_changes: written.changes.load(Ordering::Relaxed),
            disk_fsyncs: written.fsyncs.load(Ordering::Relaxed),
            disk_full,
        }
    }

    /// Waits until the store has stopped and says why. After a failure of the disk the process is
    /// to end: only a new one may open the folder again.
    pub async fn stopped(&self) -> String {
        self.0.stop.stopped().await.as_ref().to_owned()
    }

    /// Stops the store and waits until its tasks have ended and its files are closed, so that it
    /// can be opened again. All clones stop; a second call does nothing.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.writer.close().await;
        let thread = self.0.thread.lock().expect("no section of this lock panics").take();
        let disk = self.0.disk.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let joined = thread.map_or(Ok(()), JoinHandle::join);
            disk.close();
            joined
        });
        match closed.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ShutdownError),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

fn damaged(path: &Path, error: EngineError) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), detail: error.to_string() }
}

/// Opens the engine, makes sure that it is this member's, and reads the state.
fn open_disk(
    engine: &Engine,
    member_id: u64,
) -> Result<(Arc<dyn Disk>, crate::machine::Restored), OpenError> {
    let disk: Arc<dyn Disk> = match engine {
        Engine::Rocks(path) => Arc::new(Rocks::open(path)?),
        Engine::Memory => Arc::new(Memory::new()),
    };
    let path = engine.folder();
    let found = crate::log::read_meta(&*disk, IDENTITY, |decoder| decoder.u64());
    match found.map_err(|error| damaged(&path, error))? {
        Some(found) if found != member_id => {
            return Err(OpenError::OtherMember { path, found, wanted: member_id });
        }
        Some(_) => {}
        None => {
            let mut batch = crate::engine::Batch::default();
            let record = crate::codec::encode(8, &member_id, |encoder, id| encoder.u64(*id));
            batch.put(Column::Meta, Bytes::from_static(IDENTITY), record);
            disk.write(&batch, true).map_err(|error| damaged(&path, error))?;
        }
    }
    let restored = Machine::read(&*disk).map_err(|error| damaged(&path, error))?;
    Ok((disk, restored))
}

/// The leadership task; it also ends the Raft member when the store is shut down or dropped.
async fn follow(
    member: Member,
    tell: watch::Sender<Leadership>,
    feed: Arc<Feed>,
    (stop, shutdown): (Stop, CancellationToken),
) {
    let following = member.follow_leadership(|leadership| {
        let changed = tell.send_if_modified(|current| {
            let changed = *current != leadership;
            *current = leadership;
            changed
        });
        if changed {
            tracing::info!(?leadership, "leadership changed");
        }
    });
    tokio::select! {
        reason = following => stop.stop(&reason),
        () = shutdown.cancelled() => {
            stop.stop("it was shut down");
            member.shutdown().await;
            tell.send_replace(Leadership::Follower { leader: None });
        }
    }
    feed.stop();
}

/// The reads task: everyone who waits when a read index is asked for gets that one.
async fn reads(
    member: Member,
    mut waiting: mpsc::Receiver<oneshot::Sender<Result<Revision, ReadError>>>,
) {
    let mut readers = Vec::new();
    while waiting.recv_many(&mut readers, READERS_MAX).await > 0 {
        let index = member.read_index().await;
        for reader in readers.drain(..) {
            // Whoever does not wait any more does not need the answer.
            let _ = reader.send(index.clone());
        }
    }
}

/// The housekeeping task.
async fn keep_house(member: Member, growth: Arc<Growth>, path: PathBuf, full: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(DISK_CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let is_full = disk_is_full(&path);
                if full.swap(is_full, Ordering::Relaxed) != is_full {
                    tracing::warn!(is_full, "free space of the store's disk changed");
                }
            }
            _ = growth.compact.notified() => member.compact().await,
        }
    }
}

/// Whether the disk under a folder is nearly full; a folder that is none (memory) never is.
fn disk_is_full(path: &Path) -> bool {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else {
        return false;
    };
    let unit = stat.fragment_size() as u64;
    let total = unit.saturating_mul(stat.blocks() as u64);
    let free = unit.saturating_mul(stat.blocks_available() as u64);
    is_full(total, free)
}

fn is_full(total: u64, free: u64) -> bool {
    let used = total.saturating_sub(free) as f64 / total.max(1) as f64;
    used >= DISK_USED_MAX && free < DISK_FREE_ENOUGH
}

#[cfg(test)]
mod tests;
