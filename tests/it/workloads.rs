//! StatefulSets, DaemonSets, Deployments and Jobs with real processes and stock kubectl: rollouts,
//! also under load, and data that outlives Pods and nodes.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use wherry_tests::load::Client;
use wherry_tests::{Dev, Options, l3, signal, wait_for};

/// The node port of `hello-http`.
const HELLO: u16 = 30080;

fn manifest(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n{spec}  template:\n    \
         metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         containers:\n      - name: c\n        image: hello-http:dev\n        \
         imagePullPolicy: IfNotPresent\n"
    )
}

/// For Pods that are given up a second after their node fell silent.
const IMPATIENT: &str = "      tolerations: [{key: node.kubernetes.io/unreachable, \
    operator: Exists, effect: NoExecute, tolerationSeconds: 1}]\n";

fn apply(cluster: &Dev, text: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("manifest.yaml");
    std::fs::write(&path, text).expect("the folder is writable");
    cluster.kubectl_ok(&["apply", "-f", path.to_str().expect("a plain path")]);
}

fn rolled_out(cluster: &Dev, what: &str) -> String {
    cluster.kubectl_ok(&["rollout", "status", what, "--timeout=180s"])
}

/// The value of the variable A in the template.
fn variable(cluster: &Dev, what: &str) -> String {
    let path = "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"A\")].value}";
    cluster.kubectl_ok(&["get", what, "-o", path])
}

/// Waits until the history has these revisions, the oldest first.
#[track_caller]
fn has_revisions(cluster: &Dev, what: &str, expected: &[u32]) {
    wait_for(&format!("{what} has the revisions {expected:?}"), || {
        let history = cluster.kubectl_ok(&["rollout", "history", what]);
        let number = |line: &str| line.split_whitespace().next()?.parse().ok();
        let numbers: Vec<u32> = history.lines().filter_map(number).collect();
        (numbers == expected).then_some(())
    });
}

#[test]
fn rollouts_are_told_undone_and_restarted() {
    if !l3() {
        return;
    }
    let cluster = Dev::start_with(Options { nodes: 2, ..Options::default() });
    apply(&cluster, &manifest("Deployment", "web", "  replicas: 2\n"));
    apply(&cluster, &manifest("StatefulSet", "db", "  replicas: 2\n  serviceName: db\n"));
    apply(&cluster, &manifest("DaemonSet", "log", ""));
    for (what, end) in [
        ("deployment/web", "deployment \"web\" successfully rolled out\n"),
        ("statefulset/db", ""),
        ("daemonset/log", "daemon set \"log\" successfully rolled out\n"),
    ] {
        assert!(rolled_out(&cluster, what).ends_with(end), "{what}");
        cluster.kubectl_ok(&["set", "env", what, "A=1"]);
        rolled_out(&cluster, what);
        cluster.kubectl_ok(&["set", "env", what, "A=2"]);
        rolled_out(&cluster, what);
        has_revisions(&cluster, what, &[1, 2, 3]);
        let second = cluster.kubectl_ok(&["rollout", "history", what, "--revision=2"]);
        assert!(second.contains("A:\t1"), "{what}: {second}");

        cluster.kubectl_ok(&["rollout", "undo", what]);
        rolled_out(&cluster, what);
        assert_eq!(variable(&cluster, what), "1", "{what}");
        // The old one is the newest.
        has_revisions(&cluster, what, &[1, 3, 4]);
        cluster.kubectl_ok(&["rollout", "undo", what, "--to-revision=3"]);
        rolled_out(&cluster, what);
        assert_eq!(variable(&cluster, what), "2", "{what}");

        cluster.kubectl_ok(&["rollout", "restart", what]);
        rolled_out(&cluster, what);
        let path = "jsonpath={.spec.template.metadata.annotations}";
        let annotations = cluster.kubectl_ok(&["get", what, "-o", path]);
        assert!(annotations.contains("kubectl.kubernetes.io/restartedAt"), "{annotations}");
    }
    let pods = cluster.kubectl_ok(&["get", "pods", "-l", "app=db", "-o", "name"]);
    assert_eq!(pods, "pod/db-0\npod/db-1\n");
    wait_for("both nodes have a Pod of the DaemonSet", || {
        let row = cluster.kubectl_ok(&["get", "daemonset", "log", "--no-headers"]);
        let counts: Vec<&str> = row.split_whitespace().skip(1).take(5).collect();
        (counts == ["2"; 5]).then_some(())
    });

    cluster.kubectl_ok(&["rollout", "pause", "deployment/web"]);
    cluster.kubectl_ok(&["set", "env", "deployment/web", "A=3"]);
    wait_for("the Deployment says that it is paused", || {
        let shown = cluster.kubectl_ok(&["get", "deployment", "web", "-o", "yaml"]);
        shown.contains("DeploymentPaused").then_some(())
    });
    wait_for("nothing has rolled while it is paused", || {
        let updated = "jsonpath={.status.updatedReplicas}";
        let updated = cluster.kubectl_ok(&["get", "deployment", "web", "-o", updated]);
        (updated.is_empty() || updated == "0").then_some(())
    });
    cluster.kubectl_ok(&["rollout", "resume", "deployment/web"]);
    rolled_out(&cluster, "deployment/web");
    assert_eq!(variable(&cluster, "deployment/web"), "3");
}

