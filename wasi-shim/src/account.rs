//! What a guest has used, and the CPU quota that follows from it.
//!
//! One [`Account`] belongs to one Pod: all its instances, one after the other or at the same time,
//! book on it. CPU time is the thread's own CPU clock around each poll of an instance, so waiting
//! and other guests' turns cost nothing. Memory is booked by the instance's limiter.
//!
//! The quota is a bucket that fills with wall time: using `u` of CPU at a quota of `q` thousandths
//! pays for `u * 1000 / q` of wall time, and who is more than one period in debt waits. So a guest
//! with 100m may burn 10 ms at once and then gets a tenth of a core, as with a kernel's quota.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::engine::Engine;
use crate::fair::{Queued, Seat, Share, stay_within_a_turn, within_a_turn};
use crate::handler::Steps;
use crate::host_memory::HostMemory;
use crate::slice::{GivesWay, give_up_cpu, later};

/// How much wall time of its quota a guest may use at once. The period of a kernel's CPU quota.
const QUOTA_PERIOD_NS: u64 = 100_000_000;

/// CPU time that no tick cuts: most requests need less, and waiting again would be most of their time.
const TURN_MIN_NS: u64 = 2_000_000;

/// The running totals of a Pod. Cheap to clone; all clones are the same account.
#[derive(Clone, Default)]
pub struct Account(Arc<Counters>);

#[derive(Default)]
struct Counters {
    /// For the memory of those who share it and are not to take that of its own instances.
    beside: Option<Account>,
    cpu_ns: AtomicU64,
    throttled_ns: AtomicU64,
    instances_started: AtomicU64,
    instances_live: AtomicU64,
    memory_bytes: AtomicU64,
    memory_bytes_peak: AtomicU64,
    /// Of these, what is booked for instances that do not have it yet.
    booked_bytes: AtomicU64,
    /// Memory was given back: for the one who waits for some.
    freed: Notify,
    /// Nanoseconds; 0 until there was one.
    first_instance: AtomicU64,
    first_answer: AtomicU64,
}

/// An [`Account`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    /// Time that instances were ready to run but had to wait for their quota.
    pub throttled: Duration,
    pub instances_started: u64,
    pub instances_live: u64,
    /// Linear memory of all live instances.
    pub memory_bytes: u64,
    /// No less than the most that it was: with what was booked for them.
    pub memory_bytes_peak: u64,
    /// What making the first instance took; zero until there was one.
    pub first_instance: Duration,
    /// From the first request to the head of its answer; zero until there was one.
    pub first_answer: Duration,
}

impl Account {
    /// With another one for guests that run beside its own.
    fn with_beside() -> Account {
        Account(Arc::new(Counters { beside: Some(Account::default()), ..Counters::default() }))
    }

    /// Where guests that run beside its own book their memory.
    pub(crate) fn beside(&self) -> &Account {
        self.0.beside.as_ref().unwrap_or(self)
    }

    /// Of its own instances, and of those beside them.
    pub fn usage(&self) -> Usage {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let beside = self.0.beside.as_ref().map(Account::usage).unwrap_or_default();
        Usage {
            cpu: Duration::from_nanos(load(&self.0.cpu_ns)),
            throttled: Duration::from_nanos(load(&self.0.throttled_ns)),
            instances_started: load(&self.0.instances_started) + beside.instances_started,
            instances_live: load(&self.0.instances_live) + beside.instances_live,
            memory_bytes: self.taken_bytes().saturating_sub(load(&self.0.booked_bytes))
                + beside.memory_bytes,
            memory_bytes_peak: load(&self.0.memory_bytes_peak) + beside.memory_bytes_peak,
            first_instance: Duration::from_nanos(load(&self.0.first_instance)),
            first_answer: Duration::from_nanos(load(&self.0.first_answer)),
        }
    }

    /// Memory of its own instances, and what is booked for them.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.0.memory_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn instance_started(&self) {
        self.0.instances_started.fetch_add(1, Ordering::Relaxed);
        self.0.instances_live.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance was made; the time of the first one is kept.
    pub(crate) fn instantiated(&self, took: Duration) {
        keep_first(&self.0.first_instance, took);
    }

    /// A request was answered; the time of the first one is kept.
    pub(crate) fn answered(&self, took: Duration) {
        keep_first(&self.0.first_answer, took);
    }

