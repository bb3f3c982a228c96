//! Volumes: made before a container that mounts them starts, kept up to date while the Pod lives,
//! removed when nothing of it runs any more.
//!
//! ```text
//!   <data dir>/pods/<uid>/volumes/<name>      emptyDir, files without secrets
//!   <memory>/pods/<uid>/volumes/<name>        emptyDir in memory, files with secrets or tokens
//!   <either>/pods/<uid>/containers/<name>     single files that a container mounts, its last words,
//!                                             the root of one that runs the toolbox
//!   <data dir>/local-volumes/<handle>         PersistentVolumes of this node, see `local`
//! ```
//!
//! A guest sees directories only (WASI has no other preopens): a single file is shown in a directory
//! of its own. Nothing that a guest can write to is ever resolved by its path, see `beneath.rs`.
//! Secrets lie on a memory-backed file system; a node that has none does not mount them.

mod atomic;
mod claim;
mod content;
pub mod local;
mod places;
mod root;
mod usage;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{Api, api::PostParams};
use tokio_util::sync::CancellationToken;

use crate::{
    beneath,
    protocol::{self, LastWords},
};

pub use self::usage::{Use, measure};
use self::{content::Known, places::Place, words::Speaker};
use super::{
    checkpoint::Asked,
    env, env_file,
    images::Images,
    lifecycle::{Problem, UNMOUNTED},
    objects::{Data, Objects},
    spec::{Content, EnvFile, Files, Part, PodSpec, Source, Sub, TokenItem, Volume, VolumeMount},
    users::{Users, closed_to},
};

/// How often files are compared with their sources; Kubernetes promises a minute.
const REFRESH: Duration = Duration::from_secs(30);
/// A token is replaced after four fifths of its life, or after a day.
const TOKEN_AGE_MAX: i64 = 24 * 3600;

/// All volumes of this node.
pub struct Volumes {
    client: kube::Client,
    objects: Arc<Objects>,
    images: Arc<Images>,
    host_ip: IpAddr,
    disk: PathBuf,
    memory: Option<PathBuf>,
    users: Arc<Users>,
    /// Pods that have volumes. Locked only to look one up.
    pods: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Mounted>>>>,
}

/// Objects that were read in one round, so that each is read once however many Pods show it.
type Round = HashMap<(String, Source), Option<Data>>;

/// The volumes of one Pod.
struct Mounted {
    pod: Arc<PodSpec>,
    ip: IpAddr,
    ready: BTreeMap<String, Root>,
    tokens: BTreeMap<TokenItem, Token>,
}

/// A volume that can be mounted.
#[derive(Debug, Clone)]
struct Root {
    path: PathBuf,
    /// Only this file of it.
    file: Option<String>,
    read_only: bool,
    /// Single files are copied from it, because it may be replaced under them.
    replaced: bool,
}

impl Root {
    /// A volume of files that the agent writes.
    fn written(path: PathBuf) -> Root {
        Root { path, file: None, read_only: true, replaced: true }
    }
}

struct Token {
    text: String,
    due: Timestamp,
}

