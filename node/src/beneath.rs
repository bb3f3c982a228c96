//! Opening, making and removing what lies below a directory that others may write to.
//!
//! A guest can put links, pipes and renamed directories into its volumes at any moment. So a path
//! below a volume is resolved by the kernel in one call that never leaves the root (`openat2` with
//! `RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS`), and what was found is held by its descriptor.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

/// A directory below `root`, for reaching what is in it.
pub fn open_dir(root: &Path, below: &Path) -> io::Result<OwnedFd> {
    open(root, below, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// Anything below `root`, only to look at what it is.
pub fn open_any(root: &Path, below: &Path) -> io::Result<OwnedFd> {
    open(root, below, libc::O_PATH, 0)
}

/// A file below `root`, for reading; never waits for a pipe.
pub fn open_file(root: &Path, below: &Path) -> io::Result<File> {
    open(root, below, libc::O_RDONLY | libc::O_NONBLOCK, 0).map(File::from)
}

/// Removes a file below `root`; of a link, the link.
pub fn remove_file(root: &Path, below: &Path) -> io::Result<()> {
    let parent = below.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = open_dir(root, parent.unwrap_or(Path::new(".")))?;
    let name = below.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = CString::new(name.as_bytes())?;
    // SAFETY: a plain system call with a descriptor and a string that live through it.
    let removed = unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), 0) };
    if removed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes a directory with all that is in it, however deep: whoever wrote there chose the depth, so
/// nothing here recurses or holds a descriptor for each level. Folders within a folder are moved up
/// beside it first, and emptied in a later round. Links are not followed.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(root)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut moved = 0_u64;
    loop {
        let mut removed = 0_u64;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let folder = open_dir(root, Path::new(&entry.file_name()))?;
                empty(&folder, root, &mut moved)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
            removed += 1;
        }
        match fs::remove_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && removed > 0 => {}
            done => return done,
        }
    }
}

/// Removes the files of a folder and moves its folders into `root`, under numbers that are free there.
fn empty(folder: &OwnedFd, root: &Path, moved: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
            continue;
        }
        loop {
            *moved += 1;
            match fs::rename(entry.path(), root.join(moved.to_string())) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotADirectory | io::ErrorKind::DirectoryNotEmpty
                    ) => {}
                done => break done?,
            }
        }
    }
    Ok(())
}

/// Makes the directory and those above it, below `root`, for this user. Existing ones are fine.
pub fn make_dirs(root: &Path, below: &Path, owner: Option<u32>) -> io::Result<()> {
    let mut known = PathBuf::new();
    for part in below.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let parent =
            open_dir(root, if known.as_os_str().is_empty() { Path::new(".") } else { &known })?;
        let text = CString::new(name.as_bytes())?;
        // SAFETY: a plain system call with a descriptor and a string that live through it.
        let made = unsafe { libc::mkdirat(parent.as_raw_fd(), text.as_ptr(), 0o750) };
        known.push(name);
        if made != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
        } else if let Some(owner) = owner {
            give(&open_dir(root, &known)?, owner)?;
        }
    }
    Ok(())
}

/// Makes an open directory a user's.
fn give(folder: &OwnedFd, owner: u32) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: a plain system call with a descriptor and a string that live through it.
    let given = unsafe { libc::fchownat(folder.as_raw_fd(), c"".as_ptr(), owner, owner, flags) };
    if given == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(root: &Path, below: &Path, flags: i32, mode: u64) -> io::Result<OwnedFd> {
    let start = File::open(root)?;
    let text = CString::new(below.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::try_from(flags | libc::O_CLOEXEC).expect("flags are not negative");
    how.mode = mode;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: descriptor, string and structure live through the call; the size is the structure's.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            start.as_raw_fd(),
            text.as_ptr(),
            &raw const how,
            std::mem::size_of::<libc::open_how>(),
        )
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = i32::try_from(opened).expect("a descriptor is a small number");
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).expect("folders");
        std::fs::write(folder.path().join("secret"), "x").expect("a file");
        std::os::unix::fs::symlink("../..", root.join("a/up")).expect("a link");
        std::os::unix::fs::symlink("/etc", root.join("abs")).expect("a link");
        std::os::unix::fs::symlink("b", root.join("a/in")).expect("a link");
        for inside in ["a", "a/b", "a/in", "."] {
            open_dir(&root, Path::new(inside)).expect(inside);
        }
        for outside in ["..", "a/../..", "a/up", "a/up/secret", "abs", "/etc"] {
            assert!(open_dir(&root, Path::new(outside)).is_err(), "{outside}");
            assert!(open_file(&root, Path::new(outside)).is_err(), "{outside}");
        }
        assert!(remove_file(&root, Path::new("a/up/secret")).is_err());
        assert!(folder.path().join("secret").exists());
        std::fs::write(root.join("a/b/old"), "x").expect("a file");
        remove_file(&root, Path::new("a/b/old")).expect("removed");
        remove_file(&root, Path::new("abs")).expect("the link is removed");
        assert!(!root.join("a/b/old").exists() && Path::new("/etc").exists());
        let own = nix::unistd::geteuid().as_raw();
        make_dirs(&root, Path::new("x/y"), Some(own)).expect("made");
        make_dirs(&root, Path::new("x/y"), None).expect("found");
        assert!(root.join("x/y").is_dir());
        assert!(make_dirs(&root, Path::new("a/up/x"), None).is_err());
        assert!(make_dirs(&root, Path::new("../x"), None).is_err());
    }

    #[test]
    fn trees_of_any_depth_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        fs::create_dir(&root).expect("a folder");
        // Built from its bottom, a tower gets as deep as no path can name.
        let (tower, next) = (root.join("tower"), root.join("next"));
        fs::create_dir(&tower).expect("a folder");
        for _ in 0..3_000 {
            fs::create_dir(&next).expect("a folder");
            fs::rename(&tower, next.join("d")).expect("moved");
            fs::write(next.join("file"), "").expect("a file");
            fs::rename(&next, &tower).expect("moved");
        }
        // What the moved folders would be called is taken.
        fs::create_dir_all(root.join("1/2/3")).expect("folders");
        fs::write(root.join("2"), "x").expect("a file");
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).expect("a folder");
        fs::write(outside.join("kept"), "x").expect("a file");
        std::os::unix::fs::symlink(&outside, root.join("1/link")).expect("a link");
        assert!(remove_tree(&root.join("2")).is_err(), "a file is no tree");
        let (tree, thread) = (root.clone(), std::thread::Builder::new().stack_size(64 << 10));
        let removing = thread.spawn(move || remove_tree(&tree)).expect("a thread");
        removing.join().expect("it does not recurse").expect("removed");
        assert!(!root.exists() && outside.join("kept").exists());
        let gone = remove_tree(&root).expect_err("it is gone");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
