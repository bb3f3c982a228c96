//! Does one client's flood make another one wait?
//!
//! `wherry dev` with many ConfigMaps and two service accounts. The victim reads one ConfigMap again
//! and again, first alone, then while the other account lists all of them over many connections and
//! opens watches as fast as it can. Fails when the flood moves the victim's p99 beyond twice what
//! it was alone (or beyond a floor, below which a shared machine's own noise is measured). The
//! flood runs as a process of its own to which all others come first, since on one machine its own work
//! would otherwise be what the victim waits for.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::time::MissedTickBehavior;
use wherry_tests::Dev;
use wherry_tests::machine::{elsewhere, go_first};

use crate::Rows;

const OBJECTS: usize = 2_000;
const OBJECT_BYTES: usize = 1_024;
const LISTERS: usize = 32;
const WATCHERS: usize = 200;
const MEASURE: Duration = Duration::from_secs(10);
/// The victim asks as a controller does that has something to do, not as fast as it can: that would be
/// a load of its own, for which two processors are not enough.
const PACE: Duration = Duration::from_millis(3);
/// What the flood may do to the victim's p99.
const RATIO_MAX: f64 = 2.0;
/// Below this many milliseconds a p99 says more about the machine than about the server.
const FLOOR_MS: f64 = 2.0;

/// The first argument of the process that floods.
pub const AS_FLOOD: &str = "--as-flood";

/// Measures, in this process.
pub fn flood(rows: &mut Rows) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure(rows))
}

/// Floods until it is killed.
pub fn be_the_flood(kubeconfig: &str, token: &str) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(lists_and_watches(kubeconfig, token))
}

async fn client(kubeconfig: &str, token: Option<&str>) -> Result<kube::Client> {
    let mut config = Kubeconfig::read_from(kubeconfig)?;
    if let Some(token) = token {
        for named in &mut config.auth_infos {
            named.auth_info = Some(serde_json::from_value(json!({ "token": token }))?);
        }
    }
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
    Ok(kube::Client::try_from(config)?)
}

async fn measure(rows: &mut Rows) -> Result<()> {
    let cluster = Dev::start();
    let kubeconfig = cluster.kubeconfig.display().to_string();
    let admin = client(&kubeconfig, None).await?;
    let maps: Api<ConfigMap> = Api::namespaced(admin, "default");
    let payload = "x".repeat(OBJECT_BYTES);
    let creates = (0..OBJECTS).map(|number| {
        let map = json!({"metadata": {"name": format!("flood-{number}")}, "data": {"k": payload}});
        let maps = maps.clone();
        async move {
            let map: ConfigMap = serde_json::from_value(map)?;
            maps.create(&PostParams::default(), &map).await?;
            anyhow::Ok(())
        }
    });
    let mut creates = futures::stream::iter(creates).buffer_unordered(16);
    while let Some(done) = creates.next().await {
        done?;
    }
    let mut tokens = Vec::new();
    for account in ["victim", "loud"] {
        cluster.kubectl_ok(&["create", "serviceaccount", account]);
        let subject = format!("--serviceaccount=default:{account}");
        cluster.kubectl_ok(&["create", "rolebinding", account, "--clusterrole=view", &subject]);
        let token = cluster.kubectl_ok(&["create", "token", account]);
        tokens.push(token.trim().to_owned());
    }
    let alone = latencies(&kubeconfig, &tokens[0]).await?;
    let mut loud = start_flood(&kubeconfig, &tokens[1])?;
    let flooded = latencies(&kubeconfig, &tokens[0]).await;
    loud.kill()?;
    loud.wait()?;
    let flooded = flooded?;
    let (before, after) = (p99(&alone), p99(&flooded));
    let group = "flood: gets of another client";
    for (when, times) in [("alone", &alone), ("flooded", &flooded)] {
        rows.add(group, &format!("{when}: p50"), p50(times), "ms");
        rows.add(group, &format!("{when}: p99"), p99(times), "ms");
        rows.add(group, &format!("{when}: gets"), times.len() as f64, "");
    }
    rows.add(group, "p99 moved by", after / before, "×");
    let allowed = (before * RATIO_MAX).max(FLOOR_MS);
    ensure!(after <= allowed, "the flood moved the victim's p99 beyond {allowed:.2} ms");
    Ok(())
}

/// Reads one object again and again, on a thread that has all to itself; in microseconds.
async fn latencies(kubeconfig: &str, token: &str) -> Result<Histogram<u64>> {
    let (kubeconfig, token) = (kubeconfig.to_owned(), token.to_owned());
    let victim = move || {
        go_first();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let maps = client(&kubeconfig, Some(&token)).await?;
            let maps: Api<ConfigMap> = Api::namespaced(maps, "default");
            // Warm: connection, caches, the processor's clock.
            gets(&maps, MEASURE / 5).await?;
            gets(&maps, MEASURE).await
        })
    };
    tokio::task::spawn_blocking(victim).await?
}

async fn gets(maps: &Api<ConfigMap>, during: Duration) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    let begun = Instant::now();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while begun.elapsed() < during {
        pace.tick().await;
        let asked = Instant::now();
        maps.get("flood-7").await.context("the victim's get")?;
        histogram.record(u64::try_from(asked.elapsed().as_micros())?.max(1))?;
    }
    Ok(histogram)
}

fn p50(histogram: &Histogram<u64>) -> f64 {
    histogram.value_at_quantile(0.5) as f64 / 1000.0
}

fn p99(histogram: &Histogram<u64>) -> f64 {
    histogram.value_at_quantile(0.99) as f64 / 1000.0
}

fn start_flood(kubeconfig: &str, token: &str) -> Result<Child> {
    let own = std::env::current_exe()?;
    let mut command = Command::new(own);
    command.args([AS_FLOOD, kubeconfig, token]).stdin(Stdio::null());
    Ok(elsewhere(&mut command).spawn()?)
}

/// Lists and watches until it is killed. What is refused is asked for again.
async fn lists_and_watches(kubeconfig: &str, token: &str) -> Result<()> {
    let mut tasks: tokio::task::JoinSet<()> = tokio::task::JoinSet::new();
    for _ in 0..LISTERS {
        // A connection of its own each.
        let client = client(kubeconfig, Some(token)).await?;
        tasks.spawn(async move {
            loop {
                let list = http::Request::get("/api/v1/namespaces/default/configmaps");
                let list = list.body(Vec::new()).expect("a request");
                let _ = client.request_text(list).await;
            }
        });
    }
    let client = client(kubeconfig, Some(token)).await?;
    for _ in 0..WATCHERS {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        tasks.spawn(async move {
            loop {
                let Ok(watch) = maps.watch(&WatchParams::default(), "0").await else { continue };
                let mut watch = Box::pin(watch);
                while watch.next().await.is_some_and(|event| event.is_ok()) {}
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}
