//! Requests through a worker to handlers of the sample apps. Left out where those are not built.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    harness::*,
    traffic::{get, node_port, peer_address},
};
use crate::protocol::{Env, ExitReason, ToAgent, ToWorker};

/// Compiles a sample app.
fn sample(fixture: &Fixture, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-apps/dist");
    let image = std::fs::read(folder.join(format!("{name}.wasm")));
    fixture.module(&image.expect("the sample apps were built"))
}

/// Starts a handler with one variable and waits until it serves.
async fn serve(
    fixture: &Fixture,
    agent: &mut Agent,
    (uid, ip): (&str, &str),
    module: &Path,
    (name, value): (&str, &str),
) {
    let mut container = handler(module, 80);
    container.env = Env(vec![(name.to_owned(), value.to_owned())]);
    agent.say(pod(fixture, uid, ip, container)).await;
    agent.started(uid).await;
}

/// Serves `hello-http` on port 80 of a Pod named like its uid. False where it is not built.
pub async fn serve_hello(fixture: &Fixture, agent: &mut Agent, (uid, ip): (&str, &str)) -> bool {
    if !samples_built() {
        return false;
    }
    let module = sample(fixture, "hello-http");
    serve(fixture, agent, (uid, ip), &module, ("POD_NAME", uid)).await;
    true
}

async fn open(agent: &mut Agent, name: &str, endpoints: &[&str]) -> u16 {
    let port = free_port();
    let endpoints: Vec<_> = endpoints.iter().map(|it| (*it, "shop", "node-1", None)).collect();
    agent.say(service(("shop", name), Some(port), &endpoints)).await;
    assert!(node_port(agent).await.bound);
    port
}

/// Whether `make apps` has run, as `make test` makes sure.
fn samples_built() -> bool {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-apps/dist");
    let built = dist.join("hello-http.wasm").exists();
    if !built {
        eprintln!("left out: the sample apps are not built; run `make apps`");
    }
    built
}

fn body(response: &str) -> &str {
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let chunked = response.split_once("\r\n\r\n").expect("a head and a body").1;
    chunked.lines().find(|line| line.len() > 8).unwrap_or(chunked)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_round_and_none_is_lost_when_a_pod_stops() {
    if !samples_built() {
        return;
    }
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = sample(&fixture, "hello-http");
    serve(&fixture, &mut agent, ("a", "10.0.0.1"), &module, ("POD_NAME", "a")).await;
    serve(&fixture, &mut agent, ("b", "10.0.0.2"), &module, ("POD_NAME", "b")).await;
    let port = open(&mut agent, "hello", &["10.0.0.1:80", "10.0.0.2:80"]).await;
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(body(&get(port, "/x").await).to_owned());
    }
    said.sort();
    assert_eq!(said, ["Hello from a", "Hello from a", "Hello from b", "Hello from b"]);

    // The routes still name both while one of them stops.
    let enough = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn({
        let enough = enough.clone();
        async move {
            let mut count = 0;
            while !enough.load(Ordering::Relaxed) {
                body(&get(port, "/x").await);
                count += 1;
            }
            count
        }
    });
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 10_000 }).await;
    let exit = agent.exited("a", 0).await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Stopped), "{exit:?}");
    for _ in 0..20 {
        assert_eq!(body(&get(port, "/x").await), "Hello from b");
    }
    enough.store(true, Ordering::Relaxed);
    assert!(client.await.expect("no request failed") > 0);
    assert!(fixture.log("a", "main", 0).starts_with("stdout F a serves /x\n"));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_does_not_cost_the_connection() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    if !serve_hello(&fixture, &mut agent, ("p", "10.0.0.1")).await {
        return fixture.stop(agent).await;
    }
    let port = open(&mut agent, "hello", &["10.0.0.1:80"]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it is taken");
    // It answers before there is a body.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        let read = stream.read_buf(&mut answer).await.expect("it does not break");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let rest = "bodyGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(rest.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it is text");
    assert_eq!(body(&answer), "Hello from p");
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_call_each_other_across_workers_and_nothing_else() {
    if !samples_built() {
        return;
    }
    let authority = Authority::new();
    let (bank, mut bank_agent) = Fixture::start("bank").await;
    bank_agent.say(ToWorker::Identity(authority.issue("node-1", "bank"))).await;
    let peer = peer_address(&mut bank_agent).await;
    let hello = sample(&bank, "hello-http");
    serve(&bank, &mut bank_agent, ("h", "10.0.0.1"), &hello, ("POD_NAME", "h")).await;

    let (shop, mut agent) = Fixture::start("shop").await;
    agent.say(ToWorker::Identity(authority.issue("node-1", "shop"))).await;
    peer_address(&mut agent).await;
    let endpoint = ("10.0.0.1:80", "bank", "node-1", Some(peer));
    agent.say(service(("bank", "hello"), None, &[endpoint])).await;
    let caller = sample(&shop, "caller");
    let hello = sample(&shop, "hello-http");
    serve(&shop, &mut agent, ("own", "10.0.0.9"), &hello, ("POD_NAME", "own")).await;
    let targets = [
        ("http://hello.bank", "http://hello.bank said: Hello from h"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80 said: Hello from h"),
        ("http://10.0.0.9:80", "http://10.0.0.9:80 said: Hello from own"),
    ];
    for (number, (target, expected)) in targets.into_iter().enumerate() {
        let (uid, ip) = (format!("c{number}"), format!("10.0.1.{number}"));
        serve(&shop, &mut agent, (&uid, &ip), &caller, ("TARGET", target)).await;
        let port = open(&mut agent, &uid, &[&format!("{ip}:80")]).await;
        assert_eq!(body(&get(port, "/").await), expected);
    }

    let outside = ("TARGET", "http://example.com");
    serve(&shop, &mut agent, ("o", "10.0.2.1"), &caller, outside).await;
    let port = open(&mut agent, "o", &["10.0.2.1:80"]).await;
    let response = get(port, "/").await;
    assert!(response.contains("HttpRequestDenied"), "{response}");
    agent.say(ToWorker::RemovePod { uid: "o".to_owned() }).await;
    agent.hear_until(|message| matches!(message, ToAgent::PodRemoved { .. }).then_some(())).await;
    let why = "request to example.com refused: Pod shop/o may not reach example.com:80 outside";
    let log = shop.log("o", "main", 0);
    assert!(log.contains(why), "{log}");
    bank.stop(bank_agent).await;
    shop.stop(agent).await;
}
