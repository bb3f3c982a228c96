//! The seeded simulation of the pure parts: the controllers' plans over their real cache, and the
//! scheduler's decisions, against a model of the API server.
//!
//! Words: the *leader* stands for the loop that runs the controllers; a *view* is what it or the
//! scheduler has been told so far, kind by kind, each kind late by its own chance; a *write* waits
//! under way until chance performs it. A *crash* performs some of the writes under way, nobody sees
//! how they ended, and the next leader begins with a fresh list.
//!
//! ```text
//!  user, kubelets, nodes that die ─► Api ─► log of events ─(late)─► views ─► plans ─► writes ─► Api
//! ```
//!
//! Checked after every write:
//! - the sizes of a Deployment's ReplicaSets add up to at most replicas + maxSurge, and a ReplicaSet
//!   has at most as many active Pods as it asks for. After a scale-down the earlier number counts
//!   until the leader has seen the new one and has nothing under way. (Pods of all ReplicaSets of a
//!   Deployment together may be more: maxSurge counts sizes, in Kubernetes too.)
//! - a Pod that is bound stays where it is, and no node has more Pods or CPU bound to it than it
//!   offers: a late view only ever shows a node fuller than it is;
//! - nothing is collected as garbage whose owner is there and is not being deleted.
//!
//! Then faults stop, and within [`QUIET_STEPS_MAX`] everything is as the user asked, and planning
//! once more for everything asks for no write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use wherry_control_plane::controllers::cache::{
    Cache, Change, Key, LEASE_NAMESPACE, Object, Seen, Typed, kind_row,
};
use wherry_control_plane::controllers::reconcile::{Controller, View};
use wherry_control_plane::controllers::write::{Action, Outcome, Target, Write};
use wherry_control_plane::controllers::{
    Config, deployment, endpoints, garbage, node, pods, replicaset,
};
use wherry_control_plane::pki::Pki;
use wherry_control_plane::scheduler::cluster::Cluster;
use wherry_control_plane::scheduler::decide::{Decision, decide};
use wherry_control_plane::scheduler::need::{Need, is_pending};
use wherry_control_plane::scheduler::queue::Queue;
use wherry_resources::Kind;

/// Seeds of an ordinary run.
const RUNS: u64 = 20;
/// Steps with faults, and those in which everything has to settle without.
const STEPS: usize = 300;
const QUIET_STEPS_MAX: usize = 200;
const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];
/// What each node offers, and what each Pod asks for.
const NODE_PODS: usize = 7;
const NODE_CPU_MILLIS: usize = 2_000;
const POD_CPU_MILLIS: usize = 300;
const DEPLOYMENTS: [&str; 3] = ["a", "b", "c"];
const NAMESPACE: &str = "d";
const FOREGROUND: &str = "foregroundDeletion";

static CONTROLLERS: [Controller; 5] = [
    node::CONTROLLER,
    deployment::CONTROLLER,
    replicaset::CONTROLLER,
    endpoints::CONTROLLER,
    garbage::CONTROLLER,
];

/// A kind of the model: its row, its shelf in a cache, and how its JSON is read.
struct Watched {
    kind: &'static Kind,
    hold: fn(&mut Cache),
    read: fn(&Value) -> Object,
}

fn watched<T: Typed>() -> Watched {
    let read = |value: &Value| Object::new(typed::<T>(value));
    Watched { kind: kind_row::<T>(), hold: Cache::hold::<T>, read }
}

static WATCHED: LazyLock<[Watched; 8]> = LazyLock::new(|| {
    [
        watched::<Pod>(),
        watched::<Node>(),
        watched::<ReplicaSet>(),
        watched::<Deployment>(),
        watched::<Lease>(),
        watched::<Service>(),
        watched::<EndpointSlice>(),
        watched::<Endpoints>(),
    ]
});

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for keys");
    let pki = Pki::load_or_create(folder.path()).expect("new authorities");
    let api_address = "127.0.0.1:6443".parse().expect("an address");
    Config { pki: Arc::new(pki), cluster_cidr: "10.0.0.0/8".to_string(), api_address }
});

fn typed<T: Typed>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("an object of this kind")
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

fn owner(object: &Value) -> &str {
    text(object, "/metadata/ownerReferences/0/uid")
}

fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn is_finished(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Failed"
}

fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// A JSON merge patch (RFC 7396).
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let fields = into.as_object_mut().expect("made an object above");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// The model of the API server: objects, one revision for all, and what watches say of each kind.
struct Api {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    /// Events by kind, in the order of [`WATCHED`]; `true` with those that say that it is gone.
    logs: Vec<Vec<(Value, bool)>>,
    now: Timestamp,
}

impl Api {
    fn all<T: Typed>(&self) -> impl Iterator<Item = &Value> {
        self.of(kind_row::<T>())
    }

    fn of(&self, kind: &'static Kind) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |(key, _)| std::ptr::eq(key.kind, kind))
            .map(|(_, object)| object)
    }

    fn find(&self, target: &Target) -> Result<&Value, String> {
        let object = self.objects.get(&target.key).ok_or("not found")?;
        let same = |wanted: &str, path| wanted.is_empty() || wanted == text(object, path);
        if !same(&target.uid, "/metadata/uid") {
            return Err("another object has this name".to_string());
        }
        if !same(&target.revision, "/metadata/resourceVersion") {
            return Err("the object has been modified".to_string());
        }
        Ok(object)
    }

    /// Commits a state of an object; one that is deleted and has no finalizers left goes.
    fn commit(&mut self, key: &Key, mut object: Value, gone: bool) -> Outcome {
        let held = self.objects.get(key);
        if let Some(held) = held {
            let node = text(held, "/spec/nodeName");
            assert!(node.is_empty() || node == text(&object, "/spec/nodeName"), "{key} moved");
            if *held == object && !gone {
                return Outcome::Object { kind: key.kind, object };
            }
            if held["spec"] != object["spec"] {
                let generation = number(held, "/metadata/generation") + 1;
                object["metadata"]["generation"] = generation.into();
            }
        }
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        let gone = gone || (is_deleting(&object) && finalizers == 0 && key.kind.kind != "Pod");
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let log = WATCHED.iter().position(|watched| std::ptr::eq(watched.kind, key.kind));
        self.logs[log.expect("a kind of the model")].push((object.clone(), gone));
        if gone {
            self.objects.remove(key);
            return Outcome::Removed { key: key.clone(), uid: uid(&object).to_string() };
        }
        self.objects.insert(key.clone(), object.clone());
        Outcome::Object { kind: key.kind, object }
    }

    fn create(&mut self, key: &Key, mut object: Value) -> Result<Outcome, String> {
        if self.objects.contains_key(key) {
            return Err(format!("{key} already exists"));
        }
        object["apiVersion"] = key.kind.api_version().into();
        object["kind"] = key.kind.kind.into();
        let meta = &mut object["metadata"];
        meta["name"] = key.name().into();
        if key.kind.namespaced {
            meta["namespace"] = key.namespace().into();
        }
        meta["uid"] = format!("uid-{}", self.revision + 1).into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = json!(self.now);
        if key.kind.kind == "Pod" {
            object["status"] = json!({"phase": "Pending"});
        }
        Ok(self.commit(key, object, false))
    }

    fn patch(&mut self, target: &Target, body: &Value) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        merge(&mut object, body);
        Ok(self.commit(&target.key, object, false))
    }

    fn delete(
        &mut self,
        target: &Target,
        grace_seconds: Option<i64>,
        policy: Option<&str>,
    ) -> Result<Outcome, String> {
        let mut object = self.find(target)?.clone();
        let is_pod = target.key.kind.kind == "Pod";
        let bound = !text(&object, "/spec/nodeName").is_empty();
        if is_pod && (grace_seconds == Some(0) || !bound) {
            return Ok(self.commit(&target.key, object, true));
        }
        if !is_deleting(&object) {
            object["metadata"]["deletionTimestamp"] = json!(self.now);
            if policy == Some("Foreground") && !is_pod {
                object["metadata"]["finalizers"] = json!([FOREGROUND]);
            }
        }
        Ok(self.commit(&target.key, object, false))
    }

    fn perform(&mut self, write: &Write) -> Result<Outcome, String> {
        let found = |(key, uid): &(Key, String)| {
            let target = Target { key: key.clone(), uid: uid.clone(), revision: String::new() };
            self.find(&target).is_ok()
        };
        if write.unless_found.iter().any(found) {
            return Ok(Outcome::Nothing);
        }
        match &write.action {
            Action::Create { kind, namespace, object } => {
                let key = Key::new(kind, namespace, text(object, "/metadata/name"));
                self.create(&key, object.clone())
            }
            Action::Patch { target, body, .. } => self.patch(target, body),
            Action::Delete { target, grace_seconds, policy } => {
                self.delete(target, *grace_seconds, *policy)
            }
            Action::Tell => Ok(Outcome::Nothing),
            other => panic!("no controller of the simulation asks for {other:?}"),
        }
    }

    fn bind(&mut self, need: &Need, node: &str) -> Result<Outcome, String> {
        let key = Key::of::<Pod>(&need.namespace, &need.name);
        let target = Target { key, uid: need.uid.clone(), revision: String::new() };
        let pod = self.find(&target)?;
        if is_deleting(pod) || !text(pod, "/spec/nodeName").is_empty() {
            return Err("the Pod is bound or on its way out".to_string());
        }
        self.patch(&target, &json!({"spec": {"nodeName": node}}))
    }
}

