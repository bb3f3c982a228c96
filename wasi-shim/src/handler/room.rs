//! Memory for another instance. A Pod's limit is for all instances of a container together, so a
//! request that finds no memory for one waits until another has ended, as it waits for a place.
//!
//! What is booked for an instance is what the last ones needed, not what they began with: one that
//! was let in and then finds no memory to grow into would fail, though waiting was all it lacked. The
//! booking lasts until the head of the response; what the instance takes is taken of it first. (For one
//! that takes several requests at once, until it is made.)
//!
//! It is asked for when a request has its first turn: who waits for that holds none. Who waits for
//! memory does so in the order of these turns, who comes then waits behind, and the request's deadline
//! ends it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::rest::Linked;
use super::{HandleError, Inner, Instance, Queued};
use crate::account::Reserved;

/// What a handler knows of the memory of its instances, and who waits for some.
#[derive(Default)]
pub(super) struct Rooms {
    /// What the largest of the last instances had, a sixteenth less after each that had less.
    needs: AtomicU64,
    /// Requests that wait for memory.
    waiting: AtomicUsize,
    /// Held by the first one who waits; it is fair.
    first: tokio::sync::Mutex<()>,
}

impl Rooms {
    /// An instance has answered a request with so much.
    pub(super) fn learn(&self, held: u64) {
        let learnt = |needs: u64| Some(held.max(needs - needs / 16));
        let result = self.needs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learnt);
        result.expect("the update always has a value");
    }

    /// An instance wanted so much and failed, because others had it. What it had wanted after that
    /// nobody knows: the next ones get twice as much, until it is learnt that they need less.
    pub(super) fn learn_refused(&self, wanted: u64) {
        self.needs.fetch_max(wanted.saturating_mul(2), Ordering::Relaxed);
    }
}

impl Inner {
    /// Memory for another instance, if there is some.
    pub(super) fn reserve(&self, linked: &Linked) -> Option<Reserved> {
        let limits = &self.pod.config.limits;
        let learnt = self.rooms.needs.load(Ordering::Relaxed).min(limits.memory_bytes);
        // One that never fits is not waited for: its own limiter says so.
        let needs = linked.memory_bytes.max(learnt).min(limits.memory_bytes_total);
        self.pod.memory_account().reserve(needs, limits.memory_bytes_total)
    }

    /// An instance that rests, or a new one if there is memory for it.
    pub(super) fn find_instance(&self, linked: &Linked) -> Option<Instance> {
        self.shelf.take().or_else(|| {
            let store = self.pod.component_store_in(self.reserve(linked)?);
            Some(Instance { store, proxy: None, answered: 0 })
        })
    }

    /// Waits in the queue for that, if there is room in it: the memory limit is the container's, and
    /// other instances have it.
    pub(super) async fn room(&self, linked: &Linked) -> Result<Instance, HandleError> {
        if self.rooms.waiting.load(Ordering::Relaxed) == 0
            && let Some(found) = self.find_instance(linked)
        {
            return Ok(found);
        }
        let limits = &self.pod.config.limits;
        let _queued = Queued::enter(&self.queued, limits.queued_requests)?;
        let _waiting = Queued::enter(&self.rooms.waiting, limits.queued_requests)?;
        let _first = self.rooms.first.lock().await;
        loop {
            if let Some(found) = self.find_instance(linked) {
                return Ok(found);
            }
            self.pod.memory_account().memory_freed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;
    use crate::limits::HOST_BYTES_MAX;
    use crate::tests::handler::{HELLO, SPINS, get, load_handler};
    use crate::tests::until;
    use crate::{GuestConfig, Handler};

    const MIB: u64 = 1 << 20;

    fn with_total(bytes: u64) -> GuestConfig {
        let mut config = GuestConfig::default();
        config.limits.memory_bytes_total = bytes;
        config
    }

    fn linked(handler: &Handler) -> Arc<Linked> {
        handler.0.code.get().expect("it is never given back")
    }

    /// An instance begins with 128 KiB and grows by two MiB.
    #[tokio::test]
    async fn what_instances_needed_is_booked_for_the_next_ones() {
        let grows = r#"(func (export "handle") (param $in i32) (param $out i32) (local $body i32)
            (if (i32.eq (memory.grow (i32.const 32)) (i32.const -1)) (then unreachable))
            (local.set $body (call $head (local.get $out)))
            (call $say (local.get $body))
            (call $end (local.get $body)))"#;
        let handler = load_handler(grows, with_total(5 * MIB));
        let (inner, linked) = (&handler.0, linked(&handler));
        let first = inner.reserve(&linked).expect("all is free");
        assert_eq!(first.bytes(), 128 << 10, "nothing is known yet");
        drop(first);
        drop(handler.handle(get()).await.expect("a response"));
        until("it is gone", || handler.account().usage().instances_live == 0).await;
        assert_eq!(handler.account().taken_bytes(), 0);
        let first = inner.reserve(&linked).expect("all is free");
        assert_eq!(first.bytes(), (128 << 10) + 2 * MIB);
        let second = inner.reserve(&linked);
        assert!(second.is_some() && inner.reserve(&linked).is_none(), "two of them fit");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_booked_for_an_instance_stays_so_while_it_runs() {
        let handler = load_handler(SPINS, with_total(5 * MIB));
        handler.0.rooms.learn(2 * MIB);
        let first = tokio::spawn({
            let handler = handler.clone();
            async move { handler.handle(get()).await.map(drop) }
        });
        until("it burns CPU", || handler.account().usage().cpu.as_millis() > 0).await;
        assert_eq!(handler.account().taken_bytes(), 2 * MIB);
        assert_eq!(handler.account().usage().memory_bytes, 128 << 10, "that is all it has");
        first.abort();
        until("it is given back", || handler.account().taken_bytes() == 0).await;
    }

    /// It goes on for ever after the head of its response, as one with a slow reader does.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_body_keeps_no_booking() {
        let goes_on = r#"(func (export "handle") (param $in i32) (param $out i32)
            (drop (call $head (local.get $out)))
            (loop $again (br $again)))"#;
        let handler = load_handler(goes_on, with_total(5 * MIB));
        handler.0.rooms.learn(4 * MIB);
        let response = handler.handle(get()).await.expect("a head");
        assert_eq!(handler.account().taken_bytes(), 128 << 10);
        let linked = linked(&handler);
        let next = handler.0.find_instance(&linked).expect("there is room for the next one");
        assert_eq!(next.store.data().memory.reserved().bytes(), 4 * MIB);
        drop(response);
    }

