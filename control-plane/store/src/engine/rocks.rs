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
//! The database lies in `db-N` beside the superblock, which says which N counts (see `superblock`).
//! A staged state is a database of its own in `db-N+1`, and adopting it is one change of the
//! superblock.
//!
//! A failed write leaves the database unusable until the process starts again, by design of RocksDB
//! and by ours: nothing is retried after a failed fsync.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBRecoveryMode, Direction, ErrorKind, IteratorMode, LogLevel, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use super::{Batch, Column, Engine, EngineError, Op, Pair, Stage, Visit, Walk, unknown_stage};
use crate::errors::OpenError;
use crate::faults::Faults;
use crate::superblock::{self, Anchor, Identity, Superblock};

/// Write-ahead files together before the oldest memory tables are flushed: bounds disk use and the
/// time to open.
const WAL_BYTES_MAX: u64 = 256 << 20;

/// … but no more than this part of a small disk.
const WAL_PART: u64 = 16;

/// Files RocksDB keeps open; everything is in memory above it, so few reads reach the files.
const OPEN_FILES_MAX: i32 = 128;

/// RocksDB's own information log: enough to look into an incident, bounded.
const INFO_LOG_BYTES_MAX: usize = 1 << 20;
const INFO_LOG_FILES_MAX: usize = 4;

/// Changes copied at once from the live to a staged database.
const COPY_BYTES: usize = 4 << 20;

/// The open database; `None` once closed. Readers and the one writer share the lock, only `close`
/// and `adopt` take it alone.
pub(crate) struct Rocks {
    base: PathBuf,
    anchor: Arc<Anchor>,
    faults: Faults,
    db: RwLock<Option<DB>>,
    /// A std mutex: only blocking threads take it.
    staged: Mutex<Option<Staged>>,
    /// How many stages there were.
    stages: AtomicU64,
}

/// A database beside the live one.
struct Staged {
    stage: Stage,
    db: DB,
}

