//! The state machine, for openraft: it applies committed entries to the state in memory, hands the
//! same changes to the writer, publishes them, and answers whoever proposed them, in this order.
//!
//! ```text
//!  committed entries ─▶ state::apply ─┬─▶ writer: changes + applied mark, one batch, put off
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
//!   sent to another member. One that comes in lies in a staged database already when it is
//!   installed, and takes the place of the old state at once.
//! - A member whose state differs from the majority's notes that beside the state: it is
//!   quarantined until a whole snapshot replaces the state.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::entry::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{Notify, watch};

use crate::codec::{self, Decoder, Encoder};
use crate::engine::{Batch, Column, Engine, EngineError, Stage, Walk};
use crate::faults::{Bug, Faults};
use crate::log::read_meta;
use crate::members::MemberId;
use crate::network::{Peer, Places};
use crate::raft::{LogEntry, LogId, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::state::{self, Action, Command, Entry, Mark, Outcome, ROOT_EVERY, Record, Root, State};
use crate::watch::{Change, Event, Feed};
use crate::writer::{Alarm, Stop, Writer};

/// Key of `Column::Meta`: how far the state has been applied.
pub(crate) const APPLIED: &[u8] = b"applied";

/// Key of `Column::Meta`: why this member is quarantined, if it is.
pub(crate) const QUARANTINE: &[u8] = b"quarantine";

/// Changes written and published at once; more would make the first of them wait for the last.
const APPLY_BYTES_MAX: usize = 4 << 20;

/// Log bytes after which the log is worth compacting, whatever number of entries it is: it bounds
/// the disk a log takes and the time a restart applies it again.
const COMPACT_BYTES: u64 = 64 << 20;

/// Log bytes that stay behind a snapshot, for followers that are a little late: a whole snapshot
/// costs them more.
const KEPT_BYTES: u64 = 16 << 20;

/// The log is measured in parts of about this size.
const PART_BYTES: u64 = 1 << 20;

/// Objects written at once when a whole state is staged.
const STAGE_BYTES: usize = 4 << 20;

/// What a snapshot holds: the state itself. Whoever sends it encodes it piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) root: Root,
    /// What the state hashed to when it was the newest: whoever receives it must find the same.
    pub(crate) hash: u128,
    pub(crate) time_ms: u64,
    pub(crate) mark: Option<Mark>,
    /// Where the same state lies on this member's disk already, if it came from another one.
    pub(crate) stage: Option<Stage>,
}

/// How far the state has been applied, as it lies beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
    time_ms: u64,
    hash: u128,
    mark: Option<Mark>,
}

/// Measures the log since the last snapshot and wakes whoever compacts.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    bytes: AtomicU64,
    parts: Mutex<VecDeque<Part>>,
    /// Notified when the log is worth compacting.
    pub(crate) compact: Notify,
}

/// Consecutive log entries.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: u64,
    bytes: u64,
}

impl Growth {
    fn add(&self, index: u64, bytes: u64) {
        let mut parts = self.parts.lock().expect("no section of this lock panics");
        match parts.back_mut() {
            Some(part) if part.bytes < PART_BYTES => part.bytes += bytes,
            _ => parts.push_back(Part { first: index, bytes }),
        }
        drop(parts);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= COMPACT_BYTES {
            self.bytes.store(0, Ordering::Relaxed);
            self.compact.notify_one();
        }
    }

    /// Whether anything was applied since the last snapshot.
    pub(crate) fn any(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }

    /// The last entry that may be purged, so that enough bytes stay; forgets what is before it. On
    /// a full disk nothing need stay: `u64::MAX`.
    pub(crate) fn purge_to(&self, full: bool) -> Option<u64> {
        let mut parts = self.parts.lock().expect("no section of this lock panics");
        if full {
            parts.clear();
            return Some(u64::MAX);
        }
        let mut kept = 0;
        let newest = parts.iter().rev().position(|part| {
            kept += part.bytes;
            kept >= KEPT_BYTES
        })?;
        let oldest = parts.len() - 1 - newest;
        parts.drain(..oldest);
        parts.front()?.first.checked_sub(1)
    }
}

