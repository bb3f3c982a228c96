//! The loops that feed the plans, without tasks: what `reconcile` and the scheduler's `State` do,
//! one move at a time, so that chance can come between any two.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The place of a controller in the table of controllers and what it plans for.
pub type Job = (usize, Key);

/// A plan whose writes are under way.
#[derive(Default)]
pub struct Busy {
    pub left: Vec<Write>,
    pub done: Vec<Result<Outcome, String>>,
    pub changed: bool,
}

/// The reconcile loop without tasks: what waits, what is under way, what is known.
pub struct Leader {
    pub cache: Cache,
    pub seen: Vec<usize>,
    pub queue: BTreeSet<Job>,
    pub busy: BTreeMap<Job, Busy>,
    pub failures: BTreeMap<Job, String>,
    pub due: BTreeMap<Job, Instant>,
    controllers: Arc<[Controller]>,
}

impl Leader {
    pub fn new(api: &Api, order: &[usize], now: Instant, controllers: Arc<[Controller]>) -> Leader {
        let mut cache = Cache::new();
        WATCHED.iter().for_each(|watched| (watched.hold)(&mut cache));
        let seen = api.logs.iter().map(Vec::len).collect();
        let (queue, busy) = (BTreeSet::new(), BTreeMap::new());
        let (failures, due) = (BTreeMap::new(), BTreeMap::new());
        let mut leader = Leader { cache, seen, queue, busy, failures, due, controllers };
        for watched in order.iter().map(|index| &WATCHED[*index]) {
            leader.observe(watched.kind, Seen::Begin, now);
            for object in api.of(watched.kind) {
                leader.observe(watched.kind, Seen::Listed((watched.read)(object)), now);
            }
            leader.observe(watched.kind, Seen::End, now);
        }
        leader
    }

    pub fn observe(&mut self, kind: &'static Kind, seen: Seen, now: Instant) {
        for change in self.cache.observe(kind, seen, now) {
            self.wake(&change);
        }
    }

    pub fn wake(&mut self, change: &Change) {
        for (index, controller) in self.controllers.clone().iter().enumerate() {
            let mut keys = Vec::new();
            (controller.wake)(&self.cache, change, &mut keys);
            keys.into_iter().for_each(|key| self.enqueue((index, key)));
        }
    }

    pub fn enqueue(&mut self, job: Job) {
        match self.busy.get_mut(&job) {
            Some(busy) => busy.changed = true,
            None => _ = self.queue.insert(job),
        }
    }

    /// Takes in the next events of one kind.
    pub fn hear(&mut self, api: &Api, kind: usize, count: usize, now: Instant) {
        let from = self.seen[kind];
        let until = api.logs[kind].len().min(from.saturating_add(count));
        for (object, gone) in &api.logs[kind][from..until] {
            let object = object.clone();
            let seen = if *gone { Seen::Gone(object) } else { Seen::Put(object) };
            self.observe(WATCHED[kind].kind, seen, now);
        }
        self.seen[kind] = until;
    }

    pub fn reconcile(&self, job: &Job, clock: Clock) -> (Vec<Write>, Option<Duration>) {
        let view = View {
            cache: &self.cache,
            now: clock.now,
            instant: clock.instant,
            config: &CONFIG,
            failure: self.failures.get(job).map(String::as_str),
        };
        let plan = (self.controllers[job.0].reconcile)(&view, &job.1);
        (plan.writes, plan.again)
    }

    pub fn plan(&mut self, job: Job, clock: Clock) {
        let (writes, again) = self.reconcile(&job, clock);
        self.due.remove(&job);
        if let Some(after) = again {
            self.due.insert(job.clone(), clock.instant + after);
        }
        if writes.is_empty() {
            self.failures.remove(&job);
            return;
        }
        self.busy.insert(job, Busy { left: writes, ..Busy::default() });
    }