    pub(crate) fn instance_ended(&self) {
        self.0.instances_live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Books memory unless that would exceed `bytes_max`; says whether it did.
    pub(crate) fn take_memory(&self, bytes: u64, bytes_max: u64) -> bool {
        let grow = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= bytes_max);
        let before = self.0.memory_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
        if let Ok(before) = before {
            self.0.memory_bytes_peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        before.is_ok()
    }

    pub(crate) fn give_memory_back(&self, bytes: u64) {
        self.0.memory_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.tell_freed();
    }

    /// Books memory for an instance that is to be made, unless that would exceed `bytes_max`.
    pub(crate) fn reserve(&self, bytes: u64, bytes_max: u64) -> Option<Reserved> {
        let has_room = self.take_memory(bytes, bytes_max);
        has_room.then(|| {
            self.0.booked_bytes.fetch_add(bytes, Ordering::Relaxed);
            Reserved(Some(Arc::new(Booking { account: self.clone(), bytes: bytes.into() })))
        })
    }

    /// Wakes the one who waits for memory.
    pub(crate) fn tell_freed(&self) {
        self.0.freed.notify_one();
    }

    /// Waits until there may be more memory than there was. One waits at a time, see `room`.
    pub(crate) async fn memory_freed(&self) {
        self.0.freed.notified().await;
    }
}

/// Memory that is booked for an instance before it takes it. What it has not taken is given back when
/// one of those who know of it says so, and at the latest with the last of them.
#[derive(Clone, Default)]
pub(crate) struct Reserved(Option<Arc<Booking>>);

struct Booking {
    account: Account,
    bytes: AtomicU64,
}

impl Reserved {
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |booking| booking.bytes.load(Ordering::Relaxed))
    }

    /// Takes up to so much of it, which is the instance's own then; says how much.
    pub(crate) fn take(&self, bytes_max: u64) -> u64 {
        self.0.as_ref().map_or(0, |booking| booking.take(bytes_max))
    }

    /// The instance does not need what it has just taken.
    pub(crate) fn put_back(&self, bytes: u64) {
        if let Some(booking) = &self.0 {
            booking.account.0.booked_bytes.fetch_add(bytes, Ordering::Relaxed);
            booking.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The rest is not needed.
    pub(crate) fn give_back(&self) {
        if let Some(booking) = &self.0 {
            booking.give_back();
        }
    }
}

impl Booking {
    fn take(&self, bytes_max: u64) -> u64 {
        let less = |bytes: u64| Some(bytes.saturating_sub(bytes_max));
        let before = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let taken = before.expect("the update always has a value").min(bytes_max);
        self.account.0.booked_bytes.fetch_sub(taken, Ordering::Relaxed);
        taken
    }

    fn give_back(&self) {
        let rest = self.take(u64::MAX);
        if rest > 0 {
            self.account.give_memory_back(rest);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn keep_first(kept: &AtomicU64, took: Duration) {
    if kept.load(Ordering::Relaxed) == 0 {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Who loses the race was not the first.
        let _ = kept.compare_exchange(0, nanos, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The account of a guest, its CPU quota and what the host holds for it, to be shared with others of
/// the same container: probes and hooks are paid by whom they are for. Of memory they have a limit of
/// their own beside, so that neither takes the other's. Cheap to clone.
#[derive(Clone)]
pub struct Budget(pub(crate) Arc<Meter>);

/// Charges a Pod's CPU time and says when it may run again; beside it, what the host holds for the
/// Pod in memory. Shared by its instances.
pub(crate) struct Meter {
    pub(crate) account: Account,
    quota_millis: Option<u32>,
    start: Instant,
    /// When all that was used is paid for, in nanoseconds since `start`.
    paid_ns: AtomicU64,
    /// Its part of a CPU that is not enough for all.
    pub(crate) share: Share,
    pub(crate) host_memory: HostMemory,
}

impl Meter {
    pub(crate) fn new(quota_millis: Option<u32>, weight: u32) -> Meter {
        Meter {
            account: Account::with_beside(),
            quota_millis,
            start: Instant::now(),
            paid_ns: AtomicU64::new(0),
            share: Share::new(weight),
            host_memory: HostMemory::default(),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn charge(&self, used_ns: u64) {
        self.account.0.cpu_ns.fetch_add(used_ns, Ordering::Relaxed);
        let Some(quota_millis) = self.quota_millis else {
            return;
        };
        let now_ns = self.now_ns();
        let pay = |paid_ns| Some(paid_until(paid_ns, now_ns, used_ns, quota_millis));
        let result = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        result.expect("the update always has a value");
    }

    /// Does some work of the Pod's at once, at its expense, for the sake of who asked.
    pub(crate) fn charged(
        self: &Arc<Meter>,
        engine: &Engine,
        asker: &Arc<Meter>,
        work: impl FnOnce(),
    ) {
        let turn = engine.fair().begin(asker);
        let ((), used_ns) = own_cpu(|_| work());
        drop(turn);
        self.charge(used_ns);
        engine.fair().charge(self, asker, used_ns);
    }

    /// Some moment in the future if the quota is used up now.
    fn paused_until(&self) -> Option<Instant> {
        self.quota_millis?;
        let debt_ns = self.paid_ns.load(Ordering::Relaxed).saturating_sub(self.now_ns());
        if debt_ns == 0 {
            return None;
        }
        self.account.0.throttled_ns.fetch_add(debt_ns, Ordering::Relaxed);
        Some(Instant::now() + Duration::from_nanos(debt_ns))
    }
}

/// The moment at which `used_ns` more CPU time is paid for. Time that was not used is kept for one
/// period only.
fn paid_until(paid_ns: u64, now_ns: u64, used_ns: u64, quota_millis: u32) -> u64 {
    let oldest = now_ns.saturating_sub(QUOTA_PERIOD_NS);
    // A quota of nothing would be a division by zero and a guest that never ends.
    let cost = used_ns.saturating_mul(1000) / u64::from(quota_millis.max(1));
    paid_ns.max(oldest).saturating_add(cost)
}

/// CPU time of the calling thread.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this frame, which the call fills.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has the thread's CPU clock");
    // Both are never negative on this clock.
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

thread_local! {
    /// CPU time of this thread when it turned to the guest that it polls.
    static BEGAN_NS: Cell<u64> = const { Cell::new(0) };
    /// Whether a tick has stopped that guest.
    static STOPPED: Cell<bool> = const { Cell::new(false) };
    /// CPU time within the work of this thread that somebody else is charged.
    static OTHERS_NS: Cell<u64> = const { Cell::new(0) };
}

/// Does some work, which is told the thread's CPU time at its beginning, and says how much it took. Such
/// work within it counts for itself: a request to a guest of this process is handled by whom it is for.
fn own_cpu<T>(work: impl FnOnce(u64) -> T) -> (T, u64) {
    let others_before_ns = OTHERS_NS.replace(0);
    let before_ns = thread_cpu_ns();
    let done = work(before_ns);
    let all_ns = thread_cpu_ns().saturating_sub(before_ns);
    let own_ns = all_ns.saturating_sub(OTHERS_NS.get());
    OTHERS_NS.set(others_before_ns.saturating_add(all_ns));
    (done, own_ns)
}

/// Called at a tick while a guest is polled: whether that ends its turn. One that has just begun, or
/// that waited for something until now, goes on to the next tick.
pub(crate) fn is_stopped() -> bool {
    let stopped = thread_cpu_ns().saturating_sub(BEGAN_NS.get()) >= TURN_MIN_NS;
    STOPPED.set(stopped);
    stopped
}

/// What an instance holds while it waits for its next turn. Who gives the instance up lets go of that at
/// once, however long its end takes: others wait for the seat.
#[derive(Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// From a tick to the next turn.
    queued: Option<Queued>,
    /// Needed for the next turn if a tick has ended the last one, or the Pod lets others go first.
    seat: Option<Seat>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Held {
        std::mem::take(&mut *self.lock())
    }

    fn keep(&self, held: Held) {
        *self.lock() = held;
    }

    /// Nobody waits any more.
    pub(crate) fn let_go(&self) {
        drop(self.take());
    }
}

/// An instance's future, charged at each poll, polled only while the quota lasts, and with the
/// epoch ticking meanwhile.
pub(crate) struct Metered<F> {
    inner: Pin<Box<F>>,
    engine: Engine,
    meter: Arc<Meter>,
    /// For whose sake: its own Pod, or the one that asked for it.
    asker: Arc<Meter>,
    /// Of one request, which is charged as well.
    steps: Option<Arc<Steps>>,
    pause: Option<Pin<Box<Sleep>>>,
    waiting: Waiting,
    /// A tick has ended its last turn.
    goes_on: bool,
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(
        engine: Engine,
        meter: Arc<Meter>,
        steps: Option<Arc<Steps>>,
        inner: F,
    ) -> Metered<F> {
        let inner = Box::pin(inner);
        let (waiting, asker) = (Waiting::default(), Arc::clone(&meter));
        Metered { inner, engine, meter, asker, steps, pause: None, waiting, goes_on: false }
    }

    /// The same, for the sake of who asked.
    pub(crate) fn asked_by(self, asker: &Arc<Meter>) -> Metered<F> {
        Metered { asker: Arc::clone(asker), ..self }
    }

    /// The same, for somebody who may give it up.
    pub(crate) fn with(self, waiting: Waiting) -> Metered<F> {
        Metered { waiting, ..self }
    }
}

impl<F: Future<Output: Send> + Send> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let mut held = this.waiting.take();
        // Within another's turn it goes on as that one does: with a seat of its own, each could wait for
        // the other's.
        let within = within_a_turn();
        let others_first = || this.engine.fair().lets_others_go_first(&this.asker.share);
        if !within && held.seat.is_none() && others_first() {
            held.seat = Some(this.engine.fair().seat());
        }
        let seat = loop {
            if let Some(pause) = &mut this.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    this.waiting.keep(held);
                    return Poll::Pending;
                }
                this.pause = None;
            }
            let seat = match held.seat.as_mut().map(|seat| seat.as_mut().poll(cx)) {
                Some(Poll::Pending) => {
                    held.queued.get_or_insert_with(|| Queued::new(&this.meter, &this.asker));
                    this.waiting.keep(held);
                    return Poll::Pending;
                }
                Some(Poll::Ready(seat)) => {
                    held.seat = None;
                    Some(seat)
                }
                None => None,
            };
            let quota = this.meter.paused_until();
            let share = || this.engine.fair().paused_until(&this.meter.share);
            let Some(until) = quota.or_else(share) else {
                break seat;
            };
            held.queued = None;
            // Others can use it meanwhile.
            held.seat = seat.map(|_| this.engine.fair().seat());
            this.pause = Some(Box::pin(sleep_until(until)));
        };
        held.queued = None;
        let running = this.engine.ticker().running();
        let turn = this.engine.fair().begin(&this.asker);
        let inner = this.inner.as_mut();
        let waker = cx.waker();
        let poll = || {
            let (poll, used_ns) = own_cpu(|now_ns| {
                BEGAN_NS.set(now_ns);
                inner.poll(&mut Context::from_waker(waker))
            });
            (poll, used_ns, !within && STOPPED.take())
        };
        let idle = this.engine.fair().gives_way();
        let began = Instant::now();
        let (poll, used_ns, stopped) = match &seat {
            // Who was stopped goes on, and others are not to wait for it.
            Some(_) if this.goes_on => later(idle, || {
                stay_within_a_turn(&this.asker);
                poll()
            }),
            Some(_) => {
                let _gives_way = GivesWay::begin();
                poll()
            }
            None => poll(),
        };
        if idle && this.goes_on && seat.is_some() {
            this.engine.fair().gave_way(began.elapsed(), used_ns);
        }
        drop(turn);
        if seat.is_some() && !stopped {
            give_up_cpu();
        }
        drop(seat);
        this.goes_on = stopped && poll.is_pending();
        if stopped && poll.is_pending() {
            let queued = Some(Queued::new(&this.meter, &this.asker));
            this.waiting.keep(Held { queued, seat: Some(this.engine.fair().seat()) });
        }
        this.meter.charge(used_ns);
        if let Some(steps) = &this.steps {
            steps.used(used_ns);
        }
        this.engine.fair().charge(&this.meter, &this.asker, used_ns);
        drop(running);
        poll
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[track_caller]
    fn check_paid(paid_ms: u64, now_ms: u64, used_ms: u64, quota: u32, expected_ms: u64) {
        let until = paid_until(paid_ms * MS, now_ms * MS, used_ms * MS, quota);
        assert_eq!(until / MS, expected_ms);
    }

    #[test]
    fn quota_pays_with_wall_time() {
        // A tenth of a core: 10 ms cost 100 ms; an idle past is worth one period.
        check_paid(0, 1000, 10, 100, 1000);
        // The next 10 ms are not covered any more.
        check_paid(1000, 1000, 10, 100, 1100);
        // Two cores: 20 ms of CPU time in 10 ms.
        check_paid(1000, 1000, 20, 2000, 1010);
        // No quota at all still makes progress.
        check_paid(1000, 1000, 0, 0, 1000);
    }

    #[test]
    fn a_tick_stops_nobody_who_has_just_begun() {
        BEGAN_NS.set(u64::MAX);
        assert!(!is_stopped());
        BEGAN_NS.set(0);
        while thread_cpu_ns() < TURN_MIN_NS {
            std::hint::spin_loop();
        }
        assert!(is_stopped() && STOPPED.get());
    }

    #[test]
    fn who_is_given_up_leaves_its_seat_to_others() {
        let seats = Arc::new(tokio::sync::Semaphore::new(1));
        let seat = Arc::clone(&seats).try_acquire_owned().expect("it is free");
        let waiting = Waiting::default();
        let seat: Seat = Box::pin(std::future::ready(seat));
        waiting.keep(Held { queued: None, seat: Some(seat) });
        assert_eq!(seats.available_permits(), 0);
        waiting.clone().let_go();
        assert_eq!(seats.available_permits(), 1);
    }

    #[test]
    fn memory_is_booked_up_to_the_limit() {
        let account = Account::default();
        assert!(account.take_memory(60, 100));
        assert!(!account.take_memory(50, 100));
        assert!(account.take_memory(40, 100));
        account.give_memory_back(70);
        let usage = account.usage();
        assert_eq!((usage.memory_bytes, usage.memory_bytes_peak), (30, 100));
    }
}
