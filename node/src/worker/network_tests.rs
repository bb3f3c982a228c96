//! Names, addresses and turns as tables of text.

use super::*;
use crate::protocol::{self, NodeRoute, Nodes, ServiceRoute, Services};

fn here() -> Here {
    Here {
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    }
}

/// A Service; endpoints are `address@node` of its namespace, with `--` at the end without a
/// known worker.
fn route(namespace: &str, name: &str, ip: &str, ports: &[(u16, &str, &[&str])]) -> ServiceRoute {
    let endpoint = |text: &&str| {
        let (address, node) = text.split_once('@').expect("address@node");
        protocol::Endpoint {
            address: address.parse().expect("an address"),
            namespace: namespace.to_owned(),
            node: Some(node.trim_end_matches("--").to_owned()),
            peer: (!node.ends_with("--")).then(|| "192.0.2.1:7000".parse().expect("an address")),
            internal: true,
            external: node.starts_with("node-1"),
            outside: false,
            hostname: (name == "db").then(|| "db-0".to_owned()),
        }
    };
    ServiceRoute {
        key: ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() },
        cluster_ips: ip.parse().into_iter().collect(),
        ports: ports
            .iter()
            .map(|(port, port_name, endpoints)| protocol::RoutePort {
                name: (*port_name).to_owned(),
                port: *port,
                protocol: Protocol::Tcp,
                node_port: Some(30_000 + *port),
                endpoints: endpoints.iter().map(endpoint).collect(),
            })
            .collect(),
        ..ServiceRoute::default()
    }
}

fn router() -> Router {
    let mut router = Router::new(here(), Peers::default());
    router.apply(Services::Replace(vec![
        route(
            "shop",
            "cart",
            "172.20.0.10",
            &[(80, "http", &["10.0.0.5:8080@node-1", "10.0.32.6:8080@node-2"]), (81, "", &[])],
        ),
        route("shop", "db", "", &[(5432, "", &["10.0.0.9:15432@node-1"])]),
        route("bank", "api", "172.20.0.11", &[(80, "", &["10.0.0.7:80@node-1"])]),
        alias("cart-too", "cart.shop.svc.cluster.local"),
        alias("search", "search.example.com"),
        alias("round", "round.shop.svc.cluster.local"),
    ]));
    let workers =
        ["bank", "shop"].map(|it| (it.to_owned(), "192.0.2.9:7000".parse().expect("an address")));
    router.apply_nodes(Nodes::Replace(vec![NodeRoute {
        name: "node-9".to_owned(),
        pod_cidrs: vec!["10.9.0.0/24".to_owned()],
        workers: workers.into(),
    }]));
    router
}

/// An `ExternalName` of the namespace `shop`.
fn alias(name: &str, of: &str) -> ServiceRoute {
    ServiceRoute { external_name: Some(of.to_owned()), ..route("shop", name, "", &[]) }
}

fn describe(place: &Place) -> &'static str {
    match place {
        Place::Local => "local",
        Place::Peer(_) => "peer",
        Place::Outside => "outside",
    }
}

fn check(authority: &str, expected: &str) {
    let (host, port) = authority.rsplit_once(':').expect("host:port");
    let own: IpAddr = "10.0.0.200".parse().expect("an address");
    let table = router().table();
    let port = port.parse().expect("a port");
    let answer = match table.resolve(&here(), host, port, |ip| ip == own) {
        Ok(Destination::Route(route) | Destination::External(route)) => {
            let endpoints: Vec<String> = route
                .endpoints
                .iter()
                .map(|it| format!("{} {}", it.address, describe(&it.place)))
                .collect();
            let ServiceKey { namespace, name } = &route.service;
            format!("{namespace}/{name}:{} -> {}", route.port, endpoints.join(", "))
        }
        Ok(Destination::Stray(endpoints)) => {
            format!("pod {} behind {} workers", endpoints[0].address, endpoints.len())
        }
        Ok(Destination::Pod(pod)) => format!("pod {} {}", pod.address, describe(&pod.place)),
        Err(error) => error.to_string(),
    };
    assert_eq!(answer, expected, "{authority}");
}

#[test]
fn names_resolve_like_cluster_dns() {
    let cart = "shop/cart:80 -> 10.0.0.5:8080 local, 10.0.32.6:8080 peer";
    check("cart:80", cart);
    check("cart.shop:80", cart);
    check("cart.shop.svc:80", cart);
    check("cart.shop.svc.cluster.local:80", cart);
    check("CART.shop.svc.cluster.local.:80", cart);
    // Another namespace of the same node is another worker.
    check("api.bank:80", "bank/api:80 -> 10.0.0.7:80 peer");
    check("api:80", "there is no Service api in namespace shop");
    check("nothing.bank:80", "there is no Service nothing in namespace bank");
    check("nothing.nowhere.svc:80", "there is no Service nothing in namespace nowhere");
}

