//! The superblock: a small file beside the database that says what the database must hold.
//!
//! ```text
//!  STORE/superblock   cluster, member, which db folder counts, last vote, last log entry on disk
//!  STORE/db-3/        the RocksDB that counts
//!  STORE/db-4/        a snapshot on its way in; thrown away at the next start
//! ```
//!
//! RocksDB opens happily without its newest write-ahead file; a member that lost it would vote
//! twice and forget what it acknowledged. So a start compares both, and refuses a database that is
//! behind its superblock.
//!
//! Invariants:
//! - What the superblock says is on disk in the database already: it is raised after an fsync, and
//!   lowered before the log is cut.
//! - The vote and the end of the log are in it within a second. Waiting for it would add two fsyncs
//!   to each vote, and with them to the time in which nobody leads.
//! - The file is replaced as a whole (written aside, fsync, rename, fsync of the folder), so a
//!   crash leaves the old or the new one. Changing `folder` in it is how a snapshot becomes the
//!   state.
//!
//! The lock is a std mutex and held while the file is written: only blocking threads take it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::codec::{self, CodecError, Decoder};
use crate::errors::OpenError;
use crate::faults::Faults;
use crate::members::MemberId;
use crate::promise::Promise;

/// The file's name, and that of its successor until it is whole.
const FILE: &str = "superblock";
const FILE_NEW: &str = "superblock.new";

/// Far more than it is.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Whose data a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u128,
    /// The member of it.
    pub member_id: MemberId,
}

/// Whose data lies in a store's folder; `None` if it holds none yet.
pub fn identity(folder: &Path) -> Result<Option<Identity>, OpenError> {
    let block = read(folder)?;
    Ok(block.map(|block| block.identity))
}

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) identity: Identity,
    /// The number of the database folder that counts.
    pub(crate) folder: u64,
    /// The vote and the last log entry that were on disk.
    pub(crate) promise: Promise,
}

impl Superblock {
    /// That of a folder without any data.
    pub(crate) fn new(identity: Identity) -> Superblock {
        Superblock { identity, folder: 1, promise: Promise::default() }
    }

    fn encode(&self) -> Vec<u8> {
        codec::encode(128, self, |encoder, block| {
            encoder.u128(block.identity.cluster_id);
            encoder.u64(block.identity.member_id);
            encoder.u64(block.folder);
            encoder.promise(&block.promise);
        })
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Superblock, CodecError> {
        let identity = Identity { cluster_id: decoder.u128()?, member_id: decoder.u64()? };
        let folder = decoder.u64()?;
        Ok(Superblock { identity, folder, promise: decoder.promise()? })
    }
}

/// The folder of a database.
pub(crate) fn database(base: &Path, folder: u64) -> PathBuf {
    base.join(format!("db-{folder}"))
}

/// The number in the name of a database folder.
fn database_number(name: &str) -> Option<u64> {
    name.strip_prefix("db-").and_then(|number| number.parse().ok())
}

/// Whether there is a database that took the place of the first one: then there was a superblock,
/// too.
pub(crate) fn has_later_database(base: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(base)? {
        let name = entry?.file_name();
        if database_number(&name.to_string_lossy()).is_some_and(|number| number > 1) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes every database folder but the one that counts, and a superblock that was never finished.
pub(crate) fn clean(base: &Path, folder: u64) -> io::Result<()> {
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if database_number(&name).is_some_and(|number| number != folder) {
            tracing::info!(folder = %name, "remove a state that was never or is no longer in use");
            fs::remove_dir_all(entry.path())?;
        } else if name == FILE_NEW {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes sure that the names in a folder are on disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn read(base: &Path) -> Result<Option<Superblock>, OpenError> {
    let path = base.join(FILE);
    let folder = |source| OpenError::Folder { path: base.to_owned(), source };
    let damaged = |detail: String| {
        let detail = format!("its superblock cannot be read: {detail}");
        OpenError::Damaged { path: base.to_owned(), detail }
    };
    let length = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(folder)?.len(),
    };
    if length > FILE_BYTES_MAX {
        return Err(damaged(format!("it has {length} bytes")));
    }
    let record = fs::read(&path).map_err(folder)?;
    let block = codec::decode(&record, Superblock::decode);
    block.map(Some).map_err(|error| match error {
        CodecError::Version(_) => {
            let detail = format!("its superblock: {error}");
            OpenError::OtherVersion { path: base.to_owned(), detail }
        }
        _ => damaged(error.to_string()),
    })
}

/// The superblock of an open store.
#[derive(Debug)]
pub(crate) struct Anchor {
    /// The store's folder; `None` in memory, where nothing can be lost.
    base: Option<PathBuf>,
    block: Mutex<Superblock>,
    faults: Faults,
}

impl Anchor {
    pub(crate) fn new(base: Option<PathBuf>, block: Superblock, faults: Faults) -> Anchor {
        Anchor { base, block: Mutex::new(block), faults }
    }

    fn lock(&self) -> MutexGuard<'_, Superblock> {
        self.block.lock().expect("no section of this lock panics")
    }

    pub(crate) fn identity(&self) -> Identity {
        self.lock().identity
    }

    pub(crate) fn folder(&self) -> u64 {
        self.lock().folder
    }

    /// Changes the superblock, on disk before this returns. Blocks.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let mut current = self.lock();
        let mut block = *current;
        change(&mut block);
        if block != *current {
            self.write(&block)?;
            *current = block;
        }
        Ok(())
    }

    /// Writes it as it is: the first time.
    pub(crate) fn create(&self) -> io::Result<()> {
        let block = self.lock();
        self.write(&block)
    }

    fn write(&self, block: &Superblock) -> io::Result<()> {
        self.faults.hit("superblock.write")?;
        match &self.base {
            Some(base) => write(base, block),
            None => Ok(()),
        }
    }
}

/// Puts a superblock into a folder, in place of the one there.
pub(crate) fn write(base: &Path, block: &Superblock) -> io::Result<()> {
    let new = base.join(FILE_NEW);
    let mut file = File::create(&new)?;
    file.write_all(&block.encode())?;
    file.sync_all()?;
    fs::rename(&new, base.join(FILE))?;
    sync_folder(base)
}

#[cfg(test)]
mod tests;
