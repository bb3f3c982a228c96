//! Events and those who follow them.
//!
//! ```text
//!  apply ──publish──▶ Feed ──┬─▶ current      the newest state, for `current` and `reached`
//!                            ├─▶ History      the last states and the events between them
//!                            └─▶ Watchers ──▶ one bounded buffer a watcher ──▶ Watch::next
//! ```
//!
//! A watch starts from the history and goes on from its buffer; both are joined under one lock, so
//! there is no gap between them and nothing comes twice. Whoever sees a revision in `current` finds
//! it in the history, because `current` is set last.
//!
//! Nobody waits for a watcher: one that lets its buffer run full is cut off and told so. One that
//! asks for marked values only ([`Mark`]) costs nothing while others change.
//! The locks here are std mutexes: their sections are short and never await.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::faults::{Bug, Faults};
use crate::state::{Entry, History, Record, Revision, Snapshot, Window, WindowError};

/// Events that may wait for one watcher. As many as the default window: a watcher further behind
/// than this could not have resumed either.
const BUFFER_EVENTS_MAX: usize = 10_000;

/// Bytes of values that may wait for one watcher, since they outlive the window while they do.
const BUFFER_BYTES_MAX: usize = 32 << 20;

/// What a write did to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key now holds this.
    Put(Entry),
    /// The key is gone; this was its last state.
    Delete(Entry),
}

/// One change of one key, shared by everyone who watches it.
#[derive(Debug)]
pub struct Event {
    /// When it happened.
    pub revision: Revision,
    /// What changed.
    pub key: Bytes,
    /// How.
    pub change: Change,
    /// What the key held before; `None` if it is new.
    pub previous: Option<Entry>,
    /// The name of the write that made it.
    pub(crate) write: u64,
    encoded: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn new(
        revision: Revision,
        key: Bytes,
        change: Change,
        previous: Option<Entry>,
    ) -> Event {
        Event { revision, key, change, previous, write: 0, encoded: OnceLock::new() }
    }

    /// The same, made by a write with this name.
    pub(crate) fn made_by(self, write: u64) -> Event {
        Event { write, ..self }
    }

    /// The new state, or the last one if the key was deleted.
    pub fn entry(&self) -> &Entry {
        match &self.change {
            Change::Put(entry) | Change::Delete(entry) => entry,
        }
    }

    /// The event as its watchers send it on. Made by the first who asks and shared by all others,
    /// so everyone must ask for the same form.
    pub fn encoded(&self, encode: impl FnOnce(&Event) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The watcher fell too far behind, or the state was replaced as a whole by another member's
    /// snapshot. List again and watch from there.
    #[error("the watch was cut off because it fell too far behind")]
    Slow,
    /// The store stopped.
    #[error("the store stopped")]
    Stopped,
}

/// The events of all keys with one prefix, from one revision on, without gaps. Stops costing
/// anything when it is dropped.
#[derive(Debug)]
pub struct Watch {
    /// What had happened before the watch began, oldest first.
    backlog: VecDeque<Arc<Event>>,
    buffer: Arc<Buffer>,
    feed: Arc<Feed>,
}

impl Watch {
    /// The next event, in order of revisions. Cancel safe.
    pub async fn next(&mut self) -> Result<Arc<Event>, WatchEnd> {
        loop {
            if let Some(event) = self.ready()? {
                return Ok(event);
            }
            self.buffer.wake.notified().await;
        }
    }

    /// A revision up to which everything was handed out, for bookmarks; `None` while events wait.
    pub fn progress(&self) -> Option<Revision> {
        if !self.backlog.is_empty() {
            return None;
        }
        let past = self.feed.lock();
        let waiting = self.buffer.lock();
        let idle = waiting.events.is_empty() && waiting.end.is_none();
        idle.then(|| past.history.newest().max(self.buffer.after))
    }

    /// The next event if it is already there, to send several at once.
    pub fn ready(&mut self) -> Result<Option<Arc<Event>>, WatchEnd> {
        if let Some(event) = self.backlog.pop_front() {
            return Ok(Some(event));
        }
        self.buffer.pop()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.feed.lock().watchers.remove(&self.buffer);
    }
}

/// What must stand in a value for a watcher to be told of its change: the lead, then this value,
/// then a quote. A value may have several marks with one lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Few differ: values are searched for each. It is found fastest if its first byte is rare.
    pub lead: &'static [u8],
    /// Without a quote.
    pub value: Bytes,
}

