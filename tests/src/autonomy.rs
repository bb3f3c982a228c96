//! What goes on without whom: the agent killed and upgraded, the control plane away, the machine
//! started again while nobody can be reached. Everything under requests, which are counted.
//!
//! The cluster is made by `wherry dev`. Then the machine "loses power" (kill -9 of everything), and
//! from there on this test is the init system: it starts agent and server by the command lines that
//! the supervisor had used, and starts an agent that died at once.

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::load::{Client, Seen};
use crate::{DEADLINE, Dev, http_get, signal, text, wait_for};

const HELLO: u16 = 30080;
const PATH: &str = "/bench";
/// A worker or an agent that died is back in this time.
pub const BACK_MAX: Duration = Duration::from_secs(2);
/// After the control plane has come back, everything is as it should be in this time.
pub const CONVERGED_MAX: Duration = Duration::from_secs(10);
/// A machine that is started runs its Pods by then, whether a server is there or not.
const BOOT_MAX: Duration = Duration::from_secs(10);
/// Answers in a row, without a failure, that count as being back.
const IN_A_ROW: usize = 20;
const POLL: Duration = Duration::from_millis(10);

/// One event and what it cost.
pub struct Row {
    pub what: &'static str,
    pub asked: u64,
    pub lost: usize,
    /// How long until everything was there again, and how long it may take.
    pub back: Option<(Duration, Duration)>,
    /// Whether requests may be lost: those that were inside of what was killed.
    pub may_lose: bool,
}

impl Row {
    /// Nothing was lost that must not be, and it came back in time.
    pub fn is_fine(&self) -> bool {
        self.lost_nothing() && self.back.is_none_or(|(took, max)| took <= max)
    }

    /// Whether no request was lost that may not be, however long everything took.
    pub fn lost_nothing(&self) -> bool {
        self.asked > 0 && (self.lost == 0 || self.may_lose)
    }
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let mut out = format!("{:62} {:>8} {:>6}  {:>7}\n", "what happened", "asked", "lost", "back");
    for row in rows {
        let back = match row.back {
            Some((took, max)) => {
                format!("{:>5.1} s  at most {:.0} s", took.as_secs_f64(), max.as_secs_f64())
            }
            None => String::new(),
        };
        let fine = if row.is_fine() { "" } else { "   FAILED" };
        let _ = writeln!(out, "{:62} {:>8} {:>6}  {back}{fine}", row.what, row.asked, row.lost);
    }
    out
}

/// A command line that can be run again.
#[derive(Clone)]
struct Again {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Again {
    /// Of a running process.
    fn of(pid: i32) -> Result<Again> {
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let mut words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(text);
        let program = words.next().context("a process has a name")?.into();
        Ok(Again { program, arguments: words.collect() })
    }

    /// The value of an argument `--name=value`.
    fn value(&self, name: &str) -> Option<&str> {
        self.arguments.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn without(mut self, name: &str) -> Again {
        self.arguments.retain(|word| !word.starts_with(name));
        self
    }

    /// Starts it; what it says is added to a log.
    fn start(&self, log: &Path) -> Result<Child> {
        let log = File::options().append(true).create(true).open(log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command.stderr(log).spawn()?)
    }
}

/// The machine and who starts what on it.
struct Machine {
    cluster: Dev,
    agent_line: Again,
    server_line: Again,
    agent: Option<Child>,
    server: Option<Child>,
    /// When the worker was last killed; nothing that runs now began before.
    killed: Timestamp,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.server].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in self.cluster.pids_of("worker") {
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// Runs everything. The control plane is away for `away`.
pub fn run(away: Duration) -> Result<Vec<Row>> {
    let cluster = Dev::start();
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
    let mut rows = Vec::new();
    let mut machine = Machine::of(cluster)?;
    machine.until_it_answers()?;
    rows.push(machine.agent_killed_with_supervisor()?);

    machine.cluster.kill_everything();
    rows.push(machine.boots_offline()?);
    rows.push(machine.worker_killed("control plane unreachable: worker killed")?);
    rows.push(machine.agent_killed("control plane unreachable: agent killed")?);
    rows.push(machine.both_killed("control plane unreachable: agent and worker killed")?);
    rows.push(machine.nothing_happens("control plane unreachable: requests", away)?);
    rows.push(machine.server_returns()?);

    rows.push(machine.agent_upgraded()?);
    rows.push(machine.deleted_without_agent()?);
    machine.stop_server(true)?;
    rows.push(machine.nothing_happens("control plane does not answer: requests", away)?);
    rows.push(machine.worker_killed("control plane does not answer: worker killed")?);
    rows.push(machine.both_killed("control plane does not answer: agent and worker killed")?);
    machine.stop_server(false)?;
    let row = machine.converges("control plane answers again: converged")?;
    // What was written until the silence was noticed is done when the server goes on: that a Pod was
    // not ready then takes its endpoint away until its node has said more, a moment later.
    rows.push(Row { may_lose: true, ..row });
    Ok(rows)
}

impl Machine {
    fn of(cluster: Dev) -> Result<Machine> {
        let one = |role: &str| match cluster.pids_of(role)[..] {
            [pid] => Again::of(pid),
            ref pids => bail!("{} processes are a {role}", pids.len()),
        };
        let agent_line = one("node")?.without("--stop-workers-on-exit");
        let url = agent_line.value("--server").context("the agent knows a server")?;
        let address = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let mut server_line = one("server")?.without("--listen-fd");
        server_line.arguments.push(format!("--listen={address}"));
        let killed = Timestamp::UNIX_EPOCH;
        Ok(Machine { cluster, agent_line, server_line, agent: None, server: None, killed })
    }

    /// Where the supervisor kept what a process says.
    fn log(&self, name: &str) -> PathBuf {
        self.cluster.data_dir.join(format!("logs/{name}.log"))
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.cluster.address, HELLO))
    }

