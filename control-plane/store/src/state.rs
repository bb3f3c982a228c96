//! The state machine, without disk, network or clock: what a command does to the key space, and the
//! window of past states that lists and watches may still ask for.
//!
//! Words: the *root* is the whole key space as an immutable ordered map that shares its structure
//! with all others made from it; the *revision* of a state is the Raft log index of the last entry
//! applied to it; the *window* is a bounded ring of the last events, with roots between them.
//!
//! Invariants:
//! - `apply` depends on its arguments only. Time travels inside the command.
//! - A revision names one state: a root is never changed after it was published.
//! - The window has no gaps: every event after its oldest root is in it, so a state whose root was
//!   not kept is made again from the last one before it.
//! - The hash of a state is the sum of the hashes of its objects, so that each write changes it by
//!   a subtraction and an addition, and members with the same objects have the same sum.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hasher as _;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::faults::{Bug, Faults};
use crate::watch::{Change, Event};

/// The Raft log index of a write; with it every state of the store has a number.
pub type Revision = u64;

/// The key space at one revision.
pub(crate) type Root = OrdMap<Bytes, Entry>;

/// What is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes that were put.
    pub value: Bytes,
    /// The revision that made the key; later writes keep it.
    pub created: Revision,
    /// The revision of the last write.
    pub modified: Revision,
}

/// What must hold, at the moment the write is applied, for it to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The key exists and was last written at this revision.
    At(Revision),
}

impl Precondition {
    fn holds(self, current: Option<&Entry>) -> bool {
        match self {
            Precondition::Any => true,
            Precondition::Absent => current.is_none(),
            Precondition::Present => current.is_some(),
            Precondition::At(revision) => current.is_some_and(|entry| entry.modified == revision),
        }
    }
}

/// One write, as it travels through the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The leader's wall clock when it proposed the write, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// Names the write among all others, so that whoever made it knows it again; zero if nobody has
    /// to.
    pub(crate) id: u64,
    pub(crate) key: Bytes,
    pub(crate) precondition: Precondition,
    pub(crate) action: Action,
}

/// What a command does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Put(Bytes),
    Delete,
    /// The leader's own: notes the hash of the state, to be compared by the next of these, which
    /// says what the majority had at the last one.
    Check {
        verdict: Option<Mark>,
    },
}

/// The hash of the state at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) revision: Revision,
    pub(crate) hash: u128,
}

/// For the log only; values are nobody's business there.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.action {
            Action::Put(_) => "put",
            Action::Delete => "delete",
            Action::Check { .. } => "check",
        };
        write!(f, "{verb} {}", self.key.escape_ascii())
    }
}

/// What became of a log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The entry was Raft's own, or the leader's.
    Nothing,
    Put {
        entry: Entry,
        previous: Option<Entry>,
    },
    Deleted {
        last: Entry,
    },
    /// The precondition did not hold, or there was nothing to delete.
    Refused {
        current: Option<Entry>,
    },
}

/// The key space with the revision it stands at.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) root: Root,
    pub(crate) revision: Revision,
    /// The latest time any command carried; never goes back.
    pub(crate) time_ms: u64,
    /// Bytes of all keys and values.
    pub(crate) bytes: u64,
    /// The sum of the hashes of all objects.
    pub(crate) hash: u128,
    /// What the next check compares.
    pub(crate) mark: Option<Mark>,
    pub(crate) faults: Faults,
}

impl State {
    /// A state read back from disk or received from another member.
    pub(crate) fn restored(
        root: Root,
        revision: Revision,
        time_ms: u64,
        mark: Option<Mark>,
        faults: Faults,
    ) -> State {
        let bytes = root.iter().map(|(key, entry)| size(key, entry)).sum();
        let mut state = State { root, revision, time_ms, bytes, hash: 0, mark, faults };
        let add = |sum: u128, (key, entry): (&Bytes, &Entry)| {
            sum.wrapping_add(part(&state.faults, key, entry))
        };
        state.hash = state.root.iter().fold(0, add);
        state
    }

    /// Puts another hash in the place of one that was there.
    fn rehash(&mut self, key: &Bytes, before: Option<&Entry>, after: Option<&Entry>) {
        let part = |entry: Option<&Entry>| entry.map_or(0, |entry| part(&self.faults, key, entry));
        let (before, after) = (part(before), part(after));
        self.hash = self.hash.wrapping_sub(before).wrapping_add(after);
    }

    /// Turns a bit of the last object over, as memory does that is not sound.
    pub(crate) fn flip_bit(&mut self) {
        let last = self.root.get_max().map(|(key, entry)| (key.clone(), entry.clone()));
        let Some((key, entry)) = last else {
            return;
        };
        let mut value = entry.value.to_vec();
        if let Some(byte) = value.first_mut() {
            *byte ^= 1;
        }
        self.root.insert(key, Entry { value: value.into(), ..entry });
    }

