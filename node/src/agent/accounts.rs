//! What containers used, as their workers said it last: for evictions and for `kubectl top`.
//!
//! Workers send totals each [`protocol::USAGE_INTERVAL_SECONDS`], and only what changed. A rate is
//! the difference of two totals; a container that is not heard of has used nothing since. One that
//! has just been started has used nothing yet: it is shown from its start on, not from the first
//! word of its worker.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{pressure::Written, starts::Starts};
use crate::{
    metrics::{CPU, MEMORY, NODE_CPU, NODE_MEMORY, POD_CPU, POD_MEMORY, Samples},
    protocol::{USAGE_INTERVAL_SECONDS, Usage},
};

/// The accounts of this node's containers.
#[derive(Debug, Default)]
pub struct Accounts {
    /// By uid and name. Locked for short copies only.
    known: Mutex<HashMap<String, HashMap<String, Known>>>,
    /// Namespace and name of each Pod, by uid. Locked for short copies only, after `known`.
    names: Mutex<HashMap<String, (String, String)>>,
    /// What Pods have written, by uid, as it was measured last. Locked for short copies only.
    written: Mutex<HashMap<String, Written>>,
    /// CPU time of what has ended, in nanoseconds. Changed while `known` is locked.
    past_ns: AtomicU64,
    /// What their starts took.
    pub starts: Starts,
}

/// The last two totals of a container.
#[derive(Debug, Clone)]
struct Known {
    usage: Usage,
    at: Timestamp,
    before: Option<(Usage, Timestamp)>,
}

/// What a container uses, as the control plane reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Uid of the Pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// All its CPU time.
    pub cpu_ns: u64,
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// Thousandths of requests in a second.
    pub requests_milli: u64,
    /// Thousandths of requests at once, on average.
    pub concurrency_milli: u64,
    /// End of the interval that was measured.
    pub at: Timestamp,
    /// Length of that interval.
    pub window_ms: u64,
}

impl Accounts {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, String)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<String, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a Pod has written was measured.
    pub fn wrote(&self, uid: &str, written: &Written) {
        self.written().insert(uid.to_owned(), written.clone());
    }

    /// What Pods have written, by uid, as far as it was measured.
    pub fn summary(&self) -> HashMap<String, Value> {
        self.written().iter().map(|(uid, written)| (uid.clone(), written.summary())).collect()
    }

    /// What a Pod of this node is called.
    pub fn name(&self, uid: &str, namespace: &str, name: &str) {
        self.names().insert(uid.to_owned(), (namespace.to_owned(), name.to_owned()));
    }

    /// A container was started for the first time.
    pub fn begun(&self, uid: &str, container: &str, at: Timestamp) {
        let usage = Usage {
            uid: uid.to_owned(),
            container: container.to_owned(),
            cpu_ns: 0,
            memory_bytes: 0,
            requests: 0,
            busy_ns: 0,
            start: None,
            idle: false,
        };
        let mut known = self.known();
        let pod = known.entry(uid.to_owned()).or_default();
        pod.entry(container.to_owned()).or_insert(Known { usage, at, before: None });
    }

    /// Takes what a worker says.
    pub fn take(&self, usages: Vec<Usage>, now: Timestamp) {
        let mut known = self.known();
        for usage in usages {
            let pod = known.entry(usage.uid.clone()).or_default();
            let before = pod.get(&usage.container).map(|old| (old.usage.clone(), old.at));
            if let Some((old, _)) = before.as_ref().filter(|(old, _)| old.cpu_ns > usage.cpu_ns) {
                // It was started again, and counts from zero.
                self.past_ns.fetch_add(old.cpu_ns, Relaxed);
            }
            pod.insert(usage.container.clone(), Known { usage, at: now, before });
        }
    }

    /// The Pod has ended and uses nothing any more, nor are its volumes there.
    pub fn ended(&self, uid: &str) {
        self.written().remove(uid);
        let mut known = self.known();
        if let Some(pod) = known.remove(uid) {
            self.past_ns.fetch_add(sum(&pod).0, Relaxed);
        }
    }

    /// The Pod is gone.
    pub fn forget(&self, uid: &str) {
        self.ended(uid);
        self.names().remove(uid);
    }

    /// What all containers have used, for metrics.
    pub fn tell(&self) -> Samples {
        let (mut cpu, mut memory) = (Vec::new(), Vec::new());
        let (known, names) = (self.known(), self.names());
        for (uid, containers) in known.iter() {
            let Some((namespace, pod)) = names.get(uid) else { continue };
            for (container, it) in containers {
                let labels = format!(
                    "{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"}}"
                );
                cpu.push(format!("{labels} {}", it.usage.cpu_ns as f64 / 1e9));
                memory.push(format!("{labels} {}", it.usage.memory_bytes));
            }
        }
        cpu.sort_unstable();
        memory.sort_unstable();
        Samples::from([(CPU.to_owned(), cpu), (MEMORY.to_owned(), memory)])
    }

    /// What containers, Pods and the node have used, as a kubelet tells it to collectors.
    pub fn resource(&self) -> Samples {
        let mut all = self.tell();
        let (known, names) = (self.known(), self.names());
        let (mut cpu_ns, mut memory_bytes) = (self.past_ns.load(Relaxed), 0);
        let (mut cpu, mut memory) = (Vec::new(), Vec::new());
        for (uid, containers) in known.iter() {
            let (ns, bytes) = sum(containers);
            cpu_ns = cpu_ns.saturating_add(ns);
            memory_bytes = bytes.saturating_add(memory_bytes);
            let Some((namespace, pod)) = names.get(uid) else { continue };
            let labels = format!("{{namespace=\"{namespace}\",pod=\"{pod}\"}}");
            cpu.push(format!("{labels} {}", ns as f64 / 1e9));
            memory.push(format!("{labels} {bytes}"));
        }
        cpu.sort_unstable();
        memory.sort_unstable();
        let node = [vec![format!(" {}", cpu_ns as f64 / 1e9)], vec![format!(" {memory_bytes}")]];
        let families = [POD_CPU, POD_MEMORY, NODE_CPU, NODE_MEMORY].map(str::to_owned);
        all.extend(families.into_iter().zip([cpu, memory].into_iter().chain(node)));
        all
    }

    /// All containers of this node, with the uids of their Pods.
    pub fn all(&self, now: Timestamp) -> Vec<Row> {
        let known = self.known();
        let pods = known.iter();
        pods.flat_map(|(uid, all)| all.values().map(|it| row(uid, it, now))).collect()
    }

    /// Linear memory of a Pod.
    pub fn memory(&self, uid: &str) -> u64 {
        let known = self.known();
        known.get(uid).into_iter().flatten().map(|(_, it)| it.usage.memory_bytes).sum()
    }
}

