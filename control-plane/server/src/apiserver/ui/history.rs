//! `/ui/history`: what has changed, by whom, and how: read from what is kept of the past.
//!
//! The past is bounded (see `past`), so the answer says since when it is whole, and why. What a
//! person may not list is left out; of Secrets the names of what changed are told, never values.
//! Leases, Events and endpoints change by the second and say nothing about what people did: they are
//! left out, and so is what only a status says (or an annotation in which a node or a controller
//! notes something), unless it is asked for.
//!
//! Who made a change is known of requests that this member has answered; of all others only with
//! what: the manager of the fields.

use super::super::{
    ApiServer,
    auth::{self, User},
    errors::ApiError,
    request::Attributes,
    stored,
    verbs::read,
};
use super::past::Turn;
use super::question::Question;
use axum::{Json, extract::State};
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
/// Beginnings of annotations that say how an object is, as its status does.
const NOTES: &[&str] = &[
    "cold-start.wherry.dev/",
    "deployment.kubernetes.io/revision",
    "exports.wherry.dev/",
    "imports.wherry.dev/",
    "state.wherry.dev/",
    "wherry.dev/measured-cpu",
    "wherry.dev/offers",
    "wherry.dev/workers",
];
/// How users begin who are no people.
const MACHINE_USERS: &[&str] = &["system:bootstrap:", "system:kube-", "system:node:"];
/// Writers that are no people, as managers of fields.
const MACHINES: &[&str] = &["", "kube-controller-manager", "kube-scheduler", "wherry-node"];

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
    /// Only what people did.
    people: bool,
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
/// `?without=pods,replicasets.apps&people=1&count=8`.
pub async fn history(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Json<Value>, ApiError> {
    let query = &question.query;
    let count = query.get("count").and_then(|it| it.parse().ok()).unwrap_or(CHANGES_MAX);
    let asked = Asked {
        namespaces: question.list("namespaces").into_iter().map(str::to_owned).collect(),
        kind: query.get("kind").filter(|it| !it.is_empty()).map(stored_as),
        without: question.list("without").into_iter().map(stored_as).collect(),
        name: query.get("name").unwrap_or("").to_owned(),
        statuses: query.flag("statuses"),
        people: query.flag("people"),
        before: query.get("before").and_then(|it| it.parse().ok()).unwrap_or(Revision::MAX),
        count: count.min(CHANGES_MAX),
    };
    read::in_touch(&api).await?;
    let since = api.past().since(api.store());
    let told = || tell(&api, &question.user, &asked, &turns(&api, &asked));
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
        if !may {
            continue;
        }
        let by = api.past().author(turn.revision);
        if let Some(told) = change(kind, turn, by.as_deref(), asked) {
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

/// One change as it is told; `None` if it is not asked for: a status, or what no person did. `by` is
/// the user whose request it was, if that is known.
fn change(kind: &'static Kind, turn: &Turn, by: Option<&str>, asked: &Asked) -> Option<Value> {
    if !asked.statuses && is_status(turn) {
        return None;
    }
    let read = |entry: &wherry_store::Entry| stored::decode_at(kind, &entry.value, turn.revision);
    let now = turn.now.as_ref().or(turn.previous.as_ref()).map(read)?;
    let before = turn.previous.as_ref().map(read);
    let is_secret = (kind.group, kind.plural) == ("", "secrets");
    let (verb, mut fields) = match (&turn.now, &before) {
        (None, _) => ("deleted", Vec::new()),
        (Some(_), None) => ("created", Vec::new()),
        (Some(_), Some(before)) => ("changed", differences(before, &now)),
    };
    let is_said = verb == "changed" && fields.iter().all(Field::is_said);
    if !asked.statuses {
        if is_said {
            return None;
        }
        fields.retain(|it| !it.is_said());
    }
    let author = author(&now, before.as_ref(), is_said);
    let is_of_people = match (by, verb) {
        (Some(user), _) => !MACHINE_USERS.iter().any(|machine| user.starts_with(machine)),
        // Who deletes an object leaves no trace in it: what no person ever wrote, none took away;
        // and a token to join with is deleted when it has expired.
        (None, "deleted") => {
            meta::text(&now, "type") != auth::TOKEN_SECRET_TYPE
                && meta::managed_fields(&now).iter().any(is_person)
        }
        _ => author.as_ref().is_some_and(|(manager, _)| !MACHINES.contains(&manager.as_str())),
    };
    if asked.people && !is_of_people {
        return None;
    }
    let mut told = json!({
        "revision": turn.revision, "verb": verb, "word": word(kind), "kind": kind.kind,
        "name": meta::name(&now), "namespace": meta::namespace(&now), "uid": meta::uid(&now),
        "fields": fields.iter().take(FIELDS_MAX).map(|it| field(it, is_secret)).collect::<Vec<_>>(),
        "more": fields.len().saturating_sub(FIELDS_MAX),
    });
    if let Some((manager, time)) = author.filter(|_| verb != "deleted") {
        told["with"] = manager.into();
        told["time"] = time.into();
    }
    if let Some(user) = by {
        told["by"] = user.into();
    }
    if let Some(at) = turn.at {
        told["time"] = at.to_string().into();
    }
    Some(told)
}

/// Whether a person manages these fields.
fn is_person(entry: &Value) -> bool {
    !MACHINES.contains(&meta::text(entry, "manager"))
}

/// Who made a change, and when: of those whose share of the object is not what it was before, the
/// newest. Times are whole seconds, in which a person and a controller may both have written; then
/// it is who writes statuses for a status, and who does not for anything else.
fn author(now: &Object, before: Option<&Object>, is_said: bool) -> Option<(String, String)> {
    let known = before.map(meta::managed_fields).unwrap_or_default();
    let rank = |entry: &&Value| {
        let fits = (meta::text(entry, "subresource") == "status") == is_said;
        (meta::text(entry, "time").to_owned(), fits)
    };
    let all = meta::managed_fields(now);
    let newest = all.iter().filter(|entry| !known.contains(entry)).max_by_key(rank);
    let newest = newest.or_else(|| all.iter().max_by_key(rank));
    let of = |key: &str| newest.map(|entry| meta::text(entry, key).to_owned()).unwrap_or_default();
    let created = || now["metadata"]["creationTimestamp"].as_str().unwrap_or("").to_owned();
    match (of("manager"), of("time")) {
        (manager, time) if !time.is_empty() => Some((manager, time)),
        (manager, _) => Some((manager, created())),
    }
}

impl Field {
    /// Whether it tells how an object is, not what is wanted of it.
    fn is_said(&self) -> bool {
        let is_note = |key: &str| NOTES.iter().any(|note| key.starts_with(note));
        match self.path.strip_prefix("metadata.annotations") {
            // The first annotation came, or the last one went.
            Some("") => [&self.from, &self.to].into_iter().flatten().all(|value| {
                value.as_object().is_some_and(|them| them.keys().all(|key| is_note(key)))
            }),
            Some(key) => is_note(key.trim_start_matches('.')),
            None => self.path.starts_with("status"),
        }
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
    const ALWAYS: &[&str] = &[
        "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ];
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

    fn everything() -> Asked {
        Asked {
            namespaces: Vec::new(),
            kind: None,
            without: Vec::new(),
            name: String::new(),
            statuses: false,
            people: false,
            before: Revision::MAX,
            count: CHANGES_MAX,
        }
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
                ..everything()
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
        let told = |turn: &Turn, statuses: bool| {
            let told = change(kind, turn, None, &Asked { statuses, ..everything() });
            told.map_or_else(
                || "nothing\n".to_owned(),
                |told| format!("{} {}\n", told["verb"], told["fields"]),
            )
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

    /// A Deployment with what a controller notes and says, and who manages it.
    fn deployment(
        replicas: u8,
        revision: &str,
        ready: u8,
        managers: &[(&str, &str, &str)],
    ) -> Object {
        let managed: Vec<Value> = managers
            .iter()
            .map(|(manager, subresource, time)| {
                json!({"manager": manager, "subresource": subresource, "time": time})
            })
            .collect();
        json!({
            "kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": {"name": "d", "namespace": "n", "uid": "u", "managedFields": managed,
                "annotations": {"deployment.kubernetes.io/revision": revision}},
            "spec": {"replicas": replicas}, "status": {"readyReplicas": ready},
        })
    }

    #[test]
    fn who_changed_something_is_told_though_others_wrote_in_the_same_second() {
        const AT: &str = "2026-01-01T00:00:01Z";
        let kind = wherry_resources::kind("apps", "v1", "deployments").expect("a built-in kind");
        let made = deployment(1, "1", 1, &[("kubectl-create", "", "2026-01-01T00:00:00Z")]);
        let by = [("kubectl-create", "", "2026-01-01T00:00:00Z"), ("kubectl-scale", "", AT)];
        let scaled = deployment(2, "1", 1, &by);
        let said =
            deployment(2, "2", 2, &[by[0], ("kube-controller-manager", "status", AT), by[1]]);
        let entry = |object: &Object| Entry {
            value: stored::encode(kind, object),
            created: 1,
            modified: 1,
        };
        let turn = |previous: Option<&Object>, now: Option<&Object>| {
            let key = keys::object("apps", "deployments", "n", "d").into();
            let (now, previous) = (now.map(entry), previous.map(entry));
            Turn { revision: 2, at: None, key, now, previous }
        };
        let told = |turn: &Turn, asked: &Asked| match change(kind, turn, None, asked) {
            Some(told) => format!("{} {} {}\n", told["verb"], told["with"], told["fields"]),
            None => "nothing\n".to_owned(),
        };
        let statuses = Asked { statuses: true, ..everything() };
        let people = Asked { people: true, ..everything() };
        let both = turn(Some(&made), Some(&said));
        let [is, was] = [turn(Some(&scaled), Some(&said)), turn(Some(&made), Some(&scaled))];
        let gone = turn(Some(&said), None);
        let out = [
            told(&was, &people),
            told(&is, &everything()),
            told(&is, &statuses),
            told(&both, &people),
            told(&gone, &people),
        ];
        expect![[r#"
            "changed" "kubectl-scale" [{"path":"spec.replicas","from":"1","to":"2"}]
            nothing
            "changed" "kube-controller-manager" [{"path":"metadata.annotations.deployment.kubernetes.io/revision","from":"1","to":"2"},{"path":"status.readyReplicas","from":"1","to":"2"}]
            "changed" "kubectl-scale" [{"path":"spec.replicas","from":"1","to":"2"}]
            "deleted" null []
        "#]]
        .assert_eq(&out.concat());
        let machine = deployment(1, "1", 1, &[("kube-controller-manager", "", AT)]);
        assert_eq!(told(&turn(None, Some(&machine)), &people), "nothing\n");
        assert_eq!(told(&turn(Some(&machine), None), &people), "nothing\n");
        // Whose request it was says more than what is left of it.
        let told_by = |user: &str| {
            let told = change(kind, &gone, Some(user), &people);
            told.map_or_else(String::new, |told| told["by"].to_string())
        };
        assert_eq!(told_by("anna"), "\"anna\"");
        assert_eq!(told_by("system:kube-controller-manager"), "");
    }

    #[test]
    fn that_a_token_has_expired_is_no_deed_of_people() {
        let kind = wherry_resources::kind("", "v1", "secrets").expect("a built-in kind");
        let told = |what: &str| {
            let secret = json!({
                "kind": "Secret", "apiVersion": "v1", "type": what,
                "metadata": {"name": "s", "namespace": "n", "uid": "u",
                    "managedFields": [{"manager": "wherry", "time": "2026-01-01T00:00:00Z"}]},
            });
            let last = Entry { value: stored::encode(kind, &secret), created: 1, modified: 1 };
            let key = keys::object("", "secrets", "n", "s").into();
            let turn = Turn { revision: 2, at: None, key, now: None, previous: Some(last) };
            change(kind, &turn, None, &Asked { people: true, ..everything() }).is_some()
        };
        assert!(told("Opaque") && !told(auth::TOKEN_SECRET_TYPE));
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
            ..everything()
        };
        let told = |user: &User| {
            let changes = tell(&server.api, user, &asked, &turns(&server.api, &asked));
            let line = |one: &Value| {
                format!("{} {} {} {}\n", one["verb"], one["name"], one["by"], one["fields"])
            };
            changes.iter().map(line).collect::<String>()
        };
        expect![[r#"
            "deleted" "s" "admin" []
            "changed" "s" "admin" [{"path":"data.password","from":"••••••","to":"••••••"}]
            "created" "s" "admin" []
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
