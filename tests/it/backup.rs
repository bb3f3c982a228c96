//! Backup, restore and encryption at rest, with real processes: what is saved under load is what
//! another cluster serves, and a Secret is on no disk in the open.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use wherry_tests::plane::Plane;
use wherry_tests::{Dev, Options, l3, text, wait_for, wherry};

/// Found nowhere by chance, and left alone by compression.
const SECRET: &str = "s3cr3t-5f3a90c17be24d0e8a61-never-on-disk";

fn run(arguments: &[&str]) -> Output {
    Command::new(wherry()).args(arguments).output().expect("the binary runs")
}

#[track_caller]
fn run_ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "wherry {arguments:?}: {stdout}{stderr}");
    stdout
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Files below a folder that hold some text, or its base64 as Secrets have it.
fn files_with(folder: &Path, wanted: &str) -> Vec<PathBuf> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(wanted);
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let content = std::fs::read(&path).unwrap_or_default();
                    let holds = |part: &str| {
                        content.windows(part.len()).any(|window| window == part.as_bytes())
                    };
                    if holds(wanted) || holds(&encoded) {
                        found.push(path);
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// One line of `wherry backup inspect`.
fn line(inspected: &str, name: &str) -> String {
    let line = inspected.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no {name} in {inspected}")).to_owned()
}

/// Identity and content of the objects that the test has made.
fn objects(dev: &Dev) -> String {
    let fields = "-o=jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} \
                  {.metadata.resourceVersion} {.data}{\"\\n\"}{end}";
    let wanted = ["get", "secrets,configmaps", "-l", "test=backup", fields];
    dev.kubectl_ok(&wanted)
}

#[test]
fn a_backup_made_under_load_becomes_another_cluster() {
    if !l3() {
        return;
    }
    let old = Dev::start();
    let kubeconfig = old.kubeconfig.clone();
    let literal = format!("--from-literal=password={SECRET}");
    old.kubectl_ok(&["create", "secret", "generic", "one", &literal]);
    old.kubectl_ok(&["label", "secret", "one", "test=backup"]);
    old.kubectl_ok(&["create", "configmap", "two", "--from-literal=a=b"]);
    old.kubectl_ok(&["label", "configmap", "two", "test=backup"]);
    let before = objects(&old);
    assert!(before.contains("Secret one "), "{before}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.backup");
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut written = 0;
            while !done.load(Ordering::Relaxed) {
                let name = format!("load-{written}");
                old.kubectl_ok(&["create", "configmap", &name, "--from-literal=a=b"]);
                written += 1;
            }
            written
        });
        wait_for("the load to run", || {
            old.kubectl(&["get", "configmap", "load-2"]).status.success().then_some(())
        });
        run_ok(&["backup", "save", shown(&file), "--kubeconfig", shown(&kubeconfig)]);
        done.store(true, Ordering::Relaxed);
        load.join().expect("no write fails")
    });
    assert!(written >= 3);
    let keyring = old.data_dir.join("server/pki/at-rest.keys");
    let inspected = run_ok(&["backup", "inspect", shown(&file), "--keyring", shown(&keyring)]);
    assert!(line(&inspected, "secrets ").split_whitespace().count() == 4, "{inspected}");
    assert_eq!(files_with(folder.path(), SECRET), Vec::<PathBuf>::new(), "not in the backup");
    assert_eq!(files_with(&old.data_dir, SECRET), Vec::<PathBuf>::new(), "on no disk");

    let data_dir = folder.path().join("new");
    let (server, pki) = (data_dir.join("server"), old.data_dir.join("server/pki"));
    std::fs::create_dir(&data_dir).expect("a new folder");
    let restored = run_ok(&[
        "backup",
        "restore",
        shown(&file),
        "--data-dir",
        shown(&server),
        "--pki",
        shown(&pki),
    ]);
    assert!(restored.contains("nodes and kubeconfigs stay valid"), "{restored}");
    let again = run(&["backup", "restore", shown(&file), "--data-dir", shown(&server)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
    // Where the old cluster is, its keyring need not be named.
    let alone = folder.path().join("alone");
    let restored = run_ok(&["backup", "restore", shown(&file), "--data-dir", shown(&alone)]);
    assert!(restored.contains("the authorities are new"), "{restored}");
    drop(old);

    let new = Dev::start_with(Options {
        nodes: 1,
        data_dir: Some(data_dir.clone()),
        ..Options::default()
    });
    assert_eq!(objects(&new), before, "uids, revisions and data are the same");
    // A client that goes on where it was with the old cluster is told to begin anew.
    let old_watch = "/api/v1/pods?watch=1&timeoutSeconds=5&resourceVersion=5";
    let gone = new.kubectl(&["get", "--raw", old_watch]);
    let told = text(&gone.stdout) + &text(&gone.stderr);
    assert!(told.contains("too old resource version"), "{told}");
    let literal = "--from-literal=a=b";
    new.kubectl_ok(&["create", "configmap", "after", literal]);
    assert_eq!(files_with(&data_dir, SECRET), Vec::<PathBuf>::new(), "on no disk here either");
}

/// What every member must have alike, as one of them lists it: whole objects, with their uids and
/// revisions, byte for byte.
fn dump(plane: &Plane, index: usize) -> String {
    let list = |resource: &str| {
        let path = format!("/api/v1/namespaces/kept/{resource}");
        let listed = plane.kubectl_ok(index, &["get", "--raw", &path]);
        let (_, items) = listed.split_once(r#""items":"#).expect("a list has items");
        format!("{resource} {items}\n")
    };
    ["configmaps", "secrets", "serviceaccounts"].map(list).concat()
}

#[test]
fn a_backup_becomes_three_new_members_that_hold_the_same() {
    if !l3() {
        return;
    }
    let mut old = Plane::start(3);
    old.kubectl_ok(0, &["create", "namespace", "kept"]);
    for number in 0..12 {
        let value = format!("--from-literal=value={}", number.to_string().repeat(200));
        let (map, secret) = (format!("map-{number}"), format!("secret-{number}"));
        old.kubectl_ok(number % 3, &["create", "-n=kept", "configmap", &map, &value]);
        if number < 5 {
            let value = format!("--from-literal=password={SECRET}");
            old.kubectl_ok(1, &["create", "-n=kept", "secret", "generic", &secret, &value]);
        }
    }
    old.kubectl_ok(2, &["annotate", "-n=kept", "configmap", "map-7", "changed=yes"]);
    old.kubectl_ok(2, &["delete", "-n=kept", "configmap", "map-8"]);
    wait_for("the namespace has its own objects", || {
        let wanted = ["get", "-n=kept", "configmap/kube-root-ca.crt", "serviceaccount/default"];
        old.kubectl(0, &wanted).status.success().then_some(())
    });
    let before = dump(&old, 0);
    assert_eq!(dump(&old, 2), before, "the members agree");

    // Saved while others write, by a member that need not lead.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.backup");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for number in 0.. {
                let name = format!("load-{number}");
                old.kubectl_ok(number % 3, &["create", "configmap", &name]);
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        old.wherry_ok(1, &["backup", "save", shown(&file)]);
        done.store(true, Ordering::Relaxed);
        load.join().expect("no write fails");
    });
    (0..3).for_each(|index| old.kill(index));
    let pki = old.servers[1].data_dir.join("pki");

    let mut new = Plane::start_with(3, |data_dir| {
        let (file, data_dir, pki) = (shown(&file), shown(data_dir), shown(&pki));
        run_ok(&["backup", "restore", file, "--data-dir", data_dir, "--pki", pki]);
    });
    let members = new.list(2);
    assert_eq!(members.iter().filter(|row| row.role != "learner").count(), 3, "{members:?}");
    for index in 0..3 {
        assert_eq!(dump(&new, index), before, "member {index} holds what was saved");
        let folder = new.servers[index].data_dir.clone();
        assert_eq!(files_with(&folder, SECRET), Vec::<PathBuf>::new(), "on no disk");
    }
    // They are a cluster like any other.
    new.kill(0);
    let (create, get) = (["create", "configmap", "after"], ["get", "configmap", "after"]);
    wait_for("writes go on", || {
        // One whose answer was lost with its leader may have happened.
        let done = |arguments: &[&str]| new.kubectl(1, arguments).status.success();
        (done(&create) || done(&get)).then_some(())
    });
    assert_eq!(dump(&new, 2), before);
}

