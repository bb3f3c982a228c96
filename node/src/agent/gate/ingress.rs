//! What Ingresses become: certificates, and one site with all their rules. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass};

use super::Pair;
use crate::{
    agent::pods::Name,
    protocol::{
        Backend, Certificate, Family, Filters, GatePort, GateTable, HeaderChange, HttpMatch,
        HttpRule, Owner, PathMatch, Redirect, Site, Target,
    },
};

/// The controller of IngressClasses that nodes serve.
const CONTROLLER: &str = "wherry.dev/ingress";
/// The class of an Ingress, as it was said before there was a field.
const ANNOTATION_CLASS: &str = "kubernetes.io/ingress.class";
/// `true`: plain HTTP is answered with the way to HTTPS.
const ANNOTATION_REDIRECT: &str = "wherry.dev/ssl-redirect";
/// The largest body of a request, in bytes.
const ANNOTATION_BODY: &str = "wherry.dev/body-bytes-max";
/// Of the way to HTTPS.
const PERMANENT_REDIRECT: u16 = 308;
/// Without its Service an Ingress cannot answer.
const UNAVAILABLE: u16 = 503;

/// Whether an Ingress is served here.
pub fn is_ours(ingress: &Ingress, classes: &HashMap<String, String>) -> bool {
    let annotations = ingress.metadata.annotations.as_ref();
    let old = annotations.and_then(|all| all.get(ANNOTATION_CLASS));
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    match named.or(old) {
        None => true,
        Some(class) => classes.get(class).is_some_and(|controller| controller == CONTROLLER),
    }
}

/// The Secrets that an Ingress names.
pub fn secrets(ingress: &Ingress) -> Vec<Name> {
    let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref()).into_iter().flatten();
    let named = tls.filter_map(|tls| tls.secret_name.clone());
    named.map(|name| (namespace.clone(), name)).collect()
}

/// Adds all Ingresses that are served here, the older first, at the ports for HTTP and HTTPS.
pub fn add<'a>(
    table: &mut GateTable,
    ingresses: impl Iterator<Item = &'a Ingress>,
    classes: &HashMap<String, String>,
    secrets: &BTreeMap<Name, Option<Pair>>,
    (http, https): (u16, u16),
) {
    let mut ours: Vec<&Ingress> = ingresses.filter(|ingress| is_ours(ingress, classes)).collect();
    if ours.is_empty() {
        return;
    }
    ours.sort_by_key(|ingress| ingress.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut site = Site { ports: vec![http, https], family: Family::Ingress, ..Site::default() };
    let mut held = Vec::new();
    for ingress in &ours {
        rules(ingress, &mut site.rules);
        certificates(ingress, secrets, &mut held);
    }
    table.ports.push(GatePort { port: http, tls: false, certificates: Vec::new() });
    table.ports.push(GatePort { port: https, tls: true, certificates: held });
    table.sites.push(site);
}

fn rules(ingress: &Ingress, all: &mut Vec<HttpRule>) {
    let Some(spec) = &ingress.spec else { return };
    let annotations = ingress.metadata.annotations.clone().unwrap_or_default();
    let owner = Owner {
        kind: "Ingress".to_owned(),
        namespace: ingress.metadata.namespace.clone().unwrap_or_default(),
        name: ingress.metadata.name.clone().unwrap_or_default(),
    };
    let redirect = annotations.get(ANNOTATION_REDIRECT).is_some_and(|value| value == "true");
    let redirect = redirect.then(|| Redirect {
        scheme: Some("https".to_owned()),
        status: PERMANENT_REDIRECT,
        plain_only: true,
        ..Redirect::default()
    });
    let body_bytes_max = annotations.get(ANNOTATION_BODY).and_then(|value| value.parse().ok());
    let mut add = |host: Option<String>, path: Option<PathMatch>, backend: &IngressBackend| {
        // A backend that is no Service is an extension of some other controller.
        let Some(service) = &backend.service else { return };
        let port = service.port.clone().unwrap_or_default();
        let number = port.number.map(|number| number.to_string());
        let to = Target {
            namespace: owner.namespace.clone(),
            service: service.name.clone(),
            port: port.name.or(number).unwrap_or_default(),
        };
        let one = |path| HttpMatch { path, method: None, headers: Vec::new(), queries: Vec::new() };
        let none = HeaderChange::default();
        all.push(HttpRule {
            owner: owner.clone(),
            hosts: vec![host.unwrap_or_default()],
            matches: path.map(one).into_iter().collect(),
            filters: Filters { redirect: redirect.clone(), ..Filters::default() },
            backends: vec![Backend {
                to: Ok(to),
                weight: 1,
                request: none.clone(),
                response: none,
            }],
            absent: UNAVAILABLE,
            body_bytes_max,
            ..HttpRule::default()
        });
    };
    for rule in spec.rules.iter().flatten() {
        let host = rule.host.clone().filter(|host| !host.is_empty());
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let text = path.path.clone().unwrap_or_else(|| "/".to_owned());
            let matched = match path.path_type == "Exact" {
                true => PathMatch::Exact(text),
                false => PathMatch::Prefix(text),
            };
            add(host.clone(), Some(matched), &path.backend);
        }
        if let Some(backend) = spec.default_backend.as_ref().filter(|_| rule.http.is_none()) {
            add(host, Some(PathMatch::Prefix("/".to_owned())), backend);
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
                family: Family::Ingress,
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
        let mut table = GateTable::default();
        add(&mut table, ingresses.iter(), &classes, &secrets, (80, 443));
        let mut out = String::new();
        for rule in table.sites.iter().flat_map(|site| &site.rules) {
            let paths: Vec<&PathMatch> = rule.matches.iter().map(|one| &one.path).collect();
            let to = rule.backends[0].to.as_ref().expect("a Service");
            let to = format!("{}:{}", to.service, to.port);
            let more = (rule.filters.redirect.is_some(), rule.body_bytes_max);
            out += &format!("{} {:?} {paths:?} {to} {more:?}\n", rule.owner.name, rule.hosts[0]);
        }
        for port in table.ports {
            out += &format!("{} {:?}\n", port.port, port.certificates);
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
                old "*.example" [Prefix("/")] fallback:8080 (false, None)
                old "" [] fallback:8080 (false, None)
                web "shop.example" [Prefix("/api")] api:80 (true, Some(1000))
                web "shop.example" [Exact("/")] web:http (true, Some(1000))
                80 []
                443 [Certificate(shop/tls for ["shop.example"])]
            "#]],
        );
        check(&[foreign("theirs")], expect![[""]]);
    }
}
