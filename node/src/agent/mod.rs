//! The agent of a node: keeps the node's workers true to the Pods that are bound to it.
//!
//! ```text
//!   API ──watch──▶ ┌───────────────┐ ──frames──▶ workers (processes of their own, see workers.rs)
//!                  │ loop: pods.rs │ ◀─started/exited──
//!   API ◀─status── └───────────────┘ ──orders──▶ preparers ──▶ registry, compiler process
//!   server ◀─tunnel─ logs            (lifecycle.rs decides, pods.rs performs)
//! ```
//!
//! One task, the loop, owns all Pods; every other task brings it inputs or carries out one order. The
//! agent keeps nothing that it cannot find again: the API has the Pods and their last status, workers
//! have what runs, the disk has images and what the API said last (`checkpoint.rs`). So it may die at
//! any time, also while no server can be reached, and no request to a guest fails.

mod accounts;
mod away;
mod cgroups;
mod checkpoint;
mod client;
mod dns;
mod env;
mod env_file;
mod events;
mod facts;
mod fleet;
mod gate;
mod images;
mod ips;
mod join;
mod lifecycle;
mod logs;
mod node;
mod node_facts;
mod objects;
mod offline;
mod placement;
mod pods;
mod prepare;
mod pressure;
mod recover;
mod relay;
mod routes;
mod spec;
mod starts;
mod status;
mod streams;
mod tunnel;
mod users;
mod volumes;
mod watch;
mod workers;
mod writer;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::{Ingress, IngressClass, NetworkPolicy},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    members,
    protocol::{self, Hello, Tracing},
    worker::Walls,
};

pub use self::images::{LAYER_BYTES_MAX, Reference, Thresholds, Version, credentials, is_local};
use self::{
    accounts::Accounts,
    away::Away,
    cgroups::Cgroups,
    checkpoint::{Checkpoint, Kind},
    events::Recorder,
    fleet::Fleet,
    gate::GateInput,
    images::Images,
    join::JoinError,
    node::{Description, Seen},
    node_facts::Facts,
    objects::Objects,
    placement::Place,
    pods::{Input, Name, Parts, Pods},
    prepare::Preparer,
    relay::Relays,
    users::Users,
    volumes::Volumes,
    watch::Change,
    workers::{Workers, WorkersError},
};

/// Inputs that wait for the loop. Watches stop reading when it is full.
const INPUTS: usize = 4096;
/// Domain of the names of Services.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Name and line of the Wasm engine, as `containerRuntimeVersion` shows it.
const RUNTIME: &str = "wasmtime://48.0";

