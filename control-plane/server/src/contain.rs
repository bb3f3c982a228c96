//! Panics that are one request's or one object's own affair.
//!
//! A panic ends a server's process: a member whose state machine has panicked would go on sending
//! heartbeats and never apply anything again. But who computes something *from* one request or one
//! object meets the same one again after the restart, so one that meets a bug would keep the whole
//! control plane down. Such work is done in here; its panic is an error of its own, and counted.
//!
//! What changes state that others share does not belong in here, unless it makes that state anew
//! after it was left half-changed, as `derived` and `follow` do. The scheduler's books are an
//! exception: nodes refuse what does not fit, and each leader begins with books of its own.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;

thread_local! {
    /// Whether this thread does such work at the moment.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Panics of this process that did not end it.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// What a panic said.
#[derive(Debug, thiserror::Error)]
#[error("a bug: {0}")]
pub struct Panic(String);

impl Panic {
    /// Panics anew, on the thread that had asked another one for the work: what that ends is up to
    /// who asked.
    pub fn resume(self) -> ! {
        panic!("{}", self.0)
    }
}

/// Whether a panic is to end the process: any outside of here, and those of who finds that somebody
/// else has panicked with a lock, or while a value was made for all.
pub fn ends_the_process(panic: &PanicHookInfo<'_>) -> bool {
    let said = said(panic.payload());
    !CONTAINED.get() || said.contains("PoisonError") || said.contains("been poisoned")
}

/// How many panics did not end the process.
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}

/// Does work whose panic is an error.
pub fn sync<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = CONTAINED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    outcome.map_err(|payload| {
        COUNT.fetch_add(1, Relaxed);
        Panic(said(&*payload).to_owned())
    })
}

/// The same for work that waits. What it spawns is on its own.
pub fn future<F: Future>(work: F) -> impl Future<Output = Result<F::Output, Panic>> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |context| match sync(|| work.as_mut().poll(context)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
}

/// Work for one client or one object, for a task of its own: its panic ends that task alone.
pub async fn task(work: impl Future<Output = ()>) {
    if let Err(panic) = future(work).await {
        tracing::error!(%panic, "a task ended early");
    }
}

fn said(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(count: usize) -> usize {
        assert_ne!(count, 2, "there are no two");
        count
    }

    #[tokio::test]
    async fn a_panic_in_here_is_an_error() {
        let before = count();
        assert_eq!(sync(|| broken(1)).expect("it works"), 1);
        let panic = sync(|| broken(2)).expect_err("it panics");
        assert!(panic.to_string().contains("there are no two"), "{panic}");
        let late = future(async {
            tokio::task::yield_now().await;
            broken(2)
        });
        let panic = late.await.expect_err("it panics");
        assert!(panic.to_string().starts_with("a bug: "), "{panic}");
        task(async { _ = broken(2) }).await;
        let asked = std::thread::spawn(|| sync(|| broken(2))).join().expect("it ends well");
        let anew = sync(|| asked.unwrap_or_else(|panic| panic.resume()));
        assert!(anew.expect_err("it panics").to_string().starts_with("a bug: assertion"));
        assert!(count() >= before + 3);
    }

    #[tokio::test]
    async fn what_is_beside_it_is_not_in_here() {
        let waiting = future(async {
            assert!(CONTAINED.get());
            tokio::task::yield_now().await;
            _ = sync(|| broken(2));
            assert!(CONTAINED.get(), "the outer one goes on");
        });
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert!(!CONTAINED.get(), "while it waits, the thread does other work");
        waiting.await.expect("it does not panic");
    }
}
