//! Events: what controllers and scheduler tell people about an object.
//!
//! A [`Note`] is one such sentence. The recorder writes it as an Event whose name follows from
//! object, reason and message, so the same note again (also by the next leader) raises the count of
//! the same Event. Notes that differ in their message only are combined into one Event after
//! [`DISTINCT_MAX`] of them, until there are none for a while; counts are written at most once in
//! [`COUNT_PAUSE`], and writes go one after the other: events can never crowd out the writes they
//! tell about. When more come than that, the newest are dropped.
//!
//! Tasks: [`run`] owns all state and ends with the shutdown. Channel: bounded by [`QUEUE_MAX`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use http::Request;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wherry_resources::events::{self, Happening};

use super::cache::Typed;
use super::leftovers::EVENT_LIFE;

/// Notes waiting to be written; a burst of a thousand new Pods fits.
const QUEUE_MAX: usize = 4_096;
/// Events whose counts are kept in mind.
const KNOWN_MAX: usize = 4_096;
/// Different messages of one reason about one object before they are combined.
const DISTINCT_MAX: usize = 10;
/// After so long without a note of that reason about that object nothing is combined any more, as
/// in Kubernetes: who is told of each hour's Job is not spammed.
const APART: Duration = Duration::from_secs(600);
/// A count is written at most this often.
const COUNT_PAUSE: Duration = Duration::from_secs(1);
/// What Kubernetes puts before the newest of many similar messages.
const COMBINED: &str = "(combined from similar events): ";

/// One sentence about one object.
#[derive(Clone, Debug)]
pub struct Note {
    /// The object as an event's `involvedObject`.
    about: Value,
    warning: bool,
    reason: &'static str,
    message: String,
    component: &'static str,
}

impl Note {
    pub fn normal<T: Typed>(
        component: &'static str,
        about: &T,
        reason: &'static str,
        message: String,
    ) -> Note {
        let meta = about.metadata();
        let about = events::reference(&json!({
            "apiVersion": T::API_VERSION,
            "kind": T::KIND,
            "metadata": {
                "namespace": meta.namespace.as_deref().unwrap_or(""),
                "name": meta.name.as_deref().unwrap_or(""),
                "uid": meta.uid.as_deref().unwrap_or(""),
                "resourceVersion": meta.resource_version.as_deref().unwrap_or(""),
            },
        }));
        Note { about, warning: false, reason, message, component }
    }

    /// A note on an object that is at hand as an event's `involvedObject`.
    pub fn about(
        component: &'static str,
        about: Value,
        warning: bool,
        reason: &'static str,
        message: String,
    ) -> Note {
        Note { about, warning, reason, message, component }
    }

    pub fn warning<T: Typed>(
        component: &'static str,
        about: &T,
        reason: &'static str,
        message: String,
    ) -> Note {
        Note { warning: true, ..Note::normal(component, about, reason, message) }
    }

    fn subject(&self) -> Subject {
        (self.about["uid"].as_str().unwrap_or("").to_string(), self.reason)
    }

