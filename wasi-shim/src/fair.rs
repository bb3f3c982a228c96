//! Shares of the CPU when there is not enough for everybody.
//!
//! Guests take turns by themselves (each yields at ticks), but a Pod with a hundred requests
//! gets a hundred turns. So every Pod has a clock of its own, which its CPU time moves on, the
//! slower the more weight it has; and there is a clock for all, which moves on as a Pod's would that
//! gets exactly its share. While all threads are busy, a Pod whose clock is ahead of the common one
//! waits until that has caught up. A Pod that wants less than its share falls behind; it gets a
//! little credit for that and no more, and leaves the rest to the others. Who is behind but was
//! stopped by a tick and then had to wait for its next turn wants more and did not get it: it competes
//! all the same, however many periods a turn takes to come on a machine that is busy with something
//! else, and goes on doing so while somebody is made to wait for its sake. Who always has its next
//! turn at once has all that it can use, whatever its weight: as many threads as it has instances.
//!
//! ```text
//!   common clock: + CPU time / weights of those who want more          (looked at every 100 ms)
//!   a Pod's clock: + its CPU time / its weight                         ahead by more than the slack?
//!                                                                      wait for the difference
//! ```
//!
//! The weights are the CPU requests of Pods.
//!
//! Who asks for a turn must not find a line of others before it that is as long as there are guests that
//! go on and on, or requests for one Pod. So of those that a tick has stopped only as many stand in
//! the line of the threads as there are threads: each waits for a seat there, in order, and gives it up
//! after its turn. All turns of a Pod need a seat while as many of it have been stopped, or once it has
//! had much lately and others are there too: a hundred requests at once are its own affair. So are those
//! that it asks of other Pods: such a request has its turns as one of who asked, and whoever else asks
//! the same Pod does not stand behind it. An instance that answers several at once has turns of its own.
//! And before each turn in a seat its thread looks at sockets and timers, and whom these wake goes first:
//! tokio by itself, as long as somebody is ready, looks after every 61 polls, each of which could be such
//! a turn.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::account::Meter;
use crate::ticker::TICK;

/// How long a look covers.
const PERIOD: Duration = Duration::from_millis(100);
/// From this part of the threads' time on there is not enough for everybody.
const BUSY: f64 = 0.9;
/// The weight of a Pod that requested nothing: a fiftieth of a core.
const WEIGHT_MIN: u32 = 20;
/// CPU time by which a Pod may be ahead or behind: a few turns. Less would make it wait after each.
const SLACK_NS: f64 = 20e6;
/// Who waits so long for its next turn wants more; who has it at once waits for microseconds.
const WAIT_MIN: Duration = TICK.checked_div(2).expect("two is not zero");
/// The longest a Pod waits at once: what its share is may have changed until then.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A turn that takes so long, and so many times its CPU time, gets nowhere because the kernel gives the
/// CPU to others.
const CRAWL_MIN: Duration = Duration::from_millis(20);
const CRAWL_TIMES: u32 = 4;
/// How many times as long no turn is idle then, and how long at most.
const AWAKE_TIMES: u32 = 16;
const AWAKE_MAX: Duration = Duration::from_secs(5);

/// A Pod's part.
pub(crate) struct Share {
    weight: f64,
    /// Its clock, in nanoseconds for each unit of weight. Locked for an addition.
    clock: Mutex<f64>,
    used_ns: AtomicU64,
    /// Whether it had a turn in the current period for which it had to wait.
    hungry: AtomicBool,
    /// Whether it competed as one that wants more in the last period.
    was_hungry: AtomicBool,
    /// Its instances that were stopped by a tick and wait for their next turn.
    stopped: AtomicUsize,
    /// Such instances, of whichever Pod, that go on for its sake.
    queued: AtomicUsize,
    /// When all that was done for its sake would be by somebody who has a part of [`URGENT_PART`] of a
    /// CPU, in nanoseconds since the epoch.
    had_until_ns: AtomicU64,
    /// Whether it is in the list of the current period.
    listed: AtomicBool,
}

/// Who uses more than one part of so many of a CPU is less urgent than others.
const URGENT_PART: u64 = 10;
/// So long may such a part be used in advance: a few requests at once, not a hundred, which would stand
/// before the next one of somebody else.
const URGENT_AHEAD_NS: u64 = 20_000_000;
/// And so long is it remembered.
const URGENT_MEMORY_NS: u64 = 10 * URGENT_AHEAD_NS;

