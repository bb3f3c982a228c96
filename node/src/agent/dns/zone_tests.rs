//! Names asked and answered, as scripts.

use std::fmt::Write as _;

use expect_test::{Expect, expect};

use crate::protocol::{Endpoint, RoutePort};

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn endpoint(address: &str, hostname: Option<&str>, internal: bool) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
        namespace: "shop".to_owned(),
        node: Some("n1".to_owned()),
        peer: None,
        internal,
        external: internal,
        outside: false,
        hostname: hostname.map(str::to_owned),
    }
}

fn port(name: &str, port: u16, protocol: Protocol, endpoints: Vec<Endpoint>) -> RoutePort {
    RoutePort { name: name.to_owned(), port, protocol, node_port: None, endpoints }
}

fn service(name: &str, ips: &[&str], ports: Vec<RoutePort>) -> ServiceRoute {
    let cluster_ips = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
    ServiceRoute { key: key(name), cluster_ips, ports, ..ServiceRoute::default() }
}

fn alias(name: &str, target: &str) -> ServiceRoute {
    let external_name = Some(target.to_owned());
    ServiceRoute { key: key(name), external_name, ..ServiceRoute::default() }
}

fn world() -> Zone {
    let pods = || vec![endpoint("10.64.0.1:8080", None, true)];
    let members = || {
        vec![
            endpoint("10.64.0.7:9042", Some("db-0"), true),
            endpoint("10.64.1.8:9042", Some("db-1"), true),
            endpoint("10.64.1.9:9042", None, true),
            endpoint("10.64.1.10:9042", Some("db-2"), false),
        ]
    };
    let web = vec![
        port("http", 80, Protocol::Tcp, pods()),
        port("", 81, Protocol::Tcp, pods()),
        port("dns", 53, Protocol::Udp, pods()),
    ];
    let mut zone = Zone::new("cluster.local", "192.0.2.1".parse().expect("an address"));
    let routes = [
        service("web", &["10.96.0.10", "fd00::10"], web),
        service("db", &[], vec![port("cql", 9042, Protocol::Tcp, members())]),
        service("nobody", &[], vec![port("x", 1, Protocol::Tcp, Vec::new())]),
        alias("outside", "WWW.example.com."),
        alias("inside", "web.shop.svc.cluster.local"),
        alias("circle", "circle.shop.svc.cluster.local"),
        alias("lost", "gone.shop.svc.cluster.local"),
    ];
    for route in routes {
        zone.apply(&Changed::Upsert(route));
    }
    zone.set_blocks("n1", &["10.64.0.0/16".to_owned(), "broken".to_owned()]);
    zone.complete();
    zone
}

/// Asks each line of a script, `TYPE name`, and writes what was answered behind it.
fn check(zone: &Zone, script: &str, expected: Expect) {
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, name) = line.split_once(' ').expect("a type and a name");
        let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
        let wanted = Rtype::from_mnemonic(word.as_bytes()).expect("a type");
        let answer = zone.answer(&labels, wanted);
        let by = if answer.authoritative { "" } else { ", not by us" };
        writeln!(out, "{line}: {}{by}", answer.code).expect("text can be written");
        let parts = [("", &answer.records), ("+ ", &answer.extra), ("! ", &answer.authority)];
        for (mark, records) in parts {
            for record in records.iter() {
                let Record { name, ttl, data } = record;
                writeln!(out, "  {mark}{name} {ttl} {data:?}").expect("text can be written");
            }
        }
    }
    expected.assert_eq(&out);
}

