//! HorizontalPodAutoscalers: how many Pods a workload has, by what is measured of it.
//!
//! Owns: `spec.replicas` of the scale of the workloads they name, and their own status.
//!
//! ```text
//!  every SYNC: Measure (scale, metrics) ─► answers ─► metrics.rs: what each metric asks for
//!      ─► the most of these ─► pace.rs: stabilised, not faster than the policies let ─► Scale
//! ```
//!
//! Where `minReplicas` is 0 and requests wait for a Pod, nothing is measured first (`demand.rs`).
//!
//! The plan is pure: what was measured, what was recommended before and when the size was changed
//! are part of its snapshot ([`Answers`] and [`Memory`], kept in mind by the cache, lost with the
//! leader, as with a restart of Kubernetes' controller). Conditions and events are in Kubernetes'
//! words, as people and programs look for them.

pub mod demand;
mod metrics;
mod pace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use wherry_resources::selectors::{LabelSelector, Operator};
use wherry_resources::{KINDS, Kind};

use super::cache::{Cache, Change, Key, Memo, Object};
use super::errands::{Answers, Measure, Query};
use super::events::Note;
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::{Action, Target, Write, status_patch};
use demand::Demand;
pub use pace::Memory;

/// Every autoscaler measures this often, as in Kubernetes.
const SYNC: Duration = Duration::from_secs(15);
/// A workload that was just woken is not woken again before its new size is known here.
const WAKE_PAUSE: SignedDuration = SignedDuration::from_secs(2);
const COMPONENT: &str = "horizontal-pod-autoscaler";

/// What a plan for one autoscaler reads.
pub struct Snapshot {
    pub autoscaler: Arc<HorizontalPodAutoscaler>,
    /// The workload's kind, if there is one that can be scaled.
    pub kind: Option<&'static Kind>,
    /// What was measured last.
    pub answers: Option<Arc<Answers>>,
    pub memory: Arc<Memory>,
    /// Pods that the scale's selector matches.
    pub pods: Vec<Arc<Pod>>,
    /// Other autoscalers that mean some of these Pods.
    pub rivals: Vec<String>,
    /// Why the last writes failed.
    pub failure: Option<String>,
    /// Requests that wait for the workload.
    pub waiting: Demand,
    /// The workload, if it is held here, and the size that it is asked for.
    pub workload: Option<(Target, i32)>,
}

pub const CONTROLLER: Controller = Controller { name: "autoscaler", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<HorizontalPodAutoscaler>().is_some() {
        keys.push(change.key.clone());
    }
    demand::wake(cache, change, keys);
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let namespace = key.namespace();
    let Some(autoscaler) = view.cache.get::<HorizontalPodAutoscaler>(namespace, key.name()) else {
        return Plan::default();
    };
    let workload = workload(view.cache, &autoscaler);
    let answers = view.cache.memo::<Answers>(key);
    let selector = answers.as_ref().and_then(|answers| selector(answers).ok());
    let pods = selector.map(|it| selected(view.cache, namespace, &it)).unwrap_or_default();
    let snapshot = Snapshot {
        rivals: rivals(view.cache, key, &pods),
        kind: kind_of(view.cache, &autoscaler.spec),
        waiting: demand::waiting(
            view.cache,
            view.instant,
            view.now,
            &autoscaler,
            workload.as_ref(),
        ),
        workload: workload.as_ref().and_then(demand::sized),
        memory: view.cache.memo(key).unwrap_or_default(),
        pods,
        failure: view.failure.map(str::to_string),
        answers,
        autoscaler,
    };
    plan(&snapshot, view.now)
}

