//! Sockets over a network of two guests in memory, called as the bindings call them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use wasmtime_wasi::p2::bindings::sockets::network::IpSocketAddress;
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::bindings::sockets::udp::OutgoingDatagram;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, Pollable, StreamError, TcpSocket};

use super::*;

mod p3;

type Ports = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Connection>>>>;
type Inboxes = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<(Bytes, SocketAddr)>>>>;

/// Guests that reach each other and nobody else.
#[derive(Clone, Default)]
struct Cable {
    ports: Ports,
    inboxes: Inboxes,
}

struct Plug(Cable, IpAddr);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network for Plug {
    fn address(&self) -> IpAddr {
        self.1
    }

    fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        name.parse().map(|address| vec![address]).map_err(|_| NetworkError::NoName)
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, Result<Connection, NetworkError>> {
        let local = SocketAddr::new(self.1, 40_000);
        let sender = lock(&self.0.ports).get(&to).cloned();
        Box::pin(async move {
            let sender = sender.ok_or(NetworkError::Refused)?;
            let (ours, theirs) = tokio::io::duplex(1024);
            let theirs = Connection { stream: Box::new(theirs), local: to, remote: local };
            sender.try_send(theirs).map_err(|_| NetworkError::Refused)?;
            Ok(Connection { stream: Box::new(ours), local, remote: to })
        })
    }

    fn listen(&self, at: SocketAddr) -> Result<Listener, NetworkError> {
        let mut ports = lock(&self.0.ports);
        if ports.contains_key(&at) {
            return Err(NetworkError::InUse);
        }
        let (sender, incoming) = mpsc::channel(4);
        ports.insert(at, sender);
        Ok(Listener { address: at, incoming, held: Box::new(()) })
    }

    fn datagrams(&self, at: SocketAddr) -> Result<Datagrams, NetworkError> {
        let (sender, incoming) = mpsc::channel(4);
        lock(&self.0.inboxes).insert(at, sender);
        let inboxes = self.0.inboxes.clone();
        let send = move |data, to| match lock(&inboxes).get(&to) {
            Some(inbox) => inbox.try_send((data, at)).map_err(|_| NetworkError::Refused),
            None => Ok(()),
        };
        Ok(Datagrams { address: at, incoming, send: Arc::new(send), held: Box::new(()) })
    }
}

/// A guest: its sockets and its table.
struct Guest {
    sockets: Sockets,
    table: ResourceTable,
}

impl Guest {
    fn new(cable: &Cable, address: [u8; 4], places: usize) -> Guest {
        let network = Arc::new(Plug(cable.clone(), IpAddr::from(address)));
        let sockets = Sockets { network, places: Arc::new(Semaphore::new(places)) };
        Guest { sockets, table: ResourceTable::new() }
    }

    fn view(&mut self) -> SocketsView<'_> {
        SocketsView { sockets: &mut self.sockets, table: &mut self.table }
    }

    /// What a guest gets by `instance-network`. Only its place in the table counts.
    fn capability(&mut self) -> Resource<Capability> {
        let mut context = wasmtime_wasi::sockets::WasiSocketsCtx::default();
        let mut view = wasmtime_wasi::sockets::WasiSocketsCtxView {
            ctx: &mut context,
            table: &mut self.table,
        };
        use wasmtime_wasi::p2::bindings::sockets::instance_network::Host as _;
        view.instance_network().expect("there is room")
    }

    async fn bound(&mut self, port: u16) -> Resource<TcpSocket> {
        use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
        let capability = self.capability();
        let mut view = self.view();
        let socket = view.create_tcp_socket(IpAddressFamily::Ipv4).expect("there is a place");
        let any = address([0, 0, 0, 0], port);
        view.start_bind(again(&socket), capability, any).await.expect("it is its own");
        view.finish_bind(again(&socket)).expect("it was begun");
        socket
    }

    async fn connect(
        &mut self,
        to: IpSocketAddress,
    ) -> Result<(Resource<DynInputStream>, Resource<DynOutputStream>), ErrorCode> {
        use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
        let capability = self.capability();
        let socket = self.view().create_tcp_socket(IpAddressFamily::Ipv4).map_err(code)?;
        self.view().start_connect(again(&socket), capability, to).map_err(code)?;
        let ours: &mut tcp::Socket = self.table.get_mut(&as_ours(&socket)).expect("ours");
        ours.ready().await;
        self.view().finish_connect(socket).map_err(code)
    }
}

