//! `wasi:sockets` 0.3 over the same network: sockets whose connections are streams of the component
//! model, so that a guest waits for many of them at once without polling.
//!
//! ```text
//!   send:    stream of the guest ─ Sending ──▶ Writer ─┐
//!                                                      ├─ a connection of the network
//!   receive: stream of the guest ◀─ Receiving ─ Reader ┘
//!   listen:  stream of sockets ◀─ Accepting ─ Listener
//! ```
//!
//! A stream keeps its half of a connection, so it outlives the socket that it is of. The port of a
//! listener is given back with the stream of its connections: nobody could accept them then.

mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};

use wasmtime::component::Accessor;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{
    self, ErrorCode as LookupError, HostWithStore,
};
use wasmtime_wasi::p3::bindings::sockets::types::{self, ErrorCode, IpAddress, IpAddressFamily};
use wasmtime_wasi::p3::sockets::{SocketError, SocketResult};

use super::{HasSockets, NetworkError, Sockets, SocketsView};

impl From<NetworkError> for ErrorCode {
    fn from(error: NetworkError) -> ErrorCode {
        match error {
            NetworkError::Denied => ErrorCode::AccessDenied,
            NetworkError::Refused => ErrorCode::ConnectionRefused,
            NetworkError::Unreachable => ErrorCode::RemoteUnreachable,
            NetworkError::TimedOut => ErrorCode::Timeout,
            NetworkError::InUse => ErrorCode::AddressInUse,
            NetworkError::NotOwn => ErrorCode::AddressNotBindable,
            NetworkError::NoName | NetworkError::TooMany => {
                ErrorCode::Other(Some(error.to_string()))
            }
        }
    }
}

impl From<NetworkError> for LookupError {
    fn from(error: NetworkError) -> LookupError {
        match error {
            NetworkError::Denied => LookupError::AccessDenied,
            NetworkError::NoName => LookupError::NameUnresolvable,
            other => LookupError::Other(Some(other.to_string())),
        }
    }
}

impl types::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl ip_name_lookup::Host for SocketsView<'_> {}

impl<T> HostWithStore<T> for HasSockets {
    /// The network answers at once, from its table.
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, LookupError>> {
        let found = store.with(|mut access| access.get().sockets.network.lookup(&name));
        Ok(match found {
            Ok(found) if found.is_empty() => Err(LookupError::NameUnresolvable),
            Ok(found) => Ok(found.into_iter().map(IpAddress::from).collect()),
            Err(error) => Err(error.into()),
        })
    }
}

impl Sockets {
    /// A place for one more socket.
    fn free_place(&self) -> SocketResult<tokio::sync::OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned();
        place.map_err(|_| ErrorCode::from(NetworkError::TooMany).into())
    }
}

fn refused(error: NetworkError) -> SocketError {
    ErrorCode::from(error).into()
}

fn is_family(address: IpAddr, wanted: IpAddressFamily) -> bool {
    matches!(
        (address, wanted),
        (IpAddr::V4(_), IpAddressFamily::Ipv4) | (IpAddr::V6(_), IpAddressFamily::Ipv6)
    )
}

/// Where a socket is that asks to be bound to `at`: any address is the guest's own.
fn bindable(
    mut at: SocketAddr,
    own: IpAddr,
    family: IpAddressFamily,
) -> Result<SocketAddr, ErrorCode> {
    if !is_family(at.ip(), family) || at.ip().is_multicast() {
        return Err(ErrorCode::InvalidArgument);
    }
    if at.ip().is_unspecified() && is_family(own, family) {
        at.set_ip(own);
    } else if at.ip() != own && !at.ip().is_loopback() {
        return Err(ErrorCode::AddressNotBindable);
    }
    Ok(at)
}

/// Where a socket is that nobody has bound: at any port.
fn anywhere(own: IpAddr, family: IpAddressFamily) -> Result<SocketAddr, ErrorCode> {
    if is_family(own, family) {
        Ok(SocketAddr::new(own, 0))
    } else {
        Err(ErrorCode::AddressNotBindable)
    }
}

fn nonzero(value: u64) -> Result<u64, ErrorCode> {
    if value == 0 { Err(ErrorCode::InvalidArgument) } else { Ok(value) }
}
