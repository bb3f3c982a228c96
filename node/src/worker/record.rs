//! What the requests of one container were like: when they came, how long each step of them took,
//! and some of them in detail. For people who ask why something is slow; nothing here decides.
//!
//! ```text
//!   wait: for a place ─▶ instantiate: its instance ─▶ answer: the guest, to the head ─▶ body
//! ```
//!
//! A *wake* is a request that comes to a container that was at rest for [`REST`]: nothing of it was
//! in memory but compiled code. Probes are not requests of anybody, and are not recorded.
//!
//! Everything is bounded: histograms by their buckets, minutes by the day, requests by a ring, of
//! which a busy container fills only [`DETAILS_PER_SECOND`] places a second, so that they tell of
//! more than the last moment. A container that gets no requests holds nothing. Whoever follows a
//! record (`tail.rs`) is woken by the end of each request, and by its own end.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, header, uri::Authority};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use wherry_wasi_shim::{HandleError, Steps};

use crate::{
    metrics::{BOUNDS_US, Times},
    protocol::Seen,
};

use super::traffic::{Phase, Phases};

/// A container is at rest after so long without a request.
const REST: Duration = Duration::from_secs(10);
/// Minutes that are kept: a day of those in which something came.
const MINUTES_MAX: usize = 24 * 60;
/// Requests that are kept in detail.
const SEEN_MAX: usize = 200;
/// Of one second.
const DETAILS_PER_SECOND: u32 = 20;
/// Senders that are told apart.
const EDGES_MAX: usize = 100;
/// Longest path that is kept, without its query, which is where secrets stand.
const PATH_BYTES_MAX: usize = 200;

/// The record of one container.
#[derive(Debug)]
pub struct Record {
    /// Locked for some counting only.
    kept: Mutex<Kept>,
    /// The steps of all containers of its workload, for metrics.
    phases: Arc<Phases>,
    /// When it began, in milliseconds since 1970: tells it from those of other workers.
    began_ms: i64,
    /// A request has ended, or the record has.
    pub news: Notify,
    /// Its Pod has gone: nothing comes any more.
    closed: AtomicBool,
}

/// What is kept, and told.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Microseconds below which the buckets lie; what is in the last one took longer.
    bounds_us: Bounds,
    /// How long each step took.
    wait: Times,
    instantiate: Times,
    answer: Times,
    minutes: VecDeque<Minute>,
    seen: VecDeque<Seen>,
    /// By who sent them.
    edges: Vec<Edge>,
    /// When the last request ended, or the container began.
    #[serde(skip)]
    since: Option<Instant>,
    #[serde(skip)]
    details: (i64, u32),
    /// How many requests have ended.
    #[serde(skip)]
    ended: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
struct Bounds(&'static [u64]);

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds(&BOUNDS_US)
    }
}

/// A minute in which requests ended.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Minute {
    /// Minutes since 1970.
    at: i64,
    requests: u32,
    /// Answered with a status of 500 and more, or not at all.
    failed: u32,
    /// Those that found the container at rest.
    wakes: u32,
    /// The most at the same time, each in an instance of its own.
    peak: u32,
    /// What all of them took together.
    busy_us: u64,
    /// From their arrival to the head of the answer.
    answered: Times,
}

/// Who sends a request: in its extensions, where whoever received it knows. Without one it came
/// from outside: by a node port, or through the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A guest of this worker, by its Pod's address.
    Pod(IpAddr),
    /// A guest of another worker.
    Peer,
}

/// What one sender has sent since the container began.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edge {
    /// The address of a Pod; `peer`; `outside`; `others` once there are too many.
    from: String,
    requests: u64,
    failed: u64,
    busy_us: u64,
    /// From their arrival to the head of the answer.
    answered: Times,
}

/// What is known of a request when it comes.
#[derive(Debug)]
pub struct Begun {
    from: String,
    at: Timestamp,
    rested: Option<Duration>,
    head: Option<Head>,
}

/// Of a request's head what is kept in detail.
#[derive(Debug)]
struct Head {
    method: Method,
    host: String,
    path: String,
}

impl Head {
    fn of<B>(request: &Request<B>) -> Head {
        let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = request.uri().authority().map(Authority::as_str);
        Head {
            method: request.method().clone(),
            host: shortened(authority.or(named).unwrap_or_default()),
            path: shortened(request.uri().path()),
        }
    }
}

/// How a request was answered.
#[derive(Debug)]
pub enum Outcome {
    /// With this status, after this time.
    Answered(StatusCode, Duration),
    /// Not, for this reason.
    Refused(String),
    /// Whoever asked did not wait.
    Left,
}

