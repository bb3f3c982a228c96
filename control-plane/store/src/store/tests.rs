//! The whole store, through openraft, with one member.

use std::collections::BTreeMap;

use super::*;
use crate::engine::KEY_BYTES_MAX;
use crate::faults::Fault;
use crate::watch::{Change, WatchEnd};

/// Far longer than anything here takes; only a hang reaches it.
const HANG: Duration = Duration::from_secs(180);

fn config(engine: Engine) -> Config {
    Config::founder(engine, "127.0.0.1:0")
}

async fn memory() -> Store {
    Store::open(config(Engine::Memory)).await.expect("memory can be opened")
}

async fn rocks(path: &Path) -> Store {
    let opened = Store::open(config(Engine::Rocks(path.to_owned()))).await;
    opened.expect("the folder can be opened")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn bytes(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

async fn put(store: &Store, key: &str, value: &str) -> Entry {
    let put = store.put(bytes(key), bytes(value), Precondition::Any);
    put.await.expect("nothing stands against it")
}

fn contents(store: &Store) -> BTreeMap<Bytes, Entry> {
    store.current().range(b"", None).collect()
}

#[tokio::test]
async fn what_is_written_is_read() {
    let store = memory().await;
    let first = put(&store, "a", "1").await;
    assert_eq!((first.created, &first.value[..]), (first.modified, &b"1"[..]));
    let second = put(&store, "a", "2").await;
    assert_eq!(second.created, first.created);
    assert!(second.modified > first.modified);

    let snapshot = store.read().await.expect("the member leads");
    assert_eq!(snapshot.get(b"a"), Some(second.clone()));
    assert_eq!(snapshot.revision(), second.modified);
    let before = store.at(first.modified).expect("the window has it");
    assert_eq!(before.get(b"a"), Some(first));
    let ahead = store.at(second.modified + 1).err();
    assert_eq!(ahead, Some(WindowError::Future { current: second.modified }));

    let conflict = store.put(bytes("a"), bytes("3"), Precondition::Absent).await;
    assert_eq!(conflict, Err(WriteError::Conflict { current: Some(second.clone()) }));
    let at = Precondition::At(second.modified);
    let (revision, last) = store.delete(bytes("a"), at).await.expect("the precondition holds");
    assert!(revision > second.modified);
    assert_eq!(last, second);
    let gone = store.delete(bytes("a"), Precondition::Any).await;
    assert_eq!(gone, Err(WriteError::Conflict { current: None }));
    store.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn writes_that_are_too_large_are_refused() {
    let store = memory().await;
    let value = Bytes::from(vec![0; WRITE_BYTES_MAX]);
    let refused = store.put(bytes("a"), value.clone(), Precondition::Any).await;
    let (size, limit) = (WRITE_BYTES_MAX + 1, WRITE_BYTES_MAX);
    assert_eq!(refused, Err(WriteError::TooLarge { size, limit }));
    let fits = value.slice(1..);
    store.put(bytes("a"), fits, Precondition::Any).await.expect("it just fits");
    let long = store.delete(bytes("k".repeat(KEY_BYTES_MAX + 1)), Precondition::Any).await;
    assert!(matches!(long, Err(WriteError::TooLarge { limit: KEY_BYTES_MAX, .. })));
    store.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = folder();
    let store = rocks(folder.path()).await;
    for number in 0..200 {
        put(&store, &format!("key/{:03}", number % 150), &format!("value {number}")).await;
    }
    store.delete(bytes("key/007"), Precondition::Present).await.expect("it is there");
    let before = contents(&store);
    let revision = store.current().revision();
    assert_eq!(before.len(), 149);
    store.shutdown().await.expect("it stops");

    let store = rocks(folder.path()).await;
    assert_eq!(contents(&store), before);
    assert!(store.current().revision() >= revision, "revisions never go back");
    let at = store.at(revision).expect("the last revision can still be had");
    assert_eq!(at.len(), 149);
    store.watch(Bytes::new(), revision).expect("a watcher of the last revision can go on");
    let entry = put(&store, "key/000", "new").await;
    assert!(entry.modified > revision);
    assert_eq!(entry.created, before[&bytes("key/000")].created);
    store.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_folder_is_opened_once_and_only_by_its_member() {
    let folder = folder();
    let store = rocks(folder.path()).await;
    let engine = || Engine::Rocks(folder.path().to_owned());
    let second = Store::open(config(engine())).await.err();
    assert!(matches!(second, Some(OpenError::InUse { .. })), "{second:?}");
    store.shutdown().await.expect("it stops");

    let other = Store::open(Config { member_id: 2, ..config(engine()) }).await.err();
    assert!(matches!(other, Some(OpenError::OtherMember { found: 1, wanted: 2, .. })), "{other:?}");
    rocks(folder.path()).await.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_damaged_folder_is_refused() {
    let folder = folder();
    let store = rocks(folder.path()).await;
    for number in 0..50 {
        put(&store, &format!("{number}"), "value").await;
    }
    store.shutdown().await.expect("it stops");
    let files = std::fs::read_dir(folder.path().join("db-1")).expect("the folder is there");
    let logs = files.map(|file| file.expect("it can be listed").path());
    let logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    let log = logs.iter().max().expect("there is a write-ahead log");
    let mut content = std::fs::read(log).expect("it can be read");
    let middle = content.len() / 2;
    content[middle] ^= 0xff;
    std::fs::write(log, &content).expect("it can be written");

    let engine = Engine::Rocks(folder.path().to_owned());
    let refused = Store::open(config(engine.clone())).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { .. })), "{refused:?}");

    std::fs::remove_file(folder.path().join("db-1/CURRENT")).expect("it is there");
    let refused = Store::open(config(engine)).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_share_an_fsync_and_watchers_see_each_write_once() {
    let folder = folder();
    let store = rocks(folder.path()).await;
    let start = store.current().revision();
    let fsyncs_before = store.health().disk_fsyncs;
    let (writers, writes_each) = (128u64, 20u64);
    let mut watch = store.watch(bytes("key/"), start).expect("the window has it");
    let writing = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..writes_each {
                put(&store, &format!("key/{writer}"), &format!("{number}")).await;
            }
        })
    });
    let writing: Vec<_> = writing.collect();

    let follow = async |watch: &mut Watch, from: Revision| {
        let mut last = from;
        let mut seen = BTreeMap::<Bytes, u64>::new();
        let mut count = 0;
        while count < writers * writes_each {
            let event = watch.next().await.expect("the watch keeps up");
            assert!(event.revision > last, "in order, and never twice");
            last = event.revision;
            let Change::Put(entry) = &event.change else {
                panic!("nothing is deleted");
            };
            let expected = seen.entry(event.key.clone()).or_insert(0);
            assert_eq!(entry.value, bytes(expected.to_string()), "nothing is left out");
            *expected += 1;
            count += 1;
        }
    };
    tokio::time::timeout(HANG, follow(&mut watch, start)).await.expect("all events arrive");
    for writer in writing {
        writer.await.expect("no writer fails");
    }
    let mut late = store.watch(bytes("key/"), start).expect("the window has it");
    tokio::time::timeout(HANG, follow(&mut late, start)).await.expect("the past is whole");

    let fsyncs = store.health().disk_fsyncs - fsyncs_before;
    let writes = writers * writes_each;
    assert!(fsyncs * 4 < writes, "{writes} writes took {fsyncs} fsyncs");
    store.shutdown().await.expect("it stops");
}

