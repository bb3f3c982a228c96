//! The workers of this node, and what they all need: routes and certificates.
//!
//! Part of the agent's loop, which owns it. A namespace has a worker while a Pod of this node needs
//! one or a Service of it has a node port; a while after the last need the worker is ended. Whatever
//! is sent is state, so a worker that comes back is simply told everything again. Routes are sent only
//! after Services, slices and nodes have been listed once: a half known table would cut off guests
//! that an earlier agent had connected.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::protocol::{self, Identity, Services, State, ToWorker};

use super::{
    join,
    node::Seen,
    pods::Input,
    routes::{Changed, NodeInfo, ServiceInfo, SliceInfo, Table},
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
}

/// One worker.
struct Running {
    worker: Worker,
    connected: bool,
    identity: Option<(Identity, (Timestamp, Timestamp))>,
    /// A certificate has been asked for.
    asking: bool,
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
    /// Pods that need a worker, by namespace.
    needs: HashMap<String, usize>,
    idle: HashMap<String, Timestamp>,
    peers: BTreeMap<String, SocketAddr>,
    published: watch::Sender<BTreeMap<String, SocketAddr>>,
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
        published: watch::Sender<BTreeMap<String, SocketAddr>>,
        seen: watch::Sender<Seen>,
    ) -> Fleet {
        let mut fleet = Fleet {
            node: workers.hello.node.clone(),
            inputs: workers.events.clone(),
            workers,
            identities,
            client,
            table: Table::default(),
            synced: Synced::default(),
            running: HashMap::new(),
            needs: HashMap::new(),
            idle: HashMap::new(),
            peers: BTreeMap::new(),
            published,
            seen,
            identity_check: Timestamp::now() + IDENTITY_CHECK,
            tasks: JoinSet::new(),
        };
        for (namespace, link) in links {
            let reported = by_uid(link.state());
            let worker = fleet.workers.start(&namespace, Some(link));
            fleet.idle.insert(namespace.clone(), Timestamp::now());
            let running =
                Running { worker, connected: false, identity: None, asking: false, reported };
            fleet.running.insert(namespace, running);
        }
        fleet
    }

    /// Whether Services are known, so that Pods can be started.
    pub fn is_synced(&self) -> bool {
        self.synced.services && self.synced.slices && self.synced.nodes
    }

    /// Whether the worker of a namespace takes messages.
    pub fn is_connected(&self, namespace: &str) -> bool {
        self.running.get(namespace).is_some_and(|running| running.connected)
    }

    /// What an adopted worker said of a Pod.
    pub fn reported(&mut self, namespace: &str, uid: &str) -> Option<protocol::PodState> {
        self.running.get_mut(namespace)?.reported.remove(uid)
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

    /// A Pod of the namespace began or ceased to need a worker.
    pub fn need(&mut self, namespace: &str, needed: bool) {
        let count = self.needs.entry(namespace.to_owned()).or_default();
        if needed {
            *count += 1;
        } else {
            *count = count.checked_sub(1).expect("every need is ended once");
        }
        if *count == 0 {
            self.needs.remove(namespace);
        }
        self.review(namespace);
    }

    fn is_needed(&self, namespace: &str) -> bool {
        self.needs.contains_key(namespace) || self.table.has_node_port(namespace)
    }

    /// Starts a worker that is needed, and notes since when one is not.
    fn review(&mut self, namespace: &str) {
        if !self.is_needed(namespace) {
            if self.running.contains_key(namespace) {
                self.idle.entry(namespace.to_owned()).or_insert_with(Timestamp::now);
            }
            return;
        }
        self.idle.remove(namespace);
        if !self.running.contains_key(namespace) {
            let worker = self.workers.start(namespace, None);
            let running = Running {
                worker,
                connected: false,
                identity: None,
                asking: false,
                reported: HashMap::new(),
            };
            self.running.insert(namespace.to_owned(), running);
        }
    }

    /// When [`Fleet::tend`] has something to do.
    pub fn wake(&self) -> Timestamp {
        let idle = self.idle.values().map(|since| *since + LINGER).min();
        idle.filter(|_| self.synced.pods).unwrap_or(self.identity_check).min(self.identity_check)
    }

    /// Ends workers that were idle long enough and renews certificates.
    pub fn tend(&mut self, now: Timestamp) {
        let over = |since: &Timestamp| *since + LINGER <= now;
        let ended: Vec<String> = self
            .idle
            .iter()
            // Until the Pods are known nobody can say what is not needed.
            .filter(|(_, since)| self.synced.pods && over(since))
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
            let routes = Services::Replace(self.table.routes());
            self.send(namespace, &ToWorker::Services(routes));
        }
    }

    /// A worker is gone. Its supervisor starts another one, unless it was ended.
    pub fn lost(&mut self, namespace: &str) {
        self.set_peer(namespace, None);
        let Some(running) = self.running.get_mut(namespace) else {
            return;
        };
        running.connected = false;
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
        self.published.send_replace(peers.clone());
        let name = self.node.clone();
        let own = NodeInfo { name, workers: peers, pod_cidrs: Vec::new(), ready: true };
        let changes = self.table.set_node(own);
        self.publish(changes);
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

    /// The Services that give variables to Pods of a namespace.
    pub fn services_for(&self, namespace: &str) -> Vec<ServiceInfo> {
        self.table.services_for(namespace)
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
        let changes = self.table.set_slice(slice);
        self.publish(changes);
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
        let changes = self.table.set_node(node);
        self.publish(changes);
    }

    /// A Node is gone.
    pub fn remove_node(&mut self, name: &str) {
        if name == self.node {
            self.seen.send_replace(Seen::Absent);
            return;
        }
        let changes = self.table.remove_node(name);
        self.publish(changes);
    }

    /// The Pods of this node are known: what nobody needs may end.
    pub fn pods_synced(&mut self) {
        self.synced.pods = true;
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

    fn maybe_replace(&mut self, before: bool) {
        if before || !self.is_synced() {
            return;
        }
        let routes = Services::Replace(self.table.routes());
        self.broadcast(&ToWorker::Services(routes));
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Changed>) {
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for change in changes {
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
