//! Users of workers: where root allows it, each namespace's worker runs as a user of its own. Who
//! breaks out of one can then neither read the files of another namespace nor send a signal to its
//! worker or to the agent.
//!
//! ```text
//!   <data dir>/users.json                  which namespace has which number; none is given twice
//!   <data dir>/pods/<uid>                  root, group <user>, 0710: no other worker comes in
//!   <data dir>/pods/<uid>/volumes/<name>   <user>, 0700, if guests write there
//!   <data dir>/logs/<Pod>                  <user>, 0700
//!   <data dir>/local-volumes/<handle>      <user>, 0700
//! ```
//!
//! Folders on the way to these can be entered by everybody and listed by nobody (0711). What belongs
//! to such a user is hostile to the agent, which is root: it never follows a link there.
//!
//! `kube-system` and namespaces of the Pod Security level `privileged`, whose Pods may mount paths of
//! the host, keep the agent's user. So does every worker of an agent that is not root, may not
//! become these users, or whose data folder others cannot enter.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use super::{join::write_private, spec::PodSpec};
use crate::protocol;

/// The first number. Those below are of people, of services and of systemd's containers.
const FIRST: u32 = 1_879_048_192;
/// How many there are. Those above are kept by systemd.
const COUNT: u32 = 200_000_000;
const FILE: &str = "users.json";
/// The namespace of the cluster itself, whose worker serves Ingresses.
const SYSTEM: &str = "kube-system";
/// The agent's user, where there are others.
const ROOT: u32 = 0;
/// A folder on the way: entered by everybody, listed by its owner.
const WAY: u32 = 0o711;

/// The users of this node's workers.
#[derive(Debug)]
pub struct Users {
    file: PathBuf,
    logs: PathBuf,
    /// Whether workers get users of their own.
    apart: bool,
    /// Short lookups and small writes without an await.
    known: Mutex<Known>,
    /// Held while something changes its owner: a volume is closed meanwhile.
    moving: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    kept: Kept,
    privileged: BTreeSet<String>,
    /// As whom the worker of a namespace runs; None is the agent's user.
    running: HashMap<String, Option<u32>>,
}

/// The content of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    next: u32,
    users: BTreeMap<String, u32>,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { next: FIRST, users: BTreeMap::new() }
    }
}

impl Users {
    /// Finds out whether workers can have users of their own, and opens the ways to what is theirs.
    /// `memory` is the node's folder in memory, below a folder of its own.
    pub fn open(data_dir: &Path, logs: PathBuf, memory: Option<&Path>) -> Users {
        let file = data_dir.join(FILE);
        let kept = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let known = Known { kept: kept.unwrap_or_default(), ..Known::default() };
        let obstacle = obstacle(data_dir, memory).err();
        if let Some(why) = &obstacle {
            tracing::info!(why, "workers run as the agent's user");
        }
        let (apart, moving) = (obstacle.is_none(), Mutex::default());
        if apart {
            // Whatever the agent was started with: what has to stay closed is made so by name.
            umask(Mode::S_IWGRP | Mode::S_IWOTH);
        }
        let users = Users { file, logs, apart, known: Mutex::new(known), moving };
        let own = memory.into_iter().flat_map(|memory| memory.parent().into_iter().chain([memory]));
        for folder in own.chain([data_dir]) {
            users.open_way(folder);
        }
        for folder in ["pods", "local-volumes", "logs"] {
            users.open_way(&data_dir.join(folder));
        }
        if let Some(memory) = memory {
            users.open_way(&memory.join("pods"));
        }
        users
    }

