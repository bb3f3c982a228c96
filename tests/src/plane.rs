//! A control plane of several members, each a `wherry server` of its own, started and stopped by
//! the test: nobody starts them again.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use wherry_node::members::Make;

use crate::server::last_lines;
use crate::{LAST_LINES, kubectl, kubectl_ok, own_address, signal, text, wait_for, wherry};

/// One member; its process may be away.
pub struct Server {
    pub name: String,
    pub data_dir: PathBuf,
    pub url: String,
    child: Option<Child>,
}

/// A row of `wherry member list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub id: u64,
    pub role: String,
    pub address: String,
    pub applied: String,
    pub hash: String,
}

/// Members in the order in which they were started.
pub struct Plane {
    folder: tempfile::TempDir,
    /// Where members listen. Nobody else has it, so a member that was away finds its port free: one of
    /// 127.0.0.1 may be a client's by then.
    address: Ipv4Addr,
    pub servers: Vec<Server>,
}

impl Plane {
    /// Founds a cluster and lets `count - 1` servers join it; all of them vote when this returns.
    pub fn start(count: usize) -> Plane {
        Plane::start_with(count, |_| {})
    }

    /// The same, with a first member whose data folder somebody else makes: at the path that
    /// `prepare` gets, where nothing is yet.
    pub fn start_with(count: usize, prepare: impl FnOnce(&Path)) -> Plane {
        let folder = tempfile::tempdir().expect("a temporary folder");
        prepare(&folder.path().join("m1"));
        let mut plane = Plane { folder, address: own_address(), servers: Vec::new() };
        let founder = plane.spawn("m1", &[]);
        plane.servers.push(founder);
        for number in 2..=count {
            plane.join(&format!("m{number}"), 0);
        }
        plane
    }

    /// Lets a new server join by way of one of the others, and waits until it serves.
    pub fn join(&mut self, name: &str, by: usize) {
        let token = wait_for("a token for the new member", || {
            let output = self.wherry(by, &["token", "create", "--for", "member"]);
            output.status.success().then(|| text(&output.stdout))
        });
        let url = self.servers[by].url.clone();
        let joined = self.spawn(name, &["--join", &url, "--token", token.trim()]);
        self.servers.push(joined);
    }

    fn spawn(&self, name: &str, more: &[&str]) -> Server {
        let data_dir = self.folder.path().join(name);
        let (child, url) = start(name, &data_dir, &self.anywhere(), more);
        Server { name: name.to_owned(), data_dir, url, child: Some(child) }
    }

    /// A port that the kernel picks.
    fn anywhere(&self) -> String {
        format!("{}:0", self.address)
    }

    /// Starts a member that is away again, on its old data and address, and waits until it serves.
    pub fn start_again(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let address = server.url.trim_start_matches("https://").to_owned();
        let (child, url) = start(&server.name, &server.data_dir, &address, &[]);
        assert_eq!(url, server.url, "it is where it was");
        server.child = Some(child);
    }

    /// Starts a member that is away again, on its old data and another address.
    pub fn start_elsewhere(&mut self, index: usize) {
        let anywhere = self.anywhere();
        let server = &mut self.servers[index];
        let (child, url) = start(&server.name, &server.data_dir, &anywhere, &[]);
        assert_ne!(url, server.url, "it is elsewhere");
        (server.child, server.url) = (Some(child), url);
    }

    /// What a member says when it is started on its data and ends by itself.
    pub fn refusal(&self, index: usize) -> String {
        let server = &self.servers[index];
        let mut command = command(&server.name, &server.data_dir, &self.anywhere());
        let output = command.stderr(Stdio::piped()).output().expect("the binary starts");
        assert!(!output.status.success(), "it must not start");
        text(&output.stderr)
    }

    /// Waits until a member ends by itself; returns its exit code.
    pub fn ended(&mut self, index: usize) -> Option<i32> {
        let mut child = self.servers[index].child.take()?;
        child.wait().expect("it can be waited for").code()
    }

    /// kill -9.
    pub fn kill(&mut self, index: usize) {
        self.end(index, Signal::SIGKILL);
    }

    /// SIGTERM; waits until it has ended and returns its exit code.
    pub fn stop(&mut self, index: usize) -> Option<i32> {
        self.end(index, Signal::SIGTERM)
    }

    fn end(&mut self, index: usize, with: Signal) -> Option<i32> {
        let mut child = self.servers[index].child.take()?;
        signal(child.id().cast_signed(), with);
        child.wait().expect("it can be waited for").code()
    }

    /// The admin's kubeconfig of one member.
    pub fn kubeconfig(&self, index: usize) -> PathBuf {
        self.servers[index].data_dir.join("admin.kubeconfig")
    }

