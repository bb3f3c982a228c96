//! Restoring a backup: writing, offline, the folder of a member that founds a new cluster with the
//! backup's content.
//!
//! ```text
//!  backup ─▶ read and checked to its end ─▶ read again ─▶ objects, marks, superblock
//! ```
//!
//! Keys, values and revisions of objects are those of the backup. The new cluster's log begins far
//! behind them ([`REVISION_STEP`]), so that whoever still knows a revision that the old cluster
//! reached after the backup was made is told that it is gone, instead of being shown another
//! history under the same numbers.
//!
//! Invariants:
//! - Nothing is written before the whole backup has been found sound. What makes the folder a store
//!   is written last; the caller puts the folder in its place by one rename.
//! - The new cluster has an id of its own: members of the old one and it refuse each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::Membership;
use openraft::impls::leader_id_adv::LeaderId;

use crate::backup::{BackupContent, BackupError, read_backup};
use crate::engine::rocks::{self, Rocks};
use crate::engine::{Batch, EngineError, sealed};
use crate::errors::OpenError;
use crate::faults::Faults;
use crate::keyring::Keyring;
use crate::raft::{LogId, Place, StoredMembership};
use crate::state::{Entry, Revision, object_hash};
use crate::superblock::{self, Anchor, Identity, Superblock};
use crate::{log, machine};

/// How far the new cluster's first revision lies behind the backup's. At a thousand writes a second
/// the old cluster would have needed eleven days to get there after the backup.
pub const REVISION_STEP: Revision = 1_000_000_000;

/// Written to disk at once while restoring.
const BATCH_BYTES: usize = 4 << 20;

/// Where a backup is restored to.
#[derive(Clone, Debug)]
pub struct RestoreTarget {
    /// The store's folder, which must not exist yet.
    pub folder: PathBuf,
    /// The new cluster's id.
    pub cluster_id: u128,
    /// The first member.
    pub member_id: crate::MemberId,
    /// Its name.
    pub name: String,
    /// Where others will reach it.
    pub address: String,
    /// The new cluster's encryption at rest.
    pub keys: Option<Arc<Keyring>>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What the backup was found to be.
    pub content: BackupContent,
    /// The new cluster's first revision.
    pub revision: Revision,
}

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is not usable.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A file or folder cannot be used.
    #[error("cannot {what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The new store cannot be opened.
    #[error("the new store cannot be made")]
    Open(#[from] OpenError),
    /// The new store cannot be written.
    #[error("the new store cannot be written: {0}")]
    Write(String),
}

impl From<EngineError> for RestoreError {
    fn from(error: EngineError) -> RestoreError {
        RestoreError::Write(error.to_string())
    }
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::File { what, path, source }
}

/// Restores the backup in a file; `keys` decrypt what is encrypted in it.
pub fn restore(
    backup: &Path,
    keys: Option<&Keyring>,
    target: &RestoreTarget,
) -> Result<Restored, RestoreError> {
    let open = || -> Result<io::BufReader<File>, RestoreError> {
        let file = File::open(backup).map_err(file_error("read", backup))?;
        Ok(io::BufReader::with_capacity(1 << 20, file))
    };
    let content = read_backup(open()?, keys, |_, _| Ok::<(), RestoreError>(()))?;
    if content.content_sha256.is_none() {
        let key = content.keys.first().expect("only a sealed value keeps the hash from being made");
        return Err(BackupError::Key(*key).into());
    }
    let revision = content.head.revision + REVISION_STEP;

    let again = build(open()?, keys, target, revision)?;
    if again != content {
        return Err(changed().into());
    }
    Ok(Restored { content, revision })
}

fn changed() -> BackupError {
    BackupError::Damaged { at: 0, why: "it changed while it was read".to_owned() }
}

fn build(
    input: impl io::Read,
    keys: Option<&Keyring>,
    target: &RestoreTarget,
    revision: Revision,
) -> Result<BackupContent, RestoreError> {
    let base = &target.folder;
    rocks::make_folder(base).map_err(file_error("make", base))?;
    let identity = Identity { cluster_id: target.cluster_id, member_id: target.member_id };
    let mut block = Superblock::new(identity);
    let faults = Faults::default();
    let anchor = Arc::new(Anchor::new(Some(base.clone()), block, faults.clone()));
    let disk = Arc::new(Rocks::open(base, anchor, true, faults)?);
    let disk = sealed::wrap(disk, target.keys.clone());

    let mut batch = Batch::default();
    let mut hash = 0u128;
    let content = read_backup(input, keys, |object, value| {
        let value = value.ok_or_else(changed)?;
        let entry = Entry { value, created: object.created, modified: object.modified };
        hash = hash.wrapping_add(object_hash(&object.key, &entry));
        machine::put_entry(&mut batch, object.key.clone(), &entry);
        if batch.bytes >= BATCH_BYTES {
            disk.write(&std::mem::take(&mut batch), false)?;
        }
        Ok::<(), RestoreError>(())
    })?;

    let leader_id = LeaderId { term: 1, node_id: target.member_id };
    let log_id = LogId { leader_id, index: revision };
    let place = Place { name: target.name.clone(), address: target.address.clone() };
    let voters = BTreeSet::from([target.member_id]);
    let members = BTreeMap::from([(target.member_id, place)]);
    let membership = Membership::new(vec![voters], members);
    let membership = membership.expect("its one voter is among its members");
    let membership = StoredMembership::new(Some(log_id), membership);
    machine::put_beginning(&mut batch, membership, content.head.made_ms, hash);
    let vote = log::put_beginning(&mut batch, log_id);
    disk.write(&batch, true)?;
    disk.close();
    block.promise.add(Some(vote), Some(log_id));
    superblock::write(base, &block).map_err(file_error("write the superblock of", base))?;
    Ok(content)
}

#[cfg(test)]
mod tests;
