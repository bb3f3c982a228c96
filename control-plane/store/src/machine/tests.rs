//! openraft's own storage suite over both engines, and what it does not ask: that the state comes
//! back from disk, and that a snapshot is not changed by what is applied after it.

use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::testing::log::{StoreBuilder, Suite};

use super::*;
use crate::engine::memory::Memory;
use crate::engine::rocks::Rocks;
use crate::log::Log;
use crate::state::{Action, Precondition, Window};
use crate::writer::Stop;

fn open(engine: Arc<dyn Engine>) -> (Log, Machine) {
    let (writer, _) = Writer::start(engine.clone(), Stop::new()).expect("a thread can be started");
    let log = Log::open(engine.clone(), writer.clone()).expect("the log is sound");
    let restored = Machine::read(&*engine).expect("the state is sound");
    let feed = Feed::new(Window::default(), restored.state.snapshot());
    (log, Machine::new(restored, writer, feed, Arc::default()))
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
        let engine = Rocks::open(folder.path()).expect("an empty folder can be opened");
        let (log, machine) = open(Arc::new(engine));
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
    let command = Command { time_ms: index, key, precondition: Precondition::Any, action };
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
    machine.writer.write(Batch::default()).await.expect("the writer runs");
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
    let mut watch = follower.feed.watch(Bytes::new(), 1).expect("the window has it");
    let Snapshot { meta, snapshot: image } = snapshot;
    follower.install_snapshot(&meta, image).await.expect("memory does not fail");

    assert_eq!(follower.feed.current().revision(), 2);
    assert_eq!(show(&follower.state.root), "a=1@1/1 b=2@2/2");
    assert_eq!(watch.next().await.err(), Some(crate::WatchEnd::Slow));
    let (_, again) = open(engine);
    assert_eq!(show(&again.state.root), "a=1@1/1 b=2@2/2");
}