/// CPU time and memory of a Pod's containers.
fn sum(pod: &HashMap<String, Known>) -> (u64, u64) {
    let all = pod.values().map(|it| (it.usage.cpu_ns, it.usage.memory_bytes));
    all.fold((0, 0), |(cpu, memory), it| (it.0.saturating_add(cpu), it.1.saturating_add(memory)))
}

fn row(uid: &str, known: &Known, now: Timestamp) -> Row {
    let interval = Duration::from_secs(USAGE_INTERVAL_SECONDS);
    let silent = between(known.at, now) > interval * 2;
    let total = &known.usage;
    let grown = |now: u64, then: u64| now.saturating_sub(then);
    // A worker that was restarted counts from zero again.
    let (cpu_ns, requests, busy_ns, window) = match &known.before {
        Some((then, at)) if !silent => (
            grown(total.cpu_ns, then.cpu_ns),
            grown(total.requests, then.requests),
            grown(total.busy_ns, then.busy_ns),
            between(*at, known.at).max(interval),
        ),
        _ => (0, 0, 0, interval),
    };
    // So many units in a second, where `amount` were in the window.
    let rate = |amount: u64, units: u128| {
        let rate = u128::from(amount) * units / window.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    Row {
        uid: uid.to_owned(),
        container: total.container.clone(),
        cpu_ns: total.cpu_ns,
        cpu_nanocores: rate(cpu_ns, 1_000_000_000),
        memory_bytes: total.memory_bytes,
        requests_milli: rate(requests, 1_000 * 1_000_000_000),
        concurrency_milli: rate(busy_ns, 1_000),
        at: if silent { now } else { known.at },
        window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::volumes::Use;

    fn usage(cpu_ms: u64, memory_bytes: u64) -> Vec<Usage> {
        vec![Usage {
            uid: "u".to_owned(),
            container: "app".to_owned(),
            cpu_ns: cpu_ms * 1_000_000,
            memory_bytes,
            requests: cpu_ms / 10,
            busy_ns: cpu_ms * 2_000_000,
            start: None,
            idle: false,
        }]
    }

    #[test]
    fn rates_are_differences_and_silence_is_zero() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let accounts = Accounts::default();
        accounts.take(usage(1000, 10), at(0));
        assert_eq!(accounts.all(at(1))[0].cpu_nanocores, 0, "one total is no rate");
        accounts.take(usage(4000, 20), at(15));
        let row = &accounts.all(at(16))[0];
        assert_eq!((row.cpu_nanocores, row.memory_bytes), (200_000_000, 20));
        // 300 requests and 6 s of answering in 15 s.
        assert_eq!((row.requests_milli, row.concurrency_milli), (20_000, 400));
        assert_eq!(accounts.all(at(60))[0].cpu_nanocores, 0);
        assert_eq!(accounts.memory("u"), 20);
        accounts.forget("u");
        assert!(accounts.all(at(60)).is_empty());
    }

    #[test]
    fn what_was_written_is_told_as_by_a_kubelet() {
        let accounts = Accounts::default();
        let found = |bytes| Use { bytes, entries: 2 };
        let written = Written {
            volumes: vec![("cache".into(), false, found(8)), ("fast".into(), true, found(4))],
            containers: vec![("app".into(), found(1))],
            claims: vec![("rows".into(), found(30), 100)],
            ..Written::default()
        };
        accounts.wrote("u", &written);
        let expected = serde_json::json!({
            "ephemeral-storage": {"usedBytes": 9},
            "volume": [
                {"name": "cache", "usedBytes": 8, "inodesUsed": 2},
                {"name": "fast", "usedBytes": 4, "inodesUsed": 2},
                {"name": "rows", "usedBytes": 30, "inodesUsed": 2,
                    "capacityBytes": 100, "availableBytes": 70},
            ],
        });
        assert_eq!(accounts.summary()["u"], expected);
        accounts.ended("u");
        assert!(accounts.summary().is_empty());
    }

    #[test]
    fn what_was_used_is_told_by_names() {
        let accounts = Accounts::default();
        accounts.take(usage(1500, 20), Timestamp::from_second(0).expect("a time"));
        assert!(accounts.tell()[CPU].is_empty(), "nobody knows whose it is");
        accounts.name("u", "shop", "web-0");
        let told = accounts.tell();
        let labels = r#"{container="app",namespace="shop",pod="web-0"}"#;
        assert_eq!(told[CPU], [format!("{labels} 1.5")]);
        assert_eq!(told[MEMORY], [format!("{labels} 20")]);
        accounts.ended("u");
        assert!(accounts.tell()[CPU].is_empty());
    }

    #[test]
    fn the_nodes_own_time_never_falls() {
        let accounts = Accounts::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        accounts.name("u", "shop", "web-0");
        accounts.take(usage(1500, 20), at(0));
        let told = accounts.resource();
        assert_eq!(told[POD_CPU], [r#"{namespace="shop",pod="web-0"} 1.5"#]);
        assert_eq!(told[POD_MEMORY], [r#"{namespace="shop",pod="web-0"} 20"#]);
        assert_eq!((&told[CPU].len(), &told[NODE_CPU][..]), (&1, &[" 1.5".to_owned()][..]));
        // Its container was started again, then the Pod ended, then it was deleted.
        accounts.take(usage(500, 30), at(15));
        assert_eq!(accounts.resource()[NODE_CPU], [" 2"]);
        assert_eq!(accounts.resource()[NODE_MEMORY], [" 30"]);
        accounts.ended("u");
        accounts.forget("u");
        let told = accounts.resource();
        assert_eq!(told[NODE_CPU], [" 2"]);
        assert_eq!(told[NODE_MEMORY], [" 0"]);
        assert!(told[POD_CPU].is_empty());
    }

    #[test]
    fn a_container_is_shown_from_its_start_on() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let accounts = Accounts::default();
        accounts.begun("u", "app", at(100));
        let row = &accounts.all(at(101))[0];
        assert_eq!((row.container.as_str(), row.cpu_nanocores, row.memory_bytes), ("app", 0, 0));
        accounts.take(usage(3000, 20), at(110));
        let row = &accounts.all(at(111))[0];
        assert_eq!((row.cpu_nanocores, row.memory_bytes), (200_000_000, 20));
        // What its worker has said is not forgotten.
        accounts.begun("u", "app", at(111));
        assert_eq!(accounts.memory("u"), 20);
    }
}
