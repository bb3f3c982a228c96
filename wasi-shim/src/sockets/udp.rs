//! `wasi:sockets/udp` and its creation.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::poll_fn;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::udp::{
    self as bindings, IncomingDatagram, IncomingDatagramStream, OutgoingDatagram,
    OutgoingDatagramStream,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket;
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, SocketResult, UdpSocket, subscribe};

use super::{
    Datagrams, NetworkError, SocketsView, as_label, as_ours, is_destination, is_family, refused,
};

/// Datagrams that one call takes or sends.
const DATAGRAMS_MAX: usize = 16;
/// The largest datagram of IPv4.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_507;
pub(super) const HOP_LIMIT: u8 = 64;
pub(super) const BUFFER_BYTES: u64 = 64 << 10;

/// A UDP socket of a guest.
pub(super) struct Socket {
    family: IpAddressFamily,
    /// Whether `finish-bind` is still to be called.
    binding: bool,
    port: Option<Arc<Port>>,
    /// Whom alone it speaks with.
    remote: Option<SocketAddr>,
    hop_limit: u8,
    receive_buffer: u64,
    send_buffer: u64,
    _place: OwnedSemaphorePermit,
}

/// A bound port, shared by the socket and its streams.
pub(super) struct Port {
    pub(super) address: SocketAddr,
    pub(super) send: Arc<dyn Fn(Bytes, SocketAddr) -> Result<(), NetworkError> + Send + Sync>,
    /// The one that is next was taken to see that it is there. Locked without waiting: one guest
    /// makes one call at a time.
    incoming: Mutex<(Option<(Bytes, SocketAddr)>, Datagrams)>,
    /// Whose turn it is to wait for the next one.
    turn: tokio::sync::Mutex<()>,
}

impl Port {
    /// Takes a port of the guest's; port 0 is any.
    pub(super) fn open(network: &dyn super::Network, at: SocketAddr) -> Result<Port, NetworkError> {
        let datagrams = network.datagrams(at)?;
        let (address, send) = (datagrams.address, Arc::clone(&datagrams.send));
        let incoming = Mutex::new((None, datagrams));
        Ok(Port { address, send, incoming, turn: tokio::sync::Mutex::default() })
    }

    /// Waits for a datagram of whom the socket speaks with. Cancel safe.
    pub(super) async fn receive(&self, remote: Option<SocketAddr>) -> (Bytes, SocketAddr) {
        // One after the other: of several who wait, the network would wake the last one only.
        let _turn = self.turn.lock().await;
        loop {
            poll_fn(|cx| self.poll_next(remote, cx)).await;
            if let Some(found) = self.take(remote) {
                return found;
            }
        }
    }

