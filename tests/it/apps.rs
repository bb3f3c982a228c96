//! Each sample app, applied by kubectl to a real cluster.

use std::collections::BTreeSet;

use wherry_tests::traffic::grpc::Greeter;
use wherry_tests::{Dev, l3, wait_for};

const HELLO: u16 = 30080;
const CALLER: u16 = 30081;
const TOOLBOX: u16 = 30083;
const ATTACKED: u16 = 30085;
const GREETER: u16 = 30086;
const GREETER_CALLER: u16 = 30087;

#[test]
fn hello_http_answers_from_each_replica_in_turn() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let applied = cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    assert_eq!(applied, "deployment.apps/hello-http created\nservice/hello-http created\n");
    let rollout =
        cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    assert!(rollout.ends_with("deployment \"hello-http\" successfully rolled out\n"), "{rollout}");
    let again = cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    assert_eq!(again, "deployment.apps/hello-http unchanged\nservice/hello-http unchanged\n");

    // Both are among any two answers in a row once the node's routes know both.
    wait_for("two answers in a row from two Pods", || {
        let bodies = (0..2).map(|_| cluster.get(HELLO, "/"));
        let bodies: Option<BTreeSet<String>> =
            bodies.map(|answer| answer.filter(|(status, _)| *status == 200).map(|a| a.1)).collect();
        bodies.filter(|bodies| bodies.len() == 2)
    });

    wait_for("the requests are in the logs", || {
        let logs = cluster.kubectl_ok(&["logs", "-l", "app=hello-http"]);
        logs.contains(" serves /").then_some(())
    });

    cluster.kubectl_ok(&["scale", "deployment/hello-http", "--replicas=4"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    wait_for("four answers in a row from four Pods", || {
        let bodies: Option<BTreeSet<_>> = (0..4).map(|_| cluster.get(HELLO, "/")).collect();
        bodies.filter(|bodies| bodies.len() == 4)
    });

    let names = cluster.kubectl_ok(&["get", "pods", "-l", "app=hello-http", "-o", "name"]);
    let first = names.lines().next().expect("a Pod").to_owned();
    cluster.kubectl_ok(&["delete", &first]);
    wait_for("the deleted Pod is replaced", || {
        let names = cluster.kubectl_ok(&["get", "pods", "-l", "app=hello-http", "-o", "name"]);
        (names.lines().count() == 4 && !names.contains(&first)).then_some(())
    });

    cluster.kubectl_ok(&["delete", "-f", "sample-apps/hello-http/app.yaml"]);
    wait_for("no Pod is left", || {
        let left = cluster.kubectl_ok(&["get", "pods", "-l", "app=hello-http", "-o", "name"]);
        left.is_empty().then_some(())
    });
}

#[test]
fn caller_repeats_what_hello_http_said() {
    if !l3() {
        return;
    }
    // On two nodes the call also crosses between nodes.
    let cluster = Dev::start_with(wherry_tests::Options { nodes: 2, ..Default::default() });
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/caller/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/caller", "--timeout=180s"]);
    wait_for("caller's answers name both Pods of hello-http", || {
        let answers: Option<BTreeSet<_>> = (0..2).map(|_| cluster.get(CALLER, "/")).collect();
        let said = "http://hello-http said: Hello from hello-http-";
        let fine = |(status, body): &(u16, String)| *status == 200 && body.starts_with(said);
        answers.filter(|answers| answers.len() == 2 && answers.iter().all(fine))
    });
}

#[test]
fn greeter_speaks_grpc_and_asks_by_it() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/greeter/app.yaml"]);
    for name in ["deployment/greeter", "deployment/greeter-caller"] {
        cluster.kubectl_ok(&["rollout", "status", name, "--timeout=180s"]);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let connect = |port| runtime.block_on(Greeter::connect((cluster.address, port).into()));
    wait_for("the caller repeats a greeting", || {
        let mut caller = connect(GREETER_CALLER).ok()?;
        let said = runtime.block_on(caller.greet("you")).ok()?;
        said.starts_with("greeter said: Hello you from greeter-").then_some(())
    });
    let mut greeter = wait_for("its own node port listens", || connect(GREETER).ok());
    let stream = greeter.greet_often("all", 3, std::time::Duration::from_millis(1));
    let said = runtime.block_on(stream).expect("a stream with its status");
    assert!(said.iter().all(|text| text.starts_with("Hello all from greeter-")), "{said:?}");
}

#[test]
fn batch_completes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/batch/app.yaml"]);
    wait_for("the Pod is Completed", || {
        let row = cluster.kubectl_ok(&["get", "pod", "batch", "--no-headers"]);
        row.contains("Completed").then_some(())
    });
    assert_eq!(cluster.kubectl_ok(&["logs", "batch"]), "78498 primes below 1000000\n");
    let phase = cluster.kubectl_ok(&["get", "pod", "batch", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(phase, "Succeeded");
}

#[test]
fn crash_loop_backs_off() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/crash-loop/app.yaml"]);
    wait_for("the Pod shows CrashLoopBackOff", || {
        let row = cluster.kubectl_ok(&["get", "pod", "crash-loop", "--no-headers"]);
        row.contains("CrashLoopBackOff").then_some(())
    });
    let path = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(cluster.kubectl_ok(&["get", "pod", "crash-loop", "-o", path]), "1");
    let logs = cluster.kubectl_ok(&["logs", "crash-loop", "--previous"]);
    assert_eq!(logs, "crash-loop: giving up\n");
}

#[test]
fn toolbox_runs_what_was_written_for_busybox() {
    if !l3() {
        return;
    }
    // On two nodes, connections also cross between them.
    let cluster = Dev::start_with(wherry_tests::Options { nodes: 2, ..Default::default() });
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/toolbox/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/toolbox", "--timeout=180s"]);
    let page = wait_for("the node port answers", || {
        cluster.get(TOOLBOX, "/").filter(|(status, _)| *status == 200).map(|answer| answer.1)
    });
    assert!(page.starts_with("<p>Welcome</p>\n<p>to</p>\n<p>toolbox-"), "{page}");
    assert_eq!(cluster.get(TOOLBOX, "/none").map(|answer| answer.0), Some(404));

    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=complete",
        "job/toolbox-visit",
        "--timeout=180s",
    ]);
    let log = cluster.kubectl_ok(&["logs", "job/toolbox-visit"]);
    // Before the Service had a Pod it was refused.
    assert!(log.ends_with("3\nresolved\n"), "{log}");

    for part in ["ImageAliased", "wherry.dev/toolbox@sha256:", "Image:         busybox:1.36"] {
        wait_for(part, || {
            let described = cluster.kubectl_ok(&["describe", "pod", "-l", "app=toolbox"]);
            described.contains(part).then_some(())
        });
    }
}

#[test]
fn attacks_end_as_they_must() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/attacks/app.yaml"]);
    wait_for("it was killed for its memory", || {
        let row = cluster.kubectl_ok(&["get", "pod", "attacks", "--no-headers"]);
        row.contains("OOMKilled").then_some(())
    });
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/attacks-http/app.yaml"]);
    wait_for("the handler answers what is harmless", || {
        cluster.get(ATTACKED, "/").filter(|(status, _)| *status == 200)
    });
    let refused = cluster.get(ATTACKED, "/headers").map(|(status, _)| status);
    assert_eq!(refused, Some(502), "more headers than anybody takes");
}
