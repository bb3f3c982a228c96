//! The agent's loop: the one task that owns the Pods of this node.
//!
//! ```text
//!   watches, workers, preparers, writes, log questions ──▶ Input ──▶ loop
//!   loop: observe, step, perform, and note what is due: a status to write, a time to wake at
//! ```
//!
//! Nothing here waits for the network: requests run in bounded sets of short tasks whose outcome comes
//! back as an input. An idle Pod costs its entry and nothing else; all timers are one ordered set.

mod admit;
mod evict;
mod leftovers;
mod log_files;
mod offline;
mod reach;
mod statuses;
mod traffic;
mod upgrade;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::PodStatus, networking::v1::NetworkPolicy};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::compile::Image;
use crate::protocol::{self, ExitReason, Health, HookKind, Identity, ProbeKind, ToAgent, ToWorker};

use super::{
    accounts::Accounts,
    away::Away,
    env::sources as env_sources,
    events::Recorder,
    facts::{Facts, Took},
    fleet::Fleet,
    gate::GateInput,
    images::Images,
    ips::Addresses,
    lifecycle::{Action, Observation, PodState, Stage, observe, step},
    offline::{Kept, Live, Unconfirmed},
    placement::Place,
    prepare::{Order, Preparer},
    pressure::{Pressures, Signals, Written as Files},
    routes::{NodeInfo, ServiceInfo, SliceInfo},
    spec::{Deletion, Desired},
    streams::ReachQuery,
    tunnel::LogQuery,
    volumes::Volumes,
    watch::Change,
    workers::WorkerEvent,
    writer::Written,
};

/// Namespace and name.
pub type Name = (String, String);

/// Everything that the loop hears.
#[derive(Debug)]
pub enum Input {
    /// A Pod of this node; the key is its uid.
    Pod(Change<Box<(Desired, Option<PodStatus>)>, String>),
    /// A Service.
    Service(Change<ServiceInfo, Name>),
    /// An EndpointSlice.
    Slice(Change<SliceInfo, Name>),
    /// A Node.
    Node(Change<NodeInfo, String>),
    /// A NetworkPolicy.
    Policy(Change<(Name, NetworkPolicy), Name>),
    /// What comes in from outside by HTTP.
    Gate(GateInput),
    /// A namespace's labels.
    Namespace(Change<(String, BTreeMap<String, String>), String>),
    /// A worker.
    Worker {
        /// Whose.
        namespace: String,
        /// What.
        event: WorkerEvent,
    },
    /// A certificate for a worker.
    Identity {
        /// Whose.
        namespace: String,
        /// The certificate.
        identity: Identity,
        /// From when to when it is valid.
        validity: (Timestamp, Timestamp),
    },
    /// News of a Pod from a preparer.
    Observed {
        /// Uid of the Pod.
        uid: String,
        /// What.
        observation: Observation,
    },
    /// A start is prepared.
    Prepared {
        /// Uid of the Pod.
        uid: String,
        /// Which container.
        container: usize,
        /// All that the worker needs.
        start: Box<protocol::Container>,
        /// What its image is, and how long that took.
        facts: Box<(Image, Took)>,
    },
    /// A question about logs.
    Logs(LogQuery),
    /// Somebody wants to reach a Pod.
    Reach(ReachQuery),
    /// What was kept on this node, in case that no server answers.
    Offline(Box<Kept>),
    /// What the machine has.
    Looked(Signals),
    /// Whether a Pod may be on this node; else why not, as reason and sentence.
    Placed {
        /// Uid of the Pod.
        uid: String,
        /// Why not.
        refused: Option<(&'static str, String)>,
    },
    /// What Pods have written.
    Measured(HashMap<String, Files>),
    /// What runs in a worker of another engine was compiled for this agent's.
    CompiledAhead {
        /// Whose worker.
        namespace: String,
        /// Whether all of it was.
        ready: bool,
    },
}

/// A Pod of this node.
struct Entry {
    desired: Desired,
    state: PodState,
    /// Prepared starts that the worker has not confirmed.
    starts: BTreeMap<usize, Box<protocol::Container>>,
    /// The worker was told of the Pod.
    told: bool,
    /// Counted as needing a worker.
    needs: bool,
    /// Hash of the status that was written last.
    written: Option<u64>,
    write: WriteState,
    wake: Option<Timestamp>,
    placing: Placing,
    /// What it has written, as last measured.
    disk: Files,
    /// What is told of it beside its status.
    facts: Facts,
}

/// Whether it was looked at if a Pod may be on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placing {
    /// Not yet.
    Unasked,
    /// The Node is being read anew, since what is known of it says no.
    Asked,
    /// It may, or its end is under way.
    Done,
}

