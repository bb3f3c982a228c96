//! Back from zero: requests that wait on nodes for a workload that has no Pod.
//!
//! Nodes say in an annotation what waits (`wherry_resources::demand`). An autoscaler with
//! `minReplicas: 0` is planned for as soon as one does, and does not measure first: the size is read
//! from the cache, so a Pod is on its way a few writes after the first request came. CronJobs'
//! requests go through the API server and not through a node: their statuses say that they wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{Node, PodTemplateSpec, ReplicationController, Service};
use wherry_resources::demand::{self, Waiting};

use super::super::cache::{Cache, Change, Key, Object};
use super::super::cronjob;
use super::super::node::SILENCE_MAX;
use super::super::owners::selects_all;
use super::super::replicaset::name_of;
use super::super::write::Target;

type Labels = BTreeMap<String, String>;

/// Requests that wait for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    pub requests: u64,
    /// One of the Services that they came to.
    pub service: String,
}

/// Whether an autoscaler lets its workload go to zero.
pub fn reaches_zero(autoscaler: &HorizontalPodAutoscaler) -> bool {
    autoscaler.spec.min_replicas == Some(0)
}

/// Autoscalers that a change of a Node or of a CronJob concerns.
pub fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let mut sleepers = |namespace: &str, all: Vec<Arc<HorizontalPodAutoscaler>>| {
        let sleepers = all.iter().filter(|autoscaler| reaches_zero(autoscaler));
        keys.extend(sleepers.map(|autoscaler| {
            Key::of::<HorizontalPodAutoscaler>(namespace, name_of(&autoscaler.metadata))
        }));
    };
    if let Some((before, Some(after))) = change.of::<CronJob>() {
        let requests = |it: &CronJob| {
            it.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(cronjob::REQUEST))
        };
        let due = |it: &CronJob| Some(it.status.as_ref()?.last_schedule_time.as_ref()?.0);
        if requests(after) && before.and_then(due) != due(after) {
            let namespace = change.key.namespace();
            sleepers(namespace, cache.within::<HorizontalPodAutoscaler>(namespace).collect());
        }
        return;
    }
    let Some((before, Some(after))) = change.of::<Node>() else { return };
    if before.and_then(said_by) == said_by(after) {
        return;
    }
    for key in of_node(after).keys() {
        let Some((namespace, name)) = key.split_once('/') else { continue };
        if let Some(service) = cache.get::<Service>(namespace, name) {
            sleepers(namespace, near(cache, &service));
        }
    }
}

/// Autoscalers among which are all whose workloads get the requests of a Service.
fn near(cache: &Cache, service: &Service) -> Vec<Arc<HorizontalPodAutoscaler>> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or("");
    let mut near = cache.scaling(namespace, "Service", name_of(&service.metadata));
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    for workload in selector.into_iter().flat_map(|it| cache.making(namespace, it)) {
        near.extend(cache.scaling(namespace, workload.kind.kind, workload.name()));
    }
    near
}

fn said_by(node: &Node) -> Option<&String> {
    node.metadata.annotations.as_ref()?.get(demand::WAITING)
}

fn of_node(node: &Node) -> Waiting {
    said_by(node).map(|text| demand::read(text)).unwrap_or_default()
}

/// What waits for an autoscaler's workload: on nodes that are heard, and of CronJobs.
pub fn waiting(
    cache: &Cache,
    instant: Instant,
    now: Timestamp,
    autoscaler: &HorizontalPodAutoscaler,
    workload: Option<&Object>,
) -> Demand {
    let mut found = Demand::default();
    if !reaches_zero(autoscaler) {
        return found;
    }
    let namespace = autoscaler.metadata.namespace.as_deref().unwrap_or("");
    let is_heard =
        |node: &str| cache.silent_for(node, instant).is_some_and(|silence| silence < SILENCE_MAX);
    let nodes = cache.all::<Node>().filter(|node| said_by(node).is_some());
    for node in nodes.filter(|node| is_heard(name_of(&node.metadata))) {
        for (key, count) in of_node(&node) {
            let Some((place, name)) = key.split_once('/') else { continue };
            let service = cache.get::<Service>(place, name).filter(|_| place == namespace);
            if service.is_some_and(|service| serves(autoscaler, workload, &service)) {
                found.requests += count;
                found.service = name.to_string();
            }
        }
    }
    for cron_job in cache.within::<CronJob>(namespace) {
        let Some(name) = cronjob::waits_for(&cron_job, now) else { continue };
        let service = cache.get::<Service>(namespace, name);
        if service.is_some_and(|service| serves(autoscaler, workload, &service)) {
            found.requests += 1;
            found.service = name.to_string();
        }
    }
    found
}

