//! Whether this process itself stood still: stopped, paused with its machine, or starved.
//!
//! Silence of nodes is measured by the clock of the loop in `reconcile`, and while the loop stands
//! still nobody is heard. So it looks at the clock at least each [`LOOK`], and of a longer gap
//! between two looks what is beyond counts for nobody:
//!
//! ```text
//!  looks    |---|---|---|------------------------|---|---|
//!  counted   yes yes yes yes    not counted       yes yes
//! ```
//!
//! Invariant: of every gap [`LOOK`] does count, so a loop that is always late still finds nodes
//! that are lost.

use std::time::{Duration, Instant};

/// How often the loop looks at the clock when nothing else wakes it: short beside the silence that
/// makes a node lost.
const LOOK: Duration = Duration::from_millis(500);
/// Timers of a busy machine are late by less.
const LATE: Duration = Duration::from_millis(100);

/// The looks of one loop.
pub struct Pace {
    last: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Pace {
        Pace { last: now }
    }

    /// When to look at the latest.
    pub fn next(&self) -> Instant {
        self.last + LOOK
    }

    /// Looks; returns the time since the last look in which the loop stood still.
    pub fn look(&mut self, now: Instant) -> Duration {
        let beyond = now.saturating_duration_since(self.last).saturating_sub(LOOK);
        self.last = now;
        if beyond < LATE { Duration::ZERO } else { beyond }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at these milliseconds; says after each what was lost.
    fn lost(looks: &[u64]) -> Vec<u64> {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let look = |ms: &u64| pace.look(begin + Duration::from_millis(*ms)).as_millis();
        looks.iter().map(look).map(|ms| u64::try_from(ms).expect("short")).collect()
    }

    #[test]
    fn only_what_is_beyond_a_look_is_lost() {
        assert_eq!(lost(&[0, 100, 600, 1_110, 1_640]), [0, 0, 0, 0, 0]);
        assert_eq!(lost(&[500, 3_400, 3_900, 63_900, 64_000]), [0, 2_400, 0, 59_500, 0]);
    }

    #[test]
    fn a_loop_that_is_always_late_still_counts() {
        let looks: Vec<u64> = (1..=20).map(|at| at * 700).collect();
        assert_eq!(lost(&looks).iter().sum::<u64>(), 20 * 200);
    }
}
