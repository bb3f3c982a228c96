//! What policies refused, gathered until the agent is told: it makes events of them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::protocol::{Denial, Direction};

/// Different refusals between two reports; of a flood of others only the worker's log knows.
const KINDS_MAX: usize = 256;

/// Counted by Pod and sentence. Locked for an entry.
#[derive(Default)]
pub struct Denials(Mutex<HashMap<(String, Direction, String, bool), u32>>);

impl Denials {
    /// Counts one.
    pub fn note(&self, uid: &str, direction: Direction, why: &str, audit: bool) {
        if uid.is_empty() {
            return;
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (uid.to_owned(), direction, why.to_owned(), audit);
        if counts.len() >= KINDS_MAX && !counts.contains_key(&key) {
            tracing::debug!(uid, why, "a refusal is not reported, there are too many");
            return;
        }
        *counts.entry(key).or_default() += 1;
    }

    /// All of them, once.
    pub fn take(&self) -> Vec<Denial> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all: Vec<Denial> = counts
            .into_iter()
            .map(|((uid, direction, message, audit), count)| Denial {
                uid,
                direction,
                message,
                audit,
                count,
            })
            .collect();
        all.sort_by(|a, b| {
            (&a.uid, a.direction, &a.message).cmp(&(&b.uid, b.direction, &b.message))
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_counts_up_and_is_reported_once() {
        let denials = Denials::default();
        for _ in 0..3 {
            denials.note("p", Direction::Ingress, "no", false);
        }
        denials.note("p", Direction::Egress, "no", true);
        denials.note("", Direction::Egress, "of another worker", false);
        let counts: Vec<(Direction, u32)> =
            denials.take().into_iter().map(|it| (it.direction, it.count)).collect();
        assert_eq!(counts, [(Direction::Ingress, 3), (Direction::Egress, 1)]);
        assert!(denials.take().is_empty());
        for number in 0..2 * KINDS_MAX {
            denials.note("p", Direction::Ingress, &number.to_string(), false);
        }
        assert_eq!(denials.take().len(), KINDS_MAX);
    }
}
