//! The power cut: a script of writes against a real `wherry server` whose every file change is
//! journalled, then for every fsync of the journal the disk as a cut right behind it leaves it, a
//! server on that disk, and a look whether all is there that was acknowledged by then.
//!
//! ```text
//!  wherry server + shim ─► journal ─► Disk (record by record) ─► cut ─► wherry server ─► list
//!         ▲                                                                                 │
//!       script ── acknowledged at journal length n ───────────────────────► expected ◄──────┘
//! ```
//!
//! An acknowledgement is placed at the journal's length when the answer had come, so what is
//! expected at a boundary is never more than what the server had promised.

pub mod disk;
pub mod journal;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::disk::{Disk, Keep};
use self::journal::{Change, Record};
use crate::http::Client;
use crate::own_address;
use crate::server::{Server, ServerOptions, shim};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A server on a small disk is there within a second; many start at once here.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub operations: usize,
    /// Servers that are tried at once: each waits for its election most of the time.
    pub parallel: usize,
    pub keep: Keep,
    pub binary: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        let (binary, environment) = (None, Vec::new());
        Options { operations: 200, parallel: 6, keep: Keep::Nothing, binary, environment }
    }
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Fsyncs in the journal, from the server's first start on.
    pub fsyncs: usize,
    /// Those that made something durable: behind each of them the power was cut once.
    pub cuts: usize,
    pub failures: Vec<String>,
}

/// ConfigMaps by name: resourceVersion and value.
type State = BTreeMap<String, (String, String)>;

/// The state as acknowledged, from some length of the journal on.
#[derive(Clone, Debug)]
struct Promise {
    from: u64,
    state: State,
    /// What is asked next, and may have happened: a name and its value from then on.
    next: Option<(String, Option<String>)>,
}

/// Runs the script, then cuts the power behind every fsync that mattered.
pub async fn run(options: Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let (journal, promises) = script(folder.path(), &options).await?;
    let records = journal::read(&journal)?;
    let mut report = Report::default();
    let mut disk = Disk::default();
    let mut trials = Trials::new(folder.path(), &options);
    let is_sync = |record: &&Record<'_>| matches!(record.change, Change::Sync { .. });
    report.fsyncs = records.iter().filter(is_sync).count();
    for record in &records {
        // The last moment of this disk: what was acknowledged by now must be on it.
        if disk.hardens(record) {
            trials.start(&disk, promised(&promises, record.end), record.end).await?;
        }
        disk.apply(record);
    }
    trials.start(&disk, promised(&promises, u64::MAX), u64::MAX).await?;
    (report.cuts, report.failures) = trials.finish().await?;
    Ok(report)
}

/// The last promise made before the journal had this length.
fn promised(promises: &[Promise], length: u64) -> Option<Promise> {
    promises.iter().rev().find(|promise| promise.from < length).cloned()
}

/// Starts a journalled server, does the operations one after the other, kills it.
async fn script(folder: &Path, options: &Options) -> Result<(Vec<u8>, Vec<Promise>)> {
    let data_dir = folder.join("data");
    std::fs::create_dir(&data_dir)?;
    let journal = folder.join("journal");
    let mut server = ServerOptions::new("cut", &data_dir, (own_address(), 6443).into());
    server.binary.clone_from(&options.binary);
    server.environment.clone_from(&options.environment);
    let text = |path: &Path| path.display().to_string();
    server.environment.extend([
        ("LD_PRELOAD".to_owned(), text(&shim()?)),
        ("WHERRY_SHIM_ROOT".to_owned(), text(&data_dir)),
        ("WHERRY_SHIM_JOURNAL".to_owned(), text(&journal)),
    ]);
    let address = server.listen;
    let mut server = Server::start(server)?;
    let credentials = server.ready(START_TIMEOUT).await?;
    let mut client = Client::new(address, credentials);
    let mut promises = Vec::new();
    let mut state = State::new();
    for number in 0..options.operations {
        let operation = operation(number, &state);
        let from = std::fs::metadata(&journal)?.len();
        let next = Some((operation.name.clone(), operation.value.clone()));
        promises.push(Promise { from, state: state.clone(), next });
        perform(&mut client, operation, &mut state).await?;
    }
    let from = std::fs::metadata(&journal)?.len();
    promises.push(Promise { from, state, next: None });
    server.kill();
    Ok((std::fs::read(&journal)?, promises))
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

async fn perform(client: &mut Client, operation: Operation, state: &mut State) -> Result<()> {
    let Operation { method, name, value } = operation;
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                            "data": {"value": value}});
    if let Some((revision, _)) = state.get(&name) {
        object["metadata"]["resourceVersion"] = json!(revision);
    }
    let body = if value.is_some() { serde_json::to_vec(&object)? } else { Vec::new() };
    let path = if method == Method::POST { MAPS.to_owned() } else { format!("{MAPS}/{name}") };
    let answer = client.call(method.clone(), &path, Bytes::from(body), ANSWER_TIMEOUT).await?;
    let done = answer.json()?;
    ensure!(answer.status < 300, "{method} {path}: {} {done}", answer.status);
    match value {
        Some(value) => {
            let revision = done["metadata"]["resourceVersion"].as_str();
            let revision = revision.context("an object has a resourceVersion")?;
            state.insert(name, (revision.to_owned(), value));
        }
        None => _ = state.remove(&name),
    }
    Ok(())
}

