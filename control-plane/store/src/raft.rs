//! openraft, as this crate uses it: its types under short names, its settings with their reasons,
//! and a thin member that speaks our words. What is above this file does not know openraft.
//!
//! Words: a *member* takes part in Raft; it *leads* or it *follows*.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, LinearizableReadError, RaftError};
use openraft::impls::BasicNode;
use openraft::type_config::alias::{
    EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::{RaftState, ReadPolicy, ServerState, SnapshotPolicy};

use crate::log::Log;
use crate::machine::{Image, Machine};
use crate::network::Peers;
use crate::state::{Command, Outcome, Revision};
use crate::{Leadership, ReadError, WriteError};

openraft::declare_raft_types!(
    /// What this store replicates.
    pub(crate) Types:
        D = Command,
        R = Outcome,
);

pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type LogEntry = EntryOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type StoredMembership = StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<Types>;
pub(crate) type Snapshot = SnapshotOf<Types, Image>;
pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// A leader shows itself this often. Four of them fit into the shortest election timeout, so that a
/// stalled machine of two cores does not call elections.
const HEARTBEAT_MS: u64 = 80;

/// A follower campaigns after the longer one plus a random time between both without a leader: a
/// crashed leader is replaced after 0.75 to 1.0 s, within the 2 s that are designed for.
const ELECTION_MIN_MS: u64 = 250;
const ELECTION_MAX_MS: u64 = 500;

/// Entries between two snapshots. A snapshot costs nothing here (it is a root), so this only says
/// how long the log gets; `Growth` compacts by bytes as well.
const SNAPSHOT_ENTRIES: u64 = 10_000;

/// Entries kept behind a snapshot, for followers that are a little late.
const KEPT_ENTRIES: u64 = 2_000;

/// A snapshot of the whole state may take this long to a member.
const SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

/// A write that is not answered by then may or may not happen; the caller is told so.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A leader that hears of no majority for so long is not going to: a new one is elected meanwhile.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(2 * ELECTION_MAX_MS);

/// Heartbeats of a new leader are answered within a few of these.
const CONFIRM_RETRY: Duration = Duration::from_millis(5);

/// A read that finds no majority by then is refused.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

fn config() -> openraft::Config {
    openraft::Config {
        cluster_name: "wherry".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        replication_lag_threshold: 2 * SNAPSHOT_ENTRIES,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        // A member that cannot win does not depose a leader who can.
        enable_pre_vote: Some(true),
        // A restarted leader asks for votes again: its state may be behind what it served before.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}

/// A running member.
#[derive(Clone)]
pub(crate) struct Member {
    id: u64,
    /// For the receiving side of the network.
    pub(crate) raft: Raft,
}

/// Why a Raft member does not start or does not come to lead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

fn start_error(error: impl std::fmt::Display) -> StartError {
    StartError(error.to_string())
}

impl Member {
    /// Starts the member. With an empty log it waits until it founds a cluster or is taken into
    /// one.
    pub(crate) async fn start(
        id: u64,
        peers: Peers,
        log: Log,
        machine: Machine,
    ) -> Result<Member, StartError> {
        let config = Arc::new(config().validate().map_err(start_error)?);
        let raft = Raft::new(id, config, peers, log, machine).await;
        let raft = raft.map_err(start_error)?;
        Ok(Member { id, raft })
    }

    /// Founds a cluster with this member alone, unless it is in one already.
    pub(crate) async fn found(&self, address: String) -> Result<(), StartError> {
        if self.raft.is_initialized().await.map_err(start_error)? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.id, BasicNode { addr: address })]);
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

    /// Proposes a write and waits until it is applied here. A leader that no majority has confirmed
    /// yet, as each is in its first moments, gets some time before the write is refused.
    pub(crate) async fn propose(
        &self,
        command: Command,
    ) -> Result<(Revision, Outcome), WriteError> {
        let unconfirmed_until = Instant::now() + CONFIRM_TIMEOUT;
        let forward = loop {
            let write = self.raft.client_write(command.clone());
            match tokio::time::timeout(WRITE_TIMEOUT, write).await {
                Ok(Ok(response)) => return Ok((response.log_id.index, response.data)),
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                    let unconfirmed = forward.reason == ForwardReason::LeaseExpired;
                    if !unconfirmed || Instant::now() > unconfirmed_until {
                        break forward;
                    }
                    // Refused before it was written anywhere, so it may be proposed again.
                    tokio::time::sleep(CONFIRM_RETRY).await;
                }
                Ok(Err(RaftError::Fatal(_))) => return Err(WriteError::Stopped),
                // Discarded here, or not heard of in time: another leader may still commit it.
                Ok(Err(RaftError::APIError(_))) | Err(_) => return Err(WriteError::Unknown),
            }
        };
        let (leader, address) = (forward.leader_id, forward.leader_node.map(|node| node.addr));
        Err(WriteError::NotLeader { leader, address })
    }

    /// The revision a state must have reached to show everything that was answered before this
    /// call.
    pub(crate) async fn read_index(&self) -> Result<Revision, ReadError> {
        let read = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                let address = forward.leader_node.map(|node| node.addr);
                Err(ReadError::NotLeader { leader: forward.leader_id, address })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoMajority)
            }
            Ok(Err(RaftError::Fatal(_))) => Err(ReadError::Stopped),
        }
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

    /// Takes a snapshot, behind which the log can be purged.
    pub(crate) async fn compact(&self) {
        // An error means that the member has stopped, which `follow_leadership` reports.
        let _ = self.raft.trigger().snapshot().await;
    }

    pub(crate) async fn shutdown(&self) {
        let _ = self.raft.shutdown().await;
    }
}
