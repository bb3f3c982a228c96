//! TCP, UDP and names, by `wasi:sockets`. Each operation waits by itself; others go on meanwhile.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use std::rc::Rc;
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::{
    IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use wasip2::sockets::udp_create_socket::create_udp_socket;

use crate::io::{Input, Output};
use crate::runtime::ready;

/// What one read asks for.
const CHUNK: u64 = 32 << 10;
/// Datagrams that are taken at once.
const DATAGRAMS_MAX: u64 = 16;

/// A connection: what comes and what goes. Dropping both ends it.
pub struct Connection {
    pub peer: Option<SocketAddr>,
    pub input: Input,
    pub output: Output,
}

/// The reading end.
pub struct Receiver {
    stream: RefCell<Option<InputStream>>,
    /// What the stream is of, dropped after it.
    _owner: Rc<dyn Any>,
}

/// The writing end; the peer reads the end of the stream when it is dropped.
pub struct Sender {
    stream: RefCell<Option<OutputStream>>,
    socket: Rc<TcpSocket>,
}

fn failed(code: ErrorCode) -> io::Error {
    use io::ErrorKind as K;
    let kind = match code {
        ErrorCode::AccessDenied => K::PermissionDenied,
        ErrorCode::ConnectionRefused => K::ConnectionRefused,
        ErrorCode::ConnectionReset => K::ConnectionReset,
        ErrorCode::ConnectionAborted => K::ConnectionAborted,
        ErrorCode::Timeout => K::TimedOut,
        ErrorCode::RemoteUnreachable => K::HostUnreachable,
        ErrorCode::AddressInUse => K::AddrInUse,
        ErrorCode::AddressNotBindable => K::AddrNotAvailable,
        ErrorCode::NameUnresolvable => return io::Error::other("Name does not resolve"),
        code => return io::Error::other(code.name().replace('-', " ")),
    };
    kind.into()
}

fn broken(error: StreamError) -> io::Error {
    match error {
        StreamError::Closed => io::ErrorKind::BrokenPipe.into(),
        StreamError::LastOperationFailed(_) => io::ErrorKind::ConnectionReset.into(),
    }
}

fn to_wasi(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) })
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port: v6.port(),
                flow_info: v6.flowinfo(),
                address: (a, b, c, d, e, f, g, h),
                scope_id: v6.scope_id(),
            })
        }
    }
}

fn from_wasi(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(v4) => {
            SocketAddr::new(from_wasi_ip(IpAddress::Ipv4(v4.address)), v4.port)
        }
        IpSocketAddress::Ipv6(v6) => {
            SocketAddr::new(from_wasi_ip(IpAddress::Ipv6(v6.address)), v6.port)
        }
    }
}

fn from_wasi_ip(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
    }
}

fn family(address: IpAddr) -> IpAddressFamily {
    match address {
        IpAddr::V4(_) => IpAddressFamily::Ipv4,
        IpAddr::V6(_) => IpAddressFamily::Ipv6,
    }
}

