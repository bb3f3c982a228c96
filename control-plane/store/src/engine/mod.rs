//! What the store asks of a disk: four things, so that the log and the state machine are the same
//! code over RocksDB (`rocks`) and over memory (`memory`, for tests), with encryption at rest
//! (`sealed`) or without.
//!
//! Words: a *column* is a named key space of its own (a RocksDB column family); a *batch* is a list
//! of changes over all columns that becomes visible, and survives a crash, as a whole or not at
//! all.
//!
//! Invariants every engine keeps:
//! - batches survive in the order in which they were written: if one is found after a crash, so are
//!   all before it. The log relies on it (a purge is never found without the state that allowed
//!   it).
//! - a batch written with `durable` has reached the disk when `write` returns, and so have all
//!   batches before it.
//! - nothing that cannot be verified is ever returned; damage is an error.
//!
//! A *stage* is a second state beside the live one, filled while the live one is used, which then
//! takes its place at once: how a snapshot comes in.

pub(crate) mod memory;
pub(crate) mod rocks;
pub(crate) mod sealed;

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::keyring::Fingerprint;

/// The column families of the one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// Log entries by index, big-endian.
    Log,
    /// Vote, purge mark, quarantine, and how far `State` has been applied.
    Meta,
    /// The key space: key to sealed entry.
    State,
}

impl Column {
    /// All columns, in the order in which they are opened.
    pub(crate) const ALL: [Column; 3] = [Column::Log, Column::Meta, Column::State];

    /// The name on disk.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Column::Log => "raft_log",
            Column::Meta => "raft_meta",
            Column::State => "state",
        }
    }
}

/// Longer than any key of any column.
pub(crate) const KEY_BYTES_MAX: usize = 1024;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Set a key.
    Put(Column, Bytes, Vec<u8>),
    /// Remove a key; fine if it is not there.
    Delete(Column, Bytes),
    /// Remove all keys from the first (inclusive) to the second (exclusive).
    DeleteRange(Column, Vec<u8>, Vec<u8>),
}

/// Changes that happen together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) ops: Vec<Op>,
    /// Bytes of keys and values, to bound how much is gathered into one write.
    pub(crate) bytes: usize,
}

impl Batch {
    pub(crate) fn put(&mut self, column: Column, key: Bytes, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.ops.push(Op::Put(column, key, value));
    }

    pub(crate) fn delete(&mut self, column: Column, key: Bytes) {
        self.bytes += key.len();
        self.ops.push(Op::Delete(column, key));
    }

    pub(crate) fn delete_range(&mut self, column: Column, from: Vec<u8>, end: Vec<u8>) {
        self.bytes += from.len() + end.len();
        self.ops.push(Op::DeleteRange(column, from, end));
    }

    /// Adds a change of another batch.
    pub(crate) fn push(&mut self, op: Op) {
        self.bytes += match &op {
            Op::Put(_, key, value) => key.len() + value.len(),
            Op::Delete(_, key) => key.len(),
            Op::DeleteRange(_, from, end) => from.len() + end.len(),
        };
        self.ops.push(op);
    }

    /// Appends the changes of another batch, to happen together with and after those here.
    pub(crate) fn absorb(&mut self, other: Batch) {
        self.bytes += other.bytes;
        self.ops.extend(other.ops);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Whether a scan goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    On,
    Enough,
}

/// What a scan calls for each key and value, in key order.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Walk, EngineError> + 'a;

/// A key with its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// A failure of the disk or of what lies on it. All of them end the store.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("writing to the store failed: {0}")]
    Write(String),
    #[error("reading from the store failed: {0}")]
    Read(String),
    #[error("{0} is damaged on disk: {1}")]
    Damaged(String, String),
    #[error("the state is damaged in memory: {0}")]
    DamagedMemory(String),
    #[error("{what} is encrypted with key {key}, which the keyring {keyring:?} does not have")]
    UnknownKey { what: String, key: Fingerprint, keyring: PathBuf },
    #[error("encrypting a value failed: {0}")]
    Seal(String),
    #[error("the store is closed")]
    Closed,
    #[error("a store in memory has no files")]
    NoFiles,
}

/// Names what `Engine::stage` began. A later one replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage(pub(crate) u64);

pub(crate) fn unknown_stage() -> EngineError {
    EngineError::Write("the state on its way in was replaced by a later one".to_owned())
}

/// What became of one round of resealing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resealed {
    /// Records written again.
    pub(crate) records: u64,
    /// Where the next round begins; `None` after the last one.
    pub(crate) next: Option<Vec<u8>>,
}

/// An ordered, durable key-value store with columns and atomic batches.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Makes the changes of a batch, as a whole; returns after fsync when `durable`.
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError>;

    /// The value of one key.
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// Calls `visit` for the keys from `from` (inclusive) on, in order, as of the call.
    fn scan(&self, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError>;

    /// The greatest key of a column, with its value.
    fn last(&self, column: Column) -> Result<Option<Pair>, EngineError>;

    /// Begins an empty state beside the live one; an earlier one that was not adopted is gone.
    fn stage(&self) -> Result<Stage, EngineError>;

    /// Makes changes in a staged state; they need not be durable yet.
    fn fill(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError>;

    /// Puts a staged state in the place of the live one, durable when this returns: its `State` and
    /// the changes of `batch`, and the live one's `Log` and `Meta`. A crash leaves the one or the
    /// other. Nothing else may write meanwhile: only the writer's thread calls it.
    fn adopt(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError>;

    /// Copies the files, as of some moment during the call, into a folder that must not exist yet.
    fn checkpoint(&self, folder: &Path) -> Result<(), EngineError>;

    /// Writes again what is not sealed as it would be now, among the next records from `from` on;
    /// says where to go on. Nothing else may write meanwhile: only the writer's thread calls it.
    /// Nothing to do for engines that do not seal.
    fn reseal(&self, _column: Column, _from: &[u8]) -> Result<Resealed, EngineError> {
        Ok(Resealed::default())
    }

    /// Rids the files of values that were written over or deleted.
    fn compact(&self, _column: Column) -> Result<(), EngineError> {
        Ok(())
    }

    /// Lets go of the files at once, whoever still holds the engine: later calls fail.
    fn close(&self);
}
