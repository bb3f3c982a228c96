//! The scheduler: gives each Pod without a node one.
//!
//! ```text
//!  Pods, Nodes ─► Cluster (what is free where), Queue (who waits) ─► decide ─► bindings, reasons
//! ```
//!
//! `decide` is pure; this file feeds it and performs what it says. A Pod counts on its node from
//! the decision on, so decisions never wait for writes: bindings go out [`WRITES_MAX`] at a time,
//! and one that fails gives the room back. Pods that fit nowhere are told why and are tried again
//! when `Cluster::room` has grown, or `Cluster::company` for those that mind other Pods; after some
//! tries in vain they rest first.
//!
//! Owns: `spec.nodeName` (through the binding), the condition PodScheduled,
//! `status.nominatedNodeName`, and the condition DisruptionTarget of Pods that it has deleted to
//! make room.
//!
//! Tasks: one loop that owns all state, one for each write under way (joined before it ends), and
//! the recorder of events.

pub mod appetite;
pub mod census;
pub mod cluster;
pub mod company;
pub mod decide;
pub mod desk;
pub mod filter;
pub mod need;
pub mod preempt;
pub mod queue;
pub mod score;
pub mod volumes;
pub mod why;

use std::collections::HashSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher as watch};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::contain;
use crate::controllers::events::{self, Note, Recorder};
use crate::controllers::volumes::SELECTED_NODE;
use crate::controllers::watch::Pause;
use decide::Decision;
use desk::Desk;
use need::Need;
use preempt::Victim;

/// Writes under way at once: enough to fill the store's group commit.
const WRITES_MAX: usize = 128;
/// Events taken in before Pods are decided for.
const EVENTS_MAX: usize = 1_024;
/// Pods decided for before new events are looked at.
const BATCH_MAX: usize = 64;
/// First pause before a Pod is tried again that was not what the scheduler thought: its event is on
/// the way.
const STALE_PAUSE: Duration = Duration::from_millis(20);
/// First pause before a Pod whose binding was refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, as in Kubernetes; each refusal doubles it.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Writes under way when the shutdown comes have so long to end; then they are dropped.
const DRAIN: Duration = Duration::from_secs(2);
const COMPONENT: &str = "default-scheduler";

/// What the watches say.
enum Seen {
    Pod(Event<Pod>),
    Node(Event<Node>),
    Namespace(Event<Namespace>),
    Budget(Event<PodDisruptionBudget>),
    Claim(Event<PersistentVolumeClaim>),
    Volume(Event<PersistentVolume>),
    Class(Event<StorageClass>),
}

/// How a write ended.
enum Done {
    Bound,
    /// To be tried again, unless the watch says meanwhile that the Pod is bound or gone.
    Failed(Box<Need>),
    Told,
    /// The reason was not written to the Pod with this uid.
    Untold(String),
}

struct State {
    client: kube::Client,
    recorder: Recorder,
    shutdown: CancellationToken,
    desk: Desk,
    writes: JoinSet<Done>,
    /// Uids present in the list of Pods that is being read, and names of nodes likewise.
    listing_pods: Option<HashSet<String>>,
    listing_nodes: Option<HashSet<String>>,
    pods_known: bool,
    nodes_known: bool,
}

/// Schedules until the shutdown; returns when the last binding is done.
pub async fn run(client: kube::Client, shutdown: CancellationToken) {
    let (recorder, notes) = events::recorder();
    let events = events::run(client.clone(), notes, shutdown.clone());
    let state = State {
        client,
        recorder,
        shutdown,
        desk: Desk::default(),
        writes: JoinSet::new(),
        listing_pods: None,
        listing_nodes: None,
        pods_known: false,
        nodes_known: false,
    };
    tokio::join!(state.run(), events);
}