/// Whether requests to a Service are to wait for a Pod while it has none.
pub fn holds(cache: &Cache, service: &Service) -> bool {
    near(cache, service).iter().any(|autoscaler| {
        let workload = || super::workload(cache, autoscaler);
        reaches_zero(autoscaler) && serves(autoscaler, workload().as_ref(), service)
    })
}

/// Services for which a change may turn what [`holds`] says.
pub fn concerned(cache: &Cache, change: &Change) -> Vec<Key> {
    let namespace = change.key.namespace();
    let mut keys = Vec::new();
    if let Some((before, after)) = change.of::<HorizontalPodAutoscaler>() {
        let facts = |autoscaler: &HorizontalPodAutoscaler| {
            let services: Vec<String> = described(autoscaler).map(str::to_owned).collect();
            (reaches_zero(autoscaler), autoscaler.spec.scale_target_ref.clone(), services)
        };
        if before.map(facts) != after.map(facts) {
            for autoscaler in [before, after].into_iter().flatten() {
                let workload = super::workload(cache, autoscaler);
                let labels = workload.as_ref().and_then(template_labels);
                keys.extend(cache.selecting(namespace, labels));
                keys.extend(described(autoscaler).map(|name| Key::of::<Service>(namespace, name)));
            }
        }
        return keys;
    }
    let (before, after) = (change.before.as_ref(), change.after.as_ref());
    let (before, after) = (before.and_then(template_labels), after.and_then(template_labels));
    if before != after {
        let all = cache.scaling(namespace, change.key.kind.kind, change.key.name());
        for autoscaler in all.iter().filter(|autoscaler| reaches_zero(autoscaler)) {
            keys.extend(cache.selecting(namespace, before));
            keys.extend(cache.selecting(namespace, after));
            keys.extend(described(autoscaler).map(|name| Key::of::<Service>(namespace, name)));
        }
    }
    keys
}

/// Whether a Service's requests go to an autoscaler's workload: it selects the Pods, or, of kinds
/// that are not known here, a metric is about the Service.
fn serves(
    autoscaler: &HorizontalPodAutoscaler,
    workload: Option<&Object>,
    service: &Service,
) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    if let Some(labels) = workload.and_then(template_labels) {
        return selector
            .is_some_and(|selector| !selector.is_empty() && selects_all(selector, Some(labels)));
    }
    described(autoscaler).any(|name| name == name_of(&service.metadata))
}

/// The Services that an autoscaler's metrics are about.
pub fn described(autoscaler: &HorizontalPodAutoscaler) -> impl Iterator<Item = &str> {
    let metrics = autoscaler.spec.metrics.iter().flatten();
    let objects = metrics.filter_map(|metric| metric.object.as_ref());
    let described = objects.map(|metric| &metric.described_object);
    described.filter(|it| it.kind == "Service").map(|it| it.name.as_str())
}

/// The labels of the Pods that a workload makes.
pub fn template_labels(object: &Object) -> Option<&Labels> {
    fn of(template: &PodTemplateSpec) -> Option<&Labels> {
        template.metadata.as_ref()?.labels.as_ref()
    }
    if let Some(deployment) = object.get::<Deployment>() {
        return of(&deployment.spec.template);
    }
    if let Some(set) = object.get::<StatefulSet>() {
        return of(&set.spec.template);
    }
    if let Some(set) = object.get::<ReplicaSet>() {
        return of(set.spec.template.as_ref()?);
    }
    of(object.get::<ReplicationController>()?.spec.as_ref()?.template.as_ref()?)
}

