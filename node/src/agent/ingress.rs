//! Ingresses, and what becomes of them: one table for the worker that serves them.
//!
//! Read are all Ingresses, the IngressClasses, and the Secrets with certificates that the Ingresses
//! name, each by a watch of its own, so that a renewed certificate is served within a moment. An
//! Ingress is served here if its class has our controller, or if it names none.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::{
    core::v1::Secret,
    networking::v1::{Ingress, IngressBackend, IngressClass},
};
use kube::Api;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    pods::{Input, Name},
    watch::{self, Change},
};
use crate::protocol::{Certificate, IngressPath, IngressRule, IngressTable, ServiceKey};

/// The controller of IngressClasses that nodes serve.
const CONTROLLER: &str = "wherry.dev/ingress";
/// The class of an Ingress, as it was said before there was a field.
const ANNOTATION_CLASS: &str = "kubernetes.io/ingress.class";
/// `true`: plain HTTP is answered with the way to HTTPS.
const ANNOTATION_REDIRECT: &str = "wherry.dev/ssl-redirect";
/// The largest body of a request, in bytes.
const ANNOTATION_BODY: &str = "wherry.dev/body-bytes-max";

/// Certificate and key, as they stand in the Secret.
pub type Pair = (String, String);

/// All that the table is made of.
pub struct Gate {
    ports: (u16, u16),
    ingresses: BTreeMap<Name, Ingress>,
    /// Controllers of the classes.
    classes: HashMap<String, String>,
    /// What the Secrets hold; None: nothing that can be used.
    secrets: BTreeMap<Name, Option<Pair>>,
    watches: BTreeMap<Name, DropGuard>,
    synced: (bool, bool),
    sent: IngressTable,
    client: kube::Client,
    inputs: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
}

impl Gate {
    /// Nothing is known yet. `ports` are those for HTTP and HTTPS.
    pub fn new(ports: (u16, u16), client: kube::Client, inputs: mpsc::Sender<Input>) -> Gate {
        Gate {
            ports,
            ingresses: BTreeMap::new(),
            classes: HashMap::new(),
            secrets: BTreeMap::new(),
            watches: BTreeMap::new(),
            synced: (false, false),
            sent: IngressTable::default(),
            client,
            inputs,
            tasks: JoinSet::new(),
        }
    }

    /// Takes a change of an Ingress.
    pub fn ingress(&mut self, change: Change<(Name, Ingress), Name>) {
        match change {
            Change::Apply((name, ingress)) => _ = self.ingresses.insert(name, ingress),
            Change::Delete(name) => _ = self.ingresses.remove(&name),
            Change::Synced => self.synced.0 = true,
        }
        self.watch_secrets();
    }

    /// Takes a change of an IngressClass: its controller.
    pub fn class(&mut self, change: Change<(String, String), String>) {
        match change {
            Change::Apply((name, controller)) => _ = self.classes.insert(name, controller),
            Change::Delete(name) => _ = self.classes.remove(&name),
            Change::Synced => self.synced.1 = true,
        }
        self.watch_secrets();
    }

    /// Takes what a Secret holds.
    pub fn secret(&mut self, name: Name, pair: Option<Pair>) {
        if self.watches.contains_key(&name) {
            self.secrets.insert(name, pair);
        }
    }

    /// Whether there is anything to serve.
    pub fn is_needed(&self) -> bool {
        self.ingresses.values().any(|ingress| is_ours(ingress, &self.classes))
    }

    /// Follows exactly the Secrets that are named.
    fn watch_secrets(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let ours = self.ingresses.values().filter(|ingress| is_ours(ingress, &self.classes));
        let wanted: BTreeSet<Name> = ours.flat_map(secrets).collect();
        self.watches.retain(|name, _| wanted.contains(name));
        self.secrets.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if self.watches.contains_key(&name) {
                continue;
            }
            let stop = CancellationToken::new();
            let following =
                follow(self.client.clone(), name.clone(), self.inputs.clone(), stop.clone());
            self.tasks.spawn(following);
            self.watches.insert(name, stop.drop_guard());
        }
    }

    /// The table, if all of it is known.
    pub fn table(&self) -> Option<IngressTable> {
        let known = self.watches.keys().all(|name| self.secrets.contains_key(name));
        if self.synced != (true, true) || !known {
            return None;
        }
        Some(build(self.ingresses.values(), &self.classes, &self.secrets, self.ports))
    }

    /// The table, if it is another one than the one sent last.
    pub fn news(&mut self) -> Option<IngressTable> {
        let table = self.table().filter(|table| *table != self.sent)?;
        self.sent = table.clone();
        Some(table)
    }
}

