//! Scripts: objects of the Gateway API, requests, and who gets them.
//!
//! A case is a block of lines. `object` adds an object in YAML (born later than those before it, in
//! the namespace `infra` unless it says another one); `secret NS/NAME` a Secret with a certificate;
//! `labels NS key=value` a namespace; `new` begins with nothing but a class. `ask METHOD PORT URL
//! [header=value ...]` sends a request, `share N METHOD PORT URL` sends N. `ports` shows where is
//! listened. Lines that start with `=` are the outcome; with `UPDATE_EXPECT=1` they are rewritten.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt::Write as _,
    path::Path,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Request};
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wherry_resources::gateway::{
    World,
    objects::{Kind, Parsed},
};

use super::{GateInput, Input, Pair, gateway, ingress};
use crate::{
    agent::pods::Name,
    protocol::{GateTable, HttpRule},
    worker::gate::{
        filters,
        rules::{Asked, Entry, Missing, Rules},
    },
};

#[derive(Default)]
struct Script {
    world: World,
    secrets: BTreeMap<Name, Option<Pair>>,
    born: u32,
}

impl Script {
    fn begin() -> Script {
        let mut script = Script::default();
        let class = "{kind: GatewayClass, metadata: {name: wherry}, spec: {controllerName: \
            wherry.dev/gateway}}";
        script.object(class);
        script
    }

    fn object(&mut self, text: &str) {
        let mut object: Value = serde_yaml_ng::from_str(text).expect("YAML");
        self.born += 1;
        let meta = &mut object["metadata"];
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!(format!("2026-01-01T00:00:{:02}Z", self.born));
        }
        if meta["namespace"].is_null() {
            meta["namespace"] = json!("infra");
        }
        let kind = object["kind"].as_str().and_then(Kind::named).expect("a kind");
        self.world.add(&Parsed::read(kind, &object).expect("an object of its kind"));
    }

    fn table(&self) -> GateTable {
        let mut table = GateTable::default();
        gateway::add(&mut table, &self.world, &self.secrets, (80, 443));
        table
    }

    fn line(&mut self, word: &str, rest: &str) -> String {
        let name = |text: &str| -> Name {
            let (namespace, name) = text.split_once('/').expect("namespace/name");
            (namespace.to_owned(), name.to_owned())
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        match word {
            "new" => *self = Script::begin(),
            "object" => self.object(rest),
            "secret" => {
                let pair = Some((format!("certificate of {rest}"), "key".to_owned()));
                self.secrets.insert(name(rest), pair);
            }
            "labels" => {
                let pairs = words[1..].iter().filter_map(|word| word.split_once('='));
                let labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
                self.world.namespaces.insert(words[0].to_owned(), labels.collect());
            }
            "ask" => return ask(&Rules::new(&self.table(), &Rules::default()), &words),
            "share" => return share(&Rules::new(&self.table(), &Rules::default()), &words),
            "ports" => return ports(&self.table()),
            other => panic!("unknown word {other:?}"),
        }
        String::new()
    }
}

fn ports(table: &GateTable) -> String {
    let mut out = String::new();
    for port in &table.ports {
        let scheme = if port.tls { "https" } else { "http" };
        let sites = table.sites.iter().filter(|site| site.ports.contains(&port.port));
        let hosts: Vec<&str> = sites.map(|site| site.host.as_str()).collect();
        writeln!(out, "{} {scheme} {hosts:?} {:?}", port.port, port.certificates).expect("text");
    }
    if out.is_empty() { "none\n".to_owned() } else { out }
}

/// A request, and its rule.
fn find<'r>(rules: &'r Rules, words: &[&str]) -> (Request<()>, Result<&'r Entry, Missing>) {
    let port: u16 = words[1].parse().expect("a port");
    let (host, path) = words[2].split_at(words[2].find('/').expect("host/path"));
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(words[0].as_bytes()).expect("a method");
    *request.uri_mut() = path.parse().expect("a path");
    request.headers_mut().insert("host", HeaderValue::from_str(host).expect("a host"));
    for header in &words[3..] {
        let (name, value) = header.split_once('=').expect("name=value");
        let name: HeaderName = name.parse().expect("a header");
        request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
    }
    let asked = Asked {
        host,
        path: request.uri().path(),
        query: request.uri().query(),
        method: request.method(),
        headers: request.headers(),
    };
    let found = rules.find(port, &asked);
    (request, found)
}

fn ask(rules: &Rules, words: &[&str]) -> String {
    let (request, found) = find(rules, words);
    let entry = match found {
        Ok(entry) => entry,
        Err(missing) => return format!("404 {missing:?}\n"),
    };
    let rule = &entry.rule.rule;
    let name = &rule.owner.name;
    if let Some(why) = &rule.broken {
        return format!("{name} 500 {why}\n");
    }
    if let Some(redirect) = &rule.filters.redirect {
        let host = request.headers()["host"].to_str().expect("text");
        let asked = (words[1] == "443", host);
        let location = filters::location(redirect, entry.prefix(), asked, request.uri());
        return format!("{name} {} {location}\n", redirect.status);
    }
    let Some(backend) = entry.rule.shares.next().map(|index| &rule.backends[index]) else {
        return format!("{name} {} nobody\n", rule.absent);
    };
    let to = match &backend.to {
        Ok(to) => format!("{}/{}:{}", to.namespace, to.service, to.port),
        Err(why) => return format!("{name} {} {why}\n", rule.absent),
    };
    let (mut parts, ()) = request.into_parts();
    let before = (parts.uri.clone(), parts.headers.clone());
    filters::change(&mut parts.headers, &rule.filters.request);
    filters::change(&mut parts.headers, &backend.request);
    if let Some(rewrite) = &rule.filters.rewrite {
        filters::rewrite(&mut parts, rewrite, entry.prefix());
    }
    let mut out = format!("{name} {to}");
    if parts.uri != before.0 {
        write!(out, " as {}", parts.uri).expect("text");
    }
    if parts.headers != before.1 {
        let lines = parts.headers.iter().map(|(name, value)| format!("{name}: {value:?}"));
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        write!(out, " with {}", lines.join(", ").replace('"', "")).expect("text");
    }
    out + &more(rule) + "\n"
}

