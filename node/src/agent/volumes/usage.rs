//! How much a Pod has written, by looking: WASI has no quotas, and a directory tree is the truth.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Entries that one look takes in. Beyond it a Pod counts as having used more than any limit: many
/// small files are as bad as a few large ones.
const ENTRIES_MAX: u64 = 1_000_000;

/// What is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Space on the device.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
}

/// Adds up a tree; links are not followed. What cannot be read counts nothing, but what lies deeper
/// than a path is long counts as more than any limit: it would be a place to hide in.
pub fn measure(root: &Path) -> Use {
    let mut found = Use::default();
    let mut left: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::InvalidFilename => {
                return Use { bytes: u64::MAX, ..found };
            }
            entries => entries.into_iter().flatten(),
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            found.bytes = found.bytes.saturating_add(metadata.blocks() * 512);
            found.entries += 1;
            if found.entries >= ENTRIES_MAX {
                return Use { bytes: u64::MAX, ..found };
            }
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_added_up() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("a")).expect("a folder");
        fs::write(folder.path().join("a/b"), vec![1; 100_000]).expect("a file");
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).expect("a link");
        let found = measure(folder.path());
        assert_eq!(found.entries, 3);
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
        assert_eq!(measure(&folder.path().join("nothing")), Use::default());
    }
}
