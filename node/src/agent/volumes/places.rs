//! Where volumes are on the host that the agent does not make itself, and single files of volumes.

use std::{
    fs,
    io::{self, ErrorKind, Read as _},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt as _, PermissionsExt as _, fchown},
    },
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::PersistentVolume;

use wherry_resources::quantity::Quantity;

use super::local::{self, Folder, Owner};
use crate::{agent::spec::no_csi_driver, beneath, protocol::Mount};

/// A copy of a guest's file is at most this large: what a guest makes can look larger than any disk.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// Where a PersistentVolume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path of this machine.
    Path(PathBuf),
    /// A folder that this node makes; see `local`.
    Local(Folder),
    /// An export that the machine has mounted somewhere.
    Nfs {
        /// `server:/path`
        export: String,
    },
}

/// Where the data of a PersistentVolume is.
pub fn of_volume(volume: PersistentVolume) -> Result<Place, String> {
    let (meta, volume) = (volume.metadata, volume.spec.unwrap_or_default());
    if volume.volume_mode.as_deref() == Some("Block") {
        return Err("it is a block device, which a Wasm guest cannot use".to_owned());
    }
    if let Some(csi) = volume.csi {
        if csi.driver != local::DRIVER {
            return Err(no_csi_driver(&csi.driver));
        }
        let size = volume.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
        let size = size.and_then(|size| Quantity::parse(&size.0).ok());
        let bytes = size.and_then(|size| u64::try_from(size.value()).ok());
        let bytes = bytes.ok_or("its PersistentVolume does not say how large it is")?;
        let owner = Owner {
            volume: meta.name.unwrap_or_default(),
            reclaimed: volume.persistent_volume_reclaim_policy.as_deref() == Some("Delete"),
            revision: meta.resource_version.and_then(|it| it.parse().ok()).unwrap_or(0),
            at: None,
        };
        return Ok(Place::Local(Folder { handle: csi.volume_handle, bytes, owner }));
    }
    if let Some(local) = volume.local {
        return Ok(Place::Path(PathBuf::from(local.path)));
    }
    if let Some(host) = volume.host_path {
        return Ok(Place::Path(PathBuf::from(host.path)));
    }
    if let Some(nfs) = volume.nfs {
        return Ok(Place::Nfs { export: format!("{}:{}", nfs.server, nfs.path) });
    }
    Err("its PersistentVolume is neither of this node's own, local, hostPath nor nfs".to_owned())
}

/// The text of a file below `root`, to which guests write; `None` if it is not there.
pub fn text_beneath(root: &Path, below: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    let file = match beneath::open_file(root, below) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    let bytes = file.take(bytes_max + 1).read_to_string(&mut text)?;
    if bytes as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(Some(text))
}

/// The directory of a place, which has to be there.
pub fn existing(place: Place) -> io::Result<PathBuf> {
    let path = match place {
        Place::Path(path) => path,
        Place::Local(folder) => {
            let what = format!("folder {} is opened by its own rules", folder.handle);
            return Err(io::Error::other(what));
        }
        Place::Nfs { export } => {
            let table = fs::read_to_string("/proc/self/mountinfo")?;
            nfs_mount(&table, &export).ok_or_else(|| {
                io::Error::other(format!(
                    "{export} is not mounted on this node; mount it there (for example in \
                     /etc/fstab), Wherry uses what the machine has mounted"
                ))
            })?
        }
    };
    check_absolute(&path)?;
    if !fs::metadata(&path)?.is_dir() {
        return Err(io::Error::other(format!("{} is not a directory", path.display())));
    }
    Ok(path)
}

/// Where an NFS export, or a directory above it, is mounted.
fn nfs_mount(table: &str, export: &str) -> Option<PathBuf> {
    let mut best: Option<(usize, PathBuf)> = None;
    for line in table.lines() {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?, right.next()?);
        if !kind.starts_with("nfs") {
            continue;
        }
        let point = left.split(' ').nth(4)?;
        let source = source.trim_end_matches('/');
        let Some(rest) = export.strip_prefix(source) else { continue };
        if !(rest.is_empty() || rest.starts_with('/')) {
            continue;
        }
        if best.as_ref().is_none_or(|(length, _)| source.len() > *length) {
            let path = Path::new(point).join(rest.trim_start_matches('/'));
            best = Some((source.len(), path));
        }
    }
    best.map(|(_, path)| path)
}

