//! The loop's part in evictions: who uses what, and who has to go.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    agent::{
        lifecycle::{Eviction, Observation, Stage},
        pods::Input,
        pressure::{Candidate, Resource, Signals, Written, choose, over_limit, reason},
        spec::{ContainerSpec, Content, PodSpec},
        volumes::{Use, measure},
    },
    protocol,
};

use super::Pods;

/// Between two removals of unused images.
const COLLECT_PAUSE: Duration = Duration::from_secs(60);

/// What the files of an evicted Pod may take to go until the next one is chosen all the same.
const LEAVING_MAX: Duration = Duration::from_secs(30);

/// What evictions for a disk go by.
#[derive(Default)]
pub(super) struct Reclaim {
    /// The files of Pods are being counted: of all of them, or of those only that have volumes.
    measuring: Option<bool>,
    /// All were counted since the disk is short. Before, who fills it may seem to have nothing.
    counted: bool,
    /// Who was evicted last, and when: what it had may still be on the disk.
    victim: Option<(String, Timestamp)>,
}

impl Reclaim {
    /// Whether it can be told who has to go. `has_files` says whether a Pod's own files are there.
    fn may_choose(
        &self,
        resource: Resource,
        now: Timestamp,
        has_files: impl FnOnce(&str) -> bool,
    ) -> bool {
        let lately = self.victim.as_ref().filter(|(_, at)| now < *at + LEAVING_MAX);
        let leaves = || lately.is_some_and(|(uid, _)| has_files(uid));
        !resource.is_of_disk() || (self.counted && !leaves())
    }
}

/// What is to be measured of one Pod.
struct Order {
    uid: String,
    volumes: Vec<(String, bool, Vec<PathBuf>)>,
    /// Folders of claims, and how many bytes they may hold.
    claims: Vec<(String, PathBuf, u64)>,
    /// What each container writes beside volumes: its logs, and its root if it has one.
    containers: Vec<(String, Vec<PathBuf>)>,
    /// What they write in memory beside volumes.
    in_memory: Vec<PathBuf>,
}

impl Pods {
    /// The node was looked at: one Pod may have to go, all that write are measured, and old workers
    /// may be replaced.
    pub(super) fn look(&mut self, signals: &Signals) {
        let now = Timestamp::now();
        let before = (self.pressures.memory.active, self.pressures.disk.active);
        let short = self.pressures.look(signals, now);
        let after = (self.pressures.memory.active, self.pressures.disk.active);
        if before != after {
            tracing::warn!(memory = after.0, disk = after.1, "pressure on the node changed");
            self.parts.pressures.send_replace(self.pressures);
            for reason in changes(before, after) {
                let message = format!("Node {} status is now: {reason}", self.parts.node);
                self.parts.events.of_node(&self.parts.node, reason, message, false);
            }
        }
        self.reclaim.counted &= self.pressures.disk.active;
        let pressed = short.iter().any(|it| it.is_of_disk());
        // What the last one had is about to be free.
        let mut states = self.entries.values().map(|entry| &entry.state);
        let awaited = states.any(|state| state.eviction.is_some() && state.needs_worker());
        let collects = self.collect_images(signals.disk, pressed, now);
        let has_files = |uid: &str| self.parts.volumes.folders(uid).iter().any(|it| it.exists());
        // Unused images go before Pods do; if that was not enough, the next look finds it.
        let waits = |it: Resource| awaited || (collects && it.is_of_disk());
        let may_choose = |it: Resource| self.reclaim.may_choose(it, now, has_files);
        let short: Vec<Resource> =
            short.into_iter().filter(|it| !waits(*it) && may_choose(*it)).collect();
        if let Some(first) = short.first() {
            let found = choose(&short, |resource| self.candidates(resource));
            let resource = found.as_ref().map_or(*first, |(resource, _)| *resource);
            let word = resource.word();
            let message = format!("Attempting to reclaim {word}");
            self.parts.events.of_node(&self.parts.node, "EvictionThresholdMet", message, true);
            match found {
                Some((_, victim)) => {
                    let why = reason(resource, signals, &victim);
                    self.evict(&victim.uid, Eviction::Shortage(why));
                    self.reclaim.victim = Some((victim.uid, now));
                }
                None => tracing::warn!(?short, "the node is short, and no Pod can go"),
            }
        }
        self.forget_refusals();
        self.measure_all();
        // Lists that an old worker had to wait for may have come since.
        for namespace in self.parts.fleet.outdated() {
            self.look_at_engine(&namespace);
        }
    }

