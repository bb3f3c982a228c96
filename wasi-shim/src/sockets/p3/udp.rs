//! `udp-socket` of WASI 0.3.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::{Accessor, Resource, ResourceTable};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress, UdpSocket,
};
use wasmtime_wasi::p3::sockets::{SocketError, SocketResult};

use super::super::udp::{BUFFER_BYTES, DATAGRAM_BYTES_MAX, HOP_LIMIT, Port};
use super::super::{HasSockets, Network, SocketsView, as_label, as_ours, is_destination};
use super::{anywhere, bindable, is_family, nonzero, refused};

/// A UDP socket of a guest.
pub(super) struct Socket {
    family: IpAddressFamily,
    port: Option<Arc<Port>>,
    /// Whom alone it speaks with.
    remote: Option<SocketAddr>,
    hop_limit: u8,
    receive_buffer: u64,
    send_buffer: u64,
    _place: OwnedSemaphorePermit,
}

impl Socket {
    /// Its port; any one, if it was not bound.
    fn port(&mut self, network: &dyn Network) -> SocketResult<Arc<Port>> {
        if let Some(port) = &self.port {
            return Ok(Arc::clone(port));
        }
        let at = anywhere(network.address(), self.family)?;
        let port = Arc::new(Port::open(network, at).map_err(refused)?);
        self.port = Some(Arc::clone(&port));
        Ok(port)
    }

    fn is_destination(&self, to: SocketAddr) -> bool {
        is_family(to.ip(), self.family) && is_destination(to)
    }

    fn send(
        &mut self,
        network: &dyn Network,
        data: Vec<u8>,
        to: Option<SocketAddr>,
    ) -> SocketResult<()> {
        let to = match (self.remote, to) {
            (Some(remote), Some(to)) if remote != to => None,
            (remote, to) => to.or(remote),
        };
        let to = to.filter(|to| self.is_destination(*to)).ok_or(ErrorCode::InvalidArgument)?;
        if data.len() > DATAGRAM_BYTES_MAX {
            return Err(ErrorCode::DatagramTooLarge.into());
        }
        let port = self.port(network)?;
        (port.send)(Bytes::from(data), to).map_err(refused)
    }
}

fn udp<'a>(
    table: &'a mut ResourceTable,
    this: &Resource<UdpSocket>,
) -> SocketResult<&'a mut Socket> {
    table.get_mut(&as_ours::<UdpSocket, Socket>(this)).map_err(SocketError::trap)
}

impl<T> HostUdpSocketWithStore<T> for HasSockets {
    async fn send(
        store: &Accessor<T, Self>,
        socket: Resource<UdpSocket>,
        data: Vec<u8>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        store.with(|mut access| -> SocketResult<()> {
            let SocketsView { sockets, table } = access.get();
            let to = remote.map(SocketAddr::from);
            udp(table, &socket)?.send(&*sockets.network, data, to)
        })
    }

    async fn receive(
        store: &Accessor<T, Self>,
        socket: Resource<UdpSocket>,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let (port, remote) = store.with(|mut access| -> SocketResult<_> {
            let socket = udp(access.get().table, &socket)?;
            let port = socket.port.clone().ok_or(ErrorCode::InvalidState)?;
            Ok((port, socket.remote))
        })?;
        let (data, from) = port.receive(remote).await;
        Ok((data.to_vec(), from.into()))
    }
}

impl HostUdpSocket for SocketsView<'_> {
    async fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let socket = Socket {
            family,
            port: None,
            remote: None,
            hop_limit: HOP_LIMIT,
            receive_buffer: BUFFER_BYTES,
            send_buffer: BUFFER_BYTES,
            _place: self.sockets.free_place()?,
        };
        Ok(as_label(self.table.push(socket).map_err(SocketError::trap)?))
    }

    async fn bind(
        &mut self,
        this: Resource<UdpSocket>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        let network = Arc::clone(&self.sockets.network);
        let socket = udp(self.table, &this)?;
        if socket.port.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        let at = bindable(local.into(), network.address(), socket.family)?;
        socket.port = Some(Arc::new(Port::open(&*network, at).map_err(refused)?));
        Ok(())
    }

    async fn connect(
        &mut self,
        this: Resource<UdpSocket>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        let remote = SocketAddr::from(remote);
        let network = Arc::clone(&self.sockets.network);
        let socket = udp(self.table, &this)?;
        if !socket.is_destination(remote) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.port(&*network)?;
        socket.remote = Some(remote);
        Ok(())
    }

    fn disconnect(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        match udp(self.table, &this)?.remote.take() {
            Some(_) => Ok(()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        match &udp(self.table, &this)?.port {
            Some(port) => Ok(port.address.into()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        match udp(self.table, &this)?.remote {
            Some(remote) => Ok(remote.into()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_address_family(
        &mut self,
        this: Resource<UdpSocket>,
    ) -> wasmtime::Result<IpAddressFamily> {
        Ok(udp(self.table, &this)?.family)
    }

    fn get_unicast_hop_limit(&mut self, this: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(udp(self.table, &this)?.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        nonzero(u64::from(value))?;
        udp(self.table, &this)?.hop_limit = value;
        Ok(())
    }

    fn get_receive_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(udp(self.table, &this)?.receive_buffer)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<UdpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        udp(self.table, &this)?.receive_buffer = nonzero(value)?;
        Ok(())
    }

    fn get_send_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(udp(self.table, &this)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        udp(self.table, &this)?.send_buffer = nonzero(value)?;
        Ok(())
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}
