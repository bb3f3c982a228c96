//! The seeded simulation of the pure parts: the controllers' plans over their real cache, and the
//! scheduler's decisions, against a model of the API server.
//!
//! Words: the *leader* stands for the loop that runs the controllers; a *view* is what it or the
//! scheduler has been told so far, kind by kind, each kind late by its own chance; a *write* waits
//! under way until chance performs it. A *crash* performs some of the writes under way, nobody sees
//! how they ended, and the next leader begins with a fresh list.
//!
//! ```text
//!  user, kubelets, nodes that die ─► Api ─► events ─(late)─► views ─► plans ─► writes ─► Api
//! ```
//!
//! Checked after every write:
//! - the sizes of a Deployment's ReplicaSets add up to at most replicas + maxSurge, and a set
//!   has at most as many active Pods as it asks for. After a scale-down the earlier number counts
//!   until the leader has seen the new one and has nothing under way. (Pods of all ReplicaSets of a
//!   Deployment together may be more: maxSurge counts sizes, in Kubernetes too.) And no step of a
//!   rollout takes Pods away without which, as its leader knows them, fewer work than maxUnavailable
//!   lets;
//! - an identity of a StatefulSet runs on one node at a time, whether that node is heard or not (a
//!   Node object that is deleted says that the machine is gone);
//! - a node runs one Pod of a DaemonSet, two of one that surges;
//! - a Pod with a volume of a node is bound to that node and no other;
//! - a Pod that is bound stays where it is, and no node has more Pods or CPU bound to it than it
//!   offers: a late view only ever shows a node fuller than it is; who is preempted matters less
//!   than who gets the room;
//! - a Job has at most `parallelism` Pods, counts no success that was none, and of a CronJob that
//!   forbids it no two Jobs run at once;
//! - while nothing but evictions takes Pods away, no eviction brings an app below its budget;
//! - nothing is collected as garbage whose owner is there and is not being deleted.
//!
//! Then faults stop, and within [`QUIET_STEPS_MAX`] everything is as the user asked, and planning
//! once more for everything asks for no write.

mod api;
mod check;
mod jobs;
mod loops;
mod nodes;
mod preempt;
mod rollout;
mod seeded;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::batch::v1::{CronJob, Job as BatchJob};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Endpoints, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
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
    ApiMember, Config, cronjob, daemonset, deployment, disruption, endpoints, garbage, job, node,
    pods, replicaset, statefulset, volumes,
};
use wherry_control_plane::pki::Pki;
use wherry_control_plane::scheduler::decide::Decision;
use wherry_control_plane::scheduler::desk::Desk;
use wherry_control_plane::scheduler::need::Need;
use wherry_control_plane::scheduler::preempt::Victim;
use wherry_resources::Kind;

use api::*;
use loops::*;
use user::*;

/// Seeds of an ordinary run; `make sim` has [`RUNS_LONG`].
const RUNS: u64 = 200;
const RUNS_LONG: u64 = 2_000;
/// Steps with faults, and those in which everything has to settle without: a Job's pause after many
/// failures is ten minutes of them.
const STEPS: usize = 300;
const QUIET_STEPS_MAX: usize = 800;
const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];
/// What each node offers, and what each Pod asks for.
const NODE_PODS: usize = 24;
const NODE_CPU_MILLIS: usize = 2_000;
/// Of a Deployment's Pod; those that are tied to nodes ask for none, as they cannot go elsewhere.
const POD_CPU_MILLIS: usize = 300;
const DEPLOYMENTS: [&str; 3] = ["a", "b", "c"];
/// The first goes in order and has volumes; the second is parallel and has none.
const STATEFUL_SETS: [&str; 2] = ["s", "t"];
/// The second surges.
const DAEMON_SETS: [&str; 2] = ["u", "v"];
/// The second has an index for each Pod.
const JOBS: [&str; 2] = ["j", "k"];
const CRON_JOB: &str = "w";
/// The label that admission gives to Pods of Jobs.
const JOB_LABEL: &str = "batch.kubernetes.io/job-name";
/// A budget, the app that it is for, and how many of it have to work.
const BUDGET: &str = "b";
const BUDGET_APP: &str = DEPLOYMENTS[2];
const BUDGET_LEAST: usize = 2;
const NAMESPACE: &str = "d";
const FOREGROUND: &str = "foregroundDeletion";

