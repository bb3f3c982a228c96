//! FlowSchemas and PriorityLevelConfigurations as the store has them: which level and flow a
//! request belongs to.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;
use wherry_resources::keys::Key;
use wherry_resources::meta::{self, items, text};
use wherry_store::Entry;

use super::Class;
use crate::apiserver::auth::User;
use crate::apiserver::follow::Fold;
use crate::apiserver::rbac::service_account_of;
use crate::apiserver::request::Attributes;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// More queues than this tell no more flows from each other, and all are looked at at each request.
const QUEUES_MAX: usize = 1_024;
/// Cards of a hand, and requests that wait in a queue, each with its connection.
const HAND_MAX: usize = 64;
const LENGTH_MAX: usize = 10_000;

/// Prefix of the store's keys of both kinds.
pub fn prefix() -> Vec<u8> {
    format!("{GROUP}/").into_bytes()
}

/// What a level allows.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelConfig {
    pub exempt: bool,
    pub shares: u32,
    /// Of its own seats, how many others may use while it does not.
    pub lendable_percent: u32,
    /// Of its own seats, how many more it may borrow; None: as many as there are.
    pub borrowing_percent: Option<u32>,
    /// None: what finds no seat is refused.
    pub queuing: Option<Queuing>,
    uid: HeaderValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    pub hand_size: usize,
    pub length_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nothing,
    User,
    Namespace,
}

#[derive(Clone, Debug)]
struct Schema {
    name: String,
    precedence: i64,
    level: String,
    by: By,
    rules: Vec<Rule>,
    uid: HeaderValue,
}

#[derive(Clone, Debug)]
struct Rule {
    users: Vec<String>,
    groups: Vec<String>,
    /// Namespace and name.
    accounts: Vec<(String, String)>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Clone, Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster: bool,
}

#[derive(Clone, Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

/// All levels and schemas.
#[derive(Clone, Default)]
pub struct Flows {
    pub levels: HashMap<String, LevelConfig>,
    /// The first that matches counts.
    schemas: Vec<Arc<Schema>>,
}

/// Where a request belongs.
pub struct Found<'a> {
    pub level: &'a str,
    pub exempt: bool,
    /// Requests with the same number share a turn.
    pub flow: u64,
    pub class: Class,
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    items(value, key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn number(value: &Value, key: &str, default: u32) -> u32 {
    let found = value.get(key).and_then(Value::as_u64);
    found.and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
}

fn uid_of(object: &Value) -> HeaderValue {
    HeaderValue::from_str(meta::uid(object)).unwrap_or(HeaderValue::from_static(""))
}

fn level(object: &Value) -> LevelConfig {
    let spec = &object["spec"];
    let exempt = text(spec, "type") == "Exempt";
    let limited = &spec["limited"];
    let response = &limited["limitResponse"];
    let size = |key: &str, default: u32, most: usize| -> usize {
        let asked = usize::try_from(number(&response["queuing"], key, default));
        asked.unwrap_or(most).clamp(1, most)
    };
    let queuing = (text(response, "type") == "Queue").then(|| Queuing {
        queues: size("queues", 64, QUEUES_MAX),
        hand_size: size("handSize", 8, HAND_MAX),
        length_max: size("queueLengthLimit", 50, LENGTH_MAX),
    });
    LevelConfig {
        exempt,
        shares: if exempt { 0 } else { number(limited, "nominalConcurrencyShares", 30) },
        lendable_percent: number(limited, "lendablePercent", 0).min(100),
        borrowing_percent: limited
            .get("borrowingLimitPercent")
            .and_then(Value::as_u64)
            .map(|percent| u32::try_from(percent).unwrap_or(u32::MAX)),
        queuing,
        uid: uid_of(object),
    }
}

fn schema(name: &str, object: &Value) -> Schema {
    let spec = &object["spec"];
    let by = match text(&spec["distinguisherMethod"], "type") {
        "ByUser" => By::User,
        "ByNamespace" => By::Namespace,
        _ => By::Nothing,
    };
    Schema {
        name: name.to_owned(),
        precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
        level: text(&spec["priorityLevelConfiguration"], "name").to_owned(),
        by,
        rules: items(spec, "rules").iter().map(rule).collect(),
        uid: uid_of(object),
    }
}

fn rule(value: &Value) -> Rule {
    let mut rule = Rule {
        users: Vec::new(),
        groups: Vec::new(),
        accounts: Vec::new(),
        resources: Vec::new(),
        paths: Vec::new(),
    };
    for subject in items(value, "subjects") {
        match text(subject, "kind") {
            "User" => rule.users.push(text(&subject["user"], "name").to_owned()),
            "Group" => rule.groups.push(text(&subject["group"], "name").to_owned()),
            _ => {
                let account = &subject["serviceAccount"];
                let (namespace, name) = (text(account, "namespace"), text(account, "name"));
                rule.accounts.push((namespace.to_owned(), name.to_owned()));
            }
        }
    }
    rule.resources = items(value, "resourceRules")
        .iter()
        .map(|one| ResourceRule {
            verbs: texts(one, "verbs"),
            groups: texts(one, "apiGroups"),
            resources: texts(one, "resources"),
            namespaces: texts(one, "namespaces"),
            cluster: one["clusterScope"] == true,
        })
        .collect();
    rule.paths = items(value, "nonResourceRules")
        .iter()
        .map(|one| PathRule { verbs: texts(one, "verbs"), paths: texts(one, "nonResourceURLs") })
        .collect();
    rule
}

impl Fold for Flows {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        let Ok(object) = serde_json::from_slice::<Value>(&entry.value) else { return };
        self.remove(key);
        match key.plural {
            "prioritylevelconfigurations" => {
                self.levels.insert(key.name.to_owned(), level(&object));
            }
            "flowschemas" => {
                self.schemas.push(Arc::new(schema(key.name, &object)));
                let place = |one: &Arc<Schema>| (one.precedence, one.name.clone());
                self.schemas.sort_by_cached_key(place);
            }
            _ => {}
        }
    }

    fn remove(&mut self, key: &Key<'_>) {
        match key.plural {
            "prioritylevelconfigurations" => {
                self.levels.remove(key.name);
            }
            "flowschemas" => self.schemas.retain(|schema| schema.name != key.name),
            _ => {}
        }
    }
}

