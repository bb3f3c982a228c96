//! Servers of plain HTTP on loopback stand for members: one refuses, one is away, one answers.

use std::sync::atomic::AtomicU32;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;

/// What a test server does with each request.
#[derive(Clone, Copy)]
enum Does {
    Answer(u16),
    /// Reads the request and closes the connection.
    Break,
}

/// Serves until the test ends; counts requests.
async fn member(does: Does) -> (String, Arc<AtomicU32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counted = counted.clone();
            let answer = service_fn(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                async move {
                    match does {
                        Does::Answer(code) => {
                            let answer = Response::builder().status(code);
                            answer.body(String::new()).map_err(|error| error.to_string())
                        }
                        Does::Break => Err("broken on purpose".to_owned()),
                    }
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    (url, count)
}

/// A port where nobody listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

/// Members by their URLs, in this order; TLS is left out.
fn members(urls: &[&str]) -> Arc<Members> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let urls: Vec<String> = urls.iter().map(|url| url.replace("http://", "https://")).collect();
    let make: Make = Arc::new(|url: Uri| {
        let plain = url.to_string().replace("https://", "http://");
        kube::Config::new(plain.parse().expect("a URL"))
    });
    Members::new(&urls, make).expect("plain URLs")
}

async fn send(members: &Arc<Members>, method: Method) -> Result<u16, String> {
    let request = Request::builder().method(method).uri("/x").body(Body::empty());
    let answer = members.client().send(request.expect("a request")).await;
    answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_member_that_is_away_costs_no_request() {
    let (away, (good, count)) = (nobody().await, member(Does::Answer(200)).await);
    let members = members(&[&away, &good]);
    for method in [Method::POST, Method::GET, Method::DELETE] {
        assert_eq!(send(&members, method).await, Ok(200));
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_refusal_is_asked_elsewhere_and_an_answer_is_not() {
    let (refuses, refused) = member(Does::Answer(503)).await;
    let (good, answered) = member(Does::Answer(409)).await;
    let members = members(&[&refuses, &good]);
    assert_eq!(send(&members, Method::POST).await, Ok(409));
    assert_eq!(send(&members, Method::POST).await, Ok(409));
    assert_eq!((refused.load(Ordering::Relaxed), answered.load(Ordering::Relaxed)), (1, 2));
}

#[tokio::test]
async fn what_may_have_been_done_is_repeated_only_if_it_is_a_read() {
    for does in [Does::Break, Does::Answer(504)] {
        let (unsure, _) = member(does).await;
        let (good, count) = member(Does::Answer(200)).await;
        let write = send(&members(&[&unsure, &good]), Method::PUT).await;
        // Who gave no answer is named.
        let named = format!("{}: ", unsure.replace("http://", "https://"));
        assert!(
            matches!(&write, Ok(504)) || matches!(&write, Err(error) if error.contains(&named)),
            "{write:?}"
        );
        assert_eq!(count.load(Ordering::Relaxed), 0);
        assert_eq!(send(&members(&[&unsure, &good]), Method::GET).await, Ok(200));
    }
}

#[tokio::test]
async fn a_refusal_of_all_is_told_in_the_end() {
    let (refuses, count) = member(Does::Answer(503)).await;
    let begun = Instant::now();
    assert_eq!(send(&members(&[&refuses]), Method::POST).await, Ok(503));
    assert!(begun.elapsed() >= RETRY_FOR);
    assert!(count.load(Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn members_are_learned() {
    let slice = |name: &str, port: i32, addresses: &[&str]| -> EndpointSlice {
        let endpoints: Vec<_> = addresses.iter().map(|one| json!({"addresses": [one]})).collect();
        let object = json!({
            "metadata": {"name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": port}],
        });
        serde_json::from_value(object).expect("an EndpointSlice")
    };
    let slices =
        [slice("kubernetes", 6443, &["10.0.0.2", "10.0.0.1"]), slice("b", 7, &["fd00::1"])];
    let urls = of_slices(&slices);
    assert_eq!(urls, ["https://10.0.0.2:6443", "https://10.0.0.1:6443", "https://[fd00::1]:7"]);

    let members = members(&["https://lb.example"]);
    let mut each = members.each();
    let shown = |each: &watch::Receiver<Vec<Uri>>| -> Vec<String> {
        each.borrow().iter().map(|url| url.to_string()).collect()
    };
    assert_eq!(shown(&each), ["https://lb.example/"]);
    assert!(members.learn(&urls[..2]));
    assert!(!members.learn(&urls[..2]), "nothing new");
    assert!(!members.learn(&[]), "an empty list is not believed");
    each.changed().await.expect("the list changed");
    assert_eq!(shown(&each), ["https://10.0.0.1:6443/", "https://10.0.0.2:6443/"]);
    assert!(members.only(&each.borrow()[0]).is_some());
}