/// Read, add one, write if nobody else did: no increment is lost, whoever races.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn preconditions_make_increments_safe() {
    let store = memory().await;
    put(&store, "counter", "0").await;
    let increment = async |store: Store| {
        for _ in 0..25 {
            loop {
                let snapshot = store.read().await.expect("the member leads");
                let entry = snapshot.get(b"counter").expect("it is there");
                let text = std::str::from_utf8(&entry.value).expect("it is a number");
                let next = text.parse::<u64>().expect("it is a number") + 1;
                let at = Precondition::At(entry.modified);
                match store.put(bytes("counter"), bytes(next.to_string()), at).await {
                    Ok(_) => break,
                    Err(WriteError::Conflict { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
    };
    tokio::join!(
        increment(store.clone()),
        increment(store.clone()),
        increment(store.clone()),
        increment(store.clone()),
    );
    let entry = store.current().get(b"counter").expect("it is there");
    assert_eq!(entry.value, "100");
    store.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_stopped_store_says_so_everywhere() {
    let store = memory().await;
    let mut watch = store.watch(Bytes::new(), 0).expect("the window has it");
    let mut leadership = store.leadership();
    assert!(matches!(*leadership.borrow_and_update(), Leadership::Leader { .. }));
    assert!(store.health().serving);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.reached(1_000_000).await }
    });
    store.shutdown().await.expect("it stops");
    store.shutdown().await.expect("it stops");

    assert!(!waiting.await.expect("it does not panic"));
    assert_eq!(watch.next().await.err(), Some(WatchEnd::Stopped));
    let write = store.put(bytes("a"), bytes("1"), Precondition::Any).await;
    assert_eq!(write, Err(WriteError::Stopped));
    assert_eq!(store.read().await.err(), Some(ReadError::Stopped));
    assert_eq!(*leadership.borrow_and_update(), Leadership::Follower { leader: None });
    let health = store.health();
    assert!(!health.serving);
    assert_eq!(health.reason.as_deref(), Some("the store has stopped: it was shut down"));
    assert_eq!(store.stopped().await, "it was shut down");
}

/// A disk that fails under a running store: the write is not acknowledged, and nothing after it.
#[tokio::test]
async fn a_failing_disk_stops_the_store() {
    let store = memory().await;
    put(&store, "a", "1").await;
    store.inner.disk.close();
    let write = store.put(bytes("a"), bytes("2"), Precondition::Any).await;
    assert!(matches!(write, Err(WriteError::Stopped | WriteError::Unknown)), "{write:?}");
    let reason = tokio::time::timeout(HANG, store.stopped()).await.expect("the store stops");
    assert!(reason.contains("closed"), "{reason}");
    let write = store.put(bytes("a"), bytes("3"), Precondition::Any).await;
    assert_eq!(write, Err(WriteError::Stopped));
    store.shutdown().await.expect("it stops");
}

/// Each way to lose data behind the store's back, and what it is told.
#[tokio::test]
async fn a_folder_that_lost_something_is_refused() {
    let filled = async || {
        let folder = folder();
        let store = rocks(folder.path()).await;
        for number in 0..50 {
            put(&store, &format!("{number}"), "value").await;
        }
        let flushed = store.current().revision();
        let promised = async || {
            let mut last = 0;
            let look =
                |block: &mut Superblock| last = block.promise.last.map_or(0, |last| last.index);
            store.inner.anchor.update(look).expect("the folder can be written");
            last
        };
        while promised().await < flushed {
            tokio::task::yield_now().await;
        }
        store.shutdown().await.expect("it stops");
        folder
    };
    let open = async |folder: &tempfile::TempDir| {
        let engine = Engine::Rocks(folder.path().to_owned());
        Store::open(config(engine)).await.err().expect("it is refused")
    };
    let cut = filled().await;
    for file in std::fs::read_dir(cut.path().join("db-1")).expect("it can be listed") {
        let path = file.expect("it can be listed").path();
        if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::remove_file(path).expect("it is there");
        }
    }
    let refused = open(&cut).await;
    assert!(matches!(refused, OpenError::Behind { .. } | OpenError::Damaged { .. }), "{refused}");

    let gone = filled().await;
    std::fs::remove_dir_all(gone.path().join("db-1")).expect("it is there");
    let refused = open(&gone).await;
    assert!(matches!(refused, OpenError::Behind { .. }), "{refused}");

    let headless = filled().await;
    std::fs::remove_file(headless.path().join("superblock")).expect("it is there");
    let refused = open(&headless).await;
    assert!(refused.to_string().contains("superblock is missing"), "{refused}");

    // As after a snapshot took the place of the first state.
    let headless = filled().await;
    std::fs::remove_file(headless.path().join("superblock")).expect("it is there");
    let later = headless.path().join("db-2");
    std::fs::rename(headless.path().join("db-1"), &later).expect("it is there");
    let refused = open(&headless).await;
    assert!(refused.to_string().contains("superblock is missing"), "{refused}");
    assert!(later.exists(), "nothing is removed from a folder that is refused");

    let other = filled().await;
    let engine = Engine::Rocks(other.path().to_owned());
    let wanted = Config { cluster_id: Some(7), ..config(engine.clone()) };
    let refused = Store::open(wanted).await.err();
    assert!(matches!(refused, Some(OpenError::OtherCluster { wanted: 7, .. })), "{refused:?}");
    let empty = folder();
    let engine = Engine::Rocks(empty.path().to_owned());
    let refused = Store::join(config(engine), no_transport()).await.err();
    assert!(matches!(refused, Some(OpenError::NoCluster { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_checkpoint_is_the_state_at_a_revision() {
    let (origin, target) = (folder(), folder());
    let store = rocks(origin.path()).await;
    for number in 0..100 {
        put(&store, &format!("{number:03}"), "value").await;
    }
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..300 {
                put(&store, &format!("{:03}", number % 150), "later").await;
            }
        }
    });
    let copy = target.path().join("copy");
    let revision = store.checkpoint(&copy).await.expect("it can be made");
    writing.await.expect("the writer does not fail");
    let expected = store.at(revision).expect("the window has it");
    let expected: BTreeMap<Bytes, Entry> = expected.range(b"", None).collect();
    store.shutdown().await.expect("it stops");

    let found = crate::identity(&copy).expect("it is sound").expect("it is a store");
    assert_eq!(found.cluster_id, store.cluster_id());
    let opened = open::open(&config(Engine::Rocks(copy.clone())), false).expect("it is sound");
    let restored: BTreeMap<Bytes, Entry> =
        opened.restored.state.snapshot().range(b"", None).collect();
    assert_eq!(opened.restored.state.revision, revision);
    assert_eq!(restored, expected);
    let memory = memory().await;
    let refused = memory.checkpoint(&copy).await;
    assert!(matches!(refused, Err(CheckpointError::InMemory)));
}

/// While the disk is nearly full nothing is added, all else goes on, and it ends by itself.
#[tokio::test]
async fn a_full_disk_takes_deletes_and_reads() {
    let store = memory().await;
    put(&store, "a", "1").await;
    let mut ends = store.inner.room.clone();
    let set = |room: &mut Arc<AtomicU8>, to: Room| room.store(to as u8, Ordering::Relaxed);
    // Housekeeping looks twice a second, and memory is never full: so this ends by itself.
    set(&mut ends, Room::Full);
    let refused = store.put(bytes("b"), bytes("1"), Precondition::Any).await;
    assert_eq!(refused, Err(WriteError::Full));
    set(&mut ends, Room::Full);
    assert!(store.health().disk_full);
    set(&mut ends, Room::Full);
    let marked = store.making_room().put(bytes("a"), bytes("2"), Precondition::Any).await;
    assert!(marked.is_ok(), "{marked:?}");
    set(&mut ends, Room::Full);
    store.delete(bytes("a"), Precondition::Any).await.expect("deletes go on");
    assert!(store.read().await.expect("reads go on").is_empty());
    let resumed = async {
        while store.put(bytes("b"), bytes("1"), Precondition::Any).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HANG, resumed).await.expect("writes resume");
    store.shutdown().await.expect("it stops");
}

/// The steps on the way of a write.
pub(super) const POINTS_OF_A_WRITE: [&str; 9] = [
    "log.append",
    "writer.write",
    "writer.sync",
    "machine.apply",
    "machine.corrupt",
    "machine.hand",
    "machine.flip",
    "machine.publish",
    "superblock.write",
];

/// Every step on the way of a write, failing in every way: what was acknowledged is there after a
/// restart, and a step that failed for good stopped the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_of_a_write_keeps_what_was_acknowledged() {
    for point in POINTS_OF_A_WRITE {
        for fault in [Fault::Panic, Fault::Error, Fault::Delay(20)] {
            // There an error makes a member lie, which is found otherwise.
            if fault == Fault::Error && ["machine.corrupt", "machine.flip"].contains(&point) {
                continue;
            }
            let folder = folder();
            let faults = Faults::default();
            let engine = Engine::Rocks(folder.path().to_owned());
            let member = Config { faults: faults.clone(), ..config(engine) };
            let store = Store::open(member).await.expect("the folder can be opened");
            put(&store, "before", "1").await;
            let before = faults.hits(point);
            faults.set(point, fault, Some(3));
            let mut acknowledged = Vec::new();
            for number in 0..20 {
                let key = bytes(format!("{number:02}"));
                match store.put(key.clone(), bytes("value"), Precondition::Absent).await {
                    Ok(entry) => acknowledged.push((key, entry)),
                    Err(WriteError::Unknown | WriteError::Stopped) => break,
                    Err(other) => panic!("{point} {fault:?}: {other}"),
                }
            }
            let reached = async {
                while faults.hits(point) == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(HANG, reached).await.expect("the point is on the way");
            // A writer that panicked says so.
            let _ = store.end().await;
            let store = rocks(folder.path()).await;
            let contents = contents(&store);
            for (key, entry) in &acknowledged {
                assert_eq!(contents.get(key), Some(entry), "{point} {fault:?} lost {key:?}");
            }
            assert!(contents.contains_key(&bytes("before")), "{point} {fault:?}");
            put(&store, "after", "1").await;
            store.shutdown().await.expect("it stops");
        }
    }
}
