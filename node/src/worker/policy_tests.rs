//! Policies as text, and the table of pairs that follows from them.

use expect_test::{Expect, expect};

use super::*;

/// `namespace/name key=value …`: a Pod with the port `web` 80.
fn subject(text: &str) -> Arc<Subject> {
    let mut words = text.split_whitespace();
    let (namespace, name) = words.next().and_then(|it| it.split_once('/')).expect("a name");
    let labels = words.filter_map(|word| word.split_once('='));
    let labels: BTreeMap<&str, &str> = labels.collect();
    let last = name.bytes().map(u32::from).sum::<u32>() % 250 + 1;
    Arc::new(Subject {
        uid: name.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ip: format!("10.0.{}.{last}", namespace.len()).parse().expect("an address"),
        labels: json!(labels),
        ports: vec![Port { name: Some("web".to_owned()), port: 80, protocol: Protocol::Tcp }],
    })
}

fn table(policies: &[Value]) -> Table {
    let policies = policies.iter().map(|policy| serde_json::from_value(policy.clone()));
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Table::new(protocol::Policies {
        policies: policies.collect::<Result<_, _>>().expect("policies"),
        namespaces: BTreeMap::from([
            ("shop".to_owned(), labels("team", "shop")),
            ("bank".to_owned(), labels("team", "bank")),
        ]),
        machines: vec!["192.0.2.1".parse().expect("an address")],
    })
}

fn policy(name: &str, annotations: Value, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations},
           "spec": spec})
}

fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allowed => "yes".to_owned(),
        Verdict::Noted(_, why) => format!("noted: {why}"),
        Verdict::Denied(_, why) => format!("no: {why}"),
    }
}

/// Every caller against every Pod, at TCP 80 and 81.
fn check_pairs(table: &Table, callers: &[&str], pods: &[&str], expected: Expect) {
    let mut out = String::new();
    for caller in callers {
        let from = match caller.parse() {
            Ok(ip) => Caller::outside(ip),
            Err(_) => Caller::pod(subject(caller)),
        };
        for pod in pods {
            let pod = subject(pod);
            let caller = caller.split(' ').next().expect("split gives one");
            for port in [80, 81] {
                let verdict = table.judge(&from, &pod, port, Protocol::Tcp);
                out += &format!("{caller} > {}:{port} {}\n", pod.name, word(&verdict));
            }
        }
    }
    expected.assert_eq(&out);
}

const CALLERS: [&str; 4] = ["shop/web app=web", "shop/job", "bank/api app=web", "198.51.100.7"];

