//! The loop that turns changes of the cache into plans, and plans into writes.
//!
//! ```text
//!  watches ──► Cache ──► wake: which keys of which controllers ──► queue ──► plan ──► Writer
//!                ▲                                                                     │
//!                └──────────────── results of own writes ◄───────────────────────────┘
//! ```
//!
//! One task owns the cache, the queue and the timers. A key is planned for by one plan at a time:
//! while its writes are under way it is only marked, and planned for again when their results are
//! in the cache. Events that are ready are taken in before anything is planned, so a burst of
//! changes becomes one plan. Nothing is planned before every kind has been listed once.
//!
//! Tasks: this loop, and one for each plan whose writes are under way (bounded by [`PLANS_MAX`]);
//! the loop joins them all before it returns. A key whose writes fail is tried again after a pause
//! that doubles; so is one whose plan panics, which concerns no other. A key that takes long to plan
//! for rests after each plan, and what changes meanwhile becomes one plan: a set of ten thousand Pods,
//! each of whose changes has all of them looked at, keeps nobody else waiting.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::cache::{Cache, Change, Key, Seen};
use super::pace::Pace;
use super::write::{Outcome, Write, WriteError, Writer};
use crate::contain;

/// Plans whose writes are under way at once.
const PLANS_MAX: usize = 256;
/// Events taken in before the queue gets its turn.
const EVENTS_MAX: usize = 1_024;
/// Keys planned for before new events are looked at.
const TURN_MAX: usize = 64;
/// Writes of one plan under way at once.
const WRITES_MAX: usize = 64;
/// First pause after a write that met a newer object: its event is on the way.
const STALE_PAUSE: Duration = Duration::from_millis(5);
/// First pause after a write that was refused or not answered.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Writes in a row that met a newer object before the plan is told of it: what comes of an older
/// view ends with the next events, what does not end has another reason, such as a taken name.
const STALE_UNTOLD: u32 = 6;
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest time until a key is looked at again, where a plan asks for one that no clock counts to.
const LOOK_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A plan that takes so long is one over thousands of objects.
const PLAN_LONG: Duration = Duration::from_millis(5);
/// Its key rests so many times as long as the plan took.
const REST_TIMES: u32 = 4;
/// The longest rest: more would be noticed.
const REST_MAX: Duration = Duration::from_secs(1);
/// Writes under way when the shutdown comes have so long to end; then they are dropped.
const DRAIN: Duration = Duration::from_secs(2);

/// What a plan is made from besides its key.
pub struct View<'a> {
    pub cache: &'a Cache,
    pub now: Timestamp,
    /// The process's own clock, for silence of nodes.
    pub instant: Instant,
    pub config: &'a Config,
    /// Why the last writes for this key failed.
    pub failure: Option<&'a str>,
}

/// What to do now, and when to look again if nothing changes until then.
#[derive(Default)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub again: Option<Duration>,
}

impl Plan {
    /// Looks again after the earlier of this and what was asked for before.
    pub fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |before| before.min(after)));
    }
}

impl From<Vec<Write>> for Plan {
    fn from(writes: Vec<Write>) -> Plan {
        Plan { writes, again: None }
    }
}

