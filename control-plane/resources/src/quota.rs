//! What a ResourceQuota counts: how much of what an object uses, which quotas are about it, and
//! whether there is room for more.
//!
//! Admission adds what a new object uses before it is stored; the quota controller counts all
//! objects anew. Both ask the functions here, so they cannot disagree about one object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::meta::{items, text};
use crate::quantity::Quantity;
use crate::{Kind, Object};

/// Amounts by the name of their resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts(pub BTreeMap<String, Quantity>);

impl Amounts {
    /// Reads a map of quantities; what is no quantity is left out.
    pub fn read(value: &Value) -> Amounts {
        let pairs = value.as_object().into_iter().flatten();
        Amounts(
            pairs.filter_map(|(key, amount)| Some((key.clone(), Quantity::of(amount)?))).collect(),
        )
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> Option<Quantity> {
        self.0.get(name).copied()
    }

    /// Adds an amount to what there is.
    pub fn add(&mut self, name: &str, amount: Quantity) {
        let sum = self.get(name).map_or(amount, |held| held + amount);
        self.0.insert(name.to_owned(), sum);
    }

    /// Adds all amounts of another.
    pub fn add_all(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            self.add(name, *amount);
        }
    }

    /// The larger of both, for each resource.
    fn at_least(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            if self.get(name).is_none_or(|held| held < *amount) {
                self.0.insert(name.clone(), *amount);
            }
        }
    }

    /// Only those resources that the other names.
    pub fn among(&self, other: &Amounts) -> Amounts {
        let kept = self.0.iter().filter(|(name, _)| other.0.contains_key(*name));
        Amounts(kept.map(|(name, amount)| (name.clone(), *amount)).collect())
    }

    /// The map as it stands in an object.
    pub fn to_json(&self) -> Value {
        let pairs = self.0.iter().map(|(name, amount)| (name.clone(), amount.to_string().into()));
        Value::Object(pairs.collect::<Map<_, _>>())
    }

    /// `pods=1,requests.cpu=2`, as in refusals.
    pub fn line(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        pairs.join(",")
    }
}

/// What a Pod asks for as a whole: its containers together, or its largest step of starting if that
/// is more. `part` is `requests` or `limits`.
pub fn pod_total(spec: &Value, part: &str) -> Amounts {
    let of = |container: &Value| Amounts::read(&container["resources"][part]);
    let mut total = Amounts::default();
    for container in items(spec, "containers") {
        total.add_all(&of(container));
    }
    // Sidecars that have started stay; each step of starting adds to them.
    let mut sidecars = Amounts::default();
    let mut largest = Amounts::default();
    for container in items(spec, "initContainers") {
        let own = of(container);
        if text(container, "restartPolicy") == "Always" {
            total.add_all(&own);
            sidecars.add_all(&own);
            largest.at_least(&sidecars);
            continue;
        }
        let mut step = sidecars.clone();
        step.add_all(&own);
        largest.at_least(&step);
    }
    total.at_least(&largest);
    total.add_all(&Amounts::read(&spec["overhead"]));
    total
}

/// Kinds that have a name of their own in quotas besides `count/…`.
const PLAIN: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// `count/deployments.apps`.
fn counted(kind: &Kind) -> String {
    format!("count/{}", kind.qualified())
}

/// What an object uses. A Pod that has ended uses nothing but its place in `count/pods`.
pub fn usage(kind: &Kind, object: &Object) -> Amounts {
    let mut used = Amounts::default();
    used.add(&counted(kind), Quantity::from_units(1));
    if !kind.group.is_empty() || !PLAIN.contains(&kind.plural) {
        return used;
    }
    if kind.plural == "pods" {
        let phase = text(&object["status"], "phase");
        if !["Succeeded", "Failed"].contains(&phase) {
            pod_usage(&object["spec"], &mut used);
        }
        return used;
    }
    used.add(kind.plural, Quantity::from_units(1));
    match kind.plural {
        "services" => service_usage(&object["spec"], &mut used),
        "persistentvolumeclaims" => claim_usage(object, &mut used),
        _ => {}
    }
    used
}

fn pod_usage(spec: &Value, used: &mut Amounts) {
    used.add("pods", Quantity::from_units(1));
    let requests = pod_total(spec, "requests");
    let limits = pod_total(spec, "limits");
    for (name, amount) in &requests.0 {
        // The plain name of what existed before there were requests and limits.
        if ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) {
            used.add(name, *amount);
        }
        used.add(&format!("requests.{name}"), *amount);
    }
    for (name, amount) in &limits.0 {
        used.add(&format!("limits.{name}"), *amount);
    }
}

