//! The replicated store beside etcd: three members each on loopback and the same disk, one after
//! the other, the same load by the same kind of client.
//!
//! What is compared is what a cluster would feel: Wherry is asked through its whole API (JSON,
//! authorization, admission), etcd at its own gRPC, below any API server. Both speak HTTP/2 with
//! mutual TLS to clients and mutual TLS between members, and both fsync before they answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use wherry_tests::chaos::cluster::{Cluster, Config};
use wherry_tests::http::Credentials;
use wherry_tests::{repository, wherry};

use crate::Rows;
use crate::apps::proportional_mib;
use crate::etcd::Etcd;
use crate::target::{Connection, Kind};

const OBJECTS: usize = 100_000;
const VALUE_BYTES: usize = 1024;
const LOAD: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
/// Connections that the clients of a load share, spread over the members.
const CONNECTIONS_MAX: usize = 12;
const WATCHERS: usize = 1000;
const WATCHED_PUTS: usize = 60;
const LISTS: usize = 3;
/// A fill of 100,000 that is slower than this is given up.
const FILL_TIMEOUT: Duration = Duration::from_secs(600);
const INJECTED_FSYNC: Duration = Duration::from_millis(4);

/// One measurement of one service.
struct Measured {
    name: String,
    value: f64,
    unit: &'static str,
    /// Whether more is better.
    more: bool,
}

/// Measures both and prints the ratios; above 1 Wherry is ahead.
pub fn etcd(rows: &mut Rows) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let theirs = of_etcd().await?;
        let ours = of_wherry().await?;
        let group = "three members beside etcd (JSON API with mTLS; gRPC with mTLS)";
        for (our, their) in ours.iter().zip(&theirs) {
            ensure!(our.name == their.name, "the same rows in the same order");
            rows.add(group, &format!("{}: wherry", our.name), our.value, our.unit);
            rows.add(group, &format!("{}: etcd", our.name), their.value, our.unit);
            let ahead = match our.more {
                true => our.value / their.value,
                false => their.value / our.value,
            };
            rows.add(group, &format!("{}: ahead", our.name), ahead, "×");
        }
        slow_fsync(rows).await
    })
}

async fn of_etcd() -> Result<Vec<Measured>> {
    let folder = tempfile::tempdir_in(repository().join("tests"))?;
    let etcd = Etcd::start(folder.path()).await?;
    let load = Load::new(Kind::Etcd, &etcd.addresses, &etcd.credentials).await?;
    let mut measured = load.speeds().await?;
    drop((load, etcd));
    // Anew, so that there are exactly as many objects as the rows say.
    let folder = tempfile::tempdir_in(repository().join("tests"))?;
    let mut etcd = Etcd::start(folder.path()).await?;
    let load = Load::new(Kind::Etcd, &etcd.addresses, &etcd.credentials).await?;
    measured.push(load.filled_list().await?);
    measured.push(memory(etcd.pids()));
    measured.push(restart(etcd.restart(2).await?));
    Ok(measured)
}

pub fn config(folder: &Path, faults: bool) -> Config {
    Config {
        members: 3,
        binary: wherry(),
        folder: folder.to_owned(),
        small_disks: false,
        power_cuts: false,
        faults,
        arguments: Vec::new(),
        environment: Vec::new(),
    }
}

async fn of_wherry() -> Result<Vec<Measured>> {
    let folder = tempfile::tempdir_in(repository().join("tests"))?;
    let cluster = Cluster::start(config(folder.path(), false)).await?;
    let load = Load::new(Kind::Wherry, &cluster.addresses, &cluster.credentials).await?;
    let mut measured = load.speeds().await?;
    cluster.stop();
    drop((load, cluster));
    let folder = tempfile::tempdir_in(repository().join("tests"))?;
    let cluster = Cluster::start(config(folder.path(), false)).await?;
    let load = Load::new(Kind::Wherry, &cluster.addresses, &cluster.credentials).await?;
    measured.push(load.filled_list().await?);
    measured.push(memory(cluster.pids()));
    let leader = cluster.leader().await;
    let member = (leader + 1) % 3;
    cluster.kill(member);
    let begun = Instant::now();
    cluster.start_again(member).await?;
    measured.push(restart(begun.elapsed()));
    cluster.stop();
    Ok(measured)
}

