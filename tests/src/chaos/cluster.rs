//! The members as processes: started, killed, stopped, cut off, replaced; and started again when
//! they end, as an init system would.
//!
//! A *seat* is a place for a member: an address, a data folder, a log. A member that is replaced
//! leaves its seat to a new one with another id. The seats lie behind a std mutex because the
//! nemesis, the supervisor and the report look at them; sections are short and never await.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Method;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::process::Command;

use super::disk::SmallDisk;
use super::network::Network;
use crate::http::{Client, Credentials};
use crate::own_address;
use crate::powercut::{disk::Disk, disk::Keep, journal};
use crate::server::{Server, ServerOptions, SlowSync, shim};

/// A member is there again within a second; on a busy machine much later.
pub const START_TIMEOUT: Duration = crate::DEADLINE;
/// What is tried again may take several attempts, each of them long.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
/// A verb of the command line; a cluster without a leader is asked again.
const VERB_TIMEOUT: Duration = Duration::from_secs(10);
/// A command that asks no member has nobody else to wait for.
const COMMAND_TIMEOUT: Duration = crate::DEADLINE;
/// A member asks the others before it answers who they are, and some of them are away.
const ROWS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a process that ended stays down, as an init system would wait.
const RESTART_AFTER: Duration = Duration::from_millis(100);

/// How the cluster is made.
#[derive(Clone, Debug)]
pub struct Config {
    pub members: usize,
    pub binary: PathBuf,
    /// Everything of the run lies here.
    pub folder: PathBuf,
    pub small_disks: bool,
    /// All changes of files are journalled.
    pub power_cuts: bool,
    /// Proxies between the members, and fsyncs that can be slowed. Without it and without power
    /// cuts the members run as they are, with no library preloaded.
    pub faults: bool,
    /// Further flags of every server.
    pub arguments: Vec<String>,
    /// Further environment of every server.
    pub environment: Vec<(String, String)>,
}

/// All members.
#[derive(Clone)]
pub struct Cluster {
    pub config: Arc<Config>,
    pub network: Network,
    pub credentials: Credentials,
    pub addresses: Vec<SocketAddr>,
    seats: Arc<Mutex<Vec<Seat>>>,
}

struct Seat {
    options: ServerOptions,
    server: Option<Server>,
    slow: SlowSync,
    disk: Option<SmallDisk>,
    journal: Option<PathBuf>,
    /// Whether it is to be started again when it ends.
    wanted: bool,
    /// When it was seen to have ended.
    ended: Option<Instant>,
    /// Ends that nobody asked for, with the last lines of the log.
    accidents: Vec<String>,
}

/// A member as the cluster tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Row {
    pub name: String,
    pub id: u64,
    pub role: String,
    pub applied: Option<u64>,
    pub hash: Option<String>,
    pub quarantined: Option<String>,
}

#[derive(Deserialize)]
struct Rows {
    members: Vec<Row>,
}

