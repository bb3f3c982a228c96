//! What one metric asks for: from an answer of a metrics API to a number of Pods.
//!
//! The size is the ratio of what is measured to its target, times the Pods that were measured. Pods
//! that have just begun and Pods without figures are left out at first; then, so that a guess never
//! makes the change larger, they count as using nothing where the size would grow, and as exactly
//! at their target where it would shrink. If that turns the direction round, nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as TypedQuantity;
use serde_json::Value;
use wherry_resources::meta::{items, parse_time, text};
use wherry_resources::quantity::Quantity;

use super::pace::rounded;
use crate::controllers::pods;
use crate::controllers::replicaset::name_of;

/// A Pod's CPU in its first minutes is that of its start.
const CPU_START: SignedDuration = SignedDuration::from_mins(5);
/// A Pod that is unready this soon after its start has not been ready yet.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What a metric is judged by.
pub struct Measured<'a> {
    pub pods: &'a [Arc<Pod>],
    /// What the workload is asked for, and what it has.
    pub current: i32,
    pub observed: i32,
    /// Shares of the target below and above which nothing changes.
    pub tolerance: (f64, f64),
    pub now: Timestamp,
}

/// What a metric asks for.
pub struct Judged {
    pub size: i32,
    pub name: String,
    pub status: MetricStatus,
}

/// Reason of the condition and the event, and what is wrong.
pub type Wrong = (&'static str, String);

/// Judges the answer for a metric.
pub fn judge(
    metric: &MetricSpec,
    answer: Result<&Value, &str>,
    measured: &Measured<'_>,
) -> Result<Judged, Wrong> {
    match metric.type_.as_str() {
        "Resource" => {
            let source = metric.resource.as_ref();
            let source = source.ok_or_else(|| unknown(metric))?;
            resource(&source.name, "", &source.target, answer, measured)
                .map_err(|why| ("FailedGetResourceMetric", why))
        }
        "ContainerResource" => {
            let source = metric.container_resource.as_ref();
            let source = source.ok_or_else(|| unknown(metric))?;
            resource(&source.name, &source.container, &source.target, answer, measured)
                .map_err(|why| ("FailedGetContainerResourceMetric", why))
        }
        "Pods" => of_pods(metric, answer, measured).map_err(|why| ("FailedGetPodsMetric", why)),
        "Object" => {
            of_object(metric, answer, measured).map_err(|why| ("FailedGetObjectMetric", why))
        }
        "External" => {
            external(metric, answer, measured).map_err(|why| ("FailedGetExternalMetric", why))
        }
        _ => Err(unknown(metric)),
    }
}

/// Pods for so many requests at once, by what a metric says that one Pod may have: at least one.
pub fn for_requests(metrics: &Option<Vec<MetricSpec>>, requests: u64) -> i32 {
    let each = metrics.iter().flatten().find_map(|metric| {
        let of_pods = metric.pods.as_ref().map(|source| (&source.metric, &source.target));
        let of_object = || metric.object.as_ref().map(|source| (&source.metric, &source.target));
        let (named, target) = of_pods.or_else(of_object)?;
        let target = millis(target.average_value.as_ref()).filter(|each| *each > 0);
        target.filter(|_| named.name == "concurrency")
    });
    let each = each.unwrap_or(i64::MAX) as f64;
    rounded(requests as f64 * 1_000.0 / each, f64::ceil).max(1)
}

fn unknown(metric: &MetricSpec) -> Wrong {
    let kind = &metric.type_;
    ("InvalidMetricSourceType", format!("unknown or incomplete metric source type {kind:?}"))
}

fn millis(quantity: Option<&TypedQuantity>) -> Option<i64> {
    Some(Quantity::parse(&quantity?.0).ok()?.millis())
}

fn quantity(millis: i64) -> TypedQuantity {
    TypedQuantity(Quantity::from_millis(millis).to_string())
}

/// One Pod's figure.
#[derive(Clone, Copy)]
struct Figure {
    millis: i64,
    at: Option<Timestamp>,
    window: SignedDuration,
}

type Figures = BTreeMap<String, Figure>;

/// Figures of a resource by Pod. A Pod whose container has none is left out.
fn usages(answer: &Value, resource: &str, container: &str) -> Figures {
    let mut figures = Figures::new();
    for item in items(answer, "items") {
        let all = items(item, "containers").iter();
        let wanted: Vec<&Value> =
            all.filter(|held| container.is_empty() || text(held, "name") == container).collect();
        let amounts: Option<Vec<i64>> = wanted
            .iter()
            .map(|held| Some(Quantity::of(&held["usage"][resource])?.millis()))
            .collect();
        if let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) {
            let millis = amounts.into_iter().fold(0, i64::saturating_add);
            let figure = Figure { millis, ..figure(item) };
            figures.insert(text(&item["metadata"], "name").to_string(), figure);
        }
    }
    figures
}

