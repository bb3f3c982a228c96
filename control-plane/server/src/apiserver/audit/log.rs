//! The audit log's files.
//!
//! Each line is an event, whose annotation `wherry.dev/previous` is the SHA-256 of the line before
//! it (also over the end of a file), so that nobody can change, drop or add a line in the middle
//! unseen. What the chain cannot show is that its end was cut off; for that, ship the lines
//! elsewhere.
//!
//! One thread owns the file and takes events from a bounded queue. It writes what has come, waits a
//! moment for more, syncs at least each second, and starts a new file when one is full; only so many
//! old ones are kept. When the queue is full, requests wait a moment; then the event is lost,
//! counted, and the next line says how many were.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::Policy;

/// Events that may wait for the disk.
const QUEUE_MAX: usize = 4_096;
/// How long a request waits for room in the queue.
const PATIENCE: Duration = Duration::from_millis(200);
/// Events behind the last written ones wait so long for others: a thread that woke for each would
/// take its processor from the answers.
const GATHER: Duration = Duration::from_millis(10);
/// Unsynced lines are at most so old.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// The longest line that is read back at a start.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// How much of a file's end is read for its newest events.
const TAIL_BYTES_MAX: u64 = 1 << 20;

const PREVIOUS: &str = "wherry.dev/previous";
const LOST: &str = "wherry.dev/lost-before";

/// Where the log goes and how long it is kept.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub path: PathBuf,
    pub policy: Policy,
    /// A file that is larger is put away.
    pub bytes_max: u64,
    /// Old files that are kept.
    pub files_max: usize,
}

/// The log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the audit log {}: {source}", path.display())]
pub struct AuditError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A chain that does not hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {why}; the log was changed after it was written")]
pub struct Broken {
    pub file: String,
    pub line: usize,
    pub why: &'static str,
}