    #[tokio::test]
    async fn the_first_ones_that_fail_for_their_neighbours_memory_make_the_next_ones_wait() {
        let bomb = r#"(func (export "handle") (param i32 i32)
            (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
            unreachable)"#;
        let handler = load_handler(bomb, with_total(4 * MIB));
        let (inner, linked) = (&handler.0, linked(&handler));
        let others = handler.account().reserve(3 * MIB, 4 * MIB).expect("all is free");
        let error = handler.handle(get()).await.map(drop).expect_err("it traps");
        assert!(matches!(error, HandleError::NoMemoryLeft), "{error:?}");
        assert!(inner.reserve(&linked).is_none(), "the next one would wait for the others");
        drop(others);
        assert!(inner.reserve(&linked).expect("all is free").bytes() > 2 * MIB);
    }

    #[test]
    fn what_is_needed_no_more_is_forgotten() {
        let rooms = Rooms::default();
        rooms.learn(64 * MIB);
        rooms.learn(MIB);
        assert_eq!(rooms.needs.load(Ordering::Relaxed), 60 * MIB);
        for _ in 0..100 {
            rooms.learn(MIB);
        }
        assert_eq!(rooms.needs.load(Ordering::Relaxed), MIB);
    }

    #[tokio::test]
    async fn who_finds_no_memory_until_its_deadline_may_ask_elsewhere() {
        let mut config = with_total(200 << 10);
        config.limits.request_deadline = std::time::Duration::from_millis(50);
        let handler = load_handler(HELLO, config);
        let _all = handler.0.reserve(&linked(&handler)).expect("all is free");
        let late = handler.handle(get()).await.map(drop);
        assert!(matches!(late, Err(HandleError::Busy)), "it has not begun: {late:?}");
    }

    #[tokio::test]
    async fn who_comes_waits_behind_those_who_wait() {
        let handler = load_handler(HELLO, with_total(200 << 10));
        let linked = linked(&handler);
        let all = handler.0.reserve(&linked).expect("all is free");
        let waiter = tokio::spawn({
            let (inner, linked) = (Arc::clone(&handler.0), Arc::clone(&linked));
            async move { inner.room(&linked).await.map(drop) }
        });
        until("it waits", || handler.0.rooms.waiting.load(Ordering::Relaxed) == 1).await;
        // Nobody else has a turn before the newcomer looks.
        drop(all);
        let room = || handler.0.room(&linked).now_or_never();
        assert!(room().is_none(), "it is not its turn");
        waiter.await.expect("no panic").expect("it has its room");
        assert!(room().is_some_and(|room| room.is_ok()));
    }

    #[tokio::test]
    async fn what_a_bucket_told_is_not_held_for_an_instance_that_rests() {
        let mut config = GuestConfig::default();
        config.limits.instance_requests = 1000;
        let handler = load_handler(HELLO, config);
        let (inner, linked) = (&handler.0, linked(&handler));
        let mut instance = inner.find_instance(&linked).expect("all is free");
        let told = instance.store.data_mut().own_buckets().answer.add(HOST_BYTES_MAX);
        assert!(told.is_ok());
        let mut siblings = inner.pod.meter.host_memory.part();
        assert!(!siblings.resize(HOST_BYTES_MAX), "it may not have taken it yet");
        assert!(inner.keep(instance, &inner.pod.meter).is_none(), "it rests");
        assert!(siblings.resize(HOST_BYTES_MAX));
    }
}
