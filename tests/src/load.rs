//! A client that asks a Service at an even pace, on connections that it keeps or on a new one each
//! time, and remembers how long each answer took and which requests got none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::machine::go_first;

/// Connections, each with a request every [`PACE`]: 200 requests a second in all.
const CONNECTIONS: usize = 4;
const PACE: Duration = Duration::from_millis(20);
/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Requests a second of one client.
pub const RATE: u64 = 200;

/// On what a client sends its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Connections that it keeps.
    KeepAlive,
    /// Each request on a connection of its own.
    NewConnections,
}

/// What the client saw.
pub struct Seen {
    pub times: Histogram<u64>,
    pub failures: Vec<String>,
}

impl Seen {
    fn new() -> Result<Seen> {
        Ok(Seen { times: Histogram::new(3)?, failures: Vec::new() })
    }

    pub fn answered(&self) -> u64 {
        self.times.len()
    }

    /// The 99th percentile of its times, in milliseconds.
    pub fn p99(&self) -> f64 {
        self.times.value_at_quantile(0.99) as f64 / 1000.0
    }
}

/// Asks until it is told to stop, on a thread of its own.
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Client {
    pub fn start(address: SocketAddr, path: &'static str) -> Client {
        Client::start_by(Way::KeepAlive, address, path)
    }

    pub fn start_by(way: Way, address: SocketAddr, path: &'static str) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                go_first();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(ask(way, address, path, &stop))
            }
        });
        Client { stop, thread }
    }

    /// Ends it; what it saw.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }

    /// Asks for so long.
    pub fn run_for(address: SocketAddr, path: &'static str, time: Duration) -> Result<Seen> {
        let client = Client::start(address, path);
        std::thread::sleep(time);
        client.finish()
    }
}

async fn ask(
    way: Way,
    address: SocketAddr,
    path: &'static str,
    stop: &Arc<AtomicBool>,
) -> Result<Seen> {
    let mut tasks = JoinSet::new();
    for number in 0..CONNECTIONS {
        let stop = stop.clone();
        // Not all at the same moment.
        let begin = PACE * u32::try_from(number)? / u32::try_from(CONNECTIONS)?;
        tasks.spawn(async move {
            tokio::time::sleep(begin).await;
            connection(way, address, path, &stop).await
        });
    }
    let mut all = Seen::new()?;
    while let Some(seen) = tasks.join_next().await {
        let seen = seen??;
        all.times.add(&seen.times)?;
        all.failures.extend(seen.failures);
    }
    Ok(all)
}

async fn connection(way: Way, address: SocketAddr, path: &str, stop: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::new()?;
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sender = None;
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        if way == Way::NewConnections {
            sender = None;
        }
        let begun = Instant::now();
        let asked = tokio::time::timeout(TIMEOUT, once(address, path, &mut sender)).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {TIMEOUT:?}"))) {
            Ok(()) => seen.times.record(u64::try_from(begun.elapsed().as_micros())?)?,
            Err(error) => {
                seen.failures.push(format!("{error:#}"));
                sender = None;
            }
        }
    }
    Ok(seen)
}

type Sender = http1::SendRequest<Empty<Bytes>>;

async fn once(address: SocketAddr, path: &str, sender: &mut Option<Sender>) -> Result<()> {
    if sender.as_ref().is_none_or(Sender::is_closed) {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (new, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its sender.
        tokio::spawn(connection);
        *sender = Some(new);
    }
    let sender = sender.as_mut().context("it was just made")?;
    let request = Request::get(path).header(header::HOST, "service").body(Empty::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    ensure!(status == 200, "status {status}");
    Ok(())
}
