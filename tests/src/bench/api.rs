//! What the API costs: single requests by one and by many clients, whole lists, and changes that
//! many watch, of one member with 10,000 Pods. No node and no scheduler wants these Pods, so that
//! nothing but the requests is measured. Processor time is the server's alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use serde_json::json;
use tokio::task::JoinSet;
use wherry_tests::http::{Credentials, http2};
use wherry_tests::repository;
use wherry_tests::server::{Server, ServerOptions};

use crate::Rows;
use crate::apps::proportional_mib;

const PODS: usize = 10_000;
const PATH: &str = "/api/v1/namespaces/default/pods";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Requests of one client, and of all 64 together.
const ALONE: usize = 1_000;
const TOGETHER: usize = 8_000;
const CLIENTS: usize = 64;
const LISTS: usize = 10;
const WATCHERS: usize = 1_000;
/// Streams on one connection of watchers.
const WATCHERS_A_CONNECTION: usize = 50;
const CHANGES: usize = 50;

type Sender = SendRequest<Full<Bytes>>;

/// The server, and how it is reached.
struct Target {
    server: Server,
    credentials: Credentials,
}

impl Target {
    async fn connect(&self) -> Result<Sender> {
        http2(self.server.options.listen, &self.credentials).await
    }

    /// Seconds of processor time that the server has used.
    fn processor(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server.pid()))?;
        let after_name = stat.rsplit_once(')').context("a stat line")?.1;
        let field = |at: usize| -> Result<f64> {
            Ok(after_name.split_whitespace().nth(at).context("a stat line")?.parse()?)
        };
        // utime and stime, in the kernel's ticks of a hundredth of a second.
        Ok((field(11)? + field(12)?) / 100.0)
    }
}

/// One request: what is asked for, and how.
struct Call {
    method: Method,
    path: String,
    media: &'static str,
    accept: &'static str,
    body: String,
}

async fn send(sender: &Sender, call: &Call) -> Result<hyper::Response<Incoming>> {
    let request = Request::builder()
        .method(call.method.clone())
        .uri(format!("https://wherry{}", call.path))
        .header("content-type", call.media)
        .header("accept", call.accept)
        .body(Full::new(Bytes::from(call.body.clone())))?;
    let mut sender = sender.clone();
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status().is_success(), "{} {}: {}", call.method, call.path, answer.status());
    Ok(answer)
}

async fn bytes(sender: &Sender, call: &Call) -> Result<usize> {
    Ok(send(sender, call).await?.into_body().collect().await?.to_bytes().len())
}

fn pod(name: &str) -> String {
    json!({
        "metadata": {"name": name, "labels": {"app": "bench", "tier": "one"}},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "web", "image": "hello-http:1", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "resources": {"limits": {"memory": "32Mi", "cpu": "100m"}},
            }],
        },
    })
    .to_string()
}

fn call(method: Method, path: String, media: &'static str, body: String) -> Call {
    Call { method, path, media, accept: "application/json", body }
}

fn create(at: usize) -> Call {
    call(Method::POST, PATH.to_owned(), "application/json", pod(&format!("pod-{at:05}")))
}

fn get(at: usize) -> Call {
    call(Method::GET, format!("{PATH}/pod-{:05}", at % PODS), "application/json", String::new())
}

fn patch(at: usize) -> Call {
    let body = json!({"metadata": {"labels": {"round": at.to_string()}}}).to_string();
    let path = format!("{PATH}/pod-{:05}", at % PODS);
    call(Method::PATCH, path, "application/merge-patch+json", body)
}

fn apply(at: usize) -> Call {
    let name = format!("pod-{:05}", at % PODS);
    let body = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"bench": at.to_string()}},
    });
    let path = format!("{PATH}/{name}?fieldManager=bench&force=true");
    call(Method::PATCH, path, "application/apply-patch+yaml", body.to_string())
}

/// Sends `count` requests by so many clients; records each one's time.
async fn drive(
    target: &Target,
    clients: usize,
    first: usize,
    count: usize,
    make: fn(usize) -> Call,
) -> Result<(f64, Histogram<u64>)> {
    let next = Arc::new(AtomicUsize::new(first));
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(target.connect().await?);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for sender in connections {
        let next = next.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= first + count {
                    return anyhow::Ok(times);
                }
                let asked = Instant::now();
                bytes(&sender, &make(at)).await?;
                times.push(asked.elapsed());
            }
        });
    }
    let mut histogram = Histogram::<u64>::new(3)?;
    while let Some(times) = tasks.join_next().await {
        for time in times?? {
            record(&mut histogram, time)?;
        }
    }
    Ok((begun.elapsed().as_secs_f64(), histogram))
}

fn record(histogram: &mut Histogram<u64>, time: Duration) -> Result<()> {
    Ok(histogram.record(u64::try_from(time.as_micros())?)?)
}

fn add_times(rows: &mut Rows, group: &str, histogram: &Histogram<u64>) {
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        rows.add(group, name, histogram.value_at_quantile(quantile) as f64 / 1000.0, "ms");
    }
}

