//! openraft, as this crate uses it: its types under short names, its settings with their reasons,
//! and a thin member that speaks our words. What is above this file does not know openraft.
//!
//! Words: a *member* takes part in Raft; it *leads*, or it *follows*, as a *voter* or, until it has
//! caught up, as a *learner*.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, Fatal, ForwardReason, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::raft::{ClientWriteResponse, Precondition as Condition};
use openraft::type_config::alias::{
    CommittedLeaderIdOf, EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::{ChangeMembers, Instant as _, RaftState, ServerState, SnapshotPolicy};

use crate::Leadership;
use crate::errors::{MembershipError, ReadError, WriteError};
use crate::log::Log;
use crate::machine::{Growth, Image, Machine};
use crate::members::MemberId;
use crate::network::Peers;
use crate::runtime::Patient;
use crate::state::{Command, Outcome, Revision};

openraft::declare_raft_types!(
    /// What this store replicates.
    pub(crate) Types:
        D = Command,
        R = Outcome,
        Node = Place,
        AsyncRuntime = Patient,
);

/// A leader in its term.
type LeaderId = CommittedLeaderIdOf<Types>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type LogEntry = EntryOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type StoredMembership = StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<Types>;
pub(crate) type Snapshot = SnapshotOf<Types, Image>;
pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// What the members know of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// What people call it.
    pub(crate) name: String,
    /// Where the others reach it.
    pub(crate) address: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// A leader shows itself this often, and an answer that takes longer does not count: members may be
/// so far from each other, and so long may a follower's fsync take. Three of them fit into the time
/// after which a follower campaigns at the earliest.
const HEARTBEAT_MS: u64 = 150;

/// A follower campaigns after the longer one plus a random time between both without a leader: one
/// that crashed is replaced 0.55 to 0.9 s after it, within the 2 s that are designed for. Votes may
/// take longer where disks are slow (see `runtime`).
const ELECTION_MIN_MS: u64 = 250;
const ELECTION_MAX_MS: u64 = 450;

/// A snapshot of the whole state may take this long to a member.
const SNAPSHOT_TIMEOUT_MS: u64 = 10 * 60_000;

/// A write that is not answered by then, although a majority answers, may or may not happen; the
/// caller is told so.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A leader that no majority has answered for so long tells its waiting writers that it does not
/// know: nobody waits for 2 s on a minority.
const MAJORITY_LOST: Duration = Duration::from_millis(1200);

/// How often a waiting writer looks whether there is a majority.
const MAJORITY_LOOK: Duration = Duration::from_millis(100);

/// Heartbeats of a new leader are answered within a few of these.
const CONFIRM_RETRY: Duration = Duration::from_millis(5);

/// A read that finds no majority by then is refused.
const READ_TIMEOUT: Duration = Duration::from_millis(1200);

/// Changes of the membership may take this long once they are proposed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A leader takes a snapshot, which is a root, much faster.
const COMPACT_TIMEOUT: Duration = Duration::from_secs(10);

fn config() -> openraft::Config {
    openraft::Config {
        cluster_name: "wherry".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        // `Growth` says when, by bytes and time, and what may be purged then.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        // A member that cannot win does not depose a leader who can.
        enable_pre_vote: Some(true),
        // A restarted leader asks for votes again: its state may be behind what it served before.
        enable_leader_restore: Some(false),
        // A member that lost its data must not be made good by its leader in silence.
        allow_log_reversion: Some(false),
        ..openraft::Config::default()
    }
}

/// A running member.
#[derive(Clone)]
pub(crate) struct Member {
    id: MemberId,
    /// For the receiving side of the network.
    pub(crate) raft: Raft,
}

/// Why a Raft member does not start or does not come to lead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

fn start_error(error: impl fmt::Display) -> StartError {
    StartError(error.to_string())
}

/// The cluster as a member sees it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) leader: Option<MemberId>,
    pub(crate) places: BTreeMap<MemberId, Place>,
    pub(crate) voters: BTreeSet<MemberId>,
    /// Those that vote whatever becomes of a change that is under way.
    pub(crate) established: BTreeSet<MemberId>,
    /// A change is under way.
    pub(crate) joint: bool,
    /// The log entry of the membership.
    pub(crate) membership: Option<LogId>,
    /// Whether that entry is committed.
    pub(crate) settled: bool,
    pub(crate) last_index: u64,
    /// On the leader: how far each member's log is known to match.
    pub(crate) matched: BTreeMap<MemberId, u64>,
    /// On the leader: how long ago each member answered.
    pub(crate) heard: BTreeMap<MemberId, Duration>,
}

