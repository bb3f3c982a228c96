//! A handler: answers HTTP requests, each in an instance of its own unless the Pod wants otherwise.
//!
//! ```text
//!  handle ─▶ place? ─no─▶ queue ─full─▶ Busy      at its turn in the same way: memory (see `room`)
//!              │yes                          the call owns the instance, holds the place, and
//!              ▼                             ends in one of these ways:
//!      call: instantiate ─▶ guest handles ─▶ done · fault · deadline · caller gone before the head
//!                               │
//!                               ├─ head ──▶ `reply` ──▶ handle returns the response
//!                               └─ frames ─▶ `ResponseBody` ──▶ the caller reads them
//! ```
//!
//! By default nothing of one request is there for the next. A Pod that trusts its own requests may
//! have an instance answer several, one after the other (`Limits::instance_requests`): one that
//! ended a request well rests on a [`Shelf`] for the next, or until it has rested for too long; or
//! several at once (`Limits::instance_concurrency`), see `crowd`. What a handler holds while nobody
//! asks it, its compiled code, it can give back, see `rest`.
//!
//! A call runs within its caller's task until the head is there: most are done by then, and waking
//! another thread costs as much as an instance. One that is not done goes on as a task, and so does one
//! whose caller is another guest's request, which has turns of its own. What is left
//! of one that is done, memory to be wiped, is a task as well unless others are being handled: its
//! caller's thread turns to that when it has written the answer.
//!
//! The deadline lies outside the instance and drops it: it runs from the request to the head, and
//! starts anew with each frame that the caller takes, so that a long download may last while a
//! guest or a client that does nothing may not. A guest that fails after the head makes the body
//! end in an error, never as if it were complete; `Progress` and `Completion` carry the two facts
//! between the guest's side and the body.

mod crowd;
mod progress;
mod rest;
mod room;
mod served;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Component, Linker};
use wasmtime::{AsContextMut, Store};
use wasmtime_wasi_http::handler::{Prepared, Proxy, ProxyPre};
use wasmtime_wasi_http::p2::bindings::ProxyPre as P2Pre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::ServicePre as P3Pre;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode as P3ErrorCode;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use self::crowd::{Crowd, Cut, Seat};
use self::progress::Progress;
pub(crate) use self::rest::Code;
use self::rest::Linked;
pub use self::rest::Wake;
use self::room::Rooms;
use self::served::Served;
use crate::account::{Account, Budget, Meter, Metered, Reserved, Waiting};
use crate::engine::Engine;
use crate::fair::{asks, within_a_turn};
use crate::fault::{Fault, classify};
use crate::http::{Body, BodyError, to_wasi};
use crate::instance::{Host, Pod, Refused};
use crate::limits::GuestConfig;

/// Instances of a handler that are wiped behind their answers, and the memory that each of them may
/// have: those beyond it are wiped before. Their memory is not counted any more.
const SPENT_MAX: usize = 8;
const SPENT_BYTES_MAX: u64 = 4 << 20;

/// Why a request got no response.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandleError {
    #[error("too many requests are being handled already")]
    Busy,
    #[error("this worker has no place for another instance")]
    InstanceLimit,
    /// Its code was given back while nobody needed it, and could not be had again.
    #[error("its code could not be mapped again: {0}")]
    Asleep(String),
    #[error("the guest did not answer in time")]
    Deadline,
    #[error("the guest needed more memory than its limit")]
    OutOfMemory,
    #[error("the guest needed more memory than other instances leave of its container's limit")]
    NoMemoryLeft,
    /// May have several lines: the guest's call stack.
    #[error("the guest trapped: {0}")]
    Trap(String),
    #[error("the guest ended without an answer")]
    NoResponse,
    /// The guest answered with an error code of `wasi:http`.
    #[error("the guest answered with an error: {0}")]
    GuestError(String),
    #[error("the request cannot be given to a guest: {0}")]
    BadRequest(String),
}

