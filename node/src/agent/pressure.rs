//! When the node is short of something, and which Pod goes then. Pure but for [`look`].
//!
//! As a kubelet does it: a signal below its threshold sets the node's condition, which stays for a
//! while after; one Pod after the other is evicted until the signal is back (for a disk only once all
//! Pods were measured and the files of the last one are gone). First goes who uses more than it
//! requested; among those who has the lowest priority; among those who uses most beyond its request.
//! So Guaranteed Pods go last and only for others' sake. A Pod that writes more than its own limits
//! goes whatever the node has.
//!
//! Files in memory lie where all Secrets and tokens of the node do. When that is nearly full, who has
//! most there goes first, and nobody who has next to nothing.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use nix::sys::statvfs::{Statvfs, statvfs};
use serde_json::{Value, json};

use super::{
    env::MEMORY_DEFAULT,
    spec::{ContainerSpec, Content, PodSpec},
    volumes::Use,
};

/// How often the node is looked at.
pub const LOOK: Duration = Duration::from_secs(10);
/// How often it is glanced at whether the disk fills up: a fast disk takes gigabytes between two looks.
pub const GLANCE: Duration = Duration::from_secs(1);
/// Bytes and inodes that disappear between two looks only if somebody writes much.
const FILLING: (u64, u64) = (64 << 20, 10_000);
/// How long a condition stays after the signal is back, so that it does not flap.
const SETTLE: Duration = Duration::from_secs(300);
/// Free memory below which Pods have to go.
const MEMORY_MIN: u64 = 100 << 20;
/// Free disk below which Pods have to go: a tenth, as Kubernetes has it, but on a large disk no more
/// than this: images and volumes of Wasm are small.
const DISK_MIN: u64 = 2 << 30;
/// Free bytes for files in memory below which Pods have to go, or a tenth of all. A Secret has at most
/// 1 MiB.
const MEMORY_FILES_MIN: u64 = 64 << 20;
/// What a file in memory takes of the kernel's, however little is in it.
const ENTRY_BYTES: u64 = 1 << 10;
/// Free inodes below which Pods have to go: one of this many.
const INODES_PART: u64 = 20;
/// Files in memory below which nobody goes for their sake: most Pods have some, and little comes back.
const MEMORY_FILES_WORTH: u64 = 1 << 20;
/// Pods of this priority run the cluster itself and are never evicted.
const PRIORITY_CRITICAL: i32 = 2_000_000_000;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals {
    /// `MemAvailable`
    pub memory_free: u64,
    /// Of the file system with the node's data: free and all bytes.
    pub disk: (u64, u64),
    /// Free and all inodes; some file systems count none.
    pub inodes: (u64, u64),
    /// Of the file system in memory: free and all bytes; none where the node has no such.
    pub memory_files: (u64, u64),
    /// Its free and all inodes.
    pub memory_inodes: (u64, u64),
}

impl Signals {
    /// The file system, as a kubelet's summary has it.
    pub fn summary(&self) -> Value {
        let ((free, bytes), (inodes_free, inodes)) = (self.disk, self.inodes);
        json!({
            "availableBytes": free, "capacityBytes": bytes, "usedBytes": bytes.saturating_sub(free),
            "inodesFree": inodes_free, "inodes": inodes,
            "inodesUsed": inodes.saturating_sub(inodes_free),
        })
    }
}

/// What there can be too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Room for files in memory.
    MemoryFiles,
    /// Disk space.
    Disk,
    /// Files and directories that a disk has room for.
    Inodes,
}

impl Resource {
    /// As Kubernetes calls it, which has no word for files in memory.
    pub fn word(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::MemoryFiles => "memory for files",
            Resource::Disk => "ephemeral-storage",
            Resource::Inodes => "inodes",
        }
    }

    /// Whether it is the disk that has too little of it.
    pub fn is_of_disk(self) -> bool {
        matches!(self, Resource::Disk | Resource::Inodes)
    }
}

/// A node condition and since when it has its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Whether there is too little.
    pub active: bool,
    /// Since when.
    pub since: Timestamp,
    /// When the signal was last below its threshold.
    last: Option<Timestamp>,
}

/// The conditions of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressures {
    /// `MemoryPressure`
    pub memory: Pressure,
    /// `DiskPressure`
    pub disk: Pressure,
}

impl Pressures {
    /// Nothing is short.
    pub fn none(now: Timestamp) -> Pressures {
        let none = Pressure { active: false, since: now, last: None };
        Pressures { memory: none, disk: none }
    }

