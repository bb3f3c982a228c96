//! The history of StatefulSets and DaemonSets: one ControllerRevision for each Pod template they
//! had.
//!
//! A revision's name is its owner's and a hash of the template, so two plans cannot make two of
//! one; a template that was there before gets its old revision back, with the next number. Its
//! `data` is a strategic merge patch that puts the template back: `kubectl rollout undo` sends it
//! as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::cache::Typed;
use super::owners::{controller_reference, hash_text};
use super::replicaset::name_of;
use super::write::Write;

/// The label that tells Pods of different templates apart.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// The label by which a revision knows its own hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// Old revisions kept when the owner does not say.
const LIMIT: i32 = 10;
/// Letters of a template's hash.
const HASH_LENGTH: usize = 10;

/// The revisions of one owner, the oldest first.
pub struct History {
    revisions: Vec<Arc<ControllerRevision>>,
}

/// The revision of the present template.
#[derive(Debug)]
pub enum Present {
    Found(Arc<ControllerRevision>),
    /// It is there when this is done.
    After(Box<Write>),
    /// Another object has its name: it needs another hash, which the count of collisions gives.
    Taken,
}

impl History {
    pub fn new(revisions: &[Arc<ControllerRevision>]) -> History {
        let mut revisions = revisions.to_vec();
        revisions.sort_by(|a, b| {
            let age = |one: &ControllerRevision| {
                let created = one.metadata.creation_timestamp.as_ref().map(|time| time.0);
                (number(one), created, name_of(&one.metadata).to_string())
            };
            age(a).cmp(&age(b))
        });
        History { revisions }
    }

