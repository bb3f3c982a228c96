//! What the log gives back from memory and from disk, and what it refuses. Its rules towards
//! openraft are tested by openraft's own suite, in `machine::tests`.

use openraft::entry::{EntryPayload, RaftEntry};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::type_config::TypeConfigExt;

use super::*;
use crate::engine::memory::Memory;
use crate::state::{Action, Command, Precondition};
use crate::superblock::{Identity, Superblock};
use crate::writer::Stop;

fn anchor() -> Arc<Anchor> {
    let identity = Identity { cluster_id: 1, member_id: 1 };
    Arc::new(Anchor::new(None, Superblock::new(identity), Faults::default()))
}

fn try_open(engine: &Arc<Memory>) -> Result<Log, EngineError> {
    let faults = Faults::default();
    let (writer, _) = Writer::start(engine.clone(), Stop::new(), faults.clone())
        .expect("a thread can be started");
    Log::open(engine.clone(), writer, anchor(), faults)
}

fn open(engine: &Arc<Memory>) -> Log {
    try_open(engine).expect("the log is sound")
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
}

fn vote(term: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed }
}

fn written_in(term: u64, index: u64) -> LogEntry {
    let log_id = LogId { leader_id: LeaderId { term, node_id: 1 }, index };
    LogEntry::new(log_id, EntryPayload::Blank)
}

fn put(index: u64, value_bytes: usize) -> LogEntry {
    let command = Command {
        time_ms: 0,
        id: 0,
        key: Bytes::from_static(b"key"),
        precondition: Precondition::Any,
        action: Action::Put(Bytes::from(vec![7; value_bytes])),
    };
    LogEntry::new(log_id(index), EntryPayload::Normal(command))
}

async fn append(log: &mut Log, entries: Vec<LogEntry>) {
    let (sender, flushed) = Types::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await.expect("the writer runs");
    flushed.await.expect("the callback is called").expect("memory does not fail");
}

async fn indexes(log: &mut Log, range: std::ops::Range<u64>) -> Vec<u64> {
    let entries = log.try_get_log_entries(range).await.expect("the log is sound");
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[tokio::test]
async fn entries_come_from_memory_and_from_disk_alike() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;

    let mut reopened = open(&engine);
    append(&mut reopened, (10..15).map(|index| put(index, 8)).collect()).await;
    assert_eq!(indexes(&mut reopened, 0..100).await, (0..15).collect::<Vec<_>>());
    assert_eq!(indexes(&mut reopened, 7..12).await, [7, 8, 9, 10, 11]);
    assert_eq!(indexes(&mut reopened, 11..12).await, [11]);
    assert_eq!(indexes(&mut reopened, 15..20).await, []);
    let state = reopened.get_log_state().await.expect("the log is sound");
    assert_eq!(state.last_log_id, Some(log_id(14)));
}

#[tokio::test]
async fn a_leader_knows_what_it_came_with() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;
    assert_eq!(log.inherited(&vote(1, true)), None, "there was nothing before");
    append(&mut log, vec![written_in(2, 10), written_in(2, 11)]).await;
    assert_eq!(log.inherited(&vote(2, true)), Some(log_id(9)));
    assert_eq!(log.inherited(&vote(1, true)), None, "somebody else has led since");
    log.truncate_after(Some(log_id(4))).await.expect("the writer runs");
    assert_eq!(log.inherited(&vote(1, true)), None);
    append(&mut log, vec![written_in(3, 5)]).await;
    assert_eq!(log.inherited(&vote(3, true)), Some(log_id(4)));

    let mut reopened = open(&engine);
    assert_eq!(reopened.inherited(&vote(3, true)), None, "nobody leads again where it was");
    append(&mut reopened, vec![written_in(4, 6)]).await;
    let last = LogId { leader_id: vote(3, true).leader_id, index: 5 };
    assert_eq!(reopened.inherited(&vote(4, true)), Some(last));
}

/// A vote is made durable before it is given; that its candidate has won is no new promise.
#[tokio::test]
async fn a_won_vote_is_made_durable_with_the_next_entry() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    let fsyncs = |log: &Log| log.writer.written().fsyncs.load(Ordering::Relaxed);
    log.save_vote(&vote(1, false)).await.expect("the writer runs");
    assert_eq!(fsyncs(&log), 1);
    log.save_vote(&vote(1, true)).await.expect("the writer runs");
    assert_eq!(log.read_vote().await.expect("memory does not fail"), Some(vote(1, true)));
    assert_eq!(log.flushed().promised().vote, Some(vote(1, false)), "no more is promised");
    append(&mut log, vec![put(0, 8)]).await;
    assert_eq!(fsyncs(&log), 2, "one for the entry and for the vote before it");
    let found = find(&*engine).expect("the log is sound");
    assert_eq!(found.vote, Some(vote(1, true)));

    // The leader of a term for which this member has not voted: a promise like any other.
    log.save_vote(&vote(2, true)).await.expect("the writer runs");
    assert_eq!(fsyncs(&log), 3);
    assert_eq!(log.flushed().promised().vote, Some(vote(2, true)));
}

#[tokio::test]
async fn memory_lets_go_of_old_entries_only_when_they_are_written() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    let count = (3 * RECENT_BYTES_MAX as u64) >> 20;
    for index in 0..count {
        append(&mut log, vec![put(index, 1 << 20)]).await;
    }
    let (kept, bytes) = {
        let ends = log.lock();
        (ends.recent.len(), ends.recent_bytes)
    };
    assert!(kept < count as usize && bytes <= RECENT_BYTES_MAX, "{kept} entries, {bytes} bytes");
    assert_eq!(indexes(&mut log, 0..count).await, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_follower_gets_at_once_is_bounded() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..20).map(|index| put(index, 1 << 20)).collect()).await;
    for log in [&mut log, &mut open(&engine)] {
        let entries = log.limited_get_log_entries(2, 20).await.expect("the log is sound");
        assert_eq!(entries[0].log_id.index, 2);
        assert_eq!(entries.len(), 3, "4 MiB hold three entries of a little more than 1 MiB");
    }
}