    /// After a look. Says what is short right now: that is what evictions are for, the first first.
    pub fn look(&mut self, signals: &Signals, now: Timestamp) -> Vec<Resource> {
        let memory = signals.memory_free < MEMORY_MIN;
        let files = lacks_memory_files(signals);
        let disk = signals.disk.0 < disk_min(signals);
        let inodes = signals.inodes.0 < inodes_min(signals);
        self.memory.set(memory || files, now);
        self.disk.set(disk || inodes, now);
        let short = [
            memory.then_some(Resource::Memory),
            disk.then_some(Resource::Disk),
            inodes.then_some(Resource::Inodes),
            files.then_some(Resource::MemoryFiles),
        ];
        short.into_iter().flatten().collect()
    }
}

impl Pressure {
    fn set(&mut self, short: bool, now: Timestamp) {
        if short {
            self.last = Some(now);
        }
        let active = short || self.last.is_some_and(|last| now < last + SETTLE);
        if active != self.active {
            *self = Pressure { active, since: now, ..*self };
        }
    }
}

/// Whether so much was written since a look that it must not wait for the next one.
pub fn fills_up(before: &Signals, now: &Signals) -> bool {
    now.disk.0 + FILLING.0 <= before.disk.0
        || now.inodes.0 + FILLING.1 <= before.inodes.0
        || now.memory_files.0 + FILLING.0 <= before.memory_files.0
        || (lacks_memory_files(now) && !lacks_memory_files(before))
}

fn lacks_memory_files(signals: &Signals) -> bool {
    let (files, inodes) = (signals.memory_files, signals.memory_inodes);
    files.0 < memory_files_min(signals) || inodes.0 < inodes.1 / INODES_PART
}

fn memory_files_min(signals: &Signals) -> u64 {
    MEMORY_FILES_MIN.min(signals.memory_files.1 / 10)
}

fn disk_min(signals: &Signals) -> u64 {
    DISK_MIN.min(signals.disk.1 / 10)
}

fn inodes_min(signals: &Signals) -> u64 {
    signals.inodes.1 / INODES_PART
}

/// A Pod that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub uid: String,
    /// Its priority.
    pub priority: i32,
    /// What it uses of what is short.
    pub used: u64,
    /// What it requested of it.
    pub requested: u64,
}

/// Who goes, and for what: the first of what is short that somebody can go for. Where nobody can, the
/// machine has filled it with something else, which must not keep Pods from making room of the rest.
pub fn choose(
    short: &[Resource],
    candidates: impl Fn(Resource) -> Vec<Candidate>,
) -> Option<(Resource, Candidate)> {
    short.iter().find_map(|&resource| {
        let all = candidates(resource);
        let first = match resource {
            Resource::MemoryFiles => largest(&all),
            Resource::Memory | Resource::Disk | Resource::Inodes => victim(&all),
        };
        Some((resource, first?.clone()))
    })
}

/// Who goes first.
fn victim(candidates: &[Candidate]) -> Option<&Candidate> {
    let may_go = candidates.iter().filter(|it| it.priority < PRIORITY_CRITICAL);
    may_go.min_by_key(|it| {
        let within = it.used <= it.requested;
        let beyond = it.used.saturating_sub(it.requested);
        (within, it.priority, std::cmp::Reverse(beyond), it.uid.clone())
    })
}

/// Who goes first where what each has is all that counts: nobody requests files in memory.
fn largest(candidates: &[Candidate]) -> Option<&Candidate> {
    let may_go = candidates
        .iter()
        .filter(|it| it.priority < PRIORITY_CRITICAL && it.used >= MEMORY_FILES_WORTH);
    may_go.max_by_key(|it| (it.used, it.uid.clone()))
}

/// The sentence for a Pod that goes because the node is short.
pub fn reason(resource: Resource, signals: &Signals, victim: &Candidate) -> String {
    let (threshold, free) = match resource {
        Resource::Memory => (MEMORY_MIN, signals.memory_free),
        Resource::MemoryFiles => (memory_files_min(signals), signals.memory_files.0),
        Resource::Disk => (disk_min(signals), signals.disk.0),
        Resource::Inodes => (inodes_min(signals), signals.inodes.0),
    };
    let shown = |amount: u64| match resource {
        Resource::Memory | Resource::MemoryFiles | Resource::Disk => binary(amount),
        Resource::Inodes => amount.to_string(),
    };
    let word = resource.word();
    format!(
        "The node was low on resource: {word}. Threshold quantity: {}, available: {}. The Pod was \
         using {}, request is {}. ",
        shown(threshold),
        shown(free),
        shown(victim.used),
        shown(victim.requested)
    )
}

