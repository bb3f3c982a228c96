//! What this node says of itself for the scheduler, as annotations of its Node: what its workers
//! offer, which images it had to refuse, how much CPU its Pods use (`wherry_resources::offers`).
//!
//! Every node of the cluster hears of every change of a Node, so figures are told only when they
//! have moved enough to matter, and not more often than each [`PAUSE`].

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_resources::offers::{MEASURED, Measured, OFFERS, REFUSED, Refused};

use super::{
    accounts::{Accounts, Row},
    images::Images,
    node,
};
use crate::protocol::USAGE_INTERVAL_SECONDS;

/// Between two publications of figures. What was refused is told at once.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two looks at the accounts: workers say no more often what was used.
const LOOK: Duration = Duration::from_secs(USAGE_INTERVAL_SECONDS);

/// What is known, and what was told of it.
pub struct Facts {
    accounts: Arc<Accounts>,
    images: Arc<Images>,
    offers: String,
    /// What the API was told last, and when figures were.
    told: Option<(Refused, Measured)>,
    figures_at: Option<Instant>,
    /// When the accounts were looked at last: all of a full node are thousands, and new only so often.
    looked_at: Option<Instant>,
}

impl Facts {
    /// Nothing was told yet.
    pub fn new(accounts: Arc<Accounts>, images: Arc<Images>) -> Facts {
        let offers = json!(wherry_wasi_shim::offers()).to_string();
        Facts { accounts, images, offers, told: None, figures_at: None, looked_at: None }
    }

    /// The Node is gone or new: everything has to be told.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// Images on this node, with their sizes.
    pub fn images(&self) -> Vec<(String, u64)> {
        self.images.shown().present()
    }

    /// What has to be told now, and the annotations that say it.
    pub fn news(&mut self, now: Instant) -> Option<(News, Value)> {
        let refused = self.images.shown().refused();
        let rested =
            |at: Option<Instant>, pause| at.is_none_or(|at| now.duration_since(at) >= pause);
        let measure = || measured(&self.accounts.all(Timestamp::now()));
        let news = match &self.told {
            None => {
                self.looked_at = Some(now);
                News { refused, measured: measure(), figures: true }
            }
            Some((told_refused, told)) => {
                let looks = rested(self.figures_at, PAUSE) && rested(self.looked_at, LOOK);
                if looks {
                    self.looked_at = Some(now);
                }
                let moved = looks.then(measure).filter(|it| it.differs(told, capacity_millis()));
                if moved.is_none() && refused == *told_refused {
                    return None;
                }
                let figures = moved.is_some();
                News { refused, measured: moved.unwrap_or_else(|| told.clone()), figures }
            }
        };
        let refused = (!news.refused.is_empty()).then(|| json!(news.refused).to_string());
        let annotations = json!({
            OFFERS: self.offers, REFUSED: refused, MEASURED: news.measured.text(),
        });
        Some((news, json!({"metadata": {"annotations": annotations}})))
    }

    /// The API has it.
    pub fn told(&mut self, news: News, now: Instant) {
        if news.figures {
            self.figures_at = Some(now);
        }
        self.told = Some((news.refused, news.measured));
    }
}

/// What is told at once.
pub struct News {
    refused: Refused,
    measured: Measured,
    /// Whether the figures are new.
    figures: bool,
}

fn measured(rows: &[Row]) -> Measured {
    let mut pods: BTreeMap<String, i64> = BTreeMap::new();
    for row in rows {
        let millis = i64::try_from(row.cpu_nanocores / 1_000_000).unwrap_or(i64::MAX);
        let held = pods.entry(row.uid.clone()).or_default();
        *held = held.saturating_add(millis);
    }
    Measured::of(&pods)
}

fn capacity_millis() -> i64 {
    i64::try_from(node::cores()).unwrap_or(i64::MAX).saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let row = |uid: &str, container: &str, millis: u64| Row {
            cpu_ns: 0,
            uid: uid.to_owned(),
            container: container.to_owned(),
            cpu_nanocores: millis * 1_000_000,
            memory_bytes: 0,
            requests_milli: 0,
            concurrency_milli: 0,
            at: Timestamp::UNIX_EPOCH,
            window_ms: 15_000,
        };
        let measured = measured(&[row("a", "x", 60), row("a", "y", 60), row("b", "x", 10)]);
        assert_eq!(measured.cpu, 130);
        assert_eq!(measured.pods, BTreeMap::from([("a".to_owned(), 120)]));
    }
}
