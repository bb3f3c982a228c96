//! Who sent how much to whom: counters of pairs, a workload here and a port of a Service anywhere,
//! kept where the request begins, so that each is counted once in the cluster.
//!
//! A pair lives with the port of its Service (`network.rs` keeps it from table to table), rules of
//! an Ingress and steps of handlers with the worker. All are bounded: who comes when there are too
//! many is counted under [`OTHERS`]. Counters are told when somebody asks (`crate::metrics`).

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::metrics::{
    CONNECTION_BYTES, CONNECTIONS, DURATION, LEFT_OUT, OPEN, PHASES, RECEIVED, RELAYED_BYTES,
    RELAYS, REQUESTS, ROUTE_DURATION, ROUTE_REQUESTS, SENT, Samples, Times, escaped,
};

use super::{network::Table, relays::Relays};

/// Workloads that are told apart at one port of a Service.
const SOURCES_MAX: usize = 100;
/// Rules of Ingresses and routes, and workloads with steps, that are told apart.
const NAMES_MAX: usize = 1000;
/// Pairs that are told: about 30 lines each.
const TOLD_MAX: usize = 2000;
/// Who comes when there are too many.
const OTHERS: &str = "others";
/// Where requests come from that no Pod sends.
pub const OUTSIDE: &str = "outside";
/// Those that come by an Ingress or a Gateway.
pub const INGRESS: &str = "ingress";
/// What one sends to another.
#[derive(Debug, Default)]
pub struct Pair {
    /// By the hundreds of their status; the first are those without an answer.
    requests: [AtomicU64; 6],
    times: Times,
    sent: AtomicU64,
    received: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    /// Connections that are open now.
    open: AtomicU64,
    /// Bytes of connections.
    up: AtomicU64,
    down: AtomicU64,
}

impl Pair {
    /// A request begins; what becomes of it is counted when the result is dropped.
    pub fn begin(self: Arc<Pair>) -> Begun {
        Begun { pair: self, at: Instant::now(), status: None }
    }

    /// A request was answered after this time, or was not.
    pub fn ended(&self, status: Option<StatusCode>, took: Duration) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100).min(5));
        self.requests[class].fetch_add(1, Relaxed);
        self.times.add(took);
    }

    /// A connection was opened, and is counted as long as it lasts.
    pub fn opened<S>(self: Arc<Pair>, stream: S) -> Connected<S> {
        self.opened.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Connected { stream, _held: Held(self.clone()), pair: self }
    }

    /// A connection was not opened.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub struct Connected<S> {
    stream: S,
    pair: Arc<Pair>,
    _held: Held,
}

impl<S> Connected<S> {
    /// What is counted.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

/// A connection among those that are open.
#[derive(Debug)]
struct Held(Arc<Pair>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connected<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = buffer.filled().len().saturating_sub(before);
        self.pair.down.fetch_add(read as u64, Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connected<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, data);
        if let Poll::Ready(Ok(written)) = &polled {
            self.pair.up.fetch_add(*written as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Begun {
    pair: Arc<Pair>,
    at: Instant,
    status: Option<StatusCode>,
}

impl Begun {
    /// It was answered, by whoever it was for or by us.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Its pair.
    pub fn pair(&self) -> &Arc<Pair> {
        &self.pair
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.pair.ended(self.status, self.at.elapsed());
    }
}

/// Counters by name. Locked for a look at a map; a name is made once.
#[derive(Debug)]
pub struct Named<T> {
    all: RwLock<BTreeMap<Arc<str>, Arc<T>>>,
    max: usize,
}

impl<T: Default> Named<T> {
    /// With none; so many are told apart.
    pub fn new(max: usize) -> Named<T> {
        Named { all: RwLock::default(), max }
    }

    /// The counters of a name, or those of all that came too late.
    pub fn of(&self, name: &str) -> Arc<T> {
        if let Some(found) = self.all.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return found.clone();
        }
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let name = if all.len() < self.max { name } else { OTHERS };
        all.entry(Arc::from(name)).or_default().clone()
    }

    /// All of them.
    fn told(&self) -> Vec<(Arc<str>, Arc<T>)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, it)| (name.clone(), it.clone())).collect()
    }
}

/// Pairs of one port of a Service, by who sends.
#[derive(Debug)]
pub struct Pairs(Named<Pair>);

impl Default for Pairs {
    fn default() -> Pairs {
        Pairs(Named::new(SOURCES_MAX))
    }
}

impl Pairs {
    /// That of a workload.
    pub fn of(&self, source: &str) -> Arc<Pair> {
        self.0.of(source)
    }
}

/// Steps of requests to handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request waits for a place.
    Wait,
    /// It gets its instance.
    Instantiate,
    /// Its guest answers, to the head.
    Answer,
    /// All of it, to a container that was at rest.
    Wake,
}

const PHASE_NAMES: [&str; 4] = ["wait", "instantiate", "answer", "wake"];