/// What the agent is to do, checked and complete.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the node.
    pub name: String,
    /// Where everything of this node is kept.
    pub data_dir: PathBuf,
    /// URLs of the control plane's members, `https://host:port`.
    pub servers: Vec<String>,
    /// Join token, needed only until the node has its certificate.
    pub token: Option<String>,
    /// The node's own address: node ports and traffic between workers are bound here.
    pub address: IpAddr,
    /// Labels of the Node object, besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Pods that the node takes.
    pub max_pods: u32,
    /// End the workers when the agent ends; otherwise they go on serving.
    pub stop_workers_on_exit: bool,
    /// Ports for HTTP and HTTPS of Ingresses and Gateways; bound when there is one.
    pub ingress_ports: (u16, u16),
    /// Where names of the cluster are answered for programs outside of Pods.
    pub dns_address: Option<SocketAddr>,
    /// Run the built-in toolbox for well-known container images that hold nothing but a shell.
    pub image_aliases: bool,
    /// When unused images are removed.
    pub image_thresholds: Thresholds,
    /// Where traces of requests go. None: nowhere.
    pub tracing: Option<Tracing>,
    /// Cancelled when the node has its identity.
    pub joined: CancellationToken,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The data folder cannot be used.
    #[error("use the data folder {}", path.display())]
    DataDir {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent uses it.
    #[error("another node is running with the data folder {}; stop it, or use another folder", .0.display())]
    InUse(PathBuf),
    /// Nobody would reach the node.
    #[error("listen on {address}, where others are to reach this node")]
    Address {
        /// Which one.
        address: IpAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node has no identity.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Workers cannot be run.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// No server is named.
    #[error("no server was named; start the node with --server https://HOST:PORT")]
    NoServer,
    /// The program's own file is unknown.
    #[error("find the program's own file")]
    Binary(#[source] std::io::Error),
}

impl AgentError {
    /// Whether another join token helps.
    pub fn wants_token(&self) -> bool {
        matches!(
            self,
            AgentError::Join(
                JoinError::NoToken
                    | JoinError::Token
                    | JoinError::WrongCa { .. }
                    | JoinError::Refused
                    | JoinError::Denied(_)
            )
        )
    }
}

/// Runs the agent until `shutdown`. Waits for a control plane that is not there, as long as it takes;
/// ends with an error only where waiting does not help.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    // Who came first has installed the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if config.servers.is_empty() {
        return Err(AgentError::NoServer);
    }
    let _lock = prepare_data_dir(&config.data_dir)?;
    check_address(&config)?;
    let sockets = workers::socket_folder(&config.data_dir);
    workers::prepare_folder(&sockets)?;
    let (inputs, queue) = mpsc::channel(INPUTS);
    let engine = wherry_wasi_shim::engine_hash();
    let binary = std::env::current_exe().map_err(AgentError::Binary)?;
    let logs = config.data_dir.join("logs");
    let memory = workers::memory_folder(&config.data_dir);
    let users = Arc::new(Users::open(&config.data_dir, logs.clone(), memory.as_deref()));
    let relays = Relays::new(sockets.clone());
    let workers = Arc::new(Workers {
        relays: relays.clone(),
        binary: binary.clone(),
        sockets: sockets.clone(),
        logs: config.data_dir.join("workers"),
        walls: walls(&config.data_dir),
        users: users.clone(),
        cgroups: cgroups(&sockets),
        hello: hello(&config, &logs, &engine),
        events: inputs.clone(),
    });
    // Found before anything of the API is known: they serve meanwhile.
    let links = workers.adopt().await;
    let mut servers = config.servers.clone();
    servers.extend(client::load_members(&config.data_dir));
    let joined =
        join::join(&config.name, &config.data_dir, &servers, config.token.as_deref(), &shutdown);
    let (connection, identity) = match joined.await {
        Ok(joined) => joined,
        Err(JoinError::Stopped) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    config.joined.cancel();
    relays.joined(connection.clone());
    let client = connection.client();
    let root = config.data_dir.join("images");
    let away = Arc::new(Away::default());
    let (recorder, happenings) = Recorder::new();
    let asking = (client.clone(), away.clone(), recorder.clone());
    let choices = (config.image_aliases, config.image_thresholds);
    let code = root.join("cache").join(&engine);
    let images = Images::open(asking, root.clone(), engine, binary, choices)
        .map_err(|source| AgentError::DataDir { path: root, source })?;
    let images = Arc::new(images);
    code.ancestors().take(3).for_each(|folder| users.open_way(folder));
    let checkpoint = Checkpoint::open(&config.data_dir, memory.as_deref())
        .map_err(|source| AgentError::DataDir { path: config.data_dir.clone(), source })?;
    let objects = Arc::new(Objects::new(client.clone(), checkpoint.clone(), away.clone()));
    let folders = (config.data_dir.clone(), memory.clone());
    let volumes = Arc::new(Volumes::new(
        client.clone(),
        objects.clone(),
        images.clone(),
        config.address,
        (folders, users),
    ));
    recorder.of_node(&config.name, "Starting", "Starting the node's agent.".to_owned(), false);
    let (published, traffic) = tokio::sync::watch::channel(node::Traffic::default());
    let (seen, own) = tokio::sync::watch::channel(Seen::Nothing);
    let (place, placed) = tokio::sync::watch::channel(None);
    let (answered, reached) = tokio::sync::watch::channel(true);
    let (pressures, pressed) =
        tokio::sync::watch::channel(pressure::Pressures::none(Timestamp::now()));
    let identities = config.data_dir.join("pki");
    let zone = Arc::new(RwLock::new(dns::Zone::new(CLUSTER_DOMAIN, config.address)));
    let fleet = Fleet::new(
        workers,
        client.clone(),
        links,
        identities,
        (published, seen),
        config.ingress_ports,
        zone.clone(),
    );
    let preparer = Preparer::new(
        objects,
        images.clone(),
        volumes.clone(),
        recorder.clone(),
        inputs.clone(),
        config.address,
    );
    let accounts = Arc::new(Accounts::default());
    let pods = Pods::new(Parts {
        client: client.clone(),
        fleet,
        preparer: Arc::new(preparer),
        volumes: volumes.clone(),
        events: recorder.clone(),
        address: config.address,
        node: config.name.clone(),
        logs: logs.clone(),
        accounts: accounts.clone(),
        pressures,
        max_pods: config.max_pods,
        away,
        images: images.clone(),
        inputs: inputs.downgrade(),
        place: placed,
        reached,
    });

    let mut tasks = JoinSet::new();
    if let Some(address) = config.dns_address {
        tasks.spawn(dns::run(address, zone, shutdown.clone()));
    }
    tasks.spawn(events::run(client.clone(), config.name.clone(), happenings));
    let facts = Facts::new(accounts.clone(), images.clone());
    let views = node::Views {
        traffic,
        seen: own,
        pressures: pressed,
        facts,
        events: recorder.clone(),
        answered,
    };
    tasks.spawn(node::run(client.clone(), description(&config), views, shutdown.clone()));
    tasks.spawn(look(config.data_dir.clone(), memory.clone(), inputs.clone()));
    tasks.spawn(join::keep_renewed(
        connection.clone(),
        identity,
        config.name.clone(),
        config.data_dir.clone(),
        shutdown.clone(),
    ));
    let sockets = Arc::new(sockets);
    let streams = streams::Context { sockets, inputs: inputs.clone(), images, relays };
    tasks.spawn(tunnel::run(connection.clone(), logs, accounts, streams, shutdown.clone()));
    tasks.spawn(learn_members(connection, config.data_dir.clone(), shutdown.clone()));
    tasks.spawn(volumes.clone().keep_fresh(shutdown.clone()));
    tasks.spawn(volumes::local::keep(volumes, shutdown.clone()));
    tasks.spawn(checkpoint.clone().run());
    tasks.spawn(offline::run(checkpoint.clone(), inputs.clone()));
    let own = (&*config.name, place);
    spawn_watches(&mut tasks, &client, own, (&inputs, &checkpoint), &shutdown);
    drop(inputs);

    pods.run(queue, shutdown.clone(), config.stop_workers_on_exit).await;
    tasks.shutdown().await;
    if let Err(error) = checkpoint.flush().await {
        tracing::warn!(%error, "what this node would need without a server is older than it could be");
    }
    if let Some(memory) = memory.filter(|_| config.stop_workers_on_exit) {
        // Nothing runs any more that could need a Secret.
        let _ = crate::beneath::remove_tree(&memory);
        let _ = memory.parent().map(fs::remove_dir);
    }
    Ok(())
}

/// Follows the EndpointSlices of the Service `kubernetes`: where the control plane's members are.
async fn learn_members(
    connection: Arc<client::Connection>,
    data_dir: PathBuf,
    shutdown: CancellationToken,
) {
    let api = Api::<EndpointSlice>::namespaced(connection.client(), "default");
    let config = watcher::Config::default().labels("kubernetes.io/service-name=kubernetes");
    let slices = watcher::watcher(api, config).backoff(watch::Wait::default());
    let mut slices = std::pin::pin!(slices);
    let mut known: BTreeMap<String, EndpointSlice> = BTreeMap::new();
    let mut listed = BTreeMap::new();
    while let Some(Some(event)) = shutdown.run_until_cancelled(slices.next()).await {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(slice)) => _ = listed.insert(name(&slice), slice),
            Ok(Event::InitDone) => known = std::mem::take(&mut listed),
            Ok(Event::Apply(slice)) => _ = known.insert(name(&slice), slice),
            Ok(Event::Delete(slice)) => _ = known.remove(&name(&slice)),
            Err(error) => tracing::debug!(%error, "watch of the members"),
        }
        let urls = members::of_slices(known.values());
        if connection.members.learn(&urls) {
            client::store_members(&data_dir, &urls);
        }
    }
}

