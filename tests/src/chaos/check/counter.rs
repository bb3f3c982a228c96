//! The counter: clients add one to the same number by compare-and-swap, so that those who begin at
//! the same revision write the same bytes. Elsewhere a value names the write that made it; what
//! holds only because of that shows here.
//!
//! - No number is reached twice: each increment that was acknowledged is another one.
//! - They add up: read when nobody counts any more, the number is that of the increments that were
//!   acknowledged, and at most of those of unknown outcome more.

use std::collections::HashMap;

use super::Violation;
use crate::chaos::history::{Call, History, Outcome};

/// Checks all increments; returns how many were acknowledged.
pub fn check(history: &History, violations: &mut Vec<Violation>) -> usize {
    let increments: Vec<&Call> = history.counts.iter().filter(|call| call.op.is_write()).collect();
    let unknown = increments.iter().filter(|call| call.is_unknown()).count();
    let mut acknowledged = 0;
    let mut reached: HashMap<Option<&str>, &Call> = HashMap::new();
    for call in increments.iter().filter(|call| call.acknowledged_write()) {
        acknowledged += 1;
        if let Some(other) = reached.insert(call.op.value(), call) {
            let detail = format!("{other:?} and {call:?}");
            violations.push(Violation { rule: "counted-once", detail });
        }
    }
    let ended = increments.iter().map(|call| call.return_us).max().unwrap_or(0);
    for call in history.counts.iter().filter(|call| call.invoke_us >= ended) {
        let Outcome::Found { item } = &call.outcome else { continue };
        let number = item.as_ref().and_then(|item| item.value.parse::<usize>().ok());
        let right = acknowledged..=acknowledged + unknown;
        if !number.is_some_and(|number| right.contains(&number)) {
            let detail = format!(
                "{number:?} after {acknowledged} increments, and {unknown} of unknown outcome: \
                 {call:?}"
            );
            violations.push(Violation { rule: "counts-add-up", detail });
        }
    }
    acknowledged
}
