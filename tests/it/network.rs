//! Traffic between Pods and from outside, over two nodes: Services of every kind, policies, Ingress,
//! Gateways.

use std::{
    io::{BufRead as _, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wherry_tests::{Dev, Options, l3, text, wait_for, wherry};

const TCP: u16 = 30091;
const UDP: u16 = 30092;
const HTTP: u16 = 30093;

/// A handler with two Pods, a listener on the second node, and somebody who calls.
const WORLD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
        - {name: hello, image: "hello-http:dev", ports: [{name: web, containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: hello-out}
spec: {type: NodePort, selector: {app: hello}, ports: [{port: 80, targetPort: web, nodePort: 30093}]}
---
apiVersion: v1
kind: Service
metadata: {name: hello-too}
spec: {type: ExternalName, externalName: hello.default.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  nodeName: node-2
  hostname: echo-0
  subdomain: echo
  containers:
    - name: tcp
      image: registry.k8s.io/e2e-test-images/agnhost:2.53
      args: [netexec, --http-port=8080, --udp-port=8081]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {clusterIP: None, selector: {app: echo}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo-out}
spec:
  type: NodePort
  sessionAffinity: ClientIP
  selector: {app: echo}
  ports:
    - {name: tcp, port: 8080, nodePort: 30091}
    - {name: udp, port: 8081, nodePort: 30092, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {role: client}}
spec:
  nodeName: node-1
  containers: [{name: sh, image: busybox, args: [sleep, "100000"]}]
"#;

/// A Pod behind no Service.
const LONELY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: lonely}
spec:
  nodeName: node-2
  containers: [{name: hello, image: "hello-http:dev"}]
"#;

/// A Pod with search domains of its own and no others.
const SEARCHER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: searcher}
spec:
  dnsPolicy: None
  dnsConfig:
    nameservers: [192.0.2.53]
    searches: [echo.default.svc.cluster.local]
    options: [{name: ndots, value: "2"}]
  containers: [{name: sh, image: busybox, args: [sleep, "100000"]}]
"#;

const DENY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hello-in}
spec:
  podSelector: {matchLabels: {app: hello}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: web}]}]
"#;

const INGRESS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [hello.example], secretName: web-tls}]
  rules:
    - host: hello.example
      http:
        paths:
          - path: /hello
            pathType: Prefix
            backend: {service: {name: hello, port: {name: http}}}
          - path: /gone
            pathType: Exact
            backend: {service: {name: nobody, port: {number: 80}}}
"#;

fn apply(cluster: &Dev, text: &str) {
    let file = cluster.data_dir.join("manifest.yaml");
    std::fs::write(&file, text).expect("the folder can be written");
    let file = file.to_str().expect("temporary folders have plain names");
    cluster.kubectl_ok(&["apply", "-f", file]);
}

