//! Values computed from stored objects of a few kinds, always as new as the store.
//!
//! A watch on each kind's keys tells whether anything has changed since the value was made; that
//! question costs a lock and a look at an empty queue, so it can be asked at every request. Whoever
//! has seen a write answered gets a value that knows of it, because events are published before the
//! state they lead to.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wherry_store::{Snapshot, Store, Watch};

/// A value over the objects with some prefixes.
pub struct Derived<T> {
    prefixes: Vec<Bytes>,
    /// Held for a look at the watches, and while the value is made anew; never across an await.
    state: Mutex<Option<State<T>>>,
}

struct State<T> {
    watches: Vec<Watch>,
    value: Arc<T>,
}

impl<T> Derived<T> {
    /// Nothing is read before the first [`get`](Self::get).
    pub fn new(prefixes: Vec<Bytes>) -> Derived<T> {
        Derived { prefixes, state: Mutex::new(None) }
    }

    /// The value for the present state; `make` is called when an object has changed, with the value
    /// before.
    pub fn get(&self, store: &Store, make: impl FnOnce(&Snapshot, Option<&T>) -> T) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Put back with the newest value: after a panic whoever asks next begins anew.
        let (before, watches) = match state.take() {
            None => (None, None),
            Some(mut held) => match news(&mut held.watches) {
                News::None => return state.insert(held).value.clone(),
                News::Some => (Some(held.value), Some(held.watches)),
                News::Lost => (Some(held.value), None),
            },
        };
        let snapshot = store.current();
        let value = Arc::new(make(&snapshot, before.as_deref()));
        let watches = watches.or_else(|| self.watch(store, &snapshot));
        *state = watches.map(|watches| State { watches, value: value.clone() });
        value
    }

    /// A prefix that cannot be watched (the store is stopping) leaves nothing to remember.
    fn watch(&self, store: &Store, from: &Snapshot) -> Option<Vec<Watch>> {
        let prefixes = self.prefixes.iter();
        prefixes.map(|prefix| store.watch(prefix.clone(), from.revision()).ok()).collect()
    }
}

enum News {
    None,
    Some,
    /// The watches cannot tell any more.
    Lost,
}

fn news(watches: &mut [Watch]) -> News {
    let mut news = News::None;
    for watch in watches {
        loop {
            match watch.ready() {
                Ok(Some(_)) => news = News::Some,
                Ok(None) => break,
                Err(_) => return News::Lost,
            }
        }
    }
    news
}
