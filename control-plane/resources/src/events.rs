//! Events: what happened to an object, in one line, counted instead of repeated.
//!
//! An event's name is made from what it says (object, reporter, type, reason, message), so that the
//! same thing happening again is an update of the same object: [`new`] when it is absent, [`again`]
//! when it is there.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Object, meta};

/// Longest message; more says nothing to a reader of a table.
const MESSAGE_LENGTH_MAX: usize = 1024;
/// Room for the 17 characters that make an event's name unique.
const NAME_PREFIX_MAX: usize = 253 - 17;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Happening<'a> {
    /// `Normal` or `Warning`.
    pub kind: &'a str,
    /// One CamelCase word.
    pub reason: &'a str,
    pub message: &'a str,
    /// Who says so: `kubelet`, `default-scheduler`, `deployment-controller`.
    pub component: &'a str,
    /// The node of a node agent, else empty.
    pub host: &'a str,
}

/// Reference to an object as `involvedObject` holds it. Events of cluster-scoped objects live in
/// `default`.
pub fn reference(object: &Object) -> Value {
    let mut reference = json!({"kind": meta::kind(object)});
    let fields = [
        ("namespace", meta::namespace(object)),
        ("name", meta::name(object)),
        ("uid", meta::uid(object)),
        ("apiVersion", meta::api_version(object)),
        ("resourceVersion", meta::resource_version(object)),
    ];
    for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        reference[key] = Value::from(value);
    }
    reference
}

/// The namespace that an event about this object belongs to.
pub fn namespace(involved: &Value) -> &str {
    match meta::text(involved, "namespace") {
        "" => "default",
        namespace => namespace,
    }
}

/// The name of the event, the same whenever the same thing happens to the same object.
pub fn name(involved: &Value, happening: &Happening<'_>) -> String {
    let message = cut(happening.message, MESSAGE_LENGTH_MAX);
    let parts = [
        meta::text(involved, "kind"),
        meta::text(involved, "uid"),
        meta::text(involved, "fieldPath"),
        happening.kind,
        happening.reason,
        happening.component,
        happening.host,
        message,
    ];
    let name = cut(meta::text(involved, "name"), NAME_PREFIX_MAX).trim_end_matches(['-', '.']);
    format!("{name}.{:016x}", fnv(parts.iter()))
}

/// The first event of its name.
pub fn new(involved: &Value, happening: &Happening<'_>, now: Timestamp) -> Object {
    let mut source = json!({"component": happening.component});
    if !happening.host.is_empty() {
        source["host"] = Value::from(happening.host);
    }
    json!({
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": name(involved, happening), "namespace": namespace(involved)},
        "involvedObject": involved,
        "reason": happening.reason,
        "message": cut(happening.message, MESSAGE_LENGTH_MAX),
        "source": source,
        "firstTimestamp": meta::time(now),
        "lastTimestamp": meta::time(now),
        "count": 1,
        "type": happening.kind,
        "eventTime": null,
        "reportingComponent": happening.component,
        "reportingInstance": happening.host,
    })
}

/// The event after the same thing happened once more.
pub fn again(event: &Object, now: Timestamp) -> Object {
    let mut event = event.clone();
    let count = event.get("count").and_then(Value::as_i64).unwrap_or(1);
    event["count"] = Value::from(count.saturating_add(1));
    event["lastTimestamp"] = Value::from(meta::time(now));
    event
}

/// The text up to a length, never in the middle of a character.
fn cut(text: &str, length_max: usize) -> &str {
    if text.len() <= length_max {
        return text;
    }
    let mut end = length_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// FNV-1a over the parts, with a separator that no part contains. Tells events apart; protects
/// nothing.
fn fnv<'a>(parts: impl Iterator<Item = &'a &'a str>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_has_the_same_name_and_is_counted() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "7"}});
        let pulled = Happening {
            kind: "Normal",
            reason: "Pulled",
            message: "image is here",
            component: "kubelet",
            host: "node-1",
        };
        let involved = reference(&pod);
        let first = new(&involved, &pulled, at(0));
        assert_eq!(meta::name(&first), name(&involved, &pulled));
        assert!(meta::name(&first).starts_with("web.") && meta::name(&first).len() == 20);
        let other = Happening { reason: "Failed", ..pulled };
        assert_ne!(name(&involved, &other), name(&involved, &pulled));
        let second = again(&first, at(60));
        assert_eq!(second["count"], 2);
        assert_eq!(second["firstTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(second["lastTimestamp"], "1970-01-01T00:01:00Z");
        assert_eq!(namespace(&reference(&json!({"kind": "Node"}))), "default");
    }

    #[test]
    fn messages_are_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("abc", 3), "abc");
    }
}
