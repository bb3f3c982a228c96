//! The attack suite: every way that a guest has to harm its neighbours, tried, one after the other,
//! in the worker process in which a neighbour serves requests.
//!
//! ```text
//!   wherry dev ── worker ─┬─ hello-http, the neighbour ◀── 200 requests a second, times kept
//!                         └─ one attack at a time (sample-apps/attacks, attacks-http, images.rs)
//! ```
//!
//! An attack counts as contained if it was stopped or could go on without harm: the neighbour
//! answered every request, and neither the agent nor the worker is another process than before. How
//! much slower the neighbour became is in the table ([`Report::table`]).

mod images;
mod requests;
mod verdict;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::requests::{Manner, Storm};
use self::verdict::{Verdict, verdict};
use crate::load::{Client, Seen};
use crate::machine::elsewhere;
use crate::{Dev, Options, repository, wait_for};

const NEIGHBOUR: u16 = 30080;
const HANDLER: u16 = 30085;
const PATH: &str = "/bench";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// After an attack's own time: what is found out late (a full disk, a long compilation) is found
/// out by then, also where other tests want the same processors.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a neighbour gets to become as quick as it can be, before the next attack.
const SETTLED_MAX: Duration = Duration::from_secs(10);
/// How often the log of an attack that has ended is asked for, should the answer fail.
const LOG_TRIES: usize = 20;
/// The neighbour is to be no slower than this many times, so says the threat model.
pub const SLOWER_MAX: f64 = 2.0;

/// One attack.
struct Attack {
    name: &'static str,
    how: How,
    /// Nothing but its deletion ends it.
    endless: bool,
    /// Part of the fast run.
    quick: bool,
}

