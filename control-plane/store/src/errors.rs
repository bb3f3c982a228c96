//! Why an operation of the store fails, one type an operation. Each message says what is wrong and,
//! where a person reads it, what to do.

use std::path::PathBuf;

use crate::keyring::Fingerprint;
use crate::members::MemberId;
use crate::raft::StartError;
use crate::state::{Entry, Revision};

/// Why a store does not open. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store in {path:?} is in use by another process; stop that process, or choose another \
         data folder"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// What lies there cannot be trusted.
    #[error(
        "the store in {path:?} is damaged ({detail}); keep a copy of the folder, then restore it \
         from a backup or let this machine join again as a new member with an empty folder"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// It is sound, and of another format.
    #[error(
        "the store in {path:?} was written by another version of wherry ({detail}); start it with \
         the version that wrote it last"
    )]
    OtherVersion {
        /// The folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// What lies there was encrypted with a key that is not in the keyring.
    #[error(
        "the store in {path:?} is encrypted with key {key}, which the keyring {keyring:?} does not \
         have; put the cluster's own keyring there, or name it"
    )]
    Key {
        /// The folder.
        path: PathBuf,
        /// The key that is missing.
        key: Fingerprint,
        /// Where it was looked for.
        keyring: PathBuf,
    },
    /// The disk has lost what it had confirmed.
    #[error(
        "the store in {path:?} has lost data: its superblock promises {promised}, the database has \
         {found}; never start it again under this member id: remove the member from its cluster \
         (`wherry member remove`) and let this machine join with an empty folder, or restore a \
         cluster of one member from a backup"
    )]
    Behind {
        /// The folder.
        path: PathBuf,
        /// What had been on disk.
        promised: String,
        /// What is there now.
        found: String,
    },
    /// It is older than what this member has told another one.
    #[error(
        "the store in {path:?} is older than what this member has done: it has given member \
         {witness} its {promised}, the folder has {found}; it was put back to an earlier copy, or \
         its disk has lost data; never start it again under this member id: remove the member from \
         its cluster (`wherry member remove`) and let this machine join with an empty folder"
    )]
    Older {
        /// The folder.
        path: PathBuf,
        /// Who remembers.
        witness: MemberId,
        /// What the member had promised.
        promised: String,
        /// What is there now.
        found: String,
    },
    /// The folder belongs to somebody else.
    #[error(
        "the store in {path:?} belongs to member {found}, this is member {wanted}; start the \
         member with its own folder"
    )]
    OtherMember {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: MemberId,
        /// Who asked.
        wanted: MemberId,
    },
    /// The folder is of another cluster.
    #[error(
        "the store in {path:?} belongs to cluster {found:032x}, this is cluster {wanted:032x}; \
         start the member with its own folder, or empty it to join anew"
    )]
    OtherCluster {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: u128,
        /// Who asked.
        wanted: u128,
    },
    /// A member that joins must know which cluster.
    #[error("the folder {path:?} is empty and no cluster to join was named")]
    NoCluster {
        /// The folder.
        path: PathBuf,
    },
    /// The folder cannot be used.
    #[error("the folder {path:?} cannot be used for a store; check its owner, rights and disk")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Raft does not start.
    #[error("the store's Raft member did not start; its log says more, a restart is safe")]
    Raft(#[source] StartError),
    /// The process cannot start a thread.
    #[error("the store's writer thread did not start; check the limits of the process")]
    Thread(#[source] std::io::Error),
}

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Its precondition does not hold.
    #[error("the precondition does not hold")]
    Conflict {
        /// What the key held when the write was judged.
        current: Option<Entry>,
    },
    /// Nobody who takes writes could be reached in time. Nothing happened.
    #[error("no member that leads can be reached")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<MemberId>,
        /// Where it is.
        address: Option<String>,
    },
    /// Not answered in time, or the leader changed meanwhile: it may happen, now or later. Read, or
    /// try again with a precondition.
    #[error("it is not known whether the write happened")]
    Unknown,
    /// The disk is nearly full. Deletes still work.
    #[error("the disk of the control plane is nearly full; delete objects or make room")]
    Full,
    /// Key and value are too large.
    #[error("{size} bytes are too many for one object, {limit} are allowed")]
    TooLarge {
        /// How large they are.
        size: usize,
        /// How large they may be.
        limit: usize,
    },
    /// The store has stopped; `health` and `stopped` say why.
    #[error("the store has stopped")]
    Stopped,
}

