//! What members say to each other, and how it is encoded.
//!
//! Every request names the cluster, who asks and who is asked; a member answers nobody else.
//! Requests and answers are records with a checksum (see `codec`).

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::codec::{CodecError, Decoder, Encoder};
use crate::errors::{MembershipError, ReadError, WriteError};
use crate::members::{Change, MemberId};
use crate::promise::Promise;
use crate::raft::{SnapshotMeta, Types, Vote};
use crate::space::Room;
use crate::state::{Command, Entry, Mark, Revision};

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) cluster_id: u128,
    pub(crate) from: MemberId,
    pub(crate) to: MemberId,
}

/// What a member asks of another.
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Transfer(TransferLeaderRequest<Types>),
    Piece(Box<Piece>),
    /// Of the leader: to propose these.
    Writes(Vec<Write>),
    /// Of the leader: which revision a linearizable read needs.
    ReadIndex,
    /// How it is.
    Status,
    /// Of the leader: to change the members.
    Change(Change),
    /// What whoever asks has promised it.
    Promised,
}

/// A write for the leader to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) command: Command,
    pub(crate) makes_room: bool,
    /// In no later term than this one.
    pub(crate) fence: u64,
}

/// A part of a snapshot.
pub(crate) struct Piece {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) time_ms: u64,
    pub(crate) mark: Option<Mark>,
    /// The hash of the whole state.
    pub(crate) hash: u128,
    /// Names the transfer, among all of this leader's term.
    pub(crate) transfer: u64,
    pub(crate) number: u64,
    /// Over the keys and values of all pieces before this one.
    pub(crate) before: u32,
    pub(crate) last: bool,
    pub(crate) objects: Vec<(Bytes, Entry)>,
}

/// What a write did; the value is known to who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Put { created: Revision, modified: Revision },
    Deleted { revision: Revision, last: Entry },
}

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The newest revision applied, and the hash of the state at it.
    pub(crate) now: Mark,
    /// What it noted at the last check.
    pub(crate) mark: Option<Mark>,
    pub(crate) quarantine: Option<String>,
    pub(crate) room: Room,
    /// Whether whoever asks is a member, as the last committed membership has it.
    pub(crate) knows_you: bool,
}

/// What a member answers; the kind of the request is known to who asked.
pub(crate) enum Answer {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    Transfer(TransferLeaderResponse<Types>),
    /// The piece is in; the vote comes with the last one.
    Piece(Option<Vote>),
    /// The member cannot answer: it has stopped, or the request makes no sense to it. It did
    /// nothing.
    Failed(String),
    /// What became of each write, in their order.
    Written(Vec<Result<Written, WriteError>>),
    Index(Result<Revision, ReadError>),
    Status(Status),
    Changed(Result<MemberId, MembershipError>),
    Promised(Promise),
}

impl Request {
    pub(crate) fn encode(&self, envelope: Envelope) -> Bytes {
        let mut encoder = Encoder::new(1024);
        encoder.u128(envelope.cluster_id);
        encoder.u64(envelope.from);
        encoder.u64(envelope.to);
        match self {
            Request::Append(request) => {
                encoder.u8(0);
                encoder.vote(&request.vote);
                encoder.option(request.prev_log_id.as_ref(), Encoder::log_id);
                encoder.option(request.leader_commit.as_ref(), Encoder::log_id);
                encoder.count(request.entries.len());
                request.entries.iter().for_each(|entry| encoder.log_entry(entry));
            }
            Request::Vote(request) => encode_vote_request(&mut encoder, 1, request),
            Request::PreVote(request) => encode_vote_request(&mut encoder, 2, request),
            Request::Transfer(request) => {
                encoder.u8(3);
                encoder.vote(request.from_leader());
                encoder.u64(*request.to_node_id());
                encoder.option(request.last_log_id(), Encoder::log_id);
            }
            Request::Piece(piece) => encode_piece(&mut encoder, piece),
            Request::Writes(writes) => {
                encoder.u8(10);
                encoder.count(writes.len());
                for Write { command, makes_room, fence } in writes {
                    encoder.command(command);
                    encoder.u8((*makes_room).into());
                    encoder.u64(*fence);
                }
            }
            Request::ReadIndex => encoder.u8(6),
            Request::Status => encoder.u8(7),
            Request::Change(change) => {
                encoder.u8(8);
                encode_change(&mut encoder, change);
            }
            Request::Promised => encoder.u8(9),
        }
        encoder.seal().into()
    }

