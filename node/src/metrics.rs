//! What a node counts and shows as metrics: histograms of times, the families, and their text.
//!
//! A worker tells [`Samples`], lines by family; the agent puts those of all its workers and its own
//! together in the text form of Prometheus, where a family stands in one piece. Every time that is
//! measured on a node goes into [`Times`], whoever reads it: Prometheus, or the dashboard as JSON.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Serialize, Serializer};

/// Upper ends of the buckets of all histograms, in microseconds: an instance takes tens of them, a
/// request thousands, a compilation millions.
pub const BOUNDS_US: [u64; 19] = [
    20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Lines by the name of their family, each without its name: `{labels} value`, with what follows
/// the name in histograms (`_bucket`, `_sum`, `_count`) before it.
pub type Samples = BTreeMap<String, Vec<String>>;

/// Requests from a workload to a port of a Service, by the class of their status.
pub const REQUESTS: &str = "wherry_requests_total";
/// Until the head of the answer.
pub const DURATION: &str = "wherry_request_duration_seconds";
/// Bodies of requests.
pub const SENT: &str = "wherry_request_bytes_total";
/// Bodies of answers.
pub const RECEIVED: &str = "wherry_response_bytes_total";
/// Connections of bytes.
pub const CONNECTIONS: &str = "wherry_connections_total";
/// Their bytes.
pub const CONNECTION_BYTES: &str = "wherry_connection_bytes_total";
/// Those that are open.
pub const OPEN: &str = "wherry_connections_open";
/// Requests by rule of an Ingress or a route.
pub const ROUTE_REQUESTS: &str = "wherry_ingress_requests_total";
/// Until the head of the answer, by rule of an Ingress or a route.
pub const ROUTE_DURATION: &str = "wherry_ingress_request_duration_seconds";
/// CPU time of containers, as a kubelet names it.
pub const CPU: &str = "container_cpu_usage_seconds_total";
/// Memory of containers, as a kubelet names it.
pub const MEMORY: &str = "container_memory_working_set_bytes";
/// The same of Pods and of the node, as a kubelet's `metrics/resource` has them beside those.
pub const POD_CPU: &str = "pod_cpu_usage_seconds_total";
pub const POD_MEMORY: &str = "pod_memory_working_set_bytes";
pub const NODE_CPU: &str = "node_cpu_usage_seconds_total";
pub const NODE_MEMORY: &str = "node_memory_working_set_bytes";
/// Parts of cold starts.
pub const STARTS: &str = "wherry_cold_start_seconds";
/// Steps of requests.
pub const PHASES: &str = "wherry_phase_seconds";
/// Connections to workers of other nodes through a member.
pub const RELAYS: &str = "wherry_relays_total";
/// Their bytes.
pub const RELAYED_BYTES: &str = "wherry_relayed_bytes_total";
/// Spans that no collector has.
pub const SPANS_LOST: &str = "wherry_spans_lost_total";
/// What was left out for want of room.
pub const LEFT_OUT: &str = "wherry_traffic_left_out";
/// Workers that did not tell.
pub const SILENT: &str = "wherry_workers_silent";

/// Every family: name, type, meaning.
const FAMILIES: [(&str, &str, &str); 22] = [
    (CPU, "counter", "CPU time of a container, all instances together."),
    (MEMORY, "gauge", "Linear memory of a container, all instances together."),
    (POD_CPU, "counter", "CPU time of a Pod's containers."),
    (POD_MEMORY, "gauge", "Linear memory of a Pod's containers."),
    (NODE_CPU, "counter", "CPU time of a node's containers, also of those that have ended."),
    (NODE_MEMORY, "gauge", "Linear memory of a node's containers."),
    (STARTS, "histogram", "What the parts of cold starts took."),
    (REQUESTS, "counter", "Requests from a workload to a port of a Service."),
    (DURATION, "histogram", "Time from a request to the head of its answer."),
    (SENT, "counter", "Bytes in bodies of requests."),
    (RECEIVED, "counter", "Bytes in bodies of answers."),
    (CONNECTIONS, "counter", "Connections of bytes from a workload to a port of a Service."),
    (CONNECTION_BYTES, "counter", "Bytes of these connections, as whoever connected sees them."),
    (OPEN, "gauge", "These connections, as far as they are open now."),
    (ROUTE_REQUESTS, "counter", "Requests by rule of an Ingress or a route."),
    (ROUTE_DURATION, "histogram", "Time from a request to the head of its answer."),
    (PHASES, "histogram", "Steps of requests to handlers, and of wakes."),
    (RELAYS, "counter", "Connections to workers of a node through a member."),
    (RELAYED_BYTES, "counter", "Bytes of these connections, as this node sees them."),
    (SPANS_LOST, "counter", "Spans of traces that the collector did not take."),
    (LEFT_OUT, "gauge", "Pairs of workloads and Services that are not shown: too many."),
    (SILENT, "gauge", "Workers of this node that did not tell their metrics."),
];

/// How long something took, each time that it happened, in buckets.
#[derive(Debug, Default)]
pub struct Times {
    /// Not cumulated; the last one is for what took longer than every bound.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Times {
    /// Adds one.
    pub fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Adds all of another.
    pub fn add_all(&self, other: &Times) {
        for (bucket, more) in self.buckets.iter().zip(other.counts()) {
            bucket.fetch_add(more, Relaxed);
        }
        self.sum_us.fetch_add(other.sum_us.load(Relaxed), Relaxed);
    }

    /// How many lie in each bucket.
    fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        self.buckets.each_ref().map(|bucket| bucket.load(Relaxed))
    }

    /// Nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.counts().iter().all(|count| *count == 0)
    }

    /// Adds its lines, each with these labels. The count is that of the buckets as they were read:
    /// what is added meanwhile may be in the sum already.
    pub fn tell(&self, labels: &str, lines: &mut Vec<String>) {
        let mut count = 0;
        for (at, inside) in self.counts().iter().enumerate() {
            count += inside;
            let bound = BOUNDS_US.get(at).map(|us| (*us as f64 / 1e6).to_string());
            let bound = bound.as_deref().unwrap_or("+Inf");
            lines.push(format!("_bucket{{{labels},le=\"{bound}\"}} {count}"));
        }
        let sum = self.sum_us.load(Relaxed) as f64 / 1e6;
        lines.push(format!("_sum{{{labels}}} {sum}"));
        lines.push(format!("_count{{{labels}}} {count}"));
    }
}

