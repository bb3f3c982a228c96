//! The Raft log and the vote, for openraft.
//!
//! ```text
//!  append ─▶ recent entries (memory, readable at once)
//!         └▶ writer thread ─▶ disk ─▶ openraft hears that they are flushed
//! ```
//!
//! Invariants:
//! - Entries are readable when `append` returns and reported as flushed only after an fsync.
//! - Votes and entries reach the disk in the order in which openraft gave them: one queue for both.
//! - A vote is on disk when `save_vote` returns, but for one that only adds that its candidate has
//!   won: it is with the next entry. Who forgets that holds the same vote (DECISIONS.md, D121).
//! - The log has no holes: all from the first entry to the last is there. A read that finds one is
//!   an error.
//! - An entry leaves memory only after it was written, so a read from disk never misses it.
//!
//! Truncating and purging do not wait for the disk: what memory says about the ends of the log is
//! what counts while the process lives, and the writer's order makes sure that after a crash a
//! change is found only together with those before it.
//!
//! The superblock (see there) promises the vote and the end of the log, both within a second after
//! they are on disk; nobody waits for it. A log is cut only after it promises no more than what
//! stays.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use crate::codec::{self, CodecError, Decoder, Encoder};
use crate::engine::{Batch, Column, Engine, EngineError, Walk};
use crate::faults::{Bug, Faults};
use crate::promise::Promise;
use crate::raft::{LogEntry, LogId, Types, Vote};
use crate::runtime::Patience;
use crate::superblock::Anchor;
use crate::writer::{Done, Writer};

/// Entries kept in memory after they were written, for applying and for followers that keep up.
const RECENT_BYTES_MAX: usize = 16 << 20;

/// What is sent to a follower at once, beyond the first entry. Larger messages would hold up
/// heartbeats on the same connection.
const READ_BYTES_MAX: usize = 4 << 20;

/// Keys of `Column::Meta` that belong to the log.
pub(crate) const VOTE: &[u8] = b"vote";
pub(crate) const PURGED: &[u8] = b"purged";

/// The log; clones are readers of the same one.
#[derive(Clone)]
pub(crate) struct Log {
    engine: Arc<dyn Engine>,
    writer: Writer,
    anchor: Arc<Anchor>,
    faults: Faults,
    ends: Arc<Mutex<Ends>>,
    /// The last append that was written; only grows.
    written: Arc<AtomicU64>,
    flushed: Flushed,
    patience: Patience,
}

/// The vote and the last entry that are on disk, for the superblock.
#[derive(Clone, Debug)]
pub(crate) struct Flushed {
    end: Arc<Mutex<FlushedEnd>>,
    /// Held while the superblock is written, so that a promise made before a cut is not written
    /// after it. Only blocking threads take it.
    order: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct FlushedEnd {
    vote: Option<Vote>,
    last: Option<LogId>,
    /// How often the log was cut: an append from before a cut says nothing about the log after it.
    cuts: u64,
}

impl Flushed {
    fn new(vote: Option<Vote>, last: Option<LogId>) -> Flushed {
        let end = Arc::new(Mutex::new(FlushedEnd { vote, last, cuts: 0 }));
        Flushed { end, order: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, FlushedEnd> {
        self.end.lock().expect("no section of this lock panics")
    }

    /// Writes the vote and the end of the log into the superblock, if they moved. Blocks.
    pub(crate) fn promise(&self, anchor: &Anchor) -> io::Result<()> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let promise = self.promised();
        anchor.update(|block| block.promise = promise)
    }

    /// What is on disk.
    pub(crate) fn promised(&self) -> Promise {
        let end = self.lock();
        Promise { vote: end.vote, last: end.last }
    }

    /// Lowers the promise to what a cut leaves. Blocks.
    fn cut(&self, anchor: &Anchor, last: Option<LogId>) -> io::Result<()> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let last = {
            let mut end = self.lock();
            end.cuts += 1;
            end.last = end.last.min(last);
            end.last
        };
        anchor.update(|block| block.promise.last = last)
    }

    /// Whether the vote that is on disk differs only in not knowing that its candidate has won.
    fn has_all_but_the_win(&self, vote: &Vote) -> bool {
        let asked = Vote { committed: false, ..*vote };
        vote.committed && self.lock().vote == Some(asked)
    }

    fn vote(&self, vote: Vote) {
        self.lock().vote = Some(vote);
    }

