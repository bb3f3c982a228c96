//! The deadline of a request: until the head of its response, and between two parts of its body.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::HandleError;

/// The deadline of one request.
pub(super) struct Progress {
    pub(super) started: Instant,
    silence_max: Duration,
    /// The last sign of life, since `started`.
    last_ms: AtomicU64,
    /// It has its instance.
    has_begun: AtomicBool,
}

impl Progress {
    pub(super) fn new(silence_max: Duration) -> Progress {
        let (last_ms, has_begun) = (AtomicU64::new(0), AtomicBool::new(false));
        Progress { started: Instant::now(), silence_max, last_ms, has_begun }
    }

    /// What it has waited until now was not the guest's time.
    pub(super) fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// What a request is told whose deadline has passed.
    pub(super) fn late(&self) -> HandleError {
        match self.has_begun() {
            true => HandleError::Deadline,
            false => HandleError::Busy,
        }
    }

    pub(super) fn touch(&self) {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(since, Ordering::Relaxed);
    }

    /// When the deadline is, as far as is known now.
    pub(super) fn due(&self) -> Instant {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.started + last + self.silence_max
    }

    /// Returns when the deadline has passed.
    pub(super) async fn expired(&self) {
        loop {
            let due = self.due();
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}
