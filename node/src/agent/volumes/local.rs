//! PersistentVolumes of the driver `wherry.dev/local`: folders of this node with a size.
//!
//! ```text
//!   <data dir>/local-volumes/<handle>         the data
//!   <data dir>/local-volumes/<handle>.size    how many bytes it may hold
//!   <data dir>/pods/<uid>/volumes/<name>      a link to the data, while the Pod is there
//! ```
//!
//! A folder is made when a Pod first mounts it. One that holds more than its size is not mounted
//! again until its claim has grown, and the Pod that wrote too much is evicted (see `pressure`). A
//! folder whose PersistentVolume is gone is removed after a second look; handles are never used
//! again, so nobody else can mean it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::{Volumes, removal, usage::measure};

/// The driver's name.
pub const DRIVER: &str = "wherry.dev/local";
/// How often folders are compared with the PersistentVolumes that they belong to.
const LOOK: Duration = Duration::from_secs(60);
/// The longest handle; a file system allows 255 bytes, the file beside it has a longer name.
const HANDLE_MAX: usize = 200;

/// A folder and how many bytes it may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Its name.
    pub handle: String,
    /// Its size.
    pub bytes: u64,
}

/// A handle names one folder and nothing else.
pub fn check_handle(handle: &str) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if handle.is_empty() || handle.len() > HANDLE_MAX || !handle.chars().all(plain) {
        return Err(format!("volumeHandle {handle:?} is not the name of a folder of this node"));
    }
    Ok(())
}

fn root(disk: &Path) -> PathBuf {
    disk.join("local-volumes")
}

fn size_file(disk: &Path, handle: &str) -> PathBuf {
    root(disk).join(format!("{handle}.size"))
}

/// Makes a folder if it is not there, notes its size, and refuses one that is over it. `link` is
/// where the Pod's use of it is remembered.
pub fn open(disk: &Path, folder: &Folder, link: &Path) -> io::Result<PathBuf> {
    check_handle(&folder.handle).map_err(io::Error::other)?;
    let path = root(disk).join(&folder.handle);
    fs::create_dir_all(&path)?;
    fs::write(size_file(disk, &folder.handle), folder.bytes.to_string())?;
    let used = measure(&path).bytes;
    if used > folder.bytes {
        return Err(io::Error::other(format!(
            "it holds {used} bytes of the {} that it may hold; let its claim ask for more \
             (spec.resources.requests.storage)",
            folder.bytes
        )));
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    let _ = fs::remove_file(link);
    std::os::unix::fs::symlink(&path, link)?;
    Ok(path)
}

/// The folder behind a Pod's link, and its size; None where the link is none.
pub fn linked(disk: &Path, link: &Path) -> Option<(PathBuf, u64)> {
    let path = fs::read_link(link).ok()?;
    let handle = path.strip_prefix(root(disk)).ok()?.to_str()?.to_owned();
    let size = fs::read_to_string(size_file(disk, &handle)).ok()?;
    Some((path, size.trim().parse().ok()?))
}

/// The handles of all folders.
fn handles(disk: &Path) -> Vec<String> {
    let entries = fs::read_dir(root(disk)).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether a Pod of this node still has a link to a folder.
fn is_used(disk: &Path, handle: &str) -> bool {
    let path = root(disk).join(handle);
    let pods = fs::read_dir(disk.join("pods")).into_iter().flatten().flatten();
    let mut links = pods
        .flat_map(|pod| fs::read_dir(pod.path().join("volumes")).into_iter().flatten().flatten());
    links.any(|link| fs::read_link(link.path()).is_ok_and(|target| target == path))
}

fn remove(disk: &Path, handle: &str) -> io::Result<()> {
    removal::remove(&root(disk).join(handle))?;
    fs::remove_file(size_file(disk, handle))
}

/// Removes folders whose volumes are gone and takes in new sizes, until `shutdown`.
pub async fn keep(volumes: std::sync::Arc<Volumes>, shutdown: CancellationToken) {
    let mut missing = BTreeSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return,
        }
        look(&volumes, &mut missing).await;
    }
}

/// One look; `missing` are handles whose volumes were gone at the look before.
async fn look(volumes: &Volumes, missing: &mut BTreeSet<String>) {
    let api: Api<PersistentVolume> = Api::all(volumes.client.clone());
    let disk = volumes.disk.clone();
    let found = super::blocking(move || Ok(handles(&disk))).await.unwrap_or_default();
    let mut gone = BTreeSet::new();
    for handle in found {
        match api.get(&handle).await {
            Ok(volume) => {
                let size = super::places::of_volume(volume.spec.unwrap_or_default());
                if let Ok(super::places::Place::Local(folder)) = size {
                    let _ = fs::write(size_file(&volumes.disk, &handle), folder.bytes.to_string());
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                gone.insert(handle);
            }
            // The control plane is away: nothing is known.
            Err(_) => {}
        }
    }
    for handle in gone.intersection(missing) {
        let (disk, name) = (volumes.disk.clone(), handle.clone());
        let removed = super::blocking(move || {
            if is_used(&disk, &name) { Ok(false) } else { remove(&disk, &name).map(|()| true) }
        });
        match removed.await {
            Ok(true) => tracing::info!(handle, "removed the folder of a volume that is gone"),
            Ok(false) => {}
            Err(error) => tracing::warn!(handle, error, "cannot remove a volume's folder"),
        }
    }
    *missing = gone;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_measured_and_removed() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        let folder = Folder { handle: "pvc-1".to_owned(), bytes: 100_000 };
        let link = disk.join("pods/uid-1/volumes/data");
        let path = open(disk, &folder, &link).expect("opened");
        fs::write(path.join("rows"), vec![1; 50_000]).expect("written");
        assert_eq!(open(disk, &folder, &link).expect("opened again"), path);
        assert_eq!(linked(disk, &link), Some((path.clone(), 100_000)));
        assert_eq!(handles(disk), ["pvc-1"]);
        assert!(is_used(disk, "pvc-1"));
        let small = Folder { bytes: 10_000, ..folder };
        let refused = open(disk, &small, &link).expect_err("it is over its size");
        assert!(refused.to_string().contains("let its claim ask for more"), "{refused}");
        fs::remove_dir_all(disk.join("pods/uid-1")).expect("the Pod goes");
        assert!(path.join("rows").is_file(), "its data stays");
        assert!(!is_used(disk, "pvc-1"));
        remove(disk, "pvc-1").expect("removed");
        assert!(handles(disk).is_empty());
    }

    #[test]
    fn handles_stay_in_their_folder() {
        for handle in ["", "..", "a/b", "/etc", ".", "a.size"] {
            assert!(check_handle(handle).is_err(), "{handle}");
        }
        assert!(check_handle("pvc-0b2f-1").is_ok());
    }
}