/// Runs a command in the client's Pod: whether it succeeded, and what it printed.
fn run(cluster: &Dev, command: &str) -> (bool, String) {
    let output = cluster.kubectl(&["exec", "client", "--", "sh", "-c", command]);
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn world() -> Dev {
    let cluster = Dev::start_with(Options { nodes: 2, ..Options::default() });
    wait_for("both nodes are there", || {
        let nodes = cluster.kubectl_ok(&["get", "nodes", "-o", "name"]);
        (nodes.lines().count() == 2).then_some(())
    });
    apply(&cluster, WORLD);
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=180s"]);
    cluster
}

#[test]
fn services_lead_to_their_pods_wherever_these_are() {
    if !l3() {
        return;
    }
    let cluster = world();
    for host in ["hello", "hello.default.svc.cluster.local", "hello-too", "echo-0.echo:8080"] {
        wait_for(host, || {
            let (done, said) = run(&cluster, &format!("wget -q -T 5 -O - http://{host}/"));
            (done && !said.is_empty()).then_some(())
        });
    }
    // By its address: a Pod behind no Service, on the other node.
    apply(&cluster, LONELY);
    wait_for("a Pod by its address", || {
        let ip = cluster.kubectl_ok(&["get", "pod", "lonely", "-o", "jsonpath={.status.podIP}"]);
        run(&cluster, &format!("wget -q -T 5 -O - http://{ip}/")).0.then_some(())
    });
    // By the first node, on which none of its Pods is: bytes as they are, and datagrams.
    let at = |port| SocketAddr::from((cluster.address, port));
    let said = wait_for("TCP through the other node", || {
        let mut stream = TcpStream::connect_timeout(&at(TCP), Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        said.contains("200").then_some(said)
    });
    assert!(said.contains("echo"), "{said}");
    let said = wait_for("UDP through the other node", || {
        let socket = UdpSocket::bind((cluster.address, 0)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        socket.send_to(b"echo datagram", at(UDP)).ok()?;
        let mut buffer = [0; 100];
        let (count, _) = socket.recv_from(&mut buffer).ok()?;
        Some(text(&buffer[..count]))
    });
    assert_eq!(said.trim(), "datagram");
    wait_for("a datagram from a Pod is answered", || {
        let (done, said) = run(&cluster, "echo echo within | nc -u -w 2 echo-out 8081");
        (done && said.trim() == "within").then_some(())
    });
}

/// `dig` at the first node's server: what it prints of the answer, or its status without any.
fn dig(cluster: &Dev, question: &[&str]) -> String {
    let server = format!("@{}", cluster.address);
    let output = Command::new("dig")
        .args([&server, "-p", "5300", "+time=5", "+tries=1", "+noall", "+answer", "+comments"])
        .args(question)
        .output()
        .expect("dig is installed");
    let said = text(&output.stdout);
    let status = said.split_once("status: ").and_then(|(_, rest)| rest.split_once(','));
    let answers = said.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    // NAME TTL IN TYPE DATA
    let data = answers.map(|line| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" "));
    let mut data: Vec<String> = data.collect();
    data.sort();
    match data.is_empty() {
        true => status.map_or(said.clone(), |(status, _)| status.to_owned()),
        false => data.join("\n"),
    }
}

#[test]
fn names_are_answered_to_programs_outside() {
    if !l3() {
        return;
    }
    let cluster = world();
    let ip_of = |kind: &str, name: &str, path: &str| {
        cluster.kubectl_ok(&["get", kind, name, "-o", &format!("jsonpath={{{path}}}")])
    };
    let service = ip_of("service", "hello", ".spec.clusterIP");
    let pod = ip_of("pod", "echo", ".status.podIP");
    let domain = "default.svc.cluster.local";
    wait_for("the Pod's own name", || {
        (dig(&cluster, &[&format!("echo-0.echo.{domain}")]) == format!("A {pod}")).then_some(())
    });
    let check = |question: &[&str], expected: &str| {
        wait_for(&format!("{question:?} is answered with {expected:?}"), || {
            (dig(&cluster, question) == expected).then_some(())
        });
    };
    let name = |name: &str| format!("{name}.{domain}");
    check(&[&name("hello")], &format!("A {service}"));
    check(&["+tcp", &name("HELLO")], &format!("A {service}"));
    check(&[&name("echo")], &format!("A {pod}"));
    let alias = format!("A {service}\nCNAME hello.{domain}.");
    check(&[&name("hello-too")], &alias);
    check(&[&name("_http._tcp.hello"), "SRV"], &format!("SRV 0 100 80 hello.{domain}."));
    check(&["-x", &service], &format!("PTR hello.{domain}."));
    check(&["-x", &pod], &format!("PTR echo-0.echo.{domain}."));
    check(&[&name("hello"), "AAAA"], "NOERROR");
    check(&[&name("nobody")], "NXDOMAIN");
    check(&["example.com"], "REFUSED");
    check(&["dns-version.cluster.local", "TXT"], "TXT \"1.1.0\"");
    let dashed = format!("{}.default.pod.cluster.local", pod.replace('.', "-"));
    check(&[&dashed], &format!("A {pod}"));
    check(&["+bufsize=512", "+ignore", &name("echo")], &format!("A {pod}"));
    // Guests are told the same, also behind the search domains that a Pod names.
    for host in ["hello", "echo-0.echo", &dashed, "hello.default.svc.cluster.local."] {
        wait_for(host, || run(&cluster, &format!("nslookup {host}")).0.then_some(()));
    }
    assert!(!run(&cluster, "nslookup nobody.default.svc.cluster.local").0);
    apply(&cluster, SEARCHER);
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "pod/searcher", "--timeout=180s"]);
    let searcher = |command: &str| {
        let output = cluster.kubectl(&["exec", "searcher", "--", "sh", "-c", command]);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let said = wait_for("its own search domain leads to a name", || {
        let (done, said) = searcher("nslookup echo-0 && cat /etc/resolv.conf");
        (done && said.contains(&pod)).then_some(said)
    });
    assert!(said.contains("search echo.default.svc.cluster.local\noptions ndots:2"), "{said}");
    assert!(!searcher("nslookup hello").0, "the cluster's own search domains are not its");
    cluster.kubectl_ok(&["delete", "service", "hello"]);
    wait_for("a name goes with its Service", || {
        (dig(&cluster, &[&name("hello")]) == "NXDOMAIN").then_some(())
    });
}

#[test]
fn traffic_is_counted_and_requests_can_be_watched() {
    if !l3() {
        return;
    }
    let cluster = world();
    let mut tail = Command::new(wherry())
        .args(["tail", "deploy/hello"])
        .env("KUBECONFIG", &cluster.kubeconfig)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let lines = std::io::BufReader::new(tail.stdout.take().expect("piped"));
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more once the test has seen enough.
        lines.lines().map_while(Result::ok).for_each(|line| _ = told.send(line));
    });
    let line = wait_for("a request is printed", || {
        run(&cluster, "wget -q -T 5 -O - http://hello/").0.then_some(())?;
        heard.recv_timeout(Duration::from_millis(500)).ok()
    });
    tail.kill().expect("it runs");
    tail.wait().expect("it was started");
    assert!(line.contains(" > hello-") && line.contains(" GET hello"), "{line}");
    assert!(line.contains(" 200 ") && line.contains(" answer="), "{line}");
    let metrics = || cluster.kubectl_ok(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    wait_for("the node port listens", || TcpStream::connect((cluster.address, HTTP)).ok());
    let url = format!("http://{}:{HTTP}/", cluster.address);
    let asked = Command::new("curl").args(["-sf", "-m", "60", &url]).output().expect("curl runs");
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    // The program in the Pod has connected a socket, and the node port takes requests.
    let inner = "{source=\"default/client\",service=\"default/hello\",port=\"80\"";
    let outer = "{source=\"outside\",service=\"default/hello-out\",port=\"80\"";
    for line in [
        format!("wherry_connections_total{inner},result=\"opened\"}} "),
        format!("wherry_connection_bytes_total{inner},direction=\"received\"}} "),
        format!("wherry_requests_total{outer},code=\"2xx\"}} 1"),
        format!("wherry_request_duration_seconds_count{outer}}} 1"),
        format!("wherry_response_bytes_total{outer}}} "),
    ] {
        wait_for(&line, || metrics().contains(&line).then_some(()));
    }
    let get = || TcpStream::connect_timeout(&(cluster.address, TCP).into(), Duration::from_secs(5));
    wait_for("a connection from outside is counted", || {
        get().ok()?.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").ok()?;
        let pair = "{source=\"outside\",service=\"default/echo-out\",port=\"8080\"";
        let line = format!("wherry_connections_total{pair},result=\"opened\"}} ");
        metrics().contains(&line).then_some(())
    });
}

