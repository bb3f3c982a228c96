//! `/ui/history`: what has changed, by whom, and how: read from what is kept of the past.
//!
//! The past is bounded (see `past`), so the answer says since when it is whole, and why. What a
//! person may not list is left out; of Secrets the names of what changed are told, never values.
//! Leases, Events and endpoints change by the second and say nothing about what people did: they are
//! left out, and so is what only a status says, unless it is asked for.

use super::super::{
    ApiServer,
    auth::{self, User},
    errors::ApiError,
    request::{Attributes, Query},
    stored,
};
use super::past::Turn;
use axum::{
    Extension, Json,
    extract::{RawQuery, State},
};
use serde_json::{Value, json};
use std::collections::HashMap;
use wherry_resources::{Kind, Object, keys, meta};
use wherry_store::Revision;

/// Changes in one answer.
const CHANGES_MAX: usize = 500;
/// Changed fields told of one change; a new object is one line.
const FIELDS_MAX: usize = 40;
/// Longest value told.
const VALUE_BYTES_MAX: usize = 200;
/// One changed field.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    path: String,
    from: Option<Value>,
    to: Option<Value>,
}

/// What somebody asks for.
struct Asked {
    namespaces: Vec<String>,
    /// A kind as its keys begin (`apps/deployments`); None: all.
    kind: Option<String>,
    /// Kinds that are left out, unread.
    without: Vec<String>,
    name: String,
    statuses: bool,
    /// Only what was before this revision.
    before: Revision,
    /// How many are told, at most [`CHANGES_MAX`].
    count: usize,
}

impl Asked {
    /// Whether changes of an object are asked for. This is asked about everything of a day, nearly
    /// all of it Pods: so the kind comes first, and nothing is made.
    fn takes(&self, key: &[u8]) -> bool {
        let kind = &key[..memchr::memchr(0, key).unwrap_or(key.len())];
        if self.kind.as_ref().is_some_and(|it| it.as_bytes() != kind)
            || self.without.iter().any(|it| it.as_bytes() == kind)
        {
            return false;
        }
        let Some(key) = keys::parse(key) else { return false };
        (self.name.is_empty() || self.name == key.name)
            && (self.namespaces.is_empty() || self.namespaces.iter().any(|it| it == key.namespace))
    }
}

/// How the keys of a kind begin, by its word: `apps/deployments` of `deployments.apps`.
fn stored_as(word: &str) -> String {
    let (plural, group) = word.split_once('.').unwrap_or((word, ""));
    format!("{group}/{plural}")
}

/// Answers `GET /ui/history?namespaces=a,b&kind=deployments.apps&name=cart&statuses=1`, or
/// `?without=pods,replicasets.apps&count=8`.
pub async fn history(
    State(api): State<ApiServer>,
    Extension(user): Extension<User>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    if user.is_in(auth::UNAUTHENTICATED) {
        return Err(ApiError::Unauthorized);
    }
    let query = Query::parse(query.as_deref().unwrap_or(""));
    let text = |name: &str| query.get(name).unwrap_or("").to_owned();
    let several = |name: &str| -> Vec<String> {
        text(name).split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect()
    };
    let count = query.get("count").and_then(|it| it.parse().ok()).unwrap_or(CHANGES_MAX);
    let asked = Asked {
        namespaces: several("namespaces"),
        kind: query.get("kind").filter(|it| !it.is_empty()).map(stored_as),
        without: several("without").iter().map(|it| stored_as(it)).collect(),
        name: text("name"),
        statuses: query.flag("statuses"),
        before: query.get("before").and_then(|it| it.parse().ok()).unwrap_or(Revision::MAX),
        count: count.min(CHANGES_MAX),
    };
    let since = api.past().since(api.store());
    let told = || tell(&api, &user, &asked, &turns(&api, &asked));
    let told = api.fairness().compute(told).await;
    let is_whole = told.len() < asked.count;
    Ok(Json(json!({
        "since": since.at.to_string(), "limit": since.limit.word(), "whole": is_whole,
        "changes": told,
    })))
}

/// The changes that are asked for, whoever asks.
fn turns(api: &ApiServer, asked: &Asked) -> Vec<Turn> {
    api.past().turns(api.store(), asked.before, |key| asked.takes(key))
}

/// The changes that the person may see, the newest first.
fn tell(api: &ApiServer, user: &User, asked: &Asked, turns: &[Turn]) -> Vec<Value> {
    let catalog = api.catalog();
    let mut kinds: HashMap<(&str, &str), Option<&'static Kind>> = HashMap::new();
    let mut rights: HashMap<(&'static str, &'static str, String), bool> = HashMap::new();
    let mut out = Vec::new();
    for turn in turns {
        let Some(key) = keys::parse(&turn.key) else { continue };
        let kind = *kinds.entry((key.group, key.plural)).or_insert_with(|| {
            let mut all = catalog.kinds.iter();
            let found = all.find(|kind| kind.group == key.group && kind.plural == key.plural);
            found.copied().filter(|kind| kind.stored_as().is_some())
        });
        let Some(kind) = kind else { continue };
        let right = (kind.group, kind.plural, key.namespace.to_owned());
        let may = *rights.entry(right).or_insert_with(|| {
            let read = Attributes {
                verb: "list".to_owned(),
                is_resource: true,
                group: kind.group.to_owned(),
                version: kind.version.to_owned(),
                namespace: key.namespace.to_owned(),
                resource: kind.plural.to_owned(),
                path: "/ui/history".to_owned(),
                ..Attributes::default()
            };
            api.may(user, &read)
        });
        if may && let Some(told) = change(kind, turn, asked.statuses) {
            out.push(told);
            if out.len() >= asked.count {
                break;
            }
        }
    }
    out
}