impl Volumes {
    /// Over these folders.
    pub fn new(
        client: kube::Client,
        objects: Arc<Objects>,
        images: Arc<Images>,
        host_ip: IpAddr,
        ((disk, memory), users): ((PathBuf, Option<PathBuf>), Arc<Users>),
    ) -> Volumes {
        let pods = Mutex::new(HashMap::new());
        Volumes { client, objects, images, host_ip, disk, memory, users, pods }
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Mounted>>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a container mounts, made and filled; and where its last words are. Whether it gets a root
    /// is known by its image.
    pub async fn prepare(
        &self,
        pod: &Arc<PodSpec>,
        index: usize,
        ip: IpAddr,
        env: &protocol::Env,
        (guest, has_root): (protocol::Guest, bool),
    ) -> Result<(Vec<protocol::Mount>, LastWords), Problem> {
        let container = &pod.containers[index];
        let mut mounts = Vec::new();
        if !container.mounts.is_empty() {
            let mounted = self.mounted(pod, ip);
            let mut mounted = mounted.lock().await;
            mounted.pod = pod.clone();
            for (number, mount) in container.mounts.iter().enumerate() {
                let root = self.root(&mut mounted, &mount.volume).await?;
                mounts.push(self.mount(pod, index, number, mount, root, env).await?);
            }
        }
        let own = |folder: PathBuf| folder.join("containers").join(&container.name);
        let own: Vec<PathBuf> = self.folders(&pod.uid).into_iter().map(own).collect();
        let folders = own.clone();
        let joined = blocking(move || places::joined(mounts, &folders)).await;
        let mounts = joined.map_err(|why| Problem {
            reason: "CreateContainerError",
            message: format!("cannot show single files beside each other: {why}"),
        })?;
        self.last_words(pod, index, (guest, has_root), own, mounts).await
    }

    fn mounted(&self, pod: &Arc<PodSpec>, ip: IpAddr) -> Arc<tokio::sync::Mutex<Mounted>> {
        let new = || {
            let (ready, tokens) = (BTreeMap::new(), BTreeMap::new());
            Arc::new(tokio::sync::Mutex::new(Mounted { pod: pod.clone(), ip, ready, tokens }))
        };
        self.pods().entry(pod.uid.clone()).or_insert_with(new).clone()
    }

    /// A Pod that an earlier agent has started: its files are kept fresh from now on.
    pub fn adopt(&self, pod: &Arc<PodSpec>, ip: IpAddr) {
        let mut ready = BTreeMap::new();
        for volume in &pod.volumes {
            let Content::Files(files) = &volume.content else { continue };
            let path = self.files_folder(&pod.uid, &volume.name, files);
            if let Some(path) = path.ok().filter(|path| atomic::is_written(path)) {
                ready.insert(volume.name.clone(), Root::written(path));
            }
        }
        if ready.is_empty() {
            return;
        }
        let mounted = Mounted { pod: pod.clone(), ip, ready, tokens: BTreeMap::new() };
        self.pods().insert(pod.uid.clone(), Arc::new(tokio::sync::Mutex::new(mounted)));
    }

    /// A volume of the Pod, made if it is not there yet.
    async fn root(&self, mounted: &mut Mounted, name: &str) -> Result<Root, Problem> {
        if let Some(root) = mounted.ready.get(name) {
            return Ok(root.clone());
        }
        let pod = mounted.pod.clone();
        let volume = pod.volumes.iter().find(|volume| volume.name == name);
        let missing = || format!("the Pod has no volume {name:?}");
        let volume = volume.ok_or_else(missing).map_err(|why| failed(name, &why))?;
        let root = self.make(mounted, volume).await.map_err(|why| failed(name, &why))?;
        mounted.ready.insert(name.to_owned(), root.clone());
        Ok(root)
    }

    async fn make(&self, mounted: &mut Mounted, volume: &Volume) -> Result<Root, String> {
        let plain = |path, read_only| Root { path, file: None, read_only, replaced: false };
        match &volume.content {
            Content::EmptyDir { memory, .. } => {
                let path =
                    self.folder(&mounted.pod.uid, *memory)?.join("volumes").join(&volume.name);
                make_dir(&path).await?;
                Ok(plain(path, false))
            }
            Content::Files(files) => {
                let path = self.files_folder(&mounted.pod.uid, &volume.name, files)?;
                self.fill(mounted, files, &path, &mut Round::new()).await?;
                Ok(Root::written(path))
            }
            Content::HostPath { path, kind } => {
                self.check_privileged(&mounted.pod.namespace).await?;
                let (path, kind) = (path.clone(), kind.clone());
                let found = blocking(move || places::host_path(&path, &kind)).await?;
                let (path, file) = found;
                Ok(Root { file, ..plain(path, false) })
            }
            Content::Claim { name, read_only } => {
                // It asks for several objects, and this is part of every start's future.
                let claim = Box::pin(self.claim(&mounted.pod, name)).await?;
                let link = self.folder(&mounted.pod.uid, false)?.join("volumes").join(&volume.name);
                let disk = self.disk.clone();
                let path = blocking(move || match claim {
                    Place::Local(folder) => local::open(&disk, &folder, &link),
                    other => places::existing(other),
                });
                Ok(plain(path.await?, *read_only))
            }
            Content::Image { reference, pull } => {
                let found = self.images.resolve(&mounted.pod, reference, *pull, || ()).await;
                let found = found.map_err(|problem| problem.message)?;
                let folder =
                    self.folder(&mounted.pod.uid, false)?.join("volumes").join(&volume.name);
                make_dir(&folder).await?;
                let (blob, file) = (self.images.blob(&found), folder.join("module.wasm"));
                blocking(move || places::link_or_copy(&blob, &file)).await?;
                Ok(plain(folder, true))
            }
            Content::Unsupported(why) => Err(why.clone()),
        }
    }

    fn folder(&self, uid: &str, memory: bool) -> Result<PathBuf, String> {
        let root = if memory { self.memory.as_ref() } else { Some(&self.disk) };
        let root = root.ok_or(
            "it must not be on a disk, and this node has no memory-backed file system (neither \
             /run nor /dev/shm can be used)",
        )?;
        Ok(root.join("pods").join(uid))
    }

    fn files_folder(&self, uid: &str, name: &str, files: &Files) -> Result<PathBuf, String> {
        Ok(self.folder(uid, files.is_secret())?.join("volumes").join(name))
    }

    /// Writes the files of a volume, if they differ from what is there.
    async fn fill(
        &self,
        mounted: &mut Mounted,
        files: &Files,
        path: &Path,
        round: &mut Round,
    ) -> Result<bool, String> {
        let pod = mounted.pod.clone();
        let mut objects = BTreeMap::new();
        for source in files.sources() {
            let key = (pod.namespace.clone(), source.clone());
            let data = match round.get(&key) {
                Some(data) => data.clone(),
                None => self.objects.get(&pod.namespace, source).await?,
            };
            round.insert(key, data.clone());
            objects.insert(source.clone(), data);
        }
        let mut tokens = BTreeMap::new();
        for part in &files.parts {
            let Part::Token(item) = part else { continue };
            match self.token(mounted, item).await {
                Ok(token) => tokens.insert(item.clone(), token),
                // What an earlier agent wrote is good until it expires.
                Err(_) if atomic::is_written(path) => return Ok(false),
                Err(error) => return Err(error),
            };
        }
        let context = env::Context::defaults(mounted.ip, self.host_ip);
        let known = Known { objects: &objects, tokens: &tokens, context: &context };
        let payload = content::payload(files, &pod, &known)?;
        let (path, owner) = (path.to_owned(), self.users.owner(&pod.namespace));
        blocking(move || atomic::write(&path, &payload, owner, Timestamp::now())).await
    }

    /// A token that is good for a while.
    async fn token(&self, mounted: &mut Mounted, item: &TokenItem) -> Result<String, String> {
        let now = Timestamp::now();
        if let Some(token) = mounted.tokens.get(item).filter(|token| token.due > now) {
            return Ok(token.text.clone());
        }
        let pod = &mounted.pod;
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &pod.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(item.audience.iter().cloned().collect()),
                expiration_seconds: Some(item.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer =
            api.create_token_request(&pod.service_account, &PostParams::default(), &request).await;
        let account = &pod.service_account;
        let failed = |error: &dyn std::fmt::Display| {
            format!("no token for the ServiceAccount {account}: {error}")
        };
        let status = answer.map_err(|error| failed(&error))?.status;
        let status = status.ok_or_else(|| failed(&"the answer has none"))?;
        let text = status.token.ok_or_else(|| failed(&"the answer has none"))?;
        let until = status.expiration_timestamp.map_or(now, |time| time.0);
        let life = until.as_second() - now.as_second();
        let due = now + Duration::from_secs((life * 4 / 5).clamp(0, TOKEN_AGE_MAX).unsigned_abs());
        mounted.tokens.insert(item.clone(), Token { text: text.clone(), due });
        Ok(text)
    }

    /// Paths of the host belong to those who may do anything in the namespace.
    async fn check_privileged(&self, namespace: &str) -> Result<(), String> {
        let level = self.objects.kept((Asked::Namespaces, namespace), async {
            let api: Api<Namespace> = Api::all(self.client.clone());
            let labels = api.get(namespace).await?.metadata.labels.unwrap_or_default();
            Ok(labels.get("pod-security.kubernetes.io/enforce").cloned().unwrap_or_default())
        });
        if level.await? == "privileged" {
            return Ok(());
        }
        Err(format!(
            "hostPath volumes need a privileged namespace; an administrator can label it: kubectl \
             label namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
        ))
    }

    /// One mount. A directory below the root is left to the worker; a single file gets a directory of
    /// its own, in which the guest finds it under its name.
    async fn mount(
        &self,
        pod: &PodSpec,
        index: usize,
        number: usize,
        mount: &VolumeMount,
        root: Root,
        env: &protocol::Env,
    ) -> Result<protocol::Mount, Problem> {
        let name = &mount.volume;
        let wrong = |why: String| Problem {
            reason: "CreateContainerConfigError",
            message: format!("volume {name:?}: {why}"),
        };
        let sub = match &mount.sub {
            None => root.file,
            Some(_) if root.file.is_some() => {
                return Err(failed(name, "it is a file, which has no subPath"));
            }
            Some(Sub::Path(path)) => Some(path.clone()),
            Some(Sub::Expression(text)) => {
                let expanded = env::expand_path(env, text);
                Some(expanded.map_err(|why| wrong(format!("failed to expand {text:?}: {why}")))?)
            }
        };
        let read_only = mount.read_only || root.read_only;
        let Some(sub) = sub else {
            let guest = mount.path.clone();
            return Ok(protocol::Mount { root: root.path, sub: None, guest, read_only });
        };
        if sub.split('/').any(|part| part == "..") || sub.starts_with('/') {
            return Err(wrong(format!("subPath {sub:?} does not stay inside of it")));
        }
        let secret = self.memory.as_ref().is_some_and(|memory| root.path.starts_with(memory));
        let own = self.folder(&pod.uid, secret).map_err(|why| failed(name, &why))?;
        let own = own.join("containers").join(&pod.containers[index].name);
        let own = own.join(format!("file-{number}"));
        let (below, path) = (PathBuf::from(&sub), mount.path.clone());
        let how = (root.replaced, self.users.owner(&pod.namespace));
        let made = blocking(move || places::sub_path(&root.path, &below, how, &own, &path));
        let made = made.await.map_err(|why| failed(name, &format!("subPath {sub:?}: {why}")));
        let (root, sub, guest) = made?;
        Ok(protocol::Mount { root, sub, guest, read_only })
    }

    /// The text of a file of variables in an `emptyDir`; `None` if it is not there. Nobody but
    /// containers of the Pod writes there, so nothing that they put in its way is followed.
    pub async fn env_file(&self, pod: &PodSpec, file: &EnvFile) -> Result<Option<String>, String> {
        let volume = pod.volumes.iter().find(|volume| volume.name == file.volume);
        let memory = match volume.map(|volume| &volume.content) {
            Some(Content::EmptyDir { memory, .. }) => *memory,
            Some(_) => return Err("the volume is no emptyDir".to_owned()),
            // Nobody mounts it, so nobody has written there.
            None => return Ok(None),
        };
        let root = self.folder(&pod.uid, memory)?.join("volumes").join(&file.volume);
        let below = PathBuf::from(&file.path);
        let read = blocking(move || places::text_beneath(&root, &below, env_file::FILE_BYTES_MAX));
        read.await
    }

    /// The file in which a container leaves its last words, and its mounts with that. A handler has
    /// one only where its Pod names a path: opening it for each request would cost every handler
    /// something.
    async fn last_words(
        &self,
        pod: &PodSpec,
        index: usize,
        (guest, has_root): (protocol::Guest, bool),
        own: Vec<PathBuf>,
        mut mounts: Vec<protocol::Mount>,
    ) -> Result<(Vec<protocol::Mount>, LastWords), Problem> {
        let container = &pod.containers[index];
        let no_file = LastWords { from_log: container.message_from_log, ..LastWords::default() };
        let by_default = container.message_path == super::spec::MESSAGE_PATH_DEFAULT;
        if guest == protocol::Guest::Handler && by_default {
            return Ok((mounts, no_file));
        }
        let speaker = Speaker {
            path: container.message_path.clone(),
            own,
            root: has_root.then_some(container.read_only_root),
            owner: self.users.owner(&pod.namespace),
        };
        let placed = blocking(move || {
            let found = words::place(&speaker, &mut mounts)?;
            Ok((mounts, found))
        });
        let (mounts, found) = placed.await.map_err(|why| Problem {
            reason: "CreateContainerError",
            message: format!("cannot make {}: {why}", container.message_path),
        })?;
        Ok(match found {
            Some((file, sub)) => (mounts, LastWords { file: Some(file), sub, ..no_file }),
            None => (mounts, no_file),
        })
    }

    /// Gives what guests write to the user of their worker; the last thing before a start.
    pub async fn settle(&self, pod: &PodSpec, mounts: &[protocol::Mount]) -> Result<(), Problem> {
        let Some(user) = self.users.owner(&pod.namespace) else {
            return Ok(());
        };
        let problem = |message| Problem { reason: "CreateContainerError", message };
        let roots = [Some(&self.disk), self.memory.as_ref()];
        let is_own = |root: &Path| roots.into_iter().flatten().any(|own| root.starts_with(own));
        let mut trees = Vec::new();
        for mount in mounts {
            if is_own(&mount.root) {
                trees.extend((!mount.read_only).then(|| mount.root.clone()));
            } else if let Some(why) = closed_to(user, &mount.root, !mount.read_only) {
                return Err(problem(why));
            }
        }
        let folders = self.folders(&pod.uid);
        self.users.settle(pod, folders, trees).await.map_err(problem)
    }

    /// Compares files with their sources from time to time, until `shutdown`.
    pub async fn keep_fresh(self: Arc<Volumes>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                () = shutdown.cancelled() => return,
            }
            let all: Vec<_> = self.pods().values().cloned().collect();
            let mut round = Round::new();
            for mounted in all {
                self.refresh(&mounted, &mut round).await;
            }
        }
    }

