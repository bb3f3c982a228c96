//! Several members with real processes: what was answered is never lost, any member serves, and
//! members come, go, lose their data and change the lead while clients write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::Body;
use nix::sys::signal::Signal;
use wherry_node::members::Members;
use wherry_tests::plane::{Plane, make, rows};
use wherry_tests::{
    Dev, Options, copy_folder, kubectl, kubectl_ok, l3, signal, text, wait_for, wherry,
};

/// Writers at the same time, each with one write under way.
const WRITERS: usize = 4;

/// Between two answers may lie so much, beside all other tests on a small machine; what it is on
/// one of its own, `make chaos` and `make bench` measure.
const GAP_MAX: Duration = Duration::from_secs(30);

/// Where leaders change sooner than this, no write waits so long that its writer is told so.
const GAP_SHORT: Duration = Duration::from_secs(1);

/// Creates ConfigMaps until it is told to stop, and remembers which were answered.
struct Writers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    names: Vec<String>,
    /// Writes whose outcome nobody knows, or that were refused in the end.
    failures: Vec<String>,
    /// The longest time between two answers.
    gap: Duration,
}

impl Writers {
    /// `members` must have been made by this function's own runtime, so it makes them.
    fn start(members: impl FnOnce() -> Arc<Members> + Send + 'static) -> Writers {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let client = members().client();
                let writers = (0..WRITERS)
                    .map(|writer| write(client.clone(), writer, stopped.clone(), count.clone()));
                merged(futures::future::join_all(writers).await)
            })
        });
        Writers { stop, answered, thread }
    }

    /// Waits for `more` further answers.
    fn wait_for_answers(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_for("writes are answered", || {
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    fn finish(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writers end")
    }
}

async fn write(
    client: kube::Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> (Vec<(Instant, String)>, Vec<String>) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let (mut answered, mut failures) = (Vec::new(), Vec::new());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("written-{writer}-{number}");
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let object = ConfigMap { metadata, ..ConfigMap::default() };
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {
                answered.push((Instant::now(), name));
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    (answered, failures)
}

impl Written {
    /// Nobody waits for ever, and at most the writes that were on their way fail.
    #[track_caller]
    fn assert_went_on(&self) {
        assert!(self.gap < GAP_MAX, "no answer for {:?}", self.gap);
        if self.gap < GAP_SHORT {
            assert!(self.failures.len() <= WRITERS, "{:?}", self.failures);
        }
    }
}

/// What one writer was answered and when, and what failed.
type Part = (Vec<(Instant, String)>, Vec<String>);

fn merged(parts: Vec<Part>) -> Written {
    let mut written = Written::default();
    let mut answers = Vec::new();
    for (answered, failures) in parts {
        answers.extend(answered);
        written.failures.extend(failures);
    }
    answers.sort();
    let gaps = answers.windows(2).map(|pair| pair[1].0.duration_since(pair[0].0));
    written.gap = gaps.max().unwrap_or_default();
    written.names = answers.into_iter().map(|(_, name)| name).collect();
    written
}

#[track_caller]
fn assert_all_there(listed: &str, names: &[String]) {
    let there: std::collections::HashSet<&str> = listed.lines().collect();
    let lost: Vec<&String> =
        names.iter().filter(|name| !there.contains(format!("configmap/{name}").as_str())).collect();
    assert!(
        lost.is_empty(),
        "{} of {} answered writes are lost: {lost:?}",
        lost.len(),
        names.len()
    );
}

/// Sends one request to one member and says how long the answer took.
fn ask(
    plane: &Plane,
    index: usize,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String, Duration) {
    let url = plane.servers[index].url.parse().expect("a URL");
    let mut config = make(&plane.kubeconfig(index))(url);
    config.default_retry = false;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = kube::Client::try_from(config).expect("a client");
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body.as_bytes().to_vec()))
            .expect("a request");
        let begun = Instant::now();
        let response = client.send(request).await.expect("an answer");
        let took = begun.elapsed();
        let retry = response.headers().get("retry-after").cloned();
        let status = response.status().as_u16();
        let body = response.into_body().collect_bytes().await.expect("a whole body");
        let retry = retry.map(|after| format!("\nretry-after: {}", text(after.as_bytes())));
        (status, text(&body) + &retry.unwrap_or_default(), took)
    })
}