/// A log that takes events.
pub struct AuditLog {
    policy: Policy,
    path: PathBuf,
    sender: Mutex<Option<mpsc::Sender<Value>>>,
    lost: std::sync::Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl AuditLog {
    /// Opens the file, goes on from its last line, and starts the writing thread.
    pub fn open(config: LogConfig) -> Result<AuditLog, AuditError> {
        let (policy, path) = (config.policy.clone(), config.path.clone());
        let mut writer = Writer::open(config)?;
        let (sender, mut receiver) = mpsc::channel::<Value>(QUEUE_MAX);
        let lost = writer.lost.clone();
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let Ok(runtime) = runtime else {
                tracing::error!("no audit log is written: a thread could not be set up");
                return;
            };
            runtime.block_on(async move {
                let mut events = Vec::new();
                loop {
                    let next = receiver.recv_many(&mut events, QUEUE_MAX);
                    match tokio::time::timeout(SYNC_EVERY, next).await {
                        Ok(0) => break,
                        Ok(_) => {
                            writer.append(events.drain(..));
                            tokio::time::sleep(GATHER).await;
                        }
                        Err(_) => writer.sync(),
                    }
                }
                writer.sync();
            });
        });
        let thread = thread.map_err(|source| AuditError {
            what: "start the thread of",
            path: PathBuf::new(),
            source,
        })?;
        let sender = Mutex::new(Some(sender));
        Ok(AuditLog { policy, path, sender, lost, thread: Mutex::new(Some(thread)) })
    }

    /// What is told.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes an event; waits a moment if the disk is slow.
    pub async fn record(&self, event: Value) {
        let sender = lock(&self.sender).clone();
        let Some(sender) = sender else { return };
        if sender.send_timeout(event, PATIENCE).await.is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Writes what is waiting and ends. Call from where blocking is allowed.
    pub fn close(&self) {
        lock(&self.sender).take();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the audit log's thread panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn hash(line: &[u8]) -> String {
    hex::encode(Sha256::digest(line))
}

/// What stands before the first line of all.
fn beginning() -> String {
    "0".repeat(64)
}

struct Writer {
    config: LogConfig,
    file: File,
    bytes: u64,
    previous: String,
    dirty: bool,
    synced: Instant,
    lost: std::sync::Arc<AtomicU64>,
}

impl Writer {
    fn open(config: LogConfig) -> Result<Writer, AuditError> {
        let error = |what| {
            let path = config.path.clone();
            move |source| AuditError { what, path, source }
        };
        if let Some(folder) = config.path.parent() {
            fs::create_dir_all(folder).map_err(error("make the folder of"))?;
        }
        let mut file = open(&config.path).map_err(error("open"))?;
        let bytes = file.metadata().map_err(error("read"))?.len();
        let mut previous = last_hash(&mut file, bytes).map_err(error("read"))?;
        if previous.is_none() {
            // A new file after a rotation that was interrupted goes on from the one before.
            if let Ok(mut older) = File::open(numbered(&config.path, 1)) {
                let bytes = older.metadata().map_err(error("read"))?.len();
                previous = last_hash(&mut older, bytes).map_err(error("read"))?;
            }
        }
        let previous = previous.unwrap_or_else(beginning);
        let lost = std::sync::Arc::default();
        Ok(Writer { config, file, bytes, previous, dirty: false, synced: Instant::now(), lost })
    }

    fn append(&mut self, events: impl Iterator<Item = Value>) {
        let mut text = Vec::new();
        for mut event in events {
            event["annotations"][PREVIOUS] = json!(self.previous);
            let lost = self.lost.swap(0, Relaxed);
            if lost > 0 {
                event["annotations"][LOST] = json!(lost.to_string());
            }
            let line = event.to_string();
            self.previous = hash(line.as_bytes());
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&text) {
            tracing::error!(%error, path = %self.config.path.display(), "audit events are lost");
            return;
        }
        self.bytes += text.len() as u64;
        self.dirty = true;
        if self.synced.elapsed() >= SYNC_EVERY {
            self.sync();
        }
        if self.bytes >= self.config.bytes_max {
            self.sync();
            if let Err(error) = self.rotate() {
                tracing::error!(%error, "the audit log goes on in its old file");
            }
        }
    }

    fn sync(&mut self) {
        self.synced = Instant::now();
        if std::mem::take(&mut self.dirty)
            && let Err(error) = self.file.sync_data()
        {
            tracing::error!(%error, "the audit log is not safe on disk");
        }
    }

    /// `audit.log` becomes `audit.log.1`, that `audit.log.2`, and so on.
    fn rotate(&mut self) -> io::Result<()> {
        let path = self.config.path.clone();
        for number in (1..=self.config.files_max).rev() {
            let older = numbered(&path, number);
            if !older.exists() {
                continue;
            }
            match number == self.config.files_max {
                true => fs::remove_file(older)?,
                false => fs::rename(older, numbered(&path, number + 1))?,
            }
        }
        match self.config.files_max {
            0 => fs::remove_file(&path)?,
            _ => fs::rename(&path, numbered(&path, 1))?,
        }
        self.file = open(&path)?;
        self.bytes = 0;
        tracing::info!(last = self.previous, "audit log rotated");
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The hash of a file's last line, which is ended if a crash has left it open. A line that is no
/// event (for that reason) counts as one with the line before it, whose place it would leave open.
fn last_hash(file: &mut File, bytes: u64) -> io::Result<Option<String>> {
    if bytes == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(bytes.saturating_sub(LINE_BYTES_MAX)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    if tail.last() == Some(&b'\n') {
        tail.pop();
    } else {
        file.write_all(b"\n")?;
    }
    let begin =
        |end: usize| tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (mut start, mut end) = (begin(tail.len()), tail.len());
    while start > 0 && !is_event(&tail[start..end]) {
        end = start - 1;
        start = begin(end);
    }
    Ok(Some(hash(&tail[start..])))
}

fn is_event(line: &[u8]) -> bool {
    serde_json::from_slice::<Value>(line).is_ok_and(|value| value.is_object())
}

/// The newest events of a log, the newest first, without the bodies of requests and answers.
pub fn newest(path: &Path, count: usize) -> Result<Vec<Value>, AuditError> {
    let mut events = Vec::new();
    // A file that was begun just now goes on from the one before.
    for path in [path.to_owned(), numbered(path, 1)] {
        if events.len() == count || !path.exists() {
            continue;
        }
        let tail = tail(&path).map_err(|source| AuditError { what: "read", path, source })?;
        let left = count - events.len();
        events.extend(backwards(&tail).take(left));
    }
    Ok(events)
}

/// The end of a file.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES_MAX)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The events in the end of a file, from the last on; the first line may be cut, and is none then.
fn backwards(tail: &[u8]) -> impl Iterator<Item = Value> {
    let lines = tail.rsplit(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok()).filter_map(|mut event| {
        let parts = event.as_object_mut()?;
        parts.remove("requestObject");
        parts.remove("responseObject");
        Some(event)
    })
}

/// Checks the chain over these files, the oldest first. Returns the number of lines and the hash of
/// the last. The first line of all may go on from a file that is no longer kept.
pub fn verify(files: &[PathBuf]) -> Result<(usize, String), VerifyError> {
    let mut previous: Option<String> = None;
    // The last event, with the lines behind it that are none.
    let mut last: Vec<u8> = Vec::new();
    let mut count = 0;
    for path in files {
        last.clear();
        let file = File::open(path).map_err(|source| AuditError {
            what: "open",
            path: path.clone(),
            source,
        })?;
        for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
            let line =
                line.map_err(|source| AuditError { what: "read", path: path.clone(), source })?;
            let broken = |why| {
                let file = path.display().to_string();
                VerifyError::Broken(Broken { file, line: index + 1, why })
            };
            if is_event(&line) {
                let event: Value = serde_json::from_slice(&line).unwrap_or_default();
                let told = event["annotations"][PREVIOUS].as_str();
                let told = told.ok_or_else(|| broken("it does not name the line before it"))?;
                if previous.as_deref().is_some_and(|hash| hash != told) {
                    return Err(broken("it does not follow the line before it"));
                }
                last = line;
            } else {
                if !last.is_empty() {
                    last.push(b'\n');
                }
                last.extend_from_slice(&line);
            }
            previous = Some(hash(&last));
            count += 1;
        }
    }
    Ok((count, previous.unwrap_or_else(beginning)))
}

/// Why a log could not be found whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    File(#[from] AuditError),
    #[error(transparent)]
    Broken(#[from] Broken),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path, bytes_max: u64) -> LogConfig {
        LogConfig {
            path: folder.join("audit.log"),
            policy: Policy::standard(),
            bytes_max,
            files_max: 2,
        }
    }

    fn write(config: LogConfig, numbers: std::ops::Range<u32>) {
        let log = AuditLog::open(config).expect("opens");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            for number in numbers {
                log.record(json!({ "auditID": number, "annotations": {} })).await;
            }
        });
        log.close();
    }

    #[test]
    fn the_chain_goes_on_over_starts_and_crashes_and_shows_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        write(config(folder.path(), 1 << 20), 0..3);
        // A crash in the middle of a line.
        let mut file = open(&path).expect("opens");
        file.write_all(b"{\"auditID\":").expect("written");
        write(config(folder.path(), 1 << 20), 3..5);
        let (count, _) = verify(std::slice::from_ref(&path)).expect("whole");
        assert_eq!(count, 6);
        let text = fs::read_to_string(&path).expect("text");
        fs::write(&path, text.replacen("\"auditID\":1", "\"auditID\":9", 1)).expect("written");
        let broken = verify(std::slice::from_ref(&path)).expect_err("changed");
        assert!(broken.to_string().contains("audit.log, line 3: it does not follow"), "{broken}");
        let without: Vec<&str> =
            text.lines().filter(|line| !line.contains("\"auditID\":2")).collect();
        fs::write(&path, without.join("\n")).expect("written");
        assert!(verify(&[path]).is_err());
    }

    #[test]
    fn the_newest_events_are_read_from_the_end_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        let ids = |count: usize| {
            let events = newest(&path, count).expect("readable");
            events.iter().map(|event| event["auditID"].to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ids(3), "", "there is none yet");
        write(config(folder.path(), 1 << 20), 0..4);
        assert_eq!((ids(2), ids(9)), ("3 2".to_owned(), "3 2 1 0".to_owned()));
        fs::rename(&path, numbered(&path, 1)).expect("put away");
        write(config(folder.path(), 1 << 20), 4..6);
        assert_eq!(ids(3), "5 4 3");
        let event = br#"{"auditID":7,"requestObject":{"a":1},"verb":"get"}"#;
        let cut = [b"\"user\":{}}\n".as_slice(), event, b"\n"].concat();
        let told: Vec<Value> = backwards(&cut).collect();
        assert_eq!(told, [json!({"auditID": 7, "verb": "get"})]);
    }

    #[test]
    fn a_full_file_is_put_away_and_the_chain_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        for start in 0..4 {
            write(config(folder.path(), 1), start * 2..start * 2 + 2);
        }
        let path = folder.path().join("audit.log");
        let older = numbered(&path, 1);
        let oldest = numbered(&path, 2);
        assert!(!numbered(&path, 3).exists());
        assert!(verify(&[oldest, older, path]).expect("whole").0 >= 2);
    }
}
