//! What keeps a cluster well, with real processes and stock kubectl: budgets hold a drain up, load
//! makes Pods, schedules fire, and a node that falls silent loses its Pods to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use wherry_tests::{Dev, Options, http_get, l3, signal, text, wait_for};

const HELLO: u16 = 30080;

fn two_nodes() -> Dev {
    Dev::start_with(Options { nodes: 2, ..Options::default() })
}

fn start_hello(cluster: &Dev) {
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
}

/// `kubectl get … -o jsonpath=…`.
fn jsonpath(cluster: &Dev, what: &str, path: &str) -> String {
    cluster.kubectl_ok(&["get", what, "-o", &format!("jsonpath={path}")])
}

#[test]
fn a_budget_holds_a_drain_up_until_there_is_room() {
    if !l3() {
        return;
    }
    let cluster = two_nodes();
    start_hello(&cluster);
    cluster.kubectl_ok(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=hello-http",
        "--min-available=2",
    ]);
    wait_for("the budget is counted", || {
        let allowed =
            jsonpath(&cluster, "pdb/web", "{.status.currentHealthy}/{.status.disruptionsAllowed}");
        (allowed == "2/0").then_some(())
    });
    let nodes = jsonpath(&cluster, "pods", "{.items[*].spec.nodeName}");
    let node = nodes.split(' ').next().expect("a Pod is on a node").to_owned();
    let drain = |timeout: &str| {
        let timeout = format!("--timeout={timeout}");
        cluster.kubectl(&[
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            &timeout,
        ])
    };
    let cause = "Cannot evict pod as it would violate the pod's disruption budget.";
    wait_for("the drain is refused, and says why", || {
        let blocked = drain("7s");
        assert!(!blocked.status.success(), "{}", text(&blocked.stdout));
        text(&blocked.stderr).contains(cause).then_some(())
    });
    let there = jsonpath(&cluster, "pods", "{.items[*].status.phase}");
    assert_eq!(there, "Running Running", "nobody was evicted");
    // A third replica on the other node is room for one.
    cluster.kubectl_ok(&["scale", "deployment/hello-http", "--replicas=4"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    let done = drain("180s");
    let said = text(&done.stdout) + &text(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains(&format!("node/{node} drained")), "{said}");
    wait_for("all replicas run elsewhere", || {
        let nodes = jsonpath(&cluster, "pods", "{.items[*].spec.nodeName}");
        let ready = jsonpath(&cluster, "deployment/hello-http", "{.status.readyReplicas}");
        (!nodes.contains(&node) && ready == "4").then_some(())
    });
}

/// Requests from several threads until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(cluster: &Dev) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let address = (cluster.address, HELLO).into();
        let thread = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    http_get(address, "/load");
                }
            })
        };
        let threads = (0..2).map(thread).collect();
        Load { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

const BY_REQUESTS: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hello-http}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: hello-http}
  minReplicas: 1
  maxReplicas: 4
  metrics:
  - type: Pods
    pods:
      metric: {name: requests_per_second}
      target: {type: AverageValue, averageValue: \"5\"}
";

#[test]
fn load_makes_pods() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start_hello(&cluster);
    cluster.kubectl_ok(&["scale", "deployment/hello-http", "--replicas=1"]);
    let said = cluster.kubectl_ok(&[
        "autoscale",
        "deployment",
        "hello-http",
        "--name=by-cpu",
        "--min=1",
        "--max=3",
        "--cpu-percent=80",
    ]);
    assert_eq!(said, "horizontalpodautoscaler.autoscaling/by-cpu autoscaled\n");
    wait_for("it says that the Pods ask for no CPU", || {
        let described = cluster.kubectl_ok(&["describe", "hpa", "by-cpu"]);
        described.contains("FailedGetResourceMetric").then_some(())
    });
    cluster.kubectl_ok(&["delete", "hpa", "by-cpu"]);
    let file = cluster.data_dir.join("hpa.yaml");
    std::fs::write(&file, BY_REQUESTS).expect("the folder is writable");
    cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
    let load = Load::start(&cluster);
    wait_for("requests make Pods", || {
        let size = jsonpath(&cluster, "deployment/hello-http", "{.spec.replicas}");
        (size.parse::<u32>().expect("a number") >= 2).then_some(())
    });
    drop(load);
    wait_for("an event says why", || {
        let described = cluster.kubectl_ok(&["describe", "hpa", "hello-http"]);
        let why = "pods metric requests_per_second above target";
        (described.contains("SuccessfulRescale") && described.contains(why)).then_some(())
    });
}

const TICK: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: \"@every 3s\"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - {name: batch, image: 'batch:dev', imagePullPolicy: IfNotPresent, args: ['1000']}
";

