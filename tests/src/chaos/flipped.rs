//! A flipped bit in a follower's data: of a member that was killed one bit of one file is turned
//! over, somewhere in its store, and it is started again.
//!
//! It must be found within [`FOUND_WITHIN`] of being read, which is when the member starts: either
//! the member ends and says why, or it is quarantined. A bit in nothing that counts (a
//! record that newer ones have replaced) may stay: then the member shows exactly what the leader
//! shows.
//!
//! Each flip begins with a sound member: one that did not start gets its files back as they were,
//! and since it has promised nothing meanwhile it may go on with them; any other is replaced.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::cluster::{Cluster, Config, START_TIMEOUT};
use crate::http::Client;
use crate::server::Server;

/// From the start of the process on.
pub const FOUND_WITHIN: Duration = Duration::from_secs(10);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects that lie in table files: they were written before the member was killed once.
const TABLE_OBJECTS: usize = 120;
/// Objects that lie in the write-ahead log, written anew before each flip.
const LOG_OBJECTS: usize = 30;
/// Words in a member's log by which it says what is wrong.
const MARKS: [&str; 3] = ["is damaged", "has lost data", "cannot be used"];
/// What it says when it did not even start.
const NOT_STARTED: &str = "cannot start on";

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub flips: usize,
    pub seed: u64,
    pub binary: PathBuf,
}

/// What became of one flip.
#[derive(Clone, Debug)]
pub struct Flip {
    pub file: String,
    pub bit: u64,
    /// From the start of the member until that.
    pub took: Duration,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The member did not start, and said this.
    Refused(String),
    /// The member started, ended, and said this.
    Stopped(String),
    /// The others said that its data differs.
    Quarantined(String),
    /// It shows what the leader shows.
    Harmless,
    /// It was not found.
    Missed(String),
}

impl Flip {
    pub fn missed(&self) -> bool {
        matches!(self.fate, Fate::Missed(_))
    }
}

impl std::fmt::Display for Flip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, words) = match &self.fate {
            Fate::Refused(words) => ("found, it does not start", words.as_str()),
            Fate::Stopped(words) => ("found, it stops", words.as_str()),
            Fate::Quarantined(words) => ("found, it is quarantined", words.as_str()),
            Fate::Harmless => ("without effect", "it shows what the leader shows"),
            Fate::Missed(words) => ("NOT FOUND", words.as_str()),
        };
        let words_max = if self.missed() { usize::MAX } else { 140 };
        let words: String = words.chars().take(words_max).collect();
        let seconds = self.took.as_secs_f64();
        write!(f, "bit {:>9} of {:<28} {what} after {seconds:.1} s: {words}", self.bit, self.file)
    }
}

/// Turns bits over one after the other.
pub async fn run(options: &Options, mut tell: impl FnMut(&Flip)) -> Result<Vec<Flip>> {
    let folder = tempfile::tempdir()?;
    let config = Config {
        members: 3,
        binary: options.binary.clone(),
        folder: folder.path().join("members"),
        small_disks: false,
        power_cuts: false,
        faults: false,
        arguments: Vec::new(),
        environment: Vec::new(),
    };
    let cluster = Cluster::start(config).await?;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % cluster.addresses.len();
    let mut client = Client::new(cluster.addresses[leader], cluster.credentials.clone());
    let mut random = StdRng::seed_from_u64(options.seed);
    write(&mut client, "table", TABLE_OBJECTS, &mut random).await?;
    caught_up(&cluster, follower).await?;
    let (data_dir, sound) = (cluster.data_dir(follower), folder.path().join("sound"));
    let mut flips = Vec::new();
    for number in 0..options.flips {
        // Opened again, it has put what it had into tables; what is written now is in its log.
        cluster.kill(follower);
        cluster.start_again(follower).await?;
        write(&mut client, &format!("log-{number}"), LOG_OBJECTS, &mut random).await?;
        caught_up(&cluster, follower).await?;
        cluster.kill(follower);
        copy(&data_dir, &sound)?;
        let (file, bit) = flip(&data_dir.join("store"), &mut random)?;
        let begun = Instant::now();
        let fate = fate(&cluster, follower, &mut client).await?;
        let flip = Flip { file, bit, took: begun.elapsed(), fate };
        tell(&flip);
        if matches!(flip.fate, Fate::Refused(_)) {
            std::fs::remove_dir_all(&data_dir)?;
            std::fs::rename(&sound, &data_dir)?;
            cluster.start_again(follower).await?;
        } else {
            std::fs::remove_dir_all(&sound)?;
            cluster.replace(follower).await?;
        }
        flips.push(flip);
    }
    cluster.stop();
    Ok(flips)
}