impl Outcome {
    /// Of what the guest said.
    pub fn of<B>(result: &Result<Response<B>, HandleError>, steps: &Steps) -> Outcome {
        match result {
            Ok(response) => Outcome::Answered(response.status(), steps.elapsed()),
            Err(error) => {
                // A trap's first line says it; the rest is in the log.
                let text = error.to_string();
                Outcome::Refused(text.lines().next().unwrap_or_default().to_owned())
            }
        }
    }
}

/// How many requests there were, minute by minute, of one workload.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lately {
    /// By the minute since 1970: requests, those that failed, and wakes.
    minutes: BTreeMap<i64, [u64; 3]>,
    /// All of them: from their arrival to the head of the answer.
    answered: Times,
    bounds_us: Bounds,
}

impl Lately {
    pub fn is_empty(&self) -> bool {
        self.minutes.is_empty()
    }
}

impl Record {
    /// Of a container that begins.
    pub fn new(phases: Arc<Phases>) -> Record {
        let kept = Kept { since: Some(Instant::now()), ..Kept::default() };
        Record {
            kept: Mutex::new(kept),
            phases,
            began_ms: Timestamp::now().as_millisecond(),
            news: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request comes, as the only one or beside others.
    pub fn begin<B>(&self, request: &Request<B>, alone: bool) -> Begun {
        let at = Timestamp::now();
        let (rested, wanted) = self.kept().begin(at, Instant::now(), alone);
        let head = wanted.then(|| Head::of(request));
        let from = match request.extensions().get::<Sender>() {
            Some(Sender::Pod(ip)) => ip.to_string(),
            Some(Sender::Peer) => "peer".to_owned(),
            None => "outside".to_owned(),
        };
        Begun { from, at, rested, head }
    }

    /// It has ended; `peak` are those that were in flight together with it.
    pub fn end(&self, begun: Begun, steps: &Steps, outcome: Outcome, peak: usize) {
        let taken = taken(steps, &outcome);
        let phases = [Phase::Wait, Phase::Instantiate, Phase::Answer];
        for (phase, took) in phases.into_iter().zip(taken) {
            if let Some(took) = took {
                self.phases.add(phase, took);
            }
        }
        if let (Outcome::Answered(_, after), Some(_)) = (&outcome, begun.rested) {
            self.phases.add(Phase::Wake, *after);
        }
        self.kept().end(begun, steps, outcome, peak, Instant::now());
        self.news.notify_waiters();
    }

    /// Adds the requests since a minute to those of other containers.
    pub fn count(&self, since: i64, to: &mut Lately) {
        for minute in self.kept().minutes.iter().rev().take_while(|minute| minute.at >= since) {
            let counts = to.minutes.entry(minute.at).or_default();
            let more = [minute.requests, minute.failed, minute.wakes];
            for (count, more) in counts.iter_mut().zip(more) {
                *count += u64::from(more);
            }
            to.answered.add_all(&minute.answered);
        }
    }

    /// All of it.
    pub fn told(&self) -> Kept {
        self.kept().clone()
    }

    /// What tells it from the records of other workers.
    pub fn began_ms(&self) -> i64 {
        self.began_ms
    }

    /// Nothing comes any more: whoever follows it is told the rest.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.news.notify_waiters();
    }

    /// Whether nothing comes any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// The kept requests behind a number, and how many have ended at all.
    pub fn behind(&self, number: u64) -> (Vec<Seen>, u64) {
        let kept = self.kept();
        let fresh = kept.seen.iter().filter(|seen| seen.number > number).cloned().collect();
        (fresh, kept.ended)
    }
}

impl Kept {
    /// For how long the container was at rest, and whether details are wanted.
    fn begin(&mut self, at: Timestamp, now: Instant, alone: bool) -> (Option<Duration>, bool) {
        let rested = self.since.map(|since| now.saturating_duration_since(since));
        let rested = rested.filter(|rested| alone && *rested >= REST);
        if self.details.0 != at.as_second() {
            self.details = (at.as_second(), 0);
        }
        self.details.1 += 1;
        (rested, self.details.1 <= DETAILS_PER_SECOND || rested.is_some())
    }

