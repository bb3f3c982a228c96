//! Status conditions: one entry a type, and a transition time that moves only when the status does.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::meta;

/// What a controller says about one condition.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    pub kind: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// The entry of that type in a list of conditions.
pub fn find<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| meta::text(condition, "type") == kind)
}

/// Whether that condition's status is `True`.
pub fn is_true(conditions: &[Value], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| meta::text(condition, "status") == "True")
}

/// `status.conditions` of an object.
pub fn of(object: &Value) -> &[Value] {
    object.get("status").map(|status| meta::items(status, "conditions")).unwrap_or(&[])
}

/// Puts a condition into an object's `status.conditions` and says whether anything changed.
///
/// `lastTransitionTime` is `now` only when the status differs from before. Other fields of the
/// entry (`observedGeneration`, `lastProbeTime`) stay as they are.
pub fn set(object: &mut Value, condition: Condition<'_>, now: Timestamp) -> bool {
    let status = meta::child_mut(meta::object_mut(object), "status");
    let list = status.entry("conditions").or_insert(Value::Null);
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let list = list.as_array_mut().expect("it was just made a list");
    let at = list.iter().position(|entry| meta::text(entry, "type") == condition.kind);
    let at = at.unwrap_or_else(|| {
        list.push(Value::Object(Map::new()));
        list.len() - 1
    });
    let before = list[at].clone();
    let entry = meta::object_mut(&mut list[at]);
    let moved = meta::text(&before, "status") != condition.status;
    entry.insert("type".to_string(), Value::from(condition.kind));
    entry.insert("status".to_string(), Value::from(condition.status));
    if moved {
        entry.insert("lastTransitionTime".to_string(), Value::from(meta::time(now)));
    }
    for (key, text) in [("reason", condition.reason), ("message", condition.message)] {
        if text.is_empty() {
            entry.shift_remove(key);
        } else {
            entry.insert(key.to_string(), Value::from(text));
        }
    }
    list[at] != before
}

/// Removes a condition and says whether it was there.
pub fn remove(object: &mut Value, kind: &str) -> bool {
    let list = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    let Some(list) = list else { return false };
    let before = list.len();
    list.retain(|entry| meta::text(entry, "type") != kind);
    list.len() != before
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let ready = |status, message| Condition { kind: "Ready", status, reason: "R", message };
        let mut object = json!({});
        assert!(set(&mut object, ready("False", "a"), at(0)));
        assert!(!set(&mut object, ready("False", "a"), at(9)));
        assert!(set(&mut object, ready("False", "b"), at(9)));
        let time = |object: &Value| meta::text(&of(object)[0], "lastTransitionTime").to_string();
        assert_eq!(time(&object), "1970-01-01T00:00:00Z");
        assert!(set(&mut object, ready("True", ""), at(9)) && is_true(of(&object), "Ready"));
        assert_eq!(time(&object), "1970-01-01T00:00:09Z");
        assert!(remove(&mut object, "Ready") && !remove(&mut object, "Ready"));
    }
}