/// What a Pod has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Of each emptyDir, and whether it is in memory.
    pub volumes: Vec<(String, bool, Use)>,
    /// Of each container: its logs, and what it wrote into its root.
    pub containers: Vec<(String, Use)>,
    /// Of each claim that is a folder of this node, and how many bytes it may hold.
    pub claims: Vec<(String, Use, u64)>,
    /// In memory beside volumes: where single files of Secrets are shown, a container may write others.
    pub in_memory: Use,
}

impl Written {
    /// Bytes on the disk, all of them.
    pub fn disk(&self) -> u64 {
        self.on_disk().map(|it| it.bytes).fold(0, u64::saturating_add)
    }

    /// Files and directories on the disk.
    pub fn inodes(&self) -> u64 {
        self.on_disk().map(|it| it.entries).fold(0, u64::saturating_add)
    }

    fn on_disk(&self) -> impl Iterator<Item = &Use> {
        let volumes = self.volumes.iter().filter(|(_, memory, _)| !memory);
        volumes.map(|(_, _, it)| it).chain(self.containers.iter().map(|(_, it)| it))
    }

    /// In memory, all of it, with what empty files take.
    pub fn memory(&self) -> u64 {
        let volumes = self.volumes.iter().filter(|(_, memory, _)| *memory);
        let all = volumes.map(|(_, _, it)| it).chain([&self.in_memory]);
        let taken = |it: &Use| it.bytes.saturating_add(it.entries.saturating_mul(ENTRY_BYTES));
        all.map(taken).fold(0, u64::saturating_add)
    }

    /// As a kubelet's summary has it.
    pub fn summary(&self) -> Value {
        let volume = |name: &str, found: &Use| {
            let Use { bytes, entries } = found;
            json!({ "name": name, "usedBytes": bytes, "inodesUsed": entries })
        };
        let volumes = self.volumes.iter().map(|(name, _, found)| volume(name, found));
        let claims = self.claims.iter().map(|(name, found, limit)| {
            let mut item = volume(name, found);
            item["capacityBytes"] = json!(limit);
            item["availableBytes"] = json!(limit.saturating_sub(found.bytes));
            item
        });
        let volumes: Vec<Value> = volumes.chain(claims).collect();
        json!({ "ephemeral-storage": { "usedBytes": self.disk() }, "volume": volumes })
    }
}

/// Why a Pod has written more than it may; None if it has not.
pub fn over_limit(pod: &PodSpec, written: &Written) -> Option<String> {
    for (name, found, limit) in &written.claims {
        if found.bytes > *limit {
            return Some(format!(
                "Usage of volume {name:?} exceeds its size {:?}. It is mounted again when its \
                 claim asks for more. ",
                binary(*limit)
            ));
        }
    }
    let staying = || pod.staying().map(move |index| &pod.containers[index]);
    let memory_limit = staying()
        .map(|container| container.limits.memory_bytes.unwrap_or(MEMORY_DEFAULT))
        .fold(0, u64::saturating_add);
    for (name, memory, found) in &written.volumes {
        let volume = pod.volumes.iter().find(|volume| &volume.name == name);
        let Some(Content::EmptyDir { limit, .. }) = volume.map(|it| &it.content) else { continue };
        // What lies in memory is at most what the containers may have of it.
        let limits = [*limit, memory.then_some(memory_limit)];
        let Some(limit) = limits.into_iter().flatten().min() else { continue };
        if found.bytes > limit {
            let limit = binary(limit);
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "
            ));
        }
    }
    if written.memory() > memory_limit {
        return Some(format!(
            "Usage of files in memory exceeds the total memory limit of containers {}. ",
            binary(memory_limit)
        ));
    }
    let limits = staying().filter_map(|container| container.storage.0);
    if let Some(limit) = limits.reduce(u64::saturating_add).filter(|it| written.disk() > *it) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(limit)
        ));
    }
    let over = |container: &ContainerSpec| {
        let limit = container.storage.0?;
        let found = written.containers.iter().find(|(name, _)| name == &container.name)?;
        (found.1.bytes > limit).then(|| {
            let (name, limit) = (&container.name, binary(limit));
            format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ")
        })
    };
    staying().find_map(over)
}