/// A workload as it is held here, and the size that it is asked for.
pub fn sized(workload: &Object) -> Option<(Target, i32)> {
    if let Some(deployment) = workload.get::<Deployment>() {
        return Some((Target::of(deployment), deployment.spec.replicas?));
    }
    if let Some(set) = workload.get::<StatefulSet>() {
        return Some((Target::of(set), set.spec.replicas?));
    }
    if let Some(set) = workload.get::<ReplicaSet>() {
        return Some((Target::of(set), set.spec.replicas?));
    }
    let controller = workload.get::<ReplicationController>()?;
    Some((Target::of(controller), controller.spec.as_ref()?.replicas?))
}

#[cfg(test)]
mod tests {
    use super::super::super::cache::{Seen, Typed, kind_row};
    use super::super::super::testing::{at, yaml};
    use super::*;

    fn put<T: Typed>(cache: &mut Cache, object: T) -> Vec<Key> {
        let change = Seen::Put(Object::new(object));
        let mut keys = Vec::new();
        for change in cache.observe(kind_row::<T>(), change, Instant::now()) {
            wake(cache, &change, &mut keys);
        }
        keys
    }

    /// What an object's change concerns, in one line.
    fn concerns<T: Typed>(cache: &mut Cache, object: T) -> String {
        let seen = Seen::Put(Object::new(object));
        let changes = cache.observe(kind_row::<T>(), seen, Instant::now());
        let keys = changes.iter().flat_map(|change| concerned(cache, change));
        keys.map(|key| key.name().to_string()).collect::<Vec<String>>().join(" ")
    }

    #[test]
    fn a_workload_concerns_the_services_of_its_own_pods() {
        let mut cache = Cache::new();
        cache.hold::<HorizontalPodAutoscaler>();
        cache.hold::<Deployment>();
        cache.hold::<Service>();
        for name in ["web", "shop", "bank"] {
            let text = format!(
                "metadata: {{name: {name}, namespace: d}}\nspec: {{selector: {{app: {name}}}}}"
            );
            assert_eq!(concerns::<Service>(&mut cache, yaml(&text)), "");
        }
        let deployment = |name: &str, revision: u8, app: &str| -> Deployment {
            yaml(&format!(
                "metadata: {{name: {name}, namespace: d, resourceVersion: '{revision}'}}\n\
                 spec: {{selector: {{}}, template: {{metadata: {{labels: {{app: {app}}}}}}}}}"
            ))
        };
        assert_eq!(concerns(&mut cache, deployment("web", 1, "web")), "", "nothing may sleep");
        let autoscaler = |revision: u8, least: u8| -> HorizontalPodAutoscaler {
            yaml(&format!(
                "metadata: {{name: web, namespace: d, resourceVersion: '{revision}'}}\nspec: \
                 {{minReplicas: {least}, maxReplicas: 3, scaleTargetRef: {{apiVersion: apps/v1, \
                 kind: Deployment, name: web}}}}"
            ))
        };
        assert_eq!(concerns(&mut cache, autoscaler(1, 0)), "web");
        assert_eq!(concerns(&mut cache, deployment("web", 2, "shop")), "web shop");
        assert_eq!(concerns(&mut cache, deployment("web", 3, "shop")), "");
        assert_eq!(concerns(&mut cache, deployment("bank", 1, "bank")), "");
        assert_eq!(concerns(&mut cache, autoscaler(2, 1)), "shop shop");
    }

