//! Members talking to each other: requests are encoded here, carried by a transport the caller
//! brings (it knows TLS and who is who), and answered here on the other side.
//!
//! ```text
//!  openraft ─▶ Peer ─▶ request record ─▶ Transport ~~~▶ Store::handle_peer ─▶ Inbox ─▶ openraft
//!                                                  ◀~~~ answer record ◀─
//! ```
//!
//! A snapshot goes in numbered pieces of whole objects, each a record with its own checksum. All
//! pieces carry a running checksum over those before them, so a lost, doubled or mixed-up piece is
//! noticed at once. The receiver builds the new state beside the old one and hands it to openraft
//! only when the last piece has come; a new transfer throws the unfinished one away.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::codec::{self, CodecError, Decoder, Encoder};
use crate::machine::Image;
use crate::raft::{Member, Snapshot, SnapshotMeta, Types, Vote};
use crate::state::{Entry, Root};

/// Carries a request to the member at an address and brings its answer back.
pub type Transport =
    Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, io::Result<Bytes>> + Send + Sync>;

/// For a member that is alone: there is nobody to reach.
pub(crate) fn no_transport() -> Transport {
    let nobody = || io::Error::new(io::ErrorKind::NotConnected, "this member is alone");
    Arc::new(move |_, _| futures::future::ready(Err(nobody())).boxed())
}

/// Bytes of objects in one piece of a snapshot; at least one object goes into each.
const PIECE_BYTES: usize = 2 << 20;

/// One piece must be answered by then.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

type Rpc<T> = Result<T, RPCError<Types>>;

/// What a member asks of another.
enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Transfer(TransferLeaderRequest<Types>),
    Piece(Piece),
}

/// A part of a snapshot.
struct Piece {
    vote: Vote,
    meta: SnapshotMeta,
    time_ms: u64,
    /// Names the transfer, among all of this leader's term.
    transfer: u64,
    number: u64,
    /// Over the keys and values of all pieces before this one.
    before: u32,
    last: bool,
    objects: Vec<(Bytes, Entry)>,
}

