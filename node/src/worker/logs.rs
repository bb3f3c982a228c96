//! What guests print, as files that `kubectl logs` reads.
//!
//! ```text
//!   guest writes --> Output (never blocks) --> queue, bounded in bytes --> writer thread --> files
//!                      | bucket empty or queue full: count what is dropped     gathers for a moment
//! ```
//!
//! A guest must not be able to stop the worker, fill the disk or eat the host's memory by printing:
//! - an [`Output`] only takes from a token bucket and copies into the queue; what does not fit is
//!   counted, and a line in the log says how much is missing;
//! - one container keeps at most [`LOG_FILES_MAX`] files of [`FILE_BYTES_MAX`] for each start, and
//!   the files of this start and the one before;
//! - at most [`OPEN_FILES_MAX`] files are open, so thousands of quiet Pods cost no descriptors.
//!
//! A record is one line of the CRI format: `<time> stdout|stderr F|P <text>`. The time is that of
//! the write call. A line longer than [`LINE_BYTES_MAX`], or one whose end never came, is written
//! as `P` records.
//!
//! Task: the thread `logs` owns all files. It ends when the last [`Logs`] and [`Log`] are dropped.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::oneshot;
use wherry_wasi_shim::Output;

use crate::protocol::LOG_FILES_MAX;

/// Bytes a second that one container may print for ever.
const RATE_BYTES: u64 = 1 << 20;
/// Bytes that it may print at once: start-up chatter and stack traces fit.
const BURST_BYTES: u64 = 8 << 20;
/// A file is renamed when it would become larger.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// The longest text of one record; the same as other runtimes use, readers expect no longer lines.
const LINE_BYTES_MAX: usize = 16 << 10;
/// A write call is admitted in pieces of this size, so that one huge write is not all or nothing.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes waiting for the disk, of all containers together: two full bursts and some.
const QUEUE_BYTES_MAX: usize = 24 << 20;
/// What a queued piece costs beside its bytes, so that empty writes are bounded as well.
const PIECE_OVERHEAD: usize = 128;
/// The memory for records that an open log keeps between two writes.
const RECORDS_BYTES_KEPT: usize = 4 << 10;
/// Open log files; the longest unused one is closed.
const OPEN_FILES_MAX: usize = 128;
/// How soon a note about dropped lines appears when the container has gone silent.
const NOTE_INTERVAL: Duration = Duration::from_millis(500);
/// How long the writer rests after it has written: what is printed meanwhile wakes nobody. To wake a
/// thread for each line of each request costs as much as a part of the request itself.
const REST: Duration = Duration::from_millis(2);
/// Records of all files that wait to be written together; more are written at once.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// Which of the two streams of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The log files of one worker.
#[derive(Clone)]
pub struct Logs {
    queue: mpsc::Sender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    next_id: Arc<AtomicU64>,
    writer: thread::Thread,
}

/// The log of one container start.
#[derive(Clone)]
pub struct Log(Arc<Sink>);

/// Where the outputs of one container start meet.
struct Sink {
    id: u64,
    path: PathBuf,
    logs: Logs,
    /// Short sections without waiting: taken by guest threads and, rarely, the writer.
    limiter: Arc<Mutex<Limiter>>,
}

struct Limiter {
    bucket: Bucket,
    dropped: Dropped,
}

/// What was not written since the last note.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

/// To the writer thread. The channel itself is unbounded: pieces are bounded by `queued_bytes`, the
/// others come once for each container start.
enum Command {
    Open(Arc<Sink>),
    Piece { sink: Arc<Sink>, stream: Stream, at: Timestamp, dropped: Dropped, bytes: Vec<u8> },
    Close { id: u64, done: oneshot::Sender<()> },
}

impl Logs {
    /// Starts the writer thread.
    pub fn start() -> io::Result<Logs> {
        let (queue, commands) = mpsc::channel();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            commands,
            queued_bytes: queued_bytes.clone(),
            files: HashMap::new(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            open: 0,
            turn: 0,
        };
        let writer = thread::Builder::new().name("logs".into()).spawn(move || writer.run())?;
        let writer = writer.thread().clone();
        Ok(Logs { queue, queued_bytes, next_id: Arc::new(AtomicU64::new(0)), writer })
    }

