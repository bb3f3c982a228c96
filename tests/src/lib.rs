//! The harness of the black-box tests and benchmarks: a real cluster of real processes, and
//! kubectl.
//!
//! [`Dev`] is one `wherry dev` with its own data folder, API port and loopback addresses, so that
//! tests run beside each other; [`plane::Plane`] is a control plane of several members without
//! nodes. Tests wait for conditions with a deadline ([`wait_for`]), never for a time. Dropping a
//! [`Dev`] ends its processes, and only these.
//!
//! [`transcript`] is what a person types, kept with what is printed.
//! [`server`] is one `wherry server` by itself, [`http`] a client that knows whether it was heard,
//! [`load`] one that keeps count and time; [`attacks`] and [`autonomy`] are what a node must stand,
//! [`traffic`] is what its network must do.
//! [`powercut`] cuts the power behind every fsync, and [`chaos`] does everything else to three
//! members at once.

pub mod attacks;
pub mod autonomy;
pub mod chaos;
pub mod http;
pub mod load;
pub mod machine;
pub mod plane;
pub mod powercut;
pub mod server;
pub mod traffic;
pub mod transcript;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A condition that has not come true by then will not: far more than anything takes while several
/// clusters start at once and the machine's host gives most of its processors to others.
pub const DEADLINE: Duration = Duration::from_secs(180);
/// Between two looks at a condition: twice as long as looking takes, within these bounds. Who waits
/// leaves the processors to whom is waited for, and a kubectl costs 100 ms of one.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A request that takes longer is not answered any more.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A kubectl that runs longer hangs.
const KUBECTL_SECONDS_MAX: &str = "600";
/// How much of each log a test that failed shows.
pub(crate) const LAST_LINES: usize = 40;

/// Whether tests with real processes are asked for; `make test` does.
pub fn l3() -> bool {
    let asked = std::env::var_os("WHERRY_L3").is_some();
    if !asked {
        eprintln!("left out: tests with real processes run with WHERRY_L3=1, as in `make test`");
    }
    asked
}

/// The folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// The `wherry` binary of this build.
pub fn wherry() -> PathBuf {
    let own = std::env::current_exe().expect("this process has a file");
    let built = own.ancestors().skip(1).map(|folder| folder.join("wherry"));
    built.into_iter().find(|file| file.is_file()).expect("`make build` has built the binary")
}

/// How a [`Dev`] differs from the plainest one.
#[derive(Default)]
pub struct Options {
    pub nodes: u8,
    /// Members of the control plane.
    pub members: u8,
    /// A folder of images instead of the sample apps.
    pub images: Option<PathBuf>,
    /// Kept by the caller, for a second start on the same state.
    pub data_dir: Option<PathBuf>,
}

/// A running `wherry dev`.
pub struct Dev {
    child: Child,
    pub data_dir: PathBuf,
    pub kubeconfig: PathBuf,
    /// The first node's address, where NodePorts are.
    pub address: Ipv4Addr,
    /// The line it printed when it was ready.
    pub ready_line: String,
    /// What the supervisor says on its standard error.
    said: tempfile::NamedTempFile,
    _temporary: Option<tempfile::TempDir>,
}

impl Dev {
    /// Starts a cluster with one node and the sample images, and waits until it says that it is
    /// ready.
    pub fn start() -> Dev {
        Dev::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Dev {
        let temporary = match options.data_dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().expect("a temporary folder")),
        };
        let data_dir = options
            .data_dir
            .unwrap_or_else(|| temporary.as_ref().expect("made above").path().to_owned());
        let address = own_address();
        let said = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut child = Command::new(wherry())
            .arg("dev")
            .arg("--data-dir")
            .arg(&data_dir)
            .args(["--listen", "127.0.0.1:0", "--node-address", &address.to_string()])
            .args(["--dns-address", &format!("{address}:5300")])
            .args(["--nodes", &options.nodes.max(1).to_string()])
            .args(["--members", &options.members.max(1).to_string()])
            .arg("--images")
            .arg(options.images.unwrap_or_else(|| repository().join("sample-apps/dist")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said.reopen().expect("the file is there"))
            .spawn()
            .expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = stdout.lines();
        let ready_line = loop {
            let Some(line) = lines.next() else {
                panic!("wherry dev did not get ready:\n{}", last_words(said.path(), &data_dir));
            };
            let line = line.expect("text");
            if line.starts_with("wherry is ready") {
                break line;
            }
        };
        // The rest of its output is read, so that it never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let kubeconfig = data_dir.join("kubeconfig");
        Dev { child, data_dir, kubeconfig, address, ready_line, said, _temporary: temporary }
    }