/// Time and window of a figure.
fn figure(item: &Value) -> Figure {
    let seconds = text(item, "window").strip_suffix('s').and_then(|text| text.parse().ok());
    let window = seconds.or_else(|| item["windowSeconds"].as_i64()).unwrap_or(0);
    Figure {
        millis: 0,
        at: parse_time(text(item, "timestamp")),
        window: SignedDuration::from_secs(window),
    }
}

/// Pods by what their figures are worth.
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(measured: &Measured<'_>, figures: &Figures, resource: &str) -> Groups {
    let mut groups = Groups {
        ready: 0,
        unready: BTreeSet::new(),
        missing: BTreeSet::new(),
        ignored: BTreeSet::new(),
    };
    for pod in measured.pods {
        let name = name_of(&pod.metadata).to_string();
        let figure = figures.get(&name);
        if pods::is_deleting(pod) || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(figure) = figure {
            match resource == "cpu" && is_starting(pod, figure, measured.now) {
                true => _ = groups.unready.insert(name),
                false => groups.ready += 1,
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether a CPU figure says more about a Pod's start than about its work.
fn is_starting(pod: &Pod, figure: &Figure, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(started), Some(ready)) = (started, pods::condition(pod, "Ready")) else {
        return true;
    };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    if now.duration_since(started.0) < CPU_START {
        let before = figure.at.is_some_and(|at| at.duration_since(changed) < figure.window);
        return ready.status == "False" || before;
    }
    ready.status == "False" && changed.duration_since(started.0) < FIRST_READINESS
}

/// What is used over what it should be: a ratio, by the Pods that are measured.
trait Ratio {
    fn ratio(&self, figures: &Figures) -> f64;
    /// What a Pod without a figure counts as where the size would shrink.
    fn fallback(&self, pod: &str) -> i64;
}

struct ByRequest<'a> {
    requests: &'a BTreeMap<String, i64>,
    percent: i32,
}

struct ByValue {
    target: i64,
}

impl ByRequest<'_> {
    /// Percent of what the measured Pods ask for.
    fn utilization(&self, figures: &Figures) -> f64 {
        let mut used = 0.0;
        let mut asked = 0.0;
        for (pod, figure) in figures {
            let Some(request) = self.requests.get(pod) else { continue };
            used += figure.millis as f64;
            asked += *request as f64;
        }
        if asked > 0.0 { used * 100.0 / asked } else { 0.0 }
    }
}

impl Ratio for ByRequest<'_> {
    fn ratio(&self, figures: &Figures) -> f64 {
        self.utilization(figures).trunc() / f64::from(self.percent.max(1))
    }

    fn fallback(&self, pod: &str) -> i64 {
        let request = self.requests.get(pod).copied().unwrap_or(0);
        request.saturating_mul(i64::from(self.percent.max(100))) / 100
    }
}

impl Ratio for ByValue {
    fn ratio(&self, figures: &Figures) -> f64 {
        average(figures) as f64 / self.target.max(1) as f64
    }

    fn fallback(&self, _: &str) -> i64 {
        self.target
    }
}

fn average(figures: &Figures) -> i64 {
    let sum = figures.values().map(|figure| figure.millis).fold(0, i64::saturating_add);
    sum / i64::try_from(figures.len().max(1)).unwrap_or(1)
}

