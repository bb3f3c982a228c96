//! What is tried again, and with what.

use http_body_util::{BodyExt, Empty};

use super::*;
use crate::{
    protocol::{RoutePort, ServiceKey, ServiceRoute, Services},
    worker::{balance::Load, network::Router, peers::Peers},
};

#[test]
fn refusals_survive_the_way_between_workers() {
    let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
    let refusals = [
        (Refusal::Gone(address), 503, true),
        (Refusal::Busy, 503, true),
        (Refusal::Deadline, 504, false),
        (Refusal::OutOfMemory, 502, false),
        (Refusal::Failed, 502, false),
        (Refusal::BadRequest, 400, false),
        (Refusal::Incomplete, 400, false),
        (Refusal::Broken(address), 502, false),
        (
            Refusal::Denied { direction: Direction::Egress, why: "no: because".to_owned() },
            403,
            true,
        ),
    ];
    for (refusal, status, unsent) in refusals {
        assert_eq!(Refusal::from_word(&refusal.word(), address), refusal);
        assert_eq!((refusal.status().as_u16(), refusal.is_unsent()), (status, unsent));
    }
    // Nobody can be asked there from elsewhere either.
    let unconnected = Refusal::Unconnected { to: address, why: "refused".to_owned(), late: false };
    assert_eq!(Refusal::from_word(&unconnected.word(), address), Refusal::Gone(address));
    assert_eq!((unconnected.status().as_u16(), unconnected.is_unsent()), (502, true));
    // Whose body broke off says nothing of the endpoint; who broke the connection off does.
    assert!(!Refusal::Incomplete.is_failure() && Refusal::Broken(address).is_failure());
    let newer = HeaderValue::from_static("tired");
    assert_eq!(Refusal::from_word(&newer, address), Refusal::Failed);
}

/// A request as it goes to a peer: method, URI and headers.
#[track_caller]
fn check_remote(request: http::request::Builder, expected: &str) {
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let nothing = Body::new(Empty::new().map_err(|never| match never {}));
    let to = "10.0.0.1:80".parse().expect("an address");
    let mut sent = remote(parts, nothing, to, HeaderValue::from_static("me"));
    assert_eq!(sent.headers_mut().remove(FROM_HEADER), Some(HeaderValue::from_static("me")));
    let mut lines: Vec<String> = sent
        .headers()
        .iter()
        .map(|(name, value)| format!("\n{name}: {}", value.to_str().expect("text")))
        .collect();
    lines.sort();
    assert_eq!(format!("{} {}{}", sent.method(), sent.uri(), lines.concat()), expected);
}

#[test]
fn requests_to_peers_are_absolute_and_name_the_pod() {
    let get = || Request::get("/a?b=c");
    check_remote(
        get().header("host", "shop.example:8080").header("x", "1"),
        "GET http://shop.example:8080/a?b=c\nwherry-pod: 10.0.0.1:80\nx: 1",
    );
    // Nobody but the sender says which Pod is meant.
    check_remote(
        get().header("wherry-pod", "10.0.0.9:1"),
        "GET http://10.0.0.1:80/a?b=c\nwherry-pod: 10.0.0.1:80",
    );
    check_remote(Request::options("http://cart"), "OPTIONS http://cart/\nwherry-pod: 10.0.0.1:80");
    // Nor what it is between workers.
    check_remote(
        get().header("wherry-stream", "10.0.0.9:1").header("wherry-from", "{}"),
        "GET http://10.0.0.1:80/a?b=c\nwherry-pod: 10.0.0.1:80",
    );
    check_remote(
        get().header("host", "no authority"),
        "GET http://10.0.0.1:80/a?b=c\nwherry-pod: 10.0.0.1:80",
    );
}

#[tokio::test]
async fn grpc_is_spoken_in_http_2_to_who_listens() {
    use http_body_util::Full;
    use hyper::{server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let here = Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let switch = Switch::new(here);
    let server: SocketAddr = "10.0.0.1:50051".parse().expect("an address");
    let mut listener = switch.ports.listen(server.ip(), server).expect("it is free");
    let serving = tokio::spawn(async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let uri = Bytes::from(request.uri().to_string());
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(uri)))
        });
        let connection = listener.incoming.recv().await.expect("a connection");
        let stream = TokioIo::new(connection.stream);
        http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
    });
    let nothing = Body::new(Empty::new().map_err(|never| match never {}));
    let request = Request::post("http://cart:50051/shop.Cart/Get")
        .header("content-type", "application/grpc+proto")
        .body(nothing)
        .expect("a request");
    let answer = switch.exchange(server, request, None).await.expect("an answer");
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(text, "http://cart:50051/shop.Cart/Get");
    serving.abort();
}