/// The place of a controller in [`CONTROLLERS`] and what it plans for.
type Job = (usize, Key);

/// A plan whose writes are under way.
#[derive(Default)]
struct Busy {
    left: Vec<Write>,
    done: Vec<Result<Outcome, String>>,
    changed: bool,
}

/// The reconcile loop without tasks: what waits, what is under way, what is known.
struct Leader {
    cache: Cache,
    seen: Vec<usize>,
    queue: BTreeSet<Job>,
    busy: BTreeMap<Job, Busy>,
    failures: BTreeMap<Job, String>,
    due: BTreeMap<Job, Instant>,
}

impl Leader {
    fn new(api: &Api, order: &[usize], now: Instant) -> Leader {
        let mut cache = Cache::new();
        WATCHED.iter().for_each(|watched| (watched.hold)(&mut cache));
        let seen = api.logs.iter().map(Vec::len).collect();
        let (queue, busy) = (BTreeSet::new(), BTreeMap::new());
        let (failures, due) = (BTreeMap::new(), BTreeMap::new());
        let mut leader = Leader { cache, seen, queue, busy, failures, due };
        for watched in order.iter().map(|index| &WATCHED[*index]) {
            leader.observe(watched.kind, Seen::Begin, now);
            for object in api.of(watched.kind) {
                leader.observe(watched.kind, Seen::Listed((watched.read)(object)), now);
            }
            leader.observe(watched.kind, Seen::End, now);
        }
        leader
    }

    fn observe(&mut self, kind: &'static Kind, seen: Seen, now: Instant) {
        for change in self.cache.observe(kind, seen, now) {
            self.wake(&change);
        }
    }

    fn wake(&mut self, change: &Change) {
        for (index, controller) in CONTROLLERS.iter().enumerate() {
            let mut keys = Vec::new();
            (controller.wake)(&self.cache, change, &mut keys);
            keys.into_iter().for_each(|key| self.enqueue((index, key)));
        }
    }

    fn enqueue(&mut self, job: Job) {
        match self.busy.get_mut(&job) {
            Some(busy) => busy.changed = true,
            None => _ = self.queue.insert(job),
        }
    }

    /// Takes in the next events of one kind.
    fn hear(&mut self, api: &Api, kind: usize, count: usize, now: Instant) {
        let from = self.seen[kind];
        let until = api.logs[kind].len().min(from.saturating_add(count));
        for (object, gone) in &api.logs[kind][from..until] {
            let object = (WATCHED[kind].read)(object);
            let seen = if *gone { Seen::Gone(object) } else { Seen::Put(object) };
            self.observe(WATCHED[kind].kind, seen, now);
        }
        self.seen[kind] = until;
    }

    fn reconcile(&self, job: &Job, clock: Clock) -> (Vec<Write>, Option<Duration>) {
        let view = View {
            cache: &self.cache,
            now: clock.now,
            instant: clock.instant,
            config: &CONFIG,
            failure: self.failures.get(job).map(String::as_str),
        };
        let plan = (CONTROLLERS[job.0].reconcile)(&view, &job.1);
        (plan.writes, plan.again)
    }

