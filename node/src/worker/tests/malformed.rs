//! Requests that are no requests, or two in one: at a node port and at the gate, each on a connection of
//! its own. What comes back are statuses; a second one where there was one request would be a request
//! that was smuggled.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{guests::serve_hello, harness::*, traffic::node_port};
use crate::protocol::{
    Backend, Family, GatePort, GateTable, HeaderChange, HttpMatch, HttpRule, PathMatch, Site,
    Target, ToAgent, ToWorker,
};

const NAMESPACE: &str = crate::protocol::INGRESS_NAMESPACE;
/// A connection that nobody closes by then stays open: the request is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent (`\` ends a line), and the statuses of the answers. `|` divides what may come: where
/// the connection is closed while something is on its way, an answer can be lost.
const CASES: &[(&str, &str)] = &[
    // What is fine.
    (r"GET / HTTP/1.1\Host: a\Connection: close\\", "200"),
    (r"GET / HTTP/1.1\Host: a\\GET / HTTP/1.1\Host: a\Connection: close\\", "200 200"),
    (r"GET http://b/ HTTP/1.1\Host: a\Connection: close\\", "200"),
    (r"GET / HTTP/1.0\\", "200"),
    // Two ends of one body: chunks count, the connection ends, and what follows is not read.
    (
        r"POST / HTTP/1.1\Host: a\Content-Length: 4\Transfer-Encoding: chunked\\0\\GET /x HTTP/1.1\Host: a\\",
        "200",
    ),
    (
        r"POST / HTTP/1.1\Host: a\Transfer-Encoding: chunked\Content-Length: 4\\0\\GET /x HTTP/1.1\Host: a\\",
        "200",
    ),
    (r"POST / HTTP/1.1\Host: a\Content-Length: 4\Content-Length: 5\\abcde", "400"),
    (r"POST / HTTP/1.1\Host: a\Content-Length: 4, 5\\abcde", "400"),
    (r"POST / HTTP/1.1\Host: a\Content-Length: +4\\abcd", "400"),
    (r"POST / HTTP/1.1\Host: a\Content-Length: -1\\abcd", "400"),
    (r"POST / HTTP/1.1\Host: a\Content-Length: 0x4\\abcd", "400"),
    (r"POST / HTTP/1.1\Host: a\Content-Length: 99999999999999999999\\abcd", "400"),
    (r"POST / HTTP/1.1\Host: a\Transfer-Encoding: gzip\\0\\", "400"),
    (r"POST / HTTP/1.1\Host: a\Transfer-Encoding: gzip, chunked\\0\\", "400"),
    (r"POST / HTTP/1.1\Host: a\Transfer-Encoding: chunked, identity\\0\\", "400"),
    (r"POST / HTTP/1.1\Host: a\Transfer-Encoding: xchunked\\0\\", "400"),
    (r"POST / HTTP/1.1\Host: a\Transfer-Encoding: chunked\Transfer-Encoding: chunked\\0\\", "400"),
    (r"POST / HTTP/1.0\Host: a\Transfer-Encoding: chunked\\0\\", "400"),
    // Sizes of chunks that are none. The guest answers without reading the body.
    (r"POST / HTTP/1.1\Host: a\Connection: close\Transfer-Encoding: chunked\\zz\abc\0\\", "200|"),
    (
        r"POST / HTTP/1.1\Host: a\Connection: close\Transfer-Encoding: chunked\\fffffffffffffffff\a\",
        "200|",
    ),
    // Headers that are none.
    (r"GET / HTTP/1.1\Host: a\X: a\ b: c\\", "400"),
    (r"GET / HTTP/1.1\Host : a\\", "400"),
    (r"GET / HTTP/1.1\ Host: a\\", "400"),
    (r"GET / HTTP/1.1\Host: a\no colon\\", "400"),
    (r"GET / HTTP/1.1\Host: a\: empty\\", "400"),
    ("GET / HTTP/1.1\\Host: a\\X: a\0b\\\\", "400"),
    ("GET / HTTP/1.1\\Host: a\\X\0: b\\\\", "400"),
    ("GET / HTTP/1.1\\Host: a\\X: a\rY: b\\\\", "400"),
    // Hosts.
    (r"GET / HTTP/1.1\\", "400"),
    (r"GET / HTTP/1.1\Host: a\Host: b\\", "400"),
    (r"GET / HTTP/1.1\Host: a b\\", "400"),
    (r"GET / HTTP/1.1\Host: me@a\\", "400"),
    (r"GET / HTTP/1.1\Host: a/b\\", "400"),
    (r"GET / HTTP/1.1\Host: a:b\\", "400"),
    // First lines.
    (r"GET a HTTP/1.1\Host: a\\", "400"),
    (r"G@T / HTTP/1.1\Host: a\\", "400"),
    (r"GET / / HTTP/1.1\Host: a\\", "400"),
    (r"GET / HTTP/9.9\Host: a\\", "400"),
    (r"GET /\\", "400"),
    ("GET /\0 HTTP/1.1\\Host: a\\\\", "400"),
    (r"CONNECT a:80 HTTP/1.1\Host: a:80\Connection: close\\", "405"),
];

