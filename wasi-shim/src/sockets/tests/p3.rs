//! The sockets of WASI 0.3 as their bindings call them, each guest in a store of its own. What goes
//! through streams is tested with guests, in `crate::tests::sockets`.

use wasmtime::Store;
use wasmtime::component::{Accessor, Resource};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{
    ErrorCode as LookupError, HostWithStore as _,
};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket, HostUdpSocketWithStore,
    IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::SocketError;
use wasmtime_wasi::sockets::{TcpSocket, UdpSocket};

use super::{
    Arc, CLIENT, Cable, Guest, HasSockets, ResourceTable, SERVER, Semaphore, SocketAddr, Sockets,
    again, no_network,
};

const IPV4: IpAddressFamily = IpAddressFamily::Ipv4;

type View<'a> = &'a Accessor<Guest, HasSockets>;

fn code(error: SocketError) -> ErrorCode {
    error.downcast().expect("an error that the guest is told")
}

fn address(ip: [u8; 4], port: u16) -> IpSocketAddress {
    SocketAddr::from((ip, port)).into()
}

fn store(guest: Guest) -> Store<Guest> {
    let mut config = wasmtime::Config::new();
    config.wasm_component_model_async(true);
    Store::new(&wasmtime::Engine::new(&config).expect("an engine"), guest)
}

