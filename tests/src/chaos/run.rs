//! A run: the cluster, the clients and followers, the plan, and at the end quiet: faults stop, all
//! members come back, agree, and are read once more before the checkers look at everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use super::backups;
use super::check::{self, Findings, Violation};
use super::client::{self, Caller, MAPS, NAMESPACE, PREFIX, Shared};
use super::cluster::{Cluster, Config, Row};
use super::disk::SmallDisk;
use super::follower;
use super::history::{FaultLine, Line, Op, Recorder, StolenLine};
use super::nemesis::{Fault, Mode, Profile, Step, Who, schedule};
use super::report::Report;
use crate::http::Client;
use crate::machine::ProcessorTime;

/// After the last fault the cluster must be whole again by then.
const HEAL_TIMEOUT: Duration = crate::DEADLINE;
/// A run takes so much longer than its faults at most: the last of them, healing, each backup
/// restored, the checks.
const AROUND_MAX: Duration = Duration::from_secs(30 * 60);
/// Who leads is not always known at once.
const LEADER_TIMEOUT: Duration = Duration::from_millis(1500);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const FOLLOWERS: u32 = 3;

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub minutes: f64,
    pub members: usize,
    pub clients: u32,
    pub binary: PathBuf,
    pub small_disks: bool,
    pub power_cuts: bool,
    pub mode: Mode,
    /// Further flags of every server.
    pub arguments: Vec<String>,
    /// Further environment of every server, such as a seeded bug.
    pub environment: Vec<(String, String)>,
    /// Where the history goes; the logs lie beside it.
    pub folder: PathBuf,
}

impl Options {
    pub fn new(seed: u64, minutes: f64, folder: &Path) -> Options {
        Options {
            seed,
            minutes,
            members: 3,
            clients: 8,
            binary: crate::wherry(),
            small_disks: SmallDisk::possible(),
            power_cuts: false,
            mode: Mode::Mixed,
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: folder.to_owned(),
        }
    }
}

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub violations: Vec<Violation>,
    pub accidents: Vec<String>,
}

impl Outcome {
    /// Whether all promises were kept. Speeds are told beside their goals, and fail nothing.
    pub fn passed(&self) -> bool {
        self.report.broken().is_empty()
    }
}

/// Runs it all. An error means that the run itself could not be done.
pub async fn run(options: &Options) -> Result<Outcome> {
    std::fs::create_dir_all(&options.folder)?;
    let scratch = tempfile::tempdir().context("make a folder for the members")?;
    let config = Config {
        members: options.members,
        binary: options.binary.clone(),
        folder: scratch.path().to_owned(),
        small_disks: options.small_disks,
        power_cuts: options.power_cuts,
        faults: true,
        arguments: options.arguments.clone(),
        environment: options.environment.clone(),
    };
    let cluster = Cluster::start(config).await?;
    let at_most = Duration::from_secs_f64(options.minutes * 60.0) + AROUND_MAX;
    let outcome = tokio::time::timeout(at_most, Box::pin(with_cluster(options, &cluster))).await;
    cluster.stop();
    for log in cluster.logs() {
        let name = log.file_name().context("a log has a name")?;
        std::fs::copy(&log, options.folder.join(name))?;
    }
    outcome.with_context(|| format!("the run did not end within {at_most:?}"))?
}

