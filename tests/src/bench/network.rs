//! The network of Pods: what thousands of idle Services cost a node, what it costs to ask another Pod,
//! how fast bytes go through a socket of a guest, and how long somebody waits who asks a workload that
//! is at zero.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wherry_tests::{Dev, Options, http_get, wait_for};

use crate::Rows;
use crate::apps::{Load, app, post, proportional_mib, wrk};

const SERVICES: usize = 10_000;
/// Of the 12,000 that a node takes.
const PODS_A_NODE: usize = 11_900;
/// Services that are node ports as well, to be asked.
const ASKED: usize = 100;
const FIRST_PORT: usize = 31_000;
/// Requests to the API at once.
const WRITERS: usize = 16;
/// Everything of a stage is there by then.
const STAGE_MAX: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(500);
/// What was written is taken in by then: nothing is measured while it is still on its way.
const SETTLE: Duration = Duration::from_secs(10);

const CONNECTIONS: [u32; 2] = [1, 32];
const ROUNDS: usize = 3;
/// What is sent through one connection.
const BYTES: usize = 64 << 20;
const BLOCK: usize = 64 << 10;
const ZERO_ROUNDS: usize = 20;

const SERVICES_PATH: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const AUTOSCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

async fn get(client: &kube::Client, path: &str) -> Result<Value> {
    Ok(client.request(http::Request::get(path).body(Vec::new())?).await?)
}

/// Looks until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < STAGE_MAX, "waited {STAGE_MAX:?} for: {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn add_times(rows: &mut Rows, group: &str, name: &str, times: &Histogram<u64>) {
    for (part, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = times.value_at_quantile(quantile) as f64 / 1000.0;
        rows.add(group, &format!("{name}: {part}"), value, "ms");
    }
}

/// Memory of all processes of a role, in MiB.
fn memory(cluster: &Dev, role: &str) -> f64 {
    // From 0.0: the sum of nothing would be printed as -0.
    cluster.pids_of(role).into_iter().map(proportional_mib).fold(0.0, |sum, mib| sum + mib)
}

/// Thousands of Services with one Pod each, which nobody asks. `--pods N` for less.
pub fn services(rows: &mut Rows) -> Result<()> {
    let count = crate::flag("--pods").map_or(Ok(SERVICES), |text| text.parse())?;
    let nodes = u8::try_from(count.div_ceil(PODS_A_NODE))?;
    let group = format!("{count} idle Services with one Pod each, {nodes} nodes");
    let cluster = Dev::start_with(Options { nodes, ..Options::default() });
    let runtime = Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    let (deployment, _) = app("idle", count, None);
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "idle"},
        "spec": {"replicas": count, "podManagementPolicy": "Parallel", "serviceName": "idle",
                 "selector": deployment["spec"]["selector"],
                 "template": deployment["spec"]["template"]},
    });
    runtime.block_on(post(&client, STATEFUL_SETS, &set))?;
    until("all Pods are ready", || {
        let set = runtime.block_on(get(&client, &format!("{STATEFUL_SETS}/idle")))?;
        Ok(set["status"]["readyReplicas"] == json!(count))
    })?;
    std::thread::sleep(SETTLE);
    let roles = ["server", "node", "worker"];
    let before = roles.map(|role| memory(&cluster, role));
    let begun = Instant::now();
    let all = futures::stream::iter(0..count).map(|number| {
        let client = client.clone();
        async move { post(&client, SERVICES_PATH, &service_of_one(number)).await }
    });
    runtime.block_on(all.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }))?;
    until("every Service has its Pod", || {
        let slices = runtime.block_on(get(&client, SLICES))?;
        let ready = |slice: &&Value| {
            // That of the Service `kubernetes` is ready, too.
            let own = slice["metadata"]["name"].as_str().is_some_and(|it| it.starts_with("idle-"));
            own && slice["endpoints"][0]["conditions"]["ready"] == true
        };
        let slices = slices["items"].as_array().context("a list")?;
        Ok(slices.iter().filter(ready).count() == count)
    })?;
    rows.add(&group, "create → every Service has its Pod", begun.elapsed().as_secs_f64(), "s");
    let asked = ASKED.min(count);
    let port = |number: usize| u16::try_from(FIRST_PORT + number);
    let last = SocketAddr::from((cluster.address, port(asked - 1)?));
    wait_for("the last Service answers", || http_get(last, "/bench").filter(|it| it.0 == 200));
    std::thread::sleep(SETTLE);
    for (role, before) in roles.into_iter().zip(before) {
        let after = memory(&cluster, role);
        let each = (after - before) * 1024.0 / count as f64;
        rows.add(&group, &format!("memory of all {role}s"), after, "MiB");
        // Each node and worker knows all Services.
        let copies = cluster.pids_of(role).len().max(1) as f64;
        rows.add(&group, &format!("memory of one {role} for each Service"), each / copies, "kB");
    }
    let mut times = Histogram::<u64>::new(3)?;
    for number in 0..asked {
        let address = SocketAddr::from((cluster.address, port(number)?));
        let begun = Instant::now();
        let answer = http_get(address, "/bench").context("an idle Service answers")?;
        ensure!(answer.0 == 200, "status {}", answer.0);
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    add_times(rows, &group, "first request to a Service", &times);
    Ok(())
}

