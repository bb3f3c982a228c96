//! The last day, kept in this member's memory: every change, and from them every state.
//!
//! A state of the past is the present one with all later changes undone, so nothing but changes is
//! kept, and their values are the store's own bytes. What only says that somebody is alive is not
//! kept ([`NOISE`]). A restart begins anew; losing the past loses no correctness. How far back it
//! goes is told with the reason ([`Since`]). The store does not know whose requests its changes
//! are: this member notes it of those that it has answered itself ([`Past::wrote`]).
//!
//! ```text
//!   past ◀── undo ── undo ── undo ── present       a Turn is one change: what was, what is since
//! ```
//!
//! Invariant: between `since` and now no change of a kept kind is missing. Where the member fell so
//! far behind that the store's window has moved on, the past begins anew.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use wherry_resources::{Kind, keys};
use wherry_store::{Change, Entry, Event, Revision, Store, Watch, WatchEnd, WindowError};

/// How far back one can go.
const AGE_MAX_MS: i64 = 24 * 3600 * 1000;
/// Values that are kept. A quiet cluster changes a few of them a minute; a busy one goes back less
/// far rather than take more.
const BYTES_MAX: usize = 64 << 20;
/// How often changes are taken in: their times are as exact as this, and the store's queue for one
/// watcher holds far more than a member writes meanwhile.
pub const REMEMBER: Duration = Duration::from_millis(250);
/// What a change costs beside its value, with the name of who made it.
const OVERHEAD_BYTES: usize = 256;
/// Kinds whose changes nobody made: heartbeats, and what follows from other objects.
pub const NOISE: &[(&str, &str)] = &[
    ("coordination.k8s.io", "leases"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "endpoints"),
    ("discovery.k8s.io", "endpointslices"),
];

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Turn {
    pub revision: Revision,
    /// When this member heard of it; None: before it began.
    pub at: Option<Timestamp>,
    pub key: Bytes,
    /// None: it was deleted.
    pub now: Option<Entry>,
    /// None: it was made.
    pub previous: Option<Entry>,
}

impl Turn {
    fn of(event: &Event, at: Option<Timestamp>) -> Turn {
        let (now, previous) = match &event.change {
            Change::Put(entry) => (Some(entry.clone()), event.previous.clone()),
            Change::Delete(last) => (None, Some(last.clone())),
        };
        Turn { revision: event.revision, at, key: event.key.clone(), now, previous }
    }

    fn bytes(&self) -> usize {
        // What was before is the value of an earlier turn, or still the store's.
        OVERHEAD_BYTES + self.key.len() + self.now.as_ref().map_or(0, |entry| entry.value.len())
    }
}

/// Why there is no state of that time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PastError {
    /// It is longer ago than this member remembers.
    #[error("this member remembers the cluster as it was from {since:.0} on, and not before")]
    TooOld { since: Timestamp },
    /// Nothing of this kind is kept.
    #[error("changes of {plural} are not kept: there are too many that say nothing")]
    NotKept { plural: String },
}

/// From when on the past is known, and why not from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    pub at: Timestamp,
    pub limit: Limit,
}

/// What keeps the past from going back further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// The member started then.
    #[default]
    Start,
    /// It had fallen behind the store, and began anew.
    Gap,
    /// What was before did not fit into [`BYTES_MAX`].
    Room,
    /// It is [`AGE_MAX_MS`] ago.
    Day,
}

impl Limit {
    /// As it stands on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Limit::Start => "start",
            Limit::Gap => "gap",
            Limit::Room => "room",
            Limit::Day => "day",
        }
    }
}

/// The past of this member's store.
#[derive(Default)]
pub struct Past {
    state: Mutex<State>,
    /// Whose requests made the changes. On its own: writers do not wait for who reads the past.
    authors: Mutex<BTreeMap<Revision, Box<str>>>,
}

#[derive(Default)]
struct State {
    watch: Option<Watch>,
    newest: Revision,
    kept: Kept,
}

/// What is kept. Pure.
#[derive(Default)]
struct Kept {
    /// From here on nothing is missing.
    since: Option<Timestamp>,
    limit: Limit,
    turns: VecDeque<Turn>,
    bytes: usize,
}

impl Past {
    fn state(&self) -> MutexGuard<'_, State> {
        // Held for a look at a queue and some moves; never across an await.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authors(&self) -> MutexGuard<'_, BTreeMap<Revision, Box<str>>> {
        self.authors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user's request has made a change.
    pub fn wrote(&self, kind: &Kind, revision: Revision, user: &str) {
        if !NOISE.contains(&(kind.group, kind.plural)) {
            self.authors().insert(revision, user.into());
        }
    }

    /// Who made a change, if this member answered the request.
    pub fn author(&self, revision: Revision) -> Option<Box<str>> {
        self.authors().get(&revision).cloned()
    }