/// A handler that is idle a second after its last request.
const SLEEPY: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleepy}
spec:
  selector: {matchLabels: {app: sleepy}}
  template:
    metadata:
      labels: {app: sleepy}
      annotations: {wherry.dev/idle-after-seconds: "1"}
    spec:
      containers: [{name: hello, image: "hello-http:dev", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: sleepy}
spec: {type: NodePort, selector: {app: sleepy}, ports: [{port: 80, nodePort: 30094}]}
"#;
const WAKES: u16 = 30094;

#[test]
fn a_handler_that_nobody_asks_is_idle_and_the_next_requests_wake_it() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    apply(&cluster, SLEEPY);
    cluster.kubectl_ok(&["rollout", "status", "deployment/sleepy", "--timeout=180s"]);
    let state = || {
        let path = "jsonpath={.items[0].metadata.annotations.state\\.wherry\\.dev/hello}";
        cluster.kubectl_ok(&["get", "pods", "-l", "app=sleepy", "-o", path])
    };
    let ask = || cluster.get(WAKES, "/").filter(|(status, _)| *status == 200);
    wait_for("it answers", ask);
    wait_for("it is idle", || (state() == "Idle").then_some(()));
    // All that come while it wakes wait for that, and are answered.
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        for one in asking {
            one.join().expect("no panic").expect("a request that woke it was answered");
        }
    });
    // Its requests go on counting; its state is told when it is asked again and again.
    wait_for("it is active", || {
        ask().expect("it answers");
        (state() == "Active").then_some(())
    });
}