    /// Makes the log of a container start. Its file and folder come with its first record: most of
    /// many Pods are silent, and file systems make and remove folders slowly. Appends if the file is
    /// there already; files of the starts before the previous one are removed.
    pub fn open(&self, path: PathBuf) -> Log {
        let sink = Arc::new(Sink {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            path,
            logs: self.clone(),
            limiter: Arc::new(Mutex::new(Limiter {
                bucket: Bucket::new(Instant::now()),
                dropped: Dropped::default(),
            })),
        });
        // A failed send means that the thread is gone, which it is only after a panic that has
        // been reported; guests go on without logs.
        let _ = self.queue.send(Command::Open(sink.clone()));
        Log(sink)
    }
}

impl Log {
    /// An output of the guest. Never blocks; drops, and says so in the log, what comes too fast.
    pub fn output(&self, stream: Stream) -> Output {
        let sink = self.0.clone();
        Arc::new(move |bytes: &[u8]| sink.offer(stream, bytes))
    }

    /// Adds a line of the worker itself to the guest's standard error.
    pub fn note(&self, text: &str) {
        self.0.offer(Stream::Stderr, format!("wherry: {text}\n").as_bytes());
    }

    /// Waits until all that was written before is in the file, and closes it. Later writes open it
    /// again.
    pub async fn close(&self) {
        let (done, written) = oneshot::channel();
        if self.0.logs.queue.send(Command::Close { id: self.0.id, done }).is_ok() {
            self.0.logs.writer.unpark();
            let _ = written.await;
        }
    }
}

impl Sink {
    fn offer(self: &Arc<Self>, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let now = Instant::now();
        let at = Timestamp::now();
        for piece in bytes.chunks(PIECE_BYTES) {
            self.offer_piece(stream, now, at, piece);
        }
    }

    fn offer_piece(self: &Arc<Self>, stream: Stream, now: Instant, at: Timestamp, piece: &[u8]) {
        let queued = &self.logs.queued_bytes;
        let cost = piece.len() + PIECE_OVERHEAD;
        let dropped = {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = queued.load(Ordering::Relaxed) + cost <= QUEUE_BYTES_MAX;
            if !fits || !limiter.bucket.take(now, piece.len() as u64) {
                limiter.dropped.add(piece);
                return;
            }
            std::mem::take(&mut limiter.dropped)
        };
        queued.fetch_add(cost, Ordering::Relaxed);
        let bytes = piece.to_vec();
        let _ =
            self.logs.queue.send(Command::Piece { sink: self.clone(), stream, at, dropped, bytes });
    }
}

impl Dropped {
    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.lines += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
    }

    /// The record that stands where something is missing.
    fn record(self, at: Timestamp, out: &mut Vec<u8>) {
        let text = format!(
            "wherry: dropped {} lines ({} bytes): this container prints more than {} KiB/s",
            self.lines,
            self.bytes,
            RATE_BYTES >> 10
        );
        record(out, at, Stream::Stderr, true, text.as_bytes());
    }
}

/// A token bucket over bytes, kept as the time at which it will be full again.
#[derive(Debug)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket { full_at: now }
    }

    /// Takes all of `bytes` or nothing.
    fn take(&mut self, now: Instant, bytes: u64) -> bool {
        let full_at = self.full_at.max(now) + time_of(bytes);
        let fits = full_at - now <= time_of(BURST_BYTES);
        if fits {
            self.full_at = full_at;
        }
        fits
    }
}

/// How long the rate takes for so many bytes. Callers pass at most a burst.
fn time_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes * 1_000_000_000 / RATE_BYTES)
}

