//! The state machine, for openraft: it applies committed entries to the state in memory, hands the
//! same changes to the writer, publishes them, and answers whoever proposed them, in this order.
//!
//! ```text
//!  committed entries ─▶ state::apply ─┬─▶ writer: changes + applied mark, one batch, no fsync
//!                                     ├─▶ Feed: history, watchers, newest state
//!                                     └─▶ answers
//! ```
//!
//! Invariants:
//! - The state on disk, the index it was applied up to and the membership change in one batch.
//! - An apply is not synced: its entries are, before they are committed here, and they lie before
//!   it in the same write-ahead log. After a crash the state may be older than it was, never torn
//!   and never ahead of the log; the member then applies the rest of its log again before it
//!   serves.
//! - A purge of the log is handed to the writer after the state that covers it, so it is never
//!   found without that state.
//! - A snapshot is a root, taken in an instant and never changed; it is written out only when it is
//!   sent to another member.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::entry::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::Notify;

use crate::codec::{self, Decoder, Encoder};
use crate::engine::{Batch, Column, Engine, EngineError, Walk};
use crate::log::read_meta;
use crate::raft::{LogEntry, LogId, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::state::{self, Command, Entry, Outcome, Record, Root, State};
use crate::watch::{Change, Event, Feed};
use crate::writer::Writer;

/// Key of `Column::Meta`: how far the state has been applied.
const APPLIED: &[u8] = b"applied";

/// Changes written and published at once; more would make the first of them wait for the last.
const APPLY_BYTES_MAX: usize = 4 << 20;

/// Log bytes after which the log is worth compacting, whatever number of entries it is: it bounds
/// the disk a log takes and the time a restart applies it again.
const COMPACT_BYTES: u64 = 64 << 20;

/// What a snapshot holds: the state itself. Whoever sends it encodes it piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) root: Root,
    pub(crate) time_ms: u64,
}

/// How far the state has been applied, as it lies beside it.
#[derive(Clone, Debug, Default)]
struct Applied {
    log_id: Option<LogId>,
    membership: StoredMembership,
    time_ms: u64,
}

/// Counts the log bytes since the last snapshot and wakes whoever compacts.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    bytes: AtomicU64,
    /// Notified when the log is worth compacting.
    pub(crate) compact: Notify,
}

impl Growth {
    fn add(&self, bytes: u64) {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= COMPACT_BYTES {
            self.bytes.store(0, Ordering::Relaxed);
            self.compact.notify_one();
        }
    }
}

/// The state machine.
pub(crate) struct Machine {
    writer: Writer,
    feed: Arc<Feed>,
    growth: Arc<Growth>,
    state: State,
    applied: Applied,
    /// The last snapshot taken or installed.
    kept: Arc<Mutex<Option<Snapshot>>>,
}

impl Machine {
    /// Reads the state from disk.
    pub(crate) fn read(engine: &dyn Engine) -> Result<Restored, EngineError> {
        let applied = read_meta(engine, APPLIED, read_applied)?.unwrap_or_default();
        let mut root = Root::new();
        engine.scan(Column::State, &[], &mut |key, record| {
            let entry = codec::decode(record, Decoder::entry).map_err(|error| {
                let what = format!("the object under {}", key.escape_ascii());
                EngineError::Damaged(what, error.to_string())
            })?;
            root.insert(Bytes::copy_from_slice(key), entry);
            Ok(Walk::On)
        })?;
        let revision = applied.log_id.map_or(0, |log_id| log_id.index);
        Ok(Restored { state: State::restored(root, revision, applied.time_ms), applied })
    }

    /// A state machine that goes on from a state read before.
    pub(crate) fn new(
        restored: Restored,
        writer: Writer,
        feed: Arc<Feed>,
        growth: Arc<Growth>,
    ) -> Machine {
        let Restored { state, applied } = restored;
        Machine { writer, feed, growth, state, applied, kept: Arc::new(Mutex::new(None)) }
    }

    /// Applies one entry to the memory and notes what must follow.
    fn step(&mut self, entry: LogEntry, round: &mut Round) -> Outcome {
        let index = entry.log_id.index;
        self.applied.log_id = Some(entry.log_id);
        self.growth.add(codec::log_entry_bytes(&entry) as u64);
        match entry.payload {
            EntryPayload::Blank => {
                self.state.revision = index;
                Outcome::Nothing
            }
            EntryPayload::Membership(membership) => {
                self.state.revision = index;
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Nothing
            }
            EntryPayload::Normal(command) => {
                let outcome = state::apply(&mut self.state, index, &command);
                round.note(&self.state, &command, &outcome);
                outcome
            }
        }
    }