enum How {
    /// `sample-apps/attacks` with the attack's name.
    Program,
    /// An image of its own.
    Image(&'static str),
    /// Clients of `sample-apps/attacks-http`.
    Requests(Storm),
}

const fn program(name: &'static str) -> Attack {
    Attack { name, how: How::Program, endless: false, quick: false }
}

const fn image(name: &'static str, image: &'static str) -> Attack {
    Attack { name, how: How::Image(image), endless: false, quick: false }
}

const fn storm(name: &'static str, path: &'static str, clients: usize, manner: Manner) -> Attack {
    let how = How::Requests(Storm { path, clients, manner });
    Attack { name, how, endless: false, quick: false }
}

const fn endless(attack: Attack) -> Attack {
    Attack { endless: true, ..attack }
}

const fn quick(attack: Attack) -> Attack {
    Attack { quick: true, ..attack }
}

const ATTACKS: &[Attack] = &[
    quick(endless(program("loop"))),
    endless(program("branches")),
    quick(endless(image("start function loops", "attack-start"))),
    endless(program("host-calls")),
    endless(program("fill")),
    endless(image("fill of all memory at once", "attack-fill")),
    quick(program("memory")),
    program("grow"),
    image("memory from the start", "attack-memory"),
    quick(image("table", "attack-table")),
    program("handles"),
    quick(program("strings")),
    program("pollables"),
    program("poll"),
    program("poll-too-many"),
    quick(program("random")),
    program("requests"),
    program("names"),
    quick(program("sockets")),
    program("half-open"),
    program("datagrams"),
    program("disk"),
    program("many-files"),
    program("deep-folders"),
    program("long-names"),
    quick(program("open-files")),
    quick(program("print")),
    program("print-one-line"),
    program("print-escapes"),
    image("crash loop", "attack-crash"),
    storm("requests that loop", "/loop", 64, Manner::Polite),
    storm("requests that sleep", "/sleep", 600, Manner::Polite),
    quick(storm("too many headers", "/headers", 4, Manner::Polite)),
    storm("too many trailers", "/trailers", 4, Manner::Polite),
    storm("bodies nobody reads", "/unread", 4, Manner::Upload),
    storm("answers nobody reads", "/endless", 32, Manner::Deaf),
    storm("calls itself", "/self", 1, Manner::Polite),
    quick(image("a million functions", "attack-functions")),
    image("100,000 imports", "attack-imports"),
    image("10,000 nested components", "attack-nested"),
    quick(image("not Wasm", "attack-gzip")),
    image("takes long to compile", "attack-compile"),
];

/// Which attacks, and how long each.
pub struct Plan {
    pub time: Duration,
    /// Only the quick ones.
    pub quick: bool,
    /// Only these, with commas between.
    pub only: Option<String>,
    /// What sends requests when it is told so ([`AS_STORM`]).
    pub program: PathBuf,
}

/// What one attack did.
pub struct Row {
    pub name: &'static str,
    /// What stopped it.
    pub stopped: String,
    /// From its start until then, or until it was deleted.
    pub after: Duration,
    /// The neighbour's p99 before and during, in milliseconds.
    pub before: f64,
    pub during: f64,
    pub answered: u64,
    pub failures: Vec<String>,
    /// Agents and workers that are not the ones from before.
    pub restarts: usize,
}

impl Row {
    pub fn is_contained(&self) -> bool {
        self.failures.is_empty() && self.restarts == 0 && self.answered > 0
    }
}

/// What all attacks did.
pub struct Report(pub Vec<Row>);

impl Report {
    pub fn is_contained(&self) -> bool {
        self.0.iter().all(Row::is_contained)
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "{:27} {:>8}  {:>8} {:>8} {:>6}  {:>6} {:>4} {:>8}  what stopped it\n",
            "attack", "after", "p99", "during", "×", "asked", "lost", "restarts"
        );
        for row in &self.0 {
            let _ = writeln!(
                out,
                "{:27} {:>6.1} s  {:>5.1} ms {:>5.1} ms {:>6.1}  {:>6} {:>4} {:>8}  {}",
                row.name,
                row.after.as_secs_f64(),
                row.before,
                row.during,
                row.during / row.before,
                row.answered,
                row.failures.len(),
                row.restarts,
                row.stopped
            );
        }
        for row in self.0.iter().filter(|row| !row.is_contained()) {
            let first = row.failures.first().map_or("no request failed", String::as_str);
            let _ = writeln!(out, "{} is not contained: {first}", row.name);
        }
        let over = self.0.iter().filter(|row| row.during > SLOWER_MAX * row.before).count();
        let lost = self.0.iter().filter(|row| !row.is_contained()).count();
        let _ = writeln!(
            out,
            "{} attacks, {lost} not contained, {over} made the neighbour more than {SLOWER_MAX} \
             times as slow",
            self.0.len()
        );
        out
    }
}

/// The first argument of a process that only sends the requests of one attack; its name, an address and
/// seconds follow.
pub const AS_STORM: &str = "--as-storm";

