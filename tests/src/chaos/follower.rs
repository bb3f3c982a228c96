//! A follower: one logical watch that goes on wherever it stopped, on whichever member, and records
//! what it sees. An *edge* follower asks for the oldest revision that can still be had, again and
//! again, for the edge of the window is where a change is lost most easily.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::client::{MAPS, PREFIX, Shared, item, list};
use super::history::{Line, Revision, Saw, WatchLine};
use crate::http::Client;

/// Head of a watch's answer, or a whole list.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A watch without an event or bookmark for so long is given up; its end was lost on the way.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// Follows until it is told to stop.
pub async fn run(shared: Shared, number: u32, edge: bool, seed: u64) {
    let random = StdRng::seed_from_u64(seed ^ u64::from(number).rotate_left(48));
    let mut follower = Follower { shared, number, edge, random, member: 0, at: None };
    while !follower.shared.stopped() {
        follower.member = follower.random.random_range(0..follower.shared.addresses.len());
        if edge {
            // Where nothing has left the window yet, everything can be had.
            follower.at = oldest(&mut follower.client(), MAPS).await.or(Some(1));
        }
        if follower.at.is_none() && !edge {
            follower.restart().await;
        }
        if let Some(after) = follower.at {
            follower.watch(after).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Follower {
    shared: Shared,
    number: u32,
    edge: bool,
    random: StdRng,
    member: usize,
    /// What it has seen up to; `None` before the first list.
    at: Option<Revision>,
}

impl Follower {
    fn record(&self, saw: Saw) {
        let at_us = self.shared.now_us();
        let (follower, member) = (self.number, self.member);
        self.shared.recorder.record(Line::Watch(WatchLine { follower, member, at_us, saw }));
    }

    fn client(&self) -> Client {
        Client::new(self.shared.addresses[self.member], self.shared.credentials.clone())
    }

    async fn restart(&mut self) {
        let Ok(body) = self.client().get(MAPS, ANSWER_TIMEOUT).await else { return };
        if let Some((revision, items)) = list(&body) {
            self.record(Saw::Restart { revision, items });
            self.at = Some(revision);
        }
    }

    async fn watch(&mut self, after: Revision) {
        let longest = if self.edge { 4 } else { 25 };
        let seconds = self.random.random_range(3..=longest);
        let path = format!(
            "{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={after}\
             &timeoutSeconds={seconds}"
        );
        let mut client = self.client();
        let opened = client.open(Method::GET, &path, Bytes::new());
        let Ok(Ok(response)) = tokio::time::timeout(ANSWER_TIMEOUT, opened).await else { return };
        match response.status().as_u16() {
            200 => {}
            410 => return self.expired(),
            _ => return,
        }
        self.record(Saw::Open { after });
        let end = self.events(response.into_body()).await;
        self.record(Saw::End { why: end });
    }

    fn expired(&mut self) {
        self.at = None;
    }

    /// Reads events until the watch ends; returns why it did.
    async fn events(&mut self, mut body: Incoming) -> String {
        let mut buffer = Vec::new();
        while !self.shared.stopped() {
            let frame = tokio::time::timeout(SILENCE_TIMEOUT, body.frame()).await;
            let data = match frame {
                Err(_) => return "silence".to_owned(),
                Ok(None) => return "end of stream".to_owned(),
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Some(why) = self.event(&line) {
                    return why;
                }
            }
        }
        "stopped".to_owned()
    }

    /// Takes one event; a reason if it ends the watch.
    fn event(&mut self, line: &[u8]) -> Option<String> {
        let Ok(event) = serde_json::from_slice::<Value>(line) else {
            return Some(format!("not JSON: {}", crate::text(line)));
        };
        let kind = event["type"].as_str().unwrap_or_default();
        let object = &event["object"];
        if kind == "ERROR" {
            if object["code"] == 410 {
                self.expired();
            }
            return Some(format!("error: {}", object["message"]));
        }
        let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        self.at = Some(revision);
        if kind == "BOOKMARK" {
            self.record(Saw::Bookmark { revision });
            return None;
        }
        let item = item(object)?;
        if item.key.starts_with(PREFIX) {
            let value = (kind != "DELETED").then_some(item.value);
            let created = kind == "ADDED";
            self.record(Saw::Event { key: item.key, revision, value, created });
        }
        None
    }
}

/// The oldest revision that a watch of this path can begin behind, which a refusal tells.
pub async fn oldest(client: &mut Client, path: &str) -> Option<Revision> {
    let path = format!("{path}?watch=true&resourceVersion=1&timeoutSeconds=1");
    let opened = tokio::time::timeout(ANSWER_TIMEOUT, async {
        let response = client.open(Method::GET, &path, Bytes::new()).await.ok()?;
        let refused = response.status() == 410;
        let mut body = response.into_body();
        let first = body.frame().await?.ok()?.into_data().ok()?;
        let event: Value = serde_json::from_slice(&first).ok()?;
        let status = if refused { &event } else { &event["object"] };
        oldest_in(status["message"].as_str()?)
    });
    opened.await.ok().flatten()
}

/// The oldest revision, in `too old resource version: 1 (503)`.
fn oldest_in(message: &str) -> Option<Revision> {
    let (_, rest) = message.split_once('(')?;
    rest.split(')').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_edge_is_read_from_the_refusal() {
        assert_eq!(super::oldest_in("too old resource version: 1 (503)"), Some(503));
        assert_eq!(
            super::oldest_in("etcdserver: mvcc: required revision has been compacted"),
            None
        );
    }
}