    /// This state, to be kept.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { revision: self.revision, root: self.root.clone() }
    }
}

fn size(key: &Bytes, entry: &Entry) -> u64 {
    (key.len() + entry.value.len()) as u64
}

/// What an object adds to the hash of a state.
pub(crate) fn part(faults: &Faults, key: &[u8], entry: &Entry) -> u128 {
    if faults.has(Bug::HashSkipsFamily) && key.first().is_some_and(|byte| byte % 2 == 1) {
        return 0;
    }
    object_hash(key, entry)
}

/// The hash of one object. It finds accidents, so its key may be known; it is the same on all
/// members and for all time, for it lies on disk.
pub(crate) fn object_hash(key: &[u8], entry: &Entry) -> u128 {
    let keys = (u64::from_be_bytes(*b"\0\0wherry"), u64::from_be_bytes(*b"\0\0\0store"));
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write(&(key.len() as u64).to_le_bytes());
    hasher.write(key);
    hasher.write(&entry.created.to_le_bytes());
    hasher.write(&entry.modified.to_le_bytes());
    hasher.write(&entry.value);
    hasher.finish128().into()
}

/// The hash of a whole key space, made anew.
#[cfg(test)]
pub(crate) fn hash(root: &Root) -> u128 {
    root.iter().fold(0, |sum, (key, entry)| sum.wrapping_add(object_hash(key, entry)))
}

/// What the majority had at the state's mark, if this state had something else.
pub(crate) fn differs(state: &State, command: &Command) -> Option<Mark> {
    let Action::Check { verdict: Some(verdict) } = command.action else {
        return None;
    };
    let own = state.mark?;
    (own.revision == verdict.revision && own.hash != verdict.hash).then_some(verdict)
}

/// Applies one command at its revision. The same commands at the same revisions make the same state
/// on every member.
pub(crate) fn apply(state: &mut State, revision: Revision, command: &Command) -> Outcome {
    assert!(revision >= state.revision, "entries are applied in log order");
    state.revision = revision;
    state.time_ms = state.time_ms.max(command.time_ms);

    if let Action::Check { .. } = command.action {
        state.mark = Some(Mark { revision, hash: state.hash });
        return Outcome::Nothing;
    }
    let previous = state.root.get(&command.key).cloned();
    if !command.precondition.holds(previous.as_ref()) {
        return Outcome::Refused { current: previous };
    }
    match &command.action {
        Action::Put(value) => {
            let created = previous.as_ref().map_or(revision, |entry| entry.created);
            let entry = Entry { value: value.clone(), created, modified: revision };
            let before = previous.as_ref().map_or(0, |entry| size(&command.key, entry));
            state.bytes = state.bytes - before + size(&command.key, &entry);
            state.rehash(&command.key, previous.as_ref(), Some(&entry));
            state.root.insert(command.key.clone(), entry.clone());
            Outcome::Put { entry, previous }
        }
        Action::Delete => {
            let Some(last) = previous else {
                return Outcome::Refused { current: None };
            };
            state.bytes -= size(&command.key, &last);
            state.rehash(&command.key, Some(&last), None);
            state.root.remove(&command.key);
            Outcome::Deleted { last }
        }
        Action::Check { .. } => unreachable!("checks were answered above"),
    }
}

/// The whole key space at one revision; cheap to clone, never changes, blocks nobody.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) root: Root,
}

impl Snapshot {
    /// The revision this is the state of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What is under a key.
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.root.get(key).cloned()
    }

    /// The keys that start with `prefix`, in order; only those behind `after`, if it is given.
    pub fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (Bytes, Entry)> + use<'_> {
        self.within(prefix, after).map(|(key, entry)| (key.clone(), entry.clone()))
    }

    /// How many keys `range` would give.
    pub fn count(&self, prefix: &[u8], after: Option<&[u8]>) -> usize {
        self.within(prefix, after).count()
    }

    fn within(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (&Bytes, &Entry)> + use<'_> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let entries = self.root.range::<_, [u8]>((start, Bound::Unbounded));
        let prefix = prefix.to_vec();
        entries.take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.root.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

/// How much of the past is kept; whichever bound is reached first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How many changes.
    pub revisions: usize,
    /// How old, against the newest change: a store at rest forgets nothing.
    pub age: Duration,
    /// Memory that only the past needs, estimated.
    pub bytes: u64,
}

impl Default for Window {
    /// Five minutes is what Kubernetes clients expect of a resourceVersion; ten thousand changes
    /// and 256 MiB bound what a busy cluster pays for it.
    fn default() -> Window {
        Window { revisions: 10_000, age: Duration::from_secs(5 * 60), bytes: 256 << 20 }
    }
}

