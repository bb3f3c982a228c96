//! The power cut: a script of writes against real members whose every file change is journalled;
//! then, for every fsync of the journals, the disks as a cut right behind it leaves them, members
//! on those disks, and a look whether all is there that was acknowledged by then.
//!
//! ```text
//!  members + shim ─► journals ─► Disks (record by record) ─► cut ─► members ─► list
//!       ▲                                                                        │
//!    script ── acknowledged at journal lengths n ───────────► expected ◄─────────┘
//! ```
//!
//! An acknowledgement is placed at the journals' lengths when the answer had come, so what is
//! expected at a boundary is never more than what the members had promised.
//!
//! One member alone is cut behind each of its fsyncs, from its first start on. Of several, behind
//! each fsync of any of them during the script ([`Loss`]): that one loses power, another one is
//! away for good, and with the rest it makes the smallest majority there is, so that whatever it
//! alone had promised is missed; and all lose power in the same moment.

pub mod disk;
pub mod journal;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::disk::{Disk, Keep};
use self::journal::Change;
use crate::chaos::cluster::{Cluster, Config, Row};
use crate::http::Client;
use crate::own_address;
use crate::server::{Server, ServerOptions, shim};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A server on a small disk is there within a second; many start at once here.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Members without a leader are asked again for so long.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(100);
/// How far it is, is told after so many cuts: all of them take a while.
const TOLD_EVERY: usize = 100;
/// Every fsync of the script is late by so much, and is in the journal only then: an answer that
/// does not wait for it is surely given before.
const SYNC_LATE: Duration = Duration::from_millis(20);

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub operations: usize,
    /// One, or an odd number.
    pub members: usize,
    /// Cuts that are tried at once: their members wait for elections most of the time.
    pub parallel: usize,
    pub keep: Keep,
    /// So many failures are enough.
    pub failures_max: usize,
    pub binary: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        let (binary, environment, failures_max) = (None, Vec::new(), usize::MAX);
        let keep = Keep::Nothing;
        Options {
            operations: 200,
            members: 1,
            parallel: 6,
            keep,
            failures_max,
            binary,
            environment,
        }
    }
}

/// Who loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// One member; of the others only as many are there as it takes for a majority.
    One,
    All,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Fsyncs in the journals: of one member from its first start on, of several during the script.
    pub fsyncs: usize,
    /// Those that made something durable: behind each of them the power was cut.
    pub boundaries: usize,
    /// How often members were started on cut disks.
    pub cuts: usize,
    pub failures: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { fsyncs, boundaries, cuts, failures } = self;
        let failed = failures.len();
        write!(
            f,
            "{fsyncs} fsyncs, {boundaries} of them made something durable, {cuts} power cuts \
             behind them, {failed} lost something"
        )
    }
}

/// ConfigMaps by name: resourceVersion and value.
type State = BTreeMap<String, (String, String)>;

/// The state as acknowledged, from some lengths of the journals on.
#[derive(Clone, Debug)]
struct Promise {
    from: Vec<u64>,
    state: State,
    /// What is asked next, and may have happened: a name and its value from then on.
    next: Option<(String, Option<String>)>,
}

/// A script that was carried out.
struct Script {
    /// One a member.
    journals: Vec<Vec<u8>>,
    /// Where the members knew one another.
    addresses: Vec<SocketAddr>,
    names: Vec<String>,
    /// The journals' lengths when the members were complete and the script began.
    begun: Vec<u64>,
    promises: Vec<Promise>,
}

/// Runs the script, then cuts the power behind every fsync that mattered.
pub async fn run(options: Options) -> Result<Report> {
    ensure!(options.members % 2 == 1, "of {} members a majority is no test", options.members);
    let folder = tempfile::tempdir()?;
    let script = script(folder.path(), &options).await?;
    let mut report = Report::default();
    let mut records = Vec::new();
    for (member, journal) in script.journals.iter().enumerate() {
        let own = journal::read(journal)?.into_iter();
        records.extend(own.map(|record| (member, record)));
    }
    // One clock: this is the order in which everything happened. Each journal keeps its own.
    records.sort_by_key(|(_, record)| record.at_us);
    let mut disks: Vec<Disk<'_>> = script.journals.iter().map(|_| Disk::default()).collect();
    let mut lengths = vec![0; disks.len()];
    let mut trials = Trials::new(folder.path(), &options, &script);
    for (member, record) in &records {
        let counts = disks.len() == 1 || lengths[*member] >= script.begun[*member];
        let sync = matches!(record.change, Change::Sync { .. });
        report.fsyncs += usize::from(sync && counts);
        // The last moment of these disks: what was acknowledged by now must be on them.
        if counts && disks[*member].hardens(record) {
            report.boundaries += 1;
            trials.cut(&disks, *member, &lengths).await?;
        }
        if trials.failures.len() >= options.failures_max {
            break;
        }
        disks[*member].apply(record);
        lengths[*member] = record.end;
    }
    trials.cut(&disks, 0, &lengths).await?;
    (report.cuts, report.failures) = trials.finish().await?;
    Ok(report)
}

