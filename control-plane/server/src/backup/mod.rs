//! Backups: what is done with their files on a machine (`file`), and the ones that the leader makes
//! by itself (`schedule`) and puts somewhere (`destination`). The file's form is the store's; the
//! API server streams it (`apiserver/backup.rs`).

mod destination;
mod file;
mod schedule;

pub use destination::{Destination, DestinationError};
pub use file::{
    Inspection, Kind, RestoreFailed, RestoreOptions, RestoredCluster, inspect, restore,
};
pub use schedule::Schedule;
pub(crate) use schedule::run;
pub use wherry_store::{BackupContent, BackupError, BackupHead};
