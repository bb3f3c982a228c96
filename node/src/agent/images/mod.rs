//! Images: from a reference in a Pod to code that a worker may load.
//!
//! ```text
//!   reference ──resolve──▶ digest, layer on disk ──compile──▶ sealed code
//!               registry                            child process with limits
//! ```
//!
//! Both steps are shared: however many Pods want the same image at the same time, it is asked for
//! once and compiled once. The agent never parses Wasm itself; see `compile.rs`.

mod cache;
mod collect;
mod flights;
mod pull;
mod reference;
mod remote;
mod shown;
#[cfg(test)]
mod tests;
mod toolbox;
mod turns;

use std::{
    collections::BTreeSet, convert::Infallible, ffi::CString, path::PathBuf, process::Stdio,
    sync::Arc, time::Duration,
};

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use oci_client::secrets::RegistryAuth;
use tokio::{
    io::AsyncReadExt,
    sync::{Semaphore, SemaphorePermit},
};

use crate::{
    compile::{Image, Report},
    protocol,
};

use self::{
    cache::{Access, Cache, Known},
    flights::Flights,
    pull::{PullError, Registry, Resolved},
    shown::Shown,
    turns::Turns,
};
pub use self::{
    collect::Thresholds,
    pull::{LAYER_BYTES_MAX, credentials},
    reference::{Reference, Version, default_policy, is_local, program_name},
};
use super::{
    away::{ANSWER_MAX, Away},
    events::Recorder,
    lifecycle::Problem,
    spec::{PodSpec, PullPolicy},
};

/// Memory that a compilation may use: writable private memory, which is what a compiler takes.
const COMPILE_MEMORY_BYTES: u64 = 1 << 30;
/// CPU time that a compilation may use. A module of 50 MiB with sane functions needs 15 s.
const COMPILE_CPU_SECONDS: u64 = 30;
/// How often it is looked at whether a compilation gets on.
const COMPILE_LOOK: Duration = Duration::from_millis(200);
/// Time on the wall: more than the CPU time, for a machine that is busy with something else.
const COMPILE_WALL: Duration = Duration::from_secs(120);
/// Largest file that a compilation may write; code is about four times its Wasm.
const COMPILE_FILE_BYTES: u64 = 512 << 20;
/// Largest report that is read.
const REPORT_BYTES_MAX: u64 = 1 << 20;
/// Downloads at the same time: as many from the built-in registry, and as many from all others.
const PULLS_MAX: usize = 8;
/// Of those from other registries, as many for one namespace: its Pods may name registries that
/// drip, and try again for ever.
const PULLS_OF_NAMESPACE_MAX: usize = PULLS_MAX / 2;
/// How long an image from elsewhere may take in all. A registry that sends a byte now and then is
/// never silent, and others wait for its place.
const PULL_MAX: Duration = Duration::from_secs(600);
/// Starts that read their pull secrets at the same time: when a node begins, all of its Pods would, and
/// be told that they ask too much.
const SECRETS_MAX: usize = 64;

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `<name>@sha256:<digest of the manifest>`
    pub id: String,
    /// Digest of the Wasm.
    pub layer: String,
    /// Size of the Wasm.
    pub bytes: u64,
    /// Whether it came from the registry just now.
    pub pulled: bool,
}

/// An image that somebody wants.
struct Wanted {
    reference: Reference,
    /// As written.
    image: String,
    /// Whose it is in the cache.
    scope: String,
    /// The same for all who may share an answer.
    key: String,
}

/// The images of this node.
pub struct Images {
    client: kube::Client,
    away: Arc<Away>,
    events: Recorder,
    cache: Arc<Cache>,
    binary: PathBuf,
    /// Whether the toolbox stands for well-known container images.
    aliases: bool,
    thresholds: Thresholds,
    compilers: Arc<Semaphore>,
    pulls: Semaphore,
    pulls_elsewhere: Semaphore,
    turns_elsewhere: Turns,
    secrets: Semaphore,
    asking: Flights<Result<Resolved, Problem>>,
    pulling: Flights<Result<Found, Problem>>,
    compiling: Flights<Result<Image, Problem>>,
    shown: Shown,
}

