//! What plans ask for that is more than one write: metrics of a workload, requests of CronJobs,
//! Events that have grown old.
//!
//! A *measure* asks for the scale of a workload and then, with the selector found there, for each of
//! the metrics; what an answer says is judged by the plan. A *call* is a request to a Service,
//! through the API server's proxy; it is sent at most once.
//!
//! Tasks: [`run_calls`] owns the calls under way (at most [`CALLS_MAX`]) and joins them.

use std::fmt;
use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wherry_resources::meta;

use super::cache::Key;
use super::events::{Note, Recorder};
use super::write::{JSON, Target, WriteError, Writer, member};
use crate::contain;

/// Calls under way at once: they wait for guests, so they may be slow, and must not take the room of
/// others.
const CALLS_MAX: usize = 64;
/// A guest has so long to answer a CronJob's request, and to be there.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A request that waits for a Pod looks for it so often.
const CALL_PAUSE: Duration = Duration::from_millis(250);
/// Bytes of an answer that an event repeats.
const ANSWER_SHOWN_MAX: usize = 200;
/// Events read at once when old ones are looked for.
const PAGE: usize = 500;

/// One metric that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// CPU and memory of all Pods that the selector matches.
    Resources,
    /// One metric of each of these Pods.
    Pods { metric: String, selector: String },
    /// One metric of one object; `resource` as in `ingresses.networking.k8s.io`.
    Object { resource: String, name: String, metric: String, selector: String },
    /// Metrics from elsewhere.
    External { metric: String, selector: String },
}

/// What an autoscaler asks for.
#[derive(Clone, Debug)]
pub struct Measure {
    /// The autoscaler.
    pub about: Key,
    /// The workload.
    pub workload: Key,
    pub queries: Vec<Query>,
}

/// The answers to a [`Measure`].
#[derive(Clone, Debug)]
pub struct Answers {
    pub at: Timestamp,
    pub queries: Vec<Query>,
    /// The workload's Scale.
    pub scale: Result<Value, String>,
    /// One for each query, in their order; none were asked without a scale.
    pub metrics: Vec<Result<Value, String>>,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.workload)?;
        let paths = self.queries.iter().map(|query| query.path(self.about.namespace(), "SELECTOR"));
        paths.into_iter().try_for_each(|path| write!(f, " {path}"))
    }
}

impl Query {
    /// Where it is asked.
    pub fn path(&self, namespace: &str, pods: &str) -> String {
        let text = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut parameters = Vec::new();
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                parameters.push(format!("{name}={}", text(value)));
            }
        };
        let custom = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}");
        let path = match self {
            Query::Resources => {
                add("labelSelector", pods);
                format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods")
            }
            Query::Pods { metric, selector } => {
                add("labelSelector", pods);
                add("metricLabelSelector", selector);
                format!("{custom}/pods/*/{}", text(metric))
            }
            Query::Object { resource, name, metric, selector } => {
                add("metricLabelSelector", selector);
                format!("{custom}/{resource}/{}/{}", text(name), text(metric))
            }
            Query::External { metric, selector } => {
                add("labelSelector", selector);
                let root = "/apis/external.metrics.k8s.io/v1beta1";
                format!("{root}/namespaces/{namespace}/{}", text(metric))
            }
        };
        match parameters.is_empty() {
            true => path,
            false => format!("{path}?{}", parameters.join("&")),
        }
    }
}

impl Writer {
    /// Asks for everything; what cannot be had is part of the answers.
    pub(super) async fn measure(&self, measure: Measure) -> Answers {
        let path = format!("{}/scale", member(&measure.workload));
        let said = |error: WriteError| error.to_string();
        let scale = self.send(Method::GET, &path, JSON, None).await.map_err(said);
        let mut metrics = Vec::new();
        if let Ok(scale) = &scale {
            let pods = meta::text(&scale["status"], "selector");
            for query in &measure.queries {
                let path = query.path(measure.about.namespace(), pods);
                metrics.push(self.send(Method::GET, &path, JSON, None).await.map_err(said));
            }
        }
        Answers { at: Timestamp::now(), queries: measure.queries, scale, metrics }
    }

