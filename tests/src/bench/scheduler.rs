//! The control plane with a fleet that is not there: one real server with its API, store and disk,
//! and nodes that only say that they live.
//!
//! A *hollow* node is a Node object and a lease that is renewed; one watch here stands for all
//! their agents: it sees Pods bound, says that they run, and lets deleted ones go. Client and server
//! share the machine, so what is measured is less than what the server alone could do.
//!
//! Everything ends: a request after [`REQUEST_MAX`], a stage after [`STAGE_MAX`]. A stage that
//! fails is told of, and the others are measured all the same.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use wherry_tests::http::{Credentials, http2};
use wherry_tests::repository;
use wherry_tests::server::{Server, ServerOptions};

use crate::Rows;
use crate::apps::proportional_mib;

const NODES: usize = 5_000;
const ZONES: usize = 10;
/// Pods that one hollow node takes: room for 50,000 with some to spare.
const PODS_PER_NODE: usize = 32;
/// Leases are renewed so often; a node is lost after 5 s.
const RENEW_EVERY: Duration = Duration::from_millis(3_000);
/// Connections, and requests at once on all of them, of those who create Pods.
const CONNECTIONS: usize = 4;
const CREATORS: usize = 96;
/// Renewals under way at once: nodes do not wait for each other's answers, so that there are more of
/// them while answers are late.
const RENEWERS: usize = 192;
/// A request that takes longer has failed: the server gives up its own after 60 s.
const REQUEST_MAX: Duration = Duration::from_secs(70);
/// A stage that takes longer has failed.
const STAGE_MAX: Duration = Duration::from_secs(600);
/// How long the fleet is watched at rest.
const REST: Duration = Duration::from_secs(20);
const REPLICAS: usize = 10_000;

/// How large a run is: `--nodes` and `--pods` make it smaller.
struct Size {
    nodes: usize,
    pods: Vec<usize>,
    replicas: usize,
}

pub fn scheduler(rows: &mut Rows) -> Result<()> {
    let number = |name: &str| crate::flag(name).map(|text| text.parse::<usize>()).transpose();
    let pods = number("--pods")?;
    let size = Size {
        nodes: number("--nodes")?.unwrap_or(NODES),
        pods: pods.map_or_else(|| vec![10_000, 50_000], |count| vec![count]),
        replicas: pods.unwrap_or(REPLICAS),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut failed = Vec::new();
        let mut tell = |name: String, outcome: Result<()>| {
            if let Err(error) = outcome {
                eprintln!("{name}: {error:?}");
                failed.push(name);
            }
        };
        for count in &size.pods {
            let outcome = stage(rows, &size, *count, Plain::Yes).await;
            tell(format!("{count} plain Pods"), outcome);
        }
        let outcome = stage(rows, &size, size.pods[0], Plain::No).await;
        tell(format!("{} Pods that mind others", size.pods[0]), outcome);
        tell("the Deployment".to_owned(), rollout(rows, &size).await);
        ensure!(failed.is_empty(), "these stages failed: {}", failed.join(", "));
        Ok(())
    })
}

/// Whether Pods mind others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plain {
    Yes,
    /// Spread over zones, and apart from their like by node.
    No,
}

