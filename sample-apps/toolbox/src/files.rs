//! Files by the names that commands use: relative to a command's own directory, and with the few
//! devices that shell scripts count on. Everything else is what the Pod mounts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::io::{Input, Output};

/// `name` seen from `cwd`, without `.` and `..`.
pub fn absolute(cwd: &Path, name: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    for part in cwd.join(name).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// How a file is opened for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Truncate,
    Append,
    ReadWrite,
    /// Only if it is not there yet (`set -C`, `mktemp`).
    New,
}

/// Opens for reading. `/dev/stdin` is `stdin`.
pub fn open(path: &Path, stdin: &Input) -> io::Result<Input> {
    match path.to_str() {
        Some("/dev/null") => Ok(Input::null()),
        Some("/dev/zero") => Ok(Input::zero()),
        Some("/dev/random" | "/dev/urandom") => Ok(Input::random()),
        Some("/dev/stdin" | "/dev/fd/0") => Ok(stdin.clone()),
        _ if path.is_dir() => Err(io::Error::other("Is a directory")),
        _ => File::open(path).map(Input::file),
    }
}

/// Opens for writing; makes the file if it is not there.
pub fn create(path: &Path, mode: Mode, stdout: &Output, stderr: &Output) -> io::Result<Output> {
    match path.to_str() {
        Some("/dev/null" | "/dev/zero" | "/dev/full") => return Ok(Output::null()),
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/1/fd/1" | "/proc/self/fd/1") => {
            return Ok(stdout.clone());
        }
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/1/fd/2" | "/proc/self/fd/2") => {
            return Ok(stderr.clone());
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    match mode {
        Mode::Truncate => options.write(true).create(true).truncate(true),
        Mode::Append => options.append(true).create(true),
        Mode::ReadWrite => options.read(true).write(true).create(true).truncate(false),
        Mode::New => options.write(true).create_new(true),
    };
    changed(path, options.open(path)).map(Output::file)
}

/// The outcome of a change. Where a mount is only to be read it says so: WASI has one word for all
/// that is forbidden.
pub fn changed<T>(path: &Path, outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied if is_read_only(path) => {
            io::ErrorKind::ReadOnlyFilesystem.into()
        }
        _ => error,
    })
}

/// Whether it can be written to, as far as that shows without doing so.
pub fn is_writable(path: &Path) -> bool {
    if is_device(path) {
        return true;
    }
    if is_dir(path) {
        return !is_read_only(path);
    }
    OpenOptions::new().append(true).open(path).is_ok()
}

/// Whether nothing can be changed in the mount that a path leads to.
#[cfg(target_family = "wasm")]
fn is_read_only(path: &Path) -> bool {
    use wasip2::filesystem::types::DescriptorFlags;
    let mounts = wasip2::filesystem::preopens::get_directories();
    let above = mounts.iter().filter(|(_, name)| path.starts_with(name));
    let nearest = above.max_by_key(|(_, name)| name.len());
    let changes = |flags: DescriptorFlags| flags.contains(DescriptorFlags::MUTATE_DIRECTORY);
    nearest.is_none_or(|(mount, _)| mount.get_flags().is_ok_and(|flags| !changes(flags)))
}

/// Natively the machine says it for each directory.
#[cfg(not(target_family = "wasm"))]
fn is_read_only(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.permissions().readonly())
}

/// Whether two names lead to one file, be it by links.
pub fn are_same(one: &Path, other: &Path) -> bool {
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// What tells a file from all others.
#[cfg(target_family = "wasm")]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use wasip2::filesystem::types::PathFlags;
    let mounts = wasip2::filesystem::preopens::get_directories();
    let above = mounts.iter().filter(|(_, name)| path.starts_with(name));
    let (mount, name) = above.max_by_key(|(_, name)| name.len())?;
    let inside = path.strip_prefix(name).ok()?.to_str()?;
    let inside = if inside.is_empty() { "." } else { inside };
    let hash = mount.metadata_hash_at(PathFlags::SYMLINK_FOLLOW, inside).ok()?;
    Some((hash.lower, hash.upper))
}

/// Natively the machine's file system has numbers for them.
#[cfg(not(target_family = "wasm"))]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().ok().map(|found| (found.dev(), found.ino()))
}

/// Whether there is something of this name, devices included.
pub fn exists(path: &Path) -> bool {
    is_device(path) || path.symlink_metadata().is_ok() || is_above_a_mount(path)
}

/// Whether it is one of the devices that are served here.
pub fn is_device(path: &Path) -> bool {
    let names = ["null", "zero", "full", "random", "urandom", "stdin", "stdout", "stderr"];
    path.parent() == Some(Path::new("/dev"))
        && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(&name))
}

/// Whether it is a directory, or the way to a mount.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir() || is_above_a_mount(path)
}

/// The names in a directory, sorted. Where there is no directory but mounts below: their names.
pub fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?,
        Err(_) if is_above_a_mount(path) => Vec::new(),
        Err(error) => return Err(error),
    };
    names.extend(mounts().iter().filter_map(|mount| {
        let below = mount.strip_prefix(path).ok()?.components().next()?;
        Some(below.as_os_str().to_string_lossy().into_owned())
    }));
    names.sort();
    names.dedup();
    Ok(names)
}

fn is_above_a_mount(path: &Path) -> bool {
    mounts().iter().any(|mount| mount != path && mount.starts_with(path))
}

/// Where the Pod's volumes are mounted.
#[cfg(target_family = "wasm")]
pub fn mounts() -> Vec<PathBuf> {
    let preopens = wasip2::filesystem::preopens::get_directories();
    preopens.into_iter().map(|(_, name)| PathBuf::from(name)).collect()
}

/// Natively the machine has its own file system.
#[cfg(not(target_family = "wasm"))]
pub fn mounts() -> Vec<PathBuf> {
    Vec::new()
}

/// An error in the words of C, as scripts and people know it.
pub fn reason(error: &io::Error) -> String {
    let known = match error.kind() {
        io::ErrorKind::NotFound => "No such file or directory",
        io::ErrorKind::PermissionDenied => "Permission denied",
        io::ErrorKind::AlreadyExists => "File exists",
        io::ErrorKind::NotADirectory => "Not a directory",
        io::ErrorKind::IsADirectory => "Is a directory",
        io::ErrorKind::DirectoryNotEmpty => "Directory not empty",
        io::ErrorKind::ReadOnlyFilesystem => "Read-only file system",
        io::ErrorKind::StorageFull => "No space left on device",
        io::ErrorKind::CrossesDevices => "Invalid cross-device link",
        io::ErrorKind::ConnectionRefused => "Connection refused",
        io::ErrorKind::ConnectionReset => "Connection reset by peer",
        io::ErrorKind::TimedOut => "Operation timed out",
        io::ErrorKind::HostUnreachable => "No route to host",
        io::ErrorKind::AddrInUse => "Address in use",
        _ => return error.to_string(),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_the_directory() {
        let cases = [
            ("/a/b", "c", "/a/b/c"),
            ("/a/b", "/c", "/c"),
            ("/a/b", "../../../x/./y", "/x/y"),
            ("/", "", "/"),
        ];
        for (cwd, name, expected) in cases {
            assert_eq!(absolute(Path::new(cwd), name), Path::new(expected), "{cwd} {name}");
        }
    }
}
