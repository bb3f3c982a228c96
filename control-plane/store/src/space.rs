//! The room on the store's disk: when new objects are refused, and a reserve for that time.
//!
//! RocksDB cannot go on after a write that found the disk full; the process must start again, and
//! even that needs room. So long before, at 90 %, creates and updates are refused, while deletes,
//! reads and Raft go on; and a file that holds nothing, the *ballast*, is given up when others fill
//! the disk to the brim, and made again when there is room.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A disk counts as full when this part of it is used …
const USED_MAX: f64 = 0.9;

/// … unless so much is free anyway: a large disk at 90 % has room for years of this.
const FREE_ENOUGH: u64 = 4 << 30;

/// At this part the ballast is given up, and a follower takes no more entries.
const USED_BRIM: f64 = 0.97;

/// The ballast is for the deletes, snapshots and restarts of the time until somebody makes room …
const BALLAST_BYTES: u64 = 64 << 20;

/// … but no more than this part of a small disk.
const BALLAST_PART: u64 = 20;

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Room {
    /// Enough.
    #[default]
    Enough,
    /// No new objects.
    Full,
    /// Nothing but what makes room.
    Brim,
}

impl Room {
    pub(crate) fn of(number: u8) -> Room {
        match number {
            0 => Room::Enough,
            1 => Room::Full,
            _ => Room::Brim,
        }
    }
}

/// Judges a disk of which so many bytes are free.
pub(crate) fn room(total: u64, free: u64) -> Room {
    let used = total.saturating_sub(free) as f64 / total.max(1) as f64;
    match used {
        _ if free >= FREE_ENOUGH => Room::Enough,
        used if used >= USED_BRIM => Room::Brim,
        used if used >= USED_MAX => Room::Full,
        _ => Room::Enough,
    }
}

/// What is said of the disk under `folder`, if a store there would refuse creates and updates.
/// Blocks.
///
/// A store with objects goes on then; where a cluster is only to begin, nothing could be written.
pub fn too_full(folder: &Path) -> Option<String> {
    let (total, free) = sizes(folder)?;
    if room(total, free) == Room::Enough {
        return None;
    }
    let (used, free) = (100 - 100 * free / total.max(1), free >> 20);
    let (limit, enough) = (100.0 * USED_MAX, FREE_ENOUGH >> 30);
    Some(format!(
        "{used} % of its disk are used and {free} MiB free; with more than {limit} % used and less \
         than {enough} GiB free, the store creates nothing"
    ))
}

/// Total and free bytes of the disk under a folder.
fn sizes(folder: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    let unit = stat.fragment_size() as u64;
    let bytes = |blocks: u64| unit.saturating_mul(blocks);
    Some((bytes(stat.blocks() as u64), bytes(stat.blocks_available() as u64)))
}

/// The disk under a store. Blocks.
#[derive(Debug)]
pub(crate) struct Space {
    /// The store's folder; `None` in memory.
    base: Option<PathBuf>,
}

impl Space {
    /// Looks at the disk before the database is opened: a full one gets its ballast back first, for
    /// opening writes.
    pub(crate) fn before_open(base: Option<PathBuf>) -> Space {
        let space = Space { base };
        if space.measure() == Room::Brim {
            space.give_up();
        }
        space
    }

    /// How much room there is now; keeps the ballast accordingly.
    pub(crate) fn look(&self) -> Room {
        let room = self.measure();
        match room {
            Room::Brim => self.give_up(),
            Room::Full => {}
            Room::Enough => self.reserve(),
        }
        room
    }

    fn measure(&self) -> Room {
        self.sizes().map_or(Room::Enough, |(total, free)| room(total, free))
    }

    fn sizes(&self) -> Option<(u64, u64)> {
        sizes(self.base.as_deref()?)
    }

    fn ballast(&self) -> Option<PathBuf> {
        self.base.as_deref().map(|base| base.join("ballast"))
    }

    fn give_up(&self) {
        if let Some(path) = self.ballast()
            && fs::remove_file(path).is_ok()
        {
            tracing::warn!("the disk is full: the store gave up its reserve");
        }
    }

    /// Makes the ballast, if it is not there and fits without filling the disk.
    fn reserve(&self) {
        let (Some(path), Some((total, free))) = (self.ballast(), self.sizes()) else {
            return;
        };
        let bytes = BALLAST_BYTES.min(total / BALLAST_PART);
        if path.exists() || room(total, free.saturating_sub(2 * bytes)) != Room::Enough {
            return;
        }
        if let Err(error) = fill(&path, bytes) {
            tracing::warn!(%error, "the store could not make its reserve");
            let _ = fs::remove_file(&path);
        }
    }
}

fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    let length = i64::try_from(bytes).map_err(std::io::Error::other)?;
    let flags = nix::fcntl::FallocateFlags::empty();
    nix::fcntl::fallocate(file.as_fd(), flags, 0, length)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_when_little_is_free() {
        let gib = |n: u64| n << 30;
        assert_eq!(room(gib(1), gib(1) / 5), Room::Enough);
        assert_eq!(room(gib(1), gib(1) / 11), Room::Full);
        assert_eq!(room(gib(1), gib(1) / 50), Room::Brim);
        assert_eq!(room(gib(10), 0), Room::Brim);
        assert_eq!(room(gib(1000), gib(20)), Room::Enough, "a large disk has room");
        assert_eq!(room(gib(1000), gib(2)), Room::Brim);
        assert_eq!(room(0, 0), Room::Enough, "not a disk");
    }

    #[test]
    fn the_reserve_is_made_and_given_up() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let space = Space::before_open(Some(folder.path().to_owned()));
        assert_eq!(space.look(), Room::Enough, "the disk of the tests has room");
        let ballast = folder.path().join("ballast");
        assert!(fs::metadata(&ballast).expect("it was made").len() > 0);
        space.give_up();
        assert!(!ballast.exists());
        assert_eq!(Space::before_open(None).look(), Room::Enough, "memory is never full");
    }
}