#[test]
fn ports_must_exist() {
    check("cart:8080", "Service shop/cart has no port 8080; it has 80 (http), 81");
    check("cart:81", "shop/cart:81 -> ");
    // A headless Service answers on its Pods' own port as well.
    check("db:5432", "shop/db:5432 -> 10.0.0.9:15432 local");
    check("db:15432", "shop/db:5432 -> 10.0.0.9:15432 local");
}

#[test]
fn addresses_are_those_of_services_and_pods() {
    check("172.20.0.11:80", "bank/api:80 -> 10.0.0.7:80 peer");
    check("[::ffff:172.20.0.11]:80", "bank/api:80 -> 10.0.0.7:80 peer");
    check("10.0.0.5:9000", "pod 10.0.0.5:9000 local");
    check("10.0.32.6:8080", "pod 10.0.32.6:8080 peer");
    // A Pod of another node behind no Service.
    check("10.9.0.7:80", "pod 10.9.0.7:80 behind 2 workers");
    // A Pod of this worker behind no Service.
    check("10.0.0.200:80", "pod 10.0.0.200:80 local");
}

#[test]
fn the_outside_is_refused() {
    let outside = |host: &str| {
        format!("{host} is outside of the cluster, and Pods may not reach the outside")
    };
    for host in ["example.com", "a.b.c.d", "10.9.9.9", "93.184.216.34", "kubernetes.default.x"] {
        check(&format!("{host}:80"), &outside(host));
    }
    let never = |host: &str, what: &str| {
        check(
            &format!("{host}:80"),
            &format!("{host} is {what}, which is never reachable from a Pod"),
        );
    };
    never("localhost", "the machine's own name");
    never("127.0.0.1", "a loopback address");
    never("[::1]", "a loopback address");
    never("[::ffff:127.0.0.1]", "a loopback address");
    never("169.254.169.254", "a link-local address");
    never("[fe80::1]", "a link-local address");
    never("0.0.0.0", "no address");
    never("224.0.0.1", "an address of many machines");
}

#[test]
fn names_of_pods_and_of_other_names() {
    check("db-0.db:15432", "pod 10.0.0.9:15432 local");
    check("db-0.db.shop.svc.cluster.local:99", "pod 10.0.0.9:99 local");
    let outside = |host: &str| {
        format!("{host} is outside of the cluster, and Pods may not reach the outside")
    };
    // What is of the cluster's domain is asked for nowhere else.
    let nobody = |host: &str| format!("there is no {host} in the cluster");
    check("db-1.db.shop.svc:80", &nobody("db-1.db.shop.svc"));
    check("db-1.db.shop.svc.cluster.local:80", &nobody("db-1.db.shop.svc.cluster.local"));
    check("cart.svc.cluster.local.:80", &nobody("cart.svc.cluster.local"));
    check("www.cluster.local:80", &nobody("www.cluster.local"));
    check("cart-too:80", "shop/cart:80 -> 10.0.0.5:8080 local, 10.0.32.6:8080 peer");
    check("search:443", &outside("search.example.com"));
    check("round:80", &outside("round"));
    // The Pods of a headless Service answer at all their ports.
    check("db:99", "shop/db:99 -> 10.0.0.9:99 local");
}

#[test]
fn names_by_an_address_are_that_address() {
    check("10-0-0-5.shop.pod:9000", "pod 10.0.0.5:9000 local");
    check("10-0-0-5.any.pod.cluster.local:9000", "pod 10.0.0.5:9000 local");
    check("172-20-0-11.any.pod.cluster.local.:80", "bank/api:80 -> 10.0.0.7:80 peer");
    let nobody = "there is no db-0.shop.pod.cluster.local in the cluster";
    check("db-0.shop.pod.cluster.local:80", nobody);
    let loopback = "127-0-0-1.shop.pod.cluster.local";
    let never = format!("{loopback} is a loopback address, which is never reachable from a Pod");
    check(&format!("{loopback}:80"), &never);
}

