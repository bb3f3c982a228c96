//! The objects of one kind as printed rows, kept once for everybody who looks at the kind.
//!
//! ```text
//!            one watch                 changes since              their filter, order, window
//!   store ─────────────▶ Printed ──┬──────────────────▶ View of anna ─────────────▶ browser
//!                        on a Shelf └─────────────────▶ View of bert
//! ```
//!
//! Reading and printing ten thousand objects takes a second; looking at them takes a moment. So a
//! list is printed when somebody first asks for it, a large one beside everything else, follows its
//! watch from then on, and is given back when nobody has looked for [`KEPT`]. Whoever asks takes in
//! what the store has published meanwhile, as in `follow`.
//!
//! Nothing here knows who asks: a [`View`] takes what its person may see.
//!
//! Invariant: between the row that a change puts and the one before it there is no other; a view
//! that has taken all changes up to [`Printed::now`] holds what one that begins there does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use wherry_resources::custom::Definition;
use wherry_resources::{Kind, Object};
use wherry_store::{Change as Written, Event, Snapshot, Store, Watch, WatchEnd};

use super::row::{self, Row};
use super::view::View;
use crate::apiserver::{ApiServer, custom, errors::ApiError, stored};
use crate::contain;

/// What a list may hold; twice what a cluster is designed for would.
pub const ROWS_MAX: usize = 200_000;
/// Changes that are kept for those who look: some seconds of a busy cluster. Who is further behind
/// begins anew.
const CHANGES_MAX: usize = 1024;
/// Events that are taken in at a time: printing them takes some milliseconds.
const EVENTS_MAX: usize = 256;
/// A list of so many is printed at once, a longer one beside.
const SMALL: usize = 500;
/// For so long a list is kept that nobody looks at: as long as one is away for a coffee.
const KEPT: Duration = Duration::from_secs(300);

/// One row that came, went, or is another.
#[derive(Clone, Debug)]
pub struct Change {
    pub before: Option<Arc<Row>>,
    pub now: Option<Arc<Row>>,
}

/// What somebody who looks does not know yet.
#[derive(Debug)]
pub enum Missed {
    Changes(Vec<Change>),
    /// Everything, in the order of keys.
    All(Vec<Arc<Row>>),
}

/// The objects of one kind, printed.
pub struct Printed {
    kind: &'static Kind,
    columns: Vec<String>,
    rows: BTreeMap<Bytes, Arc<Row>>,
    /// Changes ever made; the last of them are kept.
    now: u64,
    changes: VecDeque<Change>,
    /// None: a list of the past.
    watch: Option<Watch>,
}

impl Printed {
    /// An empty list that will follow a watch.
    pub fn new(kind: &'static Kind, watch: Option<Watch>) -> Printed {
        Printed {
            kind,
            columns: row::columns(kind),
            rows: BTreeMap::new(),
            now: 0,
            changes: VecDeque::new(),
            watch,
        }
    }

    /// Whether it follows the present.
    pub fn lives(&self) -> bool {
        self.watch.is_some()
    }

    /// An object is there, or is there in another form.
    pub fn put(&mut self, key: Bytes, object: &Object, now: Timestamp) {
        let row = Arc::new(Row::print(self.kind, key.clone(), object, now));
        let before = self.rows.insert(key, row.clone());
        self.note(Change { before, now: Some(row) });
    }

    /// An object is gone.
    pub fn remove(&mut self, key: &[u8]) {
        if let Some(before) = self.rows.remove(key) {
            self.note(Change { before: Some(before), now: None });
        }
    }

    /// Prints an object again; nothing changes if it reads the same.
    pub fn refresh(&mut self, key: &Bytes, object: &Object, now: Timestamp) {
        let row = Row::print(self.kind, key.clone(), object, now);
        if self.rows.get(key).is_some_and(|old| !old.reads_as(&row, &self.columns)) {
            self.put(key.clone(), object, now);
        }
    }

