//! `wasi:io/poll`, bounded: every pollable in a list is asked each time that one of them wakes the
//! guest, and may hold a place in somebody's queue meanwhile.
//!
//! A pollable that is in no list costs an entry of the instance's table, or two, and the place of its
//! timer if it has one (see `clocks`); the table is bounded by itself.

use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::poll;

use crate::limits::POLLABLES_MAX;

/// What the bindings work on.
pub(crate) struct PollView<'a>(pub(crate) &'a mut ResourceTable);

pub(crate) struct HasPoll;

impl HasData for HasPoll {
    type Data<'a> = PollView<'a>;
}

impl poll::Host for PollView<'_> {
    /// Traps where there are too many, as the interface wants it of lists that are too long.
    async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        let count = pollables.len();
        if count > POLLABLES_MAX {
            let text =
                format!("the guest polls {count} pollables at once; {POLLABLES_MAX} are allowed");
            return Err(wasmtime::Error::msg(text));
        }
        poll::Host::poll(self.0, pollables).await
    }
}

impl poll::HostPollable for PollView<'_> {
    async fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        poll::HostPollable::ready(self.0, pollable).await
    }

    async fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::block(self.0, pollable).await
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::drop(self.0, pollable)
    }
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi::p2::{Pollable, subscribe};

    use super::*;

    struct Ready;

    #[wasmtime_wasi::async_trait]
    impl Pollable for Ready {
        async fn ready(&mut self) {}
    }

    #[tokio::test]
    async fn lists_are_bounded() {
        let mut table = ResourceTable::new();
        let pollables: Vec<Resource<DynPollable>> = (0..=POLLABLES_MAX)
            .map(|_| {
                let ready = table.push(Ready).expect("the table has room");
                subscribe(&mut table, ready).expect("the table has room")
            })
            .collect();
        let list = |count: usize| -> Vec<Resource<DynPollable>> {
            pollables.iter().take(count).map(|each| Resource::new_borrow(each.rep())).collect()
        };
        let mut view = PollView(&mut table);
        let ready = poll::Host::poll(&mut view, list(POLLABLES_MAX)).await;
        assert_eq!(ready.expect("so many may be").len(), POLLABLES_MAX);
        let error = poll::Host::poll(&mut view, list(POLLABLES_MAX + 1)).await;
        let error = error.expect_err("there are too many").to_string();
        assert_eq!(error, "the guest polls 1001 pollables at once; 1000 are allowed");
    }
}