/// The addresses of a name.
pub async fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    let addresses = resolve_addresses(&instance_network(), name).map_err(failed)?;
    let mut found = Vec::new();
    loop {
        match addresses.resolve_next_address() {
            Ok(Some(address)) => found.push(from_wasi_ip(address)),
            Ok(None) if found.is_empty() => return Err(failed(ErrorCode::NameUnresolvable)),
            Ok(None) => return Ok(found),
            Err(ErrorCode::WouldBlock) => ready(addresses.subscribe()).await,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The Pod's own address, as a socket of its own tells it.
pub fn own_address() -> Option<IpAddr> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4).ok()?;
    let any = to_wasi(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    socket.start_bind(&instance_network(), any).ok()?;
    socket.finish_bind().ok()?;
    Some(from_wasi(socket.local_address().ok()?).ip()).filter(|address| !address.is_unspecified())
}

/// Connects to the first address of `host` that answers.
pub async fn connect(host: &str, port: u16) -> io::Result<Connection> {
    let mut last = failed(ErrorCode::NameUnresolvable);
    for address in lookup(host).await? {
        match connect_to(SocketAddr::new(address, port)).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr) -> io::Result<Connection> {
    let socket = create_tcp_socket(family(address.ip())).map_err(failed)?;
    socket.start_connect(&instance_network(), to_wasi(address)).map_err(failed)?;
    loop {
        match socket.finish_connect() {
            Ok((input, output)) => return Ok(connection(socket, input, output, Some(address))),
            Err(ErrorCode::WouldBlock) => ready(socket.subscribe()).await,
            Err(error) => return Err(failed(error)),
        }
    }
}

fn connection(
    socket: TcpSocket,
    input: InputStream,
    output: OutputStream,
    peer: Option<SocketAddr>,
) -> Connection {
    let socket = Rc::new(socket);
    let receiver = Receiver::new(input, socket.clone());
    let sender = Sender { stream: RefCell::new(Some(output)), socket };
    Connection { peer, input: Input::stream(receiver), output: Output::stream(sender) }
}

/// A listening socket.
pub struct Listener(TcpSocket);

impl Listener {
    /// Listens on a port of the Pod.
    pub async fn bind(port: u16) -> io::Result<Listener> {
        let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(failed)?;
        let any = to_wasi(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        socket.start_bind(&instance_network(), any).map_err(failed)?;
        socket.finish_bind().map_err(failed)?;
        socket.start_listen().map_err(failed)?;
        socket.finish_listen().map_err(failed)?;
        Ok(Listener(socket))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            match self.0.accept() {
                Ok((socket, input, output)) => {
                    let peer = socket.remote_address().ok().map(from_wasi);
                    return Ok(connection(socket, input, output, peer));
                }
                Err(ErrorCode::WouldBlock) => ready(self.0.subscribe()).await,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Receiver {
    /// What comes from a stream of `owner`.
    pub fn new(stream: InputStream, owner: Rc<dyn Any>) -> Receiver {
        Receiver { stream: RefCell::new(Some(stream)), _owner: owner }
    }

    /// Some bytes; none at the end.
    pub async fn read(&self) -> io::Result<Bytes> {
        loop {
            let Some(pollable) = self.stream.borrow().as_ref().map(InputStream::subscribe) else {
                return Ok(Bytes::new());
            };
            ready(pollable).await;
            let read = self.stream.borrow().as_ref().map(|stream| stream.read(CHUNK));
            match read {
                None | Some(Err(StreamError::Closed)) => return Ok(Bytes::new()),
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Ok(Bytes::from(bytes)),
                Some(Err(error)) => return Err(broken(error)),
            }
        }
    }
}

impl Sender {
    /// Hands all of it over to the host.
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(pollable) = self.stream.borrow().as_ref().map(OutputStream::subscribe) else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            ready(pollable).await;
            let stream = self.stream.borrow();
            let Some(stream) = stream.as_ref() else { return Ok(()) };
            let room = usize::try_from(stream.check_write().map_err(broken)?).unwrap_or(0);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if !now.is_empty() {
                stream.write(now).map_err(broken)?;
            }
            bytes = later;
        }
        if let Some(stream) = self.stream.borrow().as_ref() {
            stream.flush().map_err(broken)?;
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The peer may be gone already.
        let _ = self.socket.shutdown(ShutdownType::Send);
        self.stream.take();
    }
}

/// A UDP socket of the Pod.
pub struct Datagrams {
    incoming: IncomingDatagramStream,
    outgoing: OutgoingDatagramStream,
    _socket: UdpSocket,
}

impl Datagrams {
    /// Bound to a port, or to any for 0.
    pub async fn bind(port: u16) -> io::Result<Datagrams> {
        let socket = create_udp_socket(IpAddressFamily::Ipv4).map_err(failed)?;
        let any = to_wasi(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        socket.start_bind(&instance_network(), any).map_err(failed)?;
        socket.finish_bind().map_err(failed)?;
        let (incoming, outgoing) = socket.stream(None).map_err(failed)?;
        Ok(Datagrams { incoming, outgoing, _socket: socket })
    }

    /// The next datagrams and who sent them.
    pub async fn receive(&self) -> io::Result<Vec<(Vec<u8>, SocketAddr)>> {
        loop {
            let found = self.incoming.receive(DATAGRAMS_MAX).map_err(failed)?;
            if !found.is_empty() {
                let pair = |it: wasip2::sockets::udp::IncomingDatagram| {
                    (it.data, from_wasi(it.remote_address))
                };
                return Ok(found.into_iter().map(pair).collect());
            }
            ready(self.incoming.subscribe()).await;
        }
    }

    pub async fn send(&self, data: Vec<u8>, to: SocketAddr) -> io::Result<()> {
        let datagram = [OutgoingDatagram { data, remote_address: Some(to_wasi(to)) }];
        loop {
            if self.outgoing.check_send().map_err(failed)? > 0
                && self.outgoing.send(&datagram).map_err(failed)? > 0
            {
                return Ok(());
            }
            ready(self.outgoing.subscribe()).await;
        }
    }
}
