//! Which endpoint of a Service gets the next request. The choice is pure; what it is made from is
//! kept here as well: how many requests each endpoint has, how it has done, who stays with whom.
//!
//! Of two endpoints, the one whose turn it is and a random one, that with fewer open requests wins
//! ("power of two choices"). An endpoint that failed [`FAILURES_MAX`] times in a row is left out for
//! a while, longer each time, but never more than half of them: when most fail, it is not theirs.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Failures in a row after which an endpoint is left out: one or two are chance.
const FAILURES_MAX: u32 = 5;
/// How long the first time; as often as long as it was left out before, up to the longest.
const OUT: Duration = Duration::from_secs(5);
const OUT_MAX: Duration = Duration::from_secs(60);
/// Clients that stay with their Pod, of one Service port. Beyond it the Pod follows from the
/// client's address alone.
const CLIENTS_MAX: usize = 65_536;
/// How often room is made among them for new ones: looking at all takes long, and many strangers may
/// come at once.
const SWEEP: Duration = Duration::from_secs(1);

/// What is known of an endpoint. Survives a new table.
#[derive(Default, Debug)]
pub struct Load {
    /// Requests and connections under way.
    open: AtomicUsize,
    failures: AtomicU32,
    /// How often it was left out without an answer in between.
    times_out: AtomicU32,
    /// Until when it is left out, in milliseconds of the caller's clock; 0 is never.
    out_until: AtomicU64,
    speaks: AtomicU8,
}

/// What a Pod expects on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Nobody has asked it.
    Unknown,
    /// It is a handler: requests are given to it.
    Requests,
    /// It listens itself: connections are passed on.
    Bytes,
}

/// Counts something under way until it is dropped.
#[derive(Debug)]
pub struct Open(Arc<Load>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    /// Counts one more under way.
    pub fn enter(self: &Arc<Load>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Requests and connections under way.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether it is left out at that time.
    pub fn is_out(&self, now_ms: u64) -> bool {
        let until = self.out_until.load(Ordering::Relaxed);
        until != 0 && now_ms < until
    }

    /// Whether it was left out and might be still: then the time matters.
    pub fn was_out(&self) -> bool {
        self.out_until.load(Ordering::Relaxed) != 0
    }

    /// It answered.
    pub fn succeeded(&self) {
        // Read first: it is the rule, and the line stays shared between cores.
        if self.failures.load(Ordering::Relaxed) != 0 || self.was_out() {
            self.failures.store(0, Ordering::Relaxed);
            self.times_out.store(0, Ordering::Relaxed);
            self.out_until.store(0, Ordering::Relaxed);
        }
    }

    /// It failed. True: it should be left out, if others can do its part.
    pub fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX
    }

    /// Leaves it out from now on, for a while.
    pub fn leave_out(&self, now_ms: u64) {
        let times = self.times_out.fetch_add(1, Ordering::Relaxed) + 1;
        let out = OUT.saturating_mul(times).min(OUT_MAX);
        let out = u64::try_from(out.as_millis()).unwrap_or(u64::MAX);
        self.failures.store(0, Ordering::Relaxed);
        self.out_until.store(now_ms.saturating_add(out).max(1), Ordering::Relaxed);
    }

    /// What it expects, as far as is known.
    pub fn speaks(&self) -> Speaks {
        match self.speaks.load(Ordering::Relaxed) {
            1 => Speaks::Requests,
            2 => Speaks::Bytes,
            _ => Speaks::Unknown,
        }
    }

    /// It was found out.
    pub fn found(&self, speaks: Speaks) {
        let code = match speaks {
            Speaks::Unknown => 0,
            Speaks::Requests => 1,
            Speaks::Bytes => 2,
        };
        self.speaks.store(code, Ordering::Relaxed);
    }
}

/// Whether one more of `count` endpoints may be left out, of which `out` are already.
pub fn may_leave_out(out: usize, count: usize) -> bool {
    (out + 1) * 2 <= count
}

/// Which of `count` endpoints is tried: that whose `turn` it is or a random one, whichever has fewer
/// requests; neither one that was tried nor one that is out, unless only such are left. None: all
/// were tried.
pub fn choose(
    turn: usize,
    count: usize,
    tried: &[usize],
    is_out: impl Fn(usize) -> bool,
    open: impl Fn(usize) -> usize,
) -> Option<usize> {
    let from = |start: usize| (0..count).map(move |step| (start % count + step) % count);
    let free = |index: &usize| !tried.contains(index) && !is_out(*index);
    let Some(first) = from(turn).find(free) else {
        return from(turn).find(|index| !tried.contains(index));
    };
    if count - tried.len() < 2 {
        return Some(first);
    }
    let second = from(scatter(turn)).find(|index| *index != first && free(index));
    Some(second.filter(|second| open(*second) < open(first)).unwrap_or(first))
}

