//! Spans as a collector gets them, and which requests are recorded.

use std::convert::Infallible;

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::*;

/// `ExportTraceServiceRequest`, as a collector reads it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Export {
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSpans {
    pub resource: Resource,
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    pub attributes: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    pub key: String,
    pub value: Any,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Any {
    StringValue(String),
    IntValue(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeSpans {
    pub scope: Scope,
    pub spans: Vec<Told>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    pub name: String,
    pub version: String,
}

/// A span.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Told {
    pub trace_id: String,
    pub span_id: String,
    #[serde(default)]
    pub parent_span_id: String,
    pub flags: u32,
    pub name: String,
    pub kind: u8,
    pub start_time_unix_nano: String,
    pub end_time_unix_nano: String,
    pub attributes: Vec<Attribute>,
    #[serde(default)]
    pub status: Status,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Status {
    pub code: u8,
    pub message: String,
}

impl Export {
    /// All spans, with the names of the services that recorded them.
    pub fn spans(self) -> Vec<(String, Told)> {
        let mut all = Vec::new();
        for ResourceSpans { resource, scope_spans } in self.resource_spans {
            let named = resource.attributes.into_iter().find(|it| it.key == "service.name");
            let Some(Attribute { value: Any::StringValue(service), .. }) = named else {
                panic!("a resource without service.name");
            };
            let spans = scope_spans.into_iter().flat_map(|ScopeSpans { scope, spans }| {
                assert_eq!((&*scope.name, &*scope.version), ("wherry", env!("CARGO_PKG_VERSION")));
                spans
            });
            all.extend(spans.map(|span| (service.clone(), span)));
        }
        all
    }
}

/// A collector: its address, and what it is sent.
pub async fn collector() -> (String, mpsc::UnboundedReceiver<(HeaderMap, Export)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    assert_eq!((request.method().as_str(), request.uri().path()), SENT_TO);
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.expect("the whole body").to_bytes();
                    let export = serde_json::from_slice(&body).expect("OTLP as JSON");
                    // The test may have seen enough.
                    let _ = sender.send((head.headers, export));
                    Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (format!("http://{address}"), received)
}

const SENT_TO: (&str, &str) = ("POST", "/v1/traces");

fn tracer(endpoint: &str, ratio: f64) -> Tracer {
    let tracer = Tracer::default();
    let headers = vec![("authorization".to_owned(), "Bearer x".to_owned())];
    let tracing = Tracing { endpoint: endpoint.to_owned(), headers, ratio };
    tracer.configure(Some(&tracing), "node-1");
    tracer
}

fn parts(traceparent: Option<&str>) -> Parts {
    let mut request = Request::get("http://shop/cart?secret=1");
    if let Some(text) = traceparent {
        request = request.header(TRACEPARENT, text);
    }
    request.body(()).expect("a request").into_parts().0
}

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn caller() -> Caller {
    Caller::outside("192.0.2.7".parse().expect("an address"))
}

#[tokio::test]
async fn a_collector_gets_what_a_request_did() {
    let (endpoint, mut received) = collector().await;
    let tracer = tracer(&endpoint, 0.0);
    let mut parts = parts(Some(GIVEN));
    let mut request = tracer.request(&caller(), "web.shop.svc:80", &mut parts).expect("sampled");
    let pod = Arc::new(Source::pod("shop/web", "web-1"));
    let step = || pod.clone();
    let guest = tracer.step(step, Kind::Server, "guest", &mut parts.headers);
    let mut guest = guest.expect("its parent is sampled");
    guest.step("instantiate", Duration::from_micros(10), Duration::from_micros(90));
    guest.refused(StatusCode::BAD_GATEWAY, "the guest trapped");
    drop(guest);
    request.answered(StatusCode::BAD_GATEWAY);
    drop(request);
    let stop = CancellationToken::new();
    stop.cancel();
    tracer.clone().export(stop).await;
    let (headers, export) = received.recv().await.expect("it was sent");
    assert_eq!(headers["authorization"], "Bearer x");
    assert_eq!(headers["content-type"], "application/json");
    let spans = export.spans();
    let find = |name: &str| spans.iter().find(|(_, span)| span.name == name).expect(name);
    let ((door, request), (web, guest)) = (find("GET"), find("guest"));
    let (_, instantiate) = find("instantiate");
    assert_eq!((door.as_str(), web.as_str(), spans.len()), ("wherry-outside", "web", 3));
    let all = [request, guest, instantiate];
    assert!(
        all.iter().all(|it| it.trace_id == "0af7651916cd43dd8448eb211c80319c" && it.flags == 1)
    );
    assert_eq!(request.parent_span_id, "b7ad6b7169203331");
    assert_eq!(guest.parent_span_id, request.span_id);
    assert_eq!(instantiate.parent_span_id, guest.span_id);
    assert_eq!((request.kind, guest.kind, instantiate.kind), (2, 2, 1));
    let time = |text: &str| text.parse::<u64>().expect("nanoseconds");
    assert!(
        all.iter().all(|it| { time(&it.end_time_unix_nano) >= time(&it.start_time_unix_nano) })
    );
    let took = time(&instantiate.end_time_unix_nano) - time(&instantiate.start_time_unix_nano);
    assert_eq!(took, 80_000);
    assert_eq!(guest.status, Status { code: 2, message: "the guest trapped".to_owned() });
    let said = |key: &str| request.attributes.iter().find(|it| it.key == key).map(|it| &it.value);
    assert_eq!(said("url.path"), Some(&Any::StringValue("/cart".to_owned())), "without its query");
    assert_eq!(said("http.response.status_code"), Some(&Any::IntValue("502".to_owned())));
    assert_eq!(tracer.lost(), 0);
}

#[test]
fn a_request_is_recorded_if_it_says_so_or_by_its_part() {
    let tracer = tracer("http://127.0.0.1:1", 0.0);
    let mut brought = parts(Some(&GIVEN.replace("-01", "-00")));
    assert!(tracer.request(&caller(), "", &mut brought).is_none());
    assert_eq!(brought.headers[TRACEPARENT], GIVEN.replace("-01", "-00"), "it goes on as it came");
    let mut without = parts(None);
    assert!(tracer.request(&caller(), "", &mut without).is_none());
    let decided = Context::of(&without.headers).expect("those behind are told");
    assert!(!decided.sampled);
    let source = || Arc::new(Source::pod("shop/web", "web-1"));
    assert!(tracer.step(source, Kind::Server, "guest", &mut without.headers).is_none());
    // All of them.
    tracer.configure(
        Some(&Tracing { endpoint: String::new(), headers: Vec::new(), ratio: 1.0 }),
        "node-1",
    );
    let mut without = parts(None);
    assert!(tracer.request(&caller(), "", &mut without).is_some());
    assert!(Context::of(&without.headers).expect("it stands there").sampled);
    // Nobody listens: nothing is touched.
    tracer.configure(None, "node-1");
    let mut untouched = parts(None);
    assert!(!tracer.is_on());
    assert!(tracer.request(&caller(), "", &mut untouched).is_none());
    assert!(untouched.headers.is_empty());
}

#[tokio::test]
async fn spans_that_nobody_takes_are_counted() {
    let tracer = tracer("http://127.0.0.1:1", 1.0);
    for _ in 0..QUEUE_MAX + 10 {
        drop(tracer.request(&caller(), "", &mut parts(None)));
    }
    assert_eq!(tracer.lost(), 10);
    let stop = CancellationToken::new();
    stop.cancel();
    tracer.clone().export(stop).await;
    assert_eq!(tracer.lost(), QUEUE_MAX as u64 + 10, "nobody answers at that address");
}
