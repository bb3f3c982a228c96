//! Writing the files of a volume so that readers see all of an update or nothing of it, with the
//! layout that programs written for Kubernetes know:
//!
//! ```text
//!   volume/..2026_11_21_08_00_00.123456789/config.yaml    what was written
//!   volume/..data            -> ..2026_11_21_08_00_00.123456789    replaced by a rename
//!   volume/config.yaml       -> ..data/config.yaml         one for each first part of a path
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink},
    path::{Component, Path, PathBuf},
};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

/// Files by their paths relative to the volume.
pub type Payload = BTreeMap<String, Entry>;

/// Whether a path may be written below a volume: relative, going nowhere but down, and not under a
/// name that the layout itself uses.
pub fn is_valid_path(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    let normal = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let first = parts.next();
    !path.starts_with("..") && first.as_ref().is_some_and(normal) && parts.all(|part| normal(&part))
}

/// Makes the volume hold exactly these files, for this user. Says whether anything changed.
pub fn write(
    root: &Path,
    payload: &Payload,
    owner: Option<u32>,
    now: Timestamp,
) -> io::Result<bool> {
    assert!(payload.keys().all(|path| is_valid_path(path)), "paths are checked before");
    make_dir(root)?;
    let old = fs::read_link(root.join(DATA)).ok();
    if let Some(old) = &old
        && is_same(&root.join(old), payload, owner)
    {
        return Ok(false);
    }
    let name = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let folder = root.join(&name);
    // Must be new: what cannot be finished is removed.
    fs::DirBuilder::new().mode(0o755).create(&folder)?;
    let shown = fill(&folder, payload, owner).and_then(|()| {
        let next = root.join(DATA_NEXT);
        let _ = fs::remove_file(&next);
        symlink(&name, &next)?;
        fs::rename(&next, root.join(DATA))
    });
    if let Err(error) = shown {
        // It is tried again and again, and each try would leave another copy.
        let _ = fs::remove_dir_all(&folder);
        return Err(error);
    }
    link_names(root, payload)?;
    if let Some(old) = old {
        // It may already be gone; a reader that still has it open keeps what it has.
        let _ = fs::remove_dir_all(root.join(old));
    }
    Ok(true)
}

fn fill(folder: &Path, payload: &Payload, owner: Option<u32>) -> io::Result<()> {
    for (path, entry) in payload {
        let path = folder.join(path);
        make_dir(path.parent().expect("a file is in a folder"))?;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&entry.bytes)?;
        fchown(&file, owner, owner)?;
        file.set_permissions(fs::Permissions::from_mode(entry.mode))?;
    }
    Ok(())
}

/// Whether the volume has been written once.
pub fn is_written(root: &Path) -> bool {
    fs::metadata(root.join(DATA)).is_ok_and(|metadata| metadata.is_dir())
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn is_same(folder: &Path, payload: &Payload, owner: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if list(folder, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, entry)| {
        let file = folder.join(path);
        found.contains(Path::new(path))
            && fs::metadata(&file).is_ok_and(|it| {
                it.mode() & 0o7777 == entry.mode && owner.is_none_or(|owner| it.uid() == owner)
            })
            && fs::read(&file).is_ok_and(|bytes| bytes == entry.bytes)
    })
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// The links that people see, for what is new; without those for what is gone.
fn link_names(root: &Path, payload: &Payload) -> io::Result<()> {
    let first =
        |path: &String| Path::new(path).components().next().map(|part| part.as_os_str().to_owned());
    let wanted: BTreeSet<_> = payload.keys().filter_map(first).collect();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(root.join(&name))?;
        }
    }
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let entry = |text: &str| Entry { bytes: text.as_bytes().to_vec(), mode: 0o644 };
        files.iter().map(|(path, text)| ((*path).to_owned(), entry(text))).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn an_update_replaces_everything_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("volume");
        let first = payload(&[("a", "1"), ("deep/b", "2")]);
        assert!(write(&root, &first, None, at(1)).expect("written"));
        assert!(!write(&root, &first, None, at(2)).expect("nothing to do"));
        assert_eq!(fs::read_to_string(root.join("deep/b")).expect("a file"), "2");
        assert_eq!(fs::read_link(root.join("a")).expect("a link"), Path::new("..data/a"));
        let before = fs::read_link(root.join(DATA)).expect("a link");

        assert!(write(&root, &payload(&[("a", "3"), ("c", "4")]), None, at(3)).expect("written"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a file"), "3");
        assert_eq!(fs::read_to_string(root.join("c")).expect("a file"), "4");
        assert!(!root.join("deep").exists());
        assert!(!root.join(before).exists());
        assert!(is_written(&root));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("volume");
        let names = || {
            let entries = fs::read_dir(&root).expect("a folder").flatten();
            entries.map(|entry| entry.file_name()).collect::<BTreeSet<_>>()
        };
        write(&root, &payload(&[("a", "1")]), None, at(1)).expect("written");
        let before = names();
        // It comes after others, whose bytes are written by then.
        let long = "x".repeat(300);
        let wrong = payload(&[("a", "2"), (long.as_str(), "3")]);
        assert!(write(&root, &wrong, None, at(2)).is_err());
        assert!(write(&root, &payload(&[("a", "2"), ("a/b", "3")]), None, at(3)).is_err());
        // Two updates at the same moment: the first one stays.
        assert!(write(&root, &payload(&[("a", "4")]), None, at(1)).is_err());
        assert_eq!(names(), before);
        assert_eq!(fs::read_to_string(root.join("a")).expect("a file"), "1");
    }

    #[test]
    fn modes_are_part_of_the_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = payload(&[("key", "x")]);
        write(folder.path(), &files, None, at(1)).expect("written");
        files.get_mut("key").expect("it is there").mode = 0o400;
        assert!(write(folder.path(), &files, None, at(2)).expect("written"));
        let mode = fs::metadata(folder.path().join("key")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
    }

    #[test]
    fn files_are_written_anew_for_another_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = payload(&[("key", "x")]);
        let own = nix::unistd::geteuid().as_raw();
        write(folder.path(), &files, None, at(1)).expect("written");
        assert!(!write(folder.path(), &files, Some(own), at(2)).expect("it is theirs"));
        if nix::unistd::geteuid().is_root() {
            assert!(write(folder.path(), &files, Some(4711), at(3)).expect("written"));
            let found = fs::metadata(folder.path().join("key")).expect("a file");
            assert_eq!((found.uid(), found.mode() & 0o777), (4711, 0o644));
        }
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "a/b", "a..b", ".hidden"] {
            assert!(is_valid_path(good), "{good}");
        }
        for bad in ["", "/a", "..", "../a", "a/../b", "..data/x", "./../a"] {
            assert!(!is_valid_path(bad), "{bad}");
        }
    }
}
