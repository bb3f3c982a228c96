//! How soon the kernel takes a CPU from a thread for one that has just been woken.
//!
//! A thread that goes on and on gives way at the kernel's tick, every few milliseconds: as long a
//! neighbour's request would wait although it needs a hundred microseconds. Since version 6.12 Linux
//! lets a thread say how long its slices are (`sched_setattr`, for the EEVDF scheduler), and one with
//! shorter slices is given the CPU when it wakes. So who has time asks for long ones: its share of
//! the CPU stays the same. Older kernels take no notice.
//!
//! But one that has just had more than its share, as a thread has that answers one request after the
//! other, is not given the CPU from a thread of the same weight. So what goes on for longer is done by a
//! thread that is taken for idle (`SCHED_IDLE`), from which the kernel takes the CPU at once. No thread may
//! come back from there, so it is one for this alone, and threads that it starts stay there as well: who runs
//! guests starts those for calls that block beforehand. And what has many short turns gives up the CPU
//! between two of them now and then: since version 6.18 Linux then takes from a thread what it was still to
//! have, so that whoever waits comes next.

use std::cell::Cell;
use std::ffi::CStr;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use tokio::runtime::RuntimeFlavor;

/// In nanoseconds; the longest that the kernel takes.
const LONG_NS: u64 = 100_000_000;

/// The priority of what goes on for longer where it cannot be idle: a tenth of what others are given.
const LATER_NICE: libc::c_int = 10;

/// Long enough for the kernel to give the CPU to another thread.
const LET_IN: Duration = Duration::from_micros(10);

/// How often a thread that has many short turns gives up the CPU.
const STRETCH: Duration = Duration::from_micros(500);

/// Lets whoever waits for this thread's CPU have that, if it has not done so for a while.
pub(crate) fn give_up_cpu() {
    thread_local! {
        static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    if SINCE.get().is_none_or(|since| now.duration_since(since) >= STRETCH) {
        SINCE.set(Some(now));
        std::thread::yield_now();
    }
}

/// Has some work done by a thread that is taken for idle, or where that would get nowhere by one of low
/// priority, and waits for it. Where there can be none, does it.
pub(crate) fn later<T: Send>(idle: bool, work: impl FnOnce() -> T + Send) -> T {
    let runtime = tokio::runtime::Handle::try_current().ok();
    let mut work = Some(work);
    let mut run = || work.take().map(|work| work());
    let mut threaded = || {
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().name("later".into()).spawn_scoped(scope, || {
                    let _entered = runtime.as_ref().map(tokio::runtime::Handle::enter);
                    if idle {
                        be_idle();
                        let_in();
                    } else {
                        lower();
                    }
                    run()
                });
            thread.ok().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    };
    // It may take long: what this thread had yet to wake is left to another one.
    let several = runtime.as_ref().map(tokio::runtime::Handle::runtime_flavor);
    let done = match several {
        Some(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(threaded),
        _ => threaded(),
    };
    done.flatten().or_else(run).expect("the work is done once")
}

/// The calling thread is taken for idle, for good. Its slices are long for the sake of other groups of
/// threads, to which only these matter.
fn be_idle() {
    give_way();
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the struct of this frame.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
}

/// Whoever has come to this CPU since the calling thread has it, has it now: as a thread becomes idle the
/// kernel does not look who else is there, and would only at its next tick. To yield would have it look as
/// well, but a thread that is idle would then have the CPU again only after a long time, if others are
/// always there. A sleep must not be over before the thread has left the CPU; with the kernel's slack it
/// takes some 60 us of a turn of 4 ms.
fn let_in() {
    std::thread::sleep(LET_IN);
}

/// Lowers the priority of the calling thread for good, and asks for long slices.
fn lower() {
    give_way();
    // SAFETY: plain system calls about this thread, whose priority may always be lowered.
    unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0).max(LATER_NICE);
        libc::setpriority(libc::PRIO_PROCESS, libc::gettid().cast_unsigned(), nice);
    }
}