/// What the state machine works with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) writer: Writer,
    pub(crate) feed: Arc<Feed>,
    pub(crate) growth: Arc<Growth>,
    /// Why this member is quarantined, if it is.
    pub(crate) quarantine: watch::Sender<Option<String>>,
    /// Where the members are, for the connections to them.
    pub(crate) places: Places,
    pub(crate) stop: Stop,
    pub(crate) faults: Faults,
}

/// The state machine.
pub(crate) struct Machine {
    tools: Tools,
    state: State,
    applied: Applied,
    /// What peers ask about this member's state.
    shown: watch::Sender<Shown>,
    /// The last snapshot taken or installed.
    kept: Arc<Mutex<Option<Snapshot>>>,
}

/// The state machine as others may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) now: Mark,
    pub(crate) mark: Option<Mark>,
    /// The last entry applied.
    pub(crate) last: Option<LogId>,
}

impl Shown {
    /// The term of the last entry applied.
    pub(crate) fn term(&self) -> u64 {
        self.last.map_or(0, |log_id| log_id.leader_id.term)
    }
}

impl Machine {
    /// Reads the state from disk, and checks that it is what was written.
    pub(crate) fn read(engine: &dyn Engine, faults: &Faults) -> Result<Restored, EngineError> {
        let applied = read_meta(engine, APPLIED, read_applied)?.unwrap_or_default();
        let quarantine = read_meta(engine, QUARANTINE, |decoder| decoder.text("a reason"))?;
        let mut root = Root::new();
        engine.scan(Column::State, &[], &mut |key, record| {
            root.insert(Bytes::copy_from_slice(key), decode_object(key, record)?);
            Ok(Walk::On)
        })?;
        let revision = applied.log_id.map_or(0, |log_id| log_id.index);
        let (time_ms, mark) = (applied.time_ms, applied.mark);
        let state = State::restored(root, revision, time_ms, mark, faults.clone());
        if state.hash != applied.hash {
            let why = format!(
                "its objects at revision {revision} hash to {:032x}, {:032x} was written",
                state.hash, applied.hash
            );
            return Err(EngineError::Damaged("the state".to_owned(), why));
        }
        Ok(Restored { state, applied, quarantine })
    }

    /// A state machine that goes on from a state read before.
    pub(crate) fn new(restored: Restored, tools: Tools) -> Machine {
        let Restored { state, applied, quarantine } = restored;
        tools.quarantine.send_replace(quarantine);
        let shown = watch::Sender::new(shown(&state, &applied));
        Machine { tools, state, applied, shown, kept: Arc::default() }
    }

    /// Follows what peers may ask about.
    pub(crate) fn shown(&self) -> watch::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// Applies one entry to the memory and notes what must follow.
    fn step(&mut self, entry: LogEntry, round: &mut Round) -> Outcome {
        let index = entry.log_id.index;
        self.applied.log_id = Some(entry.log_id);
        self.tools.growth.add(index, codec::log_entry_bytes(&entry) as u64);
        match entry.payload {
            EntryPayload::Blank => {
                self.state.revision = index;
                Outcome::Nothing
            }
            EntryPayload::Membership(membership) => {
                self.state.revision = index;
                membership.nodes().for_each(|(id, place)| self.tools.places.learn(*id, place));
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Nothing
            }
            EntryPayload::Normal(command) => {
                if let Some(verdict) = state::differs(&self.state, &command) {
                    self.quarantine(verdict, round);
                }
                let command = self.corrupt(command);
                let outcome = state::apply(&mut self.state, index, &command);
                round.note(&self.state, &command, &outcome);
                outcome
            }
        }
    }

    /// A member that goes its own way, for tests.
    fn corrupt(&self, mut command: Command) -> Command {
        let asked = self.tools.faults.hits_key("machine.corrupt", &command.key);
        if asked && let Action::Put(value) = &mut command.action {
            let mut changed = value.to_vec();
            // A blank, which changes no meaning: whoever reads the value goes on.
            changed.push(b' ');
            *value = changed.into();
        }
        command
    }

