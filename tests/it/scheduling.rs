//! The scheduler with real processes: a Pod goes where what its image imports is offered, and
//! `wherry why` says what was decided.

use std::process::Command;

use wherry_tests::{Dev, Options, l3, text, wait_for, wherry};

/// A program that needs what no node of this build offers.
const VISION: &str = r#"(module (import "acme:vision" "detect" (func)) (func (export "_start")))"#;

/// A node that nobody runs, of another build: it offers what the program needs.
const ANOTHER: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: camera
  annotations: {wherry.dev/offers: '["acme:vision"]'}
status:
  allocatable: {cpu: "4", memory: 4Gi, pods: "10"}
  conditions: [{type: Ready, status: "True", reason: Hollow}]
"#;

/// What `wherry why` prints.
#[track_caller]
fn why(cluster: &Dev, pod: &str) -> String {
    let mut command = Command::new(wherry());
    command.args(["why", pod, "--kubeconfig"]).arg(&cluster.kubeconfig);
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    println!("wherry why {pod}\n{said}");
    said
}

#[test]
fn a_pod_goes_where_its_imports_are_offered_and_why_says_so() {
    if !l3() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wasm = wat::parse_str(VISION).expect("a module");
    std::fs::write(folder.path().join("vision.wasm"), wasm).expect("the folder is writable");
    let images = Some(folder.path().to_owned());
    let cluster = Dev::start_with(Options { nodes: 2, images, ..Options::default() });
    let run = |pod: &str| cluster.kubectl_ok(&["run", pod, "--image=vision:dev"]);
    let field = |pod: &str, path: &str| {
        cluster.kubectl_ok(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
    };

    // Nobody knows the image: a node is given it, and has to refuse it.
    run("first");
    wait_for("the Pod says what its image lacks", || {
        let reason = field("first", ".status.containerStatuses[0].state.waiting.reason");
        (reason == "ImportMissing").then_some(())
    });
    let node = field("first", ".spec.nodeName");
    assert!(
        why(&cluster, "pod/first").starts_with(&format!("Pod default/first is on node {node}"))
    );
    wait_for("the node tells the others", || {
        let path = r"jsonpath={.metadata.annotations.wherry\.dev/refused-images}";
        let told = cluster.kubectl_ok(&["get", "node", &node, "-o", path]);
        (told == r#"{"vision:dev":["acme:vision detect"]}"#).then_some(())
    });

    // From then on it goes to no node that offers as little.
    run("second");
    let sentence = "0/2 nodes are available: 2 node(s) didn't offer acme:vision detect, which an \
        image imports.";
    wait_for("the second Pod waits for a node", || {
        let message = field("second", ".status.conditions[?(@.type=='PodScheduled')].message");
        (message == sentence).then_some(())
    });
    wait_for("an event says so, too", || {
        let described = cluster.kubectl_ok(&["describe", "pod", "second"]);
        (described.contains("FailedScheduling") && described.contains(sentence)).then_some(())
    });
    let said = why(&cluster, "pod/second");
    assert!(said.starts_with(&format!("Pod default/second waits for a node: {sentence}\n")));
    for node in ["node-1", "node-2"] {
        let verdict = format!("{node}  no: node(s) didn't offer acme:vision detect");
        assert!(said.contains(&verdict), "{said}");
    }

    let file = cluster.data_dir.join("another.yaml");
    std::fs::write(&file, ANOTHER).expect("the folder is writable");
    cluster.kubectl_ok(&["create", "-f", file.to_str().expect("a plain path")]);
    wait_for("it goes where the import is offered", || {
        (field("second", ".spec.nodeName") == "camera").then_some(())
    });
    assert_eq!(
        why(&cluster, "pod/second").lines().next(),
        Some("Pod default/second is on node camera.")
    );
}
