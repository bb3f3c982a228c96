//! The workers of this node, and what they all need: routes and certificates.
//!
//! Part of the agent's loop, which owns it. A namespace has a worker while a Pod of this node needs
//! one or a Service of it has a node port; a while after the last need the worker is ended. One that
//! an earlier agent started serves on until everything that may need it has been listed. Whatever is
//! sent is state, so a worker that comes back is simply told everything again. Routes are sent only
//! after Services, slices and nodes have been listed once: a half known table would cut off guests
//! that an earlier agent had connected.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::protocol::{
    self, Demand, INGRESS_NAMESPACE, Identity, NodeRoute, Nodes, Policies, Services, State,
    ToWorker,
};

use super::{
    dns::{SharedZone, Zone},
    gate::{Gate, GateInput},
    join,
    node::{Seen, Traffic},
    pods::{Input, Name},
    routes::{Changed, NodeInfo, ServiceInfo, SliceInfo, Table},
    spec::PodSpec,
    workers::{Link, Worker, Workers},
};

/// A worker that nothing needs lives on this long: a rollout takes its last Pod away before the next
/// one comes.
const LINGER: Duration = Duration::from_secs(30);
/// How often the certificates' ages are looked at.
const IDENTITY_CHECK: Duration = Duration::from_secs(600);
/// First and longest wait before a certificate is asked for again.
const IDENTITY_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Which watches have been listed once.
#[derive(Debug, Default, Clone, Copy)]
struct Synced {
    services: bool,
    slices: bool,
    nodes: bool,
    pods: bool,
    policies: bool,
    namespaces: bool,
}

/// One worker.
struct Running {
    worker: Worker,
    connected: bool,
    identity: Option<(Identity, (Timestamp, Timestamp))>,
    /// A certificate has been asked for.
    asking: bool,
    /// Its engine is another one than this agent's.
    outdated: bool,
    /// Uids that its last state named, until the Pods are known.
    reported: HashMap<String, protocol::PodState>,
}

/// All workers.
pub struct Fleet {
    workers: Arc<Workers>,
    node: String,
    /// Where certificates of workers are kept, beside the node's own.
    identities: PathBuf,
    client: kube::Client,
    inputs: mpsc::Sender<Input>,
    table: Table,
    synced: Synced,
    running: HashMap<String, Running>,
    /// Pods that need a worker, by namespace, and what they request of the CPU, in millicores.
    needs: HashMap<String, (usize, u64)>,
    /// Since when it is known that nothing needs a worker.
    idle: HashMap<String, Timestamp>,
    peers: BTreeMap<String, SocketAddr>,
    /// Requests that wait, by worker.
    demand: BTreeMap<String, Vec<Demand>>,
    /// Ports that the gate cannot have, as Gateways call them, with the reasons.
    refused: BTreeMap<i64, String>,
    published: watch::Sender<Traffic>,
    policies: BTreeMap<Name, NetworkPolicy>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// What workers were told last.
    policies_sent: Policies,
    gate: Gate,
    /// What DNS says, changed with the table.
    zone: SharedZone,
    seen: watch::Sender<Seen>,
    identity_check: Timestamp,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Takes over the workers in `links`.
    pub fn new(
        workers: Arc<Workers>,
        client: kube::Client,
        links: HashMap<String, Link>,
        identities: PathBuf,
        (published, seen): (watch::Sender<Traffic>, watch::Sender<Seen>),
        ingress_ports: (u16, u16),
        zone: SharedZone,
    ) -> Fleet {
        let gate = Gate::new(ingress_ports, client.clone(), workers.events.clone());
        let mut fleet = Fleet {
            table: Table::new(&workers.hello.node),
            node: workers.hello.node.clone(),
            inputs: workers.events.clone(),
            workers,
            identities,
            client,
            synced: Synced::default(),
            running: HashMap::new(),
            needs: HashMap::new(),
            idle: HashMap::new(),
            peers: BTreeMap::new(),
            demand: BTreeMap::new(),
            refused: BTreeMap::new(),
            published,
            policies: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            policies_sent: Policies::default(),
            gate,
            zone,
            seen,
            identity_check: Timestamp::now() + IDENTITY_CHECK,
            tasks: JoinSet::new(),
        };
        for (namespace, link) in links {
            let reported = by_uid(link.state());
            let outdated = fleet.workers.is_outdated(link.state());
            let worker = fleet.workers.start(&namespace, Some(link));
            let running = Running {
                worker,
                connected: false,
                identity: None,
                asking: false,
                outdated,
                reported,
            };
            fleet.running.insert(namespace, running);
        }
        fleet
    }