impl Images {
    /// Opens the folder of images. `binary` is the program that has the `compile` command.
    pub fn open(
        (client, away, events): (kube::Client, Arc<Away>, Recorder),
        root: PathBuf,
        engine: String,
        binary: PathBuf,
        (aliases, thresholds): (bool, Thresholds),
    ) -> std::io::Result<Images> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Ok(Images {
            client,
            away,
            events,
            cache: Arc::new(Cache::open(root, engine)?),
            binary,
            aliases,
            thresholds,
            compilers: Arc::new(Semaphore::new(cores)),
            pulls: Semaphore::new(PULLS_MAX),
            pulls_elsewhere: Semaphore::new(PULLS_MAX),
            turns_elsewhere: Turns::new(PULLS_OF_NAMESPACE_MAX),
            secrets: Semaphore::new(SECRETS_MAX),
            asking: Flights::default(),
            pulling: Flights::default(),
            compiling: Flights::default(),
            shown: Shown::default(),
        })
    }

    /// What others are told of the images of this node.
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Finds the image of a container, by its pull policy here or in its registry; `asks` is called
    /// before the registry is.
    pub async fn resolve(
        self: &Arc<Images>,
        pod: &PodSpec,
        image: &str,
        pull: PullPolicy,
        asks: impl FnOnce(),
    ) -> Result<Found, Problem> {
        let reference = Reference::parse(image)
            .map_err(|message| Problem { reason: "InvalidImageName", message })?;
        if self.aliases && toolbox::of(&reference).is_some() {
            return self.toolbox().await;
        }
        // The built-in registry is one for all; elsewhere each namespace needs its own access.
        let scope = reference.host.as_ref().map_or("", |_| pod.namespace.as_str());
        let known = self.cache.remembered(scope, image);
        if pull != PullPolicy::Always
            && let Some(known) = &known
            && self.may_use(&reference, pod, known).await
        {
            self.cache.touch(&known.resolved.layer);
            self.shown.add(image, &known.resolved.layer, known.resolved.bytes);
            return Ok(found(&reference, &known.resolved, false));
        }
        if pull == PullPolicy::Never {
            return Err(Problem {
                reason: "ErrImageNeverPull",
                message: format!("{image} is not on this node and imagePullPolicy is Never"),
            });
        }
        let key = format!("{scope}\n{image}\n{}", pod.pull_secrets.join(","));
        let (image, scope) = (image.to_owned(), scope.to_owned());
        let wanted = Arc::new(Wanted { reference, image, scope, key });
        if wanted.reference.host.is_some() {
            asks();
            return self.pull_elsewhere(pod, wanted).await;
        }
        // The built-in registry goes away together with the control plane, and a Pod that has run
        // here must come back meanwhile.
        let older = known.map(|known| found(&wanted.reference, &known.resolved, false));
        let Some(older) = older else {
            asks();
            let resolved = self.ask(&wanted).await?;
            return self.pull_built_in(wanted, resolved).await;
        };
        if self.away.is_likely() {
            return Ok(older);
        }
        asks();
        // Only what the image is now has to be said soon. Once that is known, nothing else runs,
        // however long its layer takes.
        let resolved = match tokio::time::timeout(ANSWER_MAX, self.ask(&wanted)).await {
            Ok(Err(problem)) if problem.reason == "ErrImagePull" && self.is_away().await => {
                let image = &wanted.image;
                tracing::info!(image, "the registry is away; using the image that is here");
                return Ok(older);
            }
            Ok(answer) => answer?,
            Err(_) => {
                self.away.note_silence();
                return Ok(older);
            }
        };
        self.pull_built_in(wanted, resolved).await
    }

    /// What a container image would run, if this node runs the toolbox in its place.
    pub fn alias(&self, image: &str) -> Option<&'static toolbox::Alias> {
        let reference = Reference::parse(image).ok().filter(|_| self.aliases)?;
        toolbox::of(&reference)
    }

    /// The image that comes with the binary, laid beside the others.
    pub async fn toolbox(&self) -> Result<Found, Problem> {
        let failed = |message: String| Problem { reason: "ErrImagePull", message };
        if toolbox::TOOLBOX.is_empty() {
            let why = "this binary was built without the toolbox (`make apps` comes before it)";
            return Err(failed(why.to_owned()));
        }
        let cache = self.cache.clone();
        let laid = tokio::task::spawn_blocking(move || cache.lay(toolbox::TOOLBOX)).await;
        let layer = laid
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| failed(format!("cannot keep the toolbox: {error}")))?;
        Ok(Found {
            id: format!("{}@{layer}", protocol::TOOLBOX_REPOSITORY),
            layer,
            bytes: toolbox::TOOLBOX.len() as u64,
            pulled: false,
        })
    }

    /// The code of the toolbox. None where this binary has none: then only what an image has runs.
    pub async fn toolbox_code(self: &Arc<Images>) -> Option<protocol::Code> {
        let found = match self.toolbox().await {
            Ok(found) => found,
            Err(problem) => {
                tracing::debug!(why = problem.message, "no toolbox");
                return None;
            }
        };
        let image = match self.compiled(&found) {
            Some(image) => Ok(image),
            None => self.compile(&found, "toolbox").await,
        };
        match image {
            Ok(image) => Some(protocol::Code { module: self.code(&found), form: image.form }),
            Err(problem) => {
                tracing::warn!(why = problem.message, "the toolbox does not compile");
                None
            }
        }
    }

    /// Whether the control plane, and with it the built-in registry, does not answer.
    async fn is_away(&self) -> bool {
        let asked = tokio::time::timeout(ANSWER_MAX, self.client.apiserver_version()).await;
        let answers = matches!(asked, Ok(Ok(_) | Err(kube::Error::Api(_))));
        if !answers {
            self.away.note_silence();
        }
        !answers
    }

    /// What an image of the built-in registry is now. Takes no permit: downloads that last do not
    /// keep a Pod from the image that it has.
    async fn ask(self: &Arc<Images>, wanted: &Arc<Wanted>) -> Result<Resolved, Problem> {
        let (images, wanted, key) = (self.clone(), wanted.clone(), wanted.key.clone());
        let work = async move {
            let registry = Registry::BuiltIn(&images.client);
            let resolved = pull::resolve(&registry, &wanted.image, &wanted.reference).await;
            resolved.map_err(problem)
        };
        let work = work.boxed();
        self.asking.join(key, || work).await
    }

    /// Fetches what the built-in registry said that an image is, unless it is here.
    async fn pull_built_in(
        self: &Arc<Images>,
        wanted: Arc<Wanted>,
        resolved: Resolved,
    ) -> Result<Found, Problem> {
        // The tag may have moved since another Pod asked.
        let key = format!("{}\n{}", wanted.key, resolved.manifest);
        let images = self.clone();
        let work = async move {
            let _permit = match images.cache.blob(&resolved.layer).exists() {
                true => None,
                false => Some(permit(&images.pulls).await),
            };
            images.keep(&Registry::BuiltIn(&images.client), &wanted, resolved, None).await
        };
        let work = work.boxed();
        self.pulling.join(key, || work).await
    }

    /// Asks a registry elsewhere what an image is now, and fetches that unless it is here.
    async fn pull_elsewhere(
        self: &Arc<Images>,
        pod: &PodSpec,
        wanted: Arc<Wanted>,
    ) -> Result<Found, Problem> {
        // Whoever cannot be asked for a secret does not have one.
        let (logins, unread) = self.credentials(&wanted.reference, pod).await.unwrap_or_default();
        if !unread.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may \
                 not succeed.",
                unread.join(", ")
            );
            self.events.warning_of_pod(pod, "FailedToRetrieveImagePullSecret", message);
        }
        let (images, key) = (self.clone(), wanted.key.clone());
        let secrets = pod.pull_secrets.clone();
        let work = async move {
            // First that of its namespace: who waits for it keeps others from nothing.
            let _turn = images.turns_elsewhere.take(&wanted.scope).await;
            let _permit = permit(&images.pulls_elsewhere).await;
            let Wanted { reference, image, .. } = &*wanted;
            let host = reference.host.as_deref().unwrap_or_default();
            let pulled = async {
                let asked = pull::resolve_elsewhere(image, reference, &logins).await;
                let (remote, resolved, auth) = asked.map_err(problem)?;
                let access = images.access(host, &auth, &secrets);
                images.keep(&Registry::Remote(&remote), &wanted, resolved, access).await
            };
            in_time(host, PULL_MAX, pulled.boxed()).await
        };
        let work = work.boxed();
        self.pulling.join(key, || work).await
    }

    /// Fetches a layer that is not here, and remembers the image.
    async fn keep(
        &self,
        registry: &Registry<'_>,
        wanted: &Wanted,
        resolved: Resolved,
        access: Option<Access>,
    ) -> Result<Found, Problem> {
        let Wanted { reference, image, scope, .. } = wanted;
        let blob = self.cache.blob(&resolved.layer);
        let fresh = !blob.exists();
        if fresh {
            pull::fetch(registry, image, reference, &resolved, &blob).await.map_err(problem)?;
        }
        if let Err(error) = self.cache.remember(scope, image, &resolved, access) {
            tracing::warn!(image, %error, "cannot remember an image");
        }
        self.cache.touch(&resolved.layer);
        self.shown.add(image, &resolved.layer, resolved.bytes);
        tracing::info!(image, digest = resolved.manifest, fresh, "pulled");
        Ok(found(reference, &resolved, true))
    }

    /// Whether a Pod may have what is here: it was pulled without credentials, or with some of the
    /// Pod's own. Otherwise the registry has to be asked, with those.
    async fn may_use(&self, reference: &Reference, pod: &PodSpec, known: &Known) -> bool {
        let (Some(host), Some(access)) = (&reference.host, &known.access) else {
            return true;
        };
        let credentials = self.credentials(reference, pod);
        let asked = match self.away.is_likely() {
            true => None,
            false => tokio::time::timeout(ANSWER_MAX, credentials).await.ok().flatten(),
        };
        match asked {
            Some((logins, _)) => logins.iter().any(|auth| {
                let own = self.access(host, auth, &pod.pull_secrets);
                own.is_some_and(|own| own.fingerprint == access.fingerprint)
            }),
            // Nobody can be asked. A Pod that has run here names the same secrets.
            None => pod.pull_secrets == access.secrets,
        }
    }

    fn access(&self, host: &str, auth: &RegistryAuth, secrets: &[String]) -> Option<Access> {
        let shown = match auth {
            RegistryAuth::Anonymous => return None,
            RegistryAuth::Basic(user, password) => format!("{host}\0{user}\0{password}"),
            RegistryAuth::Bearer(token) => format!("{host}\0{token}"),
        };
        let fingerprint = self.cache.fingerprint(&shown);
        Some(Access { secrets: secrets.to_vec(), fingerprint })
    }

    /// Makes room on the disk. `used` are the digests that Pods of this node have; `pressed` is
    /// whether the disk is so full that Pods would have to go: then everything unused does. Says why
    /// it could not.
    pub async fn collect(
        self: Arc<Images>,
        mut used: BTreeSet<String>,
        disk: (u64, u64),
        pressed: bool,
    ) -> Result<(), String> {
        let bytes = collect::excess(disk, self.thresholds, pressed);
        used.extend(self.cache.laid());
        let cache = self.cache.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let mut freed = 0;
            for image in collect::plan(cache.kept()?, &used, bytes, Timestamp::now()) {
                tracing::info!(
                    digest = image.layer,
                    bytes = image.bytes,
                    "removing an unused image"
                );
                cache.remove(&image.layer)?;
                freed += image.bytes;
            }
            Ok::<u64, std::io::Error>(freed)
        });
        match collected.await.map_err(std::io::Error::other).flatten() {
            Ok(freed) => {
                tracing::info!(freed, "collected unused images");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "cannot remove unused images");
                Err(format!("cannot remove unused images: {error}"))
            }
        }
    }

    /// Whether the disk is so full that unused images have to go.
    pub fn has_excess(&self, disk: (u64, u64)) -> bool {
        collect::excess(disk, self.thresholds, false) > 0
    }

    /// What the Pod's pull secrets hold for an image elsewhere, in the order in which it is tried,
    /// and the names of those that cannot be read. None if nobody can be asked.
    async fn credentials(
        &self,
        reference: &Reference,
        pod: &PodSpec,
    ) -> Option<(Vec<RegistryAuth>, Vec<String>)> {
        let _turn = self.secrets.acquire().await.expect("the semaphore is never closed");
        let namespace = &pod.namespace;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let (mut configs, mut unread) = (Vec::new(), Vec::new());
        for name in pod.pull_secrets.iter().filter(|name| !name.is_empty()) {
            let secret = match api.get(name).await {
                Ok(secret) => secret,
                Err(kube::Error::Api(error)) => {
                    tracing::debug!(namespace, name, %error, "cannot read a pull secret");
                    unread.push(name.clone());
                    continue;
                }
                Err(_) => {
                    self.away.note_silence();
                    return None;
                }
            };
            let mut data = secret.data.unwrap_or_default();
            let config = data.remove(".dockerconfigjson").or_else(|| data.remove(".dockercfg"));
            configs.extend(config.map(|it| it.0));
        }
        let host = reference.host.as_deref().unwrap_or_default();
        Some((pull::credentials(&configs, host, &reference.name), unread))
    }

    /// What the image is, if its code is ready to be loaded.
    pub fn compiled(&self, found: &Found) -> Option<Image> {
        self.cache.load(&found.layer)
    }

    /// Where the image itself is.
    pub fn blob(&self, found: &Found) -> PathBuf {
        self.cache.blob(&found.layer)
    }

    /// Where the code of an image is.
    pub fn code(&self, found: &Found) -> PathBuf {
        self.cache.code(&found.layer)
    }

    /// Removes the code of engines that no worker of this node has any more.
    pub async fn forget_other_engines(self: Arc<Images>) {
        let cache = self.cache.clone();
        // Who cannot remove it says so, and tries again at the next worker.
        let _ = tokio::task::spawn_blocking(move || cache.forget_other_engines()).await;
    }

    /// Compiles an image in its own process.
    pub async fn compile(self: &Arc<Images>, found: &Found, image: &str) -> Result<Image, Problem> {
        let images = self.clone();
        let (layer, image) = (found.layer.clone(), image.to_owned());
        self.compiling
            .join(found.layer.clone(), move || {
                async move { images.compile_now(&layer, &image).await }.boxed()
            })
            .await
    }

    async fn compile_now(&self, layer: &str, image: &str) -> Result<Image, Problem> {
        let _permit = self.compilers.acquire().await.expect("the semaphore is never closed");
        if let Some(known) = self.cache.load(layer) {
            self.shown.accept(image);
            return Ok(known);
        }
        let failed = |message: String| Problem { reason: "CompileError", message };
        let output = self.cache.draft(layer);
        let started = std::time::Instant::now();
        let report = self
            .run_compiler(layer, &output)
            .await
            .map_err(|error| failed(format!("{image}: cannot run the compiler: {error}")))?;
        match report {
            Some(Report::Compiled(known)) => {
                let cache = self.cache.clone();
                let (digest, sealed) = (layer.to_owned(), known.clone());
                tokio::task::spawn_blocking(move || cache.seal(&digest, &sealed))
                    .await
                    .map_err(std::io::Error::other)
                    .flatten()
                    .map_err(|error| failed(format!("{image}: cannot keep the code: {error}")))?;
                let ms = started.elapsed().as_millis();
                self.shown.accept(image);
                tracing::info!(image, digest = layer, ms, "compiled");
                Ok(known)
            }
            Some(Report::Missing(known)) => {
                self.shown.refuse(image, layer, &known.missing);
                let message = format!(
                    "{image} imports {}, which this node does not offer; build it against WASI \
                     0.2 or 0.3 without, or run `wherry why` to see what nodes offer",
                    known.missing.join(", ")
                );
                Err(Problem { reason: "ImportMissing", message })
            }
            Some(Report::Invalid(message)) => {
                Err(Problem { reason: "InvalidImage", message: format!("{image}: {message}") })
            }
            Some(Report::Failed(message)) => Err(failed(format!("{image}: {message}"))),
            None => {
                let _ = std::fs::remove_file(&output);
                Err(failed(format!(
                    "{image} takes more than the {COMPILE_CPU_SECONDS} s of CPU time or the {} \
                     MiB of memory that compiling may take; make it smaller (optimise for size, \
                     strip debug information)",
                    COMPILE_MEMORY_BYTES >> 20
                )))
            }
        }
    }

    /// Runs the child. `None` if it ended without a report, that is by a limit.
    async fn run_compiler(
        &self,
        layer: &str,
        output: &std::path::Path,
    ) -> std::io::Result<Option<Report>> {
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .arg("compile")
            .arg(self.cache.blob(layer))
            .arg(output)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // SAFETY: the closure makes system calls only; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(limit_compiler);
        }
        let mut child = command.spawn()?;
        let process = child.id();
        let mut text = Vec::new();
        let work = async {
            if let Some(stdout) = child.stdout.take() {
                stdout.take(REPORT_BYTES_MAX).read_to_end(&mut text).await?;
            }
            child.wait().await
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(COMPILE_WALL, work) => ended,
            never = hurried(process) => match never {},
        };
        match ended {
            Ok(outcome) => {
                let status = outcome?;
                tracing::debug!(%status, "compiler ended");
            }
            Err(_) => {
                child.kill().await?;
                return Ok(None);
            }
        }
        Ok(serde_json::from_slice(&text).ok())
    }
}

