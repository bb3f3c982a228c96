//! Streams into Pods with stock kubectl, over WebSocket and over SPDY.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wherry_tests::{DEADLINE, Dev, http_get, l3, repository, signal, text, wait_for};

/// What kubectl speaks with these in its environment: WebSocket first, SPDY only.
const TRANSPORTS: [&[(&str, &str)]; 2] = [
    &[],
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")],
];

/// A kubectl with pipes at all its ends.
fn spawn(cluster: &Dev, transport: &[(&str, &str)], arguments: &[&str]) -> Child {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(&cluster.kubeconfig);
    command.arg("--cache-dir").arg(cluster.kubeconfig.with_extension("cache"));
    command.current_dir(repository()).args(arguments).envs(transport.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("kubectl is installed")
}

/// Runs kubectl to its end with this input; one that hangs is killed.
fn run(cluster: &Dev, transport: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Output {
    let mut child = spawn(cluster, transport, arguments);
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A command that does not read its input closes the pipe.
    let feed = std::thread::spawn(move || _ = stdin.write_all(&input));
    let (over, watched) = mpsc::channel::<()>();
    let pid = child.id().cast_signed();
    let watch = std::thread::spawn(move || {
        if watched.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            signal(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("it ends");
    drop(over);
    watch.join().expect("no panic");
    feed.join().expect("no panic");
    output
}

/// Output, errors and exit code in one text.
fn all(output: &Output) -> String {
    let code = output.status.code().unwrap_or(-1);
    format!("{}{}exit {code}", text(&output.stdout), text(&output.stderr))
}

fn start(cluster: &Dev) {
    let yaml = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: web
    image: hello-http:dev
    ports: [{containerPort: 80}]
    env: [{name: POD_NAME, value: web}, {name: COLOUR, value: green}]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8080, targetPort: 80}]
";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("web.yaml");
    std::fs::write(&file, yaml).expect("written");
    cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=180s"]);
}

#[test]
fn exec_runs_commands_in_the_pods_view() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    for transport in TRANSPORTS {
        let exec = |arguments: &[&str], input: &[u8]| {
            run(&cluster, transport, &[&["exec"], arguments].concat(), input)
        };
        let said = exec(&["web", "--", "sh", "-c", "echo $COLOUR; echo no >&2; exit 3"], b"");
        let want = "green\nno\ncommand terminated with exit code 3\nexit 3";
        assert_eq!(all(&said), want, "{transport:?}");
        // The end of the input arrives.
        let said = exec(&["-i", "web", "--", "cat"], b"one\ntwo\n");
        assert_eq!(all(&said), "one\ntwo\nexit 0", "{transport:?}");
        // More than any buffer on the way holds, there and back.
        let large: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
        let said = exec(&["-i", "web", "--", "cat"], &large);
        assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
        assert!(said.stdout == large, "{} of {} bytes", said.stdout.len(), large.len());
        let said = exec(&["web", "--", "no-such-program"], b"");
        assert_eq!(said.status.code(), Some(127), "{}", all(&said));
        let said = exec(&["web", "-c", "other", "--", "true"], b"");
        assert!(all(&said).contains("container other is not valid for pod web"), "{}", all(&said));
        let said = exec(&["nobody", "--", "true"], b"");
        assert!(all(&said).contains("pods \"nobody\" not found"), "{}", all(&said));
    }
}

#[test]
fn exec_ends_when_its_client_goes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    for transport in TRANSPORTS {
        let mut child = spawn(
            &cluster,
            transport,
            &[
                "exec",
                "web",
                "--",
                "sh",
                "-c",
                "echo alive >> /data/alive; echo up; \
                 while true; do echo alive >> /data/alive; sleep 0.1; done",
            ],
        );
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "up");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let said = || run(&cluster, transport, &["exec", "web", "--", "cat", "/data/alive"], b"");
        wait_for("the command ends without its client", || {
            let before = said();
            std::thread::sleep(Duration::from_secs(1));
            (before.status.success() && said().stdout == before.stdout).then_some(())
        });
    }
}

