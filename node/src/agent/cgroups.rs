//! A cgroup (version 2) for each worker, where the machine lets the agent make them.
//!
//! ```text
//!   /sys/fs/cgroup/wherry/<16 hex of the data dir>/<namespace>
//!     memory.max    nine tenths of the machine's: a worker that runs away is killed alone
//!     cpu.weight    by what its Pods request, when there is not enough for all
//!     pids.max      far more threads than a worker has
//! ```
//!
//! Limits of Pods are kept inside the worker, by the engine; this is the wall behind them. A process
//! joins before it becomes a worker, so that nothing of it is ever outside.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Where version 2 is mounted; on machines that have both, it has no controllers there.
pub const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers that workers need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Threads of a worker: one for each core, 64 that may block, and a few.
const PIDS_MAX: u32 = 2048;
/// `cpu.weight` is between these.
const WEIGHT: (u64, u64) = (1, 10_000);

/// The cgroups of this node's workers.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// None where there are none.
    folder: Option<PathBuf>,
    memory_bytes: u64,
    /// By namespace, for workers that are still to come. Locked for a look or a change.
    millis: Mutex<HashMap<String, u64>>,
}

impl Cgroups {
    /// Makes the folder of this node below `mount`. The machine has `memory_bytes`.
    pub fn open(mount: &Path, node: &str, memory_bytes: u64) -> Cgroups {
        let memory_bytes = memory_bytes / 10 * 9;
        match prepare(mount, node) {
            Ok(folder) => Cgroups { folder: Some(folder), memory_bytes, ..Cgroups::default() },
            Err(error) => {
                tracing::info!(%error, "workers have no cgroups");
                Cgroups::default()
            }
        }
    }

    /// Makes the cgroup of a namespace's worker; who writes `0` into the returned file joins it.
    pub fn door(&self, namespace: &str) -> Option<fs::File> {
        let folder = self.folder.as_ref()?.join(namespace);
        let millis = self.millis().get(namespace).copied().unwrap_or(0);
        let made = make(&folder, self.memory_bytes, millis);
        made.inspect_err(|error| tracing::warn!(namespace, %error, "a worker has no cgroup")).ok()
    }

    /// What the Pods of a namespace request of the CPU, in thousandths of a core.
    pub fn weigh(&self, namespace: &str, millis: u64) {
        let Some(folder) = &self.folder else { return };
        let before = match millis {
            0 => self.millis().remove(namespace).unwrap_or(0),
            _ => self.millis().insert(namespace.to_owned(), millis).unwrap_or(0),
        };
        if before == millis {
            return;
        }
        let file = folder.join(namespace).join("cpu.weight");
        if let Err(error) = fs::write(file, weight(millis).to_string())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(namespace, %error, "cannot set the weight of a worker");
        }
    }

    /// Removes the cgroup of a worker that has ended.
    pub fn leave(&self, namespace: &str) {
        if let Some(folder) = &self.folder {
            // One that is not empty yet stays for the next worker.
            let _ = fs::remove_dir(folder.join(namespace));
        }
    }

    fn millis(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.millis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(mount: &Path, node: &str) -> io::Result<PathBuf> {
    let offered = fs::read_to_string(mount.join("cgroup.controllers"))?;
    let lacks = CONTROLLERS.iter().find(|name| !offered.split_whitespace().any(|it| it == **name));
    if let Some(name) = lacks {
        return Err(io::Error::other(format!("the controller {name} is not there")));
    }
    let all = mount.join("wherry");
    let folder = all.join(node);
    fs::create_dir_all(&folder)?;
    for parent in [mount, all.as_path(), folder.as_path()] {
        enable(parent)?;
    }
    Ok(folder)
}

/// Lets the cgroups below a folder have the controllers.
fn enable(folder: &Path) -> io::Result<()> {
    let file = folder.join("cgroup.subtree_control");
    let known = fs::read_to_string(&file).unwrap_or_default();
    let missing =
        CONTROLLERS.iter().filter(|name| !known.split_whitespace().any(|it| it == **name));
    let missing: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if missing.is_empty() { Ok(()) } else { fs::write(file, missing.join(" ")) }
}

fn make(folder: &Path, memory_bytes: u64, millis: u64) -> io::Result<fs::File> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(folder.join("memory.max"), memory_bytes.to_string())?;
    fs::write(folder.join("pids.max"), PIDS_MAX.to_string())?;
    fs::write(folder.join("cpu.weight"), weight(millis).to_string())?;
    fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs"))
}

/// As the kubelet turns a request into a weight: 1 core is 39, 0 the least.
fn weight(millis: u64) -> u64 {
    let shares = (millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
    (1 + (shares - 2) * 9_999 / 262_142).clamp(WEIGHT.0, WEIGHT.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders and files as the kernel would have them.
    fn machine(controllers: &str) -> tempfile::TempDir {
        let mount = tempfile::tempdir().expect("a folder");
        fs::write(mount.path().join("cgroup.controllers"), controllers).expect("a file");
        mount
    }

    #[test]
    fn a_worker_gets_a_cgroup_with_limits() {
        let mount = machine("cpuset cpu io memory pids");
        let cgroups = Cgroups::open(mount.path(), "0123", 10 << 30);
        cgroups.weigh("default", 4000);
        let folder = mount.path().join("wherry/0123");
        let text = |path: &Path| fs::read_to_string(path).expect("a file");
        for parent in [mount.path(), &mount.path().join("wherry"), &folder] {
            assert_eq!(text(&parent.join("cgroup.subtree_control")), "+memory +cpu +pids");
        }
        let own = folder.join("default");
        fs::create_dir(&own).expect("a folder");
        fs::write(own.join("cgroup.procs"), "").expect("a file");
        assert!(cgroups.door("default").is_some());
        assert_eq!(text(&own.join("memory.max")), "9663676416");
        assert_eq!(text(&own.join("cpu.weight")), "157");
        assert_eq!(text(&own.join("pids.max")), "2048");
        cgroups.weigh("default", 1000);
        assert_eq!(text(&own.join("cpu.weight")), "39");
        cgroups.weigh("gone", 1000);
        assert!(cgroups.door("no/such").is_none());
    }

    #[test]
    fn a_machine_without_the_controllers_has_none() {
        for controllers in ["", "memory pids", "memories cpu pids"] {
            let mount = machine(controllers);
            let cgroups = Cgroups::open(mount.path(), "0123", 1 << 30);
            assert!(cgroups.door("default").is_none(), "{controllers}");
            assert!(!mount.path().join("wherry").exists());
        }
        let nothing = tempfile::tempdir().expect("a folder");
        assert!(Cgroups::open(nothing.path(), "0123", 1).door("default").is_none());
    }

    #[test]
    fn weights_are_those_of_a_kubelet() {
        let all = [0, 1, 100, 1000, 4000, 256_000, u64::MAX].map(weight);
        assert_eq!(all, [1, 1, 4, 39, 157, 10_000, 10_000]);
    }
}
