//! Guests and their traffic: requests beside plain `wasmtime serve`, apply → first answer, the
//! store by itself, and memory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use wherry_store::{Engine, Precondition, Store};
use wherry_tests::{Dev, Options, http_get, repository, wait_for};

use crate::Rows;

const WASMTIME: &str = "48.0.8";
const HELLO: u16 = 30080;
/// The same guest, whose instances answer many requests.
const REUSED: u16 = 30089;
const CONNECTIONS: [u32; 3] = [1, 32, 256];
/// Everything is measured so often, in turns, and the median is told: machines have moods.
const ROUNDS: usize = 3;
const LOAD_SECONDS: u64 = 5;
const APPLY_ROUNDS: usize = 20;
const IDLE_PODS: usize = 1000;
const WAKE_ROUNDS: usize = 20;
/// Handlers that wake in each round.
const SLEEPERS: u16 = 20;
const FIRST_SLEEPER: u16 = 31_400;
/// After a handler's last request until it is idle: a second, and the worker's next look.
const UNTIL_IDLE: Duration = Duration::from_secs(7);
const STORE_WRITES: u64 = 4000;

/// What wrk measured.
pub struct Load {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Load {
    /// Each number's median.
    pub fn median(rounds: &[Load]) -> Load {
        let of = |number: fn(&Load) -> f64| {
            let mut numbers: Vec<f64> = rounds.iter().map(number).collect();
            numbers.sort_unstable_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        Load {
            per_second: of(|load| load.per_second),
            p50_ms: of(|load| load.p50_ms),
            p99_ms: of(|load| load.p99_ms),
        }
    }
}

/// Runs wrk on a URL, after a short run that warms it up.
pub fn wrk(url: &str, connections: u32) -> Result<Load> {
    wrk_for(None, url, connections)
}

/// The same, for a host by another name than the URL's.
pub fn wrk_for(host: Option<&str>, url: &str, connections: u32) -> Result<Load> {
    let host = host.map(|host| format!("-HHost: {host}"));
    let run = |seconds: u64| -> Result<String> {
        let threads = connections.min(2);
        let output = Command::new("wrk")
            .arg(format!("-t{threads}"))
            .args(["--latency", &format!("-c{connections}"), &format!("-d{seconds}s"), url])
            .args(&host)
            .output()
            .context("wrk is not installed: apt-get install wrk")?;
        let text = wherry_tests::text(&output.stdout);
        ensure!(output.status.success(), "wrk failed: {text}");
        ensure!(!text.contains("Non-2xx"), "answers other than 200 from {url}: {text}");
        ensure!(!text.contains("Socket errors"), "failed requests to {url}: {text}");
        Ok(text)
    };
    run(1)?;
    let text = run(LOAD_SECONDS)?;
    let field = |name: &str| -> Result<&str> {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        line.and_then(|line| line.split_whitespace().last()).with_context(|| format!("no {name}"))
    };
    Ok(Load {
        per_second: field("Requests/sec:")?.parse()?,
        p50_ms: milliseconds(field("50%")?)?,
        p99_ms: milliseconds(field("99%")?)?,
    })
}

/// wrk's times: `812.00us`, `1.50ms`, `1.20s`.
fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("{text:?} is not a time")
}

pub fn requests(rows: &mut Rows, target: &Path) -> Result<()> {
    let wasmtime = install_wasmtime(target)?;
    let component = repository().join("sample-apps/dist/hello-http.wasm");
    let cluster = Dev::start();
    let manifest = std::fs::read_to_string(repository().join("sample-apps/hello-http/app.yaml"))?;
    let reused = cluster.data_dir.join("hello-reused.yaml");
    std::fs::write(&reused, reusing(&manifest))?;
    let reused = reused.to_string_lossy();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml", "-f", &reused]);
    for name in ["deployment/hello-http", "deployment/hello-reused"] {
        cluster.kubectl_ok(&["rollout", "status", name, "--timeout=60s"]);
    }
    for port in [HELLO, REUSED] {
        wait_for("the NodePort answers", || cluster.get(port, "/bench").filter(|a| a.0 == 200));
    }
    let own = |port: u16| format!("http://{}:{port}/bench", cluster.address);
    let (plain, _ended) = with_wasmtime(&wasmtime, &component, &[])?;
    let (tuned, _ended) = with_wasmtime(
        &wasmtime,
        &component,
        &[
            "-Opooling-allocator=y",
            "-Opooling-memory-keep-resident=1048576",
            "-Opooling-table-keep-resident=65536",
            "-Opooling-pagemap-scan=auto",
        ],
    )?;
    let servers = [
        ("wherry", own(HELLO)),
        ("wasmtime serve", plain),
        ("wasmtime serve tuned", tuned),
        ("wherry, instances reused", own(REUSED)),
    ];
    for connections in CONNECTIONS {
        let group = format!("requests (hello-http, {connections} connections)");
        let mut loads: [Vec<Load>; 4] = Default::default();
        for _ in 0..ROUNDS {
            for ((_, url), loads) in servers.iter().zip(&mut loads) {
                loads.push(wrk(url, connections)?);
            }
        }
        let loads = loads.map(|rounds| Load::median(&rounds));
        for ((name, _), load) in servers.iter().zip(&loads) {
            rows.add(&group, &format!("{name}: throughput"), load.per_second, "req/s");
            rows.add(&group, &format!("{name}: p50"), load.p50_ms, "ms");
            rows.add(&group, &format!("{name}: p99"), load.p99_ms, "ms");
        }
        let [fresh, plain, tuned, reused] = loads.map(|load| load.per_second);
        rows.add(&group, "wherry / wasmtime serve", fresh / plain, "×");
        rows.add(&group, "wherry / wasmtime serve tuned", fresh / tuned, "×");
        rows.add(&group, "wherry reused / wasmtime serve", reused / plain, "×");
        rows.add(&group, "wherry reused / wasmtime serve tuned", reused / tuned, "×");
    }
    Ok(())
}

/// The sample under another name and port, with instances that answer many requests.
fn reusing(manifest: &str) -> String {
    let template = "    metadata:\n      labels:";
    let annotated = "    metadata:\n      annotations: {wherry.dev/requests-per-instance: \"1000\"}\n      labels:";
    manifest
        .replace("name: hello-http", "name: hello-reused")
        .replace("app: hello-http", "app: hello-reused")
        .replace(&HELLO.to_string(), &REUSED.to_string())
        .replacen(template, annotated, 1)
}

/// The baseline, built once into the target folder.
fn install_wasmtime(target: &Path) -> Result<PathBuf> {
    let root = target.join("wasmtime-cli");
    let binary = root.join("bin/wasmtime");
    if !binary.exists() {
        eprintln!("building wasmtime-cli {WASMTIME} for the comparison (several minutes, once)");
        let status = Command::new("cargo")
            .args(["install", "wasmtime-cli", "--locked", "--version", WASMTIME, "--root"])
            .arg(&root)
            .args(["--no-default-features", "--features"])
            .arg("run,serve,cranelift,pooling-allocator,parallel-compilation,component-model-async")
            .status()?;
        ensure!(status.success(), "wasmtime-cli could not be built");
    }
    Ok(binary)
}

/// Starts it; returns where it is.
fn with_wasmtime(binary: &Path, component: &Path, options: &[&str]) -> Result<(String, Ended)> {
    let address: SocketAddr = {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?;
        free.local_addr()?
    };
    let child = Command::new(binary)
        .arg("serve")
        .args(options)
        .args(["-Scli", "--addr", &address.to_string()])
        .arg(component)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let ended = Ended(child);
    wait_for("wasmtime serve answers", || http_get(address, "/bench").filter(|a| a.0 == 200));
    Ok((format!("http://{address}/bench"), ended))
}

/// A child that ends with its scope.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Deployment and its NodePort Service, as the API takes them.
pub fn app(name: &str, replicas: usize, port: Option<u16>) -> (Value, Value) {
    let labels = json!({"app": name});
    let container = json!({"name": "hello", "image": "hello-http:dev",
                           "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 80}]});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
                 "template": {"metadata": {"labels": labels},
                              "spec": {"containers": [container]}}},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": labels,
                 "ports": [{"port": 80, "nodePort": port}]},
    });
    (deployment, service)
}

