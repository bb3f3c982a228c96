//! `/ui/stream`: one WebSocket for everything live that a browser shows.
//!
//! The browser opens lists by a number of its own, and says how it looks at each (`row::Look`).
//! Every [`TICK`] it is told, in one message, what is new in its windows; what is outside them
//! never travels.
//!
//! ```text
//! browser                                  here
//! {"open":{"id":1,"resource":"pods",…}} -> authorise, and look at the printed list of the kind
//!                                       <- [{"id":1,"columns":[…],"namespaces":null},
//!                                           {"id":1,"total":…,"order":[…],"rows":[…]}]
//! {"look":{"id":1,"from":40,…}}         -> another window of the same list
//! {"close":{"id":1}}                    -> forgotten
//!                                       <- [{"id":1,"error":{Status}}]: refused, or ended
//!                                       <- [{"alive":REVISION}] every few seconds
//! ```
//!
//! A list is a read like any other: each is authorised when it is opened and again while it lives,
//! and told to the audit log. Without the right to list everywhere a person sees the namespaces in
//! which they may, and no list outlives their session. A browser that does not take what it is sent
//! is cut off, and begins anew. Through a member that is cut off itself nothing is streamed, as
//! nothing is watched: it would look as if nothing happened.
//!
//! Lists of the present are printed once for everybody (`printed`). A list of its own has who looks
//! at the past, at a kind that a webhook converts, or at one with too many objects.

use super::{
    asof,
    printed::{Ended, Printed, ROWS_MAX, Shared},
    row::{self, Look},
    view::{Chosen, Scope, View},
};
use crate::apiserver::{
    ApiServer,
    audit::{self, Source, Told},
    auth::{self, User},
    authorize, custom,
    errors::ApiError,
    request::Attributes,
    stored,
    verbs::{read, select::Selection},
};
use crate::contain;
use axum::{
    Extension,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use wherry_resources::{Kind, Object, keys, table};
use wherry_store::{Change, Entry, Event, Watch};

/// Changes are told this often: nobody reads faster, and a busy cluster costs ten frames a second.
const TICK: Duration = Duration::from_millis(100);
/// While a list is still being printed somebody waits for it.
const SOON: Duration = Duration::from_millis(20);
/// How often rights and session are looked at again, and the browser hears that all is well.
const CHECK: Duration = Duration::from_secs(5);
/// Printed times (`3 (5m ago)`) are printed again this many checks apart.
const REFRESH_CHECKS: u64 = 2;
/// A browser that takes nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A page has a handful of lists; this is a script's mistake.
const LISTS_MAX: usize = 32;
/// Streams of one member; each list of one has an order of its own of the shared rows.
const STREAMS_MAX: usize = 256;
/// Longest message of a browser.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Namespaces that one list may name.
const NAMESPACES_MAX: usize = 256;

/// What is spoken here.
const PROTOCOL: &str = "wherry.stream.v1";

static STREAMS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(STREAMS_MAX)));

/// What a browser says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    Open(Open),
    Look {
        id: u32,
        #[serde(flatten)]
        look: Look,
    },
    Close {
        id: u32,
    },
}

/// A list that is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Open {
    id: u32,
    group: String,
    version: String,
    resource: String,
    /// Empty: all that the person may see.
    namespaces: Vec<String>,
    labels: String,
    fields: String,
    /// Only what this one, kind and name, has made.
    owner: Option<(String, String)>,
    /// As it was then, in seconds since 1970; it does not live.
    at: Option<i64>,
    #[serde(flatten)]
    look: Look,
}

