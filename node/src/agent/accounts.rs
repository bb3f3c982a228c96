//! What containers used, as their workers said it last: for evictions and for `kubectl top`.
//!
//! Workers send totals each [`protocol::USAGE_INTERVAL_SECONDS`], and only what changed. A rate is
//! the difference of two totals; a container that is not heard of has used nothing since.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::protocol::{USAGE_INTERVAL_SECONDS, Usage};

/// The accounts of this node's containers. Locked for short copies only.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<HashMap<String, HashMap<String, Known>>>);

/// The last two totals of a container.
#[derive(Debug, Clone)]
struct Known {
    usage: Usage,
    at: Timestamp,
    before: Option<(u64, Timestamp)>,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Container name.
    pub container: String,
    /// When it was taken.
    pub at: Timestamp,
    /// Over which time the rate is.
    pub window: Duration,
    /// CPU time a second, in nanoseconds: a billion is one core.
    pub cpu_rate_ns: u64,
    /// CPU time since the first start.
    pub cpu_total_ns: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// Requests since the first start.
    pub requests: u64,
}

/// What a container uses, as the control plane reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Uid of the Pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// End of the interval that was measured.
    pub at: Timestamp,
    /// Length of that interval.
    pub window_ms: u64,
}

impl Accounts {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a worker says.
    pub fn take(&self, usages: Vec<Usage>, now: Timestamp) {
        let mut known = self.known();
        for usage in usages {
            let pod = known.entry(usage.uid.clone()).or_default();
            let before = pod.get(&usage.container).map(|old| (old.usage.cpu_ns, old.at));
            pod.insert(usage.container.clone(), Known { usage, at: now, before });
        }
    }

    /// The Pod is gone.
    pub fn forget(&self, uid: &str) {
        self.known().remove(uid);
    }

    /// The containers of a Pod, by name.
    pub fn pod(&self, uid: &str, now: Timestamp) -> Vec<Sample> {
        let known = self.known();
        let mut samples: Vec<Sample> =
            known.get(uid).into_iter().flatten().map(|(_, it)| sample(it, now)).collect();
        samples.sort_by(|a, b| a.container.cmp(&b.container));
        samples
    }

    /// All containers of this node, with the uids of their Pods.
    pub fn all(&self, now: Timestamp) -> Vec<Row> {
        let known = self.known();
        let mut rows = Vec::new();
        for (uid, containers) in known.iter() {
            for it in containers.values() {
                let sample = sample(it, now);
                rows.push(Row {
                    uid: uid.clone(),
                    container: sample.container,
                    cpu_nanocores: sample.cpu_rate_ns,
                    memory_bytes: sample.memory_bytes,
                    at: sample.at,
                    window_ms: u64::try_from(sample.window.as_millis()).unwrap_or(u64::MAX),
                });
            }
        }
        rows
    }

    /// Linear memory of a Pod.
    pub fn memory(&self, uid: &str) -> u64 {
        let known = self.known();
        known.get(uid).into_iter().flatten().map(|(_, it)| it.usage.memory_bytes).sum()
    }
}

fn sample(known: &Known, now: Timestamp) -> Sample {
    let interval = Duration::from_secs(USAGE_INTERVAL_SECONDS);
    let silent = between(known.at, now) > interval * 2;
    let (used, window) = match known.before {
        // A worker that was restarted counts from zero again.
        Some((total, at)) if !silent => {
            (known.usage.cpu_ns.saturating_sub(total), between(at, known.at).max(interval))
        }
        _ => (0, interval),
    };
    let nanos = u128::from(used) * 1_000_000_000 / window.as_nanos().max(1);
    Sample {
        container: known.usage.container.clone(),
        at: if silent { now } else { known.at },
        window,
        cpu_rate_ns: u64::try_from(nanos).unwrap_or(u64::MAX),
        cpu_total_ns: known.usage.cpu_ns,
        memory_bytes: known.usage.memory_bytes,
        requests: known.usage.requests,
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ms: u64, memory_bytes: u64) -> Vec<Usage> {
        vec![Usage {
            uid: "u".to_owned(),
            container: "app".to_owned(),
            cpu_ns: cpu_ms * 1_000_000,
            memory_bytes,
            requests: 1,
        }]
    }

    #[test]
    fn rates_are_differences_and_silence_is_zero() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let accounts = Accounts::default();
        accounts.take(usage(1000, 10), at(0));
        assert_eq!(accounts.pod("u", at(1))[0].cpu_rate_ns, 0, "one total is no rate");
        accounts.take(usage(4000, 20), at(15));
        let sample = &accounts.pod("u", at(16))[0];
        assert_eq!((sample.cpu_rate_ns, sample.memory_bytes), (200_000_000, 20));
        assert_eq!(accounts.pod("u", at(60))[0].cpu_rate_ns, 0);
        assert_eq!(accounts.memory("u"), 20);
        accounts.forget("u");
        assert!(accounts.pod("u", at(60)).is_empty());
    }
}