impl Share {
    pub(crate) fn new(weight: u32) -> Share {
        Share {
            weight: f64::from(weight.max(WEIGHT_MIN)),
            clock: Mutex::new(0.0),
            used_ns: AtomicU64::new(0),
            hungry: AtomicBool::new(false),
            was_hungry: AtomicBool::new(false),
            stopped: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            had_until_ns: AtomicU64::new(0),
            listed: AtomicBool::new(false),
        }
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, f64> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance that was stopped by a tick and waits for its next turn.
pub(crate) struct Queued {
    meter: Arc<Meter>,
    asker: Arc<Meter>,
    since: Instant,
}

impl Queued {
    /// Of a Pod, for the sake of who asked.
    pub(crate) fn new(meter: &Arc<Meter>, asker: &Arc<Meter>) -> Queued {
        meter.share.stopped.fetch_add(1, Ordering::Relaxed);
        asker.share.queued.fetch_add(1, Ordering::Relaxed);
        let (meter, asker) = (Arc::clone(meter), Arc::clone(asker));
        Queued { meter, asker, since: Instant::now() }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let share = &self.meter.share;
        share.stopped.fetch_sub(1, Ordering::Relaxed);
        self.asker.share.queued.fetch_sub(1, Ordering::Relaxed);
        if self.since.elapsed() >= WAIT_MIN {
            share.hungry.store(true, Ordering::Relaxed);
        }
    }
}

/// The way of an instance to a turn in a seat; it ends with the seat, to be held during the turn.
pub(crate) type Seat = BoxFuture<'static, OwnedSemaphorePermit>;

/// The shares of one engine.
pub(crate) struct Fair {
    threads: usize,
    /// As many as there are threads, for those that let others go first.
    seats: Arc<Semaphore>,
    /// For what is left of guests whose callers have gone.
    ends: Arc<Semaphore>,
    /// Time that threads spend on guests.
    taken: Taken,
    /// Whether somebody may have to wait; read without the lock.
    busy: AtomicBool,
    /// Whether more than one Pod had turns in the last period.
    several: AtomicBool,
    /// When the period is over, since `epoch`; read without the lock.
    end_ns: AtomicU64,
    /// Until when no turn of those that go on is taken for idle, since `epoch`.
    awake_until_ns: AtomicU64,
    epoch: Instant,
    /// Locked at each turn of a Pod only while it is busy, else a few times a period.
    state: Mutex<State>,
}

struct State {
    start: Instant,
    /// What was taken until then.
    taken_us: u64,
    common: Common,
    active: Vec<Arc<Meter>>,
}

/// The common clock at the start of a period, and how fast it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Common {
    clock: f64,
    /// For each nanosecond of time.
    rate: f64,
}

impl Fair {
    pub(crate) fn new() -> Fair {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let (common, now) = (Common { clock: 0.0, rate: 0.0 }, Instant::now());
        Fair {
            threads,
            seats: Arc::new(Semaphore::new(threads)),
            ends: Arc::new(Semaphore::new(1)),
            taken: Taken::default(),
            busy: AtomicBool::new(false),
            several: AtomicBool::new(false),
            end_ns: AtomicU64::new(nanos(PERIOD)),
            awake_until_ns: AtomicU64::new(0),
            epoch: now,
            state: Mutex::new(State { start: now, taken_us: 0, common, active: Vec::new() }),
        }
    }

    /// How many turns there can be at once.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a turn after those that asked for a seat before, and then after all who are ready or about to
    /// be.
    pub(crate) fn seat(&self) -> Seat {
        behind_all(Arc::clone(&self.seats))
    }

    /// The same, for dropping a guest.
    pub(crate) fn end(&self) -> Seat {
        behind_all(Arc::clone(&self.ends))
    }

    /// Whether a turn for a Pod's sake can wait until others have had theirs: others of it take all that
    /// it could use, or it has had much lately and is not alone.
    pub(crate) fn lets_others_go_first(&self, share: &Share) -> bool {
        let all = share.queued.load(Ordering::Relaxed) >= self.threads;
        all || self.several.load(Ordering::Relaxed) && self.had_much(share)
    }

    fn had_much(&self, share: &Share) -> bool {
        let until_ns = share.had_until_ns.load(Ordering::Relaxed);
        until_ns > nanos(self.epoch.elapsed()) + URGENT_AHEAD_NS
    }

    /// Whether a turn of who goes on is taken for idle.
    pub(crate) fn gives_way(&self) -> bool {
        nanos(self.epoch.elapsed()) >= self.awake_until_ns.load(Ordering::Relaxed)
    }

