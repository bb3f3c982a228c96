//! Watches: an endless answer, one JSON line an event.
//!
//! ```text
//! snapshot at R --> ADDED ... (if asked for) --> BOOKMARK "initial events end" (if asked for)
//! Store::watch after R ------------------------> ADDED, MODIFIED, DELETED, BOOKMARK ...
//! ```
//!
//! Both come from one revision, so nothing is missed and nothing is sent twice. The objects that are
//! there are made into lines piece by piece (`pieces.rs`), as the client takes them. An event without
//! selectors in plain JSON is encoded once and shared by all its watchers. A selector makes
//! transitions: an object that begins to match is ADDED, one that ceases to match is DELETED. A
//! watch from a revision that is not there yet waits for it in silence. A watch ends with its
//! timeout, the server's shutdown, when this member has heard nothing of the cluster for a while,
//! or when its client reads too slowly. A browser may take it over a WebSocket: then each line is a
//! text frame.

use super::{
    get,
    read::{self, Wanted},
    select::Selection,
    table::{self, Include},
};
use crate::apiserver::{
    ApiServer,
    content::{self, Accepted, Form},
    custom,
    errors::ApiError,
    escape,
    pieces::{self, Pace},
    request::{Query, Request},
    stored,
};
use crate::contain::{self, Panic};
use axum::{
    body::Body,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use wherry_resources::{Kind, Object, meta};
use wherry_store::{Change, Entry, Event, Revision, Snapshot, Store, Watch, WatchEnd, WindowError};

/// Time between bookmarks, as in Kubernetes.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch without timeoutSeconds ends after this, or up to twice this: not all at once.
const TIMEOUT_MIN: Duration = Duration::from_secs(30 * 60);
/// Longest time that a client can ask for: some ask for all there is, which no clock can count to.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Marks the bookmark behind the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    /// State whose objects are sent first; None starts behind `after`.
    initial: Option<Wanted>,
    after: Revision,
    /// A marked bookmark follows the initial events.
    marked: bool,
}

impl Start {
    fn of(query: &Query) -> Result<Start, ApiError> {
        read::check_watch(query)?;
        let version = query.get("resourceVersion").map(read::revision).transpose()?;
        let newest = Wanted::since(version);
        Ok(match query.get("sendInitialEvents") {
            None => match newest {
                Wanted::AtLeast(after) => Start { initial: None, after, marked: false },
                initial => Start { initial: Some(initial), after: 0, marked: false },
            },
            Some(_) if query.flag("sendInitialEvents") => {
                Start { initial: Some(newest), after: 0, marked: true }
            }
            Some(_) => Start { initial: None, after: version.unwrap_or(0), marked: false },
        })
    }
}

/// Answers a watch, over a WebSocket if the client asked for one.
pub async fn watch(
    api: &ApiServer,
    request: &Request,
    socket: Option<WebSocketUpgrade>,
) -> Result<Response, ApiError> {
    let stream = open(api, request).await?;
    Ok(match socket {
        Some(socket) => socket.on_upgrade(|socket| contain::task(stream.over(socket))),
        None => stream.into_response(),
    })
}