/// Where the status of a Pod is on its way to the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteState {
    /// The API has it, or it waits for a change.
    Idle,
    /// It is in the queue.
    Queued,
    /// It is being written; what changed since is written after.
    Running,
}

/// What the loop works with.
pub struct Parts {
    /// The API.
    pub client: kube::Client,
    /// The workers.
    pub fleet: Fleet,
    /// Prepares starts.
    pub preparer: Arc<Preparer>,
    /// Volumes of Pods.
    pub volumes: Arc<Volumes>,
    /// Takes events.
    pub events: Recorder,
    /// The node's address.
    pub address: IpAddr,
    /// The node's name.
    pub node: String,
    /// Where workers write logs.
    pub logs: PathBuf,
    /// What containers used.
    pub accounts: Arc<Accounts>,
    /// The node's conditions.
    pub pressures: watch::Sender<Pressures>,
    /// Pods that it takes.
    pub max_pods: u32,
    /// Whether the control plane is.
    pub away: Arc<Away>,
    /// Images that may have to go.
    pub images: Arc<Images>,
    /// For outcomes of its own tasks.
    pub inputs: mpsc::WeakSender<Input>,
    /// What the watch of Nodes says of this one, once it does.
    pub place: watch::Receiver<Option<Arc<Place>>>,
    /// Whether the control plane answers.
    pub reached: watch::Receiver<bool>,
}

/// The loop's state.
pub struct Pods {
    parts: Parts,
    entries: HashMap<String, Box<Entry>>,
    names: HashMap<Name, String>,
    addresses: Addresses,
    /// Pods that found no free address.
    thirsty: BTreeSet<String>,
    synced: bool,
    live: Live,
    unconfirmed: Unconfirmed,
    /// Namespaces whose worker has another engine: whether what runs there is compiled for this one.
    ahead: HashMap<String, bool>,
    pressures: Pressures,
    reclaim: evict::Reclaim,
    /// When unused images were last removed.
    collected: Option<Timestamp>,
    timers: BTreeSet<(Timestamp, String)>,
    queue: VecDeque<String>,
    writes: JoinSet<(String, Written)>,
    pause: Duration,
    paused_until: Option<Timestamp>,
    tasks: JoinSet<()>,
}

impl Pods {
    /// A loop that knows nothing yet.
    pub fn new(parts: Parts) -> Pods {
        Pods {
            addresses: Addresses::promised(parts.fleet.addresses()),
            parts,
            entries: HashMap::new(),
            names: HashMap::new(),
            thirsty: BTreeSet::new(),
            synced: false,
            live: Live::default(),
            unconfirmed: Unconfirmed::default(),
            ahead: HashMap::new(),
            pressures: Pressures::none(Timestamp::now()),
            reclaim: evict::Reclaim::default(),
            collected: None,
            timers: BTreeSet::new(),
            queue: VecDeque::new(),
            writes: JoinSet::new(),
            pause: Duration::ZERO,
            paused_until: None,
            tasks: JoinSet::new(),
        }
    }

