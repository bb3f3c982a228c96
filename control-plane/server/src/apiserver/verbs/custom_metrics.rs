//! `custom.metrics.k8s.io`: what the traffic layer measures, for HorizontalPodAutoscalers.
//!
//! | metric | of Pods | of a Service |
//! |---|---|---|
//! | `requests_per_second` | requests that its containers were given | the sum of its Pods' |
//! | `concurrency` | requests in its containers at once, on average | the sum of its Pods', and what waits for a Pod |
//!
//! Asked of the nodes at each request, as `metrics.k8s.io` is; the figures are of the last 15 s.

use axum::{
    extract::{Path, RawQuery, State},
    response::Response,
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_resources::quantity::Quantity;
use wherry_resources::selectors::LabelSelector;
use wherry_resources::{Object, demand, meta};
use wherry_store::Snapshot;

use super::usage::{self, Row};
use crate::apiserver::{
    ApiServer, content,
    errors::{ApiError, GroupResource},
    escape,
    request::Query,
    stored,
};

pub const GROUP: &str = "/apis/custom.metrics.k8s.io/v1beta2";
pub const PATH: &str =
    "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{resource}/{name}/{metric}";
const VERSION: &str = "custom.metrics.k8s.io/v1beta2";
const METRICS: [&str; 2] = ["requests_per_second", "concurrency"];

/// What a request names.
#[derive(Deserialize)]
pub struct Asked {
    namespace: String,
    resource: String,
    name: String,
    metric: String,
}

/// Answers discovery: which metrics there are of what.
pub async fn list() -> Response {
    let row = |(resource, metric): (&str, &str)| {
        json!({
            "name": format!("{resource}/{metric}"), "singularName": "", "namespaced": true,
            "kind": "MetricValueList", "verbs": ["get"],
        })
    };
    let all = ["pods", "services"].iter();
    let all = all.flat_map(|resource| METRICS.iter().map(move |metric| (*resource, *metric)));
    shown(&json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
        "resources": all.map(row).collect::<Vec<_>>(),
    }))
}

fn shown(value: &Value) -> Response {
    let text = escape::whole(format!("{value}\n").into_bytes());
    content::respond_bytes(StatusCode::OK, "application/json", text, &[])
}

/// Answers GET of one metric: of Pods by name or selector, or of one Service.
pub async fn answer(
    State(api): State<ApiServer>,
    Path(asked): Path<Asked>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    if !METRICS.contains(&asked.metric.as_str()) {
        return Err(absent(&asked));
    }
    let snapshot = api.store().current();
    let selector = match asked.resource.as_str() {
        "pods" if asked.name == "*" => {
            let query = Query::parse(query.as_deref().unwrap_or(""));
            LabelSelector::parse(query.get("labelSelector").unwrap_or(""))
                .map_err(|error| ApiError::BadRequest(error.to_string()))?
        }
        "pods" => LabelSelector::everything(),
        "services" => {
            let kind = wherry_resources::kind("", "v1", "services").expect("a built-in kind");
            let entry = snapshot.get(&stored::key(kind, &asked.namespace, &asked.name));
            let service = stored::decode(kind, &entry.ok_or_else(|| absent(&asked))?);
            let labels = service.pointer("/spec/selector").and_then(Value::as_object);
            labels.map_or_else(LabelSelector::nothing, LabelSelector::from_map)
        }
        _ => return Err(absent(&asked)),
    };
    let rows = usage::rows(&api).await;
    // All Pods of the namespace are read for it.
    let spoken_of = || {
        let mut pods = usage::spoken_of(&snapshot, Some(&asked.namespace), rows);
        pods.retain(|(pod, _)| selector.matches(pod));
        pods
    };
    let pods = api.fairness().compute(spoken_of).await;
    let items = match asked.resource.as_str() {
        "services" => {
            // Requests wait only where there is nobody to take them.
            let waits = pods.is_empty() && asked.metric == "concurrency";
            let waiting = if waits { waiting(&snapshot, &asked) } else { 0 };
            vec![of_service(&asked, &pods, waiting)]
        }
        _ => {
            let named =
                pods.iter().filter(|(pod, _)| asked.name == "*" || asked.name == meta::name(pod));
            named.map(|(pod, rows)| of_pod(&asked.metric, pod, rows)).collect()
        }
    };
    let list = json!({
        "kind": "MetricValueList", "apiVersion": VERSION, "metadata": {}, "items": items,
    });
    Ok(shown(&list))
}