/// A row of the table of controllers.
#[derive(Clone, Copy)]
pub struct Controller {
    pub name: &'static str,
    /// Which keys a change concerns. Cheap: it runs for every change.
    pub wake: fn(&Cache, &Change, &mut Vec<Key>),
    /// Reads its snapshot from the view and plans.
    pub reconcile: fn(&View<'_>, &Key) -> Plan,
}

/// One item of the merged watches.
pub type Watched = (&'static wherry_resources::Kind, Seen);

/// A key of one controller.
type Job = (usize, Key);

/// A key that took long to plan for.
struct Rest {
    took: Duration,
    until: Instant,
}

/// How long a key rests whose last plans took so long. One long plan may be the machine's doing, or
/// the first of all.
fn rest(before: Duration, took: Duration) -> Duration {
    (before.min(took) * REST_TIMES).min(REST_MAX)
}

#[derive(Default)]
struct Failure {
    count: u32,
    /// Nothing while it may be only an older view.
    message: Option<String>,
}

impl Failure {
    /// Notes one more; how long to wait before the next try.
    fn note(&mut self, error: &WriteError) -> Duration {
        let stale = matches!(error, WriteError::Stale(_));
        if !stale || self.count >= STALE_UNTOLD {
            self.message = Some(error.to_string());
        }
        let first = if stale { STALE_PAUSE } else { REFUSED_PAUSE };
        let pause = first.saturating_mul(1 << self.count.min(16)).min(PAUSE_MAX);
        self.count = self.count.saturating_add(1);
        pause
    }
}

/// The state of the loop.
pub struct Loop {
    cache: Cache,
    controllers: &'static [Controller],
    config: Config,
    writer: Writer,
    queue: VecDeque<Job>,
    queued: BTreeSet<Job>,
    /// Keys whose writes are under way; `true` when they changed meanwhile.
    busy: BTreeMap<Job, bool>,
    failures: HashMap<Job, Failure>,
    /// Keys whose last plan took longer than [`PLAN_LONG`].
    rests: HashMap<Job, Rest>,
    timers: BinaryHeap<Reverse<(Instant, Job)>>,
    /// The timer that counts for each key: later plans replace earlier ones.
    due: HashMap<Job, Instant>,
    plans: JoinSet<(Job, Vec<Result<Outcome, WriteError>>)>,
    started: Instant,
    ready: bool,
}

impl Loop {
    pub fn new(
        cache: Cache,
        controllers: &'static [Controller],
        config: Config,
        writer: Writer,
    ) -> Loop {
        Loop {
            cache,
            controllers,
            config,
            writer,
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            busy: BTreeMap::new(),
            failures: HashMap::new(),
            rests: HashMap::new(),
            timers: BinaryHeap::new(),
            due: HashMap::new(),
            plans: JoinSet::new(),
            started: Instant::now(),
            ready: false,
        }
    }

    /// Runs until the shutdown; then waits for the writes under way.
    pub async fn run(
        mut self,
        watches: Vec<BoxStream<'static, Watched>>,
        first: Vec<Job>,
        shutdown: CancellationToken,
    ) {
        let mut watches = stream::select_all(watches).ready_chunks(EVENTS_MAX);
        first.into_iter().for_each(|job| self.enqueue(job));
        let mut pace = Pace::new(Instant::now());
        loop {
            let next_timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let wake_at = next_timer.map_or(pace.next(), |at| at.min(pace.next()));
            let timer = tokio::time::sleep_until(wake_at.into());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(seen) = watches.next() => self.observe(seen),
                Some(done) = self.plans.join_next(), if !self.plans.is_empty() => self.finish(done),
                () = timer => {}
                () = std::future::ready(()), if self.can_plan() => {}
            }
            while let Some(done) = self.plans.try_join_next() {
                self.finish(done);
            }
            // Before anything is planned: nobody could be heard in that time.
            let now = Instant::now();
            let lost = pace.look(now);
            if !lost.is_zero() {
                tracing::warn!(?lost, "this process stood still; that is no silence of nodes");
                self.cache.stood_still(lost, now);
            }
            // Here and not in the branch above: events that never cease must not hold timers up.
            self.fire();
            self.turn();
        }
        let drained = async { while self.plans.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            self.plans.shutdown().await;
        }
    }

    fn observe(&mut self, seen: Vec<Watched>) {
        let now = Instant::now();
        for (kind, seen) in seen {
            for change in self.cache.observe(kind, seen, now) {
                self.wake(&change);
            }
        }
        if !self.ready && self.cache.synced() {
            self.ready = true;
            let took_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(took_ms, "controllers know the cluster");
        }
    }

    fn wake(&mut self, change: &Change) {
        let mut keys = Vec::new();
        for (index, controller) in self.controllers.iter().enumerate() {
            let woken = contain::sync(|| (controller.wake)(&self.cache, change, &mut keys));
            if let Err(panic) = woken {
                let (controller, key) = (controller.name, &change.key);
                tracing::error!(controller, %key, %panic, "a change woke nobody");
            }
            keys.drain(..).for_each(|key| self.enqueue((index, key)));
        }
    }

    fn enqueue(&mut self, job: Job) {
        if let Some(changed) = self.busy.get_mut(&job) {
            *changed = true;
            return;
        }
        if let Some(rest) = self.rests.get(&job) {
            let left = rest.until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return self.set_timer(&job, left);
            }
        }
        if self.queued.insert(job.clone()) {
            self.queue.push_back(job);
        }
    }