const CONTROLLERS: [Controller; 11] = [
    node::CONTROLLER,
    deployment::CONTROLLER,
    replicaset::CONTROLLER,
    endpoints::CONTROLLER,
    garbage::CONTROLLER,
    statefulset::CONTROLLER,
    daemonset::CONTROLLER,
    volumes::CONTROLLER,
    job::CONTROLLER,
    cronjob::CONTROLLER,
    disruption::CONTROLLER,
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

/// The scheduler hears the first [`SCHEDULER_KINDS`].
static WATCHED: LazyLock<[Watched; 17]> = LazyLock::new(|| {
    [
        watched::<Pod>(),
        watched::<Node>(),
        watched::<PersistentVolumeClaim>(),
        watched::<PersistentVolume>(),
        watched::<StorageClass>(),
        watched::<PodDisruptionBudget>(),
        watched::<StatefulSet>(),
        watched::<DaemonSet>(),
        watched::<ControllerRevision>(),
        watched::<ReplicaSet>(),
        watched::<Deployment>(),
        watched::<Lease>(),
        watched::<Service>(),
        watched::<EndpointSlice>(),
        watched::<Endpoints>(),
        watched::<BatchJob>(),
        watched::<CronJob>(),
    ]
});

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for keys");
    let pki = Pki::load_or_create(folder.path()).expect("new authorities");
    let address = "127.0.0.1:6443".parse().expect("an address");
    let (_, api_members) = tokio::sync::watch::channel(vec![ApiMember { address, ready: true }]);
    let (cluster_cidr, watch_every) = ("10.0.0.0/8".to_string(), Duration::ZERO);
    Config { pki: Arc::new(pki), cluster_cidr, api_members, watch_every }
});

/// The time of a step, as objects and as this process know it.
#[derive(Clone, Copy)]
struct Clock {
    now: Timestamp,
    instant: Instant,
}

/// A cluster in a box.
struct Sim {
    seed: u64,
    controllers: Arc<[Controller]>,
    shows: bool,
    rng: StdRng,
    step: usize,
    clock: Clock,
    api: Api,
    leader: Leader,
    scheduler: Scheduler,
    /// Which nodes are alive.
    alive: BTreeMap<&'static str, bool>,
    /// What really runs: node and uid of each Pod, with its name and its owner's uid. A node that is
    /// cut off goes on with what it has.
    guests: BTreeMap<(&'static str, String), (String, String)>,
    /// The most that each Deployment, ReplicaSet or Job (by uid) may have at the moment.
    most: BTreeMap<String, i64>,
    /// Pods that really succeeded, by uid and index: the uid of their Job.
    succeeded: BTreeMap<(String, String), String>,
    /// Whether the app with a budget lost Pods otherwise than by eviction, as far as the leader has
    /// not settled with that yet.
    disturbed: bool,
    /// Pods of that app that worked after the last write.
    healthy_before: usize,
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
        Sim::with(seed, shows, CONTROLLERS.into())
    }