    fn plan(&mut self, job: Job, clock: Clock) {
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
    fn finish(&mut self, job: Job, busy: Busy, now: Instant) {
        let (mut changed, mut failed) = (busy.changed, None);
        for outcome in busy.done {
            let change = match outcome {
                Ok(Outcome::Object { kind, object }) => self.cache.wrote(kind, object, now),
                Ok(Outcome::Removed { key, uid }) => self.cache.removed(&key, &uid),
                Ok(Outcome::Nothing) => None,
                Err(error) => {
                    failed = Some(error);
                    None
                }
            };
            if let Some(change) = change {
                self.wake(&change);
                changed = true;
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
    fn has_settled<T: Typed>(&self, key: &Key, object: &Value) -> bool {
        let known = self.cache.get::<T>(key.namespace(), key.name());
        let known = known.is_some_and(|known| {
            let meta = known.metadata();
            meta.uid.as_deref() == Some(uid(object))
                && meta.generation == Some(number(object, "/metadata/generation"))
        });
        known && !self.busy.keys().any(|(_, busy)| busy == key)
    }

    fn fire(&mut self, now: Instant) {
        let due = self.due.extract_if(.., |_, at| *at <= now);
        let jobs: Vec<Job> = due.map(|(job, _)| job).collect();
        jobs.into_iter().for_each(|job| self.enqueue(job));
    }
}

/// The scheduler's loop without tasks.
#[derive(Default)]
struct Scheduler {
    cluster: Cluster,
    queue: Queue,
    room: u64,
    seen: [usize; 2],
    bindings: Vec<(Need, String)>,
}

impl Scheduler {
    fn new(api: &Api) -> Scheduler {
        let mut scheduler = Scheduler::default();
        api.all::<Pod>().for_each(|pod| scheduler.put_pod(&typed(pod)));
        api.all::<Node>().for_each(|node| scheduler.cluster.put_node(&typed(node)));
        scheduler.seen = [api.logs[0].len(), api.logs[1].len()];
        scheduler
    }

    fn put_pod(&mut self, pod: &Pod) {
        let need = Need::read(pod);
        if is_pending(pod) {
            if !self.cluster.is_assumed(&need.uid) {
                self.queue.put(need);
            }
            return;
        }
        self.queue.remove(&need.uid);
        if pods::is_finished(pod) {
            self.cluster.remove(&need.uid);
        } else if !pods::node(pod).is_empty() {
            self.cluster.place(&need, pods::node(pod));
        }
    }

    fn hear(&mut self, api: &Api, kind: usize, count: usize) {
        let until = api.logs[kind].len().min(self.seen[kind].saturating_add(count));
        for (object, gone) in &api.logs[kind][self.seen[kind]..until] {
            match (kind, *gone) {
                (0, false) => self.put_pod(&typed(object)),
                (0, true) => {
                    self.queue.remove(uid(object));
                    self.cluster.remove(uid(object));
                }
                (_, false) => self.cluster.put_node(&typed(object)),
                (_, true) => self.cluster.remove_node(text(object, "/metadata/name")),
            }
        }
        self.seen[kind] = until;
    }

    fn schedule(&mut self, count: usize) {
        if self.cluster.room() != self.room {
            self.room = self.cluster.room();
            self.queue.retry();
        }
        let needs = self.queue.take(count);
        let decisions = decide(&mut self.cluster, &needs);
        for (need, decision) in needs.into_iter().zip(decisions) {
            match decision {
                Decision::Bind { node } => self.bindings.push((need, node)),
                Decision::Unschedulable { .. } => self.queue.stick(need),
            }
        }
    }

    fn failed(&mut self, need: Need) {
        if self.cluster.is_assumed(&need.uid) {
            self.cluster.forget(&need.uid);
            self.queue.put(need);
        }
    }
}

/// The time of a step, as objects and as this process know it.
#[derive(Clone, Copy)]
struct Clock {
    now: Timestamp,
    instant: Instant,
}

/// A cluster in a box.
struct Sim {
    seed: u64,
    shows: bool,
    rng: StdRng,
    step: usize,
    clock: Clock,
    api: Api,
    leader: Leader,
    scheduler: Scheduler,
    /// Which nodes are alive.
    alive: BTreeMap<&'static str, bool>,
    /// The most that each Deployment or ReplicaSet (by uid) may have at the moment.
    most: BTreeMap<String, i64>,
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, step) = (self.seed, self.step);
            eprintln!("the simulation failed in step {step}; again: make sim SEED={seed}");
        }
    }
}

impl Sim {
    fn new(seed: u64, shows: bool) -> Sim {
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let clock = Clock { now, instant: Instant::now() };
        let logs = WATCHED.iter().map(|_| Vec::new()).collect();
        let mut api = Api { objects: BTreeMap::new(), revision: 0, logs, now };
        let service = json!({"spec": {
            "clusterIP": "10.96.0.9",
            "selector": {"tier": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
        }});
        let key = Key::of::<Service>(NAMESPACE, "web");
        api.create(&key, service).expect("the first object");
        let leader = Leader::new(&api, &[], clock.instant);
        let scheduler = Scheduler::new(&api);
        let alive = NODES.iter().map(|name| (*name, true)).collect();
        let rng = StdRng::seed_from_u64(seed);
        let (step, most) = (0, BTreeMap::new());
        let mut sim = Sim { seed, shows, rng, step, clock, api, leader, scheduler, alive, most };
        sim.new_leader();
        sim
    }

    fn show(&self, line: impl FnOnce() -> String) {
        if self.shows {
            println!("{:4} {}", self.step, line());
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn pass(&mut self, millis: u64) {
        self.step += 1;
        let (signed, plain) = (SignedDuration::from_millis, Duration::from_millis);
        self.clock.now += signed(i64::try_from(millis).expect("a step is short"));
        self.clock.instant += plain(millis);
        self.api.now = self.clock.now;
    }

    fn new_leader(&mut self) {
        let mut order: Vec<usize> = (0..WATCHED.len()).collect();
        order.shuffle(&mut self.rng);
        self.leader = Leader::new(&self.api, &order, self.clock.instant);
    }

    fn step_with_faults(&mut self) {
        let millis = self.rng.random_range(50..800);
        self.pass(millis);
        if self.chance(20) {
            self.user();
        }
        if self.chance(4) {
            self.toggle_node();
        }
        self.kubelets(40);
        for kind in 0..WATCHED.len() {
            let (few, more) = (self.rng.random_range(0..6), self.rng.random_range(0..6));
            self.leader.hear(&self.api, kind, few, self.clock.instant);
            if kind < self.scheduler.seen.len() {
                self.scheduler.hear(&self.api, kind, more);
            }
        }
        let turns = self.rng.random_range(0..30);
        for _ in 0..turns {
            match self.rng.random_range(0..8) {
                0 | 1 => self.plan_one(),
                2 => self.scheduler.schedule(1),
                3 => self.bind_one(),
                _ => self.write_one(),
            }
        }
        if self.chance(3) {
            self.crash();
        }
    }

    /// Everyone hears everything and does all there is to do.
    fn step_without_faults(&mut self) {
        self.pass(1_000);
        self.kubelets(100);
        for kind in 0..WATCHED.len() {
            self.leader.hear(&self.api, kind, usize::MAX, self.clock.instant);
        }
        (0..2).for_each(|kind| self.scheduler.hear(&self.api, kind, usize::MAX));
        self.leader.fire(self.clock.instant);
        let waiting = self.leader.queue.len();
        (0..waiting).for_each(|_| self.plan_one());
        while !self.leader.busy.is_empty() {
            self.write_one();
        }
        self.scheduler.schedule(usize::MAX);
        while !self.scheduler.bindings.is_empty() {
            self.bind_one();
        }
    }

    fn plan_one(&mut self) {
        self.leader.fire(self.clock.instant);
        if self.leader.queue.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.leader.queue.len());
        let job = self.leader.queue.iter().nth(at).expect("within the queue").clone();
        self.leader.queue.remove(&job);
        self.leader.plan(job, self.clock);
    }

    /// Performs one write under way; the last of a plan tells the leader of all.
    fn write_one(&mut self) {
        if self.leader.busy.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.leader.busy.len());
        let job = self.leader.busy.keys().nth(at).expect("one of them").clone();
        let busy = self.leader.busy.get_mut(&job).expect("found above");
        let which = self.rng.random_range(0..busy.left.len());
        let write = busy.left.swap_remove(which);
        let outcome = self.perform(&job, &write);
        let busy = self.leader.busy.get_mut(&job).expect("still under way");
        busy.done.push(outcome);
        if busy.left.is_empty() {
            let busy = self.leader.busy.remove(&job).expect("still under way");
            self.leader.finish(job, busy, self.clock.instant);
        }
        self.check();
    }

    fn perform(&mut self, job: &Job, write: &Write) -> Result<Outcome, String> {
        if let (Action::Delete { target, .. }, "garbage") = (&write.action, CONTROLLERS[job.0].name)
            && let Ok(object) = self.api.find(target)
        {
            let owner = self.api.objects.values().find(|other| uid(other) == owner(object));
            let lives = owner.is_some_and(|owner| !is_deleting(owner));
            assert!(!lives, "{} is collected although its owner is there", target.key);
        }
        let outcome = self.api.perform(write);
        self.show(|| match &outcome {
            Ok(_) => format!("{}: {write}", CONTROLLERS[job.0].name),
            Err(error) => format!("{}: {write}: {error}", CONTROLLERS[job.0].name),
        });
        outcome
    }

    fn bind_one(&mut self) {
        if self.scheduler.bindings.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.scheduler.bindings.len());
        let (need, node) = self.scheduler.bindings.swap_remove(at);
        let outcome = self.api.bind(&need, &node);
        self.show(|| format!("bind {} to {node}: {:?}", need.name, outcome.as_ref().err()));
        if outcome.is_err() {
            self.scheduler.failed(need);
        }
        self.check();
    }

