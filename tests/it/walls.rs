//! The walls around a worker's process, seen from outside.

use nix::sys::signal::Signal;
use wherry_tests::{Dev, l3, signal, wait_for};

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
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=60s"]);
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
