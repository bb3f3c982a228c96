//! Names, addresses and turns as tables of text.

use super::*;

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
    ]));
    router
}

fn describe(place: &Place) -> &'static str {
    match place {
        Place::Local => "local",
        Place::Peer(_) => "peer",
    }
}

fn check(authority: &str, expected: &str) {
    let (host, port) = authority.rsplit_once(':').expect("host:port");
    let own: IpAddr = "10.0.0.200".parse().expect("an address");
    let table = router().table();
    let port = port.parse().expect("a port");
    let answer = match table.resolve(&here(), host, port, |ip| ip == own) {
        Ok(Destination::Route(route)) => {
            let endpoints: Vec<String> = route
                .endpoints
                .iter()
                .map(|it| format!("{} {}", it.address, describe(&it.place)))
                .collect();
            let ServiceKey { namespace, name } = &route.service;
            format!("{namespace}/{name}:{} -> {}", route.port, endpoints.join(", "))
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
fn turns_go_round_and_skip_what_was_tried() {
    let turns: Vec<_> = (0..4).map(|turn| pick(turn, 3, &[])).collect();
    assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0)]);
    assert_eq!(pick(0, 3, &[0]), Some(1));
    assert_eq!(pick(2, 3, &[2, 0]), Some(1));
    assert_eq!(pick(5, 3, &[0, 1, 2]), None);
    assert_eq!(pick(7, 0, &[]), None);
    assert!(pick(usize::MAX, 3, &[]).is_some());
}

#[test]
fn a_changed_service_keeps_its_turn_and_a_removed_one_goes() {
    let mut router = router();
    let next = |router: &Router| {
        router.table().node_port(30_080).map(|route| (route.next_turn(), route.endpoints.len()))
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
fn only_the_own_namespace_has_node_ports() {
    let ports: Vec<_> = router().table().node_ports().into_iter().collect();
    let expected = [(30_080, "cart"), (30_081, "cart"), (35_432, "db")];
    assert_eq!(ports, expected.map(|(port, name)| (port, name.to_owned())));
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
        Ok(Destination::Route(route)) => {
            assert_eq!((route.endpoints.len(), route.unreachable), (1, 1));
        }
        _ => panic!("not a Service"),
    }
}
