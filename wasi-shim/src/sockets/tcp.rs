//! `wasi:sockets/tcp` and its creation.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::{self as bindings, ShutdownType};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, Network, Pollable, SocketResult, TcpSocket,
    subscribe,
};

use super::stream::{Place, Reader, Writer, split};
use super::{
    Connection, Listener, NetworkError, SocketsView, as_label, as_ours, is_destination, is_family,
    refused,
};

/// What options say when nobody has set them: Linux' own.
const KEEP_ALIVE_IDLE_NS: u64 = 7200 * 1_000_000_000;
const KEEP_ALIVE_INTERVAL_NS: u64 = 75 * 1_000_000_000;
const KEEP_ALIVE_COUNT: u32 = 9;
const HOP_LIMIT: u8 = 64;
const BUFFER_BYTES: u64 = 64 << 10;

/// Where a socket is on its way. Each state is entered from the one above it.
enum State {
    /// As it was made.
    Unbound,
    /// It has its own address; port 0 is given when it listens.
    Bound(SocketAddr),
    /// `start-connect` was called; left by `finish-connect`.
    Connecting(AbortOnDropHandle<Result<Connection, NetworkError>>),
    /// What `finish-connect` will say.
    Ended(Option<Result<Connection, NetworkError>>),
    Connected {
        local: SocketAddr,
        remote: SocketAddr,
        reader: Reader,
        writer: Writer,
    },
    /// The connection that is next was taken from the listener to see that it is there.
    Listening {
        listener: Listener,
        next: Option<Connection>,
    },
    /// A connection that came to nothing.
    Closed,
}

/// A step that has a start and a finish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Bind,
    Connect,
    Listen,
}

/// A TCP socket of a guest.
pub(super) struct Socket {
    state: State,
    family: IpAddressFamily,
    step: Option<Step>,
    options: Options,
    place: Place,
}

/// Options are kept and told; in this network they change nothing.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) keep_alive: bool,
    pub(super) keep_alive_idle_ns: u64,
    pub(super) keep_alive_interval_ns: u64,
    pub(super) keep_alive_count: u32,
    pub(super) hop_limit: u8,
    pub(super) receive_buffer: u64,
    pub(super) send_buffer: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keep_alive: false,
            keep_alive_idle_ns: KEEP_ALIVE_IDLE_NS,
            keep_alive_interval_ns: KEEP_ALIVE_INTERVAL_NS,
            keep_alive_count: KEEP_ALIVE_COUNT,
            hop_limit: HOP_LIMIT,
            receive_buffer: BUFFER_BYTES,
            send_buffer: BUFFER_BYTES,
        }
    }
}

impl Socket {
    fn new(family: IpAddressFamily, place: OwnedSemaphorePermit) -> Socket {
        let options = Options::default();
        let place = Arc::new(place);
        Socket { state: State::Unbound, family, step: None, options, place }
    }

    fn begin(&mut self, step: Step) -> SocketResult<()> {
        if self.step.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        self.step = Some(step);
        Ok(())
    }

    fn finish(&mut self, step: Step) -> SocketResult<()> {
        if self.step != Some(step) {
            return Err(ErrorCode::NotInProgress.into());
        }
        self.step = None;
        Ok(())
    }

    /// Takes the connection over; its two ends.
    fn connected(&mut self, connection: Connection) -> (Reader, Writer) {
        let Connection { stream, local, remote } = connection;
        let (reader, writer) = split(stream, &self.place);
        let ends = (reader.clone(), writer.clone());
        self.state = State::Connected { local, remote, reader, writer };
        ends
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Socket {
    async fn ready(&mut self) {
        match &mut self.state {
            State::Connecting(connecting) => {
                let ended = connecting.await.unwrap_or(Err(NetworkError::Unreachable));
                self.state = State::Ended(Some(ended));
            }
            State::Listening { listener, next } if next.is_none() => {
                match listener.incoming.recv().await {
                    Some(connection) => *next = Some(connection),
                    // The network keeps the other end for as long as the listener is held.
                    None => std::future::pending().await,
                }
            }
            _ => {}
        }
    }
}

impl SocketsView<'_> {
    fn tcp(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut Socket> {
        Ok(self.table.get_mut(&as_ours(this))?)
    }

    fn tcp_option(&self, this: &Resource<TcpSocket>) -> SocketResult<&Options> {
        let socket: &Socket = self.table.get(&as_ours(this))?;
        Ok(&socket.options)
    }

    fn ends(
        &mut self,
        this: &Resource<Socket>,
        (reader, writer): (Reader, Writer),
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let (reader, writer): (DynInputStream, DynOutputStream) =
            (Box::new(reader), Box::new(writer));
        Ok((self.table.push_child(reader, this)?, self.table.push_child(writer, this)?))
    }
}

impl tcp_create_socket::Host for SocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let socket = Socket::new(family, self.sockets.place()?);
        Ok(as_label(self.table.push(socket)?))
    }
}

impl bindings::Host for SocketsView<'_> {}

