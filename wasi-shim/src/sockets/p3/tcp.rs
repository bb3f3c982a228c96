//! `tcp-socket` of WASI 0.3.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::PollSemaphore;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, Resource, ResourceTable, Source, StreamConsumer,
    StreamProducer, StreamReader, StreamResult,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::p3::bindings::sockets::types::{
    Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
    TcpSocket,
};
use wasmtime_wasi::p3::sockets::{SocketError, SocketResult};

use super::super::stream::{Place, Reader, Writer, split};
use super::super::tcp::Options;
use super::super::{
    Connection, HasSockets, Listener, Network, NetworkError, SocketsView, as_label, as_ours,
    is_destination,
};
use super::{anywhere, bindable, is_family, nonzero, refused};

/// Bytes that a reader in the host is given at once.
const PIECE_BYTES: usize = 8 << 10;

/// Where a socket is on its way.
enum State {
    /// As it was made.
    Unbound,
    /// It has its own address; port 0 is given when it listens.
    Bound(SocketAddr),
    /// `connect` was called and has not ended.
    Connecting,
    /// Each half until it is taken by `receive` or `send`.
    Connected {
        local: SocketAddr,
        remote: SocketAddr,
        reader: Option<Reader>,
        writer: Option<Writer>,
    },
    /// The listener is with the stream of its connections.
    Listening(SocketAddr),
    /// A connection that came to nothing, and why.
    Closed(ErrorCode),
}

/// A TCP socket of a guest.
pub(super) struct Socket {
    state: State,
    family: IpAddressFamily,
    options: Options,
    place: Place,
}

impl Socket {
    /// Why something cannot be done now.
    fn misplaced(&self) -> ErrorCode {
        match &self.state {
            State::Closed(why) => why.clone(),
            _ => ErrorCode::InvalidState,
        }
    }

    fn begin_connect(&mut self, remote: SocketAddr) -> Result<(), ErrorCode> {
        if !matches!(self.state, State::Unbound | State::Bound(_)) {
            return Err(self.misplaced());
        }
        let mapped = remote.ip().to_canonical() != remote.ip();
        if mapped || !is_family(remote.ip(), self.family) || !is_destination(remote) {
            return Err(ErrorCode::InvalidArgument);
        }
        self.state = State::Connecting;
        Ok(())
    }

    fn end_connect(&mut self, ended: Result<Connection, NetworkError>) -> Result<(), ErrorCode> {
        match ended {
            Ok(connection) => {
                self.state = State::connected(connection, &self.place);
                Ok(())
            }
            Err(error) => {
                let why = ErrorCode::from(error);
                self.state = State::Closed(why.clone());
                Err(why)
            }
        }
    }

    fn listen(&mut self, network: &dyn Network) -> SocketResult<Listener> {
        let at = match self.state {
            State::Bound(at) => at,
            State::Unbound => anywhere(network.address(), self.family)?,
            _ => return Err(self.misplaced().into()),
        };
        let listener = network.listen(at).map_err(refused)?;
        self.state = State::Listening(listener.address);
        Ok(listener)
    }

    fn take_reader(&mut self) -> Result<(Reader, Place), ErrorCode> {
        let taken = match &mut self.state {
            State::Connected { reader, .. } => reader.take(),
            _ => None,
        };
        let reader = taken.ok_or_else(|| self.misplaced())?;
        Ok((reader, Arc::clone(&self.place)))
    }

    fn take_writer(&mut self) -> Result<(Writer, Place), ErrorCode> {
        let taken = match &mut self.state {
            State::Connected { writer, .. } => writer.take(),
            _ => None,
        };
        let writer = taken.ok_or_else(|| self.misplaced())?;
        Ok((writer, Arc::clone(&self.place)))
    }
}

impl State {
    fn connected(connection: Connection, place: &Place) -> State {
        let Connection { stream, local, remote } = connection;
        let (reader, writer) = split(stream, place);
        State::Connected { local, remote, reader: Some(reader), writer: Some(writer) }
    }
}

fn tcp<'a>(
    table: &'a mut ResourceTable,
    this: &Resource<TcpSocket>,
) -> SocketResult<&'a mut Socket> {
    table.get_mut(&as_ours::<TcpSocket, Socket>(this)).map_err(SocketError::trap)
}

/// What a stream says that has nothing to do yet; a guest that gives up is let go.
fn waits(finish: bool) -> Poll<wasmtime::Result<StreamResult>> {
    if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending }
}

fn code(kind: io::ErrorKind) -> ErrorCode {
    match kind {
        io::ErrorKind::BrokenPipe => ErrorCode::ConnectionBroken,
        other => io::Error::from(other).into(),
    }
}

/// The connections of a listener, as sockets.
struct Accepting<T> {
    listener: Listener,
    family: IpAddressFamily,
    options: Options,
    /// The next one was taken from the listener; it waits for its place.
    next: Option<Connection>,
    places: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
    /// The listener's own.
    _own: Place,
    view: for<'a> fn(&'a mut T) -> SocketsView<'a>,
}

