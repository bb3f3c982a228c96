//! Which CRD gets which names.
//!
//! Within a group no two CRDs may share a plural, singular or short name, nor a kind or list kind.
//! What a CRD asks for and nobody else holds is accepted; when everything is, the CRD is
//! *established* and stays so. [`decide`] is asked when a CRD is written and again when another one
//! goes.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::conditions::{self, Condition};
use crate::{Object, meta};

/// Whether objects of this CRD are served.
pub fn is_established(crd: &Object) -> bool {
    conditions::is_true(conditions::of(crd), "Established")
}

/// A CRD with the status that follows from its spec and from the CRDs beside it.
pub fn decide(crd: &Object, others: &[Object], now: Timestamp) -> Object {
    let mut decided = crd.clone();
    let rivals: Vec<&Value> = others
        .iter()
        .filter(|other| meta::name(other) != meta::name(crd))
        .filter(|other| other["spec"]["group"] == crd["spec"]["group"])
        .map(|other| &other["status"]["acceptedNames"])
        .collect();
    let wanted = &crd["spec"]["names"];
    let mut accepted = accepted(&crd["status"]["acceptedNames"]);
    let conflicts = take(wanted, &rivals, &mut accepted);
    decided["status"]["acceptedNames"] = Value::Object(accepted);
    store_version(&mut decided);
    let (status, reason, message) = match conflicts.first() {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, _)) => {
            let texts: Vec<&str> = conflicts.iter().map(|(_, text)| text.as_str()).collect();
            ("False", *reason, texts.join(", "))
        }
    };
    let names = Condition { kind: "NamesAccepted", status, reason, message: &message };
    conditions::set(&mut decided, names, now);
    if !is_established(&decided) {
        let established = match conflicts.is_empty() {
            true => Condition {
                kind: "Established",
                status: "True",
                reason: "InitialNamesAccepted",
                message: "the initial names have been accepted",
            },
            false => Condition {
                kind: "Established",
                status: "False",
                reason: "NotAccepted",
                message: "not all names are accepted",
            },
        };
        conditions::set(&mut decided, established, now);
    }
    decided
}

/// The names held so far, with the two that are always there.
fn accepted(held: &Value) -> Map<String, Value> {
    let mut accepted = held.as_object().cloned().unwrap_or_default();
    for key in ["plural", "kind"] {
        accepted.entry(key).or_insert_with(|| json!(""));
    }
    accepted
}

/// Moves the wanted names that nobody else holds into `accepted`; the others, with the reason of
/// the condition and its text.
fn take(
    wanted: &Value,
    rivals: &[&Value],
    accepted: &mut Map<String, Value>,
) -> Vec<(&'static str, String)> {
    let resources: Vec<&str> = rivals
        .iter()
        .flat_map(|names| {
            let short = names["shortNames"].as_array().into_iter().flatten();
            [&names["plural"], &names["singular"]].into_iter().chain(short)
        })
        .filter_map(Value::as_str)
        .collect();
    let kinds: Vec<&str> = rivals
        .iter()
        .flat_map(|names| [&names["kind"], &names["listKind"]])
        .filter_map(Value::as_str)
        .collect();
    let mut conflicts = Vec::new();
    let singles = [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ];
    for (key, reason, taken) in singles {
        match wanted[key].as_str().filter(|name| !name.is_empty()) {
            Some(name) if taken.contains(&name) => {
                conflicts.push((reason, format!("{name:?} is already in use")));
            }
            Some(name) => {
                accepted.insert(key.to_owned(), name.into());
            }
            None => {
                accepted.shift_remove(key);
            }
        }
    }
    let short = wanted["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let (taken, free): (Vec<&str>, Vec<&str>) = short.partition(|name| resources.contains(name));
    if !taken.is_empty() {
        let texts: Vec<String> =
            taken.iter().map(|name| format!("{name:?} is already in use")).collect();
        conflicts.push(("ShortNamesConflict", texts.join(", ")));
    } else {
        list(accepted, "shortNames", json!(free));
    }
    list(accepted, "categories", wanted["categories"].clone());
    conflicts
}

fn list(accepted: &mut Map<String, Value>, key: &str, value: Value) {
    if value.as_array().is_some_and(|list| !list.is_empty()) {
        accepted.insert(key.to_owned(), value);
    } else {
        accepted.shift_remove(key);
    }
}

/// Objects may be stored in the storage version from now on.
fn store_version(crd: &mut Object) {
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    let storage = versions
        .filter(|version| version["storage"] == true)
        .find_map(|version| version["name"].as_str().map(str::to_owned));
    let status = meta::child_mut(meta::object_mut(crd), "status");
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(stored), Some(storage)) = (stored.as_array_mut(), storage)
        && !stored.iter().any(|version| *version == storage)
    {
        stored.push(storage.into());
    }
}

/// Says how far the deletion of a CRD's objects is.
pub fn terminating(crd: &mut Object, reason: &str, message: &str, now: Timestamp) -> bool {
    let status = if reason == "InstanceDeletionCompleted" { "False" } else { "True" };
    conditions::set(crd, Condition { kind: "Terminating", status, reason, message }, now)
}