    /// A turn of who goes on took so long, for so much CPU time. Beside others that want all of the CPU what
    /// is idle gets next to nothing: then no turn is for a while.
    pub(crate) fn gave_way(&self, took: Duration, used_ns: u64) {
        if took >= CRAWL_MIN && took >= CRAWL_TIMES * Duration::from_nanos(used_ns) {
            let until = self.epoch.elapsed() + (AWAKE_TIMES * took).min(AWAKE_MAX);
            self.awake_until_ns.fetch_max(nanos(until), Ordering::Relaxed);
        }
    }

    /// A thread turns to a guest for a Pod's sake, until the guard is dropped.
    /// None within a turn.
    pub(crate) fn begin(&self, asker: &Arc<Meter>) -> Option<Turn<'_>> {
        if within_a_turn() {
            return None;
        }
        stay_within_a_turn(asker);
        self.taken.begin(self.now_us());
        Some(Turn(self))
    }

    fn now_us(&self) -> u64 {
        micros(self.epoch.elapsed())
    }

    /// Books the CPU time of one turn of a Pod, which somebody asked for.
    pub(crate) fn charge(&self, meter: &Arc<Meter>, asker: &Meter, used_ns: u64) {
        let now_ns = nanos(self.epoch.elapsed());
        let had = |until_ns: u64| {
            let until_ns = until_ns.max(now_ns).saturating_add(used_ns.saturating_mul(URGENT_PART));
            Some(until_ns.min(now_ns + URGENT_MEMORY_NS))
        };
        let result =
            asker.share.had_until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, had);
        result.expect("the update always has a value");
        let share = &meter.share;
        share.used_ns.fetch_add(used_ns, Ordering::Relaxed);
        *share.clock() += used_ns as f64 / share.weight;
        if !share.listed.swap(true, Ordering::Relaxed) {
            let mut state = self.state();
            share.was_hungry.store(false, Ordering::Relaxed);
            // Who comes back has no more credit than others, and no debt from long ago.
            let slack = SLACK_NS / share.weight;
            let mut clock = share.clock();
            *clock = clock.clamp(state.common.clock - slack, state.common.clock + 50.0 * slack);
            drop(clock);
            state.active.push(Arc::clone(meter));
            if state.active.len() > 1 {
                self.several.store(true, Ordering::Relaxed);
            }
        }
        if self.is_over() {
            self.turn(&mut self.state());
        }
    }

    fn is_over(&self) -> bool {
        nanos(self.epoch.elapsed()) >= self.end_ns.load(Ordering::Relaxed)
    }

    /// Until when a Pod has to wait, because it is ahead of the others.
    pub(crate) fn paused_until(&self, share: &Share) -> Option<Instant> {
        if !self.busy.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state();
        if self.is_over() {
            self.turn(&mut state);
        }
        let now = Instant::now();
        let passed = nanos(now - state.start) as f64;
        let pause = pause(state.common, passed, *share.clock(), share.weight)?;
        Some(now + pause.min(PAUSE_MAX))
    }

    /// Begins the next period.
    fn turn(&self, state: &mut State) {
        if !self.is_over() {
            // Somebody else was faster.
            return;
        }
        let now = Instant::now();
        self.end_ns.store(nanos(now - self.epoch) + nanos(PERIOD), Ordering::Relaxed);
        let elapsed = nanos(now - state.start) as f64;
        let taken_us = self.taken.until(micros(now - self.epoch));
        let taken = Taken::between(state.taken_us, taken_us) as f64 * 1e3;
        state.taken_us = taken_us;
        let several = state.active.len() > 1;
        let busy = several && taken >= BUSY * self.threads as f64 * elapsed;
        let stopped = |it: &Share| it.stopped.load(Ordering::Relaxed) > 0;
        let before = state.common.clock;
        // It had no turn, and none was due: it is ahead.
        let is_paused = |it: &Arc<Meter>| {
            let idle = it.share.used_ns.load(Ordering::Relaxed) == 0 && !stopped(&it.share);
            idle && *it.share.clock() > before
        };
        let paused = state.active.iter().any(is_paused);
        let entry = |it: &Arc<Meter>| {
            let used = it.share.used_ns.swap(0, Ordering::Relaxed) as f64;
            // Who waits now may have begun to a moment ago; without any turn it has waited for long.
            let waits = used == 0.0 && stopped(&it.share);
            let waited = it.share.hungry.swap(false, Ordering::Relaxed) || waits;
            // With others out of its way it need not wait; let in again, they would take its turns.
            let hungry = waited || paused && it.share.was_hungry.load(Ordering::Relaxed);
            it.share.was_hungry.store(hungry, Ordering::Relaxed);
            Entry { weight: it.share.weight, clock: *it.share.clock(), used, hungry }
        };
        let entries: Vec<Entry> = state.active.iter().map(entry).collect();
        state.common = advance(state.common, elapsed, &entries);
        state.start = now;
        let common = state.common.clock;
        let mut entries = entries.into_iter();
        state.active.retain(|meter| {
            let used = entries.next().is_some_and(|entry| entry.used > 0.0);
            // Who waits for the others still competes, though it used nothing.
            let waits = stopped(&meter.share);
            let stays = waits || busy && (used || *meter.share.clock() > common);
            meter.share.listed.store(stays, Ordering::Relaxed);
            stays
        });
        for meter in &state.active {
            let slack = SLACK_NS / meter.share.weight;
            let mut clock = meter.share.clock();
            *clock = clock.max(common - slack);
        }
        self.busy.store(busy, Ordering::Relaxed);
        self.several.store(several, Ordering::Relaxed);
    }
}