/// A number of bytes as Kubernetes writes it.
fn binary(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes >= 1 << shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Reads the signals of this machine: of its disk, and of its folder in memory if it has one.
pub fn look(data_dir: &Path, memory: Option<&Path>) -> std::io::Result<Signals> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let disk = statvfs(data_dir)?;
    let memory = memory.and_then(|folder| statvfs(folder).ok());
    let bytes = |found: &Statvfs| {
        let block = found.fragment_size();
        (found.blocks_available() * block, found.blocks() * block)
    };
    let inodes = |found: &Statvfs| (found.files_available(), found.files());
    Ok(Signals {
        memory_free: memory_free(&meminfo).unwrap_or(u64::MAX),
        disk: bytes(&disk),
        inodes: inodes(&disk),
        memory_files: memory.as_ref().map(bytes).unwrap_or_default(),
        memory_inodes: memory.as_ref().map(inodes).unwrap_or_default(),
    })
}

fn memory_free(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Signals = Signals {
        memory_free: 8 << 30,
        disk: (50 << 30, 100 << 30),
        inodes: (90, 100),
        memory_files: (1 << 30, 2 << 30),
        memory_inodes: (900, 1000),
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_condition_stays_for_a_while() {
        let mut pressures = Pressures::none(at(0));
        assert!(pressures.look(&PLENTY, at(10)).is_empty());
        let short = Signals { memory_free: 50 << 20, ..PLENTY };
        assert_eq!(pressures.look(&short, at(20)), [Resource::Memory]);
        assert!(pressures.memory.active && !pressures.disk.active);
        assert!(pressures.look(&PLENTY, at(30)).is_empty());
        assert!(pressures.memory.active);
        pressures.look(&PLENTY, at(320));
        assert!(!pressures.memory.active);
        assert_eq!(pressures.memory.since, at(320));
        let full = Signals { disk: (1 << 30, 100 << 30), ..PLENTY };
        assert_eq!(pressures.look(&full, at(330)), [Resource::Disk]);
        let inodes = Signals { inodes: (4, 100), ..PLENTY };
        assert_eq!(pressures.look(&inodes, at(340)), [Resource::Inodes]);
        assert!(pressures.disk.active);
    }

    #[test]
    fn room_for_files_in_memory_can_be_short_by_itself() {
        let look = |signals: Signals| {
            let mut pressures = Pressures::none(at(0));
            (pressures.look(&signals, at(10)), pressures.memory.active, pressures.disk.active)
        };
        let short = (vec![Resource::MemoryFiles], true, false);
        let full = Signals { memory_files: (63 << 20, 2 << 30), ..PLENTY };
        assert_eq!(look(full), short);
        assert_eq!(look(Signals { memory_inodes: (49, 1000), ..PLENTY }), short);
        let small = |free: u64| Signals { memory_files: (free << 20, 64 << 20), ..PLENTY };
        assert_eq!(look(small(6)), short);
        assert_eq!(look(small(7)), (Vec::new(), false, false), "a small one has a tenth left");
        let none = Signals { memory_files: (0, 0), memory_inodes: (0, 0), ..PLENTY };
        assert_eq!(look(none), (Vec::new(), false, false), "there is none");
        assert!(fills_up(&PLENTY, &full) && fills_up(&small(7), &small(6)));
        assert!(!fills_up(&small(6), &small(5)), "that is known");

        let pod = |uid: &str, priority, used| Candidate {
            uid: uid.to_owned(),
            priority,
            used,
            requested: 0,
        };
        let mut all = vec![
            pod("unimportant", -5, 10 << 20),
            pod("much", 1000, 500 << 20),
            pod("critical", PRIORITY_CRITICAL, 900 << 20),
        ];
        assert_eq!(largest(&all).map(|it| it.uid.as_str()), Some("much"));
        let why = reason(Resource::MemoryFiles, &full, &all[1]);
        assert!(why.starts_with("The node was low on resource: memory for files. "), "{why}");
        assert!(why.contains("Threshold quantity: 64Mi, available: 63Mi. "), "{why}");
        all.iter_mut().for_each(|it| it.used = 20 << 10);
        assert_eq!(largest(&all), None, "nobody has more than a Secret or a token");
    }

    #[test]
    fn what_nobody_can_go_for_keeps_nobody_from_going_for_the_rest() {
        let full = Signals { disk: (1 << 30, 100 << 30), memory_files: (0, 2 << 30), ..PLENTY };
        let both = [Resource::Disk, Resource::MemoryFiles];
        assert_eq!(Pressures::none(at(0)).look(&full, at(10)), both);
        let check = |disk: u64, files: u64, expected: Option<Resource>| {
            let candidates = |resource: Resource| {
                let used = if resource == Resource::MemoryFiles { files } else { disk };
                let priority = if used == 0 { PRIORITY_CRITICAL } else { 0 };
                vec![Candidate { uid: "u".to_owned(), priority, used, requested: 0 }]
            };
            assert_eq!(choose(&both, candidates).map(|(resource, _)| resource), expected);
        };
        check(5 << 30, 0, Some(Resource::Disk));
        check(5 << 30, 5 << 20, Some(Resource::Disk));
        check(0, 5 << 20, Some(Resource::MemoryFiles));
        check(0, 0, None);
    }

    #[test]
    fn who_takes_more_than_asked_for_goes_first() {
        let pod = |uid: &str, priority, used, requested| Candidate {
            uid: uid.to_owned(),
            priority,
            used,
            requested,
        };
        let order = |mut all: Vec<Candidate>| {
            let mut gone = Vec::new();
            while let Some(next) = victim(&all).cloned() {
                all.retain(|it| it.uid != next.uid);
                gone.push(next.uid);
            }
            gone.join(" ")
        };
        assert_eq!(
            order(vec![
                pod("within", -5, 10, 100),
                pod("important", 1000, 200, 0),
                pod("little", 0, 20, 10),
                pod("much", 0, 500, 100),
                pod("critical", PRIORITY_CRITICAL, 900, 0),
            ]),
            "much little important within"
        );
    }

    /// Many small files take no bytes to speak of.
    #[test]
    fn inodes_are_counted_where_they_are_short() {
        let cache = ("cache".to_owned(), false, Use { bytes: 4096, entries: 70_000 });
        let fast = ("fast".to_owned(), true, Use { bytes: 1 << 30, entries: 9 });
        let app = ("app".to_owned(), Use { bytes: 8192, entries: 2 });
        let (volumes, containers) = (vec![cache, fast], vec![app]);
        let written = Written { volumes, containers, ..Written::default() };
        assert_eq!((written.disk(), written.inodes()), (12_288, 70_002));
    }

    #[test]
    fn a_disk_that_fills_up_is_looked_at_sooner() {
        let written = |bytes: u64, files: u64| Signals {
            disk: (PLENTY.disk.0 - bytes, PLENTY.disk.1),
            inodes: (100_000 - files, 200_000),
            ..PLENTY
        };
        let before = written(0, 0);
        assert!(!fills_up(&before, &written(1 << 20, 10)));
        assert!(fills_up(&before, &written(64 << 20, 10)));
        assert!(fills_up(&before, &written(0, 10_000)));
        assert!(!fills_up(&written(1 << 30, 0), &before), "it became emptier");
    }

    #[test]
    fn sentences() {
        let short = Signals { memory_free: 50 << 20, ..PLENTY };
        let victim = Candidate { uid: "u".to_owned(), priority: 0, used: 200 << 20, requested: 0 };
        assert_eq!(
            reason(Resource::Memory, &short, &victim),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             The Pod was using 200Mi, request is 0. "
        );
        let short = Signals { inodes: (4_000, 100_000), ..PLENTY };
        let victim = Candidate { used: 70_000, ..victim };
        assert_eq!(
            reason(Resource::Inodes, &short, &victim),
            "The node was low on resource: inodes. Threshold quantity: 5000, available: 4000. \
             The Pod was using 70000, request is 0. "
        );
        assert_eq!(memory_free("MemTotal: 9 kB\nMemAvailable:  2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn limits_on_what_is_written() {
        let pod = |text: &str| {
            let pod = serde_json::from_str(text).expect("a Pod");
            crate::agent::spec::read(pod).expect("a Pod of a node").0.spec
        };
        let spec =
            pod(r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
                "volumes":[{"name":"cache","emptyDir":{"sizeLimit":"1Mi"}}],
                "containers":[{"name":"app","image":"i",
                    "resources":{"limits":{"ephemeral-storage":"3Mi"}},
                    "volumeMounts":[{"name":"cache","mountPath":"/c"}]}]}}"#);
        let written = |volume: u64, logs: u64| Written {
            volumes: vec![("cache".to_owned(), false, Use { bytes: volume, entries: 1 })],
            containers: vec![("app".to_owned(), Use { bytes: logs, entries: 1 })],
            ..Written::default()
        };
        let rows = ("rows".to_owned(), Use { bytes: 2 << 20, entries: 1 }, 1 << 20);
        let full = Written { claims: vec![rows], ..Written::default() };
        assert_eq!(
            over_limit(&spec, &full).as_deref(),
            Some(
                "Usage of volume \"rows\" exceeds its size \"1Mi\". It is mounted again when its \
                 claim asks for more. "
            )
        );
        assert_eq!(over_limit(&spec, &written(1 << 20, 1 << 20)), None);
        assert_eq!(
            over_limit(&spec, &written(2 << 20, 0)).as_deref(),
            Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ")
        );
        assert_eq!(
            over_limit(&spec, &written(1 << 20, 4 << 20)).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ")
        );
        let root = Path::new("/");
        let found = look(root, Some(root)).expect("this machine");
        assert!(found.memory_free > 0);
        assert_eq!((found.memory_files.1, found.memory_inodes.1), (found.disk.1, found.inodes.1));
        assert_eq!(look(root, None).expect("this machine").memory_files, (0, 0));
    }

    #[test]
    fn limits_of_some_containers() {
        let check = |limits: [&str; 2], bytes: [u64; 2], expected: Option<&str>| {
            let container = |name: &str, limit: &str| {
                let limits = format!(r#"{{"limits":{{"ephemeral-storage":"{limit}"}}}}"#);
                let resources = if limit.is_empty() { "{}" } else { limits.as_str() };
                format!(r#"{{"name":"{name}","image":"i","resources":{resources}}}"#)
            };
            let text = format!(
                r#"{{"metadata":{{"name":"a","namespace":"b","uid":"u"}},"spec":{{"nodeName":"n",
                     "containers":[{},{}]}}}}"#,
                container("one", limits[0]),
                container("two", limits[1])
            );
            let pod = serde_json::from_str(&text).expect("a Pod");
            let spec = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
            let found = |name: &str, bytes: u64| (name.to_owned(), Use { bytes, entries: 1 });
            let containers = vec![found("one", bytes[0]), found("two", bytes[1])];
            let written = Written { containers, ..Written::default() };
            assert_eq!(over_limit(&spec, &written).as_deref(), expected);
        };
        let pod = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
        check(["1Mi", ""], [2 << 20, 0], Some(pod));
        check(["1Mi", ""], [1 << 20, 0], None);
        let one = "Container one exceeded its local ephemeral storage limit \"1Mi\". ";
        check(["1Mi", "9Mi"], [2 << 20, 0], Some(one));
        check(["1Mi", "9Mi"], [1 << 20, 9 << 20], None);
        check(["", ""], [2 << 20, 2 << 20], None);
    }

    #[test]
    fn volumes_in_memory_are_no_way_around_its_limit() {
        let check = |limits: &str, volumes: &[(u64, u64)], beside: u64, expected: Option<&str>| {
            let text = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{
                "nodeName":"n","volumes":[{"name":"fast","emptyDir":{"medium":"Memory"}}],
                "containers":[{"name":"app","image":"i","resources":{"limits":LIMITS},
                    "volumeMounts":[{"name":"fast","mountPath":"/f"}]}]}}"#;
            let pod = serde_json::from_str(&text.replace("LIMITS", limits)).expect("a Pod");
            let spec = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
            let volumes = volumes.iter().map(|(bytes, entries)| {
                ("fast".to_owned(), true, Use { bytes: bytes << 20, entries: *entries })
            });
            let in_memory = Use { bytes: beside << 20, entries: 1 };
            let written = Written { volumes: volumes.collect(), in_memory, ..Written::default() };
            assert_eq!(over_limit(&spec, &written).as_deref(), expected);
        };
        let limited = r#"{"memory":"16Mi"}"#;
        let over = "Usage of EmptyDir volume \"fast\" exceeds the limit \"16Mi\". ";
        check(limited, &[(17, 1)], 0, Some(over));
        check(limited, &[(15, 1)], 0, None);
        let over = "Usage of files in memory exceeds the total memory limit of containers 16Mi. ";
        check(limited, &[(9, 1), (9, 1)], 0, Some(over));
        check(limited, &[(9, 1)], 9, Some(over));
        check(limited, &[(0, 20_000)], 0, Some(over));
        let over = "Usage of EmptyDir volume \"fast\" exceeds the limit \"128Mi\". ";
        check("{}", &[(127, 1)], 0, None);
        check("{}", &[(129, 1)], 0, Some(over));
    }
}