    fn raise(&self, last: Option<LogId>, cuts: u64) {
        let mut end = self.lock();
        if end.cuts == cuts {
            end.last = end.last.max(last);
        }
    }
}

/// Where the log begins and ends, and its newest part. A std mutex: sections are short and never
/// await.
struct Ends {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The index of the first entry there is, or would be next.
    first: u64,
    last: Option<LogId>,
    /// The entry before the first one of the leader who wrote `last`, where that one came in since
    /// the start.
    inherited: Option<LogId>,
    /// The newest entries without a gap, up to `last`.
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    /// Number of the last append.
    appends: u64,
}

struct Recent {
    entry: LogEntry,
    bytes: usize,
    /// The append that brought it.
    append: u64,
}

impl Log {
    /// Finds the ends of the log on disk.
    pub(crate) fn open(
        engine: Arc<dyn Engine>,
        writer: Writer,
        anchor: Arc<Anchor>,
        faults: Faults,
    ) -> Result<Log, EngineError> {
        let Found { vote, purged, last } = find(&*engine)?;
        let first = match purged {
            Some(purged) => purged.index + 1,
            None => first_on_disk(&*engine)?.unwrap_or(0),
        };
        let ends = Ends {
            vote,
            purged,
            first,
            last,
            inherited: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            appends: 0,
        };
        let ends = Arc::new(Mutex::new(ends));
        let flushed = Flushed::new(vote, last);
        let written = Arc::new(AtomicU64::new(0));
        let patience = Patience::new();
        Ok(Log { engine, writer, anchor, faults, ends, written, flushed, patience })
    }

    /// Until when not to campaign.
    pub(crate) fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// What the superblock may promise.
    pub(crate) fn flushed(&self) -> Flushed {
        self.flushed.clone()
    }

    /// The last entry that this member had when it came to lead with this vote; `None` if it did
    /// not, or had none.
    pub(crate) fn inherited(&self, vote: &Vote) -> Option<LogId> {
        let ends = self.lock();
        let leads = ends.last.is_some_and(|last| last.leader_id == vote.leader_id);
        ends.inherited.filter(|_| leads)
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().expect("no section of this lock panics")
    }

    /// Has the superblock promise no more than this entry.
    async fn lower_promise(&self, last: Option<LogId>) -> io::Result<()> {
        let (anchor, flushed) = (self.anchor.clone(), self.flushed.clone());
        let cut = move || flushed.cut(&anchor, last);
        tokio::task::spawn_blocking(cut).await.map_err(io::Error::other)?
    }

    /// The entries from `start` (inclusive) to `end` (exclusive) that the log has; fewer than all
    /// only if they are more than `bytes_max`.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let (start, from_disk, recent) = {
            let ends = self.lock();
            let start = start.max(ends.first);
            let end = end.min(next_index(ends.last));
            let first_recent = ends.recent.front().map_or(end, |recent| recent.entry.log_id.index);
            let from_disk = start..end.min(first_recent);
            (start, from_disk, ends.recent_between(start.max(first_recent), end))
        };
        let mut entries = Vec::new();
        if !from_disk.is_empty() {
            self.faults.pass("log.read").await?;
            let wanted = from_disk.end - from_disk.start;
            let engine = self.engine.clone();
            let read = move || read_disk(&*engine, from_disk.start, from_disk.end, bytes_max);
            let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?;
            entries = read.map_err(io::Error::other)?;
            let cut_short = entries.len() as u64 != wanted;
            if cut_short && bytes_max != usize::MAX {
                self.check_whole(start, &entries)?;
                return Ok(entries);
            }
        }
        let mut bytes: usize = entries.iter().map(codec::log_entry_bytes).sum();
        for entry in recent {
            bytes = bytes.saturating_add(codec::log_entry_bytes(&entry));
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        self.check_whole(start, &entries)?;
        Ok(entries)
    }

    /// Entries must follow each other, and begin where they were asked for, or behind what was
    /// purged in the meantime.
    fn check_whole(&self, start: u64, entries: &[LogEntry]) -> io::Result<()> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let first = first.log_id.index;
        let consecutive = entries.iter().zip(first..).all(|(entry, at)| entry.log_id.index == at);
        let begins = first == start || first == self.lock().first;
        if consecutive && begins {
            return Ok(());
        }
        let hole = CodecError::Invalid("the sequence of its entries");
        Err(io::Error::other(damaged(format!("the log from {start}"), hole)))
    }
}