async fn open(api: &ApiServer, request: &Request) -> Result<Stream, ApiError> {
    let selection = Selection::of(request)?;
    let include = Include::of(&request.query)?;
    let start = Start::of(&request.query)?;
    let bookmarks = request.query.flag("allowWatchBookmarks");
    let deadline = Instant::now() + timeout(&request.query)?;
    let prefix = selection.prefix(request.namespace());
    let snapshot = match start.initial {
        Some(wanted) => Some(read::snapshot(api, wanted).await?),
        None => {
            read::in_touch(api).await?;
            // Revision 0 without initial events: from now on.
            (start.after == 0).then(|| api.store().current())
        }
    };
    let after = snapshot.as_ref().map_or(start.after, Snapshot::revision);
    let encoder = Arc::new(Encoder {
        kind: request.kind,
        accepted: request.accepted,
        include,
        selection,
        columns: AtomicBool::new(true),
    });
    let mut queue = VecDeque::new();
    let events = match encoder.watch(api.store(), prefix.clone(), after) {
        Ok(events) => Events::Open(events),
        // Too old: the stream says so and ends, for a watch has no other way to answer.
        Err(error @ WindowError::Gone { .. }) => {
            let status = read::window(error, after).status();
            queue.push_back(Line::Ready(encoder.line("ERROR", status)));
            Events::Ended
        }
        Err(WindowError::Future { .. }) => Events::Ahead(prefix.clone()),
    };
    let is_open = matches!(events, Events::Open(_));
    let snapshot = snapshot.filter(|_| start.initial.is_some() && is_open);
    let marked = start.marked && bookmarks;
    let initial = snapshot.map(|snapshot| {
        let encoder = encoder.clone();
        Initial { encoder, snapshot, prefix, last: None, marked, has_more: true }
    });
    let initial = initial.and_then(|mut initial| {
        // For most that begin the first piece is all there is.
        queue.extend(initial.piece(&Pace::begin()).into_iter().flatten());
        let share = api.fairness().share(&request.user);
        initial.has_more.then(|| pieces::made(share, move |pace| initial.piece(pace)))
    });
    api.metrics().watches.fetch_add(1, Relaxed);
    Ok(Stream {
        api: api.clone(),
        encoder,
        queue,
        initial,
        events,
        sent: after,
        bookmarks: bookmarks.then(bookmark_timer),
        deadline: Box::pin(tokio::time::sleep_until(deadline)),
        stop: Box::pin(api.watching().cancelled_owned()),
    })
}

