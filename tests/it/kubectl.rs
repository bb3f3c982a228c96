//! What stock kubectl does with a cluster, end to end.

use wherry_tests::{Dev, l3, text, wait_for};

#[test]
fn creates_patches_labels_and_deletes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let ok = |arguments: &[&str]| cluster.kubectl_ok(arguments);
    assert_eq!(ok(&["create", "namespace", "shop"]), "namespace/shop created\n");
    ok(&["-n", "shop", "create", "configmap", "prices", "--from-literal=tea=3"]);
    ok(&["-n", "shop", "create", "secret", "generic", "till", "--from-literal=pin=1234"]);
    ok(&["-n", "shop", "create", "deployment", "web", "--image=hello-http:dev", "--replicas=2"]);
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=60s"]);
    ok(&["-n", "shop", "set", "env", "deployment/web", "A=1"]);
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=60s"]);
    ok(&["-n", "shop", "rollout", "undo", "deployment/web"]);
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=60s"]);
    ok(&["-n", "shop", "label", "configmap", "prices", "kind=list"]);
    let listed = ok(&["-n", "shop", "get", "configmaps", "-l", "kind=list", "-o", "name"]);
    assert_eq!(listed, "configmap/prices\n");
    ok(&[
        "-n",
        "shop",
        "patch",
        "configmap",
        "prices",
        "--type=merge",
        "-p",
        "{\"data\":{\"tea\":\"4\"}}",
    ]);
    let tea = ok(&["-n", "shop", "get", "configmap", "prices", "-o", "jsonpath={.data.tea}"]);
    assert_eq!(tea, "4");
    let described = ok(&["-n", "shop", "describe", "deployment", "web"]);
    assert!(described.contains("2 available"), "{described}");
    ok(&["delete", "namespace", "shop", "--timeout=60s"]);
    let gone = cluster.kubectl(&["get", "namespace", "shop"]);
    let want = "Error from server (NotFound): namespaces \"shop\" not found\n";
    assert_eq!(text(&gone.stderr), want);
}

#[test]
fn an_image_that_cannot_run_says_why() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["run", "missing", "--image=no-such-image:dev"]);
    wait_for("the Pod cannot pull its image", || {
        let row = cluster.kubectl_ok(&["get", "pod", "missing", "--no-headers"]);
        (row.contains("ErrImagePull") || row.contains("ImagePullBackOff")).then_some(())
    });
    wait_for("an event names the image", || {
        let described = cluster.kubectl_ok(&["describe", "pod", "missing"]);
        described.contains("no-such-image:dev").then_some(())
    });
}
