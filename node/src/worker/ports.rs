//! Ports at which guests listen with sockets of their own.
//!
//! Nothing of it exists on the machine: a port is an entry here, a connection a pair of ends in
//! memory. An entry lives as long as the guest holds its socket.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use wherry_wasi_shim::{Connection, Listener, NetworkError};

use super::pipe::{self, End};

/// Connections that a guest has not accepted yet; more are refused.
const BACKLOG: usize = 128;
/// Datagrams that a guest has not taken yet, and their bytes: two of the largest; more are lost.
const INBOX: usize = 64;
const INBOX_BYTES_MAX: usize = 128 << 10;
/// Bytes of datagrams that a socket has sent and another worker has not taken yet. With these, all
/// 256 sockets of a container keep 48 MiB at most, and so do its connections.
const SENT_BYTES_MAX: usize = 64 << 10;
/// The same of all clients of node ports together.
const OUTSIDE_BYTES_MAX: usize = 16 << 20;
/// Ports that are given to whoever asks for any.
const EPHEMERAL: std::ops::Range<u16> = 32_768..60_999;

/// A datagram and who sent it.
pub type Datagram = (Bytes, SocketAddr);

/// All ports of a worker.
#[derive(Default)]
pub struct Ports {
    tables: Arc<Tables>,
    next: AtomicU16,
}

/// Locked for a lookup only, never across a wait.
#[derive(Default)]
struct Tables {
    listeners: Mutex<HashMap<SocketAddr, Port<Connection>>>,
    inboxes: Mutex<HashMap<SocketAddr, Port<Datagram>>>,
    /// Bytes of datagrams that wait and whose senders are outside.
    outside: Arc<AtomicUsize>,
}

struct Port<T> {
    sender: mpsc::Sender<T>,
    /// Of datagrams that wait for it.
    bytes: Arc<AtomicUsize>,
    /// Of those that it has sent and that wait elsewhere.
    sent: Arc<AtomicUsize>,
    /// Bound to loopback: the Pod alone reaches it.
    own_pod_only: bool,
}

impl<T> Port<T> {
    fn new(sender: mpsc::Sender<T>, at: SocketAddr) -> Port<T> {
        let (bytes, sent) = (Arc::default(), Arc::default());
        Port { sender, bytes, sent, own_pod_only: at.ip().is_loopback() }
    }
}

/// A datagram that counts until it is taken.
struct Waiting {
    data: Bytes,
    held: Arc<AtomicUsize>,
}

impl Waiting {
    /// None if there is no room for it.
    fn enter(held: &Arc<AtomicUsize>, data: Bytes, bytes_max: usize) -> Option<Bytes> {
        let grow = |held: usize| Some(held + data.len()).filter(|sum| *sum <= bytes_max);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).ok()?;
        Some(Bytes::from_owner(Waiting { data, held: held.clone() }))
    }
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.held.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