/// Steps of one workload.
#[derive(Debug, Default)]
pub struct Phases([Times; PHASE_NAMES.len()]);

impl Phases {
    /// One took so long.
    pub fn add(&self, phase: Phase, took: Duration) {
        self.0[phase as usize].add(took);
    }
}

/// What does not belong to a Service.
#[derive(Debug)]
pub struct Traffic {
    /// To Pods by their own addresses.
    pub direct: Pairs,
    /// By rule of an Ingress or a route.
    pub rules: Named<Pair>,
    /// By workload.
    pub phases: Named<Phases>,
    /// Connections to other nodes through a member.
    pub relays: Relays,
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic {
            direct: Pairs::default(),
            rules: Named::new(NAMES_MAX),
            phases: Named::new(NAMES_MAX),
            relays: Relays::default(),
        }
    }
}

impl Traffic {
    /// Everything, with the pairs of the Services of a table.
    pub fn tell(&self, table: &Table) -> Samples {
        let mut samples = Samples::new();
        let mut left_out = 0;
        let direct = self.direct.0.told().into_iter().map(|pair| (String::new(), 0, pair));
        let of_services = table.routes().flat_map(|route| {
            let service = format!("{}/{}", route.service.namespace, route.service.name);
            let port = route.port;
            let all = route.shared.pairs.0.told().into_iter();
            all.map(move |pair| (service.clone(), port, pair))
        });
        for (number, (service, port, (source, pair))) in direct.chain(of_services).enumerate() {
            if number >= TOLD_MAX {
                left_out += 1;
                continue;
            }
            let source = escaped(&source);
            let labels = format!("source=\"{source}\",service=\"{service}\",port=\"{port}\"");
            pair.tell(&labels, (REQUESTS, DURATION), &mut samples);
            pair.tell_bytes(&labels, &mut samples);
        }
        for (rule, pair) in self.rules.told() {
            let labels = format!("rule=\"{}\"", escaped(&rule));
            pair.tell(&labels, (ROUTE_REQUESTS, ROUTE_DURATION), &mut samples);
        }
        for (workload, steps) in self.phases.told() {
            let counted = PHASE_NAMES.iter().zip(&steps.0).filter(|(_, times)| !times.is_empty());
            for (name, times) in counted {
                let labels = format!("workload=\"{}\",phase=\"{name}\"", escaped(&workload));
                times.tell(&labels, samples.entry(PHASES.to_owned()).or_default());
            }
        }
        for (node, pair) in self.relays.counters().told() {
            pair.tell_relay(&format!("node=\"{}\"", escaped(&node)), &mut samples);
        }
        if left_out > 0 {
            samples.insert(LEFT_OUT.to_owned(), vec![format!(" {left_out}")]);
        }
        samples
    }
}

impl Pair {
    fn tell(&self, labels: &str, (requests, duration): (&str, &str), samples: &mut Samples) {
        let lines = samples.entry(requests.to_owned()).or_default();
        for (class, count) in self.requests.iter().enumerate() {
            let count = count.load(Relaxed);
            let code = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
            if count > 0 {
                lines.push(format!("{{{labels},code=\"{code}\"}} {count}"));
            }
        }
        if !self.times.is_empty() {
            self.times.tell(labels, samples.entry(duration.to_owned()).or_default());
        }
    }

    fn tell_relay(&self, labels: &str, samples: &mut Samples) {
        let counts = [
            (RELAYS, "result=\"opened\"", &self.opened),
            (RELAYS, "result=\"refused\"", &self.refused),
            (RELAYED_BYTES, "direction=\"sent\"", &self.up),
            (RELAYED_BYTES, "direction=\"received\"", &self.down),
        ];
        for (name, more, count) in counts {
            let count = count.load(Relaxed);
            if count > 0 {
                let lines = samples.entry(name.to_owned()).or_default();
                lines.push(format!("{{{labels},{more}}} {count}"));
            }
        }
    }

    fn tell_bytes(&self, labels: &str, samples: &mut Samples) {
        let counts = [
            (SENT, "", &self.sent),
            (RECEIVED, "", &self.received),
            (CONNECTIONS, ",result=\"opened\"", &self.opened),
            (CONNECTIONS, ",result=\"refused\"", &self.refused),
            (CONNECTION_BYTES, ",direction=\"sent\"", &self.up),
            (CONNECTION_BYTES, ",direction=\"received\"", &self.down),
        ];
        for (name, more, count) in counts {
            let count = count.load(Relaxed);
            if count > 0 {
                let lines = samples.entry(name.to_owned()).or_default();
                lines.push(format!("{{{labels}{more}}} {count}"));
            }
        }
        // Told as long as there ever was one: a gauge that vanishes stays where it was.
        if self.opened.load(Relaxed) > 0 {
            let lines = samples.entry(OPEN.to_owned()).or_default();
            lines.push(format!("{{{labels}}} {}", self.open.load(Relaxed)));
        }
    }
}