    fn note(&mut self, change: Change) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.now += 1;
    }

    /// What has happened since a change, and up to which one that is.
    pub fn since(&self, seen: Option<u64>) -> (Missed, u64) {
        let behind = seen.map(|seen| usize::try_from(self.now - seen).unwrap_or(usize::MAX));
        let missed = match behind.and_then(|behind| self.changes.len().checked_sub(behind)) {
            Some(first) => Missed::Changes(self.changes.range(first..).cloned().collect()),
            None => Missed::All(self.rows.values().cloned().collect()),
        };
        (missed, self.now)
    }

    /// Events that have not been taken in, a few at a time.
    pub fn events(&mut self) -> Result<Vec<Arc<Event>>, WatchEnd> {
        let Some(watch) = &mut self.watch else { return Ok(Vec::new()) };
        let mut events = Vec::new();
        while events.len() < EVENTS_MAX
            && let Some(event) = watch.ready()?
        {
            events.push(event);
        }
        Ok(events)
    }

    /// Prints what is in a window again: some cells tell how long ago something was.
    pub fn print_again(&mut self, store: &Store, window: &[Bytes]) {
        let (snapshot, now) = (store.current(), Timestamp::now());
        for key in window {
            let Some(entry) = snapshot.get(key) else { continue };
            let object = stored::decode_to_print(self.kind, &entry.value, entry.modified);
            if !custom::is_foreign(self.kind, &object) {
                self.refresh(key, &object, now);
            }
        }
    }

    /// All objects of a state, behind which the list follows the store.
    fn print(kind: &'static Kind, store: &Store, from: &Snapshot) -> Option<Printed> {
        let prefix = stored::prefix(kind, None);
        let watch = store.watch(prefix.clone(), from.revision()).ok()?;
        let mut printed = Printed::new(kind, Some(watch));
        let now = Timestamp::now();
        for (key, entry) in from.range(&prefix, None) {
            let object = stored::decode_to_print(kind, &entry.value, entry.modified);
            let row = Row::print(kind, key.clone(), &object, now);
            printed.rows.insert(key, Arc::new(row));
        }
        Some(printed)
    }

    fn catch_up(&mut self) -> Result<(), WatchEnd> {
        for event in self.events()? {
            match &event.change {
                Written::Put(entry) => {
                    let object = stored::decode_to_print(self.kind, &entry.value, event.revision);
                    self.put(event.key.clone(), &object, Timestamp::now());
                }
                Written::Delete(_) => self.remove(&event.key),
            }
        }
        Ok(())
    }
}

/// A list that has ended: its watch fell behind, or its kind is not what it was.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended;

/// A list for everybody.
pub struct Shared {
    kind: &'static Kind,
    /// Of a custom kind, what it was printed by.
    definition: Option<Arc<Definition>>,
    /// A std mutex: its sections print a few rows, and never await.
    state: Mutex<State>,
}

enum State {
    /// It is being printed.
    Coming,
    Kept {
        printed: Box<Printed>,
        looked: Instant,
    },
    Ended,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self, store: &Store) {
        let printed = contain::sync(|| Printed::print(self.kind, store, &store.current()));
        let kept = |printed| State::Kept { printed: Box::new(printed), looked: Instant::now() };
        *self.lock() = printed.ok().flatten().map_or(State::Ended, kept);
    }

    fn is_current(&self, kind: &Kind) -> bool {
        let is_same = match (&self.definition, kind.custom()) {
            (Some(own), Some(present)) => Arc::ptr_eq(own, &present),
            (own, present) => own.is_none() && present.is_none(),
        };
        is_same && !matches!(*self.lock(), State::Ended)
    }

    /// Takes in what has happened, and tells a view what it has missed; nothing while the list is
    /// still being printed.
    pub fn tell(&self, view: &mut View) -> Result<(), Ended> {
        if !self.is_current(self.kind) {
            return Err(Ended);
        }
        let (missed, now) = {
            let mut state = self.lock();
            let State::Kept { printed, looked } = &mut *state else { return Ok(()) };
            *looked = Instant::now();
            if printed.catch_up().is_err() {
                *state = State::Ended;
                return Err(Ended);
            }
            printed.since(view.seen())
        };
        // Filtering and sorting is each one's own, and holds nobody up.
        view.take(missed, now);
        Ok(())
    }

    /// Prints the window of somebody who looks again.
    pub fn print_again(&self, store: &Store, window: &[Bytes]) {
        if let State::Kept { printed, .. } = &mut *self.lock() {
            printed.print_again(store, window);
        }
    }

    /// Follows the store though nobody asks. False: it is given back.
    fn keep(&self) -> bool {
        let mut state = self.lock();
        match &mut *state {
            State::Coming => true,
            State::Kept { printed, looked } => {
                looked.elapsed() < KEPT && printed.catch_up().is_ok()
            }
            State::Ended => false,
        }
    }
}

/// The lists that are kept, by kind.
#[derive(Default)]
pub struct Shelf(Mutex<HashMap<Name, Arc<Shared>>>);

