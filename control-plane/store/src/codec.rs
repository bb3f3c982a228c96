//! The store's own encodings, on disk and between members. Nothing of openraft's own serialization
//! is ever written, so that its next version can change what it likes.
//!
//! A *record* is what is written as one value or sent as one message:
//!
//! ```text
//!  ┌─────────┬──────────────┬───────────────────────────────┐
//!  │ version │ CRC-32       │ payload                       │
//!  │ 1 byte  │ 4 bytes      │ the fields, one after another │
//!  └─────────┴──────────────┴───────────────────────────────┘
//! ```
//!
//! The checksum covers the payload and the version. Numbers are little-endian and of fixed width,
//! byte strings carry their length in four bytes, choices a tag in one. A payload is read to its
//! last byte. What cannot be read whole is an error, never "nothing there": a vote that reads as
//! absent would be given twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::entry::{EntryPayload, RaftEntry};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::{Membership, SnapshotMeta as OpenraftMeta};

use crate::promise::Promise;
use crate::raft::{LogEntry, LogId, Place, SnapshotMeta, StoredMembership, Vote};
use crate::state::{Action, Command, Entry, Mark, Precondition};

/// The version of all encodings below. A new field means a new version and a reader of both.
const VERSION: u8 = 2;

/// In the tag of a command's precondition: the command has a name.
const NAMED: u8 = 0x80;

/// Version and checksum.
const HEADER_BYTES: usize = 5;

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("its checksum does not match")]
    Checksum,
    #[error("it is encrypted, and there is no keyring")]
    Sealed,
    #[error("it has version {0}, which this program does not know")]
    Version(u8),
    #[error("it ends too early")]
    Short,
    #[error("it goes on for {0} bytes too many")]
    Long(usize),
    #[error("{0} cannot be {1}")]
    Choice(&'static str, u8),
    #[error("{0} is not valid")]
    Invalid(&'static str),
}

/// Puts fields together into a record.
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn new(payload_bytes: usize) -> Encoder {
        let mut record = Vec::with_capacity(HEADER_BYTES + payload_bytes);
        record.extend([0; HEADER_BYTES]);
        Encoder(record)
    }

    /// The record, with its header.
    pub(crate) fn seal(mut self) -> Vec<u8> {
        let checksum = checksum(VERSION, &self.0[HEADER_BYTES..]);
        self.0[0] = VERSION;
        self.0[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.0
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn count(&mut self, value: usize) {
        let value = u32::try_from(value).expect("lengths are bounded far below 4 GiB");
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.0.extend(value);
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(crate) fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Encoder, &T)) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(crate) fn vote(&mut self, vote: &Vote) {
        self.u64(vote.leader_id.term);
        self.u64(vote.leader_id.node_id);
        self.u8(vote.committed.into());
    }

    pub(crate) fn log_id(&mut self, log_id: &LogId) {
        self.u64(log_id.leader_id.term);
        self.u64(log_id.leader_id.node_id);
        self.u64(log_id.index);
    }

    pub(crate) fn promise(&mut self, promise: &Promise) {
        self.option(promise.vote.as_ref(), Encoder::vote);
        self.option(promise.last.as_ref(), Encoder::log_id);
    }

    pub(crate) fn mark(&mut self, mark: &Mark) {
        self.u64(mark.revision);
        self.u128(mark.hash);
    }

    pub(crate) fn command(&mut self, command: &Command) {
        self.u64(command.time_ms);
        self.bytes(&command.key);
        let named = if command.id == 0 { 0 } else { NAMED };
        match command.precondition {
            Precondition::Any => self.u8(named),
            Precondition::Absent => self.u8(1 | named),
            Precondition::Present => self.u8(2 | named),
            Precondition::At(revision) => {
                self.u8(3 | named);
                self.u64(revision);
            }
        }
        if command.id != 0 {
            self.u64(command.id);
        }
        match &command.action {
            Action::Put(value) => {
                self.u8(0);
                self.bytes(value);
            }
            Action::Delete => self.u8(1),
            Action::Check { verdict } => {
                self.u8(2);
                self.option(verdict.as_ref(), Encoder::mark);
            }
        }
    }

    fn membership(&mut self, membership: &Membership<u64, Place>) {
        let configs = membership.get_joint_config();
        self.count(configs.len());
        for voters in configs {
            self.count(voters.len());
            voters.iter().for_each(|voter| self.u64(*voter));
        }
        self.count(membership.nodes().count());
        for (id, node) in membership.nodes() {
            self.u64(*id);
            self.text(&node.name);
            self.text(&node.address);
        }
    }

    pub(crate) fn stored_membership(&mut self, stored: &StoredMembership) {
        self.option(stored.log_id().as_ref(), Encoder::log_id);
        self.membership(stored.membership());
    }

    pub(crate) fn log_entry(&mut self, entry: &LogEntry) {
        self.log_id(&entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => self.u8(0),
            EntryPayload::Normal(command) => {
                self.u8(1);
                self.command(command);
            }
            EntryPayload::Membership(membership) => {
                self.u8(2);
                self.membership(membership);
            }
        }
    }

    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.u64(entry.created);
        self.u64(entry.modified);
        self.bytes(&entry.value);
    }

    pub(crate) fn snapshot_meta(&mut self, meta: &SnapshotMeta) {
        self.option(meta.last_log_id.as_ref(), Encoder::log_id);
        self.stored_membership(&meta.last_membership);
    }
}

fn checksum(version: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(payload);
    hasher.finalize()
}