    /// Whether Services and policies are known, so that Pods can be started.
    pub fn is_synced(&self) -> bool {
        let Synced { services, slices, nodes, policies, namespaces, .. } = self.synced;
        services && slices && nodes && policies && namespaces
    }

    /// Whether the worker of a namespace takes messages.
    pub fn is_connected(&self, namespace: &str) -> bool {
        self.running.get(namespace).is_some_and(|running| running.connected)
    }

    /// Whether it also takes code that is compiled for this agent's engine.
    pub fn takes_code(&self, namespace: &str) -> bool {
        self.running.get(namespace).is_some_and(|running| running.connected && !running.outdated)
    }

    /// Whether it does not, and has not been asked to end yet.
    pub fn is_outdated(&self, namespace: &str) -> bool {
        let running = self.running.get(namespace);
        running.is_some_and(|running| running.outdated && !running.worker.is_ending())
    }

    /// Whether it can be replaced: then it is known whether another one is needed after it.
    pub fn is_replaceable(&self, namespace: &str) -> bool {
        self.is_outdated(namespace) && self.is_judged(namespace)
    }

    /// Namespaces whose workers have another engine, also those that are ending.
    pub fn outdated(&self) -> Vec<String> {
        let outdated = self.running.iter().filter(|(_, running)| running.outdated);
        outdated.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Ends a worker when what is under way has ended; then another one is started, if it is needed.
    pub fn replace(&self, namespace: &str) {
        if let Some(running) = self.running.get(namespace) {
            running.worker.retire();
        }
    }

    /// What an adopted worker said of a Pod.
    pub fn reported(&mut self, namespace: &str, uid: &str) -> Option<protocol::PodState> {
        self.running.get_mut(namespace)?.reported.remove(uid)
    }

    /// Addresses and uids of the Pods that adopted workers have.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let pods = self.running.values().flat_map(|running| &running.reported);
        pods.map(|(uid, pod)| (pod.ip, uid.as_str()))
    }

    /// Namespaces and uids of Pods that workers have and nobody asked for.
    pub fn unclaimed(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (namespace, running) in &mut self.running {
            let uids = running.reported.drain().map(|(uid, _)| uid);
            all.extend(uids.map(|uid| (namespace.clone(), uid)));
        }
        all
    }

    /// Tells the worker of a namespace something, if it is connected.
    pub fn send(&self, namespace: &str, message: &ToWorker) {
        let Some(running) = self.running.get(namespace).filter(|running| running.connected) else {
            return;
        };
        match protocol::encode(message) {
            Ok(frame) => running.worker.send(frame),
            Err(error) => tracing::error!(namespace, %error, "a message cannot be sent"),
        }
    }

    /// A Pod began or ceased to need a worker.
    pub fn need(&mut self, pod: &PodSpec, needed: bool) {
        let namespace = pod.namespace.as_str();
        let request = pod.containers[pod.main()].iter().filter_map(|it| it.requests.0);
        let request: u64 = request.map(u64::from).sum();
        let (count, millis) = self.needs.entry(namespace.to_owned()).or_default();
        if needed {
            *count += 1;
            *millis += request;
        } else {
            *count = count.checked_sub(1).expect("every need is ended once");
            *millis = millis.saturating_sub(request);
        }
        let (count, millis) = (*count, *millis);
        if count == 0 {
            self.needs.remove(namespace);
        }
        self.workers.cgroups.weigh(namespace, millis);
        self.review(namespace);
    }

    fn is_needed(&self, namespace: &str) -> bool {
        let ingress = namespace == INGRESS_NAMESPACE && self.gate.is_needed();
        ingress || self.needs.contains_key(namespace) || self.table.has_node_port(namespace)
    }

    /// Whether all that may need a worker has been listed.
    fn is_judged(&self, namespace: &str) -> bool {
        let gate = namespace != INGRESS_NAMESPACE || self.gate.is_listed();
        gate && self.synced.pods && self.is_synced()
    }