    /// The member that leads dies: some of what was under way happens, and nobody hears of it.
    fn crash(&mut self) {
        self.show(|| "crash".to_string());
        for (job, busy) in std::mem::take(&mut self.leader.busy) {
            for write in busy.left {
                if self.chance(50) {
                    _ = self.perform(&job, &write);
                    self.check();
                }
            }
        }
        for (need, node) in std::mem::take(&mut self.scheduler.bindings) {
            if self.chance(50) {
                _ = self.api.bind(&need, &node);
                self.check();
            }
        }
        self.new_leader();
        self.scheduler = Scheduler::new(&self.api);
    }

    fn user(&mut self) {
        let name = DEPLOYMENTS[self.rng.random_range(0..DEPLOYMENTS.len())];
        let key = Key::of::<Deployment>(NAMESPACE, name);
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        let (replicas, image) = (self.rng.random_range(0..=6), self.rng.random_range(1..=4));
        let image = format!("hello:{image}");
        if !self.api.objects.contains_key(&key) {
            let mut object = new_deployment(name, replicas, &image);
            let (surge, unavailable) = (self.rng.random_range(0..3), self.rng.random_range(0..2));
            let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
            object["spec"]["strategy"] = match self.chance(25) {
                true => json!({"type": "Recreate"}),
                false => json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
            };
            self.show(|| format!("user creates {name}: {replicas} of {image}"));
            self.api.create(&key, object).expect("nobody has this name");
            self.check();
            return;
        }
        let done = match self.rng.random_range(0..10) {
            0..4 => {
                self.show(|| format!("user scales {name} to {replicas}"));
                self.api.patch(&target, &json!({"spec": {"replicas": replicas}}))
            }
            4..9 => {
                self.show(|| format!("user updates {name} to {image}"));
                let containers = new_deployment(name, 0, &image);
                let template = json!({"spec": {"template": containers["spec"]["template"]}});
                self.api.patch(&target, &template)
            }
            _ => {
                let policy = if self.chance(30) { "Foreground" } else { "Background" };
                self.show(|| format!("user deletes {name}, {policy}"));
                self.api.delete(&target, None, Some(policy))
            }
        };
        done.expect("users name no revision");
        self.check();
    }

