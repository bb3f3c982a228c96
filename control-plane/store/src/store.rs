//! The store as its users see it: opening, writing, reading, watching, stopping.
//!
//! Any member serves. A write goes to the leader, over the peers' transport if that is another
//! member, and is answered once it is applied there; a linearizable read asks the leader for a
//! revision, waits until this member has it, and is answered here. Without a majority both end
//! within 2 s.
//!
//! Tasks, all owned by the store and joined by `shutdown` (see `tasks`):
//! - *leadership* follows who leads and notices when the member has stopped;
//! - *reads* gets read indexes, one for all readers that wait at that moment;
//! - *passing* brings writes to another member that leads, several at once (see `passing`);
//! - *housekeeping* looks at the free space of the disk, keeps the superblock's promise up to date
//!   and compacts the log when it has grown;
//! - *campaign* says whether this member may ask for votes;
//! - *compare* lets the members compare their states, while this one leads;
//! - *memory* and *files* look again at what is stored (see `scrub`);
//! - the writer thread (see `writer`), and openraft's own tasks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Engine as Disk;
use crate::errors::{CheckpointError, OpenError, ReadError, ShutdownError, WriteError};
use crate::faults::Faults;
use crate::keyring::Keyring;
use crate::log::{Flushed, Log};
use crate::machine::{Growth, Machine, Shown, Tools};
use crate::members::{Changer, FOUNDER, MemberId};
use crate::network::{Caller, Inbox, Peer, Peers, Places, Transport, no_transport};
use crate::open::{self, Opened, damaged};
use crate::passing::{self, PASSED_MAX, Passed};
use crate::promise;
use crate::raft::{Member, Place};
use crate::runtime::Patience;
use crate::scrub;
use crate::space::Room;
use crate::state::{Action, Entry, Precondition, Revision, Snapshot, Window, WindowError};
use crate::superblock::{self, Anchor, Identity, Superblock};
use crate::tasks;
use crate::watch::{Feed, Mark, Watch};
use crate::wire::Written;
use crate::writer::{Stop, Writer};

/// The largest key and value together. Kubernetes' objects end at 1.5 MiB, and Raft sends whole
/// entries.
pub const WRITE_BYTES_MAX: usize = 3 << 19;

/// A member that is alone must lead and have applied its log by then, else it does not open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Readers that may wait for a read index; behind them whoever reads waits.
pub(crate) const READERS_MAX: usize = 4096;

/// Nobody waits longer for a leader or a majority than this and the little that a question takes
/// which was asked just before: what is promised is 2 s.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(1400);

/// A write that another member applied is seen here by then, or the caller does not wait for it.
pub(crate) const SEE_OWN_WRITE: Duration = Duration::from_millis(500);

/// A member's own state counts as fresh if a majority, or the leader, was heard of so recently: a
/// few heartbeats.
const FRESH: Duration = Duration::from_millis(500);

/// A planned stop waits so long for another member to lead.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the store keeps its data.
#[derive(Clone, Debug)]
pub enum Engine {
    /// In this folder, in RocksDB.
    Rocks(PathBuf),
    /// Nowhere: gone with the store. For tests.
    Memory,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the data is.
    pub engine: Engine,
    /// Who this member is. Never given to another member, nor to this one after it lost its data.
    pub member_id: MemberId,
    /// What people call it.
    pub name: String,
    /// Where other members reach this one.
    pub address: String,
    /// Which cluster it belongs to. `None`: the one its folder names; whoever founds one with an
    /// empty folder names it by chance.
    pub cluster_id: Option<u128>,
    /// How much of the past is kept.
    pub window: Window,
    /// Encryption at rest; `None` writes everything as it is.
    pub keys: Option<Arc<Keyring>>,
    /// Faults that tests ask for.
    pub faults: Faults,
}

impl Config {
    /// A member, with everything else as it usually is.
    pub fn new(engine: Engine, member_id: MemberId, address: impl Into<String>) -> Config {
        let address = address.into();
        Config {
            engine,
            member_id,
            name: format!("member-{member_id}"),
            address,
            cluster_id: None,
            window: Window::default(),
            keys: None,
            faults: Faults::from_env(),
        }
    }