/// Makes a folder that only its owner may look into.
pub(crate) fn make_folder(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Rocks {
    /// Opens the database that the superblock names, or creates it. Only one process can have it
    /// open.
    pub(crate) fn open(
        base: &Path,
        anchor: Arc<Anchor>,
        create: bool,
        faults: Faults,
    ) -> Result<Rocks, OpenError> {
        let path = superblock::database(base, anchor.folder());
        let io = |source| OpenError::Folder { path: path.clone(), source };
        if create {
            make_folder(&path).map_err(io)?;
        }
        if lost_its_manifest(&path).map_err(io)? {
            let detail = "the file CURRENT is missing".to_owned();
            return Err(OpenError::Damaged { path, detail });
        }
        let db = open_database(&path, create).map_err(|error| open_error(path, error))?;
        let (db, staged) = (RwLock::new(Some(db)), Mutex::new(None));
        let stages = AtomicU64::new(0);
        Ok(Rocks { base: base.to_owned(), anchor, faults, db, staged, stages })
    }

    /// Opens a database that nobody has open, only to read it.
    pub(crate) fn open_to_read(path: &Path) -> Result<Rocks, EngineError> {
        let names = Column::ALL.map(Column::name);
        let options = database_options(path, false);
        let db = DB::open_cf_for_read_only(&options, path, names, false).map_err(read_error)?;
        let identity = Identity { cluster_id: 0, member_id: 0 };
        let faults = Faults::default();
        let anchor = Arc::new(Anchor::new(None, Superblock::new(identity), faults.clone()));
        let (db, staged, stages) = (RwLock::new(Some(db)), Mutex::new(None), AtomicU64::new(0));
        Ok(Rocks { base: path.to_owned(), anchor, faults, db, staged, stages })
    }

    fn staged(&self) -> MutexGuard<'_, Option<Staged>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
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

fn open_database(path: &Path, create: bool) -> Result<DB, rocksdb::Error> {
    let columns = Column::ALL
        .map(|column| ColumnFamilyDescriptor::new(column.name(), column_options(column)));
    DB::open_cf_descriptors(&database_options(path, create), path, columns)
}

/// How large the write-ahead files may get on the disk under a folder.
fn wal_bytes(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path);
    let total = stat.map_or(u64::MAX, |stat| stat.fragment_size().saturating_mul(stat.blocks()));
    WAL_BYTES_MAX.min(total / WAL_PART)
}

fn database_options(path: &Path, create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_total_wal_size(wal_bytes(path));
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
    options.set_compression_type(match column {
        // Gone soon, and with encryption at rest nothing becomes smaller.
        Column::Log => DBCompressionType::None,
        Column::Meta | Column::State => DBCompressionType::Lz4,
    });
    options.set_write_buffer_size(match column {
        // Small: most of the log is purged before it is worth a file.
        Column::Log => 8 << 20,
        Column::Meta => 1 << 20,
        Column::State => 16 << 20,
    });
    // Merging costs more than all else that RocksDB does. Of the log's files nearly all are purged by
    // the time there are so many, and merging those drops them; reads from the state's are rare.
    let (merge, slow, stop) = match column {
        Column::Log => (16, 32, 48),
        Column::Meta | Column::State => (8, 24, 40),
    };
    options.set_level_zero_file_num_compaction_trigger(merge);
    options.set_level_zero_slowdown_writes_trigger(slow);
    options.set_level_zero_stop_writes_trigger(stop);
    options
}

fn open_error(path: PathBuf, error: rocksdb::Error) -> OpenError {
    let detail = error.to_string();
    let locked = detail.contains("/LOCK") || detail.contains("lock hold by current process");
    let missing = detail.contains("No such file");
    match error.kind() {
        ErrorKind::IOError if locked => OpenError::InUse { path },
        ErrorKind::IOError if missing => OpenError::Damaged { path, detail },
        ErrorKind::IOError => OpenError::Folder { path, source: std::io::Error::other(detail) },
        _ => OpenError::Damaged { path, detail },
    }
}

fn handle(db: &DB, column: Column) -> &ColumnFamily {
    db.cf_handle(column.name()).expect("all columns are opened with the database")
}

fn read_error(error: rocksdb::Error) -> EngineError {
    match error.kind() {
        ErrorKind::Corruption => EngineError::Damaged("a file".to_owned(), error.into_string()),
        _ => EngineError::Read(error.into_string()),
    }
}

/// RocksDB merges files by itself. After it has found damage there it refuses each write with that.
fn write_error(error: rocksdb::Error) -> EngineError {
    match error.kind() {
        ErrorKind::Corruption => EngineError::Damaged("a file".to_owned(), error.into_string()),
        _ => EngineError::Write(error.into_string()),
    }
}

fn io_error(error: std::io::Error) -> EngineError {
    EngineError::Write(error.to_string())
}

fn write(db: &DB, batch: &Batch, durable: bool) -> Result<(), EngineError> {
    let mut changes = WriteBatch::with_capacity_bytes(batch.bytes + 64 * batch.ops.len());
    for op in &batch.ops {
        match op {
            Op::Put(column, key, value) => changes.put_cf(handle(db, *column), key, value),
            Op::Delete(column, key) => changes.delete_cf(handle(db, *column), key),
            Op::DeleteRange(column, from, end) => {
                changes.delete_range_cf(handle(db, *column), from, end);
            }
        }
    }
    let mut options = WriteOptions::default();
    options.set_sync(durable);
    db.write_opt(changes, &options).map_err(write_error)
}

fn scan(db: &DB, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError> {
    let mode = IteratorMode::From(from, Direction::Forward);
    let mut options = ReadOptions::default();
    // What is read is held in memory above, or only looked at; from a cache nothing is verified.
    options.fill_cache(false);
    for pair in db.iterator_cf_opt(handle(db, column), options, mode) {
        let (key, value) = pair.map_err(read_error)?;
        if visit(&key, &value)? == Walk::Enough {
            break;
        }
    }
    Ok(())
}

/// Copies a column from one database to another.
fn copy(from: &DB, to: &DB, column: Column) -> Result<(), EngineError> {
    let mut batch = Batch::default();
    scan(from, column, &[], &mut |key, value| {
        batch.put(column, Bytes::copy_from_slice(key), value.to_vec());
        if batch.bytes >= COPY_BYTES {
            write(to, &std::mem::take(&mut batch), false)?;
        }
        Ok(Walk::On)
    })?;
    write(to, &batch, false)
}

impl Engine for Rocks {
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError> {
        self.with(|db| write(db, batch, durable))
    }

    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.with(|db| db.get_cf(handle(db, column), key).map_err(read_error))
    }

    fn scan(&self, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError> {
        self.with(|db| scan(db, column, from, visit))
    }

    fn last(&self, column: Column) -> Result<Option<Pair>, EngineError> {
        self.with(|db| {
            let mut pairs = db.iterator_cf(handle(db, column), IteratorMode::End);
            let last = pairs.next().transpose().map_err(read_error)?;
            Ok(last.map(|(key, value)| (key.into_vec(), value.into_vec())))
        })
    }

    fn stage(&self) -> Result<Stage, EngineError> {
        let mut staged = self.staged();
        self.with(|_| Ok(()))?;
        let number = self.anchor.folder() + 1;
        let path = superblock::database(&self.base, number);
        drop(staged.take());
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io_error)?;
        }
        make_folder(&path).map_err(io_error)?;
        let db = open_database(&path, true).map_err(write_error)?;
        let stage = Stage(self.stages.fetch_add(1, Ordering::Relaxed));
        *staged = Some(Staged { stage, db });
        Ok(stage)
    }

    fn fill(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.faults.hit("snapshot.stage").map_err(io_error)?;
        match &*self.staged() {
            Some(staged) if staged.stage == stage => write(&staged.db, batch, false),
            _ => Err(unknown_stage()),
        }
    }

    fn adopt(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        let mut slot = self.staged();
        let staged = slot.take().filter(|staged| staged.stage == stage);
        let db = staged.ok_or_else(unknown_stage)?.db;
        self.with(|live| {
            copy(live, &db, Column::Log)?;
            copy(live, &db, Column::Meta)
        })?;
        self.faults.hit("snapshot.adopt").map_err(io_error)?;
        write(&db, batch, true)?;
        superblock::sync_folder(&self.base).map_err(io_error)?;

        let before = self.anchor.folder();
        let switched = self.anchor.update(|block| block.folder = before + 1);
        switched.map_err(io_error)?;
        self.faults.hit("snapshot.switch").map_err(io_error)?;
        let old = self.db.write().unwrap_or_else(PoisonError::into_inner).replace(db);
        drop(old);
        if let Err(error) = fs::remove_dir_all(superblock::database(&self.base, before)) {
            tracing::warn!(%error, folder = before, "the old state stays until the next start");
        }
        Ok(())
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), EngineError> {
        self.with(|db| {
            let checkpoint = Checkpoint::new(db).map_err(write_error)?;
            checkpoint.create_checkpoint(folder).map_err(write_error)
        })?;
        superblock::sync_folder(folder).map_err(io_error)
    }

    fn compact(&self, column: Column) -> Result<(), EngineError> {
        self.with(|db| {
            // All of them: a write-ahead file goes when no column needs it any more.
            for column in Column::ALL {
                db.flush_cf(handle(db, column)).map_err(write_error)?;
            }
            // Forced down to the last level: the default leaves files that did not change.
            let mut options = CompactOptions::default();
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            db.compact_range_cf_opt(handle(db, column), None::<&[u8]>, None::<&[u8]>, &options);
            Ok(())
        })
    }

    fn close(&self) {
        // Whoever stages waits, and then finds it closed.
        let mut staged = self.staged();
        let db = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(db);
        drop(staged.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is damaged is to be replaced, and not to be started again as after a failed write.
    #[test]
    fn a_write_that_fails_for_damaged_files_says_so() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let block = Superblock::new(Identity { cluster_id: 1, member_id: 1 });
        let anchor = Arc::new(Anchor::new(None, block, Faults::default()));
        let database = superblock::database(folder.path(), anchor.folder());
        let rocks = Rocks::open(folder.path(), anchor, true, Faults::default());
        let rocks = rocks.expect("the folder can be written");
        let mut batch = Batch::default();
        batch.put(Column::State, Bytes::from_static(b"key"), b"value".repeat(100));
        rocks.write(&batch, true).expect("the folder can be written");
        rocks.compact(Column::State).expect("the folder can be written");
        let files = fs::read_dir(database).expect("it is there");
        let files = files.map(|file| file.expect("it is listed").path());
        for table in files.filter(|path| path.extension().is_some_and(|end| end == "sst")) {
            let mut content = fs::read(&table).expect("it can be read");
            content[20] ^= 4;
            fs::write(&table, content).expect("it can be written");
        }
        rocks.write(&batch, true).expect("nobody knows yet");
        // RocksDB says what it found to who writes next.
        let _ = rocks.compact(Column::State);
        let refused = rocks.write(&batch, true);
        assert!(matches!(refused, Err(EngineError::Damaged(..))), "{refused:?}");
    }
}
