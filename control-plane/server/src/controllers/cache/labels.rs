//! Objects find each other by labels, without a look at all of them: Pods and Services, and Services
//! and the autoscalers of the workloads that make their Pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::super::autoscaler::demand::{described, template_labels};
use super::super::owners::{controller_of, selects_all};
use super::{Cache, Key, Object, drop_from};

pub(super) type Labels = BTreeMap<String, String>;
/// Under what an object is found within its namespace: what it is, and a label.
type Spot<'a> = (&'static str, &'a str, &'a str);

/// By each of their labels.
const PODS: &str = "pods";
/// By the first label that they select.
const SERVICES: &str = "services";
/// By each label of the Pods that they make.
const WORKLOADS: &str = "workloads";
/// By kind and name of their target, and of Services that they measure.
const AUTOSCALERS: &str = "autoscalers";

impl Cache {
    /// Pods of a namespace that have all labels of a selector, sorted by name. Of an empty selector
    /// none.
    pub fn selected(&self, namespace: &str, selector: &Labels) -> Vec<Arc<Pod>> {
        let keys = self.rarest(PODS, namespace, selector);
        let pods = keys.filter_map(|key| self.object(key)?.shared::<Pod>());
        pods.filter(|pod| selects_all(selector, pod.metadata.labels.as_ref())).collect()
    }

    /// Services of a namespace that select Pods with these labels.
    pub fn selecting(&self, namespace: &str, labels: Option<&Labels>) -> Vec<Key> {
        let places = spots(SERVICES, labels).into_iter().map(|spot| place(namespace, spot));
        let keys = places.filter_map(|place| self.by_label.get(&place)).flatten();
        let selects = |key: &&Key| {
            let selector = self.object(key).and_then(selector_of);
            selector.is_some_and(|selector| selects_all(selector, labels))
        };
        keys.filter(selects).cloned().collect()
    }

    /// Autoscalers of a namespace that name this target, or measure this Service.
    pub fn scaling(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Vec<Arc<HorizontalPodAutoscaler>> {
        let keys = self.by_label.get(&place(namespace, (AUTOSCALERS, kind, name)));
        keys.into_iter().flatten().filter_map(|key| self.object(key)?.shared()).collect()
    }

    /// Workloads of a namespace among which are all whose Pods a selector means. ReplicaSets of
    /// others are none: these are scaled.
    pub fn making(&self, namespace: &str, selector: &Labels) -> Vec<Key> {
        self.rarest(WORKLOADS, namespace, selector).cloned().collect()
    }

    /// What is found by the rarest label of a selector: others may be on everything.
    fn rarest(
        &self,
        what: &'static str,
        namespace: &str,
        selector: &Labels,
    ) -> impl Iterator<Item = &Key> {
        let spots = spots(what, Some(selector)).into_iter();
        let places = spots.map(|spot| self.by_label.get(&place(namespace, spot)));
        let rarest = places.min_by_key(|keys| keys.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten()
    }

    /// Keeps the places of an object's labels, which rarely change.
    pub(super) fn relabel(&mut self, key: &Key, before: Option<&Object>, after: Option<&Object>) {
        let (was, is) = (before.map(found_by), after.map(found_by));
        if was == is {
            return;
        }
        for spot in was.into_iter().flatten() {
            drop_from(&mut self.by_label, &place(key.namespace(), spot), key);
        }
        for spot in is.into_iter().flatten() {
            let place = place(key.namespace(), spot);
            self.by_label.entry(place).or_default().insert(key.clone());
        }
    }
}

/// Where objects are found.
fn place(namespace: &str, (what, name, value): Spot<'_>) -> String {
    format!("{what} {namespace}/{name}={value}")
}

/// What an object is found by.
fn found_by(object: &Object) -> Vec<Spot<'_>> {
    if let Some(pod) = object.get::<Pod>() {
        return spots(PODS, pod.metadata.labels.as_ref());
    }
    if let Some(autoscaler) = object.get::<HorizontalPodAutoscaler>() {
        let target = &autoscaler.spec.scale_target_ref;
        let mut found = vec![(AUTOSCALERS, target.kind.as_str(), target.name.as_str())];
        found.extend(described(autoscaler).map(|name| (AUTOSCALERS, "Service", name)));
        return found;
    }
    let is_anothers =
        object.get::<ReplicaSet>().is_some() && controller_of(object.meta()).is_some();
    if let Some(labels) = template_labels(object).filter(|_| !is_anothers) {
        return spots(WORKLOADS, Some(labels));
    }
    let first = selector_of(object).and_then(Labels::first_key_value);
    first.map(|(name, value)| (SERVICES, name.as_str(), value.as_str())).into_iter().collect()
}

fn spots<'a>(what: &'static str, labels: Option<&'a Labels>) -> Vec<Spot<'a>> {
    let labels = labels.into_iter().flatten();
    labels.map(|(name, value)| (what, name.as_str(), value.as_str())).collect()
}

/// The selector of a Service.
fn selector_of(object: &Object) -> Option<&Labels> {
    object.get::<Service>()?.spec.as_ref()?.selector.as_ref()
}
