//! A node full of Pods: what 5,000 ready idle ones cost, how fast they start, and the parts of a
//! start inside of the worker: compiling, loading from the cache, making an instance.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wherry_tests::{Dev, http_get, repository, wait_for};
use wherry_wasi_shim as shim;

use crate::Rows;
use crate::apps::{app, post, proportional_mib};

const PODS: usize = 5_000;
/// Longer than a start at a tenth of the goal's rate.
const READY_MAX: Duration = Duration::from_secs(300);
/// A minute without a request makes a Pod idle, and the node writes that down, a part of them at a time.
const IDLE_BY: Duration = Duration::from_secs(400);
/// What else starting left to do is done so long after that.
const SETTLED: Duration = Duration::from_secs(15);
/// For the processor time of an idle node: whatever it does each minute is in it.
const IDLE: Duration = Duration::from_secs(60);
/// Handlers that wake for the first time.
const WAKES: usize = 200;
const INSTANCES: usize = 2_000;
const LOADS: usize = 100;
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub fn node(rows: &mut Rows) -> Result<()> {
    parts_of_a_start(rows)?;
    full(rows)
}

/// `--pods N` for less.
fn pods() -> Result<usize> {
    match crate::flag("--pods") {
        Some(text) => Ok(text.parse()?),
        None => Ok(PODS),
    }
}

fn full(rows: &mut Rows) -> Result<()> {
    let pods = pods()?;
    let group = format!("{pods} idle Pods on one node");
    let cluster = Dev::start();
    let runtime = Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    // The image is compiled and the worker is there.
    let (warm, _) = app("warm", 1, None);
    runtime.block_on(post(&client, DEPLOYMENTS, &warm))?;
    until_ready(&runtime, &client, "warm", 1)?;
    let before = memory(&cluster);
    let (deployment, _) = app("idle", pods, None);
    let begun = Instant::now();
    runtime.block_on(post(&client, DEPLOYMENTS, &deployment))?;
    until_ready(&runtime, &client, "idle", pods)?;
    let seconds = begun.elapsed().as_secs_f64();
    rows.add(&group, "create → all Ready", seconds, "s");
    rows.add(&group, "start rate through the API", pods as f64 / seconds, "Pods/s");
    let after = memory(&cluster);
    for (role, mib) in &after {
        rows.add(&group, &format!("memory of {role}"), *mib, "MiB");
    }
    let sum = |all: &[(&str, f64)]| all.iter().map(|(_, mib)| mib).sum::<f64>();
    let each = (sum(&after[1..]) - sum(&before[1..])) * 1024.0 / pods as f64;
    rows.add(&group, "memory of the node for each Pod", each, "KiB");
    until_idle(&runtime, &client, pods)?;
    std::thread::sleep(SETTLED);
    let (cpu, since) = (cpu_seconds(&cluster), Instant::now());
    std::thread::sleep(IDLE);
    let took = since.elapsed().as_secs_f64();
    for ((role, after), (_, before)) in cpu_seconds(&cluster).iter().zip(&cpu) {
        rows.add(
            &group,
            &format!("idle CPU of {role}"),
            (after - before) / took * 100.0,
            "% of a core",
        );
    }
    wakes(rows, &group, &runtime, &client, &cluster)
}

/// The first request to handlers that never had one: a Service takes its Pods in turn, so each
/// request wakes another.
fn wakes(
    rows: &mut Rows,
    group: &str,
    runtime: &Runtime,
    client: &kube::Client,
    cluster: &Dev,
) -> Result<()> {
    const PORT: u16 = 31_999;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "idle"},
        "spec": {"type": "NodePort", "selector": {"app": "idle"},
                 "ports": [{"port": 80, "nodePort": PORT}]},
    });
    runtime.block_on(post(client, "/api/v1/namespaces/default/services", &service))?;
    let address = (cluster.address, PORT).into();
    wait_for("the idle Pods answer", || http_get(address, "/bench").filter(|it| it.0 == 200));
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..WAKES {
        let begun = Instant::now();
        let answer = http_get(address, "/bench").context("an idle Pod answers")?;
        ensure!(answer.0 == 200, "status {}", answer.0);
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    add(rows, group, "first request to an idle Pod", &times, 1000.0, "ms");
    Ok(())
}

fn add(rows: &mut Rows, group: &str, what: &str, times: &Histogram<u64>, unit: f64, name: &str) {
    for (text, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = times.value_at_quantile(quantile) as f64 / unit;
        rows.add(group, &format!("{what}: {text}"), value, name);
    }
}