#[test]
fn files_are_copied_both_ways() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    // kubectl cp gives its first command ten seconds, in which the toolbox would be compiled too.
    assert_eq!(all(&run(&cluster, &[], &["exec", "web", "--", "true"], b"")), "exit 0");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 241) as u8).collect();
    std::fs::create_dir(path("tree")).expect("made");
    std::fs::write(path("tree/large"), &content).expect("written");
    std::fs::write(path("tree/small"), "hello").expect("written");
    for (number, transport) in TRANSPORTS.into_iter().enumerate() {
        let there = format!("web:/data/{number}");
        let (tree, back) = (path("tree"), path(&format!("back{number}")));
        let said = run(&cluster, transport, &["cp", &tree, &there], b"");
        assert_eq!(said.status.code(), Some(0), "{}", all(&said));
        let said = run(&cluster, transport, &["cp", &there, &back], b"");
        assert_eq!(said.status.code(), Some(0), "{}", all(&said));
        assert!(std::fs::read(format!("{back}/large")).expect("copied") == content);
        assert_eq!(std::fs::read_to_string(format!("{back}/small")).expect("copied"), "hello");
    }
}

#[test]
fn attach_shows_what_is_printed_and_feeds_the_input() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    for (number, transport) in TRANSPORTS.into_iter().enumerate() {
        let name = format!("cat{number}");
        let overrides = "{\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"toolbox:dev\",\
                         \"args\":[\"cat\"],\"stdin\":true,\"stdinOnce\":true}]}}";
        let run_arguments =
            ["run", &name, "--image=toolbox:dev", "--restart=Never", "--overrides", overrides];
        cluster.kubectl_ok(&run_arguments);
        cluster.kubectl_ok(&["wait", "--for=condition=Ready", "pod", &name, "--timeout=180s"]);
        let said = run(&cluster, transport, &["attach", "-i", &name], b"to whom it may concern\n");
        assert!(text(&said.stdout).ends_with("to whom it may concern\n"), "{}", all(&said));
        // With its one client gone, its input has ended.
        cluster.kubectl_ok(&[
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod",
            &name,
            "--timeout=180s",
        ]);
    }
}

/// A kubectl that forwards a port until it is dropped.
struct Forward(Child, u16);

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(cluster: &Dev, transport: &[(&str, &str)], port: u16) -> Forward {
    let ports = format!(":{port}");
    let mut child =
        spawn(cluster, transport, &["port-forward", "--address=127.0.0.1", "pod/web", &ports]);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // Forwarding from 127.0.0.1:40001 -> 80
    let Some(Ok(line)) = lines.next() else {
        let mut why = String::new();
        let _ = child.stderr.take().expect("piped").read_to_string(&mut why);
        panic!("no port is forwarded: {why}");
    };
    std::thread::spawn(move || lines.for_each(drop));
    let local = line.split([':', ' ']).find_map(|word| word.parse().ok());
    Forward(child, local.expect("the line names the port"))
}

#[test]
fn ports_are_forwarded() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    for transport in TRANSPORTS {
        let forwarded = forward(&cluster, transport, 80);
        let address = SocketAddr::from(([127, 0, 0, 1], forwarded.1));
        // Two connections at once, the second ends first.
        let mut first = TcpStream::connect(address).expect("connected");
        write!(first, "GET /first HTTP/1.1\r\nHost: web\r\nConnection: close\r\n").expect("sent");
        for _ in 0..20 {
            let (status, body) = http_get(address, "/second").expect("an answer");
            assert_eq!((status, body.trim()), (200, "Hello from web"), "{transport:?}");
        }
        write!(first, "\r\n").expect("sent");
        let mut answer = String::new();
        first.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        drop(forwarded);

        let mut refused = forward(&cluster, transport, 81);
        assert_eq!(http_get(SocketAddr::from(([127, 0, 0, 1], refused.1)), "/"), None);
        let mut said = BufReader::new(refused.0.stderr.take().expect("piped")).lines();
        let line = said.find_map(|line| line.ok().filter(|line| line.contains("forwarding")));
        let line = line.expect("kubectl says why");
        let why = "error forwarding port 81 to pod web, uid ";
        assert!(line.contains(why) && line.contains("connection refused"), "{line}");
    }
}