impl<T> Accepting<T> {
    /// Ready when there are a connection and a place for it, with false when there will be none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.next.is_none() {
            self.next = ready!(self.listener.incoming.poll_recv(cx));
        }
        if self.next.is_some() && self.place.is_none() {
            self.place = ready!(self.places.poll_acquire(cx));
        }
        Poll::Ready(self.next.is_some() && self.place.is_some())
    }
}

impl<D: 'static> StreamProducer<D> for Accepting<D> {
    type Item = Resource<TcpSocket>;
    type Buffer = Option<Self::Item>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = self.get_mut();
        match this.poll_next(cx) {
            Poll::Pending => return waits(finish),
            Poll::Ready(false) => return Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(true) => {}
        }
        // The guest only asked whether there is one.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let (Some(connection), Some(place)) = (this.next.take(), this.place.take()) else {
            return waits(finish);
        };
        let (family, options) = (this.family, this.options);
        let place = Arc::new(place);
        let state = State::connected(connection, &place);
        let socket = Socket { state, family, options, place };
        let socket = (this.view)(store.data_mut()).table.push(socket)?;
        destination.set_buffer(Some(as_label(socket)));
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

/// What arrives on a connection.
struct Receiving {
    reader: Reader,
    /// Told how it ended.
    ended: Option<oneshot::Sender<Result<(), ErrorCode>>>,
    _place: Place,
}

impl Receiving {
    fn end(&mut self, how: Result<(), ErrorCode>) -> Poll<wasmtime::Result<StreamResult>> {
        if let Some(ended) = self.ended.take() {
            // The guest may not want to know.
            let _ = ended.send(how);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.reader.shut();
        let _ = self.end(Ok(()));
    }
}

impl<D: 'static> StreamProducer<D> for Receiving {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = self.get_mut();
        if this.reader.poll_fill(cx).is_pending() {
            return waits(finish);
        }
        if destination.remaining(store.as_context_mut()) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut into = destination.as_direct(store, PIECE_BYTES);
        match this.reader.take(into.remaining()) {
            Ok(0) => this.end(Ok(())),
            Ok(count) => {
                into.mark_written(count);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(kind) => this.end(Err(code(kind))),
        }
    }
}

/// What a guest sends on a connection.
struct Sending {
    writer: Writer,
    /// Told when nothing more is taken.
    ended: Option<oneshot::Sender<Result<(), ErrorCode>>>,
    _place: Place,
}

