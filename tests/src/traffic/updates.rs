//! Rolling updates one after the other while three clients ask: nobody may notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::{Plan, grpc::Greeter};
use crate::load::{Client, RATE, Seen, Way};
use crate::{Dev, wait_for};

const HELLO: u16 = 30080;
const GREETER: u16 = 30086;
/// What `hello-http` answers without a line in its log.
const PATH: &str = "/bench";
/// Between two greetings of a stream.
const PAUSE: Duration = Duration::from_millis(100);
/// A stream that takes so much longer than its pauses has failed.
const STREAM_LATE: Duration = Duration::from_secs(30);
/// A stream that failed is not tried again at once.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// kubectl refuses to restart what it has restarted in the same second.
const APART: Duration = Duration::from_millis(1500);
/// Failures that are shown.
const SHOWN: usize = 5;

/// One client and what it saw.
pub struct Row {
    pub way: String,
    /// Requests, or whole streams.
    pub answered: u64,
    pub lost: usize,
    pub p50: f64,
    pub p99: f64,
}

impl Row {
    pub fn is_fine(&self) -> bool {
        self.lost == 0 && self.answered > 0
    }

    fn of(way: String, seen: &Seen) -> Row {
        for failure in seen.failures.iter().take(SHOWN) {
            eprintln!("{way}: {failure}");
        }
        let at = |quantile| seen.times.value_at_quantile(quantile) as f64 / 1000.0;
        Row {
            way,
            answered: seen.answered(),
            lost: seen.failures.len(),
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// The updates, and what the clients saw meanwhile.
pub fn run(cluster: &Dev, plan: &Plan) -> Result<Vec<Row>> {
    let at = |port| SocketAddr::from((cluster.address, port));
    wait_for("the node port answers", || cluster.get(HELLO, PATH).filter(|it| it.0 == 200));
    let before = generations(cluster)?;
    let kept = Client::start_by(Way::KeepAlive, at(HELLO), PATH);
    let new = Client::start_by(Way::NewConnections, at(HELLO), PATH);
    let streams = Streams::start(at(GREETER), plan.greetings);
    let rolled = roll(cluster, plan);
    // The clients end in any case.
    let (kept, new, streams) = (kept.finish()?, new.finish()?, streams.finish()?);
    rolled?;
    let after = generations(cluster)?;
    let updates = u64::from(plan.updates);
    ensure!(
        after.iter().zip(&before).all(|(after, before)| *after == before + updates),
        "the Deployments were not rolled out {updates} times: {before:?} became {after:?}"
    );
    let seconds = (PAUSE * plan.greetings).as_secs();
    Ok(vec![
        Row::of(format!("{RATE} requests/s on connections that are kept"), &kept),
        Row::of(format!("{RATE} requests/s on new connections"), &new),
        Row::of(format!("streams of {seconds} s, one after the other"), &streams),
    ])
}

/// How often each Deployment was changed.
fn generations(cluster: &Dev) -> Result<Vec<u64>> {
    let path = "jsonpath={range .items[*]}{.metadata.generation} {end}";
    let names = ["get", "deployments", "hello-http", "greeter", "-o", path];
    let said = cluster.kubectl_ok(&names);
    let all = said.split_whitespace().map(|number| number.parse::<u64>().context(said.clone()));
    all.collect()
}

fn roll(cluster: &Dev, plan: &Plan) -> Result<()> {
    // Both HTTP clients together send twice the rate; the updates are spread over that time.
    let whole = Duration::from_secs_f64(plan.requests as f64 / (2 * RATE) as f64);
    let each = (whole / plan.updates.max(1)).max(APART);
    for number in 1..=plan.updates {
        let begun = Instant::now();
        let restart = ["rollout", "restart", "deployment/hello-http", "deployment/greeter"];
        let output = cluster.kubectl(&restart);
        ensure!(output.status.success(), "{}", crate::text(&output.stderr));
        for name in ["deployment/hello-http", "deployment/greeter"] {
            let output = cluster.kubectl(&["rollout", "status", name, "--timeout=60s"]);
            ensure!(output.status.success(), "{name}: {}", crate::text(&output.stderr));
        }
        eprintln!("update {number} took {:.1} s", begun.elapsed().as_secs_f64());
        std::thread::sleep(each.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

/// One gRPC stream after the other, on one connection.
struct Streams {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Streams {
    fn start(address: SocketAddr, greetings: u32) -> Streams {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(stream(address, greetings, &stop))
            }
        });
        Streams { stop, thread }
    }

    /// Ends it after the stream that it has; what it saw.
    fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client of streams panicked"))?
    }
}

async fn stream(address: SocketAddr, greetings: u32, stop: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen { times: Histogram::new(3)?, failures: Vec::new() };
    let late = PAUSE * greetings + STREAM_LATE;
    let mut connection: Option<Greeter> = None;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let one = tokio::time::timeout(late, once(address, greetings, &mut connection)).await;
        match one.unwrap_or_else(|_| Err(anyhow::anyhow!("no end in {late:?}"))) {
            Ok(()) => seen.times.record(u64::try_from(begun.elapsed().as_micros())?)?,
            Err(error) => {
                seen.failures.push(format!("{error:#}"));
                connection = None;
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
    Ok(seen)
}

async fn once(address: SocketAddr, greetings: u32, connection: &mut Option<Greeter>) -> Result<()> {
    let greeter = match connection {
        Some(greeter) => greeter,
        None => connection.insert(Greeter::connect(address).await?),
    };
    greeter.greet_often("everybody", greetings, PAUSE).await?;
    Ok(())
}
