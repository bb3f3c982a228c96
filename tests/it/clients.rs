//! Stock clients against `wherry dev`: kubectl and helm by transcripts (`tests/scripts`), the
//! official clients of Python and JavaScript by programs (`tests/clients`), and kube-rs as its
//! users write it.

use std::path::Path;
use std::process::Command;

use expect_test::{Expect, expect};
use wherry_tests::transcript::{self, masked};
use wherry_tests::{Dev, Options, l3, repository, text};

#[test]
fn the_first_acceptance_round() {
    if l3() {
        transcript::check("section-16.txt", &Dev::start());
    }
}

#[test]
fn every_command_of_kubectl() {
    if l3() {
        transcript::check("commands.txt", &Dev::start());
    }
}

#[test]
fn every_kind_as_kubectl_prints_it() {
    if l3() {
        transcript::check("kinds.txt", &Dev::start());
    }
}

#[test]
fn what_exists_after_the_start() {
    if l3() {
        transcript::check("start.txt", &Dev::start());
    }
}

#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls() {
    if l3() {
        transcript::check("helm.txt", &Dev::start());
    }
}

#[test]
fn workloads_as_people_drive_them() {
    if l3() {
        let options = Options { nodes: 3, ..Options::default() };
        transcript::check("workloads.txt", &Dev::start_with(options));
    }
}

/// Runs a program with a cluster's kubeconfig; it must succeed and say what is expected.
#[track_caller]
fn says(cluster: &Dev, program: &Path, arguments: &[&str], expected: &Expect) {
    let mut command = Command::new(program);
    command.args(arguments).env("KUBECONFIG", &cluster.kubeconfig);
    let output = command.output().expect("the client is installed");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    expected.assert_eq(&masked(&stdout));
}

fn file(name: &str) -> String {
    repository().join("tests").join(name).to_string_lossy().into_owned()
}

#[test]
fn the_python_client() {
    if !l3() {
        return;
    }
    let expected = expect![[r#"
        version: 32
        discovered: ['v1'] apps/v1 controllerrevisions
        created: {'a': '1'}
        replaced: {'a': '2'}
        stale: 409 Conflict Operation cannot be fulfilled on configmaps "m": the object has been modified; please apply your changes to the latest version and try again
        again: 409 AlreadyExists configmaps "m" already exists
        strategic: {'a': '2', 'b': '3'}
        json patch: {'b': '3'}
        ready: 2
        scale: Scale 1 app=web
        merged by name: hello-http:dev A
        watched: [('ADDED', 'w'), ('MODIFIED', 'w'), ('DELETED', 'w')]
        pages: 3 with 25 names at 1 version
        bad token: 400 BadRequest continue key is not valid
        selected: 1
        conflict: 409 Apply failed with 1 conflict: conflict with "python": .data.a
        forced: {'a': '2', 'b': '1'}
        dynamic: 1
        custom: {'colour': 'red', 'size': 2}
        patched: {'colour': 'red', 'size': 3}
        status: {'size': 1}
        listed: 1
        too small: 422 Invalid Widget.example.com "w" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1
        gone: 404 NotFound widgets.example.com "w" not found
        kinds read: 51
        may: True
        token: system:serviceaccount:kinds:default
        deleted: SecretList
        left: 0
    "#]];
    let python = transcript::clients().join("python/bin/python");
    let kinds = file("scripts/files/kinds.yaml");
    let arguments = [&*file("clients/round.py"), &*file("scripts/files/widgets.yaml"), &*kinds];
    says(&Dev::start(), &python, &arguments, &expected);
}

#[test]
fn the_javascript_client() {
    if !l3() {
        return;
    }
    let expected = expect![[r#"
        created: {"a":"1"}
        replaced: {"a":"2"}
        stale: 409 Conflict Operation cannot be fulfilled on configmaps "m": the object has been modified; please apply your changes to the latest version and try again
        missing: 404 NotFound configmaps "none" not found
        merge: {"a":"2","b":"3"}
        json patch: {"b":"3"}
        informed: ["add","update","delete"]
        pages: 3 with 25 names at 1 version
        applied: {"a":"1"}
        conflict: 409 Conflict Apply failed with 1 conflict: conflict with "javascript": .data.a
        forced: {"a":"2"}
        ready: 2
        scaled: {"replicas":1}
        custom: {"colour":"red","size":2}
        too large: 422 Invalid Widget.example.com "w" is invalid: spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10
        status: {"size":1}
        left: 0
        secrets left: 0
    "#]];
    let folder = transcript::clients().to_string_lossy();
    let widgets = file("scripts/files/widgets.yaml");
    let arguments = [&*file("clients/round.mjs"), &*folder, &*widgets];
    says(&Dev::start(), Path::new("node"), &arguments, &expected);
}