impl HandleError {
    /// The status that tells a client as much as it may know.
    pub fn status(&self) -> StatusCode {
        match self {
            HandleError::Busy | HandleError::InstanceLimit | HandleError::Asleep(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            HandleError::Deadline => StatusCode::GATEWAY_TIMEOUT,
            HandleError::BadRequest(_) => StatusCode::BAD_REQUEST,
            HandleError::OutOfMemory
            | HandleError::NoMemoryLeft
            | HandleError::Trap(_)
            | HandleError::NoResponse
            | HandleError::GuestError(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether the guest's own code is to blame, so that its log should say so.
    fn is_guests_fault(&self) -> bool {
        match self {
            HandleError::Busy | HandleError::InstanceLimit => false,
            HandleError::BadRequest(_) | HandleError::Asleep(_) => false,
            HandleError::Deadline
            | HandleError::OutOfMemory
            | HandleError::NoMemoryLeft
            | HandleError::Trap(_)
            | HandleError::NoResponse
            | HandleError::GuestError(_) => true,
        }
    }
}

/// How far a request has come and what it has used, written by the handler as it goes. Times are
/// from when this was made.
pub struct Steps {
    began: Instant,
    /// Zero until it has happened.
    placed_ns: AtomicU64,
    instantiated_ns: AtomicU64,
    cpu_ns: AtomicU64,
    memory_bytes: AtomicU64,
}

impl Default for Steps {
    fn default() -> Steps {
        let zero = AtomicU64::default;
        Steps {
            began: Instant::now(),
            placed_ns: zero(),
            instantiated_ns: zero(),
            cpu_ns: zero(),
            memory_bytes: zero(),
        }
    }
}

impl Steps {
    /// Since when.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// When it had its place among the requests that are handled.
    pub fn placed(&self) -> Option<Duration> {
        written(&self.placed_ns)
    }

    /// When its instance was made.
    pub fn instantiated(&self) -> Option<Duration> {
        written(&self.instantiated_ns)
    }

    /// CPU time of its instance so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Linear memory that its instance had in the end; None while it runs.
    pub fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    pub(crate) fn used(&self, cpu_ns: u64) {
        self.cpu_ns.fetch_add(cpu_ns, Ordering::Relaxed);
    }

    fn write(&self, step: &AtomicU64) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        step.store(now.max(1), Ordering::Relaxed);
    }
}

fn written(step: &AtomicU64) -> Option<Duration> {
    Some(step.load(Ordering::Relaxed)).filter(|ns| *ns > 0).map(Duration::from_nanos)
}

/// Where a handler is entered, linked.
pub(crate) type Entry = ProxyPre<Host>;

pub(crate) fn link(linker: &Linker<Host>, component: &Component) -> wasmtime::Result<Entry> {
    let linked = linker.instantiate_pre(component)?;
    match P3Pre::new(linked.clone()) {
        Ok(entry) => Ok(ProxyPre::P3(entry)),
        Err(_) => Ok(ProxyPre::P2(P2Pre::new(linked)?)),
    }
}

/// A handler that waits for requests. Cheap to clone; all clones share limits and account.
#[derive(Clone)]
pub struct Handler(Arc<Inner>);

struct Inner {
    pod: Pod,
    code: Code,
    /// Places for requests that are being handled.
    places: Arc<Semaphore>,
    /// Requests that wait for a place.
    queued: AtomicUsize,
    /// Places for instances that are wiped behind their answers.
    spent: Arc<Semaphore>,
    shelf: Shelf,
    crowd: Crowd,
    rooms: Rooms,
}

impl Handler {
    pub(crate) fn new(engine: Engine, code: Code, config: GuestConfig) -> Handler {
        let places = Arc::new(Semaphore::new(config.limits.concurrent_requests));
        let pod = Pod::new(engine, config);
        let spent = Arc::new(Semaphore::new(SPENT_MAX));
        let (queued, shelf) = (AtomicUsize::new(0), Shelf::default());
        let (crowd, rooms) = (Crowd::default(), Rooms::default());
        Handler(Arc::new(Inner { pod, code, places, queued, spent, shelf, crowd, rooms }))
    }

    /// Gives back what it holds for the next request: instances that rest, and its code, if it can
    /// have that again. Requests that are under way keep what they use. Says whether it did.
    pub fn rest(&self) -> bool {
        if !self.0.code.rest() {
            return false;
        }
        // They hold the code as well. Dropped only when the shelf is free again.
        let resting = std::mem::take(&mut self.0.shelf.lock().instances);
        drop(resting);
        self.0.crowd.let_go();
        true
    }

    /// Whether its code was given back; the next request has it mapped again.
    pub fn is_at_rest(&self) -> bool {
        self.0.code.is_at_rest()
    }

    pub fn account(&self) -> Account {
        self.0.pod.meter.account.clone()
    }

    /// Whether no request is being handled; instances may rest.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.0.handled() == 0
    }

    /// Account and quota, for a guest that shall share them.
    pub fn budget(&self) -> Budget {
        Budget(Arc::clone(&self.0.pod.meter))
    }

    /// Answers one request. Returns with the head of the response; its body streams from the guest,
    /// which goes on until it is done. Dropping this future before that ends the guest.
    pub async fn handle(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HandleError> {
        self.handle_watched(request, Arc::default()).await
    }

    /// The same; what happens is written down in `steps`.
    pub async fn handle_watched(
        &self,
        request: http::Request<Body>,
        steps: Arc<Steps>,
    ) -> Result<http::Response<Body>, HandleError> {
        let request = with_authority(request)?;
        let place = self.0.place().await?;
        steps.write(&steps.placed_ns);
        let linked = self.0.awake().await?;
        let is_p3 = matches!(linked.entry, ProxyPre::P3(_));
        if is_p3 && self.0.pod.config.limits.instance_concurrency > 1 {
            return crowd::handle(&self.0, linked, request, steps, place).await;
        }
        let call = Arc::new(Call {
            steps,
            progress: Progress::new(self.0.pod.config.limits.request_deadline),
            completion: Completion::default(),
            reserved: OnceLock::new(),
        });
        let (sender, mut response) = oneshot::channel();
        let reply = Reply(Arc::new(Mutex::new(Some(sender))));
        let code = (Arc::clone(&self.0), linked);
        let waiting = Waiting::default();
        // A guest of this process, or else it is the Pod's own affair.
        let asker = asks().unwrap_or_else(|| Arc::clone(&self.0.pod.meter));
        let held = (place, waiting.clone(), Arc::clone(&asker));
        let guest = serve(code, request, Arc::clone(&call), reply, held);
        // A panic in a host function ends this call alone, not its caller's connection.
        let guest = AssertUnwindSafe(guest).catch_unwind().boxed();
        let mut guest = Served::new(&self.0, asker, guest, waiting, Arc::clone(&call));
        let (head, ended) = if within_a_turn() {
            // Who asks is another guest of this process, whose turns are not this one's.
            let mut guest = AbortOnDropHandle::new(tokio::spawn(guest));
            tokio::select! {
                biased;
                ended = &mut guest => (response.await, ended.ok()),
                head = &mut response => {
                    drop(guest.detach());
                    (head, None)
                }
            }
        } else {
            tokio::select! {
                biased;
                ended = &mut guest => (response.await, Some(ended)),
                head = &mut response => {
                    drop(tokio::spawn(guest));
                    (head, None)
                }
            }
        };
        // The call dropped the sender without a word, so it did not run to its end.
        let head = head.unwrap_or_else(|_| Err(HandleError::Trap("the host failed".into())))?;
        if let Some(Ok(Some(spent))) = ended {
            self.0.wipe_behind(spent);
        }
        call.progress.touch();
        // Its body may take for ever, and needs no more than the instance has.
        call.reserved.get().inspect(|reserved| reserved.give_back());
        self.0.pod.meter.account.answered(call.progress.started.elapsed());
        Ok(head.map(|inner| ResponseBody { inner, call, seat: None }.boxed_unsync()))
    }
}

impl Inner {
    /// Waits for a place in the queue, if there is room in it.
    async fn place(&self) -> Result<OwnedSemaphorePermit, HandleError> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let _queued = Queued::enter(&self.queued, self.pod.config.limits.queued_requests)?;
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(self.pod.config.limits.request_deadline, place).await {
            Ok(place) => Ok(place.expect("the semaphore is never closed")),
            Err(_) => Err(HandleError::Busy),
        }
    }
}

/// An instance that has ended well and answers no more. Dropping it wipes it, at its Pod's expense.
struct Spent {
    handler: Arc<Inner>,
    asker: Arc<Meter>,
    instance: Option<Instance>,
}

impl Drop for Spent {
    fn drop(&mut self) {
        let (pod, instance) = (&self.handler.pod, self.instance.take());
        pod.meter.charged(&pod.engine, &self.asker, || drop(instance));
    }
}

/// One request's place in the queue.
struct Queued<'a>(&'a AtomicUsize);

impl Queued<'_> {
    fn enter(queued: &AtomicUsize, queued_max: usize) -> Result<Queued<'_>, HandleError> {
        let guard = Queued(queued);
        if queued.fetch_add(1, Ordering::Relaxed) >= queued_max {
            return Err(HandleError::Busy);
        }
        Ok(guard)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A guest is told whom the request is for; one that does not say (HTTP/1.0) is for this host.
fn with_authority(mut request: http::Request<Body>) -> Result<http::Request<Body>, HandleError> {
    if request.uri().authority().is_some() {
        return Ok(request);
    }
    match request.headers().get(http::header::HOST).map(|host| host.to_str()) {
        Some(Ok(_)) => {}
        Some(Err(_)) => return Err(HandleError::BadRequest("its Host is not text".into())),
        None => {
            let host = http::HeaderValue::from_static("localhost");
            request.headers_mut().insert(http::header::HOST, host);
        }
    }
    Ok(request)
}

/// The facts that the guest's side and the response's body share.
struct Call {
    steps: Arc<Steps>,
    progress: Progress,
    completion: Completion,
    /// What was booked for its instance, if that is for this request alone.
    reserved: OnceLock<Reserved>,
}

/// Whether the guest ended well. Entered as `RUNNING`; left once, to `DONE` when the guest returned
/// or to `FAILED` before its instance, and with it the body's channel, is dropped.
#[derive(Default)]
struct Completion(AtomicU8);

const RUNNING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

impl Completion {
    fn leave(&self, state: u8) {
        // Losing the race to an earlier end is fine: the first one counts.
        let _ = self.0.compare_exchange(RUNNING, state, Ordering::Release, Ordering::Relaxed);
    }