#[test]
fn a_killed_leader_loses_nothing_and_a_minority_says_so() {
    if !l3() {
        return;
    }
    let mut plane = Plane::start(3);
    wait_for("one leads, and two vote", || {
        let found = plane.list(0);
        let count = |role: &str| found.iter().filter(|row| row.role == role).count();
        (count("leader") == 1 && count("voter") == 2).then_some(())
    });
    // Any member serves, also what another has just written.
    for index in 0..3 {
        let name = format!("by-{index}");
        plane.kubectl_ok(index, &["create", "configmap", &name, "--from-literal=a=b"]);
        for other in 0..3 {
            plane.kubectl_ok(other, &["get", "configmap", &name]);
            plane.kubectl_ok(other, &["annotate", "--overwrite", "configmap", &name, "seen=yes"]);
        }
    }

    let leader = plane.leader(0);
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let (kubeconfig, urls) = (plane.kubeconfig(leader), urls(&plane));
    let writers =
        Writers::start(move || Members::new(&urls, make(&kubeconfig)).expect("plain URLs"));
    writers.wait_for_answers(50);
    plane.kill(leader);
    writers.wait_for_answers(100);
    wait_for("another leads", || (plane.leader(others[0]) != leader).then_some(()));
    let written = writers.finish();
    written.assert_went_on();
    for index in &others {
        let listed = plane.kubectl_ok(*index, &["get", "configmaps", "-o", "name"]);
        assert_all_there(&listed, &written.names);
    }

    // One of three is no majority.
    let (gone, alone) = (others[0], others[1]);
    plane.kill(gone);
    wait_for("it notices", || (ask(&plane, alone, "GET", "/readyz", "").0 == 500).then_some(()));
    let maps = "/api/v1/namespaces/default/configmaps";
    let body = r#"{"metadata":{"name":"never"}}"#;
    let old = format!("{maps}?resourceVersion=0");
    let watch = format!("{maps}?watch=true&resourceVersion=1");
    for (method, path, body) in
        [("GET", maps, ""), ("GET", &*old, ""), ("GET", &*watch, ""), ("POST", maps, body)]
    {
        // A busy machine may make any one of them late.
        wait_for("it refuses within 2 s", || {
            let (status, answer, took) = ask(&plane, alone, method, path, body);
            assert_eq!(status, 503, "{method}: {answer}");
            assert!(answer.contains("retry-after: 1"), "{answer}");
            (took < Duration::from_secs(2)).then_some(())
        });
    }
    let (_, ready, _) = ask(&plane, alone, "GET", "/readyz", "");
    assert!(ready.contains("[-]store failed: "), "{ready}");
    assert_eq!(ask(&plane, alone, "GET", "/livez", "").0, 200);

    // Back with one that was killed, it goes on.
    plane.start_again(leader);
    let listed = plane.kubectl_ok(alone, &["get", "configmaps", "-o", "name"]);
    assert_all_there(&listed, &written.names);
}

fn urls(plane: &Plane) -> Vec<String> {
    plane.servers.iter().map(|server| server.url.clone()).collect()
}

#[test]
fn members_are_replaced_and_hand_the_lead_over() {
    if !l3() {
        return;
    }
    let mut plane = Plane::start(3);
    let leader = plane.leader(0);
    let target = (leader + 1) % 3;
    let name = plane.servers[target].name.clone();
    // On a busy machine another election may follow.
    wait_for("the lead is handed over", || {
        let said = plane.wherry_until(leader, &["member", "transfer", &name]);
        assert!(said.starts_with(&format!("member {name} (id ")), "{said}");
        (plane.leader(leader) == target).then_some(())
    });

    // A leader that is told to stop hands over first: writers hardly notice.
    let (kubeconfig, all) = (plane.kubeconfig(target), urls(&plane));
    let writers =
        Writers::start(move || Members::new(&all, make(&kubeconfig)).expect("plain URLs"));
    writers.wait_for_answers(50);
    assert_eq!(plane.stop(target), Some(0));
    writers.wait_for_answers(50);
    let written = writers.finish();
    written.assert_went_on();
    plane.start_again(target);

    // One that lost its data does not come back under its old id.
    let lost = (target + 1) % 3;
    let (lost_name, lost_dir) =
        (plane.servers[lost].name.clone(), plane.servers[lost].data_dir.clone());
    let by = (lost + 1) % 3;
    let old_id = plane.list(by).iter().find(|row| row.name == lost_name).expect("a row").id;
    plane.kill(lost);
    std::fs::remove_dir_all(lost_dir.join("store")).expect("its data is removed");
    let refusal = plane.refusal(lost);
    assert!(refusal.contains("must not come back under its old id"), "{refusal}");
    assert!(refusal.contains(&format!("wherry member remove {lost_name}")), "{refusal}");

    wait_for("the one that was started again is heard of", || {
        plane.list(by).iter().all(|row| row.name == lost_name || row.applied != "-").then_some(())
    });
    let said = plane.wherry_until(by, &["member", "remove", &lost_name]);
    assert!(said.starts_with(&format!("member {lost_name} (id {old_id}) removed")), "{said}");
    plane.join("m4", by);
    let found = plane.list(by);
    assert_eq!(found.len(), 3, "{found:?}");
    let new = found.iter().find(|row| row.name == "m4").expect("the new member");
    assert!(new.id > old_id && new.role != "learner", "{found:?}");
    let listed = plane.kubectl_ok(3, &["get", "configmaps", "-o", "name"]);
    assert_all_there(&listed, &written.names);
    // One that is removed while it runs says so and ends.
    plane.wherry_until(by, &["member", "remove", &name]);
    assert_eq!(plane.ended(target), Some(1));
    plane.join("m5", by);
    // Clients are told where the members are now.
    wait_for("the Service kubernetes has the new member", || {
        let path = "jsonpath={.subsets[*].ports[*].port}";
        let ports = plane.kubectl_ok(by, &["get", "endpoints", "kubernetes", "-o", path]);
        let port = new.address.rsplit(':').next().expect("a port");
        let old = plane.servers[lost].url.rsplit(':').next().expect("a port");
        let ports: Vec<&str> = ports.split_whitespace().collect();
        (ports.contains(&port) && !ports.contains(&old)).then_some(())
    });
}

