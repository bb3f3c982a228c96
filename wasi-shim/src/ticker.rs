//! The clock of preemption: an OS thread that moves the engine's epoch on every 4 ms.
//!
//! It is a thread and not a task because a task starves together with the runtime that the guests
//! keep busy. It sleeps for good while no guest is being polled, so an idle worker is not woken
//! hundreds of times a second.
//!
//! ```text
//!  guest polled, count 0 → 1: unpark      thread: count = 0? park : sleep 4 ms, epoch += 1
//! ```
//! A wake-up between the thread's look at the count and its park is not lost: unpark leaves a
//! token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// The time slice of a guest that goes on and on; of one that began between two ticks up to half more.
pub(crate) const TICK: Duration = Duration::from_millis(4);

/// Owns the thread and joins it when dropped.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
    thread: Thread,
}

struct Shared {
    /// Guests that are being polled right now.
    running: AtomicUsize,
    stopped: AtomicBool,
}

impl Ticker {
    pub(crate) fn start(engine: &wasmtime::Engine) -> std::io::Result<Ticker> {
        let shared =
            Arc::new(Shared { running: AtomicUsize::new(0), stopped: AtomicBool::new(false) });
        let handle = std::thread::Builder::new().name("epoch-ticker".into()).spawn({
            let shared = Arc::clone(&shared);
            // Weak: the thread must not keep the engine and its pool alive.
            let engine = engine.weak();
            move || tick(&shared, &engine)
        })?;
        let thread = handle.thread().clone();
        Ok(Ticker { shared, handle: Some(handle), thread })
    }

    /// Ticks at least as long as the guard lives.
    pub(crate) fn running(&self) -> Running<'_> {
        if self.shared.running.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        Running(&self.shared)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            handle.join().expect("the ticker thread does not panic");
        }
    }
}

/// A guest is being polled.
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(shared: &Shared, engine: &wasmtime::EngineWeak) {
    while !shared.stopped.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) == 0 {
            std::thread::park();
            continue;
        }
        std::thread::sleep(TICK);
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.increment_epoch();
    }
}