/// The name of what a Pod belongs to, by its name and the labels that its controller has given it:
/// all Pods of a Deployment are one workload, also from rollout to rollout.
pub fn workload<'a>(pod: &'a str, labels: &'a Value) -> &'a str {
    let label = |name: &str| labels.get(name).and_then(Value::as_str);
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return job;
    }
    let without_last = || pod.rsplit_once('-').map_or(pod, |(name, _)| name);
    if let Some(hash) = label("pod-template-hash") {
        let set = without_last();
        let name = set.strip_suffix(hash).and_then(|name| name.strip_suffix('-'));
        return name.unwrap_or(set);
    }
    match label("controller-revision-hash") {
        Some(_) => without_last(),
        None => pod,
    }
}

/// A body that is counted as it passes.
#[derive(Debug)]
pub struct Counted<B> {
    body: B,
    pair: Arc<Pair>,
    /// Of a request, else of an answer.
    sent: bool,
}

impl<B> Counted<B> {
    /// Of a request.
    pub fn sent(body: B, pair: &Arc<Pair>) -> Counted<B> {
        Counted { body, pair: pair.clone(), sent: true }
    }

    /// Of an answer.
    pub fn received(body: B, pair: &Arc<Pair>) -> Counted<B> {
        Counted { body, pair: pair.clone(), sent: false }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let count = if self.sent { &self.pair.sent } else { &self.pair.received };
            count.fetch_add(data.len() as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn pods_belong_to_what_their_controller_calls_them_by() {
        let check = |pod: &str, labels: Value, expected: &str| {
            assert_eq!(workload(pod, &labels), expected);
        };
        check("web-5d4f8-x7k2p", json!({"pod-template-hash": "5d4f8"}), "web");
        check("web-other-x7k2p", json!({"pod-template-hash": "5d4f8"}), "web-other");
        check("db-0", json!({"controller-revision-hash": "db-6f7"}), "db");
        check("agent-x7k2p", json!({"controller-revision-hash": "6f7"}), "agent");
        check("sum-1-x7k2p", json!({"batch.kubernetes.io/job-name": "sum-1"}), "sum-1");
        check("alone", json!({"app": "alone"}), "alone");
        check("", Value::Null, "");
    }

    #[test]
    fn a_pair_tells_its_requests_by_class_and_its_times() {
        let pairs = Pairs::default();
        for status in [200, 204, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            pairs.of("shop/web").begin().answered(status);
        }
        drop(pairs.of("shop/web").begin());
        let pair = pairs.of("shop/web");
        let held = pair.clone().opened(());
        drop(pair.clone().opened(()));
        pair.refused();
        let mut samples = Samples::new();
        pair.tell("source=\"shop/web\"", (REQUESTS, DURATION), &mut samples);
        pair.tell_bytes("source=\"shop/web\"", &mut samples);
        assert_eq!(
            samples[REQUESTS],
            [
                "{source=\"shop/web\",code=\"none\"} 1",
                "{source=\"shop/web\",code=\"2xx\"} 2",
                "{source=\"shop/web\",code=\"5xx\"} 1",
            ]
        );
        assert_eq!(samples[DURATION].len(), crate::metrics::BOUNDS_US.len() + 3);
        let last = samples[DURATION].last().map(String::as_str);
        assert_eq!(last, Some("_count{source=\"shop/web\"} 4"));
        assert_eq!(
            samples[CONNECTIONS],
            [
                "{source=\"shop/web\",result=\"opened\"} 2",
                "{source=\"shop/web\",result=\"refused\"} 1",
            ]
        );
        assert_eq!(samples[OPEN], ["{source=\"shop/web\"} 1"]);
        drop(held);
        assert!(!samples.contains_key(SENT), "what has not happened is not told");
    }

    #[tokio::test]
    async fn bytes_of_connections_are_counted_both_ways() {
        let pairs = Pairs::default();
        let pair = pairs.of("shop/web");
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = pair.clone().opened(ours);
        ours.write_all(b"question").await.expect("there is room");
        theirs.write_all(b"answer").await.expect("there is room");
        ours.read_exact(&mut [0; 6]).await.expect("it is there");
        assert_eq!((pair.up.load(Relaxed), pair.down.load(Relaxed)), (8, 6));
        drop(ours);
        assert_eq!(pair.open.load(Relaxed), 0);
    }

    #[test]
    fn too_many_are_counted_together() {
        let pairs = Pairs::default();
        for number in 0..SOURCES_MAX + 10 {
            pairs.of(&number.to_string()).refused();
        }
        let told = pairs.0.told();
        assert_eq!(told.len(), SOURCES_MAX + 1);
        assert_eq!(pairs.of(OTHERS).refused.load(Relaxed), 10);
        assert_eq!(pairs.of("0").refused.load(Relaxed), 1);
    }
}