    fn can_plan(&self) -> bool {
        self.ready && !self.queue.is_empty() && self.busy.len() < PLANS_MAX
    }

    /// Plans for some of the queue.
    fn turn(&mut self) {
        for _ in 0..TURN_MAX {
            if !self.can_plan() {
                return;
            }
            let Some(job) = self.queue.pop_front() else { return };
            self.queued.remove(&job);
            self.plan(job);
        }
    }

    fn plan(&mut self, job: Job) {
        let begun = Instant::now();
        let view = View {
            cache: &self.cache,
            now: Timestamp::now(),
            instant: begun,
            config: &self.config,
            failure: self.failures.get(&job).and_then(|failure| failure.message.as_deref()),
        };
        let plan = contain::sync(|| (self.controllers[job.0].reconcile)(&view, &job.1));
        self.note_time(&job, begun.elapsed());
        self.due.remove(&job);
        let plan = match plan {
            Ok(plan) => plan,
            Err(panic) => return self.fail(job, &panic.into()),
        };
        if let Some(after) = plan.again {
            self.set_timer(&job, after);
        }
        if plan.writes.is_empty() {
            self.failures.remove(&job);
            return;
        }
        self.busy.insert(job.clone(), false);
        let writer = self.writer.clone();
        self.plans.spawn(async move {
            let writes = plan.writes.into_iter().map(|write| {
                let writer = writer.clone();
                async move {
                    let done = contain::future(writer.perform(write)).await;
                    done.unwrap_or_else(|panic| Err(panic.into()))
                }
            });
            let outcomes = stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
            (job, outcomes)
        });
    }

    /// Has a key rest that takes long to plan for.
    fn note_time(&mut self, job: &Job, took: Duration) {
        let before = self.rests.remove(job).map_or(Duration::ZERO, |rest| rest.took);
        if took >= PLAN_LONG {
            let until = Instant::now() + rest(before, took);
            self.rests.insert(job.clone(), Rest { took, until });
        }
    }

    fn finish(
        &mut self,
        done: Result<(Job, Vec<Result<Outcome, WriteError>>), tokio::task::JoinError>,
    ) {
        let (job, outcomes) = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let now = Instant::now();
        let mut changed = self.busy.remove(&job).unwrap_or(false);
        let mut failed = None;
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => {
                    let (change, new) = self.cache.take_in(outcome, now);
                    if let Some(change) = &change {
                        self.wake(change);
                    }
                    changed |= new;
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => self.fail(job, &error),
            None => {
                let failed_before = self.failures.remove(&job).is_some();
                if changed || failed_before {
                    self.enqueue(job);
                }
            }
        }
    }

    fn fail(&mut self, job: Job, error: &WriteError) {
        let pause = self.failures.entry(job.clone()).or_default().note(error);
        let controller = self.controllers[job.0].name;
        let key = &job.1;
        match error {
            WriteError::Stale(_) => {
                tracing::debug!(controller, %key, %error, "planned from an older state");
            }
            WriteError::Bug(_) => tracing::error!(controller, %key, %error, ?pause, "not done"),
            _ => tracing::warn!(controller, %key, %error, ?pause, "write failed"),
        }
        self.set_timer(&job, pause);
    }

