//! The replicated, revisioned key space with watch, in which a Wherry control plane keeps
//! everything. It knows bytes: what keys and values mean is its caller's business.
//!
//! ```text
//!            put, delete                         read, current, at, watch
//!                 │                                        ▲
//!   Store ─▶ Raft log ─▶ committed ─▶ state machine ─▶ key space in memory (immutable roots)
//!                 │                        │
//!                 └────────▶ one writer thread, group commit ─▶ RocksDB
//! ```
//!
//! Words:
//! - *Revision*: the Raft log index of a write, and thereby the number of the state it led to.
//!   Revisions grow but are not consecutive, for Raft has log entries of its own.
//! - *Snapshot*: the whole key space at one revision. Taking one costs nothing, and it never
//!   changes.
//! - *Window*: the last states and changes, which lists and watches can still ask for.
//! - *Member*: a process that takes part in Raft; one of them *leads* and takes the writes.
//!
//! Invariants:
//! - A write that was answered is on disk on a majority of members.
//! - A write's precondition is judged when the write is applied, so it is judged the same
//!   everywhere.
//! - A watch has no gaps and no repetitions; if it cannot go on without, it ends.
//! - After any failure to write or read its disk the store stops, and stays stopped.
//!
//! Files: `store` is the face, `state` the state machine without I/O, `watch` the events and who
//! follows them; `raft`, `log`, `machine`, `network` hold openraft, which nothing else knows;
//! `codec` is what is written and sent, `writer` the thread that writes it, `engine` the disk.

mod codec;
mod engine;
mod log;
mod machine;
mod network;
mod raft;
mod state;
mod store;
mod watch;
mod writer;

pub use network::Transport;
pub use raft::StartError;
pub use state::{Entry, Precondition, Revision, Snapshot, Window, WindowError};
pub use store::{
    Config, Engine, Health, Leadership, OpenError, ReadError, ShutdownError, Store,
    WRITE_BYTES_MAX, WriteError,
};
pub use watch::{Change, Event, Watch, WatchEnd};