    /// Has unused images removed where the disk is full, now and then. Says whether it does now.
    fn collect_images(&mut self, disk: (u64, u64), pressed: bool, now: Timestamp) -> bool {
        let lately = self.collected.is_some_and(|at| now < at + COLLECT_PAUSE);
        if lately || !(pressed || self.parts.images.has_excess(disk)) {
            return false;
        }
        self.collected = Some(now);
        let containers = self.entries.values().flat_map(|entry| &entry.state.containers);
        let digests = containers.filter_map(|it| Some(it.image_id.split_once('@')?.1.to_owned()));
        let images = Arc::clone(&self.parts.images);
        let (events, node) = (self.parts.events.clone(), self.parts.node.clone());
        let used = digests.collect();
        self.tasks.spawn(async move {
            if let Err(why) = images.collect(used, disk, pressed).await {
                events.of_node(&node, "ImageGCFailed", why, true);
            }
        });
        true
    }

    fn candidates(&self, resource: Resource) -> Vec<Candidate> {
        let running = self.entries.values().filter(|entry| entry.state.stage == Stage::Active);
        let candidate = |entry: &super::Entry| {
            let spec = &entry.desired.spec;
            let (used, requested) = match resource {
                Resource::Memory => (
                    self.parts.accounts.memory(&spec.uid) + entry.disk.memory(),
                    requests(spec, |container| {
                        container.requests.1.or(container.limits.memory_bytes)
                    }),
                ),
                Resource::MemoryFiles => (entry.disk.memory(), 0),
                Resource::Disk => (
                    entry.disk.disk(),
                    requests(spec, |container| container.storage.1.or(container.storage.0)),
                ),
                // Nobody can request any.
                Resource::Inodes => (entry.disk.inodes(), 0),
            };
            Candidate { uid: spec.uid.clone(), priority: spec.priority, used, requested }
        };
        running.map(|entry| candidate(entry)).collect()
    }

    fn evict(&mut self, uid: &str, eviction: Eviction) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let spec = entry.desired.spec.clone();
        let why = eviction.sentence();
        tracing::warn!(namespace = spec.namespace, pod = spec.name, why, "evicting a Pod");
        self.parts.events.warning_of_pod(&spec, "Evicted", why.to_owned());
        self.observed(uid, Observation::Evict(eviction));
    }

    /// Has the files of all Pods counted that may write some. Never twice at a time.
    fn measure_all(&mut self) {
        if self.reclaim.measuring.is_some() {
            return;
        }
        let orders: Vec<Order> = self
            .entries
            .values()
            .filter(|entry| entry.state.stage == Stage::Active)
            .filter_map(|entry| self.order(&entry.desired.spec))
            .collect();
        if orders.is_empty() {
            return;
        }
        self.reclaim.measuring = Some(self.pressures.disk.active);
        let inputs = self.parts.inputs.clone();
        self.tasks.spawn(async move {
            let count = move || {
                let count = |order: Order| (order.uid.clone(), written(&order));
                orders.into_iter().map(count).collect::<HashMap<_, _>>()
            };
            let measured = tokio::task::spawn_blocking(count).await.unwrap_or_default();
            if let Some(inputs) = inputs.upgrade() {
                // The loop is gone only when the agent ends.
                let _ = inputs.send(Input::Measured(measured)).await;
            }
        });
    }

    /// What is to be measured now. Most Pods of a full node have nothing.
    fn order(&self, spec: &PodSpec) -> Option<Order> {
        if !(writes(spec) || self.pressures.disk.active) {
            return None;
        }
        let folders = self.parts.volumes.folders(&spec.uid);
        let mut volumes = Vec::new();
        for volume in &spec.volumes {
            if let Content::EmptyDir { memory, .. } = volume.content {
                let below = |folder: &PathBuf| folder.join("volumes").join(&volume.name);
                let found = folders.iter().map(below).collect();
                volumes.push((volume.name.clone(), memory, found));
            }
        }
        let claims = spec.volumes.iter().filter(|it| matches!(it.content, Content::Claim { .. }));
        let claims: Vec<(String, PathBuf, u64)> = claims
            .filter_map(|volume| {
                let (path, limit) = self.parts.volumes.local(&spec.uid, &volume.name)?;
                Some((volume.name.clone(), path, limit))
            })
            .collect();
        let logs = protocol::log_folder(&spec.namespace, &spec.name, &spec.uid);
        let logs = self.parts.logs.join(logs);
        let mut roots = folders.iter().map(|folder| folder.join("containers"));
        // The first is that on the disk.
        let on_disk = roots.next();
        let in_memory: Vec<PathBuf> = roots.collect();
        let of = |container: &ContainerSpec| {
            let both = std::iter::once(&logs).chain(&on_disk);
            let folders: Vec<PathBuf> = both.map(|folder| folder.join(&container.name)).collect();
            (container.name.clone(), folders)
        };
        let containers = spec.containers.iter().map(of).collect();
        let uid = spec.uid.clone();
        Some(Order { uid, volumes, claims, containers, in_memory })
    }

    /// The files were counted.
    pub(super) fn measured(&mut self, measured: HashMap<String, Written>) {
        self.reclaim.counted = self.reclaim.measuring.take() == Some(true);
        for (uid, written) in measured {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            if entry.state.stage != Stage::Active {
                continue;
            }
            let why = over_limit(&entry.desired.spec, &written);
            self.parts.accounts.wrote(&uid, &written);
            entry.disk = written;
            if let Some(why) = why {
                self.evict(&uid, Eviction::OverLimit(why));
            }
        }
    }
}