    pub(crate) fn decode(decoder: &mut Decoder<'_>) -> Result<(Envelope, Request), CodecError> {
        let (cluster_id, from, to) = (decoder.u128()?, decoder.u64()?, decoder.u64()?);
        let envelope = Envelope { cluster_id, from, to };
        let request = match decoder.u8()? {
            0 => {
                let vote = decoder.vote()?;
                let prev_log_id = decoder.option(Decoder::log_id)?;
                let leader_commit = decoder.option(Decoder::log_id)?;
                let mut entries = Vec::new();
                for _ in 0..decoder.count()? {
                    entries.push(decoder.log_entry()?);
                }
                let request = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
                Request::Append(request)
            }
            1 => Request::Vote(decode_vote_request(decoder)?),
            2 => Request::PreVote(decode_vote_request(decoder)?),
            3 => {
                let (from, to) = (decoder.vote()?, decoder.u64()?);
                let last_log_id = decoder.option(Decoder::log_id)?;
                Request::Transfer(TransferLeaderRequest::new(from, to, last_log_id))
            }
            4 => Request::Piece(Box::new(decode_piece(decoder)?)),
            6 => Request::ReadIndex,
            7 => Request::Status,
            8 => Request::Change(decode_change(decoder)?),
            9 => Request::Promised,
            10 => {
                let mut writes = Vec::new();
                for _ in 0..decoder.count()? {
                    let command = decoder.command()?;
                    let makes_room = decoder.bool("a write that makes room")?;
                    writes.push(Write { command, makes_room, fence: decoder.u64()? });
                }
                Request::Writes(writes)
            }
            other => return Err(CodecError::Choice("a request", other)),
        };
        Ok((envelope, request))
    }
}

fn encode_vote_request(encoder: &mut Encoder, tag: u8, request: &VoteRequest<Types>) {
    encoder.u8(tag);
    encoder.vote(&request.vote);
    encoder.option(request.last_log_id.as_ref(), Encoder::log_id);
    encoder.u8(request.leadership_transfer.into());
}

fn decode_vote_request(decoder: &mut Decoder<'_>) -> Result<VoteRequest<Types>, CodecError> {
    let vote = decoder.vote()?;
    let last_log_id = decoder.option(Decoder::log_id)?;
    let leadership_transfer = decoder.bool("a leadership transfer")?;
    Ok(VoteRequest { vote, last_log_id, leadership_transfer })
}

fn encode_piece(encoder: &mut Encoder, piece: &Piece) {
    encoder.u8(4);
    encoder.vote(&piece.vote);
    encoder.snapshot_meta(&piece.meta);
    encoder.u64(piece.time_ms);
    encoder.option(piece.mark.as_ref(), Encoder::mark);
    encoder.u128(piece.hash);
    encoder.u64(piece.transfer);
    encoder.u64(piece.number);
    encoder.u64(piece.before.into());
    encoder.u8(piece.last.into());
    encoder.count(piece.objects.len());
    for (key, entry) in &piece.objects {
        encoder.bytes(key);
        encoder.entry(entry);
    }
}

fn decode_piece(decoder: &mut Decoder<'_>) -> Result<Piece, CodecError> {
    let vote = decoder.vote()?;
    let meta = decoder.snapshot_meta()?;
    let time_ms = decoder.u64()?;
    let mark = decoder.option(Decoder::mark)?;
    let hash = decoder.u128()?;
    let transfer = decoder.u64()?;
    let number = decoder.u64()?;
    let before = u32::try_from(decoder.u64()?);
    let before = before.map_err(|_| CodecError::Invalid("a running checksum"))?;
    let last = decoder.bool("the last piece")?;
    let mut objects = Vec::new();
    for _ in 0..decoder.count()? {
        objects.push((decoder.bytes()?, decoder.entry()?));
    }
    Ok(Piece { vote, meta, time_ms, mark, hash, transfer, number, before, last, objects })
}

