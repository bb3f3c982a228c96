//! The hunt: the binary is built with the store's feature `seeded-bugs`, is told by a variable to
//! have one of the mistakes, and the suite must find it. A suite that finds none of its own
//! mistakes proves nothing; nor does one that finds mistakes where there are none, so the same
//! checks are run without a mistake, as a control.
//!
//! Every bug meets the same checks in the same order, the quick ones first, until one finds it:
//! - *slow vote*: with fsyncs that take seconds nobody can be elected sooner than they take;
//! - *false data*: a member that applies something else is quarantined within ten seconds;
//! - *window's edge*: a watch from the oldest revision that can be had misses nothing;
//! - *cut off*: a member that hears of no write answers no read;
//! - *power cut*: a short script, cut behind every fsync (see [`crate::powercut`]);
//! - *chaos*: seed after seed, until the time is up.
//!
//! Each check ends in bounded time. One that could not be done, for want of a leader on a busy
//! machine, is tried again; if it cannot be done at all the hunt goes on and says so, and a control
//! that left something out has not passed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::cluster::{Cluster, Config, Row};
use super::follower;
use super::history::Revision;
use super::nemesis::Mode;
use super::run::{self, Options};
use crate::http::Client;
use crate::powercut;

/// The names that the store gives its mistakes.
pub const BUGS: [&str; 6] = [
    "vote-without-fsync",
    "ack-before-fsync",
    "applied-outside-batch",
    "event-dropped-at-edge",
    "read-index-reused",
    "hash-skips-family",
];

const BUG: &str = "WHERRY_STORE_BUG";
const FAILPOINTS: &str = "WHERRY_STORE_FAILPOINTS";
/// Every fsync of the slow vote takes so long: well beyond an election without it.
const SLOW: Duration = Duration::from_secs(5);
/// A member that differs must be found by then.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A member that is cut off is asked so long: a few times what it may take to refuse.
const CUT_OFF: Duration = Duration::from_secs(5);
/// A quick check that could not be done is tried so often.
const TRIES: usize = 3;
/// The quick checks take a minute, the power cut some.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// A run of chaos ends by itself long before.
const CHAOS_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Restarts, each of which makes a new edge of the window.
const EDGES: usize = 5;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What the hunt for one bug came to.
#[derive(Clone, Debug)]
pub struct Hunt {
    pub bug: String,
    /// The check that found it, and what it said.
    pub found: Option<(&'static str, String)>,
    /// The checks that could not be done.
    pub undone: Vec<&'static str>,
    pub took: Duration,
}

impl Hunt {
    /// Whether this is the hunt without a bug.
    pub fn is_control(&self) -> bool {
        self.bug.is_empty()
    }

    /// Whether a bug was found, or in the control nothing by all checks.
    pub fn passed(&self) -> bool {
        match self.is_control() {
            true => self.found.is_none() && self.undone.is_empty(),
            false => self.found.is_some(),
        }
    }
}

impl std::fmt::Display for Hunt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bug = if self.is_control() { "(none: the control)" } else { &self.bug };
        let minutes = self.took.as_secs_f64() / 60.0;
        match &self.found {
            Some((check, what)) => {
                let what: String =
                    what.lines().next().unwrap_or_default().chars().take(160).collect();
                write!(f, "{bug:<24} found by {check} after {minutes:.1} min: {what}")
            }
            None if self.passed() => {
                write!(f, "{bug:<24} nothing found in {minutes:.1} min, as it should be")
            }
            None if !self.undone.is_empty() => {
                let undone = self.undone.join(", ");
                write!(f, "{bug:<24} NOT FOUND in {minutes:.1} min; could not be done: {undone}")
            }
            None => write!(f, "{bug:<24} NOT FOUND in {minutes:.1} min"),
        }
    }
}

/// How the hunt goes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub binary: PathBuf,
    pub folder: PathBuf,
    pub seed: u64,
    /// Minutes of chaos for each bug at most.
    pub minutes_max: f64,
}

