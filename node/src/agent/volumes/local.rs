//! PersistentVolumes of the driver `wherry.dev/local`: folders of this node with a size.
//!
//! ```text
//!   <data dir>/local-volumes/<handle>         the data
//!   <data dir>/local-volumes/<handle>.size    how many bytes it may hold
//!   <data dir>/local-volumes/<handle>.volume  what was last seen of its PersistentVolume
//!   <data dir>/pods/<uid>/volumes/<name>      a link to the data, while the Pod is there
//! ```
//!
//! A folder is made when a Pod first mounts it. One that holds more than its size is not mounted
//! again until its claim has grown, and the Pod that wrote too much is evicted (see `pressure`).
//!
//! A folder goes with its PersistentVolume, after a second look, if that said `Delete` when it was
//! last seen, shortly before. All others stay until somebody removes them: of volumes that said
//! `Retain`, of those that nobody has seen, of those that changed or went while this node was away,
//! and of those that a cluster does not know because it was made of a backup.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use kube::{Api, api::ListParams};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Volumes,
    places::{self, Place},
    usage::measure,
};
use crate::beneath;

/// The driver's name.
pub const DRIVER: &str = "wherry.dev/local";
/// How often folders are compared with the PersistentVolumes that they belong to.
const LOOK: Duration = Duration::from_secs(60);
/// The longest handle; a file system allows 255 bytes, the files beside it have longer names.
const HANDLE_MAX: usize = 200;
/// How many revisions a cluster may have gone on since a volume was seen, to be taken for the same
/// cluster. One that is made of a backup begins 1,000,000,000 after it.
const REVISIONS_MAX: u64 = 100_000_000;
/// How long before a volume was first missed it was last seen, at most, for what it said then to be
/// believed. Its policy may have changed since while this node was away.
const UNSEEN_MAX: SignedDuration = SignedDuration::from_secs(3 * 60);

/// A folder, how many bytes it may hold, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Its name.
    pub handle: String,
    /// Its size.
    pub bytes: u64,
    /// Its PersistentVolume.
    pub owner: Owner,
}

/// What was seen of the PersistentVolume of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its name, which need not be the handle.
    pub volume: String,
    /// Whether its folder goes with it: its policy is `Delete`.
    pub reclaimed: bool,
    /// The cluster's revision when it was so.
    pub revision: u64,
    /// When the control plane has last said so; `None` for what is only kept of an earlier answer.
    pub at: Option<Timestamp>,
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

fn owner_file(disk: &Path, handle: &str) -> PathBuf {
    root(disk).join(format!("{handle}.volume"))
}

/// What was last seen of a folder's volume; `None` if that cannot be said.
fn owner(disk: &Path, handle: &str) -> Option<Owner> {
    serde_json::from_slice(&fs::read(owner_file(disk, handle)).ok()?).ok()
}

fn keep_owner(disk: &Path, handle: &str, owner: &Owner) -> io::Result<()> {
    fs::write(owner_file(disk, handle), serde_json::to_vec(owner)?)
}

fn remember(disk: &Path, folder: &Folder) -> io::Result<()> {
    fs::write(size_file(disk, &folder.handle), folder.bytes.to_string())?;
    keep_owner(disk, &folder.handle, &folder.owner)
}

/// Makes a folder if it is not there, notes its size and its volume, and refuses one that is over it.
/// `link` is where the Pod's use of it is remembered.
pub fn open(disk: &Path, folder: &Folder, link: &Path) -> io::Result<PathBuf> {
    check_handle(&folder.handle).map_err(io::Error::other)?;
    let path = root(disk).join(&folder.handle);
    fs::create_dir_all(&path)?;
    let mut folder = folder.clone();
    // Without a revision it is what an earlier agent kept, and the volume's name is a guess.
    let guessed = folder.owner.revision == 0;
    let seen = owner(disk, &folder.handle);
    if let Some(seen) = seen.filter(|seen| guessed || seen.volume == folder.owner.volume) {
        let at = seen.at.max(folder.owner.at);
        // While the control plane is away, an old word of it must not take the place of a newer one.
        if seen.revision > folder.owner.revision {
            folder.bytes = size(disk, &folder.handle).unwrap_or(folder.bytes);
            folder.owner = seen;
        }
        folder.owner.at = at;
    }
    remember(disk, &folder)?;
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
    let size = size(disk, &handle)?;
    Some((path, size))
}