/// Answers the handshake.
pub async fn accept(
    State(api): State<ApiServer>,
    Extension(user): Extension<User>,
    headers: HeaderMap,
    socket: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    if user.is_in(auth::UNAUTHENTICATED) {
        return Err(ApiError::Unauthorized);
    }
    let Ok(place) = STREAMS.clone().try_acquire_owned() else {
        return Err(ApiError::TooManyRequests {
            message: format!("{STREAMS_MAX} dashboards are open on this member already"),
            causes: Vec::new(),
            retry_after_seconds: 5,
        });
    };
    read::in_touch(&api).await?;
    super::expect_visitor(&api);
    let socket = socket.max_message_size(MESSAGE_BYTES_MAX).protocols([PROTOCOL]);
    let serve = move |socket| async move {
        let stop = api.watching();
        let live = Live::new(api, user, headers);
        tokio::select! {
            () = live.run(socket) => {}
            () = stop.cancelled() => {}
        }
        drop(place);
    };
    Ok(socket.on_upgrade(|socket| contain::task(serve(socket))))
}

struct List {
    open: Open,
    view: View,
    source: Rows,
}

/// Where the rows of a list come from.
enum Rows {
    Shared(Arc<Shared>),
    Own(Box<Printed>),
}

/// What a list begins with.
struct Found {
    entries: Vec<(Bytes, Entry)>,
    watch: Option<Watch>,
    now: Timestamp,
}

/// Everything that one browser has open.
pub struct Live {
    api: ApiServer,
    user: User,
    headers: HeaderMap,
    lists: BTreeMap<u32, List>,
    checks: u64,
}

impl Live {
    pub fn new(api: ApiServer, user: User, headers: HeaderMap) -> Live {
        Live { api, user, headers, lists: BTreeMap::new(), checks: 0 }
    }