/// Group, version, plural.
type Name = (&'static str, &'static str, &'static str);

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Arc<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list of a kind, which may still be coming; None if the kind has more than [`ROWS_MAX`]
    /// objects, or a webhook must be asked about each of them.
    pub fn get(
        &self,
        api: &ApiServer,
        kind: &'static Kind,
    ) -> Result<Option<Arc<Shared>>, ApiError> {
        if custom::by_webhook(kind) {
            return Ok(None);
        }
        let name = (kind.group, kind.version, kind.plural);
        let mut lists = self.lock();
        if let Some(list) = lists.get(&name).filter(|list| list.is_current(kind)) {
            return Ok(Some(list.clone()));
        }
        let count = api.store().current().count(&stored::prefix(kind, None), None);
        if count > ROWS_MAX {
            return Ok(None);
        }
        let (definition, state) = (kind.custom(), Mutex::new(State::Coming));
        let list = Arc::new(Shared { kind, definition, state });
        lists.insert(name, list.clone());
        drop(lists);
        if count <= SMALL {
            list.print(api.store());
        } else {
            let (api, list) = (api.clone(), list.clone());
            api.clone().tasks().spawn(async move {
                api.fairness().compute(|| list.print(api.store())).await;
            });
        }
        match &*list.lock() {
            State::Ended => Err(ApiError::Unavailable("the store tells no changes".to_owned())),
            _ => Ok(Some(list.clone())),
        }
    }

    /// Keeps all lists up to date, and gives back those that nobody looks at.
    pub fn keep(&self) {
        let lists: Vec<(Name, Arc<Shared>)> =
            self.lock().iter().map(|(name, list)| (*name, list.clone())).collect();
        for (name, list) in lists {
            if !list.keep() {
                let mut kept = self.lock();
                if kept.get(&name).is_some_and(|now| Arc::ptr_eq(now, &list)) {
                    kept.remove(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Look;
    use super::super::view::{Chosen, Scope};
    use super::*;
    use crate::apiserver::tests::script::Server;
    use crate::apiserver::verbs::select::Selection;

    fn kind() -> &'static Kind {
        wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind")
    }

    fn view() -> View {
        let selection = Selection::new(kind(), "", "").expect("selects everything");
        let chosen = Chosen { kind: kind(), scope: Scope::All, selection, owner: None };
        View::new(chosen, row::columns(kind()), Look { count: 9, ..Look::default() })
    }

    #[tokio::test]
    async fn one_list_serves_all_and_ends_when_nobody_looks() {
        let server = Server::start().await;
        let maps = "/api/v1/namespaces/default/configmaps";
        server.ok("POST", maps, r#"{"metadata":{"name":"a"}}"#).await;
        let shelf = Shelf::default();
        let get = || shelf.get(&server.api, kind()).expect("it can be had").expect("it is small");
        let list = get();
        assert!(Arc::ptr_eq(&list, &get()));
        let (mut one, mut other) = (view(), view());
        list.tell(&mut one).expect("it lives");
        server.ok("POST", maps, r#"{"metadata":{"name":"b"}}"#).await;
        list.tell(&mut one).expect("it lives");
        list.tell(&mut other).expect("it lives");
        let told = |view: &mut View| view.news().expect("there is news")["order"].clone();
        assert_eq!(told(&mut one), told(&mut other));
        shelf.keep();
        assert!(Arc::ptr_eq(&list, &get()), "somebody looked a moment ago");
        if let State::Kept { looked, .. } = &mut *list.lock() {
            *looked = looked.checked_sub(KEPT).expect("the machine runs for longer");
        }
        shelf.keep();
        assert!(!Arc::ptr_eq(&list, &get()));
    }

    #[tokio::test]
    async fn a_list_that_comes_tells_nothing_and_one_that_has_ended_is_made_anew() {
        let server = Server::start().await;
        let shelf = Shelf::default();
        let list = shelf.get(&server.api, kind()).expect("it can be had").expect("it is small");
        *list.lock() = State::Coming;
        let mut view = view();
        assert_eq!(list.tell(&mut view), Ok(()));
        assert_eq!(view.news(), None, "it is still being printed");
        *list.lock() = State::Ended;
        assert_eq!(list.tell(&mut view), Err(Ended));
        let anew = shelf.get(&server.api, kind()).expect("it can be had").expect("it is small");
        assert!(!Arc::ptr_eq(&list, &anew));
    }

    #[test]
    fn who_is_too_far_behind_is_told_everything() {
        let mut printed = Printed::new(kind(), None);
        let object = |version: usize| {
            serde_json::json!({"metadata": {"name": "a", "uid": "u",
                "resourceVersion": version.to_string()}})
        };
        for version in 0..=CHANGES_MAX {
            printed.put(Bytes::from_static(b"a"), &object(version), Timestamp::UNIX_EPOCH);
        }
        let told = |seen| match printed.since(seen).0 {
            Missed::Changes(changes) => format!("{} changes", changes.len()),
            Missed::All(rows) => format!("all {}", rows.len()),
        };
        assert_eq!(told(None), "all 1");
        assert_eq!(told(Some(0)), "all 1");
        assert_eq!(told(Some(1)), "1024 changes");
        assert_eq!(told(Some(1025)), "0 changes");
    }
}