fn service_of_one(number: usize) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("idle-{number}")},
        "spec": {"selector": {"statefulset.kubernetes.io/pod-name": format!("idle-{number}")},
                 "ports": [{"port": 80}]},
    });
    if number < ASKED {
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(FIRST_PORT + number);
    }
    service
}

const DIRECT: u16 = 31_501;
const NEAR: u16 = 31_502;
const FAR: u16 = 31_503;
const NEAR_BYTES: u16 = 31_504;
const FAR_BYTES: u16 = 31_505;

/// From Pod to Pod: requests by a guest that asks another, on its own node and on the other one, and
/// bytes through a guest's socket.
pub fn pods(rows: &mut Rows) -> Result<()> {
    let cluster = Dev::start_with(Options { nodes: 2, ..Options::default() });
    let runtime = Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    wait_for("both nodes are there", || {
        let nodes = cluster.kubectl_ok(&["get", "nodes", "-o", "name"]);
        (nodes.lines().count() == 2).then_some(())
    });
    let apps = [
        on_node("near", "node-1", "hello-http:dev", DIRECT, json!([])),
        on_node("far", "node-2", "hello-http:dev", DIRECT + 10, json!([])),
        on_node("caller-near", "node-1", "caller:dev", NEAR, target("near")),
        on_node("caller-far", "node-1", "caller:dev", FAR, target("far")),
        echo_on("bytes-near", "node-1", NEAR_BYTES),
        echo_on("bytes-far", "node-2", FAR_BYTES),
    ];
    for (deployment, service) in &apps {
        runtime.block_on(post(&client, DEPLOYMENTS, deployment))?;
        runtime.block_on(post(&client, SERVICES_PATH, service))?;
    }
    let at = |port: u16| SocketAddr::from((cluster.address, port));
    let ways = [
        ("a handler alone", DIRECT),
        ("a guest asks a Pod of its node", NEAR),
        ("a guest asks a Pod of the other node", FAR),
    ];
    for (name, port) in ways {
        wait_for(name, || http_get(at(port), "/bench").filter(|it| it.0 == 200));
    }
    for connections in CONNECTIONS {
        let group = format!("Pod to Pod, HTTP, {connections} connections");
        let mut loads: [Vec<Load>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for ((_, port), loads) in ways.iter().zip(&mut loads) {
                loads.push(wrk(&format!("http://{}/bench", at(*port)), connections)?);
            }
        }
        for ((name, _), rounds) in ways.iter().zip(&loads) {
            let load = Load::median(rounds);
            rows.add(&group, &format!("{name}: throughput"), load.per_second, "req/s");
            rows.add(&group, &format!("{name}: p50"), load.p50_ms, "ms");
            rows.add(&group, &format!("{name}: p99"), load.p99_ms, "ms");
        }
    }
    let group = "bytes through one connection and back";
    let own = loopback_echo()?;
    let ways = [
        ("loopback, no guest", own),
        ("a guest of the node (cat)", at(NEAR_BYTES)),
        ("a guest of the other node (cat)", at(FAR_BYTES)),
    ];
    for (name, address) in ways {
        wait_for(name, || echoed(address, BLOCK).ok());
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let took = echoed(address, BYTES)?;
            rates.push(BYTES as f64 / f64::from(1 << 20) / took.as_secs_f64());
        }
        rates.sort_unstable_by(f64::total_cmp);
        rows.add(group, name, rates[ROUNDS / 2], "MiB/s");
    }
    Ok(())
}