impl Request {
    fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new(1024);
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
            Request::Piece(piece) => {
                encoder.u8(4);
                encoder.vote(&piece.vote);
                encoder.snapshot_meta(&piece.meta);
                encoder.u64(piece.time_ms);
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
        }
        encoder.seal().into()
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Request, CodecError> {
        match decoder.u8()? {
            0 => {
                let vote = decoder.vote()?;
                let prev_log_id = decoder.option(Decoder::log_id)?;
                let leader_commit = decoder.option(Decoder::log_id)?;
                let mut entries = Vec::new();
                for _ in 0..decoder.count()? {
                    entries.push(decoder.log_entry()?);
                }
                let request = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
                Ok(Request::Append(request))
            }
            1 => Ok(Request::Vote(decode_vote_request(decoder)?)),
            2 => Ok(Request::PreVote(decode_vote_request(decoder)?)),
            3 => {
                let (from, to) = (decoder.vote()?, decoder.u64()?);
                let last_log_id = decoder.option(Decoder::log_id)?;
                Ok(Request::Transfer(TransferLeaderRequest::new(from, to, last_log_id)))
            }
            4 => Ok(Request::Piece(decode_piece(decoder)?)),
            other => Err(CodecError::Choice("a request", other)),
        }
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

fn decode_piece(decoder: &mut Decoder<'_>) -> Result<Piece, CodecError> {
    let vote = decoder.vote()?;
    let meta = decoder.snapshot_meta()?;
    let time_ms = decoder.u64()?;
    let transfer = decoder.u64()?;
    let number = decoder.u64()?;
    let before = u32::try_from(decoder.u64()?);
    let before = before.map_err(|_| CodecError::Invalid("a running checksum"))?;
    let last = decoder.bool("the last piece")?;
    let mut objects = Vec::new();
    for _ in 0..decoder.count()? {
        objects.push((decoder.bytes()?, decoder.entry()?));
    }
    Ok(Piece { vote, meta, time_ms, transfer, number, before, last, objects })
}

/// What a member answers; the kind of the request is known to who asked.
enum Answer {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    Transfer(TransferLeaderResponse<Types>),
    /// The piece is in; the vote comes with the last one.
    Piece(Option<Vote>),
    /// The member cannot answer: it has stopped, or the request makes no sense to it.
    Failed(String),
}

impl Answer {
    fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new(128);
        match self {
            Answer::Append(response) => {
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
            Answer::Vote(response) => {
                encoder.u8(1);
                encoder.vote(&response.vote);
                encoder.u8(response.vote_granted.into());
                encoder.option(response.last_log_id.as_ref(), Encoder::log_id);
            }
            Answer::Transfer(response) => {
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
            Answer::Piece(vote) => {
                encoder.u8(3);
                encoder.option(vote.as_ref(), Encoder::vote);
            }
            Answer::Failed(why) => {
                encoder.u8(4);
                encoder.bytes(why.as_bytes());
            }
        }
        encoder.seal().into()
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Answer, CodecError> {
        match decoder.u8()? {
            0 => Ok(Answer::Append(match decoder.u8()? {
                0 => AppendEntriesResponse::Success,
                1 => AppendEntriesResponse::PartialSuccess(decoder.option(Decoder::log_id)?),
                2 => AppendEntriesResponse::Conflict,
                3 => AppendEntriesResponse::HigherVote(decoder.vote()?),
                other => return Err(CodecError::Choice("an append answer", other)),
            })),
            1 => {
                let vote = decoder.vote()?;
                let vote_granted = decoder.bool("a granted vote")?;
                let last_log_id = decoder.option(Decoder::log_id)?;
                Ok(Answer::Vote(VoteResponse { vote, vote_granted, last_log_id }))
            }
            2 => Ok(Answer::Transfer(match decoder.u8()? {
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
            })),
            3 => Ok(Answer::Piece(decoder.option(Decoder::vote)?)),
            4 => Ok(Answer::Failed(String::from_utf8_lossy(&decoder.bytes()?).into_owned())),
            other => Err(CodecError::Choice("an answer", other)),
        }
    }
}

/// Makes the connections openraft asks for.
pub(crate) struct Peers {
    id: u64,
    transport: Transport,
    /// Numbers the snapshot transfers of this process.
    transfers: Arc<AtomicU64>,
}

impl Peers {
    pub(crate) fn new(id: u64, transport: Transport) -> Peers {
        Peers { id, transport, transfers: Arc::default() }
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &openraft::BasicNode) -> Peer {
        Peer {
            id: self.id,
            target,
            address: node.addr.clone(),
            transport: self.transport.clone(),
            transfers: self.transfers.clone(),
        }
    }
}

/// The sending side towards one member.
pub(crate) struct Peer {
    id: u64,
    target: u64,
    address: String,
    transport: Transport,
    transfers: Arc<AtomicU64>,
}

impl Peer {
    async fn ask(&self, request: &Request, action: RPCTypes, timeout: Duration) -> Rpc<Answer> {
        let call = (self.transport)(self.address.clone(), request.encode());
        let Ok(answer) = tokio::time::timeout(timeout, call).await else {
            let late = Timeout { action, id: self.id, target: self.target, timeout };
            return Err(RPCError::Timeout(late));
        };
        let answer = answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        match codec::decode(&answer, Answer::decode) {
            Ok(Answer::Failed(why)) => Err(RPCError::Unreachable(Unreachable::from_string(why))),
            Ok(answer) => Ok(answer),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }
}

fn unexpected<T>() -> Rpc<T> {
    let error = NetworkError::from_string("the member answered another question");
    Err(RPCError::Network(error))
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        let request = Request::Append(request);
        match self.ask(&request, RPCTypes::AppendEntries, option.soft_ttl()).await? {
            Answer::Append(response) => Ok(response),
            _ => unexpected(),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let request = Request::Vote(request);
        match self.ask(&request, RPCTypes::Vote, option.soft_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => unexpected(),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let request = Request::PreVote(request);
        match self.ask(&request, RPCTypes::Vote, option.soft_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => unexpected(),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let transfer = self.transfers.fetch_add(1, Ordering::Relaxed);
        let mut cancel = std::pin::pin!(cancel);
        for piece in pieces(vote, &snapshot, transfer) {
            let request = Request::Piece(piece);
            let answer = tokio::select! {
                answer = self.ask(&request, RPCTypes::InstallSnapshot, PIECE_TIMEOUT) => answer?,
                closed = &mut cancel => return Err(StreamingError::Closed(closed)),
            };
            match answer {
                Answer::Piece(Some(vote)) => return Ok(SnapshotResponse::new(vote)),
                Answer::Piece(None) => {}
                _ => return Ok(unexpected()?),
            }
        }
        Ok(unexpected()?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        let request = Request::Transfer(request);
        match self.ask(&request, RPCTypes::TransferLeader, option.soft_ttl()).await? {
            Answer::Transfer(response) => Ok(response),
            _ => unexpected(),
        }
    }
}

fn add_to_checksum(hasher: &mut crc32fast::Hasher, key: &[u8], entry: &Entry) {
    hasher.update(key);
    hasher.update(&entry.modified.to_le_bytes());
    hasher.update(&entry.value);
}

/// Cuts a snapshot into pieces, made one by one as they are sent. There is always a last one.
fn pieces(vote: Vote, snapshot: &Snapshot, transfer: u64) -> impl Iterator<Item = Piece> {
    let mut objects = snapshot.snapshot.root.iter().peekable();
    let mut hasher = crc32fast::Hasher::new();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let number = next?;
        let before = hasher.clone().finalize();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES
            && let Some((key, entry)) = objects.next()
        {
            bytes += key.len() + entry.value.len();
            add_to_checksum(&mut hasher, key, entry);
            taken.push((key.clone(), entry.clone()));
        }
        let last = objects.peek().is_none();
        next = (!last).then_some(number + 1);
        Some(Piece {
            vote,
            meta: snapshot.meta.clone(),
            time_ms: snapshot.snapshot.time_ms,
            transfer,
            number,
            before,
            last,
            objects: taken,
        })
    })
}

/// The receiving side: answers what other members ask.
pub(crate) struct Inbox {
    member: Member,
    /// The snapshot on its way in. A std mutex: sections are short and never await.
    incoming: Mutex<Option<Incoming>>,
}

struct Incoming {
    vote: Vote,
    transfer: u64,
    next: u64,
    root: Root,
    hasher: crc32fast::Hasher,
}

impl Incoming {
    /// Takes a piece in; false if it is not the next one.
    fn add(&mut self, piece: &Piece) -> bool {
        let same = self.vote == piece.vote && self.transfer == piece.transfer;
        let fits = self.next == piece.number && self.hasher.clone().finalize() == piece.before;
        if !same || !fits {
            return false;
        }
        for (key, entry) in &piece.objects {
            add_to_checksum(&mut self.hasher, key, entry);
            self.root.insert(key.clone(), entry.clone());
        }
        self.next += 1;
        true
    }
}

impl Inbox {
    pub(crate) fn new(member: Member) -> Inbox {
        Inbox { member, incoming: Mutex::new(None) }
    }

    pub(crate) async fn answer(&self, request: &[u8]) -> Bytes {
        let answer = match codec::decode(request, Request::decode) {
            Ok(request) => self.dispatch(request).await,
            Err(error) => Answer::Failed(format!("the request cannot be read: {error}")),
        };
        answer.encode()
    }

    async fn dispatch(&self, request: Request) -> Answer {
        fn failed(error: impl std::fmt::Display) -> Answer {
            Answer::Failed(error.to_string())
        }
        let raft = &self.member.raft;
        match request {
            Request::Append(request) => {
                raft.append_entries(request).await.map_or_else(failed, Answer::Append)
            }
            Request::Vote(request) => raft.vote(request).await.map_or_else(failed, Answer::Vote),
            Request::PreVote(request) => {
                raft.pre_vote(request).await.map_or_else(failed, Answer::Vote)
            }
            Request::Transfer(request) => {
                raft.handle_transfer_leader(request).await.map_or_else(failed, Answer::Transfer)
            }
            Request::Piece(piece) => match self.take_in(piece) {
                Ok(None) => Answer::Piece(None),
                Ok(Some((vote, snapshot))) => {
                    let installed = raft.install_full_snapshot(vote, snapshot).await;
                    installed.map_or_else(failed, |response| Answer::Piece(Some(response.vote)))
                }
                Err(why) => failed(why),
            },
        }
    }

    /// Adds a piece to the snapshot on its way in; the whole of it once it is complete.
    fn take_in(&self, piece: Piece) -> Result<Option<(Vote, Snapshot)>, &'static str> {
        let mut slot = self.incoming.lock().expect("no section of this lock panics");
        if piece.number == 0 {
            let Piece { vote, transfer, .. } = piece;
            let (root, hasher) = (Root::new(), crc32fast::Hasher::new());
            *slot = Some(Incoming { vote, transfer, next: 0, root, hasher });
        }
        let incoming = slot.as_mut().ok_or("no snapshot is being received")?;
        if !incoming.add(&piece) {
            *slot = None;
            return Err("the piece does not follow the one before it");
        }
        if !piece.last {
            return Ok(None);
        }
        let root = std::mem::take(&mut incoming.root);
        *slot = None;
        let image = Image { root, time_ms: piece.time_ms };
        Ok(Some((piece.vote, Snapshot { meta: piece.meta, snapshot: image })))
    }
}

#[cfg(test)]
mod tests;
