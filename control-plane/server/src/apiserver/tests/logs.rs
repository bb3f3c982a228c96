//! Logs, from a node's agent (played here) through its tunnel to a client's WebSocket; and what is
//! said of a node's Pods in a kubelet's words.

use super::script::{Server, admin};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// An agent at the other end of a pipe that has the same log for every request.
async fn agent(stream: DuplexStream) {
    let answer = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("one\ntwo\n"))))
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // The pipe breaks when the test ends.
    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
}

/// A Pod `p` that runs on the node `n`.
async fn with_pod() -> Server {
    let server = Server::start().await;
    let pod = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i:1"}]}}"#;
    server.ok("POST", PODS, pod).await;
    let binding = r#"{"metadata":{"name":"p"},"target":{"kind":"Node","name":"n"}}"#;
    server.ok("POST", &format!("{PODS}/p/binding"), binding).await;
    let status = r#"{"status":{"phase":"Running","containerStatuses":[{"name":"c","image":"i:1",
        "imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}"#;
    let (path, kind) = (format!("{PODS}/p/status"), "application/merge-patch+json");
    let response = server.response(&admin(), "PATCH", &path, kind, status).await;
    assert_eq!(response.status(), 200);
    server
}

#[tokio::test]
async fn a_browser_reads_a_log_over_a_web_socket() {
    let server = with_pod().await;
    let (ours, theirs) = tokio::io::duplex(4096);
    let agent = tokio::spawn(agent(theirs));
    let tunnels = server.api.tunnels().clone();
    let tunnel = tokio::spawn(async move {
        tunnels.serve("n", TokioIo::new(ours), CancellationToken::new()).await;
    });
    while server.api.tunnels().nodes().is_empty() {
        tokio::task::yield_now().await;
    }
    let log = format!("{PODS}/p/log?tailLines=2");
    let (binary, text) = (0x82, 0x81);
    for (offered, chosen, opcode, said) in [
        ("", None, binary, "one\ntwo\n"),
        ("binary.k8s.io", Some("binary.k8s.io"), binary, "one\ntwo\n"),
        ("x, base64.binary.k8s.io", Some("base64.binary.k8s.io"), text, "b25lCnR3bwo="),
    ] {
        let mut socket = server.socket(&log, offered).await;
        assert!(socket.head.starts_with("HTTP/1.1 101"), "{}", socket.head);
        assert_eq!(socket.protocol(), chosen, "{offered}");
        // An empty message says that the log is there; a close frame that it has ended.
        assert_eq!(socket.frame().await, (opcode, Vec::new()), "{offered}");
        assert_eq!(socket.frame().await, (opcode, said.into()), "{offered}");
        assert_eq!(socket.frame().await.0, 0x88, "{offered}");
    }
    let refused = server.socket(&log, "v4.channel.k8s.io").await;
    assert!(refused.head.starts_with("HTTP/1.1 400"), "{}", refused.head);
    let other = server.socket(&format!("{PODS}/none/log"), "").await;
    assert!(other.head.starts_with("HTTP/1.1 404"), "{}", other.head);
    agent.abort();
    tunnel.await.expect("the tunnel ends with its connection");
}

#[tokio::test]
async fn a_node_lists_its_pods_as_a_kubelet_does() {
    let server = with_pod().await;
    let other = r#"{"metadata":{"name":"q"},"spec":{"containers":[{"name":"c","image":"i:1"}]}}"#;
    server.ok("POST", PODS, other).await;
    server.ok("POST", "/api/v1/nodes", r#"{"metadata":{"name":"n"}}"#).await;
    let list = server.ok("GET", "/api/v1/nodes/n/proxy/pods", "").await;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&"PodList".into(), &"v1".into()));
    let items = list["items"].as_array().expect("a list");
    let names: Vec<_> = items.iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["p"]);
    assert_eq!(items[0]["status"]["phase"], "Running");
}
