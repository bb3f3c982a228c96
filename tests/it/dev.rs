//! `wherry dev` and the roles by hand, as a person starts them: readiness, errors, exit codes.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use wherry_tests::{Dev, Options, l3, signal, text, wait_for, wherry};

/// Runs the binary to its end: exit code and stderr.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(wherry()).args(arguments).output().expect("the binary starts");
    (output.status.code(), text(&output.stderr))
}

#[test]
fn is_ready_when_it_says_so_and_stops_when_asked() {
    if !l3() {
        return;
    }
    let mut cluster = Dev::start_with(Options { nodes: 3, ..Options::default() });
    assert!(cluster.ready_line.ends_with(", 3 nodes Ready"), "{}", cluster.ready_line);
    let nodes = cluster.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.matches(" Ready ").count(), 3, "{nodes}");
    wait_for("each node has its own Pod CIDR", || {
        let cidrs = ["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"];
        let cidrs = cluster.kubectl_ok(&cidrs);
        let distinct: std::collections::BTreeSet<&str> = cidrs.split_whitespace().collect();
        (distinct.len() == 3).then_some(())
    });
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_second_start_on_the_same_data_is_refused() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let folder = cluster.data_dir.to_string_lossy().into_owned();
    let (code, stderr) = run(&["dev", "--data-dir", &folder, "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error[WH0006]: a cluster already runs on "), "{stderr}");
}

#[test]
fn a_used_port_is_named() {
    if !l3() {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (code, stderr) = run(&["dev", "--ephemeral", "--listen", &address]);
    assert_eq!(code, Some(1));
    let want = format!("error[WH0003]: {address} is in use by another program\n");
    assert!(stderr.starts_with(&want), "{stderr}");
    assert!(stderr.contains("--listen 127.0.0.1:0"), "{stderr}");
}

#[test]
fn wrong_flags_are_exit_code_2() {
    if !l3() {
        return;
    }
    let (code, stderr) = run(&["dev", "--nodes", "0"]);
    assert_eq!(code, Some(2));
    assert!(stderr.starts_with("error[WH0001]: invalid value '0' for '--nodes <N>'"), "{stderr}");
    assert_eq!(run(&["dev", "--no-such-flag"]).0, Some(2));
    let (code, stderr) = run(&["dev", "--ephemeral", "--images", "/no/such/folder"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--images /no/such/folder: no such folder"), "{stderr}");
}

#[test]
fn an_unusable_folder_is_named() {
    if !l3() {
        return;
    }
    let (code, stderr) = run(&["dev", "--data-dir", "/proc/wherry", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error[WH0005]: the data folder /proc/wherry cannot "), "{stderr}");
}

/// A role started by hand; asked to stop when dropped.
struct Role(std::process::Child);

impl Role {
    fn start(arguments: &[&str]) -> Role {
        let mut command = Command::new(wherry());
        command.args(arguments).stdout(Stdio::null());
        Role(command.spawn().expect("the binary starts"))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        signal(self.0.id().cast_signed(), Signal::SIGTERM);
        self.0.wait().expect("it can be waited for");
    }
}

#[test]
fn the_roles_run_by_hand() {
    if !l3() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (server_dir, node_dir) = (path("server"), path("node"));
    let kubeconfig = path("server/admin.kubeconfig");
    let _server = Role::start(&["server", "--data-dir", &server_dir, "--listen", "127.0.0.1:0"]);
    let token = wait_for("the server makes a join token", || {
        let create = ["token", "create", "--kubeconfig", &kubeconfig];
        let output = Command::new(wherry()).args(create).output().expect("the binary starts");
        output.status.success().then(|| text(&output.stdout).trim().to_owned())
    });
    let written = std::fs::read_to_string(&kubeconfig).expect("the server wrote a kubeconfig");
    let url = written.lines().find_map(|line| line.trim().strip_prefix("server: "));
    let url = url.expect("a kubeconfig names its server");

    // A token with another cluster's fingerprint is refused: the node must not join an impostor.
    let forged = format!("{}.{}", token.rsplit_once('.').expect("three parts").0, "0".repeat(64));
    let other_dir = path("other");
    let join = ["node", "--name", "lost", "--data-dir", &other_dir, "--server", url];
    let (code, stderr) = run(&[&join[..], &["--token", &forged]].concat());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("error[WH0012]: the node cannot run\n"), "{stderr}");
    // So is an address of another machine: nobody would reach the node there.
    let elsewhere = ["--token", &token, "--address", "192.0.2.1"];
    let (code, stderr) = run(&[&join[..], &elsewhere].concat());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("listen on 192.0.2.1, where others"), "{stderr}");

    let join = ["node", "--name", "edge", "--data-dir", &node_dir, "--server", url];
    let more = ["--token", &token, "--address", "127.9.9.1", "--stop-workers-on-exit"];
    let _node = Role::start(&[&join[..], &more].concat());
    wait_for("the node is Ready", || {
        let nodes = ["--kubeconfig", &kubeconfig, "get", "nodes", "--no-headers"];
        let output = Command::new("kubectl").args(nodes).output().expect("kubectl is installed");
        let row = text(&output.stdout);
        (row.starts_with("edge ") && row.contains(" Ready ")).then_some(())
    });
}