/// A server with hollow nodes.
pub struct Fleet {
    server: Server,
    credentials: Credentials,
    address: SocketAddr,
    connections: Arc<Vec<Mutex<SendRequest<Full<Bytes>>>>>,
    next: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
    late: Arc<AtomicUsize>,
    /// Renewals that were refused or not answered.
    lost: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

impl Fleet {
    pub async fn start(nodes: usize) -> Result<Fleet> {
        let folder = tempfile::tempdir_in(repository().join("tests"))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let options = ServerOptions::new("m1", &folder.path().join("m1"), address);
        let mut server = Server::start(options)?;
        let credentials = server.ready(Duration::from_secs(60)).await?;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Mutex::new(http2(address, &credentials).await?));
        }
        let (stop, stopped) = watch::channel(false);
        let mut fleet = Fleet {
            server,
            credentials,
            address,
            connections: Arc::new(connections),
            next: Arc::default(),
            stop,
            tasks: JoinSet::new(),
            late: Arc::default(),
            lost: Arc::default(),
            _folder: folder,
        };
        // Leases do not wait behind the bodies of others, and the first nodes not for the last.
        let client = fleet.another().await?;
        let there = Arc::new(AtomicUsize::new(0));
        fleet.renew(client, there.clone(), nodes, stopped);
        many(&fleet.client(), nodes, CREATORS, move |client, number| {
            let there = there.clone();
            async move {
                client.send(Method::POST, LEASES, &lease(number)).await?;
                client.send(Method::POST, "/api/v1/nodes", &node(number)).await?;
                there.fetch_max(number + 1, Ordering::Relaxed);
                Ok(())
            }
        })
        .await?;
        fleet.settle(nodes).await?;
        Ok(fleet)
    }

    /// Waits until the controllers are done with the new nodes: all have addresses for their Pods
    /// and none keeps Pods away.
    async fn settle(&self, nodes: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let list = get(self, "/api/v1/nodes").await?;
            let done = |node: &&Value| {
                let taints = node["spec"]["taints"].as_array().is_none_or(Vec::is_empty);
                taints && node["spec"]["podCIDR"].is_string()
            };
            let done = list["items"].as_array().into_iter().flatten().filter(done).count();
            if done == nodes {
                return Ok(());
            }
            ensure!(begun.elapsed() < STAGE_MAX, "{done} of {nodes} nodes can take Pods");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// With a connection of its own.
    pub async fn another(&self) -> Result<Client> {
        let own = Mutex::new(http2(self.address, &self.credentials).await?);
        Ok(Client { connections: Arc::new(vec![own]), ..self.client() })
    }

    pub fn client(&self) -> Client {
        Client {
            authority: self.address.to_string(),
            connections: self.connections.clone(),
            next: self.next.clone(),
        }
    }

    /// Keeps all nodes that are there alive, evenly over the time.
    fn renew(
        &mut self,
        client: Client,
        there: Arc<AtomicUsize>,
        nodes: usize,
        stopped: watch::Receiver<bool>,
    ) {
        let (late, lost) = (self.late.clone(), self.lost.clone());
        self.tasks.spawn(async move {
            while !*stopped.borrow() {
                let begun = Instant::now();
                let each = RENEW_EVERY / u32::try_from(nodes.max(1))?;
                let lost = lost.clone();
                let count = there.load(Ordering::Relaxed);
                many(&client, count, RENEWERS, move |client, number| {
                    let lost = lost.clone();
                    async move {
                        let due = begun + each * u32::try_from(number)?;
                        tokio::time::sleep_until(due.into()).await;
                        let path = format!("{LEASES}/{}", name(number));
                        let body = json!({"spec": {"renewTime": now()}});
                        // The next round tries again, as an agent does.
                        if client.send(Method::PATCH, &path, &body).await.is_err() {
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    }
                })
                .await?;
                if count < nodes {
                    // Those that came meanwhile are renewed soon enough.
                    tokio::time::sleep_until((begun + RENEW_EVERY / 3).into()).await;
                }
                if begun.elapsed() > RENEW_EVERY + Duration::from_secs(1) {
                    late.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
    }

    /// Processor time of the server so far.
    pub fn cpu(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.server.pid()))?;
        let fields = text.rsplit_once(')').context("a command in parentheses")?.1;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    pub async fn end(mut self) -> Result<()> {
        let _ = self.stop.send(true);
        while let Some(done) = self.tasks.join_next().await {
            done??;
        }
        self.server.kill();
        Ok(())
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

/// Requests over a few connections.
#[derive(Clone)]
pub struct Client {
    authority: String,
    connections: Arc<Vec<Mutex<SendRequest<Full<Bytes>>>>>,
    next: Arc<AtomicUsize>,
}

impl Client {
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<http::Response<hyper::body::Incoming>> {
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header("content-type", content_type)
            .body(Full::new(body))?;
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let mut sender = self.connections[index].lock().await.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<()> {
        let exchange = async {
            let response = self.open(method.clone(), path, body.to_string().into()).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let exchange = tokio::time::timeout(REQUEST_MAX, exchange).await;
        let (status, answer) =
            exchange.with_context(|| format!("{method} {path}: no answer"))??;
        let gone = status.as_u16() == 404 && method != Method::POST;
        let text = String::from_utf8_lossy(&answer);
        ensure!(status.is_success() || gone, "{method} {path}: {status} {text}");
        Ok(())
    }
}

/// Does something `count` times with different numbers, `at_once` at a time.
async fn many<F>(
    client: &Client,
    count: usize,
    at_once: usize,
    task: impl Fn(Client, usize) -> F + Clone + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..at_once {
        let (client, next, task) = (client.clone(), next.clone(), task.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                task(client.clone(), number).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn name(number: usize) -> String {
    format!("hollow-{number}")
}

fn node(number: usize) -> Value {
    let amounts = json!({"cpu": "32", "memory": "64Gi", "pods": PODS_PER_NODE.to_string()});
    let labels = json!({
        "kubernetes.io/hostname": name(number),
        "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES),
    });
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name(number), "labels": labels},
        "status": {
            "capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Hollow"}],
        },
    })
}

fn lease(number: usize) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name(number)},
        "spec": {"holderIdentity": name(number), "leaseDurationSeconds": 5, "renewTime": now()},
    })
}

fn pod_spec(plain: Plain, app: usize) -> Value {
    let requests = json!({"requests": {"cpu": "100m", "memory": "64Mi"}});
    let mut spec = json!({
        "containers": [{"name": "c", "image": "hello:1", "resources": requests}],
        "automountServiceAccountToken": false,
    });
    if plain == Plain::No {
        let selector = json!({"matchLabels": {"app": format!("app-{app}")}});
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector,
        }]);
        spec["affinity"] = json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector},
            ],
        }});
    }
    spec
}