impl Cluster {
    /// Starts the members one after the other, each joining by the first.
    pub async fn start(config: Config) -> Result<Cluster> {
        let [a, b, c, _] = own_address().octets();
        let addresses: Vec<SocketAddr> = (1..=config.members)
            .map(|last| (Ipv4Addr::new(a, b, c, u8::try_from(last).expect("few")), 6443).into())
            .collect();
        let network = Network::start(addresses.clone()).await?;
        let mut seats = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            seats.push(seat(&config, &network, number, *address)?);
        }
        let first = seats.first_mut().context("at least one member")?;
        let mut server = Server::start(first.options.clone())?;
        let credentials = server.ready(START_TIMEOUT).await?;
        first.server = Some(server);
        let seats = Arc::new(Mutex::new(seats));
        let config = Arc::new(config);
        let cluster = Cluster { config, network, credentials, addresses, seats };
        for number in 1..cluster.addresses.len() {
            cluster.join(number, 0).await?;
        }
        Ok(cluster)
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats.lock().expect("no section of this lock panics")
    }

    /// Lets an empty seat join by another, and waits until it serves and votes.
    pub async fn join(&self, number: usize, by: usize) -> Result<()> {
        let token = self.token().await?;
        let options = {
            let seats = self.seats();
            let mut options = seats[number].options.clone();
            let url = format!("https://{}", self.addresses[by]);
            options.arguments.extend(["--join".to_owned(), url]);
            options.arguments.extend(["--token".to_owned(), token.trim().to_owned()]);
            options
        };
        let mut server = Server::start(options)?;
        server.ready(START_TIMEOUT).await.context("join")?;
        {
            let mut seats = self.seats();
            seats[number].server = Some(server);
            seats[number].wanted = true;
        }
        let name = self.name(number);
        let begun = Instant::now();
        loop {
            let rows = self.rows().await.unwrap_or_default();
            let votes = |row: &Row| row.name == name && row.role != "learner";
            if rows.iter().any(votes) {
                return Ok(());
            }
            ensure!(begun.elapsed() < START_TIMEOUT, "{name} does not become a voter: {rows:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A token for one more member; a new cluster needs a moment before it can make one.
    async fn token(&self) -> Result<String> {
        let begun = Instant::now();
        loop {
            match self.verb(&["token", "create", "--for", "member"]).await {
                Err(_) if begun.elapsed() < START_TIMEOUT => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                token => return token,
            }
        }
    }

    pub fn name(&self, number: usize) -> String {
        self.seats()[number].options.name.clone()
    }

    /// The names of the members, by seat.
    pub fn names(&self) -> Vec<String> {
        self.seats().iter().map(|seat| seat.options.name.clone()).collect()
    }

    /// How a member is started.
    pub fn options(&self, number: usize) -> ServerOptions {
        self.seats()[number].options.clone()
    }

    /// Where a member keeps its data.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.seats()[number].options.data_dir.clone()
    }

    /// The journals of the members' file changes, by seat.
    pub fn journals(&self) -> Vec<PathBuf> {
        self.seats().iter().filter_map(|seat| seat.journal.clone()).collect()
    }

    /// Runs a verb with the kubeconfig of one member.
    pub async fn verb_of(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let file = self.seats()[number].options.kubeconfig();
        verb(&self.config.binary, &file, arguments).await
    }

    /// Runs the binary of the members with these arguments alone.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.config.binary);
        printed(command.args(arguments), arguments, COMMAND_TIMEOUT).await
    }

    /// Runs a verb with the kubeconfig of each running member until one gives an answer.
    pub async fn verb(&self, arguments: &[&str]) -> Result<String> {
        let files: Vec<PathBuf> = {
            let seats = self.seats();
            let up = seats.iter().filter(|seat| seat.server.is_some());
            up.map(|seat| seat.options.kubeconfig()).collect()
        };
        let mut last = anyhow::anyhow!("no member runs");
        for file in files {
            match verb(&self.config.binary, &file, arguments).await {
                Ok(printed) => return Ok(printed),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The members as one of them tells.
    pub async fn rows_of(&self, number: usize) -> Result<Vec<Row>> {
        let mut client = Client::new(self.addresses[number], self.credentials.clone());
        let told = client.get("/wherry/v1/members", ROWS_TIMEOUT).await?;
        Ok(serde_json::from_value::<Rows>(told)?.members)
    }

    /// The members as the first that answers tells them.
    pub async fn rows(&self) -> Result<Vec<Row>> {
        let asked = (0..self.addresses.len()).map(|number| self.rows_of(number));
        let mut answers: FuturesUnordered<_> = asked.collect();
        while let Some(answer) = answers.next().await {
            if answer.is_ok() {
                return answer;
            }
        }
        bail!("no member tells who the members are")
    }

    /// The seat of the leader: whom a majority names, for one that is cut off may name an old one.
    /// Asks again until somebody leads; the caller brings the timeout.
    pub async fn leader(&self) -> usize {
        loop {
            if self.addresses.len() == 1 {
                return 0;
            }
            if let Some(seat) = self.named_leader().await {
                return seat;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn named_leader(&self) -> Option<usize> {
        let asked = (0..self.addresses.len()).map(|number| self.rows_of(number));
        let mut answers: FuturesUnordered<_> = asked.collect();
        let mut votes: BTreeMap<String, usize> = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            let rows = answer.unwrap_or_default();
            let leader = rows.into_iter().find(|row| row.role == "leader");
            let Some(leader) = leader else { continue };
            let count = votes.entry(leader.name.clone()).or_default();
            *count += 1;
            if *count * 2 > self.addresses.len() {
                let seats = self.seats();
                return seats.iter().position(|seat| seat.options.name == leader.name);
            }
        }
        None
    }

    /// Asks the leader to hand over, and returns when another leads.
    pub async fn transfer(&self) -> Result<()> {
        let leader = self.leader().await;
        let mut client = Client::new(self.addresses[leader], self.credentials.clone());
        let body = Bytes::from_static(b"{\"member\":null}");
        let answer = client.call(Method::POST, "/wherry/v1/leader", body, VERB_TIMEOUT).await?;
        ensure!(answer.status < 300, "{}: {}", answer.status, crate::text(&answer.body));
        Ok(())
    }

    /// kill -9; the supervisor starts it again.
    pub fn kill(&self, number: usize) {
        let mut seats = self.seats();
        if let Some(mut server) = seats[number].server.take() {
            server.kill();
            seats[number].ended = Some(Instant::now());
        }
    }

    /// Starts a member again with another variable in its environment, and waits until it serves.
    pub async fn restart_with(&self, number: usize, variable: (String, String)) -> Result<()> {
        let options = {
            let mut seats = self.seats();
            seats[number].wanted = false;
            seats[number].server = None;
            seats[number].options.environment.push(variable);
            seats[number].options.clone()
        };
        let mut server = Server::start(options)?;
        server.ready(START_TIMEOUT).await.context("restart")?;
        self.seats()[number].server = Some(server);
        Ok(())
    }

    /// Whether the process of a seat is there.
    pub fn runs(&self, number: usize) -> bool {
        let mut seats = self.seats();
        seats[number].server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    pub fn signal(&self, number: usize, kind: Signal) {
        if let Some(server) = &self.seats()[number].server {
            server.signal(kind);
        }
    }

    pub fn slow_sync(&self, number: usize, late: Duration) {
        if let Err(error) = self.seats()[number].slow.set(late) {
            eprintln!("chaos: cannot slow down fsyncs: {error:#}");
        }
    }

    /// Fills the disk of a seat; 0 empties it again.
    pub fn fill_disk(&self, number: usize, percent: u8) -> Result<()> {
        match &self.seats()[number].disk {
            Some(disk) => disk.fill(percent),
            None => Ok(()),
        }
    }

    /// kill -9, and its folder keeps only what was fsynced.
    pub fn power_cut(&self, number: usize) -> Result<()> {
        let mut seats = self.seats();
        let seat = &mut seats[number];
        let journal = seat.journal.clone().context("no journal is kept")?;
        if let Some(mut server) = seat.server.take() {
            server.kill();
        }
        let was_wanted = std::mem::replace(&mut seat.wanted, false);
        cut(&journal, &seat.options.data_dir)?;
        seat.wanted = was_wanted;
        seat.ended = Some(Instant::now());
        Ok(())
    }

    /// Takes a member away with its data, and lets a new one join in its seat.
    pub async fn replace(&self, number: usize) -> Result<()> {
        let old = {
            let mut seats = self.seats();
            let seat = &mut seats[number];
            seat.wanted = false;
            if let Some(mut server) = seat.server.take() {
                server.kill();
            }
            seat.ended = None;
            let old = seat.options.name.clone();
            let generation = old.rsplit_once('-').and_then(|(_, last)| last.parse::<u32>().ok());
            seat.options.name = format!("m{number}-{}", generation.unwrap_or(0) + 1);
            wipe(&seat.options.data_dir)?;
            if let Some(journal) = &seat.journal {
                let _ = std::fs::remove_file(journal);
            }
            old
        };
        self.retry("remove the old member", || self.remove(&old)).await?;
        let by = (number + 1) % self.addresses.len();
        self.retry("join as a new member", || self.join(number, by)).await
    }

    /// Removes a member, unless it is gone: an attempt whose answer was lost may have done it.
    async fn remove(&self, name: &str) -> Result<()> {
        let Err(error) = self.verb(&["member", "remove", name]).await else { return Ok(()) };
        let there = self.rows().await?.iter().any(|row| row.name == name);
        if there { Err(error) } else { Ok(()) }
    }

    /// Tries until it works: the cluster may be without a leader at the moment.
    async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            match attempt().await {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > RETRY_TIMEOUT => {
                    return Err(error.context(what.to_owned()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Starts members that ended, until it is dropped.
    pub async fn supervise(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut seats = self.seats();
            for seat in seats.iter_mut().filter(|seat| seat.wanted) {
                seat.supervise();
            }
        }
    }

    /// Ends that nobody asked for.
    pub fn accidents(&self) -> Vec<String> {
        self.seats().iter().flat_map(|seat| seat.accidents.clone()).collect()
    }

    /// The process ids of the members that run.
    pub fn pids(&self) -> Vec<i32> {
        self.seats().iter().filter_map(|seat| seat.server.as_ref()).map(Server::pid).collect()
    }

    /// The process id of a member, if it runs.
    pub fn pid(&self, number: usize) -> Option<i32> {
        self.seats()[number].server.as_ref().map(Server::pid)
    }

    /// Starts a killed member again, and waits until it serves.
    pub async fn start_again(&self, number: usize) -> Result<()> {
        let options = self.seats()[number].options.clone();
        let mut server = Server::start(options)?;
        server.ready(START_TIMEOUT).await?;
        self.seats()[number].server = Some(server);
        Ok(())
    }

    /// Everything off: for the end of a run.
    pub fn stop(&self) {
        for seat in self.seats().iter_mut() {
            seat.wanted = false;
            seat.server = None;
        }
    }

    /// The logs of all members.
    pub fn logs(&self) -> Vec<PathBuf> {
        self.seats().iter().map(|seat| seat.options.log.clone()).collect()
    }
}

impl Seat {
    fn supervise(&mut self) {
        if let Some(server) = &mut self.server
            && let Some(status) = server.ended()
        {
            let words = server.last_words();
            self.accidents.push(format!("{} ended with {status}:\n{words}", self.options.name));
            self.server = None;
            self.ended = Some(Instant::now());
        }
        let rested = self.ended.is_some_and(|ended| ended.elapsed() > RESTART_AFTER);
        if self.server.is_none() && rested {
            match Server::start(self.options.clone()) {
                Ok(server) => self.server = Some(server),
                Err(error) => eprintln!("chaos: cannot start {}: {error:#}", self.options.name),
            }
        }
    }
}

fn seat(config: &Config, network: &Network, number: usize, listen: SocketAddr) -> Result<Seat> {
    let place = config.folder.join(format!("m{number}"));
    std::fs::create_dir_all(&place)?;
    let disk = match config.small_disks {
        true => Some(SmallDisk::mount(&place)?),
        false => None,
    };
    let data_dir = disk.as_ref().map_or(&place, |disk| &disk.folder).join("data");
    std::fs::create_dir_all(&data_dir)?;
    let slow = SlowSync::new(&place.join("slow"))?;
    let mut options = ServerOptions::new(&format!("m{number}-0"), &data_dir, listen);
    options.log = config.folder.join(format!("m{number}.log"));
    options.binary = Some(config.binary.clone());
    options.arguments.clone_from(&config.arguments);
    options.environment.clone_from(&config.environment);
    if config.faults || config.power_cuts {
        let preload = ("LD_PRELOAD".to_owned(), shim()?.display().to_string());
        options.environment.extend([preload, slow.environment()]);
    }
    if config.faults {
        options.environment.push(network.environment(number));
    }
    let journal = config.power_cuts.then(|| place.join("journal"));
    if let Some(journal) = &journal {
        let text = |path: &Path| path.display().to_string();
        options.environment.extend([
            ("WHERRY_SHIM_ROOT".to_owned(), text(&data_dir)),
            ("WHERRY_SHIM_JOURNAL".to_owned(), text(journal)),
        ]);
    }
    let (server, ended, accidents) = (None, None, Vec::new());
    Ok(Seat { options, server, slow, disk, journal, wanted: number == 0, ended, accidents })
}

/// Puts the folder into the state of its last fsyncs, and begins the journal anew with it.
fn cut(journal_file: &Path, data_dir: &Path) -> Result<()> {
    let bytes = std::fs::read(journal_file)?;
    let mut disk = Disk::default();
    for record in journal::read(&bytes)? {
        disk.apply(&record);
    }
    wipe(data_dir)?;
    disk.cut(data_dir, Keep::Nothing)?;
    std::fs::write(journal_file, journal::of_folder(data_dir)?)?;
    Ok(())
}

/// Empties a folder.
fn wipe(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path)?,
            false => std::fs::remove_file(path)?,
        }
    }
    Ok(())
}

async fn verb(binary: &Path, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binary);
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig);
    printed(&mut command, arguments, VERB_TIMEOUT).await
}

/// What a command prints, if it succeeds.
async fn printed(command: &mut Command, arguments: &[&str], timeout: Duration) -> Result<String> {
    let output = tokio::time::timeout(timeout, command.kill_on_drop(true).output());
    let output = output.await.with_context(|| format!("no answer to {arguments:?}"))??;
    let (printed, said) = (crate::text(&output.stdout), crate::text(&output.stderr));
    ensure!(output.status.success(), "wherry {arguments:?}: {printed}{said}");
    Ok(printed)
}