    /// The Pod changed: its fields may be shown in files.
    pub async fn changed(self: Arc<Volumes>, pod: Arc<PodSpec>) {
        let mounted = self.pods().get(&pod.uid).cloned();
        if let Some(mounted) = mounted {
            mounted.lock().await.pod = pod;
            self.refresh(&mounted, &mut Round::new()).await;
        }
    }

    async fn refresh(&self, mounted: &tokio::sync::Mutex<Mounted>, round: &mut Round) {
        let mut mounted = mounted.lock().await;
        let pod = mounted.pod.clone();
        for volume in &pod.volumes {
            let Content::Files(files) = &volume.content else { continue };
            let Some(root) = mounted.ready.get(&volume.name).cloned() else { continue };
            match self.fill(&mut mounted, files, &root.path, round).await {
                Ok(true) => tracing::info!(pod = pod.name, volume = volume.name, "updated"),
                Ok(false) => {}
                Err(error) => {
                    // What is there stays: a running container keeps what it has.
                    tracing::debug!(pod = pod.name, volume = volume.name, error, "not updated");
                }
            }
        }
    }

    /// Removes everything of a Pod.
    pub async fn remove(self: Arc<Volumes>, uid: String) {
        let mounted = self.pods().remove(&uid);
        self.remove_folders(&uid).await;
        if let Some(mounted) = mounted {
            // Who was writing its files meanwhile may have made some anew, and shall not do so later.
            mounted.lock().await.ready.clear();
            self.remove_folders(&uid).await;
        }
    }