/// Pods of one app. No two share a node, so there must be as many nodes.
const PER_APP: usize = 100;

fn pod(number: usize, plain: Plain) -> Value {
    let app = number / PER_APP;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": format!("app-{app}")}},
        "spec": pod_spec(plain, app),
    })
}

/// What is seen of a Pod.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Seen,
}

#[derive(Deserialize)]
struct Seen {
    metadata: SeenMeta,
    #[serde(default)]
    spec: SeenSpec,
    #[serde(default)]
    status: SeenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenMeta {
    #[serde(default)]
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenSpec {
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct SeenStatus {
    phase: Option<String>,
}

/// Watches all Pods from now on; each event with the moment it came.
async fn follow(client: &Client) -> Result<mpsc::Receiver<(Instant, Event)>> {
    /// Events that wait to be looked at: more than a stage makes.
    const EVENTS_MAX: usize = 1 << 20;
    let path = format!("{PODS}?watch=true&resourceVersion=0&allowWatchBookmarks=true");
    let response = client.open(Method::GET, &path, Bytes::new()).await?;
    ensure!(response.status().is_success(), "watch: {}", response.status());
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let mut body = response.into_body();
    tokio::spawn(async move {
        let mut rest = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let at = Instant::now();
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1);
                let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
                if sender.send((at, event)).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

/// Creates Pods and waits until all are bound.
async fn stage(rows: &mut Rows, size: &Size, count: usize, plain: Plain) -> Result<()> {
    let kind = match plain {
        Plain::Yes => "plain",
        Plain::No => "spread over zones, apart by node",
    };
    let group = format!("scheduler: {} hollow nodes, {count} Pods, {kind}", size.nodes);
    let fleet = Fleet::start(size.nodes).await?;
    if plain == Plain::Yes && count == size.pods[0] {
        rest(rows, &fleet, size).await?;
    }
    let mut events = follow(&fleet.client()).await?;
    let (told, mut created) = mpsc::channel::<(usize, Instant)>(count);
    let before = fleet.cpu()?;
    let begun = Instant::now();
    let mut creating = tokio::spawn({
        let client = fleet.client();
        async move {
            many(&client, count, CREATORS, move |client, number| {
                let told = told.clone();
                async move {
                    told.send((number, Instant::now())).await?;
                    client.send(Method::POST, PODS, &pod(number, plain)).await
                }
            })
            .await
        }
    });
    let mut bound: HashMap<String, Instant> = HashMap::new();
    let waited = tokio::time::timeout(STAGE_MAX, async {
        let mut all_sent = false;
        while bound.len() < count {
            tokio::select! {
                event = events.recv() => {
                    let (at, event) = event.context("the watch ended")?;
                    if event.object.spec.node_name.is_some() {
                        bound.entry(event.object.metadata.name).or_insert(at);
                    }
                }
                // A Pod that could not be created would be waited for in vain.
                sent = &mut creating, if !all_sent => {
                    sent??;
                    all_sent = true;
                }
            }
        }
        anyhow::Ok(all_sent)
    })
    .await;
    match waited {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => creating.await??,
        _ => creating.abort(),
    }
    waited.with_context(|| format!("{} of {count} Pods are bound", bound.len()))??;
    let last = bound.values().max().copied().unwrap_or(begun);
    let took = last.duration_since(begun);
    let mut latencies = Histogram::<u64>::new(3)?;
    while let Ok((number, at)) = created.try_recv() {
        let end = bound.get(&format!("pod-{number}")).copied().unwrap_or(last);
        latencies.record(u64::try_from(end.saturating_duration_since(at).as_micros())?)?;
    }
    rows.add(&group, "bound", count as f64 / took.as_secs_f64(), "Pods/s");
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let ms = latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        rows.add(&group, &format!("create to bound, {name}"), ms, "ms");
    }
    let cpu = (fleet.cpu()? - before).as_secs_f64() / count as f64 * 1e6;
    rows.add(&group, "processor time of the server for each Pod", cpu, "µs");
    rows.add(&group, "memory of the server", proportional_mib(fleet.server.pid()), "MiB");
    leases(rows, &fleet, &group);
    fleet.end().await
}

/// Whether the fleet was heard all the time.
fn leases(rows: &mut Rows, fleet: &Fleet, group: &str) {
    let count = |number: &AtomicUsize| number.load(Ordering::Relaxed) as f64;
    rows.add(group, "rounds of leases that were late", count(&fleet.late), "");
    rows.add(group, "renewals that failed", count(&fleet.lost), "");
}

/// What the fleet costs when nothing happens.
async fn rest(rows: &mut Rows, fleet: &Fleet, size: &Size) -> Result<()> {
    let group = format!("scheduler: {} hollow nodes at rest, leases renewed each 3 s", size.nodes);
    tokio::time::sleep(RENEW_EVERY).await;
    let before = fleet.cpu()?;
    tokio::time::sleep(REST).await;
    let share = (fleet.cpu()? - before).as_secs_f64() / REST.as_secs_f64() * 100.0;
    rows.add(&group, "processor of the leader", share, "% of a core");
    rows.add(&group, "memory of the leader", proportional_mib(fleet.server.pid()), "MiB");
    Ok(())
}

/// A large Deployment from nothing to all ready, and back.
async fn rollout(rows: &mut Rows, size: &Size) -> Result<()> {
    let replicas = size.replicas;
    let group = format!("scheduler: a Deployment of {replicas}, {} hollow nodes", size.nodes);
    let fleet = Fleet::start(size.nodes).await?;
    let events = follow(&fleet.client()).await?;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"app": "large"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "large"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(Plain::Yes, 0)},
        },
    });
    let agents = agents(fleet.client(), events);
    let measured = measure_rollout(rows, &fleet, &group, (path, &deployment), replicas);
    // The agents end only when one of them fails.
    tokio::select! {
        failed = agents => {
            failed?;
            anyhow::bail!("the watch of Pods ended");
        }
        measured = measured => measured?,
    }
    leases(rows, &fleet, &group);
    fleet.end().await
}

