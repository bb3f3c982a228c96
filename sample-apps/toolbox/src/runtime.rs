//! Tasks, timers and waiting, in one thread: WASI has neither processes nor threads, so the two
//! sides of a pipe, a server and its connections, and jobs in the background are futures here.
//!
//! ```text
//!   run ─▶ poll what is woken ─▶ nothing left? ─▶ wasi:io/poll until a timer or stream is ready
//!               ▲                                          │
//!               └──────────────────────────────────────────┘
//! ```
//!
//! Natively (for the tests) there are timers only; files and memory are always ready.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Ready = Arc<Mutex<VecDeque<u64>>>;

/// Polls of tasks between two looks at timers and streams: a loop that never waits must not keep
/// others from being woken.
const POLLS_PER_LOOK: u32 = 64;

/// Puts its task into the queue of those that can go on.
struct WakeTask {
    id: u64,
    ready: Ready,
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
    }
}

#[derive(Default)]
struct Executor {
    tasks: RefCell<HashMap<u64, Task>>,
    ready: Ready,
    next: Cell<u64>,
}

thread_local! {
    static EXECUTOR: Executor = Executor::default();
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

/// What a task waits for.
enum Event {
    Time(Instant),
    #[cfg(target_family = "wasm")]
    Pollable(Rc<wasip2::io::poll::Pollable>),
}

struct Waiting {
    id: u64,
    event: Event,
    waker: Waker,
}

/// One wait. What it waits for is forgotten when it is dropped: a pollable must go before its
/// stream.
struct Wait(u64);

impl Wait {
    fn new() -> Wait {
        Wait(EXECUTOR.with(|executor| executor.next.replace(executor.next.get() + 1)))
    }

    fn until(&self, event: Event, cx: &Context<'_>) {
        let waiting = Waiting { id: self.0, event, waker: cx.waker().clone() };
        WAITING.with_borrow_mut(|all| {
            all.retain(|it| it.id != self.0);
            all.push(waiting);
        });
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        WAITING.with_borrow_mut(|all| all.retain(|it| it.id != self.0));
    }
}

/// Runs `main` and, beside it, everything that is spawned, until `main` ends.
pub fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(RefCell::new(None));
    let slot = result.clone();
    spawn(async move {
        let value = main.await;
        *slot.borrow_mut() = Some(value);
    });
    loop {
        let mut polls = 0;
        while let Some(id) = EXECUTOR.with(next_ready) {
            EXECUTOR.with(|executor| poll_task(executor, id));
            if let Some(value) = result.borrow_mut().take() {
                EXECUTOR.with(|executor| executor.tasks.borrow_mut().clear());
                return value;
            }
            polls += 1;
            if polls % POLLS_PER_LOOK == 0 {
                wait(false);
            }
        }
        wait(true);
    }
}

/// Runs a future beside the others. It is dropped when the main one ends.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    EXECUTOR.with(|executor| {
        let id = executor.next.get();
        executor.next.set(id + 1);
        executor.tasks.borrow_mut().insert(id, Box::pin(future));
        executor.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
    });
}

fn next_ready(executor: &Executor) -> Option<u64> {
    executor.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn poll_task(executor: &Executor, id: u64) {
    // Woken twice, or woken at its end.
    let Some(mut task) = executor.tasks.borrow_mut().remove(&id) else { return };
    let waker = Waker::from(Arc::new(WakeTask { id, ready: executor.ready.clone() }));
    if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        executor.tasks.borrow_mut().insert(id, task);
    }
}

/// Wakes whoever's time has come or whose stream is ready; waits for the first if `block`.
#[cfg(not(target_family = "wasm"))]
fn wait(block: bool) {
    let waiting = WAITING.take();
    let first = waiting.iter().map(|it| match it.event {
        Event::Time(time) => time,
    });
    match first.min() {
        Some(time) if block => std::thread::sleep(time.saturating_duration_since(Instant::now())),
        Some(_) => {}
        None => assert!(!block, "every task waits for another one"),
    }
    let now = Instant::now();
    for it in waiting {
        match it.event {
            Event::Time(time) if time <= now => it.waker.wake(),
            Event::Time(_) => WAITING.with_borrow_mut(|all| all.push(it)),
        }
    }
}

/// Wakes whoever's time has come or whose stream is ready; waits for the first if `block`.
#[cfg(target_family = "wasm")]
fn wait(block: bool) {
    use wasip2::clocks::monotonic_clock::subscribe_duration;
    use wasip2::io::poll::{Pollable, poll};

    let waiting = WAITING.take();
    if waiting.is_empty() {
        assert!(!block, "every task waits for another one");
        return;
    }
    let now = Instant::now();
    let timers: Vec<Pollable> = waiting
        .iter()
        .filter_map(|it| match &it.event {
            Event::Time(time) => Some(time.saturating_duration_since(now)),
            Event::Pollable(_) => None,
        })
        .min()
        .into_iter()
        .chain((!block).then_some(Duration::ZERO))
        .map(|left| subscribe_duration(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)))
        .collect();
    let streams = waiting.iter().filter_map(|it| match &it.event {
        Event::Time(_) => None,
        Event::Pollable(pollable) => Some(&**pollable),
    });
    let all: Vec<&Pollable> = timers.iter().chain(streams).collect();
    let ready = poll(&all);
    let now = Instant::now();
    let mut index = timers.len();
    for it in waiting {
        let is_ready = match &it.event {
            Event::Time(time) => *time <= now,
            Event::Pollable(_) => {
                index += 1;
                ready.contains(&u32::try_from(index - 1).unwrap_or(u32::MAX))
            }
        };
        if is_ready {
            it.waker.wake();
        } else {
            WAITING.with_borrow_mut(|all| all.push(it));
        }
    }
}

/// Waits for a duration.
pub async fn sleep(duration: Duration) {
    // An hour more than a lifetime would overflow the clock.
    let until = Instant::now() + duration.min(Duration::from_secs(u64::from(u32::MAX)));
    let wait = Wait::new();
    std::future::poll_fn(|cx| {
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        wait.until(Event::Time(until), cx);
        Poll::Pending
    })
    .await;
}

/// Lets others go on.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until the host says that a stream or socket is ready.
#[cfg(target_family = "wasm")]
pub async fn ready(pollable: wasip2::io::poll::Pollable) {
    let pollable = Rc::new(pollable);
    let wait = Wait::new();
    std::future::poll_fn(|cx| {
        if pollable.ready() {
            return Poll::Ready(());
        }
        wait.until(Event::Pollable(pollable.clone()), cx);
        Poll::Pending
    })
    .await;
}
