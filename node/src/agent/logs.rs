//! Reading container logs: what `kubectl logs` can ask for.
//!
//! The worker writes `<restart>.log` and rotates it to `.1` and `.2` (see `protocol::log_file`). A
//! reader goes through the files from the oldest to the newest, then, if it follows, waits at the end
//! of the live file. A rotation shows as another inode under the live name: the old file is read to
//! its end once more, then those that came after it, so no line is lost or read twice.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader},
    sync::mpsc,
};

use crate::{beneath, protocol::LOG_FILES_MAX};

/// How often a follower looks for new lines.
const FOLLOW_POLL: Duration = Duration::from_millis(100);
/// Every so many looks it asks whether the container still runs.
const FOLLOW_CHECK: u32 = 5;
/// Longest record that is read; the worker writes no longer ones.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// Output is sent in pieces of about this size.
const PIECE_BYTES: usize = 16 << 10;
/// Block for reading a file from its end.
const TAIL_BLOCK: u64 = 64 << 10;

/// What to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Wait for more at the end.
    pub follow: bool,
    /// The start before the current one.
    pub previous: bool,
    /// Only so many records from the end.
    pub tail: Option<u64>,
    /// Only records after this.
    pub since: Option<Timestamp>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Put the time before each line.
    pub timestamps: bool,
}

impl Options {
    /// Reads the query of a log request. The error is a sentence for people.
    pub fn parse(query: &str, now: Timestamp) -> Result<Options, String> {
        let mut options = Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value);
            let flag = || match value.as_str() {
                "true" | "1" | "" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(format!("{name} must be true or false, not {value}")),
            };
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name} must be a whole number, not {value}"))
            };
            match name {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).unwrap_or(i64::MAX);
                    options.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                }
                "sinceTime" => {
                    let time = value.parse::<Timestamp>();
                    options.since = Some(time.map_err(|_| {
                        format!("sinceTime must be a time like 2026-11-21T08:00:00Z, not {value}")
                    })?);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// Percent decoding; a time has `:` and perhaps `+` in it.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digits = [*high, *low];
                std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok())
            }
            _ => None,
        };
        match (hex, first) {
            (Some(byte), _) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (None, b'+') => {
                bytes.push(b' ');
                rest = tail;
            }
            (None, byte) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a str,
    /// The text goes on in the next record of the same stream.
    partial: bool,
    text: &'a [u8],
}

/// Reads `<time> <stream> <F|P> <text>`; `None` for anything else.
fn record(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    if !matches!(stream, b"stdout" | b"stderr") || !matches!(tag, b"F" | b"P") {
        return None;
    }
    Some(Record { time, partial: tag == b"P", text })
}

/// Turns records into output, and knows when enough was put out.
struct Printer {
    options: Options,
    /// The record before was partial: no time in the middle of a line.
    inside: bool,
    left: Option<u64>,
    piece: Vec<u8>,
}

impl Printer {
    fn new(options: Options) -> Printer {
        let left = options.limit_bytes;
        Printer { options, inside: false, left, piece: Vec::new() }
    }

    /// Adds one line of the file.
    fn print(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let Some(record) = record(line) else { return };
        if let Some(since) = self.options.since {
            let old = record.time.parse::<Timestamp>().is_ok_and(|time| time < since);
            if old {
                return;
            }
        }
        if self.options.timestamps && !self.inside {
            self.put(record.time.as_bytes());
            self.put(b" ");
        }
        self.put(record.text);
        if !record.partial {
            self.put(b"\n");
        }
        self.inside = record.partial;
    }

    fn put(&mut self, bytes: &[u8]) {
        let take = match &mut self.left {
            Some(left) => {
                let take = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                take
            }
            None => bytes.len(),
        };
        self.piece.extend_from_slice(&bytes[..take]);
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn take(&mut self) -> Option<Bytes> {
        (!self.piece.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.piece)))
    }
}

/// Whether the container whose log is followed may still write.
pub type StillRuns = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Reads a log into `output` until its end, the limit, or, when it follows, until the container has
/// ended. Ends early when nobody reads the output.
pub async fn stream(
    live: PathBuf,
    options: Options,
    still_runs: StillRuns,
    output: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    if let Err(error) = read(&live, options, still_runs, &output).await {
        let _ = output.send(Err(error)).await;
    }
}

async fn read(
    live: &Path,
    options: Options,
    still_runs: StillRuns,
    output: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> io::Result<()> {
    let follow = options.follow;
    let mut files = open(live).await?;
    if let Some(tail) = options.tail {
        skip_to_tail(&mut files, tail).await?;
    }
    let mut printer = Printer::new(options);
    let mut line = Vec::new();
    let last = files.pop();
    for (file, _) in files {
        let mut reader = BufReader::new(file);
        while !printer.is_done() && next_line(&mut reader, &mut line).await? {
            if !flush(&mut printer, &line, output, false).await {
                return Ok(());
            }
        }
    }
    let (mut reader, mut inode) = match last {
        Some((file, inode)) => (BufReader::new(file), inode),
        None if !follow => return Ok(()),
        None => match appeared(live, &still_runs, output).await? {
            Some((file, inode)) => (BufReader::new(file), inode),
            None => return Ok(()),
        },
    };
    line.clear();
    let mut looks = 0;
    let mut over = false;
    let mut next: Option<(File, u64)> = None;
    while !printer.is_done() {
        if next_line(&mut reader, &mut line).await? {
            let more = !reader.buffer().is_empty();
            if !flush(&mut printer, &line, output, !more).await {
                return Ok(());
            }
            line.clear();
            looks = 0;
            continue;
        }
        if !send(&mut printer, output).await || !follow {
            return Ok(());
        }
        // At the end: another file under the live name, or the end of the container?
        if let Some((file, number)) = next.take() {
            (reader, inode) = (BufReader::new(file), number);
            continue;
        }
        next = successor(live, inode).await?;
        if next.is_some() {
            // What was written to this one after the last look, before it was moved, comes first.
            continue;
        }
        if over {
            return Ok(());
        }
        looks += 1;
        if looks % FOLLOW_CHECK == 0 && !still_runs().await {
            // One last look, for what it wrote before it ended.
            over = true;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_POLL) => {}
            () = output.closed() => return Ok(()),
        }
    }
    send(&mut printer, output).await;
    Ok(())
}

