//! Sending spans: OTLP over HTTP with JSON bodies, as its specification maps them.
//!
//! One task sends what is finished, a second after the first of it, in batches. A collector that
//! does not answer costs spans, which are counted, and nothing else: requests never wait for it.
//! The encoding is ours because the crate for it brings protobuf code that changes how others of
//! the workspace are built (see DECISIONS.md D86).

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use wherry_wasi_shim::Stream;

use super::{Finished, Kind, Settings, Tracer, Value};
use crate::worker::{outside, peers::explain};

/// Below the collector's address, by the specification.
const PATH: &str = "/v1/traces";
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// For one batch, from the connection to the answer.
const SEND_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("its address is not one")]
    Address,
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[source] outside::OutsideError),
    #[error("HTTP")]
    Http(#[source] hyper::Error),
    #[error("it answered {0}")]
    Refused(http::StatusCode),
    #[error("no answer within {SEND_MAX:?}")]
    Silent,
}

impl Tracer {
    /// Sends finished spans until `stop`, and then what is left.
    pub async fn export(self, stop: CancellationToken) {
        let mut quiet = false;
        loop {
            let ready = stop.run_until_cancelled(async {
                self.0.ready.notified().await;
                tokio::time::sleep(GATHER).await;
            });
            let stopped = ready.await.is_none();
            loop {
                let batch = self.take();
                let (Some(settings), false) = (self.0.settings.load_full(), batch.is_empty())
                else {
                    break;
                };
                let sent = tokio::time::timeout(SEND_MAX, send(&settings, &batch)).await;
                match sent.unwrap_or(Err(ExportError::Silent)) {
                    Ok(()) => quiet = false,
                    Err(error) => {
                        self.0.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                        let collector = &settings.tracing.endpoint;
                        // Once for each outage.
                        if !std::mem::replace(&mut quiet, true) {
                            let why = explain(&error);
                            tracing::warn!(collector, why, "spans are not taken");
                        }
                    }
                }
            }
            if stopped {
                return;
            }
        }
    }

    fn take(&self) -> Vec<Finished> {
        let mut finished = self.finished();
        let count = finished.len().min(BATCH_MAX);
        finished.drain(..count).collect()
    }
}

async fn send(settings: &Settings, batch: &[Finished]) -> Result<(), ExportError> {
    let tracing = &settings.tracing;
    let uri: Uri = tracing.endpoint.parse().map_err(|_| ExportError::Address)?;
    let host = uri.host().ok_or(ExportError::Address)?;
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(ExportError::Connect)?;
    let stream: Box<dyn Stream> = match https {
        true => Box::new(outside::encrypt(stream, bare).await.map_err(ExportError::Tls)?),
        false => Box::new(stream),
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(ExportError::Http)?;
    let body = Full::new(Bytes::from(encode(&settings.node, batch).to_string()));
    let path = format!("{}{PATH}", uri.path().trim_end_matches('/'));
    let mut request = Request::post(path).body(body).map_err(|_| ExportError::Address)?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let named = uri.authority().and_then(|it| HeaderValue::try_from(it.as_str()).ok());
    headers.insert(header::HOST, named.ok_or(ExportError::Address)?);
    for (name, value) in &tracing.headers {
        let pair = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()));
        if let (Ok(name), Ok(value)) = pair {
            headers.insert(name, value);
        }
    }
    let exchange = async {
        let response = sender.send_request(request).await.map_err(ExportError::Http)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(ExportError::Refused(status)),
        }
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answered = exchange.as_mut() => answered,
        // Whatever ends the connection shows in the answer.
        _ = connection => exchange.await,
    }
}

/// `ExportTraceServiceRequest` as JSON: spans by whoever recorded them.
pub(super) fn encode(node: &str, batch: &[Finished]) -> Json {
    let mut by_source: BTreeMap<[&str; 3], Vec<Json>> = BTreeMap::new();
    for span in batch {
        let source = &span.source;
        let key = [&*source.namespace, &*source.service, &*source.pod];
        by_source.entry(key).or_default().push(encode_span(span));
    }
    let text = |key: &str, text: &str| attribute(key, &Value::Text(text.to_owned()));
    let resources = by_source.into_iter().map(|([namespace, service, pod], spans)| {
        let all = [
            ("service.name", service),
            ("service.namespace", namespace),
            ("k8s.namespace.name", namespace),
            ("k8s.pod.name", pod),
            ("k8s.node.name", node),
        ];
        let known = all.into_iter().filter(|(_, value)| !value.is_empty());
        let attributes: Vec<Json> = known.map(|(key, value)| text(key, value)).collect();
        json!({
            "resource": {"attributes": attributes},
            "scopeSpans": [{
                "scope": {"name": "wherry", "version": env!("CARGO_PKG_VERSION")},
                "spans": spans,
            }],
        })
    });
    json!({ "resourceSpans": resources.collect::<Vec<Json>>() })
}

fn encode_span(span: &Finished) -> Json {
    let mut encoded = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        // The low bits are the flags of the W3C: it was sampled.
        "flags": 1,
        "name": span.name,
        "kind": match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        // Numbers of 64 bits are text in this mapping.
        "startTimeUnixNano": span.began_ns.to_string(),
        "endTimeUnixNano": span.ended_ns.to_string(),
        "attributes": span.attributes.iter().map(|(key, value)| attribute(key, value))
            .collect::<Vec<Json>>(),
    });
    if let Some(parent) = span.parent {
        encoded["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if let Some(why) = &span.failure {
        encoded["status"] = json!({"code": 2, "message": why});
    }
    encoded
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({"stringValue": text}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
    };
    json!({"key": key, "value": value})
}