async fn measure_rollout(
    rows: &mut Rows,
    fleet: &Fleet,
    group: &str,
    (path, deployment): (&str, &Value),
    replicas: usize,
) -> Result<()> {
    let begun = Instant::now();
    fleet.client().send(Method::POST, path, deployment).await?;
    let path = format!("{path}/large");
    settled(fleet, &path, replicas).await?;
    rows.add(group, "from zero to all ready", begun.elapsed().as_secs_f64(), "s");
    let begun = Instant::now();
    let none = json!({"spec": {"replicas": 0}});
    fleet.client().send(Method::PATCH, &path, &none).await?;
    settled(fleet, &path, 0).await?;
    gone(fleet).await?;
    rows.add(group, "from all ready to none left", begun.elapsed().as_secs_f64(), "s");
    Ok(())
}

async fn get(fleet: &Fleet, path: &str) -> Result<Value> {
    let client = fleet.client();
    let exchange = async {
        let response = client.open(Method::GET, path, Bytes::new()).await?;
        anyhow::Ok(response.into_body().collect().await?.to_bytes())
    };
    let answer = tokio::time::timeout(REQUEST_MAX, exchange).await;
    Ok(serde_json::from_slice(&answer.with_context(|| format!("GET {path}: no answer"))??)?)
}

