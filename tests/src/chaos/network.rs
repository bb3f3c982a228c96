//! The wires between the members: a TCP proxy for every ordered pair, to which the preload library
//! turns a member's connections. So the members know nothing of it, each wire can fail by itself,
//! and the clients of the test are not touched.
//!
//! What member a sends to member b passes the *link* a→b, on connections that a opened and on those
//! that b did. A link that is *cut* holds what it is given; when it heals, either the held bytes
//! arrive late or the connections break, as the fault says. One that is *closed* breaks connections
//! and takes no new ones, so that both sides know at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes taken at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks under way in one direction; behind them the sender waits, as on a full pipe.
const CHUNKS_MAX: usize = 64;

/// How a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Link {
    cut: bool,
    closed: bool,
    delay: Duration,
    /// Connections break when it changes.
    breaks: u64,
}

type Links = Arc<BTreeMap<(usize, usize), watch::Sender<Link>>>;

/// All links between members.
#[derive(Clone)]
pub struct Network {
    links: Links,
    /// Where the proxy for (from, to) listens.
    proxies: Arc<BTreeMap<(usize, usize), SocketAddr>>,
    members: Arc<Vec<SocketAddr>>,
}

impl Network {
    /// Starts the proxies. `members` are where they listen; the proxies get addresses near by.
    pub async fn start(members: Vec<SocketAddr>) -> Result<Network> {
        let (mut links, mut proxies) = (BTreeMap::new(), BTreeMap::new());
        let mut listeners = Vec::new();
        for from in 0..members.len() {
            for to in (0..members.len()).filter(|to| *to != from) {
                let mut address = members[from];
                address.set_port(0);
                let listener = TcpListener::bind(address).await.context("bind a proxy")?;
                proxies.insert((from, to), listener.local_addr()?);
                links.insert((from, to), watch::Sender::new(Link::default()));
                listeners.push((from, to, listener));
            }
        }
        let links = Arc::new(links);
        for (from, to, listener) in listeners {
            tokio::spawn(serve(listener, from, to, members[to], links.clone()));
        }
        Ok(Network { links, proxies: Arc::new(proxies), members: Arc::new(members) })
    }

    /// What a member must be started with, so that its connections go over the links.
    pub fn environment(&self, member: usize) -> (String, String) {
        let own = self.proxies.iter().filter(|((from, _), _)| *from == member);
        let rules = own.map(|((_, to), proxy)| format!("{}={proxy}", self.members[*to]));
        ("WHERRY_SHIM_PROXIES".to_owned(), rules.collect::<Vec<_>>().join(" "))
    }

    pub fn cut(&self, from: usize, to: usize) {
        self.change(from, to, |link| link.cut = true);
    }

    /// Cuts a member off from all others, both ways.
    pub fn isolate(&self, member: usize) {
        for other in (0..self.members.len()).filter(|other| *other != member) {
            self.cut(member, other);
            self.cut(other, member);
        }
    }

    /// Breaks a member's connections with all others, and refuses new ones.
    pub fn close(&self, member: usize) {
        let close = |link: &mut Link| {
            link.closed = true;
            link.breaks += 1;
        };
        for other in (0..self.members.len()).filter(|other| *other != member) {
            self.change(member, other, close);
            self.change(other, member, close);
        }
    }

    pub fn delay(&self, member: usize, delay: Duration) {
        for other in (0..self.members.len()).filter(|other| *other != member) {
            self.change(member, other, |link| link.delay = delay);
            self.change(other, member, |link| link.delay = delay);
        }
    }

    /// All links work again; with `breaks` what they held is gone with its connections.
    pub fn heal(&self, breaks: bool) {
        for link in self.links.values() {
            link.send_if_modified(|link| {
                let healthy = Link { breaks: link.breaks, ..Link::default() };
                let changed = *link != healthy;
                let breaks = link.breaks + u64::from(breaks && link.cut);
                *link = Link { breaks, ..healthy };
                changed
            });
        }
    }

    fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        self.links.get(&(from, to)).expect("a pair of members").send_modify(change);
    }
}

async fn serve(listener: TcpListener, from: usize, to: usize, target: SocketAddr, links: Links) {
    let (out, back) = (links[&(from, to)].subscribe(), links[&(to, from)].subscribe());
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(connection(stream, target, out.clone(), back.clone()));
    }
}

async fn connection(
    stream: TcpStream,
    target: SocketAddr,
    mut out: watch::Receiver<Link>,
    mut back: watch::Receiver<Link>,
) {
    if out.borrow().closed || back.borrow().closed {
        return;
    }
    // A handshake needs both ways.
    let began = (out.borrow().breaks, back.borrow().breaks);
    if open(&mut out, began.0).await.is_none() || open(&mut back, began.1).await.is_none() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let (_, _) = (stream.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = stream.into_split();
    let (far_read, far_write) = far.into_split();
    // When one direction breaks the other has nothing to wait for.
    tokio::select! {
        () = pump(near_read, far_write, out, began.0) => {}
        () = pump(far_read, near_write, back, began.1) => {}
    }
}

/// Waits until the link is not cut; `None` when the connection is to break.
async fn open(link: &mut watch::Receiver<Link>, breaks: u64) -> Option<Duration> {
    let state = link.wait_for(|link| !link.cut || link.breaks != breaks).await.ok()?;
    (state.breaks == breaks).then_some(state.delay)
}

/// Carries one direction until it ends. Chunks keep their order, each delayed by itself.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    breaks: u64,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(length) = from.read(&mut buffer).await
            && length > 0
        {
            let chunk = (Instant::now(), buffer[..length].to_vec());
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((came, chunk)) = chunks.recv().await {
            let Some(delay) = open(&mut link, breaks).await else { return };
            // A timer rounds up to the next millisecond, also one that is over already.
            if !delay.is_zero() {
                tokio::time::sleep_until(came + delay).await;
            }
            // It may have been cut while the chunk was on its way.
            if open(&mut link, breaks).await.is_none() || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    // The writer is what decides: it ends behind the reader's last chunk, or when the link breaks.
    tokio::select! {
        () = write => {}
        () = async { read.await; std::future::pending().await } => {}
    }
    let _ = to.shutdown().await;
}