    /// Lets workers enter a folder, which is made if it is not there.
    pub fn open_way(&self, folder: &Path) {
        if !self.apart {
            return;
        }
        let opened = fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(WAY)));
        if let Err(error) = opened {
            tracing::warn!(folder = %folder.display(), %error, "workers cannot enter a folder");
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user for a new worker; None is the agent's own.
    pub fn begin(&self, namespace: &str) -> Option<u32> {
        let mut known = self.known();
        let user = self.decide(&mut known, namespace);
        known.running.insert(namespace.to_owned(), user);
        user
    }

    /// A worker of an earlier agent runs as this user.
    pub fn found(&self, namespace: &str, user: u32) {
        let own = nix::unistd::geteuid().as_raw();
        let user = Some(user).filter(|user| *user != own);
        self.known().running.insert(namespace.to_owned(), user);
    }

    /// The labels of a namespace are known.
    pub fn set_privileged(&self, namespace: &str, privileged: bool) {
        let mut known = self.known();
        if privileged {
            known.privileged.insert(namespace.to_owned());
        } else {
            known.privileged.remove(namespace);
        }
    }

    /// The namespace is gone. Its number stays with what it may have left.
    pub fn forget(&self, namespace: &str) {
        let mut known = self.known();
        known.privileged.remove(namespace);
        if known.kept.users.remove(namespace).is_some() {
            self.keep(&known.kept);
        }
    }

    fn decide(&self, known: &mut Known, namespace: &str) -> Option<u32> {
        if !self.apart || namespace == SYSTEM || known.privileged.contains(namespace) {
            return None;
        }
        if let Some(user) = known.kept.users.get(namespace) {
            return Some(*user);
        }
        let user = known.kept.next;
        if user - FIRST >= COUNT {
            tracing::warn!(namespace, "no user is left, its worker runs as the agent's");
            return None;
        }
        let mut kept = known.kept.clone();
        kept.next += 1;
        kept.users.insert(namespace.to_owned(), user);
        if !self.keep(&kept) {
            return None;
        }
        known.kept = kept;
        Some(user)
    }

    fn keep(&self, kept: &Kept) -> bool {
        let text = serde_json::to_vec(kept).expect("names and numbers are JSON");
        let written = write_private(&self.file, &text);
        if let Err(error) = &written {
            tracing::warn!(%error, "cannot keep the users of workers");
        }
        written.is_ok()
    }

    /// To whom the files of a namespace's Pods belong; None: they stay with whoever makes them.
    pub fn owner(&self, namespace: &str) -> Option<u32> {
        let mut known = self.known();
        let user = match known.running.get(namespace) {
            Some(user) => *user,
            None => self.decide(&mut known, namespace),
        };
        // What was another user's is taken back.
        let ever = !known.kept.users.is_empty() && nix::unistd::geteuid().is_root();
        user.or_else(|| (self.apart || ever).then_some(ROOT))
    }

    /// Gives a Pod's folders and `trees`, which its guests write to, to its worker.
    pub async fn settle(
        self: &Arc<Users>,
        pod: &PodSpec,
        folders: Vec<PathBuf>,
        mut trees: Vec<PathBuf>,
    ) -> Result<(), String> {
        let Some(user) = self.owner(&pod.namespace) else {
            return Ok(());
        };
        let logs = self.logs.join(protocol::log_folder(&pod.namespace, &pod.name, &pod.uid));
        let users = Arc::clone(self);
        super::volumes::blocking(move || {
            let _moving = users.moving.lock().unwrap_or_else(PoisonError::into_inner);
            let make = || fs::DirBuilder::new().mode(0o700).create(&logs);
            let made = make().or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    users.open_way(&users.logs);
                    make()
                }
                _ => Err(error),
            });
            match made {
                Ok(()) => lchown(&logs, Some(user), Some(user))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => trees.push(logs),
                Err(error) => return Err(error),
            }
            for folder in folders.iter().filter(|folder| folder.exists()) {
                chown(folder, Some(ROOT), Some(user))?;
                fs::set_permissions(folder, fs::Permissions::from_mode(0o710))?;
            }
            trees.iter().try_for_each(|tree| hand_over(tree, user))
        })
        .await
    }
}

/// Why a worker cannot use a folder of the machine that an administrator has made; None if it can.
pub fn closed_to(user: u32, folder: &Path, writes: bool) -> Option<String> {
    let found = fs::metadata(folder).ok()?;
    let needed = if writes { 0o7 } else { 0o5 };
    if user == ROOT || found.uid() == user || found.mode() & needed == needed {
        return None;
    }
    let shown = folder.display();
    Some(format!(
        "{shown} belongs to user {}, and the worker of this namespace runs as user {user}; on the \
         node, let it in:   chown -R {user}:{user} {shown}",
        found.uid()
    ))
}

/// Gives a tree to a user, unless its root is that user's already. It is closed to everybody but
/// root while that happens, so nobody can put a link where an owner is about to be changed.
fn hand_over(tree: &Path, user: u32) -> io::Result<()> {
    if fs::symlink_metadata(tree)?.uid() == user {
        return Ok(());
    }
    lchown(tree, Some(ROOT), Some(ROOT))?;
    fs::set_permissions(tree, fs::Permissions::from_mode(0o700))?;
    give(tree, user)?;
    lchown(tree, Some(user), Some(user))
}

