//! Watches of the API, reduced to what the agent's loop needs.
//!
//! One task for each kind. An object is turned into its small form as soon as it arrives, so a node
//! holds neither the API's large structs nor managed fields. After a gap in the watch (a restarted
//! server) the kind is listed again; what is no longer there is reported as deleted, so the loop
//! hears of changes only and never of lists.

use std::{collections::HashSet, fmt::Debug, future::Future, hash::Hash, time::Duration};

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
    let mut known: HashSet<Key> = HashSet::new();
    let mut listed: HashSet<Key> = HashSet::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                if let Some((key, object)) = read(object) {
                    listed.insert(key.clone());
                    known.insert(key);
                    report(Change::Apply(object)).await;
                }
            }
            Some(Ok(Event::InitDone)) => {
                let listed = std::mem::take(&mut listed);
                for gone in known.difference(&listed) {
                    report(Change::Delete(gone.clone())).await;
                }
                known = listed;
                report(Change::Synced).await;
            }
            Some(Ok(Event::Apply(object))) => {
                if let Some((key, object)) = read(object) {
                    known.insert(key);
                    report(Change::Apply(object)).await;
                }
            }
            Some(Ok(Event::Delete(object))) => {
                if let Some((key, _)) = read(object) {
                    known.remove(&key);
                    report(Change::Delete(key)).await;
                }
            }
            Some(Err(error)) => {
                let kind = std::any::type_name::<K>().rsplit("::").next();
                tracing::debug!(kind, %error, "watch");
                // The objects of a kind go before it does: what is known was not said to be gone.
                if known.is_empty() && is_empty(&error) {
                    report(Change::Synced).await;
                }
            }
            None => return,
        }
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