    /// Runs kubectl against this cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        kubectl(&self.kubeconfig, arguments)
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        kubectl_ok(&self.kubeconfig, arguments)
    }

    /// GET on a NodePort of the first node.
    pub fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        http_get(SocketAddr::from((self.address, port)), path)
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The ids of this cluster's processes whose command line has `role` as its first argument
    /// after the binary's own flags: `server`, `node`, `worker`.
    pub fn pids_of(&self, role: &str) -> Vec<i32> {
        let own = wherry();
        let entries = std::fs::read_dir("/proc").expect("procfs").filter_map(Result::ok);
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_ours = |pid: &i32| {
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            let arguments: Vec<String> = line.split(|byte| *byte == 0).map(text).collect();
            let of_binary = Path::new(&arguments[0]) == own;
            let has_role = arguments.iter().any(|argument| argument == role);
            of_binary && has_role && !is_forked(*pid, &line) && self.owns(*pid)
        };
        pids.filter(is_ours).collect()
    }

    /// Workers are not our children's children once their agent died, but all have our data folder
    /// open.
    fn owns(&self, pid: i32) -> bool {
        let data_dir = self.data_dir.canonicalize().expect("the data folder exists");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if text(&line).contains(&*data_dir.to_string_lossy()) {
            return true;
        }
        let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let mut files = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        files.any(|file| file.starts_with(&data_dir))
    }

    /// What its processes said at last.
    pub fn last_words(&self) -> String {
        last_words(self.said.path(), &self.data_dir)
    }

    /// Asks it to stop and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        signal(self.pid(), nix::sys::signal::Signal::SIGTERM);
        self.child.wait().expect("it can be waited for").code()
    }

    /// kill -9 of every process of the cluster; returns when all are gone, with their locks and ports.
    pub fn kill_everything(&mut self) {
        let roles = ["node", "server", "worker"];
        let pids: Vec<i32> = roles.iter().flat_map(|role| self.pids_of(role)).collect();
        signal(self.pid(), nix::sys::signal::Signal::SIGKILL);
        self.child.wait().expect("it can be waited for");
        for pid in &pids {
            signal(*pid, nix::sys::signal::Signal::SIGKILL);
        }
        wait_for("what was killed is gone", || pids.iter().all(|pid| is_gone(*pid)).then_some(()));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}", self.last_words());
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            match failed && self.data_dir.exists() {
                // The test may have left processes standing still, which end no other way.
                true => self.kill_everything(),
                false => _ = self.stop(),
            }
        }
    }
}

/// The ends of the logs of a `wherry dev`.
fn last_words(said: &Path, data_dir: &Path) -> String {
    let logs = std::fs::read_dir(data_dir.join("logs")).into_iter().flatten();
    let mut files: Vec<PathBuf> = logs.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.insert(0, said.to_owned());
    let part = |file: &PathBuf| {
        let lines = server::last_lines(file, LAST_LINES);
        format!("---- the end of {}:\n{lines}\n", file.display())
    };
    files.iter().map(part).collect()
}

/// Whether a process is between fork and exec: it looks like its parent until it is itself.
fn is_forked(pid: i32, line: &[u8]) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `12 (name) S 11 …`; the name may hold anything.
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
    let of_parent = parent.and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    of_parent.is_some_and(|of_parent| of_parent == line)
}

/// Whether a process has closed its files. It does so after its command line is gone; what is left
/// then is one thread that waits for its parent to ask.
fn is_gone(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    tasks.count() <= 1 && matches!(state, None | Some('Z' | 'X'))
}

/// Runs kubectl with a kubeconfig. One that would wait for ever is ended, and fails.
pub fn kubectl(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args([KUBECTL_SECONDS_MAX, "kubectl"]);
    command.arg("--kubeconfig").arg(kubeconfig);
    // A discovery cache of its own: clusters come and go on the same ports.
    command.arg("--cache-dir").arg(kubeconfig.with_extension("cache"));
    command.current_dir(repository()).args(arguments).output().expect("kubectl is installed")
}

/// Runs kubectl, which must succeed, and returns what it printed. A server that has no leader at the
/// moment, or too much to do, did nothing and says so: kubectl is run again then.
#[track_caller]
pub fn kubectl_ok(kubeconfig: &Path, arguments: &[&str]) -> String {
    let begun = Instant::now();
    let output = loop {
        let output = kubectl(kubeconfig, arguments);
        let again = !output.status.success() && is_told_to_come_again(&output);
        if !again || begun.elapsed() > DEADLINE {
            break output;
        }
        std::thread::sleep(PAUSE_MAX);
    };
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "kubectl {arguments:?}: {stdout}{stderr}");
    stdout
}

fn is_told_to_come_again(output: &Output) -> bool {
    let said = text(&output.stderr);
    let refusals = ["(ServiceUnavailable)", "(TooManyRequests)", "unable to handle the request"];
    refusals.iter().any(|refusal| said.contains(refusal))
}

/// A client with the rights of a kubeconfig.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// A loopback address that no other cluster of this test run has, with room for its nodes above it.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [low, _, _, _] = std::process::id().to_le_bytes();
    let [high, _] = NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    Ipv4Addr::new(127, 1 + low % 250, high, 1)
}

/// Sends a signal; a process that is gone already is fine.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// One HTTP/1.1 GET on a new connection: status and body, or `None` where there was no whole
/// answer.
pub fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Some((status, if chunked { unchunk(body)? } else { body.to_owned() }))
}

fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length.trim(), 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..length)?);
        body = rest.get(length + 2..)?;
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Copies a folder with all that is below it.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => _ = std::fs::copy(entry.path(), target)?,
        }
    }
    Ok(())
}

/// Held by a test that wants the whole machine for longer than others: one such test runs at a time.
pub fn heavy() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // One that failed has left nothing behind that the next could meet.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks `probe` until it gives a value; panics with `what` after [`DEADLINE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        let looked = Instant::now();
        if let Some(value) = probe() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for: {what}");
        std::thread::sleep((looked.elapsed() * 2).clamp(PAUSE_MIN, PAUSE_MAX));
    }
}