impl Sending {
    fn end(&mut self, how: Result<(), ErrorCode>) -> Poll<wasmtime::Result<StreamResult>> {
        if let Some(ended) = self.ended.take() {
            // The guest may not want to know.
            let _ = ended.send(how);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for Sending {
    /// The peer hears the end when the guest has closed its stream.
    fn drop(&mut self) {
        self.writer.shut();
        let _ = self.end(Ok(()));
    }
}

impl<D: 'static> StreamConsumer<D> for Sending {
    type Item = u8;

    fn poll_consume(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = self.get_mut();
        let room = match this.writer.poll_room(cx) {
            Poll::Pending => return waits(finish),
            Poll::Ready(Err(kind)) => return this.end(Err(code(kind))),
            Poll::Ready(Ok(room)) => room,
        };
        let mut source = source.as_direct(store);
        let bytes = source.remaining();
        let bytes = Bytes::copy_from_slice(&bytes[..bytes.len().min(room)]);
        // The guest only asked whether there is room.
        if bytes.is_empty() {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let count = bytes.len();
        match this.writer.put(bytes) {
            Ok(()) => {
                source.mark_read(count);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(kind) => this.end(Err(code(kind))),
        }
    }
}

impl<T: Send> HostTcpSocketWithStore<T> for HasSockets {
    async fn connect(
        store: &Accessor<T, Self>,
        socket: Resource<TcpSocket>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        let remote = SocketAddr::from(remote);
        let network = store.with(|mut access| -> SocketResult<_> {
            let view = access.get();
            let network = Arc::clone(&view.sockets.network);
            tcp(view.table, &socket)?.begin_connect(remote)?;
            Ok(network)
        })?;
        // A task, so that its time limits hold whatever else the guest does.
        let connecting = AbortOnDropHandle::new(tokio::spawn(network.connect(remote)));
        let ended = connecting.await.unwrap_or(Err(NetworkError::Unreachable));
        store.with(|mut access| -> SocketResult<()> {
            tcp(access.get().table, &socket)?.end_connect(ended)?;
            Ok(())
        })
    }

    async fn listen(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<StreamReader<Resource<TcpSocket>>> {
        let view = store.getter();
        let accepting = {
            let SocketsView { sockets, table } = store.get();
            let socket = tcp(table, &socket)?;
            let listener = socket.listen(&*sockets.network)?;
            let places = PollSemaphore::new(Arc::clone(&sockets.places));
            let (family, options, own) = (socket.family, socket.options, Arc::clone(&socket.place));
            let (next, place) = (None, None);
            Accepting { listener, family, options, next, places, place, _own: own, view }
        };
        StreamReader::new(&mut store, accepting).map_err(SocketError::trap)
    }

    fn send(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        let writer = tcp(store.get().table, &socket)?.take_writer();
        let (writer, place) = match writer {
            Ok(taken) => taken,
            Err(why) => {
                data.close(&mut store)?;
                return FutureReader::new(&mut store, async move { wasmtime::error::Ok(Err(why)) });
            }
        };
        let (ended, end) = oneshot::channel();
        data.pipe(
            &mut store,
            Sending { writer: writer.clone(), ended: Some(ended), _place: place },
        )?;
        FutureReader::new(&mut store, async move {
            let taken = end.await.unwrap_or(Ok(()));
            let sent = poll_fn(|cx| writer.poll_end(cx)).await.map_err(code);
            wasmtime::error::Ok(taken.and(sent))
        })
    }

    fn receive(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        let reader = tcp(store.get().table, &socket)?.take_reader();
        match reader {
            Ok((reader, place)) => {
                let (ended, end) = oneshot::channel();
                let receiving = Receiving { reader, ended: Some(ended), _place: place };
                let stream = StreamReader::new(&mut store, receiving)?;
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
            Err(why) => {
                let stream = StreamReader::new(&mut store, std::iter::empty())?;
                let end = async move { wasmtime::error::Ok(Err(why)) };
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
        }
    }
}

impl HostTcpSocket for SocketsView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let place = Arc::new(self.sockets.free_place()?);
        let options = Options::default();
        let socket = Socket { state: State::Unbound, family, options, place };
        Ok(as_label(self.table.push(socket).map_err(SocketError::trap)?))
    }

    async fn bind(
        &mut self,
        this: Resource<TcpSocket>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        let own = self.sockets.network.address();
        let socket = tcp(self.table, &this)?;
        if !matches!(socket.state, State::Unbound) {
            return Err(socket.misplaced().into());
        }
        socket.state = State::Bound(bindable(local.into(), own, socket.family)?);
        Ok(())
    }

    fn get_local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = tcp(self.table, &this)?;
        match &socket.state {
            State::Bound(local) | State::Listening(local) | State::Connected { local, .. } => {
                Ok((*local).into())
            }
            _ => Err(socket.misplaced().into()),
        }
    }

    fn get_remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = tcp(self.table, &this)?;
        match &socket.state {
            State::Connected { remote, .. } => Ok((*remote).into()),
            _ => Err(socket.misplaced().into()),
        }
    }

    fn get_is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(matches!(tcp(self.table, &this)?.state, State::Listening(_)))
    }

    fn get_address_family(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> wasmtime::Result<IpAddressFamily> {
        Ok(tcp(self.table, &this)?.family)
    }

    fn set_listen_backlog_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        tcp(self.table, &this)?;
        nonzero(value)?;
        Ok(())
    }

    fn get_keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(tcp(self.table, &this)?.options.keep_alive)
    }

    fn set_keep_alive_enabled(
        &mut self,
        this: Resource<TcpSocket>,
        value: bool,
    ) -> SocketResult<()> {
        tcp(self.table, &this)?.options.keep_alive = value;
        Ok(())
    }

    fn get_keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<Duration> {
        Ok(tcp(self.table, &this)?.options.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(
        &mut self,
        this: Resource<TcpSocket>,
        value: Duration,
    ) -> SocketResult<()> {
        tcp(self.table, &this)?.options.keep_alive_idle_ns = nonzero(value)?;
        Ok(())
    }

    fn get_keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<Duration> {
        Ok(tcp(self.table, &this)?.options.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(
        &mut self,
        this: Resource<TcpSocket>,
        value: Duration,
    ) -> SocketResult<()> {
        tcp(self.table, &this)?.options.keep_alive_interval_ns = nonzero(value)?;
        Ok(())
    }

    fn get_keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(tcp(self.table, &this)?.options.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        nonzero(u64::from(value))?;
        tcp(self.table, &this)?.options.keep_alive_count = value;
        Ok(())
    }

    fn get_hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(tcp(self.table, &this)?.options.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        nonzero(u64::from(value))?;
        tcp(self.table, &this)?.options.hop_limit = value;
        Ok(())
    }

    fn get_receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(tcp(self.table, &this)?.options.receive_buffer)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        tcp(self.table, &this)?.options.receive_buffer = nonzero(value)?;
        Ok(())
    }

    fn get_send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(tcp(self.table, &this)?.options.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        tcp(self.table, &this)?.options.send_buffer = nonzero(value)?;
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}
