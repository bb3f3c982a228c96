//! Whole requests through the Router: the golden scripts' own, with their paths, types and bodies
//! damaged. Whatever comes, the answer has a status that says whose fault it was, errors are a
//! Status, and the server goes on.

use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::Run;
use crate::apiserver::tests::contract::sent;
use crate::apiserver::tests::script::{Server, admin};

/// A server is replaced by a new one after so many requests, so that the state stays small.
const REQUESTS_A_SERVER: u64 = 2_000;
/// How long a stream is listened to.
const LISTEN: Duration = Duration::from_millis(50);
/// The longest that a request may wait for anything: a revision of the future is waited for 3 s.
const ANSWER_MAX: Duration = Duration::from_secs(8);

const WORDS: &[&str] = &[
    "/status",
    "/scale",
    "/namespaces/",
    "default",
    "configmaps",
    "pods",
    "/log",
    "?watch=1",
    "&timeoutSeconds=1",
    "&limit=1",
    "&continue=",
    "&resourceVersion=1",
    "&fieldSelector=metadata.name%3D",
    "&labelSelector=",
    "dryRun=All",
    "&fieldValidation=Strict",
    "%2f",
    "%00",
    "..",
    "//",
    "?",
    "&force=true",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
    "as=Table;v=v1;g=meta.k8s.io",
    "null",
    "{}",
    "[]",
    "\"metadata\":",
    "\"name\":\"a\"",
    "\"spec\":",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "GET",
];

/// A request as lines: method, path, content type, Accept, body.
fn read(input: &[u8]) -> Option<Request<axum::body::Body>> {
    let mut parts = input.splitn(5, |byte| *byte == b'\n');
    let mut text = || Some(std::str::from_utf8(parts.next()?).ok()?.to_owned());
    let (method, path, media, accept) = (text()?, text()?, text()?, text()?);
    let body = parts.next().unwrap_or_default().to_vec();
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).ok()?)
        .uri(path)
        .extension(admin());
    if !media.is_empty() {
        request = request.header("content-type", media);
    }
    if !accept.is_empty() {
        request = request.header("accept", accept);
    }
    request.body(axum::body::Body::from(body)).ok()
}

fn seeds() -> Vec<Vec<u8>> {
    let line = |sent: crate::apiserver::tests::contract::Sent| {
        let head =
            format!("{}\n{}\n{}\n{}\n", sent.method, sent.path, sent.content_type, sent.accept);
        [head.into_bytes(), sent.body].concat()
    };
    sent().into_iter().map(line).filter(|seed| seed.len() < super::INPUT_BYTES_MAX).collect()
}

/// What came of a request, or what must not have.
async fn ask(server: &Server, request: Request<axum::body::Body>) -> Result<String, String> {
    let path = request.uri().path().to_owned();
    // An answer to HEAD has no body that could be looked at.
    let has_body = request.method() != Method::HEAD;
    let answer = tokio::spawn(server.api.router().oneshot(request));
    let answer = tokio::time::timeout(ANSWER_MAX, answer).await.map_err(|_| "no answer")?;
    let answer = answer.map_err(|error| format!("a panic: {error}"))?.expect("infallible");
    let status = answer.status();
    let body = tokio::time::timeout(LISTEN, answer.into_body().collect()).await;
    let body = match body {
        Ok(body) => body.map_err(|error| error.to_string())?.to_bytes(),
        // A watch goes on.
        Err(_) if status.is_success() => return Ok(format!("{status} flows")),
        Err(_) => return Err(format!("{status} without an end")),
    };
    let text = String::from_utf8_lossy(&body);
    let served = path.starts_with("/api/") || path.starts_with("/apis/");
    match status.as_u16() {
        // Timeout and TooManyRequests are honest answers; the others are not the client's fault.
        500..=503 | 505.. => Err(format!("{status}: {text}")),
        400.. if served && has_body && !text.starts_with("404 page not found") => {
            let answer: Value =
                serde_json::from_str(&text).map_err(|_| format!("{status}: {text}"))?;
            if answer["kind"] != "Status" || answer["code"] != status.as_u16() {
                return Err(format!("{status}: {text}"));
            }
            let reason = answer["reason"].as_str().unwrap_or_default();
            let message: String =
                answer["message"].as_str().unwrap_or_default().chars().take(60).collect();
            Ok(format!("{status} {reason} {message}"))
        }
        _ => Ok(status.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests() {
    let mut run = Run::new("requests", seeds(), WORDS);
    let mut server = Server::start().await;
    let mut count = 0;
    while let Some(input) = run.input() {
        count += 1;
        if count % REQUESTS_A_SERVER == 0 {
            server = Server::start().await;
        }
        let Some(request) = read(&input) else { continue };
        let begun = Instant::now();
        let outcome = ask(&server, request).await;
        run.heard(&input, begun.elapsed().saturating_sub(Duration::from_secs(4)), outcome);
    }
    let (code, text) = server.send("GET", "/livez", "").await;
    assert_eq!((code.as_u16(), text.as_str()), (200, "ok"));
    run.end();
}
