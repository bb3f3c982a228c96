//! Who did what: a line of JSON for each request that the policy names (`policy`), in the form of
//! Kubernetes' audit events, in an append-only file whose lines are chained (`log`).
//!
//! Whatever the policy says: a refusal, a command or stream into a Pod, and acting as somebody else
//! are always told, and the content of Secrets, tokens and what else carries them never is.

mod log;
mod policy;
pub mod tail;

pub use log::{AuditError, AuditLog, LogConfig, VerifyError, verify};
pub use policy::{Level, Policy, PolicyError};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_resources::meta;

use super::asides;
use super::auth::User;
use super::request::Attributes;

/// How a request showed who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Inside the process.
    Internal,
    Certificate,
    Token,
    Session,
    Nothing,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Internal => "internal",
            Source::Certificate => "certificate",
            Source::Token => "token",
            Source::Session => "session",
            Source::Nothing => "none",
        }
    }
}

/// Everything that is told of one request.
#[derive(Clone, Debug)]
pub struct Told {
    pub id: String,
    pub received: Timestamp,
    pub uri: String,
    /// None where it was not found out.
    pub user: Option<User>,
    pub acts_as: Option<User>,
    pub source: Source,
    pub address: Option<String>,
    pub agent: String,
    pub asked: Attributes,
    /// Why it was refused.
    pub refused: Option<String>,
    pub request: Option<Value>,
    pub response: Option<Value>,
    /// What hooks and policies want to be told.
    pub notes: Map<String, Value>,
}

/// What the path names that carries secrets: told by name only. A new member is told the cluster's
/// keys below `/wherry/`.
fn carries_secrets(asked: &Attributes) -> bool {
    matches!(
        (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()),
        ("", "secrets" | "configmaps", _)
            | ("", "serviceaccounts", "token")
            | ("authentication.k8s.io", _, _)
    ) || ["/ui/", "/wherry/"].iter().any(|below| asked.path.starts_with(below))
}

/// Streams into a Pod or through the API server to somewhere else.
fn reaches_inside(asked: &Attributes) -> bool {
    ["exec", "attach", "portforward", "proxy", "ephemeralcontainers"]
        .contains(&asked.subresource.as_str())
}

/// How much of a request is told.
pub fn level(policy: &Policy, told: &Told, code: u16) -> Level {
    let user = told.acts_as.as_ref().or(told.user.as_ref());
    let level = policy.level(user, &told.asked);
    let always = [401, 403].contains(&code)
        || told.acts_as.is_some()
        || told.asked.is_resource && reaches_inside(&told.asked);
    let level = if always { level.max(Level::Metadata) } else { level };
    if carries_secrets(&told.asked) { level.min(Level::Metadata) } else { level }
}

/// The most that may be told before the answer is known: whether bodies must be kept.
pub fn level_ahead(policy: &Policy, user: &User, asked: &Attributes) -> Level {
    let level = policy.level(Some(user), asked);
    if carries_secrets(asked) { level.min(Level::Metadata) } else { level }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name });
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    info["groups"] = json!(user.groups);
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// The event, in Kubernetes' form.
pub fn event(told: &Told, level: Level, code: u16, now: Timestamp) -> Value {
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level.name(),
        "auditID": told.id, "stage": "ResponseComplete", "requestURI": told.uri,
        "verb": told.asked.verb,
    });
    event["user"] = told.user.as_ref().map_or_else(|| json!({}), user_info);
    if let Some(user) = &told.acts_as {
        event["impersonatedUser"] = user_info(user);
    }
    if let Some(address) = &told.address {
        event["sourceIPs"] = json!([address]);
    }
    if !told.agent.is_empty() {
        event["userAgent"] = json!(told.agent);
    }
    if told.asked.is_resource {
        event["objectRef"] = reference(&told.asked);
    }
    event["responseStatus"] = json!({ "metadata": {}, "code": code });
    if level >= Level::Request && told.request.is_some() {
        event["requestObject"] = json!(told.request);
    }
    if level >= Level::RequestResponse && told.response.is_some() {
        event["responseObject"] = json!(told.response);
    }
    event["requestReceivedTimestamp"] = json!(meta::micro_time(told.received));
    event["stageTimestamp"] = json!(meta::micro_time(now));
    // Whatever hooks say, they do not say how it was decided.
    let mut notes = told.notes.clone();
    if level < Level::Request {
        notes.retain(|key, _| !key.starts_with(asides::PATCHES));
    }
    let decision = if told.refused.is_some() { "forbid" } else { "allow" };
    notes.insert("authorization.k8s.io/decision".to_owned(), json!(decision));
    if let Some(why) = &told.refused {
        notes.insert("authorization.k8s.io/reason".to_owned(), json!(why));
    }
    notes.insert("wherry.dev/authenticated-by".to_owned(), json!(told.source.name()));
    event["annotations"] = Value::Object(notes);
    event
}

