//! Traces of requests, for a collector that speaks OTLP: who asked whom, and what took how long.
//!
//! ```text
//!   request   by whoever asks: a client outside, an Ingress, or a guest      (`Switch::send`)
//!    └ route      one attempt at one endpoint
//!       └ guest       the Pod that answers, in whichever worker               (`Served`)
//!          └ instantiate
//!             …           what the guest asks of others: `request` again, of its own
//! ```
//!
//! The header `traceparent` carries the trace from step to step, also between workers and into
//! guests (see `context`). A request that brings one is recorded if it says so; of those that bring
//! none a part is, which is decided where they come in. Without a collector nothing of this
//! happens, and headers pass as they are.
//!
//! Finished spans wait in a bounded queue for [`Tracer::export`], see `export`.

mod context;
mod export;
#[cfg(test)]
pub mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, StatusCode, request::Parts};
use tokio::sync::Notify;

pub use self::context::{Context, TRACEPARENT};
use super::policy::Caller;
use crate::protocol::Tracing;

/// Spans that wait to be sent: what a busy worker makes in a second.
const QUEUE_MAX: usize = 4096;
/// Longest text of an attribute.
const TEXT_BYTES_MAX: usize = 512;

/// Records spans, if there is a collector. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Tracer(Arc<Inner>);

#[derive(Default)]
struct Inner {
    settings: ArcSwapOption<Settings>,
    /// Locked to add a span or to take them all.
    finished: Mutex<Vec<Finished>>,
    ready: Notify,
    /// Spans for which there was no room, or that the collector did not take.
    lost: AtomicU64,
}

struct Settings {
    tracing: Tracing,
    /// Name of the node.
    node: String,
}

/// Who records a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The workload, or the part of Wherry.
    pub service: String,
    /// Its namespace; empty for parts of Wherry.
    pub namespace: String,
    /// The Pod; empty for parts of Wherry.
    pub pod: String,
}

impl Source {
    /// A Pod, by its workload as it is counted (`namespace/name`).
    pub fn pod(workload: &str, pod: &str) -> Source {
        let (namespace, service) = workload.split_once('/').unwrap_or(("", workload));
        Source { service: service.into(), namespace: namespace.into(), pod: pod.into() }
    }

    /// Whoever begins a request: a Pod of this worker, or the door by which it came.
    pub fn of(caller: &Caller) -> Source {
        match &caller.pod {
            Some(pod) => Source::pod(&caller.source, &pod.name),
            None => Source {
                service: format!("wherry-{}", caller.source),
                namespace: String::new(),
                pod: String::new(),
            },
        }
    }
}

/// What a span is in the words of OpenTelemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Server,
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

/// A step that is under way. It ends when it is dropped.
pub struct Span {
    tracer: Tracer,
    source: Arc<Source>,
    context: Context,
    parent: Option<u64>,
    kind: Kind,
    name: String,
    began: SystemTime,
    clock: Instant,
    attributes: Vec<(&'static str, Value)>,
    failure: Option<String>,
}

/// A step that has ended.
#[derive(Debug, Clone, PartialEq)]
struct Finished {
    source: Arc<Source>,
    context: Context,
    parent: Option<u64>,
    kind: Kind,
    name: String,
    /// Nanoseconds since 1970.
    began_ns: u64,
    ended_ns: u64,
    attributes: Vec<(&'static str, Value)>,
    failure: Option<String>,
}

impl Tracer {
    /// Sends to this collector from now on, or to none.
    pub fn configure(&self, tracing: Option<&Tracing>, node: &str) {
        let settings = tracing
            .map(|tracing| Arc::new(Settings { tracing: tracing.clone(), node: node.to_owned() }));
        self.0.settings.store(settings);
    }

    /// Whether there is a collector.
    pub fn is_on(&self) -> bool {
        self.0.settings.load().is_some()
    }