    fn end(&mut self, begun: Begun, steps: &Steps, outcome: Outcome, peak: usize, now: Instant) {
        let took = steps.elapsed();
        self.since = Some(now);
        let (placed, instantiated) = (steps.placed(), steps.instantiated());
        let steps_taken = taken(steps, &outcome);
        let (status, why, answered) = match outcome {
            Outcome::Answered(status, after) => (status.as_u16(), None, Some(after)),
            Outcome::Refused(why) => (0, Some(why), None),
            Outcome::Left => (0, Some("the client did not wait for the answer".to_owned()), None),
        };
        let histograms = [&self.wait, &self.instantiate, &self.answer];
        for (histogram, took) in histograms.into_iter().zip(steps_taken) {
            if let Some(took) = took {
                histogram.add(took);
            }
        }
        let failed = status == 0 || status >= 500;
        let edge = self.edge(begun.from.clone());
        edge.requests += 1;
        edge.failed += u64::from(failed);
        edge.busy_us += micros(took);
        if let Some(answered) = answered {
            edge.answered.add(answered);
        }
        let minute = self.minute(begun.at.as_second().div_euclid(60));
        minute.requests += 1;
        minute.failed += u32::from(failed);
        minute.wakes += u32::from(begun.rested.is_some());
        minute.peak = minute.peak.max(u32::try_from(peak).unwrap_or(u32::MAX));
        minute.busy_us += micros(took);
        if let Some(answered) = answered {
            minute.answered.add(answered);
        }
        self.ended += 1;
        let Some(Head { method, host, path }) = begun.head else { return };
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen {
            number: self.ended,
            from: begun.from,
            host,
            at_ms: begun.at.as_millisecond(),
            method: method.to_string(),
            path,
            status,
            why,
            placed_us: placed.map(micros),
            instantiated_us: instantiated.map(micros),
            answered_us: answered.map(micros),
            ended_us: micros(took),
            cpu_us: micros(steps.cpu()),
            memory_bytes: steps.memory_bytes(),
            rested_ms: begun.rested.map(|it| micros(it) / 1000),
        });
    }

    fn edge(&mut self, from: String) -> &mut Edge {
        let full = self.edges.len() >= EDGES_MAX;
        let found = self.edges.iter().position(|edge| edge.from == from);
        let from = if found.is_none() && full { "others".to_owned() } else { from };
        let found = found.or_else(|| self.edges.iter().position(|edge| edge.from == from));
        let at = found.unwrap_or_else(|| {
            self.edges.push(Edge { from, ..Edge::default() });
            self.edges.len() - 1
        });
        &mut self.edges[at]
    }

    /// The minute of a request; of one that began long ago the newest.
    fn minute(&mut self, at: i64) -> &mut Minute {
        let newest = self.minutes.back().map(|minute| minute.at);
        if newest.is_none_or(|newest| newest < at) {
            let day = i64::try_from(MINUTES_MAX).expect("a small constant");
            while self.minutes.front().is_some_and(|oldest| oldest.at <= at - day) {
                self.minutes.pop_front();
            }
            self.minutes.push_back(Minute { at, ..Minute::default() });
        }
        let found = self.minutes.iter().rposition(|minute| minute.at <= at);
        let place = found.unwrap_or(self.minutes.len() - 1);
        &mut self.minutes[place]
    }
}