    /// Deletes Events page by page. One that is renewed meanwhile stays.
    pub(super) async fn expire_events(&self, before: Timestamp) -> Result<(), WriteError> {
        let mut from = String::new();
        loop {
            let path = format!("/api/v1/events?limit={PAGE}&continue={from}");
            let list = self.send(Method::GET, &path, JSON, None).await?;
            let old = meta::items(&list, "items").iter().filter(|event| last_seen(event) < before);
            for event in old {
                let (namespace, name) = (meta::namespace(event), meta::name(event));
                let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
                let same = json!({
                    "uid": meta::uid(event), "resourceVersion": meta::resource_version(event),
                });
                let options = json!({"preconditions": same});
                match self.send(Method::DELETE, &path, JSON, Some(&options)).await {
                    Ok(_) | Err(WriteError::Stale(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let next = meta::text(&list["metadata"], "continue");
            if next.is_empty() {
                return Ok(());
            }
            from = utf8_percent_encode(next, NON_ALPHANUMERIC).to_string();
        }
    }
}

/// When an Event was told last; one without any time is new.
fn last_seen(event: &Value) -> Timestamp {
    let at = |path: &str| meta::parse_time(event.pointer(path)?.as_str()?);
    let times = ["/lastTimestamp", "/series/lastObservedTime", "/eventTime"];
    let told = times.into_iter().filter_map(at).max();
    told.or_else(|| meta::creation_timestamp(event)).unwrap_or(Timestamp::MAX)
}

/// A CronJob's request.
#[derive(Clone, Debug)]
pub struct Call {
    /// The CronJob.
    pub target: Target,
    /// The CronJob as an event's `involvedObject`.
    pub about: Value,
    /// When it was due.
    pub due: Timestamp,
    pub method: Method,
    /// Of the Service's proxy.
    pub path: String,
    /// As people wrote it.
    pub shown: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} for {} of {}", self.method, self.path, self.target.key, self.due)
    }
}

/// Sends CronJobs' requests until the shutdown; those under way are dropped then.
pub async fn run_calls(
    client: kube::Client,
    recorder: Recorder,
    mut queue: mpsc::Receiver<Call>,
    shutdown: CancellationToken,
) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(done) = calls.join_next(), if !calls.is_empty() => {
                if let Err(error) = done {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            Some(call) = queue.recv(), if calls.len() < CALLS_MAX => {
                calls.spawn(contain::task(send(client.clone(), recorder.clone(), call)));
            }
            else => break,
        }
    }
    calls.shutdown().await;
}

async fn send(client: kube::Client, recorder: Recorder, call: Call) {
    let started = tokio::time::Instant::now();
    let answer = async {
        loop {
            let asked = Request::builder().method(call.method.clone()).uri(&call.path);
            let request = asked
                .header("wherry-cron-due", call.due.to_string())
                .body(Vec::new())
                .expect("the plan has checked the path");
            match client.request_text(request).await {
                // It was not sent to anybody: an autoscaler may be about to bring a Pod.
                Err(kube::Error::Api(status))
                    if is_nobody_there(&status)
                        && started.elapsed() + CALL_PAUSE * 2 < CALL_TIMEOUT =>
                {
                    tokio::time::sleep(CALL_PAUSE).await;
                }
                answer => return answer,
            }
        }
    };
    let answer = tokio::time::timeout(CALL_TIMEOUT, answer).await;
    let said = match answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => {
            let answer: String = status.message.chars().take(ANSWER_SHOWN_MAX).collect();
            Err(format!("status {}: {answer}", status.code))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {CALL_TIMEOUT:?}")),
    };
    let (warning, reason, message) = match &said {
        Ok(()) => (false, "CompletedRequest", format!("{} was answered", call.shown)),
        Err(why) => (true, "FailedRequest", format!("{} failed: {why}", call.shown)),
    };
    recorder.record(Note::about("cronjob-controller", call.about, warning, reason, message));
    if said.is_ok() {
        let path = format!("{}/status", member(&call.target.key));
        let body = json!({
            "metadata": {"uid": call.target.uid},
            "status": {"lastSuccessfulTime": Time(Timestamp::now())},
        });
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(body.to_string().into_bytes())
            .expect("kinds and names make valid paths");
        if let Err(error) = client.request::<Value>(request).await {
            tracing::debug!(%error, "the time of a CronJob's answer was not written");
        }
    }
}

/// Whether the API server's proxy says that the Service has no ready Pod.
fn is_nobody_there(status: &kube::core::Status) -> bool {
    status.code == 503 && status.message.starts_with("no endpoints available for service")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_metrics_are_asked() {
        let check = |query: Query, expected: &str| assert_eq!(query.path("d", "a=1"), expected);
        let text = |text: &str| text.to_string();
        check(
            Query::Resources,
            "/apis/metrics.k8s.io/v1beta1/namespaces/d/pods?labelSelector=a%3D1",
        );
        let pods = Query::Pods { metric: text("concurrency"), selector: text("") };
        let custom = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/d";
        check(pods, &format!("{custom}/pods/*/concurrency?labelSelector=a%3D1"));
        let object = Query::Object {
            resource: text("services"),
            name: text("web"),
            metric: text("requests"),
            selector: text("verb=get"),
        };
        let path = format!("{custom}/services/web/requests?metricLabelSelector=verb%3Dget");
        check(object, &path);
        let external = Query::External { metric: text("queue"), selector: text("") };
        check(external, "/apis/external.metrics.k8s.io/v1beta1/namespaces/d/queue");
    }

    #[test]
    fn an_event_lives_from_when_it_was_told_last() {
        let seen = |event: Value| last_seen(&event).to_string();
        let both = json!({"lastTimestamp": "2024-01-01T00:00:00Z",
            "metadata": {"creationTimestamp": "2023-01-01T00:00:00Z"}});
        assert_eq!(seen(both), "2024-01-01T00:00:00Z");
        let made = json!({"metadata": {"creationTimestamp": "2023-01-01T00:00:00Z"}});
        assert_eq!(seen(made), "2023-01-01T00:00:00Z");
    }
}