    /// Starts a worker that is needed, and notes since when one is not.
    fn review(&mut self, namespace: &str) {
        if !self.is_needed(namespace) {
            if self.running.contains_key(namespace) && self.is_judged(namespace) {
                self.idle.entry(namespace.to_owned()).or_insert_with(Timestamp::now);
            }
            return;
        }
        self.idle.remove(namespace);
        // Before its labels are known nobody can say as whom it shall run.
        if !self.running.contains_key(namespace) && self.synced.namespaces {
            let worker = self.workers.start(namespace, None);
            let running = Running {
                worker,
                connected: false,
                identity: None,
                asking: false,
                outdated: false,
                reported: HashMap::new(),
            };
            self.running.insert(namespace.to_owned(), running);
        }
    }

    fn review_all(&mut self) {
        let all: Vec<String> = self.running.keys().cloned().collect();
        all.iter().for_each(|namespace| self.review(namespace));
    }

    /// When [`Fleet::tend`] has something to do.
    pub fn wake(&self) -> Timestamp {
        let idle = self.idle.values().map(|since| *since + LINGER);
        idle.fold(self.identity_check, Timestamp::min)
    }

    /// Ends workers that were idle long enough and renews certificates.
    pub fn tend(&mut self, now: Timestamp) {
        let over = |since: &Timestamp| *since + LINGER <= now;
        let ended: Vec<String> = self
            .idle
            .iter()
            .filter(|(_, since)| over(since))
            .map(|(namespace, _)| namespace.clone())
            .collect();
        for namespace in ended {
            self.idle.remove(&namespace);
            if let Some(running) = self.running.get(&namespace) {
                tracing::info!(namespace, "ending a worker that nothing needs");
                running.worker.end();
            }
        }
        if now >= self.identity_check {
            self.identity_check = now + IDENTITY_CHECK;
            let due = self.running.iter().filter(|(_, running)| {
                let validity = running.identity.as_ref().map(|(_, validity)| *validity);
                validity.is_none_or(|validity| join::is_due(validity, now))
            });
            let due: Vec<String> = due.map(|(namespace, _)| namespace.clone()).collect();
            for namespace in due {
                self.ask_identity(&namespace);
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// A worker is up: it gets its certificate and the routes.
    pub fn connected(&mut self, namespace: &str, state: &State) {
        let Some(running) = self.running.get_mut(namespace) else {
            return;
        };
        running.connected = true;
        // It says anew who waits.
        self.demand.remove(namespace);
        if running.identity.is_none() {
            let kept = self.identities.join(identity_file(namespace));
            running.identity = kept_identity(&kept, Timestamp::now());
        }
        let known = running
            .identity
            .as_ref()
            .filter(|(_, validity)| !join::is_due(*validity, Timestamp::now()));
        let due = known.is_none();
        // One that should be renewed is still better than none.
        let identity = running.identity.as_ref().map(|(identity, _)| identity.clone());
        if let Some(identity) = identity {
            self.send(namespace, &ToWorker::Identity(identity));
        }
        if due {
            self.ask_identity(namespace);
        }
        self.set_peer(namespace, state.peer);
        if self.is_synced() {
            // Who may reach whom before where everybody is.
            self.policies_sent = self.policies();
            self.send(namespace, &ToWorker::Policies(self.policies_sent.clone()));
            let nodes = Nodes::Replace(self.table.node_routes());
            self.send(namespace, &ToWorker::Nodes(nodes));
            let routes = Services::Replace(self.table.routes());
            self.send(namespace, &ToWorker::Services(routes));
        }
        if namespace == INGRESS_NAMESPACE
            && self.synced.namespaces
            && let Some(table) = self.gate.table(&self.namespaces)
        {
            self.send(namespace, &ToWorker::Gate(table));
        }
    }

    /// Tells all workers what became of a node.
    fn publish_node(&self, name: &str, before: Option<NodeRoute>) {
        let after = self.table.node_route(name);
        if !self.is_synced() || before == after {
            return;
        }
        let change = match after {
            Some(node) => Nodes::Upsert(vec![node]),
            None => Nodes::Remove(name.to_owned()),
        };
        self.broadcast(&ToWorker::Nodes(change));
    }

    /// An Ingress, an object of the Gateway API or a certificate has changed.
    pub fn change_gate(&mut self, input: GateInput) {
        self.gate.take(input);
        self.review(INGRESS_NAMESPACE);
        self.publish_gate();
    }

    fn publish_gate(&mut self) {
        if !self.synced.namespaces {
            return;
        }
        if let Some(table) = self.gate.news(&self.namespaces) {
            self.send(INGRESS_NAMESPACE, &ToWorker::Gate(table));
        }
    }

    /// All that workers need to judge by policies.
    fn policies(&self) -> Policies {
        let by_namespace = self.policies.values().any(asks_for_namespaces);
        Policies {
            policies: self.policies.values().cloned().collect(),
            namespaces: if by_namespace { self.namespaces.clone() } else { BTreeMap::new() },
            machines: self.table.machines(),
        }
    }

    /// Tells all workers the policies, if they are others.
    fn publish_policies(&mut self) {
        if !self.is_synced() {
            return;
        }
        let policies = self.policies();
        if policies != self.policies_sent {
            self.policies_sent = policies.clone();
            self.broadcast(&ToWorker::Policies(policies));
        }
    }

    /// A NetworkPolicy is new or different.
    pub fn set_policy(&mut self, name: Name, policy: NetworkPolicy) {
        self.policies.insert(name, policy);
        self.publish_policies();
    }

    /// A NetworkPolicy is gone.
    pub fn remove_policy(&mut self, name: &Name) {
        self.policies.remove(name);
        self.publish_policies();
    }

    /// A namespace is new or has other labels.
    pub fn set_namespace(&mut self, name: String, labels: BTreeMap<String, String>) {
        let level = labels.get("pod-security.kubernetes.io/enforce").map(String::as_str);
        self.workers.users.set_privileged(&name, level == Some("privileged"));
        if self.namespaces.insert(name, labels.clone()) != Some(labels) {
            self.publish_policies();
            self.publish_gate();
        }
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
        self.workers.users.forget(name);
        self.publish_policies();
        self.publish_gate();
    }

    /// Requests wait at a worker, or wait no more.
    pub fn set_demand(&mut self, namespace: &str, demand: Vec<Demand>) {
        if demand.is_empty() {
            self.demand.remove(namespace);
        } else {
            self.demand.insert(namespace.to_owned(), demand);
        }
        self.publish_traffic();
    }

    /// Ports that the gate wants and cannot have.
    pub fn set_refused(&mut self, refused: BTreeMap<u16, String>) {
        let said = refused.into_iter().map(|(port, why)| (self.gate.said(port), why));
        self.refused = said.collect();
        self.publish_traffic();
    }

    fn publish_traffic(&self) {
        let mut demand: BTreeMap<String, u32> = BTreeMap::new();
        for one in self.demand.values().flatten() {
            let service = format!("{}/{}", one.service.namespace, one.service.name);
            let sum = demand.entry(service).or_default();
            *sum = sum.saturating_add(one.waiting);
        }
        let traffic =
            Traffic { workers: self.peers.clone(), demand, refused: self.refused.clone() };
        self.published.send_if_modified(|held| {
            let changed = *held != traffic;
            *held = traffic;
            changed
        });
    }

    /// A worker is gone. Its supervisor starts another one, unless it was ended.
    pub fn lost(&mut self, namespace: &str) {
        self.set_peer(namespace, None);
        if namespace == INGRESS_NAMESPACE {
            self.refused.clear();
        }
        self.set_demand(namespace, Vec::new());
        let Some(running) = self.running.get_mut(namespace) else {
            return;
        };
        running.connected = false;
        // Whatever comes now was started by this agent.
        running.outdated = false;
        running.reported.clear();
        if running.worker.is_ending() {
            self.running.remove(namespace);
            self.review(namespace);
        }
    }

    /// Where a worker takes traffic of other workers; published on the Node.
    pub fn set_peer(&mut self, namespace: &str, peer: Option<SocketAddr>) {
        let changed = match peer {
            Some(peer) => self.peers.insert(namespace.to_owned(), peer) != Some(peer),
            None => self.peers.remove(namespace).is_some(),
        };
        if !changed {
            return;
        }
        let peers = self.peers.clone();
        self.publish_traffic();
        let before = self.table.node_route(&self.node);
        let changes = self.table.set_workers(&self.node, peers);
        self.publish(changes);
        let node = self.node.clone();
        self.publish_node(&node, before);
    }

    fn ask_identity(&mut self, namespace: &str) {
        let Some(running) = self.running.get_mut(namespace).filter(|running| !running.asking)
        else {
            return;
        };
        running.asking = true;
        let (client, node) = (self.client.clone(), self.node.clone());
        let (namespace, inputs) = (namespace.to_owned(), self.inputs.clone());
        self.tasks.spawn(async move {
            let mut wait = IDENTITY_RETRY.0;
            let (identity, validity) = loop {
                match join::sign_traffic(&client, &node, &namespace).await {
                    Ok(signed) => break signed,
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(namespace, error, "no traffic certificate yet");
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(IDENTITY_RETRY.1);
            };
            // The loop is gone only when the agent ends.
            let _ = inputs.send(Input::Identity { namespace, identity, validity }).await;
        });
    }

    /// A certificate came.
    pub fn identity(
        &mut self,
        namespace: &str,
        identity: Identity,
        validity: (Timestamp, Timestamp),
    ) {
        let Some(running) = self.running.get_mut(namespace) else {
            return;
        };
        running.asking = false;
        running.identity = Some((identity.clone(), validity));
        let path = self.identities.join(identity_file(namespace));
        let text = serde_json::to_vec(&(&identity, validity)).expect("text and times are JSON");
        if let Err(error) = join::write_private(&path, &text) {
            tracing::warn!(namespace, %error, "cannot keep a traffic certificate");
        }
        self.send(namespace, &ToWorker::Identity(identity));
    }

    /// The Services that give a Pod variables.
    pub fn services_for(&self, pod: &PodSpec) -> Vec<ServiceInfo> {
        self.table.services_for(&pod.namespace, pod.service_links)
    }

    /// A Service's uid, empty if it is not known.
    pub fn service_uid(&self, namespace: &str, name: &str) -> String {
        self.table.service_uid(namespace, name)
    }

    /// A Service is new or different.
    pub fn set_service(&mut self, service: ServiceInfo) {
        let namespace = service.namespace.clone();
        let change = self.table.set_service(service);
        self.publish(change);
        self.review(&namespace);
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let change = self.table.remove_service(namespace, name);
        self.publish(change);
        self.review(namespace);
    }

    /// An EndpointSlice is new or different.
    pub fn set_slice(&mut self, slice: SliceInfo) {
        let machines = slice.namespace == "default" && slice.service == "kubernetes";
        let changes = self.table.set_slice(slice);
        self.publish(changes);
        if machines {
            self.publish_policies();
        }
    }

    /// An EndpointSlice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let change = self.table.remove_slice(namespace, name);
        self.publish(change);
    }

    /// A Node is new or different. Of this node itself the workers are known better.
    pub fn set_node(&mut self, mut node: NodeInfo) {
        if node.name == self.node {
            let workers = node.workers.clone();
            self.seen.send_replace(Seen::Present { ready: node.ready, workers });
            node.workers.clone_from(&self.peers);
        }
        let moved = self.table.addresses_of(&node.name) != node.addresses;
        let (name, before) = (node.name.clone(), self.table.node_route(&node.name));
        self.change_zone(|zone| zone.set_blocks(&name, &node.pod_cidrs));
        let changes = self.table.set_node(node);
        self.publish(changes);
        self.publish_node(&name, before);
        if moved {
            self.publish_policies();
        }
    }

    /// A Node is gone.
    pub fn remove_node(&mut self, name: &str) {
        if name == self.node {
            self.seen.send_replace(Seen::Absent);
            return;
        }
        self.change_zone(|zone| zone.set_blocks(name, &[]));
        let before = self.table.node_route(name);
        let changes = self.table.remove_node(name);
        self.publish(changes);
        self.publish_node(name, before);
        self.publish_policies();
    }

    /// The Pods of this node are known: what nobody needs may end, a while from now.
    pub fn pods_synced(&mut self) {
        self.synced.pods = true;
        self.review_all();
    }

    /// A watch has been listed.
    pub fn services_synced(&mut self) {
        let before = self.is_synced();
        self.synced.services = true;
        self.maybe_replace(before);
    }

    /// A watch has been listed.
    pub fn slices_synced(&mut self) {
        let before = self.is_synced();
        self.synced.slices = true;
        self.maybe_replace(before);
    }

    /// A watch has been listed.
    pub fn nodes_synced(&mut self) {
        let before = self.is_synced();
        self.synced.nodes = true;
        self.maybe_replace(before);
    }

    /// A watch has been listed.
    pub fn policies_synced(&mut self) {
        let before = self.is_synced();
        self.synced.policies = true;
        self.maybe_replace(before);
    }

    /// A watch has been listed.
    pub fn namespaces_synced(&mut self) {
        let before = self.is_synced();
        self.synced.namespaces = true;
        let all: Vec<String> = self.namespaces.keys().cloned().collect();
        all.iter().for_each(|namespace| self.review(namespace));
        self.maybe_replace(before);
        self.publish_gate();
    }

    fn maybe_replace(&mut self, before: bool) {
        if before || !self.is_synced() {
            return;
        }
        self.review_all();
        self.change_zone(Zone::complete);
        self.policies_sent = self.policies();
        self.broadcast(&ToWorker::Policies(self.policies_sent.clone()));
        self.broadcast(&ToWorker::Nodes(Nodes::Replace(self.table.node_routes())));
        let routes = Services::Replace(self.table.routes());
        self.broadcast(&ToWorker::Services(routes));
    }

    fn change_zone(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Changed>) {
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for change in changes {
            self.change_zone(|zone| zone.apply(&change));
            match change {
                Changed::Upsert(route) => upsert.push(route),
                Changed::Remove(key) => remove.push(key),
            }
        }
        if !self.is_synced() {
            return;
        }
        if !upsert.is_empty() {
            self.broadcast(&ToWorker::Services(Services::Upsert(upsert)));
        }
        if !remove.is_empty() {
            self.broadcast(&ToWorker::Services(Services::Remove(remove)));
        }
    }

    /// Tells every worker the same; encoded once.
    fn broadcast(&self, message: &ToWorker) {
        match protocol::encode(message) {
            Ok(frame) => {
                for running in self.running.values().filter(|running| running.connected) {
                    running.worker.send(frame.clone());
                }
            }
            Err(error) => tracing::error!(%error, "the routes cannot be sent"),
        }
    }

    /// Logs what became of a node port.
    pub fn node_port(&self, namespace: &str, port: &protocol::NodePort) {
        match &port.error {
            Some(error) => tracing::warn!(
                namespace,
                service = port.service,
                port = port.port,
                error,
                "cannot bind a node port"
            ),
            None => tracing::info!(
                namespace,
                service = port.service,
                port = port.port,
                bound = port.bound,
                "node port"
            ),
        }
    }

    /// Lets go of all workers, or ends them.
    pub async fn shutdown(mut self, stop: bool) {
        self.tasks.shutdown().await;
        let ends = self.running.drain().map(|(_, running)| async move {
            if stop { running.worker.stop().await } else { running.worker.release().await }
        });
        futures::future::join_all(ends).await;
    }
}

/// Whether a policy speaks of namespaces by their labels.
fn asks_for_namespaces(policy: &NetworkPolicy) -> bool {
    let spec = policy.spec.as_ref();
    let ingress = spec.and_then(|spec| spec.ingress.as_ref()).into_iter().flatten();
    let egress = spec.and_then(|spec| spec.egress.as_ref()).into_iter().flatten();
    let from = ingress.filter_map(|rule| rule.from.as_ref());
    let to = egress.filter_map(|rule| rule.to.as_ref());
    from.chain(to).flatten().any(|peer| peer.namespace_selector.is_some())
}

fn identity_file(namespace: &str) -> String {
    format!("traffic-{namespace}.json")
}

/// A certificate that an earlier agent got, if it is good for a while.
fn kept_identity(
    path: &std::path::Path,
    now: Timestamp,
) -> Option<(Identity, (Timestamp, Timestamp))> {
    let text = std::fs::read(path).ok()?;
    let (identity, validity): (Identity, (Timestamp, Timestamp)) =
        serde_json::from_slice(&text).ok()?;
    (validity.0 <= now && now < validity.1).then_some((identity, validity))
}

fn by_uid(state: &State) -> HashMap<String, protocol::PodState> {
    state.pods.iter().map(|pod| (pod.uid.clone(), pod.clone())).collect()
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