fn service_usage(spec: &Value, used: &mut Amounts) {
    let ports = items(spec, "ports");
    let one = Quantity::from_units(1);
    match text(spec, "type") {
        "NodePort" => {
            let count = i64::try_from(ports.len()).unwrap_or(i64::MAX);
            used.add("services.nodeports", Quantity::from_units(count));
        }
        "LoadBalancer" => {
            used.add("services.loadbalancers", one);
            let opened = ports
                .iter()
                .filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0);
            let allocates = spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
            let count = if allocates { ports.len() } else { opened.count() };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            used.add("services.nodeports", Quantity::from_units(count));
        }
        _ => {}
    }
}

fn claim_usage(claim: &Object, used: &mut Amounts) {
    let storage = Amounts::read(&claim["spec"]["resources"]["requests"]).get("storage");
    let storage = storage.unwrap_or(Quantity::ZERO);
    used.add("requests.storage", storage);
    let class = text(&claim["spec"], "storageClassName");
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        used.add(&format!("{prefix}/requests.storage"), storage);
        used.add(&format!("{prefix}/persistentvolumeclaims"), Quantity::from_units(1));
    }
}

/// Whether a quota is about this object: it limits something that the object uses, and its scopes
/// fit.
pub fn concerns(quota: &Object, kind: &Kind, object: &Object) -> bool {
    let hard = Amounts::read(&quota["spec"]["hard"]);
    let uses = usage(kind, object);
    let relevant = hard.0.keys().any(|name| uses.0.contains_key(name))
        || kind.is("", "Pod") && hard.0.keys().any(|name| is_of_pods(name));
    relevant && in_scope(quota, kind, object)
}

/// Whether a resource of a quota is one that containers ask for.
fn is_of_pods(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name)
        || name.starts_with("requests.") && name != "requests.storage"
        || name.starts_with("limits.")
}

/// Scopes speak of Pods only; a quota with scopes is about nothing else.
fn in_scope(quota: &Object, kind: &Kind, object: &Object) -> bool {
    let scopes = items(&quota["spec"], "scopes");
    let selector = items(&quota["spec"]["scopeSelector"], "matchExpressions");
    if scopes.is_empty() && selector.is_empty() {
        return true;
    }
    if !kind.is("", "Pod") {
        return false;
    }
    let plain = scopes.iter().filter_map(Value::as_str).all(|scope| fits(scope, object));
    plain
        && selector.iter().all(|expression| {
            let scope = text(expression, "scopeName");
            if scope == "PriorityClass" {
                return class_fits(expression, text(&object["spec"], "priorityClassName"));
            }
            fits(scope, object)
        })
}

fn class_fits(expression: &Value, class: &str) -> bool {
    let listed = items(expression, "values").iter().any(|value| value.as_str() == Some(class));
    match text(expression, "operator") {
        "In" => !class.is_empty() && listed,
        "NotIn" => !listed,
        "DoesNotExist" => class.is_empty(),
        _ => !class.is_empty(),
    }
}

