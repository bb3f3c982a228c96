//! One client: a loop of calls on ConfigMaps of a namespace, each on some member, each recorded with
//! what is known about it.
//!
//! Keys live for one *epoch* of a few seconds, so that each key's history stays short enough to be
//! searched, and calls of unknown outcome trouble only their own epoch.
//!
//! One key lives for the whole run: the counter, to which all clients add.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::history::{Call, Item, Line, Op, Outcome, Recorder, Refusal, Revision};
use crate::http::{Answer, Client, Credentials, Failure};

pub const NAMESPACE: &str = "chaos";
pub const MAPS: &str = "/api/v1/namespaces/chaos/configmaps";
/// All keys of the run begin with this; other ConfigMaps of the namespace are not ours.
pub const PREFIX: &str = "k-";
/// The key of the counter.
const COUNTER: &str = "counter";
/// How many of a client's turns are for the counter.
const COUNTING: f64 = 0.15;

/// How long a key is used.
const EPOCH_US: u64 = 3_000_000;
const KEYS: usize = 6;
/// An answer that has not come by then will not.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two calls of a client: the clients should not eat the machine that the members need.
const PAUSE: Duration = Duration::from_millis(15);
/// After a member that cannot serve.
const PAUSE_UNSERVED: Duration = Duration::from_millis(40);

/// What all clients share.
#[derive(Clone)]
pub struct Shared {
    pub addresses: Vec<SocketAddr>,
    pub credentials: Credentials,
    pub recorder: Recorder,
    pub begun: Instant,
    pub stop: Arc<AtomicBool>,
}

impl Shared {
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a run is shorter than that")
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Calls until it is told to stop.
pub async fn run(shared: Shared, number: u32, seed: u64) {
    let mut caller = Caller::new(shared, number, seed);
    while !caller.shared.stopped() {
        let served = caller.turn().await;
        tokio::time::sleep(if served { PAUSE } else { PAUSE_UNSERVED }).await;
    }
}

/// A client with its memory of what keys held.
pub struct Caller {
    shared: Shared,
    number: u32,
    random: StdRng,
    members: Vec<Client>,
    /// The member that is asked at present.
    member: usize,
    known: HashMap<String, (Revision, String)>,
    values: u64,
}

impl Caller {
    pub fn new(shared: Shared, number: u32, seed: u64) -> Caller {
        let new = |address: &SocketAddr| Client::new(*address, shared.credentials.clone());
        let members: Vec<Client> = shared.addresses.iter().map(new).collect();
        let random = StdRng::seed_from_u64(seed ^ u64::from(number).rotate_left(32));
        let member = usize::try_from(number).expect("few") % members.len();
        Caller { shared, number, random, members, member, known: HashMap::new(), values: 0 }
    }

    /// One call, or one more on the counter; true if the member served it.
    async fn turn(&mut self) -> bool {
        if self.random.random_bool(COUNTING) {
            return self.count().await;
        }
        let op = self.choose();
        self.call(op).await
    }

    /// Adds one to the counter, unless somebody else is faster: whoever begins at the same revision
    /// writes the same bytes.
    async fn count(&mut self) -> bool {
        let read = self.ask(Op::Get { key: COUNTER.to_owned() }).await;
        let Outcome::Found { item: Some(Item { key, revision: base, value: old }) } = read.outcome
        else {
            return false;
        };
        let Ok(number) = old.parse::<u64>() else {
            return false;
        };
        let value = (number + 1).to_string();
        let increment = self.ask(Op::Update { key, base, old, value }).await;
        let served = increment.is_served();
        self.shared.recorder.record(Line::Count(increment));
        served
    }

    /// Reads the counter on a given member, and records what it is.
    pub async fn read_counter(&mut self, member: usize) {
        self.member = member;
        let read = self.ask(Op::Get { key: COUNTER.to_owned() }).await;
        self.shared.recorder.record(Line::Count(read));
    }

    fn choose(&mut self) -> Op {
        if self.random.random_bool(0.1) {
            self.member = self.random.random_range(0..self.members.len());
        }
        let epoch = self.shared.now_us() / EPOCH_US;
        let key = format!("{PREFIX}{epoch}-{}", self.random.random_range(0..KEYS));
        let known = self.known.get(&key).cloned();
        self.values += 1;
        let value = format!("v{}-{}", self.number, self.values);
        match (self.random.random_range(0..100), known) {
            (0..20, _) => Op::Create { key, value },
            (20..55, Some((base, old))) => Op::Update { key, base, old, value },
            (20..55, None) => Op::Create { key, value },
            (55..62, base @ Some(_)) => Op::Delete { key, base },
            (55..65, _) => Op::Delete { key, base: None },
            (65..88, _) => Op::Get { key },
            (88..98, _) => Op::List { prefix: format!("{PREFIX}{epoch}-") },
            _ => Op::List { prefix: PREFIX.to_owned() },
        }
    }

    /// Asks a given member.
    pub async fn call_on(&mut self, member: usize, op: Op) -> bool {
        self.member = member;
        self.call(op).await
    }

    /// Makes a call and records it; true if the member served it.
    pub async fn call(&mut self, op: Op) -> bool {
        let call = self.ask(op).await;
        self.remember(&call.op, &call.outcome);
        let served = call.is_served();
        self.shared.recorder.record(Line::Call(call));
        served
    }

