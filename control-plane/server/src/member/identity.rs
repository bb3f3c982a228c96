//! Which member of which cluster a data folder belongs to, and whether it may go on as that.
//!
//! The store knows it too, beside its data. `member.json` is kept apart from the store, so that a
//! member whose data was lost is noticed: under its old id it would vote as if it had never
//! promised anything, and the cluster could lose what it had acknowledged.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wherry_store::MemberId;

use crate::pki::{self, PkiError};

/// A member's own description in its data folder: who has one was started before.
pub const MEMBER_FILE: &str = "member.json";
/// Where the store is, below the data folder.
pub const STORE: &str = "store";

/// A member, as `member.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// In hex: JSON's numbers are too small.
    cluster: String,
    pub id: MemberId,
    pub name: String,
    /// It was taken into a cluster, so it never founds one.
    pub joined: bool,
    /// Its store has been opened once, so there must be data.
    pub opened: bool,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{} is not a member's description ({source}); put it back from a copy of the folder",
        path.display()
    )]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("cannot keep who this member is: {0}")]
    Write(#[from] PkiError),
    #[error(transparent)]
    Store(#[from] wherry_store::OpenError),
    #[error(
        "the data of member {name:?} (id {id}) is gone from {}; a member that lost its data must \
         not come back under its old id",
        store.display()
    )]
    Lost { id: MemberId, name: String, store: PathBuf },
    #[error(
        "{} says that this is member {kept} of cluster {kept_cluster}, the store beside it belongs \
         to member {stored} of cluster {stored_cluster}; start each member with its own folder",
        path.display()
    )]
    Other {
        path: PathBuf,
        kept: MemberId,
        kept_cluster: String,
        stored: MemberId,
        stored_cluster: String,
    },
}

impl Identity {
    pub fn new(cluster: u128, id: MemberId, name: &str, joined: bool) -> Identity {
        Identity {
            cluster: format!("{cluster:032x}"),
            id,
            name: name.to_owned(),
            joined,
            opened: false,
        }
    }

    /// The same member, whose store has been opened.
    pub fn opened(self) -> Identity {
        Identity { opened: true, ..self }
    }

    /// The cluster's id; None if the file was tampered with.
    pub fn cluster(&self) -> Option<u128> {
        u128::from_str_radix(&self.cluster, 16).ok()
    }

    /// Keeps it durably.
    pub fn keep(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(self).expect("plain fields are JSON");
        Ok(pki::write_private(&data_dir.join(MEMBER_FILE), &text)?)
    }
}

/// Whom a data folder belongs to; nobody, if it is new.
pub fn find(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = data_dir.join(MEMBER_FILE);
    let kept = match fs::read(&path) {
        Ok(text) => Some(
            serde_json::from_slice(&text)
                .map_err(|source| IdentityError::Damaged { path, source })?,
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(IdentityError::Read { path, source }),
    };
    let stored = wherry_store::identity(&data_dir.join(STORE))?;
    let stored = stored.map(|stored| (stored.cluster_id, stored.member_id));
    decide(data_dir, kept, stored)
}

/// What both together mean.
fn decide(
    data_dir: &Path,
    kept: Option<Identity>,
    stored: Option<(u128, MemberId)>,
) -> Result<Option<Identity>, IdentityError> {
    let (kept, stored) = match (kept, stored) {
        (None, None) => return Ok(None),
        // A restored backup brings a store and nothing else.
        (None, Some((cluster, id))) => {
            return Ok(Some(Identity::new(cluster, id, "", false).opened()));
        }
        (Some(kept), None) if kept.opened => {
            let store = data_dir.join(STORE);
            return Err(IdentityError::Lost { id: kept.id, name: kept.name, store });
        }
        // It had been taken in and was stopped before it began.
        (Some(kept), None) => return Ok(Some(kept)),
        (Some(kept), Some(stored)) => (kept, stored),
    };
    if (kept.cluster(), kept.id) != (Some(stored.0), stored.1) {
        return Err(IdentityError::Other {
            path: data_dir.join(MEMBER_FILE),
            kept: kept.id,
            kept_cluster: kept.cluster,
            stored: stored.1,
            stored_cluster: format!("{:032x}", stored.0),
        });
    }
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(kept: Option<&Identity>, stored: Option<(u128, MemberId)>) -> String {
        match decide(Path::new("/data"), kept.cloned(), stored) {
            Ok(None) => "new".to_owned(),
            Ok(Some(identity)) => format!("{} joined={}", identity.id, identity.joined),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn who_may_go_on() {
        let fresh = Identity::new(5, 7, "b", true);
        let used = fresh.clone().opened();
        assert_eq!(decided(None, None), "new");
        assert_eq!(decided(None, Some((5, 1))), "1 joined=false");
        assert_eq!(decided(Some(&fresh), None), "7 joined=true");
        assert_eq!(decided(Some(&used), Some((5, 7))), "7 joined=true");
        let lost = decided(Some(&used), None);
        assert!(
            lost.starts_with("the data of member \"b\" (id 7) is gone from /data/store;"),
            "{lost}"
        );
        for stored in [(5, 8), (6, 7)] {
            let other = decided(Some(&used), Some(stored));
            assert!(other.contains("start each member with its own folder"), "{other}");
        }
    }

    #[test]
    fn it_is_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = Identity::new(u128::MAX - 3, 9, "c", true);
        identity.keep(folder.path()).expect("written");
        let found = find(folder.path()).expect("readable");
        assert_eq!(found.as_ref(), Some(&identity));
        assert_eq!(found.and_then(|found| found.cluster()), Some(u128::MAX - 3));
    }
}
