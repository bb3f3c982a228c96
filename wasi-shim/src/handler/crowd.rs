//! Instances that take several requests at once: handlers of WASI 0.3 whose Pod wants that.
//!
//! ```text
//!   request ─▶ an instance with room? ─no─▶ a new one, which is a task
//!                 │yes
//!                 ▼
//!              `jobs` ─▶ its event loop ─▶ calls under way ─▶ head: `reply`, frames: the body
//!              `live` ─▶ watched from outside: deadlines, and the time without any call
//! ```
//!
//! wasmtime runs guest and event loop in turns: a guest that keeps its turn keeps the loop from
//! everything, timers included. So deadlines are watched from outside of the instance. A call whose
//! deadline has passed ends for its caller at once; its instance takes no more, and is dropped when
//! the others have ended, which their own deadlines bound. A trap ends all calls of an instance.
//!
//! A call is *live* until both the guest and its caller are done with it. An instance without live
//! calls for as long as one may rest is given back, whatever it does in the background.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::BodyExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wasmtime::AsContextMut;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::handler::{Prepared, Proxy};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode as P3ErrorCode;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::rest::Linked;
use super::{
    Call, Completion, DONE, FAILED, HandleError, Inner, Progress, Reply, ResponseBody, Steps,
    as_error,
};
use crate::account::{Metered, Reserved};
use crate::http::{Body, to_wasi};
use crate::instance::Host;
use crate::output::Output;

/// The instances of a handler that take requests.
#[derive(Default)]
pub(super) struct Crowd(Mutex<Vec<Arc<Shared>>>);

/// One instance.
struct Shared {
    /// Locked for a look at a few entries.
    state: Mutex<State>,
    /// For the event loop: a job has come, or it shall end.
    arrived: Notify,
    /// For whoever watches: calls have come or gone.
    changed: Notify,
    /// Whether a thread is running it right now.
    is_running: AtomicBool,
}

struct State {
    jobs: VecDeque<Job>,
    live: Vec<Live>,
    /// Requests that it has taken.
    taken: u32,
    /// It takes no more.
    closed: bool,
    /// A call of it has passed its deadline.
    ill: bool,
    /// Since when nothing is live.
    empty_since: Instant,
}

/// A request on its way into the instance.
struct Job {
    request: http::Request<WasiBody>,
    call: Arc<Call>,
    reply: Reply,
    seat: Arc<Seat>,
}

/// A call that somebody waits for.
struct Live {
    call: Arc<Call>,
    reply: Reply,
    cut: CancellationToken,
}

