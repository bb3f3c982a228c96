//! Watches over a feed that is published to by hand: no gap, no repetition, and a clear end.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::state::Root;

struct Bench {
    feed: Arc<Feed>,
    root: Root,
    revision: Revision,
}

impl Bench {
    fn new(revisions: usize) -> Bench {
        let bounds = Window { revisions, ..Window::default() };
        Bench {
            feed: Feed::new(bounds, Snapshot::default(), Faults::default()),
            root: Root::new(),
            revision: 0,
        }
    }

    fn put(&mut self, key: &str) {
        self.put_value(key, Bytes::from_static(b"value"));
    }

    fn put_value(&mut self, key: &str, value: Bytes) {
        self.revision += 1;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let entry = Entry { value, created: self.revision, modified: self.revision };
        let previous = self.root.insert(key.clone(), entry.clone());
        let event = Event::new(self.revision, key, Change::Put(entry), previous);
        let (event, root) = (Arc::new(event), self.root.clone());
        let current = Snapshot { revision: self.revision, root: root.clone() };
        self.feed.publish(vec![Record { event, root: Some(root), time_ms: 0 }], current);
    }

    fn watch(&self, prefix: &'static str, after: Revision) -> Watch {
        let prefix = Bytes::from_static(prefix.as_bytes());
        self.feed.watch(prefix, None, after).expect("the revision is in the window")
    }

    fn watch_marked(&self, prefix: &'static str, value: &'static str) -> Watch {
        let (prefix, value) = (Bytes::from_static(prefix.as_bytes()), Bytes::from(value));
        let mark = Mark { lead: b"\"on\":\"", value };
        let after = self.revision;
        self.feed.watch(prefix, Some(mark), after).expect("the revision is in the window")
    }
}

/// The revisions that are there to be taken.
fn ready(watch: &mut Watch) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while let Ok(Some(event)) = watch.ready() {
        revisions.push(event.revision);
    }
    revisions
}

#[test]
fn a_watch_joins_the_past_and_the_present() {
    let mut bench = Bench::new(100);
    ["a/1", "b/1", "a/2", "a"].into_iter().for_each(|key| bench.put(key));
    let mut all = bench.watch("", 0);
    let mut some = bench.watch("a/", 1);
    let mut future = bench.watch("a/", 6);
    ["a/3", "a/4", "a/5", "c"].into_iter().for_each(|key| bench.put(key));
    assert_eq!(ready(&mut all), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ready(&mut some), [3, 5, 6, 7]);
    assert_eq!(ready(&mut future), [7]);
}

#[test]
fn what_is_behind_the_window_is_gone() {
    let mut bench = Bench::new(2);
    ["a", "b", "c", "d"].into_iter().for_each(|key| bench.put(key));
    let gone = bench.feed.watch(Bytes::new(), None, 1).err();
    assert_eq!(gone, Some(WindowError::Gone { oldest: 2 }));
    assert_eq!(ready(&mut bench.watch("", 2)), [3, 4]);
}

#[test]
fn a_watcher_that_does_not_read_is_cut_off_by_count() {
    let mut bench = Bench::new(10);
    let mut slow = bench.watch("a", 0);
    let mut other = bench.watch("b", 0);
    for _ in 0..BUFFER_EVENTS_MAX {
        bench.put("a");
    }
    assert_eq!(bench.feed.sizes().cut_off, 0);
    bench.put("a");
    assert_eq!(slow.ready().err(), Some(WatchEnd::Slow));
    bench.put("b");
    assert_eq!(ready(&mut other).len(), 1, "others are not touched");
    assert_eq!((bench.feed.sizes().cut_off, bench.feed.sizes().watchers), (1, 1));
}

#[test]
fn a_watcher_that_does_not_read_is_cut_off_by_bytes() {
    let mut bench = Bench::new(10);
    let mut slow = bench.watch("a", 0);
    let mut keeps_up = bench.watch("a", 0);
    let value = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..=BUFFER_BYTES_MAX >> 20 {
        bench.put_value("a", value.clone());
        assert_eq!(ready(&mut keeps_up).len(), 1);
    }
    assert_eq!(slow.ready().err(), Some(WatchEnd::Slow));
    assert_eq!(bench.feed.sizes().cut_off, 1);
}

#[test]
fn a_watcher_of_marked_values_hears_of_no_others() {
    let mut bench = Bench::new(100);
    let mut east = bench.watch_marked("a", "east");
    let mut west = bench.watch_marked("a", "west");
    let mut all = bench.watch("a", 0);
    let values = [
        r#"{"on":""}"#,
        r#"{"on":"east"}"#,
        r#"{"on":"eastern"}"#,
        r#"{"labels":{"on":"west"},"on":"east"}"#,
        r#"{"on":"west"}"#,
        r#"{"no":"west","on":"east"#,
    ];
    values.into_iter().for_each(|value| bench.put_value("a", Bytes::from(value)));
    bench.put_value("b", Bytes::from(values[1]));
    // Also of the change by which a mark goes, and by which another comes.
    assert_eq!(ready(&mut east), [2, 3, 4, 5, 6]);
    assert_eq!(ready(&mut west), [4, 5, 6]);
    assert_eq!(ready(&mut all), [1, 2, 3, 4, 5, 6]);
    assert_eq!(east.progress(), Some(7), "what it does not hear of is behind it");
    bench.put_value("a", Bytes::from(values[0]));
    assert_eq!((ready(&mut east), ready(&mut west)), (vec![8], vec![]));
}