    fn happening<'a>(&'a self, message: &'a str) -> Happening<'a> {
        Happening {
            kind: if self.warning { "Warning" } else { "Normal" },
            reason: self.reason,
            message,
            component: self.component,
            host: "",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.warning { "Warning" } else { "Normal" };
        write!(f, "{kind} {}: {}", self.reason, self.message)
    }
}

/// Object and reason: what similar notes have in common.
type Subject = (String, &'static str);

/// Takes notes; cheap to clone, never waits.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Note>);

impl Recorder {
    /// Records a note, or drops it when the queue is full.
    pub fn record(&self, note: Note) {
        if self.0.try_send(note).is_err() {
            tracing::debug!("an event was dropped: too many at once");
        }
    }
}

/// A recorder and the end from which [`run`] writes.
pub fn recorder() -> (Recorder, mpsc::Receiver<Note>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Recorder(sender), receiver)
}

/// An Event that was written.
struct Known {
    namespace: String,
    count: i32,
    last: Timestamp,
    message: String,
    written: Instant,
}

/// What to do about a note.
enum Step {
    Create(String, Value),
    Count(String),
    Later,
}

/// What was told of one subject lately.
struct Recent {
    messages: BTreeSet<String>,
    last: Instant,
}

#[derive(Default)]
struct Ledger {
    known: HashMap<String, Known>,
    /// Names in the order they became known.
    order: VecDeque<String>,
    recent: HashMap<Subject, Recent>,
    /// Names of Events whose count is ahead of what was written: few, and asked for at every note.
    behind: BTreeSet<String>,
}

impl Ledger {
    fn note(&mut self, mut note: Note, now: Timestamp, instant: Instant) -> Step {
        let recent = self
            .recent
            .entry(note.subject())
            .or_insert_with(|| Recent { messages: BTreeSet::new(), last: instant });
        if instant.saturating_duration_since(recent.last) >= APART {
            recent.messages.clear();
        }
        recent.last = instant;
        let messages = &mut recent.messages;
        let combined = !messages.contains(&note.message) && messages.len() >= DISTINCT_MAX;
        let identity = if combined { COMBINED.to_string() } else { note.message.clone() };
        if combined {
            note.message = format!("{COMBINED}{}", note.message);
        } else {
            messages.insert(note.message.clone());
        }
        let name = events::name(&note.about, &note.happening(&identity));
        let old = |known: &Known| now.duration_since(known.last) >= EVENT_LIFE;
        if self.known.get(&name).is_some_and(old) {
            // It has expired, or is about to.
            self.forget(&name);
        }
        if let Some(known) = self.known.get_mut(&name) {
            known.count = known.count.saturating_add(1);
            known.last = now;
            known.message = note.message;
            if instant.saturating_duration_since(known.written) < COUNT_PAUSE {
                self.behind.insert(name);
                return Step::Later;
            }
            known.written = instant;
            self.behind.remove(&name);
            return Step::Count(name);
        }
        self.remember(name.clone(), &note, now, instant);
        let mut event = events::new(&note.about, &note.happening(&note.message), now);
        event["metadata"]["name"] = name.clone().into();
        Step::Create(name, event)
    }

    fn remember(&mut self, name: String, note: &Note, now: Timestamp, instant: Instant) {
        if self.order.len() >= KNOWN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
                self.behind.remove(&oldest);
            }
            if self.recent.len() > KNOWN_MAX {
                self.recent.clear();
            }
        }
        let known = Known {
            namespace: events::namespace(&note.about).to_string(),
            count: 1,
            last: now,
            message: note.message.clone(),
            written: instant,
        };
        self.order.push_back(name.clone());
        self.known.insert(name, known);
    }

    fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.behind.remove(name);
        self.order.retain(|known| known != name);
    }

    /// Events whose count is ahead of what was written and whose pause is over.
    fn overdue(&mut self, instant: Instant) -> Vec<String> {
        let mut names = Vec::new();
        for name in &self.behind {
            let known = self.known.get_mut(name).expect("who is behind is known");
            if instant.saturating_duration_since(known.written) >= COUNT_PAUSE {
                known.written = instant;
                names.push(name.clone());
            }
        }
        names.iter().for_each(|name| _ = self.behind.remove(name));
        names
    }
}

/// Writes notes as Events until the shutdown.
pub async fn run(
    client: kube::Client,
    mut notes: mpsc::Receiver<Note>,
    shutdown: CancellationToken,
) {
    let mut ledger = Ledger::default();
    loop {
        let behind = !ledger.behind.is_empty();
        let pause = async {
            match behind {
                true => tokio::time::sleep(COUNT_PAUSE).await,
                false => std::future::pending().await,
            }
        };
        let work = async {
            tokio::select! {
                note = notes.recv() => note,
                () = pause => None,
            }
        };
        let note = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            note = work => note,
        };
        let mut steps = Vec::new();
        match note {
            Some(note) => steps.push(ledger.note(note, Timestamp::now(), Instant::now())),
            None if notes.is_closed() && notes.is_empty() => return,
            None => {}
        }
        steps.extend(ledger.overdue(Instant::now()).into_iter().map(Step::Count));
        for step in steps {
            let written = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                written = write(&client, &mut ledger, step) => written,
            };
            if let Err(error) = written {
                tracing::debug!(%error, "an event was not written");
            }
        }
    }
}

