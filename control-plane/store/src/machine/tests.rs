//! openraft's own storage suite over both engines, and what it does not ask: that the state comes
//! back from disk, and that a snapshot is not changed by what is applied after it.

use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::RaftLogStorage;
use openraft::testing::log::{StoreBuilder, Suite};

use super::*;
use crate::engine::memory::Memory;
use crate::engine::rocks::Rocks;
use crate::log::Log;
use crate::state::{Precondition, Window};
use crate::superblock::{Anchor, Identity, Superblock};

fn block() -> Superblock {
    Superblock::new(Identity { cluster_id: 1, member_id: 1 })
}

fn open_with(engine: Arc<dyn Engine>, anchor: Arc<Anchor>, faults: Faults) -> (Log, Machine) {
    let stop = Stop::new();
    let (writer, _) = Writer::start(engine.clone(), stop.clone(), faults.clone())
        .expect("a thread can be started");
    let log = Log::open(engine.clone(), writer.clone(), anchor, faults.clone());
    let log = log.expect("the log is sound");
    let restored = Machine::read(&*engine, &faults).expect("the state is sound");
    let feed = Feed::new(Window::default(), restored.state.snapshot(), faults.clone());
    let (quarantine, _) = watch::channel(None);
    let growth = Arc::default();
    let places = crate::network::Places::default();
    let tools = Tools { engine, writer, feed, growth, quarantine, places, stop, faults };
    (log, Machine::new(restored, tools))
}

fn open(engine: Arc<dyn Engine>) -> (Log, Machine) {
    let anchor = Arc::new(Anchor::new(None, block(), Faults::default()));
    open_with(engine, anchor, Faults::default())
}

struct OnMemory;

impl StoreBuilder<Types, Log, Machine> for OnMemory {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<Types>> {
        let (log, machine) = open(Arc::new(Memory::new()));
        Ok(((), log, machine))
    }
}

struct OnRocks;

impl StoreBuilder<Types, Log, Machine, tempfile::TempDir> for OnRocks {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, Machine), StorageError<Types>> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let base = folder.path();
        let anchor = Arc::new(Anchor::new(Some(base.to_owned()), block(), Faults::default()));
        let engine = Rocks::open(base, anchor.clone(), true, Faults::default());
        let engine = Arc::new(engine.expect("an empty folder can be opened"));
        let (log, machine) = open_with(engine, anchor, Faults::default());
        Ok((folder, log, machine))
    }
}

#[tokio::test]
async fn openraft_accepts_the_memory_engine() {
    Suite::test_all(OnMemory).await.expect("the suite passes");
}

#[tokio::test]
async fn openraft_accepts_the_rocks_engine() {
    Suite::test_all(OnRocks).await.expect("the suite passes");
}

fn command(index: u64, key: &'static str, action: Action) -> LogEntry {
    let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
    let key = Bytes::from_static(key.as_bytes());
    let command = Command { time_ms: index, id: 0, key, precondition: Precondition::Any, action };
    LogEntry::new(log_id, EntryPayload::Normal(command))
}

fn put(index: u64, key: &'static str, value: &'static str) -> LogEntry {
    command(index, key, Action::Put(Bytes::from_static(value.as_bytes())))
}

async fn apply(machine: &mut Machine, entries: Vec<LogEntry>) {
    let entries = futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(entries).await.expect("memory does not fail");
}

/// Waits until all that was handed to the writer is written.
async fn settle(machine: &Machine) {
    machine.tools.writer.write(Batch::default()).await.expect("the writer runs");
}