/// One of the checks.
#[derive(Clone, Copy, Debug)]
enum Check {
    SlowVote,
    FalseData(&'static Family),
    WindowsEdge,
    CutOff,
    PowerCut,
    Chaos,
}

/// The quick ones first.
const CHECKS: [Check; 7] = [
    Check::SlowVote,
    Check::FalseData(&FAMILIES[0]),
    Check::FalseData(&FAMILIES[1]),
    Check::WindowsEdge,
    Check::CutOff,
    Check::PowerCut,
    Check::Chaos,
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::SlowVote => "the slow vote",
            Check::FalseData(_) => "the false data",
            Check::WindowsEdge => "the window's edge",
            Check::CutOff => "the member cut off",
            Check::PowerCut => "the power cut",
            Check::Chaos => "the chaos",
        }
    }

    /// What it found, and else what it saw.
    async fn run(self, plan: &Plan, bug: &Environment) -> Result<Seen> {
        match self {
            Check::SlowVote => slow_vote(plan, bug).await,
            Check::FalseData(family) => false_data(plan, bug, family).await,
            Check::WindowsEdge => windows_edge(plan, bug).await,
            Check::CutOff => cut_off(plan, bug).await,
            Check::PowerCut => power_cut(plan, bug).await,
            Check::Chaos => chaos(plan, bug).await,
        }
    }
}

/// A mistake in words, or what was seen of none.
#[derive(Clone, Debug)]
enum Seen {
    Mistake(String),
    Sound(String),
}

/// Hunts one bug; the empty name is the control, in which nothing may be found. `tell` hears of
/// every check that was done.
pub async fn hunt(plan: &Plan, bug: &str, mut tell: impl FnMut(&str)) -> Hunt {
    let begun = Instant::now();
    let environment = match bug {
        "" => Vec::new(),
        bug => vec![(BUG.to_owned(), bug.to_owned())],
    };
    let (mut found, mut undone) = (None, Vec::new());
    for check in CHECKS {
        let name = check.name();
        let since = Instant::now();
        let seen = tried(check, plan, &environment, &mut tell).await;
        let seconds = since.elapsed().as_secs_f64();
        match seen {
            Some(Seen::Sound(what)) => {
                tell(&format!("{name}: nothing in {seconds:.0} s; {what}"));
            }
            Some(Seen::Mistake(what)) => {
                tell(&format!("{name}: FOUND in {seconds:.0} s"));
                found = Some((name, what));
                break;
            }
            None => undone.push(name),
        }
    }
    Hunt { bug: bug.to_owned(), found, undone, took: begun.elapsed() }
}

/// Does a check, again if it could not be done; `None` if it never could.
async fn tried(
    check: Check,
    plan: &Plan,
    bug: &Environment,
    mut tell: impl FnMut(&str),
) -> Option<Seen> {
    let (tries, at_most) = match check {
        Check::Chaos => (1, CHAOS_TIMEOUT + Duration::from_secs_f64(plan.minutes_max * 60.0)),
        _ => (TRIES, CHECK_TIMEOUT),
    };
    for _ in 0..tries {
        let why = match tokio::time::timeout(at_most, Box::pin(check.run(plan, bug))).await {
            Ok(Ok(seen)) => return Some(seen),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("it did not end within {at_most:?}"),
        };
        tell(&format!("{}: could not be done: {why}", check.name()));
    }
    None
}

type Environment = [(String, String)];

async fn members(plan: &Plan, bug: &Environment, members: usize, folder: &Path) -> Result<Cluster> {
    let config = Config {
        members,
        binary: plan.binary.clone(),
        folder: folder.to_owned(),
        small_disks: false,
        power_cuts: false,
        faults: true,
        arguments: Vec::new(),
        environment: bug.to_vec(),
    };
    Cluster::start(config).await
}

/// With slow fsyncs on both survivors no vote can be on disk soon, so nobody may lead soon.
async fn slow_vote(plan: &Plan, bug: &Environment) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let cluster = members(plan, bug, 3, folder.path()).await?;
    let leader = cluster.leader().await;
    let old = cluster.rows().await?.into_iter().find(|row| row.role == "leader");
    let old = old.context("a leader's row")?.name;
    let survivors: Vec<usize> = (0..3).filter(|seat| *seat != leader).collect();
    for seat in &survivors {
        cluster.slow_sync(*seat, SLOW);
    }
    cluster.kill(leader);
    let killed = Instant::now();
    let mut found = None;
    while killed.elapsed() < SLOW - Duration::from_millis(300) && found.is_none() {
        for seat in &survivors {
            let rows = cluster.rows_of(*seat).await.unwrap_or_default();
            let leads = |row: &&Row| row.role == "leader" && row.name != old;
            let now = killed.elapsed();
            if let Some(row) = rows.iter().find(leads).filter(|_| now < SLOW) {
                found = Some(format!(
                    "{} leads {now:?} after the old leader, fsync {SLOW:?}",
                    row.name
                ));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.stop();
    let sound = || Seen::Sound(format!("nobody led sooner than a vote can be on disk, {SLOW:?}"));
    Ok(found.map_or_else(sound, Seen::Mistake))
}

/// One kind of objects: where it is made, and one of it.
#[derive(Debug)]
struct Family {
    name: &'static str,
    /// How its keys begin.
    keys: &'static str,
    path: &'static str,
    object: &'static str,
}

/// Kinds of different API groups, whose keys differ from the first byte on.
static FAMILIES: [Family; 2] = [
    Family {
        name: "configmaps",
        keys: "/configmaps",
        path: MAPS,
        object: r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"f-"}}"#,
    },
    Family {
        name: "cronjobs",
        keys: "batch/cronjobs",
        path: "/apis/batch/v1/namespaces/default/cronjobs",
        object: r#"{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"generateName":"f-"},
            "spec":{"schedule":"0 0 1 1 *","suspend":true,"jobTemplate":{"spec":{"template":{
            "spec":{"restartPolicy":"Never",
            "containers":[{"name":"c","image":"registry.invalid/c:1"}]}}}}}}"#,
    },
];