fn encode_change(encoder: &mut Encoder, change: &Change) {
    match change {
        Change::Add { name, address } => {
            encoder.u8(0);
            encoder.text(name);
            encoder.text(address);
        }
        Change::Promote(id) => {
            encoder.u8(1);
            encoder.u64(*id);
        }
        Change::Remove(id) => {
            encoder.u8(2);
            encoder.u64(*id);
        }
        Change::Transfer(to) => {
            encoder.u8(3);
            encoder.option(to.as_ref(), |encoder, id| encoder.u64(*id));
        }
        Change::Move { id, name, address } => {
            encoder.u8(4);
            encoder.u64(*id);
            encoder.text(name);
            encoder.text(address);
        }
    }
}

fn decode_change(decoder: &mut Decoder<'_>) -> Result<Change, CodecError> {
    match decoder.u8()? {
        0 => {
            let name = decoder.text("a member's name")?;
            Ok(Change::Add { name, address: decoder.text("a member's address")? })
        }
        1 => Ok(Change::Promote(decoder.u64()?)),
        2 => Ok(Change::Remove(decoder.u64()?)),
        3 => Ok(Change::Transfer(decoder.option(Decoder::u64)?)),
        4 => {
            let (id, name) = (decoder.u64()?, decoder.text("a member's name")?);
            Ok(Change::Move { id, name, address: decoder.text("a member's address")? })
        }
        other => Err(CodecError::Choice("a change of the members", other)),
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new(128);
        match self {
            Answer::Append(response) => encode_append(&mut encoder, response),
            Answer::Vote(response) => {
                encoder.u8(1);
                encoder.vote(&response.vote);
                encoder.u8(response.vote_granted.into());
                encoder.option(response.last_log_id.as_ref(), Encoder::log_id);
            }
            Answer::Transfer(response) => encode_transfer(&mut encoder, response),
            Answer::Piece(vote) => {
                encoder.u8(3);
                encoder.option(vote.as_ref(), Encoder::vote);
            }
            Answer::Failed(why) => {
                encoder.u8(4);
                encoder.text(why);
            }
            Answer::Written(all) => {
                encoder.u8(10);
                encoder.count(all.len());
                for written in all {
                    result(&mut encoder, written, encode_written, encode_write_error);
                }
            }
            Answer::Index(index) => {
                encoder.u8(6);
                result(
                    &mut encoder,
                    index,
                    |encoder, index| encoder.u64(*index),
                    encode_read_error,
                );
            }
            Answer::Status(status) => {
                encoder.u8(7);
                encoder.mark(&status.now);
                encoder.option(status.mark.as_ref(), Encoder::mark);
                encoder.option(status.quarantine.as_ref(), |encoder, why| encoder.text(why));
                encoder.u8(status.room as u8);
                encoder.u8(status.knows_you.into());
            }
            Answer::Changed(changed) => {
                encoder.u8(8);
                result(&mut encoder, changed, |encoder, id| encoder.u64(*id), encode_change_error);
            }
            Answer::Promised(promise) => {
                encoder.u8(9);
                encoder.promise(promise);
            }
        }
        encoder.seal().into()
    }

    pub(crate) fn decode(decoder: &mut Decoder<'_>) -> Result<Answer, CodecError> {
        match decoder.u8()? {
            0 => decode_append(decoder),
            1 => {
                let vote = decoder.vote()?;
                let vote_granted = decoder.bool("a granted vote")?;
                let last_log_id = decoder.option(Decoder::log_id)?;
                Ok(Answer::Vote(VoteResponse { vote, vote_granted, last_log_id }))
            }
            2 => decode_transfer(decoder),
            3 => Ok(Answer::Piece(decoder.option(Decoder::vote)?)),
            4 => Ok(Answer::Failed(decoder.text("a reason")?)),
            6 => Ok(Answer::Index(match decoder.bool("a result")? {
                true => Ok(decoder.u64()?),
                false => Err(decode_read_error(decoder)?),
            })),
            7 => {
                let (now, mark) = (decoder.mark()?, decoder.option(Decoder::mark)?);
                let quarantine = decoder.option(|decoder| decoder.text("a reason"))?;
                let room = Room::of(decoder.u8()?);
                let knows_you = decoder.bool("a member that is known")?;
                Ok(Answer::Status(Status { now, mark, quarantine, room, knows_you }))
            }
            8 => Ok(Answer::Changed(match decoder.bool("a result")? {
                true => Ok(decoder.u64()?),
                false => Err(decode_change_error(decoder)?),
            })),
            9 => Ok(Answer::Promised(decoder.promise()?)),
            10 => {
                let mut all = Vec::new();
                for _ in 0..decoder.count()? {
                    all.push(match decoder.bool("a result")? {
                        true => Ok(decode_written(decoder)?),
                        false => Err(decode_write_error(decoder)?),
                    });
                }
                Ok(Answer::Written(all))
            }
            other => Err(CodecError::Choice("an answer", other)),
        }
    }
}

