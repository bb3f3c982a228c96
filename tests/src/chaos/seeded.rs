//! The hunt: the binary is built with the store's feature `seeded-bugs`, is told by a variable to
//! have one of the mistakes, and the suite must find it. A suite that finds none of its own mistakes
//! proves nothing.
//!
//! Every bug meets the same checks in the same order, the quick ones first, until one finds it:
//! - *slow vote*: with fsyncs that take seconds nobody can be elected sooner than they take;
//! - *false data*: a member that applies something else is quarantined within ten seconds;
//! - *power cut*: a short script, cut behind every fsync (see [`crate::powercut`]);
//! - *chaos*: seed after seed, until the time is up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;

use super::cluster::{Cluster, Config};
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

/// What the hunt for one bug came to.
#[derive(Clone, Debug)]
pub struct Hunt {
    pub bug: String,
    /// The check that found it, and what it said.
    pub found: Option<(&'static str, String)>,
    pub minutes: f64,
}

impl std::fmt::Display for Hunt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        match &self.found {
            Some((check, what)) => {
                let what: String = first_line(what).chars().take(160).collect();
                write!(f, "{:<24} found by {check} after {:.1} min: {what}", self.bug, self.minutes)
            }
            None => write!(f, "{:<24} NOT FOUND in {:.1} min", self.bug, self.minutes),
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

/// Hunts one bug; the empty name is the control, in which nothing may be found.
pub async fn hunt(plan: &Plan, bug: &str) -> Result<Hunt> {
    let begun = Instant::now();
    let environment = match bug {
        "" => Vec::new(),
        bug => vec![(BUG.to_owned(), bug.to_owned())],
    };
    let found = search(plan, &environment).await?;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let bug = if bug.is_empty() { "(none, the control)" } else { bug }.to_owned();
    Ok(Hunt { bug, found, minutes })
}

type Environment = [(String, String)];

async fn search(plan: &Plan, bug: &Environment) -> Result<Option<(&'static str, String)>> {
    if let Some(what) = slow_vote(plan, bug).await.context("the slow vote")? {
        return Ok(Some(("slow vote", what)));
    }
    for family in FAMILIES {
        if let Some(what) = false_data(plan, bug, family).await.context("the false data")? {
            return Ok(Some(("false data", what)));
        }
    }
    if let Some(what) = power_cut(plan, bug).await.context("the power cut")? {
        return Ok(Some(("power cut", what)));
    }
    let begun = Instant::now();
    let mut seed = plan.seed;
    while begun.elapsed().as_secs_f64() / 60.0 < plan.minutes_max {
        if let Some(what) = chaos(plan, bug, seed).await.context("the chaos")? {
            return Ok(Some(("chaos", what)));
        }
        seed += 1;
    }
    Ok(None)
}

async fn three(plan: &Plan, bug: &Environment, folder: &Path) -> Result<Cluster> {
    let config = Config {
        members: 3,
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
async fn slow_vote(plan: &Plan, bug: &Environment) -> Result<Option<String>> {
    let folder = tempfile::tempdir()?;
    let cluster = three(plan, bug, folder.path()).await?;
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
            let leads = |row: &&super::cluster::Row| row.role == "leader" && row.name != old;
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
    Ok(found)
}

/// One kind of objects: where it is made, and one of it.
struct Family {
    name: &'static str,
    path: &'static str,
    object: &'static str,
}

/// Kinds of different API groups, whose keys differ from the first byte on.
const FAMILIES: &[Family] = &[
    Family {
        name: "configmaps",
        path: "/api/v1/namespaces/default/configmaps",
        object: r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"f-"}}"#,
    },
    Family {
        name: "leases",
        path: "/apis/coordination.k8s.io/v1/namespaces/default/leases",
        object: r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease",
                    "metadata":{"generateName":"f-"},"spec":{}}"#,
    },
];

/// A member that applies something else than the others must be found, whatever kind it is.
async fn false_data(plan: &Plan, bug: &Environment, family: &Family) -> Result<Option<String>> {
    let folder = tempfile::tempdir()?;
    let cluster = three(plan, bug, folder.path()).await?;
    let leader = cluster.leader().await;
    let liar = (leader + 1) % 3;
    cluster.restart_with(liar, (FAILPOINTS.to_owned(), "machine.corrupt=error".to_owned())).await?;
    let mut client = Client::new(cluster.addresses[leader], cluster.credentials.clone());
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < FOUND_WITHIN {
        let body = Bytes::from_static(family.object.as_bytes());
        let answer = client.call(Method::POST, family.path, body, CALL_TIMEOUT).await;
        last = format!("{answer:?}").chars().take(200).collect();
        let rows = cluster.rows_of(leader).await.unwrap_or_default();
        if rows.iter().any(|row| row.quarantined.is_some()) || !cluster.runs(liar) {
            cluster.stop();
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.stop();
    let name = family.name;
    Ok(Some(format!("a member with false {name} was not found in {FOUND_WITHIN:?} ({last})")))
}

async fn power_cut(plan: &Plan, bug: &Environment) -> Result<Option<String>> {
    let options = powercut::Options {
        operations: 60,
        binary: Some(plan.binary.clone()),
        environment: bug.to_vec(),
        ..powercut::Options::default()
    };
    let report = powercut::run(options).await?;
    Ok(report.failures.into_iter().next())
}

async fn chaos(plan: &Plan, bug: &Environment, seed: u64) -> Result<Option<String>> {
    let mut options = Options::new(seed, 1.0, &plan.folder.join(format!("seed-{seed}")));
    options.binary.clone_from(&plan.binary);
    options.environment = bug.to_vec();
    options.small_disks = false;
    options.power_cuts = true;
    let outcome = run::run(&options).await?;
    Ok(outcome.violations.first().map(|violation| format!("seed {seed}: {violation}")))
}