/// How many bytes a folder may hold, as was last noted.
fn size(disk: &Path, handle: &str) -> Option<u64> {
    fs::read_to_string(size_file(disk, handle)).ok()?.trim().parse().ok()
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

/// Whether a folder goes now that its volume is gone, and was first missed at a time. A cluster that
/// has not just gone on since the volume was seen may not know of it for another reason than its end,
/// and one that was not seen shortly before may have said `Retain` at last: then the folder stays for
/// good.
fn goes(disk: &Path, handle: &str, revision: u64, missed: Timestamp) -> io::Result<bool> {
    let Some(seen) = owner(disk, handle).filter(|seen| seen.reclaimed) else {
        return Ok(false);
    };
    let revisions = seen.revision..seen.revision.saturating_add(REVISIONS_MAX);
    let unseen = seen.at.map(|at| missed.duration_since(at));
    let lately = unseen.is_some_and(|it| (SignedDuration::ZERO..=UNSEEN_MAX).contains(&it));
    if !(lately && revisions.contains(&revision)) {
        let folder = root(disk).join(handle);
        tracing::warn!(
            folder = %folder.display(),
            volume = seen.volume,
            "keeping the folder of a volume that is not there: the cluster was made of a backup, or \
             this node was away when the volume went and cannot know what it said at last; if nobody \
             needs the data, remove the folder and the files beside it that end in .size and .volume"
        );
        keep_owner(disk, handle, &Owner { reclaimed: false, ..seen })?;
        return Ok(false);
    }
    Ok(!is_used(disk, handle))
}

fn remove(disk: &Path, handle: &str) -> io::Result<()> {
    beneath::remove_tree(&root(disk).join(handle))?;
    fs::remove_file(size_file(disk, handle))?;
    fs::remove_file(owner_file(disk, handle))
}

/// Removes folders that go with their volumes and takes in what changes of those, until `shutdown`.
/// It looks at once: what an earlier agent noted may not be true any more.
pub async fn keep(volumes: std::sync::Arc<Volumes>, shutdown: CancellationToken) {
    let mut missing = BTreeMap::new();
    loop {
        look(&volumes, &mut missing).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One look; `missing` are handles whose volumes were gone when they were last asked for, and since
/// which look.
async fn look(volumes: &Volumes, missing: &mut BTreeMap<String, Timestamp>) {
    let disk = volumes.disk.clone();
    let found = super::blocking(move || Ok(handles(&disk))).await.unwrap_or_default();
    if found.is_empty() {
        return;
    }
    // Both are known first: what is said of volumes after that is so then or later.
    let time = Timestamp::now();
    let Some(now) = revision(&volumes.client).await else {
        return;
    };
    let api: Api<PersistentVolume> = Api::all(volumes.client.clone());
    let (mut gone, mut unknown) = (BTreeMap::new(), BTreeMap::new());
    for handle in found {
        let seen = owner(&volumes.disk, &handle);
        match api.get(&seen.map_or_else(|| handle.clone(), |seen| seen.volume)).await {
            Ok(volume) => {
                let place = places::of_volume(volume);
                if let Ok(Place::Local(mut folder)) = place
                    && folder.handle == handle
                {
                    folder.owner.revision = now;
                    folder.owner.at = Some(time);
                    let _ = remember(&volumes.disk, &folder);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let since = missing.get(&handle).copied().unwrap_or(time);
                gone.insert(handle, since);
            }
            // The control plane is away: nothing is known, but since when it was missed before.
            Err(_) => {
                if let Some(since) = missing.get(&handle) {
                    unknown.insert(handle, *since);
                }
            }
        }
    }
    for (handle, since) in &gone {
        let (disk, name, since) = (volumes.disk.clone(), handle.clone(), *since);
        let again = missing.contains_key(handle);
        let removed = super::blocking(move || {
            let goes = goes(&disk, &name, now, since)? && again;
            if goes { remove(&disk, &name).map(|()| true) } else { Ok(false) }
        });
        match removed.await {
            Ok(true) => tracing::info!(handle, "removed the folder of a volume that is gone"),
            Ok(false) => {}
            Err(error) => tracing::warn!(handle, error, "cannot remove a volume's folder"),
        }
    }
    // One that nobody could ask for goes at no look, and is still missed since then.
    gone.extend(unknown);
    *missing = gone;
}

/// The revision of the cluster now.
async fn revision(client: &kube::Client) -> Option<u64> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let list = namespaces.list(&ListParams::default().limit(1)).await.ok()?;
    list.metadata.resource_version?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::volumes::tests::volumes;

    /// Volumes of a node whose control plane is at the revision 1,000 and answers this for each
    /// PersistentVolume.
    fn answered(disk: &Path, code: u16, answer: Value) -> Arc<Volumes> {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (code, answer) = match request.uri().path() {
                "/api/v1/namespaces" => {
                    let metadata = json!({"resourceVersion": "1000"});
                    let kind = "NamespaceList";
                    let list = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata,
                        "items": []});
                    (200, list)
                }
                _ => (code, answer.clone()),
            };
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            *response.status_mut() = StatusCode::from_u16(code).expect("a status");
            std::future::ready(Ok::<_, Infallible>(response))
        });
        volumes(disk, kube::Client::new(service, "default"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A folder whose volume was seen at the second 1,000.
    fn owned(volume: &str, reclaimed: bool, revision: u64) -> Folder {
        let at = Some(at(1_000));
        let owner = Owner { volume: volume.to_owned(), reclaimed, revision, at };
        Folder { handle: "pvc-1".to_owned(), bytes: 100_000, owner }
    }

    #[test]
    fn a_folder_is_made_measured_and_removed() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        let folder = owned("pvc-1", true, 7);
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
        assert!(fs::read_dir(root(disk)).expect("a folder").next().is_none(), "nothing is left");
    }

    #[test]
    fn only_folders_that_were_to_go_with_their_volumes_go() {
        let check = |seen: Option<(bool, u64)>, looks: &[u64], expected: bool| {
            let disk = tempfile::tempdir().expect("a folder");
            let disk = disk.path();
            let link = disk.join("pods/uid-1/volumes/data");
            let (reclaimed, revision) = seen.unwrap_or_default();
            open(disk, &owned("pvc-1", reclaimed, revision), &link).expect("opened");
            if seen.is_none() {
                fs::remove_file(owner_file(disk, "pvc-1")).expect("as an earlier agent left it");
            }
            let goes = |now: u64| goes(disk, "pvc-1", now, at(1_060)).expect("looked");
            assert!(!goes(revision + 1), "a Pod uses it");
            fs::remove_dir_all(disk.join("pods/uid-1")).expect("the Pod goes");
            let looked: Vec<bool> = looks.iter().map(|now| goes(*now)).collect();
            assert_eq!(looked, vec![expected; looks.len()], "{seen:?}");
        };
        check(Some((true, 1_000)), &[1_000, 2_000, 99_000_000], true);
        check(Some((false, 1_000)), &[1_000, 2_000], false);
        check(None, &[1, 2_000], false);
        // A cluster that was made of a backup of a time before the volume, and goes on.
        check(Some((true, 5_000)), &[1_000_000_900, 1_000_000_950], false);
        // One whose disk was put back, and comes to the same revision again.
        check(Some((true, 5_000)), &[4_000, 6_000], false);
    }

    /// Its policy may have become `Retain` before it went.
    #[test]
    fn a_folder_stays_if_its_volume_was_not_seen_shortly_before_it_was_missed() {
        let check = |seen: Option<i64>, missed: i64, expected: bool| {
            let disk = tempfile::tempdir().expect("a folder");
            let disk = disk.path();
            let mut folder = owned("pvc-1", true, 7);
            folder.owner.at = seen.map(at);
            open(disk, &folder, &disk.join("pods/uid-1/volumes/data")).expect("opened");
            fs::remove_dir_all(disk.join("pods/uid-1")).expect("the Pod goes");
            let goes = |missed: i64| goes(disk, "pvc-1", 8, at(missed)).expect("looked");
            assert_eq!(goes(missed), expected, "{seen:?} {missed}");
            let stays = !owner(disk, "pvc-1").expect("noted").reclaimed;
            assert_eq!(stays, !expected, "it stays for good or goes");
        };
        check(Some(1_000), 1_060, true);
        check(Some(1_000), 1_180, true);
        check(Some(1_000), 1_181, false);
        check(Some(1_000), 900, false);
        check(None, 1_060, false);
    }

    /// Its policy may have changed while no agent was there, and its claim may go soon.
    #[tokio::test]
    async fn an_agent_that_begins_looks_at_once() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        open(disk, &owned("pvc-1", true, 7), &disk.join("link")).expect("opened");
        let volume = json!({
            "metadata": {"name": "pvc-1"},
            "spec": {"csi": {"driver": DRIVER, "volumeHandle": "pvc-1"},
                "capacity": {"storage": "1Ki"}, "persistentVolumeReclaimPolicy": "Retain"}});
        let shutdown = CancellationToken::new();
        let keeping = tokio::spawn(keep(answered(disk, 200, volume), shutdown.clone()));
        let noted = async {
            while owner(disk, "pvc-1").is_none_or(|seen| seen.reclaimed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LOOK / 3, noted).await.expect("it does not sleep first");
        shutdown.cancel();
        keeping.await.expect("it ends");
    }

    /// It would be missed anew after that, too late for what was seen of it to be believed.
    #[tokio::test]
    async fn a_volume_is_missed_since_then_also_if_a_look_fails_in_between() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        let ago = |seconds: i64| Timestamp::now() - SignedDuration::from_secs(seconds);
        let mut folder = owned("pvc-1", true, 7);
        folder.owner.at = Some(ago(300));
        let path = open(disk, &folder, &disk.join("pods/uid-1/volumes/data")).expect("opened");
        fs::remove_dir_all(disk.join("pods/uid-1")).expect("the Pod goes");
        let first = BTreeMap::from([("pvc-1".to_owned(), ago(200))]);
        let mut missing = first.clone();
        let says = |code: u16| answered(disk, code, json!({"kind": "Status", "code": code}));
        look(&says(503), &mut missing).await;
        assert_eq!(missing, first);
        assert!(path.is_dir(), "nobody has said that the volume is gone");
        look(&says(404), &mut missing).await;
        assert!(!path.exists(), "it was missed shortly after it was seen");
    }

    /// Only an answer of the control plane is a sight of the volume.
    #[test]
    fn what_is_kept_of_a_volume_is_no_sight_of_it() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        let opened = |revision: u64, seen: Option<i64>| {
            let mut folder = owned("pvc-1", true, revision);
            folder.owner.at = seen.map(at);
            open(disk, &folder, &disk.join("pods/uid-1/volumes/data")).expect("opened");
            owner(disk, "pvc-1").expect("noted").at
        };
        assert_eq!(opened(5, None), None);
        assert_eq!(opened(5, Some(10)), Some(at(10)));
        assert_eq!(opened(5, None), Some(at(10)));
        assert_eq!(opened(7, None), Some(at(10)));
        assert_eq!(opened(5, Some(20)), Some(at(20)), "it has not changed since the revision 7");
        assert_eq!(opened(8, Some(30)), Some(at(30)));
    }

    #[test]
    fn an_old_word_of_a_volume_takes_the_place_of_no_newer_one() {
        let disk = tempfile::tempdir().expect("a folder");
        let disk = disk.path();
        let link = disk.join("pods/uid-1/volumes/data");
        let opened = |folder: Folder| {
            open(disk, &folder, &link).expect("opened");
            owner(disk, "pvc-1").expect("noted")
        };
        let first = owned("pvc-1", true, 1_000);
        assert_eq!(opened(first.clone()), first.owner);
        let retained = Folder { bytes: 200_000, ..owned("pvc-1", false, 3_000) };
        remember(disk, &retained).expect("a look has seen it, and that it has grown");
        assert_eq!(opened(first), retained.owner);
        assert_eq!(size(disk, "pvc-1"), Some(200_000));
        let changed = owned("pvc-1", true, 4_000);
        assert_eq!(opened(changed.clone()), changed.owner);
        let by_hand = owned("mine", false, 2_000);
        assert_eq!(opened(by_hand.clone()), by_hand.owner, "another volume has it now");
        let kept = Folder { bytes: 50_000, ..owned("pvc-1", false, 0) };
        assert_eq!(opened(kept), by_hand.owner, "an earlier agent has not kept whose it is");
        assert_eq!(size(disk, "pvc-1"), Some(by_hand.bytes));
    }

    #[test]
    fn handles_stay_in_their_folder() {
        for handle in ["", "..", "a/b", "/etc", ".", "a.size"] {
            assert!(check_handle(handle).is_err(), "{handle}");
        }
        assert!(check_handle("pvc-0b2f-1").is_ok());
    }
}
