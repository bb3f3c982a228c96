//! Whose requests wait for whose: FlowSchemas and PriorityLevelConfigurations at work.
//!
//! ```text
//!  request ─► classify ─► level ─► a seat is free ────────────────► runs ─► gives its seats back
//!             (flows)              else: the flow's queue ─► fair ──┘
//!                                  queue full or too long: 429
//! ```
//!
//! A request takes seats while it is answered: one, or more if requests like it have lately taken
//! long (`Costs`). Seats are few, in proportion to the processors, since what makes requests wait
//! for each other here is computing, not the disk. A level has a part of the seats to itself and
//! lends what it does not use. Within a level, flows take turns by the time they have used
//! (`queues`).
//!
//! Watches hold a seat until their first answer only; streams (exec, logs that follow, tunnels)
//! hold none. Watches are counted by user instead ([`Fairness::watch`]), streams to nodes by user and
//! node (`tunnel.rs`).
//!
//! A seat is given back when the answer begins. What makes a long one takes turns from there on
//! (`turns`, `pieces.rs`), of which there are fewer than processors.
//!
//! One std mutex guards all levels: its sections are short and never await.

mod flows;
mod queues;
mod turns;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::oneshot;

use super::{auth, auth::User, errors::ApiError, request::Attributes};
pub use flows::{Flows, prefix};
use queues::{Arrival, Levels, Ticket};
pub use turns::Share;
use turns::Turns;

/// Seats for each processor: enough that writes, which wait for the disk, fill its group commit.
const SEATS_PER_PROCESSOR: u32 = 64;
/// A request that waited so long is refused: its client would rather know.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// What a refused client is told to wait.
const RETRY_AFTER_SECONDS: u32 = 1;
/// Watches of one user at a time. A controller has about fifty, a test of a thousand watchers fits.
const WATCHES_PER_USER_MAX: u32 = 5_000;
/// A request takes one seat for each of these that requests like it have taken lately.
const SEAT_TIME: Duration = Duration::from_millis(20);
/// The most seats of one request.
const WIDTH_MAX: u32 = 16;
/// Kinds of requests whose cost is remembered; more than there are kinds and verbs.
const COSTS_MAX: usize = 4_096;

/// All levels, and what is known of costs and watches.
pub struct Fairness {
    /// Long computations at once: half of the processors, so that the other half answers.
    computations: tokio::sync::Semaphore,
    /// As many for what is made in pieces.
    turns: Arc<Turns>,
    levels: Mutex<Levels<oneshot::Sender<Seat>>>,
    costs: Mutex<HashMap<u64, Duration>>,
    watches: Mutex<HashMap<String, u32>>,
    /// Requests that found a full queue, and such as waited too long.
    refused: [AtomicU64; 2],
}

/// Why a request is not answered, and the rules it fell under.
#[derive(Debug)]
pub struct Refused {
    why: String,
    pub class: Class,
}

impl Refused {
    /// What its client is told.
    pub fn error(&self) -> ApiError {
        ApiError::TooManyRequests {
            message: format!("too many requests, please try again later: {}", self.why),
            causes: Vec::new(),
            retry_after_seconds: RETRY_AFTER_SECONDS,
        }
    }
}

/// What a request holds while it is answered; gives its seats back when dropped.
pub struct Seat {
    fairness: Arc<Fairness>,
    ticket: Ticket,
    since: Instant,
}

/// One watch of a user; counts until it is dropped.
pub struct WatchCount {
    fairness: Arc<Fairness>,
    user: String,
}

/// Which rules a request fell under, for the answer's headers.
#[derive(Clone, Debug)]
pub struct Class {
    pub schema_uid: HeaderValue,
    pub level_uid: HeaderValue,
}

/// A request's way through.
pub struct Passed {
    /// None for exempt requests.
    pub seat: Option<Seat>,
    pub class: Option<Class>,
}

impl Passed {
    /// For what holds no seat.
    pub fn free() -> Passed {
        Passed { seat: None, class: None }
    }
}

impl Fairness {
    pub fn new() -> Arc<Fairness> {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        let processors = u32::try_from(processors).unwrap_or(u32::MAX / SEATS_PER_PROCESSOR);
        let computations = usize::try_from(processors / 2).unwrap_or(1).max(1);
        Arc::new(Fairness {
            computations: tokio::sync::Semaphore::new(computations),
            turns: Turns::new(computations),
            levels: Mutex::new(Levels::new(
                processors.saturating_mul(SEATS_PER_PROCESSOR),
                oneshot::Sender::is_closed,
            )),
            costs: Mutex::default(),
            watches: Mutex::default(),
            refused: Default::default(),
        })
    }

