//! What the member's own tasks tell `/metrics`: encryption at rest and backups.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wherry_store::Fingerprint;

/// Shared by the tasks that fill it and the API server that shows it.
#[derive(Debug, Default)]
pub struct Reports {
    // A plain mutex: sections copy a few numbers and never await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The key that encrypts, and whether everything on disk is under it by now.
    key: Option<(Fingerprint, bool)>,
    backups: Option<Backups>,
}

/// The scheduled backups, as far as this member has made them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backups {
    pub made: u64,
    pub failed: u64,
    /// Seconds since 1970; of the newest backup there is, whoever made it.
    pub newest_seconds: u64,
    pub newest_bytes: u64,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This key encrypts from now on; `alone` once nothing is under an older one.
    pub fn key_in_use(&self, key: Fingerprint, alone: bool) {
        self.lock().key = Some((key, alone));
    }

    /// Changes what is told about backups.
    pub fn backups(&self, change: impl FnOnce(&mut Backups)) {
        change(self.lock().backups.get_or_insert_default());
    }

    /// In the text form of Prometheus.
    pub fn text(&self) -> String {
        let state = self.lock();
        let mut text = String::new();
        if let Some((key, alone)) = &state.key {
            let name = "wherry_encryption_newest_key_only";
            let value = u8::from(*alone);
            let _ = writeln!(text, "# TYPE {name} gauge\n{name}{{key=\"{key}\"}} {value}");
        }
        if let Some(backups) = &state.backups {
            let rows = [
                ("wherry_backup_made_total", "counter", backups.made),
                ("wherry_backup_failures_total", "counter", backups.failed),
                ("wherry_backup_newest_timestamp_seconds", "gauge", backups.newest_seconds),
                ("wherry_backup_newest_bytes", "gauge", backups.newest_bytes),
            ];
            for (name, kind, value) in rows {
                let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_before_there_is_something() {
        let reports = Reports::default();
        assert_eq!(reports.text(), "");
        reports.backups(|backups| backups.failed += 1);
        expect_test::expect![[r"
            # TYPE wherry_backup_made_total counter
            wherry_backup_made_total 0
            # TYPE wherry_backup_failures_total counter
            wherry_backup_failures_total 1
            # TYPE wherry_backup_newest_timestamp_seconds gauge
            wherry_backup_newest_timestamp_seconds 0
            # TYPE wherry_backup_newest_bytes gauge
            wherry_backup_newest_bytes 0
        "]]
        .assert_eq(&reports.text());
    }
}