/// The marks with this lead in the values before and after a change, each once.
fn marks<'a>(event: &'a Event, lead: &[u8]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    for entry in [Some(event.entry()), event.previous.as_ref()].into_iter().flatten() {
        let value = &entry.value[..];
        // By the first byte: this looks at every byte of every change.
        let begins =
            |at: &usize| lead.first() == Some(&value[*at]) && value[*at..].starts_with(lead);
        for at in (0..value.len()).filter(begins) {
            let rest = &value[at + lead.len()..];
            let end = rest.iter().position(|byte| *byte == b'"');
            found.push(&rest[..end.unwrap_or(rest.len())]);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What waits for one watcher.
#[derive(Debug)]
struct Buffer {
    prefix: Bytes,
    mark: Option<Mark>,
    /// Events up to here are not wanted.
    after: Revision,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    end: Option<WatchEnd>,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no section of this lock panics")
    }

    fn pop(&self) -> Result<Option<Arc<Event>>, WatchEnd> {
        let mut waiting = self.lock();
        if let Some(end) = waiting.end {
            return Err(end);
        }
        let event = waiting.events.pop_front();
        if let Some(event) = &event {
            waiting.bytes -= event.entry().value.len();
        }
        Ok(event)
    }

    /// Adds an event; false if the watcher is to be cut off instead.
    fn push(&self, event: &Arc<Event>) -> bool {
        if event.revision <= self.after {
            return true;
        }
        let mut waiting = self.lock();
        let bytes = waiting.bytes + event.entry().value.len();
        if waiting.events.len() >= BUFFER_EVENTS_MAX || bytes > BUFFER_BYTES_MAX {
            drop(waiting);
            self.end(WatchEnd::Slow);
            return false;
        }
        waiting.bytes = bytes;
        waiting.events.push_back(event.clone());
        drop(waiting);
        self.wake.notify_one();
        true
    }

    fn end(&self, end: WatchEnd) {
        let mut waiting = self.lock();
        *waiting = Waiting { end: Some(end), ..Waiting::default() };
        drop(waiting);
        self.wake.notify_one();
    }
}

/// All watchers, found by the prefix they watch. There are few lengths of prefixes, so the watchers
/// of a key are found by looking up each of its beginnings that has such a length.
#[derive(Debug, Default)]
struct Watchers {
    by_prefix: HashMap<Bytes, Group>,
    /// How many prefixes have a length.
    lengths: BTreeMap<usize, usize>,
    cut_off: u64,
}

/// The watchers of one prefix.
#[derive(Debug, Default)]
struct Group {
    all: Vec<Arc<Buffer>>,
    /// Those that ask for marked values, by lead and value.
    marked: HashMap<&'static [u8], HashMap<Bytes, Vec<Arc<Buffer>>>>,
}

impl Group {
    fn add(&mut self, buffer: Arc<Buffer>) {
        let place = match &buffer.mark {
            None => &mut self.all,
            Some(Mark { lead, value }) => {
                self.marked.entry(*lead).or_default().entry(value.clone()).or_default()
            }
        };
        place.push(buffer);
    }

    fn remove(&mut self, buffer: &Arc<Buffer>) {
        let others = |other: &Arc<Buffer>| !Arc::ptr_eq(other, buffer);
        match &buffer.mark {
            None => self.all.retain(others),
            Some(Mark { lead, value }) => self.retain_marked(lead, value, others),
        }
    }

    fn retain_marked(&mut self, lead: &[u8], value: &[u8], keep: impl FnMut(&Arc<Buffer>) -> bool) {
        let Some(by_value) = self.marked.get_mut(lead) else { return };
        let Some(watchers) = by_value.get_mut(value) else { return };
        watchers.retain(keep);
        if watchers.is_empty() {
            by_value.remove(value);
        }
        if by_value.is_empty() {
            self.marked.remove(lead);
        }
    }

    /// Gives an event to those who ask for it; says how many were cut off.
    fn deliver(&mut self, event: &Arc<Event>) -> u64 {
        let mut cut_off = 0;
        let mut push = |watcher: &Arc<Buffer>| {
            let keeps_up = watcher.push(event);
            cut_off += u64::from(!keeps_up);
            keeps_up
        };
        self.all.retain(&mut push);
        let leads: Vec<&'static [u8]> = self.marked.keys().copied().collect();
        for lead in leads {
            for value in marks(event, lead) {
                self.retain_marked(lead, value, &mut push);
            }
        }
        cut_off
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty() && self.marked.is_empty()
    }

    fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        let marked = self.marked.values().flat_map(HashMap::values);
        self.all.iter().chain(marked.flatten())
    }
}

impl Watchers {
    fn add(&mut self, buffer: Arc<Buffer>) {
        let length = buffer.prefix.len();
        let lengths = &mut self.lengths;
        let watchers = self.by_prefix.entry(buffer.prefix.clone()).or_insert_with(|| {
            *lengths.entry(length).or_insert(0) += 1;
            Group::default()
        });
        watchers.add(buffer);
    }

    /// Removes a watcher; fine if it was cut off before.
    fn remove(&mut self, buffer: &Arc<Buffer>) {
        if let Some(watchers) = self.by_prefix.get_mut(&buffer.prefix) {
            watchers.remove(buffer);
        }
        self.forget_if_unwatched(&buffer.prefix);
    }