/// A call's place in its instance and among the handler's requests: left when it is dropped.
pub(super) struct Seat {
    shared: Arc<Shared>,
    call: Arc<Call>,
    /// Cancelled when the call is over, however its body looks.
    pub(super) cut: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.live.retain(|live| !Arc::ptr_eq(&live.call, &self.call));
        if state.live.is_empty() {
            state.empty_since = Instant::now();
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

/// Has a request answered by an instance that may have others.
pub(super) async fn handle(
    handler: &Arc<Inner>,
    linked: Arc<Linked>,
    request: http::Request<Body>,
    steps: Arc<Steps>,
    place: OwnedSemaphorePermit,
) -> Result<http::Response<Body>, HandleError> {
    let call = Arc::new(Call {
        steps,
        progress: Progress::new(handler.pod.config.limits.request_deadline),
        completion: Completion::default(),
        reserved: OnceLock::new(),
    });
    let (sender, response) = oneshot::channel();
    let reply = Reply(Arc::new(Mutex::new(Some(sender))));
    let request = request.map(to_wasi);
    let seat = enter(handler, linked, (request, &call, reply), place)?;
    // The instance went without a word, so it did not run to its end.
    let lost = |_| Err(HandleError::Trap("the host failed".into()));
    let head = response.await.unwrap_or_else(lost)?;
    call.progress.touch();
    handler.pod.meter.account.answered(call.progress.started.elapsed());
    Ok(head.map(|inner| ResponseBody::seated(inner, call, seat).boxed_unsync()))
}

/// Brings a request to an instance that has room and time, or to a new one. All full or about to end,
/// and no memory for another: then it is told so at once.
fn enter(
    handler: &Arc<Inner>,
    linked: Arc<Linked>,
    (request, call, reply): (http::Request<WasiBody>, &Arc<Call>, Reply),
    place: OwnedSemaphorePermit,
) -> Result<Arc<Seat>, HandleError> {
    let limits = &handler.pod.config.limits;
    let mut instances = handler.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
    instances.retain(|shared| !shared.lock().closed);
    let has_room = |shared: &&Arc<Shared>| shared.lock().live.len() < limits.instance_concurrency;
    let with_room = || instances.iter().filter(has_room);
    let idle = with_room().find(|shared| !shared.is_running.load(Ordering::Relaxed));
    // One that runs has no time; but more of them than threads would have none either.
    let threads = handler.pod.engine.fair().threads();
    let found = idle.or_else(|| with_room().next().filter(|_| with_room().count() >= threads));
    let taken_max = limits.instance_requests;
    // Where there is no memory for another one, any with room will do.
    let reserved = if found.is_none() { handler.reserve(&linked) } else { None };
    let found = found.or_else(|| with_room().next().filter(|_| reserved.is_none()));
    // The one that was found may have ended since, or be about to: what it took now would be lost.
    if let Some((shared, state)) = found.and_then(|shared| Some((shared, shared.open()?))) {
        return Ok(shared.take(state, (request, call, reply), place, taken_max));
    }
    let reserved = reserved.or_else(|| handler.reserve(&linked)).ok_or(HandleError::Busy)?;
    let shared = Arc::new(Shared::new());
    let seat = shared.take(shared.lock(), (request, call, reply), place, taken_max);
    instances.push(Arc::clone(&shared));
    tokio::spawn(run(Arc::clone(handler), (linked, reserved), shared));
    Ok(seat)
}

impl Crowd {
    /// Lets all instances go that have no calls.
    pub(super) fn let_go(&self) {
        let mut instances = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        instances.retain(|shared| {
            let mut state = shared.lock();
            state.closed |= state.live.is_empty();
            shared.arrived.notify_one();
            !state.closed
        });
    }
}

impl Shared {
    fn new() -> Shared {
        Shared {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                live: Vec::new(),
                taken: 0,
                closed: false,
                ill: false,
                empty_since: Instant::now(),
            }),
            arrived: Notify::new(),
            changed: Notify::new(),
            is_running: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state, if it takes requests. As long as that is locked, it goes on doing so.
    fn open(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| !state.closed)
    }

    fn take(
        self: &Arc<Shared>,
        mut state: MutexGuard<'_, State>,
        (request, call, reply): (http::Request<WasiBody>, &Arc<Call>, Reply),
        place: OwnedSemaphorePermit,
        taken_max: u32,
    ) -> Arc<Seat> {
        let cut = CancellationToken::new();
        let seat = Arc::new(Seat {
            shared: Arc::clone(self),
            call: Arc::clone(call),
            cut: cut.clone(),
            _place: place,
        });
        state.taken += 1;
        state.closed |= state.taken >= taken_max;
        state.live.push(Live { call: Arc::clone(call), reply: reply.clone(), cut });
        let (call, seated) = (Arc::clone(call), Arc::clone(&seat));
        state.jobs.push_back(Job { request, call, reply, seat: seated });
        drop(state);
        self.arrived.notify_one();
        self.changed.notify_one();
        seat
    }

    /// Ends the calls whose deadline has passed. Says when to look again; None: nobody needs the
    /// instance any more, and it takes no more.
    fn look(&self, now: Instant, rest: Duration, log: &Output) -> Option<Instant> {
        let mut state = self.lock();
        let is_over = |live: &mut Live| live.call.progress.due() <= now;
        let over: Vec<Live> = state.live.extract_if(.., is_over).collect();
        let (never_begun, jobs) = std::mem::take(&mut state.jobs)
            .into_iter()
            .partition::<VecDeque<Job>, _>(|job| job.call.progress.due() <= now);
        state.jobs = jobs;
        if !over.is_empty() {
            (state.closed, state.ill) = (true, true);
            state.empty_since = now;
        }
        let due = match state.live.iter().map(|live| live.call.progress.due()).min() {
            Some(due) => Some(due),
            None if state.ill => None,
            None => Some(state.empty_since + rest).filter(|due| *due > now),
        };
        state.closed |= due.is_none();
        drop(state);
        for live in over {
            log(format!("wherry: {}\n", HandleError::Deadline).as_bytes());
            live.end(HandleError::Deadline);
        }
        // Their seats are left only now that nothing is locked.
        drop(never_begun);
        due
    }

    /// Ends when nobody needs the instance any more.
    async fn watched(&self, rest: Duration, log: &Output) {
        while let Some(due) = self.look(Instant::now(), rest, log) {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Takes no more, and ends what is live.
    fn fail(&self, error: &HandleError) {
        let mut state = self.lock();
        state.closed = true;
        let (live, jobs) = (std::mem::take(&mut state.live), std::mem::take(&mut state.jobs));
        drop(state);
        for live in live {
            live.end(error.clone());
        }
        drop(jobs);
    }

    /// Its guest has answered all that it took and written it to the end: callers may still read.
    fn finish(&self) {
        let mut state = self.lock();
        state.closed = true;
        let live = std::mem::take(&mut state.live);
        drop(state);
        for live in live {
            live.call.completion.leave(DONE);
        }
    }

    /// Whether no request is left and none will come.
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.closed && state.jobs.is_empty()
    }

    fn next_job(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }
}

impl Live {
    fn end(self, error: HandleError) {
        self.call.completion.leave(FAILED);
        self.reply.send(Err(error));
        self.cut.cancel();
    }
}

/// Marks what is live as failed before the instance, and with it the channels of bodies, is dropped.
struct Fuse<'a>(&'a Shared);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        self.0.fail(&HandleError::Trap("its instance is gone".into()));
    }
}