thread_local! {
    /// For whose sake this thread is busy with a guest.
    static TURN: RefCell<Option<Arc<Meter>>> = const { RefCell::new(None) };
}

/// Whether this is called within a turn.
pub(crate) fn within_a_turn() -> bool {
    TURN.with_borrow(Option::is_some)
}

/// For whose sake the turn is in which this is called.
pub(crate) fn asks() -> Option<Arc<Meter>> {
    TURN.with_borrow(Clone::clone)
}

fn behind_all(seats: Arc<Semaphore>) -> Seat {
    Box::pin(async move {
        let seat = seats.acquire_owned().await.expect("nobody closes the semaphore");
        // Each lets all who are ready go first, and has the thread look then. The second one is for
        // whom the first look wakes: who was woken last would have its turn before them.
        yield_now().await;
        yield_now().await;
        seat
    })
}

/// The calling thread, which is for one turn alone, takes part in one that another has begun.
pub(crate) fn stay_within_a_turn(asker: &Arc<Meter>) {
    TURN.set(Some(Arc::clone(asker)));
}

/// A thread that is busy with a guest.
pub(crate) struct Turn<'a>(&'a Fair);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(TURN.take());
        self.0.taken.end(self.0.now_us());
    }
}

/// How many bits of [`Taken`] count turns: more than a machine has threads.
const TURNS_BITS: u32 = 12;

/// The time of all turns together, in microseconds, those that go on included: on a machine that is
/// busy with something else one turn can be longer than a period. In one number, so that both its
/// parts are always of the same moment: below, how many turns go on; above, when those that have
/// ended did, less when all began. That part may wrap around, and only differences are meant.
#[derive(Default)]
struct Taken(AtomicU64);

impl Taken {
    fn begin(&self, now_us: u64) {
        self.0.fetch_add(1_u64.wrapping_sub(now_us << TURNS_BITS), Ordering::Relaxed);
    }

    fn end(&self, now_us: u64) {
        self.0.fetch_add((now_us << TURNS_BITS).wrapping_sub(1), Ordering::Relaxed);
    }

    /// All until now.
    fn until(&self, now_us: u64) -> u64 {
        let both = self.0.load(Ordering::Relaxed);
        let (ended, going) = (both >> TURNS_BITS, both & ((1 << TURNS_BITS) - 1));
        ended.wrapping_add(going.wrapping_mul(now_us))
    }

    /// What was taken between two moments. A turn that began between the look at the clock and the
    /// look at the turns makes it a little less than nothing.
    fn between(before: u64, after: u64) -> u64 {
        let signed = (after.wrapping_sub(before) << TURNS_BITS).cast_signed() >> TURNS_BITS;
        u64::try_from(signed).unwrap_or(0)
    }
}

/// What an active Pod did in a period.
struct Entry {
    weight: f64,
    clock: f64,
    /// Nanoseconds of CPU time.
    used: f64,
    /// It wants more: it had to wait for a turn, or still does, or need not because others do.
    hungry: bool,
}