/// A Pod without volumes, single files and limits of its own writes logs and its containers' roots at
/// most: those count when the disk is short.
fn writes(spec: &PodSpec) -> bool {
    let has_files =
        |content: &Content| matches!(content, Content::EmptyDir { .. } | Content::Claim { .. });
    let of_container = |container: &ContainerSpec| {
        container.storage.0.is_some() || container.mounts.iter().any(|mount| mount.sub.is_some())
    };
    spec.containers.iter().any(of_container)
        || spec.volumes.iter().any(|volume| has_files(&volume.content))
}

/// What a kubelet says when conditions (memory, disk) change.
fn changes(before: (bool, bool), after: (bool, bool)) -> Vec<&'static str> {
    let memory = match after.0 {
        true => "NodeHasInsufficientMemory",
        false => "NodeHasSufficientMemory",
    };
    let disk = match after.1 {
        true => "NodeHasDiskPressure",
        false => "NodeHasNoDiskPressure",
    };
    let both = [(before.0 != after.0).then_some(memory), (before.1 != after.1).then_some(disk)];
    both.into_iter().flatten().collect()
}

fn written(order: &Order) -> Written {
    let add = |folders: &Vec<PathBuf>| {
        folders.iter().map(|folder| measure(folder)).fold(Use::default(), |sum, it| Use {
            bytes: sum.bytes.saturating_add(it.bytes),
            entries: sum.entries + it.entries,
        })
    };
    let volumes = order.volumes.iter();
    let containers = order.containers.iter();
    let claims = order.claims.iter();
    let claims = claims.map(|(name, path, limit)| (name.clone(), measure(path), *limit));
    Written {
        volumes: volumes.map(|(name, memory, it)| (name.clone(), *memory, add(it))).collect(),
        containers: containers.map(|(name, it)| (name.clone(), add(it))).collect(),
        claims: claims.collect(),
        in_memory: add(&order.in_memory),
    }
}

fn requests(spec: &PodSpec, of: impl Fn(&ContainerSpec) -> Option<u64>) -> u64 {
    spec.containers[spec.main()].iter().map(|container| of(container).unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containers_write_into_their_roots_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let app = folder.path().join("containers/app");
        let tmp = app.join("root/tmp");
        std::fs::create_dir_all(&tmp).expect("folders");
        std::fs::write(tmp.join("file"), vec![1; 100_000]).expect("a file");
        let order = Order {
            uid: "u".to_owned(),
            volumes: Vec::new(),
            claims: Vec::new(),
            containers: vec![("app".to_owned(), vec![folder.path().join("logs/app"), app.clone()])],
            in_memory: Vec::new(),
        };
        assert!(written(&order).disk() >= 100_000 && written(&order).memory() == 0);
        let order = Order { containers: Vec::new(), in_memory: vec![app], ..order };
        assert!(written(&order).disk() == 0 && written(&order).memory() >= 100_000);
    }

    #[test]
    fn who_goes_for_a_full_disk_is_known_first() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let may_choose = |reclaim: &Reclaim, resource, second, has_files: bool| {
            reclaim.may_choose(resource, at(second), |uid| {
                assert_eq!(uid, "last");
                has_files
            })
        };
        let new = Reclaim::default();
        assert!(may_choose(&new, Resource::Memory, 1, false), "that is always known");
        assert!(!may_choose(&new, Resource::Disk, 1, false), "nothing was counted yet");
        let counted = Reclaim { counted: true, ..Reclaim::default() };
        assert!(may_choose(&counted, Resource::Inodes, 1, true), "nobody has gone yet");
        let after = Reclaim { victim: Some(("last".to_owned(), at(10))), ..counted };
        assert!(!may_choose(&after, Resource::Disk, 20, true), "its files are being removed");
        assert!(may_choose(&after, Resource::Disk, 20, false), "that was not enough");
        assert!(may_choose(&after, Resource::Disk, 40, true), "that takes too long");
        assert!(may_choose(&after, Resource::Memory, 20, true), "it has no part in that");
    }

    #[test]
    fn changed_conditions_are_told() {
        let none: [&str; 0] = [];
        assert_eq!(changes((true, false), (true, false)), none);
        assert_eq!(changes((false, false), (true, false)), ["NodeHasInsufficientMemory"]);
        let both = ["NodeHasSufficientMemory", "NodeHasDiskPressure"];
        assert_eq!(changes((true, false), (false, true)), both);
        assert_eq!(changes((false, true), (false, false)), ["NodeHasNoDiskPressure"]);
    }
}