    /// Takes in how the writes of a plan ended.
    pub fn finish(&mut self, job: Job, busy: Busy, now: Instant) {
        let (mut changed, mut failed) = (busy.changed, None);
        for outcome in busy.done {
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
        if let Some(error) = failed {
            self.due.insert(job.clone(), now + Duration::from_millis(100));
            self.failures.insert(job, error);
        } else if self.failures.remove(&job).is_some() || changed {
            self.enqueue(job);
        }
    }

    /// Whether it knows what this object asks for, and has no plan for it under way.
    pub fn has_settled<T: Typed>(&self, key: &Key, object: &Brief) -> bool {
        let known = self.cache.get::<T>(key.namespace(), key.name());
        let known = known.is_some_and(|known| {
            let meta = known.metadata();
            meta.uid.as_deref() == Some(&*object.uid) && meta.generation == Some(object.generation)
        });
        known && !self.busy.keys().any(|(_, busy)| busy == key)
    }

    pub fn fire(&mut self, now: Instant) {
        let due = self.due.extract_if(.., |_, at| *at <= now);
        let jobs: Vec<Job> = due.map(|(job, _)| job).collect();
        jobs.into_iter().for_each(|job| self.enqueue(job));
    }
}

/// Kinds that the scheduler hears of.
pub const SCHEDULER_KINDS: usize = 6;

/// A decision on its way: a binding or, where claims wait, their node or, where others are in the
/// way, their end.
pub struct Order {
    pub need: Need,
    pub node: String,
    pub claims: Vec<String>,
    pub victims: Vec<Victim>,
}

/// The scheduler, with its writes kept until the simulation performs them.
#[derive(Default)]
pub struct Scheduler {
    pub desk: Desk,
    pub seen: [usize; SCHEDULER_KINDS],
    pub orders: Vec<Order>,
}

impl Scheduler {
    pub fn new(api: &Api) -> Scheduler {
        let mut scheduler = Scheduler::default();
        for kind in (0..SCHEDULER_KINDS).rev() {
            for object in api.of(WATCHED[kind].kind) {
                scheduler.take(&(WATCHED[kind].read)(object), false);
            }
            scheduler.seen[kind] = api.logs[kind].len();
        }
        scheduler
    }

    pub fn hear(&mut self, api: &Api, kind: usize, count: usize) {
        let until = api.logs[kind].len().min(self.seen[kind].saturating_add(count));
        for (object, gone) in &api.logs[kind][self.seen[kind]..until] {
            self.take(object, *gone);
        }
        self.seen[kind] = until;
    }

    fn take(&mut self, object: &Object, gone: bool) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let meta = object.meta();
        let (namespace, name) = (text(&meta.namespace), text(&meta.name));
        let cluster = &mut self.desk.cluster;
        if let Some(pod) = object.get::<Pod>() {
            match gone {
                false => self.desk.put_pod(pod),
                true => self.desk.remove_pod(&text(&meta.uid)),
            }
        } else if let Some(node) = object.get::<Node>() {
            match gone {
                false => cluster.put_node(node),
                true => cluster.remove_node(&name),
            }
        } else if let Some(claim) = object.get::<PersistentVolumeClaim>() {
            cluster.put_volumes(|volumes| match gone {
                false => volumes.put_claim(claim),
                true => volumes.remove_claim(&namespace, &name),
            });
        } else if let Some(volume) = object.get::<PersistentVolume>() {
            cluster.put_volumes(|volumes| match gone {
                false => volumes.put_volume(volume),
                true => volumes.remove_volume(&name),
            });
        } else if let Some(class) = object.get::<StorageClass>() {
            cluster.put_volumes(|volumes| match gone {
                false => volumes.put_class(class),
                true => volumes.remove_class(&name),
            });
        } else if let Some(budget) = object.get::<PodDisruptionBudget>() {
            match gone {
                false => cluster.put_budget(budget),
                true => cluster.remove_budget(&namespace, &name),
            }
        }
    }

    pub fn schedule(&mut self, count: usize, now: Instant) {
        self.desk.look_again(now);
        for (need, decision) in self.desk.decide(count) {
            let (node, claims, victims) = match decision {
                Decision::Bind { node } => (node, Vec::new(), Vec::new()),
                Decision::Provision { node, claims } => {
                    self.desk.queue.stick(need.clone());
                    (node, claims, Vec::new())
                }
                Decision::Unschedulable { .. } | Decision::Wait { .. } => {
                    self.desk.stick(need, now);
                    continue;
                }
                Decision::Preempt { node, victims, .. } => {
                    self.less_important(&need, &victims);
                    self.desk.stick(need.clone(), now);
                    (node, Vec::new(), victims)
                }
            };
            self.orders.push(Order { need, node, claims, victims });
        }
    }

    /// Who makes room matters less than who gets it.
    fn less_important(&self, need: &Need, victims: &[Victim]) {
        for victim in victims {
            let placed = self.desk.cluster.placed(&victim.uid).expect("victims have a node");
            let (theirs, own) = (placed.need.priority, need.priority);
            assert!(theirs < own, "{} of {theirs} goes for {} of {own}", victim.name, need.name);
        }
    }
}