impl bindings::HostTcpSocket for SocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let mut local = SocketAddr::from(local);
        let own = self.sockets.network.address();
        let socket = self.tcp(&this)?;
        if !matches!(socket.state, State::Unbound) {
            return Err(ErrorCode::InvalidState.into());
        }
        if !is_family(local.ip(), socket.family) || local.ip().is_multicast() {
            return Err(ErrorCode::InvalidArgument.into());
        }
        if local.ip().is_unspecified() && is_family(own, socket.family) {
            local.set_ip(own);
        } else if local.ip() != own && !local.ip().is_loopback() {
            return Err(ErrorCode::AddressNotBindable.into());
        }
        socket.begin(Step::Bind)?;
        socket.state = State::Bound(local);
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp(&this)?.finish(Step::Bind)
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let remote = SocketAddr::from(remote);
        let network = self.sockets.network.clone();
        let socket = self.tcp(&this)?;
        if socket.step.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        if !matches!(socket.state, State::Unbound | State::Bound(_)) {
            return Err(ErrorCode::InvalidState.into());
        }
        if !is_family(remote.ip(), socket.family) || !is_destination(remote) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.begin(Step::Connect)?;
        let connecting = tokio::spawn(network.connect(remote));
        socket.state = State::Connecting(AbortOnDropHandle::new(connecting));
        Ok(())
    }

    fn finish_connect(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.tcp(&this)?;
        if socket.step != Some(Step::Connect) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let ended = match &mut socket.state {
            State::Connecting(connecting) => match connecting.now_or_never() {
                Some(ended) => ended.unwrap_or(Err(NetworkError::Unreachable)),
                None => return Err(ErrorCode::WouldBlock.into()),
            },
            State::Ended(ended) => ended.take().unwrap_or(Err(NetworkError::Unreachable)),
            _ => return Err(ErrorCode::NotInProgress.into()),
        };
        socket.step = None;
        match ended {
            Ok(connection) => {
                let ends = socket.connected(connection);
                self.ends(&as_ours(&this), ends)
            }
            Err(error) => {
                socket.state = State::Closed;
                Err(refused(error))
            }
        }
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let network = self.sockets.network.clone();
        let socket = self.tcp(&this)?;
        if socket.step.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        let State::Bound(local) = socket.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let listener = network.listen(local).map_err(refused)?;
        socket.begin(Step::Listen)?;
        socket.state = State::Listening { listener, next: None };
        Ok(())
    }

    fn finish_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp(&this)?.finish(Step::Listen)
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)>
    {
        let socket = self.tcp(&this)?;
        let family = socket.family;
        let State::Listening { listener, next } = &mut socket.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if socket.step.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        let taken = next.take().or_else(|| listener.incoming.try_recv().ok());
        let Some(connection) = taken else { return Err(ErrorCode::WouldBlock.into()) };
        // Without a place the connection is dropped, which its other end reads as closed.
        let mut accepted = Socket::new(family, self.sockets.place()?);
        let ends = accepted.connected(connection);
        let accepted = self.table.push(accepted)?;
        let (input, output) = self.ends(&accepted, ends)?;
        Ok((as_label(accepted), input, output))
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.tcp(&this)?.state {
            State::Bound(local) | State::Connected { local, .. } => Ok((*local).into()),
            State::Listening { listener, .. } => Ok(listener.address.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.tcp(&this)?.state {
            State::Connected { remote, .. } => Ok((*remote).into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        let socket: &Socket = self.table.get(&as_ours(&this))?;
        Ok(matches!(socket.state, State::Listening { .. }))
    }

    fn address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        let socket: &Socket = self.table.get(&as_ours(&this))?;
        Ok(socket.family)
    }

    fn set_listen_backlog_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.tcp(&this)?;
        nonzero(value).map(drop)
    }

    fn keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.tcp_option(&this)?.keep_alive)
    }

    fn set_keep_alive_enabled(
        &mut self,
        this: Resource<TcpSocket>,
        value: bool,
    ) -> SocketResult<()> {
        self.tcp(&this)?.options.keep_alive = value;
        Ok(())
    }

    fn keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_option(&this)?.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.tcp(&this)?.options.keep_alive_idle_ns = nonzero(value)?;
        Ok(())
    }

    fn keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_option(&this)?.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.tcp(&this)?.options.keep_alive_interval_ns = nonzero(value)?;
        Ok(())
    }

    fn keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.tcp_option(&this)?.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        nonzero(u64::from(value))?;
        self.tcp(&this)?.options.keep_alive_count = value;
        Ok(())
    }

    fn hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.tcp_option(&this)?.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        nonzero(u64::from(value))?;
        self.tcp(&this)?.options.hop_limit = value;
        Ok(())
    }

    fn receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_option(&this)?.receive_buffer)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.tcp(&this)?.options.receive_buffer = nonzero(value)?;
        Ok(())
    }

    fn send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_option(&this)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.options.send_buffer = nonzero(value)?;
        Ok(())
    }

    fn subscribe(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, as_ours::<_, Socket>(&this))
    }

    fn shutdown(&mut self, this: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let State::Connected { reader, writer, .. } = &self.tcp(&this)?.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if matches!(how, ShutdownType::Receive | ShutdownType::Both) {
            reader.shut();
        }
        if matches!(how, ShutdownType::Send | ShutdownType::Both) {
            writer.shut();
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}

fn nonzero(value: u64) -> SocketResult<u64> {
    match value {
        0 => Err(ErrorCode::InvalidArgument.into()),
        value => Ok(value),
    }
}
