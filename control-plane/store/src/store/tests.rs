//! The whole store, through openraft, with one member.

use std::collections::BTreeMap;

use super::*;
use crate::watch::{Change, WatchEnd};

/// Far longer than anything here takes; only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);

fn config(engine: Engine) -> Config {
    Config { engine, member_id: 1, address: "127.0.0.1:0".to_owned(), window: Window::default() }
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
    let files = std::fs::read_dir(folder.path()).expect("the folder is there");
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

    std::fs::remove_file(folder.path().join("CURRENT")).expect("it is there");
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
    store.0.disk.close();
    let write = store.put(bytes("a"), bytes("2"), Precondition::Any).await;
    assert!(matches!(write, Err(WriteError::Stopped | WriteError::Unknown)), "{write:?}");
    let reason = tokio::time::timeout(HANG, store.stopped()).await.expect("the store stops");
    assert!(reason.contains("closed"), "{reason}");
    let write = store.put(bytes("a"), bytes("3"), Precondition::Any).await;
    assert_eq!(write, Err(WriteError::Stopped));
    store.shutdown().await.expect("it stops");
}

type Stores = Arc<Mutex<BTreeMap<String, Store>>>;

/// Members that reach each other within the process, by address.
#[derive(Clone, Default)]
struct Net(Stores);

impl Net {
    fn transport(&self) -> Transport {
        let stores = self.0.clone();
        Arc::new(move |address, request| {
            let store = stores.lock().expect("the test does not panic here").get(&address).cloned();
            Box::pin(async move {
                match store {
                    Some(store) => Ok(store.handle_peer(request).await),
                    None => Err(std::io::ErrorKind::ConnectionRefused.into()),
                }
            })
        })
    }

    fn config(&self, member_id: u64) -> Config {
        Config { member_id, address: format!("member-{member_id}"), ..config(Engine::Memory) }
    }

    fn add(&self, member_id: u64, store: &Store) {
        let address = format!("member-{member_id}");
        self.0.lock().expect("the test does not panic here").insert(address, store.clone());
    }

    fn remove(&self, member_id: u64) {
        let address = format!("member-{member_id}");
        self.0.lock().expect("the test does not panic here").remove(&address);
    }
}

async fn leader_of(stores: &[&Store]) -> usize {
    let leads = stores.iter().enumerate().map(|(index, store)| {
        let mut leadership = store.leadership();
        Box::pin(async move {
            let leads = |leadership: &Leadership| matches!(leadership, Leadership::Leader { .. });
            leadership.wait_for(leads).await.expect("the store runs");
            index
        })
    });
    let first = futures::future::select_all(leads);
    tokio::time::timeout(HANG, first).await.expect("one of them comes to lead").0
}

/// Entries, a whole snapshot, votes and reads between three members, and a new leader when the old
/// one is gone: all through our own encodings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_hold_the_same_and_outlive_their_leader() {
    let net = Net::default();
    let first = Store::open_with(net.config(1), net.transport()).await.expect("it founds");
    net.add(1, &first);
    for number in 0..50 {
        put(&first, &format!("before/{number}"), "value").await;
    }
    // Purged, so that a new member needs the snapshot.
    let raft = &first.0.member.raft;
    raft.trigger().snapshot().await.expect("it runs");
    let all = first.current().revision();
    let wait = raft.wait(Some(HANG));
    let taken = wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= all), "snapshot").await;
    taken.expect("the snapshot is taken");
    raft.trigger().purge_log(all).await.expect("it runs");
    let wait = raft.wait(Some(HANG));
    let purged = wait.metrics(|m| m.purged.is_some_and(|id| id.index >= all), "purge").await;
    purged.expect("the log is purged");

    let mut members = vec![first.clone()];
    for id in [2, 3] {
        let store = Store::join(net.config(id), net.transport()).await.expect("it opens");
        net.add(id, &store);
        let node = openraft::BasicNode { addr: format!("member-{id}") };
        raft.add_learner(id, node, true).await.expect("it catches up");
        members.push(store);
    }
    raft.change_membership([1, 2, 3], false).await.expect("they are voters");
    let entry = put(&first, "after", "value").await;
    for member in &members {
        assert!(member.reached(entry.modified).await);
        assert_eq!(contents(member), contents(&first));
    }
    assert_eq!(first.read().await.expect("it leads").get(b"after"), Some(entry));
    let refused = members[1].put(bytes("a"), bytes("1"), Precondition::Any).await;
    let address = Some("member-1".to_owned());
    assert_eq!(refused, Err(WriteError::NotLeader { leader: Some(1), address }));
    assert!(matches!(members[1].read().await, Err(ReadError::NotLeader { leader: Some(1), .. })));

    net.remove(1);
    first.shutdown().await.expect("it stops");
    let rest = [&members[1], &members[2]];
    let leader = rest[leader_of(&rest).await];
    let entry = put(leader, "later", "value").await;
    for member in rest {
        assert!(member.reached(entry.modified).await);
        assert_eq!(contents(member), contents(leader));
    }
    for member in rest {
        member.shutdown().await.expect("it stops");
    }
}

#[test]
fn a_disk_is_full_when_little_is_free() {
    let gib = |n: u64| n << 30;
    assert!(!is_full(gib(1), gib(1) / 5));
    assert!(is_full(gib(1), gib(1) / 11));
    assert!(is_full(gib(10), 0));
    assert!(!is_full(gib(1000), gib(20)), "a large disk has room");
    assert!(!is_full(0, 0), "not a disk");
}
