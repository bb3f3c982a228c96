//! Removing what guests wrote.
//!
//! A guest that moves folders into folders makes a tree deeper than any path or stack is long, and
//! it can put links where a folder was a moment ago. So nothing here descends: the folders in a
//! folder of the top are moved to the top, where they are looked at next.
//!
//! ```text
//!   top/a/b/c/…   ─ move b up ─▶   top/a, top/0/c/…   ─ remove a, move c up ─▶   top/0, top/1/…
//! ```
//!
//! Folders are held by their descriptors, and no link is followed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Removes a tree; one that is not there is fine.
pub fn remove(root: &Path) -> io::Result<()> {
    let top = match Folder::open(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut moved = 0;
    loop {
        let mut is_empty = true;
        for entry in top.entries()? {
            is_empty = false;
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                Folder::open(&entry.path())?.empty_into(&top, &mut moved)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        if is_empty {
            return fs::remove_dir(root);
        }
    }
}

/// A folder that stays the same one, wherever it is moved.
struct Folder(File);

impl Folder {
    fn open(path: &Path) -> io::Result<Folder> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        OpenOptions::new().read(true).custom_flags(flags).open(path).map(Folder)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn entries(&self) -> io::Result<fs::ReadDir> {
        fs::read_dir(self.path())
    }

    /// Removes its files and moves its folders to the top, under names that count up.
    fn empty_into(&self, top: &Folder, moved: &mut u64) -> io::Result<()> {
        for entry in self.entries()? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            loop {
                let to = top.path().join(moved.to_string());
                *moved += 1;
                match fs::rename(entry.path(), to) {
                    Err(error) if is_taken(&error) => {}
                    renamed => break renamed?,
                }
            }
        }
        Ok(())
    }
}

/// Whether something else has the name already.
fn is_taken(error: &io::Error) -> bool {
    use ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::volumes::measure;

    #[test]
    fn trees_deeper_than_any_path_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, out) = (folder.path().join("root"), folder.path().join("out"));
        for made in [&root, &out, &root.join("a"), &root.join("0")] {
            fs::create_dir(made).expect("a folder");
        }
        fs::write(out.join("kept"), "x").expect("a file");
        fs::write(root.join("0/file"), "x").expect("a file");
        fs::write(root.join("1"), "x").expect("a file");
        std::os::unix::fs::symlink(&out, root.join("a/link")).expect("a link");
        // The deepest has the link.
        for _ in 0..3000 {
            fs::create_dir(root.join("b")).expect("a folder");
            fs::rename(root.join("a"), root.join("b/a")).expect("moved");
            fs::rename(root.join("b"), root.join("a")).expect("moved");
        }
        assert_eq!(measure(&root).bytes, u64::MAX, "nobody can see what is in it");
        remove(&root).expect("removed");
        assert!(!root.exists() && out.join("kept").exists());
        remove(&root).expect("gone already");
        std::os::unix::fs::symlink(&out, &root).expect("a link");
        remove(&root).expect_err("a link is not a tree");
    }
}