    /// Finds the revision of a template or says how to get it.
    pub fn present<T: Typed>(
        &self,
        owner: &T,
        template: &PodTemplateSpec,
        collisions: i32,
        taken: &[String],
    ) -> Present {
        let data = data_of(template);
        let last = self.revisions.last().map_or(0, |last| number(last));
        let same = self.revisions.iter().rev().find(|revision| revision.data.0 == data);
        if let Some(same) = same {
            if number(same) == last {
                return Present::Found(same.clone());
            }
            let write = Write::patch(&**same, json!({"revision": last.saturating_add(1)}));
            return Present::After(Box::new(write));
        }
        let hash = hash_of(&data, collisions);
        let name = format!("{}-{hash}", name_of(owner.metadata()));
        let own = self.revisions.iter().any(|own| name_of(&own.metadata) == name);
        if own || taken.contains(&name) {
            return Present::Taken;
        }
        let meta = template.metadata.clone().unwrap_or_default();
        let mut labels: BTreeMap<String, String> = meta.labels.unwrap_or_default();
        labels.insert(HASH_LABEL.to_string(), hash);
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: owner.metadata().namespace.clone(),
                labels: Some(labels),
                annotations: owner.metadata().annotations.clone().map(|mut annotations| {
                    // It is large, and of no use for going back.
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                    annotations
                }),
                owner_references: Some(vec![controller_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: RawExtension(data),
            revision: Some(last.saturating_add(1)),
        };
        Present::After(Box::new(Write::create(&revision)))
    }

    pub fn named(&self, name: &str) -> Option<&Arc<ControllerRevision>> {
        self.revisions.iter().find(|revision| name_of(&revision.metadata) == name)
    }

    /// Deletes the oldest revisions that no Pod and no status names, beyond the limit.
    pub fn surplus(&self, live: &BTreeSet<&str>, limit: Option<i32>) -> Vec<Write> {
        let limit = usize::try_from(limit.unwrap_or(LIMIT)).unwrap_or(0);
        let idle = |revision: &&Arc<ControllerRevision>| {
            let names = [name_of(&revision.metadata), hash(revision)];
            revision.metadata.deletion_timestamp.is_none()
                && !names.iter().any(|name| live.contains(name))
        };
        let idle: Vec<_> = self.revisions.iter().filter(idle).collect();
        let surplus = idle.len().saturating_sub(limit);
        idle.into_iter().take(surplus).map(|revision| Write::delete(&**revision)).collect()
    }
}

/// Names in a namespace that begin like an owner's revisions and are not.
pub fn taken(
    all: impl Iterator<Item = Arc<ControllerRevision>>,
    owner: &str,
    own: &[Arc<ControllerRevision>],
) -> Vec<String> {
    let prefix = format!("{owner}-");
    let names = all.map(|revision| name_of(&revision.metadata).to_string());
    let foreign = |name: &String| {
        name.starts_with(&prefix) && !own.iter().any(|own| name_of(&own.metadata) == name)
    };
    names.filter(foreign).collect()
}

/// The hash in a revision's label, which DaemonSets put on their Pods.
pub fn hash(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// The revision a Pod was made from, by its label.
pub fn of_pod(meta: &ObjectMeta) -> &str {
    let labels = meta.labels.as_ref();
    labels.and_then(|labels| labels.get(REVISION_LABEL)).map_or("", String::as_str)
}

/// The template that a revision puts back.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.shift_remove("$patch");
    serde_json::from_value(template).ok()
}

fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("a template is JSON");
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn hash_of(data: &Value, collisions: i32) -> String {
    let mut seed = data.to_string().into_bytes();
    if collisions > 0 {
        seed.extend(collisions.to_be_bytes());
    }
    hash_text(&seed, HASH_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::super::testing::yaml;
    use super::super::write::Action;
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSet;

    fn set(image: &str) -> DaemonSet {
        yaml(&format!(
            "metadata: {{name: web, namespace: d, annotations: {{why: because}}}}\n\
             spec:\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
             metadata: {{labels: {{app: web}}}}\n    \
             spec: {{containers: [{{name: c, image: {image}}}]}}"
        ))
    }

    fn present(history: &[Arc<ControllerRevision>], set: &DaemonSet, taken: &[String]) -> Present {
        History::new(history).present(set, &set.spec.template, 0, taken)
    }

    fn made(history: &[Arc<ControllerRevision>], set: &DaemonSet) -> Arc<ControllerRevision> {
        let Present::After(write) = present(history, set, &[]) else { panic!("a new revision") };
        let Action::Create { object, .. } = write.action else { panic!("a create") };
        Arc::new(serde_json::from_value(object).expect("a revision"))
    }

    #[test]
    fn each_template_has_one_revision_that_brings_it_back() {
        let one = made(&[], &set("one"));
        assert_eq!(one.revision, Some(1));
        assert_eq!(template_of(&one), Some(set("one").spec.template));
        assert_eq!(name_of(&one.metadata), format!("web-{}", hash(&one)));
        let labels = one.metadata.labels.clone().unwrap_or_default();
        assert_eq!(labels.get("app").map(String::as_str), Some("web"), "kubectl finds it by these");
        assert!(matches!(present(&[one.clone()], &set("one"), &[]), Present::Found(_)));

        let two = made(&[one.clone()], &set("two"));
        assert_eq!(two.revision, Some(2));
        let all = [two.clone(), one.clone()];
        assert!(matches!(present(&all, &set("two"), &[]), Present::Found(_)));
        let Present::After(back) = present(&all, &set("one"), &[]) else { panic!("a patch") };
        let name = name_of(&one.metadata);
        let expected = format!(r#"patch controllerrevisions.apps d/{name} {{"revision":3}}"#);
        assert_eq!(back.to_string(), expected);
    }

    #[test]
    fn a_taken_name_is_avoided() {
        let name = name_of(&made(&[], &set("one")).metadata).to_string();
        assert!(matches!(present(&[], &set("one"), std::slice::from_ref(&name)), Present::Taken));
        let again = History::new(&[]).present(&set("one"), &set("one").spec.template, 1, &[name]);
        assert!(matches!(again, Present::After(_)));
    }

    #[test]
    fn the_oldest_idle_revisions_go() {
        let mut all = Vec::new();
        for image in ["one", "two", "three", "four"] {
            all.push(made(&all, &set(image)));
        }
        let deleted = |live: &[&str], limit| {
            let writes = History::new(&all).surplus(&live.iter().copied().collect(), limit);
            writes.len()
        };
        assert_eq!(deleted(&[], None), 0);
        assert_eq!(deleted(&[], Some(1)), 3);
        let (first, last) = (hash(&all[0]), name_of(&all[3].metadata));
        let writes = History::new(&all).surplus(&[first, last].into(), Some(1));
        let gone = format!("delete controllerrevisions.apps d/{}", name_of(&all[1].metadata));
        assert_eq!(writes.iter().map(ToString::to_string).collect::<Vec<_>>(), [gone]);
    }
}