#[test]
fn a_member_relays_from_node_to_node() {
    if !l3() {
        return;
    }
    let cluster = world();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = wherry_tests::client(&cluster.kubeconfig).await.expect("a client");
        let ask = async |node: &str, namespace: &str, user: &str| {
            let request = http::Request::get(format!("/wherry/v1/relay/{node}/{namespace}"))
                .header("impersonate-user", user)
                .header("impersonate-group", "system:nodes")
                .header("connection", "Upgrade")
                .header("upgrade", "wherry-relay")
                .body(kube::client::Body::empty())
                .expect("a request");
            client.send(request).await.expect("an answer")
        };
        let node = "system:node:node-1";
        let answer = ask("node-2", "default", node).await;
        assert_eq!(answer.status(), 101);
        let upgraded = hyper::upgrade::on(answer).await.expect("an upgrade");
        let mut stream = hyper_util::rt::TokioIo::new(upgraded);
        // Workers speak TLS to each other: who does not gets an alert, record type 21.
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it takes bytes");
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.expect("the worker answers");
        assert_eq!(first, [21]);
        drop(stream);
        assert_eq!(ask("node-2", "nobody", node).await.status(), 404);
        assert_eq!(ask("node-2", "default", "system:node:").await.status(), 400);
    });
    let metrics = cluster.kubectl_ok(&["get", "--raw", "/metrics"]);
    // Workers have relayed, too, if they did not reach each other in time.
    let count = metrics.lines().find_map(|line| line.strip_prefix("wherry_relays_total "));
    let count: u64 = count.and_then(|count| count.parse().ok()).expect("relays are counted");
    assert!(count >= 1, "{count} relays");
}

#[test]
fn policies_are_obeyed_and_what_they_refuse_is_said() {
    if !l3() {
        return;
    }
    let cluster = world();
    let ask = "wget -q -T 5 -O - http://hello/";
    wait_for("it is open", || run(&cluster, ask).0.then_some(()));
    apply(&cluster, DENY);
    wait_for("it is closed", || (!run(&cluster, ask).0).then_some(()));
    wait_for("the refusal is an event", || {
        let of = "reason=NetworkPolicyDenied";
        let events = cluster.kubectl_ok(&["get", "events", "--field-selector", of]);
        events.contains("does not let Pod default/client in").then_some(())
    });
    // A label makes a friend, at once and without a restart.
    cluster.kubectl_ok(&["label", "pod", "client", "role=friend", "--overwrite"]);
    wait_for("friends may", || run(&cluster, ask).0.then_some(()));
    cluster.kubectl_ok(&["label", "pod", "client", "role=client", "--overwrite"]);
    wait_for("others may not", || (!run(&cluster, ask).0).then_some(()));
    let audit = "wherry.dev/policy-mode=audit";
    cluster.kubectl_ok(&["annotate", "networkpolicy", "hello-in", audit]);
    wait_for("it only looks", || run(&cluster, ask).0.then_some(()));
    wait_for("what it saw is an event", || {
        let of = "reason=NetworkPolicyAudit";
        let events = cluster.kubectl_ok(&["get", "events", "--field-selector", of]);
        events.contains("hello-in").then_some(())
    });
    let (done, said) = run(&cluster, "wget -q -T 5 -O - http://203.0.113.1/");
    assert!(!done, "the outside is closed: {said}");
}