fn reference(asked: &Attributes) -> Value {
    let mut reference = Map::new();
    let parts = [
        ("resource", &asked.resource),
        ("namespace", &asked.namespace),
        ("name", &asked.name),
        ("apiGroup", &asked.group),
        ("apiVersion", &asked.version),
        ("subresource", &asked.subresource),
    ];
    for (key, text) in parts.into_iter().filter(|(_, text)| !text.is_empty()) {
        reference.insert(key.to_owned(), json!(text));
    }
    Value::Object(reference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::join;

    fn told(verb: &str, resource: &str, subresource: &str) -> Told {
        Told {
            id: "1".to_owned(),
            received: Timestamp::UNIX_EPOCH,
            uri: "/x".to_owned(),
            user: Some(User::new("ann", &[])),
            acts_as: None,
            source: Source::Certificate,
            address: Some("10.0.0.1".to_owned()),
            agent: "kubectl".to_owned(),
            asked: Attributes {
                verb: verb.to_owned(),
                is_resource: true,
                resource: resource.to_owned(),
                subresource: subresource.to_owned(),
                ..Attributes::default()
            },
            refused: None,
            request: Some(json!({"data": {"k": "v"}})),
            response: None,
            notes: Map::new(),
        }
    }

    #[test]
    fn refusals_streams_and_impersonation_are_always_told() {
        let silent = Policy::parse("{rules: [{level: None}]}").expect("a policy");
        assert_eq!(level(&silent, &told("get", "pods", ""), 200), Level::None);
        assert_eq!(level(&silent, &told("get", "pods", ""), 403), Level::Metadata);
        assert_eq!(level(&silent, &told("create", "pods", "exec"), 101), Level::Metadata);
        let mut acting = told("get", "pods", "");
        acting.acts_as = Some(User::new("bob", &[]));
        assert_eq!(level(&silent, &acting, 200), Level::Metadata);
    }

    #[test]
    fn the_content_of_secrets_is_never_told() {
        let loud = Policy::parse("{rules: [{level: RequestResponse}]}").expect("a policy");
        let secret = told("create", "secrets", "");
        assert_eq!(level(&loud, &secret, 201), Level::Metadata);
        assert!(
            event(&secret, Level::Metadata, 201, Timestamp::UNIX_EPOCH)
                .get("requestObject")
                .is_none()
        );
        let path = join::PATH.to_owned();
        let joining = Attributes { verb: "post".to_owned(), path, ..Attributes::default() };
        let server = User::new("system:bootstrap:abcdef", &[]);
        assert_eq!(level_ahead(&loud, &server, &joining), Level::Metadata);
        let mut map = told("create", "deployments", "");
        let patch = format!("{}round_0_index_0", asides::PATCHES);
        map.notes.insert(patch.clone(), json!("{}"));
        let known = event(&map, Level::Metadata, 201, Timestamp::UNIX_EPOCH);
        assert!(known["annotations"].get(&patch).is_none(), "a patch is content");
        let event = event(&map, level(&loud, &map, 201), 201, Timestamp::UNIX_EPOCH);
        assert_eq!(event["requestObject"]["data"]["k"], "v");
        assert_eq!(event["annotations"][&patch], "{}");
        assert_eq!(event["annotations"]["wherry.dev/authenticated-by"], "certificate");
    }
}
