//! A flipped bit in a follower's data: of a member that was killed one bit of one file is turned
//! over, somewhere in its store, and it is started again.
//!
//! It must be found within [`FOUND_WITHIN`] of being read, which is when the member starts: either
//! the member ends and says why, or it is quarantined. A bit in nothing that counts (a
//! record that newer ones have replaced) may stay: then the member shows exactly what the leader
//! shows. Where a bit lies is chance, so flips go on until one has been found.
//!
//! Each flip begins with a sound member: one that did not start gets its files back as they were,
//! and since it has promised nothing meanwhile it may go on with them; any other is replaced.
//!
//! And a flipped bit in memory: of a follower that runs a bit of an object is turned over wherever
//! its memory holds that object. It must end within [`FOUND_WITHIN`] and say why, and with its files
//! go on as if nothing had been.
//!
//! Nothing else may decide about a flip: the others are asked until they answer, for on a busy
//! machine they may be without a leader now and then, and [`Options::within`] may allow more time
//! where none is measured.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::cluster::{Cluster, Config, START_TIMEOUT};
use crate::copy_folder;
use crate::http::{Answer, Client};
use crate::server::Server;

/// From the start of the process on.
pub const FOUND_WITHIN: Duration = Duration::from_secs(10);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two questions of the same kind.
const RETRY: Duration = Duration::from_millis(100);
/// Of so many flips in a row one is in something that counts, or the flips are wrong.
const HARMLESS_MAX: usize = 16;
/// Objects that lie in table files: they were written before the member was killed once.
const TABLE_OBJECTS: usize = 120;
/// Objects that lie in the write-ahead log, written anew before each flip.
const LOG_OBJECTS: usize = 30;
/// Words in a member's log by which it says what is wrong.
const MARKS: [&str; 3] = ["is damaged", "has lost data", "cannot be used"];
/// … and about its memory.
const MEMORY_MARK: &str = "is damaged in memory";
/// The start of a value is looked for by so many bytes of it.
const NEEDLE_BYTES: usize = 48;
/// Memory is read in parts of this size.
const PART_BYTES: usize = 4 << 20;
/// Larger parts of the address space are kept free for what may come, and hold next to nothing.
const REGION_BYTES_MAX: u64 = 1 << 30;
/// What it says when it did not even start.
const NOT_STARTED: &str = "cannot start on";

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// In files; more until one of them has been found.
    pub flips: usize,
    /// In memory.
    pub memory_flips: usize,
    pub seed: u64,
    /// From the start of the member, or from the flip in its memory, until it must be found:
    /// [`FOUND_WITHIN`] where time is measured.
    pub within: Duration,
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

    pub fn found(&self) -> bool {
        matches!(self.fate, Fate::Refused(_) | Fate::Stopped(_) | Fate::Quarantined(_))
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
    let leader = tokio::time::timeout(START_TIMEOUT, cluster.leader()).await;
    let leader = leader.context("nobody leads")?;
    let follower = (leader + 1) % cluster.addresses.len();
    let client = Client::new(cluster.addresses[leader], cluster.credentials.clone());
    let random = StdRng::seed_from_u64(options.seed);
    let mut turn = Turn { cluster, follower, client, random, within: options.within };
    let values = write(&mut turn.client, "table", TABLE_OBJECTS, &mut turn.random).await?;
    turn.caught_up().await?;
    let mut flips: Vec<Flip> = Vec::new();
    let flips_max = if options.flips == 0 { 0 } else { options.flips + HARMLESS_MAX };
    for number in 0..flips_max {
        if number >= options.flips && flips.iter().any(Flip::found) {
            break;
        }
        let flip = turn.flip_in_files(number, &folder.path().join("sound")).await?;
        tell(&flip);
        flips.push(flip);
    }
    for _ in 0..options.memory_flips {
        let flip = turn.flip_in_memory(&values).await?;
        tell(&flip);
        flips.push(flip);
    }
    turn.cluster.stop();
    Ok(flips)
}

/// What each flip needs.
struct Turn {
    cluster: Cluster,
    /// Whose bits are turned over.
    follower: usize,
    /// Asks another member, which nobody touches.
    client: Client,
    random: StdRng,
    within: Duration,
}

impl Turn {
    async fn flip_in_files(&mut self, number: usize, sound: &Path) -> Result<Flip> {
        let (cluster, follower) = (&self.cluster, self.follower);
        let data_dir = cluster.data_dir(follower);
        // Opened again, it has put what it had into tables; what is written now is in its log.
        cluster.kill(follower);
        cluster.start_again(follower).await?;
        let prefix = format!("log-{number}");
        write(&mut self.client, &prefix, LOG_OBJECTS, &mut self.random).await?;
        self.caught_up().await?;
        cluster.kill(follower);
        copy_folder(&data_dir, sound)?;
        let (file, bit) = flip(&data_dir.join("store"), &mut self.random)?;
        let begun = Instant::now();
        let fate = fate(cluster, follower, &mut self.client, self.within).await?;
        let took = begun.elapsed();
        if matches!(fate, Fate::Refused(_)) {
            std::fs::remove_dir_all(&data_dir)?;
            std::fs::rename(sound, &data_dir)?;
            cluster.start_again(follower).await?;
        } else {
            std::fs::remove_dir_all(sound)?;
            cluster.replace(follower).await?;
        }
        Ok(Flip { file, bit, took, fate })
    }