    async fn remove_folders(&self, uid: &str) {
        for folder in self.folders(uid) {
            remove_tree(folder).await;
        }
    }

    /// What is left of all Pods but these. To be asked for when they are known: who comes after that
    /// has folders, too.
    pub fn left(&self, known: &BTreeSet<String>) -> Vec<PathBuf> {
        let roots = [Some(&self.disk), self.memory.as_ref()].into_iter().flatten();
        let folders = roots
            .flat_map(|root| std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten());
        let left = folders.filter(|it| !known.contains(&*it.file_name().to_string_lossy()));
        left.map(|folder| folder.path()).collect()
    }

    /// Forgets what was kept of objects that no Pod refers to. To be called when those are known,
    /// and done when it returns: for who comes after that something may be kept, too.
    pub fn forget(&self, objects: &[(String, Source)], claims: &[String]) {
        self.objects.sweep(objects, claims);
    }

    /// Removes what is left of Pods, which may take minutes.
    pub async fn sweep(left: Vec<PathBuf>) {
        for folder in left {
            remove_tree(folder).await;
        }
    }

    /// The folder of a claim that a Pod mounts, and how much it may hold, if it is this node's own.
    pub fn local(&self, uid: &str, volume: &str) -> Option<(PathBuf, u64)> {
        local::linked(&self.disk, &self.disk.join("pods").join(uid).join("volumes").join(volume))
    }