/// Reports what a Secret holds, at each change.
async fn follow(
    client: kube::Client,
    name: Name,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
) {
    let api = Api::<Secret>::namespaced(client, &name.0);
    let fields = format!("metadata.name={}", name.1);
    let found = std::sync::atomic::AtomicBool::new(false);
    let report = |change: Change<Option<Pair>, ()>| {
        use std::sync::atomic::Ordering::Relaxed;
        let pair = match change {
            Change::Apply(pair) => {
                found.store(true, Relaxed);
                Some(pair)
            }
            Change::Delete(()) => {
                found.store(false, Relaxed);
                Some(None)
            }
            Change::Synced => (!found.load(Relaxed)).then_some(None),
        };
        let (name, inputs) = (name.clone(), inputs.clone());
        async move {
            if let Some(pair) = pair {
                // The loop is gone only when the agent ends.
                let _ = inputs.send(Input::TlsSecret { name, pair }).await;
            }
        }
    };
    let read = |secret: Secret| Some(((), pair(secret)));
    watch::run(api, Some(fields), read, report, stop).await;
}

/// Certificate and key in a Secret.
fn pair(secret: Secret) -> Option<Pair> {
    let mut data = secret.data?;
    let mut text = |key| String::from_utf8(data.remove(key)?.0).ok();
    Some((text("tls.crt")?, text("tls.key")?))
}

fn is_ours(ingress: &Ingress, classes: &HashMap<String, String>) -> bool {
    let annotations = ingress.metadata.annotations.as_ref();
    let old = annotations.and_then(|all| all.get(ANNOTATION_CLASS));
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    match named.or(old) {
        None => true,
        Some(class) => classes.get(class).is_some_and(|controller| controller == CONTROLLER),
    }
}

/// The Secrets that an Ingress names.
fn secrets(ingress: &Ingress) -> Vec<Name> {
    let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref()).into_iter().flatten();
    let named = tls.filter_map(|tls| tls.secret_name.clone());
    named.map(|name| (namespace.clone(), name)).collect()
}

/// The table of all Ingresses that are served here, the older first.
fn build<'a>(
    ingresses: impl Iterator<Item = &'a Ingress>,
    classes: &HashMap<String, String>,
    secrets: &BTreeMap<Name, Option<Pair>>,
    (http, https): (u16, u16),
) -> IngressTable {
    let mut ours: Vec<&Ingress> = ingresses.filter(|ingress| is_ours(ingress, classes)).collect();
    ours.sort_by_key(|ingress| ingress.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut table = IngressTable::default();
    for ingress in &ours {
        rules(ingress, &mut table.rules);
        certificates(ingress, secrets, &mut table.certificates);
    }
    if !ours.is_empty() {
        table.http_port = Some(http);
        table.https_port = Some(https);
    }
    table
}

fn rules(ingress: &Ingress, all: &mut Vec<IngressRule>) {
    let Some(spec) = &ingress.spec else { return };
    let annotations = ingress.metadata.annotations.clone().unwrap_or_default();
    let key = ServiceKey {
        namespace: ingress.metadata.namespace.clone().unwrap_or_default(),
        name: ingress.metadata.name.clone().unwrap_or_default(),
    };
    let redirect = annotations.get(ANNOTATION_REDIRECT).is_some_and(|value| value == "true");
    let body_bytes_max = annotations.get(ANNOTATION_BODY).and_then(|value| value.parse().ok());
    let mut add = |host: Option<String>, path: Option<IngressPath>, backend: &IngressBackend| {
        // A backend that is no Service is an extension of some other controller.
        let Some(service) = &backend.service else { return };
        let port = service.port.clone().unwrap_or_default();
        let number = port.number.map(|number| number.to_string());
        all.push(IngressRule {
            ingress: key.clone(),
            host,
            path,
            service: service.name.clone(),
            port: port.name.or(number).unwrap_or_default(),
            redirect,
            body_bytes_max,
        });
    };
    for rule in spec.rules.iter().flatten() {
        let host = rule.host.clone().filter(|host| !host.is_empty());
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let matched = IngressPath {
                path: path.path.clone().unwrap_or_else(|| "/".to_owned()),
                exact: path.path_type == "Exact",
            };
            add(host.clone(), Some(matched), &path.backend);
        }
        if let Some(backend) = spec.default_backend.as_ref().filter(|_| rule.http.is_none()) {
            let everything = IngressPath { path: "/".to_owned(), exact: false };
            add(host, Some(everything), backend);
        }
    }
    if let Some(backend) = &spec.default_backend {
        add(None, None, backend);
    }
}