    async fn flip_in_memory(&mut self, values: &[String]) -> Result<Flip> {
        let (cluster, follower) = (&self.cluster, self.follower);
        // Started again, it has in memory what it reads from disk, and nothing else.
        cluster.kill(follower);
        // Only what it says from now on.
        let _ = std::fs::remove_file(cluster.options(follower).log);
        cluster.start_again(follower).await?;
        self.caught_up().await?;
        let value = &values[self.random.random_range(0..values.len())];
        let bit = self.random.random_range(0..NEEDLE_BYTES as u64 * 8);
        let copies = flip_in_memory(cluster, follower, &value.as_bytes()[..NEEDLE_BYTES], bit)?;
        let begun = Instant::now();
        let fate = fate_in_memory(cluster, follower, self.within).await?;
        let took = begun.elapsed();
        cluster.kill(follower);
        cluster.start_again(follower).await?;
        self.caught_up().await?;
        let mut own = Client::new(cluster.addresses[follower], cluster.credentials.clone());
        let same = patient_content(&mut own).await? == patient_content(&mut self.client).await?;
        ensure!(same, "its files were sound, yet started again it shows something else");
        Ok(Flip { file: format!("memory ({copies}×)"), bit, took, fate })
    }

    /// A linearizable read of the member waits until it has everything.
    async fn caught_up(&self) -> Result<()> {
        let address = self.cluster.addresses[self.follower];
        let mut client = Client::new(address, self.cluster.credentials.clone());
        patient_content(&mut client).await.map(drop)
    }
}

/// Turns a bit over, of some bytes, wherever the memory of a member has them; how often that was.
/// The member stands still meanwhile: what it used anew in between would be damaged beside them.
fn flip_in_memory(cluster: &Cluster, member: usize, needle: &[u8], bit: u64) -> Result<usize> {
    cluster.signal(member, Signal::SIGSTOP);
    let copies = flip_copies(cluster, member, needle, bit);
    cluster.signal(member, Signal::SIGCONT);
    copies
}

fn flip_copies(cluster: &Cluster, member: usize, needle: &[u8], bit: u64) -> Result<usize> {
    let pid = cluster.pid(member).context("the member runs")?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.context("writing to the memory of a process of one's own")?;
    let finder = regex::bytes::Regex::new(std::str::from_utf8(needle)?)?;
    let mut copies = 0;
    for (from, end) in maps.lines().filter_map(writable) {
        let mut at = from;
        while at < end {
            let length = (end - at).min((PART_BYTES + needle.len()) as u64);
            let mut part = vec![0; usize::try_from(length)?];
            // Some of it may be gone by now.
            if memory.read_exact_at(&mut part, at).is_ok() {
                for found in finder.find_iter(&part) {
                    let place = at + found.start() as u64 + bit / 8;
                    let byte = part[found.start() + usize::try_from(bit / 8)?] ^ (1 << (bit % 8));
                    memory.write_all_at(&[byte], place)?;
                    copies += 1;
                }
            }
            at += PART_BYTES as u64;
        }
    }
    ensure!(copies > 0, "the member does not have the object in memory");
    Ok(copies)
}

/// The bounds of a part of memory that holds data, in a line of `/proc/PID/maps`.
fn writable(line: &str) -> Option<(u64, u64)> {
    let (bounds, rest) = line.split_once(' ')?;
    let (from, end) = bounds.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (from, end) = (number(from)?, number(end)?);
    (rest.starts_with("rw-p") && end - from <= REGION_BYTES_MAX).then_some((from, end))
}