    /// Takes in what has happened since the last call. To be called often: changes get their time
    /// here, and the store keeps them only for a while.
    pub fn catch_up(&self, store: &Store) {
        let mut state = self.state();
        state.catch_up(store, Timestamp::now());
        let Some(oldest) = state.kept.turns.front().map(|turn| turn.revision) else { return };
        drop(state);
        let mut authors = self.authors();
        while authors.first_key_value().is_some_and(|(first, _)| *first < oldest) {
            authors.pop_first();
        }
    }

    /// From when on the past is known.
    pub fn since(&self, store: &Store) -> Since {
        let mut state = self.state();
        state.catch_up(store, Timestamp::now());
        let Kept { since, limit, .. } = state.kept;
        Since { at: since.unwrap_or_else(Timestamp::now), limit }
    }

    /// The changes of wanted keys before a revision, the newest first. It looks at all that are
    /// kept: what is wanted must be quick to tell.
    pub fn turns(
        &self,
        store: &Store,
        before: Revision,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Vec<Turn> {
        let mut state = self.state();
        state.catch_up(store, Timestamp::now());
        let turns = state.kept.turns.iter().rev();
        turns.filter(|turn| turn.revision < before && wanted(&turn.key)).cloned().collect()
    }

    /// The objects below a prefix as they were.
    pub fn state_at(
        &self,
        store: &Store,
        prefix: &Bytes,
        at: Timestamp,
    ) -> Result<BTreeMap<Bytes, Entry>, PastError> {
        let kind = std::str::from_utf8(prefix).unwrap_or_default();
        let named = kind.split('\0').next().and_then(|kind| kind.split_once('/'));
        if let Some((_, plural)) = named.filter(|named| NOISE.contains(named)) {
            return Err(PastError::NotKept { plural: plural.to_owned() });
        }
        // Before the changes are taken in: then none of its own is missing among them.
        let present = store.current();
        let mut state = self.state();
        state.catch_up(store, Timestamp::now());
        let mut objects: BTreeMap<Bytes, Entry> = present.range(prefix, None).collect();
        state.kept.undo(&mut objects, prefix, at)?;
        Ok(objects)
    }
}

impl State {
    fn catch_up(&mut self, store: &Store, now: Timestamp) {
        loop {
            let Some(watch) = &mut self.watch else {
                if !self.begin(store, now) {
                    return;
                }
                continue;
            };
            match watch.ready() {
                Ok(Some(event)) => {
                    // What was there before this member began to look has no time that it knows.
                    let at = self.kept.since.map(|_| now);
                    self.newest = event.revision;
                    self.kept.take(&event, at);
                }
                Ok(None) => break,
                Err(WatchEnd::Slow) => self.watch = None,
                // Another watch would end at once as this one did; the next call tries it.
                Err(WatchEnd::Stopped) => {
                    self.watch = None;
                    return;
                }
            }
        }
        self.kept.since.get_or_insert(now);
        self.kept.forget(now);
    }

    /// Watches from where it was; where that is gone, from as far back as the store remembers.
    /// False: there is nothing to watch.
    fn begin(&mut self, store: &Store, now: Timestamp) -> bool {
        let every = Bytes::new();
        self.watch = match store.watch(every.clone(), self.newest) {
            Ok(watch) => Some(watch),
            Err(WindowError::Gone { oldest }) => {
                let is_first = self.kept.since.is_none();
                let limit = if is_first { Limit::Start } else { Limit::Gap };
                let since = (!is_first).then_some(now);
                self.kept = Kept { since, limit, ..Kept::default() };
                self.newest = oldest;
                store.watch(every, oldest).ok()
            }
            Err(_) => None,
        };
        self.watch.is_some()
    }
}

impl Kept {
    fn take(&mut self, event: &Event, at: Option<Timestamp>) {
        let kind = keys::parse(&event.key).map(|key| (key.group, key.plural));
        if kind.is_none_or(|kind| NOISE.contains(&kind)) {
            return;
        }
        let turn = Turn::of(event, at);
        self.bytes += turn.bytes();
        self.turns.push_back(turn);
    }

    /// Drops what is too old or too much; the past then begins behind it.
    fn forget(&mut self, now: Timestamp) {
        while let Some(oldest) = self.turns.front() {
            let age = oldest.at.map_or(0, |at| now.as_millisecond() - at.as_millisecond());
            if self.bytes <= BYTES_MAX && age <= AGE_MAX_MS {
                break;
            }
            self.bytes -= oldest.bytes();
            let limit = if age > AGE_MAX_MS { Limit::Day } else { Limit::Room };
            let at = oldest.at;
            self.turns.pop_front();
            self.begins(at, limit);
        }
        let oldest = Timestamp::from_millisecond(now.as_millisecond() - AGE_MAX_MS).ok();
        self.begins(oldest, Limit::Day);
    }