/// Servers on cut disks, some at a time.
struct Trials {
    folder: PathBuf,
    options: Options,
    network: Ipv4Addr,
    running: JoinSet<(usize, Result<(), String>)>,
    free: Vec<usize>,
    begun: usize,
    failures: Vec<String>,
}

impl Trials {
    fn new(folder: &Path, options: &Options) -> Trials {
        Trials {
            folder: folder.to_owned(),
            options: options.clone(),
            network: own_address(),
            running: JoinSet::new(),
            free: (0..options.parallel).collect(),
            begun: 0,
            failures: Vec::new(),
        }
    }

    /// Lays out the disk and starts a server on it, when a place is free.
    async fn start(
        &mut self,
        disk: &Disk<'_>,
        promise: Option<Promise>,
        boundary: u64,
    ) -> Result<()> {
        if self.free.is_empty() {
            self.join().await?;
        }
        let place = self.free.pop().context("a joined trial frees its place")?;
        self.begun += 1;
        let keep = match self.options.keep {
            Keep::Torn(seed) => Keep::Torn(seed.wrapping_add(boundary)),
            other => other,
        };
        let data_dir = self.folder.join(format!("cut-{}", self.begun));
        std::fs::create_dir(&data_dir)?;
        disk.cut(&data_dir, keep)?;
        let [a, b, c, _] = self.network.octets();
        let last = u8::try_from(place + 1).context("few places")?;
        let address = SocketAddr::from(([a, b, c, last], 6443));
        let mut server = ServerOptions::new(&format!("cut-{}", self.begun), &data_dir, address);
        server.binary.clone_from(&self.options.binary);
        server.environment.clone_from(&self.options.environment);
        let number = self.begun;
        self.running.spawn(async move {
            let judged = judge(server.clone(), promise).await;
            let failure = judged
                .map_err(|error| format!("cut {number} at {boundary} of the journal: {error:#}"));
            let _ = std::fs::remove_dir_all(&server.data_dir);
            (place, failure)
        });
        Ok(())
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

/// A server on the cut disk must start and show what was promised.
async fn judge(server: ServerOptions, promise: Option<Promise>) -> Result<()> {
    let address = server.listen;
    let mut server = Server::start(server)?;
    let credentials = server.ready(START_TIMEOUT).await?;
    let mut client = Client::new(address, credentials);
    let list = client.get(MAPS, ANSWER_TIMEOUT).await?;
    let mut state = State::new();
    for map in list["items"].as_array().context("a list has items")? {
        let text = |pointer: &str| map.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let name = text("/metadata/name").context("a name")?;
        if name.starts_with("cut-") {
            let revision = text("/metadata/resourceVersion").context("a resourceVersion")?;
            state.insert(name, (revision, text("/data/value").unwrap_or_default()));
        }
    }
    let promise = promise.unwrap_or(Promise { from: 0, state: State::new(), next: None });
    compare(&state, &promise)
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
