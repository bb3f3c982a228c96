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
        let news = match state.as_mut() {
            Some(state) => news(&mut state.watches),
            None => News::Lost,
        };
        if news == News::None
            && let Some(state) = state.as_ref()
        {
            return state.value.clone();
        }
        let snapshot = store.current();
        let value = Arc::new(make(&snapshot, state.as_ref().map(|state| &*state.value)));
        if news == News::Some
            && let Some(state) = state.as_mut()
        {
            state.value = value.clone();
            return value;
        }
        // A prefix that cannot be watched (the store is stopping) leaves nothing to remember.
        let watches = self
            .prefixes
            .iter()
            .map(|prefix| store.watch(prefix.clone(), snapshot.revision()).ok());
        let watches: Option<Vec<Watch>> = watches.collect();
        *state = watches.map(|watches| State { watches, value: value.clone() });
        value
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
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