async fn settled(fleet: &Fleet, path: &str, replicas: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = get(fleet, path).await?;
        let number = |key: &str| found["status"][key].as_u64().unwrap_or(0);
        let seen =
            number("observedGeneration") >= found["metadata"]["generation"].as_u64().unwrap_or(0);
        let wanted = u64::try_from(replicas)?;
        if seen && number("readyReplicas") == wanted && number("replicas") == wanted {
            return Ok(());
        }
        ensure!(begun.elapsed() < STAGE_MAX, "{path} has {} ready", number("readyReplicas"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn gone(fleet: &Fleet) -> Result<()> {
    let begun = Instant::now();
    loop {
        let list = get(fleet, &format!("{PODS}?limit=1")).await?;
        if list["items"].as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        ensure!(begun.elapsed() < STAGE_MAX, "Pods are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Says of every bound Pod that it runs, and lets those go that are to.
async fn agents(client: Client, mut events: mpsc::Receiver<(Instant, Event)>) -> Result<()> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    while let Some((_, event)) = events.recv().await {
        while tasks.len() >= CREATORS {
            tasks.join_next().await.context("there are some")???;
        }
        let pod = event.object;
        let path = format!("{PODS}/{}", pod.metadata.name);
        let bound = pod.spec.node_name.is_some() && event.kind != "DELETED";
        let pending = pod.status.phase.as_deref() == Some("Pending");
        let client = client.clone();
        if !bound {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            tasks.spawn(async move {
                client.send(Method::DELETE, &path, &json!({"gracePeriodSeconds": 0})).await
            });
        } else if pending {
            // Times of conditions are whole seconds.
            let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let status = json!({"status": {
                "phase": "Running", "podIP": "10.0.0.1",
                "containerStatuses": [{
                    "name": "c", "ready": true, "restartCount": 0, "image": "hello:1", "imageID": "",
                    "state": {"running": {"startedAt": at}},
                }],
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": at},
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
                ],
            }});
            tasks.spawn(async move {
                client.send(Method::PATCH, &format!("{path}/status"), &status).await
            });
        }
    }
    Ok(())
}