#[test]
fn rollouts_under_load_fail_no_request() {
    if !l3() {
        return;
    }
    let cluster = Dev::start_with(Options { nodes: 2, ..Options::default() });
    let web = "deployment/hello-http";
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["scale", web, "--replicas=4"]);
    rolled_out(&cluster, web);
    wait_for("the node port answers", || {
        cluster.get(HELLO, "/bench").filter(|(status, _)| *status == 200)
    });
    let load = Client::start((cluster.address, HELLO).into(), "/bench");
    for round in ["ROUND=1", "ROUND=2", "ROUND=3"] {
        cluster.kubectl_ok(&["set", "env", web, round]);
        rolled_out(&cluster, web);
    }
    cluster.kubectl_ok(&["rollout", "undo", web]);
    rolled_out(&cluster, web);
    cluster.kubectl_ok(&["rollout", "restart", web]);
    rolled_out(&cluster, web);
    cluster.kubectl_ok(&["scale", web, "--replicas=2"]);
    wait_for("only two Pods are left", || {
        let names = cluster.kubectl_ok(&["get", "pods", "-l", "app=hello-http", "-o", "name"]);
        (names.lines().count() == 2).then_some(())
    });
    let seen = load.finish().expect("the client counts");
    println!(
        "{} requests over five rollouts and a scale-down: {} failed, p99 {:.1} ms",
        seen.answered(),
        seen.failures.len(),
        seen.p99()
    );
    assert!(seen.failures.is_empty(), "{:#?}", seen.failures);
    assert!(seen.answered() > 100, "{} requests", seen.answered());
}

/// Where the data of a claim is: its node, and the folder there.
fn data_of(cluster: &Dev, claim: &str) -> (String, PathBuf) {
    let volume = cluster.kubectl_ok(&["get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}"]);
    let path = "jsonpath={.spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0]\
        .values[0]}";
    let node = cluster.kubectl_ok(&["get", "pv", &volume, "-o", path]);
    let folder = cluster.data_dir.join("nodes").join(&node).join("local-volumes").join(volume);
    (node, folder)
}

fn field(cluster: &Dev, pod: &str, path: &str) -> String {
    let output = cluster.kubectl(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")]);
    wherry_tests::text(&output.stdout)
}

/// The process of a node's agent, if it is there.
fn agent(cluster: &Dev, node: &str) -> Option<i32> {
    let name = format!("--name={node}");
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        wherry_tests::text(&line).split('\0').any(|argument| argument == name)
    };
    cluster.pids_of("node").into_iter().find(is_it)
}

#[test]
fn a_stateful_set_keeps_its_data_over_the_deaths_of_pods_and_nodes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start_with(Options { nodes: 3, ..Options::default() });
    let claims = "  replicas: 2\n  serviceName: db\n  volumeClaimTemplates:\n  \
        - metadata: {name: data}\n    spec: {accessModes: [ReadWriteOnce], \
        resources: {requests: {storage: 10Mi}}}\n";
    let mounts = "        volumeMounts: [{name: data, mountPath: /data}]\n";
    apply(&cluster, &(manifest("StatefulSet", "db", claims) + mounts + IMPATIENT));
    rolled_out(&cluster, "statefulset/db");
    wait_for("both claims say that they are bound", || {
        let bound = cluster.kubectl_ok(&["get", "pvc", "-o", "jsonpath={.items[*].status.phase}"]);
        (bound == "Bound Bound").then_some(())
    });
    let (node, folder) = data_of(&cluster, "data-db-0");
    assert_eq!(field(&cluster, "db-0", ".spec.nodeName"), node);
    std::fs::write(folder.join("rows"), "42").expect("the node made the folder");

    let first = field(&cluster, "db-0", ".metadata.uid");
    let again = |before: &str| {
        wait_for("db-0 is there again and ready", || {
            let uid = field(&cluster, "db-0", ".metadata.uid");
            let ready = field(&cluster, "db-0", ".status.containerStatuses[0].ready");
            (!uid.is_empty() && uid != before && ready == "true").then_some(uid)
        })
    };
    // kubectl would wait for the name to be free: it gets the Pod and then lists the name, and if the
    // next one has come in between, it waits for that one.
    cluster.kubectl_ok(&["delete", "pod", "db-0", "--wait=false"]);
    let second = again(&first);
    assert_eq!(field(&cluster, "db-0", ".spec.nodeName"), node, "it returns to its data");

    // The agent is killed: what runs goes on, and the next agent finds it.
    let killed = agent(&cluster, &node).expect("the node has an agent");
    signal(killed, Signal::SIGKILL);
    let silent = wait_for("another agent serves the node", || {
        agent(&cluster, &node).filter(|next| *next != killed)
    });
    assert_eq!(field(&cluster, "db-0", ".metadata.uid"), second, "it is the same Pod");

    // The node falls silent: its Pod is given up, and no other one comes while it may still run.
    signal(silent, Signal::SIGSTOP);
    wait_for("the Pod of the silent node is given up", || {
        let deleted = field(&cluster, "db-0", ".metadata.deletionTimestamp");
        (!deleted.is_empty()).then_some(())
    });
    assert_eq!(field(&cluster, "db-0", ".metadata.uid"), second, "nothing took its name");
    signal(silent, Signal::SIGCONT);
    again(&second);
    assert_eq!(field(&cluster, "db-0", ".spec.nodeName"), node);
    assert_eq!(std::fs::read_to_string(folder.join("rows")).expect("kept"), "42");

    let grown = "{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"20Mi\"}}}}";
    cluster.kubectl_ok(&["patch", "pvc", "data-db-0", "-p", grown]);
    wait_for("the claim has grown", || {
        let size = "jsonpath={.status.capacity.storage}";
        (cluster.kubectl_ok(&["get", "pvc", "data-db-0", "-o", size]) == "20Mi").then_some(())
    });
    cluster.kubectl_ok(&["delete", "statefulset", "db", "--timeout=180s"]);
    cluster.kubectl_ok(&["delete", "pvc", "--all", "--timeout=180s"]);
    wait_for("the volumes are gone", || {
        cluster.kubectl_ok(&["get", "pv", "-o", "name"]).is_empty().then_some(())
    });
}

