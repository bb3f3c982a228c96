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
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=180s"]);
    ok(&["-n", "shop", "set", "env", "deployment/web", "A=1"]);
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=180s"]);
    ok(&["-n", "shop", "rollout", "undo", "deployment/web"]);
    ok(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=180s"]);
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
    ok(&["delete", "namespace", "shop", "--timeout=180s"]);
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

#[test]
fn applies_on_the_server_share_an_object() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("the folder is writable");
        path.to_str().expect("a plain path").to_owned()
    };
    let deployment = |replicas: u32| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: \
             {replicas}\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: \
             {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - {{name: c, image: \
             'hello-http:dev'}}\n"
        )
    };
    let one = manifest("one.yaml", &deployment(1));
    let two = manifest("two.yaml", &deployment(2));
    let ok = |arguments: &[&str]| cluster.kubectl_ok(arguments);
    let applied = "deployment.apps/web serverside-applied\n";
    assert_eq!(ok(&["apply", "--server-side", "-f", &one]), applied);
    let others = ["apply", "--server-side", "--field-manager=other", "-f", &two];
    let refused = cluster.kubectl(&others);
    assert_eq!(refused.status.code(), Some(1));
    let why = "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas";
    assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
    let replicas = || ok(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]);
    assert_eq!(replicas(), "1");
    assert_eq!(ok(&[&others[..], &["--force-conflicts"]].concat()), applied);
    assert_eq!(replicas(), "2");
    // What kubectl applied itself before, it may go on with on the server.
    let map = manifest(
        "map.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1', b: '1'}\n",
    );
    assert_eq!(ok(&["apply", "-f", &map]), "configmap/m created\n");
    assert_eq!(ok(&["apply", "-f", &map]), "configmap/m unchanged\n");
    let less = manifest(
        "less.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '2'}\n",
    );
    assert_eq!(ok(&["apply", "--server-side", "-f", &less]), "configmap/m serverside-applied\n");
    assert_eq!(ok(&["get", "configmap", "m", "-o", "jsonpath={.data}"]), "{\"a\":\"2\"}");
    let dry = ok(&["apply", "--server-side", "--dry-run=server", "-f", &map]);
    assert_eq!(dry, "configmap/m serverside-applied (server dry run)\n");
    assert_eq!(ok(&["get", "configmap", "m", "-o", "jsonpath={.data}"]), "{\"a\":\"2\"}");
    // A field that is not there.
    let wrong = manifest("wrong.yaml", &deployment(1).replace("replicas:", "replicsa:"));
    let refused = cluster.kubectl(&["apply", "-f", &wrong]);
    let why = "unknown field \"spec.replicsa\" (did you mean \"replicas\"?)";
    assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
    let refused = cluster.kubectl(&["apply", "--server-side", "-f", &wrong]);
    let why = ".spec.replicsa: field not declared in schema";
    assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
    let explained = ok(&["explain", "deployment.spec.template.spec.containers.ports.protocol"]);
    assert!(explained.contains("FIELD: protocol <string>"), "{explained}");
}
