//! The walls around a worker's process, seen from outside.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::sys::signal::Signal;
use wherry_tests::{Dev, Options, l3, signal, wait_for};

/// A line of `/proc/PID/status`.
fn status(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the kernel says so").trim().to_owned()
}

#[test]
fn a_worker_has_few_rights_and_does_not_see_what_is_the_agents() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    let worker = cluster.pids_of("worker")[0];
    assert_eq!(status(worker, "NoNewPrivs:"), "1");
    assert_eq!(status(worker, "Seccomp:"), "2", "a filter");
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    assert_eq!(status(worker, "CapEff:"), "0000000000000400", "only low ports");
    assert_eq!(status(worker, "CapBnd:"), "0000000000000400");
    let node = cluster.data_dir.join("nodes/node-1");
    let seen = |path: &str| {
        let inside = node.join(path);
        let inside = inside.strip_prefix("/").expect("the data folder is absolute");
        std::path::Path::new(&format!("/proc/{worker}/root")).join(inside)
    };
    for folder in ["pki", "checkpoint"] {
        assert!(node.join(folder).read_dir().expect("it is there").next().is_some(), "{folder}");
        let mut found = seen(folder).read_dir().expect("the cover is there");
        assert!(found.next().is_none(), "{folder} is covered");
    }
    assert_eq!(std::fs::read(node.join("images/mac.key")).expect("a key").len(), 32);
    assert!(std::fs::read(seen("images/mac.key")).expect("nothing").is_empty());
    let refused = std::fs::write(seen("images/blobs/x"), b"x").expect_err("it is read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    // A worker that died gets the same walls again.
    signal(worker, Signal::SIGKILL);
    let next = wait_for("another worker", || {
        cluster.pids_of("worker").into_iter().find(|pid| *pid != worker)
    });
    wait_for("it has its walls", || (status(next, "Seccomp:") == "2").then_some(()));
}

/// A Pod that reads a ConfigMap and writes to an emptyDir and to a claim.
const WRITER: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: hello}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - name: app
    image: busybox
    command: [sh, -c, "cat /words/word >/data/file && cat /data/file >/kept/file && cat /kept/file && echo && sleep 3600"]
    volumeMounts:
    - {name: data, mountPath: /data, subPath: below}
    - {name: kept, mountPath: /kept}
    - {name: words, mountPath: /words}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
  - {name: words, configMap: {name: words, defaultMode: 256}}
"#;

#[test]
fn each_namespace_has_a_user_of_its_own() {
    if !l3() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let enterable = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(folder.path(), enterable).expect("it is ours");
    let data_dir = Some(folder.path().join("state"));
    let cluster = Dev::start_with(Options { data_dir, ..Options::default() });
    let manifest = folder.path().join("writer.yaml");
    std::fs::write(&manifest, WRITER).expect("written");
    let manifest = manifest.to_str().expect("a plain path");
    let node = cluster.data_dir.join("nodes/node-1");
    let mut users = Vec::new();
    for namespace in ["default", "other"] {
        if namespace == "other" {
            cluster.kubectl_ok(&["create", "namespace", namespace]);
            wait_for("the namespace has an account for Pods", || {
                let account = ["get", "serviceaccount", "-n", namespace, "default"];
                cluster.kubectl(&account).status.success().then_some(())
            });
        }
        let before = cluster.pids_of("worker");
        cluster.kubectl_ok(&["apply", "-n", namespace, "-f", manifest]);
        wait_for("the Pod has written and read", || {
            let log = cluster.kubectl(&["logs", "-n", namespace, "writer"]);
            (log.stdout == b"hello\n").then_some(())
        });
        let worker = cluster.pids_of("worker").into_iter().find(|pid| !before.contains(pid));
        let worker = worker.expect("a worker of its own");
        let ids = status(worker, "Uid:");
        let ids: Vec<u32> =
            ids.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        assert!(ids.iter().all(|id| *id == ids[0] && *id >= 1_879_048_192), "{ids:?}");
        assert_eq!(status(worker, "CapEff:"), "0000000000000400", "only low ports");
        assert_eq!(status(worker, "Groups:"), "");
        let uid = ["get", "pod", "-n", namespace, "writer", "-o", "jsonpath={.metadata.uid}"];
        let pod = node.join("pods").join(cluster.kubectl_ok(&uid));
        let owner = |path: &str| {
            let found = std::fs::symlink_metadata(pod.join(path)).expect("it is there");
            (found.uid(), found.gid(), found.mode() & 0o777)
        };
        assert_eq!(owner(""), (0, ids[0], 0o710));
        assert_eq!(owner("volumes/data"), (ids[0], ids[0], 0o700));
        assert_eq!(owner("volumes/data/below/file").0, ids[0]);
        assert_eq!(owner("volumes/words/..data/word"), (ids[0], ids[0], 0o400));
        users.push((ids[0], worker));
    }
    assert_ne!(users[0].0, users[1].0);

    // The next worker of the namespace is the same user, and finds what its Pods have written.
    signal(users[1].1, Signal::SIGKILL);
    wait_for("the Pod runs again", || {
        let state = "jsonpath={range .status.containerStatuses[*]}{.restartCount} {.state}{end}";
        let state = cluster.kubectl_ok(&["get", "pod", "-n", "other", "writer", "-o", state]);
        let log = cluster.kubectl(&["logs", "-n", "other", "writer"]);
        (state.starts_with("1 {\"running\"") && log.stdout == b"hello\n").then_some(())
    });
    let next = cluster.pids_of("worker").into_iter().find(|pid| *pid != users[0].1);
    let ids = status(next.expect("another worker"), "Uid:");
    assert!(ids.starts_with(&users[1].0.to_string()), "{ids}");
}