/// Appends one record.
fn record(out: &mut Vec<u8>, at: Timestamp, stream: Stream, whole: bool, text: &[u8]) {
    let tag = if whole { 'F' } else { 'P' };
    write!(out, "{at:.9} {} {tag} ", stream.word()).expect("writing to memory does not fail");
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Turns what was written to one stream into records. `pending` is the text since the last line
/// end, carried from call to call; it never holds more than [`LINE_BYTES_MAX`].
fn records(
    out: &mut Vec<u8>,
    pending: &mut Vec<u8>,
    at: Timestamp,
    stream: Stream,
    mut bytes: &[u8],
) {
    while !bytes.is_empty() {
        let room = LINE_BYTES_MAX - pending.len();
        let window = &bytes[..bytes.len().min(room + 1)];
        if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
            if pending.is_empty() {
                record(out, at, stream, true, &bytes[..end]);
            } else {
                pending.extend_from_slice(&bytes[..end]);
                record(out, at, stream, true, pending);
                pending.clear();
            }
            bytes = &bytes[end + 1..];
        } else if bytes.len() > room {
            pending.extend_from_slice(&bytes[..room]);
            record(out, at, stream, false, pending);
            pending.clear();
            bytes = &bytes[room..];
        } else {
            pending.extend_from_slice(bytes);
            bytes = &[];
        }
    }
}

/// The thread that owns the files.
struct Writer {
    commands: mpsc::Receiver<Command>,
    queued_bytes: Arc<AtomicUsize>,
    files: HashMap<u64, LogFile>,
    /// Those of `files` that have records to be written, and how many bytes these are.
    gathered: Vec<u64>,
    gathered_bytes: usize,
    /// How many of `files` hold an open descriptor.
    open: usize,
    /// Counts writes; orders files by their last use.
    turn: u64,
}

/// One container start's file and the unfinished line of each stream. It does not hold the
/// [`Sink`], which holds the queue open.
struct LogFile {
    path: PathBuf,
    limiter: Arc<Mutex<Limiter>>,
    /// Whether its folder was made. One that is gone since belonged to a Pod that is gone.
    has_folder: bool,
    file: Option<File>,
    bytes: u64,
    last_used: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// To be written.
    records: Vec<u8>,
    /// Whether the last write failed; only the change is worth a line in the worker's own log.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            match self.commands.recv_timeout(NOTE_INTERVAL) {
                Ok(command) => {
                    self.perform(command);
                    while let Ok(command) = self.commands.try_recv() {
                        self.perform(command);
                    }
                    self.write_gathered();
                    // Ends early when a log is to be closed.
                    thread::park_timeout(REST);
                }
                Err(RecvTimeoutError::Timeout) => self.note_dropped(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Open(sink) => {
                if let Err(error) = remove_old(&sink.path) {
                    tracing::warn!(path = %sink.path.display(), %error, "cannot remove old logs");
                }
                self.files.insert(sink.id, LogFile::new(&sink));
            }
            Command::Piece { sink, stream, at, dropped, bytes } => {
                self.queued_bytes.fetch_sub(bytes.len() + PIECE_OVERHEAD, Ordering::Relaxed);
                let file = self.files.entry(sink.id).or_insert_with(|| LogFile::new(&sink));
                let before = file.records.len();
                if dropped.bytes > 0 {
                    dropped.record(at, &mut file.records);
                }
                let pending = match stream {
                    Stream::Stdout => &mut file.stdout,
                    Stream::Stderr => &mut file.stderr,
                };
                records(&mut file.records, pending, at, stream, &bytes);
                let added = file.records.len() - before;
                if before == 0 && added > 0 {
                    self.gathered.push(sink.id);
                }
                self.gathered_bytes += added;
                if self.gathered_bytes > GATHERED_BYTES_MAX {
                    self.write_gathered();
                }
            }
            Command::Close { id, done } => {
                self.finish(id);
                // Nobody waits any more: nothing to do about it.
                let _ = done.send(());
            }
        }
    }

    fn write_gathered(&mut self) {
        self.gathered_bytes = 0;
        for id in std::mem::take(&mut self.gathered) {
            self.write(id);
        }
    }

    /// Writes what is left of a container's log and closes its file.
    fn finish(&mut self, id: u64) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let at = Timestamp::now();
        let dropped = file.take_dropped();
        if dropped.bytes > 0 {
            dropped.record(at, &mut file.records);
        }
        for (stream, pending) in
            [(Stream::Stdout, &mut file.stdout), (Stream::Stderr, &mut file.stderr)]
        {
            if !pending.is_empty() {
                record(&mut file.records, at, stream, false, pending);
                pending.clear();
            }
        }
        self.write(id);
        if let Some(file) = self.files.remove(&id)
            && file.file.is_some()
        {
            self.open -= 1;
        }
    }

    fn note_dropped(&mut self) {
        let at = Timestamp::now();
        let mut noted = Vec::new();
        for (id, file) in &mut self.files {
            let dropped = file.take_dropped();
            if dropped.bytes > 0 {
                dropped.record(at, &mut file.records);
                noted.push(*id);
            }
        }
        for id in noted {
            self.write(id);
        }
    }

    /// Appends a file's records to it, opening and rotating it as needed.
    fn write(&mut self, id: u64) {
        let Some(file) = self.files.get_mut(&id).filter(|file| !file.records.is_empty()) else {
            return;
        };
        self.turn += 1;
        file.last_used = self.turn;
        let was_open = file.file.is_some();
        let mut records = std::mem::take(&mut file.records);
        let outcome = file.append(&records);
        // What could not be written is lost, as on any full disk.
        records.clear();
        records.shrink_to(RECORDS_BYTES_KEPT);
        file.records = records;
        match (&outcome, file.failing) {
            (Err(error), false) => {
                tracing::warn!(path = %file.path.display(), %error, "cannot write a log");
            }
            (Ok(()), true) => {
                tracing::info!(path = %file.path.display(), "log is written again");
            }
            _ => {}
        }
        file.failing = outcome.is_err();
        match (was_open, file.file.is_some()) {
            (false, true) => self.open += 1,
            (true, false) => self.open -= 1,
            _ => {}
        }
        if self.open > OPEN_FILES_MAX {
            self.close_longest_unused();
        }
    }

    fn close_longest_unused(&mut self) {
        let open = self.files.values_mut().filter(|file| file.file.is_some());
        if let Some(file) = open.min_by_key(|file| file.last_used) {
            file.file = None;
            self.open -= 1;
        }
    }
}