fn check_absolute(path: &Path) -> io::Result<()> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || climbs {
        let what = format!("{} is not an absolute path without ..", path.display());
        return Err(io::Error::other(what));
    }
    Ok(())
}

/// A path of the host, by its `type`: a directory, or a directory and a file in it.
pub fn host_path(path: &Path, kind: &str) -> io::Result<(PathBuf, Option<String>)> {
    check_absolute(path)?;
    match kind {
        "DirectoryOrCreate" => fs::create_dir_all(path)?,
        // Container runtimes make what they are to mount.
        "" if !path.exists() => fs::create_dir_all(path)?,
        "FileOrCreate" => {
            fs::OpenOptions::new().create(true).append(true).open(path)?;
        }
        _ => {}
    }
    let found = fs::metadata(path)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    let what = found.file_type();
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => what.is_dir(),
        "File" | "FileOrCreate" => what.is_file(),
        "Socket" => what.is_socket(),
        "CharDevice" => what.is_char_device(),
        "BlockDevice" => what.is_block_device(),
        _ => false,
    };
    if !fits {
        let text = format!("hostPath type check failed: {} is not a {kind}", path.display());
        return Err(io::Error::other(text));
    }
    if what.is_dir() {
        return Ok((path.to_owned(), None));
    }
    // A link is followed here, as it may lead out of its directory.
    let real = fs::canonicalize(path)?;
    match (real.parent(), real.file_name().and_then(|name| name.to_str())) {
        (Some(folder), Some(file)) if what.is_file() => {
            Ok((folder.to_owned(), Some(file.to_owned())))
        }
        _ => {
            let shown = path.display();
            let text = format!("{shown} is neither a directory nor a file, all that guests see");
            Err(io::Error::other(text))
        }
    }
}

/// Shows a file under another name: the same file where that is possible.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let _ = fs::remove_file(to);
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => fs::copy(from, to).map(drop),
    }
}

/// Resolves a `subPath`: root, directory below it, and where the guest sees that. What does not
/// exist becomes a directory, beside the volume if its files get `replaced`. A file is shown in the
/// directory `own`, made anew, under the name that `mount_path` ends in: a copy if they do, else the
/// file itself. What is made is for `owner`.
pub fn sub_path(
    root: &Path,
    below: &Path,
    (replaced, owner): (bool, Option<u32>),
    own: &Path,
    mount_path: &str,
) -> io::Result<(PathBuf, Option<PathBuf>, String)> {
    let below: PathBuf =
        below.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let found = match beneath::open_any(root, &below) {
        Err(error) if error.kind() == ErrorKind::NotFound && !replaced => {
            beneath::make_dirs(root, &below, owner)?;
            beneath::open_any(root, &below)?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let empty = own.with_extension("none");
            fs::create_dir_all(&empty)?;
            return Ok((empty, None, mount_path.to_owned()));
        }
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            return Err(io::Error::other("it leads out of the volume"));
        }
        found => found?,
    };
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if fs::metadata(&by_descriptor)?.is_dir() {
        return Ok((root.to_owned(), Some(below), mount_path.to_owned()));
    }
    let path = Path::new(mount_path);
    let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name())
    else {
        return Err(io::Error::other(format!("{mount_path} cannot be a file")));
    };
    make_anew(own)?;
    let shown = own.join(name);
    if replaced {
        let mut from = beneath::open_file(root, &below)?;
        let mut copy = fs::File::create_new(&shown)?;
        io::copy(&mut from, &mut copy)?;
        fchown(&copy, owner, owner)?;
        copy.set_permissions(from.metadata()?.permissions())?;
    } else {
        link_descriptor(&by_descriptor, &shown).map_err(|error| match error.kind() {
            ErrorKind::CrossesDevices => io::Error::other(
                "it is a file of another file system than the node's data; mount its directory",
            ),
            _ => error,
        })?;
    }
    Ok((own.to_owned(), None, parent.to_owned()))
}

/// Another name for an open file.
fn link_descriptor(from: &Path, to: &Path) -> io::Result<()> {
    use nix::fcntl::AtFlags;
    nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        from,
        nix::fcntl::AT_FDCWD,
        to,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
    .map_err(io::Error::from)
}