async fn permit(pulls: &Semaphore) -> SemaphorePermit<'_> {
    pulls.acquire().await.expect("the semaphore is never closed")
}

/// What a registry gives, unless that takes too long: then it is given up.
async fn in_time<T>(
    host: &str,
    longest: Duration,
    pulled: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let why = format!(
        "the image takes more than {} s; make it smaller, or push it to a registry that is nearer",
        longest.as_secs()
    );
    let late = |_| Err(problem(pull::failed(host, &why)));
    tokio::time::timeout(longest, pulled).await.unwrap_or_else(late)
}

/// Limits of the compiler process, set between fork and exec.
fn limit_compiler() -> std::io::Result<()> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CPU, COMPILE_CPU_SECONDS, COMPILE_CPU_SECONDS)?;
    setrlimit(Resource::RLIMIT_DATA, COMPILE_MEMORY_BYTES, COMPILE_MEMORY_BYTES)?;
    // Reserved address space costs nothing; this bound only stops nonsense.
    setrlimit(Resource::RLIMIT_AS, 16 * COMPILE_MEMORY_BYTES, 16 * COMPILE_MEMORY_BYTES)?;
    setrlimit(Resource::RLIMIT_FSIZE, COMPILE_FILE_BYTES, COMPILE_FILE_BYTES)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
    Ok(())
}