fn show(root: &Root) -> String {
    let show = |(key, entry): (&Bytes, &Entry)| {
        let (key, value) = (key.escape_ascii(), entry.value.escape_ascii());
        format!("{key}={value}@{}/{}", entry.created, entry.modified)
    };
    root.iter().map(show).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn the_state_comes_back_from_disk() {
    let engine: Arc<dyn Engine> = Arc::new(Memory::new());
    let (_, mut machine) = open(engine.clone());
    let entries = vec![
        put(3, "a", "1"),
        put(4, "b", "2"),
        command(5, "a", Action::Delete),
        put(6, "c", "3"),
        put(7, "b", "4"),
        command(8, "nothing", Action::Delete),
    ];
    apply(&mut machine, entries).await;
    settle(&machine).await;

    let (_, mut again) = open(engine);
    assert_eq!(show(&again.state.root), "b=4@4/7 c=3@6/6");
    assert_eq!(show(&again.state.root), show(&machine.state.root));
    assert_eq!(again.state.bytes, machine.state.bytes);
    assert_eq!((again.state.revision, again.state.time_ms), (8, 8));
    let (applied, membership) = again.applied_state().await.expect("reads memory");
    assert_eq!(applied.map(|log_id| log_id.index), Some(8));
    assert_eq!(membership, machine.applied.membership);
}

#[tokio::test]
async fn a_snapshot_stands_still_and_replaces_the_whole_state() {
    let (_, mut leader) = open(Arc::new(Memory::new()));
    apply(&mut leader, vec![put(1, "a", "1"), put(2, "b", "2")]).await;
    let mut builder = leader.get_snapshot_builder().await;
    apply(&mut leader, vec![put(3, "a", "3")]).await;
    let snapshot = builder.build_snapshot().await.expect("a snapshot is a root");
    assert_eq!(show(&snapshot.snapshot.root), "a=1@1/1 b=2@2/2");

    let engine: Arc<dyn Engine> = Arc::new(Memory::new());
    let (_, mut follower) = open(engine.clone());
    apply(&mut follower, vec![put(1, "z", "old")]).await;
    let mut watch = follower.tools.feed.watch(Bytes::new(), None, 1).expect("the window has it");
    let Snapshot { meta, snapshot: image } = snapshot;
    follower.install_snapshot(&meta, image).await.expect("memory does not fail");

    assert_eq!(follower.tools.feed.current().revision(), 2);
    assert_eq!(show(&follower.state.root), "a=1@1/1 b=2@2/2");
    assert_eq!(watch.next().await.err(), Some(crate::WatchEnd::Slow));
    let (_, again) = open(engine);
    assert_eq!(show(&again.state.root), "a=1@1/1 b=2@2/2");
}

/// Writes batch after batch, and remembers them, so that a power cut can be tried after each.
#[derive(Default)]
struct Recorder {
    batches: Mutex<Vec<(Batch, bool)>>,
    live: Memory,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Recorder {
    /// The disk after a power cut that leaves only the first batches.
    fn after(&self, count: usize) -> Arc<dyn Engine> {
        let engine = Memory::new();
        let batches = self.batches.lock().expect("the test does not panic here");
        for (batch, durable) in batches.iter().take(count) {
            engine.write(batch, *durable).expect("memory does not fail");
        }
        Arc::new(engine)
    }

    fn len(&self) -> usize {
        self.batches.lock().expect("the test does not panic here").len()
    }

    /// How many batches are surely on disk.
    fn durable(&self) -> usize {
        let batches = self.batches.lock().expect("the test does not panic here");
        batches.iter().rposition(|(_, durable)| *durable).map_or(0, |last| last + 1)
    }
}

impl Engine for Recorder {
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError> {
        self.live.write(batch, durable)?;
        let mut batches = self.batches.lock().expect("the test does not panic here");
        batches.push((batch.clone(), durable));
        Ok(())
    }

    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.live.get(column, key)
    }

    fn scan(
        &self,
        column: Column,
        from: &[u8],
        visit: &mut crate::engine::Visit,
    ) -> Result<(), EngineError> {
        self.live.scan(column, from, visit)
    }

    fn last(&self, column: Column) -> Result<Option<crate::engine::Pair>, EngineError> {
        self.live.last(column)
    }

    fn stage(&self) -> Result<Stage, EngineError> {
        self.live.stage()
    }

    fn fill(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.live.fill(stage, batch)
    }

    fn adopt(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.live.adopt(stage, batch)
    }

    fn checkpoint(&self, folder: &std::path::Path) -> Result<(), EngineError> {
        self.live.checkpoint(folder)
    }

    fn close(&self) {}
}

/// Applies writes one by one and cuts the power after every batch: the state must be one that was,
/// as its hash and applied index say. Returns the first cut that breaks this.
async fn cut_everywhere(faults: Faults) -> Option<String> {
    let engine = Arc::new(Recorder::default());
    let anchor = Arc::new(Anchor::new(None, block(), Faults::default()));
    let (_, mut machine) = open_with(engine.clone(), anchor, faults);
    let mut states = vec![show(&Root::new())];
    for index in 1..=40 {
        let key = ["a", "b", "c", "d", "e"][index as usize % 5];
        let action = match index % 7 {
            0 => Action::Delete,
            _ => Action::Put(Bytes::from(format!("{index}"))),
        };
        apply(&mut machine, vec![command(index, key, action)]).await;
        settle(&machine).await;
        states.push(show(&machine.state.root));
    }
    for cut in 0..=engine.len() {
        let restored = match Machine::read(&*engine.after(cut), &Faults::default()) {
            Ok(restored) => restored,
            Err(error) => return Some(format!("cut {cut}: {error}")),
        };
        let revision = restored.state.revision as usize;
        if show(&restored.state.root) != states[revision] {
            return Some(format!("cut {cut}: not the state at revision {revision}"));
        }
    }
    None
}

#[tokio::test]
async fn every_power_cut_leaves_a_state_that_was() {
    assert_eq!(cut_everywhere(Faults::default()).await, None);
    let faults = Faults::default();
    faults.seed(Bug::AppliedOutsideBatch);
    let found = cut_everywhere(faults).await;
    assert!(found.is_some(), "the seeded bug is found");
}

/// Votes and entries that were answered must survive a power cut right after. Returns what did not.
async fn answer_and_cut(faults: Faults) -> Vec<&'static str> {
    let engine = Arc::new(Recorder::default());
    let anchor = Arc::new(Anchor::new(None, block(), Faults::default()));
    let (mut log, machine) = open_with(engine.clone(), anchor, faults.clone());
    let mut lost = Vec::new();
    let vote = crate::raft::Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: false };
    log.save_vote(&vote).await.expect("memory does not fail");
    let durable = engine.durable();
    let found = crate::log::find(&*engine.after(durable)).expect("it is sound");
    if found.vote != Some(vote) {
        lost.push("vote");
    }
    settle(&machine).await;

    // Held up on its way to the disk, so that an answer that does not wait for it comes first.
    faults.set("writer.write", crate::faults::Fault::Delay(100), Some(1));
    let (sender, flushed) = <Types as openraft::type_config::TypeConfigExt>::oneshot();
    let callback = openraft::storage::IOFlushed::signal(sender);
    log.append(vec![put(0, "a", "1")], callback).await.expect("the writer runs");
    flushed.await.expect("it is answered").expect("memory does not fail");
    let durable = engine.durable();
    let found = crate::log::find(&*engine.after(durable)).expect("it is sound");
    if found.last.map(|log_id| log_id.index) != Some(0) {
        lost.push("entry");
    }
    lost
}

#[tokio::test]
async fn what_was_answered_survives_a_power_cut() {
    assert!(answer_and_cut(Faults::default()).await.is_empty());
    for (bug, lost) in [(Bug::VoteWithoutFsync, "vote"), (Bug::AckBeforeFsync, "entry")] {
        let faults = Faults::default();
        faults.seed(bug);
        let found = answer_and_cut(faults).await;
        assert!(found.contains(&lost), "{} is found: {found:?}", bug.name());
    }
}

#[test]
fn the_log_keeps_enough_for_those_who_are_late() {
    let growth = Growth::default();
    assert_eq!(growth.purge_to(false), None);
    for index in 1..=64 {
        growth.add(index, 512 << 10);
    }
    assert!(growth.any());
    // 32 MiB came, 16 MiB stay: entries 33 to 64.
    assert_eq!(growth.purge_to(false), Some(32));
    assert_eq!(growth.purge_to(false), Some(32), "asking changes nothing");
    growth.add(65, 20 << 20);
    assert_eq!(growth.purge_to(false), Some(64));
    assert_eq!(growth.purge_to(true), Some(u64::MAX), "a full disk keeps nothing");
    assert_eq!(growth.purge_to(false), None);
}