impl State {
    async fn run(mut self) {
        let client = &self.client;
        let seen = stream::select_all([
            follow(client, Seen::Pod),
            follow(client, Seen::Node),
            follow(client, Seen::Namespace),
            follow(client, Seen::Budget),
            follow(client, Seen::Claim),
            follow(client, Seen::Volume),
            follow(client, Seen::Class),
        ]);
        let mut seen = seen.ready_chunks(EVENTS_MAX);
        let shutdown = self.shutdown.clone();
        loop {
            let free = self.writes.len() < WRITES_MAX;
            let ready = self.pods_known && self.nodes_known && free && !self.desk.queue.is_empty();
            let rested = self.desk.queue.rested();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(done) = self.writes.join_next(), if !self.writes.is_empty() => {
                    self.finish(done);
                }
                Some(events) = seen.next() => events.into_iter().for_each(|event| match event {
                    Ok(event) => {
                        if let Err(panic) = contain::sync(|| self.observe(event)) {
                            tracing::error!(%panic, "news of an object were not taken in");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "watch failed; it is tried again"),
                }),
                () = std::future::ready(()), if ready => self.schedule(),
                () = tokio::time::sleep_until(rested.unwrap_or_else(Instant::now).into()),
                    if rested.is_some() => {}
            }
            self.desk.look_again(Instant::now());
        }
        let drained = async { while self.writes.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            self.writes.shutdown().await;
        }
    }