/// Pods that a selector means, found by the labels that it wants to be equal.
fn selected(cache: &Cache, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Pod>> {
    let equal = selector.requirements().iter().filter(|it| it.operator == Operator::Equals);
    let equal = equal.filter_map(|it| Some((it.key.clone(), it.values.first()?.clone())));
    let equal: BTreeMap<String, String> = equal.collect();
    let mut pods: Vec<Arc<Pod>> = match equal.is_empty() {
        true => cache.within::<Pod>(namespace).collect(),
        false => cache.selected(namespace, &equal),
    };
    pods.retain(|pod| means(selector, pod));
    pods
}

fn means(selector: &LabelSelector, pod: &Pod) -> bool {
    selector.matches_labels(Some(&json!(pod.metadata.labels)))
}

/// Other autoscalers of the namespace that mean one of these Pods, by what was measured last.
fn rivals(cache: &Cache, key: &Key, pods: &[Arc<Pod>]) -> Vec<String> {
    let mut rivals = Vec::new();
    if pods.is_empty() {
        return rivals;
    }
    for other in cache.within::<HorizontalPodAutoscaler>(key.namespace()) {
        let name = name_of(&other.metadata);
        let other = Key::of::<HorizontalPodAutoscaler>(key.namespace(), name);
        let answers = cache.memo::<Answers>(&other).filter(|_| other != *key);
        let Some(Ok(selector)) = answers.map(|answers| selector(&answers)) else { continue };
        if pods.iter().any(|pod| means(&selector, pod)) {
            rivals.push(name.to_string());
        }
    }
    rivals
}

/// The kind that the reference names, whatever version it says.
fn kind_of(cache: &Cache, spec: &HorizontalPodAutoscalerSpec) -> Option<&'static Kind> {
    let target = &spec.scale_target_ref;
    let version = target.api_version.as_deref().unwrap_or("");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let built_in = KINDS
        .iter()
        .find(|kind| kind.is(group, &target.kind) && kind.subresource("scale").is_some());
    built_in.or_else(|| cache.custom_kind(version, &target.kind))
}

/// The workload that the reference names, if it is held here.
fn workload(cache: &Cache, autoscaler: &HorizontalPodAutoscaler) -> Option<Object> {
    let kind = kind_of(cache, &autoscaler.spec)?;
    let namespace = autoscaler.metadata.namespace.as_deref().unwrap_or("");
    cache.object(&Key::new(kind, namespace, &autoscaler.spec.scale_target_ref.name)).cloned()
}

fn selector(answers: &Answers) -> Result<LabelSelector, String> {
    let scale = answers.scale.as_ref().map_err(String::clone)?;
    let text = scale["status"]["selector"].as_str().unwrap_or("");
    if text.is_empty() {
        return Err("the HPA target's scale is missing a selector".to_string());
    }
    LabelSelector::parse(text).map_err(|error| {
        format!("couldn't convert selector into a corresponding internal selector object: {error}")
    })
}

/// The answers that are to be judged; none while there are no fresh ones.
fn fresh<'a>(
    snapshot: &'a Snapshot,
    queries: &[Query],
    now: Timestamp,
) -> Option<(&'a Answers, Duration)> {
    let answers = snapshot.answers.as_deref()?;
    let age = Duration::try_from(now.duration_since(answers.at)).unwrap_or_default();
    let outdated = snapshot.memory.judged == Some(answers.at)
        && snapshot.memory.generation != snapshot.autoscaler.metadata.generation;
    let usable = age < SYNC && !outdated && answers.queries == queries;
    usable.then_some((answers, SYNC.saturating_sub(age)))
}

/// Measures, or judges what was measured.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let autoscaler = &*snapshot.autoscaler;
    let spec = &autoscaler.spec;
    if autoscaler.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let mut state = State::new(snapshot, spec, now);
    let Some(kind) = snapshot.kind else {
        let target = &spec.scale_target_ref;
        let why = format!("no matches for kind {:?} that can be scaled", target.kind);
        state.no_scale(&why);
        let mut plan = state.finish(0, None);
        plan.look_again(SYNC);
        return plan;
    };
    if let Some((asleep, 0)) = &snapshot.workload
        && snapshot.waiting.requests > 0
    {
        return wake_up(state, asleep.clone());
    }
    let namespace = autoscaler.metadata.namespace.as_deref().unwrap_or("");
    let workload = Key::new(kind, namespace, &spec.scale_target_ref.name);
    let queries: Vec<Query> = spec.metrics.iter().flatten().filter_map(query).collect();
    let Some((answers, left)) = fresh(snapshot, &queries, now) else {
        let about = Target::of(autoscaler).key;
        let measure = Measure { about, workload, queries };
        return vec![Action::Measure(Box::new(measure)).into()].into();
    };
    if snapshot.memory.judged == Some(answers.at) {
        return Plan { writes: Vec::new(), again: Some(left) };
    }
    let mut plan = judge(state, answers, workload);
    plan.look_again(left);
    plan
}