    fn load(&self) -> Client {
        Client::start(self.address(), PATH)
    }

    /// Waits until it answers many times in a row; how long that took to begin.
    fn until_it_answers(&self) -> Result<Duration> {
        let begun = Instant::now();
        let (mut row, mut first) = (0, begun.elapsed());
        let mut last = None;
        while row < IN_A_ROW {
            ensure!(
                begun.elapsed() < DEADLINE,
                "it does not answer any more; at last {last:?}; agents {:?}, workers {:?}\n{}",
                self.cluster.pids_of("node"),
                self.cluster.pids_of("worker"),
                self.cluster.last_words()
            );
            match http_get(self.address(), PATH) {
                Some((200, _)) => {
                    if row == 0 {
                        first = begun.elapsed();
                    }
                    row += 1;
                }
                other => {
                    (row, last) = (0, other);
                    std::thread::sleep(POLL);
                }
            }
        }
        Ok(first)
    }

    fn pid_of(&self, role: &str) -> Result<i32> {
        self.cluster.pids_of(role).first().copied().with_context(|| format!("a {role} runs"))
    }

    /// Waits until a process of this role is there that is not the one before.
    fn until_another(&self, role: &str, before: i32) -> Result<()> {
        let begun = Instant::now();
        while !self.cluster.pids_of(role).iter().any(|pid| *pid != before) {
            ensure!(begun.elapsed() < DEADLINE, "no other {role} comes");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        if let Some(mut old) = self.agent.take() {
            let _ = old.wait();
        }
        self.agent = Some(self.agent_line.start(&self.log("node-1"))?);
        Ok(())
    }

    fn agent_killed_with_supervisor(&mut self) -> Result<Row> {
        let (load, before, worker) = (self.load(), self.pid_of("node")?, self.pid_of("worker")?);
        signal(before, Signal::SIGKILL);
        self.until_another("node", before)?;
        // Until the new one has taken over what runs, and some more.
        std::thread::sleep(BACK_MAX);
        ensure!(self.pid_of("worker")? == worker, "the worker is another one");
        Ok(row("agent killed under load", &load.finish()?, None, false))
    }

    fn boots_offline(&mut self) -> Result<Row> {
        self.start_agent()?;
        let back = self.until_it_answers()?;
        let load = self.load();
        std::thread::sleep(BACK_MAX);
        let seen = load.finish()?;
        Ok(row("machine started, no server to be reached", &seen, Some((back, BOOT_MAX)), false))
    }

    fn worker_killed(&mut self, what: &'static str) -> Result<Row> {
        let load = self.load();
        self.killed = Timestamp::now();
        signal(self.pid_of("worker")?, Signal::SIGKILL);
        let back = self.until_it_answers()?;
        Ok(row(what, &load.finish()?, Some((back, BACK_MAX)), true))
    }

    fn agent_killed(&mut self, what: &'static str) -> Result<Row> {
        let (load, worker) = (self.load(), self.pid_of("worker")?);
        signal(self.pid_of("node")?, Signal::SIGKILL);
        self.start_agent()?;
        std::thread::sleep(BACK_MAX * 2);
        ensure!(self.pid_of("worker")? == worker, "the worker is another one");
        Ok(row(what, &load.finish()?, None, false))
    }

    fn both_killed(&mut self, what: &'static str) -> Result<Row> {
        let load = self.load();
        let (agent, worker) = (self.pid_of("node")?, self.pid_of("worker")?);
        self.killed = Timestamp::now();
        signal(agent, Signal::SIGKILL);
        signal(worker, Signal::SIGKILL);
        self.start_agent()?;
        let back = self.until_it_answers()?;
        Ok(row(what, &load.finish()?, Some((back, BACK_MAX)), true))
    }

    fn nothing_happens(&mut self, what: &'static str, time: Duration) -> Result<Row> {
        let seen = Client::run_for(self.address(), PATH, time)?;
        Ok(row(what, &seen, None, false))
    }

    fn server_returns(&mut self) -> Result<Row> {
        self.server = Some(self.server_line.start(&self.log("server"))?);
        self.converges("server started again: converged")
    }

    /// The API says what is so, nothing was started again for it, and what it orders is done.
    fn converges(&mut self, what: &'static str) -> Result<Row> {
        let (load, worker) = (self.load(), self.pid_of("worker")?);
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < DEADLINE, "the API does not tell the truth");
            if self.is_true()? {
                break;
            }
            std::thread::sleep(POLL * 10);
        }
        let took = begun.elapsed();
        ensure!(self.pid_of("worker")? == worker, "the worker is another one");
        let restarts = self.restarts()?;
        let replicas = if restarts.len() == 2 { "3" } else { "2" };
        self.cluster.kubectl_ok(&[
            "scale",
            "deployment/hello-http",
            &format!("--replicas={replicas}"),
        ]);
        self.cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=180s"]);
        let after = self.restarts()?;
        let kept = after.iter().filter(|count| restarts.contains(count)).count();
        ensure!(kept >= 2, "containers were started again: {restarts:?} became {after:?}");
        Ok(row(what, &load.finish()?, Some((took, CONVERGED_MAX)), false))
    }

