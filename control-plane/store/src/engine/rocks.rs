//! The engine on RocksDB: one database, one column family a column, one write-ahead log for all.
//!
//! The settings that matter, and why:
//! - `TolerateCorruptedTailRecords`: after a crash the last record may be torn and is dropped;
//!   damage anywhere else refuses to open. RocksDB's own default silently serves what lies before
//!   the damage.
//! - `paranoid_checks`: what fails a checksum is an error at once.
//! - The write-ahead log is shared, so batches survive in the order in which they were written,
//!   whether they were synced one by one or not.
//!
//! A failed write leaves the database unusable until the process starts again, by design of RocksDB
//! and by ours: nothing is retried after a failed fsync.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction,
    ErrorKind, IteratorMode, LogLevel, Options, WriteBatch, WriteOptions,
};

use super::{Batch, Column, Engine, EngineError, KEY_BYTES_MAX, Op, Pair, Visit, Walk};
use crate::OpenError;

/// Write-ahead files together before the oldest memory tables are flushed: bounds disk use and the
/// time to open.
const WAL_BYTES_MAX: u64 = 256 << 20;

/// Files RocksDB keeps open; everything is in memory above it, so few reads reach the files.
const OPEN_FILES_MAX: i32 = 128;

/// RocksDB's own information log: enough to look into an incident, bounded.
const INFO_LOG_BYTES_MAX: usize = 1 << 20;
const INFO_LOG_FILES_MAX: usize = 4;

/// The open database; `None` once closed. Readers and the one writer share the lock, only `close`
/// takes it alone.
pub(crate) struct Rocks {
    db: RwLock<Option<DB>>,
}

impl Rocks {
    /// Opens or creates the database in a folder. Only one process can have it open.
    pub(crate) fn open(path: &Path) -> Result<Rocks, OpenError> {
        let io = |source| OpenError::Folder { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        if lost_its_manifest(path).map_err(io)? {
            let detail = "the file CURRENT is missing".to_owned();
            return Err(OpenError::Damaged { path: path.to_owned(), detail });
        }

        let columns = Column::ALL
            .map(|column| ColumnFamilyDescriptor::new(column.name(), column_options(column)));
        let db = DB::open_cf_descriptors(&database_options(), path, columns)
            .map_err(|error| open_error(path.to_owned(), error))?;
        Ok(Rocks { db: RwLock::new(Some(db)) })
    }

    fn with<T>(&self, run: impl FnOnce(&DB) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        run(guard.as_ref().ok_or(EngineError::Closed)?)
    }
}

/// Data without the file that names it would be taken for an empty folder and written over.
fn lost_its_manifest(path: &Path) -> std::io::Result<bool> {
    let mut data = false;
    for file in std::fs::read_dir(path)? {
        let name = file?.file_name();
        let name = name.to_string_lossy();
        if name == "CURRENT" {
            return Ok(false);
        }
        data |= name.ends_with(".sst") || name.ends_with(".log") || name.starts_with("MANIFEST-");
    }
    Ok(data)
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(2);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX);
    options.set_stats_dump_period_sec(0);
    options
}

fn column_options(column: Column) -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(match column {
        // Small: most of the log is purged before it is worth a file.
        Column::Log => 8 << 20,
        Column::Meta => 1 << 20,
        Column::State => 16 << 20,
    });
    options
}

fn open_error(path: PathBuf, error: rocksdb::Error) -> OpenError {
    let detail = error.to_string();
    let locked = detail.contains("/LOCK") || detail.contains("lock hold by current process");
    match error.kind() {
        ErrorKind::IOError if locked => OpenError::InUse { path },
        ErrorKind::IOError => OpenError::Folder { path, source: std::io::Error::other(detail) },
        _ => OpenError::Damaged { path, detail },
    }
}

fn handle(db: &DB, column: Column) -> &ColumnFamily {
    db.cf_handle(column.name()).expect("all columns are opened with the database")
}

fn read_error(error: rocksdb::Error) -> EngineError {
    EngineError::Read(error.into_string())
}

impl Engine for Rocks {
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError> {
        self.with(|db| {
            let mut changes = WriteBatch::with_capacity_bytes(batch.bytes + 64 * batch.ops.len());
            for op in &batch.ops {
                match op {
                    Op::Put(column, key, value) => changes.put_cf(handle(db, *column), key, value),
                    Op::Delete(column, key) => changes.delete_cf(handle(db, *column), key),
                    Op::DeleteRange(column, from, end) => {
                        changes.delete_range_cf(handle(db, *column), from, end);
                    }
                    Op::Clear(column) => {
                        let end = [0xff; KEY_BYTES_MAX + 1];
                        changes.delete_range_cf(handle(db, *column), &[][..], &end[..]);
                    }
                }
            }
            let mut options = WriteOptions::default();
            options.set_sync(durable);
            let result = db.write_opt(changes, &options);
            result.map_err(|error| EngineError::Write(error.into_string()))
        })
    }

    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.with(|db| db.get_cf(handle(db, column), key).map_err(read_error))
    }

    fn scan(&self, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError> {
        self.with(|db| {
            let mode = IteratorMode::From(from, Direction::Forward);
            for pair in db.iterator_cf(handle(db, column), mode) {
                let (key, value) = pair.map_err(read_error)?;
                if visit(&key, &value)? == Walk::Enough {
                    break;
                }
            }
            Ok(())
        })
    }

    fn last(&self, column: Column) -> Result<Option<Pair>, EngineError> {
        self.with(|db| {
            let mut pairs = db.iterator_cf(handle(db, column), IteratorMode::End);
            let last = pairs.next().transpose().map_err(read_error)?;
            Ok(last.map(|(key, value)| (key.into_vec(), value.into_vec())))
        })
    }

    fn close(&self) {
        let db = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(db);
    }
}