/// Gives a workload that has no Pods as many as the waiting requests ask for.
fn wake_up(mut state: State<'_>, workload: Target) -> Plan {
    let snapshot = state.snapshot;
    let just_woken = |(at, _): &(Timestamp, i32)| state.now.duration_since(*at).abs() < WAKE_PAUSE;
    if snapshot.memory.added.last().is_some_and(just_woken) && snapshot.failure.is_none() {
        let again = Duration::try_from(WAKE_PAUSE).unwrap_or_default();
        return Plan { writes: Vec::new(), again: Some(again) };
    }
    let Demand { requests, service } = &snapshot.waiting;
    let size = metrics::for_requests(&state.spec.metrics, *requests).min(state.spec.max_replicas);
    let mut memory = (*snapshot.memory).clone();
    memory.scaled(0, size, state.now);
    // Whoever shrinks it again waits as long as after any other size.
    memory.recommended.push((state.now, size));
    let message = format!("the HPA controller was able to update the target scale to {size}");
    state.say("AbleToScale", true, "SucceededRescale", &message);
    state.rescaled = true;
    let wait = if *requests == 1 { "request waits" } else { "requests wait" };
    let message = format!("New size: {size}; reason: {requests} {wait} for Service {service}");
    let note = Note::normal(COMPONENT, &*snapshot.autoscaler, "SuccessfulRescale", message);
    let about = Target::of(&*snapshot.autoscaler).key;
    let memo = Memo::new(memory);
    let scale = Action::Scale { target: workload, replicas: size, about, memo };
    state.writes.push(Write::from(scale).noting(note));
    state.finish(0, Some(size))
}

/// What has to be asked for a metric; none for a metric that says nothing.
fn query(metric: &MetricSpec) -> Option<Query> {
    let selector = |metric: &k8s_openapi::api::autoscaling::v2::MetricIdentifier| {
        let typed = metric.selector.as_ref().map(|selector| json!(selector));
        match typed {
            None => String::new(),
            typed => LabelSelector::from_typed(typed.as_ref())
                .map(|selector| selector.to_string())
                .unwrap_or_default(),
        }
    };
    match metric.type_.as_str() {
        "Resource" | "ContainerResource" => Some(Query::Resources),
        "Pods" => {
            let metric = &metric.pods.as_ref()?.metric;
            Some(Query::Pods { metric: metric.name.clone(), selector: selector(metric) })
        }
        "Object" => {
            let source = metric.object.as_ref()?;
            let described = &source.described_object;
            Some(Query::Object {
                resource: plural(described.api_version.as_deref(), &described.kind),
                name: described.name.clone(),
                metric: source.metric.name.clone(),
                selector: selector(&source.metric),
            })
        }
        _ => {
            let metric = &metric.external.as_ref()?.metric;
            Some(Query::External { metric: metric.name.clone(), selector: selector(metric) })
        }
    }
}

/// `ingresses.networking.k8s.io`: the name of a kind in custom metrics.
fn plural(api_version: Option<&str>, kind: &str) -> String {
    let version = api_version.unwrap_or("");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let row = KINDS.iter().find(|row| row.is(group, kind));
    row.map_or_else(|| format!("{}s", kind.to_lowercase()), |row| row.qualified())
}

/// What a plan says while it is made.
struct State<'a> {
    snapshot: &'a Snapshot,
    spec: &'a HorizontalPodAutoscalerSpec,
    now: Timestamp,
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    metrics: Option<Vec<MetricStatus>>,
    rescaled: bool,
    writes: Vec<Write>,
}

impl<'a> State<'a> {
    fn new(
        snapshot: &'a Snapshot,
        spec: &'a HorizontalPodAutoscalerSpec,
        now: Timestamp,
    ) -> State<'a> {
        let status = snapshot.autoscaler.status.as_ref();
        State {
            snapshot,
            spec,
            now,
            conditions: status.and_then(|status| status.conditions.clone()).unwrap_or_default(),
            metrics: status.and_then(|status| status.current_metrics.clone()),
            rescaled: false,
            writes: Vec::new(),
        }
    }

    fn say(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        let status = if holds { "True" } else { "False" };
        let held = self.conditions.iter_mut().find(|held| held.type_ == kind);
        let since = held.as_ref().filter(|held| held.status == status);
        let wanted = HorizontalPodAutoscalerCondition {
            type_: kind.to_string(),
            status: status.to_string(),
            reason: Some(reason.to_string()),
            message: Some(message.to_string()),
            last_transition_time: match since {
                Some(held) => held.last_transition_time.clone(),
                None => Some(Time(self.now)),
            },
            observed_generation: self.snapshot.autoscaler.metadata.generation,
        };
        match held {
            Some(held) => *held = wanted,
            None => self.conditions.push(wanted),
        }
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        let note = Note::warning(COMPONENT, &*self.snapshot.autoscaler, reason, message);
        self.writes.push(Write::tell(note));
    }

    fn no_scale(&mut self, why: &str) {
        self.warn("FailedGetScale", why.to_string());
        let message =
            format!("the HPA controller was unable to get the target's current scale: {why}");
        self.say("AbleToScale", false, "FailedGetScale", &message);
    }

    /// The status; without a desired size the one before stands.
    fn finish(mut self, current: i32, desired: Option<i32>) -> Plan {
        let autoscaler = &*self.snapshot.autoscaler;
        let old = autoscaler.status.clone().unwrap_or_default();
        let status = HorizontalPodAutoscalerStatus {
            conditions: Some(self.conditions),
            current_metrics: self.metrics,
            current_replicas: Some(current),
            desired_replicas: desired.unwrap_or(old.desired_replicas),
            last_scale_time: if self.rescaled { Some(Time(self.now)) } else { old.last_scale_time },
            observed_generation: autoscaler.metadata.generation,
        };
        let patch = status_patch(autoscaler.status.as_ref(), &status);
        self.writes.extend(patch.map(|patch| Write::patch_status(autoscaler, patch)));
        Plan { writes: self.writes, again: None }
    }
}

