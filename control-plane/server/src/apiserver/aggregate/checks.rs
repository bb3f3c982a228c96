//! Asks the servers behind APIServices whether they answer, and what they serve.
//!
//! Every member asks for itself, since each answers clients; the one that leads writes what it
//! found into the condition `Available` of the APIService, and nobody else writes there.

use super::{Remote, Said, row, say_who};
use crate::apiserver::{
    ApiServer,
    auth::User,
    openapi,
    outbound::ReachError,
    stored,
    stream::proxy::{self, Answer},
};
use axum::body::Body;
use futures::{StreamExt as _, stream};
use http::{Request, header};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use wherry_resources::conditions::{self, Condition};
use wherry_resources::meta;
use wherry_store::{Leadership, Watch};

/// How often a server that answers is asked again, and one that does not.
const PERIOD: Duration = Duration::from_secs(30);
const PERIOD_FAILING: Duration = Duration::from_secs(2);
/// A server that takes longer counts as failing, as in Kubernetes.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// What a server may say about itself.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Servers that are asked at once.
const CHECKS_MAX: usize = 8;
/// As whom they are asked.
const USER: &str = "system:kube-aggregator";

/// What a check found.
struct Found {
    reason: &'static str,
    message: String,
    /// What the server said, if it answered.
    said: Option<Said>,
}

/// When which state of an APIService is to be looked at.
struct Due {
    uid: String,
    remote: Arc<Remote>,
    at: Instant,
}

