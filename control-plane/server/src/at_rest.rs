//! Encryption at rest: which objects it covers, where its keys are, and how a new key gets to work
//! while the member runs.
//!
//! Secrets and ConfigMaps are encrypted wherever the store writes them, everything else too if the
//! member was started so; the log always is, since every entry carries an object. The keyring is
//! `pki/at-rest.keys` in the data folder unless named otherwise, made at the first start.
//!
//! A rotation is a new key at the end of that file (`wherry keys rotate`). A running member takes
//! it up within [`LOOK_EVERY`], encrypts with it from then on, and writes again what lies under
//! older keys. Those stay in the file for backups made before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wherry_resources::keys;
use wherry_store::{Cover, Store};
pub use wherry_store::{Fingerprint, KeyInfo, Keyring, KeyringError};

use crate::reports::Reports;

/// How often the keyring's file is looked at; a rotation is no matter of seconds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The keyring's file in the folder of authorities.
pub const KEYRING_FILE: &str = "at-rest.keys";

/// What a member is told about encryption at rest.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The keyring, if it is not in the data folder.
    pub keyring: Option<PathBuf>,
    /// Encrypt every object.
    pub everything: bool,
}

impl Config {
    /// Where the keyring is.
    pub fn path(&self, data_dir: &Path) -> PathBuf {
        self.keyring.clone().unwrap_or_else(|| data_dir.join("pki").join(KEYRING_FILE))
    }

    /// Puts the keys of a cluster that this member was taken into where its keyring is to be.
    pub fn adopt(&self, data_dir: &Path, shared: &str) -> Result<(), KeyringError> {
        Keyring::adopt(&self.path(data_dir), shared, "the keyring that the other member sent")
    }

    /// The keyring, made if it is not there yet; says whether it was.
    pub fn open(&self, data_dir: &Path) -> Result<(Arc<Keyring>, bool), KeyringError> {
        let opened = Keyring::open_or_create(&self.path(data_dir), cover(self.everything));
        opened.map(|(keyring, made)| (Arc::new(keyring), made))
    }
}

/// What is encrypted in the key space.
pub fn cover(everything: bool) -> Cover {
    match everything {
        true => Cover::Everything,
        false => {
            Cover::Prefixes(vec![keys::of_type("", "secrets"), keys::of_type("", "configmaps")])
        }
    }
}

/// Encrypts what is not, or is under an older key: once now, and again after each rotation.
pub async fn keep(
    store: Store,
    keyring: Arc<Keyring>,
    reports: Arc<Reports>,
    shutdown: CancellationToken,
) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = true;
    let mut problem = String::new();
    loop {
        if due && !reseal(&store, &keyring, &reports).await {
            return;
        }
        tokio::select! {
            _ = looks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let found = keyring.reload();
        due = matches!(found, Ok(true));
        let now = found.err().map_or_else(String::new, |error| error.to_string());
        if !now.is_empty() && now != problem {
            tracing::warn!(problem = now, "the keyring cannot be read again; the keys known go on");
        }
        problem = now;
    }
}

/// False once the store has stopped, which reports itself.
async fn reseal(store: &Store, keyring: &Keyring, reports: &Reports) -> bool {
    let newest = keyring.keys().into_iter().find(|key| key.newest);
    let newest = newest.expect("a keyring is never empty").fingerprint;
    reports.key_in_use(newest, false);
    match store.reseal().await {
        Ok(records) => {
            tracing::info!(key = %newest, records, "encryption at rest uses its newest key");
            reports.key_in_use(newest, true);
            true
        }
        Err(error) => {
            tracing::warn!(%error, "encrypting anew stopped");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_config_maps_are_covered_by_the_keys_they_are_stored_under() {
        let Cover::Prefixes(prefixes) = cover(false) else {
            panic!("not everything is covered by default");
        };
        for (plural, covered) in [("secrets", true), ("configmaps", true), ("pods", false)] {
            let key = keys::object("", plural, "default", "a");
            let found = prefixes.iter().any(|prefix| key.starts_with(prefix));
            assert_eq!(found, covered, "{plural}");
        }
    }
}