/// Waits until a running member ends, and says what it said.
async fn fate_in_memory(cluster: &Cluster, member: usize, within: Duration) -> Result<Fate> {
    let begun = Instant::now();
    while cluster.runs(member) {
        if begun.elapsed() > within {
            return Ok(Fate::Missed("it goes on".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = crate::text(&std::fs::read(cluster.options(member).log)?);
    Ok(match said.lines().rev().find(|line| line.contains(MEMORY_MARK)) {
        Some(line) => Fate::Stopped(line.trim().to_owned()),
        None => Fate::Missed("it ended without saying why".to_owned()),
    })
}

/// Makes objects, and returns their values.
async fn write(
    client: &mut Client,
    prefix: &str,
    objects: usize,
    random: &mut StdRng,
) -> Result<Vec<String>> {
    let mut values = Vec::new();
    for number in 0..objects {
        // Nothing that compression would make small: the values are most of the files.
        let value: String = (0..64).map(|_| format!("{:016x}", random.random::<u64>())).collect();
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("{prefix}-{number}")}, "data": {"value": value}});
        let body = Bytes::from(serde_json::to_vec(&body)?);
        // Asked again, the first time may have been heard.
        let made = |status: u16| status == 201 || status == 409;
        patient_call(client, Method::POST, MAPS, body, made).await?;
        values.push(value);
    }
    Ok(values)
}

/// Starts the member on its files and says what becomes of it.
async fn fate(
    cluster: &Cluster,
    member: usize,
    leader: &mut Client,
    within: Duration,
) -> Result<Fate> {
    let begun = Instant::now();
    let options = cluster.options(member);
    // Only what it says now.
    let _ = std::fs::remove_file(&options.log);
    let mut server = Server::start(options)?;
    let ready = server.ready(START_TIMEOUT).await;
    if server.ended().is_some() {
        return fate_of_ended(&server, begun.elapsed(), within);
    }
    let credentials = match ready {
        Ok(credentials) => credentials,
        Err(error) => return Ok(Fate::Missed(format!("it neither serves nor ends: {error:#}"))),
    };
    let mut own = Client::new(server.options.listen, credentials);
    loop {
        let name = &server.options.name;
        if let Some(words) = quarantined(leader, name).await? {
            return Ok(Fate::Quarantined(words));
        }
        let (here, there) = (content(&mut own).await, patient_content(leader).await?);
        // It looks through its files while it serves.
        if server.ended().is_some() {
            return fate_of_ended(&server, begun.elapsed(), within);
        }
        match here {
            Ok(here) if here == there => return Ok(Fate::Harmless),
            _ if begun.elapsed() < within => {}
            other => return Ok(Fate::Missed(format!("it shows something else: {other:?}"))),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What a member has said that ended so long after its start.
fn fate_of_ended(server: &Server, took: Duration, within: Duration) -> Result<Fate> {
    let said = crate::text(&std::fs::read(&server.options.log)?);
    let marked = |line: &&str| MARKS.iter().any(|mark| line.contains(mark));
    let refused = said.lines().find(|line| line.contains(NOT_STARTED));
    Ok(match said.lines().find(marked).or(refused) {
        Some(line) if took > within => Fate::Missed(format!("only after {took:?}: {line}")),
        Some(line) if refused.is_some() => Fate::Refused(line.trim().to_owned()),
        Some(line) => Fate::Stopped(line.trim().to_owned()),
        None => Fate::Missed(format!("it ended without saying why: {}", server.last_words())),
    })
}

/// Why a member is quarantined, as another one tells.
async fn quarantined(client: &mut Client, name: &str) -> Result<Option<String>> {
    let told = patient_get(client, "/wherry/v1/members").await?;
    let rows = told["members"].as_array().context("the members are a list")?;
    let row = rows.iter().find(|row| row["name"] == name).context("the member has a row")?;
    Ok(row["quarantined"].as_str().map(str::to_owned))
}

/// All objects of the script, as they are listed.
async fn content(client: &mut Client) -> Result<Value> {
    let mut list = client.get(MAPS, CALL_TIMEOUT).await?;
    Ok(list["items"].take())
}

/// The same, asked until there is an answer.
async fn patient_content(client: &mut Client) -> Result<Value> {
    let mut list = patient_get(client, MAPS).await?;
    Ok(list["items"].take())
}

async fn patient_get(client: &mut Client, path: &str) -> Result<Value> {
    let found = |status: u16| status == 200;
    patient_call(client, Method::GET, path, Bytes::new(), found).await?.json()
}

/// Asks until there is such an answer: members may be without a leader for a while.
async fn patient_call(
    client: &mut Client,
    method: Method,
    path: &str,
    body: Bytes,
    wanted: impl Fn(u16) -> bool,
) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        let answer = client.call(method.clone(), path, body.clone(), CALL_TIMEOUT).await;
        let why = match answer {
            Ok(answer) if wanted(answer.status) => return Ok(answer),
            Ok(answer) => format!("{}: {}", answer.status, crate::text(&answer.body)),
            Err(failure) => failure.to_string(),
        };
        ensure!(begun.elapsed() < START_TIMEOUT, "{method} {path}: {why}");
        tokio::time::sleep(RETRY).await;
    }
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

#[cfg(test)]
mod tests {
    #[test]
    fn memory_with_data_is_told_from_the_rest() {
        let heap = "7f00a0000000-7f00a0021000 rw-p 00000000 00:00 0";
        assert_eq!(super::writable(heap), Some((0x7f00_a000_0000, 0x7f00_a002_1000)));
        let code = "55d0c0000000-55d0c0001000 r-xp 00000000 08:01 12 /usr/bin/wherry";
        assert_eq!(super::writable(code), None);
        let reserved = "7e0000000000-7f0000000000 rw-p 00000000 00:00 0";
        assert_eq!(super::writable(reserved), None);
    }
}