/// The common clock after a period. Who has less than its share and wants no more is content with
/// that; the others share the rest by their weights. Who waits for the common clock has its share.
fn advance(common: Common, elapsed: f64, active: &[Entry]) -> Common {
    if active.is_empty() || elapsed == 0.0 {
        return Common { rate: 0.0, ..common };
    }
    let wants_more = |it: &&Entry| it.hungry || (it.used == 0.0 && it.clock > common.clock);
    let mut content: Vec<&Entry> = active.iter().filter(|it| !wants_more(it)).collect();
    content.sort_by(|a, b| (a.used / a.weight).total_cmp(&(b.used / b.weight)));
    let mut rest: f64 = active.iter().map(|it| it.used).sum();
    let mut weights: f64 = active.iter().map(|it| it.weight).sum();
    for it in content {
        // The last one, or one that had its share and more, is held to it.
        if it.weight >= weights || it.used / it.weight >= rest / weights {
            break;
        }
        rest -= it.used;
        weights -= it.weight;
    }
    let rate = rest / weights / elapsed;
    Common { clock: common.clock + rate * elapsed, rate }
}

/// How long a Pod has to wait, if it is ahead by more than the slack.
fn pause(common: Common, passed: f64, clock: f64, weight: f64) -> Option<Duration> {
    let ahead = clock - (common.clock + common.rate * passed);
    if ahead <= SLACK_NS / weight || common.rate <= 0.0 {
        return None;
    }
    let nanos = (ahead / common.rate).min(nanos(PAUSE_MAX) as f64);
    Some(Duration::from_nanos(nanos as u64))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    const MS: f64 = 1e6;

    fn entry(weight: f64, clock: f64, used: f64, hungry: bool) -> Entry {
        Entry { weight, clock, used, hungry }
    }

    #[test]
    fn the_common_clock_goes_as_one_that_gets_its_share() {
        let start = Common { clock: 0.0, rate: 0.0 };
        // 200 ms of CPU time in 100 ms, weights 300 and 100.
        let both = [entry(300.0, 0.0, 100.0 * MS, true), entry(100.0, 0.0, 100.0 * MS, true)];
        let next = advance(start, 100.0 * MS, &both);
        assert_eq!(next.clock, 0.5 * MS);
        // The light one used twice its share and waits, the heavy one may go on.
        assert_eq!(pause(next, 0.0, 100.0 * MS / 300.0, 300.0), None);
        let wait = pause(next, 0.0, 100.0 * MS / 100.0, 100.0).expect("it is ahead");
        assert_eq!(wait.as_millis(), 100);
        assert_eq!(pause(next, 100.0 * MS, 100.0 * MS / 100.0, 100.0), None);
    }

    /// Others on the machine make turns long and rare: most Pods have none in a period. They count
    /// all the same, or the common clock would go so fast that the light ones never wait.
    #[test]
    fn who_waits_for_a_turn_competes() {
        let start = Common { clock: 0.0, rate: 0.0 };
        let mut all = vec![entry(900.0, 0.0, 10.0 * MS, true), entry(100.0, 0.0, 10.0 * MS, true)];
        all.extend((0..9).map(|_| entry(1000.0, 0.0, 0.0, true)));
        let next = advance(start, 100.0 * MS, &all);
        assert_eq!(next.clock.round(), 20.0 * MS / 10_000.0);
    }

    #[test]
    fn who_was_stopped_waits_for_a_seat_and_lets_others_go_first() {
        let ask = |seat: &mut Seat| seat.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let fair = Fair { seats: Arc::new(Semaphore::new(1)), ..Fair::new() };
        let [mut first, mut second, mut third] = [fair.seat(), fair.seat(), fair.seat()];
        assert!(ask(&mut first).is_pending(), "sockets are looked at");
        assert!(ask(&mut first).is_pending(), "whom these woke goes first");
        let held = ask(&mut first);
        assert!(held.is_ready());
        for _ in 0..3 {
            assert!(ask(&mut second).is_pending() && ask(&mut third).is_pending());
        }
        drop(held);
        // Who ends while it waits or has a seat leaves it to the next one.
        assert!(ask(&mut second).is_pending());
        drop(second);
        assert!(ask(&mut third).is_pending() && ask(&mut third).is_pending());
        assert!(ask(&mut third).is_ready());
    }

    #[test]
    fn a_pod_that_goes_on_and_on_begins_in_a_seat() {
        let fair = Fair { threads: 2, ..Fair::new() };
        let meter = Arc::new(Meter::new(None, 100));
        let answers = Arc::new(Meter::new(None, 100));
        let first = Queued::new(&meter, &meter);
        assert!(!fair.lets_others_go_first(&meter.share), "a thread is left to it");
        let second = Queued::new(&answers, &meter);
        assert!(fair.lets_others_go_first(&meter.share));
        assert!(!fair.lets_others_go_first(&answers.share), "the other one asked");
        assert_eq!(answers.share.stopped.load(Ordering::Relaxed), 1, "but it is who waits");
        drop((first, second));
        assert!(!fair.lets_others_go_first(&meter.share));
    }

    #[test]
    fn who_had_much_lets_others_go_first_if_there_are_any() {
        // On a machine that is busy with something else this takes longer than a period.
        let fair = Fair { end_ns: AtomicU64::new(u64::MAX), ..Fair::new() };
        let [asks, answers] = [(); 2].map(|()| Arc::new(Meter::new(None, 100)));
        let had_until = |it: &Meter| it.share.had_until_ns.load(Ordering::Relaxed);
        fair.charge(&answers, &asks, 1);
        assert!(had_until(&asks) > 0 && had_until(&answers) == 0);
        // However long the machine takes from here on.
        asks.share.had_until_ns.store(u64::MAX, Ordering::Relaxed);
        assert!(!fair.lets_others_go_first(&asks.share), "nobody else is there");
        fair.charge(&asks, &answers, 1);
        assert!(fair.lets_others_go_first(&asks.share));
        assert!(!fair.lets_others_go_first(&answers.share), "others may ask it as well");
        // When it has had little for a while.
        asks.share.had_until_ns.store(URGENT_AHEAD_NS, Ordering::Relaxed);
        assert!(!fair.lets_others_go_first(&asks.share));
    }

    #[test]
    fn turns_that_get_nowhere_give_way_no_more_for_a_while() {
        let fair = Fair::new();
        let crawled = |took_ms: u64, used_ms: u64| {
            fair.gave_way(Duration::from_millis(took_ms), used_ms * 1_000_000);
            !fair.gives_way()
        };
        assert!(!crawled(6, 4) && !crawled(10, 0) && !crawled(200, 150));
        assert!(crawled(1000, 4));
        let until = fair.awake_until_ns.load(Ordering::Relaxed);
        assert!(until <= nanos(fair.epoch.elapsed() + AWAKE_MAX));
    }

    #[test]
    fn who_answers_is_asked_by_who_asked_first() {
        let fair = Fair::new();
        let [first, second] = [(); 2].map(|()| Arc::new(Meter::new(None, 100)));
        assert!(asks().is_none());
        let turn = fair.begin(&first);
        assert!(turn.is_some() && fair.begin(&second).is_none());
        assert!(asks().is_some_and(|asker| Arc::ptr_eq(&asker, &first)));
        drop(turn);
        assert!(asks().is_none());
    }

    #[test]
    fn turns_that_go_on_count_as_well() {
        let taken = Taken::default();
        // Before a thread looks at the clock, another may have begun.
        taken.begin(5);
        assert_eq!(Taken::between(0, taken.until(3)), 0);
        taken.begin(20);
        let first = taken.until(100);
        assert_eq!(Taken::between(0, first), 95 + 80);
        taken.end(150);
        let second = taken.until(200);
        assert_eq!(Taken::between(first, second), 50 + 100);
        taken.end(230);
        assert_eq!(Taken::between(second, taken.until(300)), 30);
    }

    #[test]
    fn who_is_content_leaves_the_rest_to_the_others() {
        let common = Common { clock: 10.0 * MS, rate: 0.0 };
        let after = |hungry| {
            let behind = entry(100.0, 0.0, 10.0 * MS, hungry);
            let all = [behind, entry(100.0, 10.0 * MS, 190.0 * MS, true)];
            advance(common, 100.0 * MS, &all).clock.round()
        };
        assert_eq!(after(false), 11.9 * MS);
        assert_eq!(after(true), 11.0 * MS);
        assert_eq!(advance(common, 100.0 * MS, &[]).rate, 0.0);
    }

    /// Two threads for two guests of one instance each: the heavy one cannot use more than one.
    #[test]
    fn nobody_waits_for_who_has_all_that_it_can_use() {
        let start = Common { clock: 0.0, rate: 0.0 };
        let used = 100.0 * MS;
        let both = |waited| {
            let light = used / 100.0;
            let next = advance(
                start,
                100.0 * MS,
                &[entry(900.0, used / 900.0, used, waited), entry(100.0, light, used, false)],
            );
            pause(next, 0.0, light, 100.0)
        };
        assert_eq!(both(false), None);
        // With a second instance that waits it can.
        assert!(both(true).is_some());
    }
}