/// Sends them and prints how they ended.
pub fn be_the_storm(name: &str, address: &str, seconds: &str) -> Result<()> {
    let named = ATTACKS.iter().find(|attack| attack.name == name);
    let Some(Attack { how: How::Requests(storm), .. }) = named else {
        anyhow::bail!("{name} is no attack by requests");
    };
    let (address, time) = (address.parse()?, Duration::from_secs(seconds.parse()?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    print!("{}", runtime.block_on(storm.rage(address, time))?);
    Ok(())
}

/// A cluster under attack.
struct Battlefield {
    cluster: Dev,
    runtime: Runtime,
    client: kube::Client,
    neighbour: SocketAddr,
    time: Duration,
    /// See [`Plan::program`].
    program: PathBuf,
}

/// Runs the plan on a cluster of its own.
pub fn run(plan: &Plan) -> Result<Report> {
    let wanted = |attack: &&Attack| match &plan.only {
        Some(only) => only.split(',').any(|name| name == attack.name),
        None => !plan.quick || attack.quick,
    };
    let attacks: Vec<&Attack> = ATTACKS.iter().filter(wanted).collect();
    ensure!(!attacks.is_empty(), "there is no attack of that name");
    let images = tempfile::tempdir()?;
    lay(images.path(), &attacks)?;
    let images = Some(images.path().to_owned());
    let cluster = Dev::start_with(Options { images, ..Options::default() });
    let field = Battlefield::prepare(cluster, plan)?;
    let mut rows = Vec::new();
    for attack in attacks {
        let row = field.suffer(attack).with_context(|| attack.name)?;
        eprintln!("{}: {} ({:.1} → {:.1} ms)", row.name, row.stopped, row.before, row.during);
        rows.push(row);
    }
    Ok(Report(rows))
}

/// Puts the images that are needed into a folder.
fn lay(folder: &Path, attacks: &[&Attack]) -> Result<()> {
    let dist = repository().join("sample-apps/dist");
    for name in ["hello-http", "attacks", "attacks-http"] {
        let file = format!("{name}.wasm");
        std::fs::copy(dist.join(&file), folder.join(&file))
            .with_context(|| format!("{file} is not built; run `make apps`"))?;
    }
    for (name, wasm) in images::all()? {
        let wanted = |attack: &&&Attack| matches!(attack.how, How::Image(image) if image == name);
        if attacks.iter().any(|attack| wanted(&attack)) {
            std::fs::write(folder.join(format!("{name}.wasm")), wasm)?;
        }
    }
    Ok(())
}

impl Battlefield {
    fn prepare(cluster: Dev, plan: &Plan) -> Result<Battlefield> {
        for app in ["hello-http", "attacks-http"] {
            cluster.kubectl_ok(&["apply", "-f", &format!("sample-apps/{app}/app.yaml")]);
        }
        for app in ["hello-http", "attacks-http"] {
            let deployment = format!("deployment/{app}");
            cluster.kubectl_ok(&["rollout", "status", &deployment, "--timeout=180s"]);
        }
        for (port, path) in [(NEIGHBOUR, PATH), (HANDLER, "/")] {
            wait_for("the node port answers", || cluster.get(port, path).filter(|it| it.0 == 200));
        }
        let runtime = Runtime::new()?;
        let client = runtime.block_on(crate::client(&cluster.kubeconfig))?;
        let neighbour = SocketAddr::from((cluster.address, NEIGHBOUR));
        let (time, program) = (plan.time, plan.program.clone());
        Ok(Battlefield { cluster, runtime, client, neighbour, time, program })
    }

    fn pids(&self) -> Vec<i32> {
        let mut pids = self.cluster.pids_of("node");
        pids.extend(self.cluster.pids_of("worker"));
        pids.sort_unstable();
        pids
    }

    fn suffer(&self, attack: &Attack) -> Result<Row> {
        let pids = self.pids();
        let before = Client::run_for(self.neighbour, PATH, self.time)?;
        ensure!(before.failures.is_empty(), "before the attack: {:?}", before.failures);
        let begun = Instant::now();
        let (stopped, after, during) = match &attack.how {
            How::Program => self.host(("attacks", attack.name), attack.endless, begun)?,
            How::Image(image) => self.host((image, ""), attack.endless, begun)?,
            How::Requests(_) => {
                let client = Client::start(self.neighbour, PATH);
                let address = SocketAddr::from((self.cluster.address, HANDLER));
                let ends = self.storm(attack.name, address)?;
                (ends, begun.elapsed(), client.finish()?)
            }
        };
        let now = self.pids();
        let restarts = pids.iter().filter(|pid| !now.contains(pid)).count();
        self.settle()?;
        Ok(Row {
            name: attack.name,
            stopped,
            after,
            before: before.p99(),
            during: during.p99(),
            answered: during.answered(),
            failures: during.failures,
            restarts,
        })
    }

    /// The requests of an attack, from a process that could be on another machine; how they ended.
    fn storm(&self, name: &str, address: SocketAddr) -> Result<String> {
        let mut command = Command::new(&self.program);
        let (address, seconds) = (address.to_string(), self.time.as_secs().to_string());
        command.args([AS_STORM, name, &address, &seconds]);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let done = elsewhere(&mut command).output().context("start the storm")?;
        ensure!(done.status.success(), "the storm ended: {}", done.status);
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Runs a Pod until it is stopped, or its time is up and it is deleted.
    fn host(
        &self,
        (image, argument): (&str, &str),
        endless: bool,
        begun: Instant,
    ) -> Result<(String, Duration, Seen)> {
        let pod = self.pod(image, argument);
        let client = Client::start(self.neighbour, PATH);
        self.request(http::Method::POST, PODS, Some(&pod))?;
        // What ends by itself ends, even if it takes its time on a machine that is busy.
        let running_max = match endless {
            true => self.time + Duration::from_secs(5),
            false => self.time + PATIENCE,
        };
        let mut since: Option<Instant> = None;
        let mut tries = 0;
        let outcome = loop {
            std::thread::sleep(Duration::from_millis(100));
            let pod = self.request(http::Method::GET, &format!("{PODS}/attack"), None)?;
            let log = self.log();
            let state = &pod["status"]["containerStatuses"][0]["state"];
            if log.is_none() && state.get("terminated").is_some() && tries < LOG_TRIES {
                tries += 1;
                continue;
            }
            match verdict(&pod, &log.unwrap_or_default()) {
                Verdict::Over(why) => break Some(why),
                Verdict::Running => {
                    let since = *since.get_or_insert_with(Instant::now);
                    if since.elapsed() > running_max {
                        break None;
                    }
                }
                Verdict::Unknown => {}
            }
            // One that has begun has its own time first; it may wait again, to be started anew.
            let (waits, waits_max) = match since {
                Some(since) => (since.elapsed(), running_max + PATIENCE),
                None => (begun.elapsed(), self.time + PATIENCE),
            };
            ensure!(waits < waits_max, "it waits for too long: {pod}");
        };
        let after = begun.elapsed();
        // What was over at once may still have done something.
        std::thread::sleep(self.time.saturating_sub(after));
        let deleted = Instant::now();
        self.request(http::Method::DELETE, &format!("{PODS}/attack?gracePeriodSeconds=1"), None)?;
        while self.request(http::Method::GET, &format!("{PODS}/attack"), None).is_ok() {
            ensure!(deleted.elapsed() < PATIENCE, "it cannot be deleted");
            std::thread::sleep(Duration::from_millis(50));
        }
        let seen = client.finish()?;
        let gone = deleted.elapsed().as_secs_f64();
        let why = outcome.unwrap_or_else(|| {
            format!("takes turns with its neighbours at each tick; deleted within {gone:.1} s")
        });
        Ok((why, after, seen))
    }

    fn pod(&self, image: &str, argument: &str) -> Value {
        let seconds = self.time.as_secs().to_string();
        let arguments: Vec<&str> = Some(argument).filter(|it| !it.is_empty()).into_iter().collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "attack", "labels": {"app": "attack"}},
            "spec": {
                "restartPolicy": if image == "attack-crash" { "Always" } else { "Never" },
                "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "64Mi"}}],
                "containers": [{
                    "name": "attack", "image": format!("{image}:dev"), "args": arguments,
                    "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "ATTACK_SECONDS", "value": seconds},
                            {"name": "TARGET",
                             "value": "$(HELLO_HTTP_SERVICE_HOST):$(HELLO_HTTP_SERVICE_PORT)"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
            },
        })
    }

    /// The end of what it printed; None if nobody can say.
    fn log(&self) -> Option<String> {
        let path = format!("{PODS}/attack/log?tailLines=3&limitBytes=4096");
        let request = http::Request::get(path).body(Vec::new()).expect("a plain request");
        self.runtime.block_on(self.client.request_text(request)).ok()
    }

    fn request(&self, method: http::Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = http::Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = request.body(body)?;
        Ok(self.runtime.block_on(self.client.request(request))?)
    }

    /// The neighbour is as quick as ever before the next attack begins. On a machine that is busy with
    /// other tests it may never be: then it is enough that it answers.
    fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let seen = Client::run_for(self.neighbour, PATH, Duration::from_millis(500))?;
            let answers = seen.failures.is_empty() && seen.answered() > 0;
            if answers && (seen.p99() < 20.0 || begun.elapsed() > SETTLED_MAX) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the neighbour did not recover: {:?}",
                seen.failures
            );
        }
    }
}