pub async fn post(client: &kube::Client, path: &str, object: &Value) -> Result<Value> {
    let request = http::Request::post(path).header("content-type", "application/json");
    Ok(client.request(request.body(serde_json::to_vec(object)?)?).await?)
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";

pub fn apply_to_first_answer(rows: &mut Rows) -> Result<()> {
    let cluster = Dev::start();
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    let mut times = Histogram::<u64>::new(3)?;
    for round in 0..=APPLY_ROUNDS {
        let port = 31000 + u16::try_from(round)?;
        let (deployment, service) = app(&format!("app-{round}"), 1, Some(port));
        let address = SocketAddr::from((cluster.address, port));
        let begun = Instant::now();
        runtime.block_on(async {
            post(&client, DEPLOYMENTS, &deployment).await?;
            post(&client, SERVICES, &service).await
        })?;
        while http_get(address, "/bench").is_none_or(|(status, _)| status != 200) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "app-{round} never answered");
            std::thread::sleep(Duration::from_millis(1));
        }
        // The first round compiles the image.
        if round > 0 {
            times.record(u64::try_from(begun.elapsed().as_micros())?)?;
        }
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = times.value_at_quantile(quantile) as f64 / 1000.0;
        rows.add("apply → first 200 (compiled image)", name, value, "ms");
    }
    Ok(())
}