/// One kind of request at 1 and at 64 clients.
async fn singles(
    rows: &mut Rows,
    target: &Target,
    what: &str,
    from: usize,
    make: fn(usize) -> Call,
) -> Result<()> {
    let mut first = from;
    for (clients, count) in [(1, ALONE), (CLIENTS, TOGETHER)] {
        let before = target.processor()?;
        let (seconds, times) = drive(target, clients, first, count, make).await?;
        let used = target.processor()? - before;
        first += count;
        let group = format!("API: {what}, {clients} clients");
        rows.add(&group, "throughput", count as f64 / seconds, "requests/s");
        add_times(rows, &group, &times);
        rows.add(&group, "processor time a request", used * 1e6 / count as f64, "µs");
    }
    Ok(())
}

/// The whole collection at once, as an object and as what `kubectl get` prints.
async fn lists(rows: &mut Rows, target: &Target) -> Result<()> {
    let sender = target.connect().await?;
    for (what, accept) in [("JSON", "application/json"), ("Table", TABLE)] {
        let mut histogram = Histogram::<u64>::new(3)?;
        let (before, mut size) = (target.processor()?, 0);
        for _ in 0..LISTS {
            let mut list = call(Method::GET, PATH.to_owned(), "application/json", String::new());
            list.accept = accept;
            let asked = Instant::now();
            size = bytes(&sender, &list).await?;
            record(&mut histogram, asked.elapsed())?;
        }
        let used = target.processor()? - before;
        let group = format!("API: list of 10,000 Pods, {what}");
        add_times(rows, &group, &histogram);
        rows.add(&group, "processor time a request", used * 1e3 / LISTS as f64, "ms");
        rows.add(&group, "size", size as f64 / f64::from(1 << 20), "MiB");
    }
    Ok(())
}

/// From a change to the moment at which the last of 1,000 watchers has heard of it.
async fn fan_out(rows: &mut Rows, target: &Target) -> Result<()> {
    let seen = Arc::new(tokio::sync::Semaphore::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..WATCHERS / WATCHERS_A_CONNECTION {
        let sender = target.connect().await?;
        for _ in 0..WATCHERS_A_CONNECTION {
            // The field selector keeps the ten thousand others out of the beginning.
            let path = format!(
                "{PATH}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3Dpod-00000"
            );
            let watch = call(Method::GET, path, "application/json", String::new());
            let mut body = send(&sender, &watch).await?.into_body();
            let seen = seen.clone();
            tasks.spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let data = frame.into_data().unwrap_or_default();
                    let lines = data.iter().filter(|byte| **byte == b'\n').count();
                    seen.add_permits(lines);
                }
            });
        }
    }
    let all = || async {
        let permits = seen.acquire_many(WATCHERS as u32);
        let heard = tokio::time::timeout(Duration::from_secs(30), permits).await;
        heard.context("not every watcher has heard of a change")??.forget();
        anyhow::Ok(())
    };
    // What is there comes first.
    all().await?;
    let sender = target.connect().await?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let before = target.processor()?;
    let begun = Instant::now();
    for at in 0..CHANGES {
        let mut change = patch(0);
        change.body = json!({"metadata": {"labels": {"watched": at.to_string()}}}).to_string();
        let asked = Instant::now();
        bytes(&sender, &change).await?;
        all().await?;
        record(&mut histogram, asked.elapsed())?;
    }
    let events = (CHANGES * WATCHERS) as f64;
    let group = "API: a change that 1,000 watch";
    add_times(rows, group, &histogram);
    rows.add(group, "events", events / begun.elapsed().as_secs_f64(), "events/s");
    let used = target.processor()? - before;
    rows.add(group, "processor time an event", used * 1e6 / events, "µs");
    tasks.shutdown().await;
    Ok(())
}

pub fn api(rows: &mut Rows) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir_in(repository().join("tests"))?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let listen = listener.local_addr()?;
        drop(listener);
        let options = ServerOptions::new("bench", &folder.path().join("server"), listen);
        let mut server = Server::start(options)?;
        let credentials = server.ready(Duration::from_secs(60)).await?;
        let target = Target { server, credentials };
        let account = "/api/v1/namespaces/default/serviceaccounts/default".to_owned();
        let account = call(Method::GET, account, "application/json", String::new());
        let sender = target.connect().await?;
        let begun = Instant::now();
        while send(&sender, &account).await.is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(30), "no service account");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let memory = |rows: &mut Rows, when: &str| {
            rows.add(
                "API: memory of the server",
                when,
                proportional_mib(target.server.pid()),
                "MiB",
            );
        };
        memory(rows, "at the start");
        singles(rows, &target, "create", 0, create).await?;
        let so_far = ALONE + TOGETHER;
        drive(&target, CLIENTS, so_far, PODS - so_far, create).await?;
        memory(rows, "with 10,000 Pods");
        singles(rows, &target, "get", 0, get).await?;
        singles(rows, &target, "merge patch", 0, patch).await?;
        singles(rows, &target, "server-side apply", 0, apply).await?;
        lists(rows, &target).await?;
        fan_out(rows, &target).await?;
        memory(rows, "at the end");
        Ok(())
    })
}