async fn with_cluster(options: &Options, cluster: &Cluster) -> Result<Outcome> {
    let (recorder, recording) = Recorder::start(&options.folder.join("history.jsonl"))?;
    let profile = format!("{options:?}");
    let (seed, minutes, mode) = (options.seed, options.minutes, options.mode.to_string());
    recorder.record(Line::Run { seed, minutes, mode, profile });
    let shared = Shared {
        addresses: cluster.addresses.clone(),
        credentials: cluster.credentials.clone(),
        recorder,
        begun: Instant::now(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let namespace =
        format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{NAMESPACE}"}}}}"#);
    make(cluster, "/api/v1/namespaces", namespace.into()).await?;
    make(cluster, MAPS, client::counter()).await?;
    let mut users = JoinSet::new();
    for number in 0..options.clients {
        users.spawn(client::run(shared.clone(), number, options.seed));
    }
    let mut followers = JoinSet::new();
    for number in 0..=FOLLOWERS {
        let edge = number == FOLLOWERS;
        followers.spawn(follower::run(shared.clone(), number, edge, options.seed));
    }
    let supervisor = tokio::spawn(cluster.clone().supervise());
    let saving = tokio::spawn(backups::save(cluster.clone(), shared.clone(), options.minutes));
    let machine = tokio::spawn(watch_machine(shared.clone()));
    let nemesis = Nemesis { cluster: cluster.clone(), shared: shared.clone() };
    nemesis.run(options).await;
    let settled = settle(cluster).await;
    // Followers see the last writes, and clients the cluster as it came back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user?;
    }
    // They wait for events that no longer come.
    followers.shutdown().await;
    let mut last = Caller::new(shared.clone(), options.clients, options.seed);
    for member in 0..cluster.addresses.len() {
        last.call_on(member, Op::List { prefix: PREFIX.to_owned() }).await;
        last.read_counter(member).await;
    }
    supervisor.abort();
    machine.abort();
    // It holds a recorder until it is gone.
    let _ = machine.await;
    let saved = saving.await?;
    let (made, mut restored, mut unusable) = (saved.len(), 0, Vec::new());
    for backup in saved {
        match backups::read(cluster, &backup).await {
            Ok(call) => {
                shared.recorder.record(Line::Call(call));
                restored += 1;
            }
            Err(error) => unusable.push(Violation {
                rule: "backup-restores",
                detail: format!("{}: {error:#}", backup.file.display()),
            }),
        }
    }
    drop((last, nemesis, shared));
    let history = recording.finish()?;
    let mut findings: Findings = check::check(&history);
    findings.violations.extend(unusable);
    findings.name("backups");
    findings.violations.extend(settled);
    let accidents = cluster.accidents();
    let panicked = accidents.iter().filter(|words| words.contains("panicked"));
    findings
        .violations
        .extend(panicked.map(|words| Violation { rule: "no-panic", detail: words.clone() }));
    findings.name("all come back and agree");
    let mut report = Report::of(&history, &findings, accidents.len());
    report.backups = (made, restored);
    Ok(Outcome { report, violations: findings.violations, accidents })
}

/// Makes an object that the run needs.
async fn make(cluster: &Cluster, path: &str, object: Bytes) -> Result<()> {
    let mut client = Client::new(cluster.addresses[0], cluster.credentials.clone());
    let begun = Instant::now();
    loop {
        match client.call(Method::POST, path, object.clone(), CALL_TIMEOUT).await {
            Ok(answer) if answer.status == 201 || answer.status == 409 => return Ok(()),
            other if begun.elapsed() > HEAL_TIMEOUT => {
                anyhow::bail!("an object at {path} cannot be made: {other:?}");
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Notes each second what the machine's host gave to others: it slows what is measured.
async fn watch_machine(shared: Shared) {
    let Ok(mut before) = ProcessorTime::now() else { return };
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Ok(now) = ProcessorTime::now() else { return };
        let percent = now.stolen_percent_since(before);
        shared.recorder.record(Line::Stolen(StolenLine { at_us: shared.now_us(), percent }));
        before = now;
    }
}

/// Waits until every member serves and all show the same state; what is wrong else.
async fn settle(cluster: &Cluster) -> Vec<Violation> {
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < HEAL_TIMEOUT {
        match agreed(cluster).await {
            Ok(()) => return Vec::new(),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let rule = if last.contains("quarantined") { "members-agree" } else { "comes-back" };
    vec![Violation { rule, detail: format!("after {HEAL_TIMEOUT:?} without faults: {last}") }]
}

async fn agreed(cluster: &Cluster) -> Result<()> {
    for number in 0..cluster.addresses.len() {
        let mut client = Client::new(cluster.addresses[number], cluster.credentials.clone());
        client.get("/api/v1/namespaces/chaos", CALL_TIMEOUT).await.context("a member serves")?;
    }
    if cluster.addresses.len() == 1 {
        return Ok(());
    }
    let rows = cluster.rows().await?;
    let voters = rows.iter().filter(|row| row.role != "learner").count();
    anyhow::ensure!(voters == cluster.addresses.len(), "{voters} members vote: {rows:?}");
    if let Some(row) = rows.iter().find(|row| row.quarantined.is_some()) {
        anyhow::bail!("{row:?} is quarantined");
    }
    let hashes = |row: &Row| (row.applied, row.hash.clone());
    let same_place = rows.iter().all(|row| row.applied == rows[0].applied);
    let same = rows.iter().all(|row| hashes(row) == hashes(&rows[0]));
    // Writes go on, so members are at different revisions most of the time; where they are at one,
    // they are the same.
    anyhow::ensure!(same || !same_place, "members differ at one revision: {rows:?}");
    anyhow::ensure!(rows.iter().all(|row| row.applied.is_some()), "a member is away: {rows:?}");
    Ok(())
}

struct Nemesis {
    cluster: Cluster,
    shared: Shared,
}

impl Nemesis {
    /// Carries the plan out, each step at its time, then heals everything.
    async fn run(&self, options: &Options) {
        let profile = Profile {
            members: options.members,
            small_disks: options.small_disks,
            power_cuts: options.power_cuts,
            mode: options.mode,
        };
        let length_ms = (options.minutes * 60_000.0) as u64;
        let mut lasting = JoinSet::new();
        for step in schedule(options.seed, length_ms, profile) {
            self.until(step.at_ms).await;
            if let Some(fault) = self.begin(step).await {
                lasting.spawn(fault);
            }
        }
        self.until(length_ms).await;
        while lasting.join_next().await.is_some() {}
        self.cluster.network.heal(false);
    }

    async fn until(&self, at_ms: u64) {
        let due = self.shared.begun + Duration::from_millis(at_ms);
        tokio::time::sleep_until(due.into()).await;
    }

    /// Notes a fault that begins now.
    fn tell(&self, step: Step, what: String) {
        let sort = Some(step.fault.sort().to_owned());
        let (at_us, for_us) = (self.shared.now_us(), step.for_ms * 1000);
        self.shared.recorder.record(Line::Fault(FaultLine { at_us, for_us, sort, what }));
    }

    /// Notes what is no fault by itself.
    fn note(&self, what: String) {
        let at_us = self.shared.now_us();
        let line = FaultLine { at_us, for_us: 0, sort: None, what };
        self.shared.recorder.record(Line::Fault(line));
    }

    async fn seat(&self, who: Who) -> Option<usize> {
        match who {
            Who::Seat(number) => Some(number),
            Who::Leader => tokio::time::timeout(LEADER_TIMEOUT, self.cluster.leader()).await.ok(),
        }
    }

    /// Begins a fault; what is left to do about it is returned.
    async fn begin(&self, step: Step) -> Option<futures::future::BoxFuture<'static, ()>> {
        use futures::FutureExt as _;
        let (cluster, length) = (self.cluster.clone(), Duration::from_millis(step.for_ms));
        let network = cluster.network.clone();
        match step.fault {
            Fault::Kill(who) => {
                let seat = self.seat(who).await;
                let Some(seat) = seat else {
                    self.note("found nobody who leads".to_owned());
                    return None;
                };
                self.tell(step, format!("kill {seat}"));
                cluster.kill(seat);
                None
            }
            Fault::Pause(who) => {
                let seat = self.seat(who).await?;
                self.tell(step, format!("pause {seat} for {length:?}"));
                cluster.signal(seat, Signal::SIGSTOP);
                Some(after(length, move || cluster.signal(seat, Signal::SIGCONT)).boxed())
            }
            Fault::Isolate(who) => {
                let seat = self.seat(who).await?;
                let how = if step.breaks { "close" } else { "isolate" };
                self.tell(step, format!("{how} {seat} ({who:?}) for {length:?}"));
                match step.breaks {
                    true => network.close(seat),
                    false => network.isolate(seat),
                }
                Some(after(length, move || network.heal(step.breaks)).boxed())
            }
            Fault::OneWay(from, to) => {
                let (from, to) = (self.seat(from).await?, self.seat(to).await?);
                self.tell(step, format!("{to} does not hear {from} for {length:?}"));
                network.cut(from, to);
                Some(after(length, move || network.heal(step.breaks)).boxed())
            }
            Fault::Delay(who, late_ms) => {
                let seat = self.seat(who).await?;
                self.tell(step, format!("{late_ms} ms around {seat} for {length:?}"));
                network.delay(seat, Duration::from_millis(late_ms));
                Some(after(length, move || network.heal(step.breaks)).boxed())
            }
            _ => self.begin_on_disk(step, length).await,
        }
    }

    async fn begin_on_disk(
        &self,
        step: Step,
        length: Duration,
    ) -> Option<futures::future::BoxFuture<'static, ()>> {
        use futures::FutureExt as _;
        let cluster = self.cluster.clone();
        match step.fault {
            Fault::SlowSync(who, late_ms) => {
                let seat = self.seat(who).await?;
                self.tell(step, format!("fsync of {seat} takes {late_ms} ms for {length:?}"));
                cluster.slow_sync(seat, Duration::from_millis(late_ms));
                Some(after(length, move || cluster.slow_sync(seat, Duration::ZERO)).boxed())
            }
            Fault::FillDisk(who, percent) => {
                let seat = self.seat(who).await?;
                let filled = cluster.fill_disk(seat, percent);
                let filled = ended(filled);
                self.tell(
                    step,
                    format!("disk of {seat} {percent} % full for {length:?}: {filled}"),
                );
                let empty = move || {
                    if let Err(error) = cluster.fill_disk(seat, 0) {
                        eprintln!("chaos: {error:#}");
                    }
                };
                Some(after(length, empty).boxed())
            }
            Fault::PowerCut(who) => {
                let seat = self.seat(who).await?;
                let done = ended(cluster.power_cut(seat));
                self.tell(step, format!("power cut of {seat}: {done}"));
                None
            }
            Fault::Replace(who) => {
                let seat = self.seat(who).await?;
                self.tell(step, format!("replace {seat}"));
                let nemesis = Nemesis { cluster, shared: self.shared.clone() };
                let replace = async move {
                    let done = ended(nemesis.cluster.replace(seat).await);
                    nemesis.note(format!("replaced {seat}: {done}"));
                };
                Some(replace.boxed())
            }
            _ => {
                self.tell(step, "transfer".to_owned());
                if let Err(error) = cluster.transfer().await {
                    self.note(format!("failed to hand over: {error:#}"));
                }
                None
            }
        }
    }
}

/// How something went, for the history.
fn ended(result: Result<()>) -> String {
    result.map_or_else(|error| format!("{error:#}"), |()| "done".to_owned())
}

async fn after(length: Duration, end: impl FnOnce()) {
    tokio::time::sleep(length).await;
    end();
}