/// Whether a mount is a directory that was made for single files, in the container's `own` folder.
/// Volumes lie elsewhere: what is in them is never moved, whatever their names.
pub fn holds_single_files(mount: &Mount, own: &Path) -> bool {
    let name = mount.root.file_name().map(|name| name.to_string_lossy());
    mount.sub.is_none()
        && mount.root.parent() == Some(own)
        && name.is_some_and(|name| name.starts_with("file-"))
}

/// Makes a directory of the agent's that is empty: an earlier run of the guest may have written there.
pub fn make_anew(folder: &Path) -> io::Result<()> {
    match beneath::remove_tree(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(folder)
}

/// Single files that the guest sees in the same directory are shown together: a guest finds a
/// directory by its first mount only. Each keeps its own `read_only`. `own` are the container's
/// folders: that on the disk, and that in memory, from which nothing may go to the disk.
pub fn joined(mounts: Vec<Mount>, own: &[PathBuf]) -> io::Result<Vec<Mount>> {
    let is_file = |mount: &Mount| own.iter().any(|own| holds_single_files(mount, own));
    let in_memory = |mount: &Mount| own.iter().skip(1).any(|memory| mount.root.starts_with(memory));
    let mut kept: Vec<Mount> = Vec::new();
    for mut mount in mounts {
        let same = kept
            .iter_mut()
            .find(|other| other.guest == mount.guest && is_file(other) && is_file(&mount));
        let Some(other) = same else {
            kept.push(mount);
            continue;
        };
        if in_memory(&mount) && !in_memory(other) {
            std::mem::swap(&mut mount, other);
        }
        if other.read_only != mount.read_only {
            let closed = if mount.read_only { &mount } else { &*other };
            close(&closed.root)?;
            other.read_only = false;
        }
        // Both are folders that the agent made; nobody else writes there yet.
        for entry in fs::read_dir(&mount.root)? {
            let name = PathBuf::from(entry?.file_name());
            let to = other.root.join(&name);
            match fs::rename(mount.root.join(&name), &to) {
                Err(error) if error.kind() == ErrorKind::CrossesDevices && mount.read_only => {
                    copy_closed(&mount.root, &name, &to)?;
                }
                Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                    return Err(io::Error::other(format!(
                        "of those in {} some may be written to and some are in memory only; mount \
                         one of them elsewhere",
                        mount.guest
                    )));
                }
                moved => moved?,
            }
        }
    }
    Ok(kept)
}

/// Puts copies that nobody may write to in the place of single files: their directory is one in which
/// a guest may write, and the files themselves have other names in a volume.
pub fn close(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()? {
        let name = PathBuf::from(entry.file_name());
        let next = folder.with_extension("next");
        copy_closed(folder, &name, &next)?;
        fs::rename(next, folder.join(name))?;
    }
    Ok(())
}

