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
                let ServiceRoute { key, cluster_ips, ports } = route;
                out += &format!("+ {}/{} {cluster_ips:?}\n", key.namespace, key.name);
                for port in ports {
                    let node_port = port.node_port.unwrap_or(0);
                    out += &format!("  {} {} {node_port}\n", port.name, port.port);
                    for end in port.endpoints {
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
    for (namespace, name) in [("default", "kubernetes"), ("default", "x"), ("shop", "web")] {
        let mut service = web();
        (service.namespace, service.name) = (namespace.to_owned(), name.to_owned());
        table.set_service(service);
    }
    let names = |namespace: &str| -> Vec<String> {
        table.services_for(namespace).into_iter().map(|service| service.name).collect()
    };
    assert_eq!(names("shop"), ["kubernetes", "web"]);
    assert_eq!(names("default"), ["kubernetes", "x"]);
    assert_eq!(names("empty"), ["kubernetes"]);
}