    fn with(seed: u64, shows: bool, controllers: Arc<[Controller]>) -> Sim {
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let clock = Clock { now, instant: Instant::now() };
        let logs = WATCHED.iter().map(|_| Vec::new()).collect();
        let (objects, briefs) = (BTreeMap::new(), BTreeMap::new());
        let mut api = Api { objects, briefs, revision: 0, logs, now };
        let service = json!({"spec": {
            "clusterIP": "10.96.0.9",
            "selector": {"tier": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
        }});
        let key = Key::of::<Service>(NAMESPACE, "web");
        api.create(&key, service).expect("the first object");
        let class = json!({
            "provisioner": volumes::LOCAL,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        api.create(&Key::of::<StorageClass>("", "local"), class).expect("the only class");
        let budget = json!({"spec": {
            "minAvailable": BUDGET_LEAST,
            "selector": {"matchLabels": {"app": BUDGET_APP}},
        }});
        let key = Key::of::<PodDisruptionBudget>(NAMESPACE, BUDGET);
        api.create(&key, budget).expect("the only budget");
        let leader = Leader::new(&api, &[], clock.instant, controllers.clone());
        let scheduler = Scheduler::new(&api);
        let alive = NODES.iter().map(|name| (*name, true)).collect();
        let rng = StdRng::seed_from_u64(seed);
        let (step, most, guests) = (0, BTreeMap::new(), BTreeMap::new());
        let mut sim = Sim {
            seed,
            controllers,
            shows,
            rng,
            step,
            clock,
            api,
            leader,
            scheduler,
            alive,
            guests,
            most,
            succeeded: BTreeMap::new(),
            disturbed: true,
            healthy_before: 0,
        };
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
        let controllers = self.controllers.clone();
        self.leader = Leader::new(&self.api, &order, self.clock.instant, controllers);
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
        if self.chance(10) {
            self.drain();
        }
        self.kubelets(40);
        for kind in 0..WATCHED.len() {
            let (few, more) = (self.rng.random_range(0..6), self.rng.random_range(0..6));
            self.leader.hear(&self.api, kind, few, self.clock.instant);
            if kind < SCHEDULER_KINDS {
                self.scheduler.hear(&self.api, kind, more);
            }
        }
        let turns = self.rng.random_range(0..30);
        for _ in 0..turns {
            match self.rng.random_range(0..8) {
                0 | 1 => self.plan_one(),
                2 => self.scheduler.schedule(1, self.clock.instant),
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
        (0..SCHEDULER_KINDS).for_each(|kind| self.scheduler.hear(&self.api, kind, usize::MAX));
        self.leader.fire(self.clock.instant);
        let waiting = self.leader.queue.len();
        (0..waiting).for_each(|_| self.plan_one());
        while !self.leader.busy.is_empty() {
            self.write_one();
        }
        self.scheduler.schedule(usize::MAX, self.clock.instant);
        while !self.scheduler.orders.is_empty() {
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
        self.leader.plan(job.clone(), self.clock);
        self.check_step(&job);
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
        if let (Action::Delete { target, .. }, "garbage") =
            (&write.action, self.controllers[job.0].name)
            && let Ok(object) = self.api.find(target)
        {
            let owner = self.api.objects.values().find(|other| uid(other) == owner(object));
            let lives = owner.is_some_and(|owner| !is_deleting(owner));
            assert!(!lives, "{} is collected although its owner is there", target.key);
        }
        let outcome = self.api.perform(write);
        self.show(|| match &outcome {
            Ok(_) => format!("{}: {write}", self.controllers[job.0].name),
            Err(error) => format!("{}: {write}: {error}", self.controllers[job.0].name),
        });
        outcome
    }

    fn bind_one(&mut self) {
        if self.scheduler.orders.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.scheduler.orders.len());
        let order = self.scheduler.orders.swap_remove(at);
        let outcome = self.api.follow(&order);
        let (need, node) = (&order.need, &order.node);
        self.show(|| format!("{} for {node}: {:?}", need.name, outcome.as_ref().err()));
        if outcome.is_err() && order.claims.is_empty() && order.victims.is_empty() {
            self.scheduler.desk.refused(order.need);
        }
        self.check();
    }

    /// The member that leads dies: some of what was under way happens, and nobody hears of it.
    fn crash(&mut self) {
        self.show(|| "crash".to_string());
        // Until the last of a plan has happened or is lost, all of it is under way: what was asked
        // for when it was made may still come.
        while let Some(job) = self.leader.busy.keys().next().cloned() {
            let busy = self.leader.busy.get_mut(&job).expect("found above");
            for write in std::mem::take(&mut busy.left) {
                if self.chance(50) {
                    _ = self.perform(&job, &write);
                    self.check();
                }
            }
            self.leader.busy.remove(&job);
        }
        for order in std::mem::take(&mut self.scheduler.orders) {
            if self.chance(50) {
                _ = self.api.follow(&order);
                self.check();
            }
        }
        self.new_leader();
        self.scheduler = Scheduler::new(&self.api);
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step_with_faults();
        }
        self.alive.values_mut().for_each(|alive| *alive = true);
        self.stop_the_clockwork();
        self.show(|| "faults stop".to_string());
        let last = self.step + QUIET_STEPS_MAX;
        let mut still = false;
        loop {
            let missing = self.missing();
            if still && missing.is_empty() {
                break;
            }
            assert!(self.step < last, "it does not settle: {missing:#?}");
            let before = self.api.revision;
            self.step_without_faults();
            // Nothing but the nodes' leases changed.
            still = self.api.revision - before == NODES.len() as u64;
        }
        for job in self.all_jobs() {
            let (mut writes, _) = self.leader.reconcile(&job, self.clock);
            // To say again that something is waited for changes nothing.
            writes.retain(|write| !matches!(write.action, Action::Tell));
            let name = self.controllers[job.0].name;
            assert!(writes.is_empty(), "{name} still wants {} of {}", writes[0], job.1);
        }
    }
}

/// A number from the environment.
fn read(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Lets everybody else on the machine go before this thread: other tests wait for processes that need
/// a processor now and then, and this one only computes.
fn stand_back() {
    use nix::libc::{PRIO_PROCESS, setpriority};
    // SAFETY: it takes three numbers; 0 is the calling thread. That it may fail harms nobody.
    unsafe { setpriority(PRIO_PROCESS, 0, 10) };
}

/// Runs all seeds below a number, on all cores; a seed that fails ends the test.
fn run_all(runs: u64) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        let work = || {
            stand_back();
            let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < runs);
            for seed in std::iter::from_fn(take) {
                Sim::new(seed, false).run();
            }
        };
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

#[test]
fn everything_settles_after_any_faults() {
    if let Some(seed) = read("WHERRY_SIM_SEED") {
        Sim::new(seed, true).run();
        return;
    }
    let runs = match std::env::var_os("WHERRY_SIM_LONG") {
        Some(_) => RUNS_LONG,
        None => read("WHERRY_SIM_RUNS").unwrap_or(RUNS),
    };
    let begun = Instant::now();
    run_all(runs);
    println!("{runs} seeds, no violation, {:.1} s", begun.elapsed().as_secs_f64());
}
