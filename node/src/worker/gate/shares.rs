//! Who gets which share of the requests: by weights, exactly, and well mixed.
//!
//! Of any run of as many requests as the weights add up to, each one gets exactly its weight; and of
//! a shorter run nearly its part, because turns step through the sum by about its golden section.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::Mirror;

/// Shares of some.
#[derive(Debug)]
pub struct Shares {
    /// Where the part of each one ends.
    ends: Vec<u64>,
    /// Has no divisor in common with the sum.
    stride: u64,
    turn: AtomicU64,
}

impl Shares {
    /// By weights.
    pub fn new(weights: impl Iterator<Item = u32>) -> Shares {
        let mut sum = 0_u64;
        let ends: Vec<u64> = weights
            .map(|weight| {
                sum += u64::from(weight);
                sum
            })
            .collect();
        let golden = sum - sum * 382 / 1000;
        let stride = (1..=golden).rev().find(|stride| divisor(*stride, sum) == 1).unwrap_or(1);
        Shares { ends, stride, turn: AtomicU64::new(0) }
    }

    /// Of two: the first is mirrored.
    pub fn of_mirror(mirror: &Mirror) -> Shares {
        let rest = mirror.denominator.saturating_sub(mirror.numerator);
        Shares::new([mirror.numerator, rest].into_iter())
    }

    /// Whose turn it is; nobody's if all weights are zero.
    pub fn next(&self) -> Option<usize> {
        let sum = *self.ends.last().filter(|sum| **sum > 0)?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = (turn % sum).wrapping_mul(self.stride) % sum;
        Some(self.ends.partition_point(|end| *end <= at))
    }
}

fn divisor(mut left: u64, mut right: u64) -> u64 {
    while right > 0 {
        (left, right) = (right, left % right);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[u32], turns: usize) -> Vec<usize> {
        let shares = Shares::new(weights.iter().copied());
        let mut counts = vec![0; weights.len()];
        for _ in 0..turns {
            if let Some(index) = shares.next() {
                counts[index] += 1;
            }
        }
        counts
    }

    #[test]
    fn each_gets_its_weight() {
        assert_eq!(counts(&[90, 10], 100), [90, 10]);
        assert_eq!(counts(&[1], 7), [7]);
        assert_eq!(counts(&[0, 3, 1], 400), [0, 300, 100]);
        assert_eq!(counts(&[0, 0], 5), [0, 0]);
        assert_eq!(counts(&[], 5), [] as [usize; 0]);
    }

    #[test]
    fn a_short_run_is_near_it() {
        for (weights, turns) in [([900_000, 100_000], 100), ([95, 5], 20), ([1, 1], 10)] {
            let counts = counts(&weights, turns);
            let part = weights[1] as f64 / (weights[0] + weights[1]) as f64 * turns as f64;
            assert!((counts[1] as f64 - part).abs() <= 2.0, "{weights:?} {counts:?}");
        }
    }

    #[test]
    fn a_part_is_mirrored() {
        let to = crate::protocol::Target {
            namespace: "d".into(),
            service: "s".into(),
            port: "80".into(),
        };
        let mirror = Mirror { to, numerator: 1, denominator: 4 };
        let shares = Shares::of_mirror(&mirror);
        let mirrored = (0..8).filter(|_| shares.next() == Some(0)).count();
        assert_eq!(mirrored, 2);
    }
}