    /// A node dies, and its object may be deleted; or it comes back.
    fn toggle_node(&mut self) {
        let name = NODES[self.rng.random_range(0..NODES.len())];
        let alive = !self.alive[name];
        self.alive.insert(name, alive);
        self.show(|| format!("{name} is alive: {alive}"));
        if !alive && self.chance(30) {
            let key = Key::of::<Node>("", name);
            let target = Target { key, uid: String::new(), revision: String::new() };
            _ = self.api.delete(&target, None, None);
        }
    }

    /// What the nodes that are alive do: say so, start Pods, end Pods; each with this chance.
    fn kubelets(&mut self, percent: u32) {
        for name in NODES.into_iter().filter(|name| self.alive[name]).collect::<Vec<_>>() {
            self.say_alive(name);
            let on_node = |(key, pod): (&Key, &Value)| {
                (key.kind.kind == "Pod" && text(pod, "/spec/nodeName") == name)
                    .then(|| (key.clone(), pod.clone()))
            };
            let bound: Vec<(Key, Value)> = self.api.objects.iter().filter_map(on_node).collect();
            for (key, pod) in bound {
                if !self.chance(percent) {
                    continue;
                }
                let target = Target { key, uid: String::new(), revision: String::new() };
                let fails = percent < 100 && self.chance(2);
                let _ = match (is_deleting(&pod), text(&pod, "/status/phase")) {
                    (true, _) => self.api.delete(&target, Some(0), None),
                    (_, "Pending") => self.api.patch(&target, &running(&pod, self.clock.now)),
                    (_, "Running") if fails => self.api.patch(&target, &failed(self.clock.now)),
                    _ => continue,
                };
                self.check();
            }
        }
    }