    /// The first member of a cluster.
    pub fn founder(engine: Engine, address: impl Into<String>) -> Config {
        Config::new(engine, FOUNDER, address)
    }
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
        leader: Option<MemberId>,
    },
}

/// The store. Clones are the same one.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Whether a write goes to another member when this one does not lead.
    pub(crate) forwards: bool,
    /// Whether what is put makes room, and so passes while the disk is nearly full.
    pub(crate) makes_room: bool,
}

pub(crate) struct Inner {
    pub(crate) identity: Identity,
    pub(crate) base: Option<PathBuf>,
    pub(crate) disk: Arc<dyn Disk>,
    /// What the disk is encrypted with, and backups are.
    pub(crate) keys: Option<Arc<Keyring>>,
    pub(crate) anchor: Arc<Anchor>,
    pub(crate) flushed: Flushed,
    pub(crate) member: Member,
    pub(crate) inbox: Inbox,
    pub(crate) caller: Caller,
    pub(crate) changer: Changer,
    pub(crate) feed: Arc<Feed>,
    pub(crate) writer: Writer,
    pub(crate) stop: Stop,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) shown: watch::Receiver<Shown>,
    pub(crate) quarantine: watch::Receiver<Option<String>>,
    /// What the last comparison of the members could not judge.
    pub(crate) suspicion: watch::Sender<Option<String>>,
    /// What is wrong with the files, though the store goes on.
    pub(crate) files_doubt: watch::Sender<Option<String>>,
    pub(crate) readers: mpsc::Sender<tasks::Reader>,
    pub(crate) passing: mpsc::Sender<Passed>,
    /// How much room the disk has, as `Room`'s number.
    pub(crate) room: Arc<AtomicU8>,
    /// Whether a majority of the voters has no room, as the leader last heard.
    pub(crate) peers_full: Arc<AtomicBool>,
    /// Whether the others say that this member is none any more.
    pub(crate) removed: Arc<AtomicBool>,
    /// Whether this member may lead, but for slow disks.
    pub(crate) fit: watch::Sender<bool>,
    /// Whether the state is at least what it was before the member stopped.
    pub(crate) recovered: Arc<AtomicBool>,
    /// Members that could not be asked yet what this one has promised them. A std mutex: sections
    /// are short and never await.
    pub(crate) witnesses: Mutex<Vec<Peer>>,
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

/// Where a write goes.
pub(crate) enum Target {
    Here,
    There(Peer),
    Nowhere,
}