fn target(name: &str) -> Value {
    json!([{"name": "TARGET", "value": format!("http://{name}/bench")}])
}

/// One Pod on a node, and its Service.
fn on_node(name: &str, node: &str, image: &str, port: u16, env: Value) -> (Value, Value) {
    let (mut deployment, service) = app(name, 1, Some(port));
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["nodeName"] = json!(node);
    spec["containers"][0]["image"] = json!(image);
    spec["containers"][0]["env"] = env;
    (deployment, service)
}

/// One that sends back what it gets.
fn echo_on(name: &str, node: &str, port: u16) -> (Value, Value) {
    let (mut deployment, mut service) = on_node(name, node, "busybox", port, json!([]));
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["nc", "-l", "-k", "-p", "9000", "-e", "cat"]);
    container["ports"] = json!([{"containerPort": 9000}]);
    service["spec"]["ports"][0]["targetPort"] = json!(9000);
    (deployment, service)
}

/// The same without a guest: a thread of this process, for as long as this process runs.
fn loopback_echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            let mut block = vec![0; BLOCK];
            while let Ok(count @ 1..) = stream.read(&mut block) {
                if stream.write_all(&block[..count]).is_err() {
                    break;
                }
            }
        }
    });
    Ok(address)
}

/// Sends so many bytes and reads them back, every one of them looked at; how long that took.
fn echoed(address: SocketAddr, bytes: usize) -> Result<Duration> {
    const SILENCE_MAX: Duration = Duration::from_secs(30);
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(BLOCK).collect();
    let begun = Instant::now();
    let mut reader = TcpStream::connect_timeout(&address, SILENCE_MAX)?;
    reader.set_read_timeout(Some(SILENCE_MAX))?;
    reader.set_write_timeout(Some(SILENCE_MAX))?;
    let mut writer = reader.try_clone()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            for _ in 0..bytes / BLOCK {
                writer.write_all(&block)?;
            }
            Ok(writer.shutdown(Shutdown::Write)?)
        });
        let mut heard = vec![0; BLOCK];
        for _ in 0..bytes / BLOCK {
            reader.read_exact(&mut heard).context("the bytes come back")?;
            ensure!(heard == block, "other bytes came back");
        }
        let more = reader.read(&mut heard)?;
        ensure!(more == 0, "more came back than was sent");
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;
    Ok(begun.elapsed())
}

const WEB: u16 = 31_510;

/// A request to a workload that an autoscaler has let go to zero: until it is answered.
pub fn from_zero(rows: &mut Rows) -> Result<()> {
    let cluster = Dev::start();
    let runtime = Runtime::new()?;
    let client = runtime.block_on(wherry_tests::client(&cluster.kubeconfig))?;
    let (deployment, service) = app("web", 1, Some(WEB));
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 0, "maxReplicas": 2,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            "metrics": [{"type": "Object", "object": {
                "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
                "metric": {"name": "concurrency"},
                "target": {"type": "AverageValue", "averageValue": "10"},
            }}],
        },
    });
    for (path, object) in
        [(DEPLOYMENTS, &deployment), (SERVICES_PATH, &service), (AUTOSCALERS, &autoscaler)]
    {
        runtime.block_on(post(&client, path, object))?;
    }
    let address = SocketAddr::from((cluster.address, WEB));
    let mut times = Histogram::<u64>::new(3)?;
    // The first one compiles the image.
    wait_for("it answers", || http_get(address, "/bench").filter(|it| it.0 == 200));
    for _ in 0..ZERO_ROUNDS {
        until("it is at zero", || {
            let pods = runtime.block_on(get(&client, "/api/v1/namespaces/default/pods"))?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
        })?;
        let begun = Instant::now();
        let answer = http_get(address, "/bench").context("it wakes")?;
        ensure!(answer.0 == 200, "status {}: {}", answer.0, answer.1);
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    add_times(rows, "first request to a workload at zero Pods", "answered", &times);
    Ok(())
}
