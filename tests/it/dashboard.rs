//! The dashboard in a real browser on a real cluster, driven by web-dashboard/e2e.

use std::process::Command;

use wherry_tests::{Dev, l3, repository, text, wherry};

/// Runs a script of web-dashboard/e2e; `WHERRY_SCREENSHOTS` is where it puts screenshots.
fn run(cluster: &Dev, script: &str) -> String {
    let url =
        cluster.kubectl_ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let mut node = Command::new("node");
    node.current_dir(repository().join("web-dashboard"))
        .env("WHERRY", wherry())
        .args([&format!("e2e/{script}"), url.trim()])
        .arg(&cluster.kubeconfig)
        .args(std::env::var_os("WHERRY_SCREENSHOTS"));
    let output = node.output().expect("node is installed");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn every_page_is_well_in_both_themes_and_on_a_phone() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    assert!(run(&cluster, "pages.js").contains("pages: ok"));
}

#[test]
fn ten_thousand_pods_that_change() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    assert!(run(&cluster, "speed.js").contains("speed: ok"));
}

#[test]
fn what_is_done_in_the_browser_is_so() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    assert!(run(&cluster, "doing.js").contains("doing: ok"));
}

#[test]
fn a_newcomer_deploys_rolls_back_and_wakes_in_the_browser_alone() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    assert!(run(&cluster, "walk.js").contains("walk: ok"));
}
