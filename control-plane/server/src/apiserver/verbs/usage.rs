//! `metrics.k8s.io`: what Pods and nodes use, asked of the agents at each request.
//!
//! An agent answers for the Pods that are bound to its node and for no others, whatever it says. A
//! node without a tunnel to this member has no figures: then clients show none.

use super::select::Selection;
use crate::apiserver::{ApiServer, errors::ApiError, request::Request, stored};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use wherry_resources::{Kind, Object, meta};
use wherry_store::Snapshot;

/// How long one node may take; the others are shown without it.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes that are asked at the same time.
const NODES_AT_ONCE: usize = 64;
/// One node's answer: 8,000 Pods of a few containers at 200 bytes each.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What one container uses, as its agent says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Uid of the Pod.
    pub uid: String,
    pub container: String,
    /// All its CPU time.
    #[serde(default)]
    pub cpu_ns: u64,
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
    /// Thousandths of requests in a second, and of requests at once.
    #[serde(default)]
    pub requests_milli: u64,
    #[serde(default)]
    pub concurrency_milli: u64,
    pub at: Timestamp,
    pub window_ms: u64,
}

/// Answers GET of the list or of one.
pub async fn usage(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind;
    let selection = Selection::of(request)?;
    let snapshot = api.store().current();
    let rows = rows(api).await;
    // All Pods are read for it.
    let answer = || {
        let mut items = match kind.kind {
            "PodMetrics" => pods(&snapshot, request.namespace(), rows),
            _ => nodes(&snapshot, rows),
        };
        items.retain(|item| selection.matches(item));
        super::get::respond_computed(request, items)
    };
    api.fairness().compute(answer).await
}

/// All agents' rows by node.
pub(super) async fn rows(api: &ApiServer) -> Vec<(String, Vec<Row>)> {
    let asked = api.tunnels().nodes().into_iter().map(|node| async move {
        let rows = of_node(api, &node).await;
        if rows.is_none() {
            tracing::debug!(node, "no usage from this node");
        }
        rows.map(|rows| (node, rows))
    });
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(NODES_AT_ONCE).collect().await;
    answers.into_iter().flatten().collect()
}

/// One agent's rows; None if it does not answer.
pub async fn of_node(api: &ApiServer, node: &str) -> Option<Vec<Row>> {
    asked(api, node, "/usage").await
}

/// What an agent answers; None if it does not.
pub async fn asked<T: DeserializeOwned>(api: &ApiServer, node: &str, path: &str) -> Option<T> {
    let asked = async {
        let answer = api.tunnels().get(node, path).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    };
    tokio::time::timeout(NODE_TIMEOUT, asked).await.ok().flatten()
}

/// PodMetrics of the Pods that are bound to the node that speaks of them.
fn pods(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    rows: Vec<(String, Vec<Row>)>,
) -> Vec<Object> {
    let mut items = Vec::new();
    for (pod, mut rows) in spoken_of(snapshot, namespace, rows) {
        let mut item = measured("PodMetrics", &pod, &rows);
        meta::set(&mut item, "namespace", meta::namespace(&pod));
        rows.sort_by(|left, right| left.container.cmp(&right.container));
        let container = |row: &Row| {
            let usage = amounts(row.cpu_nanocores, row.memory_bytes);
            json!({ "name": row.container, "usage": usage })
        };
        item["containers"] = rows.iter().map(container).collect();
        items.push(item);
    }
    items
}

/// Pods with the rows of their containers, in the order of keys: namespace, then name. A Pod is
/// spoken of by the node that it is bound to, and by no other. One that has ended uses nothing.
pub fn spoken_of(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    rows: Vec<(String, Vec<Row>)>,
) -> Vec<(Object, Vec<Row>)> {
    // By uid and by who says it.
    let mut said: BTreeMap<(String, String), Vec<Row>> = BTreeMap::new();
    for (node, rows) in rows {
        for row in rows {
            said.entry((row.uid.clone(), node.clone())).or_default().push(row);
        }
    }
    let kind = built_in("pods");
    let mut found = Vec::new();
    for (_, entry) in snapshot.range(&stored::prefix(kind, namespace), None) {
        if said.is_empty() {
            break;
        }
        let pod = stored::decode_to_print(kind, &entry.value, entry.modified);
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
        let key = (meta::uid(&pod).to_owned(), node.to_owned());
        let phase = pod.pointer("/status/phase").and_then(Value::as_str);
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        if let Some(rows) = said.remove(&key).filter(|_| !ended) {
            found.push((pod, rows));
        }
    }
    found
}

/// NodeMetrics: the sum of what a node's containers use.
fn nodes(snapshot: &Snapshot, rows: Vec<(String, Vec<Row>)>) -> Vec<Object> {
    let kind = built_in("nodes");
    let item = |(node, rows): (String, Vec<Row>)| {
        let entry = snapshot.get(&stored::key(kind, "", &node))?;
        let mut item = measured("NodeMetrics", &stored::decode(kind, &entry), &rows);
        let cpu = rows.iter().map(|row| row.cpu_nanocores).fold(0, u64::saturating_add);
        let memory = rows.iter().map(|row| row.memory_bytes).fold(0, u64::saturating_add);
        item["usage"] = amounts(cpu, memory);
        Some(item)
    };
    let mut items: Vec<Object> = rows.into_iter().filter_map(item).collect();
    items.sort_by(|left, right| meta::name(left).cmp(meta::name(right)));
    items
}

fn built_in(plural: &str) -> &'static Kind {
    wherry_resources::kind("", "v1", plural).expect("a built-in kind")
}

/// The object without its figures: named and labelled as what is measured.
fn measured(kind: &str, of: &Object, rows: &[Row]) -> Object {
    let at = rows.iter().map(|row| row.at).max().unwrap_or_else(Timestamp::now);
    let window_ms = rows.iter().map(|row| row.window_ms).max().unwrap_or(0);
    let mut item = json!({
        "kind": kind, "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": {
            "name": meta::name(of), "creationTimestamp": meta::time(Timestamp::now()),
        },
        "timestamp": meta::time(at), "window": format!("{}s", window_ms.div_ceil(1000)),
    });
    for (key, value) in meta::labels(of) {
        meta::set_label(&mut item, key, value);
    }
    item
}

fn amounts(cpu_nanocores: u64, memory_bytes: u64) -> Value {
    json!({ "cpu": format!("{cpu_nanocores}n"), "memory": format!("{}Ki", memory_bytes / 1024) })
}
