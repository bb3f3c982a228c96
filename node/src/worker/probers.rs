//! The worker's probes: one ordered set of times for all containers, and attempts as short tasks.
//!
//! A Pod at rest costs its entry; nothing is polled. At most [`ATTEMPTS_MAX`] attempts are under way;
//! what is due beyond that waits for the next that ends, so that thousands of probes that come due
//! together do not starve requests.

use std::{
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time::Instant};

use super::{
    checks::{Target, perform},
    probe::Watch,
};
use crate::protocol::{Health, ProbeKind, Probes};

/// Attempts at the same time.
const ATTEMPTS_MAX: usize = 64;

/// One start of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Pod uid.
    pub uid: String,
    /// Container name.
    pub container: String,
    /// Which start.
    pub restart: u32,
}

/// Something worth telling.
pub struct Finding {
    /// Of which container.
    pub key: Key,
    /// By which probe.
    pub kind: ProbeKind,
    /// Why the attempt failed, if it did.
    pub failure: Option<String>,
    /// What is known now.
    pub health: Health,
}

/// All probes of the worker.
#[derive(Default)]
pub struct Probers {
    watched: HashMap<Key, Watched>,
    timers: BTreeSet<(Instant, Key)>,
    attempts: JoinSet<(Key, ProbeKind, Result<(), String>)>,
}

struct Watched {
    watch: Watch,
    since: Instant,
    target: Arc<Target>,
    timer: Option<Instant>,
}

impl Probers {
    /// Begins to probe a container that has just started.
    pub fn add(&mut self, key: Key, probes: &Probes, target: Arc<Target>) {
        let watch = Watch::new(probes);
        if watch.wake().is_none() {
            return;
        }
        let watched = Watched { watch, since: Instant::now(), target, timer: None };
        self.watched.insert(key.clone(), watched);
        self.set_timer(&key);
    }

    /// The container was asked to end.
    pub fn ending(&mut self, key: &Key) {
        if let Some(watched) = self.watched.get_mut(key) {
            watched.watch.ending();
            self.set_timer(key);
        }
    }

    /// The container has ended; what is still being tried counts no more.
    pub fn remove(&mut self, key: &Key) {
        if let Some(watched) = self.watched.remove(key)
            && let Some(timer) = watched.timer
        {
            self.timers.remove(&(timer, key.clone()));
        }
    }

    /// Waits until a probe has found something out. Cancel safe.
    pub async fn next(&mut self) -> Finding {
        loop {
            self.begin_due();
            let first = self.timers.first().map(|(at, _)| *at);
            let idle = self.attempts.len() >= ATTEMPTS_MAX || first.is_none();
            tokio::select! {
                Some(ended) = self.attempts.join_next() => {
                    let (key, kind, outcome) = match ended {
                        Ok(ended) => ended,
                        Err(panic) => {
                            tracing::error!(%panic, "a probe failed");
                            continue;
                        }
                    };
                    if let Some(finding) = self.ended(key, kind, outcome) {
                        return finding;
                    }
                }
                () = tokio::time::sleep_until(first.unwrap_or_else(Instant::now)), if !idle => {}
                // Containers are added between calls.
                () = std::future::pending(), if idle && self.attempts.is_empty() => {}
            }
        }
    }

    fn begin_due(&mut self) {
        let now = Instant::now();
        while self.attempts.len() < ATTEMPTS_MAX
            && let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let Some((_, key)) = self.timers.pop_first() else {
                return;
            };
            let Some(watched) = self.watched.get_mut(&key) else {
                continue;
            };
            watched.timer = None;
            for kind in watched.watch.begin(now - watched.since) {
                let Some(probe) = watched.watch.probe(kind) else {
                    continue;
                };
                let (check, target) = (probe.check.clone(), watched.target.clone());
                let timeout = Duration::from_secs(u64::from(probe.timeout_s));
                let key = key.clone();
                self.attempts.spawn(async move {
                    // One that was lost would be waited for, and the container never asked again.
                    let attempt = AssertUnwindSafe(perform(&target, &check, timeout));
                    let failed = |_| Err("the worker failed while it asked".to_owned());
                    let outcome = attempt.catch_unwind().await.unwrap_or_else(failed);
                    (key, kind, outcome)
                });
            }
            self.set_timer(&key);
        }
    }

    fn ended(&mut self, key: Key, kind: ProbeKind, outcome: Result<(), String>) -> Option<Finding> {
        let watched = self.watched.get_mut(&key)?;
        let changed = watched.watch.finish(kind, outcome.is_ok());
        let health = watched.watch.health();
        self.set_timer(&key);
        let failure = outcome.err();
        (changed || failure.is_some()).then_some(Finding { key, kind, failure, health })
    }

    fn set_timer(&mut self, key: &Key) {
        let Some(watched) = self.watched.get_mut(key) else {
            return;
        };
        let next = watched.watch.wake().map(|after| watched.since + after);
        if next == watched.timer {
            return;
        }
        if let Some(old) = watched.timer {
            self.timers.remove(&(old, key.clone()));
        }
        if let Some(next) = next {
            self.timers.insert((next, key.clone()));
        }
        watched.timer = next;
    }
}