/// The last promise made before the journals had these lengths.
fn promised(promises: &[Promise], lengths: &[u64]) -> Promise {
    let before = |promise: &&Promise| promise.from.iter().zip(lengths).all(|(at, now)| at <= now);
    let none = || Promise { from: Vec::new(), state: State::new(), next: None };
    promises.iter().rev().find(before).cloned().unwrap_or_else(none)
}

/// Starts journalled members, does the operations one after the other, kills them.
async fn script(folder: &Path, options: &Options) -> Result<Script> {
    let config = Config {
        members: options.members,
        binary: options.binary.clone().unwrap_or_else(crate::wherry),
        folder: folder.join("script"),
        small_disks: false,
        power_cuts: true,
        faults: false,
        arguments: Vec::new(),
        environment: options.environment.clone(),
    };
    let cluster = Cluster::start(config).await?;
    if options.members > 1 {
        complete(&cluster).await?;
    }
    let lengths = || -> Result<Vec<u64>> {
        let journals = cluster.journals();
        journals.iter().map(|journal| Ok(std::fs::metadata(journal)?.len())).collect()
    };
    let begun = lengths()?;
    (0..options.members).for_each(|member| cluster.slow_sync(member, SYNC_LATE));
    let client = |address: &SocketAddr| Client::new(*address, cluster.credentials.clone());
    let mut clients: Vec<Client> = cluster.addresses.iter().map(client).collect();
    let mut promises = Vec::new();
    let mut state = State::new();
    for number in 0..options.operations {
        let operation = operation(number, &state);
        let next = Some((operation.name.clone(), operation.value.clone()));
        promises.push(Promise { from: lengths()?, state: state.clone(), next });
        perform(&mut clients[number % options.members], operation, &mut state).await?;
    }
    promises.push(Promise { from: lengths()?, state, next: None });
    cluster.stop();
    let journals = cluster.journals().iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let (addresses, names) = (cluster.addresses.clone(), cluster.names());
    Ok(Script { journals, addresses, names, begun, promises })
}

/// Waits until all members vote and are at the same revision.
async fn complete(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    loop {
        let rows = cluster.rows().await.unwrap_or_default();
        let same = |row: &Row| row.role != "learner" && row.applied == rows[0].applied;
        if rows.len() == cluster.addresses.len() && rows.iter().all(same) {
            return Ok(());
        }
        ensure!(begun.elapsed() < START_TIMEOUT, "the members do not come together: {rows:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One step of the script.
struct Operation {
    method: Method,
    name: String,
    /// `None` removes it.
    value: Option<String>,
}

/// Creates, updates and deletes in turn, over a dozen names.
fn operation(number: usize, state: &State) -> Operation {
    let name = format!("cut-{}", number * 7 % 12);
    let value = Some(format!("{number}-{}", "x".repeat(number % 5 * 300)));
    match (state.contains_key(&name), number % 3) {
        (false, _) => Operation { method: Method::POST, name, value },
        (true, 0) => Operation { method: Method::DELETE, name, value: None },
        (true, _) => Operation { method: Method::PUT, name, value },
    }
}

/// Does one step. On a busy machine the members may be without a leader for a moment: then it is
/// done again, unless it has happened all the same.
async fn perform(client: &mut Client, operation: Operation, state: &mut State) -> Result<()> {
    let Operation { method, name, value } = operation;
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                            "data": {"value": value}});
    if let Some((revision, _)) = state.get(&name) {
        object["metadata"]["resourceVersion"] = json!(revision);
    }
    let body = if value.is_some() { serde_json::to_vec(&object)? } else { Vec::new() };
    let (body, own) = (Bytes::from(body), format!("{MAPS}/{name}"));
    let path = if method == Method::POST { MAPS } else { own.as_str() };
    let begun = Instant::now();
    let revision = loop {
        let answer = client.call(method.clone(), path, body.clone(), ANSWER_TIMEOUT).await;
        let why = match answer {
            Ok(answer) if answer.status < 300 => break revision(&answer.json()?),
            Ok(answer) => format!("{}: {}", answer.status, crate::text(&answer.body)),
            Err(failure) => failure.to_string(),
        };
        ensure!(begun.elapsed() < OPERATION_TIMEOUT, "{method} {path}: {why}");
        tokio::time::sleep(RETRY).await;
        let found = client.call(Method::GET, &own, Bytes::new(), ANSWER_TIMEOUT).await;
        let Ok(found) = found else { continue };
        match (&value, found.status) {
            (None, 404) => break None,
            (Some(value), 200) if found.json()?["data"]["value"] == value.as_str() => {
                break revision(&found.json()?);
            }
            _ => {}
        }
    };
    match value {
        Some(value) => {
            let revision = revision.context("an object has a resourceVersion")?;
            state.insert(name, (revision, value));
        }
        None => _ = state.remove(&name),
    }
    Ok(())
}

fn revision(object: &Value) -> Option<String> {
    object["metadata"]["resourceVersion"].as_str().map(str::to_owned)
}

/// Members on cut disks, some cuts at a time.
struct Trials<'a> {
    folder: PathBuf,
    options: Options,
    script: &'a Script,
    network: Ipv4Addr,
    running: JoinSet<(usize, Result<(), String>)>,
    free: Vec<usize>,
    begun: usize,
    failures: Vec<String>,
}

