//! This node in the API: its Node object, its status, its lease, and where its workers are.
//!
//! One task writes all of it. Every two seconds it renews the lease, by which the control plane knows
//! that the node lives; the rest is written when it differs from what should be there: after the
//! first contact, when the Node was deleted, when the control plane set `Ready` to something else
//! after an outage, when a worker or an image came or went, and what the scheduler asks for
//! (`node_facts`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ContainerImage, Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wherry_resources::{demand::WAITING, gateway::PORTS_REFUSED};

use super::{
    client::has_code,
    events::Recorder,
    node_facts::Facts,
    pressure::{Pressure, Pressures},
    routes::ANNOTATION_WORKERS,
};

/// How long the number of processors is taken for what it was.
const CORES_FRESH: Duration = Duration::from_secs(10);
/// How often the lease is renewed.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a lease holds: two missed renewals are forgiven.
const LEASE_SECONDS: i32 = 5;
/// A renewal that takes longer is given up for the next one.
const REQUEST_MAX: Duration = Duration::from_secs(4);
/// From then on the control plane is silent, until it answers.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// Where leases of nodes are.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The Kubernetes version whose API a node of this build speaks.
const KUBELET_VERSION: &str = concat!("v1.32.0+wherry-", env!("CARGO_PKG_VERSION"));

/// What the node is.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Labels besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Pods that it takes.
    pub max_pods: u32,
    /// Space of the file system that volumes and logs are on.
    pub storage_bytes: u64,
    /// Name and version of the Wasm engine, for `containerRuntimeVersion`.
    pub runtime: String,
}

/// What the watch of Nodes says about this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing was heard yet.
    Nothing,
    /// It does not exist.
    Absent,
    /// It exists.
    Present {
        /// Whether `Ready` is true.
        ready: bool,
        /// Its annotation for workers.
        workers: BTreeMap<String, SocketAddr>,
    },
}

/// What the loop has to say about the node's traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Where its workers take traffic, by namespace.
    pub workers: BTreeMap<String, SocketAddr>,
    /// Requests that wait for a Service at zero Pods, by `namespace/name`.
    pub demand: BTreeMap<String, u32>,
    /// Ports of Gateways that it cannot listen at, with the reasons.
    pub refused: BTreeMap<i64, String>,
}

/// What the loop knows of the node.
pub struct Views {
    /// Its traffic.
    pub traffic: watch::Receiver<Traffic>,
    /// What the API says of it.
    pub seen: watch::Receiver<Seen>,
    /// What it is short of.
    pub pressures: watch::Receiver<Pressures>,
    /// What the scheduler is told.
    pub facts: Facts,
    /// Takes events of the node.
    pub events: Recorder,
    /// Is told whether the control plane answers.
    pub answered: watch::Sender<bool>,
}

/// Keeps the API's picture of this node true until `shutdown`.
pub async fn run(
    client: kube::Client,
    node: Description,
    views: Views,
    shutdown: CancellationToken,
) {
    let Views { mut traffic, mut seen, mut pressures, facts, events, answered } = views;
    let mut keeper = Keeper::new(client, node, *pressures.borrow(), (facts, events));
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let beat = tokio::select! {
            _ = tick.tick() => true,
            changed = traffic.changed() => { if changed.is_err() { return } false }
            changed = seen.changed() => { if changed.is_err() { return } false }
            changed = pressures.changed() => { if changed.is_err() { return } false }
            () = shutdown.cancelled() => return,
        };
        keeper.press(*pressures.borrow_and_update());
        keeper.look(&seen.borrow_and_update().clone(), &traffic.borrow_and_update().clone());
        let work = tokio::time::timeout(REQUEST_MAX, keeper.work(beat));
        let outcome = tokio::select! {
            outcome = heard(work, SILENT_AFTER, &answered) => outcome,
            () = shutdown.cancelled() => return,
        };
        keeper.report(match outcome {
            Ok(Ok(())) => None,
            // With all its fields a refusal would be a page.
            Ok(Err(kube::Error::Api(status))) => Some(status.message),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        });
    }
}

/// Waits for an answer, and tells whether one has come after a while, and in the end.
async fn heard<T, E>(
    asked: impl Future<Output = Result<T, E>>,
    silent_after: Duration,
    answered: &watch::Sender<bool>,
) -> Result<T, E> {
    let tell = |now| answered.send_if_modified(|known| std::mem::replace(known, now) != now);
    let mut asked = pin!(asked);
    let outcome = match tokio::time::timeout(silent_after, asked.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            tell(false);
            asked.await
        }
    };
    tell(outcome.is_ok());
    outcome
}

struct Keeper {
    client: kube::Client,
    node: Description,
    started: Timestamp,
    pressures: Pressures,
    facts: Facts,
    events: Recorder,
    /// Images that the status named last.
    images: Vec<(String, u64)>,
    uid: Option<String>,
    registered: bool,
    status_due: bool,
    annotation: Traffic,
    annotation_due: bool,
    reachable: bool,
}

