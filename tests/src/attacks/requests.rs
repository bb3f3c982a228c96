//! Attacks that come by requests: many clients that want a handler to misbehave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Between two pieces of a body: four uploads fill a network of 1 Gbit/s. As fast as they can be sent, the
/// kernel hands them to the reader on the sender's processor, and who wakes there waits for that.
const PACE: Duration = Duration::from_millis(1);

/// What clients do, beside asking for a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Read the answer.
    Polite,
    /// Send a body as long as they are let.
    Upload,
    /// Read the head and then nothing more.
    Deaf,
}

/// A storm of requests for a path.
#[derive(Clone, Copy)]
pub struct Storm {
    pub path: &'static str,
    pub clients: usize,
    pub manner: Manner,
}

/// How requests ended, and how many of each.
type Ends = BTreeMap<String, u64>;

/// Whether a request ended before there was an answer, by the other side's will.
fn is_turned_away(end: &str) -> bool {
    end.starts_with("connection") || end.contains("refused")
}

impl Storm {
    /// Rages for so long, then says how its requests ended. One that nobody let in was no storm.
    pub async fn rage(self, address: SocketAddr, time: Duration) -> Result<String> {
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for _ in 0..self.clients {
            tasks.spawn(self.client(address, until));
        }
        let mut all = Ends::new();
        while let Some(ends) = tasks.join_next().await {
            for (end, count) in ends.unwrap_or_default() {
                *all.entry(end).or_default() += count;
            }
        }
        let shown: Vec<String> = all.iter().map(|(end, count)| format!("{count}× {end}")).collect();
        let shown = shown.join(", ");
        ensure!(all.keys().any(|end| !is_turned_away(end)), "no request was let in: {shown}");
        Ok(shown)
    }

    async fn client(self, address: SocketAddr, until: Instant) -> Ends {
        let mut ends = Ends::new();
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            let end = match tokio::time::timeout(left, self.request(address)).await {
                Ok(Ok(end)) => end,
                Ok(Err(error)) => error.kind().to_string(),
                Err(_) => "no answer until the end".to_owned(),
            };
            if is_turned_away(&end) {
                // A client that is turned away at once comes again a little later.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            *ends.entry(end).or_default() += 1;
        }
        ends
    }

    async fn request(self, address: SocketAddr) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        let upload = self.manner == Manner::Upload;
        let (method, body) = match upload {
            true => ("POST", "Transfer-Encoding: chunked\r\n"),
            false => ("GET", ""),
        };
        let path = self.path;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: attacked\r\nConnection: close\r\n{body}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        if upload {
            let chunk = [&b"8000\r\n"[..], &[b'x'; 1 << 15], b"\r\n"].concat();
            // 64 MiB, or until nobody takes them.
            for _ in 0..2048 {
                let sent = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&chunk));
                if !matches!(sent.await, Ok(Ok(()))) {
                    break;
                }
                tokio::time::sleep(PACE).await;
            }
        }
        let mut start = [0; 12];
        stream.read_exact(&mut start).await?;
        if self.manner == Manner::Deaf {
            std::future::pending::<()>().await;
        }
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(String::from_utf8_lossy(&start[9..]).into_owned())
    }
}