    fn say_alive(&mut self, name: &str) {
        let key = Key::of::<Node>("", name);
        if !self.api.objects.contains_key(&key) {
            let cpu = format!("{NODE_CPU_MILLIS}m");
            let status = json!({
                "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": NODE_PODS.to_string()},
                "conditions": [{"type": "Ready", "status": "True", "reason": "NodeReady"}],
            });
            let created = self.api.create(&key, json!({"status": status}));
            created.expect("the node registers itself");
        }
        let key = Key::of::<Lease>(LEASE_NAMESPACE, name);
        let lease = json!({"spec": {"holderIdentity": self.clock.now.to_string()}});
        let target = Target { key, uid: String::new(), revision: String::new() };
        if self.api.patch(&target, &lease).is_err() {
            self.api.create(&target.key, lease).expect("it was not there");
        }
    }

    fn check(&mut self) {
        let mut bound: BTreeMap<&str, usize> = BTreeMap::new();
        let mut active: BTreeMap<&str, i64> = BTreeMap::new();
        for pod in self.api.all::<Pod>() {
            let node = text(pod, "/spec/nodeName");
            *bound.entry(node).or_default() += usize::from(!node.is_empty() && !is_finished(pod));
            *active.entry(owner(pod)).or_default() += i64::from(is_active(pod));
        }
        for (node, count) in bound {
            assert!(count <= NODE_PODS, "{count} Pods are bound to {node}");
            assert!(count * POD_CPU_MILLIS <= NODE_CPU_MILLIS, "{node} has not so much CPU");
        }
        let mut sizes: BTreeMap<&str, i64> = BTreeMap::new();
        for (key, set) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "ReplicaSet") {
            let asked = number(set, "/spec/replicas");
            *sizes.entry(owner(set)).or_default() += asked;
            let has = active.get(uid(set)).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<ReplicaSet>(key, set);
            bounded(&mut self.most, key, set, (has, asked), settled);
        }
        for (key, found) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "Deployment")
        {
            let surge = number(found, "/spec/strategy/rollingUpdate/maxSurge");
            // Without any leave the controller takes one Pod away, never one more.
            let asked = number(found, "/spec/replicas") + surge;
            let has = sizes.get(uid(found)).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<Deployment>(key, found);
            bounded(&mut self.most, key, found, (has, asked), settled);
        }
    }

    /// What is not yet as the user asked; empty when all is.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let all = |kind: &'static Kind| self.api.of(kind);
        let lives = |wanted: &str| self.api.objects.values().any(|object| uid(object) == wanted);
        for (key, object) in &self.api.objects {
            if matches!(key.kind.kind, "Pod" | "ReplicaSet") && !lives(owner(object)) {
                missing.push(format!("{key} has no owner"));
            }
            if is_deleting(object) {
                missing.push(format!("{key} is being deleted"));
            }
        }
        for pod in all(kind_row::<Pod>()).filter(|pod| !is_finished(pod)) {
            if !pods::is_ready(&typed(pod)) {
                missing.push(format!("Pod {} is not ready", text(pod, "/metadata/name")));
            }
        }
        for (key, found) in self.api.objects.iter().filter(|(key, _)| key.kind.kind == "Deployment")
        {
            let sets = all(kind_row::<ReplicaSet>()).filter(|set| owner(set) == uid(found));
            let current: Vec<&Value> =
                sets.filter(|set| number(set, "/spec/replicas") > 0).collect();
            let image = "/spec/template/spec/containers/0/image";
            let outdated = current.iter().any(|set| text(set, image) != text(found, image));
            let has = |set: &&Value| {
                let pods = all(kind_row::<Pod>()).filter(|pod| owner(pod) == uid(set));
                pods.filter(|pod| is_active(pod)).count()
            };
            let has = i64::try_from(current.iter().map(has).sum::<usize>()).expect("few");
            let wanted = number(found, "/spec/replicas");
            if current.len() > 1 || outdated || has != wanted {
                missing.push(format!("{key} has {has} of {wanted}, in {} sets", current.len()));
            }
            if number(found, "/status/availableReplicas") != wanted {
                missing.push(format!("{key} does not say that it is available"));
            }
        }
        missing
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step_with_faults();
        }
        self.alive.values_mut().for_each(|alive| *alive = true);
        self.show(|| "faults stop".to_string());
        let last = self.step + QUIET_STEPS_MAX;
        let mut still = false;
        while !still || !self.missing().is_empty() {
            let missing = self.missing();
            assert!(self.step < last, "it does not settle: {missing:#?}");
            let before = self.api.revision;
            self.step_without_faults();
            // Nothing but the nodes' leases changed.
            still = self.api.revision - before == NODES.len() as u64;
        }
        for job in self.all_jobs() {
            let (writes, _) = self.leader.reconcile(&job, self.clock);
            let name = CONTROLLERS[job.0].name;
            assert!(writes.is_empty(), "{name} still wants {} of {}", writes[0], job.1);
        }
    }

    fn all_jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for key in self.api.objects.keys() {
            let own = match key.kind.kind {
                "Node" => Some(0),
                "Deployment" => Some(1),
                "ReplicaSet" => Some(2),
                "Service" => Some(3),
                _ => None,
            };
            jobs.extend(own.into_iter().chain([4]).map(|index| (index, key.clone())));
        }
        jobs
    }
}