/// Waits for the live file of a container that has not printed anything yet.
async fn appeared(
    live: &Path,
    still_runs: &StillRuns,
    output: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> io::Result<Option<(File, u64)>> {
    let mut looks = 0;
    loop {
        if let Some(opened) = open_one(live).await? {
            return Ok(Some(opened));
        }
        looks += 1;
        if looks % FOLLOW_CHECK == 0 && !still_runs().await {
            // It may have printed its first and last line since.
            return open_one(live).await;
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_POLL) => {}
            () = output.closed() => return Ok(None),
        }
    }
}

/// Prints a line, and sends what has come together. `false` when nobody reads.
async fn flush(
    printer: &mut Printer,
    line: &[u8],
    output: &mpsc::Sender<Result<Bytes, io::Error>>,
    now: bool,
) -> bool {
    printer.print(line);
    if now || printer.piece.len() >= PIECE_BYTES {
        return send(printer, output).await;
    }
    true
}

async fn send(printer: &mut Printer, output: &mpsc::Sender<Result<Bytes, io::Error>>) -> bool {
    match printer.take() {
        Some(piece) => output.send(Ok(piece)).await.is_ok(),
        None => true,
    }
}

/// Reads up to the next line end into `line`. `false` at the end of the file; then what
/// there is of an unfinished line stays in `line` for the next call.
async fn next_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<bool> {
    if line.last() == Some(&b'\n') {
        line.clear();
    }
    let room = RECORD_BYTES_MAX.saturating_sub(line.len() as u64).max(1);
    reader.take(room).read_until(b'\n', line).await?;
    Ok(line.last() == Some(&b'\n') || line.len() as u64 >= RECORD_BYTES_MAX)
}

/// The files of a log from the oldest to the newest, each with its inode.
async fn open(live: &Path) -> io::Result<Vec<(File, u64)>> {
    let mut files = Vec::new();
    for age in (0..LOG_FILES_MAX).rev() {
        let path = if age == 0 { live.to_owned() } else { rotated(live, age) };
        if let Some(opened) = open_one(&path).await? {
            // A rotation in between shows the same file under two names.
            if files.last().is_none_or(|(_, inode)| *inode != opened.1) {
                files.push(opened);
            }
        }
    }
    Ok(files)
}

/// The file that came after one of a log, once that is no longer the live one. After one that is
/// gone, it is the oldest that is left.
async fn successor(live: &Path, inode: u64) -> io::Result<Option<(File, u64)>> {
    if open_one(live).await?.is_none_or(|(_, number)| number == inode) {
        return Ok(None);
    }
    let mut files = open(live).await?;
    let found = files.iter().position(|(_, number)| *number == inode);
    let after = found.map_or(0, |at| at + 1);
    Ok((after < files.len()).then(|| files.swap_remove(after)))
}

fn rotated(live: &Path, age: usize) -> PathBuf {
    let mut name = live.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

async fn open_one(path: &Path) -> io::Result<Option<(File, u64)>> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || open_below(&path)).await;
    let opened = opened.map_err(io::Error::other)??;
    Ok(opened.map(|(file, inode)| (File::from_std(file), inode)))
}

/// Opens a log below the Pod's folder and nowhere else: the folder is the worker's, who may put links
/// and pipes there, and this process may read what that one may not.
fn open_below(path: &Path) -> io::Result<Option<(std::fs::File, u64)>> {
    let folder = path.parent().and_then(Path::parent).ok_or(io::ErrorKind::InvalidInput)?;
    let below = path.strip_prefix(folder).expect("a path begins with what is above it");
    match beneath::open_file(folder, below) {
        Ok(file) => {
            let found = file.metadata()?;
            Ok(found.is_file().then(|| (file, found.ino())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Leaves only the files with the last `count` records, the first of them at its place.
async fn skip_to_tail(files: &mut Vec<(File, u64)>, count: u64) -> io::Result<()> {
    let mut wanted = count;
    let mut first = files.len();
    while first > 0 {
        let (file, _) = &mut files[first - 1];
        let (start, found) = tail_of(file, wanted).await?;
        file.seek(io::SeekFrom::Start(start)).await?;
        first -= 1;
        wanted -= found.min(wanted);
        if wanted == 0 {
            break;
        }
    }
    files.drain(..first);
    Ok(())
}

/// Where the last `count` lines of a file start, and how many there are up to `count`.
async fn tail_of(file: &mut File, count: u64) -> io::Result<(u64, u64)> {
    let length = file.metadata().await?.len();
    if count == 0 {
        return Ok((length, 0));
    }
    let mut found = 0;
    let mut position = length;
    let mut block = Vec::new();
    while position > 0 {
        let size = position.min(TAIL_BLOCK);
        position -= size;
        block.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
        file.seek(io::SeekFrom::Start(position)).await?;
        file.read_exact(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = position + index as u64;
            // The end of the last line does not begin another one.
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                if found == count {
                    return Ok((at + 1, found));
                }
            }
        }
    }
    Ok((0, found + u64::from(length > 0)))
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
