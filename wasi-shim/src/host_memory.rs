//! Memory of the host that is held for a container's guests, beside their own: values of a bucket
//! in memory, what buckets answer, names of listed directories, headers and bodies of messages. Each
//! holder has a [`Part`] of it, and there is no more than so much of it for all instances of a
//! container. (What sockets keep has a bound of its own, by their number.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::HOST_BYTES_MAX;

/// How much of it is taken. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(crate) struct HostMemory(Arc<AtomicUsize>);

/// What one holder has of it, given back when it is dropped.
pub(crate) struct Part {
    of: HostMemory,
    bytes: usize,
}

impl HostMemory {
    /// A part that is nothing yet.
    pub(crate) fn part(&self) -> Part {
        Part { of: self.clone(), bytes: 0 }
    }
}

impl Part {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it so large, unless all parts together became too large; says whether it did. It can
    /// always become smaller.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        let change = |all: usize| {
            let all = all - self.bytes + bytes;
            (bytes <= self.bytes || all <= HOST_BYTES_MAX).then_some(all)
        };
        let changed = self.of.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        if changed.is_ok() {
            self.bytes = bytes;
        }
        changed.is_ok()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_what_there_is() {
        let memory = HostMemory::default();
        let (mut one, mut other) = (memory.part(), memory.part());
        assert!(one.resize(HOST_BYTES_MAX - 10) && other.resize(10));
        assert!(!other.resize(11) && other.bytes() == 10, "a refusal changes nothing");
        assert!(one.resize(100) && other.resize(HOST_BYTES_MAX - 100));
        drop(other);
        assert!(one.resize(HOST_BYTES_MAX), "what was dropped is free");
    }
}
