//! Members talking to each other: requests (see `wire`) are carried by a transport that the caller
//! brings (it knows TLS and who is who), and those of Raft are answered here on the other side.
//!
//! ```text
//!  openraft ─▶ Link ─┐
//!                    ├▶ Caller ─▶ Transport ~~~▶ Store::handle_peer ─┬▶ Inbox ─▶ openraft
//!  Store ────────────┘            ◀~~~ answer ◀─                     └▶ Store
//! ```
//!
//! Where a follower's log ends openraft finds out by halves, one question after the other, while
//! nothing can be committed. A link asks first whether it has all that the leader came with, as
//! most have (`Link::leap`). What is committed a follower hears with the next entries, or after a
//! moment without any (`paced`).
//!
//! Snapshots: see `transfer`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::codec;
use crate::engine::Engine;
use crate::faults::Faults;
use crate::log::Log;
use crate::machine::Image;
use crate::members::MemberId;
use crate::promise::Ledger;
use crate::raft::{Member, Place, Snapshot, Types, Vote};
use crate::runtime::VOTE_TIMEOUT;
use crate::silence::Silences;
use crate::space::Room;
use crate::superblock::Identity;
use crate::tasks;
use crate::transfer::{self, Receiver};
use crate::wire::{Answer, Envelope, Request};

/// Whom a request goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The member that must answer. The transport makes sure of it by the peer's certificate, and
    /// fails with `PermissionDenied` if it meets another.
    pub id: MemberId,
    /// Where it is.
    pub address: String,
}

/// Carries a request to a member and brings its answer back. The store brings the timeouts: it
/// drops the future.
///
/// What kind of error it is decides about a write: after `ConnectionRefused`, `NotConnected`,
/// `HostUnreachable`, `NetworkUnreachable`, `AddrNotAvailable` and `PermissionDenied` the request
/// has surely not arrived, and another member may be asked; after any other it may have.
pub type Transport =
    Arc<dyn Fn(Peer, Bytes) -> BoxFuture<'static, io::Result<Bytes>> + Send + Sync>;

/// The largest request or answer: 4 MiB of log entries or of a snapshot and the largest object more,
/// or five of the largest objects that are passed on, and the fields around them.
pub const PEER_BYTES_MAX: usize = 8 << 20;

/// For a member that is alone: there is nobody to reach.
pub(crate) fn no_transport() -> Transport {
    let nobody = || io::Error::new(io::ErrorKind::NotConnected, "this member is alone");
    Arc::new(move |_, _| futures::future::ready(Err(nobody())).boxed())
}

/// Log entries must be answered by then. Far more than a heartbeat: a follower answers after its
/// fsync, and asking again would only add to what its disk has to do.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// One piece of a snapshot must be answered by then.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// The last piece is answered when the snapshot is installed.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A dead peer is tried again after this, for it may be back any moment.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_millis(500);

/// What is committed waits so long for entries to go with. A client that writes again when it was
/// answered is back by then; a watcher elsewhere does not feel it.
const COMMIT_PAUSE: Duration = Duration::from_millis(1);

/// A member that has asked for something for its clients has more of them for so long.
const CLIENTS_LAST: Duration = Duration::from_secs(1);

type Rpc<T> = Result<T, RPCError<Types>>;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// The request has not arrived.
    #[error("cannot be reached: {0}")]
    NotSent(String),
    /// It may have arrived.
    #[error("did not answer: {0}")]
    Lost(String),
    /// The peer did nothing.
    #[error("refused: {0}")]
    Refused(String),
}

/// Asks other members.
#[derive(Clone)]
pub(crate) struct Caller {
    identity: Identity,
    transport: Transport,
    /// What they have promised when they answered.
    pub(crate) ledger: Ledger,
    pub(crate) waiting: Waiting,
    silences: Silences,
    faults: Faults,
}