fn word(kind: &Kind) -> String {
    match kind.group {
        "" => kind.plural.to_owned(),
        group => format!("{}.{group}", kind.plural),
    }
}

/// Whether nothing has changed but what is said of an object. Nearly all changes are such, so it is
/// told without reading the rest.
fn is_status(turn: &Turn) -> bool {
    let (Some(now), Some(before)) = (&turn.now, &turn.previous) else { return false };
    stored::decode_wanted(&now.value) == stored::decode_wanted(&before.value)
}

/// One change as it is told; `None` if it is only a status and those were not asked for.
fn change(kind: &'static Kind, turn: &Turn, statuses: bool) -> Option<Value> {
    if !statuses && is_status(turn) {
        return None;
    }
    let read = |entry: &wherry_store::Entry| stored::decode_at(kind, &entry.value, turn.revision);
    let now = turn.now.as_ref().or(turn.previous.as_ref()).map(read)?;
    let before = turn.previous.as_ref().map(read);
    let is_secret = (kind.group, kind.plural) == ("", "secrets");
    let (verb, fields) = match (&turn.now, before) {
        (None, _) => ("deleted", Vec::new()),
        (Some(_), None) => ("created", Vec::new()),
        (Some(_), Some(before)) => ("changed", differences(&before, &now)),
    };
    if verb == "changed" && !statuses && fields.iter().all(|it| it.path.starts_with("status")) {
        return None;
    }
    let author = author(&now);
    let mut told = json!({
        "revision": turn.revision, "verb": verb, "word": word(kind), "kind": kind.kind,
        "name": meta::name(&now), "namespace": meta::namespace(&now), "uid": meta::uid(&now),
        "fields": fields.iter().take(FIELDS_MAX).map(|it| field(it, is_secret)).collect::<Vec<_>>(),
        "more": fields.len().saturating_sub(FIELDS_MAX),
    });
    // Who deletes an object leaves no trace in it.
    if let Some((manager, time)) = author.filter(|_| verb != "deleted") {
        told["by"] = manager.into();
        told["time"] = time.into();
    }
    if let Some(at) = turn.at {
        told["time"] = at.to_string().into();
    }
    Some(told)
}

/// Who wrote the object last, and when.
fn author(object: &Object) -> Option<(String, String)> {
    let entries = meta::managed_fields(object).iter();
    let newest = entries.max_by_key(|entry| meta::text(entry, "time").to_owned());
    let of = |key: &str| newest.map(|entry| meta::text(entry, key).to_owned()).unwrap_or_default();
    let created = || object["metadata"]["creationTimestamp"].as_str().unwrap_or("").to_owned();
    match (of("manager"), of("time")) {
        (manager, time) if !time.is_empty() => Some((manager, time)),
        (manager, _) => Some((manager, created())),
    }
}

fn field(field: &Field, is_secret: bool) -> Value {
    let hides = is_secret && !field.path.starts_with("metadata");
    let shown = |value: &Option<Value>| match value {
        None => Value::Null,
        Some(_) if hides => "••••••".into(),
        Some(value) => shortened(value).into(),
    };
    json!({ "path": field.path, "from": shown(&field.from), "to": shown(&field.to) })
}

fn shortened(value: &Value) -> String {
    let mut text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.len() > VALUE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(VALUE_BYTES_MAX));
        text.push('…');
    }
    text
}

/// The fields that differ, without those that change with every write.
fn differences(before: &Object, now: &Object) -> Vec<Field> {
    const ALWAYS: &[&str] =
        &["metadata.managedFields", "metadata.resourceVersion", "metadata.generation"];
    let mut out = Vec::new();
    compare("", Some(before), Some(now), &mut out);
    out.retain(|field| !ALWAYS.iter().any(|path| field.path.starts_with(path)));
    out
}