#[test]
fn an_indexed_job_works_off_its_indexes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    apply(
        &cluster,
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: sum}\nspec:\n  completions: 3\n  \
         parallelism: 2\n  completionMode: Indexed\n  template:\n    spec:\n      \
         restartPolicy: Never\n      containers:\n      - {name: c, image: 'batch:dev', \
         imagePullPolicy: IfNotPresent, args: ['1000']}\n",
    );
    cluster.kubectl_ok(&["wait", "job/sum", "--for=condition=complete", "--timeout=180s"]);
    let done = cluster.kubectl_ok(&["get", "job", "sum", "-o", "jsonpath={.status}"]);
    assert!(done.contains("\"completedIndexes\":\"0-2\""), "{done}");
    assert!(done.contains("\"succeeded\":3"), "{done}");
    let finalizers = "jsonpath={.items[*].metadata.finalizers}";
    wait_for("every Pod was counted and let go", || {
        let held = cluster.kubectl_ok(&["get", "pods", "-l", "job-name=sum", "-o", finalizers]);
        (!held.contains("job-tracking")).then_some(())
    });
    cluster.kubectl_ok(&["delete", "job", "sum", "--timeout=180s"]);
    wait_for("its Pods are gone", || {
        let left = cluster.kubectl_ok(&["get", "pods", "-l", "job-name=sum", "-o", "name"]);
        left.is_empty().then_some(())
    });

    // One that runs when it is deleted must not stay because of its finalizer.
    cluster.kubectl_ok(&["create", "job", "loop", "--image=hello-http:dev"]);
    wait_for("the Pod runs", || {
        let phase = "jsonpath={.items[*].status.phase}";
        let phase = cluster.kubectl_ok(&["get", "pods", "-l", "job-name=loop", "-o", phase]);
        (phase == "Running").then_some(())
    });
    cluster.kubectl_ok(&["delete", "job", "loop", "--cascade=foreground", "--timeout=180s"]);
    let left = cluster.kubectl_ok(&["get", "pods", "-l", "job-name=loop", "-o", "name"]);
    assert_eq!(left, "");
}

#[test]
fn a_pod_that_names_its_node_still_has_to_fit() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let pod = |name: &str, cpu: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node-1\n  \
             containers:\n  - name: c\n    image: hello-http:dev\n    \
             imagePullPolicy: IfNotPresent\n    resources: {{requests: {{cpu: \"{cpu}\"}}}}\n---\n"
        )
    };
    apply(&cluster, &(pod("large", "1000") + &pod("small", "10m")));
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "--timeout=180s", "pod/small"]);
    let status = "jsonpath={.status.phase} {.status.reason} {.status.message}";
    let status = wait_for("it is refused", || {
        let status = cluster.kubectl_ok(&["get", "pod", "large", "-o", status]);
        status.starts_with("Failed").then_some(status)
    });
    let why =
        "Failed OutOfcpu Pod was rejected: Node didn't have enough resource: cpu, requested: ";
    assert!(status.starts_with(why), "{status}");
    let shown = cluster.kubectl_ok(&["get", "pod", "large", "--no-headers"]);
    assert!(shown.contains("OutOfcpu"), "{shown}");
    wait_for("an event tells of the agent's start", || {
        let events = cluster.kubectl_ok(&["describe", "node", "node-1"]);
        events.contains("Starting the node's agent.").then_some(())
    });
}