async fn write(
    client: &mut Client,
    prefix: &str,
    objects: usize,
    random: &mut StdRng,
) -> Result<()> {
    for number in 0..objects {
        // Nothing that compression would make small: the values are most of the files.
        let value: String = (0..64).map(|_| format!("{:016x}", random.random::<u64>())).collect();
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("{prefix}-{number}")}, "data": {"value": value}});
        let body = Bytes::from(serde_json::to_vec(&body)?);
        let answer = client.call(Method::POST, MAPS, body, CALL_TIMEOUT).await?;
        ensure!(answer.status == 201, "{}: {}", answer.status, crate::text(&answer.body));
    }
    Ok(())
}

/// A linearizable read of the member waits until it has everything.
async fn caught_up(cluster: &Cluster, member: usize) -> Result<()> {
    let mut client = Client::new(cluster.addresses[member], cluster.credentials.clone());
    client.get(MAPS, CALL_TIMEOUT).await.map(drop)
}

/// Starts the member on its files and says what becomes of it.
async fn fate(cluster: &Cluster, member: usize, leader: &mut Client) -> Result<Fate> {
    let begun = Instant::now();
    let options = cluster.options(member);
    // Only what it says now.
    let _ = std::fs::remove_file(&options.log);
    let mut server = Server::start(options)?;
    let ready = server.ready(START_TIMEOUT).await;
    if server.ended().is_some() {
        let late = begun.elapsed() > FOUND_WITHIN;
        let said = crate::text(&std::fs::read(&server.options.log)?);
        let marked = |line: &&str| MARKS.iter().any(|mark| line.contains(mark));
        return Ok(match said.lines().find(marked) {
            Some(line) if !late && said.contains(NOT_STARTED) => {
                Fate::Refused(line.trim().to_owned())
            }
            Some(line) if !late => Fate::Stopped(line.trim().to_owned()),
            Some(line) => Fate::Missed(format!("only after {:?}: {line}", begun.elapsed())),
            None => Fate::Missed(format!("it ended without saying why: {}", server.last_words())),
        });
    }
    let credentials = ready?;
    let mut own = Client::new(server.options.listen, credentials);
    loop {
        let name = &server.options.name;
        if let Some(words) = quarantined(leader, name).await? {
            return Ok(Fate::Quarantined(words));
        }
        let (here, there) = (content(&mut own).await, content(leader).await?);
        match here {
            Ok(here) if here == there => return Ok(Fate::Harmless),
            _ if begun.elapsed() < FOUND_WITHIN => {}
            other => return Ok(Fate::Missed(format!("it shows something else: {other:?}"))),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Why a member is quarantined, as another one tells.
async fn quarantined(client: &mut Client, name: &str) -> Result<Option<String>> {
    let told = client.get("/wherry/v1/members", CALL_TIMEOUT).await?;
    let rows = told["members"].as_array().context("the members are a list")?;
    let row = rows.iter().find(|row| row["name"] == name).context("the member has a row")?;
    Ok(row["quarantined"].as_str().map(str::to_owned))
}

/// All objects of the script, as they are listed.
async fn content(client: &mut Client) -> Result<Value> {
    let mut list = client.get(MAPS, CALL_TIMEOUT).await?;
    Ok(list["items"].take())
}

/// Turns one bit over, of all that lie in files with data.
fn flip(store: &Path, random: &mut StdRng) -> Result<(String, u64)> {
    let mut files = Vec::new();
    files_below(store, &mut files)?;
    files.sort();
    let sizes: Vec<u64> =
        files.iter().map(|file| Ok(std::fs::metadata(file)?.len())).collect::<Result<_>>()?;
    let mut bit = random.random_range(0..sizes.iter().sum::<u64>() * 8);
    for (file, size) in files.iter().zip(sizes) {
        if bit < size * 8 {
            let mut bytes = std::fs::read(file)?;
            bytes[usize::try_from(bit / 8)?] ^= 1 << (bit % 8);
            std::fs::write(file, bytes)?;
            return Ok((file.strip_prefix(store)?.display().to_string(), bit));
        }
        bit -= size * 8;
    }
    unreachable!("the bit is below the sum of the sizes")
}

/// Files with data: not what RocksDB notes for people, nor its lock and settings, nor the space
/// that is held for bad times.
fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files_below(&path, files)?;
        } else if !["LOG", "LOCK", "OPTIONS", "IDENTITY", "ballast"]
            .iter()
            .any(|no| name.starts_with(no))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// Copies a folder with all that is below it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => _ = std::fs::copy(entry.path(), target)?,
        }
    }
    Ok(())
}