    fn set_timer(&mut self, job: &Job, after: Duration) {
        let at = Instant::now() + after.min(LOOK_MAX);
        if self.due.get(job).is_some_and(|due| *due <= at) {
            return;
        }
        self.due.insert(job.clone(), at);
        self.timers.push(Reverse((at, job.clone())));
    }

    /// Queues every key whose time has come.
    fn fire(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, _))) = self.timers.peek() {
            if *at > now {
                return;
            }
            let Some(Reverse((at, job))) = self.timers.pop() else { return };
            if self.due.get(&job) == Some(&at) {
                self.due.remove(&job);
                self.enqueue(job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::super::events;
    use super::*;
    use crate::pki::Pki;

    fn reconcile(_: &View<'_>, key: &Key) -> Plan {
        assert_ne!(key.name(), "bad", "there is none like it");
        Plan { writes: Vec::new(), again: Some(LOOK_MAX) }
    }

    static ROWS: &[Controller] = &[Controller { name: "one", wake: |_, _, _| {}, reconcile }];

    #[tokio::test]
    async fn a_plan_that_panics_is_the_failure_of_one_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Arc::new(Pki::load_or_create(folder.path()).expect("authorities"));
        let config = Config {
            pki: pki.clone(),
            cluster_cidr: "10.0.0.0/8".to_string(),
            api_members: watch::channel(Vec::new()).1,
            watch_every: Duration::ZERO,
        };
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| {
            axum::Router::new().oneshot(request.map(axum::body::Body::new))
        });
        let client = kube::Client::new(service, "default");
        let (writer, _calls) = Writer::new(client, pki, events::recorder().0);
        let mut turns = Loop::new(Cache::new(), ROWS, config, writer);
        turns.ready = true;
        let [bad, good] = ["bad", "good"].map(|name| (0, Key::of::<Pod>("d", name)));
        turns.enqueue(bad.clone());
        turns.enqueue(good.clone());
        turns.turn();
        let told = turns.failures[&bad].message.as_deref().unwrap_or_default();
        assert!(told.contains("there is none like it"), "{told}");
        assert!(turns.due[&bad] < turns.due[&good], "it is tried again soon");
        assert!(!turns.failures.contains_key(&good));
    }

    #[test]
    fn who_takes_long_to_plan_for_leaves_time_for_others() {
        let millis = Duration::from_millis;
        let rest = |(before, took)| rest(millis(before), millis(took)).as_millis();
        let rests = [(0, 900), (20, 30), (30, 20), (900, 20), (900, 900)].map(rest);
        assert_eq!(rests, [0, 80, 80, 80, 1_000]);
    }

    #[test]
    fn an_older_view_is_no_failure_unless_it_lasts() {
        let stale = WriteError::Stale("the object has been modified".to_string());
        let refused = WriteError::Refused { code: 403, message: "quota is used up".to_string() };
        let mut failure = Failure::default();
        for number in 0..STALE_UNTOLD {
            assert_eq!(failure.note(&stale), STALE_PAUSE * (1_u32 << number));
            assert_eq!(failure.message, None);
        }
        failure.note(&stale);
        assert_eq!(failure.message.as_deref(), Some("the object has been modified"));

        let mut failure = Failure::default();
        assert_eq!(failure.note(&refused), REFUSED_PAUSE);
        assert_eq!(failure.message.as_deref(), Some("quota is used up"));
        failure.note(&stale);
        assert_eq!(failure.message.as_deref(), Some("quota is used up"), "it is still so");
        assert_eq!((0..40).map(|_| failure.note(&refused)).max(), Some(PAUSE_MAX));
    }
}