    /// Runs until `shutdown`, then lets go of the workers or ends them.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        shutdown: CancellationToken,
        stop_workers: bool,
    ) {
        loop {
            let wait = self.wait();
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => break,
                },
                Some(done) = self.writes.join_next() => self.written(done),
                Some(_) = self.tasks.join_next() => {}
                Ok(()) = self.parts.reached.changed() => {}
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => break,
            }
            self.wake_due();
            self.start_writes();
        }
        // Supervisors must not wait for a loop that is no more.
        drop(inputs);
        self.tasks.shutdown().await;
        self.parts.fleet.shutdown(stop_workers).await;
    }

    /// Until when nothing is due.
    fn wait(&self) -> Duration {
        let pods = self.timers.first().map(|(at, _)| *at);
        let writes = self.paused_until.filter(|_| !self.queue.is_empty() && self.may_write());
        let next = [pods, writes].into_iter().flatten().chain([self.parts.fleet.wake()]).min();
        let now = Timestamp::now();
        let next = next.unwrap_or(now);
        Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO)
    }

    fn take(&mut self, input: Input) {
        self.confirm(&input);
        match input {
            Input::Pod(Change::Apply(pod)) => self.apply(pod.0, pod.1),
            Input::Pod(Change::Delete(uid)) => self.deleted(&uid),
            Input::Pod(Change::Synced) => self.pods_synced(),
            Input::Service(change) => self.service(change),
            Input::Slice(Change::Apply(slice)) => self.parts.fleet.set_slice(slice),
            Input::Slice(Change::Delete((namespace, name))) => {
                self.parts.fleet.remove_slice(&namespace, &name);
            }
            Input::Slice(Change::Synced) => {
                self.parts.fleet.slices_synced();
                self.process_all();
            }
            Input::Node(change) => self.node(change),
            Input::Policy(change) => self.policy(change),
            Input::Namespace(change) => self.namespace(change),
            Input::Gate(input) => self.parts.fleet.change_gate(input),
            Input::Worker { namespace, event } => self.worker(&namespace, event),
            Input::Identity { namespace, identity, validity } => {
                self.parts.fleet.identity(&namespace, identity, validity);
            }
            Input::Observed { uid, observation } => {
                self.observed(&uid, observation);
                self.unmount_late(&uid);
            }
            Input::Prepared { uid, container, start, facts } => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    self.parts.accounts.starts.prepared(facts.1);
                    entry.facts.prepared(&start.name, &facts.0, facts.1);
                }
                self.prepared(&uid, container, start);
                self.unmount_late(&uid);
            }
            Input::Logs(query) => self.answer(query),
            Input::Reach(query) => self.reach(query),
            Input::Offline(kept) => self.offline(*kept),
            Input::Looked(signals) => self.look(&signals),
            Input::Measured(measured) => self.measured(measured),
            Input::Placed { uid, refused } => self.placed(&uid, refused),
            Input::CompiledAhead { namespace, ready } => self.compiled(&namespace, ready),
        }
    }

    /// A Pod of this node is new or different.
    fn apply(&mut self, desired: Desired, api: Option<PodStatus>) {
        let uid = desired.spec.uid.clone();
        match self.entries.get_mut(&uid) {
            Some(entry) => {
                let (old, new) = (&entry.desired.spec, &desired.spec);
                if old.labels != new.labels || old.annotations != new.annotations {
                    self.tasks.spawn(self.parts.volumes.clone().changed(new.clone()));
                    let message = ToWorker::Labels { uid: uid.clone(), labels: new.labels.clone() };
                    self.parts.fleet.send(&new.namespace, &message);
                }
                entry.desired = desired;
                entry.state.fit(&entry.desired.spec);
            }
            None => self.adopt(desired, api.as_ref()),
        }
        self.process(&uid);
    }

    /// The object is no longer in the API.
    fn deleted(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.desired.deletion = Some(Deletion { grace: Duration::ZERO, gone: true });
            self.process(uid);
        }
    }

    /// All Pods of this node are known: what workers have beyond them is removed.
    fn pods_synced(&mut self) {
        if self.synced {
            return;
        }
        self.synced = true;
        for (namespace, uid) in self.parts.fleet.unclaimed() {
            tracing::info!(namespace, uid, "removing a Pod that was deleted meanwhile");
            self.parts.fleet.send(&namespace, &ToWorker::RemovePod { uid });
        }
        self.parts.fleet.pods_synced();
        for namespace in self.parts.fleet.outdated() {
            self.look_at_engine(&namespace);
        }
        self.end_promises();
        self.sweep_logs();
        self.sweep_volumes();
    }

    fn worker(&mut self, namespace: &str, event: WorkerEvent) {
        match event {
            WorkerEvent::Connected(state) => {
                tracing::info!(namespace, pid = state.pid, "worker connected");
                self.parts.fleet.connected(namespace, &state);
                for pod in &state.pods {
                    let known = self.entries.get_mut(&pod.uid);
                    match known {
                        Some(entry) => {
                            entry.told = true;
                            let labels = entry.desired.spec.labels.clone();
                            let message = ToWorker::Labels { uid: pod.uid.clone(), labels };
                            self.parts.fleet.send(namespace, &message);
                        }
                        None if self.synced => {
                            let message = ToWorker::RemovePod { uid: pod.uid.clone() };
                            self.parts.fleet.send(namespace, &message);
                        }
                        None => {}
                    }
                }
                let mut known: HashMap<String, protocol::PodState> =
                    state.pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
                for uid in self.uids_in(namespace) {
                    let observation = Observation::Worker(known.remove(&uid));
                    self.deliver_prepared(&uid);
                    self.observed(&uid, observation);
                }
                self.look_at_engine(namespace);
            }
            WorkerEvent::Lost => {
                self.parts.fleet.lost(namespace);
                for uid in self.uids_in(namespace) {
                    if let Some(entry) = self.entries.get_mut(&uid) {
                        entry.told = false;
                    }
                    self.observed(&uid, Observation::WorkerLost);
                    self.observed(&uid, Observation::Removed);
                }
                self.look_at_engine(namespace);
            }
            WorkerEvent::Message(message) => self.message(namespace, message),
        }
    }

    fn message(&mut self, namespace: &str, message: ToAgent) {
        match message {
            ToAgent::State(_) => tracing::warn!(namespace, "a worker repeats its state"),
            ToAgent::ContainerStarted { uid, container, restart, at } => {
                self.container_started(&uid, &container, restart, at);
            }
            ToAgent::ContainerExited { uid, container, restart, exit } => {
                self.container_exited(&uid, &container, restart, exit);
                self.replace_when_ready(namespace);
            }
            ToAgent::Probed { uid, container, restart, kind, failure, health } => {
                self.container_probed(&uid, &container, restart, kind, failure, health);
            }
            ToAgent::HookFailed { uid, container, hook, message, .. } => {
                self.hook_failed(&uid, &container, hook, &message);
            }
            ToAgent::PodRemoved { uid } => self.observed(&uid, Observation::Removed),
            ToAgent::Relay(_) => unreachable!("the worker's own task opens it"),
            ToAgent::PeerListening { address } => {
                self.parts.fleet.set_peer(namespace, Some(address));
            }
            ToAgent::NodePort(port) => self.node_port(namespace, &port),
            ToAgent::PortsRefused(refused) => self.ports_refused(namespace, refused),
            ToAgent::Demand(demand) => self.parts.fleet.set_demand(namespace, demand),
            ToAgent::Denied(denials) => denials.iter().for_each(|denial| self.denied(denial)),
            ToAgent::Usage(usage) => {
                self.tell_facts(&usage);
                self.parts.accounts.take(usage, Timestamp::now());
            }
        }
    }

    fn container_started(&mut self, uid: &str, name: &str, restart: u32, at: Timestamp) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let Some(container) = entry.desired.spec.container(name) else {
            return;
        };
        entry.starts.remove(&container);
        let spec = entry.desired.spec.clone();
        self.parts.events.normal(&spec, container, "Started", format!("Started container {name}"));
        self.forget_old_logs(&spec, name, restart);
        if restart == 0 {
            self.parts.accounts.begun(uid, name, at);
        }
        self.observed(uid, Observation::Started { container, restart, at });
    }

    fn container_probed(
        &mut self,
        uid: &str,
        name: &str,
        restart: u32,
        kind: ProbeKind,
        failure: Option<String>,
        health: Health,
    ) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let spec = entry.desired.spec.clone();
        let Some(container) = spec.container(name) else {
            return;
        };
        if let Some(failure) = failure {
            let message = format!("{} probe failed: {failure}", kind.word());
            self.parts.events.warning(&spec, container, "Unhealthy", message);
        }
        self.observed(uid, Observation::Probed { container, restart, health });
    }

    fn hook_failed(&mut self, uid: &str, name: &str, hook: HookKind, message: &str) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let spec = &entry.desired.spec;
        if let Some(container) = spec.container(name) {
            let (reason, word) = match hook {
                HookKind::PostStart => ("FailedPostStartHook", "PostStartHook"),
                HookKind::PreStop => ("FailedPreStopHook", "PreStopHook"),
            };
            let message = format!("{word} failed: {message}");
            self.parts.events.warning(spec, container, reason, message);
        }
    }

    fn container_exited(&mut self, uid: &str, name: &str, restart: u32, exit: protocol::Exit) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let Some(container) = entry.desired.spec.container(name) else {
            return;
        };
        entry.starts.remove(&container);
        let wanted = matches!(exit.reason, ExitReason::Completed | ExitReason::Stopped);
        if !wanted {
            let message = match exit.message.as_str() {
                "" => format!("{name} exited with code {}", exit.code),
                text => format!("{name} exited with code {}: {text}", exit.code),
            };
            self.parts.events.warning(&entry.desired.spec, container, "Failed", message);
        }
        tracing::info!(
            pod = entry.desired.spec.name,
            container = name,
            restart,
            code = exit.code,
            reason = ?exit.reason,
            "container exited"
        );
        self.observed(uid, Observation::Exited { container, restart, exit });
    }

    fn observed(&mut self, uid: &str, observation: Observation) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let now = Timestamp::now();
        entry.state = observe(&entry.state, &entry.desired.spec, observation, now);
        self.process(uid);
    }

    fn uids_in(&self, namespace: &str) -> Vec<String> {
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| entry.desired.spec.namespace == namespace)
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    fn process_all(&mut self) {
        let uids: Vec<String> = self.entries.keys().cloned().collect();
        for uid in uids {
            self.process(&uid);
        }
    }

    /// Steps one Pod until nothing more is to be done now.
    fn process(&mut self, uid: &str) {
        if !self.parts.fleet.is_synced() {
            return;
        }
        let Some(mut entry) = self.entries.remove(uid) else {
            return;
        };
        let now = Timestamp::now();
        self.account(&mut entry);
        loop {
            let (state, actions) = step(&entry.state, &entry.desired, now);
            entry.state = state;
            let mut heard = false;
            for action in actions {
                if let Some(observation) = self.perform(&mut entry, action) {
                    let spec = &entry.desired.spec;
                    entry.state = observe(&entry.state, spec, observation, now);
                    heard = true;
                }
            }
            if !heard {
                break;
            }
        }
        self.account(&mut entry);
        let ended = entry.state.stage == Stage::Deleting;
        if ended && entry.desired.deletion.is_some_and(|deletion| deletion.gone) {
            self.drop_entry(*entry);
            return;
        }
        self.set_timer(&mut entry, uid);
        self.note_status(&mut entry, uid);
        self.entries.insert(uid.to_owned(), entry);
    }

    /// Keeps count of who needs a worker, and frees the address of a Pod that ended.
    fn account(&mut self, entry: &mut Entry) {
        let needs = entry.state.needs_worker();
        if needs == entry.needs {
            return;
        }
        entry.needs = needs;
        self.parts.fleet.need(&entry.desired.spec, needs);
        if !needs {
            self.parts.accounts.ended(&entry.desired.spec.uid);
        }
        if !needs && let Some(ip) = entry.state.ip {
            self.addresses.release(ip);
            if let Some(next) = self.thirsty.pop_first() {
                // It takes the address when its timer fires: at once.
                self.timers.insert((Timestamp::now(), next));
            }
        }
    }

    fn perform(&mut self, entry: &mut Entry, action: Action) -> Option<Observation> {
        let spec = entry.desired.spec.clone();
        match action {
            Action::Allocate if !self.may_begin(entry) => None,
            Action::Allocate => {
                let ip = entry.state.ip.or_else(|| self.addresses.allocate());
                if ip.is_none() && self.addresses.is_ready() {
                    tracing::warn!(pod = spec.name, "no free Pod address");
                    self.thirsty.insert(spec.uid.clone());
                }
                ip.map(Observation::Address)
            }
            Action::Prepare(index) => {
                let ip = entry.state.ip?;
                let order = Order {
                    restart: entry.state.containers[index].restarts,
                    services: self.parts.fleet.services_for(&spec),
                    pod: spec,
                    index,
                    ip,
                };
                entry.starts.remove(&index);
                self.tasks.spawn(self.parts.preparer.clone().run(order));
                None
            }
            Action::Start { container, restart } => {
                let start = entry.starts.get(&container)?;
                assert_eq!(start.restart, restart, "only the newest start is kept");
                let pod = protocol::Pod {
                    uid: spec.uid.clone(),
                    name: spec.name.clone(),
                    namespace: spec.namespace.clone(),
                    ip: entry.state.ip?,
                    labels: spec.labels.clone(),
                    hosts: spec.hosts.clone(),
                    dns: spec.dns.clone(),
                    containers: vec![(**start).clone()],
                };
                entry.told = true;
                self.parts.fleet.send(&spec.namespace, &ToWorker::ApplyPod(pod));
                let message = format!("Created container: {}", spec.containers[container].name);
                self.parts.events.normal(&spec, container, "Created", message);
                None
            }
            Action::Stop { container, restart, grace, because } => {
                let name = spec.containers[container].name.clone();
                let message = match because {
                    Some(kind) => {
                        let kind = kind.word().to_lowercase();
                        format!("Container {name} failed {kind} probe, will be restarted")
                    }
                    None if entry.state.stage == Stage::Active => {
                        format!("Container {name} definition changed, will be restarted")
                    }
                    None => format!("Stopping container {name}"),
                };
                self.parts.events.normal(&spec, container, "Killing", message);
                let message = ToWorker::StopContainer {
                    uid: spec.uid.clone(),
                    container: name,
                    restart,
                    grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
                };
                self.parts.fleet.send(&spec.namespace, &message);
                None
            }
            Action::BackingOff(container) => {
                let name = &spec.containers[container].name;
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    spec.name, spec.namespace, spec.uid
                );
                self.parts.events.warning(&spec, container, "BackOff", message);
                None
            }
            Action::Remove => {
                if !entry.told || !self.parts.fleet.is_connected(&spec.namespace) {
                    return Some(Observation::Removed);
                }
                let message = ToWorker::RemovePod { uid: spec.uid.clone() };
                self.parts.fleet.send(&spec.namespace, &message);
                None
            }
            Action::Unmount => {
                self.unmount(&spec.uid);
                None
            }
            // Written together with the last status.
            Action::Delete => None,
        }
    }

    fn set_timer(&mut self, entry: &mut Entry, uid: &str) {
        let wake = entry.state.wake(&entry.desired.spec);
        if wake == entry.wake {
            return;
        }
        if let Some(old) = entry.wake {
            self.timers.remove(&(old, uid.to_owned()));
        }
        if let Some(new) = wake {
            self.timers.insert((new, uid.to_owned()));
        }
        entry.wake = wake;
    }

    fn wake_due(&mut self) {
        let now = Timestamp::now();
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let Some((at, uid)) = self.timers.pop_first() else {
                break;
            };
            if let Some(entry) = self.entries.get_mut(&uid)
                && entry.wake == Some(at)
            {
                entry.wake = None;
            }
            self.process(&uid);
        }
        self.parts.fleet.tend(now);
    }

    fn drop_entry(&mut self, entry: Entry) {
        let spec = &entry.desired.spec;
        if let Some(wake) = entry.wake {
            self.timers.remove(&(wake, spec.uid.clone()));
        }
        self.thirsty.remove(&spec.uid);
        let name = (spec.namespace.clone(), spec.name.clone());
        if self.names.get(&name) == Some(&spec.uid) {
            self.names.remove(&name);
        }
        let folder = protocol::log_folder(&spec.namespace, &spec.name, &spec.uid);
        let folder = self.parts.logs.join(folder);
        self.tasks.spawn(async move {
            let _ = tokio::fs::remove_dir_all(folder).await;
        });
        self.parts.accounts.forget(&spec.uid);
        tracing::info!(namespace = spec.namespace, pod = spec.name, "Pod gone");
    }
}