/// What else a rule does.
fn more(rule: &HttpRule) -> String {
    let mut out = String::new();
    for mirror in &rule.filters.mirrors {
        let to = format!("{}/{}:{}", mirror.to.namespace, mirror.to.service, mirror.to.port);
        let part = format!("{}/{}", mirror.numerator, mirror.denominator);
        write!(out, ", {part} also to {to}").expect("text");
    }
    for (what, ms) in [("all", rule.request_ms), ("head", rule.backend_ms)] {
        if let Some(ms) = ms {
            write!(out, ", {what} in {ms} ms").expect("text");
        }
    }
    out
}

fn share(rules: &Rules, words: &[&str]) -> String {
    let count: usize = words[0].parse().expect("a number");
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(ask(rules, &words[1..])).or_default() += 1;
    }
    shares.into_iter().map(|(outcome, count)| format!("{count} {outcome}")).collect()
}

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/agent/gate/testscripts");
    let path = folder.join(name).with_extension("txt");
    let text = std::fs::read_to_string(&path).expect("the script is readable");
    let mut script = Script::begin();
    let mut rendered = Vec::new();
    for block in text.trim_end().split("\n\n") {
        let kept: Vec<&str> = block.lines().filter(|line| !line.starts_with('=')).collect();
        let mut lines: Vec<String> = kept.iter().map(|line| (*line).to_owned()).collect();
        for line in kept.iter().filter(|line| !line.starts_with('#')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            lines.extend(script.line(word, rest).lines().map(|line| format!("= {line}")));
        }
        rendered.push(lines.join("\n"));
    }
    expect_test::expect_file![path].assert_eq(&(rendered.join("\n\n") + "\n"));
}

#[test]
fn the_certificate_is_of_whom_the_rule_is() {
    let mut script = Script::begin();
    script.object(
        "{kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: wherry, listeners: [{name: \
         tls, port: 443, protocol: HTTPS, hostname: a.com, tls: {certificateRefs: [{name: tls}]}}]}}",
    );
    for namespace in ["infra", "shop"] {
        let pair = Some(("certificate".to_owned(), "key".to_owned()));
        script.secrets.insert((namespace.to_owned(), "tls".to_owned()), pair);
    }
    let older: Ingress = serde_json::from_value(json!({
        "metadata": {"name": "i", "namespace": "shop"},
        "spec": {"tls": [{"hosts": ["a.com"], "secretName": "tls"}]},
    }))
    .expect("an Ingress");
    let (mut table, ports) = (GateTable::default(), (80, 443));
    let ingresses = std::iter::once(&older);
    ingress::add(&mut table, ingresses, &HashMap::new(), &script.secrets, ports);
    gateway::add(&mut table, &script.world, &script.secrets, ports);
    let held = table.ports.iter().flat_map(|port| &port.certificates);
    let secrets: Vec<&str> = held.map(|certificate| certificate.secret.as_str()).collect();
    assert_eq!(secrets, ["infra/tls", "shop/tls"]);
}

#[test]
fn what_stands_for_80_is_not_for_https() {
    let mut script = Script::begin();
    script.object(
        "{kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: wherry, listeners: [{name: \
         tls, port: 8080, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}, {name: plain, \
         port: 8443, protocol: HTTP}, {name: web, port: 80, protocol: HTTP}]}}",
    );
    let pair = Some(("certificate".to_owned(), "key".to_owned()));
    script.secrets.insert(("infra".to_owned(), "tls".to_owned()), pair);
    let mut table = GateTable::default();
    gateway::add(&mut table, &script.world, &script.secrets, (8080, 8443));
    let ports: Vec<(u16, bool)> = table.ports.iter().map(|port| (port.port, port.tls)).collect();
    assert_eq!(ports, [(8080, false)]);
    assert_eq!(table.sites.len(), 1);
}

#[test]
fn routes_are_attached_to_listeners() {
    check("listeners");
}

#[test]
fn requests_meet_the_most_exact_rule() {
    check("matches");
}

#[test]
fn filters_change_requests() {
    check("filters");
}

#[test]
fn backends_get_their_shares() {
    check("backends");
}

#[test]
fn grpc_methods_are_matched() {
    check("grpc");
}

#[tokio::test]
async fn a_secret_of_which_nobody_tells_does_not_keep_all_others_waiting() {
    let never = |_: Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
    };
    let client = kube::Client::new(tower::service_fn(never), "default");
    let name: Name = ("d".to_owned(), "tls".to_owned());
    let (inputs, mut heard) = tokio::sync::mpsc::channel(1);
    let stop = CancellationToken::new();
    let following = super::follow(client, name.clone(), inputs, Duration::from_millis(1), stop);
    tokio::select! {
        () = following => panic!("it goes on listening"),
        input = heard.recv() => match input {
            Some(Input::Gate(GateInput::Secret { name: said, pair: None })) => {
                assert_eq!(said, name);
            }
            other => panic!("{}", if other.is_some() { "something else" } else { "nothing" }),
        },
    }
}