impl<'a> Trials<'a> {
    fn new(folder: &Path, options: &Options, script: &'a Script) -> Trials<'a> {
        Trials {
            folder: folder.to_owned(),
            options: options.clone(),
            script,
            network: own_address(),
            running: JoinSet::new(),
            free: (0..options.parallel).collect(),
            begun: 0,
            failures: Vec::new(),
        }
    }

    /// Cuts the power at this moment, behind an fsync of one of the members.
    async fn cut(&mut self, disks: &[Disk<'_>], member: usize, lengths: &[u64]) -> Result<()> {
        if disks.len() > 1 {
            self.start(disks, (Loss::One, member), lengths).await?;
        }
        self.start(disks, (Loss::All, member), lengths).await
    }

    /// Lays out the disks and starts members on them, when a place is free.
    async fn start(
        &mut self,
        disks: &[Disk<'_>],
        (loss, member): (Loss, usize),
        lengths: &[u64],
    ) -> Result<()> {
        if self.free.is_empty() {
            self.join().await?;
        }
        let place = self.free.pop().context("a joined trial frees its place")?;
        self.begun += 1;
        let number = self.begun;
        if number.is_multiple_of(TOLD_EVERY) {
            eprintln!("power cuts: {number} begun, {} have lost something", self.failures.len());
        }
        let folder = self.folder.join(format!("cut-{number}"));
        std::fs::create_dir(&folder)?;
        let there = match loss {
            Loss::One => majority(disks.len(), member, number),
            Loss::All => (0..disks.len()).collect(),
        };
        for one in &there {
            let data_dir = folder.join(format!("m{one}"));
            std::fs::create_dir(&data_dir)?;
            let keep = match self.options.keep {
                _ if loss == Loss::One && *one != member => Keep::All,
                Keep::Torn(seed) => Keep::Torn(seed.wrapping_add(lengths.iter().sum())),
                other => other,
            };
            disks[*one].cut(&data_dir, keep)?;
        }
        let servers = there.iter().map(|one| self.server(&folder, place, *one));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let promise = promised(&self.script.promises, lengths);
        let what = match loss {
            _ if disks.len() == 1 => format!("cut {number} at {lengths:?}"),
            Loss::One => format!("cut {number} of member {member}, {there:?} left, at {lengths:?}"),
            Loss::All => format!("cut {number} of all at {lengths:?}"),
        };
        self.running.spawn(async move {
            let judged = judge(servers, promise).await;
            let failure = judged.map_err(|error| format!("{what} of the journal: {error:#}"));
            let _ = std::fs::remove_dir_all(&folder);
            (place, failure)
        });
        Ok(())
    }

    /// A member at an address of its own; the library turns what the members say to the addresses
    /// of the script to those of this place.
    fn server(&self, folder: &Path, place: usize, member: usize) -> Result<ServerOptions> {
        let members = self.script.addresses.len();
        let [a, b, c, _] = self.network.octets();
        let here = |member: usize| -> Result<SocketAddr> {
            let last = u8::try_from(place * members + member + 1).context("few places")?;
            Ok(SocketAddr::from(([a, b, c, last], 6443)))
        };
        let data_dir = folder.join(format!("m{member}"));
        let mut server = ServerOptions::new(&self.script.names[member], &data_dir, here(member)?);
        server.arguments = vec![format!("--advertise={}", self.script.addresses[member])];
        server.binary.clone_from(&self.options.binary);
        server.environment.clone_from(&self.options.environment);
        let mut rules = Vec::new();
        for (other, known) in self.script.addresses.iter().enumerate() {
            rules.push(format!("{known}={}", here(other)?));
        }
        server.environment.extend([
            ("LD_PRELOAD".to_owned(), shim()?.display().to_string()),
            ("WHERRY_SHIM_PROXIES".to_owned(), rules.join(" ")),
        ]);
        Ok(server)
    }

    async fn join(&mut self) -> Result<()> {
        let (place, judged) = self.running.join_next().await.context("a trial runs")??;
        self.free.push(place);
        self.failures.extend(judged.err());
        Ok(())
    }

    async fn finish(mut self) -> Result<(usize, Vec<String>)> {
        while !self.running.is_empty() {
            self.join().await?;
        }
        Ok((self.begun, self.failures))
    }
}

/// A smallest majority that the member is in; `turn` chooses which.
fn majority(members: usize, member: usize, turn: usize) -> Vec<usize> {
    let others =
        (0..members - 1).map(|step| (member + 1 + (step + turn) % (members - 1)) % members);
    let mut there: Vec<usize> = others.take(members / 2).chain([member]).collect();
    there.sort_unstable();
    there
}

/// Members on cut disks must start, agree, and each of them show what was promised.
async fn judge(servers: Vec<ServerOptions>, promise: Promise) -> Result<()> {
    let started = servers.into_iter().map(Server::start);
    let mut servers = started.collect::<Result<Vec<Server>>>()?;
    for server in &mut servers {
        let credentials = server.ready(START_TIMEOUT).await?;
        let mut client = Client::new(server.options.listen, credentials);
        let list = asked(&mut client, MAPS).await?;
        let name = &server.options.name;
        compare(&maps(&list)?, &promise).with_context(|| format!("as {name} tells it"))?;
        let told = asked(&mut client, "/wherry/v1/members").await?;
        if let Some(odd) = told["members"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| !row["quarantined"].is_null())
        {
            bail!("{} is quarantined: {}", odd["name"], odd["quarantined"]);
        }
    }
    Ok(())
}

/// What a member answers, once it does: they may lose their leader again in between.
async fn asked(client: &mut Client, path: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        match client.get(path, ANSWER_TIMEOUT).await {
            Err(_) if begun.elapsed() < OPERATION_TIMEOUT => tokio::time::sleep(RETRY).await,
            answered => return answered,
        }
    }
}

/// The script's ConfigMaps in a list.
fn maps(list: &Value) -> Result<State> {
    let mut state = State::new();
    for map in list["items"].as_array().context("a list has items")? {
        let text = |pointer: &str| map.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let name = text("/metadata/name").context("a name")?;
        if name.starts_with("cut-") {
            let revision = text("/metadata/resourceVersion").context("a resourceVersion")?;
            state.insert(name, (revision, text("/data/value").unwrap_or_default()));
        }
    }
    Ok(state)
}

/// What is there must be what was promised, but for the one operation that was under way.
fn compare(state: &State, promise: &Promise) -> Result<()> {
    let mut names: Vec<&String> = state.keys().chain(promise.state.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (there, promised) = (state.get(name), promise.state.get(name));
        let under_way = promise.next.as_ref().filter(|(next, _)| next == name);
        let as_next =
            under_way.is_some_and(|(_, value)| value.as_ref() == there.map(|(_, value)| value));
        ensure!(
            there == promised || as_next,
            "{name} was acknowledged as {}, and is {}",
            shown(promised),
            shown(there)
        );
    }
    Ok(())
}

fn shown(entry: Option<&(String, String)>) -> String {
    match entry {
        None => "absent".to_owned(),
        Some((revision, value)) => {
            format!("{:?} at revision {revision}", value.chars().take(12).collect::<String>())
        }
    }
}