    fn quarantine(&self, verdict: Mark, round: &mut Round) {
        let own = self.state.mark.map_or(0, |mark| mark.hash);
        let reason = format!(
            "its data at revision {} hashes to {own:032x}, the majority's to {:032x}",
            verdict.revision, verdict.hash
        );
        tracing::error!(reason, "this member is quarantined");
        let record = codec::encode(reason.len() + 4, &reason, |encoder, text| encoder.text(text));
        round.batch.put(Column::Meta, Bytes::from_static(QUARANTINE), record);
        round.quarantine = Some(reason);
    }

    /// Hands the changes of a round to the writer, publishes them and answers.
    async fn finish(&mut self, mut round: Round) -> io::Result<()> {
        if let Some(last) = round.records.last_mut() {
            last.root = Some(self.state.root.clone());
        }
        self.tools.faults.pass("machine.hand").await?;
        if self.tools.faults.hit("machine.flip").is_err() {
            self.state.flip_bit();
        }
        self.applied.time_ms = self.state.time_ms;
        self.applied.hash = self.state.hash;
        self.applied.mark = self.state.mark;
        let writer = &self.tools.writer;
        if self.tools.faults.has(Bug::AppliedOutsideBatch) {
            let mut alone = Batch::default();
            put_applied(&mut alone, &self.applied);
            writer.write(alone).await.map_err(io::Error::other)?;
        } else {
            put_applied(&mut round.batch, &self.applied);
        }
        writer.put_off(round.batch).await.map_err(io::Error::other)?;
        self.tools.faults.pass("machine.publish").await?;
        self.shown.send_replace(shown(&self.state, &self.applied));
        self.tools.feed.publish(round.records, self.state.snapshot());
        if let Some(reason) = round.quarantine {
            self.tools.quarantine.send_replace(Some(reason));
            self.tools.feed.stop();
        }
        for (responder, outcome) in round.answers {
            responder.send(outcome);
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Snapshot>> {
        self.kept.lock().expect("no section of this lock panics")
    }
}

fn shown(state: &State, applied: &Applied) -> Shown {
    let now = Mark { revision: state.revision, hash: state.hash };
    Shown { now, mark: state.mark, last: applied.log_id }
}

/// The state as it was found on disk.
pub(crate) struct Restored {
    pub(crate) state: State,
    pub(crate) applied: Applied,
    quarantine: Option<String>,
}

impl Restored {
    /// The other members, as the membership that was applied last has them.
    pub(crate) fn others(&self, me: MemberId) -> Vec<Peer> {
        let nodes = self.applied.membership.nodes().filter(|(id, _)| **id != me);
        nodes.map(|(&id, place)| Peer { id, address: place.address.clone() }).collect()
    }
}

/// What some entries together lead to.
#[derive(Default)]
struct Round {
    batch: Batch,
    records: Vec<Record>,
    answers: Vec<(ApplyResponder<Types>, Outcome)>,
    quarantine: Option<String>,
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
        let event = Event::new(state.revision, key, change, previous).made_by(command.id);
        let event = Arc::new(event);
        let keeps = self.records.len() % ROOT_EVERY == ROOT_EVERY - 1;
        let root = keeps.then(|| state.root.clone());
        self.records.push(Record { event, root, time_ms: state.time_ms });
    }
}

/// Writes the mark of a state that was not applied from a log but is where one begins.
pub(crate) fn put_beginning(
    batch: &mut Batch,
    membership: StoredMembership,
    time_ms: u64,
    hash: u128,
) {
    let log_id = *membership.log_id();
    put_applied(batch, &Applied { log_id, membership, time_ms, hash, mark: None });
}

/// Reads an object as it lies on disk.
pub(crate) fn decode_object(key: &[u8], record: &[u8]) -> Result<Entry, EngineError> {
    codec::decode(record, Decoder::entry).map_err(|error| {
        let what = format!("the object under {}", key.escape_ascii());
        EngineError::Damaged(what, error.to_string())
    })
}

/// Adds an object to a batch.
pub(crate) fn put_entry(batch: &mut Batch, key: Bytes, entry: &Entry) {
    let record = codec::encode(32 + entry.value.len(), entry, Encoder::entry);
    batch.put(Column::State, key, record);
}

fn put_applied(batch: &mut Batch, applied: &Applied) {
    let record = codec::encode(128, applied, |encoder, applied| {
        encoder.option(applied.log_id.as_ref(), Encoder::log_id);
        encoder.stored_membership(&applied.membership);
        encoder.u64(applied.time_ms);
        encoder.u128(applied.hash);
        encoder.option(applied.mark.as_ref(), Encoder::mark);
    });
    batch.put(Column::Meta, Bytes::from_static(APPLIED), record);
}

pub(crate) fn read_applied(decoder: &mut Decoder<'_>) -> Result<Applied, codec::CodecError> {
    let log_id = decoder.option(Decoder::log_id)?;
    let membership = decoder.stored_membership()?;
    let (time_ms, hash) = (decoder.u64()?, decoder.u128()?);
    Ok(Applied { log_id, membership, time_ms, hash, mark: decoder.option(Decoder::mark)? })
}

/// Writes a whole key space into a staged state. Blocks.
fn stage(engine: &dyn Engine, root: &Root) -> Result<Stage, EngineError> {
    let stage = engine.stage()?;
    let mut batch = Batch::default();
    for (key, entry) in root {
        put_entry(&mut batch, key.clone(), entry);
        if batch.bytes >= STAGE_BYTES {
            engine.fill(stage, &std::mem::take(&mut batch))?;
        }
    }
    engine.fill(stage, &batch)?;
    Ok(stage)
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
        let _alarm = Alarm { stop: self.tools.stop.clone(), what: "applying a log entry" };
        self.tools.faults.pass("machine.apply").await?;
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
        self.tools.growth.bytes.store(0, Ordering::Relaxed);
        let (root, time_ms) = (self.state.root.clone(), self.state.time_ms);
        let (hash, mark) = (self.state.hash, self.state.mark);
        let image = Image { root, hash, time_ms, mark, stage: None };
        let meta = SnapshotMeta {
            last_log_id: self.applied.log_id,
            last_membership: self.applied.membership.clone(),
        };
        Builder { snapshot: Snapshot { meta, snapshot: image }, kept: self.kept.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> io::Result<()> {
        let (time_ms, mark) = (image.time_ms, image.mark);
        let revision = meta.last_log_id.map_or(0, |log_id| log_id.index);
        let faults = self.tools.faults.clone();
        let root = image.root.clone();
        // It hashes everything, while heartbeats are to be answered.
        let restoring = move || State::restored(root, revision, time_ms, mark, faults);
        let state = tokio::task::spawn_blocking(restoring).await.map_err(io::Error::other)?;
        let (log_id, membership) = (meta.last_log_id, meta.last_membership.clone());
        let applied = Applied { log_id, membership, time_ms, hash: state.hash, mark };

        let staged = match image.stage {
            Some(stage) => stage,
            None => {
                let (engine, root) = (self.tools.engine.clone(), image.root.clone());
                let staging = tokio::task::spawn_blocking(move || stage(&*engine, &root));
                staging.await.map_err(io::Error::other)?.map_err(io::Error::other)?
            }
        };
        let mut batch = Batch::default();
        put_applied(&mut batch, &applied);
        batch.delete(Column::Meta, Bytes::from_static(QUARANTINE));
        self.tools.writer.adopt(staged, batch).await.map_err(io::Error::other)?;

        self.state = state;
        self.applied = applied;
        self.shown.send_replace(shown(&self.state, &self.applied));
        self.tools.feed.replace(self.state.snapshot());
        self.tools.quarantine.send_replace(None);
        let image = Image { stage: None, ..image };
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