    /// Ready with a datagram of whom the socket speaks with; others are dropped.
    fn poll_next(&self, remote: Option<SocketAddr>, cx: &mut Context<'_>) -> Poll<()> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, datagrams) = &mut *incoming;
        loop {
            if next.as_ref().is_some_and(|(_, from)| remote.is_none_or(|remote| remote == *from)) {
                return Poll::Ready(());
            }
            *next = match datagrams.incoming.poll_recv(cx) {
                Poll::Ready(Some(found)) => Some(found),
                // The network keeps the other end for as long as the port is held.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            };
        }
    }

    fn take(&self, remote: Option<SocketAddr>) -> Option<(Bytes, SocketAddr)> {
        let mut now = Context::from_waker(std::task::Waker::noop());
        if self.poll_next(remote, &mut now).is_pending() {
            return None;
        }
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

struct Incoming {
    port: Arc<Port>,
    remote: Option<SocketAddr>,
}

struct Outgoing {
    port: Arc<Port>,
    remote: Option<SocketAddr>,
    permitted: usize,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Socket {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| self.port.poll_next(self.remote, cx)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {}
}

impl SocketsView<'_> {
    fn udp(&mut self, this: &Resource<UdpSocket>) -> SocketResult<&mut Socket> {
        Ok(self.table.get_mut(&as_ours(this))?)
    }
}

impl udp_create_socket::Host for SocketsView<'_> {
    async fn create_udp_socket(
        &mut self,
        family: IpAddressFamily,
    ) -> SocketResult<Resource<UdpSocket>> {
        let socket = Socket {
            family,
            binding: false,
            port: None,
            remote: None,
            hop_limit: HOP_LIMIT,
            receive_buffer: BUFFER_BYTES,
            send_buffer: BUFFER_BYTES,
            _place: self.sockets.place()?,
        };
        Ok(as_label(self.table.push(socket)?))
    }
}

impl bindings::Host for SocketsView<'_> {}

impl bindings::HostUdpSocket for SocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let mut local = SocketAddr::from(local);
        let network = self.sockets.network.clone();
        let socket = self.udp(&this)?;
        if socket.binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        if socket.port.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        if !is_family(local.ip(), socket.family) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let own = network.address();
        if local.ip().is_unspecified() && is_family(own, socket.family) {
            local.set_ip(own);
        } else if local.ip() != own && !local.ip().is_loopback() {
            return Err(ErrorCode::AddressNotBindable.into());
        }
        socket.port = Some(Arc::new(Port::open(&*network, local).map_err(refused)?));
        socket.binding = true;
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.udp(&this)?;
        if !std::mem::take(&mut socket.binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>)> {
        let remote = remote.map(SocketAddr::from);
        let socket = self.udp(&this)?;
        let Some(port) = socket.port.clone().filter(|_| !socket.binding) else {
            return Err(ErrorCode::InvalidState.into());
        };
        if let Some(remote) = remote
            && (!is_family(remote.ip(), socket.family) || !is_destination(remote))
        {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.remote = remote;
        let parent: Resource<Socket> = as_ours(&this);
        let incoming = Incoming { port: port.clone(), remote };
        let outgoing = Outgoing { port, remote, permitted: 0 };
        let incoming = self.table.push_child(incoming, &parent)?;
        let outgoing = self.table.push_child(outgoing, &parent)?;
        Ok((as_label(incoming), as_label(outgoing)))
    }

    fn local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.udp(&this)?.port {
            Some(port) => Ok(port.address.into()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        match self.udp(&this)?.remote {
            Some(remote) => Ok(remote.into()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn address_family(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        let socket: &Socket = self.table.get(&as_ours(&this))?;
        Ok(socket.family)
    }

    fn unicast_hop_limit(&mut self, this: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.udp(&this)?.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.udp(&this)?.hop_limit = value;
        Ok(())
    }

    fn receive_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.receive_buffer)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<UdpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.udp(&this)?.receive_buffer = value;
        Ok(())
    }

    fn send_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.udp(&this)?.send_buffer = value;
        Ok(())
    }

    fn subscribe(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, as_ours::<_, Socket>(&this))
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}

impl bindings::HostIncomingDatagramStream for SocketsView<'_> {
    fn receive(
        &mut self,
        this: Resource<IncomingDatagramStream>,
        max: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let stream: &mut Incoming = self.table.get_mut(&as_ours(&this))?;
        let max = usize::try_from(max).unwrap_or(DATAGRAMS_MAX).min(DATAGRAMS_MAX);
        let mut found = Vec::new();
        while found.len() < max
            && let Some((data, from)) = stream.port.take(stream.remote)
        {
            found.push(IncomingDatagram { data: data.to_vec(), remote_address: from.into() });
        }
        Ok(found)
    }

    fn subscribe(
        &mut self,
        this: Resource<IncomingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, as_ours::<_, Incoming>(&this))
    }

    fn drop(&mut self, this: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Incoming>::new_own(this.rep()))?;
        Ok(())
    }
}

impl bindings::HostOutgoingDatagramStream for SocketsView<'_> {
    fn check_send(&mut self, this: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        let stream: &mut Outgoing = self.table.get_mut(&as_ours(&this))?;
        stream.permitted = DATAGRAMS_MAX;
        Ok(DATAGRAMS_MAX as u64)
    }

    fn send(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
        datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let stream: &mut Outgoing = self.table.get_mut(&as_ours(&this))?;
        if datagrams.len() > std::mem::take(&mut stream.permitted) {
            return Err(ErrorCode::InvalidState.into());
        }
        let mut sent = 0;
        for OutgoingDatagram { data, remote_address } in datagrams {
            let to = match (stream.remote, remote_address.map(SocketAddr::from)) {
                (Some(remote), Some(to)) if remote != to => None,
                (remote, to) => to.or(remote),
            };
            let outcome = match to {
                Some(to) if data.len() <= DATAGRAM_BYTES_MAX && is_destination(to) => {
                    (stream.port.send)(Bytes::from(data), to).map_err(ErrorCode::from)
                }
                Some(to) if is_destination(to) => Err(ErrorCode::DatagramTooLarge),
                _ => Err(ErrorCode::InvalidArgument),
            };
            match outcome {
                Ok(()) => sent += 1,
                // What was sent before is told; the error comes again with the next call.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, as_ours::<_, Outgoing>(&this))
    }

    async fn drop(&mut self, this: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Outgoing>::new_own(this.rep()))?;
        Ok(())
    }
}
