//! Ownership: who controls an object, and how a controller adopts and lets go.
//!
//! A controller owns the objects whose controller reference carries its uid. It adopts objects that
//! its selector matches and nobody controls, and lets go of those that its selector matches no
//! more. Adoption and release are patches with the object's uid and revision, so two controllers
//! cannot adopt one object.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::cache::Typed;
use super::write::Write;

/// Letters of generated names: no vowels, so that no words come out, and no look-alikes.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Kubernetes cuts a generated name's base here, to leave room for the suffix.
const BASE_LENGTH_MAX: usize = 58;
/// Length of a generated name's suffix.
const SUFFIX_LENGTH: usize = 5;

/// The owner that controls an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object with this uid controls that one.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference by which an object becomes another's controller.
pub fn controller_reference<T: Typed>(owner: &T) -> OwnerReference {
    OwnerReference {
        api_version: T::API_VERSION.to_string(),
        kind: T::KIND.to_string(),
        name: owner.metadata().name.clone().unwrap_or_default(),
        uid: owner.metadata().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

type Labels = BTreeMap<String, String>;

/// Whether a label selector matches. An empty selector matches everything; one with an operator
/// that does not exist matches nothing (admission has refused it).
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    equal.into_iter().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|rule| holds(rule, value(&rule.key)))
}

/// Whether a plain map of labels (a Service's selector) matches.
pub fn selects_all(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(key, wanted)| labels.and_then(|labels| labels.get(key)) == Some(wanted))
}

fn holds(rule: &LabelSelectorRequirement, value: Option<&String>) -> bool {
    let listed = |value: &String| rule.values.iter().flatten().any(|wanted| wanted == value);
    match rule.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// The patches by which `owner` adopts `strays` (ownerless and matching) and lets go of what it
/// controls and its selector does not match.
pub fn adopt_and_release<O: Typed, T: Typed>(
    owner: &O,
    selector: &LabelSelector,
    controlled: &[Arc<T>],
    strays: &[Arc<T>],
) -> Vec<Write> {
    let mut writes = Vec::new();
    for object in strays {
        let meta = object.metadata();
        if meta.deletion_timestamp.is_none() && selects(selector, meta.labels.as_ref()) {
            let mut owners = meta.owner_references.clone().unwrap_or_default();
            owners.push(controller_reference(owner));
            writes.push(Write::patch(&**object, json!({"metadata": {"ownerReferences": owners}})));
        }
    }
    let uid = owner.metadata().uid.as_deref().unwrap_or("");
    for object in controlled {
        let meta = object.metadata();
        if meta.deletion_timestamp.is_none() && !selects(selector, meta.labels.as_ref()) {
            let owners = without_owner(meta, uid);
            writes.push(Write::patch(&**object, json!({"metadata": {"ownerReferences": owners}})));
        }
    }
    writes
}

/// An object's owners except one.
pub fn without_owner(meta: &ObjectMeta, uid: &str) -> Vec<OwnerReference> {
    let owners = meta.owner_references.iter().flatten();
    owners.filter(|owner| owner.uid != uid).cloned().collect()
}

/// A short text made of [`ALPHABET`] that depends on nothing but the seed.
pub fn hash_text(seed: &[u8], length: usize) -> String {
    let digest = Sha256::digest(seed);
    let letter = |byte: &u8| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]);
    digest.iter().take(length).map(letter).collect()
}

/// The name `base` + `-` + five letters that depend on the seed alone: a plan made twice from the
/// same state names the same object, so the second create is refused instead of making one too
/// many.
pub fn seeded_name(base: &str, seed: &str) -> String {
    let base = format!("{base}-");
    let cut = base.char_indices().nth(BASE_LENGTH_MAX).map_or(base.len(), |(at, _)| at);
    format!("{}{}", &base[..cut], hash_text(seed.as_bytes(), SUFFIX_LENGTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &str, expected: bool) {
        let selector: LabelSelector = serde_json::from_str(selector).expect("a selector");
        let labels: Labels = serde_json::from_str(labels).expect("labels");
        assert_eq!(selects(&selector, Some(&labels)), expected, "{selector:?} on {labels:?}");
    }

    #[test]
    fn selectors_match_as_kubernetes_does() {
        check("{}", r#"{"a":"1"}"#, true);
        check(r#"{"matchLabels":{"a":"1"}}"#, r#"{"a":"1","b":"2"}"#, true);
        check(r#"{"matchLabels":{"a":"1"}}"#, r#"{"a":"2"}"#, false);
        let rule = |op: &str, values: &str| {
            format!(r#"{{"matchExpressions":[{{"key":"a","values":{values},"operator":"{op}"}}]}}"#)
        };
        check(&rule("In", r#"["1","2"]"#), r#"{"a":"2"}"#, true);
        check(&rule("In", r#"["1"]"#), "{}", false);
        check(&rule("NotIn", r#"["1"]"#), "{}", true);
        check(&rule("NotIn", r#"["1"]"#), r#"{"a":"1"}"#, false);
        check(&rule("Exists", "[]"), r#"{"a":""}"#, true);
        check(&rule("DoesNotExist", "[]"), r#"{"a":""}"#, false);
    }

    #[test]
    fn seeded_names_are_short_and_repeatable() {
        assert_eq!(seeded_name("web", "1"), seeded_name("web", "1"));
        assert_ne!(seeded_name("web", "1"), seeded_name("web", "2"));
        assert_eq!(seeded_name(&"x".repeat(200), "1").len(), BASE_LENGTH_MAX + SUFFIX_LENGTH);
    }
}