/// Holds a count against what may be there: what is asked for now or, until things have settled,
/// has been asked for since they were.
fn bounded(
    most: &mut BTreeMap<String, i64>,
    key: &Key,
    object: &Value,
    (has, asked): (i64, i64),
    settled: bool,
) {
    let most = most.entry(uid(object).to_string()).or_insert(asked);
    *most = asked.max(*most);
    if settled && has <= asked {
        *most = asked;
    }
    assert!(has <= *most, "{key} has {has} where {most} are allowed");
}

fn new_deployment(name: &str, replicas: i64, image: &str) -> Value {
    let labels = json!({"app": name, "tier": "web"});
    let requests = json!({"cpu": format!("{POD_CPU_MILLIS}m")});
    let toleration = |what: &str| {
        let key = format!("node.kubernetes.io/{what}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 4})
    };
    json!({"spec": {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": 600,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [{"name": "c", "image": image, "resources": {"requests": requests}}],
            "tolerations": [toleration("not-ready"), toleration("unreachable")],
        }},
    }})
}

/// What a node says of a Pod that runs.
fn running(pod: &Value, now: Timestamp) -> Value {
    let address: String = text(pod, "/metadata/uid").trim_start_matches("uid-").to_string();
    let number: u32 = address.parse().expect("uids are numbers");
    let status = json!({
        "phase": "Running",
        "podIP": std::net::Ipv4Addr::from(0x0A00_0000 + number).to_string(),
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [{
            "name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "",
        }],
    });
    json!({"status": status})
}

fn failed(now: Timestamp) -> Value {
    let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
    json!({"status": {"phase": "Failed", "conditions": [ready]}})
}

#[test]
fn everything_settles_after_any_faults() {
    let read = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    if let Some(seed) = read("WHERRY_SIM_SEED") {
        Sim::new(seed, true).run();
        return;
    }
    for seed in 0..read("WHERRY_SIM_RUNS").unwrap_or(RUNS) {
        Sim::new(seed, false).run();
    }
}