impl Store {
    /// Opens the store of a member that is alone, and waits until it leads.
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        Store::open_with(config, no_transport()).await
    }

    /// Opens the store of a member that reaches others by `transport`. With an empty folder it
    /// founds a cluster of its own. While it is the only voter, this waits until it leads.
    pub async fn open_with(config: Config, transport: Transport) -> Result<Store, OpenError> {
        let place = Place { name: config.name.clone(), address: config.address.clone() };
        let store = Store::start(config, transport, true).await?;
        let member = &store.inner.member;
        let ready = match member.found(place).await {
            Ok(()) => member.ready(OPEN_TIMEOUT).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            // Why it did not start says more than how it ended.
            let _ = store.shutdown().await;
            return Err(OpenError::Raft(error));
        }
        if member.is_leading() {
            store.inner.recovered.store(true, Ordering::Relaxed);
        }
        let revision = store.current().revision();
        tracing::info!(revision, "store serves");
        Ok(store)
    }

    /// Opens the store of a member that with an empty folder waits to be taken into a cluster,
    /// whose id it must know; with a folder of its own it goes on.
    pub async fn join(config: Config, transport: Transport) -> Result<Store, OpenError> {
        Store::start(config, transport, false).await
    }

    async fn start(config: Config, transport: Transport, founds: bool) -> Result<Store, OpenError> {
        let asked = config.clone();
        let opened = tokio::task::spawn_blocking(move || open::open(&asked, founds));
        let opened = opened.await.expect("opening the disk does not panic")?;
        let Opened { base, disk, anchor, space, restored, held } = opened;
        let (identity, faults, keys) = (anchor.identity(), config.faults, config.keys);
        let id = identity.member_id;
        let caller = Caller::new(identity, transport, faults.clone());
        let asked = promise::ask(&caller, restored.others(id), || held).await;
        let silent = asked.map_err(|broken| {
            disk.close();
            broken.refused(base.as_deref())
        })?;

        let stop = Stop::new();
        let (writer, thread) =
            Writer::start(disk.clone(), stop.clone(), faults.clone()).map_err(OpenError::Thread)?;
        let log = Log::open(disk.clone(), writer.clone(), anchor.clone(), faults.clone());
        let log = log.map_err(|error| damaged(base.as_deref(), error))?;
        let (flushed, patience) = (log.flushed(), log.patience());
        let feed = Feed::new(config.window, restored.state.snapshot(), faults.clone());
        let growth = Arc::new(Growth::default());
        let (quarantine, quarantined) = watch::channel(None);
        let places = Places::default();
        let tools = Tools {
            engine: disk.clone(),
            writer: writer.clone(),
            feed: feed.clone(),
            growth: growth.clone(),
            quarantine,
            places: places.clone(),
            stop: stop.clone(),
            faults: faults.clone(),
        };
        let machine = Machine::new(restored, tools);
        let shown = machine.shown();
        let peers = Peers::new(caller.clone(), places, log.clone());
        let member = Member::start(id, peers, log, machine).await;
        let member = member.map_err(OpenError::Raft)?;

        let room = Arc::new(AtomicU8::new(Room::Enough as u8));
        let (tell, leadership) = watch::channel(Leadership::Follower { leader: None });
        let (readers, waiting) = mpsc::channel(READERS_MAX);
        let (passing, passed) = mpsc::channel(PASSED_MAX);
        let store = Store {
            inner: Arc::new(Inner {
                identity,
                base,
                disk: disk.clone(),
                keys,
                anchor: anchor.clone(),
                flushed: flushed.clone(),
                inbox: Inbox::new(member.clone(), disk, room.clone(), faults.clone()),
                caller,
                changer: Changer::new(member.clone(), faults.clone()),
                member: member.clone(),
                feed: feed.clone(),
                writer: writer.clone(),
                stop,
                leadership,
                shown,
                quarantine: quarantined,
                suspicion: watch::Sender::new(None),
                files_doubt: watch::Sender::new(None),
                readers,
                passing,
                room: room.clone(),
                peers_full: Arc::default(),
                removed: Arc::default(),
                fit: watch::Sender::new(true),
                recovered: Arc::default(),
                witnesses: Mutex::new(silent),
                tasks: TaskTracker::new(),
                shutdown: CancellationToken::new(),
                thread: Mutex::new(Some(thread)),
            }),
            forwards: true,
            makes_room: false,
        };
        let house = tasks::House { member, growth, space, room, flushed, anchor, feed, writer };
        store.spawn(tell, (waiting, passed), patience, house);
        tracing::info!(member = id, revision = store.current().revision(), "store opened");
        Ok(store)
    }

    /// Starts the tasks.
    fn spawn(
        &self,
        tell: watch::Sender<Leadership>,
        (waiting, passed): (mpsc::Receiver<tasks::Reader>, mpsc::Receiver<Passed>),
        patience: Patience,
        house: tasks::House,
    ) {
        let Inner { tasks, shutdown, member, feed, stop, fit, caller, .. } = &*self.inner;
        let end = (stop.clone(), shutdown.clone());
        tasks.spawn(tasks::follow(member.clone(), tell, feed.clone(), end));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(tasks::keep_house(house)));
        let campaign = tasks::campaign(member.clone(), fit.subscribe(), patience.subscribe());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(campaign));
        let pass_on = passing::pass_on(caller.clone(), passed);
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(pass_on));
        // The other tasks hold the store weakly: they must not keep it alive.
        let weak = || Arc::downgrade(&self.inner);
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(tasks::reads(weak(), waiting)));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(tasks::compare(weak())));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(tasks::witnesses(weak())));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(scrub::memory(weak())));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(scrub::files(weak())));
        let recover = tasks::recover(weak(), member.clone());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(recover));
    }

    /// The same store, but what is written through it is not passed on when this member does not
    /// lead: the write fails with `NotLeader`. For those who act as the leader.
    pub fn leading(&self) -> Store {
        Store { forwards: false, ..self.clone() }
    }

    /// The same store, for puts on the way to a delete (marks and finalizers): they pass while the
    /// disk is nearly full, else nothing could be deleted then.
    pub fn making_room(&self) -> Store {
        Store { makes_room: true, ..self.clone() }
    }

    /// Which cluster this is.
    pub fn cluster_id(&self) -> u128 {
        self.inner.identity.cluster_id
    }

    /// Which member this is.
    pub fn member_id(&self) -> MemberId {
        self.inner.identity.member_id
    }

    /// The newest state this member knows; may be behind the leader's.
    pub fn current(&self) -> Snapshot {
        self.inner.feed.current()
    }

    /// The newest state this member knows, if it is not old: a majority answers this leader, or the
    /// leader spoke to this member a moment ago. Good for judging what the store judges again when
    /// it is written; whoever needs what was just written elsewhere takes [`Store::read`].
    pub fn fresh(&self) -> Option<Snapshot> {
        let inner = &self.inner;
        let contact = match *inner.leadership.borrow() {
            Leadership::Leader { .. } => inner.member.majority_age(),
            Leadership::Follower { .. } => inner.inbox.heard(),
        };
        let sound = inner.quarantine.borrow().is_none() && inner.recovered.load(Ordering::Relaxed);
        (sound && contact.is_some_and(|ago| ago < FRESH)).then(|| self.current())
    }

    /// A state that shows every write answered before this call. One question to the other members
    /// serves all who wait.
    pub async fn read(&self) -> Result<Snapshot, ReadError> {
        if self.inner.quarantine.borrow().is_some() {
            return Err(ReadError::Quarantined);
        }
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let (sender, index) = oneshot::channel();
        let asked = async {
            self.inner.readers.send(sender).await.map_err(|_| ReadError::Stopped)?;
            index.await.map_err(|_| ReadError::Stopped)?
        };
        let revision = tokio::time::timeout_at(deadline, asked).await;
        let revision = revision.map_err(|_| ReadError::NoMajority)??;
        tokio::select! {
            reached = tokio::time::timeout_at(deadline, self.reached(revision)) => match reached {
                Ok(true) => Ok(self.current()),
                Ok(false) => Err(ReadError::Stopped),
                Err(_) => Err(ReadError::Behind),
            },
            _ = self.inner.stop.stopped() => Err(ReadError::Stopped),
        }
    }

    /// The state at exactly this revision, if it is in the window.
    pub fn at(&self, revision: Revision) -> Result<Snapshot, WindowError> {
        self.inner.feed.at(revision)
    }

    /// Waits until this member has applied a revision; false if the store stopped before. The
    /// caller brings the timeout.
    pub async fn reached(&self, revision: Revision) -> bool {
        let mut current = self.inner.feed.subscribe();
        tokio::select! {
            biased;
            reached = current.wait_for(|state| state.revision() >= revision) => reached.is_ok(),
            _ = self.inner.stop.stopped() => false,
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
        match self.write(key, precondition, Action::Put(value.clone())).await? {
            Written::Put { created, modified } => Ok(Entry { value, created, modified }),
            Written::Deleted { .. } => unreachable!("a put does not delete"),
        }
    }

    /// Removes a key if it exists and the precondition holds; returns when, and what it last held.
    pub async fn delete(
        &self,
        key: Bytes,
        precondition: Precondition,
    ) -> Result<(Revision, Entry), WriteError> {
        match self.write(key, precondition, Action::Delete).await? {
            Written::Deleted { revision, last } => Ok((revision, last)),
            Written::Put { .. } => unreachable!("a delete does not put"),
        }
    }

    pub(crate) fn target(&self) -> Target {
        self.inner.target()
    }

    /// The changes of all keys with a prefix after a revision, which may be one still to come.
    pub fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, WindowError> {
        self.inner.feed.watch(prefix, None, after)
    }

    /// Those of them after which, or before which, a mark stands in the value; some others may be among
    /// them. However many watch so, each change costs only those whom it concerns.
    pub fn watch_marked(
        &self,
        prefix: Bytes,
        mark: Mark,
        after: Revision,
    ) -> Result<Watch, WindowError> {
        self.inner.feed.watch(prefix, Some(mark), after)
    }

    /// The keys of encryption at rest, for whoever becomes a member.
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        self.inner.keys.clone()
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Copies the store's files into a folder that must not exist yet, while it runs. The folder is
    /// a store's folder as this member's: never opened beside this one, but read, or made into
    /// another cluster's. Returns the revision of the state in it.
    pub async fn checkpoint(&self, folder: &Path) -> Result<Revision, CheckpointError> {
        if self.inner.base.is_none() {
            return Err(CheckpointError::InMemory);
        }
        let disk = |error: &dyn std::fmt::Display| CheckpointError::Disk(error.to_string());
        // What was applied was handed to the writer before: when this is written, so is that.
        let flushed = self.inner.writer.write(crate::engine::Batch::default()).await;
        flushed.map_err(|_| CheckpointError::Stopped(self.current().revision()))?;
        let (engine, folder) = (self.inner.disk.clone(), folder.to_owned());
        let (identity, keys) = (self.inner.identity, self.inner.keys.clone());
        let copying = tokio::task::spawn_blocking(move || {
            std::fs::create_dir(&folder).map_err(|error| disk(&error))?;
            let database = superblock::database(&folder, 1);
            engine.checkpoint(&database).map_err(|error| disk(&error))?;
            let (found, revision) = open::look(&database, keys).map_err(|error| disk(&error))?;
            let block = Superblock { promise: found.promise(), ..Superblock::new(identity) };
            superblock::write(&folder, &block).map_err(|error| disk(&error))?;
            Ok::<_, CheckpointError>(revision)
        });
        copying.await.map_err(|error| disk(&error))?
    }

    /// Waits until the store has stopped, and says why: it was shut down, or it failed. A store
    /// that failed is to end: only a new one may open the folder again.
    pub async fn stopped(&self) -> String {
        self.inner.stop.stopped().await.as_ref().to_owned()
    }

    /// Stops the store and waits until its tasks have ended and its files are closed, so that it
    /// can be opened again. A leader lets another member lead first. All clones stop; a second call
    /// does nothing.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        if matches!(self.target(), Target::Here) && self.inner.member.view().voters.len() > 1 {
            let change = crate::members::Change::Transfer(None);
            let handed = self.inner.changer.perform(change);
            // Whether or not it worked, the others find a leader.
            let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, handed).await;
        }
        self.end().await
    }

    /// Stops at once.
    pub(crate) async fn end(&self) -> Result<(), ShutdownError> {
        let inner = &self.inner;
        inner.shutdown.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.writer.close().await;
        let thread = inner.thread.lock().expect("no section of this lock panics").take();
        let (disk, flushed, anchor) =
            (inner.disk.clone(), inner.flushed.clone(), inner.anchor.clone());
        let closed = tokio::task::spawn_blocking(move || {
            let joined = thread.map_or(Ok(()), JoinHandle::join);
            disk.close();
            if let Err(error) = flushed.promise(&anchor) {
                tracing::warn!(%error, "the superblock could not be renewed at the end");
            }
            joined
        });
        match closed.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ShutdownError),
        }
    }
}

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod net;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod tests;