fn code(error: SocketError) -> ErrorCode {
    error.downcast().expect("an error that the guest is told")
}

fn address(ip: [u8; 4], port: u16) -> IpSocketAddress {
    SocketAddr::from((ip, port)).into()
}

fn again<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

async fn read(guest: &mut Guest, input: &Resource<DynInputStream>) -> Result<Bytes, StreamError> {
    let input = guest.table.get_mut(input).expect("an input");
    input.ready().await;
    input.read(1 << 20)
}

fn write(guest: &mut Guest, output: &Resource<DynOutputStream>, bytes: &'static [u8]) {
    let output = guest.table.get_mut(output).expect("an output");
    assert!(output.check_write().expect("it is open") >= bytes.len());
    output.write(Bytes::from_static(bytes)).expect("it was permitted");
}

const SERVER: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];

#[tokio::test]
async fn connections_carry_bytes_and_their_end() {
    use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
    let cable = Cable::default();
    let (mut server, mut client) = (Guest::new(&cable, SERVER, 8), Guest::new(&cable, CLIENT, 8));
    let refused = client.connect(address(SERVER, 80)).await.expect_err("nobody listens");
    assert_eq!(refused, ErrorCode::ConnectionRefused);

    let socket = server.bound(80).await;
    server.view().start_listen(again(&socket)).await.expect("the port is free");
    server.view().finish_listen(again(&socket)).expect("it was begun");
    let early = server.view().accept(again(&socket)).map_err(code).expect_err("nobody is there");
    assert_eq!(early, ErrorCode::WouldBlock);

    let (input, output) = client.connect(address(SERVER, 80)).await.expect("it listens");
    let ours: &mut tcp::Socket = server.table.get_mut(&as_ours(&socket)).expect("ours");
    ours.ready().await;
    let (accepted, from_client, to_client) =
        server.view().accept(again(&socket)).map_err(code).expect("it is ready");
    let remote = server.view().remote_address(again(&accepted)).map_err(code).expect("known");
    assert_eq!(SocketAddr::from(remote), SocketAddr::from((CLIENT, 40_000)));

    write(&mut client, &output, b"ping");
    assert_eq!(read(&mut server, &from_client).await.expect("bytes"), "ping");
    // More than the network holds: it arrives although nobody looks at the writing end again.
    write(&mut server, &to_client, &[7; 10_000]);
    server.view().shutdown(accepted, ShutdownType::Send).map_err(code).expect("it is connected");
    let mut received = 0;
    let end = loop {
        match read(&mut client, &input).await {
            Ok(bytes) => received += bytes.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 10_000);
    assert!(matches!(end, StreamError::Closed));
}

#[tokio::test]
async fn sockets_are_bounded_and_keep_to_their_own_address() {
    use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
    let cable = Cable::default();
    let mut guest = Guest::new(&cable, CLIENT, 1);
    let capability = guest.capability();
    let socket = guest.view().create_tcp_socket(IpAddressFamily::Ipv4).map_err(code);
    let socket = socket.expect("there is one place");
    let second = guest.view().create_tcp_socket(IpAddressFamily::Ipv4).map_err(code);
    assert_eq!(second.expect_err("there is no second"), ErrorCode::NewSocketLimit);
    let foreign = address(SERVER, 80);
    let bound = guest.view().start_bind(again(&socket), capability, foreign).await;
    assert_eq!(bound.map_err(code).expect_err("another's"), ErrorCode::AddressNotBindable);
    let unbound = guest.view().start_listen(again(&socket)).await;
    assert_eq!(unbound.map_err(code).expect_err("not bound"), ErrorCode::InvalidState);
    guest.view().drop(socket).expect("it is there");
    guest.view().create_tcp_socket(IpAddressFamily::Ipv4).map_err(code).expect("free again");
}

/// Else whoever writes to peers that do not read, and leaves, has as many connections as it likes.
#[tokio::test]
async fn what_is_still_being_written_keeps_its_place() {
    use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
    let cable = Cable::default();
    let (mut server, mut client) = (Guest::new(&cable, SERVER, 8), Guest::new(&cable, CLIENT, 1));
    let socket = server.bound(80).await;
    server.view().start_listen(socket).await.expect("the port is free");
    let (_, output) = client.connect(address(SERVER, 80)).await.expect("it listens");
    write(&mut client, &output, &[7; 10_000]);
    // The guest has dropped all that it had; then its peer does.
    client.table = ResourceTable::new();
    let second = client.view().create_tcp_socket(IpAddressFamily::Ipv4).map_err(code);
    assert_eq!(second.expect_err("it is taken"), ErrorCode::NewSocketLimit);
    server.table = ResourceTable::new();
    while client.sockets.places.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_guest_without_a_network_reaches_nobody() {
    let sockets = Sockets { network: no_network(), places: Arc::new(Semaphore::new(8)) };
    let mut guest = Guest { sockets, table: ResourceTable::new() };
    let denied = guest.connect(address(SERVER, 80)).await.expect_err("denied");
    assert_eq!(denied, ErrorCode::AccessDenied);
    let broadcast = guest.connect(address([255; 4], 80)).await.expect_err("many machines");
    assert_eq!(broadcast, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn datagrams_arrive_from_whom_the_socket_speaks_with() {
    use wasmtime_wasi::p2::bindings::sockets::udp::{
        HostIncomingDatagramStream as _, HostOutgoingDatagramStream as _, HostUdpSocket,
    };
    let cable = Cable::default();
    let mut ends = Vec::new();
    for ip in [SERVER, CLIENT] {
        let mut guest = Guest::new(&cable, ip, 8);
        let capability = guest.capability();
        let created = guest.view().create_udp_socket(IpAddressFamily::Ipv4).await;
        let socket = created.map_err(code).expect("there is a place");
        let any = address([0, 0, 0, 0], 53);
        let view = &mut guest.view();
        HostUdpSocket::start_bind(view, again(&socket), capability, any).await.expect("free");
        HostUdpSocket::finish_bind(view, again(&socket)).expect("it was begun");
        let streams = view.stream(socket, None).await.map_err(code).expect("it is bound");
        ends.push((guest, streams));
    }
    let (mut client, (_, outgoing)) = ends.pop().expect("two");
    let (mut server, (incoming, _)) = ends.pop().expect("two");
    let none = server.view().receive(again(&incoming), 4).map_err(code).expect("open");
    assert!(none.is_empty());
    let datagram = |data: &[u8]| OutgoingDatagram {
        data: data.to_vec(),
        remote_address: Some(address(SERVER, 53)),
    };
    client.view().check_send(again(&outgoing)).map_err(code).expect("open");
    let sent = client.view().send(again(&outgoing), vec![datagram(b"one"), datagram(b"two")]);
    assert_eq!(sent.map_err(code).expect("they fit"), 2);
    let all = server.view().receive(again(&incoming), 4).map_err(code).expect("open");
    let texts: Vec<&[u8]> = all.iter().map(|it| it.data.as_slice()).collect();
    assert_eq!(texts, [b"one", b"two"]);
    let again_unpermitted = client.view().send(again(&outgoing), vec![datagram(b"x")]);
    assert!(again_unpermitted.is_err(), "each call needs a permit");
}