/// A number that looks random and follows from another (splitmix64's finish).
fn scatter(turn: usize) -> usize {
    let mut z = (turn as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}

/// Which clients stay with which endpoint (`sessionAffinity: ClientIP`). Locked for a lookup.
#[derive(Default, Debug)]
pub struct Affinity(Mutex<Clients>);

#[derive(Default, Debug)]
struct Clients {
    held: HashMap<IpAddr, (SocketAddr, Instant)>,
    /// When room was last made.
    swept: Option<Instant>,
}

impl Affinity {
    /// Where a client has been, if that was not longer ago than `keep`.
    pub fn held(&self, client: IpAddr, keep: Duration, now: Instant) -> Option<SocketAddr> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, last) = clients.held.get(&client)?;
        (now.saturating_duration_since(*last) < keep).then_some(*address)
    }

    /// Whether a client has been somewhere, and stays there no longer.
    pub fn is_over(&self, client: IpAddr, keep: Duration, now: Instant) -> bool {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = clients.held.get(&client).map(|(_, last)| *last);
        last.is_some_and(|last| now.saturating_duration_since(last) >= keep)
    }

    /// A client was served there.
    pub fn hold(&self, client: IpAddr, address: SocketAddr, keep: Duration, now: Instant) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.held.len() >= CLIENTS_MAX && !clients.held.contains_key(&client) {
            if clients.swept.is_some_and(|last| now.saturating_duration_since(last) < SWEEP) {
                return;
            }
            clients.swept = Some(now);
            clients.held.retain(|_, (_, last)| now.saturating_duration_since(*last) < keep);
            if clients.held.len() >= CLIENTS_MAX {
                return;
            }
        }
        clients.held.insert(client, (address, now));
    }
}

/// The turn of a client that nobody remembers: always the same one.
pub fn turn_of(client: IpAddr) -> usize {
    match client {
        IpAddr::V4(ip) => scatter(ip.to_bits() as usize),
        IpAddr::V6(ip) => scatter((ip.to_bits() >> 64) as usize ^ ip.to_bits() as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_while_all_are_idle() {
        let idle = |turn, tried: &[usize]| choose(turn, 3, tried, |_| false, |_| 0);
        let turns: Vec<_> = (0..4).map(|turn| idle(turn, &[])).collect();
        assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(idle(0, &[0]), Some(1));
        assert_eq!(idle(2, &[2, 0]), Some(1));
        assert_eq!(idle(5, &[0, 1, 2]), None);
        assert_eq!(choose(7, 0, &[], |_| false, |_| 0), None);
        assert!(idle(usize::MAX, &[]).is_some());
    }

    #[test]
    fn the_busy_one_gets_less() {
        let open = [100, 0, 0, 0];
        let mut got = [0; 4];
        for turn in 0..4000 {
            got[choose(turn, 4, &[], |_| false, |index| open[index]).expect("there are some")] += 1;
        }
        assert_eq!(got[0], 0, "{got:?}");
        assert!(got[1..].iter().all(|count| *count > 1000), "{got:?}");
    }

    #[test]
    fn who_is_out_is_asked_last() {
        let out = |index: usize| index != 2;
        assert_eq!(choose(0, 3, &[], out, |_| 0), Some(2));
        assert_eq!(choose(0, 3, &[2], out, |_| 0), Some(0));
        assert_eq!(choose(0, 3, &[], |_| true, |_| 0), Some(0));
    }

    #[test]
    fn failures_in_a_row_leave_an_endpoint_out_for_longer_each_time() {
        let load = Load::default();
        let row =
            |load: &Load| (1..=FAILURES_MAX).map(|_| load.failed()).filter(|out| *out).count();
        assert_eq!(row(&load), 1);
        load.leave_out(1_000);
        assert!(load.is_out(5_999) && !load.is_out(6_000));
        assert_eq!(row(&load), 1);
        load.leave_out(6_000);
        assert!(load.is_out(15_999) && !load.is_out(16_000));
        load.succeeded();
        assert!(!load.is_out(0) && !load.failed());
        assert!(!may_leave_out(0, 1) && may_leave_out(0, 2) && !may_leave_out(1, 3));
    }

    #[test]
    fn a_client_keeps_its_pod_for_a_time() {
        let affinity = Affinity::default();
        let client: IpAddr = "192.0.2.7".parse().expect("an address");
        let pod: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let (now, keep) = (Instant::now(), Duration::from_secs(10));
        assert_eq!(affinity.held(client, keep, now), None);
        affinity.hold(client, pod, keep, now);
        assert_eq!(affinity.held(client, keep, now + keep / 2), Some(pod));
        assert_eq!(affinity.held(client, keep, now + keep), None);
        let over = |after: Duration| affinity.is_over(client, keep, now + after);
        assert!(!over(keep / 2) && over(keep));
        assert!(!affinity.is_over("192.0.2.8".parse().expect("an address"), keep, now + keep));
        assert_eq!(turn_of(client), turn_of(client));
    }

    #[test]
    fn strangers_do_not_have_all_clients_looked_at_each_time() {
        let affinity = Affinity::default();
        let pod: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let (begin, keep) = (Instant::now(), SWEEP);
        for number in 0..u32::try_from(CLIENTS_MAX).expect("a small constant") {
            affinity.hold(IpAddr::V4(number.into()), pod, keep, begin);
        }
        let stranger: IpAddr = "192.0.2.7".parse().expect("an address");
        let finds_room = |after: Duration| {
            affinity.hold(stranger, pod, keep, begin + after);
            affinity.held(stranger, keep, begin + after).is_some()
        };
        assert!(!finds_room(SWEEP / 2), "all are there");
        assert!(!finds_room(SWEEP), "it was looked for a moment ago");
        assert!(finds_room(SWEEP * 2));
    }
}
