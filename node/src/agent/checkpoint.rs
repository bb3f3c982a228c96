//! What this node needs to run its Pods while no server can be reached, on its own disk.
//!
//! ```text
//!   <data dir>/checkpoint/{pods,services,slices,nodes,…}/<key>.json   as the API said it last
//!   <data dir>/checkpoint/{claims,namespaces}/<key>.json              what volumes need of it
//!   <data dir>/checkpoint/configmaps/<namespace>.<name>.json
//!   <memory>/checkpoint/secrets/<namespace>.<name>.json               tmpfs: gone with a reboot
//! ```
//!
//! Every file is replaced as a whole by a rename. A file that cannot be read is as if it were not
//! there. Secrets are kept in memory-backed files only: a Pod that needs one starts after a reboot
//! when a server is back. Nothing here is a source of truth: a server that answers is believed, and
//! what it does not list any more is forgotten, also if that went while no agent was there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::{objects::Data, spec::Source};

/// A kind of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Pods bound to this node, with their last status.
    Pods,
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Nodes.
    Nodes,
    /// NetworkPolicies.
    Policies,
    /// Labels of namespaces.
    Labels,
    /// PersistentVolumes by the claims that are bound to them, or why they cannot be mounted.
    Claims,
    /// Pod Security levels of namespaces.
    Namespaces,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Pods,
        Kind::Services,
        Kind::Slices,
        Kind::Nodes,
        Kind::Policies,
        Kind::Labels,
        Kind::Claims,
        Kind::Namespaces,
    ];
    /// Those of which watches say everything that exists.
    const WATCHED: [Kind; 6] =
        [Kind::Pods, Kind::Services, Kind::Slices, Kind::Nodes, Kind::Policies, Kind::Labels];

    fn folder(self) -> &'static str {
        match self {
            Kind::Pods => "pods",
            Kind::Services => "services",
            Kind::Slices => "slices",
            Kind::Nodes => "nodes",
            Kind::Policies => "policies",
            Kind::Labels => "labels",
            Kind::Claims => "claims",
            Kind::Namespaces => "namespaces",
        }
    }
}

/// The files. Cheap to share.
#[derive(Debug)]
pub struct Checkpoint {
    disk: PathBuf,
    /// None where the machine has no memory-backed file system that is ours.
    memory: Option<PathBuf>,
    /// To be written; None: to be removed. Locked for an insert or a take.
    pending: Mutex<HashMap<PathBuf, Option<Vec<u8>>>>,
    /// What an earlier agent left, by watched kinds, and nobody has spoken of since. Locked for a
    /// look.
    inherited: Mutex<HashMap<Kind, HashSet<PathBuf>>>,
    changed: Notify,
}

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);

impl Checkpoint {
    /// Opens or makes the folders.
    pub fn open(data_dir: &Path, memory: Option<&Path>) -> io::Result<Arc<Checkpoint>> {
        let disk = data_dir.join("checkpoint");
        for kind in Kind::ALL {
            make_dir(&disk.join(kind.folder()))?;
        }
        make_dir(&disk.join("configmaps"))?;
        let memory = memory.map(|root| root.join("secrets"));
        if let Some(memory) = &memory {
            make_dir(memory)?;
        }
        let left = |kind: Kind| -> (Kind, HashSet<PathBuf>) {
            let entries = fs::read_dir(disk.join(kind.folder())).into_iter().flatten().flatten();
            (kind, entries.map(|entry| entry.path()).collect())
        };
        let inherited = Mutex::new(HashMap::from(Kind::WATCHED.map(left)));
        let (pending, changed) = (Mutex::new(HashMap::new()), Notify::new());
        Ok(Arc::new(Checkpoint { disk, memory, pending, inherited, changed }))
    }