impl Measured<'_> {
    fn is_near(&self, ratio: f64) -> bool {
        1.0 - self.tolerance.0 <= ratio && ratio <= 1.0 + self.tolerance.1
    }

    /// The size by figures of Pods. `figures` are those of ready Pods afterwards.
    fn size(&self, figures: &mut Figures, resource: &str, by: &dyn Ratio) -> Result<i32, String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".to_string());
        }
        let Groups { ready, unready, missing, ignored } = group(self, figures, resource);
        figures.retain(|name, _| !unready.contains(name) && !ignored.contains(name));
        let known: BTreeSet<&str> = self.pods.iter().map(|pod| name_of(&pod.metadata)).collect();
        figures.retain(|name, _| known.contains(name.as_str()));
        if figures.is_empty() {
            let why = "did not receive metrics for targeted pods (pods might be unready)";
            return Err(why.to_string());
        }
        let ratio = by.ratio(figures);
        let grows_past_unready = !unready.is_empty() && ratio > 1.0;
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        if !grows_past_unready && missing.is_empty() {
            return Ok(match self.is_near(ratio) {
                true => self.current,
                false => rounded(ratio * f64::from(count(ready)), f64::ceil),
            });
        }
        let mut guessed = figures.clone();
        let mut guess = |name: &String, millis: i64| {
            let figure = Figure { millis, at: None, window: SignedDuration::ZERO };
            guessed.insert(name.clone(), figure);
        };
        for name in &missing {
            guess(name, if ratio < 1.0 { by.fallback(name) } else { 0 });
        }
        if grows_past_unready {
            unready.iter().for_each(|name| guess(name, 0));
        }
        let again = by.ratio(&guessed);
        let turned = ratio < 1.0 && again > 1.0 || ratio > 1.0 && again < 1.0;
        if self.is_near(again) || turned {
            return Ok(self.current);
        }
        let size = rounded(again * f64::from(count(guessed.len())), f64::ceil);
        let turned = again < 1.0 && size > self.current || again > 1.0 && size < self.current;
        Ok(if turned { self.current } else { size })
    }

    fn ready_pods(&self) -> i32 {
        let ready = self.pods.iter().filter(|pod| {
            pods::phase(pod) == "Running" && pods::is_ready(pod) && !pods::is_deleting(pod)
        });
        i32::try_from(ready.count()).unwrap_or(i32::MAX)
    }

    /// The size by one figure for all, of which each Pod may have a part, or all together.
    fn shared(&self, used: i64, target: &MetricTarget) -> Result<i32, String> {
        let per_pod = millis(target.average_value.as_ref()).filter(|each| *each > 0);
        if let Some(each) = per_pod {
            let size = rounded(used as f64 / each as f64, f64::ceil);
            let ratio = used as f64 / (each as f64 * f64::from(self.observed));
            let steady = self.observed > 0 && self.is_near(ratio);
            return Ok(if steady { self.observed } else { size });
        }
        let wanted = millis(target.value.as_ref()).filter(|wanted| *wanted > 0);
        let wanted = wanted.ok_or("the metric has neither a target value nor an average value")?;
        let ratio = used as f64 / wanted as f64;
        if self.current == 0 {
            return Ok(rounded(ratio, f64::ceil));
        }
        Ok(match self.is_near(ratio) {
            true => self.current,
            false => rounded(ratio * f64::from(self.ready_pods()), f64::ceil),
        })
    }
}

/// What each Pod asks for of a resource, in thousandths.
fn requests(
    pods: &[Arc<Pod>],
    resource: &str,
    container: &str,
) -> Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in pods {
        let Some(spec) = pods::spec(pod) else { continue };
        let stays = |held: &&Container| held.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.init_containers.iter().flatten().filter(stays);
        let mut sum = 0;
        for held in spec.containers.iter().chain(sidecars) {
            if !container.is_empty() && held.name != container {
                continue;
            }
            let resources = held.resources.as_ref().and_then(|held| held.requests.as_ref());
            let request = resources.and_then(|all| millis(all.get(resource)));
            let name = name_of(&pod.metadata);
            let request = request.ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {name}", held.name)
            })?;
            sum = request.saturating_add(sum);
        }
        requests.insert(name_of(&pod.metadata).to_string(), sum);
    }
    Ok(requests)
}

fn resource(
    name: &str,
    container: &str,
    target: &MetricTarget,
    answer: Result<&Value, &str>,
    measured: &Measured<'_>,
) -> Result<Judged, String> {
    let of = if container.is_empty() { "resource" } else { "container resource" };
    let what = |part: &str| format!("failed to get {name} {part}: ");
    let answer = answer.map_err(|why| {
        format!("{}unable to get metrics for resource {name}: {why}", what("utilization"))
    })?;
    let mut figures = usages(answer, name, container);
    if figures.is_empty() {
        return Err(format!(
            "{}unable to get metrics for resource {name}: no metrics returned from resource \
             metrics API",
            what("utilization")
        ));
    }
    let (size, title, current) = match (target.average_utilization, &target.average_value) {
        (Some(percent), _) => {
            let failed = |why| format!("{}{why}", what("utilization"));
            let requests = requests(measured.pods, name, container).map_err(failed)?;
            let by = ByRequest { requests: &requests, percent };
            let size = measured.size(&mut figures, name, &by).map_err(failed)?;
            let current = MetricValueStatus {
                average_utilization: Some(rounded(by.utilization(&figures), f64::trunc)),
                average_value: Some(quantity(average(&figures))),
                value: None,
            };
            (size, format!("{name} {of} utilization (percentage of request)"), current)
        }
        (None, value) => {
            let failed = |why| format!("{}{why}", what("usage"));
            let target = millis(value.as_ref()).filter(|target| *target > 0);
            let target = target.ok_or("neither a utilization target nor a value target was set")?;
            let size = measured.size(&mut figures, name, &ByValue { target }).map_err(failed)?;
            (size, format!("{name} {of}"), averaged(&figures))
        }
    };
    let status = match container.is_empty() {
        true => MetricStatus {
            type_: "Resource".to_string(),
            resource: Some(ResourceMetricStatus { name: name.to_string(), current }),
            ..MetricStatus::default()
        },
        false => MetricStatus {
            type_: "ContainerResource".to_string(),
            container_resource: Some(ContainerResourceMetricStatus {
                name: name.to_string(),
                container: container.to_string(),
                current,
            }),
            ..MetricStatus::default()
        },
    };
    Ok(Judged { size, name: title, status })
}