impl Caller {
    pub(crate) fn new(identity: Identity, transport: Transport, faults: Faults) -> Caller {
        let (ledger, waiting) = (Ledger::default(), Waiting::default());
        Caller { identity, transport, ledger, waiting, silences: Silences::default(), faults }
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Asks a member, and waits for its answer no longer than this.
    pub(crate) async fn ask(
        &self,
        peer: Peer,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, AskError> {
        let member = peer.id;
        let answer = self.ask_quietly(peer, request, timeout).await;
        let failure = match &answer {
            Ok(_) | Err(AskError::Refused(_)) => None,
            Err(error) => Some(error as &dyn std::fmt::Display),
        };
        self.silences.note(member, failure);
        answer
    }

    async fn ask_quietly(
        &self,
        peer: Peer,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, AskError> {
        let passed = self.faults.pass("peer.ask").await;
        passed.map_err(|error| AskError::NotSent(error.to_string()))?;
        let Identity { cluster_id, member_id } = self.identity;
        let request = request.encode(Envelope { cluster_id, from: member_id, to: peer.id });
        let call = (self.transport)(peer, request);
        let Ok(answer) = tokio::time::timeout(timeout, call).await else {
            return Err(AskError::Lost(format!("no answer within {timeout:?}")));
        };
        let answer = answer.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotConnected
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::PermissionDenied => AskError::NotSent(error.to_string()),
            _ => AskError::Lost(error.to_string()),
        })?;
        match codec::decode(&answer, Answer::decode) {
            Ok(Answer::Failed(why)) => Err(AskError::Refused(why)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(AskError::Lost(format!("the answer cannot be read: {error}"))),
        }
    }
}

/// Where the members are, as the newest membership says that this one knows. Connections look here
/// each time, for they outlive a change of address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Arc<Mutex<BTreeMap<MemberId, String>>>);

impl Places {
    /// A member is here from now on.
    pub(crate) fn learn(&self, id: MemberId, place: &Place) {
        let mut places = self.0.lock().expect("no section of this lock panics");
        if places.get(&id) != Some(&place.address) {
            places.insert(id, place.address.clone());
        }
    }

    fn peer(&self, id: MemberId) -> Peer {
        let places = self.0.lock().expect("no section of this lock panics");
        let address = places.get(&id).expect("a link is made with its place");
        Peer { id, address: address.clone() }
    }
}

/// The members whose clients wait to hear of a commit: those that passed on a write or asked for a
/// read index, and when. A std mutex: sections are short and never await.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<Mutex<BTreeMap<MemberId, Instant>>>);

impl Waiting {
    /// A member asks for one of its clients.
    pub(crate) fn note(&self, id: MemberId) {
        let mut asked = self.0.lock().expect("no section of this lock panics");
        asked.insert(id, Instant::now());
    }

    fn has(&self, id: MemberId) -> bool {
        let asked = self.0.lock().expect("no section of this lock panics");
        asked.get(&id).is_some_and(|at| at.elapsed() < CLIENTS_LAST)
    }
}

/// Makes the connections openraft asks for.
pub(crate) struct Peers {
    caller: Caller,
    places: Places,
    log: Log,
    /// Numbers the snapshot transfers of this process.
    transfers: Arc<AtomicU64>,
}

impl Peers {
    pub(crate) fn new(caller: Caller, places: Places, log: Log) -> Peers {
        Peers { caller, places, log, transfers: Arc::default() }
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Link;

    async fn new_client(&mut self, target: MemberId, place: &Place) -> Link {
        self.places.learn(target, place);
        Link {
            caller: self.caller.clone(),
            places: self.places.clone(),
            log: self.log.clone(),
            target,
            transfers: self.transfers.clone(),
            lacks: false,
        }
    }
}

/// The sending side of Raft towards one member.
pub(crate) struct Link {
    caller: Caller,
    places: Places,
    target: MemberId,
    /// This member's own.
    log: Log,
    transfers: Arc<AtomicU64>,
    /// The member was asked, and does not have all that the leader came with.
    lacks: bool,
}

impl Link {
    async fn ask(&self, request: &Request, action: RPCTypes, timeout: Duration) -> Rpc<Answer> {
        let begun = Instant::now();
        let answer = self.caller.ask(self.places.peer(self.target), request, timeout).await;
        answer.map_err(|error| match error {
            AskError::Lost(_) if begun.elapsed() >= timeout => {
                let (id, target) = (self.caller.identity.member_id, self.target);
                RPCError::Timeout(Timeout { action, id, target, timeout })
            }
            error => RPCError::Unreachable(Unreachable::new(&error)),
        })
    }

    async fn append(
        &mut self,
        request: AppendEntriesRequest<Types>,
        timeout: Duration,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let request = Request::Append(request);
        let response = match self.ask(&request, RPCTypes::AppendEntries, timeout).await? {
            Answer::Append(response) => response,
            _ => return unexpected(),
        };
        let confirmed = match &response {
            AppendEntriesResponse::Success => last,
            AppendEntriesResponse::PartialSuccess(log_id) => *log_id,
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
        };
        self.caller.ledger.note(self.target, None, confirmed);
        Ok(response)
    }

    /// Instead of entries that lie before the end of what the leader came with, asks whether the
    /// member has that end: if so it has those entries too, and openraft may know. `None` if they
    /// are to be sent. DECISIONS.md, D120, says why the answer is right, and why openraft takes it
    /// although it goes beyond what was asked for; only its debug assertions do not.
    async fn leap(
        &mut self,
        request: &AppendEntriesRequest<Types>,
    ) -> Rpc<Option<AppendEntriesResponse<Types>>> {
        if self.lacks || cfg!(debug_assertions) {
            return Ok(None);
        }
        let last = request.entries.last().map(|entry| entry.log_id);
        let end = self.log.inherited(&request.vote);
        if last.is_none() || end <= last {
            return Ok(None);
        }
        let question = AppendEntriesRequest {
            vote: request.vote,
            prev_log_id: end,
            entries: Vec::new(),
            leader_commit: request.leader_commit,
        };
        match self.append(question, APPEND_TIMEOUT).await? {
            AppendEntriesResponse::Success => Ok(Some(AppendEntriesResponse::PartialSuccess(end))),
            AppendEntriesResponse::HigherVote(vote) => {
                Ok(Some(AppendEntriesResponse::HigherVote(vote)))
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::PartialSuccess(_) => {
                self.lacks = true;
                Ok(None)
            }
        }
    }
}

/// What openraft has for a follower, in the order and at the time in which it is sent.
///
/// That something is committed goes with the next entries if they come at once, as they do where
/// one client writes again and again: alone it would cost both sides as much as they do, and they
/// would wait until it is answered. What comes later says the same and more, so the first may go.
///
/// Before each request others get their turn: the answer to the one before, which openraft has by
/// then, has often led to a commit, and that belongs into this one.
fn paced<S>(
    input: S,
    target: MemberId,
    waiting: Waiting,
) -> BoxStream<'static, AppendEntriesRequest<Types>>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let next = move |input: Option<S>| {
        let waiting = waiting.clone();
        async move {
            let mut input = input?;
            tasks::step_back().await;
            let request = input.next().await?;
            if !request.entries.is_empty() || waiting.has(target) {
                return Some((request, Some(input)));
            }
            let later = tokio::time::timeout(COMMIT_PAUSE, input.next()).await;
            match later {
                Ok(Some(later)) => Some((later, Some(input))),
                // A stream that has ended must not be asked again.
                Ok(None) => Some((request, None)),
                Err(_) => Some((request, Some(input))),
            }
        }
    };
    stream::unfold(Some(input), next).boxed()
}

fn unexpected<T>() -> Rpc<T> {
    let error = NetworkError::from_string("the member answered another question");
    Err(RPCError::Network(error))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        if let Some(response) = self.leap(&request).await? {
            return Ok(response);
        }
        let heartbeat = request.entries.is_empty();
        let timeout = if heartbeat { option.hard_ttl() } else { APPEND_TIMEOUT };
        self.append(request, timeout).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Types>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let requests = paced(input, self.target, self.caller.waiting.clone());
        stream_append_sequential(self, requests, option)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let request = Request::Vote(request);
        match self.ask(&request, RPCTypes::Vote, VOTE_TIMEOUT).await? {
            Answer::Vote(response) => {
                let given = response.vote_granted.then_some(response.vote);
                self.caller.ledger.note(self.target, given, None);
                Ok(response)
            }
            _ => unexpected(),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let request = Request::PreVote(request);
        match self.ask(&request, RPCTypes::Vote, option.hard_ttl()).await? {
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
        let number = self.transfers.fetch_add(1, Ordering::Relaxed);
        tracing::info!(to = self.target, number, meta = %snapshot.meta, "send a snapshot");
        let mut cancel = std::pin::pin!(cancel);
        for piece in transfer::pieces(vote, &snapshot, number) {
            if let Err(error) = self.caller.faults.pass("snapshot.send").await {
                return Err(StreamingError::Unreachable(Unreachable::new(&error)));
            }
            let timeout = if piece.last { INSTALL_TIMEOUT } else { PIECE_TIMEOUT };
            let request = Request::Piece(Box::new(piece));
            let answer = tokio::select! {
                answer = self.ask(&request, RPCTypes::InstallSnapshot, timeout) => answer?,
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
        match self.ask(&request, RPCTypes::TransferLeader, option.hard_ttl()).await? {
            Answer::Transfer(response) => Ok(response),
            _ => unexpected(),
        }
    }

    fn backoff(&self) -> Option<openraft::network::Backoff> {
        let delays =
            std::iter::successors(Some(RETRY_FIRST), |delay| Some((*delay * 2).min(RETRY_LAST)));
        Some(openraft::network::Backoff::new(delays))
    }
}

/// The receiving side of Raft: answers what other members ask.
pub(crate) struct Inbox {
    member: Member,
    receiver: Receiver,
    /// When a leader was last heard of. A std mutex: sections are short and never await.
    heard: Mutex<Option<Instant>>,
    /// How much room the disk has, as `Room`'s number.
    room: Arc<AtomicU8>,
}

fn failed(error: impl std::fmt::Display) -> Answer {
    Answer::Failed(error.to_string())
}

impl Inbox {
    pub(crate) fn new(
        member: Member,
        engine: Arc<dyn Engine>,
        room: Arc<AtomicU8>,
        faults: Faults,
    ) -> Inbox {
        let receiver = Receiver::new(engine, faults);
        Inbox { member, receiver, heard: Mutex::new(None), room }
    }

    /// How long ago a leader was heard of.
    pub(crate) fn heard(&self) -> Option<Duration> {
        let heard = self.heard.lock().expect("no section of this lock panics");
        heard.map(|at| at.elapsed())
    }

    /// Answers a request of Raft.
    pub(crate) async fn answer(&self, request: Request) -> Answer {
        let raft = &self.member.raft;
        match request {
            Request::Append(request) => self.append(request).await,
            Request::Vote(request) => raft.vote(request).await.map_or_else(failed, Answer::Vote),
            Request::PreVote(request) => {
                raft.pre_vote(request).await.map_or_else(failed, Answer::Vote)
            }
            Request::Transfer(request) => {
                raft.handle_transfer_leader(request).await.map_or_else(failed, Answer::Transfer)
            }
            Request::Piece(piece) => match self.receiver.take_in(*piece).await {
                Ok(None) => {
                    self.hear();
                    Answer::Piece(None)
                }
                Ok(Some((vote, snapshot))) => {
                    let installed = raft.install_full_snapshot(vote, snapshot).await;
                    installed.map_or_else(failed, |response| Answer::Piece(Some(response.vote)))
                }
                Err(why) => failed(why),
            },
            Request::Writes(_)
            | Request::ReadIndex
            | Request::Status
            | Request::Change(_)
            | Request::Promised => unreachable!("the store answers these"),
        }
    }

    fn hear(&self) {
        *self.heard.lock().expect("no section of this lock panics") = Some(Instant::now());
    }

    async fn append(&self, request: AppendEntriesRequest<Types>) -> Answer {
        let room = Room::of(self.room.load(Ordering::Relaxed));
        if room == Room::Brim && !request.entries.is_empty() {
            // Writing into a full disk would end this member; the leader asks again.
            return failed("its disk is full");
        }
        match self.member.raft.append_entries(request).await {
            Ok(AppendEntriesResponse::HigherVote(vote)) => {
                Answer::Append(AppendEntriesResponse::HigherVote(vote))
            }
            Ok(response) => {
                self.hear();
                Answer::Append(response)
            }
            Err(error) => failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