/// Gives a port back when it is dropped.
pub struct Held {
    tables: Weak<Tables>,
    address: SocketAddr,
    datagrams: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(tables) = self.tables.upgrade() else { return };
        if self.datagrams {
            lock(&tables.inboxes).remove(&self.address);
        } else {
            lock(&tables.listeners).remove(&self.address);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ports {
    /// The next port for whoever asks for any.
    pub fn ephemeral(&self) -> u16 {
        let count = EPHEMERAL.end - EPHEMERAL.start;
        EPHEMERAL.start + self.next.fetch_add(1, Ordering::Relaxed) % count
    }

    /// The address at which a Pod binds: its own, with a port that is free.
    fn free<T>(
        &self,
        taken: &HashMap<SocketAddr, Port<T>>,
        pod: IpAddr,
        port: u16,
    ) -> Result<SocketAddr, NetworkError> {
        if port != 0 {
            let address = SocketAddr::new(pod, port);
            return if taken.contains_key(&address) {
                Err(NetworkError::InUse)
            } else {
                Ok(address)
            };
        }
        EPHEMERAL
            .map(|_| SocketAddr::new(pod, self.ephemeral()))
            .find(|address| !taken.contains_key(address))
            .ok_or(NetworkError::InUse)
    }

    /// Listens for a Pod.
    pub fn listen(&self, pod: IpAddr, at: SocketAddr) -> Result<Listener, NetworkError> {
        let mut listeners = lock(&self.tables.listeners);
        let address = self.free(&listeners, pod, at.port())?;
        let (sender, incoming) = mpsc::channel(BACKLOG);
        listeners.insert(address, Port::new(sender, at));
        Ok(Listener { address, incoming, held: Box::new(self.held(address, false)) })
    }

    /// Takes datagrams for a Pod.
    pub fn receive(
        &self,
        pod: IpAddr,
        at: SocketAddr,
    ) -> Result<(SocketAddr, mpsc::Receiver<Datagram>, Held), NetworkError> {
        let mut inboxes = lock(&self.tables.inboxes);
        let address = self.free(&inboxes, pod, at.port())?;
        let (sender, incoming) = mpsc::channel(INBOX);
        inboxes.insert(address, Port::new(sender, at));
        Ok((address, incoming, self.held(address, true)))
    }

    fn held(&self, address: SocketAddr, datagrams: bool) -> Held {
        Held { tables: Arc::downgrade(&self.tables), address, datagrams }
    }

    /// Whether a guest listens there for others than its own Pod.
    pub fn is_listening(&self, address: SocketAddr) -> bool {
        lock(&self.tables.listeners).get(&address).is_some_and(|port| !port.own_pod_only)
    }

    /// Connects to a listening guest; the other end is in its backlog then.
    pub fn connect(&self, to: SocketAddr, from: SocketAddr) -> Result<End, NetworkError> {
        let listeners = lock(&self.tables.listeners);
        let port = listeners.get(&to).filter(|port| !port.own_pod_only || from.ip() == to.ip());
        let port = port.ok_or(NetworkError::Refused)?;
        let (ours, theirs) = pipe::pair();
        let connection = Connection { stream: Box::new(theirs), local: to, remote: from };
        match port.sender.try_send(connection) {
            Ok(()) => Ok(ours),
            Err(TrySendError::Full(_)) => Err(NetworkError::TimedOut),
            Err(TrySendError::Closed(_)) => Err(NetworkError::Refused),
        }
    }

    /// Hands a datagram over, if there is room for it. False: nobody takes any there.
    pub fn deliver(&self, to: SocketAddr, from: SocketAddr, data: Bytes) -> bool {
        let inboxes = lock(&self.tables.inboxes);
        let port = inboxes.get(&to).filter(|port| !port.own_pod_only || from.ip() == to.ip());
        let Some(port) = port else { return false };
        // A full inbox loses it, as a full buffer of a kernel does.
        let Some(data) = Waiting::enter(&port.bytes, data, INBOX_BYTES_MAX) else { return true };
        !matches!(port.sender.try_send((data, from)), Err(TrySendError::Closed(_)))
    }

    /// A datagram that has to wait for another worker. It counts for the socket that sent it. None if
    /// there is no room for it.
    pub fn keep(&self, from: SocketAddr, data: Bytes) -> Option<Bytes> {
        match lock(&self.tables.inboxes).get(&from) {
            Some(port) => Waiting::enter(&port.sent, data, SENT_BYTES_MAX),
            None => Waiting::enter(&self.tables.outside, data, OUTSIDE_BYTES_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn a_port_is_there_as_long_as_it_is_held() {
        let ports = Ports::default();
        let pod = at("10.0.0.1:80").ip();
        let client = at("10.0.0.2:40000");
        let mut listener = ports.listen(pod, at("10.0.0.1:80")).expect("it is free");
        assert_eq!(
            ports.listen(pod, at("10.0.0.1:80")).map(drop).expect_err("taken"),
            NetworkError::InUse
        );
        assert!(ports.is_listening(at("10.0.0.1:80")));
        ports.connect(at("10.0.0.1:80"), client).expect("it listens");
        assert_eq!(listener.incoming.recv().await.expect("a connection").remote, client);
        drop(listener);
        let refused = ports.connect(at("10.0.0.1:80"), client).map(drop);
        assert_eq!(refused.expect_err("it is gone"), NetworkError::Refused);
        let any = ports.listen(pod, at("10.0.0.1:0")).expect("there are many");
        assert!(EPHEMERAL.contains(&any.address.port()));
    }

    #[tokio::test]
    async fn loopback_is_the_pod_itself() {
        let ports = Ports::default();
        let pod = at("10.0.0.1:80").ip();
        let _listener = ports.listen(pod, at("127.0.0.1:80")).expect("it is free");
        let (server, other, own) = (at("10.0.0.1:80"), at("10.0.0.2:40000"), at("10.0.0.1:40000"));
        assert!(ports.connect(server, other).is_err() && !ports.is_listening(server));
        assert!(ports.connect(server, own).is_ok());
    }

    #[tokio::test]
    async fn a_full_backlog_and_a_full_inbox_take_no_more() {
        let ports = Ports::default();
        let (server, client) = (at("10.0.0.1:53"), at("10.0.0.2:40000"));
        let _listener = ports.listen(server.ip(), server).expect("it is free");
        for _ in 0..BACKLOG {
            ports.connect(server, client).expect("there is room");
        }
        assert_eq!(
            ports.connect(server, client).map(drop).expect_err("full"),
            NetworkError::TimedOut
        );
        let (_, mut inbox, _held) = ports.receive(server.ip(), server).expect("it is free");
        for _ in 0..=INBOX {
            assert!(
                ports.deliver(server, client, Bytes::from_static(b"x")),
                "lost, but not in vain"
            );
        }
        let received = std::iter::from_fn(|| inbox.try_recv().ok()).count();
        assert_eq!(received, INBOX);
        let large = Bytes::from(vec![0; 60_000]);
        for _ in 0..3 {
            assert!(ports.deliver(server, client, large.clone()));
        }
        let mut taken = Vec::from_iter(std::iter::from_fn(|| inbox.try_recv().ok()));
        assert_eq!(taken.len(), 2, "the third found no room");
        let sent = ports.keep(server, large.clone());
        assert!(sent.is_some() && ports.keep(server, large.clone()).is_none());
        assert!(ports.keep(client, large.clone()).is_some(), "others have room of their own");
        drop(sent);
        assert!(ports.keep(server, large.clone()).is_some(), "the first one was taken");
        assert!(ports.deliver(server, client, large.clone()));
        assert!(inbox.try_recv().is_err(), "what is taken counts as long as it is held");
        taken.pop();
        assert!(ports.deliver(server, client, large));
        assert!(inbox.try_recv().is_ok());
        drop(inbox);
        assert!(!ports.deliver(server, client, Bytes::new()), "nobody will ever read it");
        assert!(!ports.deliver(at("10.0.0.1:54"), client, Bytes::new()));
    }
}