/// One instance, from its start to its end.
async fn run(
    handler: Arc<Inner>,
    (linked, reserved): (Arc<Linked>, Reserved),
    shared: Arc<Shared>,
) {
    let pod = &handler.pod;
    let guest = serve(&handler, (&linked, reserved), &shared);
    let mut guest = pin!(Metered::new(pod.engine.clone(), Arc::clone(&pod.meter), None, guest));
    let guest = std::future::poll_fn(|cx| {
        shared.is_running.store(true, Ordering::Relaxed);
        let polled = guest.as_mut().poll(cx);
        shared.is_running.store(false, Ordering::Relaxed);
        polled
    });
    tokio::select! {
        biased;
        () = guest => {}
        () = shared.watched(pod.config.limits.instance_rest, &pod.config.stderr) => {}
    }
}

async fn serve(handler: &Inner, (linked, reserved): (&Linked, Reserved), shared: &Shared) {
    let account = &handler.pod.meter.account;
    let mut store = handler.pod.component_store_in(reserved);
    let _fuse = Fuse(shared);
    let begun = Instant::now();
    let mut entered = false;
    let result = match linked.entry.instantiate_async(&mut store).await {
        Ok(proxy) => {
            entered = true;
            account.instantiated(begun.elapsed());
            store.data_mut().memory.made();
            let proxy = &proxy;
            let calls =
                store.run_concurrent(async |accessor| answer(accessor, proxy, shared).await);
            calls.await.and_then(|ended| ended)
        }
        Err(error) => Err(error),
    };
    let Err(error) = result else {
        shared.finish();
        return;
    };
    let error = as_error(&error, store.data().memory.refused, entered);
    if error.is_guests_fault() {
        (handler.pod.config.stderr)(format!("wherry: {error}\n").as_bytes());
    }
    shared.fail(&error);
}

