//! Who reaches whom: pairs of Pods and destinations under one policy after the other, each tried by a
//! connection from within the Pod.
//!
//! A destination that is denied to one is allowed to another at some time, so that a denial is not
//! somebody who does not listen.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Dev;
use crate::machine::own_address;

/// A policy counts a moment after it was applied; what is not as expected by then never will be.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// A handler and a guest with two sockets, and those who ask them: two of the same namespace and one
/// of another.
const WORLD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: blue, labels: {team: blue}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: web, image: "hello-http:dev", ports: [{name: http, containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: sockets, labels: {app: sockets}}
spec:
  nodeName: node-2
  containers:
    - {name: one, image: busybox, args: [nc, "-l", "-k", "-p", "8080", "-e", cat]}
    - {name: other, image: busybox, args: [nc, "-l", "-k", "-p", "9000", "-e", cat]}
---
apiVersion: v1
kind: Service
metadata: {name: sockets}
spec: {selector: {app: sockets}, ports: [{name: one, port: 8080}, {name: other, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {role: friend}}
spec:
  nodeName: node-1
  containers: [{name: sh, image: busybox, args: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {role: stranger}}
spec:
  nodeName: node-2
  containers: [{name: sh, image: busybox, args: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: blue, labels: {role: friend}}
spec:
  containers: [{name: sh, image: busybox, args: [sleep, "100000"]}]
"#;

const FRIEND: &str = "friend";
const STRANGER: &str = "stranger";
const VISITOR: &str = "blue/visitor";

const WEB: &str = "web.default:80";
const ONE: &str = "sockets.default:8080";
const OTHER: &str = "sockets.default:9000";

/// A policy and what it means: who reaches whom, and who does not.
struct Case {
    name: &'static str,
    /// Its spec, in one line of YAML; none for no policy at all.
    spec: &'static str,
    allowed: &'static [(&'static str, &'static str)],
    denied: &'static [(&'static str, &'static str)],
}

const CASES: &[Case] = &[
    Case {
        name: "none",
        spec: "",
        allowed: &[(FRIEND, WEB), (STRANGER, WEB), (VISITOR, WEB), (FRIEND, ONE), (FRIEND, OTHER)],
        denied: &[],
    },
    Case {
        name: "ingress: nobody",
        spec: "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
        allowed: &[(FRIEND, ONE)],
        denied: &[(FRIEND, WEB), (STRANGER, WEB), (VISITOR, WEB)],
    },
    Case {
        name: "ingress: from Pods",
        spec: "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], \
               ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}",
        allowed: &[(FRIEND, WEB)],
        denied: &[(STRANGER, WEB), (VISITOR, WEB)],
    },
    Case {
        name: "ingress: from a namespace",
        spec: "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], \
               ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}",
        allowed: &[(VISITOR, WEB)],
        denied: &[(FRIEND, WEB), (STRANGER, WEB)],
    },
    Case {
        name: "ingress: from other Pods of that namespace",
        spec: "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], \
               ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}, \
               podSelector: {matchLabels: {role: stranger}}}]}]}",
        allowed: &[],
        denied: &[(FRIEND, WEB), (STRANGER, WEB), (VISITOR, WEB)],
    },
    Case {
        name: "ingress: one port",
        spec: "{podSelector: {matchLabels: {app: sockets}}, policyTypes: [Ingress], \
               ingress: [{ports: [{port: 8080}]}]}",
        allowed: &[(FRIEND, ONE), (STRANGER, ONE)],
        denied: &[(FRIEND, OTHER), (STRANGER, OTHER)],
    },
    Case {
        name: "ingress: ports from to",
        spec: "{podSelector: {matchLabels: {app: sockets}}, policyTypes: [Ingress], \
               ingress: [{ports: [{port: 8500, endPort: 9500}]}]}",
        allowed: &[(FRIEND, OTHER)],
        denied: &[(FRIEND, ONE)],
    },
    Case {
        name: "egress: nowhere",
        spec: "{podSelector: {matchLabels: {role: friend}}, policyTypes: [Egress]}",
        allowed: &[(STRANGER, WEB), (STRANGER, ONE), (VISITOR, WEB)],
        denied: &[(FRIEND, WEB), (FRIEND, ONE)],
    },
    Case {
        name: "egress: to Pods",
        spec: "{podSelector: {matchLabels: {role: friend}}, policyTypes: [Egress], \
               egress: [{to: [{podSelector: {matchLabels: {app: sockets}}}], \
               ports: [{port: 8080}]}]}",
        allowed: &[(FRIEND, ONE), (STRANGER, WEB)],
        denied: &[(FRIEND, WEB), (FRIEND, OTHER)],
    },
];

/// Opens everything that a policy can open.
const OPEN: &str = "{podSelector: {}, policyTypes: [Egress], \
                    egress: [{}, {to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}";

/// One way that was tried.
pub struct Pair {
    pub policy: String,
    pub from: String,
    pub to: String,
    /// Whether it should be there.
    pub allowed: bool,
    /// Whether it was.
    pub seen: bool,
}

impl Pair {
    pub fn is_fine(&self) -> bool {
        self.allowed == self.seen
    }

    fn new(policy: &str, from: &str, to: &str, allowed: bool) -> Pair {
        let text = str::to_owned;
        // As long as nobody has tried, it is not as it should be.
        Pair { policy: text(policy), from: text(from), to: text(to), allowed, seen: !allowed }
    }
}

/// Applies a manifest.
pub fn apply(cluster: &Dev, text: &str) -> Result<()> {
    let file = cluster.data_dir.join("traffic.yaml");
    std::fs::write(&file, text)?;
    let output = cluster.kubectl(&["apply", "-f", &file.to_string_lossy()]);
    ensure!(output.status.success(), "{}", crate::text(&output.stderr));
    Ok(())
}

/// Every case, and what is never reached.
pub fn run(cluster: &Dev) -> Result<Vec<Pair>> {
    apply(cluster, WORLD)?;
    let ready = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
    cluster.kubectl_ok(&ready);
    cluster.kubectl_ok(&[&ready[..], &["-n", "blue"]].concat());
    let mut all = Vec::new();
    for case in CASES {
        let pair = |allowed| move |way: &(&str, &str)| Pair::new(case.name, way.0, way.1, allowed);
        let allowed = case.allowed.iter().map(pair(true));
        let mut pairs: Vec<Pair> = allowed.chain(case.denied.iter().map(pair(false))).collect();
        if !case.spec.is_empty() {
            apply(cluster, &policy(case.spec))?;
        }
        watch(cluster, &mut pairs);
        if !case.spec.is_empty() {
            cluster.kubectl_ok(&["delete", "networkpolicy", "case"]);
        }
        all.extend(pairs);
    }
    all.extend(never(cluster, "none")?);
    // Whether the way out was opened cannot be seen from here; that Pods are still reached can.
    apply(cluster, &policy(OPEN))?;
    let mut open = vec![Pair::new("egress: everywhere", FRIEND, WEB, true)];
    watch(cluster, &mut open);
    all.extend(open);
    all.extend(never(cluster, "egress: everywhere")?);
    cluster.kubectl_ok(&["delete", "networkpolicy", "case"]);
    Ok(all)
}

fn policy(spec: &str) -> String {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: case}";
    format!("{head}\nspec: {spec}\n")
}

/// What no policy opens: the machine by each of its names, its link, and the control plane.
fn never(cluster: &Dev, policy: &str) -> Result<Vec<Pair>> {
    let kubeconfig = std::fs::read_to_string(&cluster.kubeconfig)?;
    let server = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: "));
    let port = server.and_then(|url| url.trim().rsplit_once(':')).context("the API's port")?.1;
    let mut targets: Vec<String> = Vec::new();
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
        targets.push(format!("{host} {port}"));
    }
    // A node port that answers on the machine.
    targets.push(format!("{} 30080", cluster.address));
    targets.push(format!("::ffff:{} 30080", cluster.address));
    for host in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "255.255.255.255"] {
        targets.push(format!("{host} 80"));
    }
    // Somebody listens there, so that it is not that which keeps it from being reached.
    let own = own_address().map(|own| TcpListener::bind((own, 0))).transpose()?;
    if let Some(own) = &own {
        let own = own.local_addr()?;
        targets.push(format!("{} {}", own.ip(), own.port()));
    }
    targets.push("kubernetes.default 443".to_owned());
    let mut pairs: Vec<Pair> =
        targets.iter().map(|to| Pair::new(policy, FRIEND, to, false)).collect();
    watch(cluster, &mut pairs);
    Ok(pairs)
}

/// Tries each pair until it is as it should be, or for too long.
fn watch(cluster: &Dev, pairs: &mut [Pair]) {
    let begun = Instant::now();
    for pair in pairs {
        loop {
            pair.seen = reaches(cluster, &pair.from, &pair.to);
            if pair.is_fine() || begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Whether a Pod (`[NAMESPACE/]NAME`) can connect there (`HOST:PORT` or `HOST PORT`).
fn reaches(cluster: &Dev, from: &str, to: &str) -> bool {
    let (namespace, pod) = from.split_once('/').unwrap_or(("default", from));
    let (host, port) = match to.split_once(' ') {
        Some(parts) => parts,
        None => to.rsplit_once(':').unwrap_or((to, "80")),
    };
    let connect = ["exec", "-n", namespace, pod, "--", "nc", "-z", "-w", "2", host, port];
    cluster.kubectl(&connect).status.success()
}