    /// Begins the span of a request, where it comes in: `to` names for whom it is. What is sent on
    /// belongs to it.
    pub fn request(&self, caller: &Caller, to: &str, parts: &mut Parts) -> Option<Span> {
        let settings = self.0.settings.load();
        let ratio = settings.as_ref()?.tracing.ratio;
        let headers = &mut parts.headers;
        let parent = Context::of(headers);
        let context = match parent {
            Some(parent) => parent.below(),
            None => Context::new(rand::random::<f64>() < ratio),
        };
        if !context.sampled {
            // It is decided once, for everybody behind.
            if parent.is_none() {
                headers.insert(TRACEPARENT, context.header());
            }
            return None;
        }
        headers.insert(TRACEPARENT, context.header());
        let kind = if caller.pod.is_some() { Kind::Client } else { Kind::Server };
        let source = Arc::new(Source::of(caller));
        let parent = parent.map(|parent| parent.span);
        let method = parts.method.as_str();
        let mut span = Span::new(self, source, (context, parent), kind, method.to_owned());
        span.say("http.request.method", method);
        span.say("url.path", parts.uri.path());
        span.say("server.address", to);
        if caller.pod.is_none() {
            span.say("client.address", &caller.ip.to_string());
        }
        Some(span)
    }

    /// Begins a span below the one that a request stands in, if that is recorded; what is sent on
    /// belongs to it.
    pub fn step(
        &self,
        source: impl FnOnce() -> Arc<Source>,
        kind: Kind,
        name: &str,
        headers: &mut HeaderMap,
    ) -> Option<Span> {
        if !self.is_on() {
            return None;
        }
        let parent = Context::of(headers).filter(|parent| parent.sampled)?;
        let context = parent.below();
        headers.insert(TRACEPARENT, context.header());
        let place = (context, Some(parent.span));
        Some(Span::new(self, source(), place, kind, name.to_owned()))
    }

    fn finished(&self) -> MutexGuard<'_, Vec<Finished>> {
        self.0.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, span: Finished) {
        let mut finished = self.finished();
        if finished.len() >= QUEUE_MAX {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        finished.push(span);
        drop(finished);
        self.0.ready.notify_one();
    }

    /// Spans that no collector has.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Span {
    fn new(
        tracer: &Tracer,
        source: Arc<Source>,
        (context, parent): (Context, Option<u64>),
        kind: Kind,
        name: String,
    ) -> Span {
        Span {
            tracer: tracer.clone(),
            source,
            context,
            parent,
            kind,
            name,
            began: SystemTime::now(),
            clock: Instant::now(),
            attributes: Vec::new(),
            failure: None,
        }
    }

    /// Says something of it.
    pub fn say(&mut self, what: &'static str, text: &str) {
        let text = text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned();
        self.attributes.push((what, Value::Text(text)));
    }

    /// Says a number of it.
    pub fn count(&mut self, what: &'static str, number: i64) {
        self.attributes.push((what, Value::Number(number)));
    }

    /// It was answered. By OpenTelemetry's rules only a status of 500 and more is a server's failure.
    pub fn answered(&mut self, status: StatusCode) {
        self.count("http.response.status_code", status.as_u16().into());
        let from = if self.kind == Kind::Client { 400 } else { 500 };
        if status.as_u16() >= from {
            self.failure.get_or_insert_default();
        }
    }

    /// It was answered by us, for this reason.
    pub fn refused(&mut self, status: StatusCode, why: &str) {
        self.answered(status);
        self.failed(why);
    }

    /// It failed for this reason.
    pub fn failed(&mut self, why: &str) {
        self.failure = Some(why[..why.floor_char_boundary(TEXT_BYTES_MAX)].to_owned());
    }

    /// A step within it that is over: it began and ended so long after this one.
    pub fn step(&self, name: &str, from: Duration, to: Duration) {
        let began_ns = nanos(self.began);
        let after = |time: Duration| began_ns.saturating_add(whole(time));
        self.tracer.finish(Finished {
            source: self.source.clone(),
            context: self.context.below(),
            parent: Some(self.context.span),
            kind: Kind::Internal,
            name: name.to_owned(),
            began_ns: after(from),
            ended_ns: after(to.max(from)),
            attributes: Vec::new(),
            failure: None,
        });
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let began_ns = nanos(self.began);
        self.tracer.finish(Finished {
            source: self.source.clone(),
            context: self.context,
            parent: self.parent,
            kind: self.kind,
            name: std::mem::take(&mut self.name),
            began_ns,
            // The clock of the wall may be set meanwhile.
            ended_ns: began_ns.saturating_add(whole(self.clock.elapsed())),
            attributes: std::mem::take(&mut self.attributes),
            failure: self.failure.take(),
        });
    }
}

fn nanos(at: SystemTime) -> u64 {
    whole(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
