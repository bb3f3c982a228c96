//! Data folders: made, checked for being writable before anything starts, and locked against a
//! second start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;

/// With less free space than this nothing useful can be started: the store alone keeps a log of
/// this size.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Makes `folder` and proves that it can be written to.
pub fn prepare(folder: &Path) -> Result<PathBuf, Diagnostic> {
    let failed = |error: io::Error| cannot_use(folder, error);
    fs::create_dir_all(folder).map_err(failed)?;
    let folder = folder.canonicalize().map_err(failed)?;
    let probe = folder.join(".probe");
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    // Nothing is lost if the probe stays: the next one overwrites it.
    let _ = fs::remove_file(&probe);
    written.map_err(|error| cannot_use(&folder, error))?;
    let free = nix::sys::statvfs::statvfs(&folder).map_err(|error| failed(error.into()))?;
    let free = free.blocks_available() * free.fragment_size();
    if free < FREE_BYTES_MIN {
        return Err(Diagnostic::new("WH0004", format!("no space left for {}", folder.display()))
            .why(format!("{} MiB are free, at least 64 MiB are needed", free >> 20))
            .help("free some space, or choose a folder on another disk with --data-dir DIR"));
    }
    Ok(folder)
}

/// Refuses a disk on which the store could create nothing.
pub fn has_room(folder: &Path) -> Result<(), Diagnostic> {
    let Some(why) = wherry_control_plane::member::too_full(folder) else {
        return Ok(());
    };
    Err(Diagnostic::new("WH0004", format!("too little space left for {}", folder.display()))
        .why(why)
        .help("free some space, or choose a folder on another disk with --data-dir DIR"))
}

fn cannot_use(folder: &Path, error: io::Error) -> Diagnostic {
    let shown = folder.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Diagnostic::new("WH0004", format!("no space left for {shown}"))
                .why(error)
                .help("free some space, or choose a folder on another disk with --data-dir DIR")
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            Diagnostic::new("WH0005", format!("the data folder {shown} cannot be written to"))
                .why(error)
                .help("choose a folder of your own with --data-dir DIR, or mend its permissions")
        }
        _ => Diagnostic::new("WH0005", format!("the data folder {shown} cannot be used"))
            .why(error)
            .help("choose another folder with --data-dir DIR"),
    }
}

/// Locks `folder` for this process, until the returned file is dropped.
pub fn lock(folder: &Path) -> Result<nix::fcntl::Flock<File>, Diagnostic> {
    let file = folder.join("lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&file);
    let opened = opened.map_err(|error| cannot_use(folder, error))?;
    nix::fcntl::Flock::lock(opened, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        let (shown, kubeconfig) = (folder.display(), quoted(&folder.join("kubeconfig")));
        Diagnostic::new("WH0006", format!("a cluster already runs on {shown}"))
            .why("another `wherry` process holds that folder's lock")
            .help(format!("use it:   kubectl --kubeconfig {kubeconfig} get pods -A"))
            .help("start a second one beside it:   wherry dev --ephemeral --listen 127.0.0.1:0")
    })
}

/// A path as a shell takes it, for commands that people paste.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::{lock, prepare, quoted};

    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(
            quoted("/home/you/.local/share/wherry".as_ref()),
            "/home/you/.local/share/wherry"
        );
        assert_eq!(quoted("/My Files".as_ref()), "'/My Files'");
        assert_eq!(quoted("/it's".as_ref()), r"'/it'\''s'");
    }

    #[test]
    fn a_folder_is_locked_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = lock(folder.path()).expect("the first lock");
        let refused = lock(folder.path()).expect_err("the second is refused");
        assert!(refused.to_string().starts_with("error[WH0006]: a cluster already runs on "));
        drop(held);
        lock(folder.path()).expect("free again");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let refused = prepare(&file).expect_err("a file is no folder");
        assert!(refused.to_string().contains("cannot be used"), "{refused}");
    }
}
