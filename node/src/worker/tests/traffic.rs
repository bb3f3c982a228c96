//! Node ports, peers, and requests through them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use http::Request;
use http_body_util::{BodyExt, Empty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use wherry_wasi_shim::Body;

use super::{
    super::{
        peers::{PeerKey, Peers},
        switch::{POD_HEADER, REFUSED_HEADER},
        tls::Credentials,
    },
    harness::*,
};
use crate::protocol::{
    HealthPort, NodePort, NodeRoute, Nodes, Protocol, RoutePort, ServiceKey, ServiceRoute,
    Services, ToAgent, ToWorker,
};

/// One request on a connection of its own; the whole response as text.
pub async fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("read");
    response
}

pub async fn node_port(agent: &mut Agent) -> NodePort {
    agent
        .hear_until(|message| match message {
            ToAgent::NodePort(node_port) => Some(node_port),
            _ => None,
        })
        .await
}

pub async fn peer_address(agent: &mut Agent) -> SocketAddr {
    agent
        .hear_until(|message| match message {
            ToAgent::PeerListening { address } => Some(address),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_port_opens_explains_itself_and_closes() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let port = free_port();
    // Of another namespace, on the same node: not this worker's business.
    agent.say(service(("bank", "api"), Some(free_port()), &[])).await;
    agent.say(service(("shop", "cart"), Some(port), &[])).await;
    let expected = NodePort { service: "cart".to_owned(), port, bound: true, error: None };
    assert_eq!(node_port(&mut agent).await, expected);
    let response = get(port, "/").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    let why = format!(
        "503 Service Unavailable\n\nService shop/cart (node port {port}) cannot answer: \
         Service shop/cart has no ready Pod.\n"
    );
    assert!(response.ends_with(&why), "{response}");
    // An endpoint that is not there, and one that nobody knows the worker of.
    let endpoints =
        [("10.0.0.9:80", "shop", "node-1", None), ("10.0.32.1:80", "shop", "node-2", None)];
    agent.say(service(("shop", "cart"), Some(port), &endpoints)).await;
    agent.say(ToWorker::RemovePod { uid: "done".to_owned() }).await;
    agent.hear_until(|message| matches!(message, ToAgent::PodRemoved { .. }).then_some(())).await;
    let response = get(port, "/").await;
    let why = "no Pod answers at 10.0.0.9:80: it is gone, or listens at other ports.\n";
    assert!(response.ends_with(why), "{response}");

    let key = ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() };
    agent.say(ToWorker::Services(Services::Remove(vec![key]))).await;
    assert!(!node_port(&mut agent).await.bound);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn balancers_ask_whether_a_node_has_pods() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let port = free_port();
    let route = |endpoints| ServiceRoute {
        key: ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() },
        health: Some(HealthPort { port, endpoints }),
        ..ServiceRoute::default()
    };
    let cases = [
        (0, "HTTP/1.1 503 ", "x-load-balancing-endpoint-weight: 0\r\n"),
        (2, "HTTP/1.1 200 ", "x-load-balancing-endpoint-weight: 2\r\n"),
    ];
    for (endpoints, status, weight) in cases {
        agent.say(ToWorker::Services(Services::Replace(vec![route(endpoints)]))).await;
        if endpoints == 0 {
            assert!(node_port(&mut agent).await.bound);
        } else {
            agent.say(ToWorker::RemovePod { uid: "done".to_owned() }).await;
            let done = |message| matches!(message, ToAgent::PodRemoved { .. }).then_some(());
            agent.hear_until(done).await;
        }
        let response = get(port, "/healthz").await;
        assert!(response.starts_with(status) && response.contains(weight), "{response}");
        let told = format!("\"localEndpoints\":{endpoints}");
        assert!(response.contains(&told), "{response}");
    }
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_node_port_is_reported_and_tried_again() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("its address").port();
    agent.say(service(("shop", "cart"), Some(port), &[])).await;
    let refused = node_port(&mut agent).await;
    assert!(refused.error.is_some_and(|why| why.contains("in use")));
    drop(taken);
    assert!(node_port(&mut agent).await.bound);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancers_address_that_another_machine_may_have_is_no_failure() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let route = ServiceRoute {
        key: ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() },
        balancer_ips: vec!["192.0.2.80".parse().expect("an address")],
        ports: vec![RoutePort {
            name: String::new(),
            port: 8080,
            protocol: Protocol::Tcp,
            node_port: None,
            endpoints: Vec::new(),
        }],
        ..ServiceRoute::default()
    };
    agent.say(ToWorker::Services(Services::Replace(vec![route]))).await;
    let alone = node_port(&mut agent).await;
    assert!(!alone.bound && alone.error.is_some(), "{alone:?}");
    let node = |name: &str| NodeRoute {
        name: name.to_owned(),
        pod_cidrs: Vec::new(),
        workers: BTreeMap::new(),
    };
    agent.say(ToWorker::Nodes(Nodes::Replace(vec![node("node-1"), node("node-2")]))).await;
    let among_others = node_port(&mut agent).await;
    assert_eq!((among_others.bound, among_others.error), (false, None));
    fixture.stop(agent).await;
}