fn result<T, E>(
    encoder: &mut Encoder,
    result: &Result<T, E>,
    ok: impl FnOnce(&mut Encoder, &T),
    err: impl FnOnce(&mut Encoder, &E),
) {
    encoder.u8(result.is_ok().into());
    match result {
        Ok(value) => ok(encoder, value),
        Err(error) => err(encoder, error),
    }
}

fn encode_append(encoder: &mut Encoder, response: &AppendEntriesResponse<Types>) {
    encoder.u8(0);
    match response {
        AppendEntriesResponse::Success => encoder.u8(0),
        AppendEntriesResponse::PartialSuccess(log_id) => {
            encoder.u8(1);
            encoder.option(log_id.as_ref(), Encoder::log_id);
        }
        AppendEntriesResponse::Conflict => encoder.u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            encoder.u8(3);
            encoder.vote(vote);
        }
    }
}

fn decode_append(decoder: &mut Decoder<'_>) -> Result<Answer, CodecError> {
    Ok(Answer::Append(match decoder.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(decoder.option(Decoder::log_id)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(decoder.vote()?),
        other => return Err(CodecError::Choice("an append answer", other)),
    }))
}

fn encode_transfer(encoder: &mut Encoder, response: &TransferLeaderResponse<Types>) {
    encoder.u8(2);
    match response {
        Ok(()) => encoder.u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            encoder.u8(1);
            encoder.vote(expected);
            encoder.vote(actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            encoder.u8(2);
            encoder.option(expected.as_ref(), Encoder::log_id);
            encoder.option(actual.as_ref(), Encoder::log_id);
        }
    }
}