/// Why a revision cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// It is older than the window; read the current state instead.
    #[error("revision is too old, the oldest one kept is {oldest}")]
    Gone {
        /// The oldest revision that can be had.
        oldest: Revision,
    },
    /// It is not there yet.
    #[error("revision is in the future, the current one is {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
}

/// One change in the window.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) event: Arc<Event>,
    /// What it led to; of those that were applied together the last one surely has it. A root that
    /// is kept is never changed, so each costs the next change a copy of what it touches.
    pub(crate) root: Option<Root>,
    pub(crate) time_ms: u64,
}

/// Changes from one root that is kept to the next at most: making a state again takes a fraction of
/// a millisecond.
pub(crate) const ROOT_EVERY: usize = 64;

/// What one kept root costs beside its values: about 3.4 KB were measured at 100,000 objects.
const ROOT_BYTES: u64 = 4096;

impl Record {
    /// What the window pays for it: the value, its encoded form, the replaced value, the root.
    fn bytes(&self) -> u64 {
        let value = self.event.entry().value.len() as u64;
        let previous = self.event.previous.as_ref().map_or(0, |entry| entry.value.len() as u64);
        ROOT_BYTES + self.event.key.len() as u64 + 2 * value + previous
    }
}

/// The ring of the last states. Between two records the state is the earlier one's.
#[derive(Debug)]
pub(crate) struct History {
    bounds: Window,
    /// The oldest state that can still be had.
    base: Snapshot,
    records: VecDeque<Record>,
    bytes: u64,
    /// The newest revision, which may be one without a change.
    current: Revision,
}

impl History {
    /// A history that begins here.
    pub(crate) fn new(bounds: Window, base: Snapshot) -> History {
        let current = base.revision;
        History { bounds, base, records: VecDeque::new(), bytes: 0, current }
    }

    /// Adds a change; `advance` must follow.
    pub(crate) fn push(&mut self, record: Record) {
        assert!(record.event.revision > self.current, "changes come in order");
        self.current = record.event.revision;
        self.bytes += record.bytes();
        self.records.push_back(record);
    }

    /// Notes how far the store has come and forgets what is out of bounds, returned so that the
    /// caller can drop it after its lock. The last change must have its root.
    pub(crate) fn advance(&mut self, current: Revision) -> Vec<Record> {
        assert!(self.records.back().is_none_or(|record| record.root.is_some()), "it has its root");
        self.current = self.current.max(current);
        let newest = self.records.back().map_or(0, |record| record.time_ms);
        let horizon = newest.saturating_sub(self.bounds.age.as_millis() as u64);
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.records.front() {
            let fits = self.records.len() <= self.bounds.revisions
                && self.bytes <= self.bounds.bytes
                && oldest.time_ms >= horizon;
            if fits {
                break;
            }
            self.forget(&mut forgotten);
        }
        forgotten
    }

    /// Forgets the oldest changes up to the next root, from which on all can be had.
    fn forget(&mut self, forgotten: &mut Vec<Record>) {
        while let Some(oldest) = self.records.pop_front() {
            self.bytes -= oldest.bytes();
            let (revision, root) = (oldest.event.revision, oldest.root.clone());
            forgotten.push(oldest);
            if let Some(root) = root {
                self.base = Snapshot { revision, root };
                return;
            }
        }
    }

    /// The state at exactly this revision.
    pub(crate) fn at(&self, revision: Revision) -> Result<Snapshot, WindowError> {
        if revision > self.current {
            return Err(WindowError::Future { current: self.current });
        }
        let after = self.first_after(revision)?;
        let kept = |index: usize| Some((index + 1, self.records[index].root.clone()?));
        let kept = (0..after).rev().find_map(kept);
        let (first, mut root) = kept.unwrap_or_else(|| (0, self.base.root.clone()));
        for Record { event, .. } in self.records.range(first..after) {
            match &event.change {
                Change::Put(entry) => root.insert(event.key.clone(), entry.clone()),
                Change::Delete(_) => root.remove(&event.key),
            };
        }
        Ok(Snapshot { revision, root })
    }

    /// All changes after a revision, in order.
    pub(crate) fn since(
        &self,
        after: Revision,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, WindowError> {
        let first = self.first_after(after)?;
        Ok(self.records.range(first..).map(|record| &record.event))
    }

    /// The index of the first record after a revision, which must not be older than the window.
    fn first_after(&self, revision: Revision) -> Result<usize, WindowError> {
        if revision < self.base.revision {
            return Err(WindowError::Gone { oldest: self.base.revision });
        }
        Ok(self.records.partition_point(|record| record.event.revision <= revision))
    }

    pub(crate) fn bounds(&self) -> Window {
        self.bounds
    }

    pub(crate) fn newest(&self) -> Revision {
        self.current
    }

    pub(crate) fn oldest(&self) -> Revision {
        self.base.revision
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests;
