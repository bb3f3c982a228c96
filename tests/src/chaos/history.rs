//! What was asked of the cluster, what it answered and when: the material of the checkers.
//!
//! A history is a file of JSON lines, written while the run goes on, so that a run that dies leaves
//! what it saw. Times are microseconds since the run began, all by one clock. Every write carries a
//! value that no other write has, so a value names the write that made it; but for those of the
//! counter, which are kept apart and checked by themselves.
//!
//! Words: a *call* is one request with its answer; it is *acknowledged* when the answer says that
//! it was done, *refused* when the answer says that it was not, *unknown* otherwise. A *follower*
//! is one logical watch: it goes on from the last revision it saw, on another member if need be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A store revision, as resourceVersion carries it.
pub type Revision = u64;

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What the run was started with.
    Run {
        seed: u64,
        minutes: f64,
        mode: String,
        profile: String,
    },
    Call(Call),
    /// A call on the counter.
    Count(Call),
    Watch(WatchLine),
    /// Something was done to the cluster.
    Fault(FaultLine),
    /// The machine's host ran others in the time up to here.
    Stolen(StolenLine),
}

/// What part of the processors the machine's host gave to others, since the line before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StolenLine {
    pub at_us: u64,
    pub percent: f64,
}

/// Something that was done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultLine {
    pub at_us: u64,
    /// How long it lasts.
    pub for_us: u64,
    /// Faults of one sort are measured together; what is only noted has none.
    pub sort: Option<String>,
    pub what: String,
}

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub client: u32,
    /// Which member was asked, by its place in the cluster.
    pub member: usize,
    pub invoke_us: u64,
    pub return_us: u64,
    pub op: Op,
    pub outcome: Outcome,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Create {
        key: String,
        value: String,
    },
    /// Compare and swap: only if the key is at `base`, where it held `old`.
    Update {
        key: String,
        base: Revision,
        old: String,
        value: String,
    },
    /// With a base only if the key is at it.
    Delete {
        key: String,
        base: Option<(Revision, String)>,
    },
    Get {
        key: String,
    },
    /// All keys that begin with this.
    List {
        prefix: String,
    },
}

/// A key as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub key: String,
    pub revision: Revision,
    pub value: String,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A create or update was done, at this revision.
    Written {
        revision: Revision,
    },
    /// A delete was done.
    Deleted,
    Found {
        item: Option<Item>,
    },
    Listed {
        revision: Revision,
        items: Vec<Item>,
    },
    Refused(Refusal),
    Unknown {
        why: String,
    },
}

/// Why something was certainly not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The key is there already.
    Exists,
    /// The key is not at the base.
    Conflict,
    /// The key is not there.
    NotFound,
    /// The member could not serve, or was not reached; says nothing about the key.
    Unserved(String),
}

/// One thing that a follower saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchLine {
    pub follower: u32,
    pub member: usize,
    pub at_us: u64,
    pub saw: Saw,
}

/// What a watch brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Saw {
    /// Listed anew; what came before no longer binds the follower.
    Restart {
        revision: Revision,
        items: Vec<Item>,
    },
    /// A watch was opened behind this revision.
    Open {
        after: Revision,
    },
    /// A key was set (`value`) or removed (`None`).
    Event {
        key: String,
        revision: Revision,
        value: Option<String>,
        created: bool,
    },
    Bookmark {
        revision: Revision,
    },
    /// The watch ended.
    End {
        why: String,
    },
}

impl Op {
    /// The one key it is about; a list has none.
    pub fn key(&self) -> Option<&str> {
        match self {
            Op::Create { key, .. }
            | Op::Update { key, .. }
            | Op::Delete { key, .. }
            | Op::Get { key } => Some(key),
            Op::List { .. } => None,
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self, Op::Create { .. } | Op::Update { .. } | Op::Delete { .. })
    }