/// `curl` to the Ingress of a node: status and body.
fn curl(cluster: &Dev, url: &str, more: &[&str]) -> (String, String) {
    let address = cluster.address;
    let output = Command::new("curl")
        .args(["-sk", "-m", "60", "-w", "\n%{http_code}"])
        .args(["--resolve", &format!("hello.example:443:{address}")])
        .args(["--resolve", &format!("hello.example:80:{address}")])
        .args(["--resolve", &format!("stranger.example:80:{address}")])
        .args(more)
        .arg(url)
        .output()
        .expect("curl is installed");
    let said = text(&output.stdout);
    let (body, status) = said.rsplit_once('\n').unwrap_or(("", ""));
    (status.to_owned(), body.to_owned())
}

/// Puts a certificate for `hello.example` and another name into a Secret; the file of its authority.
fn certificate(cluster: &Dev, secret: &str, name: &str) -> PathBuf {
    let folder = &cluster.data_dir;
    let names = vec![name.to_owned(), "hello.example".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).expect("written");
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).expect("written");
    let file = |name: &str| folder.join(name).display().to_string();
    let (cert, key) = (format!("--cert={}", file("tls.crt")), format!("--key={}", file("tls.key")));
    let create = ["create", "secret", "tls", secret, &cert, &key];
    let yaml = cluster.kubectl_ok(&[&create[..], &["--dry-run=client", "-o", "yaml"]].concat());
    apply(cluster, &yaml);
    folder.join("tls.crt")
}

#[test]
fn an_ingress_leads_in_by_host_and_path_with_its_certificate() {
    if !l3() {
        return;
    }
    let cluster = world();
    let certificate = |name: &str| certificate(&cluster, "web-tls", name);
    certificate("first.example");
    apply(&cluster, INGRESS);
    wait_for("the Ingress answers", || {
        let (status, body) = curl(&cluster, "http://hello.example/hello/you", &[]);
        (status == "200" && body.contains("Hello")).then_some(())
    });
    let (status, body) = curl(&cluster, "http://hello.example/other", &[]);
    assert!(status == "404" && body.contains("has a rule for \"/other\""), "{status} {body}");
    let (status, body) = curl(&cluster, "http://stranger.example/", &[]);
    assert!(status == "404" && body.contains("No Ingress is for the host"), "{status} {body}");
    let (status, body) = curl(&cluster, "http://hello.example/gone", &[]);
    assert!(status == "503" && body.contains("nobody does not exist"), "{status} {body}");
    wait_for("the status says where", || {
        let ip = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let said = cluster.kubectl_ok(&["get", "ingress", "web", "-o", ip]);
        (said == cluster.address.to_string()).then_some(())
    });
    // HTTP/2 over TLS with the Secret's certificate; a renewed one is served without a restart.
    let trusting = |name: &str| {
        let authority = certificate(name);
        wait_for("the newest certificate is served", || {
            let output = Command::new("curl")
                .args(["-s", "-m", "60", "--http2", "-w", "\n%{http_version} %{http_code}"])
                .args(["--resolve", &format!("hello.example:443:{}", cluster.address)])
                .arg("--cacert")
                .arg(&authority)
                .arg("https://hello.example/hello")
                .output()
                .expect("curl is installed");
            text(&output.stdout).ends_with("\n2 200").then_some(())
        });
    };
    trusting("first.example");
    trusting("second.example");
}

