//! Statuses: objects in YAML, one a line, and the conditions that they get.

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use wherry_resources::custom::{self, Rows};

use super::super::testing::{at, text};
use super::*;

/// A kind as a definition would make it.
fn row(kind: Kind) -> &'static wherry_resources::Kind {
    let definition = json!({
        "metadata": {"name": format!("{}.{GROUP}", kind.plural())},
        "spec": {
            "group": GROUP,
            "scope": if kind == Kind::Class { "Cluster" } else { "Namespaced" },
            "versions": [{"name": kind.version(), "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}}}],
        },
        "status": {
            "acceptedNames": {"kind": kind.name(), "plural": kind.plural()},
            "conditions": [{"type": "Established", "status": "True"}],
        },
    });
    let mut rows = Rows::default();
    rows.update(&[definition], |crd, version| Some(custom::Definition::new(crd, version)))[0]
}

const CLASS_OBJECT: &str = "{kind: GatewayClass, metadata: {name: wherry}, spec: {controllerName: \
    wherry.dev/gateway}}";

/// The objects with a node, a Service `web` with port 80 in `d` and `far`, and the Secret `tls`.
fn snapshot(lines: &[&str]) -> Snapshot {
    let name = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    let mut snapshot = Snapshot {
        addresses: vec!["10.0.0.1".parse().expect("an address")],
        certificates: [name("d", "tls")].into(),
        services: [
            (name("d", "web"), Some(vec![80])),
            (name("far", "web"), Some(vec![80])),
            (name("d", "alias"), None),
        ]
        .into(),
        ..Snapshot::default()
    };
    for (index, line) in lines.iter().enumerate() {
        let mut object: Value = serde_yaml_ng::from_str(line).expect("YAML");
        let kind = object["kind"].as_str().and_then(Kind::named).expect("a kind");
        let meta = &mut object["metadata"];
        if kind != Kind::Class && meta["namespace"].is_null() {
            meta["namespace"] = json!("d");
        }
        meta["generation"] = json!(1);
        meta["uid"] = json!(format!("uid-{index}"));
        meta["resourceVersion"] = json!("1");
        meta["creationTimestamp"] = json!(at(i64::try_from(index).expect("a few")));
        let meta = serde_json::from_value(object["metadata"].clone()).expect("metadata");
        let held = hold(kind, meta, &object).body::<Held>().expect("it was held so");
        if let Some(parsed) = &held.parsed {
            snapshot.world.add(parsed);
        }
        snapshot.objects.push((row(kind), held));
    }
    snapshot
}

/// One line a condition that is not as everybody hopes, and what else a status says.
fn shown(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for write in plan(snapshot, at(100)) {
        let Action::Patch { target, body, .. } = &write.action else {
            out += &format!("{write}\n");
            continue;
        };
        let status = &body["status"];
        out += &format!("{}\n", target.key.name());
        out += &conditions("  ", status);
        for listener in status["listeners"].as_array().into_iter().flatten() {
            let (name, count) = (&listener["name"], &listener["attachedRoutes"]);
            let kinds = listener["supportedKinds"].as_array().expect("kinds").len();
            out += &format!("  listener {name} {count} routes, {kinds} kinds\n");
            out += &conditions("    ", listener);
        }
        for address in status["addresses"].as_array().into_iter().flatten() {
            out += &format!("  at {}\n", address["value"]);
        }
        for parent in status["parents"].as_array().into_iter().flatten() {
            let by = parent["controllerName"].as_str().expect("a name");
            out += &format!("  parent {} by {by}\n", parent["parentRef"]["name"]);
            out += &conditions("    ", parent);
        }
    }
    out.replace('"', "")
}

fn conditions(indent: &str, of: &Value) -> String {
    let mut out = String::new();
    for one in of["conditions"].as_array().into_iter().flatten() {
        let (kind, status, reason) = (&one["type"], &one["status"], &one["reason"]);
        let hoped = if kind == "Conflicted" { "False" } else { "True" };
        let plain = ["Accepted", "Programmed", "ResolvedRefs", "NoConflicts"];
        if status != hoped || !plain.contains(&reason.as_str().unwrap_or("")) {
            out += &format!("{indent}{kind} {status} {reason}: {}\n", one["message"]);
        }
    }
    out
}

fn check(lines: &[&str], expected: Expect) {
    let all: Vec<&str> = [CLASS_OBJECT].into_iter().chain(lines.iter().copied()).collect();
    expected.assert_eq(&shown(&snapshot(&all)));
}

const GATEWAY: &str = "{kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: wherry, \
    listeners: [{name: http, port: 80, protocol: HTTP}]}}";

#[test]
fn ports_that_no_node_can_have_are_said() {
    let node = |name: &str, refused: &str| -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name, "annotations": {PORTS_REFUSED: refused}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        Arc::new(serde_json::from_value(node).expect("a Node"))
    };
    let (a, b) = (node("a", r#"{"80":"taken","8080":"taken"}"#), node("b", r#"{"8080":"full"}"#));
    let refused = refused_by_all(&[a, b]);
    let why = "no node can have the port; node a: taken";
    assert_eq!(refused, BTreeMap::from([(8080, why.to_owned())]));
    assert!(refused_by_all(&[node("c", "nonsense")]).is_empty() && refused_by_all(&[]).is_empty());
    let both = GATEWAY.replace("HTTP}", "HTTP}, {name: more, port: 8080, protocol: HTTP}");
    let shown = |gateway: &str| {
        let refused = refused.clone();
        shown(&Snapshot { refused, ..snapshot(&[CLASS_OBJECT, gateway]) })
    };
    expect![[r#"
        wherry
        g
          listener http 0 routes, 2 kinds
          listener more 0 routes, 2 kinds
            Programmed False PortUnavailable: no node can have the port; node a: taken
          at 10.0.0.1
    "#]]
    .assert_eq(&shown(&both));
    expect![[r#"
        wherry
        g
          Programmed False PortUnavailable: no node can have the port; node a: taken
          listener http 0 routes, 2 kinds
            Programmed False PortUnavailable: no node can have the port; node a: taken
    "#]]
    .assert_eq(&shown(&GATEWAY.replace("80", "8080")));
}

#[test]
fn what_is_well_is_said_to_be() {
    let route = "{kind: HTTPRoute, metadata: {name: r}, spec: {parentRefs: [{name: g}], rules: \
        [{backendRefs: [{name: web, port: 80}]}]}}";
    check(
        &[GATEWAY, route],
        expect![[r#"
            wherry
            g
              listener http 1 routes, 2 kinds
              at 10.0.0.1
            r
              parent g by wherry.dev/gateway
        "#]],
    );
}

#[test]
fn a_status_that_is_right_is_left_alone() {
    let lines = [CLASS_OBJECT, GATEWAY];
    let first = snapshot(&lines);
    let mut second = snapshot(&lines);
    for (write, (_, held)) in plan(&first, at(100)).iter().zip(&mut second.objects) {
        let Action::Patch { body, .. } = &write.action else { panic!("{write}") };
        let before = Arc::get_mut(held).expect("it is held once");
        before.status = body["status"].clone();
    }
    assert_eq!(text(&plan(&second, at(200))), "");
    // Without its node only what follows from it changes, and the times with the statuses alone.
    second.addresses.clear();
    let writes = plan(&second, at(200));
    assert_eq!(writes.len(), 1);
    let Action::Patch { body, .. } = &writes[0].action else { panic!("{}", writes[0]) };
    let time = |index: usize| body["status"]["conditions"][index]["lastTransitionTime"].clone();
    assert_eq!((time(0), time(1)), (json!(at(100)), json!(at(200))));
}

#[test]
fn the_class_is_made() {
    let without = Snapshot { class_kind: Some(row(Kind::Class)), ..Snapshot::default() };
    let made = "create gatewayclasses.gateway.networking.k8s.io wherry\n";
    assert_eq!(text(&plan(&without, at(0))), made);
}

#[test]
fn gateways_and_listeners_that_cannot_be_served() {
    let gateway = |name: &str, more: &str, listeners: &str| {
        format!(
            "{{kind: Gateway, metadata: {{name: {name}}}, spec: {{gatewayClassName: wherry{more}, \
             listeners: [{listeners}]}}}}"
        )
    };
    let http = "{name: http, port: 80, protocol: HTTP}";
    let by_name = gateway("by-name", ", addresses: [{type: Hostname, value: a.com}]", http);
    let elsewhere = gateway("elsewhere", ", addresses: [{value: 192.0.2.9}]", http);
    let none = gateway("none", "", "{name: tcp, port: 5432, protocol: TCP}");
    let some = gateway(
        "some",
        "",
        "{name: kinds, port: 8080, protocol: HTTP, allowedRoutes: {kinds: [{kind: HTTPRoute}, \
         {kind: TCPRoute}]}}, {name: cert, port: 443, protocol: HTTPS, tls: {certificateRefs: \
         [{name: gone}]}}, {name: far, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: \
         tls}, {name: x, namespace: far}]}}, {name: one, port: 8001, protocol: HTTP}, {name: two, \
         port: 8001, protocol: HTTP}",
    );
    check(
        &[&by_name, &elsewhere, &none, &some],
        expect![[r#"
            wherry
            by-name
              Accepted False UnsupportedAddress: there are no addresses of type Hostname
              Programmed False AddressNotUsable: a.com is no address of a node
              listener http 0 routes, 2 kinds
                Programmed False Invalid: nodes do not listen for it
            elsewhere
              Programmed False AddressNotUsable: 192.0.2.9 is no address of a node
              listener http 0 routes, 2 kinds
                Programmed False Invalid: nodes do not listen for it
            none
              Accepted False ListenersNotValid: no listener can be served
              Programmed False Invalid: nodes listen for none of its listeners
              listener tcp 0 routes, 0 kinds
                Accepted False UnsupportedProtocol: nodes do not listen for TCP
                Programmed False Invalid: nodes do not listen for it
            some
              Accepted True ListenersNotValid: some listeners cannot be served
              listener kinds 0 routes, 1 kinds
                ResolvedRefs False InvalidRouteKinds: there are no routes of kind TCPRoute here
              listener cert 0 routes, 2 kinds
                Programmed False Invalid: nodes do not listen for it
                ResolvedRefs False InvalidCertificateRef: Secret d/gone holds no certificate with its key
              listener far 0 routes, 2 kinds
                ResolvedRefs False RefNotPermitted: no ReferenceGrant lets it use Secret far/x
              listener one 0 routes, 2 kinds
                Accepted False HostnameConflict: listener two has its port and hostname
                Programmed False Invalid: nodes do not listen for it
                Conflicted True HostnameConflict: listener two has its port and hostname
              listener two 0 routes, 2 kinds
                Accepted False HostnameConflict: listener one has its port and hostname
                Programmed False Invalid: nodes do not listen for it
                Conflicted True HostnameConflict: listener one has its port and hostname
              at 10.0.0.1
        "#]],
    );
}

#[test]
fn routes_that_are_not_attached_or_lead_nowhere() {
    let gateway = "{kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: wherry, listeners: \
        [{name: http, port: 80, protocol: HTTP, hostname: a.com, allowedRoutes: {kinds: [{kind: \
        HTTPRoute}]}}]}}";
    let route = |name: &str, more: &str, rule: &str| {
        format!(
            "{{kind: HTTPRoute, metadata: {{name: {name}}}, spec: {{{more}, rules: [{rule}]}}}}"
        )
    };
    let parent = "parentRefs: [{name: g}]";
    let web = "{backendRefs: [{name: web, port: 80}]}";
    let far = "{backendRefs: [{name: web, namespace: far, port: 80}]}";
    let section = route("section", "parentRefs: [{name: g, sectionName: x}]", web);
    let host = route("host", &format!("{parent}, hostnames: [b.com]"), web);
    let foreign = section
        .replace("name: section}", "name: foreign, namespace: e}")
        .replace("sectionName: x", "namespace: d");
    let grpc = route("grpc", parent, web).replace("HTTPRoute", "GRPCRoute");
    let gone = route("gone", parent, "{backendRefs: [{name: gone, port: 80}]}");
    let port = route("port", parent, "{backendRefs: [{name: web, port: 81}]}");
    let alias = route("alias", parent, "{backendRefs: [{name: alias, port: 80}]}");
    let kind = route("kind", parent, "{backendRefs: [{name: web, kind: Bucket, port: 80}]}");
    let not_granted = route("not-granted", parent, far);
    let broken = "{filters: [{type: CORS}], backendRefs: [{name: web, port: 80}]}";
    let partly = route("partly", parent, &format!("{broken}, {web}"));
    let wholly = route("wholly", parent, broken);
    let nobodys = route("nobodys", "parentRefs: [{name: nobody}]", web);
    check(
        &[
            gateway,
            &section,
            &host,
            &foreign,
            &grpc,
            &gone,
            &port,
            &alias,
            &kind,
            &not_granted,
            &partly,
            &wholly,
            &nobodys,
        ],
        expect![[r#"
            wherry
            g
              listener http 6 routes, 1 kinds
              at 10.0.0.1
            section
              parent g by wherry.dev/gateway
                Accepted False NoMatchingParent: Gateway d/g has no such listener
            host
              parent g by wherry.dev/gateway
                Accepted False NoMatchingListenerHostname: no listener of Gateway d/g is for one of the route's hosts
            foreign
              parent g by wherry.dev/gateway
                Accepted False NotAllowedByListeners: Gateway d/g takes no such routes from this namespace
                ResolvedRefs False BackendNotFound: Service e/web does not exist
            grpc
              parent g by wherry.dev/gateway
                Accepted False NotAllowedByListeners: Gateway d/g takes no such routes from this namespace
            gone
              parent g by wherry.dev/gateway
                ResolvedRefs False BackendNotFound: Service d/gone does not exist
            port
              parent g by wherry.dev/gateway
                ResolvedRefs False BackendNotFound: Service d/web has no port 81
            alias
              parent g by wherry.dev/gateway
                ResolvedRefs False BackendNotFound: Service d/alias is an ExternalName, which nobody is behind
            kind
              parent g by wherry.dev/gateway
                ResolvedRefs False InvalidKind: a backend is a Service, not a Bucket
            not-granted
              parent g by wherry.dev/gateway
                ResolvedRefs False RefNotPermitted: no ReferenceGrant lets it use Service far/web
            partly
              parent g by wherry.dev/gateway
                PartiallyInvalid True UnsupportedValue: Dropped Rule: there is no filter CORS
            wholly
              parent g by wherry.dev/gateway
                Accepted False UnsupportedValue: there is no filter CORS
        "#]],
    );
}

#[test]
fn entries_of_other_controllers_stay() {
    let route = "{kind: HTTPRoute, metadata: {name: r}, spec: {parentRefs: [{name: theirs}], rules: \
        [{backendRefs: [{name: web, port: 80}]}]}, status: {parents: [{parentRef: {name: g}, \
        controllerName: wherry.dev/gateway, conditions: []}, {parentRef: {name: theirs}, \
        controllerName: example.com/x, conditions: []}]}}";
    check(
        &[GATEWAY, route],
        expect![[r#"
            wherry
            g
              listener http 0 routes, 2 kinds
              at 10.0.0.1
            r
              parent theirs by example.com/x
        "#]],
    );
}
