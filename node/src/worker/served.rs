//! A running handler and what it is doing: requests in flight, how it rests, and how it is let go.
//!
//! A handler without a request for a while is *idle*: it has given back its instances and then its
//! compiled code. The next request has the code mapped again and waits for that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use tokio::sync::Notify;
use wherry_wasi_shim::{Body, HandleError, Handler, Steps};

use super::{
    balance::Open,
    record::{Begun, Outcome, Record},
    trace::{Kind, Source, Span, Tracer},
};

/// A running handler container.
pub struct Served {
    handler: Handler,
    record: Arc<Record>,
    /// Its part in traces.
    traced: Traced,
    requests: AtomicU64,
    /// From arrival to the end of the response's body.
    in_flight: AtomicUsize,
    /// When the container began to serve: times below are counted from here.
    since: Instant,
    /// Time that ended requests took, in nanoseconds.
    ended_ns: AtomicU64,
    /// The sum of when those in flight arrived, in nanoseconds; it wraps.
    arrived_ns: AtomicU64,
    /// When the last request ended, in nanoseconds; probes count.
    last_ns: AtomicU64,
    /// Without a request for so long it gives its code back.
    idle_after: Duration,
    /// Set when the last request in flight should be told to `idle`.
    leaving: AtomicBool,
    idle: Notify,
    /// Set when what is still in flight is cut off.
    cut: AtomicBool,
}

/// What a container tells in traces.
#[derive(Clone)]
pub struct Traced {
    /// Takes it.
    pub tracer: Tracer,
    /// Who it is.
    pub source: Arc<Source>,
}

/// One request in flight; it keeps the container from being idle until dropped.
pub struct InFlight {
    served: Arc<Served>,
    arrived_ns: u64,
    /// Its count at its endpoint.
    open: Option<Open>,
    /// What goes into the record when it has ended.
    watched: Option<Watched>,
}

/// A request that is recorded.
struct Watched {
    begun: Begun,
    steps: Arc<Steps>,
    outcome: Outcome,
    /// The most that were in flight with it, as far as it saw.
    peak: usize,
    /// Ends with the body of the response.
    _span: Option<Span>,
}

impl Served {
    /// A container that was just started.
    pub fn new(
        handler: Handler,
        record: Arc<Record>,
        idle_after: Duration,
        traced: Traced,
    ) -> Served {
        Served {
            handler,
            record,
            traced,
            requests: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            since: Instant::now(),
            ended_ns: AtomicU64::new(0),
            arrived_ns: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            idle_after,
            leaving: AtomicBool::new(false),
            idle: Notify::new(),
            cut: AtomicBool::new(false),
        }
    }

    /// Counts a request as in flight until the result is dropped.
    pub fn enter(self: Arc<Served>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let arrived_ns = self.now_ns();
        self.arrived_ns.fetch_add(arrived_ns, Ordering::Relaxed);
        InFlight { served: self, arrived_ns, open: None, watched: None }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long requests took together, those in flight as far as they are. The parts are read one
    /// after the other, so it may be off by the requests that come and go meanwhile.
    pub fn busy_ns(&self) -> u64 {
        let ended = self.ended_ns.load(Ordering::Relaxed);
        let in_flight = u64::try_from(self.in_flight()).unwrap_or(0);
        let arrived = self.arrived_ns.load(Ordering::Relaxed);
        let running = in_flight.wrapping_mul(self.now_ns()).wrapping_sub(arrived);
        // A difference that wrapped is one of those that came meanwhile: they have taken no time.
        let running = if running > u64::MAX / 2 { 0 } else { running };
        ended.saturating_add(running)
    }

    /// Gives the code back if nobody has asked it for long enough; says whether it did.
    pub fn rest(&self) -> bool {
        let silent = self.now_ns().saturating_sub(self.last_ns.load(Ordering::Relaxed));
        let silent = Duration::from_nanos(silent) >= self.idle_after;
        silent && self.in_flight() == 0 && self.handler.rest()
    }

    /// Whether it has given its code back.
    pub fn is_idle(&self) -> bool {
        self.handler.is_at_rest()
    }

    /// Ends when no request is in flight. The container must have left the table before.
    pub async fn idle(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        loop {
            let mut woken = std::pin::pin!(self.idle.notified());
            // Registered before the look at the counter, so that no end is missed.
            woken.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            woken.await;
        }
    }

    /// Ends the responses that are still being sent, as broken. A request without a response yet
    /// ends by its deadline.
    pub fn cut_off(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Requests since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl InFlight {
    /// Counted at its endpoint as well.
    pub fn counted(mut self, open: Option<Open>) -> InFlight {
        self.open = open;
        self
    }

    /// Whether what is left of the response is not to be sent.
    pub fn is_cut_off(&self) -> bool {
        self.served.cut.load(Ordering::Relaxed)
    }

    /// The guest that the request is for: for requests of the worker's own, which nobody records.
    pub fn handler(&self) -> &Handler {
        &self.served.handler
    }

    /// Gives the guest a request of somebody; what becomes of it is recorded.
    pub async fn handle(
        &mut self,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HandleError> {
        let Traced { tracer, source } = &self.served.traced;
        let source = || source.clone();
        let mut span = tracer.step(source, Kind::Server, "guest", request.headers_mut());
        let (steps, peak) = (Arc::<Steps>::default(), self.served.in_flight());
        let begun = self.served.record.begin(&request, peak == 1);
        let outcome = Outcome::Left;
        let watched = Watched { begun, steps: steps.clone(), outcome, peak, _span: None };
        let watched = self.watched.insert(watched);
        let result = self.served.handler.handle_watched(request, steps).await;
        watched.outcome = Outcome::of(&result, &watched.steps);
        if let Some(span) = &mut span {
            if let (Some(from), Some(to)) = (watched.steps.placed(), watched.steps.instantiated()) {
                span.step("instantiate", from, to);
            }
            match &result {
                Ok(response) => span.answered(response.status()),
                Err(error) => span.refused(error.status(), &error.to_string()),
            }
        }
        watched._span = span;
        result
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let served = &self.served;
        if let Some(Watched { begun, steps, outcome, peak, .. }) = self.watched.take() {
            served.record.end(begun, &steps, outcome, peak);
        }
        let now_ns = served.now_ns();
        served.last_ns.store(now_ns, Ordering::Relaxed);
        let took_ns = now_ns.saturating_sub(self.arrived_ns);
        served.ended_ns.fetch_add(took_ns, Ordering::Relaxed);
        served.arrived_ns.fetch_sub(self.arrived_ns, Ordering::Relaxed);
        let before = served.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && served.leaving.load(Ordering::SeqCst) {
            served.idle.notify_waiters();
        }
    }
}
