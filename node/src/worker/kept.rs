//! Connections to addresses outside of the cluster that are kept for further requests: a gate before
//! somebody else's server would else connect for each.
//!
//! The other end may close such a connection at any moment. So only a request that can be sent twice
//! goes over one that was used before; any other gets a new one, which is kept afterwards.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::client::conn::http1::SendRequest;
use tokio_util::task::TaskTracker;
use wherry_wasi_shim::Body;

/// Connections to one address that nobody uses; what is more is closed.
const EACH_MAX: usize = 128;
/// How long nobody may use one. Servers close theirs after a minute or so, some after five seconds.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// All of a worker. Locked for an entry.
#[derive(Default, Clone)]
pub struct Kept(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// Those of one address, the newest last.
    senders: HashMap<SocketAddr, Vec<(SendRequest<Body>, Instant)>>,
    /// Somebody closes those that nobody uses.
    swept: bool,
}

fn is_usable((sender, since): &(SendRequest<Body>, Instant)) -> bool {
    sender.is_ready() && since.elapsed() < IDLE_MAX
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest that is open.
    pub fn take(&self, to: SocketAddr) -> Option<SendRequest<Body>> {
        let mut idle = self.lock();
        let senders = idle.senders.get_mut(&to)?;
        while let Some(last) = senders.pop() {
            if is_usable(&last) {
                return Some(last.0);
            }
        }
        None
    }

    /// Keeps one over which nothing is under way.
    pub fn put(&self, to: SocketAddr, sender: SendRequest<Body>, tasks: &TaskTracker) {
        let mut idle = self.lock();
        let senders = idle.senders.entry(to).or_default();
        if senders.len() < EACH_MAX {
            senders.push((sender, Instant::now()));
        }
        if !std::mem::replace(&mut idle.swept, true) {
            tasks.spawn(self.clone().sweep());
        }
    }

    /// Closes what nobody has used, until there is nothing left.
    async fn sweep(self) {
        loop {
            tokio::time::sleep(IDLE_MAX).await;
            if self.close_unused() {
                return;
            }
        }
    }

    fn close_unused(&self) -> bool {
        let mut idle = self.lock();
        idle.senders.retain(|_, senders| {
            senders.retain(is_usable);
            !senders.is_empty()
        });
        idle.swept = !idle.senders.is_empty();
        !idle.swept
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::worker::{
        network::Here,
        switch::{Refusal, Switch},
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A connection, and its other end.
    async fn connected() -> (SendRequest<Body>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let shaken = http1::handshake(TokioIo::new(ours)).await;
        let (mut sender, connection) = shaken.expect("nothing is said for it");
        tokio::spawn(connection);
        sender.ready().await.expect("it is open");
        (sender, theirs)
    }

    #[tokio::test]
    async fn a_connection_is_given_to_one_and_not_after_its_end() {
        let (kept, tasks) = (Kept::default(), TaskTracker::new());
        let to: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        assert!(kept.take(to).is_none());
        let (sender, theirs) = connected().await;
        kept.put(to, sender, &tasks);
        assert!(!kept.close_unused(), "it is open");
        let sender = kept.take(to).expect("it was kept");
        assert!(kept.take(to).is_none());
        drop(theirs);
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
        kept.put(to, sender, &tasks);
        assert!(kept.take(to).is_none());
        assert!(kept.close_unused(), "nothing is left");
    }

    fn request() -> Request<Body> {
        let nothing = Body::new(Empty::new().map_err(|never| match never {}));
        Request::get("/").header("host", "a").body(nothing).expect("a request")
    }

    #[tokio::test]
    async fn a_connection_is_kept_for_the_next_request() {
        let switch = Switch::new(Here {
            node: "node-1".to_owned(),
            namespace: "shop".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
        });
        let to: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let (sender, mut theirs) = connected().await;
        let answering = async {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                theirs.read_buf(&mut asked).await.expect("it is asked");
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            theirs.write_all(answer).await.expect("there is room");
        };
        let (answer, ()) = tokio::join!(switch.ask(to, sender, request()), answering);
        let body = answer.expect("an answer").into_body().collect().await.expect("all of it");
        assert_eq!(body.to_bytes(), "ok");
        let keeping = async {
            loop {
                match switch.kept.take(to) {
                    Some(sender) => break sender,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let sender = tokio::time::timeout(PATIENCE, keeping).await.expect("it is kept");
        // One that ends meanwhile is told from a server that does not want the request.
        drop(theirs);
        let answer = switch.ask(to, sender, request()).await;
        assert!(matches!(answer, Err(Refusal::Broken(broken)) if broken == to));
    }
}