/// Over HTTP/2 nobody but the body itself says whose fault it was.
#[tokio::test]
async fn a_body_that_breaks_off_is_no_fault_of_the_endpoint() {
    use http_body_util::StreamBody;
    use hyper::{server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use wherry_wasi_shim::BodyError;

    let here = Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let switch = Switch::new(here);
    let address: SocketAddr = "10.0.0.1:50051".parse().expect("an address");
    let mut listener = switch.ports.listen(address.ip(), address).expect("it is free");
    let serving = tokio::spawn(async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            request.into_body().collect().await.map(|_| http::Response::new(Empty::<Bytes>::new()))
        });
        let connection = listener.incoming.recv().await.expect("a connection");
        let stream = TokioIo::new(connection.stream);
        http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
    });
    let half = Ok(http_body::Frame::data(Bytes::from_static(b"half")));
    let pieces = futures::stream::iter([half, Err(BodyError::new("the client is gone"))]);
    let request = Request::post("http://cart:50051/").header("content-type", "application/grpc");
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let endpoint = Endpoint { address, place: Place::Local, load: Arc::default() };
    let caller = Caller::outside([192, 0, 2, 7].into());
    let body = Replay::new(StreamBody::new(pieces));
    let sent = switch.send(&caller, &Destination::Pod(endpoint), parts, body).await;
    assert_eq!(sent.err(), Some(Refusal::Incomplete));
    serving.abort();
}

#[tokio::test]
async fn what_is_sent_is_counted_with_its_service() {
    let key = |name: &str| ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() };
    let port = RoutePort {
        name: String::new(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: None,
        endpoints: Vec::new(),
    };
    let cluster_ips = vec![IpAddr::from([10, 96, 0, 1])];
    let cart = ServiceRoute {
        key: key("cart"),
        cluster_ips,
        ports: vec![port],
        ..ServiceRoute::default()
    };
    let here = Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let mut router = Router::new(here.clone(), Peers::default());
    router.apply(Services::Replace(vec![cart]));
    let switch = Switch::new(here);
    switch.publish_table(router.table());
    let destination = switch.resolve("cart", 80).expect("it has this port");
    let (parts, ()) = Request::get("/").body(()).expect("a request").into_parts();
    let caller = Caller::outside([192, 0, 2, 7].into());
    let nothing = Replay::new(Empty::<Bytes>::new());
    let sent = switch.send(&caller, &destination, parts, nothing).await;
    assert_eq!(sent.err().map(|refusal| refusal.status().as_u16()), Some(503));
    // A new table goes on counting.
    router.apply(Services::Upsert(Vec::new()));
    switch.publish_table(router.table());
    let told = switch.traffic.tell(&switch.table());
    let pair = "source=\"outside\",service=\"shop/cart\",port=\"80\"";
    assert_eq!(told["wherry_requests_total"], [format!("{{{pair},code=\"5xx\"}} 1")]);
    let times = told["wherry_request_duration_seconds"].last();
    assert_eq!(times, Some(&format!("_count{{{pair}}} 1")));
}

/// If they did not, the Pods of this worker would always seem to be the ones with the least to do.
#[tokio::test]
async fn connections_to_pods_of_this_worker_count_as_those_to_others_do() {
    let here = Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let switch = Arc::new(Switch::new(here));
    let address: SocketAddr = "10.0.0.1:9000".parse().expect("an address");
    let _listener = switch.ports.listen(address.ip(), address).expect("it is free");
    let load = Arc::<Load>::default();
    let pod = Endpoint { address, place: Place::Local, load: load.clone() };
    let caller = Caller::outside([192, 0, 2, 7].into());
    let from = SocketAddr::from(([192, 0, 2, 7], 4000));
    let opened = switch.open(&caller, &Destination::Pod(pod), from).await.expect("it listens");
    assert_eq!(load.open(), 1);
    drop(opened);
    assert_eq!(load.open(), 0);
}

#[test]
fn requests_that_fail_together_leave_an_endpoint_out_once() {
    let here = Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let switch = Switch::new(here);
    let endpoint = |last: u8| Endpoint {
        address: SocketAddr::from(([10, 0, 0, last], 80)),
        place: Place::Local,
        load: Arc::default(),
    };
    let destination = Destination::Stray(Arc::new((1..=8).map(endpoint).collect()));
    let caller = Caller::outside([192, 0, 2, 7].into());
    for _ in 0..40 {
        switch.learn(&destination, &caller, 0, Some(&Refusal::Failed));
    }
    let load = &destination.endpoints()[0].load;
    // For 5 s, as the first time.
    assert!(load.was_out() && !load.is_out(switch.now_ms() + 6_000));
}