    /// Where a Pod's own files are, for measuring them: folder on disk, folder in memory.
    pub fn folders(&self, uid: &str) -> Vec<PathBuf> {
        let roots = [Some(&self.disk), self.memory.as_ref()].into_iter().flatten();
        roots.map(|root| root.join("pods").join(uid)).collect()
    }
}

/// A volume is not there, and an event says why.
fn failed(volume: &str, why: &str) -> Problem {
    Problem {
        reason: UNMOUNTED,
        message: format!("MountVolume.SetUp failed for volume {volume:?} : {why}"),
    }
}

async fn make_dir(path: &Path) -> Result<(), String> {
    tokio::fs::create_dir_all(path).await.map_err(|error| format!("{}: {error}", path.display()))
}

/// Runs what waits for a file system.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

async fn remove_tree(path: PathBuf) {
    let tree = path.clone();
    let removed = blocking(move || match beneath::remove_tree(&tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    if let Err(error) = removed.await {
        tracing::warn!(path = %path.display(), %error, "cannot remove the volumes of a Pod");
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::agent::{
        away::Away, checkpoint::Checkpoint, events::Recorder, images::Thresholds, spec,
    };

    /// A control plane that never answers.
    pub(super) fn silent() -> kube::Client {
        let never = |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        };
        kube::Client::new(tower::service_fn(never), "default")
    }

    /// Volumes of a node.
    pub(super) fn volumes(disk: &Path, client: kube::Client) -> Arc<Volumes> {
        let away = Arc::new(Away::default());
        let checkpoint = Checkpoint::open(disk, None).expect("folders");
        let objects = Objects::new(client.clone(), checkpoint, away.clone());
        let asking = (client.clone(), away, Recorder::new().0);
        let choices = (false, Thresholds::default());
        let root = disk.join("images");
        let images = Images::open(asking, root, "engine".to_owned(), PathBuf::new(), choices);
        let images = Arc::new(images.expect("folders"));
        let users = Arc::new(Users::open(disk, disk.join("logs"), None));
        let (host_ip, folders) = (IpAddr::from([10, 0, 0, 1]), (disk.to_owned(), None));
        Arc::new(Volumes::new(client, Arc::new(objects), images, host_ip, (folders, users)))
    }

    #[tokio::test]
    async fn a_sweep_leaves_alone_who_comes_after_it_was_decided() {
        let disk = tempfile::tempdir().expect("a folder");
        let volumes = volumes(disk.path(), silent());
        let pods = disk.path().join("pods");
        let make = |uid: &str| std::fs::create_dir_all(pods.join(uid)).expect("made");
        make("runs");
        make("gone");
        let kept = disk.path().join("checkpoint/claims");
        let keep = |name: &str| std::fs::write(kept.join(name), "{}").expect("written");
        keep("gone");
        let left = volumes.left(&["runs".to_owned()].into());
        volumes.forget(&[], &[]);
        make("came");
        keep("came");
        Volumes::sweep(left).await;
        let there = ["runs", "gone", "came"].map(|uid| pods.join(uid).exists());
        assert_eq!(there, [true, false, true]);
        let there = ["gone", "came"].map(|name| kept.join(name).exists());
        assert_eq!(there, [false, true]);
    }

    #[tokio::test]
    async fn nothing_of_a_pod_that_has_ended_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("data");
        let volumes = volumes(&disk, silent());
        let pod = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
            "volumes":[{"name":"about","downwardAPI":{"items":[
                {"path":"name","fieldRef":{"fieldPath":"metadata.name"}}]}}],
            "containers":[{"name":"app","image":"i",
                "volumeMounts":[{"name":"about","mountPath":"/about"}]}]}}"#;
        let pod = spec::read(serde_json::from_str(pod).expect("a Pod")).expect("of a node").0.spec;
        let (ip, env) = (IpAddr::from([10, 0, 0, 2]), protocol::Env(Vec::new()));
        let command = (protocol::Guest::Command, false);
        volumes.prepare(&pod, 0, ip, &env, command).await.expect("prepared");
        let own = disk.join("pods/u");
        assert!(own.join("volumes/about/name").is_file());
        let refreshing = volumes.mounted(&pod, ip);
        Arc::clone(&volumes).remove("u".to_owned()).await;
        volumes.refresh(&refreshing, &mut Round::new()).await;
        assert!(!own.exists() && volumes.pods().is_empty());

        // A preparation that had begun before makes some of it anew: its end removes that, too.
        volumes.prepare(&pod, 0, ip, &env, command).await.expect("prepared");
        assert!(own.join("volumes/about/name").is_file());
        Arc::clone(&volumes).remove("u".to_owned()).await;
        assert!(!own.exists() && volumes.pods().is_empty());
    }
}