#[test]
fn a_headless_service_needs_no_ports() {
    let mut router = router();
    let loose = route("shop", "loose", "", &[(0, "", &["10.0.0.8:0@node-1"])]);
    let gone = route("shop", "gone", "", &[(0, "", &[])]);
    router.apply(Services::Upsert(vec![loose, gone]));
    let table = router.table();
    let resolved = |name: &str| match table.resolve(&here(), name, 99, |_| false) {
        Ok(destination) => destination.endpoints()[0].address.to_string(),
        Err(error) => error.to_string(),
    };
    assert_eq!(resolved("loose"), "10.0.0.8:99");
    assert_eq!(resolved("10-0-0-8.loose"), "10.0.0.8:99");
    assert_eq!(resolved("gone"), "Service shop/gone has no port 99; it has none");
    assert_eq!(table.lookup(&here(), "gone"), Ok(Vec::new()));
}

#[test]
fn callers_from_outside_have_endpoints_of_their_own() {
    let table = router().table();
    let cart = ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() };
    let route = table.service_port(&cart, "http").expect("it has the port");
    let of = |endpoints: &[Endpoint]| -> Vec<String> {
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    };
    assert_eq!(of(&route.endpoints), ["10.0.0.5:8080", "10.0.32.6:8080"]);
    assert_eq!(of(&route.external), ["10.0.0.5:8080"]);
    assert!(table.service_port(&cart, "80").is_some() && table.service_port(&cart, "82").is_none());
}

#[test]
fn the_gate_is_told_why_a_service_has_no_such_port() {
    let mut router = router();
    // An ExternalName may have ports, which nobody answers at.
    let named = Some("search.example.com".to_owned());
    let ports = route("shop", "ported", "", &[(80, "", &[])]);
    router.apply(Services::Upsert(vec![ServiceRoute { external_name: named, ..ports }]));
    let table = router.table();
    let why = |name: &str, port: &str| {
        let key = ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() };
        assert!(table.service_port(&key, port).is_none(), "{name}");
        table.why_no_port(&key, port)
    };
    assert_eq!(why("cart", "82"), "has no port 82");
    assert_eq!(why("gone", "80"), "does not exist");
    for name in ["search", "ported"] {
        let why = why(name, "80");
        assert!(why.starts_with("is of type ExternalName, "), "{why}");
    }
}

#[test]
fn a_changed_service_keeps_its_turn_and_a_removed_one_goes() {
    let mut router = router();
    let next = |router: &Router| {
        let table = router.table();
        let entrance = table.entrance(&(None, 30_080, Protocol::Tcp));
        entrance.map(|it| (it.route.next_turn(), it.route.endpoints.len()))
    };
    assert_eq!(next(&router), Some((0, 2)));
    let changed = route("shop", "cart", "172.20.0.10", &[(80, "", &["10.0.0.5:8080@node-1"])]);
    router.apply(Services::Upsert(vec![changed]));
    assert_eq!(next(&router), Some((1, 1)));
    let key = ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() };
    router.apply(Services::Remove(vec![key]));
    assert_eq!(next(&router), None);
}

#[test]
fn what_services_share_stays_until_the_last_one_goes() {
    let mut router = router();
    let key = |name: &str| ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() };
    let pod: &[(u16, &str, &[&str])] = &[(80, "", &["10.0.0.5:8080@node-1"])];
    let before = router.table();
    // The address is another Service's before it is said that `cart` has lost it.
    let other = route("shop", "other", "172.20.0.10", pod);
    router.apply(Services::Upsert(vec![other.clone()]));
    router.apply(Services::Remove(vec![key("cart")]));
    let knows = |table: &Table, ip: &str| table.is_virtual(ip.parse().expect("an address"));
    let table = router.table();
    assert!(knows(&table, "172.20.0.10") && knows(&table, "10.0.0.5"));
    assert!(table.service(&key("cart")).is_none() && !knows(&table, "10.0.32.6"));
    assert!(
        before.service(&key("cart")).is_some() && knows(&before, "10.0.32.6"),
        "it is as it was"
    );
    router.apply(Services::Replace(vec![other]));
    assert!(router.table().service(&key("db")).is_none());
    router.apply(Services::Replace(Vec::new()));
    let table = router.table();
    assert!(!knows(&table, "172.20.0.10") && !knows(&table, "10.0.0.5"));
    assert!(table.entrances().is_empty() && table.routes().next().is_none());
}

#[test]
fn only_the_own_namespace_has_node_ports() {
    let ports: Vec<_> = router().table().entrances().into_iter().collect();
    let expected = [(30_080, "cart"), (30_081, "cart"), (35_432, "db")];
    let expected = expected.map(|(port, name)| ((None, port, Protocol::Tcp), name.to_owned()));
    assert_eq!(ports, expected);
}

