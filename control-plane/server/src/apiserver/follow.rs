//! Values that are made of all objects below one prefix of the store, and follow it.
//!
//! Whoever asks first takes in what the store has published since, so an answer is never older than
//! the asker's own writes on this member, and no task runs for it: when nothing has changed, asking
//! costs one look at an empty queue.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use wherry_resources::keys::{self, Key};
use wherry_store::{Change, Entry, Store, Watch};

use crate::contain;

/// How often a fresh start is tried when the window moves on meanwhile.
const STARTS_MAX: usize = 3;

/// What is made of objects.
pub trait Fold: Default + Clone {
    /// An object is there, or is there in another form.
    fn put(&mut self, key: &Key<'_>, entry: &Entry);
    /// An object is gone.
    fn remove(&mut self, key: &Key<'_>);
}

/// A value that follows the store.
pub struct Followed<T> {
    prefix: Bytes,
    /// A std mutex: sections are short and never await.
    state: Mutex<State<T>>,
}

struct State<T> {
    watch: Option<Watch>,
    value: Arc<T>,
}

impl<T: Fold> Followed<T> {
    /// Follows all keys with this prefix, from the first question on.
    pub fn new(prefix: Vec<u8>) -> Followed<T> {
        let state = State { watch: None, value: Arc::new(T::default()) };
        Followed { prefix: prefix.into(), state: Mutex::new(state) }
    }

    /// The value as of everything that this member has published.
    pub fn get(&self, store: &Store) -> Arc<T> {
        self.read(store, Arc::clone)
    }

    /// Looks at the value. What looks must be quick: it has the lock. Large values are looked at
    /// and never taken away, so that changing them never copies them.
    pub fn read<R>(&self, store: &Store, look: impl FnOnce(&Arc<T>) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for _ in 0..STARTS_MAX {
            if state.watch.is_some() && caught_up(&mut state) {
                break;
            }
            // The first question, or this follower fell behind: begin anew.
            let snapshot = store.current();
            let mut value = T::default();
            for (key, entry) in snapshot.range(&self.prefix, None) {
                if let Some(key) = keys::parse(&key) {
                    put(&mut value, &key, &entry);
                }
            }
            state.value = Arc::new(value);
            state.watch = store.watch(self.prefix.clone(), snapshot.revision()).ok();
        }
        look(&state.value)
    }
}

/// Takes in one object. One that cannot be, by a bug, is as if it were not there.
fn put<T: Fold>(value: &mut T, key: &Key<'_>, entry: &Entry) {
    if let Err(panic) = contain::sync(|| value.put(key, entry)) {
        let Key { plural, namespace, name, .. } = key;
        tracing::error!(plural, namespace, name, %panic, "an object was left out");
        value.remove(key);
    }
}

/// Takes in what has been published. False when the watch has ended.
fn caught_up<T: Fold>(state: &mut State<T>) -> bool {
    // Put back when nothing is missing: after a panic whoever asks next begins anew.
    let Some(mut watch) = state.watch.take() else { return false };
    loop {
        match watch.ready() {
            Ok(None) => {
                state.watch = Some(watch);
                return true;
            }
            Ok(Some(event)) => {
                let Some(key) = keys::parse(&event.key) else { continue };
                let value = Arc::make_mut(&mut state.value);
                match &event.change {
                    Change::Put(entry) => put(value, &key, entry),
                    Change::Delete(_) => value.remove(&key),
                }
            }
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::stored;
    use crate::apiserver::tests::script::Server;

    #[derive(Clone, Default)]
    struct Names(Vec<String>);

    impl Fold for Names {
        fn put(&mut self, key: &Key<'_>, _: &Entry) {
            assert_ne!(key.name, "bad", "nobody can read it");
            self.remove(key);
            self.0.push(key.name.to_owned());
        }

        fn remove(&mut self, key: &Key<'_>) {
            self.0.retain(|name| name != key.name);
        }
    }

    #[tokio::test]
    async fn one_bad_object_is_left_out() {
        let server = Server::start().await;
        let kind = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        let followed = Followed::<Names>::new(stored::prefix(kind, None).to_vec());
        let path = "/api/v1/namespaces/default/configmaps";
        for name in ["a", "bad", "c"] {
            server.ok("POST", path, &format!("{{\"metadata\":{{\"name\":\"{name}\"}}}}")).await;
            let expected: &[&str] = if name == "c" { &["a", "c"] } else { &["a"] };
            assert_eq!(followed.get(server.api.store()).0, expected);
        }
        let anew = Followed::<Names>::new(stored::prefix(kind, None).to_vec());
        assert_eq!(anew.get(server.api.store()).0, ["a", "c"]);
    }
}