    /// Makes a call. If the member does not serve it, the next one is asked another.
    async fn ask(&mut self, op: Op) -> Call {
        let (method, path, body) = request(&op);
        let (client, member) = (self.number, self.member);
        let invoke_us = self.shared.now_us();
        let answer =
            self.members[member].call(method, &path, Bytes::from(body), CALL_TIMEOUT).await;
        let return_us = self.shared.now_us();
        let outcome = outcome(&op, answer);
        let call = Call { client, member, invoke_us, return_us, op, outcome };
        if !call.is_served() {
            self.member = (member + 1) % self.members.len();
        }
        call
    }

    fn remember(&mut self, op: &Op, outcome: &Outcome) {
        match (op, outcome) {
            (
                Op::Create { key, value } | Op::Update { key, value, .. },
                Outcome::Written { revision },
            ) => {
                self.known.insert(key.clone(), (*revision, value.clone()));
            }
            (_, Outcome::Found { item: Some(item) }) => {
                self.known.insert(item.key.clone(), (item.revision, item.value.clone()));
            }
            (_, Outcome::Listed { items, .. }) => {
                let known = items
                    .iter()
                    .map(|item| (item.key.clone(), (item.revision, item.value.clone())));
                self.known.clear();
                self.known.extend(known);
            }
            (Op::Create { .. } | Op::List { .. }, _) => {}
            (op, Outcome::Refused(Refusal::Conflict | Refusal::NotFound) | Outcome::Deleted) => {
                // Sometimes the old base is tried again: it must be refused again.
                if let Some(key) = op.key()
                    && self.random.random_bool(0.7)
                {
                    self.known.remove(key);
                }
            }
            _ => {}
        }
    }
}

/// The counter, as it is made.
pub fn counter() -> Bytes {
    let (_, _, body) = request(&Op::Create { key: COUNTER.to_owned(), value: "0".to_owned() });
    body.into()
}

fn request(op: &Op) -> (Method, String, Vec<u8>) {
    let object = |key: &str, base: Option<Revision>, value: &str| {
        let epoch = key.split('-').nth(1).unwrap_or_default();
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": key, "labels": {"epoch": epoch}}, "data": {"value": value}});
        if let Some(base) = base {
            object["metadata"]["resourceVersion"] = json!(base.to_string());
        }
        object.to_string().into_bytes()
    };
    match op {
        Op::Create { key, value } => (Method::POST, MAPS.to_owned(), object(key, None, value)),
        Op::Update { key, base, value, .. } => {
            (Method::PUT, format!("{MAPS}/{key}"), object(key, Some(*base), value))
        }
        Op::Delete { key, base } => {
            let options = base.as_ref().map(|(base, _)| {
                json!({"apiVersion": "v1", "kind": "DeleteOptions",
                       "preconditions": {"resourceVersion": base.to_string()}})
            });
            let body = options.map(|options| options.to_string().into_bytes());
            (Method::DELETE, format!("{MAPS}/{key}"), body.unwrap_or_default())
        }
        Op::Get { key } => (Method::GET, format!("{MAPS}/{key}"), Vec::new()),
        Op::List { prefix } => {
            let epoch = prefix.trim_start_matches(PREFIX).trim_end_matches('-');
            let query = match epoch {
                "" => String::new(),
                epoch => format!("?labelSelector=epoch%3D{epoch}"),
            };
            (Method::GET, format!("{MAPS}{query}"), Vec::new())
        }
    }
}

/// What an answer, or the lack of one, says. 503, 507 and 429 promise that nothing was done.
fn outcome(op: &Op, answer: Result<Answer, Failure>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Failure::NotSent(why)) => return Outcome::Refused(Refusal::Unserved(why)),
        Err(Failure::Lost(why)) => return Outcome::Unknown { why },
    };
    let Ok(body) = answer.json() else {
        return Outcome::Unknown { why: format!("{}: not JSON", answer.status) };
    };
    let reason = body["reason"].as_str().unwrap_or_default();
    match (answer.status, reason) {
        (200..=299, _) => done(op, &body),
        (409, "AlreadyExists") => Outcome::Refused(Refusal::Exists),
        (409, _) => Outcome::Refused(Refusal::Conflict),
        (404, _) if matches!(op, Op::Get { .. }) => Outcome::Found { item: None },
        (404, _) => Outcome::Refused(Refusal::NotFound),
        (status @ (503 | 507 | 429), _) => {
            Outcome::Refused(Refusal::Unserved(format!("{status}: {}", body["message"])))
        }
        (status, _) => Outcome::Unknown { why: format!("{status}: {}", body["message"]) },
    }
}

fn done(op: &Op, body: &Value) -> Outcome {
    let unreadable = || Outcome::Unknown { why: "an answer that cannot be read".to_owned() };
    match op {
        Op::Create { .. } | Op::Update { .. } => {
            let item = item(body);
            item.map_or_else(unreadable, |item| Outcome::Written { revision: item.revision })
        }
        Op::Delete { .. } => Outcome::Deleted,
        Op::Get { .. } => {
            item(body).map_or_else(unreadable, |item| Outcome::Found { item: Some(item) })
        }
        Op::List { .. } => list(body)
            .map_or_else(unreadable, |(revision, items)| Outcome::Listed { revision, items }),
    }
}

/// A ConfigMap as an item.
pub fn item(object: &Value) -> Option<Item> {
    let key = object["metadata"]["name"].as_str()?.to_owned();
    let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    let value = object["data"]["value"].as_str().unwrap_or_default().to_owned();
    Some(Item { key, revision, value })
}

/// A list of ConfigMaps: its revision and those that are ours.
pub fn list(body: &Value) -> Option<(Revision, Vec<Item>)> {
    let revision = body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    let items = body["items"].as_array()?.iter().map(item).collect::<Option<Vec<Item>>>()?;
    Some((revision, items.into_iter().filter(|item| item.key.starts_with(PREFIX)).collect()))
}