fn bookmark_timer() -> Interval {
    let mut timer = tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

fn timeout(query: &Query) -> Result<Duration, ApiError> {
    let asked = query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(match asked.filter(|seconds| *seconds > 0) {
        Some(seconds) => Duration::from_secs(seconds).min(TIMEOUT_MAX),
        None => TIMEOUT_MIN + TIMEOUT_MIN.mul_f64(rand::random::<f64>()),
    })
}

/// What waits to be sent.
#[derive(Clone)]
enum Line {
    /// One, or several of the objects with which a watch begins.
    Ready(Bytes),
    /// A webhook must be asked about the object before it can be shown.
    Foreign(&'static str, Object),
}

fn lost() -> ApiError {
    ApiError::Internal("an object was lost in its conversion".to_owned())
}

/// Turns events of the store into lines. Knows nothing of time and connections.
struct Encoder {
    kind: &'static Kind,
    accepted: Accepted,
    include: Include,
    selection: Selection,
    /// The next Table is the first, which has the columns.
    columns: AtomicBool,
}

impl Encoder {
    /// The events among which those are that concern what is watched.
    fn watch(&self, store: &Store, prefix: Bytes, after: Revision) -> Result<Watch, WindowError> {
        match self.selection.mark() {
            Some(mark) => store.watch_marked(prefix, mark, after),
            None => store.watch(prefix, after),
        }
    }

    /// An object of the snapshot, if it matches.
    fn initial(&self, entry: &Entry) -> Option<Line> {
        if !self.selection.may_match(&entry.value) {
            return None;
        }
        let plain = self.is_plain() && !custom::by_webhook(self.kind);
        if self.selection.is_everything() && plain {
            let value = stored::accepted(self.kind, self.accepted, &entry.value);
            return Some(Line::Ready(plain_line(self.kind, "ADDED", &value, entry.modified)));
        }
        let object = stored::decode(self.kind, entry);
        self.selection.matches(&object).then(|| self.object_line("ADDED", object))
    }

    /// A change, if it concerns what is watched.
    fn event(&self, event: &Event) -> Option<Line> {
        if self.selection.is_everything() {
            let word = match (&event.change, &event.previous) {
                (Change::Delete(_), _) => "DELETED",
                (Change::Put(_), None) => "ADDED",
                (Change::Put(_), Some(_)) => "MODIFIED",
            };
            let kind = self.kind;
            if self.is_plain() && stored::is_plain(kind) {
                let line = |value: &[u8]| plain_line(kind, word, value, event.revision);
                let value = &event.entry().value;
                // What most watchers get is made once for them all.
                return Some(Line::Ready(match self.accepted.managers {
                    true => event.encoded(|_| line(value)),
                    false => line(&stored::accepted(kind, self.accepted, value)),
                }));
            }
            let object = stored::decode_at(kind, &event.entry().value, event.revision);
            return Some(self.object_line(word, object));
        }
        let matching = |entry: &Entry| {
            let maybe = self.selection.may_match(&entry.value);
            let object = maybe.then(|| stored::decode_at(self.kind, &entry.value, event.revision));
            object.filter(|object| self.selection.matches(object))
        };
        let before = event.previous.as_ref().and_then(matching);
        let after = match &event.change {
            Change::Put(entry) => matching(entry),
            Change::Delete(_) => None,
        };
        match (before, after) {
            (None, None) => None,
            (None, Some(object)) => Some(self.object_line("ADDED", object)),
            (Some(_), Some(object)) => Some(self.object_line("MODIFIED", object)),
            (Some(object), None) => Some(self.object_line("DELETED", object)),
        }
    }

    /// Tells the client how far it is.
    fn bookmark(&self, revision: Revision, initial_events_end: bool) -> Bytes {
        let mut object: Object = json!({
            "kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": { "resourceVersion": revision.to_string(), "creationTimestamp": null },
        });
        if initial_events_end {
            meta::set_annotation(&mut object, INITIAL_EVENTS_END, "true");
        }
        match self.accepted.form {
            Form::Object => self.line("BOOKMARK", object),
            Form::Metadata { version } => {
                let object = content::metadata_only(object, version);
                self.line("BOOKMARK", object)
            }
            Form::Table { version } => {
                let metadata = object["metadata"].as_object().cloned().unwrap_or_default();
                let columns = self.columns.swap(false, Relaxed);
                let table = table::table(self.kind, version, metadata, columns, Vec::new());
                self.line("BOOKMARK", table)
            }
        }
    }

    fn object_line(&self, word: &'static str, object: Object) -> Line {
        if custom::is_foreign(self.kind, &object) {
            return Line::Foreign(word, object);
        }
        Line::Ready(self.rendered(word, object))
    }

    fn rendered(&self, word: &str, object: Object) -> Bytes {
        let shown = match self.accepted.form {
            Form::Object => get::shown(self.kind, object),
            Form::Metadata { version } => content::metadata_only(object, version),
            Form::Table { version } => {
                let mut metadata = Map::new();
                let revision = meta::resource_version(&object);
                metadata.insert("resourceVersion".into(), revision.into());
                let now = jiff::Timestamp::now();
                let row = table::row(self.kind, object, self.include, version, now);
                let columns = self.columns.swap(false, Relaxed);
                table::table(self.kind, version, metadata, columns, vec![row])
            }
        };
        self.line(word, shown)
    }

    fn line(&self, word: &str, object: Value) -> Bytes {
        let line = format!("{}\n", json!({ "type": word, "object": object }));
        escape::whole(line.into_bytes()).into()
    }

    fn is_plain(&self) -> bool {
        self.accepted.form == Form::Object
    }
}

fn plain_line(kind: &'static Kind, word: &str, value: &[u8], revision: Revision) -> Bytes {
    let mut line = format!("{{\"type\":\"{word}\",\"object\":").into_bytes();
    line.extend(stored::json(kind, value, revision));
    line.extend_from_slice(b"}\n");
    line.into()
}

/// Where what follows the queue comes from.
enum Events {
    Open(Watch),
    /// The store has not reached the revision yet; then this prefix is watched.
    Ahead(Bytes),
    /// Nothing follows.
    Ended,
}

/// The objects with which a watch begins, as far as they have not been made into lines.
struct Initial {
    encoder: Arc<Encoder>,
    snapshot: Snapshot,
    prefix: Bytes,
    /// Key of the last one that was taken.
    last: Option<Bytes>,
    /// A bookmark says that these were all.
    marked: bool,
    has_more: bool,
}

impl Initial {
    /// The lines of some more objects, perhaps of none that is shown; None behind the last.
    fn piece(&mut self, pace: &Pace) -> Option<Vec<Line>> {
        if !std::mem::replace(&mut self.has_more, false) {
            return None;
        }
        let mut lines = Vec::new();
        let mut ready: Vec<u8> = Vec::new();
        let joined = |ready: &mut Vec<u8>| match ready.is_empty() {
            true => None,
            false => Some(Line::Ready(std::mem::take(ready).into())),
        };
        for (key, entry) in self.snapshot.range(&self.prefix, self.last.as_deref()) {
            match self.encoder.initial(&entry) {
                None => {}
                Some(Line::Ready(line)) => ready.extend_from_slice(&line),
                Some(foreign) => {
                    lines.extend(joined(&mut ready));
                    lines.push(foreign);
                }
            }
            if ready.len() >= pieces::ENOUGH || pace.is_over() {
                self.last = Some(key);
                self.has_more = true;
                break;
            }
        }
        if self.marked && !self.has_more {
            ready.extend_from_slice(&self.encoder.bookmark(self.snapshot.revision(), true));
        }
        lines.extend(joined(&mut ready));
        Some(lines)
    }
}

/// An open watch: what it has still to send, and where the rest comes from.
struct Stream {
    api: ApiServer,
    encoder: Arc<Encoder>,
    queue: VecDeque<Line>,
    /// What follows the queue before all events.
    initial: Option<mpsc::Receiver<Result<Vec<Line>, Panic>>>,
    events: Events,
    /// Revision up to which the client has seen everything.
    sent: Revision,
    bookmarks: Option<Interval>,
    // Both are waited for as long as the watch lives, and not anew for each event.
    deadline: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream {
    fn into_response(self) -> Response {
        let lines = futures::stream::unfold(self, |mut stream| async move {
            let line = stream.next().await?;
            Some((Ok::<Bytes, Infallible>(line), stream))
        });
        let mut response = Response::new(Body::from_stream(lines));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.queue.front().cloned() {
                // Nothing is taken out before it is ready: this may be cut off while it waits.
                let ready = self.ready(line).await;
                self.queue.pop_front();
                return Some(ready);
            }
            if let Some(initial) = &mut self.initial {
                tokio::select! {
                    piece = initial.recv() => match piece {
                        Some(Ok(lines)) => self.queue.extend(lines),
                        Some(Err(panic)) => panic.resume(),
                        None => self.initial = None,
                    },
                    () = self.deadline.as_mut() => return None,
                    () = self.stop.as_mut() => return None,
                }
                continue;
            }
            let next = match &mut self.events {
                Events::Open(events) => Next::Event(events),
                Events::Ahead(_) => Next::Reached(self.api.store(), self.sent),
                Events::Ended => return None,
            };
            tokio::select! {
                event = next.wait() => match event {
                    Ok(Some(event)) => self.take(&event),
                    Ok(None) => self.catch_up(),
                    Err(end) => return self.cut(end),
                },
                () = tick(&mut self.bookmarks) => self.bookmark(),
                () = self.deadline.as_mut() => {
                    if self.bookmarks.is_some() {
                        self.bookmark();
                    }
                    self.events = Events::Ended;
                }
                () = self.stop.as_mut() => self.events = Events::Ended,
            }
        }
    }

    /// A line as it is sent; an object that a webhook has to convert is converted.
    async fn ready(&mut self, line: Line) -> Bytes {
        let (word, object) = match line {
            Line::Ready(bytes) => return bytes,
            Line::Foreign(word, object) => (word, object),
        };
        let kind = self.encoder.kind;
        match custom::into_version(&self.api, kind, vec![object]).await.map(|mut all| all.pop()) {
            Ok(Some(object)) => self.encoder.rendered(word, object),
            Ok(None) => self.encoder.line("ERROR", lost().status()),
            // The client must list again: it has missed a change. What waits behind it is not sent.
            Err(error) => {
                self.events = Events::Ended;
                self.initial = None;
                self.queue.truncate(1);
                self.encoder.line("ERROR", error.status())
            }
        }
    }

    /// The store has come to where this watch begins.
    fn catch_up(&mut self) {
        if let Events::Ahead(prefix) = &self.events {
            let events = self.encoder.watch(self.api.store(), prefix.clone(), self.sent);
            self.events = match events {
                Ok(events) => Events::Open(events),
                Err(error) => {
                    let status = read::window(error, self.sent).status();
                    self.queue.push_back(Line::Ready(self.encoder.line("ERROR", status)));
                    Events::Ended
                }
            };
        }
    }

    /// Sends each line as a frame, until one side has had enough.
    async fn over(mut self, mut socket: WebSocket) {
        loop {
            tokio::select! {
                lines = self.next() => {
                    let Some(lines) = lines else { break };
                    for line in lines.split_inclusive(|byte| *byte == b'\n') {
                        let text = String::from_utf8_lossy(line).into_owned();
                        if socket.send(Message::Text(text.into())).await.is_err() {
                            return;
                        }
                    }
                }
                heard = socket.recv() => {
                    // Clients have nothing to say but that they go; pings answer themselves.
                    if matches!(heard, None | Some(Err(_) | Ok(Message::Close(_)))) {
                        return;
                    }
                }
            }
        }
        // The client may be gone already; then there is nobody to tell.
        let _ = socket.send(Message::Close(None)).await;
    }

    fn take(&mut self, event: &Event) {
        self.sent = self.sent.max(event.revision);
        self.queue.extend(self.encoder.event(event));
    }

    /// Tells how far the client has seen everything. The store's newest revision would be too much
    /// to promise: its event may not have come here yet.
    fn bookmark(&mut self) {
        while let Events::Open(events) = &mut self.events {
            match events.ready() {
                Ok(Some(event)) => self.take(&event),
                // What came in between is taken first.
                Ok(None) => {
                    if let Some(reached) = events.progress() {
                        self.sent = self.sent.max(reached);
                        break;
                    }
                }
                // Events were lost with it; the next turn says how it ended.
                Err(_) => return,
            }
        }
        self.queue.push_back(Line::Ready(self.encoder.bookmark(self.sent, false)));
    }

    fn cut(&mut self, end: WatchEnd) -> Option<Bytes> {
        if end == WatchEnd::Slow {
            self.api.metrics().watches_cut.fetch_add(1, Relaxed);
        }
        tracing::debug!(kind = self.encoder.kind.kind, revision = self.sent, %end, "watch ended");
        self.events = Events::Ended;
        None
    }
}

/// What a watch waits for.
enum Next<'a> {
    Event(&'a mut Watch),
    Reached(&'a Store, Revision),
}

impl Next<'_> {
    /// The next event; None when the revision is reached.
    async fn wait(self) -> Result<Option<Arc<Event>>, WatchEnd> {
        match self {
            Next::Event(events) => events.next().await.map(Some),
            Next::Reached(store, revision) => match store.reached(revision).await {
                true => Ok(None),
                false => Err(WatchEnd::Stopped),
            },
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.api.metrics().watches.fetch_sub(1, Relaxed);
    }
}

async fn tick(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => {
            timer.tick().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        let of = |query: &str| match Start::of(&Query::parse(query)) {
            Ok(Start { initial, after, marked }) => format!("{initial:?} {after} {marked}"),
            Err(error) => error.code().as_u16().to_string(),
        };
        assert_eq!(of("watch=1"), "Some(Newest) 0 false");
        assert_eq!(of("watch=1&resourceVersion=0"), "Some(Any) 0 false");
        assert_eq!(of("watch=1&resourceVersion=8"), "None 8 false");
        let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        assert_eq!(of(initial), "Some(Newest) 0 true");
        assert_eq!(of(&format!("{initial}&resourceVersion=8")), "Some(AtLeast(8)) 0 true");
        assert_eq!(of("sendInitialEvents=true"), "422");
        assert_eq!(of("resourceVersionMatch=NotOlderThan"), "422");
    }

    #[test]
    fn timeouts() {
        let of = |seconds: i64| timeout(&Query::parse(&format!("timeoutSeconds={seconds}"))).ok();
        assert_eq!(of(5), Some(Duration::from_secs(5)));
        assert_eq!(of(i64::MAX), Some(TIMEOUT_MAX));
        assert!(of(-1) >= Some(TIMEOUT_MIN));
    }
}