impl Ends {
    /// Copies of recent entries.
    fn recent_between(&self, start: u64, end: u64) -> Vec<LogEntry> {
        let skip = self.recent.partition_point(|recent| recent.entry.log_id.index < start);
        let take = self.recent.partition_point(|recent| recent.entry.log_id.index < end);
        self.recent.range(skip..take.max(skip)).map(|recent| recent.entry.clone()).collect()
    }

    fn push(&mut self, entry: LogEntry, bytes: usize) {
        let log_id = entry.log_id;
        let follows = log_id.index == next_index(self.last) || self.last.is_none();
        assert!(follows, "the log has no holes: {log_id} after {:?}", self.last);
        match self.last {
            None => self.first = log_id.index,
            Some(last) if last.leader_id != log_id.leader_id => self.inherited = Some(last),
            Some(_) => {}
        }
        self.last = Some(log_id);
        self.recent_bytes += bytes;
        self.recent.push_back(Recent { entry, bytes, append: self.appends });
    }

    /// Lets go of the oldest entries beyond the bound, if they are written.
    fn trim(&mut self, written: u64) {
        while self.recent_bytes > RECENT_BYTES_MAX {
            match self.recent.front() {
                Some(oldest) if oldest.append <= written => {
                    self.recent_bytes -= oldest.bytes;
                    self.recent.pop_front();
                }
                _ => break,
            }
        }
    }
}

fn next_index(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index + 1)
}

fn entry_key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

fn damaged(what: impl Into<String>, error: CodecError) -> EngineError {
    EngineError::Damaged(what.into(), error.to_string())
}

/// Reads a value of `Column::Meta`.
pub(crate) fn read_meta<T>(
    engine: &dyn Engine,
    key: &[u8],
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, CodecError>,
) -> Result<Option<T>, EngineError> {
    let Some(record) = engine.get(Column::Meta, key)? else {
        return Ok(None);
    };
    let value = codec::decode(&record, read);
    let value = value.map_err(|error| damaged(String::from_utf8_lossy(key), error))?;
    Ok(Some(value))
}

/// Reads a log entry, which must be the one its key says.
pub(crate) fn decode_entry(key: &[u8], record: &[u8]) -> Result<LogEntry, EngineError> {
    let what = || format!("log entry {}", key.escape_ascii());
    let entry = codec::decode(record, Decoder::log_entry).map_err(|e| damaged(what(), e))?;
    if entry_key(entry.log_id.index) != key {
        return Err(damaged(what(), CodecError::Invalid("its index")));
    }
    Ok(entry)
}

/// Writes what a log finds that begins behind this entry, as if it had been purged up to it by a
/// member that voted for the leader who wrote it. Returns that vote.
pub(crate) fn put_beginning(batch: &mut Batch, log_id: LogId) -> Vote {
    let record = codec::encode(24, &log_id, Encoder::log_id);
    batch.put(Column::Meta, Bytes::from_static(PURGED), record);
    let vote = Vote { leader_id: log_id.leader_id, committed: false };
    batch.put(Column::Meta, Bytes::from_static(VOTE), codec::encode(24, &vote, Encoder::vote));
    vote
}

/// What lies on disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) vote: Option<Vote>,
    purged: Option<LogId>,
    /// The last entry there is or was.
    pub(crate) last: Option<LogId>,
}

impl Found {
    /// What a member with this log must have promised at least.
    pub(crate) fn promise(&self) -> Promise {
        Promise { vote: self.vote, last: self.last }
    }
}

/// Reads the vote and the end of the log.
pub(crate) fn find(engine: &dyn Engine) -> Result<Found, EngineError> {
    let vote = read_meta(engine, VOTE, |decoder| decoder.vote())?;
    let purged = read_meta(engine, PURGED, |decoder| decoder.log_id())?;
    let last = match engine.last(Column::Log)? {
        Some((key, record)) => Some(decode_entry(&key, &record)?.log_id),
        None => None,
    };
    Ok(Found { vote, purged, last: last.max(purged) })
}

/// Reads every entry, as it will be read when somebody needs it.
pub(crate) fn verify(engine: &dyn Engine) -> Result<(), EngineError> {
    engine.scan(Column::Log, &[], &mut |key, record| decode_entry(key, record).map(|_| Walk::On))
}

fn first_on_disk(engine: &dyn Engine) -> Result<Option<u64>, EngineError> {
    let mut first = None;
    engine.scan(Column::Log, &[], &mut |key, record| {
        first = Some(decode_entry(key, record)?.log_id.index);
        Ok(Walk::Enough)
    })?;
    Ok(first)
}

