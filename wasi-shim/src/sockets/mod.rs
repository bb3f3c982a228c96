//! `wasi:sockets` over a network that the embedder makes: no socket of the host is ever opened.
//!
//! The interfaces are wasmtime's own bindings; what stands behind their resources is ours. A
//! resource in a binding is an index into the store's table with a type as its label, so the
//! bindings' types are kept as labels and the table holds ours ([`tcp::Socket`], [`udp::Socket`]; of
//! WASI 0.3 those in [`p3`]).
//!
//! ```text
//!   guest ─ tcp-socket ─▶ tcp::Socket ─ Network::connect ─▶ a stream of bytes, wherever it leads
//!                              └─────── Network::listen ──▶ streams of those who connect here
//! ```
//!
//! A guest without a network can make sockets, and nothing can be done with them.

mod lookup;
mod p3;
mod stream;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::{Network as Capability, SocketError};

/// The bytes of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection of a guest.
pub struct Connection {
    pub stream: Box<dyn Stream>,
    /// The guest's end.
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// A port at which a guest listens, until it is dropped.
pub struct Listener {
    pub address: SocketAddr,
    pub incoming: mpsc::Receiver<Connection>,
    /// Gives the port back.
    pub held: Box<dyn Any + Send>,
}

/// A port at which a guest takes datagrams, until it is dropped.
pub struct Datagrams {
    pub address: SocketAddr,
    /// What arrives, and from whom.
    pub incoming: mpsc::Receiver<(Bytes, SocketAddr)>,
    /// Sends one; what nobody takes is lost, as datagrams are.
    pub send: Arc<dyn Fn(Bytes, SocketAddr) -> Result<(), NetworkError> + Send + Sync>,
    /// Gives the port back.
    pub held: Box<dyn Any + Send>,
}

/// Why the network does not do something. The embedder tells people more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("the guest may not do this")]
    Denied,
    #[error("there is no such name")]
    NoName,
    #[error("nobody listens there")]
    Refused,
    #[error("there is no way there")]
    Unreachable,
    #[error("it did not answer in time")]
    TimedOut,
    #[error("the port is taken")]
    InUse,
    #[error("the address is not the guest's own")]
    NotOwn,
    #[error("the guest has too many sockets")]
    TooMany,
}

/// What a guest can reach, and where it can be reached.
pub trait Network: Send + Sync {
    /// The guest's own address.
    fn address(&self) -> IpAddr;

    /// The addresses of a name.
    fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError>;

    /// Connects; dropping the future gives up.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, Result<Connection, NetworkError>>;

    /// Listens at an address of the guest; port 0 is any.
    fn listen(&self, at: SocketAddr) -> Result<Listener, NetworkError>;

    /// Takes and sends datagrams at an address of the guest; port 0 is any.
    fn datagrams(&self, at: SocketAddr) -> Result<Datagrams, NetworkError>;
}

/// A network in which everything is denied.
struct NoNetwork;

impl Network for NoNetwork {
    fn address(&self) -> IpAddr {
        IpAddr::from([0, 0, 0, 0])
    }

    fn lookup(&self, _: &str) -> Result<Vec<IpAddr>, NetworkError> {
        Err(NetworkError::Denied)
    }

    fn connect(&self, _: SocketAddr) -> BoxFuture<'static, Result<Connection, NetworkError>> {
        Box::pin(std::future::ready(Err(NetworkError::Denied)))
    }

    fn listen(&self, _: SocketAddr) -> Result<Listener, NetworkError> {
        Err(NetworkError::Denied)
    }

    fn datagrams(&self, _: SocketAddr) -> Result<Datagrams, NetworkError> {
        Err(NetworkError::Denied)
    }
}

/// Denies everything.
pub fn no_network() -> Arc<dyn Network> {
    Arc::new(NoNetwork)
}

/// The sockets of one instance.
pub(crate) struct Sockets {
    pub(crate) network: Arc<dyn Network>,
    /// Places for all sockets of the guest, accepted ones included.
    pub(crate) places: Arc<Semaphore>,
}

/// How the bindings see them.
pub(crate) struct SocketsView<'a> {
    pub(crate) sockets: &'a mut Sockets,
    pub(crate) table: &'a mut ResourceTable,
}

pub(crate) struct HasSockets;

impl HasData for HasSockets {
    type Data<'a> = SocketsView<'a>;
}

impl Sockets {
    fn place(&self) -> Result<OwnedSemaphorePermit, SocketError> {
        let place = self.places.clone().try_acquire_owned();
        place.map_err(|_| ErrorCode::NewSocketLimit.into())
    }
}

/// The same resource under the label of what the table really holds.
fn as_ours<Label: 'static, Ours: 'static>(resource: &Resource<Label>) -> Resource<Ours> {
    Resource::new_borrow(resource.rep())
}

/// An own resource of ours under the bindings' label.
fn as_label<Ours: 'static, Label: 'static>(resource: Resource<Ours>) -> Resource<Label> {
    Resource::new_own(resource.rep())
}

fn is_family(address: IpAddr, wanted: IpAddressFamily) -> bool {
    matches!(
        (address, wanted),
        (IpAddr::V4(_), IpAddressFamily::Ipv4) | (IpAddr::V6(_), IpAddressFamily::Ipv6)
    )
}

/// Whether something can be sent to exactly one place by it.
fn is_destination(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

impl From<NetworkError> for ErrorCode {
    fn from(error: NetworkError) -> ErrorCode {
        match error {
            NetworkError::Denied => ErrorCode::AccessDenied,
            NetworkError::NoName => ErrorCode::NameUnresolvable,
            NetworkError::Refused => ErrorCode::ConnectionRefused,
            NetworkError::Unreachable => ErrorCode::RemoteUnreachable,
            NetworkError::TimedOut => ErrorCode::Timeout,
            NetworkError::InUse => ErrorCode::AddressInUse,
            NetworkError::NotOwn => ErrorCode::AddressNotBindable,
            NetworkError::TooMany => ErrorCode::NewSocketLimit,
        }
    }
}

impl network::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<std::io::Error>().map(ErrorCode::from))
    }
}

impl network::HostNetwork for SocketsView<'_> {
    fn drop(&mut self, this: Resource<Capability>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

fn refused(error: NetworkError) -> SocketError {
    ErrorCode::from(error).into()
}