fn give(tree: &Path, user: u32) -> io::Result<()> {
    // A list, for how deep guests nest must not be what a stack has room for.
    let mut left = vec![tree.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            let shared = !found.is_dir() && found.nlink() > 1 && found.uid() == ROOT;
            // Another name of an image's file, which stays the agent's.
            if shared {
                continue;
            }
            lchown(entry.path(), Some(user), Some(user))?;
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Whether workers can have users of their own, or why not.
fn obstacle(data_dir: &Path, memory: Option<&Path>) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("the agent is not root".to_owned());
    }
    let map = fs::read_to_string("/proc/self/uid_map").map_err(|error| error.to_string())?;
    if !maps(&map, FIRST, COUNT) {
        return Err("this container has no users to give".to_owned());
    }
    let data_dir = data_dir.canonicalize().map_err(|error| error.to_string())?;
    let memory = memory.and_then(Path::parent);
    for own in [Some(data_dir.as_path()), memory].into_iter().flatten() {
        for folder in own.ancestors().skip(1) {
            let mode = fs::metadata(folder).map_err(|error| error.to_string())?.mode();
            if mode & 0o001 == 0 {
                return Err(format!("{} cannot be entered by others", folder.display()));
            }
        }
    }
    Ok(())
}

/// Whether a user namespace has these numbers. Lines of the map: first inside, first outside, count.
fn maps(map: &str, first: u32, count: u32) -> bool {
    let (first, end) = (u64::from(first), u64::from(first) + u64::from(count));
    map.lines().any(|line| {
        let numbers: Vec<u64> =
            line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count] if inside <= first && end <= inside + count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(file: PathBuf, apart: bool) -> Users {
        let (known, moving) = (Mutex::default(), Mutex::default());
        Users { file, logs: PathBuf::new(), apart, known, moving }
    }

    #[test]
    fn each_namespace_has_its_own_and_no_number_comes_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(FILE);
        let these = users(file.clone(), true);
        assert_eq!(these.begin("a"), Some(FIRST));
        assert_eq!(these.begin("b"), Some(FIRST + 1));
        assert_eq!(these.begin("a"), Some(FIRST));
        assert_eq!(these.begin(SYSTEM), None);
        these.set_privileged("c", true);
        assert_eq!(these.begin("c"), None);
        assert_eq!(these.owner("c"), Some(ROOT));
        these.set_privileged("c", false);
        assert_eq!(these.owner("c"), Some(ROOT), "its worker still runs as root");
        assert_eq!(these.begin("c"), Some(FIRST + 2));
        these.forget("b");
        assert_eq!(these.begin("d"), Some(FIRST + 3));
        these.found("e", FIRST + 9);
        assert_eq!(these.owner("e"), Some(FIRST + 9));
        let kept: Kept =
            serde_json::from_slice(&fs::read(&file).expect("a file")).expect("as it was written");
        assert_eq!((kept.next, kept.users.len()), (FIRST + 4, 3));
        assert_eq!(users(file, false).owner("a"), None, "nobody ever had another");
    }

    #[test]
    fn user_namespaces_may_be_too_small() {
        assert!(maps("         0          0 4294967295\n", FIRST, COUNT));
        assert!(maps("0 100000 65536\n1000000000 5 2000000000", FIRST, COUNT));
        assert!(!maps("0 100000 65536\n", FIRST, COUNT));
        assert!(!maps("", FIRST, COUNT));
    }

    /// Only root can give files away; everybody else sees that nothing is touched.
    #[test]
    fn a_tree_changes_its_owner_but_for_files_with_other_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let tree = folder.path().join("volume");
        fs::create_dir_all(tree.join("a/b")).expect("folders");
        fs::write(tree.join("a/b/own"), "x").expect("a file");
        fs::write(folder.path().join("blob"), "x").expect("a file");
        fs::hard_link(folder.path().join("blob"), tree.join("image")).expect("a name");
        std::os::unix::fs::symlink("/etc/passwd", tree.join("out")).expect("a link");
        if !nix::unistd::geteuid().is_root() {
            assert!(hand_over(&tree, FIRST).is_err());
            return;
        }
        hand_over(&tree, FIRST).expect("given");
        let owner = |path: &str| fs::symlink_metadata(tree.join(path)).expect("it is there").uid();
        for own in ["", "a", "a/b", "a/b/own", "out"] {
            assert_eq!(owner(own), FIRST, "{own}");
        }
        assert_eq!(owner("image"), ROOT);
        assert_eq!(fs::metadata("/etc/passwd").expect("it is there").uid(), ROOT);
        let mode = fs::metadata(&tree).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(closed_to(FIRST, &tree, true), None);
        let other = closed_to(FIRST + 1, &tree, false).expect("it is closed");
        assert!(other.contains("chown -R 1879048193:1879048193"), "{other}");
        hand_over(&tree, ROOT).expect("taken back");
        assert_eq!(owner("a/b/own"), ROOT);
    }
}
