//! `wherry dev` and the roles by hand, as a person starts them: readiness, errors, exit codes.

use std::process::Command;

use wherry_tests::{Dev, Options, l3, text, wherry};

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
    let cidrs = ["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"];
    let cidrs = cluster.kubectl_ok(&cidrs);
    let distinct: std::collections::BTreeSet<&str> = cidrs.split(' ').collect();
    assert_eq!(distinct.len(), 3, "each node has its own Pod CIDR: {cidrs}");
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
    assert_eq!(run(&["dev", "--nodes", "0"]).0, Some(2));
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