impl Clone for Times {
    fn clone(&self) -> Times {
        let sum_us = AtomicU64::new(self.sum_us.load(Relaxed));
        Times { buckets: self.counts().map(AtomicU64::new), sum_us }
    }
}

/// The counts of the buckets alone; whoever reads them needs [`BOUNDS_US`] as well.
impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.counts().serialize(serializer)
    }
}

/// A value of a label as it stands between its quotes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\\' => _ = write!(out, "\\{letter}"),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out
}

/// The text of all of them.
pub fn text(all: &[Samples]) -> String {
    let mut text = String::new();
    for (name, kind, help) in FAMILIES {
        let mut lines = all.iter().filter_map(|samples| samples.get(name)).flatten().peekable();
        if lines.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(text, "{name}{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_below_their_bounds() {
        let times = Times::default();
        assert!(times.is_empty());
        for us in [0, 20, 21, 30_000_000, 30_000_001] {
            times.add(Duration::from_micros(us));
        }
        let mut lines = Vec::new();
        times.tell("a=\"b\"", &mut lines);
        assert_eq!(lines[0], "_bucket{a=\"b\",le=\"0.00002\"} 2");
        assert_eq!(lines[1], "_bucket{a=\"b\",le=\"0.00005\"} 3");
        assert_eq!(lines[18], "_bucket{a=\"b\",le=\"30\"} 4");
        assert_eq!(lines[19], "_bucket{a=\"b\",le=\"+Inf\"} 5");
        assert_eq!(lines[20..], ["_sum{a=\"b\"} 60.000042", "_count{a=\"b\"} 5"]);
        let told = serde_json::to_value(times.clone()).expect("numbers become JSON");
        let told: Vec<u64> = serde_json::from_value(told).expect("numbers");
        assert_eq!((told.len(), &told[..2], &told[18..]), (20, &[2, 1][..], &[1, 1][..]));
        assert!(!times.is_empty() && BOUNDS_US.is_sorted());
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }

    #[test]
    fn a_family_stands_in_one_piece_whoever_tells_it() {
        let samples = |family: &str, line: &str| {
            Samples::from([(family.to_owned(), vec![line.to_owned()]), ("odd".to_owned(), vec![])])
        };
        let all = [
            samples(REQUESTS, "{a=\"1\"} 1"),
            samples(SILENT, " 0"),
            samples(REQUESTS, "{a=\"2\"} 2"),
        ];
        let expected = "\
# HELP wherry_requests_total Requests from a workload to a port of a Service.
# TYPE wherry_requests_total counter
wherry_requests_total{a=\"1\"} 1
wherry_requests_total{a=\"2\"} 2
# HELP wherry_workers_silent Workers of this node that did not tell their metrics.
# TYPE wherry_workers_silent gauge
wherry_workers_silent 0
";
        assert_eq!(text(&all), expected);
    }
}