    fn forget_if_unwatched(&mut self, prefix: &[u8]) {
        if self.by_prefix.get(prefix).is_none_or(|watchers| !watchers.is_empty()) {
            return;
        }
        self.by_prefix.remove(prefix);
        let count = self.lengths.get_mut(&prefix.len()).expect("each prefix is counted");
        *count -= 1;
        if *count == 0 {
            self.lengths.remove(&prefix.len());
        }
    }

    fn deliver(&mut self, event: &Arc<Event>) {
        let mut emptied = Vec::new();
        for (&length, _) in self.lengths.range(..=event.key.len()) {
            let prefix = &event.key[..length];
            let Some(watchers) = self.by_prefix.get_mut(prefix) else {
                continue;
            };
            self.cut_off += watchers.deliver(event);
            if watchers.is_empty() {
                emptied.push(length);
            }
        }
        for length in emptied {
            self.forget_if_unwatched(&event.key[..length]);
        }
    }

    fn end_all(&mut self, end: WatchEnd) {
        for watcher in self.by_prefix.values().flat_map(Group::buffers) {
            watcher.end(end);
        }
        self.by_prefix.clear();
        self.lengths.clear();
    }

    fn len(&self) -> usize {
        self.by_prefix.values().flat_map(Group::buffers).count()
    }
}

/// What readers and watchers see of the store. The state machine is the only one that writes to it.
#[derive(Debug)]
pub(crate) struct Feed {
    current: watch::Sender<Snapshot>,
    past: Mutex<Past>,
    faults: Faults,
}

#[derive(Debug)]
struct Past {
    history: History,
    watchers: Watchers,
    /// Set once the store has stopped: no watch begins any more.
    stopped: bool,
}

/// Sizes of the feed, for metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedSizes {
    pub(crate) oldest: Revision,
    pub(crate) revisions: usize,
    pub(crate) bytes: u64,
    pub(crate) watchers: usize,
    pub(crate) cut_off: u64,
}

impl Feed {
    pub(crate) fn new(bounds: Window, current: Snapshot, faults: Faults) -> Arc<Feed> {
        let (history, watchers) = (History::new(bounds, current.clone()), Watchers::default());
        Arc::new(Feed {
            current: watch::Sender::new(current),
            past: Mutex::new(Past { history, watchers, stopped: false }),
            faults,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Past> {
        self.past.lock().expect("no section of this lock panics")
    }

    /// Makes changes visible, which led to `current`, and sends their events out: in this order, so
    /// that whoever acts on an event finds its object.
    pub(crate) fn publish(&self, records: Vec<Record>, current: Snapshot) {
        let mut past = self.lock();
        let revision = current.revision;
        self.current.send_replace(current);
        for record in records {
            past.watchers.deliver(&record.event);
            past.history.push(record);
        }
        let forgotten = past.history.advance(revision);
        drop(past);
        drop(forgotten);
    }

    /// Begins anew from a state that came as a whole. All watches end: the events in between are
    /// not known here.
    pub(crate) fn replace(&self, current: Snapshot) {
        let mut past = self.lock();
        past.watchers.end_all(WatchEnd::Slow);
        past.stopped = false;
        let bounds = past.history.bounds();
        past.history = History::new(bounds, current.clone());
        drop(past);
        self.current.send_replace(current);
    }

    /// Ends all watches, and those still to come.
    pub(crate) fn stop(&self) {
        let mut past = self.lock();
        past.stopped = true;
        past.watchers.end_all(WatchEnd::Stopped);
    }

    pub(crate) fn current(&self) -> Snapshot {
        self.current.borrow().clone()
    }

    /// Follows the newest state.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.current.subscribe()
    }

    pub(crate) fn at(&self, revision: Revision) -> Result<Snapshot, WindowError> {
        self.lock().history.at(revision)
    }

    pub(crate) fn watch(
        self: &Arc<Feed>,
        prefix: Bytes,
        mark: Option<Mark>,
        after: Revision,
    ) -> Result<Watch, WindowError> {
        let waiting = Mutex::new(Waiting::default());
        let buffer = Arc::new(Buffer { prefix, mark, after, waiting, wake: Notify::new() });
        let mut past = self.lock();
        let edge = self.faults.has(Bug::EventDroppedAtEdge) && after == past.history.oldest();
        let backlog = past.history.since(after)?.skip(edge.into());
        let backlog = backlog.filter(|event| event.key.starts_with(&buffer.prefix));
        let backlog = backlog.cloned().collect();
        if past.stopped {
            buffer.end(WatchEnd::Stopped);
        } else {
            past.watchers.add(buffer.clone());
        }
        drop(past);
        Ok(Watch { backlog, buffer, feed: self.clone() })
    }

    pub(crate) fn sizes(&self) -> FeedSizes {
        let past = self.lock();
        FeedSizes {
            oldest: past.history.oldest(),
            revisions: past.history.len(),
            bytes: past.history.bytes(),
            watchers: past.watchers.len(),
            cut_off: past.watchers.cut_off,
        }
    }
}

#[cfg(test)]
mod tests;