#[test]
fn a_damaged_backup_is_refused() {
    if !l3() {
        return;
    }
    let dev = Dev::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.backup");
    run_ok(&["backup", "save", shown(&file), "--kubeconfig", shown(&dev.kubeconfig)]);
    let again = run(&["backup", "save", shown(&file), "--kubeconfig", shown(&dev.kubeconfig)]);
    assert!(text(&again.stderr).contains("is there already"), "{}", text(&again.stderr));

    let mut content = std::fs::read(&file).expect("it can be read");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let damaged = folder.path().join("damaged.backup");
    std::fs::write(&damaged, &content).expect("it can be written");
    let data_dir = folder.path().join("new");
    for verb in [
        vec!["inspect", shown(&damaged)],
        vec!["restore", shown(&damaged), "--data-dir", shown(&data_dir)],
    ] {
        let refused = run(&[&["backup"], &verb[..]].concat());
        assert_eq!(refused.status.code(), Some(1));
        let told = text(&refused.stderr);
        assert!(told.contains("WH0042") && told.contains("damaged at byte"), "{told}");
    }
    assert!(!data_dir.exists());
}

/// Everything a rotation promises, on a running cluster.
#[test]
fn a_rotated_key_gets_to_work_without_a_restart() {
    if !l3() {
        return;
    }
    let mut dev = Dev::start();
    let literal = format!("--from-literal=password={SECRET}");
    dev.kubectl_ok(&["create", "secret", "generic", "one", &literal]);
    let server = dev.data_dir.join("server");
    let rotated = run_ok(&["keys", "rotate", "--data-dir", shown(&server)]);
    let key = rotated.split(' ').next().expect("its name comes first").to_owned();
    let listed = run_ok(&["keys", "list", "--data-dir", shown(&server)]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.lines().last().is_some_and(|line| line.starts_with(&key)), "{listed}");
    let in_use = format!("wherry_encryption_newest_key_only{{key=\"{key}\"}} 1");
    wait_for("the new key to be the only one in use", || {
        dev.kubectl_ok(&["get", "--raw", "/metrics"]).contains(&in_use).then_some(())
    });
    dev.stop();

    // Without its keyring the server says so, and takes no other for it.
    let keyring = server.join("pki/at-rest.keys");
    let hidden = server.join("hidden.keys");
    std::fs::rename(&keyring, &hidden).expect("it is there");
    let refused = run(&["server", "--data-dir", shown(&server), "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("WH0011") && told.contains("is encrypted with key"), "{told}");
    assert!(!keyring.exists(), "the one made in its place is gone again");
    std::fs::rename(&hidden, &keyring).expect("it is there");

    let data_dir = dev.data_dir.clone();
    assert_eq!(files_with(&data_dir, SECRET), Vec::<PathBuf>::new());
    let dev = Dev::start_with(Options { nodes: 1, data_dir: Some(data_dir), ..Options::default() });
    let value = dev.kubectl_ok(&["get", "secret", "one", "-o=jsonpath={.data.password}"]);
    assert!(!value.is_empty());
}