    pub fn kubectl(&self, index: usize, arguments: &[&str]) -> Output {
        kubectl(&self.kubeconfig(index), arguments)
    }

    #[track_caller]
    pub fn kubectl_ok(&self, index: usize, arguments: &[&str]) -> String {
        kubectl_ok(&self.kubeconfig(index), arguments)
    }

    /// Runs a verb of `wherry` against one member. What it remembers of members stays in this test.
    pub fn wherry(&self, index: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(wherry());
        command.args(arguments).arg("--kubeconfig").arg(self.kubeconfig(index));
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command.output().expect("the binary starts")
    }

    #[track_caller]
    pub fn wherry_ok(&self, index: usize, arguments: &[&str]) -> String {
        succeeded(arguments, &self.wherry(index, arguments))
    }

    /// The same for a verb that may be tried again, as its refusals say: on a busy machine nobody
    /// may lead for a moment, or the others have not been heard of lately.
    #[track_caller]
    pub fn wherry_until(&self, index: usize, arguments: &[&str]) -> String {
        const FOR_NOW: [&str; 4] =
            ["try again", "no majority of the voters", "in time", "no member that leads"];
        wait_for(&format!("wherry {arguments:?}"), || {
            let output = self.wherry(index, arguments);
            let said = text(&output.stderr);
            let again = !output.status.success() && FOR_NOW.iter().any(|why| said.contains(why));
            (!again).then(|| succeeded(arguments, &output))
        })
    }

    /// `wherry member list`, asked of one member, which may know no leader at the moment.
    #[track_caller]
    pub fn list(&self, index: usize) -> Vec<Row> {
        wait_for("a list of the members", || {
            let output = self.wherry(index, &["member", "list"]);
            output.status.success().then(|| rows(&text(&output.stdout)))
        })
    }

    /// The index of the leader, once there is one that the asked member knows.
    pub fn leader(&self, asked: usize) -> usize {
        wait_for("a leader", || {
            let rows = self.list(asked);
            let leader = rows.into_iter().find(|row| row.role == "leader")?;
            self.servers.iter().position(|server| server.name == leader.name)
        })
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for index in 0..self.servers.len() {
            self.kill(index);
            if std::thread::panicking() {
                let log = log_of(&self.servers[index].data_dir);
                eprintln!("---- the end of {}:\n{}", log.display(), last_lines(&log, LAST_LINES));
            }
        }
    }
}

/// Where a member's standard error goes: beside its data.
fn log_of(data_dir: &Path) -> PathBuf {
    data_dir.with_extension("log")
}

/// Clients with a kubeconfig's credentials, for any server.
pub fn make(kubeconfig: &Path) -> Make {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    let config = futures::executor::block_on(config).expect("a usable kubeconfig");
    Arc::new(move |url| {
        let mut config = config.clone();
        config.cluster_url = url;
        config
    })
}

/// Rows of the table of members, by their columns.
pub fn rows(table: &str) -> Vec<Row> {
    let row = |line: &str| -> Option<Row> {
        let mut cells = line.split_whitespace().map(str::to_owned);
        Some(Row {
            name: cells.next()?,
            id: cells.next()?.parse().ok()?,
            role: cells.next()?,
            address: cells.next()?,
            applied: cells.next()?,
            hash: cells.next()?,
        })
    };
    table.lines().skip(1).map(|line| row(line).expect("six columns")).collect()
}

fn command(name: &str, data_dir: &Path, listen: &str) -> Command {
    let mut command = Command::new(wherry());
    command.args(["server", "--name", name, "--listen", listen, "--data-dir"]).arg(data_dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Starts a member and waits for the line in which it says where it serves.
fn start(name: &str, data_dir: &Path, listen: &str, more: &[&str]) -> (Child, String) {
    let log = log_of(data_dir);
    let said = File::options().create(true).append(true).open(&log).expect("the folder is ours");
    let mut command = command(name, data_dir, listen);
    let mut child = command.args(more).stderr(said).spawn().expect("the binary starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let Some(line) = stdout.lines().next() else {
        panic!("{name} does not serve:\n{}", last_lines(&log, LAST_LINES));
    };
    let line = line.expect("text");
    let (said, url) = line.rsplit_once(' ').expect("the URL stands last");
    assert!(said.starts_with(&format!("member {name} (id ")), "{line}");
    (child, url.to_owned())
}

/// What a verb of `wherry` printed, which must have succeeded.
#[track_caller]
fn succeeded(arguments: &[&str], output: &Output) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "wherry {arguments:?}: {stdout}{stderr}");
    stdout
}