/// The compiler takes itself for idle, which is next to nothing beside others that want all of the CPU: if it
/// does not get on, it and its session have a low priority from then on.
async fn hurried(process: Option<u32>) -> Infallible {
    let Some(process) = process.and_then(|it| libc::pid_t::try_from(it).ok()) else {
        return std::future::pending().await;
    };
    let mut before = Duration::ZERO;
    loop {
        tokio::time::sleep(COMPILE_LOOK).await;
        let used = cpu_of(process).unwrap_or_default();
        if used.saturating_sub(before) < COMPILE_LOOK / 4 {
            break;
        }
        before = used;
    }
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    for thread in threads.flatten() {
        if let Some(thread) = thread.file_name().to_str().and_then(|it| it.parse().ok()) {
            let none = libc::sched_param { sched_priority: 0 };
            // SAFETY: the kernel reads the struct of this frame.
            unsafe { libc::sched_setscheduler(thread, libc::SCHED_OTHER, &raw const none) };
        }
    }
    // SAFETY: a plain system call.
    let leads = unsafe { libc::getsid(process) } == process;
    if let Some(file) = CString::new(format!("/proc/{process}/autogroup")).ok().filter(|_| leads) {
        let there = std::path::Path::new("/proc/self/autogroup").exists();
        while there && !wherry_wasi_shim::place_session(&file, c"5") {
            tokio::time::sleep(COMPILE_LOOK).await;
        }
    }
    std::future::pending().await
}

/// CPU time of a process so far.
fn cpu_of(process: libc::pid_t) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers are to values of this frame, which the calls fill.
    let known = unsafe {
        libc::clock_getcpuclockid(process, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    known.then(|| Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

fn found(reference: &Reference, resolved: &Resolved, pulled: bool) -> Found {
    Found {
        id: format!("{}@{}", reference.repository(), resolved.manifest),
        layer: resolved.layer.clone(),
        bytes: resolved.bytes,
        pulled,
    }
}

fn problem(error: PullError) -> Problem {
    let reason = match &error {
        PullError::Invalid(_) => "InvalidImage",
        PullError::NotFound { .. } | PullError::Denied { .. } | PullError::Failed { .. } => {
            "ErrImagePull"
        }
    };
    Problem { reason, message: error.to_string() }
}