fn certificates(
    ingress: &Ingress,
    secrets: &BTreeMap<Name, Option<Pair>>,
    all: &mut Vec<Certificate>,
) {
    let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref());
    for tls in tls.into_iter().flatten() {
        let Some(secret) = &tls.secret_name else { continue };
        let held = secrets.get(&(namespace.clone(), secret.clone()));
        if let Some(Some((certificate_pem, key_pem))) = held {
            all.push(Certificate {
                secret: format!("{namespace}/{secret}"),
                hosts: tls.hosts.clone().unwrap_or_default(),
                certificate_pem: certificate_pem.clone(),
                key_pem: key_pem.clone(),
            });
        }
    }
}

/// The controller of an IngressClass, by its name.
pub fn read_class(class: IngressClass) -> Option<(String, (String, String))> {
    let name = class.metadata.name?;
    let controller = class.spec.and_then(|spec| spec.controller).unwrap_or_default();
    Some((name.clone(), (name, controller)))
}

/// What is needed of an Ingress, by its name.
pub fn read_ingress(mut ingress: Ingress) -> Option<(Name, (Name, Ingress))> {
    let name = (ingress.metadata.namespace.clone()?, ingress.metadata.name.clone()?);
    ingress.metadata.managed_fields = None;
    ingress.status = None;
    Some((name.clone(), (name, ingress)))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn ingress(name: &str, born: &str, annotations: Value, spec: Value) -> Ingress {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations,
                         "creationTimestamp": born},
            "spec": spec,
        }))
        .expect("an Ingress")
    }

    fn backend(service: &str, port: Value) -> Value {
        json!({"service": {"name": service, "port": port}})
    }

    fn check(ingresses: &[Ingress], expected: Expect) {
        let classes = [("ours", CONTROLLER), ("theirs", "k8s.io/ingress-nginx")];
        let classes = classes.map(|(name, it)| (name.to_owned(), it.to_owned())).into();
        let pair = Some(("CERT".to_owned(), "KEY".to_owned()));
        let secrets = BTreeMap::from([(("shop".to_owned(), "tls".to_owned()), pair)]);
        let table = build(ingresses.iter(), &classes, &secrets, (80, 443));
        let mut out = format!("{:?} {:?}\n", table.http_port, table.https_port);
        for rule in table.rules {
            let path = rule.path.map(|path| (path.path, path.exact));
            let to = format!("{}:{}", rule.service, rule.port);
            let more = (rule.redirect, rule.body_bytes_max);
            out += &format!("{} {:?} {path:?} {to} {more:?}\n", rule.ingress.name, rule.host);
        }
        for certificate in table.certificates {
            out += &format!("{certificate:?}\n");
        }
        expected.assert_eq(&out);
    }

    #[test]
    fn ingresses_of_our_class_become_rules_in_order_of_age() {
        let path = |path: &str, kind: &str, backend: Value| json!({"path": path, "pathType": kind, "backend": backend});
        let web = ingress(
            "web",
            "2026-01-02T00:00:00Z",
            json!({"wherry.dev/ssl-redirect": "true", "wherry.dev/body-bytes-max": "1000"}),
            json!({
                "ingressClassName": "ours",
                "tls": [{"hosts": ["shop.example"], "secretName": "tls"},
                        {"hosts": ["gone.example"], "secretName": "gone"}],
                "rules": [{"host": "shop.example", "http": {"paths": [
                    path("/api", "Prefix", backend("api", json!({"number": 80}))),
                    path("/", "Exact", backend("web", json!({"name": "http"}))),
                ]}}],
            }),
        );
        let old = ingress(
            "old",
            "2026-01-01T00:00:00Z",
            json!({}),
            json!({"defaultBackend": backend("fallback", json!({"number": 8080})),
                   "rules": [{"host": "*.example"}]}),
        );
        let foreign = |class: &str| {
            let spec = json!({"ingressClassName": class,
                              "defaultBackend": backend("x", json!({"number": 1}))});
            ingress(class, "2026-01-01T00:00:00Z", json!({}), spec)
        };
        check(
            &[web, old, foreign("theirs"), foreign("unknown")],
            expect![[r#"
                Some(80) Some(443)
                old Some("*.example") Some(("/", false)) fallback:8080 (false, None)
                old None None fallback:8080 (false, None)
                web Some("shop.example") Some(("/api", false)) api:80 (true, Some(1000))
                web Some("shop.example") Some(("/", true)) web:http (true, Some(1000))
                Certificate(shop/tls for ["shop.example"])
            "#]],
        );
        check(
            &[foreign("theirs")],
            expect![[r#"
            None None
        "#]],
        );
    }
}