/// Besides the canary of the sample: HTTPS, and routes that redirect or lead nowhere.
const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: safe}
spec:
  gatewayClassName: wherry
  listeners:
    - name: https
      port: 443
      protocol: HTTPS
      hostname: hello.example
      tls: {certificateRefs: [{name: hello-tls}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: safe}
spec:
  parentRefs: [{name: safe}]
  rules:
    - matches: [{path: {value: /stripped}}]
      filters:
        - type: URLRewrite
          urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: x-gate, value: seen}]}
      backendRefs: [{name: hello-http, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: plain}
spec:
  parentRefs: [{name: hello}]
  hostnames: [hello.example]
  rules:
    - matches: [{path: {value: /safe}}]
      filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
    - matches: [{path: {value: /gone}}]
      backendRefs: [{name: nobody, port: 80}]
"#;

#[test]
fn a_gateway_leads_in_by_its_routes_with_a_canary() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let none = cluster.kubectl_ok(&["get", "gateways", "-A", "--ignore-not-found"]);
    assert_eq!(none, "", "the kind is there from the start");
    for file in ["app.yaml", "gateway.yaml"] {
        cluster.kubectl_ok(&["apply", "-f", &format!("sample-apps/hello-http/{file}")]);
    }
    for name in ["hello-http", "hello-canary"] {
        let deployment = format!("deployment/{name}");
        cluster.kubectl_ok(&["rollout", "status", &deployment, "--timeout=180s"]);
    }
    let wait = ["wait", "--for=condition=Programmed", "gateway/hello", "--timeout=180s"];
    cluster.kubectl_ok(&wait);
    let wants_canary: &[&str] = &["-H", "x-canary: yes"];
    for (canary, more) in [(false, &[][..]), (true, wants_canary)] {
        wait_for("the route knows the Pods of both Services", || {
            let (status, body) = curl(&cluster, "http://hello.example/", more);
            let told = body.contains("Hello") && body.contains("hello-canary") == canary;
            (status == "200" && told).then_some(())
        });
    }
    let is_canary = |more: &[&str]| {
        let (status, body) = curl(&cluster, "http://hello.example/", more);
        assert_eq!(status, "200", "{body}");
        body.contains("hello-canary")
    };
    let count = (0..100).filter(|_| is_canary(&[])).count();
    // One of ten; a route that is told anew in between begins to count anew.
    assert!((5..=15).contains(&count), "{count} of 100 went to the canary");
    assert!((0..5).all(|_| is_canary(wants_canary)));
    let (status, body) = curl(&cluster, "http://stranger.example/", &[]);
    assert!(status == "404" && body.contains("No route is for the host"), "{status} {body}");
    certificate(&cluster, "hello-tls", "first.example");
    apply(&cluster, GATEWAY);
    let trusting = |name: &str| {
        let authority = certificate(&cluster, "hello-tls", name);
        wait_for("the newest certificate is served", || {
            let output = Command::new("curl")
                .args(["-si", "-m", "60", "--http2"])
                .args(["--resolve", &format!("hello.example:443:{}", cluster.address)])
                .arg("--cacert")
                .arg(&authority)
                .arg("https://hello.example/stripped/you")
                .output()
                .expect("curl is installed");
            let said = text(&output.stdout);
            let good = said.starts_with("HTTP/2 200") && said.contains("x-gate: seen");
            (good && said.contains("Hello from")).then_some(())
        });
    };
    trusting("first.example");
    trusting("second.example");
    wait_for("a route redirects", || {
        let (status, said) = curl(&cluster, "http://hello.example/safe/x?y=z", &["-i"]);
        let there = said.contains("location: https://hello.example/safe/x?y=z");
        (status == "301" && there).then_some(())
    });
    let (status, body) = curl(&cluster, "http://hello.example/gone", &[]);
    assert!(status == "500" && body.contains("nobody does not exist"), "{status} {body}");
    let said = |of: &str, path: &str| cluster.kubectl_ok(&["get", of, "-o", path]);
    wait_for("the statuses say so", || {
        let routes = "jsonpath={.status.listeners[0].attachedRoutes}";
        let reason = ".status.parents[0].conditions[?(@.type==\"ResolvedRefs\")].reason";
        let told = (
            said("gateway/hello", routes),
            said("httproute/plain", &format!("jsonpath={{{reason}}}")),
            said("gateway/safe", "jsonpath={.status.addresses[0].value}"),
        );
        (told == ("2".into(), "BackendNotFound".into(), cluster.address.to_string())).then_some(())
    });
}
