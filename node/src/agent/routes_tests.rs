//! Objects in, routes out.

use expect_test::{Expect, expect};

use super::*;

fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("an object")
}

fn web() -> ServiceInfo {
    service(read(
        r#"{"metadata":{"name":"web","namespace":"shop"},
            "spec":{"type":"NodePort","clusterIPs":["172.20.0.9"],"ports":[
                {"name":"http","port":80,"nodePort":30080},
                {"name":"sctp","port":81,"protocol":"SCTP"}]}}"#,
    ))
    .expect("a Service")
}

fn web_slice(ready: &str) -> SliceInfo {
    slice(read(&format!(
        r#"{{"metadata":{{"name":"web-1","namespace":"shop",
                          "labels":{{"kubernetes.io/service-name":"web"}}}},
             "addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],
             "endpoints":[{{"addresses":["10.0.0.9"],"nodeName":"b"}},
                          {{"addresses":["10.0.0.2"],"nodeName":"a",
                            "conditions":{{"ready":{ready}}}}}]}}"#
    )))
    .expect("a slice")
}

fn node_b(workers: &str) -> NodeInfo {
    node(read(&format!(
        r#"{{"metadata":{{"name":"b","annotations":{{"wherry.dev/workers":{workers:?}}}}},
             "spec":{{"podCIDR":"10.0.0.0/19"}},
             "status":{{"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    )))
    .expect("a Node")
}

fn check(changes: impl IntoIterator<Item = Changed>, expected: Expect) {
    let mut out = String::new();
    for change in changes {
        match change {
            Changed::Remove(key) => out += &format!("- {}/{}\n", key.namespace, key.name),
            Changed::Upsert(route) => {
                let ServiceRoute { key, cluster_ips, ports, .. } = route;
                out += &format!("+ {}/{} {cluster_ips:?}\n", key.namespace, key.name);
                for port in ports {
                    let node_port = port.node_port.unwrap_or(0);
                    out += &format!("  {} {} {node_port}\n", port.name, port.port);
                    for end in port.endpoints.iter().filter(|end| end.internal) {
                        out += &format!("    {} {:?} {:?}\n", end.address, end.node, end.peer);
                    }
                }
            }
        }
    }
    expected.assert_eq(&out);
}

#[test]
fn endpoints_come_and_go() {
    let mut table = Table::default();
    check(table.set_slice(web_slice("true")), expect![[r#""#]]);
    check(
        table.set_service(web()),
        expect![[r#"
        + shop/web [172.20.0.9]
          http 80 30080
            10.0.0.2:8080 Some("a") None
            10.0.0.9:8080 Some("b") None
    "#]],
    );
    check(table.set_service(web()), expect![[r#""#]]);
    check(
        table.set_node(node_b(r#"{"shop":"192.168.1.2:4000"}"#)),
        expect![[r#"
            + shop/web [172.20.0.9]
              http 80 30080
                10.0.0.2:8080 Some("a") None
                10.0.0.9:8080 Some("b") Some(192.168.1.2:4000)
        "#]],
    );
    check(
        table.set_slice(web_slice("false")),
        expect![[r#"
        + shop/web [172.20.0.9]
          http 80 30080
            10.0.0.9:8080 Some("b") Some(192.168.1.2:4000)
    "#]],
    );
    check(
        table.remove_slice("shop", "web-1"),
        expect![[r#"
        + shop/web [172.20.0.9]
          http 80 30080
    "#]],
    );
    check(
        table.remove_service("shop", "web"),
        expect![[r#"
        - shop/web
    "#]],
    );
}

#[test]
fn a_bad_annotation_is_no_address() {
    let node = node_b("not json");
    assert!(node.workers.is_empty());
    assert!(node.ready);
    assert_eq!(node.pod_cidrs, ["10.0.0.0/19"]);
}

#[test]
fn node_ports_are_found_by_namespace() {
    let mut table = Table::default();
    table.set_service(web());
    assert!(table.has_node_port("shop"));
    assert!(!table.has_node_port("sho"));
    assert!(!table.has_node_port("shops"));
}

#[test]
fn pods_see_their_namespace_and_the_api() {
    let mut table = Table::default();
    for (namespace, name) in
        [("default", "kubernetes"), ("default", "x"), ("shop", "web"), ("alone", "web")]
    {
        let mut service = web();
        (service.namespace, service.name) = (namespace.to_owned(), name.to_owned());
        table.set_service(service);
    }
    let names = |namespace: &str| -> Vec<String> {
        let services = table.services_for(namespace, namespace != "alone");
        services.into_iter().map(|service| service.name).collect()
    };
    assert_eq!(names("shop"), ["kubernetes", "web"]);
    assert_eq!(names("default"), ["kubernetes", "x"]);
    assert_eq!(names("empty"), ["kubernetes"]);
    assert_eq!(names("alone"), ["kubernetes"]);
}

#[test]
fn pods_among_too_many_services_see_the_api_alone() {
    let mut table = Table::default();
    let mut put = |namespace: &str, name: String| {
        let service = ServiceInfo { namespace: namespace.to_owned(), name, ..web() };
        table.set_service(service);
    };
    put("default", "kubernetes".to_owned());
    (0..LINKS_MAX).for_each(|number| put("shop", format!("web-{number}")));
    (0..LINKS_MAX).for_each(|number| put("default", format!("web-{number}")));
    assert_eq!(table.services_for("shop", true).len(), 1 + LINKS_MAX);
    let alone = table.services_for("default", true);
    assert_eq!(alone.len(), 1);
    assert_eq!(alone[0].name, "kubernetes");
}

/// Which of these endpoints (`address node [zone] [flags]`) callers on the node `a` of the zone `z1`
/// are sent to: from within and from outside.
#[track_caller]
fn check_chosen(spec: &str, endpoints: &[&str], internal: &[&str], external: &[&str]) {
    let service = service(read(&format!(
        r#"{{"metadata":{{"name":"web","namespace":"shop"}},
             "spec":{{"clusterIPs":["172.20.0.9"],"ports":[{{"port":80}}],{spec}}}}}"#
    )))
    .expect("a Service");
    let endpoint = |text: &&str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        EndpointInfo {
            address: words[0].parse().expect("an address"),
            node: (words[1] != "-").then(|| words[1].to_owned()),
            zone: None,
            hostname: None,
            ready: !words.contains(&"draining") && !words.contains(&"down"),
            draining: words.contains(&"draining"),
        }
    };
    let slice = SliceInfo {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        service: "web".to_owned(),
        ports: vec![(String::new(), Protocol::Tcp, 80)],
        endpoints: endpoints.iter().map(endpoint).collect(),
        hold: endpoints.iter().any(|text| text.ends_with(" held")),
    };
    let node = |name: &str, zone: &str, block: &str| {
        let node = NodeInfo {
            name: name.to_owned(),
            workers: BTreeMap::new(),
            pod_cidrs: vec![block.to_owned()],
            ready: true,
            zone: Some(zone.to_owned()),
            addresses: Vec::new(),
        };
        (name.to_owned(), node)
    };
    let nodes = HashMap::from([
        node("a", "z1", "10.0.0.0/24"),
        node("b", "z1", "10.0.1.0/24"),
        node("c", "z2", "10.0.2.0/24"),
    ]);
    let route = route(&service, std::iter::once(&slice), &nodes, "a");
    let shown = |of: fn(&Endpoint) -> bool| -> Vec<String> {
        let fit = route.ports[0].endpoints.iter().filter(|end| of(end));
        fit.map(|end| end.address.ip().to_string()).collect()
    };
    assert_eq!(shown(|end| end.internal), internal, "internal");
    assert_eq!(shown(|end| end.external), external, "external");
}

const THREE: [&str; 3] = ["10.0.0.1 a", "10.0.1.1 b", "10.0.2.1 c"];

#[test]
fn callers_are_sent_where_the_service_wants_them() {
    let all = ["10.0.0.1", "10.0.1.1", "10.0.2.1"];
    check_chosen(r#""type":"ClusterIP""#, &THREE, &all, &all);
    let local = r#""internalTrafficPolicy":"Local","externalTrafficPolicy":"Cluster""#;
    check_chosen(local, &THREE, &all[..1], &all);
    check_chosen(local, &THREE[1..], &[], &all[1..]);
    check_chosen(r#""externalTrafficPolicy":"Local""#, &THREE, &all, &all[..1]);
    let zone = r#""trafficDistribution":"PreferSameZone""#;
    check_chosen(zone, &THREE, &all[..2], &all[..2]);
    check_chosen(zone, &THREE[2..], &all[2..], &all[2..]);
    let node = r#""trafficDistribution":"PreferSameNode""#;
    check_chosen(node, &THREE, &all[..1], &all[..1]);
    check_chosen(node, &THREE[1..], &all[1..2], &all[1..2]);
}

#[test]
fn pods_that_end_answer_while_nobody_else_does() {
    let plain = r#""type":"ClusterIP""#;
    check_chosen(plain, &["10.0.0.1 a draining", "10.0.1.1 b"], &["10.0.1.1"], &["10.0.1.1"]);
    let ends = ["10.0.0.1 a draining", "10.0.1.1 b down"];
    check_chosen(plain, &ends, &["10.0.0.1"], &["10.0.0.1"]);
    let local = r#""externalTrafficPolicy":"Local""#;
    check_chosen(local, &["10.0.0.1 a draining", "10.0.1.1 b"], &["10.0.1.1"], &["10.0.0.1"]);
    // Requests that may wait do so for who comes.
    check_chosen(plain, &["10.0.0.1 a draining held"], &[], &[]);
    // Written by hand, without a node: a Pod's address is on the node that it is of.
    check_chosen(local, &["10.0.0.9 -"], &["10.0.0.9"], &["10.0.0.9"]);
}

#[test]
fn a_service_says_how_it_wants_to_be_reached() {
    let balanced = service(read(
        r#"{"metadata":{"name":"web","namespace":"shop"},
            "spec":{"type":"LoadBalancer","clusterIPs":["172.20.0.9"],"sessionAffinity":"ClientIP",
                    "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}},
                    "loadBalancerSourceRanges":["198.51.100.0/24"],"ports":[{"port":80}]},
            "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"192.0.2.2"},
                                                 {"ip":"203.0.113.1"}]}}}"#,
    ))
    .expect("a Service");
    assert_eq!(balanced.affinity_seconds, Some(60));
    let mut open = balanced.clone();
    let mut table = Table::new("a");
    table.set_service(balanced);
    // Whose an address is may be heard of later.
    for (name, ip) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
        let node = format!(
            r#"{{"metadata":{{"name":"{name}"}},
                 "status":{{"addresses":[{{"type":"InternalIP","address":"{ip}"}}]}}}}"#
        );
        table.set_node(node_of(&node));
    }
    // Its own, and that of no node; another node's is that node's business.
    let route = table.routes().pop().expect("a route");
    let ips: Vec<String> = route.balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["192.0.2.1", "203.0.113.1"]);
    assert!(route.pool_ips.is_empty(), "not open to everybody");
    open.source_ranges.clear();
    table.set_service(open);
    let route = table.routes().pop().expect("a route");
    assert_eq!(route.pool_ips, ["203.0.113.1".parse::<IpAddr>().expect("an address")]);
    assert_eq!(table.machines().len(), 2);
    let named = r#"{"metadata":{"name":"out","namespace":"shop"},
                    "spec":{"type":"ExternalName","externalName":"api.example.com"}}"#;
    let named = service(read(named)).expect("a Service");
    assert_eq!(named.external_name.as_deref(), Some("api.example.com"));
}

fn node_of(text: &str) -> NodeInfo {
    node(read(text)).expect("a Node")
}

#[test]
fn a_node_tells_balancers_how_many_ready_pods_it_has() {
    let local = r#"{"metadata":{"name":"web","namespace":"shop"},
                    "spec":{"type":"LoadBalancer","clusterIPs":["172.20.0.9"],
                            "externalTrafficPolicy":"Local","healthCheckNodePort":30079,
                            "allocateLoadBalancerNodePorts":false,
                            "ports":[{"name":"http","port":80}]}}"#;
    let mut table = Table::new("a");
    table.set_service(service(read(local)).expect("a Service"));
    assert!(table.has_node_port("shop"));
    for (ready, endpoints) in [("true", 1), ("false", 0)] {
        table.set_slice(web_slice(ready));
        let health = table.routes().pop().and_then(|route| route.health);
        assert_eq!(health, Some(HealthPort { port: 30_079, endpoints }));
    }
}

#[test]
fn names_of_headless_services_stand_for_every_ready_pod() {
    let headless = |ports: &str| {
        service(read(&format!(
            r#"{{"metadata":{{"name":"db","namespace":"shop"}},
                 "spec":{{"clusterIP":"None","clusterIPs":["None"],"ports":{ports},
                          "internalTrafficPolicy":"Local",
                          "trafficDistribution":"PreferSameZone"}}}}"#
        )))
        .expect("a Service")
    };
    let slice = |ports: &str| {
        slice(read(&format!(
            r#"{{"metadata":{{"name":"db-1","namespace":"shop",
                              "labels":{{"kubernetes.io/service-name":"db"}}}},
                 "addressType":"IPv4","ports":{ports},
                 "endpoints":[{{"addresses":["10.0.0.1"],"nodeName":"a"}},
                              {{"addresses":["10.0.2.1"],"nodeName":"c"}},
                              {{"addresses":["10.0.2.2"],"nodeName":"c",
                                "conditions":{{"ready":false,"serving":true,
                                               "terminating":true}}}}]}}"#
        )))
        .expect("a slice")
    };
    let mut table = Table::new("a");
    for (name, zone) in [("a", "z1"), ("c", "z2")] {
        let labels = format!(r#"{{"topology.kubernetes.io/zone":"{zone}"}}"#);
        table
            .set_node(node_of(&format!(r#"{{"metadata":{{"name":"{name}","labels":{labels}}}}}"#)));
    }
    table.set_slice(slice("[]"));
    check(
        table.set_service(headless("[]")),
        expect![[r#"
            + shop/db []
               0 0
                10.0.0.1:0 Some("a") None
                10.0.2.1:0 Some("c") None
        "#]],
    );
    table.set_slice(slice(r#"[{"name":"sql","port":5432,"protocol":"TCP"}]"#));
    check(
        table.set_service(headless(r#"[{"name":"sql","port":5432}]"#)),
        expect![[r#"
            + shop/db []
              sql 5432 0
                10.0.0.1:5432 Some("a") None
                10.0.2.1:5432 Some("c") None
        "#]],
    );
    // One that ends answers who has its address, but has no name any more.
    let mut last = slice(r#"[{"name":"sql","port":5432,"protocol":"TCP"}]"#);
    last.endpoints.drain(..2);
    check(
        table.set_slice(last),
        expect![[r#"
            + shop/db []
              sql 5432 0
        "#]],
    );
}
