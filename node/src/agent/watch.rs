//! Watches of the API, reduced to what the agent's loop needs.
//!
//! One task for each kind. An object is turned into its small form as soon as it arrives, so a node
//! holds neither the API's large structs nor managed fields. After a gap in the watch (a restarted
//! server) the kind is listed again; what is no longer there is reported as deleted, so the loop
//! hears of changes only and never of lists. An object that changes into one that is of no interest
//! (an EndpointSlice that loses its Service) is reported as deleted.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    future::Future,
    hash::Hash,
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// First and longest wait after an error: a server that restarts is back within a second or two.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Objects in one page of a list: bounds what is in memory in the API's form.
const PAGE: u32 = 250;

/// A change of one object.
#[derive(Debug)]
pub enum Change<T, Key> {
    /// It is new or different.
    Apply(T),
    /// It is gone.
    Delete(Key),
    /// Everything that exists has been reported.
    Synced,
}

/// Reports every change of a kind to `report`, until `shutdown`. `read` makes the small form with its
/// key; objects for which it returns `None` are as if they did not exist.
pub async fn run<K, T, Key, F>(
    api: Api<K>,
    fields: Option<String>,
    read: impl Fn(K) -> Option<(Key, T)> + Send,
    report: impl Fn(Change<T, Key>) -> F + Send,
    shutdown: CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    Key: Clone + Eq + Hash + Send,
    T: Send,
    F: Future<Output = ()> + Send,
{
    follow(api, fields, read, report, |_| false, shutdown).await;
}

/// The same for a kind that somebody may take away: while there is no such kind it has no objects,
/// and nobody waits for it.
pub async fn run_defined<K, T, Key, F>(
    api: Api<K>,
    read: impl Fn(K) -> Option<(Key, T)> + Send,
    report: impl Fn(Change<T, Key>) -> F + Send,
    shutdown: CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    Key: Clone + Eq + Hash + Send,
    T: Send,
    F: Future<Output = ()> + Send,
{
    follow(api, None, read, report, is_absent, shutdown).await;
}

/// Whether the server knows no such kind, or one that is older than this node knows no rule for it.
fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => {
            [403, 404].contains(&status.code)
        }
        _ => false,
    }
}

async fn follow<K, T, Key, F>(
    api: Api<K>,
    fields: Option<String>,
    read: impl Fn(K) -> Option<(Key, T)> + Send,
    report: impl Fn(Change<T, Key>) -> F + Send,
    is_empty: impl Fn(&watcher::Error) -> bool + Send,
    shutdown: CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    Key: Clone + Eq + Hash + Send,
    T: Send,
    F: Future<Output = ()> + Send,
{
    let mut config = watcher::Config::default().page_size(PAGE);
    if let Some(fields) = &fields {
        config = config.fields(fields);
    }
    let stream = watcher::watcher(api, config).backoff(Wait::default());
    let mut stream = std::pin::pin!(stream);
    let mut known = Known::default();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(Event::Init)) => known.listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                let uid = uid(&object);
                let object = read(object);
                if let Some((key, _)) = &object {
                    known.listed.insert(uid.clone(), key.clone());
                }
                for change in known.take(uid, object).into_iter().flatten() {
                    report(change).await;
                }
            }
            Some(Ok(Event::InitDone)) => {
                for gone in known.end_list() {
                    report(Change::Delete(gone)).await;
                }
                report(Change::Synced).await;
            }
            Some(Ok(Event::Apply(object))) => {
                let uid = uid(&object);
                for change in known.take(uid, read(object)).into_iter().flatten() {
                    report(change).await;
                }
            }
            Some(Ok(Event::Delete(object))) => {
                for change in known.take(uid(&object), None).into_iter().flatten() {
                    report(change).await;
                }
            }
            Some(Err(error)) => {
                let kind = std::any::type_name::<K>().rsplit("::").next();
                tracing::debug!(kind, %error, "watch");
                // The objects of a kind go before it does: what is known was not said to be gone.
                if known.now.is_empty() && is_empty(&error) {
                    report(Change::Synced).await;
                }
            }
            None => return,
        }
    }
}