#[test]
fn balancers_are_told_how_many_pods_a_node_has() {
    let mut router = router();
    let cart = |endpoints| ServiceRoute {
        health: Some(protocol::HealthPort { port: 30_079, endpoints }),
        ..route("shop", "cart", "172.20.0.10", &[])
    };
    let at = (None, 30_079, Protocol::Tcp);
    for endpoints in [2, 0] {
        router.apply(Services::Upsert(vec![cart(endpoints)]));
        let table = router.table();
        let told = table.health(&at).map(|(service, count)| (service.name.as_str(), *count));
        assert_eq!(told, Some(("cart", endpoints)));
        assert_eq!(table.entrances().get(&at).map(String::as_str), Some("cart"));
    }
    router.apply(Services::Upsert(vec![route("shop", "cart", "172.20.0.10", &[])]));
    assert!(router.table().health(&at).is_none());
}

#[test]
fn a_balancer_is_reached_at_its_addresses_by_who_may() {
    let mut router = router();
    let mut balanced = route("shop", "cart", "172.20.0.10", &[(80, "", &["10.0.0.5:8080@node-1"])]);
    balanced.balancer_ips = vec!["192.0.2.80".parse().expect("an address")];
    balanced.source_ranges = vec!["198.51.100.0/24".to_owned()];
    router.apply(Services::Upsert(vec![balanced]));
    let table = router.table();
    let at = (Some("192.0.2.80".parse().expect("an address")), 80, Protocol::Tcp);
    let entrance = table.entrance(&at).expect("it is open");
    let admits = |ip: &str| entrance.route.admits(ip.parse().expect("an address"));
    assert!(entrance.balancer && admits("198.51.100.9") && !admits("203.0.113.9"));
}

#[test]
fn pods_reach_a_balancer_at_an_address_of_a_pool() {
    let mut router = router();
    let mut balanced = route("shop", "cart", "172.20.0.10", &[(80, "", &["10.0.0.5:8080@node-1"])]);
    balanced.pool_ips =
        ["192.0.2.80", "172.20.0.11"].map(|ip| ip.parse::<IpAddr>().expect("an address")).into();
    router.apply(Services::Upsert(vec![balanced]));
    let table = router.table();
    let leads = |ip: &str, port| match table.resolve(&here(), ip, port, |_| false) {
        Ok(Destination::Route(route)) => route.service.name.clone(),
        Ok(_) => "elsewhere".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(leads("192.0.2.80", 80), "cart");
    assert_eq!(leads("192.0.2.80", 81), "Service shop/cart has no port 81; it has 80");
    assert_eq!(leads("172.20.0.11", 80), "api", "an address of another Service stays that one's");
    let within = |ip: &str| table.is_virtual(ip.parse().expect("an address"));
    assert!(within("172.20.0.11") && !within("192.0.2.80"), "names outside lead to it");
}

#[test]
fn endpoints_without_a_known_worker_are_counted() {
    let mut router = router();
    router.apply(Services::Upsert(vec![route(
        "bank",
        "api",
        "172.20.0.11",
        &[(80, "", &["10.0.0.7:80@node-1--", "10.0.0.8:80@node-1"])],
    )]));
    let table = router.table();
    match table.resolve(&here(), "api.bank", 80, |_| false) {
        Ok(Destination::Route(route) | Destination::External(route)) => {
            assert_eq!((route.endpoints.len(), route.unreachable), (1, 1));
        }
        _ => panic!("not a Service"),
    }
}

#[test]
fn pods_of_headless_services_have_names_by_their_addresses() {
    let mut router = router();
    let loose = route("shop", "loose", "", &[(80, "", &["10.0.0.8:80@node-1"])]);
    router.apply(Services::Upsert(vec![loose]));
    let lookup = |name: &str| router.table().lookup(&here(), name);
    let found = vec!["10.0.0.8".parse().expect("an address")];
    assert_eq!(lookup("10-0-0-8.loose.shop.svc.cluster.local"), Ok(found.clone()));
    assert_eq!(lookup("10-0-0-8.loose"), Ok(found));
    assert!(lookup("10-0-0-7.loose.shop.svc.cluster.local").is_err());
    // One with a name of its own has no other, and Services with an address name no Pods.
    assert!(lookup("10-0-0-9.db.shop.svc.cluster.local").is_err());
    assert!(lookup("10-0-0-5.cart.shop.svc.cluster.local").is_err());
}