/// Decides for fresh answers.
fn judge(mut state: State<'_>, answers: &Answers, workload: Key) -> Plan {
    let snapshot = state.snapshot;
    let about = Target::of(&*snapshot.autoscaler).key;
    let mut memory = (*snapshot.memory).clone();
    memory.judged = Some(answers.at);
    memory.generation = snapshot.autoscaler.metadata.generation;
    let remember = |memory: Memory| -> Write {
        Action::Remember { about: about.clone(), memo: Memo::new(memory) }.into()
    };
    let scale = match &answers.scale {
        Ok(scale) => scale,
        Err(why) => {
            state.no_scale(why);
            state.writes.push(remember(memory));
            return state.finish(0, None);
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    state.say("AbleToScale", true, "SucceededGetScale", message);
    let number = |value: &Value| i32::try_from(value.as_i64().unwrap_or(0)).unwrap_or(i32::MAX);
    let current = number(&scale["spec"]["replicas"]);
    let observed = number(&scale["status"]["replicas"]);
    let wanted = wanted(&mut state, answers, current, observed, &mut memory);
    let Some(Wanted { size, reason }) = wanted else {
        state.writes.push(remember(memory));
        return state.finish(observed, Some(current));
    };
    if size == current {
        state.writes.push(remember(memory));
        return state.finish(observed, Some(current));
    }
    if let Some(why) = snapshot.failure.clone() {
        let message = format!("the HPA controller was unable to update the target scale: {why}");
        state.say("AbleToScale", false, "FailedUpdateScale", &message);
        state.warn("FailedRescale", format!("New size: {size}; reason: {reason}; error: {why}"));
        state.writes.push(remember(memory));
        return state.finish(observed, Some(current));
    }
    let message = format!("the HPA controller was able to update the target scale to {size}");
    state.say("AbleToScale", true, "SucceededRescale", &message);
    state.rescaled = true;
    memory.scaled(current, size, state.now);
    let revision = scale["metadata"]["resourceVersion"].as_str().unwrap_or("").to_string();
    let uid = scale["metadata"]["uid"].as_str().unwrap_or("").to_string();
    let measured = Target { key: workload, uid, revision };
    let target = newest(snapshot, measured, current);
    let message = format!("New size: {size}; reason: {reason}");
    let note = Note::normal(COMPONENT, &*snapshot.autoscaler, "SuccessfulRescale", message);
    let scale = Action::Scale { target, replicas: size, about, memo: Memo::new(memory) };
    state.writes.push(Write::from(scale).noting(note));
    state.finish(observed, Some(size))
}

/// The workload that was measured, at the revision that is held here while its size is still the
/// same: a young one's status is written many times a second.
fn newest(snapshot: &Snapshot, measured: Target, size: i32) -> Target {
    let held = snapshot.workload.clone();
    let held = held.filter(|(held, now)| held.uid == measured.uid && *now == size);
    held.map_or(measured, |(held, _)| held)
}

/// A size and why.
struct Wanted {
    size: i32,
    reason: String,
}

/// The size that the workload should have; none when nothing can be said.
fn wanted(
    state: &mut State<'_>,
    answers: &Answers,
    current: i32,
    observed: i32,
    memory: &mut Memory,
) -> Option<Wanted> {
    let spec = state.spec;
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    if current == 0 && least != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        state.say("ScalingActive", false, "ScalingDisabled", message);
        return None;
    }
    let bound = |size: i32, which: &str| {
        let reason = format!("Current number of replicas {which}");
        Some(Wanted { size, reason })
    };
    if current > most {
        return bound(most, "above Spec.MaxReplicas");
    }
    if current < least {
        return bound(least, "below Spec.MinReplicas");
    }
    if let Err(why) = selector(answers) {
        state.say("ScalingActive", false, "InvalidSelector", &why);
        state.warn("InvalidSelector", why);
        return None;
    }
    if let Some(why) = ambiguity(state.snapshot, answers) {
        state.say("ScalingActive", false, "AmbiguousSelector", &why);
        state.warn("AmbiguousSelector", why);
        return None;
    }
    let rules = pace::Rules::of(spec.behavior.as_ref());
    let measured = metrics::Measured {
        pods: &state.snapshot.pods,
        current,
        observed,
        tolerance: rules.tolerance(),
        now: state.now,
    };
    memory.begin(current, state.now);
    let (proposed, metric) = proposal(state, answers, &measured)?;
    let proposed = if state.snapshot.waiting.requests > 0 { proposed.max(1) } else { proposed };
    let paced = pace::pace(memory, &rules, (current, proposed), (least, most), state.now);
    let (reason, message) = paced.stabilized;
    state.say("AbleToScale", true, reason, message);
    let (limited, reason, message) = paced.limited;
    state.say("ScalingLimited", limited, reason, message);
    let reason = match proposed > current {
        true => format!("{metric} above target"),
        false => "All metrics below target".to_string(),
    };
    Some(Wanted { size: paced.size, reason })
}

/// Why nobody can say what the Pods' figures mean: several autoscalers would change one workload.
fn ambiguity(snapshot: &Snapshot, answers: &Answers) -> Option<String> {
    if snapshot.rivals.is_empty() {
        return None;
    }
    let meta = &snapshot.autoscaler.metadata;
    let mut names: Vec<&str> = snapshot.rivals.iter().map(String::as_str).collect();
    names.push(name_of(meta));
    names.sort_unstable();
    let namespace = meta.namespace.as_deref().unwrap_or("");
    let names: Vec<String> = names.iter().map(|name| format!("{namespace}/{name}")).collect();
    let scale = answers.scale.as_ref().ok()?;
    Some(format!(
        "pods by selector {} are controlled by multiple HPAs: [{}]",
        scale["status"]["selector"].as_str().unwrap_or(""),
        names.join(" ")
    ))
}

/// The most that any metric asks for, and its name. With one that cannot be read nothing shrinks.
fn proposal(
    state: &mut State<'_>,
    answers: &Answers,
    measured: &metrics::Measured<'_>,
) -> Option<(i32, String)> {
    let mut best: Option<(i32, String)> = None;
    let mut statuses = Vec::new();
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    let specs: Vec<&MetricSpec> = state.spec.metrics.iter().flatten().collect();
    let mut said = answers.metrics.iter();
    for metric in &specs {
        let answer = query(metric).and_then(|_| said.next());
        let answer = answer.map_or(Err("it was not asked for"), |it| it.as_ref().map_err(|e| &**e));
        match metrics::judge(metric, answer, measured) {
            Ok(judged) => {
                statuses.push(judged.status);
                if best.as_ref().is_none_or(|(size, _)| judged.size > *size) {
                    best = Some((judged.size, judged.name));
                }
            }
            Err((reason, why)) => {
                statuses.push(MetricStatus::default());
                wrong.push((reason, why));
            }
        }
    }
    for (reason, why) in wrong.iter().cloned() {
        state.warn(reason, why);
    }
    let shrinks = best.as_ref().is_none_or(|(size, _)| *size < measured.current);
    if let Some((reason, why)) = wrong.first()
        && shrinks
    {
        let message = format!("the HPA was unable to compute the replica count: {why}");
        state.say("ScalingActive", false, reason, &message);
        let message = format!(
            "invalid metrics ({} invalid out of {}), first error is: {why}",
            wrong.len(),
            specs.len()
        );
        state.warn("FailedComputeMetricsReplicas", message);
        return None;
    }
    let (size, name) = best?;
    let message = format!("the HPA was able to successfully calculate a replica count from {name}");
    state.say("ScalingActive", true, "ValidMetricFound", &message);
    state.metrics = Some(statuses);
    Some((size, name))
}

#[cfg(test)]
mod tests;