    /// Keeps an object, soon. Of what comes quickly one after the other the last is written.
    pub fn keep<T: Serialize>(&self, kind: Kind, key: &str, value: &T) {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.put(kind, key, Some(bytes)),
            Err(error) => tracing::error!(key, %error, "an object cannot be kept"),
        }
    }

    /// Forgets an object, soon.
    pub fn forget(&self, kind: Kind, key: &str) {
        self.put(kind, key, None);
    }

    fn put(&self, kind: Kind, key: &str, bytes: Option<Vec<u8>>) {
        let path = self.disk.join(kind.folder()).join(file_name(key));
        if let Some(left) = self.inherited().get_mut(&kind) {
            left.remove(&path);
        }
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(path, bytes);
        self.changed.notify_one();
    }

    /// Everything of a watched kind that exists has been kept. What an earlier agent left besides was
    /// deleted while no agent was there: it is forgotten, soon.
    pub fn listed(&self, kind: Kind) {
        let left = self.inherited().remove(&kind).unwrap_or_default();
        let gone = left.into_iter().map(|path| (path, None));
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
        self.changed.notify_one();
    }

    fn inherited(&self) -> MutexGuard<'_, HashMap<Kind, HashSet<PathBuf>>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is to be kept, for ever; [`Checkpoint::flush`] writes the rest.
    pub async fn run(self: Arc<Checkpoint>) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            self.flush().await;
        }
    }

    /// Writes what is to be kept now.
    pub async fn flush(&self) {
        let pending =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if pending.is_empty() {
            return;
        }
        let written = tokio::task::spawn_blocking(move || {
            for (path, bytes) in pending {
                let outcome = match bytes {
                    Some(bytes) => replace(&path, &bytes),
                    // It may never have been kept.
                    None => fs::remove_file(&path).or(Ok(())),
                };
                if let Err(error) = outcome {
                    tracing::warn!(path = %path.display(), %error, "cannot keep an object");
                }
            }
        });
        if let Err(panic) = written.await {
            tracing::error!(%panic, "keeping objects failed");
        }
    }

    /// All objects of a kind that can be read.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Vec<T> {
        let folder = self.disk.join(kind.folder());
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            match fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            {
                Ok(value) => found.push(value),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "passing over a kept object");
                }
            }
        }
        found
    }

    /// One object of a kind, if it was kept and can be read.
    pub async fn read<T: DeserializeOwned>(&self, kind: Kind, key: &str) -> Option<T> {
        let path = self.disk.join(kind.folder()).join(file_name(key));
        // It may wait to be written.
        let pending =
            self.pending.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
        let bytes = match pending {
            Some(bytes) => bytes?,
            None => tokio::fs::read(path).await.ok()?,
        };
        serde_json::from_slice(&bytes).ok()
    }

    /// A ConfigMap or Secret as it was last read.
    pub async fn object(&self, namespace: &str, source: &Source) -> Option<Data> {
        let bytes = tokio::fs::read(self.object_path(namespace, source)?).await.ok()?;
        let text: BTreeMap<String, String> = serde_json::from_slice(&bytes).ok()?;
        let decoded =
            text.into_iter().map(|(key, value)| Some((key, STANDARD.decode(value).ok()?)));
        decoded.collect()
    }

    /// Keeps it, or forgets it.
    pub async fn keep_object(&self, namespace: &str, source: &Source, data: Option<&Data>) {
        let Some(path) = self.object_path(namespace, source) else {
            return;
        };
        let Some(data) = data else {
            let _ = tokio::fs::remove_file(path).await;
            return;
        };
        let text: BTreeMap<&String, String> =
            data.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let bytes = serde_json::to_vec(&text).expect("a map of strings is JSON");
        write(path, bytes).await;
    }

    /// Where an object lies. None: it has to be in memory, and there is no such place.
    fn object_path(&self, namespace: &str, source: &Source) -> Option<PathBuf> {
        let (folder, name) = match source {
            Source::ConfigMap(name) => (self.disk.join("configmaps"), name),
            Source::Secret(name) => (self.memory.clone()?, name),
        };
        Some(folder.join(file_name(&format!("{namespace}/{name}"))))
    }

    /// Removes objects of a kind that have none of these keys.
    pub fn sweep(&self, kind: Kind, keys: &[String]) {
        let kept: HashSet<OsString> = keys.iter().map(|key| file_name(key).into()).collect();
        for entry in fs::read_dir(self.disk.join(kind.folder())).into_iter().flatten().flatten() {
            if !kept.contains(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes ConfigMaps and Secrets that no Pod of this node refers to any more.
    pub fn sweep_objects(&self, used: &[(String, Source)]) {
        let kept: HashSet<PathBuf> = used
            .iter()
            .filter_map(|(namespace, source)| self.object_path(namespace, source))
            .collect();
        let folders = [Some(self.disk.join("configmaps")), self.memory.clone()];
        for folder in folders.into_iter().flatten() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if !kept.contains(&entry.path()) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// A name that any key fits in, readable where it can be.
fn file_name(key: &str) -> String {
    let plain: String = key
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '.' })
        .take(120)
        .collect();
    let hash = hex::encode(&Sha256::digest(key)[..8]);
    format!("{plain}.{hash}.json")
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

async fn write(path: PathBuf, bytes: Vec<u8>) {
    let written = tokio::task::spawn_blocking(move || {
        let result = replace(&path, &bytes);
        result.map_err(|error| (path, error))
    });
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err((path, error))) => {
            tracing::warn!(path = %path.display(), %error, "cannot keep an object");
        }
        Err(panic) => tracing::error!(%panic, "keeping an object failed"),
    }
}

/// Replaces a file as a whole. It is not forced to the disk: after a power cut an older or missing
/// copy is one Pod that waits for a server, and forcing thousands would slow every start.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Of its own for each write: two Pods that start together keep the same ConfigMap.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let draft = path.with_extension(format!("{}.draft", DRAFTS.fetch_add(1, Relaxed)));
    let mut file =
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_kept_is_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = tempfile::tempdir().expect("a folder");
        let open = || Checkpoint::open(folder.path(), Some(memory.path())).expect("open");
        let checkpoint = open();
        checkpoint.keep(Kind::Pods, "shop/a", &"one");
        checkpoint.keep(Kind::Pods, "shop/b", &"two");
        assert_eq!(checkpoint.read(Kind::Pods, "shop/a").await, Some("one".to_owned()));
        checkpoint.flush().await;
        assert_eq!(checkpoint.read(Kind::Pods, "shop/a").await, Some("one".to_owned()));
        checkpoint.forget(Kind::Pods, "shop/a");
        assert_eq!(checkpoint.read::<String>(Kind::Pods, "shop/a").await, None);
        checkpoint.keep(Kind::Claims, "shop/c", &"three");
        checkpoint.keep(Kind::Claims, "shop/d", &"four");
        checkpoint.flush().await;
        checkpoint.sweep(Kind::Claims, &["shop/d".to_owned()]);
        assert_eq!(checkpoint.load::<String>(Kind::Claims), ["four"]);
        checkpoint.flush().await;
        let data: Data = [("key".to_owned(), vec![0, 255])].into();
        let secret = Source::Secret("s".to_owned());
        let map = Source::ConfigMap("s".to_owned());
        checkpoint.keep_object("shop", &secret, Some(&data)).await;
        checkpoint.keep_object("shop", &map, Some(&data)).await;
        let checkpoint = open();
        assert_eq!(checkpoint.load::<String>(Kind::Pods), ["two"]);
        assert_eq!(checkpoint.object("shop", &secret).await, Some(data.clone()));
        assert_eq!(checkpoint.object("bank", &secret).await, None);
        checkpoint.sweep_objects(&[("shop".to_owned(), map.clone())]);
        assert_eq!(checkpoint.object("shop", &secret).await, None);
        assert_eq!(checkpoint.object("shop", &map).await, Some(data));
    }

    /// Watches of this agent never knew what was deleted while none was there.
    #[tokio::test]
    async fn what_is_on_no_list_is_forgotten_also_if_an_earlier_agent_kept_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || Checkpoint::open(folder.path(), None).expect("open");
        let earlier = open();
        for key in ["a", "b", "c"] {
            earlier.keep(Kind::Pods, key, &key);
        }
        earlier.keep(Kind::Services, "a", &"service");
        earlier.keep(Kind::Claims, "a", &"claim");
        earlier.flush().await;
        let checkpoint = open();
        checkpoint.keep(Kind::Pods, "b", &"b, as it is now");
        checkpoint.flush().await;
        // This one waits to be written when the list is complete.
        checkpoint.keep(Kind::Pods, "c", &"c, as it is now");
        checkpoint.listed(Kind::Pods);
        // It came after the list.
        checkpoint.keep(Kind::Pods, "d", &"d");
        checkpoint.flush().await;
        let kept = |kind| {
            let mut all = open().load::<String>(kind);
            all.sort();
            all
        };
        assert_eq!(kept(Kind::Pods), ["b, as it is now", "c, as it is now", "d"]);
        assert_eq!(kept(Kind::Services), ["service"], "nobody has listed those");
        assert_eq!(kept(Kind::Claims), ["claim"]);
        // A later list says nothing that the watch does not say itself.
        checkpoint.listed(Kind::Pods);
        checkpoint.flush().await;
        assert_eq!(kept(Kind::Pods).len(), 3);
    }

    /// Nothing of a Secret is ever written below the data folder.
    #[tokio::test]
    async fn secrets_do_not_touch_the_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Checkpoint::open(folder.path(), None).expect("open");
        let secret = Source::Secret("s".to_owned());
        let data: Data = [("key".to_owned(), b"hush".to_vec())].into();
        checkpoint.keep_object("shop", &secret, Some(&data)).await;
        assert_eq!(checkpoint.object("shop", &secret).await, None);
    }
}