    /// Nothing before this is known, if it was.
    fn begins(&mut self, at: Option<Timestamp>, limit: Limit) {
        if at > self.since {
            (self.since, self.limit) = (at, limit);
        }
    }

    fn undo(
        &self,
        objects: &mut BTreeMap<Bytes, Entry>,
        prefix: &Bytes,
        at: Timestamp,
    ) -> Result<(), PastError> {
        let since = self.since.ok_or(PastError::TooOld { since: at })?;
        if at < since {
            return Err(PastError::TooOld { since });
        }
        for turn in self.turns.iter().rev() {
            if turn.at.is_none_or(|then| then <= at) {
                break;
            }
            if turn.key.starts_with(prefix) {
                match &turn.previous {
                    Some(entry) => objects.insert(turn.key.clone(), entry.clone()),
                    None => objects.remove(&turn.key),
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn entry(text: &str) -> Entry {
        Entry { value: Bytes::copy_from_slice(text.as_bytes()), created: 1, modified: 1 }
    }

    fn key(name: &str) -> Bytes {
        keys::object("", "configmaps", "default", name).into()
    }

    /// `a:1>2` at 5 s: it held 1 and holds 2 since; a missing side is no object.
    fn kept(since: i64, turns: &[(i64, &str, Option<&str>, Option<&str>)]) -> Kept {
        let mut kept = Kept { since: Some(at(since)), ..Kept::default() };
        for (revision, (second, name, previous, now)) in (1..).zip(turns) {
            let turn = Turn {
                revision,
                at: Some(at(*second)),
                key: key(name),
                now: now.map(entry),
                previous: previous.map(entry),
            };
            kept.bytes += turn.bytes();
            kept.turns.push_back(turn);
        }
        kept
    }

    /// A watch of it ends as soon as it begins, which must not be tried for ever.
    #[tokio::test]
    async fn a_store_that_has_stopped_is_left_alone() {
        let engine = wherry_store::Engine::Memory;
        let config = wherry_store::Config::founder(engine, "127.0.0.1:1");
        let store = Store::open(config).await.expect("a store in memory opens");
        let mut state = State::default();
        state.catch_up(&store, at(1));
        store.shutdown().await.expect("it stops");
        for second in 2..4 {
            state.catch_up(&store, at(second));
        }
    }

    #[test]
    fn a_state_of_the_past_is_the_present_undone() {
        let kept = kept(
            0,
            &[
                (10, "a", None, Some("1")),
                (20, "b", None, Some("1")),
                (30, "a", Some("1"), Some("2")),
                (40, "b", Some("1"), None),
            ],
        );
        let mut told = String::new();
        for second in [5, 10, 25, 35, 50] {
            let mut objects = BTreeMap::from([(key("a"), entry("2"))]);
            let prefix = keys::of_type("", "configmaps").into();
            kept.undo(&mut objects, &prefix, at(second)).expect("it is known");
            write!(told, "{second}:").expect("a string takes everything");
            for (key, entry) in objects {
                let name = keys::parse(&key).expect("a key").name.to_owned();
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                write!(told, " {name}={value}").expect("a string takes everything");
            }
            told.push('\n');
        }
        expect_test::expect![[r#"
            5:
            10: a=1
            25: a=1 b=1
            35: a=2 b=1
            50: a=2
        "#]]
        .assert_eq(&told);
    }

    #[test]
    fn what_is_forgotten_is_not_made_up() {
        let day = AGE_MAX_MS / 1000;
        let mut kept = kept(0, &[(10, "a", None, Some("1")), (day, "a", Some("1"), Some("2"))]);
        kept.forget(at(day - 1));
        assert_eq!((kept.since, kept.limit), (Some(at(0)), Limit::Start));
        kept.forget(at(day + 11));
        assert_eq!((kept.turns.len(), kept.limit), (1, Limit::Day));
        let prefix = keys::of_type("", "configmaps").into();
        let told = kept.undo(&mut BTreeMap::new(), &prefix, at(10));
        assert_eq!(told, Err(PastError::TooOld { since: at(11) }));
        // Nothing changes for a day: it is known all the same.
        kept.forget(at(3 * day));
        assert!(kept.turns.is_empty() && kept.bytes == 0);
        kept.undo(&mut BTreeMap::new(), &prefix, at(2 * day)).expect("nothing to undo");
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_forgotten_for_room() {
        let large = "x".repeat(BYTES_MAX / 2);
        let mut kept = kept(
            0,
            &[(10, "a", None, Some(&large)), (20, "b", None, Some(&large)), (30, "c", None, None)],
        );
        kept.forget(at(40));
        assert_eq!(kept.turns.len(), 2);
        assert_eq!((kept.since, kept.limit), (Some(at(10)), Limit::Room));
    }
}
