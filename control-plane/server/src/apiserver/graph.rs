//! Which node's Pods name which ConfigMaps, Secrets, claims and accounts: what a node may read.
//!
//! The index follows the store's Pods (`follow`). A Pod's spec is read once: later changes of its
//! status are told apart from changes of the spec by a hash of the spec's text.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use wherry_resources::gateway::{self, objects::Parsed};
use wherry_resources::keys::{self, Key};
use wherry_store::Entry;

use super::follow::Fold;

/// What a Pod names: resource and name, in the Pod's namespace.
type Reference = (&'static str, String);

#[derive(Clone)]
struct Known {
    spec: u64,
    node: String,
    references: Vec<Reference>,
}

/// The references of all Pods that are bound.
#[derive(Clone, Default)]
pub struct Graph {
    /// By namespace and name.
    pods: HashMap<(String, String), Known>,
    /// By node, then by namespace, resource and name: how many Pods.
    nodes: HashMap<String, HashMap<(String, &'static str, String), u32>>,
}

/// Prefix of the store's keys of Pods.
pub fn prefix() -> Vec<u8> {
    keys::of_type("", "pods")
}

#[derive(Deserialize)]
struct Slim<'a> {
    #[serde(borrow)]
    spec: Option<&'a RawValue>,
}

impl Fold for Graph {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        let Ok(Slim { spec: Some(text) }) = serde_json::from_slice(&entry.value) else { return };
        let mut hasher = DefaultHasher::new();
        text.get().hash(&mut hasher);
        let hash = hasher.finish();
        let name = (key.namespace.to_owned(), key.name.to_owned());
        if self.pods.get(&name).is_some_and(|known| known.spec == hash) {
            return;
        }
        self.remove(key);
        let Ok(spec) = serde_json::from_str::<Value>(text.get()) else { return };
        let node = spec["nodeName"].as_str().unwrap_or("").to_owned();
        let mut references = Vec::new();
        if !node.is_empty() {
            collect(&spec, &mut references);
            // The claim of an ephemeral volume is called after the Pod and the volume.
            let volumes = spec["volumes"].as_array().into_iter().flatten();
            for volume in volumes.filter(|volume| volume["ephemeral"].is_object()) {
                let claim = format!("{}-{}", key.name, volume["name"].as_str().unwrap_or(""));
                references.push(("persistentvolumeclaims", claim));
            }
            references.sort_unstable();
            references.dedup();
        }
        let counts = self.nodes.entry(node.clone()).or_default();
        for (resource, name) in &references {
            *counts.entry((key.namespace.to_owned(), resource, name.clone())).or_default() += 1;
        }
        self.pods.insert(name, Known { spec: hash, node, references });
    }

    fn remove(&mut self, key: &Key<'_>) {
        let name = (key.namespace.to_owned(), key.name.to_owned());
        let Some(Known { node, references, .. }) = self.pods.remove(&name) else { return };
        let Some(counts) = self.nodes.get_mut(&node) else { return };
        for (resource, name) in references {
            let key = (key.namespace.to_owned(), resource, name);
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        if counts.is_empty() {
            self.nodes.remove(&node);
        }
    }
}

impl Graph {
    /// Whether a Pod on this node names the object.
    pub fn refers(&self, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
        let known = ["configmaps", "persistentvolumeclaims", "secrets", "serviceaccounts"];
        let Some(resource) = known.into_iter().find(|known| *known == resource) else {
            return false;
        };
        let Some(counts) = self.nodes.get(node) else { return false };
        counts.contains_key(&(namespace.to_owned(), resource, name.to_owned()))
    }
}

/// Which Secrets Ingresses name for TLS: every node serves them.
#[derive(Clone, Default)]
pub struct Gates {
    /// By namespace and name of the Ingress.
    ingresses: HashMap<(String, String), Vec<String>>,
    /// By namespace and name of the Secret: how many name it.
    secrets: HashMap<(String, String), u32>,
}

/// Prefix of the store's keys of Ingresses.
pub fn gates_prefix() -> Vec<u8> {
    keys::of_type("networking.k8s.io", "ingresses")
}

impl Fold for Gates {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        self.remove(key);
        let Ok(ingress) = serde_json::from_slice::<Value>(&entry.value) else { return };
        let tls = ingress.pointer("/spec/tls").and_then(Value::as_array).into_iter().flatten();
        let mut names: Vec<String> =
            tls.filter_map(|tls| tls["secretName"].as_str()).map(str::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        for name in &names {
            *self.secrets.entry((key.namespace.to_owned(), name.clone())).or_default() += 1;
        }
        self.ingresses.insert((key.namespace.to_owned(), key.name.to_owned()), names);
    }

    fn remove(&mut self, key: &Key<'_>) {
        let name = (key.namespace.to_owned(), key.name.to_owned());
        for secret in self.ingresses.remove(&name).into_iter().flatten() {
            let secret = (key.namespace.to_owned(), secret);
            if let Some(count) = self.secrets.get_mut(&secret) {
                *count -= 1;
                if *count == 0 {
                    self.secrets.remove(&secret);
                }
            }
        }
    }
}

impl Gates {
    /// Whether an Ingress names this Secret.
    pub fn refers(&self, namespace: &str, resource: &str, name: &str) -> bool {
        resource == "secrets" && self.secrets.contains_key(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Which Secrets Gateways name, of their own namespace or of one that lets them: every node serves
/// them.
#[derive(Clone, Default)]
pub struct Gateways {
    /// By kind, namespace and name.
    objects: HashMap<(gateway::objects::Kind, String, String), Parsed>,
}

/// Prefix of the store's keys of all objects of the Gateway API.
pub fn gateways_prefix() -> Vec<u8> {
    format!("{}/", gateway::GROUP).into_bytes()
}

/// Routes are followed, too, and not kept.
fn kept(key: &Key<'_>) -> Option<(gateway::objects::Kind, String, String)> {
    use gateway::objects::Kind;
    let kind = [Kind::Gateway, Kind::Grant].into_iter().find(|kind| kind.plural() == key.plural)?;
    Some((kind, key.namespace.to_owned(), key.name.to_owned()))
}

impl Fold for Gateways {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        let Some(name) = kept(key) else { return };
        let object = serde_json::from_slice::<Value>(&entry.value).ok();
        match object.and_then(|object| Parsed::read(name.0, &object)) {
            Some(parsed) => _ = self.objects.insert(name, parsed),
            None => _ = self.objects.remove(&name),
        }
    }

    fn remove(&mut self, key: &Key<'_>) {
        if let Some(name) = kept(key) {
            self.objects.remove(&name);
        }
    }
}

impl Gateways {
    /// Whether a Gateway names this Secret and may use it.
    pub fn refers(&self, namespace: &str, resource: &str, name: &str) -> bool {
        if resource != "secrets" || self.objects.is_empty() {
            return false;
        }
        let mut world = gateway::World::default();
        self.objects.values().for_each(|object| world.add(object));
        let named = world.gateways.iter().flat_map(|gateway| world.secrets(gateway));
        named.into_iter().any(|(of, secret)| of == namespace && secret == name)
    }
}

/// Finds every ConfigMap, Secret, claim and ServiceAccount that a spec names. Walks every field, so
/// that a reference in a field added later is found too; the shapes of references are few.
fn collect(spec: &Value, found: &mut Vec<Reference>) {
    match spec {
        Value::Object(fields) => {
            let mut note = |resource: &'static str, name: &Value| {
                if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
                    found.push((resource, name.to_owned()));
                }
            };
            for (key, value) in fields {
                match key.as_str() {
                    "secretKeyRef" | "secretRef" | "nodePublishSecretRef" => {
                        note("secrets", &value["name"]);
                    }
                    "secret" => {
                        note("secrets", &value["secretName"]);
                        note("secrets", &value["name"]);
                    }
                    "imagePullSecrets" => {
                        let list = value.as_array().into_iter().flatten();
                        list.for_each(|one| note("secrets", &one["name"]));
                    }
                    "configMapKeyRef" | "configMapRef" | "configMap" => {
                        note("configmaps", &value["name"]);
                    }
                    "persistentVolumeClaim" => note("persistentvolumeclaims", &value["claimName"]),
                    "serviceAccountName" => note("serviceaccounts", value),
                    _ => {}
                }
            }
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;

    fn put(graph: &mut Graph, name: &str, spec: Value, phase: &str) {
        let pod = json!({"kind": "Pod", "spec": spec, "status": {"phase": phase}});
        let value = Bytes::from(pod.to_string());
        let entry = Entry { value, created: 1, modified: 1 };
        graph.put(&Key { group: "", plural: "pods", namespace: "shop", name }, &entry);
    }

    #[test]
    fn a_node_is_referred_to_what_its_pods_name_while_they_are_there() {
        let mut graph = Graph::default();
        let spec = |node: &str, secret: &str| {
            json!({"nodeName": node, "serviceAccountName": "web", "containers": [
                {"envFrom": [{"secretRef": {"name": secret}}]}],
                "volumes": [{"configMap": {"name": "c"}}, {"secret": {"secretName": "v"}},
                    {"projected": {"sources": [{"secret": {"name": "p"}}]}},
                    {"persistentVolumeClaim": {"claimName": "data"}}]})
        };
        put(&mut graph, "a", spec("n1", "s"), "Pending");
        put(&mut graph, "b", spec("n1", "s"), "Pending");
        put(&mut graph, "a", spec("n1", "s"), "Running");
        let refers = |graph: &Graph, node: &str, resource: &str, name: &str| {
            graph.refers(node, "shop", resource, name)
        };
        for (resource, name) in [
            ("secrets", "s"),
            ("secrets", "v"),
            ("secrets", "p"),
            ("configmaps", "c"),
            ("serviceaccounts", "web"),
            ("persistentvolumeclaims", "data"),
        ] {
            assert!(refers(&graph, "n1", resource, name), "{resource} {name}");
            assert!(!refers(&graph, "n2", resource, name), "{resource} {name}");
        }
        assert!(!graph.refers("n1", "other", "secrets", "s"));
        put(&mut graph, "a", spec("n1", "t"), "Running");
        let key = |name| Key { group: "", plural: "pods", namespace: "shop", name };
        graph.remove(&key("b"));
        assert!(!refers(&graph, "n1", "secrets", "s"));
        assert!(refers(&graph, "n1", "secrets", "t"));
        graph.remove(&key("a"));
        assert!(graph.nodes.is_empty() && graph.pods.is_empty());
    }

    #[test]
    fn nodes_serve_the_certificates_that_ingresses_name() {
        let mut gates = Gates::default();
        let key =
            Key { group: "networking.k8s.io", plural: "ingresses", namespace: "d", name: "web" };
        let entry = |secrets: &[&str]| {
            let tls: Vec<Value> = secrets.iter().map(|it| json!({"secretName": it})).collect();
            let value = Bytes::from(json!({"spec": {"tls": tls}}).to_string());
            Entry { value, created: 1, modified: 1 }
        };
        gates.put(&key, &entry(&["a", "b", "b"]));
        assert!(gates.refers("d", "secrets", "a") && gates.refers("d", "secrets", "b"));
        assert!(!gates.refers("e", "secrets", "a") && !gates.refers("d", "configmaps", "a"));
        gates.put(&key, &entry(&["b"]));
        assert!(!gates.refers("d", "secrets", "a") && gates.refers("d", "secrets", "b"));
        gates.remove(&key);
        assert!(!gates.refers("d", "secrets", "b"));
    }

    #[test]
    fn nodes_serve_the_certificates_that_gateways_may_use() {
        let mut gateways = Gateways::default();
        let of = |plural, namespace| Key { group: gateway::GROUP, plural, namespace, name: "x" };
        let entry = |object: Value| {
            let value = Bytes::from(object.to_string());
            Entry { value, created: 1, modified: 1 }
        };
        let refs = json!([{"name": "own"}, {"name": "far", "namespace": "certs"}]);
        let listener = json!({"name": "a", "tls": {"certificateRefs": refs}});
        let spec = json!({"listeners": [listener]});
        let object = json!({"metadata": {"namespace": "d", "name": "x"}, "spec": spec});
        gateways.put(&of("gateways", "d"), &entry(object));
        assert!(gateways.refers("d", "secrets", "own"));
        assert!(!gateways.refers("d", "configmaps", "own"));
        assert!(!gateways.refers("certs", "secrets", "far"));
        let grant = json!({"metadata": {"namespace": "certs", "name": "x"}, "spec": {
            "from": [{"group": gateway::GROUP, "kind": "Gateway", "namespace": "d"}],
            "to": [{"group": "", "kind": "Secret"}]}});
        gateways.put(&of("referencegrants", "certs"), &entry(grant));
        assert!(gateways.refers("certs", "secrets", "far"));
        gateways.remove(&of("referencegrants", "certs"));
        assert!(!gateways.refers("certs", "secrets", "far"));
        gateways.remove(&of("gateways", "d"));
        assert!(gateways.objects.is_empty());
    }
}