    fn levels(&self) -> MutexGuard<'_, Levels<oneshot::Sender<Seat>>> {
        self.levels.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for the request's turn, or refuses it.
    pub async fn pass(
        self: &Arc<Self>,
        flows: &Arc<Flows>,
        user: &User,
        asked: &Attributes,
    ) -> Result<Passed, Refused> {
        let Some(found) = flows.classify(user, asked) else {
            return Ok(Passed { seat: None, class: None });
        };
        let class = found.class.clone();
        if found.exempt {
            return Ok(Passed { seat: None, class: Some(class) });
        }
        let width = self.width(kind_of_request(asked));
        let (sender, receiver) = oneshot::channel();
        let arrival = {
            let mut levels = self.levels();
            levels.configure(flows);
            levels.arrive(found.level, found.flow, width, sender)
        };
        match arrival {
            Arrival::Runs(ticket) => {
                Ok(Passed { seat: Some(self.seat(ticket)), class: Some(class) })
            }
            Arrival::Refused => {
                self.refused[0].fetch_add(1, Relaxed);
                let level = found.level;
                let why = format!("priority level {level:?} is busy, and too many wait already");
                Err(Refused { why, class })
            }
            Arrival::Waits => match tokio::time::timeout(WAIT_MAX, receiver).await {
                Ok(Ok(seat)) => Ok(Passed { seat: Some(seat), class: Some(class) }),
                // A seat that comes now finds nobody, and goes to the next.
                _ => {
                    self.refused[1].fetch_add(1, Relaxed);
                    let waited = WAIT_MAX.as_secs();
                    let level = found.level;
                    let why = format!("priority level {level:?} had no room for {waited} seconds");
                    Err(Refused { why, class })
                }
            },
        }
    }

    /// Requests that were refused: for a full queue, and for too long a wait.
    pub fn refused(&self) -> [u64; 2] {
        [self.refused[0].load(Relaxed), self.refused[1].load(Relaxed)]
    }

    fn seat(self: &Arc<Self>, ticket: Ticket) -> Seat {
        Seat { fairness: self.clone(), ticket, since: Instant::now() }
    }

    /// Gives seats back, and lets those begin whose turn it is.
    fn give_back(self: &Arc<Self>, ticket: Ticket, used: Duration) {
        let begun = self.levels().finish(ticket, used);
        for (waiter, ticket) in begun {
            // If nobody waits any more, the seat comes back here when it is dropped.
            drop(waiter.send(self.seat(ticket)));
        }
    }

    /// A user's part in the turns of those who make long answers.
    pub fn share(&self, user: &User) -> Share {
        let mut hasher = DefaultHasher::new();
        user.name.hash(&mut hasher);
        self.turns.share(hasher.finish())
    }

    /// Does a long computation on a thread of its own kind, where it holds nobody up.
    pub async fn compute<R>(&self, work: impl FnOnce() -> R) -> R {
        let _turn = self.computations.acquire().await.expect("the semaphore is never closed");
        match tokio::runtime::Handle::current().runtime_flavor() {
            tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
            // A runtime of one thread (in tests) has nobody to hold up.
            _ => work(),
        }
    }

    /// Counts one more watch of a user, or refuses it. Administrators are not counted.
    pub fn watch(self: &Arc<Self>, user: &User) -> Result<Option<WatchCount>, ApiError> {
        if user.is_in(auth::MASTERS) {
            return Ok(None);
        }
        let mut watches = self.watches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = watches.entry(user.name.clone()).or_default();
        if *count >= WATCHES_PER_USER_MAX {
            return Err(ApiError::TooManyRequests {
                message: format!(
                    "user {:?} has {WATCHES_PER_USER_MAX} watches open, the most allowed; close \
                     some, or share one among several readers",
                    user.name
                ),
                causes: Vec::new(),
                retry_after_seconds: RETRY_AFTER_SECONDS,
            });
        }
        *count += 1;
        Ok(Some(WatchCount { fairness: self.clone(), user: user.name.clone() }))
    }

    /// Seats for a request, by what requests like it have cost.
    fn width(&self, kind: u64) -> u32 {
        let costs = self.costs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cost = costs.get(&kind).copied().unwrap_or_default();
        let seats = cost.as_micros() / SEAT_TIME.as_micros() + 1;
        u32::try_from(seats).unwrap_or(WIDTH_MAX).min(WIDTH_MAX)
    }

    /// Remembers what answering a request has cost: a quarter of the new, three of the old.
    pub fn learn(&self, asked: &Attributes, took: Duration) {
        let kind = kind_of_request(asked);
        let mut costs = self.costs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if costs.len() >= COSTS_MAX && !costs.contains_key(&kind) {
            costs.clear();
        }
        let cost = costs.entry(kind).or_insert(took);
        *cost = (*cost * 3 + took) / 4;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let fairness = self.fairness.clone();
        fairness.give_back(self.ticket, self.since.elapsed());
    }
}

impl Drop for WatchCount {
    fn drop(&mut self) {
        let watches = self.fairness.watches.lock();
        let mut watches = watches.unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = watches.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                watches.remove(&self.user);
            }
        }
    }
}

/// Reads of many objects differ from each other; writes wait for the disk, which is no cost to
/// others.
fn kind_of_request(asked: &Attributes) -> u64 {
    let mut hasher = DefaultHasher::new();
    let writes = ["create", "update", "patch", "delete"].contains(&asked.verb.as_str());
    if !writes {
        (&asked.verb, &asked.group, &asked.resource, &asked.namespace).hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether answering this teaches anything about cost.
pub fn teaches(asked: &Attributes) -> bool {
    asked.verb == "list" || asked.verb == "deletecollection"
}

#[cfg(test)]
mod tests;