#[test]
fn proxies_reach_pods_services_and_nodes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    let get = |path: &str| cluster.kubectl(&["get", "--raw", path]);
    let pod = "/api/v1/namespaces/default/pods/web:80/proxy/hello?x=1";
    assert_eq!(text(&get(pod).stdout).trim(), "Hello from web");
    for service in ["web:http", "web:8080", "web"] {
        let path = format!("/api/v1/namespaces/default/services/{service}/proxy/");
        wait_for("the Service has an endpoint", || {
            (text(&get(&path).stdout).trim() == "Hello from web").then_some(())
        });
    }
    let refused = get("/api/v1/namespaces/default/pods/web:81/proxy/");
    assert!(text(&refused.stderr).contains("connection refused"), "{}", all(&refused));
    let node = cluster.kubectl_ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(text(&get(&format!("/api/v1/nodes/{node}/proxy/healthz")).stdout), "ok");
    let closed = get(&format!("/api/v1/nodes/{node}/proxy/exec/default/web/web"));
    assert!(!closed.status.success(), "a node's streams are not behind its proxy");
    // kubectl's own proxy, in front of ours.
    let mut local = spawn(&cluster, &[], &["proxy", "--port=0"]);
    let mut lines = BufReader::new(local.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("a line").expect("text");
    let port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok()).expect("a port");
    let answer = http_get(SocketAddr::from(([127, 0, 0, 1], port)), pod);
    local.kill().expect("it runs");
    local.wait().expect("it ends");
    assert_eq!(
        answer.map(|(status, body)| (status, body.trim().to_owned())),
        Some((200, "Hello from web".to_owned()))
    );
}

#[test]
fn who_may_only_look_runs_nothing() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    let ok = |arguments: &[&str]| cluster.kubectl_ok(arguments);
    ok(&["create", "serviceaccount", "eve"]);
    ok(&["create", "role", "look", "--verb=get", "--resource=pods,pods/exec,pods/portforward"]);
    ok(&["create", "rolebinding", "look", "--role=look", "--serviceaccount=default:eve"]);
    let eve = "--as=system:serviceaccount:default:eve";
    for transport in TRANSPORTS {
        let said = run(&cluster, transport, &["exec", eve, "web", "--", "true"], b"");
        let why = "cannot create resource \"pods/exec\" in API group \"\" in the namespace";
        assert!(all(&said).contains(why), "{}", all(&said));
        let said = run(&cluster, transport, &["port-forward", eve, "web", ":80"], b"");
        let why = "cannot create resource \"pods/portforward\"";
        assert!(all(&said).contains(why), "{}", all(&said));
    }
    let path = "/api/v1/namespaces/default/pods/web:80/proxy/";
    let said = cluster.kubectl(&["get", "--raw", path, eve]);
    assert!(text(&said.stderr).contains("cannot get resource \"pods/proxy\""), "{}", all(&said));
}

/// The channels of other clients: kube-rs offers v5 and then v4, and only v5 can say that the input
/// has ended.
#[test]
fn kube_rs_streams_as_well() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start(&cluster);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let file = kube::config::Kubeconfig::read_from(&cluster.kubeconfig).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.expect("complete");
        // Who came first has installed the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = kube::Client::try_from(config).expect("a client");
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
            kube::Api::default_namespaced(client);
        let parameters = kube::api::AttachParams::default().stdin(true).stderr(false);
        let mut running = pods.exec("web", ["cat"], &parameters).await.expect("it runs");
        let mut stdin = running.stdin().expect("asked for");
        let mut stdout = running.stdout().expect("asked for");
        let status = running.take_status().expect("once");
        stdin.write_all(b"a line\n").await.expect("written");
        stdin.shutdown().await.expect("ended");
        let mut said = String::new();
        let read = tokio::time::timeout(DEADLINE, stdout.read_to_string(&mut said)).await;
        read.expect("the command ends with its input").expect("text");
        assert_eq!(said, "a line\n");
        let status = status.await.expect("a status");
        assert_eq!(status.status.as_deref(), Some("Success"), "{status:?}");

        let mut ports = pods.portforward("web", &[80, 81]).await.expect("forwarded");
        let mut stream = ports.take_stream(80).expect("asked for");
        let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        assert!(answer.contains("Hello from web"), "{answer}");
        let refused = ports.take_error(81).expect("asked for").await.expect("a sentence");
        assert!(refused.contains("connection refused"), "{refused}");
    });
}
