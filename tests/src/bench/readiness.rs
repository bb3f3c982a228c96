//! From a Pod's change of readiness to the last of 1,000 nodes that has heard what to route to: the
//! Pod's status is written, the controller writes the EndpointSlice, and every node's watch tells it.
//! What a node then does, a table of routes, is microseconds and not in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Rows;
use crate::scheduler::{Fleet, PODS};

const NODES: usize = 1_000;
/// Watches of hollow nodes on one connection.
const NODES_A_CONNECTION: usize = 50;
const CHANGES: usize = 50;
/// The last node has heard by then.
const HEARD_MAX: Duration = Duration::from_secs(30);
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// `--nodes N` for less.
pub fn readiness(rows: &mut Rows) -> Result<()> {
    let nodes = crate::flag("--nodes").map_or(Ok(NODES), |text| text.parse())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let fleet = Fleet::start(nodes).await?;
        let measured = measure(rows, &fleet, nodes).await;
        fleet.end().await?;
        measured
    })
}

async fn measure(rows: &mut Rows, fleet: &Fleet, nodes: usize) -> Result<()> {
    let client = fleet.client();
    client.send(Method::POST, PODS, &pod()).await?;
    client.send(Method::POST, "/api/v1/namespaces/default/services", &service()).await?;
    let (round, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let mut watching = JoinSet::new();
    for first in (0..nodes).step_by(NODES_A_CONNECTION) {
        let connection = fleet.another().await?;
        for _ in first..nodes.min(first + NODES_A_CONNECTION) {
            let path = format!("{SLICES}?watch=true&resourceVersion=0");
            let response = connection.open(Method::GET, &path, Bytes::new()).await?;
            ensure!(response.status().is_success(), "watch: {}", response.status());
            watching.spawn(listen(response.into_body(), round.clone(), heard.clone()));
        }
    }
    let mut times = Histogram::<u64>::new(3)?;
    let before = fleet.cpu()?;
    for number in 1..=CHANGES {
        round.store(number, Ordering::SeqCst);
        let begun = Instant::now();
        client
            .send(Method::PATCH, &format!("{PODS}/web/status"), &status(is_ready(number)))
            .await?;
        let all = heard.acquire_many(u32::try_from(nodes)?);
        let all = tokio::time::timeout(HEARD_MAX, all).await;
        all.context("not every node has heard of a change")??.forget();
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    let used = fleet.cpu()?.saturating_sub(before);
    let group = format!("a Pod's readiness, {nodes} hollow nodes");
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = times.value_at_quantile(quantile) as f64 / 1000.0;
        rows.add(&group, &format!("until the last node knows: {name}"), value, "ms");
    }
    let each = used.as_secs_f64() * 1000.0 / CHANGES as f64;
    rows.add(&group, "processor time of the server for each change", each, "ms");
    watching.shutdown().await;
    Ok(())
}

/// With every change the other way.
fn is_ready(round: usize) -> bool {
    round % 2 == 1
}

/// One node's watch: tells once in each round that it has heard what was changed.
async fn listen(mut body: Incoming, round: Arc<AtomicUsize>, heard: Arc<Semaphore>) {
    let mut rest = BytesMut::new();
    let mut told = 0;
    while let Some(Ok(frame)) = body.frame().await {
        rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = rest.split_to(end + 1);
            let line = String::from_utf8_lossy(&line);
            let now = round.load(Ordering::SeqCst);
            let ours = line.contains(r#""kubernetes.io/service-name":"web""#);
            let ready = line.contains(r#""ready":true"#);
            if ours && now > told && ready == is_ready(now) {
                told = now;
                heard.add_permits(1);
            }
        }
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "nodeName": "hollow-0", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "hello:1", "ports": [{"containerPort": 80}]}],
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    })
}

/// What the node's agent says of the Pod.
fn status(ready: bool) -> Value {
    let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let word = if ready { "True" } else { "False" };
    json!({"status": {
        "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
        "containerStatuses": [{
            "name": "c", "ready": ready, "restartCount": 0, "image": "hello:1", "imageID": "",
            "state": {"running": {"startedAt": at}},
        }],
        "conditions": [
            {"type": "Ready", "status": word, "lastTransitionTime": at},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
        ],
    }})
}