/// What tells an object from others of its kind, also from one of the same name.
fn uid(object: &impl Resource) -> String {
    let meta = object.meta();
    let name = || format!("{:?}/{:?}", meta.namespace, meta.name);
    meta.uid.clone().unwrap_or_else(name)
}

/// Keys of what has been reported and not deleted since, by the objects' uids.
struct Known<Key> {
    now: HashMap<String, Key>,
    /// What a list that is coming in has named so far.
    listed: HashMap<String, Key>,
}

impl<Key> Default for Known<Key> {
    fn default() -> Known<Key> {
        Known { now: HashMap::new(), listed: HashMap::new() }
    }
}

impl<Key: Clone + Eq + Hash> Known<Key> {
    /// Takes an object as it is read now; `None`: it is gone, or as if it did not exist. Returns what
    /// is to be reported: the end of the key under which it was before, and the object.
    fn take<T>(&mut self, uid: String, object: Option<(Key, T)>) -> [Option<Change<T, Key>>; 2] {
        let Some((key, object)) = object else {
            return [self.now.remove(&uid).map(Change::Delete), None];
        };
        let before = self.now.insert(uid, key.clone()).filter(|before| *before != key);
        [before.map(Change::Delete), Some(Change::Apply(object))]
    }

    /// The list is complete: what is not on it is gone. Another object may have taken its key.
    fn end_list(&mut self) -> HashSet<Key> {
        let listed = std::mem::take(&mut self.listed);
        let keys: HashSet<&Key> = listed.values().collect();
        let gone = self.now.values().filter(|key| !keys.contains(key)).cloned().collect();
        self.now = listed;
        gone
    }
}

/// Doubles from the first to the longest wait.
#[derive(Default)]
pub struct Wait(Option<Duration>);

impl Iterator for Wait {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0.map_or(RETRY.0, |wait| (wait * 2).min(RETRY.1));
        self.0 = Some(wait);
        Some(wait)
    }
}

impl Backoff for Wait {
    fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with this uid is read as this key now; what is reported.
    fn take(known: &mut Known<&'static str>, uid: &str, key: Option<&'static str>) -> String {
        let changes = known.take(uid.to_owned(), key.map(|key| (key, "object")));
        let shown = changes.into_iter().flatten().map(|change| match change {
            Change::Apply(_) => "+".to_owned(),
            Change::Delete(key) => format!("-{key}"),
            Change::Synced => "synced".to_owned(),
        });
        shown.collect()
    }

    #[test]
    fn what_is_no_more_is_said_by_its_key() {
        let mut known = Known::default();
        assert_eq!(take(&mut known, "1", Some("a")), "+");
        assert_eq!(take(&mut known, "1", Some("a")), "+", "it has changed");
        assert_eq!(take(&mut known, "1", Some("b")), "-a+", "it has another key");
        assert_eq!(take(&mut known, "1", None), "-b", "it is of no interest any more");
        assert_eq!(take(&mut known, "1", None), "", "that was said");
        assert_eq!(take(&mut known, "2", None), "", "nobody was told of it");
    }

    #[test]
    fn after_a_list_only_what_is_on_it_is_there() {
        let mut known = Known::default();
        for (uid, key) in [("1", "a"), ("2", "b"), ("3", "c")] {
            take(&mut known, uid, Some(key));
        }
        // `b` was made anew meanwhile.
        for (uid, key) in [("1", "a"), ("4", "b")] {
            known.listed.insert(uid.to_owned(), key);
            take(&mut known, uid, Some(key));
        }
        assert_eq!(known.end_list(), HashSet::from(["c"]));
        assert_eq!(take(&mut known, "2", None), "", "the older `b` is forgotten");
        assert_eq!(take(&mut known, "4", None), "-b");
    }
}