    fn observe(&mut self, seen: Seen) {
        match seen {
            Seen::Pod(Event::Init) => self.listing_pods = Some(HashSet::new()),
            Seen::Pod(Event::InitApply(pod)) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.listing_pods.get_or_insert_default().insert(uid);
                self.desk.put_pod(&pod);
            }
            Seen::Pod(Event::InitDone) => {
                let listed = self.listing_pods.take().unwrap_or_default();
                let gone = self.desk.uids().into_iter().filter(|uid| !listed.contains(uid));
                gone.for_each(|uid| self.desk.remove_pod(&uid));
                self.pods_known = true;
            }
            Seen::Pod(Event::Apply(pod)) => self.desk.put_pod(&pod),
            Seen::Pod(Event::Delete(pod)) => {
                self.desk.remove_pod(pod.metadata.uid.as_deref().unwrap_or(""));
            }
            Seen::Node(Event::Init) => self.listing_nodes = Some(HashSet::new()),
            Seen::Node(Event::InitApply(node)) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                self.listing_nodes.get_or_insert_default().insert(name);
                self.desk.cluster.put_node(&node);
            }
            Seen::Node(Event::InitDone) => {
                let listed = self.listing_nodes.take().unwrap_or_default();
                let known = self.desk.cluster.nodes().iter().filter(|node| node.present);
                let known: Vec<String> = known.map(|node| node.name.clone()).collect();
                let gone = known.iter().filter(|name| !listed.contains(*name));
                gone.for_each(|name| self.desk.cluster.remove_node(name));
                self.nodes_known = true;
            }
            Seen::Node(Event::Apply(node)) => self.desk.cluster.put_node(&node),
            Seen::Node(Event::Delete(node)) => {
                self.desk.cluster.remove_node(node.metadata.name.as_deref().unwrap_or(""));
            }
            // Of these a relist may leave names that are gone: harmless, nobody asks for them.
            Seen::Namespace(Event::InitApply(namespace) | Event::Apply(namespace)) => {
                self.desk.cluster.put_namespace(&namespace);
            }
            Seen::Namespace(Event::Delete(namespace)) => {
                self.desk.cluster.remove_namespace(&name_of(&namespace.metadata).1);
            }
            Seen::Budget(Event::InitApply(budget) | Event::Apply(budget)) => {
                self.desk.cluster.put_budget(&budget);
            }
            Seen::Budget(Event::Delete(budget)) => {
                let (namespace, name) = name_of(&budget.metadata);
                self.desk.cluster.remove_budget(&namespace, &name);
            }
            Seen::Claim(Event::InitApply(claim) | Event::Apply(claim)) => {
                self.desk.cluster.put_volumes(|volumes| volumes.put_claim(&claim));
            }
            Seen::Claim(Event::Delete(claim)) => {
                let (namespace, name) = name_of(&claim.metadata);
                self.desk.cluster.put_volumes(|volumes| volumes.remove_claim(&namespace, &name));
            }
            Seen::Volume(Event::InitApply(volume) | Event::Apply(volume)) => {
                self.desk.cluster.put_volumes(|volumes| volumes.put_volume(&volume));
            }
            Seen::Volume(Event::Delete(volume)) => {
                let (_, name) = name_of(&volume.metadata);
                self.desk.cluster.put_volumes(|volumes| volumes.remove_volume(&name));
            }
            Seen::Class(Event::InitApply(class) | Event::Apply(class)) => {
                self.desk.cluster.put_volumes(|volumes| volumes.put_class(&class));
            }
            Seen::Class(Event::Delete(class)) => {
                let (_, name) = name_of(&class.metadata);
                self.desk.cluster.put_volumes(|volumes| volumes.remove_class(&name));
            }
            Seen::Namespace(_) | Seen::Budget(_) => {}
            Seen::Claim(_) | Seen::Volume(_) | Seen::Class(_) => {}
        }
    }

    /// Decides for the first of the queue and sends the outcomes out.
    fn schedule(&mut self) {
        let count = BATCH_MAX.min(WRITES_MAX - self.writes.len());
        for (need, decision) in self.desk.decide(count) {
            match decision {
                Decision::Bind { node } => self.bind(need, node),
                Decision::Unschedulable { sentence } => self.refuse(need, sentence),
                Decision::Provision { node, claims } => self.provision(need, &node, &claims),
                // That it takes its time is no failure: its claims tell of those.
                Decision::Wait { sentence } => self.stick(need, sentence),
                Decision::Preempt { node, victims, sentence } => {
                    self.make_room(&need, node, victims);
                    self.refuse(need, sentence);
                }
            }
        }
    }

    fn bind(&mut self, need: Need, node: String) {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        let shutdown = self.shutdown.clone();
        self.writes.spawn(async move {
            match send(&client, binding(&need, &node)).await {
                Ok(()) => {
                    let Need { namespace, name, .. } = &need;
                    let message = format!("Successfully assigned {namespace}/{name} to {node}");
                    recorder.record(note(&need, false, "Scheduled", message));
                    Done::Bound
                }
                Err(error) => {
                    let stale = matches!(&error, kube::Error::Api(status) if is_stale(status.code));
                    let first = if stale { STALE_PAUSE } else { RETRY_PAUSE };
                    let pause = back_off(first, need.refusals);
                    tracing::debug!(pod = need.name, node, %error, ?pause, "not bound");
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    Done::Failed(Box::new(need))
                }
            }
        });
    }

    /// Has a Pod's volumes made on a node; their news bring the Pod back.
    fn provision(&mut self, need: Need, node: &str, claims: &[String]) {
        let requests: Vec<Send> =
            claims.iter().map(|claim| selection(&need.namespace, claim, node)).collect();
        let (client, shutdown) = (self.client.clone(), self.shutdown.clone());
        let uid = need.uid.clone();
        self.desk.queue.stick(need);
        self.writes.spawn(async move {
            for request in requests {
                if let Err(error) = send(&client, request).await {
                    let stale = matches!(&error, kube::Error::Api(status) if is_stale(status.code));
                    let pause = if stale { STALE_PAUSE } else { RETRY_PAUSE };
                    tracing::debug!(%error, ?pause, "a claim was not given its node");
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    return Done::Untold(uid);
                }
            }
            Done::Told
        });
    }

    /// Has the victims deleted, and says for whom.
    fn make_room(&mut self, need: &Need, node: String, victims: Vec<Victim>) {
        for victim in &victims {
            let message = format!("Preempted by pod {} on node {node}", need.uid);
            self.recorder.record(victim_note(victim, message));
        }
        let client = self.client.clone();
        let nominated = nomination(need, &node);
        let requests: Vec<[Send; 2]> =
            victims.iter().map(|victim| eviction(victim, Timestamp::now())).collect();
        self.writes.spawn(async move {
            let nominated = send(&client, nominated).await;
            for request in requests.into_iter().flatten() {
                // One that is gone already made its room.
                if let Err(error) = send(&client, request).await {
                    tracing::debug!(%error, "a Pod was not preempted");
                }
            }
            if let Err(error) = nominated {
                tracing::debug!(%error, "a nomination was not written");
            }
            Done::Told
        });
    }

    /// Keeps a Pod that fits nowhere, and tells so if it has not been said.
    fn refuse(&mut self, need: Need, sentence: String) {
        if need.told.as_ref() != Some(&sentence) {
            self.recorder.record(note(&need, true, "FailedScheduling", sentence.clone()));
        }
        self.stick(need, sentence);
    }

    /// Keeps a Pod that gets no node now, and has it say why.
    fn stick(&mut self, mut need: Need, sentence: String) {
        if need.told.as_ref() == Some(&sentence) {
            self.desk.stick(need, Instant::now());
            return;
        }
        let request = reason(&need, &sentence, Timestamp::now());
        let uid = need.uid.clone();
        need.told = Some(sentence);
        self.desk.stick(need, Instant::now());
        let (client, shutdown) = (self.client.clone(), self.shutdown.clone());
        self.writes.spawn(async move {
            let Err(error) = send(&client, request).await else { return Done::Told };
            tracing::debug!(%error, "a Pod's condition was not written");
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(STALE_PAUSE) => {}
            }
            Done::Untold(uid)
        });
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Bound | Done::Told) => {}
            Ok(Done::Untold(uid)) => self.desk.queue.retry_untold(&uid),
            Ok(Done::Failed(need)) => self.desk.refused(*need),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