impl Keeper {
    fn new(
        client: kube::Client,
        node: Description,
        pressures: Pressures,
        (facts, events): (Facts, Recorder),
    ) -> Keeper {
        Keeper {
            client,
            node,
            started: Timestamp::now(),
            pressures,
            facts,
            events,
            images: Vec::new(),
            uid: None,
            registered: false,
            status_due: true,
            annotation: Traffic::default(),
            annotation_due: true,
            reachable: true,
        }
    }

    fn press(&mut self, pressures: Pressures) {
        self.status_due |= self.pressures != pressures;
        self.pressures = pressures;
    }

    /// Finds out what differs.
    fn look(&mut self, seen: &Seen, traffic: &Traffic) {
        if self.annotation != *traffic {
            self.annotation.clone_from(traffic);
            self.annotation_due = true;
        }
        match seen {
            Seen::Nothing => {}
            Seen::Absent => {
                self.registered = false;
                self.status_due = true;
                self.annotation_due = true;
                self.facts.forget();
            }
            Seen::Present { ready, workers: theirs } => {
                self.status_due |= !ready;
                self.annotation_due |= *theirs != traffic.workers;
            }
        }
    }

    /// Does what is due. Whatever fails is due again at the next beat.
    async fn work(&mut self, beat: bool) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        if !self.registered {
            self.register(&nodes).await?;
            self.registered = true;
        }
        // A control plane that is silent takes requests, and does them when it goes on: what was so
        // long ago would then be said of the node. So it is first asked what does no harm.
        if beat || !self.reachable {
            self.renew().await?;
        }
        if self.annotation_due {
            let workers = json!(self.annotation.workers).to_string();
            let demand = &self.annotation.demand;
            let demand = (!demand.is_empty()).then(|| json!(demand).to_string());
            let refused = &self.annotation.refused;
            let refused = (!refused.is_empty()).then(|| json!(refused).to_string());
            let patch = json!({"metadata": {"annotations": {
                ANNOTATION_WORKERS: workers,
                WAITING: demand,
                PORTS_REFUSED: refused,
            }}});
            nodes.patch(&self.node.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            self.annotation_due = false;
        }
        let now = Instant::now();
        if let Some((news, patch)) = self.facts.news(now) {
            nodes.patch(&self.node.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            self.facts.told(news, now);
        }
        let images = self.facts.images();
        if self.images != images {
            self.images = images;
            self.status_due = true;
        }
        if self.status_due {
            let status = self.status();
            let patch = json!({"status": status});
            let params = PatchParams::default();
            nodes.patch_status(&self.node.name, &params, &Patch::Strategic(patch)).await?;
            self.status_due = false;
        }
        Ok(())
    }

    async fn register(&mut self, nodes: &Api<Node>) -> Result<(), kube::Error> {
        let mut labels = self.node.labels.clone();
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        for (key, value) in [
            ("kubernetes.io/hostname", self.node.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("wherry.dev/runtime", "wasmtime"),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        let object = Node {
            metadata: ObjectMeta {
                name: Some(self.node.name.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let node = match nodes.create(&PostParams::default(), &object).await {
            Ok(node) => {
                tracing::info!(node = self.node.name, "registered");
                node
            }
            Err(error) if has_code(&error, 409) => {
                let patch = json!({"metadata": {"labels": labels}});
                let params = PatchParams::default();
                nodes.patch(&self.node.name, &params, &Patch::Merge(patch)).await?
            }
            Err(error) => return Err(error),
        };
        let known = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let boot = boot_id();
        if has_rebooted(known.map(|info| info.boot_id.as_str()), &boot) {
            let name = &self.node.name;
            let message = format!("Node {name} has been rebooted, boot id: {boot}");
            self.events.of_node(name, "Rebooted", message, true);
        }
        self.uid = node.metadata.uid;
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let now = MicroTime(Timestamp::now());
        let patch = json!({"spec": {
            "holderIdentity": self.node.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }});
        let params = PatchParams::default();
        match leases.patch(&self.node.name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if has_code(&error, 404) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.node.name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
                        owner_references: self.uid.clone().map(|uid| {
                            vec![OwnerReference {
                                api_version: "v1".to_owned(),
                                kind: "Node".to_owned(),
                                name: self.node.name.clone(),
                                uid,
                                ..OwnerReference::default()
                            }]
                        }),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(self.node.name.clone()),
                        lease_duration_seconds: Some(LEASE_SECONDS),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }

    fn status(&self) -> NodeStatus {
        let resources = resources(&self.node);
        NodeStatus {
            capacity: Some(resources.clone()),
            allocatable: Some(resources),
            addresses: Some(vec![
                NodeAddress {
                    type_: "InternalIP".to_owned(),
                    address: self.node.address.to_string(),
                },
                NodeAddress { type_: "Hostname".to_owned(), address: self.node.name.clone() },
            ]),
            conditions: Some(conditions(self.started, &self.pressures)),
            node_info: Some(node_info(&self.node)),
            images: Some(self.images.iter().map(container_image).collect()),
            ..NodeStatus::default()
        }
    }

    /// One line when the control plane goes away, one when it is back.
    fn report(&mut self, error: Option<String>) {
        match (&error, self.reachable) {
            (Some(error), true) => tracing::warn!(error, "cannot report to the control plane"),
            (None, false) => tracing::info!("the control plane is back"),
            _ => {}
        }
        self.reachable = error.is_none();
    }
}

fn container_image((name, bytes): &(String, u64)) -> ContainerImage {
    ContainerImage { names: Some(vec![name.clone()]), size_bytes: i64::try_from(*bytes).ok() }
}

fn resources(node: &Description) -> BTreeMap<String, Quantity> {
    let cores = cores();
    let memory = memory_kib().unwrap_or(1 << 20);
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(cores.to_string())),
        ("memory".to_owned(), Quantity(format!("{memory}Ki"))),
        ("pods".to_owned(), Quantity(node.max_pods.to_string())),
        ("ephemeral-storage".to_owned(), Quantity(node.storage_bytes.to_string())),
    ])
}

/// How many processors there are. The kernel's answer is in several files, which are not read again
/// for each Pod.
pub fn cores() -> usize {
    static FOUND: Mutex<Option<(Instant, usize)>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    match *found {
        Some((at, cores)) if at.elapsed() < CORES_FRESH => cores,
        _ => {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
            *found = Some((Instant::now(), cores));
            cores
        }
    }
}

/// All memory of the machine, in KiB.
pub fn memory_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn conditions(since: Timestamp, pressures: &Pressures) -> Vec<NodeCondition> {
    let condition = |kind: &str, status: bool, reason: &str, message: &str, since| NodeCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(Timestamp::now())),
        last_transition_time: Some(Time(since)),
    };
    let pressure = |kind, pressure: &Pressure, texts: [&str; 4]| {
        let [reason, message] =
            if pressure.active { [texts[0], texts[1]] } else { [texts[2], texts[3]] };
        condition(kind, pressure.active, reason, message, pressure.since)
    };
    vec![
        pressure(
            "MemoryPressure",
            &pressures.memory,
            [
                "KubeletHasInsufficientMemory",
                "the node is short of memory and evicts Pods",
                "KubeletHasSufficientMemory",
                "the node has memory to spare",
            ],
        ),
        pressure(
            "DiskPressure",
            &pressures.disk,
            [
                "KubeletHasDiskPressure",
                "the node is short of disk space and evicts Pods",
                "KubeletHasNoDiskPressure",
                "the node has disk space",
            ],
        ),
        condition(
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "guests are not processes",
            since,
        ),
        condition("Ready", true, "KubeletReady", "the node agent is posting ready status", since),
    ]
}

/// When the machine started. Where nobody says so, before everything.
pub fn booted() -> Timestamp {
    static BOOTED: LazyLock<Timestamp> = LazyLock::new(|| {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        boot_time(&stat).unwrap_or(Timestamp::MIN)
    });
    *BOOTED
}

fn boot_time(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

/// What the kernel calls this start of the machine.
fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Whether the machine has started anew since its Node said which start it was.
fn has_rebooted(before: Option<&str>, now: &str) -> bool {
    !now.is_empty() && before.is_some_and(|before| !before.is_empty() && before != now)
}

fn node_info(node: &Description) -> NodeSystemInfo {
    let read = |path: &str| {
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let os_image = read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned());
    NodeSystemInfo {
        architecture: arch.to_owned(),
        boot_id: boot_id(),
        container_runtime_version: node.runtime.clone(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image,
        system_uuid: read("/etc/machine-id"),
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{oneshot, watch};

    use super::{boot_time, has_rebooted, heard};

    #[test]
    fn the_kernel_says_when_the_machine_started() {
        let said = |stat: &str| boot_time(stat).map(|time| time.as_second());
        assert_eq!(said("cpu 1 2 3\nintr 9\nbtime 1700000000\nprocesses 7\n"), Some(1_700_000_000));
        assert_eq!(said("cpu 1 2 3\n"), None);
    }

    #[tokio::test]
    async fn silence_is_told_before_an_answer_is_given_up() {
        let (answered, mut told) = watch::channel(true);
        let (answer, asked) = oneshot::channel();
        let mut waiting = Box::pin(heard(asked, Duration::ZERO, &answered));
        tokio::select! {
            _ = &mut waiting => panic!("nobody has answered"),
            silent = told.wait_for(|answered| !answered) => drop(silent.expect("it is told")),
        }
        answer.send(7).expect("it is waited for");
        assert_eq!(waiting.await, Ok(7));
        assert!(*told.borrow());
    }

    #[test]
    fn another_start_of_the_machine_is_noticed() {
        assert!(has_rebooted(Some("a"), "b"));
        for (before, now) in [(Some("a"), "a"), (None, "a"), (Some(""), "a"), (Some("a"), "")] {
            assert!(!has_rebooted(before, now), "{before:?} {now}");
        }
    }
}
