//! Group commit, order and the end after a failure, over an engine that waits to be let through.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc as std_mpsc;

use bytes::Bytes;

use super::*;
use crate::engine::{Column, Pair, Visit};

/// Records what is written; each write waits for a verdict.
struct Gate {
    verdicts: Mutex<std_mpsc::Receiver<Result<(), EngineError>>>,
    writes: Mutex<Vec<(usize, bool)>>,
}

impl Engine for Gate {
    fn write(&self, batch: &Batch, durable: bool) -> Result<(), EngineError> {
        let verdicts = self.verdicts.lock().expect("the test does not panic here");
        let verdict = verdicts.recv().expect("the test gives a verdict for each write");
        self.writes.lock().expect("the test does not panic here").push((batch.ops.len(), durable));
        verdict
    }

    fn get(&self, _: Column, _: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(None)
    }

    fn scan(&self, _: Column, _: &[u8], _: &mut Visit) -> Result<(), EngineError> {
        Ok(())
    }

    fn last(&self, _: Column) -> Result<Option<Pair>, EngineError> {
        Ok(None)
    }

    fn stage(&self) -> Result<Stage, EngineError> {
        Ok(Stage(0))
    }

    fn fill(&self, _: Stage, _: &Batch) -> Result<(), EngineError> {
        Ok(())
    }

    fn adopt(&self, _: Stage, batch: &Batch) -> Result<(), EngineError> {
        self.writes.lock().expect("the test does not panic here").push((batch.ops.len(), true));
        Ok(())
    }

    fn checkpoint(&self, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn close(&self) {}
}

struct Bench {
    gate: Arc<Gate>,
    verdict: std_mpsc::Sender<Result<(), EngineError>>,
    stop: Stop,
    writer: Writer,
    thread: JoinHandle<()>,
    answers: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn start() -> Bench {
        let (verdict, verdicts) = std_mpsc::channel();
        let writes = Mutex::new(Vec::new());
        let gate = Arc::new(Gate { verdicts: Mutex::new(verdicts), writes });
        let stop = Stop::new();
        let (writer, thread) = Writer::start(gate.clone(), stop.clone(), Faults::default())
            .expect("a thread can be started");
        Bench { gate, verdict, stop, writer, thread, answers: Arc::default() }
    }

    async fn submit(&self, name: &str, durable: bool) {
        let (answers, name) = (self.answers.clone(), name.to_owned());
        let done: Done = Box::new(move |result| {
            let how = if result.is_ok() { "ok" } else { "failed" };
            answers.lock().expect("the test does not panic here").push(format!("{name} {how}"));
        });
        let submitted = self.writer.submit(change(), durable, Some(done)).await;
        submitted.expect("the writer runs");
    }

    /// Lets the writer end and returns what it wrote and answered.
    async fn end(self) -> (Vec<(usize, bool)>, Vec<String>) {
        self.writer.close().await;
        self.thread.join().expect("the writer does not panic");
        let writes = self.gate.writes.lock().expect("the test does not panic here").clone();
        let answers = self.answers.lock().expect("the test does not panic here").clone();
        (writes, answers)
    }
}

fn change() -> Batch {
    let mut batch = Batch::default();
    batch.put(Column::Meta, Bytes::from_static(b"key"), Vec::new());
    batch
}

#[tokio::test]
async fn what_waits_is_written_together_and_answered_in_order() {
    let bench = Bench::start();
    for name in ["a", "b", "c", "d", "e"] {
        bench.submit(name, name != "a").await;
    }
    // The thread takes the first change alone, or with those that were already there; either way
    // all others wait behind the gate and come together.
    for _ in 0..5 {
        bench.verdict.send(Ok(())).expect("the writer runs");
    }
    let (writes, answers) = bench.end().await;
    assert!(writes.len() <= 2, "five changes took {} writes", writes.len());
    assert!(writes.last().expect("something was written").1, "durable changes are synced");
    assert_eq!(answers, ["a ok", "b ok", "c ok", "d ok", "e ok"]);
}

#[tokio::test]
async fn what_is_put_off_goes_with_the_next_change_and_is_not_forgotten() {
    let bench = Bench::start();
    for _ in 0..4 {
        bench.verdict.send(Ok(())).expect("the writer runs");
    }
    for _ in 0..2 {
        bench.writer.put_off(change()).await.expect("the writer runs");
    }
    bench.writer.write(change()).await.expect("the gate is open");
    bench.writer.settle().await.expect("the writer runs");
    bench.writer.put_off(change()).await.expect("the writer runs");
    bench.writer.settle().await.expect("the writer runs");
    bench.writer.write(Batch::default()).await.expect("the gate is open");
    bench.writer.put_off(change()).await.expect("the writer runs");
    let (writes, _) = bench.end().await;
    let changes: Vec<usize> = writes.iter().map(|(changes, _)| *changes).collect();
    assert_eq!(changes, [3, 1, 1]);
    assert!(writes[0].1, "the change that it went with is synced");
}

#[tokio::test]
async fn nothing_is_written_after_a_failure() {
    let bench = Bench::start();
    let failure = EngineError::Write("no space left".to_owned());
    bench.verdict.send(Err(failure)).expect("the writer runs");
    bench.submit("a", true).await;
    let reason = bench.stop.stopped().await;
    assert_eq!(&*reason, "writing to the store failed: no space left");
    bench.submit("b", true).await;
    let (writes, answers) = bench.end().await;
    assert_eq!(writes.len(), 1);
    assert_eq!(answers, ["a failed", "b failed"]);
}

#[test]
fn the_first_reason_counts() {
    let stop = Stop::new();
    assert_eq!(stop.reason(), None);
    stop.stop("first");
    stop.stop("second");
    assert_eq!(stop.reason().as_deref(), Some("first"));
}