/// Takes a record apart.
pub(crate) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Checks the header.
    pub(crate) fn open(record: &'a [u8]) -> Result<Decoder<'a>, CodecError> {
        if record.len() < HEADER_BYTES {
            return Err(CodecError::Short);
        }
        let (header, payload) = record.split_at(HEADER_BYTES);
        if header[0] == crate::keyring::MARK {
            return Err(CodecError::Sealed);
        }
        let stored = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        if checksum(header[0], payload) != stored {
            return Err(CodecError::Checksum);
        }
        if header[0] != VERSION {
            return Err(CodecError::Version(header[0]));
        }
        Ok(Decoder(payload))
    }

    /// Checks that nothing is left.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, CodecError> {
        match self.0.len() {
            0 => Ok(value),
            left => Err(CodecError::Long(left)),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        let taken = self.take(8)?;
        Ok(u64::from_le_bytes(taken.try_into().expect("eight bytes were taken")))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, CodecError> {
        let taken = self.take(16)?;
        Ok(u128::from_le_bytes(taken.try_into().expect("sixteen bytes were taken")))
    }

    pub(crate) fn count(&mut self) -> Result<usize, CodecError> {
        let taken = self.take(4)?;
        Ok(u32::from_le_bytes(taken.try_into().expect("four bytes were taken")) as usize)
    }

    /// A copy, so that one value does not keep the whole message in memory.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let length = self.count()?;
        Ok(Bytes::copy_from_slice(self.take(length)?))
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<String, CodecError> {
        let length = self.count()?;
        let text = std::str::from_utf8(self.take(length)?);
        Ok(text.map_err(|_| CodecError::Invalid(what))?.to_owned())
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CodecError::Choice(what, other)),
        }
    }

    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Decoder<'a>) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.bool("an optional field")? { Ok(Some(read(self)?)) } else { Ok(None) }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, CodecError> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(Vote { leader_id, committed: self.bool("a vote")? })
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, CodecError> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(LogId { leader_id, index: self.u64()? })
    }

    pub(crate) fn promise(&mut self) -> Result<Promise, CodecError> {
        let vote = self.option(Decoder::vote)?;
        Ok(Promise { vote, last: self.option(Decoder::log_id)? })
    }

    pub(crate) fn mark(&mut self) -> Result<Mark, CodecError> {
        Ok(Mark { revision: self.u64()?, hash: self.u128()? })
    }

    pub(crate) fn command(&mut self) -> Result<Command, CodecError> {
        let time_ms = self.u64()?;
        let key = self.bytes()?;
        let tag = self.u8()?;
        let precondition = match tag & !NAMED {
            0 => Precondition::Any,
            1 => Precondition::Absent,
            2 => Precondition::Present,
            3 => Precondition::At(self.u64()?),
            _ => return Err(CodecError::Choice("a precondition", tag)),
        };
        let id = if tag & NAMED == 0 { 0 } else { self.u64()? };
        let action = match self.u8()? {
            0 => Action::Put(self.bytes()?),
            1 => Action::Delete,
            2 => Action::Check { verdict: self.option(Decoder::mark)? },
            other => return Err(CodecError::Choice("an action", other)),
        };
        Ok(Command { time_ms, id, key, precondition, action })
    }

    fn membership(&mut self) -> Result<Membership<u64, Place>, CodecError> {
        let mut configs = Vec::new();
        for _ in 0..self.count()? {
            let mut voters = BTreeSet::new();
            for _ in 0..self.count()? {
                voters.insert(self.u64()?);
            }
            configs.push(voters);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.count()? {
            let id = self.u64()?;
            let name = self.text("a member's name")?;
            nodes.insert(id, Place { name, address: self.text("a member's address")? });
        }
        // The membership of a member that has not heard of any is empty, which `new` refuses.
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|_| CodecError::Invalid("a membership"))
    }

    pub(crate) fn stored_membership(&mut self) -> Result<StoredMembership, CodecError> {
        let log_id = self.option(Decoder::log_id)?;
        Ok(StoredMembership::new(log_id, self.membership()?))
    }

    pub(crate) fn log_entry(&mut self) -> Result<LogEntry, CodecError> {
        let log_id = self.log_id()?;
        let payload = match self.u8()? {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(self.command()?),
            2 => EntryPayload::Membership(self.membership()?),
            other => return Err(CodecError::Choice("a log entry", other)),
        };
        Ok(LogEntry::new(log_id, payload))
    }

    pub(crate) fn entry(&mut self) -> Result<Entry, CodecError> {
        let created = self.u64()?;
        let modified = self.u64()?;
        Ok(Entry { value: self.bytes()?, created, modified })
    }

    pub(crate) fn snapshot_meta(&mut self) -> Result<SnapshotMeta, CodecError> {
        let last_log_id = self.option(Decoder::log_id)?;
        Ok(OpenraftMeta { last_log_id, last_membership: self.stored_membership()? })
    }
}

/// A record of one thing.
pub(crate) fn encode<T>(payload_bytes: usize, value: &T, write: fn(&mut Encoder, &T)) -> Vec<u8> {
    let mut encoder = Encoder::new(payload_bytes);
    write(&mut encoder, value);
    encoder.seal()
}

/// Reads a record of one thing.
pub(crate) fn decode<'a, T>(
    record: &'a [u8],
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    let mut decoder = Decoder::open(record)?;
    let value = read(&mut decoder)?;
    decoder.finish(value)
}

/// The size of a log entry's payload, near enough to make room for it.
pub(crate) fn log_entry_bytes(entry: &LogEntry) -> usize {
    const FIXED_BYTES: usize = 64;
    match &entry.payload {
        EntryPayload::Normal(Command { key, action: Action::Put(value), .. }) => {
            FIXED_BYTES + key.len() + value.len()
        }
        EntryPayload::Normal(command) => FIXED_BYTES + command.key.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => FIXED_BYTES,
    }
}

#[cfg(test)]
mod tests;