/// How long a request waited for a place and for its instance, and its guest took to answer.
fn taken(steps: &Steps, outcome: &Outcome) -> [Option<Duration>; 3] {
    let between = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
    let (placed, instantiated) = (steps.placed(), steps.instantiated());
    let answered = match outcome {
        Outcome::Answered(_, after) => Some(*after),
        Outcome::Refused(_) | Outcome::Left => None,
    };
    [placed, between(placed, instantiated), between(instantiated, answered)]
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn shortened(path: &str) -> String {
    let end = path.floor_char_boundary(PATH_BYTES_MAX);
    let cut = if end < path.len() { "…" } else { "" };
    format!("{}{cut}", &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn end(kept: &mut Kept, second: i64, status: u16, rested: Option<Duration>) {
        let head = Head::of(&Request::get("http://a/").body(()).expect("a request"));
        let head = Some(head);
        let status = StatusCode::from_u16(status).expect("a status");
        let begun = Begun { from: "outside".to_owned(), at: at(second), rested, head };
        let outcome = Outcome::Answered(status, Duration::from_micros(40));
        kept.end(begun, &Steps::default(), outcome, 2, Instant::now());
    }

    #[test]
    fn minutes_hold_what_came_in_them_for_a_day() {
        let mut kept = Kept::default();
        end(&mut kept, 60, 200, None);
        end(&mut kept, 119, 500, Some(REST));
        end(&mut kept, 180, 200, None);
        // One that came in the first minute and took until now.
        end(&mut kept, 61, 200, None);
        let told = |kept: &Kept| {
            let minute = |it: &Minute| (it.at, it.requests, it.failed, it.wakes, it.peak);
            kept.minutes.iter().map(minute).collect::<Vec<_>>()
        };
        assert_eq!(told(&kept), [(1, 3, 1, 1, 2), (3, 1, 0, 0, 2)]);
        end(&mut kept, 60 * 1441 + 1, 200, None);
        assert_eq!(told(&kept), [(3, 1, 0, 0, 2), (1441, 1, 0, 0, 2)]);
    }

    #[test]
    fn what_came_lately_is_counted_over_containers() {
        let records = [Record::new(Arc::default()), Record::new(Arc::default())];
        end(&mut records[0].kept(), 60, 200, None);
        end(&mut records[0].kept(), 120, 500, Some(REST));
        end(&mut records[1].kept(), 121, 200, None);
        let mut lately = Lately::default();
        for record in &records {
            record.count(2, &mut lately);
        }
        assert_eq!(lately.minutes, BTreeMap::from([(2, [2, 1, 1])]));
        let told = serde_json::to_value(&lately).expect("it becomes JSON");
        assert_eq!(told["answered"][1], 2, "40 µs each");
        assert_eq!(told["minutes"], serde_json::json!({"2": [2, 1, 1]}));
        assert_eq!(told["boundsUs"][0], 20);
    }

    #[test]
    fn a_wake_is_a_request_after_a_rest() {
        let began = Instant::now();
        let mut kept = Kept { since: Some(began), ..Kept::default() };
        let mut begin = |after, alone| kept.begin(at(0), began + after, alone).0;
        assert_eq!(begin(REST / 2, true), None, "it has not rested yet");
        assert_eq!(begin(REST, false), None, "another one is there");
        assert_eq!(begin(REST, true), Some(REST));
    }

    #[test]
    fn a_flood_is_told_by_a_few() {
        let mut kept = Kept::default();
        let wanted = |kept: &mut Kept, second| kept.begin(at(second), Instant::now(), true).1;
        let of_second = |kept: &mut Kept, second| (0..100).filter(|_| wanted(kept, second)).count();
        assert_eq!(of_second(&mut kept, 1), DETAILS_PER_SECOND as usize);
        assert_eq!(of_second(&mut kept, 2), DETAILS_PER_SECOND as usize);
    }

    #[test]
    fn all_are_counted_and_those_kept_can_be_asked_for() {
        let record = Record::new(Arc::default());
        let request = Request::get("http://a/").body(()).expect("a request");
        for _ in 0..30 {
            // All in one second, as far as the record is told.
            let mut begun = record.begin(&request, false);
            begun.head = begun.head.filter(|_| record.kept().ended < 20);
            record.end(begun, &Steps::default(), Outcome::Left, 1);
        }
        let (fresh, ended) = record.behind(18);
        let numbers: Vec<u64> = fresh.iter().map(|seen| seen.number).collect();
        assert_eq!((numbers, ended), (vec![19, 20], 30));
        assert!(!record.is_closed());
        record.close();
        assert!(record.is_closed());
    }

    #[test]
    fn senders_are_told_apart_up_to_a_number() {
        let mut kept = Kept::default();
        for number in 0..EDGES_MAX + 5 {
            kept.edge(number.to_string()).requests += 1;
            kept.edge("0".to_owned()).requests += 1;
        }
        let told = |edge: &Edge| (edge.from.clone(), edge.requests);
        assert_eq!(told(&kept.edges[0]), ("0".to_owned(), EDGES_MAX as u64 + 6));
        assert_eq!(kept.edges.last().map(told), Some(("others".to_owned(), 5)));
        let mut request = Request::get("http://a/").body(()).expect("a request");
        request.extensions_mut().insert(Sender::Pod([10, 0, 0, 7].into()));
        assert_eq!(Record::new(Arc::default()).begin(&request, true).from, "10.0.0.7");
    }

    #[test]
    fn queries_stay_out_and_paths_are_cut() {
        let request = Request::get("http://a/login?password=1").body(()).expect("a request");
        let begun = Record::new(Arc::default()).begin(&request, true);
        let head = begun.head.map(|head| (head.method, head.host, head.path));
        assert_eq!(head, Some((Method::GET, "a".to_owned(), "/login".to_owned())));
        assert_eq!(shortened(&"ä".repeat(200)).chars().count(), PATH_BYTES_MAX / 2 + 1);
    }
}