    fn get(&self, what: &str) -> Option<Value> {
        let output = self.cluster.kubectl(&["get", what, "-o", "json", "--request-timeout=10s"]);
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// Whether node and Pods are ready, and the containers those that run since the worker was killed:
    /// what was so before is only what the control plane remembers.
    fn is_true(&self) -> Result<bool> {
        let Some(nodes) = self.get("nodes") else { return Ok(false) };
        let ready = |object: &Value| {
            let conditions = object["status"]["conditions"].as_array();
            let is_ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
            conditions.is_some_and(|all| all.iter().any(is_ready))
        };
        let tainted =
            nodes["items"][0]["spec"]["taints"].as_array().is_some_and(|it| !it.is_empty());
        let Some(pods) = self.get("pods") else { return Ok(false) };
        let pods = pods["items"].as_array().context("a list")?;
        let going = |pod: &Value| pod["metadata"].get("deletionTimestamp").is_some();
        let current = |pod: &Value| {
            let started = &pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
            let started = started.as_str().and_then(|text| text.parse::<Timestamp>().ok());
            // The API's times are whole seconds.
            started.is_some_and(|started| started.as_second() >= self.killed.as_second())
        };
        let all = pods.iter().all(|pod| ready(pod) && current(pod) && !going(pod));
        Ok(ready(&nodes["items"][0]) && !tainted && pods.len() >= 2 && all)
    }

    /// Names of Pods with how often each was started again.
    fn restarts(&self) -> Result<Vec<String>> {
        let pods = wait_for("the API answers", || self.get("pods"));
        let pods = pods["items"].as_array().context("a list")?.iter();
        let count = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            format!("{} {}", pod["metadata"]["name"], container["restartCount"])
        };
        Ok(pods.map(count).collect())
    }

    fn agent_upgraded(&mut self) -> Result<Row> {
        let (load, worker) = (self.load(), self.pid_of("worker")?);
        signal(self.pid_of("node")?, Signal::SIGTERM);
        self.start_agent()?;
        std::thread::sleep(BACK_MAX);
        ensure!(self.pid_of("worker")? == worker, "the worker is another one");
        Ok(row(
            "agent stopped and started anew (upgraded) under load",
            &load.finish()?,
            None,
            false,
        ))
    }

    /// What is deleted while no agent is there must not come back when no server is, later.
    fn deleted_without_agent(&mut self) -> Result<Row> {
        let data_dir = self.agent_line.value("--data-dir").context("the agent has a folder")?;
        let journal = Path::new(data_dir).join("checkpoint/journal");
        // The last line about it counts.
        let kept = |wanted: bool| {
            let lines = String::from_utf8(std::fs::read(&journal).ok()?).ok()?;
            let about = r#"{"kind":"services","key":"default/gone""#;
            let last = lines.lines().rfind(|line| line.starts_with(about));
            let there = last.is_some_and(|line| line.contains(r#","value":"#));
            (there == wanted).then_some(())
        };
        self.cluster.kubectl_ok(&["create", "service", "clusterip", "gone", "--tcp=80"]);
        wait_for("the node keeps the Service", || kept(true));
        let load = self.load();
        signal(self.pid_of("node")?, Signal::SIGKILL);
        self.cluster.kubectl_ok(&["delete", "service", "gone"]);
        self.start_agent()?;
        wait_for("the node has forgotten the Service", || kept(false));
        Ok(row("Service deleted while no agent runs: forgotten", &load.finish()?, None, false))
    }

    /// A server that stands still keeps its connections and says nothing.
    fn stop_server(&self, stopped: bool) -> Result<()> {
        let kind = if stopped { Signal::SIGSTOP } else { Signal::SIGCONT };
        signal(self.server.as_ref().context("it was started")?.id().cast_signed(), kind);
        Ok(())
    }
}

fn row(what: &'static str, seen: &Seen, back: Option<(Duration, Duration)>, may_lose: bool) -> Row {
    if !may_lose {
        for failure in seen.failures.iter().take(5) {
            eprintln!("{what}: {failure}");
        }
    }
    let lost = seen.failures.len();
    let row = Row { what, asked: seen.answered() + lost as u64, lost, back, may_lose };
    eprintln!("{what}: {} asked, {} lost, {:?}", row.asked, row.lost, row.back);
    row
}