/// Why a linearizable read is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader could be reached in time.
    #[error("no member that leads can be reached")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<MemberId>,
        /// Where it is.
        address: Option<String>,
    },
    /// The leader is known, but no majority answers in time.
    #[error("no majority of members answers")]
    NoMajority,
    /// This member has not caught up with the others yet.
    #[error("this member is still catching up with the others; ask another one")]
    Behind,
    /// This member's state differs from that of the majority.
    #[error("this member's data differs from the majority's; ask another one")]
    Quarantined,
    /// The store has stopped; `health` and `stopped` say why.
    #[error("the store has stopped")]
    Stopped,
}

/// Why the members of the cluster did not change, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Nobody who could change it was reached. Nothing happened.
    #[error("no member that leads can be reached; try again once a majority of members runs")]
    NoLeader,
    /// The id is not that of a member.
    #[error("there is no member {id}; `wherry member list` shows the members")]
    NoSuchMember {
        /// The id asked for.
        id: MemberId,
    },
    /// Only a voter can lead.
    #[error("member {id} is a learner; it can lead once it has caught up and votes")]
    NotAVoter {
        /// The learner.
        id: MemberId,
    },
    /// A voter has that name or address.
    #[error(
        "member {id} already has the name {name:?} or the address {address}; choose others with \
         --name and --listen or --advertise; if member {id} lost its data or is gone for good, \
         remove it first with `wherry member remove {id}`"
    )]
    Taken {
        /// The voter.
        id: MemberId,
        /// Its name.
        name: String,
        /// Its address.
        address: String,
    },
    /// The member is still too far behind, to vote or to lead.
    #[error(
        "member {id} has not caught up in time, it lacks {behind} log entries; check that it runs \
         and can be reached, then try again"
    )]
    NotCaughtUp {
        /// The member.
        id: MemberId,
        /// How many log entries it lacks.
        behind: u64,
    },
    /// The members that would be left could not decide anything.
    #[error(
        "without member {id} no majority of the voters left could be reached; bring the others \
         back, or add a member first"
    )]
    LosesMajority {
        /// Whom to remove.
        id: MemberId,
    },
    /// There must be one.
    #[error("the last voter cannot be removed; let another member join first")]
    LastVoter,
    /// Too many.
    #[error("the cluster has {0} members, more are not allowed; remove one first")]
    TooMany(usize),
    /// Somebody else changed the members at the same time.
    #[error("the members changed meanwhile; look at `wherry member list` and try again")]
    Changed,
    /// No answer in time: it may have happened, or still happen.
    #[error("it is not known whether the members changed; look at `wherry member list`")]
    Unknown,
    /// The member asked for leadership did not take it in time.
    #[error(
        "member {id} did not come to lead in time, see in `wherry member list` whether it answers; \
         the cluster goes on with its leader"
    )]
    NotTaken {
        /// Who should have.
        id: MemberId,
    },
    /// The store has stopped.
    #[error("the store has stopped")]
    Stopped,
}

/// Why a copy of the store's files was not made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is in memory.
    #[error("a store in memory has no files to copy")]
    InMemory,
    /// The disk said no.
    #[error("the checkpoint was not made: {0}")]
    Disk(String),
    /// The store stopped before the state was on disk.
    #[error("the store has stopped at revision {0}")]
    Stopped(Revision),
}

/// Values could not be encrypted anew; the store has stopped, or its disk fails.
#[derive(Clone, Debug, thiserror::Error)]
#[error("encrypting the stored values with the newest key failed: {0}")]
pub struct ResealError(pub(crate) String);

/// The writer thread panicked; what was answered is on disk all the same.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store's writer thread panicked, see the log")]
pub struct ShutdownError;
