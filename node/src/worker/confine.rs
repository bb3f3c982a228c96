//! The walls around a worker's process, put up before its first thread: who breaks out of Wasm finds
//! himself in a process that can do little more than a guest may.
//!
//! - It never gets more rights than it has (`no_new_privs`), and as root gives up all but the right
//!   to bind low ports; where the agent says so, it becomes a user of its own (see `agent/users.rs`).
//! - As root it has a view of the file system of its own: what belongs to the agent alone (keys,
//!   tokens, what the API said) is covered, and images and compiled code cannot be written.
//! - A filter of system calls answers EPERM to everything that neither the engine nor guests need:
//!   starting programs, looking into other processes, mounting, loading code into the kernel.
//! - It leaves no core dump, in which a guest's memory would lie.
//!
//! What a machine does not let a process do to itself (an old kernel, a container without rights) is
//! left out and logged: the walls are the second line, Wasm is the first.

use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// Binding ports below 1024, for Services that ask for them.
const CAP_NET_BIND_SERVICE: u32 = 10;
/// Capabilities are two words of 32 bits in this version of the call.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// The highest number that a kernel may know; higher ones are refused, which ends the loop.
const CAPABILITY_MAX: libc::c_ulong = 63;

/// System calls that no worker makes.
const DENIED: &[libc::c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The view of the machine.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // The kernel and its clocks.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Rights.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
];

/// Why a wall could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// The user of its own. Without it the worker could not reach its files, so it ends.
    #[error("become user {user}")]
    User {
        /// Which.
        user: u32,
        /// Why.
        source: nix::Error,
    },
    /// Capabilities, or gaining new ones.
    #[error("give up rights")]
    Rights(#[source] io::Error),
    /// The mount namespace.
    #[error("take an own view of the file system")]
    View(#[source] io::Error),
    /// Something in it.
    #[error("cover {path}", path = path.display())]
    Cover {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The filter of system calls.
    #[error("filter system calls")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The limit of core dumps.
    #[error("forbid core dumps")]
    Cores(#[source] nix::Error),
}

/// What a worker must not see, and what it must not change.
#[derive(Debug, Clone, Default)]
pub struct Walls {
    /// Files and folders that are the agent's alone.
    pub hidden: Vec<PathBuf>,
    /// Folders that only the agent writes.
    pub read_only: Vec<PathBuf>,
}

/// Puts up what this machine allows, and becomes `user`. Call it while the process has one thread.
pub fn confine(walls: &Walls, user: Option<u32>) -> Result<(), WallError> {
    let root = nix::unistd::geteuid().is_root();
    let log = |outcome: Result<(), WallError>| {
        if let Err(error) = outcome {
            tracing::warn!(error = super::peers::explain(&error), "a wall is missing");
        }
    };
    if root {
        log(own_view(walls));
    }
    log(no_cores());
    log(no_new_rights());
    if root {
        bound_capabilities();
        if let Some(user) = user {
            become_user(user).map_err(|source| WallError::User { user, source })?;
        }
        log(give_up_capabilities());
    }
    // Last: it forbids what the others do.
    log(filter());
    Ok(())
}

fn no_cores() -> Result<(), WallError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(WallError::Cores)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn no_new_rights() -> Result<(), WallError> {
    // SAFETY: a plain system call on this process; the unused arguments must be zero.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map_err(WallError::Rights)
}

/// Changes all ids of the process. The right to bind low ports is kept over it.
fn become_user(user: u32) -> nix::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    // SAFETY: a plain system call on this process; the unused arguments must be zero.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // What changes its user cannot look at itself any more (`/proc/self/pagemap`, which the engine
    // reads) until it says that it may. There are no core dumps, and nobody else has this user.
    // SAFETY: as above.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
    Ok(())
}

/// Takes all capabilities but one out of reach for good.
fn bound_capabilities() {
    for number in 0..=CAPABILITY_MAX {
        if number == libc::c_ulong::from(CAP_NET_BIND_SERVICE) {
            continue;
        }
        // SAFETY: a plain system call on this process. It fails for numbers that the kernel does
        // not know.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            break;
        }
    }
}

fn give_up_capabilities() -> Result<(), WallError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let kept = 1 << CAP_NET_BIND_SERVICE;
    let low = Data { effective: kept, permitted: kept, inheritable: 0 };
    let high = Data { effective: 0, permitted: 0, inheritable: 0 };
    let data = [low, high];
    // SAFETY: both pointers are to values of the layout that this version of the call reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(WallError::Rights(io::Error::last_os_error())) }
}

fn filter() -> Result<(), WallError> {
    let program = program().map_err(|error| WallError::Filter(error.into()))?;
    apply_filter_all_threads(&program).map_err(|error| WallError::Filter(error.into()))
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let target = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, denied, target)?.try_into()
}

/// A mount namespace in which what is hidden is covered by nothing, and what is read-only is.
fn own_view(walls: &Walls) -> Result<(), WallError> {
    // SAFETY: a plain system call on this process, which has one thread.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map_err(WallError::View)?;
    // What the machine mounts later (a network disk) is still seen; nothing goes the other way.
    mount(None, Path::new("/"), libc::MS_REC | libc::MS_SLAVE).map_err(WallError::View)?;
    for path in &walls.hidden {
        cover(path).map_err(|source| WallError::Cover { path: path.clone(), source })?;
    }
    for path in &walls.read_only {
        let failed = |source| WallError::Cover { path: path.clone(), source };
        // With what was covered in it.
        mount(Some(path), path, libc::MS_BIND | libc::MS_REC).map_err(failed)?;
        let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
        mount(None, path, flags).map_err(failed)?;
    }
    Ok(())
}

fn cover(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => mount_empty(path),
        Ok(_) => mount(Some(Path::new("/dev/null")), path, libc::MS_BIND),
        // What is not there needs no cover.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn mount_empty(path: &Path) -> io::Result<()> {
    let (target, kind) = (text(path)?, c"tmpfs");
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all pointers are to strings that outlive the call.
    done(unsafe {
        libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
    })
}

fn mount(source: Option<&Path>, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map(text).transpose()?;
    let source = source.as_ref().map_or(std::ptr::null(), |source| source.as_ptr());
    let target = text(target)?;
    // SAFETY: the pointers are null, where the call allows it, or to strings that outlive the call.
    done(unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_can_be_made_for_this_machine() {
        assert!(!program().expect("a program").is_empty());
        let mut numbers = DENIED.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), DENIED.len(), "each call is named once");
    }
}