fn absent(asked: &Asked) -> ApiError {
    ApiError::NotFound {
        resource: GroupResource {
            group: "custom.metrics.k8s.io".to_owned(),
            plural: format!("{}/{}", asked.resource, asked.metric),
        },
        name: asked.name.clone(),
    }
}

fn figure(metric: &str, row: &Row) -> u64 {
    match metric {
        "concurrency" => row.concurrency_milli,
        _ => row.requests_milli,
    }
}

fn of_pod(metric: &str, pod: &Object, rows: &[Row]) -> Value {
    value(metric, "Pod", meta::namespace(pod), meta::name(pod), rows.iter(), 0)
}

fn of_service(asked: &Asked, pods: &[(Object, Vec<Row>)], waiting: u64) -> Value {
    let rows = pods.iter().flat_map(|(_, rows)| rows);
    value(&asked.metric, "Service", &asked.namespace, &asked.name, rows, waiting)
}

/// Requests that wait for a Service's first Pod, as the nodes say.
fn waiting(snapshot: &Snapshot, asked: &Asked) -> u64 {
    let kind = wherry_resources::kind("", "v1", "nodes").expect("a built-in kind");
    let nodes = snapshot.range(&stored::prefix(kind, None), None);
    let name = demand::key(&asked.namespace, &asked.name);
    let of_node = |node: Object| {
        let text = meta::annotations(&node).find(|(key, _)| *key == demand::WAITING)?.1;
        demand::read(text).get(&name).copied()
    };
    nodes.filter_map(|(_, entry)| of_node(stored::decode(kind, &entry))).sum()
}

fn value<'a>(
    metric: &str,
    kind: &str,
    namespace: &str,
    name: &str,
    rows: impl Iterator<Item = &'a Row> + Clone,
    waiting: u64,
) -> Value {
    let sum = rows.clone().map(|row| figure(metric, row)).fold(0, u64::saturating_add);
    let sum = sum.saturating_add(waiting.saturating_mul(1_000));
    let at = rows.clone().map(|row| row.at).max().unwrap_or_else(jiff::Timestamp::now);
    let window_ms = rows.map(|row| row.window_ms).max().unwrap_or(0);
    let amount = Quantity::from_millis(i64::try_from(sum).unwrap_or(i64::MAX));
    json!({
        "describedObject": {
            "kind": kind, "namespace": namespace, "name": name, "apiVersion": "/v1",
        },
        "metric": {"name": metric}, "timestamp": meta::time(at),
        "windowSeconds": window_ms.div_ceil(1_000), "value": amount.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::{Server, admin, text};

    #[tokio::test]
    async fn answers_are_written_as_all_others() {
        let server = Server::start().await;
        assert_eq!(text(shown(&json!({"name": "a<b"}))).await, "{\"name\":\"a\\u003cb\"}\n");
        let path =
            format!("{GROUP}/namespaces/default/pods/*/concurrency?labelSelector=%ff%3d%3d%3d");
        let answer = server.response(&admin(), "GET", &path, "", "").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let told = text(answer).await;
        assert!(told.contains("\"reason\":\"BadRequest\""), "{told}");
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let row = |container: &str, requests_milli: u64| Row {
            cpu_ns: 0,
            uid: "u".to_owned(),
            container: container.to_owned(),
            cpu_nanocores: 0,
            memory_bytes: 0,
            requests_milli,
            concurrency_milli: 250,
            at: "2024-01-01T00:00:00Z".parse().expect("a time"),
            window_ms: 15_000,
        };
        let pod = json!({"metadata": {"name": "a", "namespace": "d"}});
        let rows = [row("x", 1_500), row("y", 500)];
        let shown = of_pod("requests_per_second", &pod, &rows);
        assert_eq!(shown["value"], "2");
        assert_eq!(shown["windowSeconds"], 15);
        assert_eq!(of_pod("concurrency", &pod, &rows)["value"], "500m");
    }
}
