//! Chaos: three real members under load while everything that can fail does, and proof afterwards
//! that no promise was broken.
//!
//! ```text
//!  nemesis (plan = f(seed)) ─► cluster: processes, network (proxies), disks
//!  clients, followers, backups ─► API of every member ─► history (JSON lines)
//!  history ─► check: revisions · linear · watches ─► report
//! ```
//!
//! Nothing here knows the store from inside: what is judged is what clients were told.

pub mod backups;
pub mod check;
pub mod client;
pub mod cluster;
pub mod disk;
pub mod flipped;
pub mod follower;
pub mod history;
pub mod nemesis;
pub mod network;
pub mod report;
pub mod run;
pub mod seeded;

pub use run::{Options, Outcome, run};