/// The event loop: answers requests until no more shall come and none is left.
async fn answer(accessor: &Accessor<Host>, proxy: &Proxy, shared: &Shared) -> wasmtime::Result<()> {
    let mut calls = FuturesUnordered::new();
    loop {
        while let Some(job) = shared.next_job() {
            calls.push(answer_one(accessor, proxy, job));
        }
        if calls.is_empty() && shared.is_over() {
            break;
        }
        tokio::select! {
            Some(ended) = calls.next() => ended?,
            () = shared.arrived.notified() => {}
        }
    }
    // Bodies are written by tasks of the guest that outlive their call's return.
    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
    Ok(())
}

/// Answers one request. An error is the whole instance's.
async fn answer_one(accessor: &Accessor<Host>, proxy: &Proxy, job: Job) -> wasmtime::Result<()> {
    let Job { request, call, reply, seat } = job;
    call.steps.write(&call.steps.instantiated_ns);
    let (sender, response) = futures::channel::oneshot::channel();
    let view = <Host as WasiHttpView>::http;
    let prepared = accessor
        .with(|mut store| Prepared::new(store.as_context_mut(), proxy, request, view, sender))?;
    // Deadlines are watched from outside.
    prepared.run(accessor, std::future::pending()).await?;
    let response = response
        .await
        .unwrap_or_else(|_| Err(wasmtime::Error::msg("the guest ended without an answer")));
    match response {
        Ok(response) => reply.send(Ok(response)),
        // The guest is well: it said no to this one.
        Err(error) if error.downcast_ref::<P3ErrorCode>().is_some() => {
            reply.send(Err(as_error(&error, crate::instance::Refused::Nothing, true)));
        }
        Err(error) => return Err(error),
    }
    drop(seat);
    Ok(())
}

/// Ready as soon as a call is cut off.
pub(super) type Cut = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) fn cut_of(seat: &Seat) -> Cut {
    Box::pin(seat.cut.clone().cancelled_owned())
}

/// Whether a call was cut off; registers the waker if not.
pub(super) fn is_cut(cut: &mut Cut, cx: &mut std::task::Context<'_>) -> bool {
    matches!(cut.as_mut().poll(cx), Poll::Ready(()))
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::output::no_output;

    fn seated(shared: &Arc<Shared>) -> Arc<Seat> {
        let call = Arc::new(Call {
            steps: Arc::default(),
            progress: Progress::new(Duration::from_secs(60)),
            completion: Completion::default(),
            reserved: OnceLock::new(),
        });
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("it is free");
        let job = (http::Request::new(body), &call, Reply(Arc::default()));
        shared.take(shared.lock(), job, place, 1)
    }

    /// Callers may read more slowly than the guest has written.
    #[test]
    fn only_an_instance_that_fails_cuts_bodies_off() {
        let shared = Arc::new(Shared::new());
        let seat = seated(&shared);
        drop(shared.next_job());
        assert!(shared.is_over());
        shared.finish();
        drop(Fuse(&shared));
        assert!(!seat.cut.is_cancelled() && !seat.call.completion.failed());
        let shared = Arc::new(Shared::new());
        let seat = seated(&shared);
        drop(Fuse(&shared));
        assert!(seat.cut.is_cancelled() && seat.call.completion.failed());
    }

    /// It was idle for as long as it may be, and somebody found it just before that.
    #[test]
    fn an_instance_that_is_given_back_takes_nothing_more() {
        let (shared, rest) = (Shared::new(), Duration::from_secs(1));
        assert!(shared.open().is_some());
        assert!(shared.look(Instant::now(), rest, &no_output()).is_some());
        assert!(shared.open().is_some());
        assert!(shared.look(Instant::now() + 2 * rest, rest, &no_output()).is_none());
        assert!(shared.open().is_none());
    }
}