    /// Hands the changes of a round to the writer, publishes them and answers.
    async fn finish(&mut self, mut round: Round) -> io::Result<()> {
        self.applied.time_ms = self.state.time_ms;
        put_applied(&mut round.batch, &self.applied);
        let submitted = self.writer.submit(round.batch, false, None).await;
        submitted.map_err(io::Error::other)?;
        self.feed.publish(round.records, self.state.snapshot());
        for (responder, outcome) in round.answers {
            responder.send(outcome);
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Snapshot>> {
        self.kept.lock().expect("no section of this lock panics")
    }
}

/// The state as it was found on disk.
pub(crate) struct Restored {
    pub(crate) state: State,
    applied: Applied,
}

/// What some entries together lead to.
#[derive(Default)]
struct Round {
    batch: Batch,
    records: Vec<Record>,
    answers: Vec<(ApplyResponder<Types>, Outcome)>,
}

impl Round {
    fn note(&mut self, state: &State, command: &Command, outcome: &Outcome) {
        let key = command.key.clone();
        let (change, previous) = match outcome {
            Outcome::Put { entry, previous } => {
                put_entry(&mut self.batch, key.clone(), entry);
                (Change::Put(entry.clone()), previous.clone())
            }
            Outcome::Deleted { last } => {
                self.batch.delete(Column::State, key.clone());
                (Change::Delete(last.clone()), Some(last.clone()))
            }
            Outcome::Nothing | Outcome::Refused { .. } => return,
        };
        let event = Arc::new(Event::new(state.revision, key, change, previous));
        let record = Record { event, root: state.root.clone(), time_ms: state.time_ms };
        self.records.push(record);
    }
}

fn put_entry(batch: &mut Batch, key: Bytes, entry: &Entry) {
    let record = codec::encode(32 + entry.value.len(), entry, Encoder::entry);
    batch.put(Column::State, key, record);
}

fn put_applied(batch: &mut Batch, applied: &Applied) {
    let record = codec::encode(128, applied, |encoder, applied| {
        encoder.option(applied.log_id.as_ref(), Encoder::log_id);
        encoder.stored_membership(&applied.membership);
        encoder.u64(applied.time_ms);
    });
    batch.put(Column::Meta, Bytes::from_static(APPLIED), record);
}

fn read_applied(decoder: &mut Decoder<'_>) -> Result<Applied, codec::CodecError> {
    let log_id = decoder.option(Decoder::log_id)?;
    let membership = decoder.stored_membership()?;
    Ok(Applied { log_id, membership, time_ms: decoder.u64()? })
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut round = Round::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let outcome = self.step(entry, &mut round);
            round.answers.extend(responder.map(|responder| (responder, outcome)));
            if round.batch.bytes >= APPLY_BYTES_MAX {
                self.finish(std::mem::take(&mut round)).await?;
            }
        }
        self.finish(round).await
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.growth.bytes.store(0, Ordering::Relaxed);
        let image = Image { root: self.state.root.clone(), time_ms: self.state.time_ms };
        let meta = SnapshotMeta {
            last_log_id: self.applied.log_id,
            last_membership: self.applied.membership.clone(),
        };
        Builder { snapshot: Snapshot { meta, snapshot: image }, kept: self.kept.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> io::Result<()> {
        let applied = Applied {
            log_id: meta.last_log_id,
            membership: meta.last_membership.clone(),
            time_ms: image.time_ms,
        };
        let mut batch = Batch::default();
        batch.clear(Column::State);
        for (key, entry) in image.root.iter() {
            put_entry(&mut batch, key.clone(), entry);
        }
        put_applied(&mut batch, &applied);
        self.writer.write(batch).await.map_err(io::Error::other)?;

        let revision = applied.log_id.map_or(0, |log_id| log_id.index);
        self.state = State::restored(image.root.clone(), revision, image.time_ms);
        self.applied = applied;
        self.feed.replace(self.state.snapshot());
        *self.kept() = Some(Snapshot { meta: meta.clone(), snapshot: image });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.kept().clone())
    }
}

/// A snapshot that has been taken already; building only makes it the current one.
pub(crate) struct Builder {
    snapshot: Snapshot,
    kept: Arc<Mutex<Option<Snapshot>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut kept = self.kept.lock().expect("no section of this lock panics");
        *kept = Some(self.snapshot.clone());
        Ok(self.snapshot.clone())
    }
}

#[cfg(test)]
mod tests;