/// Copies a single file, but for the right to write to it.
fn copy_closed(folder: &Path, name: &Path, to: &Path) -> io::Result<()> {
    let from = beneath::open_file(folder, name)?;
    let (found, shown) = (from.metadata()?, name.display());
    if !found.is_file() {
        return Err(io::Error::other(format!("{shown} is not a file")));
    }
    if found.len() > COPY_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{shown} has more than {} MiB, too much for a copy that may only be read; mount it in a \
             directory of its own",
            COPY_BYTES_MAX >> 20
        )));
    }
    let _ = fs::remove_file(to);
    let mut copy = fs::File::create_new(to)?;
    // Others may be writing to it.
    io::copy(&mut from.take(COPY_BYTES_MAX), &mut copy)?;
    // Only root can give files away; for everybody else they are their own.
    let _ = fchown(&copy, Some(found.uid()), Some(found.gid()));
    copy.set_permissions(fs::Permissions::from_mode(found.mode() & 0o555))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_know_whether_they_go_with_their_volumes() {
        let owner = |policy: &str| {
            let csi = serde_json::json!({"driver": "wherry.dev/local", "volumeHandle": "pvc-1"});
            let volume = serde_json::json!({
                "metadata": {"name": "mine", "resourceVersion": "7"},
                "spec": {"csi": csi, "capacity": {"storage": "1Ki"},
                    "persistentVolumeReclaimPolicy": policy}});
            let volume = serde_json::from_value(volume).expect("a volume");
            match of_volume(volume) {
                Ok(Place::Local(Folder { handle, bytes: 1024, owner })) if handle == "pvc-1" => {
                    owner
                }
                other => panic!("{other:?}"),
            }
        };
        let volume = "mine".to_owned();
        let expected =
            |reclaimed| Owner { volume: volume.clone(), reclaimed, revision: 7, at: None };
        assert_eq!(owner("Delete"), expected(true));
        assert_eq!(owner("Retain"), expected(false));
    }

    #[test]
    fn nfs_exports_are_found_in_the_mount_table() {
        let table = "\
24 1 0:22 / /proc rw shared:5 - proc proc rw\n\
90 1 0:50 / /srv/all rw - nfs4 files:/export rw,vers=4.2\n\
91 1 0:51 / /srv/deep rw - nfs files:/export/deep/ rw\n";
        let found = |export| nfs_mount(table, export);
        assert_eq!(found("files:/export"), Some(PathBuf::from("/srv/all/")));
        assert_eq!(found("files:/export/a/b"), Some(PathBuf::from("/srv/all/a/b")));
        assert_eq!(found("files:/export/deep/c"), Some(PathBuf::from("/srv/deep/c")));
        assert_eq!(found("files:/exported"), None);
        assert_eq!(found("other:/export"), None);
    }

    #[test]
    fn files_of_guests_are_read_with_care() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("volume");
        let read = |path: &str| match text_beneath(&root, Path::new(path), 4) {
            Ok(text) => text.unwrap_or("absent".to_owned()),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(read("a"), "absent");
        fs::create_dir_all(root.join("d")).expect("a folder");
        fs::write(root.join("d/a"), "A='1").expect("a file");
        fs::write(root.join("long"), "A='1'").expect("a file");
        fs::write(folder.path().join("out"), "A=1").expect("a file");
        std::os::unix::fs::symlink("../out", root.join("link")).expect("a link");
        assert_eq!(read("d/a"), "A='1");
        assert_eq!(read("d/b"), "absent");
        assert_eq!(read("d"), "error: it is not a file");
        assert_eq!(read("long"), "error: it has more than 4 bytes");
        for outside in ["link", "../out"] {
            assert!(read(outside).starts_with("error: "), "{outside}");
        }
    }

    #[test]
    fn single_files_are_shown_together_and_volumes_stay_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("containers/web");
        let mount = |root: PathBuf, file: &str| {
            fs::create_dir_all(&root).expect("a folder");
            fs::write(root.join(file), "x").expect("a file");
            Mount { root, sub: None, guest: "/etc".to_owned(), read_only: true }
        };
        let (first, volume) = (own.join("file-0"), folder.path().join("volumes/file-store"));
        let mounts = vec![
            mount(first.clone(), "a"),
            mount(volume.clone(), "b"),
            mount(own.join("file-2"), "c"),
        ];
        let kept = joined(mounts, &[own]).expect("joined");
        let kept: Vec<PathBuf> = kept.into_iter().map(|mount| mount.root).collect();
        assert_eq!(kept, [first.clone(), volume.clone()]);
        for (place, expected) in [(first.join("a"), true), (first.join("b"), false)] {
            assert_eq!(place.exists(), expected, "{}", place.display());
        }
        assert!(first.join("c").exists() && volume.join("b").exists());
    }

    #[test]
    fn single_files_beside_each_other_keep_what_may_be_done_to_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let (own, memory) = (folder.path().join("web"), folder.path().join("memory/web"));
        let volume = folder.path().join("volume");
        fs::create_dir_all(&volume).expect("a folder");
        let mount = |own: &Path, file: &str, read_only| {
            let root = own.join(format!("file-{file}"));
            fs::create_dir_all(&root).expect("a folder");
            fs::write(volume.join(file), file).expect("a file");
            fs::hard_link(volume.join(file), root.join(file)).expect("another name");
            Mount { root, sub: None, guest: "/etc".to_owned(), read_only }
        };
        let mode = |path: PathBuf| fs::metadata(path).expect("a file").mode() & 0o777;
        fs::write(volume.join("plain"), "").expect("a file");
        let before = mode(volume.join("plain"));
        let files = [("a", true), ("b", true), ("c", false), ("d", true), ("e", false)];
        let mounts = files.map(|(file, closed)| match file {
            "d" => mount(&memory, file, closed),
            _ => mount(&own, file, closed),
        });
        let kept = joined(mounts.to_vec(), &[own, memory.clone()]).expect("joined");
        let together = Mount { root: memory.join("file-d"), read_only: false, ..mounts[3].clone() };
        assert_eq!(kept, [together.clone()], "together, and what is in memory stays there");
        for (file, closed) in files {
            let shown = together.root.join(file);
            assert_eq!(mode(shown.clone()), if closed { before & 0o555 } else { before }, "{file}");
            assert_eq!(mode(volume.join(file)), before, "{file}");
            let inode = |path: PathBuf| fs::metadata(path).expect("a file").ino();
            assert_eq!(inode(shown.clone()) == inode(volume.join(file)), !closed, "{file}");
            assert_eq!(fs::read_to_string(shown).expect("a file"), file);
        }
    }

    #[test]
    fn what_only_looks_large_fills_no_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let shown = folder.path().join("file-0");
        fs::create_dir_all(&shown).expect("a folder");
        let file = fs::File::create(shown.join("huge")).expect("a file");
        file.set_len(COPY_BYTES_MAX + 1).expect("it takes no room");
        let why = close(&shown).expect_err("refused").to_string();
        assert!(why.starts_with("huge has more than 64 MiB"), "{why}");
        assert!(!folder.path().join("file-0.next").exists());
    }

    #[test]
    fn sub_paths_are_directories_or_single_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, own) = (folder.path().join("volume"), folder.path().join("own"));
        fs::create_dir_all(&root).expect("a folder");
        fs::write(root.join("app.conf"), "x=1").expect("a file");
        let made =
            sub_path(&root, Path::new("data/one"), (false, None), &own, "/data").expect("made");
        assert_eq!(made, (root.clone(), Some(PathBuf::from("data/one")), "/data".to_owned()));
        assert!(root.join("data/one").is_dir());

        let file = Path::new("app.conf");
        let shown =
            sub_path(&root, file, (false, None), &own, "/etc/app/main.conf").expect("shown");
        assert_eq!(shown, (own.clone(), None, "/etc/app".to_owned()));
        fs::write(own.join("main.conf"), "x=2").expect("the same file");
        assert_eq!(fs::read_to_string(root.join("app.conf")).expect("a file"), "x=2");
        fs::write(own.join("more"), "").expect("a file that the guest made");
        sub_path(&root, file, (true, None), &own, "/etc/app/main.conf").expect("a copy");
        assert!(!own.join("more").exists(), "each start finds it as it should be");
        fs::write(own.join("main.conf"), "x=3").expect("another file");
        assert_eq!(fs::read_to_string(root.join("app.conf")).expect("a file"), "x=2");

        std::os::unix::fs::symlink("/etc", root.join("out")).expect("a link");
        let outside = sub_path(&root, Path::new("out"), (false, None), &own, "/x");
        assert_eq!(outside.expect_err("refused").to_string(), "it leads out of the volume");
        let gone = sub_path(&root, Path::new("gone"), (true, None), &own, "/x").expect("nothing");
        assert_eq!(gone, (own.with_extension("none"), None, "/x".to_owned()));
        assert!(gone.0.is_dir() && !root.join("gone").exists());
    }

    #[test]
    fn host_paths_are_what_they_should_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new");
        assert!(host_path(&path, "Directory").is_err());
        assert_eq!(host_path(&path, "DirectoryOrCreate").expect("made"), (path.clone(), None));
        assert!(host_path(&path, "File").is_err());
        let unchecked = folder.path().join("un/checked");
        assert_eq!(host_path(&unchecked, "").expect("made"), (unchecked.clone(), None));
        let real = path.canonicalize().expect("it was made");
        let found = (real, Some("file".to_owned()));
        assert_eq!(host_path(&path.join("file"), "FileOrCreate").expect("made"), found);
        std::os::unix::fs::symlink("new/file", folder.path().join("link")).expect("a link");
        assert_eq!(host_path(&folder.path().join("link"), "File").expect("its target"), found);
        assert!(host_path(Path::new("/dev/null"), "CharDevice").is_err());
        assert!(host_path(&path.join("../x"), "").is_err());
        assert!(host_path(Path::new("relative"), "").is_err());
    }
}