fn averaged(figures: &Figures) -> MetricValueStatus {
    MetricValueStatus {
        average_value: Some(quantity(average(figures))),
        ..MetricValueStatus::default()
    }
}

fn of_pods(
    metric: &MetricSpec,
    answer: Result<&Value, &str>,
    measured: &Measured<'_>,
) -> Result<Judged, String> {
    let source = metric.pods.as_ref().ok_or("the metric names no source")?;
    let name = &source.metric.name;
    let answer = answer.map_err(|why| format!("unable to get metric {name}: {why}"))?;
    let mut figures = Figures::new();
    for item in items(answer, "items") {
        let Some(value) = Quantity::of(&item["value"]) else { continue };
        let pod = text(&item["describedObject"], "name").to_string();
        figures.insert(pod, Figure { millis: value.millis(), ..figure(item) });
    }
    if figures.is_empty() {
        return Err(format!(
            "unable to get metric {name}: no metrics returned from custom metrics API"
        ));
    }
    let target = millis(source.target.average_value.as_ref()).filter(|target| *target > 0);
    let target = target.ok_or("a pods metric needs a target average value")?;
    let size = measured.size(&mut figures, "", &ByValue { target })?;
    let pods = PodsMetricStatus { metric: source.metric.clone(), current: averaged(&figures) };
    let status =
        MetricStatus { type_: "Pods".to_string(), pods: Some(pods), ..MetricStatus::default() };
    Ok(Judged { size, name: format!("pods metric {name}"), status })
}

/// The value, and each Pod's part of it where the target is by Pod.
fn divided(used: i64, target: &MetricTarget, measured: &Measured<'_>) -> MetricValueStatus {
    if target.average_value.is_none() {
        return MetricValueStatus { value: Some(quantity(used)), ..MetricValueStatus::default() };
    }
    let each = used / i64::from(measured.observed.max(1));
    MetricValueStatus { average_value: Some(quantity(each)), ..MetricValueStatus::default() }
}

fn of_object(
    metric: &MetricSpec,
    answer: Result<&Value, &str>,
    measured: &Measured<'_>,
) -> Result<Judged, String> {
    let source = metric.object.as_ref().ok_or("the metric names no source")?;
    let name = &source.metric.name;
    let object = &source.described_object;
    let failed = |why: &str| {
        format!("unable to get metric {name}: {} on {}: {why}", object.kind, object.name)
    };
    let answer = answer.map_err(failed)?;
    let item = items(answer, "items").first().unwrap_or(answer);
    let used = Quantity::of(&item["value"]).ok_or_else(|| failed("the answer has no value"))?;
    let size = measured.shared(used.millis(), &source.target)?;
    let status = MetricStatus {
        type_: "Object".to_string(),
        object: Some(ObjectMetricStatus {
            metric: source.metric.clone(),
            described_object: object.clone(),
            current: divided(used.millis(), &source.target, measured),
        }),
        ..MetricStatus::default()
    };
    Ok(Judged { size, name: format!("{} metric {name}", object.kind), status })
}

fn external(
    metric: &MetricSpec,
    answer: Result<&Value, &str>,
    measured: &Measured<'_>,
) -> Result<Judged, String> {
    let source = metric.external.as_ref().ok_or("the metric names no source")?;
    let name = &source.metric.name;
    let namespaced = |why: &str| format!("unable to get external metric {name}: {why}");
    let answer = answer.map_err(|why| {
        namespaced(&format!("unable to fetch metrics from external metrics API: {why}"))
    })?;
    let values = items(answer, "items").iter().map(|item| Quantity::of(&item["value"]));
    let values: Option<Vec<Quantity>> = values.collect();
    let values = values.filter(|values| !values.is_empty());
    let values =
        values.ok_or_else(|| namespaced("no metrics returned from external metrics API"))?;
    let used = values.iter().map(Quantity::millis).fold(0, i64::saturating_add);
    let size = measured.shared(used, &source.target)?;
    let status = MetricStatus {
        type_: "External".to_string(),
        external: Some(ExternalMetricStatus {
            metric: source.metric.clone(),
            current: divided(used, &source.target, measured),
        }),
        ..MetricStatus::default()
    };
    Ok(Judged { size, name: format!("external metric {name}"), status })
}
