//! How long the parts of cold starts took, counted since this agent began, as Prometheus reads it:
//! the histogram `wherry_cold_start_seconds` with the label `part`.
//!
//! Each part of each start is counted once, when it is known: the agent's own when a start is
//! prepared, the worker's when it tells of them.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::facts::Took;

/// A part of a cold start, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Waiting for its turn.
    Queue,
    /// Asking the registry, and the download.
    Pull,
    /// Compiling, or looking the code up.
    Compile,
    /// Mapping the compiled code.
    Load,
    /// Linking it.
    Link,
    /// Making the first instance.
    Instantiate,
    /// From the first request to the head of its answer.
    FirstByte,
}

/// All parts with the words that Prometheus sees.
const PARTS: [(Part, &str); 7] = [
    (Part::Queue, "queue"),
    (Part::Pull, "pull"),
    (Part::Compile, "compile"),
    (Part::Load, "load"),
    (Part::Link, "link"),
    (Part::Instantiate, "instantiate"),
    (Part::FirstByte, "first_byte"),
];
/// Upper ends of the buckets in microseconds, as they are printed: an instance takes tens of
/// microseconds, a compilation seconds.
const BUCKETS: [(u64, &str); 16] = [
    (20, "0.00002"),
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (30_000_000, "30"),
];
const NAME: &str = "wherry_cold_start_seconds";

/// The histogram of each part.
#[derive(Debug, Default)]
pub struct Starts([Histogram; PARTS.len()]);

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulated; what fits in no bucket is in the count alone.
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Starts {
    /// The agent's parts of a start.
    pub fn prepared(&self, took: Took) {
        self.took(Part::Queue, took.queue);
        self.took(Part::Pull, took.pull);
        self.took(Part::Compile, took.compile);
    }

    /// A part of a start took so long.
    pub fn took(&self, part: Part, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let histogram = &self.0[part as usize];
        if let Some(at) = BUCKETS.iter().position(|(end, _)| micros <= *end) {
            histogram.buckets[at].fetch_add(1, Relaxed);
        }
        histogram.count.fetch_add(1, Relaxed);
        histogram.sum_micros.fetch_add(micros, Relaxed);
    }

    /// In the text form of Prometheus.
    pub fn text(&self) -> String {
        let mut text = format!("# HELP {NAME} What the parts of cold starts took.\n");
        let _ = writeln!(text, "# TYPE {NAME} histogram");
        for (part, word) in PARTS {
            let histogram = &self.0[part as usize];
            // Read first: a start that is counted meanwhile is in no bucket beyond the count.
            let buckets: Vec<u64> = histogram.buckets.iter().map(|it| it.load(Relaxed)).collect();
            let mut below = 0;
            for (inside, (_, end)) in buckets.iter().zip(BUCKETS) {
                below += inside;
                let _ = writeln!(text, "{NAME}_bucket{{part=\"{word}\",le=\"{end}\"}} {below}");
            }
            let count = histogram.count.load(Relaxed).max(below);
            let sum = Duration::from_micros(histogram.sum_micros.load(Relaxed)).as_secs_f64();
            let _ = writeln!(text, "{NAME}_bucket{{part=\"{word}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{NAME}_sum{{part=\"{word}\"}} {sum}");
            let _ = writeln!(text, "{NAME}_count{{part=\"{word}\"}} {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_where_their_histograms_are() {
        assert!(PARTS.iter().enumerate().all(|(at, (part, _))| *part as usize == at));
    }

    #[test]
    fn buckets_count_what_is_below_them() {
        let starts = Starts::default();
        for micros in [20, 21, 90, 40_000_000] {
            starts.took(Part::Instantiate, Duration::from_micros(micros));
        }
        let text = starts.text();
        let lines = text.lines().filter(|line| line.contains("instantiate"));
        let lines: Vec<&str> = lines.filter_map(|line| line.strip_prefix(NAME)).collect();
        assert_eq!(
            lines[..3],
            [
                r#"_bucket{part="instantiate",le="0.00002"} 1"#,
                r#"_bucket{part="instantiate",le="0.00005"} 2"#,
                r#"_bucket{part="instantiate",le="0.0001"} 3"#,
            ]
        );
        assert_eq!(
            lines[15..],
            [
                r#"_bucket{part="instantiate",le="30"} 3"#,
                r#"_bucket{part="instantiate",le="+Inf"} 4"#,
                r#"_sum{part="instantiate"} 40.000131"#,
                r#"_count{part="instantiate"} 4"#,
            ]
        );
        assert!(text.contains("wherry_cold_start_seconds_count{part=\"pull\"} 0\n"));
    }
}
