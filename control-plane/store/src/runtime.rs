//! tokio as openraft runs on it, with more patience for votes.
//!
//! openraft gives a vote up after the shorter election timeout, which must be short, so that a lost
//! leader is replaced soon. But who votes makes the vote durable before answering: where every disk
//! takes longer than that, nobody would ever come to lead. So no time limit here is shorter than
//! [`VOTE_TIMEOUT`]. openraft sets limits on three requests, votes, pre-votes and the broadcast of a
//! transfer, and `network` has a limit of its own on each: the longer one for votes only.
//!
//! And nobody should campaign again before the votes that are on their way can have come, and the
//! first words of whom they elect. How long that takes is known from the last vote that was written
//! down: where it was slow, [`Patience`] asks for a rest.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::watch;
use tokio::time::Instant;

/// A voter's disk may take so long for one fsync. Longer than any that still does its work, shorter
/// than what a client waits for a cluster that is without a leader already.
pub(crate) const VOTE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A vote that was on disk sooner is no reason to wait: elections have more time than that anyway.
const SLOW_VOTE: Duration = Duration::from_millis(80);

/// From a vote to the first words of who won lie so many votes: the other's, the winner's that it
/// won, the other's that it follows; and one to spare.
const VOTES_OF_AN_ELECTION: u32 = 4;

/// However slow a disk is, another try is made after this.
const REST_MAX: Duration = Duration::from_secs(6);

/// Until when a member had better not campaign, as its disk is slow.
#[derive(Clone, Debug)]
pub(crate) struct Patience(Arc<watch::Sender<Option<Instant>>>);

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience(Arc::new(watch::Sender::new(None)))
    }

    /// A vote took so long to be on disk.
    pub(crate) fn voted(&self, took: Duration) {
        if let Some(rest) = rest(took) {
            self.0.send_replace(Some(Instant::now() + rest));
        }
    }

    /// Follows until when to rest.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Instant>> {
        self.0.subscribe()
    }
}

fn rest(took: Duration) -> Option<Duration> {
    (took >= SLOW_VOTE).then(|| (took * VOTES_OF_AN_ELECTION).min(REST_MAX))
}

/// tokio, patient.
#[derive(Debug)]
pub(crate) struct Patient(TokioRuntime);

impl AsyncRuntime for Patient {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration.max(VOTE_TIMEOUT), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Patient {
        Patient(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_disks_make_patient() {
        let ms = Duration::from_millis;
        assert_eq!(rest(ms(4)), None, "elections are as quick as they are set");
        assert_eq!(rest(ms(500)), Some(ms(2000)));
        assert_eq!(rest(ms(9000)), Some(REST_MAX));
    }
}
