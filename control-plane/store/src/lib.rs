//! The replicated, revisioned key space with watch, in which a Wherry control plane keeps
//! everything. It knows bytes: what keys and values mean is its caller's business.
//!
//! ```text
//!            put, delete                         read, current, at, watch
//!                 │                                        ▲
//!   Store ─▶ Raft log ─▶ committed ─▶ state machine ─▶ key space in memory (immutable roots)
//!     ▲           │                        │
//!     │           └────────▶ one writer thread, group commit ─▶ RocksDB and superblock
//!     └── other members, over a transport that the caller brings
//! ```
//!
//! Words:
//! - *Revision*: the Raft log index of a write, and thereby the number of the state it led to.
//!   Revisions grow but are not consecutive, for Raft has log entries of its own.
//! - *Snapshot*: the whole key space at one revision. Taking one costs nothing, and it never
//!   changes.
//! - *Window*: the last states and changes, which lists and watches can still ask for.
//! - *Member*: a process that takes part in Raft; one of them *leads* and takes the writes, all
//!   serve.
//!
//! Invariants:
//! - A write that was answered is on disk on a majority of members.
//! - A write's precondition is judged when the write is applied, so it is judged the same
//!   everywhere.
//! - A watch has no gaps and no repetitions; if it cannot go on without, it ends.
//! - After any failure to write or read its disk the store stops, and stays stopped.
//! - A folder that lost anything is not opened, and a member id is never given twice.
//!
//! Files: `store` is the face, with `errors`, `health`, `open`, `peers` (what it asks of other
//! members and answers them), `writes` (how a write finds the leader), `passing` (how several go
//! there together) and `tasks`; `state` is the state machine without I/O, `watch` the events and
//! who follows them, `check` the judgement whether members agree, `scrub` a second look at memory
//! and files, `members` who is in the cluster; `raft`, `runtime`, `log`, `machine`, `network`,
//! `transfer`, `wire` hold openraft, which nothing else knows; `silence` is what is told of members
//! that do not answer, `codec` how things are written and sent, `writer` the thread that writes
//! them, `engine` the disk, `superblock` what the disk must hold, `promise` what others remember of
//! it, `space` how much it can; `keyring` is encryption at rest, with `reseal`; `backup` and
//! `restore` are what they are called; `faults` is for tests.

mod backup;
mod check;
mod codec;
mod engine;
mod errors;
mod faults;
mod health;
mod keyring;
mod log;
mod machine;
mod members;
mod network;
mod open;
mod passing;
mod peers;
mod promise;
mod raft;
mod reseal;
mod restore;
mod runtime;
mod scrub;
mod silence;
mod space;
mod state;
mod store;
mod superblock;
mod tasks;
mod transfer;
mod watch;
mod wire;
mod writer;
mod writes;

pub use backup::{
    Backup, BackupContent, BackupError, BackupHead, BackupObject, keyring_of_backup,
    keyring_place_of_backup, read_backup,
};
pub use errors::{
    CheckpointError, MembershipError, OpenError, ReadError, ResealError, ShutdownError, WriteError,
};
pub use faults::{Bug, Fault, Faults, POINTS};
pub use health::Health;
pub use keyring::{Cover, Fingerprint, KeyInfo, Keyring, KeyringError};
pub use members::{FOUNDER, MemberId, MemberStatus, Role};
pub use network::{PEER_BYTES_MAX, Peer, Transport};
pub use raft::StartError;
pub use restore::{RestoreError, RestoreTarget, Restored, restore};
pub use space::too_full;
pub use state::{Entry, Precondition, Revision, Snapshot, Window, WindowError};
pub use store::{Config, Engine, Leadership, Store, WRITE_BYTES_MAX};
pub use superblock::{Identity, identity};
pub use watch::{Change, Event, Mark, Watch, WatchEnd};