/// The calling thread gives way to whoever wakes, until this is dropped on the same thread.
pub(crate) struct GivesWay {
    /// As it was before.
    before: libc::sched_attr,
}

impl GivesWay {
    /// `None` where the kernel does not have it, or the thread is scheduled by other rules.
    pub(crate) fn begin() -> Option<GivesWay> {
        let before = attributes()?;
        set(libc::sched_attr { sched_runtime: LONG_NS, ..before })?;
        Some(GivesWay { before })
    }
}

impl Drop for GivesWay {
    fn drop(&mut self) {
        // The kernel took it from here, so it takes it back.
        let _ = set(self.before);
    }
}

/// The calling thread gives way to whoever wakes, and so do those that it starts. May be called between
/// fork and exec.
pub fn give_way() {
    std::mem::forget(GivesWay::begin());
}

/// The calling process gives way to all others, and so do those that it starts: taken for idle in a session
/// of its own, which is the last of all sessions. To the kernel these are groups, and what is said of a
/// thread counts only within its own (`autogroup`, sched(7)). May be called between fork and exec.
pub fn give_way_to_all() {
    be_idle();
    // SAFETY: a plain system call about this process.
    let leads = unsafe { libc::setsid() } >= 0;
    if leads {
        place_session(c"/proc/self/autogroup", c"19");
    }
}

/// Sets the nice value of a session among others, where the kernel has such groups; `file` is a process's
/// `autogroup`. Says whether it is set: who may not administer the machine can do so ten times a second.
pub fn place_session(file: &CStr, nice: &CStr) -> bool {
    // SAFETY: plain system calls with strings that end in zeros; the length is that of one.
    unsafe {
        let file = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let written = libc::write(file, nice.as_ptr().cast(), nice.count_bytes());
        libc::close(file);
        written > 0
    }
}

/// Those of the calling thread, if it is scheduled as most are.
fn attributes() -> Option<libc::sched_attr> {
    let mut found = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel fills the struct of this frame, and no more than the size that it is told.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size_of_val(&found), 0)
    };
    (result == 0 && found.sched_policy == libc::SCHED_OTHER.cast_unsigned()).then_some(found)
}

/// Sets those of the calling thread.
fn set(wanted: libc::sched_attr) -> Option<()> {
    // SAFETY: the kernel reads the struct of this frame, which says its size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    (result == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn later_work_is_taken_for_idle_and_leaves_others_as_they_are() {
        tokio::spawn(async {
            // SAFETY: plain system calls about this thread.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            let before = (policy(), nice());
            assert_eq!(later(true, policy), libc::SCHED_IDLE);
            assert_eq!(later(false, || (policy(), nice())), (before.0, before.1.max(LATER_NICE)));
            assert_eq!((policy(), nice()), before);
            let panicked = std::panic::catch_unwind(|| later(true, || panic!("it fails")));
            assert!(panicked.is_err(), "as if it had been done here");
            // The only thread of the runtime, as it seems, does something else meanwhile.
            let (send, receive) = std::sync::mpsc::channel();
            tokio::spawn(async move { send.send("meanwhile") });
            let wait = move || receive.recv_timeout(Duration::from_secs(60));
            assert_eq!(later(true, wait), Ok("meanwhile"));
        })
        .await
        .expect("it does not panic");
    }

    #[test]
    fn a_thread_has_its_slices_back() {
        // Neither kernel nor whoever runs the tests has to have it.
        let (Some(before), Some(gives_way)) = (attributes(), GivesWay::begin()) else {
            return;
        };
        let during = attributes().expect("it is scheduled by the same rules");
        assert_eq!((during.sched_nice, during.sched_policy), (before.sched_nice, 0));
        // Kernels before 6.12 have no slices to show.
        assert!(before.sched_runtime == 0 || during.sched_runtime == LONG_NS);
        drop(gives_way);
        let after = attributes().expect("it is scheduled by the same rules");
        assert_eq!(after.sched_runtime, before.sched_runtime);
    }
}
