//! A request through a worker, as a collector of traces sees it.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{super::trace::tests::collector, guests::serve_hello, harness::*, traffic::node_port};
use crate::protocol::{Hello, Tracing};

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_a_worker_into_its_guest() {
    let (endpoint, mut received) = collector().await;
    let (fixture, _first) = Fixture::start("shop").await;
    let tracing = Some(Tracing { endpoint, headers: Vec::new(), ratio: 0.0 });
    let mut agent = fixture.connect(&Hello { tracing, ..fixture.hello.clone() }).await;
    agent.state().await;
    if !serve_hello(&fixture, &mut agent, ("web", "10.0.0.1")).await {
        return fixture.stop(agent).await;
    }
    let port = free_port();
    let endpoint = ("10.0.0.1:80", "shop", "node-1", None);
    agent.say(service(("shop", "web"), Some(port), &[endpoint])).await;
    assert!(node_port(&mut agent).await.bound);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    let request = format!(
        "GET /cart HTTP/1.1\r\nhost: shop.example\r\ntraceparent: {GIVEN}\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("read");
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    // What is finished is sent at the latest when the worker ends.
    fixture.stop(agent).await;
    let mut spans = Vec::new();
    while let Ok((_, export)) = received.try_recv() {
        spans.extend(export.spans());
    }
    let find = |name: &str| &spans.iter().find(|(_, span)| span.name == name).expect(name).1;
    let [request, route, guest, made] = ["GET", "route", "guest", "instantiate"].map(find);
    assert_eq!(request.parent_span_id, "b7ad6b7169203331");
    assert_eq!(route.parent_span_id, request.span_id);
    assert_eq!(guest.parent_span_id, route.span_id);
    assert_eq!(made.parent_span_id, guest.span_id);
    assert!(spans.iter().all(|(_, span)| span.trace_id == "0af7651916cd43dd8448eb211c80319c"));
    let services: Vec<&str> = spans.iter().map(|(service, _)| service.as_str()).collect();
    assert_eq!(services.iter().filter(|it| **it == "web").count(), 2, "{services:?}");
}