type Follow = BoxStream<'static, Result<Seen, watcher::Error>>;

/// All objects of a kind, and what becomes of them.
fn follow<K>(client: &kube::Client, seen: fn(Event<K>) -> Seen) -> Follow
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + std::marker::Send + 'static,
    K::DynamicType: Default + Clone + Eq + std::hash::Hash,
{
    let all = Api::<K>::all(client.clone());
    let events = watch(all, watcher::Config::default()).backoff(Pause::default());
    events.map(move |event| event.map(seen)).boxed()
}

fn name_of(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The pause after one more refusal than these.
fn back_off(first: Duration, refusals: u32) -> Duration {
    first.saturating_mul(1 << refusals.min(10)).min(PAUSE_MAX)
}

/// Whether an answer means that the object is gone or was changed meanwhile.
fn is_stale(code: u16) -> bool {
    matches!(code, 404 | 409)
}

fn note(need: &Need, warning: bool, reason: &'static str, message: String) -> Note {
    let about = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": need.namespace,
        "name": need.name,
        "uid": need.uid,
        "resourceVersion": need.revision,
    });
    Note::about(COMPONENT, about, warning, reason, message)
}

fn victim_note(victim: &Victim, message: String) -> Note {
    let about = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": victim.namespace,
        "name": victim.name,
        "uid": victim.uid,
    });
    Note::about(COMPONENT, about, false, "Preempted", message)
}

/// A request: method, path, content type, body.
type Send = (http::Method, String, &'static str, Value);

const MERGE: &str = "application/strategic-merge-patch+json";

fn selection(namespace: &str, claim: &str, node: &str) -> Send {
    let body = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    (http::Method::PATCH, path, "application/merge-patch+json", body)
}

fn nomination(need: &Need, node: &str) -> Send {
    let Need { namespace, name, uid, .. } = need;
    let body = json!({"metadata": {"uid": uid}, "status": {"nominatedNodeName": node}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    (http::Method::PATCH, path, MERGE, body)
}

/// Says on a victim why it goes, and has it go with its own grace.
fn eviction(victim: &Victim, now: Timestamp) -> [Send; 2] {
    let Victim { namespace, name, uid } = victim;
    let condition = PodCondition {
        type_: "DisruptionTarget".to_string(),
        status: "True".to_string(),
        reason: Some("PreemptionByScheduler".to_string()),
        message: Some(format!("{COMPONENT}: preempting to accommodate a higher priority pod")),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let body = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    let told = (http::Method::PATCH, format!("{path}/status"), MERGE, body);
    let options = json!({
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "preconditions": {"uid": uid},
    });
    [told, (http::Method::DELETE, path, "application/json", options)]
}

fn binding(need: &Need, node: &str) -> Send {
    let Need { namespace, name, uid, .. } = need;
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    (http::Method::POST, path, "application/json", body)
}

/// The condition that says why a Pod fits nowhere; merged by its type, so that it meets no other
/// writer's.
fn reason(need: &Need, sentence: &str, now: Timestamp) -> Send {
    let Need { namespace, name, uid, .. } = need;
    let condition = PodCondition {
        type_: "PodScheduled".to_string(),
        status: "False".to_string(),
        reason: Some("Unschedulable".to_string()),
        message: Some(sentence.to_string()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let body = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    (http::Method::PATCH, path, MERGE, body)
}

async fn send(client: &kube::Client, request: Send) -> Result<(), kube::Error> {
    let (method, path, content_type, body) = request;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .header(http::header::ACCEPT, "application/json")
        .body(body.to_string().into_bytes())
        .expect("names make valid paths");
    client.request::<Value>(request).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_double_the_pause() {
        let pauses = [0, 1, 2, 4, 5, 99].map(|count| back_off(RETRY_PAUSE, count).as_millis());
        assert_eq!(pauses, [500, 1_000, 2_000, 8_000, 10_000, 10_000]);
    }
}