#[test]
fn a_watcher_of_marked_values_is_cut_off_like_others() {
    let mut bench = Bench::new(10);
    let mut slow = bench.watch_marked("a", "east");
    let idle = bench.watch_marked("a", "west");
    for _ in 0..=BUFFER_EVENTS_MAX {
        bench.put_value("a", Bytes::from_static(br#"{"on":"east"}"#));
    }
    assert_eq!(slow.ready().err(), Some(WatchEnd::Slow));
    assert_eq!((bench.feed.sizes().cut_off, bench.feed.sizes().watchers), (1, 1));
    bench.feed.stop();
    assert!(idle.progress().is_none(), "it has ended, too");
}

#[test]
fn a_dropped_watch_is_forgotten() {
    let bench = Bench::new(10);
    let watches = [
        bench.watch("a", 0),
        bench.watch("a", 0),
        bench.watch("bcd", 0),
        bench.watch_marked("a", "east"),
        bench.watch_marked("e", "east"),
    ];
    assert_eq!(bench.feed.sizes().watchers, 5);
    drop(watches);
    let past = bench.feed.lock();
    assert!(past.watchers.by_prefix.is_empty() && past.watchers.lengths.is_empty());
}

#[tokio::test]
async fn a_waiting_watch_wakes_up() {
    let mut bench = Bench::new(10);
    let mut watch = bench.watch("a", 0);
    let waiting = tokio::spawn(async move {
        let first = watch.next().await.map(|event| event.revision);
        (first, watch.next().await.map(|event| event.revision))
    });
    tokio::task::yield_now().await;
    bench.put("a");
    tokio::task::yield_now().await;
    bench.feed.stop();
    let seen = waiting.await.expect("the watch does not panic");
    assert_eq!(seen, (Ok(1), Err(WatchEnd::Stopped)));
    assert_eq!(bench.watch("a", 1).next().await.err(), Some(WatchEnd::Stopped));
}

#[test]
fn an_event_is_encoded_once() {
    let mut bench = Bench::new(10);
    let mut watches = [bench.watch("", 0), bench.watch("a", 0)];
    bench.put("a");
    let made = AtomicU32::new(0);
    for watch in &mut watches {
        let event = watch.ready().expect("the watch runs").expect("an event is there");
        let encoded = event.encoded(|event| {
            made.fetch_add(1, Ordering::Relaxed);
            event.key.clone()
        });
        assert_eq!(encoded, "a");
    }
    assert_eq!(made.into_inner(), 1);
}

#[tokio::test]
async fn progress_is_known_when_nothing_waits() {
    let mut bench = Bench::new(10);
    let mut watch = bench.watch("a/", 0);
    assert_eq!(watch.progress(), Some(0));
    bench.put("b/1");
    assert_eq!(watch.progress(), Some(1), "what it does not watch is behind it as well");
    bench.put("a/1");
    assert_eq!(watch.progress(), None, "an event waits");
    watch.next().await.expect("the watch keeps up");
    assert_eq!(watch.progress(), Some(2));
    let late = bench.watch("a/", 0);
    assert_eq!(late.progress(), None, "the past waits");
    bench.feed.stop();
    assert_eq!(watch.progress(), None, "it has ended");
}

/// The seeded bug: a watch that begins exactly at the window's edge misses its first event.
#[tokio::test]
async fn the_seeded_bug_at_the_windows_edge_is_found() {
    for (seeded, expected) in [(false, vec![3, 4, 5]), (true, vec![4, 5])] {
        let mut bench = Bench::new(3);
        if seeded {
            bench.feed.faults.seed(Bug::EventDroppedAtEdge);
        }
        (0..5).for_each(|_| bench.put("a"));
        let oldest = bench.feed.sizes().oldest;
        let mut watch = bench.watch("", oldest);
        let mut seen = Vec::new();
        while let Some(event) = watch.ready().expect("the watch keeps up") {
            seen.push(event.revision);
        }
        assert_eq!(seen, expected);
    }
}

/// A bookmark at a revision whose event did not come would lose it for whoever goes on from there.
#[test]
fn progress_is_never_ahead_of_the_events() {
    const PUTS: Revision = 5_000;
    let mut bench = Bench::new(10);
    let mut watch = bench.watch("", 0);
    let writer = std::thread::spawn(move || (0..PUTS).for_each(|_| bench.put("key")));
    let mut taken = 0;
    while taken < PUTS {
        match watch.ready().expect("it is read fast enough") {
            Some(event) => taken = event.revision,
            None => assert!(watch.progress().is_none_or(|reached| reached == taken)),
        }
    }
    assert_eq!(watch.progress(), Some(PUTS));
    writer.join().expect("it writes");
}