    async fn run(mut self, mut socket: WebSocket) {
        let mut tick = interval(TICK);
        let mut check = interval(CHECK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => self.take(&text).await,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                },
                _ = tick.tick() => self.tick().await,
                _ = check.tick() => match self.check().await {
                    Some(told) => told,
                    None => return,
                },
            };
            if self.lists.values().any(|list| list.view.seen().is_none()) {
                tick.reset_after(SOON);
            }
            if told.is_empty() {
                continue;
            }
            let sent = socket.send(Message::Text(Value::from(told).to_string().into()));
            if !matches!(tokio::time::timeout(SEND_TIMEOUT, sent).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Does what the browser says; returns what to tell it.
    pub async fn take(&mut self, text: &str) -> Vec<Value> {
        match serde_json::from_str(text) {
            Ok(Said::Open(open)) => self.open(open).await,
            Ok(Said::Look { id, look }) => {
                let Some(list) = self.lists.get_mut(&id) else { return Vec::new() };
                list.open.look = look.clone();
                list.view.look(look);
                // Whoever types waits for this: what has happened meanwhile comes with a tick.
                news(id, list)
            }
            Ok(Said::Close { id }) => {
                self.lists.remove(&id);
                Vec::new()
            }
            Err(error) => {
                let error = ApiError::BadRequest(format!("not a message of {PROTOCOL}: {error}"));
                vec![json!({ "error": error.status() })]
            }
        }
    }

    async fn open(&mut self, open: Open) -> Vec<Value> {
        let id = open.id;
        self.lists.remove(&id);
        let asked = attributes(&open);
        let opened = match self.lists.len() < LISTS_MAX {
            true => self.list(open).await,
            false => Err(ApiError::BadRequest(format!("more than {LISTS_MAX} lists are open"))),
        };
        self.audit(asked, opened.as_ref().err()).await;
        match opened {
            Err(error) => vec![json!({ "id": id, "error": error.status() })],
            Ok(mut list) => {
                let namespaces = match &list.view.chosen().scope {
                    Scope::All => Value::Null,
                    Scope::Namespaces(names) => json!(names),
                };
                let kind = list.view.chosen().kind;
                let head = json!({
                    "id": id, "columns": columns(kind), "namespaces": namespaces,
                });
                let mut told = vec![head];
                let _ = follow(&self.api, &mut list).await;
                told.extend(news(id, &mut list));
                self.lists.insert(id, list);
                told
            }
        }
    }

    async fn list(&self, open: Open) -> Result<List, ApiError> {
        let kind = self.api.catalog().kind(&open.group, &open.version, &open.resource);
        let kind = kind.filter(|kind| kind.stored_as().is_some()).ok_or(ApiError::NoSuchPath)?;
        let scope = self.scope(kind, &open)?;
        let selection = Selection::new(kind, &open.labels, &open.fields)?;
        let chosen = Chosen { kind, scope, selection, owner: open.owner.clone() };
        let shared = match open.at {
            None => self.api.printed().get(&self.api, kind)?,
            Some(_) => None,
        };
        let source = match shared {
            Some(list) => Rows::Shared(list),
            None => Rows::Own(Box::new(self.print(open.at, &chosen).await?)),
        };
        let view = View::new(chosen, row::columns(kind), open.look.clone());
        Ok(List { open, view, source })
    }

    /// A list for this person alone.
    async fn print(&self, at: Option<i64>, chosen: &Chosen) -> Result<Printed, ApiError> {
        let &Chosen { kind, ref scope, ref selection, .. } = chosen;
        let prefix = stored::prefix(kind, None);
        let wanted = |(key, entry): &(Bytes, Entry)| {
            scope.takes(kind, key)
                && (selection.is_everything() || selection.may_match(&entry.value))
        };
        let Found { entries, watch, now } = self.find(at, &prefix, wanted)?;
        if entries.len() > ROWS_MAX {
            return Err(ApiError::BadRequest(format!(
                "more than {ROWS_MAX} {} are here: choose namespaces",
                kind.plural
            )));
        }
        let decode = || {
            let objects = entries.into_iter().map(|(key, entry)| {
                let object = stored::decode(kind, &entry);
                (key, object)
            });
            objects.collect::<Vec<(Bytes, Object)>>()
        };
        let objects = self.api.fairness().compute(decode).await;
        let (keys, objects): (Vec<Bytes>, Vec<Object>) = objects.into_iter().unzip();
        let objects = custom::into_version(&self.api, kind, objects).await?;
        let mut printed = Printed::new(kind, watch);
        for (key, object) in keys.into_iter().zip(&objects) {
            printed.put(key, object, now);
        }
        Ok(printed)
    }

    /// What is, and what comes behind it; or what was, and when that was the present.
    fn find(
        &self,
        at: Option<i64>,
        prefix: &Bytes,
        wanted: impl Fn(&(Bytes, Entry)) -> bool,
    ) -> Result<Found, ApiError> {
        let store = self.api.store();
        if let Some(at) = at {
            let now = asof::moment(at)?;
            let then = self.api.past().state_at(store, prefix, now).map_err(asof::refused)?;
            let entries = then.into_iter().filter(wanted).take(ROWS_MAX + 1).collect();
            return Ok(Found { entries, watch: None, now });
        }
        let snapshot = store.current();
        let watch = store.watch(prefix.clone(), snapshot.revision());
        let watch = watch.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        let entries = snapshot.range(prefix, None).filter(wanted).take(ROWS_MAX + 1).collect();
        Ok(Found { entries, watch: Some(watch), now: Timestamp::now() })
    }

    /// What of it the person may see, or why nothing.
    fn scope(&self, kind: &'static Kind, open: &Open) -> Result<Scope, ApiError> {
        let mut asked = attributes(open);
        if !kind.namespaced {
            // A role in a namespace gives no right to what is in none.
            asked.namespace.clear();
        }
        let in_namespace =
            |namespace: &str| Attributes { namespace: namespace.to_owned(), ..asked.clone() };
        if open.namespaces.len() > NAMESPACES_MAX {
            let message = format!("a list names at most {NAMESPACES_MAX} namespaces");
            return Err(ApiError::BadRequest(message));
        }
        if kind.namespaced && !open.namespaces.is_empty() {
            let names = open.namespaces.iter();
            let may = |name: &&String| self.api.may(&self.user, &in_namespace(name));
            let names: BTreeSet<String> = names.filter(may).cloned().collect();
            return match names.is_empty() {
                true => Err(self.refusal(&in_namespace(&open.namespaces[0]))),
                false => Ok(Scope::Namespaces(names)),
            };
        }
        if self.api.may(&self.user, &asked) {
            return Ok(Scope::All);
        }
        let is_namespaces = (kind.group, kind.plural) == ("", "namespaces");
        if !kind.namespaced && !is_namespaces {
            return Err(self.refusal(&asked));
        }
        // The namespaces themselves are shown to whoever may see the Pods in them.
        let asked = match is_namespaces {
            true => Attributes { resource: "pods".to_owned(), ..asked },
            false => asked,
        };
        let may = |namespace: &str| {
            let asked = Attributes { namespace: namespace.to_owned(), ..asked.clone() };
            self.api.may(&self.user, &asked)
        };
        let names: BTreeSet<String> = self.namespaces().into_iter().filter(|it| may(it)).collect();
        match names.is_empty() {
            true => Err(self.refusal(&asked)),
            false => Ok(Scope::Namespaces(names)),
        }
    }

    fn refusal(&self, asked: &Attributes) -> ApiError {
        let refused = self.api.authorize(&self.user, asked).err();
        refused.unwrap_or_else(|| authorize::forbidden(&self.user, asked, ""))
    }

    fn namespaces(&self) -> Vec<String> {
        let kind = wherry_resources::kind("", "v1", "namespaces").expect("a built-in kind");
        let snapshot = self.api.store().current();
        let keys = snapshot.range(&stored::prefix(kind, None), None);
        keys.filter_map(|(key, _)| Some(keys::parse(&key)?.name.to_owned())).collect()
    }

    /// Takes in what has happened; returns what of it the browser sees.
    pub async fn tick(&mut self) -> Vec<Value> {
        let mut told = Vec::new();
        let ids: Vec<u32> = self.lists.keys().copied().collect();
        for id in ids {
            let Some(list) = self.lists.get_mut(&id) else { continue };
            match follow(&self.api, list).await {
                Ok(()) => told.extend(news(id, list)),
                // It fell behind, or a webhook of its kind does not answer: from the beginning.
                Err(Ended) => {
                    let open = list.open.clone();
                    told.extend(self.open(open).await);
                }
            }
        }
        told
    }

    /// Looks whether the person is still signed in and may still see what they see.
    async fn check(&mut self) -> Option<Vec<Value>> {
        if !self.api.sessions().still_open(&self.headers, |token| self.api.bearer(token)) {
            return None;
        }
        self.checks += 1;
        let mut told = vec![json!({ "alive": self.api.store().current().revision() })];
        let ids: Vec<u32> = self.lists.keys().copied().collect();
        for id in ids {
            let Some(list) = self.lists.get(&id) else { continue };
            let chosen = list.view.chosen();
            let scope = self.scope(chosen.kind, &list.open);
            if scope.as_ref().ok() != Some(&chosen.scope) {
                let open = list.open.clone();
                told.extend(self.open(open).await);
            } else if self.checks.is_multiple_of(REFRESH_CHECKS) {
                self.print_again(id);
            }
        }
        Some(told)
    }

    /// Prints what is in a window again: some cells tell how long ago something was.
    fn print_again(&mut self, id: u32) {
        let Some(list) = self.lists.get_mut(&id) else { return };
        let (store, window) = (self.api.store(), list.view.window());
        match &mut list.source {
            Rows::Shared(shared) => shared.print_again(store, &window),
            Rows::Own(own) if own.lives() => own.print_again(store, &window),
            Rows::Own(_) => {}
        }
    }

    async fn audit(&self, asked: Attributes, refused: Option<&ApiError>) {
        let Some(log) = self.api.audit() else { return };
        let header = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let code = refused.map_or(200, |error| error.code().as_u16());
        let told = Told {
            id: uuid::Uuid::new_v4().to_string(),
            received: Timestamp::now(),
            uri: "/ui/stream".to_owned(),
            user: Some(self.user.clone()),
            acts_as: None,
            source: Source::Session,
            address: None,
            agent: header(header::USER_AGENT).unwrap_or_default().to_owned(),
            asked,
            refused: refused.map(ToString::to_string),
            request: None,
            response: None,
            notes: serde_json::Map::new(),
        };
        let level = audit::level(log.policy(), &told, code);
        if level != audit::Level::None {
            log.record(audit::event(&told, level, code, Timestamp::now())).await;
        }
    }
}

/// The read that a list is.
fn attributes(open: &Open) -> Attributes {
    let namespace = match open.namespaces.as_slice() {
        [one] => one.clone(),
        _ => String::new(),
    };
    Attributes {
        verb: "list".to_owned(),
        is_resource: true,
        group: open.group.clone(),
        version: open.version.clone(),
        namespace,
        resource: open.resource.clone(),
        path: "/ui/stream".to_owned(),
        field_selector: open.fields.clone(),
        ..Attributes::default()
    }
}

/// Takes in what has happened.
async fn follow(api: &ApiServer, list: &mut List) -> Result<(), Ended> {
    match &mut list.source {
        Rows::Shared(shared) => shared.tell(&mut list.view),
        Rows::Own(own) => {
            for event in own.events().map_err(|_| Ended)? {
                change(api, list.view.chosen(), own, &event).await?;
            }
            let (missed, now) = own.since(list.view.seen());
            list.view.take(missed, now);
            Ok(())
        }
    }
}

async fn change(
    api: &ApiServer,
    chosen: &Chosen,
    own: &mut Printed,
    event: &Event,
) -> Result<(), Ended> {
    let &Chosen { kind, ref scope, ref selection, .. } = chosen;
    if !scope.takes(kind, &event.key) {
        return Ok(());
    }
    let entry = match &event.change {
        Change::Put(entry) if selection.may_match(&entry.value) => entry,
        _ => {
            own.remove(&event.key);
            return Ok(());
        }
    };
    let object = stored::decode_at(kind, &entry.value, event.revision);
    let objects = custom::into_version(api, kind, vec![object]).await.map_err(|_| Ended)?;
    if let Some(object) = objects.first() {
        own.put(event.key.clone(), object, Timestamp::now());
    }
    Ok(())
}

fn news(id: u32, list: &mut List) -> Vec<Value> {
    let Some(mut news) = list.view.news() else { return Vec::new() };
    news["id"] = id.into();
    vec![news]
}

fn columns(kind: &Kind) -> Vec<Value> {
    let column = |column: &table::Column| {
        json!({
            "name": column.name, "type": column.kind, "description": column.description,
            "priority": column.priority,
        })
    };
    match kind.custom() {
        Some(custom) => custom.columns.definitions(),
        None => table::columns(kind).iter().map(column).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::{Server, admin};

    fn live(server: &Server, user: User) -> Live {
        Live::new(server.api.clone(), user, HeaderMap::new())
    }

    fn told(messages: &[Value]) -> String {
        let mut out = String::new();
        for message in messages {
            let names = |of: &Value| {
                let rows = of.as_array().into_iter().flatten();
                rows.filter_map(|row| row["name"].as_str()).collect::<Vec<_>>().join(" ")
            };
            out += &match message {
                it if it.get("error").is_some() => {
                    let message = it["error"]["message"].as_str().unwrap_or("?");
                    format!("error {:.80}\n", message.split(" in API").next().unwrap_or("?"))
                }
                it if it.get("columns").is_some() => {
                    format!("columns {}; in {}\n", names(&it["columns"]), it["namespaces"])
                }
                it => format!("{} of {}: {}\n", it["shown"], it["total"], names(&it["rows"])),
            };
        }
        out
    }

    async fn map(server: &Server, namespace: &str, name: &str) {
        let body = format!("{{\"metadata\":{{\"name\":\"{name}\"}}}}");
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        server.ok("POST", &path, &body).await;
    }

    const OPEN: &str = r#"{"open":{"id":1,"version":"v1","resource":"configmaps","count":5}}"#;

    #[tokio::test]
    async fn a_list_follows_the_store() {
        let server = Server::start().await;
        map(&server, "default", "a").await;
        let mut live = live(&server, admin());
        let mut out = told(&live.take(OPEN).await);
        out += &told(&live.tick().await);
        map(&server, "default", "b").await;
        map(&server, "kube-node-lease", "c").await;
        out += &told(&live.tick().await);
        server.ok("DELETE", "/api/v1/namespaces/default/configmaps/a", "").await;
        out += &told(&live.tick().await);
        out += &told(&live.take(r#"{"look":{"id":1,"text":"c","count":5}}"#).await);
        out += &told(&live.take(r#"{"close":{"id":1}}"#).await);
        map(&server, "default", "d").await;
        out += &told(&live.tick().await);
        out += &told(&live.take(r#"{"what":1}"#).await);
        expect_test::expect![[r#"
            columns Name Data Age; in null
            1 of 1: a
            3 of 3: b c
            2 of 2: 
            1 of 2: 
            error not a message of wherry.stream.v1: unknown variant `what`, expected one of `open
        "#]]
        .assert_eq(&out);
    }

    #[tokio::test]
    async fn a_member_that_is_not_in_touch_ends_its_streams() {
        let server = Server::start().await;
        let mut socket = server.socket("/ui/stream", PROTOCOL).await;
        let (_, alive) = socket.frame().await;
        assert!(alive.starts_with(br#"[{"alive":"#), "{}", String::from_utf8_lossy(&alive));
        server.api.end_watches();
        socket.ended().await;
        server.api.store().shutdown().await.expect("it stops");
        let refused = server.socket("/ui/stream", PROTOCOL).await;
        assert!(refused.head.starts_with("HTTP/1.1 503"), "{}", refused.head);
    }

    #[tokio::test]
    async fn a_person_sees_the_namespaces_that_they_may_and_no_more() {
        let server = Server::start().await;
        map(&server, "default", "a").await;
        map(&server, "kube-node-lease", "b").await;
        let anna = || User::new("anna", &[]);
        let mut live = live(&server, anna());
        let mut out = told(&live.take(OPEN).await);
        let role = r#"{"metadata":{"name":"maps"},"rules":[
            {"apiGroups":[""],"resources":["configmaps","pods","nodes"],"verbs":["list"]}]}"#;
        let binding = r#"{"metadata":{"name":"maps"},
            "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"maps"},
            "subjects":[{"kind":"User","name":"anna","apiGroup":"rbac.authorization.k8s.io"}]}"#;
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        server.ok("POST", &format!("{rbac}/roles"), role).await;
        server.ok("POST", &format!("{rbac}/rolebindings"), binding).await;
        out += &told(&live.take(OPEN).await);
        let namespaces = r#"{"open":{"id":2,"version":"v1","resource":"namespaces","count":9}}"#;
        out += &told(&live.take(namespaces).await);
        // A namespace that is named does not make its role count for what is in none.
        let nodes = r#"{"open":{"id":3,"version":"v1","resource":"nodes","count":9,
            "namespaces":["default"]}}"#;
        out += &told(&live.take(nodes).await);
        server.ok("DELETE", &format!("{rbac}/rolebindings/maps"), "").await;
        out += &told(&live.check().await.expect("no session that could end")[1..]);
        expect_test::expect![[r#"
            error configmaps is forbidden: User "anna" cannot list resource "configmaps"
            columns Name Data Age; in ["default"]
            1 of 1: a
            columns Name Status Age; in ["default"]
            1 of 1: default
            error nodes is forbidden: User "anna" cannot list resource "nodes"
            error configmaps is forbidden: User "anna" cannot list resource "configmaps"
            error pods is forbidden: User "anna" cannot list resource "pods"
        "#]]
        .assert_eq(&out);
    }
}