fn read_disk(
    engine: &dyn Engine,
    start: u64,
    end: u64,
    bytes_max: usize,
) -> Result<Vec<LogEntry>, EngineError> {
    let mut entries = Vec::new();
    let mut bytes = 0usize;
    engine.scan(Column::Log, &entry_key(start), &mut |key, record| {
        if key >= &entry_key(end)[..] {
            return Ok(Walk::Enough);
        }
        bytes += record.len();
        if bytes > bytes_max && !entries.is_empty() {
            return Ok(Walk::Enough);
        }
        entries.push(decode_entry(key, record)?);
        Ok(Walk::On)
    })?;
    Ok(entries)
}

/// The bounds of a range, the end exclusive.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let ends = self.lock();
        Ok(LogState { last_purged_log_id: ends.purged, last_log_id: ends.last })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = Batch::default();
        let record = codec::encode(24, vote, Encoder::vote);
        batch.put(Column::Meta, Bytes::from_static(VOTE), record);
        self.faults.pass("log.vote").await?;
        if self.faults.has(Bug::VoteWithoutFsync) || self.flushed.has_all_but_the_win(vote) {
            self.writer.submit(batch, false, None).await.map_err(io::Error::other)?;
        } else {
            let begun = Instant::now();
            self.writer.write(batch).await.map_err(io::Error::other)?;
            self.patience.voted(begun.elapsed());
            self.flushed.vote(*vote);
        }
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.faults.pass("log.append").await?;
        let mut batch = Batch::default();
        let mut recent = Vec::new();
        for entry in entries {
            let bytes = codec::log_entry_bytes(&entry);
            let record = codec::encode(bytes, &entry, Encoder::log_entry);
            let key = Bytes::copy_from_slice(&entry_key(entry.log_id.index));
            batch.put(Column::Log, key, record);
            recent.push((entry, bytes));
        }
        let (append, last) = {
            let mut ends = self.lock();
            ends.appends += 1;
            recent.into_iter().for_each(|(entry, bytes)| ends.push(entry, bytes));
            ends.trim(self.written.load(Ordering::Acquire));
            (ends.appends, ends.last)
        };
        let cuts = self.flushed.lock().cuts;
        let (written, flushed) = (self.written.clone(), self.flushed.clone());
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                written.fetch_max(append, Ordering::Release);
                flushed.raise(last, cuts);
            }
            callback.io_completed(result.map_err(io::Error::other));
        });
        let submitted = self.writer.submit(batch, true, Some(done)).await;
        submitted.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let first_removed = next_index(last_log_id);
        {
            let mut ends = self.lock();
            if next_index(ends.last) <= first_removed {
                return Ok(());
            }
            let removed = |recent: &Recent| recent.entry.log_id.index >= first_removed;
            while ends.recent.back().is_some_and(removed) {
                let newest = ends.recent.pop_back().expect("there is a newest entry");
                ends.recent_bytes -= newest.bytes;
            }
            ends.last = last_log_id.max(ends.purged);
            ends.inherited = None;
        }
        self.faults.pass("log.truncate").await?;
        self.lower_promise(last_log_id).await?;
        let mut batch = Batch::default();
        let (from, end) = (entry_key(first_removed), entry_key(u64::MAX));
        batch.delete_range(Column::Log, from.to_vec(), end.to_vec());
        self.writer.submit(batch, false, None).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let lost = {
            let mut ends = self.lock();
            let purged = |recent: &Recent| recent.entry.log_id.index <= log_id.index;
            while ends.recent.front().is_some_and(purged) {
                let oldest = ends.recent.pop_front().expect("there is an oldest entry");
                ends.recent_bytes -= oldest.bytes;
            }
            ends.purged = ends.purged.max(Some(log_id));
            ends.first = ends.first.max(log_id.index + 1);
            // By index, too: what lies before a snapshot's end may be of a later leader, who lost it.
            let beyond = next_index(ends.last) <= log_id.index;
            let lost = beyond && ends.last > Some(log_id);
            if beyond || ends.last < Some(log_id) {
                ends.last = Some(log_id);
                ends.inherited = None;
            }
            lost
        };
        self.faults.pass("log.purge").await?;
        if lost {
            self.lower_promise(Some(log_id)).await?;
        }
        let mut batch = Batch::default();
        let record = codec::encode(24, &log_id, Encoder::log_id);
        batch.put(Column::Meta, Bytes::from_static(PURGED), record);
        let (from, end) = (entry_key(0), entry_key(log_id.index + 1));
        batch.delete_range(Column::Log, from.to_vec(), end.to_vec());
        self.writer.submit(batch, false, None).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests;