fn decode_transfer(decoder: &mut Decoder<'_>) -> Result<Answer, CodecError> {
    Ok(Answer::Transfer(match decoder.u8()? {
        0 => Ok(()),
        1 => {
            let (expected, actual) = (decoder.vote()?, decoder.vote()?);
            Err(TransferLeaderError::VoteChanged { expected, actual })
        }
        2 => {
            let expected = decoder.option(Decoder::log_id)?;
            let actual = decoder.option(Decoder::log_id)?;
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
        other => return Err(CodecError::Choice("a transfer answer", other)),
    }))
}

fn encode_written(encoder: &mut Encoder, written: &Written) {
    match written {
        Written::Put { created, modified } => {
            encoder.u8(0);
            encoder.u64(*created);
            encoder.u64(*modified);
        }
        Written::Deleted { revision, last } => {
            encoder.u8(1);
            encoder.u64(*revision);
            encoder.entry(last);
        }
    }
}

fn decode_written(decoder: &mut Decoder<'_>) -> Result<Written, CodecError> {
    match decoder.u8()? {
        0 => Ok(Written::Put { created: decoder.u64()?, modified: decoder.u64()? }),
        1 => Ok(Written::Deleted { revision: decoder.u64()?, last: decoder.entry()? }),
        other => Err(CodecError::Choice("a write", other)),
    }
}

fn encode_leader(encoder: &mut Encoder, leader: Option<&MemberId>, address: Option<&String>) {
    encoder.option(leader, |encoder, id| encoder.u64(*id));
    encoder.option(address, |encoder, address| encoder.text(address));
}

type Leader = (Option<MemberId>, Option<String>);

fn decode_leader(decoder: &mut Decoder<'_>) -> Result<Leader, CodecError> {
    let leader = decoder.option(Decoder::u64)?;
    Ok((leader, decoder.option(|decoder| decoder.text("an address"))?))
}

fn encode_write_error(encoder: &mut Encoder, error: &WriteError) {
    match error {
        WriteError::Conflict { current } => {
            encoder.u8(0);
            encoder.option(current.as_ref(), Encoder::entry);
        }
        WriteError::NotLeader { leader, address } => {
            encoder.u8(1);
            encode_leader(encoder, leader.as_ref(), address.as_ref());
        }
        WriteError::Unknown => encoder.u8(2),
        WriteError::Full => encoder.u8(3),
        WriteError::TooLarge { size, limit } => {
            encoder.u8(4);
            encoder.u64(*size as u64);
            encoder.u64(*limit as u64);
        }
        WriteError::Stopped => encoder.u8(5),
    }
}

fn decode_write_error(decoder: &mut Decoder<'_>) -> Result<WriteError, CodecError> {
    match decoder.u8()? {
        0 => Ok(WriteError::Conflict { current: decoder.option(Decoder::entry)? }),
        1 => {
            let (leader, address) = decode_leader(decoder)?;
            Ok(WriteError::NotLeader { leader, address })
        }
        2 => Ok(WriteError::Unknown),
        3 => Ok(WriteError::Full),
        4 => {
            let (size, limit) = (decoder.u64()? as usize, decoder.u64()? as usize);
            Ok(WriteError::TooLarge { size, limit })
        }
        5 => Ok(WriteError::Stopped),
        other => Err(CodecError::Choice("a write's error", other)),
    }
}

fn encode_read_error(encoder: &mut Encoder, error: &ReadError) {
    match error {
        ReadError::NotLeader { leader, address } => {
            encoder.u8(0);
            encode_leader(encoder, leader.as_ref(), address.as_ref());
        }
        ReadError::NoMajority => encoder.u8(1),
        ReadError::Behind => encoder.u8(2),
        ReadError::Quarantined => encoder.u8(3),
        ReadError::Stopped => encoder.u8(4),
    }
}

fn decode_read_error(decoder: &mut Decoder<'_>) -> Result<ReadError, CodecError> {
    match decoder.u8()? {
        0 => {
            let (leader, address) = decode_leader(decoder)?;
            Ok(ReadError::NotLeader { leader, address })
        }
        1 => Ok(ReadError::NoMajority),
        2 => Ok(ReadError::Behind),
        3 => Ok(ReadError::Quarantined),
        4 => Ok(ReadError::Stopped),
        other => Err(CodecError::Choice("a read's error", other)),
    }
}

fn encode_change_error(encoder: &mut Encoder, error: &MembershipError) {
    let numbered = |encoder: &mut Encoder, tag: u8, id: u64| {
        encoder.u8(tag);
        encoder.u64(id);
    };
    match error {
        MembershipError::NoLeader => encoder.u8(0),
        MembershipError::NoSuchMember { id } => numbered(encoder, 1, *id),
        MembershipError::NotAVoter { id } => numbered(encoder, 2, *id),
        MembershipError::Taken { id, name, address } => {
            numbered(encoder, 3, *id);
            encoder.text(name);
            encoder.text(address);
        }
        MembershipError::NotCaughtUp { id, behind } => {
            numbered(encoder, 4, *id);
            encoder.u64(*behind);
        }
        MembershipError::LosesMajority { id } => numbered(encoder, 5, *id),
        MembershipError::LastVoter => encoder.u8(6),
        MembershipError::TooMany(count) => numbered(encoder, 7, *count as u64),
        MembershipError::Changed => encoder.u8(8),
        MembershipError::Unknown => encoder.u8(9),
        MembershipError::NotTaken { id } => numbered(encoder, 10, *id),
        MembershipError::Stopped => encoder.u8(11),
    }
}

fn decode_change_error(decoder: &mut Decoder<'_>) -> Result<MembershipError, CodecError> {
    Ok(match decoder.u8()? {
        0 => MembershipError::NoLeader,
        1 => MembershipError::NoSuchMember { id: decoder.u64()? },
        2 => MembershipError::NotAVoter { id: decoder.u64()? },
        3 => {
            let (id, name) = (decoder.u64()?, decoder.text("a member's name")?);
            MembershipError::Taken { id, name, address: decoder.text("a member's address")? }
        }
        4 => MembershipError::NotCaughtUp { id: decoder.u64()?, behind: decoder.u64()? },
        5 => MembershipError::LosesMajority { id: decoder.u64()? },
        6 => MembershipError::LastVoter,
        7 => MembershipError::TooMany(decoder.u64()? as usize),
        8 => MembershipError::Changed,
        9 => MembershipError::Unknown,
        10 => MembershipError::NotTaken { id: decoder.u64()? },
        11 => MembershipError::Stopped,
        other => return Err(CodecError::Choice("a change's error", other)),
    })
}

#[cfg(test)]
mod tests;
