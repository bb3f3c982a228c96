//! An engine over another one that encrypts what it writes and decrypts what it reads, so that
//! nothing above it knows of encryption and nothing below it, down to the files, sees a secret.
//!
//! Sealed are all log entries, since each carries a value, and those values of the key space that
//! the keyring covers. The store's own marks in `Meta` hold no values. A record written before
//! there was a keyring is read as it is; `reseal` seals it.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::{Batch, Column, Engine, EngineError, Op, Pair, Resealed, Stage, Visit, Walk};
use crate::keyring::{Keyring, OpenSealError};

/// Records that one round of resealing looks at: with small values a few milliseconds, for which
/// writes wait.
const RESEAL_RECORDS: usize = 1000;

/// Bytes that one round of resealing writes.
const RESEAL_BYTES: usize = 1 << 20;

/// The encrypting engine.
pub(crate) struct Sealed {
    inner: Arc<dyn Engine>,
    keys: Arc<Keyring>,
}

/// Puts encryption before an engine, if there are keys. Whoever opens an engine for the store's
/// data calls this.
pub(crate) fn wrap(inner: Arc<dyn Engine>, keys: Option<Arc<Keyring>>) -> Arc<dyn Engine> {
    match keys {
        Some(keys) => Arc::new(Sealed { inner, keys }),
        None => inner,
    }
}

/// What is authenticated beside a record: column and key.
fn place(column: Column, key: &[u8]) -> Vec<u8> {
    [column.name().as_bytes(), &[0], key].concat()
}

impl Sealed {
    fn covers(&self, column: Column, key: &[u8]) -> bool {
        match column {
            Column::Log => true,
            Column::Meta => false,
            Column::State => self.keys.covers(key),
        }
    }

    /// A batch as it goes to the disk.
    fn sealed<'a>(&self, batch: &'a Batch) -> Result<Cow<'a, Batch>, EngineError> {
        let covered = |op: &Op| matches!(op, Op::Put(column, key, _) if self.covers(*column, key));
        if !batch.ops.iter().any(covered) {
            return Ok(Cow::Borrowed(batch));
        }
        let mut sealed = Batch::default();
        for op in &batch.ops {
            match op {
                Op::Put(column, key, record) if covered(op) => {
                    sealed.put(*column, key.clone(), self.seal(*column, key, record)?);
                }
                other => sealed.push(other.clone()),
            }
        }
        Ok(Cow::Owned(sealed))
    }

    fn seal(&self, column: Column, key: &[u8], record: &[u8]) -> Result<Vec<u8>, EngineError> {
        let sealed = self.keys.seal(&place(column, key), record);
        sealed.map_err(|error| EngineError::Seal(error.to_string()))
    }

    /// The record as it was before it was sealed.
    fn open<'a>(
        &self,
        column: Column,
        key: &[u8],
        record: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, EngineError> {
        if Keyring::key_of(record).is_none() {
            return Ok(Cow::Borrowed(record));
        }
        let opened = self.keys.open_sealed(&place(column, key), record);
        let what = || format!("{} {}", column.name(), key.escape_ascii());
        opened.map(Cow::Owned).map_err(|error| match error {
            OpenSealError::UnknownKey(key) => {
                let keyring = self.keys.path().to_owned();
                EngineError::UnknownKey { what: what(), key, keyring }
            }
            OpenSealError::Damaged => EngineError::Damaged(what(), error.to_string()),
        })
    }
}

impl Engine for Sealed {
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError> {
        self.inner.write(&*self.sealed(batch)?, durable)
    }

    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let Some(record) = self.inner.get(column, key)? else {
            return Ok(None);
        };
        Ok(Some(self.open(column, key, &record)?.into_owned()))
    }

    fn scan(&self, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError> {
        self.inner.scan(column, from, &mut |key, record| {
            let record = self.open(column, key, record)?;
            visit(key, &record)
        })
    }

    fn last(&self, column: Column) -> Result<Option<Pair>, EngineError> {
        let Some((key, record)) = self.inner.last(column)? else {
            return Ok(None);
        };
        let record = self.open(column, &key, &record)?.into_owned();
        Ok(Some((key, record)))
    }

    fn stage(&self) -> Result<Stage, EngineError> {
        self.inner.stage()
    }

    fn fill(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.inner.fill(stage, &*self.sealed(batch)?)
    }

    fn adopt(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.inner.adopt(stage, &*self.sealed(batch)?)
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), EngineError> {
        self.inner.checkpoint(folder)
    }

    fn reseal(&self, column: Column, from: &[u8]) -> Result<Resealed, EngineError> {
        let newest = self.keys.newest();
        let mut batch = Batch::default();
        let mut looked_at = 0;
        let mut next = None;
        self.inner.scan(column, from, &mut |key, record| {
            if looked_at == RESEAL_RECORDS || batch.bytes >= RESEAL_BYTES {
                next = Some(key.to_vec());
                return Ok(Walk::Enough);
            }
            looked_at += 1;
            if self.covers(column, key) && Keyring::key_of(record) != Some(newest) {
                let plain = self.open(column, key, record)?;
                let sealed = self.seal(column, key, &plain)?;
                batch.put(column, bytes::Bytes::copy_from_slice(key), sealed);
            }
            Ok(Walk::On)
        })?;
        let records = batch.ops.len() as u64;
        if records > 0 {
            self.inner.write(&batch, true)?;
        }
        Ok(Resealed { records, next })
    }

    fn compact(&self, column: Column) -> Result<(), EngineError> {
        self.inner.compact(column)
    }

    fn close(&self) {
        self.inner.close();
    }
}