fn compare(path: &str, before: Option<&Value>, now: Option<&Value>, out: &mut Vec<Field>) {
    match (before, now) {
        (before, now) if before == now => {}
        (Some(Value::Object(before)), Some(Value::Object(now))) => {
            let fresh = now.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(fresh) {
                let dot = if path.is_empty() { "" } else { "." };
                compare(&format!("{path}{dot}{key}"), before.get(key), now.get(key), out);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(now))) if before.len() == now.len() => {
            for (at, (before, now)) in before.iter().zip(now).enumerate() {
                compare(&format!("{path}[{at}]"), Some(before), Some(now), out);
            }
        }
        (before, now) => {
            out.push(Field { path: path.to_owned(), from: before.cloned(), to: now.cloned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::{Server, admin};
    use expect_test::expect;
    use wherry_store::Entry;

    #[test]
    fn what_differs_is_told_by_its_path() {
        let before = json!({"metadata": {"name": "a", "resourceVersion": "1"},
            "spec": {"replicas": 1, "paused": true,
                "containers": [{"image": "x:1", "args": ["a"]}]}});
        let now = json!({"metadata": {"name": "a", "resourceVersion": "2"},
            "spec": {"replicas": 3, "containers": [{"image": "x:2", "args": ["a", "b"]}]}});
        let told =
            differences(&before, &now).into_iter().map(|it| field(&it, false).to_string() + "\n");
        expect![[r#"
            {"path":"spec.replicas","from":"1","to":"3"}
            {"path":"spec.paused","from":"true","to":null}
            {"path":"spec.containers[0].image","from":"x:1","to":"x:2"}
            {"path":"spec.containers[0].args","from":"[\"a\"]","to":"[\"a\",\"b\"]"}
        "#]]
        .assert_eq(&told.collect::<String>());
    }

    #[test]
    fn what_is_asked_for_is_told_by_its_key() {
        let takes = |kind: &str, without: &str, namespace: &str, name: &str| {
            let given = |text: &str| Some(text.to_owned()).filter(|it| !it.is_empty());
            let asked = Asked {
                namespaces: given(namespace).into_iter().collect(),
                kind: given(kind).map(|it| stored_as(&it)),
                without: vec![stored_as(without)],
                name: name.to_owned(),
                statuses: false,
                before: Revision::MAX,
                count: CHANGES_MAX,
            };
            asked.takes(&keys::object("apps", "deployments", "shop", "cart"))
        };
        assert!(takes("", "pods", "", "") && takes("deployments.apps", "", "shop", "cart"));
        assert!(!takes("", "deployments.apps", "", "") && !takes("deployments", "", "", ""));
        assert!(!takes("", "", "other", "") && !takes("", "", "", "other"));
    }

    #[test]
    fn a_status_is_told_to_who_asks_for_statuses() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let entry = |node: &str, phase: &str| {
            let object = json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"nodeName": node}, "status": {"phase": phase},
            });
            Some(Entry { value: stored::encode(kind, &object), created: 1, modified: 1 })
        };
        let turn = |previous: Option<Entry>, now: Option<Entry>| {
            let key = keys::object("", "pods", "n", "p").into();
            Turn { revision: 2, at: None, key, now, previous }
        };
        let told = |turn: &Turn, statuses: bool| match change(kind, turn, statuses) {
            Some(told) => format!("{} {}\n", told["verb"], told["fields"]),
            None => "nothing\n".to_owned(),
        };
        let runs = turn(entry("a", "Pending"), entry("a", "Running"));
        let bound = turn(entry("", "Pending"), entry("a", "Pending"));
        let gone = turn(entry("a", "Running"), None);
        let all = [(&runs, false), (&runs, true), (&bound, false), (&gone, false)];
        expect![[r#"
            nothing
            "changed" [{"path":"status.phase","from":"Pending","to":"Running"}]
            "changed" [{"path":"spec.nodeName","from":"","to":"a"}]
            "deleted" []
        "#]]
        .assert_eq(&all.map(|(turn, statuses)| told(turn, statuses)).concat());
    }

    #[tokio::test]
    async fn changes_are_told_to_who_may_see_them_and_values_of_secrets_to_nobody() {
        let server = Server::start().await;
        let secrets = "/api/v1/namespaces/default/secrets";
        let secret = |value: &str| {
            format!(r#"{{"metadata":{{"name":"s"}},"stringData":{{"password":"{value}"}}}}"#)
        };
        server.ok("POST", secrets, &secret("swordfish")).await;
        server.ok("PUT", &format!("{secrets}/s"), &secret("tunafish")).await;
        server.ok("DELETE", &format!("{secrets}/s"), "").await;
        let asked = Asked {
            namespaces: vec!["default".to_owned()],
            kind: Some(stored_as("secrets")),
            without: Vec::new(),
            name: String::new(),
            statuses: false,
            before: Revision::MAX,
            count: CHANGES_MAX,
        };
        let told = |user: &User| {
            let changes = tell(&server.api, user, &asked, &turns(&server.api, &asked));
            let line = |one: &Value| format!("{} {} {}\n", one["verb"], one["name"], one["fields"]);
            changes.iter().map(line).collect::<String>()
        };
        expect![[r#"
            "deleted" "s" []
            "changed" "s" [{"path":"data.password","from":"••••••","to":"••••••"}]
            "created" "s" []
        "#]]
        .assert_eq(&told(&admin()));
        assert_eq!(told(&User::new("anna", &[])), "");
        let count =
            |asked: &Asked| tell(&server.api, &admin(), asked, &turns(&server.api, asked)).len();
        let two = Asked { count: 2, ..asked };
        assert_eq!(count(&two), 2);
        let without = Asked { without: vec![stored_as("secrets")], ..two };
        assert_eq!(count(&without), 0, "the kind is left out");
    }
}
