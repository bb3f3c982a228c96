//! An APIService for every group version that a CustomResourceDefinition serves.
//!
//! Owns: APIServices with the label below and the value `true`. They say nothing that is not in the
//! definitions; clients list them to learn what a cluster serves. One that a user has made for a
//! group version, with a server behind it, is left alone. One key stands for all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};

use super::bootstrap::local_status;
use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// As Kubernetes has them for definitions.
const GROUP_PRIORITY: i32 = 1_000;
const VERSION_PRIORITY: i32 = 100;

/// What a plan reads.
pub struct Snapshot {
    pub definitions: Vec<Arc<CustomResourceDefinition>>,
    pub services: Vec<Arc<APIService>>,
}

pub const CONTROLLER: Controller = Controller { name: "apiservices", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    // One that a user made hides ours for as long as it is there.
    let concerns =
        change.of::<CustomResourceDefinition>().is_some() || change.of::<APIService>().is_some();
    if concerns {
        keys.push(Key::of::<APIService>("", ""));
    }
}

fn is_own(service: &APIService) -> bool {
    let labels = service.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(LABEL)).is_some_and(|value| value == "true")
}

fn reconcile(view: &View<'_>, _: &Key) -> Plan {
    let definitions = view.cache.all::<CustomResourceDefinition>().collect();
    let services = view.cache.all::<APIService>().collect();
    plan(&Snapshot { definitions, services }, view.now).into()
}

/// Makes what is missing, says that it is there, and deletes what nobody defines any more.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let mut served: BTreeSet<(&str, &str)> = BTreeSet::new();
    for definition in &snapshot.definitions {
        if definition.metadata.deletion_timestamp.is_none() {
            let spec = &definition.spec;
            let versions = spec.versions.iter().filter(|version| version.served);
            served.extend(versions.map(|version| (&*spec.group, &*version.name)));
        }
    }
    let mut writes = Vec::new();
    for (group, version) in &served {
        let name = format!("{version}.{group}");
        let held = snapshot.services.iter().find(|it| it.metadata.name.as_ref() == Some(&name));
        match held {
            None => writes.push(Write::create(&service(name, group, version))),
            Some(held) if is_own(held) => writes.extend(local_status(held)),
            Some(_) => {}
        }
    }
    for held in snapshot.services.iter().filter(|service| is_own(service)) {
        let spec = held.spec.as_ref();
        let group = spec.and_then(|spec| spec.group.as_deref()).unwrap_or_default();
        let version = spec.and_then(|spec| spec.version.as_deref()).unwrap_or_default();
        if !served.contains(&(group, version)) {
            writes.push(Write::delete(&**held));
        }
    }
    writes
}

fn service(name: String, group: &str, version: &str) -> APIService {
    let labels = Some([(LABEL.to_owned(), "true".to_owned())].into());
    APIService {
        metadata: ObjectMeta { name: Some(name), labels, ..ObjectMeta::default() },
        spec: Some(APIServiceSpec {
            group: Some(group.to_owned()),
            version: Some(version.to_owned()),
            group_priority_minimum: GROUP_PRIORITY,
            version_priority: VERSION_PRIORITY,
            ..APIServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cache::Object;
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn definition(versions: &str) -> Arc<CustomResourceDefinition> {
        Arc::new(yaml(&format!(
            "metadata: {{name: shirts.example.com}}\n\
             spec: {{group: example.com, scope: Namespaced, \
             names: {{plural: shirts, kind: Shirt}}, versions: [{versions}]}}"
        )))
    }

    fn held(name: &str, group: &str, version: &str) -> Arc<APIService> {
        let mut held = service(name.to_owned(), group, version);
        let status = json!({"conditions": [{"type": "Available", "status": "True"}]});
        held.status = serde_json::from_value(status).expect("a status");
        Arc::new(held)
    }

    fn check(
        definitions: &[Arc<CustomResourceDefinition>],
        services: &[Arc<APIService>],
    ) -> String {
        let snapshot = Snapshot { definitions: definitions.to_vec(), services: services.to_vec() };
        text(&plan(&snapshot, at(0)))
    }

    #[test]
    fn one_for_each_served_version() {
        let both = definition(
            "{name: v1, served: true, storage: true}, {name: v0, served: false, storage: false}",
        );
        let made = "create apiservices.apiregistration.k8s.io v1.example.com\n";
        assert_eq!(check(&[both.clone()], &[]), made);
        assert_eq!(check(&[both], &[held("v1.example.com", "example.com", "v1")]), "");
    }

    #[test]
    fn a_users_own_that_goes_makes_room_for_ours() {
        let cache = Cache::new();
        let mut users = held("v1.example.com", "example.com", "v1");
        Arc::make_mut(&mut users).metadata.labels = None;
        let before = Some(Object::new(APIService::clone(&users)));
        let key = Key::of::<APIService>("", "v1.example.com");
        let mut keys = Vec::new();
        wake(&cache, &Change { key, before, after: None }, &mut keys);
        assert_eq!(keys, [Key::of::<APIService>("", "")]);
    }

    #[test]
    fn what_nobody_defines_goes_and_a_users_own_stays() {
        let own = held("v1.example.com", "example.com", "v1");
        let gone = "delete apiservices.apiregistration.k8s.io v1.example.com";
        assert!(check(&[], &[own.clone()]).starts_with(gone));
        let mut users = own;
        Arc::make_mut(&mut users).metadata.labels = None;
        assert_eq!(check(&[], &[users.clone()]), "");
        let both = definition("{name: v1, served: true, storage: true}");
        assert_eq!(check(&[both], &[users]), "");
    }
}
