//! One `wherry server` as a process of a test, with the preload library where it is asked for.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::http::{Client, Credentials};
use crate::{repository, signal, wherry};

/// A server that starts is asked often, for how long it takes is measured; one that takes longer
/// than this needs the processor more than whoever asks.
const START_QUICK: Duration = Duration::from_secs(3);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub name: String,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Further flags, such as those for joining.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Its output is appended to this file.
    pub log: PathBuf,
    /// Another binary than the one of this build.
    pub binary: Option<PathBuf>,
}

impl ServerOptions {
    pub fn new(name: &str, data_dir: &Path, listen: SocketAddr) -> ServerOptions {
        ServerOptions {
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
            listen,
            arguments: Vec::new(),
            environment: Vec::new(),
            log: data_dir.with_extension("log"),
            binary: None,
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }
}

/// A running server; dropping it kills it.
pub struct Server {
    child: Child,
    pub options: ServerOptions,
}

impl Server {
    /// Starts the process; whether it gets ready is another question.
    pub fn start(options: ServerOptions) -> Result<Server> {
        let log = File::options().create(true).append(true).open(&options.log)?;
        let child = Command::new(options.binary.clone().unwrap_or_else(wherry))
            .args(["--log", "info,openraft=warn", "server", "--name", &options.name])
            .arg("--data-dir")
            .arg(&options.data_dir)
            .args(["--listen", &options.listen.to_string()])
            .args(&options.arguments)
            .envs(options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start wherry server")?;
        Ok(Server { child, options })
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, kind: Signal) {
        signal(self.pid(), kind);
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of what it printed.
    pub fn last_words(&self) -> String {
        last_lines(&self.options.log, 15)
    }

    /// Waits until it answers linearizable reads; its kubeconfig is there then.
    pub async fn ready(&mut self, timeout: Duration) -> Result<Credentials> {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < timeout {
            if let Some(status) = self.ended() {
                anyhow::bail!("{} ended with {status}:\n{}", self.options.name, self.last_words());
            }
            match serves(&self.options).await {
                Ok(credentials) => return Ok(credentials),
                Err(error) => last = format!("{error:#}"),
            }
            let is_late = begun.elapsed() > START_QUICK;
            tokio::time::sleep(Duration::from_millis(if is_late { 50 } else { 5 })).await;
        }
        let words = self.last_words();
        anyhow::bail!("{} is not ready after {timeout:?}: {last}\n{words}", self.options.name)
    }
}

async fn serves(options: &ServerOptions) -> Result<Credentials> {
    let credentials = Credentials::of_kubeconfig(&options.kubeconfig())?;
    let mut client = Client::new(options.listen, credentials.clone());
    // The last of the namespaces that a new cluster makes: where tokens are kept.
    client.get("/api/v1/namespaces/kube-system", Duration::from_secs(10)).await?;
    Ok(credentials)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a file.
pub fn last_lines(file: &Path, count: usize) -> String {
    let text = crate::text(&std::fs::read(file).unwrap_or_default());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The preload library (tests/shim/shim.c), compiled when it is older than its source.
pub fn shim() -> Result<PathBuf> {
    let source = repository().join("tests/shim/shim.c");
    let binary = wherry();
    let folder = binary.parent().context("a file is in a folder")?;
    let library = folder.join("libwherry-shim.so");
    let modified = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    if modified(&library) >= modified(&source) {
        return Ok(library);
    }
    let made = folder.join(format!("libwherry-shim.{}.so", std::process::id()));
    let compiler = if Path::new("/usr/bin/cc").exists() { "cc" } else { "clang" };
    let status = Command::new(compiler)
        .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
        .arg(&made)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .status()
        .with_context(|| format!("run {compiler}"))?;
    ensure!(status.success(), "{compiler} could not compile {}", source.display());
    std::fs::rename(&made, &library)?;
    Ok(library)
}

/// Makes every fsync of a process late; shared with the preload library.
#[derive(Debug)]
pub struct SlowSync {
    file: File,
    path: PathBuf,
}

impl SlowSync {
    pub fn new(path: &Path) -> Result<SlowSync> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        file.write_all_at(&0u64.to_le_bytes(), 0)?;
        Ok(SlowSync { file, path: path.to_owned() })
    }

    pub fn set(&self, late: Duration) -> Result<()> {
        let micros = u64::try_from(late.as_micros())?;
        Ok(self.file.write_all_at(&micros.to_le_bytes(), 0)?)
    }

    /// What the process must be started with.
    pub fn environment(&self) -> (String, String) {
        ("WHERRY_SHIM_CONTROL".to_owned(), self.path.display().to_string())
    }
}