    /// The value it sets.
    pub fn value(&self) -> Option<&str> {
        match self {
            Op::Create { value, .. } | Op::Update { value, .. } => Some(value),
            _ => None,
        }
    }
}

impl Call {
    pub fn acknowledged_write(&self) -> bool {
        matches!(self.outcome, Outcome::Written { .. } | Outcome::Deleted)
    }

    /// Whether the member that was asked did what it is for.
    pub fn is_served(&self) -> bool {
        !matches!(self.outcome, Outcome::Refused(Refusal::Unserved(_)) | Outcome::Unknown { .. })
    }

    /// Nobody can say whether it was done, or what it read.
    pub fn is_unknown(&self) -> bool {
        matches!(self.outcome, Outcome::Unknown { .. })
    }

    /// A write that may have been done. (A read without an answer has done nothing.)
    pub fn is_unknown_write(&self) -> bool {
        self.op.is_write() && self.is_unknown()
    }

    /// The newest revision that this call's answer proves to have been there.
    pub fn proves(&self) -> Option<Revision> {
        match &self.outcome {
            Outcome::Written { revision } | Outcome::Listed { revision, .. } => Some(*revision),
            Outcome::Found { item: Some(item) } => Some(item.revision),
            _ => None,
        }
    }
}

/// A whole history.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What kind of run it was.
    pub mode: String,
    pub calls: Vec<Call>,
    /// Increments of the counter, and what it was in the end.
    pub counts: Vec<Call>,
    pub watches: Vec<WatchLine>,
    pub faults: Vec<FaultLine>,
    pub stolen: Vec<StolenLine>,
}

impl History {
    /// Reads a history file.
    pub fn read(path: &Path) -> Result<History> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut history = History::default();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.with_context(|| format!("read {}", path.display()))?;
            let line = serde_json::from_str(&line)
                .with_context(|| format!("{} line {}", path.display(), number + 1))?;
            history.add(line);
        }
        Ok(history)
    }

    pub fn add(&mut self, line: Line) {
        match line {
            Line::Run { mode, .. } => self.mode = mode,
            Line::Call(call) => self.calls.push(call),
            Line::Count(call) => self.counts.push(call),
            Line::Watch(line) => self.watches.push(line),
            Line::Fault(line) => self.faults.push(line),
            Line::Stolen(line) => self.stolen.push(line),
        }
    }

    /// What each follower saw, in order.
    pub fn followers(&self) -> BTreeMap<u32, Vec<&WatchLine>> {
        let mut followers: BTreeMap<u32, Vec<&WatchLine>> = BTreeMap::new();
        for line in &self.watches {
            followers.entry(line.follower).or_default().push(line);
        }
        followers
    }
}

/// Writes lines to a file and keeps them. Clones write to the same file; the thread ends when all
/// are gone.
#[derive(Clone)]
pub struct Recorder {
    lines: mpsc::Sender<Line>,
}

/// The writing thread, which returns the history.
pub struct Recording(JoinHandle<Result<History>>);

impl Recorder {
    /// Starts to write to a new file. The queue is unbounded because nothing that is seen may be
    /// left out; it grows only while the disk stands still, by what a few clients do meanwhile.
    pub fn start(path: &Path) -> Result<(Recorder, Recording)> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let (lines, incoming) = mpsc::channel::<Line>();
        let thread = std::thread::spawn(move || {
            let mut file = BufWriter::new(file);
            let mut history = History::default();
            for line in incoming {
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
                history.add(line);
            }
            file.flush()?;
            Ok(history)
        });
        Ok((Recorder { lines }, Recording(thread)))
    }

    pub fn record(&self, line: Line) {
        // A thread that failed reports it when it is joined.
        let _ = self.lines.send(line);
    }
}

impl Recording {
    /// Waits until all recorders are gone and all is written.
    pub fn finish(self) -> Result<History> {
        self.0.join().expect("the recording thread does not panic")
    }
}