#[tokio::test]
async fn a_truncated_log_goes_on_where_it_was_cut() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;
    log.truncate_after(Some(log_id(4))).await.expect("the writer runs");
    assert_eq!(indexes(&mut log, 0..100).await, [0, 1, 2, 3, 4]);
    append(&mut log, vec![put(5, 9)]).await;
    assert_eq!(indexes(&mut open(&engine), 0..100).await, [0, 1, 2, 3, 4, 5]);
}

/// A snapshot of what an earlier leader wrote, in place of entries that a later one never committed.
#[tokio::test]
async fn a_log_that_is_purged_beyond_its_end_goes_on_behind_that() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..5).map(|index| put(index, 8)).collect()).await;
    append(&mut log, vec![written_in(9, 5)]).await;
    log.purge(log_id(8)).await.expect("the writer runs");
    let state = log.get_log_state().await.expect("the log is sound");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(8)), Some(log_id(8))));
    assert_eq!(log.flushed().promised().last, Some(log_id(8)), "no start is refused for the rest");
    append(&mut log, vec![written_in(10, 9)]).await;
    assert_eq!(indexes(&mut log, 0..100).await, [9]);
    assert_eq!(indexes(&mut open(&engine), 0..100).await, [9]);
}

#[tokio::test]
async fn damage_is_an_error_and_never_nothing() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;
    let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true };
    log.save_vote(&vote).await.expect("the writer runs");

    let damage = |column, key: &[u8]| {
        let key = Bytes::copy_from_slice(key);
        let mut record = engine.get(column, &key).expect("memory").expect("the key is there");
        *record.last_mut().expect("records are not empty") ^= 1;
        let mut batch = Batch::default();
        batch.put(column, key, record);
        engine.write(&batch, true).expect("memory does not fail");
    };
    let reopen = || try_open(&engine);

    damage(Column::Log, &entry_key(4));
    let mut reopened = reopen().expect("the end of the log is sound");
    let error = reopened.try_get_log_entries(0..10).await.expect_err("entry 4 is damaged");
    assert!(error.to_string().contains("checksum"), "{error}");
    assert!(verify(&*engine).is_err(), "it is found without being needed");

    damage(Column::Log, &entry_key(9));
    assert!(matches!(reopen().err(), Some(EngineError::Damaged(..))));
    damage(Column::Log, &entry_key(9));
    damage(Column::Meta, VOTE);
    assert!(matches!(reopen().err(), Some(EngineError::Damaged(..))));
}

#[tokio::test]
async fn a_hole_is_an_error() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;
    let mut batch = Batch::default();
    batch.delete(Column::Log, Bytes::copy_from_slice(&entry_key(4)));
    engine.write(&batch, true).expect("memory does not fail");
    let error = open(&engine).try_get_log_entries(0..10).await.expect_err("entry 4 is missing");
    assert!(error.to_string().contains("sequence"), "{error}");
}

#[tokio::test]
async fn a_read_that_fails_is_an_error_and_not_an_end() {
    let engine = Arc::new(Memory::new());
    append(&mut open(&engine), (0..10).map(|index| put(index, 8)).collect()).await;
    let mut log = open(&engine);
    log.faults.set("log.read", crate::faults::Fault::Error, Some(1));
    assert!(log.try_get_log_entries(0..10).await.is_err());
    assert_eq!(indexes(&mut log, 0..10).await, (0..10).collect::<Vec<_>>());
    log.faults.set("log.read", crate::faults::Fault::Delay(5), Some(1));
    assert_eq!(indexes(&mut log, 0..10).await, (0..10).collect::<Vec<_>>());
    log.faults.set("log.read", crate::faults::Fault::Panic, Some(1));
    let reading = tokio::spawn(async move { log.try_get_log_entries(0..10).await.is_ok() });
    assert!(reading.await.is_err(), "a panic is not taken for an answer");
}

/// What the superblock promises is on disk, also around a cut.
#[tokio::test]
async fn a_promise_follows_the_disk_and_a_cut() {
    let engine = Arc::new(Memory::new());
    let mut log = open(&engine);
    let promised = |log: &Log| {
        log.flushed().promise(&log.anchor).expect("memory does not fail");
        let mut last = None;
        log.anchor.update(|block| last = block.promise.last).expect("memory does not fail");
        last
    };
    assert_eq!(promised(&log), None);
    append(&mut log, (0..10).map(|index| put(index, 8)).collect()).await;
    assert_eq!(promised(&log), Some(log_id(9)));
    log.truncate_after(Some(log_id(4))).await.expect("the writer runs");
    let mut last = None;
    log.anchor.update(|block| last = block.promise.last).expect("memory does not fail");
    assert_eq!(last, Some(log_id(4)), "lowered before the cut");
    assert_eq!(promised(&log), Some(log_id(4)));
    append(&mut log, vec![put(5, 8)]).await;
    assert_eq!(promised(&log), Some(log_id(5)));
    let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: false };
    log.save_vote(&vote).await.expect("the writer runs");
    promised(&log);
    let mut found = None;
    log.anchor.update(|block| found = block.promise.vote).expect("memory does not fail");
    assert_eq!(found, Some(vote));
}
