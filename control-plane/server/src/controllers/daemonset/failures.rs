//! How long a node waits for the next Pod of a DaemonSet when Pods end there.
//!
//! The first Pod that ends is replaced at once; each further one after a pause that doubles, for
//! each node by itself. Another spec of the DaemonSet begins anew, as does a node that had peace
//! for long enough. This is kept in mind and written nowhere: a new leader begins anew, too.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

/// The first pause and the longest one, as in Kubernetes.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// So long without an ended Pod, and a node begins anew.
const PEACE: Duration = Duration::from_secs(2 * 15 * 60);

/// Nodes where Pods ended under one generation of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    generation: i64,
    nodes: BTreeMap<String, Pause>,
}

/// Since the last Pod was replaced on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    since: Timestamp,
    lasts: Duration,
}

impl Pause {
    fn passed(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.since)).unwrap_or_default()
    }
}

impl Failures {
    /// What was kept, if it was for this generation.
    pub fn of(kept: &Failures, generation: i64) -> Failures {
        match kept.generation == generation {
            true => kept.clone(),
            false => Failures { generation, ..Failures::default() },
        }
    }

    /// How long a Pod that ended on this node has to wait; `None` when it can be replaced.
    pub fn left(&self, node: &str, now: Timestamp) -> Option<Duration> {
        let pause = self.nodes.get(node)?;
        pause.lasts.checked_sub(pause.passed(now)).filter(|left| !left.is_zero())
    }

    /// Notes that a Pod that ended on this node is replaced now.
    pub fn note(&mut self, node: &str, now: Timestamp) {
        self.nodes.retain(|_, pause| pause.passed(now) <= PEACE);
        let before = self.nodes.get(node).map(|pause| pause.lasts);
        let lasts = before.map_or(FIRST, |lasts| lasts.saturating_mul(2).min(LONGEST));
        self.nodes.insert(node.to_string(), Pause { since: now, lasts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::at;

    #[test]
    fn each_pause_is_twice_the_one_before() {
        let mut failures = Failures::of(&Failures::default(), 1);
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            failures.note("a", at(now));
            assert_eq!(failures.left("b", at(now)), None, "each node by itself");
            let left = failures.left("a", at(now)).expect("it waits");
            pauses.push(left.as_secs());
            now += i64::try_from(left.as_secs()).expect("a short time");
            assert_eq!(failures.left("a", at(now)), None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(Failures::of(&failures, 1), failures);
        assert_eq!(Failures::of(&failures, 2).left("a", at(now - 1)), None, "another spec");
        failures.note("a", at(now + 1_801));
        assert_eq!(failures.left("a", at(now + 1_801)), Some(FIRST), "after half an hour of peace");
    }
}