    #[test]
    fn requests_are_held_for_services_of_what_may_sleep() {
        let mut cache = Cache::new();
        cache.hold::<HorizontalPodAutoscaler>();
        cache.hold::<Deployment>();
        cache.hold::<ReplicaSet>();
        let holds = |cache: &Cache, name: &str, selector: &str| {
            let text = format!(
                "metadata: {{name: {name}, namespace: d}}\nspec: {{selector: {{{selector}}}}}"
            );
            holds(cache, &yaml(&text))
        };
        let template = |name: &str, revision: u8, labels: &str, owners: &str| {
            format!(
                "metadata: {{name: {name}, namespace: d, resourceVersion: '{revision}', \
                 ownerReferences: [{owners}]}}\nspec: {{selector: {{}}, template: {{metadata: \
                 {{labels: {{{labels}}}}}}}}}"
            )
        };
        let autoscaler = |name: &str, revision: u8, least: u8, kind: &str, metrics: &str| {
            let text = format!(
                "metadata: {{name: {name}, namespace: d, resourceVersion: '{revision}'}}\nspec: \
                 {{minReplicas: {least}, maxReplicas: 3, metrics: [{metrics}], scaleTargetRef: \
                 {{apiVersion: apps/v1, kind: {kind}, name: web}}}}"
            );
            yaml::<HorizontalPodAutoscaler>(&text)
        };
        let both = "app: web, tier: front";
        put(&mut cache, yaml::<Deployment>(&template("web", 1, both, "")));
        assert!(!holds(&cache, "web", "app: web"), "nothing may sleep");
        put(&mut cache, autoscaler("web", 1, 0, "Deployment", ""));
        for selector in ["app: web", "tier: front", both] {
            assert!(holds(&cache, "web", selector), "{selector}");
        }
        for selector in ["", "app: bank", "app: web, tier: back", "app: web, zone: a"] {
            assert!(!holds(&cache, "web", selector), "{selector}");
        }
        // Another one of the same name does not count, nor what a Deployment scales by itself.
        let owner = "{kind: Deployment, name: web, uid: u, controller: true}";
        put(&mut cache, yaml::<ReplicaSet>(&template("web", 1, "app: set", owner)));
        put(&mut cache, autoscaler("set", 1, 0, "ReplicaSet", ""));
        assert!(!holds(&cache, "web", "app: set"));
        put(&mut cache, yaml::<ReplicaSet>(&template("web", 2, "app: set", "")));
        assert!(holds(&cache, "web", "app: set"));
        put(&mut cache, yaml::<Deployment>(&template("web", 2, "app: shop", "")));
        assert!(holds(&cache, "web", "app: shop") && !holds(&cache, "web", "app: web"));
        put(&mut cache, autoscaler("web", 2, 1, "Deployment", ""));
        assert!(!holds(&cache, "web", "app: shop"), "it does not sleep any more");
        // Of kinds that are not known here a metric says for which Service they are.
        let metric = "{type: Object, object: {describedObject: {kind: Service, name: shirts}}}";
        put(&mut cache, autoscaler("shirts", 1, 0, "Shirt", metric));
        assert!(holds(&cache, "shirts", "app: x") && !holds(&cache, "web", "app: x"));
    }

