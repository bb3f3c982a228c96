//! Turns by namespace: how many each may have at the same time, so that none has all.
//!
//! A namespace has a semaphore while somebody holds or waits for a turn of it. That of one with
//! none is dropped when the next turn is asked for, so there are never more than were asked for at
//! one time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all namespaces.
pub struct Turns {
    each: usize,
    /// Locked for a look, never across an await.
    namespaces: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Turns {
    /// So many for each namespace.
    pub fn new(each: usize) -> Turns {
        Turns { each, namespaces: Mutex::new(HashMap::new()) }
    }

    /// Waits for a turn of a namespace, which lasts until the permit is dropped.
    pub async fn take(&self, namespace: &str) -> OwnedSemaphorePermit {
        let own = self.own(namespace);
        own.acquire_owned().await.expect("the semaphore is never closed")
    }

    fn own(&self, namespace: &str) -> Arc<Semaphore> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|_, own| own.strong_count() > 0);
        if let Some(own) = namespaces.get(namespace).and_then(Weak::upgrade) {
            return own;
        }
        let own = Arc::new(Semaphore::new(self.each));
        namespaces.insert(namespace.to_owned(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_namespace_has_its_turns_and_leaves_nothing_behind() {
        let turns = Turns::new(2);
        let now = |namespace: &str| turns.take(namespace).now_or_never();
        let held = [now("a"), now("a")];
        assert!(held.iter().all(Option::is_some));
        assert!(now("a").is_none(), "it has all of its turns");
        let other = now("b");
        assert!(other.is_some(), "that is nothing to another");
        drop(held);
        assert!(now("a").is_some());
        drop(other);
        let _third = now("c");
        let namespaces = turns.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(namespaces.keys().collect::<Vec<_>>(), ["c"]);
    }
}
