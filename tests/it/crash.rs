//! kill -9 of a cluster's processes: what is stored stays, what runs goes on, and requests are
//! answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use wherry_tests::{Dev, Options, http_get, l3, signal, wait_for};

const HELLO: u16 = 30080;

/// Sends one request after another until told to stop; counts answers and failures.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(cluster: &Dev) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = (cluster.address, HELLO).into();
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match http_get(address, "/bench") {
                    Some((200, _)) => _ = count.fetch_add(1, Ordering::Relaxed),
                    other => failures.push(format!("{other:?}")),
                }
            }
            failures
        });
        Load { stop, answered, thread }
    }

    /// Waits for `more` further answers.
    fn wait_for_answers(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_for("requests are answered", || {
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load ends")
    }
}

fn start_hello(cluster: &Dev) {
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    wait_for("the NodePort answers", || {
        cluster.get(HELLO, "/bench").filter(|(status, _)| *status == 200)
    });
}

#[test]
fn a_killed_agent_costs_no_request_and_finds_its_worker_again() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start_hello(&cluster);
    let workers = cluster.pids_of("worker");
    assert_eq!(workers.len(), 1, "one worker hosts the namespace");
    let agents = cluster.pids_of("node");
    assert_eq!(agents.len(), 1, "one agent");

    let load = Load::start(&cluster);
    load.wait_for_answers(50);
    signal(agents[0], Signal::SIGKILL);
    wait_for("a new agent", || {
        let now = cluster.pids_of("node");
        (now.len() == 1 && now != agents).then_some(())
    });
    load.wait_for_answers(200);
    // The new agent manages what it found: it takes a new replica and its Pod answers.
    cluster.kubectl_ok(&["scale", "deployment/hello-http", "--replicas=3"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    load.wait_for_answers(50);
    assert_eq!(load.finish(), Vec::<String>::new(), "not one request fails");
    assert_eq!(cluster.pids_of("worker"), workers, "the worker is the same process");
    let restarts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    let restarts = cluster.kubectl_ok(&["get", "pods", "-o", restarts]);
    assert_eq!(restarts, "0 0 0", "no container was started again");
}

#[test]
fn everything_killed_under_load_comes_back_with_all_objects() {
    if !l3() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = || Options { data_dir: Some(folder.path().to_owned()), ..Options::default() };
    let mut cluster = Dev::start_with(options());
    start_hello(&cluster);
    let load = Load::start(&cluster);
    load.wait_for_answers(20);
    // Every acknowledged ConfigMap must be there afterwards.
    let names: Vec<String> = (0..20).map(|number| format!("kept-{number}")).collect();
    for name in &names {
        cluster.kubectl_ok(&["create", "configmap", name, "--from-literal=a=b"]);
    }
    cluster.kill_everything();
    load.finish();

    let cluster = Dev::start_with(options());
    let kept = cluster.kubectl_ok(&["get", "configmaps", "-o", "name"]);
    for name in &names {
        assert!(kept.contains(&format!("configmap/{name}\n")), "{name} is missing: {kept}");
    }
    wait_for("requests are answered again", || {
        cluster.get(HELLO, "/bench").filter(|(status, _)| *status == 200)
    });
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
}

#[test]
fn a_killed_server_is_back_and_traffic_never_noticed() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    start_hello(&cluster);
    let load = Load::start(&cluster);
    let server = cluster.pids_of("server");
    signal(server[0], Signal::SIGKILL);
    wait_for("the API answers again", || {
        let output = cluster.kubectl(&["get", "--raw", "/readyz"]);
        (cluster.pids_of("server") != server && output.status.success()).then_some(())
    });
    load.wait_for_answers(50);
    assert_eq!(load.finish(), Vec::<String>::new(), "not one request fails");
    let pods = cluster.kubectl_ok(&["get", "pods", "-o", "name"]);
    assert_eq!(pods.lines().count(), 2);
}