/// What became of a change of the membership.
pub(crate) type Changed = Result<(), MembershipError>;

impl Member {
    /// Starts the member. With an empty log it waits until it founds a cluster or is taken into
    /// one.
    pub(crate) async fn start(
        id: MemberId,
        peers: Peers,
        log: Log,
        machine: Machine,
    ) -> Result<Member, StartError> {
        let config = Arc::new(config().validate().map_err(start_error)?);
        let raft = Raft::new(id, config, peers, log, machine).await;
        let raft = raft.map_err(start_error)?;
        Ok(Member { id, raft })
    }

    pub(crate) fn id(&self) -> MemberId {
        self.id
    }

    /// Founds a cluster with this member alone, unless it is in one already.
    pub(crate) async fn found(&self, place: Place) -> Result<(), StartError> {
        if self.raft.is_initialized().await.map_err(start_error)? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.id, place)]);
        self.raft.initialize(members).await.map_err(start_error)
    }

    /// Whether this member is the only voter. Asked of Raft itself, for the metrics come later.
    async fn is_alone(&self) -> Result<bool, StartError> {
        let id = self.id;
        let alone =
            move |state: &RaftState<Types>| state.membership_state.effective().voter_ids().eq([id]);
        self.raft.with_raft_state(alone).await.map_err(start_error)
    }

    /// While this member is alone: waits until it leads and its state is at least what it was
    /// before it stopped. With others it may serve as soon as one of them leads.
    pub(crate) async fn ready(&self, timeout: Duration) -> Result<(), StartError> {
        if !self.is_alone().await? {
            return Ok(());
        }
        let wait = self.raft.wait(Some(timeout));
        wait.state(ServerState::Leader, "lead").await.map_err(start_error)?;
        let recovered = self.raft.wait_for_recovery(Some(timeout)).await;
        recovered.map_err(start_error)?;
        Ok(())
    }

    /// Waits until the state is at least what it was before the member stopped.
    pub(crate) async fn recovered(&self) -> bool {
        self.raft.wait_for_recovery(None).await.is_ok()
    }

    /// The newest term this member knows of.
    pub(crate) fn term(&self) -> u64 {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.vote.leader_id.term
    }

    /// A vote that this member has had from another one: whoever it follows has voted for itself.
    pub(crate) fn own_vote_of(&self, id: MemberId) -> Option<Vote> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader_id = metrics.vote.leader_id;
        (leader_id.node_id == id).then_some(Vote { leader_id, committed: false })
    }

    /// Whether this member leads, as far as it knows.
    pub(crate) fn is_leading(&self) -> bool {
        self.majority_age().is_some()
    }

    /// Where a member is.
    pub(crate) fn address(&self, id: MemberId) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&id).map(|place| place.address.clone())
    }

    /// Whether a member is in the last membership that is known to be committed.
    pub(crate) fn knows(&self, id: MemberId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.committed_membership_config.get_node(&id).is_some()
    }

    /// The cluster as this member sees it now.
    pub(crate) fn view(&self) -> View {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let replication = metrics.replication.iter().flatten();
        let heartbeat = metrics.heartbeat.iter().flatten();
        let index = |log_id: &LogId| log_id.index;
        let committed = metrics.committed_membership_config.get_joint_config();
        let in_all = committed.iter().cloned().reduce(|one, other| &one & &other);
        View {
            leader: metrics.current_leader,
            places: membership.nodes().map(|(id, place)| (*id, place.clone())).collect(),
            voters: membership.voter_ids().collect(),
            established: in_all.unwrap_or_default(),
            joint: membership.get_joint_config().len() > 1,
            membership: *membership.log_id(),
            settled: membership.log_id() == metrics.committed_membership_config.log_id(),
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: replication
                .map(|(id, log_id)| (*id, log_id.as_ref().map_or(0, index)))
                .collect(),
            heard: heartbeat
                .filter_map(|(id, at)| at.as_ref().map(|at| (*id, at.elapsed())))
                .collect(),
        }
    }

    /// Waits for the cluster to look like this; `None` if it does not in time.
    pub(crate) async fn until(
        &self,
        timeout: Duration,
        like: impl Fn(&View) -> bool,
    ) -> Option<View> {
        let mut metrics = self.raft.metrics();
        let waiting = async {
            loop {
                drop(metrics.borrow_and_update());
                let view = self.view();
                if like(&view) {
                    return Some(view);
                }
                // How long ago a member answered changes without a change of the metrics.
                let changed = tokio::time::timeout(MAJORITY_LOOK, metrics.changed());
                if let Ok(Err(_)) = changed.await {
                    return None;
                }
            }
        };
        tokio::time::timeout(timeout, waiting).await.ok().flatten()
    }

    /// How long ago a majority answered this leader; `None` if it does not lead.
    pub(crate) fn majority_age(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return None;
        }
        if metrics.membership_config.voter_ids().eq([self.id]) {
            return Some(Duration::ZERO);
        }
        let acked = metrics.last_quorum_acked.as_ref();
        Some(acked.map_or(Duration::MAX, |acked| acked.elapsed()))
    }

    /// Returns when there has been no majority for a while.
    async fn majority_lost(&self) {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(MAJORITY_LOOK).await;
            let waited = begun.elapsed();
            let lost = match self.majority_age() {
                // A new leader has not been answered yet.
                Some(Duration::MAX) | None => waited,
                Some(age) => age,
            };
            if lost >= MAJORITY_LOST && waited >= MAJORITY_LOST / 2 {
                return;
            }
        }
    }

    /// Proposes a write, in no later term than `fence`, and waits until it is applied here. A leader
    /// that no majority has confirmed yet, as each is in its first moments, gets until `confirm_by`
    /// before the write is refused.
    pub(crate) async fn propose(
        &self,
        command: Command,
        fence: u64,
        confirm_by: Instant,
    ) -> Result<(Revision, Outcome), WriteError> {
        let forward = loop {
            let Some(leader) = self.leads_until(fence) else {
                return Err(self.not_leader());
            };
            let write = self.write_as(leader, command.clone());
            let answer = tokio::select! {
                answer = tokio::time::timeout(WRITE_TIMEOUT, write) => answer,
                () = self.majority_lost() => return Err(WriteError::Unknown),
            };
            match answer {
                Ok(Some(Ok(response))) => return Ok((response.log_id.index, response.data)),
                Ok(Some(Err(ClientWriteError::ForwardToLeader(forward)))) => {
                    let unconfirmed = forward.reason == ForwardReason::LeaseExpired;
                    if !unconfirmed || Instant::now() > confirm_by {
                        break forward;
                    }
                    // Refused before it was written anywhere, so it may be proposed again.
                    tokio::time::sleep(CONFIRM_RETRY).await;
                }
                // Stopped, discarded here, or not heard of in time: another leader may still commit
                // it.
                Ok(None | Some(Err(_))) | Err(_) => return Err(WriteError::Unknown),
            }
        };
        let leader = forward.leader_id;
        let address = forward.leader_node.map(|place| place.address);
        Err(WriteError::NotLeader { leader, address })
    }

    /// What this member leads as, if it does, and in no later term than this.
    fn leads_until(&self, fence: u64) -> Option<LeaderId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader_id = metrics.vote.leader_id;
        let leads = metrics.state == ServerState::Leader && leader_id.term <= fence;
        leads.then_some(leader_id)
    }

    /// The refusal of a write that this member may not propose.
    fn not_leader(&self) -> WriteError {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.filter(|leader| *leader != self.id);
        let place = leader.and_then(|leader| metrics.membership_config.get_node(&leader).cloned());
        WriteError::NotLeader { leader, address: place.map(|place| place.address) }
    }

    /// Proposes a write, unless this member does not lead as it did; `None` if it has stopped.
    async fn write_as(
        &self,
        leader: LeaderId,
        command: Command,
    ) -> Option<Result<ClientWriteResponse<Types>, ClientWriteError<Types>>> {
        let (responder, written) = ProgressResponder::complete_only();
        self.raft.write(command).responder(responder).with_leader(leader).await.ok()?;
        written.await.ok()
    }

    /// The revision a state must have reached to show everything that was answered before this
    /// call.
    pub(crate) async fn read_index(&self) -> Result<Revision, ReadError> {
        let option = LinearizerOption::new(Some(Duration::ZERO), true);
        let read = self.raft.get_read_linearizer(option.with_wait_timeout(READ_TIMEOUT));
        match tokio::time::timeout(2 * READ_TIMEOUT, read).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                let address = forward.leader_node.map(|place| place.address);
                Err(ReadError::NotLeader { leader: forward.leader_id, address })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoMajority)
            }
            Ok(Err(RaftError::Fatal(_))) => Err(ReadError::Stopped),
        }
    }

    /// The index of a new log entry that says nothing: a number that nothing else ever had.
    pub(crate) async fn allot(&self) -> Result<u64, MembershipError> {
        match tokio::time::timeout(CHANGE_TIMEOUT, self.raft.write_blank()).await {
            Ok(Ok(response)) => Ok(response.log_id.index),
            Ok(Err(RaftError::Fatal(_))) => Err(MembershipError::Stopped),
            Ok(Err(RaftError::APIError(_))) => Err(MembershipError::NoLeader),
            Err(_) => Err(MembershipError::Unknown),
        }
    }

    /// Changes the membership, if it is still the one of `before`. Returns when the change, with
    /// all of its steps, is committed.
    pub(crate) async fn change(
        &self,
        before: &View,
        changes: ChangeMembers<MemberId, Place>,
    ) -> Changed {
        let same = Condition::LastMembershipLogId { last_membership_log_id: before.membership };
        // Not retained: a voter that is removed does not become a learner.
        let change = self.raft.change_membership_if(changes, false, [same]);
        match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(_))) => Err(MembershipError::Stopped),
            Ok(Err(RaftError::APIError(error))) => Err(match error {
                ClientWriteError::ForwardToLeader(_) => MembershipError::NoLeader,
                ClientWriteError::LogEntryDiscarded(_) => MembershipError::Unknown,
                ClientWriteError::PreconditionFailed(_) => MembershipError::Changed,
                ClientWriteError::ChangeMembershipError(error) => change_error(error),
            }),
            Err(_) => Err(MembershipError::Unknown),
        }
    }

    /// Finishes a change that an earlier leader left half done.
    pub(crate) async fn settle(&self, before: &View) -> Changed {
        if !before.joint {
            return Ok(());
        }
        self.change(before, ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    /// Asks another voter to lead, and waits until this member follows it.
    pub(crate) async fn hand_over(&self, to: MemberId, timeout: Duration) -> bool {
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let wait = self.raft.wait(Some(timeout));
        wait.current_leader(to, "hand over").await.is_ok()
    }

    /// Whether this member may campaign.
    pub(crate) fn may_campaign(&self, may: bool) {
        self.raft.runtime_config().elect(may);
    }

    /// Calls `tell` with who leads, now and whenever it changes, until the member stops; returns
    /// why it did.
    pub(crate) async fn follow_leadership(&self, mut tell: impl FnMut(Leadership)) -> String {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leadership = {
                let metrics = metrics.borrow_and_update();
                match metrics.state {
                    ServerState::Leader => Leadership::Leader { term: metrics.vote.leader_id.term },
                    _ => {
                        let leader = metrics.current_leader.filter(|leader| *leader != self.id);
                        Leadership::Follower { leader }
                    }
                }
            };
            tell(leadership);
            if metrics.changed().await.is_err() {
                tell(Leadership::Follower { leader: None });
                return self.end_reason();
            }
        }
    }

    fn end_reason(&self) -> String {
        match &self.raft.metrics().borrow_watched().running_state {
            Ok(()) | Err(Fatal::Stopped) => "it was shut down".to_owned(),
            Err(fatal) => fatal.to_string(),
        }
    }

    /// Takes a snapshot and purges what of the log is behind it and not worth keeping.
    pub(crate) async fn compact(&self, growth: &Growth, applied: Revision, full: bool) {
        // An error means that the member has stopped, which `follow_leadership` reports.
        let _ = self.raft.trigger().snapshot().await;
        let wait = self.raft.wait(Some(COMPACT_TIMEOUT));
        let covers = |log_id: LogId| log_id.index >= applied;
        let taken = wait.metrics(|metrics| metrics.snapshot.is_some_and(covers), "snapshot").await;
        if taken.is_err() {
            tracing::warn!(applied, "the snapshot was not taken in time, the log is kept");
            return;
        }
        if let Some(last) = growth.purge_to(full) {
            let _ = self.raft.trigger().purge_log(last.min(applied)).await;
        }
    }

    pub(crate) async fn shutdown(&self) {
        let _ = self.raft.shutdown().await;
    }
}

fn change_error(error: ChangeMembershipError<LeaderId, MemberId>) -> MembershipError {
    match error {
        ChangeMembershipError::InProgress(_) => MembershipError::Changed,
        ChangeMembershipError::EmptyMembership(_) => MembershipError::LastVoter,
        ChangeMembershipError::LearnerNotFound(error) => {
            MembershipError::NoSuchMember { id: error.node_id }
        }
        _ => MembershipError::Changed,
    }
}
