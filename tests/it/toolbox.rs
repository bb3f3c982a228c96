//! Manifests written for containers of a shell, as they are, and sockets of guests in the cluster's
//! network.

use wherry_tests::{Dev, l3, text, wait_for};

const AGNHOST: u16 = 30084;

/// Waits until a Pod has ended, and returns its log.
fn log_of_ended(cluster: &Dev, pod: &str) -> String {
    wait_for("the Pod has ended", || {
        let phase = cluster.kubectl_ok(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"]);
        (phase == "Succeeded" || phase == "Failed").then_some(())
    });
    cluster.kubectl_ok(&["logs", pod])
}

/// Applies a manifest from its text.
fn apply(cluster: &Dev, text: &str) {
    let file = cluster.data_dir.join("manifest.yaml");
    std::fs::write(&file, text).expect("the folder can be written");
    let file = file.to_str().expect("temporary folders have plain names");
    cluster.kubectl_ok(&["apply", "-f", file]);
}

#[test]
fn shells_have_their_files_variables_and_exit_codes() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["create", "configmap", "settings", "--from-literal=color=blue"]);
    apply(
        &cluster,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: script}
spec:
  restartPolicy: Never
  containers:
    - name: script
      image: busybox
      env: [{name: NAME, value: world}]
      args:
        - sh
        - -c
        - |
          echo "hello $NAME"
          cat /etc/settings/color && echo
          i=0; while [ $i -lt 3 ]; do i=$((i+1)); echo $i; done | tail -n 1
          echo kept > /tmp/file && ls /tmp
          tar cf - -C /etc settings/color | tar tf -
          hostname; wget -q -T 2 -O - http://169.254.169.254/ || echo refused
          exit 7
      volumeMounts: [{name: settings, mountPath: /etc/settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
"#,
    );
    let log = log_of_ended(&cluster, "script");
    let expected = "hello world\nblue\n3\nfile\nsettings/color\nscript\n";
    assert!(log.starts_with(expected), "{log}");
    assert!(log.contains("a link-local address, which is never reachable from a Pod"), "{log}");
    assert!(log.ends_with("refused\n"), "{log}");
    let code = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(cluster.kubectl_ok(&["get", "pod", "script", "-o", code]), "7");
    let uid = cluster.kubectl_ok(&["get", "pod", "script", "-o", "jsonpath={.metadata.uid}"]);
    let files = cluster.data_dir.join("nodes/node-1/pods").join(uid);
    wait_for("nothing but its log is left on the node", || (!files.exists()).then_some(()));
    assert_eq!(cluster.kubectl_ok(&["logs", "script"]), log);

    apply(
        &cluster,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: told}
spec:
  restartPolicy: Never
  initContainers:
    - name: writer
      image: busybox
      command: [sh, -c, "echo \"COLOR='dark blue'\" > /shared/settings.env"]
      volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
    - name: reader
      image: busybox
      command: [sh, -c, 'echo "$COLOR, $(SHADE), ${ABSENT-nothing}"']
      env:
        - name: COLOR
          valueFrom: {fileKeyRef: {volumeName: shared, path: settings.env, key: COLOR}}
        - {name: SHADE, value: "very $(COLOR)"}
        - name: ABSENT
          valueFrom: {fileKeyRef: {volumeName: shared, path: x, key: A, optional: true}}
    - name: waits
      image: busybox
      command: ["true"]
      env:
        - name: MISSING
          valueFrom: {fileKeyRef: {volumeName: shared, path: settings.env, key: MISSING}}
  volumes: [{name: shared, emptyDir: {}}]
"#,
    );
    let log = ["logs", "told", "-c", "reader"];
    let log = wait_for("the file was read", || {
        let output = cluster.kubectl(&log);
        (output.status.success() && !output.stdout.is_empty()).then(|| text(&output.stdout))
    });
    assert_eq!(log, "dark blue, very dark blue, nothing\n");
    let why = r#"jsonpath={.status.containerStatuses[?(@.name=="waits")].state.waiting}"#;
    let why = wait_for("it is said what is missing", || {
        let why = cluster.kubectl_ok(&["get", "pod", "told", "-o", why]);
        why.contains("CreateContainerConfigError").then_some(why)
    });
    assert!(why.contains(r#"environment variable key \"MISSING\" not found in file"#), "{why}");
}

#[test]
fn a_test_server_answers_and_fails_its_probe_when_told_to() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    apply(
        &cluster,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  containers:
    - name: server
      image: registry.k8s.io/e2e-test-images/agnhost:2.53
      args: [netexec, --http-port=8080, --udp-port=8081]
      livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 60, failureThreshold: 2}
    - name: health
      image: registry.k8s.io/e2e-test-images/agnhost:2.53
      args: [grpc-health-checking, --port, "5000", --http-port=8090]
      readinessProbe: {grpc: {port: 5000}, periodSeconds: 1, timeoutSeconds: 60}
    - name: pause
      image: registry.k8s.io/pause:3.10
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports:
    - {name: http, port: 80, targetPort: 8080, nodePort: 30084}
    - {name: udp, port: 81, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  containers:
    - name: client
      image: busybox
      command: [sh, -c]
      args:
        - |
          until nc -z server 80; do sleep 0.2; done
          printf 'GET /hostname HTTP/1.0\r\n\r\n' | nc server 80 | tail -n 1; echo
          until echo 'echo by datagram' | nc -u -w 1 server 81 | grep datagram; do sleep 0.2; done; echo
          nc -w 1 server 82 || echo closed
          (nc -l -p 9000 | cat) &
          until echo over loopback | nc -w 0.2 localhost 9000; do sleep 0.2; done; wait
"#,
    );
    let answer = |path: &str| cluster.get(AGNHOST, path);
    let host = wait_for("the server answers", || {
        answer("/hostname").filter(|(status, _)| *status == 200).map(|answer| answer.1)
    });
    assert_eq!(host, "server");
    wait_for("it says what it is told to", || {
        (answer("/echo?msg=hi+there") == Some((200, "hi there".to_owned()))).then_some(())
    });
    let log = log_of_ended(&cluster, "client");
    for part in ["server\n", "by datagram\n", "closed\n", "over loopback\n"] {
        assert!(log.contains(part), "{part} is missing in:\n{log}");
    }
    let ready = "jsonpath={.status.containerStatuses[?(@.name==\"health\")].ready}";
    wait_for("the health check of gRPC passes", || {
        (cluster.kubectl_ok(&["get", "pod", "server", "-o", ready]) == "true").then_some(())
    });
    answer("/healthz/fail");
    let restarts = "jsonpath={.status.containerStatuses[?(@.name==\"server\")].restartCount}";
    wait_for("the probe restarts the container", || {
        let count = cluster.kubectl_ok(&["get", "pod", "server", "-o", restarts]);
        (count != "0" && !count.is_empty()).then_some(())
    });
    wait_for("it answers again", || answer("/healthz").filter(|(status, _)| *status == 200));
}