/// Sends bytes on a connection of their own; the statuses that came back until it was closed.
async fn statuses(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // Who has said enough is cut off, perhaps before all was sent and read.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection stays open after {request:?}");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let statuses = answer.split("HTTP/1.").skip(1).filter_map(|it| it.split(' ').nth(1));
    statuses.collect::<Vec<_>>().join(" ")
}

/// `hello` behind every path of every host.
fn gate(port: u16) -> ToWorker {
    let to = Target { namespace: NAMESPACE.into(), service: "hello".into(), port: "80".into() };
    let none = HeaderChange::default();
    let backend = Backend { to: Ok(to), weight: 1, request: none.clone(), response: none };
    let path = PathMatch::Prefix("/".to_owned());
    let all = HttpMatch { path, method: None, headers: Vec::new(), queries: Vec::new() };
    let rule = HttpRule {
        hosts: vec![String::new()],
        matches: vec![all],
        backends: vec![backend],
        absent: 503,
        ..HttpRule::default()
    };
    let site =
        Site { ports: vec![port], family: Family::Ingress, rules: vec![rule], ..Site::default() };
    let ports = vec![GatePort { port, tls: false, certificates: Vec::new() }];
    ToWorker::Gate(GateTable { ports, sites: vec![site] })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_nothing_is_smuggled() {
    let (fixture, mut agent) = Fixture::start(NAMESPACE).await;
    if !serve_hello(&fixture, &mut agent, ("p", "10.0.0.1")).await {
        return fixture.stop(agent).await;
    }
    let (node, gated) = (free_port(), free_port());
    let endpoint = ("10.0.0.1:80", NAMESPACE, "node-1", None);
    agent.say(service((NAMESPACE, "hello"), Some(node), &[endpoint])).await;
    assert!(node_port(&mut agent).await.bound);
    agent.say(gate(gated)).await;
    // Messages are obeyed in their order.
    agent.say(ToWorker::RemovePod { uid: "nobody".to_owned() }).await;
    agent.hear_until(|message| matches!(message, ToAgent::PodRemoved { .. }).then_some(())).await;
    let large = format!("GET / HTTP/1.1\\Host: a\\X: {}\\\\", "x".repeat(33 << 10));
    let mut many = "GET / HTTP/1.1\\Host: a\\".to_owned();
    many.extend((0..200).map(|number| format!("x-{number}: y\\")));
    many.push('\\');
    let long = format!("GET /{} HTTP/1.1\\Host: a\\\\", "x".repeat(33 << 10));
    let own = [(large.as_str(), "431|"), (many.as_str(), "431|"), (long.as_str(), "431|414|")];
    for port in [node, gated] {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        for (request, expected) in CASES.iter().copied().chain(own) {
            let said = statuses(address, &request.replace('\\', "\r\n")).await;
            let start = &request[..request.len().min(200)];
            assert!(
                expected.split('|').any(|it| it == said),
                "{start:?}: {said:?}, not {expected}"
            );
        }
        let fine = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(statuses(address, fine).await, "200", "it still serves");
    }
    fixture.stop(agent).await;
}