/// The first request to handlers that have given their code back, its connection included. Each has an
/// image of its own, so that each has code to be mapped.
pub fn wake(rows: &mut Rows) -> Result<()> {
    let images = tempfile::tempdir()?;
    for number in 0..SLEEPERS {
        let file = images.path().join(format!("sleepy-{number}.wasm"));
        std::fs::write(file, another_image(number)?)?;
    }
    let images = Some(images.path().to_owned());
    let cluster = Dev::start_with(Options { images, ..Options::default() });
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    let ask = |port: u16| {
        let address = SocketAddr::from((cluster.address, port));
        http_get(address, "/bench").filter(|(status, _)| *status == 200)
    };
    let ports = || (0..SLEEPERS).map(|number| FIRST_SLEEPER + number);
    for port in ports() {
        let name = format!("sleepy-{}", port - FIRST_SLEEPER);
        let (mut deployment, service) = app(&name, 1, Some(port));
        let template = &mut deployment["spec"]["template"];
        template["metadata"]["annotations"] = json!({"wherry.dev/idle-after-seconds": "1"});
        template["spec"]["containers"][0]["image"] = json!(format!("{name}:dev"));
        runtime.block_on(async {
            post(&client, DEPLOYMENTS, &deployment).await?;
            post(&client, SERVICES, &service).await
        })?;
    }
    for port in ports() {
        wait_for("it answers", || ask(port));
    }
    let mut times = Histogram::<u64>::new(3)?;
    let mut awake = Histogram::<u64>::new(3)?;
    for _ in 0..WAKE_ROUNDS {
        std::thread::sleep(UNTIL_IDLE);
        for port in ports() {
            for times in [&mut times, &mut awake] {
                let begun = Instant::now();
                ensure!(ask(port).is_some(), "a request to an idle handler failed");
                times.record(u64::try_from(begun.elapsed().as_micros())?)?;
            }
        }
    }
    for (name, times) in [("idle", times), ("awake", awake)] {
        for (part, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let value = times.value_at_quantile(quantile) as f64 / 1000.0;
            rows.add("first request to a handler", &format!("{name}: {part}"), value, "ms");
        }
    }
    Ok(())
}

/// The sample with a section that nobody reads: the same guest, and another image.
fn another_image(number: u16) -> Result<Vec<u8>> {
    let file = repository().join("sample-apps/dist/hello-http.wasm");
    let mut image = std::fs::read(file).context("run `make apps`")?;
    let name = format!("sleepy-{number}");
    let length = u8::try_from(name.len())?;
    // Kind (custom), length of what follows, length of the name, the name.
    image.extend([0, length + 1, length]);
    image.extend(name.bytes());
    Ok(image)
}

pub fn store_writes(rows: &mut Rows) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    for writers in [1_u64, 16, 128] {
        let folder = tempfile::tempdir_in(repository().join("tests"))?;
        let engine = Engine::Rocks(folder.path().to_owned());
        let config = wherry_store::Config::founder(engine, "");
        let (seconds, times) = runtime.block_on(write_with(config, writers))?;
        let group = format!("store: put of 1 KiB, fsync, {writers} writers");
        rows.add(&group, "throughput", STORE_WRITES as f64 / seconds, "writes/s");
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            rows.add(&group, name, times.value_at_quantile(quantile) as f64 / 1000.0, "ms");
        }
    }
    Ok(())
}

async fn write_with(config: wherry_store::Config, writers: u64) -> Result<(f64, Histogram<u64>)> {
    let store = Arc::new(Store::open(config).await?);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for number in 0..STORE_WRITES / writers {
                let key = format!("bench/{writer}/{number}").into();
                let begun = Instant::now();
                store.put(key, vec![7; 1024].into(), Precondition::Absent).await?;
                times.push(begun.elapsed());
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    let mut histogram = Histogram::<u64>::new(3)?;
    while let Some(times) = tasks.join_next().await {
        for time in times?? {
            histogram.record(u64::try_from(time.as_micros())?)?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    store.shutdown().await?;
    Ok((seconds, histogram))
}

pub fn memory(rows: &mut Rows) -> Result<()> {
    let group = "resident memory (proportional set size)";
    let cluster = Dev::start();
    add_memory(rows, group, &cluster, "idle");
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    let (deployment, _) = app("idle", IDLE_PODS, None);
    let begun = Instant::now();
    runtime.block_on(post(&client, DEPLOYMENTS, &deployment))?;
    let ready = format!("{DEPLOYMENTS}/idle");
    loop {
        let request = http::Request::get(&ready).body(Vec::new())?;
        let status: Value = runtime.block_on(client.request(request))?;
        if status["status"]["readyReplicas"] == json!(IDLE_PODS) {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(300), "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let seconds = begun.elapsed().as_secs_f64();
    rows.add("start of 1,000 Pods", "create → all Ready", seconds, "s");
    add_memory(rows, group, &cluster, "1,000 idle Pods");
    Ok(())
}

fn add_memory(rows: &mut Rows, group: &str, cluster: &Dev, when: &str) {
    let mut total = proportional_mib(cluster.pid());
    for role in ["server", "node", "worker"] {
        // From 0.0: the sum of nothing would be printed as -0.
        let mib = cluster.pids_of(role).into_iter().map(proportional_mib).fold(0.0, |a, b| a + b);
        rows.add(group, &format!("{when}: {role}"), mib, "MiB");
        total += mib;
    }
    rows.add(group, &format!("{when}: all processes"), total, "MiB");
}

/// Memory of a process, pages shared with others counted by their share.
pub fn proportional_mib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