fn until_ready(runtime: &Runtime, client: &kube::Client, name: &str, count: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let request = http::Request::get(format!("{DEPLOYMENTS}/{name}")).body(Vec::new())?;
        let found: Value = runtime.block_on(client.request(request))?;
        if found["status"]["readyReplicas"] == json!(count) {
            return Ok(());
        }
        ensure!(begun.elapsed() < READY_MAX, "{name} is not ready: {:#}", found["status"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns when all of them are said to be idle.
fn until_idle(runtime: &Runtime, client: &kube::Client, count: usize) -> Result<()> {
    const STATE: &str = "state.wherry.dev/hello";
    let (begun, idle) = (Instant::now(), ListParams::default().labels("app=idle"));
    loop {
        let pods = Api::<Pod>::default_namespaced(client.clone());
        let found = runtime.block_on(pods.list_metadata(&idle))?;
        let is_idle = |pod: &&PartialObjectMeta<Pod>| {
            pod.annotations().get(STATE).is_some_and(|state| state == "Idle")
        };
        let said = found.items.iter().filter(is_idle).count();
        if said == count {
            return Ok(());
        }
        ensure!(begun.elapsed() < IDLE_BY, "{said} of {count} Pods are said to be idle");
        std::thread::sleep(Duration::from_secs(5));
    }
}

const ROLES: [&str; 3] = ["server", "node", "worker"];

fn memory(cluster: &Dev) -> Vec<(&'static str, f64)> {
    let of = |role: &&'static str| {
        let pids = cluster.pids_of(role).into_iter();
        (*role, pids.map(proportional_mib).fold(0.0, |sum, mib| sum + mib))
    };
    ROLES.iter().map(of).collect()
}

/// Processor time that the processes of each role have used, in seconds.
fn cpu_seconds(cluster: &Dev) -> Vec<(&'static str, f64)> {
    // USER_HZ, the same on every Linux.
    const TICKS: f64 = 100.0;
    let of_pid = |pid: i32| -> Option<f64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: state, ppid, …; utime and stime are 14 and 15.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 =
            fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(ticks / TICKS)
    };
    let of = |role: &&'static str| {
        let pids = cluster.pids_of(role).into_iter();
        (*role, pids.filter_map(of_pid).fold(0.0, |sum, seconds| sum + seconds))
    };
    ROLES.iter().map(of).collect()
}

/// In this process, by the shim alone.
fn parts_of_a_start(rows: &mut Rows) -> Result<()> {
    let dist = repository().join("sample-apps/dist");
    let group = "parts of a start, in this process";
    let toolbox = std::fs::read(dist.join("toolbox.wasm")).context("run `make apps`")?;
    let begun = Instant::now();
    let code = shim::compile(&toolbox)?;
    let rate = toolbox.len() as f64 / (1 << 20) as f64 / begun.elapsed().as_secs_f64();
    rows.add(group, "compile throughput (toolbox)", rate, "MiB/s");
    rows.add(
        group,
        "code for each byte of Wasm",
        code.code.len() as f64 / toolbox.len() as f64,
        "×",
    );

    let hello = std::fs::read(dist.join("hello-http.wasm")).context("run `make apps`")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("hello.cwasm");
    std::fs::write(&file, shim::compile(&hello)?.code)?;
    let engine = shim::Engine::new(&shim::EngineConfig::default())?;
    let runtime = Runtime::new()?;
    let answer = |handler: &shim::Handler| -> Result<()> {
        let request = http::Request::get("http://bench/bench").body(empty())?;
        runtime.block_on(async {
            let response = handler.handle(request).await?;
            ensure!(response.status() == 200, "status {}", response.status());
            http_body_util::BodyExt::collect(response.into_body()).await?;
            Ok(())
        })
    };
    let mut cold = Histogram::<u64>::new(3)?;
    for _ in 0..LOADS {
        let begun = Instant::now();
        let handler = engine.load(&file, shim::Form::Component)?.handler(Default::default())?;
        answer(&handler)?;
        cold.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    add(rows, group, "cold start from compiled code to the answer", &cold, 1000.0, "ms");

    let module = engine.load(&file, shim::Form::Component)?;
    let mut made = Histogram::<u64>::new(3)?;
    for _ in 0..INSTANCES {
        // Each handler's account keeps the time of its first instance, limits on.
        let handler = module.handler(Default::default())?;
        answer(&handler)?;
        let took = handler.account().usage().first_instance;
        made.record(u64::try_from(took.as_nanos())?)?;
    }
    add(rows, group, "instantiate", &made, 1000.0, "µs");
    Ok(())
}

fn empty() -> shim::Body {
    use http_body_util::BodyExt as _;
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}