/// Asks all servers, now and then, until the shutdown.
pub async fn run(api: ApiServer, shutdown: CancellationToken) {
    let mut due: HashMap<String, Due> = HashMap::new();
    loop {
        let now = Instant::now();
        let revision = api.store().current().revision();
        let remotes = api.aggregated().remotes(api.store());
        settle(&mut due, &remotes, now);
        api.aggregated().said().retain(|name, _| due.contains_key(name));
        let ready = due.values().filter(|due| due.at <= now).map(|due| due.remote.clone());
        let checks: Vec<Arc<Remote>> = ready.collect();
        let checks = stream::iter(checks.into_iter().map(|remote| {
            let api = api.clone();
            async move {
                let found = check(&api, &remote).await;
                (remote, found)
            }
        }));
        let mut checks = checks.buffer_unordered(CHECKS_MAX);
        let all = async {
            while let Some((remote, found)) = checks.next().await {
                let period = if found.said.is_some() { PERIOD } else { PERIOD_FAILING };
                if let Some(due) = due.get_mut(&remote.name) {
                    due.at = Instant::now() + period;
                }
                take_in(&api, &remote, found).await;
            }
        };
        tokio::select! {
            () = all => {}
            () = shutdown.cancelled() => return,
        }
        let next = due.values().map(|due| due.at).min();
        let watch = api.store().watch(stored::prefix(row(), None), revision).ok();
        tokio::select! {
            () = until(next) => {}
            () = changed(watch) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// What is new or was changed is due at once; what is gone is forgotten.
fn settle(due: &mut HashMap<String, Due>, remotes: &[Arc<Remote>], now: Instant) {
    due.retain(|name, _| remotes.iter().any(|remote| remote.name == *name));
    for remote in remotes {
        let held = due.get(&remote.name);
        let same = |held: &Due| held.uid == remote.uid && held.remote.target == remote.target;
        let at = held.filter(|held| same(held)).map_or(now, |held| held.at);
        let remote = remote.clone();
        due.insert(remote.name.clone(), Due { uid: remote.uid.clone(), remote, at });
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns when an APIService was written; at the latest when one would be looked at again.
async fn changed(watch: Option<Watch>) {
    match watch {
        Some(mut watch) => _ = watch.next().await,
        // Too far behind for a watch, or the store stops.
        None => tokio::time::sleep(PERIOD_FAILING).await,
    }
}

/// Asks one server.
async fn check(api: &ApiServer, remote: &Remote) -> Found {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let asked = tokio::time::timeout(CHECK_TIMEOUT, get(api, remote, &path)).await;
    let asked = asked.unwrap_or_else(|_| Err(Failed::Answer("it did not answer in time".into())));
    let body = match asked {
        Ok(body) => body,
        Err(failed) => {
            let (reason, why) = failed.told();
            let message = match reason {
                "FailedDiscoveryCheck" => format!(
                    "failing or missing response from {}{path}: {why}",
                    remote.target.shown().trim_end_matches('/')
                ),
                _ => why,
            };
            return Found { reason, message, said: None };
        }
    };
    let version = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let version = version_entry(remote, &version);
    let index = tokio::time::timeout(CHECK_TIMEOUT, get(api, remote, "/openapi/v3")).await;
    let openapi_v3 = index.ok().and_then(Result::ok).and_then(|body| {
        let index: Value = serde_json::from_slice(&body).ok()?;
        let entry = &index["paths"][path.trim_start_matches('/')];
        let address = entry["serverRelativeURL"].as_str()?;
        // Nothing but its own document is asked of it there.
        address.starts_with(&format!("/openapi/v3{path}")).then(|| address.to_owned())
    });
    let openapi_v2 = tokio::time::timeout(CHECK_TIMEOUT, get(api, remote, "/openapi/v2")).await;
    let openapi_v2 = openapi_v2.ok().and_then(Result::ok).and_then(|body| {
        let document: Value = serde_json::from_slice(&body).ok()?;
        openapi::Part::of(&document, &path)
    });
    let said = Some(Said { version, openapi_v3, openapi_v2, fresh: true });
    Found { reason: "Passed", message: "all checks passed".to_owned(), said }
}

enum Failed {
    Reach(ReachError),
    Answer(String),
}

impl Failed {
    /// Kubernetes' word for it, and the sentence.
    fn told(self) -> (&'static str, String) {
        match self {
            Failed::Reach(error) => {
                let reason = match &error {
                    ReachError::NoService { .. } => "ServiceNotFound",
                    ReachError::NoPort { .. } => "ServicePortError",
                    ReachError::NoEndpoints { .. } => "MissingEndpoints",
                    _ => "FailedDiscoveryCheck",
                };
                (reason, error.to_string())
            }
            Failed::Answer(why) => ("FailedDiscoveryCheck", why),
        }
    }
}

/// The body of a successful answer.
async fn get(api: &ApiServer, remote: &Remote, path: &str) -> Result<bytes::Bytes, Failed> {
    let reached = api.outbound().reach(api, &remote.target, None).await.map_err(Failed::Reach)?;
    let wrong = |why: &dyn std::fmt::Display| Failed::Answer(why.to_string());
    let mut request = Request::get(path)
        .header(header::HOST, reached.authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "wherry-aggregator")
        .body(Body::empty())
        .map_err(|error| wrong(&error))?;
    let user = User::new(USER, &["system:masters"]);
    say_who(request.headers_mut(), &user).map_err(|error| wrong(&error))?;
    let answer = proxy::exchange(api, reached.stream, request, None).await;
    let Answer::Ordinary(answer) = answer.map_err(|why| wrong(&why))? else {
        return Err(wrong(&"it changed the protocol without having been asked"));
    };
    if !answer.status().is_success() {
        return Err(wrong(&format!("bad status: {}", answer.status())));
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| wrong(&error))
}

/// An APIResourceList as the aggregated form has a version; null if it is none.
fn version_entry(remote: &Remote, list: &Value) -> Value {
    if list["kind"] != "APIResourceList" {
        return Value::Null;
    }
    let text = |row: &Value, key: &str| meta::text(row, key).to_owned();
    let kind_of = |row: &Value| {
        let or = |key: &str, own: &str| match meta::text(row, key) {
            "" => own.to_owned(),
            said => said.to_owned(),
        };
        json!({
            "group": or("group", &remote.group), "version": or("version", &remote.version),
            "kind": text(row, "kind"),
        })
    };
    let rows = meta::items(list, "resources");
    let mut resources: Vec<Value> = Vec::new();
    for row in rows.iter().filter(|row| !meta::text(row, "name").contains('/')) {
        let name = text(row, "name");
        let mut resource = json!({
            "resource": name, "responseKind": kind_of(row),
            "scope": if row["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": text(row, "singularName"),
            "verbs": row["verbs"].as_array().cloned().unwrap_or_default(),
        });
        for key in ["shortNames", "categories"] {
            if let Some(list) = row[key].as_array().filter(|list| !list.is_empty()) {
                resource[key] = json!(list);
            }
        }
        let parts = rows.iter().filter_map(|part| {
            let (of, part_name) = meta::text(part, "name").split_once('/')?;
            (of == name).then(|| {
                json!({
                    "subresource": part_name, "responseKind": kind_of(part),
                    "verbs": part["verbs"].as_array().cloned().unwrap_or_default(),
                })
            })
        });
        let parts: Vec<Value> = parts.collect();
        if !parts.is_empty() {
            resource["subresources"] = json!(parts);
        }
        resources.push(resource);
    }
    json!({"version": remote.version, "resources": resources})
}

/// Keeps what was found; the leader writes it down.
async fn take_in(api: &ApiServer, remote: &Remote, found: Found) {
    let Found { reason, message, said } = found;
    let available = said.is_some();
    {
        let mut all = api.aggregated().said();
        let held = all.entry(remote.name.clone()).or_default();
        match said {
            Some(said) => *held = said,
            None => held.fresh = false,
        }
    }
    if !matches!(*api.store().leadership().borrow(), Leadership::Leader { .. }) {
        return;
    }
    let entry = api.store().current().get(&stored::key(row(), "", &remote.name));
    let Some(mut object) = entry.map(|entry| stored::decode(row(), &entry)) else { return };
    let status = if available { "True" } else { "False" };
    let condition = Condition { kind: "Available", status, reason, message: &message };
    if meta::uid(&object) != remote.uid
        || !conditions::set(&mut object, condition, Timestamp::now())
    {
        return;
    }
    let body = json!({
        "metadata": {"uid": remote.uid},
        "status": {"conditions": object["status"]["conditions"]},
    });
    let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{}/status", remote.name);
    let request = Request::patch(path)
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(body.to_string().into_bytes())
        .expect("names of objects make valid paths");
    let client = api.leading().client(User::new(USER, &["system:masters"]));
    if let Err(error) = client.request::<Value>(request).await {
        tracing::warn!(api_service = remote.name, %error, "its condition was not written");
    }
}
