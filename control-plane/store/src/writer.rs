//! The one thread that writes to disk.
//!
//! Everything the store writes goes through one bounded queue into one thread, which takes all that
//! waits, makes it one batch, writes it with at most one fsync, and then answers in order: group
//! commit. While a batch is on its way to the disk the next one gathers, so that a hundred writers
//! cost two fsyncs, not a hundred. A change that nobody waits for can be put off: it goes with the
//! next one, so that it costs neither a write nor a wake-up of its own.
//!
//! Invariants:
//! - Changes reach the disk in the order in which they were submitted; answers are given in that
//!   order too, and only after the fsync if the change asked to be durable.
//! - After the first failure nothing is written any more. A failed fsync may have lost what came
//!   before it, so trying again would be a lie; the store stops and says why.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{Batch, Column, Engine, EngineError, Resealed, Stage};
use crate::faults::{Bug, Faults};

/// Changes that may wait; behind it whoever submits waits.
const QUEUE_MAX: usize = 4096;

/// Bytes gathered into one write: more would make the first of them wait too long for the last.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Bytes put off before they are written although nothing else is.
const LATER_BYTES_MAX: usize = 1 << 20;

/// Called once, on the writer's thread, with what became of a change. Must not block.
pub(crate) type Done = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

/// A job, behind the changes that were put off before it came.
struct Queued {
    before: Batch,
    job: Job,
}

enum Job {
    Write {
        batch: Batch,
        durable: bool,
        done: Option<Done>,
    },
    /// Puts a staged state in the place of the live one.
    Adopt {
        stage: Stage,
        batch: Batch,
        done: Done,
    },
    Reseal(Reseal),
    Close,
}

/// One round of writing records again under the newest key. The writer's thread does it, since
/// nobody else may write between its reading and its writing.
struct Reseal {
    column: Column,
    from: Vec<u8>,
    done: oneshot::Sender<Result<Resealed, EngineError>>,
}

/// The reason for which the store stopped; the first one counts.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<watch::Sender<Option<Arc<str>>>>);

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop(Arc::new(watch::Sender::new(None)))
    }

    /// Stops the store, unless it has stopped already.
    pub(crate) fn stop(&self, reason: &str) {
        self.0.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            *current = Some(Arc::from(reason));
            true
        });
    }

    pub(crate) fn reason(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    /// Waits until the store stops.
    pub(crate) async fn stopped(&self) -> Arc<str> {
        let mut receiver = self.0.subscribe();
        let reason = receiver.wait_for(Option::is_some).await;
        let reason = reason.expect("the sender lives as long as self");
        reason.clone().expect("waited for it to be there")
    }
}

/// Stops the store when whoever holds it panics: a thread or task that is gone would leave a member
/// that looks alive and does nothing.
pub(crate) struct Alarm {
    pub(crate) stop: Stop,
    pub(crate) what: &'static str,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.stop(&format!("{} panicked, see the log", self.what));
        }
    }
}

/// How much the writer has written, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Batches that ended with an fsync.
    pub(crate) fsyncs: AtomicU64,
    /// Changes submitted.
    pub(crate) changes: AtomicU64,
}

/// Where changes are handed in.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Queued>,
    /// What was put off. A std mutex: sections are short and never await. Whoever queues a job takes
    /// this with it in one section, so that the queue's order is that of the hands.
    later: Arc<Mutex<Batch>>,
    written: Arc<Written>,
}

impl Writer {
    /// Starts the thread. It ends after `close`, or when all writers are gone.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        stop: Stop,
        faults: Faults,
    ) -> std::io::Result<(Writer, JoinHandle<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let written = Arc::new(Written::default());
        let counts = written.clone();
        let thread = std::thread::Builder::new().name("store-writer".to_owned());
        let thread = thread.spawn(move || {
            let _alarm = Alarm { stop: stop.clone(), what: "the store's writer thread" };
            run(&*engine, jobs, &stop, &counts, &faults);
        })?;
        Ok((Writer { queue, later: Arc::default(), written }, thread))
    }

    fn later(&self) -> MutexGuard<'_, Batch> {
        self.later.lock().expect("no section of this lock panics")
    }

    async fn enqueue(&self, job: Job) -> Result<(), EngineError> {
        let place = self.queue.reserve().await.map_err(|_| EngineError::Closed)?;
        let mut later = self.later();
        place.send(Queued { before: std::mem::take(&mut *later), job });
        Ok(())
    }

    /// Hands in a change. It is ordered after all that were handed in before it, from the moment
    /// this returns; `done` hears what became of it.
    pub(crate) async fn submit(
        &self,
        batch: Batch,
        durable: bool,
        done: Option<Done>,
    ) -> Result<(), EngineError> {
        self.enqueue(Job::Write { batch, durable, done }).await
    }

    /// Hands in a change that nobody waits for. It is written together with whatever is handed in
    /// next; where nothing is, `settle` sees to it.
    pub(crate) async fn put_off(&self, batch: Batch) -> Result<(), EngineError> {
        let bytes = {
            let mut later = self.later();
            later.absorb(batch);
            later.bytes
        };
        if bytes < LATER_BYTES_MAX && !self.queue.is_closed() {
            return Ok(());
        }
        self.settle().await
    }

    /// Has what was put off written, if anything was.
    pub(crate) async fn settle(&self) -> Result<(), EngineError> {
        if self.later().is_empty() {
            return Ok(());
        }
        self.submit(Batch::default(), false, None).await
    }

    /// Hands in a change and waits until it is on disk.
    pub(crate) async fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.submit(batch, true, Some(done)).await?;
        receiver.await.map_err(|_| EngineError::Closed)?
    }

    /// Puts a staged state in the place of the live one, after all that was handed in before, and
    /// waits until that is on disk.
    pub(crate) async fn adopt(&self, stage: Stage, batch: Batch) -> Result<(), EngineError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.enqueue(Job::Adopt { stage, batch, done }).await?;
        receiver.await.map_err(|_| EngineError::Closed)?
    }

    /// Does one round of resealing; ordered among the changes handed in.
    pub(crate) async fn reseal(
        &self,
        column: Column,
        from: Vec<u8>,
    ) -> Result<Resealed, EngineError> {
        let (done, receiver) = oneshot::channel();
        self.enqueue(Job::Reseal(Reseal { column, from, done })).await?;
        receiver.await.map_err(|_| EngineError::Closed)?
    }

    /// Lets the thread end once all that was handed in is written.
    pub(crate) async fn close(&self) {
        let _ = self.enqueue(Job::Close).await;
    }

    pub(crate) fn written(&self) -> &Written {
        &self.written
    }
}