/// The folder of a member is put back as it was some writes ago, all of it: only the others can
/// tell, and it must not take part again.
#[test]
fn a_member_put_back_to_an_older_copy_is_refused() {
    if !l3() {
        return;
    }
    let mut plane = Plane::start(3);
    let leader = plane.leader(0);
    let index = (leader + 1) % 3;
    let folder = plane.servers[index].data_dir.clone();
    let older = folder.with_extension("older");
    plane.kubectl_ok(leader, &["create", "configmap", "before"]);
    plane.kubectl_ok(index, &["get", "configmap", "before"]);
    plane.kill(index);
    copy_folder(&folder, &older).expect("it can be copied");
    plane.start_again(index);
    plane.kubectl_ok(leader, &["create", "configmap", "since"]);
    plane.kubectl_ok(index, &["get", "configmap", "since"]);
    plane.kill(index);
    std::fs::remove_dir_all(&folder).expect("it is there");
    std::fs::rename(&older, &folder).expect("it can be put back");
    let refusal = plane.refusal(index);
    assert!(refusal.contains("is older than what this member has done"), "{refusal}");
    assert!(refusal.contains("wherry member remove"), "{refusal}");
    plane.kubectl_ok(leader, &["create", "configmap", "later"]);
}

#[test]
fn a_member_that_moved_is_found_where_it_is() {
    if !l3() {
        return;
    }
    let mut plane = Plane::start(3);
    let leader = plane.leader(0);
    for index in [(leader + 1) % 3, leader] {
        let by = (index + 1) % 3;
        plane.stop(index);
        plane.start_elsewhere(index);
        let (name, address) = {
            let server = &plane.servers[index];
            (server.name.clone(), server.url.trim_start_matches("https://").to_owned())
        };
        wait_for("its entry follows", || {
            let rows = plane.list(by);
            let own = rows.iter().find(|row| row.name == name)?;
            (own.address == address && own.applied != "-").then_some(())
        });
        let made = format!("after-{index}");
        plane.kubectl_ok(index, &["create", "configmap", &made]);
        plane.kubectl_ok(by, &["get", "configmap", &made]);
    }
    // New members come in by way of it as by any other, and get the keys of encryption.
    plane.join("m4", leader);
    let keyring = |index: usize| {
        let file = plane.servers[index].data_dir.join("pki/at-rest.keys");
        std::fs::read_to_string(file).expect("every member has a keyring")
    };
    assert_eq!(keyring(3), keyring(0));
}

#[test]
fn a_node_and_its_logs_outlive_the_member_it_talked_to() {
    if !l3() {
        return;
    }
    let cluster = Dev::start_with(Options { members: 3, ..Options::default() });
    assert!(cluster.ready_line.contains("3 members, 1 node Ready"), "{}", cluster.ready_line);
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    let kubeconfigs: Vec<_> = ["server", "server-2", "server-3"]
        .iter()
        .map(|folder| cluster.data_dir.join(folder).join("admin.kubeconfig"))
        .collect();
    let logs = ["logs", "deployment/hello-http"];
    for kubeconfig in &kubeconfigs {
        wait_for("logs come through every member", || {
            kubectl(kubeconfig, &logs).status.success().then_some(())
        });
    }

    // The node's requests go to the first member that it was told of.
    let servers = cluster.pids_of("server");
    assert_eq!(servers.len(), 3);
    let first = servers.iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(&line).contains("--name=server-1")
    });
    signal(*first.expect("the first member runs"), Signal::SIGKILL);
    kubectl_ok(&kubeconfigs[1], &["scale", "deployment/hello-http", "--replicas=3"]);
    wait_for("the node takes new Pods", || {
        // A watch ends with the leader that served it.
        let rollout = ["rollout", "status", "deployment/hello-http", "--timeout=20s"];
        kubectl(&kubeconfigs[1], &rollout).status.success().then_some(())
    });
    wait_for("logs still come", || kubectl(&kubeconfigs[2], &logs).status.success().then_some(()));
    let table = wait_for("a list of the members", || {
        let mut list = std::process::Command::new(wherry());
        list.args(["member", "list", "--kubeconfig"]).arg(&kubeconfigs[1]);
        list.env("XDG_CACHE_HOME", cluster.data_dir.join("cache"));
        let output = list.output().expect("the binary starts");
        output.status.success().then(|| text(&output.stdout))
    });
    assert_eq!(rows(&table).len(), 3, "{table}");
}