async fn write(client: &kube::Client, ledger: &mut Ledger, step: Step) -> Result<(), kube::Error> {
    match step {
        Step::Later => Ok(()),
        Step::Create(name, event) => {
            let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default");
            let request = Request::post(format!("/api/v1/namespaces/{namespace}/events"))
                .header(CONTENT_TYPE, "application/json")
                .body(event.to_string().into_bytes())
                .expect("namespaces make valid paths");
            // Each Pod that is bound has one: what comes back is not read, it is what was sent.
            match client.request::<IgnoredAny>(request).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    // Written before this process began to count.
                    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
                    let before = api.get(&name).await?;
                    if let Some(known) = ledger.known.get_mut(&name) {
                        known.count = before.count.unwrap_or(0).saturating_add(known.count);
                    }
                    count(client, ledger, &name).await
                }
                other => other.map(|_| ()),
            }
        }
        Step::Count(name) => count(client, ledger, &name).await,
    }
}

async fn count(client: &kube::Client, ledger: &mut Ledger, name: &str) -> Result<(), kube::Error> {
    let Some(known) = ledger.known.get(name) else { return Ok(()) };
    let api: Api<Event> = Api::namespaced(client.clone(), &known.namespace);
    let body = json!({
        "count": known.count, "lastTimestamp": Time(known.last), "message": known.message,
    });
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await;
    if matches!(&patched, Err(kube::Error::Api(status)) if status.code == 404) {
        // It expired: the next note makes it anew.
        ledger.forget(name);
        return Ok(());
    }
    patched.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{meta, object};
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn told(ledger: &mut Ledger, message: &str, seconds: u64, start: Instant) -> String {
        let pod: Pod = object(meta("default", "web"));
        let note = Note::normal("test", &pod, "Reason", message.to_string());
        let after = Duration::from_secs(seconds);
        match ledger.note(note, Timestamp::UNIX_EPOCH + after, start + after) {
            Step::Create(_, event) => format!("create {}", event["message"].as_str().unwrap_or("")),
            Step::Count(name) => {
                let known = &ledger.known[&name];
                format!("count {} {}", known.count, known.message)
            }
            Step::Later => "later".to_string(),
        }
    }

    #[test]
    fn the_same_note_raises_a_count_but_not_often() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        assert_eq!(told(&mut ledger, "a", 0, start), "create a");
        assert_eq!(told(&mut ledger, "a", 0, start), "later");
        assert!(ledger.overdue(start).is_empty());
        assert_eq!(ledger.overdue(start + COUNT_PAUSE).len(), 1);
        assert_eq!(told(&mut ledger, "a", 5, start), "count 3 a");
    }

    #[test]
    fn many_similar_notes_are_combined() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        for number in 0..DISTINCT_MAX {
            assert_eq!(
                told(&mut ledger, &number.to_string(), 0, start),
                format!("create {number}")
            );
        }
        assert_eq!(told(&mut ledger, "x", 0, start), format!("create {COMBINED}x"));
        assert_eq!(told(&mut ledger, "y", 2, start), format!("count 2 {COMBINED}y"));
        assert_eq!(told(&mut ledger, "3", 2, start), "count 2 3");
    }

    #[test]
    fn notes_far_apart_are_not_combined() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        for number in 0..=DISTINCT_MAX {
            told(&mut ledger, &number.to_string(), 0, start);
        }
        let later = APART.as_secs();
        assert_eq!(told(&mut ledger, "new", later, start), "create new");
        assert_eq!(told(&mut ledger, "3", later + 1, start), "count 2 3");
    }

    #[test]
    fn what_has_expired_is_made_again() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let life = EVENT_LIFE.unsigned_abs().as_secs();
        assert_eq!(told(&mut ledger, "a", 0, start), "create a");
        assert_eq!(told(&mut ledger, "a", life - 1, start), "count 2 a");
        assert_eq!(told(&mut ledger, "a", 2 * life, start), "create a");
        assert_eq!((ledger.known.len(), ledger.order.len()), (1, 1));
    }
}
