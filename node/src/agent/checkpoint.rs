//! What this node needs to run its Pods while no server can be reached, on its own disk.
//!
//! ```text
//!   <data dir>/checkpoint/journal                          what watches say: as the API said it last
//!   <data dir>/checkpoint/{claims,namespaces}/<key>.json   what volumes need of it
//!   <data dir>/checkpoint/configmaps/<namespace>.<name>.json
//!   <memory>/checkpoint/secrets/<namespace>.<name>.json    tmpfs: gone with a reboot
//! ```
//!
//! What watches say changes often, for each Pod several times while it starts: it is a journal. What
//! is asked for are files, each replaced as a whole by a rename. What cannot be read is as if it were
//! not there. Secrets are kept in memory-backed files only: a Pod that needs one starts after a reboot
//! when a server is back. Nothing here is a source of truth: a server that answers is believed, and
//! what it does not list any more is forgotten, also if that went while no agent was there.

mod journal;

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
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use self::journal::{Change, Journal, Key};
use super::{objects::Data, spec::Source};

/// A kind of what watches say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
}

/// The kinds, and the folders in which agents kept them before there was a journal.
const KINDS: [(Kind, &str); 6] = [
    (Kind::Pods, "pods"),
    (Kind::Services, "services"),
    (Kind::Slices, "slices"),
    (Kind::Nodes, "nodes"),
    (Kind::Policies, "policies"),
    (Kind::Labels, "labels"),
];

/// A kind of what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// PersistentVolumes by the claims that are bound to them, or why they cannot be mounted.
    Claims,
    /// Pod Security levels of namespaces.
    Namespaces,
}

impl Asked {
    fn folder(self) -> &'static str {
        match self {
            Asked::Claims => "claims",
            Asked::Namespaces => "namespaces",
        }
    }
}