/// A member that applies something else than the others must be found, whatever kind it is: it says
/// so in the list of members, in its metric, and to those who read from it.
async fn false_data(plan: &Plan, bug: &Environment, family: &Family) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let cluster = members(plan, bug, 3, folder.path()).await?;
    let leader = cluster.leader().await;
    let liar = (leader + 1) % 3;
    // Of its keys alone: what the control plane writes meanwhile must not give it away.
    let lie = (FAILPOINTS.to_owned(), format!("machine.corrupt@{}=error", family.keys));
    if let Err(error) = cluster.restart_with(liar, lie).await {
        return Ok(Seen::Mistake(format!("a member does not come back: {error:#}")));
    }
    let name = family.name;
    let mut client = Client::new(cluster.addresses[leader], cluster.credentials.clone());
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < FOUND_WITHIN {
        let body = Bytes::from_static(family.object.as_bytes());
        let answer = client.call(Method::POST, family.path, body, CALL_TIMEOUT).await;
        last = format!("{answer:?}").chars().take(200).collect();
        let rows = cluster.rows_of(leader).await.unwrap_or_default();
        if rows.iter().any(|row| row.quarantined.is_some()) {
            let seconds = begun.elapsed().as_secs_f64();
            let told = quarantine_is_shown(&cluster, leader, liar).await?;
            cluster.stop();
            let what = format!("false {name} were found after {seconds:.1} s; {told}");
            return Ok(Seen::Sound(what));
        }
        ensure!(cluster.runs(liar), "the member with false {name} ended, and was not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.stop();
    let what = format!("a member with false {name} was not found in {FOUND_WITHIN:?} ({last})");
    Ok(Seen::Mistake(what))
}

/// Where an operator looks: the row of `wherry member list`, and the metric.
async fn quarantine_is_shown(cluster: &Cluster, leader: usize, liar: usize) -> Result<String> {
    let table = cluster.verb_of(leader, &["member", "list"]).await?;
    let name = cluster.name(liar);
    let row = table.lines().find(|line| line.contains(&name)).context("the member has a row")?;
    ensure!(table.contains("quarantined"), "`wherry member list` does not say so:\n{table}");
    let mut client = Client::new(cluster.addresses[liar], cluster.credentials.clone());
    let answer = client.call(Method::GET, "/metrics", Bytes::new(), CALL_TIMEOUT).await?;
    let metrics = crate::text(&answer.body);
    let metric = "wherry_store_quarantined 1";
    ensure!(metrics.lines().any(|line| line == metric), "the member's metric does not say so");
    Ok(format!("`wherry member list`: {}; {metric}", row.trim()))
}

/// Makes a ConfigMap and returns its revision.
async fn make(client: &mut Client, name: &str) -> Result<Revision> {
    let body =
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}}}"#);
    let answer = client.call(Method::POST, MAPS, Bytes::from(body), CALL_TIMEOUT).await?;
    ensure!(answer.status == 201, "{}: {}", answer.status, crate::text(&answer.body));
    let made = answer.json()?;
    let revision = made["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
    Ok(revision.parse()?)
}

