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
//!   Deployment together may be more: maxSurge counts sizes, in Kubernetes too.)
//! - a Pod that is bound stays where it is, and no node has more Pods or CPU bound to it than it
//!   offers: a late view only ever shows a node fuller than it is;
//! - nothing is collected as garbage whose owner is there and is not being deleted.
//!
//! Then faults stop, and within [`QUIET_STEPS_MAX`] everything is as the user asked, and planning
//! once more for everything asks for no write.

mod api;
mod check;
mod loops;

use std::collections::BTreeMap;
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
    ApiMember, Config, deployment, endpoints, garbage, node, pods, replicaset,
};
use wherry_control_plane::pki::Pki;
use wherry_control_plane::scheduler::decide::Decision;
use wherry_control_plane::scheduler::desk::Desk;
use wherry_control_plane::scheduler::need::Need;
use wherry_resources::Kind;

use api::*;
use loops::*;

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
    let address = "127.0.0.1:6443".parse().expect("an address");
    let (_, api_members) = tokio::sync::watch::channel(vec![ApiMember { address, ready: true }]);
    Config { pki: Arc::new(pki), cluster_cidr: "10.0.0.0/8".to_string(), api_members }
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
            self.scheduler.desk.refused(need);
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
