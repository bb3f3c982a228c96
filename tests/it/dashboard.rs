//! The dashboard's page in a real browser, driven by web-dashboard/e2e.

use std::process::Command;

use wherry_tests::{Dev, l3, repository, text, wherry};

#[test]
fn the_workloads_page_changes_by_itself() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=60s"]);
    let asked = Command::new(wherry())
        .args(["ui", "--no-open", "--kubeconfig"])
        .arg(&cluster.kubeconfig)
        .output()
        .expect("the binary starts");
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    let url = text(&asked.stdout);
    let mut script = Command::new("node");
    script
        .current_dir(repository().join("web-dashboard"))
        .env("WHERRY", wherry())
        .args(["e2e/workloads.js", url.trim()])
        .arg(&cluster.kubeconfig);
    // Where to put screenshots, for a person to look at.
    script.args(std::env::var_os("WHERRY_SCREENSHOTS"));
    let output = script.output().expect("node is installed");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("workloads page: ok"), "{said}");
}
