//! `wasi:clocks/monotonic-clock` of WASI 0.2, whose timers are set once.
//!
//! A guest asks about its timers in lists (`wasi:io/poll`), again each time that something else in the
//! list was ready. wasmtime's set a timer anew for each time, and all guests share the lock behind which
//! timers are kept: one that asks about a thousand over and over holds it most of the time. These stay in
//! their places until they are dropped.

use std::pin::Pin;
use std::time::Duration;

use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::clocks::WasiClocksCtxView;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

/// What the bindings work on.
pub(crate) struct ClockView<'a>(pub(crate) WasiClocksCtxView<'a>);

pub(crate) struct HasClock;

impl HasData for HasClock {
    type Data<'a> = ClockView<'a>;
}

impl monotonic_clock::Host for ClockView<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.0.now()
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.0.resolution()
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let duration = when.saturating_sub(self.now()?);
        self.subscribe_duration(duration)
    }

    fn subscribe_duration(&mut self, nanos: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let deadline = tokio::time::Instant::now().checked_add(Duration::from_nanos(nanos));
        match deadline.filter(|_| nanos > 0) {
            Some(deadline) => {
                let timer = Timer(Box::pin(tokio::time::sleep_until(deadline)));
                let timer = self.0.table.push(timer)?;
                subscribe(self.0.table, timer)
            }
            // Now, or never.
            None => self.0.subscribe_duration(nanos),
        }
    }
}

struct Timer(Pin<Box<tokio::time::Sleep>>);

#[wasmtime_wasi::async_trait]
impl Pollable for Timer {
    async fn ready(&mut self) {
        self.0.as_mut().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use wasmtime_wasi::ResourceTable;
    use wasmtime_wasi::clocks::WasiClocksCtx;
    use wasmtime_wasi::p2::bindings::clocks::monotonic_clock::Host as _;
    use wasmtime_wasi::p2::bindings::io::poll;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Woken>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_timer_stays_set_when_nobody_asks_about_it_any_more() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let deadline = tokio::time::Instant::now() + Duration::from_millis(20);
        let mut timer = Timer(Box::pin(tokio::time::sleep_until(deadline)));
        assert!(timer.ready().as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        // Only the runtime that runs here sees that it is time.
        while woken.0.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(tokio::time::Instant::now() >= deadline);
    }

    #[tokio::test]
    async fn timers_are_ready_when_it_is_time_and_stay_so() {
        let (mut ctx, mut table) = (WasiClocksCtx::default(), ResourceTable::new());
        let mut clock = ClockView(WasiClocksCtxView { ctx: &mut ctx, table: &mut table });
        let begun = clock.now().expect("there is a clock");
        let soon = clock.subscribe_duration(5_000_000).expect("the table has room");
        let past = clock.subscribe_instant(begun).expect("the table has room");
        let late = clock.subscribe_duration(u64::MAX).expect("the table has room");
        let mut ready = async |list: &[&Resource<DynPollable>]| {
            let list = list.iter().map(|it| Resource::new_borrow(it.rep())).collect();
            poll::Host::poll(&mut table, list).await.expect("one is ready")
        };
        assert_eq!(ready(&[&late, &past, &soon]).await, [1]);
        assert_eq!(ready(&[&soon, &late]).await, [0]);
        assert_eq!(ready(&[&late, &soon]).await, [1], "asked again");
        let mut clock = ClockView(WasiClocksCtxView { ctx: &mut ctx, table: &mut table });
        assert!(clock.now().expect("there is a clock") >= begun + 5_000_000);
        let passed = clock.subscribe_instant(begun + 1).expect("the table has room");
        let list = vec![Resource::new_borrow(passed.rep())];
        assert_eq!(poll::Host::poll(&mut table, list).await.expect("it is ready"), [0]);
    }
}