#[test]
fn without_policies_all_within_the_cluster_is_open() {
    let table = table(&[]);
    check_pairs(
        &table,
        &CALLERS[2..],
        &["shop/db app=db"],
        expect![[r#"
            bank/api > db:80 yes
            bank/api > db:81 yes
            198.51.100.7 > db:80 yes
            198.51.100.7 > db:81 yes
        "#]],
    );
}

#[test]
fn who_is_let_in_by_labels_ports_and_addresses() {
    let table = table(&[
        policy("deny", json!({}), json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        policy(
            "db",
            json!({}),
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
                   "ingress": [
                     {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                      "ports": [{"port": "web"}]},
                     {"from": [{"namespaceSelector": {"matchLabels": {"team": "bank"}}}],
                      "ports": [{"port": 81, "endPort": 90}]},
                     {"from": [{"ipBlock": {"cidr": "198.51.100.0/24",
                                            "except": ["198.51.100.128/25"]}}]}]}),
        ),
    ]);
    check_pairs(
        &table,
        &CALLERS,
        &["shop/db app=db", "shop/web app=web"],
        expect![[r#"
            shop/web > db:80 yes
            shop/web > db:81 no: Pod shop/db does not let Pod shop/web in at port 81: NetworkPolicy shop/deny, shop/db
            shop/web > web:80 yes
            shop/web > web:81 yes
            shop/job > db:80 no: Pod shop/db does not let Pod shop/job in at port 80: NetworkPolicy shop/deny, shop/db
            shop/job > db:81 no: Pod shop/db does not let Pod shop/job in at port 81: NetworkPolicy shop/deny, shop/db
            shop/job > web:80 no: Pod shop/web does not let Pod shop/job in at port 80: NetworkPolicy shop/deny
            shop/job > web:81 no: Pod shop/web does not let Pod shop/job in at port 81: NetworkPolicy shop/deny
            bank/api > db:80 no: Pod shop/db does not let Pod bank/api in at port 80: NetworkPolicy shop/deny, shop/db
            bank/api > db:81 yes
            bank/api > web:80 no: Pod shop/web does not let Pod bank/api in at port 80: NetworkPolicy shop/deny
            bank/api > web:81 no: Pod shop/web does not let Pod bank/api in at port 81: NetworkPolicy shop/deny
            198.51.100.7 > db:80 yes
            198.51.100.7 > db:81 yes
            198.51.100.7 > web:80 no: Pod shop/web does not let 198.51.100.7 in at port 80: NetworkPolicy shop/deny
            198.51.100.7 > web:81 no: Pod shop/web does not let 198.51.100.7 in at port 81: NetworkPolicy shop/deny
        "#]],
    );
}

#[test]
fn who_may_leave_for_where() {
    let table = table(&[policy(
        "out",
        json!({}),
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
               "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}],
                           "ports": [{"protocol": "TCP", "port": 80}]}]}),
    )]);
    check_pairs(
        &table,
        &CALLERS[..2],
        &["shop/db app=db", "bank/api"],
        expect![[r#"
            shop/web > db:80 yes
            shop/web > db:81 no: Pod shop/web may not reach Pod shop/db at port 81: NetworkPolicy shop/out
            shop/web > api:80 no: Pod shop/web may not reach Pod bank/api at port 80: NetworkPolicy shop/out
            shop/web > api:81 no: Pod shop/web may not reach Pod bank/api at port 81: NetworkPolicy shop/out
            shop/job > db:80 yes
            shop/job > db:81 yes
            shop/job > api:80 yes
            shop/job > api:81 yes
        "#]],
    );
}

#[test]
fn a_policy_that_only_looks_refuses_nothing() {
    let audit = json!({"wherry.dev/policy-mode": "audit"});
    let closed = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let looks = table(&[policy("try", audit.clone(), closed.clone())]);
    check_pairs(
        &looks,
        &CALLERS[1..2],
        &["shop/db"],
        expect![[r#"
            shop/job > db:80 noted: Pod shop/db does not let Pod shop/job in at port 80: NetworkPolicy shop/try
            shop/job > db:81 noted: Pod shop/db does not let Pod shop/job in at port 81: NetworkPolicy shop/try
        "#]],
    );
    // What it would allow does not open what another one closes.
    let open = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]});
    let both = table(&[policy("try", audit, open), policy("deny", json!({}), closed)]);
    check_pairs(
        &both,
        &CALLERS[1..2],
        &["shop/db"],
        expect![[r#"
            shop/job > db:80 no: Pod shop/db does not let Pod shop/job in at port 80: NetworkPolicy shop/deny
            shop/job > db:81 no: Pod shop/db does not let Pod shop/job in at port 81: NetworkPolicy shop/deny
        "#]],
    );
}

#[test]
fn the_outside_is_closed_until_a_policy_opens_it() {
    let table = table(&[
        policy(
            "hosts",
            json!({"wherry.dev/egress-hosts": "api.example.com, *.example.org:8443"}),
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}),
        ),
        policy(
            "block",
            json!({}),
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
                   "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
                               "ports": [{"port": 5432}]}]}),
        ),
    ]);
    let mut out = String::new();
    let mut ask = |pod: &str, to: &str, host: Option<&str>| {
        let to: SocketAddr = to.parse().expect("an address");
        let verdict = table.judge_outside(&subject(pod), to, host, Protocol::Tcp);
        let shown = host.map_or_else(|| to.to_string(), |host| format!("{host}:{}", to.port()));
        out += &format!(
            "{} > {shown} {}\n",
            &pod[..pod.find(' ').unwrap_or(pod.len())],
            word(&verdict)
        );
    };
    ask("shop/web app=web", "203.0.113.9:443", Some("api.example.com"));
    ask("shop/web app=web", "203.0.113.9:25", Some("api.example.com"));
    ask("shop/web app=web", "203.0.113.9:8443", Some("a.b.Example.org."));
    ask("shop/web app=web", "203.0.113.9:8443", Some("example.org"));
    ask("shop/web app=web", "203.0.113.9:443", None);
    ask("shop/db app=db", "203.0.113.9:5432", None);
    ask("shop/db app=db", "203.0.114.9:5432", None);
    ask("shop/job", "203.0.113.9:443", Some("api.example.com"));
    expect![[r#"
        shop/web > api.example.com:443 yes
        shop/web > api.example.com:25 no: Pod shop/web may not reach api.example.com:25 outside of the cluster: NetworkPolicy shop/hosts
        shop/web > a.b.Example.org.:8443 yes
        shop/web > example.org:8443 no: Pod shop/web may not reach example.org:8443 outside of the cluster: NetworkPolicy shop/hosts
        shop/web > 203.0.113.9:443 no: Pod shop/web may not reach 203.0.113.9:443 outside of the cluster: NetworkPolicy shop/hosts
        shop/db > 203.0.113.9:5432 yes
        shop/db > 203.0.114.9:5432 no: Pod shop/db may not reach 203.0.114.9:5432 outside of the cluster: NetworkPolicy shop/block
        shop/job > api.example.com:443 no: Pod shop/job may not reach api.example.com:443 outside of the cluster: no NetworkPolicy for egress allows it
    "#]]
    .assert_eq(&out);
}

#[test]
fn a_caller_survives_the_way_between_workers_but_not_its_namespace() {
    let caller = Caller::pod(subject("shop/web app=web"));
    let remote: IpAddr = "192.0.2.9".parse().expect("an address");
    let heard = Caller::of_peer(Some(&caller.word()), "bank", remote);
    let pod = heard.pod.as_ref().expect("a Pod");
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("bank", "web"));
    assert_eq!((heard.ip, &pod.labels), (caller.ip, &json!({"app": "web"})));
    let outside = Caller::outside("198.51.100.7".parse().expect("an address"));
    let heard = Caller::of_peer(Some(&outside.word()), "bank", remote);
    assert!(heard.pod.is_none() && heard.ip == outside.ip);
    let silent = Caller::of_peer(None, "bank", remote);
    assert_eq!(silent.pod.map(|pod| pod.namespace.clone()), Some("bank".to_owned()));
}