    fn failed(&self) -> bool {
        self.0.load(Ordering::Acquire) == FAILED
    }
}

/// Marks the call as failed when dropped without [`Fuse::done`]. Declared after the store, so that
/// it is dropped before it, also by a deadline, an abort or a panic.
struct Fuse<'a>(&'a Completion);

impl Fuse<'_> {
    fn done(self) {
        self.0.leave(DONE);
    }
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        self.0.leave(FAILED);
    }
}

type Answer = Result<http::Response<WasiBody>, HandleError>;

/// The one answer to a request; the first to send it wins. The mutex is held for a `take` only.
#[derive(Clone)]
struct Reply(Arc<Mutex<Option<oneshot::Sender<Answer>>>>);

impl Reply {
    fn send(&self, answer: Answer) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // If nobody waits any more, the answer is lost with the client.
            let _ = sender.send(answer);
        }
    }

    fn is_sent(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// The guest's side of one request, from the instance's start to its end.
async fn serve(
    (handler, linked): (Arc<Inner>, Arc<Linked>),
    request: http::Request<Body>,
    call: Arc<Call>,
    reply: Reply,
    (_place, waiting, asker): (OwnedSemaphorePermit, Waiting, Arc<Meter>),
) -> Option<Spent> {
    let pod = &handler.pod;
    let guest = run((&handler, &linked), request, (&call, &reply), &asker);
    let steps = Some(Arc::clone(&call.steps));
    let guest =
        Metered::new(pod.engine.clone(), Arc::clone(&pod.meter), steps, guest).with(waiting);
    let guest = guest.asked_by(&asker);
    let result = tokio::select! {
        biased;
        result = guest => result,
        () = call.progress.expired() => Err(call.progress.late()),
    };
    let error = match result {
        Ok(spent) if reply.is_sent() => return spent,
        Ok(_) => HandleError::NoResponse,
        Err(error) => error,
    };
    // After the head of a response, the guest's log is the only reader of the error.
    if error.is_guests_fault() {
        let line = format!("wherry: {error}\n");
        (pod.config.stderr)(line.as_bytes());
    }
    reply.send(Err(error));
    None
}

/// A guest that can be entered.
struct Instance {
    store: Store<Host>,
    /// Made by the first request.
    proxy: Option<Proxy>,
    /// Requests that it has answered.
    answered: u32,
}

/// Instances that rest between two requests: the last one that came is the next to go, so those
/// that are not needed grow old.
#[derive(Default)]
struct Shelf(Mutex<Resting>);

#[derive(Default)]
struct Resting {
    /// In the order in which they came.
    instances: VecDeque<(Instance, Instant)>,
    /// Whether a task looks after those that have rested for too long.
    is_watched: bool,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Resting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Instance> {
        self.lock().instances.pop_back().map(|(instance, _)| instance)
    }

    /// Takes out those that came before a moment; since when the oldest of the others rests.
    fn take_older(&self, than: Instant) -> (Vec<Instance>, Option<Instant>) {
        let mut resting = self.lock();
        let old = resting.instances.iter().take_while(|(_, since)| *since <= than).count();
        let old = resting.instances.drain(..old).map(|(instance, _)| instance).collect();
        let oldest = resting.instances.front().map(|(_, since)| *since);
        resting.is_watched = oldest.is_some();
        (old, oldest)
    }
}

impl Inner {
    /// Lets an instance rest that ended a request well, if it may answer another. What is left of one
    /// that may not is returned, to be wiped later. It is wiped here if it is too much for that, or if
    /// other requests are being handled, whose time that would be.
    fn keep(self: &Arc<Inner>, mut instance: Instance, asker: &Arc<Meter>) -> Option<Spent> {
        instance.answered += 1;
        instance.store.data_mut().memory.made();
        if instance.answered >= self.pod.config.limits.instance_requests {
            let memory = &mut instance.store.data_mut().memory;
            if self.handled() > 1 || memory.held() > SPENT_BYTES_MAX {
                return None;
            }
            memory.let_go();
            let (handler, asker) = (Arc::clone(self), Arc::clone(asker));
            return Some(Spent { handler, asker, instance: Some(instance) });
        }
        instance.store.data_mut().rests();
        let mut resting = self.shelf.lock();
        resting.instances.push_back((instance, Instant::now()));
        if !std::mem::replace(&mut resting.is_watched, true) {
            let rest_max = self.pod.config.limits.instance_rest;
            tokio::spawn(give_back(Arc::downgrade(self), rest_max));
        }
        drop(resting);
        self.pod.memory_account().tell_freed();
        None
    }

    /// Requests that have a place.
    fn handled(&self) -> usize {
        self.pod.config.limits.concurrent_requests - self.places.available_permits()
    }

    /// Has an instance wiped when this thread has done what it is at, or at once if too many wait for
    /// that.
    fn wipe_behind(&self, spent: Spent) {
        if let Ok(place) = Arc::clone(&self.spent).try_acquire_owned() {
            tokio::spawn(async move { drop((spent, place)) });
        }
    }
}

/// Drops instances that nobody needs, until none rests or their handler is gone.
async fn give_back(handler: Weak<Inner>, rest_max: Duration) {
    let mut due = Instant::now() + rest_max;
    loop {
        tokio::time::sleep_until(due).await;
        let Some(handler) = handler.upgrade() else { return };
        let now = Instant::now();
        let (old, oldest) = handler.shelf.take_older(now.checked_sub(rest_max).unwrap_or(now));
        drop((old, handler));
        let Some(since) = oldest else { return };
        due = since + rest_max;
    }
}

/// Lets an instance handle the request: a new one, or one that rests. It is gone when this returns,
/// rests again, or is returned to be wiped.
async fn run(
    (handler, linked): (&Arc<Inner>, &Linked),
    request: http::Request<Body>,
    (call, reply): (&Call, &Reply),
    asker: &Arc<Meter>,
) -> Result<Option<Spent>, HandleError> {
    // Only now that it is its turn: who waits for that holds none of it.
    let mut instance = handler.room(linked).await?;
    call.progress.begin();
    let reserved = instance.store.data().memory.reserved().clone();
    call.reserved.get_or_init(|| reserved);
    let fuse = Fuse(&call.completion);
    let request = request.map(to_wasi);
    let result = handle((handler, linked), &mut instance, request, (call, reply)).await;
    let memory = &instance.store.data().memory;
    call.steps.memory_bytes.store(memory.held(), Ordering::Relaxed);
    let Err(error) = result else {
        fuse.done();
        handler.rooms.learn(memory.held());
        return Ok(handler.keep(instance, asker));
    };
    if memory.refused == Refused::CommonMemory {
        handler.rooms.learn_refused(memory.wanted());
    }
    Err(as_error(&error, memory.refused, instance.proxy.is_some()))
}

/// What a request is told of an instance's failure. Once its guest was entered, it may have done a part
/// of what was asked: nobody may be told then that it was only busy, and ask another one.
fn as_error(error: &wasmtime::Error, refused: Refused, entered: bool) -> HandleError {
    if let Some(code) = error.downcast_ref::<P3ErrorCode>() {
        return HandleError::GuestError(format!("{code:?}"));
    }
    match classify(error, refused) {
        Fault::Exit(code) => HandleError::Trap(format!("it exited with code {code}")),
        Fault::OutOfMemory => HandleError::OutOfMemory,
        Fault::NoMemoryLeft if entered => HandleError::NoMemoryLeft,
        Fault::NoMemoryLeft => HandleError::Busy,
        Fault::NoInstanceLeft => HandleError::InstanceLimit,
        Fault::Trap(text) => HandleError::Trap(text),
    }
}

async fn handle(
    (handler, linked): (&Inner, &Linked),
    Instance { store, proxy, .. }: &mut Instance,
    request: http::Request<WasiBody>,
    (call, reply): (&Call, &Reply),
) -> wasmtime::Result<()> {
    let proxy = match proxy {
        Some(proxy) => proxy,
        None => {
            let begun = Instant::now();
            let made = linked.entry.instantiate_async(&mut *store).await?;
            handler.pod.meter.account.instantiated(begun.elapsed());
            proxy.insert(made)
        }
    };
    call.steps.write(&call.steps.instantiated_ns);
    store.data_mut().answers(request.headers());
    enter(store, proxy, request, reply).await
}

async fn enter(
    store: &mut Store<Host>,
    proxy: &Proxy,
    request: http::Request<WasiBody>,
    reply: &Reply,
) -> wasmtime::Result<()> {
    match proxy {
        Proxy::P2(guest) => {
            let scheme = match request.uri().scheme_str() {
                Some("https") => Scheme::Https,
                _ => Scheme::Http,
            };
            let incoming = store.data_mut().http().new_incoming_request(scheme, request)?;
            let reply = reply.clone();
            let answer = move |response: Result<_, _>| {
                let guest_error = |code| HandleError::GuestError(format!("{code:?}"));
                reply.send(response.map_err(guest_error));
            };
            let outparam = store.data_mut().http().new_response_outparam_from_callback(answer)?;
            guest.wasi_http_incoming_handler().call_handle(store, incoming, outparam).await
        }
        Proxy::P3(_) => {
            let (sender, response) = futures::channel::oneshot::channel();
            let view = <Host as WasiHttpView>::http;
            let prepared = Prepared::new(store.as_context_mut(), proxy, request, view, sender)?;
            let reply = reply.clone();
            store
                .run_concurrent(async move |accessor| {
                    // The deadline is outside; wasmtime need not know of one.
                    prepared.run(accessor, std::future::pending()).await?;
                    // Sent by `run`, if it came to a response.
                    let response = response.await.unwrap_or_else(|_| {
                        Err(wasmtime::Error::msg("the guest ended without an answer"))
                    })?;
                    reply.send(Ok(response));
                    // The body is written by tasks of the guest that outlive its return.
                    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    wasmtime::Result::Ok(())
                })
                .await?
        }
    }
}

/// The body of a response, as the caller reads it.
struct ResponseBody {
    inner: WasiBody,
    call: Arc<Call>,
    /// In an instance with others: the call's place there, and its end.
    seat: Option<(Arc<Seat>, Cut)>,
}

impl ResponseBody {
    fn seated(inner: WasiBody, call: Arc<Call>, seat: Arc<Seat>) -> ResponseBody {
        let cut = crowd::cut_of(&seat);
        ResponseBody { inner, call, seat: Some((seat, cut)) }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some((_, cut)) = &mut this.seat
            && crowd::is_cut(cut, cx)
        {
            return Poll::Ready(Some(Err(BodyError::new("the guest failed"))));
        }
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                this.call.progress.touch();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(BodyError::new(error)))),
            None if this.call.completion.failed() => {
                Poll::Ready(Some(Err(BodyError::new("the guest failed"))))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