/// Behind a restart the window begins anew: what comes first must reach a watch from its edge.
async fn windows_edge(plan: &Plan, bug: &Environment) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let cluster = members(plan, bug, 1, folder.path()).await?;
    let mut watched = 0;
    for edge in 0..EDGES {
        cluster.kill(0);
        if let Err(error) = cluster.start_again(0).await {
            return Ok(Seen::Mistake(format!("a killed member does not come back: {error:#}")));
        }
        let mut client = Client::new(cluster.addresses[0], cluster.credentials.clone());
        let mut made = Vec::new();
        for number in 0..3 {
            let name = format!("edge-{edge}-{number}");
            made.push((make(&mut client, &name).await?, name));
        }
        let mut other = Client::new(cluster.addresses[0], cluster.credentials.clone());
        let oldest = follower::oldest(&mut other, MAPS).await.context("a window has an edge")?;
        let path = format!("{MAPS}?watch=true&resourceVersion={oldest}&timeoutSeconds=1");
        let answer = other.call(Method::GET, &path, Bytes::new(), CALL_TIMEOUT).await?;
        let events = crate::text(&answer.body);
        let came = |name: &str| {
            let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.into_iter().any(|event| event["object"]["metadata"]["name"] == name)
        };
        for (revision, name) in made.iter().filter(|(revision, _)| *revision > oldest) {
            if !came(name) {
                cluster.stop();
                let what = format!("a watch from {oldest}, the oldest revision, missed {revision}");
                return Ok(Seen::Mistake(what));
            }
            watched += 1;
        }
    }
    cluster.stop();
    Ok(Seen::Sound(format!("{watched} events behind the edges of {EDGES} windows were all seen")))
}

/// A member that does not reach the others any more must not answer with what it knew. Its
/// connections are refused, so that it has the time to ask again and again.
async fn cut_off(plan: &Plan, bug: &Environment) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let cluster = members(plan, bug, 3, folder.path()).await?;
    let leader = cluster.leader().await;
    let alone = (leader + 1) % 3;
    let client = |seat: usize| Client::new(cluster.addresses[seat], cluster.credentials.clone());
    let (mut writer, mut reader) = (client(leader), client(alone));
    // It knows a read index, which is of no use behind the next write.
    reader.get(MAPS, CALL_TIMEOUT).await?;
    cluster.network.close(alone);
    let revision = make(&mut writer, "unheard-of").await?;
    let begun = Instant::now();
    let mut refusals = 0;
    while begun.elapsed() < CUT_OFF {
        let path = format!("{MAPS}/unheard-of");
        let answer = reader.call(Method::GET, &path, Bytes::new(), CALL_TIMEOUT).await?;
        if answer.status == 404 {
            cluster.stop();
            let what = format!("a member cut off does not find what was written at {revision}");
            return Ok(Seen::Mistake(what));
        }
        ensure!(answer.status == 503, "{}: {}", answer.status, crate::text(&answer.body));
        refusals += 1;
    }
    cluster.stop();
    Ok(Seen::Sound(format!("it refused {refusals} reads in {CUT_OFF:?}")))
}

async fn power_cut(plan: &Plan, bug: &Environment) -> Result<Seen> {
    let options = powercut::Options {
        operations: 40,
        failures_max: 1,
        binary: Some(plan.binary.clone()),
        environment: bug.to_vec(),
        ..powercut::Options::default()
    };
    let report = powercut::run(options).await?;
    let sound = || Seen::Sound(report.to_string());
    Ok(report.failures.first().cloned().map_or_else(sound, Seen::Mistake))
}

/// A minute with one seed after another. A seed that could not be run is left out.
async fn chaos(plan: &Plan, bug: &Environment) -> Result<Seen> {
    let begun = Instant::now();
    let (mut seed, mut done) = (plan.seed, Vec::new());
    let mut last = None;
    while begun.elapsed().as_secs_f64() / 60.0 < plan.minutes_max {
        let folder = plan.folder.join(format!("seed-{seed}"));
        let mut options = Options::new(seed, plan.minutes_max.min(1.0), &folder);
        options.binary.clone_from(&plan.binary);
        options.environment = bug.to_vec();
        options.mode = Mode::Mixed;
        options.small_disks = false;
        options.power_cuts = true;
        match run::run(&options).await {
            Ok(outcome) => {
                if let Some(violation) = outcome.violations.first() {
                    return Ok(Seen::Mistake(format!("seed {seed}: {violation}")));
                }
                done.push(seed);
            }
            Err(error) => last = Some(error.context(format!("seed {seed}"))),
        }
        seed += 1;
    }
    match last {
        Some(error) if done.is_empty() => Err(error),
        _ => Ok(Seen::Sound(format!("seeds {done:?}"))),
    }
}
