//! Shares of the CPU when there is not enough for everybody.
//!
//! Guests take turns by themselves (each yields at every tick), but a Pod with a hundred requests
//! gets a hundred turns. So each period of 100 ms the CPU time of the last one is looked at: if it
//! was nearly all there is, those who took more than their share by weight get an allowance for the
//! next period, and wait for its end when it is used up. Who needs less than a share leaves the rest
//! to the others, so nothing is given away while somebody can use it.
//!
//! The weights are the CPU requests of Pods; the arithmetic is [`allowances`], a pure function.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::account::Meter;

/// How long a look covers. As long as the period of a quota, so that both throttle alike.
const PERIOD: Duration = Duration::from_millis(100);
/// From this part of all CPU time on there is not enough for everybody, in hundredths.
const BUSY_PERCENT: u64 = 90;
/// The weight of a Pod that requested nothing: a fiftieth of a core, as much as a kernel gives it.
pub(crate) const WEIGHT_MIN: u32 = 20;

/// What one Pod has of the current period.
pub(crate) struct Share {
    weight: u64,
    used_ns: AtomicU64,
    /// `u64::MAX`: as much as it can get.
    allowance_ns: AtomicU64,
    /// Whether it is in the list of the current period.
    listed: AtomicBool,
}

impl Share {
    pub(crate) fn new(weight: u32) -> Share {
        Share {
            weight: u64::from(weight.max(WEIGHT_MIN)),
            used_ns: AtomicU64::new(0),
            allowance_ns: AtomicU64::new(u64::MAX),
            listed: AtomicBool::new(false),
        }
    }
}

/// The shares of one engine.
pub(crate) struct Fair {
    cores: u64,
    /// Locked once a period, and when a Pod uses CPU time for the first time in a period.
    period: Mutex<Period>,
    /// End of the current period in nanoseconds since `epoch`: read without the lock.
    end_ns: AtomicU64,
    epoch: Instant,
}

struct Period {
    start: Instant,
    active: Vec<Weak<Meter>>,
}

impl Fair {
    pub(crate) fn new() -> Fair {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let now = Instant::now();
        Fair {
            cores: cores as u64,
            period: Mutex::new(Period { start: now, active: Vec::new() }),
            end_ns: AtomicU64::new(nanos(PERIOD)),
            epoch: now,
        }
    }

    /// Books CPU time of a Pod on its share.
    pub(crate) fn charge(&self, meter: &Arc<Meter>, used_ns: u64) {
        let now = Instant::now();
        if nanos(now - self.epoch) >= self.end_ns.load(Ordering::Relaxed) {
            self.turn(now);
        }
        let share = &meter.share;
        share.used_ns.fetch_add(used_ns, Ordering::Relaxed);
        if !share.listed.swap(true, Ordering::Relaxed) {
            let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            period.active.push(Arc::downgrade(meter));
        }
    }

    /// Until when a Pod has to wait, because others had less.
    pub(crate) fn paused_until(&self, share: &Share) -> Option<Instant> {
        let used = share.used_ns.load(Ordering::Relaxed);
        if used < share.allowance_ns.load(Ordering::Relaxed) {
            return None;
        }
        let end = self.epoch + Duration::from_nanos(self.end_ns.load(Ordering::Relaxed));
        let now = Instant::now();
        if end > now {
            return Some(end);
        }
        self.turn(now);
        None
    }

    /// Begins the next period.
    fn turn(&self, now: Instant) {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        if now < period.start + PERIOD {
            // Somebody else was faster.
            return;
        }
        let meters: Vec<Arc<Meter>> =
            period.active.drain(..).filter_map(|it| it.upgrade()).collect();
        let elapsed_ns = nanos(now - period.start);
        period.start = now;
        self.end_ns.store(nanos(now - self.epoch) + nanos(PERIOD), Ordering::Relaxed);
        drop(period);
        let used: Vec<(u64, u64)> = meters
            .iter()
            .map(|it| (it.share.weight, it.share.used_ns.swap(0, Ordering::Relaxed)))
            .collect();
        // After a time without any charge this was not a busy one.
        let capacity = self.cores * elapsed_ns;
        let next = self.cores * nanos(PERIOD);
        for (meter, allowance) in meters.iter().zip(allowances(capacity, next, &used)) {
            meter.share.allowance_ns.store(allowance.unwrap_or(u64::MAX), Ordering::Relaxed);
            meter.share.listed.store(false, Ordering::Relaxed);
        }
    }
}

/// What each Pod may use of the next period, from weights and what was used in the last: nothing is
/// said (None) to those who used less than half of their share, and to all if there was enough.
/// Who used more than that may well have wanted even more.
fn allowances(capacity: u64, next: u64, used: &[(u64, u64)]) -> Vec<Option<u64>> {
    let total: u64 = used.iter().map(|(_, used)| used).sum();
    let mut allowances = vec![None; used.len()];
    if used.len() < 2 || total < capacity / 100 * BUSY_PERCENT {
        return allowances;
    }
    let mut left = capacity;
    let mut hungry: Vec<usize> = (0..used.len()).collect();
    loop {
        let weights: u64 = hungry.iter().map(|index| used[*index].0).sum();
        let share = |index: usize| scaled(left, used[index].0, weights);
        let (modest, rest): (Vec<usize>, Vec<usize>) =
            hungry.iter().copied().partition(|index| used[*index].1 * 2 < share(*index));
        if modest.is_empty() || rest.is_empty() {
            for index in rest {
                allowances[index] = Some(scaled(share(index), next, capacity).max(1));
            }
            return allowances;
        }
        left = left.saturating_sub(modest.iter().map(|index| used[*index].1).sum());
        hungry = rest;
    }
}

/// `amount * part / whole`
fn scaled(amount: u64, part: u64, whole: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(used: &[(u64, u64)], expected: &[Option<u64>]) {
        assert_eq!(allowances(200, 200, used), expected);
    }

    #[test]
    fn shares_follow_weights_when_there_is_not_enough() {
        // There was enough, or nobody else.
        check(&[(100, 90), (100, 20)], &[None, None]);
        check(&[(100, 200)], &[None]);
        // Two that want all of it.
        check(&[(100, 100), (100, 100)], &[Some(100), Some(100)]);
        check(&[(300, 100), (100, 100)], &[Some(150), Some(50)]);
        check(&[(300, 150), (100, 50)], &[Some(150), Some(50)]);
        // The modest one is left alone, the others share the rest by weight.
        check(&[(100, 10), (300, 90), (100, 100)], &[None, Some(142), Some(47)]);
        check(&[(100, 10), (100, 95), (100, 95)], &[None, Some(95), Some(95)]);
    }
}
