//! Backups of the cluster while everything fails: made every now and then by `wherry backup save`
//! from a member that runs, restored at the end, each into a cluster of its own, and read there.
//!
//! What such a cluster shows is told to the checkers as a list, asked for when the backup was begun
//! and answered when it was saved, at the backup's revision. So a backup is held to all that a list
//! is held to: it is the state at its revision, every key with its value and revision, and shows
//! what was acknowledged before it was asked for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::client::{MAPS, PREFIX, Shared, list};
use super::cluster::{Cluster, START_TIMEOUT};
use super::history::{Call, FaultLine, Line, Op, Outcome, Revision};
use crate::http::Client;
use crate::own_address;
use crate::server::{Server, ServerOptions};

/// Backups of a run, about; each is restored and read, which takes some seconds.
const BACKUPS: f64 = 10.0;
/// No more often than this.
const EVERY_MIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the run is over.
const LOOK: Duration = Duration::from_millis(100);
/// The client's number in the history; no other client has it.
const CLIENT: u32 = 1000;

/// A backup file, with what the history must know.
#[derive(Clone, Debug)]
pub struct Saved {
    pub file: PathBuf,
    member: usize,
    invoke_us: u64,
    return_us: u64,
}

/// Makes backups until the run is over. One that fails is noted: its member was killed meanwhile.
pub async fn save(cluster: Cluster, shared: Shared, minutes: f64) -> Vec<Saved> {
    let every = Duration::from_secs_f64(minutes * 60.0 / BACKUPS).max(EVERY_MIN);
    let mut saved = Vec::new();
    let mut due = shared.begun + every / 2;
    for number in 0.. {
        while std::time::Instant::now() < due && !shared.stopped() {
            tokio::time::sleep(LOOK).await;
        }
        if shared.stopped() {
            break;
        }
        due += every;
        let file = cluster.config.folder.join(format!("backup-{number}"));
        let member = number % cluster.addresses.len();
        let invoke_us = shared.now_us();
        let path = file.display().to_string();
        let done = cluster.verb_of(member, &["backup", "save", "--include-keyring", &path]).await;
        let return_us = shared.now_us();
        match done {
            Ok(_) => saved.push(Saved { file, member, invoke_us, return_us }),
            Err(error) => {
                let what = format!("no backup from {member}: {error:#}");
                let line = FaultLine { at_us: return_us, for_us: 0, sort: None, what };
                shared.recorder.record(Line::Fault(line));
            }
        }
    }
    saved
}

/// Restores a backup into a new cluster and lists what is there.
pub async fn read(cluster: &Cluster, saved: &Saved) -> Result<Call> {
    let revision = revision(cluster, saved).await?;
    let data_dir = saved.file.with_extension("restored");
    let (file, folder) = (saved.file.display().to_string(), data_dir.display().to_string());
    cluster.run(&["backup", "restore", &file, "--data-dir", &folder]).await?;
    let mut options = ServerOptions::new("restored", &data_dir, (own_address(), 6443).into());
    options.binary = Some(cluster.config.binary.clone());
    let mut server = Server::start(options)?;
    let credentials = server.ready(START_TIMEOUT).await?;
    let mut client = Client::new(server.options.listen, credentials);
    let body = client.get_within(MAPS, START_TIMEOUT).await?;
    drop(server);
    std::fs::remove_dir_all(&data_dir)?;
    let (_, items) = list(&body).context("the restored cluster gives a list")?;
    Ok(Call {
        client: CLIENT,
        member: saved.member,
        invoke_us: saved.invoke_us,
        return_us: saved.return_us,
        op: Op::List { prefix: PREFIX.to_owned() },
        outcome: Outcome::Listed { revision, items },
    })
}

/// The revision of the state in a backup.
async fn revision(cluster: &Cluster, saved: &Saved) -> Result<Revision> {
    let file = saved.file.display().to_string();
    let told = cluster.run(&["backup", "inspect", &file]).await?;
    let line = told.lines().find_map(|line| line.strip_prefix("revision "));
    let line = line.with_context(|| format!("no revision in {told}"))?;
    line.trim().parse().with_context(|| format!("the revision {line:?}"))
}