/// Puts with every fsync of every member late, Wherry alone: etcd makes its system calls itself, so
/// that nothing can be put before them.
async fn slow_fsync(rows: &mut Rows) -> Result<()> {
    let folder = tempfile::tempdir_in(repository().join("tests"))?;
    let cluster = Cluster::start(config(folder.path(), true)).await?;
    for member in 0..3 {
        cluster.slow_sync(member, INJECTED_FSYNC);
    }
    let load = Load::new(Kind::Wherry, &cluster.addresses, &cluster.credentials).await?;
    for clients in [1, 16] {
        let times = load.puts(clients, &format!("slow-{clients}")).await?;
        let name = format!("put of 1 KiB, {clients} clients, 4 ms injected into every fsync: p99");
        let p99 = times.histogram.value_at_quantile(0.99) as f64 / 1000.0;
        rows.add("wherry with slow disks", &name, p99, "ms");
    }
    cluster.stop();
    Ok(())
}

fn memory(pids: Vec<i32>) -> Measured {
    let count = pids.len() as f64;
    let value = pids.into_iter().map(proportional_mib).sum::<f64>() / count;
    let name = "memory of a member, 100,000 × 1 KiB".to_owned();
    Measured { name, value, unit: "MiB", more: false }
}

fn restart(time: Duration) -> Measured {
    let name = "restart of a member to serving, 100,000 × 1 KiB".to_owned();
    Measured { name, value: time.as_secs_f64() * 1000.0, unit: "ms", more: false }
}

struct Load {
    connections: Vec<Connection>,
}

/// What a load of many calls came to.
struct Times {
    /// Microseconds.
    histogram: Histogram<u64>,
    seconds: f64,
}

impl Load {
    async fn new(kind: Kind, addresses: &[SocketAddr], credentials: &Credentials) -> Result<Load> {
        let mut connections = Vec::new();
        for number in 0..CONNECTIONS_MAX {
            let address = addresses[number % addresses.len()];
            connections.push(Connection::open(kind, address, credentials).await?);
        }
        Ok(Load { connections })
    }

