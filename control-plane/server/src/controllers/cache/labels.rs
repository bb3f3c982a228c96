//! Pods and Services find each other by labels, without a look at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use wherry_resources::Kind;

use super::super::owners::selects_all;
use super::{Cache, Key, Object, drop_from, kind_row};

pub(super) type Labels = BTreeMap<String, String>;
type Label<'a> = (&'a String, &'a String);

impl Cache {
    /// Pods of a namespace that have all labels of a selector, sorted by name. Of an empty selector
    /// none.
    pub fn selected(&self, namespace: &str, selector: &Labels) -> Vec<Arc<Pod>> {
        let kind = kind_row::<Pod>();
        let places = selector.iter().map(|label| self.by_label.get(&place(kind, namespace, label)));
        // Of the rarest label: others may be on every Pod.
        let rarest = places.min_by_key(|keys| keys.map_or(0, BTreeSet::len)).flatten();
        let pods = rarest.into_iter().flatten().filter_map(|key| self.object(key)?.shared::<Pod>());
        pods.filter(|pod| selects_all(selector, pod.metadata.labels.as_ref())).collect()
    }

    /// Services of a namespace that select Pods with these labels.
    pub fn selecting(&self, namespace: &str, labels: Option<&Labels>) -> Vec<Key> {
        let kind = kind_row::<Service>();
        let places = labels.into_iter().flatten().map(|label| place(kind, namespace, label));
        let keys = places.filter_map(|place| self.by_label.get(&place)).flatten();
        let selects = |key: &&Key| {
            let selector = self.object(key).and_then(selector_of);
            selector.is_some_and(|selector| selects_all(selector, labels))
        };
        keys.filter(selects).cloned().collect()
    }

    /// Keeps the places of an object's labels, which rarely change.
    pub(super) fn relabel(&mut self, key: &Key, before: Option<&Object>, after: Option<&Object>) {
        let (was, is) = (before.map(found_by), after.map(found_by));
        if was == is {
            return;
        }
        for label in was.into_iter().flatten() {
            drop_from(&mut self.by_label, &place(key.kind, key.namespace(), label), key);
        }
        for label in is.into_iter().flatten() {
            let place = place(key.kind, key.namespace(), label);
            self.by_label.entry(place).or_default().insert(key.clone());
        }
    }
}

/// Where objects of a kind are found by a label of theirs.
fn place(kind: &Kind, namespace: &str, (name, value): Label<'_>) -> String {
    format!("{} {namespace}/{name}={value}", kind.plural)
}

/// The labels by which an object is found.
fn found_by(object: &Object) -> Vec<Label<'_>> {
    match object.get::<Pod>() {
        Some(pod) => pod.metadata.labels.iter().flatten().collect(),
        None => selector_of(object).and_then(Labels::first_key_value).into_iter().collect(),
    }
}

/// The selector of a Service.
fn selector_of(object: &Object) -> Option<&Labels> {
    object.get::<Service>()?.spec.as_ref()?.selector.as_ref()
}