/// What a peer answers to a request for this Pod, or why it cannot be reached.
async fn ask(peers: &Peers, key: PeerKey, pod: &str) -> String {
    let body = Body::new(Empty::new().map_err(|never| match never {}));
    let request = Request::get("http://cart/").header(POD_HEADER, pod).body(body);
    match peers.get(key).send(request.expect("a request")).await {
        Ok((response, _)) => {
            let word = response.headers().get(REFUSED_HEADER);
            format!("{} {:?}", response.status(), word.expect("no guest is there"))
        }
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_know_each_other_by_certificate() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let authority = Authority::new();
    agent.say(ToWorker::Identity(authority.issue("node-1", "shop"))).await;
    let address = peer_address(&mut agent).await;
    let identified = |identity| {
        let peers = Peers::default();
        peers.identify(Arc::new(Credentials::new(&identity).expect("an identity")));
        peers
    };
    let key = |node: &str, namespace: &str| PeerKey {
        address,
        namespace: namespace.to_owned(),
        node: node.to_owned(),
    };

    let peers = identified(authority.issue("node-2", "bank"));
    let answer = ask(&peers, key("node-1", "shop"), "10.0.0.1:80").await;
    assert_eq!(answer, "503 Service Unavailable \"gone\"");
    let answer = ask(&peers, key("node-1", "shop"), "nonsense").await;
    assert_eq!(answer, "400 Bad Request \"invalid\"");
    // The worker at that address is not the one that was meant.
    let answer = ask(&peers, key("node-1", "bank"), "10.0.0.1:80").await;
    let expected = "cannot be reached: it is the worker of namespace shop on node node-1";
    assert!(answer.ends_with(expected), "{answer}");
    // Somebody else's authority: neither side takes the other.
    let stranger = identified(Authority::new().issue("node-2", "bank"));
    let answer = ask(&stranger, key("node-1", "shop"), "10.0.0.1:80").await;
    assert!(answer.contains("cannot be reached: TLS handshake"), "{answer}");
    // A certificate that names nobody cannot even be used.
    let nameless = Credentials::new(&authority.issue("node-2", ""));
    assert_eq!(
        nameless.err().map(|error| error.to_string()).as_deref(),
        Some("a traffic certificate does not name one namespace")
    );

    // The state of a new agent tells the listener.
    let mut successor = fixture.connect(&fixture.hello).await;
    let state = successor.state().await;
    assert_eq!(state.peer, Some(address));
    assert!(state.identity_until.is_some());
    fixture.stop(successor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_no_connection_reaches_is_reached_through_a_member() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let authority = Authority::new();
    agent.say(ToWorker::Identity(authority.issue("node-1", "shop"))).await;
    let there = peer_address(&mut agent).await;
    let peers = Peers::default();
    let identity = authority.issue("node-2", "bank");
    peers.identify(Arc::new(Credentials::new(&identity).expect("an identity")));
    let relays = peers.relays().clone();
    relays.serve();
    // What the agents and a member do: bytes to the listener of the worker that was asked for.
    let member = tokio::spawn({
        let relays = relays.clone();
        async move {
            let wanted = relays.asked().await;
            assert_eq!((wanted.node.as_str(), wanted.namespace.as_str()), ("node-1", "shop"));
            let (near, mut far) = UnixStream::pair().expect("a pair");
            relays.opened(wanted.id, Ok(near));
            let mut worker = TcpStream::connect(there).await.expect("it listens");
            // The worker ends it as it likes.
            let _ = tokio::io::copy_bidirectional(&mut far, &mut worker).await;
        }
    });
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (node, namespace) = ("node-1".to_owned(), "shop".to_owned());
    let key = PeerKey { address: nobody, namespace, node };
    // A table holds it as long as it names it, and with it its connections.
    let held = peers.get(key.clone());
    let answer = ask(&peers, key.clone(), "10.0.0.1:80").await;
    assert_eq!(answer, "503 Service Unavailable \"gone\"", "its worker has answered");
    // The connection serves the next request as well: nobody is asked for another one.
    let answer = ask(&peers, key, "nonsense").await;
    assert_eq!(answer, "400 Bad Request \"invalid\"");
    drop((peers, held));
    fixture.stop(agent).await;
    member.await.expect("the relay has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_peer_is_a_bad_gateway() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    agent.say(ToWorker::Identity(Authority::new().issue("node-1", "shop"))).await;
    peer_address(&mut agent).await;
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let port = free_port();
    let endpoint = ("10.0.32.1:80", "shop", "node-2", Some(nobody));
    agent.say(service(("shop", "cart"), Some(port), &[endpoint])).await;
    assert!(node_port(&mut agent).await.bound);
    let response = get(port, "/").await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    let expected = format!(
        "the worker of namespace shop on node node-2 at {nobody} cannot be reached: connect: \
         Connection refused (os error 111).\n"
    );
    assert!(response.ends_with(&expected), "{response}");
    fixture.stop(agent).await;
}
