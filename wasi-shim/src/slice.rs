//! How soon the kernel takes a CPU from a thread for one that has just been woken.
//!
//! A thread that goes on and on gives way at the kernel's tick, every few milliseconds: as long a
//! neighbour's request would wait although it needs a hundred microseconds. Since version 6.12 Linux
//! lets a thread say how long its slices are (`sched_setattr`, for the EEVDF scheduler), and one with
//! shorter slices is given the CPU when it wakes. So who has time asks for long ones: its share of
//! the CPU stays the same. Older kernels take no notice.

/// In nanoseconds; the longest that the kernel takes.
const LONG_NS: u64 = 100_000_000;

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
