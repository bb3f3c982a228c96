//! Encrypting anew what lies on disk unencrypted or under an older key, while the store runs.

use crate::engine::{Column, EngineError};
use crate::errors::ResealError;
use crate::store::Store;

impl Store {
    /// Writes again what lies on disk unencrypted, or under an older key, though the keyring covers
    /// it; then rids the files of what was written over. Returns how many records that were. Goes
    /// on beside writes, in small rounds; to be called after every start and whenever the keyring
    /// has a newer key.
    pub async fn reseal(&self) -> Result<u64, ResealError> {
        let failed = |error: EngineError| ResealError(error.to_string());
        let mut records = 0;
        for column in [Column::Log, Column::State] {
            let mut resealed = 0;
            let mut from = Some(Vec::new());
            while let Some(start) = from {
                let round = self.inner.writer.reseal(column, start).await.map_err(failed)?;
                resealed += round.records;
                from = round.next;
            }
            if resealed > 0 {
                let disk = self.inner.disk.clone();
                let compacted = tokio::task::spawn_blocking(move || disk.compact(column)).await;
                compacted.expect("compacting does not panic").map_err(failed)?;
            }
            records += resealed;
        }
        Ok(records)
    }
}
