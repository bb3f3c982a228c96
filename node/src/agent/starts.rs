//! How long the parts of cold starts took, counted since this agent began, as Prometheus reads it:
//! the histogram `wherry_cold_start_seconds` with the label `part`.
//!
//! Each part of each start is counted once, when it is known: the agent's own when a start is
//! prepared, the worker's when it tells of them.

use std::time::Duration;

use crate::metrics::{STARTS, Samples, Times};

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

/// The histogram of each part.
#[derive(Debug, Default)]
pub struct Starts([Times; PARTS.len()]);

impl Starts {
    /// The agent's parts of a start.
    pub fn prepared(&self, took: Took) {
        self.took(Part::Queue, took.queue);
        self.took(Part::Pull, took.pull);
        self.took(Part::Compile, took.compile);
    }

    /// A part of a start took so long.
    pub fn took(&self, part: Part, time: Duration) {
        self.0[part as usize].add(time);
    }

    /// All parts, also those of which there was none yet.
    pub fn tell(&self) -> Samples {
        let mut lines = Vec::new();
        for (part, word) in PARTS {
            self.0[part as usize].tell(&format!("part=\"{word}\""), &mut lines);
        }
        Samples::from([(STARTS.to_owned(), lines)])
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
    fn every_part_is_told() {
        let starts = Starts::default();
        starts.took(Part::Instantiate, Duration::from_micros(90));
        let told = starts.tell();
        let has = |line: &str| told[STARTS].iter().any(|it| it == line);
        assert!(has(r#"_bucket{part="instantiate",le="0.0001"} 1"#));
        assert!(has(r#"_sum{part="instantiate"} 0.00009"#));
        assert!(has(r#"_count{part="pull"} 0"#));
    }
}