#[test]
fn names_have_the_records_of_the_specification() {
    check(
        &world(),
        "
        A web.shop.svc.cluster.local
        AAAA web.shop.svc.cluster.local
        SRV _http._tcp.web.shop.svc.cluster.local
        SRV _dns._udp.web.shop.svc.cluster.local
        A db.shop.svc.cluster.local
        A db-1.db.shop.svc.cluster.local
        A 10-64-1-9.db.shop.svc.cluster.local
        A 10-64-1-9.shop.pod.cluster.local
        AAAA fd00--7.shop.pod.cluster.local
        SRV _cql._tcp.db.shop.svc.cluster.local
        A outside.shop.svc.cluster.local
        AAAA inside.shop.svc.cluster.local
        CNAME inside.shop.svc.cluster.local
        TXT dns-version.cluster.local
        NS cluster.local
        SOA cluster.local
        A ns.dns.cluster.local
        ANY web.shop.svc.cluster.local
        ",
        expect![[r#"
            A web.shop.svc.cluster.local: NOERROR
              web.shop.svc.cluster.local 5 A(10.96.0.10)
            AAAA web.shop.svc.cluster.local: NOERROR
              web.shop.svc.cluster.local 5 Aaaa(fd00::10)
            SRV _http._tcp.web.shop.svc.cluster.local: NOERROR
              _http._tcp.web.shop.svc.cluster.local 5 Srv { weight: 100, port: 80, target: "web.shop.svc.cluster.local" }
              + web.shop.svc.cluster.local 5 A(10.96.0.10)
              + web.shop.svc.cluster.local 5 Aaaa(fd00::10)
            SRV _dns._udp.web.shop.svc.cluster.local: NOERROR
              _dns._udp.web.shop.svc.cluster.local 5 Srv { weight: 100, port: 53, target: "web.shop.svc.cluster.local" }
              + web.shop.svc.cluster.local 5 A(10.96.0.10)
              + web.shop.svc.cluster.local 5 Aaaa(fd00::10)
            A db.shop.svc.cluster.local: NOERROR
              db.shop.svc.cluster.local 5 A(10.64.0.7)
              db.shop.svc.cluster.local 5 A(10.64.1.8)
              db.shop.svc.cluster.local 5 A(10.64.1.9)
            A db-1.db.shop.svc.cluster.local: NOERROR
              db-1.db.shop.svc.cluster.local 5 A(10.64.1.8)
            A 10-64-1-9.db.shop.svc.cluster.local: NOERROR
              10-64-1-9.db.shop.svc.cluster.local 5 A(10.64.1.9)
            A 10-64-1-9.shop.pod.cluster.local: NOERROR
              10-64-1-9.shop.pod.cluster.local 5 A(10.64.1.9)
            AAAA fd00--7.shop.pod.cluster.local: NOERROR
              fd00--7.shop.pod.cluster.local 5 Aaaa(fd00::7)
            SRV _cql._tcp.db.shop.svc.cluster.local: NOERROR
              _cql._tcp.db.shop.svc.cluster.local 5 Srv { weight: 33, port: 9042, target: "10-64-1-9.db.shop.svc.cluster.local" }
              _cql._tcp.db.shop.svc.cluster.local 5 Srv { weight: 33, port: 9042, target: "db-0.db.shop.svc.cluster.local" }
              _cql._tcp.db.shop.svc.cluster.local 5 Srv { weight: 33, port: 9042, target: "db-1.db.shop.svc.cluster.local" }
              + 10-64-1-9.db.shop.svc.cluster.local 5 A(10.64.1.9)
              + db-0.db.shop.svc.cluster.local 5 A(10.64.0.7)
              + db-1.db.shop.svc.cluster.local 5 A(10.64.1.8)
            A outside.shop.svc.cluster.local: NOERROR
              outside.shop.svc.cluster.local 5 Cname("www.example.com")
            AAAA inside.shop.svc.cluster.local: NOERROR
              inside.shop.svc.cluster.local 5 Cname("web.shop.svc.cluster.local")
              web.shop.svc.cluster.local 5 Aaaa(fd00::10)
            CNAME inside.shop.svc.cluster.local: NOERROR
              inside.shop.svc.cluster.local 5 Cname("web.shop.svc.cluster.local")
            TXT dns-version.cluster.local: NOERROR
              dns-version.cluster.local 5 Txt("1.1.0")
            NS cluster.local: NOERROR
              cluster.local 5 Ns("ns.dns.cluster.local")
              + ns.dns.cluster.local 5 A(192.0.2.1)
            SOA cluster.local: NOERROR
              cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A ns.dns.cluster.local: NOERROR
              ns.dns.cluster.local 5 A(192.0.2.1)
            ANY web.shop.svc.cluster.local: NOERROR
              web.shop.svc.cluster.local 5 Hinfo("RFC8482")
        "#]],
    );
}

#[test]
fn what_is_not_there_is_told_apart() {
    check(
        &world(),
        "
        SRV web.shop.svc.cluster.local
        A _http._tcp.web.shop.svc.cluster.local
        A _tcp.web.shop.svc.cluster.local
        A nobody.shop.svc.cluster.local
        SRV _x._tcp.nobody.shop.svc.cluster.local
        AAAA 10-64-1-9.shop.pod.cluster.local
        A shop.pod.cluster.local
        A db-0.shop.pod.cluster.local
        A 10-64-1-900.shop.pod.cluster.local
        A shop.svc.cluster.local
        A svc.cluster.local
        A gone.shop.svc.cluster.local
        A none.svc.cluster.local
        A _http._udp.web.shop.svc.cluster.local
        A db-2.db.shop.svc.cluster.local
        A x.inside.shop.svc.cluster.local
        TXT inside.shop.svc.cluster.local
        A lost.shop.svc.cluster.local
        A circle.shop.svc.cluster.local
        A example.com
        A notcluster.local
        AXFR cluster.local
        ",
        expect![[r#"
            SRV web.shop.svc.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A _http._tcp.web.shop.svc.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A _tcp.web.shop.svc.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A nobody.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            SRV _x._tcp.nobody.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            AAAA 10-64-1-9.shop.pod.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A shop.pod.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A db-0.shop.pod.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A 10-64-1-900.shop.pod.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A shop.svc.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A svc.cluster.local: NOERROR
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A gone.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A none.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A _http._udp.web.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A db-2.db.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A x.inside.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            TXT inside.shop.svc.cluster.local: NOERROR
              inside.shop.svc.cluster.local 5 Cname("web.shop.svc.cluster.local")
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A lost.shop.svc.cluster.local: NXDOMAIN
              lost.shop.svc.cluster.local 5 Cname("gone.shop.svc.cluster.local")
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 8 }
            A circle.shop.svc.cluster.local: SERVFAIL
            A example.com: REFUSED, not by us
            A notcluster.local: REFUSED, not by us
            AXFR cluster.local: REFUSED, not by us
        "#]],
    );
}

#[test]
fn addresses_have_the_names_of_services_and_pods() {
    check(
        &world(),
        "
        PTR 10.0.96.10.in-addr.arpa
        PTR 0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa
        PTR 7.0.64.10.in-addr.arpa
        PTR 9.1.64.10.in-addr.arpa
        A 7.0.64.10.in-addr.arpa
        PTR 1.0.64.10.in-addr.arpa
        PTR 1.2.0.192.in-addr.arpa
        PTR 64.10.in-addr.arpa
        PTR +7.0.64.10.in-addr.arpa
        ",
        expect![[r#"
            PTR 10.0.96.10.in-addr.arpa: NOERROR
              10.0.96.10.in-addr.arpa 5 Ptr("web.shop.svc.cluster.local")
            PTR 0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa: NOERROR
              0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa 5 Ptr("web.shop.svc.cluster.local")
            PTR 7.0.64.10.in-addr.arpa: NOERROR
              7.0.64.10.in-addr.arpa 5 Ptr("db-0.db.shop.svc.cluster.local")
            PTR 9.1.64.10.in-addr.arpa: NOERROR
              9.1.64.10.in-addr.arpa 5 Ptr("10-64-1-9.db.shop.svc.cluster.local")
            A 7.0.64.10.in-addr.arpa: NOERROR
              ! in-addr.arpa 5 Soa { domain: "cluster.local", serial: 8 }
            PTR 1.0.64.10.in-addr.arpa: NXDOMAIN
              ! in-addr.arpa 5 Soa { domain: "cluster.local", serial: 8 }
            PTR 1.2.0.192.in-addr.arpa: REFUSED, not by us
            PTR 64.10.in-addr.arpa: REFUSED, not by us
            PTR +7.0.64.10.in-addr.arpa: REFUSED, not by us
        "#]],
    );
}

#[test]
fn names_go_with_their_services_and_half_a_list_is_no_answer() {
    let mut zone = world();
    zone.apply(&Changed::Upsert(service("web", &["10.96.0.11"], Vec::new())));
    zone.apply(&Changed::Remove(key("db")));
    zone.set_blocks("n1", &[]);
    check(
        &zone,
        "
        A web.shop.svc.cluster.local
        A db.shop.svc.cluster.local
        PTR 10.0.96.10.in-addr.arpa
        PTR 11.0.96.10.in-addr.arpa
        PTR 7.0.64.10.in-addr.arpa
        ",
        expect![[r#"
            A web.shop.svc.cluster.local: NOERROR
              web.shop.svc.cluster.local 5 A(10.96.0.11)
            A db.shop.svc.cluster.local: NXDOMAIN
              ! cluster.local 5 Soa { domain: "cluster.local", serial: 10 }
            PTR 10.0.96.10.in-addr.arpa: REFUSED, not by us
            PTR 11.0.96.10.in-addr.arpa: NOERROR
              11.0.96.10.in-addr.arpa 5 Ptr("web.shop.svc.cluster.local")
            PTR 7.0.64.10.in-addr.arpa: REFUSED, not by us
        "#]],
    );
    let young = Zone::new("cluster.local", "192.0.2.1".parse().expect("an address"));
    check(
        &young,
        "A web.shop.svc.cluster.local\nA example.com",
        expect![[r#"
        A web.shop.svc.cluster.local: SERVFAIL, not by us
        A example.com: REFUSED, not by us
    "#]],
    );
}