impl LogFile {
    fn new(sink: &Sink) -> LogFile {
        LogFile {
            path: sink.path.clone(),
            limiter: sink.limiter.clone(),
            has_folder: false,
            file: None,
            bytes: 0,
            last_used: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            records: Vec::new(),
            failing: false,
        }
    }

    fn take_dropped(&self) -> Dropped {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut limiter.dropped)
    }

    /// After an error the file is closed, so that the next write starts from what is on disk.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let path = &self.path;
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                if !self.has_folder {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder_of(path))?;
                    self.has_folder = true;
                }
                let file = open_append(path)?;
                self.bytes = file.metadata()?.len();
                file
            }
        };
        let added = records.len() as u64;
        if self.bytes > 0 && self.bytes + added > FILE_BYTES_MAX {
            drop(file);
            rotate(path)?;
            file = open_append(path)?;
            self.bytes = 0;
        }
        file.write_all(records)?;
        self.bytes += added;
        self.file = Some(file);
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// `FILE.1` and so on.
fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Moves each file one number up; the oldest is overwritten.
fn rotate(path: &Path) -> io::Result<()> {
    for number in (1..LOG_FILES_MAX - 1).rev() {
        match fs::rename(rotated(path, number), rotated(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, rotated(path, 1))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().expect("a log file is in a folder")
}

/// Removes the files of the starts before the previous one.
fn remove_old(path: &Path) -> io::Result<()> {
    let restart = path.file_name().and_then(|name| restart_of(name.to_str()?));
    let Some(restart) = restart.filter(|restart| *restart > 1) else {
        return Ok(());
    };
    let entries = match fs::read_dir(folder_of(path)) {
        // None of them has printed anything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let old = entry.file_name().to_str().and_then(restart_of);
        if old.is_some_and(|old| old.saturating_add(1) < restart) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The number in `3.log` and `3.log.1`.
fn restart_of(file_name: &str) -> Option<u32> {
    let (number, rest) = file_name.split_once(".log")?;
    if rest.is_empty() || rest.starts_with('.') { number.parse().ok() } else { None }
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