    /// Runs clients until the time is up, each one call after the other.
    async fn run<F>(
        &self,
        clients: usize,
        length: Duration,
        call: impl Fn(Connection, usize, usize) -> F,
    ) -> Result<Times>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        // The calls of a client are made here one by one, so that `call` need not outlive this.
        let mut next = vec![0; clients];
        let mut histogram = Histogram::<u64>::new(3)?;
        let start = |tasks: &mut JoinSet<_>, client: usize, number: usize| {
            let connection = self.connections[client % self.connections.len()].clone();
            let calling = call(connection, client, number);
            tasks.spawn(async move {
                let begun = Instant::now();
                calling.await.map(|()| (client, begun.elapsed()))
            });
        };
        (0..clients).for_each(|client| start(&mut tasks, client, 0));
        while let Some(done) = tasks.join_next().await {
            let (client, time) = done??;
            histogram.record(u64::try_from(time.as_micros())?)?;
            if begun.elapsed() < length {
                next[client] += 1;
                start(&mut tasks, client, next[client]);
            }
        }
        Ok(Times { histogram, seconds: begun.elapsed().as_secs_f64() })
    }

    async fn puts(&self, clients: usize, run: &str) -> Result<Times> {
        let value = "x".repeat(VALUE_BYTES);
        let put = |phase: &'static str| {
            let (run, value) = (run.to_owned(), value.clone());
            move |connection: Connection, client: usize, number: usize| {
                let (name, value) = (format!("{run}-{phase}-{client}-{number}"), value.clone());
                async move { connection.put(&name, &value).await }
            }
        };
        self.run(clients, WARM_UP, put("warm")).await?;
        self.run(clients, LOAD, put("put")).await
    }

    async fn speeds(&self) -> Result<Vec<Measured>> {
        let mut measured = Vec::new();
        for clients in [1, 16, 128] {
            let times = self.puts(clients, &format!("p{clients}")).await?;
            add(&mut measured, &format!("put of 1 KiB, {clients} clients"), &times);
        }
        let get = |connection: Connection, _, _| async move { connection.get("p1-put-0-0").await };
        self.run(16, WARM_UP, get).await?;
        let times = self.run(16, LOAD, get).await?;
        add(&mut measured, "linearizable get, 16 clients", &times);
        self.fan_out(&mut measured).await?;
        Ok(measured)
    }

    /// Fills an empty cluster, then lists all of it.
    async fn filled_list(&self) -> Result<Measured> {
        self.fill().await?;
        let mut lists = Histogram::<u64>::new(3)?;
        for _ in 0..LISTS {
            let begun = Instant::now();
            let bytes = self.connections[0].list().await?;
            ensure!(bytes > OBJECTS * VALUE_BYTES, "a list of {bytes} bytes is not whole");
            lists.record(u64::try_from(begun.elapsed().as_micros())?)?;
        }
        let value = lists.value_at_quantile(0.5) as f64 / 1000.0;
        let name = "list of 100,000 × 1 KiB: p50".to_owned();
        Ok(Measured { name, value, unit: "ms", more: false })
    }

    /// From the sending of a put to the last of all watchers that hears of it.
    async fn fan_out(&self, measured: &mut Vec<Measured>) -> Result<()> {
        let (heard, mut hears) = tokio::sync::mpsc::channel::<usize>(WATCHERS);
        let mut watchers = JoinSet::new();
        for number in 0..WATCHERS {
            let connection = &self.connections[number % self.connections.len()];
            let mut watch = connection.watch().await.with_context(|| format!("watch {number}"))?;
            let heard = heard.clone();
            watchers.spawn(async move {
                for put in 0..WATCHED_PUTS {
                    watch.wait_for(&format!("fan-{put}-")).await?;
                    heard.send(put).await?;
                }
                anyhow::Ok(())
            });
        }
        let mut times = Histogram::<u64>::new(3)?;
        for put in 0..WATCHED_PUTS {
            let begun = Instant::now();
            self.connections[0].put(&format!("fan-{put}-x"), &"x".repeat(VALUE_BYTES)).await?;
            for _ in 0..WATCHERS {
                let number = tokio::time::timeout(FILL_TIMEOUT, hears.recv()).await?;
                ensure!(number == Some(put), "a watcher heard of {number:?} instead of {put}");
            }
            times.record(u64::try_from(begun.elapsed().as_micros())?)?;
        }
        while let Some(watcher) = watchers.join_next().await {
            watcher??;
        }
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let value = times.value_at_quantile(quantile) as f64 / 1000.0;
            let name = format!("put → last of 1,000 watchers: {name}");
            measured.push(Measured { name, value, unit: "ms", more: false });
        }
        Ok(())
    }

    async fn fill(&self) -> Result<()> {
        let value = "x".repeat(VALUE_BYTES);
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for client in 0..128 {
            let connection = self.connections[client % self.connections.len()].clone();
            let value = value.clone();
            tasks.spawn(async move {
                for number in (client..OBJECTS).step_by(128) {
                    connection.put(&format!("fill-{number}"), &value).await?;
                    ensure!(begun.elapsed() < FILL_TIMEOUT, "100,000 puts take too long");
                }
                Ok(())
            });
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        Ok(())
    }
}

fn add(measured: &mut Vec<Measured>, name: &str, times: &Times) {
    let quantile = |quantile| times.histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let throughput = times.histogram.len() as f64 / times.seconds;
    let mut push = |what: &str, value, unit, more| {
        measured.push(Measured { name: format!("{name}: {what}"), value, unit, more });
    };
    push("throughput", throughput, "/s", true);
    push("p50", quantile(0.5), "ms", false);
    push("p99", quantile(0.99), "ms", false);
}