/// Does something as this guest.
async fn act<R>(store: &mut Store<Guest>, what: impl AsyncFnOnce(View<'_>) -> R) -> R {
    let done = store.run_concurrent(async move |accessor| {
        what(&accessor.with_getter::<HasSockets>(Guest::view)).await
    });
    done.await.expect("nothing traps")
}

fn tcp(view: View<'_>) -> Result<Resource<TcpSocket>, ErrorCode> {
    view.with(|mut access| HostTcpSocket::create(&mut access.get(), IPV4)).map_err(code)
}

async fn dial(view: View<'_>, to: IpSocketAddress) -> Result<(), ErrorCode> {
    let socket = tcp(view)?;
    let connected = HasSockets::connect(view, again(&socket), to).await;
    connected.map_err(code)?;
    let remote = view
        .with(|mut access| HostTcpSocket::get_remote_address(&mut access.get(), again(&socket)));
    assert_eq!(SocketAddr::from(remote.map_err(code)?), SocketAddr::from(to));
    let twice = HasSockets::connect(view, socket, to).await.map_err(code);
    assert!(matches!(twice, Err(ErrorCode::InvalidState)), "{twice:?}");
    Ok(())
}

async fn udp(store: &mut Store<Guest>, port: u16) -> Resource<UdpSocket> {
    let mut view = store.data_mut().view();
    let socket = HostUdpSocket::create(&mut view, IPV4).await.map_err(code).expect("a place");
    let any = address([0; 4], port);
    HostUdpSocket::bind(&mut view, again(&socket), any).await.map_err(code).expect("free");
    socket
}

#[tokio::test]
async fn connections_are_made_and_refused() {
    let cable = Cable::default();
    let mut client = store(Guest::new(&cable, CLIENT, 2));
    let mut server = Guest::new(&cable, SERVER, 8);
    act(&mut client, async |view| {
        let refused = dial(view, address(SERVER, 80)).await;
        assert!(matches!(refused, Err(ErrorCode::ConnectionRefused)), "{refused:?}");
    })
    .await;
    // A guest of WASI 0.2 listens: the network is one.
    use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
    let socket = server.bound(80).await;
    server.view().start_listen(again(&socket)).await.expect("the port is free");
    act(&mut client, async |view| {
        dial(view, address(SERVER, 80)).await.expect("it listens");
        let full = dial(view, address(SERVER, 80)).await;
        assert!(matches!(full, Err(ErrorCode::Other(Some(_)))), "both places are taken: {full:?}");
    })
    .await;
}

#[tokio::test]
async fn sockets_keep_to_their_own_address() {
    let cable = Cable::default();
    let mut guest = store(Guest::new(&cable, CLIENT, 8));
    act(&mut guest, async |view| {
        let broadcast = dial(view, address([255; 4], 80)).await;
        assert!(matches!(broadcast, Err(ErrorCode::InvalidArgument)), "{broadcast:?}");
    })
    .await;
    let mut guest = guest.into_data();
    let mut view = guest.view();
    let socket = HostTcpSocket::create(&mut view, IPV4).map_err(code).expect("there is a place");
    let foreign = HostTcpSocket::bind(&mut view, again(&socket), address(SERVER, 80)).await;
    assert!(matches!(foreign.map_err(code), Err(ErrorCode::AddressNotBindable)));
    let unbound = HostTcpSocket::get_local_address(&mut view, again(&socket)).map_err(code);
    assert!(matches!(unbound, Err(ErrorCode::InvalidState)));
    let any = HostTcpSocket::bind(&mut view, again(&socket), address([0; 4], 80)).await;
    any.map_err(code).expect("any address is its own");
    let bound = HostTcpSocket::get_local_address(&mut view, again(&socket)).map_err(code);
    assert_eq!(SocketAddr::from(bound.expect("bound")), SocketAddr::from((CLIENT, 80)));
    let twice = HostTcpSocket::bind(&mut view, again(&socket), address([0; 4], 81)).await;
    assert!(matches!(twice.map_err(code), Err(ErrorCode::InvalidState)));
    let zero = HostTcpSocket::set_hop_limit(&mut view, again(&socket), 0).map_err(code);
    assert!(matches!(zero, Err(ErrorCode::InvalidArgument)));
    HostTcpSocket::set_hop_limit(&mut view, again(&socket), 9).map_err(code).expect("kept");
    let kept = HostTcpSocket::get_hop_limit(&mut view, socket).map_err(code).expect("told");
    assert_eq!(kept, 9);
}

#[tokio::test]
async fn a_guest_without_a_network_reaches_nobody() {
    let sockets = Sockets { network: no_network(), places: Arc::new(Semaphore::new(8)) };
    let mut guest = store(Guest { sockets, table: ResourceTable::new() });
    act(&mut guest, async |view| {
        let denied = dial(view, address(SERVER, 80)).await;
        assert!(matches!(denied, Err(ErrorCode::AccessDenied)), "{denied:?}");
        let name = HasSockets::resolve_addresses(view, "web".to_owned()).await.expect("no trap");
        assert!(matches!(name, Err(LookupError::AccessDenied)), "{name:?}");
    })
    .await;
}

#[tokio::test]
async fn names_resolve() {
    let mut guest = store(Guest::new(&Cable::default(), CLIENT, 8));
    act(&mut guest, async |view| {
        let found = HasSockets::resolve_addresses(view, "10.0.0.1".to_owned()).await;
        let found = found.expect("no trap").expect("it is known");
        assert_eq!(
            found.into_iter().map(std::net::IpAddr::from).collect::<Vec<_>>(),
            [std::net::IpAddr::from(SERVER)]
        );
        let unknown = HasSockets::resolve_addresses(view, "nobody".to_owned()).await;
        assert!(matches!(unknown.expect("no trap"), Err(LookupError::NameUnresolvable)));
    })
    .await;
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let cable = Cable::default();
    let mut server = store(Guest::new(&cable, SERVER, 8));
    let mut client = store(Guest::new(&cable, CLIENT, 8));
    let (inbox, outbox) = (udp(&mut server, 53).await, udp(&mut client, 54).await);
    act(&mut client, async |view| {
        let send = async |data: &[u8], to| {
            let sent = <HasSockets as HostUdpSocketWithStore<Guest>>::send(
                view,
                again(&outbox),
                data.to_vec(),
                to,
            );
            sent.await.map_err(code)
        };
        let nowhere = send(b"x", None).await;
        assert!(matches!(nowhere, Err(ErrorCode::InvalidArgument)), "{nowhere:?}");
        send(b"one", Some(address(SERVER, 53))).await.expect("sent");
        let large = send(&[0; 70_000], Some(address(SERVER, 53))).await;
        assert!(matches!(large, Err(ErrorCode::DatagramTooLarge)), "{large:?}");
    })
    .await;
    let mut own = client.data_mut().view();
    let connected = HostUdpSocket::connect(&mut own, again(&outbox), address(SERVER, 53)).await;
    connected.map_err(code).expect("connected");
    act(&mut client, async |view| {
        let send = async |data: &[u8], to| {
            let sent = <HasSockets as HostUdpSocketWithStore<Guest>>::send(
                view,
                again(&outbox),
                data.to_vec(),
                to,
            );
            sent.await.map_err(code)
        };
        send(b"two", None).await.expect("sent");
        let other = send(b"x", Some(address(SERVER, 99))).await;
        assert!(matches!(other, Err(ErrorCode::InvalidArgument)), "{other:?}");
    })
    .await;
    act(&mut server, async |view| {
        // Two who wait at the same time: each gets one.
        let receive =
            || <HasSockets as HostUdpSocketWithStore<Guest>>::receive(view, again(&inbox));
        let (one, two) = tokio::join!(receive(), receive());
        let text = |got: Result<(Vec<u8>, IpSocketAddress), SocketError>| {
            let (data, from) = got.map_err(code).expect("a datagram");
            assert_eq!(SocketAddr::from(from), SocketAddr::from((CLIENT, 54)));
            String::from_utf8(data).expect("text")
        };
        assert_eq!((text(one).as_str(), text(two).as_str()), ("one", "two"));
    })
    .await;
}