fn fits(scope: &str, pod: &Object) -> bool {
    let spec = &pod["spec"];
    let terminating = spec.get("activeDeadlineSeconds").and_then(Value::as_i64).is_some();
    let best_effort = spec.as_object().map(crate::defaults::qos_class) == Some("BestEffort");
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => !text(spec, "priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        _ => false,
    }
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let crosses = |term: &Value| {
        !items(term, "namespaces").is_empty()
            || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|part| {
        let part = &affinity[*part];
        items(part, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || items(part, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

/// What containers must say because a quota counts it: `requests.cpu for: c1,c2; …`. None when all
/// is said.
pub fn unsaid(quota: &Object, pod: &Object) -> Option<String> {
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let hard = Amounts::read(&quota["spec"]["hard"]);
    let spec = &pod["spec"];
    let lists = ["containers", "initContainers"];
    for container in lists.iter().flat_map(|list| items(spec, list)) {
        for name in hard.0.keys() {
            let (part, resource) = match name.split_once('.') {
                Some((part @ ("requests" | "limits"), resource)) => (part, resource),
                _ => ("requests", name.as_str()),
            };
            // Extended resources need not be asked for by everyone.
            let basic = ["cpu", "memory", "ephemeral-storage"].contains(&resource);
            if basic && container["resources"][part].get(resource).is_none() {
                let who = missing.entry(name.clone()).or_default();
                who.push(text(container, "name").to_owned());
            }
        }
    }
    let texts: Vec<String> =
        missing.iter().map(|(name, who)| format!("{name} for: {}", who.join(","))).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Whether a quota's status speaks of exactly what the spec limits.
pub fn is_counted(quota: &Object) -> bool {
    let hard = Amounts::read(&quota["spec"]["hard"]);
    let used = Amounts::read(&quota["status"]["used"]);
    Amounts::read(&quota["status"]["hard"]) == hard
        && hard.0.keys().all(|name| used.0.contains_key(name))
}

/// Why there is no room: what was asked, what is used, what is allowed, of those resources alone of
/// which there would be too much.
pub fn exceeded(quota: &Object, more: &Amounts, used: &Amounts) -> Option<String> {
    let hard = Amounts::read(&quota["spec"]["hard"]);
    let mut over = Amounts::default();
    for (name, amount) in &more.among(&hard).0 {
        let held = used.get(name).unwrap_or(Quantity::ZERO);
        let most = hard.get(name).unwrap_or(Quantity::ZERO);
        let grows = *amount > Quantity::ZERO;
        if grows && held + *amount > most {
            over.add(name, *amount);
        }
    }
    if over.0.is_empty() {
        return None;
    }
    let mut shown = used.among(&over);
    for name in over.0.keys() {
        shown.0.entry(name.clone()).or_insert(Quantity::ZERO);
    }
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        crate::meta::name(quota),
        over.line(),
        shown.line(),
        hard.among(&over).line()
    ))
}

/// What one more state of an object adds to a quota's use; negative where it frees something.
pub fn delta(kind: &Kind, new: &Object, old: Option<&Object>) -> Amounts {
    let mut delta = usage(kind, new);
    if let Some(old) = old {
        for (name, amount) in usage(kind, old).0 {
            let held = delta.get(&name).unwrap_or(Quantity::ZERO);
            delta.0.insert(name, held.minus(amount));
        }
    }
    delta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind;
    use serde_json::json;

    fn pods() -> &'static Kind {
        kind("", "v1", "pods").expect("a built-in kind")
    }

    fn pod(requests: Value) -> Object {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": requests}}]}})
    }

    #[test]
    fn what_objects_use() {
        let used = usage(pods(), &pod(json!({"cpu": "500m", "memory": "1Gi"})));
        assert_eq!(
            used.line(),
            "count/pods=1,cpu=500m,memory=1Gi,pods=1,requests.cpu=500m,requests.memory=1Gi"
        );
        let mut ended = pod(json!({"cpu": "1"}));
        ended["status"] = json!({"phase": "Succeeded"});
        assert_eq!(usage(pods(), &ended).line(), "count/pods=1");
        let services = kind("", "v1", "services").expect("a built-in kind");
        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            usage(services, &service).line(),
            "count/services=1,services=1,services.nodeports=2"
        );
        let deployments = kind("apps", "v1", "deployments").expect("a built-in kind");
        assert_eq!(usage(deployments, &json!({})).line(), "count/deployments.apps=1");
    }

    #[test]
    fn a_step_of_starting_may_need_the_most() {
        let part = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = part("1");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"containers": [part("1"), part("1")],
            "initContainers": [sidecar, part("5")]});
        assert_eq!(pod_total(&spec, "requests").line(), "cpu=6");
    }

    #[test]
    fn room_and_scopes() {
        let quota = json!({"metadata": {"name": "q"},
            "spec": {"hard": {"pods": "2", "requests.cpu": "1"}}});
        let asked = pod(json!({"cpu": "600m"}));
        assert!(concerns(&quota, pods(), &asked));
        assert_eq!(unsaid(&quota, &asked), None);
        assert_eq!(unsaid(&quota, &pod(json!({}))).as_deref(), Some("requests.cpu for: c"));
        let used = Amounts::read(&json!({"pods": "1", "requests.cpu": "500m"}));
        assert_eq!(
            exceeded(&quota, &delta(pods(), &asked, None), &used).as_deref(),
            Some(
                "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, \
                 limited: requests.cpu=1"
            )
        );
        let mut scoped = quota.clone();
        scoped["spec"]["scopes"] = json!(["BestEffort"]);
        assert!(!concerns(&scoped, pods(), &asked));
        assert!(concerns(&scoped, pods(), &pod(json!({}))));
        let secrets = kind("", "v1", "secrets").expect("a built-in kind");
        assert!(!concerns(&quota, secrets, &json!({})));
    }
}