#[cfg(test)]
mod tests {
    //! Over the memory engine, whose content stands for what would be on disk.

    use bytes::Bytes;

    use super::*;
    use crate::engine::memory::Memory;
    use crate::keyring::Cover;

    const SECRET: &[u8] = b"the secret value";

    struct Case {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        inner: Arc<dyn Engine>,
        sealed: Arc<dyn Engine>,
        keys: Arc<Keyring>,
    }

    fn case() -> Case {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("keys");
        let cover = Cover::Prefixes(vec![b"secret/".to_vec()]);
        let (keys, _) = Keyring::open_or_create(&path, cover).expect("it can be written");
        let keys = Arc::new(keys);
        let inner: Arc<dyn Engine> = Arc::new(Memory::new());
        let sealed = wrap(inner.clone(), Some(keys.clone()));
        Case { _folder: folder, path, inner, sealed, keys }
    }

    fn put(engine: &Arc<dyn Engine>, column: Column, key: &'static str) {
        let mut batch = Batch::default();
        batch.put(column, Bytes::from_static(key.as_bytes()), SECRET.to_vec());
        engine.write(&batch, true).expect("memory does not fail");
    }

    fn shows(engine: &Arc<dyn Engine>, column: Column, key: &str) -> bool {
        let record = engine.get(column, key.as_bytes()).expect("it can be read");
        let record = record.expect("it is there");
        record.windows(SECRET.len()).any(|part| part == SECRET)
    }

    #[test]
    fn what_is_covered_is_sealed_below_and_plain_above() {
        let case = case();
        let all = [
            (Column::Log, "1", true),
            (Column::State, "secret/a", true),
            (Column::State, "other/a", false),
            (Column::Meta, "mark", false),
        ];
        for (column, key, covered) in all {
            put(&case.sealed, column, key);
            assert_eq!(shows(&case.inner, column, key), !covered, "{key}");
            assert!(shows(&case.sealed, column, key), "{key}");
            let last = case.sealed.last(column).expect("it can be read").expect("it is there");
            assert_eq!(last.1, SECRET);
        }
        let mut seen = Vec::new();
        let scan = case.sealed.scan(Column::State, b"", &mut |key, record| {
            seen.push((key.to_vec(), record.to_vec()));
            Ok(Walk::On)
        });
        scan.expect("it can be read");
        let expected = ["other/a", "secret/a"].map(|key| (key.into(), SECRET.to_vec()));
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_record_moved_to_another_key_does_not_open() {
        let case = case();
        put(&case.sealed, Column::State, "secret/a");
        let record = case.inner.get(Column::State, b"secret/a").expect("it can be read");
        let mut batch = Batch::default();
        batch.put(Column::State, Bytes::from_static(b"secret/b"), record.expect("it is there"));
        case.inner.write(&batch, true).expect("memory does not fail");
        let moved = case.sealed.get(Column::State, b"secret/b");
        assert!(matches!(moved, Err(EngineError::Damaged(..))), "{moved:?}");
    }

    #[test]
    fn another_keyring_is_told_from_damage() {
        let case = case();
        put(&case.sealed, Column::State, "secret/a");
        let path = case.path.with_file_name("others");
        let other = Keyring::open_or_create(&path, Cover::Everything).expect("it can be written");
        let wrong = wrap(case.inner.clone(), Some(Arc::new(other.0)));
        let refused = wrong.get(Column::State, b"secret/a");
        assert!(matches!(refused, Err(EngineError::UnknownKey { .. })), "{refused:?}");
    }

    #[test]
    fn resealing_reaches_what_is_plain_or_under_an_older_key() {
        let case = case();
        put(&case.inner, Column::State, "secret/from before encryption");
        put(&case.sealed, Column::State, "secret/under the first key");
        put(&case.sealed, Column::State, "other/never");
        put(&case.sealed, Column::Log, "1");
        Keyring::rotate(&case.path).expect("it can be written");
        assert!(case.keys.reload().expect("it can be read"));

        let state = case.sealed.reseal(Column::State, b"").expect("memory does not fail");
        assert_eq!(state, Resealed { records: 2, next: None });
        let log = case.sealed.reseal(Column::Log, b"").expect("memory does not fail");
        assert_eq!(log.records, 1);
        let newest = Some(case.keys.newest());
        for key in ["secret/from before encryption", "secret/under the first key"] {
            let record = case.inner.get(Column::State, key.as_bytes()).expect("it can be read");
            assert_eq!(Keyring::key_of(&record.expect("it is there")), newest, "{key}");
            assert!(shows(&case.sealed, Column::State, key));
        }
        let again = case.sealed.reseal(Column::State, b"").expect("memory does not fail");
        assert_eq!(again.records, 0);
    }

    #[test]
    fn resealing_goes_in_rounds() {
        let case = case();
        let mut batch = Batch::default();
        for number in 0..2 * RESEAL_RECORDS + 1 {
            let key = Bytes::from(format!("secret/{number:06}"));
            batch.put(Column::State, key, SECRET.to_vec());
        }
        case.inner.write(&batch, true).expect("memory does not fail");
        let (mut records, mut rounds, mut from) = (0, 0, Vec::new());
        loop {
            let done = case.sealed.reseal(Column::State, &from).expect("memory does not fail");
            records += done.records;
            rounds += 1;
            match done.next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert_eq!((records, rounds), (2 * RESEAL_RECORDS as u64 + 1, 3));
    }
}