fn run(
    engine: &dyn Engine,
    mut jobs: mpsc::Receiver<Queued>,
    stop: &Stop,
    written: &Written,
    faults: &Faults,
) {
    let mut failed: Option<EngineError> = None;
    let mut open = true;
    while open {
        let Some(first) = jobs.blocking_recv() else {
            break;
        };
        let mut group = gather(first, &mut jobs, &mut open);
        written.changes.fetch_add(group.changes, Ordering::Relaxed);
        if faults.has(Bug::AckBeforeFsync) && failed.is_none() {
            group.done.drain(..).for_each(|done| done(Ok(())));
        }
        let result = match &failed {
            Some(error) => Err(error.clone()),
            None => write(engine, &group, faults),
        };
        note_failure(&result, stop, &mut failed);
        if result.is_ok() && (group.durable || group.adopt.is_some()) {
            written.fsyncs.fetch_add(1, Ordering::Relaxed);
        }
        for done in group.done {
            done(result.clone());
        }
        if let Some(Reseal { column, from, done }) = group.reseal {
            let resealed = match &failed {
                Some(error) => Err(error.clone()),
                None => engine.reseal(column, &from),
            };
            note_failure(&resealed, stop, &mut failed);
            // Whoever asked may be gone; what was resealed is so all the same.
            let _ = done.send(resealed);
        }
    }
}

/// The first failure stops the store.
fn note_failure<T>(result: &Result<T, EngineError>, stop: &Stop, failed: &mut Option<EngineError>) {
    if let Err(error) = result
        && failed.is_none()
    {
        tracing::error!(%error, "store writer failed");
        stop.stop(&error.to_string());
        *failed = Some(error.clone());
    }
}

/// Writes a group: its changes, and then a staged state, if it has one.
fn write(engine: &dyn Engine, group: &Group, faults: &Faults) -> Result<(), EngineError> {
    let failed = |error: std::io::Error| EngineError::Write(error.to_string());
    if !group.batch.is_empty() {
        faults.hit("writer.write").map_err(failed)?;
        engine.write(&group.batch, group.durable)?;
    }
    if group.durable {
        faults.hit("writer.sync").map_err(failed)?;
    }
    match &group.adopt {
        Some((stage, batch)) => engine.adopt(*stage, batch),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Group {
    batch: Batch,
    durable: bool,
    /// A staged state to be adopted after the changes.
    adopt: Option<(Stage, Batch)>,
    done: Vec<Done>,
    changes: u64,
    /// To be done after the batch.
    reseal: Option<Reseal>,
}

/// Takes the first change and all that wait behind it, up to a size or to a staged state.
fn gather(first: Queued, jobs: &mut mpsc::Receiver<Queued>, open: &mut bool) -> Group {
    let mut group = Group::default();
    let mut next = Some(first);
    while let Some(Queued { before, job }) = next {
        group.changes += u64::from(!before.is_empty());
        group.batch.absorb(before);
        match job {
            Job::Write { batch, durable, done } => {
                group.batch.absorb(batch);
                group.durable |= durable;
                group.done.extend(done);
                group.changes += 1;
            }
            Job::Adopt { stage, batch, done } => {
                group.adopt = Some((stage, batch));
                group.done.push(done);
                break;
            }
            Job::Reseal(reseal) => {
                group.reseal = Some(reseal);
                break;
            }
            Job::Close => {
                *open = false;
                break;
            }
        }
        if group.batch.bytes >= GROUP_BYTES_MAX {
            break;
        }
        next = jobs.try_recv().ok();
    }
    group
}

#[cfg(test)]
mod tests;