impl Flows {
    /// The level and flow of a request; None while there are no schemas, at the very start.
    pub fn classify(&self, user: &User, asked: &Attributes) -> Option<Found<'_>> {
        let schema = self.schemas.iter().find(|schema| {
            self.levels.contains_key(&schema.level)
                && schema.rules.iter().any(|rule| rule.matches(user, asked))
        })?;
        let level = self.levels.get(&schema.level)?;
        let mut hasher = DefaultHasher::new();
        schema.name.hash(&mut hasher);
        match schema.by {
            By::Nothing => {}
            By::User => user.name.hash(&mut hasher),
            By::Namespace => asked.namespace.hash(&mut hasher),
        }
        let class = Class { schema_uid: schema.uid.clone(), level_uid: level.uid.clone() };
        let flow = hasher.finish();
        Some(Found { level: &schema.level, exempt: level.exempt, flow, class })
    }
}

/// `*` is everything.
fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

impl Rule {
    fn matches(&self, user: &User, asked: &Attributes) -> bool {
        self.is_about(user)
            && match asked.is_resource {
                true => self.resources.iter().any(|rule| rule.matches(asked)),
                false => self.paths.iter().any(|rule| rule.matches(asked)),
            }
    }

    fn is_about(&self, user: &User) -> bool {
        let account = || {
            let Some((namespace, name)) = service_account_of(&user.name) else { return false };
            let fits =
                |one: &(String, String)| one.0 == namespace && (one.1 == "*" || one.1 == name);
            self.accounts.iter().any(fits)
        };
        has(&self.users, &user.name)
            || self.groups.iter().any(|own| own == "*" || user.is_in(own))
            || !self.accounts.is_empty() && account()
    }
}

impl ResourceRule {
    fn matches(&self, asked: &Attributes) -> bool {
        let place = match asked.namespace.as_str() {
            "" => self.cluster,
            namespace => has(&self.namespaces, namespace),
        };
        let resource = || match asked.subresource.as_str() {
            "" => has(&self.resources, &asked.resource),
            part => has(&self.resources, &format!("{}/{part}", asked.resource)),
        };
        place && has(&self.verbs, &asked.verb) && has(&self.groups, &asked.group) && resource()
    }
}

impl PathRule {
    fn matches(&self, asked: &Attributes) -> bool {
        let fits = |path: &String| match path.strip_suffix("/*") {
            Some(root) => asked.path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')),
            None => path == "*" || *path == asked.path,
        };
        has(&self.verbs, &asked.verb) && self.paths.iter().any(fits)
    }
}