/// The files. Cheap to share.
#[derive(Debug)]
pub struct Checkpoint {
    disk: PathBuf,
    /// None where the machine has no memory-backed file system that is ours.
    memory: Option<PathBuf>,
    /// Locked while it is read or written, by tasks that may block.
    journal: Mutex<Journal>,
    /// To be written; None: to be removed. Locked for an insert or a take.
    pending: Mutex<HashMap<Key, Option<Box<RawValue>>>>,
    /// What an earlier agent left and nobody has spoken of since. Locked for a look.
    inherited: Mutex<HashMap<Kind, HashSet<String>>>,
    changed: Notify,
}

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);
/// How long after they could not be written this is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Checkpoint {
    /// Opens or makes the files.
    pub fn open(data_dir: &Path, memory: Option<&Path>) -> io::Result<Arc<Checkpoint>> {
        let disk = data_dir.join("checkpoint");
        for folder in [Asked::Claims.folder(), Asked::Namespaces.folder(), "configmaps"] {
            make_dir(&disk.join(folder))?;
        }
        let memory = memory.map(|root| root.join("secrets"));
        if let Some(memory) = &memory {
            make_dir(memory)?;
        }
        let mut journal = Journal::open(disk.join("journal"))?;
        for (kind, folder) in KINDS {
            let folder = disk.join(folder);
            if let Err(error) = take_over(&mut journal, kind, &folder) {
                // It is tried again at the next start.
                tracing::warn!(folder = %folder.display(), %error, "not all that was kept is known");
            }
        }
        let left = |(kind, _)| (kind, journal.keys(kind).map(str::to_owned).collect());
        let inherited = Mutex::new(KINDS.map(left).into());
        let (journal, pending) = (Mutex::new(journal), Mutex::new(HashMap::new()));
        let changed = Notify::new();
        Ok(Arc::new(Checkpoint { disk, memory, journal, pending, inherited, changed }))
    }

    /// Keeps an object, soon. Of what comes quickly one after the other the last is written.
    pub fn keep<T: Serialize>(&self, kind: Kind, key: &str, value: &T) {
        match to_raw_value(value) {
            Ok(value) => self.put(kind, key, Some(value)),
            Err(error) => tracing::error!(key, %error, "an object cannot be kept"),
        }
    }

    /// Forgets an object, soon.
    pub fn forget(&self, kind: Kind, key: &str) {
        self.put(kind, key, None);
    }

    fn put(&self, kind: Kind, key: &str, value: Option<Box<RawValue>>) {
        if let Some(left) = self.inherited().get_mut(&kind) {
            left.remove(key);
        }
        self.pending().insert((kind, key.to_owned()), value);
        self.changed.notify_one();
    }

    /// Everything of a kind that exists has been kept. What an earlier agent left besides was deleted
    /// while no agent was there: it is forgotten, soon.
    pub fn listed(&self, kind: Kind) {
        let left = self.inherited().remove(&kind).unwrap_or_default();
        self.pending().extend(left.into_iter().map(|key| ((kind, key), None)));
        self.changed.notify_one();
    }

    fn inherited(&self) -> MutexGuard<'_, HashMap<Kind, HashSet<String>>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Key, Option<Box<RawValue>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is to be kept, for ever; [`Checkpoint::flush`] writes the rest.
    pub async fn run(self: Arc<Checkpoint>) {
        let mut failing = false;
        loop {
            if !failing {
                self.changed.notified().await;
            }
            tokio::time::sleep(if failing { AGAIN } else { GATHER }).await;
            let outcome = self.flush().await;
            match &outcome {
                Err(error) if !failing => {
                    tracing::warn!(%error, "cannot keep what this node would need without a server");
                }
                Ok(()) if failing => {
                    tracing::info!("what this node would need without a server is kept again");
                }
                _ => {}
            }
            failing = outcome.is_err();
        }
    }

    /// Writes what is to be kept now. After an error it is still to be written.
    pub async fn flush(self: &Arc<Checkpoint>) -> io::Result<()> {
        let all = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut journal = all.journal();
            let mut changes: Vec<Change> =
                std::mem::take(&mut *all.pending()).into_iter().collect();
            let outcome = journal.append(&mut changes);
            let mut pending = all.pending();
            for (key, value) in changes {
                // It may have changed meanwhile.
                pending.entry(key).or_insert(value);
            }
            outcome
        })
        .await?
    }

    /// All objects of a kind that can be read. Blocks.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Vec<T> {
        self.journal().load(kind)
    }

    /// What was asked for, if it was kept and can be read.
    pub async fn answer<T: DeserializeOwned>(&self, asked: Asked, key: &str) -> Option<T> {
        let bytes = tokio::fs::read(self.answer_path(asked, key)).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps what was asked for.
    pub async fn keep_answer<T: Serialize>(&self, asked: Asked, key: &str, value: &T) {
        match serde_json::to_vec(value) {
            Ok(bytes) => write(self.answer_path(asked, key), bytes).await,
            Err(error) => tracing::error!(key, %error, "an object cannot be kept"),
        }
    }

    fn answer_path(&self, asked: Asked, key: &str) -> PathBuf {
        self.disk.join(asked.folder()).join(file_name(key))
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

    /// Removes what was asked for under none of these keys.
    pub fn sweep(&self, asked: Asked, keys: &[String]) {
        let kept: HashSet<OsString> = keys.iter().map(|key| file_name(key).into()).collect();
        for entry in fs::read_dir(self.disk.join(asked.folder())).into_iter().flatten().flatten() {
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

/// Takes what agents kept in a file for each object, in place of what is known of that kind: an agent of
/// then has run since.
fn take_over(journal: &mut Journal, kind: Kind, folder: &Path) -> io::Result<()> {
    let taken = folder.with_extension("taken");
    if folder.exists() {
        let mut gone: Vec<Change> =
            journal.keys(kind).map(|key| ((kind, key.to_owned()), None)).collect();
        journal.append(&mut gone)?;
        journal.append(&mut journal::files(folder, kind))?;
        journal.sync()?;
        fs::rename(folder, &taken)?;
    }
    match fs::remove_dir_all(taken) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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

/// Replaces a file as a whole. It is not forced to the disk, nor is the journal: after a power cut what
/// is older or missing is a Pod that waits for a server, and forcing thousands would slow every start.
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
        checkpoint.flush().await.expect("written");
        checkpoint.forget(Kind::Pods, "shop/a");
        checkpoint.flush().await.expect("written");
        checkpoint.keep_answer(Asked::Claims, "shop/c", &"three").await;
        checkpoint.keep_answer(Asked::Claims, "shop/d", &"four").await;
        checkpoint.sweep(Asked::Claims, &["shop/d".to_owned()]);
        assert_eq!(checkpoint.answer::<String>(Asked::Claims, "shop/c").await, None);
        assert_eq!(checkpoint.answer::<String>(Asked::Namespaces, "shop/d").await, None);
        let data: Data = [("key".to_owned(), vec![0, 255])].into();
        let secret = Source::Secret("s".to_owned());
        let map = Source::ConfigMap("s".to_owned());
        checkpoint.keep_object("shop", &secret, Some(&data)).await;
        checkpoint.keep_object("shop", &map, Some(&data)).await;
        let checkpoint = open();
        assert_eq!(checkpoint.load::<String>(Kind::Pods), ["two"]);
        let claim = checkpoint.answer(Asked::Claims, "shop/d").await;
        assert_eq!(claim, Some("four".to_owned()));
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
        earlier.flush().await.expect("written");
        let checkpoint = open();
        checkpoint.keep(Kind::Pods, "b", &"b, as it is now");
        checkpoint.flush().await.expect("written");
        // This one waits to be written when the list is complete.
        checkpoint.keep(Kind::Pods, "c", &"c, as it is now");
        checkpoint.listed(Kind::Pods);
        // It came after the list.
        checkpoint.keep(Kind::Pods, "d", &"d");
        checkpoint.flush().await.expect("written");
        let kept = |kind| {
            let mut all = open().load::<String>(kind);
            all.sort();
            all
        };
        assert_eq!(kept(Kind::Pods), ["b, as it is now", "c, as it is now", "d"]);
        assert_eq!(kept(Kind::Services), ["service"], "nobody has listed those");
        // A later list says nothing that the watch does not say itself.
        checkpoint.listed(Kind::Pods);
        checkpoint.flush().await.expect("written");
        assert_eq!(kept(Kind::Pods).len(), 3);
    }

    /// Agents of 0.1 kept a file for each object.
    #[tokio::test]
    async fn files_of_an_earlier_agent_are_there_until_their_kind_is_listed() {
        let folder = tempfile::tempdir().expect("a folder");
        let pods = folder.path().join("checkpoint/pods");
        make_dir(&pods).expect("made");
        let files = [("shop.a.00.json", "\"a\""), ("shop.b.00.json", "\"b\"")];
        let others = [("shop.c.00.json", "{"), ("shop.a.00.7.draft", "\"draft\"")];
        for (name, text) in files.into_iter().chain(others) {
            fs::write(pods.join(name), text).expect("written");
        }
        let open = || Checkpoint::open(folder.path(), None).expect("open");
        let all = |checkpoint: &Checkpoint| {
            let mut all = checkpoint.load::<String>(Kind::Pods);
            all.sort();
            all
        };
        assert_eq!(all(&open()), ["a", "b"]);
        assert!(!pods.exists());
        let checkpoint = open();
        checkpoint.keep(Kind::Pods, "shop/a", &"a, as it is now");
        checkpoint.listed(Kind::Pods);
        checkpoint.flush().await.expect("written");
        assert_eq!(all(&open()), ["a, as it is now"]);
        // An agent of then has run since, and this one was killed while it took over what that left.
        make_dir(&pods).expect("made");
        make_dir(&pods.with_extension("taken")).expect("made");
        fs::write(pods.join("shop.b.00.json"), "\"b again\"").expect("written");
        assert_eq!(all(&open()), ["b again"]);
        assert_eq!(all(&open()), ["b again"]);
    }

    /// A disk that has no room for a while.
    #[tokio::test]
    async fn what_cannot_be_kept_is_kept_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Checkpoint::open(folder.path(), None).expect("open");
        checkpoint.keep(Kind::Pods, "a", &"a");
        checkpoint.keep(Kind::Pods, "b", &"b");
        checkpoint.flush().await.expect("written");
        let file = checkpoint.journal().without_room();
        checkpoint.keep(Kind::Pods, "a", &"a, later");
        checkpoint.forget(Kind::Pods, "b");
        checkpoint.flush().await.expect_err("there is no room");
        checkpoint.keep(Kind::Pods, "a", &"a, now");
        checkpoint.flush().await.expect_err("there is no room");
        checkpoint.journal().with_room(file);
        checkpoint.flush().await.expect("written");
        let next = Checkpoint::open(folder.path(), None).expect("open");
        assert_eq!(next.load::<String>(Kind::Pods), ["a, now"]);
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
