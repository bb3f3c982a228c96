//! What operators and load balancers ask: alive, ready, which version, how busy.

use super::{ApiServer, errors::ApiError, stream::relay::Relayed};
use crate::contain;
use crate::member::STORE;
use axum::{
    extract::{Path as AxumPath, RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use wherry_store::Leadership;

/// Kubernetes release whose API is served; clients parse it.
pub const GIT_VERSION: &str = concat!("v1.32.0+wherry.", env!("CARGO_PKG_VERSION"));

/// Folders in folders that a store has, and one more.
const DEPTH_MAX: usize = 4;

/// Counters of `/metrics`.
#[derive(Default)]
pub struct Metrics {
    /// Answered requests, by hundreds of their status code (index 1 = 1xx).
    answers: [AtomicU64; 6],
    /// Requests that are being answered.
    pub in_flight: AtomicU64,
    /// Open watches.
    pub watches: AtomicU64,
    /// Watches that were cut off because the client read too slowly.
    pub watches_cut: AtomicU64,
    /// Connections from node to node through this member.
    pub relayed: Relayed,
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, code: StatusCode) {
        self.answers[usize::from(code.as_u16() / 100).min(5)].fetch_add(1, Relaxed);
    }
}

/// One named check.
struct Check {
    name: &'static str,
    /// Why it fails.
    problem: Option<String>,
    /// What an operator should know although it passes.
    note: Option<String>,
}

impl Check {
    fn new(name: &'static str, problem: Option<String>) -> Check {
        Check { name, problem, note: None }
    }
}

fn checks(api: &ApiServer, ready: bool) -> Vec<Check> {
    let mut checks = vec![Check::new("ping", None)];
    if ready {
        let health = api.store().health();
        checks.push(Check::new("store", health.reason));
        // Reads and deletes go on, so the member stays ready.
        let full = "nearly full: creates and updates are refused until there is room again";
        let note = health.disk_full.then(|| full.to_owned());
        checks.push(Check { note, ..Check::new("disk", None) });
        checks.push(Check { note: health.suspicion, ..Check::new("data", None) });
        let stopping = api.shutdown().is_cancelled().then(|| "shutting down".to_owned());
        checks.push(Check::new("shutdown", stopping));
    }
    checks
}

/// `/livez`: the process answers.
pub async fn livez(State(api): State<ApiServer>, RawQuery(query): RawQuery) -> Response {
    report("livez", &checks(&api, false), query.as_deref())
}

/// `/readyz`: the store can be read and written.
pub async fn readyz(State(api): State<ApiServer>, RawQuery(query): RawQuery) -> Response {
    report("readyz", &checks(&api, true), query.as_deref())
}

/// `/healthz`, the old name of readiness.
pub async fn healthz(State(api): State<ApiServer>, RawQuery(query): RawQuery) -> Response {
    report("healthz", &checks(&api, true), query.as_deref())
}

/// `/readyz/{check}`: one check by name.
pub async fn one(
    State(api): State<ApiServer>,
    AxumPath(name): AxumPath<String>,
) -> Result<Response, ApiError> {
    let found: Vec<Check> =
        checks(&api, true).into_iter().filter(|check| check.name == name).collect();
    if found.is_empty() { Err(ApiError::NoSuchPath) } else { Ok(report("readyz", &found, None)) }
}

fn report(endpoint: &str, checks: &[Check], query: Option<&str>) -> Response {
    let query = super::request::Query::parse(query.unwrap_or(""));
    let excluded: Vec<&str> = query.all("exclude").collect();
    let is_excluded = |check: &Check| excluded.contains(&check.name);
    let healthy = checks.iter().all(|check| check.problem.is_none() || is_excluded(check));
    let verbose = query.flag("verbose");
    let code = if healthy { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let mut text = String::new();
    if healthy && !verbose {
        text.push_str("ok");
    } else {
        for check in checks {
            let _ = match (&check.problem, &check.note) {
                _ if is_excluded(check) => writeln!(text, "[+]{} excluded: ok", check.name),
                (None, None) => writeln!(text, "[+]{} ok", check.name),
                (None, Some(note)) => writeln!(text, "[!]{} {note}", check.name),
                (Some(problem), _) => writeln!(text, "[-]{} failed: {problem}", check.name),
            };
        }
        let _ = writeln!(text, "{endpoint} check {}", if healthy { "passed" } else { "failed" });
    }
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// `/version`: major and minor are digits only, since clients parse them as numbers.
pub async fn version() -> Response {
    let version = json!({
        "major": "1", "minor": "32", "gitVersion": GIT_VERSION, "gitCommit": "unknown",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, platform()),
    });
    let text = serde_json::to_string_pretty(&version).expect("a value has only string keys");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The processor as Kubernetes calls it.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/metrics` in the text form of Prometheus.
pub async fn metrics(State(api): State<ApiServer>) -> Response {
    let metrics = api.metrics();
    let mut text = String::from("# TYPE apiserver_request_total counter\n");
    for (hundreds, count) in metrics.answers.iter().enumerate().skip(1) {
        let count = count.load(Relaxed);
        let _ = writeln!(text, "apiserver_request_total{{code=\"{hundreds}xx\"}} {count}");
    }
    let refused = ["queue-full", "time-out"].into_iter().zip(api.fairness().refused());
    let name = "apiserver_flowcontrol_rejected_requests_total";
    let _ = writeln!(text, "# TYPE {name} counter");
    for (reason, count) in refused {
        let _ = writeln!(text, "{name}{{reason=\"{reason}\"}} {count}");
    }
    let store = api.store().health();
    let leads = matches!(store.leadership, Leadership::Leader { .. });
    let gauges = [
        ("apiserver_current_inflight_requests", "gauge", metrics.in_flight.load(Relaxed)),
        ("apiserver_longrunning_requests", "gauge", metrics.watches.load(Relaxed)),
        ("apiserver_terminated_watchers_total", "counter", metrics.watches_cut.load(Relaxed)),
        ("wherry_store_revision", "gauge", store.revision),
        ("wherry_store_objects", "gauge", store.objects as u64),
        ("wherry_store_window_bytes", "gauge", store.window_bytes),
        ("wherry_store_disk_bytes", "gauge", disk_bytes(&api).await),
        ("wherry_store_leads", "gauge", leads.into()),
        ("wherry_store_serving", "gauge", store.serving.into()),
        ("wherry_store_quarantined", "gauge", store.quarantined.is_some().into()),
        ("wherry_store_disk_full", "gauge", store.disk_full.into()),
        ("wherry_store_suspect", "gauge", store.suspicion.is_some().into()),
        ("wherry_panics_total", "counter", contain::count()),
        ("wherry_node_tunnels", "gauge", api.tunnels().nodes().len() as u64),
        ("wherry_relays_total", "counter", metrics.relayed.connections.load(Relaxed)),
        ("wherry_relayed_bytes_total", "counter", metrics.relayed.bytes.load(Relaxed)),
    ];
    for (name, kind, value) in gauges {
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    text.push_str(&api.reports().text());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What the store's files take; nothing of a store in memory.
async fn disk_bytes(api: &ApiServer) -> u64 {
    let folder = api.data_dir().join(STORE);
    tokio::task::spawn_blocking(move || bytes_below(&folder, 0)).await.unwrap_or_default()
}

/// The sizes of all files below a folder. What goes while one looks counts nothing.
fn bytes_below(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(what) if what.is_dir() && depth < DEPTH_MAX => bytes_below(&entry.path(), depth + 1),
        Ok(what) if what.is_file() => what.len(),
        _ => 0,
    });
    bytes.sum()
}

/// `/`: what else there is.
pub async fn paths() -> Response {
    let paths = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/ui",
        "/v2",
        "/version",
    ];
    let text = serde_json::to_string_pretty(&json!({ "paths": paths }));
    let text = text.expect("a value has only string keys");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::{Server, admin, text};

    #[test]
    fn all_files_below_a_folder_are_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("inner")).expect("a folder");
        std::fs::write(folder.path().join("a"), [0; 5]).expect("a file");
        std::fs::write(folder.path().join("inner/b"), [0; 7]).expect("a file");
        assert_eq!(bytes_below(folder.path(), 0), 12);
        assert_eq!(bytes_below(&folder.path().join("gone"), 0), 0);
    }

    #[tokio::test]
    async fn metrics_tell_how_large_the_store_is() {
        let server = Server::start().await;
        let answer = server.response(&admin(), "GET", "/metrics", "", "").await;
        let told = text(answer).await;
        let objects = server.api.store().current().len();
        assert!(told.contains(&format!("wherry_store_objects {objects}\n")), "{told}");
        assert!(told.contains("\nwherry_store_disk_bytes "), "{told}");
    }
}