/// Looks at the machine from time to time, and at once when its disk or its folder in memory fills up,
/// until nobody listens.
async fn look(data_dir: PathBuf, memory: Option<PathBuf>, inputs: mpsc::Sender<Input>) {
    let mut last: Option<(tokio::time::Instant, pressure::Signals)> = None;
    loop {
        tokio::time::sleep(pressure::GLANCE).await;
        match pressure::look(&data_dir, memory.as_deref()) {
            Ok(signals) => {
                let due = last.is_none_or(|(at, before)| {
                    at.elapsed() >= pressure::LOOK || pressure::fills_up(&before, &signals)
                });
                if !due {
                    continue;
                }
                last = Some((tokio::time::Instant::now(), signals));
                if inputs.send(Input::Looked(signals)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look at the machine"),
        }
    }
}

/// Makes the data folder and takes its lock, which lasts as long as the returned value.
fn prepare_data_dir(path: &Path) -> Result<nix::fcntl::Flock<fs::File>, AgentError> {
    use nix::fcntl::{Flock, FlockArg};
    let error = |source| AgentError::DataDir { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error)?;
    let lock = path.join("agent.lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(lock).map_err(error)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(AgentError::InUse(path.to_owned())),
        Err((_, errno)) => Err(error(errno.into())),
    }
}

/// Whether this machine has the node's address. Where the node is known that may come later: its
/// Pods run meanwhile, and workers try again.
fn check_address(config: &Config) -> Result<(), AgentError> {
    let address = config.address;
    match std::net::TcpListener::bind((address, 0)) {
        Ok(_) => Ok(()),
        Err(error) if join::has_joined(&config.data_dir) => {
            tracing::warn!(%address, %error, "nobody reaches this node at its address yet");
            Ok(())
        }
        Err(source) => Err(AgentError::Address { address, source }),
    }
}

/// The cgroups of this node's workers, named as the folder of their sockets is.
fn cgroups(sockets: &Path) -> Cgroups {
    let node = sockets.file_name().map(|name| name.to_string_lossy().into_owned());
    let memory_bytes = node::memory_kib().unwrap_or(1 << 20) << 10;
    Cgroups::open(Path::new(cgroups::MOUNT), &node.unwrap_or_default(), memory_bytes)
}

/// What is the agent's alone: who breaks out of a guest must not become the node.
fn walls(data_dir: &Path) -> Walls {
    let images = data_dir.join("images");
    let mut hidden =
        vec![data_dir.join("pki"), data_dir.join("checkpoint"), images.join("mac.key")];
    hidden.extend(workers::memory_folder(data_dir).map(|memory| memory.join("secrets")));
    Walls { hidden, read_only: vec![images] }
}

fn hello(config: &Config, logs: &Path, engine: &str) -> Hello {
    Hello {
        protocol: protocol::VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: config.name.clone(),
        namespace: String::new(),
        address: config.address,
        log_root: logs.to_owned(),
        engine: engine.to_owned(),
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
        tracing: config.tracing.clone(),
    }
}

fn description(config: &Config) -> Description {
    Description {
        name: config.name.clone(),
        address: config.address,
        labels: config.labels.clone(),
        max_pods: config.max_pods,
        storage_bytes: pressure::look(&config.data_dir, None).map_or(0, |signals| signals.disk.1),
        runtime: RUNTIME.to_owned(),
    }
}

fn spawn_watches(
    tasks: &mut JoinSet<()>,
    client: &kube::Client,
    (node, place): (&str, tokio::sync::watch::Sender<Option<Arc<Place>>>),
    (inputs, checkpoint): (&mpsc::Sender<Input>, &Arc<Checkpoint>),
    shutdown: &CancellationToken,
) {
    fn named<K, T>(read: fn(K) -> Option<T>) -> impl Fn(K) -> Option<(Name, T)>
    where
        K: Resource + DeserializeOwned,
    {
        move |object: K| {
            let name = (object.meta().namespace.clone()?, object.meta().name.clone()?);
            read(object).map(|small| (name, small))
        }
    }
    let send = |inputs: &mpsc::Sender<Input>, input| {
        let inputs = inputs.clone();
        async move {
            // The loop is gone only when the agent ends.
            let _ = inputs.send(input).await;
        }
    };
    let (pods, kept) = (inputs.clone(), checkpoint.clone());
    tasks.spawn(watch::run(
        Api::<Pod>::all(client.clone()),
        Some(format!("spec.nodeName={node}")),
        move |mut pod: Pod| {
            pod.metadata.managed_fields = None;
            if let Some(uid) = &pod.metadata.uid {
                kept.keep(Kind::Pods, uid, &pod);
            }
            spec::read(pod).map(|pod| (pod.0.spec.uid.clone(), Box::new(pod)))
        },
        {
            let kept = checkpoint.clone();
            move |change: Change<_, String>| {
                match &change {
                    Change::Apply(_) => {}
                    Change::Delete(uid) => kept.forget(Kind::Pods, uid),
                    Change::Synced => kept.listed(Kind::Pods),
                }
                send(&pods, Input::Pod(change))
            }
        },
        shutdown.clone(),
    ));
    let (services, kept) = (inputs.clone(), checkpoint.clone());
    tasks.spawn(watch::run(
        Api::<Service>::all(client.clone()),
        None,
        named(routes::service),
        move |change| {
            keep(
                &kept,
                Kind::Services,
                &change,
                |it| full_name(&it.namespace, &it.name),
                named_key,
            );
            send(&services, Input::Service(change))
        },
        shutdown.clone(),
    ));
    let (slices, kept) = (inputs.clone(), checkpoint.clone());
    tasks.spawn(watch::run(
        Api::<EndpointSlice>::all(client.clone()),
        None,
        named(routes::slice),
        move |change| {
            keep(&kept, Kind::Slices, &change, |it| full_name(&it.namespace, &it.name), named_key);
            send(&slices, Input::Slice(change))
        },
        shutdown.clone(),
    ));
    let (nodes, kept) = (inputs.clone(), checkpoint.clone());
    let own = node.to_owned();
    tasks.spawn(watch::run(
        Api::<Node>::all(client.clone()),
        None,
        move |node: Node| {
            if node.metadata.name.as_ref() == Some(&own) {
                place.send_replace(Some(Arc::new(Place::of(&node))));
            }
            routes::node(node).map(|node| (node.name.clone(), node))
        },
        move |change| {
            keep(&kept, Kind::Nodes, &change, |it| it.name.clone(), String::clone);
            send(&nodes, Input::Node(change))
        },
        shutdown.clone(),
    ));
    spawn_policy_watches(tasks, client, (inputs, checkpoint), shutdown);
}

/// Who may reach whom, and what comes in from outside.
fn spawn_policy_watches(
    tasks: &mut JoinSet<()>,
    client: &kube::Client,
    (inputs, checkpoint): (&mpsc::Sender<Input>, &Arc<Checkpoint>),
    shutdown: &CancellationToken,
) {
    // The loop is gone only when the agent ends.
    let send = |inputs: mpsc::Sender<Input>, input| async move { drop(inputs.send(input).await) };
    let (policies, kept) = (inputs.clone(), checkpoint.clone());
    tasks.spawn(watch::run(
        Api::<NetworkPolicy>::all(client.clone()),
        None,
        |policy: NetworkPolicy| {
            let meta = policy.metadata;
            let name = (meta.namespace.clone()?, meta.name.clone()?);
            let metadata = ObjectMeta {
                name: meta.name,
                namespace: meta.namespace,
                annotations: meta.annotations,
                ..ObjectMeta::default()
            };
            let small = NetworkPolicy { metadata, spec: policy.spec };
            Some((name.clone(), (name, small)))
        },
        move |change| {
            keep(&kept, Kind::Policies, &change, |(name, _)| named_key(name), named_key);
            send(policies.clone(), Input::Policy(change))
        },
        shutdown.clone(),
    ));
    let (namespaces, kept) = (inputs.clone(), checkpoint.clone());
    tasks.spawn(watch::run(
        Api::<Namespace>::all(client.clone()),
        None,
        |namespace: Namespace| {
            let name = namespace.metadata.name?;
            Some((name.clone(), (name, namespace.metadata.labels.unwrap_or_default())))
        },
        move |change| {
            keep(&kept, Kind::Labels, &change, |(name, _)| name.clone(), String::clone);
            send(namespaces.clone(), Input::Namespace(change))
        },
        shutdown.clone(),
    ));
    let ingresses = inputs.clone();
    tasks.spawn(watch::run(
        Api::<Ingress>::all(client.clone()),
        None,
        gate::read_ingress,
        move |change| send(ingresses.clone(), Input::Gate(GateInput::Ingress(change))),
        shutdown.clone(),
    ));
    let classes = inputs.clone();
    tasks.spawn(watch::run(
        Api::<IngressClass>::all(client.clone()),
        None,
        gate::read_class,
        move |change| send(classes.clone(), Input::Gate(GateInput::Class(change))),
        shutdown.clone(),
    ));
    for kind in gate::KINDS {
        let objects = inputs.clone();
        tasks.spawn(watch::run_defined(
            gate::api(client, kind),
            move |object| gate::read_object(kind, &object),
            move |change| send(objects.clone(), Input::Gate(GateInput::Object(kind, change))),
            shutdown.clone(),
        ));
    }
}

/// Keeps what a watch says.
fn keep<T: Serialize, Key>(
    checkpoint: &Checkpoint,
    kind: Kind,
    change: &Change<T, Key>,
    name: impl Fn(&T) -> String,
    key: impl Fn(&Key) -> String,
) {
    match change {
        Change::Apply(value) => checkpoint.keep(kind, &name(value), value),
        Change::Delete(gone) => checkpoint.forget(kind, &key(gone)),
        Change::Synced => checkpoint.listed(kind),
    }
}

fn full_name(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn named_key((namespace, name): &Name) -> String {
    full_name(namespace, name)
}
