//! The network of one container's sockets: Services and Pods, by the table, and the Pod itself.
//!
//! | a guest wants | it gets |
//! |---|---|
//! | a name | as the cluster's DNS would answer, the Pod's `hostAliases` first |
//! | its own address or loopback | its Pod, never the machine |
//! | a Service's or Pod's address | a stream (`streams.rs`) |
//! | an address of the machine, its link, many machines | denied, and a line in its log |
//! | anything else | a connection from the machine if a policy opens it, else denied |
//!
//! Names outside of the cluster are not looked up: a policy opens them to `wasi:http` alone, sockets
//! reach addresses. Datagrams are `datagrams.rs`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use wherry_wasi_shim::{Connection, Datagrams, Listener, Network, NetworkError};

use super::{
    logs::Log,
    names::Names,
    network::ResolveError,
    outside,
    peers::PeerError,
    switch::{Refusal, Switch},
};

/// The network of one container.
pub struct PodNetwork {
    /// All Pods and Services.
    pub switch: Arc<Switch>,
    /// Where refusals are explained.
    pub log: Log,
    /// What the Pod adds to the names of the cluster.
    pub names: Arc<Names>,
    /// The Pod's address.
    pub ip: IpAddr,
}

impl PodNetwork {
    /// Loopback is the Pod, not the machine.
    fn own(&self, mut address: SocketAddr) -> SocketAddr {
        if address.ip().to_canonical().is_loopback() {
            address.set_ip(self.ip);
        }
        address
    }

    fn refuse(&self, what: &str, error: &ResolveError) -> NetworkError {
        // The guest is told that a port is closed; that it may not is for people to know.
        if let ResolveError::Outside { .. } | ResolveError::Forbidden { .. } = error {
            self.log.note(&format!("{what} refused: {error}"));
        }
        match error {
            ResolveError::NoService { .. } | ResolveError::NoName { .. } => NetworkError::NoName,
            ResolveError::NoPort { .. } => NetworkError::Refused,
            ResolveError::Outside { .. } => NetworkError::Unreachable,
            ResolveError::Forbidden { .. } => NetworkError::Denied,
        }
    }
}

impl Network for PodNetwork {
    fn address(&self) -> IpAddr {
        self.ip
    }

    fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        if name.eq_ignore_ascii_case("localhost") {
            return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
        }
        match self.names.lookup(&self.switch, name) {
            Ok(found) if found.is_empty() => Err(NetworkError::NoName),
            Ok(found) => Ok(found),
            // Names are looked up in vain all the time; the guest says what it makes of it.
            Err(_) => Err(NetworkError::NoName),
        }
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, Result<Connection, NetworkError>> {
        let remote = self.own(to);
        let local = SocketAddr::new(self.ip, self.switch.ports.ephemeral());
        let switch = self.switch.clone();
        let caller = switch.caller(self.ip);
        if remote.ip() == self.ip {
            let dialed = switch.dial(remote, local).map_err(|error| refusal(&error));
            return async move { Ok(Connection { stream: Box::new(dialed?), local, remote: to }) }
                .boxed();
        }
        let destination = match switch.resolve(&remote.ip().to_string(), remote.port()) {
            Ok(destination) => destination,
            Err(ResolveError::Outside { .. }) => {
                let log = self.log.clone();
                return async move {
                    let stream = outside::connect(&switch, &caller, remote).await;
                    let stream = stream.map_err(|error| {
                        log.note(&format!("connection to {to} refused: {error}"));
                        error.network()
                    })?;
                    Ok(Connection { stream: Box::new(stream), local, remote: to })
                }
                .boxed();
            }
            Err(error) => {
                let error = self.refuse(&format!("connection to {to}"), &error);
                return std::future::ready(Err(error)).boxed();
            }
        };
        async move {
            let stream = switch.open(&caller, &destination, local).await;
            let stream = stream.map_err(|error| refusal(&error))?;
            Ok(Connection { stream: Box::new(stream), local, remote: to })
        }
        .boxed()
    }

    fn listen(&self, at: SocketAddr) -> Result<Listener, NetworkError> {
        self.switch.ports.listen(self.ip, at)
    }

    fn datagrams(&self, at: SocketAddr) -> Result<Datagrams, NetworkError> {
        let (address, incoming, held) = self.switch.ports.receive(self.ip, at)?;
        let (switch, ip) = (self.switch.clone(), self.ip);
        let send = move |data: Bytes, to: SocketAddr| {
            let loopback = to.ip().to_canonical().is_loopback();
            if loopback || to.ip() == ip {
                // A client of a node port may be on the node's own loopback.
                if !switch.answer_datagram(address, to, &data) {
                    switch.ports.deliver(SocketAddr::new(ip, to.port()), address, data);
                }
                return Ok(());
            }
            switch.send_datagram(&switch.caller(ip), address, to, data)
        };
        Ok(Datagrams { address, incoming, send: Arc::new(send), held: Box::new(held) })
    }
}

fn refusal(error: &Refusal) -> NetworkError {
    match error {
        Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => NetworkError::Refused,
        Refusal::Deadline => NetworkError::TimedOut,
        Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Full(..)) => {
            NetworkError::Unreachable
        }
        Refusal::Denied { .. } => NetworkError::Denied,
        Refusal::Asleep { .. } => NetworkError::TimedOut,
        Refusal::Unconnected { .. } | Refusal::Broken(_) | Refusal::Incomplete => {
            NetworkError::Refused
        }
        Refusal::OutOfMemory
        | Refusal::Handler
        | Refusal::Failed
        | Refusal::BadRequest
        | Refusal::Peer(PeerError::Lost { .. }) => NetworkError::Refused,
    }
}
