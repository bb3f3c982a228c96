//! Samples of several protocols: a Pod that asks another one by HTTP, one that does so by gRPC, and
//! bytes that come back from a guest with a socket.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use tokio::runtime::Runtime;

use super::grpc::Greeter;
use crate::{Dev, http_get, wait_for};

const CALLER: u16 = 30081;
const GREETER_CALLER: u16 = 30087;
const BYTES: u16 = 30096;
/// What is sent and comes back on one connection.
const BYTES_SENT: usize = 32 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends back what it gets, on the second node: the node port is on the first.
const ECHO: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: bytes, labels: {app: bytes}}
spec:
  nodeName: node-2
  containers:
    - {name: nc, image: busybox, args: [nc, "-l", "-k", "-p", "9000", "-e", cat]}
---
apiVersion: v1
kind: Service
metadata: {name: bytes}
spec: {type: NodePort, selector: {app: bytes}, ports: [{port: 9000, nodePort: 30096}]}
"#;

/// One sample and how its calls went.
pub struct Sample {
    pub name: &'static str,
    pub calls: u64,
    pub failed: usize,
    pub p50: f64,
}

impl Sample {
    pub fn is_fine(&self) -> bool {
        self.failed == 0 && self.calls > 0
    }
}

/// Each sample, so many calls.
pub fn run(cluster: &Dev, calls: u32) -> Result<Vec<Sample>> {
    let at = |port| SocketAddr::from((cluster.address, port));
    super::policies::apply(cluster, ECHO)?;
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "pod/bytes", "--timeout=120s"]);
    let http = || -> Result<()> {
        let (status, said) = http_get(at(CALLER), "/").context("no answer")?;
        let good = status == 200 && said.starts_with("http://hello-http said: Hello from ");
        ensure!(good, "{status} {said}");
        Ok(())
    };
    let runtime = Runtime::new()?;
    let mut connection: Option<Greeter> = None;
    let mut grpc = || -> Result<()> {
        runtime.block_on(async {
            let mut greeter = match connection.take() {
                Some(greeter) => greeter,
                None => Greeter::connect(at(GREETER_CALLER)).await?,
            };
            let said = tokio::time::timeout(TIMEOUT, greeter.greet("you")).await??;
            ensure!(said.starts_with("greeter said: Hello you from greeter-"), "{said}");
            // One that failed is not used again.
            connection = Some(greeter);
            Ok(())
        })
    };
    Ok(vec![
        sample("HTTP: Pod to Pod, through the guest", calls, http)?,
        sample("gRPC: Pod to Pod, through the guest", calls, &mut grpc)?,
        sample("TCP: to a socket on the other node", calls, || echo(at(BYTES)))?,
    ])
}

/// Waits until it works once, then counts.
fn sample(name: &'static str, calls: u32, mut call: impl FnMut() -> Result<()>) -> Result<Sample> {
    wait_for(name, || call().ok());
    let mut times = Histogram::<u64>::new(3)?;
    let mut failed = 0;
    for _ in 0..calls {
        let begun = Instant::now();
        match call() {
            Ok(()) => times.record(u64::try_from(begun.elapsed().as_micros())?)?,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed += 1;
            }
        }
    }
    let p50 = times.value_at_quantile(0.5) as f64 / 1000.0;
    Ok(Sample { name, calls: u64::from(calls), failed, p50 })
}

/// Sends bytes and reads them back, to the end of both directions.
fn echo(address: SocketAddr) -> Result<()> {
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(BYTES_SENT).collect();
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).context("connect")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // It fits into the buffers on the way, so nobody has to read meanwhile.
    stream.write_all(&sent).context("send")?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).context("read")?;
    ensure!(heard == sent, "{} bytes came back of {}", heard.len(), sent.len());
    Ok(())
}
