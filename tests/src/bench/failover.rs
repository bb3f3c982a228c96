//! How long nobody can write: around planned transfers of the leadership, and after kill -9 of the
//! leader. Three members, eight clients through the API, the same clients and figures as in the
//! chaos suite, with nothing else going on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use tokio::task::JoinSet;
use wherry_tests::chaos::check;
use wherry_tests::chaos::client::{self, NAMESPACE, Shared};
use wherry_tests::chaos::cluster::Cluster;
use wherry_tests::chaos::history::{FaultLine, Line, Recorder};
use wherry_tests::chaos::nemesis::{KILL_LEADER, TRANSFER};
use wherry_tests::chaos::report::Report;
use wherry_tests::http::Client;

use crate::Rows;
use crate::beside::config;

const CLIENTS: u32 = 8;
const TRANSFERS: usize = 60;
/// Between two transfers: the clients find the new leader, and its controllers start.
const TRANSFER_EVERY: Duration = Duration::from_millis(700);
const KILLS: usize = 40;
/// The killed one is back and has caught up by then.
const KILL_EVERY: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Measures both.
pub fn failover(rows: &mut Rows) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let report = measured().await?;
        let group = "three members, eight clients, the longest time without an answer to a write";
        ensure!(report.lost == 0, "{} acknowledged writes are lost", report.lost);
        for (sort, name) in [(TRANSFER, "planned transfer"), (KILL_LEADER, "kill -9 of the leader")]
        {
            let gap = report.gap(sort).with_context(|| format!("{name}: nothing"))?;
            rows.add(group, &format!("{name}: p50"), gap.p50_ms, "ms");
            rows.add(group, &format!("{name}: p99"), gap.p99_ms, "ms");
        }
        rows.add(group, "acknowledged writes", report.acknowledged_writes as f64, "");
        rows.add(group, "unknown outcomes", report.unknown_percent, "%");
        Ok(())
    })
}

async fn measured() -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let cluster = Cluster::start(config(folder.path(), false)).await?;
    let mut admin = Client::new(cluster.addresses[0], cluster.credentials.clone());
    let namespace = format!(r#"{{"metadata":{{"name":"{NAMESPACE}"}}}}"#);
    let made = admin.call(Method::POST, "/api/v1/namespaces", Bytes::from(namespace), TIMEOUT);
    ensure!(made.await?.status == 201, "the namespace cannot be made");
    let made = admin.call(Method::POST, client::MAPS, client::counter(), TIMEOUT);
    ensure!(made.await?.status == 201, "the counter cannot be made");
    let (recorder, recording) = Recorder::start(&folder.path().join("history.jsonl"))?;
    let shared = Shared {
        addresses: cluster.addresses.clone(),
        credentials: cluster.credentials.clone(),
        recorder,
        begun: Instant::now(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let mut users = JoinSet::new();
    (0..CLIENTS).for_each(|number| _ = users.spawn(client::run(shared.clone(), number, 1)));
    let supervisor = tokio::spawn(cluster.clone().supervise());
    let mut ticks = tokio::time::interval(TRANSFER_EVERY);
    ticks.tick().await;
    for _ in 0..TRANSFERS {
        ticks.tick().await;
        tell(&shared, TRANSFER, "transfer".to_owned());
        // What it cost is counted all the same.
        if let Err(error) = cluster.transfer().await {
            eprintln!("bench: a transfer failed: {error:#}");
        }
    }
    let mut ticks = tokio::time::interval(KILL_EVERY);
    ticks.tick().await;
    for _ in 0..KILLS {
        ticks.tick().await;
        let seat = tokio::time::timeout(TIMEOUT, cluster.leader()).await?;
        tell(&shared, KILL_LEADER, format!("kill {seat}"));
        cluster.kill(seat);
    }
    ticks.tick().await;
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user?;
    }
    supervisor.abort();
    drop(shared);
    let history = recording.finish()?;
    cluster.stop();
    Ok(Report::of(&history, &check::check(&history), 0))
}

fn tell(shared: &Shared, sort: &str, what: String) {
    let (at_us, sort) = (shared.now_us(), Some(sort.to_owned()));
    shared.recorder.record(Line::Fault(FaultLine { at_us, for_us: 0, sort, what }));
}