    #[test]
    fn waiting_requests_wake_the_autoscaler_of_their_service() {
        let mut cache = Cache::new();
        cache.hold::<HorizontalPodAutoscaler>();
        cache.hold::<Deployment>();
        cache.hold::<Service>();
        cache.hold::<Node>();
        for (name, least) in [("web", 0), ("bank", 0), ("busy", 1)] {
            let meta = format!("metadata: {{name: {name}, namespace: d}}\n");
            let autoscaler: HorizontalPodAutoscaler = yaml(&format!(
                "{meta}spec: {{minReplicas: {least}, maxReplicas: 3, scaleTargetRef: {{apiVersion: \
                 apps/v1, kind: Deployment, name: {name}}}}}"
            ));
            put(&mut cache, autoscaler);
            let deployment: Deployment = yaml(&format!(
                "{meta}spec: {{selector: {{}}, template: {{metadata: {{labels: {{app: {name}}}}}}}}}"
            ));
            put(&mut cache, deployment);
            let service: Service = yaml(&format!("{meta}spec: {{selector: {{app: {name}}}}}"));
            put(&mut cache, service);
        }
        let node = |revision: u8, waiting: &str| -> Node {
            yaml(&format!(
                "metadata: {{name: n, resourceVersion: '{revision}', annotations: \
                 {{wherry.dev/demand: '{waiting}'}}}}"
            ))
        };
        let web = [Key::of::<HorizontalPodAutoscaler>("d", "web")];
        let woken = put(&mut cache, node(1, r#"{"d/web":1,"d/busy":1,"d/gone":2}"#));
        assert_eq!(woken, web);
        assert!(put(&mut cache, node(2, r#"{"d/web":1,"d/busy":1,"d/gone":2}"#)).is_empty());
        assert!(put(&mut cache, node(3, "{}")).is_empty());
    }

    #[test]
    fn a_cron_jobs_request_waits_for_the_workload_of_its_service() {
        let mut cache = Cache::new();
        cache.hold::<HorizontalPodAutoscaler>();
        cache.hold::<CronJob>();
        cache.hold::<Service>();
        let autoscaler: HorizontalPodAutoscaler = yaml(
            "metadata: {name: web, namespace: d}\nspec: {minReplicas: 0, maxReplicas: 3, \
             scaleTargetRef: {kind: Deployment, name: web}}",
        );
        put(&mut cache, autoscaler.clone());
        let service: Service =
            yaml("metadata: {name: web, namespace: d}\nspec: {selector: {app: web}}");
        put(&mut cache, service);
        let cron_job = |revision: u8, status: &str| -> CronJob {
            yaml(&format!(
                "metadata: {{name: nightly, namespace: d, resourceVersion: '{revision}', \
                 annotations: {{wherry.dev/request: 'GET http://web/'}}}}\n\
                 spec: {{schedule: '@daily', jobTemplate: {{}}}}\nstatus: {{{status}}}"
            ))
        };
        let deployment: Deployment = yaml(
            "metadata: {name: web, namespace: d}\nspec: {selector: {}, template: {metadata: \
             {labels: {app: web}}}}",
        );
        let workload = Object::new(deployment);
        let requests = |cache: &Cache, now: Timestamp| {
            waiting(cache, Instant::now(), now, &autoscaler, Some(&workload)).requests
        };
        assert!(put(&mut cache, cron_job(1, "")).is_empty(), "nothing was due");
        assert_eq!(requests(&cache, at(0)), 0);
        let due = format!("lastScheduleTime: '{}'", at(0));
        let woken = put(&mut cache, cron_job(2, &due));
        assert_eq!(woken, [Key::of::<HorizontalPodAutoscaler>("d", "web")]);
        assert_eq!((requests(&cache, at(1)), requests(&cache, at(60))), (1, 0));
        let answered = format!("{due}, lastSuccessfulTime: '{}'", at(1));
        put(&mut cache, cron_job(3, &answered));
        assert_eq!(requests(&cache, at(1)), 0);
    }

    #[test]
    fn an_autoscaler_concerns_the_services_that_its_metrics_are_about() {
        let mut cache = Cache::new();
        cache.hold::<HorizontalPodAutoscaler>();
        let autoscaler = |revision: u8, service: &str| -> HorizontalPodAutoscaler {
            yaml(&format!(
                "metadata: {{name: own, namespace: d, resourceVersion: '{revision}'}}\n\
                 spec: {{minReplicas: 0, maxReplicas: 3, scaleTargetRef: {{apiVersion: e.x/v1, \
                 kind: Own, name: own}}, metrics: [{{type: Object, object: {{metric: {{name: m}}, \
                 describedObject: {{apiVersion: v1, kind: Service, name: {service}}}, target: \
                 {{type: Value, value: 10}}}}}}]}}"
            ))
        };
        assert_eq!(concerns(&mut cache, autoscaler(1, "a")), "a");
        assert_eq!(concerns(&mut cache, autoscaler(2, "b")), "a b");
        assert_eq!(concerns(&mut cache, autoscaler(3, "b")), "");
    }
}