#[test]
fn a_schedule_fires() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let file = cluster.data_dir.join("tick.yaml");
    std::fs::write(&file, TICK).expect("the folder is writable");
    cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
    wait_for("a Job of the schedule succeeds", || {
        let done = jsonpath(&cluster, "cronjob/tick", "{.status.lastSuccessfulTime}");
        (!done.is_empty()).then_some(())
    });
    let jobs = jsonpath(&cluster, "jobs", "{.items[0].metadata.ownerReferences[0].name}");
    assert_eq!(jobs, "tick");
    // Or its next Jobs may push this one out of the history before it is seen.
    cluster.kubectl_ok(&["patch", "cronjob", "tick", "-p", "{\"spec\":{\"suspend\":true}}"]);
    let made = cluster.kubectl_ok(&["create", "job", "by-hand", "--from=cronjob/tick"]);
    assert_eq!(made, "job.batch/by-hand created\n");
    cluster.kubectl_ok(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=180s"]);
    wait_for("an event tells of a Job", || {
        let described = cluster.kubectl_ok(&["describe", "cronjob", "tick"]);
        described.contains("SuccessfulCreate").then_some(())
    });
    cluster.kubectl_ok(&["delete", "cronjob", "tick"]);
    wait_for("its Jobs go with it", || {
        jsonpath(&cluster, "jobs", "{.items[*].metadata.name}").is_empty().then_some(())
    });
}

const KNOCK: &str = "
apiVersion: batch/v1
kind: CronJob
metadata:
  name: knock
  annotations: {wherry.dev/request: 'GET http://hello-http:80/knock'}
spec:
  schedule: \"@every 2s\"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: c}]}}}}
";

#[test]
fn a_schedule_sends_a_request_to_a_handler() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start_hello(&cluster);
    let file = cluster.data_dir.join("knock.yaml");
    std::fs::write(&file, KNOCK).expect("the folder is writable");
    cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
    wait_for("the handler has answered", || {
        let done = jsonpath(&cluster, "cronjob/knock", "{.status.lastSuccessfulTime}");
        (!done.is_empty()).then_some(())
    });
    wait_for("an event says so", || {
        let described = cluster.kubectl_ok(&["describe", "cronjob", "knock"]);
        described.contains("GET http://hello-http:80/knock was answered").then_some(())
    });
    assert_eq!(jsonpath(&cluster, "jobs", "{.items[*].metadata.name}"), "", "no Job is made");
}

/// The processes of one node: its agent and its workers.
fn pids_of_node(cluster: &Dev, node: &str) -> Vec<i32> {
    let mut pids = cluster.pids_of("node");
    pids.extend(cluster.pids_of("worker"));
    pids.retain(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(&line).split('\0').any(|argument| argument.split('/').any(|part| part == node))
    });
    pids
}

/// Processes that stand still until dropped.
struct Frozen(Vec<i32>);

impl Frozen {
    fn new(pids: Vec<i32>) -> Frozen {
        pids.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
        Frozen(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    }
}

/// In how many seconds is printed, not held: other tests run on the same processors.
#[test]
fn a_node_that_falls_silent_loses_its_pods() {
    if !l3() {
        return;
    }
    let cluster = two_nodes();
    start_hello(&cluster);
    let pods =
        || jsonpath(&cluster, "pods", "{range .items[*]}{.metadata.name}={.spec.nodeName} {end}");
    let nodes: Vec<String> = jsonpath(&cluster, "nodes", "{.items[*].metadata.name}")
        .split(' ')
        .map(str::to_owned)
        .collect();
    let silent = nodes.last().expect("there are two").clone();
    wait_for("a Pod is on the node", || pods().contains(&silent).then_some(()));
    let pids = pids_of_node(&cluster, &silent);
    assert!(!pids.is_empty(), "the node has processes");
    let frozen = Frozen::new(pids);
    let begun = Instant::now();
    wait_for("the node is called lost", || {
        let ready = "{.status.conditions[?(@.type=='Ready')].status}";
        (jsonpath(&cluster, &format!("node/{silent}"), ready) == "Unknown").then_some(())
    });
    let noticed = begun.elapsed();
    wait_for("its endpoints leave", || {
        let slices = "{.items[*].endpoints[?(@.conditions.ready==true)].nodeName}";
        let ready = cluster.kubectl_ok(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=hello-http",
            "-o",
            &format!("jsonpath={slices}"),
        ]);
        (!ready.contains(&silent)).then_some(())
    });
    let left = begun.elapsed();
    wait_for("two Pods are ready elsewhere", || {
        let ready = jsonpath(&cluster, "deployment/hello-http", "{.status.readyReplicas}");
        (ready == "2").then_some(())
    });
    let moved = begun.elapsed();
    eprintln!("noticed after {noticed:?}, endpoints left after {left:?}, moved after {moved:?}");
    drop(frozen);
}
